/**
 * What a price list is made of, and the built-in one: list prices of well-known models, in USD per million tokens of text,
 * as far as they are known for sure. They age: the day for which each provider's are known stands below, and a site's own
 * prices go before them.
 *
 * What is left out on purpose, because a wrong cost is worse than none: prices by the hour of the day (DeepSeek), fees for
 * each request (Perplexity), offers that end on an unknown day, names that move from model to model (`…-latest`),
 * faster and slower tiers of service, and whatever a reseller or one's own server may ask.
 */
import { type Static, Type } from 'typebox'

/** Digits behind the point of a price per million tokens. */
export const priceScale = 9

const decimal = Type.String({
  pattern: `^(0|[1-9]\\d{0,5})(\\.\\d{1,${priceScale}})?$`,
  description: 'USD per million tokens, a decimal string such as "0.25"',
})
const day = Type.String({ pattern: '^\\d{4}-\\d{2}-\\d{2}$', description: 'a day such as 2026-11-01, in UTC' })

const ratesSchema = {
  input: decimal,
  output: decimal,
  cached_input: Type.Optional(decimal),
  cache_write: Type.Optional(decimal),
}

/** What one model costs. Absent: input that comes from a cache, or goes into one, costs what input costs. */
export const Price = Type.Object(
  {
    provider: Type.String({ minLength: 1, maxLength: 32 }),
    model: Type.String({ minLength: 1, maxLength: 200, description: 'a name, or a pattern with *' }),
    ...ratesSchema,
    /** The first day on which it holds. */
    from: Type.Optional(day),
    /** The first day on which it does not hold any more. */
    until: Type.Optional(day),
    /** Instead, for the whole of a request whose input has more than `over` tokens. */
    long: Type.Optional(
      Type.Object(
        { over: Type.Integer({ minimum: 1, maximum: 1_000_000_000 }), ...ratesSchema },
        { additionalProperties: false },
      ),
    ),
  },
  { additionalProperties: false },
)
export type Price = Static<typeof Price>

/** The last day on which each provider's prices are known to have been so. */
export const builtInPriceDays = {
  anthropic: '2026-10-16',
  gemini: '2026-10-07',
  groq: '2026-05-27',
  mistral: '2026-08-27',
  openai: '2026-09-18',
  xai: '2026-09-29',
} as const

/** Input, output, cached input, cache write. */
type Row = readonly [input: string, output: string, cachedInput?: string, cacheWrite?: string]

function rates([input, output, cachedInput, cacheWrite]: Row) {
  return {
    input,
    output,
    ...(cachedInput === undefined ? {} : { cached_input: cachedInput }),
    ...(cacheWrite === undefined ? {} : { cache_write: cacheWrite }),
  }
}

/** By name alone: a shorter name is the beginning of dearer ones (`gpt-5`, `gpt-5-pro`). */
function named(provider: string, model: string, row: Row, more: Pick<Price, 'from' | 'until' | 'long'> = {}): Price {
  return { provider, model, ...rates(row), ...more }
}

/** Under its name and as a snapshot: the name and the day, `gpt-5-2025-08-07` or `claude-opus-4-5-20251101`. */
function dated(provider: string, model: string, row: Row, more: Pick<Price, 'from' | 'until' | 'long'> = {}): Price[] {
  return [named(provider, model, row, more), named(provider, `${model}-20*`, row, more)]
}

/** What a request with more input than that costs instead. */
function above(over: number, row: Row): Pick<Price, 'long'> {
  return { long: { over, ...rates(row) } }
}

export const builtInPrices: readonly Price[] = [
  named('demo', '*', ['0', '0']),

  ...dated('openai', 'gpt-5.5', ['5', '30', '0.5'], above(272_000, ['10', '45', '1'])),
  ...dated('openai', 'gpt-5.4', ['2.5', '15', '0.25'], above(272_000, ['5', '22.5', '0.5'])),
  ...dated('openai', 'gpt-5.4-mini', ['0.75', '4.5', '0.075']),
  ...dated('openai', 'gpt-5.4-nano', ['0.2', '1.25', '0.02']),
  ...dated('openai', 'gpt-5.2', ['1.75', '14', '0.175']),
  ...dated('openai', 'gpt-5.1', ['1.25', '10', '0.125']),
  ...dated('openai', 'gpt-5', ['1.25', '10', '0.125']),
  ...dated('openai', 'gpt-5-mini', ['0.25', '2', '0.025']),
  ...dated('openai', 'gpt-5-nano', ['0.05', '0.4', '0.005']),
  ...dated('openai', 'gpt-4.1', ['2', '8', '0.5']),
  ...dated('openai', 'gpt-4.1-mini', ['0.4', '1.6', '0.1']),
  ...dated('openai', 'gpt-4.1-nano', ['0.1', '0.4', '0.025']),
  named('openai', 'gpt-4o', ['2.5', '10', '1.25']),
  ...dated('openai', 'gpt-4o-mini', ['0.15', '0.6', '0.075']),
  ...dated('openai', 'o3', ['2', '8', '0.5']),
  ...dated('openai', 'o4-mini', ['1.1', '4.4', '0.275']),

  ...dated('anthropic', 'claude-fable-5-1', ['10', '50', '0.25', '12.5']),
  ...dated('anthropic', 'claude-fable-5', ['10', '50', '1', '12.5']),
  ...dated('anthropic', 'claude-opus-5-5', ['4', '20', '0.2', '5']),
  ...dated('anthropic', 'claude-opus-5', ['5', '25', '0.5', '6.25']),
  ...dated('anthropic', 'claude-opus-4-8', ['5', '25', '0.5', '6.25']),
  ...dated('anthropic', 'claude-opus-4-7', ['5', '25', '0.5', '6.25']),
  ...dated('anthropic', 'claude-opus-4-6', ['5', '25', '0.5', '6.25']),
  ...dated('anthropic', 'claude-opus-4-5', ['5', '25', '0.5', '6.25']),
  ...dated('anthropic', 'claude-sonnet-5-5', ['2', '10', '0.2', '2.5'], { until: '2026-10-07' }),
  ...dated('anthropic', 'claude-sonnet-5-5', ['2', '10', '0.1', '2.5'], { from: '2026-10-07' }),
  ...dated('anthropic', 'claude-sonnet-5', ['2', '10', '0.2', '2.5']),
  ...dated('anthropic', 'claude-sonnet-4-5', ['3', '15', '0.3', '3.75'], above(200_000, ['6', '22.5', '0.6', '7.5'])),
  ...dated('anthropic', 'claude-haiku-5-5', ['0.1', '0.5', '0.01', '0.125'], {
    from: '2026-10-07',
    ...above(100_000, ['0.5', '2.5', '0.05', '0.625']),
  }),
  ...dated('anthropic', 'claude-haiku-4-5', ['1', '5', '0.1', '1.25']),

  named('gemini', 'gemini-3.6-flash', ['1.5', '7.5', '0.15']),
  named('gemini', 'gemini-3.5-flash', ['1.5', '9', '0.15']),
  named('gemini', 'gemini-3.5-flash-lite', ['0.3', '2.5', '0.03']),
  named('gemini', 'gemini-3.1-pro-preview', ['2', '12', '0.2'], above(200_000, ['4', '18', '0.4'])),
  named('gemini', 'gemini-2.5-pro', ['1.25', '10', '0.125'], above(200_000, ['2.5', '15', '0.25'])),
  named('gemini', 'gemini-2.5-flash', ['0.3', '2.5', '0.03']),
  named('gemini', 'gemini-2.5-flash-lite', ['0.1', '0.4', '0.01']),

  named('groq', 'openai/gpt-oss-120b', ['0.15', '0.6', '0.075']),

  named('mistral', 'mistral-medium-3-5', ['1.5', '7.5']),
  named('mistral', 'mistral-large-2512', ['0.5', '1.5']),

  named('xai', 'grok-4.7', ['2', '6', '0.5'], above(200_000, ['4', '12', '1'])),
  named('xai', 'grok-4.6', ['2', '6', '0.5'], above(200_000, ['4', '12', '1'])),
  named('xai', 'grok-4.3', ['1.25', '2.5', '0.2'], above(200_000, ['2.5', '5', '0.4'])),
]
