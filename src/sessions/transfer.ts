/**
 * The format in which a conversation leaves this gateway and comes back: one JSON document of one session, or lines of
 * JSON of many. It is a contract of its own, apart from what the API answers: a file from last year has to be readable.
 * So its fields are written out here, every one is there in every file, and what a reader does not know is refused.
 *
 * What belongs to a place and not to a conversation is no part of it: the owner, the session's version, the run under
 * way. `run_id` and `cost_usd` of a message are told, and not taken back: a run is the record of work done here.
 *
 * In lines: `export` first, then for each session one line `session`, its messages by `seq`, its artifacts by name and
 * version; `end` last, with the counts, so that a file that was cut is recognised. Nothing is read or written here.
 */
import { type Static, type TProperties, Type } from 'typebox'
import { Mode, Part, PartKind, RunErrorSchema, ToolError } from '../log/event.ts'
import { ArtifactType, artifactNamePattern } from './artifact-model.ts'
import { externalIdUnitsMax, inputUnitsMax, MessageStatus, nullable, SessionStatus, titleUnitsMax } from './model.ts'

export const documentFormat = 'verbatim.session'
export const linesFormat = 'verbatim'
export const formatVersion = 1

/** A body of an import. It is held in memory as text and as values. */
export const importBytesMax = 16 * 1024 * 1024
export const importedSessionsMax = 1000
/** Of one session, which is written by one statement. */
export const importedMessagesMax = 10_000
/** A document keeps up to 50 versions, and a session up to 100 documents. */
export const importedArtifactsMax = 5000
/** A reply may have two million characters, and reasoning beside them. */
export const importedTextUnitsMax = 4_000_000
export const importedPartsMax = 1000
/** State of a session, documents retrieved for a message: each as JSON. */
export const importedJsonBytesMax = 1024 * 1024
export const importedTagsMax = 100
const nameUnitsMax = 255
/** What a provider calls a model, and why it stopped. */
const labelUnitsMax = 1000

const closed = <Properties extends TProperties>(properties: Properties) =>
  Type.Object(properties, { additionalProperties: false })

const Id = Type.String({ pattern: '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$' })
// Postgres has no year 0.
const Time = Type.String({ format: 'date-time', pattern: '^(?!0000)', maxLength: 40 })
const JsonObject = Type.Record(Type.String(), Type.Unknown())
const Count = nullable(Type.Integer({ minimum: -2_147_483_648, maximum: 2_147_483_647 }))
const Decimal = Type.String({ pattern: '^-?[0-9]{1,20}(\\.[0-9]{1,20})?$', description: 'decimal' })
const text = (maxLength: number) => Type.String({ maxLength })

export const ExportedSession = closed({
  id: Id,
  external_id: nullable(Type.String({ minLength: 1, maxLength: externalIdUnitsMax })),
  kind: Type.String({ pattern: '^[A-Za-z0-9._:-]{1,64}$' }),
  status: SessionStatus,
  title: nullable(Type.String({ maxLength: titleUnitsMax })),
  mode: Mode,
  model: nullable(text(labelUnitsMax)),
  phase: nullable(text(nameUnitsMax)),
  round_number: Count,
  input: nullable(text(inputUnitsMax)),
  context: Type.Unknown(),
  state: Type.Unknown(),
  message_count: Type.Integer({ minimum: 0 }),
  total_tokens: Type.Integer(),
  total_cost_usd: Decimal,
  tags: Type.Array(text(nameUnitsMax), { maxItems: importedTagsMax }),
  metadata: JsonObject,
  created_at: Time,
  updated_at: Time,
  last_activity_at: Time,
  ended_at: nullable(Time),
  deleted_at: nullable(Time),
})
export type ExportedSession = Static<typeof ExportedSession>

export const ExportedMessage = closed({
  id: Id,
  seq: Type.Integer({ minimum: 1, maximum: 2_147_483_647 }),
  parent_id: nullable(Id),
  run_id: nullable(Id),
  role: Type.Union([Type.Literal('user'), Type.Literal('assistant'), Type.Literal('system'), Type.Literal('tool')]),
  status: MessageStatus,
  content: Type.String({ maxLength: importedTextUnitsMax, description: 'the text parts, joined' }),
  parts: Type.Array(
    closed({
      ...Part.properties,
      kind: PartKind,
      text: Type.String({ maxLength: importedTextUnitsMax }),
      error: Type.Optional(closed(ToolError.properties)),
    }),
    { maxItems: importedPartsMax },
  ),
  agent_id: nullable(text(nameUnitsMax)),
  model: nullable(text(labelUnitsMax)),
  client_message_id: nullable(text(nameUnitsMax)),
  retrieved_docs: Type.Unknown(),
  reranker_used: nullable(Type.Boolean()),
  input_tokens: Count,
  output_tokens: Count,
  total_tokens: Count,
  cost_usd: nullable(Decimal),
  latency_ms: Count,
  ttft_ms: Count,
  finish_reason: nullable(text(labelUnitsMax)),
  error: nullable(closed({ ...RunErrorSchema.properties, message: text(10 * labelUnitsMax) })),
  metadata: JsonObject,
  feedback: nullable(
    closed({
      rating: Type.Union([Type.Literal(1), Type.Literal(-1)]),
      comment: nullable(text(inputUnitsMax)),
      created_at: Time,
      updated_at: Time,
    }),
  ),
  created_at: Time,
  completed_at: nullable(Time),
})
export type ExportedMessage = Static<typeof ExportedMessage>

export const ExportedArtifact = closed({
  name: Type.String({ pattern: artifactNamePattern }),
  version: Type.Integer({ minimum: 1, maximum: 2_147_483_647 }),
  content_type: ArtifactType,
  body: Type.String({ maxLength: importedJsonBytesMax, description: 'the document as text, also when it is JSON' }),
  created_at: Time,
})
export type ExportedArtifact = Static<typeof ExportedArtifact>

export const SessionDocument = closed({
  format: Type.Literal(documentFormat),
  version: Type.Literal(formatVersion),
  exported_at: Time,
  session: ExportedSession,
  messages: Type.Array(ExportedMessage, { maxItems: importedMessagesMax }),
  artifacts: Type.Array(ExportedArtifact, { maxItems: importedArtifactsMax }),
})
export type SessionDocument = Static<typeof SessionDocument>

/** The lines of the other form, by their `type`. */
export const lineSchemas = {
  export: closed({
    type: Type.Literal('export'),
    format: Type.Literal(linesFormat),
    version: Type.Literal(formatVersion),
    exported_at: Time,
    owner: closed({
      kind: Type.Union([Type.Literal('user'), Type.Literal('visitor')]),
      user_id: nullable(text(nameUnitsMax)),
    }),
  }),
  session: closed({ type: Type.Literal('session'), ...ExportedSession.properties }),
  message: closed({ type: Type.Literal('message'), ...ExportedMessage.properties }),
  artifact: closed({ type: Type.Literal('artifact'), ...ExportedArtifact.properties }),
  end: closed({
    type: Type.Literal('end'),
    sessions: Type.Integer({ minimum: 0 }),
    messages: Type.Integer({ minimum: 0 }),
    artifacts: Type.Integer({ minimum: 0 }),
  }),
} as const

export type ExportLine = {
  [Name in keyof typeof lineSchemas]: Static<(typeof lineSchemas)[Name]>
}[keyof typeof lineSchemas]
