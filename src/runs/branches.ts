/**
 * Other branches of a conversation: a sibling reply to a message that is there, and a sibling of a message of the user with
 * a reply to it. Nothing is overwritten: what was there stays, and the new one is what the next message follows.
 *
 * The answer is a stream for a client that asks for one, the very same as that of a new message (given by the surface that
 * makes it), and else what was accepted, at once: the reply goes on, and can be followed at `Location`.
 */
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { Owner } from '../http/identity.ts'
import { eventStream, problemResponses } from '../http/openapi.ts'
import type { Server } from '../http/server.ts'
import type { MessageStore } from '../sessions/messages.ts'
import { IdParams } from '../sessions/model.ts'
import type { Acceptance } from './accept.ts'
import type { Asked } from './asked.ts'
import type { Chat } from './chat.ts'
import { AcceptedRun, BranchBody, EditBody, toRun } from './model.ts'
import { allowNoBody, IdempotencyHeader, runHeaders, withIdempotencyKey } from './routes.ts'
import type { RunStore } from './store.ts'

/** Answers with the stream of the run that is accepted. What is refused before the stream begins is thrown. */
export type AnswerWithStream = (
  request: FastifyRequest,
  reply: FastifyReply,
  accept: () => Promise<Acceptance>,
) => Promise<void>

export interface BranchRoutesOptions {
  readonly chat: Chat
  readonly runs: RunStore
  readonly messages: MessageStore
  readonly answerWithStream: AnswerWithStream
}

export function registerBranches(app: Server, { chat, runs, messages, answerWithStream }: BranchRoutesOptions): void {
  const schema = {
    tags: ['chat'],
    headers: IdempotencyHeader,
    params: IdParams,
    response: {
      200: { ...eventStream, description: `with Accept: text/event-stream. ${eventStream.description}` },
      202: AcceptedRun,
      ...problemResponses,
    },
  }

  async function answer(request: FastifyRequest, reply: FastifyReply, asked: Asked) {
    const accept = () => chat(request.owner, asked)
    if (wantsStream(request.headers.accept)) return answerWithStream(request, reply, accept)
    const { run } = await accept()
    const accepted = await readAccepted(request.owner, run.id)
    return reply.code(202).headers(runHeaders(run)).send(accepted)
  }

  async function readAccepted(owner: Owner, runId: string) {
    const run = await runs.getRun(owner, runId)
    const [userMessage, message] = await Promise.all([
      messages.getMessage(owner, run.user_message_id),
      messages.getMessage(owner, run.message_id),
    ])
    return { run: toRun(run), user_message: userMessage, message }
  }

  app.post(
    '/messages/:id/regenerate',
    { schema: { ...schema, body: BranchBody }, preValidation: allowNoBody, config: { budget: 'runs' } },
    async (request, reply) => {
      const body = withIdempotencyKey(request.body, request.headers['idempotency-key'])
      return answer(request, reply, { ...body, regenerate: request.params.id })
    },
  )

  app.post(
    '/messages/:id/edit',
    { schema: { ...schema, body: EditBody }, config: { budget: 'runs' } },
    async (request, reply) => {
      const body = withIdempotencyKey(request.body, request.headers['idempotency-key'])
      return answer(request, reply, { ...body, edit: request.params.id })
    },
  )
}

/** Whether a client that says what it takes (RFC 9110, 12.5.1) names event streams. */
export function wantsStream(accept: string | undefined): boolean {
  return (accept ?? '').split(',').some((range) => {
    const [type = '', ...parameters] = range.split(';').map((piece) => piece.trim().toLowerCase())
    return type === 'text/event-stream' && !parameters.some((parameter) => /^q=0(\.0*)?$/.test(parameter))
  })
}
