/**
 * What can be asked of a session, and what each means in rows:
 * - a message: a new user message behind the session's newest one, or behind the `parent_id` that is named, and a reply;
 * - an edit: a sibling of a user message, with other words, and a reply. A sibling of the first one has no parent;
 * - a regenerate: one more reply to a user message that is there;
 * - a start: the session's own `input` as its message; the run is its background run;
 * - tool results: a message of role `tool` behind a reply that has ended with calls of the client's tools, which answers
 *   them all at once, and a reply to it, made as that one was.
 * All five are accepted by the same statement (accept.ts), so ids, order, limits, keys and `on_busy` mean the same for each.
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
import type { Mode, Part } from '../log/event.ts'
import { openCallsOf } from '../sessions/context.ts'
import { parentOf } from '../sessions/messages.ts'
import { externalIdUnitsMax, metadataBytesMax } from '../sessions/model.ts'
import { findSessionId, type SessionName } from '../sessions/store.ts'
import type { PlansByMode } from '../upstream/plan.ts'
import { type BroughtMessage, checkBrought, type PlacedMessage, placeBrought } from './brought.ts'
import {
  type BranchBody,
  type ChatBody,
  type EditBody,
  instructionsBytesMax,
  type RunRequest,
  type RunSettings,
  type StartBody,
  settingsBytesMax,
  type ToolResult,
  toolResultsBytesMax,
  toolsBytesMax,
} from './model.ts'

/** A message, with what only surfaces say that are not the native one. */
export type ChatAsked = ChatBody & {
  /** The name that its sender has for the session, in place of `session_id`. A session with it is made when there is none. */
  readonly external_id?: string
  /** Said to the model in front of the conversation, with this reply and those that go on from it. No message. */
  readonly instructions?: string
  /**
   * What was said before, of a sender who keeps the conversation itself. It becomes the first messages of the session when
   * this request makes it, and counts for nothing when there is one: then what is stored is what was said. With
   * `tool_results` the last of them is the reply whose calls they answer.
   */
  readonly before?: readonly BroughtMessage[]
  readonly settings?: RunSettings
  /** With `on_disconnect: stop`: how long nobody may be there. */
  readonly linger_ms?: number
  /**
   * A repeat by a client that has no key: a run of this owner with the same request is meant, if it is not older and there is
   * one that this client can have left; see accept.ts.
   */
  readonly repeats_within_ms?: number
}

export type Asked =
  | ChatAsked
  | (EditBody & { readonly edit: string })
  | (BranchBody & { readonly regenerate: string })
  | (StartBody & { readonly start: string })

/** What is to be written. */
export interface Plan {
  readonly sessionId: string
  /** A message makes its session when there is none; nothing else does. */
  readonly sessionExists: boolean
  /** Of a session that is to be made. Another request with the same name may be faster: then this plan is to be made anew. */
  readonly externalId?: string
  readonly kind: 'chat' | 'background'
  /** Text of the new message; undefined when there is none, because one that is there is answered once more. */
  readonly message: string | undefined
  /** Of a new message that answers tool calls; undefined of one of the user. */
  readonly toolParts?: readonly Part[]
  /** That one. */
  readonly answered: string | undefined
  /** What is to be answered, new or not. */
  readonly text: string
  /** What the new message follows; null is nothing, undefined the session's newest message. */
  readonly parentId: string | null | undefined
  /** The first messages of the session, if it is made now; the new message follows the last one. Absent when it was there. */
  readonly brought?: readonly PlacedMessage[]
  /** Where the request does not say so: what goes with the run. */
  readonly request?: Pick<RunRequest, 'agent' | 'tools' | 'tool_choice' | 'instructions' | 'settings' | 'messages_max'>
  /** Where the request names neither mode nor model: as the reply before was made. */
  readonly continued?: { readonly mode: Mode; readonly plans: PlansByMode }
}

/** All that a request may say besides what it is; a field that its route does not know is never there. */
export type Wishes = Partial<
  Omit<ChatAsked, 'message' | 'tool_results' | 'session_id' | 'external_id' | 'parent_id' | 'before'>
>

/** The session that a message names; what else can be asked names a message, and so its session. */
export function sessionNamed(asked: Asked): SessionName | undefined {
  const { session_id, external_id }: Partial<ChatAsked> = asked
  if (external_id !== undefined) return { external_id }
  return session_id === undefined ? undefined : { session_id: session_id.toLowerCase() }
}

/** @throws Problem `invalid_request` `too_large` */
export function cleanAsked<T extends Asked>(raw: T): T {
  const asked = cleanJson(raw)
  const { message, tool_results, session_id, external_id }: Partial<ChatAsked> = asked
  if (message !== undefined && message.trim() === '') throw new Problem('invalid_request', 'message is empty.')
  if (!('regenerate' in asked || 'start' in asked) && (message === undefined) === (tool_results === undefined)) {
    throw new Problem('invalid_request', 'One of message and tool_results is required.')
  }
  if (session_id !== undefined && external_id !== undefined) {
    throw new Problem('invalid_request', 'A session is named by its id or by its external_id, not by both.')
  }
  if (external_id !== undefined && (external_id === '' || external_id.length > externalIdUnitsMax)) {
    throw new Problem('invalid_request', `external_id must have 1 to ${externalIdUnitsMax} characters.`)
  }
  if (tool_results !== undefined) checkToolResults(asked as ChatAsked, tool_results)
  checkBeside(asked as Partial<ChatAsked>)
  const { metadata, tools = [] }: Wishes = asked
  limitJson('metadata', metadata, metadataBytesMax)
  limitJson('tools', tools, toolsBytesMax)
  if (new Set(tools.map(({ name }) => name)).size < tools.length) {
    throw new Problem('invalid_request', 'tools: two of them have the same name.')
  }
  return asked
}

function checkBeside({ before = [], instructions, settings }: Partial<ChatAsked>): void {
  limitJson('instructions', instructions, instructionsBytesMax)
  limitJson('settings', settings, settingsBytesMax)
  checkBrought(before)
}

function checkToolResults({ session_id, external_id, before }: ChatAsked, results: readonly ToolResult[]): void {
  limitJson('tool_results', results, toolResultsBytesMax)
  if ((session_id ?? external_id ?? before) === undefined) {
    throw new Problem('invalid_request', 'session_id is required with tool_results.')
  }
  if (results.some(({ output, error }) => (output === undefined) === (error === undefined))) {
    throw new Problem('invalid_request', 'tool_results: each has either output or error.')
  }
  if (new Set(results.map(({ call_id }) => call_id)).size < results.length) {
    throw new Problem('invalid_request', 'tool_results: two of them answer the same call.')
  }
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
  const { tools, tool_choice, instructions, before, settings } = asked as Partial<ChatAsked>
  return [...kindOf(asked), ...whatIsSaid({ tools, tool_choice }), ...whatIsSaid({ instructions, before, settings })]
}

const whatIsSaid = (members: object): readonly object[] =>
  Object.values(members).every((value) => value === undefined) ? [] : [members]

function kindOf(asked: Asked): readonly unknown[] {
  const { mode, model, agent_id, metadata } = asked as Wishes
  if ('edit' in asked) return ['edit', asked.edit.toLowerCase(), asked.message, mode, model, agent_id, metadata]
  if ('regenerate' in asked) return ['regenerate', asked.regenerate.toLowerCase(), mode, model, agent_id, metadata]
  if ('start' in asked) return ['start', asked.start.toLowerCase(), mode, model, agent_id]
  const { message, tool_results, parent_id } = asked
  if (tool_results !== undefined) return ['tool_results', tool_results, mode, model, agent_id, parent_id, metadata]
  return [message, mode, model, agent_id, parent_id, metadata]
}

/**
 * @throws Problem `not_found`; `invalid_request` when this cannot be asked of that message or session; `session_busy` when
 * the calls that are answered are still being made; `db_unavailable`
 */
export async function planOf(db: Db, owner: Owner, asked: Asked, newSessionId: string): Promise<Plan> {
  if ('start' in asked) return planStart(db, owner, asked.start)
  if ('edit' in asked) return planEdit(await readTarget(db, owner, asked.edit), asked.message)
  if ('regenerate' in asked) return planRegenerate(await readTarget(db, owner, asked.regenerate))
  const plan = await planChat(db, owner, asked, newSessionId)
  if (asked.before === undefined) return plan
  // What its sender has sent itself is not left out for its number.
  return { ...plan, request: { ...plan.request, messages_max: asked.before.length + 1 } }
}

async function planChat(db: Db, owner: Owner, asked: ChatAsked, newSessionId: string): Promise<Plan> {
  const { message = '', tool_results, session_id, external_id, parent_id, before } = asked
  const name = sessionNamed(asked)
  // By its id it is found by the statement that accepts: what has to be known here is whether what comes along is needed.
  const isAsked =
    external_id !== undefined || (before !== undefined && (before.length > 0 || tool_results !== undefined))
  const found = isAsked && name !== undefined ? await findSessionId(db, owner, name) : undefined
  const sessionId = found ?? session_id ?? newSessionId
  if (tool_results !== undefined && (before === undefined || found !== undefined)) {
    return planToolResults(db, owner, sessionId, parent_id, tool_results)
  }
  const called = before?.at(-1)
  const toolParts =
    tool_results && toAnswers(called?.role === 'assistant' ? openCallsOf(called.parts) : [], tool_results)
  return {
    sessionId: sessionId.toLowerCase(),
    sessionExists: found !== undefined,
    ...(external_id !== undefined && found === undefined && { externalId: external_id }),
    kind: 'chat',
    message,
    ...(toolParts && { toolParts }),
    answered: undefined,
    text: toolParts === undefined ? message : JSON.stringify(toolParts),
    parentId: parent_id,
    ...(before && found === undefined && { brought: placeBrought(before) }),
  }
}

interface Target {
  readonly id: string
  readonly session_id: string
  readonly role: string
  readonly parent_id: string | null
  readonly parent_role: string | null
  /** What is to be answered: its own words, or those that it answers. */
  readonly text: string
  /** Of the run that it came with. */
  readonly request: RunRequest | null
}

/** What tools have answered stands in the parts. @param message an alias of chat_messages */
const wordsOf = (message: 'm' | 'parent') => sql.raw(`coalesce(nullif(${message}.content, ''), ${message}.parts::text)`)

async function readTarget(db: Db, owner: Owner, messageId: string): Promise<Target> {
  const [target] = await db.rows<Target>(sql`
    select
      m.id, m.session_id, m.role, m.parent_id, parent.role as parent_role,
      ${exactText(sql`case when m.role in ('user', 'tool') then ${wordsOf('m')} else coalesce(${wordsOf('parent')}, '') end`)} as text,
      run.request
    from (
      select m.id, m.session_id, m.role, m.content, m.parts, m.run_id, ${parentOf} as parent_id
      from chat_messages m where m.id = ${messageId}::uuid
    ) m
    join chat_sessions s on s.id = m.session_id
    left join chat_runs run on run.id = m.run_id
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

const isAnswerable = (role: string | null) => role === 'user' || role === 'tool'

function planRegenerate({ id, session_id, role, parent_id, parent_role, text, request }: Target): Plan {
  const answered = isAnswerable(role) ? id : role === 'assistant' && isAnswerable(parent_role) ? parent_id : null
  if (answered === null) throw new Problem('invalid_request', 'There is no message of the user that this one answers.')
  const { tools, tool_choice } = request ?? {}
  return {
    sessionId: session_id,
    sessionExists: true,
    kind: 'chat',
    message: undefined,
    answered,
    text,
    parentId: null,
    request: { ...(tools && { tools }), ...(tool_choice && { tool_choice }), ...saidBeside(request) },
  }
}

/** A reply with the calls that are answered. */
interface Called {
  readonly session_id: string
  readonly active_run_id: string | null
  /** Null, like all that follows, when there is none. */
  readonly id: string | null
  readonly status: string
  readonly parts: readonly Part[]
  readonly mode: Mode | null
  readonly request: RunRequest | null
}

/** Messages among which a reply is looked for by the id of a call. */
const lookBackMax = 1000

async function planToolResults(
  db: Db,
  owner: Owner,
  sessionId: string,
  parentId: string | undefined,
  results: readonly ToolResult[],
): Promise<Plan> {
  // Ids of calls are the provider's, and some number them anew in each reply: the newest one is meant.
  const ofCall = JSON.stringify([{ kind: 'tool_call', call_id: results[0]?.call_id }])
  const isMeant = parentId === undefined ? sql`m.parts @> ${ofCall}::jsonb` : sql`m.id = ${parentId}::uuid`
  const [called] = await db.rows<Called>(sql`
    select s.id as session_id, s.active_run_id, reply.*
    from chat_sessions s left join lateral (
      select m.id, m.status, m.parts, run.mode, run.request
      from (
        select * from chat_messages where session_id = s.id order by seq desc limit ${lookBackMax}::int
      ) m left join chat_runs run on run.id = m.run_id
      where m.role = 'assistant' and ${isMeant}
      order by m.seq desc limit 1
    ) reply on true
    where s.id = ${sessionId}::uuid and s.owner = ${owner.key} and s.deleted_at is null`)
  if (called === undefined || (called.id === null && parentId !== undefined)) {
    throw new Problem('not_found', 'There is no such session, or no such parent message in it.')
  }
  if ((called.id === null || called.status === 'streaming') && called.active_run_id !== null) {
    throw sessionBusy(called.active_run_id)
  }
  const toolParts = toAnswers(called.status === 'completed' ? openCallsOf(called.parts) : [], results)
  const { mode, request } = called
  const { agent, tools, candidates, profile, reasons } = request ?? {}
  const plan = candidates && profile && { plan: { candidates, profile, ...(reasons && { reasons }) } }
  return {
    sessionId: called.session_id,
    sessionExists: true,
    kind: 'chat',
    message: '',
    toolParts,
    answered: undefined,
    text: JSON.stringify(toolParts),
    parentId: called.id,
    request: { ...(agent && { agent }), ...(tools && { tools }), ...saidBeside(request) },
    ...(mode && plan && { continued: { mode, plans: { fast: plan, balanced: plan, quality: plan, adaptive: plan } } }),
  }
}

/** @throws Problem `invalid_request` when they do not answer just these calls */
function toAnswers(calls: readonly Part[], results: readonly ToolResult[]): readonly Part[] {
  const given = new Map(results.map((result) => [result.call_id, result]))
  if (calls.length === 0 || calls.some(({ call_id = '' }) => !given.has(call_id))) {
    throw new Problem(
      'invalid_request',
      'tool_results: they have to answer all the calls with which a reply has ended.',
    )
  }
  const toolParts = calls.map(({ call_id = '', name = '' }): Part => {
    const { output, error } = given.get(call_id) as ToolResult
    return { kind: 'tool_call', text: '', call_id, name, ...(error === undefined ? { output } : { error }) }
  })
  if (toolParts.length < results.length) {
    throw new Problem('invalid_request', 'tool_results: one of them answers no call of that reply.')
  }
  return toolParts
}

/** What was said with the reply before, and holds for the one that goes on from it or takes its place. */
function saidBeside(request: RunRequest | null): Pick<RunRequest, 'instructions' | 'settings' | 'messages_max'> {
  const { instructions, settings, messages_max } = request ?? {}
  return {
    ...(instructions !== undefined && { instructions }),
    ...(settings && { settings }),
    ...(messages_max !== undefined && { messages_max }),
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

export function sessionBusy(runId: string): Problem {
  return new Problem('session_busy', undefined, {
    members: { run_id: runId, stream_url: `/api/v1/runs/${runId}/events` },
  })
}
