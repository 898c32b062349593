/**
 * What the owner of a session adds to a reply afterwards: an opinion of it, and the documents that were retrieved for it, by
 * the owner's own backend. Both are said again by saying them anew, and belong to replies only: a message of the user has
 * nobody to judge, and retrieves nothing.
 *
 * Each is one statement that locks the session's row first, as everything that changes a session does, and raises its
 * version with what it writes: a copy of the history that is of an older version is not shown any more. If the process dies
 * at the await, all of it has happened or nothing.
 */
import type { Db } from '../db/db.ts'
import { sql } from '../db/drizzle.ts'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import type { SessionChanges } from './changes.ts'
import type { FeedbackBody, MessageFeedback, RetrievalBody } from './model.ts'
import { isoTime } from './store.ts'

export type FeedbackStore = ReturnType<typeof createFeedback>

interface Target {
  readonly session_id: string
  readonly role: string
}

/** The reply, when it is the owner's, with the row of its session locked. */
const targetOf = (owner: Owner, messageId: string) => sql`
  select m.id, m.session_id, m.role
  from chat_messages m join chat_sessions s on s.id = m.session_id
  where m.id = ${messageId}::uuid and s.owner = ${owner.key} and s.deleted_at is null
  for update of s`

const raiseVersion = sql`
  update chat_sessions s set version = s.version + 1, updated_at = now() from written where s.id = written.session_id`

export function createFeedback(db: Db, changes: SessionChanges) {
  return {
    /** @throws Problem `not_found`; `invalid_request` when the message is no reply; `db_unavailable` */
    async putFeedback(owner: Owner, messageId: string, { rating, comment }: FeedbackBody): Promise<MessageFeedback> {
      const [row] = await db.rows<Target & MessageFeedback>(sql`
        with target as materialized (${targetOf(owner, messageId)}), opinion as (
          insert into feedback as f (message_id, rating, comment)
          select id, ${rating}::smallint, ${comment ?? null}::text from target where role = 'assistant'
          on conflict (message_id) do update set
            rating = excluded.rating, comment = excluded.comment, updated_at = clock_timestamp()
          returning f.message_id, f.rating, f.comment, f.created_at, f.updated_at
        ), written as (
          select target.session_id from target join opinion on opinion.message_id = target.id
        ), session as (${raiseVersion})
        select
          target.session_id, target.role, opinion.message_id, opinion.rating, to_json(opinion.comment) as comment,
          ${isoTime(sql`opinion.created_at`)} as created_at, ${isoTime(sql`opinion.updated_at`)} as updated_at
        from target left join opinion on opinion.message_id = target.id`)
      const { session_id, role: _role, ...opinion } = checkTarget(row)
      changes.changed(session_id)
      return opinion
    },

    /** @throws Problem `not_found`; `invalid_request` when the message is no reply; `db_unavailable` */
    async putRetrieval(owner: Owner, messageId: string, body: RetrievalBody): Promise<void> {
      const [row] = await db.rows<Target>(sql`
        with target as materialized (${targetOf(owner, messageId)}), written as (
          update chat_messages m set
            retrieved_docs = ${JSON.stringify(body.retrieved_docs)}::jsonb,
            reranker_used = ${body.reranker_used ?? null}::boolean
          from target where m.id = target.id and target.role = 'assistant'
          returning m.session_id
        ), session as (${raiseVersion})
        select session_id, role from target`)
      changes.changed(checkTarget(row).session_id)
    },
  }
}

/** @throws Problem `not_found` `invalid_request` */
function checkTarget<Row extends Target>(target: Row | undefined): Row {
  if (target === undefined) throw new Problem('not_found')
  if (target.role !== 'assistant') throw new Problem('invalid_request', 'Only a reply can have this.')
  return target
}
