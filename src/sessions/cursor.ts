/**
 * Cursors of lists: the place of the last row that was given out, as opaque text. They say where to go on and not how far
 * one has come, so rows that come and go meanwhile are neither skipped nor repeated. Only the form of a cursor is checked
 * here; what is behind it is decided by the condition on the owner, as everywhere.
 */
import { Problem } from '../errors.ts'

export interface Page<Row> {
  readonly data: Row[]
  readonly next_cursor: string | null
}

export function toPage<Row>(rows: Row[], limit: number, place: (row: Row) => unknown[]): Page<Row> {
  const data = rows.slice(0, limit)
  const last = data.at(-1)
  const next = rows.length > limit && last !== undefined
  return { data, next_cursor: next ? toCursor(place(last)) : null }
}

/** @param place of the last row that was given out */
export const toCursor = (place: readonly unknown[]): string => Buffer.from(JSON.stringify(place)).toString('base64url')

export function readSessionCursor(cursor: string): { time: string; id: string } {
  const [time, id] = readCursor(cursor)
  if (
    typeof time !== 'string' ||
    !/^\d{4,6}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/.test(time) ||
    typeof id !== 'string' ||
    !/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(id)
  ) {
    throw invalidCursor()
  }
  return { time, id }
}

export function readMessageCursor(cursor: string): number {
  const [seq] = readCursor(cursor)
  if (typeof seq !== 'number' || !Number.isInteger(seq) || seq < 0 || seq > 2_147_483_647) throw invalidCursor()
  return seq
}

function readCursor(cursor: string): unknown[] {
  try {
    const place: unknown = JSON.parse(Buffer.from(cursor, 'base64url').toString('utf8'))
    return Array.isArray(place) ? place : []
  } catch {
    throw invalidCursor()
  }
}

const invalidCursor = () => new Problem('invalid_request', 'cursor must be the next_cursor of an earlier page.')
