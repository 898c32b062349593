/**
 * What replies cost as a whole. Burst: replies of 2000 tokens as fast as the sockets take them, everybody. Lengths: replies
 * from 100 to 20 000 tokens, where a price that grows with what is there already would show.
 *
 * The lanes send a token each 1 ms, because 20 000 of them would take seven minutes at the usual pace. A whole reply has a
 * price of its own, whatever its length (accepted, stored, ended): it is told apart by comparing neighbouring lengths.
 */
import { runLanes } from '../lanes.ts'
import { costOf } from '../paced.ts'
import { type Bench, compare, type Trial } from '../rounds.ts'
import type { Contender } from '../stage.ts'
import { startWarm } from '../warm.ts'
import { findDisturbance } from '../watch.ts'

const burst = { lanes: 10, tokens: 2000, intervalMs: 0, firstMs: 0, replyMsMax: 30_000 } as const
/** The hand-wired stack is slow enough with fewer. */
const burstReplies = { usual: 100, wired: 30, quick: 20 } as const
const paced = { lanes: 10, intervalMs: 1, firstMs: 0, replyMsMax: 60_000 } as const
export const lengths = [100, 1000, 5000, 20_000] as const
/** Short replies keep the database busy, which has the load's processor. */
const latenessMsMax = 30
const lengthQuickMax = 1000
/** Of each length, unless one reply a lane is more. */
const tokensPerTrial = 80_000

export async function measureBurst(bench: Bench): Promise<void> {
  const names = bench.choose(['gateway', 'gateway-postgres', 'gateway-embedded', 'pipe', 'nginx', 'wired'])
  const contenders = await startWarm(bench, names)
  const repliesOf = ({ name }: Contender) =>
    bench.quick ? burstReplies.quick : name === 'wired' ? burstReplies.wired : burstReplies.usual
  await compare(
    bench,
    'burst',
    `${burst.tokens} tokens`,
    contenders.map((contender) => ({
      name: contender.name,
      run: () => runTrial(bench, contender, { ...burst, replies: repliesOf(contender) }),
    })),
  )
  for (const contender of contenders) await contender.end()
}

export async function measureLengths(bench: Bench): Promise<void> {
  const contenders = await startWarm(bench, bench.choose(['gateway']))
  for (const tokens of lengths.filter((length) => !bench.quick || length <= lengthQuickMax)) {
    const replies = Math.max(paced.lanes, Math.round((bench.quick ? 0.25 : 1) * (tokensPerTrial / tokens)))
    await compare(
      bench,
      'length',
      `${tokens} tokens`,
      contenders.map((contender) => ({
        name: contender.name,
        run: () => runTrial(bench, contender, { ...paced, tokens, replies }),
      })),
    )
  }
  for (const contender of contenders) await contender.end()
}

async function runTrial(bench: Bench, contender: Contender, load: Parameters<typeof runLanes>[2]): Promise<Trial> {
  const { watched, faults } = await runLanes(bench.stage, contender, load)
  const { usPerToken, postgresUsPerToken, redisUsPerToken, tokens, foreignShare, loadShare, latenessP99Ms } =
    costOf(watched)
  return {
    figures: {
      usPerToken,
      usPerReply: (watched.contenderMs * 1000) / load.replies,
      postgresUsPerToken,
      redisUsPerToken,
      tokensPerSecond: (watched.tokens * 1000) / (watched.until - watched.from),
      tokens,
      loadShare,
      foreignShare,
      latenessP99Ms,
    } as Trial['figures'],
    faults,
    // In a burst everybody is at the limit, the load too: nobody is late, because nothing is due.
    disturbance:
      load.intervalMs === 0
        ? findDisturbance({ ...watched, latenessP99Ms: 0, loadShare: 0 })
        : findDisturbance(watched, latenessMsMax),
  }
}
