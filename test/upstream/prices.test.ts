/** Money is exact: what a call costs against rational numbers, which price counts, and the built-in list. */
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import t from 'tap'
import { Value } from 'typebox/value'
import { builtInPriceDays, builtInPrices, Price } from '../../src/upstream/price-table.ts'
import { createPrices, findPriceFault } from '../../src/upstream/prices.ts'
import { providerPresets } from '../../src/upstream/providers.ts'

const at = new Date('2026-11-01T12:00:00Z')
const choice = { provider: 'own', model: 'm-1' }
const usageOf = (input_tokens: number, output_tokens: number, more: Readonly<Record<string, number>> = {}) => ({
  input_tokens,
  output_tokens,
  total_tokens: input_tokens + output_tokens,
  ...more,
})
const price = (more: Partial<Price> = {}): Price => ({
  provider: 'own',
  model: 'm-1',
  input: '1',
  output: '2',
  ...more,
})

/** A decimal as numerator over 10^exponent. */
function rational(text: string): { readonly numerator: bigint; readonly exponent: bigint } {
  const [whole = '', fraction = ''] = text.split('.')
  return { numerator: BigInt(whole + fraction), exponent: BigInt(fraction.length) }
}

const decimals = fc
  .tuple(fc.integer({ min: 0, max: 999_999 }), fc.option(fc.stringMatching(/^\d{1,9}$/), { nil: undefined }))
  .map(([whole, fraction]) => (fraction === undefined ? `${whole}` : `${whole}.${fraction}`))
const counts = fc.integer({ min: 0, max: 2 ** 40 })

t.test('a cost is the exact sum of tokens times prices, whatever the prices and counts', async (t) => {
  fc.assert(
    fc.property(
      fc.record({ input: decimals, output: decimals, cached_input: decimals, cache_write: decimals }),
      fc.record({ plain: counts, cached: counts, written: counts, output: counts }),
      (prices, tokens) => {
        const { plain, cached, written, output } = tokens
        const usage = usageOf(plain + cached + written, output, {
          cached_input_tokens: cached,
          cache_write_tokens: written,
          reasoning_tokens: output,
        })
        const cost = createPrices([price(prices)], []).costOf(choice, usage, at) ?? 'unknown'
        t.match(cost, /^(0|[1-9]\d*)(\.\d*[1-9])?$/)
        // Over 10^30 every term is a whole number, and so is the sum.
        const over = 30n
        const term = (count: number, text: string) => {
          const { numerator, exponent } = rational(text)
          return BigInt(count) * numerator * 10n ** (over - exponent - 6n)
        }
        const expected =
          term(plain, prices.input) +
          term(cached, prices.cached_input) +
          term(written, prices.cache_write) +
          term(output, prices.output)
        const { numerator, exponent } = rational(cost)
        if (numerator * 10n ** (over - exponent) !== expected) throw new Error(`${cost} is not ${expected} / 10^30`)
      },
    ),
    { numRuns: 200, seed: 7 },
  )
  // What floats make of it, to show that the comparison above can fail.
  t.not(0.1 * 3, 0.3)
  t.equal(createPrices([price({ input: '100000' })], []).costOf(choice, usageOf(3, 0), at), '0.3')
})

t.test('what a list does not say costs what input costs', async (t) => {
  const usage = usageOf(1_000_000, 0, { cached_input_tokens: 400_000, cache_write_tokens: 100_000 })
  const costOf = (more: Partial<Price>) => createPrices([price(more)], []).costOf(choice, usage, at)
  t.equal(costOf({}), '1')
  t.equal(costOf({ cached_input: '0.1' }), '0.64')
  t.equal(costOf({ cache_write: '1.25' }), '1.025')
  t.equal(costOf({ cached_input: '0', cache_write: '0' }), '0.5')
  t.equal(createPrices([price()], []).costOf(choice, usageOf(0, 0), at), '0')
})

t.test('more tokens from a cache than tokens are no negative cost', async (t) => {
  const prices = createPrices([price({ cached_input: '0.5', cache_write: '2' })], [])
  const usage = (more: Readonly<Record<string, number>>) => usageOf(1_000_000, 0, more)
  t.equal(prices.costOf(choice, usage({ cached_input_tokens: 5_000_000 }), at), '0.5')
  t.equal(prices.costOf(choice, usage({ cached_input_tokens: 500_000, cache_write_tokens: 900_000 }), at), '1.25')
})

t.test('a token has its price for reservations', async (t) => {
  const prices = createPrices([price({ input: '0.05', output: '12' })], [])
  t.strictSame(prices.perToken(choice, at), { input: '0.00000005', output: '0.000012' })
  t.strictSame(createPrices([price({ input: '0', output: '0' })], []).perToken(choice, at), { input: '0', output: '0' })
})

t.test('a long request has its price, for all of its tokens', async (t) => {
  const prices = createPrices([price({ long: { over: 1000, input: '10', output: '20', cached_input: '5' } })], [])
  t.equal(prices.costOf(choice, usageOf(1000, 1000), at), '0.003')
  t.equal(prices.costOf(choice, usageOf(1001, 1000), at), '0.03001')
  t.equal(prices.costOf(choice, usageOf(2000, 0, { cached_input_tokens: 1000 }), at), '0.015')
  t.strictSame(prices.perToken(choice, at), { input: '0.000001', output: '0.000002' })
  t.strictSame(prices.perToken(choice, at, 1000), { input: '0.000001', output: '0.000002' })
  t.strictSame(prices.perToken(choice, at, 1001), { input: '0.00001', output: '0.00002' })
})

t.test('an unknown price is no price', async (t) => {
  const prices = createPrices([price()], [])
  for (const other of [
    { provider: 'own', model: 'm-2' },
    { provider: 'own', model: 'm' },
    { provider: 'other', model: 'm-1' },
    { provider: 'own', model: 'M-1' },
  ]) {
    t.equal(prices.costOf(other, usageOf(1, 1), at), undefined)
    t.equal(prices.perToken(other, at), undefined)
  }
})

t.test('own prices go first, then the pattern that says most, then the one that began last', async (t) => {
  const own = [
    price({ model: '*', input: '1' }),
    price({ model: 'm-*', input: '2' }),
    price({ model: 'm-1*', input: '3' }),
    price({ model: 'm-1', input: '4', until: '2026-01-01' }),
    price({ model: 'm-1', input: '5', from: '2026-01-01', until: '2026-06-01' }),
    price({ model: 'm-1', input: '6', from: '2026-03-01', until: '2026-06-01' }),
    price({ model: '*-9', input: '7' }),
  ]
  const builtIn = [price({ model: 'm-1', input: '8' }), price({ provider: 'other', model: 'm-1', input: '9' })]
  const prices = createPrices(own, builtIn)
  const inputOf = (model: string, day: string, provider = 'own') =>
    prices.costOf({ provider, model }, usageOf(1_000_000, 0), new Date(day))
  t.equal(inputOf('m-1', '2025-12-31T23:59:59.999Z'), '4')
  t.equal(inputOf('m-1', '2026-01-01T00:00:00Z'), '5')
  t.equal(inputOf('m-1', '2026-03-01T00:00:00Z'), '6')
  t.equal(inputOf('m-1', '2026-06-01T00:00:00Z'), '3', 'a pattern of its own goes before the built-in name')
  t.equal(inputOf('m-12', '2026-06-01'), '3')
  t.equal(inputOf('m-2', '2026-06-01'), '2')
  t.equal(inputOf('a-9', '2026-06-01'), '7')
  t.equal(inputOf('x', '2026-06-01'), '1')
  t.equal(inputOf('m-1', '2026-06-01', 'other'), '9')
})

t.test('a pattern fits the whole name, and is never slow', async (t) => {
  const fits = (model: string, name: string) =>
    createPrices([price({ model })], []).perToken({ provider: 'own', model: name }, at) !== undefined
  for (const [pattern, name] of [
    ['*', ''],
    ['*', 'a:b/c'],
    ['a*', 'a'],
    ['*a', 'a'],
    ['a*c*e', 'abcde'],
    ['a*b*b', 'abab'],
    ['*/*', 'meta/llama'],
    ['a.c', 'a.c'],
  ] as const) {
    t.ok(fits(pattern, name), `${pattern} fits ${name}`)
  }
  for (const [pattern, name] of [
    ['a', 'ab'],
    ['a', 'A'],
    ['a*a', 'a'],
    ['a*b*b', 'ab'],
    ['a.c', 'abc'],
    ['*b', 'abc'],
    ['b*', 'abc'],
    ['', 'a'],
  ] as const) {
    t.notOk(fits(pattern, name), `${pattern} does not fit ${name}`)
  }
  // As a regular expression this takes longer than the universe will.
  t.notOk(fits('*a'.repeat(90), `${'a'.repeat(199)}b`))
})

t.test('the built-in list is well-formed, dated, and knows the models of the presets', async (t) => {
  for (const entry of builtInPrices) t.ok(Value.Check(Price, entry), `${entry.provider}:${entry.model}`)
  t.equal(findPriceFault(builtInPrices), undefined)
  const prices = createPrices([])
  t.equal(prices.costOf({ provider: 'demo', model: 'fast' }, usageOf(1000, 1000), at), '0')
  const million = usageOf(1_000_000, 1_000_000)
  t.equal(prices.costOf({ provider: 'openai', model: 'gpt-5-mini' }, million, at), '2.25')
  t.equal(prices.costOf({ provider: 'openai', model: 'gpt-5-mini-2025-08-07' }, million, at), '2.25')
  t.equal(prices.costOf({ provider: 'openai', model: 'gpt-5-pro' }, million, at), undefined)
  t.equal(prices.costOf({ provider: 'anthropic', model: 'claude-haiku-4-5-20251001' }, million, at), '6')
  for (const [provider, { models = {} }] of Object.entries(providerPresets)) {
    for (const model of Object.values<string>(models))
      t.ok(prices.perToken({ provider, model }, at), `${provider}:${model}`)
  }
  const providers = new Set(builtInPrices.map(({ provider }) => provider).filter((name) => name !== 'demo'))
  t.strictSame([...providers].sort(), Object.keys(builtInPriceDays), 'each provider has the day of its prices')
})

t.test('docs/models.md names every provider, and the days of the built-in prices', async (t) => {
  const text = readFileSync(new URL('../../docs/models.md', import.meta.url), 'utf8')
  for (const name of Object.keys(providerPresets)) t.match(text, `\`${name}\``)
  for (const [name, day] of Object.entries(builtInPriceDays)) t.match(text, `| \`${name}\` | ${day} |`)
})

t.test('a list with a fault is told from one without', async (t) => {
  t.equal(findPriceFault([price(), price({ from: '2026-01-01' }), price({ model: '*' })]), undefined)
  t.match(findPriceFault([price(), price({ input: '9' })]), { index: 1 })
  t.match(findPriceFault([price({ from: '2026-02-30' })]), { index: 0 })
  t.match(findPriceFault([price({ until: '2026-13-01' })]), { index: 0 })
  t.match(findPriceFault([price({ from: '2026-01-02', until: '2026-01-02' })]), { index: 0 })
})
