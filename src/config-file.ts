/**
 * The config file: what may stand in it, and reading it. It says what variables are too small for: providers, the models
 * and settings of modes, prices, budgets. Secrets are not in it: it names the variables that hold them.
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
import { type Static, type TSchema, Type } from 'typebox'
import { Value } from 'typebox/value'
import { ConfigError, usdPattern } from './config-values.ts'
import type { ArtifactGenerator } from './sessions/generators.ts'
import type { Agent } from './upstream/agent.ts'
import { Price } from './upstream/price-table.ts'
import { maxTokensFields, providerKinds } from './upstream/providers.ts'
import type { Effort, Upstream } from './upstream/upstream.ts'

/** The names that are looked for in the working folder when CONFIG_FILE is not set; the first one there is taken. */
const defaultNames = ['verbatim.config.ts', 'verbatim.config.json'] as const
/** An await at the top of a file that is never answered must not keep the start waiting. */
const loadMs = 10_000
const fileBytesMax = 1024 * 1024

export const contextTokensMin = 1000
export const contextTokensMax = 10_000_000
/** Models of one mode: the first one, and those that are asked when it fails. */
export const modelsMax = 8

const efforts = ['none', 'minimal', 'low', 'medium', 'high'] as const satisfies readonly Effort[]
const closed = { additionalProperties: false } as const
const usd = Type.Optional(Type.String({ pattern: usdPattern, description: 'USD, a decimal string such as "2.50"' }))
const tokens = Type.Optional(Type.Integer({ minimum: 0, maximum: 1_000_000_000_000 }))

const ProviderEntry = Type.Object(
  {
    kind: Type.Optional(Type.Enum([...providerKinds])),
    base_url: Type.Optional(Type.String({ minLength: 1 })),
    // No small letters: somebody who puts the key itself there is told so.
    api_key_env: Type.Optional(
      Type.String({ pattern: '^[A-Z_][A-Z0-9_]{0,99}$', description: 'the name of a variable, in capitals' }),
    ),
    headers: Type.Optional(Type.Record(Type.String(), Type.String(), { maxProperties: 50 })),
    max_tokens_field: Type.Optional(Type.Enum([...maxTokensFields])),
  },
  closed,
)

const ModeEntry = Type.Object(
  {
    models: Type.Optional(Type.Array(Type.String(), { minItems: 1, maxItems: modelsMax })),
    temperature: Type.Optional(Type.Number({ minimum: 0, maximum: 2 })),
    effort: Type.Optional(Type.Enum([...efforts])),
    max_output_tokens: Type.Optional(Type.Integer({ minimum: 1, maximum: contextTokensMax })),
    context_tokens: Type.Optional(Type.Integer({ minimum: contextTokensMin, maximum: contextTokensMax })),
    system_prompt: Type.Optional(Type.String({ minLength: 1, maxLength: 100_000 })),
    tools: Type.Optional(
      Type.Array(Type.String({ pattern: '^[A-Za-z0-9_-]{1,64}$', description: 'the name of a tool' }), {
        maxItems: 128,
        uniqueItems: true,
      }),
    ),
  },
  closed,
)

/** Checked elsewhere, by those who use them. */
const extensions = {
  agents: Type.Optional(Type.Array(Type.Unknown())),
  tools: Type.Optional(Type.Array(Type.Unknown())),
  generators: Type.Optional(Type.Array(Type.Unknown())),
  upstreams: Type.Optional(Type.Array(Type.Unknown())),
}

const ConfigFile = Type.Object(
  {
    providers: Type.Optional(Type.Record(Type.String(), ProviderEntry, { maxProperties: 100 })),
    modes: Type.Optional(
      Type.Object(
        {
          fast: Type.Optional(ModeEntry),
          balanced: Type.Optional(ModeEntry),
          quality: Type.Optional(ModeEntry),
        },
        closed,
      ),
    ),
    prices: Type.Optional(Type.Array(Price, { maxItems: 1000 })),
    models_allowed: Type.Optional(Type.Array(Type.String(), { maxItems: 1000 })),
    budgets: Type.Optional(
      Type.Object(
        {
          user_day_usd: usd,
          visitor_day_usd: usd,
          day_usd: usd,
          user_day_tokens: tokens,
          visitor_day_tokens: tokens,
        },
        closed,
      ),
    ),
    summaries: Type.Optional(Type.Boolean()),
    ...extensions,
  },
  closed,
)
export type ConfigFile = Static<typeof ConfigFile>

/** What a file may bring beside plain data. */
export interface Extensions {
  readonly agents?: readonly Agent[]
  readonly tools?: readonly unknown[]
  readonly generators?: readonly ArtifactGenerator[]
  readonly upstreams?: readonly Upstream[]
}

/** For authors: `export default { … } satisfies VerbatimConfig`. */
export type VerbatimConfig = Omit<ConfigFile, keyof typeof extensions> & Extensions

/** The place of something in the file, for a message. */
export function inFile(path: string): string {
  return `${path} of the config file`
}

/**
 * @param value what a file holds, or anything else
 * @throws ConfigError naming the place that is wrong
 */
export function checkConfigFile(value: unknown): ConfigFile {
  if (Value.Check(ConfigFile, value)) return value
  const [fault] = Value.Errors(ConfigFile, value)
  throw new ConfigError(fault === undefined ? 'The config file cannot be used' : describeFault(fault))
}

/** Those that are there. @param contents of a file, checked */
export function extensionsOf(contents: unknown): Extensions {
  return Object.fromEntries(Object.entries(Object(contents)).filter(([name]) => Object.hasOwn(extensions, name)))
}

/**
 * @param path CONFIG_FILE; undefined: the default names in `folder`
 * @param folder the working folder; relative paths begin there
 * @returns what the file holds, unchecked; undefined when there is none
 * @throws ConfigError when it cannot be read, throws, or takes longer than `loadMs`
 */
export async function readConfigFile(path: string | undefined, folder: string): Promise<unknown> {
  if (path !== undefined) return load(resolve(folder, path), 'The file that CONFIG_FILE names')
  for (const name of defaultNames) {
    const candidate = join(folder, name)
    // A file that is there and may not be read is no reason to take another one: reading it says so.
    if (await isThere(candidate)) return load(candidate, name)
  }
  return undefined
}

/** @param label how a message begins */
async function load(path: string, label: string): Promise<unknown> {
  const found = await stat(path).catch((error: NodeJS.ErrnoException) => {
    throw new ConfigError(`${label} cannot be read (${error.code})`)
  })
  if (!found.isFile()) throw new ConfigError(`${label} is no file`)
  if (found.size > fileBytesMax) throw new ConfigError(`${label} has more than ${fileBytesMax} bytes`)
  const kind = extname(path)
  if (kind === '.json') return readJson(path, label)
  if (['.ts', '.mts', '.js', '.mjs'].includes(kind)) return importDefault(path, label)
  throw new ConfigError(`${label} must end in .ts, .mts, .js, .mjs or .json`)
}

async function readJson(path: string, label: string): Promise<unknown> {
  const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
    throw new ConfigError(`${label} cannot be read (${error.code})`)
  })
  const value = parseJson(text, label)
  const extension = Object.keys(extensions).find((name) => Object.hasOwn(Object(value), name))
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

async function importDefault(path: string, label: string): Promise<unknown> {
  const timer = new AbortController()
  const late = pause(loadMs, undefined, { signal: timer.signal }).then(
    () => {
      throw new ConfigError(`${label} was not loaded within ${loadMs} ms`)
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

type Fault = ReturnType<typeof Value.Errors>[number]

function describeFault({ keyword, instancePath, schemaPath, params, message }: Fault): string {
  const path = pathOf(instancePath)
  const details = params as Readonly<Record<string, readonly string[] | undefined>>
  if (path === '') return 'The config file must hold an object'
  if (keyword === 'boolean') return `${inFile(path)} is not known`
  if (keyword === 'enum') return `${inFile(path)} must be one of ${details.allowedValues?.join(', ')}`
  if (keyword === 'required') return `${inFile(`${path}.${details.requiredProperties?.[0]}`)} must be set`
  const description = descriptionAt(schemaPath)
  return description === undefined ? `${inFile(path)} ${message}` : `${inFile(path)} must be ${description}`
}

/** `/prices/0/input` is `prices[0].input`. */
function pathOf(pointer: string): string {
  return pointer
    .split('/')
    .slice(1)
    .map((name) => name.replaceAll('~1', '/').replaceAll('~0', '~'))
    .reduce((path, name) => (/^\d+$/.test(name) ? `${path}[${name}]` : path === '' ? name : `${path}.${name}`), '')
}

function descriptionAt(schemaPath: string): string | undefined {
  const schema = schemaPath
    .split('/')
    .slice(1)
    .reduce<unknown>((at, name) => (at as Readonly<Record<string, unknown>> | undefined)?.[name], ConfigFile)
  const { description } = (schema ?? {}) as TSchema & { readonly description?: unknown }
  return typeof description === 'string' ? description : undefined
}
