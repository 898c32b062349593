/**
 * Private Postgres and Redis servers: each on a free port of 127.0.0.1, in a temporary folder, gone without a trace
 * when it is closed. The test command starts them for a run; tests that kill a server start their own. Nothing here
 * survives a power cut: fsync is off.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import {
  chownSync,
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statfsSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:net'
import { freemem, tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import postgres from 'postgres'

/** Longest wait for the answer of a service; a local one answers within milliseconds. */
const answerMs = 5_000
/** Longest wait for a server we start. initdb takes 0.6 s and a start 0.1 s; slow disks take much longer. */
const startMs = 30_000
/** Longest wait for a server to end by itself before it is killed. */
const stopMs = 10_000
/** Time between two looks at a server that is starting. */
const lookMs = 50
/** Another program can take a free port between finding and using it. */
const startAttemptsMax = 3
const logTailLines = 20
/** In the folder of a Postgres. */
const [dataName, passwordName] = ['data', 'password']

/** What was asked for cannot be had; the message says what to do. */
export class ServicesError extends Error {
  override readonly name = 'ServicesError'
}

export interface Server {
  readonly url: string
  /** Of the process that serves, or was the last to. */
  readonly pid: number
  /** Sends a signal to it and to every process it has made: SIGSTOP freezes all of it, SIGCONT lets it go on. */
  signal(name: NodeJS.Signals): void
  /** kill -9 of all its processes, as when the machine takes them away. Its folder stays. */
  crash(): Promise<void>
  /** Starts again on the same port and folder, and resolves when it answers. */
  restart(signal: AbortSignal): Promise<void>
  /** Its folder, which is there until it is closed. */
  readonly home: string
  /** Ends it as it ends by itself. */
  stop(): Promise<void>
  /** Ends it and removes its folder. */
  close(): Promise<void>
  /** The same at once and without waiting, for an exit that cannot wait. */
  kill(): void
}

export interface Answer {
  readonly version: number
  readonly mayCreate: boolean
}

export interface PostgresOptions {
  /**
   * `name=value`, over the defaults. Without fsync a commit survives the death of the server only with
   * `synchronous_commit=on`: it is then with the system, which does not die. Tests that kill a server need it.
   */
  readonly settings?: readonly string[]
  /** For its data; when absent, memory or the folder of temporary files. */
  readonly place?: string
  /** What {@link writePostgresData} has made; it begins as a copy of that. Absent: with an empty database. */
  readonly copyOf?: string | undefined
}

/**
 * A Postgres of its own on a free port of 127.0.0.1, without fsync; its role `postgres` is the superuser.
 * @param folder with `initdb` and `postgres`
 */
export async function startPostgres(
  folder: string,
  signal: AbortSignal,
  { settings = [], place, copyOf }: PostgresOptions = {},
): Promise<Server> {
  const account = unprivilegedAccount()
  const home = makeHome('pg', account, place)
  const passwordFile = join(home, passwordName)
  const data = join(home, dataName)
  try {
    if (copyOf === undefined) await initialize(folder, home, account, signal)
    else await copyAll(copyOf, home, signal)
    const password = readFileSync(passwordFile, 'utf8')
    return await startOnFreePort(home, account, signal, (port) => ({
      command: join(folder, 'postgres'),
      // No Unix socket: the default folder belongs to another user, and a path in a deep temp folder is too long.
      args: [
        ...`-D ${data} -p ${port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off
          -c synchronous_commit=off -c full_page_writes=off -c max_connections=200`.split(/\s+/),
        ...settings.flatMap((setting) => ['-c', setting]),
      ],
      url: `postgres://postgres:${password}@127.0.0.1:${port}/postgres`,
      // SIGINT is Postgres's fast shutdown: it ends sessions. SIGTERM would wait for clients to leave.
      stopWith: 'SIGINT',
      // SIGKILL would leave its shared memory and its backends behind.
      killWith: 'SIGQUIT',
      answers: async (url) => (await askPostgres(url)) !== undefined,
    }))
  } catch (error) {
    rmSync(home, { recursive: true, force: true })
    throw error
  }
}

async function initialize(folder: string, home: string, account: Account | undefined, signal: AbortSignal) {
  const passwordFile = join(home, passwordName)
  writeFileSync(passwordFile, randomBytes(16).toString('hex'), { mode: 0o600 })
  if (account !== undefined) chownSync(passwordFile, account.uid, account.gid)
  await run(
    join(folder, 'initdb'),
    [
      `--pgdata=${join(home, dataName)}`,
      '--username=postgres',
      `--pwfile=${passwordFile}`,
      '--auth=scram-sha-256',
      '--encoding=UTF8',
      '--locale=C',
      '--no-sync',
    ],
    { home, account, timeoutMs: startMs, signal },
  )
}

/**
 * Leaves in `target` what servers can begin with: all that a new one holds when `fill` is done with it.
 * @param target a folder, made here
 */
export async function writePostgresData(
  folder: string,
  target: string,
  fill: (url: string) => Promise<void>,
  signal: AbortSignal,
): Promise<void> {
  const server = await startPostgres(folder, signal)
  try {
    await fill(server.url)
    await server.stop()
    mkdirSync(target)
    await copyAll(server.home, target, signal)
  } finally {
    await server.close()
  }
}

/** With owners and rights, which Postgres is strict about. */
async function copyAll(from: string, to: string, signal: AbortSignal): Promise<void> {
  await run('cp', ['-a', join(from, passwordName), join(from, dataName), to], { home: to, timeoutMs: startMs, signal })
}

/** A Redis of its own on a free port of 127.0.0.1 that writes nothing to disk. @param command path of redis-server */
export async function startRedis(command: string, signal: AbortSignal): Promise<Server> {
  const home = makeHome('redis', undefined)
  try {
    return await startOnFreePort(home, undefined, signal, (port) => ({
      command,
      args: [
        ...['--port', `${port}`, '--bind', '127.0.0.1', '--dir', home, '--save', '', '--appendonly', 'no'],
        // Its title would be written over its environment, by which the end of a run finds it.
        ...['--set-proc-title', 'no'],
      ],
      url: `redis://127.0.0.1:${port}`,
      stopWith: 'SIGTERM',
      killWith: 'SIGKILL',
      answers: async (url) => (await askRedis(url)) !== undefined,
    }))
  } catch (error) {
    rmSync(home, { recursive: true, force: true })
    throw error
  }
}

/** Logs in. @returns undefined when nothing there lets us in */
export async function askPostgres(url: string): Promise<Answer | undefined> {
  const sql = postgres(url, { max: 1, connect_timeout: answerMs / 1000, onnotice: () => undefined })
  try {
    const query = sql<{ version: number; may_create: boolean }[]>`
      select current_setting('server_version_num')::int / 10000 as version, rolcreatedb or rolsuper as may_create
      from pg_roles where rolname = current_user`
    const rows = await within(answerMs, query)
    return rows?.[0] && { version: rows[0].version, mayCreate: rows[0].may_create }
  } catch {
    return undefined // Whatever kept us out, the next way is taken; a given URL is reported by its caller.
  } finally {
    await sql.end({ timeout: 1 })
  }
}

/** The same for Redis. */
export async function askRedis(url: string): Promise<Answer | undefined> {
  const redis = new Redis(url, {
    lazyConnect: true,
    connectTimeout: answerMs,
    commandTimeout: answerMs,
    maxRetriesPerRequest: 0,
    retryStrategy: () => null,
  })
  redis.on('error', () => undefined) // The same error rejects connect() below.
  try {
    await redis.connect()
    await redis.ping()
    const version = /redis_version:(\d+\.\d+)/.exec(await redis.info('server'))?.[1]
    return { version: Number(version), mayCreate: true }
  } catch {
    return undefined // As for Postgres: the next way is taken.
  } finally {
    redis.disconnect()
  }
}

interface Account {
  readonly uid: number
  readonly gid: number
}

/** Postgres refuses to run as root. Debian's package makes the user postgres; nobody serves as well. */
function unprivilegedAccount(): Account | undefined {
  if (process.getuid?.() !== 0) return undefined
  const entries = readFileSync('/etc/passwd', 'utf8')
    .split('\n')
    .map((line) => line.split(':'))
  for (const name of ['postgres', 'nobody']) {
    const entry = entries.find(([user]) => user === name)
    if (entry !== undefined) return { uid: Number(entry[2]), gid: Number(entry[3]) }
  }
  throw new ServicesError('Postgres does not run as root, and there is neither a user postgres nor nobody')
}

const sharedMemory = '/dev/shm'
/** Room that a server's data may need there, and that this machine must have left besides. */
const memoryBytesMin = 4 * 1024 ** 3

/**
 * Where servers of tests keep their data: in memory, where it takes a quarter less time and half of the system's share of a
 * processor (three files of tests, twice each: 19.5 s against 15 s). TMPDIR, when it is set, is meant; and a container may
 * have next to no shared memory.
 */
function choosePlace(): string {
  if (process.env.TMPDIR !== undefined) return tmpdir()
  try {
    const { bavail, bsize } = statfsSync(sharedMemory)
    return bavail * bsize >= memoryBytesMin && freemem() >= 2 * memoryBytesMin ? sharedMemory : tmpdir()
  } catch {
    return tmpdir() // there is none on this system
  }
}

function makeHome(kind: string, account: Account | undefined, place = choosePlace()): string {
  const home = mkdtempSync(join(place, `verbatim-test-${kind}-`))
  if (account !== undefined) chownSync(home, account.uid, account.gid)
  return home
}

interface Launch {
  readonly command: string
  readonly args: readonly string[]
  readonly url: string
  readonly stopWith: NodeJS.Signals
  /** For an exit that cannot wait. */
  readonly killWith: NodeJS.Signals
  readonly answers: (url: string) => Promise<boolean>
}

async function startOnFreePort(
  home: string,
  account: Account | undefined,
  signal: AbortSignal,
  plan: (port: number) => Launch,
): Promise<Server> {
  let failure = ''
  for (let attempt = 0; attempt < startAttemptsMax; attempt++) {
    const launch = plan(await findFreePort())
    const log = join(home, `log-${attempt}`)
    const child = launchServer(launch, home, account, log)
    if (await waitUntilItAnswers(child, launch, signal)) return ownServer(child, launch, home, account)
    await end(child, 'SIGKILL')
    signal.throwIfAborted()
    failure = readFileSync(log, 'utf8').split('\n').slice(-logTailLines).join('\n')
  }
  throw new ServicesError(`A server did not start in ${startAttemptsMax} attempts. Its last words:\n${failure}`)
}

function launchServer(launch: Launch, home: string, account: Account | undefined, log: string): ChildProcess {
  const out = openSync(log, 'w')
  try {
    return spawn(launch.command, [...launch.args], {
      cwd: home,
      stdio: ['ignore', out, out],
      // A group of its own: Ctrl-C in a terminal goes to the whole group, and the run has to clean up first.
      detached: true,
      env: serverEnvironment(home),
      ...account,
    })
  } finally {
    closeSync(out)
  }
}

/** TEST_RUN marks a server that a test started: the end of the run looks for it. The run's own servers lack it. */
function serverEnvironment(home: string): NodeJS.ProcessEnv {
  const { PATH, LD_LIBRARY_PATH, TEST_RUN } = process.env
  return {
    HOME: home,
    LC_ALL: 'C',
    ...(PATH === undefined ? {} : { PATH }),
    ...(LD_LIBRARY_PATH === undefined ? {} : { LD_LIBRARY_PATH }),
    ...(TEST_RUN === undefined ? {} : { TEST_RUN }),
  }
}

async function waitUntilItAnswers(child: ChildProcess, launch: Launch, signal: AbortSignal): Promise<boolean> {
  let failed = false
  child.once('error', () => {
    failed = true
  })
  const deadline = performance.now() + startMs
  while (performance.now() < deadline && !signal.aborted) {
    if (failed || hasEnded(child)) return false
    if (await launch.answers(launch.url)) return true
    await sleep(lookMs)
  }
  return false
}

function ownServer(first: ChildProcess, launch: Launch, home: string, account: Account | undefined): Server {
  let child = first
  let restarts = 0

  async function crash(): Promise<void> {
    const pids = processTree(child.pid)
    const exit = hasEnded(child) ? undefined : once(child, 'exit')
    signalAll(pids, 'SIGKILL')
    await exit
    // The next start finds the shared memory in use as long as one of them is there.
    for (const deadline = performance.now() + stopMs; pids.some(isThere); ) {
      if (performance.now() > deadline) throw new ServicesError('A killed server does not end')
      await sleep(lookMs)
    }
  }

  async function restart(signal: AbortSignal): Promise<void> {
    for (let attempt = 0; attempt < startAttemptsMax; attempt++) {
      restarts += 1
      child = launchServer(launch, home, account, join(home, `log-restart-${restarts}`))
      if (await waitUntilItAnswers(child, launch, signal)) return
      await end(child, 'SIGKILL')
      signal.throwIfAborted()
    }
    throw new ServicesError(`A server did not start again in ${startAttemptsMax} attempts`)
  }

  async function stop(): Promise<void> {
    signalAll(processTree(child.pid), 'SIGCONT')
    // Only a server that ends by itself gives its shared memory back.
    if (child.signalCode === 'SIGKILL') await restart(AbortSignal.timeout(startMs))
    await end(child, launch.stopWith)
  }

  return {
    url: launch.url,
    home,
    get pid() {
      return child.pid ?? 0
    },
    signal: (name) => signalAll(processTree(child.pid), name),
    crash,
    restart,
    stop,
    async close() {
      await stop()
      rmSync(home, { recursive: true, force: true })
    },
    kill() {
      if (!hasEnded(child)) child.kill(launch.killWith)
      rmSync(home, { recursive: true, force: true, maxRetries: 5, retryDelay: 20 })
    },
  }
}

/** A process and its children; Postgres's backends are in process groups of their own. Reads /proc; elsewhere alone. */
function processTree(pid: number | undefined): readonly number[] {
  if (pid === undefined) return []
  try {
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8')
      .split(' ')
      .filter((text) => text !== '')
    return [pid, ...children.flatMap((child) => processTree(Number(child)))]
  } catch {
    return [pid] // It has ended, or there is no /proc: then it is alone or unknown.
  }
}

function signalAll(pids: readonly number[], name: NodeJS.Signals): void {
  for (const pid of pids) {
    try {
      process.kill(pid, name)
    } catch {
      // ESRCH: it has just ended by itself.
    }
  }
}

function isThere(pid: number): boolean {
  try {
    process.kill(pid, 0)
    // A child whose parent was killed is a zombie until somebody waits for it.
    return !/^.*\) [ZX] /s.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))
  } catch {
    return false // ESRCH, or gone from /proc.
  }
}

const hasEnded = (child: ChildProcess): boolean =>
  child.pid === undefined || child.exitCode !== null || child.signalCode !== null

async function end(child: ChildProcess, stopWith: NodeJS.Signals): Promise<void> {
  if (hasEnded(child)) return
  const exit = once(child, 'exit')
  child.kill(stopWith)
  if ((await within(stopMs, exit)) !== undefined) return
  child.kill('SIGKILL')
  await exit
}

export interface RunOptions {
  readonly home?: string
  readonly account?: Account | undefined
  readonly env?: NodeJS.ProcessEnv
  readonly timeoutMs: number
  readonly signal: AbortSignal
}

/** Runs a program to its end. @throws with its last words when it fails, is aborted or takes too long */
export async function run(command: string, args: readonly string[], options: RunOptions): Promise<void> {
  const child = spawn(command, [...args], {
    cwd: options.home ?? '/',
    stdio: ['ignore', 'pipe', 'pipe'],
    env: options.env ?? serverEnvironment(options.home ?? '/'),
    signal: AbortSignal.any([options.signal, AbortSignal.timeout(options.timeoutMs)]),
    ...options.account,
  })
  const tail: string[] = []
  const keep = (chunk: Buffer): void => {
    tail.push(...chunk.toString().split('\n'))
    tail.splice(0, tail.length - logTailLines)
  }
  child.stdout.on('data', keep)
  child.stderr.on('data', keep)
  const [code, ended] = await once(child, 'close')
  if (code !== 0) throw new Error(`${command} ended with ${code ?? ended}:\n${tail.join('\n')}`)
}

/** @throws ServicesError when there is none */
export async function findFreePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  server.close()
  await once(server, 'close')
  if (address === null || typeof address === 'string') throw new ServicesError('The system gave no free port')
  return address.port
}

/** The promise's value, or undefined after the time. */
async function within<T>(timeoutMs: number, promise: PromiseLike<T>): Promise<T | undefined> {
  const timer = new AbortController()
  try {
    return await Promise.race([promise, sleep(timeoutMs, undefined, { signal: timer.signal })])
  } finally {
    timer.abort()
  }
}
