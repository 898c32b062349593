/**
 * P7 no orphan: a run whose process has died ends with the text it had, once; a run whose process lives is left alone.
 */
import { randomUUID } from 'node:crypto'
import { test } from 'tap'
import { sql } from '../../src/db/drizzle.ts'
import { openPostgres } from '../../src/db/postgres.ts'
import type { LogEntry } from '../../src/log/event.ts'
import type { EventLog, RunEntries } from '../../src/log/log.ts'
import { createMemoryLog } from '../../src/log/memory.ts'
import { writeCheckpoints } from '../../src/runs/checkpoint.ts'
import { commitRun } from '../../src/runs/commit.ts'
import type { RunFacts } from '../../src/runs/model.ts'
import { delta, deltas, reset } from '../contracts/log.ts'
import { databases } from '../support/database.ts'
import { countRows, createIdleRuns, createReaperOf, endingOf, lease, openStore, textPart } from '../support/runs.ts'

for (const kind of databases()) {
  test(`on ${kind}`, async (t) => {
    const { db, url, accept, runs, messages } = await openStore(t, kind)
    const createOne = (owned = createIdleRuns(), on = db) => createReaperOf({ db: on, owned })
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
      const run = await accept({ instanceId: dead })
      await say(run, 'So far 👩‍👩‍👧')
      await lease(db, dead, -1)
      await reap()
      t.match(await runs.reread(run.id), {
        status: 'interrupted',
        generation: 2,
        last_seq: 2,
        attempts: 1,
        error: { code: 'interrupted', retryable: true },
      })
      t.match(await messages.readReply(run.message_id), {
        status: 'interrupted',
        content: 'So far 👩‍👩‍👧',
        parts: [textPart('So far 👩‍👩‍👧')],
      })
      t.equal(await countRows(db, 'run_checkpoints', run.id), 0)
    })

    await t.test('a run of a dead process of which nothing was shown is asked again, once', async (t) => {
      const dead = randomUUID()
      const run = await accept({ instanceId: dead })
      const owned = createIdleRuns()
      const reaper = createOne(owned)
      await reaper.start()
      await reaper.close()
      t.match(owned.started, [{ id: run.id, generation: 2, message_id: run.message_id }])
      t.match(await runs.reread(run.id), { status: 'running', generation: 2, attempts: 2 })
      await reap()
      t.match(await runs.reread(run.id), { status: 'interrupted', generation: 3, attempts: 2 }, 'not a third time')
      t.match(await messages.readReply(run.message_id), { status: 'interrupted', content: '', parts: [] })
    })

    await t.test(
      'what the log holds beyond the checkpoints is kept, up to a hole, and its viewers see the end',
      async (t) => {
        for (const [entries, content] of [
          [deltas(2, 7), '1-2;1-3;1-4;1-5;1-6;1-7;'],
          [[...deltas(2, 7), delta(9)], '1-2;1-3;1-4;1-5;1-6;1-7;'],
          [[...deltas(2, 3), reset(8, 1, 'Whole so far, '), delta(9)], 'Whole so far, 1-9;'],
          [deltas(2, 4), 'The checkpoint'],
          [deltas(30, 40), 'The checkpoint'],
        ] as const) {
          const dead = randomUUID()
          const run = await accept({ instanceId: dead })
          await say(run, 'The checkpoint')
          const log: EventLog = {
            ...createMemoryLog(),
            load: async () => [...(entries[0]?.seq === 2 ? [delta(1, 1, '')] : []), ...entries],
            append: (frame) => appended.push(...frame),
          }
          const appended: RunEntries[] = []
          const reaper = createReaperOf({ db, log })
          await reaper.start()
          await reaper.close()
          t.match(await messages.readReply(run.message_id), { status: 'interrupted', content })
          t.match(appended, [
            {
              runId: run.id,
              entries: [
                {
                  generation: 2,
                  seq: 1,
                  event: { type: 'reset', data: { cursor: '2-1', parts: [textPart(content)] } },
                },
                { generation: 2, seq: 2, event: { type: 'done', data: { status: 'interrupted' } } },
              ],
            },
          ])
        }
      },
    )

    await t.test(
      'a log that does not answer at once is asked again, because it may hold what is nowhere else',
      async (t) => {
        const run = await accept({ instanceId: randomUUID() })
        let asked = 0
        const log: EventLog = {
          ...createMemoryLog(),
          async load() {
            asked += 1
            return asked < 3 ? 'unanswered' : [delta(1, 1, ''), ...deltas(2, 3)]
          },
        }
        const reaper = createReaperOf({ db, log })
        await reaper.start()
        await reaper.close()
        t.match(await messages.readReply(run.message_id), { status: 'interrupted', content: '1-2;1-3;' })
      },
    )

    await t.test('a run of which nobody can tell whether something was shown is not asked for again', async (t) => {
      const run = await accept({ instanceId: randomUUID() })
      const owned = createIdleRuns()
      const reaper = createReaperOf({ db, owned, log: { ...createMemoryLog(), load: async () => 'unanswered' } })
      await reaper.start()
      await reaper.close()
      t.match(await runs.reread(run.id), { status: 'interrupted', attempts: 1 })
      t.same(owned.started, [])
    })

    await t.test('a run that somebody wanted stopped ends as stopped when its process is dead', async (t) => {
      const dead = randomUUID()
      for (const text of ['So far', '']) {
        const run = await accept({ instanceId: dead })
        if (text !== '') await say(run, text)
        const record = await runs.reread(run.id)
        if (record !== undefined) await runs.requestStop(record)
        await reap()
        t.match(await runs.reread(run.id), { status: 'stopped', error: null, attempts: 1 })
        t.match(await messages.readReply(run.message_id), { status: 'stopped', content: text })
      }
    })

    await t.test('a process is told of runs that are no longer its own', async (t) => {
      const instanceId = randomUUID()
      const [kept, ended] = [await accept({ instanceId }), await accept({ instanceId })]
      await commitRun(db, ended.id, 1, endingOf([textPart('Whole')]))
      const owned = createIdleRuns([kept.id, ended.id])
      const reaper = createReaperOf({ db, instanceId, owned })
      await reaper.start()
      await owned.untilFenced
      await reaper.close()
      t.same(owned.fenced.slice(0, 1), [ended.id])
      t.notOk(owned.fenced.includes(kept.id))
    })

    await t.test('a process that has been without the database takes nothing over until others had time', async (t) => {
      if (db.exclusive) {
        t.pass('there are no others')
        return
      }
      let now = 0
      const reaper = createReaperOf({ db, now: () => now })
      const run = await accept({ instanceId: randomUUID() })
      await say(run, 'So far')
      const status = async () => (await runs.reread(run.id))?.status
      now = 5000
      await reaper.start()
      t.equal(await status(), 'running')
      // Time goes five times as fast, in steps that are no gap.
      while ((await status()) === 'running' && now < 60_000) {
        now += 100
        await new Promise((resolve) => setTimeout(resolve, 20))
      }
      t.ok(now >= 12_000, `taken over at ${now} ms`)
      t.equal(await status(), 'interrupted', 'and then it does')
      await reaper.close()
    })

    await t.test('a process that stood still has a lease again before it accepts anything', async (t) => {
      let now = 0
      const instanceId = randomUUID()
      const reaper = createReaperOf({ db, instanceId, now: () => now })
      await reaper.start()
      const remainingMs = async () => {
        const rows = await db.rows<{ ms: number }>(sql`
          select (extract(epoch from lease_until - now()) * 1000)::int as ms from instances where id = ${instanceId}::uuid`)
        return rows[0]?.ms ?? 0
      }
      await lease(db, instanceId, -5)
      await reaper.hold()
      t.ok((await remainingMs()) < 0, 'nothing is written while the last renewal is recent')
      now = 20_000
      await Promise.all([reaper.hold(), reaper.hold()])
      t.ok((await remainingMs()) > 5_000)
      await reaper.close()
    })

    await t.test('what its old process says afterwards is refused', async (t) => {
      const dead = randomUUID()
      const run = await accept({ instanceId: dead })
      await say(run, 'So far')
      await lease(db, dead, -1)
      await reap()
      const before = await messages.readReply(run.message_id)
      t.match(await commitRun(db, run.id, 1, endingOf([textPart('I am back')])), { outcome: 'fenced' })
      await say(run, 'Still here')
      t.equal(await countRows(db, 'run_checkpoints', run.id), 0)
      t.same(await messages.readReply(run.message_id), before)
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
      await say(other, 'harmless')
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

    await t.test('a wish to stop that came in elsewhere is heard with the next look', async (t) => {
      const instanceId = randomUUID()
      const [run, other] = [await accept({ instanceId }), await accept({ instanceId })]
      const owned = createIdleRuns([run.id, other.id])
      const record = await runs.reread(run.id)
      if (record !== undefined) await runs.requestStop(record)
      const reaper = createReaperOf({ db, instanceId, owned })
      await reaper.start()
      t.teardown(() => reaper.close())
      await owned.untilStopped
      t.same(owned.stopped.slice(0, 1), [run.id])
    })

    await t.test('a wish to stop is heard while a takeover waits for a log that does not answer', async (t) => {
      const instanceId = randomUUID()
      const own = await accept({ instanceId })
      const owned = createIdleRuns([own.id])
      const [asked, answer] = [Promise.withResolvers<void>(), Promise.withResolvers<LogEntry[]>()]
      let orphan: RunFacts | undefined
      const load = async (runId: string) => {
        if (runId !== orphan?.id) return []
        asked.resolve()
        return answer.promise
      }
      const reaper = createReaperOf({ db, instanceId, owned, log: { ...createMemoryLog(), load } })
      await reaper.start()
      // Not for a dead process at first: it may be found before it is known here.
      orphan = await accept({ instanceId })
      await db.rows(sql`update chat_runs set instance_id = null where id = ${orphan.id}::uuid`)
      await asked.promise
      const record = await runs.reread(own.id)
      if (record !== undefined) await runs.requestStop(record)
      await owned.untilStopped
      t.match(await runs.reread(orphan.id), { status: 'running', generation: 2, attempts: 1 }, 'it waits still')
      answer.resolve([])
      await reaper.close()
      t.ok(
        owned.started.some(({ id }) => id === orphan?.id),
        'and closing has waited for it',
      )
    })

    if (url === undefined) {
      await t.test('on a database that nobody else can open, a lease of before is worth nothing', async (t) => {
        const dead = randomUUID()
        const run = await accept({ instanceId: dead })
        await say(run, 'So far')
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
      await say(run, 'So far')
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
        const all: RunFacts[] = []
        // A few at a time: who waits too long for a connection is refused, as any request is.
        while (all.length < 60) {
          all.push(...(await Promise.all(Array.from({ length: 10 }, () => accept({ instanceId: dead })))))
        }
        await writeCheckpoints(
          db,
          all.map(({ id }) => ({ runId: id, parts: [textPart('So far')], cursor: { generation: 1, seq: 5 } })),
          new Map(),
        )
        await lease(db, dead, -1)
        const reapers = [db, second, db, second].map((on) => createOne(createIdleRuns(), on.inLane('runs')))
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
