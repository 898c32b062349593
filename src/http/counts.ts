/**
 * Counts by key, each in its own minute, here and by all processes together. What a key stands for, and what is
 * refused, is the business of limits.ts.
 *
 * Windows are fixed: one begins with the first request and lasts a minute. So a minute that lies across two windows can
 * hold twice the limit; a sliding one would keep every request's time, for a limit that is a guard and no bill.
 *
 * Every process counts by itself, always: it never lets more than the limit through, whatever happens elsewhere. With
 * Redis it also takes what it lets through from a budget that all processes share: a fiftieth of the limit at a time
 * (24 of 1200 reads, one of 60 runs), because a round trip costs more than many a request does. Together they never let
 * more than the limit through; what a process has taken and not used is lost to the others until the window ends. Redis
 * is waited for `sharedWaitMs` at most; after a miss it is left alone for `sharedRestMs`, so that a slow one delays one
 * request a second. It never makes a request fail, and while it is away each process goes by its own count.
 *
 * Owners and addresses are kept only as salted hashes: an address, and whatever goes to Redis, as an HMAC. The salt is
 * random: this process's own for its own counts, one of the day for those in Redis. Neither is stored elsewhere, nor
 * logged.
 *
 * State, owned here: the windows of this process, with a bound; they go with the process. Every await is for Redis, and
 * nothing has to be undone behind one: what was taken and is not used is lost until the window ends.
 */
import { createHmac, hash, randomBytes } from 'node:crypto'

export interface Count {
  /** Including what was just added. */
  readonly count: number
  /** Until the window ends. */
  readonly ttlMs: number
}

/** Counters of all processes. Answers undefined instead of an outage. */
export interface SharedCounters {
  increment(key: string, by: number, windowMs: number): Promise<Count | undefined>
  /** Keeps `fresh` unless another process was earlier. @returns what all processes use */
  agree(key: string, fresh: string, ttlMs: number): Promise<string | undefined>
}

export interface CountsOptions {
  /** Absent: this process counts for itself alone. */
  readonly shared?: SharedCounters | undefined
  /** Longest wait for what is not in this process. */
  readonly sharedWaitMs?: number
  readonly sharedRestMs?: number
  /** Keys that this process counts at once. */
  readonly windowsMax?: number
  /** Milliseconds of a clock that never goes back. */
  readonly now?: () => number
}

export const windowMs = 60_000
/** A process asks for the others' count once in a fiftieth of the limit. */
const sharesPerWindow = 50
export const sharedWaitDefaultMs = 250
/** A salt is used for a day; processes whose clocks differ may ask for the one before. */
const saltTtlMs = 2 * 24 * 3600 * 1000

const monotonic = (): number => performance.now()

/** @param isAddress whether a key names an address, which takes the better hash */
export function createCounts(options: CountsOptions, isAddress: (key: string) => boolean) {
  const { now = monotonic } = options
  const windows = createWindows(options)
  const countShared = createSharedCount(options)
  const salt = createSalt()

  /** What a key is known as in this process. */
  const nameOf = (key: string): string => (isAddress(key) ? seal(salt, key) : digest(salt, key))

  /** Counts one more. @returns a count above `max` when it is too much here, or for all processes together */
  async function count(key: string, max: number): Promise<Count> {
    const window = windows.open(nameOf(key))
    window.count += 1
    const own = { count: window.count, ttlMs: window.endsAt - now() }
    // Whatever the others have counted, it is too much.
    if (own.count > max) return own
    while (window.share === 0 && window.spentUntil <= now()) {
      window.asking ??= takeShare(window, key, max).finally(() => {
        window.asking = undefined
      })
      if (!(await window.asking)) return own
    }
    if (window.share === 0) return { count: max + 1, ttlMs: window.spentUntil - now() }
    window.share -= 1
    return own
  }

  /** @returns milliseconds until there is something left of a budget, as far as this process knows; 0 when there is */
  function untilLeft(key: string, max: number): number {
    const window = windows.find(nameOf(key))
    if (window === undefined) return 0
    if (window.count >= max) return window.endsAt - now()
    return window.share === 0 ? Math.max(0, window.spentUntil - now()) : 0
  }

  /** @returns false when nobody answers for the other processes */
  async function takeShare(window: Window, key: string, max: number): Promise<boolean> {
    const share = Math.max(1, Math.floor(max / sharesPerWindow))
    const all = await countShared(key, share)
    if (all === undefined) return false
    const granted = Math.min(share, max - (all.count - share))
    if (granted > 0) window.share += granted
    else window.spentUntil = now() + Math.max(1, all.ttlMs)
    return true
  }

  return { nameOf, count, untilLeft }
}

/** @returns undefined when the answer does not come in time */
export async function within<T>(waitMs: number, answer: Promise<T>): Promise<T | undefined> {
  const late = Promise.withResolvers<undefined>()
  const timer = setTimeout(() => late.resolve(undefined), waitMs)
  try {
    return await Promise.race([answer, late.promise])
  } finally {
    clearTimeout(timer)
  }
}

const createSalt = (): string => randomBytes(32).toString('base64url')

/** For addresses, and for what leaves the process. */
const seal = (salt: string, text: string): string => createHmac('sha256', salt).update(text).digest('base64url')

/** For owners, in this process, on every request: 0.5 us where an HMAC takes 12. */
const digest = (salt: string, text: string): string => hash('sha256', `${salt} ${text}`, 'base64url')

interface Window {
  count: number
  readonly endsAt: number
  /** What is left of what this process has taken from the budget of all processes. */
  share: number
  /** Until when that budget is spent. */
  spentUntil: number
  asking: Promise<boolean> | undefined
}

/** Over the bound the oldest are forgotten: they get a new budget. */
function createWindows({ windowsMax = 100_000, now: readNow = monotonic }: CountsOptions) {
  // In the order in which they began, which is the order in which they end.
  const windows = new Map<string, Window>()

  function makeRoom(now: number): void {
    for (const [key, { endsAt }] of windows) {
      if (endsAt > now && windows.size < windowsMax) return
      windows.delete(key)
    }
  }

  return {
    /** The window of this key; a new one when it has none, or when that has ended. */
    open(key: string): Window {
      const now = readNow()
      const known = windows.get(key)
      if (known !== undefined && known.endsAt > now) return known
      makeRoom(now)
      const window: Window = { count: 0, endsAt: now + windowMs, share: 0, spentUntil: 0, asking: undefined }
      windows.set(key, window)
      return window
    },

    /** @returns undefined when it has none, or when that has ended */
    find(key: string): Window | undefined {
      const known = windows.get(key)
      return known !== undefined && known.endsAt > readNow() ? known : undefined
    },
  }
}

/** The count of all processes; undefined without them, and when it cannot be had in time. */
function createSharedCount(options: CountsOptions) {
  const { shared, sharedWaitMs = sharedWaitDefaultMs, sharedRestMs = 1000, now = monotonic } = options
  let daily: { readonly day: string; readonly salt: string } | undefined
  let restUntil = 0

  async function readSalt(counters: SharedCounters): Promise<string | undefined> {
    const day = new Date().toISOString().slice(0, 10)
    if (daily?.day === day) return daily.salt
    const salt = await counters.agree(`salt:${day}`, createSalt(), saltTtlMs)
    if (salt !== undefined) daily = { day, salt }
    return salt
  }

  async function ask(counters: SharedCounters, key: string, by: number): Promise<Count | undefined> {
    const salt = await readSalt(counters)
    return salt === undefined ? undefined : counters.increment(seal(salt, key), by, windowMs)
  }

  return async (key: string, by: number): Promise<Count | undefined> => {
    if (shared === undefined || now() < restUntil) return undefined
    const miss = () => undefined // an error, like an answer that comes too late, is a miss
    const answer = await within(sharedWaitMs, ask(shared, key, by).catch(miss))
    if (answer === undefined) restUntil = now() + sharedRestMs
    return answer
  }
}
