/**
 * The environment and the config file, checked and frozen. Every default is here or in config-models, which knows providers,
 * models and money. A value that cannot be right stops the start with an error that names the variable, or the place in
 * the file, and never the value: it may be a secret.
 */
import { isIP } from 'node:net'
import { Ajv, type ErrorObject } from 'ajv'
import { type Static, Type } from 'typebox'
import {
  type Budgets,
  budgetVariables,
  modelVariables,
  providerVariables,
  readBudgets,
  readSummaries,
  readUpstream,
  type UpstreamConfig,
} from './config-models.ts'
import { checkConfigFile } from './config-schema.ts'
import {
  ConfigError,
  checkUrl,
  flag,
  integer,
  itemsOf,
  optional,
  readVariable,
  type Variables,
} from './config-values.ts'

/** Variable name -> shape, default and meaning. .env.example is tested against it. */
export const environmentSchema = Type.Object({
  PORT: integer(0, 65_535, 3000, 'port to listen on; 0 takes a free one'),
  HOST: Type.String({ default: '::', description: 'address to listen on; the default takes IPv6 and IPv4' }),
  DATABASE_URL: optional('postgres://… ; without it the database is embedded (PGlite in DATA_DIR)'),
  DATABASE_UNPOOLED_URL: optional('for migrations, when DATABASE_URL goes through a pooler in transaction mode'),
  DATABASE_POOL: integer(1, 100, 10, 'connections to Postgres'),
  DATA_DIR: Type.String({
    default: '.data',
    minLength: 1,
    description: 'folder of the embedded database; `memory:` keeps nothing, `memory:<file>` begins with a dump',
  }),
  REDIS_URL: optional('redis://… or rediss://…, 6.2 or later; without it the event log is in the process'),
  REDIS_TTL: integer(
    60,
    2_592_000,
    3600,
    'seconds that the log of a run stays in Redis after its last event, and a cached history',
  ),
  ENABLE_REDIS_CACHE: flag('true', 'with Redis: keep the last messages of sessions there, for reading'),
  ENABLE_REDIS_SESSIONS: flag('true', 'with Redis: keep the live state of sessions there, for lists'),
  JWT_SECRET: optional('own secret for HS256 tokens, 32 bytes or more'),
  SUPABASE_JWT_SECRET: optional('Supabase secret for HS256 tokens, tried after JWT_SECRET'),
  JWKS_URL: optional('address of the public keys for ES256, RS256 and EdDSA tokens'),
  SUPABASE_URL: optional('https://<project>.supabase.co; its public keys are used when JWKS_URL is not set'),
  JWT_ISSUER: optional('required `iss` of a token'),
  JWT_AUDIENCE: optional('required `aud` of a token'),
  CORS_ORIGINS: Type.String({ default: '', description: 'origins, separated by commas, that browsers may call from' }),
  COOKIE_SAMESITE: Type.Union([Type.Literal('lax'), Type.Literal('none')], {
    default: 'lax',
    description: '`none` for a frontend on another site (needs https)',
  }),
  ...providerVariables,
  ...modelVariables,
  UPSTREAM_FIRST_BYTE_MS: integer(1, 3_600_000, 120_000, 'longest wait for the first byte of a reply'),
  UPSTREAM_IDLE_MS: integer(1, 3_600_000, 60_000, 'longest silence within a reply'),
  UPSTREAM_TOTAL_MS: integer(1, 86_400_000, 1_800_000, 'longest duration of a reply'),
  ...budgetVariables,
  SESSION_MAX_MESSAGES: integer(1, 1000, 20, 'messages of a session that go upstream as context, and that Redis keeps'),
  FRAME_MS: integer(1, 1000, 25, 'time over which new text is merged into one event; up to thrice when busy'),
  CHECKPOINT_MS: integer(10, 60_000, 1000, 'time between two checkpoints of the running replies'),
  DRAIN_MS: integer(0, 600_000, 25_000, 'time that running replies get to end after SIGTERM'),
  TRUST_PROXY: Type.String({
    default: '',
    description: 'addresses of proxies (CIDR, separated by commas) whose X-Forwarded-For is believed',
  }),
  RATE_LIMIT_RUNS: integer(0, 1_000_000, 60, 'new runs of one owner a minute; 0 for no limit'),
  RATE_LIMIT_READS: integer(0, 1_000_000, 1200, 'other requests of one owner a minute; 0 for no limit'),
  RATE_LIMIT_VISITORS: integer(0, 1_000_000, 60, 'new visitors or unknown keys of an address a minute; 0 for no limit'),
  RUNS_PER_OWNER: integer(0, 100_000, 20, 'runs of one owner at once; 0 for no limit'),
  VIEWERS_PER_OWNER: integer(0, 100_000, 100, 'open streams of one owner at once; 0 for no limit'),
  OVERLOAD_MS: integer(0, 60_000, 50, 'mean lateness beyond which new runs are refused; 0 refuses none'),
  LOG_LEVEL: Type.Union(
    ['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'].map((level) => Type.Literal(level)),
    { default: 'info', description: 'fatal error warn info debug trace silent' },
  ),
})

type Environment = Static<typeof environmentSchema>

export interface Config {
  readonly listen: { readonly port: number; readonly host: string }
  readonly database:
    | { readonly kind: 'postgres'; readonly url: string; readonly unpooledUrl: string; readonly poolSize: number }
    | { readonly kind: 'pglite'; readonly dataDir: string }
  readonly redis:
    | {
        readonly url: string
        readonly ttlMs: number
        /** Whether histories are cached there. */
        readonly cache: boolean
        /** Whether the live state of sessions is kept there. */
        readonly sessions: boolean
      }
    | undefined
  readonly auth: {
    readonly jwtSecret: string | undefined
    readonly supabaseJwtSecret: string | undefined
    readonly jwksUrl: string | undefined
    readonly issuer: string | undefined
    readonly audience: string | undefined
    readonly cookieSameSite: 'lax' | 'none'
  }
  readonly corsOrigins: readonly string[]
  readonly upstream: UpstreamConfig
  /** None by default. */
  readonly budgets: Budgets
  /** Whether what no longer fits into a request is summed up. */
  readonly summaries: boolean
  readonly sessionMessagesMax: number
  readonly frameMs: number
  readonly checkpointMs: number
  readonly drainMs: number
  /** CIDR ranges. */
  readonly trustedProxies: readonly string[]
  /** A minute; 0 for no limit. */
  readonly rateLimits: { readonly runs: number; readonly reads: number; readonly visitors: number }
  readonly runsPerOwnerMax: number
  readonly viewersPerOwnerMax: number
  /** Mean lateness of the process beyond which new runs are refused; 0: none ever is. */
  readonly overloadMs: number
  readonly logLevel: string
}

/**
 * @param env the process's variables; an empty string counts as unset
 * @param fileContents what the config file holds (config-file.ts); its functions are looked at and left out
 * @throws ConfigError naming the variable or the place that is wrong
 */
export function readConfig(env: Variables, fileContents?: unknown): Config {
  const known = readEnvironment(env)
  const file = fileContents === undefined ? {} : checkConfigFile(fileContents)
  const corsOrigins = readOrigins(known.CORS_ORIGINS)
  if (corsOrigins.includes('*') && known.COOKIE_SAMESITE === 'none') {
    // Browsers would send the cookie with what any page in the world asks, and every origin would be welcome.
    throw new ConfigError('CORS_ORIGINS must list the origins, and not be *, when COOKIE_SAMESITE is none')
  }

  return Object.freeze({
    listen: { port: known.PORT, host: known.HOST },
    database:
      known.DATABASE_URL === undefined
        ? { kind: 'pglite' as const, dataDir: known.DATA_DIR }
        : {
            kind: 'postgres' as const,
            url: checkUrl('DATABASE_URL', known.DATABASE_URL, ['postgres:', 'postgresql:']),
            unpooledUrl: checkUrl('DATABASE_UNPOOLED_URL', known.DATABASE_UNPOOLED_URL ?? known.DATABASE_URL, [
              'postgres:',
              'postgresql:',
            ]),
            poolSize: known.DATABASE_POOL,
          },
    redis:
      known.REDIS_URL === undefined
        ? undefined
        : {
            url: checkUrl('REDIS_URL', known.REDIS_URL, ['redis:', 'rediss:']),
            ttlMs: known.REDIS_TTL * 1000,
            cache: known.ENABLE_REDIS_CACHE === 'true',
            sessions: known.ENABLE_REDIS_SESSIONS === 'true',
          },
    auth: {
      jwtSecret: checkSecret('JWT_SECRET', known.JWT_SECRET),
      supabaseJwtSecret: checkSecret('SUPABASE_JWT_SECRET', known.SUPABASE_JWT_SECRET),
      jwksUrl: chooseJwksUrl(known),
      issuer: known.JWT_ISSUER,
      audience: known.JWT_AUDIENCE,
      cookieSameSite: known.COOKIE_SAMESITE,
    },
    corsOrigins,
    upstream: readUpstream(env, known, file, {
      firstByteMs: known.UPSTREAM_FIRST_BYTE_MS,
      idleMs: known.UPSTREAM_IDLE_MS,
      totalMs: known.UPSTREAM_TOTAL_MS,
    }),
    budgets: readBudgets(known, file),
    summaries: readSummaries(env, known, file),
    sessionMessagesMax: known.SESSION_MAX_MESSAGES,
    frameMs: known.FRAME_MS,
    checkpointMs: known.CHECKPOINT_MS,
    drainMs: known.DRAIN_MS,
    trustedProxies: readRanges(known.TRUST_PROXY),
    rateLimits: {
      runs: known.RATE_LIMIT_RUNS,
      reads: known.RATE_LIMIT_READS,
      visitors: known.RATE_LIMIT_VISITORS,
    },
    runsPerOwnerMax: known.RUNS_PER_OWNER,
    viewersPerOwnerMax: known.VIEWERS_PER_OWNER,
    overloadMs: known.OVERLOAD_MS,
    logLevel: known.LOG_LEVEL,
  })
}

// The schema is ours: whether it is one is a matter of the tests. To ask takes longer than to compile and to use it.
const ajv = new Ajv({ useDefaults: true, coerceTypes: true, strict: false, meta: false, validateSchema: false })

function readEnvironment(env: Variables): Environment {
  const data: Record<string, string> = {}
  for (const name of Object.keys(environmentSchema.properties)) {
    const value = readVariable(env, name)
    if (value !== undefined) data[name] = value
  }
  if (ajv.validate<Environment>(environmentSchema, data)) return data
  throw new ConfigError(describeFault(ajv.errors?.[0]))
}

function describeFault(fault: ErrorObject | undefined): string {
  if (fault === undefined) return 'The environment cannot be read'
  const variable = fault.instancePath.slice(1)
  const schema = (environmentSchema.properties as Record<string, { description?: string }>)[variable]
  const problem = fault.keyword === 'pattern' ? undefined : fault.message
  return `${variable} ${problem ?? 'is not valid'} (${schema?.description ?? 'see the README'})`
}

// RFC 7518, section 3.2: a key of HS256 has the size of the hash at least.
const secretBytesMin = 32

function checkSecret(variable: string, value: string | undefined): string | undefined {
  if (value !== undefined && Buffer.byteLength(value) < secretBytesMin) {
    throw new ConfigError(`${variable} must have ${secretBytesMin} bytes or more`)
  }
  return value
}

function chooseJwksUrl({ JWKS_URL, SUPABASE_URL }: Environment): string | undefined {
  if (JWKS_URL !== undefined) return checkUrl('JWKS_URL', JWKS_URL, ['http:', 'https:'])
  if (SUPABASE_URL === undefined) return undefined
  const base = checkUrl('SUPABASE_URL', SUPABASE_URL, ['http:', 'https:']).replace(/\/+$/, '')
  return `${base}/auth/v1/.well-known/jwks.json`
}

function readRanges(list: string): readonly string[] {
  const ranges = itemsOf(list)
  for (const range of ranges) {
    const [address = '', bits, ...rest] = range.split('/')
    const family = isIP(address)
    const bitsMax = family === 4 ? 32 : 128
    if (family === 0 || rest.length > 0 || (bits !== undefined && !(/^\d{1,3}$/.test(bits) && +bits <= bitsMax))) {
      throw new ConfigError('TRUST_PROXY must list addresses or ranges such as 10.0.0.0/8, separated by commas')
    }
  }
  return ranges
}

function readOrigins(list: string): readonly string[] {
  const origins = itemsOf(list)
  for (const origin of origins) {
    if (origin !== '*' && !(URL.canParse(origin) && new URL(origin).origin === origin)) {
      throw new ConfigError('CORS_ORIGINS must list origins such as https://app.example.com, separated by commas')
    }
  }
  return origins
}
