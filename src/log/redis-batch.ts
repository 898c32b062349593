/**
 * A pipeline of the writer (redis-writer.ts), and what its answers mean. A frame of many runs is one pipeline, but each run
 * succeeds or fails by itself; so whoever adds commands says what becomes of their part of the answers. Nothing is kept
 * between two pipelines.
 *
 * When the connection or Redis dies before all is answered, each part is told so, and nobody knows what was applied.
 */
import type { ChainableCommander, Redis } from 'ioredis'
import type { EncodedEntry } from './redis-codec.ts'

type Results = readonly (readonly [error: Error | null, value?: unknown])[]

/**
 * `lost`: the stream is not there any more. `conflict`: an entry with this id, or a later one, is on top of the stream.
 * `barred`: the key holds something else. An error: Redis refused it, or did not answer.
 */
export type Outcome = 'done' | 'lost' | 'conflict' | 'barred' | Error

/** Commands are of use for moments. Their stream is trimmed, and goes by itself when its process is gone. */
const controlTtlMs = 60_000
const controlEntriesMax = 1000

export type Batch = ReturnType<typeof createBatch>

/** One pipeline, and for each run in it what its part of the answers means. */
export function createBatch(redis: Redis, ttlMs: number) {
  const pipeline = redis.pipeline()
  const readers: ((results: Results) => void)[] = []
  let bytes = 0

  // Of a pipeline's own `multi()` the types say nothing.
  const transaction = (body: () => number, settle: (outcome: Outcome) => void): void => {
    const from = pipeline.length
    pipeline.call('multi')
    const deciding = body()
    const exec = pipeline.length
    pipeline.call('exec')
    readers.push((results) => settle(readTransaction(results.slice(from, exec + 1), deciding)))
  }

  const add = (to: ChainableCommander, key: string, [id, field, value]: EncodedEntry, existing: boolean): void => {
    bytes += key.length + value.length
    if (existing) to.xadd(key, 'NOMKSTREAM', id, field, value)
    else to.xadd(key, id, field, value)
  }

  return {
    get bytes() {
      return bytes
    },
    get isEmpty() {
      return readers.length === 0
    },

    /** Adds to a stream, and makes it when it is not there. The last entry decides: those before it may be there. */
    create(key: string, entries: readonly EncodedEntry[], settle: (outcome: Outcome) => void): void {
      transaction(() => {
        for (const entry of entries) add(pipeline, key, entry, false)
        pipeline.pexpire(key, ttlMs)
        return entries.length - 1
      }, settle)
    },

    /** Adds to a stream that must be there. */
    append(key: string, entries: readonly EncodedEntry[], ended: boolean, settle: (outcome: Outcome) => void): void {
      const from = pipeline.length
      for (const entry of entries) add(pipeline, key, entry, true)
      const to = pipeline.length
      if (ended) pipeline.pexpire(key, ttlMs)
      readers.push((results) => settle(readAll(results.slice(from, to))))
    },

    /** A command each: in a cluster, keys of several slots are refused in one. */
    erase(names: readonly string[], settle: (outcome: Outcome) => void): void {
      const from = pipeline.length
      for (const name of names) pipeline.unlink(name)
      const to = pipeline.length
      readers.push((results) => settle(readAll(results.slice(from, to))))
    },

    /** Asks for the id of a stream's last entry. */
    ask(key: string, settle: (outcome: Outcome, top: string | undefined) => void): void {
      const at = pipeline.length
      pipeline.xrevrange(key, '+', '-', 'COUNT', 1)
      readers.push((results) => {
        const [error, value] = results[at] ?? [unanswered()]
        settle(error === null ? 'done' : classify(error), (value as [id: string][] | undefined)?.[0]?.[0])
      })
    },

    command(key: string, [field, value]: readonly [string, string], settle: (outcome: Outcome) => void): void {
      transaction(() => {
        pipeline.xadd(key, 'MAXLEN', '~', controlEntriesMax, '*', field, value)
        pipeline.pexpire(key, controlTtlMs)
        return 0
      }, settle)
    },

    /** Resolves when all answers are read, or will not come; never rejects. */
    async send(): Promise<void> {
      let results: Results | null = null
      try {
        results = await pipeline.exec()
      } catch (error) {
        const failure: Results[number] = [error instanceof Error ? error : unanswered()]
        results = Array.from({ length: pipeline.length }, () => failure)
      }
      for (const read of readers) read(results ?? [])
    },
  }
}

/** @param deciding index of the command in the transaction whose answer counts */
function readTransaction(results: Results, deciding: number): Outcome {
  // A command that is refused while it is queued makes EXEC fail, and says why.
  const queued = results.slice(0, -1).find(([error]) => error !== null)
  const [error, values] = results.at(-1) ?? [unanswered()]
  const failure = queued?.[0] ?? error
  if (failure !== null) return classify(failure)
  const answer: unknown = Array.isArray(values) ? values[deciding] : undefined
  if (answer instanceof Error) return classify(answer)
  return answer === undefined || answer === null ? unanswered() : 'done'
}

function readAll(results: Results): Outcome {
  let outcome: Outcome = results.length === 0 ? unanswered() : 'done'
  for (const [error, value] of results) {
    // What tells most about the run comes first: the connection's end says nothing about a conflict.
    const one: Outcome = error === null ? (value === null ? 'lost' : 'done') : classify(error)
    if (one === 'conflict' || one === 'barred') return one
    if (one !== 'done' && outcome === 'done') outcome = one
  }
  return outcome
}

const unanswered = () => new Error('an answer is missing')

/** Redis has no code for these but its words, which are the same since streams exist (5.0). */
function classify(error: Error): Outcome {
  if (error.message.includes('equal or smaller than the target stream top item')) return 'conflict'
  if (error.message.startsWith('WRONGTYPE')) return 'barred'
  return error
}

/** In few words, and without an address or a credential. */
export function describeError(error: Error & { readonly code?: unknown }): string {
  return typeof error.code === 'string' ? error.code : error.message
}
