/**
 * One gateway alone loses Redis: the one whose viewers watch, or the one that makes the reply and has just ended it (rows
 * 41 and 42 of the table of faults). The database tells what Redis does not.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'tap'
import { nowMs } from '../support/history.ts'
import { skipFaults } from '../support/limits.ts'
import { readHealth, startRedisScene, type Talk, untilDegraded } from '../support/redis-scene.ts'
import { trialsOf } from '../support/trials.ts'

const skip = skipFaults()
const trials = trialsOf(1)
const awayMs = 500
const cutOffMs = 4_000
/** From the end of a run until a viewer elsewhere is told, when Redis says nothing of it. */
const endMsMax = 5_000

test('row 41: one gateway alone cannot reach Redis: it serves from the database, sees the end, and says so', {
  skip,
}, async (t) => {
  const scene = await startRedisScene(t)
  const { here, elsewhere } = scene
  for (let trial = 1; trial <= trials; trial += 1) {
    const ending = await scene.talk(`r41-ending-${trial}`)
    const going = await scene.talk(`r41-going-${trial}`)
    const over = scene.begin('redis away', elsewhere)
    elsewhere.redis?.set('hang')
    scene.comeBack([...ending, ...going], awayMs)
    await untilDegraded([elsewhere], true)
    t.match(await readHealth(here), { ok: true, degraded: false }, 'the other one is well')
    await sleep(cutOffMs)
    const sinceMs = nowMs()
    await scene.end(ending)
    t.ok(nowMs() - sinceMs < endMsMax, `viewers of the one see the end after ${Math.round(nowMs() - sinceMs)} ms`)
    elsewhere.redis?.set('pass')
    over()
    await scene.untilWell(going, nowMs())
    await scene.end(going)
  }
  await scene.finish(t)
})

for (const way of ['refuse', 'hang'] as const) {
  test(`row 42: the end of a run never gets to Redis (${way}): viewers elsewhere are told within 5 s`, {
    skip,
  }, async (t) => {
    const scene = await startRedisScene(t)
    const { here } = scene
    const toldMs: number[] = []
    for (let trial = 1; trial <= trials; trial += 1) {
      const talks: Talk[] = []
      for (let n = 1; n <= 3; n += 1) talks.push(await scene.hold(`r42-${trial}-${n}`))
      const over = scene.begin('redis away', here)
      here.redis?.set(way)
      const sinceMs = nowMs()
      await scene.end(talks)
      for (const { far, comer } of talks) {
        for (const viewer of [far, comer]) {
          const { atMs } = await viewer.until(({ event }) => event === 'done')
          toldMs.push(atMs - sinceMs)
        }
      }
      here.redis?.set('pass')
      over()
    }
    t.ok(Math.max(...toldMs) < endMsMax, `told after ${Math.round(Math.max(...toldMs))} ms`)
    await scene.finish(t)
  })
}
