/**
 * Which other origins may call from a browser. The headers that a client may send and read are fixed lists, so how a
 * browser spells its preflight (with or without blanks after the commas) does not matter.
 */
import cors from '@fastify/cors'
import type { Server } from './server.ts'

/** What OpenAI's own clients say of themselves with each request. */
const officialClients = [
  'Arch',
  'Async',
  'Custom-Poll-Interval',
  'Helper-Method',
  'Lang',
  'OS',
  'Package-Version',
  'Poll-Helper',
  'Retry-Count',
  'Runtime',
  'Runtime-Version',
  'Timeout',
].map((name) => `X-Stainless-${name}`)

const allowedHeaders = [
  'Authorization',
  'Content-Type',
  'Last-Event-ID',
  'Idempotency-Key',
  'X-Visitor-Token',
  'X-Session-Id',
  'X-On-Disconnect',
  'X-On-Busy',
  ...officialClients,
  'If-Match',
  'If-None-Match',
  'Accept',
  'Cache-Control',
]
const exposedHeaders = [
  'X-Session-Id',
  'X-Run-Id',
  'X-Message-Id',
  'X-Visitor-Token',
  'X-Request-Id',
  'Location',
  'Retry-After',
  'X-Should-Retry',
  'ETag',
  'Content-Disposition',
  'WWW-Authenticate',
]
const preflightSeconds = 7200

/** @param origins none: no other origin may. `*`: any may, but without cookies */
export async function registerCors(app: Server, origins: readonly string[]): Promise<void> {
  const open = origins.includes('*')
  await app.register(cors, {
    origin: origins.length === 0 ? false : open ? '*' : [...origins],
    credentials: !open,
    methods: ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE'],
    allowedHeaders,
    exposedHeaders,
    maxAge: preflightSeconds,
    // An OPTIONS that is no preflight is harmless; the strict answer would be the one error that is no problem document.
    strictPreflight: false,
  })
}
