/**
 * A conversation that comes along with its first message here, because its sender keeps it itself: what it may hold, and how it
 * becomes the first messages of a session. It is written by the statement that makes the session (accept.ts), or not at all:
 * where there is a session, what is stored is what was said.
 */
import { v7 as uuidv7 } from 'uuid'
import { type SQL, sql } from '../db/drizzle.ts'
import { Problem } from '../errors.ts'
import { limitJson } from '../http/text.ts'
import { contentOf, type Part } from '../log/event.ts'

/**
 * A message that was said elsewhere, as it is stored. Parts of a `tool` message are the answers to the calls of the message
 * before it, all of them in one message: tool calls with `output` or `error`.
 */
export interface BroughtMessage {
  readonly role: 'system' | 'user' | 'assistant' | 'tool'
  readonly parts: readonly Part[]
}

/** One that is to be written. */
export interface PlacedMessage extends BroughtMessage {
  readonly id: string
  readonly parent_id: string | null
  readonly content: string
}

export const broughtMessagesMax = 2000
/** Of all of them together, as JSON. */
export const broughtBytesMax = 1024 * 1024

/** @throws Problem `too_large` */
export function checkBrought(messages: readonly BroughtMessage[]): void {
  if (messages.length > broughtMessagesMax) {
    throw new Problem('too_large', `A conversation may come with ${broughtMessagesMax} messages at most.`)
  }
  limitJson('The messages before the new one', messages, broughtBytesMax)
}

/** Each behind the one before it. */
export function placeBrought(messages: readonly BroughtMessage[]): readonly PlacedMessage[] {
  const placed: PlacedMessage[] = []
  for (const { role, parts } of messages) {
    placed.push({ id: uuidv7(), parent_id: placed.at(-1)?.id ?? null, role, content: contentOf(parts), parts })
  }
  return placed
}

/**
 * A part of a `with`: the first messages of a session that is made by this statement. They have no owner, and so are not
 * searched: they were said elsewhere, some of them with each request, and the index takes longer for them than all the rest.
 */
export const writeBrought = (brought: readonly PlacedMessage[]): SQL => sql` brought as (
        insert into chat_messages (id, session_id, seq, parent_id, role, content, parts, status, completed_at)
        select
          said.id, session.id, said.place, said.parent_id, said.role, said.content, said.parts, 'completed', now()
        from session, request, rows from (
          jsonb_to_recordset(${JSON.stringify(brought)}::jsonb)
          as (id uuid, parent_id uuid, role text, content text, parts jsonb)
        ) with ordinality as said (id, parent_id, role, content, parts, place)
        where request.version is null
      ),`
