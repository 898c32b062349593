/**
 * The routes of OpenAI's chat completions: a completion, as a stream or as one object, and the models. Whether a client gets
 * one or the other is what its body says; `Accept` means nothing here. A repeat with the same key, or by an official client
 * that has heard nothing, is answered with the run that there is, in whichever of the two forms the repeat asks for.
 *
 * At each await: the run goes on when the client leaves, or is stopped a little later where its client has no means to come
 * back (openai-shared-routes.ts). A whole completion is answered when it is stored; if this process dies before, the
 * connection breaks, and the repeat finds the run on another one.
 */
import type { FastifyReply, FastifyRequest } from 'fastify'
import { Type } from 'typebox'
import { Problem } from '../errors.ts'
import { eventStream } from '../http/openapi.ts'
import type { Server } from '../http/server.ts'
import type { SseEdge } from '../http/sse.ts'
import { Mode } from '../log/event.ts'
import type { ChatAsked } from '../runs/asked.ts'
import type { Chat } from '../runs/chat.ts'
import type { FollowDeps } from '../runs/follow.ts'
import { isTerminal, problemOf, type RunFacts, toolsMax } from '../runs/model.ts'
import type { OwnedRuns } from '../runs/owned.ts'
import { runHeaders, withIdempotencyKey } from '../runs/routes.ts'
import { type KeepRun, type ShowRun, untilEnded } from '../runs/show.ts'
import type { RunStore } from '../runs/store.ts'
import { toDone } from '../runs/stored.ts'
import type { MessageStore } from '../sessions/messages.ts'
import { type ChatView, createChatEncoder, toCompletion } from './openai-chat.ts'
import {
  type CompletionBody,
  completionBody,
  readMessages,
  readSettings,
  readTools,
  refuseUnsupported,
} from './openai-chat-request.ts'
import { toConversation } from './openai-conversation.ts'
import {
  type DeliveryLimits,
  deliveryOf,
  type ModelNames,
  modelNamed,
  OpenaiHeaders,
  openaiErrors,
  openaiFraming,
  sessionNamed,
} from './openai-shared-routes.ts'

export interface OpenaiChatOptions {
  readonly chat: Chat
  readonly runs: RunStore
  readonly messages: MessageStore
  readonly owned: OwnedRuns
  readonly follow: FollowDeps
  readonly show: ShowRun
  readonly keep: KeepRun
  readonly edge: SseEdge
  readonly catalog: ModelNames
  readonly delivery: DeliveryLimits
}

const Completion = Type.Object(
  { id: Type.String(), object: Type.Literal('chat.completion'), created: Type.Integer(), model: Type.String() },
  { additionalProperties: true, description: 'as in the documents of OpenAI' },
)

const Model = Type.Object({
  id: Type.String(),
  object: Type.Literal('model'),
  created: Type.Integer({ description: 'not known here: 0' }),
  owned_by: Type.String(),
})
const ModelList = Type.Object({ object: Type.Literal('list'), data: Type.Array(Model) })

const modes: readonly string[] = Mode.anyOf.map((one) => one.const)

export function registerOpenaiChat(app: Server, options: OpenaiChatOptions): void {
  const { chat, runs, messages, owned, follow, show, keep, edge, catalog, delivery } = options
  const encoder = createChatEncoder()

  function readAsked(request: FastifyRequest, body: CompletionBody): ChatAsked {
    refuseUnsupported(body)
    const { session_id: _session, ...metadata } = body.metadata ?? {}
    const settings = readSettings(body)
    return withIdempotencyKey(
      {
        ...toConversation(readMessages(body), 'messages'),
        ...modelNamed(catalog, body.model),
        ...readTools(body),
        ...(settings && { settings }),
        ...(Object.keys(metadata).length > 0 && { metadata }),
        ...sessionNamed(request, body.metadata),
        ...deliveryOf(request, delivery),
      } as ChatAsked,
      request.headers['idempotency-key'],
    )
  }

  app.post(
    '/chat/completions',
    {
      schema: {
        tags: ['openai'],
        headers: OpenaiHeaders,
        body: completionBody(toolsMax),
        response: {
          200: {
            description: 'A whole completion, or with `stream` its chunks as server-sent events',
            content: { 'application/json': { schema: Completion }, ...eventStream.content },
          },
          ...openaiErrors,
        },
      },
      config: { budget: 'runs' },
    },
    async (request, reply) => {
      const { body } = request
      const asked = readAsked(request, body)
      const isStream = body.stream === true
      if (isStream) edge.refuseAtLimit(request.owner.key)
      const { run, isNew } = await chat(request.owner, asked)
      if (!isNew) await keep(request.owner, run)
      const view: ChatView = {
        runId: run.id,
        createdAt: run.created_at,
        model: body.model ?? run.mode,
        clientTools: new Set(run.request?.tools?.map(({ name }) => name)),
      }
      if (!isStream) return answerWhole(request, reply, run, view)
      const includeUsage = body.stream_options?.include_usage === true
      const connection = edge.open(request, reply, runHeaders(run), openaiFraming)
      show(connection, run, undefined, encoder.createViewer({ ...view, includeUsage }))
    },
  )

  async function answerWhole(request: FastifyRequest, reply: FastifyReply, run: RunFacts, view: ChatView) {
    reply.headers(runHeaders(run))
    // The client has left before the reply was whole: nobody reads what is answered.
    if (!(await untilEnded({ follow, owned }, run, reply.raw))) return reply.hijack()
    const [ended, message] = await Promise.all([
      runs.getRun(request.owner, run.id),
      messages.getMessage(request.owner, run.message_id),
    ])
    // What there is of it is stored; a part of a reply is no completion.
    if (ended.error !== null) throw problemOf(ended)
    if (!isTerminal(ended.status)) throw new Problem('internal')
    return toCompletion(view, message.parts, toDone(ended))
  }

  const toModel = (id: string) => ({
    id,
    object: 'model' as const,
    created: 0,
    owned_by: modes.includes(id) ? 'verbatim' : (id.split(':')[0] as string),
  })

  app.get('/models', { schema: { tags: ['openai'], response: { 200: ModelList, ...openaiErrors } } }, async () => ({
    object: 'list' as const,
    data: [...modes, ...catalog.listed()].map(toModel),
  }))

  app.get(
    '/models/:id',
    {
      schema: {
        tags: ['openai'],
        params: Type.Object({ id: Type.String({ description: 'the name of a model; a slash in it as %2F' }) }),
        response: { 200: Model, ...openaiErrors },
      },
    },
    async (request) => {
      const name = request.params.id
      try {
        modelNamed(catalog, name)
      } catch (error) {
        if (!(error instanceof Problem)) throw error
        throw new Problem('not_found', 'There is no such model here.', { members: { param: 'model' } })
      }
      return toModel(name)
    },
  )
}
