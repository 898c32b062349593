/**
 * The port to an agent: what makes a reply in place of one call to a model. A site's own pipeline (retrieval, several
 * rounds, a vote) is an async generator of events; what it yields is logged, shown, checkpointed and committed like the
 * words of a provider, so it need know nothing of viewers, resume, stop or databases.
 *
 * An agent is a provider to the run that it serves: it ends by returning, fails by throwing, and stops when the signal is
 * aborted. It is never asked twice by itself: who knows what its first steps have done outside. Only a run whose process
 * died before anything was shown begins once more.
 */
import type { ToolError } from '../log/event.ts'
import type { ModelSettings, ToolDefinition, UpstreamEvent, UpstreamMessage } from './upstream.ts'

/**
 * `usage` is of models that the agent has asked itself, beside its context; it has a cost when the `response` before it names
 * a model as `provider:model` whose price is known.
 */
export type AgentEvent =
  | UpstreamEvent
  /** What the tool call `key` came to. */
  | { readonly type: 'tool_result'; readonly key: string; readonly output?: unknown; readonly error?: ToolError }
  /** How far it has come; what is absent stays as it was. */
  | { readonly type: 'progress'; readonly phase?: string; readonly round?: number }
  /** A new version of a document of the session. */
  | { readonly type: 'artifact'; readonly name: string; readonly contentType: string; readonly body: string }
  /** A name for the session, unless a person has given it one. */
  | { readonly type: 'title'; readonly title: string }

export interface AgentRequest {
  readonly runId: string
  readonly sessionId: string
  /** The message that is being made. */
  readonly messageId: string
  /** Oldest first, as a model would get them. */
  readonly messages: readonly UpstreamMessage[]
  /** Of the user's message. */
  readonly metadata: Readonly<Record<string, unknown>>
}

/** What an agent may ask a model. */
export interface AgentQuestion extends ModelSettings {
  /** `provider:model`; absent: the models of the run's mode, with its settings, retries and fallbacks. */
  readonly model?: string
  readonly messages: readonly UpstreamMessage[]
  readonly tools?: readonly ToolDefinition[]
}

export interface AgentContext {
  /** Asks a model. What it uses is counted for the run, whatever the agent does with the answer. */
  ask(question: AgentQuestion): AsyncIterable<UpstreamEvent>
  /** The same, for its text alone. */
  askText(question: AgentQuestion): Promise<string>
}

export interface Agent {
  /** `agent_id` of a request: `[A-Za-z0-9._:-]{1,64}`. */
  readonly id: string
  reply(request: AgentRequest, context: AgentContext, signal: AbortSignal): AsyncIterable<AgentEvent>
  /** When the gateway ends. */
  close?(): Promise<void>
}
