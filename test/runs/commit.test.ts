/**
 * The commit: one end per run, whoever comes first and however often, and everything with it or nothing.
 */
import { randomUUID } from 'node:crypto'
import { test } from 'tap'
import { sql } from '../../src/db/drizzle.ts'
import type { TerminalStatus } from '../../src/log/event.ts'
import { commitRun as commit, type Ending } from '../../src/runs/commit.ts'
import type { RunFacts } from '../../src/runs/model.ts'
import { promote, stopQueued } from '../../src/runs/queue.ts'
import { databases } from '../support/database.ts'
import { createOwner, endingOf, openStore, textPart } from '../support/runs.ts'

const commitRun = async (...args: Parameters<typeof commit>) => (await commit(...args)).outcome

for (const kind of databases()) {
  test(`on ${kind}`, async (t) => {
    const { db, accept, runs, sessions, messages } = await openStore(t, kind)
    const owner = createOwner()
    const begin = () => accept({ owner })
    const stored = async (run: RunFacts) => ({
      run: await runs.reread(run.id),
      message: await messages.readReply(run.message_id),
      session: await sessions.getSession(owner, run.session_id),
    })

    await t.test('message, run and session end together', async (t) => {
      const run = await begin()
      const parts = [
        { kind: 'reasoning' as const, text: 'Hm' },
        textPart('Grüße 👩‍👩‍👧'),
        { kind: 'tool_call' as const, text: '{"a":"\\u0000"}', call_id: 'c', name: 'f', input: { a: '' } },
        textPart('!'),
      ]
      const before = await stored(run)
      t.equal(await commitRun(db, run.id, 1, endingOf(parts, { model: 'real-name', lastSeq: 12 })), 'committed')
      const after = await stored(run)
      t.match(after.run, { status: 'completed', last_seq: 12, finish_reason: 'stop', usage: { total_tokens: 7 } })
      t.match(after.message, {
        status: 'completed',
        content: 'Grüße 👩‍👩‍👧!',
        parts,
        model: 'real-name',
        input_tokens: 3,
        output_tokens: 4,
        total_tokens: 7,
        ttft_ms: 10,
        latency_ms: 20,
      })
      t.match(after.session, {
        status: 'completed',
        active_run_id: null,
        total_tokens: 7,
        model: 'real-name',
        version: before.session.version + 1,
        message_count: 2,
      })
    })

    await t.test('a commit of another generation is refused, and changes nothing', async (t) => {
      const run = await begin()
      const before = await stored(run)
      for (const generation of [0, 2, 3]) {
        t.equal(await commitRun(db, run.id, generation, endingOf([textPart('theirs')])), 'fenced')
      }
      t.same(await stored(run), before)
      await db.rows(sql`update chat_runs set generation = 2 where id = ${run.id}::uuid`)
      t.equal(await commitRun(db, run.id, 1, endingOf([textPart('old')])), 'fenced', 'it was taken over')
      t.equal((await stored(run)).run?.status, 'running')
      t.equal(await commitRun(db, run.id, 2, endingOf([textPart('new')])), 'committed')
      t.equal(await commitRun(db, run.id, 1, endingOf([textPart('old')])), 'fenced')
      t.equal((await stored(run)).message?.content, 'new')
    })

    await t.test('the same end again is committed, once', async (t) => {
      const run = await begin()
      const ending = endingOf([textPart('once')])
      for (let round = 0; round < 3; round += 1) t.equal(await commitRun(db, run.id, 1, ending), 'committed')
      t.match((await stored(run)).session, { total_tokens: 7, message_count: 2 })
    })

    await t.test('another end is not committed, and is not told that it was', async (t) => {
      const run = await begin()
      t.equal(await commitRun(db, run.id, 1, endingOf([textPart('half')], { status: 'stopped' })), 'committed')
      const before = await stored(run)
      const others: Partial<Ending>[] = [{ status: 'completed' }, { status: 'stopped', lastSeq: 10 }]
      for (const other of others) {
        t.equal(await commitRun(db, run.id, 1, endingOf([textPart('half')], other)), 'fenced')
      }
      t.equal(await commitRun(db, run.id, 1, endingOf([textPart('half and half')], { status: 'stopped' })), 'fenced')
      t.same(await stored(run), before)
    })

    await t.test('of endings at the same time exactly one wins, and only it hears so', async (t) => {
      const statuses: TerminalStatus[] = ['completed', 'stopped', 'failed', 'interrupted']
      for (let round = 0; round < 15; round += 1) {
        const run = await begin()
        const endings = statuses.map((status) => endingOf([textPart(`it ${status}`)], { status }))
        const outcomes = await Promise.all(endings.map((ending) => commitRun(db, run.id, 1, ending)))
        t.equal(outcomes.filter((outcome) => outcome === 'committed').length, 1, outcomes.join())
        const winner = statuses[outcomes.indexOf('committed')]
        const { run: ended, message, session } = await stored(run)
        t.equal(ended?.status, winner)
        t.match(message, { status: winner, content: `it ${winner}` })
        t.equal(session.total_tokens, 7)
      }
    })

    await t.test('the same end several times at the same time is committed for each who asks', async (t) => {
      for (let round = 0; round < 15; round += 1) {
        const run = await begin()
        const ending = endingOf([textPart('text')])
        const outcomes = await Promise.all([1, 2, 3, 4].map(() => commitRun(db, run.id, 1, ending)))
        t.same(outcomes, ['committed', 'committed', 'committed', 'committed'])
        t.equal((await stored(run)).session.total_tokens, 7)
      }
    })

    await t.test('a session counts all of its runs', async (t) => {
      const first = await begin()
      await commitRun(db, first.id, 1, endingOf([]))
      for (let round = 0; round < 3; round += 1) {
        const run = await accept({ owner, body: { session_id: first.session_id } })
        await commitRun(db, run.id, 1, endingOf([], { status: 'failed' }))
      }
      t.match((await stored(first)).session, { total_tokens: 28, message_count: 8, status: 'failed' })
    })

    await t.test('what it cost is stored with the run, and added to the session to the last place', async (t) => {
      const call = {
        provider: 'two',
        model: 'real',
        outcome: 'completed',
        started_at: '2026-11-20T00:00:00.000000Z',
        ttft_ms: 5,
        latency_ms: 20,
        usage: { input_tokens: 3, output_tokens: 4, total_tokens: 7 },
        usage_source: 'estimated',
        cost_usd: '0.1000000000000000001',
      } as const
      const { session_id, ...first } = await begin()
      const answeredBy = { provider: 'two', model: 'real' }
      const costUsd = call.cost_usd
      const priced = endingOf([], { costUsd, usageSource: 'estimated', calls: [call], answeredBy })
      t.equal(await commitRun(db, first.id, 1, priced), 'committed')
      const run = { session_id, ...first }
      const after = await stored(run)
      t.match(after.run, { cost_usd: costUsd, usage_source: 'estimated', upstream_calls: [call], ...answeredBy })
      t.match(after.message, { cost_usd: costUsd, model: 'real' })
      t.equal((await messages.getMessage(owner, run.user_message_id)).cost_usd, null, 'the question cost nothing')
      for (const more of [{ costUsd: '0.2' }, { costUsd: undefined }, { usage: undefined, costUsd: '0' }]) {
        const next = await accept({ owner, body: { session_id } })
        t.equal(await commitRun(db, next.id, 1, endingOf([], more)), 'committed')
        t.match(await stored(next), { run: { cost_usd: more.costUsd ?? null, provider: 'demo' } })
      }
      t.match((await stored(run)).session, { total_cost_usd: '0.3000000000000000001', total_tokens: 21 })
    })

    await t.test('a count that no column holds does not cost the reply', async (t) => {
      const run = await begin()
      const usage = { input_tokens: 1, output_tokens: Number.MAX_SAFE_INTEGER, total_tokens: Number.MAX_SAFE_INTEGER }
      t.equal(await commitRun(db, run.id, 1, endingOf([textPart('kept')], { usage })), 'committed')
      const { message, session, run: ended } = await stored(run)
      t.match(message, { content: 'kept', output_tokens: 2_147_483_647 })
      t.equal(session.total_tokens, 2_147_483_647)
      t.same(ended?.usage, usage)
    })

    await t.test('a session is killed by a run that a kill has ended, whoever commits it', async (t) => {
      const kill = (run: RunFacts) => runs.requestStopOfSession(owner, run.session_id, true)
      const statusAfter = async (run: RunFacts, status: TerminalStatus, generation = 1) => {
        t.equal(await commitRun(db, run.id, generation, endingOf([], { status })), 'committed')
        return (await stored(run)).session.status
      }
      const killed = await begin()
      t.match(await kill(killed), [{ id: killed.id, stop_requested_at: String }])
      t.equal(await statusAfter(killed, 'stopped'), 'killed')
      const next = await accept({ owner, body: { session_id: killed.session_id } })
      t.equal((await stored(next)).session.status, 'running', 'a message after it')
      t.equal(await commitRun(db, killed.id, 1, endingOf([], { status: 'completed' })), 'fenced', 'late')
      t.equal((await stored(next)).session.status, 'running')
      t.equal(await statusAfter(next, 'stopped'), 'completed', 'twin: a stop that is no kill')

      const taken = await begin()
      await kill(taken)
      await db.rows(sql`update chat_runs set generation = 2 where id = ${taken.id}::uuid`)
      t.equal(await statusAfter(taken, 'stopped', 2), 'killed', 'by a takeover')

      const faster = await begin()
      await kill(faster)
      t.equal(await statusAfter(faster, 'completed'), 'completed', 'the reply was whole first')
      t.same(await kill(faster), [], 'and nothing is left to be killed')
      const broken = await begin()
      await kill(broken)
      t.equal(await statusAfter(broken, 'failed'), 'failed')
    })

    await t.test('a message that waits can be all that a kill ends, and never speaks for one that runs', async (t) => {
      const wait = (session_id: string) => accept({ owner, body: { session_id, on_busy: 'queue' } })
      const stopWaiting = async (run: RunFacts) => (await stopQueued(db, run)).outcome
      const first = await begin()
      const [a, b] = [await wait(first.session_id), await wait(first.session_id)]
      await commitRun(db, first.id, 1, endingOf([], { status: 'failed' }))
      await runs.requestStopOfSession(owner, first.session_id, true)
      t.equal(await stopWaiting(b), 'committed')
      t.equal(await stopWaiting(a), 'committed')
      t.match((await stored(first)).session, { status: 'killed', active_run_id: null })

      const running = await begin()
      const waiting = await wait(running.session_id)
      await runs.requestStopOfSession(owner, running.session_id, true)
      t.equal(await stopWaiting(waiting), 'committed')
      t.match((await stored(running)).session, { status: 'running', active_run_id: running.id })
      t.equal(await commitRun(db, running.id, 1, endingOf([])), 'committed')
      t.match((await stored(running)).session, { status: 'completed' })
    })

    await t.test('a deleted session stays deleted, and its run ends with all its words', async (t) => {
      const remove = (run: RunFacts) =>
        db.rows(sql`
          update chat_sessions set status = 'deleted', deleted_at = now() where id = ${run.session_id}::uuid`)
      const statusOf = async (run: RunFacts) => {
        const [row] = await db.rows<{ status: string; active: boolean }>(sql`
          select status, active_run_id is not null as active from chat_sessions where id = ${run.session_id}::uuid`)
        return row
      }
      for (const status of ['completed', 'stopped', 'failed'] as const) {
        const run = await begin()
        if (status === 'stopped') await runs.requestStopOfSession(owner, run.session_id, true)
        await remove(run)
        t.equal(await commitRun(db, run.id, 1, endingOf([textPart('All')], { status })), 'committed')
        t.same(await statusOf(run), { status: 'deleted', active: false })
        t.match(await messages.readReply(run.message_id), { status, content: 'All' })
      }
      const first = await begin()
      const waiting = await accept({ owner, body: { session_id: first.session_id, on_busy: 'queue' } })
      await commitRun(db, first.id, 1, endingOf([]))
      await remove(first)
      t.match(await promote(db, randomUUID(), first.session_id), [{ id: waiting.id, stop_requested: true }])
      t.same(await statusOf(first), { status: 'deleted', active: true }, 'what waited has begun only to be ended')
      t.equal(await commitRun(db, waiting.id, 1, endingOf([], { status: 'stopped' })), 'committed')
      t.same(await statusOf(first), { status: 'deleted', active: false })
    })

    await t.test('a run whose session was purged is fenced', async (t) => {
      const run = await begin()
      await db.rows(sql`delete from chat_sessions where id = ${run.session_id}::uuid`)
      t.equal(await commitRun(db, run.id, 1, endingOf([])), 'fenced')
    })
  })
}
