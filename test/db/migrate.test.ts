/**
 * Bringing the schema up to date: from several processes at once, twice, and never backwards.
 */
import { readFileSync } from 'node:fs'
import { test } from 'tap'
import type { Db } from '../../src/db/db.ts'
import { sql } from '../../src/db/drizzle.ts'
import { migrationsFolder } from '../../src/db/migrate.ts'
import { openPglite } from '../../src/db/pglite.ts'
import { openPostgres } from '../../src/db/postgres.ts'
import { createTestDatabase, databases } from '../support/database.ts'

const journal: { entries: { when: number }[] } = JSON.parse(
  readFileSync(`${migrationsFolder}/meta/_journal.json`, 'utf8'),
)

const applied = (db: Db) =>
  db.rows<{ at: number }>(sql`select created_at::float8 as at from drizzle.__drizzle_migrations order by created_at`)

for (const kind of databases()) {
  test(`on ${kind}`, async (t) => {
    const url = kind === 'postgres' ? (await createTestDatabase(t, 'template0')).url : undefined
    const open = async () =>
      url === undefined ? openPglite('memory:') : openPostgres({ url, unpooledUrl: url, poolSize: 2 })
    const db = await open()
    t.teardown(() => db.close())

    await t.test('every migration is applied once, also when it is asked for again', async (t) => {
      const processes = url === undefined ? [db] : [db, ...(await Promise.all([open(), open(), open()]))]
      await Promise.all(processes.map((process) => process.migrate()))
      for (const process of processes.slice(1)) await process.close()
      await db.migrate()
      t.same(
        await applied(db),
        journal.entries.map(({ when }) => ({ at: when })),
      )
      t.same(await db.rows(sql`select count(*)::int as count from chat_sessions`), [{ count: 0 }])
    })

    await t.test('an older program refuses a newer schema, and changes nothing', async (t) => {
      const later = Math.max(...journal.entries.map(({ when }) => when)) + 1
      await db.rows(sql`insert into drizzle.__drizzle_migrations (hash, created_at) values ('later', ${later}::bigint)`)
      const before = await applied(db)
      await t.rejects(db.migrate(), { name: 'SchemaTooNew', message: /newer version of this program/ })
      t.same(await applied(db), before)
      await db.rows(sql`delete from drizzle.__drizzle_migrations where hash = 'later'`)
      await t.resolves(db.migrate(), 'and is content again without it')
    })
  })
}
