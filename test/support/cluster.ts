/**
 * A small deployment for tests of faults: gateways as processes, a Postgres and a Redis of their own that may be killed,
 * a proxy in front of each store for each gateway, so that one gateway can be cut off alone, and a scripted
 * provider. It is all gone when the test ends: processes, ports, folders.
 *
 * The cluster owns what it starts. Whatever a test has killed, frozen or cut off is still ended properly: a frozen
 * process is killed, a killed Postgres is started again so that it can end by itself.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import postgres from 'postgres'
import type { Test } from 'tap'
import { type FakeUpstream, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { type Server, ServicesError, startPostgres, startRedis } from '../../scripts/servers.ts'
import { explainMissing, findInstalled } from '../../scripts/services.ts'
import { createDataFolder, type SpawnedGateway, spawnGateway, untilReady } from './gateway.ts'
import { nowMs } from './history.ts'
import { type StoreProxy, startProxy } from './proxy.ts'
import { createSpeaker, type Speaker } from './speaker.ts'

type Teardown = Pick<Test, 'teardown'>

export interface ClusterOptions {
  /** How many to start with. */
  readonly gateways?: number
  readonly redis?: boolean
  /** Embedded database: one gateway at a time, and no stores to be cut off from. */
  readonly embedded?: boolean
  /** For every gateway, over the defaults. */
  readonly env?: Readonly<Record<string, string>>
}

export interface ClusterGateway extends Omit<SpawnedGateway, 'process'> {
  /** `g1`, `g2`, … in the order of their start; a gateway that is started again is a new one. */
  readonly name: string
  readonly pid: number
  /** Its row in `instances`; undefined on an embedded database. */
  readonly instanceId: string | undefined
  /** Its way to the stores. */
  readonly database: StoreProxy | undefined
  readonly redis: StoreProxy | undefined
  /** True until it is killed, or told to end. */
  readonly isUp: boolean
  /** When it was first told to end; 0 before. */
  readonly terminatedAtMs: number
  /** kill -9; resolves when it is gone, with the time of the kill. */
  kill(): Promise<number>
  /** SIGSTOP and SIGCONT. */
  freeze(): void
  thaw(): void
  /** SIGTERM. Its `exited` says how that ends. */
  terminate(): void
}

export interface Cluster {
  readonly postgres: Server
  readonly redis: Server
  readonly speaker: Speaker
  readonly upstream: FakeUpstream
  /** All there ever were, in order. */
  readonly gateways: readonly ClusterGateway[]
  /** Of those that are up. */
  readonly urls: readonly string[]
  /** Starts one more, and resolves when it is ready. */
  spawn(env?: Readonly<Record<string, string>>): Promise<ClusterGateway>
  /** Straight to Postgres, past every proxy. */
  readonly sql: postgres.Sql
  /** What may never be: an error that nobody caught, a bug that shows, a process that ended without being told to. */
  complaints(): readonly string[]
}

const startMs = 60_000
const lookMs = 100
// What Node and the process edge say of an error that nobody caught, and what the gateway says of one that it did not expect.
const complaint =
  /unhandled ?rejection|uncaught|nobody caught|nobody expected|fault of the gateway|ERR_UNHANDLED|MaxListenersExceeded|TypeError|RangeError|out of memory/i

export async function startCluster(t: Teardown, options: ClusterOptions = {}): Promise<Cluster> {
  const { gateways: count = 2, redis: withRedis = true, embedded = false, env = {} } = options
  const speaker = createSpeaker()
  const upstream = await startFakeUpstream({ script: speaker.script })
  t.teardown(() => upstream.close())

  const pg = embedded ? undefined : await openServer(t, 'postgres')
  const redis = withRedis && !embedded ? await openServer(t, 'redis') : undefined
  const folder = embedded ? await createDataFolder(t) : undefined
  const sql = postgres(pg?.url ?? 'postgres://127.0.0.1:1/none', {
    max: 2,
    connect_timeout: 5,
    onnotice: () => undefined,
  })
  t.teardown(() => sql.end({ timeout: 1 }))

  const gateways: ClusterGateway[] = []
  const endedAlone: string[] = []
  const instances = new Set<string>()
  // One after the other: a new row in `instances` is then the new gateway's.
  let starting: Promise<unknown> = Promise.resolve()

  async function spawn(more: Readonly<Record<string, string>> = {}): Promise<ClusterGateway> {
    const database = pg === undefined ? undefined : await startProxy(t, new URL(pg.url))
    const redisProxy = redis === undefined ? undefined : await startProxy(t, new URL(redis.url))
    const gateway = await spawnGateway(t, {
      ...(pg === undefined || database === undefined ? {} : { DATABASE_URL: through(pg.url, database) }),
      ...(redis === undefined || redisProxy === undefined ? {} : { REDIS_URL: through(redis.url, redisProxy) }),
      ...(folder === undefined ? {} : { DATA_DIR: folder }),
      OPENAI_BASE_URL: upstream.url,
      CHECKPOINT_MS: '1000',
      RUNS_PER_OWNER: '0',
      VIEWERS_PER_OWNER: '0',
      RATE_LIMIT_RUNS: '0',
      RATE_LIMIT_READS: '0',
      RATE_LIMIT_VISITORS: '0',
      ...env,
      ...more,
      LOG_LEVEL: 'info',
    })
    if (gateway.url === '') throw new Error(`a gateway did not start; it said:\n${gateway.lines.join('\n')}`)
    await untilReady(gateway.url)
    const instanceId = pg === undefined ? undefined : await findInstance()
    let up = true
    let terminatedAtMs = 0
    const { pid = 0 } = gateway.process
    gateway.exited.then((code) => {
      if (up) endedAlone.push(`g${gateways.indexOf(one) + 1}: ended by itself with ${code}`)
    })
    const one: ClusterGateway = {
      name: `g${gateways.length + 1}`,
      url: gateway.url,
      lines: gateway.lines,
      exited: gateway.exited,
      pid,
      instanceId,
      database,
      redis: redisProxy,
      get isUp() {
        return up
      },
      get terminatedAtMs() {
        return terminatedAtMs
      },
      async kill() {
        up = false
        gateway.process.kill('SIGKILL')
        const atMs = nowMs()
        await gateway.exited
        return atMs
      },
      freeze: () => void gateway.process.kill('SIGSTOP'),
      thaw: () => void gateway.process.kill('SIGCONT'),
      terminate() {
        up = false
        if (terminatedAtMs === 0) terminatedAtMs = nowMs()
        gateway.process.kill('SIGTERM')
      },
    }
    gateways.push(one)
    return one
  }

  async function findInstance(): Promise<string | undefined> {
    // The database may be away for a while: that is what these tests are about.
    for (const giveUpAt = nowMs() + startMs; nowMs() < giveUpAt; await sleep(lookMs)) {
      const rows = await sql<{ id: string }[]>`select id from instances`.catch(() => undefined) // Asked again.
      const fresh = rows?.filter(({ id }) => !instances.has(id)) ?? []
      for (const { id } of fresh) instances.add(id)
      if (fresh[0] !== undefined) return fresh[0].id
    }
    return undefined
  }

  const cluster: Cluster = {
    get postgres() {
      if (pg === undefined) throw new Error('this cluster has no Postgres')
      return pg
    },
    get redis() {
      if (redis === undefined) throw new Error('this cluster has no Redis')
      return redis
    },
    speaker,
    upstream,
    gateways,
    get urls() {
      return gateways.filter(({ isUp }) => isUp).map(({ url }) => url)
    },
    spawn(more) {
      const next = starting.then(() => spawn(more))
      starting = next.catch(() => undefined) // its caller is told
      return next
    },
    sql,
    complaints: () => [
      ...endedAlone,
      ...gateways.flatMap(({ name, lines }) =>
        lines.filter((line) => complaint.test(line)).map((line) => `${name}: ${line}`),
      ),
    ],
  }
  for (let n = 0; n < count; n += 1) await cluster.spawn()
  return cluster
}

/** A server of the test's own; a Postgres has the tables already when the run has prepared that. */
export async function openServer(t: Teardown, need: 'postgres' | 'redis'): Promise<Server> {
  const installed = findInstalled(need, process.env)
  if (installed === undefined) throw new ServicesError(explainMissing([need]))
  const signal = AbortSignal.timeout(startMs)
  const server = await (need === 'postgres'
    ? startPostgres(installed, signal, {
        settings: ['synchronous_commit=on'],
        copyOf: process.env.TEST_POSTGRES_DATA,
      })
    : startRedis(installed, signal))
  t.teardown(() => server.close())
  return server
}

export function through(url: string, proxy: StoreProxy): string {
  const proxied = new URL(url)
  proxied.hostname = '127.0.0.1'
  proxied.port = String(proxy.port)
  return proxied.href
}
