/**
 * Gateways for tests: in this process, listening on a free port (`startGateway`), or as a process of their own that can
 * be killed (`spawnGateway`). Both end with the test, and leave nothing behind.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { promisify } from 'node:util'
import type { Test } from 'tap'
import { type App, buildApp, type Overrides } from '../../src/app.ts'
import { readConfig } from '../../src/config.ts'
import type { ConfigFile } from '../../src/config-schema.ts'
import { createTestDatabase, type DatabaseKind, inMemory } from './database.ts'

export interface GatewayOptions extends Overrides {
  readonly database?: DatabaseKind
  /** Environment variables, over the defaults of a test. */
  readonly env?: Readonly<Record<string, string>>
  /** What a config file holds. */
  readonly file?: ConfigFile
}

export interface Gateway {
  /** Without a slash at its end. */
  readonly url: string
  readonly app: App
  close(): Promise<void>
}

/** Tests ask faster than any person, on any machine, and wait for no provider; those of limits and pauses set their own. */
export const noRateLimits = {
  RATE_LIMIT_RUNS: '0',
  RATE_LIMIT_READS: '0',
  RATE_LIMIT_VISITORS: '0',
  UPSTREAM_RETRY_MS: '5',
  OVERLOAD_MS: '0',
} as const

type Teardown = Pick<Test, 'teardown'>

/** The variables that point a gateway at a database of the test's own. */
export async function databaseEnv(t: Teardown, database: DatabaseKind): Promise<Record<string, string>> {
  if (database === 'postgres') return { DATABASE_URL: (await createTestDatabase(t)).url, DATABASE_POOL: '5' }
  return { DATA_DIR: inMemory }
}

/** A folder that is gone when the test ends. */
export async function createFolder(t: Teardown): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'verbatim-test-'))
  t.teardown(() => rm(folder, { recursive: true, force: true }))
  return folder
}

/** The folder of an embedded database that is new; a start on it is quicker when the run has made a dump. */
export async function createDataFolder(t: Teardown): Promise<string> {
  const folder = await createFolder(t)
  const dump = process.env.TEST_PGLITE_DUMP
  if (dump !== undefined) {
    await mkdir(join(folder, 'pglite'))
    await promisify(execFile)('tar', ['-xf', dump, '-C', join(folder, 'pglite')])
  }
  return folder
}

/** A gateway in this process, ready. */
export async function startGateway(t: Teardown, options: GatewayOptions = {}): Promise<Gateway> {
  const { database = 'pglite', env = {}, file, ...overrides } = options
  // Teardowns run last to first: the database must be dropped after the gateway has let go of it.
  const store = await databaseEnv(t, database)
  const variables = { LOG_LEVEL: 'silent', DRAIN_MS: '0', CHECKPOINT_MS: '50', ...noRateLimits, ...store, ...env }
  const config = readConfig(variables, file)
  const app = await buildApp(config, overrides)
  let closed: Promise<void> | undefined
  const close = () => {
    closed ??= app.close()
    return closed
  }
  t.teardown(close)
  await app.ready
  await app.server.listen({ port: 0, host: '127.0.0.1' })
  const { port } = app.server.server.address() as AddressInfo
  return { url: `http://127.0.0.1:${port}`, app, close }
}

export interface SpawnedGateway {
  readonly url: string
  readonly process: ChildProcess
  /** Lines of standard output so far. */
  readonly lines: readonly string[]
  /** Resolves with the exit code, or the signal's name. */
  readonly exited: Promise<number | string>
}

const startMs = 30_000
/**
 * As the tests themselves (scripts/test.ts): a start then collects hardly any garbage, the embedded database is not optimized
 * longer than most of these processes live, and what the tests have compiled is good for the gateways. With flags of its
 * own a gateway needs a compile cache of its own, and most end by a kill, which leaves nothing in one.
 */
const nodeFlags = ['--liftoff-only', '--min-semi-space-size=64', '--max-semi-space-size=64'] as const
// What one process has compiled the next need not: a third of a gateway's start.
const compileCache =
  process.env.NODE_COMPILE_CACHE === undefined ? {} : { NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE }

/**
 * A gateway as a process of its own; resolves when it listens, or when it has ended without.
 * @param env must name its database
 */
export async function spawnGateway(t: Teardown, env: Readonly<Record<string, string>>): Promise<SpawnedGateway> {
  const child = spawn(process.execPath, [...nodeFlags, 'src/main.ts'], {
    cwd: new URL('../..', import.meta.url).pathname,
    env: {
      ...compileCache,
      PATH: process.env.PATH ?? '',
      PORT: '0',
      HOST: '127.0.0.1',
      DRAIN_MS: '0',
      CHECKPOINT_MS: '50',
      ...noRateLimits,
      ...env,
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const exited = once(child, 'exit').then(([code, signal]) => (code ?? signal) as number | string)
  t.teardown(async () => {
    child.kill('SIGKILL')
    await exited
  })
  const lines: string[] = []
  const listening = Promise.withResolvers<string>()
  for (const stream of [child.stdout, child.stderr]) {
    createInterface({ input: stream }).on('line', (line) => {
      lines.push(line)
      const url = /Verbatim listens on (http:\/\/\S+)/.exec(line)?.[1]
      if (url !== undefined) listening.resolve(url)
    })
  }
  const timer = setTimeout(() => listening.reject(new Error(`no start line in ${startMs} ms`)), startMs)
  const url = await Promise.race([listening.promise, exited.then(() => '')])
  clearTimeout(timer)
  return { url, process: child, lines, exited }
}

/** Resolves when the gateway says that it is ready. */
export async function untilReady(url: string): Promise<void> {
  for (const giveUpAt = Date.now() + startMs; Date.now() < giveUpAt; ) {
    if ((await fetch(`${url}/health/ready`)).ok) return
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  throw new Error(`not ready in ${startMs} ms`)
}
