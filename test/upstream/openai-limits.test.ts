/**
 * Time and memory of one reply, with a clock that the test moves and a dispatcher that shows when it was paused.
 */
import t, { type Test } from 'tap'
import { chunk } from '../../scripts/fake-upstream.ts'
import type { UpstreamEvent } from '../../src/upstream/upstream.ts'
import { Feed, openaiAt, request } from './streams.ts'

const finish = Buffer.from(chunk({}, 'stop'))

/** The adapter, a stream of it, and the signal to stop it with. */
function open(feed: Feed, limits: object) {
  const controller = new AbortController()
  const upstream = openaiAt('http://feed.invalid/v1', { dispatcher: feed, ...limits })
  const events = upstream.stream(request, controller.signal)[Symbol.asyncIterator]()
  return { events, controller }
}

async function nextText(events: AsyncIterator<UpstreamEvent>): Promise<string | undefined> {
  for (;;) {
    const { done, value } = await events.next()
    if (done === true) return undefined
    if (value.type === 'text') return value.text
  }
}

t.test('a reader that is busy does not make the provider silent', async (t) => {
  const clock = takeClock(t)
  const feed = new Feed([Buffer.from(chunk({ content: 'one' })), Buffer.from(chunk({ content: ' two' }))], 'silence')
  const { events } = open(feed, { idleMs: 1000 })
  t.equal(await nextText(events), 'one')
  clock.tick(5000)
  t.equal(await nextText(events), ' two', 'what was received while the reader was away is there')
  const waiting = t.rejects(nextText(events), { code: 'upstream_timeout' })
  await turn()
  clock.tick(999)
  await turn()
  t.notOk(feed.aborted, 'the silence is counted from when it is listened to')
  clock.tick(1)
  await waiting
  t.ok(feed.aborted)
  t.equal(clock.timerCount, 0, 'no timer stays')
})

t.test('each sign of life starts the idle limit anew, and none of them the whole', async (t) => {
  const clock = takeClock(t)
  const life = new Given()
  const { events } = open(life, { firstByteMs: 100, idleMs: 1000, totalMs: 5000 })
  const waiting = t.rejects(nextText(events), { code: 'upstream_timeout', message: /longer than 5000 ms/ })
  await turn()
  for (let ms = 0; ms < 5000; ms += 500) {
    t.notOk(life.aborted, `open after ${ms} ms`)
    life.give(': PROCESSING\n\n')
    await turn()
    clock.tick(500)
    await turn()
  }
  await waiting
  t.ok(life.aborted)
  t.equal(clock.timerCount, 0, 'no timer stays')
})

t.test('a provider that goes on after its finish reason is listened to, and its silence ends the reply', async (t) => {
  const clock = takeClock(t)
  const feed = new Given()
  const { events } = open(feed, { idleMs: 1000 })
  // As some models say it: the reason with every chunk, and more in all than the limit after the first.
  for (let count = 0; count < 4; count++) {
    const next = nextText(events)
    await turn()
    if (count > 0) clock.tick(600)
    feed.give(chunk({ content: 'word ' }, 'stop'))
    t.equal(await next, 'word ')
  }
  const end = nextText(events)
  await turn()
  clock.tick(600)
  feed.give(': PROCESSING\n\n')
  await turn()
  t.notOk(feed.aborted)
  clock.tick(400)
  t.equal(await end, undefined, 'a comment is no word: the reply is whole')
  t.ok(feed.aborted)
  t.equal(clock.timerCount, 0, 'no timer stays')
})

t.test('a reader that does not read pauses the provider, and misses nothing when it goes on', async (t) => {
  const text = 'x'.repeat(1000)
  const pieces = Array.from({ length: 1500 }, () => Buffer.from(chunk({ content: text })))
  const feed = new Feed([...pieces, finish])
  const { events } = open(feed, {})
  let length = (await nextText(events))?.length ?? 0
  await turn()
  t.ok(feed.fedBytes < 300 * 1024, `${feed.fedBytes} bytes were taken from the socket`)
  t.equal(feed.pauses, 1)
  for (let next = await nextText(events); next !== undefined; next = await nextText(events)) length += next.length
  t.equal(length, 1500 * 1000)
})

t.test('what was received before a reset is read, and then the reset counts', async (t) => {
  const words = Array.from({ length: 50 }, (_, index) => Buffer.from(chunk({ content: `${index} ` })))
  const { events } = open(new Feed(words, Object.assign(new Error('reset'), { code: 'ECONNRESET' })), {})
  // The reset comes in the same turn as the words: all of them are queued behind the first read.
  let text = ''
  await t.rejects(
    async () => {
      for (let next = await nextText(events); next !== undefined; next = await nextText(events)) text += next
    },
    { code: 'upstream_unavailable', cause: { message: 'ECONNRESET' } },
  )
  t.equal(text, Array.from({ length: 50 }, (_, index) => `${index} `).join(''))
})

/** Hands over what it is given, when it is given. */
class Given extends Feed {
  give: (text: string) => void = () => undefined
  constructor() {
    super([])
  }
  override dispatch(_: unknown, handler: Parameters<Feed['dispatch']>[1]): boolean {
    const controller = {
      aborted: false,
      paused: false,
      reason: null,
      abort: () => {
        this.aborted = true
      },
      pause: () => undefined,
      resume: () => undefined,
    }
    handler.onRequestStart?.(controller, {})
    handler.onResponseStart?.(controller, 200, {})
    this.give = (text) => handler.onResponseData?.(controller, Buffer.from(text))
    return true
  }
}

/**
 * Puts a clock of the test's own under setTimeout and performance.now until the test ends. Not that of node:test, which
 * has no say over the latter.
 */
function takeClock(t: Test): { readonly timerCount: number; tick(ms: number): void } {
  const real = { setTimeout: globalThis.setTimeout, clearTimeout: globalThis.clearTimeout }
  let nowMs = 0
  const timers = new Set<{ readonly dueMs: number; run(): void }>()
  const fake = {
    setTimeout(run: () => void, ms: number) {
      const timer = { dueMs: nowMs + ms, run }
      timers.add(timer)
      return timer
    },
    clearTimeout(timer: { readonly dueMs: number; run(): void }) {
      timers.delete(timer)
    },
  }
  Object.assign(globalThis, fake)
  const realNow = performance.now
  performance.now = () => nowMs
  t.teardown(() => {
    Object.assign(globalThis, real)
    performance.now = realNow
  })
  return {
    get timerCount() {
      return timers.size
    },
    tick(ms) {
      nowMs += ms
      for (const timer of [...timers].sort((a, b) => a.dueMs - b.dueMs)) {
        if (timer.dueMs > nowMs || !timers.has(timer)) continue
        timers.delete(timer)
        timer.run()
      }
    },
  }
}

/** One turn of the event loop; its own clock is the real one. */
function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}
