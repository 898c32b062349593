/**
 * `node scripts/strip.ts <files>`: leaves what node makes of TypeScript files in its compile cache (NODE_COMPILE_CACHE), and
 * runs none of them. A process that meets a file which is not there loads the compiler that takes types away, and that takes a
 * processor 0.14 s: nearly every test file would, for itself.
 *
 * A file is loaded, and with each of its imports stands what cannot be run, so it ends there. What is wrong with a file it
 * says itself when it is run; here nothing is refused. A process that dies leaves less in the cache, and no other harm.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { registerHooks } from 'node:module'
import { resolve } from 'node:path'
import { pathToFileURL } from 'node:url'

/** Longest time for all files; they take about a second. */
const stripMs = 30_000

export interface StripOptions {
  /** Of relative paths. */
  readonly cwd: string
  /** The folder of the compile cache. */
  readonly cache: string
  /** Of node, as for the processes that take from the cache: one made with other flags is another one. */
  readonly flags: readonly string[]
  readonly signal: AbortSignal
}

/** Resolves when all that could be made is in the cache. */
export async function stripFiles(files: readonly string[], options: StripOptions): Promise<void> {
  const { cwd, cache, flags, signal } = options
  const child = spawn(process.execPath, [...flags, import.meta.filename, ...files], {
    cwd,
    env: { ...process.env, NODE_COMPILE_CACHE: cache },
    stdio: 'ignore',
    signal: AbortSignal.any([signal, AbortSignal.timeout(stripMs)]),
  })
  // Ended early: then the processes that meet the files do it.
  await once(child, 'close').catch(() => undefined)
}

async function loadAll(paths: readonly string[]): Promise<void> {
  const files = new Set(paths.map((path) => pathToFileURL(resolve(path)).href))
  const nothing = `data:text/javascript,${encodeURIComponent(`throw new Error('only loaded')`)}`
  registerHooks({
    resolve: (specifier, context, next) =>
      context.parentURL !== undefined && files.has(context.parentURL)
        ? { url: nothing, shortCircuit: true }
        : next(specifier, context),
  })
  for (const file of files) {
    // It ends at its first import.
    await import(file).catch(() => undefined)
  }
}

if (import.meta.main) await loadAll(process.argv.slice(2))
