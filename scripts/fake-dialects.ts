/**
 * What the scripted provider of fake-upstream.ts says in each dialect that it speaks: OpenAI's chat completions, Anthropic's
 * Messages and Gemini's streamGenerateContent. First the chunks of each, for scripts that want to say something exact; then
 * `dialects`, the same few things in each of them, for scripts that do not care. It only makes text; it holds no state.
 */

/** One SSE event with `data` as JSON. */
export function sse(data: unknown, event?: string): string {
  return `${event === undefined ? '' : `event: ${event}\n`}data: ${JSON.stringify(data)}\n\n`
}

type Members = Readonly<Record<string, unknown>>

/** OpenAI: one chunk of choice 0. @param members further members of the chunk, such as `usage` */
export function chunk(delta: Members, finishReason: string | null = null, members: Members = {}): string {
  return sse({
    id: 'chatcmpl-fake',
    object: 'chat.completion.chunk',
    created: 1_700_000_000,
    model: 'fake',
    choices: [{ index: 0, delta, finish_reason: finishReason }],
    ...members,
  })
}

export const doneMarker = 'data: [DONE]\n\n'

/** The last chunk of OpenAI's stream: no choices, only the usage. */
export function usageChunk(input: number, output: number): string {
  return sse({
    id: 'chatcmpl-fake',
    object: 'chat.completion.chunk',
    created: 1_700_000_000,
    model: 'fake',
    choices: [],
    usage: { prompt_tokens: input, completion_tokens: output, total_tokens: input + output },
  })
}

/** Anthropic: an event, named as its type says. */
export function anthropicEvent(type: string, members: Members = {}): string {
  return sse({ type, ...members }, type)
}

/** @param usage as Anthropic counts: `input_tokens` without what a cache was concerned with */
export function messageStart(usage: Members = { input_tokens: 8, output_tokens: 1 }, members: Members = {}): string {
  const message = { id: 'msg_fake', type: 'message', role: 'assistant', model: 'fake', content: [] }
  return anthropicEvent('message_start', { message: { ...message, stop_reason: null, usage, ...members } })
}

export function blockStart(index: number, block: Members = { type: 'text', text: '' }): string {
  return anthropicEvent('content_block_start', { index, content_block: block })
}

export function blockDelta(index: number, delta: Members): string {
  return anthropicEvent('content_block_delta', { index, delta })
}

export function textDelta(text: string, index = 0): string {
  return blockDelta(index, { type: 'text_delta', text })
}

export function blockStop(index: number): string {
  return anthropicEvent('content_block_stop', { index })
}

export function messageDelta(stopReason: string | null, usage: Members = { output_tokens: 1 }): string {
  return anthropicEvent('message_delta', { delta: { stop_reason: stopReason, stop_sequence: null }, usage })
}

/** The end marker. */
export const messageStop = anthropicEvent('message_stop')

/**
 * Gemini: one chunk of the first candidate, framed with CRLF as Google does it.
 * @param members further members of the candidate, such as `finishReason`
 * @param beside further members of the chunk, such as `usageMetadata`
 */
export function geminiChunk(parts: readonly Members[], members: Members = {}, beside: Members = {}): string {
  const candidate = { content: { parts, role: 'model' }, index: 0, ...members }
  return geminiData({ candidates: [candidate], modelVersion: 'fake', responseId: 'fake', ...beside })
}

export function geminiData(data: unknown): string {
  return `data: ${JSON.stringify(data)}\r\n\r\n`
}

export type DialectName = 'openai' | 'anthropic' | 'gemini'

export interface CallOptions {
  readonly id: string
  readonly name: string
  readonly input: Members
  /** Which of the calls of the reply it is. */
  readonly index?: number
}

export interface Dialect {
  /** What a stream begins with, before the first word. */
  begin(): string
  text(piece: string): string
  /** A whole call, in as many pieces as are usual. */
  call(options: CallOptions): string[]
  /** @param reason in OpenAI's words, or one of the dialect's own. @returns why it stopped, what it used, the end marker */
  end(reason: string, inputTokens: number, outputTokens: number): string[]
  /** The body of an answer with a status that is an error. */
  refusal(status: number): unknown
  /** An error after the status was sent, in the shapes that providers use: all of them passing. */
  readonly errors: Readonly<Record<keyof typeof errorShapes, string>>
  /** What the user said last, in a request's body. */
  readMessage(body: unknown): string
  /** What a tool answered, when that is the last thing in a request's body. */
  readAnswer(body: unknown): string | undefined
}

/** An error after the status was sent, in the shapes that OpenAI and its relatives use. */
export const errorShapes = {
  chunk: sse({ id: 'x', choices: [{ index: 0, delta: {} }], error: { code: 502, message: 'broken' } }),
  event: sse({ error: { message: 'broken', type: 'server_error' } }, 'error'),
  field: 'error: {"message":"broken","type":"server_error"}\n\n',
  bare: '{"error":{"message":"broken","type":"server_error"}}\n',
  page: '<!DOCTYPE html>\n<html><body>502 Bad Gateway</body></html>\n',
  corrupt: 'data: {"id":"x","choices":[{"index":0,"del\n\n',
} as const

const openai: Dialect = {
  begin: () => chunk({ role: 'assistant', content: '' }),
  text: (content) => chunk({ content }),
  call({ id, name, input, index = 0 }) {
    const [head, tail] = halves(JSON.stringify(input))
    return [
      chunk({ tool_calls: [{ index, id, type: 'function', function: { name, arguments: '' } }] }),
      chunk({ tool_calls: [{ index, function: { arguments: head } }] }),
      chunk({ tool_calls: [{ index, function: { arguments: tail } }] }),
    ]
  },
  end: (reason, input, output) => [chunk({}, reason), usageChunk(input, output), doneMarker],
  refusal: (status) => ({ error: { message: `refused with ${status}` } }),
  errors: errorShapes,
  readMessage: (body) =>
    textOf(
      listOf(body, 'messages').findLast((message) => memberOf(message, 'role') === 'user'),
      'content',
    ),
  readAnswer(body) {
    const last = listOf(body, 'messages').at(-1)
    return memberOf(last, 'role') === 'tool' ? textOf(last, 'content') : undefined
  },
}

const anthropicReasons: Readonly<Record<string, string>> = {
  stop: 'end_turn',
  length: 'max_tokens',
  tool_calls: 'tool_use',
  content_filter: 'refusal',
}
const anthropicErrors: Readonly<Record<number, string>> = {
  400: 'invalid_request_error',
  401: 'authentication_error',
  402: 'billing_error',
  403: 'permission_error',
  404: 'not_found_error',
  413: 'request_too_large',
  429: 'rate_limit_error',
  504: 'timeout_error',
  529: 'overloaded_error',
}

/** Words are in block 0, which is open from the beginning to the end; a call is a block of its own behind it. */
const anthropic: Dialect = {
  begin: () => messageStart() + blockStart(0),
  text: (piece) => textDelta(piece),
  call({ id, name, input, index = 0 }) {
    const [head, tail] = halves(JSON.stringify(input))
    const block = index + 1
    return [
      blockStart(block, { type: 'tool_use', id, name, input: {} }),
      blockDelta(block, { type: 'input_json_delta', partial_json: head }),
      blockDelta(block, { type: 'input_json_delta', partial_json: tail }),
      blockStop(block),
    ]
  },
  end: (reason, input, output) => [
    blockStop(0),
    messageDelta(anthropicReasons[reason] ?? reason, { input_tokens: input, output_tokens: output }),
    messageStop,
  ],
  refusal: (status) => ({
    type: 'error',
    error: { type: anthropicErrors[status] ?? 'api_error', message: `refused with ${status}` },
    request_id: 'req_fake',
  }),
  errors: {
    ...errorShapes,
    chunk: sse({ type: 'error', error: { type: 'overloaded_error', message: 'broken' } }),
    event: anthropicEvent('error', { error: { type: 'overloaded_error', message: 'broken' } }),
    corrupt: 'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"del\n\n',
  },
  readMessage: (body) =>
    listOf(body, 'messages')
      .filter((message) => memberOf(message, 'role') === 'user')
      .map((message) => textOf(message, 'content'))
      .findLast((text) => text !== '') ?? '',
  readAnswer(body) {
    const last = listOf(body, 'messages').at(-1)
    const result = listOf(last, 'content').at(-1)
    return memberOf(result, 'type') === 'tool_result' ? textOf(result, 'content') : undefined
  },
}

const geminiReasons: Readonly<Record<string, string>> = {
  stop: 'STOP',
  length: 'MAX_TOKENS',
  tool_calls: 'STOP',
  content_filter: 'SAFETY',
}
const geminiStatuses: Readonly<Record<number, string>> = {
  400: 'INVALID_ARGUMENT',
  401: 'UNAUTHENTICATED',
  403: 'PERMISSION_DENIED',
  404: 'NOT_FOUND',
  429: 'RESOURCE_EXHAUSTED',
  500: 'INTERNAL',
  503: 'UNAVAILABLE',
  504: 'DEADLINE_EXCEEDED',
}

/** Calls have no id, as with most models; what `id` says is not sent. */
const gemini: Dialect = {
  begin: () => geminiChunk([]),
  text: (text) => geminiChunk([{ text }]),
  call: ({ name, input }) => [geminiChunk([{ functionCall: { name, args: input } }])],
  end: (reason, input, output) => [
    geminiChunk(
      [],
      { finishReason: geminiReasons[reason] ?? reason },
      {
        usageMetadata: {
          promptTokenCount: input,
          candidatesTokenCount: output,
          totalTokenCount: input + output,
        },
      },
    ),
  ],
  refusal: (status) => ({
    error: { code: status, message: `refused with ${status}`, status: geminiStatuses[status] ?? 'UNKNOWN' },
  }),
  errors: {
    ...errorShapes,
    chunk: geminiData({ error: { code: 503, message: 'broken', status: 'UNAVAILABLE' } }),
    event: sse({ error: { code: 503, message: 'broken', status: 'UNAVAILABLE' } }, 'error'),
    bare: '[{"error":{"code":503,"message":"broken","status":"UNAVAILABLE"}}\n]\n',
    corrupt: 'data: {"candidates": [{"content": {"par\r\n\r\n',
  },
  readMessage: (body) =>
    listOf(body, 'contents')
      .filter((content) => memberOf(content, 'role') === 'user')
      .map((content) => textOf(content, 'parts'))
      .findLast((text) => text !== '') ?? '',
  readAnswer(body) {
    const part = listOf(listOf(body, 'contents').at(-1), 'parts').at(-1)
    const response = memberOf(memberOf(part, 'functionResponse'), 'response')
    return response === undefined ? undefined : JSON.stringify(response)
  },
}

export const dialects: Readonly<Record<DialectName, Dialect>> = { openai, anthropic, gemini }

/** @param path of the request, with or without a query */
export function dialectOf(path: string): DialectName {
  if (/\/messages(\?|$)/.test(path)) return 'anthropic'
  return path.includes(':streamGenerateContent') ? 'gemini' : 'openai'
}

function halves(text: string): [string, string] {
  const middle = Math.ceil(text.length / 2)
  return [text.slice(0, middle), text.slice(middle)]
}

/** Text that is a string, or in the `text` members of a list. */
function textOf(value: unknown, name: string): string {
  const content = memberOf(value, name)
  if (typeof content === 'string') return content
  return listOf(value, name)
    .map((part) => memberOf(part, 'text'))
    .filter((text) => typeof text === 'string')
    .join('')
}

function listOf(value: unknown, name: string): readonly unknown[] {
  const list = memberOf(value, name)
  return Array.isArray(list) ? list : []
}

function memberOf(value: unknown, name: string): unknown {
  return typeof value === 'object' && value !== null ? (value as Members)[name] : undefined
}
