/**
 * How sessions go away and come back. Deleting hides a session and keeps it, so that it can be restored; purging erases
 * it with everything that hangs on it; and an owner can have all erased at once.
 *
 * A session is hidden before its runs are stopped, because from then on no message is accepted for it; and the statement
 * that hides it also stores the wish that its runs stop, so that they end whatever happens to this process. A message
 * that was being accepted at that very moment has a run without the wish: it is found when the runs are stopped here,
 * or, if this process dies just then, it ends by itself in a session that nobody sees.
 *
 * Erasing is hiding, stopping (for two seconds at most: what a run says later finds no row), and then one statement
 * for the row and all that hangs on it. What was spent stays spent: budgets are booked by day and owner, not by session, and
 * what a run that was not over in time still holds back of them counts as spent, because nobody will say what it used. Of an
 * owner who has all erased, the row of the day stays until that is over, and goes a few days later.
 *
 * If the process or the database dies before it, the session is there, hidden, and can be purged again; after it, everything
 * is gone but the event logs of its runs, which are let go by their age. When the answer is lost, asking again is answered
 * with `not_found` once it has happened.
 */
import { setTimeout as pause } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import { type Db, DbError, uniqueViolation } from '../db/db.ts'
import { and, eq, isNotNull, type SQL, sql } from '../db/drizzle.ts'
import { chatSessions } from '../db/schema.ts'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import type { SessionChanges } from './changes.ts'
import type { Session } from './model.ts'
import { settle } from './reservations.ts'
import type { SessionStore } from './store.ts'

export interface RemovalOptions {
  readonly db: Db
  readonly sessions: SessionStore
  readonly changes: SessionChanges
  /** Stops what is active or queued in a session, and resolves when that has ended. */
  readonly stopRuns: (owner: Owner, sessionId: string) => Promise<void>
  /** Erases the event logs of runs that are gone. */
  readonly eraseLogs: (runIds: readonly string[]) => Promise<void>
  readonly logger: FastifyBaseLogger
  /** How long an answer waits for runs to end. */
  readonly stopWaitMs?: number
}

export type Removal = ReturnType<typeof createRemoval>

const stopWaitDefaultMs = 2000
// Edges cut a response after five minutes without a byte.
const eraseAllMsMax = 4 * 60_000
/** Rows of one statement that erases: a batch is as many sessions as have about so many messages, and one at least. */
const batchMessagesMax = 5000
const batchSessionsMax = 100
/** Each try that fails means that a run has just begun or ended in the session. */
const restoreAttemptsMax = 8

/** The condition that finds what can be restored. */
export const deletedOf = (owner: Owner) => and(eq(chatSessions.owner, owner.key), isNotNull(chatSessions.deletedAt))

export function createRemoval(options: RemovalOptions) {
  const { db, sessions, changes, stopRuns, eraseLogs, logger, stopWaitMs = stopWaitDefaultMs } = options

  /**
   * Hides sessions, and stores the wish that their runs stop.
   * @param chosen a query for ids
   * @returns the ids of those that are the owner's
   */
  async function hide(owner: Owner, chosen: SQL): Promise<string[]> {
    const rows = await db.rows<{ id: string }>(sql`
      with chosen as (${chosen}), session as (
        update chat_sessions s set
          status = 'deleted', deleted_at = coalesce(s.deleted_at, now()), version = s.version + 1, updated_at = now()
        from chosen where s.id = chosen.id and s.owner = ${owner.key}
        returning s.id
      ), stopping as (
        update chat_runs set stop_requested_at = coalesce(chat_runs.stop_requested_at, now())
        from session where chat_runs.session_id = session.id and chat_runs.status in ('queued', 'running')
      )
      select id from session`)
    return rows.map(({ id }) => id)
  }

  /** Waits until the runs of these sessions have ended, but not for long; what goes wrong is not the caller's to mend. */
  async function stopSoon(owner: Owner, sessionIds: readonly string[]): Promise<void> {
    const enough = new AbortController()
    const stopped = Promise.all(sessionIds.map((id) => stopRuns(owner, id))).catch((error: unknown) => {
      logger.warn({ err: error, sessions: sessionIds.length }, 'runs of deleted sessions were only asked to stop')
    })
    await Promise.race([stopped, pause(stopWaitMs, undefined, { signal: enough.signal })])
    enough.abort()
  }

  async function erase(owner: Owner, sessionIds: readonly string[]): Promise<void> {
    const gone = await db.rows<{ id: string; run_ids: string[] }>(sql`
      with place as materialized (
        select s.id from chat_sessions s
        where s.owner = ${owner.key} and s.id = any(${toArray(sessionIds)}::uuid[]) order by s.id
        for update
      ), holding as materialized (
        -- Locked, because a queued run may have begun since this statement did.
        select r.reservation, r.status from chat_runs r join place on place.id = r.session_id
        where r.reservation is not null
        for update of r
      ), given_up as (
        select
          reservation,
          case when status = 'running' then (reservation ->> 'cost')::numeric else 0 end as spent_cost,
          case when status = 'running' then (reservation ->> 'tokens')::bigint else 0 end as spent_tokens
        from holding
      ), ${settle(sql`given_up`)}, gone as (
        delete from chat_sessions s using place where s.id = place.id returning s.id
      )
      select gone.id, (
        select coalesce(json_agg(r.id), '[]'::json) from chat_runs r where r.session_id = gone.id
      ) as run_ids
      from gone`)
    changes.removed(owner.key, sessionIds)
    const runIds = gone.flatMap(({ run_ids }) => run_ids)
    if (runIds.length > 0) await eraseLogs(runIds)
  }

  /** The sessions of a batch in which something is still being said, or waits for its turn. */
  async function findBusy(owner: Owner, sessionIds: readonly string[]): Promise<string[]> {
    const rows = await db.rows<{ session_id: string }>(sql`
      select distinct session_id from chat_runs
      where owner = ${owner.key} and status in ('queued', 'running')
        and session_id = any(${toArray(sessionIds)}::uuid[])`)
    return rows.map(({ session_id }) => session_id)
  }

  async function eraseSessions(owner: Owner): Promise<void> {
    for (const giveUpAt = performance.now() + eraseAllMsMax; performance.now() < giveUpAt; ) {
      // Also what this owner begins meanwhile is found, because it looks until there is nothing.
      const batch = await hide(
        owner,
        sql`
          select id from (
            select id, message_count, sum(message_count) over (order by id) as up_to from (
              select id, message_count from chat_sessions where owner = ${owner.key} order by id limit ${batchSessionsMax}::int
            ) first
          ) measured where up_to - message_count < ${batchMessagesMax}::int`,
      )
      if (batch.length === 0) return
      const busy = await findBusy(owner, batch)
      if (busy.length > 0) await stopSoon(owner, busy)
      await erase(owner, batch)
    }
    throw new Problem('db_unavailable', 'Not everything could be erased in four minutes. Ask again for the rest.', {
      retryAfterSeconds: 1,
    })
  }

  return {
    /**
     * Hides a session, and stops its runs.
     * @throws Problem `not_found`, also when it is deleted already
     */
    async deleteSession(owner: Owner, id: string): Promise<void> {
      const hidden = await hide(owner, sql`select id from chat_sessions where id = ${id}::uuid and deleted_at is null`)
      if (hidden.length === 0) throw new Problem('not_found')
      changes.removed(owner.key, hidden)
      await stopSoon(owner, hidden)
    },

    /** Erases a session for good, also one that is deleted. @throws Problem `not_found` */
    async purgeSession(owner: Owner, id: string): Promise<void> {
      const hidden = await hide(owner, sql`select ${id}::uuid as id`)
      if (hidden.length === 0) throw new Problem('not_found')
      await stopSoon(owner, hidden)
      await erase(owner, hidden)
    },

    /**
     * Undoes a deletion; a session that is not deleted is answered as it is.
     * @throws Problem `not_found`; `conflict` when another session has its external id by now
     */
    async restoreSession(owner: Owner, id: string): Promise<Session> {
      for (let attempt = 1; attempt <= restoreAttemptsMax; attempt += 1) {
        const [row] = await restore(db, owner, id)
        if (row === undefined) throw new Problem('not_found')
        if (row.restored) changes.changed(id.toLowerCase())
        if (row.restored || !row.deleted) return sessions.getSession(owner, id)
      }
      throw new Problem('internal', 'The session is changed faster than it can be restored.')
    },

    /**
     * Erases all that an owner has, and for a user what is known of them, the keys of the gateway too.
     * @throws Problem `db_unavailable` when some of it is left: ask again
     */
    async eraseOwner(owner: Owner): Promise<void> {
      await eraseSessions(owner)
      await db.rows(sql`
        delete from budget_days where scope = ${owner.key} and day < (now() at time zone 'UTC')::date`)
      if (owner.userId !== null) {
        await db.rows(sql`
          with keys as (delete from api_keys where subject = ${owner.userId})
          delete from users where subject = ${owner.userId}`)
      }
    },
  }
}

/**
 * A session is again what its last run made of it; one that was stopped in the queue never did anything. Imported
 * sessions have no runs, but messages. The status is read before the row is locked, so it holds only if nobody has begun or
 * ended a run since: whoever does raises the version.
 */
async function restore(db: Db, owner: Owner, id: string): Promise<{ deleted: boolean; restored: boolean }[]> {
  try {
    return await db.rows(sql`
      with seen as materialized (
        select s.id, s.version, s.deleted_at is not null as deleted, case
          when exists (select 1 from chat_runs r where r.session_id = s.id and r.status in ('queued', 'running'))
          then 'running'
          else coalesce((
            select case
              when r.status = 'stopped' and r.kill_requested_at is not null then 'killed'
              when r.status in ('completed', 'stopped') then 'completed'
              else 'failed'
            end
            from chat_runs r where r.session_id = s.id and r.started_at is not null and r.kind <> 'summary'
            order by r.created_at desc, r.id desc limit 1
          ), (
            select case when m.status in ('completed', 'stopped') then 'completed' else 'failed' end
            from chat_messages m where m.session_id = s.id order by m.seq desc limit 1
          ), 'created')
        end as status
        from chat_sessions s where s.id = ${id}::uuid and s.owner = ${owner.key}
      ), restored as (
        update chat_sessions s set
          status = seen.status, deleted_at = null, version = s.version + 1, updated_at = now()
        from seen where s.id = seen.id and seen.deleted and s.deleted_at is not null and s.version = seen.version
        returning s.id
      )
      select seen.deleted, restored.id is not null as restored from seen left join restored on true`)
  } catch (error) {
    if (!(error instanceof DbError) || error.sqlstate !== uniqueViolation) throw error
    throw new Problem('conflict', 'Another session has its external_id by now.', { cause: error })
  }
}

const toArray = (ids: readonly string[]) => `{${ids.join(',')}}`
