/**
 * Accepting: what two processes must not both decide is decided by the database, however many ask at the same time.
 */
import { randomUUID } from 'node:crypto'
import { test } from 'tap'
import type { Db } from '../../src/db/db.ts'
import { sql } from '../../src/db/drizzle.ts'
import { openPostgres } from '../../src/db/postgres.ts'
import { Problem } from '../../src/errors.ts'
import { createMemoryLog } from '../../src/log/memory.ts'
import { createAccept } from '../../src/runs/accept.ts'
import { createChat } from '../../src/runs/chat.ts'
import type { RunFacts } from '../../src/runs/model.ts'
import type { OwnedRuns } from '../../src/runs/owned.ts'
import { createRunStore } from '../../src/runs/store.ts'
import { databases } from '../support/database.ts'
import { createIdleRuns, createOwner, createReaperOf, openStore, plansFor } from '../support/runs.ts'

const requests = 50

const acceptOn = (db: Db, instanceId: string = randomUUID(), runsPerOwnerMax = 0) =>
  createAccept({ db, runs: createRunStore(db), instanceId, runsPerOwnerMax })

const codeOf = (error: unknown) => (error instanceof Problem ? error.code : String(error))

for (const kind of databases()) {
  test(`on ${kind}`, async (t) => {
    const { db, url, runs, messages } = await openStore(t, kind)
    // Two processes, each with its own connections; the embedded database has one.
    const second = url === undefined ? db : openPostgres({ url, unpooledUrl: url, poolSize: 5 })
    if (second !== db) t.teardown(() => second.close())
    const processes = [acceptOn(db), acceptOn(second)]
    const count = async (owner: { key: string }) => {
      const [row] = await db.rows<{ runs: number; messages: number; sessions: number }>(sql`
        select
          (select count(*)::int from chat_sessions where owner = ${owner.key}) as sessions,
          (select count(*)::int from chat_runs where owner = ${owner.key}) as runs,
          (select count(*)::int from chat_messages m join chat_sessions s on s.id = m.session_id
            where s.owner = ${owner.key}) as messages`)
      return row
    }
    const acceptMany = (one: (index: number, by: ReturnType<typeof acceptOn>) => Promise<unknown>) =>
      Promise.allSettled(
        Array.from({ length: requests }, (_, index) => one(index, processes[index % 2] as ReturnType<typeof acceptOn>)),
      )

    await t.test('P5 the same key from everywhere at the same time is one run', async (t) => {
      for (const session_id of [undefined, randomUUID()]) {
        const owner = createOwner()
        const body = { message: 'Once', client_message_id: 'key', ...(session_id === undefined ? {} : { session_id }) }
        const results = await acceptMany((_, by) => by.accept(owner, body, plansFor))
        const accepted = results.flatMap((result) =>
          result.status === 'fulfilled' ? [result.value as { run: RunFacts; isNew: boolean }] : [],
        )
        t.equal(accepted.length, requests)
        t.equal(new Set(accepted.map(({ run }) => run.id)).size, 1)
        t.equal(accepted.filter(({ isNew }) => isNew).length, 1, 'exactly one made it')
        t.same(await count(owner), { sessions: 1, runs: 1, messages: 2 })
      }
    })

    await t.test('P5 of different messages to a new session at the same time exactly one is accepted', async (t) => {
      const owner = createOwner()
      const session_id = randomUUID()
      const results = await acceptMany((index, by) =>
        by.accept(owner, { message: `Take ${index}`, session_id }, plansFor),
      )
      const winners = results.filter((result) => result.status === 'fulfilled')
      t.equal(winners.length, 1)
      const losers = results.flatMap((result) => (result.status === 'rejected' ? [result.reason] : []))
      t.same([...new Set(losers.map(codeOf))], ['session_busy'])
      const winner = (winners[0] as PromiseFulfilledResult<{ run: RunFacts }>).value.run
      t.ok(losers.every((error: Problem) => error.members.run_id === winner.id))
      t.same(await count(owner), { sessions: 1, runs: 1, messages: 2 }, 'those refused left nothing')
    })

    await t.test(
      'P5 messages to a session by a name that nobody has used are one session, also at the same time',
      async (t) => {
        const [owner, other] = [createOwner(), createOwner()]
        const results = await acceptMany((index, by) =>
          by.accept(owner, { message: `Take ${index}`, external_id: 'my chat', on_busy: 'queue' }, plansFor),
        )
        const runs = results.flatMap((result) =>
          result.status === 'fulfilled' ? [(result.value as { run: RunFacts }).run] : [],
        )
        t.equal(runs.length, requests)
        t.equal(new Set(runs.map(({ session_id }) => session_id)).size, 1)
        t.same(await count(owner), { sessions: 1, runs: requests, messages: 2 * requests })
        const elsewhere = await acceptOn(db).accept(other, { message: 'Hello', external_id: 'my chat' }, plansFor)
        t.not(elsewhere.run.session_id, runs[0]?.session_id, 'a name is its owner’s')
      },
    )

    await t.test('a key that was used in a session of another name is refused there', async (t) => {
      const owner = createOwner()
      const ask = (external_id: string) =>
        acceptOn(db).accept(owner, { message: 'Hello', external_id, client_message_id: 'key' }, plansFor)
      const [first, again] = [await ask('one'), await ask('one')]
      t.equal(again.run.id, first.run.id)
      await t.rejects(ask('two'), { code: 'idempotency_mismatch' })
    })

    await t.test(
      'P5 a repeat without a key waits for what it repeats, and is the same run; one that is no repeat is another',
      async (t) => {
        const owner = createOwner()
        const opened = Promise.withResolvers<void>()
        const slow = {
          ...db,
          async rows<Row>(statement: Parameters<Db['rows']>[0]): Promise<Row[]> {
            await opened.promise
            return db.rows<Row>(statement)
          },
        }
        const { accept } = createAccept({
          db: slow,
          runs: createRunStore(db),
          instanceId: randomUUID(),
          runsPerOwnerMax: 0,
        })
        const first = accept(owner, { message: 'Once' }, plansFor)
        const repeat = accept(owner, { message: 'Once', repeats_within_ms: 60_000 }, plansFor)
        const another = accept(owner, { message: 'Once' }, plansFor)
        opened.resolve()
        const [one, two, three] = await Promise.all([first, repeat, another])
        t.same([one.isNew, two.isNew, three.isNew], [true, false, true])
        t.ok([one.run.id, three.run.id].includes(two.run.id))
        t.same(await count(owner), { sessions: 2, runs: 2, messages: 4 })
        t.same(
          await accept(owner, { message: 'Never before', repeats_within_ms: 60_000 }, plansFor).then(
            ({ isNew }) => isNew,
          ),
          true,
          'a repeat of what never came is a request',
        )
      },
    )

    await t.test('a session’s messages are numbered without a hole, whoever wrote them', async (t) => {
      const owner = createOwner()
      const session_id = randomUUID()
      for (let round = 0; round < 4; round += 1) {
        const { run } = await (processes[round % 2] as (typeof processes)[0]).accept(
          owner,
          { message: 'Next', session_id },
          plansFor,
        )
        await db.rows(sql`update chat_runs set status = 'completed' where id = ${run.id}::uuid`)
      }
      const { data } = await messages.listMessages(owner, session_id, {})
      t.same(
        data.map(({ seq }) => seq),
        [1, 2, 3, 4, 5, 6, 7, 8],
      )
      t.same(
        data.slice(1).map(({ parent_id }) => parent_id),
        data.slice(0, -1).map(({ id }) => id),
      )
    })

    await t.test(
      'P9 a session of somebody else is not found, also at the same moment, and is not touched',
      async (t) => {
        const [mine, theirs] = [createOwner(), createOwner()]
        const session_id = randomUUID()
        const results = await acceptMany((index, by) =>
          by.accept(index % 2 === 0 ? mine : theirs, { message: 'Mine', session_id }, plansFor),
        )
        const winner = results.find((result) => result.status === 'fulfilled') as PromiseFulfilledResult<{
          run: RunFacts
        }>
        const owner = (await runs.reread(winner.value.run.id))?.owner === mine.key ? mine : theirs
        const other = owner === mine ? theirs : mine
        t.same(await count(owner), { sessions: 1, runs: 1, messages: 2 })
        t.same(await count(other), { sessions: 0, runs: 0, messages: 0 })
        await t.rejects(acceptOn(db).accept(other, { message: 'Let me in', session_id }, plansFor), {
          code: 'not_found',
        })
      },
    )

    await t.test('the same key is another owner’s business', async (t) => {
      const [one, two] = [createOwner(), createOwner()]
      const body = { message: 'Hi', client_message_id: 'shared' }
      const [a, b] = await Promise.all([one, two].map((owner) => acceptOn(db).accept(owner, body, plansFor)))
      t.not(a?.run.id, b?.run.id)
      t.ok(a?.isNew && b?.isNew)
    })

    await t.test(
      'a run that was committed while its answer was lost is started when its key comes again',
      async (t) => {
        const owner = createOwner()
        const instanceId = randomUUID()
        const losing: Db = {
          ...db,
          async rows(statement) {
            await db.rows(statement)
            throw new Problem('db_unavailable')
          },
        }
        const body = { message: 'Are you there?', client_message_id: 'lost' }
        await t.rejects(acceptOn(losing, instanceId).accept(owner, body, plansFor), { code: 'db_unavailable' })
        const started: string[] = []
        const owned = {
          arrive: <T>(accept: () => Promise<T>) => accept(),
          isDraining: false,
          has: (id: string) => started.includes(id),
          start: ({ id }: RunFacts) => started.push(id),
        } as unknown as OwnedRuns
        const log = createMemoryLog()
        t.teardown(() => log.close())
        const chatOf = (instance: string) =>
          createChat({
            accept: acceptOn(db, instance),
            runs,
            owned,
            log,
            stop: async (run) => run,
            instanceId: instance,
            holdLease: async () => undefined,
            plansFor: ({ text }) => plansFor(text),
          })
        await chatOf(randomUUID())(owner, body)
        t.same(started, [], 'another process leaves it alone')
        const again = await chatOf(instanceId)(owner, body)
        t.equal(again.isNew, false)
        t.same(started, [again.run.id])
        await chatOf(instanceId)(owner, body)
        t.same(started, [again.run.id], 'once')
        t.same(await count(owner), { sessions: 1, runs: 1, messages: 2 })
      },
    )

    await t.test('if its key never comes again, the reaper of this process starts it', async (t) => {
      const instanceId = randomUUID()
      const owner = createOwner()
      const { run: stray } = await acceptOn(db, instanceId).accept(owner, { message: 'Lost' }, plansFor)
      const { run: fresh } = await acceptOn(db, instanceId).accept(owner, { message: 'Just now' }, plansFor)
      const { run: made } = await acceptOn(db, instanceId).accept(owner, { message: 'Being made' }, plansFor)
      await db.rows(sql`
        update chat_runs set started_at = now() - interval '16 seconds' where id in (${stray.id}::uuid, ${made.id}::uuid)`)
      const owned = createIdleRuns([made.id])
      const reaper = createReaperOf({ db, instanceId, owned })
      await reaper.start()
      t.teardown(() => reaper.close())
      const ours = owned.started.filter(({ id }) => [stray.id, fresh.id, made.id].includes(id))
      t.match(ours, [{ id: stray.id, generation: 2 }])
      t.equal(ours.length, 1)
      t.equal((await runs.reread(fresh.id))?.generation, 1, 'it may still be found by its key')
      t.equal((await runs.reread(made.id))?.generation, 1, 'somebody makes it')
    })
  })
}
