/**
 * The events that this process holds in memory, an array per run: of its own runs, or a copy of another's. No clock and
 * no watchers; whoever owns the arrays brings those.
 *
 * A run that has ended stays for `endedMs`, so that viewers that are a little behind, or come back after a short cut,
 * get the very same events; after that, or when the ended runs hold more than `endedUnitsMax` UTF-16 units of text
 * together, it is let go by `sweep`, oldest first.
 */
import { compareEventIds, type EventId, type LogEntry } from './event.ts'
import type { LogPage } from './log.ts'

interface HeldRun {
  /** Without a hole, except directly before a `reset`: what another hole would separate from the rest is let go. */
  entries: LogEntry[]
  /**
   * Index of the entry that reading from the beginning starts with: the last `reset`, which replaces all before it, else the
   * first event; undefined while the beginning is gone and no `reset` stands for it.
   */
  beginning: number | undefined
  units: number
  terminal: LogEntry | undefined
  endedAt: number
}

export interface HeldOptions {
  readonly endedMs?: number
  readonly endedUnitsMax?: number
  /** Milliseconds that only rise; injected by tests. */
  readonly now?: () => number
}

export type HeldLogs = ReturnType<typeof createHeldLogs>

/** @param local whether the runs are this process's own, for the pages that are read */
export function createHeldLogs(local: boolean, options: HeldOptions = {}) {
  const { endedMs = 60_000, endedUnitsMax = 64 * 1024 * 1024, now = () => performance.now() } = options
  const runs = new Map<string, HeldRun>()
  // In the order in which runs ended, so that letting go starts with the oldest.
  const ended = new Map<string, HeldRun>()
  let endedUnits = 0

  function forget(runId: string): boolean {
    const run = runs.get(runId)
    if (run === undefined) return false
    runs.delete(runId)
    if (ended.delete(runId)) endedUnits -= run.units
    return true
  }

  return {
    get size() {
      return runs.size
    },
    ids: () => [...runs.keys()],
    has: (runId: string) => runs.has(runId),
    entries: (runId: string): readonly LogEntry[] => runs.get(runId)?.entries ?? [],
    terminal: (runId: string): EventId | undefined => runs.get(runId)?.terminal,
    forget,

    append(runId: string, entries: readonly LogEntry[]): void {
      if (entries.length === 0) return
      let run = runs.get(runId)
      if (run === undefined) {
        run = { entries: [], beginning: undefined, units: 0, terminal: undefined, endedAt: 0 }
        runs.set(runId, run)
      }
      for (const entry of entries) {
        const last = run.entries.at(-1)
        // Nothing comes after a terminal event, and an id that does not rise is one that is here, or a zombie's.
        if (run.terminal !== undefined || (last !== undefined && compareEventIds(entry, last) <= 0)) continue
        const isReset = entry.event.type === 'reset'
        if (last !== undefined && !follows(last, entry)) run.entries = []
        // What cannot be read from the beginning is made whole by a reset: from there on, everybody can read.
        else if (isReset && run.beginning === undefined) run.entries = []
        const index = run.entries.push(entry) - 1
        if (isReset) run.beginning = index
        else if (index === 0) run.beginning = entry.seq === 1 ? 0 : undefined
        run.units += unitsOf(entry)
        if (entry.event.type === 'done') {
          run.terminal = entry
          run.endedAt = now()
          ended.set(runId, run)
          endedUnits += run.units
        }
      }
    },

    read(runId: string, after: EventId | undefined, entriesMax: number): LogPage {
      const run = runs.get(runId)
      if (run === undefined) return { kind: 'unknown' }
      const start = indexAfter(run, after)
      if (start === undefined) return { kind: 'unservable', local }
      return { kind: 'entries', entries: run.entries.slice(start, start + entriesMax), local }
    },

    /** Lets go what has been ended for long enough, or is too much. @returns the runs that went */
    sweep(): string[] {
      const gone: string[] = []
      for (const [runId, run] of ended) {
        if (endedUnits <= endedUnitsMax && now() - run.endedAt < endedMs) break
        forget(runId)
        gone.push(runId)
      }
      return gone
    },
  }
}

/** True when nothing can be missing between the two. */
function follows(last: EventId, next: LogEntry): boolean {
  if (next.event.type === 'reset') return true
  return next.generation === last.generation && next.seq === last.seq + 1
}

function unitsOf({ event }: LogEntry): number {
  if (event.type === 'delta') return event.data.text.length
  if (event.type === 'part') return event.data.url?.length ?? 0
  if (event.type === 'tool') return event.data.output === undefined ? 0 : JSON.stringify(event.data.output).length
  if (event.type === 'reset')
    return event.data.parts.reduce((units, part) => units + part.text.length + (part.url?.length ?? 0), 0)
  return 0
}

/** Where reading after a cursor starts; undefined when something would be missing between the two. */
function indexAfter({ entries, beginning }: HeldRun, after: EventId | undefined): number | undefined {
  const first = entries[0]
  // Not from before a reset: who cannot take back what was said would be told what the reset takes back, each time anew.
  if (first === undefined || after === undefined) return beginning
  const start = firstBehind(entries, after)
  const previous = entries[start - 1]
  const next = entries[start]
  if (next?.event.type === 'reset') return start
  if (next !== undefined && next.generation !== after.generation) return undefined
  // Directly before the first event is a place too; otherwise the event of the cursor must be here.
  const held = previous === undefined ? after.seq === first.seq - 1 : compareEventIds(previous, after) === 0
  return held ? start : undefined
}

/** Index of the first entry whose id is greater; ids rise, so the range is halved until it is found. */
function firstBehind(entries: readonly LogEntry[], after: EventId): number {
  let low = 0
  let high = entries.length
  while (low < high) {
    const middle = (low + high) >>> 1
    if (compareEventIds(entries[middle] as LogEntry, after) <= 0) low = middle + 1
    else high = middle
  }
  return low
}
