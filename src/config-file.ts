/**
 * Reading the config file. It says what variables are too small for: providers, the models and settings of modes, prices,
 * budgets (config-schema). Secrets are not in it: it names the variables that hold them.
 *
 * A JSON file is plain data. A TypeScript or JavaScript file has it as its default export, and may also bring functions:
 * agents, tools, makers of artifacts, providers. These are handed on untouched.
 *
 * Reading happens once, before anything is open. A file that cannot be read, that throws, or that does not come to its end
 * within `loadMs`, stops the start; what it threw is not shown, because it can hold anything.
 */
import { readFile, stat } from 'node:fs/promises'
import { basename, extname, join, resolve } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import { type ConfigFile, extensionMembers, inFile } from './config-schema.ts'
import { ConfigError } from './config-values.ts'
import type { ServerTool } from './runs/tools.ts'
import type { ArtifactGenerator } from './sessions/generators.ts'
import type { Agent } from './upstream/agent.ts'
import type { Upstream } from './upstream/upstream.ts'

/** The names that are looked for in the working folder when CONFIG_FILE is not set; the first one there is taken. */
const defaultNames = ['verbatim.config.ts', 'verbatim.config.json'] as const
/** An await at the top of a file that is never answered must not keep the start waiting. */
const loadMs = 10_000
const fileBytesMax = 1024 * 1024

/** What a file may bring beside plain data. */
export interface Extensions {
  readonly agents?: readonly Agent[]
  readonly tools?: readonly ServerTool[]
  readonly generators?: readonly ArtifactGenerator[]
  readonly upstreams?: readonly Upstream[]
}

/** For authors: `export default { … } satisfies VerbatimConfig`. */
export type VerbatimConfig = Omit<ConfigFile, keyof typeof extensionMembers> & Extensions

/** Those that are there. @param contents of a file, checked */
export function extensionsOf(contents: unknown): Extensions {
  return Object.fromEntries(Object.entries(Object(contents)).filter(([name]) => Object.hasOwn(extensionMembers, name)))
}

/**
 * @param path CONFIG_FILE; undefined: the default names in `folder`
 * @param folder the working folder; relative paths begin there
 * @param limitMs for a file that is a program
 * @returns what the file holds, unchecked; undefined when there is none
 * @throws ConfigError when it cannot be read, throws, or takes longer than that
 */
export async function readConfigFile(path: string | undefined, folder: string, limitMs = loadMs): Promise<unknown> {
  if (path !== undefined) return load(resolve(folder, path), 'The file that CONFIG_FILE names', limitMs)
  for (const name of defaultNames) {
    const candidate = join(folder, name)
    // A file that is there and may not be read is no reason to take another one: reading it says so.
    if (await isThere(candidate)) return load(candidate, name, limitMs)
  }
  return undefined
}

/** @param label how a message begins */
async function load(path: string, label: string, limitMs: number): Promise<unknown> {
  const found = await stat(path).catch((error: NodeJS.ErrnoException) => {
    throw new ConfigError(`${label} cannot be read (${error.code})`)
  })
  if (!found.isFile()) throw new ConfigError(`${label} is no file`)
  if (found.size > fileBytesMax) throw new ConfigError(`${label} has more than ${fileBytesMax} bytes`)
  const kind = extname(path)
  if (kind === '.json') return readJson(path, label)
  if (['.ts', '.mts', '.js', '.mjs'].includes(kind)) return importDefault(path, label, limitMs)
  throw new ConfigError(`${label} must end in .ts, .mts, .js, .mjs or .json`)
}

async function readJson(path: string, label: string): Promise<unknown> {
  const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
    throw new ConfigError(`${label} cannot be read (${error.code})`)
  })
  const value = parseJson(text, label)
  const extension = Object.keys(extensionMembers).find((name) => Object.hasOwn(Object(value), name))
  if (extension === undefined) return value
  throw new ConfigError(`${inFile(extension)} holds functions: only a TypeScript or JavaScript file can have it`)
}

function parseJson(text: string, label: string): unknown {
  try {
    return JSON.parse(text)
  } catch (error) {
    // Its words quote the text around the mistake; the place alone says enough.
    const place = /line \d+ column \d+/.exec(error instanceof Error ? error.message : '')?.[0]
    throw new ConfigError(`${label} is not JSON${place === undefined ? '' : ` (${place})`}`)
  }
}

async function importDefault(path: string, label: string, limitMs: number): Promise<unknown> {
  const timer = new AbortController()
  const late = pause(limitMs, undefined, { signal: timer.signal }).then(
    () => {
      throw new ConfigError(`${label} was not loaded within ${limitMs} ms`)
    },
    () => undefined, // The file came first.
  )
  try {
    const module = await Promise.race([import(pathToFileURL(path).href), late])
    if (module.default !== undefined) return module.default
  } catch (error) {
    if (error instanceof ConfigError) throw error
    throw new ConfigError(`${label} threw ${describeThrown(error, basename(path))}`)
  } finally {
    timer.abort()
  }
  throw new ConfigError(`${label} has no default export`)
}

/** What was thrown and where, without its words: they can hold anything. */
function describeThrown(error: unknown, file: string): string {
  if (!(error instanceof Error)) return 'something that is no error'
  const { code } = error as NodeJS.ErrnoException
  const [place] = (error.stack ?? '')
    .split(file)
    .flatMap((rest, index) => (index === 0 ? [] : (/^:(\d+(?::\d+)?)/.exec(rest)?.[1] ?? [])))
  const name = /^\w*Error$/.test(error.name) ? error.name : 'Error'
  const reason = typeof code === 'string' && /^E[A-Z_]+$/.test(code) ? ` (${code})` : ''
  return `${name}${reason}${place === undefined ? '' : ` at ${file}:${place}`}`
}

async function isThere(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    (error: NodeJS.ErrnoException) => error.code !== 'ENOENT',
  )
}
