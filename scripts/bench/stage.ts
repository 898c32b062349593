/**
 * The stage of the benchmark: Postgres and Redis of its own, the provider, and the contenders, each a process that is
 * started on a clean database, measured and ended. What is measured is pinned to the first processor; the load, the provider
 * and the stores have the others, so nobody takes time from whom is measured. Where that cannot be done, it is said.
 *
 * Postgres keeps its data on disk and waits for it (fsync), as in production. Everything that the stage starts ends with it;
 * a contender that does not start, or does not end by itself, is an error or killed within a bound.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import postgres from 'postgres'
import { findFreePort, ServicesError, startPostgres, startRedis } from '../servers.ts'
import { explainMissing, findInPath, findInstalled } from '../services.ts'
import {
  type Asked,
  ask,
  attach,
  type ContenderName,
  type Format,
  findUnstored,
  formatOf,
  isGateway,
  type Question,
} from './contenders.ts'
import { cpuMsOf, cpuMsOfTree, memoryOf } from './cpu.ts'
import { collectGarbage, findInspector } from './inspector.ts'
import { type Provider, startProvider } from './provider.ts'

export interface Contender {
  readonly name: ContenderName
  readonly format: Format
  ask(number: number, tokens: number): Question
  attach(asked: Asked): Question
  /** @returns a sentence for each reply that is not stored once and whole; none where nothing is stored */
  findUnstored(replies: readonly Asked[]): Promise<readonly string[]>
  cpuMs(): number
  /** Without garbage, when it was started with an inspector. */
  weigh(): Promise<number>
  end(): Promise<void>
}

/** A process that is only weighed. */
export interface Idle {
  readonly url: URL
  weigh(): Promise<number>
  end(): Promise<void>
}

export interface Stage {
  readonly provider: Provider
  readonly hasNginx: boolean
  /** What keeps the contender's processor for it; undefined when nothing does. */
  readonly pinning: Pinning | undefined
  /** A number that no reply has had. */
  nextNumber(): number
  /** @param more environment over that of the benchmark */
  start(name: ContenderName, more?: Environment): Promise<Contender>
  /** A gateway, and another one on the same stores. */
  startTwo(): Promise<readonly [Contender, Contender]>
  /** The bare server of idle connections. */
  startIdle(more: Environment): Promise<Idle>
  /** Processes that never pause, on the contender's processor: each takes as much of it as the contender may. */
  occupy(count: number): Occupants
  storesCpuMs(): { readonly postgresMs: number; readonly redisMs: number }
  /** Of what is on the stage, by name. */
  readVersions(): Promise<Readonly<Record<string, string>>>
  close(): Promise<void>
}

export interface Occupants {
  cpuMs(): number
  end(): Promise<void>
}

export interface Pinning {
  /** As taskset writes them. */
  readonly contender: string
  readonly load: string
}

type Environment = Readonly<Record<string, string>>

const startMs = 30_000
const endMs = 15_000
const lookMs = 50
/** What a process that did not start has said. */
const linesMax = 50
const root = join(import.meta.dirname, '../..')

/** @returns undefined on a machine with one processor, or without taskset */
export function choosePinning(): Pinning | undefined {
  const processors = availableParallelism()
  if (processors < 2 || findInPath('taskset', process.env) === undefined) return undefined
  return { contender: '0', load: processors === 2 ? '1' : `1-${processors - 1}` }
}

/** @param pinning undefined: none; @param stores whether to start them: the pipe alone needs none */
export async function openStage(
  signal: AbortSignal,
  pinning: Pinning | undefined,
  { stores = true }: { readonly stores?: boolean } = {},
): Promise<Stage> {
  const ending: (() => Promise<unknown> | unknown)[] = []
  const nginxCommand = findInPath('nginx', process.env) ?? findInPath('nginx', { PATH: '/usr/sbin:/usr/local/sbin' })
  if (pinning !== undefined) pin(process.pid, pinning.load)
  const provider = await startProvider()
  ending.push(() => provider.close())
  const opened = stores ? await openStores(signal).catch(closeAndThrow) : undefined
  if (opened !== undefined) {
    ending.push(opened.close)
    if (pinning !== undefined) for (const pid of [opened.pg.pid, opened.redis.pid]) pin(pid, pinning.load)
  }
  let lastNumber = 0

  async function closeAndThrow(error: unknown): Promise<never> {
    await close()
    throw error
  }

  async function close(): Promise<void> {
    for (const end of ending.splice(0).toReversed()) await Promise.resolve(end()).catch(() => undefined) // the rest must end too
  }

  function spawnPinned(command: string, args: readonly string[], env: Environment): ChildProcess {
    const words = [command, ...args]
    const [first = '', ...rest] = pinning === undefined ? words : ['taskset', '-c', pinning.contender, ...words]
    return spawn(first, rest, {
      cwd: root,
      env: { PATH: process.env.PATH ?? '', NODE_ENV: 'production', ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
  }

  /** @returns the process and the address that it prints when it listens */
  async function launch(args: readonly string[], env: Environment): Promise<Launched> {
    const child = spawnPinned(process.execPath, args, env)
    const end = ownChild(child)
    ending.push(end)
    const lines: string[] = []
    let inspector: string | undefined
    const listening = Promise.withResolvers<string>()
    for (const stream of [child.stdout, child.stderr]) {
      if (stream === null) continue
      createInterface({ input: stream }).on('line', (line) => {
        if (lines.length < linesMax) lines.push(line)
        inspector ??= findInspector(line)
        const url = /http:\/\/127\.0\.0\.1:\d+/.exec(line)?.[0]
        if (url !== undefined) listening.resolve(url)
      })
    }
    const fail = () => listening.reject(new Error(`${args.join(' ')} did not start; it said:\n${lines.join('\n')}`))
    child.once('exit', fail)
    child.once('error', fail)
    const late = setTimeout(fail, startMs)
    const url = await listening.promise.finally(() => clearTimeout(late))
    const pid = child.pid ?? 0
    const weigh = async () => {
      if (inspector !== undefined) await collectGarbage(inspector)
      return memoryOf(pid)
    }
    return { pid, url, weigh, end }
  }

  function makeFolder(): string {
    const folder = mkdtempSync(join(tmpdir(), 'verbatim-bench-'))
    ending.push(() => rmSync(folder, { recursive: true, force: true }))
    return folder
  }

  async function launchNginx(command: string): Promise<Launched> {
    const home = makeFolder()
    const port = await findFreePort()
    const file = join(home, 'nginx.conf')
    writeFileSync(file, nginxConfig(home, port, provider.url))
    const child = spawnPinned(command, ['-p', home, '-e', 'stderr', '-c', file], {})
    const end = ownChild(child)
    ending.push(end)
    await untilListening(port)
    const pid = child.pid ?? 0
    return { pid, url: `http://127.0.0.1:${port}`, weigh: async () => memoryOf(pid), end }
  }

  async function launchGateway(name: ContenderName, databaseUrl: string | undefined, more: Environment) {
    const launched = await launch(['src/main.ts'], {
      ...(databaseUrl === undefined ? { DATA_DIR: makeFolder() } : { DATABASE_URL: databaseUrl }),
      ...(name === 'gateway' && opened !== undefined ? { REDIS_URL: opened.redis.url } : {}),
      PORT: '0',
      HOST: '127.0.0.1',
      LOG_LEVEL: 'info',
      OPENAI_BASE_URL: provider.url,
      RUNS_PER_OWNER: '0',
      VIEWERS_PER_OWNER: '0',
      RATE_LIMIT_RUNS: '0',
      RATE_LIMIT_READS: '0',
      RATE_LIMIT_VISITORS: '0',
      // What it holds is to be seen, and not what it would take upon itself; `shed` sets it.
      OVERLOAD_MS: '0',
      ...more,
    })
    await untilReady(launched.url)
    return launched
  }

  function needStores(): Stores {
    if (opened === undefined) throw new Error('This contender needs the stores')
    return opened
  }

  async function launchByName(name: ContenderName, databaseUrl: string | undefined, more: Environment) {
    if (isGateway(name)) return await launchGateway(name, databaseUrl, more)
    if (name === 'pipe') return await launch(['scripts/bench/contenders/pipe.ts', provider.url], more)
    if (name === 'wired') {
      const args = [provider.url, databaseUrl ?? '', needStores().redis.url]
      return await launch(['scripts/bench/contenders/wired.ts', ...args], more)
    }
    if (nginxCommand === undefined) throw new Error('There is no nginx')
    return await launchNginx(nginxCommand)
  }

  function contender(
    name: ContenderName,
    { pid, url, weigh, end }: Launched,
    sql: postgres.Sql | undefined,
  ): Contender {
    return {
      name,
      format: formatOf(name),
      ask: (number, tokens) => ask(name, url, number, tokens),
      attach: (asked) => attach(url, asked),
      findUnstored: (replies) => findUnstored(name, url, sql, replies),
      cpuMs: () => (name === 'nginx' ? cpuMsOfTree(pid) : cpuMsOf(pid)),
      weigh,
      end,
    }
  }

  async function openDatabase(): Promise<{ readonly url: string; readonly sql: postgres.Sql }> {
    const url = await needStores().createDatabase()
    const sql = postgres(url, { max: 1, onnotice: () => undefined })
    ending.push(() => sql.end({ timeout: 1 }))
    return { url, sql }
  }

  return {
    provider,
    hasNginx: nginxCommand !== undefined,
    pinning,
    nextNumber() {
      lastNumber += 1
      return lastNumber
    },
    async start(name, more = {}) {
      const database =
        name === 'gateway' || name === 'gateway-postgres' || name === 'wired' ? await openDatabase() : undefined
      return contender(name, await launchByName(name, database?.url, more), database?.sql)
    },
    async startTwo() {
      const { url, sql } = await openDatabase()
      const first = await launchGateway('gateway', url, {})
      return [contender('gateway', first, sql), contender('gateway', await launchGateway('gateway', url, {}), sql)]
    },
    async startIdle(more) {
      const { url, weigh, end } = await launch(['scripts/bench/contenders/idle.ts'], more)
      return { url: new URL(url), weigh, end }
    },
    occupy(count) {
      const children = Array.from({ length: count }, () => spawnPinned(process.execPath, ['-e', 'for (;;);'], {}))
      const ends = children.map(ownChild)
      const end = async () => void (await Promise.all(ends.map((each) => each())))
      ending.push(end)
      return { cpuMs: () => children.reduce((sum, { pid = 0 }) => sum + cpuMsOf(pid), 0), end }
    },
    storesCpuMs: () => ({
      postgresMs: opened === undefined ? 0 : cpuMsOfTree(opened.pg.pid),
      redisMs: opened === undefined ? 0 : cpuMsOf(opened.redis.pid),
    }),
    async readVersions() {
      const nginx = nginxCommand === undefined ? '' : spawnSync(nginxCommand, ['-v'], { encoding: 'utf8' }).stderr
      return {
        ...(await opened?.readVersions()),
        ...(nginxCommand === undefined ? {} : { nginx: /nginx\/([\d.]+)/.exec(nginx)?.[1] ?? '?' }),
      }
    },
    close,
  }
}

interface Launched {
  readonly pid: number
  readonly url: string
  readonly weigh: () => Promise<number>
  readonly end: () => Promise<void>
}

type Stores = Awaited<ReturnType<typeof openStores>>

async function openStores(signal: AbortSignal) {
  const postgresFolder = findInstalled('postgres', process.env)
  const redisCommand = findInstalled('redis', process.env)
  if (postgresFolder === undefined || redisCommand === undefined) {
    throw new ServicesError(explainMissing(['postgres', 'redis']))
  }
  const pg = await startPostgres(postgresFolder, signal, {
    settings: ['fsync=on', 'synchronous_commit=on', 'full_page_writes=on', 'shared_buffers=256MB'],
    place: tmpdir(),
  })
  const redis = await startRedis(redisCommand, signal).catch(async (error: unknown) => {
    await pg.close()
    throw error
  })
  const admin = postgres(pg.url, { max: 1, onnotice: () => undefined })
  let databases = 0
  return {
    pg,
    redis,
    async createDatabase() {
      databases += 1
      await admin.unsafe(`create database bench_${databases}`)
      return new URL(`/bench_${databases}`, pg.url).href
    },
    async readVersions() {
      const [row] = await admin<{ version: string }[]>`select current_setting('server_version') as version`
      const said = spawnSync(redisCommand, ['--version'], { encoding: 'utf8' }).stdout
      return { PostgreSQL: row?.version.split(' ')[0] ?? '?', Redis: /v=([\d.]+)/.exec(said)?.[1] ?? '?' }
    },
    async close() {
      await admin.end({ timeout: 1 })
      await Promise.all([pg.close(), redis.close()])
    },
  }
}

/** Pins a running process with all its threads. */
function pin(pid: number, processors: string): void {
  spawnSync('taskset', ['-a', '-p', '-c', processors, String(pid)], { stdio: 'ignore' })
}

/** @returns what ends it: a word, then a bound */
function ownChild(child: ChildProcess): () => Promise<void> {
  return async () => {
    if (child.exitCode !== null || child.signalCode !== null) return
    const ended = once(child, 'exit')
    child.kill('SIGTERM')
    const late = setTimeout(() => child.kill('SIGKILL'), endMs)
    await ended.finally(() => clearTimeout(late))
  }
}

async function untilReady(url: string): Promise<void> {
  for (const giveUpAt = Date.now() + startMs; Date.now() < giveUpAt; await sleep(lookMs)) {
    if ((await fetch(`${url}/health/ready`)).ok) return
  }
  throw new Error(`The gateway is not ready after ${startMs} ms`)
}

async function untilListening(port: number): Promise<void> {
  for (const giveUpAt = Date.now() + startMs; Date.now() < giveUpAt; await sleep(lookMs)) {
    const socket = connect(port, '127.0.0.1')
    const there = await once(socket, 'connect').then(
      () => true,
      () => false, // not yet
    )
    socket.destroy()
    if (there) return
  }
  throw new Error(`Nothing listens on port ${port} after ${startMs} ms`)
}

/** One worker, nothing buffered, connections to the provider kept: the usual advice for SSE. */
function nginxConfig(home: string, port: number, providerUrl: string): string {
  return `
daemon off;
worker_processes 1;
pid ${home}/nginx.pid;
events { worker_connections 8192; }
http {
  access_log off;
  client_body_temp_path ${home}/body;
  proxy_temp_path ${home}/proxy;
  fastcgi_temp_path ${home}/fastcgi;
  uwsgi_temp_path ${home}/uwsgi;
  scgi_temp_path ${home}/scgi;
  upstream provider { server ${new URL(providerUrl).host}; keepalive 1024; }
  server {
    listen 127.0.0.1:${port} backlog=4096;
    location /v1/ {
      proxy_pass http://provider;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 1h;
    }
  }
}
`
}
