/**
 * P7 no orphan: a run whose process has died ends with the text it had, once; a run whose process lives is left alone.
 */
import { randomUUID } from 'node:crypto'
import { test } from 'tap'
import { sql } from '../../src/db/drizzle.ts'
import { openPostgres } from '../../src/db/postgres.ts'
import { writeCheckpoints } from '../../src/runs/checkpoint.ts'
import { commitRun } from '../../src/runs/commit.ts'
import type { RunFacts } from '../../src/runs/model.ts'
import { createReaper } from '../../src/runs/reaper.ts'
import { databases } from '../support/database.ts'
import { countRows, createIdleRuns, endingOf, lease, openStore, silent, textPart } from '../support/runs.ts'

for (const kind of databases()) {
  test(`on ${kind}`, async (t) => {
    const { db, url, accept, runs, sessions } = await openStore(t, kind)
    const createOne = (owned = createIdleRuns(), on = db) =>
      createReaper({ db: on, instanceId: randomUUID(), owned, logger: silent })
    /** One round. */
    async function reap(): Promise<void> {
      const reaper = createOne()
      await reaper.start()
      await reaper.close()
    }
    const say = (run: RunFacts, text: string) =>
      writeCheckpoints(db, [{ runId: run.id, parts: [textPart(text)], cursor: { generation: 1, seq: 5 } }], new Map())

    await t.test('a run of a dead process ends as interrupted, with the text of its checkpoints', async (t) => {
      const dead = randomUUID()
      const [spoken, silentRun] = [await accept({ instanceId: dead }), await accept({ instanceId: dead })]
      await say(spoken, 'So far 👩‍👩‍👧')
      await lease(db, dead, -1)
      await reap()
      for (const [run, content] of [
        [spoken, 'So far 👩‍👩‍👧'],
        [silentRun, ''],
      ] as const) {
        t.match(await runs.reread(run.id), {
          status: 'interrupted',
          generation: 2,
          last_seq: 2,
          error: { code: 'interrupted', retryable: true },
        })
        t.match(await sessions.readReply(run.message_id), {
          status: 'interrupted',
          content,
          parts: content === '' ? [] : [textPart(content)],
        })
        t.equal(await countRows(db, 'run_checkpoints', run.id), 0)
      }
    })

    await t.test('what its old process says afterwards is refused', async (t) => {
      const dead = randomUUID()
      const run = await accept({ instanceId: dead })
      await lease(db, dead, -1)
      await reap()
      const before = await sessions.readReply(run.message_id)
      t.match(await commitRun(db, run.id, 1, endingOf([textPart('I am back')])), { outcome: 'fenced' })
      await say(run, 'Still here')
      t.equal(await countRows(db, 'run_checkpoints', run.id), 0)
      t.same(await sessions.readReply(run.message_id), before)
      const twin = await accept({ instanceId: dead })
      const unfenced = await commitRun(db, twin.id, 1, endingOf([textPart('I am back')]))
      t.equal(unfenced.outcome, 'committed', 'without a takeover it is not')
    })

    await t.test('one run that cannot be ended does not keep the others waiting', async (t) => {
      const dead = randomUUID()
      const [poisoned, other] = [await accept({ instanceId: dead }), await accept({ instanceId: dead })]
      await db.rows(sql`
        update chat_runs set created_at = created_at - interval '1 hour' where id = ${poisoned.id}::uuid`)
      await db.rows(sql`alter table chat_messages add constraint poison check (content <> 'poison') not valid`)
      await say(poisoned, 'poison')
      await reap()
      t.equal((await runs.reread(other.id))?.status, 'interrupted')
      t.equal((await runs.reread(poisoned.id))?.status, 'running')
      await db.rows(sql`alter table chat_messages drop constraint poison`)
      await reap()
      t.equal((await runs.reread(poisoned.id))?.status, 'interrupted', 'it is tried again')
    })

    await t.test('checkpoints that nobody will read are swept', async (t) => {
      const run = await accept()
      await say(run, 'late')
      await db.rows(sql`update chat_runs set status = 'completed' where id = ${run.id}::uuid`)
      await reap()
      t.equal(await countRows(db, 'run_checkpoints', run.id), 0)
    })

    await t.test('a wish to stop that came in elsewhere is heard with the beat', async (t) => {
      const owned = createIdleRuns()
      const instanceId = randomUUID()
      const run = await accept({ instanceId })
      await accept({ instanceId })
      const record = await runs.reread(run.id)
      if (record !== undefined) await runs.requestStop(record)
      const reaper = createReaper({ db, instanceId, owned, logger: silent })
      await reaper.start()
      t.teardown(() => reaper.close())
      t.same(owned.stopped, [run.id])
    })

    if (url === undefined) {
      await t.test('on a database that nobody else can open, a lease of before is worth nothing', async (t) => {
        const dead = randomUUID()
        const run = await accept({ instanceId: dead })
        await lease(db, dead, 60_000)
        await reap()
        t.equal((await runs.reread(run.id))?.status, 'interrupted')
      })
      return
    }

    await t.test('a run of a living process is left alone, until the lease is given back', async (t) => {
      const owner = createOne()
      await owner.start()
      const [row] = await db.rows<{ id: string }>(sql`select id from instances where lease_until > now()`)
      const run = await accept({ instanceId: row?.id ?? '' })
      await reap()
      t.match(await runs.reread(run.id), { status: 'running', generation: 1 })
      await owner.close()
      await reap()
      t.match(await runs.reread(run.id), { status: 'interrupted', generation: 2 })
    })

    await t.test('reapers that come at the same time take each run once', async (t) => {
      const second = openPostgres({ url, unpooledUrl: url, poolSize: 5 })
      t.teardown(() => second.close())
      for (let round = 0; round < 4; round += 1) {
        const dead = randomUUID()
        const all = await Promise.all(Array.from({ length: 60 }, () => accept({ instanceId: dead })))
        await lease(db, dead, -1)
        const reapers = [db, second, db, second].map((on) => createOne(createIdleRuns(), on))
        await Promise.all(reapers.map((reaper) => reaper.start()))
        await Promise.all(reapers.map((reaper) => reaper.close()))
        const ended = await db.rows<{ generation: number; status: string; count: number }>(sql`
          select generation, status, count(*)::int as count from chat_runs
          where id = any (${`{${all.map(({ id }) => id).join(',')}}`}::uuid[]) group by 1, 2`)
        t.same(ended, [{ generation: 2, status: 'interrupted', count: 60 }])
      }
    })
  })
}
