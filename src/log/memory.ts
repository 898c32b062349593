/**
 * The event log inside this process. It is the whole log when the gateway runs without Redis, and dies with the process;
 * what was said up to the last checkpoint is then in the database, and other processes read it there.
 */
import { createHeldLogs, type HeldOptions } from './held.ts'
import type { EventLog } from './log.ts'
import { createWatchers } from './watchers.ts'

const sweepMs = 5000

export interface MemoryLog extends EventLog {
  /** Lets go what has been ended for long enough, or is too much. Called by a timer. */
  sweep(): void
  /** Runs held. */
  readonly size: number
  /** Runs that somebody watches. */
  readonly watched: number
}

export function createMemoryLog(options: HeldOptions = {}): MemoryLog {
  const held = createHeldLogs(true, options)
  const watchers = createWatchers()

  function sweep(): void {
    for (const runId of held.sweep()) watchers.wake(runId)
  }

  function forget(runId: string): void {
    if (held.forget(runId)) watchers.wake(runId)
  }

  const timer = setInterval(sweep, sweepMs)
  timer.unref()

  return {
    get size() {
      return held.size
    },
    get watched() {
      return watchers.size
    },
    scope: 'process',
    shared: false,
    degraded: undefined,
    sweep,
    append(frame) {
      for (const { runId, entries } of frame) {
        held.append(runId, entries)
        if (entries.length > 0) watchers.wake(runId)
      }
    },
    read: async (runId, after, entriesMax) => held.read(runId, after, entriesMax),
    peek: held.read,
    watch: watchers.watch,
    terminalId: held.terminal,
    load: async (runId) => [...held.entries(runId)],
    forget,
    async erase(runIds) {
      for (const runId of runIds) forget(runId)
    },
    // Nobody else can write to it, and it is never shared.
    onFenced: () => undefined,
    onUnshared: () => undefined,
    async close() {
      clearInterval(timer)
      for (const runId of held.ids()) {
        held.forget(runId)
        watchers.wake(runId)
      }
    },
  }
}
