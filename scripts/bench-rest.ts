/**
 * `npm run bench:rest [-- --sessions=100000 --rounds=3]`: how long the REST side takes with 100 000 sessions and a million
 * messages. It fills a database of its own on the Postgres of DATABASE_URL or TEST_DATABASE_URL, or on one that it starts
 * and removes, starts a Redis of its own and two gateways as they are started anywhere, and asks them over keep-alive
 * HTTP, as owners of three sizes. It prints the median of the rounds beside each target and judges nothing: figures
 * depend on the machine, which the client, the gateways and the stores share. The exit code is 1 only when something
 * failed; what was made is removed in any case.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { createHmac, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import postgres from 'postgres'
import { Pool } from 'undici'
import { openPostgres } from '../src/db/postgres.ts'
import { writeCursor } from '../src/sessions/cursor.ts'
import { type Seed, searched, seed } from './seed.ts'
import { type Server, ServicesError, startPostgres, startRedis } from './servers.ts'
import { explainMissing, findInstalled } from './services.ts'

/** Longest wait for a gateway to listen and to be ready. */
const startMs = 60_000
/** Time that a gateway gets to end before it is killed. */
const endMs = 10_000
/** Requests at once while latencies are measured, and while throughput is. */
const latencyClients = 4
const throughputClients = 128
/** Sessions whose history is asked for again and again, and their share of the requests. */
const hotSessions = 500
const hitShare = 0.8
const throughputRequests = 10_000
const historyPath = (id: string) => `/api/v1/sessions/${id}/messages?limit=10`
const root = join(import.meta.dirname, '..')

const say = (line: string): void => {
  process.stdout.write(`${line}\n`)
}

interface Request {
  readonly path: string
  readonly token: string
  readonly body?: string
}

interface Case {
  readonly name: string
  /** In words, as the table shows it. */
  readonly target: string
  readonly requests: number
  /** The n-th request, counted over all rounds: what was asked for once is in the cache. */
  readonly make: (n: number) => Request
}

interface Owned {
  readonly id: string
  readonly user_id: string
}

interface Scene {
  readonly gateways: readonly Pool[]
  readonly cases: readonly Case[]
  /** Sessions in an order without any order. */
  readonly sessions: readonly Owned[]
  readonly token: (userId: string) => string
}

function readOptions(args: readonly string[]): { sessions: number; rounds: number } {
  const options = { sessions: 100_000, rounds: 3 }
  for (const arg of args) {
    const [, name, value] = /^--(sessions|rounds)=(\d+)$/.exec(arg) ?? []
    if (name !== 'sessions' && name !== 'rounds') throw new ServicesError(`unknown option ${arg}`)
    options[name] = Number(value)
  }
  if (options.sessions < 5000 || options.rounds < 1)
    throw new ServicesError('--sessions is 5000 or more, --rounds 1 or more')
  return options
}

async function main(): Promise<void> {
  const options = readOptions(process.argv.slice(2))
  const interrupt = new AbortController()
  const closers: (() => Promise<unknown>)[] = []
  const closeAll = async () => {
    for (let close = closers.pop(); close !== undefined; close = closers.pop()) await close()
  }
  let closing: Promise<void> | undefined
  const stop = (name: NodeJS.Signals): void => {
    interrupt.abort(new ServicesError(`The benchmark was ended by ${name}`))
    // Loading takes minutes; it fails when its server goes.
    closing ??= closeAll()
  }
  process.on('SIGINT', stop).on('SIGTERM', stop).on('SIGHUP', stop)
  try {
    const scene = await prepare(options.sessions, closers, interrupt.signal)
    await measure(scene, options.rounds, interrupt.signal)
  } catch (error) {
    interrupt.signal.throwIfAborted()
    throw error
  } finally {
    await closing
    await closeAll()
  }
}

async function prepare(count: number, closers: (() => Promise<unknown>)[], signal: AbortSignal): Promise<Scene> {
  const given = process.env.DATABASE_URL || process.env.TEST_DATABASE_URL
  const server = given ?? (await start('postgres', closers, signal)).url
  const redisUrl = (await start('redis', closers, signal)).url
  const url = await createDatabase(server, closers)
  say(
    `postgres  ${given === undefined ? 'started for this, without fsync' : new URL(given).host}; redis started for this`,
  )

  const db = openPostgres({ url, unpooledUrl: url, poolSize: 1 })
  try {
    await db.migrate()
  } finally {
    await db.close()
  }
  const seededAt = performance.now()
  const seeded = await seed(url, count)
  say(
    `seeded    ${seeded.sessions} sessions, ${seeded.messages} messages in ${Math.round((performance.now() - seededAt) / 1000)} s`,
  )
  signal.throwIfAborted()

  const secret = randomBytes(32).toString('hex')
  const env = { DATABASE_URL: url, REDIS_URL: redisUrl, JWT_SECRET: secret }
  const gateways = await Promise.all([startGateway(env, closers), startGateway(env, closers)])
  return readScene(url, seeded, gateways, createTokens(secret))
}

async function start(
  need: 'postgres' | 'redis',
  closers: (() => Promise<unknown>)[],
  signal: AbortSignal,
): Promise<Server> {
  const at = findInstalled(need, process.env)
  if (at === undefined) throw new ServicesError(explainMissing([need]))
  const server = await (need === 'postgres'
    ? startPostgres(at, signal, { settings: ['shared_buffers=512MB', 'max_wal_size=8GB'], place: tmpdir() })
    : startRedis(at, signal))
  closers.push(() => server.close())
  return server
}

/** With a locale that knows letters: with C, no index of trigrams holds Chinese. */
async function createDatabase(server: string, closers: (() => Promise<unknown>)[]): Promise<string> {
  const name = `verbatim_bench_${randomBytes(4).toString('hex')}`
  const onServer = async (statement: (sql: postgres.Sql) => PromiseLike<unknown>): Promise<void> => {
    const sql = postgres(server, { max: 1, onnotice: () => undefined })
    try {
      await statement(sql)
    } finally {
      await sql.end({ timeout: 5 })
    }
  }
  closers.push(() => onServer((sql) => sql`drop database if exists ${sql(name)} with (force)`))
  await onServer(async (sql) => {
    const [row] = await sql<{ knows: boolean }[]>`select lower('É') = 'é' as knows`
    const locale = row?.knows === true ? sql`` : sql`lc_collate 'C' lc_ctype 'C.UTF-8'`
    await sql`create database ${sql(name)} template template0 ${locale}`
  })
  const url = new URL(server)
  url.pathname = `/${name}`
  return url.href
}

async function startGateway(env: Record<string, string>, closers: (() => Promise<unknown>)[]): Promise<Pool> {
  const child = spawn(process.execPath, ['src/main.ts'], {
    cwd: root,
    env: {
      PATH: process.env.PATH ?? '',
      PORT: '0',
      HOST: '127.0.0.1',
      DRAIN_MS: '0',
      RATE_LIMIT_RUNS: '0',
      RATE_LIMIT_READS: '0',
      RATE_LIMIT_VISITORS: '0',
      ...env,
    },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  closers.push(() => end(child))
  const url = await new Promise<string>((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error('a gateway did not start')), startMs)
    child.once('exit', (code) => reject(new Error(`a gateway ended with ${code}`)))
    // Read to the end: its log must not fill the pipe.
    createInterface({ input: child.stdout }).on('line', (line) => {
      const found = /Verbatim listens on (http:\/\/\S+)/.exec(line)?.[1]
      if (found === undefined) return
      clearTimeout(timer)
      resolve(found)
    })
  })
  for (const giveUpAt = Date.now() + startMs; !(await fetch(`${url}/health/ready`)).ok; ) {
    if (Date.now() > giveUpAt) throw new Error('a gateway is not ready')
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  const pool = new Pool(url, { connections: throughputClients, pipelining: 1 })
  closers.push(() => pool.close())
  return pool
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const timer = setTimeout(() => child.kill('SIGKILL'), endMs)
  child.kill('SIGTERM')
  await once(child, 'exit')
  clearTimeout(timer)
}

/** A token of a user, the same each time. */
function createTokens(secret: string): (userId: string) => string {
  const known = new Map<string, string>()
  const encode = (part: object) => Buffer.from(JSON.stringify(part)).toString('base64url')
  return (userId) => {
    const token = known.get(userId)
    if (token !== undefined) return token
    const now = Math.floor(Date.now() / 1000)
    const signed = `${encode({ alg: 'HS256', typ: 'JWT' })}.${encode({ sub: userId, iat: now, exp: now + 86_400 })}`
    const made = `${signed}.${createHmac('sha256', secret).update(signed).digest('base64url')}`
    known.set(userId, made)
    return made
  }
}

async function readScene(
  url: string,
  { owners }: Seed,
  gateways: readonly Pool[],
  token: (userId: string) => string,
): Promise<Scene> {
  const sql = postgres(url, { max: 1 })
  const sessions = await sql<Owned[]>`select id, user_id from chat_sessions order by md5(id::text) limit 50000`
  const [deep] = await sql<{ time: string; id: string }[]>`
    select to_char(last_activity_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as time, id from chat_sessions
    where user_id = ${owners.heavy} order by last_activity_at desc, id desc
    offset (select count(*) * 9 / 10 from chat_sessions where user_id = ${owners.heavy}) limit 1`
  await sql.end()
  if (deep === undefined) throw new Error('the heavy owner has no sessions')

  // A third of the questions each: from the owner of a tenth of everything, one with a thousand, one with fifty.
  const asker = (n: number): string => {
    if (n % 3 === 0) return token(owners.heavy)
    const some = n % 3 === 1 ? owners.middle : owners.small
    return token(some[n % some.length] as string)
  }
  const list =
    (query: string) =>
    (n: number): Request => ({ path: `/api/v1/sessions?${query}`, token: asker(n) })
  const historyOf = (session: Owned): Request => ({ path: historyPath(session.id), token: token(session.user_id) })
  const search = (name: string, q: string): Case => ({
    name: `search, ${name}`,
    target: 'p99 < 150 ms',
    requests: 200,
    make: list(`q=${encodeURIComponent(q)}`),
  })
  const filters = [
    'kind=report',
    'status=failed',
    'mode=quality',
    'tag=starred',
    'tag=work&status=completed',
    'from=2020-01-01T00:00:00Z&archived=false',
  ]
  return {
    gateways,
    token,
    sessions,
    cases: [
      {
        name: 'create',
        target: 'p99 < 50 ms',
        requests: 500,
        make: (n) => ({
          path: '/api/v1/sessions',
          token: asker(n),
          body: JSON.stringify({ title: `Bench ${n}`, metadata: { n } }),
        }),
      },
      {
        name: 'history of 10, first time',
        target: 'p99 < 100 ms',
        requests: 1000,
        make: (n) => historyOf(sessions[hotSessions + (n % (sessions.length - hotSessions))] as Owned),
      },
      {
        name: 'history of 10, again',
        target: 'p50 < 2 ms',
        requests: 2000,
        make: (n) => historyOf(sessions[n % hotSessions] as Owned),
      },
      { name: 'list', target: 'p99 < 50 ms', requests: 500, make: list('') },
      {
        name: 'list with filters',
        target: 'p99 < 50 ms',
        requests: 500,
        make: (n) => list(filters[Math.floor(n / 3) % filters.length] as string)(n),
      },
      {
        name: 'list, deep page',
        target: 'p99 < 50 ms',
        requests: 500,
        make: () => ({
          path: `/api/v1/sessions?cursor=${writeCursor([deep.time, deep.id])}`,
          token: token(owners.heavy),
        }),
      },
      search('rare word', searched.rare),
      search('common word', searched.common),
      search('two characters', searched.cjk),
      search('rare and common', `${searched.common} ${searched.rare}`),
      search('no hit', searched.absent),
    ],
  }
}

async function measure(scene: Scene, rounds: number, signal: AbortSignal): Promise<void> {
  const figures = new Map<string, { p50: number[]; p99: number[] }>(
    scene.cases.map(({ name }) => [name, { p50: [], p99: [] }]),
  )
  const perSecond: number[] = []
  // Round 0 is for compilers, plans, connections and the cache of the hot sessions.
  for (let round = 0; round <= rounds; round += 1) {
    for (const { name, requests, make } of scene.cases) {
      const times = await ask(scene, requests, latencyClients, (n) => make(round * requests + n))
      signal.throwIfAborted()
      if (round === 0) continue
      times.sort((a, b) => a - b)
      figures.get(name)?.p50.push(quantile(times, 0.5))
      figures.get(name)?.p99.push(quantile(times, 0.99))
    }
    const startedAt = performance.now()
    await ask(scene, throughputRequests, throughputClients, (n) => {
      const hit = n % 10 < hitShare * 10
      // The others from the far end, where the first times above have not been.
      const fresh = scene.sessions.length - 1 - ((round * throughputRequests + n) % (scene.sessions.length >> 1))
      const { id, user_id } = scene.sessions[hit ? n % hotSessions : fresh] as Owned
      return { path: historyPath(id), token: scene.token(user_id) }
    })
    if (round > 0) perSecond.push((throughputRequests * 1000) / (performance.now() - startedAt))
    say(`round     ${round === 0 ? 'to warm up' : `${round} of ${rounds}`}`)
  }

  const ms = (value: number) => value.toFixed(1).padStart(9)
  say('')
  say(`median of ${rounds} rounds, ${latencyClients} requests at once`)
  say(`${''.padEnd(28)}   p50 ms   p99 ms  target`)
  for (const { name, target } of scene.cases) {
    const { p50, p99 } = figures.get(name) ?? { p50: [], p99: [] }
    say(`${name.padEnd(28)}${ms(median(p50))}${ms(median(p99))}  ${target}`)
  }
  const share = `${hitShare * 100} % again`
  say(`${`histories a second, ${share}`.padEnd(37)}${median(perSecond).toFixed(0).padStart(9)}  >= 5000`)
}

/** @returns how long each request took, in milliseconds @throws when one is not answered with success */
async function ask(
  { gateways }: Scene,
  requests: number,
  clients: number,
  make: (n: number) => Request,
): Promise<number[]> {
  const times: number[] = []
  let next = 0
  async function client(): Promise<void> {
    while (next < requests) {
      const n = next
      next += 1
      const { path, token, body } = make(n)
      const startedAt = performance.now()
      const answer = await (gateways[n % gateways.length] as Pool).request({
        path,
        method: body === undefined ? 'GET' : 'POST',
        headers: {
          authorization: `Bearer ${token}`,
          ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        },
        ...(body === undefined ? {} : { body }),
      })
      const bytes = await answer.body.arrayBuffer()
      times.push(performance.now() - startedAt)
      if (answer.statusCode >= 300)
        throw new Error(`${answer.statusCode} for ${path}: ${Buffer.from(bytes).toString().slice(0, 300)}`)
    }
  }
  await Promise.all(Array.from({ length: clients }, client))
  return times
}

const quantile = (sorted: readonly number[], q: number) =>
  sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? Number.NaN

const median = (values: readonly number[]) =>
  quantile(
    values.toSorted((a, b) => a - b),
    0.5,
  )

try {
  await main()
} catch (error) {
  if (!(error instanceof ServicesError)) throw error
  say(error.message)
  process.exitCode = 1
}
