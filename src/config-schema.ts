/**
 * What may stand in the config file, and what is wrong with one that cannot be used: a sentence that names the place, and
 * never the value. What only the variables beside it can tell (a provider that is not there, a key that is not set) is
 * checked in config-models.
 */
import { Ajv, type ErrorObject } from 'ajv'
import { type Static, type TSchema, Type } from 'typebox'
import { budgetTokensMax, ConfigError, usdPattern } from './config-values.ts'
import { Price } from './upstream/price-table.ts'
import { maxTokensFields, providerKinds } from './upstream/providers.ts'
import type { Effort } from './upstream/upstream.ts'

export const contextTokensMin = 1000
export const contextTokensMax = 10_000_000
/** Models of one mode: the first one, and those that are asked when it fails. */
export const modelsMax = 8

const efforts = ['none', 'minimal', 'low', 'medium', 'high'] as const satisfies readonly Effort[]
const closed = { additionalProperties: false } as const
const usd = Type.Optional(Type.String({ pattern: usdPattern, description: 'USD, a decimal string such as "2.50"' }))
const tokens = Type.Optional(Type.Integer({ minimum: 0, maximum: budgetTokensMax }))

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

/** Functions, which only a program can have. They are checked by those who use them. */
export const extensionMembers = {
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
    ...extensionMembers,
  },
  closed,
)
export type ConfigFile = Static<typeof ConfigFile>

/** The place of something in the file, for a message. */
export function inFile(path: string): string {
  return `${path} of the config file`
}

// As in config.ts, whether a schema of ours is one is not asked at a start; and it is compiled with the first file.
const ajv = new Ajv({ coerceTypes: false, strict: false, meta: false, validateSchema: false })

/**
 * @param value what a file holds, or anything else
 * @throws ConfigError naming the place that is wrong
 */
export function checkConfigFile(value: unknown): ConfigFile {
  if (ajv.validate(ConfigFile, value)) return value as ConfigFile
  const [fault] = ajv.errors ?? []
  throw new ConfigError(fault === undefined ? 'The config file cannot be used' : describeFault(fault))
}

function describeFault({ keyword, instancePath, schemaPath, params, message }: ErrorObject): string {
  const inner = keyword === 'additionalProperties' ? params.additionalProperty : params.missingProperty
  const path = pathOf(inner === undefined ? instancePath : `${instancePath}/${inner}`)
  if (path === '') return 'The config file must hold an object'
  if (keyword === 'additionalProperties') return `${inFile(path)} is not known`
  if (keyword === 'enum') return `${inFile(path)} must be one of ${params.allowedValues?.join(', ')}`
  if (keyword === 'required') return `${inFile(path)} must be set`
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
    // Without the keyword that was not kept.
    .slice(1, -1)
    .reduce<unknown>((at, name) => (at as Readonly<Record<string, unknown>> | undefined)?.[name], ConfigFile)
  const { description } = (schema ?? {}) as TSchema & { readonly description?: unknown }
  return typeof description === 'string' ? description : undefined
}
