/**
 * A stop that comes in at another process than the one that makes the reply: with the control stream, without Redis, and
 * when the owner cannot follow because it is frozen, dead, or cut off from both stores. The answer is the final message.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { type Test, test } from 'tap'
import { begin, forever } from '../../scripts/fake-upstream.ts'
import { createClient, isDelta, isDone, shownText } from '../support/client.ts'
import { type Cluster, type ClusterGateway, startCluster } from '../support/cluster.ts'
import { databases } from '../support/database.ts'
import { trialsOf } from '../support/trials.ts'

/** faults, row 54: the answer, when the owner follows. */
const followMsMax = 1000
/** protocol: a stop waits up to 2 s; and the request around it. */
const answerMsMax = 2500
const words = 40

const skip = databases().includes('postgres') ? false : 'TEST_EMBEDDED_ONLY=1: one process'

/** What happens to the owner before the stop. */
interface Case {
  readonly title: string
  readonly trials: number
  readonly within: number
  readonly strike: (owner: ClusterGateway, other: ClusterGateway) => unknown
  /** Two faults at once: words since the last checkpoint may be gone. */
  readonly mayLose?: boolean
  readonly heal: (owner: ClusterGateway, other: ClusterGateway) => void
}

const cases: readonly Case[] = [
  {
    title: 'both are well',
    trials: trialsOf(5),
    within: followMsMax,
    strike: () => undefined,
    heal: () => undefined,
  },
  {
    title: 'Redis answers nobody',
    trials: trialsOf(2),
    within: followMsMax + 300,
    strike: (owner, other) => {
      owner.redis?.set('refuse')
      other.redis?.set('refuse')
    },
    heal: (owner, other) => {
      owner.redis?.set('pass')
      other.redis?.set('pass')
    },
  },
  {
    title: 'the owner is frozen',
    trials: trialsOf(1),
    within: answerMsMax,
    strike: (owner) => owner.freeze(),
    heal: (owner) => owner.thaw(),
  },
  {
    title: 'the owner is cut off from both stores',
    trials: trialsOf(1),
    within: answerMsMax,
    strike: (owner) => {
      owner.redis?.set('hang')
      owner.database?.set('hang')
    },
    heal: (owner) => {
      owner.redis?.set('pass')
      owner.database?.set('pass')
    },
  },
  {
    title: 'Redis answers nobody and the owner is frozen',
    trials: trialsOf(1),
    within: answerMsMax,
    mayLose: true,
    strike: (owner, other) => {
      owner.freeze()
      other.redis?.set('hang')
    },
    heal: (owner, other) => {
      other.redis?.set('pass')
      owner.thaw()
    },
  },
  {
    title: 'the owner has just been killed',
    trials: trialsOf(1),
    within: answerMsMax,
    strike: (owner) => owner.kill(),
    heal: () => undefined,
  },
]

test('row 54: a stop on another process is final', { skip }, async (t) => {
  const cluster = await startCluster(t, { gateways: 2 })
  for (const one of cases) {
    await t.test(one.title, async (t) => {
      for (let trial = 1; trial <= one.trials; trial += 1) await stopElsewhere(t, cluster, one)
    })
  }
  t.same(cluster.complaints(), [])
})

async function stopElsewhere(t: Test, cluster: Cluster, one: Case): Promise<void> {
  const [owner, other] = cluster.gateways as [ClusterGateway, ClusterGateway]
  cluster.upstream.answer(async function* () {
    yield* begin({ tokens: words })
    await forever()
  })
  // What a fault before has left behind is not part of this one.
  await Promise.all([untilShared(owner.url), untilShared(other.url)])
  const client = createClient(owner.url)
  const stream = await client.send({ message: 'Talk' })
  await stream.until((event) => isDelta(event) && event.data.text.includes(`word${words - 1}`))
  const shown = shownText(stream.received)
  await one.strike(owner, other)
  const elsewhere = createClient(other.url, client.identity)
  const askedAt = performance.now()
  const answer = await elsewhere.post(`/api/v1/runs/${stream.headers.get('x-run-id')}/stop`)
  const tookMs = performance.now() - askedAt
  t.comment(`${one.title}: final after ${Math.round(tookMs)} ms`)
  t.match(answer, { status: 200, body: { run: { status: 'stopped', error: null }, message: { status: 'stopped' } } })
  const { content } = answer.body.message
  if (one.mayLose === true) t.ok(shown.startsWith(content), 'with what a checkpoint holds')
  else t.equal(content, shown, 'with all that was shown')
  t.ok(tookMs < one.within, `in time: ${Math.round(tookMs)} ms`)
  const attached = await elsewhere.watch(`/api/v1/runs/${stream.headers.get('x-run-id')}/events`)
  t.equal(await attached.ended, 'clean')
  t.equal(shownText(attached.received), answer.body.message.content)
  t.equal(attached.received.filter(isDone).length, 1)
  const again = await elsewhere.post(`/api/v1/runs/${stream.headers.get('x-run-id')}/stop`)
  t.same(again.body, answer.body, 'asked again it says the same')
  one.heal(owner, other)
  if (!owner.isUp) return
  // Whoever watched at the owner is told the same end, also by a process that comes back from the dead.
  t.equal(await stream.ended, 'clean')
  t.equal(stream.received.filter(isDone).length, 1)
  t.equal(shownText(stream.received), answer.body.message.content)
}

async function untilShared(url: string): Promise<void> {
  for (;;) {
    const { degraded } = (await (await fetch(`${url}/health/ready`)).json()) as { degraded: boolean }
    if (!degraded) return
    await sleep(50)
  }
}
