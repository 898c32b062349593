/**
 * The routes of OpenAI Responses: create a response (whole, as a stream, or in the background), read it whenever and as far
 * as wanted, and cancel it. A response is a run, and its id is made of the run's: nothing else is stored.
 *
 * In the background, or with an Idempotency-Key, a response goes on whatever its client does; any other is stopped when
 * nobody has been there for a while, as a chat completion is (openai-shared-routes.ts). A stream that is cut can be taken
 * up behind the number of its last event.
 *
 * At each await: when the client goes, the run does not, except as said above. When the database does not answer after the
 * acceptance, the client is told 503, and its repeat means the same run; it counts as one that was there and has left. Who
 * waits for a whole response whose reply cannot be stored for now is told so, and finds it later.
 */
import type { FastifyReply, FastifyRequest } from 'fastify'
import { type Static, Type } from 'typebox'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import { eventStream } from '../http/openapi.ts'
import type { Server } from '../http/server.ts'
import type { SseEdge } from '../http/sse.ts'
import type { ChatAsked } from '../runs/asked.ts'
import type { Chat } from '../runs/chat.ts'
import type { FollowDeps } from '../runs/follow.ts'
import { isTerminal, modelUnitsMax, problemOf, type RunFacts, type RunRecord, toolsMax } from '../runs/model.ts'
import type { OwnedRuns } from '../runs/owned.ts'
import { runHeaders, withIdempotencyKey } from '../runs/routes.ts'
import { type KeepRun, readForViewer, type ShowRun, untilEnded } from '../runs/show.ts'
import type { createStop } from '../runs/stop.ts'
import type { RunStore } from '../runs/store.ts'
import { toDone } from '../runs/stored.ts'
import { openCallsOf } from '../sessions/context.ts'
import type { MessageStore } from '../sessions/messages.ts'
import { optional } from './fields.ts'
import { invalid, type Said } from './openai-conversation.ts'
import { readEffort, readFormat } from './openai-fields.ts'
import { createResponsesEncoder, leadFrom } from './openai-responses.ts'
import {
  fromReference,
  type Reference,
  readInput,
  readToolChoice,
  readTools,
  toAskedOf,
} from './openai-responses-input.ts'
import {
  type ShownRun,
  toOutcome,
  toOutput,
  toResponse,
  toRunId,
  toSeconds,
  toShownRun,
  unended,
} from './openai-responses-object.ts'
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

export interface ResponsesRoutesOptions {
  readonly chat: Chat
  readonly runs: RunStore
  readonly messages: MessageStore
  readonly owned: OwnedRuns
  readonly follow: FollowDeps
  readonly show: ShowRun
  readonly keep: KeepRun
  readonly edge: SseEdge
  readonly stop: ReturnType<typeof createStop>
  readonly catalog: Pick<ModelNames, 'plansFor'>
  readonly delivery: DeliveryLimits
}

const itemsMax = 4000
/** Earlier responses whose items one input may name by their ids alone. */
const referencedRunsMax = 200

const JsonObject = Type.Record(Type.String(), Type.Unknown())

const ResponseBody = Type.Object({
  model: optional(Type.String({ minLength: 1, maxLength: modelUnitsMax })),
  input: Type.Union([Type.String(), Type.Array(Type.Unknown(), { maxItems: itemsMax })]),
  instructions: optional(Type.String()),
  previous_response_id: optional(Type.String()),
  conversation: optional(Type.Union([Type.String(), Type.Object({ id: Type.String() })])),
  metadata: optional(Type.Record(Type.String(), Type.String())),
  stream: optional(Type.Boolean()),
  background: optional(Type.Boolean()),
  store: optional(Type.Boolean()),
  tools: optional(Type.Array(JsonObject, { maxItems: toolsMax })),
  tool_choice: optional(Type.Union([Type.String(), JsonObject])),
  parallel_tool_calls: optional(Type.Boolean()),
  reasoning: optional(Type.Object({ effort: optional(Type.String()) })),
  text: optional(Type.Object({ format: optional(JsonObject) })),
  max_output_tokens: optional(Type.Integer({ minimum: 1 })),
  temperature: optional(Type.Number({ minimum: 0, maximum: 2 })),
  top_p: optional(Type.Number({ minimum: 0, maximum: 1 })),
  prompt: Type.Optional(Type.Null({ description: 'prompt templates are not taken' })),
})
type ResponseBody = Static<typeof ResponseBody>

const Params = Type.Object({ id: Type.String() })

const RetrieveQuery = Type.Object({
  stream: Type.Optional(Type.Boolean()),
  starting_after: Type.Optional(
    Type.Integer({
      minimum: 0,
      maximum: Number.MAX_SAFE_INTEGER,
      description: 'the number of the last event received',
    }),
  ),
})

const wholeResponse = {
  description: 'A response, as OpenAI has it',
  content: { 'application/json': { schema: JsonObject } },
}
const response = { 200: wholeResponse, ...openaiErrors }
const responseOrStream = {
  200: { description: wholeResponse.description, content: { ...wholeResponse.content, ...eventStream.content } },
  ...openaiErrors,
}

export function registerResponses(app: Server, options: ResponsesRoutesOptions): void {
  const { chat, runs, messages, owned, follow, show, keep, edge, stop, catalog, delivery } = options
  const encoder = createResponsesEncoder()

  /** @throws Problem `not_found` */
  async function getRun(owner: Owner, responseId: string, param: string | undefined): Promise<RunRecord> {
    const missing = () => new Problem('not_found', 'There is no such response.', { members: param ? { param } : {} })
    const id = toRunId(responseId)
    if (id === undefined) throw missing()
    try {
      return await runs.getRun(owner, id)
    } catch (error) {
      throw error instanceof Problem && error.code === 'not_found' ? missing() : error
    }
  }

  /** The run with what its messages say of its request. @throws Problem `not_found` when its session is gone */
  async function readShown(owner: Owner, run: RunFacts): Promise<ShownRun> {
    return toShownRun(run, await messages.readAsking(owner, run.user_message_id))
  }

  /** The response as it is now. While the reply is made, it has no output yet. */
  async function readResponse(owner: Owner, run: RunRecord) {
    const { status } = run
    if (!isTerminal(status)) {
      return toResponse(await readShown(owner, run), unended(status === 'queued' ? 'queued' : 'in_progress'), [])
    }
    const [shown, { parts }] = await Promise.all([readShown(owner, run), messages.getMessage(owner, run.message_id)])
    const done = toDone(run)
    const outcome = toOutcome(done)
    const completedAt = outcome.status === 'completed' && run.ended_at !== null ? toSeconds(run.ended_at) : null
    return { ...toResponse(shown, outcome, toOutput(shown, parts, done)), completed_at: completedAt }
  }

  async function showResponse(
    request: FastifyRequest,
    reply: FastifyReply,
    run: RunFacts,
    after: number | undefined,
  ): Promise<void> {
    const shown = await readForViewer({ owned }, run, () => readShown(request.owner, run))
    const connection = edge.open(request, reply, runHeaders(run), openaiFraming)
    const viewer = encoder.createViewer({ ...shown, isQueued: run.status === 'queued', after })
    // Numbers count from the first event, so every viewer is led from there, and is told what is behind its cursor.
    show(connection, run, leadFrom(after), viewer)
  }

  /** What was meant by ids alone. @throws Problem `not_found` `invalid_request` */
  async function resolve(owner: Owner, input: readonly (Said | Reference)[]): Promise<Said[]> {
    const ids = new Set(input.flatMap((item) => (item.role === 'reference' ? [item.runId] : [])))
    if (ids.size > referencedRunsMax) {
      throw invalid('input', `It may name items of ${referencedRunsMax} earlier responses at most.`)
    }
    const known = new Map(
      await Promise.all(
        [...ids].map(async (id) => {
          const run = await runs.getRun(owner, id).catch(orNothing)
          const message = run && (await messages.getMessage(owner, run.message_id).catch(orNothing))
          return [id, message?.parts ?? []] as const
        }),
      ),
    )
    return input.flatMap((item) => {
      if (item.role !== 'reference') return [item]
      const said = fromReference(item, known.get(item.runId)?.[item.part])
      if (said !== undefined) return said
      throw new Problem('not_found', 'There is no such item.', { members: { param: `${item.place}.id` } })
    })
  }

  /** To calls of a response that its client was not shown, because they are of no tool that there is. */
  async function answersOf(owner: Owner, run: RunRecord | undefined) {
    if (run === undefined) return []
    const { parts } = await messages.getMessage(owner, run.message_id)
    const names = run.request?.tools?.map(({ name }) => name) ?? []
    const unknown = openCallsOf(parts).filter(({ name = '' }) => !names.includes(name))
    return unknown.map(({ call_id = '' }) => ({ call_id, error: unknownTool }))
  }

  async function toAsked(request: FastifyRequest, body: ResponseBody): Promise<ChatAsked> {
    const { owner } = request
    const { previous_response_id, conversation, metadata, tools, tool_choice, background } = body
    if (typeof previous_response_id === 'string' && conversation) {
      throw invalid('conversation', 'It cannot be named together with previous_response_id.')
    }
    const previous = previous_response_id
      ? await getRun(owner, previous_response_id, 'previous_response_id')
      : undefined
    const said = await resolve(owner, readInput(body.input))
    const { instructions, tool_results, ...asked } = toAskedOf(said, previous !== undefined)
    const { on_disconnect, linger_ms, ...wishes } = deliveryOf(request, delivery)
    const named = sessionOf(request, body)
    return withIdempotencyKey(
      {
        ...asked,
        ...(tool_results && { tool_results: [...tool_results, ...(await answersOf(owner, previous))] }),
        ...(previous && Object.keys(named).length === 0 ? { session_id: previous.session_id } : named),
        ...(previous && { parent_id: previous.message_id }),
        ...modelNamed(catalog, body.model ?? undefined),
        // Those of the response before are not carried over.
        instructions: [body.instructions ?? '', instructions ?? ''].filter((text) => text !== '').join('\n\n'),
        settings: settingsOf(body),
        ...(tools && { tools: readTools(tools) }),
        ...(tool_choice && { tool_choice: readToolChoice(tool_choice) }),
        ...(metadata && { metadata }),
        ...wishes,
        ...(background !== true && on_disconnect && { on_disconnect, linger_ms }),
      } as ChatAsked,
      request.headers['idempotency-key'],
    )
  }

  app.post(
    '/responses',
    {
      schema: { tags: ['openai'], headers: OpenaiHeaders, body: ResponseBody, response: responseOrStream },
      config: { budget: 'runs' },
    },
    async (request, reply) => {
      const { body, owner } = request
      if (body.stream === true) edge.refuseAtLimit(owner.key)
      const { run, isNew } = await chat(owner, await toAsked(request, body))
      if (!isNew) await keep(owner, run)
      if (body.stream === true) return showResponse(request, reply, run, undefined)
      // The client has left before the reply was whole: nobody reads what is answered.
      if (body.background !== true && !(await untilEnded({ follow, owned }, run, reply.raw))) return reply.hijack()
      reply.headers(runHeaders(run))
      const record = await runs.getRun(owner, run.id)
      const whole = await readResponse(owner, record)
      // A reply of which nothing came is an error to whoever waits for it.
      if (body.background !== true && whole.status === 'failed' && whole.output.length === 0) throw problemOf(record)
      return whole
    },
  )

  app.get(
    '/responses/:id',
    { schema: { tags: ['openai'], params: Params, querystring: RetrieveQuery, response: responseOrStream } },
    async (request, reply) => {
      const { stream, starting_after } = request.query
      if (stream === true) edge.refuseAtLimit(request.owner.key)
      const run = await getRun(request.owner, request.params.id, undefined)
      if (stream !== true) {
        reply.headers(runHeaders(run))
        return readResponse(request.owner, run)
      }
      await keep(request.owner, run)
      return showResponse(request, reply, run, starting_after)
    },
  )

  app.post(
    '/responses/:id/cancel',
    { schema: { tags: ['openai'], params: Params, response } },
    async (request, reply) => {
      const run = await getRun(request.owner, request.params.id, undefined)
      const stopped = { ...run, ...(await stop(run)) }
      reply.headers(runHeaders(run))
      return readResponse(request.owner, stopped)
    },
  )
}

const unknownTool = { code: 'unknown_tool', message: 'There is no such tool.' }

/** What is not there is told of with the place at which it was named. */
function orNothing(error: unknown): undefined {
  if (!(error instanceof Problem) || error.code !== 'not_found') throw error
}

function sessionOf(request: FastifyRequest, { conversation, metadata }: ResponseBody) {
  const name = typeof conversation === 'object' ? conversation?.id : conversation
  return sessionNamed(request, name ? { ...metadata, session_id: name } : metadata)
}

function settingsOf(body: ResponseBody): NonNullable<ChatAsked['settings']> {
  const { temperature, top_p, max_output_tokens, parallel_tool_calls, text } = body
  const effort = readEffort(body.reasoning?.effort, 'reasoning.effort')
  return {
    ...(typeof temperature === 'number' && { temperature }),
    ...(typeof top_p === 'number' && { top_p }),
    ...(typeof max_output_tokens === 'number' && { max_output_tokens }),
    ...(effort && { effort }),
    ...(text?.format && { format: readFormat(text.format, text.format, 'text.format') }),
    ...(typeof parallel_tool_calls === 'boolean' && { parallel_tool_calls }),
  }
}
