/**
 * Lists of an owner's sessions, page by page. The cursor is the place of the last row: its time to the microsecond, and its
 * id. A session that is used while somebody pages moves to the top, to where one has been; one that stays where it is comes
 * exactly once.
 */
import type { Db } from '../db/db.ts'
import { and } from '../db/drizzle.ts'
import { chatSessions } from '../db/schema.ts'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import { type Page, readSessionCursor, toPage } from './cursor.ts'
import { behind, filtered, newestFirst } from './filter.ts'
import { type ListSessionsQuery, pageRowsDefault, type Session } from './model.ts'
import { createSearch, readTerms } from './search.ts'
import { sessionColumns } from './store.ts'

export type SessionList = ReturnType<typeof createSessionList>

/** @param searchMs the time after which a search gives out what it has found */
export function createSessionList(db: Db, searchMs?: number) {
  const search = createSearch(db, searchMs)

  return {
    /**
     * Newest activity first. With `q` a page may hold fewer rows than there are, even none, when finding more would take
     * too long; it then has a `next_cursor` all the same.
     * @throws Problem `invalid_request` `db_unavailable`
     */
    async listSessions(owner: Owner, query: ListSessionsQuery): Promise<Page<Session>> {
      const { limit = pageRowsDefault, offset = 0, cursor } = query
      if (cursor !== undefined && query.offset !== undefined) {
        throw new Problem('invalid_request', 'A list goes on by cursor or by offset, not by both.')
      }
      const after = cursor === undefined ? undefined : readSessionCursor(cursor)
      const terms = readTerms(query.q ?? '')
      if (terms.length > 0) return search(owner, query, terms, after)
      const rows = await db.run((orm) =>
        orm
          .select(sessionColumns)
          .from(chatSessions)
          .where(and(filtered(owner, query), after && behind(after)))
          .orderBy(...newestFirst)
          .limit(limit + 1)
          .offset(offset),
      )
      return toPage(rows, limit, (row) => [row.last_activity_at, row.id])
    },
  }
}
