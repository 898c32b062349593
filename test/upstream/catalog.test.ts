import t from 'tap'
import { startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { readConfig } from '../../src/config.ts'
import { createCatalog } from '../../src/upstream/catalog.ts'
import { collect } from './streams.ts'

const configured = {
  OPENAI_API_KEY: 'sk-MARKER',
  OPENAI_BASE_URL: 'http://user:MARKER@127.0.0.1:9/MARKER/v1',
  MODEL_FAST: 'openai:small',
  MODEL_BALANCED: 'openai:middle',
  MODEL_QUALITY: 'demo',
}
const open = (env: Readonly<Record<string, string>> = configured) => createCatalog(readConfig(env).upstream)

t.test('a mode has its model, and adaptive has that of balanced', async (t) => {
  const catalog = open()
  t.match(catalog.resolve('fast'), { provider: 'openai', model: 'small' })
  t.match(catalog.resolve('balanced'), { provider: 'openai', model: 'middle' })
  t.match(catalog.resolve('adaptive'), { provider: 'openai', model: 'middle' })
  t.match(catalog.resolve('quality'), { provider: 'demo', model: 'demo', upstream: { provider: 'demo' } })
  await catalog.close()
})

t.test('a model in a request goes before the mode', async (t) => {
  const catalog = open()
  t.match(catalog.resolve('fast', 'openai:large'), { provider: 'openai', model: 'large' })
  t.match(catalog.resolve('fast', 'large'), { provider: 'openai', model: 'large' })
  t.match(catalog.resolve('fast', 'openai:llama3:8b'), { provider: 'openai', model: 'llama3:8b' })
  t.match(catalog.resolve('fast', 'demo'), { provider: 'demo', model: 'demo' })
  t.match(catalog.resolve('fast', 'demo:fast'), { provider: 'demo', model: 'fast' })
  await catalog.close()
})

t.test('a model that is none, or of a provider that is not there, is the mistake of the request', async (t) => {
  const catalog = open()
  for (const name of ['', ' ', 'openai:', 'demo:', 'other:model', 'Openai:model', ':model', 'x'.repeat(201)]) {
    t.throws(() => catalog.resolve('fast', name), { code: 'invalid_request' }, JSON.stringify(name).slice(0, 20))
  }
  await catalog.close()
  const alone = open({})
  t.match(alone.resolve('balanced'), { provider: 'demo', model: 'demo' })
  t.throws(() => alone.resolve('fast', 'openai:small'), { code: 'invalid_request', message: /not configured/ })
  t.throws(() => alone.resolve('fast', 'small'), { code: 'invalid_request' })
  await alone.close()
})

t.test('the names are the configured ones, each once', async (t) => {
  const catalog = open({ ...configured, MODEL_QUALITY: 'openai:middle' })
  t.strictSame(catalog.names(), ['openai:middle', 'openai:small'])
  await catalog.close()
  const alone = open({})
  t.strictSame(alone.names(), ['demo:demo'])
  await alone.close()
})

t.test('the summary for the start line names hosts and no secrets', async (t) => {
  const catalog = open()
  t.strictSame(catalog.providers, ['openai (127.0.0.1:9)', 'demo'])
  await catalog.close()
})

t.test('a resolved model answers, until the catalog is closed', async (t) => {
  const fake = await startFakeUpstream()
  const catalog = open({ OPENAI_BASE_URL: fake.url, MODEL_FAST: 'openai:small' })
  const { upstream, model } = catalog.resolve('fast')
  const asked = { model, messages: [{ role: 'user' as const, content: 'Hello' }] }
  t.equal((await collect(upstream, undefined, asked)).error, undefined)
  t.equal((await fake.call(0)).body?.model, 'small')
  await catalog.close()
  t.match((await collect(upstream, undefined, asked)).error, { code: 'upstream_unavailable' })
  t.match((await collect(catalog.resolve('fast', 'demo').upstream)).error, { code: 'upstream_unavailable' })
  await fake.close()
})
