/**
 * Cursors of lists: the place of the last row that was given out, as opaque text. They say where to go on and not how far
 * one has come, so rows that come and go meanwhile are neither skipped nor repeated. Only the form of a cursor is checked
 * here, strictly: whatever this gateway would not have written itself, a cursor of another kind of list among it, is
 * refused before a statement is made of it. What is behind a place is decided by the condition on the owner, as
 * everywhere, so a cursor is no secret and opens nothing.
 */
import { Problem } from '../errors.ts'

export interface Page<Row> {
  readonly data: Row[]
  readonly next_cursor: string | null
}

/** Where a session stands in a list: its last activity as ISO 8601 in UTC with microseconds, then its id. */
export interface SessionPlace {
  readonly time: string
  readonly id: string
}

/** @param rows one more than `limit`, when there is one more */
export function toPage<Row>(rows: Row[], limit: number, place: (row: Row) => unknown[]): Page<Row> {
  const data = rows.slice(0, limit)
  const last = data.at(-1)
  const next = rows.length > limit && last !== undefined
  return { data, next_cursor: next ? writeCursor(place(last)) : null }
}

export function writeCursor(place: unknown[]): string {
  return Buffer.from(JSON.stringify(place)).toString('base64url')
}

/** @throws Problem `invalid_request` */
export function readSessionCursor(cursor: string): SessionPlace {
  const [time, id, ...rest] = readCursor(cursor)
  if (
    typeof time !== 'string' ||
    !timePattern.test(time) ||
    !isInCalendar(time) ||
    typeof id !== 'string' ||
    !/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(id) ||
    rest.length > 0
  ) {
    throw invalidCursor()
  }
  return { time, id }
}

/** @returns the place of a message in its session @throws Problem `invalid_request` */
export function readMessageCursor(cursor: string): number {
  const [seq, ...rest] = readCursor(cursor)
  if (typeof seq !== 'number' || !Number.isInteger(seq) || seq < 0 || seq > 2_147_483_647 || rest.length > 0) {
    throw invalidCursor()
  }
  return seq
}

function readCursor(cursor: string): unknown[] {
  let place: unknown
  try {
    place = JSON.parse(Buffer.from(cursor, 'base64url').toString('utf8'))
  } catch {
    throw invalidCursor()
  }
  // Buffer reads past whatever is no base64url, and JSON has many ways to write one thing; a cursor has one.
  if (!Array.isArray(place) || writeCursor(place) !== cursor) throw invalidCursor()
  return place
}

const timePattern = /^(?!0000)\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/

/** There is no 31 February, and Postgres would say so with an error. */
function isInCalendar(time: string): boolean {
  const seconds = time.slice(0, 19)
  const date = new Date(`${seconds}Z`)
  return !Number.isNaN(date.getTime()) && date.toISOString().startsWith(seconds)
}

const invalidCursor = () => new Problem('invalid_request', 'cursor must be the next_cursor of an earlier page.')
