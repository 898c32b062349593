/**
 * The contract of the event log, sentence by sentence of src/log/log.ts. Every adapter passes this suite, and nothing
 * in it knows which one it runs on: an append may reach readers later, in which case they are woken. The log that is
 * appended to and the one that is read may be those of two processes.
 */
import { randomUUID } from 'node:crypto'
import type { Test } from 'tap'
import { beforeAll, compareEventIds, type EventId, formatEventId, type LogEntry } from '../../src/log/event.ts'
import { foldEvents, resetEntry } from '../../src/log/fold.ts'
import type { EventLog, LogPage } from '../../src/log/log.ts'
import { createRandom } from '../support/random.ts'

export interface OpenedLog {
  readonly writer: EventLog
  /** The same one, or that of another process. */
  readonly reader: EventLog
  /** What the writer lets go can still be read from elsewhere. */
  readonly shared: boolean
  close(): Promise<void>
}

/** An event whose text says where it stands. */
export function delta(seq: number, generation = 1, text = `${generation}-${seq};`): LogEntry {
  return { generation, seq, event: { type: 'delta', data: { part: 0, offset: 0, text } } }
}

export const deltas = (first: number, last: number, generation = 1): LogEntry[] =>
  Array.from({ length: last - first + 1 }, (_, index) => delta(first + index, generation))

export function done(seq: number, generation = 1): LogEntry {
  return { generation, seq, event: { type: 'done', data: { status: 'completed', message_id: randomUUID() } } }
}

export function reset(seq: number, generation: number, text: string): LogEntry {
  return resetEntry('message', [{ kind: 'text', text }], { generation, seq })
}

/** Longest wait for something that must come. */
const waitMs = 10_000

/** Reads and watches, as a viewer does, until `enough` says so. */
export async function readUntil(
  log: EventLog,
  runId: string,
  enough: (page: LogPage) => boolean,
  after?: EventId,
): Promise<LogPage> {
  const signal = AbortSignal.timeout(waitMs)
  for (;;) {
    const woken = Promise.withResolvers<void>()
    const wake = () => woken.resolve()
    const unwatch = log.watch(runId, wake)
    signal.addEventListener('abort', wake)
    try {
      const page = await log.read(runId, after, 10_000)
      if (enough(page)) return page
      if (signal.aborted) throw new Error(`still waiting after ${waitMs} ms; the log says ${page.kind}`)
      await woken.promise
    } finally {
      unwatch()
      signal.removeEventListener('abort', wake)
    }
  }
}

const ids = (page: LogPage): string[] | string =>
  page.kind === 'entries' ? page.entries.map(formatEventId) : page.kind

/** Resolves with the whole log when it ends with this id. */
const untilAt = (log: EventLog, runId: string, id: string) =>
  readUntil(log, runId, (page) => page.kind === 'entries' && ids(page).at(-1) === id)

export async function logContract(t: Test, open: () => Promise<OpenedLog>): Promise<void> {
  const { writer, reader, shared, close } = await open()
  const local = writer === reader
  const max = 10_000

  await t.test('events come back in order, whole, and as they were', async (t) => {
    const run = randomUUID()
    const entries = [...deltas(1, 3), done(4)]
    writer.append([{ runId: run, entries: entries.slice(0, 2) }])
    writer.append([{ runId: run, entries: entries.slice(2) }])
    await untilAt(reader, run, '1-4')
    const page = { kind: 'entries', entries, local }
    t.same(await reader.read(run, undefined, max), page)
    t.same(reader.peek(run, undefined, max), page, 'what is here needs no wait')
    t.same(reader.peek(run, { generation: 1, seq: 3 }, max), { ...page, entries: entries.slice(3) })
    t.notMatch(reader.peek(randomUUID(), undefined, max), { kind: 'entries' })
  })

  await t.test('a page holds as many entries as were asked for, and the next one goes on after it', async (t) => {
    const run = randomUUID()
    writer.append([{ runId: run, entries: deltas(1, 5) }])
    await untilAt(reader, run, '1-5')
    t.same(ids(await reader.read(run, undefined, 2)), ['1-1', '1-2'])
    t.same(ids(await reader.read(run, { generation: 1, seq: 2 }, 2)), ['1-3', '1-4'])
    t.same(ids(await reader.read(run, { generation: 1, seq: 4 }, 2)), ['1-5'])
  })

  await t.test('a frame that is sent again changes nothing', async (t) => {
    const run = randomUUID()
    const frame = [{ runId: run, entries: deltas(1, 3) }]
    writer.append(frame)
    writer.append(frame)
    writer.append([{ runId: run, entries: deltas(2, 5) }])
    const page = await untilAt(reader, run, '1-5')
    t.same(ids(page), ['1-1', '1-2', '1-3', '1-4', '1-5'])
  })

  await t.test('a process whose run was taken over cannot write any more', async (t) => {
    const run = randomUUID()
    writer.append([{ runId: run, entries: deltas(1, 2) }])
    writer.append([{ runId: run, entries: [reset(1, 2, 'taken over')] }])
    writer.append([{ runId: run, entries: [...deltas(3, 5), done(6)] }])
    writer.append([{ runId: run, entries: [done(2, 2)] }])
    await untilAt(reader, run, '2-2')
    t.same(ids(await reader.read(run, beforeAll, max)), ['1-1', '1-2', '2-1', '2-2'])
    t.match(reader.terminalId(run), { generation: 2, seq: 2 })
  })

  await t.test('whoever begins anew is told nothing that a reset has taken back, and reads to the end', async (t) => {
    const run = randomUUID()
    writer.append([{ runId: run, entries: deltas(1, 3) }])
    await untilAt(reader, run, '1-3')
    const [first, second] = [reset(1, 2, '1-1;'), reset(3, 2, '1-1;2-2;')]
    writer.append([{ runId: run, entries: [first, delta(2, 2)] }])
    t.same(ids(await untilAt(reader, run, '2-2')), ['2-1', '2-2'])
    writer.append([{ runId: run, entries: [second, delta(4, 2), done(5, 2)] }])
    const page = await untilAt(reader, run, '2-5')
    t.same(ids(page), ['2-3', '2-4', '2-5'], 'the last one, where there are several')
    t.same(foldEvents(page.kind === 'entries' ? page.entries : []), [{ kind: 'text', text: '1-1;2-2;2-4;' }])
    t.same(ids(await reader.read(run, undefined, 2)), ['2-3', '2-4'])
    t.same(ids(await reader.read(run, { generation: 2, seq: 4 }, 2)), ['2-5'])
    const whole = ['1-1', '1-2', '1-3', '2-1', '2-2', '2-3', '2-4', '2-5']
    t.same(ids(await reader.read(run, beforeAll, max)), whole, 'what was said before is there for who asks for it')
  })

  await t.test('nothing comes after the terminal event', async (t) => {
    const run = randomUUID()
    writer.append([{ runId: run, entries: [delta(1), done(2)] }])
    await untilAt(reader, run, '1-2')
    t.match(reader.terminalId(run), { generation: 1, seq: 2 })
    writer.append([{ runId: run, entries: [delta(3)] }])
    const other = randomUUID()
    writer.append([{ runId: other, entries: [delta(1)] }])
    await untilAt(reader, other, '1-1')
    t.match(reader.terminalId(run), { generation: 1, seq: 2 })
    t.same(ids(await reader.read(run, { generation: 1, seq: 1 }, 1)), ['1-2'])
  })

  await t.test('a cursor gets what comes directly after it', async (t) => {
    const run = randomUUID()
    writer.append([{ runId: run, entries: deltas(1, 4) }])
    await untilAt(reader, run, '1-4')
    const after = async (seq: number, generation = 1) => ids(await reader.read(run, { generation, seq }, max))
    t.same(ids(await reader.read(run, undefined, max)), ['1-1', '1-2', '1-3', '1-4'])
    t.same(await after(0), ['1-1', '1-2', '1-3', '1-4'], 'before the first')
    t.same(await after(1), ['1-2', '1-3', '1-4'])
    t.same(await after(3), ['1-4'])
    t.same(await after(4), [], 'at the end')
    t.equal(await after(5), 'unservable', 'from the future')
    t.equal(await after(999_999_999), 'unservable')
    t.equal(await after(0, 2), 'unservable', 'of a generation that has not begun')
    t.equal(await after(2, 2), 'unservable')
    t.equal(await after(2, 0), 'unservable')
  })

  await t.test('a cursor of an earlier generation is led on by the reset that begins the next one', async (t) => {
    const run = randomUUID()
    writer.append([{ runId: run, entries: deltas(1, 3) }])
    writer.append([{ runId: run, entries: [reset(1, 2, '1-1;1-2;'), ...deltas(2, 3, 2)] }])
    await untilAt(reader, run, '2-3')
    const after = async (generation: number, seq: number) => ids(await reader.read(run, { generation, seq }, max))
    t.same(await after(1, 2), ['1-3', '2-1', '2-2', '2-3'])
    t.same(await after(1, 3), ['2-1', '2-2', '2-3'])
    t.same(await after(1, 7), ['2-1', '2-2', '2-3'], 'also when its events are not there: a zombie showed them')
    t.same(await after(2, 1), ['2-2', '2-3'])
  })

  await t.test('without one it needs a reset, whatever its seq', async (t) => {
    const run = randomUUID()
    writer.append([{ runId: run, entries: deltas(1, 2) }])
    writer.append([{ runId: run, entries: deltas(1, 3, 2) }])
    await readUntil(reader, run, (page) => page.kind === 'entries' && ids(page).at(-1) === '2-3', {
      generation: 2,
      seq: 1,
    })
    for (const seq of [1, 2, 3]) {
      t.equal(ids(await reader.read(run, { generation: 1, seq }, max)), 'unservable', `1-${seq}`)
    }
    t.same(ids(await reader.read(run, { generation: 2, seq: 1 }, max)), ['2-2', '2-3'])
  })

  await t.test('a reset bridges a hole, and can be the beginning', async (t) => {
    const run = randomUUID()
    writer.append([{ runId: run, entries: deltas(1, 3) }])
    writer.append([{ runId: run, entries: [reset(7, 1, 'all until here'), delta(8)] }])
    await untilAt(reader, run, '1-8')
    const after = async (seq: number) => ids(await reader.read(run, { generation: 1, seq }, max))
    t.same(await after(2), ['1-3', '1-7', '1-8'])
    t.same(await after(3), ['1-7', '1-8'])
    t.same(await after(5), ['1-7', '1-8'])
    t.same(await after(7), ['1-8'])
    const begun = randomUUID()
    writer.append([{ runId: begun, entries: [reset(7, 1, 'all until here'), delta(8)] }])
    t.same(ids(await untilAt(reader, begun, '1-8')), ['1-7', '1-8'])
  })

  await t.test('what is loaded is all that was appended', async (t) => {
    const run = randomUUID()
    t.same(await reader.load(run), [], 'nothing yet')
    const entries = [...deltas(1, 3), done(4)]
    writer.append([{ runId: run, entries }])
    await untilAt(reader, run, '1-4')
    t.same(await reader.load(run), entries)
  })

  await t.test('a log whose beginning is gone says so, and still serves the rest', async (t) => {
    const run = randomUUID()
    writer.append([{ runId: run, entries: deltas(5, 7) }])
    await readUntil(reader, run, (page) => page.kind !== 'unknown', { generation: 1, seq: 6 })
    t.equal(ids(await reader.read(run, undefined, max)), 'unservable')
    for (const seq of [0, 1, 3])
      t.equal(ids(await reader.read(run, { generation: 1, seq }, max)), 'unservable', `1-${seq}`)
    t.same(ids(await reader.read(run, { generation: 1, seq: 5 }, max)), ['1-6', '1-7'])
    t.same(ids(await reader.read(run, { generation: 1, seq: 7 }, max)), [])
  })

  await t.test('a reset makes a log whole again whose beginning is gone', async (t) => {
    const run = randomUUID()
    writer.append([{ runId: run, entries: [...deltas(5, 7), reset(8, 1, 'all until here'), delta(9)] }])
    t.same(ids(await untilAt(reader, run, '1-9')), ['1-8', '1-9'])
    t.same(ids(await reader.read(run, { generation: 1, seq: 7 }, max)), ['1-8', '1-9'])
    t.same(ids(await reader.read(run, { generation: 1, seq: 2 }, max)), ['1-8', '1-9'])
  })

  await t.test('a hole is never read across', async (t) => {
    const run = randomUUID()
    writer.append([{ runId: run, entries: deltas(1, 2) }])
    writer.append([{ runId: run, entries: deltas(5, 6) }])
    await readUntil(reader, run, (page) => page.kind !== 'unknown' && ids(page).at(-1) === '1-6', {
      generation: 1,
      seq: 5,
    })
    t.ok(isDense(await reader.read(run, undefined, max), undefined))
    for (const seq of [0, 1, 2, 3, 4, 5]) {
      const cursor = { generation: 1, seq }
      t.ok(isDense(await reader.read(run, cursor, max), cursor), `after 1-${seq}`)
    }
    t.notOk(isDense({ kind: 'entries', entries: [delta(2), delta(5)], local: true }, undefined), 'the check finds one')
    t.notOk(
      isDense({ kind: 'entries', entries: [delta(5)], local: true }, { generation: 1, seq: 2 }),
      'also at the cursor',
    )
  })

  await t.test('one frame serves many runs, each its own', async (t) => {
    const runs = Array.from({ length: 20 }, () => randomUUID())
    writer.append(runs.map((runId, index) => ({ runId, entries: deltas(1, index + 1) })))
    for (const [index, run] of runs.entries()) {
      const page = await untilAt(reader, run, `1-${index + 1}`)
      t.equal(ids(page).length, index + 1)
    }
  })

  await t.test('a run that nobody has written is unknown', async (t) => {
    const run = randomUUID()
    t.equal(ids(await reader.read(run, undefined, max)), 'unknown')
    t.equal(ids(await reader.read(run, { generation: 1, seq: 1 }, max)), 'unknown')
    t.equal(reader.terminalId(run), undefined)
    writer.append([{ runId: run, entries: [] }])
    t.equal(ids(await reader.read(run, undefined, max)), 'unknown', 'an empty frame makes no log')
    writer.forget(run)
  })

  await t.test('a log that was let go wakes its viewers, and can begin again', async (t) => {
    const run = randomUUID()
    writer.append([{ runId: run, entries: [delta(1), done(2)] }])
    const woken = Promise.withResolvers<void>()
    const unwatch = writer.watch(run, woken.resolve)
    t.match(writer.terminalId(run), { generation: 1, seq: 2 })
    writer.forget(run)
    t.equal(writer.terminalId(run), undefined)
    await woken.promise
    unwatch()
    // What others can still read, this process reads as they do.
    if (shared) t.match(await readUntil(writer, run, ({ kind }) => kind === 'entries'), { local: false })
    else t.equal(ids(await writer.read(run, undefined, max)), 'unknown')
    const again = randomUUID()
    writer.append([{ runId: again, entries: [delta(1)] }])
    writer.forget(again)
    writer.append([{ runId: again, entries: [delta(1, 2)] }])
    t.same(ids(await untilAt(reader, again, '2-1')), ['2-1'])
  })

  await t.test('what is erased is gone for everybody, whoever erases it, and its viewers are woken', async (t) => {
    const [ended, open, kept] = [randomUUID(), randomUUID(), randomUUID()]
    writer.append([
      { runId: ended, entries: [...deltas(1, 3), done(4)] },
      { runId: open, entries: deltas(1, 3) },
      { runId: kept, entries: deltas(1, 3) },
    ])
    await Promise.all([untilAt(reader, ended, '1-4'), untilAt(reader, open, '1-3'), untilAt(reader, kept, '1-3')])
    const woken = Promise.withResolvers<void>()
    const unwatch = reader.watch(ended, woken.resolve)
    // The one that makes it lets go of it before, as of any run that it may not write any more.
    writer.forget(open)
    await reader.erase([ended, open, randomUUID()])
    await woken.promise
    unwatch()
    for (const run of [ended, open]) {
      t.same(await reader.load(run), [])
      t.equal(reader.terminalId(run), undefined)
      t.notMatch(ids(await reader.read(run, undefined, max)), ['1-1'])
    }
    await writer.erase([ended])
    t.same(await writer.load(ended), [], 'also where it was made')
    writer.append([{ runId: kept, entries: [delta(4)] }])
    t.same(ids(await untilAt(reader, kept, '1-4')), ['1-1', '1-2', '1-3', '1-4'], 'and nothing else')
    await writer.erase([])
    await writer.erase([ended, open])
  })

  await t.test('a watcher is woken by every append, also by the first of all, until it stops', async (t) => {
    const run = randomUUID()
    let stopped = 0
    reader.watch(run, () => (stopped += 1))()
    for (let seq = 1; seq <= 5; seq += 1) {
      const woken = Promise.withResolvers<void>()
      const unwatch = reader.watch(run, woken.resolve)
      writer.append([{ runId: run, entries: [delta(seq)] }])
      await woken.promise
      unwatch()
      unwatch()
    }
    t.equal(stopped, 0)
    await untilAt(reader, run, '1-5')
  })

  await t.test('one watcher that stops does not stop the others, not even the same function', async (t) => {
    const run = randomUUID()
    const other = randomUUID()
    let wakes = 0
    const wake = () => {
      wakes += 1
      if (wakes === 1) stay.resolve()
    }
    const stay = Promise.withResolvers<void>()
    const first = reader.watch(run, wake)
    const second = reader.watch(run, wake)
    first()
    writer.append([{ runId: other, entries: [delta(1)] }])
    await untilAt(reader, other, '1-1')
    t.equal(wakes, 0, 'and none hears of another run')
    writer.append([{ runId: run, entries: [delta(1)] }])
    await stay.promise
    second()
  })

  await t.test('readers from anywhere see exactly what was appended, whatever the timing', async (t) => {
    const seed = 7
    const random = createRandom(seed)
    const runs = Array.from({ length: 3 }, () => randomUUID())
    const events = 4000
    const appended = new Map(runs.map((run) => [run, 0]))
    const readers = runs.flatMap((run) =>
      Array.from({ length: 12 }, (_, index) => {
        const from = index === 0 ? undefined : random.integer(events)
        return readAll(reader, run, from, events, createRandom(seed + index))
      }),
    )
    while ([...appended.values()].some((count) => count < events)) {
      const frame = runs.flatMap((runId) => {
        const before = appended.get(runId) ?? 0
        const count = Math.min(random.integer(40), events - before)
        // Now and then a part of the frame before is sent again.
        const again = Math.min(before, random.integer(4))
        appended.set(runId, before + count)
        if (count + again === 0) return []
        const entries = deltas(before + 1 - again, before + count)
        return [{ runId, entries: before + count === events ? [...entries.slice(0, -1), done(events)] : entries }]
      })
      writer.append(frame)
      if (random.integer(3) > 0) await new Promise((resolve) => setImmediate(resolve))
    }
    for (const reader of readers) {
      const { from, seen } = await reader
      const wrong = seen.findIndex((seq, index) => seq !== from + index + 1)
      t.equal(wrong, -1, `after ${from}, entry ${wrong} is ${seen[wrong]}`)
      t.equal(seen.length, events - from)
    }
  })

  await close()
}

/** Loops as a viewer does; a reader from the future waits until its place is reached. */
async function readAll(
  log: EventLog,
  runId: string,
  from: number | undefined,
  last: number,
  random: ReturnType<typeof createRandom>,
): Promise<{ from: number; seen: number[] }> {
  const start = from ?? 0
  const seen: number[] = []
  let cursor: EventId | undefined = from === undefined ? undefined : { generation: 1, seq: from }
  for (;;) {
    const woken = Promise.withResolvers<void>()
    const unwatch = log.watch(runId, woken.resolve)
    const page = await log.read(runId, cursor, 1 + random.integer(100))
    if (page.kind === 'entries' && page.entries.length > 0) {
      for (const entry of page.entries) seen.push(entry.seq)
      cursor = page.entries.at(-1)
      if (random.integer(4) === 0) await new Promise((resolve) => setImmediate(resolve))
    } else {
      await woken.promise
    }
    unwatch()
    if (cursor !== undefined && compareEventIds(cursor, { generation: 1, seq: last }) === 0)
      return { from: start, seen }
  }
}

/** True when a viewer with this cursor would not be shown a hole. */
function isDense(page: LogPage, after: EventId | undefined): boolean {
  if (page.kind !== 'entries') return true
  return page.entries.every(({ seq }, index) => seq === (page.entries[index - 1]?.seq ?? after?.seq ?? 0) + 1)
}
