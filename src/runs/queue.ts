/**
 * The queue of a session: messages that were accepted with `on_busy: queue` or `interrupt` while another was answered.
 * It is made of rows and belongs to no process. A queued run is nobody's until its promotion, one statement, turns the
 * oldest of a session that answers nothing into a running one of this process. Its size is bounded by the limit of runs
 * per owner.
 *
 * No queued run is forgotten, because three look: whoever ends a run behind which messages were stored, whoever has
 * queued one (the run before it may have ended just then, unseen), and every process from time to time, which is for
 * those who died between the two. None runs out of turn: the session's row is locked here, in accept and in the commit
 * before a run changes its status, and whoever still holds an older view of it finds the run no longer queued.
 *
 * Its order is that of the replies' `seq`: a reply that is asked for once more has a user message that is long answered.
 *
 * What a queued message follows, unless its sender said so (`parent_pending` is false), is the message before it. That one
 * may have been out of sight when this one was accepted, so it is looked up when this one leaves the queue, here or in the
 * commit.
 *
 * What waits in a session that was deleted leaves the queue like any other, asked to stop: it ends as soon as it has begun.
 *
 * If the process dies at the await of a promotion, it has happened or not; if so, the run is a running one of a dead
 * process of which nothing was shown, and is taken over like any other. If the database does not answer, the next look
 * finds what is left. A draining process promotes nothing: the queue waits for another one.
 */
import type { Db } from '../db/db.ts'
import { sql } from '../db/drizzle.ts'
import { messageBefore } from '../sessions/messages.ts'
import { isoTime } from '../sessions/store.ts'
import { type Commit, commitRun, type Ending } from './commit.ts'
import { holdsBudget, type RunFacts } from './model.ts'

export interface PromotedRun extends RunFacts {
  /** It was asked to stop while it was queued: to be started, so that its viewers see its end, and stopped at once. */
  readonly stop_requested: boolean
}

/** Sessions that one statement looks at; the next look takes the others. */
const promotionsMax = 50

/**
 * Takes the next message of each session that answers none.
 * @param sessionId only this one; undefined is all sessions, except those that somebody else is changing at the moment
 * @returns runs of this process, to be started
 * @throws Problem `db_unavailable` when it is unknown what was promoted: the runs are then taken over like a dead process's
 */
export function promote(db: Db, instanceId: string, sessionId: string | undefined): Promise<PromotedRun[]> {
  const ofSession = sessionId === undefined ? sql`` : sql`and run.session_id = ${sessionId}::uuid`
  return db.rows<PromotedRun>(sql`
    with next as (
      select distinct on (run.session_id) run.id, run.session_id
      from chat_runs run join chat_messages message on message.id = run.message_id
      where run.status = 'queued' ${ofSession} and not exists (
        select 1 from chat_runs other where other.session_id = run.session_id and other.status = 'running'
      )
      order by run.session_id, message.seq
      limit ${promotionsMax}::int
    ), place as materialized (
      select s.id, s.deleted_at from chat_sessions s where s.id in (select session_id from next)
      for update ${sessionId === undefined ? sql`skip locked` : sql``}
    ), run as (
      -- Not now(): that is when the statement was prepared, which can be before the run before this one had ended.
      update chat_runs set
        status = 'running', instance_id = ${instanceId}::uuid, started_at = clock_timestamp(),
        stop_requested_at = case
          when place.deleted_at is null then chat_runs.stop_requested_at
          else coalesce(chat_runs.stop_requested_at, now())
        end
      from next, place
      where chat_runs.id = next.id and place.id = next.session_id and chat_runs.status = 'queued'
      returning chat_runs.*
    ), message as (
      update chat_messages m set parent_id = ${messageBefore}
      from run where m.id = run.user_message_id and m.parent_id is null and run.parent_pending
    ), session as (
      update chat_sessions s set
        status = case when s.deleted_at is null then 'running' else s.status end,
        active_run_id = run.id, ended_at = null, version = s.version + 1, updated_at = now()
      from run where s.id = run.session_id
    )
    select
      id, session_id, user_message_id, message_id, status, mode, provider, model, generation, last_seq, instance_id,
      on_disconnect, request, ${isoTime(sql`created_at`)} as created_at, stop_requested_at is not null as stop_requested
    from run`)
}

/** How a run ends that was stopped in the queue: `run` at 1, and the terminal event at 2. */
const unstarted: Ending = {
  status: 'stopped',
  parts: [],
  content: '',
  usage: undefined,
  usageSource: undefined,
  costUsd: '0',
  calls: [],
  answeredBy: undefined,
  finishReason: undefined,
  model: undefined,
  error: undefined,
  ttftMs: undefined,
  latencyMs: undefined,
  lastSeq: 2,
}

/**
 * Ends a run that has not started. `fenced` when it has started meanwhile: it is then to be stopped like any other.
 * @throws Problem `db_unavailable` when the outcome is unknown: call again
 */
export function stopQueued(db: Db, run: RunFacts): Promise<Commit> {
  return commitRun(db, run.id, run.generation, unstarted, 'queued', holdsBudget(run))
}
