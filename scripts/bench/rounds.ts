/**
 * Rounds: everybody in turn (A B C A B C), so that what changes on a machine in the meantime changes for all. A trial that was
 * disturbed is repeated, a bounded number of times; then the machine is not fit to measure on, which fails the run. A trial
 * with a fault (something lost, doubled or not stored) fails it too and is not repeated: it may happen once in a hundred
 * rounds, and must not.
 */
import type { ContenderName } from './contenders.ts'
import type { Machine } from './machine.ts'
import { median } from './replies.ts'
import type { Stage } from './stage.ts'

/** What was measured, by name; units are in the names. */
export type Figures = Readonly<Record<string, number>>

export interface Trial {
  readonly figures: Figures
  readonly faults: readonly string[]
  /** Why it does not count. */
  readonly disturbance: string | undefined
}

export interface Entrant {
  readonly name: string
  readonly run: () => Promise<Trial>
}

/** Those that ran in turn, under the same conditions. */
export interface Comparison {
  readonly measure: string
  /** Which of that measure's settings. */
  readonly setting: string
  readonly measuredAt: string
  readonly machine: Machine
  /** Of each entrant, round by round; null where no trial of the round counted. */
  readonly rounds: Readonly<Record<string, readonly (Figures | null)[]>>
  readonly faults: readonly string[]
  /** Trials that did not count, with the reason. */
  readonly repeated: readonly string[]
}

/** What is asked of the benchmark as a whole. */
export interface Bench {
  readonly stage: Stage
  readonly machine: Machine
  readonly rounds: number
  /** A look, not a result: shorter windows and fewer settings. */
  readonly quick: boolean
  /** @returns those of `names` that are there and wanted */
  choose<Name extends ContenderName>(names: readonly Name[]): readonly Name[]
  /** Numbers of streams to use instead of the usual ones. */
  readonly streams: readonly number[] | undefined
  /** Environment of the contenders, over that of the stage. */
  readonly environment: Readonly<Record<string, string>>
  /** Aborted when no more trials are wanted. */
  readonly signal: AbortSignal
  readonly say: (line: string) => void
  readonly keep: (comparison: Comparison) => void
  /** What was kept until now, by this run or one before. */
  readonly readKept: () => readonly Comparison[]
}

/** Of one trial. */
const attemptsMax = 4
const faultsSaidMax = 3

/** @throws the reason of `bench.signal`, between two trials */
export async function compare(
  bench: Bench,
  measure: string,
  setting: string,
  entrants: readonly Entrant[],
  rounds = bench.rounds,
): Promise<Comparison> {
  const figures = new Map<string, (Figures | null)[]>(entrants.map(({ name }) => [name, []]))
  const faults: string[] = []
  const repeated: string[] = []
  for (let round = 1; round <= rounds; round += 1) {
    for (const { name, run } of entrants) {
      let counted: Figures | null = null
      for (let attempt = 1; attempt <= attemptsMax; attempt += 1) {
        bench.signal.throwIfAborted()
        const trial = await run()
        const place = `${measure} ${setting}, round ${round}, ${name}`
        bench.say(`${place}: ${describe(trial.figures)}`)
        if (trial.faults.length > 0) {
          const more = trial.faults.length > faultsSaidMax ? ` and ${trial.faults.length - faultsSaidMax} more` : ''
          faults.push(`${place}: ${trial.faults.slice(0, faultsSaidMax).join('; ')}${more}`)
          bench.say(`  FAULT ${faults.at(-1)}`)
          break
        }
        if (trial.disturbance === undefined) {
          counted = trial.figures
          break
        }
        repeated.push(`${place}: ${trial.disturbance}`)
        bench.say(`  does not count: ${trial.disturbance}`)
        if (attempt === attemptsMax) faults.push(`${place}: disturbed ${attemptsMax} times`)
      }
      // In its place, so that neighbours stay neighbours.
      figures.get(name)?.push(counted)
    }
  }
  const comparison: Comparison = {
    measure,
    setting,
    measuredAt: new Date().toISOString(),
    machine: bench.machine,
    rounds: Object.fromEntries(figures),
    faults,
    repeated,
  }
  bench.keep(comparison)
  return comparison
}

/** The median over the rounds of one figure; undefined when it was not measured. */
export function medianOf(comparison: Comparison | undefined, entrant: string, figure: string): number | undefined {
  const values = (comparison?.rounds[entrant] ?? [])
    .map((figures) => figures?.[figure])
    .filter((value) => value !== undefined)
  return values.length === 0 ? undefined : median(values)
}

/** The median over the rounds of a figure of one entrant in that of another, who ran next to it. */
export function ratioOf(
  comparison: Comparison | undefined,
  one: string,
  other: string,
  figure: string,
): number | undefined {
  const others = comparison?.rounds[other] ?? []
  const ratios = (comparison?.rounds[one] ?? []).flatMap((figures, round) => {
    const [value, base] = [figures?.[figure], others[round]?.[figure]]
    return value === undefined || base === undefined ? [] : [value / base]
  })
  return ratios.length === 0 ? undefined : median(ratios)
}

function describe(figures: Figures): string {
  return Object.entries(figures)
    .map(([name, value]) => `${name} ${Number.isInteger(value) ? value : value.toFixed(2)}`)
    .join(' · ')
}
