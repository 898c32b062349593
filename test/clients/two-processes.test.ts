/**
 * Two processes with one Postgres and one Redis, and a client whose every connection comes to the other one: most of what
 * it reads is of a run elsewhere. Cut between and inside events, it shows the stored text, and the provider is asked once.
 */
import t from 'tap'
import { createClient } from '../../src/client/index.ts'
import { openServer } from '../support/cluster.ts'
import { databaseEnv, spawnGateway, untilReady } from '../support/gateway.ts'
import { createRandom } from '../support/random.ts'
import { withoutRedis } from '../support/redis.ts'
import { trialsOf } from '../support/trials.ts'
import { type CutPlace, startCuttingProxy } from './cutting-proxy.ts'
import { callsFor, startWaitingUpstream, storedReply, wholeText } from './runs.ts'

const places: readonly CutPlace[] = ['between', 'id', 'data', 'character', 'blank']
const trials = trialsOf(1)
t.setTimeout(60_000 + trials * 10_000)

t.test('our client, from one process to the other and back', { skip: withoutRedis }, async (t) => {
  const upstream = await startWaitingUpstream(t)
  const redis = await openServer(t, 'redis')
  const env = { ...(await databaseEnv(t, 'postgres')), REDIS_URL: redis.url, OPENAI_BASE_URL: upstream.url }
  const gateways = await Promise.all([spawnGateway(t, env), spawnGateway(t, env)])
  const urls = gateways.map(({ url }) => url)
  await Promise.all(urls.map(untilReady))
  const visitorToken = `vst_${'t'.repeat(43)}`

  for (let seed = 1; seed <= trials; seed += 1) {
    const random = createRandom(seed)
    const message = `seed ${seed}`
    const proxy = await startCuttingProxy(
      t,
      urls,
      places.toSorted(() => random.next() - 0.5),
      seed,
    )
    upstream.follow(message, proxy, places.length)
    const client = createClient({ baseUrl: proxy.url, visitorToken, limits: { backOffMaxMs: 200 } })
    const reply = client.chat.send({ message })
    let joined = ''
    for await (const event of reply) {
      if (event.type === 'reset') joined = event.data.parts.map(({ text }) => text).join('')
      if (event.type === 'delta') joined += event.data.text
    }
    t.equal(joined, wholeText(places.length))
    t.equal(reply.text, joined)
    t.equal(await storedReply(urls[seed % 2] ?? '', visitorToken, message), joined)
    t.equal(callsFor(upstream, message), 1, 'one upstream call')
    t.equal(proxy.cuts, places.length)
  }
})
