/**
 * kill -9 of a gateway in mid-stream, at once and while it drains, with a second gateway beside it (rows 3 and 8 of the
 * table of faults). Viewers live in a process of their own; the checker compares what they saw with the database and
 * with what the provider said.
 */
import { test } from 'tap'
import { createClient } from '../support/client.ts'
import { faultTrials, skipFaults, takeoverMsMax, untilTrue } from '../support/limits.ts'
import { createRandom } from '../support/random.ts'
import { judgeIn, type Scene, startScene } from '../support/scene.ts'

const skip = skipFaults()

test('row 3: a gateway killed in mid-stream: viewers elsewhere get exactly what is missing, with every word that anybody was shown', {
  skip,
}, async (t) => {
  const scene = await startScene(t, { gateways: 2 })
  const random = createRandom(3)
  let killed = 0
  for (let trial = 1; trial <= Math.min(2, faultTrials); trial += 1) {
    const [first, second] = scene.cluster.gateways.filter(({ isUp }) => isUp)
    if (first === undefined || second === undefined) throw new Error('two were asked for')
    const streaming = await stream(scene, `r3-${trial}`, 4 * faultTrials, first.url, second.url)
    // Anywhere within a checkpoint's interval.
    await new Promise((resolve) => setTimeout(resolve, random.integer(1000)))
    await scene.kill(first)
    killed += streaming.length
    await Promise.all(streaming.flatMap(({ sender, watcher }) => [sender.ended, watcher.ended]))
    if (trial < Math.min(2, faultTrials)) await scene.spawn()
  }
  const { figures, evidence } = await judgeIn(t, scene)
  t.comment(`${killed} replies were cut in mid-stream`)
  for (const run of evidence.runs) t.match(run, { status: 'interrupted', generation: 2 })
  t.equal(figures.takeoverMs.length, killed)
  t.ok(Math.max(...figures.takeoverMs) <= takeoverMsMax, 'P7: within 12 s')
  t.same(figures.excused, [], 'nothing was taken back')
})

for (const how of ['a second SIGTERM', 'SIGKILL']) {
  test(`row 8: ${how} while it drains: as if it had been killed`, { skip }, async (t) => {
    const scene = await startScene(t, { gateways: 2, env: { DRAIN_MS: '60000' } })
    const [first, second] = scene.cluster.gateways
    if (first === undefined || second === undefined) throw new Error('two were asked for')
    const streaming = await stream(scene, 'r8', 3, first.url, second.url)
    scene.terminate(first, 60_000)
    const client = createClient(first.url)
    await untilTrue(async () => (await client.get('/health/ready')).body.state === 'draining')
    if (how === 'SIGKILL') await scene.kill(first)
    else {
      scene.begin('kill', first)()
      first.terminate()
    }
    t.not(await first.exited, 0)
    await Promise.all(streaming.flatMap(({ sender, watcher }) => [sender.ended, watcher.ended]))
    const { evidence, figures } = await judgeIn(t, scene)
    for (const run of evidence.runs) t.match(run, { status: 'interrupted', generation: 2 })
    t.ok(Math.max(...figures.takeoverMs) <= takeoverMsMax, 'P7: within 12 s')
  })
}

/** Replies in mid-stream on one gateway, each with a viewer there and one elsewhere. */
async function stream(scene: Scene, prefix: string, count: number, here: string, elsewhere: string) {
  return Promise.all(
    Array.from({ length: count }, async (_, index) => {
      const key = `${prefix}-${index}`
      scene.cluster.speaker.plan(key, { words: 3000, paceMs: 10 + index })
      const sender = scene.viewers.view({ key, message: `${key} please`, gateway: here, tell: true })
      const { runId } = await sender.accepted
      const watcher = scene.viewers.view({ runId, visitor: sender.visitor, gateway: elsewhere, tell: true })
      const seen = (event: { event: string }) => event.event === 'delta'
      await Promise.all([sender.until(seen), watcher.until(seen)])
      return { sender, watcher }
    }),
  )
}
