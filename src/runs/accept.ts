/**
 * Accepting a message, or what else asks for a reply (asked.ts): one SQL statement that upserts the session, stores the
 * user's message, the empty reply and the run, and leases the run to this process, or queues it. When it has committed, the
 * message is safe, and only then is the status sent (promise P1).
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
 * - what follows what: a message whose sender names no place follows the session's newest one. While that may be out of
 *   sight, because the session is busy, the run says so (`parent_pending`), and the place is looked up when the run leaves
 *   the queue. Any other place is final, also that of a message which follows nothing;
 * - `on_busy: interrupt` is a queued message that asks the runs before it to stop, in the same statement: once it is
 *   stored, so is the wish, and before it is stored nothing is stopped.
 * - tool calls are answered once: whether they are is read before the session's row is locked, so answers to them are
 *   written only under the same version, also when they are queued.
 * - what may be spent in a day: where a budget applies, the statement holds back what the reply may cost, and a check refuses
 *   all of it when that is too much (budgets.ts). Where none does, the statement is as it would be without them.
 * What a model is told of the session is read when the reply is made, except of a session's first message: then this statement
 * has seen all there is, and the reply begins without another question to the database.
 *
 * The limit of runs per owner is not of this kind: it is counted before the statement's own write, so requests that come
 * in at the very same instant can pass it together, by no more than there are connections to the database.
 *
 * A repeat without a key (an official client of OpenAI that has heard nothing) is found by what it asks, among the newest runs
 * of its owner in the same session, or in sessions of their own when it names none. A client says that it repeats also when
 * its first try was refused; so it is not shown what others asked alike and were told: a run that ended before such a client
 * could have left it is not meant, nor is one that somebody watches here. A client whose connection broke without a word may
 * count as watching for a while, and its repeat makes another run then: a reply that is made twice costs money, one that is
 * shown to the wrong question costs the message. Who watches on another process is not known here.
 * What it repeats may still be on its way into the database: it waits for that here, as long as the deadlines of
 * the statements are. On another process it would not see it; such a client waits half a second before it repeats.
 *
 * If the process dies at the await, the statement has happened whole or not at all; a repeat with the same key finds
 * out which. If the answer is lost (the database hung), the caller gets `db_unavailable` and does the same. A run that
 * was committed so and that nobody runs is found by its key or by the reaper; one that is queued, by the promotion.
 */
import { v7 as uuidv7 } from 'uuid'
import { checkViolation, type Db, DbError, uniqueViolation } from '../db/db.ts'
import { sql } from '../db/drizzle.ts'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import type { Mode } from '../log/event.ts'
import type { SessionChanges } from '../sessions/changes.ts'
import { type History, historyOfFirst } from '../sessions/context.ts'
import { titleFrom } from '../sessions/model.ts'
import { findSessionId, isoTime } from '../sessions/store.ts'
import type { PlansByMode } from '../upstream/plan.ts'
import {
  type Asked,
  type ChatAsked,
  cleanAsked,
  hashAsked,
  type Plan,
  planOf,
  sessionBusy,
  sessionNamed,
  type Wishes,
} from './asked.ts'
import { writeBrought } from './brought.ts'
import { type Budgets, budgetConstraint, type Hold } from './budgets.ts'
import type { RunFacts, RunRecord, RunRequest } from './model.ts'
import type { RunStore } from './store.ts'

/** The plan of each mode, for a request that may leave the mode to its session. `text` is what is to be answered. */
export type PlansFor = (text: string) => PlansByMode

export interface Acceptance {
  readonly run: RunFacts
  /** False when the key was known: the run is an earlier request's. */
  readonly isNew: boolean
  /** Of a new run that answers the first message of its session: what goes upstream. */
  readonly history?: History
}

export interface AcceptOptions {
  readonly db: Db
  readonly runs: RunStore
  readonly instanceId: string
  readonly runsPerOwnerMax: number
  readonly changes?: SessionChanges
  /** Whether somebody is shown the run by this process now. Absent: nobody is shown any. */
  readonly isWatched?: (runId: string) => boolean
  /** Absent: nothing is limited. */
  readonly budgets?: Pick<Budgets, 'holdFor' | 'refusalFor'>
}

interface AcceptRow {
  readonly prior_run: boolean
  readonly at_limit: boolean
  readonly not_found: boolean
  /** The tool calls that are to be answered have their answers. */
  readonly answered_twice: boolean
  /** The run that the session was busy with; the running one first. */
  readonly active_run_id: string | null
  /** Null when nothing was written. */
  readonly session_id: string | null
  readonly status: 'queued' | 'running'
  readonly mode: Mode
  readonly provider: string
  readonly model: string
  readonly request: RunRequest
  readonly created_at: string
  /** The new message of the user is the session's first one; null when nothing was written. */
  readonly is_first: boolean | null
  /** Of the session, when it is. */
  readonly context: unknown
}

// Each try that fails means that another request has just committed, which the next try sees. Only a session whose
// runs begin and end faster than this statement runs could go on like that.
const attemptsMax = 8

/** The longest pause of the official clients before they repeat by themselves: it begins at half a second and doubles. */
const repeatPauseMaxMs = 8000

export function createAccept(options: AcceptOptions) {
  const { db, runs, instanceId, runsPerOwnerMax, changes, isWatched = () => false, budgets } = options
  /** Requests without a key on their way into the database, by what makes two of them the same. */
  const underWay = new Map<string, Promise<Acceptance>>()

  async function findPrior(owner: Owner, asked: Asked, hash: string): Promise<RunRecord | undefined> {
    if (asked.client_message_id === undefined) return undefined
    const prior = await runs.findByKey(owner, asked.client_message_id)
    if (prior === undefined) return undefined
    if (prior.request_hash !== hash || !(await isOfSession(owner, asked, prior))) {
      throw new Problem('idempotency_mismatch')
    }
    return prior
  }

  /** The run that a client without a key means, which asks once more because it has heard nothing. */
  async function findRepeated(owner: Owner, asked: Asked, hash: string): Promise<RunRecord | undefined> {
    const { repeats_within_ms: withinMs, linger_ms = 0, client_message_id: key }: Partial<ChatAsked> = asked
    if (withinMs === undefined || key !== undefined) return undefined
    const name = sessionNamed(asked)
    const sessionId = name && (await findSessionId(db, owner, name))
    if (name !== undefined && sessionId === undefined) return undefined
    // It goes on for a while without its client, and that waits before it comes back.
    const endedWithinMs = linger_ms + repeatPauseMaxMs
    return runs.findRepeated(owner, hash, { withinMs, endedWithinMs, sessionId, isLeftOut: isWatched })
  }

  async function isOfSession(owner: Owner, asked: Asked, run: RunRecord): Promise<boolean> {
    const name = sessionNamed(asked)
    if (name === undefined) return true
    // What came under a key may be asked for again when its session is deleted.
    const named = 'session_id' in name ? name.session_id : await findSessionId(db, owner, name)
    return named === run.session_id
  }

  /**
   * @param raw as validated; cleaned here, because its hash must be that of what is stored
   * @returns the new run, running or queued, or the one that the key already has
   * @throws Problem `invalid_request` `too_large` `not_found` `conflict` `session_busy` `idempotency_mismatch` `rate_limited`
   *   `budget_exceeded` `db_unavailable`
   */
  async function accept(owner: Owner, raw: Asked, plansFor: PlansFor): Promise<Acceptance> {
    const asked = cleanAsked(raw)
    const hash = hashAsked(asked)
    if (asked.client_message_id !== undefined) return acceptOnce(owner, asked, hash, plansFor)
    const same = `${hash} ${owner.key}`
    const { repeats_within_ms: withinMs }: Partial<ChatAsked> = asked
    // A repeat may be faster than what it repeats, which nobody can find before it is stored.
    if (withinMs !== undefined) await underWay.get(same)?.catch(() => undefined) // told to whoever has asked first
    const acceptance = acceptOnce(owner, asked, hash, plansFor)
    underWay.set(same, acceptance)
    try {
      return await acceptance
    } finally {
      if (underWay.get(same) === acceptance) underWay.delete(same)
    }
  }

  async function acceptOnce(owner: Owner, asked: Asked, hash: string, plansFor: PlansFor): Promise<Acceptance> {
    const repeated = await findRepeated(owner, asked, hash)
    if (repeated !== undefined) return { run: repeated, isNew: false }
    let plan = await planOf(db, owner, asked, uuidv7())
    const named: Wishes = asked
    const continued = named.mode === undefined && named.model === undefined ? plan.continued : undefined
    const wishes: Wishes = continued === undefined ? named : { ...named, mode: continued.mode }
    const plans = continued?.plans ?? plansFor(plan.text)
    const tools = named.tools ?? plan.request?.tools
    const { instructions = plan.request?.instructions ?? '', settings = plan.request?.settings } = named
    const prompt = `${plan.text}${instructions}${tools === undefined ? '' : JSON.stringify(tools)}`
    const hold = budgets?.holdFor(owner, plans, {
      text: prompt,
      isNamed: named.model !== undefined,
      brought: plan.brought?.map(({ parts }) => JSON.stringify(parts)).join(''),
      outputTokensMax: settings?.max_output_tokens,
    })
    for (let attempt = 1; ; attempt += 1) {
      const ids = { run: uuidv7(), userMessage: plan.answered ?? uuidv7(), message: uuidv7() }
      try {
        const row = await insert(owner, wishes, plan, hash, hold ?? plans, ids)
        if (row.prior_run) {
          const prior = await findPrior(owner, asked, hash)
          if (prior !== undefined) return { run: prior, isNew: false }
        } else if (row.at_limit) {
          throw new Problem('rate_limited', `At most ${runsPerOwnerMax} runs at once.`, { retryAfterSeconds: 5 })
        } else if (row.not_found) {
          throw new Problem('not_found', 'There is no such session, or no such parent message in it.')
        } else if (row.answered_twice) {
          throw new Problem('conflict', 'These tool calls have been answered.')
        } else if (row.session_id !== null) {
          changes?.changed(row.session_id)
          const run = toFacts(ids, row.session_id, row, wishes)
          const { message } = plan
          if (row.is_first !== true || message === undefined) return { run, isNew: true }
          return { run, isNew: true, history: historyOfFirst(ids.userMessage, message, row.context) }
        } else if (row.active_run_id !== null && (wishes.on_busy ?? 'reject') === 'reject') {
          throw sessionBusy(row.active_run_id)
        }
      } catch (error) {
        const isOverBudget = isRefusedByBudget(error)
        if (!isOverBudget && !(error instanceof DbError && error.sqlstate === uniqueViolation)) throw error
        const prior = await findPrior(owner, asked, hash)
        if (prior !== undefined) return { run: prior, isNew: false }
        if (isOverBudget) throw (await budgets?.refusalFor(owner)) ?? error
      }
      // Somebody may just have made the session of this name, or the one that these answers were to begin.
      if (plan.externalId !== undefined || (plan.brought && plan.toolParts))
        plan = await planOf(db, owner, asked, uuidv7())
      if (attempt === attemptsMax) throw new Problem('internal', 'The message could not be placed in its session.')
    }
  }

  async function insert(
    owner: Owner,
    wishes: Wishes,
    plan: Plan,
    hash: string,
    planned: PlansByMode | Hold,
    ids: NewIds,
  ): Promise<AcceptRow> {
    const hold = 'reservation' in planned ? planned : undefined
    const plans = 'reservation' in planned ? planned.plans : planned
    const { sessionId, sessionExists, message, toolParts, brought = [] } = plan
    const answersCalls = toolParts !== undefined
    const key = wishes.client_message_id ?? null
    const mode = wishes.mode ?? null
    const parentId = plan.parentId ?? null
    const isPlaced = plan.parentId !== undefined
    const limit = runsPerOwnerMax === 0 ? null : runsPerOwnerMax
    const onBusy = wishes.on_busy ?? 'reject'
    const metadata = JSON.stringify(wishes.metadata ?? {})
    const parts = JSON.stringify(toolParts ?? [{ kind: 'text', text: message }])
    const named = brought.find(({ role }) => role === 'user')?.content ?? (answersCalls ? undefined : message)
    const title = named === undefined ? null : titleFrom(named)
    const titleSource = title === null ? null : 'message'
    const written = message === undefined ? 1 : 2
    const mayWrite = sql`
      not request.prior_run and not request.at_limit and not request.not_found and not request.answered_twice
      and (request.active_run_id is null or ${onBusy}::text <> 'reject')`
    const change = sql`
      status = 'running',
      title = coalesce(s.title, ${title}::text),
      title_source = coalesce(s.title_source, ${titleSource}::text),
      message_count = s.message_count + ${written}::int,
      active_run_id = coalesce((select started_run_id from request), s.active_run_id),
      ended_at = null,
      version = s.version + 1,
      updated_at = now(),
      last_activity_at = now()`
    const asSeen = sql`
      s.owner = ${owner.key} and s.deleted_at is null
      and ((select started_run_id from request) is null and not ${answersCalls}::boolean or s.version = (select version from request))`
    const returned = sql`s.id, s.message_count, coalesce(${mode}::text, s.mode) as mode, s.context`
    const agent = wishes.agent_id ?? plan.request?.agent
    const before = plan.request ?? {}
    const { tools = before.tools, tool_choice = before.tool_choice, linger_ms } = wishes
    const { instructions = before.instructions, settings = before.settings } = wishes
    const { messages_max } = before
    const more = JSON.stringify({ agent, tools, tool_choice, instructions, settings, messages_max, linger_ms })
    const picked = sql`(case
      when session.message_count - ${written}::int >= (choice.value -> 'later' ->> 'from')::int then choice.value -> 'later'
      else choice.value
    end)`
    // Its message and the reply, and nothing before. One that waits in the queue is answered later, and then looks for itself.
    const isFirst = sql`(session.message_count = 2 and run.status = 'running' and not ${answersCalls}::boolean)`
    // Only what may make its session inserts one: of a session that is purged at this moment, nothing may come back.
    const session = sessionExists
      ? sql`
        update chat_sessions as s set ${change} from request
        where s.id = ${sessionId}::uuid and ${mayWrite} and ${asSeen}
        returning ${returned}`
      : sql`
        insert into chat_sessions as s (
          id, external_id, user_id, visitor_hash, status, mode, title, title_source, message_count, active_run_id
        )
        select
          ${sessionId}::uuid, ${plan.externalId ?? null}::text, ${owner.userId}::text, ${owner.visitorHash}::text, 'running', coalesce(${mode}::text, 'balanced'),
          ${title}::text, ${titleSource}::text, ${written + brought.length}::int, started_run_id
        from request where ${mayWrite}
        on conflict (id) do update set ${change} where ${asSeen}
        returning ${returned}`
    const [row] = await db.rows<AcceptRow>(
      sql`
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
          seen.version is null and (${sessionExists}::boolean or exists (
            select 1 from chat_sessions where id = ${sessionId}::uuid
          )) or ${parentId}::uuid is not null and not exists (
            select 1 from chat_messages where id = ${parentId}::uuid and session_id = ${sessionId}::uuid
          ) as not_found,
          ${answersCalls}::boolean and exists (
            select 1 from chat_messages where parent_id = ${parentId}::uuid and role = 'tool'
          ) as answered_twice,
          case when ${isPlaced}::boolean then ${parentId}::uuid when seen.version is null then ${brought.at(-1)?.id ?? null}::uuid else (
            select id from chat_messages
            where session_id = ${sessionId}::uuid and seen.active_run_id is null
            order by seq desc limit 1
          ) end as parent_id,
          seen.version,
          seen.active_run_id,
          case when seen.active_run_id is null then ${ids.run}::uuid end as started_run_id
        from (select 1) one left join seen on true
      ), session as (${session}), choice as (
        select session.mode, ${picked} -> 'plan' || ${more}::jsonb as request,
          ${hold?.reservation(sql`${picked} -> 'hold'`, sessionId) ?? sql`null::jsonb`} as reservation
        from session join jsonb_each(${JSON.stringify(plans)}::jsonb) choice on choice.key = session.mode
      ), run as (
        insert into chat_runs (
          id, session_id, user_message_id, message_id, kind, status, mode, provider, model, request, reservation, instance_id,
          owner, idempotency_key, request_hash, on_disconnect, parent_pending, started_at
        )
        select
          ${ids.run}::uuid, session.id, ${ids.userMessage}::uuid, ${ids.message}::uuid, ${plan.kind},
          case when request.started_run_id is null then 'queued' else 'running' end, session.mode,
          choice.request #>> '{candidates,0,provider}', choice.request #>> '{candidates,0,model}', choice.request,
          choice.reservation,
          case when request.started_run_id is not null then ${instanceId}::uuid end, ${owner.key},
          ${key}::text, ${hash}, ${wishes.on_disconnect ?? 'continue'}, not ${isPlaced}::boolean,
          case when request.started_run_id is not null then clock_timestamp() end
        from request, session, choice
        returning session_id, status, mode, provider, model, request, reservation, created_at
      ),${hold === undefined ? sql`` : sql` ${hold.taken},`}${brought.length === 0 ? sql`` : writeBrought(brought)} user_message as (
        insert into chat_messages (
          id, session_id, owner, seq, parent_id, run_id, role, content, parts, status, client_message_id, metadata,
          completed_at
        )
        select
          ${ids.userMessage}::uuid, session.id, ${owner.key}, session.message_count - 1, request.parent_id, ${ids.run}::uuid,
          case when ${answersCalls}::boolean then 'tool' else 'user' end,
          ${message ?? ''}, ${parts}::jsonb, 'completed', ${key}::text, ${metadata}::jsonb, now()
        from session, request where ${message !== undefined}::boolean
      ), reply as (
        insert into chat_messages (id, session_id, owner, seq, parent_id, run_id, role, status, model, agent_id, metadata)
        select
          ${ids.message}::uuid, session.id, ${owner.key}, session.message_count, ${ids.userMessage}::uuid, ${ids.run}::uuid,
          'assistant', 'streaming', run.model, ${agent ?? null}::text, ${message === undefined ? metadata : '{}'}::jsonb
        from session, run
      ), stopping as (
        update chat_runs set stop_requested_at = coalesce(chat_runs.stop_requested_at, now())
        from session
        where ${onBusy}::text = 'interrupt' and chat_runs.session_id = session.id
          and chat_runs.status in ('queued', 'running')
      )
      select
        request.prior_run, request.at_limit, request.not_found, request.answered_twice, request.active_run_id, run.session_id, run.status,
        run.mode, run.provider, run.model, run.request, ${isoTime(sql`run.created_at`)} as created_at,
        ${isFirst} as is_first, case when ${isFirst} then session.context end as context
      from request left join run on true left join session on true`,
      'often',
    )
    return row as AcceptRow
  }

  function toFacts(ids: NewIds, sessionId: string, row: AcceptRow, wishes: Wishes): RunFacts {
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
      on_disconnect: wishes.on_disconnect ?? 'continue',
      request: row.request,
      created_at: row.created_at,
    }
  }

  return {
    accept,
    findPrior: async (owner: Owner, raw: Asked) => {
      const asked = cleanAsked(raw)
      const hash = hashAsked(asked)
      return (await findPrior(owner, asked, hash)) ?? findRepeated(owner, asked, hash)
    },
  }
}

interface NewIds {
  readonly run: string
  /** Of a new one, or of the one that is answered once more. */
  readonly userMessage: string
  readonly message: string
}

const isRefusedByBudget = (error: unknown): boolean =>
  error instanceof DbError && error.sqlstate === checkViolation && error.constraint === budgetConstraint
