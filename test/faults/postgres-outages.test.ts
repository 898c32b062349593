/**
 * A Postgres of the test's own that is killed, frozen and cut off: under a reply that runs, at the moment of its commit,
 * and for longer than a lease, with one gateway and with two. Whatever the outage, the reply that was shown is the one
 * that is stored, once, and nobody takes over what a living process makes.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import postgres from 'postgres'
import tap, { type Test, test } from 'tap'
import { begin, createGate, type FakeUpstream, say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { type Client, createClient, isDelta, isDone, type Stream, shownText } from '../support/client.ts'
import { type ClusterGateway, openServer, startCluster, through } from '../support/cluster.ts'
import { databases } from '../support/database.ts'
import { startGateway, untilReady } from '../support/gateway.ts'
import { startProxy } from '../support/proxy.ts'
import { createRandom } from '../support/random.ts'
import { trialsOf } from '../support/trials.ts'

const skip = databases().includes('postgres') ? false : 'TEST_EMBEDDED_ONLY=1: no Postgres'
/** A new message gets its 503 within this. */
const refusalMsMax = 6000
const restartMs = 30_000
const frozenMs = 10_000
const blackholeMs = 20_000
const healedMsMax = 2000
/** Longer than a lease. */
const outageMs = 15_000
/** One process finds its database again so much later than the other. */
const laggardMs = 3000
/** From the end of the outage: the statements that hang have to end, and a commit may have just begun a pause. */
const doneMsMax = 10_000
/** A lease, the time that the others are given to renew theirs, and the looks between. */
const takeoverMsMax = 20_000

// Most of their time is waiting for limits to be reached.
tap.jobs = 4

const restart = (server: { restart(signal: AbortSignal): Promise<void> }) =>
  server.restart(AbortSignal.timeout(restartMs))
const sessionOf = (stream: Stream) => `/api/v1/sessions/${stream.headers.get('x-session-id')}`

async function startUpstream(t: Test): Promise<FakeUpstream> {
  const upstream = await startFakeUpstream()
  t.teardown(() => upstream.close())
  return upstream
}

/** Says one half, and the other when the gate is opened. */
function halves(upstream: FakeUpstream): { open(): void } {
  const gate = createGate()
  upstream.answer(async function* () {
    yield* begin({ text: 'Before' })
    await gate.opened
    yield* say({ text: ' and after' })
  })
  return gate
}

/** What has to be true of a reply of `halves`, whatever happened on the way. */
async function checkWhole(t: Test, client: Client, stream: Stream): Promise<void> {
  t.equal(await stream.ended, 'clean')
  t.equal(shownText(stream.received), 'Before and after')
  t.same(
    stream.received.filter(isDone).map(({ data }) => data.status),
    ['completed'],
    'done once',
  )
  const messages = await answered(() => client.get(`${sessionOf(stream)}/messages`))
  t.same(
    messages.body.data.map(({ content, status }: { content: string; status: string }) => [content, status]),
    [
      ['Hello', 'completed'],
      ['Before and after', 'completed'],
    ],
  )
  const session = await answered(() => client.get(sessionOf(stream)))
  t.match(
    session.body,
    { status: 'completed', message_count: 2, total_tokens: 10, active_run_id: null },
    'counted once',
  )
}

interface Backend {
  readonly pid: number
  readonly state: string
}

/** Asks until the answer is no 503. */
async function answered<T extends { readonly status: number }>(ask: () => Promise<T>): Promise<T> {
  for (;;) {
    const answer = await ask()
    if (answer.status !== 503) return answer
    await sleep(20)
  }
}

for (const phase of ['before the first word', 'in mid-stream'] as const) {
  test(`row 16: Postgres is killed ${phase} and started again`, { skip }, async (t) => {
    const upstream = await startUpstream(t)
    const server = await openServer(t, 'postgres')
    const gateway = await startGateway(t, { env: { DATABASE_URL: server.url, OPENAI_BASE_URL: upstream.url } })
    const client = createClient(gateway.url)
    const silence = createGate()
    const gate = createGate()
    upstream.answer(async function* () {
      if (phase === 'before the first word') await silence.opened
      yield* begin({ text: 'Before' })
      await gate.opened
      yield* say({ text: ' and after' })
    })
    const stream = await client.send({ message: 'Hello' })
    if (phase === 'in mid-stream') await stream.until(isDelta)
    else await upstream.call(0)
    await server.crash()
    silence.open()
    gate.open()
    await stream.until(({ data }) => data.text?.includes('after') === true)
    t.notOk(stream.received.some(isDone), 'it goes on, and is not called stored')
    const refused = await client.post('/api/v1/chat/stream', { message: 'Another' })
    t.match(refused, { status: 503, body: { code: 'db_unavailable' } })
    t.equal((await client.get('/health/ready')).status, 503)
    await restart(server)
    const backAt = performance.now()
    await stream.until(isDone)
    t.comment(`done ${Math.round(performance.now() - backAt)} ms after Postgres was back`)
    await checkWhole(t, client, stream)
    t.equal(upstream.calls.length, 1)
  })
}

test('row 17: Postgres is killed during the commit', { skip }, async (t) => {
  const upstream = await startUpstream(t)
  const server = await openServer(t, 'postgres')
  const proxy = await startProxy(t, new URL(server.url))
  // No checkpoints: the commit is the only statement on its way.
  const env = { DATABASE_URL: through(server.url, proxy), OPENAI_BASE_URL: upstream.url, CHECKPOINT_MS: '60000' }
  const gateway = await startGateway(t, { env })
  const client = createClient(gateway.url)
  const random = createRandom(17)

  /** Ends a reply, has Postgres killed somewhere around its commit, and sees that it is stored and said once. */
  async function trial(t: Test, kill: (gate: { open(): void }, stream: Stream) => Promise<void>): Promise<void> {
    const gate = halves(upstream)
    const stream = await answered(() => client.send({ message: 'Hello' }))
    await stream.until(isDelta)
    await kill(gate, stream)
    await restart(server)
    await checkWhole(t, client, stream)
  }

  await t.test('before it has happened: it is made again', (t) =>
    trial(t, async (gate, stream) => {
      const sql = postgres(server.url, { max: 1, onnotice: () => undefined })
      const lock = await sql.reserve()
      await lock`begin`
      await lock`select id from chat_runs where id = ${stream.headers.get('x-run-id')} for update`
      gate.open()
      await untilOneWaits(server.url)
      await server.crash()
      await sql.end({ timeout: 0 })
    }),
  )

  await t.test('after it has happened, and before the answer: it is read back', (t) =>
    trial(t, async (gate) => {
      const { lost } = proxy.loseAnswerTo('completed')
      gate.open()
      await lost
      await server.crash()
    }),
  )

  for (let n = 1; n <= trialsOf(3); n += 1) {
    const afterMs = random.integer(12)
    await t.test(`at some moment, trial ${n}: ${afterMs} ms after the last word`, (t) =>
      trial(t, async (gate) => {
        gate.open()
        await sleep(afterMs)
        await server.crash()
      }),
    )
  }
})

test('row 19: the backends of a gateway are frozen for ten seconds', { skip }, async (t) => {
  const upstream = await startUpstream(t)
  const server = await openServer(t, 'postgres')
  const gateway = await startGateway(t, {
    env: { DATABASE_URL: server.url, OPENAI_BASE_URL: upstream.url, DATABASE_POOL: '4' },
  })
  const client = createClient(gateway.url)
  const gate = halves(upstream)
  const stream = await client.send({ message: 'Hello' })
  await stream.until(isDelta)
  // All places of the pool are taken once, so that there is no connection that was not there at the freeze.
  await Promise.all(Array.from({ length: 8 }, () => client.get('/api/v1/sessions')))
  const sql = postgres(server.url, { max: 1, onnotice: () => undefined })
  t.teardown(() => sql.end({ timeout: 1 }))
  const backends = await freezeIdle(t, sql)
  const frozenAt = performance.now()
  gate.open()
  const body = { message: 'Another', client_message_id: 'frozen' }
  upstream.answer(() => say({ text: 'Another reply' }))
  const refused = await client.post('/api/v1/chat/stream', body)
  const refusedMs = performance.now() - frozenAt
  t.match(refused, { status: 503, body: { code: 'db_unavailable' } })
  t.ok(refusedMs < refusalMsMax, 'refused in time')
  t.equal(shownText(stream.received), 'Before and after', 'the reply went on')
  const repeat = await answered(() => client.send(body))
  t.equal(await repeat.ended, 'clean')
  await stream.until(isDone)
  const doneMs = performance.now() - frozenAt
  t.ok(doneMs < frozenMs, 'other backends have done the work meanwhile')
  await sleep(Math.max(0, frozenMs - doneMs))
  // Now the old ones do what they were asked ten seconds ago.
  signalAll(backends, 'SIGCONT')
  await untilGone(sql, backends)
  await checkWhole(t, client, stream)
  t.equal(shownText(repeat.received), 'Another reply')
  const [row] = await sql`
    select count(*)::int as runs, count(*) filter (where status = 'completed')::int as completed from chat_runs`
  t.same(row, { runs: 2, completed: 2 }, 'the late acceptance found its key')
  t.equal(upstream.calls.length, 2)
  t.comment(`refused after ${Math.round(refusedMs)} ms, done after ${Math.round(doneMs)} ms`)
})

test('row 20: no byte comes through to Postgres for twenty seconds', { skip }, async (t) => {
  const upstream = await startUpstream(t)
  const server = await openServer(t, 'postgres')
  const proxy = await startProxy(t, new URL(server.url))
  const gateway = await startGateway(t, {
    env: { DATABASE_URL: through(server.url, proxy), OPENAI_BASE_URL: upstream.url, DATABASE_POOL: '4' },
  })
  const client = createClient(gateway.url)
  const gate = halves(upstream)
  const stream = await client.send({ message: 'Hello' })
  await stream.until(isDelta)
  proxy.set('hang')
  const hungAt = performance.now()
  gate.open()
  const refusals: number[] = []
  let healedAt = Number.POSITIVE_INFINITY
  let succeededAt = Number.POSITIVE_INFINITY
  /** One of several people who go on asking. */
  async function ask(): Promise<void> {
    while (succeededAt === Number.POSITIVE_INFINITY) {
      const askedAt = performance.now()
      const { status } = await client.get('/api/v1/sessions')
      const now = performance.now()
      if (status === 200 && askedAt > hungAt) succeededAt = Math.min(succeededAt, now)
      else if (status === 503) refusals.push(now - askedAt)
      else t.fail(`status ${status}`)
      await sleep(100)
    }
  }
  const asking = Array.from({ length: 10 }, ask)
  await sleep(blackholeMs)
  proxy.set('pass')
  healedAt = performance.now()
  await Promise.all(asking)
  const healedMs = succeededAt - healedAt
  t.ok(healedMs > 0, 'nothing had come through')
  t.ok(healedMs < healedMsMax, 'the first success')
  t.ok(Math.max(...refusals) < refusalMsMax, 'each refusal')
  await stream.until(isDone)
  const doneMs = performance.now() - healedAt
  t.ok(doneMs < doneMsMax)
  await checkWhole(t, client, stream)
  t.comment(
    `${refusals.length} refusals, the slowest after ${Math.round(Math.max(...refusals))} ms; first success ${Math.round(healedMs)} ms after the end, done ${Math.round(doneMs)} ms`,
  )
})

for (const outage of ['killed', 'cut off'] as const) {
  test(`rows 16 and 20: Postgres is ${outage} for longer than a lease, under two gateways`, { skip }, async (t) => {
    const cluster = await startCluster(t, { gateways: 2, redis: false })
    const [one, two] = cluster.gateways
    if (one === undefined || two === undefined) throw new Error('two gateways were asked for')
    const client = createClient(one.url)
    const { speaker } = cluster
    for (const key of ['living', 'dying']) speaker.plan(key, { words: 40, paceMs: 5, holdAfterWords: 20 })
    await client.get('/api/v1/sessions')
    const stream = await client.send({ message: 'living', client_message_id: 'living' })
    await stream.until(({ data }) => data.text?.includes('19') === true)
    const events = `/api/v1/runs/${stream.headers.get('x-run-id')}/events`
    const other = await createClient(two.url, client.identity).watch(events)
    await other.until(isDelta)

    const strike = async () => {
      if (outage === 'killed') await cluster.postgres.crash()
      else for (const { database } of cluster.gateways) database?.set('hang')
    }
    const heal = async (gateway: ClusterGateway) => {
      if (outage === 'killed' && gateway === two) await restart(cluster.postgres)
      gateway.database?.set('pass')
    }
    await strike()
    // The way of the first one stays closed for a little longer: the second sees a lease that ran out long ago.
    one.database?.set('hang')
    await sleep(outageMs)
    await heal(two)
    await untilReady(two.url)
    await sleep(laggardMs)
    await heal(one)
    speaker.release('living')
    await stream.until(({ data }) => data.text?.includes('39') === true)
    const healedAt = performance.now()
    t.equal(await stream.ended, 'clean')
    const doneMs = performance.now() - healedAt
    t.match(stream.received.at(-1)?.data, { status: 'completed' }, 'nobody has interrupted it')
    t.ok(doneMs < doneMsMax)
    t.equal(await other.ended, 'clean')
    t.match(other.received.at(-1)?.data, { status: 'completed' })
    const said = speaker.said.find(({ key }) => key === 'living')?.text
    t.equal(shownText(stream.received), said)
    t.equal(shownText(other.received), said)
    const run = (await answered(() => client.get(events.replace('/events', '')))).body
    t.match(run, { status: 'completed', generation: 1, attempts: 1 })
    t.equal(speaker.said.length, 1)
    t.comment(`done ${Math.round(doneMs)} ms after the end of ${outageMs / 1000} s`)

    t.same(cluster.complaints(), [])
    // Once is enough: a killed process does not see its outage.
    if (outage === 'cut off') return
    await t.test('a twin: a run whose process dies in the outage is still taken over', async (t) => {
      const doomed = await client.send({ message: 'dying', client_message_id: 'dying' })
      await doomed.until(({ data }) => data.text?.includes('19') === true)
      await sleep(1500) // For a checkpoint: CHECKPOINT_MS of the cluster is 1 s.
      await strike()
      await one.kill()
      await heal(two)
      const from = performance.now()
      const survivor = createClient(two.url, client.identity)
      const path = `/api/v1/runs/${doomed.headers.get('x-run-id')}/events`
      const resumed = await answered(() => survivor.watch(path))
      t.equal(await resumed.ended, 'clean')
      const tookMs = performance.now() - from
      t.match(resumed.received.at(-1)?.data, { status: 'interrupted' })
      t.ok(tookMs < takeoverMsMax)
      t.comment(`taken over after ${Math.round(tookMs)} ms`)
      t.same(cluster.complaints(), [])
    })
  })
}

/** Resolves when a statement waits for a lock. */
async function untilOneWaits(url: string): Promise<void> {
  const sql = postgres(url, { max: 1, onnotice: () => undefined })
  try {
    for (;;) {
      const found = await sql`
        select 1 from pg_stat_activity where wait_event_type = 'Lock' and application_name = 'verbatim'`
      if (found.length > 0) return
      await sleep(10)
    }
  } finally {
    await sql.end({ timeout: 1 })
  }
}

/**
 * Freezes all backends of the gateway, and lets them go on when the test ends. Between two statements: one that is frozen
 * within may hold a lock of the server's own, behind which no other backend gets on, and that is another fault (row 20).
 */
async function freezeIdle(t: Test, sql: postgres.Sql): Promise<readonly Backend[]> {
  const read = () => sql<Backend[]>`select pid, state from pg_stat_activity where application_name = 'verbatim'`
  let frozen: readonly Backend[] = []
  // Before any is frozen: also when the question behind that fails, none may stay so.
  t.teardown(() => signalAll(frozen, 'SIGCONT'))
  for (;;) {
    const backends = await read()
    if (backends.length > 1 && backends.every(isIdle)) {
      frozen = backends
      signalAll(frozen, 'SIGSTOP')
      if ((await read()).every(isIdle)) return frozen
      signalAll(frozen, 'SIGCONT')
    }
    await sleep(1)
  }
}

const isIdle = ({ state }: Backend): boolean => state === 'idle'

function signalAll(backends: readonly Backend[], name: NodeJS.Signals): void {
  for (const { pid } of backends) {
    try {
      process.kill(pid, name)
    } catch {
      // ESRCH: it has ended, which is what happens to it afterwards.
    }
  }
}

/** Resolves when these backends have ended: what they were asked is done, and their clients are gone. */
async function untilGone(sql: postgres.Sql, backends: readonly { readonly pid: number }[]): Promise<void> {
  const pids = backends.map(({ pid }) => pid)
  while ((await sql`select 1 from pg_stat_activity where pid = any(${pids})`).length > 0) await sleep(20)
}
