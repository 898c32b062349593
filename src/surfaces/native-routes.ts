/**
 * The routes of the native SSE surface: start a run and watch it, attach to one, or ask for the ticket with which an
 * EventSource attaches. The request that starts a run is a viewer like any other; when its connection breaks, nothing
 * happens to the run.
 *
 * A native EventSource is dead for good after any answer but 200, so a reconnect (it brings a Last-Event-ID) is never
 * refused for something that passes: it is accepted and told to come back. 204 ends it on purpose. So is one that comes with
 * its first GET to a process that is too late for another run: nothing is stored for it, and it asks again.
 */

import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify'
import { Type } from 'typebox'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import { eventStream, problemResponses } from '../http/openapi.ts'
import type { Server } from '../http/server.ts'
import type { SseConnection, SseEdge } from '../http/sse.ts'
import { parseEventId } from '../log/event.ts'
import type { Acceptance } from '../runs/accept.ts'
import { type AnswerWithStream, wantsStream } from '../runs/branches.ts'
import type { Chat } from '../runs/chat.ts'
import type { FollowDeps } from '../runs/follow.ts'
import { ChatBody, ChatQuery, type RunFacts } from '../runs/model.ts'
import { IdempotencyHeader, runHeaders, withIdempotencyKey } from '../runs/routes.ts'
import { type KeepRun, pastEnd, type ShowRun } from '../runs/show.ts'
import type { RunStore } from '../runs/store.ts'
import { StreamTicket, type Tickets } from '../runs/tickets.ts'
import { IdParams, Uuid } from '../sessions/model.ts'
import { CursorHeader, readCursor } from './fields.ts'
import { createNativeEncoder, readyBlock } from './native.ts'

export interface NativeRoutesOptions {
  readonly chat: Chat
  readonly runs: RunStore
  readonly follow: FollowDeps
  readonly show: ShowRun
  readonly keep: KeepRun
  readonly edge: SseEdge
  readonly tickets: Tickets
}

/** On average: those that are turned away at once come back one after the other, between a half of it and one and a half. */
const turnAwayMs = 2000
const cursorUnitsMax = 32

const AttachQuery = Type.Object(
  {
    after: Type.Optional(Type.String({ maxLength: cursorUnitsMax })),
    ticket: Type.Optional(Type.String({ description: 'a stream ticket of this run, instead of any other credential' })),
  },
  { additionalProperties: false },
)

const TicketBody = Type.Object({ run_id: Uuid }, { additionalProperties: false })

const CursorAndKeyHeaders = Type.Object({ ...CursorHeader.properties, ...IdempotencyHeader.properties })

const response = { 200: eventStream, ...problemResponses }
const responseToGet = { 204: Type.Null({ description: 'the cursor is at the end; ends an EventSource' }), ...response }

/** @returns what answers a request that has another route with the stream of a run */
export function registerNative(app: Server, options: NativeRoutesOptions): AnswerWithStream {
  const { chat, runs, follow, show, keep, edge, tickets } = options
  const encoder = createNativeEncoder()
  const encoderWithReady = { ...encoder, ready: readyBlock }

  /** @param isAttached whether there may be something to catch up with */
  const encoderFor = (isAttached: boolean) => (isAttached ? encoderWithReady : encoder)

  async function isGone(owner: Owner, key: string): Promise<boolean> {
    return (await runs.findByKey(owner, key)) === undefined
  }

  function open(request: FastifyRequest, reply: FastifyReply, run: RunFacts): SseConnection {
    return edge.open(request, reply, runHeaders(run))
  }

  async function answerWithStream(request: FastifyRequest, reply: FastifyReply, accept: () => Promise<Acceptance>) {
    // Clients on fetch repeat their POST when they reconnect, key and cursor included.
    const after = readCursor(request.headers['last-event-id'], parseEventId)
    edge.refuseAtLimit(request.owner.key)
    const { run, isNew } = await accept()
    const connection = open(request, reply, run)
    // 204 would be an error to them: a stream that ends at once says the same.
    if (pastEnd(follow, run, after) === 0) connection.end()
    else show(connection, run, after, encoderFor(!isNew))
  }

  app.post(
    '/chat/stream',
    { schema: { tags: ['chat'], headers: CursorAndKeyHeaders, body: ChatBody, response }, config: { budget: 'runs' } },
    (request, reply) =>
      answerWithStream(request, reply, async () =>
        chat(request.owner, withIdempotencyKey(request.body, request.headers['idempotency-key'])),
      ),
  )

  app.get(
    '/chat/stream',
    {
      schema: { tags: ['chat'], headers: CursorHeader, querystring: ChatQuery, response: responseToGet },
      config: { budget: 'runs' },
      errorHandler: turnEventSourceAway,
    },
    async (request, reply) => {
      const after = readCursor(request.headers['last-event-id'], parseEventId)
      edge.refuseAtLimit(request.owner.key)
      // It has seen events of a run that is purged by now, or another owner's: made anew, it would bring them back.
      if (after !== undefined && (await isGone(request.owner, request.query.client_message_id))) {
        return reply.code(204).send(null)
      }
      const { run, isNew } = await chat(request.owner, request.query)
      // At the end or beyond: whatever else an EventSource is told, it would ask the same again.
      if (pastEnd(follow, run, after) !== undefined) return reply.headers(runHeaders(run)).code(204).send(null)
      show(open(request, reply, run), run, after, encoderFor(!isNew))
    },
  )

  app.get(
    '/runs/:id/events',
    {
      schema: {
        tags: ['runs'],
        headers: CursorHeader,
        params: IdParams,
        querystring: AttachQuery,
        response: responseToGet,
        security: [{}, { bearer: [] }, { visitor: [] }, { ticket: [] }],
      },
      config: { takesTicket: true },
      errorHandler: turnReconnectAway,
    },
    async (request, reply) => {
      // A reconnecting EventSource repeats its URL, so its header is the newer of the two.
      const after =
        readCursor(request.headers['last-event-id'], parseEventId) ?? readCursor(request.query.after, parseEventId)
      edge.refuseAtLimit(request.owner.key)
      const run = await runs.getRun(request.owner, request.params.id)
      // Beyond the end is a cursor from the future, and is answered with `reset`.
      if (pastEnd(follow, run, after) === 0) return reply.headers(runHeaders(run)).code(204).send(null)
      await keep(request.owner, run)
      show(open(request, reply, run), run, after, encoderFor(true))
    },
  )

  app.post(
    '/stream-tickets',
    { schema: { tags: ['runs'], body: TicketBody, response: { 200: StreamTicket, ...problemResponses } } },
    async (request) => tickets.issue(request.owner, request.body.run_id),
  )

  /** A reconnect that meets something that passes is told to come back, wherever on its way it meets it. */
  function turnReconnectAway(error: FastifyError, request: FastifyRequest, reply: FastifyReply): void {
    const reconnects = request.headers['last-event-id'] !== undefined
    if (!(error instanceof Problem) || !reconnects || error.retryAfterSeconds === undefined) throw error
    edge.turnAway(reply, Math.round(turnAwayMs * (0.5 + Math.random())))
  }

  /** The same of the first GET, as an EventSource sends it, when all that is wrong is that this process is late. */
  function turnEventSourceAway(error: FastifyError, request: FastifyRequest, reply: FastifyReply): void {
    const isLate = error instanceof Problem && error.code === 'overloaded'
    if (!isLate || !wantsStream(request.headers.accept)) turnReconnectAway(error, request, reply)
    else edge.turnAway(reply, 1000 * (error.retryAfterSeconds ?? 0), error.code)
  }

  return answerWithStream
}
