/**
 * Databases for tests: each test gets one of its own on the run's Postgres, named after the run, and drops it at its
 * end. A database that outlives its test makes the run fail.
 */
import { randomBytes } from 'node:crypto'
import postgres from 'postgres'
import type { Test } from 'tap'

/** Longest wait for the server's answer to a login. */
const connectSeconds = 10
const missing = 'run npm test, or set TEST_DATABASE_URL'

/** An embedded database that keeps nothing; quicker to open when the run has made a dump of a new one. */
export const inMemory = `memory:${process.env.TEST_PGLITE_DUMP ?? ''}`

export type DatabaseKind = 'pglite' | 'postgres'

/**
 * The databases that the suite runs on: both, or only the embedded one when the run says so.
 * @throws when there is no Postgres and the run does not say that it goes without
 */
export function databases(env: Readonly<Record<string, string | undefined>> = process.env): readonly DatabaseKind[] {
  if (env.TEST_EMBEDDED_ONLY === '1') return ['pglite']
  if (env.TEST_DATABASE_URL === undefined || env.TEST_DATABASE_URL === '') throw new Error(missing)
  return ['pglite', 'postgres']
}

/**
 * A database without rows; it is dropped, with its sessions, when the test ends. Whoever opens it has to migrate it all the
 * same: it has the tables only when the run has prepared one to copy.
 * @param template what it begins with; `template0` is empty
 */
export async function createTestDatabase(
  t: Pick<Test, 'teardown'>,
  template = process.env.TEST_DATABASE_TEMPLATE ?? 'template0',
): Promise<{ url: string }> {
  const server = process.env.TEST_DATABASE_URL
  if (server === undefined || server === '') throw new Error(missing)
  const name = `${process.env.TEST_RUN ?? 'verbatim_test'}_${randomBytes(6).toString('hex')}`
  // Nobody is connected to either template, so several files can copy it at once.
  await onServer(server, (sql) => sql`create database ${sql(name)} template ${sql(template)} strategy file_copy`)
  t.teardown(() => onServer(server, (sql) => sql`drop database if exists ${sql(name)} with (force)`))
  const url = new URL(server)
  url.pathname = `/${name}`
  return { url: url.href }
}

/** Runs one statement on a connection of its own. */
export async function onServer(url: string, statement: (sql: postgres.Sql) => PromiseLike<unknown>): Promise<void> {
  const sql = postgres(url, { max: 1, connect_timeout: connectSeconds, onnotice: () => undefined })
  try {
    await statement(sql)
  } finally {
    await sql.end({ timeout: 1 })
  }
}
