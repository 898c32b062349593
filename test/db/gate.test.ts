/**
 * The gate in front of a driver that has no bounds: places, line, deadlines, second tries, and what its errors become.
 * Time is the test's.
 */
import { mock } from 'node:test'
import t, { type Test } from 'tap'
import { createGate, DbError, type GateOptions } from '../../src/db/db.ts'
import { Problem } from '../../src/errors.ts'

const deadlineMs = 5000

function start(t: Test, options: Partial<GateOptions> = {}) {
  mock.timers.enable({ apis: ['setTimeout'] })
  t.teardown(() => mock.timers.reset())
  let deadlines = 0
  const gate = createGate({ size: 2, waitersMax: 3, deadlineMs, onDeadline: () => (deadlines += 1), ...options })
  return { gate, deadlines: () => deadlines }
}

const held = () => Promise.withResolvers<string>()
const turn = () => new Promise((resolve) => setImmediate(resolve))

t.test('as many statements at once as there are places, the others in the order they came', async (t) => {
  const { gate } = start(t)
  const started: number[] = []
  const ends = Array.from({ length: 5 }, held)
  const all = ends.map((end, index) =>
    gate.pass(() => {
      started.push(index)
      return end.promise
    }),
  )
  await turn()
  t.same(started, [0, 1])
  ends[1]?.resolve('b')
  t.equal(await all[1], 'b')
  await turn()
  t.same(started, [0, 1, 2])
  for (const end of ends) end.resolve('')
  await Promise.all(all)
  t.same(started, [0, 1, 2, 3, 4])
})

t.test('a place is given on when a statement fails, too', async (t) => {
  const { gate } = start(t, { size: 1 })
  for (let round = 0; round < 5; round += 1) {
    await t.rejects(
      gate.pass(() => {
        throw new Error('at once')
      }),
    )
    await t.rejects(gate.pass(() => Promise.reject(new Error('later'))))
  }
  t.equal(await gate.pass(async () => 'here'), 'here')
})

t.test('who comes when the line is full is refused at once', async (t) => {
  const { gate } = start(t, { size: 1, waitersMax: 2 })
  const end = held()
  const all = [1, 2, 3].map(() => gate.pass(() => end.promise))
  await t.rejects(
    gate.pass(async () => t.fail('it never runs')),
    { code: 'db_unavailable', retryAfterSeconds: 2 },
  )
  end.resolve('x')
  t.same(await Promise.all(all), ['x', 'x', 'x'])
})

t.test('a statement that does not answer fails at its deadline, and the adapter is told', async (t) => {
  const { gate, deadlines } = start(t, { size: 1 })
  const end = held()
  const refused = t.rejects(
    gate.pass(() => end.promise),
    { code: 'db_unavailable' },
  )
  await turn()
  mock.timers.tick(deadlineMs - 1)
  await turn()
  t.equal(deadlines(), 0)
  mock.timers.tick(1)
  await refused
  t.equal(deadlines(), 1)
  t.equal(await gate.pass(async () => 'next'), 'next', 'its place is free')
  end.reject(new Error('too late')) // nobody waits for it: it must not end the process
  await turn()
})

t.test('who waits too long in line is refused, and leaves it', async (t) => {
  const { gate, deadlines } = start(t, { size: 0, waitersMax: 1 })
  for (let round = 0; round < 2; round += 1) {
    const refused = t.rejects(
      gate.pass(async () => t.fail('it never runs')),
      { code: 'db_unavailable', message: 'The database was busy for too long.' },
    )
    await turn()
    mock.timers.tick(deadlineMs - 1)
    await t.rejects(
      gate.pass(async () => t.fail('it never runs')),
      { message: 'Too many statements wait for the database.' },
    )
    mock.timers.tick(1)
    await refused
  }
  t.equal(deadlines(), 0, 'waiting renews nothing')
})

t.test('statements of runs go before those of requests, whoever came first', async (t) => {
  const { gate } = start(t, { size: 1 })
  const started: string[] = []
  const first = held()
  const pass = (name: string, lane: 'requests' | 'runs') =>
    gate.pass(async () => {
      started.push(name)
      if (name === 'first') await first.promise
    }, lane)
  const all = [
    pass('first', 'requests'),
    pass('a request', 'requests'),
    pass('another', 'requests'),
    pass('a run', 'runs'),
    pass('another run', 'runs'),
  ]
  await turn()
  first.resolve('')
  await Promise.all(all)
  t.same(started, ['first', 'a run', 'another run', 'a request', 'another'])
})

t.test(
  'a line that is full of requests refuses no run, and a place that is kept for runs takes no request',
  async (t) => {
    const { gate } = start(t, { size: 2, keptForRuns: 1, waitersMax: 1 })
    const end = held()
    let started = 0
    const request = () =>
      gate.pass(() => {
        started += 1
        return end.promise
      })
    const all = [request(), request()]
    await turn()
    t.equal(started, 1)
    await t.rejects(request(), { message: 'Too many statements wait for the database.' })
    for (let n = 0; n < 3; n += 1) t.equal(await gate.pass(async () => 'at once', 'runs'), 'at once')
    const run = held()
    const hanging = gate.pass(() => run.promise, 'runs')
    const waiting = gate.pass(async () => 'in line', 'runs')
    await turn()
    run.resolve('')
    t.same(await Promise.all([hanging, waiting]), ['', 'in line'])
    t.equal(started, 1, 'still none of the requests that wait')
    end.resolve('x')
    t.same(await Promise.all(all), ['x', 'x'])
  },
)

t.test('a request waits no longer than its own limit, and a run as long as a statement may take', async (t) => {
  const { gate } = start(t, { size: 0, requestWaitMs: 1000 })
  let refusals = 0
  const counted = (lane: 'requests' | 'runs') =>
    gate
      .pass(async () => t.fail('it never runs'), lane)
      .catch(({ code }) => {
        t.equal(code, 'db_unavailable')
        refusals += 1
      })
  const all = [counted('requests'), counted('runs')]
  await turn()
  mock.timers.tick(999)
  await turn()
  t.equal(refusals, 0)
  mock.timers.tick(1)
  await turn()
  t.equal(refusals, 1)
  mock.timers.tick(deadlineMs - 1001)
  await turn()
  t.equal(refusals, 1)
  mock.timers.tick(1)
  await Promise.all(all)
  t.equal(refusals, 2)
})

t.test('a statement that was undone for a reason that passes is run again, three times in all', async (t) => {
  const { gate } = start(t)
  for (const code of ['40001', '40P01']) {
    for (const [failures, runs] of [
      [1, 2],
      [2, 3],
      [9, 3],
    ] as const) {
      let count = 0
      const passed = gate.pass(async () => {
        count += 1
        if (count <= failures) throw Object.assign(new Error('undone'), { code })
        return count
      })
      if (failures < 3) t.equal(await passed, runs)
      else await t.rejects(passed, { message: `SQLSTATE ${code}` })
      t.equal(count, runs)
    }
  }
})

t.test('no other failure is run again: its outcome may be unknown', async (t) => {
  const { gate } = start(t)
  for (const code of ['23505', '57P01', '57014', '08006', 'CONNECTION_CLOSED', 'ECONNRESET', '22P02', 'XX000']) {
    let count = 0
    await t.rejects(
      gate.pass(async () => {
        count += 1
        throw Object.assign(new Error('no'), { code })
      }),
    )
    t.equal(count, 1, code)
  }
})

async function errorOf(t: Test, thrown: unknown): Promise<unknown> {
  const { gate } = start(t)
  try {
    return await gate.pass(() => Promise.reject(thrown))
  } catch (error) {
    return error
  } finally {
    mock.timers.reset()
  }
}

t.test('what the database says about a statement keeps its state and constraint, and none of its words', async (t) => {
  const driver = Object.assign(new Error('duplicate key: (secret)'), { code: '23505', constraint_name: 'one_key' })
  const wrapped = new Error('Failed query: insert secret', { cause: driver })
  for (const thrown of [driver, wrapped, new Error('outer', { cause: wrapped })]) {
    const error = await errorOf(t, thrown)
    t.ok(error instanceof DbError)
    t.match(error, { sqlstate: '23505', constraint: 'one_key', message: 'SQLSTATE 23505 (one_key)' })
    t.notOk(JSON.stringify(error).includes('secret'))
    t.notOk(Object.keys(error as object).includes('cause'))
  }
  t.match(
    await errorOf(t, Object.assign(new Error(), { code: '23514', constraint: 'c' })),
    { constraint: 'c' },
    'PGlite',
  )
})

t.test('a database that cannot be asked is db_unavailable', async (t) => {
  const codes = ['08000', '08006', '53300', '57P01', '57P03', '57014', '25006', 'XX000', 'CONNECTION_CLOSED']
  for (const code of [
    ...codes,
    'CONNECT_TIMEOUT',
    'ECONNREFUSED',
    'ECONNRESET',
    'EPIPE',
    'ENOTFOUND',
    'ERR_STREAM_DESTROYED',
  ]) {
    const error = await errorOf(t, new Error('Failed query', { cause: Object.assign(new Error('x'), { code }) }))
    t.ok(error instanceof Problem, code)
    t.match(error, { code: 'db_unavailable', status: 503, retryable: true, retryAfterSeconds: 2 }, code)
  }
})

t.test('what is neither comes through as it is', async (t) => {
  const bug = new TypeError('a bug')
  t.equal(await errorOf(t, bug), bug)
  t.equal(await errorOf(t, 'a string'), 'a string')
  const problem = new Problem('not_found')
  t.equal(await errorOf(t, problem), problem)
  const system = Object.assign(new Error('EPERM: no'), { code: 'EPERM' })
  t.equal(await errorOf(t, system), system, 'a system error of five letters is no SQLSTATE')
  const quoted = Object.assign(new Error('Failed query: … params: secret', { cause: bug }), { params: ['secret'] })
  t.equal(await errorOf(t, quoted), bug, 'but not with the words that were its parameters')
})
