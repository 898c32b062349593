/**
 * The fetch for the AI SDK: through connections that break anywhere, and answers that begin again, the SDK's own transport
 * reads each chunk once. The gateway is played by the test; the transport is that of ai 6.
 */
import { DefaultChatTransport, type UIMessageChunk } from 'ai6'
import t from 'tap'
import { createResumingFetch, type ResumingFetchOptions } from '../../src/client/index.ts'
import { createRandom } from '../support/random.ts'
import { trialsOf } from '../support/trials.ts'
import { answer, drop, refuse, type ScriptedServer, type Step, startScript } from './scripted-server.ts'

const limits = { backOffFirstMs: 1, backOffMaxMs: 5, stallMs: 5000 }
const visitorToken = `vst_${'a'.repeat(43)}`

/** Blocks of one event: its id stands on the last one. */
function block(id: string, ...chunks: readonly object[]): string {
  return `${chunks.map((chunk) => `data: ${JSON.stringify(chunk)}\n`).join('\n')}${id === '' ? '' : `id: ${id}\n`}\n`
}

const start = { type: 'start', messageId: 'm1' }
const began = block('r.1-1', start, { type: 'start-step' })
const word = (id: string, delta: string) => block(id, { type: 'text-delta', id: '0', delta })
const first = (id: string, delta: string) =>
  block(id, { type: 'text-start', id: '0' }, { type: 'text-delta', id: '0', delta })
const ended = (id: string) =>
  `${block('', { type: 'text-end', id: '0' }, { type: 'finish-step' }, { type: 'finish' })}data: [DONE]\nid: ${id}\n\n`

function say(
  text: string | Uint8Array,
  end: 'clean' | 'cut' | 'open' = 'clean',
  headers: Readonly<Record<string, string>> = {},
): Step {
  return (response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream', 'x-vercel-ai-ui-message-stream': 'v1', ...headers })
    response.write(text, () => {
      if (end === 'cut') response.socket?.end()
    })
    if (end === 'clean') response.end()
  }
}

function transportOf({ url }: ScriptedServer, options: ResumingFetchOptions = {}) {
  const fetch = createResumingFetch({ visitorToken, ...options, limits: { ...limits, ...options.limits } })
  return new DefaultChatTransport({ api: `${url}/api/chat?x=1`, fetch, headers: { 'x-mine': 'yes' } })
}

function send(server: ScriptedServer, options?: ResumingFetchOptions, abortSignal?: AbortSignal) {
  return transportOf(server, options).sendMessages({
    trigger: 'submit-message',
    chatId: 'my chat',
    messageId: undefined,
    messages: [{ id: 'u1', role: 'user', parts: [{ type: 'text', text: 'Hello' }] }],
    abortSignal,
  })
}

async function readAll(stream: ReadableStream<UIMessageChunk>): Promise<UIMessageChunk[]> {
  const chunks: UIMessageChunk[] = []
  for await (const chunk of stream as ReadableStream<UIMessageChunk> & AsyncIterable<UIMessageChunk>) chunks.push(chunk)
  return chunks
}

/** Chunks with adjacent deltas joined: what a reply is, however it was cut. */
function shapeOf(chunks: readonly UIMessageChunk[]): string[] {
  const shape: string[] = []
  for (const chunk of chunks) {
    if (chunk.type !== 'text-delta') shape.push(chunk.type)
    else if (shape.at(-1)?.startsWith('text: ')) shape.push(`${shape.pop()}${chunk.delta}`)
    else shape.push(`text: ${chunk.delta}`)
  }
  return shape
}

const shape = (text: string) => [
  'start',
  'start-step',
  'text-start',
  `text: ${text}`,
  'text-end',
  'finish-step',
  'finish',
]
const cursors = ({ asked }: ScriptedServer) => asked.map(({ headers }) => headers['last-event-id'])

t.test('a body that breaks off, anywhere, goes on behind the last whole event', async (t) => {
  const server = await startScript(
    t,
    say(`retry: 1\n${began}: keep-alive\n\n${first('r.1-2', 'one ')}${word('r.1-3', 'two ').slice(0, -2)}`, 'cut'),
    // Between two chunks of one event.
    say(`${word('r.1-3', 'two ')}${ended('r.1-4').slice(0, 40)}`),
    drop,
    answer(502, 'a page of a proxy'),
    say(ended('r.1-4'), 'open'),
  )
  t.same(shapeOf(await readAll(await send(server))), shape('one two '))
  t.same(cursors(server), [undefined, 'r.1-2', 'r.1-3', 'r.1-3', 'r.1-3'])
  const [post, ...gets] = server.asked
  t.match(post, { method: 'POST', path: '/api/chat?x=1', headers: { 'x-mine': 'yes', 'idempotency-key': /./ } })
  for (const get of gets) {
    t.match(get, { method: 'GET', path: '/api/chat/my%20chat/stream?x=1', headers: { 'x-mine': 'yes' } })
    t.equal(get.headers['idempotency-key'], undefined)
    t.equal(get.headers['content-type'], undefined)
    t.equal(get.headers['x-visitor-token'], visitorToken)
  }
  await server.asked.at(-1)?.closed
})

t.test(
  'a message whose stream breaks before its first id goes on with its own run, and none of what came before',
  async (t) => {
    const run = { 'x-run-id': 'r' }
    const server = await startScript(
      t,
      say(began.slice(0, 20), 'cut', run),
      say(`${began}${first('r.1-2', 'one ')}${ended('r.1-3')}`, 'clean', run),
    )
    t.same(shapeOf(await readAll(await send(server))), shape('one '))
    t.same(cursors(server), [undefined, 'r.0-0'])
  },
)

t.test('an answer that begins again is cut to what is new, by the text of its parts', async (t) => {
  const call = { type: 'tool-input-start', toolCallId: 'c1', toolName: 'look' }
  const input = (inputTextDelta: string) => ({ type: 'tool-input-delta', toolCallId: 'c1', inputTextDelta })
  const called = { type: 'tool-input-available', toolCallId: 'c1', toolName: 'look', input: { a: 1 } }
  const step = [{ type: 'finish-step' }, { type: 'start-step' }]
  const server = await startScript(
    t,
    say(`${began}${first('r.1-2', 'Let 👀 me ')}${block('r.1-3', call, input('{"a"'))}`, 'cut'),
    say(
      [
        block('r.2-1', start, { type: 'start-step' }, { type: 'text-start', id: '0' }),
        block('r.2-2', { type: 'text-delta', id: '0', delta: 'Let 👀 me see' }, { type: 'text-end', id: '0' }),
        block('r.2-3', call, input('{"a":1}'), called, ...step),
        block('r.2-4', { type: 'text-start', id: '1' }, { type: 'text-delta', id: '1', delta: 'One' }),
      ].join(''),
      'cut',
    ),
    say(
      `${block('r.2-5', { type: 'text-end', id: '1' }, { type: 'finish-step' }, { type: 'finish' })}data: [DONE]\n\n`,
    ),
  )
  const chunks = await readAll(await send(server))
  t.same(chunks, [
    start,
    { type: 'start-step' },
    { type: 'text-start', id: '0' },
    { type: 'text-delta', id: '0', delta: 'Let 👀 me ' },
    call,
    input('{"a"'),
    { type: 'text-delta', id: '0', delta: 'see' },
    { type: 'text-end', id: '0' },
    input(':1}'),
    called,
    ...step,
    { type: 'text-start', id: '1' },
    { type: 'text-delta', id: '1', delta: 'One' },
    { type: 'text-end', id: '1' },
    { type: 'finish-step' },
    { type: 'finish' },
  ])
  t.same(cursors(server), [undefined, 'r.1-3', 'r.2-4'])
})

t.test('a server that gives no ids is asked from the start, and cut', async (t) => {
  const whole = [start, { type: 'start-step' }, { type: 'text-start', id: '0' }]
  const server = await startScript(
    t,
    say(block('', ...whole, { type: 'text-delta', id: '0', delta: 'abc' }), 'cut'),
    say(`${block('', ...whole, { type: 'text-delta', id: '0', delta: 'abcde' })}${ended('').replace('id: \n', '')}`),
  )
  t.same(shapeOf(await readAll(await send(server))), shape('abcde'))
  t.same(cursors(server), [undefined, undefined])
})

t.test('whatever the place of the cuts, every chunk comes once', async (t) => {
  const words = ['Ñandú ', '漢字 ', '🎈\u2028', 'and ', 'so\non ', 'to the end']
  const events = [
    began,
    first('r.1-2', words[0] ?? ''),
    ...words.slice(1).map((text, at) => word(`r.1-${at + 3}`, text)),
  ]
  events.push(ended('r.1-8'))
  const failed: number[] = []
  for (let seed = 1; seed <= trialsOf(1) * 12; seed += 1) {
    const random = createRandom(seed)
    let cutsLeft = 6
    const serve: Step = (response, asked) => {
      const held = Number(/-(\d+)$/.exec(`${asked.headers['last-event-id'] ?? ''}`)?.[1] ?? 0)
      // Now and then it has forgotten, and says everything again.
      const bytes = Buffer.from(events.slice(random.next() < 0.2 ? 0 : held).join(''))
      cutsLeft -= 1
      if (cutsLeft < 0) return say(bytes)(response, asked)
      return say(bytes.subarray(0, random.integer(bytes.length)), random.pick(['cut', 'clean']))(response, asked)
    }
    const server = await startScript(t, ...Array<Step>(8).fill(serve))
    const seen = shapeOf(await readAll(await send(server)))
    if (JSON.stringify(seen) !== JSON.stringify(shape(words.join('')))) failed.push(seed)
  }
  t.same(failed, [], 'no seed fails')
})

t.test('useChat that comes back to a page reads one stream as well; nothing to resume stays nothing', async (t) => {
  const server = await startScript(
    t,
    say(`${began}${first('r.1-2', 'a')}`, 'cut'),
    say(`${word('r.1-3', 'b')}${ended('r.1-4')}`),
    answer(204),
  )
  const transport = transportOf(server)
  const stream = await transport.reconnectToStream({ chatId: 'my chat' })
  t.same(shapeOf(await readAll(stream ?? new ReadableStream())), shape('ab'))
  t.same(cursors(server), [undefined, 'r.1-2'])
  t.equal(await transport.reconnectToStream({ chatId: 'my chat' }), null)
})

t.test('the POST is repeated under its key until there is an answer; a refusal comes as it is', async (t) => {
  const server = await startScript(
    t,
    drop,
    refuse(503, 'draining', {}, { 'retry-after': '0' }),
    say(`${began}${first('r.1-2', 'a')}${ended('r.1-3')}`),
  )
  t.same(shapeOf(await readAll(await send(server))), shape('a'))
  t.equal(new Set(server.asked.map(({ headers }) => headers['idempotency-key'])).size, 1)
  t.equal(new Set(server.asked.map(({ body }) => body)).size, 1)

  const text: Step = (response) => void response.writeHead(402, { 'content-type': 'text/plain' }).end('No budget.')
  const refusing = await startScript(t, text, refuse(429, 'rate_limited', {}, { 'retry-after': '60' }))
  await t.rejects(send(refusing), { message: 'No budget.' })
  await t.rejects(send(refusing), { message: /rate_limited/ })
  t.equal(refusing.asked.length, 2)
})

t.test('a reply that cannot be had any more fails, and does not end as if it was whole', async (t) => {
  const begun = say(`${began}${first('r.1-2', 'a')}`, 'cut')
  const other = say(block('r2.1-1', { type: 'start', messageId: 'm2' }))
  for (const [step, why] of [
    [answer(204), /has ended meanwhile/],
    [refuse(404, 'not_found'), /not_found/],
    [other, /Another reply/],
  ] as const) {
    const server = await startScript(t, begun, step)
    const seen: string[] = []
    const read = async () => {
      for await (const chunk of await send(server)) seen.push(chunk.type)
    }
    await t.rejects(read(), { message: why })
    t.same(seen, ['start', 'start-step', 'text-start', 'text-delta'])
  }
})

t.test(
  'a gateway that refuses for now is asked again no sooner than it says, and one that never ends its words, too',
  async (t) => {
    const times: number[] = []
    const timed =
      (step: Step): Step =>
      (response, asked) => {
        times.push(performance.now())
        return step(response, asked)
      }
    const server = await startScript(
      t,
      say(`${began}${first('r.1-2', 'a')}`, 'cut'),
      timed(refuse(503, 'draining', {}, { 'retry-after': '1' })),
      timed((response) => void response.writeHead(503, { 'content-type': 'application/json' }).write('{"code":')),
      say(`${word('r.1-3', 'b')}${ended('r.1-4')}`),
    )
    const stream = await send(server, { limits: { backOffMaxMs: 200, answerMs: 2000 } })
    t.same(shapeOf(await readAll(stream)), shape('ab'))
    const [refusedAt = 0, againAt = 0] = times
    t.ok(againAt - refusedAt > 190, 'as long as the limit lets it be')
    t.equal(server.asked.length, 4)
  },
)

t.test('chunks that wait for an id which does not come are a broken connection', async (t) => {
  const chunks = Array.from({ length: 20 }, () => block('', { type: 'text-delta', id: '0', delta: 'x'.repeat(30) }))
  const server = await startScript(
    t,
    say(`${began}${first('r.1-2', 'a')}${chunks.join('')}`, 'open'),
    say(`${word('r.1-3', 'b')}${ended('r.1-4')}`),
  )
  t.same(shapeOf(await readAll(await send(server, { limits: { eventCharsMax: 500, stallMs: 60_000 } }))), shape('ab'))
  t.same(cursors(server), [undefined, 'r.1-2'])
})

t.test('a stream that lacks nothing but its end mark is whole', async (t) => {
  const whole = `${began}${first('r.1-2', 'a')}${ended('r.1-3')}`
  const server = await startScript(t, say(whole.slice(0, whole.indexOf('data: [DONE]')), 'cut'), answer(204))
  const seen: UIMessageChunk[] = []
  const read = async () => {
    for await (const chunk of await send(server)) seen.push(chunk)
  }
  // Its last chunks have no id yet, so they were not passed on, and the gateway is asked for them.
  await t.rejects(read(), { message: /has ended meanwhile/ })
  t.same(shapeOf(seen), shape('a').slice(0, 4))
  t.same(cursors(server), [undefined, 'r.1-2'])
  const known = await startScript(
    t,
    say(
      `${began}${first('r.1-2', 'a')}${block('r.1-3', { type: 'text-end', id: '0' }, { type: 'finish-step' }, { type: 'finish' })}`,
      'cut',
    ),
  )
  t.same(shapeOf(await readAll(await send(known))), shape('a'))
})

t.test('silence is a broken connection', async (t) => {
  const server = await startScript(
    t,
    say(`${began}${first('r.1-2', 'a')}`, 'open'),
    say(`${word('r.1-3', 'b')}${ended('r.1-4')}`),
  )
  t.same(shapeOf(await readAll(await send(server, { limits: { stallMs: 100 } }))), shape('ab'))
  await server.asked[0]?.closed
})

t.test('who aborts, or reads no further, is not resumed', async (t) => {
  const aborted = await startScript(t, say(`${began}${first('r.1-2', 'a')}`, 'open'))
  const abort = new AbortController()
  const stream = await send(aborted, {}, abort.signal)
  setTimeout(() => abort.abort(), 20)
  await t.rejects(readAll(stream), { name: 'AbortError' })
  await aborted.asked[0]?.closed

  t.equal(aborted.asked.length, 1)

  for (const isWaiting of [false, true]) {
    const left = await startScript(t, say(`${began}${first('r.1-2', 'a')}`, 'open'))
    const reader = (await send(left)).getReader()
    for (let chunk = 0; chunk < 4; chunk += 1) await reader.read()
    // No more comes: this one waits for bytes.
    const next = isWaiting ? reader.read() : undefined
    await reader.cancel()
    t.match(await next, isWaiting ? { done: true } : undefined)
    await left.asked[0]?.closed
    t.equal(left.asked.length, 1)
  }
})

t.test('a visitor without a cookie has a token from the first request on, at the gateway that is asked', async (t) => {
  const whole = say(`${began}${first('r.1-2', 'a')}${ended('r.1-3')}`)
  const server = await startScript(t, drop, whole)
  const told: string[] = []
  // As on a page of another origin.
  Object.defineProperty(globalThis, 'location', { value: new URL('http://127.0.0.1:1/'), configurable: true })
  t.teardown(() => Reflect.deleteProperty(globalThis, 'location'))
  const stream = await send(server, { visitorToken: undefined, onVisitorToken: (token) => told.push(token) })
  t.same(shapeOf(await readAll(stream)), shape('a'))
  t.match(told, [/^vst_/])
  t.same(
    server.asked.map(({ method, headers }) => [method, headers['x-visitor-token']]),
    [
      ['POST', told[0]],
      ['POST', told[0]],
    ],
  )
})

t.test('other requests are handed on as they are', async (t) => {
  const seen: unknown[] = []
  const plain = createResumingFetch({
    fetch: async (input, init) => {
      seen.push([input, init])
      return new Response('plain')
    },
  })
  const request = new Request('http://127.0.0.1:9/api/chat/1/stream')
  for (const [input, init] of [
    ['http://127.0.0.1:9/api/other', { method: 'POST', body: '{"a":1}' }],
    ['http://127.0.0.1:9/api/other', { method: 'POST', body: 'no JSON' }],
    [request, {}],
  ] as const) {
    t.equal(await (await plain(input, init)).text(), 'plain')
    t.same(seen.pop(), [input, init])
  }
})
