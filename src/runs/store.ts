/**
 * Reading runs, and the small writes that are not accept or commit: the requests to stop. As everywhere, the owner is part
 * of the condition.
 */
import type { Db } from '../db/db.ts'
import { and, desc, eq, isNull, type SQL, sql } from '../db/drizzle.ts'
import { chatMessages, chatRuns, chatSessions } from '../db/schema.ts'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import { isoTime, mine } from '../sessions/store.ts'
import { createGather } from './gather.ts'
import type { Run, RunFacts, RunRecord, RunState } from './model.ts'

/** Nothing of what the reply is made from, which may hold hundreds of kilobytes: for who asks again and again. */
export const stateColumns = {
  id: chatRuns.id,
  session_id: chatRuns.sessionId,
  user_message_id: chatRuns.userMessageId,
  message_id: chatRuns.messageId,
  kind: chatRuns.kind,
  status: sql<Run['status']>`${chatRuns.status}`,
  mode: sql<Run['mode']>`${chatRuns.mode}`,
  provider: chatRuns.provider,
  model: chatRuns.model,
  phase: chatRuns.phase,
  round_number: chatRuns.roundNumber,
  cost_usd: sql<string | null>`${chatRuns.cost}::text`,
  usage: sql<Run['usage']>`${chatRuns.usage}`,
  usage_source: chatRuns.usageSource,
  upstream_calls: sql<Run['upstream_calls']>`${chatRuns.upstreamCalls}`,
  finish_reason: chatRuns.finishReason,
  error: sql<Run['error']>`${chatRuns.error}`,
  generation: chatRuns.generation,
  attempts: chatRuns.attempts,
  on_disconnect: sql<Run['on_disconnect']>`${chatRuns.onDisconnect}`,
  stop_requested_at: isoTime(chatRuns.stopRequestedAt) as SQL<string | null>,
  created_at: isoTime(chatRuns.createdAt),
  started_at: isoTime(chatRuns.startedAt) as SQL<string | null>,
  first_token_at: isoTime(chatRuns.firstTokenAt) as SQL<string | null>,
  ended_at: isoTime(chatRuns.endedAt) as SQL<string | null>,
  owner: chatRuns.owner,
  request_hash: chatRuns.requestHash,
  instance_id: chatRuns.instanceId,
  last_seq: chatRuns.lastSeq,
}

const shownColumns = {
  ...stateColumns,
  profile: sql<string | null>`${chatRuns.request} ->> 'profile'`,
  profile_reasons: sql<string[] | null>`${chatRuns.request} -> 'reasons'`,
}

export const runColumns = {
  ...shownColumns,
  request: sql<RunRecord['request']>`${chatRuns.request}`,
}

/** How long the question for a run waits for others to go with it. */
const gatherMs = 2

/** Runs of the same request among which the one is looked for that a repeat means. */
const repeatedMax = 100

/** Which runs a repeat without a key may mean. One that somebody has stopped, or that broke off, is never meant. */
export interface Repeat {
  /** How long ago it may have been accepted. */
  readonly withinMs: number
  /** How long ago it may have ended. */
  readonly endedWithinMs: number
  /** Where it was asked; undefined when the repeat names no session: then the run has made its own, without a name. */
  readonly sessionId: string | undefined
  readonly isLeftOut: (runId: string) => boolean
}

const active = sql`${chatRuns.status} in ('queued', 'running')`

export type RunStore = ReturnType<typeof createRunStore>

export function createRunStore(db: Db) {
  async function findRun(owner: Owner, condition: SQL | undefined): Promise<RunRecord | undefined> {
    const [run] = await db.run((orm) =>
      orm
        .select(runColumns)
        .from(chatRuns)
        .where(and(condition, eq(chatRuns.owner, owner.key)))
        // Of a session's active runs the running one, else that which was queued first.
        .orderBy(desc(chatRuns.status), chatRuns.createdAt, chatRuns.id)
        .limit(1),
    )
    return run
  }

  // The database gives an id back in lower case, however it was asked for.
  const keyOf = (ownerKey: string, id: string) => `${id.toLowerCase()} ${ownerKey}`
  const readRun = createGather<{ readonly id: string; readonly owner: string }, RunRecord>({
    keyOf: ({ id, owner }) => keyOf(owner, id),
    async ask(questions) {
      const asked = sql`jsonb_to_recordset(${JSON.stringify(questions)}::jsonb) as asked (id uuid, owner text)`
      const rows = await db.run((orm) =>
        orm
          .select(runColumns)
          .from(chatRuns)
          .where(sql`(${chatRuns.id}, ${chatRuns.owner}) in (select asked.id, asked.owner from ${asked})`),
      )
      return new Map(rows.map((row) => [keyOf(row.owner, row.id), row]))
    },
    gatherMs,
  })

  return {
    /** Viewers that come back at once are gathered. @throws Problem `not_found` */
    async getRun(owner: Owner, id: string): Promise<RunRecord> {
      const run = await readRun({ id, owner: owner.key })
      if (run === undefined) throw new Problem('not_found')
      return run
    },

    findByKey: (owner: Owner, key: string) => findRun(owner, eq(chatRuns.idempotencyKey, key)),

    /** The newest run of the same request that a client without a key can mean which has heard nothing of it. */
    async findRepeated(owner: Owner, hash: string, repeat: Repeat): Promise<RunRecord | undefined> {
      const { withinMs, endedWithinMs, sessionId, isLeftOut } = repeat
      // A session that a run has made has the time of the same statement.
      const isOwnSession = and(isNull(chatSessions.externalId), eq(chatSessions.createdAt, chatRuns.createdAt))
      const candidates = await db.run((orm) =>
        orm
          .select({ id: chatRuns.id })
          .from(chatRuns)
          .innerJoin(chatSessions, eq(chatSessions.id, chatRuns.sessionId))
          .where(
            and(
              eq(chatRuns.owner, owner.key),
              eq(chatRuns.requestHash, hash),
              isNull(chatRuns.idempotencyKey),
              sql`${chatRuns.createdAt} > now() - ${withinMs}::float8 * interval '1 millisecond'`,
              sql`(${active} or ${chatRuns.endedAt} > now() - ${endedWithinMs}::float8 * interval '1 millisecond')`,
              sql`${chatRuns.status} not in ('stopped', 'interrupted') and ${chatRuns.stopRequestedAt} is null`,
              sessionId === undefined ? isOwnSession : eq(chatRuns.sessionId, sessionId),
              mine(owner),
            ),
          )
          .orderBy(desc(chatRuns.createdAt))
          .limit(repeatedMax),
      )
      // Asked now, and not before the question: whoever was being accepted then may be watching by now.
      const meant = candidates.find(({ id }) => !isLeftOut(id))
      return meant && findRun(owner, eq(chatRuns.id, meant.id))
    },

    findActive: (owner: Owner, sessionId: string) => findRun(owner, and(eq(chatRuns.sessionId, sessionId), active)),

    /** The runs of this one's session whose replies come before its own, and that have not ended. */
    findActiveBefore: ({ session_id, message_id }: RunFacts): Promise<RunRecord[]> =>
      db.run((orm) =>
        orm
          .select(runColumns)
          .from(chatRuns)
          .innerJoin(chatMessages, eq(chatMessages.id, chatRuns.messageId))
          .where(
            and(
              eq(chatRuns.sessionId, session_id),
              active,
              sql`${chatMessages.seq} < (select seq from chat_messages where id = ${message_id}::uuid)`,
            ),
          ),
      ),

    /** For the gateway itself, which follows a run after its owner was checked. */
    async reread(id: string): Promise<RunState | undefined> {
      const [run] = await db.run((orm) => orm.select(shownColumns).from(chatRuns).where(eq(chatRuns.id, id)))
      return run
    },

    /** A run that was to be stopped when nobody watches it goes on: it is watched on a process that does not make it. */
    async keep(owner: Owner, id: string): Promise<void> {
      await db.run((orm) =>
        orm
          .update(chatRuns)
          .set({ onDisconnect: 'continue' })
          .where(and(eq(chatRuns.id, id), eq(chatRuns.owner, owner.key), active)),
      )
    },

    /**
     * Asks for a run's stop in a way that outlives this process. The process that owns the run looks at the column
     * whenever it renews its lease.
     */
    async requestStop({ id, owner }: Pick<RunRecord, 'id' | 'owner'>): Promise<void> {
      await db.run((orm) =>
        orm
          .update(chatRuns)
          .set({ stopRequestedAt: sql`coalesce(${chatRuns.stopRequestedAt}, now())` })
          .where(and(eq(chatRuns.id, id), eq(chatRuns.owner, owner), active)),
      )
    },

    /**
     * The same for all runs of a session that have not ended, also of one that was deleted.
     * @param kill makes the session `killed` when they have ended by it
     * @returns them, in no order
     */
    requestStopOfSession: (owner: Owner, sessionId: string, kill: boolean): Promise<RunRecord[]> =>
      db.run((orm) =>
        orm
          .update(chatRuns)
          .set({
            stopRequestedAt: sql`coalesce(${chatRuns.stopRequestedAt}, now())`,
            ...(kill ? { killRequestedAt: sql`coalesce(${chatRuns.killRequestedAt}, now())` } : {}),
          })
          .where(and(eq(chatRuns.sessionId, sessionId), eq(chatRuns.owner, owner.key), active))
          .returning(runColumns),
      ),
  }
}

/** Whether somebody on another process has come to see the run since it was accepted. @throws Problem `db_unavailable` */
export async function isKept(db: Db, { id }: RunFacts): Promise<boolean> {
  const [run] = await db.rows<{ kept: boolean }>(sql`
    select on_disconnect <> 'stop' as kept from chat_runs where id = ${id}::uuid`)
  return run?.kept === true
}
