/**
 * A visitor has logged in: what was the visitor's becomes the user's. The user says so, by showing the visitor's token
 * beside the own one; who only knows a visitor's name or hash gets nothing.
 *
 * It is one statement for all sessions of the visitor, deleted ones too, with their messages and runs. So there is no
 * moment at which a session is half of each, and what has been moved is the visitor's no more: of two claims at the same
 * instant the second one waits for the rows and then finds them gone.
 *
 * The statement sees messages and runs as they were when it began, and it may then have had to wait for a session whose
 * next message was just being stored. So each row's `version`, which whoever writes to a session raises, has to be the
 * same under the lock; if one is not, nothing is moved and the statement looks again. The same when the user takes an
 * external id or an idempotency key just then that one of the sessions has: an index refuses, and the next look finds it.
 *
 * What a user can have only once stays with what the user has: a moved session gives up its external id to the metadata,
 * a moved run its idempotency key. Running replies go on, and so do their open streams: they are known by their ids.
 *
 * What the visitor has spent today stays the visitor's: budgets are booked by day and owner. So is what a run still holds
 * back that has begun as the visitor's, and what it comes to; what the user sends from then on is the user's.
 *
 * If the process dies at the await, all has been moved or nothing; asked again, the rest is moved or there is none left.
 */
import { Type } from 'typebox'
import { type Db, DbError, uniqueViolation } from '../db/db.ts'
import { sql } from '../db/drizzle.ts'
import { Problem } from '../errors.ts'
import { type Owner, readVisitorToken } from '../http/identity.ts'
import { problemResponses } from '../http/openapi.ts'
import type { Server } from '../http/server.ts'
import type { SessionChanges } from './changes.ts'
import { isoTime } from './store.ts'

export interface ClaimOptions {
  readonly db: Db
  readonly changes: SessionChanges
}

export const Claimed = Type.Object({
  claimed: Type.Integer({ description: 'sessions moved; deleted ones are not counted' }),
})

// Each try that fails means that a session has just been written to. Only a visitor who goes on sending as fast as this
// statement runs could keep it from moving anything.
const attemptsMax = 8

export function registerClaim(app: Server, { db, changes }: ClaimOptions): void {
  app.post(
    '/sessions/claim',
    { schema: { tags: ['sessions'], response: { 200: Claimed, ...problemResponses } } },
    async (request) => {
      if (request.owner.kind !== 'user') {
        throw new Problem(
          'invalid_token',
          'Claiming needs the token of a user, in Authorization, beside that of the visitor.',
        )
      }
      const visitor = readVisitorToken(request)
      if (visitor === undefined) {
        throw new Problem(
          'invalid_request',
          'Claiming needs the token of the visitor, in X-Visitor-Token or as its cookie.',
        )
      }
      const moved = await claimSessions(db, request.owner, visitor)
      const ids = moved.map(({ id }) => id)
      if (ids.length > 0) changes.removed(visitor.key, ids)
      for (const id of ids) changes.changed(id)
      return { claimed: moved.filter(({ deleted }) => !deleted).length }
    },
  )
}

export interface MovedSession {
  readonly id: string
  readonly deleted: boolean
}

/**
 * @returns the sessions that were the visitor's and are the user's now
 * @throws Problem `db_unavailable` when it is unknown whether they were moved: call again
 */
export async function claimSessions(db: Db, user: Owner, visitor: Owner): Promise<readonly MovedSession[]> {
  for (let attempt = 1; attempt <= attemptsMax; attempt += 1) {
    try {
      const rows = await moveSessions(db, user, visitor)
      if (rows[0]?.steady === true) return rows.flatMap(({ id, deleted }) => (id === null ? [] : [{ id, deleted }]))
    } catch (error) {
      if (!(error instanceof DbError) || error.sqlstate !== uniqueViolation) throw error
    }
  }
  throw new Problem('internal', 'The sessions are being written to too often to be moved.')
}

interface MoveRow {
  /** Whether no session was written to meanwhile; if not, nothing was moved. */
  readonly steady: boolean
  /** Null in the one row that there is when nothing was moved. */
  readonly id: string | null
  readonly deleted: boolean
}

function moveSessions(db: Db, user: Owner, visitor: Owner): Promise<MoveRow[]> {
  return db.rows<MoveRow>(sql`
    with seen as (
      select id, version from chat_sessions where owner = ${visitor.key}
    ), place as materialized (
      -- In one order, so that two statements that lock several sessions cannot wait for each other.
      select s.id, s.version from chat_sessions s where s.owner = ${visitor.key} order by s.id for update
    ), found as (
      select not exists (
        select 1 from place join seen on seen.id = place.id where seen.version <> place.version
      ) as steady
    ), taken as (
      select moved.id
      from chat_sessions moved
      join chat_sessions other on other.owner = ${user.key} and other.external_id = moved.external_id
      where moved.owner = ${visitor.key} and moved.deleted_at is null and other.deleted_at is null
    ), session as (
      update chat_sessions s set
        user_id = ${user.userId}::text,
        visitor_hash = null,
        external_id = case when s.id in (select id from taken) then null else s.external_id end,
        metadata = s.metadata
          || jsonb_build_object('converted_at', ${isoTime(sql`now()`)})
          || case
            when s.id in (select id from taken) then jsonb_build_object('external_id', s.external_id) else '{}'::jsonb
          end,
        version = s.version + 1,
        updated_at = now()
      from place, found
      where s.id = place.id and found.steady
      returning s.id, s.deleted_at
    ), message as (
      update chat_messages m set owner = ${user.key} from session
      -- What was brought has neither, and stays out of the search.
      where m.session_id = session.id and (m.owner is not null or m.run_id is not null)
    ), run as (
      update chat_runs r set
        owner = ${user.key},
        idempotency_key = case
          when exists (
            select 1 from chat_runs other
            where other.owner = ${user.key} and other.idempotency_key = r.idempotency_key
          ) then null
          else r.idempotency_key
        end
      from session where r.session_id = session.id
    )
    select found.steady, session.id, session.deleted_at is not null as deleted
    from found left join session on true`)
}
