/**
 * Counters that processes share through Redis, for the limits of http/limits.ts. A counter is a key that ends with its
 * window; nothing else is kept. It is no record: with Redis away, or emptied, a count begins anew.
 *
 * One round trip for a count. The commands follow each other at the server, and the increment is one of its own: whatever
 * other processes do in between, each caller gets a number that no other gets. A key whose window ends just between the
 * first command and the second begins again without an end; so an answer without one is mended before it is used.
 *
 * Owns nothing. When the process dies at the await, the count stands, and ends with its window.
 */
import type { Redis } from 'ioredis'
import type { RedisStore } from './redis.ts'

export interface Count {
  /** Including what was just added. */
  readonly count: number
  /** Until the window ends. */
  readonly ttlMs: number
}

export interface Counters {
  /** @param windowMs from the first increment on. @returns undefined when Redis does not answer */
  increment(key: string, by: number, windowMs: number): Promise<Count | undefined>
  /** Keeps `fresh` under `key` unless there is a value already. @returns the value that counts; undefined as above */
  agree(key: string, fresh: string, ttlMs: number): Promise<string | undefined>
}

export function createCounters(store: Pick<RedisStore, 'ask' | 'prefix'>): Counters {
  const keyOf = (key: string) => `${store.prefix}:rate:${key}`
  return {
    increment: (key, by, windowMs) => store.ask((redis) => increment(redis, keyOf(key), by, windowMs)),
    agree: (key, fresh, ttlMs) => store.ask((redis) => agree(redis, keyOf(key), fresh, ttlMs)),
  }
}

async function increment(redis: Redis, key: string, by: number, windowMs: number): Promise<Count> {
  const answers = await redis.pipeline().set(key, 0, 'PX', windowMs, 'NX').incrby(key, by).pttl(key).exec()
  const count = Number(readAnswer(answers, 1))
  const ttlMs = Number(readAnswer(answers, 2))
  if (ttlMs >= 0) return { count, ttlMs }
  await redis.pexpire(key, windowMs)
  return { count, ttlMs: windowMs }
}

async function agree(redis: Redis, key: string, fresh: string, ttlMs: number): Promise<string> {
  const answers = await redis.pipeline().set(key, fresh, 'PX', ttlMs, 'NX').get(key).exec()
  // Gone again already: the next one to ask begins anew.
  return String(readAnswer(answers, 1) ?? fresh)
}

/** @throws the server's error to one command of a pipeline */
function readAnswer(answers: readonly [Error | null, unknown][] | null, index: number): unknown {
  const [error, value] = answers?.[index] ?? [new Error('the pipeline was not answered'), undefined]
  if (error !== null) throw error
  return value
}
