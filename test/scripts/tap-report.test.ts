/** The report on a run: what counts as passed and failed, for files that end well and for those that do not. */
import t from 'tap'
import { createTapReport, readTotals, type Summary } from '../../scripts/tap-report.ts'
import type { FileResult } from '../../scripts/test-files.ts'

function read(tap: string, more: Partial<FileResult> = {}): { readonly summary: Summary; readonly said: string[] } {
  const said: string[] = []
  const report = createTapReport((line) => said.push(line))
  report.readFile({ file: 'test/a.test.ts', lines: tap.split('\n'), ended: 0, ms: 1400, left: [], ...more })
  return { summary: report.end(), said }
}

const good = `TAP version 14
# Subtest: inner
    # 5 trials, worst stall 12 ms
    ok 1 - one
    1..1
ok 1 - inner # time=4.648ms

noise that the file printed
ok 2 - another # SKIP why not
1..2
# { total: 2, pass: 1, skip: 1 }
# time=370.015ms`

const bad = `TAP version 14
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
# { total: 2, pass: 1, fail: 1 }`

t.test('a good file is one line with the figures it measured, and its skips are named', async (t) => {
  const { summary, said } = read(good)
  t.strictSame(said, ['ok    test/a.test.ts (1 passed, 1.4 s)', '      5 trials, worst stall 12 ms'])
  t.strictSame(summary, { passed: 1, failed: 0, skipped: ['test/a.test.ts: another (why not)'] })
})

t.test('a failure is shown with its diagnostics and what the file printed, a success is not', async (t) => {
  const { summary, said } = read(bad, { ended: 1 })
  const text = said.join('\n')
  t.match(summary, { passed: 1, failed: 1 })
  t.match(said[0], 'FAIL  test/a.test.ts (1 passed, 1 failed')
  for (const part of ['not ok 1 - one is two', 'compare: ===', 'noise that', 'exitCode: 1']) t.match(text, part)
  for (const part of ['of a success', 'of the suite', 'fine']) t.notMatch(text, part)
})

t.test('what tap does not count is a failure', async (t) => {
  const faults: readonly (readonly [what: string, tap: string, more: Partial<FileResult>, said: RegExp])[] = [
    ['no summary', 'TAP version 14\nok 1 - before', {}, /ended before its summary/],
    ['a bad exit code after a good summary', good, { ended: 3 }, /exitCode: 3/],
    ['the signal that ended it', 'ok 1 - before', { ended: 'SIGKILL' }, /signal: SIGKILL/],
    ['no test at all', '1..0 # SKIP no tests found\n# { total: 0, pass: 0 }', {}, /has no test/],
    ['a process that is left', good, { left: ['process 7 sleep'] }, /left behind: process 7 sleep/],
    ['a bail-out', 'ok 1 - x\nBail out! no good', { ended: 1 }, /gave the whole run up: no good/],
  ]
  for (const [what, tap, more, reason] of faults) {
    const { summary, said } = read(tap, more)
    t.equal(summary.failed, 1, what)
    t.match(said.join('\n'), reason, what)
  }
  t.match(read('ok 1 - before', { ended: 'SIGKILL' }).summary, { passed: 1, failed: 1 }, 'what it had passed counts')
})

t.test('files add up, and none at all is a failure', async (t) => {
  const report = createTapReport(() => undefined)
  const file = { file: 'x', ended: 0, ms: 1, left: [] } as const
  for (const tap of [good, bad, good]) report.readFile({ ...file, lines: tap.split('\n') })
  t.match(report.end(), { passed: 3, failed: 1 })
  t.match(createTapReport(() => undefined).end(), { passed: 0, failed: 1 })
})

t.test('a file that prints without end is cut, and says so', async (t) => {
  const noise = Array.from({ length: 600 }, (_, line) => `line ${line}`).join('\n')
  const { said } = read(`${noise}\n# { total: 1, fail: 1 }`)
  t.equal(said.length, 502)
  t.match(said.at(-1), '100 lines more')
})

t.test("tap's closing line is read whatever it leaves out", async (t) => {
  t.strictSame(readTotals('total: 18, pass: 7, fail: 7, todo: 1, skip: 3'), { pass: 7, fail: 7 })
  t.strictSame(readTotals('total: 2, pass: 2'), { pass: 2, fail: 0 })
})
