/**
 * What the operating system says of processes and of the machine: processor time and memory. Linux only, from /proc: the
 * same clock for a gateway, for Postgres with all its backends, and for Redis, and none of them has to take part. A process
 * that has ended used nothing; whoever measures it finds out by other means.
 */
import { readdirSync, readFileSync } from 'node:fs'

/** Ticks of a second in /proc/stat; the same on every Linux that Node runs on. */
const msPerTick = 10

/** Processor time of all threads of a process, user and system, in milliseconds. */
export function cpuMsOf(pid: number): number {
  // Not the ticks of /proc/<pid>/stat: ten streams use no more than ten of them in a window.
  const threads = readThere(() => readdirSync(`/proc/${pid}/task`)) ?? []
  return threads.reduce((sum, thread) => {
    const text = readThere(() => readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'utf8')) ?? '0'
    return sum + Number(text.split(' ')[0]) / 1e6
  }, 0)
}

/** The same of a process and of all below it. */
export function cpuMsOfTree(pid: number): number {
  return familyOf(pid).reduce((sum, one) => sum + cpuMsOf(one), 0)
}

/** Resident memory in bytes. */
export function memoryOf(pid: number): number {
  const status = readThere(() => readFileSync(`/proc/${pid}/status`, 'utf8')) ?? ''
  return Number(/^VmRSS:\s+(\d+) kB/m.exec(status)?.[1]) * 1024
}

/** How many files a process may have open; sockets are files. */
export function openFilesMax(): number {
  return Number(/^Max open files\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1])
}

export interface MachineCpu {
  /** Of all processors together. */
  readonly busyMs: number
  /** What the host took for others. */
  readonly stealMs: number
}

export function readMachineCpu(): MachineCpu {
  const line = readFileSync('/proc/stat', 'utf8').split('\n', 1)[0] ?? ''
  const [user = 0, nice = 0, system = 0, , , irq = 0, softIrq = 0, steal = 0] = line.split(/\s+/).slice(1).map(Number)
  return { busyMs: (user + nice + system + irq + softIrq) * msPerTick, stealMs: steal * msPerTick }
}

function familyOf(pid: number): readonly number[] {
  const children = readThere(() => readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8')) ?? ''
  return [
    pid,
    ...children
      .split(' ')
      .filter((text) => text !== '')
      .flatMap((child) => familyOf(Number(child))),
  ]
}

function readThere<T>(read: () => T): T | undefined {
  try {
    return read()
  } catch {
    return undefined // it has ended meanwhile
  }
}
