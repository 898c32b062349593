/**
 * Accepting a message: one SQL statement that upserts the session, stores the user's message, the empty reply and the
 * run, and leases the run to this process, or queues it. When it has committed, the message is safe, and only then is
 * the status sent (promise P1).
 *
 * Everything that must be true between processes is decided by Postgres, in this statement or by its indexes:
 * - the session is the caller's, or new: `on conflict do update … where owner = excluded.owner` touches no other row;
 * - one run per idempotency key: a unique index. Of two requests at the same instant one fails with 23505 and then
 *   reads what the other one made;
 * - one running reply per session, and messages in their order: a message starts at once only if the session was idle,
 *   and that is read before the session's row is locked. So the row's `version`, which whoever begins or ends a run
 *   raises, has to be the same under the lock; if it is not, nothing is written and the statement looks again. The
 *   unique index stands behind this for hand-made statements. Two messages that are queued at the same instant have
 *   the order in which they got the lock, which is that of their `seq`, and they are answered in it (queue.ts).
 * - `on_busy: interrupt` is a queued message that asks the runs before it to stop, in the same statement: once it is
 *   stored, so is the wish, and before it is stored nothing is stopped.
 * The limit of runs per owner is not of this kind: it is counted before the statement's own write, so requests that come
 * in at the very same instant can pass it together, by no more than there are connections to the database.
 *
 * If the process dies at the await, the statement has happened whole or not at all; a repeat with the same key finds
 * out which. If the answer is lost (the database hung), the caller gets `db_unavailable` and does the same. A run that
 * was committed so and that nobody runs is found by its key or by the reaper; one that is queued, by the promotion.
 */
import { createHash } from 'node:crypto'
import { v7 as uuidv7 } from 'uuid'
import { type Db, DbError, uniqueViolation } from '../db/db.ts'
import { sql } from '../db/drizzle.ts'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import { cleanJson, limitJson } from '../http/text.ts'
import type { Mode } from '../log/event.ts'
import { metadataBytesMax, titleFrom } from '../sessions/model.ts'
import { isoTime } from '../sessions/store.ts'
import type { ChatBody, RunFacts, RunRecord } from './model.ts'
import type { RunStore } from './store.ts'

/** Which provider and model each mode means, for a request that may leave the mode to its session. */
export type ModelByMode = Readonly<Record<Mode, { readonly provider: string; readonly model: string }>>

export interface Acceptance {
  readonly run: RunFacts
  /** False when the key was known: the run is an earlier request's. */
  readonly isNew: boolean
}

export interface AcceptOptions {
  readonly db: Db
  readonly runs: RunStore
  readonly instanceId: string
  readonly runsPerOwnerMax: number
}

interface AcceptRow {
  readonly prior_run: boolean
  readonly at_limit: boolean
  readonly not_found: boolean
  /** The run that the session was busy with; the running one first. */
  readonly active_run_id: string | null
  /** Null when nothing was written. */
  readonly session_id: string | null
  readonly status: 'queued' | 'running'
  readonly mode: Mode
  readonly provider: string
  readonly model: string
  readonly created_at: string
}

// Each try that fails means that another request has just committed, which the next try sees. Only a session whose
// runs begin and end faster than this statement runs could go on like that.
const attemptsMax = 8

export function createAccept({ db, runs, instanceId, runsPerOwnerMax }: AcceptOptions) {
  async function findPrior(owner: Owner, body: ChatBody, hash: string): Promise<RunRecord | undefined> {
    if (body.client_message_id === undefined) return undefined
    const prior = await runs.findByKey(owner, body.client_message_id)
    if (prior === undefined) return undefined
    const otherSession = body.session_id !== undefined && body.session_id.toLowerCase() !== prior.session_id
    if (prior.request_hash !== hash || otherSession) throw new Problem('idempotency_mismatch')
    return prior
  }

  /**
   * @param body as validated; cleaned here, because its hash must be that of what is stored
   * @returns the new run, running or queued, or the one that the key already has
   * @throws Problem `invalid_request` `too_large` `not_found` `session_busy` `idempotency_mismatch` `rate_limited` `db_unavailable`
   */
  async function accept(owner: Owner, raw: ChatBody, models: ModelByMode): Promise<Acceptance> {
    const body = cleanBody(raw)
    const hash = hashRequest(body)
    for (let attempt = 1; ; attempt += 1) {
      const ids = { run: uuidv7(), userMessage: uuidv7(), message: uuidv7() }
      const sessionId = body.session_id?.toLowerCase() ?? uuidv7()
      try {
        const row = await insert(owner, body, hash, models, ids, sessionId)
        if (row.prior_run) {
          const prior = await findPrior(owner, body, hash)
          if (prior !== undefined) return { run: prior, isNew: false }
        } else if (row.at_limit) {
          throw new Problem('rate_limited', `At most ${runsPerOwnerMax} runs at once.`, { retryAfterSeconds: 5 })
        } else if (row.not_found) {
          throw new Problem('not_found', 'There is no such session, or no such parent message in it.')
        } else if (row.session_id !== null) {
          return { run: toFacts(ids, row.session_id, row, body), isNew: true }
        } else if (row.active_run_id !== null && (body.on_busy ?? 'reject') === 'reject') {
          throw busy(row.active_run_id)
        }
      } catch (error) {
        if (!(error instanceof DbError) || error.sqlstate !== uniqueViolation) throw error
        const prior = await findPrior(owner, body, hash)
        if (prior !== undefined) return { run: prior, isNew: false }
      }
      if (attempt === attemptsMax) throw new Problem('internal', 'The message could not be placed in its session.')
    }
  }

  async function insert(
    owner: Owner,
    body: ChatBody,
    hash: string,
    models: ModelByMode,
    ids: NewIds,
    sessionId: string,
  ): Promise<AcceptRow> {
    const key = body.client_message_id ?? null
    const parentId = body.parent_id ?? null
    const limit = runsPerOwnerMax === 0 ? null : runsPerOwnerMax
    const parts = JSON.stringify([{ kind: 'text', text: body.message }])
    const onBusy = body.on_busy ?? 'reject'
    const [row] = await db.rows<AcceptRow>(sql`
      with seen as (
        -- Two questions, because each has an index that does not grow with the session.
        select s.version, coalesce(
          (select r.id from chat_runs r where r.session_id = s.id and r.status = 'running'),
          (select r.id from chat_runs r where r.session_id = s.id and r.status = 'queued' order by r.created_at, r.id limit 1)
        ) as active_run_id
        from chat_sessions s
        where s.id = ${sessionId}::uuid and s.owner = ${owner.key} and s.deleted_at is null
      ), request as (
        select
          exists (
            select 1 from chat_runs where owner = ${owner.key} and idempotency_key = ${key}::text
          ) as prior_run,
          ${limit}::int is not null and (
            select count(*) from chat_runs where owner = ${owner.key} and status in ('queued', 'running')
          ) >= ${limit}::int as at_limit,
          seen.version is null and exists (
            select 1 from chat_sessions where id = ${sessionId}::uuid
          ) or ${parentId}::uuid is not null and not exists (
            select 1 from chat_messages where id = ${parentId}::uuid and session_id = ${sessionId}::uuid
          ) as not_found,
          coalesce(${parentId}::uuid, (
            select id from chat_messages
            where session_id = ${sessionId}::uuid and seen.active_run_id is null
            order by seq desc limit 1
          )) as parent_id,
          seen.version,
          seen.active_run_id,
          case when seen.active_run_id is null then ${ids.run}::uuid end as started_run_id
        from (select 1) one left join seen on true
      ), session as (
        insert into chat_sessions as s (
          id, user_id, visitor_hash, status, mode, title, title_source, message_count, active_run_id
        )
        select
          ${sessionId}::uuid, ${owner.userId}::text, ${owner.visitorHash}::text, 'running',
          coalesce(${body.mode ?? null}::text, 'balanced'), ${titleFrom(body.message)}::text, 'message', 2, started_run_id
        from request
        where not prior_run and not at_limit and not not_found and (active_run_id is null or ${onBusy}::text <> 'reject')
        on conflict (id) do update set
          status = 'running',
          title = coalesce(s.title, excluded.title),
          title_source = coalesce(s.title_source, excluded.title_source),
          message_count = s.message_count + 2,
          active_run_id = coalesce(excluded.active_run_id, s.active_run_id),
          ended_at = null,
          version = s.version + 1,
          updated_at = now(),
          last_activity_at = now()
        where s.owner = excluded.owner and s.deleted_at is null
          and (excluded.active_run_id is null or s.version = (select version from request))
        returning s.id, s.message_count, coalesce(${body.mode ?? null}::text, s.mode) as mode
      ), run as (
        insert into chat_runs (
          id, session_id, user_message_id, message_id, status, mode, provider, model, instance_id, owner,
          idempotency_key, request_hash, on_disconnect, started_at
        )
        select
          ${ids.run}::uuid, session.id, ${ids.userMessage}::uuid, ${ids.message}::uuid,
          case when request.started_run_id is null then 'queued' else 'running' end, session.mode,
          choice.value ->> 'provider', choice.value ->> 'model',
          case when request.started_run_id is not null then ${instanceId}::uuid end, ${owner.key},
          ${key}::text, ${hash}, ${body.on_disconnect ?? 'continue'},
          case when request.started_run_id is not null then clock_timestamp() end
        from request, session join jsonb_each(${JSON.stringify(models)}::jsonb) choice on choice.key = session.mode
        returning session_id, status, mode, provider, model, created_at
      ), user_message as (
        insert into chat_messages (
          id, session_id, owner, seq, parent_id, run_id, role, content, parts, status, client_message_id, metadata,
          completed_at
        )
        select
          ${ids.userMessage}::uuid, session.id, ${owner.key}, session.message_count - 1, request.parent_id, ${ids.run}::uuid, 'user',
          ${body.message}, ${parts}::jsonb, 'completed', ${key}::text, ${JSON.stringify(body.metadata ?? {})}::jsonb, now()
        from session, request
      ), reply as (
        insert into chat_messages (id, session_id, owner, seq, parent_id, run_id, role, status, model, agent_id)
        select
          ${ids.message}::uuid, session.id, ${owner.key}, session.message_count, ${ids.userMessage}::uuid, ${ids.run}::uuid,
          'assistant', 'streaming', run.model, ${body.agent_id ?? null}::text
        from session, run
      ), stopping as (
        update chat_runs set stop_requested_at = coalesce(chat_runs.stop_requested_at, now())
        from session
        where ${onBusy}::text = 'interrupt' and chat_runs.session_id = session.id
          and chat_runs.status in ('queued', 'running')
      )
      select
        request.prior_run, request.at_limit, request.not_found, request.active_run_id, run.session_id, run.status,
        run.mode, run.provider, run.model, ${isoTime(sql`run.created_at`)} as created_at
      from request left join run on true`)
    return row as AcceptRow
  }

  function toFacts(ids: NewIds, sessionId: string, row: AcceptRow, body: ChatBody): RunFacts {
    return {
      id: ids.run,
      session_id: sessionId,
      user_message_id: ids.userMessage,
      message_id: ids.message,
      status: row.status,
      mode: row.mode,
      provider: row.provider,
      model: row.model,
      generation: 1,
      last_seq: 0,
      instance_id: row.status === 'running' ? instanceId : null,
      on_disconnect: body.on_disconnect ?? 'continue',
      created_at: row.created_at,
    }
  }

  return {
    accept,
    findPrior: (owner: Owner, raw: ChatBody) => {
      const body = cleanBody(raw)
      return findPrior(owner, body, hashRequest(body))
    },
  }
}

interface NewIds {
  readonly run: string
  readonly userMessage: string
  readonly message: string
}

function cleanBody(raw: ChatBody): ChatBody {
  const body = cleanJson(raw)
  if (body.message.trim() === '') throw new Problem('invalid_request', 'message is empty.')
  limitJson('metadata', body.metadata, metadataBytesMax)
  return body
}

/**
 * What makes two requests the same: all that is asked of the model and stored. How the reply is to be delivered may
 * differ, and so may the session: a client that did not know it yet may know it at the repeat.
 */
function hashRequest(body: ChatBody): string {
  const { message, mode, model, agent_id, parent_id, metadata } = body
  return createHash('sha256')
    .update(JSON.stringify([message, mode, model, agent_id, parent_id, metadata]))
    .digest('hex')
}

function busy(runId: string): Problem {
  return new Problem('session_busy', undefined, {
    members: { run_id: runId, stream_url: `/api/v1/runs/${runId}/events` },
  })
}
