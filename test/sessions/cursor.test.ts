/**
 * Cursors and times of lists, for whatever somebody may send: what this gateway wrote is read back as it was, anything else
 * is a 400 before the database sees it, and a time is never moved to the other side of a microsecond.
 */
import fc from 'fast-check'
import { test } from 'tap'
import { Problem } from '../../src/errors.ts'
import { type Page, readMessageCursor, readSessionCursor, toPage, writeCursor } from '../../src/sessions/cursor.ts'
import { readInstant } from '../../src/sessions/filter.ts'
import { readTerms, searchTermsMax } from '../../src/sessions/search.ts'

const microsecondsOf = (date: Date, rest: number) =>
  `${date.toISOString().slice(0, -1)}${String(rest).padStart(3, '0')}Z`
const time = fc
  .tuple(
    fc.date({ min: new Date('0001-01-01T00:00:00Z'), max: new Date('9999-12-31T23:59:59Z'), noInvalidDate: true }),
    fc.nat(999),
  )
  .map(([date, rest]) => microsecondsOf(date, rest))
const place = fc.record({ time, id: fc.uuid() })
const base64url = fc.stringMatching(/^[A-Za-z0-9_-]{0,200}$/)

/** Whether it is refused as a client's mistake. Any other error is a fault, and is thrown on. */
function isRefused(read: () => unknown): boolean {
  try {
    read()
    return false
  } catch (error) {
    if (error instanceof Problem && error.code === 'invalid_request') return true
    throw error
  }
}

test('a cursor is read back as the place that it was made of', async () => {
  fc.assert(
    fc.property(place, ({ time, id }) => {
      const read = readSessionCursor(writeCursor([time, id]))
      return read.time === time && read.id === id
    }),
  )
  fc.assert(fc.property(fc.nat(2_147_483_647), (seq) => readMessageCursor(writeCursor([seq])) === seq))
})

test('whatever is no cursor of this list is refused, and is never another error', async (t) => {
  const garbage = fc.oneof(
    fc.string({ maxLength: 512 }),
    fc.string({ unit: 'binary', maxLength: 100 }),
    base64url,
    fc.json().map((text) => Buffer.from(text).toString('base64url')),
    fc.array(fc.jsonValue(), { maxLength: 4 }).map(writeCursor),
    fc.tuple(fc.string(), fc.uuid()).map(writeCursor),
    fc.tuple(time, fc.string()).map(writeCursor),
    // One character of a good one is another, or is not there.
    fc.tuple(place, fc.nat(200), fc.constantFrom('', '=', '!', 'A', '_')).map(([{ time, id }, at, by]) => {
      const cursor = writeCursor([time, id])
      const index = at % cursor.length
      return `${cursor.slice(0, index)}${by}${cursor.slice(index + 1)}`
    }),
  )
  fc.assert(
    fc.property(garbage, (cursor) => {
      // A changed character can make another good cursor; then it is the place that is written in it.
      if (!isRefused(() => readSessionCursor(cursor))) {
        const { time, id } = readSessionCursor(cursor)
        return writeCursor([time, id]) === cursor
      }
      return true
    }),
    { numRuns: 500 },
  )
  fc.assert(
    fc.property(garbage, (cursor) =>
      isRefused(() => readMessageCursor(cursor)) ? true : writeCursor([readMessageCursor(cursor)]) === cursor,
    ),
    { numRuns: 300 },
  )
  const id = '01890000-0000-7000-8000-000000000000'
  for (const wrong of [
    [1],
    ['2024-02-30T00:00:00.000000Z', id],
    ['2024-13-01T00:00:00.000000Z', id],
    ['2024-01-01T24:00:00.000000Z', id],
    ['2024-01-01T00:00:60.000000Z', id],
    ['0000-01-01T00:00:00.000000Z', id],
    ['12024-01-01T00:00:00.000000Z', id],
    ['2024-01-01T00:00:00.000Z', id],
    ['2024-01-01T00:00:00.000000Z', id.toUpperCase().replace('0189', 'ABCD')],
    ['2024-01-01T00:00:00.000000Z', id, 1],
    ['2024-01-01T00:00:00.000000Z'],
    [],
    {},
    null,
  ]) {
    const cursor = Buffer.from(JSON.stringify(wrong)).toString('base64url')
    t.ok(
      isRefused(() => readSessionCursor(cursor)),
      JSON.stringify(wrong),
    )
  }
  for (const wrong of [['1'], [-1], [0.5], [2_147_483_648], [1, 2], [null], []]) {
    t.ok(
      isRefused(() => readMessageCursor(writeCursor(wrong))),
      JSON.stringify(wrong),
    )
  }
  const messages = writeCursor([5])
  t.ok(
    isRefused(() => readSessionCursor(messages)),
    'a cursor of messages is none of sessions',
  )
  t.ok(
    isRefused(() => readMessageCursor(writeCursor(['2024-01-01T00:00:00.000000Z', id]))),
    'nor the other way round',
  )
  t.ok(
    isRefused(() => readMessageCursor(`${messages}=`)),
    'one place has one cursor',
  )
})

test('pages by place are the whole list, whatever its times', async () => {
  const rows = fc.uniqueArray(fc.record({ time: fc.nat(3), id: fc.nat(10_000) }), {
    selector: ({ id }) => id,
    maxLength: 60,
  })
  fc.assert(
    fc.property(rows, fc.integer({ min: 1, max: 7 }), (rows, limit) => {
      const sorted = rows.toSorted((a, b) => b.time - a.time || b.id - a.id)
      const seen: typeof rows = []
      for (let cursor: string | null = writeCursor([4, 0]); cursor !== null; ) {
        const [time, id]: [number, number] = JSON.parse(Buffer.from(cursor, 'base64url').toString())
        const rest = sorted.filter((row) => row.time < time || (row.time === time && row.id < id))
        const page: Page<{ time: number; id: number }> = toPage(rest.slice(0, limit + 1), limit, (row) => [
          row.time,
          row.id,
        ])
        seen.push(...page.data)
        cursor = page.next_cursor
      }
      return JSON.stringify(seen) === JSON.stringify(sorted)
    }),
  )
})

test('a time of a filter is read exactly, with any offset and any number of digits', async (t) => {
  const offsets = fc.tuple(fc.integer({ min: -23, max: 23 }), fc.integer({ min: 0, max: 59 }))
  const instants = fc.tuple(
    fc.date({ min: new Date('1950-01-02T00:00:00Z'), max: new Date('2100-01-01T00:00:00Z'), noInvalidDate: true }),
    fc.stringMatching(/^\d{1,12}$/),
    offsets,
  )
  fc.assert(
    fc.property(instants, ([date, fraction, [hours, minutes]]) => {
      const seconds = Math.floor(date.getTime() / 1000)
      const sign = hours < 0 ? '-' : '+'
      const offsetSeconds = (sign === '-' ? -1 : 1) * (Math.abs(hours) * 3600 + minutes * 60)
      const local = new Date((seconds + offsetSeconds) * 1000).toISOString().slice(0, 19)
      const two = (n: number) => String(Math.abs(n)).padStart(2, '0')
      const read = readInstant('from', `${local}.${fraction}${sign}${two(hours)}:${two(minutes)}`)
      // In picoseconds nothing is rounded: the first microsecond that is not before the time.
      const picoseconds = BigInt(seconds) * 10n ** 12n + BigInt(fraction.padEnd(12, '0'))
      const micro = BigInt(Date.parse(`${read.slice(0, 19)}Z`)) * 1000n + BigInt(read.slice(20, 26))
      return micro * 1_000_000n >= picoseconds && (micro - 1n) * 1_000_000n < picoseconds
    }),
    { numRuns: 500 },
  )
  for (const [text, read] of [
    ['2024-01-01T00:00:00Z', '2024-01-01T00:00:00.000000Z'],
    ['2024-01-01t01:00:00.9999999+01', '2024-01-01T00:00:01.000000Z'],
    ['2024-01-01T00:30:00+0030', '2024-01-01T00:00:00.000000Z'],
    ['2016-12-31T23:59:60Z', '2017-01-01T00:00:00.000000Z'],
    ['0000-01-01T00:00:00Z', '0001-01-01T00:00:00.000000Z'],
    ['0001-01-01T00:00:00+23:59', '0001-01-01T00:00:00.000000Z'],
    ['0050-06-01T00:00:00Z', '0050-06-01T00:00:00.000000Z'],
    ['9999-12-31T23:59:59.9999999Z', '9999-12-31T23:59:59.999999Z'],
    ['9999-12-31T23:59:59-23:59', '9999-12-31T23:59:59.999999Z'],
  ] as const) {
    t.equal(readInstant('from', text), read, text)
  }
  t.ok(isRefused(() => readInstant('from', '2024-01-01')))
})

test('a search is cut at white space of any kind into different terms, and no more than it may have', async (t) => {
  t.same(readTerms(' one\u3000two\n one\u00a0three '), ['one', 'two', 'three'])
  t.same(readTerms(' \t\u3000'), [])
  t.same(readTerms('100% a_b \\'), ['100%', 'a_b', '\\'])
  const words = (count: number) => Array.from({ length: count }, (_, index) => `w${index}`).join(' ')
  t.equal(readTerms(words(searchTermsMax)).length, searchTermsMax)
  t.ok(isRefused(() => readTerms(words(searchTermsMax + 1))))
})
