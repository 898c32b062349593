/**
 * The events of a run's log: what a run says, in the words of the wire protocol. The schemas are the one source for
 * types, validation and OpenAPI. An event is numbered when it enters the log, as `<generation>-<seq>`: seq is dense
 * from 1 within a generation, and the pair is also the SSE id and the id in a Redis stream.
 */
import { type Static, Type } from 'typebox'

export const PartKind = Type.Union([
  Type.Literal('text'),
  Type.Literal('reasoning'),
  Type.Literal('tool_call'),
  Type.Literal('source'),
  Type.Literal('file'),
])
export type PartKind = Static<typeof PartKind>

/** What went wrong with a tool: never the words of what it threw, which can hold anything. */
export const ToolError = Type.Object({ code: Type.String(), message: Type.String() })
export type ToolError = Static<typeof ToolError>

/** Members of a source or a file. */
const reference = {
  url: Type.Optional(Type.String({ description: 'of a source or a file; a file of the model itself is a data: URL' })),
  title: Type.Optional(Type.String({ description: 'of a source' })),
  media_type: Type.Optional(Type.String({ description: 'of a file' })),
}

/**
 * A piece of a message. `text` is the words of a text or reasoning part, the raw JSON arguments of a tool call, and empty
 * for a source or a file.
 */
export const Part = Type.Object({
  kind: PartKind,
  text: Type.String(),
  call_id: Type.Optional(Type.String({ description: 'of a tool call' })),
  name: Type.Optional(Type.String({ description: 'of a tool call' })),
  input: Type.Optional(Type.Unknown({ description: 'the parsed arguments of a tool call' })),
  output: Type.Optional(Type.Unknown({ description: 'what the tool answered' })),
  error: Type.Optional(ToolError),
  ...reference,
  signature: Type.Optional(
    Type.String({ description: "the provider's seal on what it said, which it wants back with the next request" }),
  ),
  redacted: Type.Optional(Type.Literal(true, { description: 'reasoning that the provider shows to nobody' })),
})
export type Part = Static<typeof Part>

/** The text parts, joined: what a message's `content` holds. */
export function contentOf(parts: readonly Part[]): string {
  return parts.reduce((content, part) => (part.kind === 'text' ? content + part.text : content), '')
}

export const RunStatus = Type.Union([
  Type.Literal('queued'),
  Type.Literal('running'),
  Type.Literal('completed'),
  Type.Literal('stopped'),
  Type.Literal('failed'),
  Type.Literal('interrupted'),
])
export type RunStatus = Static<typeof RunStatus>

export const TerminalStatus = Type.Union([
  Type.Literal('completed'),
  Type.Literal('stopped'),
  Type.Literal('failed'),
  Type.Literal('interrupted'),
])
export type TerminalStatus = Static<typeof TerminalStatus>

/** Token counts as the provider gave them. `input_tokens` are all of the prompt, `output_tokens` all that was made. */
export const Usage = Type.Object({
  input_tokens: Type.Integer(),
  output_tokens: Type.Integer(),
  total_tokens: Type.Integer(),
  reasoning_tokens: Type.Optional(Type.Integer({ description: 'of the output tokens' })),
  cached_input_tokens: Type.Optional(Type.Integer({ description: 'of the input tokens: read from a cache' })),
  cache_write_tokens: Type.Optional(Type.Integer({ description: 'of the input tokens: written to a cache' })),
})
export type Usage = Static<typeof Usage>

export const Mode = Type.Union([
  Type.Literal('fast'),
  Type.Literal('balanced'),
  Type.Literal('quality'),
  Type.Literal('adaptive'),
])
export type Mode = Static<typeof Mode>

export const RunErrorSchema = Type.Object({
  code: Type.String(),
  message: Type.String(),
  retryable: Type.Boolean(),
})

/** Always the first event of a run. */
export const RunStarted = Type.Object({
  run_id: Type.String(),
  session_id: Type.String(),
  user_message_id: Type.String(),
  message_id: Type.String(),
  model: Type.String(),
  mode: Mode,
  created_at: Type.String(),
})
export type RunStarted = Static<typeof RunStarted>

/** The name of a tool: the narrowest that providers agree on. */
export const toolNamePattern = /^[A-Za-z0-9_-]{1,64}$/

/** Opens a part of another kind than text, or a second text part. Part 0 needs none when it is text. */
export const PartOpened = Type.Object({
  part: Type.Integer(),
  kind: PartKind,
  call_id: Type.Optional(Type.String()),
  name: Type.Optional(Type.String()),
  url: Type.Optional(Type.String()),
  media_type: Type.Optional(Type.String()),
})

/** Text that joins a part. `offset` counts UTF-16 units of that part's text before it. */
export const Delta = Type.Object({ part: Type.Integer(), offset: Type.Integer(), text: Type.String() })

/**
 * A tool call whose arguments are complete; `input` is absent when they are not JSON. Once more with `output` or `error`
 * when the tool has answered.
 */
export const ToolCalled = Type.Object({
  part: Type.Integer(),
  call_id: Type.String(),
  name: Type.String(),
  input: Type.Optional(Type.Unknown()),
  output: Type.Optional(Type.Unknown()),
  error: Type.Optional(ToolError),
})

/** Opens a part of the kind `source`: where something that is said comes from. */
export const SourceNamed = Type.Object({
  part: Type.Integer(),
  url: Type.Optional(Type.String()),
  title: Type.Optional(Type.String()),
})

/** How far a run of several steps has come. Not a part: it is shown, and stored with the run. */
export const Progress = Type.Object({
  phase: Type.Optional(Type.String()),
  round: Type.Optional(Type.Integer()),
  cost_usd: Type.Optional(Type.String({ description: 'so far; absent when a price is not known' })),
})
export type Progress = Static<typeof Progress>

/** An artifact of the session has a new version. */
export const ArtifactMade = Type.Object({ name: Type.String(), version: Type.Integer(), content_type: Type.String() })

export const Titled = Type.Object({ title: Type.String() })

/** What a run of several steps has used so far. */
export const UsageSoFar = Type.Object({ usage: Usage, cost_usd: Type.Optional(Type.String()) })

/** Replaces all that a viewer holds. */
export const Reset = Type.Object({ message_id: Type.String(), parts: Type.Array(Part), cursor: Type.String() })

/** The only end of a run, for success and failure alike. */
export const Done = Type.Object({
  status: TerminalStatus,
  message_id: Type.String(),
  finish_reason: Type.Optional(Type.String()),
  usage: Type.Optional(Usage),
  cost_usd: Type.Optional(Type.String()),
  ttft_ms: Type.Optional(Type.Integer()),
  latency_ms: Type.Optional(Type.Integer()),
  error: Type.Optional(RunErrorSchema),
})
export type Done = Static<typeof Done>

/** Event name on the wire -> schema of its data. */
export const eventSchemas = {
  run: RunStarted,
  part: PartOpened,
  delta: Delta,
  tool: ToolCalled,
  source: SourceNamed,
  progress: Progress,
  artifact: ArtifactMade,
  title: Titled,
  usage: UsageSoFar,
  reset: Reset,
  done: Done,
} as const

export type RunEvent = {
  [Name in keyof typeof eventSchemas]: { readonly type: Name; readonly data: Static<(typeof eventSchemas)[Name]> }
}[keyof typeof eventSchemas]

/** A place in a run's log. */
export interface EventId {
  readonly generation: number
  readonly seq: number
}

/** The place before a run's first event. */
export const beforeAll: EventId = { generation: 1, seq: 0 }

/** One numbered event of a run's log. */
export interface LogEntry extends EventId {
  readonly event: RunEvent
}

// Nine digits keep every id a safe integer and every comparison exact; a longer one was not made by us.
const eventIdPattern = /^(0|[1-9]\d{0,8})-(0|[1-9]\d{0,8})$/

/** @returns the place that `text` names, or undefined when it is not `<generation>-<seq>` */
export function parseEventId(text: string): EventId | undefined {
  const match = eventIdPattern.exec(text)
  return match === null ? undefined : { generation: Number(match[1]), seq: Number(match[2]) }
}

export function formatEventId(id: EventId): string {
  return `${id.generation}-${id.seq}`
}

/** Negative when `a` comes before `b`, as Redis orders stream ids. */
export function compareEventIds(a: EventId, b: EventId): number {
  return a.generation - b.generation || a.seq - b.seq
}
