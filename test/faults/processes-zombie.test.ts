/**
 * A gateway that is frozen, loses its runs to another, and comes back (row 9 of the table of faults): it is fenced out of
 * every write. And a stop that is asked for while the process that makes the run is dead or frozen.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'tap'
import { createClient } from '../support/client.ts'
import { skipFaults, stopMsMax, takeoverMsMax } from '../support/limits.ts'
import { judgeIn, type Scene, startScene } from '../support/scene.ts'

const skip = skipFaults()
const frozenMs = 20_000
/** How long a thawed process gets to do harm before the rows are looked at again. */
const harmMs = 3_000

test('row 9: a gateway frozen for 20 s loses its runs, and when it wakes nothing that it writes counts', {
  skip,
}, async (t) => {
  const scene = await startScene(t, { gateways: 2 })
  const { cluster, viewers } = scene
  const [zombie, successor] = cluster.gateways
  if (zombie === undefined || successor === undefined) throw new Error('two were asked for')
  const streaming = await Promise.all(
    Array.from({ length: 5 }, async (_, index) => {
      const key = `r9-${index}`
      cluster.speaker.plan(key, { words: 5000, paceMs: 10 })
      const sender = viewers.view({ key, message: `${key} please`, gateway: zombie.url, tell: true })
      const { runId } = await sender.accepted
      const watcher = viewers.view({ runId, visitor: sender.visitor, gateway: successor.url, tell: true })
      await watcher.until(({ event }) => event === 'delta')
      return { sender, watcher }
    }),
  )
  const thaw = scene.freeze(zombie)
  const frozen = sleep(frozenMs)
  for (const { watcher } of streaming) t.equal(await watcher.ended, 'done', 'viewers elsewhere see the end meanwhile')
  await frozen
  const before = await readRows(scene)
  thaw()
  for (const { sender } of streaming) {
    t.equal(await sender.ended, 'done')
    const reset = await sender.until(({ event }) => event === 'reset')
    t.match(reset.id, /^2-/, 'its viewers get a reset')
  }
  await sleep(harmMs)
  t.same(await readRows(scene), before, 'not one of its writes changed a row')
  await cluster.upstream.drained()
  t.pass('it has let go of the provider')

  const after = await createClient(zombie.url).send({ message: 'after please' })
  t.equal(await after.ended, 'clean', 'and it goes on as a gateway like any other')
  const { evidence, figures } = await judgeIn(t, scene)
  for (const run of evidence.runs.slice(0, 5)) t.match(run, { status: 'interrupted', generation: 2 })
  t.ok(Math.max(...figures.takeoverMs) <= takeoverMsMax, 'P7: within 12 s')
})

for (const state of ['dead', 'frozen'] as const) {
  test(`a stop while the process that makes the reply is ${state} ends it within 2 s with the words that were shown`, {
    skip,
  }, async (t) => {
    const scene = await startScene(t, { gateways: 2 })
    const { cluster, viewers } = scene
    const [owner, other] = cluster.gateways
    if (owner === undefined || other === undefined) throw new Error('two were asked for')
    cluster.speaker.plan('stop', { words: 5000, paceMs: 10 })
    const sender = viewers.view({ key: 'stop', message: 'stop please', gateway: owner.url, tell: true })
    const { runId } = await sender.accepted
    const watcher = viewers.view({ runId, visitor: sender.visitor, gateway: other.url, tell: true })
    await watcher.until(({ event }) => event === 'delta')
    await sleep(700)
    const thaw = state === 'frozen' ? scene.freeze(owner) : undefined
    if (state === 'dead') await scene.kill(owner)
    const askedAt = performance.now()
    const client = createClient(other.url, { 'x-visitor-token': sender.visitor })
    const answer = await client.post(`/api/v1/runs/${runId}/stop`)
    const tookMs = performance.now() - askedAt
    t.match(answer, { status: 200, body: { run: { status: 'stopped' }, message: { status: 'stopped' } } })
    t.ok(tookMs <= stopMsMax, 'in time')
    t.comment(`${state}: stopped after ${Math.round(tookMs)} ms`)
    t.equal(await watcher.ended, 'done')
    const before = await readRows(scene)
    thaw?.()
    t.equal(await sender.ended, 'done')
    if (state === 'frozen') await sleep(harmMs)
    t.same(await readRows(scene), before, 'nothing changes it afterwards')
    const { evidence } = await judgeIn(t, scene)
    t.match(evidence.runs, [{ status: 'stopped' }])
    t.not(evidence.messages[1]?.content, '')
  })
}

async function readRows({ cluster: { sql } }: Scene) {
  const runs = await sql`select id, status, generation, last_seq, ended_at from chat_runs order by id`
  const messages = await sql`select id, status, content, completed_at from chat_messages order by id`
  return [...runs, ...messages]
}
