/**
 * The REST side of sessions and their messages. What a running reply has said so far comes from whoever makes it. It holds
 * nothing; when the process dies at an await, what the store says of that statement is all there is to know.
 */
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import { problemResponses } from '../http/openapi.ts'
import type { Server } from '../http/server.ts'
import { cleanJson, limitJson } from '../http/text.ts'
import type { Part } from '../log/event.ts'
import type { Page } from './cursor.ts'
import type { SessionList } from './list.ts'
import type { MessageStore } from './messages.ts'
import {
  CreateSessionBody,
  IdParams,
  IfMatch,
  ListMessagesQuery,
  ListSessionsQuery,
  Message,
  metadataBytesMax,
  PatchSessionBody,
  page,
  pageRowsMax,
  Session,
  SessionInclude,
  SessionWithMembers,
  stateBytesMax,
} from './model.ts'
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
  /** @returns undefined when the run has ended meanwhile, or has said nothing that is known here */
  readonly readPartial: (runId: string) => Promise<PartialReply | undefined>
  /** As the list of artifacts gives them. The session has been found to be the owner's. */
  readonly listArtifacts?: (owner: Owner, sessionId: string) => Promise<unknown[]>
}

const tags = ['sessions']

export function registerSessions(app: Server, options: SessionRoutesOptions): void {
  const { sessions, list, messages, readPartial, listArtifacts } = options

  /** A page of messages, with what a running reply has said so far. */
  async function readMessages(owner: Owner, sessionId: string, query: ListMessagesQuery): Promise<Page<Message>> {
    const read = () => messages.listMessages(owner, sessionId, query)
    const answer = await read()
    const running = answer.data.find((message) => message.status === 'streaming')
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
        .header('ETag', tagOf(session))
        .send(session)
    },
  )

  app.get(
    '/sessions',
    { schema: { tags, querystring: ListSessionsQuery, response: { 200: page(Session), ...problemResponses } } },
    async (request) => list.listSessions(request.owner, cleanJson(request.query)),
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
      const session = await sessions.getSession(owner, request.params.id)
      reply.header('ETag', tagOf(session))
      const answer: SessionWithMembers = { ...session }
      if (members.includes('messages')) {
        const { data, next_cursor } = await readMessages(owner, session.id, { limit: pageRowsMax })
        Object.assign(answer, { messages: data, messages_next_cursor: next_cursor })
      }
      if (members.includes('artifacts')) answer.artifacts = (await listArtifacts?.(owner, session.id)) ?? []
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
      const versions = readIfMatch(request.headers['if-match'])
      const session = await sessions.patchSession(request.owner, request.params.id, given, versions)
      reply.header('ETag', tagOf(session))
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
    async (request) => readMessages(request.owner, request.params.id, request.query),
  )
}

const tagOf = ({ version }: Session) => `"${version}"`

const versionMax = 2_147_483_647
const entityTag = /^(W\/)?"([!#-~\x80-\xff]*)"$/

/**
 * `If-Match` of RFC 9110, section 13.1.1. A tag that no session can have, a weak one among them, matches none.
 * @returns the versions, of which one must be the session's; undefined when any will do
 * @throws Problem `invalid_request`
 */
export function readIfMatch(header: string | undefined): number[] | undefined {
  if (header === undefined || header.trim() === '*') return undefined
  return header.split(',').flatMap((text) => {
    const match = entityTag.exec(text.trim())
    if (match === null) {
      throw new Problem('invalid_request', 'If-Match must be the ETag of the session, with its quotation marks.')
    }
    const [, weak, tag = ''] = match
    return weak === undefined && /^[1-9]\d*$/.test(tag) && Number(tag) <= versionMax ? [Number(tag)] : []
  })
}
