/**
 * The log inside the process keeps the contract, and lets go of what has ended.
 */
import t from 'tap'
import { createMemoryLog } from '../../src/log/memory.ts'
import { delta, deltas, done, logContract } from './log.ts'

t.test('the contract', async (t) => {
  const log = createMemoryLog()
  await logContract(t, async () => ({ writer: log, reader: log, shared: false, close: () => log.close() }))
  t.equal(log.size, 0, 'nothing is held after close')
  t.equal(log.watched, 0, 'and nobody watches')
})

t.test('a run that has ended is let go after its time, and not before', async (t) => {
  let now = 0
  const log = createMemoryLog({ endedMs: 1000, now: () => now })
  t.teardown(() => log.close())
  let wakes = 0
  log.append([{ runId: 'a', entries: [delta(1), done(2)] }])
  const unwatch = log.watch('a', () => (wakes += 1))
  now = 999
  log.sweep()
  t.equal((await log.read('a', undefined, 10)).kind, 'entries')
  now = 1000
  log.sweep()
  t.equal((await log.read('a', undefined, 10)).kind, 'unknown')
  t.equal(wakes, 1, 'its viewers are told')
  unwatch()
  t.equal(log.size, 0)
  t.equal(log.watched, 0)
})

t.test('a run that has not ended is never let go', async (t) => {
  let now = 0
  const log = createMemoryLog({ endedMs: 1000, endedUnitsMax: 10, now: () => now })
  t.teardown(() => log.close())
  log.append([{ runId: 'a', entries: deltas(1, 100) }])
  now = 1_000_000
  log.sweep()
  t.equal((await log.read('a', undefined, 10)).kind, 'entries')
})

t.test('ended runs that are too much together go oldest first, until they are not', async (t) => {
  let now = 0
  // Each run below holds four units of text.
  const log = createMemoryLog({ endedMs: 1000, endedUnitsMax: 8, now: () => now })
  t.teardown(() => log.close())
  for (const runId of ['a', 'b', 'c', 'd']) log.append([{ runId, entries: [delta(1)] }])
  for (const runId of ['c', 'a', 'd']) {
    now += 1
    log.append([{ runId, entries: [done(2)] }])
  }
  log.sweep()
  const kinds = await Promise.all(['a', 'b', 'c', 'd'].map(async (id) => (await log.read(id, undefined, 10)).kind))
  t.same(kinds, ['entries', 'entries', 'unknown', 'entries'])
  log.forget('a')
  log.append([{ runId: 'e', entries: [delta(1), done(2)] }])
  log.sweep()
  t.equal(log.size, 3, 'what was forgotten is not counted any more')
})

t.test('what comes after the end is neither kept nor counted', async (t) => {
  const log = createMemoryLog({ endedUnitsMax: 4 })
  t.teardown(() => log.close())
  log.append([{ runId: 'a', entries: [delta(1), done(2), delta(3)] }])
  log.append([{ runId: 'a', entries: deltas(3, 50) }])
  log.sweep()
  t.match(log.terminalId('a'), { seq: 2 })
})
