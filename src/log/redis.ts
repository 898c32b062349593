/**
 * The event log that processes share through Redis (6.2 or later). Own runs are held in memory and read from there, as
 * in memory.ts, and every event is sent to Redis before it is shown (redis-writer.ts); runs of other processes are copied
 * and followed (reader.ts). No pub/sub, no counters, no scripts: an entry's id is the event's own, so that Redis refuses
 * what a process says whose run was taken over, and what is sent twice.
 *
 * Three connections a process, whatever the number of runs and viewers: one that writes, one that blocks, one that asks.
 * None queues while it is away, none sends again by itself, and every command has a limit; ioredis keeps reconnecting.
 * Redis being away is never an error here: what this process writes is held, `shared` is false and `degraded` says why,
 * and runs of others are `unknown`, so that the database serves them. No viewer waits longer than about a second for it.
 */
import type { FastifyBaseLogger } from 'fastify'
import { Redis, type RedisOptions } from 'ioredis'
import type { Command, Control } from './control.ts'
import { compareEventIds, type EventId, type LogEntry } from './event.ts'
import { createHeldLogs, type HeldOptions } from './held.ts'
import type { EventLog, RunEntries } from './log.ts'
import { createReader, type ReaderLimits, readerCommandMs, within } from './reader.ts'
import { describeError } from './redis-batch.ts'
import { createKeys } from './redis-codec.ts'
import { createWriter, notYet, type WriterLimits } from './redis-writer.ts'
import { createWatchers } from './watchers.ts'

export interface RedisLogOptions extends WriterLimits, ReaderLimits {
  readonly url: string
  /** Of this process; commands for it are addressed to it. */
  readonly instanceId: string
  /** How long a run's stream stays after its last event. */
  readonly ttlMs: number
  readonly logger: Pick<FastifyBaseLogger, 'info' | 'warn'>
  /** Of every key. */
  readonly prefix?: string
  readonly held?: HeldOptions
  /** `shared` or `degraded` may have changed. */
  readonly onChange?: () => void
}

export interface RedisLog extends EventLog {
  /** Own runs held. */
  readonly size: number
  /** Runs of other processes that are followed. */
  readonly followed: number
}

const sweepMs = 5000
/** A run that was let go is remembered, so that late words of the one who wrote it do not begin it anew. */
const leftMs = 60_000
/** How long all must be well before an outage is said to be over: a Redis that comes and goes fills no log. */
const wellMs = 1000
/** What closing waits for Redis. */
const closeMs = 250

const connection: RedisOptions = {
  family: 0,
  enableOfflineQueue: false,
  autoResendUnfulfilledCommands: false,
  // What is unanswered fails when its connection goes, and not only when its time is up.
  maxRetriesPerRequest: 0,
  connectTimeout: 1000,
  commandTimeout: 1000,
  // A connection that says nothing for as long is given up: behind it may be a network that has changed.
  socketTimeout: 2000,
  disconnectTimeout: 100,
  maxLoadingRetryTime: 250,
  retryStrategy: (attempts) => Math.min(25 * attempts, 500),
}

export function openRedisLog(options: RedisLogOptions): {
  readonly log: RedisLog
  readonly control: Control
  readonly description: string
} {
  const { url, logger, prefix = 'vb', held: heldOptions = {}, onChange = () => undefined } = options
  const description = describeUrl(url)
  const keys = createKeys(prefix)
  const held = createHeldLogs(true, heldOptions)
  const watchers = createWatchers()
  const fencedListeners: ((runId: string) => void)[] = []
  const unsharedListeners: (() => void)[] = []
  const commandListeners: ((command: Command) => void)[] = []
  // Generation of a run that was let go, and until when that counts.
  const left = new Map<string, { readonly generation: number; readonly until: number }>()
  // Not yet: what comes first is said at once.
  let said: 'degraded' | 'well' | undefined
  let wellTimer: NodeJS.Timeout | undefined
  let wasShared = false
  let closing = false

  const [writerRedis, readerRedis, askerRedis] = [
    connect(url, { connectionName: 'verbatim-writer' }, (reason) => writer.lostConnection(reason)),
    connect(url, { connectionName: 'verbatim-reader', commandTimeout: readerCommandMs }, (reason) =>
      reader.lostConnection(reason),
    ),
    connect(url, { connectionName: 'verbatim-asker' }, () => undefined),
  ]
  const writer = createWriter({
    ...options,
    redis: writerRedis,
    keys,
    held,
    onChange: report,
    onFenced(runId) {
      logger.warn({ run_id: runId }, 'a write was refused: another process has taken the run over')
      for (const listener of fencedListeners) listener(runId)
    },
  })
  const reader = createReader({
    ...options,
    redis: readerRedis,
    asker: askerRedis,
    keys,
    watchers,
    copies: heldOptions,
    isOwn: held.has,
    onCommand(command) {
      for (const listener of commandListeners) listener(command)
    },
    wake: writer.wakeReader,
    onChange: report,
    onMalformed: (key, id) =>
      logger.warn({ key, id }, 'an entry of the event log cannot be read, and is taken as a hole'),
  })

  function degraded(): string | undefined {
    if (writer.problem !== undefined) {
      return `Redis cannot be written (${writer.problem}): replies go on, other processes show them from the database`
    }
    if (reader.problem !== undefined) {
      return `Redis cannot be read (${reader.problem}): replies of other processes are shown from the database`
    }
    return undefined
  }

  /** Says once that something is wrong, and once that it is over. */
  function report(): void {
    if (closing) return
    const isShared = writer.problem === undefined
    if (wasShared && !isShared) for (const listener of unsharedListeners) listener()
    wasShared = isShared
    const reason = degraded()
    clearTimeout(wellTimer)
    if (reason === undefined) {
      if (said === undefined) sayWell()
      else if (said === 'degraded') wellTimer = setTimeout(sayWell, wellMs).unref()
    } else if (said !== 'degraded' && !reason.includes(notYet)) {
      said = 'degraded'
      logger.warn({ reason }, 'the event log is degraded')
    }
    onChange()
  }

  function sayWell(): void {
    said = 'well'
    logger.info('the event log is shared through Redis')
  }

  function forget(runId: string): void {
    writer.forget(runId)
    if (held.forget(runId)) watchers.wake(runId)
  }

  /** The entries that held.ts will take over: nothing after the end, and no id that does not rise. */
  function newEntries({ runId, entries }: RunEntries): readonly LogEntry[] {
    const was = left.get(runId)
    let last: EventId | undefined = held.entries(runId).at(-1)
    let ended = held.terminal(runId) !== undefined
    return entries.filter((entry) => {
      const isNew = !ended && (last === undefined || compareEventIds(entry, last) > 0)
      if (!isNew || (was !== undefined && entry.generation <= was.generation)) return false
      last = entry
      ended = entry.event.type === 'done'
      return true
    })
  }

  function sweep(): void {
    for (const runId of held.sweep()) {
      writer.forget(runId)
      watchers.wake(runId)
    }
    const now = performance.now()
    for (const [runId, { until }] of left) {
      if (until > now) break
      left.delete(runId)
    }
  }

  const timer = setInterval(sweep, sweepMs)
  timer.unref()

  function letGo(runId: string): void {
    const last = held.entries(runId).at(-1)
    // Set anew, so that the oldest come first.
    if (last !== undefined) left.delete(runId)
    if (last !== undefined) left.set(runId, { generation: last.generation, until: performance.now() + leftMs })
    forget(runId)
  }

  const log: RedisLog = {
    get size() {
      return held.size
    },
    get followed() {
      return reader.size
    },
    scope: 'deployment',
    get shared() {
      return writer.problem === undefined
    },
    get degraded() {
      return degraded()
    },
    append(frame) {
      const news = frame.map((run) => ({ runId: run.runId, entries: newEntries(run) })).filter(hasEntries)
      if (news.length === 0) return
      writer.append(news)
      for (const { runId, entries } of news) {
        if (!held.has(runId)) reader.release(runId)
        held.append(runId, entries)
        watchers.wake(runId)
      }
    },
    async read(runId, after, entriesMax) {
      return held.has(runId) ? held.read(runId, after, entriesMax) : await reader.read(runId, after, entriesMax)
    },
    peek(runId, after, entriesMax) {
      return held.has(runId) ? held.read(runId, after, entriesMax) : reader.peek(runId, after, entriesMax)
    },
    watch(runId, wake) {
      const unwatch = watchers.watch(runId, wake)
      if (!held.has(runId)) reader.watch(runId)
      return unwatch
    },
    terminalId: (runId) => held.terminal(runId) ?? reader.terminal(runId),
    async load(runId) {
      return held.has(runId) ? [...held.entries(runId)] : await reader.load(runId)
    },
    forget: letGo,
    async erase(runIds) {
      for (const runId of runIds) letGo(runId)
      await writer.erase(runIds)
      // Not before: whoever is woken copies what is still there.
      for (const runId of runIds) {
        reader.release(runId)
        watchers.wake(runId)
      }
    },
    onFenced: (listener) => void fencedListeners.push(listener),
    onUnshared: (listener) => void unsharedListeners.push(listener),
    async close() {
      closing = true
      clearInterval(timer)
      clearTimeout(wellTimer)
      await Promise.all([within(closeMs, writer.close()), reader.close()])
      writerRedis.disconnect()
      await Promise.all([writerRedis, readerRedis, askerRedis].map((redis) => within(closeMs, ended(redis))))
      for (const runId of held.ids()) forget(runId)
      left.clear()
    },
  }

  const control: Control = {
    send: writer.command,
    listen: (listener) => void commandListeners.push(listener),
  }

  return { log, control, description }
}

const hasEntries = ({ entries }: RunEntries): boolean => entries.length > 0

/** @param onLost called with the reason whenever the connection goes, or cannot be made */
function connect(url: string, limits: RedisOptions, onLost: (reason: string) => void): Redis {
  const redis = new Redis(url, { ...connection, ...limits })
  let reason: string | undefined
  // Without a listener an error would be printed with its stack; what it means is said once, by `report`.
  redis.on('error', (error: Error) => {
    reason = describeError(error)
  })
  redis.on('close', () => {
    onLost(reason ?? 'the connection was closed')
    reason = undefined
  })
  return redis
}

/** Resolves when a client that was told to disconnect has done so. */
async function ended(redis: Redis): Promise<void> {
  // A client that waits for its next attempt has no connection, and says nothing more.
  if (redis.status === 'end' || redis.status === 'reconnecting') return
  // Not events.once: it rejects on an `error`, such as a refused password, and what is closed behind this would stay open.
  await new Promise((resolve) => redis.once('end', resolve))
}

function describeUrl(url: string): string {
  const { hostname, port } = new URL(url)
  return `Redis at ${hostname}:${port === '' ? '6379' : port}`
}
