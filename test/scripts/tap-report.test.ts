/** The report on a run: what counts as passed and failed, for runs that end well and for those that do not. */
import t from 'tap'
import { createTapReport, readTotals, type Summary } from '../../scripts/tap-report.ts'

function read(tap: string, exitCode: number): { readonly summary: Summary; readonly said: readonly string[] } {
  const said: string[] = []
  const report = createTapReport((line) => said.push(line))
  for (const line of tap.split('\n')) report.readLine(line)
  return { summary: report.end(exitCode), said }
}

const good = `TAP version 14
1..1
# Subtest: test/a.test.ts
    # Subtest: inner
        # 5 trials, worst stall 12 ms
        ok 1 - one
        1..1
    ok 1 - inner # time=4.648ms
    
    noise that the file printed
    ok 2 - another # SKIP why not
    1..2
    # time=14.074ms
ok 1 - test/a.test.ts # time=1400.074ms

# { total: 2, pass: 1, skip: 1 }
# time=370.015ms`

const bad = `TAP version 14
1..1
# Subtest: test/b.test.ts
    noise that the file printed
    # Subtest: inner
        not ok 1 - one is two
          ---
          compare: ===
          at:
            fileName: test/b.test.ts
          ...
        
        ok 2 - fine
          ---
          diagnostic: of a success
          ...
        1..2
    not ok 1 - inner # time=15.74ms
      ---
      source: of the suite
      ...
    
    1..1
not ok 1 - test/b.test.ts # time=22.06ms
  ---
  command: /somewhere/node
  exitCode: 1
  signal: null
  ...

# { total: 2, pass: 1, fail: 1 }`

t.test('a good run is one line for a file with the figures it measured, and its skips are named', async (t) => {
  const { summary, said } = read(good, 0)
  t.strictSame(said, ['ok    test/a.test.ts (1 passed, 1.4 s)', '      5 trials, worst stall 12 ms'])
  t.match(summary, { passed: 1, failed: 0, files: ['test/a.test.ts'] })
  t.strictSame(summary.skipped, ['test/a.test.ts: another (why not)'])
})

t.test('a failure is shown with its diagnostics and what the file printed, a success is not', async (t) => {
  const { summary, said } = read(bad, 1)
  const text = said.join('\n')
  t.match(summary, { passed: 1, failed: 1, files: ['test/b.test.ts'] })
  t.match(said[0], 'FAIL  test/b.test.ts (1 passed, 1 failed')
  for (const part of ['not ok 1 - one is two', 'compare: ===', 'noise that', 'exitCode: 1']) t.match(text, part)
  for (const part of ['of a success', 'of the suite', '/somewhere/node', 'fine']) t.notMatch(text, part)
})

t.test('what tap does not count is a failure', async (t) => {
  t.equal(read('TAP version 14\n1..1', 1).summary.failed, 1, 'a run without a summary')
  t.equal(read(good, 3).summary.failed, 1, 'a bad exit code after a good summary')
  t.equal(read('# { total: 0, pass: 0 }', 0).summary.failed, 1, 'no test at all')
  const empty = 'ok 1 - test/c.test.ts # SKIP no tests found\n# { total: 1, pass: 0, skip: 1 }'
  t.equal(read(empty, 0).summary.failed, 1, 'a file without a test')
  const crashed = `# Subtest: test/e.test.ts
    ok 1 - before
not ok 1 - test/e.test.ts
# { total: 1, pass: 1 }`
  t.match(read(crashed, 1).summary, { passed: 1, failed: 1 }, 'a crash after a good assertion')
  const bailed = read('Bail out! no good\nBail out! no good\n# { total: 1, pass: 1 }', 1).summary
  t.match(bailed, { failed: 1, gaveUp: true }, 'a bail-out, which tap prints twice')
})

t.test('a file that prints without end is cut, and says so', async (t) => {
  const noise = Array.from({ length: 600 }, (_, line) => `    line ${line}`).join('\n')
  const { said } = read(`# Subtest: test/d.test.ts\n${noise}\nnot ok 1 - test/d.test.ts\n# { total: 1, fail: 1 }`, 1)
  t.equal(said.length, 502)
  t.match(said.at(-1), '100 lines more')
})

t.test("tap's closing line is read whatever it leaves out", async (t) => {
  t.strictSame(readTotals('total: 18, pass: 7, fail: 7, todo: 1, skip: 3'), { pass: 7, fail: 7 })
  t.strictSame(readTotals('total: 2, pass: 2'), { pass: 2, fail: 0 })
})
