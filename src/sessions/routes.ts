/** The REST side of sessions and their messages. What a running reply has said so far comes from whoever makes it. */

import { Problem } from '../errors.ts'
import { problemResponses } from '../http/openapi.ts'
import type { Server } from '../http/server.ts'
import { cleanJson, limitJson } from '../http/text.ts'
import type { Part } from '../log/event.ts'
import type { HistoryCache } from './history.ts'
import type { SessionList } from './list.ts'
import type { LiveState } from './live.ts'
import type { MessageStore } from './messages.ts'
import {
  CreateSessionBody,
  IdParams,
  ListMessagesQuery,
  ListSessionsQuery,
  Message,
  metadataBytesMax,
  page,
  Session,
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
}

const tags = ['sessions']

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
  const { sessions, list, messages, history, live, snapshots, readPartial } = options

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
    { schema: { tags, params: IdParams, response: { 200: Session, ...problemResponses } } },
    async (request) => {
      const session = await orKnown(
        () => sessions.getSession(request.owner, request.params.id),
        () => snapshots?.getSession(request.owner, request.params.id),
      )
      const [current = session] = await live.overlay([session])
      return current
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
      const copy = await history?.readPage(request.owner, request.params.id, request.query)
      // JSON already, so it has the bytes of the schema's type, and not the type.
      if (copy !== undefined) return reply.type('application/json; charset=utf-8').send(copy as never)
      const read = () => messages.listMessages(request.owner, request.params.id, request.query)
      const answer = await read()
      const running = answer.data.find((message) => message.status === 'streaming')
      if (running?.run_id == null) return answer
      const partial = await readPartial(running.run_id)
      // It ended between the two looks: now its text is in the row.
      if (partial === undefined) return read()
      Object.assign(running, partial)
      return answer
    },
  )
}
