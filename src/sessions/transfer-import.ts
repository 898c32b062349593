/**
 * Taking an exported file in, when it has been checked (transfer-check.ts). Nothing in it is believed about who owns what:
 * all of it becomes the caller's.
 *
 * Ids are not taken over. The new ones are made of the owner and the old ones (UUID version 5), so the same file again
 * makes nothing twice, and no id of somebody else can be met or found out. Somebody who knows both could have made a
 * session of that very id before; then the next one in the row is used.
 *
 * A session is written by one statement, whole or not at all. If the process or the database dies between two, those
 * before it are there; the file again makes the rest, and says of those before it that they exist.
 */
import { v5 as uuidv5 } from 'uuid'
import { type Db, DbError, uniqueViolation } from '../db/db.ts'
import { sql } from '../db/drizzle.ts'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import type { SessionChanges } from './changes.ts'
import type { ExportedArtifact, ExportedMessage, ExportedSession } from './transfer.ts'

/** One session of a file, checked. */
export interface Conversation {
  readonly session: ExportedSession
  readonly messages: ExportedMessage[]
  readonly artifacts: ExportedArtifact[]
}

export interface Imported {
  /** The session's new id. */
  readonly id: string
  /** The id that it has in the file. */
  readonly source_id: string
  readonly messages: number
  /** It was there already, from an earlier import of the same; nothing was changed. It may be among the deleted ones. */
  readonly existing: boolean
}

export type Importer = ReturnType<typeof createImporter>

// Any constant of our own.
const namespace = '5b0c1d6e-3f0a-4a53-9d0e-0c6f1f5c2a77'
const attemptsMax = 8

export function createImporter(db: Db, changes: SessionChanges) {
  async function insert(
    owner: Owner,
    conversation: Conversation,
    sessionId: string,
  ): Promise<'made' | 'mine' | 'taken' | 'unclear'> {
    const { session, artifacts } = conversation
    const messages = placeMessages(conversation.messages, sessionId)
    const [row] = await db.rows<{ made: boolean; mine: boolean | null }>(sql`
      with incoming as (
        select s.*, s.deleted_at is null and s.external_id is not null and exists (
          select 1 from chat_sessions other
          where other.owner = ${owner.key} and other.external_id = s.external_id and other.deleted_at is null
        ) as is_named_twice
        from jsonb_to_record(${JSON.stringify({ ...session, status: statusOf(session) })}::jsonb) as s (
          external_id text, kind text, status text, state jsonb, input text, context jsonb, title text, mode text,
          model text, phase text, round_number int, total_cost_usd numeric, tags text[], metadata jsonb,
          created_at timestamptz, updated_at timestamptz, last_activity_at timestamptz, ended_at timestamptz,
          deleted_at timestamptz
        )
      ), message as materialized (
        select * from jsonb_to_recordset(${JSON.stringify(messages)}::jsonb) as m (
          id uuid, seq int, parent_id uuid, role text, status text, content text, parts jsonb, agent_id text, model text,
          client_message_id text, retrieved_docs jsonb, reranker_used boolean, input_tokens int, output_tokens int,
          total_tokens int, latency_ms int, ttft_ms int, finish_reason text, error jsonb, metadata jsonb, feedback jsonb,
          created_at timestamptz, completed_at timestamptz
        )
      ), session as (
        insert into chat_sessions (
          id, external_id, user_id, visitor_hash, kind, status, state, input, context, title, title_source, mode, model,
          phase, round_number, message_count, total_tokens, total_cost, tags, metadata, created_at, updated_at,
          last_activity_at, ended_at, deleted_at
        )
        select
          ${sessionId}::uuid, case when not is_named_twice then external_id end, ${owner.userId}::text,
          ${owner.visitorHash}::text, kind, status, state, input, context, title,
          case when title is not null then 'client' end, mode, model, phase, round_number, ${messages.length}::int,
          (select coalesce(sum(total_tokens), 0) from message), total_cost_usd, tags,
          case when is_named_twice then jsonb_build_object('external_id', external_id) || metadata else metadata end,
          least(created_at, now()), least(updated_at, now()), least(last_activity_at, now()),
          case when ended_at is not null then least(ended_at, now()) end,
          case when status = 'deleted' then least(coalesce(deleted_at, now()), now()) end
        from incoming
        on conflict (id) do nothing
        returning id
      ), stored as (
        insert into chat_messages (
          id, session_id, owner, seq, parent_id, role, status, content, parts, agent_id, model, client_message_id,
          retrieved_docs, reranker_used, input_tokens, output_tokens, total_tokens, latency_ms, ttft_ms, finish_reason,
          error, metadata, created_at, completed_at
        )
        select
          message.id, session.id, ${owner.key}, seq, parent_id, role, status, content, parts, agent_id, model,
          client_message_id, retrieved_docs, reranker_used, input_tokens, output_tokens, total_tokens, latency_ms,
          ttft_ms, finish_reason, error, metadata, least(created_at, now()),
          case when completed_at is not null then least(completed_at, now()) end
        from session, message
      ), opinion as (
        insert into feedback (message_id, rating, comment, created_at, updated_at)
        select
          message.id, (feedback ->> 'rating')::smallint, feedback ->> 'comment',
          least((feedback ->> 'created_at')::timestamptz, now()), least((feedback ->> 'updated_at')::timestamptz, now())
        from session, message where feedback is not null
      ), document as (
        insert into artifacts (session_id, name, version, content_type, body, created_at)
        select session.id, name, version, content_type, body, least(created_at, now())
        from session, jsonb_to_recordset(${JSON.stringify(artifacts)}::jsonb) as a (
          name text, version int, content_type text, body text, created_at timestamptz
        )
      )
      select
        exists (select 1 from session) as made,
        (select owner = ${owner.key} from chat_sessions where id = ${sessionId}::uuid) as mine`)
    if (row?.made === true) return 'made'
    if (row?.mine == null) return 'unclear'
    return row.mine ? 'mine' : 'taken'
  }

  async function importOne(owner: Owner, conversation: Conversation): Promise<Imported> {
    const { session, messages } = conversation
    const source_id = session.id.toLowerCase()
    for (let attempt = 1, place = 0; attempt <= attemptsMax; attempt += 1) {
      const id = uuidv5(`${source_id} ${place} ${owner.key}`, namespace)
      try {
        const outcome = await insert(owner, conversation, id)
        if (outcome === 'made') changes.changed(id)
        if (outcome === 'made' || outcome === 'mine') {
          return { id, source_id, messages: messages.length, existing: outcome === 'mine' }
        }
        // Else the same file is being imported at this moment: the next look sees it.
        if (outcome === 'taken') place += 1
      } catch (error) {
        // Another session was given the external id since the statement began: the next one sees it.
        if (!(error instanceof DbError) || error.sqlstate !== uniqueViolation) throw error
      }
    }
    throw new Problem('internal', 'The session could not be placed.')
  }

  return {
    /**
     * Stores what has been checked, one after the other.
     * @throws Problem `db_unavailable` when the outcome is unknown: the same file again makes what is missing
     */
    async importAll(owner: Owner, conversations: readonly Conversation[]): Promise<Imported[]> {
      const imported: Imported[] = []
      for (const conversation of conversations) imported.push(await importOne(owner, conversation))
      return imported
    },
  }
}

/** The reply under way was interrupted where the file was written, and so was what the session was doing. */
function statusOf({ status, deleted_at }: ExportedSession): ExportedSession['status'] {
  if (deleted_at !== null) return 'deleted'
  return status === 'running' ? 'failed' : status
}

/** Messages under ids of their own, numbered densely; each follows one before it, or none. */
function placeMessages(messages: readonly ExportedMessage[], sessionId: string) {
  const places = new Map<string, string>()
  return messages.map((message, index) => {
    const sourceId = message.id.toLowerCase()
    const parent_id = message.parent_id === null ? null : (places.get(message.parent_id.toLowerCase()) ?? null)
    const id = uuidv5(sourceId, sessionId)
    places.set(sourceId, id)
    const status = message.status === 'streaming' ? 'interrupted' : message.status
    return { ...message, id, seq: index + 1, parent_id, status }
  })
}
