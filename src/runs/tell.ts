/**
 * What a viewer is told next, from where it stands: out of a page of the log, or out of what is stored. When to look, and
 * where, is decided by who follows (follow.ts); nothing here waits for anything but the log, and nothing is kept.
 *
 * The rule for what comes from the database: an event is given the id of the real one that it reaches. One delta of
 * one part, or else one `reset`, brings a viewer from where it is to where the database is, so that a connection cut
 * anywhere in between leaves a cursor that means what it says. A cursor that cannot be served is answered with `reset`,
 * never with silence.
 */
import { isDeepStrictEqual } from 'node:util'
import { compareEventIds, type EventId, type LogEntry, type Part } from '../log/event.ts'
import { foldEvents, resetEntry } from '../log/fold.ts'
import type { EventLog, LogPage } from '../log/log.ts'
import { isTerminal, type RunFacts } from './model.ts'
import { runStarted } from './run.ts'
import type { StoredRun } from './stored.ts'

/** Events of one read from the log; a viewer far behind gets pages, and backpressure between them. */
export const pageEntriesMax = 500
// What is joined for a viewer is encoded for it alone, and held until its connection takes it.
const pageUnitsMax = 32 * 1024

/** Where a viewer stands. */
interface Viewer {
  /** The last event it has. */
  readonly cursor: EventId
  /** What it holds, when that is known: only from the database, or at the very beginning. */
  readonly held: readonly Part[] | undefined
}

/** What every viewer is told first, whatever the rest comes from. */
export const firstEntry = (run: RunFacts): LogEntry => ({ generation: 1, seq: 1, event: runStarted(run) })

/**
 * A viewer's merged text is its own, and an event of the log is shared by all who are shown it: so a page ends before the
 * event that would make it long, and a long event goes alone.
 * @returns the page, and whether there is nothing behind it for now
 */
export function shorten(page: LogPage): { readonly page: LogPage; readonly isLast: boolean } {
  if (page.kind !== 'entries') return { page, isLast: false }
  const { entries } = page
  let units = 0
  const end = entries.findIndex(({ event }) => {
    if (event.type === 'delta') units += event.data.text.length
    return units > pageUnitsMax
  })
  const length = Math.max(1, end)
  if (end < 0 || length === entries.length) return { page, isLast: entries.length < pageEntriesMax }
  return { page: { ...page, entries: entries.slice(0, length) }, isLast: false }
}

export function isAtEnd(log: EventLog, run: RunFacts, cursor: EventId | undefined): boolean {
  const terminal = log.terminalId(run.id)
  return cursor !== undefined && terminal !== undefined && compareEventIds(cursor, terminal) === 0
}

/**
 * What the log has for a viewer: events, or none when there is nothing new.
 * @returns undefined when the log cannot tell
 */
export async function tellFromLog(
  log: EventLog,
  run: RunFacts,
  cursor: EventId | undefined,
  page: LogPage,
): Promise<readonly LogEntry[] | undefined> {
  if (page.kind === 'unknown') return undefined
  const entries = page.kind === 'entries' ? mergeDeltas(page.entries) : await readSnapshot(log, run, page.local, cursor)
  // A log whose writer lost touch with it before the run ended: what is stored is the truth.
  if (isTerminal(run.status) && log.terminalId(run.id)?.generation !== run.generation) return undefined
  const first = entries?.[0]
  if (entries === undefined || first === undefined || cursor !== undefined || first.event.type === 'run') return entries
  return [firstEntry(run), ...entries]
}

/**
 * All that the log holds of a run, as one `reset`, with the `done` behind it when it is there.
 * @returns undefined when the log does not hold the run from its beginning, or is itself behind the cursor
 */
async function readSnapshot(
  log: EventLog,
  run: RunFacts,
  local: boolean,
  cursor: EventId | undefined,
): Promise<LogEntry[] | undefined> {
  const page = await log.read(run.id, undefined, Number.MAX_SAFE_INTEGER)
  const end = page.kind === 'entries' ? page.entries.at(-1) : undefined
  if (page.kind !== 'entries' || end === undefined) return undefined
  if (!local && cursor !== undefined && end.event.type !== 'done' && compareEventIds(end, cursor) <= 0) return undefined
  const terminal = end.event.type === 'done' ? [end] : []
  const told = terminal.length === 0 ? page.entries : page.entries.slice(0, -1)
  const last = told.at(-1)
  return last === undefined ? terminal : [resetEntry(run.message_id, foldEvents(told), last), ...terminal]
}

/** Joins adjacent deltas of a part; the joined one has the id of the last. A single entry stays the object it is. */
export function mergeDeltas(entries: readonly LogEntry[]): readonly LogEntry[] {
  if (entries.length < 2) return entries
  const merged: LogEntry[] = []
  for (const entry of entries) {
    const last = merged.at(-1)
    if (
      entry.event.type === 'delta' &&
      last?.event.type === 'delta' &&
      last.event.data.part === entry.event.data.part
    ) {
      const { part, offset, text } = last.event.data
      merged[merged.length - 1] = {
        ...entry,
        event: { type: 'delta', data: { part, offset, text: text + entry.event.data.text } },
      }
    } else {
      merged.push(entry)
    }
  }
  return merged
}

interface Step {
  readonly entries: readonly LogEntry[]
  readonly viewer: Viewer
}

/**
 * Brings a viewer to where the database is.
 * @param isPatient whether a viewer may be ahead of the database: it has seen what the next checkpoint will hold
 */
export function tellFromDatabase(
  run: RunFacts,
  { run: row, text, done }: StoredRun,
  viewer: Viewer,
  isPatient: boolean,
): Step {
  const { cursor } = viewer
  const order = compareEventIds(cursor, text.cursor ?? { generation: 1, seq: 1 })
  const isAhead = order > 0 && done === undefined
  // A process that has claimed the run is putting its text together: what is stored now is less than that will be.
  const isTakenOver = isAhead && cursor.generation < row.generation
  const mayCatchUp = isAhead && cursor.generation === row.generation && isPatient
  const held = order === 0 ? text.parts : viewer.held
  // At the first event of all, or waiting for the first checkpoint of a new generation, there is nothing to tell yet.
  const isEarly = text.cursor === undefined && (order === 0 || held !== undefined)
  if (isTakenOver || mayCatchUp || isEarly) return { entries: [], viewer }
  const target = text.cursor ?? { generation: row.generation, seq: 1 }
  const step = stepTo(run, held, text.parts, target)
  const entries = step === undefined ? [] : [step]
  if (done !== undefined) entries.push(done)
  return { entries, viewer: { cursor: done ?? target, held: text.parts } }
}

/** The one event that brings a viewer from what it holds to what is stored; none when that is the same. */
function stepTo(
  run: RunFacts,
  held: readonly Part[] | undefined,
  stored: readonly Part[],
  cursor: EventId,
): LogEntry | undefined {
  if (held === undefined) return resetEntry(run.message_id, stored, cursor)
  if (stored.length < held.length) return resetEntry(run.message_id, stored, cursor)
  // Not compared as JSON: jsonb gives the members of an object back in an order of its own.
  const changed = stored.flatMap((part, index) => (isShownAlike(part, held[index]) ? [] : [index]))
  const index = changed[0]
  if (index === undefined) return undefined
  const part = stored[index] as Part
  const { kind, text: before } = held[index] ?? { kind: index === 0 ? 'text' : undefined, text: '' }
  if (
    changed.length > 1 ||
    (kind !== 'text' && kind !== 'reasoning') ||
    kind !== part.kind ||
    !part.text.startsWith(before)
  ) {
    return resetEntry(run.message_id, stored, cursor)
  }
  const text = part.text.slice(before.length)
  return { ...cursor, event: { type: 'delta', data: { part: index, offset: before.length, text } } }
}

/** Seals are stored, and shown to nobody while a reply is made. */
function isShownAlike({ signature: _seal, ...part }: Part, held: Part | undefined): boolean {
  if (held === undefined) return false
  const { signature: _heldSeal, ...rest } = held
  return isDeepStrictEqual(part, rest)
}
