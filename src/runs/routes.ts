/** Runs as JSON: read one, stop one, ask for a whole reply without a stream; a session's background run and its kill. */

import type { FastifyReply, FastifyRequest } from 'fastify'
import { Type } from 'typebox'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import { problemResponses } from '../http/openapi.ts'
import type { Server } from '../http/server.ts'
import type { MessageStore } from '../sessions/messages.ts'
import { IdParams, type Message, Session } from '../sessions/model.ts'
import type { SessionStore } from '../sessions/store.ts'
import type { Chat } from './chat.ts'
import type { FollowDeps } from './follow.ts'
import {
  ChatBody,
  isTerminal,
  keyPattern,
  problemOf,
  Run,
  type RunFacts,
  type RunRecord,
  StartBody,
  StartedSession,
  StoppedRun,
  toRun,
  WholeReply,
} from './model.ts'
import type { OwnedRuns } from './owned.ts'
import { untilEnded } from './show.ts'
import type { createStop, StopSession } from './stop.ts'
import type { RunStore } from './store.ts'

export interface RunRoutesOptions {
  readonly chat: Chat
  readonly runs: RunStore
  readonly sessions: SessionStore
  readonly messages: MessageStore
  readonly owned: OwnedRuns
  readonly follow: FollowDeps
  readonly stop: ReturnType<typeof createStop>
  readonly stopSession: StopSession
}

/** The ids that every surface's answer to a run carries. */
export function runHeaders(run: RunFacts): Record<string, string> {
  return {
    'X-Session-Id': run.session_id,
    'X-Run-Id': run.id,
    'X-Message-Id': run.message_id,
    Location: `/api/v1/runs/${run.id}/events`,
  }
}

/** Body of a chat request with the header that means the same as `client_message_id`. */
export function withIdempotencyKey<Body extends { readonly client_message_id?: string }>(
  body: Body,
  header: string | string[] | undefined,
): Body {
  if (header === undefined) return body
  const key = String(header)
  if (!keyPattern.test(key)) {
    throw new Problem('invalid_request', 'Idempotency-Key must be 1 to 128 of A-Z a-z 0-9 . _ : -')
  }
  if (body.client_message_id !== undefined && body.client_message_id !== key) {
    throw new Problem('invalid_request', 'Idempotency-Key and client_message_id differ.')
  }
  return { ...body, client_message_id: key }
}

/** For routes whose body may be left out: nothing means what an empty object does. */
export async function allowNoBody(request: FastifyRequest): Promise<void> {
  request.body ??= {}
}

/** For the documents: a header is checked where it is read. */
export const IdempotencyHeader = Type.Object({
  'idempotency-key': Type.Optional(Type.String({ description: 'the same as client_message_id' })),
})

export function registerRuns(app: Server, options: RunRoutesOptions): void {
  const { chat, runs, sessions, messages, owned, follow, stop, stopSession } = options

  app.get(
    '/runs/:id',
    { schema: { tags: ['runs'], params: IdParams, response: { 200: Run, ...problemResponses } } },
    async (request, reply) => {
      const run = await runs.getRun(request.owner, request.params.id)
      reply.headers(runHeaders(run))
      return toRun(run)
    },
  )

  async function answerStopped(owner: Owner, run: RunRecord, reply: FastifyReply) {
    const stopped = await stop(run)
    reply.headers(runHeaders(run))
    return { run: toRun(stopped), message: await messages.getMessage(owner, run.message_id) }
  }

  app.post(
    '/runs/:id/stop',
    { schema: { tags: ['runs'], params: IdParams, response: { 200: StoppedRun, ...problemResponses } } },
    async (request, reply) => answerStopped(request.owner, await runs.getRun(request.owner, request.params.id), reply),
  )

  app.post(
    '/sessions/:id/stop',
    {
      schema: {
        tags: ['runs'],
        params: IdParams,
        response: { 200: StoppedRun, 204: Type.Null({ description: 'no active run' }), ...problemResponses },
      },
    },
    async (request, reply) => {
      const session = await sessions.getSession(request.owner, request.params.id)
      const run = await runs.findActive(request.owner, session.id)
      return run === undefined ? reply.code(204).send(null) : answerStopped(request.owner, run, reply)
    },
  )

  app.post(
    '/sessions/:id/start',
    {
      schema: {
        tags: ['runs'],
        headers: IdempotencyHeader,
        params: IdParams,
        body: StartBody,
        response: { 202: StartedSession, ...problemResponses },
      },
      preValidation: allowNoBody,
      config: { budget: 'runs' },
    },
    async (request, reply) => {
      const body = withIdempotencyKey(request.body, request.headers['idempotency-key'])
      const { run } = await chat(request.owner, { ...body, start: request.params.id })
      const [session, record] = await Promise.all([
        sessions.getSession(request.owner, run.session_id),
        runs.getRun(request.owner, run.id),
      ])
      reply.code(202).headers(runHeaders(run))
      return { session, run: toRun(record) }
    },
  )

  app.post(
    '/sessions/:id/kill',
    { schema: { tags: ['runs'], params: IdParams, response: { 200: Session, ...problemResponses } } },
    async (request) => {
      const { id } = await sessions.getSession(request.owner, request.params.id)
      await stopSession(request.owner, id, true)
      return sessions.getSession(request.owner, id)
    },
  )

  app.post(
    '/chat/message',
    {
      schema: {
        tags: ['chat'],
        headers: IdempotencyHeader,
        body: ChatBody,
        response: { 200: WholeReply, ...problemResponses },
      },
      config: { budget: 'runs' },
    },
    async (request, reply) => {
      const body = withIdempotencyKey(request.body, request.headers['idempotency-key'])
      const { run } = await chat(request.owner, body)
      await untilEnded({ follow, owned }, run, reply.raw)
      reply.headers(runHeaders(run))
      return readWholeReply(request.owner, run)
    },
  )

  async function readWholeReply(owner: Owner, { id }: RunFacts) {
    const run = await runs.getRun(owner, id)
    const [session, userMessage, message] = await Promise.all([
      sessions.getSession(owner, run.session_id),
      messages.getMessage(owner, run.user_message_id),
      messages.getMessage(owner, run.message_id),
    ])
    if (isTerminal(run.status)) refuseEmptyFailure(run, message)
    return { session, user_message: userMessage, message, run: toRun(run) }
  }
}

/** A reply of which nothing came is an error to whoever asked for the whole; a partial one is kept and given. */
function refuseEmptyFailure(run: RunRecord, message: Message): void {
  if (run.error !== null && message.parts.length === 0) throw problemOf(run)
}
