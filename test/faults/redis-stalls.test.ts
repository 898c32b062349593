/**
 * Redis is there and does not answer, in mid-stream: frozen, paused, or busy with a script (rows 35 and 36 of the table of
 * faults). Where a reply is made nobody waits for it; elsewhere viewers are served from checkpoints meanwhile.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { type Test, test } from 'tap'
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

test(`row 35: Redis is frozen for ${frozenMs / 1000} s: nobody waits where the reply is made, and the gateways say why they are degraded`, {
  skip,
}, async (t) => {
  const scene = await startRedisScene(t)
  for (let trial = 1; trial <= trials; trial += 1) {
    await stalled(t, scene, `r35-${trial}`, async () => {
      scene.cluster.redis.signal('SIGSTOP')
      await sleep(frozenMs)
      scene.cluster.redis.signal('SIGCONT')
    })
  }
  await scene.finish(t)
})

test('row 36: Redis pauses all clients for 5 s, or is kept busy by a script: nobody waits where the reply is made', {
  skip,
}, async (t) => {
  const scene = await startRedisScene(t)
  for (let trial = 1; trial <= trials; trial += 1) {
    await stalled(t, scene, `r36-paused-${trial}`, async () => {
      await scene.order('CLIENT', 'PAUSE', pausedMs, 'ALL')
      await sleep(pausedMs)
    })
    await stalled(t, scene, `r36-busy-${trial}`, async () => {
      // DEBUG SLEEP is not allowed by default; this blocks the same loop. It takes longer than its own client waits.
      const script = `local function now() local t = redis.call('TIME') return t[1] * 1000 + t[2] / 1000 end
        local over = now() + ${pausedMs} repeat until now() >= over`
      await Promise.all([scene.order('EVAL', script, 0).catch(() => undefined), sleep(pausedMs)])
    })
  }
  await scene.finish(t)
})

/** @param stall resolves when it is over */
async function stalled(t: Test, scene: RedisScene, key: string, stall: () => Promise<void>): Promise<void> {
  const talks = await scene.talk(key)
  const over = scene.begin('redis away')
  const stalling = stall()
  scene.comeBack(talks, awayMs)
  await untilDegraded([scene.here, scene.elsewhere], true)
  for (const gateway of [scene.here, scene.elsewhere]) {
    t.match(await readHealth(gateway), { ok: true, degraded: true, reason: /^Redis cannot be (written|read) \(.+\)/ })
  }
  await stalling
  over()
  await scene.untilWell(talks, nowMs())
  await scene.end(talks)
}
