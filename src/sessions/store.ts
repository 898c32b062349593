/**
 * Sessions in the database, one at a time. The owner is a condition of every statement, never a check before it, so
 * there is no moment at which somebody else's row could slip through; what is not yours is simply not found. So is the
 * version that a change was made for: of two changes for one version one finds nothing to change.
 *
 * Each write is one statement. When the process dies at its await, it has happened whole or not at all; when the database
 * dies there, the caller gets `db_unavailable` and does not know which: creating again with the same id, or reading the
 * version, tells. What is read after a write that changed nothing only words the refusal.
 */
import { v7 as uuidv7 } from 'uuid'
import type { Db } from '../db/db.ts'
import { and, eq, isNotNull, isNull, type SQL, sql } from '../db/drizzle.ts'
import { chatSessions } from '../db/schema.ts'
import { Problem } from '../errors.ts'
import type { Versions } from '../http/etag.ts'
import type { Owner } from '../http/identity.ts'
import type { SessionChanges } from './changes.ts'
import { type CreateSessionBody, metadataBytesMax, type PatchSessionBody, type Session } from './model.ts'

export type SessionStore = ReturnType<typeof createSessionStore>

/** A timestamp as ISO 8601 in UTC with the microseconds that a JavaScript Date would drop. */
export const isoTime = (column: unknown): SQL<string> =>
  sql<string>`to_char(${column} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')`

export const sessionColumns = {
  id: chatSessions.id,
  external_id: chatSessions.externalId,
  user_id: chatSessions.userId,
  is_anonymous: chatSessions.isAnonymous,
  kind: chatSessions.kind,
  status: sql<Session['status']>`${chatSessions.status}`,
  title: chatSessions.title,
  mode: sql<Session['mode']>`${chatSessions.mode}`,
  model: chatSessions.model,
  phase: chatSessions.phase,
  round_number: chatSessions.roundNumber,
  input: chatSessions.input,
  context: sql<unknown>`${chatSessions.context}`,
  state: sql<unknown>`${chatSessions.state}`,
  message_count: chatSessions.messageCount,
  total_tokens: sql<number>`${chatSessions.totalTokens}::float8`,
  total_cost_usd: sql<string>`${chatSessions.totalCost}::text`,
  active_run_id: chatSessions.activeRunId,
  // drizzle's own reader of arrays loses a backslash at the end of a text.
  tags: sql<string[]>`to_json(${chatSessions.tags})`,
  metadata: sql<Session['metadata']>`${chatSessions.metadata}`,
  version: chatSessions.version,
  archived: chatSessions.archived,
  created_at: isoTime(chatSessions.createdAt),
  updated_at: isoTime(chatSessions.updatedAt),
  last_activity_at: isoTime(chatSessions.lastActivityAt),
  ended_at: isoTime(chatSessions.endedAt) as SQL<string | null>,
}

/** The condition that stands in every statement about a session. */
export const mine = (owner: Owner) => and(eq(chatSessions.owner, owner.key), isNull(chatSessions.deletedAt))

/** A session by its id, or by the name that its owner has for it. */
export type SessionName = { readonly session_id: string } | { readonly external_id: string }

/** @returns the id of the owner's session that is named so, unless it is deleted */
export async function findSessionId(db: Db, owner: Owner, name: SessionName): Promise<string | undefined> {
  const named =
    'external_id' in name ? eq(chatSessions.externalId, name.external_id) : eq(chatSessions.id, name.session_id)
  const [session] = await db.run((orm) =>
    orm
      .select({ id: chatSessions.id })
      .from(chatSessions)
      .where(and(named, mine(owner))),
  )
  return session?.id
}

/** @param changes is told of what is written here */
export function createSessionStore(db: Db, changes?: SessionChanges) {
  async function findSession(owner: Owner, id: string): Promise<Session | undefined> {
    const [session] = await db.run((orm) =>
      orm
        .select(sessionColumns)
        .from(chatSessions)
        .where(and(eq(chatSessions.id, id), mine(owner))),
    )
    return session
  }

  async function getSession(owner: Owner, id: string): Promise<Session> {
    const session = await findSession(owner, id)
    if (session === undefined) throw new Problem('not_found')
    return session
  }

  return {
    getSession,

    /** Whether this owner has a session, a deleted one too. */
    async hasAny(ownerKey: string): Promise<boolean> {
      return (await db.rows(sql`select 1 from chat_sessions where owner = ${ownerKey} limit 1`)).length > 0
    },

    /**
     * Makes a session, or finds the owner's own one with the same id or external id.
     * @throws Problem `not_found` when the id is somebody else's; `conflict` when it is that of a session that the owner has
     * deleted; `invalid_request` when the two ids name different sessions
     */
    async createSession(owner: Owner, body: CreateSessionBody): Promise<{ session: Session; created: boolean }> {
      const id = body.id?.toLowerCase() ?? uuidv7()
      const inserted = await db.run((orm) =>
        orm
          .insert(chatSessions)
          .values({
            id,
            externalId: body.external_id ?? null,
            userId: owner.userId,
            visitorHash: owner.visitorHash,
            kind: body.kind ?? 'chat',
            input: body.input ?? null,
            context: body.context ?? null,
            mode: body.mode ?? 'balanced',
            title: body.title ?? null,
            titleSource: body.title === undefined ? null : 'client',
            metadata: body.metadata ?? {},
          })
          .onConflictDoNothing()
          .returning(sessionColumns),
      )
      if (inserted[0] !== undefined) {
        changes?.changed(id)
        return { session: inserted[0], created: true }
      }

      const byId = await findSession(owner, id)
      if (byId !== undefined) {
        if (body.external_id !== undefined && byId.external_id !== body.external_id) {
          throw new Problem('invalid_request', 'A session with this id exists, with another external_id.')
        }
        return { session: byId, created: false }
      }
      const [deleted] = await db.run((orm) =>
        orm
          .select({ id: chatSessions.id })
          .from(chatSessions)
          .where(and(eq(chatSessions.id, id), eq(chatSessions.owner, owner.key), isNotNull(chatSessions.deletedAt))),
      )
      if (deleted !== undefined) {
        throw new Problem('conflict', 'The session with this id is deleted; it can be restored.')
      }
      if (body.external_id === undefined) throw new Problem('not_found')
      const [byExternalId] = await db.run((orm) =>
        orm
          .select(sessionColumns)
          .from(chatSessions)
          .where(and(eq(chatSessions.externalId, body.external_id as string), mine(owner))),
      )
      if (byExternalId === undefined) throw new Problem('not_found')
      if (body.id !== undefined) {
        throw new Problem('invalid_request', 'A session with this external_id exists, with another id.')
      }
      return { session: byExternalId, created: false }
    },

    /**
     * Changes what is given and nothing else. Members of `metadata` are set, and removed where they are null.
     * @param versions of which the session must have one; undefined and `*` are any
     * @throws Problem `not_found`; `precondition_failed` when it has another version; `too_large` when the metadata would be
     */
    async patchSession(
      owner: Owner,
      id: string,
      body: PatchSessionBody,
      versions: Versions | undefined,
    ): Promise<Session> {
      const { title, mode, metadata, tags, state, ended } = body
      const given = versions === '*' ? undefined : versions
      const merged = metadata === undefined ? undefined : mergedMetadata(metadata)
      const [session] = await db.run((orm) =>
        orm
          .update(chatSessions)
          .set({
            ...(title === undefined ? {} : { title, titleSource: title === null ? null : 'client' }),
            ...(mode === undefined ? {} : { mode }),
            ...(merged === undefined ? {} : { metadata: merged }),
            ...(tags === undefined ? {} : { tags: textArray(tags) }),
            ...(state === undefined ? {} : { state: state === null ? null : sql`${JSON.stringify(state)}::jsonb` }),
            ...(ended === undefined ? {} : { endedAt: ended ? sql`coalesce(${chatSessions.endedAt}, now())` : null }),
            version: sql`${chatSessions.version} + 1`,
            updatedAt: sql`now()`,
          })
          .where(
            and(
              eq(chatSessions.id, id),
              mine(owner),
              given && sql`${chatSessions.version} in (select value::int from ${jsonTexts(given)})`,
              merged && sql`octet_length(${compact(merged)}) <= ${metadataBytesMax}::int`,
            ),
          )
          .returning(sessionColumns),
      )
      if (session !== undefined) {
        changes?.changed(session.id)
        return session
      }
      const { version } = await getSession(owner, id)
      if (given !== undefined && (merged === undefined || !given.includes(version))) {
        throw new Problem('precondition_failed', `The session has version ${version}.`)
      }
      // It was restored between the two looks.
      if (merged === undefined) throw new Problem('not_found')
      throw new Problem('too_large', `metadata may hold ${metadataBytesMax} bytes of JSON at most, with what is there.`)
    },
  }
}

/** JSON as a parameter, because the drivers differ in how they send arrays. */
export const jsonTexts = (values: readonly unknown[]): SQL =>
  sql`jsonb_array_elements_text(${JSON.stringify(values)}::jsonb)`

const textArray = (texts: readonly string[]): SQL =>
  sql`array(select value from ${jsonTexts(texts)} with ordinality as given (value, place) order by place)`

/** RFC 7396 for one level: what is an object in a member is replaced whole. */
function mergedMetadata(patch: Readonly<Record<string, unknown>>): SQL {
  const entries = Object.entries(patch)
  const set = Object.fromEntries(entries.filter(([, value]) => value !== null))
  const removed = entries.filter(([, value]) => value === null).map(([name]) => name)
  return sql`(${chatSessions.metadata} || ${JSON.stringify(set)}::jsonb) - ${textArray(removed)}`
}

/** jsonb as JSON.stringify would write it: without the blanks between members, which are no part of any string. */
const compact = (json: SQL): SQL => sql`regexp_replace((${json})::text, '("(?:[^"\\\\]|\\\\.)*")|\\s', '\\1', 'g')`
