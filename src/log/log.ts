/**
 * The port to the event log: one replayable sequence of numbered events per run.
 *
 * The log is the only tee between a run and its viewers. The run appends; a viewer is a cursor that reads what comes
 * after it and, when there is nothing, waits to be woken. Replay and live are the same loop, so there is no hand-over
 * between them in which an event could be lost or doubled, and no queue per viewer that could overflow.
 *
 * Every adapter keeps this contract (test/contracts/log.ts runs on all of them):
 * - `append` hands events over before any viewer can see them, never throws and never waits.
 * - Ids only rise. An event whose id is not greater than the last one is already there, or comes from a process whose
 *   run was taken over; it is ignored either way.
 * - `read` returns entries in order and without a hole, or says that it cannot serve the cursor. It never papers over.
 *   Only a `reset` may stand behind a hole or at the beginning of a generation, because it replaces all that came before.
 * - A run whose log has been let go, or cannot be reached, is `unknown`; its viewers are then served from the database.
 */
import type { EventId, LogEntry } from './event.ts'

/** New events of one run. */
export interface RunEntries {
  readonly runId: string
  readonly entries: readonly LogEntry[]
}

export type LogPage =
  /**
   * In order, directly after the cursor; none when the cursor is at the end of what there is. `local` when this process
   * writes the run, so that there is nothing it could have missed.
   */
  | { readonly kind: 'entries'; readonly entries: readonly LogEntry[]; readonly local: boolean }
  /**
   * The cursor is from the future, or of events that this log does not hold, or the log's beginning is asked for and
   * gone: the viewer needs a `reset`.
   */
  | { readonly kind: 'unservable'; readonly local: boolean }
  /** This log holds nothing of the run, or its store does not answer. */
  | { readonly kind: 'unknown' }

export interface EventLog {
  /** Appends the new events of many runs at once. A run's first append makes its log; its terminal event closes it. */
  append(frame: readonly RunEntries[]): void
  /**
   * @param after the cursor; undefined reads from the beginning, which is the last `reset` if there is one. What came before
   * it is read behind `beforeAll` (event.ts)
   */
  read(runId: string, after: EventId | undefined, entriesMax: number): Promise<LogPage>
  /** What `read` would answer, when that is known here and now; undefined when somebody has to be asked or waited for. */
  peek(runId: string, after: EventId | undefined, entriesMax: number): LogPage | undefined
  /**
   * Calls `wake` whenever a run's log grows or is let go, until the returned function is called. `wake` must not throw.
   * A viewer must start to watch before it reads, or it can miss the event that comes in between.
   */
  watch(runId: string, wake: () => void): () => void
  /** The id of the run's terminal event, when this process has seen it. */
  terminalId(runId: string): EventId | undefined
  /**
   * All that is in the log of a run at this very moment, also what another process has written last: for a takeover.
   * @returns none when nothing is there; `unanswered` when the store does not answer, so that nobody can tell
   */
  load(runId: string): Promise<readonly LogEntry[] | 'unanswered'>
  /** Lets what this process holds of a run go at once: it is no longer the one that may write it. */
  forget(runId: string): void
  /**
   * Removes all that is held of these runs for good, here and in the store, when they are not written any more: the words
   * of a run that goes on begin a log anew. What a store that is away still holds goes by its expiry, and what other
   * processes have copied goes as that of any run that nobody watches. Never throws.
   */
  erase(runIds: readonly string[]): Promise<void>
  /** Who can read what is appended, when all is well. */
  readonly scope: 'process' | 'deployment'
  /** True while what is appended reaches other processes, and outlives this one. */
  readonly shared: boolean
  /** What works less well than configured, in words for an operator. */
  readonly degraded: string | undefined
  /** Calls `listener` when `shared` is lost: what was appended last may have reached nobody else. */
  onUnshared(listener: () => void): void
  /** Calls `listener` when a write is refused because another process has taken the run over. */
  onFenced(listener: (runId: string) => void): void
  close(): Promise<void>
}
