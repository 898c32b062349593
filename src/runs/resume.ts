/**
 * What is looked up for a client that names a session and its messages by ids of its own, and comes back to them: which
 * session and which message it means, which run it has to be shown, and what that run's reply goes on from.
 *
 * Everything here is read, in one statement each, with the owner in its condition. What changes between two of them is
 * decided by the statement that accepts (accept.ts).
 */
import { type Db, exactText } from '../db/db.ts'
import { and, desc, eq, sql } from '../db/drizzle.ts'
import { chatRuns } from '../db/schema.ts'
import type { Owner } from '../http/identity.ts'
import type { Part } from '../log/event.ts'
import { findSessionId, type SessionName } from '../sessions/store.ts'
import type { RunRecord } from './model.ts'
import { runColumns } from './store.ts'

/** A message of the session that a client means. */
export interface NamedMessage {
  readonly id: string
  readonly role: 'system' | 'user' | 'assistant' | 'tool'
  /** Its words. */
  readonly text: string
  /** The idempotency key under which it came. */
  readonly key: string | null
}

/** A reply that ended with calls of the client's tools, and what the client has answered to them. */
export interface Round {
  readonly id: string
  readonly parts: readonly Part[]
  readonly answers: readonly Part[]
}

/** How long after its end a run is still shown to who asks for what is going on. */
const endedSeconds = 30
/** Replies that were answered and went on, in a row. */
const roundsMax = 100
/** Messages of a session among which one is looked for by a name. */
const lookBackMax = 1000

export type Resume = ReturnType<typeof createResume>

export function createResume(db: Db) {
  return {
    /** @returns undefined when the owner has no such session */
    findSession: (owner: Owner, name: SessionName): Promise<string | undefined> => findSessionId(db, owner, name),

    /**
     * The run of a session that is to be shown to who comes back: the newest that goes on or waits, else the newest of all
     * if it has ended less than {@link endedSeconds} ago, by the clock of the database.
     */
    async findShown(owner: Owner, sessionId: string): Promise<RunRecord | undefined> {
      const isActive = sql`${chatRuns.status} in ('queued', 'running')`
      const isRecent = sql`${chatRuns.endedAt} > now() - ${endedSeconds}::int * interval '1 second'`
      const [run] = await db.run((orm) =>
        orm
          .select({ ...runColumns, is_shown: sql<boolean>`${isActive} or ${isRecent}` })
          .from(chatRuns)
          .where(and(eq(chatRuns.sessionId, sessionId), eq(chatRuns.owner, owner.key)))
          .orderBy(sql`(${isActive}) desc`, desc(chatRuns.createdAt), desc(chatRuns.id))
          .limit(1),
      )
      if (run === undefined) return undefined
      const { is_shown, ...shown } = run
      return is_shown === true ? shown : undefined
    },

    /** The newest run that answers a message of a session. */
    async findAnswering(owner: Owner, sessionId: string, messageId: string): Promise<RunRecord | undefined> {
      const [run] = await db.run((orm) =>
        orm
          .select(runColumns)
          .from(chatRuns)
          .where(
            and(
              eq(chatRuns.sessionId, sessionId),
              eq(chatRuns.userMessageId, messageId),
              eq(chatRuns.owner, owner.key),
            ),
          )
          .orderBy(desc(chatRuns.createdAt), desc(chatRuns.id))
          .limit(1),
      )
      return run
    },

    /**
     * The newest message of a session that has this id, or was given it by who sent it: of one that was edited, what stands
     * in its place now.
     * @param member of a message's metadata that can hold the name
     */
    async findMessage(
      owner: Owner,
      sessionId: string,
      name: string,
      member: string,
    ): Promise<NamedMessage | undefined> {
      const [message] = await db.rows<NamedMessage>(sql`
        select m.id, m.role, ${exactText(sql`m.content`)} as text, m.client_message_id as key
        from chat_messages m join chat_sessions s on s.id = m.session_id
        where m.session_id = ${sessionId}::uuid and s.owner = ${owner.key} and s.deleted_at is null
          and m.seq > s.message_count - ${lookBackMax}::int
          and (
            m.client_message_id = ${name} or m.metadata ->> ${member}::text = ${name}
            or m.id::text = ${name.toLowerCase()}
          )
        order by m.seq desc limit 1`)
      return message
    },

    /** The replies that a run's reply goes on from, oldest first: none when it answers a message of the user. */
    async readRounds(owner: Owner, run: Pick<RunRecord, 'session_id' | 'user_message_id'>): Promise<readonly Round[]> {
      const rows = await db.rows<{ id: string; role: NamedMessage['role']; parts: readonly Part[] }>(sql`
        with recursive way as (
          select m.id, m.session_id, m.parent_id, m.role, m.parts, 1 as depth
          from chat_messages m join chat_sessions s on s.id = m.session_id
          where m.id = ${run.user_message_id}::uuid and m.session_id = ${run.session_id}::uuid and m.role = 'tool'
            and s.owner = ${owner.key}
          union all
          select m.id, m.session_id, m.parent_id, m.role, m.parts, way.depth + 1
          from way join chat_messages m on m.id = way.parent_id and m.session_id = way.session_id
          where way.depth < ${2 * roundsMax}::int and m.role in ('tool', 'assistant')
        )
        select id, role, parts from way order by depth desc`)
      return rows.flatMap(({ id, role, parts }, index) =>
        role === 'assistant' ? [{ id, parts, answers: rows[index + 1]?.parts ?? [] }] : [],
      )
    },
  }
}
