/**
 * What becomes of a run whose process is dead, has let it go, or does not answer a request to stop. Whoever claims it
 * raises its generation in the same statement, which fences the old process out of every later write, to Postgres and to
 * the log. Then:
 * - its text is put together from the log and the checkpoints, whichever goes further: what a viewer was shown is in the
 *   log, and what the log has lost is, but for the last second, in a checkpoint. A log that does not answer at the moment
 *   is asked again for `logPatienceMs`: it may hold words that are nowhere else;
 * - asked to stop: it ends as `stopped`, with the text that is known at once, because somebody waits for it;
 * - surely nothing was shown yet: the upstream is asked again, by this process, and the reply goes on as if nothing had
 *   happened; at most {@link attemptsMax} times in all, because what kills a process may be the run itself;
 * - else it ends as `interrupted`, with that text, and can be asked for again by a person.
 *
 * The new generation begins with a `reset`, so that viewers of the old one hold what is stored. The end is said only after
 * the commit, as everywhere.
 *
 * If this process dies at an await, its own lease runs out, and the next one does the same with a generation of its own.
 */
import type { FastifyBaseLogger } from 'fastify'
import type { Db } from '../db/db.ts'
import { type SQL, sql } from '../db/drizzle.ts'
import { Problem } from '../errors.ts'
import { compareEventIds, contentOf, type LogEntry, type Part } from '../log/event.ts'
import { foldEvents, resetEntry } from '../log/fold.ts'
import type { EventLog } from '../log/log.ts'
import type { SessionChanges } from '../sessions/changes.ts'
import { isoTime } from '../sessions/store.ts'
import { type Checkpoint, readCheckpoint } from './checkpoint.ts'
import { commitRun, type Ending } from './commit.ts'
import type { RunFacts } from './model.ts'
import type { OwnedRuns } from './owned.ts'
import { pause, toDone } from './run.ts'

/** Times that one run may ask the upstream, the first included. */
export const attemptsMax = 2
/** How long a log that does not answer is waited for, beyond its own limit for an answer. */
const logPatienceMs = 3000
const logPauseMs = 250

export interface TakeoverOptions {
  readonly db: Db
  readonly log: EventLog
  readonly owned: OwnedRuns
  readonly instanceId: string
  readonly logger: FastifyBaseLogger
  /** Aborted when this process ends. */
  readonly closing: AbortSignal
  readonly changes?: SessionChanges
}

interface Known {
  readonly text: Checkpoint
  /** False when the log might know of more. */
  readonly isCertain: boolean
}

export interface ClaimedRun extends RunFacts {
  readonly stop_requested: boolean
}

/** What a statement that claims runs returns of each; `run` is the name of the table in it. */
export const claimedColumns = sql`
  run.id, run.session_id, run.user_message_id, run.message_id, run.status, run.mode, run.provider, run.model,
  run.generation, run.last_seq, run.instance_id, run.on_disconnect, run.request, ${isoTime(sql`run.created_at`)} as created_at,
  run.stop_requested_at is not null as stop_requested`

export type Takeover = ReturnType<typeof createTakeover>

export function createTakeover({ db, log, owned, instanceId, logger, closing, changes }: TakeoverOptions) {
  /**
   * The furthest that is known of what the run has said; both sources end at an event of the same numbering.
   * @param isAwaited somebody waits for the answer, as with a stop: what is known at once has to do
   */
  async function readText(runId: string, isAwaited: boolean): Promise<Known> {
    const [entries, checkpoint] = await Promise.all([
      isAwaited ? log.load(runId) : loadPatiently(runId),
      readCheckpoint(db, runId),
    ])
    const isCertain = entries !== 'unanswered'
    const logged = isCertain ? joinEntries(entries) : undefined
    if (logged?.cursor === undefined) return { text: checkpoint, isCertain }
    if (checkpoint.cursor === undefined) return { text: logged, isCertain }
    return { text: compareEventIds(logged.cursor, checkpoint.cursor) >= 0 ? logged : checkpoint, isCertain }
  }

  async function loadPatiently(runId: string): Promise<readonly LogEntry[] | 'unanswered'> {
    for (const giveUpAt = performance.now() + logPatienceMs; ; ) {
      const entries = await log.load(runId)
      if (entries !== 'unanswered' || performance.now() >= giveUpAt) return entries
      await pause(logPauseMs, closing)
      if (closing.aborted) return entries
    }
  }

  /** @returns false when the run may not ask again, or is somebody else's by now */
  async function countAttempt({ id, generation }: RunFacts): Promise<boolean> {
    const counted = await db.rows(sql`
      update chat_runs set attempts = attempts + 1
      where id = ${id}::uuid and generation = ${generation}::int and status = 'running'
        and stop_requested_at is null and attempts < ${attemptsMax}::int
      returning id`)
    return counted.length > 0
  }

  async function end(run: ClaimedRun, text: Checkpoint): Promise<void> {
    const ending: Ending = {
      status: run.stop_requested ? 'stopped' : 'interrupted',
      parts: text.parts,
      content: contentOf(text.parts),
      usage: undefined,
      finishReason: undefined,
      model: undefined,
      error: run.stop_requested ? undefined : new Problem('interrupted').toRunError(),
      ttftMs: undefined,
      latencyMs: undefined,
      // The new generation holds the reset at 1 and the terminal event at 2.
      lastSeq: 2,
    }
    const { outcome, nextMayWait } = await commitRun(db, run.id, run.generation, ending)
    if (outcome === 'committed') {
      changes?.changed(run.session_id)
      const { generation } = run
      const done: LogEntry = { generation, seq: 2, event: { type: 'done', data: toDone(run, ending) } }
      log.append([{ runId: run.id, entries: [resetEntry(run.message_id, text.parts, { generation, seq: 1 }), done] }])
    }
    logger.warn(
      { run_id: run.id, generation: run.generation, status: ending.status, outcome },
      'took over a run whose process had let go of it',
    )
    if (nextMayWait) await owned.startNext(run.session_id)
  }

  return {
    /**
     * Goes on with a run that this process has claimed, or ends it.
     * @throws Problem `db_unavailable`: the run stays claimed, and is found again as one that nobody makes
     */
    async takeOver(run: ClaimedRun): Promise<void> {
      const { text, isCertain } = await readText(run.id, run.stop_requested)
      const nothingShown = isCertain && text.parts.every(isSilent)
      if (nothingShown && !run.stop_requested && !owned.isDraining && (await countAttempt(run))) {
        logger.warn({ run_id: run.id, generation: run.generation }, 'took over a run that had not begun; asking again')
        owned.start(run)
      } else {
        await end(run, text)
      }
    },

    /**
     * Claims one run from a process that does not answer.
     * @param generation as last read: a run that has moved on since is not claimed
     */
    async claim(runId: string, generation: number): Promise<ClaimedRun | undefined> {
      const [claimed] = await claimRuns(
        db,
        instanceId,
        sql`
          select id, generation from chat_runs
          where id = ${runId}::uuid and generation = ${generation}::int and status = 'running'`,
      )
      return claimed
    },
  }
}

/** Whether nobody has seen anything of it, and it has done nothing. */
const isSilent = ({ kind, text }: Part): boolean => text === '' && (kind === 'text' || kind === 'reasoning')

/**
 * The one statement by which runs change hands. It asks for generation and status again: a run may have been claimed by
 * another, or have ended, since it was chosen.
 * @param chosen a query for ids and generations; rows it locks stay locked until the statement ends
 */
export function claimRuns(db: Db, instanceId: string, chosen: SQL): Promise<ClaimedRun[]> {
  return db.rows<ClaimedRun>(sql`
    with chosen as (${chosen})
    update chat_runs run set generation = run.generation + 1, instance_id = ${instanceId}::uuid
    from chosen where run.id = chosen.id and run.generation = chosen.generation and run.status = 'running'
    returning ${claimedColumns}`)
}

/**
 * What can be joined together from the last beginning on: what stands behind a hole belongs to words that are missing.
 * @returns undefined when the log does not hold the run from a beginning on
 */
function joinEntries(loaded: readonly LogEntry[]): Checkpoint | undefined {
  const entries = loaded.filter(({ event }) => event.type !== 'done')
  const lastReset = entries.findLastIndex(({ event }) => event.type === 'reset')
  if (lastReset === -1 && entries[0]?.seq !== 1) return undefined
  const tail = entries.slice(Math.max(0, lastReset))
  const hole = tail.findIndex(({ generation, seq }, index) => {
    const before = tail[index - 1]
    return before !== undefined && (before.generation !== generation || before.seq + 1 !== seq)
  })
  const whole = hole === -1 ? tail : tail.slice(0, hole)
  return { parts: foldEvents(whole), cursor: whole.at(-1) }
}
