/**
 * How many streams of 50 tokens a second one process on one processor holds: the most at which the added lag of 99 of 100
 * tokens is 100 ms or less and nothing is lost. It begins at half of what the price of a token allows, goes up until a number
 * is not held twice in a row, and then looks between the two, until they are near enough. A later round begins where the one
 * before has ended.
 *
 * The load has the other processors together with the stores. Where it was late itself when a number was not held, the
 * contender may hold more than could be tried, and that is said of the figure.
 */
import { type Paced, runPaced } from '../paced.ts'
import { type Bench, compare, type Trial } from '../rounds.ts'
import type { Contender } from '../stage.ts'
import { startWarm } from '../warm.ts'

export const lagP99MsMax = 100
const probe = { streams: 50, warmMs: 500, windowMs: 2000 } as const
const window = { warmMs: 1500, windowMs: 4000 } as const
/** From one number to the next, until one is not held. */
const stepUp = 1.4
const stepDown = 0.7
/** Between what is held and what is not, in the end. */
export const nearEnough = 1.16
const triesMax = 2
/** Of one round; it takes about five. */
const [stepsMax, stepsMaxQuick] = [12, 2] as const
const [streamsMin, streamsMax] = [10, 4000] as const

export async function measureCapacity(bench: Bench): Promise<void> {
  const contenders = await startWarm(bench, bench.choose(['gateway', 'gateway-postgres', 'pipe', 'wired']))
  const starts = new Map<Contender, number>()
  for (const contender of contenders) starts.set(contender, await guess(bench, contender))
  // One comparison for each, because each is looked at by itself and can be measured alone.
  const split: Bench = {
    ...bench,
    keep: (all) => {
      for (const { name } of contenders) {
        const faults = all.faults.filter((fault) => fault.includes(`, ${name}: `))
        bench.keep({ ...all, setting: name, rounds: { [name]: all.rounds[name] ?? [] }, faults, repeated: [] })
      }
    },
  }
  await compare(
    split,
    'capacity',
    '50 tokens a second',
    contenders.map((contender) => ({
      name: contender.name,
      run: async () => {
        const trial = await climb(bench, contender, starts.get(contender) ?? streamsMin)
        starts.set(contender, Math.max(streamsMin, trial.figures.streams ?? 0))
        return trial
      },
    })),
  )
  for (const contender of contenders) await contender.end()
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
  let loadWasLate = false
  let streams = from
  for (let step = 0; step < (bench.quick ? stepsMaxQuick : stepsMax); step += 1) {
    const { holds, paced } = await tryHold(bench, contender, streams)
    if (holds) {
      held = streams
      heldLagMs = paced.lagP99Ms
    } else {
      failed = streams
      loadWasLate = paced.disturbance !== undefined
    }
    if (failed <= Math.max(streamsMin, held * nearEnough) || held >= streamsMax) break
    streams = choose(held, failed)
    if (streams === held || streams === failed) break
  }
  return {
    figures: { streams: held, lagP99Ms: heldLagMs, loadWasLate: loadWasLate ? 1 : 0 },
    faults: held === 0 ? [`not even ${streamsMin} streams were held`] : [],
    disturbance: undefined,
  }
}

function choose(held: number, failed: number): number {
  if (held === 0) return roundTen(failed * stepDown)
  return roundTen(failed === Number.POSITIVE_INFINITY ? held * stepUp : Math.sqrt(held * failed))
}

async function tryHold(bench: Bench, contender: Contender, streams: number) {
  for (let attempt = 1; ; attempt += 1) {
    const paced = await runPaced(bench.stage, [contender], { streams, ...window })
    const holds = paced.faults.length === 0 && paced.lagP99Ms <= lagP99MsMax
    bench.say(`  ${contender.name}, ${streams} streams: ${holds ? 'held' : 'not held'}, ${describe(paced)}`)
    if (holds || attempt === triesMax) return { holds, paced }
  }
}

const roundTen = (streams: number): number => Math.max(streamsMin, Math.round(streams / 10) * 10)

function describe({ lagP99Ms, watched, faults, disturbance }: Paced): string {
  const share = Math.round(watched.contenderShare * 100)
  const words = [`lag p99 ${lagP99Ms.toFixed(1)} ms`, `${share} % of its processor`]
  if (faults.length > 0) words.push(`${faults.length} faults, as ${faults[0]}`)
  if (disturbance !== undefined) words.push(disturbance)
  return words.join(', ')
}
