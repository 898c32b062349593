/**
 * A process that is late: whatever would begin another reply is refused on every surface before anything of it is stored,
 * and whatever was accepted goes on. In the first test the measure's clock is the test's; in the second the loop is held up.
 */
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { EventSource } from 'eventsource'
import { type Test, test } from 'tap'
import { begin, callTool, createGate, say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { type Answer, createClient, isDelta, isDone, shownText } from '../support/client.ts'
import { type GatewayOptions, startGateway } from '../support/gateway.ts'

async function start(t: Test, options: GatewayOptions) {
  const upstream = await startFakeUpstream()
  t.teardown(() => upstream.close())
  const { env, ...others } = options
  const gateway = await startGateway(t, { env: { OPENAI_BASE_URL: upstream.url, FRAME_MS: '5', ...env }, ...others })
  return { upstream, gateway, client: createClient(gateway.url) }
}

/** A clock for the measure, on which the loop is late, or is not, as the test says. */
function createTurns() {
  let clock = 0
  let tick: (() => void) | undefined
  return {
    now: () => clock,
    every: (_ms: number, run: () => void) => {
      tick = run
      return () => {
        tick = undefined
      }
    },
    turn(ms: number, times: number) {
      for (let n = 0; n < times; n += 1) {
        clock += ms
        tick?.()
      }
    },
  }
}

const user = (content: string) => ({ role: 'user', content })

test('a process that is late refuses new runs on every surface, and goes on with what it has', async (t) => {
  const turns = createTurns()
  const lines: string[] = []
  const { upstream, gateway, client } = await start(t, {
    env: { OVERLOAD_MS: '100', LOG_LEVEL: 'info' },
    logStream: { write: (line) => void lines.push(line) },
    pressure: turns,
  })
  const native = (body: object, extra?: Record<string, string>) => client.post('/api/v1/chat/message', body, extra)

  const first = await native({ message: 'Before' })
  const { session, user_message, message } = first.body
  const background = (await client.post('/api/v1/sessions', { input: 'In the background' })).body
  upstream.answer(() => callTool({ id: 'c1', name: 'look' }))
  const called = await client.send({
    message: 'Look',
    tools: [{ name: 'look', parameters: { type: 'object', properties: {} } }],
  })
  await called.ended
  const gate = createGate()
  upstream.answer(async function* () {
    yield* begin({ text: 'Under ' })
    await gate.opened
    yield* say({ text: 'way' })
  })
  const running = await client.send({ message: 'Go on', client_message_id: 'known' })
  await running.until(isDelta)
  const runId = running.headers.get('x-run-id') ?? ''
  const queued = await client.send({
    message: 'And then',
    session_id: running.headers.get('x-session-id'),
    on_busy: 'queue',
  })
  const count = async () => (await client.get('/api/v1/sessions?limit=100')).body.data.length
  const stored = async () => [await count(), (await client.messages(session.id)).length, upstream.calls.length]
  const before = await stored()

  // A function, so that the twin asks for the very same under keys of its own.
  const asking = (key: string): Readonly<Record<string, () => Promise<Answer>>> => ({
    'POST /api/v1/chat/stream': () => client.post('/api/v1/chat/stream', { message: 'New', client_message_id: key }),
    'POST /api/v1/chat/message': () => native({ message: 'New' }),
    'a message for the queue': () => native({ message: 'New', session_id: session.id, on_busy: 'queue' }),
    'GET /api/v1/chat/stream': () => client.get(`/api/v1/chat/stream?message=New&client_message_id=get-${key}`),
    regenerate: () => client.post(`/api/v1/messages/${message.id}/regenerate`, { on_busy: 'queue' }),
    edit: () => client.post(`/api/v1/messages/${user_message.id}/edit`, { message: 'Else', on_busy: 'queue' }),
    start: () => client.post(`/api/v1/sessions/${background.id}/start`),
    'POST /api/chat': () =>
      client.post('/api/chat', {
        id: `chat-${key}`,
        trigger: 'submit-message',
        messages: [{ id: 'm1', role: 'user', parts: [{ type: 'text', text: 'New' }] }],
      }),
    'POST /v1/chat/completions': () =>
      client.post('/v1/chat/completions', { model: 'balanced', messages: [user('New')] }),
    'POST /v1/responses': () => client.post('/v1/responses', { model: 'balanced', input: 'New' }),
  })

  await t.test('late', async (t) => {
    turns.turn(400, 10)
    for (const [name, ask] of Object.entries(asking(randomUUID()))) {
      const refused = await ask()
      t.equal(refused.status, 503, name)
      t.match(refused.headers.get('retry-after'), /^[2-5]$/, name)
      if (name.includes('/v1/chat/c') || name.includes('/v1/r')) {
        t.match(refused.body, { error: { code: 'overloaded', type: 'server_error' } }, name)
        t.equal(refused.headers.get('x-should-retry'), null, 'their clients repeat it by themselves')
      } else if (name.includes('/api/chat')) t.match(refused.body, /too busy/)
      else t.match(refused.body, { code: 'overloaded', retryable: true }, name)
    }
    t.same(await stored(), before, 'nothing is stored, and nobody was asked')

    const source = new EventSource(`${gateway.url}/api/v1/chat/stream?message=New&client_message_id=native`)
    await once(source as never, 'error')
    t.equal(source.readyState, source.CONNECTING, 'an EventSource is told to come back, and does')
    source.close()

    const repeat = await client.send({ message: 'Go on', client_message_id: 'known' })
    t.equal(repeat.headers.get('x-run-id'), runId, 'a repeat attaches to its run')
    const attached = await client.watch(`/api/v1/runs/${runId}/events`)
    t.equal((await client.get(`/api/v1/runs/${runId}`)).body.status, 'running')
    t.match(await client.get('/health/ready'), { status: 200, body: { ok: true, degraded: true, reason: /late/ } })
    gate.open()
    for (const stream of [running, repeat, attached]) {
      t.match((await stream.until(isDone)).data, { status: 'completed' })
      t.equal(shownText(stream.received), 'Under way')
    }
    t.match((await queued.until(isDone)).data, { status: 'completed' }, 'a message that waited is answered')
    const answered = await native({
      session_id: called.headers.get('x-session-id'),
      tool_results: [{ call_id: 'c1', output: 'seen' }],
    })
    t.match(answered, { status: 200, body: { run: { status: 'completed' } } }, 'a turn that was begun goes on')
    t.equal((await client.post(`/api/v1/runs/${runId}/stop`)).status, 200)

    const metrics = (await client.get('/metrics')).body
    t.match(metrics, /^verbatim_runs_refused_total 11$/m)
    t.ok(Number(/^verbatim_event_loop_lateness_seconds (\S+)$/m.exec(metrics)?.[1]) > 0.1)
  })

  await t.test('a twin: not late any more, it takes all of them', async (t) => {
    turns.turn(20, 500)
    for (const [name, ask] of Object.entries(asking(randomUUID()))) {
      const { status } = await ask()
      t.ok(status === 200 || status === 202, `${name}: ${status}`)
    }
    const ready = await client.get('/health/ready')
    t.match(ready.body, { ok: true, degraded: false })
    const told = lines.map((line) => JSON.parse(line)).filter(({ message }) => message !== 'request')
    t.match(
      told.filter(({ message }) => /late/.test(message)),
      [
        { level: 'warn', late_ms: Number },
        { level: 'info', lasted_ms: Number, refused: 11 },
      ],
    )
    t.notOk(
      told.some(({ code }) => code === 'overloaded'),
      'no line for each',
    )
  })
})

test('a loop that is really held up refuses, shows what runs to its end, and recovers by itself', async (t) => {
  const late = Promise.withResolvers<void>()
  const inTime = Promise.withResolvers<void>()
  const { upstream, client } = await start(t, {
    env: { OVERLOAD_MS: '40', LOG_LEVEL: 'info' },
    logStream: {
      write(line) {
        if (line.includes('is late:')) late.resolve()
        if (line.includes('not late any more')) inTime.resolve()
      },
    },
  })
  const ask = () => client.post('/api/v1/chat/message', { message: 'New' })
  t.equal((await ask()).status, 200, 'a twin: in time, it takes everybody')

  const gate = createGate()
  upstream.answer(async function* () {
    yield* begin({ text: 'Slow ' })
    await gate.opened
    yield* say({ text: 'but sure' })
  })
  const running = await client.send({ message: 'Go on' })
  await running.until(isDelta)
  const holdUp = setInterval(() => {
    for (const until = performance.now() + 150; performance.now() < until; );
  }, 1)
  t.teardown(() => clearInterval(holdUp))
  await late.promise
  // What it takes to ask would take minutes otherwise; the mean is high for a while yet.
  clearInterval(holdUp)
  t.match(await ask(), { status: 503, body: { code: 'overloaded' } })
  gate.open()
  t.match((await running.until(isDone)).data, { status: 'completed' })
  t.equal(shownText(running.received), 'Slow but sure')
  await inTime.promise
  t.equal((await ask()).status, 200)
})
