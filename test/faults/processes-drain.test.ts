/**
 * A gateway that is killed while it drains (row 8 of the table of faults), with a second gateway beside it: as if it had
 * been killed without a warning.
 */
import { test } from 'tap'
import { createClient } from '../support/client.ts'
import { skipFaults, takeoverMsMax, untilTrue } from '../support/limits.ts'
import { judgeIn, startScene, streamReplies } from '../support/scene.ts'

const skip = skipFaults()

for (const how of ['a second SIGTERM', 'SIGKILL']) {
  test(`row 8: ${how} while it drains: as if it had been killed`, { skip }, async (t) => {
    const scene = await startScene(t, { gateways: 2, env: { DRAIN_MS: '60000' } })
    const [first, second] = scene.cluster.gateways
    if (first === undefined || second === undefined) throw new Error('two were asked for')
    const streaming = await streamReplies(scene, 'r8', 3, first.url, second.url)
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
