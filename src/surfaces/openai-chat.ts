/**
 * OpenAI's chat completions: how a run looks to their clients, as chunks of a stream and as one object. Pure.
 *
 * - Only words, reasoning, calls of the client's own tools and sources are shown. A call that the gateway answers itself is
 *   not the client's business: it would wait for somebody to answer it. Whose a call is, its name tells; one of a name that
 *   the client did not bring is held back until it is known that nobody has answered it.
 * - Reasoning is `reasoning_content`, which OpenAI does not have: DeepSeek and most servers of open models call it so, and
 *   clients that do not know it pass it over. It never becomes part of `content`.
 * - Whatever the run came to by itself, or because somebody stopped it, ends with a `finish_reason` and `[DONE]`. What broke
 *   off or failed ends with an error and without it: the official clients throw at the error. The body ends cleanly then,
 *   because a connection that is reset can take the error with it.
 * - A viewer is told once: its chunks carry no ids and there is no coming back to the middle of a stream.
 */
import { contentOf, type Done, type LogEntry, type Part, type Usage } from '../log/event.ts'
import { type Change, nothingTold, tellChanges } from './changes.ts'
import { toOpenaiError } from './openai-errors.ts'

export interface ChatView {
  readonly runId: string
  /** ISO 8601. */
  readonly createdAt: string
  /** As the client has asked for it. */
  readonly model: string
  /** Names of the tools that the client brought. */
  readonly clientTools: ReadonlySet<string>
}

export interface ChatStreamView extends ChatView {
  /** A last chunk says what was used; the others say that they do not. */
  readonly includeUsage: boolean
}

export interface ChatEncoder {
  encode(entry: LogEntry): Buffer | 'lost' | undefined
}

export interface ToolCall {
  readonly id: string
  readonly type: 'function'
  readonly function: { readonly name: string; readonly arguments: string }
}

type Delta = Readonly<Record<string, unknown>>

/** The fields that a chunk and a whole completion share. */
const headOf = <const Kind extends string>({ runId, createdAt, model }: ChatView, object: Kind) => ({
  id: `chatcmpl-${runId}`,
  object,
  created: Math.floor(Date.parse(createdAt) / 1000),
  model,
})

/** One viewer's. */
export function createChatEncoder(view: ChatStreamView): ChatEncoder {
  const { includeUsage, clientTools } = view
  const head = headOf(view, 'chat.completion.chunk')
  const noUsage = includeUsage ? { usage: null } : {}
  let told = nothingTold
  let greeted = false
  /** Part -> place among the calls that are shown. */
  const calls = new Map<number, number>()
  const blocks: string[] = []

  function say(data: object): void {
    // JSON holds no line break, so it is one line.
    blocks.push(`data: ${JSON.stringify(data)}\n\n`)
  }

  function sayChoice(delta: Delta, finishReason: string | null = null): void {
    say({ ...head, choices: [{ index: 0, delta, logprobs: null, finish_reason: finishReason }], ...noUsage })
  }

  function greet(): void {
    if (greeted) return
    greeted = true
    sayChoice({ role: 'assistant', content: '' })
  }

  function openCall(index: number, part: Part, args: string): void {
    const place = calls.size
    calls.set(index, place)
    sayChoice({ tool_calls: [{ index: place, ...toToolCall(part, place, args) }] })
  }

  function growCall(index: number, args: string): void {
    const place = calls.get(index)
    if (place === undefined || args === '') return
    sayChoice({ tool_calls: [{ index: place, function: { arguments: args } }] })
  }

  function end(done: Done): void {
    if (done.error !== undefined) {
      say(toOpenaiError(done.error))
      return
    }
    const parts = told.parts.map(({ part }) => part)
    for (const [index, part] of parts.entries()) {
      if (isLeftOpen(part, done) && !calls.has(index)) openCall(index, part, argumentsOf(part))
    }
    const annotations = annotationsOf(parts)
    if (annotations.length > 0) sayChoice({ annotations })
    sayChoice({}, finishReasonOf(done, calls.size > 0))
    if (includeUsage) say({ ...head, choices: [], usage: toUsage(done.usage) })
    blocks.push('data: [DONE]\n\n')
  }

  function sayChange(change: Change): void {
    switch (change.kind) {
      case 'opened':
        if (change.part.kind === 'tool_call' && clientTools.has(change.part.name ?? '')) {
          openCall(change.index, change.part, '')
        }
        break
      case 'grown':
        if (change.part.kind === 'text') sayChoice({ content: change.text })
        else if (change.part.kind === 'reasoning') sayChoice({ reasoning_content: change.text })
        else growCall(change.index, change.text)
        break
      case 'called':
        // A call without parameters may come with no text at all, which no client could parse.
        if (change.part.text === '') growCall(change.index, argumentsOf(change.part))
        break
      case 'ended':
        end(change.done)
        break
    }
  }

  return {
    encode({ event }) {
      const result = tellChanges(told, event)
      if (result === 'lost') return 'lost'
      told = result.told
      greet()
      for (const change of result.changes) sayChange(change)
      const bytes = blocks.length === 0 ? undefined : Buffer.from(blocks.join(''))
      blocks.length = 0
      return bytes
    },
  }
}

/** The whole of a reply that has ended by itself, or was stopped. */
export function toCompletion(view: ChatView, parts: readonly Part[], done: Done) {
  const shown = parts.filter(
    (part) => part.kind === 'tool_call' && (view.clientTools.has(part.name ?? '') || isLeftOpen(part, done)),
  )
  const calls = shown.map((part, place) => toToolCall(part, place, argumentsOf(part)))
  const content = contentOf(parts)
  const reasoning = parts.reduce((text, part) => (part.kind === 'reasoning' ? text + part.text : text), '')
  const annotations = annotationsOf(parts)
  return {
    ...headOf(view, 'chat.completion'),
    choices: [
      {
        index: 0,
        message: {
          role: 'assistant',
          content: content === '' && calls.length > 0 ? null : content,
          refusal: null,
          ...(reasoning === '' ? {} : { reasoning_content: reasoning }),
          ...(calls.length === 0 ? {} : { tool_calls: calls }),
          ...(annotations.length === 0 ? {} : { annotations }),
        },
        logprobs: null,
        finish_reason: finishReasonOf(done, calls.length > 0),
      },
    ],
    usage: toUsage(done.usage),
  }
}

function toToolCall({ call_id = '', name = '' }: Part, place: number, args: string): ToolCall {
  return { id: call_id === '' ? `call_${place}` : call_id, type: 'function', function: { name, arguments: args } }
}

/** As the model wrote them. */
const argumentsOf = ({ text, input }: Part): string =>
  text === '' && input !== undefined ? JSON.stringify(input) : text

/** A call that a whole reply has ended with and that nobody has answered. */
const isLeftOpen = ({ kind, input, output, error }: Part, { status }: Done): boolean =>
  status === 'completed' && kind === 'tool_call' && input !== undefined && output === undefined && error === undefined

/** Where in the text they belong is not known. */
function annotationsOf(parts: readonly Part[]): readonly object[] {
  return parts.flatMap(({ kind, url, title = '' }) =>
    kind === 'source' && url !== undefined
      ? [{ type: 'url_citation', url_citation: { url, title, start_index: 0, end_index: 0 } }]
      : [],
  )
}

const finishReasons: ReadonlySet<string> = new Set(['stop', 'length', 'tool_calls', 'content_filter'])

/** Only words that official clients know. Whoever stopped it wanted no more of it. */
function finishReasonOf({ status, finish_reason: reason = 'stop' }: Done, hasCalls: boolean): string {
  if (status !== 'completed') return 'stop'
  // Some providers say `stop` behind a call; and a call that the gateway has answered is none to the client.
  if (reason === 'stop' || reason === 'tool_calls') return hasCalls ? 'tool_calls' : 'stop'
  return finishReasons.has(reason) ? reason : 'stop'
}

/** @returns null when nobody has counted */
function toUsage(usage: Usage | undefined): object | null {
  if (usage === undefined) return null
  return {
    prompt_tokens: usage.input_tokens,
    completion_tokens: usage.output_tokens,
    total_tokens: usage.total_tokens,
    prompt_tokens_details: { cached_tokens: usage.cached_input_tokens ?? 0 },
    completion_tokens_details: { reasoning_tokens: usage.reasoning_tokens ?? 0 },
  }
}
