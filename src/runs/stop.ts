/**
 * Stopping a run from wherever the request comes in (promise P6). One that is still queued is nobody's, so it is ended
 * here. The wish is stored first, so that it outlives this process; then whoever makes the run is told: this process
 * itself, or another one through the control stream, which finds the wish in the database too, half a second later at most.
 *
 * A process that does not follow within `patienceMs` is dead, frozen or cut off. Then the run is claimed, which fences
 * that process out, and ended here as `stopped` with all its text; so a stop is final whatever its process does.
 *
 * If this process dies at an await, the wish is stored or it is not: asked again, it says the same. A run whose process
 * dies with the wish stored ends as `stopped` when it is taken over.
 */
import type { Db } from '../db/db.ts'
import type { Control } from '../log/control.ts'
import { isTerminal, type RunFacts, type RunRecord } from './model.ts'
import type { OwnedRuns } from './owned.ts'
import { stopQueued } from './queue.ts'
import { pause, settledWithin } from './run.ts'
import type { RunStore } from './store.ts'
import type { Takeover } from './takeover.ts'

export interface StopOptions {
  readonly db: Db
  readonly runs: RunStore
  readonly owned: OwnedRuns
  readonly control: Control
  readonly takeover: Takeover
}

/** How long the answer waits for the run's end. */
export const stopWaitMs = 2000
/** How long another process has to follow, of that time; the rest is for taking the run from it. */
const patienceMs = 1000
const pollMs = 100

export function createStop({ db, runs, owned, control, takeover }: StopOptions) {
  async function untilEnded(run: RunRecord, ms: number): Promise<RunRecord> {
    const enough = AbortSignal.timeout(ms)
    let now: RunFacts & RunRecord = (await runs.reread(run.id)) ?? run
    while (!isTerminal(now.status) && !enough.aborted) {
      await pause(pollMs, enough)
      now = (await runs.reread(run.id)) ?? now
    }
    return now
  }

  /** @returns the run as it is afterwards: ended, unless the database needs longer than {@link stopWaitMs} */
  return async function stop(run: RunRecord): Promise<RunRecord> {
    if (isTerminal(run.status)) return run
    await runs.requestStop(run)
    if (run.status === 'queued') {
      const { nextMayWait } = await stopQueued(db, run)
      if (nextMayWait) await owned.startNext(run.session_id)
    }
    if (owned.has(run.id)) {
      owned.stop(run.id)
      await settledWithin(owned.ended(run.id), stopWaitMs)
      return (await runs.reread(run.id)) ?? run
    }
    if (run.instance_id !== null) control.send(run.instance_id, { kind: 'stop', runId: run.id })
    const then = await untilEnded(run, patienceMs)
    if (isTerminal(then.status)) return then
    const claimed = await takeover.claim(then.id, then.generation)
    if (claimed !== undefined) await takeover.takeOver(claimed)
    return untilEnded(then, stopWaitMs - patienceMs)
  }
}
