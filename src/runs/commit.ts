/**
 * The commit: the one statement by which a run ends. Message, run, session counters, usage and cost are written together,
 * guarded by the run's generation and status; its checkpoints go in the same breath, and what was held back of budgets is
 * given back there (sessions/reservations.ts). Completion, stop (also of a run
 * that is still queued), failure, drain and takeover all end here, so there is one terminal state per run whoever comes
 * first.
 *
 * The session's row is locked before the run's, as in accept and in the promotion of queued runs: whoever changes what a
 * session is doing takes turns there, and no two of them can wait for each other. It also makes the answer exact that
 * the statement gives about messages behind this one, which its snapshot alone could miss.
 *
 * What the session is doing is said by its row alone, which is locked: a commit that comes late leaves the status to the run
 * that is active by then, and a deleted session stays `deleted`. A run that was asked to end by a kill makes the session
 * `killed`, whoever commits it; if its reply was whole first, the session is `completed`.
 *
 * If the process dies at the await, the statement has happened whole or not at all; if not, the run is taken over and
 * ends from its checkpoints. If only the answer is lost, the statement is run again: it finds the run ended, and then
 * reads back whether it ended so, because `done` may only say what is stored.
 */
import type { Db } from '../db/db.ts'
import { sql } from '../db/drizzle.ts'
import type { RunError } from '../errors.ts'
import type { Part, TerminalStatus } from '../log/event.ts'
import { messageBefore } from '../sessions/messages.ts'
import { settle } from '../sessions/reservations.ts'
import type { ModelChoice } from '../upstream/plan.ts'
import type { Spending } from './ledger.ts'

/** How a run ended, and with what. */
export interface Ending extends Spending {
  readonly status: TerminalStatus
  readonly parts: readonly Part[]
  readonly content: string
  /** How far a reply of several steps had come; undefined leaves what is there. */
  readonly phase?: string | undefined
  readonly round?: number | undefined
  /** Who made the reply, of those that were asked; undefined leaves the run with the one that was to be asked first. */
  readonly answeredBy: ModelChoice | undefined
  readonly finishReason: string | undefined
  readonly model: string | undefined
  readonly error: RunError | undefined
  /** From the run's start to the first words, in milliseconds. */
  readonly ttftMs: number | undefined
  /** From the run's start to the end of the reply, in milliseconds. */
  readonly latencyMs: number | undefined
  /** The seq that the terminal event will have. */
  readonly lastSeq: number
}

export interface Commit {
  /**
   * `committed`: stored now, or by an earlier try with this very ending. `fenced`: the run is another generation's, ended
   * otherwise, or its session is gone; somebody else says how it ended.
   */
  readonly outcome: 'committed' | 'fenced'
  /**
   * The session has messages after this run's, and one of them may be queued. None is missed: a message that is not
   * counted here was accepted after this commit, and whoever accepted it looks for itself.
   */
  readonly nextMayWait: boolean
}

/**
 * @param generation the fencing token under which this process holds the run
 * @param from what the run has to be: a stop of a queued run must not end one that has words by now
 * @param holds whether the run may hold something of a budget: to look for it costs the statement 0.4 ms, of 2.5
 * @throws Problem `db_unavailable` when the outcome is unknown: call again
 */
export async function commitRun(
  db: Db,
  runId: string,
  generation: number,
  ending: Ending,
  from: 'queued' | 'running' = 'running',
  holds = true,
): Promise<Commit> {
  const { usage, answeredBy } = ending
  const cost = ending.costUsd ?? null
  const totalTokens = toColumn(usage?.total_tokens) ?? 0
  const error = ending.error === undefined ? null : JSON.stringify(ending.error)
  const [row] = await db.rows<{ next_may_wait: boolean }>(
    sql`
    with place as materialized (
      select s.id, r.reservation from chat_sessions s join chat_runs r on r.session_id = s.id
      where r.id = ${runId}::uuid
      for update of s
    ), run as (
      update chat_runs set
        status = ${ending.status},
        provider = coalesce(${answeredBy?.provider ?? null}::text, chat_runs.provider),
        model = coalesce(${answeredBy?.model ?? null}::text, chat_runs.model),
        upstream_calls = ${JSON.stringify(ending.calls)}::jsonb,
        reservation = case when ${holds}::boolean then null else chat_runs.reservation end,
        phase = coalesce(${ending.phase ?? null}::text, chat_runs.phase),
        round_number = coalesce(${ending.round ?? null}::int, chat_runs.round_number),
        cost = ${cost}::numeric,
        usage = ${usage === undefined ? null : JSON.stringify(usage)}::jsonb,
        usage_source = ${ending.usageSource ?? null}::text,
        finish_reason = ${ending.finishReason ?? null}::text,
        error = ${error}::jsonb,
        last_seq = ${ending.lastSeq}::int,
        first_token_at = started_at + ${ending.ttftMs ?? null}::int * interval '1 millisecond',
        ended_at = now()
      from place
      where chat_runs.id = ${runId}::uuid and chat_runs.session_id = place.id
        and generation = ${generation}::int and status = ${from}
      returning
        chat_runs.id, session_id, user_message_id, message_id, status, started_at, parent_pending, kill_requested_at,
        place.reservation, coalesce(cost, 0) as spent_cost, ${totalTokens}::bigint as spent_tokens
    ),${holds ? sql` ${settle(sql`run`)},` : sql``} message as (
      update chat_messages set
        content = ${ending.content},
        parts = ${JSON.stringify(ending.parts)}::jsonb,
        status = run.status,
        model = coalesce(${ending.model ?? answeredBy?.model ?? null}::text, chat_messages.model),
        input_tokens = ${toColumn(usage?.input_tokens)}::int,
        output_tokens = ${toColumn(usage?.output_tokens)}::int,
        total_tokens = ${toColumn(usage?.total_tokens)}::int,
        latency_ms = ${ending.latencyMs ?? null}::int,
        ttft_ms = ${ending.ttftMs ?? null}::int,
        finish_reason = ${ending.finishReason ?? null}::text,
        error = ${error}::jsonb,
        completed_at = now()
      from run where chat_messages.id = run.message_id
      returning chat_messages.model, chat_messages.seq
    ), session as (
      update chat_sessions set
        -- A message that is stopped in the queue is not what the session is doing.
        status = case
          when chat_sessions.active_run_id <> run.id or chat_sessions.deleted_at is not null then chat_sessions.status
          when run.status = 'stopped' and run.kill_requested_at is not null then 'killed'
          when run.status in ('completed', 'stopped') then 'completed'
          else 'failed'
        end,
        model = message.model,
        phase = coalesce(${ending.phase ?? null}::text, chat_sessions.phase),
        round_number = coalesce(${ending.round ?? null}::int, chat_sessions.round_number),
        total_tokens = chat_sessions.total_tokens + ${totalTokens}::int,
        total_cost = chat_sessions.total_cost + run.spent_cost,
        active_run_id = nullif(chat_sessions.active_run_id, run.id),
        version = chat_sessions.version + 1,
        updated_at = now(),
        last_activity_at = now()
      from run, message where chat_sessions.id = run.session_id
      returning chat_sessions.message_count > message.seq as next_may_wait
    ), unanswered as (
      update chat_messages m set parent_id = ${messageBefore}
      from run where m.id = run.user_message_id and m.parent_id is null and run.started_at is null and run.parent_pending
    ), cleared as (
      delete from run_checkpoints using run where run_checkpoints.run_id = run.id
    )
    select next_may_wait from session`,
    'often',
  )
  if (row !== undefined) return { outcome: 'committed', nextMayWait: row.next_may_wait }
  // In a statement of its own: the one above may have waited for an earlier try of itself, and cannot see what that did.
  const [before] = await db.rows<{ next_may_wait: boolean }>(sql`
    select session.message_count > message.seq as next_may_wait
    from chat_runs run
    join chat_messages message on message.id = run.message_id
    join chat_sessions session on session.id = run.session_id
    where run.id = ${runId}::uuid and run.generation = ${generation}::int
      and run.status = ${ending.status} and run.last_seq = ${ending.lastSeq}::int
      and message.content = ${ending.content} and message.parts = ${JSON.stringify(ending.parts)}::jsonb`)
  return before === undefined
    ? { outcome: 'fenced', nextMayWait: false }
    : { outcome: 'committed', nextMayWait: before.next_may_wait }
}

// A count that no column holds was made up by the provider; it must not cost the reply.
const int4Max = 2_147_483_647
const toColumn = (count: number | undefined) => (count === undefined ? null : Math.min(count, int4Max))
