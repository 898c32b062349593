/**
 * Artifacts as clients see them: documents of a session, JSON or text, with a name and numbered versions. Here are their
 * schemas and limits, what a body looks like in the database, and the conditions that a request can make.
 *
 * JSON is kept as the text that `JSON.stringify` makes of it, so numbers and the order of members come back as they were
 * understood; a text is kept as it is. Both are mended first, as everything that comes from outside (http/text.ts).
 */
import { type Static, Type } from 'typebox'
import { Problem } from '../errors.ts'
import { cleanJson, cleanText } from '../http/text.ts'
import { Time, Uuid } from './model.ts'

/** Of a body as it is kept: bytes of UTF-8. */
export const artifactBytesMax = 1024 * 1024
export const artifactNameUnitsMax = 128

export const jsonType = 'application/json'

export const ArtifactType = Type.Union([
  Type.Literal(jsonType),
  Type.Literal('text/plain'),
  Type.Literal('text/markdown'),
  Type.Literal('text/html'),
  Type.Literal('text/csv'),
  Type.Literal('application/xml'),
])
export type ArtifactType = Static<typeof ArtifactType>

export const textTypes: readonly ArtifactType[] = ArtifactType.anyOf
  .map((literal) => literal.const)
  .filter((type) => type !== jsonType)

// `.` and `..` would be steps in a path to every client that reads URLs.
export const artifactNamePattern = `^(?!\\.{1,2}$)[A-Za-z0-9._:-]{1,${artifactNameUnitsMax}}$`
const Name = Type.String({ pattern: artifactNamePattern })
const Version = Type.Integer({ minimum: 1, maximum: 2_147_483_647 })

export const Artifact = Type.Object({
  name: Name,
  version: Version,
  content_type: ArtifactType,
  body: Type.Unknown({ description: 'the JSON value, or the text as a string' }),
  created_at: Time,
})
export type Artifact = Static<typeof Artifact>

export const ArtifactSummary = Type.Object({
  name: Name,
  version: Version,
  content_type: ArtifactType,
  bytes: Type.Integer({ description: 'of the body, as UTF-8' }),
  created_at: Time,
})
export type ArtifactSummary = Static<typeof ArtifactSummary>

export const ArtifactList = Type.Object({ data: Type.Array(ArtifactSummary) })

export const ArtifactEnvelope = Type.Object(
  {
    content_type: Type.Optional(ArtifactType),
    body: Type.Unknown({ description: 'any JSON value; a string when content_type is a text' }),
  },
  { additionalProperties: false },
)
export type ArtifactEnvelope = Static<typeof ArtifactEnvelope>

export const ArtifactParams = Type.Object({ id: Uuid, name: Name })

export const ReadArtifactQuery = Type.Object(
  {
    version: Type.Optional(Version),
    generate: Type.Optional(Type.Literal('1', { description: 'make it when it is not there' })),
  },
  { additionalProperties: false },
)

/** A document as it is kept. */
export interface ArtifactText {
  readonly contentType: ArtifactType
  readonly text: string
}

/**
 * @throws Problem `invalid_request` when `body` is no value of this type, or nested too deep; `too_large`
 */
export function encodeBody(contentType: ArtifactType, body: unknown): ArtifactText {
  const text = contentType === jsonType ? JSON.stringify(cleanJson(body)) : body
  if (typeof text !== 'string') throw new Problem('invalid_request', `body is no value of ${contentType}.`)
  const clean = contentType === jsonType ? text : cleanText(text)
  if (Buffer.byteLength(clean) > artifactBytesMax) {
    throw new Problem('too_large', `An artifact may hold ${artifactBytesMax} bytes at most.`)
  }
  return { contentType, text: clean }
}

export function decodeBody({ contentType, text }: ArtifactText): unknown {
  return contentType === jsonType ? JSON.parse(text) : text
}

export const tagOf = (version: number): string => `"${version}"`

/** Versions, or `*`: whichever is there. */
export type Versions = '*' | readonly number[]

export interface Conditions {
  /** It is one of these. */
  readonly match?: Versions | undefined
  /** It is none of these. */
  readonly noneMatch?: Versions | undefined
}

/**
 * The versions that `If-Match` or `If-None-Match` name, as in RFC 9110, 13.1. A tag that was never given out names none.
 * @throws Problem `invalid_request` when it is neither `*` nor a list of tags
 */
export function readVersions(header: string, text: string | undefined): Versions | undefined {
  if (text === undefined) return undefined
  if (text.trim() === '*') return '*'
  const tags = text.split(',').map((tag) => /^(W\/)?"([\x21\x23-\x7e]*)"$/.exec(tag.trim()))
  return tags.flatMap((tag) => {
    if (tag === null) throw new Problem('invalid_request', `${header} must be * or versions like "3", in quotes.`)
    const [, weak, version = ''] = tag
    // A weak tag is good enough to spare a download, and not to overwrite something.
    const usable = /^[1-9]\d{0,8}$/.test(version) && (weak === undefined || header === 'If-None-Match')
    return usable ? [Number(version)] : []
  })
}

export function meets(version: number, versions: Versions | undefined): boolean {
  return versions !== undefined && (versions === '*' || versions.includes(version))
}
