/**
 * Everybody who has come with a verified token, a row each. What somebody owns hangs on the subject and not on this row,
 * so it may be written late, and a request goes on without it.
 *
 * One statement the first time that this process sees somebody; afterwards the name is in memory, the `seenMax` latest
 * ones. A process that has forgotten somebody, or another one, writes again, and the database keeps the row that is there.
 *
 * At the await: when the process dies, the row is there or the next request writes it. When the database refuses, the next
 * request of the same user tries again. When it hangs, a request waits for `waitMs`, so that what can be read without the
 * database is read soon; the statement goes on, within the database's own limit, and whoever comes meanwhile joins it.
 */
import { v7 as uuidv7 } from 'uuid'
import type { Db } from '../db/db.ts'
import { users } from '../db/schema.ts'

const seenMax = 10_000
const waitMs = 250

export function createUsers(db: Db) {
  // In the order in which they came last: a Map keeps the order of insertion.
  const seen = new Map<string, true>()
  /** Bounded by the database's gate, which refuses statements that are too many. */
  const writing = new Map<string, Promise<void>>()

  function remember(key: string): void {
    seen.delete(key)
    seen.set(key, true)
    if (seen.size <= seenMax) return
    const [oldest] = seen.keys()
    if (oldest !== undefined) seen.delete(oldest)
  }

  async function write(key: string, issuer: string, subject: string): Promise<void> {
    try {
      await db.run((orm) => orm.insert(users).values({ id: uuidv7(), issuer, subject }).onConflictDoNothing())
      remember(key)
    } catch {
      // The database is away, which whoever needs it will hear; the next request of this user writes again.
    }
  }

  return {
    /**
     * @param issuer empty when the token names none
     * Never rejects; resolves after {@link waitMs} at the latest.
     */
    async note(issuer: string, subject: string): Promise<void> {
      // No subject has U+0000 in it.
      const key = `${subject}\u0000${issuer}`
      if (seen.has(key)) return remember(key)
      const written = writing.get(key) ?? write(key, issuer, subject).finally(() => writing.delete(key))
      writing.set(key, written)
      await Promise.race([written, pause(written)])
    },
  }
}

/** Resolves after {@link waitMs}; forgotten when `work` has ended before. */
function pause(work: Promise<void>): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, waitMs)
    void work.then(() => clearTimeout(timer))
  })
}
