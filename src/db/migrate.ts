/**
 * What both adapters need to bring a schema up to date: where the migrations are, and whether a newer program has been
 * here before. Migrations only go forward; each says in its commit whether the previous program can run on it.
 */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { SchemaTooNew, toRows } from './db.ts'
import { type SQL, sql } from './drizzle.ts'

export const migrationsFolder = fileURLToPath(new URL('../../drizzle', import.meta.url))

/**
 * @param execute runs one statement on the connection that will migrate
 * @throws SchemaTooNew when the database holds a migration later than the last one this program brings
 */
export async function refuseNewerSchema(execute: (statement: SQL) => PromiseLike<unknown>): Promise<void> {
  const table = toRows<{ name: string | null }>(
    await execute(sql`select to_regclass('drizzle.__drizzle_migrations')::text as name`),
  )
  if (table[0]?.name === null || table[0]?.name === undefined) return
  const applied = toRows<{ last: string | null }>(
    await execute(sql`select max(created_at)::text as last from drizzle.__drizzle_migrations`),
  )
  if (Number(applied[0]?.last ?? 0) > lastKnownMigration()) throw new SchemaTooNew()
}

function lastKnownMigration(): number {
  const journal: { entries: { when: number }[] } = JSON.parse(
    readFileSync(`${migrationsFolder}/meta/_journal.json`, 'utf8'),
  )
  return Math.max(0, ...journal.entries.map((entry) => entry.when))
}
