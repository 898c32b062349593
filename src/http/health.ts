/**
 * What an orchestrator asks. `live`: the process turns. `ready`: send it traffic; false while it starts, while the
 * database does not answer, and from the moment it drains. `db`: the database answers.
 */
import { Type } from 'typebox'
import type { Server } from './server.ts'

export interface Readiness {
  readonly state: 'starting' | 'ready' | 'draining'
  /** What works less well than configured, in words for an operator. */
  readonly degraded: string | undefined
}

export interface HealthOptions {
  readonly readiness: () => Readiness
  /** Rejects when the database does not answer. */
  readonly pingDatabase: () => Promise<unknown>
}

const Ready = Type.Object({
  ok: Type.Boolean(),
  state: Type.String(),
  degraded: Type.Boolean(),
  reason: Type.Optional(Type.String()),
})
const Ok = Type.Object({ ok: Type.Boolean() })
const response = { 200: Ok, 503: Ok }

export function registerHealth(app: Server, { readiness, pingDatabase }: HealthOptions): void {
  const answers = () =>
    pingDatabase().then(
      () => true,
      () => false, // why it does not answer is logged where it happened; here only that counts
    )

  app.get(
    '/health/live',
    { exposeHeadRoute: true, schema: { tags: ['health'], security: [], response: { 200: Ok } } },
    async () => ({ ok: true }),
  )

  app.get(
    '/health/ready',
    { exposeHeadRoute: true, schema: { tags: ['health'], security: [], response: { 200: Ready, 503: Ready } } },
    async (_request, reply) => {
      const { state, degraded } = readiness()
      const ok = state === 'ready' && (await answers())
      return reply.code(ok ? 200 : 503).send({
        ok,
        state: state === 'ready' && !ok ? 'database does not answer' : state,
        degraded: degraded !== undefined,
        ...(degraded === undefined ? {} : { reason: degraded }),
      })
    },
  )

  app.get(
    '/health/db',
    { exposeHeadRoute: true, schema: { tags: ['health'], security: [], response } },
    async (_request, reply) => {
      const ok = await answers()
      return reply.code(ok ? 200 : 503).send({ ok })
    },
  )
}
