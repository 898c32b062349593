/**
 * kill -9 of a gateway in mid-stream, with a second gateway beside it (row 3 of the table of faults). Viewers live in a
 * process of their own; the checker compares what they saw with the database and with what the provider said.
 */
import { test } from 'tap'
import { skipFaults, takeoverMsMax } from '../support/limits.ts'
import { createRandom } from '../support/random.ts'
import { judgeIn, startScene, streamReplies } from '../support/scene.ts'
import { trialsOf } from '../support/trials.ts'

const skip = skipFaults()
const kills = trialsOf(2)
/** Replies that are cut by one kill. */
const repliesPerKill = 12

test('row 3: a gateway killed in mid-stream: viewers elsewhere get exactly what is missing, with every word that anybody was shown', {
  skip,
}, async (t) => {
  const scene = await startScene(t, { gateways: 2 })
  const random = createRandom(3)
  let killed = 0
  for (let trial = 1; trial <= kills; trial += 1) {
    const [first, second] = scene.cluster.gateways.filter(({ isUp }) => isUp)
    if (first === undefined || second === undefined) throw new Error('two were asked for')
    const streaming = await streamReplies(scene, `r3-${trial}`, repliesPerKill, first.url, second.url)
    // Anywhere within a checkpoint's interval.
    await new Promise((resolve) => setTimeout(resolve, random.integer(1000)))
    await scene.kill(first)
    killed += streaming.length
    await Promise.all(streaming.flatMap(({ sender, watcher }) => [sender.ended, watcher.ended]))
    if (trial < kills) await scene.spawn()
  }
  const { figures, evidence } = await judgeIn(t, scene)
  t.comment(`${killed} replies were cut in mid-stream`)
  for (const run of evidence.runs) t.match(run, { status: 'interrupted', generation: 2 })
  t.equal(figures.takeoverMs.length, killed)
  t.ok(Math.max(...figures.takeoverMs) <= takeoverMsMax, 'P7: within 12 s')
  t.same(figures.excused, [], 'nothing was taken back')
})
