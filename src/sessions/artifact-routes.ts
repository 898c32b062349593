/**
 * The REST side of artifacts. A document comes as JSON in an envelope, or as itself with the content type of a text; it
 * leaves in an envelope only. Its version is its ETag, and the conditions of RFC 9110 are understood: `If-Match` and
 * `If-None-Match` decide a write in the statement that makes it, never in a look before.
 *
 * Nothing is kept here. A client that leaves at an await changes nothing: its write has happened or not, which its
 * version tells, and what is being made for it is made (generators.ts).
 */
import type { FastifyRequest } from 'fastify'
import { Type } from 'typebox'
import { Problem } from '../errors.ts'
import { problemResponses } from '../http/openapi.ts'
import type { Server } from '../http/server.ts'
import {
  Artifact,
  ArtifactEnvelope,
  ArtifactList,
  ArtifactParams,
  type ArtifactText,
  type ArtifactType,
  decodeBody,
  encodeBody,
  jsonType,
  meets,
  ReadArtifactQuery,
  readVersions,
  tagOf,
  textTypes,
} from './artifact-model.ts'
import type { ArtifactStore } from './artifacts.ts'
import type { ArtifactMaker } from './generators.ts'
import { IdParams } from './model.ts'

export interface ArtifactRoutesOptions {
  readonly artifacts: ArtifactStore
  readonly maker: ArtifactMaker
}

const tags = ['sessions']
const path = '/sessions/:id/artifacts/:name'
const Tag = Type.Optional(Type.String())
const IfMatch = Type.Object({ 'if-match': Tag })
const IfNoneMatch = Type.Object({ 'if-none-match': Tag })

export function registerArtifacts(app: Server, { artifacts, maker }: ArtifactRoutesOptions): void {
  app.get(
    '/sessions/:id/artifacts',
    { schema: { tags, params: IdParams, response: { 200: ArtifactList, ...problemResponses } } },
    async (request) => ({ data: await artifacts.listArtifacts(request.owner, request.params.id) }),
  )

  app.get(
    path,
    {
      schema: {
        tags,
        params: ArtifactParams,
        querystring: ReadArtifactQuery,
        headers: IfNoneMatch,
        response: { 200: Artifact, 304: Type.Null({ description: 'it is one of If-None-Match' }), ...problemResponses },
      },
    },
    async (request, reply) => {
      const { owner, params, query } = request
      const known = readVersions('If-None-Match', request.headers['if-none-match'])
      if (query.generate !== undefined && query.version !== undefined) {
        throw new Problem('invalid_request', 'An old version cannot be made: leave out version or generate.')
      }
      const artifact =
        query.generate === undefined
          ? await artifacts.findArtifact(owner, params.id, params.name, query.version)
          : await maker.readOrMake(owner, params.id, params.name)
      if (artifact === undefined) throw new Problem('not_found')
      reply.header('ETag', tagOf(artifact.version))
      if (!meets(artifact.version, known)) return artifact
      // A null would be sent with the type of JSON, which nothing is not.
      return reply.code(304).send(undefined as unknown as null)
    },
  )

  app.delete(
    path,
    {
      schema: {
        tags,
        params: ArtifactParams,
        headers: IfMatch,
        response: { 204: Type.Null({ description: 'all its versions are erased' }), ...problemResponses },
      },
    },
    async (request, reply) => {
      const { owner, params } = request
      const match = readVersions('If-Match', request.headers['if-match'])
      await artifacts.deleteArtifact(owner, params.id, params.name, match)
      return reply.code(204).send(null)
    },
  )

  // In a scope of its own: no other route takes a body that is not JSON.
  app.register(async (scope: Server) => {
    scope.addContentTypeParser([...textTypes], { parseAs: 'buffer' }, (request, bytes, done) => {
      try {
        done(null, decodeText(request, bytes as Buffer))
      } catch (error) {
        done(error as Problem)
      }
    })

    scope.put(
      path,
      {
        schema: {
          tags,
          params: ArtifactParams,
          headers: Type.Object({ 'if-match': Tag, 'if-none-match': Tag }),
          body: {
            content: {
              [jsonType]: { schema: ArtifactEnvelope },
              ...Object.fromEntries(textTypes.map((type) => [type, { schema: Type.String() }])),
            },
          },
          response: { 200: Artifact, 201: Artifact, ...problemResponses },
        },
      },
      async (request, reply) => {
        const { owner, params } = request
        const document = readDocument(request)
        const { version, created_at, created } = await artifacts.putArtifact(owner, params.id, params.name, document, {
          match: readVersions('If-Match', request.headers['if-match']),
          noneMatch: readVersions('If-None-Match', request.headers['if-none-match']),
        })
        const { contentType: content_type } = document
        const artifact: Artifact = { name: params.name, version, content_type, body: decodeBody(document), created_at }
        return reply
          .code(created ? 201 : 200)
          .header('ETag', tagOf(version))
          .header('Location', `/api/v1/sessions/${params.id.toLowerCase()}/artifacts/${params.name}`)
          .send(artifact)
      },
    )
  })
}

/** By the time this is called, the body fits the schema of its content type. */
function readDocument({ mediaType, body }: Pick<FastifyRequest, 'mediaType' | 'body'>): ArtifactText {
  if (mediaType === undefined) throw new Problem('invalid_request', 'The body is missing, or its Content-Type.')
  if (mediaType !== jsonType) return encodeBody(mediaType as ArtifactType, body)
  const envelope = body as ArtifactEnvelope
  return encodeBody(envelope.content_type ?? jsonType, envelope.body)
}

function decodeText({ headers }: FastifyRequest, bytes: Buffer): string {
  const charset = /;\s*charset\s*=\s*"?([^";\s]*)/i.exec(headers['content-type'] ?? '')?.[1] ?? 'utf-8'
  const encoding = headers['content-encoding'] ?? 'identity'
  if (!/^utf-?8$/i.test(charset) || encoding !== 'identity') {
    throw new Problem('invalid_request', 'The body must be UTF-8, and not compressed.')
  }
  try {
    // A byte order mark is a character of the text like any other.
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch (cause) {
    throw new Problem('invalid_request', 'The body is not UTF-8.', { cause })
  }
}
