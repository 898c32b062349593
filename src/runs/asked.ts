/**
 * What can be asked of a session, and what each means in rows:
 * - a message: a new user message behind the session's newest one, or behind the `parent_id` that is named, and a reply;
 * - an edit: a sibling of a user message, with other words, and a reply. A sibling of the first one has no parent;
 * - a regenerate: one more reply to a user message that is there;
 * - a start: the session's own `input` as its message; the run is its background run.
 * All four are accepted by the same statement (accept.ts), so ids, order, limits, keys and `on_busy` mean the same for each.
 *
 * What stands behind the id of a message (its session, its role, what it follows) never changes, so it is read here, before
 * that statement: if the session is gone, deleted or another owner's by then, the statement writes nothing.
 */
import { createHash } from 'node:crypto'
import { type Db, exactText } from '../db/db.ts'
import { sql } from '../db/drizzle.ts'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import { cleanJson, limitJson } from '../http/text.ts'
import { parentOf } from '../sessions/messages.ts'
import { metadataBytesMax } from '../sessions/model.ts'
import type { BranchBody, ChatBody, EditBody, StartBody } from './model.ts'

export type Asked =
  | ChatBody
  | (EditBody & { readonly edit: string })
  | (BranchBody & { readonly regenerate: string })
  | (StartBody & { readonly start: string })

/** What is to be written. */
export interface Plan {
  readonly sessionId: string
  /** A message makes its session when there is none; nothing else does. */
  readonly sessionExists: boolean
  readonly kind: 'chat' | 'background'
  /** Text of the new user message; undefined when there is none, because one that is there is answered once more. */
  readonly message: string | undefined
  /** That one. */
  readonly answered: string | undefined
  /** What is to be answered, new or not. */
  readonly text: string
  /** What the new message follows; null is nothing, undefined the session's newest message. */
  readonly parentId: string | null | undefined
}

/** All that a request may say besides what it is; a field that its route does not know is never there. */
export type Wishes = Partial<Omit<ChatBody, 'message' | 'session_id' | 'parent_id'>>

/** @throws Problem `invalid_request` `too_large` */
export function cleanAsked<T extends Asked>(raw: T): T {
  const asked = cleanJson(raw)
  if ('message' in asked && asked.message.trim() === '') throw new Problem('invalid_request', 'message is empty.')
  limitJson('metadata', (asked as Wishes).metadata, metadataBytesMax)
  return asked
}

/**
 * What makes two requests the same: all that is asked of the model and stored. How the reply is to be delivered may
 * differ, and so may the session of a message: a client that did not know it yet may know it at the repeat. That of a
 * message may never change, because processes of two versions answer side by side during a deploy.
 */
export function hashAsked(asked: Asked): string {
  return createHash('sha256')
    .update(JSON.stringify(identityOf(asked)))
    .digest('hex')
}

function identityOf(asked: Asked): readonly unknown[] {
  const { mode, model, agent_id, metadata } = asked as Wishes
  if ('edit' in asked) return ['edit', asked.edit.toLowerCase(), asked.message, mode, model, agent_id, metadata]
  if ('regenerate' in asked) return ['regenerate', asked.regenerate.toLowerCase(), mode, model, agent_id, metadata]
  if ('start' in asked) return ['start', asked.start.toLowerCase(), mode, model, agent_id]
  return [asked.message, mode, model, agent_id, asked.parent_id, metadata]
}

/** @throws Problem `not_found`; `invalid_request` when this cannot be asked of that message or session; `db_unavailable` */
export async function planOf(db: Db, owner: Owner, asked: Asked, newSessionId: string): Promise<Plan> {
  if ('start' in asked) return planStart(db, owner, asked.start)
  if ('edit' in asked) return planEdit(await readTarget(db, owner, asked.edit), asked.message)
  if ('regenerate' in asked) return planRegenerate(await readTarget(db, owner, asked.regenerate))
  return {
    sessionId: asked.session_id?.toLowerCase() ?? newSessionId,
    sessionExists: false,
    kind: 'chat',
    message: asked.message,
    answered: undefined,
    text: asked.message,
    parentId: asked.parent_id,
  }
}

interface Target {
  readonly id: string
  readonly session_id: string
  readonly role: string
  readonly parent_id: string | null
  readonly parent_role: string | null
  /** Of the user: its own words, or those that it answers. */
  readonly text: string
}

async function readTarget(db: Db, owner: Owner, messageId: string): Promise<Target> {
  const [target] = await db.rows<Target>(sql`
    select
      m.id, m.session_id, m.role, m.parent_id, parent.role as parent_role,
      ${exactText(sql`case when m.role = 'user' then m.content else coalesce(parent.content, '') end`)} as text
    from (
      select m.id, m.session_id, m.role, m.content, ${parentOf} as parent_id from chat_messages m where m.id = ${messageId}::uuid
    ) m
    join chat_sessions s on s.id = m.session_id
    left join chat_messages parent on parent.id = m.parent_id and parent.session_id = m.session_id
    where s.owner = ${owner.key} and s.deleted_at is null`)
  if (target === undefined) throw new Problem('not_found')
  return target
}

function planEdit({ session_id, role, parent_id }: Target, message: string): Plan {
  if (role !== 'user') throw new Problem('invalid_request', 'Only a message of the user can be edited.')
  return {
    sessionId: session_id,
    sessionExists: true,
    kind: 'chat',
    message,
    answered: undefined,
    text: message,
    parentId: parent_id,
  }
}

function planRegenerate({ id, session_id, role, parent_id, parent_role, text }: Target): Plan {
  const answered = role === 'user' ? id : role === 'assistant' && parent_role === 'user' ? parent_id : null
  if (answered === null) throw new Problem('invalid_request', 'There is no message of the user that this one answers.')
  return {
    sessionId: session_id,
    sessionExists: true,
    kind: 'chat',
    message: undefined,
    answered,
    text,
    parentId: null,
  }
}

async function planStart(db: Db, owner: Owner, sessionId: string): Promise<Plan> {
  const [session] = await db.rows<{ id: string; input: string | null }>(sql`
    select id, ${exactText(sql`input`)} as input from chat_sessions
    where id = ${sessionId}::uuid and owner = ${owner.key} and deleted_at is null`)
  if (session === undefined) throw new Problem('not_found')
  const { id, input } = session
  if (input === null || input.trim() === '')
    throw new Problem('invalid_request', 'The session has no input to start from.')
  return {
    sessionId: id,
    sessionExists: true,
    kind: 'background',
    message: input,
    answered: undefined,
    text: input,
    parentId: undefined,
  }
}
