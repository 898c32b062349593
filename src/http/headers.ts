/**
 * The headers that tell a browser what it must not do with an answer. They suit an API: nothing in an answer may run, load
 * or be framed. The page at / and the documents at /docs need more, and say so themselves (page.ts, openapi.ts).
 */
import helmet from '@fastify/helmet'
import type { Server } from './server.ts'

const hstsSeconds = 365 * 24 * 3600

/** @param crossOrigin whether frontends of other origins may use what is under /api and /v1 */
export async function registerHeaders(app: Server, { crossOrigin }: { readonly crossOrigin: boolean }): Promise<void> {
  await app.register(helmet, {
    contentSecurityPolicy: {
      useDefaults: false,
      directives: { 'default-src': ["'none'"], 'base-uri': ["'none'"], 'frame-ancestors': ["'none'"] },
    },
    // Browsers ignore it over plain http. Other names under the domain are not ours to decide about.
    strictTransportSecurity: { maxAge: hstsSeconds, includeSubDomains: false },
    // The id of a session is in the page's URL, and stays here.
    referrerPolicy: { policy: 'no-referrer' },
    xFrameOptions: { action: 'deny' },
    crossOriginResourcePolicy: { policy: 'same-origin' },
    crossOriginOpenerPolicy: { policy: 'same-origin' },
    originAgentCluster: false,
    xDnsPrefetchControl: false,
    xDownloadOptions: false,
    xPermittedCrossDomainPolicies: false,
    xXssProtection: false,
  })
  if (!crossOrigin) return
  app.addHook('onRequest', async (request, reply) => {
    // CORS decides who may read; a page that isolates itself could otherwise not even ask.
    if (/^\/(api|v1)\//.test(request.url)) reply.header('Cross-Origin-Resource-Policy', 'cross-origin')
  })
}
