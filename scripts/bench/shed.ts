/**
 * What becomes of twice the load that one core can hold: replies are asked for at a steady rate, of which so many would be
 * under way at once. It is measured with load shedding and without. Counted are the replies that were held (accepted, complete
 * to the last character, and stored) and those that were refused, and how late the tokens of the held ones came.
 *
 * The rate is steady because a crowd that comes within a second is another question: those are accepted or not before
 * anybody knows what they will cost. Nobody who is refused comes back, so that what is offered stays the same.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { replyText } from './provider.ts'
import type { Contender, Stage } from './stage.ts'
import { findFault, openViewer, readSeen, type Viewer } from './viewers.ts'

export interface ShedOptions {
  /** Replies under way at once, if none was refused: twice what one core holds. */
  readonly streams: number
  readonly tokensPerSecond: number
  /** How long a reply lasts. */
  readonly replyMs: number
  /** Measured, behind the first `replyMs`, in which the load grows. */
  readonly windowMs: number
  /** Of `OVERLOAD_MS`; '0' is without shedding. */
  readonly overloadMs: string
}

export interface Shed {
  readonly overloadMs: string
  readonly offered: number
  readonly held: number
  readonly refused: number
  /** Under way at once, in the mean of the window. */
  readonly atOnce: number
  /** Of the tokens of held replies in the window, from the provider's send to the viewer's read. */
  readonly lagP50Ms: number
  readonly lagP99Ms: number
  /** From the request to the first token, of replies that began in the window. */
  readonly firstP50Ms: number
  readonly firstP99Ms: number
  /** Of the refusals: from the request to the answer. */
  readonly refusalP99Ms: number
  /** How late the provider was. A round in which it fell behind says nothing. */
  readonly latenessP99Ms: number
  /** What was lost, doubled or not stored: none, or the round has failed. */
  readonly faults: readonly string[]
}

/** Behind the window, for the last replies; a gateway that is far behind needs it. */
const endMsMax = 60_000

export async function measureShed(stage: Stage, options: ShedOptions): Promise<Shed> {
  const contender = await stage.start('gateway', { OVERLOAD_MS: options.overloadMs })
  try {
    return await measure(stage, contender, options)
  } finally {
    await contender.end()
  }
}

async function measure(stage: Stage, contender: Contender, options: ShedOptions): Promise<Shed> {
  const { streams, tokensPerSecond, replyMs, windowMs, overloadMs } = options
  const { provider } = stage
  const tokens = Math.round((replyMs * tokensPerSecond) / 1000)
  provider.forgetReplies()
  provider.setPace({ intervalMs: 1000 / tokensPerSecond, firstMs: 0 })
  const viewers: Viewer[] = []
  const startedAt = performance.now()
  const from = startedAt + replyMs
  const until = from + windowMs
  const intervalMs = replyMs / streams
  let isMeasured = false
  for (let number = 0; startedAt + number * intervalMs < until; number += 1) {
    const waitMs = startedAt + number * intervalMs - performance.now()
    if (waitMs > 0) await sleep(waitMs)
    if (!isMeasured && performance.now() >= from) {
      isMeasured = true
      provider.takeLateness()
    }
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
  const lateness = provider.takeLateness()
  // A refusal leaves its connection open, with an answer that has a length.
  const isOver = async (viewer: Viewer) => {
    while (viewer.firstByteAt === 0) await sleep(20)
    if (viewer.status === 200) await viewer.ended
  }
  await Promise.race([Promise.all(viewers.map(isOver)), sleep(endMsMax, undefined, { ref: false })])
  return { overloadMs, ...(await summarize()), latenessP99Ms: quantile(lateness, 0.99) }

  async function summarize() {
    const faults: string[] = []
    const lags: number[] = []
    const firsts: number[] = []
    const refusals: number[] = []
    let held = 0
    let heldMs = 0
    for (const viewer of viewers) {
      const { number, status } = viewer
      const isRefused = codeOf(viewer) === 'overloaded'
      if (isRefused) refusals.push(viewer.firstByteAt - viewer.startedAt)
      else if (status !== 200) faults.push(`reply ${number}: status ${status} ${codeOf(viewer)}`)
      else {
        held += 1
        const seen = readSeen(viewer, contender.format)
        const fault = findFault(seen, tokens)
        if (fault !== undefined) faults.push(`reply ${number}: ${fault}`)
        const sentAt = provider.replies.get(number)?.sentAt ?? new Float64Array()
        for (let n = 0; n < sentAt.length; n += 1) {
          const at = sentAt[n] as number
          if (at >= from && at < until) lags.push((seen.seenAt[n] as number) - at)
        }
        if (viewer.startedAt >= from) firsts.push((seen.seenAt[0] as number) - viewer.startedAt)
        const endedAt = seen.seenAt[tokens - 1] as number
        heldMs += Math.max(0, Math.min(until, endedAt) - Math.max(from, viewer.startedAt))
      }
      viewer.close()
    }
    const stored = await contender.stored()
    if (stored?.rows !== held) faults.push(`${stored?.rows} rows of ${held} replies`)
    const units = held * replyText(tokens).length
    if (stored?.units !== units) faults.push(`${stored?.units} characters of ${units}`)
    return {
      offered: viewers.length,
      held,
      refused: refusals.length,
      atOnce: Math.round(heldMs / windowMs),
      lagP50Ms: quantile(lags, 0.5),
      lagP99Ms: quantile(lags, 0.99),
      firstP50Ms: quantile(firsts, 0.5),
      firstP99Ms: quantile(firsts, 0.99),
      refusalP99Ms: quantile(refusals, 0.99),
      faults,
    }
  }
}

/** Of a refusal; '' of what is none. */
const codeOf = ({ bytes, status }: Viewer): string =>
  status === 200 ? '' : (/"code":"(\w+)"/.exec(bytes.toString('latin1'))?.[1] ?? '')

/** NaN of nothing. */
function quantile(values: readonly number[], part: number): number {
  const sorted = Float64Array.from(values).sort()
  return sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))] ?? Number.NaN
}
