/**
 * Runs as clients see them, and the body that starts one.
 *
 * A run's status: `queued` (stored behind the session's other messages, nobody's, nothing asked upstream), `running`,
 * and then exactly one of `completed` (the provider said that the reply is whole), `stopped` (a person said enough),
 * `failed` (the provider or the gateway said no), `interrupted` (the reply broke off: a cut, a stall, a limit, the end
 * of the process). A run gets from `queued` to `running` through the promotion, and ends through one statement only, the
 * commit, which is guarded by generation and status; so a terminal status never changes, whoever comes late. A reply's
 * message has the status `streaming` from acceptance on, also while its run is queued.
 */
import { type Static, Type } from 'typebox'
import { isErrorCode, Problem } from '../errors.ts'
import { Mode, RunErrorSchema, RunStatus, type ToolError, toolNamePattern, Usage } from '../log/event.ts'
import { Message, nullable, Session, Time, Uuid } from '../sessions/model.ts'
import type { RunPlan } from '../upstream/plan.ts'
import type { Effort, ReplyFormat, ToolChoice, ToolDefinition } from '../upstream/upstream.ts'

/** One time that a provider was asked for a run. */
export const UpstreamCall = Type.Object({
  provider: Type.String(),
  model: Type.String(),
  outcome: Type.String({ description: '`completed`, `stopped`, `interrupted`, or the code of the error' }),
  started_at: Time,
  ttft_ms: nullable(Type.Integer()),
  latency_ms: nullable(Type.Integer({ description: 'null of a call whose process died' })),
  usage: nullable(Usage),
  usage_source: nullable(Type.Union([Type.Literal('provider'), Type.Literal('estimated')])),
  cost_usd: nullable(Type.String({ description: 'decimal; null when nothing was used or the price is not known' })),
})
export type UpstreamCall = Static<typeof UpstreamCall>

/** Who has counted: the provider, or the gateway, at least in part. */
export type UsageSource = NonNullable<UpstreamCall['usage_source']>

/** Stored with a run when it is accepted: all that is needed to make its reply, beside the messages. */
export interface RunRequest extends RunPlan {
  readonly agent?: string
  /** Of one reply of the model, where a budget has been held back for so many. */
  readonly max_output_tokens?: number
  readonly tools?: readonly ToolDefinition[]
  readonly tool_choice?: ToolChoice
  /** Said to the model as it is, in front of the conversation and behind the profile's own words. */
  readonly instructions?: string
  readonly settings?: RunSettings
  /** Messages that may be looked at for it, where that is more than for others. */
  readonly messages_max?: number
  /** How long after the last viewer has left it is stopped, where `on_disconnect` is `stop`. Absent: at once. */
  readonly linger_ms?: number
}

/** How one reply is to be made, where its request says so. What is absent is as the profile has it. */
export interface RunSettings {
  readonly temperature?: number
  readonly top_p?: number
  readonly frequency_penalty?: number
  readonly presence_penalty?: number
  /** Of one call of the model. The profile's limit and the budget's stay upper limits. */
  readonly max_output_tokens?: number
  readonly stop?: readonly string[]
  readonly effort?: Effort
  readonly format?: ReplyFormat
  readonly parallel_tool_calls?: boolean
}

export const Run = Type.Object({
  id: Uuid,
  session_id: Uuid,
  user_message_id: Uuid,
  message_id: Uuid,
  kind: Type.String(),
  status: RunStatus,
  mode: Mode,
  provider: Type.String(),
  model: Type.String(),
  phase: nullable(Type.String()),
  round_number: nullable(Type.Integer()),
  cost_usd: nullable(Type.String({ description: 'decimal; null while it runs and when a price is not known' })),
  usage: nullable(Usage),
  usage_source: nullable(Type.String({ description: '`provider`, or `estimated` when a part of it is' })),
  upstream_calls: Type.Array(UpstreamCall),
  profile: nullable(Type.String({ description: 'fast, balanced or quality: what the mode came to' })),
  profile_reasons: nullable(Type.Array(Type.String(), { description: 'why, of mode adaptive' })),
  finish_reason: nullable(Type.String()),
  error: nullable(RunErrorSchema),
  generation: Type.Integer(),
  attempts: Type.Integer(),
  on_disconnect: Type.Union([Type.Literal('continue'), Type.Literal('stop')]),
  stop_requested_at: nullable(Time),
  created_at: Time,
  started_at: nullable(Time),
  first_token_at: nullable(Time),
  ended_at: nullable(Time),
})
export type Run = Static<typeof Run>

/** A run with what only the gateway needs to know of it. */
export interface RunRecord extends Run {
  readonly owner: string
  readonly request_hash: string
  readonly instance_id: string | null
  readonly last_seq: number
  /** Null of a run that an older version accepted. */
  readonly request: RunRequest | null
}

/** Where a run has come to: all of it but what its reply is made from. */
export type RunState = Omit<RunRecord, 'request'>

/** What is needed to make, follow and end a run; both an accepted and a read run have it. */
export type RunFacts = Pick<
  RunRecord,
  | 'id'
  | 'session_id'
  | 'user_message_id'
  | 'message_id'
  | 'status'
  | 'mode'
  | 'provider'
  | 'model'
  | 'generation'
  | 'last_seq'
  | 'instance_id'
  | 'on_disconnect'
  | 'request'
  | 'created_at'
>

export const messageCharactersMax = 100_000
const keyUnitsMax = 128
export const modelUnitsMax = 200
/** As many as OpenAI takes. */
export const toolsMax = 128
/** Of all of a request together, as JSON. */
export const toolsBytesMax = 64 * 1024
export const toolResultsMax = 64
/** Of all of a request together, as JSON. */
export const toolResultsBytesMax = 256 * 1024
export const callIdUnitsMax = 256
/** As JSON, of what is said to the model beside the conversation. */
export const instructionsBytesMax = 256 * 1024
/** As JSON. */
export const settingsBytesMax = 64 * 1024
const toolErrorUnitsMax = 10_000

export const keyPattern = new RegExp(`^[A-Za-z0-9._:-]{1,${keyUnitsMax}}$`)

const key = Type.String({ pattern: keyPattern.source })

const toolName = Type.String({ pattern: toolNamePattern.source })

export const Tool = Type.Object(
  {
    name: toolName,
    description: Type.Optional(Type.String()),
    parameters: Type.Record(Type.String(), Type.Unknown(), { description: 'JSON Schema of an object' }),
  },
  { additionalProperties: false },
)

const tools = {
  tools: Type.Optional(
    Type.Array(Tool, { maxItems: toolsMax, description: 'what the model may call; the client answers the calls' }),
  ),
  tool_choice: Type.Optional(
    Type.Union([
      Type.Literal('auto'),
      Type.Literal('none'),
      Type.Literal('required'),
      Type.Object({ name: toolName }, { additionalProperties: false }),
    ]),
  ),
}

/** What became of one call: `output` or `error`. */
export const ToolResult = Type.Object(
  {
    call_id: Type.String({ minLength: 1, maxLength: callIdUnitsMax }),
    output: Type.Optional(Type.Unknown({ description: 'any JSON; a text goes to the model as it is' })),
    error: Type.Optional(
      Type.Object(
        {
          code: Type.String({ minLength: 1, maxLength: 100 }),
          message: Type.String({ maxLength: toolErrorUnitsMax }),
        } satisfies typeof ToolError.properties,
        { additionalProperties: false },
      ),
    ),
  },
  { additionalProperties: false },
)
export type ToolResult = Static<typeof ToolResult>

const fields = {
  message: Type.String({ minLength: 1, maxLength: messageCharactersMax }),
  session_id: Type.Optional(Uuid),
  mode: Type.Optional(Mode),
  model: Type.Optional(Type.String({ minLength: 1, maxLength: modelUnitsMax })),
  agent_id: Type.Optional(Type.String({ minLength: 1, maxLength: 255 })),
  parent_id: Type.Optional(Uuid),
  on_busy: Type.Optional(
    Type.Union([Type.Literal('reject'), Type.Literal('queue'), Type.Literal('interrupt')], { default: 'reject' }),
  ),
  on_disconnect: Type.Optional(Type.Union([Type.Literal('continue'), Type.Literal('stop')], { default: 'continue' })),
}

const { message, session_id, parent_id, ...wishes } = {
  ...fields,
  ...tools,
  client_message_id: Type.Optional(key),
  metadata: Type.Optional(Type.Record(Type.String(), Type.Unknown())),
}

/** A message, or answers to the tool calls with which a reply has ended. */
export const ChatBody = Type.Object(
  {
    message: Type.Optional(message),
    tool_results: Type.Optional(
      Type.Array(ToolResult, {
        minItems: 1,
        maxItems: toolResultsMax,
        description: 'answers to all the calls with which a reply of the session has ended',
      }),
    ),
    session_id,
    parent_id,
    ...wishes,
  },
  { additionalProperties: false, oneOf: [{ required: ['message'] }, { required: ['tool_results'] }] },
)
export type ChatBody = Static<typeof ChatBody>

/** Of a new reply to a message that is there. */
export const BranchBody = Type.Object(wishes, { additionalProperties: false })
export type BranchBody = Static<typeof BranchBody>

/** Of a message in another's place. */
export const EditBody = Type.Object({ message, ...wishes }, { additionalProperties: false })
export type EditBody = Static<typeof EditBody>

const { mode, model, agent_id, client_message_id } = wishes

/** Of a session's background run. */
export const StartBody = Type.Object({ mode, model, agent_id, client_message_id }, { additionalProperties: false })
export type StartBody = Static<typeof StartBody>

/** A native EventSource repeats its GET when it reconnects: without a key each repeat would be a new run. */
export const ChatQuery = Type.Object({ ...fields, client_message_id: key }, { additionalProperties: false })

export const WholeReply = Type.Object({ session: Session, user_message: Message, message: Message, run: Run })
export const StoppedRun = Type.Object({ run: Run, message: Message })
export const AcceptedRun = Type.Object({ run: Run, user_message: Message, message: Message })
export const StartedSession = Type.Object({ session: Session, run: Run })

/** What a client may see of a run. */
export function toRun(record: RunState & Partial<RunRecord>): Run {
  const {
    owner: _owner,
    request_hash: _hash,
    instance_id: _instance,
    last_seq: _seq,
    request: _request,
    ...run
  } = record
  return run
}

/** How a run has failed, for whoever has waited for its reply. A code that is not known here is `internal`. */
export function problemOf({ id, error }: Pick<Run, 'id' | 'error'>): Problem {
  const { code = 'internal', message, retryable } = error ?? {}
  return new Problem(isErrorCode(code) ? code : 'internal', message, {
    members: { run_id: id },
    ...(retryable !== undefined && { retryable }),
  })
}

/** Whether something is held back of budgets for it: the limit of its reply is stored in the same breath. */
export const holdsBudget = ({ request }: Pick<RunFacts, 'request'>): boolean => request?.max_output_tokens !== undefined

export const isTerminal = (status: RunStatus): boolean => status !== 'queued' && status !== 'running'
