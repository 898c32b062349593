/**
 * The API as a document at /openapi.json, made from the routes' own schemas, and as a page to try it at /docs.
 *
 * Both are made when somebody first asks, by a second instance that has the same routes and nothing behind them: most
 * processes are never asked, and what makes them is a tenth of a start. It listens nowhere, and is closed with the app. When it
 * cannot be made, who asked gets an error, and the next one asks anew.
 */
import type {} from '@fastify/swagger'
import type { FastifyReply, FastifyRequest, RouteOptions } from 'fastify'
import { Type } from 'typebox'
import { ProblemDocument, problemType } from './problem.ts'
import { createServer, type Server } from './server.ts'

/** For routes that answer with a stream: what the body looks like is in docs/protocol.md. */
export const eventStream = {
  description: 'Server-sent events, as in docs/protocol.md',
  content: { 'text/event-stream': { schema: Type.String() } },
}

/** For a route's `response`: the errors of the catalogue, whatever their status. */
export const problemResponses = {
  '4xx': { description: 'An error of the catalogue', content: { [problemType]: { schema: ProblemDocument } } },
  '5xx': { description: 'An error of the catalogue', content: { [problemType]: { schema: ProblemDocument } } },
}

const docsPath = '/docs'
/** Of the request that brings an answer of the second instance here, and not of the answer. */
const ownHeaders: readonly string[] = ['connection', 'date', 'keep-alive', 'transfer-encoding', 'x-request-id']

/** For all routes that are registered afterwards. */
export function registerOpenapi(app: Server, version: string): void {
  const routes: RouteOptions[] = []
  app.addHook('onRoute', (route) => {
    routes.push(route)
  })
  let opened: Promise<Server> | undefined
  const open = (): Promise<Server> => {
    opened ??= openDocuments(routes, version).catch((error: unknown) => {
      opened = undefined
      throw error
    })
    return opened
  }
  app.addHook('onClose', async () => {
    // One that could not be made has been said to who asked for it.
    await opened?.then((documents) => documents.close()).catch(() => undefined)
  })

  async function answer({ method, url, headers }: FastifyRequest, reply: FastifyReply) {
    const documents = await open()
    const found = await documents.inject({ method: method === 'HEAD' ? 'HEAD' : 'GET', url, headers })
    if (found.statusCode === 404) return reply.callNotFound()
    if (found.statusCode >= 400) throw new Error(`the page of the documents was answered with ${found.statusCode}`)
    for (const [name, value] of Object.entries(found.headers)) {
      if (value !== undefined && !ownHeaders.includes(name)) reply.header(name, value)
    }
    return reply.code(found.statusCode).send(found.rawPayload.length === 0 ? undefined : found.rawPayload)
  }

  app.get('/openapi.json', { schema: { hide: true } }, async () => (await open()).swagger())
  for (const url of [docsPath, `${docsPath}/`, `${docsPath}/*`]) {
    app.route({ method: ['GET', 'HEAD'], url, schema: { hide: true }, handler: answer })
  }
}

async function openDocuments(routes: readonly RouteOptions[], version: string): Promise<Server> {
  const [swagger, swaggerUi] = await Promise.all([import('@fastify/swagger'), import('@fastify/swagger-ui')])
  const documents = createServer({ logLevel: 'silent' })
  await documents.register(swagger.default, {
    openapi: {
      openapi: '3.1.0',
      info: { title: 'Verbatim', version, description: 'The chat gateway that never loses a word.' },
      tags: [{ name: 'chat' }, { name: 'runs' }, { name: 'sessions' }, { name: 'openai' }, { name: 'health' }],
      components: {
        securitySchemes: {
          bearer: { type: 'http', scheme: 'bearer', bearerFormat: 'JWT' },
          visitor: { type: 'apiKey', in: 'header', name: 'X-Visitor-Token' },
          ticket: { type: 'apiKey', in: 'query', name: 'ticket' },
        },
      },
      security: [{}, { bearer: [] }, { visitor: [] }],
    },
  })
  await documents.register(swaggerUi.default, {
    routePrefix: docsPath,
    staticCSP: true,
    // Over plain http in a private network the upgrade would ask for files that nobody serves; and nothing is loaded
    // from anywhere else.
    transformStaticCSP: (header) =>
      header
        .replace(/\s*upgrade-insecure-requests;?/, '')
        .replace(' validator.swagger.io', '')
        .replace("frame-ancestors 'self'", "frame-ancestors 'none'")
        .replaceAll(' https:', ''),
  })
  for (const { method, url, schema } of routes) {
    if (schema?.hide === true) continue
    documents.route({ method, url, schema: schema ?? {}, handler: nothing })
  }
  await documents.ready()
  return documents
}

const nothing = async (): Promise<void> => undefined
