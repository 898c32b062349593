/**
 * Redis is there and does not answer, in mid-stream: frozen, paused, or busy with a script (rows 35 and 36 of the table of
 * faults). Where a reply is made nobody waits for it; elsewhere viewers are served from checkpoints meanwhile.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'tap'
import { nowMs } from '../support/history.ts'
import { skipFaults } from '../support/limits.ts'
import { type RedisScene, readHealth, startRedisScene, untilDegraded } from '../support/redis-scene.ts'
import { trialsOf } from '../support/trials.ts'

const skip = skipFaults()
const trials = trialsOf(1)
/** 30 s in a longer look. */
const frozenMs = trials > 1 ? 30_000 : 10_000
const pausedMs = 5_000
const awayMs = 1_500

const stalls: readonly {
  readonly title: string
  /** Resolves when it is over. */
  readonly stall: (scene: RedisScene) => Promise<void>
}[] = [
  {
    title: `row 35: Redis is frozen for ${frozenMs / 1000} s`,
    async stall({ cluster }) {
      cluster.redis.signal('SIGSTOP')
      await sleep(frozenMs)
      cluster.redis.signal('SIGCONT')
    },
  },
  {
    title: 'row 36: Redis pauses all its clients for 5 s',
    async stall({ order }) {
      await order('CLIENT', 'PAUSE', pausedMs, 'ALL')
      await sleep(pausedMs)
    },
  },
  {
    title: 'row 36: a script keeps Redis busy for 5 s',
    async stall({ order }) {
      // DEBUG SLEEP is not allowed by default; this blocks the same loop.
      const script = `local function now() local t = redis.call('TIME') return t[1] * 1000 + t[2] / 1000 end
        local over = now() + ${pausedMs} repeat until now() >= over`
      // Longer than its own client waits.
      await Promise.all([order('EVAL', script, 0).catch(() => undefined), sleep(pausedMs)])
    },
  },
]

for (const { title, stall } of stalls) {
  test(`${title}: no viewer of the gateway that makes the reply waits, and both say that they are degraded, and why`, {
    skip,
  }, async (t) => {
    const scene = await startRedisScene(t)
    for (let trial = 1; trial <= trials; trial += 1) {
      const talks = await scene.talk(`stall-${trial}`)
      const over = scene.begin('redis away')
      const stalled = stall(scene)
      scene.comeBack(talks, awayMs)
      await untilDegraded([scene.here, scene.elsewhere], true)
      for (const gateway of [scene.here, scene.elsewhere]) {
        t.match(await readHealth(gateway), {
          ok: true,
          degraded: true,
          reason: /^Redis cannot be (written|read) \(.+\)/,
        })
      }
      await stalled
      over()
      await scene.untilWell(talks, nowMs())
      await scene.end(talks)
    }
    await scene.finish(t)
  })
}
