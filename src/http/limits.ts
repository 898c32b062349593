/**
 * How much one owner may ask in a minute, and how many visitors one address may become. Three budgets: `runs` for the
 * routes that start one (they cost money), `reads` for everything else under /api/v1, `visitors` for new visitors: when a
 * token is issued, and when one comes that a frontend has made itself, or else whoever makes one up for each request would
 * have no limit at all. What is over a budget is `rate_limited` with the time until the window ends.
 *
 * A visitor is new who has nothing stored and has not been seen by this process. So people who come back are never counted
 * by their address, however many share it, unless they never wrote anything. The question whether something is stored is
 * asked once for a visitor, and waits `sharedWaitMs` for the database; without an answer the visitor is let in.
 *
 * A key of the gateway that is nobody's counts as a new visitor of its address, and when that has had too many, the database is
 * not asked for a key any more until the window ends. A good key costs nothing, and one that was good once here is always
 * asked for: whoever makes keys up does not shut out who has one. Those that are asked for at the same moment are not counted
 * before they are answered; they are no more than there are requests at once.
 *
 * Windows are fixed: one begins with the first request and lasts a minute. So a minute that lies across two windows can
 * hold twice the limit; a sliding one would keep every request's time, for a limit that is a guard and no bill.
 *
 * Every process counts by itself, always: it never lets more than the limit through, whatever happens elsewhere. With
 * Redis it also takes what it lets through from a budget that all processes share: a fiftieth of the limit at a time
 * (24 of 1200 reads, one of 60 runs), because a round trip costs more than many a request does. Together they never let
 * more than the limit through; what a process has taken and not used is lost to the others until the window ends. Redis is
 * waited for `sharedWaitMs` at most; after a miss it is left alone for `sharedRestMs`, so that a slow one delays one request
 * a second. It never makes a request fail, and while it is away each process goes by its own count.
 *
 * Owners and addresses are kept only as salted hashes: an address, and whatever goes to Redis, as an HMAC. The salt is
 * random: this process's own for its own counts, one of the day for those in Redis. An IPv6 address counts as its /64,
 * which is what one household gets. Neither is stored elsewhere, nor logged.
 *
 * An EventSource repeats its GET when it reconnects, with Last-Event-ID. That is a read: it never starts a run
 * (surfaces/native-routes.ts). If the budget is spent, it is told to come back, and does so until the window has ended.
 *
 * State, owned here: the windows of this process, the visitors seen, and the keys that were good, each with a bound; they go with the
 * process. No await here is followed by anything that would have to be undone: a count that was for nothing ends with its
 * window.
 */
import { createHmac, hash, randomBytes } from 'node:crypto'
import { BlockList, isIP } from 'node:net'
import fastifyRateLimit, {
  type FastifyRateLimitStore,
  type FastifyRateLimitStoreCtor,
  normalizeIP,
} from '@fastify/rate-limit'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { Config } from '../config.ts'
import { Problem } from '../errors.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Set on a route that starts a run. */
    readonly budget?: 'runs'
  }
}

export type Budget = 'runs' | 'reads' | 'visitors'

interface Count {
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

export interface LimitsOptions {
  /** A minute; 0 for no limit. */
  readonly rateLimits: Config['rateLimits']
  readonly trustedProxies: readonly string[]
  /** Absent: this process counts for itself alone. */
  readonly shared?: SharedCounters | undefined
  /** Whether the visitor has anything stored. */
  readonly isKnown: (ownerKey: string) => Promise<boolean>
  readonly onRefused: (budget: Budget) => void
  /** Longest wait for what is not in this process. */
  readonly sharedWaitMs?: number
  readonly sharedRestMs?: number
  /** Owners and addresses that this process counts at once, in all budgets together. */
  readonly windowsMax?: number
  /** Milliseconds of a clock that never goes back. */
  readonly now?: () => number
}

export interface Limits {
  /** For requests whose owner is known. @throws Problem `rate_limited` */
  spend(request: FastifyRequest): Promise<void>
  /** Before a visitor token is issued. @throws Problem `rate_limited` */
  admitVisitor(request: FastifyRequest): Promise<void>
  /**
   * Asks whose a key of the gateway is, unless its address has asked for too many that were nobody's.
   * @throws Problem `rate_limited`; what `ask` throws
   */
  askForKey<T>(
    request: FastifyRequest,
    key: string,
    ask: (key: string) => Promise<T | undefined>,
  ): Promise<T | undefined>
}

const windowMs = 60_000
/** A process asks for the others' count once in a fiftieth of the limit. */
const sharesPerWindow = 50
const sharedWaitDefaultMs = 250
/** A salt is used for a day; processes whose clocks differ may ask for the one before. */
const saltTtlMs = 2 * 24 * 3600 * 1000
const visitorsMax = 50_000
const goodKeysMax = 50_000

const monotonic = (): number => performance.now()

const names: Readonly<Record<Budget, string>> = {
  runs: 'runs',
  reads: 'requests',
  visitors: 'new visitors and unknown keys from one address',
}

/** @param app must have no limits yet; the routes under it are limited by whoever calls `spend` */
export async function createLimits(app: FastifyInstance, options: LimitsOptions): Promise<Limits> {
  const {
    rateLimits,
    trustedProxies,
    isKnown,
    onRefused,
    sharedWaitMs = sharedWaitDefaultMs,
    now = monotonic,
  } = options
  const countShared = createSharedCount(options)
  const known = createSeen(visitorsMax)
  const goodKeys = createSeen(goodKeysMax)
  const admitted = new WeakSet<FastifyRequest>()
  const salt = createSalt()
  let toldOfProxy = false

  const windows = createWindows(options)
  await app.register(fastifyRateLimit, { global: false, store: createStore(count) })

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

  const nameOf = (key: string): string => (isAddress(key) ? seal(salt, key) : digest(salt, key))

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

  /** @returns undefined when there is no limit */
  function createBudget(budget: Budget, keyOf: (request: FastifyRequest) => string) {
    const max = rateLimits[budget]
    if (max === 0) return undefined
    const check = app.createRateLimit({
      max,
      timeWindow: windowMs,
      keyGenerator: (request) => `${budget} ${keyOf(request)}`,
    })
    function refuse(retryAfterSeconds: number): never {
      onRefused(budget)
      throw new Problem('rate_limited', `At most ${max} ${names[budget]} a minute.`, {
        retryAfterSeconds: Math.max(1, retryAfterSeconds),
      })
    }
    return {
      async spend(request: FastifyRequest): Promise<void> {
        const result = await check(request)
        if (!result.isAllowed && result.isExceeded) refuse(result.ttlInSeconds)
      },
      refuseWhenSpent(request: FastifyRequest): void {
        const ms = untilLeft(`${budget} ${keyOf(request)}`, max)
        if (ms > 0) refuse(Math.ceil(ms / 1000))
      },
    }
  }

  const runs = createBudget('runs', (request) => request.owner.key)
  const reads = createBudget('reads', (request) => request.owner.key)
  const visitors = createBudget('visitors', createAddressOf(trustedProxies))

  const startsRun = ({ routeOptions, method, headers }: FastifyRequest): boolean =>
    routeOptions.config.budget === 'runs' && (method !== 'GET' || (headers['last-event-id'] ?? '') === '')

  function warnOfProxy(request: FastifyRequest): void {
    const { 'x-forwarded-for': forwardedFor, 'x-real-ip': realIp } = request.headers
    if (toldOfProxy || trustedProxies.length > 0 || (forwardedFor ?? realIp) === undefined) return
    toldOfProxy = true
    app.log.warn(
      'a proxy forwards requests, and TRUST_PROXY does not name it: all visitors behind it share the budget of its address',
    )
  }

  async function admit(request: FastifyRequest): Promise<void> {
    warnOfProxy(request)
    await visitors?.spend(request)
  }

  async function admitVisitorSeen(request: FastifyRequest): Promise<void> {
    const { kind, key } = request.owner
    if (visitors === undefined || kind !== 'visitor' || known.has(key)) return
    const letIn = () => true // the request itself will meet what is wrong with the database
    const isNew = !admitted.has(request) && (await within(sharedWaitMs, isKnown(key).catch(letIn))) === false
    if (isNew) await admit(request)
    known.add(key)
  }

  return {
    async spend(request) {
      await admitVisitorSeen(request)
      await (startsRun(request) ? runs : reads)?.spend(request)
    },
    async admitVisitor(request) {
      await admit(request)
      admitted.add(request)
    },
    async askForKey(request, key, ask) {
      const name = digest(salt, `key ${key}`)
      if (!goodKeys.has(name)) visitors?.refuseWhenSpent(request)
      const answer = await ask(key)
      if (answer !== undefined) goodKeys.add(name)
      else {
        goodKeys.remove(name)
        await admit(request)
      }
      return answer
    },
  }
}

/** Of a key with its budget in front. */
const isAddress = (key: string): boolean => key.startsWith('visitors ')

/**
 * Of the client, as far as trusted proxies tell: in X-Forwarded-For, which Fastify reads, or else in X-Real-IP, which is all
 * that some say. An IPv6 address counts as its /64. Never leaves this file as it is.
 */
function createAddressOf(trustedProxies: readonly string[]): (request: FastifyRequest) => string {
  const proxies = new BlockList()
  for (const range of trustedProxies) {
    const [address = '', bits] = range.split('/')
    const family = isIP(address) === 4 ? 'ipv4' : 'ipv6'
    if (bits === undefined) proxies.addAddress(address, family)
    else proxies.addSubnet(address, Number(bits), family)
  }
  const isProxy = (address: string) => proxies.check(address, isIP(address) === 4 ? 'ipv4' : 'ipv6')
  return ({ ip, headers }) => {
    // A link-local address brings the name of an interface.
    const [told = ''] = ip.split('%')
    const real = String(headers['x-real-ip'] ?? '')
    const isLast = headers['x-forwarded-for'] === undefined && isIP(real) !== 0 && isProxy(told)
    return normalizeIP(isLast ? real : told, 64)
  }
}

const createSalt = (): string => randomBytes(32).toString('base64url')

/** For addresses, and for what leaves the process. */
const seal = (salt: string, text: string): string => createHmac('sha256', salt).update(text).digest('base64url')

/** For owners, in this process, on every request: 0.5 us where an HMAC takes 12. */
const digest = (salt: string, text: string): string => hash('sha256', `${salt} ${text}`, 'base64url')

/** The store that the plugin asks: one for all budgets, because their keys differ. */
function createStore(count: (key: string, max: number) => Promise<Count>): FastifyRateLimitStoreCtor {
  return class Store implements FastifyRateLimitStore {
    incr(
      key: string,
      done: (error: Error | null, result?: { current: number; ttl: number }) => void,
      _windowMs: number,
      max: number,
    ): void {
      count(key, max).then((result) => done(null, { current: result.count, ttl: result.ttlMs }), done)
    }
    child(): this {
      return this
    }
  }
}

interface Window {
  count: number
  readonly endsAt: number
  /** What is left of what this process has taken from the budget of all processes. */
  share: number
  /** Until when that budget is spent. */
  spentUntil: number
  asking: Promise<boolean> | undefined
}

/** Counts by key, each in its own minute. Over the bound the oldest are forgotten: they get a new budget. */
function createWindows({ windowsMax = 100_000, now: readNow = monotonic }: LimitsOptions) {
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

/** The last `max` keys. */
function createSeen(max: number) {
  const keys = new Set<string>()
  return {
    has: (key: string) => keys.has(key),
    remove: (key: string) => void keys.delete(key),
    add(key: string): void {
      keys.delete(key)
      keys.add(key)
      for (const oldest of keys) {
        if (keys.size <= max) return
        keys.delete(oldest)
      }
    },
  }
}

/** The count of all processes; undefined without them, and when it cannot be had in time. */
function createSharedCount(options: LimitsOptions) {
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

async function within<T>(waitMs: number, answer: Promise<T>): Promise<T | undefined> {
  const late = Promise.withResolvers<undefined>()
  const timer = setTimeout(() => late.resolve(undefined), waitMs)
  try {
    return await Promise.race([answer, late.promise])
  } finally {
    clearTimeout(timer)
  }
}
