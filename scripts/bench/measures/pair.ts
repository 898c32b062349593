/**
 * Two processes against one, on the same stores, each with the same load: what a token costs in both together. Two that pay no
 * more for a token than one serve twice as many, as long as each has a processor and the stores keep up. That is what is
 * measured here, and not the throughput: both run on the contender's processor, because the load needs the others. Not one
 * load shared out to two: half a load is dearer by the token, on one process as on two.
 */
import { runPaced } from '../paced.ts'
import { type Bench, compare } from '../rounds.ts'
import { warmUp } from '../warm.ts'

const each = 200
const load = { warmMs: 1000, windowMs: 5000 } as const
const windowMsQuick = 2000

export async function measurePair(bench: Bench): Promise<void> {
  const { windowMs } = bench.quick ? { windowMs: windowMsQuick } : load
  const both = await bench.stage.startTwo()
  for (const contender of both) await warmUp(bench, contender)
  await compare(bench, 'pair', `${each} streams each`, [
    { name: 'one process', run: () => runPaced(bench.stage, both.slice(0, 1), { ...load, streams: each, windowMs }) },
    { name: 'two processes', run: () => runPaced(bench.stage, both, { ...load, streams: 2 * each, windowMs }) },
  ])
  for (const contender of both.toReversed()) await contender.end()
}
