/**
 * The writing side of the Redis log: the runs of this process, and commands to other processes. It owns the breaker, and
 * for each own run what is known of its stream. The events themselves are held in memory (held.ts), for as long as the
 * run is here: they are what local viewers read, and what a stream is made again from, so nothing is queued for Redis.
 *
 * A frame is one pipeline. ioredis hands it to the socket within `exec()` (every command is joined to one string, and
 * the last one writes it), so what is sent has left this code before any viewer is woken. Nothing waits for the answer:
 *
 *   new      nothing was sent. The first events make the stream and its expiry in one transaction
 *   clean    Redis has, or is about to have, all that was said. Later events are sent with NOMKSTREAM
 *   unsure   Redis had it, and the connection was lost since: it may be another Redis now. Its last entry is asked for
 *   dirty    Redis lacks something: a frame was refused, lost or never sent, or the stream is gone. It is seeded: one
 *            `reset`, folded from what is held, takes the place and the id of the last event so far (with `run` before it
 *            and `done` behind it when there are such), so that a viewer elsewhere is led over the hole, and viewers here
 *            need nothing. Then it is clean
 *   waiting  dirty, but an entry with the last event's id is or was there: a frame whose answer was lost has arrived. Two
 *            entries cannot have one id, so the next event is seeded in its place. Until then, viewers elsewhere that
 *            would have to cross a hole read the database
 *   barred   never written again: another process has taken the run over (its generation is on top of the stream, which
 *            made Redis refuse ours), or the key is not a stream of ours
 *
 * Each change of state makes the answers that are still under way mean nothing for that run (`epoch`).
 *
 * The breaker opens when a connection is lost, a command is not answered in time or refused (OOM, READONLY, MISCONF,
 * LOADING), or too much is unanswered. While it is open nothing is sent, runs that say something become dirty, and a
 * small write to this process's own control stream is tried every `probeMs`. When one succeeds, it closes; what is dirty
 * is seeded and what is clean is asked for, some runs at a time.
 *
 * When this process dies, what Redis had not read from the socket is lost; no other process has seen it, and the one that
 * takes over begins with a `reset`. When Redis dies or forgets, everything is still here.
 */
import type { Redis } from 'ioredis'
import type { Command } from './control.ts'
import { compareEventIds, type EventId, type LogEntry, parseEventId } from './event.ts'
import { foldEvents, resetEntry } from './fold.ts'
import type { HeldLogs } from './held.ts'
import type { RunEntries } from './log.ts'
import { type Batch, createBatch, describeError, type Outcome } from './redis-batch.ts'
import { encodeCommand, encodeEntry, type Keys } from './redis-codec.ts'

export interface WriterLimits {
  /** What may be unanswered at once; above it, Redis is too slow, and the breaker opens. */
  readonly inFlightBytesMax?: number
  readonly inFlightBatchesMax?: number
  /** Time between two attempts to write while the breaker is open. */
  readonly probeMs?: number
}

export interface WriterOptions extends WriterLimits {
  readonly redis: Redis
  readonly keys: Keys
  readonly instanceId: string
  /** Of a run's stream, from its first and its last event on. */
  readonly ttlMs: number
  /** The events of this process's runs. The writer reads them; redis.ts appends. */
  readonly held: HeldLogs
  /** Another process has taken the run over. */
  readonly onFenced: (runId: string) => void
  /** The breaker has opened or closed. */
  readonly onChange: () => void
}

export type Writer = ReturnType<typeof createWriter>

interface OwnRun {
  readonly runId: string
  readonly key: string
  state: 'new' | 'clean' | 'unsure' | 'dirty' | 'waiting' | 'barred'
  /** There may be a hole in the stream that no `reset` covers yet. */
  holed: boolean
  /** Redis does not take a seed in the place of the last event, whatever it shows on top of the stream. */
  refused: boolean
  epoch: number
}

/** The problem that a process begins with; nothing has failed yet. */
export const notYet = 'it has not answered yet'
/** Runs that are mended in one turn, their text together, and the pause between two turns: other runs' frames go on. */
const mendRunsMax = 16
const mendBytesMax = 1024 * 1024
const mendPauseMs = 10
/** Streams that are removed in one pipeline. */
const eraseRunsMax = 500

export function createWriter(options: WriterOptions) {
  const { redis, keys, instanceId, ttlMs, held, onFenced, onChange } = options
  const { inFlightBytesMax = 16 * 1024 * 1024, inFlightBatchesMax = 5000, probeMs = 250 } = options
  const runs = new Map<string, OwnRun>()
  const mending = new Set<OwnRun>()
  let problem: string | undefined = notYet
  let probing = false
  let closed = false
  let inFlightBytes = 0
  let inFlightBatches = 0
  let mendTimer: NodeJS.Timeout | undefined

  const probeTimer = setInterval(probe, probeMs)
  probeTimer.unref()
  redis.on('ready', probe)

  function open(reason: string): void {
    const isNews = problem === undefined || problem === notYet
    problem = reason
    if (isNews) onChange()
  }

  function probe(): void {
    if (problem === undefined || probing || closed || redis.status !== 'ready') return
    probing = true
    const batch = createBatch(redis, ttlMs)
    batch.command(keys.control(instanceId), ['probe', ''], (outcome) => {
      if (outcome instanceof Error) open(describeError(outcome))
      else closeBreaker()
    })
    void batch.send().finally(() => {
      probing = false
    })
  }

  function closeBreaker(): void {
    problem = undefined
    for (const run of runs.values()) {
      run.refused = false
      if (run.state === 'clean' || run.state === 'waiting') change(run, 'unsure')
      if (run.state === 'unsure' || run.state === 'dirty') mending.add(run)
    }
    scheduleMending()
    onChange()
  }

  function change(run: OwnRun, state: OwnRun['state']): void {
    run.state = state
    run.epoch += 1
    if (state === 'dirty') run.holed = true
    if (state !== 'dirty' && state !== 'unsure') return
    mending.add(run)
    scheduleMending()
  }

  function scheduleMending(): void {
    if (problem === undefined && mending.size > 0 && !closed) mendTimer ??= setTimeout(mend, mendPauseMs)
  }

  function mend(): void {
    mendTimer = undefined
    if (problem !== undefined) return
    const batch = createBatch(redis, ttlMs)
    let count = 0
    for (const run of mending) {
      if (count >= mendRunsMax || batch.bytes + inFlightBytes >= mendBytesMax) break
      mending.delete(run)
      count += 1
      const entries = held.entries(run.runId)
      const last = entries.at(-1)
      if (last === undefined) continue
      if (run.state === 'unsure') {
        const { epoch } = run
        batch.ask(run.key, (outcome, top) => {
          if (run.epoch !== epoch || runs.get(run.runId) !== run) return
          if (outcome === 'done') learnTop(run, last, top)
          else settle(run, epoch, outcome)
        })
      } else if (run.state === 'dirty') {
        change(run, 'clean')
        const { epoch } = run
        batch.create(run.key, seedOf(entries).map(encodeEntry), (outcome) => {
          if (outcome === 'done' && run.epoch === epoch) run.holed = false
          if (outcome === 'conflict' && run.epoch === epoch) run.refused = true
          settle(run, epoch, outcome)
        })
      }
    }
    send(batch)
    scheduleMending()
  }

  /** @param top id of the stream's last entry; undefined when there is none */
  function learnTop(run: OwnRun, last: EventId, top: string | undefined): void {
    const place = top === undefined ? undefined : parseEventId(top)
    if (top !== undefined && place === undefined) {
      change(run, 'barred')
    } else if (place !== undefined && place.generation > last.generation) {
      change(run, 'barred')
      onFenced(run.runId)
    } else if (place === undefined || compareEventIds(place, last) < 0) {
      // Entries that were deleted on top of it still count for Redis: asking and seeding in turn would never end.
      change(run, run.refused ? 'waiting' : 'dirty')
    } else {
      change(run, run.holed ? 'waiting' : 'clean')
    }
  }

  function settle(run: OwnRun, epoch: number, outcome: Outcome): void {
    if (outcome instanceof Error) open(describeError(outcome))
    if (run.epoch !== epoch || runs.get(run.runId) !== run) return
    if (outcome === 'lost' || outcome instanceof Error) change(run, 'dirty')
    else if (outcome === 'conflict') change(run, 'unsure')
    else if (outcome === 'barred') change(run, 'barred')
  }

  function send(batch: Batch): void {
    if (batch.isEmpty) return
    const { bytes } = batch
    inFlightBytes += bytes
    inFlightBatches += 1
    void batch.send().finally(() => {
      inFlightBytes -= bytes
      inFlightBatches -= 1
    })
  }

  function write(batch: Batch, runId: string, entries: readonly LogEntry[]): void {
    const run = runs.get(runId) ?? {
      runId,
      key: keys.log(runId),
      state: 'new' as const,
      holed: false,
      refused: false,
      epoch: 0,
    }
    runs.set(runId, run)
    if (run.state === 'barred') return
    run.refused = false
    if (problem !== undefined || (run.state !== 'new' && run.state !== 'clean')) {
      if (run.state !== 'dirty') change(run, 'dirty')
      return
    }
    const { epoch } = run
    const encoded = entries.map(encodeEntry)
    if (run.state === 'new') batch.create(run.key, encoded, (outcome) => settle(run, epoch, outcome))
    else batch.append(run.key, encoded, entries.at(-1)?.event.type === 'done', (outcome) => settle(run, epoch, outcome))
    run.state = 'clean'
  }

  return {
    /** Why nothing is sent; undefined while the breaker is closed. */
    get problem() {
      return problem
    },

    /** Hands a frame to the socket. The events must be new: held.ts takes them over next. */
    append(frame: readonly RunEntries[]): void {
      if (closed) return
      if (problem === undefined && (inFlightBytes > inFlightBytesMax || inFlightBatches > inFlightBatchesMax)) {
        open('it does not keep up')
      }
      const batch = createBatch(redis, ttlMs)
      for (const { runId, entries } of frame) write(batch, runId, entries)
      send(batch)
    },

    /** Stops writing a run. */
    forget(runId: string): void {
      const run = runs.get(runId)
      if (run !== undefined) mending.delete(run)
      runs.delete(runId)
    },

    /**
     * Removes streams, on the connection that wrote them: what was said before is there first. The first batch that is not
     * answered, in the time of any command, is the last one: a stream that is not removed now goes by its expiry.
     */
    async erase(runIds: readonly string[]): Promise<void> {
      for (let start = 0; start < runIds.length && problem === undefined && !closed; start += eraseRunsMax) {
        const batch = createBatch(redis, ttlMs)
        batch.erase(runIds.slice(start, start + eraseRunsMax).map(keys.log), (outcome) => {
          if (outcome instanceof Error) open(describeError(outcome))
        })
        await batch.send()
      }
    },

    /** Best effort: what is not delivered at once is lost. */
    command(target: string, command: Command): void {
      if (problem !== undefined) return
      const batch = createBatch(redis, ttlMs)
      batch.command(keys.control(target), encodeCommand(command), () => undefined)
      send(batch)
    },

    /** Ends the blocking read of this process's own reader, which has another run to follow. */
    wakeReader(): void {
      if (problem !== undefined) return
      const batch = createBatch(redis, ttlMs)
      batch.command(keys.control(instanceId), ['wake', ''], () => undefined)
      send(batch)
    },

    lostConnection: (reason: string) => open(reason),

    /** Sends nothing any more. Removes this process's control stream when Redis answers. */
    async close(): Promise<void> {
      closed = true
      clearInterval(probeTimer)
      clearTimeout(mendTimer)
      redis.off('ready', probe)
      runs.clear()
      mending.clear()
      if (problem !== undefined) return
      await redis.del(keys.control(instanceId)).then(
        () => undefined,
        () => undefined, // It expires by itself.
      )
    },
  }
}

/** What a stream is made again from: as few entries as tell all, and with them no viewer elsewhere crosses a hole. */
function seedOf(entries: readonly LogEntry[]): LogEntry[] {
  const first = entries[0]
  const last = entries.at(-1)
  const done = last?.event.type === 'done' ? [last] : []
  const told = entries.slice(0, entries.length - done.length)
  // Every viewer is told `run` first; when it is still in the stream, Redis refuses the second one.
  const opening = first?.event.type === 'run' ? [first] : []
  const place = told.at(-1)
  if (place === undefined || told.length === opening.length) return [...told, ...done]
  return [...opening, resetEntry(messageIdOf(entries), foldEvents(told), place), ...done]
}

function messageIdOf(entries: readonly LogEntry[]): string {
  for (const { event } of entries) {
    if (event.type === 'run' || event.type === 'reset' || event.type === 'done') return event.data.message_id
  }
  return ''
}
