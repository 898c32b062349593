/**
 * What a token costs at 50 tokens a second, by number of streams: processor time of the contender's process for each token,
 * and of Postgres and Redis beside it. Everybody at 50 streams, which the hand-wired stack holds too; everybody else at 200.
 */
import type { ContenderName } from '../contenders.ts'
import { runPaced } from '../paced.ts'
import { type Bench, compare } from '../rounds.ts'
import { startWarm } from '../warm.ts'

const everybody: readonly ContenderName[] = [
  'gateway',
  'gateway-postgres',
  'gateway-embedded',
  'pipe',
  'nginx',
  'wired',
]
const gatewayAndPipe: readonly ContenderName[] = ['gateway', 'pipe']
const entrantsAt: ReadonlyMap<number, readonly ContenderName[]> = new Map([
  [10, gatewayAndPipe],
  [50, everybody],
  [200, everybody.filter((name) => name !== 'wired')],
  [400, gatewayAndPipe],
  [800, gatewayAndPipe],
])
/** With few streams the window is longer: there must be tokens enough. */
const tokensMin = 2500

export async function measureCost(bench: Bench): Promise<void> {
  const counts = bench.streams ?? (bench.quick ? [50, 200] : [...entrantsAt.keys()])
  const settings = counts.map((streams) => ({ streams, names: bench.choose(entrantsAt.get(streams) ?? everybody) }))
  const contenders = await startWarm(bench, [...new Set(settings.flatMap(({ names }) => names))])
  for (const { streams, names } of settings) {
    const windowMs = Math.max(bench.quick ? 2000 : 4000, (tokensMin / streams) * 20)
    const load = { streams, warmMs: bench.quick ? 500 : 1000, windowMs }
    await compare(
      bench,
      'cost',
      `${streams} streams`,
      contenders
        .filter(({ name }) => names.includes(name))
        .map((contender) => ({ name: contender.name, run: () => runPaced(bench.stage, [contender], load) })),
    )
  }
  for (const contender of contenders) await contender.end()
}
