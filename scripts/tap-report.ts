/**
 * Reads the raw TAP of a whole run, line by line: says one line for each test file, the figures that it measured, the
 * failures with their diagnostics, and counts. tap's closing line says what passed. It does not know every failure: not a file that
 * crashed after a good assertion, an empty file, a bail-out, a run that never reached its end. Those are counted here.
 */

/** A failing file that prints more than this is cut; running it alone shows everything. */
const failureLinesMax = 500
/** Figures of a passing file: what its tests have measured and said with `t.comment`. */
const figureLinesMax = 60

export interface Summary {
  readonly passed: number
  readonly failed: number
  /** The files that came to a result. tap drops files when others time out: their results fill the plan. */
  readonly files: readonly string[]
  readonly gaveUp: boolean
  /** Path and reason of every skipped or postponed test. */
  readonly skipped: readonly string[]
}

export interface TapReport {
  /** @param line one line of the raw TAP, without its line feed */
  readLine(line: string): void
  /** After the last line. @param exitCode what tap ended with */
  end(exitCode: number): Summary
}

interface FileBlock {
  readonly name: string
  passed: number
  failed: number
  readonly shown: string[]
  readonly figures: string[]
  /** Lines kept from showing by failureLinesMax. */
  cut: number
}

/** @param say prints one line of the report */
export function createTapReport(say: (line: string) => void): TapReport {
  const skipped: string[] = []
  const files: string[] = []
  let totals: { readonly pass: number; readonly fail: number } | undefined
  let failures = 0
  let bailed = false
  let block = emptyBlock('')
  // The result line that a YAML diagnostic belongs to decides whether that diagnostic is shown.
  let diagnosticShown = false
  let diagnosticIndent = -1
  let lastIndent = 0

  const show = (line: string): void => {
    if (block.shown.length < failureLinesMax) block.shown.push(line)
    else block.cut += 1
  }

  const endFile = (ok: boolean, name: string, rest: string): void => {
    files.push(name)
    const seconds = / # time=([\d.]+)ms/.exec(rest)?.[1]
    const time = seconds === undefined ? '' : `, ${(Number(seconds) / 1000).toFixed(1)} s`
    if (ok && / # SKIP no tests found/i.test(rest)) {
      failures += 1
      say(`FAIL  ${name} (the file has no test)`)
    } else if (ok) {
      say(`ok    ${name} (${block.passed} passed${time})`)
      for (const line of block.figures) say(`      ${line}`)
    } else {
      failures += Math.max(block.failed, 1)
      say(`FAIL  ${name} (${block.passed} passed, ${Math.max(block.failed, 1)} failed${time})`)
      for (const line of block.shown) say(`      ${line}`)
      if (block.cut > 0) say(`      … ${block.cut} lines more; run this file alone to see them`)
    }
  }

  const readResult = (indent: number, ok: boolean, title: string, line: string): void => {
    const isSuite = lastIndent > indent
    lastIndent = indent
    diagnosticShown = !ok && !isSuite
    if (indent === 0) {
      endFile(ok, block.name === '' ? title : block.name, line)
      // tap says of a file that ended badly only here whether a signal or an exit code ended it.
      diagnosticShown = !ok
      block = emptyBlock('')
      return
    }
    const postponed = / # (SKIP|TODO)\b ?(.*)$/i.exec(line)
    if (postponed !== null) {
      // A skip without a name of its own has its reason as its title.
      skipped.push(`${block.name}: ${title}${postponed[2] === '' ? '' : ` (${postponed[2]})`}`)
      return
    }
    if (!isSuite && ok) block.passed += 1
    if (!isSuite && !ok) block.failed += 1
    if (!ok) show(line.slice(4))
  }

  const readDiagnostic = (indent: number, text: string, line: string): void => {
    if (text === '...' && indent === diagnosticIndent) diagnosticIndent = -1
    if (!diagnosticShown) return
    if (block.name !== '') show(line.slice(4))
    else if (/^(exitCode: (?!null|0)|signal: (?!null)|expired:)/.test(text)) say(`      ${text}`)
  }

  return {
    readLine(line) {
      const text = line.trimStart()
      const indent = line.length - text.length
      if (diagnosticIndent >= 0 && indent >= diagnosticIndent) return readDiagnostic(indent, text, line)
      diagnosticIndent = -1
      if (text === '---') {
        diagnosticIndent = indent
        return
      }
      const bail = /^Bail out!\s*(.*)$/.exec(line)
      if (bail !== null) {
        // tap repeats it for the file and for the run.
        if (!bailed) say(`FAIL  ${block.name} gave the whole run up: ${bail[1]}`)
        if (!bailed) failures += 1
        bailed = true
        return
      }
      const closing = /^# \{ (.+) \}$/.exec(line)
      if (closing?.[1] !== undefined) {
        totals = readTotals(closing[1])
        return
      }
      const file = /^# Subtest: (.+)$/.exec(line)
      if (file?.[1] !== undefined) {
        block = emptyBlock(file[1])
        return
      }
      const result = /^(not )?ok\b(?: \d+)?(?: - )?(.*?)(?: # .*)?$/.exec(text)
      if (result !== null) return readResult(indent, result[1] === undefined, result[2] ?? '', line)
      const isFrame = text === '' || /^(TAP version|1\.\.\d|pragma |# (Subtest: |time=|No coverage))/.test(text)
      if (isFrame || indent === 0) return
      show(line.slice(4))
      if (text.startsWith('# ') && block.figures.length < figureLinesMax) block.figures.push(text.slice(2))
    },

    end(exitCode) {
      const passed = totals?.pass ?? 0
      let failed = Math.max(totals?.fail ?? 0, failures)
      if (totals === undefined) {
        say('FAIL  tap ended before its summary')
        failed += 1
      } else if (exitCode !== 0 && failed === 0) {
        say(`FAIL  tap ended with ${exitCode}`)
        failed = 1
      } else if (passed === 0 && failed === 0) {
        say('FAIL  no test ran')
        failed = 1
      }
      return { passed, failed, files, gaveUp: bailed, skipped }
    },
  }
}

function emptyBlock(name: string): FileBlock {
  return { name, passed: 0, failed: 0, shown: [], figures: [], cut: 0 }
}

/** tap's closing line, without its braces: `total: 18, pass: 7, fail: 7, todo: 1, skip: 3`; absent means none. */
export function readTotals(inside: string): { readonly pass: number; readonly fail: number } {
  const numbers = new Map(
    inside.split(',').map((pair) => {
      const [name = '', value] = pair.split(':')
      return [name.trim(), Number(value)] as const
    }),
  )
  const of = (name: string): number => numbers.get(name) ?? 0
  return { pass: of('pass'), fail: of('fail') }
}
