/** Lists of an owner's sessions. */
import type { Db } from '../db/db.ts'
import { and, desc, eq, sql } from '../db/drizzle.ts'
import { chatSessions } from '../db/schema.ts'
import type { Owner } from '../http/identity.ts'
import { type Page, readSessionCursor, toPage } from './cursor.ts'
import type { ListSessionsQuery, Session } from './model.ts'
import { deletedOf } from './removal.ts'
import { mine, sessionColumns } from './store.ts'

export type SessionList = ReturnType<typeof createSessionList>

export function createSessionList(db: Db) {
  return {
    /** Newest activity first. The cursor is the place of the last row: its time to the microsecond, and its id. */
    async listSessions(owner: Owner, query: ListSessionsQuery): Promise<Page<Session>> {
      const limit = query.limit ?? 50
      const after = query.cursor === undefined ? undefined : readSessionCursor(query.cursor)
      const rows = await db.run((orm) =>
        orm
          .select(sessionColumns)
          .from(chatSessions)
          .where(
            and(
              query.status === 'deleted' ? deletedOf(owner) : mine(owner),
              query.status === undefined ? undefined : eq(chatSessions.status, query.status),
              query.kind === undefined ? undefined : eq(chatSessions.kind, query.kind),
              query.mode === undefined ? undefined : eq(chatSessions.mode, query.mode),
              query.tag === undefined ? undefined : sql`${chatSessions.tags} @> array[${query.tag}]`,
              query.from === undefined ? undefined : sql`${chatSessions.lastActivityAt} >= ${query.from}::timestamptz`,
              query.to === undefined ? undefined : sql`${chatSessions.lastActivityAt} < ${query.to}::timestamptz`,
              query.archived === undefined ? undefined : eq(chatSessions.archived, query.archived),
              after &&
                sql`(${chatSessions.lastActivityAt}, ${chatSessions.id}) < (${after.time}::timestamptz, ${after.id}::uuid)`,
            ),
          )
          .orderBy(desc(chatSessions.lastActivityAt), desc(chatSessions.id))
          .limit(limit + 1)
          .offset(query.offset ?? 0),
      )
      return toPage(rows, limit, (row) => [row.last_activity_at, row.id])
    },
  }
}
