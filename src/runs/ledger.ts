/**
 * What a run has used, call by call, and what that costs. A ledger belongs to one generation of a run, in the process that
 * makes it; it is written down with the commit and by nothing else, so what a process that dies had in it is estimated
 * by whoever takes the run over ({@link Ledger.addLost}). Nothing here waits.
 *
 * What counts of a call:
 * - the provider's own figures, when they are its last word: the reply was whole, or they came after the finish reason;
 * - of a reply that broke off, or was never counted: the prompt as the provider counted it, which some do at the
 *   beginning, else as it was estimated; and of what it made the larger one of the provider's count so far and of an
 *   estimate of all that it said. This is marked `estimated`;
 * - nothing, when the provider refused or failed before it said anything. A call that was stopped in that moment had been
 *   sent, and the provider was at work on the prompt: it is estimated as the prompt.
 *
 * Costs are decimal text and added exactly. When one call has no price, the cost of the run is not known: a part of it would
 * look like the whole.
 */
import type { Part, Usage } from '../log/event.ts'
import { addDecimals } from '../sessions/decimal.ts'
import type { ModelChoice } from '../upstream/plan.ts'
import { isVisible, type UpstreamEvent } from '../upstream/upstream.ts'
import { type Estimator, unitsOf, unitsOfParts } from './estimate.ts'
import type { UpstreamCall, UsageSource } from './model.ts'

/** What models cost. */
export interface Pricing {
  /**
   * @param at when the model was asked
   * @returns USD as decimal text; undefined when the price is not known
   */
  costOf(choice: ModelChoice, usage: Usage, at: Date): string | undefined
}

export interface LedgerOptions {
  readonly pricing: Pricing
  readonly estimator: Estimator
  /** Milliseconds since 1970. */
  readonly now?: () => number
}

export interface LedgerCall {
  /** Of each event of the reply, in its order. */
  see(event: UpstreamEvent): void
  /** Once; again is nothing. @param outcome `completed`, `stopped`, `interrupted`, or the code of the error */
  end(outcome: string): void
}

export interface Totals {
  /** Undefined when nothing was used. */
  readonly usage: Usage | undefined
  readonly source: UsageSource | undefined
  /** Decimal; undefined when something was used whose price is not known. */
  readonly costUsd: string | undefined
}

/** What a run's end says of what it used. */
export interface Spending {
  readonly usage: Usage | undefined
  readonly usageSource: UsageSource | undefined
  readonly costUsd: string | undefined
  readonly calls: readonly UpstreamCall[]
}

export interface LostCall {
  /** ISO 8601 with microseconds. */
  readonly startedAt: string
  readonly promptTokens: number
  /** What is known of its reply. */
  readonly parts: readonly Part[]
  readonly outcome: string
}

export interface Ledger {
  /** A provider is asked. @param promptTokens as estimated for this model */
  begin(choice: ModelChoice, promptTokens: number): LedgerCall
  /**
   * What somebody says of the models that it asked itself. The figures are cumulative, as everywhere in the port: of one
   * model the last ones count.
   */
  add(choice: ModelChoice | undefined, usage: Usage): void
  /** A call whose process died. */
  addLost(choice: ModelChoice, call: LostCall): void
  /** The calls that have ended, in the order of their ends; the first {@link callsMax} of them. */
  readonly calls: readonly UpstreamCall[]
  /** Of all that has ended, listed or not. */
  totals(): Totals
}

/** Calls that are listed with a run. A run with retries, fallbacks and steps has a few dozen. */
export const callsMax = 100

const nothing: Totals = { usage: undefined, source: undefined, costUsd: '0' }

export function createLedger({ pricing, estimator, now = Date.now }: LedgerOptions): Ledger {
  const calls: UpstreamCall[] = []
  const reported = new Map<string, Totals>()
  let ended: Totals = nothing

  function note(call: UpstreamCall, spent: Totals): void {
    ended = plus(ended, spent)
    if (calls.length < callsMax) calls.push(call)
  }

  function priced(choice: ModelChoice, usage: Usage | undefined, source: UsageSource, at: number): Totals {
    if (usage === undefined) return nothing
    return { usage, source, costUsd: pricing.costOf(choice, usage, new Date(at)) }
  }

  return {
    calls,
    begin(choice, promptTokens) {
      const startedAt = now()
      const scale = estimator.scaleOf(choice)
      let usage: Usage | undefined
      // Units of what was said, and how many of them the provider had said when it counted.
      let said = 0
      let counted = 0
      let ttftMs: number | undefined
      let isVisibleNow = false
      let hasFinished = false
      let hasEnded = false

      /** Whether what the provider has counted is all that it will. */
      function isFinal(outcome: string): boolean {
        if (usage === undefined) return false
        if (outcome !== 'completed') return hasFinished && counted === said
        // Figures from before the first word say nothing of the words, unless there are hardly any.
        return counted > 0 || usage.output_tokens >= estimator.tokensOf(choice, said)
      }

      function estimate(): Usage {
        const input = usage?.input_tokens || promptTokens
        const output = Math.max(usage?.output_tokens ?? 0, estimator.tokensOf(choice, said))
        return { ...usage, input_tokens: input, output_tokens: output, total_tokens: input + output }
      }

      function spent(outcome: string): Totals {
        if (isFinal(outcome)) return priced(choice, usage, 'provider', startedAt)
        const wasSent = isVisibleNow || usage !== undefined || atWork.has(outcome)
        return wasSent ? priced(choice, estimate(), 'estimated', startedAt) : nothing
      }

      return {
        see(event) {
          if (isVisible(event)) {
            if (!isVisibleNow) {
              isVisibleNow = true
              ttftMs = Math.max(0, now() - startedAt)
            }
            said += unitsOfEvent(event)
          } else if (event.type === 'usage') {
            usage = event.usage
            counted = said
          } else if (event.type === 'finish') hasFinished = true
        },
        end(outcome) {
          if (hasEnded) return
          hasEnded = true
          const totals = spent(outcome)
          if (totals.source === 'provider') estimator.learn(choice, promptTokens, usage?.input_tokens ?? 0, scale)
          note(
            {
              provider: choice.provider,
              model: choice.model,
              outcome,
              started_at: toIso(startedAt),
              ttft_ms: ttftMs === undefined ? null : Math.round(ttftMs),
              latency_ms: Math.round(Math.max(0, now() - startedAt)),
              ...toColumns(totals),
            },
            totals,
          )
        },
      }
    },
    add(choice, usage) {
      const key = choice === undefined ? '' : `${choice.provider}:${choice.model}`
      const costUsd = choice === undefined ? undefined : pricing.costOf(choice, usage, new Date(now()))
      reported.set(key, { usage, source: 'provider', costUsd })
    },
    addLost(choice, { startedAt, promptTokens, parts, outcome }) {
      const output = estimator.tokensOf(choice, unitsOfParts(parts))
      const usage = { input_tokens: promptTokens, output_tokens: output, total_tokens: promptTokens + output }
      const totals = priced(choice, usage, 'estimated', Date.parse(startedAt))
      note(
        {
          provider: choice.provider,
          model: choice.model,
          outcome,
          started_at: startedAt,
          ttft_ms: null,
          latency_ms: null,
          ...toColumns(totals),
        },
        totals,
      )
    },
    totals: () => [...reported.values()].reduce(plus, ended),
  }
}

export function spendingOf(ledger: Ledger): Spending {
  const { usage, source, costUsd } = ledger.totals()
  return { usage, usageSource: source, costUsd, calls: ledger.calls }
}

/** Outcomes of a call that its provider has not refused: it was answering, or about to. */
const atWork: ReadonlySet<string> = new Set(['completed', 'stopped', 'interrupted'])

function unitsOfEvent(event: UpstreamEvent): number {
  if (event.type === 'text' || event.type === 'reasoning') return unitsOf(event.text)
  if (event.type === 'tool_call') return unitsOf(event.name ?? '') + unitsOf(event.arguments)
  return 0
}

function toColumns({ usage, source, costUsd }: Totals): Pick<UpstreamCall, 'usage' | 'usage_source' | 'cost_usd'> {
  if (usage === undefined) return { usage: null, usage_source: null, cost_usd: null }
  return { usage, usage_source: source ?? null, cost_usd: costUsd ?? null }
}

function plus(a: Totals, b: Totals): Totals {
  return {
    usage: a.usage === undefined || b.usage === undefined ? (a.usage ?? b.usage) : addUsage(a.usage, b.usage),
    source: a.source === 'estimated' || b.source === 'estimated' ? 'estimated' : (a.source ?? b.source),
    costUsd: a.costUsd === undefined || b.costUsd === undefined ? undefined : addDecimals(a.costUsd, b.costUsd),
  }
}

const details = ['reasoning_tokens', 'cached_input_tokens', 'cache_write_tokens'] as const

/** The sum of two counts; what only one of them knows is of that one. */
export function addUsage(a: Usage, b: Usage): Usage {
  const sum: Usage = {
    input_tokens: addCounts(a.input_tokens, b.input_tokens),
    output_tokens: addCounts(a.output_tokens, b.output_tokens),
    total_tokens: addCounts(a.total_tokens, b.total_tokens),
  }
  for (const name of details) {
    if (a[name] !== undefined || b[name] !== undefined) sum[name] = addCounts(a[name] ?? 0, b[name] ?? 0)
  }
  return sum
}

/** A count near the largest whole number was made up by a provider; a sum beyond it would not be one any more. */
const addCounts = (a: number, b: number): number => Math.min(a + b, Number.MAX_SAFE_INTEGER)

/** With the microseconds that all times of the API have. */
const toIso = (ms: number): string => new Date(ms).toISOString().replace('Z', '000Z')
