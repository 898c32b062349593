/**
 * Sessions and messages as clients see them. The schemas are the one source for validation, OpenAPI and types; the
 * tables are described separately, in db/schema.ts.
 */
import { type Static, Type } from 'typebox'
import { Mode, Part, RunErrorSchema } from '../log/event.ts'

export const Uuid = Type.String({ format: 'uuid' })
/** ISO 8601 in UTC with microseconds. */
export const Time = Type.String({ description: 'ISO 8601 in UTC with microseconds' })

export const nullable = <T extends Type.TSchema>(schema: T) => Type.Union([schema, Type.Null()])
const JsonObject = Type.Record(Type.String(), Type.Unknown())

const degraded = Type.Optional(
  Type.Literal(true, { description: 'the database does not answer: this is what was known of it last' }),
)

export const SessionStatus = Type.Union([
  Type.Literal('created'),
  Type.Literal('running'),
  Type.Literal('completed'),
  Type.Literal('failed'),
  Type.Literal('killed'),
  Type.Literal('deleted'),
])
export type SessionStatus = Static<typeof SessionStatus>

export const Session = Type.Object({
  id: Uuid,
  external_id: nullable(Type.String()),
  user_id: nullable(Type.String()),
  is_anonymous: Type.Boolean(),
  kind: Type.String(),
  status: SessionStatus,
  title: nullable(Type.String()),
  mode: Mode,
  model: nullable(Type.String()),
  phase: nullable(Type.String()),
  round_number: nullable(Type.Integer()),
  input: nullable(Type.String()),
  context: Type.Unknown(),
  state: Type.Unknown(),
  message_count: Type.Integer(),
  total_tokens: Type.Integer(),
  total_cost_usd: Type.String({ description: 'decimal' }),
  active_run_id: nullable(Uuid),
  tags: Type.Array(Type.String()),
  metadata: JsonObject,
  version: Type.Integer(),
  archived: Type.Boolean(),
  created_at: Time,
  updated_at: Time,
  last_activity_at: Time,
  ended_at: nullable(Time),
  degraded,
})
export type Session = Static<typeof Session>

export const MessageStatus = Type.Union([
  Type.Literal('streaming'),
  Type.Literal('completed'),
  Type.Literal('stopped'),
  Type.Literal('failed'),
  Type.Literal('interrupted'),
])

export const Feedback = Type.Object({
  rating: Type.Union([Type.Literal(1), Type.Literal(-1)]),
  comment: nullable(Type.String()),
})

export const Message = Type.Object({
  id: Uuid,
  session_id: Uuid,
  seq: Type.Integer({ description: 'place in the session, from 1' }),
  parent_id: nullable(Uuid),
  run_id: nullable(Uuid),
  role: Type.Union([Type.Literal('user'), Type.Literal('assistant'), Type.Literal('system'), Type.Literal('tool')]),
  content: Type.String({ description: 'the text parts, joined' }),
  parts: Type.Array(Part),
  status: MessageStatus,
  agent_id: nullable(Type.String()),
  model: nullable(Type.String()),
  client_message_id: nullable(Type.String()),
  retrieved_docs: Type.Unknown(),
  reranker_used: nullable(Type.Boolean()),
  input_tokens: nullable(Type.Integer()),
  output_tokens: nullable(Type.Integer()),
  total_tokens: nullable(Type.Integer()),
  cost_usd: nullable(Type.String({ description: 'of a reply: decimal; null when a price is not known' })),
  latency_ms: nullable(Type.Integer()),
  ttft_ms: nullable(Type.Integer()),
  finish_reason: nullable(Type.String()),
  error: nullable(RunErrorSchema),
  metadata: JsonObject,
  feedback: nullable(Feedback),
  created_at: Time,
  completed_at: nullable(Time),
  cursor: Type.Optional(
    Type.String({ description: 'of a running message: the event up to which content and parts go' }),
  ),
})
export type Message = Static<typeof Message>

/** Roles as people read them. */
export const roleNames: Readonly<Record<Message['role'], string>> = {
  user: 'User',
  assistant: 'Assistant',
  system: 'System',
  tool: 'Tool',
}
/** Of a session without one. */
export const untitled = 'Untitled'

export const externalIdUnitsMax = 255
export const titleUnitsMax = 500
export const metadataBytesMax = 16 * 1024
export const inputUnitsMax = 100_000

export const CreateSessionBody = Type.Object(
  {
    id: Type.Optional(Uuid),
    external_id: Type.Optional(Type.String({ minLength: 1, maxLength: externalIdUnitsMax })),
    kind: Type.Optional(Type.String({ pattern: '^[A-Za-z0-9._:-]{1,64}$' })),
    input: Type.Optional(Type.String({ maxLength: inputUnitsMax })),
    context: Type.Optional(JsonObject),
    mode: Type.Optional(Mode),
    title: Type.Optional(Type.String({ minLength: 1, maxLength: titleUnitsMax })),
    metadata: Type.Optional(JsonObject),
  },
  { additionalProperties: false },
)
export type CreateSessionBody = Static<typeof CreateSessionBody>

export const tagsMax = 50
export const tagUnitsMax = 100
export const stateBytesMax = 64 * 1024

export const PatchSessionBody = Type.Object(
  {
    title: Type.Optional(nullable(Type.String({ minLength: 1, maxLength: titleUnitsMax }))),
    mode: Type.Optional(Mode),
    metadata: Type.Optional(JsonObject),
    tags: Type.Optional(Type.Array(Type.String({ minLength: 1, maxLength: tagUnitsMax }), { maxItems: tagsMax })),
    state: Type.Optional(Type.Unknown({ description: 'any JSON; null is none' })),
    ended: Type.Optional(Type.Boolean()),
  },
  { additionalProperties: false, minProperties: 1 },
)
export type PatchSessionBody = Static<typeof PatchSessionBody>

export const IfMatch = Type.Object({
  'if-match': Type.Optional(Type.String({ description: 'the ETag of the session as it was read; `*` is any' })),
})

export const pageRowsMax = 100
export const pageRowsDefault = 50
export const searchUnitsMax = 200
export const listOffsetMax = 10_000

export const ListSessionsQuery = Type.Object(
  {
    status: Type.Optional(SessionStatus),
    kind: Type.Optional(Type.String({ maxLength: 64 })),
    mode: Type.Optional(Mode),
    tag: Type.Optional(Type.String({ maxLength: 255 })),
    from: Type.Optional(Type.String({ format: 'date-time', description: 'last activity at or after' })),
    to: Type.Optional(Type.String({ format: 'date-time', description: 'last activity before' })),
    archived: Type.Optional(Type.Boolean()),
    q: Type.Optional(
      Type.String({
        maxLength: searchUnitsMax,
        description:
          'words, each of which is in the title or a message, also as a part of a word; capitals do not matter',
      }),
    ),
    cursor: Type.Optional(Type.String({ maxLength: 512 })),
    limit: Type.Optional(Type.Integer({ minimum: 1, maximum: pageRowsMax, default: pageRowsDefault })),
    offset: Type.Optional(Type.Integer({ minimum: 0, maximum: listOffsetMax })),
  },
  { additionalProperties: false },
)
export type ListSessionsQuery = Static<typeof ListSessionsQuery>

export const ListMessagesQuery = Type.Object(
  {
    cursor: Type.Optional(Type.String({ maxLength: 512 })),
    limit: Type.Optional(Type.Integer({ minimum: 1, maximum: pageRowsMax, default: pageRowsDefault })),
    order: Type.Optional(Type.Union([Type.Literal('asc'), Type.Literal('desc')], { default: 'asc' })),
    branch: Type.Optional(
      Type.Union([Type.Literal('all'), Type.Literal('active')], {
        default: 'all',
        description: 'active: only what is on the way from the newest message to the beginning',
      }),
    ),
  },
  { additionalProperties: false },
)
export type ListMessagesQuery = Static<typeof ListMessagesQuery>

export const commentCharactersMax = 2000
export const retrievedDocsMax = 100
export const retrievedDocsBytesMax = 64 * 1024

export const FeedbackBody = Type.Object(
  {
    rating: Feedback.properties.rating,
    comment: Type.Optional(Type.String({ maxLength: commentCharactersMax })),
  },
  { additionalProperties: false },
)
export type FeedbackBody = Static<typeof FeedbackBody>

export const MessageFeedback = Type.Object({
  message_id: Uuid,
  ...Feedback.properties,
  created_at: Time,
  updated_at: Time,
})
export type MessageFeedback = Static<typeof MessageFeedback>

export const RetrievalBody = Type.Object(
  {
    retrieved_docs: Type.Array(JsonObject, { maxItems: retrievedDocsMax }),
    reranker_used: Type.Optional(Type.Boolean()),
  },
  { additionalProperties: false },
)
export type RetrievalBody = Static<typeof RetrievalBody>

export const SessionInclude = Type.Object(
  {
    include: Type.Optional(
      Type.String({ pattern: '^(messages|artifacts)(,(messages|artifacts))*$', description: 'messages, artifacts' }),
    ),
  },
  { additionalProperties: false },
)

export const IdParams = Type.Object({ id: Uuid })

export const page = <T extends Type.TSchema>(row: T) =>
  Type.Object({ data: Type.Array(row), next_cursor: nullable(Type.String()), degraded })

const titleCharactersMax = 50

/**
 * A title from a message: its first 50 characters on one line, never cut inside what a reader sees as one character
 * (a flag or a family emoji is several code points).
 */
export function titleFrom(message: string): string {
  const line = message.trim().replace(/\s+/g, ' ')
  let title = ''
  let characters = 0
  for (const { segment } of new Intl.Segmenter(undefined, { granularity: 'grapheme' }).segment(line.slice(0, 1000))) {
    characters += [...segment].length
    if (characters > titleCharactersMax) break
    title += segment
  }
  return title === '' ? [...line].slice(0, titleCharactersMax).join('') : title
}
