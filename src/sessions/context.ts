/**
 * What a model is told of a session before it answers: the session's own context, and the branch that the new message is
 * on. A context is a JSON object that whoever made the session gave it; it goes before every reply of that session, as one
 * system message: a line that says what follows, and the object as JSON, in whatever order the database keeps its members.
 *
 * A reply that called tools goes with its calls, and each call with its answer: the call says it itself when the gateway
 * has answered it; else it is answered by the message of role `tool` that follows, one for each call. A call that was never
 * answered, or was cut off, is left out, because providers refuse a conversation that holds one. So are reasoning without
 * a seal, sources and files: a model has no use for them.
 *
 * At the one await: when the database does not answer, nothing is known, and the caller asks again.
 */
import { type Db, exactText } from '../db/db.ts'
import { sql } from '../db/drizzle.ts'
import type { Part } from '../log/event.ts'

/** A message as models are told it. What the upstream port asks for, and where it comes from. */
export type HistoryMessage = Saying & {
  /** Of the stored message; absent for what is not one, as the session's context. A `tool` message has several entries. */
  readonly id?: string
}

type Saying =
  | { readonly role: 'system' | 'user'; readonly content: string }
  | {
      readonly role: 'assistant'
      readonly content: string
      /** Text, sealed reasoning and tool calls, where there is more than text. */
      readonly parts?: readonly Part[]
      /** Who said it; with `parts` only. */
      readonly provider?: string
    }
  | {
      readonly role: 'tool'
      readonly callId: string
      readonly name: string
      readonly content: string
      readonly isError?: boolean
    }

export interface History {
  /** Oldest first, behind the session's context. */
  readonly messages: readonly HistoryMessage[]
  /** What was said up to `messageId`, which is on the way, in few words; undefined when nobody has written that down. */
  readonly summary: Summary | undefined
  /** The newest message on the way that `messagesMax` has left out. */
  readonly leftOut: string | undefined
  /** Up to where the session is summarized, be it on this way or another; null when it is not. */
  readonly summarizedTo: string | null
}

export interface Summary {
  readonly text: string
  readonly messageId: string
}

/**
 * A context that is longer as JSON is left out. Above all that a session can be given through the API (16 KiB), so it
 * keeps only what somebody wrote by hand from going upstream, and being paid for, with each message.
 */
const contextUnitsMax = 64 * 1024
const contextLine = 'Context of this conversation, as JSON:'
/**
 * Messages beyond the window that are looked at: for the message of the user with which a long row of tool calls began,
 * and for the one up to which there is a summary.
 */
const reachMax = 1000

interface Row {
  readonly id: string
  readonly parent_id: string | null
  readonly role: HistoryMessage['role']
  readonly content: string
  readonly parts: readonly Part[] | null
  readonly provider: string | null
}

interface NewestRow extends Row {
  readonly context: unknown
  readonly summary: string | null
  readonly summarized_to: string | null
}

/**
 * What goes upstream as context: the messages on the way from `messageId` back to the session's beginning, that one
 * included, oldest first and `messagesMax` at most, behind the session's context. Where the last message of the user lies
 * further back, because tools were called since, it goes back to that. Replies of which nothing was stored are left out.
 */
export async function readHistory(db: Db, messageId: string, messagesMax: number): Promise<History> {
  const depthMax = messagesMax + reachMax
  const rows = await db.rows<Row>(
    sql`
    with recursive asked as (
      select s.context, s.summary, s.summary_message_id, (
        select covered.seq from chat_messages covered
        where covered.id = s.summary_message_id and covered.session_id = s.id
      ) as summary_seq
      from chat_messages m join chat_sessions s on s.id = m.session_id where m.id = ${messageId}::uuid
    ), way as (
      -- Whether a row is inside the window, and whether the window is full with it.
      select
        m.id, m.parent_id, m.run_id, m.seq, m.role, m.content, m.parts, 1 as depth, true as inside,
        m.role = 'user' as has_user, m.role = 'user' and ${messagesMax}::int <= 1 as is_full
      from chat_messages m where m.id = ${messageId}::uuid
      union all
      select
        m.id, m.parent_id, m.run_id, m.seq, m.role,
        case when way.is_full then '' else m.content end, case when way.is_full then '[]' else m.parts end,
        way.depth + 1, not way.is_full, way.has_user or m.role = 'user',
        way.is_full or (way.has_user or m.role = 'user') and way.depth + 1 >= ${messagesMax}::int
      from way join chat_messages m on m.id = way.parent_id
      where way.depth < ${depthMax}::int and (not way.is_full or way.seq > (select summary_seq from asked))
    )
    select
      id, parent_id, role, ${exactText(sql`content`)} as content, case
        when role in ('assistant', 'tool') and jsonb_path_exists(parts, ${moreThanText}::jsonpath) then (
          select jsonb_agg(part order by place) from jsonb_array_elements(parts) with ordinality as own (part, place)
          where part ->> 'kind' not in ('source', 'file')
        )
      end as parts,
      case when role = 'assistant' then (select r.provider from chat_runs r where r.id = way.run_id) end as provider,
      case when depth = 1 then (select context from asked) end as context,
      case when depth = 1 then ${exactText(sql`(
        select summary from asked where summary_message_id in (select id from way where depth > 1)
      )`)} end as summary,
      case when depth = 1 then (select summary_message_id from asked) end as summarized_to
    from way where inside
    order by depth desc`,
    'often',
  )
  return toHistory(rows)
}

/** What goes upstream before a session has more than one message; the same as `readHistory` says of it. */
export function historyOfFirst(messageId: string, content: string, context: unknown): History {
  const row = { id: messageId, parent_id: null, role: 'user', content, parts: null, provider: null } as const
  const only: NewestRow = { ...row, context, summary: null, summarized_to: null }
  return toHistory([only])
}

const moreThanText = '$[*] ? (@.kind == "tool_call" || exists(@.signature) || exists(@.redacted))'

function toHistory(rows: readonly Row[]): History {
  const newest = rows.at(-1) as NewestRow | undefined
  if (newest === undefined) return { messages: [], summary: undefined, leftOut: undefined, summarizedTo: null }
  const begin = beginOf(rows)
  const inside = rows.slice(begin)
  const messages = inside.flatMap((row, index) => toMessages(row, inside[index - 1], inside[index + 1]))
  const { summary, summarized_to: summarizedTo } = newest
  const before = rows[0]?.parent_id ?? null
  return {
    messages: [...contextOf(newest), ...messages],
    summary: summary === null || summarizedTo === null ? undefined : { text: summary, messageId: summarizedTo },
    leftOut: before === null ? undefined : (rows[begin - 1]?.id ?? before),
    summarizedTo,
  }
}

/** Providers want the user to speak first; a window that begins inside an exchange loses its first half anyway. */
function beginOf(rows: readonly Row[]): number {
  const spoken = rows.findIndex(({ role }) => role === 'user' || role === 'system')
  if (spoken !== -1) return spoken
  // Nobody has spoken: at least no answer stands there without its call.
  return Math.max(
    0,
    rows.findIndex(({ role }) => role !== 'tool'),
  )
}

function contextOf({ context }: NewestRow): HistoryMessage[] {
  if (context === null) return []
  const json = JSON.stringify(context)
  return json.length > contextUnitsMax ? [] : [{ role: 'system', content: `${contextLine}\n${json}` }]
}

/** @param before what it follows. @param behind what follows it on this way */
function toMessages(row: Row, before: Row | undefined, behind: Row | undefined): HistoryMessage[] {
  const { id, role, content } = row
  if (role === 'tool') return toAnswers(row, openCalls(before))
  if (role !== 'assistant') return content === '' ? [] : [{ role, content, id }]
  const answered = new Set(answersOf(behind).map(({ call_id }) => call_id))
  const open = new Set(openCalls(row).map(({ call_id }) => call_id))
  const parts = (row.parts ?? []).filter((part) => {
    if (part.kind === 'text') return part.text !== '' || part.signature !== undefined
    if (part.kind === 'reasoning') return part.signature !== undefined || part.redacted === true
    return isAnswered(part) || (open.has(part.call_id) && answered.has(part.call_id))
  })
  if (!parts.some(({ kind }) => kind !== 'reasoning') && content === '') return []
  if (parts.every(({ kind, signature }) => kind === 'text' && signature === undefined)) return [{ role, content, id }]
  return [{ role, content, parts, ...(row.provider === null ? {} : { provider: row.provider }), id }]
}

/** In the order of the calls; an answer to no call is left out. */
function toAnswers(row: Row, calls: readonly Part[]): HistoryMessage[] {
  const answers = new Map(answersOf(row).map((part) => [part.call_id, part]))
  return calls.flatMap(({ call_id = '', name = '' }) => {
    const answer = answers.get(call_id)
    if (answer === undefined) return []
    const { output, error } = answer
    const said = { role: 'tool', callId: call_id, name, id: row.id } as const
    if (error !== undefined) return [{ ...said, content: JSON.stringify({ error }), isError: true }]
    return [{ ...said, content: typeof output === 'string' ? output : JSON.stringify(output) }]
  })
}

const answersOf = (row: Row | undefined): readonly Part[] =>
  row?.role === 'tool' ? (row.parts ?? []).filter(isAnswered) : []

const openCalls = (row: Row | undefined): readonly Part[] =>
  row?.role === 'assistant' ? openCallsOf(row.parts ?? []) : []

/** The calls of a reply that wait for an answer of the client: whole, and not answered by the gateway. */
export function openCallsOf(parts: readonly Part[]): Part[] {
  return parts.filter((part) => part.kind === 'tool_call' && part.input !== undefined && !isAnswered(part))
}

const isAnswered = ({ kind, output, error }: Part): boolean =>
  kind === 'tool_call' && (output !== undefined || error !== undefined)
