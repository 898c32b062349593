/**
 * Anthropic's Messages: what is sent for each thing that the port can ask, what each event becomes, whole streams in every
 * cut, and everything that can go wrong. The own streams always run; the recording of the provider runs where it is.
 */
import t from 'tap'
import {
  anthropicEvent,
  blockDelta,
  blockStart,
  blockStop,
  messageDelta,
  messageStart,
  messageStop,
  textDelta,
} from '../../scripts/fake-dialects.ts'
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
import { toAnthropicRequest } from '../../src/upstream/anthropic-request.ts'
import { toolCallsMax } from '../../src/upstream/reader.ts'
import type { UpstreamMessage, UpstreamRequest } from '../../src/upstream/upstream.ts'
import { anthropicAt, ownStreamsOf, plain, read, readAnthropic, recording, textOf } from './native.ts'
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

const dialect = {
  readFed: readAnthropic,
  isWhole: (text: string) => /"stop_reason":"|"message_stop"/.test(text),
}

const expected: Readonly<Record<string, object>> = {
  'thinking-tools': {
    parts: [
      { kind: 'reasoning', text: 'Zwei Städte 🌍, also zwei Fragen.', signature: 'c2VhbC1vbmU=' },
      { kind: 'reasoning', text: '', signature: 'aGlkZGVu', redacted: true },
      { kind: 'text', text: 'Ich sehe nach: Zürich und 東京.' },
      { kind: 'tool_call', text: '{"city": "Zürich"}', callId: 'toolu_own_a', name: 'weather' },
      { kind: 'tool_call', text: '', callId: 'toolu_own_b', name: 'now' },
    ],
    usage: {
      input_tokens: 332,
      output_tokens: 64,
      total_tokens: 396,
      reasoning_tokens: 22,
      cached_input_tokens: 300,
      cache_write_tokens: 20,
    },
    finish: 'tool_calls',
    id: 'msg_own1',
    model: 'claude-own-1',
    verdict: 'complete',
  },
  search: {
    parts: [
      { kind: 'source', text: '', url: 'https://a.example/1', title: 'A page' },
      { kind: 'source', text: '', url: 'https://b.example/2', title: 'Another' },
      { kind: 'text', text: 'It is said here and there.' },
      { kind: 'source', text: '', title: 'Own notes' },
    ],
    usage: {
      input_tokens: 1200,
      output_tokens: 31,
      total_tokens: 1231,
      cached_input_tokens: 0,
      cache_write_tokens: 0,
    },
    finish: 'stop',
    id: 'msg_own1',
    model: 'claude-own-1',
    verdict: 'complete',
  },
  overloaded: {
    parts: [{ kind: 'text', text: 'Half an ans' }],
    usage: { input_tokens: 5, output_tokens: 2, total_tokens: 7 },
    finish: undefined,
    id: 'msg_own1',
    model: 'claude-own-1',
    verdict: 'upstream_unavailable',
  },
}

t.test('whole streams are read as what they say', async (t) => {
  for (const { name, bytes } of ownStreamsOf('anthropic')) {
    t.strictSame(plain(await readAnthropic([bytes])), expected[name], name)
  }
  const recorded = recording('06')
  if (recorded === undefined) {
    t.comment('no folder of recordings: only the own streams are read')
    return
  }
  const seen = await readAnthropic([recorded.bytes])
  const [text, call] = seen.parts
  t.equal(seen.parts.length, 2)
  t.match(text, { kind: 'text', text: /^I'll create .* for you now\.$/ })
  t.match(call, { kind: 'tool_call', name: 'make_file', callId: /^toolu_/ }, 'a call that was cut off is kept')
  t.match(call?.text, /^\{"filename": "taxes\.txt".*Filing taxes$/s, 'as the raw text that came')
  t.throws(() => JSON.parse(call?.text ?? ''))
  t.match(seen, { verdict: 'complete', finish: 'length', model: 'claude-sonnet-4-5' })
  t.match(seen.usage, { input_tokens: 450, output_tokens: 124, cached_input_tokens: 0, cache_write_tokens: 0 })
})

t.test('a stream is the same reply however it is cut, and whole only when it says so', async (t) => {
  await keepStreams(t, ownStreamsOf('anthropic'), recording('06'), dialect)
})

const start = messageStart()
const words = start + blockStart(0) + textDelta('two words') + blockStop(0)
const whole = messageDelta('end_turn') + messageStop

t.test('each event becomes what the port has for it, and the unknown ones nothing', async (t) => {
  const cases: Readonly<Record<string, [events: string, parts: object[]]>> = {
    'text in the start of its block': [
      blockStart(0, { type: 'text', text: 'Hello' }) + textDelta(' you'),
      [{ kind: 'text', text: 'Hello you' }],
    ],
    'a ping, an unknown event, block and delta': [
      anthropicEvent('ping') +
        anthropicEvent('hologram', { text: 'x' }) +
        blockStart(0, { type: 'hologram', text: 'x' }) +
        blockDelta(0, { type: 'hologram_delta', text: 'x' }) +
        blockStop(0) +
        'event: ping\ndata: none\n\n',
      [],
    ],
    'thinking in the start of its block': [
      blockStart(0, { type: 'thinking', thinking: 'Hm.', signature: 'c2VhbA==' }) + blockStop(0),
      [{ kind: 'reasoning', text: 'Hm.', signature: 'c2VhbA==' }],
    ],
    'thinking that does not say that it stopped': [
      blockStart(0, { type: 'thinking', thinking: '' }) +
        blockDelta(0, { type: 'thinking_delta', thinking: 'Hm.' }) +
        blockDelta(0, { type: 'signature_delta', signature: 'c2VhbA==' }),
      [{ kind: 'reasoning', text: 'Hm.', signature: 'c2VhbA==' }],
    ],
    'thinking without words, behind text': [
      blockStart(0) +
        textDelta('So:') +
        blockStop(0) +
        blockStart(1, { type: 'thinking', thinking: '', signature: '' }) +
        blockDelta(1, { type: 'thinking_delta', thinking: '' }) +
        blockDelta(1, { type: 'signature_delta', signature: 'c2VhbA==' }) +
        blockStop(1),
      [
        { kind: 'text', text: 'So:' },
        { kind: 'reasoning', text: '', signature: 'thinking:c2VhbA==', redacted: true },
      ],
    ],
    'thinking without a seal': [
      blockStart(0, { type: 'thinking', thinking: 'Hm.' }) + blockStop(0),
      [{ kind: 'reasoning', text: 'Hm.' }],
    ],
    'arguments in the start of their block': [
      blockStart(0, { type: 'tool_use', id: 'a', name: 'f', input: { n: 1 } }) + blockStop(0),
      [{ kind: 'tool_call', text: '{"n":1}', callId: 'a', name: 'f' }],
    ],
    'arguments in the start of their block, and then as deltas': [
      blockStart(0, { type: 'tool_use', id: 'a', name: 'f', input: { n: 1 } }) +
        blockDelta(0, { type: 'input_json_delta', partial_json: '{"n":1}' }) +
        blockStop(0),
      [{ kind: 'tool_call', text: '{"n":1}', callId: 'a', name: 'f' }],
    ],
    'parallel calls whose arguments come in turns': [
      blockStart(0, { type: 'tool_use', id: 'a', name: 'f', input: {} }) +
        blockStart(1, { type: 'tool_use', id: 'b', name: 'g', input: {} }) +
        blockDelta(0, { type: 'input_json_delta', partial_json: '{"n":' }) +
        blockDelta(1, { type: 'input_json_delta', partial_json: '{}' }) +
        blockDelta(0, { type: 'input_json_delta', partial_json: '1}' }),
      [
        { kind: 'tool_call', text: '{"n":1}', callId: 'a', name: 'f' },
        { kind: 'tool_call', text: '{}', callId: 'b', name: 'g' },
      ],
    ],
    'tools that Anthropic runs': [
      blockStart(0, { type: 'server_tool_use', id: 's', name: 'web_fetch', input: {} }) +
        blockDelta(0, { type: 'input_json_delta', partial_json: '{"url":1}' }) +
        blockStop(0) +
        blockStart(1, {
          type: 'web_fetch_tool_result',
          content: { type: 'web_fetch_result', url: 'https://a.example/', content: { type: 'document', title: 'A' } },
        }) +
        blockStart(2, { type: 'web_search_tool_result', content: { type: 'web_search_tool_result_error' } }),
      [{ kind: 'source', text: '', url: 'https://a.example/', title: 'A' }],
    ],
    'sources that are not of the web': [
      blockStart(0, {
        type: 'text',
        text: '',
        citations: [{ url: 'javascript:alert(1)' }, { source: 'ftp://x', title: 'T' }],
      }),
      [{ kind: 'source', text: '', title: 'T' }],
    ],
    'half a character in each of two deltas, and one alone': [
      blockStart(0) + textDelta('\ud83d') + textDelta('\ude80 \0\ud83d') + blockStop(0),
      [{ kind: 'text', text: '🚀 \ufffd' }],
    ],
    'text outside of blocks': [textDelta('stray'), [{ kind: 'text', text: 'stray' }]],
    'arguments outside of blocks': [blockDelta(5, { type: 'input_json_delta', partial_json: '{}' }), []],
    'a start that is said twice': [start, []],
  }
  for (const [name, [events, parts]] of Object.entries(cases)) {
    const seen = await readAnthropic([start + events + whole])
    t.equal(seen.verdict, 'complete', name)
    t.strictSame(seen.parts, parts, name)
  }
  const atOnce = messageStart(undefined, {
    content: [
      { type: 'text', text: 'All at once' },
      { type: 'tool_use', id: 'a', name: 'f', input: { n: 1 } },
    ],
    stop_reason: 'tool_use',
  })
  const twice = await readAnthropic([atOnce + atOnce + messageStop])
  t.match(twice, { verdict: 'complete', finish: 'tool_calls' })
  t.strictSame(twice.parts, [
    { kind: 'text', text: 'All at once' },
    { kind: 'tool_call', text: '{"n":1}', callId: 'a', name: 'f' },
  ])
  const open = start + blockStart(0, { type: 'thinking', thinking: 'Hm.', signature: 'c2VhbA==' })
  const sealed = [{ kind: 'reasoning', text: 'Hm.', signature: 'c2VhbA==' }]
  t.strictSame((await readAnthropic([open + messageStop])).parts, sealed, 'the marker stops what is open')
  t.strictSame((await readAnthropic([open + messageDelta('end_turn')])).parts, sealed, 'and the reason does')
  const half = start + textDelta('\ud83d')
  t.strictSame((await readAnthropic([half + messageStop])).parts, [{ kind: 'text', text: '\ufffd' }])
  t.match(
    await readAnthropic([start.replace(/^event: .*\n/, '') + textDelta('x').replace(/^event: .*\n/, '') + whole]),
    {
      verdict: 'complete',
      parts: [{ text: 'x' }],
    },
  )
})

t.test('why it stopped is said in the words of the port', async (t) => {
  const reasons: Readonly<Record<string, string>> = {
    end_turn: 'stop',
    stop_sequence: 'stop',
    max_tokens: 'length',
    model_context_window_exceeded: 'length',
    tool_use: 'tool_calls',
    refusal: 'content_filter',
    pause_turn: 'pause_turn',
    constructor: 'constructor',
  }
  for (const [reason, wanted] of Object.entries(reasons)) {
    const seen = await readAnthropic([words + messageDelta(reason) + messageStop])
    t.match(seen, { finish: wanted, verdict: 'complete' }, reason)
  }
  t.match(await readAnthropic([words + messageDelta('end_turn')]), { verdict: 'complete' }, 'without the marker')
  t.match(await readAnthropic([words + messageStop]), { verdict: 'complete', finish: undefined }, 'without a reason')
  t.match(await readAnthropic([start + messageDelta('refusal')]), { verdict: 'complete', parts: [] }, 'without a word')
  t.match(await readAnthropic([words + messageDelta(null)]), { verdict: 'upstream_unavailable' }, 'with neither')
  t.match(await readAnthropic([start + messageStop]), { verdict: 'upstream_unavailable' }, 'nothing and a marker')
  t.match(
    await readAnthropic([`${words}${whole}data: garbage\n\n`]),
    { verdict: 'complete' },
    'what comes later is not read',
  )
})

t.test('counts are those of the last event that has them', async (t) => {
  const usageOf = async (...usages: readonly object[]) => {
    const [first, ...later] = usages
    const deltas = later.map((usage) => messageDelta(null, { ...usage })).join('')
    return (await readAnthropic([messageStart({ ...first }) + textDelta('x') + deltas + whole])).usage
  }
  t.strictSame(await usageOf({ input_tokens: 10, output_tokens: 1 }, { output_tokens: 7 }), {
    input_tokens: 10,
    output_tokens: 1,
    total_tokens: 11,
  })
  t.strictSame(
    await usageOf(
      { input_tokens: 10, cache_read_input_tokens: 100, cache_creation_input_tokens: null },
      { input_tokens: 20 },
    ),
    { input_tokens: 120, output_tokens: 1, total_tokens: 121, cached_input_tokens: 100 },
  )
  const none = await readAnthropic([
    messageStart({}) + textDelta('x') + messageDelta('end_turn', { output_tokens: -1 }),
  ])
  t.equal(none.usage, undefined)
  const early = await readAnthropic([messageStart({ input_tokens: 9, output_tokens: 1 }) + textDelta('x')])
  t.match(early.usage, { input_tokens: 9 }, 'a reply that broke off has what the beginning said')
})

t.test('a reply has its bounds', async (t) => {
  const call = (index: number) => blockStart(index, { type: 'tool_use', id: `c${index}`, name: 'f', input: {} })
  const many = Array.from({ length: toolCallsMax + 1 }, (_, index) => call(index))
  const seen = await readAnthropic([start, ...many, whole])
  t.match(seen, { verdict: 'too_large' })
  t.equal(seen.parts.length, toolCallsMax)
  const long = 'x'.repeat(1_000_001)
  t.match(await readAnthropic([start, textDelta(long), textDelta(long), whole]), { verdict: 'too_large' })
  const sealed = blockStart(0, { type: 'redacted_thinking', data: long }) + blockStop(0)
  t.match(await readAnthropic([start, sealed, sealed, whole]), { verdict: 'too_large' })
})

t.test('no JSON in place of an event breaks the reader', (t) =>
  survive(t, readAnthropic, [
    'message_start',
    'content_block_start',
    'content_block_delta',
    'content_block_stop',
    'message_delta',
    'message_stop',
    'error',
  ]),
)

const user = (content: string): UpstreamMessage => ({ role: 'user', content })
const said = (...parts: readonly Part[]): UpstreamMessage => ({
  role: 'assistant',
  content: '',
  parts,
  provider: 'anthropic',
})
const text = (words: string): Part => ({ kind: 'text', text: words })
const called = (call_id: string, rest: Partial<Part> = {}): Part => ({
  kind: 'tool_call',
  text: '{"n":1}',
  call_id,
  name: 'f',
  input: { n: 1 },
  ...rest,
})
const answered = (callId: string, content: string, isError?: true): UpstreamMessage => ({
  role: 'tool',
  callId,
  name: 'f',
  content,
  ...(isError === undefined ? {} : { isError }),
})
const thought = (words: string, signature?: string, redacted?: true): Part => ({
  kind: 'reasoning',
  text: words,
  ...(signature === undefined ? {} : { signature }),
  ...(redacted === undefined ? {} : { redacted }),
})
const use = (id: string, input: object = { n: 1 }) => ({ type: 'tool_use', id, name: 'f', input })
const result = (id: string, content?: string) => ({
  type: 'tool_result',
  tool_use_id: id,
  ...(content === undefined ? {} : { content }),
})
const blocks = (role: 'user' | 'assistant', ...content: readonly object[]) => ({ role, content })
const asText = (words: string) => ({ type: 'text', text: words })

const bodyOf = (asked: Partial<UpstreamRequest>) =>
  toAnthropicRequest({ model: 'own-1', messages: [user('Hi')], ...asked }, 'anthropic').body

t.test('a conversation is sent as Anthropic wants it', (t) => {
  const cases: Readonly<Record<string, [messages: UpstreamMessage[], wanted: object[]]>> = {
    'messages of one role in a row': [
      [user('One'), user('Two'), said(text('Three')), said(text('Four'))],
      [blocks('user', asText('One'), asText('Two')), blocks('assistant', asText('Three'), asText('Four'))],
    ],
    'a reply without parts': [
      [user('One'), { role: 'assistant', content: 'Two' }, user('Three')],
      [blocks('user', asText('One')), blocks('assistant', asText('Two')), blocks('user', asText('Three'))],
    ],
    'white space': [
      [user('One'), said(text(' \n')), user(''), user('Two')],
      [blocks('user', asText('One'), asText('Two'))],
    ],
    'a reply before the first question': [
      [said(text('Zero'), called('a', { output: 1 })), user('One')],
      [blocks('user', asText('One'))],
    ],
    'answers of the gateway, each before what was said next': [
      [
        user('One'),
        said(
          text('Let me see.'),
          called('a', { output: { n: 2 } }),
          called('b', { output: 'two' }),
          text('Then'),
          called('c', { output: '' }),
          text('So.'),
        ),
        user('Two'),
      ],
      [
        blocks('user', asText('One')),
        blocks('assistant', asText('Let me see.'), use('a'), use('b')),
        blocks('user', result('a', '{"n":2}'), result('b', 'two')),
        blocks('assistant', asText('Then'), use('c')),
        blocks('user', result('c')),
        blocks('assistant', asText('So.')),
        blocks('user', asText('Two')),
      ],
    ],
    'answers of the client, before what the user said with them': [
      [user('One'), said(called('a'), called('b')), answered('b', 'B', true), user('Two'), answered('a', 'A')],
      [
        blocks('user', asText('One')),
        blocks('assistant', use('a'), use('b')),
        blocks('user', result('a', 'A'), { ...result('b', 'B'), is_error: true }, asText('Two')),
      ],
    ],
    'two calls with one id': [
      [user('One'), said(called('a'), called('a')), answered('a', 'A'), answered('a', 'B')],
      [
        blocks('user', asText('One')),
        blocks('assistant', use('a'), use('a_2')),
        blocks('user', result('a', 'A'), result('a_2', 'B')),
      ],
    ],
    'a tool that failed': [
      [user('One'), said(called('a', { error: { code: 'tool_failed', message: 'It failed.' } }))],
      [
        blocks('user', asText('One')),
        blocks('assistant', use('a')),
        blocks('user', { ...result('a', 'It failed.'), is_error: true }),
      ],
    ],
    'text behind a call that the client answered': [
      [user('One'), said(called('a'), text('Wait.')), answered('a', 'A')],
      [
        blocks('user', asText('One')),
        blocks('assistant', use('a')),
        blocks('user', result('a', 'A')),
        blocks('assistant', asText('Wait.')),
      ],
    ],
    'calls without answers, answers without calls': [
      [
        user('One'),
        said(text('Hm.'), called('a')),
        answered('b', 'B'),
        user('Two'),
        said(text('Hm.')),
        answered('a', 'late'),
      ],
      [
        blocks('user', asText('One')),
        blocks('assistant', asText('Hm.')),
        blocks('user', asText('Two')),
        blocks('assistant', asText('Hm.')),
      ],
    ],
    'the same id in two replies, and one that is not allowed': [
      [
        user('One'),
        said(called('call_0', { output: 1 })),
        user('Two'),
        said(called('call_0', { output: 2 }), called('a.b', { output: 3 })),
      ],
      [
        blocks('user', asText('One')),
        blocks('assistant', use('call_0')),
        blocks('user', result('call_0', '1'), asText('Two')),
        blocks('assistant', use('call_0_2'), use('a_b')),
        blocks('user', result('call_0_2', '2'), result('a_b', '3')),
      ],
    ],
    'arguments that were cut off': [
      [user('One'), said(called('a', { text: '{"n":', input: undefined, output: 1 }))],
      [blocks('user', asText('One')), blocks('assistant', use('a', {})), blocks('user', result('a', '1'))],
    ],
    'sources and files': [
      [
        user('One'),
        said(
          text('Two'),
          { kind: 'source', text: '', url: 'https://a.example' },
          { kind: 'file', text: '', url: 'data:x' },
        ),
      ],
      [blocks('user', asText('One')), blocks('assistant', asText('Two'))],
    ],
  }
  for (const [name, [messages, wanted]] of Object.entries(cases)) {
    t.strictSame(bodyOf({ messages }).messages, wanted, name)
  }
  t.match(bodyOf({ messages: [{ role: 'system', content: 'A' }, user('x'), { role: 'system', content: 'B' }] }), {
    system: 'A\n\nB',
    messages: [blocks('user', asText('x'))],
  })
  const alone = bodyOf({ messages: [{ role: 'system', content: 'Name a colour.' }] })
  t.strictSame(
    [alone.system, alone.messages],
    [undefined, [blocks('user', asText('Name a colour.'))]],
    'a system alone asks',
  )
  t.end()
})

t.test('thinking goes back to who thought it, sealed as it came', (t) => {
  const parts = [
    thought('Hm.', 'c2VhbA=='),
    thought('', 'aGlkZGVu', true),
    thought('', 'thinking:d29yZGxlc3M=', true),
    thought('Unsealed.'),
    called('a', { output: 1 }),
    thought('Cut off.', 'ZW5k'),
  ]
  const sealed = [
    { type: 'thinking', thinking: 'Hm.', signature: 'c2VhbA==' },
    { type: 'redacted_thinking', data: 'aGlkZGVu' },
    { type: 'thinking', thinking: '', signature: 'd29yZGxlc3M=' },
  ]
  const own = [user('One'), said(...parts), user('Two')]
  const first = [blocks('user', asText('One')), blocks('assistant', ...sealed, use('a'))]
  const rest = blocks('user', result('a', '1'), asText('Two'))
  t.strictSame(bodyOf({ messages: own }).messages, [...first, rest])
  const others = own.map((message) => ('parts' in message ? { ...message, provider: 'gemini' } : message))
  t.strictSame(bodyOf({ messages: others }).messages, [first[0], blocks('assistant', use('a')), rest])
  t.strictSame(bodyOf({ messages: own, model: 'claude-sonnet-4-5' }).messages, [...first, rest])

  // The turn that goes on: its thinking is refused where the model is not to think, and missed where it is.
  const open = own.slice(0, 2)
  const closed = [...first, blocks('user', result('a', '1'))]
  const claude = { messages: open, model: 'claude-sonnet-4-5-20250929' }
  t.strictSame(bodyOf({ ...claude, effort: 'low' }).messages, closed)
  t.match(bodyOf({ ...claude, effort: 'low' }), { thinking: { type: 'enabled' } })
  t.strictSame(bodyOf(claude).messages, [first[0], blocks('assistant', use('a')), closed[2]])
  const without = [user('One'), said(called('a', { output: 1 }))]
  t.equal(bodyOf({ ...claude, messages: without, effort: 'low' }).thinking, undefined, 'a turn that began without it')
  t.match(bodyOf({ messages: without, effort: 'low', model: 'claude-opus-4-8' }), { thinking: { type: 'adaptive' } })

  const bound = toAnthropicRequest({ messages: own, model: 'claude-opus-5-5' }, 'anthropic')
  t.match(bound.body.thinking, { type: 'adaptive', block_binding: { prefix_mismatch_behavior: 'drop_block' } })
  t.strictSame(bound.betas, ['thinking-binding-controls-2026-08-01'])
  t.strictSame(toAnthropicRequest({ messages: [user('x')], model: 'claude-opus-5-5' }, 'anthropic').betas, [])
  t.end()
})

t.test('effort, length and temperature are said in the way that the model takes', (t) => {
  const keys = ['max_tokens', 'thinking', 'output_config', 'temperature'] as const
  const settings = (asked: Partial<UpstreamRequest>) => {
    const body = bodyOf(asked)
    return Object.fromEntries(keys.flatMap((key) => (body[key] === undefined ? [] : [[key, body[key]]])))
  }
  const budget = (budget_tokens: number) => ({ type: 'enabled', budget_tokens })
  const adaptive = { type: 'adaptive', display: 'summarized' }
  const cases: readonly (readonly [asked: Partial<UpstreamRequest>, wanted: object])[] = [
    [{}, { max_tokens: 8192 }],
    [
      { maxOutputTokens: 100, temperature: 0.5 },
      { max_tokens: 100, temperature: 0.5 },
    ],
    [{ temperature: 1.7 }, { max_tokens: 8192, temperature: 1 }],
    [
      { effort: 'none', temperature: 0 },
      { max_tokens: 8192, temperature: 0 },
    ],
    [
      { effort: 'minimal', temperature: 0 },
      { max_tokens: 9216, thinking: budget(1024) },
    ],
    [{ effort: 'low' }, { max_tokens: 12_288, thinking: budget(4096) }],
    [{ effort: 'medium' }, { max_tokens: 16_384, thinking: budget(8192) }],
    [{ effort: 'high' }, { max_tokens: 24_576, thinking: budget(16_384) }],
    [
      { effort: 'high', maxOutputTokens: 5000 },
      { max_tokens: 5000, thinking: budget(2500) },
    ],
    [
      { effort: 'high', maxOutputTokens: 2000, temperature: 0.5 },
      { max_tokens: 2000, temperature: 0.5 },
    ],
    [
      { effort: 'high', model: 'claude-3-7-sonnet-latest' },
      { max_tokens: 24_576, thinking: budget(16_384) },
    ],
    [
      { effort: 'low', model: 'claude-opus-4-20250514' },
      { max_tokens: 12_288, thinking: budget(4096) },
    ],
    [
      { effort: 'low', model: 'claude-haiku-4-5@20251001' },
      { max_tokens: 12_288, thinking: budget(4096) },
    ],
    [
      { model: 'claude-sonnet-4-6', temperature: 0.5 },
      { max_tokens: 8192, temperature: 0.5 },
    ],
    [{ model: 'claude-opus-4-8', temperature: 0.5 }, { max_tokens: 8192 }],
    [
      { effort: 'medium', model: 'claude-opus-4-6', temperature: 0.5 },
      { max_tokens: 24_576, thinking: adaptive, output_config: { effort: 'medium' } },
    ],
    [{ model: 'anthropic/claude-sonnet-5' }, { max_tokens: 24_576, thinking: adaptive }],
    [
      { effort: 'none', model: 'us.anthropic.claude-opus-5-5-v1:0', maxOutputTokens: 300, temperature: 0.5 },
      { max_tokens: 300, thinking: adaptive, output_config: { effort: 'low' } },
    ],
    [
      { effort: 'high', model: 'claude-fable-5-1' },
      { max_tokens: 24_576, thinking: adaptive, output_config: { effort: 'high' } },
    ],
    [
      { effort: 'minimal', model: 'claude-haiku-latest' },
      { max_tokens: 24_576, thinking: adaptive, output_config: { effort: 'low' } },
    ],
  ]
  for (const [asked, wanted] of cases) t.strictSame(settings(asked), wanted, JSON.stringify(asked))
  t.end()
})

t.test('tools are sent with their schema, and a choice only where it is taken', (t) => {
  const tools = [
    { name: 'f', description: 'Does f.', parameters: { type: 'object', properties: {} } },
    { name: 'g', parameters: {} },
  ]
  const choiceOf = (asked: Partial<UpstreamRequest>) => bodyOf({ tools, ...asked }).tool_choice
  t.strictSame(bodyOf({ tools }).tools, [
    { name: 'f', description: 'Does f.', input_schema: { type: 'object', properties: {} } },
    { name: 'g', input_schema: { type: 'object' } },
  ])
  t.equal(choiceOf({}), undefined)
  t.strictSame(choiceOf({ toolChoice: 'auto' }), { type: 'auto' })
  t.strictSame(choiceOf({ toolChoice: 'none' }), { type: 'none' })
  t.strictSame(choiceOf({ toolChoice: 'required' }), { type: 'any' })
  t.strictSame(choiceOf({ toolChoice: { name: 'f' } }), { type: 'tool', name: 'f' })
  t.equal(choiceOf({ toolChoice: 'required', model: 'claude-opus-5-5' }), undefined, 'a model that cannot be forced')
  t.strictSame(choiceOf({ toolChoice: 'required', model: 'claude-haiku-5-5' }), { type: 'any' })
  t.equal(bodyOf({ tools, toolChoice: 'required', effort: 'high' }).thinking, undefined, 'no budget with a forced tool')
  t.strictSame([bodyOf({}).tools, bodyOf({ toolChoice: 'auto' }).tool_choice], [undefined, undefined])
  t.match(
    bodyOf({ messages: [user('x'), said(called('a', { output: 1 })), user('y')] }),
    { tools: [{ name: 'f', input_schema: { type: 'object' } }], tool_choice: { type: 'none' } },
    'calls of old are defined, and none is allowed',
  )
  t.end()
})

t.test('the request goes where it should, with the key in its header', async (t) => {
  const fake = await startFakeUpstream({ script: () => say({ text: 'Fine.', dialect: 'anthropic' }) })
  const anonymous = anthropicAt(`${fake.url}/`)
  const keyed = anthropicAt(fake.url, { apiKey, provider: 'claude', headers: { 'anthropic-beta': 'own-beta' } })
  t.equal(anonymous.provider, 'anthropic')
  t.equal(keyed.provider, 'claude')
  t.equal(textOf(await read(anonymous)), 'Fine.')
  await read(keyed, {
    model: 'claude-opus-5-5',
    messages: [
      user('x'),
      { role: 'assistant', content: '', parts: [thought('Hm.', 'c2VhbA=='), text('y')], provider: 'claude' },
      user('z'),
    ],
  })
  const [first, second] = [await fake.call(0), await fake.call(1)]
  t.match(first, { method: 'POST', path: '/v1/messages', dialect: 'anthropic', message: 'Hello' })
  t.match(first.headers, { 'anthropic-version': '2023-06-01', 'content-type': 'application/json' })
  t.strictSame(
    [first.headers['x-api-key'], first.headers.authorization, first.headers['anthropic-beta']],
    [undefined, undefined, undefined],
  )
  t.strictSame(first.body, {
    model: 'own-1',
    max_tokens: 8192,
    stream: true,
    system: 'Be brief.',
    messages: [blocks('user', asText('Hello'))],
  })
  t.equal(second.headers['x-api-key'], apiKey)
  t.equal(second.headers['anthropic-beta'], 'own-beta,thinking-binding-controls-2026-08-01')
  t.notMatch(second.text, /MARKER/)
  await anonymous.close()
  await keyed.close()
  await fake.close()
})

const error = (type: string) => ({
  type: 'error',
  error: { type, message: `${quoted} ${apiKey}` },
  request_id: 'req_x',
})
const answers =
  (status: number, type: string, headers: Readonly<Record<string, string>> = {}): Script =>
  () =>
    refuse(status, error(type), headers)
/** A reply of two words, and then `next`. */
const afterWords = (...next: readonly (string | ReturnType<typeof reset>)[]): Script =>
  async function* () {
    yield* begin({ text: 'two words', dialect: 'anthropic' })
    yield* next
  }
const inStream = (type: string): Script => afterWords(anthropicEvent('error', { error: error(type).error }))
const after = { text: 'two words' }

const broken: Readonly<Record<string, BrokenCase>> = {
  '400': { script: answers(400, 'invalid_request_error'), ...rejected, detail: 'The provider answered 400.' },
  '401': { script: answers(401, 'authentication_error'), ...rejected },
  '402': { script: answers(402, 'billing_error'), ...rejected },
  '403': { script: answers(403, 'permission_error'), ...rejected },
  '404': { script: answers(404, 'not_found_error'), ...rejected },
  '409': { script: answers(409, 'conflict_error'), ...unavailable },
  '413': { script: answers(413, 'request_too_large'), ...rejected },
  '429': { script: answers(429, 'rate_limit_error', { 'retry-after': '9' }), ...unavailable, retryAfterSeconds: 9 },
  '429 for billing': { script: answers(429, 'billing_error'), ...rejected },
  '500': { script: answers(500, 'api_error'), ...unavailable },
  '504': { script: answers(504, 'timeout_error'), ...unavailable },
  '529': { script: answers(529, 'overloaded_error'), ...unavailable, detail: 'The provider answered 529.' },
  'a page': { script: () => refuse(502, `<html>${quoted}</html>`), ...unavailable },
  '200 with an error in JSON': { script: answers(200, 'invalid_request_error'), ...rejected },
  '200 with a whole reply in JSON': {
    script: () => refuse(200, { type: 'message', content: [{ text: quoted }] }),
    ...unavailable,
  },
  '200 with a page': { script: () => refuse(200, `<html>${quoted}</html>`), ...unavailable },
  '200 and nothing': { script: () => [head(200)], ...unavailable, detail: 'The reply broke off.' },
  'overloaded in mid-stream': { script: inStream('overloaded_error'), ...unavailable, ...after },
  'too many in mid-stream': { script: inStream('rate_limit_error'), ...unavailable, ...after },
  'api_error in mid-stream': { script: inStream('api_error'), ...unavailable, ...after },
  'timeout_error in mid-stream': { script: inStream('timeout_error'), ...unavailable, ...after },
  'invalid_request_error in mid-stream': { script: inStream('invalid_request_error'), ...rejected, ...after },
  'authentication_error in mid-stream': { script: inStream('authentication_error'), ...rejected, ...after },
  'permission_error in mid-stream': { script: inStream('permission_error'), ...rejected, ...after },
  'not_found_error in mid-stream': { script: inStream('not_found_error'), ...rejected, ...after },
  'billing_error in mid-stream': { script: inStream('billing_error'), ...rejected, ...after },
  'request_too_large in mid-stream': { script: inStream('request_too_large'), ...rejected, ...after },
  'an error of a kind that nobody knows': { script: inStream('hologram_error'), ...unavailable, ...after },
  'an error without its name': { script: afterWords(sse(error('billing_error'))), ...rejected, ...after },
  'an error that says nothing': {
    script: afterWords(sse({ type: 'error' })),
    ...unavailable,
    ...after,
    detail: 'The provider reported an error within its reply.',
  },
  'an error that only its name tells': {
    script: afterWords(sse({ type: 'billing_error' }, 'error')),
    ...rejected,
    ...after,
  },
  'an error that is no JSON': { script: afterWords(`event: error\ndata: ${quoted}\n\n`), ...unavailable, ...after },
  'an error field': {
    script: afterWords(`error: ${JSON.stringify(error('permission_error').error)}\n\n`),
    ...rejected,
  },
  'a bare JSON line': { script: afterWords(`${JSON.stringify(error('not_found_error'))}\n`), ...rejected, ...after },
  'a page in mid-stream': { script: afterWords(`<!DOCTYPE html>\n<p>${quoted}</p>\n`), ...unavailable, ...after },
  'a corrupt event': {
    script: afterWords(`event: content_block_delta\ndata: {"type":"${quoted}\n\n`, whole),
    ...unavailable,
  },
  'an event that is a number': { script: afterWords('data: 5\n\n', whole), ...unavailable, ...after },
  'an end without a marker': { script: afterWords(), ...unavailable, ...after, detail: 'The reply broke off.' },
  'a reset': { script: afterWords(reset()), ...unavailable, ...after, detail: 'The reply broke off.' },
  'a reset before the status': { script: () => [reset()], ...unavailable, detail: 'The provider cannot be reached.' },
  'a marker and nothing before it': { script: () => [start, messageStop], ...unavailable },
}

t.test('what Anthropic does wrong becomes one code, and none of its words get out', (t) =>
  keepWordsIn(t, broken, (fake) => anthropicAt(fake.url, { apiKey })),
)

t.test('silence is cut off, and after the marker nothing is waited for', async (t) => {
  const fake = await startFakeUpstream()
  const upstream = anthropicAt(fake.url, { idleMs: 100 })
  const stalled: Script = async function* () {
    yield* begin({ text: 'two words', dialect: 'anthropic' })
    await forever()
  }
  fake.answer(stalled)
  const seen = await read(upstream)
  t.match(seen, { verdict: 'upstream_timeout' })
  t.equal(textOf(seen), 'two words')
  await (await fake.call(0)).aborted
  fake.answer(async function* () {
    yield* say({ text: 'short', dialect: 'anthropic' })
    await forever()
  })
  t.match(await read(anthropicAt(fake.url)), { verdict: 'complete' })
  await (await fake.call(1)).aborted
  await upstream.close()
  await fake.close()
})
