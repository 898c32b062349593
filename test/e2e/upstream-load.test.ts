/**
 * Many messages at once against providers that fail at random, with a budget: every reply is whole or an honest end, nobody
 * is asked more often than the plan allows, the second provider helps out, and the day's money is exact to the last digit.
 */
import { test } from 'tap'
import {
  chunk,
  createRandom,
  doneMarker,
  refuse,
  reset,
  type Script,
  startFakeUpstream,
  usageChunk,
} from '../../scripts/fake-upstream.ts'
import { sql } from '../../src/db/drizzle.ts'
import { createClient, isDone, shownText } from '../support/client.ts'
import { startGateway } from '../support/gateway.ts'

const messages = 120
/** More would wait for the five connections longer than a request may. */
const atOnce = 24
const retries = 2
/** USD of a token; the price list has them by the million. */
const prices = [
  { provider: 'openai', model: 'fast-*', input: '3', output: '7' },
  { provider: 'backup', model: '*', input: '1.000001', output: '0.3' },
]

test('many messages at once, failing providers and a budget: nothing is lost, doubled or paid twice', async (t) => {
  const random = createRandom(20_261_122)
  const asked = new Map<string, number>()
  /** Fails before the first word, in the middle, or not at all. */
  const moody =
    (failsFirst: number, failsLater: number): Script =>
    (call) => {
      asked.set(call.message, (asked.get(call.message) ?? 0) + 1)
      const text = `${call.message} ${'is answered '.repeat(1 + (call.message.length % 3))}`.trim()
      if (random() < failsFirst) {
        const how = Math.floor(random() * 4)
        if (how === 0) return refuse(503)
        if (how === 1) return refuse(429, {}, { 'retry-after': '0' })
        if (how === 2) return [reset()]
        return [chunk({ role: 'assistant', content: '' })]
      }
      if (random() < failsLater) return [chunk({ content: text.slice(0, 5) }), reset()]
      return [
        chunk({ content: text.slice(0, 4) }),
        chunk({ content: text.slice(4) }, 'stop'),
        usageChunk(10, text.length),
        doneMarker,
      ]
    }
  const [main, backup] = [
    await startFakeUpstream({ script: moody(0.6, 0.1) }),
    await startFakeUpstream({ script: moody(0.2, 0.05) }),
  ]
  t.teardown(() => Promise.all([main.close(), backup.close()]))
  const env = {
    OPENAI_BASE_URL: main.url,
    MODEL_BALANCED: 'openai:fast-1,backup:any',
    UPSTREAM_RETRIES: String(retries),
    BUDGET_VISITOR_DAY_USD: '0.2',
    RUNS_PER_OWNER: '0',
    FRAME_MS: '5',
  }
  const file = { providers: { backup: { kind: 'openai' as const, base_url: backup.url } }, prices }
  const gateway = await startGateway(t, { database: 'postgres', env, file })
  const client = createClient(gateway.url)
  await client.get('/api/v1/me/usage')

  const waiting = Array.from({ length: messages }, (_, index) => `Message ${index}`)
  async function sendInTurn() {
    const ends = []
    for (let message = waiting.shift(); message !== undefined; message = waiting.shift()) {
      const body = { message, client_message_id: message.replace(' ', '-') }
      let stream = await client.send(body)
      // Too many at once for the database: the same message once more.
      while (stream.status === 503) stream = await client.send(body)
      await stream.ended
      ends.push({ message, status: stream.status, stream, done: stream.received.filter(isDone) })
    }
    return ends
  }
  const ends = (await Promise.all(Array.from({ length: atOnce }, sendInTurn))).flat()
  const refused = ends.filter(({ status }) => status === 402)
  const taken = ends.filter(({ status }) => status === 200)
  t.equal(refused.length + taken.length, messages, 'a message is accepted, or refused for want of money')
  t.ok(refused.length > 0 && taken.length > 10, `${taken.length} taken, ${refused.length} refused`)

  let [spent, tokens, fellBack, retried, kept] = [0n, 0, 0, 0, 0]
  for (const { message, stream, done } of taken) {
    t.equal(done.length, 1, 'one end')
    const run = (await client.get(`/api/v1/runs/${stream.headers.get('x-run-id')}`)).body
    const [, reply] = await client.messages(stream.headers.get('x-session-id') ?? '')
    t.equal(reply.content, shownText(stream.received), 'what was shown is stored')
    if (run.status === 'completed') t.match(reply.content, new RegExp(`^${message} is answered`))
    else {
      t.match(run, { error: { code: 'upstream_unavailable' } })
      if (reply.content !== '') kept += 1
    }
    const calls: { provider: string; cost_usd: string | null; usage: { total_tokens: number } | null }[] =
      run.upstream_calls
    t.equal(asked.get(message), calls.length, 'every call is on the record')
    t.ok(calls.length <= 2 * (retries + 1), `${calls.length} calls`)
    if (reply.content !== '')
      t.equal(run.provider, calls.at(-1)?.provider, 'the words are of the model that was asked last')
    if (calls.length > 1) retried += 1
    if (calls.some(({ provider }) => provider === 'backup')) fellBack += 1
    const cost = calls.reduce((sum, { cost_usd }) => sum + units(cost_usd ?? '0'), 0n)
    t.equal(units(run.cost_usd), cost, 'a run costs what its calls cost')
    t.equal(done[0]?.data.cost_usd, run.cost_usd)
    spent += cost
    tokens += calls.reduce((sum, call) => sum + (call.usage?.total_tokens ?? 0), 0)
  }
  t.comment(
    `${taken.length} taken, ${refused.length} refused; ${retried} asked again, ${fellBack} by the other provider, ${kept} broke off and kept their words`,
  )
  t.ok(retried > 0 && fellBack > 0 && kept > 0, 'all of it has happened')
  for (const { message } of refused) t.equal(asked.get(message), undefined, 'nobody is asked for what was refused')

  const usage = (await client.get('/api/v1/me/usage')).body
  t.match(usage, { reserved_usd: '0', limit_usd: '0.2', spent_tokens: tokens })
  t.equal(units(usage.spent_usd), spent, 'the day has spent what its runs have cost')
  t.ok(spent <= units('0.2'), 'and not more than it may')
  const [row] = await gateway.app.db.rows<{ total: string }>(
    sql`select sum(total_cost)::text as total from chat_sessions`,
  )
  t.equal(units(row?.total ?? ''), spent, 'and so have the sessions')
})

/** Of 10^-18 USD. */
function units(usd: string): bigint {
  const [whole = '', fraction = ''] = usd.split('.')
  return BigInt(whole + fraction.padEnd(18, '0'))
}
