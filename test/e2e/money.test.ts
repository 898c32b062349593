/**
 * What a reply costs, through the whole gateway: however a run ends, its stream, its row, its message, its session and its
 * export say the same sum; and who has used up a budget is told so before anything is asked.
 */
import { randomUUID } from 'node:crypto'
import { test } from 'tap'
import {
  begin,
  forever,
  refuse,
  reset,
  type Script,
  type Step,
  say,
  sse,
  startFakeUpstream,
} from '../../scripts/fake-upstream.ts'
import { sql } from '../../src/db/drizzle.ts'
import { addDecimals } from '../../src/sessions/decimal.ts'
import { createClient, isDone, type Received } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'
import { inSeconds, makeToken } from '../support/tokens.ts'

const secret = 'a secret of at least thirty-two bytes'
const v1 = '/api/v1'
/** 10 tokens as estimated, and 4 around them. */
const question = 'x'.repeat(40)
/** 4 tokens as estimated. */
const words = 'So far so good'
const estimated = { input_tokens: 14, output_tokens: 4, total_tokens: 18 }
const estimatedCost = '0.000102'
const saidAll = ({ event, data }: Received) => event === 'delta' && data.offset + data.text.length === words.length

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const upstream = await startFakeUpstream()
    t.teardown(() => upstream.close())
    const gateway = await startGateway(t, {
      database,
      file: {
        modes: { balanced: { models: ['openai:priced'] } },
        prices: [{ provider: 'openai', model: 'priced', input: '3', output: '15' }],
        // A reply of the longest kind costs 0.0615 USD at most.
        budgets: { user_day_usd: '0.1' },
      },
      env: { OPENAI_BASE_URL: upstream.url, FRAME_MS: '5', JWT_SECRET: secret },
    })
    const { db } = gateway.app
    const visitor = createClient(gateway.url)
    await visitor.get(`${v1}/sessions`)
    const { id: session_id } = (await visitor.post(`${v1}/sessions`, {})).body

    /** Asks without what was said before, so that every prompt is as long as the others. */
    async function ask(script: Script, more: object = {}) {
      upstream.answer(script)
      const stream = await visitor.send({ message: question, session_id, ...more })
      const id = stream.headers.get('x-run-id') as string
      return { stream, id, readRun: async () => (await visitor.get(`${v1}/runs/${id}`)).body }
    }

    /** Asks for a reply of which all the words are shown before what goes wrong does. */
    async function askPartly(then: () => Step | Promise<Step>, more?: object) {
      const shown = Promise.withResolvers<void>()
      const asked = await ask(async function* () {
        yield* begin({ text: words })
        await shown.promise
        yield await then()
      }, more)
      await asked.stream.until(saidAll)
      shown.resolve()
      return asked
    }

    const costs: string[] = []
    async function check(title: string, asked: Awaited<ReturnType<typeof ask>>, wanted: object, sum: string | null) {
      const { data: done } = await asked.stream.until(isDone)
      const run = await asked.readRun()
      const { body: message } = { body: (await visitor.messages(session_id)).at(-1) }
      t.match(run, { ...wanted, cost_usd: sum }, title)
      t.equal(done.cost_usd, sum ?? undefined, `${title}: the stream says the same`)
      t.same(done.usage ?? null, run.usage, title)
      t.match(message, { run_id: run.id, cost_usd: sum, total_tokens: run.usage?.total_tokens ?? null }, title)
      if (sum !== null) costs.push(sum)
      await db.rows(sql`update chat_messages set content = '' where session_id = ${session_id}::uuid`)
    }

    const provided = { input_tokens: 8, output_tokens: 2, total_tokens: 10 }
    await check(
      'completed',
      await ask(() => say({ text: 'All right' })),
      {
        status: 'completed',
        usage: provided,
        usage_source: 'provider',
        upstream_calls: [{ provider: 'openai', outcome: 'completed', usage: provided, cost_usd: '0.000054' }],
      },
      '0.000054',
    )

    const guessed = (outcome: string) => ({
      usage: estimated,
      usage_source: 'estimated',
      upstream_calls: [{ outcome, usage: estimated, usage_source: 'estimated', cost_usd: estimatedCost }],
    })
    const stopped = await askPartly(forever)
    await visitor.post(`${v1}/runs/${stopped.id}/stop`)
    await check('stopped', stopped, { status: 'stopped', ...guessed('stopped') }, estimatedCost)

    const rejected = sse({ error: { message: 'no', type: 'invalid_request_error' } }, 'error')
    const failed = await askPartly(() => rejected)
    await check('failed in mid-stream', failed, { status: 'failed', ...guessed('upstream_rejected') }, estimatedCost)

    const interrupted = await askPartly(reset)
    const cut = guessed('upstream_unavailable')
    await check('interrupted', interrupted, { status: 'interrupted', ...cut }, estimatedCost)

    const taken = await askPartly(forever)
    await db.rows(sql`
      update chat_runs set instance_id = ${randomUUID()}::uuid where id = ${taken.id}::uuid`)
    const lost = { status: 'interrupted', generation: 2, ...guessed('interrupted') }
    await check('of a process that died', taken, lost, estimatedCost)

    const refused = await ask(() => refuse(400))
    const call = { outcome: 'upstream_rejected', usage: null, usage_source: null, cost_usd: null }
    await check('refused', refused, { status: 'failed', usage: null, usage_source: null, upstream_calls: [call] }, '0')

    const busy = await askPartly(forever)
    const queued = await ask(() => say({ text: 'Never' }), { on_busy: 'queue' })
    await visitor.post(`${v1}/runs/${queued.id}/stop`)
    await check('stopped in the queue', queued, { status: 'stopped', usage: null, upstream_calls: [] }, '0')
    await visitor.post(`${v1}/runs/${busy.id}/stop`)
    await busy.stream.ended
    costs.push((await busy.readRun()).cost_usd)

    await check(
      'without a price',
      await ask(() => say({ text: 'Who knows' }), { model: 'unpriced' }),
      { status: 'completed', usage: provided, upstream_calls: [{ model: 'unpriced', cost_usd: null }] },
      null,
    )

    const total = costs.reduce(addDecimals)
    const { body: session } = await visitor.get(`${v1}/sessions/${session_id}`)
    t.equal(session.total_cost_usd, total, 'a session is the sum of its runs, to the last place')
    const { body: exported } = await visitor.get(`${v1}/sessions/${session_id}/export?format=json`)
    t.equal(exported.session.total_cost_usd, total)
    const costOf = ({ cost_usd }: { cost_usd: string | null }) => cost_usd
    t.same(exported.messages.map(costOf), (await visitor.messages(session_id)).map(costOf), 'an export says the same')
    t.match(await visitor.get(`${v1}/me/usage`), {
      status: 200,
      body: { spent_usd: total, reserved_usd: '0', limit_usd: null, limit_tokens: null },
    })

    const user = createClient(gateway.url, {
      authorization: `Bearer ${makeToken(secret, { sub: 'ada', exp: inSeconds(60) })}`,
    })
    upstream.answer(async function* () {
      yield* begin({ text: words })
      yield await forever()
    })
    const asks = upstream.calls.length
    const first = await user.send({ message: question })
    await first.until(saidAll)
    for (const path of ['/chat/stream', '/chat/message']) {
      const answer = await user.post(`${v1}${path}`, { message: question })
      t.match(answer, {
        status: 402,
        body: { code: 'budget_exceeded', retryable: false, detail: /your budget for the day/ },
      })
      const seconds = Number(answer.headers.get('retry-after'))
      t.ok(seconds >= 1 && seconds <= 86_400, String(seconds))
    }
    t.equal(upstream.calls.length, asks + 1, 'nobody was asked')
    t.match((await user.get(`${v1}/me/usage`)).body, { spent_usd: '0', reserved_usd: /^0\.061/, limit_usd: '0.1' })
    const id = first.headers.get('x-run-id')
    await user.post(`${v1}/runs/${id}/stop`)
    const { cost_usd } = (await user.get(`${v1}/runs/${id}`)).body
    t.match((await user.get(`${v1}/me/usage`)).body, { spent_usd: cost_usd, reserved_usd: '0', spent_tokens: 18 })
    upstream.answer(() => say({ text: 'Again' }))
    t.equal((await user.post(`${v1}/chat/message`, { message: question })).status, 200, 'what was not used can be')
    t.match(await user.post(`${v1}/chat/message`, { message: question, model: 'unpriced' }), {
      status: 400,
      body: { code: 'invalid_request' },
    })
  })
}
