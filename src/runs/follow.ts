/**
 * Following a run: one cursor, whatever the events come from. While the log holds the run, they come from there; when
 * it does not (the run was made by a process that is gone, or ended long ago), they come from the database: from
 * checkpoints while the run is active, from the stored message for ever after. The viewer cannot tell, except that it
 * is coarser.
 *
 * The rule for what has no log: an event is given the id of the real one that it reaches. One delta of one part, or
 * else one `reset`, brings a viewer from where it is to where the database is, so that a connection cut anywhere in
 * between leaves a cursor that means what it says. A cursor that cannot be served is answered with `reset`, never
 * with silence.
 *
 * When the database does not answer, a follower waits and asks again; its connection's own limits end it.
 */
import { isDeepStrictEqual } from 'node:util'
import type { Db } from '../db/db.ts'
import { Problem } from '../errors.ts'
import { compareEventIds, type Done, type EventId, type LogEntry, type Part } from '../log/event.ts'
import { foldEvents, resetEntry } from '../log/fold.ts'
import type { EventLog } from '../log/log.ts'
import type { SessionStore } from '../sessions/store.ts'
import { type Checkpoint, readCheckpoint } from './checkpoint.ts'
import { isTerminal, type RunFacts, type RunRecord } from './model.ts'
import { pause, runStarted } from './run.ts'
import type { RunStore } from './store.ts'

export interface FollowDeps {
  readonly db: Db
  readonly log: EventLog
  readonly runs: RunStore
  readonly sessions: SessionStore
  /** How often the database is asked what is new, where there is no log. */
  readonly pollMs?: number
}

/** What a viewer gets in one go. `caughtUp` says that there is nothing more for now. */
export interface Batch {
  readonly entries: readonly LogEntry[]
  readonly caughtUp: boolean
}

/** Events of one read from the log; a viewer far behind gets pages, and backpressure between them. */
const pageEntriesMax = 500
const pollDefaultMs = 1000

/** The place of the terminal event, when the run has one. */
export function terminalIdOf({ log }: Pick<FollowDeps, 'log'>, run: RunFacts): EventId | undefined {
  if (isTerminal(run.status)) return { generation: run.generation, seq: run.last_seq }
  return log.terminalId(run.id)
}

/**
 * Yields the run's events after the cursor, until its terminal event or until the signal is aborted.
 * @param after undefined follows from the beginning
 */
export async function* followRun(
  deps: FollowDeps,
  run: RunFacts,
  after: EventId | undefined,
  signal: AbortSignal,
): AsyncGenerator<Batch, void, void> {
  let cursor = after
  const bell = createBell()
  const unwatch = deps.log.watch(run.id, bell.ring)
  signal.addEventListener('abort', bell.ring)
  try {
    while (!signal.aborted) {
      // Taken before looking, so that an event between the look and the wait is not missed.
      const rung = bell.next()
      const page = await deps.log.read(run.id, cursor, pageEntriesMax)
      if (page.kind === 'unknown') break
      const terminal = deps.log.terminalId(run.id)
      if (cursor !== undefined && terminal !== undefined && compareEventIds(cursor, terminal) === 0) return
      const entries = page.kind === 'unservable' ? await readSnapshot(deps, run) : mergeDeltas(page.entries)
      // A log that cannot tell the whole can tell nothing: the database has to.
      if (entries === undefined) break
      const last = entries.at(-1)
      if (last !== undefined) cursor = last
      const caughtUp = page.kind === 'entries' && page.entries.length < pageEntriesMax
      if (entries.length > 0 || caughtUp) yield { entries, caughtUp }
      if (last?.event.type === 'done') return
      if (entries.length === 0) await rung
    }
  } finally {
    unwatch()
    signal.removeEventListener('abort', bell.ring)
  }
  if (!signal.aborted) yield* followStored(deps, run, cursor, signal)
}

/**
 * All that the log holds of a run, as one `reset`, with the `done` behind it when it is there.
 * @returns undefined when the log does not hold the run from its beginning
 */
async function readSnapshot(deps: FollowDeps, run: RunFacts): Promise<LogEntry[] | undefined> {
  const page = await deps.log.read(run.id, undefined, Number.MAX_SAFE_INTEGER)
  if (page.kind !== 'entries' || page.entries.length === 0) return undefined
  const terminal = page.entries.at(-1)?.event.type === 'done' ? page.entries.slice(-1) : []
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

async function* followStored(
  deps: FollowDeps,
  run: RunFacts,
  after: EventId | undefined,
  signal: AbortSignal,
): AsyncGenerator<Batch, void, void> {
  const { pollMs = pollDefaultMs } = deps
  let cursor = after
  // What the viewer holds; unknown when it comes with a cursor that the database cannot match.
  let held: Part[] | undefined = after === undefined ? [] : undefined
  if (after === undefined) {
    cursor = { generation: 1, seq: 1 }
    yield { entries: [{ ...cursor, event: runStarted(run) }], caughtUp: false }
  }
  while (!signal.aborted) {
    const state = await readState(deps, run.id)
    if (state === 'gone') return
    if (state === 'unanswered') {
      await pause(2 * pollMs, signal)
      continue
    }
    const { stored, done } = state
    if (held === undefined && cursor !== undefined && stored.cursor !== undefined) {
      const order = compareEventIds(cursor, stored.cursor)
      if (order === 0) held = stored.parts
      // Ahead of the checkpoints within their generation: they will come to where the viewer is.
      else if (order > 0 && cursor.generation === stored.cursor.generation && done === undefined) {
        await pause(pollMs, signal)
        continue
      }
    }
    const entries: LogEntry[] = []
    if (stored.cursor !== undefined) {
      const step = stepTo(run, held, stored.parts, stored.cursor)
      if (step !== undefined) entries.push(step)
      held = stored.parts
      cursor = stored.cursor
    }
    if (done !== undefined) entries.push(done)
    yield { entries, caughtUp: true }
    if (done !== undefined) return
    await pause(pollMs, signal)
  }
}

interface StoredState {
  readonly stored: Checkpoint
  readonly done: LogEntry | undefined
}

async function readState(deps: FollowDeps, runId: string): Promise<StoredState | 'gone' | 'unanswered'> {
  try {
    const run = await deps.runs.reread(runId)
    if (run === undefined) return 'gone'
    if (!isTerminal(run.status)) return { stored: await readCheckpoint(deps.db, runId), done: undefined }
    const message = await deps.sessions.readReply(run.message_id)
    if (message === undefined) return 'gone'
    return {
      stored: { parts: message.parts, cursor: { generation: run.generation, seq: run.last_seq - 1 } },
      done: {
        generation: run.generation,
        seq: run.last_seq,
        event: { type: 'done', data: storedDone(run, message) },
      },
    }
  } catch (error) {
    if (error instanceof Problem && error.code === 'db_unavailable') return 'unanswered'
    throw error
  }
}

/** The one event that brings a viewer from what it holds to what is stored; none when that is the same. */
function stepTo(run: RunFacts, held: Part[] | undefined, stored: Part[], cursor: EventId): LogEntry | undefined {
  if (held === undefined) return resetEntry(run.message_id, stored, cursor)
  if (stored.length < held.length) return resetEntry(run.message_id, stored, cursor)
  // Not compared as JSON: jsonb gives the members of an object back in an order of its own.
  const changed = stored.flatMap((part, index) => (isDeepStrictEqual(part, held[index]) ? [] : [index]))
  const index = changed[0]
  if (index === undefined) return undefined
  const part = stored[index] as Part
  const { kind, text: before } = held[index] ?? { kind: index === 0 ? 'text' : undefined, text: '' }
  if (changed.length > 1 || kind !== part.kind || kind === 'tool_call' || !part.text.startsWith(before)) {
    return resetEntry(run.message_id, stored, cursor)
  }
  const text = part.text.slice(before.length)
  return { ...cursor, event: { type: 'delta', data: { part: index, offset: before.length, text } } }
}

function storedDone(run: RunRecord, message: { ttft_ms: number | null; latency_ms: number | null }): Done {
  return {
    status: run.status as Done['status'],
    message_id: run.message_id,
    ...(run.finish_reason === null ? {} : { finish_reason: run.finish_reason }),
    ...(run.usage === null ? {} : { usage: run.usage }),
    ...(run.cost_usd === null ? {} : { cost_usd: run.cost_usd }),
    ...(message.ttft_ms === null ? {} : { ttft_ms: message.ttft_ms }),
    ...(message.latency_ms === null ? {} : { latency_ms: message.latency_ms }),
    ...(run.error === null ? {} : { error: run.error }),
  }
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
