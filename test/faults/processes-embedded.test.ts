/**
 * kill -9 of a gateway with the embedded database, and a new one on the same folder (rows 4, 5 and 6 of the table of faults).
 * Nothing but the folder outlives the process, so the words since the last checkpoint may be lost, and no others.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'tap'
import { createRandom } from '../support/random.ts'
import { judgeIn, type Scene, startScene } from '../support/scene.ts'
import { trialsOf } from '../support/trials.ts'

const options = { embedded: true, gateways: 1, env: { CHECKPOINT_MS: '500' } } as const
// Each makes a process of the embedded database start.
const trials = trialsOf(2)
/** Around the end of a reply: before its last word, in its commit, after its `done`. */
const endMs = 12

test('row 4: embedded, a gateway killed in mid-stream: after its restart the reply is there up to the last checkpoint', async (t) => {
  const scene = await startScene(t, options)
  const random = createRandom(4)
  // There is no log that outlives a process: to the checker, Redis is away all the time.
  const back = scene.begin('redis away')
  for (let trial = 1; trial <= trials; trial += 1) {
    const gateway = current(scene)
    const key = `r4-${trial}`
    scene.cluster.speaker.plan(key, { words: 3000, paceMs: 5 })
    const viewer = scene.viewers.view({ key, message: `${key} please`, gateway: gateway.url, tell: true })
    await viewer.until(({ event }) => event === 'delta')
    await sleep(700 + random.integer(1000))
    await scene.kill(gateway)
    await scene.spawn()
    t.equal(await viewer.ended, 'done')
  }
  const { evidence, figures } = await judgeIn(t, scene)
  back()
  for (const [index, run] of evidence.runs.entries()) {
    t.match(run, { status: 'interrupted', generation: 2 })
    t.not(evidence.messages.find(({ id }) => id === run.message_id)?.content, '', `trial ${index + 1} kept its text`)
  }
  t.equal(figures.lostMessages, 0)
})

test('rows 5 and 6: embedded, a gateway killed around its commit: one end, and everybody is told the same', async (t) => {
  const scene = await startScene(t, options)
  const random = createRandom(5)
  const back = scene.begin('redis away')
  for (let trial = 1; trial <= trials; trial += 1) {
    const gateway = current(scene)
    const key = `r5-${trial}`
    scene.cluster.speaker.plan(key, { words: 40, paceMs: 2, holdAfterWords: 39 })
    const sender = scene.viewers.view({ key, message: `${key} please`, gateway: gateway.url, tell: true })
    const { runId } = await sender.accepted
    const watcher = scene.viewers.view({ runId, visitor: sender.visitor, gateway: gateway.url })
    await sender.until(({ data }) => ((data as { text?: string }).text ?? '').includes('38'))
    scene.cluster.speaker.release(key)
    await sleep(random.integer(endMs))
    await scene.kill(gateway)
    await scene.spawn()
    t.same(await Promise.all([sender.ended, watcher.ended]), ['done', 'done'])
  }
  const { evidence } = await judgeIn(t, scene)
  back()
  t.comment(evidence.runs.map(({ status, generation }) => `${status} in generation ${generation}`))
})

function current(scene: Scene) {
  const gateway = scene.cluster.gateways.find(({ isUp }) => isUp)
  if (gateway === undefined) throw new Error('there is no gateway')
  return gateway
}
