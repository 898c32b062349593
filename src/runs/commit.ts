/**
 * The commit: the one statement by which a run leaves `running`. Message, run, session counters and usage are written
 * together, guarded by the run's generation and status, and its checkpoints go in the same breath. Completion, stop,
 * failure, drain and takeover all end here, so there is one terminal state per run whoever comes first.
 *
 * If the process dies at the await, the statement has happened whole or not at all; if not, the run is taken over and
 * ends from its checkpoints. If only the answer is lost, the statement is run again: it finds the run ended, and then
 * reads back whether it ended so, because `done` may only say what is stored.
 */
import type { Db } from '../db/db.ts'
import { sql } from '../db/drizzle.ts'
import type { RunError } from '../errors.ts'
import type { Part, TerminalStatus, Usage } from '../log/event.ts'

/** How a run ended, and with what. */
export interface Ending {
  readonly status: TerminalStatus
  readonly parts: readonly Part[]
  readonly content: string
  readonly usage: Usage | undefined
  readonly finishReason: string | undefined
  readonly model: string | undefined
  readonly error: RunError | undefined
  /** From acceptance to the first words, in milliseconds. */
  readonly ttftMs: number | undefined
  /** From acceptance to the end of the reply, in milliseconds. */
  readonly latencyMs: number | undefined
  /** The seq that the terminal event will have. */
  readonly lastSeq: number
}

export type CommitOutcome =
  /** Stored now, or by an earlier try with this very ending. */
  | 'committed'
  /** The run is another generation's, ended otherwise, or its session is gone: somebody else says how it ended. */
  | 'fenced'

/**
 * @param generation the fencing token under which this process holds the run
 * @throws Problem `db_unavailable` when the outcome is unknown: call again
 */
export async function commitRun(db: Db, runId: string, generation: number, ending: Ending): Promise<CommitOutcome> {
  const { usage } = ending
  const error = ending.error === undefined ? null : JSON.stringify(ending.error)
  const statement = sql`
    with run as (
      update chat_runs set
        status = ${ending.status},
        usage = ${usage === undefined ? null : JSON.stringify(usage)}::jsonb,
        usage_source = ${usage === undefined ? null : 'provider'}::text,
        finish_reason = ${ending.finishReason ?? null}::text,
        error = ${error}::jsonb,
        last_seq = ${ending.lastSeq}::int,
        first_token_at = created_at + ${ending.ttftMs ?? null}::int * interval '1 millisecond',
        ended_at = now()
      where id = ${runId}::uuid and generation = ${generation}::int and status in ('queued', 'running')
      returning id, session_id, message_id, status
    ), message as (
      update chat_messages set
        content = ${ending.content},
        parts = ${JSON.stringify(ending.parts)}::jsonb,
        status = run.status,
        model = coalesce(${ending.model ?? null}::text, chat_messages.model),
        input_tokens = ${toColumn(usage?.input_tokens)}::int,
        output_tokens = ${toColumn(usage?.output_tokens)}::int,
        total_tokens = ${toColumn(usage?.total_tokens)}::int,
        latency_ms = ${ending.latencyMs ?? null}::int,
        ttft_ms = ${ending.ttftMs ?? null}::int,
        finish_reason = ${ending.finishReason ?? null}::text,
        error = ${error}::jsonb,
        completed_at = now()
      from run where chat_messages.id = run.message_id
      returning chat_messages.model
    ), session as (
      update chat_sessions set
        status = case when run.status in ('completed', 'stopped') then 'completed' else 'failed' end,
        model = message.model,
        total_tokens = chat_sessions.total_tokens + ${toColumn(usage?.total_tokens) ?? 0}::int,
        active_run_id = null,
        version = chat_sessions.version + 1,
        updated_at = now(),
        last_activity_at = now()
      from run, message where chat_sessions.id = run.session_id
    ), cleared as (
      delete from run_checkpoints using run where run_checkpoints.run_id = run.id
    )
    select exists (select 1 from run) as committed`
  const [row] = await db.rows<{ committed: boolean }>(statement, 'runs')
  if (row?.committed) return 'committed'
  // In a statement of its own: the one above may have waited for an earlier try of itself, and cannot see what that did.
  const question = sql`
    select exists (
      select 1 from chat_runs run join chat_messages message on message.id = run.message_id
      where run.id = ${runId}::uuid and run.generation = ${generation}::int
        and run.status = ${ending.status} and run.last_seq = ${ending.lastSeq}::int
        and message.content = ${ending.content} and message.parts = ${JSON.stringify(ending.parts)}::jsonb
    ) as same`
  const [before] = await db.rows<{ same: boolean }>(question, 'runs')
  return before?.same ? 'committed' : 'fenced'
}

// A count that no column holds was made up by the provider; it must not cost the reply.
const int4Max = 2_147_483_647
const toColumn = (count: number | undefined) => (count === undefined ? null : Math.min(count, int4Max))
