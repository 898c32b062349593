/**
 * What is added to the time to the first token: from the viewer's first packet to the token at the viewer, less what the
 * provider took for it. New conversations of new visitors, on new connections; the session, the message and the run are
 * stored before the provider is asked, where a contender stores anything.
 */
import { runLanes } from '../lanes.ts'
import { quantile } from '../replies.ts'
import { type Bench, compare } from '../rounds.ts'
import { startWarm } from '../warm.ts'
import { findDisturbance } from '../watch.ts'

/** One after the other with an upstream that answers at once; a few at once with a slow one, or it would take minutes. */
const settings = [
  { firstMs: 0, lanes: 1, replies: 300 },
  { firstMs: 200, lanes: 8, replies: 200 },
] as const
const short = { tokens: 5, intervalMs: 5, replyMsMax: 10_000 } as const
const quickReplies = 80

export async function measureFirstToken(bench: Bench): Promise<void> {
  const contenders = await startWarm(bench, bench.choose(['gateway', 'gateway-postgres', 'pipe', 'wired']))
  for (const { firstMs, lanes, replies } of settings) {
    const load = { ...short, firstMs, lanes, replies: bench.quick ? quickReplies : replies }
    await compare(
      bench,
      'first-token',
      `upstream ${firstMs} ms`,
      contenders.map((contender) => ({
        name: contender.name,
        run: async () => {
          const { told, faults, watched } = await runLanes(bench.stage, contender, load)
          const added = told.map(({ viewer, seen, requestedAt, sentAt }) => {
            const providerMs = (sentAt[0] as number) - requestedAt
            return (seen.seenAt[0] as number) - viewer.startedAt - providerMs
          })
          const ascending = Float64Array.from(added).sort()
          return {
            figures: {
              addedP50Ms: quantile(ascending, 0.5),
              addedP99Ms: quantile(ascending, 0.99),
              replies: added.length,
            },
            faults,
            disturbance: findDisturbance(watched),
          }
        },
      })),
    )
  }
  for (const contender of contenders) await contender.end()
}
