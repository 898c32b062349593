/**
 * The port to a model provider. An adapter turns one provider's stream into these events and nothing else: it keeps no
 * run state, knows nothing of sessions or logs, and never lets a provider's error text out (it can quote the prompt or
 * the key). It ends in one of two ways: the iteration finishes, which means that the provider said the reply is
 * complete, or it throws a Problem, which covers refusal, error in mid-stream, stall, garbage and a cut.
 *
 * What an adapter is asked is the same for all providers; what a provider has no word for is left out, never refused.
 */
import type { Part, Usage } from '../log/event.ts'

export type UpstreamMessage =
  | { readonly role: 'system' | 'user'; readonly content: string }
  | {
      readonly role: 'assistant'
      /** The text parts, joined. */
      readonly content: string
      /**
       * In the order in which it was said, where there is more than text. A tool call that the gateway answered itself has
       * its `output` or `error`, and the next thing said comes after that answer; the others are answered by the messages of
       * role `tool` that follow.
       */
      readonly parts?: readonly Part[]
      /** Who said it: signatures are given back to that provider only. */
      readonly provider?: string
    }
  /** What a tool of the client answered. `content` is text, or JSON as text. */
  | {
      readonly role: 'tool'
      readonly callId: string
      readonly name: string
      readonly content: string
      readonly isError?: boolean
    }

export interface ToolDefinition {
  /** `[A-Za-z0-9_-]{1,64}`, the narrowest that providers agree on. */
  readonly name: string
  readonly description?: string
  /** JSON Schema of an object. */
  readonly parameters: Readonly<Record<string, unknown>>
}

export type ToolChoice = 'auto' | 'none' | 'required' | { readonly name: string }

export type Effort = 'none' | 'minimal' | 'low' | 'medium' | 'high'

/** What the words of a reply have to be. A provider that cannot be held to it is told so in words (formats.ts). */
export type ReplyFormat =
  | { readonly type: 'text' }
  | { readonly type: 'json_object' }
  | {
      readonly type: 'json_schema'
      readonly name: string
      readonly description?: string
      readonly schema: Readonly<Record<string, unknown>>
      readonly strict?: boolean
    }

/** How a reply is to be made. Absent: as the provider sees fit. */
export interface ModelSettings {
  readonly temperature?: number
  readonly topP?: number
  readonly frequencyPenalty?: number
  readonly presencePenalty?: number
  /** Texts before which the reply ends. */
  readonly stop?: readonly string[]
  /** How much a model that reasons may do so. */
  readonly effort?: Effort
  readonly maxOutputTokens?: number
  readonly format?: ReplyFormat
  /** False: one call of a tool at a time. */
  readonly parallelToolCalls?: boolean
}

export interface UpstreamRequest extends ModelSettings {
  readonly model: string
  /** Oldest first; the last one is the user's new message, or what a tool answered. */
  readonly messages: readonly UpstreamMessage[]
  readonly tools?: readonly ToolDefinition[]
  readonly toolChoice?: ToolChoice
}

export type UpstreamEvent =
  /** What the provider calls the reply; may come more than once, the last one counts. */
  | { readonly type: 'response'; readonly id?: string; readonly model?: string }
  | { readonly type: 'text'; readonly text: string }
  | { readonly type: 'reasoning'; readonly text: string }
  /** `key` tells parallel calls apart while their arguments stream; `arguments` is the next piece of raw JSON text. */
  | {
      readonly type: 'tool_call'
      readonly key: string
      readonly callId?: string
      readonly name?: string
      readonly arguments: string
    }
  /**
   * The seal on what was said last, whole: on the tool call `key`, else on the text or reasoning before it, which ends with
   * it. `redacted`: on reasoning that is not shown, which is a part of its own without words.
   */
  | { readonly type: 'signature'; readonly signature: string; readonly key?: string; readonly redacted?: true }
  /** Each source once a reply. */
  | { readonly type: 'source'; readonly url?: string; readonly title?: string }
  /** `url` is https: or, for what the model made itself, data: */
  | { readonly type: 'file'; readonly mediaType: string; readonly url: string }
  /** Cumulative counts: the last one counts. */
  | { readonly type: 'usage'; readonly usage: Usage }
  /** Why the model stopped, as `stop`, `length`, `tool_calls`, `content_filter`, or the provider's own word. */
  | { readonly type: 'finish'; readonly reason: string }

export interface Upstream {
  /** The provider's name, as in `provider:model`. */
  readonly provider: string
  /**
   * Asks the provider once, and yields its reply as it comes.
   * All text that leaves is well-formed Unicode without U+0000.
   * @throws Problem `upstream_rejected` `upstream_unavailable` `upstream_timeout` `too_large`; the signal's reason when aborted
   */
  stream(request: UpstreamRequest, signal: AbortSignal): AsyncIterable<UpstreamEvent>
  /**
   * The same, told to a function as it comes; resolves when the reply is whole. A run reads this way where it can: an
   * iteration makes several promises for each token. When `tell` throws, the reply is cut, and that is thrown.
   */
  read?(request: UpstreamRequest, tell: (event: UpstreamEvent) => void, signal: AbortSignal): Promise<void>
  /** Frees sockets. Streams still open are cut. */
  close(): Promise<void>
}

/** Whether a viewer sees something of it: after the first of these, nobody else is asked. */
export function isVisible(event: { readonly type: string }): boolean {
  return visible.has(event.type)
}

const visible: ReadonlySet<string> = new Set(['text', 'reasoning', 'tool_call', 'signature', 'source', 'file'])
