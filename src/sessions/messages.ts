/**
 * Messages in the database, for whoever owns their session. They form a tree: each names the one it follows, and those of
 * one parent are branches. What the model is told, and what `branch=active` lists, is one way through it, from the newest
 * message (the highest `seq`) to the beginning.
 */
import { type Db, exactText } from '../db/db.ts'
import { and, desc, eq, type SQL, type SQLWrapper, sql } from '../db/drizzle.ts'
import { chatMessages, chatSessions, feedback } from '../db/schema.ts'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import { type Page, readMessageCursor, toPage } from './cursor.ts'
import { type ListMessagesQuery, type Message, pageRowsDefault } from './model.ts'
import { createSessionStore, isoTime, mine } from './store.ts'

export type MessageStore = ReturnType<typeof createMessageStore>

export interface Asking {
  readonly metadata: Message['metadata']
  readonly previous_run_id: string | null
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
  // Of the reply, which its run has made, and not of the message that it answers. See feedback for why this is no join. The
  // names are written out because the run has an id of its own.
  cost_usd: sql<string | null>`(
    select made.cost::text from chat_runs made
    where made.id = chat_messages.run_id and made.message_id = chat_messages.id
  )`,
  latency_ms: chatMessages.latencyMs,
  ttft_ms: chatMessages.ttftMs,
  finish_reason: chatMessages.finishReason,
  error: sql<Message['error']>`${chatMessages.error}`,
  metadata: sql<Message['metadata']>`${chatMessages.metadata}`,
  // Not a join, which every query with these columns would have to make: it costs the same, one look by primary key.
  feedback: sql<Message['feedback']>`(
    select json_build_object('rating', opinion.rating, 'comment', opinion.comment)
    from ${feedback} opinion where opinion.message_id = ${chatMessages.id}
  )`,
  created_at: isoTime(chatMessages.createdAt),
  completed_at: isoTime(chatMessages.completedAt) as SQL<string | null>,
}

/** The message before `m`, an alias of chat_messages. */
export const messageBefore = sql`(
  select before.id from chat_messages before
  where before.session_id = m.session_id and before.seq < m.seq order by before.seq desc limit 1
)`

/**
 * What `m`, an alias of chat_messages, follows. While its run is queued, that may not be written down yet; it is then the
 * message before it, as it will be when the run leaves the queue.
 */
export const parentOf = sql`coalesce(m.parent_id, (
  select before.id from chat_runs pending
  join chat_messages before on before.session_id = m.session_id and before.seq < m.seq
  where m.role = 'user' and pending.id = m.run_id and pending.parent_pending
  order by before.seq desc limit 1
))`

/**
 * Ids of a page of the messages on the way from a session's newest one to its beginning. The seq falls on it, so it has an
 * end. Newest first, it is walked no further than the page goes; oldest first, all of it (3 µs a message).
 * @param after the condition on `seq` behind the cursor
 */
const activeBranch = (sessionId: string, after: SQL, isFalling: boolean, rowsMax: number) => sql`
  with recursive way as (
    (
      select m.id, m.seq, ${parentOf} as parent_id from chat_messages m
      where m.session_id = ${sessionId}::uuid order by m.seq desc limit 1
    )
    union all
    select m.id, m.seq, ${parentOf} from way
    join chat_messages m on m.id = way.parent_id and m.session_id = ${sessionId}::uuid and m.seq < way.seq
  )
  select id from way where ${after} ${isFalling ? sql`` : sql`order by seq`} limit ${rowsMax}::int`

export function createMessageStore(db: Db) {
  const { getSession } = createSessionStore(db)

  return {
    /**
     * Oldest first, or newest first with `order=desc`. The cursor is the seq of the last message given out, from which it
     * goes on in the order that is asked for. With `branch=active` only what is on that way at the moment: when another
     * branch becomes the active one between two pages, the second is of that one.
     * The content of a running message is what its last checkpoint holds, which may be nothing; whoever knows more puts it
     * in its place.
     */
    async listMessages(owner: Owner, sessionId: string, query: ListMessagesQuery): Promise<Page<Message>> {
      const limit = query.limit ?? pageRowsDefault
      const isFalling = query.order === 'desc'
      const place = query.cursor === undefined ? undefined : readMessageCursor(query.cursor)
      const afterPlace = (seq: SQLWrapper) =>
        place === undefined ? sql`true` : isFalling ? sql`${seq} < ${place}::int` : sql`${seq} > ${place}::int`
      const way = activeBranch(sessionId, afterPlace(sql`seq`), isFalling, limit + 1)
      const onBranch = query.branch === 'active' ? sql`${chatMessages.id} in (${way})` : undefined
      const rows: Message[] = await db.run((orm) =>
        orm
          .select(messageColumns)
          .from(chatMessages)
          .innerJoin(chatSessions, eq(chatSessions.id, chatMessages.sessionId))
          .where(and(eq(chatMessages.sessionId, sessionId), afterPlace(chatMessages.seq), onBranch, mine(owner)))
          .orderBy(isFalling ? desc(chatMessages.seq) : chatMessages.seq)
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

    /**
     * What a message that was answered says of its request: its metadata, and the run that made the reply which it follows.
     * @throws Problem `not_found`
     */
    async readAsking(owner: Owner, id: string): Promise<Asking> {
      const [asking] = await db.rows<Asking>(sql`
        select m.metadata, reply.run_id as previous_run_id
        from chat_messages m
        join chat_sessions s on s.id = m.session_id
        left join chat_messages reply
          on reply.id = ${parentOf} and reply.session_id = m.session_id and reply.role = 'assistant'
        where m.id = ${id}::uuid and s.owner = ${owner.key} and s.deleted_at is null`)
      if (asking === undefined) throw new Problem('not_found')
      return asking
    },

    /** For the gateway itself, which follows a run after its owner was checked. */
    async readReply(id: string): Promise<Message | undefined> {
      const [message] = await db.run((orm) =>
        orm.select(messageColumns).from(chatMessages).where(eq(chatMessages.id, id)),
      )
      return message
    },
  }
}
