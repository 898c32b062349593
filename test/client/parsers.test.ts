/**
 * What the native encoder writes, every parser reads: the one of the client library, those of the packages that people
 * have, and one that does what the HTML standard says, word for word. Random events, cut into random pieces.
 */
import { getLines, getMessages } from '@microsoft/fetch-event-source/lib/cjs/parse.js'
import { EventSource } from 'eventsource'
import { createEventSource } from 'eventsource-client'
import { createParser } from 'eventsource-parser'
import fc from 'fast-check'
import t from 'tap'
import { createSseParser } from '../../src/client/sse.ts'
import type { LogEntry } from '../../src/log/event.ts'
import { encodeEntry, readyBlock } from '../../src/surfaces/native.ts'
import { createRandom } from '../support/random.ts'
import { trialsOf } from '../support/trials.ts'

interface Read {
  readonly name: string
  readonly data: string
  readonly id: string
}

const heartbeat = ': hb\n'
const head = 'retry: 1000\n'
const trials = trialsOf(60)

// What text of a model can hold and a line format can trip over.
const nasty = [
  '\0',
  '\u2028',
  '\u2029',
  '\r',
  '\n',
  '\r\n',
  '\n\n',
  ': ',
  'data: ',
  'id: 9-9\n',
  '\ufeff',
  '👩‍👩‍👧',
  '\u0085',
  '"',
  '\\',
]
const text = fc
  .array(fc.oneof(fc.constantFrom(...nasty), fc.string({ unit: 'grapheme', maxLength: 8 })), { maxLength: 12 })
  .map((pieces) => pieces.join(''))
const entries = fc.array(
  fc.oneof(
    fc.record({ part: fc.nat(9), offset: fc.nat(), text }).map((data) => ({ type: 'delta' as const, data })),
    text.map((title) => ({ type: 'title' as const, data: { title } })),
    fc
      .record({ part: fc.nat(9), call_id: text, name: text, output: fc.jsonValue() })
      .map((data) => ({ type: 'tool' as const, data })),
  ),
  { minLength: 1, maxLength: 6 },
)

/** Bytes of a connection: the events, numbered, with what the edge puts between them. */
function writeStream(events: readonly LogEntry['event'][]): { bytes: Buffer; expected: Read[] } {
  const expected: Read[] = []
  const blocks = events.map((event, index) => {
    const entry = { generation: 1, seq: index + 1, event }
    expected.push({ name: event.type, data: JSON.stringify(event.data), id: `1-${index + 1}` })
    return `${index % 3 === 1 ? heartbeat : ''}${encodeEntry(entry)}`
  })
  return { bytes: Buffer.concat([Buffer.from(head + blocks.join('')), readyBlock]), expected }
}

function cut(bytes: Buffer, seed: number): Uint8Array[] {
  const random = createRandom(seed)
  const pieces: Uint8Array[] = []
  const pieceMax = random.pick([1, 7, 60, 5000])
  for (let at = 0; at < bytes.length; ) {
    const end = at + 1 + random.integer(pieceMax)
    pieces.push(bytes.subarray(at, end))
    at = end
  }
  return pieces
}

const withoutReady = (read: readonly Read[]) => read.filter(({ name }) => name !== 'ready')

function readOurs(pieces: readonly Uint8Array[]): Read[] {
  const decoder = new TextDecoder()
  const parser = createSseParser(Number.MAX_SAFE_INTEGER)
  return pieces.flatMap((piece) => [...parser.push(decoder.decode(piece, { stream: true }))])
}

function readWithEventsourceParser(pieces: readonly Uint8Array[]): Read[] {
  const read: Read[] = []
  const decoder = new TextDecoder()
  const parser = createParser({
    onEvent: ({ event = 'message', data, id = '' }) => void read.push({ name: event, data, id }),
  })
  for (const piece of pieces) parser.feed(decoder.decode(piece, { stream: true }))
  return read
}

function readWithFetchEventSource(pieces: readonly Uint8Array[]): Read[] {
  const read: Read[] = []
  const onChunk = getLines(
    getMessages(
      () => undefined,
      () => undefined,
      ({ event, data, id }) => void read.push({ name: event, data, id }),
    ),
  )
  for (const piece of pieces) onChunk(piece)
  return read
}

/** A body that gives these pieces and then stays open, as a stream that goes on does. */
function bodyOf(pieces: readonly Uint8Array[]): ReadableStream<Uint8Array> {
  const left = [...pieces]
  return new ReadableStream({
    pull(controller) {
      const piece = left.shift()
      if (piece !== undefined) controller.enqueue(piece)
      else return new Promise(() => undefined)
    },
  })
}

const fetchOf = (pieces: readonly Uint8Array[]) => async () =>
  new Response(bodyOf(pieces), { headers: { 'content-type': 'text/event-stream' } })

async function readWithEventSource(pieces: readonly Uint8Array[]): Promise<Read[]> {
  const read: Read[] = []
  const source = new EventSource('http://127.0.0.1:9/', { fetch: fetchOf(pieces) })
  for (const name of ['delta', 'title', 'tool']) {
    source.addEventListener(name, ({ data, lastEventId }) => void read.push({ name, data, id: lastEventId }))
  }
  await new Promise<void>((resolve) => source.addEventListener('ready', () => resolve()))
  source.close()
  return read
}

async function readWithEventsourceClient(pieces: readonly Uint8Array[]): Promise<Read[]> {
  const read: Read[] = []
  const source = createEventSource({ url: 'http://127.0.0.1:9/', fetch: fetchOf(pieces) })
  for await (const { event = 'message', data, id = '' } of source) {
    if (event === 'ready') break
    read.push({ name: event, data, id })
  }
  source.close()
  return read
}

/** Section 9.2.6 of the HTML standard, step by step, for a whole stream. */
function readByTheBook(pieces: readonly Uint8Array[]): Read[] {
  const stream = new TextDecoder().decode(Buffer.concat(pieces))
  const read: Read[] = []
  let data = ''
  let type = ''
  let lastEventId = ''
  for (const line of stream.split(/\r\n|\n|\r/).slice(0, -1)) {
    if (line === '') {
      if (data !== '') read.push({ name: type || 'message', data: data.replace(/\n$/, ''), id: lastEventId })
      data = ''
      type = ''
      continue
    }
    const [, field = line, value = ''] = /^([^:]*):? ?(.*)$/su.exec(line) ?? []
    if (field === 'event') type = value
    if (field === 'data') data += `${value}\n`
    if (field === 'id' && !value.includes('\0')) lastEventId = value
  }
  return read
}

const parsers: readonly (readonly [name: string, read: (pieces: readonly Uint8Array[]) => Read[] | Promise<Read[]>])[] =
  [
    ['the client library', readOurs],
    ['eventsource-parser', readWithEventsourceParser],
    ['eventsource', readWithEventSource],
    ['eventsource-client', readWithEventsourceClient],
    ['fetch-event-source', readWithFetchEventSource],
    ['the standard by the book', readByTheBook],
  ]

for (const [name, read] of parsers) {
  t.test(`random events come back the same from ${name}`, async (t) => {
    await fc.assert(
      fc.asyncProperty(entries, fc.nat(), async (events, seed) => {
        const { bytes, expected } = writeStream(events)
        const found = withoutReady(await read(cut(bytes, seed)))
        if (JSON.stringify(found) !== JSON.stringify(expected)) throw new Error(JSON.stringify({ found, expected }))
      }),
      { numRuns: trials, seed: 1 },
    )
    t.pass(`${trials} streams`)

    const long = [
      { type: 'delta', data: { part: 0, offset: 0, text: `\0\u2028${'日本👀\n'.repeat(150_000)}` } },
    ] as const
    const { bytes, expected } = writeStream(long)
    t.ok(bytes.length > 1024 * 1024)
    const pieces = Array.from({ length: Math.ceil(bytes.length / 65_521) }, (_, at) =>
      bytes.subarray(at * 65_521, (at + 1) * 65_521),
    )
    const [whole] = withoutReady(await read(pieces))
    t.ok(whole?.data === expected[0]?.data, 'more than 1 MiB in one event')
  })
}

// The gateway writes LF and one line of data; servers and proxies of other kinds need not.
t.test('our parser reads what the standard allows, like the book', async (t) => {
  const lines = fc.constantFrom(
    'data',
    'data:',
    'data: a',
    'data:b',
    'data:  c',
    ':hb',
    'id: 1',
    'id',
    'id: \0x',
    'event: e',
    'event',
    'retry: 5',
    'retry: x',
    'unknown: 1',
    '',
    '',
    '',
  )
  const ends = fc.constantFrom('\n', '\r\n', '\r')
  const streams = fc.array(fc.tuple(lines, ends), { maxLength: 30 })
  fc.assert(
    fc.property(streams, fc.boolean(), fc.nat(), (pairs, mark, seed) => {
      const bytes = Buffer.from((mark ? '\ufeff' : '') + pairs.map((pair) => pair.join('')).join(''))
      const pieces = cut(bytes, seed)
      const [ours, book] = [readOurs(pieces), readByTheBook(pieces)].map((read) => JSON.stringify(read))
      if (ours !== book) throw new Error(`${ours}\n${book}`)
    }),
    { numRuns: trials * 10, seed: 1 },
  )
  t.pass(`${trials * 10} streams`)
})

t.test('a parser that forgets what is cut between two pieces is noticed', async (t) => {
  const forgetful = (pieces: readonly Uint8Array[]) =>
    pieces.flatMap((piece) => [...createSseParser(1e9).push(new TextDecoder().decode(piece))])
  const { bytes, expected } = writeStream([{ type: 'title', data: { title: '日本' } }])
  t.not(JSON.stringify(withoutReady(forgetful(cut(bytes, 1)))), JSON.stringify(expected))
})
