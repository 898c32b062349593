/**
 * Keys of this gateway: `vk_` and 256 random bits as base64url. Whoever shows one is the user whom it was made for, as if
 * with a JWT of that `sub`. They are made, listed and revoked by `npm run keys`; no request can do that.
 *
 * Only the SHA-256 is kept, here and in the database: with so many random bits nothing slower is needed. Every request asks
 * the database, so that a key is dead the moment it is revoked; nothing of a key is remembered in this process.
 *
 * When a key was last used is written once in {@link usedEveryMs}, by the statement that looks it up. At its await: a
 * process that dies has lost nothing; a database that does not answer is 503 and not 401.
 */
import { createHash, randomBytes } from 'node:crypto'
import { v7 as uuidv7 } from 'uuid'
import type { Db } from '../db/db.ts'
import { and, eq, isNull, type SQL, sql } from '../db/drizzle.ts'
import { apiKeys } from '../db/schema.ts'
import { isoTime } from './store.ts'

export interface ApiKey {
  readonly id: string
  /** `sub` of the user. */
  readonly subject: string
  readonly name: string
  readonly created_at: string
  readonly expires_at: string | null
  readonly revoked_at: string | null
  readonly last_used_at: string | null
}

export interface NewApiKey {
  readonly subject: string
  readonly name?: string
  /** ISO 8601. Absent: never. */
  readonly expiresAt?: string | undefined
}

export type ApiKeys = ReturnType<typeof createApiKeys>

export const apiKeyPattern = /^vk_[A-Za-z0-9_-]{43}$/
const keyBytes = 32
export const usedEveryMs = 5 * 60_000

const columns = {
  id: apiKeys.id,
  subject: apiKeys.subject,
  name: apiKeys.name,
  created_at: isoTime(apiKeys.createdAt),
  expires_at: isoTime(apiKeys.expiresAt) as SQL<string | null>,
  revoked_at: isoTime(apiKeys.revokedAt) as SQL<string | null>,
  last_used_at: isoTime(apiKeys.lastUsedAt) as SQL<string | null>,
}

export function createApiKeys(db: Db) {
  return {
    /** @returns the key itself, which nobody can read again */
    async createKey({ subject, name = '', expiresAt }: NewApiKey): Promise<{ key: string; stored: ApiKey }> {
      const key = `vk_${randomBytes(keyBytes).toString('base64url')}`
      const values = { id: uuidv7(), keyHash: hashKey(key), subject, name, expiresAt: expiresAt ?? null }
      const [stored] = await db.run((orm) => orm.insert(apiKeys).values(values).returning(columns))
      return { key, stored: stored as ApiKey }
    },

    /** Oldest first. @param subject whose; undefined is everybody's */
    listKeys: (subject: string | undefined): Promise<ApiKey[]> =>
      db.run((orm) =>
        orm
          .select(columns)
          .from(apiKeys)
          .where(subject === undefined ? undefined : eq(apiKeys.subject, subject))
          .orderBy(apiKeys.createdAt, apiKeys.id),
      ),

    /** @returns undefined when there is no such key, or it was revoked before */
    async revokeKey(id: string): Promise<ApiKey | undefined> {
      const [revoked] = await db.run((orm) =>
        orm
          .update(apiKeys)
          .set({ revokedAt: sql`now()` })
          .where(and(eq(apiKeys.id, id), isNull(apiKeys.revokedAt)))
          .returning(columns),
      )
      return revoked
    },

    /** @returns whose the key is; undefined when it cannot be used. @throws Problem `db_unavailable` */
    async readSubject(key: string): Promise<string | undefined> {
      if (!apiKeyPattern.test(key)) return undefined
      const [found] = await db.rows<{ subject: string }>(sql`
        with found as (
          select id, subject, last_used_at from api_keys
          where key_hash = ${hashKey(key)} and revoked_at is null and (expires_at is null or expires_at > now())
        ), used as (
          update api_keys k set last_used_at = now() from found
          where k.id = found.id
            and (found.last_used_at is null or found.last_used_at < now() - ${usedEveryMs}::float8 * interval '1 millisecond')
        )
        select subject from found`)
      return found?.subject
    },
  }
}

const hashKey = (key: string): string => createHash('sha256').update(key).digest('hex')
