/**
 * How errors leave: always as application/problem+json with a code of the catalogue (RFC 9457), whatever they were when
 * they came in. What nobody foresaw is `internal`, with its details in the log and not in the answer.
 */
import { randomUUID } from 'node:crypto'
import type { ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { FastifyError, FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import fastifyPlugin from 'fastify-plugin'
import { Type } from 'typebox'
import { catalogue, Problem } from '../errors.ts'

export const problemType = 'application/problem+json'

export const ProblemDocument = Type.Object(
  {
    type: Type.String(),
    title: Type.String(),
    status: Type.Integer(),
    code: Type.String(),
    detail: Type.String(),
    request_id: Type.String(),
    retryable: Type.Boolean(),
  },
  { additionalProperties: true },
)

export const problems = fastifyPlugin(async (app: FastifyInstance) => {
  app.setErrorHandler((error: FastifyError, request, reply) => {
    return sendProblem(readProblem(error, request), request, reply)
  })
  app.setNotFoundHandler((request, reply) =>
    sendProblem(new Problem('not_found', 'There is no such route.'), request, reply),
  )
})

/** What an error of a request is to its client; what the operator has to know of it is logged. */
export function readProblem(error: FastifyError, request: FastifyRequest): Problem {
  const problem = toProblem(error, request.routeOptions.bodyLimit)
  if (problem.code === 'internal') request.log.error({ err: error }, 'a request failed in a way nobody expected')
  else if (problem.status >= 500 && !isToldTogether(problem))
    request.log.warn({ code: problem.code }, 'a request failed')
  return problem
}

/** Of those that are refused for overload a line says when it began, and one when it ended. */
const isToldTogether = ({ code }: Problem): boolean => code === 'overloaded'

export function sendProblem(problem: Problem, request: FastifyRequest, reply: FastifyReply): FastifyReply {
  return beginProblem(problem, request, reply)
    .type(problemType)
    .send({ ...toDocument(problem), request_id: request.id })
}

/** Status and headers of a refusal, whatever the body looks like. */
export function beginProblem(problem: Problem, request: FastifyRequest, reply: FastifyReply): FastifyReply {
  if (problem.retryAfterSeconds !== undefined) reply.header('Retry-After', problem.retryAfterSeconds)
  if (problem.code === 'invalid_token') reply.header('WWW-Authenticate', 'Bearer error="invalid_token"')
  return (
    reply
      .code(problem.status)
      .header('Cache-Control', 'no-store')
      // A URL that cannot be read never comes to the hook that sets it.
      .header('X-Request-Id', request.id)
  )
}

/** Answers what is not even a request: Node gives us a bare socket. */
export function answerBrokenRequest(this: FastifyInstance, error: NodeJS.ErrnoException, socket: Socket): void {
  // Node's own handler looks at the same member: behind an answer that has begun, a second one would be part of its body.
  const { _httpMessage: current } = socket as Socket & { _httpMessage?: ServerResponse | null }
  if (error.code === 'ECONNRESET' || !socket.writable || current?.headersSent === true) {
    socket.destroy()
    return
  }
  const requestId = randomUUID()
  const overflow = error.code === 'HPE_HEADER_OVERFLOW'
  const problem = overflow
    ? new Problem('too_large', 'The URL and headers may hold 16 KiB together at most.')
    : new Problem('invalid_request', 'The request is not HTTP.')
  const [status, reason] = overflow ? [431, 'Request Header Fields Too Large'] : [400, 'Bad Request']
  const body = JSON.stringify({ ...toDocument(problem), status, request_id: requestId })
  this.log.info({ request_id: requestId, status, code: error.code }, 'not a request')
  socket.end(
    [
      `HTTP/1.1 ${status} ${reason}`,
      `Content-Type: ${problemType}`,
      `Content-Length: ${Buffer.byteLength(body)}`,
      `X-Request-Id: ${requestId}`,
      'Connection: close',
      '',
      body,
    ].join('\r\n'),
  )
}

function toDocument(problem: Problem) {
  const { code, status, retryable, message } = problem
  return {
    type: 'about:blank',
    title: catalogue[code].title,
    status,
    code,
    detail: message,
    retryable,
    ...problem.members,
  }
}

function toProblem(error: FastifyError & { sqlstate?: string }, bodyBytesMax: number): Problem {
  if (error instanceof Problem) return error
  if (error.validation !== undefined) return toValidationProblem(error)
  // Class 22 of SQLSTATE: the database could not read a value, such as the year 0000. It came from the request.
  if (error.sqlstate?.startsWith('22')) {
    return new Problem('invalid_request', 'A value cannot be stored.', { cause: error })
  }
  if (error.code === 'FST_ERR_CTP_BODY_TOO_LARGE') {
    return new Problem('too_large', `The body may hold ${Math.floor(bodyBytesMax / 1024 ** 2)} MiB at most.`)
  }
  if (error.statusCode !== undefined && error.statusCode >= 400 && error.statusCode < 500) {
    return new Problem('invalid_request', error.message)
  }
  return new Problem('internal', undefined, { cause: error })
}

function toValidationProblem(error: FastifyError): Problem {
  const [first] = error.validation ?? []
  const place = `${error.validationContext ?? 'request'}${first?.instancePath ?? ''}`
  const unknownField = first?.params.additionalProperty
  const detail =
    typeof unknownField === 'string'
      ? `${place} has an unknown field: ${unknownField.slice(0, 64)}`
      : `${place} ${first?.message ?? 'is not valid'}`
  const tooLong =
    first?.keyword === 'maxLength' && (first.instancePath === '/message' || first.instancePath === '/input')
  return new Problem(tooLong ? 'too_large' : 'invalid_request', `${detail}.`)
}
