/**
 * Which stores this process uses. The only file that names the adapters together. A URL's scheme picks the adapter,
 * absence picks the embedded default, and failure picks nothing: a database that is set and does not answer never
 * becomes another one. An adapter and its driver are loaded when they are picked: no process needs all of them.
 */
import type { FastifyBaseLogger } from 'fastify'
import type { Config } from './config.ts'
import type { Db } from './db/db.ts'
import type { RedisStore } from './db/redis.ts'
import { type Control, createSilentControl } from './log/control.ts'
import type { EventLog } from './log/log.ts'
import { createMemoryLog } from './log/memory.ts'

/** @throws Error with a sentence for the operator when the embedded database cannot be opened */
export async function openDatabase({ database }: Config): Promise<Db> {
  if (database.kind === 'postgres') {
    const { openPostgres } = await import('./db/postgres.ts')
    return openPostgres(database)
  }
  const { openPglite } = await import('./db/pglite.ts')
  return openPglite(database.dataDir)
}

export interface LogBackend {
  readonly log: EventLog
  readonly control: Control
  /** For the start line: where the log is, without credentials. */
  readonly description: string
}

/** Never waits for Redis, and never fails because of it. @param instanceId commands for this process name it */
export async function openLog({ redis }: Config, instanceId: string, logger: FastifyBaseLogger): Promise<LogBackend> {
  if (redis !== undefined) {
    const { openRedisLog } = await import('./log/redis.ts')
    return openRedisLog({ ...redis, instanceId, logger })
  }
  return { log: createMemoryLog(), control: createSilentControl(), description: 'in this process' }
}

/** Redis for what may be lost: copies and counters. @returns undefined without Redis. Never waits for it */
export async function openStore({ redis }: Config, logger: FastifyBaseLogger): Promise<RedisStore | undefined> {
  if (redis === undefined) return undefined
  const { openRedisStore } = await import('./db/redis.ts')
  return openRedisStore({ url: redis.url, logger })
}
