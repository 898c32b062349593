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
  readonly entries: LogEntry[]
  readonly watchers: Set<() => void>
  units: number
  endedAt: number | undefined
}

export interface MemoryLogOptions {
  readonly endedMs?: number
  readonly endedUnitsMax?: number
  /** Milliseconds that only rise; injected by tests. */
  readonly now?: () => number
}

const sweepMs = 5000

export function createMemoryLog(options: MemoryLogOptions = {}): EventLog & { sweep(): void; readonly size: number } {
  const { endedMs = 60_000, endedUnitsMax = 64 * 1024 * 1024, now = () => performance.now() } = options
  const runs = new Map<string, RunLog>()
  // In the order in which runs ended, so that letting go starts with the oldest.
  const ended = new Map<string, RunLog>()
  let endedUnits = 0

  function letGo(runId: string): void {
    const run = runs.get(runId)
    if (run === undefined) return
    runs.delete(runId)
    if (ended.delete(runId)) endedUnits -= run.units
    for (const wake of run.watchers) wake()
  }

  function sweep(): void {
    for (const [runId, run] of ended) {
      if (endedUnits <= endedUnitsMax && now() - (run.endedAt ?? 0) < endedMs) break
      letGo(runId)
    }
  }

  const timer = setInterval(sweep, sweepMs)
  timer.unref()

  function appendOne(runId: string, entries: readonly LogEntry[]): void {
    let run = runs.get(runId)
    if (run === undefined) {
      run = { entries: [], watchers: new Set(), units: 0, endedAt: undefined }
      runs.set(runId, run)
    }
    for (const entry of entries) {
      const last = run.entries.at(-1)
      if (last !== undefined && compareEventIds(entry, last) <= 0) continue
      run.entries.push(entry)
      if (entry.event.type === 'delta') run.units += entry.event.data.text.length
      if (entry.event.type === 'done' && run.endedAt === undefined) {
        run.endedAt = now()
        ended.set(runId, run)
        endedUnits += run.units
      }
    }
    for (const wake of run.watchers) wake()
  }

  return {
    get size() {
      return runs.size
    },
    sweep,
    append(frame) {
      for (const { runId, entries } of frame) appendOne(runId, entries)
    },
    async read(runId, after, entriesMax) {
      const run = runs.get(runId)
      if (run === undefined) return { kind: 'unknown' }
      const start = after === undefined ? 0 : indexAfter(run.entries, after)
      if (start === undefined) return { kind: 'unservable' }
      return { kind: 'entries', entries: run.entries.slice(start, start + entriesMax) }
    },
    watch(runId, wake) {
      const watchers = runs.get(runId)?.watchers
      watchers?.add(wake)
      return () => watchers?.delete(wake)
    },
    terminalId(runId) {
      const run = runs.get(runId)
      return run?.endedAt === undefined ? undefined : run.entries.at(-1)
    },
    forget: letGo,
    async close() {
      clearInterval(timer)
      for (const runId of [...runs.keys()]) letGo(runId)
    },
  }
}

/** Seqs are dense within a generation, so the place of a cursor is arithmetic and needs no search. */
function indexAfter(entries: readonly LogEntry[], after: EventId): number | undefined {
  const first = entries[0]
  const last = entries.at(-1)
  if (first === undefined || last === undefined) return undefined
  if (after.generation !== last.generation || after.seq > last.seq) return undefined
  const start = entries.length - (last.seq - after.seq)
  const previous = entries[start - 1]
  if (start < 0) return undefined
  // Directly before the first event is a place too; otherwise the event of the cursor must be here.
  const held = previous === undefined ? after.seq === first.seq - 1 : compareEventIds(previous, after) === 0
  return held ? start : undefined
}
