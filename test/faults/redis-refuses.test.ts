/**
 * Redis answers, and will not have it, in mid-stream: it cuts every connection again and again, is out of memory, cannot save, is
 * a replica, or loads its data (rows 37 and 38 of the table of faults). Nothing is lost by it, and the gateway says what
 * Redis says.
 */
import { mkdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import { type Test, test } from 'tap'
import { openServer } from '../support/cluster.ts'
import { nowMs } from '../support/history.ts'
import { skipFaults, untilTrue } from '../support/limits.ts'
import { readHealth, startRedisScene } from '../support/redis-scene.ts'
import { trialsOf } from '../support/trials.ts'

const skip = skipFaults()
const trials = trialsOf(1)
const awayMs = 700
const killEveryMs = 200
const killRounds = 20
/** One outage that comes and goes, and at most another. */
const linesMax = 4
const refusedMs = 2_000
/** 4 s, by a delay for each key that Redis has for tests of its own. */
const loadKeys = 4_000
const loadDelayUs = 1_000

test('row 37: all connections to Redis are cut every 200 ms: nothing is lost, nothing comes twice, nobody waits', {
  skip,
}, async (t) => {
  const scene = await startRedisScene(t)
  for (let trial = 1; trial <= trials; trial += 1) {
    const talks = await scene.talk(`r37-${trial}`)
    const over = scene.begin('redis away')
    for (let round = 0; round < killRounds; round += 1) {
      if (round % 5 === 1) scene.comeBack(talks, awayMs)
      await scene.order('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes')
      await sleep(killEveryMs)
    }
    over()
    await scene.untilWell(talks, nowMs())
    await scene.end(talks)
  }
  await scene.finish(t)
  for (const { name, lines } of scene.cluster.gateways) {
    const said = lines.filter((line) => /"message":"the event log is (degraded|shared)/.test(line))
    t.ok(said.length <= 1 + linesMax * trials, `${name} does not fill its log (${said.length} lines)`)
  }
})

test('row 38: Redis is out of memory, cannot save, is a replica, loads: nothing is lost, and it is said why until it is over', {
  skip,
}, async (t) => {
  const scene = await startRedisScene(t)
  const { order, here } = scene
  const master = await startMaster(t)

  for (let trial = 1; trial <= trials; trial += 1) {
    await refused('out of memory', /OOM/, {
      refuse: () => order('CONFIG', 'SET', 'maxmemory', '1'),
      allow: () => order('CONFIG', 'SET', 'maxmemory', '0'),
    })

    // Whoever runs this may write everywhere; that a folder is in the way of the file stops anybody.
    const [, folder] = (await order('CONFIG', 'GET', 'dir')) as [string, string]
    const inTheWay = join(folder, 'dump.rdb')
    await refused('cannot save', /MISCONF/, {
      async refuse() {
        // A replica has kept there what its master sent.
        await rm(inTheWay, { force: true })
        await mkdir(inTheWay)
        await order('CONFIG', 'SET', 'save', '3600 1')
        await order('BGSAVE')
        await untilTrue(async () => /rdb_last_bgsave_status:err/.test(String(await order('INFO', 'persistence'))))
      },
      async allow() {
        await order('CONFIG', 'SET', 'save', '')
        await rm(inTheWay, { recursive: true })
      },
    })

    // Of a host that is gone, as after a failover that has gone wrong.
    await refused('a replica', /READONLY/, {
      refuse: () => order('REPLICAOF', '127.0.0.1', '1'),
      allow: () => order('REPLICAOF', 'NO', 'ONE'),
    })

    // A replica that loads what its master sends refuses even to be read; who writes is told READONLY before LOADING.
    await order('CONFIG', 'SET', 'key-load-delay', loadDelayUs)
    await order('CONFIG', 'SET', 'loading-process-events-interval-bytes', 1024)
    const { hostname, port } = new URL(master)
    await refused('loading', /READONLY|LOADING/, {
      refuse: () => order('REPLICAOF', hostname, port),
      allow: () => order('REPLICAOF', 'NO', 'ONE'),
    })
  }
  await scene.finish(t)

  async function refused(
    what: string,
    reason: RegExp,
    { refuse, allow }: { refuse: () => Promise<unknown>; allow: () => Promise<unknown> },
  ): Promise<void> {
    const talks = await scene.talk(`${what.replaceAll(' ', '-')}-${scene.faults.length}`)
    const over = scene.begin('redis away')
    await refuse()
    scene.comeBack(talks, awayMs)
    await untilTrue(async () => reason.test((await readHealth(here)).reason ?? ''))
    t.match(await readHealth(here), { ok: true, degraded: true, reason }, what)
    await sleep(refusedMs)
    await allow()
    over()
    await scene.untilWell(talks, nowMs())
    await scene.end(talks)
  }
})

/** A Redis that has enough to be loaded slowly. @returns its URL */
async function startMaster(t: Test): Promise<string> {
  const { url } = await openServer(t, 'redis')
  const redis = new Redis(url)
  t.teardown(() => redis.disconnect())
  await redis.config('SET', 'repl-diskless-sync-delay', 0)
  await redis.mset(
    Object.fromEntries(Array.from({ length: loadKeys }, (_, index) => [`key-${index}`, 'x'.repeat(100)])),
  )
  return url
}
