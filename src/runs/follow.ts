/**
 * Following a run: one cursor, whatever the events come from, on whatever process. A viewer asks, in this order:
 * the log (this process's memory for its own runs, else the copy that the shared reader keeps), and when the log cannot
 * tell (it was never shared, is lost, has a hole, or its store is away), the database: checkpoints while the run is
 * active, the stored message for ever after. It goes back to the log as soon as that can tell again. The viewer cannot see
 * the difference, except that the database is coarser.
 *
 * A log of another process can also go silent without saying why: its writer cannot reach the store, or the notice of
 * the end was lost. So a viewer of another process's run that has heard nothing for `quietMs` asks the database too.
 *
 * Most of a viewer's life is at the end of a log, waiting for the next frame. There, it is given what the log has gained
 * within the append itself, without a promise or a turn of its loop (`take`), for as long as nothing else is due: the end of
 * the run, a look at the database, a consumer that is full. Then the loop goes on from where that has led.
 *
 * The rule for what comes from the database: an event is given the id of the real one that it reaches. One delta of
 * one part, or else one `reset`, brings a viewer from where it is to where the database is, so that a connection cut
 * anywhere in between leaves a cursor that means what it says. A cursor that cannot be served is answered with `reset`,
 * never with silence.
 *
 * When neither answers, a follower waits and asks again; its connection's own limits end it.
 */
import { isDeepStrictEqual } from 'node:util'
import { compareEventIds, type EventId, type LogEntry, type Part } from '../log/event.ts'
import { foldEvents, resetEntry } from '../log/fold.ts'
import type { EventLog, LogPage } from '../log/log.ts'
import { isTerminal, type RunFacts } from './model.ts'
import { runStarted } from './run.ts'
import type { StoredReader, StoredRun } from './stored.ts'
import type { Ticks } from './ticks.ts'

export interface FollowDeps {
  readonly log: EventLog
  readonly stored: StoredReader
  /** True when the run's reply is whole and has waited too long for the database: its viewers are to come back later. */
  readonly isPersistPending: (runId: string) => boolean
  /** When a viewer looks whether anything is due; several times within `pollMs`. */
  readonly ticks: Ticks
  /** How often the database is asked what is new, where there is no log. */
  readonly pollMs?: number
  /** Silence of another process's log after which the database is asked. */
  readonly quietMs?: number
  /** How long a cursor ahead of all that is known may turn out to be right. */
  readonly aheadMs?: number
}

/** What a viewer gets in one go. */
export interface Batch {
  readonly entries: readonly LogEntry[]
  /** There is nothing more for now. */
  readonly caughtUp: boolean
  /** The reply is made, and cannot be stored for now: nothing more will come soon. */
  readonly persistPending?: boolean
}

/** Events of one read from the log; a viewer far behind gets pages, and backpressure between them. */
const pageEntriesMax = 500
// What is joined for a viewer is encoded for it alone, and held until its connection takes it.
const pageUnitsMax = 32 * 1024
/** Events that are passed on within one append; more are a page of their own. */
const passedEntriesMax = 20
const pollDefaultMs = 1000
const quietDefaultMs = 1000
// Checkpoints are about a second behind what viewers have seen.
const aheadDefaultMs = 3000
/** Of `FollowDeps.ticks`: a viewer notices that a poll is due within a part of its interval. */
export const tickMs = pollDefaultMs / 4

/** The place of the terminal event, when the run has one. */
export function terminalIdOf({ log }: Pick<FollowDeps, 'log'>, run: RunFacts): EventId | undefined {
  if (isTerminal(run.status)) return { generation: run.generation, seq: run.last_seq }
  return log.terminalId(run.id)
}

/** Where a viewer stands. */
interface Viewer {
  /** The last event it has; undefined before the first. */
  readonly cursor: EventId | undefined
  /** What it holds, when that is known: only from the database, or at the very beginning. */
  readonly held: readonly Part[] | undefined
}

interface BegunViewer extends Viewer {
  readonly cursor: EventId
}

/**
 * Yields the run's events after the cursor, until its terminal event or until the signal is aborted.
 * @param after undefined follows from the beginning
 * @param take is given events too, while the iteration waits for the next; returns how many of them it has taken. The others
 * are yielded
 */
export async function* followRun(
  deps: FollowDeps,
  run: RunFacts,
  after: EventId | undefined,
  signal: AbortSignal,
  take?: (entries: readonly LogEntry[]) => number,
): AsyncGenerator<Batch, void, void> {
  const { log, pollMs = pollDefaultMs, quietMs = quietDefaultMs, aheadMs = aheadDefaultMs } = deps
  let viewer: Viewer = { cursor: after, held: after === undefined ? [] : undefined }
  let askAt = Number.NEGATIVE_INFINITY
  let newsAt = performance.now()
  // At the end of a log, with nothing else to do: written here, or copied from another process.
  let waitsFor: 'own' | 'copy' | undefined
  let fault: { readonly error: unknown } | undefined
  const bell = createBell()

  /** Gives the consumer what the log has gained. @returns false when the loop has to look */
  function passOn(): boolean {
    const peeked = waitsFor === undefined ? undefined : log.peek(run.id, viewer.cursor, passedEntriesMax)
    if (take === undefined || peeked?.kind !== 'entries' || peeked.entries.length === passedEntriesMax) return false
    const { page, isLast } = shorten(peeked)
    if (page.kind !== 'entries' || !isLast || page.entries.at(-1)?.event.type === 'done') return false
    const entries = mergeDeltas(page.entries)
    try {
      const taken = entries.length === 0 ? 0 : take(entries)
      const last = entries[taken - 1]
      if (last !== undefined) {
        viewer = { cursor: last, held: undefined }
        newsAt = performance.now()
      }
      return taken === entries.length
    } catch (error) {
      // Of the consumer, which is told by its iteration: whoever appends to the log has nothing to do with it.
      fault = { error }
      return false
    }
  }

  const wake = () => {
    if (passOn()) return
    waitsFor = undefined
    bell.ring()
  }
  const tick = () => {
    const isWaiting = waitsFor === 'own' ? !deps.isPersistPending(run.id) : performance.now() - newsAt < quietMs
    if (waitsFor === undefined || !isWaiting) bell.ring()
  }
  const unwatch = log.watch(run.id, wake)
  const untick = deps.ticks.add(tick)
  signal.addEventListener('abort', bell.ring)
  try {
    while (!signal.aborted) {
      // Taken before looking, so that an event between the look and the wait is not missed.
      const rung = bell.next()
      const { page, isLast } = shorten(await log.read(run.id, viewer.cursor, pageEntriesMax))
      const told = await tellFromLog(log, run, viewer, page)
      if (told !== undefined && told.length > 0) {
        const last = told.at(-1) as LogEntry
        viewer = { cursor: last, held: undefined }
        newsAt = performance.now()
        yield { entries: told, caughtUp: isLast }
        if (last.event.type === 'done') return
        continue
      }
      const isLocal = page.kind !== 'unknown' && page.local
      if (told !== undefined && isAtEnd(log, run, viewer.cursor)) return
      if (told !== undefined) {
        const persistPending = isLocal && deps.isPersistPending(run.id)
        yield { entries: [], caughtUp: true, persistPending }
      }
      let begun = asBegun(viewer)
      if (begun === undefined) {
        const started = firstEntry(run)
        begun = { cursor: started, held: [] }
        viewer = begun
        yield { entries: [started], caughtUp: false }
      }
      const now = performance.now()
      const isQuiet = told === undefined || (!isLocal && now - newsAt >= quietMs)
      if (isQuiet && now >= askAt) {
        askAt = now + pollMs
        const state = await deps.stored.read(run.id)
        if (state === 'gone') return
        if (state !== 'unanswered') {
          const isPatient = told !== undefined || now - newsAt < aheadMs
          const step = tellFromDatabase(run, state, begun, isPatient)
          viewer = step.viewer
          if (step.entries.length > 0) newsAt = now
          yield { entries: step.entries, caughtUp: true }
          if (state.done !== undefined) return
        }
      }
      if (!isQuiet && !isTerminal(run.status)) waitsFor = isLocal ? 'own' : 'copy'
      await rung
      waitsFor = undefined
      if (fault !== undefined) throw fault.error
    }
  } finally {
    untick()
    unwatch()
    signal.removeEventListener('abort', bell.ring)
  }
}

const asBegun = ({ cursor, held }: Viewer): BegunViewer | undefined =>
  cursor === undefined ? undefined : { cursor, held }

/** What every viewer is told first, whatever the rest comes from. */
const firstEntry = (run: RunFacts): LogEntry => ({ generation: 1, seq: 1, event: runStarted(run) })

/**
 * A viewer's merged text is its own, and an event of the log is shared by all who are shown it: so a page ends before the
 * event that would make it long, and a long event goes alone.
 * @returns the page, and whether there is nothing behind it for now
 */
function shorten(page: LogPage): { readonly page: LogPage; readonly isLast: boolean } {
  if (page.kind !== 'entries') return { page, isLast: false }
  const { entries } = page
  let units = 0
  const end = entries.findIndex(({ event }) => {
    if (event.type === 'delta') units += event.data.text.length
    return units > pageUnitsMax
  })
  const length = Math.max(1, end)
  if (end < 0 || length === entries.length) return { page, isLast: entries.length < pageEntriesMax }
  return { page: { ...page, entries: entries.slice(0, length) }, isLast: false }
}

function isAtEnd(log: EventLog, run: RunFacts, cursor: EventId | undefined): boolean {
  const terminal = log.terminalId(run.id)
  return cursor !== undefined && terminal !== undefined && compareEventIds(cursor, terminal) === 0
}

/**
 * What the log has for a viewer: events, or none when there is nothing new.
 * @returns undefined when the log cannot tell
 */
async function tellFromLog(
  log: EventLog,
  run: RunFacts,
  { cursor }: Viewer,
  page: LogPage,
): Promise<readonly LogEntry[] | undefined> {
  if (page.kind === 'unknown') return undefined
  const entries = page.kind === 'entries' ? mergeDeltas(page.entries) : await readSnapshot(log, run, page.local, cursor)
  // A log whose writer lost touch with it before the run ended: what is stored is the truth.
  if (isTerminal(run.status) && log.terminalId(run.id)?.generation !== run.generation) return undefined
  const first = entries?.[0]
  if (entries === undefined || first === undefined || cursor !== undefined || first.event.type === 'run') return entries
  return [firstEntry(run), ...entries]
}

/**
 * All that the log holds of a run, as one `reset`, with the `done` behind it when it is there.
 * @returns undefined when the log does not hold the run from its beginning, or is itself behind the cursor
 */
async function readSnapshot(
  log: EventLog,
  run: RunFacts,
  local: boolean,
  cursor: EventId | undefined,
): Promise<LogEntry[] | undefined> {
  const page = await log.read(run.id, undefined, Number.MAX_SAFE_INTEGER)
  const end = page.kind === 'entries' ? page.entries.at(-1) : undefined
  if (page.kind !== 'entries' || end === undefined) return undefined
  if (!local && cursor !== undefined && end.event.type !== 'done' && compareEventIds(end, cursor) <= 0) return undefined
  const terminal = end.event.type === 'done' ? [end] : []
  const told = terminal.length === 0 ? page.entries : page.entries.slice(0, -1)
  const last = told.at(-1)
  return last === undefined ? terminal : [resetEntry(run.message_id, foldEvents(told), last), ...terminal]
}

/** Joins adjacent deltas of a part; the joined one has the id of the last. A single entry stays the object it is. */
function mergeDeltas(entries: readonly LogEntry[]): readonly LogEntry[] {
  if (entries.length < 2) return entries
  const merged: LogEntry[] = []
  for (const entry of entries) {
    const last = merged.at(-1)
    if (
      entry.event.type === 'delta' &&
      last?.event.type === 'delta' &&
      last.event.data.part === entry.event.data.part
    ) {
      const { part, offset, text } = last.event.data
      merged[merged.length - 1] = {
        ...entry,
        event: { type: 'delta', data: { part, offset, text: text + entry.event.data.text } },
      }
    } else {
      merged.push(entry)
    }
  }
  return merged
}

interface Step {
  readonly entries: readonly LogEntry[]
  readonly viewer: BegunViewer
}

/**
 * Brings a viewer to where the database is.
 * @param isPatient whether a viewer may be ahead of the database: it has seen what the next checkpoint will hold
 */
function tellFromDatabase(
  run: RunFacts,
  { run: row, text, done }: StoredRun,
  viewer: BegunViewer,
  isPatient: boolean,
): Step {
  const { cursor } = viewer
  const order = compareEventIds(cursor, text.cursor ?? { generation: 1, seq: 1 })
  const isAhead = order > 0 && done === undefined
  // A process that has claimed the run is putting its text together: what is stored now is less than that will be.
  const isTakenOver = isAhead && cursor.generation < row.generation
  const mayCatchUp = isAhead && cursor.generation === row.generation && isPatient
  const held = order === 0 ? text.parts : viewer.held
  // At the first event of all, or waiting for the first checkpoint of a new generation, there is nothing to tell yet.
  const isEarly = text.cursor === undefined && (order === 0 || held !== undefined)
  if (isTakenOver || mayCatchUp || isEarly) return { entries: [], viewer }
  const target = text.cursor ?? { generation: row.generation, seq: 1 }
  const step = stepTo(run, held, text.parts, target)
  const entries = step === undefined ? [] : [step]
  if (done !== undefined) entries.push(done)
  return { entries, viewer: { cursor: done ?? target, held: text.parts } }
}

/** The one event that brings a viewer from what it holds to what is stored; none when that is the same. */
function stepTo(
  run: RunFacts,
  held: readonly Part[] | undefined,
  stored: readonly Part[],
  cursor: EventId,
): LogEntry | undefined {
  if (held === undefined) return resetEntry(run.message_id, stored, cursor)
  if (stored.length < held.length) return resetEntry(run.message_id, stored, cursor)
  // Not compared as JSON: jsonb gives the members of an object back in an order of its own.
  const changed = stored.flatMap((part, index) => (isShownAlike(part, held[index]) ? [] : [index]))
  const index = changed[0]
  if (index === undefined) return undefined
  const part = stored[index] as Part
  const { kind, text: before } = held[index] ?? { kind: index === 0 ? 'text' : undefined, text: '' }
  if (
    changed.length > 1 ||
    (kind !== 'text' && kind !== 'reasoning') ||
    kind !== part.kind ||
    !part.text.startsWith(before)
  ) {
    return resetEntry(run.message_id, stored, cursor)
  }
  const text = part.text.slice(before.length)
  return { ...cursor, event: { type: 'delta', data: { part: index, offset: before.length, text } } }
}

/** Seals are stored, and shown to nobody while a reply is made. */
function isShownAlike({ signature: _seal, ...part }: Part, held: Part | undefined): boolean {
  if (held === undefined) return false
  const { signature: _heldSeal, ...rest } = held
  return isDeepStrictEqual(part, rest)
}

/** A wake-up that is never lost: whoever takes `next` before looking hears every ring after it. */
function createBell(): { ring(): void; next(): Promise<void> } {
  let rung = Promise.withResolvers<void>()
  return {
    ring() {
      rung.resolve()
      rung = Promise.withResolvers()
    },
    next: () => rung.promise,
  }
}
