/**
 * The reconnect storm (row 49 of the table of faults): a thousand viewers of fifty running replies are cut at the same
 * moment, and come back at once with the id of the last event that each of them has. They live in a process of their own.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'tap'
import { type Cluster, startCluster } from '../support/cluster.ts'
import { type Return, startCrowd } from '../support/crowd.ts'
import { skipFaults } from '../support/limits.ts'
import { begin, describe, judge, resumedMsMax, runs, spread, viewers } from '../support/storm.ts'
import { trialsOf } from '../support/trials.ts'

const trials = trialsOf(1)
/** Postgres tells how many transactions there were about once a second. */
const statsMs = 2_500

test(`row 49: ${viewers} viewers of ${runs} replies come back at once: all have caught up within 5 s, with every byte, for a statement each`, {
  skip: skipFaults(),
}, async (t) => {
  const cluster = await startCluster(t, { gateways: 2 })
  const crowd = await startCrowd(t)
  const places = await begin(cluster)
  await crowd.watch(places)
  for (let trial = 1; trial <= trials; trial += 1) {
    // What two gateways say to Postgres in the same time when nobody comes: leases, checkpoints, the reaper.
    const quiet = await countStatements(cluster, () => sleep(statsMs))
    let result: Return | undefined
    const stormy = await countStatements(cluster, async () => {
      const over = sleep(statsMs)
      result = await crowd.storm(cluster.urls)
      await over
    })
    if (result === undefined) throw new Error('nobody came back')
    const perMs = quiet.statements / quiet.tookMs
    const statements = stormy.statements - perMs * stormy.tookMs
    t.comment(
      `storm ${trial}: ${describe(result)}; ${(statements / viewers).toFixed(2)} statements each, ` +
        `of ${stormy.statements} in ${Math.round(stormy.tookMs)} ms; ${(1000 * perMs).toFixed(0)} a second without them`,
    )
    t.equal(result.tookMs.length, viewers)
    t.ok(spread(result.tookMs).max <= resumedMsMax, 'all are back within 5 s')
    t.ok(statements <= 1.1 * viewers, `a statement each (${(statements / viewers).toFixed(2)})`)
  }
  for (let n = 0; n < runs; n += 1) cluster.speaker.release(`storm-${n}`)
  await judge(t, cluster, crowd, 'completed')
})

/** Every statement is a transaction of its own. */
async function countStatements({ sql }: Cluster, act: () => Promise<void>) {
  const read = async () => {
    const [row] = await sql<{ commits: string }[]>`
      select xact_commit + xact_rollback as commits from pg_stat_database where datname = current_database()`
    return Number(row?.commits)
  }
  const [before, startedAt] = [await read(), performance.now()]
  await act()
  return { statements: (await read()) - before, tookMs: performance.now() - startedAt }
}
