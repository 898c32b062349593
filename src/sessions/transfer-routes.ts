/**
 * Exports and imports over HTTP. An export is written as fast as it is read: a page at a time, and a client that reads
 * nothing for `stalledMs` is cut. When a page cannot be had, the connection is broken, because a file that ends properly is
 * taken for the whole. An import is held in memory while it is checked, so only `importsMax` are taken at once.
 */
import { Readable } from 'node:stream'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { Type } from 'typebox'
import { Problem } from '../errors.ts'
import { problemResponses } from '../http/openapi.ts'
import type { Server } from '../http/server.ts'
import { IdParams, Uuid } from './model.ts'
import { importBytesMax, SessionDocument } from './transfer.ts'
import { readDocument, readLines } from './transfer-check.ts'
import { type ExportReader, writeDocument, writeLines } from './transfer-export.ts'
import type { Importer } from './transfer-import.ts'
import { writeMarkdown } from './transfer-markdown.ts'

export interface TransferRoutesOptions {
  readonly reader: ExportReader
  readonly importer: Importer
  /** How long a client may read nothing. */
  readonly stalledMs?: number
}

const tags = ['sessions']
const linesType = 'application/x-ndjson'
const chunkUnits = 64 * 1024
const stalledDefaultMs = 30_000
/** Imports that one process checks or writes at the same time. */
const importsMax = 4
const titleCharactersMax = 60

const ExportQuery = Type.Object(
  {
    format: Type.Optional(
      Type.Union([Type.Literal('json'), Type.Literal('md'), Type.Literal('ndjson')], { default: 'json' }),
    ),
  },
  { additionalProperties: false },
)

const Imported = Type.Object({
  imported: Type.Array(
    Type.Object({
      id: Uuid,
      source_id: Uuid,
      messages: Type.Integer(),
      existing: Type.Boolean({ description: 'it is there from an earlier import; nothing was changed' }),
    }),
  ),
})

const contentTypes = {
  json: 'application/json; charset=utf-8',
  md: 'text/markdown; charset=utf-8',
  ndjson: `${linesType}; charset=utf-8`,
} as const

const lines = { schema: Type.String({ description: 'One JSON object a line, as in docs/protocol.md' }) }

export function registerTransfer(app: Server, options: TransferRoutesOptions): void {
  const { reader, importer, stalledMs = stalledDefaultMs } = options

  function sendFile(reply: FastifyReply, pieces: AsyncIterable<string>, type: string, name: string): FastifyReply {
    const response = reply.raw
    response.setTimeout(stalledMs, () => response.destroy())
    return reply
      .type(type)
      .header('Content-Disposition', disposition(name))
      .send(Readable.from(inChunks(pieces), { objectMode: false, highWaterMark: chunkUnits }))
  }

  app.get(
    '/sessions/:id/export',
    {
      schema: {
        tags,
        params: IdParams,
        querystring: ExportQuery,
        response: {
          200: {
            description: 'The session, as an attachment',
            content: {
              'application/json': { schema: SessionDocument },
              'text/markdown': { schema: Type.String() },
              [linesType]: lines,
            },
          },
          ...problemResponses,
        },
      },
    },
    async (request, reply) => {
      const { owner, params, query } = request
      const format = query.format ?? 'json'
      const head = await reader.readHead(owner, params.id)
      const now = new Date().toISOString()
      const pieces =
        format === 'json'
          ? writeDocument(reader, owner, head, now)
          : format === 'md'
            ? writeMarkdown(reader, owner, head, now)
            : writeLines(reader, owner, [head], now)
      const name = fileTitle(head.session.title) || 'session'
      return sendFile(reply, pieces, contentTypes[format], `${name} ${head.session.id.slice(0, 8)}.${format}`)
    },
  )

  app.get(
    '/me/export',
    {
      schema: {
        tags,
        response: {
          200: { description: 'All that the caller owns, as an attachment', content: { [linesType]: lines } },
          ...problemResponses,
        },
      },
    },
    async (request, reply) => {
      const now = new Date().toISOString()
      const pieces = writeLines(reader, request.owner, reader.readHeads(request.owner), now)
      return sendFile(reply, pieces, contentTypes.ndjson, `verbatim ${now.slice(0, 10)}.ndjson`)
    },
  )

  app.register(async (scope) => registerImport(scope as Server, importer))
}

function registerImport(app: Server, importer: Importer): void {
  const parseJson = app.getDefaultJsonParser('error', 'error')
  let underWay = 0

  // Before the body is read.
  app.addHook('onRequest', async (_request, reply) => {
    if (underWay >= importsMax) {
      throw new Problem('rate_limited', `At most ${importsMax} imports at once.`, { retryAfterSeconds: 5 })
    }
    underWay += 1
    // Also when the client leaves in the middle of its body.
    reply.raw.once('close', () => {
      underWay -= 1
    })
  })
  app.addContentTypeParser(linesType, { parseAs: 'string' }, (_request, body, done) => done(null, body))

  function parseLine(request: FastifyRequest, line: string): unknown {
    let value: unknown
    parseJson(request, line, (error, parsed) => {
      if (error !== null) throw error
      value = parsed
    })
    return value
  }

  app.post(
    '/sessions/import',
    {
      bodyLimit: importBytesMax,
      // The body is checked once, for both forms in the same words.
      validatorCompiler: () => () => true,
      schema: {
        tags,
        body: { content: { 'application/json': { schema: SessionDocument }, [linesType]: lines } },
        response: { 201: Imported, ...problemResponses },
      },
    },
    async (request, reply) => {
      const body: unknown = request.body
      const conversations =
        request.mediaType === linesType
          ? readLines(String(body), (line) => parseLine(request, line))
          : [readDocument(body)]
      return reply.code(201).send({ imported: await importer.importAll(request.owner, conversations) })
    },
  )
}

/** The same text in fewer pieces. */
async function* inChunks(pieces: AsyncIterable<string>): AsyncGenerator<string> {
  let chunk = ''
  for await (const piece of pieces) {
    chunk += piece
    if (chunk.length < chunkUnits) continue
    yield chunk
    chunk = ''
  }
  if (chunk !== '') yield chunk
}

/** What a title may give to the name of a file: no path, nothing unseen, and no more than a line. */
function fileTitle(title: string | null): string {
  const words = (title ?? '')
    .replace(/[\p{C}\p{Z}\\/:*?"<>|]+/gu, ' ')
    .trim()
    .replace(/^[. ]+/, '')
  return [...words].slice(0, titleCharactersMax).join('').trim()
}

/** RFC 6266: a name in ASCII for old clients, and the real one in the form of RFC 8187. */
function disposition(name: string): string {
  const ascii = name.replace(/[^A-Za-z0-9 ._-]+/g, '_')
  const encoded = encodeURIComponent(name).replace(
    /['()*]/g,
    (mark) => `%${mark.charCodeAt(0).toString(16).toUpperCase()}`,
  )
  return `attachment; filename="${ascii}"; filename*=UTF-8''${encoded}`
}
