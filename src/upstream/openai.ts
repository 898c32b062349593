/**
 * The adapter for everything that speaks OpenAI's chat completions: OpenAI, Azure, OpenRouter, Groq, DeepSeek, Mistral,
 * vLLM, Ollama and their relatives. It knows what to send; what comes back is read by chat-chunks, and how a reply comes
 * and fails is the business of http.
 */
import { ChatReader } from './chat-chunks.ts'
import { createHttpUpstream, type HttpLimits, urlBehind } from './http.ts'
import type { Upstream } from './upstream.ts'

export interface OpenaiOptions extends HttpLimits {
  /** As in `provider:model`; `openai` when it is not named. */
  readonly provider?: string
  /** Ends in `/v1` at most providers; `/chat/completions` is added. */
  readonly baseUrl: string
  readonly apiKey?: string | undefined
  /** Further headers of each request, their names in lower case. */
  readonly headers?: Readonly<Record<string, string>>
}

export function createOpenai(options: OpenaiOptions): Upstream {
  const { provider = 'openai', baseUrl, apiKey, headers = {}, ...limits } = options
  const url = urlBehind(baseUrl, '/chat/completions')
  const allHeaders = { ...(apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` }), ...headers }
  return createHttpUpstream({
    ...limits,
    provider,
    toCall: ({ model, messages }) => ({
      url,
      headers: allHeaders,
      body: JSON.stringify({
        model,
        messages: messages.map(({ role, content }) => ({ role, content })),
        stream: true,
        stream_options: { include_usage: true },
      }),
    }),
    createReader: () => new ChatReader(),
  })
}
