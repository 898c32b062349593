/**
 * The embedded database's folder: one process at a time, whatever way the last one ended.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import t, { type Test } from 'tap'
import { sql } from '../../src/db/drizzle.ts'
import { openPglite, writeDump } from '../../src/db/pglite.ts'
import { inMemory } from '../support/database.ts'
import { createDataFolder, createFolder } from '../support/gateway.ts'

const source = new URL('../../src/', import.meta.url)
const holderProgram = `
  const { openPglite } = await import(${JSON.stringify(new URL('db/pglite.ts', source).href)})
  const { sql } = await import(${JSON.stringify(new URL('db/drizzle.ts', source).href)})
  try {
    const db = await openPglite(process.argv[1])
    await db.rows(sql\`create table words (id int primary key, word text)\`)
    for (let id = 0; id < 50; id += 1) await db.rows(sql\`insert into words values (\${id}::int, 'kept')\`)
    console.log('open')
    setInterval(() => undefined, 1000)
  } catch (error) {
    console.log(error.message)
  }
`

/** Opens the folder in another process. @returns its first line: `open`, or why not */
async function openElsewhere(t: Test, folder: string) {
  const child = spawn(process.execPath, ['--input-type=module', '-e', holderProgram, folder], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const exited = once(child, 'exit')
  const kill = async () => {
    child.kill('SIGKILL')
    await exited
  }
  t.teardown(kill)
  const [line] = (await once(createInterface({ input: child.stdout }), 'line')) as [string]
  return { line, kill }
}

const refusal = (folder: string) =>
  `Another process has the data folder ${folder} open. End it, or set DATA_DIR to another folder.`

t.test('a folder that is open is refused, in this process and from another, with a sentence that helps', async (t) => {
  const folder = await createFolder(t)
  const db = await openPglite(folder)
  t.match(db, { kind: 'pglite', exclusive: true, description: `PGlite in ${folder}` })
  await db.rows(sql`create table mine (id int)`)
  await t.rejects(openPglite(folder), { message: refusal(folder) })
  t.equal((await openElsewhere(t, folder)).line, refusal(folder))
  t.same(await db.rows(sql`select 1 as still`), [{ still: 1 }])
  await db.close()
  const again = await openPglite(folder)
  t.teardown(() => again.close())
  t.same(await again.rows(sql`select * from mine`), [])
})

t.test('when its holder is killed the folder opens, with all that was committed', async (t) => {
  const folder = await createDataFolder(t)
  const holder = await openElsewhere(t, folder)
  t.equal(holder.line, 'open')
  await t.rejects(openPglite(folder), { message: refusal(folder) })
  await holder.kill()
  const db = await openPglite(folder)
  t.teardown(() => db.close())
  t.same(await db.rows(sql`select count(*)::int as count from words where word = 'kept'`), [{ count: 50 }])
  await db.rows(sql`insert into words values (50, 'new')`)
})

t.test('databases in memory are each their own', async (t) => {
  const [a, b] = await Promise.all([openPglite(inMemory), openPglite(inMemory)])
  t.teardown(() => Promise.all([a.close(), b.close()]))
  await a.rows(sql`create table only_here (id int)`)
  await t.rejects(b.rows(sql`select * from only_here`), { message: 'SQLSTATE 42P01' })
})

t.test('a database in memory begins with a dump, and what is done to it stays in memory', async (t) => {
  const dump = join(await createFolder(t), 'new.tar')
  await writeDump(dump)
  for (const _again of [1, 2]) {
    const db = await openPglite(`memory:${dump}`)
    t.match(db.description, /nothing is kept/)
    t.same(await db.rows(sql`select count(*)::int as count from chat_sessions`), [{ count: 0 }])
    await db.rows(sql`insert into chat_sessions (id, visitor_hash) values (gen_random_uuid(), 'x')`)
    await db.close()
  }
  await t.rejects(openPglite('memory:/nowhere/new.tar'), { code: 'ENOENT' })
})
