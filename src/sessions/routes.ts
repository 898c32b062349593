/**
 * The REST side of sessions and their messages. What a running reply has said so far comes from whoever makes it. It holds
 * nothing; when the process dies at an await, what the store says of that statement is all there is to know.
 */
import { type Static, Type } from 'typebox'
import { Problem } from '../errors.ts'
import { readVersions, tagOf } from '../http/etag.ts'
import type { Owner } from '../http/identity.ts'
import { problemResponses } from '../http/openapi.ts'
import type { Server } from '../http/server.ts'
import { cleanJson, limitJson } from '../http/text.ts'
import type { Part } from '../log/event.ts'
import { ArtifactSummary } from './artifact-model.ts'
import type { Page } from './cursor.ts'
import type { HistoryCache } from './history.ts'
import type { SessionList } from './list.ts'
import type { LiveState } from './live.ts'
import type { MessageStore } from './messages.ts'
import {
  CreateSessionBody,
  IdParams,
  IfMatch,
  ListMessagesQuery,
  ListSessionsQuery,
  Message,
  metadataBytesMax,
  nullable,
  PatchSessionBody,
  page,
  pageRowsMax,
  Session,
  SessionInclude,
  stateBytesMax,
} from './model.ts'
import type { Snapshots } from './snapshots.ts'
import type { SessionStore } from './store.ts'

/** The text of a running reply, and the event up to which it goes, read together. */
export interface PartialReply {
  readonly parts: Part[]
  readonly content: string
  readonly cursor: string
}

export interface SessionRoutesOptions {
  readonly sessions: SessionStore
  readonly list: SessionList
  readonly messages: MessageStore
  /** Undefined when copies of messages are not kept. */
  readonly history?: HistoryCache | undefined
  readonly live: LiveState
  /** Undefined when copies of sessions are not kept. */
  readonly snapshots?: Snapshots | undefined
  /** @returns undefined when the run has ended meanwhile, or has said nothing that is known here */
  readonly readPartial: (runId: string) => Promise<PartialReply | undefined>
  /** As the list of artifacts gives them. The session has been found to be the owner's. */
  readonly listArtifacts: (owner: Owner, sessionId: string) => Promise<ArtifactSummary[]>
}

const tags = ['sessions']

/** A session with what else was asked for. */
export const SessionWithMembers = Type.Object({
  ...Session.properties,
  messages: Type.Optional(Type.Array(Message)),
  messages_next_cursor: Type.Optional(nullable(Type.String())),
  artifacts: Type.Optional(Type.Array(ArtifactSummary)),
})
type SessionWithMembers = Static<typeof SessionWithMembers>

/**
 * @param read from the database
 * @param readKnown what was known last; asked only when the database does not answer, never when it answers with nothing
 */
async function orKnown<T extends object>(
  read: () => Promise<T>,
  readKnown: () => Promise<T | undefined> | undefined,
): Promise<T & { degraded?: true }> {
  try {
    return await read()
  } catch (error) {
    const isAway = error instanceof Problem && error.code === 'db_unavailable'
    const known = isAway ? await readKnown() : undefined
    if (known === undefined) throw error
    return { ...known, degraded: true }
  }
}

export function registerSessions(app: Server, options: SessionRoutesOptions): void {
  const { sessions, list, messages, history, live, snapshots, readPartial, listArtifacts } = options

  /** A page of messages, with what a running reply has said so far. */
  async function readMessages(owner: Owner, sessionId: string, query: ListMessagesQuery): Promise<Page<Message>> {
    const read = () => messages.listMessages(owner, sessionId, query)
    const answer = await read()
    // Of several, the others are queued, and have said nothing.
    const streaming = answer.data.filter((message) => message.status === 'streaming')
    const running = query.order === 'desc' ? streaming.at(-1) : streaming[0]
    if (running?.run_id == null) return answer
    const partial = await readPartial(running.run_id)
    // It ended between the two looks: now its text is in the row.
    if (partial === undefined) return read()
    Object.assign(running, partial)
    return answer
  }

  app.post(
    '/sessions',
    { schema: { tags, body: CreateSessionBody, response: { 200: Session, 201: Session, ...problemResponses } } },
    async (request, reply) => {
      const body = cleanJson(request.body)
      limitJson('metadata', body.metadata, metadataBytesMax)
      limitJson('context', body.context, metadataBytesMax)
      // What only looked like text: U+0000 is gone by now.
      if (body.external_id === '') throw new Problem('invalid_request', 'external_id is empty.')
      if (body.title?.trim() === '') throw new Problem('invalid_request', 'title is empty.')
      const { session, created } = await sessions.createSession(request.owner, body)
      return reply
        .code(created ? 201 : 200)
        .header('Location', `/api/v1/sessions/${session.id}`)
        .header('ETag', tagOf(session.version))
        .send(session)
    },
  )

  app.get(
    '/sessions',
    { schema: { tags, querystring: ListSessionsQuery, response: { 200: page(Session), ...problemResponses } } },
    async (request) => {
      const query = cleanJson(request.query)
      const answer = await orKnown(
        () => list.listSessions(request.owner, query),
        () => snapshots?.listSessions(request.owner, query),
      )
      return { ...answer, data: await live.overlay(answer.data) }
    },
  )

  app.get(
    '/sessions/:id',
    {
      schema: {
        tags,
        params: IdParams,
        querystring: SessionInclude,
        response: { 200: SessionWithMembers, ...problemResponses },
      },
    },
    async (request, reply) => {
      const { owner } = request
      const members = (request.query.include ?? '').split(',')
      const known = await orKnown(
        () => sessions.getSession(owner, request.params.id),
        () => snapshots?.getSession(owner, request.params.id),
      )
      const [session = known] = await live.overlay([known])
      reply.header('ETag', tagOf(session.version))
      const answer: SessionWithMembers = { ...session }
      if (members.includes('messages')) {
        const { data, next_cursor } = await readMessages(owner, session.id, { limit: pageRowsMax })
        Object.assign(answer, { messages: data, messages_next_cursor: next_cursor })
      }
      if (members.includes('artifacts')) answer.artifacts = await listArtifacts(owner, session.id)
      return answer
    },
  )

  app.patch(
    '/sessions/:id',
    {
      schema: {
        tags,
        params: IdParams,
        headers: IfMatch,
        body: PatchSessionBody,
        response: { 200: Session, ...problemResponses },
      },
    },
    async (request, reply) => {
      const body = cleanJson(request.body)
      limitJson('metadata', body.metadata, metadataBytesMax)
      limitJson('state', body.state, stateBytesMax)
      if (body.title?.trim() === '') throw new Problem('invalid_request', 'title is empty.')
      if (body.tags?.some((tag) => tag.trim() === '')) throw new Problem('invalid_request', 'A tag is empty.')
      const given = body.tags === undefined ? body : { ...body, tags: [...new Set(body.tags)] }
      const versions = readVersions('If-Match', request.headers['if-match'])
      const session = await sessions.patchSession(request.owner, request.params.id, given, versions)
      reply.header('ETag', tagOf(session.version))
      return session
    },
  )

  app.get(
    '/sessions/:id/messages',
    {
      schema: {
        tags,
        params: IdParams,
        querystring: ListMessagesQuery,
        response: { 200: page(Message), ...problemResponses },
      },
    },
    async (request, reply) => {
      const { owner, params, query } = request
      const copy = await history?.readPage(owner, params.id, query)
      // JSON already, so it has the bytes of the schema's type, and not the type.
      if (copy !== undefined) return reply.type('application/json; charset=utf-8').send(copy as never)
      return readMessages(owner, params.id, query)
    },
  )
}
