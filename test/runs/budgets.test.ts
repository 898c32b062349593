/**
 * Budgets: what may be spent is held back by the very statement that accepts, so however many ask at the same time, no more
 * begin than there is money for; and whatever becomes of a run, what it held is given back once.
 */
import { randomUUID } from 'node:crypto'
import postgres from 'postgres'
import { test } from 'tap'
import type { Db } from '../../src/db/db.ts'
import { sql } from '../../src/db/drizzle.ts'
import { openPostgres } from '../../src/db/postgres.ts'
import { Problem } from '../../src/errors.ts'
import type { Owner } from '../../src/http/identity.ts'
import { createAccept } from '../../src/runs/accept.ts'
import { type BudgetLimits, createBudgets, type TokenPricing } from '../../src/runs/budgets.ts'
import { writeCheckpoints } from '../../src/runs/checkpoint.ts'
import { commitRun } from '../../src/runs/commit.ts'
import { createEstimator } from '../../src/runs/estimate.ts'
import type { ChatBody, RunFacts } from '../../src/runs/model.ts'
import { promote, stopQueued } from '../../src/runs/queue.ts'
import { createRunStore } from '../../src/runs/store.ts'
import { outputTokensDefault } from '../../src/runs/window.ts'
import { createSessionChanges } from '../../src/sessions/changes.ts'
import { claimSessions } from '../../src/sessions/claim.ts'
import { createRemoval } from '../../src/sessions/removal.ts'
import { createSessionStore } from '../../src/sessions/store.ts'
import type { PlansByMode, Profile, RunPlan } from '../../src/upstream/plan.ts'
import { databases } from '../support/database.ts'
import { createRandom } from '../support/random.ts'
import {
  createOwner,
  createReaperOf,
  endingOf,
  openStore,
  plansFor,
  pricing,
  promptTokens,
  silent,
  textPart,
  untilWaiting,
} from '../support/runs.ts'

/** What 'Hello' holds back with {@link profile}: 10 tokens in at 3 USD a million, 100 out at 15. */
const tokensEach = 110
const microsEach = 10 * 3 + 100 * 15
const usd = (micros: number) => (micros / 1_000_000).toString()
const profile: Profile = { contextTokens: 1000, maxOutputTokens: 100, tools: [] }

interface DayRow {
  readonly spent: string
  readonly reserved: string
  readonly spent_tokens: number
  readonly reserved_tokens: number
}

interface Options {
  readonly profile?: Profile
  readonly pricing?: TokenPricing
  readonly warnings?: unknown[]
}

function createUser(): Owner {
  const userId = randomUUID()
  return { kind: 'user', key: `user:${userId}`, userId, visitorHash: null }
}

const settled = <T>(all: readonly PromiseSettledResult<T>[]) => ({
  accepted: all.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : [])),
  refused: all.flatMap((one) => (one.status === 'rejected' ? [one.reason as unknown] : [])),
})

for (const kind of databases()) {
  test(`on ${kind}`, async (t) => {
    const { db: opened, url, runs } = await openStore(t, kind)
    // Where requests are never refused for want of a connection: on a slow machine fifty at once could be.
    const db = opened.inLane('runs')
    // The embedded database does one thing at a time: there, fewer show as much.
    const [requests, rounds] = url === undefined ? [12, 8] : [50, 25]
    const other = url === undefined ? opened : openPostgres({ url, unpooledUrl: url, poolSize: 5 })
    if (other !== opened) t.teardown(() => other.close())
    const second = other.inLane('runs')

    const budgetsOf = (limits: BudgetLimits, { warnings = [], ...more }: Options = {}, on: Db = db) =>
      createBudgets({
        db: on,
        limits,
        pricing,
        estimator: createEstimator(),
        ...more,
        profileOf: () => more.profile ?? profile,
        logger: { ...silent, warn: (...args: unknown[]) => warnings.push(args) },
      })
    const acceptWith = (limits: BudgetLimits, options: Options = {}, on: Db = db) => {
      const budgets = budgetsOf(limits, options, on)
      const { accept } = createAccept({
        db: on,
        runs: createRunStore(on),
        instanceId: randomUUID(),
        runsPerOwnerMax: 0,
        budgets,
      })
      return async (owner: Owner, body: Partial<ChatBody> = {}, plans: PlansByMode = plansFor('')) =>
        (await accept(owner, { message: 'Hello', ...body }, () => plans)).run
    }
    async function dayOf(scope: string, day = 0): Promise<DayRow | undefined> {
      const [row] = await db.rows<DayRow>(sql`
        select
          trim_scale(spent_cost)::text as spent, trim_scale(reserved_cost)::text as reserved,
          spent_tokens::int as spent_tokens, reserved_tokens::int as reserved_tokens
        from budget_days where scope = ${scope} and day = (now() at time zone 'UTC')::date + ${day}::int`)
      return row
    }
    async function heldBy(run: RunFacts): Promise<Record<string, unknown> | null> {
      const [row] = await db.rows<{ reservation: Record<string, unknown> | null }>(sql`
        select reservation from chat_runs where id = ${run.id}::uuid`)
      return row?.reservation ?? null
    }
    const count = async (owner: Owner) =>
      (await db.rows(sql`select 1 from chat_runs where owner = ${owner.key}`)).length
    /** The budget of all is every test's: what runs of the one before still hold is no concern of the next. */
    async function forgetAll(): Promise<void> {
      await db.rows(sql`
        update chat_runs set reservation = null, status = 'stopped', ended_at = now() where status in ('queued', 'running')`)
      await db.rows(sql`delete from budget_days`)
    }
    const removalOf = (on: Db, stopRuns: () => Promise<void> = async () => undefined) =>
      createRemoval({
        db: on,
        changes: createSessionChanges(),
        sessions: createSessionStore(on),
        stopRuns,
        eraseLogs: async () => undefined,
        logger: silent,
      })
    const commit = (run: RunFacts, micros: number | undefined, more: Parameters<typeof endingOf>[1] = {}) =>
      commitRun(
        db,
        run.id,
        run.generation,
        endingOf([textPart('Reply')], { costUsd: micros === undefined ? undefined : usd(micros), ...more }),
      )

    await t.test('without a budget nothing is held back and nothing is written', async (t) => {
      const visitor = createOwner()
      for (const limits of [{}, { userDayUsd: '0', userDayTokens: 0 }]) {
        const run = await acceptWith(limits)(visitor)
        t.equal(await heldBy(run), null)
        t.equal(run.request?.max_output_tokens, undefined)
        await commit(run, 5)
      }
      t.same(await db.rows(sql`select 1 from budget_days`), [])
    })

    await t.test('a reply that may begin holds back what it may cost, and gives back what it did not', async (t) => {
      const user = createUser()
      const accept = acceptWith({ userDayUsd: '1', userDayTokens: 1_000_000, dayUsd: '10' })
      const run = await accept(user)
      t.match(await heldBy(run), {
        scopes: [user.key, 'all'],
        cost: usd(microsEach),
        tokens: tokensEach,
        day: /^\d{4}-\d\d-\d\d$/,
      })
      t.equal(run.request?.max_output_tokens, 100)
      const held = { spent: '0', reserved: usd(microsEach), spent_tokens: 0, reserved_tokens: tokensEach }
      t.same([await dayOf(user.key), await dayOf('all')], [held, held])
      await commit(run, 45)
      await commit(run, 45)
      const after = { spent: usd(45), reserved: '0', spent_tokens: 7, reserved_tokens: 0 }
      t.same([await dayOf(user.key), await dayOf('all')], [after, after], 'once, however often it is committed')
      t.equal(await heldBy(run), null)
      await forgetAll()
    })

    await t.test(
      'what is held back grows with the session, up to the context, and with the dearest model',
      async (t) => {
        const accept = acceptWith({ visitorDayUsd: '100' })
        const visitor = createOwner()
        const first = await accept(visitor, { message: 'x'.repeat(400) })
        t.match(await heldBy(first), { tokens: 108 + 100 })
        await commit(first, 0)
        const second = await accept(visitor, { session_id: first.session_id })
        t.match(await heldBy(second), { tokens: tokensEach + Math.floor(405 / 4) }, 'the messages before it')
        await commit(second, 0)
        const long = await accept(visitor, { message: 'x'.repeat(8000), session_id: first.session_id })
        t.match(await heldBy(long), { tokens: 2008 + 100 }, 'a message is sent whole, however little else fits')
        await commit(long, 0)
        const last = await accept(visitor, { session_id: first.session_id })
        t.match(await heldBy(last), { tokens: 1000 + 100 }, 'no more than the context')
        const tools = [{ name: 'search', parameters: { type: 'object', title: 'x'.repeat(400) } }]
        const tooled = await accept(visitor, { tools })
        const units = 3 * (5 + JSON.stringify(tools).length)
        t.match(await heldBy(tooled), { tokens: 8 + Math.ceil(units / 12) + 100 }, 'tools are told as well')

        const plan: RunPlan = {
          candidates: [
            { provider: 'one', model: 'cheap' },
            { provider: 'two', model: 'dear' },
          ],
          profile: 'quality',
        }
        const asked: number[] = []
        const perToken: TokenPricing['perToken'] = (choice, at, inputTokens) => {
          asked.push(inputTokens)
          return choice.model === 'dear'
            ? pricing.perToken(choice, at, inputTokens)
            : { input: '0.000001', output: '0' }
        }
        const unlimited = { contextTokens: 1000, tools: [], systemPrompt: 'four'.repeat(50) }
        const plans = {
          ...plansFor(''),
          balanced: { plan, later: { from: 2, plan: { ...plan, profile: 'fast' } as const } },
        }
        const dear = acceptWith({ visitorDayUsd: '100' }, { profile: unlimited, pricing: { perToken } })
        const run = await dear(visitor, {}, plans)
        t.match(await heldBy(run), { cost: usd(60 * 3 + outputTokensDefault * 15), tokens: 60 + outputTokensDefault })
        t.match(run.request, { profile: 'quality', max_output_tokens: outputTokensDefault })
        t.same([...new Set(asked)], [1000], 'at the price of the longest prompt that there can be')
        await commit(run, 0)
        const later = await dear(visitor, { session_id: run.session_id }, plans)
        t.match(later.request, { profile: 'fast', max_output_tokens: outputTokensDefault })
        t.match(await heldBy(later), { tokens: 62 + outputTokensDefault })
      },
    )

    await t.test(`${requests} messages at once over a budget for ten: exactly ten are accepted`, async (t) => {
      const [user, visitor] = [createUser(), createOwner()]
      const limits = { userDayUsd: usd(10 * microsEach), visitorDayUsd: '1', visitorDayTokens: 10 * tokensEach }
      const [here, there] = [acceptWith(limits), acceptWith(limits, {}, second)]
      for (const owner of [user, visitor]) {
        const all = await Promise.allSettled(
          Array.from({ length: requests }, (_, index) => (index % 2 === 0 ? here : there)(owner)),
        )
        const { accepted, refused } = settled(all)
        t.equal(accepted.length, 10)
        t.ok(refused.every((error) => error instanceof Problem && error.code === 'budget_exceeded'))
        t.equal(await count(owner), 10, 'those refused left nothing')
        t.match(await dayOf(owner.key), { reserved: usd(10 * microsEach), reserved_tokens: 10 * tokensEach })
        await commit(accepted[0] as RunFacts, 0, { usage: undefined })
        await here(owner)
        await t.rejects(here(owner), { code: 'budget_exceeded' }, 'what is given back can be spent, once')
      }
    })

    await t.test(`a twin: without the check all ${requests} are`, async (t) => {
      const user = createUser()
      await db.rows(sql`alter table budget_days drop constraint budget_days_within`)
      const accept = acceptWith({ userDayUsd: usd(10 * microsEach) })
      const all = await Promise.allSettled(Array.from({ length: requests }, () => accept(user)))
      t.equal(settled(all).accepted.length, requests)
      await db.rows(sql`update budget_days set within = true`)
      await db.rows(sql`alter table budget_days add constraint budget_days_within check (within)`)
    })

    await t.test('the budget of all holds for all, and tells nobody what others spend', async (t) => {
      await forgetAll()
      const accept = acceptWith({ dayUsd: usd(10 * microsEach), userDayUsd: '1' })
      const owners = Array.from({ length: requests }, (_, index) => (index % 2 === 0 ? createUser() : createOwner()))
      const { accepted, refused } = settled(await Promise.allSettled(owners.map((owner) => accept(owner))))
      t.equal(accepted.length, 10)
      const [error] = refused as Problem[]
      t.match(error, { code: 'budget_exceeded', status: 402, retryable: false })
      t.match(
        error?.message,
        /the budget of all users together for the day, which ends at \d{4}-.*T00:00:00\.000000Z\.$/,
      )
      t.notMatch(error?.message, /153|1\.0|\$/, 'no figures')
      const untilMidnight = 86_400 - (Math.floor(Date.now() / 1000) % 86_400)
      t.ok(Math.abs((error?.retryAfterSeconds ?? 0) - untilMidnight) <= 60, String(error?.retryAfterSeconds))
      t.match(await dayOf('all'), { reserved: usd(10 * microsEach) })
      for (const run of accepted) await commit(run, microsEach)
      t.match(await dayOf('all'), { spent: usd(10 * microsEach), reserved: '0' })
      await t.rejects(accept(createUser()), { code: 'budget_exceeded' })
      await forgetAll()
    })

    await t.test('the refusal says which budget it was', async (t) => {
      const user = createUser()
      const limits = { userDayUsd: '1', userDayTokens: tokensEach, dayUsd: '1' }
      const accept = acceptWith(limits)
      await accept(user)
      await t.rejects(accept(user), { message: /what is left of your tokens for the day/ })
      await t.rejects(acceptWith({ ...limits, userDayUsd: usd(microsEach) })(user), { message: /your (budget|tokens)/ })
      await t.rejects(acceptWith({ userDayUsd: '0' })(createUser()), { message: /left of your budget for the day/ })
      await forgetAll()
    })

    await t.test('the same message again holds nothing back again, also with the budget used up', async (t) => {
      const user = createUser()
      const accept = acceptWith({ userDayUsd: usd(microsEach) })
      const body = { client_message_id: 'key' }
      const all = await Promise.all(Array.from({ length: 10 }, () => accept(user, body)))
      t.equal(new Set(all.map(({ id }) => id)).size, 1)
      t.match(await dayOf(user.key), { reserved: usd(microsEach) })
      t.equal((await accept(user, body)).id, all[0]?.id)

      const losing: Db = {
        ...db,
        async rows(statement) {
          await db.rows(statement)
          throw new Problem('db_unavailable')
        },
      }
      const unlucky = createUser()
      const limits = { userDayUsd: usd(microsEach) }
      await t.rejects(acceptWith(limits, {}, losing)(unlucky, body), { code: 'db_unavailable' })
      t.ok(await acceptWith(limits)(unlucky, body))
      t.match(await dayOf(unlucky.key), { reserved: usd(microsEach) }, 'nor when the first answer was lost')
    })

    await t.test('a busy session and a full queue hold nothing back', async (t) => {
      const user = createUser()
      const accept = acceptWith({ userDayUsd: '1' })
      const run = await accept(user)
      await t.rejects(accept(user, { session_id: run.session_id }), { code: 'session_busy' })
      await t.rejects(accept(createUser(), { session_id: run.session_id }), { code: 'not_found' })
      t.match(await dayOf(user.key), { reserved: usd(microsEach) })
      const queued = await accept(user, { session_id: run.session_id, on_busy: 'queue' })
      t.match(await heldBy(queued), { scopes: [user.key] }, 'what waits does, because it is answered')
      await stopQueued(db, queued)
      t.match(
        await dayOf(user.key),
        { reserved: usd(microsEach), spent: '0' },
        'stopped in the queue, it gives it back',
      )
    })

    await t.test('a run is settled on the day on which it began', async (t) => {
      const user = createUser()
      const run = await acceptWith({ userDayUsd: '1', dayUsd: '1' })(user)
      await db.rows(sql`update budget_days set day = day - 1 where scope in (${user.key}, 'all')`)
      await db.rows(sql`
        update chat_runs set reservation = reservation || jsonb_build_object('day', (reservation ->> 'day')::date - 1)
        where id = ${run.id}::uuid`)
      const today = await acceptWith({ userDayUsd: '1', dayUsd: '1' })(user)
      await commit(run, 12)
      t.match(await dayOf(user.key, -1), { spent: usd(12), reserved: '0' })
      t.match(await dayOf('all', -1), { spent: usd(12), reserved: '0' })
      t.match(await dayOf(user.key), { spent: '0', reserved: usd(microsEach) })
      await commit(today, 1)
      await db.rows(sql`update budget_days set day = day - 8 where scope = ${user.key}`)
      const reaper = createReaperOf({ db })
      await reaper.start()
      await reaper.close()
      t.same(await db.rows(sql`select day::text from budget_days where scope = ${user.key}`), [], 'old days are swept')
      await forgetAll()
    })

    await t.test('a run whose process died is settled with what it is thought to have cost', async (t) => {
      const user = createUser()
      const accept = acceptWith({ userDayUsd: '1' })
      const [shown, silentRun] = [await accept(user), await accept(user)]
      const reply = 'word'.repeat(40)
      await writeCheckpoints(
        db,
        [{ runId: shown.id, parts: [textPart(reply)], cursor: { generation: 1, seq: 3 } }],
        new Map(),
      )
      await db.rows(sql`update chat_runs set attempts = 2 where id = ${silentRun.id}::uuid`)
      const reaper = createReaperOf({ db })
      await reaper.start()
      await reaper.close()
      const micros = promptTokens * 3 + 40 * 15
      t.match(await runs.reread(shown.id), {
        status: 'interrupted',
        usage: { input_tokens: promptTokens, output_tokens: 40, total_tokens: promptTokens + 40 },
        usage_source: 'estimated',
        cost_usd: '0.000900',
        upstream_calls: [{ provider: 'demo', outcome: 'interrupted', latency_ms: null, cost_usd: '0.000900' }],
      })
      t.match(await runs.reread(silentRun.id), {
        status: 'interrupted',
        usage: null,
        cost_usd: '0',
        upstream_calls: [],
      })
      t.match(await dayOf(user.key), { spent: usd(micros), reserved: '0', spent_tokens: promptTokens + 40 })
    })

    await t.test('nobody gets money back by erasing, and nothing stays held', async (t) => {
      const user = createUser()
      const accept = acceptWith({ userDayUsd: '1' })
      const removal = removalOf(db)
      const [ended, running] = [await accept(user), await accept(user)]
      await commit(ended, 20)
      const queued = await accept(user, { session_id: running.session_id, on_busy: 'queue' })
      await removal.purgeSession(user, running.session_id)
      const after = { spent: usd(20 + microsEach), reserved: '0', spent_tokens: 7 + tokensEach, reserved_tokens: 0 }
      t.same(await dayOf(user.key), after, 'what was under way counts as spent, what waited does not')
      t.match(await commit(running, 3), { outcome: 'fenced' })
      t.match(await stopQueued(db, queued), { outcome: 'fenced' })
      t.same(await dayOf(user.key), after)
      await db.rows(sql`
        insert into budget_days (scope, day) values (${user.key}, (now() at time zone 'UTC')::date - 1)`)
      await removal.eraseOwner(user)
      t.same(await dayOf(user.key), after, 'the day stays')
      t.equal(await dayOf(user.key, -1), undefined, 'and only that')
    })

    await t.test('what a visitor has spent stays the visitor’s when the sessions become a user’s', async (t) => {
      const [user, visitor] = [createUser(), createOwner()]
      const accept = acceptWith({ userDayUsd: '1', visitorDayUsd: '1' })
      const run = await accept(visitor)
      t.equal((await claimSessions(db, user, visitor)).length, 1)
      await commit(run, 9)
      t.match(await dayOf(visitor.key), { spent: usd(9), reserved: '0' })
      t.equal(await dayOf(user.key), undefined)
    })

    await t.test('a model without a price is warned about once, and cannot be asked for by name', async (t) => {
      const unpriced: TokenPricing = { perToken: () => undefined }
      const warnings: unknown[] = []
      const visitor = createOwner()
      const accept = acceptWith({ visitorDayUsd: '0', visitorDayTokens: 1000 }, { pricing: unpriced, warnings })
      for (let round = 0; round < 2; round += 1) {
        const run = await accept(visitor)
        t.match(await heldBy(run), { cost: '0', tokens: tokensEach })
        await commit(run, undefined)
      }
      t.match(await dayOf(visitor.key), { spent: '0', reserved: '0', spent_tokens: 14 })
      t.match(warnings, [[{ provider: 'demo', model: 'demo' }]])
      t.equal(warnings.length, 1)
      await t.rejects(accept(visitor, { model: 'demo' }), { code: 'invalid_request' })
      const byTokens = acceptWith({ visitorDayTokens: 1000 }, { pricing: unpriced })
      t.ok(await byTokens(visitor, { model: 'demo' }), 'where USD do not count, its tokens do')
    })

    await t.test('everybody can see what they have spent and may', async (t) => {
      const [user, visitor] = [createUser(), createOwner()]
      const budgets = budgetsOf({ userDayUsd: '2.50', userDayTokens: 5000, dayUsd: '100' })
      const day = new Date().toISOString().slice(0, 10)
      const accept = acceptWith({ userDayUsd: '2.50', dayUsd: '100' })
      const ended = await accept(user)
      await commit(ended, 45)
      await accept(user)
      const usage = await budgets.readUsage(user)
      t.same(usage, {
        day: usage.day,
        spent_usd: usd(45),
        spent_tokens: 7,
        reserved_usd: usd(microsEach),
        limit_usd: '2.50',
        limit_tokens: 5000,
        resets_at: usage.resets_at,
      })
      t.ok(usage.day >= day && usage.resets_at > new Date().toISOString())
      t.match(usage.resets_at, /T00:00:00\.000000Z$/)
      t.match(await budgets.readUsage(visitor), {
        spent_usd: '0',
        spent_tokens: 0,
        limit_usd: null,
        limit_tokens: null,
      })
      const free = await acceptWith({})(visitor)
      await commit(free, 45)
      const unlimited = await budgetsOf({}).readUsage(visitor)
      t.match(
        unlimited,
        { spent_usd: usd(45), spent_tokens: 7, reserved_usd: '0', limit_usd: null },
        'without a budget too',
      )
      await forgetAll()
    })

    await t.test(
      'whatever happens in whatever order, all is given back, and what was spent is what it cost',
      async (t) => {
        const random = createRandom(20_261_120)
        const owners = [createUser(), createUser()]
        const on = [
          acceptWith({ userDayUsd: '5', dayUsd: '5' }),
          acceptWith({ userDayUsd: '5', dayUsd: '5' }, {}, second),
        ]
        const open: RunFacts[] = []
        const spent = new Map(owners.map(({ key }) => [key, 0]))
        const ownerOf = new Map<string, string>()

        async function acceptOne(owner: Owner): Promise<void> {
          const before = open.length > 0 && random.next() < 0.5 ? random.pick(open) : undefined
          const mine = before !== undefined && ownerOf.get(before.id) === owner.key
          const by = random.pick(on)
          const run = await by(owner, mine ? { session_id: before.session_id, on_busy: 'queue' } : {})
          ownerOf.set(run.id, owner.key)
          open.push(run)
        }
        async function endOne(): Promise<void> {
          const [run] = open.splice(random.integer(open.length), 1)
          if (run === undefined) return
          const micros = random.integer(3000)
          const now = await runs.reread(run.id)
          const ending = now?.status === 'queued' ? stopQueued(db, run) : commit(run, micros)
          const { outcome } = await ending
          const key = ownerOf.get(run.id) ?? ''
          if (outcome === 'fenced') open.push(run)
          else if (now?.status === 'running') spent.set(key, (spent.get(key) ?? 0) + micros)
          for (const next of await promote(db, randomUUID(), run.session_id)) t.equal(next.status, 'running')
        }
        for (let round = 0; round < rounds; round += 1) {
          await Promise.all(
            Array.from({ length: 4 }, () => (random.next() < 0.55 ? acceptOne(random.pick(owners)) : endOne())),
          )
        }
        // What is left is taken over, once with nothing shown, which it may not ask for again.
        await db.rows(sql`update chat_runs set attempts = 2`)
        while (open.some(Boolean)) {
          const reaper = createReaperOf({ db })
          await reaper.start()
          await reaper.close()
          const rows = await Promise.all(open.map(({ id }) => runs.reread(id)))
          for (const [index, row] of rows.entries())
            if (row?.status === 'queued') await stopQueued(db, open[index] as RunFacts)
          if (rows.every((row) => row?.ended_at !== null)) break
        }
        let total = 0
        for (const { key } of owners) {
          t.match(await dayOf(key), { spent: usd(spent.get(key) ?? 0), reserved: '0', reserved_tokens: 0 })
          total += spent.get(key) ?? 0
        }
        t.ok(total > 0)
        t.match(await dayOf('all'), { spent: usd(total), reserved: '0', reserved_tokens: 0 })
        const [row] = await db.rows<{ cost: string }>(sql`
        select trim_scale(sum(cost))::text as cost from chat_runs where owner in (${owners[0]?.key}, ${owners[1]?.key})`)
        t.equal(row?.cost, usd(total))
        await forgetAll()
      },
    )

    if (url === undefined) return

    const holder = postgres(url, { max: 1, onnotice: () => undefined })
    t.teardown(() => holder.end())

    await t.test('who settles and who reserves at the same instant both see what the other has written', async (t) => {
      const user = createUser()
      const accept = acceptWith({ userDayUsd: usd(2 * microsEach), dayUsd: '1' })
      const run = await accept(user)
      let both: Promise<unknown> | undefined
      await holder.begin(async (hold) => {
        await hold`select 1 from budget_days where scope = ${user.key} for update`
        both = Promise.all([commit(run, 5), accept(user)])
        await untilWaiting(db, 2)
      })
      await both
      t.match(await dayOf(user.key), { spent: usd(5), reserved: usd(microsEach) })
      t.match(await dayOf('all'), { spent: usd(5), reserved: usd(microsEach) })
    })

    await t.test('a run that begins while its session is being erased counts as spent', async (t) => {
      const user = createUser()
      const accept = acceptWith({ userDayUsd: '1' })
      const before = await accept(user)
      await accept(user, { session_id: before.session_id, on_busy: 'queue' })
      await commit(before, 0)
      const [locked, enough] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
      const others: Promise<unknown>[] = []
      // Between hiding the session and erasing it, whose statement cannot see yet that the run has begun.
      const removal = removalOf(second, async () => {
        others.push(
          holder.begin(async (hold) => {
            await hold`select 1 from chat_sessions where id = ${before.session_id} for update`
            locked.resolve()
            await enough.promise
          }),
        )
        await locked.promise
        others.push(promote(db, randomUUID(), before.session_id))
        await untilWaiting(db, 1)
      })
      const purged = removal.purgeSession(user, before.session_id)
      await locked.promise
      await untilWaiting(db, 2)
      enough.resolve()
      await Promise.all([purged, ...others])
      t.match(await dayOf(user.key), { spent: usd(microsEach), reserved: '0' })
    })
  })
}
