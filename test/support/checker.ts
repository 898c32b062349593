/**
 * The checker: given what every viewer saw, the rows of Postgres, what the provider said and which faults there were, it names
 * every promise that was broken. It trusts nobody's summary: it folds each viewer's events again, by the protocol's
 * rules, and compares texts byte for byte. Pure: the same evidence gives the same verdict, so a history that was kept can
 * be judged again.
 *
 * Words that a viewer was shown may be missing from the stored reply only in windows that are known beforehand: shown by
 * a process that had lost its run while it was frozen or cut off from the database (`zombie`); or said since the last
 * checkpoint by a process that died, froze or lost its lease, when Redis was away or forgot at that time or before the
 * takeover (`double fault`). Everything else is a violation. Each rule has a broken history that it must notice
 * (test/faults/checker.test.ts).
 */
import { type EventId, formatEventId, parseEventId } from '../../src/log/event.ts'
import type { HistoryLine } from './history.ts'
import { keyOf, type SaidCall } from './speaker.ts'

/** Something that a test did, and when. */
export interface Fault {
  readonly kind: /** kill -9. */
    | 'kill'
    /** SIGTERM. */
    | 'terminate'
    /** SIGSTOP from `fromMs` to `toMs`. */
    | 'freeze'
    /** Redis does not answer, or has forgotten what it held; for all gateways, or for one. */
    | 'redis away'
    | 'database away'
    /** Connections are cut, or answers late: nothing is lost by it. */
    | 'disturbance'
  /** The URL; undefined when it concerns all. */
  readonly gateway: string | undefined
  readonly fromMs: number
  readonly toMs: number
}

export interface RunRow {
  readonly id: string
  readonly session_id: string
  readonly user_message_id: string
  readonly message_id: string
  readonly status: string
  readonly generation: number
  readonly attempts: number
  readonly last_seq: number
  readonly idempotency_key: string | null
  /** The URL of the gateway that made it last. */
  readonly gateway: string | undefined
}

export interface MessageRow {
  readonly id: string
  readonly session_id: string
  readonly role: string
  readonly status: string
  readonly content: string
}

export interface SessionRow {
  readonly id: string
  readonly message_count: number
  readonly active_run_id: string | null
}

export interface Evidence {
  readonly history: readonly HistoryLine[]
  readonly runs: readonly RunRow[]
  readonly messages: readonly MessageRow[]
  readonly sessions: readonly SessionRow[]
  /** Runs of which there are checkpoints. */
  readonly checkpointed: readonly string[]
  readonly said: readonly SaidCall[]
  readonly faults: readonly Fault[]
  /** Lines of logs that may not be there. */
  readonly complaints: readonly string[]
}

export interface Violation {
  readonly rule: string
  readonly detail: string
}

export interface Figures {
  /** Messages that viewers wanted to send. */
  messages: number
  acknowledged: number
  lostMessages: number
  lostUnits: number
  duplicatedUnits: number
  wrongEnds: number
  /** Longest silence that a viewer of the process that makes the run had while the provider spoke, and what went on then. */
  worstStallMs: number
  worstStallDuring: string
  /** The same for viewers of other processes. */
  worstStallElsewhereMs: number
  /** From the death of a process to the first that a viewer heard of its successor. */
  takeoverMs: number[]
  /** The same from SIGTERM's release, and for a takeover while a store was away, too. */
  handOverMs: number[]
  takeoverDuringFaultMs: number[]
  /** Shown, then replaced, within the windows where that is known to happen. */
  excused: { readonly why: 'zombie' | 'double fault'; readonly units: number }[]
}

export interface Verdict {
  readonly violations: readonly Violation[]
  readonly figures: Figures
}

/** The checkpoint clock, one write, and a busy machine: how old the newest checkpoint may be. */
const checkpointAgeMs = 2_500
/** How long a process may go on showing words after it has come back, before it notices that its run is another's. */
const noticeMs = 5_000
/** A process cut off from its database for less than this keeps its lease. */
const leaseMinMs = 6_000
/** From the end of a process until its runs are another's. */
const takeoverMsMax = 15_000
/** "Within the same second", as the promises say it. */
const sameSecondMs = 1_000
/** Checkpoints that were written at the very moment of a commit stay until the next sweep: of so many runs at most. */
const leftoversMax = 0.05
/** Who has been there for so long was waiting, and not catching up. */
const waitingMs = 250
/** How many of a message's calls to the provider there may be. */
const callsMax = 2

interface Shown {
  readonly atMs: number
  readonly gateway: string
  readonly text: string
}

/** What one viewer went through with one run. */
interface Watch {
  readonly viewer: string
  readonly runId: string
  /** What it held after each event that changed it. */
  readonly shown: Shown[]
  /** Places in `shown` at which a reset replaced what was there. */
  readonly resets: number[]
  readonly deltas: { readonly atMs: number; readonly gateway: string }[]
  readonly visits: { readonly gateway: string; readonly fromMs: number; toMs: number; readonly wordsAtMs: number[] }[]
  done: { readonly atMs: number; readonly id: string; readonly status: string } | undefined
  end: string | undefined
  firstOfGeneration: {
    readonly generation: number
    readonly atMs: number
    readonly gateway: string
    /** How long it had been there when it heard of it. */
    readonly waitedMs: number
  }[]
}

export function check(evidence: Evidence): Verdict {
  const violations: Violation[] = []
  const say = (rule: string, detail: string) => void violations.push({ rule, detail })
  const figures: Figures = {
    messages: 0,
    acknowledged: 0,
    lostMessages: 0,
    lostUnits: 0,
    duplicatedUnits: 0,
    wrongEnds: 0,
    worstStallMs: 0,
    worstStallDuring: 'nothing',
    worstStallElsewhereMs: 0,
    takeoverMs: [],
    handOverMs: [],
    takeoverDuringFaultMs: [],
    excused: [],
  }
  const watches = readWatches(evidence.history, say, figures)
  checkAcceptance(evidence, say, figures)
  checkRows(evidence, say)
  checkEnds(evidence, watches, say, figures)
  checkTexts(evidence, watches, say, figures)
  checkCalls(evidence, watches, say)
  for (const line of evidence.complaints) say('logs', line.slice(0, 500))
  measureStalls(evidence, watches, figures)
  measureTakeovers(evidence, watches, figures)
  return { violations, figures }
}

type Say = (rule: string, detail: string) => void

/** Folds each viewer's events, and notices what does not join. */
function readWatches(history: readonly HistoryLine[], say: Say, figures: Figures): Watch[] {
  const watches: Watch[] = []
  for (const [viewer, lines] of Map.groupBy(history, (line) => line.viewer)) {
    let watch: Watch | undefined
    let gateway = ''
    let last: EventId | undefined
    let held = ''
    for (const line of lines) {
      if (line.what === 'open') {
        if (watch !== undefined && watch.runId !== line.runId) {
          say('P5 one run', `${viewer} was first in run ${watch.runId} and then, with the same key, in ${line.runId}`)
        }
        gateway = line.gateway
        watch ??= {
          viewer,
          runId: line.runId,
          shown: [],
          resets: [],
          deltas: [],
          visits: [],
          done: undefined,
          end: undefined,
          firstOfGeneration: [],
        }
        watch.visits.push({ gateway, fromMs: line.atMs, toMs: Number.POSITIVE_INFINITY, wordsAtMs: [] })
        if (last === undefined && line.after !== undefined) last = parseEventId(line.after)
      }
      if (watch === undefined) continue
      const visit = watch.visits.at(-1)
      if (line.what === 'closed' && visit !== undefined) visit.toMs = line.atMs
      if (line.what === 'closed' && line.how === 'clean' && watch.done === undefined && !saidGoodbye(lines, line)) {
        say('P8 a cut is a cut', `${viewer}: a body of ${gateway} ended cleanly before the end of the run`)
      }
      if (line.what === 'end') watch.end = line.why
      if (line.what !== 'event') continue
      if (watch.done !== undefined) say('P4 one end', `${viewer}: ${line.event} after done`)
      const id = line.id === undefined ? undefined : parseEventId(line.id)
      if (id !== undefined) {
        if (line.event !== 'reset' && last !== undefined && compare(id, last) <= 0) {
          say('P3 order', `${viewer}: ${line.event} ${line.id} after ${formatEventId(last)}`)
        }
        const { generation } = id
        if (!watch.firstOfGeneration.some((first) => first.generation === generation)) {
          const waitedMs = line.atMs - (visit?.fromMs ?? line.atMs)
          watch.firstOfGeneration.push({ generation, atMs: line.atMs, gateway, waitedMs })
        }
        last = id
      }
      if (line.event === 'reset') {
        const { parts } = line.data as { parts: { kind: string; text: string }[] }
        watch.resets.push(watch.shown.length)
        const before = held.length
        held = parts.map(({ kind, text }) => (kind === 'text' ? text : '')).join('')
        if (held.length > before) visit?.wordsAtMs.push(line.atMs)
        watch.shown.push({ atMs: line.atMs, gateway, text: held })
      }
      if (line.event === 'delta') {
        const { offset, text } = line.data as { offset: number; text: string }
        visit?.wordsAtMs.push(line.atMs)
        watch.deltas.push({ atMs: line.atMs, gateway })
        if (offset > held.length) {
          say('P3 gap', `${viewer}: delta ${line.id} begins at ${offset}, held are ${held.length}`)
          figures.lostUnits += offset - held.length
        } else if (offset < held.length) {
          say('P3 duplicate', `${viewer}: delta ${line.id} begins at ${offset}, held are ${held.length}`)
          figures.duplicatedUnits += held.length - offset
        }
        held += text
        watch.shown.push({ atMs: line.atMs, gateway, text: held })
      }
      if (line.event === 'done') {
        watch.done = { atMs: line.atMs, id: line.id ?? '', status: (line.data as { status: string }).status }
      }
    }
    if (watch !== undefined) watches.push(watch)
  }
  return watches
}

/** The server may end a body before the run's end, when it says so. */
function saidGoodbye(lines: readonly HistoryLine[], closed: HistoryLine): boolean {
  const before = lines.slice(0, lines.indexOf(closed))
  const opened = before.findLastIndex((line) => line.what === 'open')
  return before.slice(opened).some((line) => line.what === 'event' && line.event === 'reconnect')
}

/** P1: acknowledged is stored, once. P5: a key is one run. */
function checkAcceptance(evidence: Evidence, say: Say, figures: Figures): void {
  const runsById = new Map(evidence.runs.map((run) => [run.id, run]))
  const sent = new Map<string, string>()
  const keyOfViewer = new Map<string, string>()
  for (const line of evidence.history) {
    if (line.what !== 'wants' || line.key === undefined || line.message === undefined) continue
    sent.set(line.key, line.message)
    keyOfViewer.set(line.viewer, line.key)
  }
  figures.messages = sent.size
  const acknowledged = new Map<string, Set<string>>()
  for (const line of evidence.history) {
    const key = keyOfViewer.get(line.viewer)
    if (line.what !== 'open' || key === undefined) continue
    acknowledged.set(key, (acknowledged.get(key) ?? new Set()).add(line.runId))
  }
  figures.acknowledged = acknowledged.size
  for (const [key, message] of sent) {
    const runIds = [...(acknowledged.get(key) ?? [])]
    if (runIds.length > 1) say('P5 one run', `${key} was acknowledged as ${runIds.join(' and as ')}`)
    const runs = evidence.runs.filter((run) => run.idempotency_key === key)
    const questions = evidence.messages.filter(({ role, content }) => role === 'user' && content === message)
    if (runs.length > 1 || questions.length > 1) {
      say('P1 stored once', `${key} has ${runs.length} runs and ${questions.length} user messages`)
    }
    const [runId] = runIds
    if (runId === undefined) {
      if (runs.length !== questions.length) {
        say(
          'P1 stored once',
          `${key}, never acknowledged, has ${runs.length} runs and ${questions.length} user messages`,
        )
      }
      continue
    }
    const run = runsById.get(runId)
    const replies = evidence.messages.filter(({ id, role }) => role === 'assistant' && id === run?.message_id)
    if (
      run === undefined ||
      questions.length !== 1 ||
      replies.length !== 1 ||
      questions[0]?.id !== run.user_message_id
    ) {
      figures.lostMessages += 1
      say(
        'P1 accepted is stored',
        `${key}: run ${runId} ${run === undefined ? 'is not there' : 'is there'}, with ${questions.length} user messages and ${replies.length} replies`,
      )
    }
  }
}

/** P7: nobody is left behind. The counters agree with the rows. */
function checkRows({ runs, messages, sessions, checkpointed }: Evidence, say: Say): void {
  for (const { id, status } of runs) {
    if (!isTerminal(status)) say('P7 no orphan', `run ${id} is still ${status}`)
  }
  for (const { id, status } of messages)
    if (status === 'streaming') say('P7 no orphan', `message ${id} is still streaming`)
  if (checkpointed.length > Math.max(1, runs.length * leftoversMax)) {
    say(
      'leftovers',
      `checkpoints are left of ${checkpointed.length} of ${runs.length} runs, such as ${checkpointed[0]}`,
    )
  }
  const counts = Map.groupBy(messages, ({ session_id }) => session_id)
  for (const { id, message_count, active_run_id } of sessions) {
    const count = counts.get(id)?.length ?? 0
    if (message_count !== count) say('counters', `session ${id} counts ${message_count} messages and has ${count}`)
    if (active_run_id !== null) say('P7 no orphan', `session ${id} still names ${active_run_id} as active`)
  }
}

/** P4: one end, and the database says the same. */
function checkEnds(evidence: Evidence, watches: readonly Watch[], say: Say, figures: Figures): void {
  const runsById = new Map(evidence.runs.map((run) => [run.id, run]))
  const messagesById = new Map(evidence.messages.map((message) => [message.id, message]))
  const wrong = (rule: string, detail: string) => {
    figures.wrongEnds += 1
    say(rule, detail)
  }
  for (const [runId, group] of Map.groupBy(watches, (watch) => watch.runId)) {
    const run = runsById.get(runId)
    const ids = new Set(group.flatMap(({ done }) => (done === undefined ? [] : [done.id])))
    if (ids.size > 1) wrong('P4 one end', `run ${runId} ended as ${[...ids].join(' and as ')}`)
    for (const { viewer, done, end } of group) {
      if (done === undefined) {
        if (end === 'gave up' || end === 'refused') wrong('P7 the end is seen', `${viewer} of run ${runId} ${end}`)
        continue
      }
      const message = run === undefined ? undefined : messagesById.get(run.message_id)
      if (run?.status !== done.status || message?.status !== done.status) {
        wrong(
          'P4 done is stored',
          `${viewer} was told ${done.status}; run ${runId} is ${run?.status}, its message ${message?.status}`,
        )
      }
      const stored = run === undefined ? '' : `${run.generation}-${run.last_seq}`
      if (run !== undefined && isTerminal(run.status) && done.id !== stored) {
        wrong('P4 one end', `${viewer} was told done at ${done.id}; the database has it at ${stored}`)
      }
    }
  }
}

/** P3: what was shown is what is stored. */
function checkTexts(evidence: Evidence, watches: readonly Watch[], say: Say, figures: Figures): void {
  const runsById = new Map(evidence.runs.map((run) => [run.id, run]))
  const messagesById = new Map(evidence.messages.map((message) => [message.id, message]))
  const owners = ownersOf(evidence)
  const keys = keysOfRuns(evidence)
  const saidByKey = Map.groupBy(evidence.said, ({ key }) => key)
  const watchesByRun = Map.groupBy(watches, ({ runId }) => runId)
  for (const watch of watches) {
    const run = runsById.get(watch.runId)
    const stored = run === undefined ? undefined : messagesById.get(run.message_id)?.content
    if (run === undefined || stored === undefined) continue
    const last = watch.shown.at(-1)?.text ?? ''
    if (watch.done !== undefined && last !== stored) {
      say(
        'P3 byte for byte',
        `${watch.viewer} holds ${last.length} units, ${differ(last, stored)}; stored are ${stored.length}`,
      )
      figures.lostUnits += Math.max(0, stored.length - last.length)
      figures.duplicatedUnits += Math.max(0, last.length - stored.length)
    }
    const others = watchesByRun.get(watch.runId) ?? []
    const calls = saidByKey.get(keys.get(watch.runId) ?? '') ?? []
    checkShown(evidence, watch, others, calls, stored, owners.get(watch.runId) ?? [], say, figures)
  }

  for (const run of evidence.runs) {
    const key = keys.get(run.id) ?? ''
    const calls = saidByKey.get(key) ?? []
    const reply = messagesById.get(run.message_id)
    if (reply === undefined) continue
    const fits =
      run.status === 'completed'
        ? calls.some(({ whole, text }) => whole && text === reply.content)
        : reply.content === '' || calls.some(({ text }) => text.startsWith(reply.content))
    if (!fits) {
      say(
        'P3 what the provider said',
        `run ${run.id} (${key}, ${run.status}) stores ${reply.content.length} units, ${calls.map(({ text }) => differ(reply.content, text)).join('; ')}; it said ${calls.map(({ text, whole }) => `${text.length}${whole ? '' : ' and was cut'}`).join(', then ')}`,
      )
    }
  }
}

/** Whatever was shown at any time stays, unless a known window says otherwise and a reset took it back. */
function checkShown(
  evidence: Evidence,
  watch: Watch,
  watchesOfRun: readonly Watch[],
  calls: readonly SaidCall[],
  stored: string,
  owners: readonly string[],
  say: Say,
  figures: Figures,
): void {
  const bounds = [...watch.resets, watch.shown.length]
  let from = 0
  for (const [index, to] of bounds.entries()) {
    const stretch = watch.shown.slice(from, to)
    from = to
    const longest = stretch.at(-1)
    // Within a stretch text is only added: when the longest is right, so was everything before it.
    if (longest === undefined || stored.startsWith(longest.text)) continue
    const beyond = stretch.find(({ text }) => !stored.startsWith(text)) ?? longest
    const isReplaced = index < bounds.length - 1
    const why = excuse(evidence, { ...beyond, saidAtMs: findSaidAt(calls, watchesOfRun, beyond, stored) }, owners)
    const units = longest.text.length - commonUnits(longest.text, stored)
    // Who has left before the reset could come holds what it held; who has seen the end may not.
    if (why !== undefined && (isReplaced || watch.done === undefined)) {
      figures.excused.push({ why, units })
      continue
    }
    figures.lostUnits += units
    say(
      'P3 shown is kept',
      `${watch.viewer} of run ${watch.runId} was shown ${units} units at ${Math.round(beyond.atMs)} ms by ${beyond.gateway} that are not in the reply (${differ(longest.text, stored)})${isReplaced ? ', and a reset took them back' : ''}`,
    )
  }
}

/**
 * The latest that the first of the words beyond what is stored can have been said: a viewer may be shown them much later.
 * @param calls of this run: others begin with the same words
 */
function findSaidAt(calls: readonly SaidCall[], watches: readonly Watch[], beyond: Shown, stored: string): number {
  const place = commonUnits(beyond.text, stored)
  const start = beyond.text.slice(0, place + 1)
  const shown = watches.flatMap((watch) => watch.shown.find(({ text }) => text.startsWith(start))?.atMs ?? [])
  const lastWords = calls.flatMap(({ text, lastWordAtMs }) => (text.startsWith(start) ? (lastWordAtMs ?? []) : []))
  return Math.min(beyond.atMs, ...shown, ...lastWords)
}

/** Why words may be gone that were said at one time, and shown by `gateway` at another, or undefined. */
function excuse(
  { faults }: Evidence,
  { atMs, gateway, saidAtMs }: Pick<Shown, 'atMs' | 'gateway'> & { readonly saidAtMs: number },
  owners: readonly string[],
): 'zombie' | 'double fault' | undefined {
  const concerns = (fault: Fault, url: string) => fault.gateway === undefined || fault.gateway === url
  const losesLease = (fault: Fault) => fault.kind === 'database away' && fault.toMs - fault.fromMs >= leaseMinMs
  const isZombie = faults.some(
    (fault) =>
      (fault.kind === 'freeze' &&
        fault.gateway === gateway &&
        owners.includes(gateway) &&
        fault.toMs <= atMs &&
        atMs <= fault.toMs + noticeMs) ||
      (losesLease(fault) &&
        owners.includes(gateway) &&
        concerns(fault, gateway) &&
        fault.fromMs + leaseMinMs <= atMs &&
        atMs <= fault.toMs + noticeMs),
  )
  if (isZombie) return 'zombie'
  const isDouble = owners.some((owner) =>
    faults.some((end) => {
      const isEnd = end.kind === 'kill' || end.kind === 'freeze' || losesLease(end)
      if (!isEnd || !concerns(end, owner)) return false
      const databaseGone = faults.filter(
        (fault) =>
          fault.kind === 'database away' &&
          concerns(fault, owner) &&
          fault.fromMs <= end.fromMs &&
          end.fromMs <= fault.toMs + checkpointAgeMs,
      )
      // While no database answers, nobody takes anything over.
      const waitMs = faults
        .filter(({ kind, gateway: of, fromMs }) => kind === 'database away' && of === undefined && fromMs >= end.fromMs)
        .filter(({ fromMs }) => fromMs <= end.fromMs + takeoverMsMax)
        .reduce((sum, { fromMs, toMs }) => sum + toMs - fromMs + noticeMs, 0)
      // Away from the one that ended, or forgotten by all, or away from the one that took over.
      const redisGone = faults.some(({ kind, gateway: of, fromMs, toMs }) => {
        if (kind !== 'redis away' || (of !== undefined && !owners.includes(of))) return false
        const isOwners = of === owner
        const isBefore = fromMs - sameSecondMs <= end.fromMs + (isOwners ? 0 : takeoverMsMax + waitMs)
        return isBefore && end.fromMs <= toMs + (of === undefined || isOwners ? sameSecondMs : 0)
      })
      const newest = Math.min(end.fromMs, ...databaseGone.map(({ fromMs }) => fromMs))
      return (
        redisGone && newest - checkpointAgeMs <= saidAtMs && saidAtMs <= Math.max(end.fromMs + sameSecondMs, end.toMs)
      )
    }),
  )
  return isDouble ? 'double fault' : undefined
}

/** P5: one call for a message; another only when the first process was gone before anything was shown. */
function checkCalls(evidence: Evidence, watches: readonly Watch[], say: Say): void {
  const watchesByRun = Map.groupBy(watches, ({ runId }) => runId)
  const keys = keysOfRuns(evidence)
  const runsByKey = Map.groupBy(evidence.runs, ({ id }) => keys.get(id))
  const owners = ownersOf(evidence)
  for (const [key, calls] of Map.groupBy(evidence.said, (call) => call.key)) {
    const [first, second] = calls
    if (calls.length > callsMax) say('P5 one call', `${key} was asked ${calls.length} times`)
    if (first === undefined || second === undefined) continue
    const runs = runsByKey.get(key) ?? []
    const shownAt = runs
      .flatMap(({ id }) => watchesByRun.get(id) ?? [])
      .flatMap(({ deltas }) => deltas)
      .filter(({ atMs }) => atMs < second.atMs)
      .toSorted((a, b) => a.atMs - b.atMs)[0]
    const known = runs.flatMap(({ id }) => owners.get(id) ?? [])
    // What was shown and then forgotten by all that could have told of it counts as never shown.
    if (shownAt !== undefined && excuse(evidence, { ...shownAt, saidAtMs: shownAt.atMs }, known) !== 'double fault') {
      say(
        'P5 one call',
        `${key} was asked again ${Math.round(second.atMs - shownAt.atMs)} ms after its first words were shown`,
      )
    }
    const reason = evidence.faults.find(
      ({ kind, gateway, fromMs, toMs }) =>
        kind !== 'redis away' &&
        kind !== 'disturbance' &&
        (gateway === undefined || known.length === 0 || known.includes(gateway)) &&
        fromMs <= second.atMs &&
        toMs >= first.atMs - noticeMs,
    )
    if (reason === undefined) say('P5 one call', `${key} was asked twice, and its process had come to no harm`)
  }
}

/** The gateways that have made a run: the one that accepted it first, then the last one. */
function ownersOf(evidence: Evidence): Map<string, string[]> {
  const { history, runs, faults } = evidence
  const owners = new Map<string, string[]>()
  for (const line of history) {
    // Who repeats a POST is attached: the first to be accepted stands for the one that made it.
    if (line.what === 'open' && line.method === 'POST' && !owners.has(line.runId))
      owners.set(line.runId, [line.gateway])
  }
  const waited = findWaited(evidence)
  const all = [...new Set(faults.flatMap(({ gateway }) => (gateway === undefined ? [] : [gateway])))]
  for (const { id, gateway } of runs) {
    // Whoever had time started it: its first process is not known from outside.
    const more = waited.has(id) ? all : gateway === undefined ? [] : [gateway]
    owners.set(id, [...new Set([...(owners.get(id) ?? []), ...more])])
  }
  return owners
}

/** The key of each run's message, with which the provider was asked. */
function keysOfRuns({ runs, messages }: Evidence): Map<string, string> {
  const contents = new Map(messages.map(({ id, content }) => [id, content]))
  return new Map(runs.map((run) => [run.id, run.idempotency_key ?? keyOf(contents.get(run.user_message_id) ?? '')]))
}

/** Runs that may have waited in their session's queue. */
function findWaited({ history, runs }: Evidence): Set<string> {
  const keys = new Set(history.flatMap((line) => (line.what === 'wants' && line.queues ? [line.key] : [])))
  return new Set(runs.flatMap(({ id, idempotency_key: key }) => (keys.has(key ?? undefined) ? [id] : [])))
}

function measureStalls(evidence: Evidence, watches: readonly Watch[], figures: Figures): void {
  const owners = ownersOf(evidence)
  const waited = findWaited(evidence)
  const keys = keysOfRuns(evidence)
  const saidByKey = Map.groupBy(evidence.said, ({ key }) => key)
  // Silence while a process is dead, frozen or taken over is measured as takeover.
  const deaths = evidence.faults.filter(({ kind }) => kind === 'kill' || kind === 'freeze' || kind === 'terminate')
  const slow = new Set(evidence.history.flatMap((line) => (line.what === 'wants' && line.slow ? [line.viewer] : [])))
  for (const watch of watches) {
    if (slow.has(watch.viewer)) continue
    const calls = saidByKey.get(keys.get(watch.runId) ?? '') ?? []
    // Of a message that waited it is not known which process made the reply.
    const home = waited.has(watch.runId) ? undefined : owners.get(watch.runId)?.[0]
    for (const { gateway, fromMs, toMs, wordsAtMs } of watch.visits) {
      const places = [fromMs, ...wordsAtMs, Math.min(toMs, watch.done?.atMs ?? toMs)]
      for (const [index, toPlace] of places.entries()) {
        const fromPlace = places[index - 1]
        if (fromPlace === undefined) continue
        if (deaths.some((death) => death.fromMs < toPlace && fromPlace < Math.max(death.toMs, death.fromMs + 15_000)))
          continue
        for (const spoken of calls.flatMap(stretchesOf)) {
          const stallMs = Math.min(toPlace, spoken.toMs) - Math.max(fromPlace, spoken.fromMs)
          if (gateway === home && stallMs > figures.worstStallMs) {
            figures.worstStallMs = stallMs
            const kinds = evidence.faults
              .filter((fault) => fault.fromMs - sameSecondMs < toPlace && fromPlace < fault.toMs + sameSecondMs)
              .map(({ kind, gateway: of }) => (of === undefined || of === home ? kind : `${kind} from another`))
            figures.worstStallDuring = `${kinds.join(' and ') || 'nothing'}, ${watch.viewer}`
          }
          if (gateway !== home) figures.worstStallElsewhereMs = Math.max(figures.worstStallElsewhereMs, stallMs)
        }
      }
    }
  }
}

/** The times in which a call was speaking. */
function stretchesOf({ firstWordAtMs, lastWordAtMs, held }: SaidCall): { fromMs: number; toMs: number }[] {
  if (firstWordAtMs === undefined || lastWordAtMs === undefined) return []
  if (held === undefined) return [{ fromMs: firstWordAtMs, toMs: lastWordAtMs }]
  return [
    { fromMs: firstWordAtMs, toMs: held.fromMs },
    { fromMs: held.toMs, toMs: lastWordAtMs },
  ]
}

function measureTakeovers(evidence: Evidence, watches: readonly Watch[], figures: Figures): void {
  const owners = ownersOf(evidence)
  const waited = findWaited(evidence)
  const watchesByRun = Map.groupBy(watches, ({ runId }) => runId)
  for (const run of evidence.runs) {
    if (run.generation < 2 || waited.has(run.id)) continue
    const seen = watchesByRun.get(run.id) ?? []
    const accepted = Math.min(...seen.flatMap(({ visits }) => visits.map(({ fromMs }) => fromMs)))
    const owner = owners.get(run.id)?.[0]
    // Who comes when it has long happened, or sits with the process that stands still, cannot tell when it was.
    const heardAt = Math.min(
      ...seen
        .flatMap(({ firstOfGeneration }) => firstOfGeneration)
        .filter(({ generation, gateway, waitedMs }) => generation === 2 && gateway !== owner && waitedMs >= waitingMs)
        .map(({ atMs }) => atMs),
    )
    const death = evidence.faults.findLast(
      ({ kind, gateway, fromMs }) =>
        (kind === 'kill' || kind === 'terminate' || kind === 'freeze') &&
        gateway === owner &&
        accepted <= fromMs &&
        fromMs <= heardAt,
    )
    if (death === undefined || !Number.isFinite(heardAt)) continue
    // A planned shutdown lets go at the end of its drain time.
    const tookMs = heardAt - (death.kind === 'terminate' ? death.toMs : death.fromMs)
    const others = evidence.faults.some(
      (fault) =>
        (fault.kind === 'redis away' ||
          fault.kind === 'database away' ||
          (fault.kind === 'freeze' && fault !== death)) &&
        fault.fromMs <= heardAt &&
        death.fromMs <= fault.toMs + noticeMs,
    )
    if (others) figures.takeoverDuringFaultMs.push(tookMs)
    else if (death.kind === 'terminate') figures.handOverMs.push(tookMs)
    else figures.takeoverMs.push(tookMs)
  }
}

function isTerminal(status: string): boolean {
  return status !== 'queued' && status !== 'running'
}

function compare(a: EventId, b: EventId): number {
  return a.generation === b.generation ? a.seq - b.seq : a.generation - b.generation
}

function commonUnits(a: string, b: string): number {
  let units = 0
  while (units < a.length && a[units] === b[units]) units += 1
  return units
}

/** Where two texts part. */
function differ(a: string, b: string): string {
  const at = commonUnits(a, b)
  if (at === a.length && at === b.length) return 'the same'
  return `different from unit ${at}: ${quote(a.slice(at, at + 20))}, not ${quote(b.slice(at, at + 20))}`
}

/** JSON in ASCII: U+2028 in its output makes tap's parser lose what follows. */
export function quote(value: unknown): string {
  return JSON.stringify(value).replace(/[^ -~]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`)
}
