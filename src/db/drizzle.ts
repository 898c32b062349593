/**
 * The one door to drizzle-orm. Its ESM build costs every process 0.4 s and 240 MB on Node 24, because Node resolves
 * each of its hundreds of small modules through a giant `exports` map; the CommonJS build does not. So it is loaded
 * with `require` here, and re-exported with its exact types. Nothing else in src/ imports drizzle-orm.
 */
import { createRequire } from 'node:module'

const require = createRequire(import.meta.url)

const core: typeof import('drizzle-orm') = require('drizzle-orm')
const pg: typeof import('drizzle-orm/pg-core') = require('drizzle-orm/pg-core')

export const { sql, and, desc, eq, fillPlaceholders, isNotNull, isNull } = core
export const {
  PgDialect,
  bigint,
  boolean,
  check,
  date,
  index,
  integer,
  jsonb,
  numeric,
  pgTable,
  primaryKey,
  smallint,
  text,
  timestamp,
  unique,
  uniqueIndex,
  uuid,
} = pg

export type { SQL, SQLWrapper } from 'drizzle-orm'
export type { PgDatabase, PgQueryResultHKT } from 'drizzle-orm/pg-core'

/** The drivers are loaded only by the adapter that needs them. */
export function loadPostgresJs() {
  const driver: typeof import('drizzle-orm/postgres-js') = require('drizzle-orm/postgres-js')
  const migrator: typeof import('drizzle-orm/postgres-js/migrator') = require('drizzle-orm/postgres-js/migrator')
  return { drizzle: driver.drizzle, migrate: migrator.migrate }
}

export function loadPglite() {
  const driver: typeof import('drizzle-orm/pglite') = require('drizzle-orm/pglite')
  const migrator: typeof import('drizzle-orm/pglite/migrator') = require('drizzle-orm/pglite/migrator')
  return { drizzle: driver.drizzle, migrate: migrator.migrate }
}
