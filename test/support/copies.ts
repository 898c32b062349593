/** What tests of copies in Redis have in common: a store under a prefix of its own, counted reads, and sessions with messages. */
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Redis } from 'ioredis'
import type { Test } from 'tap'
import type { Db } from '../../src/db/db.ts'
import { sql } from '../../src/db/drizzle.ts'
import { openRedisStore, type RedisStore } from '../../src/db/redis.ts'
import type { Owner } from '../../src/http/identity.ts'
import type { CountCacheRead } from '../../src/sessions/copies.ts'
import { connectRedis, createPrefix, sharedRedis } from './redis.ts'

const lookMs = 5
const untilMs = 10_000

/** Resolves when it is so. For what has no event to await: a store that connects, keys that nobody waits for. */
export async function untilSo(isSo: () => boolean | Promise<boolean>, what: string): Promise<void> {
  for (const giveUpAt = performance.now() + untilMs; performance.now() < giveUpAt; await sleep(lookMs)) {
    if (await isSo()) return
  }
  throw new Error(`waited in vain: ${what}`)
}

export interface StoreOnRedis {
  readonly store: RedisStore
  /** Past the store. */
  readonly redis: Redis
  readonly prefix: string
}

/** A store on the run's Redis that answers; what it writes is deleted with the test. */
export async function openStoreOnRedis(t: Test, url: string = sharedRedis()): Promise<StoreOnRedis> {
  const prefix = createPrefix(t, url)
  const store = openRedisStore({ url, prefix, logger: { info: () => undefined, warn: () => undefined } })
  t.teardown(() => store.close())
  await untilSo(() => store.isWell, 'the store is well')
  return { store, redis: connectRedis(t, url), prefix }
}

export interface CountedReads {
  readonly count: CountCacheRead
  /** Since the last call, as `history hit`, in their order. */
  take(): string[]
}

export function countReads(): CountedReads {
  let reads: string[] = []
  return {
    count: (cache, result) => void reads.push(`${cache} ${result}`),
    take() {
      const taken = reads
      reads = []
      return taken
    },
  }
}

export interface SeedOptions {
  readonly id?: string
  readonly status?: 'completed' | 'streaming'
  readonly text?: (seq: number) => string
}

/** A visitor's session with so many messages, as runs leave it. @returns its id */
export async function seedSession(db: Db, owner: Owner, count: number, options: SeedOptions = {}): Promise<string> {
  const { id = randomUUID(), status = 'completed', text = (seq) => `Message ${seq}` } = options
  await db.rows(sql`
    insert into chat_sessions (id, visitor_hash, status, message_count) values (${id}::uuid, ${owner.visitorHash}, 'completed', 0)`)
  await addMessages(db, owner, id, count, status, text)
  return id
}

/** As every write does: the messages and the version of their session in one statement. */
export async function addMessages(
  db: Db,
  owner: Owner,
  id: string,
  count: number,
  status: 'completed' | 'streaming' = 'completed',
  text: (seq: number) => string = (seq) => `Message ${seq}`,
): Promise<void> {
  const [before] = await db.rows<{ count: number }>(
    sql`select message_count as count from chat_sessions where id = ${id}::uuid`,
  )
  const first = (before?.count ?? 0) + 1
  const messages = Array.from({ length: count }, (_, index) => ({ seq: first + index, text: text(first + index) }))
  await db.rows(sql`
    with session as (
      update chat_sessions set message_count = message_count + ${count}::int, version = version + 1
      where id = ${id}::uuid returning id
    )
    insert into chat_messages (id, session_id, owner, seq, role, content, parts, status)
    select gen_random_uuid(), session.id, ${owner.key}, m.seq, case when m.seq % 2 = 1 then 'user' else 'assistant' end,
      m.text, jsonb_build_array(jsonb_build_object('kind', 'text', 'text', m.text)),
      case when m.seq = ${first + count - 1}::int then ${status}::text else 'completed' end
    from session, jsonb_to_recordset(${JSON.stringify(messages)}::jsonb) as m(seq int, text text)`)
}
