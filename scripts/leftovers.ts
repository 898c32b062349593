/**
 * What a run left behind: databases, Redis keys and processes that carry its name. A test that leaks is a test that
 * fails, so each is named, and then removed. Everything else on these services stays untouched.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import postgres from 'postgres'

/** Longest wait for an answer of a service while cleaning up. */
const answerMs = 10_000
/** Time that processes of the run get to end by themselves after their tests have ended. */
const endingMs = 2_000
const lookMs = 50
/** Redis answers this many keys to one SCAN, about. */
const scanCount = 1000

/** Drops the databases whose name begins with the run's. @returns their names */
export async function dropDatabases(url: string, run: string): Promise<readonly string[]> {
  const sql = postgres(url, { max: 1, connect_timeout: answerMs / 1000, onnotice: () => undefined })
  try {
    const rows = await sql<{ datname: string }[]>`
      select datname from pg_database where starts_with(datname, ${run}) order by datname`
    for (const { datname } of rows) await sql`drop database if exists ${sql(datname)} with (force)`
    return rows.map((row) => `database ${row.datname}`)
  } finally {
    await sql.end({ timeout: 1 })
  }
}

/** Deletes the keys that have the run's name in theirs. @returns their names */
export async function deleteKeys(url: string, run: string): Promise<readonly string[]> {
  const redis = new Redis(url, { lazyConnect: true, connectTimeout: answerMs, commandTimeout: answerMs })
  redis.on('error', () => undefined) // The same error rejects the commands below.
  const names = new Set<string>()
  try {
    await redis.connect()
    let cursor = '0'
    do {
      const [next, keys] = await redis.scan(cursor, 'MATCH', `*${run}*`, 'COUNT', scanCount)
      for (const key of keys) names.add(key)
      if (keys.length > 0) await redis.del(...keys)
      cursor = next
    } while (cursor !== '0')
    return [...names].toSorted().map((key) => `Redis key ${key}`)
  } finally {
    redis.disconnect()
  }
}

/** Which processes are looked for. */
export interface Lost {
  /** Those of a process group. */
  readonly group?: number
  /** Those that carry the run's name in their environment: a browser, or a server, makes a group of its own. */
  readonly run?: string
}

/**
 * Ends the processes that outlived their tests. Reads /proc; elsewhere only a group is known.
 * @returns one line for each
 */
export async function endProcesses(lost: Lost): Promise<readonly string[]> {
  const deadline = performance.now() + endingMs
  let survivors = findProcesses(lost)
  while (survivors.length > 0 && performance.now() < deadline) {
    await sleep(lookMs)
    survivors = findProcesses(lost)
  }
  for (const { pid } of survivors) kill(pid)
  while (survivors.some(({ pid }) => isRunning(pid)) && performance.now() < deadline + endingMs) await sleep(lookMs)
  return survivors.map(({ pid, command }) => `process ${pid} ${command}`)
}

interface Survivor {
  /** Negative for a whole group, as kill(2) wants it. */
  readonly pid: number
  readonly command: string
}

function findProcesses(lost: Lost): readonly Survivor[] {
  const { group } = lost
  // The group is asked for first: most files leave nobody in it, and to read all of /proc takes milliseconds.
  if (group !== undefined && !isAlive(-group)) return []
  if (process.platform !== 'linux') return group === undefined ? [] : [{ pid: -group, command: '(a group)' }]
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((name) => {
      const survivor = readSurvivor(Number(name), lost)
      return survivor === undefined ? [] : [survivor]
    })
}

function readSurvivor(pid: number, { group, run }: Lost): Survivor | undefined {
  try {
    // proc(5): "pid (name) state ppid pgrp …"; the name may hold spaces and parentheses.
    const [state, , processGroup] = readFileSync(`/proc/${pid}/stat`, 'utf8')
      .replace(/^.*\) /s, '')
      .split(' ')
    if (state === 'Z' || state === 'X') return undefined
    const isOurs =
      Number(processGroup) === group ||
      (run !== undefined && readFileSync(`/proc/${pid}/environ`, 'latin1').includes(`TEST_RUN=${run}\0`))
    if (!isOurs) return undefined
    return { pid, command: readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').join(' ').slice(0, 200) }
  } catch {
    return undefined // It has ended since the listing, or belongs to another user.
  }
}

/** A killed process that nobody has waited for stays as a zombie: it has ended all the same. */
function isRunning(pid: number): boolean {
  if (process.platform !== 'linux') return isAlive(pid)
  try {
    return !/^.*\) [ZX] /s.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))
  } catch {
    return false // It is gone altogether.
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false // ESRCH: nobody is there.
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    return // ESRCH: it has just ended by itself.
  }
}
