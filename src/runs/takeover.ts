/**
 * What becomes of a run whose process is dead, has let it go, or does not answer a request to stop. Whoever claims it
 * raises its generation in the same statement, which fences the old process out of every later write, to Postgres and to
 * the log. Then:
 * - its text is put together from the log and the checkpoints, whichever goes further: what a viewer was shown is in the
 *   log, and what the log has lost is, but for the last second, in a checkpoint;
 * - asked to stop: it ends as `stopped`, with that text;
 * - nothing shown yet: the upstream is asked again, by this process, and the reply goes on as if nothing had happened;
 *   at most {@link attemptsMax} times in all, because what kills a process may be the run itself;
 * - else it ends as `interrupted`, with that text, and can be asked for again by a person.
 *
 * The new generation begins with a `reset`, so that viewers of the old one hold what is stored. The end is said only after
 * the commit, as everywhere.
 *
 * If this process dies at an await, its own lease runs out, and the next one does the same with a generation of its own.
 * If the log's store does not answer, the checkpoints alone have to do.
 */
import type { FastifyBaseLogger } from 'fastify'
import type { Db } from '../db/db.ts'
import { type SQL, sql } from '../db/drizzle.ts'
import { Problem } from '../errors.ts'
import { compareEventIds, contentOf, type LogEntry } from '../log/event.ts'
import { foldEvents, resetEntry } from '../log/fold.ts'
import type { EventLog } from '../log/log.ts'
import { isoTime } from '../sessions/store.ts'
import { type Checkpoint, readCheckpoint } from './checkpoint.ts'
import { commitRun, type Ending } from './commit.ts'
import type { RunFacts } from './model.ts'
import type { OwnedRuns } from './owned.ts'
import { toDone } from './run.ts'

/** Times that one run may ask the upstream, the first included. */
export const attemptsMax = 2

export interface TakeoverOptions {
  readonly db: Db
  readonly log: EventLog
  readonly owned: OwnedRuns
  readonly instanceId: string
  readonly logger: FastifyBaseLogger
}

export interface ClaimedRun extends RunFacts {
  readonly stop_requested: boolean
}

/** What a statement that claims runs returns of each; `run` is the name of the table in it. */
export const claimedColumns = sql`
  run.id, run.session_id, run.user_message_id, run.message_id, run.status, run.mode, run.provider, run.model,
  run.generation, run.last_seq, run.instance_id, run.on_disconnect, ${isoTime(sql`run.created_at`)} as created_at,
  run.stop_requested_at is not null as stop_requested`

export type Takeover = ReturnType<typeof createTakeover>

export function createTakeover({ db, log, owned, instanceId, logger }: TakeoverOptions) {
  /** The furthest that is known of what the run has said; both sources end at an event of the same numbering. */
  async function readText(runId: string): Promise<Checkpoint> {
    const [logged, checkpoint] = await Promise.all([readLog(log, runId), readCheckpoint(db, runId)])
    if (logged?.cursor === undefined) return checkpoint
    if (checkpoint.cursor === undefined) return logged
    return compareEventIds(logged.cursor, checkpoint.cursor) >= 0 ? logged : checkpoint
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
      const text = await readText(run.id)
      const isShown = text.parts.some((part) => part.text !== '' || part.kind === 'tool_call')
      if (!isShown && !run.stop_requested && !owned.isDraining && (await countAttempt(run))) {
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
        sql`select id from chat_runs where id = ${runId}::uuid and generation = ${generation}::int and status = 'running'`,
      )
      return claimed
    },
  }
}

/**
 * The one statement by which runs change hands. It asks for the status again: a run may have ended since it was chosen.
 * @param chosen a query for the ids; rows it locks stay locked until the statement ends
 */
export function claimRuns(db: Db, instanceId: string, chosen: SQL): Promise<ClaimedRun[]> {
  return db.rows<ClaimedRun>(sql`
    with chosen as (${chosen})
    update chat_runs run set generation = run.generation + 1, instance_id = ${instanceId}::uuid
    from chosen where run.id = chosen.id and run.status = 'running'
    returning ${claimedColumns}`)
}

/**
 * What can be joined together from the last beginning on: what stands behind a hole belongs to words that are missing.
 * @returns undefined when the log does not hold the run from a beginning on
 */
async function readLog(log: EventLog, runId: string): Promise<Checkpoint | undefined> {
  const entries = (await log.load(runId))?.filter(({ event }) => event.type !== 'done') ?? []
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
