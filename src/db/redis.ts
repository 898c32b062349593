/**
 * Redis as a place for copies and counters: what is here can be lost at any moment, and everybody who asks can go on
 * without an answer. One connection a process, apart from those of the event log, so that a long value here delays no
 * frame there.
 *
 * A breaker stands before it. The first command that fails or takes longer than `commandMs` opens it: from then on nobody
 * waits, and every question is unanswered at once. A PING of the store itself, each `probeMs`, closes it again. So a Redis
 * that hangs costs those who were asking when it began to hang `commandMs` each, and nobody after them. What Redis
 * refuses with an answer (OOM, READONLY, a key of another type) opens nothing: it costs no time, and other commands may
 * still be served; it is told as `degraded` for a while.
 *
 * When this process dies at an await, a command has been applied or not, and nobody relies on it. When Redis dies, what
 * was asked is unanswered; ioredis keeps reconnecting, sends nothing again and queues nothing meanwhile.
 */
import type { FastifyBaseLogger } from 'fastify'
import { Redis, type RedisOptions, ReplyError } from 'ioredis'

export interface RedisStore {
  /** Why it is not well, in a sentence without addresses; undefined when it is, and before it has answered at all. */
  readonly degraded: string | undefined
  /** Of every key, without the colon. */
  readonly prefix: string
  /**
   * @param what commands and nothing else: whatever it throws is taken for Redis's failure
   * @returns undefined when Redis refuses, or does not answer all of them within `commandMs`. Never throws
   */
  ask<T>(what: (redis: Redis) => Promise<T>): Promise<T | undefined>
  /** Whether commands are sent at all. */
  readonly isWell: boolean
  close(): Promise<void>
}

export interface RedisStoreOptions {
  readonly url: string
  readonly logger: Pick<FastifyBaseLogger, 'info' | 'warn'>
  readonly prefix?: string
  /** Longest wait for an answer. */
  readonly commandMs?: number
}

const commandDefaultMs = 400
const probeMs = 500
/** How long all must be well before an outage is said to be over: a Redis that comes and goes fills no log. */
const wellMs = 1000
/** How long a refusal is told after it has happened. */
const refusedMs = 2_000
/** What closing waits for Redis. */
const closeMs = 250

const connection: RedisOptions = {
  connectionName: 'verbatim-store',
  family: 0,
  enableOfflineQueue: false,
  autoResendUnfulfilledCommands: false,
  maxRetriesPerRequest: 0,
  connectTimeout: 1000,
  // A connection that says nothing for as long is given up; the probes see to it that there is something to say.
  socketTimeout: 2000,
  disconnectTimeout: 100,
  maxLoadingRetryTime: 250,
  retryStrategy: (attempts) => Math.min(25 * attempts, 500),
}

export function openRedisStore(options: RedisStoreOptions): RedisStore {
  const { url, logger, prefix = 'vb', commandMs = commandDefaultMs } = options
  const redis = new Redis(url, { ...connection, commandTimeout: 2 * commandMs })
  // It begins open, without a problem: nothing has failed yet.
  let isOpen = true
  let problem: string | undefined
  let refusal: { readonly reason: string; readonly until: number } | undefined
  let saidDegraded = false
  let wellTimer: NodeJS.Timeout | undefined
  let connectionError: string | undefined
  let probing = false
  let closing = false

  // Without a listener an error would be printed with its stack; what it means is said once.
  redis.on('error', (error: Error) => {
    connectionError = describeError(error)
  })
  redis.on('close', () => {
    fail(connectionError ?? 'the connection was closed')
    connectionError = undefined
  })
  redis.on('ready', () => void probe()) // settles by itself, and throws nothing
  const probeTimer = setInterval(() => void probe(), probeMs)
  probeTimer.unref()

  function fail(reason: string): void {
    if (closing) return
    isOpen = true
    clearTimeout(wellTimer)
    problem = reason
    if (saidDegraded) return
    saidDegraded = true
    logger.warn({ reason }, 'the cache in Redis is degraded: reads go to the database')
  }

  async function probe(): Promise<void> {
    if (!isOpen || probing || closing || redis.status !== 'ready') return
    probing = true
    try {
      await redis.ping()
      if (closing) return
      isOpen = false
      problem = undefined
      if (saidDegraded) wellTimer = setTimeout(sayWell, wellMs).unref()
    } catch (error) {
      fail(describeError(error))
    } finally {
      probing = false
    }
  }

  function sayWell(): void {
    saidDegraded = false
    logger.info('the cache in Redis is well again')
  }

  return {
    prefix,
    get degraded() {
      if (problem !== undefined) return `Redis cannot be read (${problem}): histories and lists come from the database`
      if (refusal !== undefined && refusal.until > performance.now()) {
        return `Redis refuses what is to be copied or counted (${refusal.reason})`
      }
      return undefined
    },
    async ask(what) {
      if (isOpen || redis.status !== 'ready') return undefined
      const deadline = createDeadline(commandMs)
      try {
        return await Promise.race([what(redis), deadline.passed])
      } catch (error) {
        if (error instanceof ReplyError) {
          refusal = { reason: firstWord(error as Error), until: performance.now() + refusedMs }
        } else {
          fail(describeError(error))
        }
        return undefined
      } finally {
        deadline.clear()
      }
    },
    get isWell() {
      return !isOpen
    },
    async close() {
      closing = true
      clearInterval(probeTimer)
      clearTimeout(wellTimer)
      const isConnected = redis.status !== 'end' && redis.status !== 'reconnecting'
      // Not events.once: it rejects on an `error`, such as a refused password, and what is closed behind this would stay open.
      const ended = isConnected ? new Promise((resolve) => redis.once('end', resolve)) : Promise.resolve()
      redis.disconnect()
      const enough = new AbortController()
      await Promise.race([ended, pause(closeMs, enough.signal)])
      enough.abort()
    },
  }
}

/** Rejects after `ms`. What has arrived by then is read first: a process that is busy does not call Redis slow. */
function createDeadline(ms: number): { readonly passed: Promise<never>; clear(): void } {
  const { promise, reject } = Promise.withResolvers<never>()
  const timer = setTimeout(() => setImmediate(reject, new Error(`no answer within ${ms} ms`)), ms)
  return { passed: promise, clear: () => clearTimeout(timer) }
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms)
    signal.addEventListener('abort', () => clearTimeout(timer))
  })
}

const describeError = (error: unknown): string => {
  const { code, message } = error as Error & { readonly code?: unknown }
  return typeof code === 'string' ? code : message
}

// The rest of an answer can name keys.
const firstWord = (error: Error): string => error.message.split(' ', 1)[0] ?? ''
