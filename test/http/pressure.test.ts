/** When a process counts as too late for another reply, and when not. Time is the test's. */
import t from 'tap'
import { Problem } from '../../src/errors.ts'
import { createPressure, tickMs } from '../../src/http/pressure.ts'

function start(lateMsMax = 100) {
  let clock = 1000
  let tick: (() => void) | undefined
  const lines: Record<string, unknown>[] = []
  let refused = 0
  let isClosed = false
  const pressure = createPressure({
    lateMsMax,
    logger: {
      warn: (line: Record<string, unknown>) => void lines.push({ level: 'warn', ...line }),
      info: (line: Record<string, unknown>) => void lines.push({ level: 'info', ...line }),
    } as never,
    onRefused: () => {
      refused += 1
    },
    now: () => clock,
    every: (_ms, run) => {
      tick = run
      return () => {
        isClosed = true
      }
    },
  })
  /** Turns of the event loop, each so long. A tick is due after its time, and comes when the turn is over. */
  function turn(ms: number, times = 1): void {
    for (let n = 0; n < times; n += 1) {
      clock += Math.max(ms, tickMs)
      tick?.()
    }
  }
  /** @returns how long it took */
  function turnUntil(isHigh: boolean, ms: number): number {
    const from = clock
    while (pressure.isHigh !== isHigh && clock - from < 60_000) turn(ms)
    return clock - from
  }
  return { pressure, turn, turnUntil, lines, refused: () => refused, isClosed: () => isClosed }
}

t.test('one pause refuses nobody, however long it was and whatever has piled up behind it', async (t) => {
  for (const pauseMs of [200, 1000, 10_000, 24 * 3600_000]) {
    const { pressure, turn } = start()
    turn(20, 50)
    for (const ms of [pauseMs, 600, 100, 40]) {
      turn(ms)
      t.notOk(pressure.isHigh, `${ms} ms of a pause of ${pauseMs} ms`)
    }
  }
  const twin = start()
  twin.turn(600, 4)
  t.ok(twin.pressure.isHigh, 'a twin: several of them in a row do')
})

t.test('who is busy and on time refuses nobody', async (t) => {
  const { pressure, turn } = start()
  turn(100, 500)
  t.notOk(pressure.isHigh)
  t.match(Math.round(pressure.lateMs), 80)
})

t.test('lateness that stays refuses within seconds, the sooner the worse it is, and ends by itself', async (t) => {
  const slightly = start()
  const slightlyMs = slightly.turnUntil(true, 140)
  t.ok(slightlyMs > 2000 && slightlyMs < 5000, `${slightlyMs} ms at turns of 140 ms`)
  const badly = start()
  const badlyMs = badly.turnUntil(true, 420)
  t.ok(badlyMs > 400 && badlyMs < 1500, `${badlyMs} ms at turns of 420 ms`)
  const calmMs = badly.turnUntil(false, 20)
  t.ok(calmMs > 500 && calmMs < 3000, `ends after ${calmMs} ms`)
})

t.test('lateness around the bound begins it once and does not end it; two lines tell of it', async (t) => {
  const { pressure, turn, turnUntil, lines, refused } = start()
  turnUntil(true, 140)
  for (let n = 0; n < 50; n += 1) {
    turn(140)
    turn(100, 5)
  }
  t.ok(pressure.isHigh)
  t.type(pressure.degraded, 'string')
  t.equal(lines.length, 1)
  for (let n = 0; n < 3; n += 1) t.throws(() => pressure.refuseWhenHigh(), { code: 'overloaded' })
  turnUntil(false, 20)
  t.doesNotThrow(() => pressure.refuseWhenHigh())
  t.equal(pressure.degraded, undefined)
  t.match(lines, [
    { level: 'warn', late_ms: Number },
    { level: 'info', refused: 3, lasted_ms: Number },
  ])
  t.equal(refused(), 3)
})

t.test('those that are refused together are not told to come back together', async (t) => {
  const { pressure, turnUntil } = start()
  turnUntil(true, 400)
  const seconds = new Set<number | undefined>()
  for (let n = 0; n < 200; n += 1) {
    try {
      pressure.refuseWhenHigh()
    } catch (error) {
      seconds.add(error instanceof Problem ? error.retryAfterSeconds : undefined)
    }
  }
  t.same([...seconds].sort(), [2, 3, 4, 5])
})

t.test('with a bound of 0 nobody is refused, and the lateness is still known', async (t) => {
  const { pressure, turn, lines, isClosed } = start(0)
  turn(1000, 50)
  t.notOk(pressure.isHigh)
  t.doesNotThrow(() => pressure.refuseWhenHigh())
  t.ok(pressure.lateMs > 900)
  t.same(lines, [])
  pressure.close()
  t.ok(isClosed())
})
