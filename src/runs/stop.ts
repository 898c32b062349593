/**
 * Stopping a run from wherever the request comes in (promise P6). One that is still queued is nobody's, so it is ended
 * here. The wish is stored first, so that it outlives this process; then whoever makes the run is told: this process
 * itself, or another one through the control stream, which finds the wish in the database too, half a second later at most.
 *
 * A process that does not follow within `patienceMs` is dead, frozen or cut off. Then the run is claimed, which fences
 * that process out, and ended here as `stopped` with all its text; so a stop is final whatever its process does.
 *
 * All runs of a session are stopped the same way, the wish for all of them being one statement: those that wait leave the
 * queue first, the last one first, so that none of them begins meanwhile; one that begins all the same is started only to
 * be ended. What this process makes for a session that is gone (purged) has nobody left to end it in the database, and is
 * let go: its upstream is aborted, its viewers end as those of a run that does not exist. Other processes find out by
 * themselves within half a second (reaper.ts).
 *
 * If this process dies at an await, the wish is stored or it is not: asked again, it says the same. A run whose process
 * dies with the wish stored ends as `stopped` when it is taken over.
 */
import type { Db } from '../db/db.ts'
import type { Owner } from '../http/identity.ts'
import type { Control } from '../log/control.ts'
import type { SessionChanges } from '../sessions/changes.ts'
import { isTerminal, type RunRecord, type RunState } from './model.ts'
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
  readonly changes?: SessionChanges
}

/** How long the answer waits for the run's end. */
export const stopWaitMs = 2000
/** How long another process has to follow, of that time; the rest is for taking the run from it. */
const patienceMs = 1000
const pollMs = 100

export function createStop({ db, runs, owned, control, takeover, changes }: StopOptions) {
  async function untilEnded(run: RunState, ms: number): Promise<RunState> {
    const enough = AbortSignal.timeout(ms)
    for (let last = run; ; await pause(pollMs, enough)) {
      const now = await runs.reread(run.id)
      // Purged meanwhile: it will not end any more than it has.
      if (now === undefined) return last
      if (isTerminal(now.status) || enough.aborted) return now
      last = now
    }
  }

  /** @returns the run as it is afterwards: ended, unless the database needs longer than {@link stopWaitMs} */
  return async function stop(run: RunRecord): Promise<RunState> {
    if (isTerminal(run.status)) return run
    await runs.requestStop(run)
    if (run.status === 'queued') {
      const { outcome, nextMayWait } = await stopQueued(db, run)
      if (outcome === 'committed') changes?.changed(run.session_id)
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

export interface StopSessionOptions extends Pick<StopOptions, 'db' | 'runs' | 'owned' | 'changes'> {
  readonly stop: ReturnType<typeof createStop>
}

export type StopSession = ReturnType<typeof createStopSession>

export function createStopSession({ db, runs, owned, stop, changes }: StopSessionOptions) {
  async function endAll(asked: readonly RunRecord[], sessionId: string): Promise<void> {
    const begun = asked.filter(({ status }) => status === 'running')
    const waiting = asked.filter(({ status }) => status === 'queued')
    // By the time in their ids: nearly always the order of the queue, and no other is wrong.
    waiting.sort((a, b) => (a.message_id < b.message_id ? 1 : -1))
    let nextMayWait = false
    for (const run of waiting) {
      const commit = await stopQueued(db, run)
      nextMayWait ||= commit.nextMayWait
      if (commit.outcome === 'committed') changes?.changed(sessionId)
      else begun.push({ ...run, ...(await runs.reread(run.id)) })
    }
    await Promise.all(begun.map(stop))
    // A message that came in after the wish may stand behind those that have left.
    if (nextMayWait) await owned.startNext(sessionId)
    for (const runId of owned.ofSession(sessionId)) {
      if ((await runs.reread(runId)) !== undefined) continue
      owned.fence(runId)
      await owned.ended(runId)
    }
  }

  /**
   * Ends every run of a session that has not ended, whether the session is there, deleted or purged. Returns when they have
   * ended, or after {@link stopWaitMs}; what needs longer goes on.
   * @param kill makes the session `killed`, unless a reply was whole first
   * @throws Problem `db_unavailable` when nobody knows whether the wish is stored
   */
  return async function stopSession(owner: Owner, sessionId: string, kill = false): Promise<void> {
    const asked = await runs.requestStopOfSession(owner, sessionId, kill)
    await settledWithin(
      owned.arrive(() => endAll(asked, sessionId)),
      stopWaitMs,
    )
  }
}
