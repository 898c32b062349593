/**
 * Stopping a run from wherever the request comes in. One that is still queued is nobody's, so it is ended here. The wish is stored first, so that it outlives this process and
 * reaches the one that makes the run; if that is this one, the upstream request is aborted at once.
 */
import type { Db } from '../db/db.ts'
import { isTerminal, type RunFacts, type RunRecord } from './model.ts'
import type { OwnedRuns } from './owned.ts'
import { stopQueued } from './queue.ts'
import { pause, settledWithin } from './run.ts'
import type { RunStore } from './store.ts'

export interface StopOptions {
  readonly db: Db
  readonly runs: RunStore
  readonly owned: OwnedRuns
}

/** How long the answer waits for the run's end. */
export const stopWaitMs = 2000
const pollMs = 100

export function createStop({ db, runs, owned }: StopOptions) {
  /** @returns the run as it is afterwards: ended, unless its process needs longer than {@link stopWaitMs} */
  return async function stop(run: RunRecord): Promise<RunRecord> {
    if (isTerminal(run.status)) return run
    await runs.requestStop(run)
    if (run.status === 'queued') {
      const { nextMayWait } = await stopQueued(db, run)
      if (nextMayWait) await owned.startNext(run.session_id)
    }
    const enough = AbortSignal.timeout(stopWaitMs)
    if (owned.has(run.id)) {
      owned.stop(run.id, 'stop')
      await settledWithin(owned.ended(run.id), stopWaitMs)
    }
    let now: RunFacts & RunRecord = (await runs.reread(run.id)) ?? run
    while (!isTerminal(now.status) && !enough.aborted) {
      await pause(pollMs, enough)
      now = (await runs.reread(run.id)) ?? now
    }
    return now
  }
}
