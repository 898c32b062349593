/**
 * Postgres away or busy: at start, when a message comes in, in mid-stream, between a commit and its answer; all of its
 * connections taken. A proxy stands in between, so the server itself stays as it is; postgres-outages.test.ts has one of its
 * own to kill, and in storm-backends.test.ts its backends are killed ten times a second.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import postgres from 'postgres'
import tap, { test } from 'tap'
import { begin, chunk, createGate, doneMarker, say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { buildApp } from '../../src/app.ts'
import { readConfig } from '../../src/config.ts'
import { createClient, isDelta, isDone, shownText } from '../support/client.ts'
import { through } from '../support/cluster.ts'
import { createTestDatabase, databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'
import { startProxy } from '../support/proxy.ts'

/** A new message gets its 503 within this. */
const refusalMsMax = 6000
/** From the moment Postgres answers again to a gateway that is ready. */
const readyMsMax = 5000
/** Longest that a reply which has ended waits for its commit while others hold the pool. */
const doneMsMax = 2000

// Nothing here is about the embedded database, which cannot be away.
const skip = databases().includes('postgres') ? false : 'TEST_EMBEDDED_ONLY=1: no Postgres'

// Most of their time is waiting for limits to be reached.
tap.jobs = 4

for (const mode of ['refuse', 'hang'] as const) {
  test(`row 14, ${mode}: a gateway whose Postgres is not there is live and not ready, and ready when it comes`, {
    skip,
  }, async (t) => {
    const { url } = await createTestDatabase(t)
    const proxy = await startProxy(t, new URL(url))
    proxy.set(mode)
    const config = readConfig({ DATABASE_URL: through(url, proxy), LOG_LEVEL: 'silent', DRAIN_MS: '0' })
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
    const backAt = performance.now()
    await app.ready
    const tookMs = performance.now() - backAt
    t.ok(tookMs < readyMsMax, 'in time')
    t.comment(`${mode}: ready ${Math.round(tookMs)} ms after Postgres was there`)
    t.equal((await client.get('/health/ready')).status, 200)
    t.match(await client.get('/health/db'), { status: 200, body: { ok: true } })
  })
}

test('with Postgres in place', { skip }, async (t) => {
  const upstream = await startFakeUpstream()
  t.teardown(() => upstream.close())
  const { url } = await createTestDatabase(t)
  const proxy = await startProxy(t, new URL(url))
  const env = { DATABASE_URL: through(url, proxy), OPENAI_BASE_URL: upstream.url, DATABASE_POOL: '4' }
  const gateway = await startGateway(t, { database: 'postgres', env })

  for (const mode of ['refuse', 'hang'] as const) {
    await t.test(
      `row 15, ${mode}: a new message gets 503, no upstream call is made, and the repeat is taken once`,
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
        t.ok(refused.headers.has('retry-after'))
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

    await t.test(`rows 16 and 20, ${mode}: a running reply goes on, and done waits until it is stored`, async (t) => {
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

  await t.test('row 17: when the answer to the commit is lost, it is read back, and done is said once', async (t) => {
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

  await t.test(
    'row 17: when the answer to the acceptance is lost, the repeat finds the run and makes it',
    async (t) => {
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
    },
  )
})

test('row 22: while twenty slow requests hold the pool', { skip }, async (t) => {
  const upstream = await startFakeUpstream()
  t.teardown(() => upstream.close())
  const { url } = await createTestDatabase(t)
  const gateway = await startGateway(t, {
    env: { DATABASE_URL: url, OPENAI_BASE_URL: upstream.url, DATABASE_POOL: '5', CHECKPOINT_MS: '100' },
  })
  const sql = postgres(url, { max: 2, onnotice: () => undefined })
  t.teardown(() => sql.end({ timeout: 1 }))

  await t.test('requests get 503 within the limit of the wait, and replies go on and end at once', async (t) => {
    const client = createClient(gateway.url)
    const crowd = createClient(gateway.url)
    upstream.answer(() => say({ text: 'First' }))
    await client.get('/api/v1/sessions')
    const opened = await crowd.post('/api/v1/chat/message', { message: 'Hello' })
    const hot = opened.body.session.id
    const gate = createGate()
    upstream.answer(async function* () {
      yield* begin({ text: 'Before' })
      await gate.opened
      yield* say({ text: ' and after' })
    })
    const streams = await Promise.all([1, 2, 3].map((n) => client.send({ message: `Reply ${n}` })))
    await Promise.all(streams.map((stream) => stream.until(isDelta)))

    const lock = await sql.reserve()
    await lock`begin`
    // Every message to this session waits for this row, in a connection of the pool.
    await lock`select id from chat_sessions where id = ${hot} for update`
    const askedAt = performance.now()
    const slow = Array.from({ length: 20 }, (_, n) =>
      crowd.post('/api/v1/chat/message', { message: `Slow ${n}`, session_id: hot }).then((answer) => ({
        answer,
        tookMs: performance.now() - askedAt,
      })),
    )
    await untilLocked(sql, 4)
    const doneFrom = performance.now()
    gate.open()
    t.same(await Promise.all(streams.map(({ ended }) => ended)), ['clean', 'clean', 'clean'])
    const doneMs = performance.now() - doneFrom
    t.ok(doneMs < doneMsMax, `done after ${Math.round(doneMs)} ms`)
    for (const stream of streams) {
      t.equal(shownText(stream.received), 'Before and after')
      t.match(stream.received.at(-1)?.data, { status: 'completed' })
    }
    const refused = await Promise.all(slow)
    for (const { answer } of refused) t.match(answer, { status: 503, body: { code: 'db_unavailable' } })
    const slowest = Math.max(...refused.map(({ tookMs }) => tookMs))
    t.ok(slowest < refusalMsMax, 'in time')
    t.comment(`done ${Math.round(doneMs)} ms after the end, the slowest of 20 refusals after ${Math.round(slowest)} ms`)
    await lock`rollback`
    lock.release()
    t.equal((await untilTaken(() => crowd.get('/api/v1/sessions'))).status, 200, 'afterwards all is as before')
    t.equal((await client.messages(streams[0]?.headers.get('x-session-id') ?? ''))[1].content, 'Before and after')
  })

  await t.test('with a whole table locked, replies go on, and end well when it is free', async (t) => {
    const client = createClient(gateway.url)
    await client.get('/api/v1/sessions')
    const gate = createGate()
    upstream.answer(async function* () {
      yield* begin({ text: 'Before' })
      await gate.opened
      yield* say({ text: ' and after' })
    })
    const stream = await client.send({ message: 'Go on' })
    await stream.until(isDelta)
    const lock = await sql.reserve()
    await lock`begin`
    await lock`lock table chat_sessions in access exclusive mode`
    const askedAt = performance.now()
    const slow = Array.from({ length: 20 }, () => client.get('/api/v1/sessions'))
    gate.open()
    await stream.until(({ data }) => data.text?.includes('after') === true)
    const refused = await Promise.all(slow)
    for (const answer of refused) t.match(answer, { status: 503, body: { code: 'db_unavailable' } })
    t.ok(performance.now() - askedAt < refusalMsMax, 'in time')
    t.notOk(stream.received.some(isDone), 'not said before it is stored')
    await lock`rollback`
    lock.release()
    t.equal(await stream.ended, 'clean')
    t.match(stream.received.at(-1)?.data, { status: 'completed' })
    t.equal(stream.received.filter(isDone).length, 1)
    const [, reply] = await client.messages(stream.headers.get('x-session-id') ?? '')
    t.match(reply, { content: 'Before and after', status: 'completed' })
  })
})

/** Resolves when so many statements wait for a lock. */
async function untilLocked(sql: postgres.Sql, count: number): Promise<void> {
  for (;;) {
    const [row] = await sql<{ waiting: number }[]>`
      select count(*)::int as waiting from pg_stat_activity
      where wait_event_type = 'Lock' and datname = current_database() and application_name = 'verbatim'`
    if ((row?.waiting ?? 0) >= count) return
    await sleep(20)
  }
}

/** Connections that hung may fail a first statement after the store is back. */
async function untilTaken<T extends { readonly status: number }>(send: () => Promise<T>): Promise<T> {
  const attemptsMax = 5
  for (let attempt = 1; ; attempt += 1) {
    const stream = await send()
    if (stream.status !== 503 || attempt === attemptsMax) return stream
  }
}
