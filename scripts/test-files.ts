/**
 * Runs test files: each is a program of its own that prints TAP and says by its exit code how it went, so node runs it as
 * it is. tap's own command does the same and loads hooks into the file, and into every process that the file starts; they
 * took a quarter of what the whole run takes of processors, and gateways under test are to be those that people run.
 *
 * What a file prints is given on when it has ended. A file that takes too long is told so with SIGALRM, which makes tap say
 * what it was waiting for, and is killed if that does not end it. Each file leads a process group, in which nobody may be
 * left when it has ended. An interrupt ends all of them.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { endProcesses } from './leftovers.ts'

export interface TestFilesOptions {
  readonly cwd: string
  readonly env: NodeJS.ProcessEnv
  /** Flags of node. */
  readonly flags: readonly string[]
  /** Files at once. */
  readonly jobs: number
  /** Files that need the whole machine: they run behind all others, one after the other. */
  readonly isAlone: (file: string) => boolean
  /** Of one file; its tests may ask tap for more. */
  readonly timeoutMs: number
  readonly onResult: (result: FileResult) => void
  /** No more files are begun. */
  readonly isOver: () => boolean
}

export interface FileResult {
  readonly file: string
  /** Standard output, line by line. */
  readonly lines: readonly string[]
  /** The exit code, or the signal that ended it. */
  readonly ended: number | NodeJS.Signals
  readonly ms: number
  /** Processes that it left in its group, one line for each. They are ended. */
  readonly left: readonly string[]
}

/** A file whose tests have asked for more time than all get is given this much, in all. */
const askedMsMax = 300_000
/** Time that a file gets to say what it was waiting for. */
const lastWordsMs = 5_000
/** Time for the last lines of a file to arrive after its exit. */
const lastLinesMs = 1_000
/** Output of one file beyond this is not kept: something prints without end. */
const outputBytesMax = 64 * 1024 * 1024

/** Resolves when all files have ended, or were not begun because it is over. */
export async function runTestFiles(
  files: readonly string[],
  options: TestFilesOptions,
  signal: AbortSignal,
): Promise<void> {
  async function work(waiting: string[]): Promise<void> {
    for (let file = waiting.shift(); file !== undefined; file = waiting.shift()) {
      if (signal.aborted || options.isOver()) return
      options.onResult(await runFile(file, options, signal))
    }
  }
  const { true: alone = [], false: others = [] } = Object.groupBy(files, (file) => `${options.isAlone(file)}`)
  await Promise.all(Array.from({ length: options.jobs }, () => work(others)))
  await work(alone)
}

async function runFile(
  file: string,
  { cwd, env, flags, timeoutMs }: TestFilesOptions,
  signal: AbortSignal,
): Promise<FileResult> {
  const startedAt = performance.now()
  const child = spawn(process.execPath, [...flags, file], {
    cwd,
    env: { ...env, TAP_TIMEOUT: String(timeoutMs / 1000) },
    stdio: ['ignore', 'pipe', 'inherit'],
    detached: true,
  })
  const killGroup = (name: NodeJS.Signals) => signalGroup(child, name)
  const killAtExit = () => killGroup('SIGKILL')
  process.on('exit', killAtExit)
  const output = keepOutput(child, () => killGroup('SIGKILL'))
  const ended = new AbortController()
  const watched = watch(killGroup, ended.signal, signal)
  const [code, name] = await once(child, 'exit')
  ended.abort()
  await watched
  process.off('exit', killAtExit)
  const left = child.pid === undefined ? [] : await endProcesses({ group: child.pid })
  const lines = (await output()).split('\n')
  return { file, lines, ended: code ?? name, ms: performance.now() - startedAt, left }
}

/** Ends a file that takes too long, or at once when the run is interrupted. Resolves when it has ended. */
async function watch(kill: (name: NodeJS.Signals) => void, ended: AbortSignal, interrupt: AbortSignal): Promise<void> {
  const reason = await within(askedMsMax, AbortSignal.any([ended, interrupt]))
  if (ended.aborted) return
  kill(reason === 'late' ? 'SIGALRM' : 'SIGTERM')
  await within(lastWordsMs, ended)
  if (!ended.aborted) kill('SIGKILL')
}

/** @returns `late` after the time, else `aborted` */
async function within(ms: number, signal: AbortSignal): Promise<'late' | 'aborted'> {
  return sleep(ms, 'late' as const, { signal }).catch(() => 'aborted' as const)
}

/** @returns what gives all that it has printed, when it has ended */
function keepOutput({ stdout }: ChildProcess, onTooMuch: () => void): () => Promise<string> {
  const chunks: Buffer[] = []
  let bytes = 0
  stdout?.on('data', (chunk: Buffer) => {
    bytes += chunk.length
    if (bytes <= outputBytesMax) chunks.push(chunk)
    else onTooMuch()
  })
  const closed = new AbortController()
  stdout?.on('close', () => closed.abort())
  return async () => {
    // A process that outlived it in a group of its own may hold the pipe open: what the file wrote is there by then.
    await within(lastLinesMs, closed.signal)
    stdout?.destroy()
    return Buffer.concat(chunks).toString()
  }
}

function signalGroup({ pid }: ChildProcess, name: NodeJS.Signals): void {
  try {
    if (pid !== undefined) process.kill(-pid, name)
  } catch {
    return // ESRCH: the whole group has ended.
  }
}
