/**
 * Chat completions as bytes: whatever a run says, in whatever pieces and with whatever was missed in between, the official
 * client reads the same message from the stream as a whole completion holds.
 */
import OpenAI from 'openai7'
import { test } from 'tap'
import type { LogEntry, Part, RunEvent } from '../../src/log/event.ts'
import { type ChatStreamView, createChatEncoder, toCompletion } from '../../src/surfaces/openai-chat.ts'
import { createRandom, type Random } from '../support/random.ts'
import { trialsOf } from '../support/trials.ts'
import { answerWith, joinDeltas, makeReply, messageId, retell, runId } from './replies.ts'

const trials = trialsOf(60)

const view: ChatStreamView = {
  runId,
  createdAt: '2026-01-01T00:00:00.000000Z',
  model: 'fast',
  clientTools: new Set(['look']),
  includeUsage: false,
}

/** @returns the body, or undefined when it was cut because the surface cannot take back what it said */
function encode(
  entries: readonly Pick<LogEntry, 'event'>[],
  options: Partial<ChatStreamView> = {},
): string | undefined {
  const viewer = createChatEncoder().createViewer({ ...view, ...options })
  let body = ''
  for (const [index, { event }] of entries.entries()) {
    const bytes = viewer.encode({ generation: 1, seq: index + 1, event })
    if (bytes === 'lost') return undefined
    body += bytes?.toString() ?? ''
  }
  return body
}

const chunksOf = (body: string) =>
  body
    .split('\n\n')
    .filter((block) => block !== '')
    .map((block) => block.replace(/^data: /, ''))

interface ReadMessage {
  content: string
  reasoning: string
  calls: { id: string; name: string; arguments: string }[]
  finishReason: string | null
  annotations: unknown
}

/** What the official client makes of a body, chunk for chunk. @throws what it throws */
async function readBody(body: string, random: Random): Promise<ReadMessage> {
  const client = new OpenAI({ apiKey: 'x', baseURL: 'http://x.test', fetch: async () => answerWith(body, random) })
  const message: ReadMessage = { content: '', reasoning: '', calls: [], finishReason: null, annotations: undefined }
  const stream = await client.chat.completions.create({ model: 'fast', messages: [], stream: true })
  for await (const { choices } of stream) {
    const [choice] = choices
    if (choice === undefined) continue
    const delta = choice.delta as typeof choice.delta & { reasoning_content?: string; annotations?: unknown }
    message.content += delta.content ?? ''
    message.reasoning += delta.reasoning_content ?? ''
    message.annotations ??= delta.annotations
    message.finishReason = choice.finish_reason ?? message.finishReason
    for (const { index, id, function: called } of delta.tool_calls ?? []) {
      message.calls[index] ??= { id: id ?? '', name: called?.name ?? '', arguments: '' }
      const call = message.calls[index]
      if (call !== undefined) call.arguments += called?.arguments ?? ''
    }
  }
  return message
}

function readWhole(parts: readonly Part[], done: Extract<RunEvent, { type: 'done' }>['data']): ReadMessage {
  const { message, finish_reason } = toCompletion(view, parts, done).choices[0] as NonNullable<
    ReturnType<typeof toCompletion>['choices'][0]
  >
  return {
    content: message.content ?? '',
    reasoning: message.reasoning_content ?? '',
    calls: (message.tool_calls ?? []).map(({ id, function: called }) => ({ id, ...called })),
    finishReason: finish_reason,
    annotations: message.annotations,
  }
}

/** Arguments that came when the call had been answered are stored, and told to nobody. */
function growsAfterItsAnswer(entries: readonly LogEntry[]): boolean {
  const answered = new Set<number>()
  return entries.some(({ event }) => {
    if (event.type === 'tool') answered.add(event.data.part)
    return event.type === 'delta' && answered.has(event.data.part)
  })
}

test('the official client reads from the stream what is stored, however it was told; or throws', async (t) => {
  const seen = new Set<string>()
  for (let seed = 1; seed <= trials; seed += 1) {
    const random = createRandom(seed)
    const reply = makeReply(random)
    const done = reply.entries.at(-1)?.event
    if (done?.type !== 'done') throw new Error('a reply without an end')
    // Only a careless agent does it, and never to a call of the client's.
    if (growsAfterItsAnswer(reply.entries)) continue
    const body = encode(retell(random, reply))
    if (body === undefined) seen.add('cut')
    else if (done.data.error !== undefined) {
      seen.add('error')
      await t.rejects(readBody(body, random), { code: 'upstream_unavailable' }, `seed ${seed}`)
      t.notOk(body.includes('[DONE]'))
    } else {
      const read = await readBody(body, random)
      seen.add(read.calls.length > 0 ? 'calls' : read.finishReason === 'stop' ? 'words' : 'none')
      t.strictSame(read, readWhole(reply.parts, done.data), `seed ${seed}`)
      t.ok(body.endsWith('data: [DONE]\n\n'))
      t.notMatch(body, /^(event|id|retry):/m)
    }
  }
  for (const kind of ['error', 'calls', 'words']) t.ok(seen.has(kind), `there were replies with ${kind}`)
})

test('a twin: an encoder that drops one piece is noticed', async (t) => {
  const random = createRandom(7)
  let noticed = 0
  for (let seed = 1; seed <= 20; seed += 1) {
    const reply = makeReply(createRandom(seed))
    const done = reply.entries.at(-1)?.event
    const deltas = reply.entries.filter(({ event }) => event.type === 'delta')
    if (done?.type !== 'done' || done.data.error !== undefined || deltas.length === 0) continue
    const dropped = random.pick(deltas)
    const body = encode(reply.entries.filter((entry) => entry !== dropped))
    const read = body === undefined ? undefined : await readBody(body, random)
    if (JSON.stringify(read) !== JSON.stringify(readWhole(reply.parts, done.data))) noticed += 1
  }
  t.ok(noticed > 3)
})

const started: RunEvent = {
  type: 'run',
  data: {
    run_id: runId,
    session_id: runId,
    user_message_id: runId,
    message_id: messageId,
    model: 'fake',
    mode: 'fast',
    created_at: view.createdAt,
  },
}
const endedWith = (more: object = {}): RunEvent => ({
  type: 'done',
  data: { status: 'completed', message_id: messageId, ...more },
})
const entriesOf = (...events: readonly RunEvent[]) => [started, ...events].map((event) => ({ event }))

test('the first chunk says who speaks, the last one why it ends, and with include_usage one more what it took', async (t) => {
  const usage = { input_tokens: 8, output_tokens: 3, total_tokens: 11, reasoning_tokens: 2, cached_input_tokens: 5 }
  const entries = entriesOf(
    { type: 'delta', data: { part: 0, offset: 0, text: 'Hi\u0000\u2028\r\n' } },
    endedWith({ finish_reason: 'length', usage }),
  )
  const plain = chunksOf(encode(entries) as string)
  t.equal(plain.pop(), '[DONE]')
  const chunks = plain.map((chunk) => JSON.parse(chunk))
  t.strictSame(
    chunks.map(({ choices }) => choices[0]),
    [
      { index: 0, delta: { role: 'assistant', content: '' }, logprobs: null, finish_reason: null },
      { index: 0, delta: { content: 'Hi\u0000\u2028\r\n' }, logprobs: null, finish_reason: null },
      { index: 0, delta: {}, logprobs: null, finish_reason: 'length' },
    ],
  )
  t.match(chunks[0], { id: `chatcmpl-${runId}`, object: 'chat.completion.chunk', created: 1767225600, model: 'fast' })
  t.ok(chunks.every((chunk) => !('usage' in chunk)))
  const counted = chunksOf(encode(entries, { includeUsage: true }) as string)
    .slice(0, -1)
    .map((chunk) => JSON.parse(chunk))
  t.ok(counted.slice(0, -1).every((chunk) => chunk.usage === null))
  t.strictSame(counted.at(-1).choices, [])
  t.strictSame(counted.at(-1).usage, {
    prompt_tokens: 8,
    completion_tokens: 3,
    total_tokens: 11,
    prompt_tokens_details: { cached_tokens: 5 },
    completion_tokens_details: { reasoning_tokens: 2 },
  })
})

test('calls of the client are shown as they grow, those that the gateway answers are not', async (t) => {
  const opened = (part: number, call_id: string, name: string): RunEvent => ({
    type: 'part',
    data: { part, kind: 'tool_call', call_id, name },
  })
  const body = encode(
    entriesOf(
      opened(0, 'own', 'of_the_server'),
      { type: 'delta', data: { part: 0, offset: 0, text: '{}' } },
      { type: 'tool', data: { part: 0, call_id: 'own', name: 'of_the_server', input: {}, output: 1 } },
      opened(1, 'a', 'look'),
      opened(2, 'b', 'look'),
      { type: 'delta', data: { part: 1, offset: 0, text: '{"q":' } },
      { type: 'delta', data: { part: 1, offset: 5, text: '1}' } },
      { type: 'tool', data: { part: 1, call_id: 'a', name: 'look', input: { q: 1 } } },
      { type: 'tool', data: { part: 2, call_id: 'b', name: 'look', input: {} } },
      opened(3, 'c', 'of_nobody'),
      { type: 'tool', data: { part: 3, call_id: 'c', name: 'of_nobody', input: {} } },
      endedWith({ finish_reason: 'stop' }),
    ),
  ) as string
  t.notOk(body.includes('of_the_server'))
  const deltas = chunksOf(body)
    .slice(1, -1)
    .map((chunk) => JSON.parse(chunk).choices[0])
  t.strictSame(
    deltas.flatMap(({ delta }) => delta.tool_calls ?? []),
    [
      { index: 0, id: 'a', type: 'function', function: { name: 'look', arguments: '' } },
      { index: 1, id: 'b', type: 'function', function: { name: 'look', arguments: '' } },
      { index: 0, function: { arguments: '{"q":' } },
      { index: 0, function: { arguments: '1}' } },
      { index: 1, function: { arguments: '{}' } },
      { index: 2, id: 'c', type: 'function', function: { name: 'of_nobody', arguments: '{}' } },
    ],
    'and one that nobody has answered is the client’s after all',
  )
  t.equal(deltas.at(-1).finish_reason, 'tool_calls', 'whatever the provider called it')
})

test('how a run ends is said in words that clients know', async (t) => {
  const finishOf = (more: object) => {
    const last = chunksOf(encode(entriesOf(endedWith(more))) as string).at(-2) as string
    return JSON.parse(last).choices[0].finish_reason
  }
  t.equal(finishOf({ finish_reason: 'content_filter' }), 'content_filter')
  t.equal(finishOf({ finish_reason: 'tool_calls' }), 'stop', 'of which none is the client’s')
  t.equal(finishOf({ finish_reason: 'weary' }), 'stop')
  t.equal(finishOf({ status: 'stopped' }), 'stop')
  const [, ...failed] = chunksOf(
    encode(
      entriesOf(endedWith({ status: 'failed', error: { code: 'upstream_timeout', message: 'x', retryable: true } })),
    ) as string,
  )
  t.strictSame(
    failed.map((chunk) => JSON.parse(chunk)),
    [{ error: { message: 'x', type: 'server_error', code: 'upstream_timeout', param: null } }],
  )
})

test('what viewers are told who know and want the same is encoded once, wherever they have come in', async (t) => {
  const words = ['One ', 'two ', 'three ', 'four']
  const deltas = words.map((text, index): RunEvent => {
    return { type: 'delta', data: { part: 0, offset: words.slice(0, index).join('').length, text } }
  })
  const entries = entriesOf(...deltas, endedWith({})).map((one, index) => ({ ...one, generation: 1, seq: index + 1 }))
  const encoder = createChatEncoder()
  const tell = (told: readonly LogEntry[], options: Partial<ChatStreamView> = {}) => {
    const viewer = encoder.createViewer({ ...view, ...options })
    return told.map((entry) => viewer.encode(entry))
  }
  const first = tell(entries)
  const half = entries.length >> 1
  const replay = joinDeltas(entries.slice(0, half))
  t.ok(replay.length < half, 'the second viewer catches up in other pieces')
  const second = tell([...replay, ...entries.slice(half)]).slice(replay.length)
  t.ok(
    second.length > 0 && second.every((bytes, index) => bytes === first[half + index]),
    'the same bytes, not equal ones',
  )
  const other = tell(entries, { includeUsage: true })
  t.ok(
    other.every((bytes, index) => bytes === undefined || bytes !== first[index]),
    'who wants usage is told apart',
  )
})
