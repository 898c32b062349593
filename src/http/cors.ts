/**
 * Which other origins may call from a browser. The headers that a client may send and read are fixed lists, so how a
 * browser spells its preflight (with or without blanks after the commas) does not matter.
 */
import cors from '@fastify/cors'
import type { Server } from './server.ts'

/** Of the surfaces under /api. */
const ownHeaders = [
  'Authorization',
  'Content-Type',
  'Last-Event-ID',
  'Idempotency-Key',
  'X-Visitor-Token',
  'If-Match',
  'If-None-Match',
  'Accept',
  'Cache-Control',
  'X-Session-Id',
  'X-On-Disconnect',
  'X-On-Busy',
  // The AI SDK names itself in it.
  'User-Agent',
]
/** What the OpenAI clients send with every request, without being asked; one that is missing fails the preflight. */
const openaiHeaders = [
  'OpenAI-Beta',
  'OpenAI-Organization',
  'OpenAI-Project',
  ...[
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
  ].map((name) => `X-Stainless-${name}`),
]
const exposedHeaders = [
  'X-Session-Id',
  'X-Run-Id',
  'X-Message-Id',
  'X-Visitor-Token',
  'X-Request-Id',
  'Location',
  'Retry-After',
  'ETag',
  'Content-Disposition',
  'WWW-Authenticate',
  'X-Should-Retry',
  'X-Error-Code',
  'X-Resumable-Stream-Id',
  'X-Vercel-AI-UI-Message-Stream',
]
const preflightSeconds = 7200

/** @param origins none: no other origin may. `*`: any may, but without cookies */
export async function registerCors(app: Server, origins: readonly string[]): Promise<void> {
  const open = origins.includes('*')
  await app.register(cors, {
    origin: origins.length === 0 ? false : open ? '*' : [...origins],
    credentials: !open,
    methods: ['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE'],
    allowedHeaders: [...ownHeaders, ...openaiHeaders],
    exposedHeaders,
    maxAge: preflightSeconds,
    // An OPTIONS that is no preflight is harmless; the strict answer would be the one error that is no problem document.
    strictPreflight: false,
  })
}
