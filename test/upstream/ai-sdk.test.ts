/**
 * The adapter for models of the AI SDK: with the real packages of ai 5 and ai 7 over HTTP, and with made-up models where
 * a provider's shape or a bad manner is the point. What the packages' types demand of a call is checked by the compiler.
 */
import { inspect } from 'node:util'
import { createOpenAICompatible as createForAi5 } from 'ai5-openai-compatible'
import { createOpenAICompatible as createForAi7 } from 'ai7-openai-compatible'
import t from 'tap'
import {
  begin,
  chunk,
  createGate,
  doneMarker,
  errorShapes,
  forever,
  head,
  refuse,
  reset,
  type Script,
  type Step,
  say,
  startFakeUpstream,
  usageChunk,
} from '../../scripts/fake-upstream.ts'
import { Problem } from '../../src/errors.ts'
import { type AiSdkModel, type AiSdkOptions, fromAiSdk } from '../../src/upstream/ai-sdk.ts'
import { type AiSdkCall, toAiSdkCall } from '../../src/upstream/ai-sdk-prompt.ts'
import type { Upstream, UpstreamEvent, UpstreamRequest } from '../../src/upstream/upstream.ts'
import { collect, request } from './streams.ts'

/** In the key, the prompt and every error of the provider. */
const secret = 'verysecretword'

const fake = await startFakeUpstream()
t.teardown(() => fake.close())

const settings = { name: 'fake', baseURL: fake.url, apiKey: secret, includeUsage: true } as const
const models = { 'ai 5': createForAi5(settings)('own-1'), 'ai 7': createForAi7(settings)('own-1') }

// The compiler's part: what is sent is a call by the packages' own types.
type CallOf<Model extends { doStream: (options: never) => unknown }> = Parameters<Model['doStream']>[0]
true satisfies AiSdkCall extends CallOf<(typeof models)['ai 5']> ? true : false
true satisfies AiSdkCall extends CallOf<(typeof models)['ai 7']> ? true : false

for (const [name, model] of Object.entries<AiSdkModel>(models)) {
  t.test(`${name}: a reply over HTTP is read as what it says`, async (t) => {
    const upstream = fromAiSdk(model, { provider: 'shop' })
    t.equal(upstream.provider, 'shop')
    fake.answer(() => [
      chunk({ role: 'assistant', reasoning_content: 'Hm' }),
      chunk({ reasoning_content: 'm.' }),
      chunk({ content: 'Grüße, \ud83d' }),
      chunk({ content: '\udc69 and\0 \ud800x' }),
      chunk({ tool_calls: [{ index: 0, id: 'call_a', type: 'function', function: { name: 'look', arguments: '' } }] }),
      chunk({ tool_calls: [{ index: 0, function: { arguments: '{"word":' } }] }),
      chunk({ tool_calls: [{ index: 0, function: { arguments: '"né"}' } }] }),
      chunk({}, 'tool_calls'),
      usageChunk(9, 7),
      doneMarker,
    ])
    const callIndex = fake.calls.length
    const seen = await collect(upstream, undefined, {
      ...request,
      temperature: 0.5,
      maxOutputTokens: 100,
      effort: 'low',
      tools: [{ name: 'look', description: 'Looks it up.', parameters: { type: 'object', properties: {} } }],
      toolChoice: { name: 'look' },
    })
    t.strictSame(seen, {
      text: 'Grüße, 👩 and \ufffdx',
      reasoning: 'Hmm.',
      calls: [{ id: 'call_a', name: 'look', arguments: '{"word":"né"}' }],
      usage: { input_tokens: 9, output_tokens: 7, total_tokens: 16, ...seenDetails(seen.usage) },
      usageCount: 1,
      sources: [],
      files: [],
      signatures: [],
      finish: 'tool_calls',
      id: 'chatcmpl-fake',
      model: 'fake',
      error: undefined,
    })
    t.match(fake.calls[callIndex]?.body, {
      model: 'own-1',
      messages: [
        { role: 'system', content: 'Be brief.' },
        { role: 'user', content: 'Hello' },
      ],
      stream: true,
      temperature: 0.5,
      max_tokens: 100,
      reasoning_effort: 'low',
      tools: [{ type: 'function', function: { name: 'look', description: 'Looks it up.' } }],
      tool_choice: { type: 'function', function: { name: 'look' } },
    })
  })

  t.test(`${name}: every failure is one code, after what was said, and has none of the provider's words`, async (t) => {
    const answer = { error: { message: secret, type: 'x', code: null } }
    const empty = { error: { message: secret, type: 'insufficient_quota', code: 'insufficient_quota' } }
    const first = { firstByteMs: 60 }
    const idle = { idleMs: 60 }
    // Opened when the words have been read: the fetch of the packages loses what a reset finds unread.
    let said = createGate()
    const cases: readonly [title: string, script: Script, code: string, text: string, options?: AiSdkOptions][] = [
      ['401', () => refuse(401, answer), 'upstream_rejected', ''],
      ['429', () => refuse(429, answer, { 'retry-after': '7' }), 'upstream_unavailable', ''],
      ['429 for an empty account', () => refuse(429, empty), 'upstream_rejected', ''],
      ['500 with a page', () => refuse(500, `<html>${secret}</html>`), 'upstream_unavailable', ''],
      ['an end without a reason', () => begin({ text: 'so far' }), 'upstream_unavailable', 'so far'],
      ['a marker without a reason', () => [chunk({ content: 'so far' }), doneMarker], 'upstream_unavailable', 'so far'],
      ['a reset', () => cut('so far', said), 'upstream_unavailable', 'so far'],
      ['an error', () => [chunk({ content: 'so far' }), errorShapes.event], 'upstream_unavailable', 'so far'],
      ['garbage', () => [chunk({ content: 'so far' }), errorShapes.corrupt], 'upstream_unavailable', 'so far'],
      ['a page', () => [head(200), errorShapes.page], 'upstream_unavailable', ''],
      ['no status', () => stall(), 'upstream_timeout', '', first],
      ['a status and no more', () => stall(head(200)), 'upstream_timeout', '', first],
      ['silence', () => stall(chunk({ content: 'so far' })), 'upstream_timeout', 'so far', idle],
      ['no end', () => drip(), 'upstream_timeout', '', { totalMs: 60 }],
    ]
    for (const [title, script, code, words, options] of cases) {
      fake.answer(script)
      said = createGate()
      let text = ''
      let error: unknown
      try {
        const asked = { model: 'x', messages: [{ role: 'user', content: secret }] } as const
        for await (const event of fromAiSdk(model, options).stream(asked, new AbortController().signal)) {
          if (event.type !== 'text') continue
          text += event.text
          said.open()
        }
      } catch (thrown) {
        error = thrown
      }
      t.ok(error instanceof Problem, title)
      t.equal((error as Problem).code, code, `${title}: the code`)
      if (title !== 'no end') t.equal(text, words, `${title}: what was said`)
      t.notMatch(inspect(error, { depth: 9, showHidden: true }), secret, `${title}: no words`)
      t.equal((error as Problem).retryAfterSeconds, title === '429' ? 7 : undefined)
    }
    const gone = await startFakeUpstream()
    await gone.close()
    const create = name === 'ai 5' ? createForAi5 : createForAi7
    const { error } = await collect(fromAiSdk(create({ ...settings, baseURL: gone.url })('own-1')))
    t.match(error, { code: 'upstream_unavailable', message: 'The provider cannot be reached.' })
    t.match((error as Problem).cause, { message: /^[A-Z_]+$/ })
  })

  t.test(`${name}: who stops it, leaves it or closes it frees the provider's socket`, async (t) => {
    const upstream = fromAiSdk(model)
    const script = () => stall(chunk({ content: 'one' }))

    fake.answer(script)
    const stopper = new AbortController()
    const reason = new Error('stopped by the test')
    const events = upstream.stream(request, stopper.signal)[Symbol.asyncIterator]()
    while ((await events.next()).value?.type !== 'text');
    const waiting = t.rejects(events.next(), reason)
    stopper.abort(reason)
    await waiting
    await fake.calls.at(-1)?.aborted
    await t.rejects(collectAll(upstream, stopper.signal), reason, 'what is stopped before is not asked')

    for await (const event of upstream.stream(request, new AbortController().signal)) if (event.type === 'text') break
    await fake.calls.at(-1)?.aborted

    const gate = createGate()
    fake.answer(async function* () {
      gate.open()
      yield* script()
    })
    const cutOff = t.rejects(collectAll(upstream), { code: 'upstream_unavailable' })
    await gate.opened
    await upstream.close()
    await cutOff
    await t.rejects(collectAll(upstream), { code: 'upstream_unavailable' }, 'nothing is asked after the end')
  })
}

t.test('the parts of all providers become the events of the port', async (t) => {
  const finish = { type: 'finish', finishReason: { unified: 'stop', raw: 'end' }, usage: {} }
  const cases: readonly [title: string, parts: readonly unknown[], events: readonly UpstreamEvent[]][] = [
    [
      'the seal on reasoning comes when its block ends, and a redacted block is a part without words',
      [
        { type: 'reasoning-start', id: '0' },
        { type: 'reasoning-delta', id: '0', delta: 'Hm.' },
        { type: 'reasoning-delta', id: '0', delta: '', providerMetadata: { anthropic: { signature: 'S1' } } },
        { type: 'reasoning-end', id: '0' },
        { type: 'reasoning-start', id: '1', providerMetadata: { anthropic: { redactedData: 'R1' } } },
        { type: 'reasoning-end', id: '1' },
      ],
      [
        { type: 'reasoning', text: 'Hm.' },
        { type: 'signature', signature: '{"anthropic":{"signature":"S1"}}' },
        { type: 'signature', signature: '{"anthropic":{"redactedData":"R1"}}', redacted: true },
      ],
    ],
    [
      'a seal with the first words is said after the last ones, and one on a call with the call',
      [
        { type: 'text-start', id: '0', providerMetadata: { google: { thoughtSignature: 'T1' } } },
        { type: 'text-delta', id: '0', delta: 'a' },
        { type: 'text-delta', id: '0', delta: 'b' },
        { type: 'tool-input-start', id: 'c1', toolName: 'look' },
        { type: 'tool-input-delta', id: 'c1', delta: '{}' },
        { type: 'tool-input-end', id: 'c1' },
        {
          type: 'tool-call',
          toolCallId: 'c1',
          toolName: 'look',
          input: '{}',
          providerMetadata: { google: { thoughtSignature: 'T2' } },
        },
        { type: 'tool-call', toolCallId: 'c1', toolName: 'look', input: '{}' },
        { type: 'tool-call', toolCallId: 'c2', toolName: 'ask', input: '{"a":1}' },
      ],
      [
        { type: 'text', text: 'a' },
        { type: 'text', text: 'b' },
        { type: 'signature', signature: '{"google":{"thoughtSignature":"T1"}}' },
        { type: 'tool_call', key: '0', callId: 'c1', name: 'look', arguments: '' },
        { type: 'tool_call', key: '0', arguments: '{}' },
        { type: 'signature', signature: '{"google":{"thoughtSignature":"T2"}}', key: '0' },
        { type: 'tool_call', key: '1', callId: 'c2', name: 'ask', arguments: '' },
        { type: 'tool_call', key: '1', arguments: '{"a":1}' },
      ],
    ],
    [
      "OpenAI's encrypted reasoning keeps its id, and an id alone is no seal",
      [
        { type: 'reasoning-start', id: 'r:0', providerMetadata: { openai: { itemId: 'rs', x: null } } },
        {
          type: 'reasoning-end',
          id: 'r:0',
          providerMetadata: { openai: { itemId: 'rs', reasoningEncryptedContent: 'E' } },
        },
        { type: 'text-start', id: 'm', providerMetadata: { openai: { itemId: 'msg' } } },
        { type: 'text-delta', id: 'm', delta: 'x' },
        { type: 'text-end', id: 'm' },
      ],
      [
        {
          type: 'signature',
          signature: '{"openai":{"reasoningEncryptedContent":"E","itemId":"rs"}}',
          redacted: true,
        },
        { type: 'text', text: 'x' },
      ],
    ],
    [
      'sources once each, files of all versions, and nothing that a page should not open',
      [
        { type: 'source', sourceType: 'url', id: '1', url: 'https://example.com/a', title: 'A' },
        { type: 'source', sourceType: 'url', id: '2', url: 'https://example.com/a' },
        { type: 'source', sourceType: 'url', id: '3', url: 'javascript:alert(1)' },
        { type: 'source', sourceType: 'document', id: '4', mediaType: 'application/pdf', title: 'B' },
        { type: 'file', mediaType: 'image/png', data: 'aGk=' },
        { type: 'file', mediaType: 'image/png', data: new Uint8Array([104, 105]) },
        { type: 'file', mediaType: 'image/png', data: { type: 'data', data: 'aGk=' } },
        { type: 'file', mediaType: 'image/png', data: { type: 'url', url: new URL('https://example.com/b.png') } },
        { type: 'file', mediaType: 'image/png', data: { type: 'url', url: 'file:///etc/passwd' } },
        { type: 'file', mediaType: 'no type', data: 'aGk=' },
      ],
      [
        { type: 'source', url: 'https://example.com/a', title: 'A' },
        { type: 'source', title: 'B' },
        { type: 'file', mediaType: 'image/png', url: 'data:image/png;base64,aGk=' },
        { type: 'file', mediaType: 'image/png', url: 'data:image/png;base64,aGk=' },
        { type: 'file', mediaType: 'image/png', url: 'data:image/png;base64,aGk=' },
        { type: 'file', mediaType: 'image/png', url: 'https://example.com/b.png' },
      ],
    ],
    [
      'what the provider ran itself, and what is not known, is left out',
      [
        { type: 'tool-input-start', id: 's1', toolName: 'web_search', providerExecuted: true },
        { type: 'tool-input-delta', id: 's1', delta: '{}' },
        { type: 'tool-call', toolCallId: 's1', toolName: 'web_search', input: '{}' },
        { type: 'tool-call', toolCallId: 's2', toolName: 'code', input: '{}', providerExecuted: true },
        { type: 'tool-result', toolCallId: 's1', toolName: 'web_search', result: {} },
        { type: 'raw', rawValue: {} },
        { type: 'ping' },
        { type: 'custom', kind: 'x.y' },
        'no part',
        null,
        { type: 'text-delta', id: '0', delta: 'x' },
      ],
      [{ type: 'text', text: 'x' }],
    ],
  ]
  for (const [title, parts, events] of cases) {
    const upstream = modelOf('v3', [{ type: 'stream-start', warnings: [] }, ...parts, finish])
    const seen = await collectAll(upstream)
    t.strictSame(seen.slice(0, -1), events, title)
    t.strictSame(seen.at(-1), { type: 'finish', reason: 'stop' })
  }
})

t.test('a finish of every version is read, and one without a reason of the provider is a cut', async (t) => {
  const nested = {
    inputTokens: { total: 10, noCache: 3, cacheRead: 5, cacheWrite: 2 },
    outputTokens: { total: 4, text: 3, reasoning: 1 },
  }
  const usage = {
    input_tokens: 10,
    output_tokens: 4,
    total_tokens: 14,
    reasoning_tokens: 1,
    cached_input_tokens: 5,
  }
  const flat = { inputTokens: 10, outputTokens: 4, totalTokens: 14, reasoningTokens: 1, cachedInputTokens: 5 }
  const split = { inputTokens: 3, outputTokens: 4, totalTokens: 7, reasoningTokens: 1, cachedInputTokens: 5 }
  const cases: readonly [part: object, reason: string | undefined, usage: unknown][] = [
    [{ finishReason: 'content-filter', usage: flat }, 'content_filter', usage],
    [
      { finishReason: 'length', usage: split, providerMetadata: { anthropic: { cacheCreationInputTokens: 2 } } },
      'length',
      { ...usage, cache_write_tokens: 2 },
    ],
    [
      { finishReason: { unified: 'tool-calls', raw: 'tool_use' }, usage: nested },
      'tool_calls',
      { ...usage, cache_write_tokens: 2 },
    ],
    [{ finishReason: { unified: 'other', raw: 'pause_turn' }, usage: {} }, 'pause_turn', undefined],
    [{ finishReason: { unified: 'stop' } }, 'stop', undefined],
    [{ finishReason: 'other' }, 'other', undefined],
    [{ finishReason: 'unknown', usage: flat }, undefined, usage],
    [{ finishReason: 'error' }, undefined, undefined],
    [{ finishReason: { unified: 'other', raw: undefined } }, undefined, undefined],
    [{ finishReason: { unified: 'interrupted', raw: undefined } }, undefined, undefined],
    [{ finishReason: { unified: 'error', raw: 'x' } }, undefined, undefined],
    [{}, undefined, undefined],
  ]
  for (const [part, reason, expected] of cases) {
    const seen = await collect(
      modelOf('v2', [
        { type: 'text-delta', id: '0', delta: 'x' },
        { type: 'finish', ...part },
      ]),
    )
    t.equal(seen.finish, reason, inspect(part))
    t.strictSame(seen.usage, expected)
    if (reason === undefined) t.match(seen.error, { code: 'upstream_unavailable' })
    else t.equal(seen.error, undefined)
  }
})

t.test('a reply has the bounds of every other one', async (t) => {
  const piece = { type: 'text-delta', id: '0', delta: 'x'.repeat(500_000) }
  t.match((await collect(modelOf('v2', Array(5).fill(piece)))).error, { code: 'too_large' })
  const calls = Array.from({ length: 257 }, (_, index) => ({
    type: 'tool-call',
    toolCallId: `c${index}`,
    toolName: 'look',
    input: '{}',
  }))
  t.match((await collect(modelOf('v3', calls))).error, { code: 'too_large' })
  const file = { type: 'file', mediaType: 'image/png', data: new Uint8Array(2_000_001) }
  t.match((await collect(modelOf('v4', [file]))).error, { code: 'too_large' })
})

t.test('a model that follows nothing is left, and its late stream is cancelled', async (t) => {
  const late = Promise.withResolvers<{ stream: ReadableStream }>()
  const cancelled = Promise.withResolvers<void>()
  const deaf = fromAiSdk(
    made('v3', () => late.promise),
    { firstByteMs: 20 },
  )
  await t.rejects(collectAll(deaf), { code: 'upstream_timeout' })
  late.resolve({ stream: new ReadableStream({ cancel: () => cancelled.resolve() }) })
  await cancelled.promise

  // Asked for its next part, it neither answers nor looks at the signal: its `pull` is only called by a pending read.
  const asked = createGate()
  const stalled = new ReadableStream(
    {
      pull() {
        asked.open()
        return forever()
      },
    },
    { highWaterMark: 0 },
  )
  const upstream = fromAiSdk(made('v3', () => Promise.resolve({ stream: stalled })))
  const stopper = new AbortController()
  const ended = t.rejects(collectAll(upstream, stopper.signal), { name: 'AbortError' })
  await asked.opened
  stopper.abort()
  await ended

  const thrown: readonly [error: unknown, code: string][] = [
    [Object.assign(new Error(secret), { name: 'AI_UnsupportedFunctionalityError' }), 'upstream_rejected'],
    [new TypeError(secret), 'upstream_unavailable'],
    [secret, 'upstream_unavailable'],
    [undefined, 'upstream_unavailable'],
  ]
  for (const [error, code] of thrown) {
    const failing = fromAiSdk(
      made('v3', () => {
        throw error
      }),
    )
    const { error: problem } = await collect(failing)
    t.match(problem, { code })
    t.notMatch(inspect(problem, { depth: 9, showHidden: true }), secret)
  }
})

t.test('a consumer that is busy does not make the provider silent', async (t) => {
  const upstream = fromAiSdk(
    made('v3', () =>
      Promise.resolve({
        stream: ReadableStream.from([
          { type: 'text-delta', id: '0', delta: 'x' },
          { type: 'finish', finishReason: 'stop' },
        ]),
      }),
    ),
    { idleMs: 1 },
  )
  const seen: string[] = []
  for await (const event of upstream.stream(request, new AbortController().signal)) {
    seen.push(event.type)
    // Longer than the limit, which must not count here: the clock of the machine is what is tested.
    const until = performance.now() + 5
    while (performance.now() < until) await new Promise((resolve) => setImmediate(resolve))
  }
  t.strictSame(seen, ['text', 'finish'])
})

t.test('what is not a model of a known specification is refused when it is handed over', async (t) => {
  t.throws(() => fromAiSdk({ ...made('v3', forever), specificationVersion: 'v1' as 'v2' }), TypeError)
  t.throws(() => fromAiSdk({ specificationVersion: 'v3', provider: 'x' } as AiSdkModel), TypeError)
  t.throws(() => fromAiSdk('openai/gpt' as unknown as AiSdkModel), TypeError)
})

t.test('a conversation is told step by step, and what was sealed goes back to who sealed it', async (t) => {
  const seal = '{"anthropic":{"signature":"S1"}}'
  const messages: UpstreamRequest['messages'] = [
    { role: 'system', content: 'Be brief.' },
    { role: 'user', content: 'Hello' },
    {
      role: 'assistant',
      content: 'Let me see. Done.',
      provider: 'own',
      parts: [
        { kind: 'reasoning', text: 'Hm.', signature: seal },
        { kind: 'reasoning', text: '', signature: '{"anthropic":{"redactedData":"R1"}}', redacted: true },
        { kind: 'text', text: 'Let me see.' },
        { kind: 'tool_call', text: '{"a":1}', call_id: 'c1', name: 'look', input: { a: 1 }, output: [1] },
        { kind: 'tool_call', text: '{"a"', call_id: 'c2', name: 'look', error: { code: 'failed', message: 'No.' } },
        { kind: 'source', text: '', url: 'https://example.com' },
        { kind: 'text', text: 'Done.', signature: 'sealed by another adapter' },
        { kind: 'tool_call', text: '[1]', call_id: 'c3', name: 'ask' },
        { kind: 'tool_call', text: '{}', call_id: 'c4', name: 'look', output: 'text' },
      ],
    },
    { role: 'tool', callId: 'c3', name: 'ask', content: 'no', isError: true },
    { role: 'system', content: 'So far.' },
    { role: 'assistant', content: 'Plain.' },
    {
      role: 'assistant',
      content: 'Other.',
      provider: 'other',
      parts: [
        { kind: 'reasoning', text: 'Hm.', signature: seal },
        { kind: 'text', text: 'Other.', signature: seal },
      ],
    },
    { role: 'user', content: 'And?' },
  ]
  const { prompt } = toAiSdkCall(
    { specificationVersion: 'v3', provider: 'x' },
    'own',
    { model: 'm', messages },
    new AbortController().signal,
  )
  const call = (toolCallId: string, toolName: string, input = {}) => ({
    type: 'tool-call',
    toolCallId,
    toolName,
    input,
  })
  const result = (toolCallId: string, toolName: string, type: string, value: unknown) => ({
    type: 'tool-result',
    toolCallId,
    toolName,
    output: { type, value },
  })
  t.strictSame(prompt, [
    { role: 'system', content: 'Be brief.\n\nSo far.' },
    { role: 'user', content: [{ type: 'text', text: 'Hello' }] },
    {
      role: 'assistant',
      content: [
        { type: 'reasoning', text: 'Hm.', providerOptions: { anthropic: { signature: 'S1' } } },
        { type: 'reasoning', text: '', providerOptions: { anthropic: { redactedData: 'R1' } } },
        { type: 'text', text: 'Let me see.' },
        call('c1', 'look', { a: 1 }),
        call('c2', 'look'),
      ],
    },
    {
      role: 'tool',
      content: [result('c1', 'look', 'json', [1]), result('c2', 'look', 'error-text', 'No.')],
    },
    { role: 'assistant', content: [{ type: 'text', text: 'Done.' }, call('c3', 'ask'), call('c4', 'look')] },
    { role: 'tool', content: [result('c3', 'ask', 'error-text', 'no'), result('c4', 'look', 'text', 'text')] },
    { role: 'assistant', content: [{ type: 'text', text: 'Plain.' }] },
    { role: 'assistant', content: [{ type: 'text', text: 'Other.' }] },
    { role: 'user', content: [{ type: 'text', text: 'And?' }] },
  ])
})

t.test('effort is asked for where the word is understood', async (t) => {
  const asked = (specificationVersion: AiSdkModel['specificationVersion'], provider: string) => {
    const { reasoning, providerOptions } = toAiSdkCall(
      { specificationVersion, provider },
      'own',
      { ...request, effort: 'high' },
      new AbortController().signal,
    )
    return { reasoning, providerOptions }
  }
  const reasoningEffort = 'high'
  t.strictSame(asked('v4', 'anthropic.messages'), { reasoning: 'high', providerOptions: undefined })
  t.strictSame(asked('v2', 'openai.responses').providerOptions, { openai: { reasoningEffort } })
  t.strictSame(asked('v3', 'azure.chat').providerOptions, { openai: { reasoningEffort } })
  t.strictSame(asked('v2', 'fake.chat').providerOptions, { 'openai-compatible': { reasoningEffort } })
  t.strictSame(asked('v3', 'fake.chat').providerOptions, { openaiCompatible: { reasoningEffort } })
})

function made(specificationVersion: AiSdkModel['specificationVersion'], doStream: AiSdkModel['doStream']): AiSdkModel {
  return { specificationVersion, provider: 'made', doStream }
}

/** A model that says these parts. */
function modelOf(version: AiSdkModel['specificationVersion'], parts: readonly unknown[]): Upstream {
  return fromAiSdk(made(version, () => Promise.resolve({ stream: ReadableStream.from(parts) })))
}

async function collectAll(upstream: Upstream, signal = new AbortController().signal): Promise<UpstreamEvent[]> {
  const events: UpstreamEvent[] = []
  for await (const event of upstream.stream(request, signal)) events.push(event)
  return events
}

/** Which details of the usage a version names differs: each is a count. */
function seenDetails(usage: unknown): object {
  const { input_tokens, output_tokens, total_tokens, ...details } = usage as Record<string, number>
  return details
}

async function* stall(...steps: Step[]) {
  yield* steps
  await forever()
}

async function* cut(text: string, said: ReturnType<typeof createGate>) {
  yield chunk({ content: text })
  await said.opened
  yield reset()
}

async function* drip() {
  yield* say({ tokens: 1_000_000, paceMs: 1 })
}
