/** The test command itself, run on small files: its last line and its exit code tell the truth. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { text } from 'node:stream/consumers'
import t from 'tap'
import { isBrowserTest, isLoadTest, select } from '../../scripts/test.ts'
import { runTestFiles } from '../../scripts/test-files.ts'

const root = join(import.meta.dirname, '..', '..')
const command = join(root, 'scripts', 'test.ts')

interface Result {
  readonly code: number
  readonly output: string
  readonly lastLine: string
}

async function runCommand(
  files: Readonly<Record<string, string>>,
  options: readonly string[] = [],
  interruptAt?: string,
): Promise<Result> {
  // Inside the project, so that the files find tap; the name keeps them out of the glob of the whole suite.
  const folder = join(root, '.tap', 'command', `${process.pid}-${Object.keys(files).join('-')}`)
  mkdirSync(folder, { recursive: true })
  try {
    const paths = Object.entries(files).map(([name, source]) => {
      const path = join(folder, `${name}.ts`)
      writeFileSync(path, `import t from 'tap'\n${source}\n`)
      return relative(root, path)
    })
    const child = spawn(process.execPath, [command, ...options, ...paths], {
      cwd: root,
      env: { ...process.env, TEST_EMBEDDED_ONLY: '1' },
      stdio: ['ignore', 'pipe', 'ignore'],
    })
    let seen = ''
    child.stdout.on('data', (chunk: Buffer) => {
      const before = seen
      seen += chunk
      if (interruptAt !== undefined && seen.includes(interruptAt) && !before.includes(interruptAt)) child.kill('SIGINT')
    })
    const [output, [code]] = await Promise.all([text(child.stdout), once(child, 'exit')])
    return { code, output, lastLine: output.trimEnd().split('\n').at(-1) ?? '' }
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

t.test('a run without failures ends with its sum and 0', async (t) => {
  const { code, lastLine } = await runCommand({ good: `t.test('two', async (t) => { t.ok(1); t.ok(1) })` })
  t.equal(lastLine, '2 passed, 0 failed')
  t.equal(code, 0)
})

t.test('a failed assertion, a crash and an empty file each count', async (t) => {
  const { code, lastLine, output } = await runCommand({
    bad: `t.equal(1, 2, 'one is two')`,
    crash: `t.pass('before'); process.kill(process.pid, 'SIGKILL')`,
    empty: '',
  })
  t.equal(lastLine, '1 passed, 3 failed')
  t.equal(code, 1)
  t.match(output, 'one is two')
  t.match(output, 'signal: SIGKILL')
})

t.test('a file that takes too long fails, and no other file is lost', async (t) => {
  const hang = `t.test('never', () => new Promise(() => setInterval(() => undefined, 1000)))`
  const { code, output } = await runCommand({ a: hang, b: hang, c: `t.pass('c')`, d: `t.pass('d')` }, [
    '--timeout=10',
    '--jobs=2',
  ])
  t.equal(code, 1)
  t.match(output, /ok {4}.*\/c\.ts \(1 passed/)
  t.match(output, /ok {4}.*\/d\.ts \(1 passed/)
})

t.test(
  'a process that outlives its test is ended, named and counted',
  { skip: process.platform !== 'linux' },
  async (t) => {
    const { code, output, lastLine } = await runCommand({
      leak: `import { spawn } from 'node:child_process'
      spawn(process.execPath, ['-e', 'setTimeout(() => {}, 60000)'], { detached: true, stdio: 'ignore' }).unref()
      t.pass('it looks good')`,
    })
    t.equal(lastLine, '1 passed, 1 failed')
    t.equal(code, 1)
    const pid = /left behind: process (\d+) /.exec(output)?.[1]
    t.ok(pid)
    // Gone, or a zombie where nobody waits for orphans.
    const state = existsSync(`/proc/${pid}`) ? readFileSync(`/proc/${pid}/stat`, 'utf8') : '(gone) Z'
    t.match(state, /\) [ZX]/)
  },
)

t.test('an interrupted run ends its tests, and is a failure', async (t) => {
  const hang = `t.test('never', () => new Promise(() => setInterval(() => undefined, 1000)))`
  const { code, output, lastLine } = await runCommand({ hang }, [], 'run       ')
  t.match(output, 'SIGINT: ending the run')
  t.match(lastLine, /^0 passed, [1-9]\d* failed$/)
  t.equal(code, 1)
  t.notMatch(output, 'left behind')
})

t.test('a pattern that finds nothing is a failure', async (t) => {
  const { code, lastLine, output } = await runCommand({}, ['test/no-such.test.ts'])
  t.match(output, 'No test file matches test/no-such.test.ts')
  t.equal(lastLine, '0 passed, 1 failed')
  t.equal(code, 1)
})

t.test('arguments are files and options; without files it is the whole suite', async (t) => {
  const find = (pattern: string): readonly string[] =>
    pattern.includes('*') ? ['test/b.test.ts', 'test/browser/page.test.ts', 'test/a.test.ts'] : [pattern]
  t.strictSame(select(['--jobs=2', '--timeout=30', 'test/log.test.ts'], false, find), {
    files: ['test/log.test.ts'],
    leftOut: [],
    jobs: 2,
    timeoutSeconds: 30,
  })
  t.strictSame(select([], true, find), {
    files: ['test/a.test.ts', 'test/b.test.ts'],
    leftOut: ['test/browser/page.test.ts'],
    jobs: undefined,
    timeoutSeconds: undefined,
  })
  for (const option of ['--jobs=0', '--timeout', '--grep=x']) {
    t.throws(() => select([option], false, find), /is no option/, option)
  }
  t.ok(isBrowserTest('test/browser/page.test.ts'))
  t.ok(isBrowserTest('test/clients/use-chat.test.ts'))
  t.notOk(isBrowserTest('test/clients/openai-chat.test.ts'))
  t.notOk(isBrowserTest('test/http/page.test.ts'))
  t.ok(isLoadTest('test/faults/storm-replaced.test.ts'))
  t.notOk(isLoadTest('test/faults/shutdown.test.ts'))
})

t.test('a file that needs the whole machine runs when all others have ended', async (t) => {
  const folder = t.testdir({
    'alone.js': `console.log(Date.now())`,
    'first.js': `setTimeout(() => console.log(Date.now()), 200)`,
    'second.js': `setTimeout(() => console.log(Date.now()), 300)`,
  })
  const at = new Map<string, number>()
  await runTestFiles(
    ['alone.js', 'first.js', 'second.js'],
    {
      cwd: folder,
      env: process.env,
      flags: [],
      jobs: 3,
      isAlone: (file) => file === 'alone.js',
      timeoutMs: 10_000,
      onResult: ({ file, lines }) => void at.set(file, Number(lines[0])),
      isOver: () => false,
    },
    new AbortController().signal,
  )
  t.ok(at.get('alone.js')! > Math.max(at.get('first.js')!, at.get('second.js')!), 'it began behind them')
})
