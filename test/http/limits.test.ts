/**
 * The budgets of http/limits.ts: what is over one is refused with the time to wait, everybody has their own, an address
 * cannot be invented, and Redis, however slow or away, neither delays nor refuses.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Redis } from 'ioredis'
import { type Test, test } from 'tap'
import { createCounters } from '../../src/db/counters.ts'
import type { RedisStore } from '../../src/db/redis.ts'
import type { SharedCounters } from '../../src/http/counts.ts'
import type { Owner } from '../../src/http/identity.ts'
import { createLimits, type LimitsOptions } from '../../src/http/limits.ts'
import { createServer, type Server } from '../../src/http/server.ts'
import { connectRedis, createPrefix, sharedRedis, withoutRedis } from '../support/redis.ts'

type Options = Partial<LimitsOptions> & { readonly lines?: string[] }

interface Asked {
  readonly owner?: string
  readonly from?: string
  readonly headers?: Record<string, string>
}

interface Bed {
  readonly server: Server
  readonly refused: readonly string[]
  get(
    path: string,
    asked?: Asked,
  ): Promise<{ status: number; retryAfter: string | undefined; code: string | undefined }>
  post(
    path: string,
    asked?: Asked,
  ): Promise<{ status: number; retryAfter: string | undefined; code: string | undefined }>
  /** Statuses of the same request, `times` times, one after the other. */
  repeat(times: number, path: string, asked?: Asked): Promise<readonly number[]>
}

const noLimits = { runs: 0, reads: 0, visitors: 0 }
const forwarded = (addresses: string) => ({ 'x-forwarded-for': addresses })

/** A server with three routes; who asks is in a header, and who says nothing is a new visitor. */
async function openBed(t: Test, options: Options): Promise<Bed> {
  const { lines = [], trustedProxies = [], ...rest } = options
  const server = createServer({ logLevel: 'trace', logStream: { write: (line) => lines.push(line) }, trustedProxies })
  const refused: string[] = []
  await server.register(async (api) => {
    const limits = await createLimits(api, {
      rateLimits: noLimits,
      trustedProxies,
      isKnown: async () => false,
      onRefused: (budget) => refused.push(budget),
      ...rest,
    })
    api.decorateRequest('owner', null as never)
    api.addHook('onRequest', async (request) => {
      const key = request.headers['x-owner']?.toString()
      if (key === undefined) await limits.admitVisitor(request)
      request.owner = { key: key ?? 'visitor:new', kind: key?.startsWith('visitor:') ? 'visitor' : 'user' } as Owner
    })
    api.addHook('onRequest', limits.spend)
    api.get('/read', async () => ({}))
    api.get('/run', { config: { budget: 'runs' } }, async () => ({}))
    api.post('/run', { config: { budget: 'runs' } }, async () => ({}))
  })
  t.teardown(() => server.close())

  async function ask(method: 'GET' | 'POST', url: string, { owner, from = '192.0.2.1', headers = {} }: Asked = {}) {
    const answer = await server.inject({
      method,
      url,
      remoteAddress: from,
      headers: { ...headers, ...(owner === undefined ? {} : { 'x-owner': owner }) },
    })
    const retryAfter = answer.headers['retry-after']?.toString()
    return { status: answer.statusCode, retryAfter, code: answer.json<{ code?: string }>().code }
  }
  return {
    server,
    refused,
    get: (path, asked) => ask('GET', path, asked),
    post: (path, asked) => ask('POST', path, asked),
    async repeat(times, path, asked) {
      const statuses: number[] = []
      for (let i = 0; i < times; i++) statuses.push((await ask('GET', path, asked)).status)
      return statuses
    },
  }
}

test('over the limit, an owner is told how long to wait, and is served again when the minute has ended', async (t) => {
  let clock = 1000
  const bed = await openBed(t, { rateLimits: { ...noLimits, reads: 2 }, now: () => clock })
  const owner = 'user:a'
  t.same(await bed.repeat(2, '/read', { owner }), [200, 200])
  t.same(await bed.get('/read', { owner }), { status: 429, retryAfter: '60', code: 'rate_limited' })
  t.same(bed.refused, ['reads'])
  clock += 59_999.5
  t.same(await bed.get('/read', { owner }), { status: 429, retryAfter: '1', code: 'rate_limited' }, 'never 0')
  t.equal((await bed.get('/read', { owner: 'user:b' })).status, 200, 'others have their own')
  clock += 0.5
  t.same(await bed.repeat(3, '/read', { owner }), [200, 200, 429])
})

test('runs and reads are counted apart, and 0 is no limit', async (t) => {
  const bed = await openBed(t, { rateLimits: { ...noLimits, runs: 1 } })
  const owner = 'user:a'
  t.equal((await bed.post('/run', { owner })).status, 200)
  t.equal((await bed.post('/run', { owner })).status, 429)
  t.equal((await bed.get('/run?client_message_id=k', { owner })).status, 429, 'by GET it is the same budget')
  t.same(await bed.repeat(50, '/read', { owner }), Array(50).fill(200))
})

test('an EventSource that comes back does not pay for a run', async (t) => {
  const bed = await openBed(t, { rateLimits: { runs: 1, reads: 6, visitors: 0 } })
  const back = { owner: 'user:a', headers: { 'last-event-id': '1-7' } }
  t.equal((await bed.get('/run?client_message_id=k', { owner: 'user:a' })).status, 200)
  t.same(await bed.repeat(5, '/run?client_message_id=k', back), Array(5).fill(200))
  t.equal((await bed.get('/run?client_message_id=k', { owner: 'user:a' })).status, 429, 'without Last-Event-ID: a run')
  const empty = { owner: 'user:a', headers: { 'last-event-id': '' } }
  t.equal((await bed.get('/run?client_message_id=k', empty)).status, 429, 'and so with an empty one')
  t.same(await bed.repeat(2, '/run?client_message_id=k', back), [200, 429], 'it is a read')
})

test('new visitors are counted by address, and only they', async (t) => {
  const bed = await openBed(t, { rateLimits: { ...noLimits, visitors: 2 } })
  t.same(await bed.repeat(3, '/read'), [200, 200, 429])
  t.same(bed.refused, ['visitors'])
  t.equal((await bed.get('/read', { owner: 'user:a' })).status, 200)
  t.equal((await bed.get('/read', { from: '192.0.2.2' })).status, 200)
})

test('who makes up a visitor for each request is counted by address; who comes back is not', async (t) => {
  const stored = new Set(['visitor:old', 'visitor:older'])
  let asked = 0
  const bed = await openBed(t, {
    rateLimits: { ...noLimits, visitors: 2 },
    isKnown: async (key) => {
      asked += 1
      return stored.has(key)
    },
  })
  const status = async (owner: string) => (await bed.get('/read', { owner })).status
  t.same([await status('visitor:1'), await status('visitor:2'), await status('visitor:3')], [200, 200, 429])
  t.equal(await status('visitor:3'), 429, 'also when it asks again')
  t.same([await status('visitor:1'), await status('visitor:2')], [200, 200], 'those are in')
  t.same([await status('visitor:old'), await status('visitor:older')], [200, 200], 'and so are those with sessions')
  t.equal(asked, 6, 'asked once for each that is in')
})

test('a database that does not answer refuses no visitor, and delays the first request of one by a quarter of a second', async (t) => {
  const never = new Promise<never>(() => undefined)
  for (const isKnown of [() => never, () => Promise.reject(new Error('down'))]) {
    const bed = await openBed(t, { rateLimits: { ...noLimits, visitors: 1 }, isKnown, sharedWaitMs: 10 })
    for (const owner of ['visitor:1', 'visitor:2', 'visitor:3']) {
      t.same(await bed.repeat(2, '/read', { owner }), [200, 200])
    }
  }
})

test('an IPv6 address counts as its /64, and an IPv4 one in IPv6 as itself', async (t) => {
  const bed = await openBed(t, { rateLimits: { ...noLimits, visitors: 1 } })
  const status = async (from: string) => (await bed.get('/read', { from })).status
  t.equal(await status('2001:db8:0:1::1'), 200)
  t.equal(await status('2001:DB8::1:ffff:0:0:2'), 429, 'the same /64')
  t.equal(await status('2001:db8:0:2::1'), 200, 'the next one')
  t.equal(await status('::ffff:198.51.100.7'), 200)
  t.equal(await status('198.51.100.7'), 429, 'the same address')
  t.equal(await status('::ffff:198.51.100.8'), 200)
  t.equal(await status('fe80::1%eth0'), 200, 'with the name of an interface')
})

test('X-Forwarded-For from a peer that is not trusted gives no new budget, and is warned of once', async (t) => {
  const lines: string[] = []
  const bed = await openBed(t, { rateLimits: { ...noLimits, visitors: 2 }, lines })
  const statuses: number[] = []
  for (const address of ['203.0.113.1', '203.0.113.2', '203.0.113.3', '203.0.113.4, 203.0.113.5']) {
    statuses.push((await bed.get('/read', { headers: forwarded(address) })).status)
  }
  t.same(statuses, [200, 200, 429, 429])
  const warnings = lines.filter((line) => line.includes('TRUST_PROXY'))
  t.equal(warnings.length, 1)
  t.notMatch(lines.join(''), /203\.0\.113|192\.0\.2\.1/, 'without any address')
})

test('behind a trusted proxy each client has a budget of its own, which it cannot change', async (t) => {
  const lines: string[] = []
  const trustedProxies = ['192.0.2.0/28', '2001:db8:ffff::/48']
  const bed = await openBed(t, { rateLimits: { ...noLimits, visitors: 1 }, trustedProxies, lines })
  const status = async (addresses: string, from?: string) =>
    (await bed.get('/read', { headers: forwarded(addresses), ...(from === undefined ? {} : { from }) })).status
  t.equal(await status('203.0.113.1'), 200)
  t.equal(await status('203.0.113.2'), 200)
  t.equal(await status('203.0.113.1'), 429)
  t.equal(await status('198.51.100.99, 203.0.113.1'), 429, 'what the client wrote itself is left of what counts')
  t.equal(await status('203.0.113.1, 192.0.2.7'), 429, 'proxies in between are passed over')
  t.equal(await status('203.0.113.2', '2001:db8:ffff::5'), 429)
  t.equal(await status('203.0.113.9', '192.0.2.200'), 200, 'from outside the range: the peer counts')
  t.equal(await status('203.0.113.10', '192.0.2.200'), 429)
  t.equal(await status('not an address, 203.0.113.2'), 429)
  t.same(
    lines.filter((line) => line.includes('TRUST_PROXY')),
    [],
  )
})

test('a trusted proxy that says only X-Real-IP is believed too, and nobody else', async (t) => {
  const bed = await openBed(t, {
    rateLimits: { ...noLimits, visitors: 1 },
    trustedProxies: ['192.0.2.0/28', '2001:db8:ffff::/48'],
  })
  const status = async (real: string, from: string, more: Readonly<Record<string, string>> = {}) =>
    (await bed.get('/read', { headers: { 'x-real-ip': real, ...more }, from })).status
  t.equal(await status('203.0.113.1', '192.0.2.1'), 200)
  t.equal(await status('203.0.113.2', '192.0.2.1'), 200)
  t.equal(await status('203.0.113.2', '::ffff:192.0.2.2'), 429, 'also where IPv4 comes through IPv6')
  t.equal(await status('203.0.113.1', '2001:db8:ffff::1'), 429)
  t.equal(await status('203.0.113.3', '192.0.2.1', forwarded('203.0.113.1')), 429, 'X-Forwarded-For comes first')
  t.equal(await status('no address', '192.0.2.3'), 200, 'then it is the proxy itself')
  t.equal(await status('neither', '192.0.2.3'), 429)
  t.equal(await status('203.0.113.4', '192.0.2.200'), 200, 'from outside the range: the peer counts')
  t.equal(await status('203.0.113.5', '192.0.2.200'), 429)
})

test('protocol and host follow only trusted proxies', async (t) => {
  const headers = { 'x-forwarded-proto': 'https', 'x-forwarded-host': 'forged.example', host: 'own.example' }
  for (const [trustedProxies, expected] of [
    [[], { protocol: 'http', host: 'own.example' }],
    [['10.0.0.0/8'], { protocol: 'http', host: 'own.example' }],
    [['192.0.2.1/32'], { protocol: 'https', host: 'forged.example' }],
  ] as const) {
    const server = createServer({ logLevel: 'silent', trustedProxies })
    t.teardown(() => server.close())
    server.get('/', async ({ protocol, host }) => ({ protocol, host }))
    const answer = await server.inject({ url: '/', remoteAddress: '192.0.2.1', headers })
    t.same(answer.json(), expected)
  }
})

test('a process that has too many to count forgets the oldest, and refuses nobody for it', async (t) => {
  const bed = await openBed(t, { rateLimits: { ...noLimits, reads: 1 }, windowsMax: 2 })
  t.same(await bed.repeat(2, '/read', { owner: 'a' }), [200, 429])
  t.same(await bed.repeat(1, '/read', { owner: 'b' }), [200])
  t.same(await bed.repeat(1, '/read', { owner: 'c' }), [200])
  t.same(await bed.repeat(1, '/read', { owner: 'b' }), [429], 'still known')
  t.same(await bed.repeat(2, '/read', { owner: 'a' }), [200, 429], 'forgotten, and counted anew')
})

test('counters that never answer delay one request a second by the wait, and refuse none', async (t) => {
  let clock = 0
  let asked = 0
  const never = new Promise<never>(() => undefined)
  const shared: SharedCounters = {
    agree: async (_key, fresh) => fresh,
    increment() {
      asked += 1
      return never
    },
  }
  const rateLimits = { ...noLimits, reads: 5 }
  const bed = await openBed(t, { rateLimits, shared, sharedWaitMs: 30, now: () => clock })
  t.same(await bed.repeat(6, '/read', { owner: 'a' }), [200, 200, 200, 200, 200, 429], 'its own count goes on')
  t.equal(asked, 1, 'only the first one has waited')
  clock += 999
  await bed.repeat(1, '/read', { owner: 'b' })
  t.equal(asked, 1)
  clock += 1
  await bed.repeat(1, '/read', { owner: 'b' })
  t.equal(asked, 2, 'after a rest it is asked again')
})

test('counters that fail, or have nothing to say, refuse nobody', async (t) => {
  const failing: readonly SharedCounters[] = [
    { agree: async () => undefined, increment: async () => undefined },
    { agree: async (_key, fresh) => fresh, increment: async () => undefined },
    { agree: async (_key, fresh) => fresh, increment: async () => Promise.reject(new Error('READONLY')) },
    { agree: async () => Promise.reject(new Error('NOAUTH')), increment: async () => ({ count: 1, ttlMs: 1 }) },
  ]
  for (const shared of failing) {
    const bed = await openBed(t, { rateLimits: { ...noLimits, reads: 2 }, shared })
    t.same(await bed.repeat(3, '/read', { owner: 'a' }), [200, 200, 429])
  }
})

test('the count of all processes decides when it is the greater', async (t) => {
  const shared: SharedCounters = {
    agree: async (_key, fresh) => fresh,
    increment: async () => ({ count: 10, ttlMs: 12_345 }),
  }
  const bed = await openBed(t, { rateLimits: { ...noLimits, reads: 9 }, shared })
  t.same(await bed.get('/read', { owner: 'a' }), { status: 429, retryAfter: '13', code: 'rate_limited' })
})

/** The least that counters need: what the gateway has in db/redis.ts. */
function storeOf(redis: Redis, prefix: string): Pick<RedisStore, 'ask' | 'prefix'> {
  return { prefix, ask: (what) => what(redis).catch(() => undefined) }
}

test('through Redis', { skip: withoutRedis }, async (t) => {
  const url = sharedRedis()
  const redis = connectRedis(t, url)

  await t.test('two processes share one budget, and the keys hold nobody’s name and end', async (t) => {
    const prefix = createPrefix(t, url)
    const shared = createCounters(storeOf(redis, prefix))
    const rateLimits = { runs: 4, reads: 6, visitors: 4 }
    const beds = [await openBed(t, { rateLimits, shared }), await openBed(t, { rateLimits, shared })] as const
    const owner = 'user:somebody@example.com'
    const statuses: number[] = []
    for (let i = 0; i < 8; i++) statuses.push((await beds[i % 2]!.get('/read', { owner })).status)
    t.same(statuses, [200, 200, 200, 200, 200, 200, 429, 429])
    const visits: number[] = []
    for (let i = 0; i < 5; i++) visits.push((await beds[i % 2]!.get('/read', { from: '203.0.113.77' })).status)
    t.same(visits, [200, 200, 200, 200, 429], 'by address too: they agree on a salt')
    const keys = await redis.keys(`${prefix}:*`)
    t.equal(keys.length, 4, 'two owners, an address and a salt')
    t.notMatch(keys.join(' '), /somebody|203\.0\.113/)
    for (const key of keys) {
      const ttlMs = await redis.pttl(key)
      t.ok(ttlMs > 0 && ttlMs <= (key.includes(':salt:') ? 2 * 86_400_000 : 60_000), key)
    }
  })

  await t.test('a larger budget is taken in shares, and all of them together never let more through', async (t) => {
    let asked = 0
    const counters = createCounters(storeOf(redis, createPrefix(t, url)))
    const shared: SharedCounters = {
      ...counters,
      increment: (...args) => {
        asked += 1
        return counters.increment(...args)
      },
    }
    const rateLimits = { ...noLimits, reads: 200 }
    const beds = [await openBed(t, { rateLimits, shared }), await openBed(t, { rateLimits, shared })] as const
    const owner = 'user:busy'
    const answers = await Promise.all(Array.from({ length: 300 }, (_, i) => beds[i % 2]!.get('/read', { owner })))
    const passed = answers.filter(({ status }) => status === 200).length
    t.ok(passed <= 200 && passed >= 197, `${passed} of 200`)
    t.ok(asked <= 60, `asked ${asked} times`)
    t.same(await beds[0].repeat(5, '/read', { owner }), Array(5).fill(429))
    t.ok(asked <= 60, 'and not for what is known to be spent')
  })

  await t.test('a hundred at once get a hundred numbers', async (t) => {
    const counters = createCounters(storeOf(redis, createPrefix(t, url)))
    const counts = await Promise.all(Array.from({ length: 100 }, () => counters.increment('k', 1, 60_000)))
    t.same(
      counts.map((one) => one?.count).toSorted((a, b) => a! - b!),
      Array.from({ length: 100 }, (_, i) => i + 1),
    )
    t.ok(counts.every((one) => one!.ttlMs > 0 && one!.ttlMs <= 60_000))
  })

  await t.test('a counter without an end is given one', async (t) => {
    const prefix = createPrefix(t, url)
    const counters = createCounters(storeOf(redis, prefix))
    await redis.set(`${prefix}:rate:k`, 7)
    t.same(await counters.increment('k', 1, 5000), { count: 8, ttlMs: 5000 })
    t.ok((await redis.pttl(`${prefix}:rate:k`)) > 0)
  })

  await t.test('the first salt of a day is everybody’s', async (t) => {
    const counters = createCounters(storeOf(redis, createPrefix(t, url)))
    t.equal(await counters.agree('salt', 'one', 1000), 'one')
    t.equal(await counters.agree('salt', 'two', 1000), 'one')
  })

  await t.test('a Redis that answers late delays one request, by a quarter of a second', async (t) => {
    let asked = 0
    const late = createCounters({
      prefix: createPrefix(t, url),
      ask: async (what) => {
        asked += 1
        await sleep(3000, undefined, { ref: false })
        return what(redis)
      },
    })
    const bed = await openBed(t, { rateLimits: { ...noLimits, reads: 5 }, shared: late, now: () => 0 })
    const startedAt = performance.now()
    t.same(await bed.repeat(4, '/read', { owner: 'a' }), [200, 200, 200, 200])
    const tookMs = performance.now() - startedAt
    t.ok(tookMs > 200 && tookMs < 2500, `${Math.round(tookMs)} ms`)
    t.equal(asked, 1)
  })
})
