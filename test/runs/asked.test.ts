/**
 * What is asked besides messages: edits, new replies and starts go through the same statement, so whatever two processes
 * do at the same instant, there is one run, in its place, and a root stays a root.
 */
import { randomUUID } from 'node:crypto'
import postgres from 'postgres'
import { test } from 'tap'
import { sql } from '../../src/db/drizzle.ts'
import { openPostgres } from '../../src/db/postgres.ts'
import { Problem } from '../../src/errors.ts'
import { createAccept } from '../../src/runs/accept.ts'
import { type Asked, hashAsked } from '../../src/runs/asked.ts'
import { commitRun } from '../../src/runs/commit.ts'
import type { RunFacts } from '../../src/runs/model.ts'
import { promote, stopQueued } from '../../src/runs/queue.ts'
import { createRunStore } from '../../src/runs/store.ts'
import { readHistory } from '../../src/sessions/context.ts'
import { databases } from '../support/database.ts'
import { createOwner, endingOf, openStore, plansFor, textPart, untilWaiting } from '../support/runs.ts'

const requests = 20
const races = 10

test('two requests are the same when all that is asked is the same', (t) => {
  const id = '01890000-0000-7000-8000-00000000000a'
  const hashes = [
    hashAsked({ message: 'Hi' }),
    hashAsked({ message: 'Hi', parent_id: id }),
    hashAsked({ edit: id, message: 'Hi' }),
    hashAsked({ edit: id.replace('a', 'b'), message: 'Hi' }),
    hashAsked({ regenerate: id }),
    hashAsked({ regenerate: id, metadata: {} }),
    hashAsked({ start: id }),
    hashAsked({ start: id, mode: 'fast' }),
  ]
  t.equal(new Set(hashes).size, hashes.length)
  t.equal(hashAsked({ edit: id.toUpperCase(), message: 'Hi', on_busy: 'queue', on_disconnect: 'stop' }), hashes[2])
  t.equal(
    hashAsked({ message: 'Hi', mode: 'fast', metadata: { a: 1 }, session_id: id, on_busy: 'queue' }),
    '193f45484171958b479ef4b65b342028e017fefd53ff97294cc6827876aa1b2e',
    'that of a message is what it was in every version: two of them answer side by side during a deploy',
  )
  t.end()
})

for (const kind of databases()) {
  test(`on ${kind}`, async (t) => {
    const { db, url, runs, sessions, messages } = await openStore(t, kind)
    const second = url === undefined ? db : openPostgres({ url, unpooledUrl: url, poolSize: 5 })
    if (second !== db) t.teardown(() => second.close())
    const told: string[] = []
    const changes = { changed: (id: string) => void told.push(id), removed: () => undefined }
    const processes = [db, second].map((on) =>
      createAccept({ db: on, runs: createRunStore(on), instanceId: randomUUID(), runsPerOwnerMax: 0, changes }),
    )
    const ask = async (owner: ReturnType<typeof createOwner>, asked: Asked, by = 0) =>
      (await processes[by % 2]!.accept(owner, asked, plansFor)).run
    const end = (run: RunFacts, text = 'Reply') => commitRun(db, run.id, 1, endingOf([textPart(text)]))
    const seqOf = async (id: string) => (await messages.readReply(id))?.seq
    const parentOf = async (id: string) => (await messages.readReply(id))?.parent_id
    const contents = async (run: RunFacts) =>
      (await readHistory(db, run.user_message_id, 10)).messages.map(({ content }) => content)

    await t.test('P5 the same key from everywhere at the same time is one run, whatever is asked', async (t) => {
      const owner = createOwner()
      const first = await ask(owner, { message: 'One' })
      await end(first)
      const { session } = await sessions.createSession(owner, { input: 'Go' })
      const asks: Asked[] = [
        { regenerate: first.message_id, client_message_id: 'r' },
        { edit: first.user_message_id, message: 'Uno', client_message_id: 'e' },
        { start: session.id, client_message_id: 's' },
      ]
      for (const asked of asks) {
        told.length = 0
        const results = await Promise.all(
          Array.from({ length: requests }, (_, n) => processes[n % 2]!.accept(owner, asked, plansFor)),
        )
        t.equal(new Set(results.map(({ run }) => run.id)).size, 1)
        t.equal(results.filter(({ isNew }) => isNew).length, 1, 'exactly one made it')
        t.same(told, [results[0]?.run.session_id], 'who keeps copies is told once')
        await end(results[0]!.run)
      }
      t.match(await sessions.getSession(owner, first.session_id), { message_count: 5, title: 'One' })
      t.match(await sessions.getSession(owner, session.id), { message_count: 2, title: 'Go' })
    })

    await t.test('of a first message is said what goes upstream, as the database says it', async (t) => {
      const [{ accept }] = processes as [(typeof processes)[0]]
      const owner = createOwner()
      const { session } = await sessions.createSession(owner, { context: { plan: 'é', a: [1] } })
      const first: Asked[] = [
        { message: '\uFEFFa\u0000b \uD800c' },
        { message: 'One', session_id: session.id },
        { message: 'One', external_id: 'mine' },
        { start: (await sessions.createSession(owner, { input: 'Go' })).session.id },
      ]
      for (const asked of first) {
        const { run, history } = await accept(owner, asked, plansFor)
        t.ok(history)
        t.strictSame(history, await readHistory(db, run.user_message_id, 10))
        await end(run)
      }
      const others: Asked[] = [
        { message: 'Two', session_id: session.id },
        { message: 'Two', before: [{ role: 'user', parts: [textPart('One')] }] },
      ]
      for (const asked of others) {
        const { run, history } = await accept(owner, asked, plansFor)
        t.equal(history, undefined)
        const busy = await accept(
          owner,
          { ...asked, before: undefined, session_id: run.session_id, on_busy: 'queue' },
          plansFor,
        )
        t.equal(busy.history, undefined)
        await end(run)
      }
    })

    await t.test('P5 of different asks to an idle session at the same time exactly one is accepted', async (t) => {
      for (let round = 0; round < races; round += 1) {
        const owner = createOwner()
        const first = await ask(owner, { message: 'One' })
        await end(first)
        const { session_id } = first
        const results = await Promise.allSettled([
          ask(owner, { regenerate: first.message_id }, 0),
          ask(owner, { edit: first.user_message_id, message: 'Uno' }, 1),
          ask(owner, { message: 'Two', session_id }, 0),
          ask(owner, { regenerate: first.user_message_id }, 1),
        ])
        const [winner, ...others] = results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []))
        t.same(others, [])
        const codes = results.flatMap((result) =>
          result.status === 'rejected' && result.reason instanceof Problem ? [result.reason.code] : [],
        )
        t.same(codes, ['session_busy', 'session_busy', 'session_busy'])
        const { message_count } = await sessions.getSession(owner, session_id)
        t.equal(await seqOf(winner!.message_id), message_count, 'numbered without a hole')
        await end(winner!)
      }
    })

    if (url !== undefined) {
      await t.test('what saw an idle session and waits for its row is refused when that has changed', async (t) => {
        // Without the index, so that it is not what keeps two from running.
        await db.rows(sql`drop index chat_runs_one_running`)
        const holder = postgres(url, { max: 1, onnotice: () => undefined })
        t.teardown(() => holder.end())
        const owner = createOwner()
        const first = await ask(owner, { message: 'One' })
        await end(first)
        await db.rows(sql`update chat_sessions set input = 'Go' where id = ${first.session_id}::uuid`)
        const asks: Asked[] = [
          { regenerate: first.message_id },
          { edit: first.user_message_id, message: 'Uno' },
          { start: first.session_id },
        ]
        const pending: Promise<unknown>[] = []
        await holder.begin(async (hold) => {
          await hold`select 1 from chat_sessions where id = ${first.session_id} for update`
          for (const [n, asked] of asks.entries()) {
            pending.push(ask(owner, asked, n).catch((error: unknown) => error))
            await untilWaiting(db, n + 1)
          }
        })
        const [winner, ...others] = (await Promise.all(pending)) as [RunFacts, ...Problem[]]
        t.equal(winner.status, 'running', 'who came first')
        const busy = { code: 'session_busy', members: { run_id: winner.id } }
        t.match(others, [busy, busy])
        t.match(await sessions.getSession(owner, first.session_id), { message_count: 3 })
        await end(winner)
        await db.rows(sql`create unique index chat_runs_one_running on chat_runs (session_id) where status = 'running'`)
      })
    }

    await t.test(
      'what waits is started in the order of its replies, and an old message does not go first',
      async (t) => {
        const owner = createOwner()
        const first = await ask(owner, { message: 'One' })
        const { session_id } = first
        const on_busy = 'queue'
        const waiting = [
          await ask(owner, { message: 'Two', session_id, on_busy }, 1),
          await ask(owner, { regenerate: first.message_id, on_busy }, 0),
          await ask(owner, { edit: first.user_message_id, message: 'Uno', on_busy }, 1),
          await ask(owner, { message: 'Three', session_id, on_busy }, 0),
        ]
        t.equal(waiting[1]?.user_message_id, first.user_message_id, 'twin: by that it would be the first')
        const urgent = await ask(owner, { regenerate: first.user_message_id, on_busy: 'interrupt' })
        t.same(
          new Set((await runs.findActiveBefore(urgent)).map(({ id }) => id)),
          new Set([first, ...waiting].map(({ id }) => id)),
        )
        t.same(await runs.findActiveBefore(first), [])
        await end(first)
        const started: string[] = []
        for (let n = 0; n <= waiting.length; n += 1) {
          const [run] = await promote(n % 2 === 0 ? db : second, randomUUID(), session_id)
          started.push(run!.id)
          t.equal((await end(run!)).nextMayWait, n < waiting.length)
        }
        t.same(
          started,
          [...waiting, urgent].map(({ id }) => id),
        )
        t.equal(await parentOf(waiting[2]!.user_message_id), null, 'a root stays one')
        t.equal(
          await parentOf(waiting[3]!.user_message_id),
          waiting[2]?.message_id,
          'a message follows the one before it',
        )
        t.equal(await parentOf(first.user_message_id), null)
      },
    )

    await t.test(
      'a root that is stopped in the queue stays one; twin: one that is taken for pending does not',
      async (t) => {
        for (const isTwin of [false, true]) {
          for (const leave of ['promoted', 'stopped'] as const) {
            const owner = createOwner()
            const first = await ask(owner, { message: 'One' })
            const root = await ask(owner, { edit: first.user_message_id, message: 'Uno', on_busy: 'queue' })
            if (isTwin) await db.rows(sql`update chat_runs set parent_pending = true where id = ${root.id}::uuid`)
            if (leave === 'stopped') await stopQueued(db, root)
            await end(first)
            if (leave === 'promoted') await promote(db, randomUUID(), first.session_id)
            t.equal(await parentOf(root.user_message_id), isTwin ? first.message_id : null, leave)
            if (leave === 'promoted') await end(root)
          }
        }
      },
    )

    await t.test('an edit of a message that still waits gets the place that this one will have', async (t) => {
      const owner = createOwner()
      const first = await ask(owner, { message: 'One' })
      const { session_id } = first
      const two = await ask(owner, { message: 'Two', session_id, on_busy: 'queue' })
      t.equal(await parentOf(two.user_message_id), null, 'it is not written down yet')
      const edited = await ask(owner, { edit: two.user_message_id, message: 'Dos', on_busy: 'queue' })
      t.equal(await parentOf(edited.user_message_id), first.message_id)
      await end(first, 'Reply to one')
      for (const expected of [two, edited]) {
        const [run] = await promote(db, randomUUID(), session_id)
        t.equal(run?.id, expected.id)
        await end(run!)
      }
      t.equal(await parentOf(two.user_message_id), first.message_id)
      t.same(await contents(edited), ['One', 'Reply to one', 'Dos'])
    })

    await t.test('nothing comes back of a session that is purged while it is asked', async (t) => {
      const owner = createOwner()
      const first = await ask(owner, { message: 'One' })
      await end(first)
      const { session } = await sessions.createSession(owner, { input: 'Go' })
      for (const asked of [
        { regenerate: first.message_id },
        { edit: first.user_message_id, message: 'Uno' },
        { start: session.id },
      ] as const) {
        const purging = createAccept({
          db: {
            ...db,
            // Between the look at what is meant and the statement that accepts.
            async rows<Row>(statement: Parameters<typeof db.rows>[0]) {
              const rows = await db.rows<Row>(statement)
              await db.rows(sql`delete from chat_sessions where owner = ${owner.key}`)
              return rows
            },
          },
          runs,
          instanceId: randomUUID(),
          runsPerOwnerMax: 0,
        })
        await t.rejects(purging.accept(owner, asked, plansFor), { code: 'not_found' })
      }
      const [row] = await db.rows<{ count: number }>(sql`
        select (
          (select count(*) from chat_sessions where owner = ${owner.key})
          + (select count(*) from chat_messages where owner = ${owner.key})
          + (select count(*) from chat_runs where owner = ${owner.key})
        )::int as count`)
      t.equal(row?.count, 0)
    })

    await t.test('a reply that answers nobody cannot be asked for again', async (t) => {
      const owner = createOwner()
      const first = await ask(owner, { message: 'One' })
      await end(first)
      await db.rows(sql`update chat_messages set parent_id = null where id = ${first.message_id}::uuid`)
      await t.rejects(ask(owner, { regenerate: first.message_id }), { code: 'invalid_request' })
      await db.rows(sql`update chat_messages set role = 'system' where id = ${first.user_message_id}::uuid`)
      await t.rejects(ask(owner, { regenerate: first.user_message_id }), { code: 'invalid_request' })
      await t.rejects(ask(owner, { edit: first.user_message_id, message: 'x' }), { code: 'invalid_request' })
    })

    await t.test('what a model is told of a session has a bound', async (t) => {
      const owner = createOwner()
      const { session } = await sessions.createSession(owner, { context: { a: 'ä' } })
      const run = await ask(owner, { message: 'Hi', session_id: session.id })
      t.match((await readHistory(db, run.user_message_id, 1)).messages, [
        { role: 'system', content: 'Context of this conversation, as JSON:\n{"a":"ä"}' },
        { role: 'user', content: 'Hi' },
      ])
      for (const context of ['null', `{"a":"${'x'.repeat(64 * 1024)}"}`]) {
        await db.rows(sql`update chat_sessions set context = ${context}::jsonb where id = ${session.id}::uuid`)
        const { messages } = await readHistory(db, run.user_message_id, 10)
        t.same(messages, [{ role: 'user', content: 'Hi', id: run.user_message_id }])
      }
    })
  })
}
