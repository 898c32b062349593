/**
 * A rolling restart under load, as every deploy is (row 7 of the table of faults): what ends within the drain time ends as
 * ever, the rest is handed over within a second, nothing is lost, and every process ends with 0.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'tap'
import { busyMs, handOverMsMax, skipFaults } from '../support/limits.ts'
import { createRandom } from '../support/random.ts'
import { judgeIn, startScene } from '../support/scene.ts'
import type { Viewer } from '../support/viewers.ts'

const skip = skipFaults()
const drainMs = 1_500
/** Between two messages. */
const sendMs = 60

test('row 7: a rolling restart of all gateways under load loses nothing, and hands over within a second', {
  skip,
}, async (t) => {
  const scene = await startScene(t, { gateways: 2, env: { DRAIN_MS: `${drainMs}` } })
  const { cluster, viewers } = scene
  const random = createRandom(7)
  const loading = new AbortController()
  const seen: Viewer[] = []
  const load = (async () => {
    for (let n = 1; !loading.signal.aborted; n += 1) {
      const key = `r7-${n}`
      // Half of a second to five: some end within the drain time, some do not, and some have not begun.
      cluster.speaker.plan(key, { words: 50 + random.integer(450), paceMs: 10, silentMs: n % 7 === 0 ? 2_500 : 0 })
      const sender = viewers.view({ key, message: `${key} please` })
      seen.push(sender)
      await sender.accepted
        .then(({ runId }) => {
          // One for each gateway: a viewer of the one that ends, and one that stays where it is.
          for (const gateway of cluster.urls) seen.push(viewers.view({ runId, visitor: sender.visitor, gateway }))
        })
        .catch(() => undefined) // Judged with the others.
      await sleep(sendMs)
    }
  })()

  await sleep(1_000)
  for (const old of cluster.gateways.slice(0, 2)) {
    await scene.spawn()
    await sleep(500)
    scene.terminate(old, drainMs)
    t.equal(await old.exited, 0, 'it ends with 0')
  }
  await sleep(500)
  loading.abort()
  await load
  const ends = await Promise.all(seen.map(({ ended }) => ended))
  t.same([...new Set(ends)], ['done'], 'every viewer saw the end')
  const { figures, evidence } = await judgeIn(t, scene)
  const counts = Object.groupBy(evidence.runs, ({ status, generation }) => `${status} in generation ${generation}`)
  t.comment(Object.entries(counts).map(([name, runs]) => `${runs?.length} ${name}`))
  t.equal(figures.acknowledged, figures.messages)
  t.ok(figures.handOverMs.length > 0, 'some were handed over')
  t.ok(Math.max(...figures.handOverMs) <= handOverMsMax + busyMs, 'each within a second')
})
