/**
 * What goes over the wire, as TypeScript: made of the schemas of the gateway by `npm run client:types`, and not to be
 * changed by hand.
 */

export type PartKind = 'text' | 'reasoning' | 'tool_call' | 'source' | 'file'

/** What went wrong with a tool. */
export interface ToolError {
  readonly code: string
  readonly message: string
}

/** A piece of a message. `text` is the words of a text or reasoning part, and the raw arguments of a tool call. */
export interface Part {
  readonly kind: PartKind
  readonly text: string
  /** of a tool call */
  readonly call_id?: string
  /** of a tool call */
  readonly name?: string
  /** the parsed arguments of a tool call */
  readonly input?: unknown
  /** what the tool answered */
  readonly output?: unknown
  readonly error?: ToolError
  /** of a source or a file; a file of the model itself is a data: URL */
  readonly url?: string
  /** of a source */
  readonly title?: string
  /** of a file */
  readonly media_type?: string
  /** the provider's seal on what it said, which it wants back with the next request */
  readonly signature?: string
  /** reasoning that the provider shows to nobody */
  readonly redacted?: true
}

export type RunStatus = 'queued' | 'running' | 'completed' | 'stopped' | 'failed' | 'interrupted'

export type TerminalStatus = 'completed' | 'stopped' | 'failed' | 'interrupted'

export type Mode = 'fast' | 'balanced' | 'quality' | 'adaptive'

/** Token counts. `input_tokens` are all of the prompt, `output_tokens` all that was made. */
export interface Usage {
  readonly input_tokens: number
  readonly output_tokens: number
  readonly total_tokens: number
  /** of the output tokens */
  readonly reasoning_tokens?: number
  /** of the input tokens: read from a cache */
  readonly cached_input_tokens?: number
  /** of the input tokens: written to a cache */
  readonly cache_write_tokens?: number
}

/** Why a reply is not whole. `code` is one of {@link ErrorCode}. */
export interface RunError {
  readonly code: string
  readonly message: string
  readonly retryable: boolean
}

/** Data of `run`, the first event. */
export interface RunStarted {
  readonly run_id: string
  readonly session_id: string
  readonly user_message_id: string
  readonly message_id: string
  readonly model: string
  readonly mode: Mode
  readonly created_at: string
}

/** Data of `part`: opens a part of another kind than text, or a second text part. */
export interface PartOpened {
  readonly part: number
  readonly kind: PartKind
  readonly call_id?: string
  readonly name?: string
  readonly url?: string
  readonly media_type?: string
}

/** Data of `delta`. `offset` counts the UTF-16 units of that part before it. */
export interface Delta {
  readonly part: number
  readonly offset: number
  readonly text: string
}

/** Data of `tool`: a call whose arguments are complete, or that has been answered. */
export interface ToolCalled {
  readonly part: number
  readonly call_id: string
  readonly name: string
  readonly input?: unknown
  readonly output?: unknown
  readonly error?: ToolError
}

/** Data of `source`: opens a part that says where something comes from. */
export interface SourceNamed {
  readonly part: number
  readonly url?: string
  readonly title?: string
}

/** Data of `progress`: how far a reply of several steps has come. */
export interface Progress {
  readonly phase?: string
  readonly round?: number
  /** so far; absent when a price is not known */
  readonly cost_usd?: string
}

/** Data of `artifact`: a document of the session has a new version. */
export interface ArtifactMade {
  readonly name: string
  readonly version: number
  readonly content_type: string
}

/** Data of `title`: the session has a new title. */
export interface Titled {
  readonly title: string
}

/** Data of `usage`: what a reply of several steps has used so far. */
export interface UsageSoFar {
  readonly usage: Usage
  readonly cost_usd?: string
}

/** Data of `reset`: replaces all that came before. */
export interface Reset {
  readonly message_id: string
  readonly parts: readonly Part[]
  readonly cursor: string
}

/** Data of `done`, the only end. */
export interface Done {
  readonly status: TerminalStatus
  readonly message_id: string
  readonly finish_reason?: string
  readonly usage?: Usage
  readonly cost_usd?: string
  readonly ttft_ms?: number
  readonly latency_ms?: number
  readonly error?: RunError
}

export type SessionStatus = 'created' | 'running' | 'completed' | 'failed' | 'killed' | 'deleted'

export interface Session {
  readonly id: string
  readonly external_id: string | null
  readonly user_id: string | null
  readonly is_anonymous: boolean
  readonly kind: string
  readonly status: SessionStatus
  readonly title: string | null
  readonly mode: Mode
  readonly model: string | null
  readonly phase: string | null
  readonly round_number: number | null
  readonly input: string | null
  readonly context: unknown
  readonly state: unknown
  readonly message_count: number
  readonly total_tokens: number
  /** decimal */
  readonly total_cost_usd: string
  readonly active_run_id: string | null
  readonly tags: readonly string[]
  readonly metadata: Readonly<Record<string, unknown>>
  readonly version: number
  readonly archived: boolean
  /** ISO 8601 in UTC with microseconds */
  readonly created_at: string
  /** ISO 8601 in UTC with microseconds */
  readonly updated_at: string
  /** ISO 8601 in UTC with microseconds */
  readonly last_activity_at: string
  readonly ended_at: string | null
  /** the database does not answer: this is what was known of it last */
  readonly degraded?: true
}

export type MessageStatus = 'streaming' | 'completed' | 'stopped' | 'failed' | 'interrupted'

export interface Feedback {
  readonly rating: 1 | -1
  readonly comment: string | null
}

export interface Message {
  readonly id: string
  readonly session_id: string
  /** place in the session, from 1 */
  readonly seq: number
  readonly parent_id: string | null
  readonly run_id: string | null
  readonly role: 'user' | 'assistant' | 'system' | 'tool'
  /** the text parts, joined */
  readonly content: string
  readonly parts: readonly Part[]
  readonly status: MessageStatus
  readonly agent_id: string | null
  readonly model: string | null
  readonly client_message_id: string | null
  readonly retrieved_docs: unknown
  readonly reranker_used: boolean | null
  readonly input_tokens: number | null
  readonly output_tokens: number | null
  readonly total_tokens: number | null
  readonly cost_usd: string | null
  readonly latency_ms: number | null
  readonly ttft_ms: number | null
  readonly finish_reason: string | null
  readonly error: RunError | null
  readonly metadata: Readonly<Record<string, unknown>>
  readonly feedback: Feedback | null
  /** ISO 8601 in UTC with microseconds */
  readonly created_at: string
  readonly completed_at: string | null
  /** of a running message: the event up to which content and parts go */
  readonly cursor?: string
}

export type ArtifactType =
  | 'application/json'
  | 'text/plain'
  | 'text/markdown'
  | 'text/html'
  | 'text/csv'
  | 'application/xml'

/** A document of a session. */
export interface Artifact {
  readonly name: string
  readonly version: number
  readonly content_type: ArtifactType
  /** the JSON value, or the text as a string */
  readonly body: unknown
  /** ISO 8601 in UTC with microseconds */
  readonly created_at: string
}

export interface ArtifactSummary {
  readonly name: string
  readonly version: number
  readonly content_type: ArtifactType
  /** of the body, as UTF-8 */
  readonly bytes: number
  /** ISO 8601 in UTC with microseconds */
  readonly created_at: string
}

export interface ArtifactList {
  readonly data: readonly ArtifactSummary[]
}

export interface SessionWithMembers {
  readonly id: string
  readonly external_id: string | null
  readonly user_id: string | null
  readonly is_anonymous: boolean
  readonly kind: string
  readonly status: SessionStatus
  readonly title: string | null
  readonly mode: Mode
  readonly model: string | null
  readonly phase: string | null
  readonly round_number: number | null
  readonly input: string | null
  readonly context: unknown
  readonly state: unknown
  readonly message_count: number
  readonly total_tokens: number
  /** decimal */
  readonly total_cost_usd: string
  readonly active_run_id: string | null
  readonly tags: readonly string[]
  readonly metadata: Readonly<Record<string, unknown>>
  readonly version: number
  readonly archived: boolean
  /** ISO 8601 in UTC with microseconds */
  readonly created_at: string
  /** ISO 8601 in UTC with microseconds */
  readonly updated_at: string
  /** ISO 8601 in UTC with microseconds */
  readonly last_activity_at: string
  readonly ended_at: string | null
  /** the database does not answer: this is what was known of it last */
  readonly degraded?: true
  readonly messages?: readonly Message[]
  readonly messages_next_cursor?: string | null
  readonly artifacts?: readonly ArtifactSummary[]
}

/** One time that a provider was asked for a run. */
export interface UpstreamCall {
  readonly provider: string
  readonly model: string
  /** `completed`, `stopped`, `interrupted`, or the code of the error */
  readonly outcome: string
  /** ISO 8601 in UTC with microseconds */
  readonly started_at: string
  readonly ttft_ms: number | null
  readonly latency_ms: number | null
  readonly usage: Usage | null
  readonly usage_source: 'provider' | 'estimated' | null
  readonly cost_usd: string | null
}

export interface Run {
  readonly id: string
  readonly session_id: string
  readonly user_message_id: string
  readonly message_id: string
  readonly kind: string
  readonly status: RunStatus
  readonly mode: Mode
  readonly provider: string
  readonly model: string
  readonly phase: string | null
  readonly round_number: number | null
  readonly cost_usd: string | null
  readonly usage: Usage | null
  readonly usage_source: string | null
  readonly upstream_calls: readonly UpstreamCall[]
  readonly profile: string | null
  readonly profile_reasons: readonly string[] | null
  readonly finish_reason: string | null
  readonly error: RunError | null
  readonly generation: number
  readonly attempts: number
  readonly on_disconnect: 'continue' | 'stop'
  readonly stop_requested_at: string | null
  /** ISO 8601 in UTC with microseconds */
  readonly created_at: string
  readonly started_at: string | null
  readonly first_token_at: string | null
  readonly ended_at: string | null
}

export interface StoppedRun {
  readonly run: Run
  readonly message: Message
}

export interface StartedSession {
  readonly session: Session
  readonly run: Run
}

export interface StreamTicket {
  readonly ticket: string
  /** seconds in which a first connection has to be made */
  readonly expires_in: number
}

export interface MessageFeedback {
  readonly message_id: string
  readonly rating: 1 | -1
  readonly comment: string | null
  /** ISO 8601 in UTC with microseconds */
  readonly created_at: string
  /** ISO 8601 in UTC with microseconds */
  readonly updated_at: string
}

export interface Claimed {
  /** sessions moved; deleted ones are not counted */
  readonly claimed: number
}

/** What the caller has spent today, and may. */
export interface DayUsage {
  /** in UTC */
  readonly day: string
  /** decimal; without what has no price */
  readonly spent_usd: string
  readonly spent_tokens: number
  /** held back for replies under way; decimal */
  readonly reserved_usd: string
  readonly limit_usd: string | null
  readonly limit_tokens: number | null
  /** ISO 8601 in UTC */
  readonly resets_at: string
}

/** What the model may call. */
export interface Tool {
  readonly name: string
  readonly description?: string
  /** JSON Schema of an object */
  readonly parameters: Readonly<Record<string, unknown>>
}

/** What became of one call: `output` or `error`. */
export interface ToolResult {
  readonly call_id: string
  /** any JSON; a text goes to the model as it is */
  readonly output?: unknown
  readonly error?: {
    readonly code: string
    readonly message: string
  }
}

/** A message, or answers to the tool calls with which a reply has ended: one of the two. */
export interface ChatBody {
  readonly message?: string
  /** answers to all the calls with which a reply of the session has ended */
  readonly tool_results?: readonly ToolResult[]
  readonly session_id?: string
  readonly parent_id?: string
  readonly mode?: Mode
  readonly model?: string
  readonly agent_id?: string
  readonly on_busy?: 'reject' | 'queue' | 'interrupt'
  readonly on_disconnect?: 'continue' | 'stop'
  /** what the model may call; the client answers the calls */
  readonly tools?: readonly Tool[]
  readonly tool_choice?:
    | 'auto'
    | 'none'
    | 'required'
    | {
        readonly name: string
      }
  readonly client_message_id?: string
  readonly metadata?: Readonly<Record<string, unknown>>
}

/** Of a new reply to a message that is there. */
export interface BranchBody {
  readonly mode?: Mode
  readonly model?: string
  readonly agent_id?: string
  readonly on_busy?: 'reject' | 'queue' | 'interrupt'
  readonly on_disconnect?: 'continue' | 'stop'
  /** what the model may call; the client answers the calls */
  readonly tools?: readonly Tool[]
  readonly tool_choice?:
    | 'auto'
    | 'none'
    | 'required'
    | {
        readonly name: string
      }
  readonly client_message_id?: string
  readonly metadata?: Readonly<Record<string, unknown>>
}

/** Of a message in another's place. */
export interface EditBody {
  readonly message: string
  readonly mode?: Mode
  readonly model?: string
  readonly agent_id?: string
  readonly on_busy?: 'reject' | 'queue' | 'interrupt'
  readonly on_disconnect?: 'continue' | 'stop'
  /** what the model may call; the client answers the calls */
  readonly tools?: readonly Tool[]
  readonly tool_choice?:
    | 'auto'
    | 'none'
    | 'required'
    | {
        readonly name: string
      }
  readonly client_message_id?: string
  readonly metadata?: Readonly<Record<string, unknown>>
}

/** Of a session's background run. */
export interface StartBody {
  readonly mode?: Mode
  readonly model?: string
  readonly agent_id?: string
  readonly client_message_id?: string
}

export interface CreateSessionBody {
  readonly id?: string
  readonly external_id?: string
  readonly kind?: string
  readonly input?: string
  readonly context?: Readonly<Record<string, unknown>>
  readonly mode?: Mode
  readonly title?: string
  readonly metadata?: Readonly<Record<string, unknown>>
}

export interface PatchSessionBody {
  readonly title?: string | null
  readonly mode?: Mode
  readonly metadata?: Readonly<Record<string, unknown>>
  readonly tags?: readonly string[]
  /** any JSON; null is none */
  readonly state?: unknown
  readonly ended?: boolean
}

export interface FeedbackBody {
  readonly rating: 1 | -1
  readonly comment?: string
}

export interface ListSessionsQuery {
  readonly status?: SessionStatus
  readonly kind?: string
  readonly mode?: Mode
  readonly tag?: string
  /** last activity at or after */
  readonly from?: string
  /** last activity before */
  readonly to?: string
  readonly archived?: boolean
  /** words, each of which is in the title or a message, also as a part of a word; capitals do not matter */
  readonly q?: string
  readonly cursor?: string
  readonly limit?: number
  readonly offset?: number
}

export interface ListMessagesQuery {
  readonly cursor?: string
  readonly limit?: number
  readonly order?: 'asc' | 'desc'
  /** active: only what is on the way from the newest message to the beginning */
  readonly branch?: 'all' | 'active'
}

/** How the gateway says no. `code` is one of {@link ErrorCode}. */
export interface ProblemDocument {
  readonly type: string
  readonly title: string
  readonly status: number
  readonly code: string
  readonly detail: string
  readonly request_id: string
  readonly retryable: boolean
  readonly [member: string]: unknown
}

/** A page of a list. `next_cursor` asks for the next one. */
export interface Page<Row> {
  readonly data: readonly Row[]
  readonly next_cursor: string | null
  /** the database does not answer: this is what was known of it last */
  readonly degraded?: true
}

/** Name of an event on the wire -> its data. */
export interface EventData {
  readonly run: RunStarted
  readonly part: PartOpened
  readonly delta: Delta
  readonly tool: ToolCalled
  readonly source: SourceNamed
  readonly progress: Progress
  readonly artifact: ArtifactMade
  readonly title: Titled
  readonly usage: UsageSoFar
  readonly reset: Reset
  readonly done: Done
}

/** What `code` of an error can be; a later gateway may have more. */
export type ErrorCode =
  | 'invalid_request'
  | 'invalid_token'
  | 'budget_exceeded'
  | 'forbidden_origin'
  | 'not_found'
  | 'session_busy'
  | 'conflict'
  | 'precondition_failed'
  | 'too_large'
  | 'idempotency_mismatch'
  | 'rate_limited'
  | 'internal'
  | 'upstream_rejected'
  | 'upstream_unavailable'
  | 'db_unavailable'
  | 'persist_pending'
  | 'draining'
  | 'overloaded'
  | 'auth_unavailable'
  | 'interrupted'
  | 'upstream_timeout'
