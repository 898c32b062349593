/**
 * How many streams of 50 tokens a second one process on one processor holds: the most at which the added lag of 99 of 100
 * tokens is 100 ms or less and nothing is lost. It begins at half of what the price of a token allows, goes up by a seventh
 * until it fails, and in later rounds begins where the last one ended.
 *
 * Whether the load, which has the other processor together with the stores, keeps up is watched here too: when it does not,
 * the contender held more than could be tried, and the figure is a lower bound.
 */
import { type Paced, runPaced } from '../paced.ts'
import { type Bench, compare, type Trial } from '../rounds.ts'
import type { Contender } from '../stage.ts'
import { startWarm } from '../warm.ts'

export const lagP99MsMax = 100
const probe = { streams: 50, warmMs: 500, windowMs: 2000 } as const
const window = { warmMs: 1500, windowMs: 4000 } as const
/** From one step to the next. */
const stepUp = 1.15
/** Of one round; it never needs as many. */
const stepsMax = 12
/** What nothing on this scale passes. */
const streamsMax = 4000

export async function measureCapacity(bench: Bench): Promise<void> {
  for (const contender of await startWarm(bench, bench.choose(['gateway', 'gateway-postgres', 'pipe', 'wired']))) {
    let from = await guess(bench, contender)
    await compare(
      bench,
      'capacity',
      contender.name,
      [
        {
          name: contender.name,
          run: async () => {
            const trial = await climb(bench, contender, from)
            if (trial.figures.streams !== undefined && trial.figures.streams > 0) from = trial.figures.streams
            return trial
          },
        },
      ],
      bench.quick ? 1 : bench.rounds,
    )
    await contender.end()
  }
}

/** @returns half of the streams that the price of a token allows */
async function guess(bench: Bench, contender: Contender): Promise<number> {
  const { watched } = await runPaced(bench.stage, [contender], probe)
  return roundTen((0.5 * probe.streams) / watched.contenderShare)
}

async function climb(bench: Bench, contender: Contender, from: number): Promise<Trial> {
  let held = 0
  let heldLagMs = 0
  let failed = Number.POSITIVE_INFINITY
  let lowerBound = 0
  for (let step = 0, streams = from; step < stepsMax; step += 1) {
    const paced = await runPaced(bench.stage, [contender], { streams, ...window })
    const holds = paced.faults.length === 0 && paced.lagP99Ms <= lagP99MsMax
    bench.say(`  ${streams} streams: ${holds ? 'held' : 'not held'}, ${sayPaced(paced)}`)
    if (holds) {
      held = streams
      heldLagMs = paced.lagP99Ms
    } else {
      // Whoever is loaded by somebody who is late himself was not tried.
      if (paced.disturbance !== undefined) lowerBound = 1
      else lowerBound = 0
      failed = streams
    }
    const next = holds ? roundTen(streams * stepUp) : roundTen(streams / stepUp)
    if ((holds && next >= failed) || (!holds && next <= held) || next < 10 || next > streamsMax) break
    streams = next
  }
  return {
    figures: { streams: held, lagP99Ms: heldLagMs, lowerBound },
    faults: held === 0 ? ['not even ten streams were held'] : [],
    disturbance: undefined,
  }
}

const roundTen = (streams: number): number => Math.max(10, Math.round(streams / 10) * 10)

function sayPaced({ lagP99Ms, watched, faults, disturbance }: Paced): string {
  const share = Math.round(watched.contenderShare * 100)
  const words = [`lag p99 ${lagP99Ms.toFixed(1)} ms`, `${share} % of its processor`]
  if (faults.length > 0) words.push(`${faults.length} faults, as ${faults[0]}`)
  if (disturbance !== undefined) words.push(disturbance)
  return words.join(', ')
}
