/**
 * One generation of one reply: take what makes it (reply.ts), fold what that says into the draft, tell the frame clock, and
 * at the end commit and say `done`. It runs in the background and knows nothing of HTTP: a viewer that leaves changes
 * nothing here.
 *
 * What happens at each await when something dies there:
 * - the upstream: a cut, stall, refusal or garbage arrives as a Problem. With nothing said yet the run has `failed`; with
 *   words already shown it is `interrupted` and keeps them, except where the provider itself says that it failed.
 * - stop: the signal aborts the upstream request at once, and the partial text is committed as `stopped`.
 * - the commit: tried again, with growing pauses, until the database has it; `done` is not said before. When the process
 *   must end first, the run is left as it is, for whoever takes it over.
 * - this process: its lease runs out, and another process takes the run over (takeover.ts).
 * - the lease, while this process was frozen or cut off: the run is another process's by now. Nothing of it is written any
 *   more; the database and the log refuse it in any case, because its generation has passed.
 */
import { type Db, DbError } from '../db/db.ts'
import { Problem } from '../errors.ts'
import type { Done, EventId, LogEntry, RunEvent, TerminalStatus } from '../log/event.ts'
import { resetEntry } from '../log/fold.ts'
import type { FrameSource, Frames } from '../log/frames.ts'
import type { EventLog } from '../log/log.ts'
import type { SessionChanges } from '../sessions/changes.ts'
import type { History } from '../sessions/context.ts'
import type { AgentEvent } from '../upstream/agent.ts'
import { type Commit, commitRun, type Ending } from './commit.ts'
import { createDraft, type Draft } from './draft.ts'
import { type Ledger, spendingOf } from './ledger.ts'
import { holdsBudget, type RunFacts } from './model.ts'
import type { Fold } from './window.ts'

/**
 * Why a run is to end before its reply does: a person said so; the process ends, and it is to be stored as it is; the
 * process ends, and another one takes it over as it is; another process has taken it over.
 */
export type StopReason = 'stop' | 'drain' | 'release' | 'fenced'

/** What the model is doing: nothing that is known yet, or what it said last. */
export type Phase = 'waiting' | 'reasoning' | 'answering' | 'tool'

export interface ActiveRun extends FrameSource {
  readonly facts: RunFacts
  readonly draft: Draft
  /** What its calls have used. */
  readonly ledger: Ledger
  /** What goes upstream before this reply, where that is known already. Let go of as soon as it is on its way. */
  history: History | undefined
  /** What a summary is to cover, when not all of the conversation fitted into the window. */
  fold: Fold | undefined
  /** The last event in the log. */
  readonly cursor: EventId
  readonly signal: AbortSignal
  readonly startedAt: number
  readonly ttftMs: number | undefined
  readonly stopReason: StopReason | undefined
  /** What the model is doing, or what an agent says of itself. */
  readonly phase: string
  /** What an agent has said of itself last. */
  readonly saidPhase: string | undefined
  /** Of a reply of several steps. */
  readonly round: number | undefined
  /** When its last words were handed over, or it began: milliseconds since 1970. */
  readonly lastActivityAt: number
  /** When the reply was whole and its commit began, on the clock of `performance.now()`. */
  commitStartedAt: number | undefined
  stop(reason: StopReason): void
  /** Says how far it has come; what is absent stays as it was. */
  tell(progress: { readonly phase?: string; readonly round?: number }): void
  /** Numbers an event that does not come from the draft. */
  number(event: LogEntry['event']): LogEntry
}

export interface RunDeps {
  readonly db: Db
  readonly log: EventLog
  readonly frames: Frames
  /** Tells what the reply says, until it resolves or rejects. */
  readonly makeReply: (run: ActiveRun, tell: (event: AgentEvent) => void) => Promise<void>
  readonly createLedger: () => Ledger
  /** Told when a viewer may have seen the first words. */
  readonly onFirstWords: () => void
  /** Told of what went wrong inside the gateway: a try to commit that failed, or an error that nobody expected. */
  readonly onFault: (runId: string, message: string, error: unknown) => void
  /** Aborted when the process cannot wait for the database any longer. */
  readonly closing: AbortSignal
  readonly changes?: SessionChanges
}

const phases = {
  text: 'answering',
  reasoning: 'reasoning',
  tool_call: 'tool',
  source: 'answering',
  file: 'answering',
} as const

const retryPauseFirstMs = 100
const retryPauseMaxMs = 2000
// A statement that the database refuses for its content will not get better; the reaper ends the run from checkpoints.
const commitRefusalsMax = 3

export function createActiveRun(facts: RunFacts, ledger: Ledger, history?: History): ActiveRun {
  const abort = new AbortController()
  const draft = createDraft()
  const startedAt = performance.now()
  let seq = 0
  let ttftMs: number | undefined
  let stopReason: StopReason | undefined
  let lastActivityAt = Date.now()
  let phase: string | undefined
  let round: number | undefined

  function number(event: LogEntry['event']): LogEntry {
    seq += 1
    return { generation: facts.generation, seq, event }
  }

  return {
    runId: facts.id,
    facts,
    draft,
    ledger,
    history,
    fold: undefined,
    startedAt,
    signal: abort.signal,
    number,
    commitStartedAt: undefined,
    get urgent() {
      return ttftMs === undefined
    },
    get cursor() {
      return { generation: facts.generation, seq }
    },
    get ttftMs() {
      return ttftMs
    },
    get stopReason() {
      return stopReason
    },
    // From what is there anyway: an event costs nothing for it.
    get phase() {
      const last = draft.parts.at(-1)
      return phase ?? (last === undefined ? 'waiting' : phases[last.kind])
    },
    get saidPhase() {
      return phase
    },
    get round() {
      return round
    },
    get lastActivityAt() {
      return lastActivityAt
    },
    stop(reason) {
      stopReason ??= reason
      abort.abort(reason)
    },
    tell(progress) {
      phase = progress.phase ?? phase
      round = progress.round ?? round
      const { costUsd } = ledger.totals()
      draft.say({
        type: 'progress',
        data: {
          ...(phase === undefined ? {} : { phase }),
          ...(round === undefined ? {} : { round }),
          ...(costUsd === undefined ? {} : { cost_usd: costUsd }),
        },
      })
    },
    takeEntries() {
      const entries = draft.takeEvents().map(number)
      if (entries.length > 0) {
        if (!draft.isEmpty) ttftMs ??= Math.round(performance.now() - startedAt)
        lastActivityAt = Date.now()
      }
      return entries
    },
  }
}

/**
 * Says the first event of a generation: `run`, or the `reset` with which a process begins that has taken the run over.
 * Synchronous, so that the first viewer finds it.
 */
export function announceRun(run: ActiveRun, log: EventLog): void {
  const { generation, message_id } = run.facts
  const first = generation === 1 ? runStarted(run.facts) : resetEntry(message_id, [], { generation, seq: 1 }).event
  log.append([{ runId: run.runId, entries: [run.number(first)] }])
}

/** How a run ended, and whether a message behind it may wait for its turn. */
export interface Ended {
  readonly ending: Ending
  readonly nextMayWait: boolean
}

/**
 * Makes the reply, and ends it.
 * @returns undefined when this process had to let go of it
 */
export async function generate(run: ActiveRun, deps: RunDeps): Promise<Ended | undefined> {
  const end = await readReply(run, deps)
  if (run.stopReason === 'fenced') {
    deps.log.forget(run.runId)
    return undefined
  }
  if (run.stopReason === 'release') {
    deps.frames.flush(run)
    return undefined
  }
  // Whatever was still open is closed, also when nobody will answer it.
  run.draft.endStep()
  deps.frames.flush(run)
  run.commitStartedAt = performance.now()
  const ending = toEnding(run, end)
  const commit = await commitReply(run, ending, deps)
  if (commit?.outcome === 'committed') {
    deps.changes?.changed(run.facts.session_id)
    deps.log.append([{ runId: run.runId, entries: [run.number({ type: 'done', data: toDone(run.facts, ending) })] }])
    return { ending, nextMayWait: commit.nextMayWait }
  }
  deps.log.forget(run.runId)
  return undefined
}

interface ReplyEnd {
  readonly status: TerminalStatus
  readonly problem: Problem | undefined
}

async function readReply(run: ActiveRun, deps: RunDeps): Promise<ReplyEnd> {
  const { draft } = run
  // The hot path: it is called for every token of every reply.
  const tell = (event: AgentEvent): void => {
    const isFirst = draft.isEmpty
    if (event.type === 'progress') run.tell(event)
    else draft.apply(event)
    deps.frames.touch(run)
    if (isFirst && !draft.isEmpty) deps.onFirstWords()
  }
  try {
    await deps.makeReply(run, tell)
    return { status: 'completed', problem: undefined }
  } catch (error) {
    if (!(error instanceof Problem) && run.stopReason === undefined) {
      deps.onFault(run.runId, 'making a reply failed in a way nobody expected', error)
    }
    return endOf(error, run)
  }
}

function endOf(error: unknown, { stopReason, draft }: ActiveRun): ReplyEnd {
  if (stopReason === 'stop') return { status: 'stopped', problem: undefined }
  if (stopReason !== undefined) return { status: 'interrupted', problem: new Problem('interrupted') }
  const problem = error instanceof Problem ? error : new Problem('internal', undefined, { cause: error })
  // What the provider or the gateway itself calls a failure is one; what merely broke off after words is interrupted.
  const brokeOff = problem.code !== 'upstream_rejected' && problem.code !== 'internal'
  return { status: brokeOff && !draft.isEmpty ? 'interrupted' : 'failed', problem }
}

function toEnding(run: ActiveRun, { status, problem }: ReplyEnd): Ending {
  const { draft } = run
  return {
    status,
    parts: draft.parts,
    content: draft.content,
    ...spendingOf(run.ledger),
    phase: run.saidPhase,
    round: run.round,
    // Of a reply that broke off, too: its words are those of the model that was asked last.
    answeredBy: draft.isEmpty ? undefined : run.ledger.calls.at(-1),
    finishReason: draft.finishReason,
    model: draft.model,
    error: problem?.toRunError(),
    ttftMs: run.ttftMs,
    latencyMs: Math.round(performance.now() - run.startedAt),
    lastSeq: run.cursor.seq + 1,
  }
}

/** @returns undefined when the database did not take it before this process had to let go */
async function commitReply(run: ActiveRun, ending: Ending, deps: RunDeps): Promise<Commit | undefined> {
  let refusals = 0
  for (let pauseMs = retryPauseFirstMs; ; pauseMs = Math.min(pauseMs * 2, retryPauseMaxMs)) {
    try {
      return await commitRun(deps.db, run.runId, run.facts.generation, ending, 'running', holdsBudget(run.facts))
    } catch (error) {
      deps.onFault(run.runId, 'a reply could not be committed yet', error)
      if (error instanceof DbError) refusals += 1
      if (refusals >= commitRefusalsMax || deps.closing.aborted || run.stopReason === 'fenced') return undefined
      await pause(pauseMs, deps.closing)
    }
  }
}

export function toDone(facts: Pick<RunFacts, 'message_id'>, ending: Ending): Done {
  return {
    status: ending.status,
    message_id: facts.message_id,
    ...(ending.finishReason === undefined ? {} : { finish_reason: ending.finishReason }),
    ...(ending.usage === undefined ? {} : { usage: ending.usage }),
    ...(ending.costUsd === undefined ? {} : { cost_usd: ending.costUsd }),
    ...(ending.ttftMs === undefined ? {} : { ttft_ms: ending.ttftMs }),
    ...(ending.latencyMs === undefined ? {} : { latency_ms: ending.latencyMs }),
    ...(ending.error === undefined ? {} : { error: { ...ending.error } }),
  }
}

export function runStarted(run: RunFacts): RunEvent {
  const { id, session_id, user_message_id, message_id, model, mode, created_at } = run
  return { type: 'run', data: { run_id: id, session_id, user_message_id, message_id, model, mode, created_at } }
}

/** Resolves when `work` has settled, or after `ms`. @returns whether it has settled */
export async function settledWithin(work: Promise<unknown>, ms: number): Promise<boolean> {
  const enough = new AbortController()
  const settled = work.then(
    () => true,
    () => true, // how it settled is its owner's affair
  )
  const inTime = await Promise.race([settled, pause(ms, enough.signal).then(() => false)])
  enough.abort()
  return inTime
}

/** Resolves after `ms`, or at once when the signal is aborted. */
export function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve()
    const finish = () => {
      clearTimeout(timer)
      signal.removeEventListener('abort', finish)
      resolve()
    }
    const timer = setTimeout(finish, ms)
    signal.addEventListener('abort', finish)
  })
}
