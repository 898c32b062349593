/**
 * What the two surfaces for clients of OpenAI share: the shape of errors, the headers that such clients act on, where a
 * conversation is kept, and what becomes of a run that nobody watches.
 *
 * The official clients repeat by themselves what was answered with 408, 409, 429 or 5xx, unless `x-should-retry` says
 * otherwise. It says `false` wherever a repeat would only be told the same: for what the catalogue calls not retryable, and
 * for everything that a run has come to, because a repeat of the same request is answered with that same run.
 *
 * Nothing here waits, and nothing is kept.
 */
import type { FastifyError, FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { Type } from 'typebox'
import { Problem } from '../errors.ts'
import { beginProblem, readProblem } from '../http/problem.ts'
import type { SseFraming } from '../http/sse.ts'
import { uuidPattern } from '../http/text.ts'
import { Mode } from '../log/event.ts'
import type { ChatAsked } from '../runs/asked.ts'
import { externalIdUnitsMax } from '../sessions/model.ts'
import { invalid } from './openai-conversation.ts'
import { toOpenaiError } from './openai-errors.ts'

export interface DeliveryLimits {
  /** How long nobody may watch a run before it is stopped, where its client has no means to come back to it. */
  readonly lingerMs: number
  /**
   * How old a run may be that the repeat of an official client is answered with, when it has no key. Their own limit for
   * one try is ten minutes.
   */
  readonly repeatsWithinMs: number
}

export const usualDelivery: DeliveryLimits = { lingerMs: 5000, repeatsWithinMs: 15 * 60_000 }

export const OpenaiError = Type.Object({
  error: Type.Object({
    message: Type.String(),
    type: Type.String(),
    code: Type.Union([Type.String(), Type.Null()]),
    param: Type.Union([Type.String(), Type.Null()]),
  }),
})

/** For a route's `response`. */
export const openaiErrors = {
  '4xx': {
    description: 'An error of the catalogue, as OpenAI has it',
    content: { 'application/json': { schema: OpenaiError } },
  },
  '5xx': {
    description: 'An error of the catalogue, as OpenAI has it',
    content: { 'application/json': { schema: OpenaiError } },
  },
}

/** A comment for a sign of life, which any reader of lines can pass over; no last words, for clients that know none. */
export const openaiFraming: SseFraming = { opening: '', heartbeat: ': keep-alive\n\n' }

/** Errors of a scope, in OpenAI's shape. */
export function registerOpenaiErrors(app: FastifyInstance): void {
  app.setErrorHandler((error: FastifyError, request, reply) =>
    sendOpenaiError(readProblem(error, request), request, reply, error),
  )
}

/** For what is under the prefix and no route: without a question who asks. */
export function registerOpenaiMissing(app: FastifyInstance): void {
  app.setNotFoundHandler((request, reply) =>
    sendOpenaiError(new Problem('not_found', 'There is no such route.'), request, reply),
  )
}

function sendOpenaiError(
  problem: Problem,
  request: FastifyRequest,
  reply: FastifyReply,
  error?: FastifyError,
): FastifyReply {
  const { param = paramOf(error), run_id } = problem.members
  // A run has come to it: whoever asks again is told the same.
  const isFinal = !problem.retryable || (run_id !== undefined && problem.code !== 'session_busy')
  if (isFinal) reply.header('x-should-retry', 'false')
  return beginProblem(problem, request, reply).type('application/json').send(toOpenaiError(problem, param))
}

/** The field that a schema refuses. */
function paramOf(error: FastifyError | undefined): string | null {
  const path = error?.validation?.[0]?.instancePath ?? ''
  return path === '' ? null : path.slice(1).replaceAll('/', '.')
}

/** The headers that a client may send beside OpenAI's own. */
export const OpenaiHeaders = Type.Object({
  'idempotency-key': Type.Optional(Type.String({ description: 'the same key is the same run' })),
  'x-session-id': Type.Optional(Type.String({ description: 'the session: a uuid, or any name of your own' })),
  'x-on-disconnect': Type.Optional(Type.String({ description: '`continue`: the run goes on when nobody watches it' })),
  'x-on-busy': Type.Optional(Type.String({ description: '`reject`, `queue` or `interrupt`' })),
})

/** What there is to be asked for. */
export interface ModelNames {
  /** Every `provider:model` that is worth showing. */
  listed(): string[]
  /** @throws Problem `invalid_request` for a model that may not be asked for */
  plansFor(asked: { readonly model: string; readonly text: string }): unknown
}

/** A mode by its name, or else a model. @throws Problem `invalid_request` */
export function modelNamed(
  names: Pick<ModelNames, 'plansFor'>,
  name: string | undefined,
): Pick<ChatAsked, 'mode' | 'model'> {
  const mode = Mode.anyOf.find((one) => one.const === name)?.const
  if (name === undefined) return {}
  if (mode !== undefined) return { mode }
  try {
    names.plansFor({ model: name, text: '' })
  } catch (error) {
    throw error instanceof Problem ? invalid('model', error.message) : error
  }
  return { model: name }
}

/** Where the conversation is kept. The header and the metadata may both say it, when they say the same. */
export function sessionNamed(
  request: FastifyRequest,
  metadata: Readonly<Record<string, unknown>> | null | undefined,
): Pick<ChatAsked, 'session_id' | 'external_id'> {
  const header = request.headers['x-session-id']
  const told = metadata?.session_id
  const name = header ?? told
  if (name === undefined || name === null) return {}
  if (header !== undefined && told !== undefined && header !== told) {
    throw invalid('metadata.session_id', 'metadata.session_id and X-Session-Id differ.')
  }
  if (typeof name !== 'string' || name === '' || name.length > externalIdUnitsMax) {
    throw invalid('metadata.session_id', `A session is named with 1 to ${externalIdUnitsMax} characters.`)
  }
  return uuidPattern.test(name) ? { session_id: name } : { external_id: name }
}

/** What the client wants of the run beside its reply, as its headers say; without a key it cannot come back. */
export function deliveryOf(
  { headers }: FastifyRequest,
  { lingerMs, repeatsWithinMs }: DeliveryLimits,
): Pick<ChatAsked, 'on_busy' | 'on_disconnect' | 'linger_ms' | 'repeats_within_ms'> {
  const goesOn = wordOf(headers, 'x-on-disconnect', ['continue', 'stop'])
  const onBusy = wordOf(headers, 'x-on-busy', ['reject', 'queue', 'interrupt'])
  const hasKey = headers['idempotency-key'] !== undefined
  const retries = Number(headers['x-stainless-retry-count'] ?? 0)
  return {
    ...(onBusy && { on_busy: onBusy }),
    ...((goesOn ?? (hasKey ? 'continue' : 'stop')) === 'stop' && { on_disconnect: 'stop', linger_ms: lingerMs }),
    ...(!hasKey && retries >= 1 && { repeats_within_ms: repeatsWithinMs }),
  }
}

function wordOf<Word extends string>(
  headers: FastifyRequest['headers'],
  name: string,
  words: readonly Word[],
): Word | undefined {
  const said = headers[name]
  if (said === undefined) return undefined
  const word = words.find((one) => one === String(said).toLowerCase())
  if (word === undefined) throw invalid(name, `${name} must be one of: ${words.join(', ')}.`)
  return word
}
