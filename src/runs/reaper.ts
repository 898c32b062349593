/**
 * The lease of this process, and the takeover of runs whose process has died (promise P7: no orphan).
 *
 * A process renews one row in `instances`, by the database's clock, each 3 s. When a row has not been renewed for
 * `leaseMs`, any process may take its runs over: one statement raises their generation, which fences the old process
 * out of every later write, and makes them this process's. Then each is ended as `interrupted` with the text of its
 * checkpoints, through the same commit as every other end. If this process dies in between, its own lease runs out
 * and the next one does the same.
 *
 * On a database that no other process can open (embedded), whoever held a lease before is dead, so there is no wait.
 *
 * The beat also brings stop requests that came in through another process.
 */
import type { FastifyBaseLogger } from 'fastify'
import type { Db } from '../db/db.ts'
import { sql } from '../db/drizzle.ts'
import { Problem } from '../errors.ts'
import { contentOf } from '../log/event.ts'
import { readCheckpoint } from './checkpoint.ts'
import { commitRun } from './commit.ts'
import type { OwnedRuns } from './owned.ts'
import { pause } from './run.ts'

// A run is taken over leaseMs + lookMs after its process's last beat at the latest, and a viewer that is fed from the
// database sees it up to a second later: promise P7 says 12 s for all of it.
const leaseMs = 10_000
const lookMs = 500
const looksPerBeat = 6
/** Runs taken over by one statement. */
const takeoverMax = 50
// An accept whose answer was lost leaves a run that this process holds and does not make. It is given this long to be
// found by its key, which is longer than any statement may take.
const strayMs = 15_000
// Checkpoints that were written at the very moment of their run's commit stay behind; nobody reads them.
const looksPerSweep = 600

export interface ReaperOptions {
  readonly db: Db
  readonly instanceId: string
  readonly owned: OwnedRuns
  readonly logger: FastifyBaseLogger
}

export function createReaper({ db, instanceId, owned, logger }: ReaperOptions) {
  const closing = new AbortController()
  let clock: Promise<void> | undefined

  async function beat(): Promise<void> {
    const stops = await db.rows<{ id: string }>(sql`
      with lease as (
        insert into instances (id, lease_until, draining)
        values (${instanceId}::uuid, now() + ${leaseMs}::int * interval '1 millisecond', ${owned.isDraining})
        on conflict (id) do update set lease_until = excluded.lease_until, draining = excluded.draining
      )
      select id from chat_runs
      where instance_id = ${instanceId}::uuid and status = 'running' and stop_requested_at is not null`)
    for (const { id } of stops) owned.stop(id, 'stop')
  }

  /** @returns how many runs were ended; one that cannot be does not keep the others waiting */
  async function reap(): Promise<number> {
    const taken = await db.rows<{ id: string; generation: number }>(sql`
      with dead as (
        select run.id from chat_runs run
        where run.status = 'running' and (
          -- Not a join: when another reaper has been faster, Postgres looks at the changed row again, and would then pair
          -- it with the lease of the dead process, not with the living one's.
          (run.instance_id is distinct from ${instanceId}::uuid and not exists (
            select 1 from instances where instances.id = run.instance_id and instances.lease_until >= now()
          ))
          or (run.instance_id = ${instanceId}::uuid
            and run.started_at < now() - ${strayMs}::int * interval '1 millisecond'
            and run.id <> all (${`{${owned.ids().join(',')}}`}::uuid[]))
        )
        order by run.created_at limit ${takeoverMax}::int
        for update skip locked
      )
      update chat_runs run
      set generation = run.generation + 1, instance_id = ${instanceId}::uuid
      from dead where run.id = dead.id
      returning run.id, run.generation`)
    let ended = 0
    for (const { id, generation } of taken) {
      // What is left then is the next process's, as soon as the lease is given back.
      if (closing.signal.aborted) break
      try {
        await interrupt(id, generation)
        ended += 1
      } catch (error) {
        if (error instanceof Problem) throw error
        logger.error({ run_id: id, generation, err: error }, 'a run that was taken over could not be ended yet')
      }
    }
    return ended
  }

  async function interrupt(runId: string, generation: number): Promise<void> {
    const { parts } = await readCheckpoint(db, runId)
    const { outcome } = await commitRun(db, runId, generation, {
      status: 'interrupted',
      parts,
      content: contentOf(parts),
      usage: undefined,
      finishReason: undefined,
      model: undefined,
      error: new Problem('interrupted').toRunError(),
      ttftMs: undefined,
      latencyMs: undefined,
      // The new generation holds the reset at 1 and the terminal event at 2.
      lastSeq: 2,
    })
    logger.warn({ run_id: runId, generation, outcome }, 'took over a run whose process had died')
  }

  async function sweep(): Promise<void> {
    await db.rows(sql`
      with gone as (delete from instances where lease_until < now() - interval '1 hour')
      delete from run_checkpoints c using chat_runs run
      where run.id = c.run_id and run.status not in ('queued', 'running')`)
  }

  return {
    /** Takes the lease and ends what dead processes have left. Resolves when the first round is through. */
    async start(): Promise<void> {
      if (db.exclusive) await db.rows(sql`delete from instances`)
      await beat()
      while ((await reap()) === takeoverMax);
      await owned.startNext()
      await sweep()
      clock = (async () => {
        for (let looks = 1; ; looks += 1) {
          await pause(lookMs, closing.signal)
          if (closing.signal.aborted) return
          try {
            if (looks % looksPerBeat === 0) await beat()
            await reap()
            await owned.startNext()
            if (looks % looksPerSweep === 0) await sweep()
          } catch (error) {
            logger.warn({ err: error }, 'the lease could not be renewed')
          }
        }
      })()
    },

    /** Gives the lease back, so that what is left is taken over at once. */
    async close(): Promise<void> {
      closing.abort()
      await clock
      await db
        .rows(sql`delete from instances where id = ${instanceId}::uuid`)
        .catch((error: unknown) => logger.warn({ err: error }, 'the lease could not be given back; it will run out'))
    },
  }
}
