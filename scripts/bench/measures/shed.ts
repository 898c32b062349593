/**
 * What becomes of twice the load that one process holds: replies are asked for at a steady rate, of which so many would be
 * under way at once if none was refused. With load shedding as it is by default and without any, in turn, each time in a
 * new process. Counted are the replies that were held (accepted, whole at the viewer, and stored) and those that were
 * refused, and how late the tokens of the held ones came.
 *
 * The gateway has a part of its processor, and processes that never pause have the rest. On a machine where the load and the
 * stores share a processor, they would be late before it is, and that would be taken for its own lateness; and it is what a
 * process has among others.
 *
 * The rate is steady because a crowd that comes within a second is another question: those are accepted or not before
 * anybody knows what they will cost. Nobody who is refused comes back, so that what is offered stays the same.
 *
 * A refusal is no fault, whether the process says that it is late or the gate before the database that too many wait
 * there. Any other answer is one, and so is whatever is lost of a reply that was accepted, an end that does not come in
 * time, and a reply that was refused as overloaded and yet asked for upstream, or without a word on when to come back.
 */
import { intervalMs, sleepUntil } from '../paced.ts'
import type { Provider } from '../provider.ts'
import { checkReplies, openReply, quantile, readLags, untilEnded } from '../replies.ts'
import { type Bench, compare, type Entrant, medianOf, type Trial } from '../rounds.ts'
import type { Contender, Occupants } from '../stage.ts'
import type { Viewer } from '../viewers.ts'
import { warmUp } from '../warm.ts'
import { findDisturbance, watch } from '../watch.ts'

/** By the name of each in the tables. Set to nothing it is what an operator gets who has said nothing. */
const variants: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  'with load shedding': { OVERLOAD_MS: '' },
  'without (`OVERLOAD_MS=0`)': { OVERLOAD_MS: '0' },
}
const overload = 2
/** What one process is taken to hold where that was not measured. */
const capacityUnknown = 400
/** With the gateway on its processor, each of which gets as much of it. */
const occupantsCount = 3
/** Of a processor. */
const processorShare = 1 / (1 + occupantsCount)
/** One after the other, so that they do not end in step. */
const replyMs = [12_000, 18_000, 14_000, 20_000, 16_000] as const
const replyMsMean = replyMs.reduce((sum, ms) => sum + ms, 0) / replyMs.length
/** Until as many come as end. */
const growMs = Math.max(...replyMs)
const [windowMsUsual, windowMsQuick] = [20_000, 6000] as const
/** Behind the window, for the last replies. A process that has fallen far behind needs it. */
const endMsMax = 60_000
/** What is measured is late by much more; the tables say how late the provider was. */
const latenessMsMax = 50

export async function measureShed(bench: Bench): Promise<void> {
  if (bench.choose(['gateway']).length === 0) return
  const held = (capacityOf(bench) ?? capacityUnknown) * processorShare
  const counts = bench.streams ?? [Math.round(overload * held)]
  const entrants = counts.flatMap((streams) =>
    Object.entries(variants).map(
      ([name, environment]): Entrant => ({
        name: `${streams} streams, ${name}`,
        run: () => offerToNew(bench, environment, streams),
      }),
    ),
  )
  await compare(bench, 'shed', 'steady arrivals', entrants)
}

const capacityOf = (bench: Bench): number | undefined =>
  medianOf(
    bench.readKept().find(({ measure, setting }) => measure === 'capacity' && setting === 'gateway'),
    'gateway',
    'streams',
  )

async function offerToNew(bench: Bench, environment: Bench['environment'], streams: number): Promise<Trial> {
  const contender = await bench.stage.start('gateway', { ...bench.environment, ...environment })
  try {
    await warmUp(bench, contender)
    const occupants = bench.stage.occupy(occupantsCount)
    return await offer(bench, contender, streams, occupants).finally(occupants.end)
  } finally {
    await contender.end()
  }
}

async function offer(
  { stage, quick }: Bench,
  contender: Contender,
  streams: number,
  occupants: Occupants,
): Promise<Trial> {
  stage.provider.setPace({ intervalMs, firstMs: 0 })
  const everyMs = replyMsMean / streams
  const viewers: Viewer[] = []
  const startedAt = performance.now()
  const askUntil = async (endMs: number) => {
    while (viewers.length * everyMs < endMs) {
      await sleepUntil(startedAt + viewers.length * everyMs)
      const ms = replyMs[viewers.length % replyMs.length] as number
      viewers.push(openReply(stage, contender, ms / intervalMs))
    }
  }
  await askUntil(growMs)
  const stop = watch(stage, [contender])
  const occupiedFromMs = occupants.cpuMs()
  await askUntil(growMs + (quick ? windowMsQuick : windowMsUsual))
  const occupiedMs = occupants.cpuMs() - occupiedFromMs
  const watched = stop()
  await untilEnded(viewers, endMsMax)

  const { overloaded, gated, others } = sortAnswers(viewers)
  const refusalFaults = checkRefusals(stage.provider, overloaded)
  for (const viewer of [...overloaded, ...gated]) {
    viewer.close()
    stage.provider.forget(viewer.number)
  }
  const { told, faults } = await checkReplies(stage, contender, others)
  const lags = readLags(told, watched.from, watched.until)
  const cameInWindow = ({ startedAt }: Viewer) => startedAt >= watched.from
  const heldInWindow = told.filter(({ viewer }) => cameInWindow(viewer))
  const firsts = Float64Array.from(
    heldInWindow.map(({ viewer, seen }) => (seen.seenAt[0] as number) - viewer.startedAt),
  ).sort()
  const windowMs = watched.until - watched.from
  const foreignShare = Math.max(0, watched.foreignShare - occupiedMs / windowMs)
  return {
    figures: {
      streams,
      processorShare,
      offered: viewers.filter(cameInWindow).length,
      held: heldInWindow.length,
      overloaded: overloaded.filter(cameInWindow).length,
      gated: gated.filter(cameInWindow).length,
      atOnce: (watched.tokens * intervalMs) / windowMs,
      lagP50Ms: quantile(lags, 0.5),
      lagP99Ms: quantile(lags, 0.99),
      firstP50Ms: quantile(firsts, 0.5),
      firstP99Ms: quantile(firsts, 0.99),
      contenderShare: watched.contenderShare,
      loadShare: watched.loadShare,
      storesShare: (watched.postgresMs + watched.redisMs) / windowMs,
      foreignShare,
      stealShare: watched.stealShare,
      latenessP99Ms: watched.latenessP99Ms,
    },
    faults: [...faults, ...refusalFaults],
    // A load that uses its processor up is late as well, and by how much is what counts here.
    disturbance: findDisturbance({ ...watched, foreignShare, loadShare: 0 }, latenessMsMax),
  }
}

/** Refusals, each kind by itself; the others have to be replies. */
export function sortAnswers(viewers: readonly Viewer[]): Readonly<Record<'overloaded' | 'gated' | 'others', Viewer[]>> {
  const sorted = { overloaded: [] as Viewer[], gated: [] as Viewer[], others: [] as Viewer[] }
  for (const viewer of viewers) {
    const code = viewer.status === 503 ? /"code":"(\w+)"/.exec(viewer.bytes.toString('latin1'))?.[1] : undefined
    sorted[code === 'overloaded' ? 'overloaded' : code === 'db_unavailable' ? 'gated' : 'others'].push(viewer)
  }
  return sorted
}

/** @returns a sentence for each refusal that is not as it is promised to be */
export function checkRefusals(provider: Pick<Provider, 'replies'>, refused: readonly Viewer[]): readonly string[] {
  return refused.flatMap(({ number, header }) => {
    if (provider.replies.has(number)) return [`reply ${number}: refused, and asked for upstream`]
    return Number(header('retry-after')) > 0 ? [] : [`reply ${number}: refused without a word on when to come back`]
  })
}
