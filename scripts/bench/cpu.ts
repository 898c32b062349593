/**
 * What the operating system says of a process: processor time and memory. Linux only, from /proc: the same clock for a
 * gateway, for Postgres with all its backends, and for Redis, and nothing in the process itself has to take part.
 */
import { readdirSync, readFileSync } from 'node:fs'

/** Ticks of a second in /proc/<pid>/stat; the same on every Linux that Node runs on. */
const ticksPerSecond = 100

/** User and system time of a process, and of its children that it has waited for, in milliseconds. */
export function cpuMsOf(pid: number): number {
  const fields = statOf(pid)
  if (fields === undefined) return 0
  const [user = 0, system = 0, childUser = 0, childSystem = 0] = fields.slice(11, 15).map(Number)
  return ((user + system + childUser + childSystem) * 1000) / ticksPerSecond
}

/** The same of a process and of all below it. */
export function cpuMsOfTree(pid: number): number {
  const parents = new Map<number, number[]>()
  for (const name of readdirSync('/proc')) {
    const child = Number(name)
    if (!Number.isInteger(child)) continue
    const parent = Number(statOf(child)?.[1])
    parents.set(parent, [...(parents.get(parent) ?? []), child])
  }
  const sum = (one: number): number =>
    cpuMsOf(one) + (parents.get(one) ?? []).reduce((total, child) => total + sum(child), 0)
  return sum(pid)
}

/** Resident memory in bytes. */
export function memoryOf(pid: number): number {
  const kilobytes = /^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
  return Number(kilobytes) * 1024
}

/** From the state on: the name in front may hold anything. */
function statOf(pid: number): string[] | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8')
    return text.slice(text.lastIndexOf(')') + 2).split(' ')
  } catch {
    return undefined // it has ended meanwhile
  }
}
