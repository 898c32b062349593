/** The REST side of sessions and their messages. What a running reply has said so far comes from whoever makes it. */

import { Problem } from '../errors.ts'
import { problemResponses } from '../http/openapi.ts'
import type { Server } from '../http/server.ts'
import { cleanJson, limitJson } from '../http/text.ts'
import type { Part } from '../log/event.ts'
import type { SessionList } from './list.ts'
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
}

const tags = ['sessions']

export function registerSessions(app: Server, { sessions, list, messages, readPartial }: SessionRoutesOptions): void {
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
    async (request) => list.listSessions(request.owner, cleanJson(request.query)),
  )

  app.get(
    '/sessions/:id',
    { schema: { tags, params: IdParams, response: { 200: Session, ...problemResponses } } },
    async (request) => sessions.getSession(request.owner, request.params.id),
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
    async (request) => {
      const { query } = request
      const read = () => messages.listMessages(request.owner, request.params.id, query)
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
    },
  )
}
