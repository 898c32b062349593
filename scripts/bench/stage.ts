/**
 * The stage of the benchmark: Postgres and Redis of its own, the provider, and the contenders, each a process that can be
 * started on a clean database, measured and ended. What is measured is pinned to one processor; the load, the provider and
 * the stores share the other, so nobody takes time from whom is measured. Everything it starts ends with it.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import postgres from 'postgres'
import { type Server, ServicesError, startPostgres, startRedis } from '../servers.ts'
import { explainMissing, findInstalled } from '../services.ts'
import { cpuMsOf, cpuMsOfTree, memoryOf } from './cpu.ts'
import { type Provider, startProvider } from './provider.ts'
import type { Format } from './viewers.ts'

export type ContenderName = 'gateway' | 'gateway-postgres' | 'gateway-embedded' | 'pipe' | 'wired' | 'nginx'

export interface Contender {
  readonly name: ContenderName
  readonly format: Format
  readonly url: string
  readonly pid: number
  /** How a reply is asked for. */
  ask(number: number, tokens: number): {
    readonly url: URL
    readonly headers: Readonly<Record<string, string>>
    readonly body: string
  }
  /** Complete rows of replies in its database, with their characters; undefined where nothing is stored. */
  stored(): Promise<{ readonly rows: number; readonly units: number } | undefined>
  cpuMs(): number
  memoryBytes(): number
  end(): Promise<void>
}

export interface Stage {
  readonly provider: Provider
  /** @param more environment over that of the benchmark */
  start(name: ContenderName, more?: Readonly<Record<string, string>>): Promise<Contender>
  /** Another gateway on the stores of `first`. */
  startBeside(first: Contender, more?: Readonly<Record<string, string>>): Promise<Contender>
  storesCpuMs(): { readonly postgresMs: number; readonly redisMs: number }
  close(): Promise<void>
}

/** The processors. */
export const contenderCpu = 0
export const loadCpu = 1
const startMs = 30_000
const endMs = 15_000
const root = join(import.meta.dirname, '../..')

export const visitorOf = (number: number): string => `vst_${String(number).padStart(43, '0')}`

/** Pins a running process, with all its threads. @returns false where there is no taskset */
export function pin(pid: number, cpu: number): boolean {
  return spawnSync('taskset', ['-a', '-p', '-c', String(cpu), String(pid)], { stdio: 'ignore' }).status === 0
}

export async function openStage(signal: AbortSignal): Promise<Stage> {
  const ending: (() => Promise<unknown>)[] = []
  const postgresFolder = findInstalled('postgres', process.env)
  const redisCommand = findInstalled('redis', process.env)
  if (postgresFolder === undefined || redisCommand === undefined) {
    throw new ServicesError(explainMissing(['postgres', 'redis']))
  }
  const provider = await startProvider()
  ending.push(() => provider.close())
  const pg: Server = await startPostgres(postgresFolder, signal, {
    settings: ['synchronous_commit=on', 'shared_buffers=256MB'],
  })
  ending.push(() => pg.close())
  const redis: Server = await startRedis(redisCommand, signal)
  ending.push(() => redis.close())
  for (const { pid } of [pg, redis]) pin(pid, loadCpu)
  const admin = postgres(pg.url, { max: 1, onnotice: () => undefined })
  ending.push(() => admin.end({ timeout: 1 }))
  let databases = 0

  async function createDatabase(): Promise<string> {
    databases += 1
    const name = `bench_${databases}`
    await admin.unsafe(`create database ${name}`)
    const url = new URL(pg.url)
    url.pathname = `/${name}`
    return url.href
  }

  async function launch(
    name: ContenderName,
    args: readonly string[],
    env: Readonly<Record<string, string>>,
  ): Promise<{ child: ChildProcess; url: string }> {
    const child = spawn('taskset', ['-c', String(contenderCpu), process.execPath, ...args], {
      cwd: root,
      env: { PATH: process.env.PATH ?? '', NODE_ENV: 'production', ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    const lines: string[] = []
    const listening = Promise.withResolvers<string>()
    for (const stream of [child.stdout, child.stderr]) {
      createInterface({ input: stream as NodeJS.ReadableStream }).on('line', (line) => {
        if (lines.length < 50) lines.push(line)
        const url = /(http:\/\/127\.0\.0\.1:\d+)/.exec(line)?.[1]
        if (url !== undefined) listening.resolve(url)
      })
    }
    const said = () => new Error(`${name} did not start; it said:\n${lines.join('\n')}`)
    child.once('exit', () => listening.reject(said()))
    const late = setTimeout(() => listening.reject(said()), startMs)
    const url = await listening.promise.finally(() => clearTimeout(late))
    return { child, url }
  }

  async function start(name: ContenderName, more: Readonly<Record<string, string>> = {}): Promise<Contender> {
    const databaseUrl = name === 'gateway' || name === 'gateway-postgres' || name === 'wired' ? await createDatabase() : ''
    const launched =
      name === 'pipe'
        ? await launch(name, ['scripts/bench/contenders/pipe.ts', provider.url], more)
        : name === 'wired'
          ? await launch(name, ['scripts/bench/contenders/wired.ts', provider.url, databaseUrl, redis.url], more)
          : await launch(name, ['src/main.ts'], gatewayEnv(name, databaseUrl, more))
    const { child, url } = launched
    const pid = child.pid ?? 0
    if (name.startsWith('gateway')) await untilReady(url)
    const sql = databaseUrl === '' ? undefined : postgres(databaseUrl, { max: 1, onnotice: () => undefined })
    const end = async () => {
      await sql?.end({ timeout: 1 })
      if (child.exitCode !== null || child.signalCode !== null) return
      child.kill('SIGTERM')
      const late = setTimeout(() => child.kill('SIGKILL'), endMs)
      await once(child, 'exit')
      clearTimeout(late)
    }
    ending.push(end)
    return {
      name,
      url,
      pid,
      format: name === 'wired' ? 'ui' : name.startsWith('gateway') ? 'native' : 'openai',
      ask: (number, tokens) => askOf(name, url, number, tokens),
      async stored() {
        if (sql === undefined) return undefined
        const table = name === 'wired' ? 'messages' : 'chat_messages'
        const complete = name === 'wired' ? sql`role = 'assistant'` : sql`role = 'assistant' and status = 'completed'`
        const [row] = await sql<{ rows: number; units: number }[]>`
          select count(*)::int as rows, coalesce(sum(length(content)), 0)::int as units from ${sql(table)} where ${complete}`
        return row
      },
      cpuMs: () => cpuMsOf(pid),
      memoryBytes: () => memoryOf(pid),
      end,
    }
  }

  function gatewayEnv(name: ContenderName, databaseUrl: string, more: Readonly<Record<string, string>>) {
    return {
      ...(databaseUrl === '' ? { DATA_DIR: 'memory://' } : { DATABASE_URL: databaseUrl }),
      ...(name === 'gateway' ? { REDIS_URL: redis.url } : {}),
      PORT: '0',
      HOST: '127.0.0.1',
      LOG_LEVEL: 'info',
      OPENAI_BASE_URL: provider.url,
      RUNS_PER_OWNER: '0',
      VIEWERS_PER_OWNER: '0',
      RATE_LIMIT_RUNS: '0',
      RATE_LIMIT_READS: '0',
      RATE_LIMIT_VISITORS: '0',
      ...more,
    }
  }

  return {
    provider,
    start,
    startBeside: () => Promise.reject(new Error('later')),
    storesCpuMs: () => ({ postgresMs: cpuMsOfTree(pg.pid), redisMs: cpuMsOf(redis.pid) }),
    async close() {
      for (const end of ending.toReversed()) await end().catch(() => undefined)
    },
  }
}

function askOf(name: ContenderName, url: string, number: number, tokens: number) {
  const words = `reply ${number} of ${tokens}`
  if (name.startsWith('gateway')) {
    return {
      url: new URL(`${url}/api/v1/chat/stream`),
      headers: { 'x-visitor-token': visitorOf(number) },
      body: JSON.stringify({ message: words }),
    }
  }
  if (name === 'wired') {
    const message = { id: `m${number}`, role: 'user', parts: [{ type: 'text', text: words }] }
    return {
      url: new URL(`${url}/api/chat`),
      headers: {},
      body: JSON.stringify({ id: `chat-${number}-${Date.now()}`, messages: [message], trigger: 'submit-message' }),
    }
  }
  return {
    url: new URL(`${url}/v1/chat/completions`),
    headers: {},
    body: JSON.stringify({ model: 'bench', stream: true, messages: [{ role: 'user', content: words }] }),
  }
}

async function untilReady(url: string): Promise<void> {
  for (const giveUpAt = Date.now() + startMs; Date.now() < giveUpAt; ) {
    if ((await fetch(`${url}/health/ready`)).ok) return
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  throw new Error(`not ready in ${startMs} ms`)
}
