/**
 * The reconnect storm (row 49 of the table of faults): a thousand viewers of fifty running replies are cut at the same
 * moment, and come back at once with the id of the last event that each of them has. They live in a process of their own.
 */
import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Test, test } from 'tap'
import { type Cluster, startCluster } from '../support/cluster.ts'
import { type Crowd, type Place, type Return, startCrowd } from '../support/crowd.ts'
import { skipFaults, untilTrue } from '../support/limits.ts'
import { trialsOf } from '../support/trials.ts'
import { createVisitor } from '../support/viewers.ts'

const skip = skipFaults()
const trials = trialsOf(1)
const runs = Number(process.env.STORM_RUNS ?? 50)
const viewers = Number(process.env.STORM_VIEWERS ?? 1_000)
/** Of each reply: as fast as a person reads. */
const paceMs = 100
const wordsMax = 1_200
const resumedMsMax = 5_000
/** Postgres tells how many transactions there were about once a second. */
const statsMs = 2_500

test(`row 49: ${viewers} viewers of ${runs} replies come back at once: all have caught up within 5 s, with every byte, for a statement each`, {
  skip,
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

test(`row 49: all gateways are replaced at once: ${viewers} viewers have caught up on the new ones within 5 s, with every byte`, {
  skip,
}, async (t) => {
  const cluster = await startCluster(t, { gateways: 2 })
  const crowd = await startCrowd(t)
  await crowd.watch(await begin(cluster))
  const old = [...cluster.gateways]
  const next = [await cluster.spawn(), await cluster.spawn()]
  const returning = crowd.expect(next.map(({ url }) => url))
  for (const gateway of old) gateway.terminate()
  const result = await returning
  for (const gateway of old) t.equal(await gateway.exited, 0)
  t.comment(`replaced: ${describe(result)}`)
  t.equal(result.tookMs.length + result.ended, viewers)
  t.ok(spread(result.tookMs).max <= resumedMsMax, 'all are back within 5 s')
  await judge(t, cluster, crowd, 'interrupted')
})

/** What every viewer holds is what is stored, and nobody was shown a gap on the way. */
async function judge(t: Test, cluster: Cluster, crowd: Crowd, status: string): Promise<void> {
  const held = await crowd.finish()
  const stored = await cluster.sql<{ run_id: string; content: string; status: string }[]>`
    select run_id, content, status from chat_messages where role = 'assistant'`
  const digests = new Map(
    stored.map(({ run_id, content }) => [run_id, createHash('sha256').update(content).digest('hex')]),
  )
  t.same([...new Set(stored.map((message) => message.status))], [status])
  t.equal(held.filter(({ runId, digest }) => digests.get(runId) === digest).length, viewers, 'all hold what is stored')
  t.equal(
    held.filter(({ gaps, duplicates }) => gaps + duplicates > 0).length,
    0,
    'nobody was shown a gap, or a word twice',
  )
  t.comment(`resets ${held.reduce((sum, { resets }) => sum + resets, 0)}, ${held[0]?.units} units each`)
  t.same(cluster.complaints(), [])
}

/** Replies that are being made, half of them on each gateway, and who is to watch them: half of these where it is made. */
async function begin({ speaker, gateways }: Cluster): Promise<Place[]> {
  const places: Place[] = []
  for (let n = 0; n < runs; n += 1) {
    const key = `storm-${n}`
    speaker.plan(key, { words: wordsMax, paceMs, untilReleased: true })
    const visitor = createVisitor()
    const home = gateways[n % gateways.length]?.url ?? ''
    const abort = new AbortController()
    const response = await fetch(`${home}/api/v1/chat/stream`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', 'x-visitor-token': visitor },
      body: JSON.stringify({ message: `${key} please`, client_message_id: key }),
      signal: abort.signal,
    })
    const runId = response.headers.get('x-run-id') ?? ''
    abort.abort()
    for (let viewer = n; viewer < viewers; viewer += runs) {
      places.push({ runId, visitor, gateway: gateways[Math.floor(viewer / runs) % gateways.length]?.url ?? home })
    }
  }
  await untilTrue(() => speaker.said.length === runs)
  return places
}

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

function describe({ tookMs, failures, ended, cpuMs }: Return): string {
  const { p50, p99, max } = spread(tookMs)
  return (
    `${tookMs.length} viewers back in ${p50} ms (p50), ${p99} ms (p99), ${max} ms (max); ` +
    `tried again ${JSON.stringify(failures)}; ${ended} had seen the end before; the crowd itself used ${Math.round(cpuMs)} ms of a CPU`
  )
}

function spread(tookMs: readonly number[]) {
  const sorted = tookMs.toSorted((a, b) => a - b)
  const at = (part: number) => Math.round(sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))] ?? 0)
  return { p50: at(0.5), p99: at(0.99), max: at(1) }
}
