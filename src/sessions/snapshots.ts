/**
 * The rows of sessions as they were after their last change, in Redis, with an index for each owner: what is listed while
 * the database does not answer, and never otherwise. A database that answers with nothing is right.
 *
 * Kept for a day after a session's last change, the newest `indexMax` of an owner. A snapshot says who it is for, and is
 * shown to nobody else, whatever the index says. Everything here can be lost: then there is nothing to show, and the error
 * of the database stands. When this process dies at an await, a snapshot was written or not; one that was not is an older
 * state of the same session.
 */
import type { Db } from '../db/db.ts'
import { and, isNull, sql } from '../db/drizzle.ts'
import type { RedisStore } from '../db/redis.ts'
import { chatSessions } from '../db/schema.ts'
import type { Owner } from '../http/identity.ts'
import { copyBytesMax, createCopyKeys, hashOwner, liveSeconds, throwFirst } from './copies.ts'
import { type Page, readSessionCursor, toPage } from './cursor.ts'
import { readInstant } from './filter.ts'
import { type ListSessionsQuery, pageRowsDefault, type Session } from './model.ts'
import { jsonTexts, sessionColumns } from './store.ts'

export type Snapshots = ReturnType<typeof createSnapshots>

interface Snapshot {
  readonly owner: string
  readonly session: Session
}

/** Sessions of an owner that are listed without the database. */
const indexMax = 1000
/** Snapshots that one command reads. */
const readsMax = 20

export function createSnapshots(db: Db, store: RedisStore) {
  const keys = createCopyKeys(store.prefix)

  return {
    /** Takes the rows as they are now. @throws Problem `db_unavailable` */
    async refresh(ids: readonly string[]): Promise<void> {
      const rows = await readRows(db, ids)
      await store.ask(async (redis) => {
        const pipeline = redis.pipeline()
        const kept = new Set<string>()
        for (const { owner: ownerKey, ...session } of rows) {
          const owner = hashOwner(ownerKey)
          const value = JSON.stringify({ owner, session } satisfies Snapshot)
          if (Buffer.byteLength(value) > copyBytesMax) continue
          kept.add(session.id)
          const index = keys.sessions(owner)
          pipeline
            .set(keys.snapshot(session.id), value, 'EX', liveSeconds)
            .zadd(index, toMicroseconds(session.last_activity_at), session.id)
            .zremrangebyrank(index, 0, -indexMax - 1)
            .expire(index, liveSeconds)
          if (session.active_run_id === null) pipeline.unlink(keys.live(session.id))
        }
        const gone = ids.filter((id) => !kept.has(id))
        if (gone.length > 0) pipeline.unlink(gone.map(keys.snapshot))
        throwFirst(await pipeline.exec())
      })
    },

    /**
     * As GET /sessions, from what is known.
     * @returns undefined when nothing is known of this owner, or a filter cannot be applied here
     * @throws Problem `invalid_request`: the cursor
     */
    async listSessions(caller: Owner, query: ListSessionsQuery): Promise<Page<Session> | undefined> {
      const isListed = toFilter(query)
      const owner = hashOwner(caller.key)
      const ids = await store.ask((redis) => redis.zrevrange(keys.sessions(owner), 0, indexMax - 1))
      if (isListed === undefined || ids === undefined || ids.length === 0) return undefined
      const { limit = pageRowsDefault, offset = 0 } = query
      const found: Session[] = []
      for (let start = 0; start < ids.length && found.length <= offset + limit; start += readsMax) {
        const names = ids.slice(start, start + readsMax).map(keys.snapshot)
        const values = await store.ask((redis) => redis.mget(names))
        if (values === undefined) return undefined
        for (const value of values) {
          const session = readSnapshot(value, owner)
          if (session !== undefined && isListed(session)) found.push(session)
        }
      }
      return toPage(found.slice(offset, offset + limit + 1), limit, (row) => [row.last_activity_at, row.id])
    },

    /** @param id in any case. @returns undefined when nothing is known of it, or it is another's */
    async getSession(caller: Owner, id: string): Promise<Session | undefined> {
      const value = await store.ask((redis) => redis.get(keys.snapshot(id.toLowerCase())))
      return readSnapshot(value, hashOwner(caller.key))
    },
  }
}

const readRows = (db: Db, ids: readonly string[]) =>
  db.run((orm) =>
    orm
      .select({ ...sessionColumns, owner: sql<string>`${chatSessions.owner}` })
      .from(chatSessions)
      .where(
        and(sql`${chatSessions.id} in (select value::uuid from ${jsonTexts(ids)})`, isNull(chatSessions.deletedAt)),
      ),
  )

function readSnapshot(value: string | null | undefined, owner: string): Session | undefined {
  if (value == null) return undefined
  try {
    const snapshot: Snapshot = JSON.parse(value)
    return snapshot.owner === owner ? snapshot.session : undefined
  } catch {
    return undefined // Somebody else's value under our key.
  }
}

/** Whatever is asked beyond these cannot be answered here. */
const knownFilters: ReadonlySet<string> = new Set([
  'status',
  'kind',
  'mode',
  'tag',
  'from',
  'to',
  'archived',
  'cursor',
  'limit',
  'offset',
])

/** The conditions of filter.ts, on rows at hand. Times are text of one form, and compared as that. */
function toFilter(query: ListSessionsQuery): ((session: Session) => boolean) | undefined {
  const { status, kind, mode, tag, archived } = query
  // Of what is deleted there is no copy.
  if (status === 'deleted' || Object.keys(query).some((name) => !knownFilters.has(name))) return undefined
  const from = query.from === undefined ? undefined : readInstant('from', query.from)
  const to = query.to === undefined ? undefined : readInstant('to', query.to)
  const after = query.cursor === undefined ? undefined : readSessionCursor(query.cursor)
  return (session) => {
    const { last_activity_at: time } = session
    return (
      (status === undefined || session.status === status) &&
      (kind === undefined || session.kind === kind) &&
      (mode === undefined || session.mode === mode) &&
      (tag === undefined || session.tags.includes(tag)) &&
      (archived === undefined || session.archived === archived) &&
      (from === undefined || time >= from) &&
      (to === undefined || time < to) &&
      (after === undefined || time < after.time || (time === after.time && session.id < after.id))
    )
  }
}

/** Since 1970, exact for some 285 years: the score of a sorted set is a double. @param time with six digits, in UTC */
const toMicroseconds = (time: string): number => Date.parse(`${time.slice(0, 19)}Z`) * 1000 + Number(time.slice(20, 26))
