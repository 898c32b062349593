import { getEventListeners } from 'node:events'
import t from 'tap'
import { createDemo, type DemoClock } from '../../src/upstream/demo.ts'
import type { UpstreamMessage } from '../../src/upstream/upstream.ts'
import { collect } from './streams.ts'

const ask = (content: string, model = 'fast', before: readonly UpstreamMessage[] = []) => ({
  model,
  messages: [...before, { role: 'user' as const, content }],
})

/** A clock that goes on by what is slept, and by whatever the test adds. */
function createClock(): DemoClock & { nowMs: number; slept: number[] } {
  return {
    nowMs: 1000,
    slept: [],
    now() {
      return this.nowMs
    },
    sleep(ms, signal) {
      signal.throwIfAborted()
      this.slept.push(ms)
      this.nowMs += ms
      return Promise.resolve()
    },
  }
}

const read = (content: string, before?: readonly UpstreamMessage[]) =>
  collect(createDemo(), undefined, ask(content, 'fast', before))

t.test('the same conversation gets the same reply, and another one another', async (t) => {
  const first = await read('What is a log?')
  t.strictSame(await read('What is a log?'), first)
  t.not((await read('What is a lag?')).text, first.text)
  const before: UpstreamMessage[] = [
    { role: 'user', content: 'Hello' },
    { role: 'assistant', content: 'Hi' },
  ]
  const later = await read('What is a log?', before)
  t.not(later.text, first.text)
  t.match(later.text, 'message number 2')
  t.equal(first.finish, 'stop')
  t.match(first.id, /^demo-[0-9a-f]{16}$/)
})

t.test('a reply is worth watching: it quotes the message and has all that a page must show', async (t) => {
  const { text } = await read('Where do the words go?')
  t.match(text, '“Where do the words go?”')
  t.match(text, /\n\n- .+\n- .+\n/, 'a list')
  t.match(text, /\n```ts\n[\s\S]+\n```\n/, 'a fenced block')
  t.match(text, /\p{Script=Han}/u)
  t.match(text, /\p{Script=Arabic}/u)
  t.match(text, /\p{Script=Devanagari}/u)
  t.match(text, /\p{Emoji_Presentation}/u)
  t.ok(text.isWellFormed())
})

t.test('a quote is bounded and cannot break the reply', async (t) => {
  const long = await read('🚀'.repeat(50_000))
  t.ok(long.text.length < 4000, `${long.text.length} units`)
  t.match(long.text, `“${'🚀'.repeat(160)}…”`)
  t.ok(long.text.isWellFormed())
  const nasty = await read('a\0b\n\n```\n# no heading\ud83d')
  t.notMatch(nasty.text, /\0/)
  t.ok(nasty.text.isWellFormed())
  t.equal(nasty.text.split('\n').filter((line) => line.startsWith('```')).length, 2, 'one fence, opened and closed')
  t.match((await read('')).text, 'Your message was empty.')
  t.match((await collect(createDemo(), undefined, { model: 'fast', messages: [] })).text, 'Your message was empty.')
})

t.test('no piece cuts a code point in two', async (t) => {
  for await (const event of createDemo().stream(ask('👩‍🚀 日本語 हिन्दी'), new AbortController().signal)) {
    if (event.type === 'text' && !event.text.isWellFormed()) t.fail(JSON.stringify(event.text))
  }
})

t.test('every reply takes 8 to 20 seconds at the default pace', async (t) => {
  for (const message of [
    '',
    'Hi',
    'こんにちは',
    'x'.repeat(10_000),
    ...Array.from({ length: 40 }, (_, i) => `Nr. ${i}`),
  ]) {
    const clock = createClock()
    await collect(createDemo({ clock }), undefined, ask(message, 'demo'))
    const seconds = (clock.nowMs - 1000) / 1000
    if (seconds < 8 || seconds > 20) t.fail(`${seconds} s for ${message.slice(0, 10)}`)
  }
})

t.test('the pace does not drift when a token is late', async (t) => {
  const clock = createClock()
  let count = 0
  const lateness: number[] = []
  for await (const event of createDemo({ tokensPerSecond: 50, clock }).stream(
    ask('Hello', 'demo'),
    new AbortController().signal,
  )) {
    if (event.type !== 'text') continue
    count++
    lateness.push(clock.nowMs - (1000 + count * 20))
    // A reader that is busy for three tokens' time, once.
    if (count === 10) clock.nowMs += 65
    // And a little late every time.
    clock.nowMs += 5
  }
  t.equal(lateness[9], 0)
  t.equal(lateness[10], 50, 'the late one comes at once')
  t.equal(lateness[14], 0, 'and the next ones are on time again')
  t.equal(lateness.at(-1), 0)
})

t.test('fast does not wait', async (t) => {
  const clock = createClock()
  const seen = await collect(createDemo({ clock }), undefined, ask('Hello'))
  t.strictSame(clock.slept, [])
  t.equal(seen.error, undefined)
})

t.test('usage is plausible', async (t) => {
  const { usage } = await read('x'.repeat(400))
  t.match(usage, { input_tokens: 104 })
  const { input_tokens, output_tokens, total_tokens } = usage as Record<string, number>
  t.ok(output_tokens! > 300 && output_tokens! < 800)
  t.equal(total_tokens, input_tokens! + output_tokens!)
})

t.test('an abort acts at once, on the real clock too, and leaves nothing behind', async (t) => {
  const timers = () => process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length
  const before = timers()
  const controller = new AbortController()
  const reason = { stop: true }
  // A token takes 1000 s: only the abort can end this.
  const reading = collect(createDemo({ tokensPerSecond: 0.001 }), controller.signal, ask('Hello', 'demo'))
  await new Promise((resolve) => setImmediate(resolve))
  t.equal(timers(), before + 1)
  controller.abort(reason)
  t.equal((await reading).error, reason)
  t.equal(getEventListeners(controller.signal, 'abort').length, 0)
  t.equal(timers(), before)
  t.equal((await collect(createDemo(), AbortSignal.abort(reason), ask('Hello'))).error, reason)
})

t.test('an abort by the consumer lets nothing more through', async (t) => {
  const controller = new AbortController()
  let count = 0
  await t.rejects(
    async () => {
      for await (const event of createDemo().stream(ask('Hello'), controller.signal)) {
        if (event.type === 'text' && ++count === 3) controller.abort(new Error('enough'))
      }
    },
    { message: 'enough' },
  )
  t.equal(count, 3)
})

t.test('closing cuts the replies that are open, and takes no more', async (t) => {
  const demo = createDemo({ tokensPerSecond: 0.001 })
  const reading = collect(demo, undefined, ask('Hello', 'demo'))
  await new Promise((resolve) => setImmediate(resolve))
  await demo.close()
  t.match((await reading).error, { code: 'upstream_unavailable' })
  t.match((await collect(demo, undefined, ask('Hello'))).error, { code: 'upstream_unavailable' })
})
