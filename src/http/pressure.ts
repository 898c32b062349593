/**
 * Whether this process is too late to begin another reply. One timer measures how late the event loop is. While it is,
 * new runs are refused (503 `overloaded`, with a `Retry-After` that differs from one to the next), before anything of them is
 * stored; whatever was accepted goes on, and gets the time that they would have taken from it.
 *
 * What counts is lateness that stays. Each tick, what it was late goes into a mean over about `smoothMs`, in which a tick
 * counts for `tickMsMax` at most, and for no more than `excessMax` times the bound. So one pause (a collection of garbage, a
 * large body, a process that was stopped and goes on), however long it was, raises the mean by less than half of the bound,
 * and what piles up behind it is worked off in peace. It takes three ticks in a row that are very late, or several seconds a
 * little over the bound. Refusing ends when the mean is down to half of the bound: in between it neither begins nor ends, and so
 * it does not flap. It ends by itself: nothing but the loop is asked.
 *
 * Lateness and not utilization: a loop that is busy all the time and late by 5 ms serves everybody well. And not the number
 * of runs: what one costs depends on its model, its viewers, the stores and the machine.
 *
 * The process stays ready meanwhile. Taken out by a load balancer, its viewers could not come back to what they watch, nor
 * anybody stop it; and where all processes are late, none would be left. `/health/ready` says `degraded`.
 *
 * State, owned here: the mean, whether runs are refused, and how many were since it began. Nothing is awaited. A token costs
 * nothing: fifty ticks a second do, whatever streams.
 */
import type { FastifyBaseLogger } from 'fastify'
import { Problem } from '../errors.ts'

export interface PressureOptions {
  /** Mean lateness beyond which new runs are refused; 0: none ever is. */
  readonly lateMsMax: number
  readonly logger: Pick<FastifyBaseLogger, 'info' | 'warn'>
  readonly onRefused?: () => void
  /** Milliseconds of a clock that never goes back. */
  readonly now?: () => number
  /** Calls `tick` again and again. @returns what ends it */
  readonly every?: (ms: number, tick: () => void) => () => void
}

export interface Pressure {
  /** How late the event loop is: a mean over about two seconds. */
  readonly lateMs: number
  /** Whether new runs are refused. */
  readonly isHigh: boolean
  /** In words for an operator, while they are. */
  readonly degraded: string | undefined
  /** For a new run. @throws Problem `overloaded` */
  refuseWhenHigh(): void
  close(): void
}

/** Much shorter than what would be called late, so that a tick's lateness is about the length of the loop's turn. */
export const tickMs = 20
/** Over so long the mean is taken: longer than a burst of arrivals, shorter than a reply. */
const smoothMs = 2000
const tickMsMax = 250
const excessMax = 4
/** What remains of the bound where refusing ends. */
const calmShare = 0.5
/** Of `Retry-After`. Replies end in seconds, and those that were refused at once should not come back at once. */
const retrySecondsMin = 2
const retrySecondsMax = 5

const everyUnwatched = (ms: number, tick: () => void): (() => void) => {
  const timer = setInterval(tick, ms)
  timer.unref()
  return () => clearInterval(timer)
}

export function createPressure(options: PressureOptions): Pressure {
  const { lateMsMax, logger, onRefused, now = () => performance.now(), every = everyUnwatched } = options
  const countedMsMax = lateMsMax === 0 ? Number.POSITIVE_INFINITY : excessMax * lateMsMax
  let lateMs = 0
  let tickedAt = now()
  let highSince: number | undefined
  let refused = 0

  function tick(): void {
    const at = now()
    const passedMs = at - tickedAt
    tickedAt = at
    const late = Math.min(Math.max(0, passedMs - tickMs), countedMsMax)
    lateMs += (late - lateMs) * (1 - Math.exp(-Math.min(passedMs, tickMsMax) / smoothMs))
    if (lateMsMax === 0) return
    if (highSince === undefined && lateMs > lateMsMax) begin(at)
    else if (highSince !== undefined && lateMs <= lateMsMax * calmShare) end(at, highSince)
  }

  function begin(at: number): void {
    highSince = at
    refused = 0
    logger.warn({ late_ms: Math.round(lateMs) }, 'this process is late: new replies are refused until it is not')
  }

  function end(at: number, since: number): void {
    highSince = undefined
    logger.info(
      { late_ms: Math.round(lateMs), lasted_ms: Math.round(at - since), refused },
      'this process is not late any more: new replies are taken again',
    )
  }

  return {
    get lateMs() {
      return lateMs
    },
    get isHigh() {
      return highSince !== undefined
    },
    get degraded() {
      return highSince === undefined ? undefined : 'this process is late: new replies are refused until it is not'
    },
    refuseWhenHigh() {
      if (highSince === undefined) return
      refused += 1
      onRefused?.()
      const spread = Math.floor(Math.random() * (retrySecondsMax - retrySecondsMin + 1))
      throw new Problem('overloaded', undefined, { retryAfterSeconds: retrySecondsMin + spread })
    },
    close: every(tickMs, tick),
  }
}
