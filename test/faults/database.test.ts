/**
 * Postgres away: at start, when a message comes in, in mid-stream, and between a commit and its answer. A proxy stands
 * in between, so the server itself stays as it is.
 */
import { test } from 'tap'
import { begin, chunk, createGate, doneMarker, say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { buildApp } from '../../src/app.ts'
import { readConfig } from '../../src/config.ts'
import { createClient, isDelta, isDone, shownText } from '../support/client.ts'
import { createTestDatabase, databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'
import { startProxy } from '../support/proxy.ts'

/** faults: a new message gets its 503 within this. */
const refusalMsMax = 6000

// Nothing here is about the embedded database, which cannot be away.
const skip = databases().includes('postgres') ? false : 'TEST_EMBEDDED_ONLY=1: no Postgres'

for (const mode of ['refuse', 'hang'] as const) {
  test(`${mode}: a gateway whose Postgres is not there is live and not ready, and ready when it comes`, {
    skip,
  }, async (t) => {
    const { url } = await createTestDatabase(t)
    const proxy = await startProxy(t, new URL(url))
    proxy.set(mode)
    const config = readConfig({ DATABASE_URL: through(url, proxy.port), LOG_LEVEL: 'silent', DRAIN_MS: '0' })
    const app = await buildApp(config)
    t.teardown(() => app.close())
    const at = await app.server.listen({ port: 0, host: '127.0.0.1' })
    const client = createClient(at)
    t.equal((await client.get('/health/live')).status, 200)
    t.match(await client.get('/health/ready'), { status: 503, body: { ok: false, state: 'starting' } })
    t.match(await client.get('/health/db'), { status: 503, body: { ok: false } })
    const refused = await client.post('/api/v1/chat/stream', { message: 'Hi' })
    t.match(refused, { status: 503, body: { code: 'db_unavailable', retryable: true } })
    t.ok(refused.headers.has('retry-after'))
    proxy.set('pass')
    await app.ready
    t.equal((await client.get('/health/ready')).status, 200)
    t.match(await client.get('/health/db'), { status: 200, body: { ok: true } })
  })
}

test('with Postgres in place', { skip }, async (t) => {
  const upstream = await startFakeUpstream()
  t.teardown(() => upstream.close())
  const { url } = await createTestDatabase(t)
  const proxy = await startProxy(t, new URL(url))
  const env = { DATABASE_URL: through(url, proxy.port), OPENAI_BASE_URL: upstream.url, DATABASE_POOL: '4' }
  const gateway = await startGateway(t, { database: 'postgres', env })

  for (const mode of ['refuse', 'hang'] as const) {
    await t.test(
      `${mode}: a new message gets 503, no upstream call is made, and the repeat is taken once`,
      async (t) => {
        const client = createClient(gateway.url)
        await client.get('/api/v1/sessions')
        upstream.answer(() => say({ text: 'Back again' }))
        const calls = upstream.calls.length
        proxy.set(mode)
        const askedAt = performance.now()
        const body = { message: 'Hello?', client_message_id: `away-${mode}` }
        const refused = await client.post('/api/v1/chat/stream', body)
        const tookMs = performance.now() - askedAt
        t.match(refused, { status: 503, body: { code: 'db_unavailable' } })
        t.ok(tookMs < refusalMsMax, 'in time')
        t.comment(`${mode}: refused after ${Math.round(tookMs)} ms`)
        t.equal(upstream.calls.length, calls)
        t.equal((await client.get('/health/ready')).status, 503)
        proxy.set('pass')
        const stream = await untilTaken(() => client.send(body))
        t.equal(await stream.ended, 'clean')
        t.equal(shownText(stream.received), 'Back again')
        t.equal(upstream.calls.length, calls + 1)
        t.equal((await client.messages(stream.headers.get('x-session-id') ?? '')).length, 2)
      },
    )

    await t.test(`${mode}: a running reply goes on, and done waits until it is stored`, async (t) => {
      const client = createClient(gateway.url)
      const gate = createGate()
      upstream.answer(async function* () {
        yield* begin({ text: 'Before' })
        await gate.opened
        yield chunk({ content: ' and after' }, 'stop')
        yield doneMarker
      })
      const stream = await client.send({ message: 'Go on' })
      await stream.until(isDelta)
      proxy.set(mode)
      gate.open()
      await stream.until(({ data }) => data.text?.includes('after') === true)
      t.notOk(stream.received.some(isDone), 'it is shown, and not yet done')
      proxy.set('pass')
      t.equal(await stream.ended, 'clean')
      t.equal(stream.received.filter(isDone).length, 1)
      const [, reply] = await client.messages(stream.headers.get('x-session-id') ?? '')
      t.match(reply, { content: 'Before and after', status: 'completed' })
      t.equal(shownText(stream.received), reply.content)
    })
  }

  await t.test('when the answer to the commit is lost, it is read back, and done is said once', async (t) => {
    const client = createClient(gateway.url)
    const gate = createGate()
    upstream.answer(async function* () {
      yield* begin({ text: 'Counted once' })
      await gate.opened
      yield* say({ text: '.' })
    })
    const stream = await client.send({ message: 'Tell me' })
    await stream.until(isDelta)
    // Only the commit has this status among its parameters; checkpoints hold the words too.
    const { lost } = proxy.loseAnswerTo('completed')
    gate.open()
    await lost
    t.equal(await stream.ended, 'clean')
    t.equal(stream.received.filter(isDone).length, 1)
    const session = (await client.get(`/api/v1/sessions/${stream.headers.get('x-session-id')}`)).body
    t.match(session, { status: 'completed', total_tokens: 9, message_count: 2 }, 'counters moved once')
  })

  await t.test('when the answer to the acceptance is lost, the repeat finds the run and makes it', async (t) => {
    const client = createClient(gateway.url)
    await client.get('/api/v1/sessions')
    upstream.answer(() => say({ text: 'Here' }))
    const calls = upstream.calls.length
    const { lost } = proxy.loseAnswerTo('Are you there?')
    const body = { message: 'Are you there?', client_message_id: 'lost-answer' }
    t.match(await client.post('/api/v1/chat/stream', body), { status: 503, body: { code: 'db_unavailable' } })
    await lost
    const stream = await client.send(body)
    t.equal(await stream.ended, 'clean')
    t.equal(shownText(stream.received), 'Here')
    t.equal(upstream.calls.length, calls + 1)
    t.equal((await client.messages(stream.headers.get('x-session-id') ?? '')).length, 2)
  })
})

function through(url: string, port: number): string {
  const proxied = new URL(url)
  proxied.hostname = '127.0.0.1'
  proxied.port = String(port)
  return proxied.href
}

/** Connections that hung may fail a first statement after the store is back. */
async function untilTaken<T extends { readonly status: number }>(send: () => Promise<T>): Promise<T> {
  const attemptsMax = 5
  for (let attempt = 1; ; attempt += 1) {
    const stream = await send()
    if (stream.status !== 503 || attempt === attemptsMax) return stream
  }
}
