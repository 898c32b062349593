/** Which of an owner's sessions a list is about, and in which order: the same for a plain list and for a search. */
import { and, desc, eq, type SQL, sql } from '../db/drizzle.ts'
import { chatSessions } from '../db/schema.ts'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import type { SessionPlace } from './cursor.ts'
import type { ListSessionsQuery } from './model.ts'
import { deletedOf } from './removal.ts'
import { mine } from './store.ts'

/** Newest activity first; of the same microsecond, in the order of the ids. */
export const newestFirst = [desc(chatSessions.lastActivityAt), desc(chatSessions.id)] as const

/** What the query asks for, but for `q`. @throws Problem `invalid_request` */
export function filtered(owner: Owner, query: ListSessionsQuery): SQL | undefined {
  const { status, kind, mode, tag, from, to, archived } = query
  return and(
    status === 'deleted' ? deletedOf(owner) : mine(owner),
    status === undefined ? undefined : eq(chatSessions.status, status),
    kind === undefined ? undefined : eq(chatSessions.kind, kind),
    mode === undefined ? undefined : eq(chatSessions.mode, mode),
    tag === undefined ? undefined : sql`${chatSessions.tags} @> array[${tag}]`,
    from === undefined ? undefined : sql`${chatSessions.lastActivityAt} >= ${readInstant('from', from)}::timestamptz`,
    to === undefined ? undefined : sql`${chatSessions.lastActivityAt} < ${readInstant('to', to)}::timestamptz`,
    archived === undefined ? undefined : eq(chatSessions.archived, archived),
  )
}

/** The rows behind a place. */
export const behind = ({ time, id }: SessionPlace): SQL =>
  sql`(${chatSessions.lastActivityAt}, ${chatSessions.id}) < (${time}::timestamptz, ${id}::uuid)`

const instantPattern = /^(\d{4})-(\d\d)-(\d\d)[t\s](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:z|([+-]\d\d):?(\d\d)?)$/i
const millisecondsFirst = Date.parse('0001-01-01T00:00:00.000Z')
const millisecondsLast = Date.parse('9999-12-31T23:59:59.999Z')

/**
 * A date-time of RFC 3339 in the one form that every Postgres reads: UTC with six digits. Postgres itself refuses the year 0
 * and offsets beyond 16 hours, which the format has, and it rounds: what lies between two microseconds becomes the
 * later one here, so that "at or after" and "before" stay exact. Beyond the years 1 to 9999 the nearest of them is meant.
 * @throws Problem `invalid_request`
 */
export function readInstant(name: string, text: string): string {
  const match = instantPattern.exec(text)
  if (match === null) throw new Problem('invalid_request', `${name} must be a date and time with an offset.`)
  const [year, month, day, hour, minute, second] = match.slice(1, 7).map(Number) as SixNumbers
  const [fraction = '', offsetHours = '+00', offsetMinutes = '00'] = match.slice(7)
  const offset = Number(offsetHours) * 60 + Number(`${offsetHours[0]}${offsetMinutes}`)
  const date = new Date(0)
  date.setUTCFullYear(year, month - 1, day)
  // A leap second is the first one of the next minute, as it is to Postgres.
  date.setUTCHours(hour, minute - offset, second)
  const digits = fraction.padEnd(6, '0')
  const microseconds = Number(digits.slice(0, 6)) + (/[1-9]/.test(digits.slice(6)) ? 1 : 0)
  const milliseconds = date.getTime() + Math.floor(microseconds / 1000)
  if (milliseconds < millisecondsFirst) return '0001-01-01T00:00:00.000000Z'
  if (milliseconds > millisecondsLast) return '9999-12-31T23:59:59.999999Z'
  return `${new Date(milliseconds).toISOString().slice(0, -1)}${String(microseconds % 1000).padStart(3, '0')}Z`
}

type SixNumbers = [number, number, number, number, number, number]
