/**
 * kill -9 of a gateway before the first word of a reply, with a second gateway beside it (rows 1 and 2 of the table of
 * faults). Viewers live in a process of their own; the checker compares what they saw with the database and with
 * what the provider said.
 */
import { test } from 'tap'
import { faultTrials, skipFaults, takeoverMsMax, untilTrue } from '../support/limits.ts'
import { createRandom } from '../support/random.ts'
import { judgeIn, startScene } from '../support/scene.ts'
import type { Viewer } from '../support/viewers.ts'

const skip = skipFaults()

test('row 1: a gateway killed while messages arrive: each is stored once or not at all, and a repeat is taken once', {
  skip,
}, async (t) => {
  const scene = await startScene(t, { gateways: 2 })
  const random = createRandom(1)
  const sent: Viewer[] = []
  for (let trial = 1; trial <= faultTrials; trial += 1) {
    const [victim] = scene.cluster.gateways.filter(({ isUp }) => isUp)
    if (victim === undefined) throw new Error('nobody is left')
    for (let n = 1; n <= 10; n += 1) {
      const key = `r1-${trial}-${n}`
      scene.cluster.speaker.plan(key, { words: 20, paceMs: 5, silentMs: random.integer(100) })
      sent.push(scene.viewers.view({ key, message: `${key} please`, gateway: victim.url }))
      await new Promise((resolve) => setTimeout(resolve, random.integer(6)))
    }
    await scene.kill(victim)
    await scene.spawn()
  }
  t.same(new Set(await Promise.all(sent.map(({ ended }) => ended))), new Set(['done']))
  const { figures } = await judgeIn(t, scene)
  t.equal(figures.acknowledged, faultTrials * 10, 'every message got through in the end')
})

test('row 2: a gateway killed before the first word: the next one asks the provider again, and the reply is whole', {
  skip,
}, async (t) => {
  const scene = await startScene(t, { gateways: 2 })
  const { cluster, viewers } = scene
  const [first, second] = cluster.gateways
  if (first === undefined || second === undefined) throw new Error('two were asked for')
  const keys = Array.from({ length: faultTrials }, (_, index) => `r2-${index}`)
  const watching = await Promise.all(
    keys.map(async (key) => {
      cluster.speaker.plan(key, { words: 30, paceMs: 2, holdAfterWords: 0 })
      const sender = viewers.view({ key, message: `${key} please`, gateway: first.url })
      const { runId } = await sender.accepted
      return { runId, sender, watcher: viewers.view({ runId, visitor: sender.visitor, gateway: second.url }) }
    }),
  )
  await untilTrue(() => cluster.speaker.said.length === keys.length)
  await scene.kill(first)
  for (const key of keys) cluster.speaker.release(key)
  for (const { sender, watcher } of watching) {
    t.equal(await sender.ended, 'done')
    t.equal(await watcher.ended, 'done')
  }
  const { figures, evidence } = await judgeIn(t, scene)
  for (const run of evidence.runs) t.match(run, { status: 'completed', generation: 2, attempts: 2 })
  for (const key of keys) t.equal(evidence.said.filter((call) => call.key === key).length, 2, 'asked twice')
  t.equal(figures.takeoverMs.length, keys.length)
  t.ok(Math.max(...figures.takeoverMs) <= takeoverMsMax, 'P7: within 12 s')
})
