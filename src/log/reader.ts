/**
 * The reading side of the Redis log: copies of runs that other processes write, and the commands for this one. It owns
 * the copies (held.ts), what is followed, and one loop on a connection of its own; loads go over another connection,
 * because a blocked read would keep them waiting.
 *
 * Loading and following both go by the id of the last entry, so there is no gap between them. A run that is asked for is
 * loaded once, whoever asks, in pages; from then on the loop reads what comes after the last entry, for all followed runs
 * with one XREAD. A run that Redis does not have is followed all the same, from its beginning, so its absence is known
 * without asking again, and its first event wakes those who wait. Nobody's interest for `lingerMs` ends it.
 *
 * The loop blocks for `blockMs` at most, so that a Redis that hangs is noticed, and reads at most once in `paceMs`,
 * because each read costs Redis 2 µs a key. More than `keysMax` runs are read in turn, a part each time, without
 * blocking. A run that is added while the loop is blocked ends the block through the process's own control stream.
 *
 * Entries that are taken out of a copy's stream, or never arrive, leave a hole, which held.ts never reads across. A
 * connection that breaks and is back within `silenceMs` changes nothing: the ids lead on. After that (Redis hangs, or is
 * away) all copies are let go and their viewers woken: they are served from the database, and come back when Redis
 * answers on both connections, because what is watched is then loaded again and wakes them.
 *
 * Nothing here outlives the process, and nothing is lost with it.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Redis } from 'ioredis'
import type { Command } from './control.ts'
import type { EventId, LogEntry } from './event.ts'
import { createHeldLogs, type HeldOptions } from './held.ts'
import type { LogPage } from './log.ts'
import { describeError } from './redis-batch.ts'
import { decodeCommand, decodeEntry, type Keys } from './redis-codec.ts'
import { notYet } from './redis-writer.ts'
import type { Watchers } from './watchers.ts'

export interface ReaderLimits {
  /** How long a run that nobody watches or reads any more is still followed. */
  readonly lingerMs?: number
  /** Followed runs; above it, viewers of further ones are served from the database. */
  readonly followedMax?: number
}

export interface ReaderOptions extends ReaderLimits {
  /** Blocked most of the time. */
  readonly redis: Redis
  /** For questions whose answer somebody waits for. */
  readonly asker: Redis
  readonly keys: Keys
  readonly instanceId: string
  readonly watchers: Watchers
  readonly copies: HeldOptions
  readonly isOwn: (runId: string) => boolean
  readonly onCommand: (command: Command) => void
  /** Ends a blocked read. */
  readonly wake: () => void
  /** Other processes' runs can be read, or cannot be any more. */
  readonly onChange: () => void
  /** Something in Redis was not written by a gateway that we know. Called once. */
  readonly onMalformed: (key: string, id: string) => void
}

export type Reader = ReturnType<typeof createReader>

interface Followed {
  readonly runId: string
  readonly key: string
  /** Id of the last entry that was read, as Redis gave it. */
  last: string
  loading: Promise<void> | undefined
  ended: boolean
  usedAt: number
}

type Entries = readonly (readonly [id: string, fields: readonly string[]])[]

/** What a read waits for a copy that is being loaded; after that the database serves, and the copy is there later. */
const readMs = 900
/** Longest duration of a load for a copy. */
const loadMs = 5000
const loadPageEntries = 500
const blockMs = 400
/** What the answer to a blocking read may take beyond its block. Part of what a viewer waits for when Redis hangs. */
const answerMs = 500
export const readerCommandMs = blockMs + answerMs
const paceMs = 20
const silenceMs = 800
const retryMs = 50
const keysMax = 256
/** Entries of one run in one read. */
const readEntriesMax = 200
const sweepMs = 1000

export function createReader(options: ReaderOptions) {
  const { redis, asker, keys, instanceId, watchers, isOwn, onCommand, wake, onChange, onMalformed } = options
  const { lingerMs = 10_000, followedMax = 4096 } = options
  const copies = createHeldLogs(false, options.copies)
  const followed = new Map<string, Followed>()
  const closing = new AbortController()
  const control = keys.control(instanceId)
  let controlLast = '0-0'
  let problem: string | undefined = notYet
  let lastAnswerAt = performance.now()
  // Why the connection went: more than that there is none.
  let lost: string | undefined
  // Among the runs that are followed, where the next read begins when they are too many for one.
  let turn = 0
  let blocked = false
  let malformed = false

  const sweepTimer = setInterval(sweep, sweepMs)
  sweepTimer.unref()

  function drop(runId: string): void {
    followed.delete(runId)
    copies.forget(runId)
  }

  function follow(runId: string): Followed | undefined {
    const known = followed.get(runId)
    if (known !== undefined || followed.size >= followedMax) return known
    const run: Followed = {
      runId,
      key: keys.log(runId),
      last: '0-0',
      loading: undefined,
      ended: false,
      usedAt: performance.now(),
    }
    followed.set(runId, run)
    run.loading = loadCopy(run)
    return run
  }

  const isFollowed = (run: Followed): boolean => followed.get(run.runId) === run

  /** Never rejects: a run that cannot be loaded is not followed, and the next read tries again. */
  async function loadCopy(run: Followed): Promise<void> {
    try {
      await readStream(run.key, performance.now() + loadMs, (entries) => {
        if (isFollowed(run)) take(run, entries)
      })
      run.loading = undefined
      if (isFollowed(run) && blocked) {
        // Once, for all the runs that are added until the loop reads again.
        blocked = false
        wake()
      }
    } catch {
      // Why Redis did not answer is known by the loop, which asks all the time.
      if (isFollowed(run)) drop(run.runId)
    }
    if (copies.has(run.runId)) watchers.wake(run.runId)
  }

  /** @throws when Redis does not answer, or not in time */
  async function readStream(key: string, deadline: number, onPage: (entries: Entries) => void): Promise<void> {
    for (let start = '-'; ; ) {
      const page: Entries = await asker.xrange(key, start, '+', 'COUNT', loadPageEntries)
      const last = page.at(-1)
      onPage(page)
      if (last === undefined || page.length < loadPageEntries) return
      start = `(${last[0]}`
      if (performance.now() > deadline) throw new Error('a stream could not be read in time')
    }
  }

  function decode(key: string, entries: Entries): LogEntry[] {
    return entries.flatMap(([id, fields]) => {
      const entry = decodeEntry(id, fields)
      if (entry !== undefined) return [entry]
      if (!malformed) onMalformed(key, id)
      malformed = true
      return []
    })
  }

  function take(run: Followed, entries: Entries): void {
    copies.append(run.runId, decode(run.key, entries))
    run.last = entries.at(-1)?.[0] ?? run.last
    // Nothing comes after it.
    run.ended = copies.terminal(run.runId) !== undefined
  }

  async function loop(): Promise<void> {
    while (!closing.signal.aborted) {
      const startedAt = performance.now()
      try {
        await readOnce()
        if (problem !== undefined) {
          await asker.ping()
          goUp()
        }
        lastAnswerAt = performance.now()
        await pause(startedAt + paceMs - lastAnswerAt)
      } catch (error) {
        if (closing.signal.aborted) return
        if (performance.now() - lastAnswerAt >= silenceMs) goDown(error)
        await pause(retryMs)
      }
    }
  }

  async function readOnce(): Promise<void> {
    const live = [...followed.values()].filter(({ loading, ended }) => loading === undefined && !ended)
    const parts = Math.max(1, Math.ceil(live.length / keysMax))
    const at = (turn % parts) * keysMax
    turn += 1
    const part = live.slice(at, at + keysMax)
    const names = [control, ...part.map(({ key }) => key)]
    const after = [controlLast, ...part.map(({ last }) => last)]
    blocked = parts === 1 && problem === undefined
    const reading = blocked
      ? redis.xread('COUNT', readEntriesMax, 'BLOCK', blockMs, 'STREAMS', ...names, ...after)
      : redis.xread('COUNT', readEntriesMax, 'STREAMS', ...names, ...after)
    const streams = await reading.finally(() => {
      blocked = false
    })
    const byKey = new Map(part.map((run) => [run.key, run]))
    for (const [key, entries] of streams ?? []) {
      const run = byKey.get(key)
      if (key === control) takeCommands(entries)
      else if (run !== undefined && isFollowed(run)) {
        take(run, entries)
        watchers.wake(run.runId)
      }
    }
  }

  function takeCommands(entries: Entries): void {
    for (const [id, fields] of entries) {
      controlLast = id
      const command = decodeCommand(fields)
      if (command !== undefined) onCommand(command)
    }
  }

  function goUp(): void {
    problem = undefined
    lost = undefined
    wantWatched()
    onChange()
  }

  function goDown(error: unknown): void {
    const isNews = problem === undefined || problem === notYet
    problem = lost ?? (error instanceof Error ? describeError(error) : 'it does not answer')
    for (const runId of [...followed.keys()]) {
      drop(runId)
      watchers.wake(runId)
    }
    if (isNews) onChange()
  }

  function wantWatched(): void {
    for (const runId of watchers.ids()) if (!isOwn(runId)) follow(runId)
  }

  function sweep(): void {
    for (const runId of copies.sweep()) {
      followed.delete(runId)
      watchers.wake(runId)
    }
    const longAgo = performance.now() - lingerMs
    for (const { runId, usedAt } of [...followed.values()]) {
      if (usedAt < longAgo && !watchers.has(runId)) drop(runId)
    }
    // What could not be loaded when it was first asked for.
    if (problem === undefined) wantWatched()
  }

  async function pause(ms: number): Promise<void> {
    await sleep(Math.max(0, ms), undefined, { signal: closing.signal }).catch(() => undefined) // Aborted: the loop looks.
  }

  const looping = loop()

  return {
    /** Why other processes' runs cannot be read; undefined while they can. */
    get problem() {
      return problem
    },
    get size() {
      return followed.size
    },
    terminal: copies.terminal,

    lostConnection(reason: string): void {
      lost = reason
    },

    /** Somebody waits for a run that is not written here. */
    watch(runId: string): void {
      if (problem === undefined) follow(runId)
    },

    /** Settles within {@link readMs}. */
    async read(runId: string, after: EventId | undefined, entriesMax: number): Promise<LogPage> {
      const run = problem === undefined ? follow(runId) : undefined
      if (run === undefined) return { kind: 'unknown' }
      run.usedAt = performance.now()
      if (run.loading !== undefined) await within(readMs, run.loading)
      if (!isFollowed(run) || run.loading !== undefined) return { kind: 'unknown' }
      return copies.read(runId, after, entriesMax)
    },

    /** @returns undefined when the run is not followed, or is being loaded */
    peek(runId: string, after: EventId | undefined, entriesMax: number): LogPage | undefined {
      const run = problem === undefined ? followed.get(runId) : undefined
      return run === undefined || run.loading !== undefined ? undefined : copies.read(runId, after, entriesMax)
    },

    /** From Redis itself, within {@link readMs}. */
    async load(runId: string): Promise<readonly LogEntry[] | 'unanswered'> {
      const found = createHeldLogs(false)
      const key = keys.log(runId)
      const reading = readStream(key, performance.now() + readMs, (entries) =>
        found.append(runId, decode(key, entries)),
      )
      const whole = await within(
        readMs,
        reading.then(
          () => true,
          () => false, // There is nothing to take from a Redis that does not answer.
        ),
      )
      return whole === true ? found.entries(runId) : 'unanswered'
    },

    /** The run is written by this process now. */
    release: drop,

    async close(): Promise<void> {
      closing.abort()
      clearInterval(sweepTimer)
      redis.disconnect()
      asker.disconnect()
      await looping
      for (const runId of [...followed.keys()]) {
        drop(runId)
        watchers.wake(runId)
      }
    },
  }
}

/** The promise's value, or undefined after the time. */
export async function within<T>(timeoutMs: number, promise: Promise<T>): Promise<T | undefined> {
  const timer = new AbortController()
  const late = sleep(timeoutMs, undefined, { signal: timer.signal }).catch(() => undefined) // Aborted: nobody waits.
  try {
    return await Promise.race([promise, late])
  } finally {
    timer.abort()
  }
}
