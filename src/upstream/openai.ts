/**
 * The adapter for everything that speaks OpenAI's chat completions: OpenAI, Azure, OpenRouter, Groq, DeepSeek, Mistral,
 * Together, xAI, Perplexity, Gemini's compatible endpoint, vLLM, Ollama, llama.cpp, LM Studio and their relatives. What is
 * sent is chat-request's, what comes back is read by chat-chunks, and how a reply comes and fails is the business of http.
 */
import { ChatReader } from './chat-chunks.ts'
import { type ChatDialect, dialectOf, toChatBody } from './chat-request.ts'
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
  /** Absent: as the host is known to want it. */
  readonly maxTokensField?: ChatDialect['maxTokensField'] | undefined
  /** Absent: sent, but to hosts that are known to refuse it. */
  readonly streamOptions?: boolean | undefined
  /** Absent: reasoning in plain words is given back to nobody. */
  readonly reasoningContent?: boolean | undefined
}

export function createOpenai(options: OpenaiOptions): Upstream {
  const {
    provider = 'openai',
    baseUrl,
    apiKey,
    headers,
    maxTokensField,
    streamOptions,
    reasoningContent,
    ...limits
  } = options
  const url = urlBehind(baseUrl, '/chat/completions')
  const known = dialectOf(url)
  const dialect: ChatDialect = {
    ...known,
    maxTokensField: maxTokensField ?? known.maxTokensField,
    streamOptions: streamOptions ?? known.streamOptions,
    reasoningContent: reasoningContent ?? known.reasoningContent,
  }
  const allHeaders = { ...(apiKey === undefined ? {} : keyHeader(url, apiKey)), ...headers }
  return createHttpUpstream({
    ...limits,
    provider,
    toCall: (request) => ({
      url,
      headers: allHeaders,
      body: JSON.stringify(toChatBody(request, provider, dialect)),
    }),
    createReader: ({ model }) => new ChatReader(model),
  })
}

function keyHeader({ hostname }: URL, apiKey: string): Readonly<Record<string, string>> {
  // Azure takes a key there on all its routes, and a Bearer on some.
  if (hostname.endsWith('.azure.com')) return { 'api-key': apiKey }
  return { authorization: `Bearer ${apiKey}` }
}
