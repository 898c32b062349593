/** What is sent to OpenAI's relatives: the conversation in the form that none of them refuses, and settings by host. */
import t from 'tap'
import { startFakeUpstream } from '../../scripts/fake-upstream.ts'
import type { Part } from '../../src/log/event.ts'
import { type ChatDialect, dialectOf, toChatBody } from '../../src/upstream/chat-request.ts'
import type { ToolDefinition, UpstreamMessage, UpstreamRequest } from '../../src/upstream/upstream.ts'
import { collect, Feed, openaiAt, ownStreams, readPieces } from './streams.ts'

const user = (content: string): UpstreamMessage => ({ role: 'user', content })
const text = (words: string): Part => ({ kind: 'text', text: words })
const reasoning = (words: string, signature?: string): Part => ({
  kind: 'reasoning',
  text: words,
  ...(signature === undefined ? {} : { signature }),
})
const call = (id: string, name: string, members: Partial<Part> = {}): Part => ({
  kind: 'tool_call',
  text: '{"n":1}',
  call_id: id,
  name,
  input: { n: 1 },
  ...members,
})
const said = (...parts: readonly Part[]): UpstreamMessage => ({
  role: 'assistant',
  content: parts.map((part) => (part.kind === 'text' ? part.text : '')).join(''),
  parts,
  provider: 'own',
})
const answer = (callId: string, name: string, content: string): UpstreamMessage => ({
  role: 'tool',
  callId,
  name,
  content,
})

function bodyOf(request: Partial<UpstreamRequest>, host = 'own.example', dialect: Partial<ChatDialect> = {}) {
  const known = dialectOf(new URL(`https://${host}/v1`))
  return toChatBody({ model: 'own-1', messages: [user('Hi')], ...request }, 'own', { ...known, ...dialect })
}

type Sent = {
  role: string
  content: string | null
  tool_call_id?: string
  tool_calls?: { id: string; function: { name: string; arguments: string }; extra_content?: unknown }[]
  reasoning_details?: unknown
  reasoning_content?: string
  name?: string
}

function sent(messages: readonly UpstreamMessage[], host?: string, dialect?: Partial<ChatDialect>): Sent[] {
  return bodyOf({ messages }, host, dialect).messages as Sent[]
}

/** One line a message: `assistant(words) name#id name#id` or `tool#id(words)`. */
function shown(messages: readonly Sent[]): string[] {
  return messages.map(({ role, content, tool_call_id, tool_calls = [] }) => {
    const calls = tool_calls.map((sentCall) => ` ${sentCall.function.name}#${sentCall.id}`).join('')
    return `${role}${tool_call_id === undefined ? '' : `#${tool_call_id}`}(${content ?? ''})${calls}`
  })
}

t.test('a plain conversation is sent as it is', (t) => {
  const messages: UpstreamMessage[] = [
    { role: 'system', content: 'Be brief.' },
    user('Hello'),
    { role: 'assistant', content: 'Hi.', provider: 'other' },
    user('Why?'),
    { role: 'assistant', content: '' },
    user('Again?'),
  ]
  t.strictSame(sent(messages), [
    { role: 'system', content: 'Be brief.' },
    { role: 'user', content: 'Hello' },
    { role: 'assistant', content: 'Hi.' },
    { role: 'user', content: 'Why?' },
    // A reply that failed with nothing said is refused by some, and says nothing to any.
    { role: 'user', content: 'Again?' },
  ])
  t.end()
})

t.test('steps of a reply are sent in the order in which they were said, each answer behind its call', (t) => {
  const steps = said(
    reasoning('Hm.'),
    text('I look. '),
    call('a', 'look', { output: { found: 2 } }),
    call('b', 'weigh', { error: { code: 'tool_failed', message: 'It failed.' } }),
    text('And again. '),
    call('c', 'look', { output: 'plain' }),
    call('d', 'look', { output: null }),
    reasoning('So.'),
    text('Two.'),
  )
  const messages = sent([user('How many?'), steps, user('Thanks')])
  t.strictSame(shown(messages), [
    'user(How many?)',
    'assistant(I look. ) look#a weigh#b',
    'tool#a({"found":2})',
    'tool#b({"error":{"code":"tool_failed","message":"It failed."}})',
    'assistant(And again. ) look#c look#d',
    'tool#c(plain)',
    'tool#d(null)',
    'assistant(Two.)',
    'user(Thanks)',
  ])
  t.strictSame(messages[1], {
    role: 'assistant',
    content: 'I look. ',
    tool_calls: [
      { id: 'a', type: 'function', function: { name: 'look', arguments: '{"n":1}' } },
      { id: 'b', type: 'function', function: { name: 'weigh', arguments: '{"n":1}' } },
    ],
  })
  t.notMatch(JSON.stringify(messages), /Hm\.|So\./, 'reasoning in plain words is not sent back')
  t.end()
})

t.test('a call that nobody answered is left out, and an answer whose call is not there', (t) => {
  const cases: Readonly<Record<string, [messages: UpstreamMessage[], sent: string[]]>> = {
    'cut off': [
      [said(text('I '), call('a', 'f', { text: '{"n":' })), user('Go on')],
      ['assistant(I )', 'user(Go on)'],
    ],
    'nothing else was said': [[said(call('a', 'f')), user('Go on')], ['user(Go on)']],
    'one of two': [
      [said(call('a', 'f', { output: 1 }), call('b', 'f')), user('Go on')],
      ['assistant() f#a', 'tool#a(1)', 'user(Go on)'],
    ],
    'words behind the one that was answered': [
      [said(call('a', 'f', { output: 1 }), call('b', 'f'), text('Then.')), user('Go on')],
      ['assistant() f#a', 'tool#a(1)', 'assistant(Then.)', 'user(Go on)'],
    ],
    'a call without a name': [[said(text('x'), call('a', '', { output: 1 }))], ['assistant(x)']],
    'an answer alone': [[answer('a', 'f', '1'), user('Hi')], ['user(Hi)']],
    'an answer before its call': [[answer('a', 'f', '1'), said(text('x'), call('a', 'f'))], ['assistant(x)']],
    'an answer of another call': [
      [said(call('a', 'f')), answer('a', 'f', '1'), answer('b', 'f', '2')],
      ['assistant() f#a', 'tool#a(1)'],
    ],
    'a second answer': [
      [said(call('a', 'f')), answer('a', 'f', '1'), answer('a', 'f', '2')],
      ['assistant() f#a', 'tool#a(1)'],
    ],
  }
  for (const [name, [messages, wanted]] of Object.entries(cases)) t.strictSame(shown(sent(messages)), wanted, name)
  t.end()
})

t.test("a client's answers stand behind their calls, wherever they came", (t) => {
  t.strictSame(
    shown(sent([said(text('x'), call('a', 'f'), call('b', 'g')), answer('b', 'g', '2'), answer('a', 'f', '1')])),
    ['assistant(x) f#a g#b', 'tool#a(1)', 'tool#b(2)'],
    'in the order of the calls',
  )
  t.strictSame(
    shown(sent([said(call('a', 'f')), user('Wait'), answer('a', 'f', '1')])),
    ['assistant() f#a', 'tool#a(1)', 'user(Wait)'],
    'before what came between',
  )
  t.strictSame(
    shown(sent([said(call('a', 'f', { output: 0 }), call('b', 'f'), text('x')), answer('b', 'f', '1')])),
    ['assistant(x) f#a f#b', 'tool#a(0)', 'tool#b(1)'],
    'also where the gateway answered the other one',
  )
  t.end()
})

t.test('ids that a provider gave twice are told apart', (t) => {
  t.strictSame(
    shown(sent([said(call('0', 'f'), call('0', 'g')), answer('0', 'g', 'G'), answer('0', 'f', 'F')])),
    ['assistant() f#0 g#call00001', 'tool#0(F)', 'tool#call00001(G)'],
    'within a reply, by the name',
  )
  t.strictSame(
    shown(sent([said(call('0', 'f'), call('0', 'f')), answer('0', 'f', '1'), answer('0', 'f', '2')])),
    ['assistant() f#0 f#call00001', 'tool#0(1)', 'tool#call00001(2)'],
    'and by the order',
  )
  t.strictSame(
    shown(
      sent([said(call('0', 'f')), answer('0', 'f', '1'), user('More'), said(call('0', 'f')), answer('0', 'f', '2')]),
    ),
    ['assistant() f#0', 'tool#0(1)', 'user(More)', 'assistant() f#call00001', 'tool#call00001(2)'],
    'and between replies',
  )
  const strange = said(
    call('', 'f', { output: 1 }),
    call('x'.repeat(41), 'f', { output: 2 }),
    call('ü', 'f', { output: 3 }),
  )
  t.strictSame(shown(sent([strange])).slice(1), ['tool#call00001(1)', 'tool#call00002(2)', 'tool#call00003(3)'])
  const foreign = said(call('call_abc', 'f', { output: 1 }), call('abcDEF123', 'f', { output: 2 }))
  t.strictSame(shown(sent([foreign], 'api.mistral.ai')), [
    'assistant() f#call00001 f#abcDEF123',
    'tool#call00001(1)',
    'tool#abcDEF123(2)',
  ])
  t.end()
})

t.test('arguments are an object in JSON, whatever the model made of them', (t) => {
  const cases = { '{"a": 1}': '{"a": 1}', '': '{}', '{"a":': '{}', '[1]': '{}', null: '{}', '"x"': '{}' }
  for (const [given, wanted] of Object.entries(cases)) {
    const [message] = sent([said(call('a', 'f', { text: given, output: 1 }))])
    t.equal(message?.tool_calls?.[0]?.function.arguments, wanted, given)
  }
  t.end()
})

t.test('a seal goes back to the provider and the model that it is of, and to nobody else', (t) => {
  const details = [
    { type: 'reasoning.text', index: 0, units: 4, format: 'v1', signature: 's' },
    { type: 'reasoning.encrypted', index: 1, units: 0, data: 'd' },
    { type: 'reasoning.summary', index: 2, units: 2 },
  ]
  const seal = JSON.stringify({ model: 'own-1', details })
  const closed: Part = {
    kind: 'reasoning',
    text: '',
    signature: JSON.stringify({ model: 'own-1', details: [{ type: 'reasoning.encrypted', units: 0, data: 'e' }] }),
    redacted: true,
  }
  const back = (message: UpstreamMessage) => sent([message]).map((one) => one.reasoning_details)
  t.strictSame(back(said(reasoning('abcdef', seal), closed, text('x'))), [
    [
      { type: 'reasoning.text', index: 0, format: 'v1', signature: 's', text: 'abcd' },
      { type: 'reasoning.encrypted', index: 1, data: 'd' },
      { type: 'reasoning.summary', index: 2, summary: 'ef' },
      { type: 'reasoning.encrypted', data: 'e' },
    ],
  ])
  t.strictSame(
    back(said(reasoning('abcdef', seal), call('a', 'f', { output: 1 }), text('x'))).map((one) => one !== undefined),
    [true, false, false],
    'with the step that it was said in',
  )
  t.strictSame(back({ ...said(reasoning('abcdef', seal), text('x')), provider: 'other' } as UpstreamMessage), [
    undefined,
  ])
  const broken: Readonly<Record<string, Part>> = {
    'another model': reasoning('abcdef', seal.replace('own-1', 'own-2')),
    'other words': reasoning('abcdefg', seal),
    'no seal of ours': reasoning('abcdef', 'c2VhbA=='),
    'no blocks': reasoning('abcdef', '{"model":"own-1"}'),
    'no block': reasoning('abcdef', '{"model":"own-1","details":[5]}'),
    'no length': reasoning('abcdef', '{"model":"own-1","details":[{"type":"reasoning.text"}]}'),
    'no signature': reasoning('abcdef'),
  }
  for (const [name, part] of Object.entries(broken)) {
    t.strictSame(back(said(part, text('x'))), [undefined], name)
    t.strictSame(back(said(closed, part, text('x'))), [undefined], `${name}, beside one that fits: all or none`)
  }
  const signed = said(call('a', 'f', { output: 1, signature: 'g' }))
  t.strictSame(sent([signed])[0]?.tool_calls?.[0]?.extra_content, { google: { thought_signature: 'g' } })
  const foreign = sent([{ ...signed, provider: 'other' } as UpstreamMessage])
  t.equal(foreign[0]?.tool_calls?.[0]?.extra_content, undefined)
  t.end()
})

t.test('what was read with a seal on it is what goes back', (t) => {
  const { bytes } = ownStreams().find(({ name }) => name === 'signatures')!
  const read = readPieces([bytes])
  const [message] = sent([said(reasoning(read.reasoning, read.signatures[0]), text(read.text))])
  t.strictSame(message, {
    role: 'assistant',
    content: 'Seen.',
    reasoning_details: [
      {
        type: 'reasoning.text',
        index: 0,
        format: 'anthropic-claude-v1',
        signature: 'c2VhbA==',
        text: 'Let me see: 深い.',
      },
    ],
  })
  t.end()
})

t.test('reasoning in plain words goes back only where it is asked for, within the turn under way', (t) => {
  const step = said(reasoning('Hm.'), call('a', 'f', { output: 1 }))
  const back = (messages: UpstreamMessage[], host = 'api.deepseek.com', dialect?: Partial<ChatDialect>) =>
    sent(messages, host, dialect).map((one) => one.reasoning_content)
  t.strictSame(back([user('x'), step]), [undefined, 'Hm.', undefined])
  t.strictSame(back([user('x'), step], 'llm.example'), [undefined, undefined, undefined], 'others refuse it')
  t.strictSame(back([user('x'), step], 'llm.example', { reasoningContent: true }), [undefined, 'Hm.', undefined])
  t.strictSame(back([step, user('x')]), [undefined, undefined, undefined])
  t.strictSame(back([user('x'), said(reasoning('Hm.'), text('y'))]), [undefined, undefined])
  t.end()
})

t.test('tools and the choice among them are sent in the words of the dialect', (t) => {
  const tool = { name: 'f', description: 'Adds.', parameters: { type: 'object' }, run: () => 1, secret: 'x' }
  const plain: ToolDefinition = { name: 'g', parameters: {} }
  t.strictSame(bodyOf({ tools: [tool, plain] }).tools, [
    { type: 'function', function: { name: 'f', description: 'Adds.', parameters: { type: 'object' } } },
    { type: 'function', function: { name: 'g', parameters: {} } },
  ])
  for (const choice of ['auto', 'none', 'required'] as const) {
    t.equal(bodyOf({ tools: [plain], toolChoice: choice }).tool_choice, choice)
  }
  t.strictSame(bodyOf({ tools: [plain], toolChoice: { name: 'g' } }).tool_choice, {
    type: 'function',
    function: { name: 'g' },
  })
  t.strictSame(Object.keys(bodyOf({ tools: [], toolChoice: 'auto' })), [
    'model',
    'messages',
    'stream',
    'stream_options',
  ])
  t.end()
})

t.test('settings are sent as the host takes them', (t) => {
  const settings = (host: string, model: string, asked: Partial<UpstreamRequest>) => {
    const { temperature, reasoning_effort, max_tokens, max_completion_tokens } = bodyOf({ model, ...asked }, host)
    return { temperature, effort: reasoning_effort, max_tokens, max_completion_tokens }
  }
  const all = { temperature: 0.5, effort: 'high', maxOutputTokens: 9 } as const
  const none = { temperature: undefined, effort: undefined, max_tokens: undefined, max_completion_tokens: undefined }
  t.strictSame(settings('own.example', 'm', {}), none, 'what is not asked is not sent')
  for (const host of ['own.example', '127.0.0.1:9', 'api.groq.com', 'api.deepseek.com', 'api.x.ai', 'openrouter.ai']) {
    t.strictSame(settings(host, 'gpt-5', all), { ...none, temperature: 0.5, effort: 'high', max_tokens: 9 }, host)
  }
  for (const host of ['api.openai.com', 'eu.api.openai.com', 'x.openai.azure.com', 'x.services.ai.azure.com']) {
    const own = { ...none, max_completion_tokens: 9 }
    t.strictSame(settings(host, 'own', all), { ...own, temperature: 0.5, effort: 'high' }, host)
    t.strictSame(settings(host, 'gpt-4.1-mini', all), { ...own, temperature: 0.5 }, `${host}: no effort`)
    t.strictSame(settings(host, 'ft:gpt-4o:x', all), { ...own, temperature: 0.5 }, `${host}: none after tuning`)
    t.strictSame(settings(host, 'gpt-5-mini', all), { ...own, effort: 'high' }, `${host}: no temperature`)
    t.strictSame(settings(host, 'o4-mini', all), { ...own, effort: 'high' }, `${host}: none here either`)
  }
  t.notOk('max_completion_tokens' in bodyOf({ maxOutputTokens: 9 }, 'api.openai.com.evil.example'))

  const effort = (host: string, model: string, asked: UpstreamRequest['effort']) =>
    settings(host, model, { effort: asked }).effort
  t.equal(effort('own.example', 'm', 'none'), undefined)
  t.equal(effort('own.example', 'm', 'minimal'), 'low')
  t.equal(effort('openrouter.ai', 'm', 'none'), 'none')
  t.equal(effort('generativelanguage.googleapis.com', 'm', 'minimal'), 'minimal')
  t.equal(effort('api.openai.com', 'gpt-5', 'none'), 'minimal')
  t.equal(effort('api.openai.com', 'gpt-5.2', 'none'), 'none')
  t.equal(effort('api.openai.com', 'gpt-5.2', 'minimal'), 'low')
  t.equal(effort('api.openai.com', 'o3', 'minimal'), 'low')
  t.equal(effort('api.openai.com', 'gpt-5.2-chat-latest', 'low'), undefined)
  t.end()
})

t.test('what a host is known to refuse or to want is heeded', (t) => {
  t.strictSame(bodyOf({}).stream_options, { include_usage: true })
  t.notOk('stream_options' in bodyOf({}, 'api.mistral.ai'))
  const twice = [user('One'), user('Two'), said(text('a')), said(text('b')), user('Three')]
  t.strictSame(shown(sent(twice, 'api.perplexity.ai')), ['user(One\n\nTwo)', 'assistant(a\n\nb)', 'user(Three)'])
  t.equal(sent(twice).length, 5)
  const tool = [said(call('a', 'f', { output: 1 }))]
  t.equal(sent(tool, 'generativelanguage.googleapis.com')[1]?.name, 'f')
  t.notOk('name' in sent(tool)[1]!)
  t.end()
})

t.test('what is set for an adapter goes before what is known of the host', async (t) => {
  const fake = await startFakeUpstream()
  const upstream = openaiAt(fake.url, {
    provider: 'own',
    maxTokensField: 'max_completion_tokens',
    streamOptions: false,
    reasoningContent: true,
    headers: { 'api-key': 'k' },
  })
  const messages = [user('x'), said(reasoning('Hm.'), call('a', 'f', { output: 1 }))]
  await collect(upstream, undefined, { model: 'm', messages, maxOutputTokens: 5 })
  const { body, headers } = await fake.call(0)
  t.match(body, { max_completion_tokens: 5, messages: [{}, { reasoning_content: 'Hm.' }, {}] })
  t.notOk('stream_options' in body!)
  t.equal(headers['api-key'], 'k')
  // Not set is not set, also where a config says so in as many words.
  const unset = openaiAt(fake.url, { maxTokensField: undefined, streamOptions: undefined })
  await collect(unset, undefined, { model: 'm', messages: [user('x')], maxOutputTokens: 5 })
  t.match((await fake.call(1)).body, { max_tokens: 5, stream_options: {} })
  await unset.close()
  await upstream.close()
  await fake.close()
})

t.test('a key is in the header that the host looks for', async (t) => {
  class Listening extends Feed {
    asked: unknown
    override dispatch(options: unknown, handler: Parameters<Feed['dispatch']>[1]): boolean {
      this.asked = options
      return super.dispatch(options, handler)
    }
  }
  for (const [baseUrl, header, value] of [
    ['https://own.openai.azure.com/openai/deployments/d?api-version=1', 'api-key', 'k'],
    ['https://api.openai.com/v1', 'authorization', 'Bearer k'],
  ] as const) {
    const dispatcher = new Listening([])
    await collect(openaiAt(baseUrl, { apiKey: 'k', dispatcher }))
    const { headers } = dispatcher.asked as { headers: Record<string, string> }
    t.equal(headers[header], value, baseUrl)
    t.equal(Object.values(headers).filter((one) => one.includes('k') && one.length < 9).length, 1, 'and in no other')
  }
})
