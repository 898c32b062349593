/**
 * Which stores this process uses. The only file that names the adapters together. A URL's scheme picks the adapter,
 * absence picks the embedded default, and failure picks nothing: a database that is set and does not answer never
 * becomes another one.
 */
import type { Config } from './config.ts'
import type { Db } from './db/db.ts'
import { openPglite } from './db/pglite.ts'
import { openPostgres } from './db/postgres.ts'
import type { EventLog } from './log/log.ts'
import { createMemoryLog } from './log/memory.ts'

export interface Backends {
  readonly db: Db
  readonly log: EventLog
  /** What works less well than the configuration asks for, in words for an operator. */
  readonly degraded: readonly string[]
}

/** @throws Error with a sentence for the operator when the embedded database cannot be opened */
export async function openBackends(config: Config): Promise<Backends> {
  const { database } = config
  const db = database.kind === 'postgres' ? openPostgres(database) : await openPglite(database.dataDir)
  return {
    db,
    log: createMemoryLog(),
    degraded:
      config.redisUrl === undefined
        ? []
        : ['REDIS_URL is set, but this version keeps the event log in the process: run one process'],
  }
}
