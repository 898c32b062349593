/**
 * Finds what the tests need (Postgres, Redis, Chromium) or starts it, and gives back what must be ended afterwards.
 * The order for each: the address in the environment, a running service that lets us in, installed binaries in a
 * folder of their own, and, as root on a machine with apt, installing them. It never runs with less than was asked
 * for: what cannot be had is an error that holds the command to run.
 */
import { accessSync, constants, existsSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { userInfo } from 'node:os'
import { delimiter, join } from 'node:path'
import {
  type Answer,
  askPostgres,
  askRedis,
  run,
  type Server,
  ServicesError,
  startPostgres,
  startRedis,
} from './servers.ts'

/** Longest time for apt-get update and for apt-get install; 12 s and 60 s with a near mirror. */
const aptMs = 300_000
/** `drop database … with (force)` came with Postgres 13, `XADD … NOMKSTREAM` with Redis 6.2. */
const postgresVersionMin = 13
const redisVersionMin = 6.2

export type Need = 'postgres' | 'redis' | 'chromium'

/** Where a need is met. `install` and `impossible` are the two cases in which nothing is there yet. */
export type Choice =
  | { readonly kind: 'given'; readonly at: string }
  | { readonly kind: 'running'; readonly at: string }
  | { readonly kind: 'installed'; readonly at: string }
  | { readonly kind: 'install' }
  | { readonly kind: 'impossible' }

export interface Services {
  readonly databaseUrl: string | undefined
  readonly redisUrl: string | undefined
  readonly chromiumPath: string | undefined
  /** One line for each need: what was found, and where. Never a URL with a password. */
  readonly lines: readonly string[]
  readonly servers: readonly Server[]
}

const packages: Readonly<Record<Need, string>> = {
  postgres: 'postgresql',
  redis: 'redis-server',
  chromium: 'chromium',
}

/**
 * Chromium without its windows, where there is such a package: the same engine with less around it. The tests of the page
 * take a processor 20 s with it where they take 30 with the whole (test/browser/page-actions, busy machine).
 */
const headlessShell = 'chromium-headless-shell'

/** The order in which a need is met: given, running, installed, install. */
export function choose(found: {
  readonly given: string | undefined
  readonly running: string | undefined
  readonly installed: string | undefined
  readonly canInstall: boolean
}): Choice {
  if (found.given !== undefined) return { kind: 'given', at: found.given }
  if (found.running !== undefined) return { kind: 'running', at: found.running }
  if (found.installed !== undefined) return { kind: 'installed', at: found.installed }
  return found.canInstall ? { kind: 'install' } : { kind: 'impossible' }
}

/** The sentence for needs that cannot be met: what is missing, the command that brings it, the explicit way without. */
export function explainMissing(needs: readonly Need[]): string {
  const ways = [
    ...(needs.includes('postgres') ? ['set TEST_DATABASE_URL'] : []),
    ...(needs.includes('redis') ? ['set TEST_REDIS_URL'] : []),
    ...(needs.includes('chromium') ? ['set CHROMIUM_PATH'] : []),
    ...(needs.some((need) => need !== 'chromium') ? ['TEST_EMBEDDED_ONLY=1 runs without Postgres and Redis'] : []),
    ...(needs.includes('chromium') ? ['TEST_WITHOUT_BROWSER=1 runs without the browser tests'] : []),
  ]
  const list = needs.map((need) => packages[need]).join(' ')
  return [
    `The tests need ${needs.join(', ')}, and found none. Install with`,
    `  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${list}`,
    `or: ${ways.join('; ')}.`,
  ].join('\n')
}

/**
 * @param folders that may hold `initdb` and `postgres`, in the order of PATH, then Debian's versioned ones
 * @returns the first folder of PATH that has both, else the newest of Debian's
 */
export function choosePostgresFolder(folders: readonly string[], has: (path: string) => boolean): string | undefined {
  const complete = folders.filter((folder) => has(join(folder, 'initdb')) && has(join(folder, 'postgres')))
  const version = (folder: string): number => Number(/\/postgresql\/(\d+)\/bin$/.exec(folder)?.[1] ?? Infinity)
  return complete.toSorted((a, b) => {
    const [left, right] = [version(a), version(b)]
    return left === right ? 0 : right - left
  })[0]
}

/**
 * Finds, installs or starts what is needed.
 * @throws ServicesError when something is missing or does not answer. What was started until then is ended.
 */
export async function openServices(
  env: Readonly<Record<string, string | undefined>>,
  needs: readonly Need[],
  say: (line: string) => void,
  signal: AbortSignal,
): Promise<Services> {
  const canInstall = process.getuid?.() === 0 && findInPath('apt-get', env) !== undefined
  const look = async (need: Need): Promise<readonly [Need, Choice]> => {
    const given = readGiven(need, env)
    // A probe of a running service says why it was passed over, so it is only made when its answer counts.
    const running = given === undefined ? await findRunning(need, say) : undefined
    return [need, choose({ given, running, installed: findInstalled(need, env), canInstall })]
  }

  let choices = await Promise.all(needs.map(look))
  const missing = choices.filter(([, choice]) => choice.kind === 'install').map(([need]) => need)
  const impossible = choices.filter(([, choice]) => choice.kind === 'impossible').map(([need]) => need)
  if (impossible.length > 0) throw new ServicesError(explainMissing(impossible))
  if (missing.length > 0) {
    await install(missing, say, signal)
    choices = choices.map(([need, choice]) => {
      if (choice.kind !== 'install') return [need, choice]
      const installed = findInstalled(need, env)
      if (installed === undefined) throw new ServicesError(`apt-get brought no ${need}.\n${explainMissing([need])}`)
      return [need, { kind: 'installed', at: installed }]
    })
  }

  const urls = new Map<Need, string>()
  const lines: string[] = []
  const servers: Server[] = []
  try {
    for (const [need, choice] of choices) {
      if (choice.kind === 'install' || choice.kind === 'impossible') throw new ServicesError(explainMissing([need]))
      signal.throwIfAborted()
      if (need !== 'chromium' && choice.kind === 'installed') {
        const server = await (need === 'postgres' ? startPostgres(choice.at, signal) : startRedis(choice.at, signal))
        servers.push(server)
        urls.set(need, server.url)
        lines.push(`${need.padEnd(9)} started from ${choice.at}, port ${new URL(server.url).port}`)
        continue
      }
      if (choice.kind === 'given') await checkGiven(need, choice.at)
      urls.set(need, choice.at)
      lines.push(`${need.padEnd(9)} ${describe(need, choice)}`)
    }
  } catch (error) {
    await Promise.all(servers.map((server) => server.close()))
    throw error
  }
  return {
    databaseUrl: urls.get('postgres'),
    redisUrl: urls.get('redis'),
    chromiumPath: urls.get('chromium'),
    lines,
    servers,
  }
}

/** Path of the installed `postgres` folder, `redis-server` or Chromium; for tests that start private servers. */
export function findInstalled(need: Need, env: Readonly<Record<string, string | undefined>>): string | undefined {
  if (need === 'redis') return findInPath('redis-server', env)
  if (need === 'chromium') {
    const debian = [headlessShell, packages.chromium].map((name) => `/usr/bin/${name}`)
    return debian.find(isExecutable) ?? findInPath(packages.chromium, env)
  }
  const debian = '/usr/lib/postgresql'
  const versions = existsSync(debian) ? readdirSync(debian).map((version) => join(debian, version, 'bin')) : []
  return choosePostgresFolder([...readPath(env), ...versions], isExecutable)
}

function readGiven(need: Need, env: Readonly<Record<string, string | undefined>>): string | undefined {
  const variable = givenVariables[need]
  return env[variable] === '' ? undefined : env[variable]
}

const givenVariables: Readonly<Record<Need, string>> = {
  postgres: 'TEST_DATABASE_URL',
  redis: 'TEST_REDIS_URL',
  chromium: 'CHROMIUM_PATH',
}

async function checkGiven(need: Need, at: string): Promise<void> {
  const variable = givenVariables[need]
  if (need === 'chromium') {
    if (!isExecutable(at)) throw new ServicesError(`${variable} is not a program that can be run`)
    return
  }
  const answer = await (need === 'postgres' ? askPostgres(at) : askRedis(at))
  if (answer === undefined) throw new ServicesError(`${variable} is set, and nothing there lets us in`)
  const refusal = refuse(need, answer)
  if (refusal !== undefined) throw new ServicesError(`${variable}: ${refusal}`)
}

async function findRunning(need: Need, say: (line: string) => void): Promise<string | undefined> {
  if (need === 'chromium') return undefined
  const candidates =
    need === 'redis'
      ? ['redis://127.0.0.1:6379']
      : [...new Set([userInfo().username, 'postgres'])].map(
          (user) => `postgres://${encodeURIComponent(user)}@127.0.0.1:5432/postgres`,
        )
  for (const url of candidates) {
    const answer = await (need === 'postgres' ? askPostgres(url) : askRedis(url))
    if (answer === undefined) continue
    const refusal = refuse(need, answer)
    if (refusal === undefined) return url
    say(`${need.padEnd(9)} passing over the one on port ${new URL(url).port}: ${refusal}`)
  }
  return undefined
}

/** Why a service that answers is of no use, or undefined. */
export function refuse(need: 'postgres' | 'redis', answer: Answer): string | undefined {
  const oldest = need === 'postgres' ? postgresVersionMin : redisVersionMin
  if (answer.version < oldest) return `version ${answer.version} is older than ${oldest}`
  return answer.mayCreate ? undefined : 'this role may not create databases'
}

function describe(need: Need, choice: Choice & { readonly at: string }): string {
  if (need === 'chromium') return choice.at
  const { hostname, port } = new URL(choice.at)
  const where = port === '' ? hostname : `${hostname}:${port}`
  return choice.kind === 'given' ? `${where} (${givenVariables[need]})` : `${where} (already running)`
}

async function install(needs: readonly Need[], say: (line: string) => void, signal: AbortSignal): Promise<void> {
  let list = needs.map((need) => packages[need])
  say(`installing ${list.join(' ')} with apt-get`)
  const policy = '/usr/sbin/policy-rc.d'
  // Debian's packages start their service on the default port unless this file forbids it (invoke-rc.d(8)).
  const ownsPolicy = !existsSync(policy)
  if (ownsPolicy) writeFileSync(policy, '#!/bin/sh\nexit 101\n', { mode: 0o755 })
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' }
  const options = ['-q', '-o', 'DPkg::Lock::Timeout=120']
  try {
    await run('apt-get', ['update', ...options], { env, timeoutMs: aptMs, signal })
    if (needs.includes('chromium') && (await isKnownToApt(headlessShell, signal))) {
      list = list.map((name) => (name === packages.chromium ? headlessShell : name))
    }
    const args = ['install', '-y', '--no-install-recommends', ...options, ...list]
    await run('apt-get', args, { env, timeoutMs: aptMs, signal })
  } catch (error) {
    signal.throwIfAborted()
    throw new ServicesError(`apt-get could not install ${list.join(' ')}.\n${explainMissing(needs)}`, { cause: error })
  } finally {
    if (ownsPolicy) rmSync(policy, { force: true })
  }
}

async function isKnownToApt(name: string, signal: AbortSignal): Promise<boolean> {
  try {
    await run('apt-cache', ['show', name], { timeoutMs: aptMs, signal })
    return true
  } catch {
    signal.throwIfAborted()
    return false // it says so by its exit code
  }
}

function readPath(env: Readonly<Record<string, string | undefined>>): readonly string[] {
  return (env.PATH ?? '').split(delimiter).filter((folder) => folder !== '')
}

export function findInPath(name: string, env: Readonly<Record<string, string | undefined>>): string | undefined {
  // npm puts node_modules/.bin of every parent folder in front: none of these programs comes from there.
  const folders = readPath(env).filter((folder) => !folder.endsWith(join('node_modules', '.bin')))
  const folder = folders.find((candidate) => isExecutable(join(candidate, name)))
  return folder === undefined ? undefined : join(folder, name)
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false // Not there, or not ours to run: the same to the caller.
  }
}
