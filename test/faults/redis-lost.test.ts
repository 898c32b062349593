/**
 * Redis dies and comes back empty, or forgets everything, in mid-stream (rows 33 and 34 of the table of faults). Where a
 * reply is made nobody notices; elsewhere viewers are served from checkpoints until the log has been seeded again.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'tap'
import { nowMs } from '../support/history.ts'
import { skipFaults } from '../support/limits.ts'
import { startRedisScene, untilDegraded, untilShownAfter } from '../support/redis-scene.ts'
import { trialsOf } from '../support/trials.ts'

const skip = skipFaults()
const trials = trialsOf(2)
const startMs = 60_000
/** How long Redis is away, and how long somebody is who comes back while it is. */
const downMs = 3_000
const awayMs = 1_000

test('row 33: Redis is killed and started again empty: nothing is lost, nobody waits, and other gateways are served finely again', {
  skip,
}, async (t) => {
  const scene = await startRedisScene(t)
  for (let trial = 1; trial <= trials; trial += 1) {
    const talks = await scene.talk(`r33-${trial}`)
    const ending = await scene.talk(`r33-ending-${trial}`)
    const over = scene.begin('redis away')
    await scene.cluster.redis.crash()
    scene.comeBack([...talks, ...ending], awayMs)
    await untilDegraded([scene.here, scene.elsewhere], true)
    await sleep(downMs)
    // Redis never hears of this end.
    await scene.end(ending)
    await scene.cluster.redis.restart(AbortSignal.timeout(startMs))
    over()
    await scene.untilWell(talks, nowMs())
    await scene.end(talks)
  }
  await scene.finish(t)
})

test('row 34: Redis forgets everything: nobody notices, and who comes back later with an older cursor misses nothing', {
  skip,
}, async (t) => {
  const scene = await startRedisScene(t)
  // It has read nothing of these replies before, so all it has is what it finds in Redis then.
  const third = await scene.spawn()
  for (let trial = 1; trial <= trials; trial += 1) {
    const talks = await scene.talk(`r34-${trial}`)
    const over = scene.begin('redis away')
    // Away already when it happens, so its cursor is of before.
    scene.comeBack(talks, awayMs, third)
    await scene.order('FLUSHALL')
    await untilShownAfter(talks.flatMap(({ near, far, comer }) => [near, far, comer]))
    over()
    await scene.untilWell(talks, nowMs())
    await scene.end(talks)
  }
  await scene.finish(t)
})
