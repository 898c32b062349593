/**
 * How the client library follows a reply over connections that are cut, crooked, silent or have a hole. The gateway is
 * played by the test.
 */
import t from 'tap'
import {
  type Client,
  type ClientOptions,
  createClient,
  GatewayError,
  type Reply,
  type ReplyEvent,
} from '../../src/client/index.ts'
import { answer, delta, done, drop, event, ids, refuse, run, say, startScript } from './scripted-server.ts'

const limits = { backOffFirstMs: 1, backOffMaxMs: 5, stallMs: 5000 }
const visitorToken = `vst_${'a'.repeat(43)}`

function clientOf(baseUrl: string, options: ClientOptions = {}): Client {
  return createClient({ baseUrl, visitorToken, ...options, limits: { ...limits, ...options.limits } })
}

/** What a program that only joins deltas would show; it starts anew at a reset. */
function joined(events: readonly ReplyEvent[]): string {
  let text = ''
  for (const event of events) {
    if (event.type === 'reset') text = event.data.parts.map((part) => part.text).join('')
    if (event.type === 'delta') text += event.data.text
  }
  return text
}

async function readAll(reply: Reply): Promise<ReplyEvent[]> {
  const events: ReplyEvent[] = []
  for await (const event of reply) events.push(event)
  return events
}

const cursors = (asked: readonly { headers: Record<string, unknown> }[]) =>
  asked.map(({ headers }) => headers['last-event-id'])
const waits = (events: readonly ReplyEvent[]) =>
  events.flatMap((event) => (event.type === 'connection' && event.state === 'waiting' ? [event.why] : []))

t.test('a stream that ends without done, cut or clean, is taken up behind the last whole event', async (t) => {
  const server = await startScript(
    t,
    say(`retry: 1\n${run}${delta('1-2', 0, 'one ')}${delta('1-3', 4, 'two ').slice(0, -1)}`, 'cut'),
    say(`${delta('1-3', 4, 'two ')}${delta('1-4', 8, 'three')}${delta('1-5', 13, ' no').slice(0, -1)}`),
    drop,
    answer(502, 'a page of a proxy'),
    refuse(503, 'draining', {}, { 'retry-after': '1' }),
    say(`${event('ready', {})}${event('unheard-of', {}, '1-5')}${done('1-6')}`),
  )
  const reply = clientOf(server.url).chat.send({ message: 'Hello' })
  t.same(await reply.accepted, { runId: ids.run_id, sessionId: ids.session_id, messageId: ids.message_id })
  const events = await readAll(reply)
  t.equal(joined(events), 'one two three')
  t.equal(reply.text, 'one two three')
  t.equal(reply.cursor, '1-6')
  t.match(await reply.done, { status: 'completed' })
  t.same(cursors(server.asked), [undefined, '1-2', '1-4', '1-4', '1-4', '1-4'])
  t.same(waits(events), ['cut', 'cut', 'cut', 'cut', 'refused'])
  const [first, ...others] = server.asked.map(({ method, path }) => `${method} ${path}`)
  t.equal(first, 'POST /api/v1/chat/stream')
  t.same([...new Set(others)], [`GET /api/v1/runs/${ids.run_id}/events`])
  const kinds = [...new Set(events.map(({ type }) => type))]
  t.same(kinds, ['connection', 'run', 'delta', 'ready', 'done'], 'and nothing that has no type')
  const attempts = events.map((event) => (event.type === 'connection' ? event.attempt : 0))
  t.equal(Math.max(...attempts), 4, 'attempts are counted from the last thing that came')
})

t.test('reconnect is not the end, and the wait it asks for is kept within the limits', async (t) => {
  const server = await startScript(
    t,
    say(`${run}${delta('1-2', 0, 'a')}${event('reconnect', { retry_ms: 3_600_000 })}`),
    say(`${delta('1-3', 1, 'b')}${done('1-4')}`),
  )
  const events = await readAll(clientOf(server.url).chat.send({ message: 'Hello' }))
  t.equal(joined(events), 'ab')
  t.match(
    events.find((event) => event.type === 'connection' && event.state === 'waiting'),
    { why: 'reconnect', waitMs: limits.backOffMaxMs },
  )
})

t.test('of what overlaps only what is new is given out', async (t) => {
  const server = await startScript(
    t,
    say(
      [
        run,
        delta('1-2', 0, 'abc'),
        delta('1-3', 1, 'bcd'),
        delta('1-4', 0, 'ab'),
        event('part', { part: 1, kind: 'reasoning' }, '1-5'),
        event('part', { part: 1, kind: 'reasoning' }, '1-6'),
        delta('1-7', 0, 'Hm', 1),
        event('tool', { part: 2, call_id: 'c', name: 'look', input: { a: 1 } }, '1-8'),
        event('tool', { part: 2, call_id: 'c', name: 'look', output: 'it' }, '1-9'),
        event('source', { part: 3, url: 'https://example.com' }, '1-10'),
        done('1-11'),
      ].join(''),
    ),
  )
  const reply = clientOf(server.url).chat.send({ message: 'Hello' })
  const events = await readAll(reply)
  t.equal(joined(events), 'abcdHm')
  t.equal(reply.text, 'abcd')
  t.same(reply.parts, [
    { kind: 'text', text: 'abcd' },
    { kind: 'reasoning', text: 'Hm' },
    { kind: 'tool_call', text: '', call_id: 'c', name: 'look', input: { a: 1 }, output: 'it' },
    { kind: 'source', text: '', url: 'https://example.com' },
  ])
  t.same(
    events.flatMap((event) => (event.type === 'delta' ? [event.data] : [])),
    [
      { part: 0, offset: 0, text: 'abc' },
      { part: 0, offset: 3, text: 'd' },
      { part: 1, offset: 0, text: 'Hm' },
    ],
  )
  t.equal(events.filter(({ type }) => type === 'part').length, 1)
})

for (const [name, hole] of [
  ['a delta that begins too late', delta('1-4', 9, '!')],
  ['a part that was never opened', delta('1-4', 0, '!', 2)],
  ['a part that does not follow', event('part', { part: 2, kind: 'text' }, '1-4')],
] as const) {
  t.test(`after a gap (${name}) the run is taken from the beginning, and a reset says so`, async (t) => {
    const server = await startScript(
      t,
      say(`${run}${delta('1-2', 0, 'wrong')}${hole}`, 'open'),
      say(`${run}${delta('1-2', 0, 'right ')}${delta('1-4', 6, 'words')}${done('1-5')}`),
    )
    const reply = clientOf(server.url).chat.send({ message: 'Hello' })
    const events = await readAll(reply)
    t.equal(joined(events), 'right words')
    t.equal(reply.text, 'right words')
    t.same(cursors(server.asked), [undefined, undefined])
    t.same(waits(events), ['gap'])
    await server.asked[0]?.closed
  })
}

t.test('a reply that has a gap each time it is read is given up', async (t) => {
  const broken = say(`${run}${delta('1-2', 0, 'a')}${delta('1-4', 9, '!')}`, 'cut')
  const server = await startScript(t, broken, broken, broken, broken, say(`${run}${done('1-2')}`))
  const reply = clientOf(server.url, { limits: { restartsMax: 3 } }).chat.send({ message: 'Hello' })
  const waits: unknown[] = []
  const read = async () => {
    for await (const event of reply) if (event.type === 'connection' && event.state === 'waiting') waits.push(event.why)
  }
  await t.rejects(read(), { name: 'ConnectionError', why: 'gap' })
  await t.rejects(reply.done, { name: 'ConnectionError', why: 'gap' })
  t.same(waits, ['gap', 'gap', 'gap'])
  t.equal(server.asked.length, 4)
})

t.test('a reset replaces all parts, and the stream goes on from its cursor', async (t) => {
  const parts = [
    { kind: 'reasoning', text: 'Hm.' },
    { kind: 'text', text: 'new' },
  ]
  const reset = event('reset', { message_id: ids.message_id, parts, cursor: '2-1' }, '2-1')
  const server = await startScript(
    t,
    say(`${run}${delta('1-2', 0, 'old and long')}${reset}`, 'cut'),
    say(`${delta('2-2', 3, ' words', 1)}${done('2-3')}`),
  )
  const reply = clientOf(server.url).chat.send({ message: 'Hello' })
  const early = reply.parts
  await readAll(reply)
  t.equal(reply.text, 'new words')
  t.same(early, [], 'what was read before stays what it was')
  t.same(cursors(server.asked), [undefined, '2-1'])
})

t.test('a run that is there is followed from its snapshot', async (t) => {
  const parts = [{ kind: 'text', text: 'so far' }] as const
  const server = await startScript(t, say(`${delta('1-10', 6, ', so good')}${done('1-11')}`))
  const reply = clientOf(server.url).chat.attach({ runId: ids.run_id, after: '1-9', parts })
  t.equal(reply.text, 'so far')
  t.equal((await reply.done).status, 'completed', 'asking for the end is enough to follow it')
  t.equal(reply.text, 'so far, so good')
  t.same(cursors(server.asked), ['1-9'])
})

t.test('a cursor at the end, one that is refused, and one without what it stands for lead to the whole', async (t) => {
  const whole = say(`${run}${delta('1-2', 0, 'all of it')}${done('1-3')}`)
  for (const first of [answer(204), refuse(400, 'invalid_request'), say(delta('1-9', 30, 'late'), 'open')]) {
    const server = await startScript(t, first, whole)
    const reply = clientOf(server.url).chat.attach({ runId: ids.run_id, after: '1-8' })
    const events = await readAll(reply)
    t.equal(joined(events), 'all of it')
    t.same(cursors(server.asked), ['1-8', undefined])
  }
})

t.test('a run that is purged, or not ours, ends the iteration with the error', async (t) => {
  const server = await startScript(t, say(`${run}${delta('1-2', 0, 'a')}`, 'cut'), refuse(404, 'not_found'))
  const reply = clientOf(server.url).chat.send({ message: 'Hello' })
  await t.rejects(readAll(reply), { name: 'GatewayError', status: 404, code: 'not_found', requestId: 'r1' })
  await t.rejects(reply.done, { code: 'not_found' })
  t.equal(reply.text, 'a', 'what was there stays')
  t.equal(server.asked.length, 2)
})

t.test('a message is sent again under one key until there is an answer', async (t) => {
  const server = await startScript(
    t,
    drop,
    refuse(503, 'db_unavailable', {}, { 'retry-after': '0' }),
    answer(200, 'a page of a proxy'),
    (response) => void response.writeHead(200, { 'content-type': 'text/event-stream' }).end(),
    say(`${run}${done('1-2')}`),
  )
  const reply = clientOf(server.url).chat.send({ message: 'Hello', mode: 'fast' })
  // It does not wait for anybody to iterate.
  await reply.accepted
  await reply.done
  t.equal(server.asked.length, 5)
  const bodies = [...new Set(server.asked.map(({ body }) => body))]
  t.equal(bodies.length, 1)
  t.match(JSON.parse(bodies[0] ?? ''), { message: 'Hello', mode: 'fast', client_message_id: /^[0-9a-f]{32}$/ })
})

t.test('a run without the headers of its ids is known by its first event', async (t) => {
  const bare = (text: string) => (response: Parameters<ReturnType<typeof say>>[0]) =>
    void response.writeHead(200, { 'content-type': 'text/event-stream' }).end(text)
  const server = await startScript(t, bare(run), bare(done('1-2')))
  const reply = clientOf(server.url).chat.send({ message: 'Hello' })
  t.equal((await reply.accepted).runId, ids.run_id)
  await reply.done
  t.equal(server.asked[1]?.path, `/api/v1/runs/${ids.run_id}/events`)
})

t.test('what is refused for good is not sent again, and says why', async (t) => {
  for (const [status, code, more, headers] of [
    [409, 'session_busy', { run_id: ids.run_id, retryable: true }, {}],
    [422, 'idempotency_mismatch', { retryable: false }, {}],
    [429, 'rate_limited', { retryable: true }, { 'retry-after': '60' }],
  ] as const) {
    const server = await startScript(t, refuse(status, code, more, headers))
    const reply = clientOf(server.url).chat.send({ message: 'Hello' })
    const error = await reply.accepted.catch((error: unknown) => error)
    if (!(error instanceof GatewayError)) return t.fail('another error', { error })
    t.match(error, { status, code, message: `It is ${code}.`, retryable: more.retryable })
    t.equal(error.retryAfterMs, status === 429 ? 60_000 : 0)
    if (status === 409) t.equal(error.members.run_id, ids.run_id)
    await t.rejects(readAll(reply), { code })
    t.equal(server.asked.length, 1)
  }
})

t.test('a message that never gets an answer is given up after so many attempts', async (t) => {
  const server = await startScript(t)
  const reply = clientOf(server.url, { limits: { sendAttemptsMax: 3 } }).chat.send({ message: 'Hello' })
  await t.rejects(reply.accepted, { name: 'ConnectionError' })
  await t.rejects(reply.done, { name: 'ConnectionError' })
  t.equal(server.asked.length, 3)
})

t.test('a reply whose connections bring nothing is given up after so many attempts', async (t) => {
  const nothing = say('', 'cut')
  const server = await startScript(t, nothing, nothing, nothing, nothing, nothing)
  const reply = clientOf(server.url, { limits: { resumeAttemptsMax: 3 } }).chat.attach({ runId: ids.run_id })
  await t.rejects(readAll(reply), { name: 'ConnectionError' })
  t.equal(server.asked.length, 3)
})

t.test('a reply whose connections bring only what was there is given up as well', async (t) => {
  const same = say(`${run}${delta('1-2', 0, 'a')}`, 'cut')
  const server = await startScript(t, same, same, same, same, same, say(done('1-3')))
  const reply = clientOf(server.url, { limits: { resumeAttemptsMax: 3 } }).chat.send({ message: 'Hello' })
  await t.rejects(readAll(reply), { name: 'ConnectionError' })
  t.equal(server.asked.length, 4)
  t.equal(reply.text, 'a')
})

t.test('silence is a broken connection, and a heartbeat is not silence', async (t) => {
  const server = await startScript(
    t,
    (response, asked) => {
      say(`${run}${delta('1-2', 0, 'a')}`, 'open')(response, asked)
      const timer = setInterval(() => response.write(': hb\n'), 20)
      const until = setTimeout(() => clearInterval(timer), 400)
      response.on('close', () => {
        clearInterval(timer)
        clearTimeout(until)
      })
    },
    say(done('1-3')),
  )
  const startedAt = performance.now()
  const events = await readAll(clientOf(server.url, { limits: { stallMs: 150 } }).chat.send({ message: 'Hello' }))
  t.same(waits(events), ['stalled'])
  t.ok(performance.now() - startedAt > 400, 'while it beats it is open')
  await server.asked[0]?.closed
})

t.test('an answer that does not begin is given up, and asked for again', async (t) => {
  const server = await startScript(t, () => undefined, say(`${run}${done('1-2')}`))
  const reply = clientOf(server.url, { limits: { answerMs: 100 } }).chat.send({ message: 'Hello' })
  t.same(waits(await readAll(reply)), ['stalled'])
  await server.asked[0]?.closed
})

t.test('an event without end, and one that is not JSON, are a broken connection', async (t) => {
  const server = await startScript(
    t,
    say(`${run}${delta('1-2', 0, 'a')}event: delta\ndata: {"part"\nid: 1-3\n\n`, 'open'),
    say(`event: delta\ndata: "${'x'.repeat(1000)}`, 'open'),
    say('data:\n'.repeat(600), 'open'),
    say(done('1-3')),
  )
  const events = await readAll(clientOf(server.url, { limits: { eventCharsMax: 500 } }).chat.send({ message: 'Hello' }))
  t.same(waits(events), ['cut', 'cut', 'cut'])
  t.same(cursors(server.asked), [undefined, '1-2', '1-2', '1-2'])
})

for (const [name, leave] of [
  ['leaving the loop', undefined],
  ['close', (reply: Reply) => reply.close()],
] as const) {
  t.test(`${name} closes the connection, and asks nothing more`, async (t) => {
    const server = await startScript(t, say(`${run}${delta('1-2', 0, 'a')}`, 'open'))
    const reply = clientOf(server.url).chat.send({ message: 'Hello' })
    for await (const { type } of reply) {
      if (type !== 'delta') continue
      if (leave === undefined) break
      leave(reply)
    }
    await server.asked[0]?.closed
    await t.rejects(reply.done, { message: 'The reply was left before its end.' })
    t.same([server.asked.length, reply.text, reply.cursor], [1, 'a', '1-2'])
  })
}

t.test('close also ends a wait for bytes, and a reply that nobody has iterated', async (t) => {
  const server = await startScript(t, say(run, 'open'), say(run, 'open'))
  const client = clientOf(server.url)
  const waiting = client.chat.send({ message: 'Hello' })
  await waiting.accepted
  setTimeout(() => waiting.close())
  t.equal((await readAll(waiting)).at(-1)?.type, 'run')
  const alone = client.chat.send({ message: 'Hello' })
  await alone.accepted
  alone.close()
  await Promise.all(server.asked.map(({ closed }) => closed))
  await t.rejects(alone.done, { message: 'The reply was left before its end.' })
})

t.test('a reply that nobody reads lets its connection go, and is all there for whoever reads it later', async (t) => {
  const server = await startScript(
    t,
    say(`${run}${delta('1-2', 0, 'a')}`, 'open'),
    say(`${delta('1-2', 0, 'ab')}${done('1-3')}`),
  )
  const reply = clientOf(server.url, { limits: { unreadMs: 20 } }).chat.send({ message: 'Hello' })
  await reply.accepted
  await server.asked[0]?.closed
  const events = await readAll(reply)
  t.equal(joined(events), 'ab')
  t.same(waits(events), ['cut'])

  // Whoever reads slowly reads all the same.
  const slow = await startScript(t, say(`${run}${delta('1-2', 0, 'a')}${done('1-3')}`))
  for await (const { type } of clientOf(slow.url, { limits: { unreadMs: 20 } }).chat.send({ message: 'Hello' })) {
    if (type === 'run') await new Promise((resolve) => setTimeout(resolve, 60))
  }
  t.equal(slow.asked.length, 1)
})

t.test("the caller's signal ends it with its reason, while it sends, waits for bytes, or waits", async (t) => {
  const reason = new Error('enough')
  for (const step of [() => undefined, say(run, 'open'), drop]) {
    const server = await startScript(t, step)
    const abort = new AbortController()
    const slow = { backOffFirstMs: 60_000, backOffMaxMs: 60_000 }
    const reply = clientOf(server.url, { limits: slow }).chat.send({ message: 'Hello' }, { signal: abort.signal })
    const read = readAll(reply)
    await server.request(0)
    setTimeout(() => abort.abort(reason), 10)
    await t.rejects(read, reason)
    await t.rejects(reply.done, reason)
  }
  const early = clientOf('http://127.0.0.1:9').chat.send({ message: 'Hello' }, { signal: AbortSignal.abort(reason) })
  await t.rejects(early.accepted, reason)
})

t.test('a reply is iterated once', async (t) => {
  const server = await startScript(t, say(`${run}${done('1-2')}`))
  const reply = clientOf(server.url).chat.send({ message: 'Hello' })
  await readAll(reply)
  await t.rejects(readAll(reply), { message: 'A reply is iterated once.' })
})

t.test('stop asks the gateway, again when there is no answer, and the end comes as an event', async (t) => {
  let stopped: (() => void) | undefined
  const server = await startScript(
    t,
    (response, asked) => {
      say(`${run}${delta('1-2', 0, 'a')}`, 'open')(response, asked)
      stopped = () => response.end(done('1-3', 'stopped'))
    },
    drop,
    (response, asked) => {
      answer(200, {})(response, asked)
      stopped?.()
    },
  )
  const reply = clientOf(server.url).chat.send({ message: 'Hello' })
  const read = readAll(reply)
  await reply.stop()
  t.match((await read).at(-1), { type: 'done', data: { status: 'stopped' } })
  t.same(
    server.asked.slice(1).map(({ path }) => path),
    [`/api/v1/runs/${ids.run_id}/stop`, `/api/v1/runs/${ids.run_id}/stop`],
  )
})

t.test('regenerate and edit ask for a stream, under a key', async (t) => {
  const whole = say(`${run}${done('1-2')}`)
  const server = await startScript(t, whole, whole)
  const { chat } = clientOf(server.url)
  await chat.regenerate('m1', { mode: 'quality' }).done
  await chat.edit('m2', { message: 'Other words', client_message_id: 'mine' }).done
  const [regenerated, edited] = server.asked
  t.equal(regenerated?.path, '/api/v1/messages/m1/regenerate')
  t.match(JSON.parse(regenerated?.body ?? ''), { mode: 'quality', client_message_id: /./ })
  t.equal(edited?.path, '/api/v1/messages/m2/edit')
  t.same(JSON.parse(edited?.body ?? ''), { message: 'Other words', client_message_id: 'mine' })
  t.same(
    server.asked.map(({ headers }) => headers.accept),
    ['text/event-stream', 'text/event-stream'],
  )
})
