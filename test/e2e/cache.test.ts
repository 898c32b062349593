/**
 * Two gateways on one Postgres and one Redis, and a third that keeps nothing in Redis: whoever writes and whoever reads, an
 * answer is never older than what was stored before it was asked for.
 */
import { test } from 'tap'
import { begin, createGate, say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { createClient, isDelta } from '../support/client.ts'
import { openServer } from '../support/cluster.ts'
import { countReads, untilSo } from '../support/copies.ts'
import { createTestDatabase } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'
import { createRandom } from '../support/random.ts'
import { connectRedis, withoutRedis } from '../support/redis.ts'

const sessions = '/api/v1/sessions'
const roundsMax = 25

test('histories and lists with Redis', { skip: withoutRedis }, async (t) => {
  const upstream = await startFakeUpstream({ script: () => say({ text: 'Reply' }) })
  t.teardown(() => upstream.close())
  const server = await openServer(t, 'redis')
  const { url: DATABASE_URL } = await createTestDatabase(t)
  const env = { DATABASE_URL, DATABASE_POOL: '3', REDIS_URL: server.url, OPENAI_BASE_URL: upstream.url, FRAME_MS: '5' }
  const reads = countReads()
  const [here, there, without] = await Promise.all([
    startGateway(t, { env }),
    startGateway(t, { env, countCacheRead: reads.count }),
    startGateway(t, { env: { ...env, ENABLE_REDIS_CACHE: 'false', ENABLE_REDIS_SESSIONS: 'false' } }),
  ])
  const redis = connectRedis(t, server.url)
  const client = createClient(here.url)
  await client.get(sessions)
  const near = createClient(here.url, client.identity)
  const far = createClient(there.url, client.identity)
  const plain = createClient(without.url, client.identity)
  const send = async (by: typeof near, message: string, sessionId?: string) => {
    const session = sessionId === undefined ? {} : { session_id: sessionId }
    const answer = await by.post('/api/v1/chat/message', { message, ...session })
    t.equal(answer.status, 200)
    return answer.body.session.id as string
  }
  const page = async (by: typeof near, id: string, query = '') =>
    (await by.get(`${sessions}/${id}/messages${query}`)).body

  await t.test('what is flagged off leaves nothing in Redis', async (t) => {
    const id = await send(plain, 'Nothing of this')
    t.equal((await page(plain, id)).data.length, 2)
    await plain.get(sessions)
    t.strictSame(
      (await redis.keys('*')).filter((key) => /^vb:(hist|live|snap|sess):/.test(key)),
      [],
    )
  })

  await t.test('a history that was read is served from its copy, as the same JSON', async (t) => {
    const id = await send(near, 'Question')
    const first = await far.get(`${sessions}/${id}/messages?limit=10`)
    await untilSo(async () => (await redis.exists(`vb:hist:${id}`)) === 1, 'a copy')
    reads.take()
    const second = await far.get(`${sessions}/${id}/messages?limit=10`)
    t.strictSame(reads.take(), ['history hit'])
    t.strictSame(second.body, first.body)
    t.strictSame(second.body, await page(plain, id))
    t.equal(second.headers.get('content-type'), 'application/json; charset=utf-8')
    t.notOk('degraded' in second.body)
    const ttl = await redis.ttl(`vb:hist:${id}`)
    t.ok(ttl > 3500 && ttl <= 3600, `${ttl} s`)
    t.equal((await createClient(there.url).get(`${sessions}/${id}/messages`)).status, 404)
  })

  await t.test('no read is older than what was stored before it was asked', async (t) => {
    const random = createRandom(4)
    const ids = [await send(near, '0'), await send(far, '0')]
    const stored = new Map(ids.map((id) => [id, 2]))
    reads.take()
    for (let round = 1; round <= roundsMax; round += 1) {
      const id = random.pick(ids)
      const before = stored.get(id) ?? 0
      // One of the writers has no cache: it tells nobody, as a process that dies behind its commit.
      const writer = random.pick([near, far, plain])
      const during = Promise.all([near, far, far].map((by) => page(by, id, '?limit=100')))
      await send(writer, `${round}`, id)
      stored.set(id, before + 2)
      for (const { data } of await during) t.ok(data.length >= before, 'not older than before the write')
      for (const by of [far, near, far]) {
        const { data } = await page(by, id, '?limit=100')
        t.equal(data.length, before + 2)
        t.equal(data.at(-2).content, `${round}`)
        t.match(data.at(-1), { content: 'Reply', status: 'completed' })
      }
      if (before + 2 > 18) {
        const fresh = await send(near, '0')
        ids[ids.indexOf(id)] = fresh
        stored.set(fresh, 2)
      }
    }
    const counted = Map.groupBy(reads.take(), (result) => result)
    t.ok((counted.get('history hit')?.length ?? 0) > 0, 'some were hits, so this could have failed')
    t.ok((counted.get('history stale')?.length ?? 0) > 0, 'and so were old copies')
  })

  await t.test('a running session shows elsewhere what it is doing, and has ended when it has ended', async (t) => {
    const gate = createGate()
    upstream.answer(async function* () {
      yield* begin({ text: 'Half' })
      await gate.opened
      yield* say({ text: ' and whole' })
    })
    const stream = await near.send({ message: 'Tell me' })
    await stream.until(isDelta)
    const id = stream.headers.get('x-session-id')
    const listed = async (by: typeof near) =>
      (await by.get(sessions)).body.data.find((session: { id: string }) => session.id === id)
    t.match(await listed(near), { status: 'running', phase: /./ }, 'in the process that makes it, at once')
    await untilSo(async () => (await listed(far)).phase !== null, 'its phase elsewhere')
    t.equal((await far.get(`${sessions}/${id}`)).body.phase, (await listed(far)).phase)
    t.ok(reads.take().includes('sessions hit'))
    t.match(await page(far, id ?? ''), { data: [{}, { status: 'streaming' }] })
    gate.open()
    await stream.ended
    upstream.answer(() => say({ text: 'Reply' }))
    t.match(await listed(far), {
      status: 'completed',
      active_run_id: null,
      total_tokens: (await listed(plain)).total_tokens,
    })
    t.match(await page(far, id ?? ''), { data: [{}, { status: 'completed', content: 'Half and whole' }] })
  })

  await t.test('a Redis that has forgotten everything changes no list and no history', async (t) => {
    const before = (await far.get(`${sessions}?limit=100`)).body
    const [{ id }] = before.data
    const history = await page(far, id)
    await redis.flushall()
    t.strictSame((await far.get(`${sessions}?limit=100`)).body, before)
    t.strictSame(await page(far, id), history)
    t.strictSame(await page(near, id), history)
  })
})
