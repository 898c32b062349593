/**
 * Everything at once and in any order: runs are spoken, viewers come and go on two processes, and Redis is killed,
 * emptied, frozen, full or cut off, as a seed says. Whatever came before, every viewer ends with the whole text, and was
 * never shown a hole or a word twice. The same seed gives the same order of faults, though not the same
 * timing; REDIS_SEEDS=1,2,3 and REDIS_FAULTS=20 try others, and more.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'tap'
import { createSpeech, type Viewer, view } from '../support/log-viewer.ts'
import { startProxy } from '../support/proxy.ts'
import { createRandom } from '../support/random.ts'
import { connectRedis, isWell, openSharedLog, startPrivateRedis, withoutRedis } from '../support/redis.ts'

const seeds = (process.env.REDIS_SEEDS ?? '11,12').split(',').map(Number)
const faultsOfEach = Number(process.env.REDIS_FAULTS ?? 12)
const runsOfEach = 6

for (const seed of seeds) {
  test(`faults in the order of seed ${seed} lose nothing`, { skip: withoutRedis, timeout: 110_000 }, async (t) => {
    const random = createRandom(seed)
    const server = await startPrivateRedis(t)
    const [ownerProxy, otherProxy] = [
      await startProxy(t, new URL(server.url)),
      await startProxy(t, new URL(server.url)),
    ]
    const [owner, other] = await Promise.all([
      openSharedLog(t, { url: `redis://127.0.0.1:${ownerProxy.port}` }),
      openSharedLog(t, { url: `redis://127.0.0.1:${otherProxy.port}` }),
    ])
    const redis = connectRedis(t, server.url)
    const over = new AbortController()
    t.teardown(() => over.abort())
    const speeches = Array.from({ length: runsOfEach }, () => createSpeech(owner.log))
    for (const speech of speeches) speech.say(2)
    const viewers: Viewer[] = []
    const join = () => {
      const speech = random.pick(speeches)
      viewers.push(view(random.integer(4) === 0 ? owner.log : other.log, speech, over.signal))
    }
    for (const speech of speeches)
      viewers.push(view(owner.log, speech, over.signal), view(other.log, speech, over.signal))

    const key = () => `vb:{${random.pick(speeches).runId}}:log`
    const faults: Readonly<Record<string, () => Promise<unknown>>> = {
      kill: () => redis.call('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes'),
      flush: () => redis.flushall(),
      del: () => redis.del(key()),
      trim: () => redis.xtrim(key(), 'MAXLEN', random.integer(3)),
      deleteTop: async () => {
        const at = key()
        const [top] = await redis.xrevrange(at, '+', '-', 'COUNT', 1)
        if (top !== undefined) await redis.xdel(at, top[0])
      },
      crash: async () => {
        await server.crash()
        await sleep(random.integer(600))
        await server.restart(AbortSignal.timeout(20_000))
      },
      freeze: async () => {
        server.signal('SIGSTOP')
        await sleep(random.integer(2500))
        server.signal('SIGCONT')
      },
      full: async () => {
        await redis.config('SET', 'maxmemory', '1')
        await sleep(random.integer(500))
        await redis.config('SET', 'maxmemory', '0')
      },
      cutOwner: async () => {
        ownerProxy.set(random.pick(['refuse', 'hang', 'mute']))
        await sleep(random.integer(2500))
        ownerProxy.set('pass')
      },
      cutOther: async () => {
        otherProxy.set(random.pick(['refuse', 'hang', 'mute']))
        await sleep(random.integer(2500))
        otherProxy.set('pass')
      },
    }

    const speaking = new AbortController()
    const spoken = speeches.map((speech, index) => speech.sayUntil(speaking.signal, 5 + 60 * index))
    const order: string[] = []
    for (let n = 0; n < faultsOfEach; n += 1) {
      const name = random.pick(Object.keys(faults))
      order.push(name)
      join()
      await faults[name]?.().catch(() => undefined) // The test's own connection was lost to the fault before.
      await sleep(random.integer(300))
    }
    speaking.abort()
    await Promise.all(spoken)
    await Promise.all([owner.until(isWell), other.until(isWell)])
    for (const speech of speeches) {
      speech.say()
      speech.end()
    }
    const late = setTimeout(() => over.abort(), 15_000)
    const seen = await Promise.all(viewers.map((viewer) => viewer.over))
    clearTimeout(late)
    const stuck = seen.filter(({ ended }) => !ended)
    t.strictSame(
      seen.flatMap(({ wrong }) => wrong),
      [],
      order.join(' '),
    )
    t.equal(stuck.length, 0, `every viewer sees the end: ${stuck.map(({ cursor }) => JSON.stringify(cursor))}`)
    const events = speeches.reduce((sum, { saidAt }) => sum + saidAt.length, 0)
    const resets = seen.reduce((sum, viewer) => sum + viewer.resets, 0)
    const appendMs = Math.max(...speeches.map(({ appendMaxMs }) => appendMaxMs))
    const readMs = Math.max(...seen.map(({ readMaxMs }) => readMaxMs))
    t.comment(`seed ${seed}: ${order.join(' ')}`)
    t.comment(`${events} events, ${seen.length} viewers, ${resets} resets, append at most ${appendMs.toFixed(1)} ms`)
    t.comment(`read at most ${Math.round(readMs)} ms, ${owner.said.length + other.said.length} lines logged`)
    t.ok(readMs < 1500)
  })
}
