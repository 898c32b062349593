/** The store of copies and counters while Redis refuses, hangs, dies and comes back. */
import { test } from 'tap'
import { openRedisStore } from '../../src/db/redis.ts'
import { untilSo } from '../support/copies.ts'
import { startProxy } from '../support/proxy.ts'
import { connectRedis, startPrivateRedis, startRefusingRedis, withoutRedis } from '../support/redis.ts'

const commandMs = 200
const restartMs = 30_000

test('a store on Redis', { skip: withoutRedis }, async (t) => {
  const server = await startPrivateRedis(t)
  const proxy = await startProxy(t, new URL(server.url))
  const said: string[] = []
  const say = (facts: unknown, text?: string) => void said.push(text ?? String(facts))
  const logger = { info: say, warn: say }
  const store = openRedisStore({ url: `redis://:secret@127.0.0.1:${proxy.port}`, logger, commandMs })
  t.teardown(() => store.close())
  t.equal(await store.ask((redis) => redis.ping()), undefined, 'nobody waits for the connection')
  t.equal(store.degraded, undefined, 'nothing has failed yet')
  const redis = connectRedis(t, server.url)
  await untilSo(() => store.isWell, 'it answers')

  await t.test('what is refused is not answered, and costs nobody else anything', async (t) => {
    await redis.lpush('list', 'x')
    t.equal(await store.ask((redis) => redis.get('list')), undefined)
    t.ok(store.isWell)
    t.match(store.degraded, /WRONGTYPE/)
    t.equal(await store.ask((redis) => redis.ping()), 'PONG')
    t.strictSame(said, [], 'and is no outage')
  })

  await t.test('one that hangs is waited for once', async (t) => {
    proxy.set('hang')
    const startedAt = performance.now()
    t.equal(await store.ask((redis) => redis.ping()), undefined)
    const firstMs = performance.now() - startedAt
    for (let ask = 0; ask < 20; ask += 1) t.equal(await store.ask((redis) => redis.ping()), undefined)
    const allMs = performance.now() - startedAt
    t.ok(allMs < firstMs + 5 * commandMs, `${Math.round(firstMs)} ms, and ${Math.round(allMs)} ms with 20 more`)
    t.notOk(store.isWell)
    t.match(store.degraded, /come from the database/)
    proxy.set('pass')
    await untilSo(() => said.length === 2, 'it answers again, and says so')
  })

  await t.test('an outage is said once, and its end once, and no secret with it', async (t) => {
    said.length = 0
    await server.crash()
    await untilSo(() => !store.isWell, 'it is gone')
    t.notMatch(store.degraded, /secret|127\.0\.0\.1/)
    await server.restart(AbortSignal.timeout(restartMs))
    await untilSo(() => store.isWell, 'it is back')
    await untilSo(() => said.length >= 2, 'the end was said')
    t.match(said, ['the cache in Redis is degraded: reads go to the database', 'the cache in Redis is well again'])
    t.equal(said.length, 2)
  })
})

test('a password that is refused while the store is closed keeps nothing open', async (t) => {
  const { url, met } = await startRefusingRedis(t)
  const store = openRedisStore({ url, logger: { info: () => undefined, warn: () => undefined } })
  await met
  await t.resolves(store.close())
})
