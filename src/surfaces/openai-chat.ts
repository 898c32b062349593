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
import { contentOf, type Done, type LogEntry, type Part, type RunEvent, type Usage } from '../log/event.ts'
import { type Change, isToldAlike, nothingTold, type Told, tellChanges } from './changes.ts'
import { emptyList, itemAt, type List, put, toArray } from './list.ts'
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
  /** One viewer's way from the run's first event on. */
  createViewer(view: ChatStreamView): { encode(entry: LogEntry): Buffer | 'lost' | undefined }
}

export interface ToolCall {
  readonly id: string
  readonly type: 'function'
  readonly function: { readonly name: string; readonly arguments: string }
}

type Delta = Readonly<Record<string, unknown>>

/** What a viewer has been told. */
interface Said {
  readonly told: Told
  readonly greeted: boolean
  /** Parts that are shown as calls, in their order. */
  readonly calls: List<number>
}

interface Encoded {
  readonly view: ChatStreamView
  readonly before: Said
  readonly after: Said
  readonly bytes: Buffer | undefined
}

const nothingSaid: Said = { told: nothingTold, greeted: false, calls: emptyList }

/** What is encoded is kept with its event, for all viewers who have been told as much and asked in the same way. */
export function createChatEncoder(): ChatEncoder {
  const encoded = new WeakMap<LogEntry, Encoded>()
  return {
    createViewer(view) {
      let said = nothingSaid
      return {
        encode(entry) {
          const known = encoded.get(entry)
          if (known !== undefined && isSameView(known.view, view) && isSaidAlike(known.before, said, entry.event)) {
            said = known.after
            return known.bytes
          }
          const next = sayEvent(view, said, entry.event)
          if (next === 'lost') return 'lost'
          const bytes = next.blocks.length === 0 ? undefined : Buffer.from(next.blocks.join(''))
          encoded.set(entry, { view, before: said, after: next.said, bytes })
          said = next.said
          return bytes
        },
      }
    },
  }
}

/** Of one run, whose events are not another's. */
const isSameView = (a: ChatStreamView, b: ChatStreamView): boolean =>
  a.model === b.model && a.includeUsage === b.includeUsage

const isSaidAlike = (a: Said, b: Said, event: RunEvent): boolean =>
  a === b || (a.greeted === b.greeted && a.calls.size === b.calls.size && isToldAlike(a.told, b.told, event))

/** The fields that a chunk and a whole completion share. */
const headOf = <const Kind extends string>({ runId, createdAt, model }: ChatView, object: Kind) => ({
  id: `chatcmpl-${runId}`,
  object,
  created: Math.floor(Date.parse(createdAt) / 1000),
  model,
})

function sayEvent(
  view: ChatStreamView,
  { told: before, greeted, calls: shown }: Said,
  event: RunEvent,
): { readonly said: Said; readonly blocks: readonly string[] } | 'lost' {
  const result = tellChanges(before, event)
  if (result === 'lost') return 'lost'
  const { told, changes } = result
  const { includeUsage, clientTools } = view
  const head = headOf(view, 'chat.completion.chunk')
  const noUsage = includeUsage ? { usage: null } : {}
  let calls = shown
  const blocks: string[] = []

  function say(data: object): void {
    // JSON holds no line break, so it is one line.
    blocks.push(`data: ${JSON.stringify(data)}\n\n`)
  }

  function sayChoice(delta: Delta, finishReason: string | null = null): void {
    say({ ...head, choices: [{ index: 0, delta, logprobs: null, finish_reason: finishReason }], ...noUsage })
  }

  function openCall(index: number, part: Part, args: string): void {
    const place = calls.size
    calls = put(calls, place, index)
    sayChoice({ tool_calls: [{ index: place, ...toToolCall(part, place, args) }] })
  }

  function growCall(index: number, args: string): void {
    const place = placeOf(calls, index)
    if (place === undefined || args === '') return
    sayChoice({ tool_calls: [{ index: place, function: { arguments: args } }] })
  }

  function end(done: Done): void {
    if (done.error !== undefined) {
      say(toOpenaiError(done.error))
      return
    }
    const parts = toArray(told.parts).map(({ part }) => part)
    for (const [index, part] of parts.entries()) {
      if (isLeftOpen(part, done) && placeOf(shown, index) === undefined) openCall(index, part, argumentsOf(part))
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

  if (!greeted) sayChoice({ role: 'assistant', content: '' })
  for (const change of changes) sayChange(change)
  return { said: { told, greeted: true, calls }, blocks }
}

/** Where a part stands among the calls. They are in the order of the message, so the range is halved until it is found. */
function placeOf(calls: List<number>, index: number): number | undefined {
  let low = 0
  let high = calls.size
  while (low < high) {
    const middle = (low + high) >>> 1
    if ((itemAt(calls, middle) as number) < index) low = middle + 1
    else high = middle
  }
  return itemAt(calls, low) === index ? low : undefined
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
