/**
 * A run as an OpenAI response: its id, its output items and its outcome. All of it is a function of what the run was asked
 * and of the parts of its message, so a response is the same whoever looks at it, and when.
 *
 * Shown are text, reasoning as a summary, and calls of the tools that the request brought. Calls of the gateway's own tools,
 * which it answers itself, sources, files and reasoning without words have no item here.
 */
import type { Done, Part, Usage } from '../log/event.ts'

/** What a response says of itself beside its outcome: the keys of OpenAI's `Response` that its request has decided. */
export interface ResponseHead {
  readonly id: string
  readonly object: 'response'
  /** Unix seconds. */
  readonly created_at: number
  readonly [name: string]: unknown
}

/** A run, as far as it decides what its response looks like. */
export interface ShownRun {
  readonly runId: string
  readonly head: ResponseHead
  /** The names of the tools that the request brought. */
  readonly tools: ReadonlySet<string>
}

export type Item =
  | {
      readonly id: string
      readonly type: 'message'
      readonly status: ItemStatus
      readonly role: 'assistant'
      readonly content: readonly OutputText[]
    }
  | {
      readonly id: string
      readonly type: 'reasoning'
      readonly status: ItemStatus
      readonly summary: readonly SummaryText[]
    }
  | {
      readonly id: string
      readonly type: 'function_call'
      readonly status: ItemStatus
      readonly call_id: string
      readonly name: string
      readonly arguments: string
    }

type ItemStatus = 'in_progress' | 'completed' | 'incomplete'

export interface OutputText {
  readonly type: 'output_text'
  readonly text: string
  readonly annotations: readonly never[]
  readonly logprobs: readonly never[]
}

export interface SummaryText {
  readonly type: 'summary_text'
  readonly text: string
}

export type ResponseStatus = 'queued' | 'in_progress' | 'completed' | 'cancelled' | 'incomplete' | 'failed'

/** What a response says of how far it has come. */
export interface Outcome {
  readonly status: ResponseStatus
  readonly error: { readonly code: string; readonly message: string } | null
  readonly incomplete_details: { readonly reason: string } | null
  readonly usage: ReturnType<typeof toUsage> | null
}

const responseIdPattern = /^resp_([0-9a-f]{8})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{12})$/

export const toResponseId = (runId: string): string => `resp_${runId.replaceAll('-', '')}`

/** @returns undefined for an id that was not made here */
export function toRunId(responseId: string): string | undefined {
  return responseIdPattern.exec(responseId)?.slice(1).join('-')
}

/** Whether a part can have an item; one of words has it once it has some. */
export function isShown({ tools }: Pick<ShownRun, 'tools'>, { kind, name = '' }: Part): boolean {
  return kind === 'text' || kind === 'reasoning' || (kind === 'tool_call' && tools.has(name))
}

/** What an item says: the words of a part, or the arguments of a call. */
export function wordsOf({ kind, text, input }: Part): string {
  // Some providers say nothing where there is nothing to say, and clients parse the arguments.
  return kind === 'tool_call' && text === '' && input !== undefined ? JSON.stringify(input) : text
}

/** The item of a part. @param words undefined of one that has just begun, which has no content yet */
export function toItem({ runId }: ShownRun, index: number, part: Part, status: ItemStatus, words?: string): Item {
  const id = itemIdOf(runId, index, part)
  if (part.kind === 'tool_call') {
    const { call_id = '', name = '' } = part
    return { id, type: 'function_call', status, call_id, name, arguments: words ?? '' }
  }
  if (part.kind === 'reasoning') {
    return { id, type: 'reasoning', status, summary: words === undefined ? [] : [toSummaryText(words)] }
  }
  return { id, type: 'message', status, role: 'assistant', content: words === undefined ? [] : [toOutputText(words)] }
}

export const toOutputText = (text: string): OutputText => ({ type: 'output_text', text, annotations: [], logprobs: [] })

export const toSummaryText = (text: string): SummaryText => ({ type: 'summary_text', text })

/**
 * The status of an item that nothing can be added to any more. Calls are whole when their arguments are, and words when
 * something was said behind them, or the reply was.
 */
export function statusOf(parts: readonly Part[], index: number, isWhole: boolean): 'completed' | 'incomplete' {
  const part = parts[index] as Part
  if (part.kind === 'tool_call') return part.input === undefined ? 'incomplete' : 'completed'
  return isWhole || index < parts.findLastIndex(isSaid) ? 'completed' : 'incomplete'
}

/** Words can go on behind a source or a file. */
const isSaid = ({ kind }: Part): boolean => kind !== 'source' && kind !== 'file'

/** All items of a reply that has ended. */
export function toOutput(run: ShownRun, parts: readonly Part[], done: Done): Item[] {
  const isWhole = isWholeReply(done)
  return parts.flatMap((part, index) => {
    const words = wordsOf(part)
    if (!isShown(run, part) || (words === '' && part.kind !== 'tool_call')) return []
    return [toItem(run, index, part, statusOf(parts, index, isWhole), words)]
  })
}

export const isWholeReply = (done: Done): boolean => toOutcome(done).status === 'completed'

/** What a response says before its end. */
export const unended = (status: 'queued' | 'in_progress'): Outcome => ({
  status,
  error: null,
  incomplete_details: null,
  usage: null,
})

/**
 * How a run's end is told. A reply that broke off is `failed`, with what there is of it: clients take `incomplete` without
 * a reason that they know for an end like any other.
 */
export function toOutcome({ status, finish_reason, error, usage }: Done): Outcome {
  const used = usage === undefined ? null : toUsage(usage)
  const ended = { error: null, incomplete_details: null, usage: used }
  const cut = cutReasons[finish_reason ?? '']
  if (status === 'stopped') return { ...ended, status: 'cancelled', incomplete_details: { reason: 'cancelled' } }
  if (status === 'completed') {
    return cut === undefined
      ? { ...ended, status: 'completed' }
      : { ...ended, status: 'incomplete', incomplete_details: { reason: cut } }
  }
  const { code, message } = error ?? { code: 'internal', message: 'The reply broke off.' }
  return { ...ended, status: 'failed', error: { code, message } }
}

const cutReasons: Readonly<Record<string, string>> = { length: 'max_output_tokens', content_filter: 'content_filter' }

/** A whole response. */
export function toResponse({ head }: ShownRun, { usage, ...outcome }: Outcome, output: readonly Item[]) {
  return { ...head, ...outcome, output, usage }
}

export function itemIdOf(runId: string, index: number, { kind }: Part): string {
  const prefix = kind === 'tool_call' ? 'fc' : kind === 'reasoning' ? 'rs' : 'msg'
  return `${prefix}_${runId.replaceAll('-', '')}_${index}`
}

function toUsage({ input_tokens, output_tokens, total_tokens, ...more }: Usage) {
  return {
    input_tokens,
    input_tokens_details: {
      cached_tokens: more.cached_input_tokens ?? 0,
      cache_write_tokens: more.cache_write_tokens ?? 0,
    },
    output_tokens,
    output_tokens_details: { reasoning_tokens: more.reasoning_tokens ?? 0 },
    total_tokens,
  }
}

/** A run and its request, as far as its response repeats them. */
export interface AskedRun extends ModelName {
  readonly id: string
  readonly session_id: string
  readonly on_disconnect: 'continue' | 'stop'
  readonly created_at: string
  readonly request: AskedRequest | null
}

interface ModelName {
  readonly provider: string
  readonly model: string
}

interface AskedRequest {
  readonly candidates: readonly ModelName[]
  readonly tools?: readonly { readonly name: string; readonly description?: string; readonly parameters: unknown }[]
  readonly tool_choice?: 'auto' | 'none' | 'required' | { readonly name: string }
  readonly instructions?: string
  readonly linger_ms?: number
  readonly settings?: {
    readonly temperature?: number
    readonly top_p?: number
    readonly max_output_tokens?: number
    readonly effort?: string
    readonly format?: { readonly type: string }
    readonly parallel_tool_calls?: boolean
  }
}

/** @param asked what stands in its messages: the metadata of the request, and the response that it goes on from */
export function toShownRun(
  { id, session_id, provider, model, on_disconnect, created_at, request }: AskedRun,
  asked: { readonly metadata: unknown; readonly previous_run_id: string | null },
): ShownRun {
  const { tools = [], tool_choice = 'auto', instructions = '', settings = {} } = request ?? {}
  // As it was asked: which one of several has made the reply is known only at its end.
  const [first = { provider, model }] = request?.candidates ?? []
  const head = {
    id: toResponseId(id),
    object: 'response',
    created_at: toSeconds(created_at),
    // As it was asked: who comes back to a run that was to end with its viewers keeps it (`on_disconnect`), and has not
    // changed the request.
    background: on_disconnect === 'continue' && request?.linger_ms === undefined,
    conversation: { id: session_id },
    instructions: instructions === '' ? null : instructions,
    max_output_tokens: settings.max_output_tokens ?? null,
    max_tool_calls: null,
    metadata: asked.metadata,
    model: `${first.provider}:${first.model}`,
    parallel_tool_calls: settings.parallel_tool_calls ?? true,
    previous_response_id: asked.previous_run_id === null ? null : toResponseId(asked.previous_run_id),
    reasoning: { effort: settings.effort ?? null, summary: null },
    store: true,
    temperature: settings.temperature ?? null,
    text: { format: settings.format ?? { type: 'text' } },
    tool_choice: typeof tool_choice === 'string' ? tool_choice : { type: 'function', ...tool_choice },
    tools: tools.map((tool) => ({ type: 'function', description: null, strict: null, ...tool })),
    top_p: settings.top_p ?? null,
    // What does not fit into the window of a model is left out, or summarized.
    truncation: 'auto',
    access_programs: null,
  } as const
  return { runId: id, head, tools: new Set(tools.map(({ name }) => name)) }
}

export const toSeconds = (time: string): number => Math.floor(Date.parse(time) / 1000)
