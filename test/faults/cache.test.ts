/**
 * Redis and Postgres away, one at a time, under reads that go through copies: Redis is never missed, and slows down nobody
 * but those who were asking when it began to hang; Postgres is replaced by what was known last, for its owner and nobody else.
 */
import { type Test, test } from 'tap'
import { say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { createClient } from '../support/client.ts'
import { openServer, through } from '../support/cluster.ts'
import { countReads, untilSo } from '../support/copies.ts'
import { createTestDatabase } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'
import { busyMs, skipFaults } from '../support/limits.ts'
import { startProxy } from '../support/proxy.ts'
import { connectRedis } from '../support/redis.ts'

const sessions = '/api/v1/sessions'
const restartMs = 30_000
/** What a Redis that hangs may cost whoever asks first. */
const hangMsMax = 600
const readsPerFault = 20

test('reads through copies while stores are away', { skip: skipFaults() }, async (t) => {
  const upstream = await startFakeUpstream({ script: () => say({ text: 'Reply' }) })
  t.teardown(() => upstream.close())
  const server = await openServer(t, 'redis')
  const { url } = await createTestDatabase(t)
  const [redis, postgres] = [await startProxy(t, new URL(server.url)), await startProxy(t, new URL(url))]
  redis.set('refuse')
  const reads = countReads()
  const gateway = await startGateway(t, {
    env: {
      DATABASE_URL: through(url, postgres),
      DATABASE_POOL: '3',
      REDIS_URL: through(server.url, redis),
      OPENAI_BASE_URL: upstream.url,
    },
    countCacheRead: reads.count,
  })
  const client = createClient(gateway.url)
  await client.get(sessions)
  const stranger = createClient(gateway.url)
  await stranger.get(sessions)
  await client.post(sessions, { title: 'Kept' })
  const spoken = (await client.post('/api/v1/chat/message', { message: 'Question' })).body.session.id as string
  const history = await client.get(`${sessions}/${spoken}/messages`)
  const list = await client.get(sessions)
  const isHit = async () => {
    reads.take()
    await client.get(`${sessions}/${spoken}/messages`)
    return reads.take().includes('history hit')
  }

  /** Reads one after the other. @returns what each took, in milliseconds */
  async function readMany(t: Test): Promise<number[]> {
    const took: number[] = []
    for (let read = 0; read < readsPerFault; read += 1) {
      const startedAt = performance.now()
      const answer = await client.get(`${sessions}/${spoken}/messages`)
      took.push(performance.now() - startedAt)
      t.strictSame(answer.body, history.body)
    }
    t.strictSame((await client.get(sessions)).body, list.body)
    return took
  }

  await t.test('Redis is not there at the start: everything is as without it', async (t) => {
    await readMany(t)
    t.notOk(reads.take().includes('history hit'))
    const ready = await client.get('/health/ready')
    t.match(ready, { status: 200, body: { ok: true, degraded: true } })
  })

  await t.test('when it comes, histories are served from it', async (t) => {
    redis.set('pass')
    await untilSo(isHit, 'a hit')
    await readMany(t)
  })

  for (const mode of ['mute', 'hang'] as const) {
    await t.test(
      `Redis is ${mode === 'mute' ? 'mute' : 'frozen'}: one read waits for it, and the others do not`,
      async (t) => {
        await untilSo(isHit, 'a hit')
        redis.set(mode)
        const took = await readMany(t)
        const slow = took.filter((ms) => ms > hangMsMax / 2).length
        t.comment(`the slowest took ${Math.round(Math.max(...took))} ms`)
        t.ok(Math.max(...took) < hangMsMax + busyMs)
        t.ok(slow < readsPerFault / 2, `${slow} slow ones`)
        redis.set('pass')
      },
    )
  }

  await t.test('Redis is killed, and comes back empty', async (t) => {
    await untilSo(isHit, 'a hit')
    await server.crash()
    await readMany(t)
    await server.restart(AbortSignal.timeout(restartMs))
    await untilSo(isHit, 'a hit')
    await readMany(t)
  })

  await t.test('Postgres is away: what was known last is shown, and says so', async (t) => {
    const own = connectRedis(t, server.url)
    // Redis was empty: a session is known again when something happens to it.
    const again = (await client.post(sessions, { title: 'Known' })).body
    await untilSo(async () => (await own.exists(`vb:snap:${again.id}`)) === 1, 'its snapshot')
    const stored = (await client.get(`${sessions}/${again.id}`)).body
    postgres.set('refuse')

    t.strictSame((await client.get(`${sessions}/${spoken}/messages`)).body, { ...history.body, degraded: true })
    t.strictSame((await client.get(`${sessions}/${again.id}`)).body, { ...stored, degraded: true })
    const known = await client.get(`${sessions}?status=created&limit=1`)
    t.match(known, { status: 200, body: { degraded: true, data: [{ id: again.id, title: 'Known' }] } })
    const none = await client.get(`${sessions}?status=failed`)
    t.match(none, { status: 200, body: { degraded: true, data: [] } })

    const paths = [sessions, `${sessions}/${again.id}`, `${sessions}/${spoken}/messages`]
    const others = [stranger, createClient(gateway.url)]
    const refused = await Promise.all(others.flatMap((other) => paths.map((path) => other.get(path))))
    for (const answer of refused) t.match(answer, { status: 503, body: { code: 'db_unavailable' } }, 'nobody else')

    redis.set('refuse')
    for (const answer of await Promise.all(paths.map((path) => client.get(path)))) {
      t.match(answer, { status: 503, body: { code: 'db_unavailable' } }, 'both are away')
    }
    redis.set('pass')
    postgres.set('pass')
    await untilSo(async () => (await client.get(sessions)).status === 200, 'Postgres')
    t.strictSame((await client.get(`${sessions}/${again.id}`)).body, stored)
    t.strictSame((await client.get(`${sessions}/${spoken}/messages`)).body, history.body)
    t.notOk('degraded' in (await client.get(sessions)).body)
  })
})
