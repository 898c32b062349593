/** The catalogue of errors, docs/errors.md and the code that throws them name the same codes. */
import { globSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { catalogue, type ErrorCode } from '../src/errors.ts'

const root = join(import.meta.dirname, '..')
const codes = Object.keys(catalogue) as ErrorCode[]
const [request = '', afterwards = ''] = readFileSync(join(root, 'docs/errors.md'), 'utf8').split('\n## ')

interface DocumentedCode {
  readonly code: string
  readonly status: number
  readonly retryable: boolean
  readonly when: string
  readonly advice: string
}

function readTable(markdown: string): DocumentedCode[] {
  return rowsOf(markdown).map(([code = '', status, retryable, when = '', advice = '']) => ({
    code: code.replaceAll('`', ''),
    status: Number(status),
    retryable: retryable === 'yes',
    when,
    advice,
  }))
}

/** The cells of every row whose first cell is a code. */
function rowsOf(markdown: string): string[][] {
  return markdown
    .split('\n')
    .filter((line) => line.startsWith('| `'))
    .map((line) =>
      line
        .split('|')
        .slice(1, -1)
        .map((cell) => cell.trim()),
    )
}

t.test('docs/errors.md names every code with its status and whether a retry helps, and no other', (t) => {
  const documented = readTable(request)
  t.strictSame(
    documented.map(({ code, status, retryable }) => ({ code, status, retryable })),
    codes.map((code) => ({ code, status: catalogue[code].status, retryable: catalogue[code].retryable })),
  )
  for (const { code, when, advice } of documented) {
    t.ok(when.length > 20, `${code}: when`)
    t.ok(advice.length > 10, `${code}: what to do`)
  }
  t.end()
})

t.test('the codes that arrive in done.error are codes of the catalogue', (t) => {
  const rows = rowsOf(afterwards)
  t.ok(rows.length > 3)
  for (const [code = ''] of rows) t.ok(code.replaceAll('`', '') in catalogue, code)
  t.end()
})

t.test('the example is a problem document of the catalogue', (t) => {
  const example = JSON.parse(/```json\n([\s\S]+?)```/.exec(request)?.[1] ?? '')
  const { title, status, retryable, advice } = catalogue[example.code as ErrorCode]
  t.match(example, { title, status, retryable, detail: advice })
  t.end()
})

t.test('every code is used by the program', (t) => {
  const sources = globSync('src/**/*.ts', { cwd: root })
    .filter((path) => path !== join('src', 'errors.ts'))
    .map((path) => readFileSync(join(root, path), 'utf8'))
    .join('\n')
  t.same(
    codes.filter((code) => !isUsed(code, sources)),
    [],
  )
  t.equal(isUsed('nobody_throws_this', sources), false, 'a twin: one that is not used is found')
  t.end()
})

t.test('a twin: a table that differs is read as it is', (t) => {
  t.same(readTable('| `gone` | 410 | no | a | b |\n| head | x |\n'), [
    { code: 'gone', status: 410, retryable: false, when: 'a', advice: 'b' },
  ])
  t.end()
})

/** Thrown by its name, which may stand behind a condition. */
function isUsed(code: string, sources: string): boolean {
  return new RegExp(`new Problem\\(\\s*(?:[^)']*\\?\\s*)?'${code}'`).test(sources)
}
