/**
 * Taking an exported file in. It is text from outside like any other: every field is checked and mended, and the whole
 * file before the first row is written, so a file that is refused has changed nothing. Nothing in it is believed about
 * who owns what: all of it becomes the caller's.
 *
 * Ids are not taken over. The new ones are made of the owner and the old ones (UUID version 5), so the same file again
 * makes nothing twice, and no id of somebody else can be met or found out. Somebody who knows both could have made a
 * session of that very id before; then the next one in the row is used.
 *
 * A session is written by one statement, whole or not at all. If the process or the database dies between two, those
 * before it are there; the file again makes the rest, and says of those before it that they exist.
 */
import { Type } from 'typebox'
import { Compile, type Validator } from 'typebox/compile'
import { v5 as uuidv5 } from 'uuid'
import { type Db, DbError, uniqueViolation } from '../db/db.ts'
import { sql } from '../db/drizzle.ts'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import { cleanJson, limitJson } from '../http/text.ts'
import { contentOf } from '../log/event.ts'
import type { SessionChanges } from './changes.ts'
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
  jsonType,
  lineSchemas,
  SessionDocument,
} from './transfer.ts'

/** One session of a file, checked. */
export interface Conversation {
  readonly session: ExportedSession
  readonly messages: ExportedMessage[]
  readonly artifacts: ExportedArtifact[]
}

export interface Imported {
  /** The session's new id. */
  readonly id: string
  /** The id that it has in the file. */
  readonly source_id: string
  readonly messages: number
  /** It was there already, from an earlier import of the same; nothing was changed. It may be among the deleted ones. */
  readonly existing: boolean
}

export type Importer = ReturnType<typeof createImporter>

// Any constant of our own.
const namespace = '5b0c1d6e-3f0a-4a53-9d0e-0c6f1f5c2a77'
/** An external id that could not be kept is kept there. */
const metadataBytesSlack = 2048
const attemptsMax = 8

// Row by row: a list of what is wrong with ten thousand messages would take seconds to make.
const checkDocument = Compile(
  Type.Object(
    {
      ...SessionDocument.properties,
      session: Type.Unknown(),
      messages: Type.Array(Type.Unknown(), { maxItems: importedMessagesMax }),
      artifacts: Type.Array(Type.Unknown(), { maxItems: importedArtifactsMax }),
    },
    { additionalProperties: false },
  ),
)
const checkSession = Compile(ExportedSession)
const checkMessage = Compile(ExportedMessage)
const checkArtifact = Compile(ExportedArtifact)
const checkType = Compile(Type.Object({ type: Type.Enum(Object.keys(lineSchemas) as (keyof typeof lineSchemas)[]) }))
const checkLine = {
  export: Compile(lineSchemas.export),
  session: Compile(lineSchemas.session),
  message: Compile(lineSchemas.message),
  artifact: Compile(lineSchemas.artifact),
  end: Compile(lineSchemas.end),
} as const

/**
 * A file of one session.
 * @throws Problem `invalid_request` or `too_large` that names the field
 */
export function readDocument(body: unknown): Conversation {
  assertValid(checkDocument, body, 'body')
  const { session } = body
  assertValid(checkSession, session, 'body/session')
  const messages = body.messages.map((message, index) => {
    assertValid(checkMessage, message, `body/messages/${index}`)
    return message
  })
  const artifacts = body.artifacts.map((artifact, index) => {
    assertValid(checkArtifact, artifact, `body/artifacts/${index}`)
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
  assertValid(checkType, value, place)
  const check: Validator = checkLine[value.type]
  assertValid(check, value, place)
  return value as ExportLine
}

/** @throws Problem that names the first field which is not as it has to be */
function assertValid<Value>(
  check: { Check(value: unknown): value is Value; Errors(value: unknown): readonly Fault[] },
  value: unknown,
  place: string,
): asserts value is Value {
  if (check.Check(value)) return
  const faults = check.Errors(value)
  const fault = faults.find(({ keyword }) => keyword !== 'boolean' && keyword !== 'const') ?? faults[0]
  const { additionalProperties: [unknownField] = [] } = (fault?.params ?? {}) as { additionalProperties?: string[] }
  const where = `${place}${fault?.instancePath ?? ''}`
  if (unknownField !== undefined) {
    throw new Problem('invalid_request', `${where} has an unknown field: ${unknownField.slice(0, 64)}.`)
  }
  const tooLong = fault?.keyword === 'maxLength' || fault?.keyword === 'maxItems'
  throw new Problem(tooLong ? 'too_large' : 'invalid_request', `${where} ${fault?.message ?? 'is not valid'}.`)
}

interface Fault {
  readonly keyword: string
  readonly instancePath: string
  readonly message: string
  readonly params: object
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
  for (const { input } of clean.parts) limitJson('parts', input, importedJsonBytesMax)
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

export function createImporter(db: Db, changes: SessionChanges) {
  async function insert(
    owner: Owner,
    conversation: Conversation,
    sessionId: string,
  ): Promise<'made' | 'mine' | 'taken' | 'unclear'> {
    const { session, artifacts } = conversation
    const messages = placeMessages(conversation.messages, sessionId)
    const [row] = await db.rows<{ made: boolean; mine: boolean | null }>(sql`
      with incoming as (
        select s.*, s.deleted_at is null and s.external_id is not null and exists (
          select 1 from chat_sessions other
          where other.owner = ${owner.key} and other.external_id = s.external_id and other.deleted_at is null
        ) as is_named_twice
        from jsonb_to_record(${JSON.stringify({ ...session, status: statusOf(session) })}::jsonb) as s (
          external_id text, kind text, status text, state jsonb, input text, context jsonb, title text, mode text,
          model text, phase text, round_number int, total_cost_usd numeric, tags text[], metadata jsonb,
          created_at timestamptz, updated_at timestamptz, last_activity_at timestamptz, ended_at timestamptz,
          deleted_at timestamptz
        )
      ), message as materialized (
        select * from jsonb_to_recordset(${JSON.stringify(messages)}::jsonb) as m (
          id uuid, seq int, parent_id uuid, role text, status text, content text, parts jsonb, agent_id text, model text,
          client_message_id text, retrieved_docs jsonb, reranker_used boolean, input_tokens int, output_tokens int,
          total_tokens int, latency_ms int, ttft_ms int, finish_reason text, error jsonb, metadata jsonb, feedback jsonb,
          created_at timestamptz, completed_at timestamptz
        )
      ), session as (
        insert into chat_sessions (
          id, external_id, user_id, visitor_hash, kind, status, state, input, context, title, title_source, mode, model,
          phase, round_number, message_count, total_tokens, total_cost, tags, metadata, created_at, updated_at,
          last_activity_at, ended_at, deleted_at
        )
        select
          ${sessionId}::uuid, case when not is_named_twice then external_id end, ${owner.userId}::text,
          ${owner.visitorHash}::text, kind, status, state, input, context, title,
          case when title is not null then 'client' end, mode, model, phase, round_number, ${messages.length}::int,
          (select coalesce(sum(total_tokens), 0) from message), total_cost_usd, tags,
          case when is_named_twice then jsonb_build_object('external_id', external_id) || metadata else metadata end,
          least(created_at, now()), least(updated_at, now()), least(last_activity_at, now()),
          case when ended_at is not null then least(ended_at, now()) end,
          case when status = 'deleted' then least(coalesce(deleted_at, now()), now()) end
        from incoming
        on conflict (id) do nothing
        returning id
      ), stored as (
        insert into chat_messages (
          id, session_id, owner, seq, parent_id, role, status, content, parts, agent_id, model, client_message_id,
          retrieved_docs, reranker_used, input_tokens, output_tokens, total_tokens, latency_ms, ttft_ms, finish_reason,
          error, metadata, created_at, completed_at
        )
        select
          message.id, session.id, ${owner.key}, seq, parent_id, role, status, content, parts, agent_id, model,
          client_message_id, retrieved_docs, reranker_used, input_tokens, output_tokens, total_tokens, latency_ms,
          ttft_ms, finish_reason, error, metadata, least(created_at, now()),
          case when completed_at is not null then least(completed_at, now()) end
        from session, message
      ), opinion as (
        insert into feedback (message_id, rating, comment, created_at, updated_at)
        select
          message.id, (feedback ->> 'rating')::smallint, feedback ->> 'comment',
          least((feedback ->> 'created_at')::timestamptz, now()), least((feedback ->> 'updated_at')::timestamptz, now())
        from session, message where feedback is not null
      ), document as (
        insert into artifacts (session_id, name, version, content_type, body, created_at)
        select session.id, name, version, content_type, body, least(created_at, now())
        from session, jsonb_to_recordset(${JSON.stringify(artifacts)}::jsonb) as a (
          name text, version int, content_type text, body text, created_at timestamptz
        )
      )
      select
        exists (select 1 from session) as made,
        (select owner = ${owner.key} from chat_sessions where id = ${sessionId}::uuid) as mine`)
    if (row?.made === true) return 'made'
    if (row?.mine == null) return 'unclear'
    return row.mine ? 'mine' : 'taken'
  }

  async function importOne(owner: Owner, conversation: Conversation): Promise<Imported> {
    const { session, messages } = conversation
    const source_id = session.id.toLowerCase()
    for (let attempt = 1, place = 0; attempt <= attemptsMax; attempt += 1) {
      const id = uuidv5(`${source_id} ${place} ${owner.key}`, namespace)
      try {
        const outcome = await insert(owner, conversation, id)
        if (outcome === 'made') changes.changed(id)
        if (outcome === 'made' || outcome === 'mine') {
          return { id, source_id, messages: messages.length, existing: outcome === 'mine' }
        }
        // Else the same file is being imported at this moment: the next look sees it.
        if (outcome === 'taken') place += 1
      } catch (error) {
        // Another session was given the external id since the statement began: the next one sees it.
        if (!(error instanceof DbError) || error.sqlstate !== uniqueViolation) throw error
      }
    }
    throw new Problem('internal', 'The session could not be placed.')
  }

  return {
    /**
     * Stores what has been checked, one after the other.
     * @throws Problem `db_unavailable` when the outcome is unknown: the same file again makes what is missing
     */
    async importAll(owner: Owner, conversations: readonly Conversation[]): Promise<Imported[]> {
      const imported: Imported[] = []
      for (const conversation of conversations) imported.push(await importOne(owner, conversation))
      return imported
    },
  }
}

/** The reply under way was interrupted where the file was written, and so was what the session was doing. */
function statusOf({ status, deleted_at }: ExportedSession): ExportedSession['status'] {
  if (deleted_at !== null) return 'deleted'
  return status === 'running' ? 'failed' : status
}

/** Messages under ids of their own, numbered densely; each follows one before it, or none. */
function placeMessages(messages: readonly ExportedMessage[], sessionId: string) {
  const places = new Map<string, string>()
  return messages.map((message, index) => {
    const sourceId = message.id.toLowerCase()
    const parent_id = message.parent_id === null ? null : (places.get(message.parent_id.toLowerCase()) ?? null)
    const id = uuidv5(sourceId, sessionId)
    places.set(sourceId, id)
    const status = message.status === 'streaming' ? 'interrupted' : message.status
    return { ...message, id, seq: index + 1, parent_id, status }
  })
}
