/**
 * What the tests of a run begin with: databases that have all tables and nothing in them, made once and then copied. To
 * make one takes a processor three seconds (embedded), or 0.7 with a server of its own; to copy one 0.5 and 0.2.
 *
 * All of it is in the folder of the run but the database on the run's Postgres, which its name tells from those of tests,
 * and which whoever asked for it drops. A test that wants an empty database makes one (test/support/database.ts).
 */
import { join } from 'node:path'
import { writeDump } from '../src/db/pglite.ts'
import { openPostgres } from '../src/db/postgres.ts'
import { onServer } from '../test/support/database.ts'
import { writePostgresData } from './servers.ts'

export interface PreparedOptions {
  /** Of the run; it goes with it. */
  readonly folder: string
  readonly run: string
  /** A server on which tests make databases. */
  readonly databaseUrl: string | undefined
  /** With `initdb` and `postgres`, for tests that start servers. */
  readonly postgresFolder: string | undefined
  readonly signal: AbortSignal
}

export interface Prepared {
  /** By which tests find it. */
  readonly env: Readonly<Record<string, string>>
  /** Drops what is on the server. */
  close(): Promise<void>
}

export async function prepareDatabases(options: PreparedOptions): Promise<Prepared> {
  const { folder, run, databaseUrl, postgresFolder, signal } = options
  const dump = join(folder, 'new.tar')
  const data = join(folder, 'postgres')
  const template = `${run}_new`
  const close = async () => {
    if (databaseUrl !== undefined) await onServer(databaseUrl, (sql) => sql`drop database if exists ${sql(template)}`)
  }
  try {
    await writeDump(dump)
    if (databaseUrl !== undefined) {
      await onServer(databaseUrl, (sql) => sql`create database ${sql(template)} template template0`)
      const url = new URL(databaseUrl)
      url.pathname = `/${template}`
      await migrate(url.href)
    }
    if (postgresFolder !== undefined) await writePostgresData(postgresFolder, data, migrate, signal)
  } catch (error) {
    await close()
    throw error
  }
  return {
    env: {
      TEST_PGLITE_DUMP: dump,
      ...(databaseUrl === undefined ? {} : { TEST_DATABASE_TEMPLATE: template }),
      ...(postgresFolder === undefined ? {} : { TEST_POSTGRES_DATA: data }),
    },
    close,
  }
}

async function migrate(url: string): Promise<void> {
  const db = openPostgres({ url, unpooledUrl: url, poolSize: 1 })
  try {
    await db.migrate()
  } finally {
    await db.close()
  }
}
