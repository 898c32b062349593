/** Redis for what may be lost: counters and caches. Only the shape is here yet. */
import type { Redis } from 'ioredis'

export interface RedisStore {
  /** Why it works less well than configured, in words for an operator. */
  readonly degraded: string | undefined
  /** Of every key, without a colon at its end. */
  readonly prefix: string
  /**
   * Runs commands, bounded in time and behind a breaker. Never throws for outages.
   * @returns undefined when Redis does not answer
   */
  ask<T>(what: (redis: Redis) => Promise<T>): Promise<T | undefined>
  close(): Promise<void>
}
