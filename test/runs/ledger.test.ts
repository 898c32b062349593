/** What a call counts as, however it ends; and the estimate that stands in where nobody has counted. */
import { test } from 'tap'
import type { Usage } from '../../src/log/event.ts'
import { createEstimator, type Estimator, unitsOf } from '../../src/runs/estimate.ts'
import { callsMax, createLedger, type LedgerCall, type Pricing } from '../../src/runs/ledger.ts'
import type { UpstreamEvent } from '../../src/upstream/upstream.ts'
import { pricing } from '../support/runs.ts'

const model = { provider: 'one', model: 'm' }
const other = { provider: 'two', model: 'm' }
const textOf = (tokens: number) => 'word'.repeat(tokens)
const text = (tokens: number): UpstreamEvent => ({ type: 'text', text: textOf(tokens) })
const finish: UpstreamEvent = { type: 'finish', reason: 'stop' }
const counts = (input: number, output: number, more: Partial<Usage> = {}): Usage => ({
  input_tokens: input,
  output_tokens: output,
  total_tokens: input + output,
  ...more,
})
const usage = (...args: Parameters<typeof counts>): UpstreamEvent => ({ type: 'usage', usage: counts(...args) })

test('a text has about as many tokens as its characters say, by where they stand in Unicode', async (t) => {
  const { estimateText } = createEstimator()
  for (const [words, tokens] of [
    ['', 0],
    ['a', 1],
    ['The quick brown fox.', 5],
    ['àéîõü ñ', 4],
    ['今天天气很好', 6],
    ['안녕하세요', 5],
    ['ありがとう', 5],
    ['Привет!', 5],
    ['สวัสดี', 6],
    ['👩‍👩‍👧', 6],
  ] as const) {
    t.equal(estimateText(model, words), tokens, words)
  }
  const long = 'aé今П👧'.repeat(20_000)
  const startedAt = performance.now()
  const units = unitsOf(long)
  t.ok(performance.now() - startedAt < 200, 'in one pass')
  for (const cut of [1, 5, 6, 59_999]) {
    t.equal(unitsOf(long.slice(0, cut)) + unitsOf(long.slice(cut)), units, 'wherever it is cut')
  }
})

test('a prompt is all that goes upstream, with a little around each message', async (t) => {
  const { estimateMessages } = createEstimator()
  t.equal(estimateMessages(model, []), 0)
  t.equal(estimateMessages(model, [{ role: 'user', content: textOf(10) }]), 14)
  t.equal(
    estimateMessages(model, [
      { role: 'system', content: textOf(10) },
      {
        role: 'assistant',
        content: textOf(20),
        parts: [
          { kind: 'reasoning', text: textOf(1000) },
          { kind: 'reasoning', text: textOf(30), signature: 'sealed' },
          { kind: 'text', text: textOf(20) },
          { kind: 'source', text: '', url: 'https://example.org/' },
          { kind: 'tool_call', text: textOf(5), name: textOf(1), output: 'ab' },
        ],
      },
      { role: 'tool', callId: 'c', name: textOf(1), content: textOf(7) },
    ]),
    3 * 4 + 10 + 30 + 20 + 6 + 1 + 8,
    'reasoning only with its seal, and what tools have answered',
  )
})

test('estimates move to what a provider counts, model by model, and not without bounds', async (t) => {
  const estimator = createEstimator()
  const estimate = () => estimator.estimateText(model, textOf(1000))
  for (let round = 0; round < 40; round += 1) estimator.learn(model, estimate(), 1500)
  t.ok(Math.abs(estimate() - 1500) <= 15, String(estimate()))
  t.equal(estimator.estimateText(other, textOf(1000)), 1000, 'another model is another matter')

  // Fifty prompts at once are estimated before the first of them is counted.
  const [at, before] = [createEstimator(), createEstimator().scaleOf(model)]
  for (let call = 0; call < 50; call += 1) at.learn(model, 1000, 2000, before)
  t.ok(Math.abs(at.scaleOf(model) - 2) < 0.1, String(at.scaleOf(model)))
  const twin = createEstimator()
  for (let call = 0; call < 50; call += 1) twin.learn(model, 1000, 2000)
  t.equal(twin.scaleOf(model).toFixed(), '4', 'a twin: taken for new estimates, they would drive it to its bound')

  for (const [estimated, actual] of [
    [10, 1000],
    [0, 5],
    [1000, 0],
    [Number.NaN, 5],
  ] as const) {
    const untouched = createEstimator()
    untouched.learn(model, estimated, actual)
    t.equal(untouched.scaleOf(model), 1, `${estimated} ${actual}: nothing is learned from it`)
  }
  for (const actual of [1, 1_000_000]) {
    const bounded = createEstimator()
    for (let round = 0; round < 100; round += 1) bounded.learn(model, 1000, actual, 1)
    t.ok(bounded.scaleOf(model) >= 0.25 && bounded.scaleOf(model) <= 4)
  }
  for (let index = 0; index < 300; index += 1) estimator.learn({ provider: 'p', model: String(index) }, 100, 200)
  t.equal(estimator.scaleOf(model), 1, 'what was not heard of for long is forgotten')
})

/** One call of {@link model} with a prompt of 200 tokens. */
function callOf(
  events: readonly UpstreamEvent[],
  outcome: string,
  estimator: Estimator = createEstimator(),
  prices: Pricing = pricing,
) {
  let now = 1_795_000_000_000
  const ledger = createLedger({ pricing: prices, estimator, now: () => now })
  const call: LedgerCall = ledger.begin(model, 200)
  for (const event of events) {
    now += 10
    call.see(event)
  }
  now += 10
  call.end(outcome)
  call.end('again')
  return { ledger, call: ledger.calls[0], totals: ledger.totals() }
}

test('what the provider counted counts, when it is the last word', async (t) => {
  const { call, totals, ledger } = callOf([{ type: 'response' }, text(3), text(2), finish, usage(8, 2)], 'completed')
  t.same(call, {
    provider: 'one',
    model: 'm',
    outcome: 'completed',
    started_at: '2026-11-18T11:06:40.000000Z',
    ttft_ms: 20,
    latency_ms: 60,
    usage: counts(8, 2),
    usage_source: 'provider',
    cost_usd: '0.000054',
  })
  t.equal(ledger.calls.length, 1, 'it ends once')
  t.same(totals, { usage: counts(8, 2), source: 'provider', costUsd: '0.000054' })
  const own = { source: 'provider' }
  t.match(callOf([usage(8, 1), text(100), usage(8, 90), finish], 'completed').totals, { ...own, usage: counts(8, 90) })
  t.match(callOf([text(5), finish, usage(8, 2)], 'stopped').totals, { ...own, usage: counts(8, 2) }, 'stopped too late')
  t.match(callOf([usage(8, 1), text(1), finish], 'completed').totals, { ...own, usage: counts(8, 1) }, 'nothing to add')
})

test('what broke off, or was never counted, is estimated and says so', async (t) => {
  const reasoning: UpstreamEvent = { type: 'reasoning', text: textOf(30) }
  const args: UpstreamEvent = { type: 'tool_call', key: '0', name: textOf(1), arguments: textOf(9) }
  const cached = { cached_input_tokens: 4, cache_write_tokens: 2 }
  for (const [title, events, outcome, wanted] of [
    ['no word of usage', [text(60), finish], 'completed', counts(200, 60)],
    ['all that was said', [reasoning, text(60), args], 'stopped', counts(200, 100)],
    ['the prompt was counted', [usage(8, 1, cached), text(60)], 'stopped', counts(8, 60, cached)],
    ['counted at the beginning only', [usage(8, 1), text(60), finish], 'completed', counts(8, 60)],
    ['counted along, and more was said', [text(60), usage(8, 90), text(1)], 'upstream_unavailable', counts(8, 90)],
    ['cut behind the finish reason', [usage(8, 1), text(60), finish], 'upstream_timeout', counts(8, 60)],
    ['stopped before its first word', [], 'stopped', counts(200, 0)],
    ['it failed with a prompt that was counted', [usage(8, 0)], 'upstream_unavailable', counts(8, 0)],
  ] as const) {
    const { call, totals } = callOf(events, outcome)
    t.same(totals.usage, wanted, title)
    t.match(call, { outcome, usage: wanted, usage_source: 'estimated', cost_usd: totals.costUsd }, title)
    t.equal(totals.source, 'estimated', title)
  }
})

test('a call that was refused used nothing, and costs nothing', async (t) => {
  for (const events of [[], [{ type: 'response' }]] as const) {
    const { call, totals } = callOf(events, 'upstream_rejected')
    t.match(call, { outcome: 'upstream_rejected', usage: null, usage_source: null, cost_usd: null, ttft_ms: null })
    t.same(totals, { usage: undefined, source: undefined, costUsd: '0' })
  }
})

test('a run is the sum of its calls, exact to the last place', async (t) => {
  const ledger = createLedger({
    pricing: { costOf: (choice) => (choice === model ? '0.0000003' : '123456789012.1') },
    estimator: createEstimator(),
  })
  const say = (choice: typeof model, events: readonly UpstreamEvent[], outcome: string) => {
    const call = ledger.begin(choice, 10)
    for (const event of events) call.see(event)
    call.end(outcome)
  }
  say(model, [], 'upstream_unavailable')
  say(model, [text(1), finish, usage(5, 1, { reasoning_tokens: 7 })], 'completed')
  t.match(ledger.totals(), { source: 'provider', costUsd: '0.0000003' })
  say(other, [text(1), finish, usage(6, 2, { cached_input_tokens: 3 })], 'completed')
  ledger.addLost(model, {
    startedAt: '2026-11-20T00:00:00.000000Z',
    promptTokens: 20,
    parts: [{ kind: 'text', text: textOf(4) }],
    outcome: 'interrupted',
  })
  t.same(ledger.totals(), {
    usage: counts(31, 7, { reasoning_tokens: 7, cached_input_tokens: 3 }),
    source: 'estimated',
    costUsd: '123456789012.1000006',
  })
  t.same(
    ledger.calls.map(({ outcome }) => outcome),
    ['upstream_unavailable', 'completed', 'completed', 'interrupted'],
  )
  t.match(ledger.calls.at(-1), { ttft_ms: null, latency_ms: null, usage: counts(20, 4) })

  say(model, [text(1), finish, usage(Number.MAX_SAFE_INTEGER, 0)], 'completed')
  t.equal(ledger.totals().usage?.total_tokens, Number.MAX_SAFE_INTEGER, 'a made-up count does not break the sum')
  for (let index = 0; index < callsMax; index += 1) say(model, [text(1), finish, usage(1, 1)], 'completed')
  t.equal(ledger.calls.length, callsMax, 'the list has an end')
  t.equal(ledger.totals().usage?.output_tokens, 7 + callsMax, 'and the sum has all')
})

test('without one price the cost is not known, and a part of it is not taken for the whole', async (t) => {
  const prices: Pricing = {
    costOf: (choice, used, at) => (choice === other ? undefined : pricing.costOf(choice, used, at)),
  }
  const ledger = createLedger({ pricing: prices, estimator: createEstimator() })
  for (const choice of [model, other]) {
    const call = ledger.begin(choice, 10)
    call.see(text(1))
    call.see(usage(5, 1))
    call.end('completed')
  }
  t.match(ledger.totals(), { usage: counts(10, 2), costUsd: undefined })
  t.match(ledger.calls, [{ cost_usd: '0.000030' }, { cost_usd: null }])
  const unused = createLedger({ pricing: prices, estimator: createEstimator() })
  unused.begin(other, 10).end('upstream_rejected')
  t.equal(unused.totals().costUsd, '0', 'what used nothing needs no price')
})

test('what an agent says of its own models is taken as it stands: the last figures of each', async (t) => {
  const ledger = createLedger({ pricing, estimator: createEstimator() })
  ledger.add(model, counts(5, 1))
  ledger.add(model, counts(9, 2))
  ledger.add(other, counts(1, 1))
  t.same(ledger.totals(), { usage: counts(10, 3), source: 'provider', costUsd: '0.000075' })
  ledger.add(undefined, counts(1, 1))
  t.match(
    ledger.totals(),
    { usage: counts(11, 4), costUsd: undefined },
    'of a model without a name the price is not known',
  )
  t.same(ledger.calls, [])
})

test('calls that were counted teach the estimator, and only those', async (t) => {
  const estimator = createEstimator()
  callOf([text(1), finish, usage(400, 1)], 'completed', estimator)
  t.equal(estimator.scaleOf(model), 1.5, 'halfway, the first time')
  callOf([usage(4000, 1), text(60)], 'stopped', estimator)
  callOf([], 'upstream_rejected', estimator)
  t.equal(estimator.scaleOf(model), 1.5)
})
