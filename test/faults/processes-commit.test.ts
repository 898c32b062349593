/**
 * kill -9 of a gateway around its final commit, with a second gateway beside it (rows 5 and 6 of the table of faults). A
 * proxy finds the commit among what the gateway says to its database by the words of the reply, so nothing is known here of how it
 * is written.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'tap'
import { skipFaults, takeoverMsMax } from '../support/limits.ts'
import { judgeIn, type Scene, startScene } from '../support/scene.ts'

const skip = skipFaults()
// No checkpoint within the test: the commit is then the only statement that holds the words.
const env = { CHECKPOINT_MS: '60000' }
/** What a commit that comes late gets to do its harm. */
const harmMs = 500

test('row 5: a gateway killed with its commit on the way: the whole text, one end, and the commit that comes late changes nothing', {
  skip,
}, async (t) => {
  const scene = await startScene(t, { gateways: 2, env })
  const { cluster, viewers } = scene
  const [first, second] = cluster.gateways
  if (first === undefined || second === undefined) throw new Error('two were asked for')
  cluster.speaker.plan('r5', { words: 40, paceMs: 2 })
  const commit = first.database?.holdBack('r5/1')
  const sender = viewers.view({ key: 'r5', message: 'r5 please', gateway: first.url })
  const { runId } = await sender.accepted
  const watcher = viewers.view({ runId, visitor: sender.visitor, gateway: second.url })
  await commit?.held
  await scene.kill(first)
  t.equal(await watcher.ended, 'done')
  const before = await readRows(scene)
  first.database?.set('pass')
  await sleep(harmMs)
  t.same(await readRows(scene), before, 'the commit of the dead process changes nothing')
  t.equal(await sender.ended, 'done')
  const { evidence, figures } = await judgeIn(t, scene)
  t.match(evidence.runs, [{ status: 'interrupted', generation: 2 }])
  t.equal(evidence.messages[1]?.content, evidence.said[0]?.text, 'the reply is whole')
  t.ok(Math.max(...figures.takeoverMs) <= takeoverMsMax, 'P7: within 12 s')
})

test('row 6: a gateway killed after its commit and before `done`: viewers elsewhere get `done` once, with the same usage', {
  skip,
}, async (t) => {
  const scene = await startScene(t, { gateways: 2, env })
  const { cluster, viewers } = scene
  const [first, second] = cluster.gateways
  if (first === undefined || second === undefined) throw new Error('two were asked for')
  cluster.speaker.plan('r6', { words: 40, paceMs: 2 })
  const commit = first.database?.loseAnswerTo('r6/1', 'keep')
  const sender = viewers.view({ key: 'r6', message: 'r6 please', gateway: first.url, tell: true })
  const { runId } = await sender.accepted
  await commit?.lost
  await scene.kill(first)
  t.equal(await sender.ended, 'done')
  const watcher = viewers.view({ runId, visitor: sender.visitor, gateway: second.url, tell: true })
  const { data } = await watcher.until(({ event }) => event === 'done')
  t.match(data, { status: 'completed', finish_reason: 'stop', usage: { total_tokens: 48 } })
  t.same((await sender.until(({ event }) => event === 'done')).data, data, 'whoever asks is told the same')
  const { evidence } = await judgeIn(t, scene)
  t.match(evidence.runs, [{ status: 'completed', generation: 1 }])
})

async function readRows({ cluster: { sql } }: Scene) {
  const runs = await sql`select id, status, generation, last_seq, ended_at from chat_runs order by id`
  const messages = await sql`select id, status, content, completed_at from chat_messages order by id`
  return [...runs, ...messages]
}
