/**
 * The reconnect storm of a deploy that replaces all gateways at once (row 49 of the table of faults): every viewer is told
 * to come back, and comes to a gateway that has just started.
 */
import { test } from 'tap'
import { startCluster } from '../support/cluster.ts'
import { startCrowd } from '../support/crowd.ts'
import { skipFaults } from '../support/limits.ts'
import { begin, describe, judge, resumedMsMax, spread, viewers } from '../support/storm.ts'

test(`row 49: all gateways are replaced at once: ${viewers} viewers have caught up on the new ones within 5 s, with every byte`, {
  skip: skipFaults(),
}, async (t) => {
  const cluster = await startCluster(t, { gateways: 2 })
  const crowd = await startCrowd(t)
  await crowd.watch(await begin(cluster))
  const old = [...cluster.gateways]
  const next = [await cluster.spawn(), await cluster.spawn()]
  const { returned } = await crowd.expect(next.map(({ url }) => url))
  for (const gateway of old) gateway.terminate()
  const result = await returned
  for (const gateway of old) t.equal(await gateway.exited, 0)
  t.comment(`replaced: ${describe(result)}`)
  t.equal(result.tookMs.length + result.ended, viewers)
  t.ok(spread(result.tookMs).max <= resumedMsMax, 'all are back within 5 s')
  await judge(t, cluster, crowd, 'interrupted')
})
