/**
 * Which stores this process uses. The only file that names the adapters together. A URL's scheme picks the adapter,
 * absence picks the embedded default, and failure picks nothing: a database that is set and does not answer never
 * becomes another one.
 */
import type { FastifyBaseLogger } from 'fastify'
import type { Config } from './config.ts'
import type { Db } from './db/db.ts'
import { openPglite } from './db/pglite.ts'
import { openPostgres } from './db/postgres.ts'
import { openRedisStore, type RedisStore } from './db/redis.ts'
import { type Control, createSilentControl } from './log/control.ts'
import type { EventLog } from './log/log.ts'
import { createMemoryLog } from './log/memory.ts'
import { openRedisLog } from './log/redis.ts'

/** @throws Error with a sentence for the operator when the embedded database cannot be opened */
export async function openDatabase({ database }: Config): Promise<Db> {
  return database.kind === 'postgres' ? openPostgres(database) : await openPglite(database.dataDir)
}

export interface LogBackend {
  readonly log: EventLog
  readonly control: Control
  /** For the start line: where the log is, without credentials. */
  readonly description: string
}

/** Never waits for Redis, and never fails because of it. @param instanceId commands for this process name it */
export function openLog({ redis }: Config, instanceId: string, logger: FastifyBaseLogger): LogBackend {
  if (redis !== undefined) return openRedisLog({ ...redis, instanceId, logger })
  return { log: createMemoryLog(), control: createSilentControl(), description: 'in this process' }
}

/** Redis for what may be lost: copies and counters. @returns undefined without Redis. Never waits for it */
export function openStore({ redis }: Config, logger: FastifyBaseLogger): RedisStore | undefined {
  return redis === undefined ? undefined : openRedisStore({ url: redis.url, logger })
}
