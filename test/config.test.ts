/**
 * The environment and the config file: defaults, which goes before which, what stops the start, and that .env.example
 * tells the same story as the schema.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Ajv } from 'ajv'
import t from 'tap'
import { environmentSchema, readConfig } from '../src/config.ts'
import { extensionsOf, readConfigFile, type VerbatimConfig } from '../src/config-file.ts'
import { ConfigError } from '../src/config-values.ts'
import { createDemo } from '../src/upstream/demo.ts'
import { providerPresets } from '../src/upstream/providers.ts'

interface Variable {
  readonly description?: string
  readonly default?: unknown
}
// TypeBox's types say only what a value is; at run time a schema is plain JSON Schema with its annotations.
const described = environmentSchema.properties as unknown as Readonly<Record<string, Variable>>

function refusal(env: Readonly<Record<string, string>>, file?: unknown): Error | undefined {
  try {
    readConfig(env, file)
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
    upstream: {
      providers: [],
      models: { fast: [{ provider: 'demo' }], quality: [{ provider: 'demo' }] },
      profiles: { balanced: { contextTokens: 128_000, temperature: undefined, effort: undefined } },
      modelsAllowed: undefined,
      retries: 2,
      retryMs: 500,
    },
    budgets: {},
    summaries: false,
    frameMs: 25,
    drainMs: 25_000,
    logLevel: 'info',
  })
})

t.test('the schema of the environment is one', async (t) => {
  t.ok(new Ajv({ strict: false }).validateSchema(environmentSchema))
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
      providers: [{ name: 'openai', kind: 'openai', baseUrl: 'http://127.0.0.1:1234/v1', apiKey: undefined }],
      models: { fast: [{ provider: 'openai', model: 'llama3:8b' }], quality: [{ provider: 'demo', model: 'demo' }] },
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
      ['MODEL_FAST', 'openai:hunter2,openai:hunter2', openai],
      ['MODEL_FAST', 'hunter2:model', openai],
      ['MODEL_FAST', 'constructor:hunter2', openai],
      ['MODEL_FAST', 'openai:hunter2,', { ANTHROPIC_API_KEY: 'sk-x' }],
      ['MODEL_FAST', ', ,', openai],
      ['MODEL_BALANCED', `openai:${'hunter2'.repeat(40)}`, openai],
      ['MODEL_BALANCED', Array.from({ length: 9 }, (_, n) => `openai:hunter${n}`).join(), openai],
      ['ANTHROPIC_BASE_URL', 'hunter2', { ANTHROPIC_API_KEY: 'sk-x' }],
      ['OLLAMA_BASE_URL', 'hunter2:11434'],
      ['AZURE_OPENAI_API_KEY', 'hunter2'],
      ['GROQ_API_KEY', 'hunter2\n\nhunter3'],
      ['MODELS_ALLOWED', 'hunter2'],
      ['MODELS_ALLOWED', 'openai:*,:hunter2'],
      ['ENABLE_SUMMARIES', 'hunter2'],
      ['BUDGET_USER_DAY_USD', '-1.98'],
      ['BUDGET_USER_DAY_USD', '1e9'],
      ['BUDGET_VISITOR_DAY_USD', '$98'],
      ['BUDGET_DAY_USD', '1.9876543210'],
      ['QUOTA_USER_DAY_TOKENS', '-98'],
      ['QUOTA_USER_DAY_TOKENS', '98.5'],
      ['QUOTA_VISITOR_DAY_TOKENS', 'hunter2'],
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

const choices = (env: Readonly<Record<string, string>>, file?: VerbatimConfig) => {
  const { models } = readConfig(env, file).upstream
  const list = (name: 'fast' | 'balanced' | 'quality') =>
    models[name].map(({ provider, model }) => `${provider}:${model}`).join(', ')
  return { fast: list('fast'), balanced: list('balanced'), quality: list('quality') }
}

t.test('every preset can be configured by variables, and is there when it has what it needs', async (t) => {
  for (const [name, { keyVariable, urlVariable, keyless }] of Object.entries(providerPresets)) {
    for (const variable of [keyVariable, urlVariable]) {
      if (variable !== undefined) t.ok(Object.hasOwn(described, variable), `${variable} is a variable`)
    }
    const env = {
      ...(keyVariable === undefined ? {} : { [keyVariable]: 'key-x' }),
      ...(urlVariable === undefined ? {} : { [urlVariable]: 'http://127.0.0.1:9/v1/' }),
    }
    const { providers } = readConfig(env).upstream
    t.match(providers, [{ name }], name)
    if (urlVariable !== undefined) t.match(providers, [{ baseUrl: 'http://127.0.0.1:9/v1' }])
    if (urlVariable !== undefined && keyless === undefined) {
      t.strictSame(
        readConfig({ [urlVariable]: 'http://127.0.0.1:9/v1/' }).upstream.providers,
        [],
        `${name} needs a key`,
      )
    }
  }
  t.match(readConfig({ GROQ_API_KEY: 'a', XAI_API_KEY: 'b' }).upstream.providers, [
    { name: 'groq', kind: 'openai', baseUrl: 'https://api.groq.com/openai/v1', apiKey: 'a' },
    { name: 'xai', kind: 'openai', baseUrl: 'https://api.x.ai/v1', apiKey: 'b' },
  ])
  t.strictSame(
    readConfig({ AZURE_OPENAI_API_KEY: 'a', AZURE_OPENAI_BASE_URL: 'https://x.example/openai/v1' }).upstream.providers,
    [
      {
        name: 'azure',
        kind: 'openai',
        baseUrl: 'https://x.example/openai/v1',
        headers: { 'api-key': 'a' },
      },
    ],
  )
})

t.test('modes have the models that are named, else those of balanced, else the usual ones of a provider', async (t) => {
  const demo = { fast: 'demo:demo', balanced: 'demo:demo', quality: 'demo:demo' }
  t.strictSame(choices({}), demo)
  t.strictSame(choices({ TOGETHER_API_KEY: 'x' }), demo, 'nobody knows which models are meant')
  t.strictSame(choices({ OPENAI_API_KEY: 'x', ANTHROPIC_API_KEY: 'x' }), {
    fast: 'openai:gpt-5-nano',
    balanced: 'openai:gpt-5-mini',
    quality: 'openai:gpt-5',
  })
  t.match(choices({ GEMINI_API_KEY: 'x', ANTHROPIC_API_KEY: 'x' }), { balanced: /^anthropic:/ })
  t.match(choices({ GEMINI_API_KEY: 'x' }), { fast: /^gemini:/, balanced: /^gemini:/, quality: /^gemini:/ })
  const ollama = { OLLAMA_BASE_URL: 'http://127.0.0.1:9/v1', OPENAI_API_KEY: 'x' }
  t.strictSame(choices({ ...ollama, MODEL_BALANCED: 'ollama:llama3.2:3b , openai:gpt-5-mini' }), {
    fast: 'ollama:llama3.2:3b, openai:gpt-5-mini',
    balanced: 'ollama:llama3.2:3b, openai:gpt-5-mini',
    quality: 'ollama:llama3.2:3b, openai:gpt-5-mini',
  })
  t.strictSame(choices({ ...ollama, MODEL_FAST: 'ollama:llama3.2' }), {
    fast: 'ollama:llama3.2',
    balanced: 'openai:gpt-5-mini',
    quality: 'openai:gpt-5',
  })
})

const wholeFile: VerbatimConfig = {
  providers: {
    local: { kind: 'openai', base_url: 'http://127.0.0.1:8000/v1/', max_tokens_field: 'max_tokens' },
    proxy: {
      kind: 'openai',
      base_url: 'https://proxy.example/v1',
      api_key_env: 'PROXY_KEY',
      headers: { 'X-Team': 'a' },
    },
    groq: { headers: { 'x-team': 'b' } },
  },
  modes: {
    fast: {
      models: ['local:llama3.2:3b', 'groq:openai/gpt-oss-20b'],
      temperature: 0.2,
      effort: 'low',
      max_output_tokens: 500,
      context_tokens: 8000,
      system_prompt: 'Be brief.',
      tools: ['search'],
    },
    quality: { effort: 'high' },
  },
  prices: [{ provider: 'local', model: '*', input: '0', output: '0' }],
  models_allowed: ['local:*'],
  budgets: { user_day_usd: '5', visitor_day_usd: '0.25', day_usd: '100', user_day_tokens: 10, visitor_day_tokens: 0 },
  summaries: true,
}
const fileEnv = { PROXY_KEY: 'p', GROQ_API_KEY: 'g' }

t.test('the config file says what variables are too small for', async (t) => {
  const { upstream, budgets, summaries } = readConfig(fileEnv, wholeFile)
  t.strictSame(upstream.providers, [
    {
      name: 'groq',
      kind: 'openai',
      baseUrl: 'https://api.groq.com/openai/v1',
      apiKey: 'g',
      headers: { 'x-team': 'b' },
    },
    { name: 'local', kind: 'openai', baseUrl: 'http://127.0.0.1:8000/v1', maxTokensField: 'max_tokens' },
    { name: 'proxy', kind: 'openai', baseUrl: 'https://proxy.example/v1', apiKey: 'p', headers: { 'x-team': 'a' } },
  ])
  t.strictSame(upstream.profiles.fast, {
    temperature: 0.2,
    effort: 'low',
    maxOutputTokens: 500,
    systemPrompt: 'Be brief.',
    contextTokens: 8000,
    tools: ['search'],
  })
  t.strictSame(upstream.profiles.quality, { effort: 'high', contextTokens: 128_000 })
  t.match(choices(fileEnv, wholeFile), { fast: 'local:llama3.2:3b, groq:openai/gpt-oss-20b', balanced: 'demo:demo' })
  t.strictSame(upstream.modelsAllowed, ['local:*'])
  t.strictSame(upstream.prices, wholeFile.prices)
  t.strictSame(budgets, {
    userDayUsd: '5',
    visitorDayUsd: '0.25',
    dayUsd: '100',
    userDayTokens: 10,
    visitorDayTokens: 0,
  })
  t.equal(summaries, true)
})

t.test('a variable goes before the same thing in the file', async (t) => {
  const env = {
    ...fileEnv,
    MODEL_FAST: 'proxy:a',
    MODELS_ALLOWED: 'proxy:*',
    MODEL_CONTEXT_TOKENS: '4000',
    SYSTEM_PROMPT: 'Be long.',
    BUDGET_USER_DAY_USD: '7.50',
    QUOTA_VISITOR_DAY_TOKENS: '9',
    ENABLE_SUMMARIES: 'false',
    OPENAI_BASE_URL: 'http://127.0.0.1:1/v1',
    UPSTREAM_RETRIES: '0',
    UPSTREAM_RETRY_MS: '1',
  }
  const file = { ...wholeFile, providers: { ...wholeFile.providers, openai: { base_url: 'http://127.0.0.1:2/v1' } } }
  const { upstream, budgets, summaries } = readConfig(env, file)
  t.equal(choices(env, file).fast, 'proxy:a')
  t.strictSame(upstream.modelsAllowed, ['proxy:*'])
  t.match(upstream.profiles, {
    fast: { contextTokens: 4000, systemPrompt: 'Be long.', temperature: 0.2 },
    quality: { contextTokens: 4000, systemPrompt: 'Be long.' },
  })
  t.match(budgets, { userDayUsd: '7.50', visitorDayUsd: '0.25', visitorDayTokens: 9 })
  t.equal(summaries, false)
  t.match(upstream.providers[0], { name: 'openai', baseUrl: 'http://127.0.0.1:1/v1' })
  t.match(upstream, { retries: 0, retryMs: 1 })
})

t.test('a config file that cannot be right stops the start with the place, and without the value', async (t) => {
  const price = { provider: 'openai', model: 'hunter2', input: '1', output: '2' }
  const provider = { kind: 'openai', base_url: 'http://127.0.0.1:9/v1' }
  const ready = createDemo()
  const wrong: readonly (readonly [place: string | RegExp, file: unknown])[] = [
    ['The config file must hold an object', 'hunter2'],
    ['The config file must hold an object', null],
    ['The config file must hold an object', []],
    ['hunter of the config file is not known', { hunter: 'hunter2' }],
    ['providers.own.kind', { providers: { own: { base_url: 'http://hunter2/v1' } } }],
    ['providers.own.kind of the config file must be one of', { providers: { own: { ...provider, kind: 'hunter2' } } }],
    ['providers.own.base_url of the config file must be set', { providers: { own: { kind: 'openai' } } }],
    ['providers.own.base_url', { providers: { own: { ...provider, base_url: 'hunter2' } } }],
    ['providers.own.base_url', { providers: { own: { ...provider, base_url: 'file:///hunter2' } } }],
    [
      'providers.own.api_key of the config file is not known',
      { providers: { own: { ...provider, api_key: 'hunter2' } } },
    ],
    ['providers.own.api_key_env', { providers: { own: { ...provider, api_key_env: 'sk-hunter2' } } }],
    ['providers.own.api_key_env', { providers: { own: { ...provider, api_key_env: 'HUNTER2' } } }],
    ['providers.own.headers', { providers: { own: { ...provider, headers: { 'x-a': 'hunter2\r\nx-b: c' } } } }],
    ['providers.own.headers', { providers: { own: { ...provider, headers: { 'hunter2 x': 'a' } } } }],
    ['providers.own.headers', { providers: { own: { ...provider, headers: { Host: 'hunter2' } } } }],
    ['providers.own.max_tokens_field', { providers: { own: { ...provider, max_tokens_field: 'hunter2' } } }],
    ['providers of the config file has a name', { providers: { Hunter2: provider } }],
    ['providers of the config file has a name', { providers: { 'hunter2:a': provider } }],
    ['providers of the config file has a name', { providers: { demo: provider } }],
    ['ANTHROPIC_API_KEY is not set', { providers: { anthropic: { headers: { 'x-a': 'hunter2' } } } }],
    ['modes.slow of the config file is not known', { modes: { slow: {} } }],
    ['modes.adaptive of the config file is not known', { modes: { adaptive: {} } }],
    ['modes.fast.models', { modes: { fast: { models: 'hunter2' } } }],
    ['modes.fast.models', { modes: { fast: { models: [] } } }],
    ['modes.fast.models', { modes: { fast: { models: ['hunter2:a'] } } }],
    ['modes.fast.models', { modes: { fast: { models: ['hunter2'] } } }],
    [/modes\.fast\.models .* MISTRAL_API_KEY is not set/, { modes: { fast: { models: ['mistral:hunter2'] } } }],
    ['modes.fast.models[0]', { modes: { fast: { models: [98] } } }],
    ['modes.fast.temperature', { modes: { fast: { temperature: 98 } } }],
    ['modes.fast.temperature', { modes: { fast: { temperature: 'hunter2' } } }],
    [
      'modes.quality.effort of the config file must be one of none, minimal, low, medium, high',
      { modes: { quality: { effort: 'hunter2' } } },
    ],
    ['modes.fast.max_output_tokens', { modes: { fast: { max_output_tokens: 0 } } }],
    ['modes.fast.max_output_tokens', { modes: { fast: { max_output_tokens: 98_765, context_tokens: 9000 } } }],
    ['modes.fast.context_tokens', { modes: { fast: { context_tokens: 98 } } }],
    ['modes.fast.system_prompt', { modes: { fast: { system_prompt: '' } } }],
    ['modes.fast.tools[0]', { modes: { fast: { tools: ['hunter2 x'] } } }],
    ['modes.fast.tools', { modes: { fast: { tools: ['hunter2', 'hunter2'] } } }],
    [
      'prices[0].output of the config file must be set',
      { prices: [{ provider: 'openai', model: 'hunter2', input: '1' }] },
    ],
    ['prices[1].input', { prices: [price, { ...price, input: '-98' }] }],
    ['prices[0].input', { prices: [{ ...price, input: 98.5 }] }],
    ['prices[0].output', { prices: [{ ...price, output: '1e98' }] }],
    ['prices[0].cached_input', { prices: [{ ...price, cached_input: '98,5' }] }],
    ['prices[0].long.over', { prices: [{ ...price, long: { over: -98, input: '1', output: '1' } }] }],
    ['prices[0].from', { prices: [{ ...price, from: '1 Nov 2098' }] }],
    ['prices[0] of the config file has a `from`', { prices: [{ ...price, from: '2098-02-30' }] }],
    [
      'prices[0] of the config file has an `until`',
      { prices: [{ ...price, from: '2098-03-01', until: '2098-02-01' }] },
    ],
    ['prices[1] of the config file has the provider', { prices: [price, { ...price, input: '98' }] }],
    ['prices[0].provider', { prices: [{ ...price, provider: 'hunter2' }] }],
    ['prices[0].currency of the config file is not known', { prices: [{ ...price, currency: 'hunter2' }] }],
    ['models_allowed', { models_allowed: ['hunter2'] }],
    ['models_allowed', { models_allowed: 'hunter2' }],
    ['budgets.user_day_usd of the config file must be USD', { budgets: { user_day_usd: '-98' } }],
    ['budgets.day_usd', { budgets: { day_usd: 98 } }],
    ['budgets.visitor_day_tokens', { budgets: { visitor_day_tokens: 98.5 } }],
    ['budgets.week_usd of the config file is not known', { budgets: { week_usd: '98' } }],
    ['summaries', { summaries: 'hunter2' }],
    ['agents', { agents: { hunter2: true } }],
    ['upstreams[0]', { upstreams: ['hunter2'] }],
    ['upstreams[0]', { upstreams: [{ ...ready, provider: 'hunter2:x' }] }],
    [
      'upstreams[1]',
      {
        upstreams: [
          { ...ready, provider: 'hunter' },
          { ...ready, provider: 'hunter' },
        ],
      },
    ],
    ['upstreams[0]', { upstreams: [{ ...ready, provider: 'own' }], providers: { own: provider } }],
  ]
  for (const [place, file] of wrong) {
    const error = refusal({}, file)
    t.type(error, ConfigError, JSON.stringify(file))
    t.match(error?.message, place)
    t.notMatch(error?.message, /hunter2|98/, 'the value is not shown')
    t.notMatch(error?.message, /\n|undefined/)
  }
  t.ok(wrong.length >= 25)
})

t.test('a provider that a file brings as a function can be named like the others', async (t) => {
  const upstreams = [
    { ...createDemo(), provider: 'mine' },
    { ...createDemo(), provider: 'azure' },
  ]
  const env = { MODEL_FAST: 'mine:a:b,azure:c', AZURE_OPENAI_API_KEY: 'for the function' }
  t.equal(choices(env, { upstreams }).fast, 'mine:a:b, azure:c')
  t.strictSame(readConfig(env, { upstreams }).upstream.providers, [], 'the preset of its name is left out')
})

t.test('a file is found by its name, or by CONFIG_FILE, and read', async (t) => {
  const typed = `import type { VerbatimConfig } from './none.ts'
    export default { summaries: true, agents: [{ id: 'a', async *reply() {} }] } satisfies VerbatimConfig`
  const folder = t.testdir({
    both: { 'verbatim.config.ts': typed, 'verbatim.config.json': '{"summaries": false}' },
    json: { 'verbatim.config.json': '{"summaries": true}' },
    none: { 'other.mjs': 'export default { models_allowed: [] }' },
  })
  t.equal(await readConfigFile(undefined, join(folder, 'none')), undefined)
  t.same(await readConfigFile(undefined, join(folder, 'json')), { summaries: true })
  t.same(await readConfigFile('../none/other.mjs', join(folder, 'json')), { models_allowed: [] })
  const contents = await readConfigFile(undefined, join(folder, 'both'))
  t.equal(readConfig({}, contents).summaries, true)
  t.match(extensionsOf(contents), { agents: [{ id: 'a', reply: Function }] })
  t.strictSame(Object.keys(extensionsOf(contents)), ['agents'])
  t.strictSame(extensionsOf(undefined), {})
})

t.test('a file that cannot be read stops the start with the reason, and without its words', async (t) => {
  const folder = t.testdir({
    'broken.json': '{"summaries": hunter2}',
    'functions.json': '{"agents": []}',
    'null.json': 'null',
    'large.json': ' '.repeat(1024 * 1024 + 1),
    'throws.ts': "const key: string = 'hunter2'\nthrow new TypeError(key)\nexport default {}",
    'throws-text.ts': "throw 'hunter2'",
    'syntax.ts': 'export default {\n  hunter2: = 1\n}',
    'imports.ts': "import './hunter2.ts'\nexport default {}",
    'nothing.ts': "export const summaries = 'hunter2'",
    'waits.ts': 'await new Promise(() => undefined)\nexport default {}',
    'config.yaml': 'hunter2: true',
    folder: {},
  })
  const wrong: readonly (readonly [name: string, message: RegExp])[] = [
    ['absent.ts', /CONFIG_FILE names cannot be read \(ENOENT\)/],
    ['folder', /CONFIG_FILE names is no file/],
    ['broken.json', /is not JSON/],
    ['functions.json', /agents .* only a TypeScript/],
    ['large.json', /more than 1048576 bytes/],
    ['throws.ts', /threw TypeError at throws\.ts:2/],
    ['throws-text.ts', /threw something/],
    ['syntax.ts', /threw SyntaxError.* at syntax\.ts:2/],
    ['imports.ts', /threw Error \(ERR_MODULE_NOT_FOUND\)/],
    ['nothing.ts', /no default export/],
    ['waits.ts', /not loaded within 20 ms/],
    ['config.yaml', /must end in/],
  ]
  for (const [name, message] of wrong) {
    const error = await readConfigFile(name, folder, name === 'waits.ts' ? 20 : undefined).then(
      () => undefined,
      (thrown: Error) => thrown,
    )
    t.type(error, ConfigError, name)
    t.match(error?.message, message, name)
    t.notMatch(`${error?.message} ${error?.cause}`, /hunter2/, name)
  }
  t.type(refusal({}, await readConfigFile('null.json', folder)), ConfigError)
})
