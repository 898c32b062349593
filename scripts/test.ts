/**
 * `npm test [-- <files or tap options as --name=value>]`: finds or starts Postgres, Redis and Chromium, runs the test
 * files with tap, removes everything the run made, and ends with the line `N passed, N failed`. A test that leaves a
 * database, a key or a process behind has failed. Nothing is skipped silently: TEST_EMBEDDED_ONLY=1 runs without
 * Postgres and Redis, TEST_WITHOUT_BROWSER=1 without the browser tests, and both are said.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { globSync, mkdtempSync, rmSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join, relative, resolve, sep } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { deleteKeys, dropDatabases, endProcesses } from './leftovers.ts'
import { type Prepared, prepareDatabases } from './prepared.ts'
import { ServicesError } from './servers.ts'
import { findInstalled, type Need, openServices, type Services } from './services.ts'
import { createTapReport, type Summary } from './tap-report.ts'

/** Longest duration of one test file; `--timeout=<seconds>` changes it. */
const fileTimeoutSeconds = 120
/** Longest duration of all test files together; a process that a test left behind can keep tap waiting. */
const runMs = 900_000
/** Time that tap gets to end its files after SIGTERM. */
const tapEndMs = 5_000
/** Time for the last lines of tap to arrive after its exit. */
const lastLinesMs = 1_000
/** More files at once than this make timing tests unreliable without making the run shorter. */
const jobsMax = 4
/**
 * Files at once beyond the processors: tests of faults mostly wait, for leases and limits. On two processors the whole run
 * takes 573 s with one more (82 % busy) and 506 s with two (97 %).
 */
const jobsMore = 2
/** Room for what is new: in MB. */
const youngSpace = ['--min-semi-space-size=64', '--max-semi-space-size=64'] as const
/** Fewer test files than this are done sooner than it pays to prepare databases for them. */
const preparedFilesMin = 10
const root = join(import.meta.dirname, '..')

const say = (line: string): void => {
  process.stdout.write(`${line}\n`)
}

/** Test files and options for tap. */
export interface Selection {
  readonly files: readonly string[]
  readonly options: readonly string[]
  /** Browser tests that TEST_WITHOUT_BROWSER leaves out. */
  readonly leftOut: readonly string[]
}

/**
 * @param find expands a pattern to paths relative to the project
 * @throws ServicesError when a pattern finds nothing: a run of nothing must not look like a success
 */
export function select(
  args: readonly string[],
  withoutBrowser: boolean,
  find: (pattern: string) => readonly string[],
): Selection {
  const options = args.filter((arg) => arg.startsWith('-'))
  const patterns = args.filter((arg) => !arg.startsWith('-'))
  const found = (patterns.length === 0 ? ['test/**/*.test.ts'] : patterns).flatMap((pattern) => {
    const files = find(pattern)
    if (files.length === 0) throw new ServicesError(`No test file matches ${pattern}`)
    return files
  })
  const all = [...new Set(found)].toSorted()
  const leftOut = withoutBrowser ? all.filter(isBrowserTest) : []
  return { files: all.filter((file) => !leftOut.includes(file)), options, leftOut }
}

export const isBrowserTest = (file: string): boolean => file.split(sep).join('/').includes('test/browser/')

async function main(): Promise<number> {
  const interrupt = new AbortController()
  const stop = (name: NodeJS.Signals): void => {
    // The second signal does not wait: the exit handler below kills what is left.
    if (interrupt.signal.aborted) process.exit(1)
    say(`${name}: ending the run`)
    interrupt.abort(new ServicesError(`The run was ended by ${name}`))
  }
  process.on('SIGINT', stop).on('SIGTERM', stop).on('SIGHUP', stop)

  const embeddedOnly = process.env.TEST_EMBEDDED_ONLY === '1'
  const selection = select(process.argv.slice(2), process.env.TEST_WITHOUT_BROWSER === '1', (pattern) =>
    globSync(pattern, { cwd: root }).map((file) => relative(root, resolve(root, file))),
  )
  if (embeddedOnly) say('TEST_EMBEDDED_ONLY=1: nothing runs on Postgres and Redis')
  if (selection.leftOut.length > 0) say(`TEST_WITHOUT_BROWSER=1: without ${selection.leftOut.join(', ')}`)
  const needs: Need[] = [
    ...(embeddedOnly ? [] : (['postgres', 'redis'] as const)),
    ...(selection.files.some(isBrowserTest) ? (['chromium'] as const) : []),
  ]

  const services = await openServices(process.env, needs, say, interrupt.signal)
  const killServers = (): void => {
    for (const server of services.servers) server.kill()
  }
  process.on('exit', killServers)
  try {
    return await runOn(services, selection, embeddedOnly, interrupt.signal)
  } finally {
    await Promise.all(services.servers.map((server) => server.close()))
    process.off('exit', killServers)
  }
}

async function runOn(
  services: Services,
  selection: Selection,
  embeddedOnly: boolean,
  signal: AbortSignal,
): Promise<number> {
  const run = `verbatim_test_${randomBytes(4).toString('hex')}`
  for (const line of services.lines) say(line)
  say(`run       ${run}, ${selection.files.length} files, Node ${process.versions.node}`)

  const startedAt = performance.now()
  const folder = mkdtempSync(join(tmpdir(), `${run}_`))
  let prepared: Prepared | undefined
  const sum = { passed: 0, failed: 0, skipped: [] as string[] }
  const leftovers: string[] = []
  try {
    if (selection.files.length >= preparedFilesMin) {
      const postgresFolder = embeddedOnly ? undefined : findInstalled('postgres', process.env)
      prepared = await prepareDatabases({ folder, run, databaseUrl: services.databaseUrl, postgresFolder, signal })
    }
    const env = { ...testEnvironment(services, run), NODE_COMPILE_CACHE: folder, ...prepared?.env }
    await runFiles(env)
  } finally {
    await prepared?.close()
    rmSync(folder, { recursive: true, force: true })
  }
  if (services.databaseUrl !== undefined) leftovers.push(...(await dropDatabases(services.databaseUrl, run)))
  if (services.redisUrl !== undefined) leftovers.push(...(await deleteKeys(services.redisUrl, run)))

  if (selection.files.length === 0) {
    say('FAIL  no test file is left to run')
    sum.failed += 1
  }
  for (const leftover of leftovers) say(`FAIL  left behind: ${leftover}`)
  for (const skip of sum.skipped) say(`skip  ${skip}`)
  if (signal.aborted) say('FAIL  the run was interrupted')
  const failed = sum.failed + leftovers.length + (signal.aborted ? 1 : 0)
  say(`${((performance.now() - startedAt) / 1000).toFixed(1)} s, ${sum.skipped.length} skipped`)
  say(`${sum.passed} passed, ${failed} failed`)
  return failed === 0 ? 0 : 1

  async function runFiles(env: NodeJS.ProcessEnv): Promise<void> {
    let rest = selection.files
    while (rest.length > 0) {
      const { summary, group } = await runTap(rest, selection.options, embeddedOnly, env, signal)
      leftovers.push(...(await endProcesses(group, run)))
      sum.passed += summary.passed
      sum.failed += summary.failed
      sum.skipped.push(...summary.skipped)
      const unheard = rest.filter((file) => !summary.files.includes(file))
      if (unheard.length === rest.length || summary.gaveUp || signal.aborted) {
        for (const file of unheard) say(`FAIL  ${file} came to no result`)
        sum.failed += unheard.length
        break
      }
      rest = unheard
    }
  }
}

/** The variables that tests read; what this process has from a run around it (a test of this command) is left out. */
function testEnvironment(services: Services, run: string): NodeJS.ProcessEnv {
  const inherited = Object.entries(process.env).filter(([name]) => !/^_?TAP/.test(name))
  const env: NodeJS.ProcessEnv = { ...Object.fromEntries(inherited), TEST_RUN: run }
  const found = {
    TEST_DATABASE_URL: services.databaseUrl,
    TEST_REDIS_URL: services.redisUrl,
    CHROMIUM_PATH: services.chromiumPath,
  }
  for (const [name, value] of Object.entries(found)) {
    if (value === undefined) delete env[name]
    else env[name] = value
  }
  return env
}

function startTap(
  files: readonly string[],
  options: readonly string[],
  embeddedOnly: boolean,
  env: NodeJS.ProcessEnv,
): ChildProcess {
  const args = [
    join(root, 'node_modules', '.bin', 'tap'),
    'run',
    '--reporter=tap',
    '--disable-coverage',
    `--jobs=${Math.min(jobsMax, availableParallelism() + jobsMore)}`,
    `--timeout=${fileTimeoutSeconds}`,
    // The embedded database is WebAssembly. To optimize it takes a processor longer than most files run.
    '--node-arg=--liftoff-only',
    // Most of these processes have ended before they have used it: a sixth of what a start takes was collecting garbage.
    ...youngSpace.map((flag) => `--node-arg=${flag}`),
    // A skip is only honest where the run as a whole says that something is left out.
    ...(embeddedOnly ? [] : ['--fail-skip', '--fail-todo']),
    ...options,
    ...files,
  ]
  // A group of its own, so that whatever is still in it after the run can be found and ended.
  return spawn(process.execPath, args, { cwd: root, env, stdio: ['ignore', 'pipe', 'inherit'], detached: true })
}

async function runTap(
  files: readonly string[],
  options: readonly string[],
  embeddedOnly: boolean,
  env: NodeJS.ProcessEnv,
  signal: AbortSignal,
): Promise<{ readonly summary: Summary; readonly group: number }> {
  const tap = startTap(files, options, embeddedOnly, env)
  const { pid, stdout } = tap
  if (pid === undefined || stdout === null) throw new ServicesError('tap could not be started')
  const killTap = (): void => killGroup(pid, 'SIGKILL')
  process.on('exit', killTap)

  const report = createTapReport(say)
  const lines = createInterface({ input: stdout })
  lines.on('line', (line) => report.readLine(line))
  const exit = once(tap, 'exit')
  const lastLine = once(lines, 'close')
  const ended = new AbortController()
  const tooLong = sleep(runMs, 'too long', { signal: AbortSignal.any([signal, ended.signal]) })
  // An interrupt rejects the sleep, and ends the wait as the time limit does.
  const first = await Promise.race([exit.then(() => 'ended'), tooLong.catch(() => 'interrupted')])
  ended.abort()
  if (first !== 'ended') {
    if (first === 'too long') say(`FAIL  the run took longer than ${runMs / 1000} s`)
    killGroup(pid, 'SIGTERM')
    const late = new AbortController()
    const enforce = sleep(tapEndMs, undefined, { signal: late.signal }).then(
      () => killGroup(pid, 'SIGKILL'),
      () => undefined, // It has ended in time.
    )
    await exit
    late.abort()
    await enforce
  }
  const [code] = await exit
  // A process that outlived its test may hold the pipe open: what tap itself wrote is there when it has exited.
  await Promise.race([lastLine, sleep(lastLinesMs, undefined, { ref: false })])
  lines.close()
  stdout.destroy()
  process.off('exit', killTap)
  return { summary: report.end(typeof code === 'number' ? code : 1), group: pid }
}

function killGroup(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(-pid, name)
  } catch {
    return // ESRCH: the whole group has ended.
  }
}

if (import.meta.main) {
  try {
    process.exitCode = await main()
  } catch (error) {
    say(error instanceof ServicesError ? error.message : String(error instanceof Error ? error.stack : error))
    if (error instanceof Error && error.cause instanceof Error) say(error.cause.message)
    say('0 passed, 1 failed')
    process.exitCode = 1
  }
}
