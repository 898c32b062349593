/**
 * How much one owner may ask in a minute, and how many visitors one address may become. Three budgets: `runs` for the
 * routes that start one (they cost money), `reads` for everything else under /api/v1, `visitors` for new visitors: when
 * a token is issued, and when one comes that a frontend has made itself, or else whoever makes one up for each request
 * would have no limit at all. What is over a budget is `rate_limited` with the time until the window ends.
 *
 * A visitor is new who has nothing stored and has not been seen by this process. So people who come back are never
 * counted by their address, however many share it, unless they never wrote anything. Whether something is stored is
 * asked once for a visitor, and waits `sharedWaitMs` for the database; without an answer the visitor is let in.
 *
 * A key of the gateway that is nobody's counts as a new visitor of its address, and when that has had too many, the
 * database is not asked for a key any more until the window ends. A good key costs nothing, and one that was good once
 * here is always asked for: whoever makes keys up does not shut out who has one. Those that are asked for at the same
 * moment are not counted before they are answered; they are no more than there are requests at once.
 *
 * How it is counted, by this process and by all of them together, is the business of counts.ts.
 *
 * An EventSource repeats its GET when it reconnects, with Last-Event-ID. That is a read: it never starts a run
 * (surfaces/native-routes.ts). If the budget is spent, it is told to come back, and does so until the window has ended.
 *
 * State, owned here: the visitors seen, and the keys that were good, each with a bound; they go with the process. No
 * await here is followed by anything that would have to be undone: a count that was for nothing ends with its window.
 */
import { BlockList, isIP } from 'node:net'
import fastifyRateLimit, {
  type FastifyRateLimitStore,
  type FastifyRateLimitStoreCtor,
  normalizeIP,
} from '@fastify/rate-limit'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { Config } from '../config.ts'
import { Problem } from '../errors.ts'
import { type Count, type CountsOptions, createCounts, sharedWaitDefaultMs, windowMs, within } from './counts.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Set on a route that starts a run. */
    readonly budget?: 'runs'
  }
}

export type Budget = 'runs' | 'reads' | 'visitors'

export interface LimitsOptions extends CountsOptions {
  /** A minute; 0 for no limit. */
  readonly rateLimits: Config['rateLimits']
  readonly trustedProxies: readonly string[]
  /** Whether the visitor has anything stored. */
  readonly isKnown: (ownerKey: string) => Promise<boolean>
  readonly onRefused: (budget: Budget) => void
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

const visitorsMax = 50_000
const goodKeysMax = 50_000

const names: Readonly<Record<Budget, string>> = {
  runs: 'runs',
  reads: 'requests',
  visitors: 'new visitors and unknown keys from one address',
}

/** @param app must have no limits yet; the routes under it are limited by whoever calls `spend` */
export async function createLimits(app: FastifyInstance, options: LimitsOptions): Promise<Limits> {
  const { rateLimits, trustedProxies, isKnown, onRefused, sharedWaitMs = sharedWaitDefaultMs } = options
  const counts = createCounts(options, isAddress)
  const known = createSeen(visitorsMax)
  const goodKeys = createSeen(goodKeysMax)
  const admitted = new WeakSet<FastifyRequest>()
  let toldOfProxy = false

  await app.register(fastifyRateLimit, { global: false, store: createStore(counts.count) })

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
        const ms = counts.untilLeft(`${budget} ${keyOf(request)}`, max)
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
      const name = counts.nameOf(`key ${key}`)
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
 * Of the client, as far as trusted proxies tell: in X-Forwarded-For, which Fastify reads, or else in X-Real-IP, which
 * is all that some say. An IPv6 address counts as its /64, which is what one household gets. It is kept nowhere as it
 * is: counts.ts has a hash of it.
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
