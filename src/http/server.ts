/**
 * The Fastify instance, with what is true of every route: strict validation (nothing in a body is coerced, nothing is
 * silently removed), logs without addresses, queries or words, request ids, and the limits of a request.
 */
import { randomUUID } from 'node:crypto'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox'
import fastify, { type FastifyBaseLogger, type FastifyInstance, LogController, type RawServerDefault } from 'fastify'
import { Problem } from '../errors.ts'
import { compileLater, createAjv } from './ajv.ts'
import { answerOf, logAnswer, requestIdLabel } from './answer.ts'
import { answerBrokenRequest, problems, sendProblem } from './problem.ts'

export type Server = FastifyInstance<
  RawServerDefault,
  IncomingMessage,
  ServerResponse,
  FastifyBaseLogger,
  TypeBoxTypeProvider
>

/** A message of 100 000 characters, each escaped as a surrogate pair, is 1.2 MB; metadata comes on top. */
export const bodyBytesMax = 2 * 1024 * 1024
/** The name of an artifact has 128 characters, and a client may escape each of them. */
export const pathPartBytesMax = 3 * 128
const headerBytesMax = 16 * 1024
const foreignCharset = /;\s*charset\s*=(?!\s*"?(utf-?8|us-ascii)"?\s*(;|$))/i
const messageUnitsMax = 300
/** How long a client may take to send a whole request. */
const requestMs = 30_000

const closeDefaultMs = 15_000

export interface ServerOptions {
  readonly logLevel: string
  /** CIDR ranges of the proxies whose X-Forwarded-For, -Host and -Proto are believed. */
  readonly trustedProxies?: readonly string[]
  /** What the end of the process may wait for, in all: running replies above all. */
  readonly closeMs?: number
  /** Where log lines go; standard output when absent. */
  readonly logStream?: { write(line: string): void }
}

export function createServer({
  logLevel,
  trustedProxies = [],
  closeMs = closeDefaultMs,
  logStream,
}: ServerOptions): Server {
  const app = fastify({
    logger: {
      level: logLevel,
      // Railway and most collectors read `message` and a level that is a word.
      messageKey: 'message',
      base: null,
      timestamp: () => `,"time":"${new Date().toISOString()}"`,
      formatters: { level: (level) => ({ level }) },
      serializers: { err: describeError },
      ...(logStream === undefined ? {} : { stream: logStream }),
    },
    // The stock lines print query strings and addresses; one line of our own says what an operator needs.
    logController: new LogController({ disableRequestLogging: true, requestIdLogLabel: requestIdLabel }),
    genReqId: () => randomUUID(),
    // Ranges only: `true` would take whatever address a client writes, and a number of hops is ignored by the framework.
    trustProxy: trustedProxies.length === 0 ? false : [...trustedProxies],
    bodyLimit: bodyBytesMax,
    routerOptions: { maxParamLength: pathPartBytesMax },
    requestTimeout: requestMs,
    // The framework gives up on `preClose` after so long, and closes the database under the replies that are waited for.
    pluginTimeout: closeMs,
    // Node's own refusal of a request without Host is an empty 400; ours is a problem document.
    http: { maxHeaderSize: headerBytesMax, requireHostHeader: false },
    // A HEAD on a stream route would start a run.
    exposeHeadRoutes: false,
    // While draining, viewers still come to read.
    return503OnClosing: false,
    clientErrorHandler: answerBrokenRequest,
    // The message of the error repeats the URL, which may be 16 KiB long.
    frameworkErrors: (_error, request, reply) =>
      sendProblem(new Problem('invalid_request', 'The URL cannot be read.'), request, reply as never),
  }).withTypeProvider<TypeBoxTypeProvider>()

  const strict = createAjv()
  // Everything in a URL is text, so there, and only there, "5" may be read as 5.
  const lenient = createAjv({ coerceTypes: true })
  app.setValidatorCompiler(({ schema, httpPart }) =>
    compileLater(httpPart === 'body' ? strict : lenient, schema as object),
  )
  // Response schemas are for the documents; a serializer made from them would drop what they do not name.
  app.setSerializerCompiler(() => (data) => JSON.stringify(data))

  const parseJson = app.getDefaultJsonParser('error', 'error')
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('application/json', { parseAs: 'string' }, (request, body, done) => {
    const { 'content-encoding': coding = 'identity', 'content-type': type = '' } = request.headers
    // A POST without a body often comes with the type all the same.
    if (body === '') done(null, undefined)
    else if (coding.toLowerCase() !== 'identity')
      done(new Problem('invalid_request', 'The body must not be compressed.'))
    // Read as UTF-8 it would be other words, and nobody would notice.
    else if (foreignCharset.test(type)) done(new Problem('invalid_request', 'JSON is sent as UTF-8.'))
    else parseJson(request, body as string, done)
  })

  // An expectation that nobody knows may be ignored (RFC 9110, section 10.1.1); Node's 417 has no body.
  app.server.on('checkExpectation', (request, response) => app.server.emit('request', request, response))

  app.register(problems)
  app.addHook('onRequest', async (request, reply) => {
    reply.header('X-Request-Id', request.id)
    if (request.headers.host === undefined && request.raw.httpVersion !== '1.0') {
      throw new Problem('invalid_request', 'The request has no Host header.')
    }
  })
  app.addHook('onResponse', async (request, reply) => {
    logAnswer(app.log, answerOf(request, reply))
  })
  return app
}

/** What may be logged of an error: drivers put SQL and its parameters, which can be people's words, into other members. */
function describeError(error: Error & { code?: unknown; sqlstate?: unknown }) {
  const cause = error.cause as { name?: unknown; code?: unknown } | undefined
  return {
    type: error.name,
    message: withoutQuotes(error.message),
    code: error.code,
    sqlstate: error.sqlstate,
    cause: cause === undefined ? undefined : { type: cause.name, code: cause.code },
    stack: (error.stack ?? '')
      .split('\n')
      .filter((line) => line.trimStart().startsWith('at '))
      .slice(0, 8)
      .join('\n'),
  }
}

/** Engines and libraries quote what they could not read: `Unexpected token 'x', "what somebody wrote" is not valid JSON`. */
function withoutQuotes(message: string): string {
  return message.replace(/["'`].*["'`]/s, '…').slice(0, messageUnitsMax)
}
