/**
 * Replies that are asked for, and what has to be true of each afterwards: the viewer has it all, in order and once, its end
 * was said, and it is stored. A contender that drops, doubles or forgets something is fast; its round does not count.
 *
 * Waiting for replies is bounded by whoever waits; what has not ended by then is a fault, and its connection is closed.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Contender, Stage } from './stage.ts'
import { findFault, openViewer, readSeen, type Seen, type Viewer } from './viewers.ts'

/** A viewer of a reply, and what it saw of it. */
export interface Told {
  readonly viewer: Viewer
  readonly seen: Seen
  /** When the provider was asked, and when it sent each token. */
  readonly requestedAt: number
  readonly sentAt: Float64Array
}

export interface Outcome {
  readonly told: readonly Told[]
  /** A sentence each. */
  readonly faults: readonly string[]
}

/** A new conversation, and a reply of so many tokens in it. */
export function openReply(stage: Stage, contender: Contender, tokens: number): Viewer {
  const number = stage.nextNumber()
  return openViewer(contender.ask(number, tokens), { number, tokens })
}

/** Waits until all have ended. */
export async function untilEnded(viewers: readonly Viewer[], waitMs: number): Promise<void> {
  const giveUp = new AbortController()
  await Promise.race([
    Promise.all(viewers.map(({ ended }) => ended)),
    sleep(waitMs, undefined, { signal: giveUp.signal }).catch(() => undefined), // they have all ended
  ])
  giveUp.abort()
}

/** Closes the viewers, and checks what they saw and what is stored. The provider forgets the replies. */
export async function checkReplies(stage: Stage, contender: Contender, viewers: readonly Viewer[]): Promise<Outcome> {
  const faults: string[] = []
  const told: Told[] = []
  for (const viewer of viewers) {
    viewer.close()
    const reply = stage.provider.replies.get(viewer.number)
    stage.provider.forget(viewer.number)
    const seen = readSeen(viewer, contender.format)
    const fault = viewer.status === 200 ? findFault(seen, viewer.tokens) : `status ${viewer.status}`
    if (fault !== undefined || reply === undefined) faults.push(`reply ${viewer.number}: ${fault ?? 'never asked for'}`)
    else told.push({ viewer, seen, requestedAt: reply.requestedAt, sentAt: reply.sentAt })
  }
  const unstored = await contender.findUnstored(told.map(({ viewer }) => viewer))
  return { told, faults: [...faults, ...unstored] }
}

/** @returns of each token that was sent in that time, how long it took to the viewer, in milliseconds, ascending */
export function readLags(told: readonly Told[], from: number, until: number): Float64Array {
  const lags: number[] = []
  for (const { seen, sentAt } of told) {
    for (let n = 0; n < sentAt.length; n += 1) {
      const at = sentAt[n] as number
      if (at >= from && at < until) lags.push((seen.seenAt[n] as number) - at)
    }
  }
  return Float64Array.from(lags).sort()
}

/** Of ascending values; not a number when there are none. */
export function quantile(ascending: ArrayLike<number>, part: number): number {
  return ascending[Math.min(ascending.length - 1, Math.floor(part * ascending.length))] ?? Number.NaN
}

export function median(values: readonly number[]): number {
  const ascending = values.toSorted((a, b) => a - b)
  const middle = (ascending.length - 1) / 2
  return ((ascending[Math.floor(middle)] ?? Number.NaN) + (ascending[Math.ceil(middle)] ?? Number.NaN)) / 2
}
