/**
 * What the database knows of a run: its row, and the text of its checkpoints while it is active, or of the stored
 * message when it has ended. Read in one statement, so that the two belong together.
 *
 * Viewers ask here when there is no log at hand, each about once a second, and are gathered: a thousand viewers without
 * a log cost the database a few dozen statements a second and not a thousand. When the database does not answer, all who
 * asked are told so, and ask again.
 */
import type { Db } from '../db/db.ts'
import { eq, sql } from '../db/drizzle.ts'
import { chatMessages, chatRuns, runCheckpoints } from '../db/schema.ts'
import { Problem } from '../errors.ts'
import type { Done, LogEntry, Part } from '../log/event.ts'
import { type Checkpoint, type CheckpointRow, foldCheckpoints } from './checkpoint.ts'
import { createGather } from './gather.ts'
import { isTerminal, type RunState } from './model.ts'
import { stateColumns } from './store.ts'

/** What a viewer has to know of it, each second. */
type Standing = Omit<RunState, 'profile' | 'profile_reasons'>

export interface StoredRun {
  readonly run: Standing
  /** All the text, and the event up to which it goes; for an ended run that is the one before `done`. */
  readonly text: Checkpoint
  readonly done: LogEntry | undefined
}

export type StoredState =
  | StoredRun
  /** There is no such run (any more). */
  | 'gone'
  /** The database does not answer. */
  | 'unanswered'

export interface StoredReader {
  read(runId: string): Promise<StoredState>
}

/** How long a question waits for others to go with it. */
const gatherMs = 5

interface ReplyTimes {
  readonly ttft_ms: number | null
  readonly latency_ms: number | null
}

interface Row extends Standing, ReplyTimes {
  readonly parts: Part[]
  readonly checkpoints: CheckpointRow[] | null
}

export function createStoredReader(db: Db): StoredReader {
  const readRow = createGather<string, Row>({
    keyOf: (runId) => runId,
    ask: async (runIds) => new Map((await readRows(db, runIds)).map((row) => [row.id, row])),
    gatherMs,
  })
  return {
    async read(runId) {
      try {
        return toState(await readRow(runId))
      } catch (error) {
        if (error instanceof Problem && error.code === 'db_unavailable') return 'unanswered'
        throw error
      }
    },
  }
}

const readRows = (db: Db, ids: readonly string[]): Promise<Row[]> =>
  db.run((orm) =>
    orm
      .select({
        ...stateColumns,
        parts: sql<Part[]>`${chatMessages.parts}`,
        ttft_ms: chatMessages.ttftMs,
        latency_ms: chatMessages.latencyMs,
        checkpoints: sql<CheckpointRow[] | null>`(
          select json_agg(c order by c.generation, c.seq, c.part) from ${runCheckpoints} c where c.run_id = ${chatRuns.id}
        )`,
      })
      .from(chatRuns)
      .innerJoin(chatMessages, eq(chatMessages.id, chatRuns.messageId))
      .where(sql`${chatRuns.id} = any(${`{${ids.join(',')}}`}::uuid[])`),
  )

function toState(row: Row | undefined): StoredState {
  if (row === undefined) return 'gone'
  const { parts, ttft_ms: _ttft, latency_ms: _latency, checkpoints, ...run } = row
  if (!isTerminal(row.status)) return { run, text: foldCheckpoints(checkpoints ?? []), done: undefined }
  const { generation, last_seq: seq } = row
  return {
    run,
    text: { parts, cursor: { generation, seq: seq - 1 } },
    done: { generation, seq, event: { type: 'done', data: toDone(row) } },
  }
}

/** The terminal event of a run that has ended, without the times when they are not at hand. */
export function toDone({ ttft_ms = null, latency_ms = null, ...row }: Standing & Partial<ReplyTimes>): Done {
  return {
    status: row.status as Done['status'],
    message_id: row.message_id,
    ...(row.finish_reason === null ? {} : { finish_reason: row.finish_reason }),
    ...(row.usage === null ? {} : { usage: row.usage }),
    ...(row.cost_usd === null ? {} : { cost_usd: row.cost_usd }),
    ...(ttft_ms === null ? {} : { ttft_ms }),
    ...(latency_ms === null ? {} : { latency_ms }),
    ...(row.error === null ? {} : { error: row.error }),
  }
}
