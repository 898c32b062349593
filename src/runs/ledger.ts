/** What the calls of a run have used. */
import type { Usage } from '../log/event.ts'
import type { ModelChoice } from '../upstream/plan.ts'
import type { UpstreamEvent } from '../upstream/upstream.ts'
import type { UpstreamCall } from './model.ts'

export interface LedgerCall {
  see(event: UpstreamEvent): void
  end(outcome: string): void
}

export interface Ledger {
  begin(choice: ModelChoice, promptTokens: number): LedgerCall
  add(choice: ModelChoice | undefined, usage: Usage): void
  readonly calls: readonly UpstreamCall[]
  totals(): {
    readonly usage: Usage | undefined
    readonly source: 'provider' | 'estimated' | undefined
    readonly costUsd: string | undefined
  }
}

/** Counts what providers say, and no money. */
export function createLedger(): Ledger {
  const used: Usage[] = []
  return {
    begin() {
      let usage: Usage | undefined
      return {
        see(event) {
          if (event.type === 'usage') usage = event.usage
        },
        end() {
          if (usage !== undefined) used.push(usage)
        },
      }
    },
    add: (_choice, usage) => void used.push(usage),
    calls: [],
    totals: () => ({ usage: used.at(-1), source: used.length === 0 ? undefined : 'provider', costUsd: undefined }),
  }
}
