/**
 * What a model is told of a session before it answers: the session's own context, and the branch that the new message is
 * on. A context is a JSON object that whoever made the session gave it; it goes before every reply of that session, as one
 * system message: a line that says what follows, and the object as JSON, in whatever order the database keeps its members.
 */
import { type Db, exactText } from '../db/db.ts'
import { sql } from '../db/drizzle.ts'

/** One earlier message, as context for a model. */
export interface HistoryMessage {
  readonly role: 'system' | 'user' | 'assistant'
  readonly content: string
}

/**
 * A context that is longer as JSON is left out. Above all that a session can be given through the API (16 KiB), so it
 * keeps only what somebody wrote by hand from going upstream, and being paid for, with each message.
 */
const contextUnitsMax = 64 * 1024
const contextLine = 'Context of this conversation, as JSON:'

interface Row {
  readonly role: HistoryMessage['role'] | 'context'
  readonly content: string
  readonly context: unknown
}

/**
 * What goes upstream as context: the messages on the way from `messageId` back to the session's beginning, that one
 * included, oldest first and `messagesMax` at most, behind the session's context. Replies of which nothing was stored are
 * left out.
 */
export async function readHistory(db: Db, messageId: string, messagesMax: number): Promise<HistoryMessage[]> {
  const rows = await db.rows<Row>(sql`
    with recursive chain as (
      select id, parent_id, role, content, 1 as depth from chat_messages where id = ${messageId}::uuid
      union all
      select m.id, m.parent_id, m.role, m.content, chain.depth + 1
      from chain join chat_messages m on m.id = chain.parent_id
      where chain.depth < ${messagesMax}::int
    )
    select role, ${exactText(sql`content`)} as content, null::jsonb as context, depth from chain
    where content <> '' and role <> 'tool'
    union all
    select 'context', ${exactText(sql`''::text`)}, s.context, 0
    from chat_messages m join chat_sessions s on s.id = m.session_id
    where m.id = ${messageId}::uuid and s.context is not null
    order by depth desc`)
  const messages = rows.flatMap(({ role, content }) => (role === 'context' ? [] : [{ role, content }]))
  // Providers want the user to speak first; a window that begins inside an exchange loses its first half anyway.
  const first = messages.findIndex(({ role }) => role !== 'assistant')
  return [...contextOf(rows.at(-1)), ...messages.slice(Math.max(0, first))]
}

function contextOf(row: Row | undefined): HistoryMessage[] {
  if (row?.role !== 'context' || row.context === null) return []
  const json = JSON.stringify(row.context)
  return json.length > contextUnitsMax ? [] : [{ role: 'system', content: `${contextLine}\n${json}` }]
}
