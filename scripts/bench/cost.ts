/**
 * What a token costs: so many replies at once, each a token at a time, and the processor time that the contender used
 * between two moments in the middle, divided by the tokens that were sent between them.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { cpuMsOf } from './cpu.ts'
import { replyText } from './provider.ts'
import type { Contender, Stage } from './stage.ts'
import { findFault, openViewer, readSeen, type Viewer } from './viewers.ts'

export interface CostOptions {
  readonly streams: number
  readonly tokensPerSecond: number
  readonly warmMs: number
  readonly windowMs: number
}

export interface Cost {
  readonly contender: string
  readonly streams: number
  readonly usPerToken: number
  readonly postgresUs: number
  readonly redisUs: number
  /** Of the tokens in the window, from the provider's send to the viewer's read. */
  readonly lagP50Ms: number
  readonly lagP99Ms: number
  readonly tokens: number
  /** Of the load itself. */
  readonly latenessP99Ms: number
  readonly loadShare: number
  readonly faults: readonly string[]
}

const tailMs = 500

export async function measureCost(stage: Stage, contender: Contender, options: CostOptions): Promise<Cost> {
  const { streams, tokensPerSecond, warmMs, windowMs } = options
  const { provider } = stage
  const before = await contender.stored()
  const intervalMs = 1000 / tokensPerSecond
  // All begin within one interval, each in a place of its own, and then go on until the window is over.
  const rampMs = Math.max(1000, streams * 4)
  const tokens = Math.ceil((rampMs + warmMs + windowMs + tailMs) / intervalMs)
  provider.forgetReplies()
  provider.setPace({ intervalMs, firstMs: 0 })
  const viewers: Viewer[] = []
  const startedAt = performance.now()
  for (let number = 0; number < streams; number += 1) {
    const dueAt = startedAt + (number * rampMs) / streams
    const waitMs = dueAt - performance.now()
    if (waitMs > 0) await sleep(waitMs)
    viewers.push(
      openViewer({
        ...contender.ask(number, tokens),
        method: 'POST',
        number,
        tokens,
        bytesMax: tokens * 400 + 16 * 1024,
        readsMax: tokens * 2 + 100,
      }),
    )
  }
  await sleep(Math.max(0, startedAt + rampMs + warmMs - performance.now()))

  provider.takeLateness()
  const cpu0 = contender.cpuMs()
  const stores0 = stage.storesCpuMs()
  const load0 = cpuMsOf(process.pid)
  const sent0 = provider.sentTotal
  const from = performance.now()
  await sleep(windowMs)
  const until = performance.now()
  const sent = provider.sentTotal - sent0
  const cpu1 = contender.cpuMs()
  const stores1 = stage.storesCpuMs()
  const load1 = cpuMsOf(process.pid)
  const lateness = provider.takeLateness().toSorted((a, b) => a - b)

  await Promise.race([Promise.all(viewers.map(({ ended }) => ended)), sleep(windowMs + 20_000)])
  const faults: string[] = []
  const lags: number[] = []
  for (const viewer of viewers) {
    const seen = readSeen(viewer, contender.format)
    const fault = viewer.status === 200 ? findFault(seen, tokens) : `status ${viewer.status}`
    if (fault !== undefined) faults.push(`reply ${viewer.number}: ${fault}`)
    const sentAt = provider.replies.get(viewer.number)?.sentAt
    for (let n = 0; sentAt !== undefined && n < tokens; n += 1) {
      const at = sentAt[n] as number
      if (at >= from && at < until) lags.push((seen.seenAt[n] as number) - at)
    }
    viewer.close()
  }
  const after = await contender.stored()
  if (before !== undefined && after !== undefined) {
    if (after.rows - before.rows !== streams) faults.push(`${after.rows - before.rows} rows of ${streams} replies`)
    const units = streams * replyText(tokens).length
    if (after.units - before.units !== units) faults.push(`${after.units - before.units} characters of ${units}`)
  }
  lags.sort((a, b) => a - b)
  const at = (sorted: readonly number[], part: number) => sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))] ?? Number.NaN
  return {
    contender: contender.name,
    streams,
    usPerToken: ((cpu1 - cpu0) * 1000) / sent,
    postgresUs: ((stores1.postgresMs - stores0.postgresMs) * 1000) / sent,
    redisUs: ((stores1.redisMs - stores0.redisMs) * 1000) / sent,
    lagP50Ms: at(lags, 0.5),
    lagP99Ms: at(lags, 0.99),
    tokens: sent,
    latenessP99Ms: at(lateness, 0.99),
    loadShare: (load1 - load0) / (until - from),
    faults,
  }
}
