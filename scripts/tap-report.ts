/**
 * Reads the TAP of test files: says one line for each, the figures that it measured, the failures with their diagnostics,
 * and counts. tap's closing line says what passed. It does not know every failure: not a file that crashed after a good
 * assertion, an empty file, one that was ended for its time, one that never came to its closing line. Those are counted here.
 */
import type { FileResult } from './test-files.ts'

/** A failing file that prints more than this is cut; running it alone shows everything. */
const failureLinesMax = 500
/** Figures of a passing file: what its tests have measured and said with `t.comment`. */
const figureLinesMax = 60

export interface Summary {
  readonly passed: number
  readonly failed: number
  /** Path and reason of every skipped or postponed test. */
  readonly skipped: readonly string[]
}

export interface TapReport {
  /** A file has ended. */
  readFile(result: FileResult): void
  /** A test has given the whole run up. */
  readonly gaveUp: boolean
  end(): Summary
}

/** @param say prints one line of the report */
export function createTapReport(say: (line: string) => void): TapReport {
  const skipped: string[] = []
  let passed = 0
  let failed = 0
  let gaveUp = false

  return {
    readFile(result) {
      const { file, ended, ms, left } = result
      const read = readTap(result.lines)
      skipped.push(...read.skipped.map((test) => `${file}: ${test}`))
      const complaints = [
        ...(read.bailOut === undefined ? [] : [`gave the whole run up: ${read.bailOut}`]),
        ...(read.totals === undefined ? ['ended before its summary'] : []),
        ...(read.totals?.pass === 0 && read.totals.fail === 0 && read.skipped.length === 0 ? ['has no test'] : []),
        ...(ended === 0 ? [] : [typeof ended === 'number' ? `exitCode: ${ended}` : `signal: ${ended}`]),
        ...left.map((process) => `left behind: ${process}`),
      ]
      gaveUp ||= read.bailOut !== undefined
      const failures = Math.max(read.totals?.fail ?? 0, read.failed, complaints.length > 0 ? 1 : 0)
      const passes = read.totals?.pass ?? read.passed
      passed += passes
      failed += failures
      const time = `${(ms / 1000).toFixed(1)} s`
      if (failures === 0) {
        say(`ok    ${file} (${passes} passed, ${time})`)
        for (const line of read.figures) say(`      ${line}`)
        return
      }
      say(`FAIL  ${file} (${passes} passed, ${failures} failed, ${time})`)
      for (const line of read.shown) say(`      ${line}`)
      if (read.cut > 0) say(`      … ${read.cut} lines more; run this file alone to see them`)
      for (const complaint of complaints) say(`      ${complaint}`)
    },
    get gaveUp() {
      return gaveUp
    },
    end() {
      if (passed === 0 && failed === 0) {
        say('FAIL  no test ran')
        failed = 1
      }
      return { passed, failed, skipped }
    },
  }
}

interface Tap {
  readonly passed: number
  readonly failed: number
  /** Of tap's closing line; undefined when it never came. */
  readonly totals: Totals | undefined
  readonly skipped: readonly string[]
  readonly bailOut: string | undefined
  /** What belongs to failures, and what the file printed besides. */
  readonly shown: readonly string[]
  /** Lines kept from `shown` by {@link failureLinesMax}. */
  readonly cut: number
  readonly figures: readonly string[]
}

/** @param lines of one file, without their line feeds */
function readTap(lines: readonly string[]): Tap {
  const skipped: string[] = []
  const shown: string[] = []
  const figures: string[] = []
  let [passed, failed, cut] = [0, 0, 0]
  let totals: Totals | undefined
  let bailOut: string | undefined
  // The result line that a YAML diagnostic belongs to decides whether that diagnostic is shown.
  let diagnosticShown = false
  let diagnosticIndent = -1
  let lastIndent = 0

  const show = (line: string): void => {
    if (shown.length < failureLinesMax) shown.push(line)
    else cut += 1
  }

  function readResult(indent: number, ok: boolean, title: string, line: string): void {
    const isSuite = lastIndent > indent
    lastIndent = indent
    diagnosticShown = !ok && !isSuite
    const postponed = / # (SKIP|TODO)\b ?(.*)$/i.exec(line)
    if (postponed !== null) {
      // A skip without a name of its own has its reason as its title.
      skipped.push(`${title}${postponed[2] === '' ? '' : ` (${postponed[2]})`}`)
      return
    }
    if (!isSuite && ok) passed += 1
    if (!isSuite && !ok) failed += 1
    if (!ok) show(line)
  }

  for (const line of lines) {
    const text = line.trimStart()
    const indent = line.length - text.length
    if (diagnosticIndent >= 0 && indent >= diagnosticIndent) {
      if (text === '...' && indent === diagnosticIndent) diagnosticIndent = -1
      if (diagnosticShown) show(line)
      continue
    }
    diagnosticIndent = -1
    const closing = /^# \{ (.+) \}$/.exec(line)
    const bail = /^Bail out!\s*(.*)$/.exec(line)
    const result = /^(not )?ok\b(?: \d+)?(?: - )?(.*?)(?: # .*)?$/.exec(text)
    if (text === '---') diagnosticIndent = indent
    else if (closing?.[1] !== undefined) totals = readTotals(closing[1])
    else if (bail !== null) bailOut ??= bail[1] ?? ''
    else if (result !== null) readResult(indent, result[1] === undefined, result[2] ?? '', line)
    else if (text !== '' && !/^(TAP version|1\.\.\d|pragma |# (Subtest: |time=))/.test(text)) {
      show(line)
      if (text.startsWith('# ') && figures.length < figureLinesMax) figures.push(text.slice(2))
    }
  }
  return { passed, failed, totals, skipped, bailOut, shown, cut, figures }
}

interface Totals {
  readonly pass: number
  readonly fail: number
}

/** tap's closing line, without its braces: `total: 18, pass: 7, fail: 7, todo: 1, skip: 3`; absent means none. */
export function readTotals(inside: string): Totals {
  const numbers = new Map(
    inside.split(',').map((pair) => {
      const [name = '', value] = pair.split(':')
      return [name.trim(), Number(value)] as const
    }),
  )
  const of = (name: string): number => numbers.get(name) ?? 0
  return { pass: of('pass'), fail: of('fail') }
}
