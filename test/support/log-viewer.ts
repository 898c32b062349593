/**
 * A run that a test speaks straight into a log, and viewers that check every step of what they are shown: the text after
 * event n is the text that was spoken up to n, to the letter, whatever broke on the way. No gateway and no database: a
 * viewer whose log is away waits, and asks again.
 */
import { randomUUID } from 'node:crypto'
import { type EventId, formatEventId, type LogEntry, type Part } from '../../src/log/event.ts'
import { foldEvents } from '../../src/log/fold.ts'
import type { EventLog } from '../../src/log/log.ts'

/** What a viewer waits before it asks a log again that does not have the run; the database would serve it meanwhile. */
const askAgainMs = 100
const pageEntriesMax = 500

export type Speech = ReturnType<typeof createSpeech>

/** A run whose event n, from the second on, says `n;`. */
export function createSpeech(log: EventLog, runId: string = randomUUID(), generation = 1) {
  const saidAt: number[] = []
  // What a viewer holds after event n, at n - 1.
  const texts: string[] = []
  let appendMaxMs = 0

  function append(event: LogEntry['event']): void {
    const startedAt = performance.now()
    saidAt.push(startedAt)
    texts.push((texts.at(-1) ?? '') + (event.type === 'delta' ? event.data.text : ''))
    log.append([{ runId, entries: [{ generation, seq: saidAt.length, event }] }])
    appendMaxMs = Math.max(appendMaxMs, performance.now() - startedAt)
  }

  return {
    runId,
    saidAt,
    /** Longest duration of an append. */
    get appendMaxMs() {
      return appendMaxMs
    },
    textAt: (seq: number) => texts[seq - 1],
    get last(): EventId {
      return { generation, seq: saidAt.length }
    },
    say(times = 1): void {
      for (let n = 0; n < times; n += 1) {
        const seq = saidAt.length + 1
        if (seq === 1) append({ type: 'run', data: startOf(runId) })
        else append({ type: 'delta', data: { part: 0, offset: texts.at(-1)?.length ?? 0, text: `${seq};` } })
      }
    },
    end(): void {
      append({ type: 'done', data: { status: 'completed', message_id: messageIdOf(runId) } })
    },
    /** Says something every `paceMs` until it is aborted. */
    async sayUntil(signal: AbortSignal, paceMs = 10): Promise<void> {
      while (!signal.aborted) {
        this.say()
        await new Promise((resolve) => setTimeout(resolve, paceMs))
      }
    },
  }
}

const messageIdOf = (runId: string) => `message of ${runId}`

function startOf(runId: string) {
  const ids = { run_id: runId, session_id: 's', user_message_id: 'u', message_id: messageIdOf(runId) }
  return { ...ids, model: 'm', mode: 'fast' as const, created_at: '2026-01-01T00:00:00Z' }
}

export interface Seen {
  /** Broken promises, in words; none is what a test wants. */
  readonly wrong: string[]
  text: string
  events: number
  resets: number
  /** Reads to which the log said that it does not have the run. */
  unknown: number
  /** Longest duration of a read. */
  readMaxMs: number
  /** Longest time from the moment an event was said until it was shown. */
  lagMaxMs: number
  cursor: EventId | undefined
  ended: boolean
}

export interface Viewer {
  readonly seen: Seen
  /** Resolves with `done`, or when the signal is aborted. */
  readonly over: Promise<Seen>
  /** Resolves when this event, or a later one, is shown. */
  reaches(seq: number): Promise<void>
  /** Resolves when the log has said that it does not have the run. */
  missesIt(): Promise<void>
}

export function view(log: EventLog, speech: Speech, signal: AbortSignal): Viewer {
  const seen: Seen = {
    wrong: [],
    text: '',
    events: 0,
    resets: 0,
    unknown: 0,
    readMaxMs: 0,
    lagMaxMs: 0,
    cursor: undefined,
    ended: false,
  }
  let parts: Part[] = []
  const looking = new Set<() => void>()
  const startedAt = performance.now()

  function show(entry: LogEntry): void {
    const { cursor } = seen
    const isReset = entry.event.type === 'reset'
    const isNext = entry.generation === (cursor?.generation ?? entry.generation) && entry.seq === (cursor?.seq ?? 0) + 1
    if (!isReset && !isNext) seen.wrong.push(`${formatEventId(entry)} came after ${cursor && formatEventId(cursor)}`)
    if (isReset) seen.resets += 1
    const { event } = entry
    if (event.type === 'delta' && event.data.offset !== (parts[0]?.text.length ?? 0)) {
      seen.wrong.push(`${formatEventId(entry)} has another offset than the viewer's text`)
    }
    parts = foldEvents([{ ...entry, event: { type: 'reset', data: { message_id: '', parts, cursor: '' } } }, entry])
    seen.text = parts[0]?.text ?? ''
    seen.cursor = entry
    seen.events += 1
    seen.ended = event.type === 'done'
    if (seen.text !== speech.textAt(entry.seq))
      seen.wrong.push(`after ${formatEventId(entry)} the text is not what was said`)
    const saidAt = speech.saidAt[entry.seq - 1]
    if (saidAt !== undefined && saidAt > startedAt) {
      seen.lagMaxMs = Math.max(seen.lagMaxMs, performance.now() - saidAt)
    }
  }

  async function readOnce(): Promise<'more' | 'caught up' | 'unknown'> {
    const askedAt = performance.now()
    const page = await log.read(speech.runId, seen.cursor, pageEntriesMax)
    seen.readMaxMs = Math.max(seen.readMaxMs, performance.now() - askedAt)
    if (page.kind === 'entries') {
      for (const entry of page.entries) show(entry)
      return page.entries.length === 0 ? 'caught up' : 'more'
    }
    if (page.kind === 'unknown') return 'unknown'
    const whole = await log.read(speech.runId, undefined, Number.MAX_SAFE_INTEGER)
    const last = whole.kind === 'entries' ? whole.entries.at(-1) : undefined
    // What the log cannot tell the database would have to.
    if (whole.kind !== 'entries' || last === undefined) return 'unknown'
    parts = []
    seen.cursor = undefined
    for (const entry of whole.entries) show(entry)
    return 'more'
  }

  async function follow(): Promise<Seen> {
    const aborted = Promise.withResolvers<void>()
    const stop = () => aborted.resolve()
    signal.addEventListener('abort', stop)
    while (!signal.aborted && !seen.ended) {
      const woken = Promise.withResolvers<void>()
      const unwatch = log.watch(speech.runId, woken.resolve)
      const found = await readOnce()
      if (found === 'unknown') {
        seen.unknown += 1
        const timer = setTimeout(woken.resolve, askAgainMs)
        await Promise.race([woken.promise, aborted.promise])
        clearTimeout(timer)
      } else if (found === 'caught up') {
        await Promise.race([woken.promise, aborted.promise])
      }
      unwatch()
      for (const look of looking) look()
    }
    signal.removeEventListener('abort', stop)
    return seen
  }

  async function until(is: () => boolean): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    const look = () => is() && resolve()
    looking.add(look)
    look()
    await promise
    looking.delete(look)
  }

  const over = follow()
  return {
    seen,
    over,
    reaches: (seq) => until(() => (seen.cursor?.seq ?? 0) >= seq),
    missesIt() {
      const before = seen.unknown
      return until(() => seen.unknown > before)
    },
  }
}
