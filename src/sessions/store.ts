/**
 * Sessions and messages in the database. The owner is a condition of every statement, never a check before it, so
 * there is no moment at which somebody else's row could slip through; what is not yours is simply not found.
 */
import { v7 as uuidv7 } from 'uuid'
import { type Db, exactText } from '../db/db.ts'
import { and, desc, eq, isNull, type SQL, sql } from '../db/drizzle.ts'
import { chatMessages, chatSessions } from '../db/schema.ts'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import type { CreateSessionBody, ListMessagesQuery, ListSessionsQuery, Message, Session } from './model.ts'

export interface Page<Row> {
  readonly data: Row[]
  readonly next_cursor: string | null
}

/** One earlier message, as context for a model. */
export interface HistoryMessage {
  readonly role: 'system' | 'user' | 'assistant'
  readonly content: string
}

export type SessionStore = ReturnType<typeof createSessionStore>

/** A timestamp as ISO 8601 in UTC with the microseconds that a JavaScript Date would drop. */
export const isoTime = (column: unknown): SQL<string> =>
  sql<string>`to_char(${column} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')`

export const sessionColumns = {
  id: chatSessions.id,
  external_id: chatSessions.externalId,
  user_id: chatSessions.userId,
  is_anonymous: chatSessions.isAnonymous,
  kind: chatSessions.kind,
  status: sql<Session['status']>`${chatSessions.status}`,
  title: chatSessions.title,
  mode: sql<Session['mode']>`${chatSessions.mode}`,
  model: chatSessions.model,
  phase: chatSessions.phase,
  round_number: chatSessions.roundNumber,
  input: chatSessions.input,
  context: sql<unknown>`${chatSessions.context}`,
  state: sql<unknown>`${chatSessions.state}`,
  message_count: chatSessions.messageCount,
  total_tokens: sql<number>`${chatSessions.totalTokens}::float8`,
  total_cost_usd: sql<string>`${chatSessions.totalCost}::text`,
  active_run_id: chatSessions.activeRunId,
  tags: chatSessions.tags,
  metadata: sql<Session['metadata']>`${chatSessions.metadata}`,
  version: chatSessions.version,
  archived: chatSessions.archived,
  created_at: isoTime(chatSessions.createdAt),
  updated_at: isoTime(chatSessions.updatedAt),
  last_activity_at: isoTime(chatSessions.lastActivityAt),
  ended_at: isoTime(chatSessions.endedAt) as SQL<string | null>,
}

export const messageColumns = {
  id: chatMessages.id,
  session_id: chatMessages.sessionId,
  seq: chatMessages.seq,
  parent_id: chatMessages.parentId,
  run_id: chatMessages.runId,
  role: sql<Message['role']>`${chatMessages.role}`,
  content: exactText(chatMessages.content),
  parts: sql<Message['parts']>`${chatMessages.parts}`,
  status: sql<Message['status']>`${chatMessages.status}`,
  agent_id: chatMessages.agentId,
  model: chatMessages.model,
  client_message_id: chatMessages.clientMessageId,
  retrieved_docs: sql<unknown>`${chatMessages.retrievedDocs}`,
  reranker_used: chatMessages.rerankerUsed,
  input_tokens: chatMessages.inputTokens,
  output_tokens: chatMessages.outputTokens,
  total_tokens: chatMessages.totalTokens,
  latency_ms: chatMessages.latencyMs,
  ttft_ms: chatMessages.ttftMs,
  finish_reason: chatMessages.finishReason,
  error: sql<Message['error']>`${chatMessages.error}`,
  metadata: sql<Message['metadata']>`${chatMessages.metadata}`,
  created_at: isoTime(chatMessages.createdAt),
  completed_at: isoTime(chatMessages.completedAt) as SQL<string | null>,
}

/** The message before `m`, an alias of chat_messages. */
export const messageBefore = sql`(
  select before.id from chat_messages before
  where before.session_id = m.session_id and before.seq < m.seq order by before.seq desc limit 1
)`

/** The condition that stands in every statement about a session. */
const mine = (owner: Owner) => and(eq(chatSessions.owner, owner.key), isNull(chatSessions.deletedAt))

export function createSessionStore(db: Db) {
  async function findSession(owner: Owner, id: string): Promise<Session | undefined> {
    const [session] = await db.run((orm) =>
      orm
        .select(sessionColumns)
        .from(chatSessions)
        .where(and(eq(chatSessions.id, id), mine(owner))),
    )
    return session
  }

  async function getSession(owner: Owner, id: string): Promise<Session> {
    const session = await findSession(owner, id)
    if (session === undefined) throw new Problem('not_found')
    return session
  }

  return {
    getSession,

    /**
     * Makes a session, or finds the owner's own one with the same id or external id.
     * @throws Problem `not_found` when the id is somebody else's; `invalid_request` when the two ids name different sessions
     */
    async createSession(owner: Owner, body: CreateSessionBody): Promise<{ session: Session; created: boolean }> {
      const id = body.id?.toLowerCase() ?? uuidv7()
      const inserted = await db.run((orm) =>
        orm
          .insert(chatSessions)
          .values({
            id,
            externalId: body.external_id ?? null,
            userId: owner.userId,
            visitorHash: owner.visitorHash,
            kind: body.kind ?? 'chat',
            input: body.input ?? null,
            context: body.context ?? null,
            mode: body.mode ?? 'balanced',
            title: body.title ?? null,
            titleSource: body.title === undefined ? null : 'client',
            metadata: body.metadata ?? {},
          })
          .onConflictDoNothing()
          .returning({ id: chatSessions.id }),
      )
      if (inserted.length > 0) return { session: await getSession(owner, id), created: true }

      const byId = await findSession(owner, id)
      if (byId !== undefined) {
        if (body.external_id !== undefined && byId.external_id !== body.external_id) {
          throw new Problem('invalid_request', 'A session with this id exists, with another external_id.')
        }
        return { session: byId, created: false }
      }
      if (body.external_id === undefined) throw new Problem('not_found')
      const [byExternalId] = await db.run((orm) =>
        orm
          .select(sessionColumns)
          .from(chatSessions)
          .where(and(eq(chatSessions.externalId, body.external_id as string), mine(owner))),
      )
      if (byExternalId === undefined) throw new Problem('not_found')
      if (body.id !== undefined) {
        throw new Problem('invalid_request', 'A session with this external_id exists, with another id.')
      }
      return { session: byExternalId, created: false }
    },

    /** Newest activity first. The cursor is the place of the last row: its time to the microsecond, and its id. */
    async listSessions(owner: Owner, query: ListSessionsQuery): Promise<Page<Session>> {
      const limit = query.limit ?? 50
      const after = query.cursor === undefined ? undefined : readSessionCursor(query.cursor)
      const rows = await db.run((orm) =>
        orm
          .select(sessionColumns)
          .from(chatSessions)
          .where(
            and(
              mine(owner),
              query.status === undefined ? undefined : eq(chatSessions.status, query.status),
              query.kind === undefined ? undefined : eq(chatSessions.kind, query.kind),
              query.mode === undefined ? undefined : eq(chatSessions.mode, query.mode),
              query.tag === undefined ? undefined : sql`${chatSessions.tags} @> array[${query.tag}]`,
              query.from === undefined ? undefined : sql`${chatSessions.lastActivityAt} >= ${query.from}::timestamptz`,
              query.to === undefined ? undefined : sql`${chatSessions.lastActivityAt} < ${query.to}::timestamptz`,
              query.archived === undefined ? undefined : eq(chatSessions.archived, query.archived),
              after &&
                sql`(${chatSessions.lastActivityAt}, ${chatSessions.id}) < (${after.time}::timestamptz, ${after.id}::uuid)`,
            ),
          )
          .orderBy(desc(chatSessions.lastActivityAt), desc(chatSessions.id))
          .limit(limit + 1)
          .offset(query.offset ?? 0),
      )
      return toPage(rows, limit, (row) => [row.last_activity_at, row.id])
    },

    /**
     * Oldest first. The content of a running message is what its last checkpoint holds, which may be nothing; whoever
     * knows more puts it in its place.
     */
    async listMessages(owner: Owner, sessionId: string, query: ListMessagesQuery): Promise<Page<Message>> {
      const limit = query.limit ?? 50
      const after = query.cursor === undefined ? 0 : readMessageCursor(query.cursor)
      const rows: Message[] = await db.run((orm) =>
        orm
          .select(messageColumns)
          .from(chatMessages)
          .innerJoin(chatSessions, eq(chatSessions.id, chatMessages.sessionId))
          .where(and(eq(chatMessages.sessionId, sessionId), sql`${chatMessages.seq} > ${after}`, mine(owner)))
          .orderBy(chatMessages.seq)
          .limit(limit + 1),
      )
      if (rows.length === 0) await getSession(owner, sessionId)
      return toPage(rows, limit, (row) => [row.seq])
    },

    async getMessage(owner: Owner, id: string): Promise<Message> {
      const [message] = await db.run((orm) =>
        orm
          .select(messageColumns)
          .from(chatMessages)
          .innerJoin(chatSessions, eq(chatSessions.id, chatMessages.sessionId))
          .where(and(eq(chatMessages.id, id), mine(owner))),
      )
      if (message === undefined) throw new Problem('not_found')
      return message
    },

    /** For the gateway itself, which follows a run after its owner was checked. */
    async readReply(id: string): Promise<Message | undefined> {
      const [message] = await db.run((orm) =>
        orm.select(messageColumns).from(chatMessages).where(eq(chatMessages.id, id)),
      )
      return message
    },

    /**
     * What goes upstream as context: the messages on the way from `messageId` back to the session's beginning, that one
     * included, oldest first and `messagesMax` at most. Replies of which nothing was stored are left out.
     */
    async readHistory(messageId: string, messagesMax: number): Promise<HistoryMessage[]> {
      const rows = await db.rows<HistoryMessage>(sql`
        with recursive chain as (
          select id, parent_id, role, content, 1 as depth from chat_messages where id = ${messageId}::uuid
          union all
          select m.id, m.parent_id, m.role, m.content, chain.depth + 1
          from chain join chat_messages m on m.id = chain.parent_id
          where chain.depth < ${messagesMax}::int
        )
        select role, ${exactText(sql`content`)} as content from chain where content <> '' and role <> 'tool' order by depth desc`)
      // Providers want the user to speak first; a window that begins inside an exchange loses its first half anyway.
      const first = rows.findIndex((row) => row.role !== 'assistant')
      return rows.slice(Math.max(0, first))
    },
  }
}

function toPage<Row>(rows: Row[], limit: number, place: (row: Row) => unknown[]): Page<Row> {
  const data = rows.slice(0, limit)
  const last = data.at(-1)
  const next = rows.length > limit && last !== undefined
  return { data, next_cursor: next ? Buffer.from(JSON.stringify(place(last))).toString('base64url') : null }
}

function readSessionCursor(cursor: string): { time: string; id: string } {
  const [time, id] = readCursor(cursor)
  if (
    typeof time !== 'string' ||
    !/^\d{4,6}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/.test(time) ||
    typeof id !== 'string' ||
    !/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(id)
  ) {
    throw invalidCursor()
  }
  return { time, id }
}

function readMessageCursor(cursor: string): number {
  const [seq] = readCursor(cursor)
  if (typeof seq !== 'number' || !Number.isInteger(seq) || seq < 0 || seq > 2_147_483_647) throw invalidCursor()
  return seq
}

function readCursor(cursor: string): unknown[] {
  try {
    const place: unknown = JSON.parse(Buffer.from(cursor, 'base64url').toString('utf8'))
    return Array.isArray(place) ? place : []
  } catch {
    throw invalidCursor()
  }
}

const invalidCursor = () => new Problem('invalid_request', 'cursor must be the next_cursor of an earlier page.')
