/** Runs as JSON: read one, stop one, and ask for a whole reply without a stream. */

import type { FastifyReply } from 'fastify'
import { Type } from 'typebox'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import { problemResponses } from '../http/openapi.ts'
import type { Server } from '../http/server.ts'
import type { MessageStore } from '../sessions/messages.ts'
import { IdParams, type Message } from '../sessions/model.ts'
import type { SessionStore } from '../sessions/store.ts'
import type { Chat } from './chat.ts'
import { type FollowDeps, followRun } from './follow.ts'
import { ChatBody, isTerminal, Run, type RunFacts, type RunRecord, StoppedRun, toRun, WholeReply } from './model.ts'
import type { OwnedRuns } from './owned.ts'
import type { createStop } from './stop.ts'
import type { RunStore } from './store.ts'

export interface RunRoutesOptions {
  readonly chat: Chat
  readonly runs: RunStore
  readonly sessions: SessionStore
  readonly messages: MessageStore
  readonly owned: OwnedRuns
  readonly follow: FollowDeps
  readonly stop: ReturnType<typeof createStop>
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
export function withIdempotencyKey(body: ChatBody, header: string | string[] | undefined): ChatBody {
  if (header === undefined) return body
  const key = String(header)
  if (!/^[A-Za-z0-9._:-]{1,128}$/.test(key)) {
    throw new Problem('invalid_request', 'Idempotency-Key must be 1 to 128 of A-Z a-z 0-9 . _ : -')
  }
  if (body.client_message_id !== undefined && body.client_message_id !== key) {
    throw new Problem('invalid_request', 'Idempotency-Key and client_message_id differ.')
  }
  return { ...body, client_message_id: key }
}

/** For the documents: a header is checked where it is read. */
export const IdempotencyHeader = Type.Object({
  'idempotency-key': Type.Optional(Type.String({ description: 'the same as client_message_id' })),
})

export function registerRuns(app: Server, options: RunRoutesOptions): void {
  const { chat, runs, sessions, messages, owned, follow, stop } = options

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
      const gone = new AbortController()
      const leave = owned.countViewer(run)
      const onClose = () => gone.abort()
      reply.raw.on('close', onClose)
      try {
        for await (const { persistPending } of followRun(follow, run, undefined, gone.signal)) {
          if (persistPending === true) throw new Problem('persist_pending', undefined, { retryAfterSeconds: 2 })
        }
      } finally {
        reply.raw.off('close', onClose)
        leave(gone.signal.aborted)
      }
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
  if (run.error === null || message.parts.length > 0) return
  const { code, message: detail, retryable } = run.error
  throw new Problem(code as Problem['code'], detail, { retryable, members: { run_id: run.id } })
}
