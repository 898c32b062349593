/**
 * `npm test [-- <files> --jobs=<n> --timeout=<seconds>]`: finds or starts Postgres, Redis and Chromium, runs the test
 * files, removes everything the run made, and ends with the line `N passed, N failed`. A test that leaves a
 * database, a key or a process behind has failed. Nothing is skipped silently: TEST_EMBEDDED_ONLY=1 runs without
 * Postgres and Redis, TEST_WITHOUT_BROWSER=1 without the browser tests, and both are said.
 */
import { randomBytes } from 'node:crypto'
import { globSync, mkdtempSync, rmSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join, relative, resolve, sep } from 'node:path'
import { deleteKeys, dropDatabases, endProcesses } from './leftovers.ts'
import { type Prepared, prepareDatabases } from './prepared.ts'
import { ServicesError } from './servers.ts'
import { findInstalled, type Need, openServices, type Services } from './services.ts'
import { stripFiles } from './strip.ts'
import { createTapReport } from './tap-report.ts'
import { runTestFiles } from './test-files.ts'

/** Longest duration of one test file; `--timeout=<seconds>` changes it. */
const fileTimeoutSeconds = 120
/** Longest duration of all test files together: more than twice what they take, because some days machines are that slow. */
const runMs = 1_200_000
/** More files at once than this make timing tests unreliable without making the run shorter. */
const jobsMax = 4
/** Files at once beyond the processors: tests of faults mostly wait, for leases and limits. */
const jobsMore = 1
const nodeFlags = [
  // The embedded database is WebAssembly. To optimize it takes a processor longer than most files run.
  '--liftoff-only',
  // In MB. Most of these processes have ended before they have used it: a sixth of what a start takes was collecting garbage.
  '--min-semi-space-size=64',
  '--max-semi-space-size=64',
] as const
/** What only gateways load as processes, most of which are killed and leave nothing in the cache. */
const startFiles = ['src/main.ts', 'src/config-file.ts'] as const
/** Fewer test files than this are done sooner than it pays to prepare anything for them. */
const preparedFilesMin = 10
const root = join(import.meta.dirname, '..')

const say = (line: string): void => {
  process.stdout.write(`${line}\n`)
}

/** What to run, and how. */
export interface Selection {
  readonly files: readonly string[]
  /** Browser tests that TEST_WITHOUT_BROWSER leaves out. */
  readonly leftOut: readonly string[]
  /** Files at once. */
  readonly jobs: number | undefined
  /** Of one file. */
  readonly timeoutSeconds: number | undefined
}

/**
 * @param find expands a pattern to paths relative to the project
 * @throws ServicesError when a pattern finds nothing (a run of nothing must not look like a success), or for an unknown option
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
  const numbers = new Map(options.map(readOption))
  return {
    files: all.filter((file) => !leftOut.includes(file)),
    leftOut,
    jobs: numbers.get('jobs'),
    timeoutSeconds: numbers.get('timeout'),
  }
}

function readOption(option: string): readonly [name: string, value: number] {
  const match = /^--(jobs|timeout)=([1-9]\d*)$/.exec(option)
  if (match === null)
    throw new ServicesError(`${option} is no option. There are --jobs=<files> and --timeout=<seconds>`)
  return [match[1] as string, Number(match[2])]
}

/** Of real clients, some of which are in a browser; these say so themselves when there is none. */
/** Of the tests of other people's clients, two are of clients that run in a browser. */
export const isBrowserTest = (file: string): boolean =>
  /(^|\/)test\/(browser\/|clients\/(chromium|use-chat)\.test\.ts$)/.test(file.split(sep).join('/'))

/**
 * A thousand viewers come back at once, all backends are killed ten times a second, thousands of requests fill the log, and in
 * between somebody is to be served in time: two processors have nothing left for other files.
 */
export const isLoadTest = (file: string): boolean =>
  /(^|\/)test\/faults\/(storm[^/]*|stdout)\.test\.ts$/.test(file.split(sep).join('/'))

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
  const report = createTapReport(say)
  const unheard = new Set(selection.files)
  const tooLong = AbortSignal.timeout(runMs)
  let prepared: Prepared | undefined
  try {
    if (selection.files.length >= preparedFilesMin) {
      const postgresFolder = embeddedOnly ? undefined : findInstalled('postgres', process.env)
      const stripped = stripFiles([...selection.files, ...startFiles], {
        cwd: root,
        cache: folder,
        flags: nodeFlags,
        signal,
      })
      prepared = await prepareDatabases({ folder, run, databaseUrl: services.databaseUrl, postgresFolder, signal })
      await stripped
    }
    await runTestFiles(
      selection.files,
      {
        cwd: root,
        env: { ...testEnvironment(services, run, embeddedOnly), NODE_COMPILE_CACHE: folder, ...prepared?.env },
        flags: nodeFlags,
        jobs: selection.jobs ?? Math.min(jobsMax, availableParallelism() + jobsMore),
        isAlone: isLoadTest,
        timeoutMs: 1000 * (selection.timeoutSeconds ?? fileTimeoutSeconds),
        onResult(result) {
          unheard.delete(result.file)
          report.readFile(result)
        },
        isOver: () => report.gaveUp,
      },
      AbortSignal.any([signal, tooLong]),
    )
  } finally {
    await prepared?.close()
    rmSync(folder, { recursive: true, force: true })
  }
  const leftovers = [...(await endProcesses({ run }))]
  if (services.databaseUrl !== undefined) leftovers.push(...(await dropDatabases(services.databaseUrl, run)))
  if (services.redisUrl !== undefined) leftovers.push(...(await deleteKeys(services.redisUrl, run)))

  for (const file of unheard) say(`FAIL  ${file} came to no result`)
  if (tooLong.aborted) say(`FAIL  the run took longer than ${runMs / 1000} s`)
  for (const leftover of leftovers) say(`FAIL  left behind: ${leftover}`)
  const sum = report.end()
  for (const skip of sum.skipped) say(`skip  ${skip}`)
  if (signal.aborted) say('FAIL  the run was interrupted')
  const failed = sum.failed + unheard.size + leftovers.length + (signal.aborted || tooLong.aborted ? 1 : 0)
  say(`${((performance.now() - startedAt) / 1000).toFixed(1)} s, ${sum.skipped.length} skipped`)
  say(`${sum.passed} passed, ${failed} failed`)
  return failed === 0 ? 0 : 1
}

/** The variables that tests read; what this process has from a run around it (a test of this command) is left out. */
function testEnvironment(services: Services, run: string, embeddedOnly: boolean): NodeJS.ProcessEnv {
  const inherited = Object.entries(process.env).filter(([name]) => !/^_?TAP/.test(name))
  const env: NodeJS.ProcessEnv = { ...Object.fromEntries(inherited), TEST_RUN: run }
  // A skip is only honest where the run as a whole says that something is left out.
  if (!embeddedOnly) Object.assign(env, { TAP_FAIL_SKIP: '1', TAP_FAIL_TODO: '1' })
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
