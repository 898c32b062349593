/** The environment: defaults, what stops the start, and that .env.example tells the same story as the schema. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { environmentSchema, readConfig } from '../src/config.ts'
import { ConfigError } from '../src/config-values.ts'

interface Variable {
  readonly description?: string
  readonly default?: unknown
}
// TypeBox's types say only what a value is; at run time a schema is plain JSON Schema with its annotations.
const described = environmentSchema.properties as unknown as Readonly<Record<string, Variable>>

function refusal(env: Readonly<Record<string, string>>): Error | undefined {
  try {
    readConfig(env)
    return undefined
  } catch (error) {
    return error instanceof Error ? error : new Error('not even an error', { cause: error })
  }
}

t.test('without any variable the gateway runs by itself: embedded database, demo model, port 3000', async (t) => {
  t.match(readConfig({}), {
    listen: { port: 3000, host: '::' },
    database: { kind: 'pglite', dataDir: '.data' },
    redis: undefined,
    auth: { jwtSecret: undefined, cookieSameSite: 'lax' },
    corsOrigins: [],
    upstream: { openai: undefined, models: { fast: { provider: 'demo' }, quality: { provider: 'demo' } } },
    frameMs: 25,
    drainMs: 25_000,
    logLevel: 'info',
  })
})

t.test('an empty or blank value is the same as none', async (t) => {
  const empty = Object.fromEntries(Object.keys(described).map((name) => [name, '']))
  const blank = Object.fromEntries(Object.keys(described).map((name) => [name, '  ']))
  t.strictSame(readConfig(empty), readConfig({}))
  t.strictSame(readConfig(blank), readConfig({}))
})

t.test('values are taken over', async (t) => {
  const config = readConfig({
    PORT: '8080',
    DATABASE_URL: 'postgres://u:p@db.internal:6543/v?pgbouncer=true',
    DATABASE_UNPOOLED_URL: 'postgresql://u:p@db.internal:5432/v',
    REDIS_URL: 'rediss://cache.internal:6379',
    CORS_ORIGINS: 'https://app.example.com, http://localhost:5173',
    OPENAI_BASE_URL: 'http://127.0.0.1:1234/v1/',
    MODEL_FAST: 'openai:llama3:8b',
    MODEL_QUALITY: 'demo',
    DRAIN_MS: '0',
  })
  t.match(config, {
    listen: { port: 8080 },
    database: { kind: 'postgres', unpooledUrl: 'postgresql://u:p@db.internal:5432/v', poolSize: 10 },
    redis: { url: 'rediss://cache.internal:6379', ttlMs: 3_600_000 },
    corsOrigins: ['https://app.example.com', 'http://localhost:5173'],
    upstream: {
      openai: { baseUrl: 'http://127.0.0.1:1234/v1' },
      models: { fast: { provider: 'openai', model: 'llama3:8b' }, quality: { provider: 'demo', model: 'demo' } },
    },
    drainMs: 0,
  })
  t.ok(Object.isFrozen(config))
})

t.test('without DATABASE_UNPOOLED_URL migrations take DATABASE_URL', async (t) => {
  const url = 'postgres://u@db.internal/v'
  t.match(readConfig({ DATABASE_URL: url }).database, { url, unpooledUrl: url })
})

t.test(
  'a value that cannot be right stops the start with the name of the variable, and without the value',
  async (t) => {
    const openai = { OPENAI_API_KEY: 'sk-x' }
    const wrong: readonly (readonly [name: string, value: string, others?: Readonly<Record<string, string>>])[] = [
      ...Object.keys(described)
        .filter((name) => typeof described[name]?.default === 'number')
        .flatMap((name) => [
          [name, 'hunter2'] as const,
          [name, '-987654'] as const,
          [name, '98765432109'] as const,
          [name, '876.54'] as const,
        ]),
      ['DATABASE_URL', 'mysql://u:hunter2@db.internal/v'],
      ['DATABASE_URL', 'hunter2'],
      ['DATABASE_UNPOOLED_URL', 'http://hunter2', { DATABASE_URL: 'postgres://u@db.internal/v' }],
      ['REDIS_URL', 'http://:hunter2@cache.internal'],
      ['OPENAI_BASE_URL', 'hunter2.internal/v1'],
      ['CORS_ORIGINS', 'https://app.example.com/hunter2'],
      ['CORS_ORIGINS', 'hunter2.example.com'],
      ['COOKIE_SAMESITE', 'hunter2'],
      ['LOG_LEVEL', 'hunter2'],
      ['MODEL_FAST', 'hunter2', openai],
      ['MODEL_BALANCED', 'openai:', openai],
      ['MODEL_QUALITY', 'openai:gpt-hunter2'],
    ]
    for (const [name, value, others] of wrong) {
      const error = refusal({ ...others, [name]: value })
      t.ok(error instanceof ConfigError, `${name}=${value} is refused`)
      t.match(error?.message, name, `${name}=${value} is named`)
      t.notOk(error?.message.includes(value), `${name}=${value} is not shown`)
    }
  },
)

t.test('.env.example has every variable with its description and default, and no other', async (t) => {
  const lines = readFileSync(join(import.meta.dirname, '..', '.env.example'), 'utf8').split('\n')
  const listed = lines.flatMap((line, at) => {
    const [, name, value] = /^#?([A-Z][A-Z0-9_]*)=(.*)$/.exec(line) ?? []
    return name === undefined ? [] : [{ name, value, description: lines[at - 1]?.replace(/^# /, '') }]
  })
  const expected = Object.entries(described).map(([name, variable]) => ({
    name,
    value: `${variable.default ?? ''}`,
    description: variable.description,
  }))
  t.strictSame(listed, expected)
})

t.test('every origin and a cookie for every site do not go together', async (t) => {
  const refused = refusal({ CORS_ORIGINS: '*', COOKIE_SAMESITE: 'none' })
  t.type(refused, ConfigError)
  t.match(refused?.message, /CORS_ORIGINS.*COOKIE_SAMESITE/)
  t.equal(refusal({ CORS_ORIGINS: '*' }), undefined)
  t.equal(refusal({ CORS_ORIGINS: 'https://app.example.com', COOKIE_SAMESITE: 'none' }), undefined)
})

t.test('a secret of less than 32 bytes stops the start, and is not shown', async (t) => {
  for (const name of ['JWT_SECRET', 'SUPABASE_JWT_SECRET']) {
    for (const value of ['x', 'hunter2-'.repeat(4).slice(1), 'é'.repeat(15)]) {
      const error = refusal({ [name]: value })
      t.type(error, ConfigError, `${name} of ${Buffer.byteLength(value)} bytes`)
      t.match(error?.message, name)
      t.notOk(error?.message.includes(value))
    }
    for (const value of ['x'.repeat(32), 'é'.repeat(16), 'x'.repeat(500)]) {
      t.equal(refusal({ [name]: value }), undefined, `${name} of ${Buffer.byteLength(value)} bytes`)
    }
  }
  t.match(refusal({ JWT_SECRET: 'x'.repeat(32), SUPABASE_JWT_SECRET: 'short' })?.message, /^SUPABASE_JWT_SECRET/)
  t.match(readConfig({ JWT_SECRET: `  ${'x'.repeat(32)} ` }).auth, { jwtSecret: 'x'.repeat(32) })
})

t.test('the address of the keys is JWKS_URL, or that of the Supabase project', async (t) => {
  const jwksUrl = (env: Readonly<Record<string, string>>) => readConfig(env).auth.jwksUrl
  const project = 'https://abcdefgh.supabase.co'
  t.equal(jwksUrl({}), undefined)
  t.equal(jwksUrl({ JWKS_URL: 'https://id.example/keys?v=1' }), 'https://id.example/keys?v=1')
  for (const url of [project, `${project}/`, `${project}//`]) {
    t.equal(jwksUrl({ SUPABASE_URL: url }), `${project}/auth/v1/.well-known/jwks.json`)
  }
  t.equal(jwksUrl({ SUPABASE_URL: 'http://127.0.0.1:54321' }), 'http://127.0.0.1:54321/auth/v1/.well-known/jwks.json')
  t.equal(jwksUrl({ JWKS_URL: 'https://id.example/keys', SUPABASE_URL: project }), 'https://id.example/keys')
  for (const name of ['JWKS_URL', 'SUPABASE_URL']) {
    for (const value of ['hunter2', 'file:///hunter2', 'ftp://hunter2.example', '//hunter2.example', 'data:,hunter2']) {
      const error = refusal({ [name]: value })
      t.type(error, ConfigError, `${name}=${value}`)
      t.match(error?.message, name)
      t.notOk(error?.message.includes('hunter2'))
    }
  }
  t.match(readConfig({ JWT_ISSUER: 'https://id.example', JWT_AUDIENCE: 'verbatim' }).auth, {
    issuer: 'https://id.example',
    audience: 'verbatim',
  })
})

t.test('proxies are named as ranges, and nobody is trusted by default', async (t) => {
  t.same(readConfig({}).trustedProxies, [])
  t.same(readConfig({ TRUST_PROXY: ' 10.0.0.0/8, 2001:db8::/32 ,192.0.2.1, ::1 ' }).trustedProxies, [
    '10.0.0.0/8',
    '2001:db8::/32',
    '192.0.2.1',
    '::1',
  ])
  // A number of hops and `true` believe whoever writes the header.
  for (const value of [
    'true',
    '1',
    '*',
    'loopback',
    'proxy.internal',
    '10.0.0.0/33',
    '10.0.0/8',
    '::/129',
    '10.0.0.0/',
    '10.0.0.0/8/8',
    '10.0.0.0/-1',
  ]) {
    t.match(refusal({ TRUST_PROXY: value }), { name: 'ConfigError', message: /^TRUST_PROXY / }, value)
  }
})

t.test('rates are whole numbers a minute, and 0 is no limit', async (t) => {
  t.same(readConfig({}).rateLimits, { runs: 60, reads: 1200, visitors: 60 })
  const none = { RATE_LIMIT_RUNS: '0', RATE_LIMIT_READS: '0', RATE_LIMIT_VISITORS: '0' }
  t.same(readConfig(none).rateLimits, { runs: 0, reads: 0, visitors: 0 })
  for (const variable of Object.keys(none)) {
    for (const value of ['-1', '1.5', 'many', '1000001', 'true']) {
      t.match(
        refusal({ [variable]: value }),
        { name: 'ConfigError', message: new RegExp(`^${variable} `) },
        `${variable}=${value}`,
      )
    }
  }
})
