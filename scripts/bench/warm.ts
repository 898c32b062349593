/**
 * Starts contenders and warms each with the same replies, which do not count: a process that has just started compiles and
 * opens its connections while it is measured. What goes wrong meanwhile is said and no fault; what is counted comes later.
 */
import type { ContenderName } from './contenders.ts'
import { runPaced } from './paced.ts'
import type { Bench } from './rounds.ts'
import type { Contender } from './stage.ts'

const load = { streams: 100, warmMs: 0, windowMs: 4000 } as const
const loadQuick = { streams: 50, warmMs: 0, windowMs: 2000 } as const

export async function startWarm(bench: Bench, names: readonly ContenderName[]): Promise<readonly Contender[]> {
  const contenders: Contender[] = []
  for (const name of names) {
    const contender = await bench.stage.start(name, bench.environment)
    await warmUp(bench, contender)
    contenders.push(contender)
  }
  return contenders
}

export async function warmUp(bench: Bench, contender: Contender): Promise<void> {
  const { faults } = await runPaced(bench.stage, [contender], bench.quick ? loadQuick : load)
  if (faults.length > 0)
    bench.say(`warming up ${contender.name}: ${faults.length} replies with a fault, as ${faults[0]}`)
}
