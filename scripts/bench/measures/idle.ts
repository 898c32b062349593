/**
 * What viewers weigh that wait: 5000 on one reply that has next to nothing to say, against as many idle connections of bare
 * node:http. Memory is what the process resides in without garbage, before they come and when it has settled. And how late one token reaches
 * all of them, of several.
 *
 * Each round has new processes. A few hundred viewers come and go before the first look, so that what only the first
 * needs is not shared out among the rest.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { openFilesMax } from '../cpu.ts'
import { inspectorOptions } from '../inspector.ts'
import { checkReplies, openReply, quantile, untilEnded } from '../replies.ts'
import { type Bench, compare, type Trial } from '../rounds.ts'
import { findFault, openViewer, readSeen, type Viewer } from '../viewers.ts'
import { warmUp } from '../warm.ts'
import { findDisturbance, watch } from '../watch.ts'

const viewersUsual = 5000
const viewersQuick = 1000
/** Files of this process that are no viewers. */
const otherFiles = 500
const firstViewers = 300
/** Opened at once, and then waited for. */
const batch = 50
const [tokensUsual, tokensQuick] = [10, 3] as const
/** Between two tokens. All of them come after the viewers have. */
const intervalMs = 1500
const [firstMsUsual, firstMsQuick] = [20_000, 10_000] as const
const openMsMax = 15_000
const settleMs = 4000
/** Addresses to come from. */
const addresses = 8
const viewerMsMax = 30_000
const inspected = { NODE_OPTIONS: inspectorOptions } as const

/** @returns as many as files allow */
export function viewersOf(quick: boolean): number {
  return Math.min(quick ? viewersQuick : viewersUsual, openFilesMax() - otherFiles)
}

export async function measureIdle(bench: Bench): Promise<void> {
  const viewers = viewersOf(bench.quick)
  if (viewers < viewersUsual && !bench.quick) bench.say(`ulimit -n allows ${viewers} viewers`)
  await compare(bench, 'idle', `${viewers} viewers`, [
    { name: 'gateway', run: () => weighViewers(bench, viewers) },
    { name: 'node:http', run: () => weighIdle(bench, viewers) },
  ])
}

async function weighViewers(bench: Bench, count: number): Promise<Trial> {
  const { stage, quick } = bench
  const tokens = quick ? tokensQuick : tokensUsual
  const firstMs = quick ? firstMsQuick : firstMsUsual
  const contender = await stage.start('gateway', inspected)
  try {
    await warmUp(bench, contender)
    stage.provider.setPace({ intervalMs, firstMs })
    const startedAt = performance.now()
    const asker = openReply(stage, contender, tokens)
    await untilFirstByte(asker)
    const open = (number: number) =>
      openViewer(contender.attach(asker), { number: asker.number, tokens, from: addressOf(number) })
    await comeAndGo(open)
    const before = await contender.weigh()
    const viewers = await openAll(open, count)
    await sleep(settleMs)
    const after = await contender.weigh()
    const faults =
      performance.now() - startedAt > firstMs ? ['the viewers were not there before the first token was'] : []
    const stop = watch(stage, [contender])
    await untilEnded([asker, ...viewers], firstMs + tokens * intervalMs + viewerMsMax)
    const watched = stop()
    const sentAt = stage.provider.replies.get(asker.number)?.sentAt ?? new Float64Array()
    faults.push(...(await checkReplies(stage, contender, [asker])).faults)
    const lags: number[] = []
    const lasts: number[] = []
    const seen = viewers.map((viewer) => readSeen(viewer, contender.format))
    seen.forEach((one, number) => {
      const fault = findFault(one, tokens)
      if (fault !== undefined) faults.push(`viewer ${number}: ${fault}`)
    })
    for (let n = 0; n < tokens; n += 1) {
      const late = seen.map(({ seenAt }) => (seenAt[n] as number) - (sentAt[n] as number))
      lags.push(...late)
      lasts.push(Math.max(...late))
    }
    const ascending = Float64Array.from(lags).sort()
    return {
      figures: {
        bytesPerViewer: (after - before) / count,
        lagP50Ms: quantile(ascending, 0.5),
        lagP99Ms: quantile(ascending, 0.99),
        lastMs: quantile(
          lasts.toSorted((a, b) => a - b),
          0.5,
        ),
      },
      faults,
      disturbance: findDisturbance(watched),
    }
  } finally {
    await contender.end()
  }
}

async function weighIdle(bench: Bench, count: number): Promise<Trial> {
  const idle = await bench.stage.startIdle(inspected)
  try {
    const open = (number: number) =>
      openViewer(
        { url: idle.url, method: 'GET', headers: {}, body: '' },
        { number, tokens: 0, from: addressOf(number) },
      )
    await comeAndGo(open)
    const before = await idle.weigh()
    const viewers = await openAll(open, count)
    await sleep(settleMs)
    const bytesPerViewer = ((await idle.weigh()) - before) / count
    for (const viewer of viewers) viewer.close()
    return { figures: { bytesPerViewer }, faults: [], disturbance: undefined }
  } finally {
    await idle.end()
  }
}

const addressOf = (number: number): string => `127.0.0.${2 + (number % addresses)}`

async function comeAndGo(open: (number: number) => Viewer): Promise<void> {
  const viewers = await openAll(open, firstViewers)
  for (const viewer of viewers) viewer.close()
  await sleep(settleMs / 4)
}

async function openAll(open: (number: number) => Viewer, count: number): Promise<readonly Viewer[]> {
  const viewers: Viewer[] = []
  while (viewers.length < count) {
    const some = Array.from({ length: Math.min(batch, count - viewers.length) }, (_, n) => open(viewers.length + n))
    viewers.push(...some)
    await Promise.all(some.map(untilFirstByte))
  }
  return viewers
}

async function untilFirstByte(viewer: Viewer): Promise<void> {
  for (const giveUpAt = performance.now() + openMsMax; viewer.firstByteAt === 0; await sleep(1)) {
    if (performance.now() > giveUpAt) throw new Error('a viewer got no answer')
  }
}
