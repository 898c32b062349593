/**
 * The adapter for Google's Gemini in its own dialect. It knows where the request goes; what is in it is gemini-request's
 * business, what comes back is read by gemini-chunks, and how a reply comes and fails is http's. The key goes in a header
 * and never in the URL, where logs would keep it.
 */
import { GeminiReader } from './gemini-chunks.ts'
import { toGeminiRequest } from './gemini-request.ts'
import { createHttpUpstream, type HttpLimits, urlBehind } from './http.ts'
import type { Upstream } from './upstream.ts'

export interface GeminiOptions extends HttpLimits {
  /** As in `provider:model`; `gemini` when it is not named. */
  readonly provider?: string
  /** Ends in `/v1beta`; `/models/<model>:streamGenerateContent` is added. */
  readonly baseUrl: string
  readonly apiKey?: string | undefined
  /** Further headers of each request, their names in lower case. */
  readonly headers?: Readonly<Record<string, string>>
}

export function createGemini(options: GeminiOptions): Upstream {
  const { provider = 'gemini', baseUrl, apiKey, headers = {}, ...limits } = options
  const allHeaders = { ...(apiKey === undefined ? {} : { 'x-goog-api-key': apiKey }), ...headers }
  return createHttpUpstream({
    ...limits,
    provider,
    toCall: (request) => ({
      url: urlOf(baseUrl, request.model),
      headers: allHeaders,
      body: JSON.stringify(toGeminiRequest(request, provider)),
    }),
    createReader: () => new GeminiReader(),
  })
}

/** @param model `gemini-…`, or with its collection as `models/…` or `tunedModels/…` */
function urlOf(baseUrl: string, model: string): URL {
  const [, collection = 'models', name = ''] = /^(?:(models|tunedModels)\/)?(.*)$/s.exec(model.toWellFormed()) ?? []
  // Whoever names a model may not lead the key elsewhere: a slash in its name is no path.
  const url = urlBehind(baseUrl, `/${collection}/${encodeURIComponent(name)}:streamGenerateContent`)
  url.searchParams.set('alt', 'sse')
  return url
}
