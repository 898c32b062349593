/** Iterating over what is told: nothing before the first `next()`, nothing lost, and nobody left behind. */
import { test } from 'tap'
import { iterate } from '../../src/upstream/iterate.ts'

const aborted = (signal: AbortSignal) =>
  new Promise<never>((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)))

test('events come in order and whole, whether or not whoever tells them waits', async (t) => {
  for (const waits of [true, false]) {
    let begun = false
    const events = iterate<number>(async (tell) => {
      begun = true
      for (let n = 0; n < 5; n += 1) {
        const taken = tell([2 * n, 2 * n + 1])
        if (waits) await taken
      }
    }, new AbortController().signal)
    t.notOk(begun, 'nothing is read before the first is asked for')
    const seen: number[] = []
    for await (const event of events) seen.push(event)
    t.same(seen, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
  }
})

test('who waits is held up by a consumer that is elsewhere', async (t) => {
  let told = 0
  const events = iterate<number>(async (tell) => {
    for (; told < 3; told += 1) await tell([told])
  }, new AbortController().signal)
  t.equal((await events.next()).value, 0)
  await new Promise((resolve) => setImmediate(resolve))
  t.equal(told, 0, 'it has not been let go on')
  t.equal((await events.next()).value, 1)
  t.equal(told, 1)
  await events.return()
})

test('what was told before a failure is given first', async (t) => {
  const events = iterate<string>(async (tell) => {
    void tell(['last words'])
    throw new Error('cut')
  }, new AbortController().signal)
  t.equal((await events.next()).value, 'last words')
  await t.rejects(events.next(), { message: 'cut' })
})

test('a consumer that leaves ends what is read, and waits for its end', async (t) => {
  let ended = false
  const events = iterate<string>(async (tell, signal) => {
    void tell(['one'])
    await aborted(signal).finally(() => {
      ended = true
    })
  }, new AbortController().signal)
  for await (const event of events) {
    t.equal(event, 'one')
    break
  }
  t.ok(ended)
})

test('an aborted signal ends both with its reason', async (t) => {
  const controller = new AbortController()
  let reason: unknown
  const events = iterate<string>(async (tell, signal) => {
    void tell(['one', 'two'])
    await aborted(signal).catch((given: unknown) => {
      reason = given
      throw given
    })
  }, controller.signal)
  t.equal((await events.next()).value, 'one')
  controller.abort('stop')
  t.equal(await events.next().catch((given: unknown) => given), 'stop', 'the second word is not given any more')
  t.equal(reason, 'stop')
  const late = iterate<string>(async () => void t.fail('it is not begun'), controller.signal)
  t.equal(await late.next().catch((given: unknown) => given), 'stop')
})
