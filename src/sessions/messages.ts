/** Messages in the database, for whoever owns their session. */
import { type Db, exactText } from '../db/db.ts'
import { and, eq, type SQL, sql } from '../db/drizzle.ts'
import { chatMessages, chatSessions } from '../db/schema.ts'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import { type Page, readMessageCursor, toPage } from './cursor.ts'
import type { ListMessagesQuery, Message } from './model.ts'
import { createSessionStore, isoTime, mine } from './store.ts'

export type MessageStore = ReturnType<typeof createMessageStore>

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

export function createMessageStore(db: Db) {
  const { getSession } = createSessionStore(db)

  return {
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
  }
}
