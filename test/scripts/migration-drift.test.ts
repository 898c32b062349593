/** A schema without its migration is noticed, and the tree stays as it is. */
import { cpSync, mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { findDrift } from '../../scripts/migration-drift.ts'

const root = join(import.meta.dirname, '..', '..')

t.test('a forgotten migration is found, a committed one is not, and a broken schema is an error', async (t) => {
  // Inside the project, so that the schema finds drizzle-orm.
  const folder = join(root, '.tap', `drift-${process.pid}`)
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  mkdirSync(join(folder, 'src', 'db'), { recursive: true })
  const schema = (columns: string): void =>
    writeFileSync(
      join(folder, 'src', 'db', 'schema.ts'),
      `import { pgTable, text } from 'drizzle-orm/pg-core'\nexport const notes = pgTable('notes', { ${columns} })\n`,
    )

  schema(`id: text('id').primaryKey()`)
  const first = await findDrift(folder)
  t.match([...first.values()], [/CREATE TABLE "notes"/])
  t.strictSame(readdirSync(folder), ['src'], 'nothing is left in the tree')

  // What `npm run migration` would have written.
  cpSync(join(root, 'test', 'fixtures', 'drizzle-notes'), join(folder, 'drizzle'), { recursive: true })
  t.equal((await findDrift(folder)).size, 0)

  schema(`id: text('id').primaryKey(), body: text('body')`)
  t.match([...(await findDrift(folder)).values()], [/ADD COLUMN "body"/])

  schema(`key: text('key').primaryKey()`)
  await t.rejects(findDrift(folder), /drizzle-kit generate ended with/, 'a question that nobody answers')

  schema(`id: nothing('id')`)
  await t.rejects(findDrift(folder), /drizzle-kit generate ended with/)
})
