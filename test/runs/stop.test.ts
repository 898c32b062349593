/**
 * Stopping a whole session: what waits never begins, whatever the session's row has become; and what this process is doing,
 * for whoever shows it.
 */
import { randomUUID } from 'node:crypto'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { test } from 'tap'
import { sql } from '../../src/db/drizzle.ts'
import { createSilentControl } from '../../src/log/control.ts'
import { createFrames } from '../../src/log/frames.ts'
import { createMemoryLog } from '../../src/log/memory.ts'
import type { RunFacts } from '../../src/runs/model.ts'
import { createOwnedRuns } from '../../src/runs/owned.ts'
import { createStop, createStopSession, stopWaitMs } from '../../src/runs/stop.ts'
import { createTakeover } from '../../src/runs/takeover.ts'
import type { UpstreamEvent } from '../../src/upstream/upstream.ts'
import { databases } from '../support/database.ts'
import { createOwner, openLedger, openStore, promptTokens, silent } from '../support/runs.ts'

/** A machine that does other things, too. */
const marginMs = 500

for (const kind of databases()) {
  test(`on ${kind}`, async (t) => {
    const { db, accept, runs, sessions } = await openStore(t, kind)
    const told: string[] = []
    const changes = { changed: (id: string) => void told.push(id), removed: () => undefined }
    const instanceId = randomUUID()
    const log = createMemoryLog()
    const asked: string[] = []
    const aborted: string[] = []
    let said = Promise.withResolvers<void>()
    /** What each run says before it is silent for ever. */
    let words: readonly UpstreamEvent[] = [{ type: 'text', text: 'So far' }]
    const options = { db, log, instanceId, logger: silent, changes, createLedger: openLedger }
    const owned = createOwnedRuns({
      ...options,
      frames: createFrames(log, 1),
      checkpointMs: 60_000,
      async makeReply({ runId, signal }, tell) {
        // The real one reads the history first, and a run may be stopped by then.
        await nextTurn()
        signal.throwIfAborted()
        asked.push(runId)
        signal.addEventListener('abort', () => aborted.push(runId))
        for (const word of words) tell(word)
        said.resolve()
        await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)))
      },
    })
    t.teardown(async () => {
      await owned.drain(0, async () => undefined)
      await log.close()
    })
    const takeover = createTakeover({
      ...options,
      owned,
      closing: new AbortController().signal,
      promptTokens: async () => promptTokens,
    })
    const stop = createStop({ db, runs, owned, control: createSilentControl(), takeover, changes })
    const stopSession = createStopSession({ db, runs, owned, stop, changes })

    async function begin(owner = createOwner()): Promise<{ owner: typeof owner; run: RunFacts }> {
      const run = await accept({ owner, instanceId })
      said = Promise.withResolvers()
      owned.start(run)
      await said.promise
      told.length = 0
      return { owner, run }
    }
    const wait = (owner: ReturnType<typeof createOwner>, { session_id }: RunFacts) =>
      accept({ owner, instanceId, body: { session_id, on_busy: 'queue' } })
    const statuses = (all: readonly RunFacts[]) =>
      Promise.all(all.map(async ({ id }) => (await runs.reread(id))?.status))

    for (const state of ['there', 'deleted'] as const) {
      await t.test(
        `of a session that is ${state}, what runs and what waits is stopped, and nothing begins`,
        async (t) => {
          const { owner, run } = await begin()
          const waiting = [await wait(owner, run), await wait(owner, run), await wait(owner, run)]
          const before = asked.length
          if (state === 'deleted') {
            await db.rows(sql`
            update chat_sessions set status = 'deleted', deleted_at = now() where id = ${run.session_id}::uuid`)
          }
          await stopSession(createOwner(), run.session_id)
          t.same(
            await statuses([run, ...waiting]),
            ['running', 'queued', 'queued', 'queued'],
            'P9 not by somebody else',
          )
          await stopSession(owner, run.session_id)
          t.same(await statuses([run, ...waiting]), ['stopped', 'stopped', 'stopped', 'stopped'])
          t.equal(asked.length, before, 'nobody was asked again')
          t.same(told, Array(4).fill(run.session_id), 'each end is told')
          const [row] = await db.rows<{ status: string; active_run_id: string | null }>(sql`
          select status, active_run_id from chat_sessions where id = ${run.session_id}::uuid`)
          t.same(row, { status: state === 'there' ? 'completed' : 'deleted', active_run_id: null })
          await stopSession(owner, run.session_id, true)
          t.equal(told.length, 4, 'again, there is nothing to stop')
        },
      )
    }

    await t.test('what waits in a session that runs nothing is killed in the queue', async (t) => {
      const { owner, run } = await begin()
      const [waiting, last] = [await wait(owner, run), await wait(owner, run)]
      await db.rows(sql`update chat_sessions set active_run_id = null where id = ${run.session_id}::uuid`)
      await db.rows(sql`update chat_runs set status = 'failed' where id = ${run.id}::uuid`)
      owned.fence(run.id)
      const before = asked.length
      await stopSession(owner, run.session_id, true)
      t.same(await statuses([waiting, last]), ['stopped', 'stopped'])
      t.match(await sessions.getSession(owner, run.session_id), { status: 'killed' })
      t.equal(asked.length, before)
    })

    await t.test('a message that comes in behind a kill is answered', async (t) => {
      const { owner, run } = await begin()
      await wait(owner, run)
      said = Promise.withResolvers()
      // Stored when the wish is, and before anything has ended.
      await runs.requestStopOfSession(owner, run.session_id, true)
      const next = await wait(owner, run)
      owned.stop(run.id)
      await said.promise
      t.equal(asked.at(-1), next.id)
      t.same(told, Array(4).fill(run.session_id), 'two ends and two beginnings')
      t.match(await sessions.getSession(owner, run.session_id), { status: 'running', active_run_id: next.id })
      await stopSession(owner, run.session_id)
    })

    await t.test('what a process makes that does not answer is killed all the same', async (t) => {
      const owner = createOwner()
      const run = await accept({ owner, instanceId: randomUUID() })
      told.length = 0
      const askedAt = performance.now()
      await stopSession(owner, run.session_id, true)
      t.ok(performance.now() - askedAt < stopWaitMs + marginMs)
      t.match(await runs.reread(run.id), { status: 'stopped', generation: 2 })
      t.match(await sessions.getSession(owner, run.session_id), { status: 'killed', active_run_id: null })
      t.same(told, [run.session_id])
    })

    await t.test('a run whose session is gone is let go at once, without a word to the database', async (t) => {
      const { owner, run } = await begin()
      await db.rows(sql`delete from chat_sessions where id = ${run.session_id}::uuid`)
      t.ok(owned.has(run.id))
      const woken = Promise.withResolvers<void>()
      t.teardown(log.watch(run.id, woken.resolve))
      const askedAt = performance.now()
      await stopSession(owner, run.session_id)
      await owned.ended(run.id)
      await woken.promise
      t.notOk(owned.has(run.id))
      t.equal(aborted.at(-1), run.id)
      t.match(await log.read(run.id, undefined, 1), { kind: 'unknown' }, 'its viewers are sent to the database')
      t.same(told, [])
      const record = { ...run, owner: owner.key } as unknown as Parameters<typeof stop>[0]
      t.match(await stop(record), { id: run.id }, 'a stop of it that came before the purge ends as well')
      t.ok(performance.now() - askedAt < stopWaitMs)
    })

    await t.test('a process says what each of its runs is doing', async (t) => {
      const usage = { input_tokens: 5, output_tokens: 3, total_tokens: 8 }
      const cases: readonly (readonly [readonly UpstreamEvent[], object])[] = [
        [[], { phase: 'waiting' }],
        [[{ type: 'reasoning', text: 'Hm' }], { phase: 'reasoning' }],
        [
          [
            { type: 'reasoning', text: 'Hm' },
            { type: 'text', text: 'So' },
          ],
          { phase: 'answering' },
        ],
        [
          [
            { type: 'text', text: 'So' },
            { type: 'tool_call', key: 'k', arguments: '{' },
          ],
          { phase: 'tool' },
        ],
        [
          [
            { type: 'text', text: 'So' },
            { type: 'usage', usage },
          ],
          { phase: 'answering', outputTokens: 3 },
        ],
      ]
      for (const [says, expected] of cases) {
        words = says
        const before = Date.now()
        const { owner, run } = await begin()
        const { lastActivityAt, ...live } = owned.live().find(({ runId }) => runId === run.id)!
        t.same(live, { runId: run.id, sessionId: run.session_id, ...expected })
        t.ok(lastActivityAt >= before && lastActivityAt <= Date.now())
        t.same(owned.ofSession(run.session_id), [run.id])
        await stopSession(owner, run.session_id)
        t.notOk(owned.live().some(({ runId }) => runId === run.id))
      }
    })
  })
}
