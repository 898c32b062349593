import t from 'tap'
import { startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { readConfig } from '../../src/config.ts'
import { createCatalog } from '../../src/upstream/catalog.ts'
import { createDemo } from '../../src/upstream/demo.ts'
import type { Upstream } from '../../src/upstream/upstream.ts'
import { collect } from './streams.ts'

const configured = {
  OPENAI_API_KEY: 'sk-MARKER',
  OPENAI_BASE_URL: 'http://user:MARKER@127.0.0.1:9/MARKER/v1',
  GROQ_API_KEY: 'gsk-MARKER',
  MODEL_FAST: 'openai:small,groq:small',
  MODEL_BALANCED: 'openai:middle',
  MODEL_QUALITY: 'demo',
}
const open = (
  env: Readonly<Record<string, string>> = configured,
  file: Readonly<Record<string, unknown>> = {},
  upstreams?: readonly Upstream[],
) => createCatalog({ ...readConfig(env, file).upstream, upstreams })
type Catalog = ReturnType<typeof open>

const plansOf = (catalog: Catalog, model?: string, text = 'Hi') => catalog.plansFor({ model, text })
/** The one candidate that a name comes to. */
const named = (catalog: Catalog, model: string) => {
  const { candidates, profile } = plansOf(catalog, model).fast.plan
  return [...candidates.map((choice) => `${choice.provider} ${choice.model}`), profile].join(', ')
}

t.test('a mode has its models in their order, and its settings', async (t) => {
  const catalog = open(configured, { modes: { fast: { temperature: 0.5, tools: ['search'] } } })
  t.strictSame(plansOf(catalog).fast, {
    plan: {
      candidates: [
        { provider: 'openai', model: 'small' },
        { provider: 'groq', model: 'small' },
      ],
      profile: 'fast',
    },
  })
  t.match(plansOf(catalog).balanced.plan, { candidates: [{ model: 'middle' }], profile: 'balanced' })
  t.match(plansOf(catalog).quality.plan, { candidates: [{ provider: 'demo', model: 'demo' }], profile: 'quality' })
  t.strictSame(catalog.profile('fast'), { temperature: 0.5, contextTokens: 128_000, tools: ['search'] })
  t.strictSame(catalog.profile('quality'), { contextTokens: 128_000 })
  await catalog.close()
})

t.test('adaptive decides by the message, and once more for a long session', async (t) => {
  const catalog = open()
  t.strictSame(plansOf(catalog, undefined, 'Hi').adaptive, {
    plan: { ...plansOf(catalog).fast.plan, reasons: ['plain'] },
    later: { from: 8, plan: { ...plansOf(catalog).balanced.plan, reasons: ['history'] } },
  })
  t.strictSame(plansOf(catalog, undefined, 'Why?').adaptive, {
    plan: { ...plansOf(catalog).balanced.plan, reasons: ['reasoning'] },
  })
  t.strictSame(plansOf(catalog, 'groq:large', '```\nf()\n```').adaptive, {
    plan: { candidates: [{ provider: 'groq', model: 'large' }], profile: 'balanced', reasons: ['code'] },
    later: {
      from: 8,
      plan: { candidates: [{ provider: 'groq', model: 'large' }], profile: 'quality', reasons: ['code', 'history'] },
    },
  })
  await catalog.close()
})

t.test('a model in a request is the only candidate, with the settings of the mode', async (t) => {
  const catalog = open()
  t.equal(named(catalog, 'openai:large'), 'openai large, fast')
  t.equal(named(catalog, ' large '), 'openai large, fast')
  t.equal(named(catalog, 'openai:llama3:8b'), 'openai llama3:8b, fast')
  t.equal(named(catalog, 'groq:openai/gpt-oss-120b'), 'groq openai/gpt-oss-120b, fast')
  t.equal(named(catalog, 'demo'), 'demo demo, fast')
  t.equal(named(catalog, 'demo:fast'), 'demo fast, fast')
  await catalog.close()
})

t.test('a bare name goes to the provider of the balanced model where openai is not', async (t) => {
  const catalog = open({ OLLAMA_BASE_URL: 'http://127.0.0.1:9/v1', MODEL_BALANCED: 'ollama:llama3.2' })
  t.equal(named(catalog, 'qwen3'), 'ollama qwen3, fast')
  await catalog.close()
})

t.test('a model that is none, or of a provider that is not there, is the mistake of the request', async (t) => {
  const catalog = open()
  for (const name of ['', ' ', 'openai:', 'demo:', 'other:model', 'Openai:model', ':model', 'x'.repeat(201)]) {
    t.throws(() => named(catalog, name), { code: 'invalid_request' }, JSON.stringify(name).slice(0, 20))
  }
  await catalog.close()
  const alone = open({})
  t.match(plansOf(alone).balanced.plan, { candidates: [{ provider: 'demo', model: 'demo' }] })
  t.throws(() => named(alone, 'openai:small'), { code: 'invalid_request', message: /not configured/ })
  t.throws(() => named(alone, 'small'), { code: 'invalid_request' })
  await alone.close()
})

t.test('MODELS_ALLOWED restricts what a request may name, and not what modes have', async (t) => {
  const catalog = open({ ...configured, MODELS_ALLOWED: 'openai:gpt-5*, demo:demo' })
  t.equal(named(catalog, 'openai:gpt-5'), 'openai gpt-5, fast')
  t.equal(named(catalog, 'gpt-5-mini'), 'openai gpt-5-mini, fast')
  t.equal(named(catalog, 'demo'), 'demo demo, fast')
  for (const name of ['openai:middle', 'middle', 'demo:fast', 'groq:gpt-5']) {
    t.throws(() => named(catalog, name), { code: 'invalid_request', message: /may be asked for/ }, name)
  }
  t.match(plansOf(catalog).fast.plan, { candidates: [{ model: 'small' }, { model: 'small' }] })
  await catalog.close()
  const none = open(configured, { models_allowed: [] })
  t.throws(() => named(none, 'openai:middle'), { code: 'invalid_request' })
  await none.close()
})

t.test('the names are the configured ones, each once', async (t) => {
  const catalog = open({ ...configured, MODEL_QUALITY: 'groq:small,openai:middle' })
  t.strictSame(catalog.names(), ['openai:middle', 'openai:small', 'groq:small'])
  await catalog.close()
  const alone = open({})
  t.strictSame(alone.names(), ['demo:demo'])
  await alone.close()
})

t.test('models whose price is not known are told, and own prices make them known', async (t) => {
  const env = { OPENAI_API_KEY: 'sk-x', MODEL_FAST: 'openai:gpt-5-nano', MODEL_BALANCED: 'openai:own-1,demo' }
  const catalog = open(env)
  t.strictSame(catalog.unpriced, ['openai:own-1'])
  await catalog.close()
  const priced = open(env, { prices: [{ provider: 'openai', model: 'own-*', input: '1', output: '2' }] })
  t.strictSame(priced.unpriced, [])
  const usage = { input_tokens: 1_000_000, output_tokens: 0, total_tokens: 1_000_000 }
  t.equal(priced.prices.costOf({ provider: 'openai', model: 'own-1' }, usage, new Date()), '1')
  await priced.close()
})

t.test('the summary for the start line names hosts and no secrets', async (t) => {
  const catalog = open()
  t.strictSame(catalog.providers, ['openai (127.0.0.1:9)', 'groq (api.groq.com)', 'demo'])
  await catalog.close()
})

t.test('a model answers, until the catalog is closed', async (t) => {
  const fake = await startFakeUpstream()
  const catalog = open({ OPENAI_BASE_URL: fake.url, MODEL_FAST: 'openai:small' })
  const upstream = catalog.upstreamOf('openai')
  const asked = { model: 'small', messages: [{ role: 'user' as const, content: 'Hello' }] }
  t.equal((await collect(upstream, undefined, asked)).error, undefined)
  t.equal((await fake.call(0)).body?.model, 'small')
  await catalog.close()
  t.match((await collect(upstream, undefined, asked)).error, { code: 'upstream_unavailable' })
  t.match((await collect(catalog.upstreamOf('demo'))).error, { code: 'upstream_unavailable' })
  await fake.close()
})

t.test('each provider is spoken to in its dialect, at its address, with its key and headers', async (t) => {
  const fake = await startFakeUpstream()
  const catalog = open(
    {
      AZURE_OPENAI_API_KEY: 'azure-key',
      AZURE_OPENAI_BASE_URL: `${fake.url}/?api-version=preview`,
      OWN_KEY: 'own-key',
      ANTHROPIC_API_KEY: 'anthropic-key',
      ANTHROPIC_BASE_URL: fake.url,
      GEMINI_API_KEY: 'gemini-key',
      GEMINI_BASE_URL: `${fake.geminiUrl}/`,
    },
    { providers: { own: { kind: 'openai', base_url: fake.url, api_key_env: 'OWN_KEY', headers: { 'X-Team': 'a' } } } },
  )
  for (const name of ['azure', 'own', 'anthropic', 'gemini']) {
    t.equal((await collect(catalog.upstreamOf(name))).error, undefined, name)
  }
  const calls = await Promise.all([0, 1, 2, 3].map((index) => fake.call(index)))
  t.match(calls, [
    { dialect: 'openai', headers: { 'api-key': 'azure-key', authorization: undefined } },
    { dialect: 'openai', headers: { authorization: 'Bearer own-key', 'x-team': 'a' } },
    { dialect: 'anthropic', headers: { 'x-api-key': 'anthropic-key' } },
    { dialect: 'gemini', headers: { 'x-goog-api-key': 'gemini-key' } },
  ])
  await catalog.close()
  await fake.close()
})

t.test('a plan whose provider is not configured any more is refused for good', async (t) => {
  const catalog = open({})
  t.throws(() => catalog.upstreamOf('openai'), { code: 'upstream_rejected', retryable: false })
  t.throws(() => catalog.upstreamOf('constructor'), { code: 'upstream_rejected' })
  await catalog.close()
})

t.test('a provider that is ready-made is one like the others, and goes before one of its name', async (t) => {
  const closed: string[] = []
  const readyMade = (provider: string): Upstream => ({
    ...createDemo(),
    provider,
    close: async () => {
      closed.push(provider)
      throw new Error('it cannot close')
    },
  })
  const upstreams = [readyMade('mine'), readyMade('groq')]
  const catalog = open({ ...configured, MODEL_FAST: 'mine:a,groq:b' }, { upstreams }, upstreams)
  t.equal(catalog.upstreamOf('mine'), upstreams[0])
  t.equal(catalog.upstreamOf('groq'), upstreams[1])
  t.strictSame(catalog.providers, ['openai (127.0.0.1:9)', 'mine', 'groq', 'demo'])
  t.equal(named(catalog, 'mine:x'), 'mine x, fast')
  await catalog.close()
  t.strictSame(closed, ['mine', 'groq'])
  t.match((await collect(catalog.upstreamOf('demo'))).error, { code: 'upstream_unavailable' }, 'the others are closed')
})
