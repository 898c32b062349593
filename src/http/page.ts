/**
 * The chat page at `/`: four files and nothing else. The page is a client of the protocol like any other, so this
 * plugin knows nothing of sessions or runs. It lists no folder and serves no file that is not named here.
 */
import { fastifyStatic } from '@fastify/static'
// For the type of a route's `hide`.
import type {} from '@fastify/swagger'
import type { FastifyInstance } from 'fastify'

/** Path -> file. A file that is added to the folder is not public until it is named here. */
const files = {
  '/': 'index.html',
  '/page.css': 'page.css',
  '/page.js': 'page.js',
  '/favicon.svg': 'favicon.svg',
} as const

const headers = {
  // The page renders what a model wrote. It does so as text only, and should that ever fail, nothing that gets into
  // the document can run, load, send or be framed.
  'content-security-policy': [
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src 'self' data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ].join('; '),
  // Kept but asked about each time: a page must not outlive the gateway it was written for.
  'cache-control': 'no-cache',
} as const

export async function page(app: FastifyInstance): Promise<void> {
  await app.register(fastifyStatic, {
    root: new URL('../page/', import.meta.url),
    serve: false,
    cacheControl: false,
    etag: true,
    index: false,
  })
  app.addHook('onRequest', async (_request, reply) => {
    reply.headers(headers)
  })
  for (const [path, file] of Object.entries(files)) {
    app.get(path, { schema: { hide: true } }, (_request, reply) => reply.sendFile(file))
  }
}
