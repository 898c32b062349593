/**
 * How long, and how often, the database is asked for what stands between a message and its reply. Time is the test's.
 */
import { mock } from 'node:test'
import t, { type Test } from 'tap'
import { Problem } from '../../src/errors.ts'
import { patiently, waitMs } from '../../src/runs/patience.ts'

const away = () => Promise.reject(new Problem('db_unavailable'))

function takeClock(t: Test) {
  let nowMs = 0
  mock.timers.enable({ apis: ['setTimeout'] })
  mock.method(performance, 'now', () => nowMs)
  t.teardown(() => {
    mock.timers.reset()
    mock.restoreAll()
  })
  /** In small steps, between which promises go on. */
  return async function pass(ms: number): Promise<void> {
    for (const endMs = nowMs + ms; nowMs < endMs; nowMs += 50) {
      await new Promise(setImmediate)
      mock.timers.tick(50)
    }
    await new Promise(setImmediate)
  }
}

t.test('a database that lets one try of fifty through is asked until it has', async (t) => {
  const pass = takeClock(t)
  let tries = 0
  const work = () => {
    tries += 1
    return tries < 50 ? away() : Promise.resolve('read')
  }
  const reading = patiently(work, new AbortController().signal)
  await pass(waitMs)
  t.equal(await reading, 'read')
  t.equal(tries, 50)
})

t.test('it is not asked for ever, nor without a pause', async (t) => {
  const pass = takeClock(t)
  let tries = 0
  const work = () => {
    tries += 1
    return away()
  }
  const refused = t.rejects(patiently(work, new AbortController().signal), { code: 'db_unavailable' })
  await pass(waitMs)
  await refused
  t.ok(tries > 50 && tries < 80, `${tries} tries`)
  await pass(waitMs)
  t.ok(tries < 80, 'that was the last one')
})

t.test('any other error is told at once, and a stop ends the pause', async (t) => {
  takeClock(t)
  const signal = new AbortController().signal
  await t.rejects(
    patiently(() => Promise.reject(new Problem('not_found')), signal),
    { code: 'not_found' },
  )
  const stop = new AbortController()
  const reason = new Error('stopped')
  const stopped = t.rejects(patiently(away, stop.signal), reason)
  await new Promise(setImmediate)
  stop.abort(reason)
  await stopped
})
