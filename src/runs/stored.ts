/**
 * What the database knows of a run: its row, and the text of its checkpoints while it is active, or of the stored
 * message when it has ended. Read in one statement, so that the two belong together.
 *
 * Viewers ask here when there is no log at hand, each about once a second. Questions of the same few milliseconds go out
 * as one statement, so that a thousand viewers without a log cost the database a few dozen statements a second and not
 * two thousand. When the database does not answer, all who asked are told so, and ask again.
 */
import type { Db } from '../db/db.ts'
import { eq, sql } from '../db/drizzle.ts'
import { chatMessages, chatRuns, runCheckpoints } from '../db/schema.ts'
import { Problem } from '../errors.ts'
import type { Done, LogEntry, Part } from '../log/event.ts'
import { type Checkpoint, type CheckpointRow, foldCheckpoints } from './checkpoint.ts'
import { isTerminal, type RunRecord } from './model.ts'
import { runColumns } from './store.ts'

export interface StoredRun {
  readonly run: RunRecord
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
/** Runs asked for by one statement. */
const runsPerStatementMax = 100

interface Row extends RunRecord {
  readonly parts: Part[]
  readonly ttft_ms: number | null
  readonly latency_ms: number | null
  readonly checkpoints: CheckpointRow[] | null
}

export function createStoredReader(db: Db): StoredReader {
  let questions = new Map<string, PromiseWithResolvers<StoredState>>()

  async function ask(asked: ReadonlyMap<string, PromiseWithResolvers<StoredState>>): Promise<void> {
    const ids = [...asked.keys()]
    for (let start = 0; start < ids.length; start += runsPerStatementMax) {
      const some = ids.slice(start, start + runsPerStatementMax)
      try {
        const rows = new Map((await readRows(db, some)).map((row) => [row.id, row]))
        for (const id of some) asked.get(id)?.resolve(toState(rows.get(id)))
      } catch (error) {
        const away = error instanceof Problem && error.code === 'db_unavailable'
        for (const id of some) {
          if (away) asked.get(id)?.resolve('unanswered')
          else asked.get(id)?.reject(error)
        }
      }
    }
  }

  return {
    read(runId) {
      const known = questions.get(runId)
      if (known !== undefined) return known.promise
      const question = Promise.withResolvers<StoredState>()
      questions.set(runId, question)
      if (questions.size === 1) {
        setTimeout(() => {
          const asked = questions
          questions = new Map()
          void ask(asked) // settles every question, and throws nothing
        }, gatherMs)
      }
      return question.promise
    },
  }
}

const readRows = (db: Db, ids: readonly string[]): Promise<Row[]> =>
  db.run((orm) =>
    orm
      .select({
        ...runColumns,
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

function toDone(row: Row): Done {
  return {
    status: row.status as Done['status'],
    message_id: row.message_id,
    ...(row.finish_reason === null ? {} : { finish_reason: row.finish_reason }),
    ...(row.usage === null ? {} : { usage: row.usage }),
    ...(row.cost_usd === null ? {} : { cost_usd: row.cost_usd }),
    ...(row.ttft_ms === null ? {} : { ttft_ms: row.ttft_ms }),
    ...(row.latency_ms === null ? {} : { latency_ms: row.latency_ms }),
    ...(row.error === null ? {} : { error: row.error }),
  }
}
