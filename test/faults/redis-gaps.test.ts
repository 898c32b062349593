/**
 * Redis works, and something is missing in it: a run's stream is deleted, expires or is trimmed (rows 39 and 40 of the
 * table of faults). What is missing is replaced from the database or by a `reset`: nobody waits for ever, and nobody is
 * shown a gap.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'tap'
import { createKeys } from '../../src/log/redis-codec.ts'
import { nowMs } from '../support/history.ts'
import { skipFaults } from '../support/limits.ts'
import { isDelta, type RedisScene, startRedisScene, untilShownAfter } from '../support/redis-scene.ts'
import { trialsOf } from '../support/trials.ts'

const skip = skipFaults()
const { log } = createKeys('vb')
const trials = trialsOf(1)
const awayMs = 500
/** Long enough that what is said meanwhile is more than what a trimmed stream keeps. */
const longAwayMs = 1_500
/** Longest wait for words that Redis has nothing of. */
const shownMsMax = 5_000

const losses: readonly {
  readonly what: string
  readonly lose: (scene: RedisScene, key: string) => Promise<unknown>
}[] = [
  { what: 'deleted', lose: ({ order }, key) => order('DEL', key) },
  { what: 'expired', lose: ({ order }, key) => order('PEXPIRE', key, 1) },
]

test('row 39: the stream of a run is deleted or expires while somebody waits for more: the words that come are shown to all', {
  skip,
}, async (t) => {
  const scene = await startRedisScene(t)
  // It has read nothing of these replies before, so all it has is what it finds in Redis then.
  const third = await scene.spawn()
  for (let trial = 1; trial <= trials; trial += 1) {
    for (const { what, lose } of losses) {
      // Spoken steadily.
      const talks = await scene.talk(`${what}-${trial}`)
      const over = scene.begin('redis away')
      await Promise.all(talks.map(({ runId }) => lose(scene, log(runId))))
      scene.comeBack(talks, awayMs, third)
      await untilShownAfter(talks.flatMap(({ far, comer }) => [far, comer]))
      over()
      await scene.untilWell(talks, nowMs())
      await scene.end(talks)

      // Silent: viewers wait at the end of a stream that goes, and one comes while it is not there.
      const waiting = await scene.hold(`${what}-waiting-${trial}`)
      await lose(scene, log(waiting.runId))
      scene.comeBack([waiting], 0, third)
      await sleep(awayMs)
      const sinceMs = nowMs()
      scene.cluster.speaker.release(waiting.key)
      const { atMs } = await waiting.comer.until((event) => isDelta(event) && event.atMs > sinceMs)
      t.ok(atMs - sinceMs < shownMsMax, `${what} in silence: shown after ${Math.round(atMs - sinceMs)} ms`)
      await scene.end([waiting])
    }
  }

  const { evidence } = await scene.finish(t)

  // Ended long ago, and not in Redis any more: for ever from the database.
  await scene.order('FLUSHALL')
  const fresh = await scene.cluster.spawn()
  for (const run of evidence.runs) {
    const stored = evidence.messages.find(({ id }) => id === run.message_id)?.content
    t.equal(await scene.readWhole(run.id, fresh), stored, 'a run that has ended is read whole without its stream')
  }
})

test('row 40: a stream is trimmed past the place where somebody left: who comes back is given all of it, and no gap', {
  skip,
}, async (t) => {
  const scene = await startRedisScene(t)
  for (let trial = 1; trial <= trials; trial += 1) {
    for (const kept of [5, 1, 0]) {
      const talks = await scene.talk(`r40-${trial}-${kept}`)
      // To a gateway that has not read the run before: what is copied already cannot be trimmed.
      const fresh = await scene.spawn()
      scene.comeBack(talks, longAwayMs, fresh)
      const over = scene.begin('disturbance')
      await sleep(longAwayMs / 3)
      for (const { runId } of talks) await scene.order('XTRIM', log(runId), 'MAXLEN', kept)
      const sinceMs = nowMs()
      await untilShownAfter(
        talks.map(({ comer }) => comer),
        sinceMs,
      )
      over()
      await scene.untilWell(talks, nowMs())
      await scene.end(talks)
      for (const { comer } of talks) {
        const { event } = await comer.until((one) => one.atMs > sinceMs && (isDelta(one) || one.event === 'reset'))
        t.equal(event, 'reset', `${kept} left: it is given a reset`)
      }
      t.equal(await scene.retire(fresh), 0)
    }
  }
  await scene.finish(t)
})
