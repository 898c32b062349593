/**
 * Gemini's streamGenerateContent: what is sent for each thing that the port can ask, what each chunk becomes, whole streams
 * in every cut, and everything that can go wrong. The own streams always run; the recording of the provider where it is.
 */
import t from 'tap'
import { geminiChunk, geminiData } from '../../scripts/fake-dialects.ts'
import {
  begin,
  forever,
  head,
  refuse,
  reset,
  type Script,
  say,
  sse,
  startFakeUpstream,
} from '../../scripts/fake-upstream.ts'
import type { Part } from '../../src/log/event.ts'
import { toGeminiRequest } from '../../src/upstream/gemini-request.ts'
import { replyUnitsMax, toolCallsMax } from '../../src/upstream/reader.ts'
import type { UpstreamMessage, UpstreamRequest } from '../../src/upstream/upstream.ts'
import { geminiAt, ownStreamsOf, plain, read, readGemini, recording, textOf } from './native.ts'
import {
  apiKey,
  type BrokenCase,
  keepStreams,
  keepWordsIn,
  quoted,
  rejected,
  survive,
  unavailable,
} from './native-promises.ts'

const expected: Readonly<Record<string, object>> = {
  'thoughts-tools': {
    parts: [
      { kind: 'reasoning', text: '**Planning** zwei Städte 🌍.' },
      { kind: 'text', text: 'Ich sehe nach: Zürich und 東京.' },
      {
        kind: 'tool_call',
        text: '{"city":"Zürich"}',
        callId: 'call_own_reply-1_0',
        name: 'weather',
        signature: 'c2VhbC1vbmU=',
      },
      { kind: 'tool_call', text: '{"city":"東京"}', callId: 'call_own_reply-1_1', name: 'weather' },
      { kind: 'tool_call', text: '{}', callId: 'fc-own', name: 'now' },
    ],
    usage: { input_tokens: 40, output_tokens: 42, total_tokens: 82, reasoning_tokens: 20, cached_input_tokens: 16 },
    finish: 'tool_calls',
    id: 'own_reply-1',
    model: 'gemini-own-1',
    verdict: 'complete',
  },
  'sources-files': {
    parts: [
      { kind: 'text', text: 'A dot: ' },
      { kind: 'file', text: '', url: 'data:image/png;base64,iVBORw0KGgo=', mediaType: 'image/png' },
      {
        kind: 'text',
        text: '\n\n```python\nprint(6 * 7)\n```\n\n\n\n```\n42\n```\n\nSo it is 42.',
        signature: 'c2VhbC10d28=',
      },
      { kind: 'source', text: '', url: 'https://a.example/1', title: 'A page' },
      { kind: 'source', text: '', url: 'https://b.example/2', title: 'Another' },
      { kind: 'source', text: '', url: 'https://c.example/3' },
    ],
    usage: { input_tokens: 15, output_tokens: 30, total_tokens: 45 },
    finish: 'stop',
    id: 'own_reply-1',
    model: 'gemini-own-1',
    verdict: 'complete',
  },
  blocked: {
    parts: [],
    usage: { input_tokens: 9, output_tokens: 0, total_tokens: 9 },
    finish: undefined,
    id: 'own_reply-2',
    model: 'gemini-own-1',
    verdict: 'upstream_rejected',
  },
}

t.test('whole streams are read as what they say', async (t) => {
  for (const { name, bytes } of ownStreamsOf('gemini')) {
    t.ok(bytes.includes('\r\n\r\n'), `${name} has the line ends of Google`)
    t.strictSame(plain(await readGemini([bytes])), expected[name], name)
  }
  const recorded = recording('10')
  if (recorded === undefined) {
    t.comment('no folder of recordings: only the own streams are read')
    return
  }
  t.match(await readGemini([recorded.bytes]), {
    parts: [{ kind: 'text', text: 'The capital of France is Paris.\n' }],
    usage: { input_tokens: 13, output_tokens: 8, total_tokens: 21 },
    finish: 'stop',
    model: 'gemini-2.0-flash-exp',
    verdict: 'complete',
  })
})

t.test('a stream is the same reply however it is cut, and whole only when it says so', (t) =>
  keepStreams(t, ownStreamsOf('gemini'), recording('10'), {
    readFed: readGemini,
    isWhole: (text) => text.includes('"finishReason"'),
  }),
)

const stop = geminiChunk([], { finishReason: 'STOP' })
const words = geminiChunk([{ text: 'two' }]) + geminiChunk([{ text: ' words' }])

t.test('each part becomes what the port has for it, and the unknown ones nothing', async (t) => {
  const seal = { thoughtSignature: 'c2VhbA==' }
  const call = (name: string, rest: object = {}) => ({ functionCall: { name, args: { n: 1 }, ...rest } })
  const cases: Readonly<Record<string, [chunks: string, parts: object[]]>> = {
    'a seal in an empty part behind the text': [
      words + geminiChunk([{ text: '', ...seal }]),
      [{ kind: 'text', text: 'two words', signature: 'c2VhbA==' }],
    ],
    'a seal with the last words': [
      geminiChunk([{ text: 'two' }]) + geminiChunk([{ text: ' words', ...seal }]) + geminiChunk([{ text: 'more' }]),
      [
        { kind: 'text', text: 'two words', signature: 'c2VhbA==' },
        { kind: 'text', text: 'more' },
      ],
    ],
    'a seal on thoughts': [
      geminiChunk([{ text: 'Hm.', thought: true }]) + geminiChunk([{ text: '', thought: true, ...seal }]) + words,
      [
        { kind: 'reasoning', text: 'Hm.', signature: 'c2VhbA==' },
        { kind: 'text', text: 'two words' },
      ],
    ],
    'two seals in a row': [
      geminiChunk([
        { text: 'two', ...seal },
        { text: '', ...seal },
      ]),
      [
        { kind: 'text', text: 'two', signature: 'c2VhbA==' },
        { kind: 'reasoning', text: '', signature: 'c2VhbA==', redacted: true },
      ],
    ],
    'a seal behind half a character': [
      geminiChunk([{ text: 'two \ud83d', ...seal }]) + words,
      [
        { kind: 'text', text: 'two \ufffd', signature: 'c2VhbA==' },
        { kind: 'text', text: 'two words' },
      ],
    ],
    'feedback beside words': [
      geminiChunk([{ text: 'x' }], {}, { promptFeedback: { blockReason: 'SAFETY' } }),
      [{ kind: 'text', text: 'x' }],
    ],
    'a seal that nothing was said for': [
      geminiChunk([
        { text: '', ...seal },
        { text: 'Hm.', thought: true },
        { text: '', ...seal },
      ]),
      [
        { kind: 'reasoning', text: '', signature: 'c2VhbA==', redacted: true },
        { kind: 'reasoning', text: 'Hm.' },
        { kind: 'reasoning', text: '', signature: 'c2VhbA==', redacted: true },
      ],
    ],
    'calls with one id for all, and without arguments': [
      geminiChunk([call('f', { id: 'x' }), call('g', { id: 'x' }), { functionCall: { name: 'h' } }]),
      [
        { kind: 'tool_call', text: '{"n":1}', callId: 'x', name: 'f' },
        { kind: 'tool_call', text: '{"n":1}', callId: 'call_fake_1', name: 'g' },
        { kind: 'tool_call', text: '{}', callId: 'call_fake_2', name: 'h' },
      ],
    ],
    'a piece of arguments that are streamed': [
      geminiChunk([{ functionCall: { partialArgs: [{ jsonPath: '$.n' }] } }]),
      [],
    ],
    'files by reference, sketches, and what is no file': [
      geminiChunk([
        { fileData: { fileUri: 'https://a.example/x.png' } },
        { inlineData: { mimeType: 'image/png', data: 'AAAA' }, thought: true },
        { inlineData: { mimeType: 'text/html;base64,', data: 'AAAA' } },
        { inlineData: { mimeType: 'image/png', data: '"><script>' } },
        { inlineData: { mimeType: 'image/png' } },
        { hologram: { text: 'x' } },
      ]),
      [],
    ],
    'another candidate': [
      geminiData({ candidates: [{ index: 1, content: { parts: [{ text: 'B' }] } }] }) + words,
      [{ kind: 'text', text: 'two words' }],
    ],
    'sources of documents and maps': [
      geminiChunk([{ text: 'x' }], {
        groundingMetadata: {
          groundingChunks: [
            { retrievedContext: { uri: 'gs://own/notes', title: 'Notes' } },
            { maps: { uri: 'https://maps.example/1', title: 'A place' } },
            {},
          ],
        },
      }),
      [
        { kind: 'text', text: 'x' },
        { kind: 'source', text: '', title: 'Notes' },
        { kind: 'source', text: '', url: 'https://maps.example/1', title: 'A place' },
      ],
    ],
    'half a character in each of two chunks': [
      geminiChunk([{ text: '\ud83d' }]) + geminiChunk([{ text: '\ude80\0' }]),
      [{ kind: 'text', text: '🚀' }],
    ],
  }
  for (const [name, [chunks, parts]] of Object.entries(cases)) {
    const seen = await readGemini([chunks + stop])
    t.equal(seen.verdict, 'complete', name)
    t.strictSame(seen.parts, parts, name)
  }
  const nameless = geminiData({ candidates: [{ content: { parts: [call('f')] }, finishReason: 'STOP' }] })
  t.match(
    await readGemini([nameless]),
    { parts: [{ callId: 'call_0' }], finish: 'tool_calls' },
    'a reply without an id',
  )
})

t.test('why it stopped is said in the words of the port, or is an error', async (t) => {
  const reasons: Readonly<Record<string, string>> = {
    STOP: 'stop',
    MAX_TOKENS: 'length',
    SAFETY: 'content_filter',
    RECITATION: 'content_filter',
    BLOCKLIST: 'content_filter',
    PROHIBITED_CONTENT: 'content_filter',
    SPII: 'content_filter',
    IMAGE_SAFETY: 'content_filter',
    LANGUAGE: 'LANGUAGE',
    OTHER: 'OTHER',
  }
  for (const [finishReason, wanted] of Object.entries(reasons)) {
    t.match(
      await readGemini([words + geminiChunk([], { finishReason })]),
      { finish: wanted, verdict: 'complete' },
      finishReason,
    )
  }
  const call = geminiChunk([{ functionCall: { name: 'f', args: {} } }])
  t.match(await readGemini([call + stop]), { finish: 'tool_calls' })
  t.match(await readGemini([call + geminiChunk([], { finishReason: 'MAX_TOKENS' })]), { finish: 'length' })
  t.match(await readGemini([`${words}data: [DONE]\n\n`]), { verdict: 'upstream_unavailable' }, 'a marker is no reason')
  t.match(await readGemini([`${words}${stop}data: [DONE]\n\n`]), { verdict: 'complete' })
  const unspecified = geminiChunk([], { finishReason: 'FINISH_REASON_UNSPECIFIED' })
  t.match(await readGemini([words + unspecified]), { verdict: 'upstream_unavailable' })
  // As some models say it: with every chunk.
  const each = ['all', ' of', ' it'].map((text) => geminiChunk([{ text }], { finishReason: 'STOP' }))
  const seen = await readGemini(each)
  t.match(seen, { verdict: 'complete', finish: 'stop' })
  t.equal(textOf(seen), 'all of it')
})

t.test('counts are those of the last chunk that has them', async (t) => {
  const usageOf = async (...usages: readonly object[]) =>
    (
      await readGemini([
        usages.map((usageMetadata) => geminiChunk([{ text: 'x' }], {}, { usageMetadata })).join('') + stop,
      ])
    ).usage
  t.strictSame(
    await usageOf({ promptTokenCount: 5 }, { promptTokenCount: 4, candidatesTokenCount: 2, totalTokenCount: 6 }),
    {
      input_tokens: 4,
      output_tokens: 2,
      total_tokens: 6,
    },
  )
  t.strictSame(
    await usageOf({ promptTokenCount: 5, toolUsePromptTokenCount: 7, thoughtsTokenCount: 3, candidatesTokenCount: 1 }),
    {
      input_tokens: 12,
      output_tokens: 4,
      total_tokens: 16,
      reasoning_tokens: 3,
    },
  )
  t.equal(await usageOf({ trafficType: 'ON_DEMAND' }), undefined)
})

t.test('a reply has its bounds', async (t) => {
  const call = geminiChunk([{ functionCall: { name: 'f', args: {} } }], {}, { responseId: 'long-'.repeat(20) })
  const seen = await readGemini([call.repeat(toolCallsMax + 1), stop])
  t.match(seen, { verdict: 'too_large' })
  t.equal(seen.parts.length, toolCallsMax)
  t.equal(new Set(seen.parts.map(({ callId }) => callId)).size, toolCallsMax, 'each call has an id of its own')
  t.ok(seen.parts.every(({ callId = '' }) => callId.length <= 40))
  const image = (length: number) => geminiChunk([{ inlineData: { mimeType: 'image/png', data: 'A'.repeat(length) } }])
  t.match(await readGemini([image(replyUnitsMax / 2), stop]), { verdict: 'complete', parts: [{ kind: 'file' }] })
  t.match(await readGemini([image(replyUnitsMax / 2), image(replyUnitsMax / 2), stop]), { verdict: 'too_large' })
  t.match(await readGemini([image(replyUnitsMax + 1), stop]), { verdict: 'too_large', parts: [] })
})

t.test('no JSON in place of a chunk breaks the reader', (t) => survive(t, readGemini, ['x']))

const user = (content: string): UpstreamMessage => ({ role: 'user', content })
const said = (...parts: readonly Part[]): UpstreamMessage => ({
  role: 'assistant',
  content: '',
  parts,
  provider: 'gemini',
})
const text = (words: string, signature?: string): Part => ({
  kind: 'text',
  text: words,
  ...(signature === undefined ? {} : { signature }),
})
const called = (call_id: string, rest: Partial<Part> = {}): Part => ({
  kind: 'tool_call',
  text: '{"n":1}',
  call_id,
  name: 'f',
  input: { n: 1 },
  ...rest,
})
const asked = (words: string) => ({ role: 'user', parts: [{ text: words }] })
const call = (id: string, rest: object = {}) => ({ functionCall: { id, name: 'f', args: { n: 1 } }, ...rest })
const response = (id: string, value: object) => ({ functionResponse: { id, name: 'f', response: value } })

const bodyOf = (request: Partial<UpstreamRequest>) =>
  toGeminiRequest({ model: 'own-1', messages: [user('Hi')], ...request }, 'gemini')

t.test('a conversation is sent as Gemini wants it', (t) => {
  const cases: Readonly<Record<string, [messages: UpstreamMessage[], wanted: object[]]>> = {
    'answers of the gateway and of the client, each behind its call': [
      [
        user('One'),
        said(
          called('a', { output: [1] }),
          called('b', { error: { code: 'tool_failed', message: 'It failed.' } }),
          text('Then'),
        ),
        user('Two'),
        said(text('So:'), called('a'), called('c'), called('d')),
        { role: 'tool', callId: 'c', name: 'f', content: 'plain' },
        { role: 'tool', callId: 'a', name: 'f', content: '{"n":2}', isError: true },
        { role: 'tool', callId: 'x', name: 'f', content: 'nobody asked' },
      ],
      [
        asked('One'),
        { role: 'model', parts: [call('a'), call('b')] },
        { role: 'user', parts: [response('a', { output: [1] }), response('b', { error: 'It failed.' })] },
        { role: 'model', parts: [{ text: 'Then' }] },
        asked('Two'),
        { role: 'model', parts: [{ text: 'So:' }, call('a_2'), call('c')] },
        { role: 'user', parts: [response('a_2', { error: { n: 2 } }), response('c', { output: 'plain' })] },
      ],
    ],
    'a picture that it made': [
      [
        user('One'),
        said(text(' '), { kind: 'file', text: '', url: 'data:image/png;base64,AAAA', media_type: 'image/png' }),
        user('Two'),
      ],
      [asked('One'), { role: 'model', parts: [{ inlineData: { mimeType: 'image/png', data: 'AAAA' } }] }, asked('Two')],
    ],
    'seals, on the very part that had them': [
      [
        user('One'),
        said(
          { kind: 'reasoning', text: 'Hm.', signature: 'dGhvdWdodA==' },
          { kind: 'reasoning', text: 'Unsealed.' },
          text('Two', 'dGV4dA=='),
          { kind: 'reasoning', text: '', signature: 'YWxvbmU=', redacted: true },
          called('a', { output: 1, signature: 'Y2FsbA==' }),
        ),
      ],
      [
        asked('One'),
        {
          role: 'model',
          parts: [
            { text: 'Hm.', thought: true, thoughtSignature: 'dGhvdWdodA==' },
            { text: 'Two', thoughtSignature: 'dGV4dA==' },
            { text: '', thoughtSignature: 'YWxvbmU=' },
            call('a', { thoughtSignature: 'Y2FsbA==' }),
          ],
        },
        { role: 'user', parts: [response('a', { output: 1 })] },
      ],
    ],
  }
  for (const [name, [messages, wanted]] of Object.entries(cases)) {
    t.strictSame(bodyOf({ messages }).contents, wanted, name)
  }
  t.strictSame(bodyOf({ messages: [{ role: 'system', content: 'A' }, user('x'), { role: 'system', content: 'B' }] }), {
    systemInstruction: { parts: [{ text: 'A\n\nB' }] },
    contents: [asked('x')],
  })
  t.end()
})

t.test('calls that Gemini did not seal are marked for the models that miss a seal', (t) => {
  const callsOf = (provider: string, model: string) => {
    const parts = [called('a', { output: 1, signature: 'Y2FsbA==' }), called('b', { output: 2 })]
    const messages = [user('One'), { ...said(...parts), provider }, said(called('c', { output: 3 }))]
    const contents = bodyOf({ messages, model }).contents as { parts: { thoughtSignature?: string }[] }[]
    return [contents[1]!, contents[3]!].flatMap(({ parts }) => parts.map(({ thoughtSignature }) => thoughtSignature))
  }
  const mark = 'skip_thought_signature_validator'
  t.strictSame(callsOf('gemini', 'gemini-2.5-pro'), ['Y2FsbA==', undefined, undefined])
  t.strictSame(callsOf('gemini', 'gemini-3.1-pro-preview'), ['Y2FsbA==', undefined, mark])
  t.strictSame(callsOf('anthropic', 'gemini-2.5-pro'), [undefined, undefined, undefined])
  t.strictSame(callsOf('anthropic', 'models/gemini-4-argon'), [mark, undefined, mark])
  t.end()
})

t.test('effort is said in the way that the model takes', (t) => {
  const cases: readonly (readonly [asked: Partial<UpstreamRequest>, wanted: object | undefined])[] = [
    [{}, undefined],
    [{ effort: 'high', model: 'gemini-2.0-flash' }, undefined],
    [{ effort: 'high', model: 'gemma-4-31b-it' }, undefined],
    [{ model: 'gemini-3.7-flash' }, undefined],
    [
      { temperature: 0, maxOutputTokens: 10 },
      { temperature: 0, maxOutputTokens: 10 },
    ],
    ...(
      [
        ['gemini-2.5-flash', 'none', { thinkingBudget: 0, includeThoughts: false }],
        ['gemini-2.5-pro', 'none', { thinkingBudget: 128, includeThoughts: false }],
        ['gemini-2.5-flash-lite', 'minimal', { thinkingBudget: 512, includeThoughts: true }],
        ['gemini-2.5-flash', 'low', { thinkingBudget: 2048, includeThoughts: true }],
        ['gemini-2.5-flash', 'medium', { thinkingBudget: 8192, includeThoughts: true }],
        ['gemini-2.5-pro', 'high', { thinkingBudget: 24_576, includeThoughts: true }],
        ['gemini-3.7-flash', 'none', { thinkingLevel: 'LOW', includeThoughts: false }],
        ['gemini-3.5-flash-lite', 'none', { thinkingLevel: 'MINIMAL', includeThoughts: false }],
        ['gemini-3.1-pro-preview', 'minimal', { thinkingLevel: 'LOW', includeThoughts: true }],
        ['gemini-flash-latest', 'medium', { thinkingLevel: 'MEDIUM', includeThoughts: true }],
        ['models/gemini-4-argon', 'high', { thinkingLevel: 'HIGH', includeThoughts: true }],
      ] as const
    ).map(([model, effort, thinkingConfig]) => [{ model, effort }, { thinkingConfig }] as const),
  ]
  for (const [asked, wanted] of cases) t.strictSame(bodyOf(asked).generationConfig, wanted, JSON.stringify(asked))
  t.end()
})

t.test('tools are sent as JSON Schema, and a choice with them', (t) => {
  const schema = { type: 'object', properties: { n: { $ref: '#/$defs/n' } }, $defs: { n: { type: 'integer' } } }
  const tools = [
    {
      name: 'f',
      description: 'Does f.',
      parameters: { $schema: 'https://json-schema.org/draft/2020-12/schema', ...schema },
    },
    { name: 'g', parameters: {} },
  ]
  t.strictSame(bodyOf({ tools }).tools, [
    {
      functionDeclarations: [
        { name: 'f', description: 'Does f.', parametersJsonSchema: schema },
        { name: 'g', description: '', parametersJsonSchema: { type: 'object' } },
      ],
    },
  ])
  const choiceOf = (toolChoice: UpstreamRequest['toolChoice'] & {}) => bodyOf({ tools, toolChoice }).toolConfig
  t.strictSame(choiceOf('auto'), { functionCallingConfig: { mode: 'AUTO' } })
  t.strictSame(choiceOf('none'), { functionCallingConfig: { mode: 'NONE' } })
  t.strictSame(choiceOf('required'), { functionCallingConfig: { mode: 'ANY' } })
  t.strictSame(choiceOf({ name: 'f' }), { functionCallingConfig: { mode: 'ANY', allowedFunctionNames: ['f'] } })
  t.strictSame(Object.keys(bodyOf({ toolChoice: 'auto' })), ['contents'])
  t.end()
})

t.test('the request goes where it should, with the key in its header and never in the URL', async (t) => {
  const fake = await startFakeUpstream({ script: () => say({ text: 'Fine.', dialect: 'gemini' }) })
  const anonymous = geminiAt(`${fake.geminiUrl}/`)
  const keyed = geminiAt(fake.geminiUrl, { apiKey, provider: 'google' })
  t.equal(anonymous.provider, 'gemini')
  t.equal(keyed.provider, 'google')
  t.equal(textOf(await read(anonymous)), 'Fine.')
  const paths: Readonly<Record<string, string>> = {
    'gemini-2.5-flash': 'models/gemini-2.5-flash',
    'models/gemini-2.5-flash': 'models/gemini-2.5-flash',
    'tunedModels/own': 'tunedModels/own',
    '../../v1/files?x=#': 'models/..%2F..%2Fv1%2Ffiles%3Fx%3D%23',
    '..': 'models/..',
    'a\nb\ud800': 'models/a%0Ab%EF%BF%BD',
  }
  for (const [model, path] of Object.entries(paths)) {
    const index = fake.calls.length
    await read(keyed, { model, messages: [user('x')] })
    t.equal((await fake.call(index)).path, `/v1beta/${path}:streamGenerateContent?alt=sse`)
  }
  const [first, second] = [await fake.call(0), await fake.call(1)]
  t.match(first, { method: 'POST', dialect: 'gemini', message: 'Hello' })
  t.equal(first.headers['x-goog-api-key'], undefined)
  t.strictSame(first.body, { systemInstruction: { parts: [{ text: 'Be brief.' }] }, contents: [asked('Hello')] })
  t.equal(second.headers['x-goog-api-key'], apiKey)
  t.notMatch(second.text + second.path, /MARKER/)
  await anonymous.close()
  await keyed.close()
  await fake.close()
})

const error = (code: number | undefined, status: string, details: readonly object[] = []) => ({
  error: { ...(code === undefined ? {} : { code }), message: `${quoted} ${apiKey}`, status, details },
})
const answers =
  (
    code: number,
    status: string,
    details: readonly object[] = [],
    headers: Readonly<Record<string, string>> = {},
  ): Script =>
  () =>
    refuse(code, error(code, status, details), headers)
const quotaOf = (quotaId: string) => ({
  '@type': 'type.googleapis.com/google.rpc.QuotaFailure',
  violations: [{ quotaId }],
})
const daily = quotaOf('GenerateRequestsPerDayPerProjectPerModel-FreeTier')
const perMinute = quotaOf('GenerateRequestsPerMinutePerProjectPerModel-FreeTier')
const retryIn = (retryDelay: unknown) => ({ '@type': 'type.googleapis.com/google.rpc.RetryInfo', retryDelay })
/** A reply of two words, and then `next`. */
const afterWords = (...next: readonly (string | ReturnType<typeof reset>)[]): Script =>
  async function* () {
    yield* begin({ text: 'two words', dialect: 'gemini' })
    yield* next
  }
const inStream = (code: number | undefined, status: string, details: readonly object[] = []): Script =>
  afterWords(geminiData(error(code, status, details)))
const after = { text: 'two words' }
const busy = { script: answers(429, 'RESOURCE_EXHAUSTED'), ...unavailable }

const broken: Readonly<Record<string, BrokenCase>> = {
  '400': { script: answers(400, 'INVALID_ARGUMENT'), ...rejected, detail: 'The provider answered 400.' },
  '400 for a key': { script: answers(400, 'INVALID_ARGUMENT', [{ reason: 'API_KEY_INVALID' }]), ...rejected },
  '401': { script: answers(401, 'UNAUTHENTICATED'), ...rejected },
  '403': { script: answers(403, 'PERMISSION_DENIED'), ...rejected },
  '404': { script: answers(404, 'NOT_FOUND'), ...rejected },
  '429': busy,
  '429 in a list': { script: () => refuse(429, [error(429, 'RESOURCE_EXHAUSTED', [daily])]), ...rejected },
  '429 of a minute': {
    script: answers(429, 'RESOURCE_EXHAUSTED', [perMinute, retryIn('34.4s')]),
    ...unavailable,
    retryAfterSeconds: 35,
  },
  '429 of a day': {
    script: answers(429, 'RESOURCE_EXHAUSTED', [{}, retryIn('18s'), perMinute, daily]),
    ...rejected,
    detail: 'The provider answered 429: the account has no quota left.',
  },
  '429 with a delay of a day': { ...busy, script: answers(429, '', [retryIn('86400s')]), retryAfterSeconds: 3600 },
  '429 with a header': {
    ...busy,
    script: answers(429, '', [retryIn('30s')], { 'retry-after': '7' }),
    retryAfterSeconds: 7,
  },
  '429 with nonsense': { ...busy, script: answers(429, '', [retryIn('soon'), retryIn(5), { violations: 'x' }]) },
  '429 with a page': { ...busy, script: () => refuse(429, `<html>${quoted}</html>`) },
  '500': { script: answers(500, 'INTERNAL'), ...unavailable },
  '503': { script: answers(503, 'UNAVAILABLE'), ...unavailable, detail: 'The provider answered 503.' },
  '504': { script: answers(504, 'DEADLINE_EXCEEDED'), ...unavailable },
  '200 with an error in JSON': {
    script: () => refuse(200, JSON.stringify(error(403, 'PERMISSION_DENIED'), null, 2)),
    ...rejected,
  },
  '200 with an error in a list': {
    script: () => refuse(200, JSON.stringify([error(400, 'INVALID_ARGUMENT')], null, 2)),
    ...rejected,
  },
  '200 with an error in a list, as Google writes it': {
    script: () => refuse(200, `[${JSON.stringify(error(503, 'UNAVAILABLE'), null, 2)}\n]\n`),
    ...unavailable,
  },
  '200 with a whole reply in JSON': {
    script: () => refuse(200, [{ candidates: [{ content: { parts: [{ text: quoted }] } }] }]),
    ...unavailable,
  },
  '200 with a page': { script: () => refuse(200, `<html>${quoted}</html>`), ...unavailable },
  '200 and nothing': { script: () => [head(200)], ...unavailable, detail: 'The reply broke off.' },
  'a refused prompt': {
    script: () => [geminiData({ promptFeedback: { blockReason: 'SAFETY', blockReasonMessage: quoted } })],
    ...rejected,
    detail: 'The provider refused the prompt for its content.',
  },
  'UNAVAILABLE in mid-stream': { script: inStream(503, 'UNAVAILABLE'), ...unavailable, ...after },
  'INTERNAL in mid-stream': { script: inStream(500, 'INTERNAL'), ...unavailable, ...after },
  'RESOURCE_EXHAUSTED in mid-stream': {
    script: inStream(429, 'RESOURCE_EXHAUSTED', [perMinute]),
    ...unavailable,
    ...after,
  },
  'the quota of a day in mid-stream': { script: inStream(429, 'RESOURCE_EXHAUSTED', [daily]), ...rejected, ...after },
  'INVALID_ARGUMENT in mid-stream': { script: inStream(400, 'INVALID_ARGUMENT'), ...rejected, ...after },
  'a status without a code': { script: inStream(undefined, 'PERMISSION_DENIED'), ...rejected, ...after },
  'UNAUTHENTICATED without a code': { script: inStream(undefined, 'UNAUTHENTICATED'), ...rejected, ...after },
  'FAILED_PRECONDITION without a code': { script: inStream(undefined, 'FAILED_PRECONDITION'), ...rejected, ...after },
  'UNAVAILABLE without a code': { script: inStream(undefined, 'UNAVAILABLE'), ...unavailable, ...after },
  'an error in a list in mid-stream': { script: afterWords(geminiData([error(400, '')])), ...rejected, ...after },
  'an error that has a name': { script: afterWords(sse(error(404, 'NOT_FOUND'), 'error')), ...rejected, ...after },
  'an error that is no JSON': { script: afterWords(`event: error\ndata: ${quoted}\n\n`), ...unavailable, ...after },
  'a bare list in mid-stream': { script: afterWords(`${JSON.stringify([error(400, '')])}\n`), ...rejected, ...after },
  'a page in mid-stream': { script: afterWords(`<!DOCTYPE html>\n<p>${quoted}</p>\n`), ...unavailable, ...after },
  'a corrupt chunk': {
    script: afterWords(`data: {"candidates": [{"x":"${quoted}\r\n\r\n`, stop),
    ...unavailable,
    ...after,
  },
  'a chunk that is a number': { script: afterWords('data: 5\n\n', stop), ...unavailable, ...after },
  'a call that cannot be read': {
    script: afterWords(geminiChunk([], { finishReason: 'MALFORMED_FUNCTION_CALL' })),
    ...unavailable,
    ...after,
  },
  'a call that was not expected': {
    script: afterWords(geminiChunk([], { finishReason: 'UNEXPECTED_TOOL_CALL' })),
    ...unavailable,
  },
  'a seal that is missed': {
    script: afterWords(geminiChunk([], { finishReason: 'MISSING_THOUGHT_SIGNATURE' })),
    ...rejected,
  },
  'an end without a reason': { script: afterWords(), ...unavailable, ...after, detail: 'The reply broke off.' },
  'a reset': { script: afterWords(reset()), ...unavailable, ...after, detail: 'The reply broke off.' },
  'a reset before the status': { script: () => [reset()], ...unavailable, detail: 'The provider cannot be reached.' },
}

t.test('what Gemini does wrong becomes one code, and none of its words get out', (t) =>
  keepWordsIn(t, broken, (fake) => geminiAt(fake.geminiUrl, { apiKey })),
)

t.test('silence after words is cut off, and after a finish reason it ends the reply', async (t) => {
  const fake = await startFakeUpstream()
  const upstream = geminiAt(fake.geminiUrl, { idleMs: 100 })
  for (const [last, verdict] of [
    ['', 'upstream_timeout'],
    [stop, 'complete'],
  ] as const) {
    fake.answer(async function* () {
      yield words + last
      await forever()
    })
    const seen = await read(upstream)
    t.match(seen, { verdict })
    t.equal(textOf(seen), 'two words')
  }
  await upstream.close()
  await fake.close()
})
