/**
 * What is noted of each request that was answered: a line of the log, and a count by whoever counts. No address, no query, no
 * path: clients invent those. A hook does it for all answers but streams, whose connection does (sse.ts); a stream counts when it
 * has ended, and one whose client went away before that is not counted.
 */
import type { FastifyBaseLogger, FastifyReply, FastifyRequest } from 'fastify'

export interface Answer {
  readonly requestId: string
  readonly method: string
  /** The pattern, not the path. */
  readonly route: string
  readonly status: number
  /** From the request to the end of its answer. */
  readonly ms: number
}

export const routeOf = ({ routeOptions }: FastifyRequest): string => routeOptions.url ?? 'none'

export const answerOf = (request: FastifyRequest, reply: FastifyReply): Answer => ({
  requestId: request.id,
  method: request.method,
  route: routeOf(request),
  status: reply.statusCode,
  ms: Math.round(reply.elapsedTime),
})

/** @param logger of the app, whose lines say nothing of a request by themselves */
export function logAnswer(logger: FastifyBaseLogger, { requestId, method, route, status, ms }: Answer): void {
  // Orchestrators ask every few seconds.
  const level = route.startsWith('/health/') ? 'debug' : 'info'
  logger[level]({ [requestIdLabel]: requestId, method, route, status, ms }, 'request')
}

/** How lines name the request that they belong to. */
export const requestIdLabel = 'request_id'
