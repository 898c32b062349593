/** The API as a document at /openapi.json, made from the routes' own schemas, and as a page to try it at /docs. */
import swagger from '@fastify/swagger'
import swaggerUi from '@fastify/swagger-ui'
import { Type } from 'typebox'
import { ProblemDocument, problemType } from './problem.ts'
import type { Server } from './server.ts'

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

export async function registerOpenapi(app: Server, version: string): Promise<void> {
  await app.register(swagger, {
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
  await app.register(swaggerUi, {
    routePrefix: '/docs',
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
  app.get('/openapi.json', { schema: { hide: true } }, async () => app.swagger())
}
