/**
 * The adapter for Anthropic's Messages, and for those who speak the same. It knows where the request goes and with which
 * headers; what is in it is anthropic-request's business, what comes back is read by anthropic-events, and how a reply
 * comes and fails is http's.
 */
import { AnthropicReader } from './anthropic-events.ts'
import { toAnthropicRequest } from './anthropic-request.ts'
import { createHttpUpstream, type HttpLimits, urlBehind } from './http.ts'
import type { Upstream } from './upstream.ts'

export interface AnthropicOptions extends HttpLimits {
  /** As in `provider:model`; `anthropic` when it is not named. */
  readonly provider?: string
  /** Ends in `/v1`; `/messages` is added. */
  readonly baseUrl: string
  readonly apiKey?: string | undefined
  /** Further headers of each request, their names in lower case. */
  readonly headers?: Readonly<Record<string, string>>
}

/** Of the dialect: it has been the same since 2023. */
const version = '2023-06-01'

export function createAnthropic(options: AnthropicOptions): Upstream {
  const { provider = 'anthropic', baseUrl, apiKey, headers = {}, ...limits } = options
  const url = urlBehind(baseUrl, '/messages')
  const allHeaders: Readonly<Record<string, string>> = {
    'anthropic-version': version,
    ...(apiKey === undefined ? {} : { 'x-api-key': apiKey }),
    ...headers,
  }
  return createHttpUpstream({
    ...limits,
    provider,
    toCall: (request) => {
      const { body, betas } = toAnthropicRequest(request, provider)
      const beta = [allHeaders['anthropic-beta'] ?? [], betas].flat().join(',')
      return {
        url,
        headers: beta === '' ? allHeaders : { ...allHeaders, 'anthropic-beta': beta },
        body: JSON.stringify(body),
      }
    },
    createReader: () => new AnthropicReader(),
  })
}
