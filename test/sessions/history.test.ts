/** Copies of histories: what is served from them is what the database would say, or nothing is. */
import { randomUUID } from 'node:crypto'
import { test } from 'tap'
import type { Db } from '../../src/db/db.ts'
import { sql } from '../../src/db/drizzle.ts'
import { Problem } from '../../src/errors.ts'
import type { Owner } from '../../src/http/identity.ts'
import { createHistoryCache } from '../../src/sessions/history.ts'
import type { ListMessagesQuery } from '../../src/sessions/model.ts'
import { addMessages, countReads, openStoreOnRedis, seedSession, untilSo } from '../support/copies.ts'
import { databases } from '../support/database.ts'
import { withoutRedis } from '../support/redis.ts'
import { createOwner, openStore } from '../support/runs.ts'

const ttlMs = 60_000
const messagesMax = 5

for (const kind of databases()) {
  test(`on ${kind}`, { skip: withoutRedis }, async (t) => {
    const { db, messages } = await openStore(t, kind)
    const { store, redis, prefix } = await openStoreOnRedis(t)
    const reads = countReads()
    const open = (on: Db = db) => createHistoryCache({ db: on, store, ttlMs, messagesMax, count: reads.count })
    const history = open()
    const keyOf = (id: string) => `${prefix}:hist:${id}`
    const read = async (owner: Owner, id: string, query: ListMessagesQuery = {}, from = history) => {
      const page = await from.readPage(owner, id, query)
      return page === undefined ? undefined : JSON.parse(page.toString())
    }
    /** Reads until there is a copy. */
    const warm = async (owner: Owner, id: string) => {
      await read(owner, id)
      await untilSo(async () => (await redis.exists(keyOf(id))) === 1, 'a copy')
      reads.take()
    }

    await t.test('every page that is served is the one of the database, and those of the end are served', async (t) => {
      const owner = createOwner()
      for (const count of [0, 1, 2, 5, 6, 9]) {
        const id = await seedSession(db, owner, count, { text: (seq) => `\uFEFF${seq}:\n"é\u2028,😀` })
        const metadata = JSON.stringify({
          line: '\r\n',
          number: 1.5e300,
          deep: [{ '': null, digits: 2 ** 53 + 2, part: 0.1 }],
        })
        await db.rows(sql`update chat_messages set metadata = ${metadata}::jsonb where session_id = ${id}::uuid`)
        await warm(owner, id)
        const all = (await messages.listMessages(owner, id, { limit: 100 })).data
        for (const limit of [1, 2, 4, 5, 6, 10]) {
          const rising = await messages.listMessages(owner, id, { limit })
          const served = await read(owner, id.toUpperCase(), { limit })
          t.strictSame(served, count <= messagesMax ? rising : undefined, `${count} messages, the first ${limit}`)

          const falling = await read(owner, id, { limit, order: 'desc' })
          if (count > messagesMax && limit > messagesMax) {
            t.equal(falling, undefined)
            continue
          }
          t.strictSame(falling.data, all.toReversed().slice(0, limit), `${count} messages, the last ${limit}`)
          const next = falling.next_cursor === null ? null : JSON.parse(atob(falling.next_cursor))
          t.strictSame(next, count > limit ? [count - limit + 1] : null)
        }
        t.equal(await read(owner, id, { branch: 'active' }), undefined, 'no copy is of a branch')
        t.equal(await read(owner, id, { cursor: 'any' }), undefined, 'nor of what follows a page')
      }
      t.notOk(reads.take().some((result) => /stale|error/.test(result)))
    })

    await t.test('a write that raises the version is seen at once, whoever holds which copy', async (t) => {
      const owner = createOwner()
      const id = await seedSession(db, owner, 1)
      await warm(owner, id)
      await read(owner, id)
      t.strictSame(reads.take(), ['history hit'])
      await addMessages(db, owner, id, 1)
      t.equal((await read(owner, id)).data.length, 2)
      t.strictSame(reads.take(), ['history stale'])
      await untilSo(
        async () => (await read(owner, id)) !== undefined && reads.take()[0] === 'history hit',
        'a new copy',
      )
    })

    await t.test('the twin: without the stamp the same copy would have been served', async (t) => {
      const owner = createOwner()
      const id = await seedSession(db, owner, 1)
      await warm(owner, id)
      const stamps = new Map<unknown, unknown>()
      // Says what it said first, whatever is true by now.
      const forgetful: Db = {
        ...db,
        prepare<Row>(statement: Parameters<Db['prepare']>[0]) {
          const ask = db.prepare<Row>(statement)
          return async (values) => {
            if (!('questions' in values)) return ask(values)
            const known = stamps.get(values.questions) ?? (await ask(values))
            stamps.set(values.questions, known)
            return known as Row[]
          }
        },
      }
      const trusting = open(forgetful)
      await read(owner, id, {}, trusting)
      await addMessages(db, owner, id, 1)
      t.equal((await read(owner, id, {}, trusting)).data.length, 1, 'old')
      t.equal((await read(owner, id)).data.length, 2)
    })

    await t.test('an id that was purged and given again is another session, also with the same version', async (t) => {
      const owner = createOwner()
      const id = await seedSession(db, owner, 1, { text: () => 'forgotten' })
      await warm(owner, id)
      await db.rows(sql`delete from chat_sessions where id = ${id}::uuid`)
      await t.rejects(read(owner, id), { code: 'not_found' })
      await seedSession(db, owner, 1, { id, text: () => 'new' })
      t.match(await read(owner, id), { data: [{ content: 'new' }] })
    })

    await t.test('what is deleted, somebody else\u2019s or claimed is not found, whatever Redis holds', async (t) => {
      const owner = createOwner()
      const [deleted, claimed] = [await seedSession(db, owner, 2), await seedSession(db, owner, 2)]
      for (const id of [deleted, claimed]) {
        await warm(owner, id)
        await t.rejects(read(createOwner(), id), { code: 'not_found' })
      }
      await db.rows(sql`update chat_sessions set deleted_at = now() where id = ${deleted}::uuid`)
      const user: Owner = { kind: 'user', key: `user:${randomUUID()}`, userId: randomUUID(), visitorHash: null }
      const { userId } = { ...user, userId: user.key.slice('user:'.length) }
      await db.rows(sql`update chat_sessions set user_id = ${userId}, visitor_hash = null where id = ${claimed}::uuid`)
      for (const id of [deleted, claimed]) await t.rejects(read(owner, id), { code: 'not_found' })
      t.equal((await read(user, claimed)).data.length, 2)
      t.equal(await redis.exists(keyOf(claimed)), 1, 'although there was a copy')
    })

    await t.test('a running reply is not served from a copy', async (t) => {
      const owner = createOwner()
      const id = await seedSession(db, owner, 2, { status: 'streaming' })
      await warm(owner, id)
      t.equal(await read(owner, id), undefined)
      t.strictSame(reads.take(), ['history miss'])
    })

    await t.test('what is too long for a copy is read from the database, and its end is kept', async (t) => {
      const owner = createOwner()
      const long = await seedSession(db, owner, 2, { text: () => 'x'.repeat(300_000) })
      t.equal(await read(owner, long), undefined)
      t.equal(await redis.exists(keyOf(long)), 0)
      const mixed = await seedSession(db, owner, 3, { text: (seq) => 'x'.repeat(seq === 1 ? 300_000 : 10) })
      await warm(owner, mixed)
      t.equal(await read(owner, mixed), undefined)
      t.equal((await read(owner, mixed, { order: 'desc', limit: 2 })).data.length, 2)
    })

    await t.test('copies go by themselves, and what others left under their keys is not served', async (t) => {
      const owner = createOwner()
      const id = await seedSession(db, owner, 2)
      await warm(owner, id)
      const left = await redis.pttl(keyOf(id))
      t.ok(left > 0 && left <= ttlMs, `${left} ms`)
      for (const value of ['', 'x', '{"stamp":', '\n', 'null\n{}']) {
        await redis.set(keyOf(id), value)
        t.equal((await read(owner, id)).data.length, 2, JSON.stringify(value))
        await untilSo(async () => (await redis.get(keyOf(id))) !== value, 'a new copy')
      }
      await redis.del(keyOf(id))
      await redis.lpush(keyOf(id), 'x')
      t.equal((await read(owner, id)).data.length, 2, 'a list')
      await untilSo(async () => (await redis.type(keyOf(id))) === 'string', 'a new copy')
    })

    await t.test('many who ask in the same moment share a statement, and each gets the own answer', async (t) => {
      const owner = createOwner()
      const ids = await Promise.all(Array.from({ length: 40 }, (_, index) => seedSession(db, owner, 1 + (index % 3))))
      await history.refresh(ids)
      const counted = countStatements(db)
      const many = open(counted.db)
      const pages = await Promise.all(ids.map((id) => read(owner, id, {}, many)))
      t.strictSame(
        pages.map((page) => page.data.length),
        ids.map((_, index) => 1 + (index % 3)),
      )
      t.ok(counted.statements <= 4, `${counted.statements} statements for ${ids.length} reads`)
    })

    await t.test('only a database that does not answer makes old copies shown, and only to their owner', async (t) => {
      const owner = createOwner()
      const id = await seedSession(db, owner, 2)
      await warm(owner, id)
      await addMessages(db, owner, id, 1)
      const away = open(failing(db, new Problem('db_unavailable')))
      t.match(await read(owner, id, {}, away), { degraded: true, data: { length: 2 }, next_cursor: null })
      t.match(await read(owner, id, { limit: 1 }, away), { degraded: true, data: { length: 1 }, next_cursor: /./ })
      await t.rejects(read(createOwner(), id, {}, away), { code: 'db_unavailable' })
      await t.rejects(read(owner, await seedSession(db, owner, 1), {}, away), { code: 'db_unavailable' })
      await t.rejects(read(owner, id, {}, open(failing(db, new Error('a bug')))), { message: 'a bug' })
    })
  })
}

function countStatements(db: Db): { readonly db: Db; readonly statements: number } {
  let statements = 0
  return {
    get statements() {
      return statements
    },
    db: {
      ...db,
      prepare<Row>(statement: Parameters<Db['prepare']>[0]) {
        const ask = db.prepare<Row>(statement)
        return (values) => {
          statements += 1
          return ask(values)
        }
      },
    },
  }
}

const failing = (db: Db, error: Error): Db => ({ ...db, prepare: () => () => Promise.reject(error) })
