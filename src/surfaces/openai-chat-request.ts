/**
 * The body of a chat completion, read: from what official clients send to what is asked here. Pure.
 *
 * What would change the reply and cannot be said to any model is refused with the name of its field (`n` above 1, `logprobs`,
 * pictures and sound). What changes nothing here (`user`, `store`, `seed`, `service_tier`, `prediction` and the like) is
 * accepted, and so is a field that nobody knows: clients of other servers send many of them without being asked.
 */
import { type Static, Type } from 'typebox'
import type { Part } from '../log/event.ts'
import { type Fields, isFields, optional } from './fields.ts'
import { invalid, type Said } from './openai-conversation.ts'
import { readEffort, readFormat, readFunction, toCall } from './openai-fields.ts'

const stopsMax = 4
const messagesMax = 4000

const open = { additionalProperties: true } as const

const Content = Type.Union([Type.String(), Type.Null(), Type.Array(Type.Object({ type: Type.String() }, open))])

/** @param toolsMax that a request may bring */
export const completionBody = (toolsMax: number) =>
  Type.Object(
    {
      model: Type.Optional(Type.String({ minLength: 1, description: 'a mode (`fast` …) or `provider:model`' })),
      messages: Type.Array(
        Type.Object(
          {
            role: Type.String(),
            content: Type.Optional(Content),
            tool_call_id: Type.Optional(Type.String()),
            tool_calls: optional(Type.Array(Type.Object({ type: Type.Optional(Type.String()) }, open))),
          },
          open,
        ),
        { minItems: 1, maxItems: messagesMax },
      ),
      stream: optional(Type.Boolean()),
      stream_options: optional(Type.Object({ include_usage: optional(Type.Boolean()) }, open)),
      temperature: optional(Type.Number({ minimum: 0, maximum: 2 })),
      top_p: optional(Type.Number({ minimum: 0, maximum: 1 })),
      frequency_penalty: optional(Type.Number({ minimum: -2, maximum: 2 })),
      presence_penalty: optional(Type.Number({ minimum: -2, maximum: 2 })),
      max_tokens: optional(Type.Integer({ minimum: 1 })),
      max_completion_tokens: optional(Type.Integer({ minimum: 1 })),
      stop: optional(Type.Union([Type.String(), Type.Array(Type.String())])),
      reasoning_effort: optional(Type.String()),
      response_format: optional(Type.Object({ type: Type.String() }, open)),
      tools: optional(Type.Array(Type.Object({ type: Type.String() }, open), { maxItems: toolsMax })),
      tool_choice: optional(Type.Union([Type.String(), Type.Object({ type: Type.String() }, open)])),
      parallel_tool_calls: optional(Type.Boolean()),
      metadata: optional(Type.Record(Type.String(), Type.Unknown())),
      n: optional(Type.Integer()),
      logprobs: optional(Type.Boolean()),
    },
    open,
  )
export type CompletionBody = Static<ReturnType<typeof completionBody>>

/** What would change a reply and is not to be had. */
const refused: Readonly<Record<string, (value: unknown) => boolean>> = {
  n: (value) => value !== 1,
  logprobs: (value) => value !== false,
  top_logprobs: (value) => value !== 0,
  logit_bias: (value) => isFields(value) && Object.keys(value).length > 0,
  audio: () => true,
  modalities: (value) => !Array.isArray(value) || value.some((one) => one !== 'text'),
  functions: () => true,
  function_call: () => true,
  web_search_options: () => true,
}

/** @throws Problem `invalid_request` for what cannot be said to any model */
export function refuseUnsupported(body: CompletionBody): void {
  for (const [name, isRefused] of Object.entries(refused)) {
    const value = (body as Fields)[name]
    if (value !== undefined && value !== null && isRefused(value)) {
      throw invalid(name, `${name} is not supported here with this value.`)
    }
  }
}

/** @throws Problem `invalid_request` */
export function readMessages({ messages }: CompletionBody): readonly Said[] {
  return messages.map((message, index) => readMessage(message, `messages.${index}`))
}

function readMessage(message: CompletionBody['messages'][number], place: string): Said {
  const { role, content, tool_call_id, tool_calls } = message
  switch (role) {
    case 'system':
    case 'developer':
      return { place, role: 'system', text: readText(content, place) }
    case 'user':
      return { place, role, text: readText(content, place) }
    case 'assistant': {
      const text = readText(content, place)
      const words: Part[] = text === '' ? [] : [{ kind: 'text', text }]
      const calls = (tool_calls ?? []).map((call, at) => readCall(call, `${place}.tool_calls.${at}`))
      return { place, role, parts: [...words, ...calls] }
    }
    case 'tool':
      if (tool_call_id === undefined) throw invalid(`${place}.tool_call_id`, 'It has to name the call that it answers.')
      return { place, role, callId: tool_call_id, output: readText(content, place) }
    default:
      throw invalid(`${place}.role`, 'role must be one of: system, developer, user, assistant, tool.')
  }
}

function readText(content: Static<typeof Content> | undefined, place: string): string {
  if (content === undefined || content === null) return ''
  if (typeof content === 'string') return content
  return content
    .map((part: Fields, index) => {
      const text = part.type === 'text' ? part.text : part.type === 'refusal' ? part.refusal : undefined
      if (typeof text === 'string') return text
      throw invalid(`${place}.content.${index}`, 'Only text can be sent: no pictures, sound or files.')
    })
    .join('')
}

function readCall(call: Fields, place: string): Part {
  const { id, type = 'function', function: called } = call
  if (type !== 'function' || typeof id !== 'string' || !isFields(called) || typeof called.name !== 'string') {
    throw invalid(place, 'A call is of the type function, and has an id and a name.')
  }
  return toCall(id, called.name, typeof called.arguments === 'string' ? called.arguments : '')
}

/** @throws Problem `invalid_request` */
export function readTools({ tools, tool_choice }: CompletionBody) {
  const definitions = (tools ?? []).map((tool, index) => readTool(tool, `tools.${index}`))
  const choice = readChoice(tool_choice)
  return {
    ...(definitions.length === 0 ? {} : { tools: definitions }),
    ...(choice === undefined ? {} : { tool_choice: choice }),
  }
}

function readTool({ type, function: described }: Fields, place: string) {
  if (type !== 'function' || !isFields(described))
    throw invalid(place, 'Only tools of the type function can be called.')
  return readFunction(described, `${place}.function`)
}

function readChoice(choice: CompletionBody['tool_choice']) {
  if (choice === undefined || choice === null) return undefined
  if (choice === 'auto' || choice === 'none' || choice === 'required') return choice
  const { function: called } = isFields(choice) ? (choice as Fields) : {}
  if (isFields(called) && typeof called.name === 'string') return { name: called.name }
  throw invalid('tool_choice', 'tool_choice must be auto, none, required or a function.')
}

/** @throws Problem `invalid_request` */
export function readSettings(body: CompletionBody) {
  const { temperature, top_p, frequency_penalty, presence_penalty, parallel_tool_calls } = body
  const maxOutputTokens = body.max_completion_tokens ?? body.max_tokens
  const stop = typeof body.stop === 'string' ? [body.stop] : body.stop
  if (stop && stop.length > stopsMax) throw invalid('stop', `At most ${stopsMax} texts can end a reply.`)
  const settings = {
    temperature,
    top_p,
    frequency_penalty,
    presence_penalty,
    max_output_tokens: maxOutputTokens,
    stop: stop && stop.length === 0 ? undefined : stop,
    effort: readEffort(body.reasoning_effort, 'reasoning_effort'),
    format: formatOf(body),
    parallel_tool_calls,
  }
  const said = Object.entries(settings).filter(([, value]) => value !== undefined && value !== null)
  return said.length === 0 ? undefined : (Object.fromEntries(said) as Given<typeof settings>)
}

/** Without what is not said. */
type Given<T> = { readonly [K in keyof T]?: Exclude<T[K], null | undefined> }

function formatOf({ response_format: format }: CompletionBody) {
  if (format === undefined || format === null) return undefined
  return readFormat(format, (format as Fields).json_schema, 'response_format')
}
