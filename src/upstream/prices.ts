/**
 * What a call to a model costs: from a price list and the tokens that the provider counted to USD, as decimal strings.
 * Everything is computed with integers; there is no float between the list and the answer. A price that is not known gives
 * undefined and never a guess: no cost is told from no price.
 *
 * A list is plain data. Which entry counts: the site's own go before the built-in ones; of those that fit the model and
 * hold at that time, the one with the most specific pattern, then the one that began last.
 */
import type { Usage } from '../log/event.ts'
import { compareSpecificity, fitsPattern } from './pattern.ts'
import type { ModelChoice } from './plan.ts'
import { builtInPrices, type Price, priceScale } from './price-table.ts'

/** Digits behind the point of USD per token: those of a price per million, and six more. */
const tokenScale = priceScale + 6

type Rates = Pick<Price, 'input' | 'output' | 'cached_input' | 'cache_write'>

/** USD, decimal. */
export interface TokenPrice {
  readonly input: string
  readonly output: string
}

export interface Prices {
  /**
   * What a call has cost: all of its output, reasoning included, and its input, with what came from a cache or went into one
   * at prices of its own.
   * @returns exact USD as a decimal string, `0` for nothing; undefined when no price is known
   */
  costOf(choice: ModelChoice, usage: Usage, at: Date): string | undefined
  /**
   * What a token will cost, for reservations.
   * @param inputTokens how long the request will be, where long ones cost more
   * @returns undefined when no price is known
   */
  perToken(choice: ModelChoice, at: Date, inputTokens?: number): TokenPrice | undefined
}

/** @param own checked by `findPriceFault` */
export function createPrices(own: readonly Price[], builtIn: readonly Price[] = builtInPrices): Prices {
  function ratesOf(choice: ModelChoice, at: Date, inputTokens: number): Rates | undefined {
    const price = findPrice(own, choice, at) ?? findPrice(builtIn, choice, at)
    return price?.long !== undefined && inputTokens > price.long.over ? price.long : price
  }

  return {
    costOf(choice, usage, at) {
      const found = ratesOf(choice, at, usage.input_tokens)
      if (found === undefined) return undefined
      // A provider that counts more tokens from its cache than tokens is taken at its smaller word.
      const cached = Math.min(usage.cached_input_tokens ?? 0, usage.input_tokens)
      const written = Math.min(usage.cache_write_tokens ?? 0, usage.input_tokens - cached)
      const cost =
        BigInt(usage.input_tokens - cached - written) * scaled(found.input) +
        BigInt(cached) * scaled(found.cached_input ?? found.input) +
        BigInt(written) * scaled(found.cache_write ?? found.input) +
        BigInt(usage.output_tokens) * scaled(found.output)
      return toDecimal(cost, tokenScale)
    },
    perToken(choice, at, inputTokens = 0) {
      const found = ratesOf(choice, at, inputTokens)
      if (found === undefined) return undefined
      return { input: toDecimal(scaled(found.input), tokenScale), output: toDecimal(scaled(found.output), tokenScale) }
    },
  }
}

export interface PriceFault {
  /** Of the entry. */
  readonly index: number
  /** Goes on from the entry's name: `has …`. */
  readonly problem: string
}

/** What a schema cannot tell of a list. */
export function findPriceFault(prices: readonly Price[]): PriceFault | undefined {
  const seen = new Set<string>()
  for (const [index, { provider, model, from, until }] of prices.entries()) {
    const key = JSON.stringify([provider, model, from])
    if (seen.has(key)) return { index, problem: 'has the provider, model and day of an entry before it' }
    seen.add(key)
    if (!isDay(from)) return { index, problem: 'has a `from` that is no day' }
    if (!isDay(until)) return { index, problem: 'has an `until` that is no day' }
    if (from !== undefined && until !== undefined && from >= until) {
      return { index, problem: 'has an `until` that is not after its `from`' }
    }
  }
  return undefined
}

function findPrice(prices: readonly Price[], { provider, model }: ModelChoice, at: Date): Price | undefined {
  const today = at.toISOString().slice(0, 10)
  return prices
    .filter((price) => price.provider === provider && fitsPattern(price.model, model) && holdsOn(price, today))
    .sort((a, b) => compareSpecificity(a.model, b.model) || (b.from ?? '').localeCompare(a.from ?? ''))[0]
}

function holdsOn({ from, until }: Price, today: string): boolean {
  return (from === undefined || from <= today) && (until === undefined || today < until)
}

function isDay(text: string | undefined): boolean {
  if (text === undefined) return true
  const date = new Date(`${text}T00:00:00Z`)
  // The 31st of February is the 3rd of March to Date.
  return !Number.isNaN(date.getTime()) && date.toISOString().startsWith(text)
}

/** A price as an integer: 10^priceScale of it are one USD. */
function scaled(price: string): bigint {
  const [whole = '', fraction = ''] = price.split('.')
  return BigInt(whole + fraction.padEnd(priceScale, '0'))
}

function toDecimal(value: bigint, scale: number): string {
  const digits = value.toString().padStart(scale + 1, '0')
  const fraction = digits.slice(-scale).replace(/0+$/, '')
  return digits.slice(0, -scale) + (fraction === '' ? '' : `.${fraction}`)
}
