/**
 * Reading a file that was exported. It is text from outside like any other: every field is checked and mended, and the
 * whole file before anything of it is used; whoever sent it is told the line and the field that are wrong. Nothing is kept,
 * and nothing waits.
 */
import { type Static, type TSchema, Type } from 'typebox'
import { Problem } from '../errors.ts'
import { createAjv } from '../http/ajv.ts'
import { cleanJson, limitJson } from '../http/text.ts'
import { contentOf } from '../log/event.ts'
import { jsonType } from './artifact-model.ts'
import { metadataBytesMax } from './model.ts'
import {
  ExportedArtifact,
  ExportedMessage,
  ExportedSession,
  type ExportLine,
  importedArtifactsMax,
  importedJsonBytesMax,
  importedMessagesMax,
  importedSessionsMax,
  lineSchemas,
  SessionDocument,
} from './transfer.ts'
import type { Conversation } from './transfer-import.ts'

/** An external id that could not be kept is kept there. */
const metadataBytesSlack = 2048

// Row by row: a list of what is wrong with ten thousand messages would take seconds to make.
const Document = Type.Object(
  {
    ...SessionDocument.properties,
    session: Type.Unknown(),
    messages: Type.Array(Type.Unknown(), { maxItems: importedMessagesMax }),
    artifacts: Type.Array(Type.Unknown(), { maxItems: importedArtifactsMax }),
  },
  { additionalProperties: false },
)
const Line = Type.Object({ type: Type.Enum(Object.keys(lineSchemas) as (keyof typeof lineSchemas)[]) })
const ajv = createAjv()

/**
 * A file of one session.
 * @throws Problem `invalid_request` or `too_large` that names the field
 */
export function readDocument(body: unknown): Conversation {
  assertValid(Document, body, 'body')
  const { session } = body
  assertValid(ExportedSession, session, 'body/session')
  const messages = body.messages.map((message, index) => {
    assertValid(ExportedMessage, message, `body/messages/${index}`)
    return message
  })
  const artifacts = body.artifacts.map((artifact, index) => {
    assertValid(ExportedArtifact, artifact, `body/artifacts/${index}`)
    return artifact
  })
  return settle({ session, messages, artifacts }, 'body/session', (list, index) => `body/${list}/${index}`)
}

/**
 * A file of lines. @param parse reads one line; throws when it is not JSON
 * @throws Problem `invalid_request` or `too_large` that names the line and the field
 */
export function readLines(text: string, parse: (line: string) => unknown): Conversation[] {
  const sessions: Conversation[] = []
  const places: { readonly session: string; readonly messages: string[]; readonly artifacts: string[] }[] = []
  const counts = { sessions: 0, messages: 0, artifacts: 0 }
  let state: 'before' | 'inside' | 'ended' = 'before'
  let number = 0
  // One line at a time: an array of millions of empty ones would be larger than any file.
  for (let from = 0; from <= text.length; ) {
    const newline = text.indexOf('\n', from)
    const end = newline === -1 ? text.length : newline
    const source = text.slice(from, end)
    from = end + 1
    number += 1
    if (source.trim() === '') continue
    const place = `line ${number}`
    const line = readLine(source, parse, place)
    if ((line.type === 'export') !== (state === 'before')) throw misplaced(place, line.type)
    if (state === 'ended') throw misplaced(place, line.type)
    if (line.type === 'export') state = 'inside'
    else if (line.type === 'end') {
      state = 'ended'
      for (const name of ['sessions', 'messages', 'artifacts'] as const) {
        if (line[name] !== counts[name]) {
          throw new Problem('invalid_request', `${place} counts ${line[name]} ${name}, and there are ${counts[name]}.`)
        }
      }
    } else {
      counts[`${line.type}s`] += 1
      const { type: _type, ...row } = line
      if (line.type === 'session') {
        if (counts.sessions > importedSessionsMax) throw tooMany('A file', importedSessionsMax, 'sessions')
        sessions.push({ session: row as ExportedSession, messages: [], artifacts: [] })
        places.push({ session: place, messages: [], artifacts: [] })
      } else {
        const [last, its] = [sessions.at(-1), places.at(-1)]
        if (last === undefined || its === undefined) throw misplaced(place, line.type)
        const list = line.type === 'message' ? 'messages' : 'artifacts'
        const max = line.type === 'message' ? importedMessagesMax : importedArtifactsMax
        if (last[list].length === max) throw tooMany('A session', max, list)
        last[list].push(row as never)
        its[list].push(place)
      }
    }
  }
  if (state !== 'ended') throw new Problem('invalid_request', 'The file is cut: its last line is not of type end.')
  return sessions.map((conversation, index) =>
    settle(conversation, places[index]?.session ?? '', (list, at) => places[index]?.[list][at] ?? ''),
  )
}

function readLine(source: string, parse: (line: string) => unknown, place: string): ExportLine {
  let value: unknown
  try {
    value = parse(source)
  } catch (error) {
    throw new Problem('invalid_request', `${place} is not JSON.`, { cause: error })
  }
  assertValid(Line, value, place)
  const schema: TSchema = lineSchemas[value.type]
  assertValid(schema, value, place)
  return value as ExportLine
}

/** @throws Problem that names the first field which is not as it has to be */
function assertValid<Schema extends TSchema>(
  schema: Schema,
  value: unknown,
  place: string,
): asserts value is Static<Schema> {
  if (ajv.validate(schema, value)) return
  const faults = ajv.errors ?? []
  const fault = faults.find(({ keyword }) => keyword !== 'boolean' && keyword !== 'const') ?? faults[0]
  const { additionalProperty: unknownField } = (fault?.params ?? {}) as { additionalProperty?: string }
  const where = `${place}${fault?.instancePath ?? ''}`
  if (unknownField !== undefined) {
    throw new Problem('invalid_request', `${where} has an unknown field: ${unknownField.slice(0, 64)}.`)
  }
  const tooLong = fault?.keyword === 'maxLength' || fault?.keyword === 'maxItems'
  throw new Problem(tooLong ? 'too_large' : 'invalid_request', `${where} ${fault?.message ?? 'is not valid'}.`)
}

const misplaced = (place: string, type: string) =>
  new Problem('invalid_request', `${place}: ${type} has no place here.`)
const tooMany = (what: string, max: number, things: string) =>
  new Problem('too_large', `${what} may hold ${max} ${things} at most.`)

/** Mends a session's texts, and checks what a schema cannot say. */
function settle(
  { session, messages, artifacts }: Conversation,
  place: string,
  placeOf: (list: 'messages' | 'artifacts', index: number) => string,
): Conversation {
  const own = inPlace(place, () => {
    const clean = cleanFields(session)
    limitJson('metadata', clean.metadata, metadataBytesMax + metadataBytesSlack)
    limitJson('context', clean.context, metadataBytesMax)
    limitJson('state', clean.state, importedJsonBytesMax)
    if (clean.external_id === '') throw new Problem('invalid_request', 'external_id is empty.')
    return clean
  })
  const ids = new Set<string>()
  const ordered = messages
    .map((message, index) => inPlace(placeOf('messages', index), () => settleMessage(message, ids)))
    .toSorted((a, b) => a.seq - b.seq)
  const versions = new Set<string>()
  const documents = artifacts.map((artifact, index) =>
    inPlace(placeOf('artifacts', index), () => settleArtifact(artifact, versions)),
  )
  return { session: own, messages: ordered, artifacts: documents }
}

function settleMessage(message: ExportedMessage, ids: Set<string>): ExportedMessage {
  const clean = { ...cleanFields(message), parts: message.parts.map(cleanFields) }
  limitJson('metadata', clean.metadata, metadataBytesMax)
  limitJson('retrieved_docs', clean.retrieved_docs, importedJsonBytesMax)
  for (const { input, output } of clean.parts) {
    limitJson('parts', input, importedJsonBytesMax)
    limitJson('parts', output, importedJsonBytesMax)
  }
  if (contentOf(clean.parts) !== clean.content) {
    throw new Problem('invalid_request', 'content is not what the text parts are, joined.')
  }
  const id = clean.id.toLowerCase()
  if (ids.has(id)) throw new Problem('invalid_request', 'id is that of another message.')
  ids.add(id)
  return clean
}

function settleArtifact(artifact: ExportedArtifact, versions: Set<string>): ExportedArtifact {
  const clean = cleanFields(artifact)
  // The same text again for what was written by us; and what is no JSON would fail whoever reads it.
  const body = clean.content_type === jsonType ? JSON.stringify(cleanJson(parseBody(clean.body))) : clean.body
  if (Buffer.byteLength(body) > importedJsonBytesMax) {
    throw new Problem('too_large', `body may hold ${importedJsonBytesMax} bytes at most.`)
  }
  const version = `${clean.version} ${clean.name}`
  if (versions.has(version)) throw new Problem('invalid_request', 'name and version are those of another artifact.')
  versions.add(version)
  return { ...clean, body }
}

function parseBody(body: string): unknown {
  try {
    return JSON.parse(body)
  } catch (error) {
    throw new Problem('invalid_request', 'body is not JSON.', { cause: error })
  }
}

/** One by one: each may be nested as deep as a value of its own, wherever it stands in the file. */
function cleanFields<Row extends object>(row: Row): Row {
  return Object.fromEntries(Object.entries(row).map(([name, value]) => [name, cleanJson(value)])) as Row
}

function inPlace<T>(place: string, check: () => T): T {
  try {
    return check()
  } catch (error) {
    if (error instanceof Problem) throw new Problem(error.code, `${place}: ${error.message}`, { cause: error })
    throw error
  }
}
