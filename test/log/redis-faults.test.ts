/**
 * What happens to the log when Redis dies, forgets, hangs or refuses: viewers of the process that writes see nothing of
 * it, viewers of another one are shown no hole and no word twice, and nobody waits. Each test has a Redis of its own, and
 * prints its figures.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Redis } from 'ioredis'
import { type Test, test } from 'tap'
import { parseEventId } from '../../src/log/event.ts'
import { createSpeech, type Seen, type Speech, type Viewer, view } from '../support/log-viewer.ts'
import { startProxy } from '../support/proxy.ts'
import {
  connectRedis,
  isWell,
  type OpenedRedisLog,
  openLog,
  openSharedLog,
  startPrivateRedis,
  withoutRedis,
} from '../support/redis.ts'

const skip = withoutRedis
const prefix = 'vb'
/** What a viewer may wait because of Redis, and a margin for a machine that does other things, too. */
const stallMaxMs = 1000
const marginMs = 500

interface Scene {
  readonly server: Awaited<ReturnType<typeof startPrivateRedis>>
  readonly owner: OpenedRedisLog
  readonly other: OpenedRedisLog
  readonly speech: Speech
  /** On the process that writes, and on another. */
  readonly near: Viewer
  readonly far: Viewer
  readonly redis: Redis
  readonly key: string
  /** Says the end, waits for the viewers, and checks what they saw. */
  finish(): Promise<{ near: Seen; far: Seen }>
}

async function open(t: Test, farUrl?: (url: string) => Promise<string>): Promise<Scene> {
  const server = await startPrivateRedis(t)
  const [owner, other] = await Promise.all([
    openSharedLog(t, { url: server.url, prefix }),
    openSharedLog(t, { url: (await farUrl?.(server.url)) ?? server.url, prefix }),
  ])
  const redis = connectRedis(t, server.url)
  const speech = createSpeech(owner.log)
  const over = new AbortController()
  t.teardown(() => over.abort())
  speech.say(3)
  const near = view(owner.log, speech, over.signal)
  const far = view(other.log, speech, over.signal)
  await Promise.all([near.reaches(3), far.reaches(3)])

  async function finish() {
    speech.end()
    const [nearSeen, farSeen] = await Promise.all([near.over, far.over])
    t.strictSame(nearSeen.wrong, [], 'here: no hole, no word twice')
    t.equal(nearSeen.resets, 0, 'here: nothing was replaced')
    t.equal(nearSeen.unknown, 0, 'here: the log was always there')
    t.strictSame(farSeen.wrong, [], 'elsewhere: no hole, no word twice')
    t.ok(nearSeen.lagMaxMs < stallMaxMs, `here: shown at once (${Math.round(nearSeen.lagMaxMs)} ms)`)
    t.ok(speech.appendMaxMs < stallMaxMs, `an append takes no time (${Math.round(speech.appendMaxMs)} ms)`)
    t.ok(farSeen.readMaxMs < stallMaxMs + marginMs, `elsewhere: no read waits (${Math.round(farSeen.readMaxMs)} ms)`)
    t.comment(figures(speech, nearSeen, farSeen))
    return { near: nearSeen, far: farSeen }
  }

  return { server, owner, other, speech, near, far, redis, key: `${prefix}:{${speech.runId}}:log`, finish }
}

function figures(speech: Speech, near: Seen, far: Seen): string {
  const ms = (value: number) => `${value.toFixed(1)} ms`
  return [
    `${speech.saidAt.length} events, append at most ${ms(speech.appendMaxMs)}`,
    `here: lag at most ${ms(near.lagMaxMs)}`,
    `elsewhere: lag at most ${ms(far.lagMaxMs)}, read at most ${ms(far.readMaxMs)}, ${far.resets} resets, ${far.unknown} times not there`,
  ].join(' · ')
}

/** Speaks while `act` runs, and for a while after it. */
async function speakWhile(speech: Speech, act: () => Promise<void>, afterMs = 300): Promise<void> {
  const over = new AbortController()
  const speaking = speech.sayUntil(over.signal)
  try {
    await act()
    await sleep(afterMs)
  } finally {
    over.abort()
    await speaking
  }
}

/** Ends every connection but that of the test. */
const killOthers = (redis: Redis) => redis.call('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes')

/** What the stream says, with each hole that no `reset` covers. */
async function readStream(redis: Redis, key: string): Promise<{ ids: string[]; holes: string[] }> {
  const entries = await redis.xrange(key, '-', '+')
  const holes = entries.flatMap(([id, [type]], index) => {
    const [at, before] = [parseEventId(id), parseEventId(entries[index - 1]?.[0] ?? '1-0')]
    const follows = at !== undefined && before !== undefined && at.seq === before.seq + 1
    return follows || type === 'reset' ? [] : [id]
  })
  return { ids: entries.map(([id]) => id), holes }
}

test('Redis is killed and comes back empty: the log is there again, whole', { skip }, async (t) => {
  const { server, owner, other, speech, redis, key, finish, far } = await open(t)
  let backMs = 0
  await speakWhile(speech, async () => {
    await server.crash()
    await owner.until((log) => !log.shared)
    t.match(owner.log.degraded, /^Redis cannot be written \(\w+/)
    await far.missesIt()
    await server.restart(AbortSignal.timeout(10_000))
    const backAt = performance.now()
    await Promise.all([owner.until(isWell), other.until(isWell)])
    backMs = performance.now() - backAt
    await far.reaches(speech.last.seq)
  })
  const { far: seen } = await finish()
  t.ok(seen.resets <= 1, 'elsewhere: at most one reset')
  t.ok(backMs < stallMaxMs, `a Redis that is back is found within a second (${Math.round(backMs)} ms)`)
  const stream = await readStream(redis, key)
  t.strictSame(stream.holes, [])
  t.equal(stream.ids[0], '1-1', 'a viewer that comes later is told `run` first')
  t.ok((await redis.pttl(key)) > 0, 'and it expires')
  t.match(owner.said, ['the event log is shared through Redis', 'the event log is degraded'])
  t.ok(owner.said.length <= 3, 'one line an outage')
})

test('FLUSHALL: the log is seeded with the next event, and viewers elsewhere go on', { skip }, async (t) => {
  const { owner, speech, redis, key, finish } = await open(t)
  await speakWhile(speech, async () => {
    for (let round = 0; round < 5; round += 1) {
      await sleep(100)
      await redis.flushall()
    }
  })
  const { far } = await finish()
  t.equal(far.unknown, 0, 'elsewhere: the log was always there')
  t.ok(owner.log.shared, 'nothing is degraded')
  t.strictSame((await readStream(redis, key)).holes, [])
  t.ok((await redis.pttl(key)) > 0)
})

test('the key of a run is deleted while it is followed: nobody sees it, and who comes later reads it whole', {
  skip,
}, async (t) => {
  const { other, speech, far, redis, key, finish } = await open(t)
  for (let round = 0; round < 20; round += 1) {
    await redis.del(key)
    speech.say(1 + (round % 3))
    await far.reaches(speech.last.seq)
  }
  const late = view(other.log, speech, AbortSignal.timeout(10_000))
  await finish()
  const seen = await late.over
  t.strictSame(seen.wrong, [])
  t.ok(seen.ended)
})

test('a stream that was trimmed is never read across the hole', { skip }, async (t) => {
  const { server, speech, redis, key, finish } = await open(t)
  speech.say(17)
  await redis.wait(0, 0)
  const late = await openSharedLog(t, { url: server.url, prefix })
  while ((await redis.xlen(key)) < 20) await sleep(5)
  await redis.xtrim(key, 'MAXLEN', 5)
  t.equal((await late.log.read(speech.runId, undefined, 100)).kind, 'unservable')
  t.equal((await late.log.read(speech.runId, { generation: 1, seq: 10 }, 100)).kind, 'unservable')
  const page = await late.log.read(speech.runId, { generation: 1, seq: 16 }, 100)
  t.match(page, { kind: 'entries', entries: [{ seq: 17 }, { seq: 18 }, { seq: 19 }, { seq: 20 }] })
  const { far } = await finish()
  t.equal(far.resets, 0, 'who had read it before goes on')
})

test('Redis hangs for 5 s: nobody waits for it, and elsewhere the database serves', {
  skip,
  timeout: 60_000,
}, async (t) => {
  const { server, owner, other, speech, far, redis, key, finish } = await open(t)
  let noticedMs = 0
  let backMs = 0
  await speakWhile(speech, async () => {
    server.signal('SIGSTOP')
    const stoppedAt = performance.now()
    const noticed = Promise.all([owner.until((log) => !log.shared), far.missesIt()]).then(() => {
      noticedMs = performance.now() - stoppedAt
    })
    await noticed
    const askedAt = performance.now()
    t.equal(await other.log.load(speech.runId), 'unanswered', 'a takeover is told that it cannot know')
    t.ok(performance.now() - askedAt < stallMaxMs + marginMs, 'and is told so in time')
    await sleep(stoppedAt + 5000 - performance.now())
    server.signal('SIGCONT')
    const backAt = performance.now()
    await Promise.all([owner.until(isWell), other.until(isWell)])
    await far.reaches(speech.last.seq)
    backMs = performance.now() - backAt
  })
  t.ok(noticedMs < stallMaxMs + marginMs, `noticed after ${Math.round(noticedMs)} ms`)
  t.comment(`the other process shows it live again ${Math.round(backMs)} ms after Redis went on`)
  await finish()
  t.strictSame((await readStream(redis, key)).holes, [])
})

test('CLIENT PAUSE, and a script that blocks Redis, are the same', { skip, timeout: 60_000 }, async (t) => {
  const { owner, other, speech, far, redis, key, finish } = await open(t)
  await speakWhile(speech, async () => {
    await redis.client('PAUSE', 2500, 'ALL')
    await far.missesIt()
    await Promise.all([owner.until(isWell), other.until(isWell)])
    await far.reaches(speech.last.seq)
    // DEBUG may be forbidden, a long script is not.
    const blocking = redis.eval(
      "local t = redis.call('TIME') local e = t[1] * 1000 + t[2] / 1000 + 2500 repeat t = redis.call('TIME') until t[1] * 1000 + t[2] / 1000 > e return 1",
      0,
    )
    await far.missesIt()
    await blocking
    await Promise.all([owner.until(isWell), other.until(isWell)])
    await far.reaches(speech.last.seq)
  })
  await finish()
  t.strictSame((await readStream(redis, key)).holes, [])
})

test('connections are killed all the time: nothing is lost, nothing comes twice', {
  skip,
  timeout: 60_000,
}, async (t) => {
  const { owner, other, speech, far, redis, key, finish } = await open(t)
  await speakWhile(speech, async () => {
    for (let round = 0; round < 30; round += 1) {
      await killOthers(redis)
      await sleep(20 + 10 * (round % 10))
    }
    await Promise.all([owner.until(isWell), other.until(isWell)])
    await far.reaches(speech.last.seq)
  })
  await finish()
  t.strictSame((await readStream(redis, key)).holes, [])
  t.ok(owner.said.length <= 6, `an outage that comes and goes is one (${owner.said.length} lines)`)
})

const refusals = [
  {
    what: 'Redis is out of memory',
    refuse: ['CONFIG', 'SET', 'maxmemory', '1'],
    allow: ['CONFIG', 'SET', 'maxmemory', '0'],
    reason: /OOM/,
  },
  {
    what: 'Redis has become a replica',
    refuse: ['REPLICAOF', '127.0.0.1', '1'],
    allow: ['REPLICAOF', 'NO', 'ONE'],
    reason: /READONLY/,
  },
  {
    what: 'Redis has too few replicas to write',
    refuse: ['CONFIG', 'SET', 'min-replicas-to-write', '1'],
    allow: ['CONFIG', 'SET', 'min-replicas-to-write', '0'],
    reason: /NOREPLICAS/,
  },
] as const

for (const { what, refuse, allow, reason } of refusals) {
  test(`${what}: nothing is lost, and it is said why`, { skip }, async (t) => {
    const { owner, other, speech, far, redis, key, finish } = await open(t)
    const order = ([command, ...rest]: readonly [string, ...string[]]) => redis.call(command, ...rest)
    await speakWhile(speech, async () => {
      await order(refuse)
      await owner.until((log) => !log.shared)
      t.match(owner.log.degraded, reason)
      await sleep(600)
      await order(allow)
      await Promise.all([owner.until(isWell), other.until(isWell)])
      await far.reaches(speech.last.seq)
    })
    await finish()
    t.strictSame((await readStream(redis, key)).holes, [])
  })
}

test('nothing is said to be readable before the connection for questions is there', { skip }, async (t) => {
  const { url } = await startPrivateRedis(t)
  const proxy = await startProxy(t, new URL(url))
  const { held } = proxy.holdBack('verbatim-asker')
  const { log, until } = openLog(t, { url: `redis://127.0.0.1:${proxy.port}`, prefix })
  await Promise.all([held, until(({ shared }) => shared)])
  await sleep(300)
  t.match(log.degraded, /^Redis cannot be read/)
  proxy.set('pass')
  await until(isWell)
  t.strictSame(await log.load('strange'), [])
})

test('only the other process is cut off: its viewers are told so at once, and come back', {
  skip,
  timeout: 60_000,
}, async (t) => {
  const proxies: Awaited<ReturnType<typeof startProxy>>[] = []
  const { owner, other, speech, far, finish } = await open(t, async (url) => {
    const proxy = await startProxy(t, new URL(url))
    proxies.push(proxy)
    return `redis://127.0.0.1:${proxy.port}`
  })
  await speakWhile(speech, async () => {
    for (const mode of ['hang', 'mute', 'refuse'] as const) {
      proxies[0]?.set(mode)
      const cutAt = performance.now()
      await far.missesIt()
      t.ok(
        performance.now() - cutAt < stallMaxMs + marginMs,
        `${mode}: after ${Math.round(performance.now() - cutAt)} ms`,
      )
      await sleep(1500)
      t.match(other.log.degraded, /^Redis cannot be/)
      proxies[0]?.set('pass')
      await other.until(isWell)
      await far.reaches(speech.last.seq)
    }
  })
  t.ok(owner.log.shared)
  const { far: seen } = await finish()
  t.equal(seen.resets, 0, 'the log itself was never harmed')
})

test('a run that ends while Redis is away is told whole when it is back', { skip }, async (t) => {
  const { server, owner, other, speech, near, far, redis, key } = await open(t)
  speech.say(10)
  await server.crash()
  await owner.until((log) => !log.shared)
  speech.say(10)
  speech.end()
  await near.over
  await server.restart(AbortSignal.timeout(10_000))
  const seen = await far.over
  t.strictSame(seen.wrong, [])
  t.ok(seen.ended)
  t.equal(seen.text, near.seen.text)
  t.strictSame((await readStream(redis, key)).ids, ['1-1', '1-23', '1-24'])
  t.match(other.log.terminalId(speech.runId), { seq: 24 })
})

test('a process that starts without Redis shares what it has said when Redis comes', { skip }, async (t) => {
  const server = await startPrivateRedis(t)
  await server.crash()
  const owner = openLog(t, { url: server.url, prefix })
  const speech = createSpeech(owner.log)
  speech.say(5)
  const first = await owner.log.read(speech.runId, undefined, 10)
  t.match(first, { kind: 'entries', local: true })
  const strange = await owner.log.read('strange', undefined, 10)
  t.equal(strange.kind, 'unknown')
  t.equal(await owner.log.load('strange'), 'unanswered')
  await server.restart(AbortSignal.timeout(10_000))
  await owner.until(isWell)
  const other = await openSharedLog(t, { url: server.url, prefix })
  const far = view(other.log, speech, AbortSignal.timeout(10_000))
  await far.reaches(5)
  t.strictSame(far.seen.wrong, [])
  speech.say(2)
  speech.end()
  await far.over
  t.strictSame(far.seen.wrong, [])
})

test('an answer that is lost leaves the event in Redis: it is neither written twice nor a hole', {
  skip,
}, async (t) => {
  const server = await startPrivateRedis(t)
  const proxy = await startProxy(t, new URL(server.url))
  const owner = await openSharedLog(t, { url: `redis://127.0.0.1:${proxy.port}`, prefix })
  const other = await openSharedLog(t, { url: server.url, prefix })
  const speech = createSpeech(owner.log)
  speech.say(3)
  const far = view(other.log, speech, AbortSignal.timeout(20_000))
  await far.reaches(3)
  for (let round = 0; round < 5; round += 1) {
    const { lost } = proxy.loseAnswerTo(`${speech.last.seq + 1};`)
    speech.say()
    await lost
    await owner.until(isWell)
    await far.reaches(speech.last.seq)
    if (round % 2 === 0) speech.say()
    await far.reaches(speech.last.seq)
  }
  speech.end()
  await far.over
  t.strictSame(far.seen.wrong, [])
  const redis = connectRedis(t, server.url)
  const key = `${prefix}:{${speech.runId}}:log`
  while ((await redis.xrevrange(key, '+', '-', 'COUNT', 1))[0]?.[0] !== `1-${speech.last.seq}`) await sleep(5)
  t.strictSame((await readStream(redis, key)).holes, [])
})

test('another Redis that has forgotten the last events is noticed, and whoever comes later misses nothing', {
  skip,
}, async (t) => {
  const { server, owner, speech, redis, key, finish } = await open(t)
  speech.say(20)
  while ((await redis.xlen(key)) < 23) await sleep(5)
  // As after a failover to a replica that had not been told: the same stream, only shorter, and the connection gone.
  const entries = await redis.xrange(key, '-', '+', 'COUNT', 10)
  await redis.del(key)
  for (const [id, fields] of entries) await redis.xadd(key, id, ...fields)
  await killOthers(redis)
  await owner.until((log) => !log.shared)
  await owner.until(isWell)
  const late = await openSharedLog(t, { url: server.url, prefix })
  const viewer = view(late.log, speech, AbortSignal.timeout(10_000))
  await viewer.reaches(23)
  await finish()
  t.strictSame((await viewer.over).wrong, [])
})

test('what was deleted on top of a stream is not written again and again', { skip }, async (t) => {
  const { owner, speech, redis, key, finish } = await open(t)
  await redis.xdel(key, '1-3')
  await killOthers(redis)
  await owner.until((log) => !log.shared)
  await owner.until(isWell)
  await redis.config('RESETSTAT')
  await sleep(500)
  const stats = await redis.info('commandstats')
  const writes = Number(/cmdstat_xadd:calls=(\d+)/.exec(stats)?.[1] ?? 0)
  t.ok(writes < 10, `${writes} writes in half a second`)
  speech.say()
  await finish()
  t.strictSame((await readStream(redis, key)).holes, [])
})
