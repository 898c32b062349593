/**
 * The frame clock: when words go out, and how many appends that takes. Time is the test's.
 */
import { mock } from 'node:test'
import t, { type Test } from 'tap'
import type { LogEntry } from '../../src/log/event.ts'
import { createFrames, type FrameSource } from '../../src/log/frames.ts'
import type { EventLog, RunEntries } from '../../src/log/log.ts'
import { createMemoryLog } from '../../src/log/memory.ts'
import { delta } from '../contracts/log.ts'

// Long, so that the real time that passes within a test does not matter.
const frameMs = 60_000

function createSource(runId: string) {
  const waiting: LogEntry[] = []
  let seq = 0
  let urgent = true
  const source: FrameSource & { say(): void } = {
    runId,
    get urgent() {
      return urgent
    },
    say() {
      seq += 1
      waiting.push(delta(seq))
    },
    takeEntries() {
      if (waiting.length > 0) urgent = false
      return waiting.splice(0)
    },
  }
  return source
}

/** @param tookMs what each append takes, on a clock that only that moves; absent: the real clock */
function start(t: Test, tookMs?: () => number) {
  mock.timers.enable({ apis: ['setTimeout'] })
  t.teardown(() => mock.timers.reset())
  const appends: RunEntries[][] = []
  const memory = createMemoryLog()
  t.teardown(() => memory.close())
  const log: EventLog = {
    ...memory,
    append(frame) {
      appends.push([...frame])
      memory.append(frame)
      nowMs += tookMs?.() ?? 0
    },
  }
  let nowMs = 0
  const frames = tookMs === undefined ? createFrames(log, frameMs) : createFrames(log, frameMs, () => nowMs)
  const say = (...sources: ReturnType<typeof createSource>[]) => {
    for (const source of sources) {
      source.say()
      frames.touch(source)
    }
  }
  /** Moves the clock of the test as time does, in small steps. */
  const pass = (ms: number) => {
    for (let left = ms; left > 0; left -= frameMs / 20) {
      nowMs += frameMs / 20
      mock.timers.tick(frameMs / 20)
    }
  }
  const runsOf = (frame: RunEntries[] | undefined) => frame?.map(({ runId, entries }) => [runId, entries.length])
  return { frames, appends, say, runsOf, pass }
}

t.test('the first words do not wait, the next ones join a frame', async (t) => {
  const { appends, say, runsOf } = start(t)
  const source = createSource('a')
  say(source)
  t.same(appends.map(runsOf), [[['a', 1]]], 'at once, without a turn of the clock')
  say(source)
  t.equal(appends.length, 1)
  mock.timers.tick(1)
  t.same(runsOf(appends[1]), [['a', 1]], 'after silence nothing waits for a whole frame')
  for (let count = 0; count < 50; count += 1) say(source)
  mock.timers.tick(frameMs / 2)
  t.equal(appends.length, 2, 'within a frame nothing is written')
  mock.timers.tick(frameMs / 2)
  t.same(runsOf(appends[2]), [['a', 50]], 'and then all of it at once')
  mock.timers.tick(10 * frameMs)
  t.equal(appends.length, 3, 'a clock with nothing to do stands still')
})

t.test('a run that was touched without new words stays urgent, and writes nothing', async (t) => {
  const { frames, appends, say } = start(t)
  const source = createSource('a')
  frames.touch(source)
  frames.touch(source)
  t.equal(appends.length, 0)
  say(source)
  t.equal(appends.length, 1, 'its first words still go at once')
  frames.touch(source)
  mock.timers.tick(frameMs)
  t.equal(appends.length, 1)
})

t.test('a frame of many runs is one append', async (t) => {
  const { appends, say, runsOf } = start(t)
  const sources = Array.from({ length: 10 }, (_, index) => createSource(`run-${index}`))
  say(...sources)
  t.equal(appends.length, 10, 'first words, each at once')
  say(...sources, ...sources)
  mock.timers.tick(frameMs)
  t.equal(appends.length, 11)
  t.same(
    runsOf(appends[10]),
    sources.map(({ runId }) => [runId, 2]),
  )
})

t.test('frames that take much of the time become longer, three times at most, and short again', async (t) => {
  let tookMs = frameMs / 50
  const { appends, say } = start(t, () => tookMs)
  const source = createSource('a')
  say(source)
  /** How many half frames it takes until the next append. */
  const halvesUntilWritten = (): number => {
    const before = appends.length
    say(source)
    for (let halves = 0; ; halves += 1) {
      if (appends.length > before) return halves
      mock.timers.tick(frameMs / 2)
    }
  }
  const settle = () => Array.from({ length: 40 }, halvesUntilWritten).at(-1)
  t.equal(settle(), 2, 'a fiftieth of the time is little')
  tookMs = frameMs / 5
  t.equal(settle(), 4, 'a fifth of a frame is a tenth of two')
  tookMs = frameMs / 2
  t.equal(settle(), 5, 'three frames from the beginning of the last one, which was half a frame ago at its end')
  tookMs = 0
  t.equal(settle(), 2)
})

t.test('in a process that has little to do nobody rests', (t) => {
  const { frames, say } = start(t, () => frameMs / 50)
  say(createSource('a'))
  let reads = 0
  frames.rest(() => {
    reads += 1
  })
  t.equal(reads, 1)
  t.end()
})

t.test('who rests in a busy process reads when it is due, in one turn, and that is the frame', async (t) => {
  const { frames, appends, say, runsOf, pass } = start(t, () => frameMs / 4)
  const sources = ['a', 'b', 'c'].map(createSource)
  say(...sources)
  say(...sources)
  pass(frameMs)
  const before = appends.length
  const order: string[] = []
  for (const source of sources) {
    frames.rest(() => {
      order.push(source.runId)
      say(source)
    })
  }
  frames.flushAll()
  t.same(order, [])
  for (let n = 0; n < 100 && order.length === 0; n += 1) pass(frameMs / 20)
  t.same(order, ['a', 'b', 'c'])
  t.equal(appends.length, before, 'others may still read in this turn')
  await new Promise(setImmediate)
  t.same(appends.slice(before).map(runsOf), [
    [
      ['a', 1],
      ['b', 1],
      ['c', 1],
    ],
  ])
})

t.test('frames between do not put off those who rest, and not all of a crowd is due at once', async (t) => {
  const { frames, appends, say, pass } = start(t, () => frameMs / 5)
  const source = createSource('a')
  for (let n = 0; n < 30; n += 1) {
    say(source)
    pass(3 * frameMs)
  }
  const due: number[] = []
  for (let n = 0; n < 3; n += 1) {
    frames.rest(() => void due.push(n))
    pass(frameMs / 2)
    say(source)
    frames.flushAll()
    pass(frameMs / 2)
  }
  const framesBefore = appends.length
  const turns: number[][] = []
  for (let turn = 0; turn < 100 && due.length < 3; turn += 1) {
    const seen = due.length
    pass(frameMs / 20)
    await new Promise(setImmediate)
    if (due.length > seen) turns.push(due.slice(seen))
  }
  t.same(due, [0, 1, 2])
  t.ok(turns.length >= 2, 'one after the other')
  t.equal(appends.length, framesBefore, 'a frame in which nobody has said anything is none')
})

t.test('close lets nobody rest any more', (t) => {
  const { frames, say } = start(t, () => frameMs / 4)
  const source = createSource('a')
  say(source)
  say(source)
  frames.flushAll()
  let reads = 0
  const readOn = () => {
    reads += 1
  }
  frames.rest(readOn)
  t.equal(reads, 0)
  frames.close()
  t.equal(reads, 1)
  frames.rest(readOn)
  t.equal(reads, 2)
  t.end()
})

t.test('flush writes one run at once, and its words are not written again', async (t) => {
  const { frames, appends, say, runsOf } = start(t)
  const [a, b] = [createSource('a'), createSource('b')]
  say(a, b, a, b)
  frames.flush(a)
  t.same(runsOf(appends.at(-1)), [['a', 1]])
  frames.flush(a)
  t.equal(appends.length, 3)
  mock.timers.tick(frameMs)
  t.same(runsOf(appends.at(-1)), [['b', 1]])
})

for (const end of ['flushAll', 'close'] as const) {
  t.test(`${end} writes what is there, and leaves no timer`, async (t) => {
    const { frames, appends, say, runsOf } = start(t)
    const [a, b] = [createSource('a'), createSource('b')]
    say(a, b, a, b)
    frames[end]()
    t.same(runsOf(appends.at(-1)), [
      ['a', 1],
      ['b', 1],
    ])
    a.say()
    mock.timers.tick(10 * frameMs)
    t.equal(appends.length, 3, 'a timer would have taken what came after')
    frames[end]()
    t.equal(appends.length, 3)
  })
}
