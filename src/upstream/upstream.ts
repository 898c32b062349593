/**
 * The port to a model provider. An adapter turns one provider's stream into these events and nothing else: it keeps no
 * run state, knows nothing of sessions or logs, and never lets a provider's error text out (it can quote the prompt or
 * the key). It ends in one of two ways: the iteration finishes, which means that the provider said the reply is
 * complete, or it throws a Problem, which covers refusal, error in mid-stream, stall, garbage and a cut.
 */
import type { Usage } from '../log/event.ts'

export interface UpstreamMessage {
  readonly role: 'system' | 'user' | 'assistant'
  readonly content: string
}

export interface UpstreamRequest {
  readonly model: string
  /** Oldest first; the last one is the user's new message. */
  readonly messages: readonly UpstreamMessage[]
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
  /** Frees sockets. Streams still open are cut. */
  close(): Promise<void>
}
