/**
 * Sessions in the database, one at a time. The owner is a condition of every statement, never a check before it, so
 * there is no moment at which somebody else's row could slip through; what is not yours is simply not found.
 */
import { v7 as uuidv7 } from 'uuid'
import type { Db } from '../db/db.ts'
import { and, eq, isNull, type SQL, sql } from '../db/drizzle.ts'
import { chatSessions } from '../db/schema.ts'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import type { SessionChanges } from './changes.ts'
import type { CreateSessionBody, Session } from './model.ts'

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
  tags: chatSessions.tags,
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

    /**
     * Makes a session, or finds the owner's own one with the same id or external id.
     * @throws Problem `not_found` when the id is somebody else's; `invalid_request` when the two ids name different sessions
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
          .returning({ id: chatSessions.id }),
      )
      if (inserted.length > 0) {
        changes?.changed(id)
        return { session: await getSession(owner, id), created: true }
      }

      const byId = await findSession(owner, id)
      if (byId !== undefined) {
        if (body.external_id !== undefined && byId.external_id !== body.external_id) {
          throw new Problem('invalid_request', 'A session with this id exists, with another external_id.')
        }
        return { session: byId, created: false }
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
  }
}
