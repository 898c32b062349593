/** What a model is told of a session before it answers: the branch that the new message is on. */
import { type Db, exactText } from '../db/db.ts'
import { sql } from '../db/drizzle.ts'

/** One earlier message, as context for a model. */
export interface HistoryMessage {
  readonly role: 'system' | 'user' | 'assistant'
  readonly content: string
}

/**
 * What goes upstream as context: the messages on the way from `messageId` back to the session's beginning, that one
 * included, oldest first and `messagesMax` at most. Replies of which nothing was stored are left out.
 */
export async function readHistory(db: Db, messageId: string, messagesMax: number): Promise<HistoryMessage[]> {
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
}
