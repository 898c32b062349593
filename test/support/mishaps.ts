/**
 * The mishaps of the chaos command: a schedule that follows from a seed, and what each of them does to a deployment. A mishap is made,
 * lasts, and is undone; its times are noted for the checker. One that has no victim at its time (all others are already
 * dead or frozen) is left out, because something has to stay for viewers to come back to.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import type { ClusterGateway } from './cluster.ts'
import type { ProxyMode } from './proxy.ts'
import type { Random } from './random.ts'
import type { Scene } from './scene.ts'

export const mishapKinds = [
  'gateway killed',
  'gateway restarted',
  'gateway frozen',
  'Redis killed',
  'Redis flushed',
  'Redis frozen',
  'Redis paused',
  'Redis clients killed',
  'Postgres killed',
  'Postgres backends terminated',
  'gateway cut off from Postgres',
  'gateway cut off from Redis',
] as const
export type MishapKind = (typeof mishapKinds)[number]

export interface Mishap {
  readonly atMs: number
  readonly kind: MishapKind
  readonly lastsMs: number
  /** Which of the possible victims. */
  readonly victim: number
  readonly mode: ProxyMode
}

/** How long each lasts, from and to. What has no length in itself has one of 0. */
const lengths: Readonly<Record<MishapKind, readonly [number, number]>> = {
  'gateway killed': [0, 0],
  'gateway restarted': [0, 0],
  'gateway frozen': [12_000, 20_000],
  'Redis killed': [500, 5_000],
  'Redis flushed': [0, 0],
  'Redis frozen': [1_000, 10_000],
  'Redis paused': [500, 5_000],
  'Redis clients killed': [500, 3_000],
  'Postgres killed': [500, 4_000],
  'Postgres backends terminated': [500, 3_000],
  'gateway cut off from Postgres': [1_000, 14_000],
  'gateway cut off from Redis': [1_000, 10_000],
}
/** Between two mishaps: they come on top of each other, or leave time for the one before to be got over. */
const pauseMs = [1_000, 6_000] as const
const lullMs = [15_000, 22_000] as const
const lullChance = 0.4
const stormMs = { redis: 200, postgres: 100 } as const
const restartMs = 60_000
/** From SIGTERM to the end of the process, with all that closing may wait for. */
const exitMs = 60_000

export function planMishaps(random: Random, fromMs: number, toMs: number): Mishap[] {
  const between = ([low, high]: readonly [number, number]) => low + random.integer(high - low + 1)
  const mishaps: Mishap[] = []
  // Each kind comes once before any comes again, so that a short run sees as many as it can.
  let bag: MishapKind[] = []
  for (let atMs = fromMs; atMs < toMs; atMs += between(random.next() < lullChance ? lullMs : pauseMs)) {
    if (bag.length === 0) bag = [...mishapKinds]
    const [kind] = bag.splice(random.integer(bag.length), 1)
    if (kind === undefined) break
    const mode = random.pick<ProxyMode>(['hang', 'refuse'])
    mishaps.push({ atMs, kind, lastsMs: between(lengths[kind]), victim: random.integer(1_000), mode })
  }
  return mishaps
}

export function describeMishap({ atMs, kind, lastsMs, victim, mode }: Mishap): string {
  const length = lastsMs === 0 ? '' : ` for ${(lastsMs / 1000).toFixed(1)} s`
  const how = kind.includes('cut off') ? ` (${mode})` : ''
  return `${(atMs / 1000).toFixed(1).padStart(7)} s  ${kind}${how}${length}${kind.startsWith('gateway') ? `, victim ${victim}` : ''}`
}

export interface MishapMaker {
  /** Makes it and undoes it. @returns false when there was nobody to do it to */
  make(mishap: Mishap): Promise<boolean>
  /** Exit codes that should have been 0. */
  readonly badExits: readonly string[]
}

export function createMishapMaker(scene: Scene, drainMs: number): MishapMaker {
  const { cluster } = scene
  const busy = new Set<ClusterGateway | 'Redis' | 'Postgres'>()
  const badExits: string[] = []

  /** A gateway that is well, when another one stays. */
  function choose(victim: number): ClusterGateway | undefined {
    const well = cluster.gateways.filter((gateway) => gateway.isUp && !busy.has(gateway))
    return well.length < 2 ? undefined : well[victim % well.length]
  }

  async function holding(thing: ClusterGateway | 'Redis' | 'Postgres', act: () => Promise<void>): Promise<boolean> {
    if (busy.has(thing)) return false
    busy.add(thing)
    try {
      await act()
    } finally {
      busy.delete(thing)
    }
    return true
  }

  async function onRedis(act: (redis: Redis) => Promise<void>): Promise<void> {
    const redis = new Redis(cluster.redis.url, { lazyConnect: true, connectTimeout: 1_000, retryStrategy: () => null })
    redis.on('error', () => undefined) // The same error rejects the command.
    try {
      await redis.connect()
      await act(redis)
    } finally {
      redis.disconnect()
    }
  }

  async function restart(gateway: ClusterGateway): Promise<void> {
    scene.terminate(gateway, drainMs)
    const replacement = scene.spawn()
    const late = new AbortController()
    const code = await Promise.race([
      gateway.exited,
      sleep(exitMs, 'no end', { signal: late.signal }).catch(() => 'no end'), // It has ended in time.
    ])
    late.abort()
    // A process whose database is away has to leave its commits to others; that it says so is right.
    const stores = scene.faults.some(({ kind, toMs }) => kind === 'database away' && toMs > gateway.terminatedAtMs)
    if (code === 'no end' || (code !== 0 && !stores)) badExits.push(`${gateway.name} ended with ${code} after SIGTERM`)
    await replacement
  }

  const acts: Readonly<Record<MishapKind, (mishap: Mishap) => Promise<boolean>>> = {
    async 'gateway killed'({ victim }) {
      const gateway = choose(victim)
      if (gateway === undefined) return false
      return holding(gateway, async () => {
        await scene.kill(gateway)
        await scene.spawn()
      })
    },
    async 'gateway restarted'({ victim }) {
      const gateway = choose(victim)
      return gateway === undefined ? false : holding(gateway, () => restart(gateway))
    },
    async 'gateway frozen'({ victim, lastsMs }) {
      const gateway = choose(victim)
      if (gateway === undefined) return false
      return holding(gateway, async () => {
        const thaw = scene.freeze(gateway)
        await sleep(lastsMs)
        thaw()
      })
    },
    'Redis killed': ({ lastsMs }) =>
      holding('Redis', async () => {
        const back = scene.begin('redis away')
        await cluster.redis.crash()
        await sleep(lastsMs)
        await cluster.redis.restart(AbortSignal.timeout(restartMs))
        back()
      }),
    'Redis flushed': () =>
      holding('Redis', async () => {
        const back = scene.begin('redis away')
        await onRedis(async (redis) => void (await redis.flushall()))
        back()
      }),
    'Redis frozen': ({ lastsMs }) =>
      holding('Redis', async () => {
        const back = scene.begin('redis away')
        cluster.redis.signal('SIGSTOP')
        await sleep(lastsMs)
        cluster.redis.signal('SIGCONT')
        back()
      }),
    'Redis paused': ({ lastsMs }) =>
      holding('Redis', async () => {
        const back = scene.begin('redis away')
        await onRedis(async (redis) => void (await redis.client('PAUSE', lastsMs, 'ALL')))
        await sleep(lastsMs)
        back()
      }),
    'Redis clients killed': ({ lastsMs }) =>
      holding('Redis', async () => {
        const back = scene.begin('redis away')
        await onRedis(async (redis) => {
          for (let left = lastsMs; left > 0; left -= stormMs.redis) {
            await redis.call('CLIENT', 'KILL', 'TYPE', 'normal')
            await sleep(stormMs.redis)
          }
        })
        back()
      }),
    'Postgres killed': ({ lastsMs }) =>
      holding('Postgres', async () => {
        const back = scene.begin('database away')
        await cluster.postgres.crash()
        await sleep(lastsMs)
        await cluster.postgres.restart(AbortSignal.timeout(restartMs))
        back()
      }),
    'Postgres backends terminated': ({ lastsMs }) =>
      holding('Postgres', async () => {
        const back = scene.begin('database away')
        for (let left = lastsMs; left > 0; left -= stormMs.postgres) {
          await cluster.sql`
            select pg_terminate_backend(pid) from pg_stat_activity
            where backend_type = 'client backend' and pid <> pg_backend_pid()`
          await sleep(stormMs.postgres)
        }
        back()
      }),
    async 'gateway cut off from Postgres'({ victim, lastsMs, mode }) {
      const gateway = choose(victim)
      if (gateway === undefined) return false
      return holding(gateway, async () => {
        const back = scene.begin('database away', gateway)
        gateway.database?.set(mode)
        await sleep(lastsMs)
        gateway.database?.set('pass')
        back()
      })
    },
    async 'gateway cut off from Redis'({ victim, lastsMs, mode }) {
      const gateway = choose(victim)
      if (gateway === undefined) return false
      return holding(gateway, async () => {
        const back = scene.begin('redis away', gateway)
        gateway.redis?.set(mode)
        await sleep(lastsMs)
        gateway.redis?.set('pass')
        back()
      })
    },
  }

  return { make: (mishap) => acts[mishap.kind](mishap), badExits }
}
