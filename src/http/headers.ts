/**
 * The headers that tell a browser what it must not do with an answer. They suit an API: nothing in an answer may run, load
 * or be framed. The page at / and the documents at /docs need more, and say so themselves (page.ts, openapi.ts).
 *
 * They are those that helmet sets, as a table and by way of the reply: what a middleware sets on Node's own response stays
 * with it, as a map of names and values, for as long as a stream is open.
 */
import type { Server } from './server.ts'

const hstsSeconds = 365 * 24 * 3600

const headers = {
  'content-security-policy': "default-src 'none';base-uri 'none';frame-ancestors 'none'",
  'x-content-type-options': 'nosniff',
  // The id of a session is in the page's URL, and stays here.
  'referrer-policy': 'no-referrer',
  // Browsers ignore it over plain http. Other names under the domain are not ours to decide about.
  'strict-transport-security': `max-age=${hstsSeconds}`,
  'x-frame-options': 'DENY',
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
} as const

/** @param crossOrigin whether frontends of other origins may use what is under /api and /v1 */
export function registerHeaders(app: Server, { crossOrigin }: { readonly crossOrigin: boolean }): void {
  app.addHook('onRequest', async (request, reply) => {
    reply.headers(headers)
    // CORS decides who may read; a page that isolates itself could otherwise not even ask.
    if (crossOrigin && /^\/(api|v1)\//.test(request.url)) reply.header('cross-origin-resource-policy', 'cross-origin')
  })
}
