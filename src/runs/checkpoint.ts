/**
 * Checkpoints: what the running replies of this process have said so far, written to the database in one statement each
 * second. They are what a reply is rebuilt from when its process dies, and what a viewer gets where no log is at hand.
 *
 * Each run remembers how far its stored text goes, and which of its tools had answered; a checkpoint holds only what came
 * after that, so its cost does not grow with the reply. The place moves on only when the statement has succeeded: after a
 * failure, or an answer that was lost, the next one covers the same text again, and rows that are already there stay as
 * they are.
 */
import { type Db, DbError, exactText } from '../db/db.ts'
import { sql } from '../db/drizzle.ts'
import type { EventId, Part } from '../log/event.ts'
import { parseInput } from './draft.ts'

/** What a checkpoint needs of a running reply. All of `parts` is in the log, up to `cursor`. */
export interface CheckpointSource {
  readonly runId: string
  readonly parts: readonly Part[]
  readonly cursor: EventId
}

export interface CheckpointRow {
  readonly run_id: string
  readonly generation: number
  readonly seq: number
  readonly part: number
  readonly kind: Part['kind']
  readonly part_offset: number
  readonly text: string
  /** What a part is beside its text; null when that is nothing. */
  readonly detail: Omit<Part, 'kind' | 'text' | 'input' | 'signature'> | null
}

/** What is stored of a part. */
interface PartPlace {
  readonly units: number
  readonly isAnswered: boolean
}

/** How far what is stored of each run goes, part by part. */
export type CheckpointPlaces = Map<string, readonly PartPlace[]>

/**
 * Writes what `sources` have gained since `places`, and moves the places on.
 * Rows of a run that another process has taken over, or that has ended, are left out by the statement.
 * @throws when not all could be written; a run whose rows the database refuses does not keep the others from it
 */
export async function writeCheckpoints(
  db: Db,
  sources: readonly CheckpointSource[],
  places: CheckpointPlaces,
): Promise<void> {
  // Taken before the first wait: the replies go on growing, and a checkpoint may not hold more than its cursor says.
  const growths = sources.map((source) => growthOf(source, places.get(source.runId) ?? []))
  try {
    await writeGrowths(db, growths, places)
  } catch (error) {
    if (!(error instanceof DbError) || growths.length === 1) throw error
    // One by one: all at once they would take every place that requests wait for.
    for (const growth of growths) await writeGrowths(db, [growth], places).catch(() => undefined) // said by the throw below
    throw error
  }
}

/** What one run has gained, and how far its stored text goes when that is written. */
interface Growth {
  readonly runId: string
  readonly rows: readonly CheckpointRow[]
  readonly place: readonly PartPlace[]
}

function growthOf(source: CheckpointSource, stored: readonly PartPlace[]): Growth {
  return {
    runId: source.runId,
    rows: rowsOf(source, stored),
    place: source.parts.map(placeOf),
  }
}

async function writeGrowths(db: Db, growths: readonly Growth[], places: CheckpointPlaces): Promise<void> {
  const rows = growths.flatMap((growth) => growth.rows)
  if (rows.length === 0) return
  await db.rows(
    sql`
    insert into run_checkpoints (run_id, generation, seq, part, kind, part_offset, text, detail)
    select new.run_id, new.generation, new.seq, new.part, new.kind, new.part_offset, new.text, new.detail
    from jsonb_to_recordset(${JSON.stringify(rows)}::jsonb) as new (
      run_id uuid, generation int, seq int, part int, kind text, part_offset int, text text, detail jsonb
    )
    join chat_runs run on run.id = new.run_id and run.generation = new.generation and run.status = 'running'
    on conflict do nothing`,
    'often',
  )
  for (const { runId, place } of growths) if (places.has(runId)) places.set(runId, place)
}

const placeOf = (part: Part): PartPlace => ({
  units: part.text.length,
  isAnswered: part.output !== undefined || part.error !== undefined,
})

/** Whether all of a reply is stored, up to this moment. */
export function isStored(parts: readonly Part[], stored: readonly PartPlace[] = []): boolean {
  return parts.every((part, index) => isAt(stored[index], placeOf(part)))
}

const isAt = (before: PartPlace | undefined, now: PartPlace): boolean =>
  before?.units === now.units && before.isAnswered === now.isAnswered

function rowsOf(source: CheckpointSource, stored: readonly PartPlace[]): CheckpointRow[] {
  const { runId, cursor, parts } = source
  return parts.flatMap((part, index) => {
    const before = stored[index]
    const now = placeOf(part)
    if (isAt(before, now)) return []
    const offset = before?.units ?? 0
    const row: CheckpointRow = {
      run_id: runId,
      generation: cursor.generation,
      seq: cursor.seq,
      part: index,
      kind: part.kind,
      part_offset: offset,
      text: part.text.slice(offset),
      detail: detailOf(part),
    }
    return [row]
  })
}

function detailOf({
  kind,
  text: _text,
  input: _input,
  signature: _signature,
  ...detail
}: Part): CheckpointRow['detail'] {
  return kind === 'text' || kind === 'reasoning' ? null : detail
}

/** Deletes what is left of runs that have ended. @throws Problem `db_unavailable` */
export async function clearCheckpoints(db: Db, runIds: readonly string[]): Promise<void> {
  await db.rows(sql`
    delete from run_checkpoints c using chat_runs run
    where run.id = any (${`{${runIds.join(',')}}`}::uuid[]) and run.id = c.run_id
      and run.status not in ('queued', 'running')`)
}

export interface Checkpoint {
  readonly parts: Part[]
  /** The event up to which the parts go; undefined when nothing was stored yet. */
  readonly cursor: EventId | undefined
}

export async function readCheckpoint(db: Db, runId: string): Promise<Checkpoint> {
  const rows = await db.rows<CheckpointRow>(sql`
    select run_id, generation, seq, part, kind, part_offset, ${exactText(sql`text`)} as text, detail from run_checkpoints
    where run_id = ${runId}::uuid order by generation, seq, part`)
  return foldCheckpoints(rows)
}

/** Puts a run's text together again, from rows in order. Offsets make that exact also where two checkpoints overlap. */
export function foldCheckpoints(rows: readonly CheckpointRow[]): Checkpoint {
  const parts: Part[] = []
  for (const row of rows) {
    const part = parts[row.part]
    if (part === undefined) parts[row.part] = { kind: row.kind, text: row.text, ...row.detail }
    else parts[row.part] = { ...part, ...row.detail, text: part.text.slice(0, row.part_offset) + row.text }
  }
  for (const part of parts) {
    const input = part.kind === 'tool_call' ? parseInput(part.text) : undefined
    if (input !== undefined) part.input = input
  }
  const last = rows.at(-1)
  return { parts, cursor: last === undefined ? undefined : { generation: last.generation, seq: last.seq } }
}
