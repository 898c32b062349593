/**
 * The event log inside this process: an array per run. It is the whole log when the gateway runs alone, and dies with
 * the process; what was said up to the last checkpoint is then in the database.
 *
 * A run that has ended stays for `endedMs`, so that viewers that are a little behind, or come back after a short cut,
 * get the very same events; after that, or when the ended runs hold more than `endedUnitsMax` UTF-16 units of text
 * together, it is let go, oldest first, and replay comes from the stored message.
 */
import { compareEventIds, type EventId, type LogEntry } from './event.ts'
import type { EventLog } from './log.ts'

interface RunLog {
  /** Dense: what a hole would separate from the rest is let go. */
  entries: LogEntry[]
  units: number
  terminal: LogEntry | undefined
  endedAt: number
}

export interface MemoryLogOptions {
  readonly endedMs?: number
  readonly endedUnitsMax?: number
  /** Milliseconds that only rise; injected by tests. */
  readonly now?: () => number
}

const sweepMs = 5000

export interface MemoryLog extends EventLog {
  /** Lets go what has been ended for long enough, or is too much. Called by a timer. */
  sweep(): void
  /** Runs held. */
  readonly size: number
  /** Runs that somebody watches. */
  readonly watched: number
}

export function createMemoryLog(options: MemoryLogOptions = {}): MemoryLog {
  const { endedMs = 60_000, endedUnitsMax = 64 * 1024 * 1024, now = () => performance.now() } = options
  const runs = new Map<string, RunLog>()
  // In the order in which runs ended, so that letting go starts with the oldest.
  const ended = new Map<string, RunLog>()
  // Apart from the runs, because a viewer may watch before the first append and after the log was let go.
  const watchers = new Map<string, Set<() => void>>()
  let endedUnits = 0

  function wakeAll(runId: string): void {
    for (const wake of watchers.get(runId) ?? []) wake()
  }

  function letGo(runId: string): void {
    const run = runs.get(runId)
    if (run === undefined) return
    runs.delete(runId)
    if (ended.delete(runId)) endedUnits -= run.units
    wakeAll(runId)
  }

  function sweep(): void {
    for (const [runId, run] of ended) {
      if (endedUnits <= endedUnitsMax && now() - run.endedAt < endedMs) break
      letGo(runId)
    }
  }

  const timer = setInterval(sweep, sweepMs)
  timer.unref()

  function appendOne(runId: string, entries: readonly LogEntry[]): void {
    if (entries.length === 0) return
    let run = runs.get(runId)
    if (run === undefined) {
      run = { entries: [], units: 0, terminal: undefined, endedAt: 0 }
      runs.set(runId, run)
    }
    for (const entry of entries) {
      const last = run.entries.at(-1)
      // Nothing comes after a terminal event, and an id that does not rise is one that is here, or a zombie's.
      if (run.terminal !== undefined || (last !== undefined && compareEventIds(entry, last) <= 0)) continue
      if (last !== undefined && !follows(last, entry)) run.entries = []
      run.entries.push(entry)
      run.units += unitsOf(entry)
      if (entry.event.type === 'done') {
        run.terminal = entry
        run.endedAt = now()
        ended.set(runId, run)
        endedUnits += run.units
      }
    }
    wakeAll(runId)
  }

  return {
    get size() {
      return runs.size
    },
    get watched() {
      return watchers.size
    },
    sweep,
    append(frame) {
      for (const { runId, entries } of frame) appendOne(runId, entries)
    },
    async read(runId, after, entriesMax) {
      const run = runs.get(runId)
      if (run === undefined) return { kind: 'unknown' }
      const start = indexAfter(run.entries, after)
      if (start === undefined) return { kind: 'unservable' }
      return { kind: 'entries', entries: run.entries.slice(start, start + entriesMax) }
    },
    watch(runId, wake) {
      // A function of its own for each call, so that the same one may watch twice.
      const own = () => wake()
      const all = watchers.get(runId) ?? new Set()
      watchers.set(runId, all.add(own))
      return () => {
        if (all.delete(own) && all.size === 0 && watchers.get(runId) === all) watchers.delete(runId)
      }
    },
    terminalId(runId) {
      return runs.get(runId)?.terminal
    },
    forget: letGo,
    async close() {
      clearInterval(timer)
      for (const runId of [...runs.keys()]) letGo(runId)
    },
  }
}

/** True when nothing can be missing between the two: the next seq, or the first of a later generation. */
function follows(last: EventId, next: EventId): boolean {
  return next.generation === last.generation ? next.seq === last.seq + 1 : next.seq === 1
}

function unitsOf({ event }: LogEntry): number {
  if (event.type === 'delta') return event.data.text.length
  if (event.type === 'reset') return event.data.parts.reduce((units, part) => units + part.text.length, 0)
  return 0
}

/** Seqs are dense within a generation, so the place of a cursor is arithmetic and needs no search. */
function indexAfter(entries: readonly LogEntry[], after: EventId | undefined): number | undefined {
  const first = entries[0]
  const last = entries.at(-1)
  if (first === undefined || last === undefined) return undefined
  // A log whose beginning is gone cannot be read from the beginning.
  if (after === undefined) return first.seq === 1 ? 0 : undefined
  if (after.generation !== last.generation || after.seq > last.seq) return undefined
  const start = entries.length - (last.seq - after.seq)
  const previous = entries[start - 1]
  if (start < 0) return undefined
  // Directly before the first event is a place too; otherwise the event of the cursor must be here.
  const held = previous === undefined ? after.seq === first.seq - 1 : compareEventIds(previous, after) === 0
  return held ? start : undefined
}
