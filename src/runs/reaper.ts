/**
 * The lease of this process, and the search for runs that nobody makes any more (promise P7: no orphan).
 *
 * A process renews one row in `instances`, by the database's clock, each `beatMs`. When a row has not been renewed for
 * `leaseMs`, any process may claim its runs (takeover.ts says what happens then); released runs have no row at all and
 * are claimed at the next look, which the control stream brings about at once. On a database that no other process can
 * open (embedded), whoever held a lease before is dead, so there is no wait.
 *
 * The same look asks how the database sees this process's own runs: one that was claimed by another process meanwhile is
 * let go, one that somebody wants stopped is stopped. The control stream says the same sooner, but may be lost. A takeover
 * can wait for a log for seconds, so the search goes on beside the looks: whoever asked for a stop waits for one second, and
 * takes away a run whose process does not follow.
 *
 * A lease also runs out when the database is away for longer than that. When it is back, whoever looks first would take
 * over the runs of living processes that have not yet renewed theirs. So a process that has been without the database
 * for `gapMs` (or was frozen, which looks the same from inside) claims nothing for `holdMs`: long enough for a living
 * process to end a statement that hangs and to renew its lease.
 *
 * If this process dies at an await, its lease runs out. If the database dies, the look is tried again.
 */
import type { FastifyBaseLogger } from 'fastify'
import type { Db } from '../db/db.ts'
import { sql } from '../db/drizzle.ts'
import type { Control } from '../log/control.ts'
import type { OwnedRuns } from './owned.ts'
import { pause } from './run.ts'
import { type ClaimedRun, claimRuns, type Takeover } from './takeover.ts'

// A run is claimed leaseMs + lookMs after its process's last beat at the latest, and a viewer that is fed from the
// database sees it up to a second later: promise P7 says 12 s for all of it.
const leaseMs = 10_000
const lookMs = 500
const beatMs = 3000
// A shorter gap leaves a lease enough of its time; a statement that hangs is given up after 5 s.
const gapMs = 5000
const holdMs = 7000
// Beats come each 3 s: only a process that stood still, or whose database was away, is older than this.
const staleMs = 5000
/** Runs claimed by one statement, and taken over at the same time. */
const claimMax = 50
// An accept whose answer was lost leaves a run that this process holds and does not make. It is given this long to be
// found by its key, which is longer than any statement may take.
const strayMs = 15_000
// Of a process that died while a checkpoint and a commit crossed each other, checkpoints stay behind; nobody reads them.
const sweepMs = 300_000
/** Of budgets, behind today; a run that began before midnight is settled on its own day. */
const budgetDaysKept = 7

export interface ReaperOptions {
  readonly db: Db
  readonly control: Control
  readonly instanceId: string
  readonly owned: OwnedRuns
  readonly takeover: Takeover
  readonly logger: FastifyBaseLogger
  /** Milliseconds that only rise; injected by tests. */
  readonly now?: () => number
}

export type Reaper = ReturnType<typeof createReaper>

export function createReaper(options: ReaperOptions) {
  const { db, control, instanceId, owned, takeover, logger, now = () => performance.now() } = options
  const closing = new AbortController()
  let hurry = new AbortController()
  let renewal: Promise<void> | undefined
  let clock: Promise<void> | undefined
  let search: Promise<void> | undefined
  let beatAt = Number.NEGATIVE_INFINITY
  // What the others have been told: nobody should hand over to a process that ends.
  let toldDraining = false
  // From the beginning on, so that a database that is only just back is noticed.
  let seenAt = now()
  let holdUntil = Number.NEGATIVE_INFINITY

  control.listen((command) => {
    if (command.kind === 'stop') owned.stop(command.runId)
    else hurry.abort()
  })

  async function beat(): Promise<void> {
    const draining = owned.isDraining
    await db.rows(sql`
      insert into instances (id, lease_until, draining)
      values (${instanceId}::uuid, now() + ${leaseMs}::int * interval '1 millisecond', ${draining})
      on conflict (id) do update set lease_until = excluded.lease_until, draining = excluded.draining`)
    beatAt = now()
    toldDraining = draining
  }

  /** Follows what the database says of the runs that this process makes. */
  async function lookAtOwn(): Promise<void> {
    const own = owned.generations()
    if (own.length === 0) return
    const news = await db.rows<{ id: string; lost: boolean }>(sql`
      select own.id, run.id is null as lost
      from jsonb_to_recordset(${JSON.stringify(own)}::jsonb) as own (id uuid, generation int)
      left join chat_runs run on run.id = own.id and run.generation = own.generation and run.status = 'running'
      where run.id is null or run.stop_requested_at is not null`)
    for (const { id, lost } of news) {
      if (lost) owned.fence(id)
      else owned.stop(id)
    }
  }

  /** @returns how many runs were taken over; one that cannot be does not keep the others waiting */
  async function reap(): Promise<number> {
    const own = owned.generations().map(({ id }) => id)
    const claimed = await claimRuns(
      db,
      instanceId,
      sql`
        select run.id, run.generation from chat_runs run
        where run.status = 'running'
        -- As this statement began to see it. When another reaper has been faster, Postgres looks at the changed row again,
        -- but still with the leases of before: that reaper's own may not be among them.
        and run.generation = (select seen.generation from chat_runs seen where seen.id = run.id)
        and (
          -- Not a join: when another reaper has been faster, Postgres looks at the changed row again, and would then pair
          -- it with the lease of the dead process, not with the living one's.
          (run.instance_id is distinct from ${instanceId}::uuid and not exists (
            select 1 from instances where instances.id = run.instance_id and instances.lease_until >= now()
          ))
          or (run.instance_id = ${instanceId}::uuid
            and run.started_at < now() - ${strayMs}::int * interval '1 millisecond'
            and run.id <> all (${`{${own.join(',')}}`}::uuid[]))
        )
        order by run.created_at limit ${claimMax}::int
        for update skip locked`,
    )
    // Side by side: one after the other, the runs of a busy process would not be taken over in time.
    const taken = await Promise.all(claimed.map(takeOver))
    return taken.filter(Boolean).length
  }

  async function takeOver(run: ClaimedRun): Promise<boolean> {
    try {
      await takeover.takeOver(run)
      return true
    } catch (error) {
      // It stays claimed, and is found again as one that nobody makes.
      logger.error({ run_id: run.id, generation: run.generation, err: error }, 'a run could not be taken over yet')
      return false
    }
  }

  async function sweep(): Promise<void> {
    await db.rows(sql`
      with gone as (
        delete from instances where lease_until < now() - interval '1 hour'
      ), past as (
        delete from budget_days where day < (now() at time zone 'UTC')::date - ${budgetDaysKept}::int
      )
      delete from run_checkpoints c using chat_runs run
      where run.id = c.run_id and run.status not in ('queued', 'running')`)
  }

  function noteSight(): void {
    const at = now()
    if (at - seenAt >= gapMs) {
      holdUntil = at + holdMs
      logger.warn(
        { gap_ms: Math.round(at - seenAt) },
        'the database was out of sight; others get time to renew their leases',
      )
    }
    seenAt = at
  }

  async function look(): Promise<void> {
    if (now() - beatAt >= beatMs || owned.isDraining !== toldDraining) await beat()
    await lookAtOwn()
    noteSight()
    search ??= searchAll().finally(() => {
      search = undefined
    })
    await owned.startNext()
  }

  async function searchAll(): Promise<void> {
    try {
      // A process that ends takes nothing new: whoever stays does.
      while (!owned.isDraining && now() >= holdUntil && (await reap()) === claimMax);
    } catch (error) {
      logger.warn({ err: error }, 'the database could not be asked about runs to take over')
    }
  }

  return {
    /**
     * Takes the lease and takes over what dead processes have left. Resolves when the first round is through; called
     * again when the database did not answer.
     */
    async start(): Promise<void> {
      if (db.exclusive) await db.rows(sql`delete from instances`)
      await beat()
      noteSight()
      if (db.exclusive || now() >= holdUntil) while ((await reap()) === claimMax);
      await owned.startNext()
      await sweep()
      let sweptAt = now()
      clock = (async () => {
        while (!closing.signal.aborted) {
          await pause(lookMs, AbortSignal.any([closing.signal, hurry.signal]))
          if (closing.signal.aborted) return
          hurry = new AbortController()
          try {
            await look()
            if (now() - sweptAt >= sweepMs) {
              sweptAt = now()
              await sweep()
            }
          } catch (error) {
            logger.warn({ err: error }, 'the database could not be asked about leases and runs')
          }
        }
      })()
    },

    /**
     * Resolves when the lease has some time left: at once, except in a process that has stood still. What that accepted
     * without a lease, another would claim at the same moment, and both would ask the upstream.
     * @throws Problem `db_unavailable`
     */
    async hold(): Promise<void> {
      if (now() - beatAt < staleMs) return
      renewal ??= beat().finally(() => {
        renewal = undefined
      })
      await renewal
    },

    /** Other processes that take new work, by the database's clock. */
    async readPeers(): Promise<string[]> {
      const peers = await db.rows<{ id: string }>(sql`
        select id from instances where id <> ${instanceId}::uuid and lease_until >= now() and not draining`)
      return peers.map(({ id }) => id)
    },

    /** Makes runs of this process claimable at once, and tells the others. */
    async release(runIds: readonly string[], peers: readonly string[]): Promise<void> {
      await db.rows(sql`
        update chat_runs set instance_id = null
        where id = any(${`{${runIds.join(',')}}`}::uuid[]) and instance_id = ${instanceId}::uuid and status = 'running'`)
      for (const peer of peers) control.send(peer, { kind: 'look' })
    },

    /** Gives the lease back, so that what is left is taken over at once. */
    async close(): Promise<void> {
      closing.abort()
      await clock
      await search
      await db
        .rows(sql`delete from instances where id = ${instanceId}::uuid`)
        .catch((error: unknown) => logger.warn({ err: error }, 'the lease could not be given back; it will run out'))
    },
  }
}
