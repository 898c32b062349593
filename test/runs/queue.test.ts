/**
 * The queue of a session: whatever happens at the same instant, and wherever a process dies, messages are answered one
 * at a time, in the order in which they are stored, and none is forgotten.
 */
import { randomUUID } from 'node:crypto'
import postgres from 'postgres'
import { type Test, test } from 'tap'
import type { Db } from '../../src/db/db.ts'
import { type SQL, sql } from '../../src/db/drizzle.ts'
import { openPostgres } from '../../src/db/postgres.ts'
import { Problem } from '../../src/errors.ts'
import { createFrames } from '../../src/log/frames.ts'
import { createMemoryLog } from '../../src/log/memory.ts'
import { createAccept } from '../../src/runs/accept.ts'
import { createChat } from '../../src/runs/chat.ts'
import { commitRun } from '../../src/runs/commit.ts'
import type { ChatBody, RunFacts } from '../../src/runs/model.ts'
import { createOwnedRuns } from '../../src/runs/owned.ts'
import { promote, stopQueued } from '../../src/runs/queue.ts'
import { createRunStore } from '../../src/runs/store.ts'
import { readHistory } from '../../src/sessions/context.ts'
import { databases } from '../support/database.ts'
import {
  createOwner,
  endingOf,
  openLedger,
  openStore,
  plansFor,
  silent,
  textPart,
  untilWaiting,
} from '../support/runs.ts'

const messagesAtOnce = 20
const races = 20

for (const kind of databases()) {
  test(`on ${kind}`, async (t) => {
    const { db, url, runs, sessions, messages } = await openStore(t, kind)
    // Two processes, each with its own connections; the embedded database has one.
    const second = url === undefined ? db : openPostgres({ url, unpooledUrl: url, poolSize: 5 })
    if (second !== db) t.teardown(() => second.close())

    /** A process that can do all of it, step by step. */
    function createProcess(on: Db = db, runsPerOwnerMax = 0) {
      const instanceId = randomUUID()
      const { accept } = createAccept({ db: on, runs: createRunStore(on), instanceId, runsPerOwnerMax })
      return {
        instanceId,
        accept: async (owner: ReturnType<typeof createOwner>, body: Partial<ChatBody>) =>
          (await accept(owner, { message: 'Hello', on_busy: 'queue', ...body }, plansFor)).run,
        promote: (sessionId?: string) => promote(on, instanceId, sessionId),
        end: (run: RunFacts, text = 'Reply') => commitRun(on, run.id, run.generation, endingOf([textPart(text)])),
      }
    }
    const [one, two] = [createProcess(), createProcess(second)]
    const statusOf = async ({ id }: RunFacts) => (await runs.reread(id))?.status
    /** Ends whatever the session has, so that it is in no other test's way. */
    async function finish(owner: ReturnType<typeof createOwner>, sessionId: string): Promise<void> {
      for (let active = await runs.findActive(owner, sessionId); active !== undefined; ) {
        const ending = endingOf([], { status: 'stopped' })
        await commitRun(db, active.id, active.generation, ending, active.status as 'queued' | 'running')
        active = await runs.findActive(owner, sessionId)
      }
    }
    const seqOf = async ({ user_message_id }: RunFacts) => (await messages.readReply(user_message_id))?.seq as number

    await t.test('a message to an idle session is not queued', async (t) => {
      const owner = createOwner()
      const first = await one.accept(owner, {})
      t.match(first, { status: 'running', instance_id: one.instanceId })
      await one.end(first)
      const next = await two.accept(owner, { session_id: first.session_id })
      t.match(next, { status: 'running', instance_id: two.instanceId })
      t.match(await runs.reread(next.id), { status: 'running', started_at: String })
    })

    await t.test(
      'P1 a queued message is stored whole, belongs to no process, and changes no running reply',
      async (t) => {
        const owner = createOwner()
        const running = await one.accept(owner, { message: 'First' })
        const session_id = running.session_id
        const queued = await two.accept(owner, { session_id, message: 'Second', client_message_id: 'k' })
        t.match(queued, { status: 'queued', instance_id: null, generation: 1 })
        t.match(await runs.reread(queued.id), { status: 'queued', instance_id: null, started_at: null })
        t.match((await messages.listMessages(owner, session_id, {})).data, [
          { seq: 1, content: 'First' },
          { seq: 2, status: 'streaming' },
          { seq: 3, content: 'Second', parent_id: null, client_message_id: 'k', status: 'completed' },
          { seq: 4, status: 'streaming', content: '', parent_id: queued.user_message_id },
        ])
        t.match(await sessions.getSession(owner, session_id), { status: 'running', active_run_id: running.id })
        const again = await one.accept(owner, { session_id, message: 'Second', client_message_id: 'k' })
        t.equal(again.id, queued.id, 'the same key is the same run')
        t.equal((await sessions.getSession(owner, session_id)).message_count, 4)
        t.same(await one.promote(session_id), [], 'nothing starts while a reply runs')
        await finish(owner, session_id)
      },
    )

    await t.test('without queue a busy session refuses, and says what it is busy with', async (t) => {
      const owner = createOwner()
      const running = await one.accept(owner, {})
      const session_id = running.session_id
      const queued = await one.accept(owner, { session_id })
      const later = await one.accept(owner, { session_id })
      const refusal = (runId: string) => ({
        code: 'session_busy',
        members: { run_id: runId, stream_url: `/api/v1/runs/${runId}/events` },
      })
      await t.rejects(two.accept(owner, { session_id, on_busy: 'reject' }), refusal(running.id))
      await one.end(running)
      await t.rejects(two.accept(owner, { session_id, on_busy: 'reject' }), refusal(queued.id), 'nobody may overtake')
      t.equal((await two.accept(owner, { session_id })).status, 'queued')
      t.match(await runs.findActive(owner, session_id), { id: queued.id })
      t.equal(await statusOf(later), 'queued')
      await t.rejects(two.accept(createOwner(), { session_id }), { code: 'not_found' }, 'P9 busy or not')
      await finish(owner, session_id)
    })

    await t.test('what is queued counts as runs of its owner, so a queue has an end', async (t) => {
      const limited = createProcess(db, 3)
      const owner = createOwner()
      const { session_id } = await limited.accept(owner, {})
      for (let n = 0; n < 2; n += 1) await limited.accept(owner, { session_id })
      for (const on_busy of ['queue', 'interrupt'] as const) {
        await t.rejects(limited.accept(owner, { session_id, on_busy }), { code: 'rate_limited', retryAfterSeconds: 5 })
      }
      const asked = await runs.findActive(owner, session_id)
      t.equal(asked?.stop_requested_at, null, 'a refused interrupt has stopped nothing')
      await finish(owner, session_id)
    })

    await t.test('the promotion starts the oldest, after the reply before it', async (t) => {
      const owner = createOwner()
      const first = await one.accept(owner, { message: 'One' })
      const session_id = first.session_id
      const [next, aside] = [
        await one.accept(owner, { session_id, message: 'Two' }),
        await two.accept(owner, { session_id, message: 'Three', parent_id: first.message_id }),
      ]
      t.equal((await one.end(first, 'Reply to one')).nextMayWait, true)
      t.match(await sessions.getSession(owner, session_id), { active_run_id: null })
      const [started, ...others] = await two.promote(session_id)
      t.same(others, [])
      t.match(started, { ...next, status: 'running', instance_id: two.instanceId, stop_requested: false })
      t.match(await runs.reread(next.id), { status: 'running', instance_id: two.instanceId, started_at: String })
      t.match(await sessions.getSession(owner, session_id), { status: 'running', active_run_id: next.id })
      t.same((await readHistory(db, next.user_message_id, 10)).messages, [
        { role: 'user', content: 'One', id: first.user_message_id },
        { role: 'assistant', content: 'Reply to one', id: first.message_id },
        { role: 'user', content: 'Two', id: next.user_message_id },
      ])
      t.same(await one.promote(session_id), [])
      await two.end(started as RunFacts, 'Reply to two')
      await one.promote(session_id)
      t.same(
        (await readHistory(db, aside.user_message_id, 10)).messages.map(({ content }) => content),
        ['One', 'Reply to one', 'Three'],
        'a parent that the client named stays',
      )
      t.equal((await one.end(aside)).nextMayWait, false)
      t.match(await sessions.getSession(owner, session_id), { status: 'completed', active_run_id: null })
    })

    await t.test(
      `P5 ${messagesAtOnce} messages at the same instant through two processes are answered one at a time, in their order`,
      async (t) => {
        // Without the index, so that it is not what keeps two from running.
        await db.rows(sql`drop index chat_runs_one_running`)
        const owner = createOwner()
        const session_id = randomUUID()
        const started: RunFacts[] = []
        const inFlight = new Set<string>()
        let atOnceMax = 0

        async function make(by: ReturnType<typeof createProcess>, run: RunFacts): Promise<void> {
          started.push(run)
          inFlight.add(run.id)
          atOnceMax = Math.max(atOnceMax, inFlight.size)
          await seqOf(run)
          inFlight.delete(run.id)
          const { outcome, nextMayWait } = await by.end(run, `Reply ${started.length}`)
          t.equal(outcome, 'committed')
          if (nextMayWait) await makeAll(by, await by.promote(session_id))
        }
        const makeAll = (by: ReturnType<typeof createProcess>, facts: readonly RunFacts[]) =>
          Promise.all(facts.map((run) => make(by, run)))

        const accepted: RunFacts[] = []
        await Promise.all(
          Array.from({ length: messagesAtOnce }, async (_, n) => {
            const by = n % 2 === 0 ? one : two
            const run = await by.accept(owner, { session_id, message: `Message ${n}` })
            accepted.push(run)
            if (run.status === 'running') await make(by, run)
            else await makeAll(by, await by.promote(session_id))
          }),
        )
        t.equal(started.length, messagesAtOnce, 'each has started, without anybody looking later')
        t.equal(new Set(started.map(({ id }) => id)).size, messagesAtOnce, 'once')
        t.equal(atOnceMax, 1, 'never two')
        const seqs = await Promise.all(started.map(seqOf))
        t.same(
          seqs,
          seqs.map((_, index) => 2 * index + 1),
        )
        t.ok(accepted.filter(({ status }) => status === 'running').length >= 1)
        const { data } = await messages.listMessages(owner, session_id, { limit: 100 })
        t.same(
          data.map(({ seq, parent_id }) => [seq, parent_id]),
          data.map((_, index) => [index + 1, data[index - 1]?.id ?? null]),
          'each follows the one before it',
        )
        t.same(
          data.filter(({ role }) => role === 'assistant').map(({ content }) => content),
          started.map((_, index) => `Reply ${index + 1}`),
        )
        const [overlapping] = await db.rows<{ count: number }>(sql`
          select count(*)::int as count from chat_runs a join chat_runs b on a.session_id = b.session_id and a.id < b.id
          where a.session_id = ${session_id}::uuid and a.started_at < b.ended_at and b.started_at < a.ended_at`)
        t.equal(overlapping?.count, 0)
        t.match(await sessions.getSession(owner, session_id), { status: 'completed', active_run_id: null })
        await db.rows(sql`create unique index chat_runs_one_running on chat_runs (session_id) where status = 'running'`)
      },
    )

    await t.test('what was queued by a process that died then is found by another, one of each session', async (t) => {
      const dead = createProcess()
      const waiting: RunFacts[] = []
      for (let n = 0; n < 3; n += 1) {
        const owner = createOwner()
        const first = await dead.accept(owner, {})
        waiting.push(await dead.accept(owner, { session_id: first.session_id }))
        await dead.accept(owner, { session_id: first.session_id })
        await dead.end(first)
      }
      const busy = await one.accept(createOwner(), {})
      const found = await two.promote()
      t.same(
        new Set(found.map(({ id }) => id)),
        new Set(waiting.map(({ id }) => id)),
        'the oldest of each session that answers nothing',
      )
      t.same(await one.promote(), [])
      t.equal(await statusOf(busy), 'running')
      for (const run of found) await two.end(run)
      const rest = await one.promote()
      t.equal(rest.length, 3)
      for (const run of rest) await one.end(run)
    })

    await t.test('of processes that promote at the same instant one gets the run', async (t) => {
      for (let round = 0; round < races; round += 1) {
        const owner = createOwner()
        const first = await one.accept(owner, {})
        const { session_id } = first
        const next = await one.accept(owner, { session_id })
        await two.accept(owner, { session_id })
        await one.end(first)
        const all = [one.promote(session_id), two.promote(session_id), one.promote(), two.promote()]
        const promoted = (await Promise.all(all)).flat()
        t.same(
          promoted.map(({ id }) => id),
          [next.id],
        )
        await one.end(next)
        for (const run of await one.promote(session_id)) await one.end(run)
      }
    })

    await t.test('a run that is stopped in the queue ends there, and the running one goes on', async (t) => {
      const owner = createOwner()
      const running = await one.accept(owner, {})
      const session_id = running.session_id
      const [out, stays] = [await one.accept(owner, { session_id }), await one.accept(owner, { session_id })]
      t.same(await stopQueued(second, out), { outcome: 'committed', nextMayWait: true })
      t.match(await runs.reread(out.id), { status: 'stopped', last_seq: 2, started_at: null, error: null })
      t.match(await messages.readReply(out.message_id), { status: 'stopped', content: '', parts: [] })
      t.match(await sessions.getSession(owner, session_id), { status: 'running', active_run_id: running.id })
      t.equal(
        (await messages.readReply(out.user_message_id))?.parent_id,
        running.message_id,
        'later messages go back through it',
      )
      t.same(await stopQueued(db, out), { outcome: 'committed', nextMayWait: true }, 'again, it is the same')
      t.match(await stopQueued(db, running), { outcome: 'fenced' }, 'a run that has words is not ended without them')
      t.equal(await statusOf(running), 'running')
      await one.end(running)
      t.match(await sessions.getSession(owner, session_id), { status: 'completed', active_run_id: null })
      const [next] = await one.promote(session_id)
      t.equal(next?.id, stays.id)
      await one.end(stays)
    })

    await t.test(
      'a stop at the same instant as the promotion finds the run queued or running, never both',
      async (t) => {
        const seen = { stopped: 0, started: 0 }
        for (let round = 0; round < races; round += 1) {
          const owner = createOwner()
          const first = await one.accept(owner, {})
          const { session_id } = first
          const [next, last] = [await one.accept(owner, { session_id }), await one.accept(owner, { session_id })]
          await one.end(first)
          const stop = async () => {
            const commit = await stopQueued(second, next)
            return { commit, after: commit.nextMayWait ? await two.promote(session_id) : [] }
          }
          const [promoted, { commit, after }] = await Promise.all([one.promote(session_id), stop()])
          const begun = [...promoted, ...after].map(({ id }) => id)
          const isStopped = commit.outcome === 'committed'
          t.equal(await statusOf(next), isStopped ? 'stopped' : 'running')
          t.same(begun, [isStopped ? last.id : next.id], 'one has begun, once')
          seen[isStopped ? 'stopped' : 'started'] += 1
          await finish(owner, session_id)
        }
        t.comment(`${kind}: stopped in the queue ${seen.stopped}, too late ${seen.started}`)
      },
    )

    await t.test('interrupt stores the message and the wish that those before it stop, in one go', async (t) => {
      const owner = createOwner()
      const running = await one.accept(owner, {})
      const session_id = running.session_id
      const waiting = await one.accept(owner, { session_id })
      const urgent = await two.accept(owner, { session_id, on_busy: 'interrupt' })
      const later = await two.accept(owner, { session_id })
      t.equal(urgent.status, 'queued')
      for (const run of [running, waiting]) t.not((await runs.reread(run.id))?.stop_requested_at, null)
      for (const run of [urgent, later]) t.equal((await runs.reread(run.id))?.stop_requested_at, null)
      t.same(
        new Set((await runs.findActiveBefore(urgent)).map(({ id }) => id)),
        new Set([running.id, waiting.id]),
        'these are to be told',
      )
      // Nobody tells them, because the process has died: the one that makes the reply sees the wish when it renews its
      // lease, and the one that waits is ended by whoever starts it.
      await one.end(running)
      const [told] = await one.promote(session_id)
      t.match(told, { id: waiting.id, stop_requested: true })
      await one.end(waiting)
      t.match(await one.promote(session_id), [{ id: urgent.id, stop_requested: false }])
      await one.end(urgent)
      await one.promote(session_id)
      await one.end(later)
    })

    await t.test('interrupt of an idle session is a message like any other', async (t) => {
      t.equal((await one.accept(createOwner(), { on_busy: 'interrupt' })).status, 'running')
    })

    await t.test('P5 a repeat that finds a run just promoted does not start it a second time', async (t) => {
      const owner = createOwner()
      const body = { message: 'Once', client_message_id: 'once', on_busy: 'queue' as const }
      const instanceId = randomUUID()
      const asked: string[] = []
      // The database's answer to the promotion is held up; the promotion itself has happened.
      const promoted = Promise.withResolvers<void>()
      const gate = Promise.withResolvers<void>()
      const slow: Db = {
        ...db,
        async rows<Row>(statement: SQL) {
          const rows = await db.rows<Row>(statement)
          promoted.resolve()
          await gate.promise
          return rows
        },
      }
      const log = createMemoryLog()
      const owned = createOwnedRuns({
        db: slow,
        log,
        frames: createFrames(log, 1),
        instanceId,
        checkpointMs: 60_000,
        logger: silent,
        createLedger: openLedger,
        async makeReply({ runId }, tell) {
          asked.push(runId)
          tell({ type: 'text', text: 'Reply' })
        },
      })
      const chat = createChat({
        accept: createAccept({ db, runs, instanceId, runsPerOwnerMax: 0 }),
        runs,
        owned,
        log,
        stop: async (run) => run,
        instanceId,
        holdLease: async () => undefined,
        plansFor: ({ text }) => plansFor(text),
      })
      const before = await one.accept(owner, {})
      const queued = await one.accept(owner, { ...body, session_id: before.session_id })
      await one.end(before)
      const promotion = owned.startNext(before.session_id)
      await promoted.promise
      const repeat = await chat(owner, body)
      t.equal(repeat.run.id, queued.id)
      t.ok(owned.has(queued.id), 'the repeat has started it')
      gate.resolve()
      await promotion
      await owned.ended(queued.id)
      t.same(asked, [queued.id], 'and nobody else')
      t.match(await runs.reread(queued.id), { status: 'completed' })
      await owned.drain(0, async () => undefined)
      await log.close()
    })

    if (url !== undefined)
      await t.test('when the session changes between a look and its lock', (t) => atTheLock(t, url))

    async function atTheLock(t: Test, url: string): Promise<void> {
      const holder = postgres(url, { max: 1, onnotice: () => undefined })
      t.teardown(() => holder.end())

      /** Begins each step when the one before it waits for the session's row, and then lets them all go on. */
      async function inLine<T extends readonly unknown[]>(
        session_id: string,
        ...steps: { readonly [K in keyof T]: () => Promise<T[K]> }
      ): Promise<T> {
        const pending: Promise<unknown>[] = []
        await holder.begin(async (hold) => {
          await hold`select 1 from chat_sessions where id = ${session_id} for update`
          for (const [index, step] of steps.entries()) {
            pending.push(step())
            await untilWaiting(db, index + 1)
          }
        })
        return (await Promise.all(pending)) as unknown as T
      }

      await t.test('a commit that could not see the queued message knows of it all the same', async (t) => {
        const owner = createOwner()
        const running = await one.accept(owner, {})
        const { session_id } = running
        const [queued, commit] = await inLine<[RunFacts, { nextMayWait: boolean }]>(
          session_id,
          () => one.accept(owner, { session_id }),
          () => two.end(running),
        )
        t.equal(queued.status, 'queued')
        t.equal(commit.nextMayWait, true)
        t.match(await two.promote(session_id), [{ id: queued.id }])
        await two.end(queued)
      })

      await t.test(
        'a message that is queued behind a reply that has just ended is started by who queued it',
        async (t) => {
          const owner = createOwner()
          const running = await one.accept(owner, {})
          const { session_id } = running
          const [commit, queued] = await inLine<[{ nextMayWait: boolean }, RunFacts]>(
            session_id,
            () => two.end(running),
            () => one.accept(owner, { session_id }),
          )
          t.equal(commit.nextMayWait, false, 'the commit was before it')
          t.equal(queued.status, 'queued')
          t.equal(await statusOf(queued), 'queued', 'twin: without a look after accepting it would wait for a clock')
          t.match(await one.promote(session_id), [{ id: queued.id }])
          await one.end(queued)
        },
      )

      await t.test('of two messages that both saw an idle session the second is queued, or refused', async (t) => {
        for (const on_busy of ['queue', 'reject'] as const) {
          const owner = createOwner()
          const before = await one.accept(owner, {})
          const { session_id } = before
          await one.end(before)
          await db.rows(sql`drop index chat_runs_one_running`)
          const [first, other] = await inLine<[RunFacts, RunFacts | Problem]>(
            session_id,
            () => one.accept(owner, { session_id }),
            () => two.accept(owner, { session_id, on_busy }).catch((error: Problem) => error),
          )
          t.equal(first.status, 'running')
          if (other instanceof Problem) t.match(other, { code: 'session_busy', members: { run_id: first.id } })
          else t.equal(other.status, 'queued')
          t.equal(other instanceof Problem, on_busy === 'reject')
          await one.end(first)
          for (const run of await one.promote(session_id)) await one.end(run)
          await db.rows(
            sql`create unique index chat_runs_one_running on chat_runs (session_id) where status = 'running'`,
          )
        }
      })

      await t.test('a message does not pass one that was queued after it had looked', async (t) => {
        const owner = createOwner()
        const before = await one.accept(owner, {})
        const { session_id } = before
        const queued = await one.accept(owner, { session_id })
        await one.end(before)
        /** As if it had been queued while the other waits for the row: it is out of sight when that one looks. */
        const hideAndQueue = async (raiseVersion: boolean) => {
          await db.rows(sql`update chat_runs set status = 'completed' where id = ${queued.id}::uuid`)
          let late: Promise<RunFacts> | undefined
          await holder.begin(async (hold) => {
            await hold`select 1 from chat_sessions where id = ${session_id} for update`
            late = two.accept(owner, { session_id })
            await untilWaiting(db, 1)
            await hold`update chat_runs set status = 'queued' where id = ${queued.id}`
            if (raiseVersion) await hold`update chat_sessions set version = version + 1 where id = ${session_id}`
          })
          return (await late) as RunFacts
        }
        t.equal((await hideAndQueue(true)).status, 'queued', 'it is behind it')
        await db.rows(sql`delete from chat_runs where session_id = ${session_id}::uuid and id <> ${queued.id}::uuid`)
        t.equal((await hideAndQueue(false)).status, 'running', 'twin: a change that raises no version is not noticed')
        await finish(owner, session_id)
      })

      await t.test('a promotion that looked before another one does nothing', async (t) => {
        const owner = createOwner()
        const before = await one.accept(owner, {})
        const { session_id } = before
        const [next, last] = [await one.accept(owner, { session_id }), await one.accept(owner, { session_id })]
        await one.end(before)
        const [first, other] = await inLine<[RunFacts[], RunFacts[]]>(
          session_id,
          () => one.promote(session_id),
          () => two.promote(session_id),
        )
        t.match(first, [{ id: next.id }])
        t.same(other, [])
        t.equal(await statusOf(last), 'queued')
        await finish(owner, session_id)
      })

      await t.test('a look at all sessions waits for none', async (t) => {
        const [held, free] = [createOwner(), createOwner()]
        const [a, b] = [await one.accept(held, {}), await one.accept(free, {})]
        const waiting = [
          await one.accept(held, { session_id: a.session_id }),
          await one.accept(free, { session_id: b.session_id }),
        ]
        await one.end(a)
        await one.end(b)
        await holder.begin(async (hold) => {
          await hold`select 1 from chat_sessions where id = ${a.session_id} for update`
          const found = (await two.promote()).map(({ id }) => id)
          t.ok(found.includes(waiting[1]?.id as string))
          t.notOk(found.includes(waiting[0]?.id as string))
        })
        t.match(await two.promote(), [{ id: waiting[0]?.id }])
      })

      await t.test(
        'messages, ends and promotions at the same time never wait for each other in a circle',
        async (t) => {
          const owner = createOwner()
          let running = await one.accept(owner, {})
          const { session_id } = running
          for (let round = 0; round < races; round += 1) {
            const results = await Promise.all([
              one.accept(owner, { session_id }),
              two.end(running),
              two.accept(owner, { session_id, on_busy: 'reject' }).catch((error: Problem) => error.code),
              one.promote(),
              one.accept(owner, { session_id, on_busy: 'interrupt' }),
              two.promote(session_id),
            ])
            t.equal(results[1].outcome, 'committed')
            await finish(owner, session_id)
            running = await one.accept(owner, { session_id })
            t.equal(running.status, 'running')
          }
          const [row] = await db.rows<{ deadlocks: number }>(sql`
          select deadlocks::int from pg_stat_database where datname = current_database()`)
          t.equal(row?.deadlocks, 0)
        },
      )
    }
  })
}
