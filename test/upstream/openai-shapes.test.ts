/**
 * The small shapes in which providers differ, one promise each. The bytes come through a dispatcher that hands them over
 * as they are; real HTTP is the business of the other files.
 */
import t from 'tap'
import { chunk, doneMarker, sse, usageChunk } from '../../scripts/fake-upstream.ts'
import { Problem } from '../../src/errors.ts'
import { ChatReader } from '../../src/upstream/chat-chunks.ts'
import { replyUnitsMax, toolCallsMax } from '../../src/upstream/reader.ts'
import { createSseReader } from '../../src/upstream/sse.ts'
import type { UpstreamEvent } from '../../src/upstream/upstream.ts'
import { type Collected, collect, openaiFed, request } from './streams.ts'

const finish = chunk({}, 'stop')

function read(...texts: readonly string[]): Promise<Collected> {
  return collect(openaiFed(texts.map((text) => Buffer.from(text))))
}

function codeOf(seen: Collected): string | undefined {
  return seen.error instanceof Problem ? seen.error.code : undefined
}

const piece = (index: number | undefined, id: string | undefined, name: string | undefined, text: unknown) => ({
  ...(index === undefined ? {} : { index }),
  ...(id === undefined ? {} : { id }),
  type: 'function',
  function: { ...(name === undefined ? {} : { name }), arguments: text },
})
const calls = (...pieces: readonly object[]) => chunk({ tool_calls: pieces })
const shown = (seen: Collected) => seen.calls.map((call) => `${call.id ?? '-'} ${call.name ?? '-'} ${call.arguments}`)

t.test('tool calls are told apart however they are labelled', async (t) => {
  const cases: Readonly<Record<string, [chunks: string[], calls: string[]]>> = {
    'parallel, in one delta': [
      [calls(piece(0, 'a', 'f', '{"n":1}'), piece(1, 'b', 'f', '{"n":2}'))],
      ['a f {"n":1}', 'b f {"n":2}'],
    ],
    'interleaved by index': [
      [
        calls(piece(0, 'a', 'f', '')),
        calls(piece(1, 'b', 'g', '')),
        calls(piece(0, undefined, undefined, '{"n":')),
        calls(piece(1, undefined, undefined, '{}')),
        calls(piece(0, undefined, undefined, '1}')),
      ],
      ['a f {"n":1}', 'b g {}'],
    ],
    'the same index, other ids': [
      [calls(piece(0, 'a', 'f', '{"n":1}')), calls(piece(0, 'b', 'f', '{"n":2}'))],
      ['a f {"n":1}', 'b f {"n":2}'],
    ],
    'the same index, no ids': [
      [calls(piece(0, '', 'f', '{"n":1}')), calls(piece(0, '', 'f', '{"n":2}'))],
      ['- f {"n":1}', '- f {"n":2}'],
    ],
    'the same index and no ids, in one delta': [
      [calls(piece(0, undefined, 'f', '{}'), piece(0, undefined, 'g', '{}'))],
      ['- f {}', '- g {}'],
    ],
    'no index, streamed by id': [
      [calls(piece(undefined, 'a', 'f', '{"n"')), calls(piece(undefined, 'a', undefined, ':1}'))],
      ['a f {"n":1}'],
    ],
    'no index, no id after the first piece': [
      [
        calls(piece(undefined, 'a', 'f', '{"n"')),
        calls(piece(undefined, undefined, undefined, ':1}')),
        calls(piece(undefined, 'b', 'g', '{}')),
      ],
      ['a f {"n":1}', 'b g {}'],
    ],
    'no index, no id': [
      [calls(piece(undefined, undefined, 'f', '{}')), calls(piece(undefined, undefined, 'f', '{}'))],
      ['- f {}', '- f {}'],
    ],
    'no index, one id for all': [
      [calls(piece(undefined, 'x', 'f', '{"n":1}'), piece(undefined, 'x', 'g', '{"n":2}'))],
      ['x f {"n":1}', 'x g {"n":2}'],
    ],
    'id and name with every piece': [
      [calls(piece(0, 'a', 'f', '{"n"')), calls(piece(0, 'a', 'f', ':1')), calls(piece(0, 'a', 'f', '}'))],
      ['a f {"n":1}'],
    ],
    'the name with every piece, no id': [
      [calls(piece(0, undefined, 'f', '{"n"')), calls(piece(0, undefined, 'f', ':{}}'))],
      ['- f {"n":{}}'],
    ],
    'arguments that are an object': [[calls(piece(0, 'a', 'f', { n: 1 }))], ['a f {"n":1}']],
    'arguments that are null': [[calls(piece(0, 'a', 'f', null))], ['a f ']],
    'the old function_call': [
      [chunk({ function_call: { name: 'f', arguments: '' } }), chunk({ function_call: { arguments: '{"n":1}' } })],
      ['- f {"n":1}'],
    ],
  }
  for (const [name, [chunks, wanted]] of Object.entries(cases)) {
    const seen = await read(...chunks, chunk({}, 'tool_calls'), doneMarker)
    t.equal(seen.error, undefined, name)
    t.strictSame(shown(seen), wanted, name)
  }
})

t.test('the old finish reason of a function call is that of a tool call', async (t) => {
  const seen = await read(chunk({ function_call: { name: 'f', arguments: '{}' } }), chunk({}, 'function_call'))
  t.equal(seen.finish, 'tool_calls')
})

t.test('why a model stopped is said in four words, whatever the provider calls it', async (t) => {
  const words: Readonly<Record<string, readonly string[]>> = {
    stop: ['stop', 'STOP', 'eos', 'end_turn', 'stop_sequence', 'completed'],
    length: ['length', 'max_tokens', 'MAX_TOKENS', 'model_length', 'max_output_tokens'],
    tool_calls: ['tool_calls', 'tool_use', 'function_call'],
    content_filter: ['content_filter', 'SAFETY', 'refusal', 'recitation'],
    // Others are the provider's own.
    Malformed_Call: ['Malformed_Call'],
  }
  for (const [wanted, said] of Object.entries(words)) {
    for (const word of said) t.equal((await read(chunk({ content: 'x' }), chunk({}, word))).finish, wanted, word)
  }
  t.equal(codeOf(await read(chunk({ content: 'x' }, ''))), 'upstream_unavailable', 'an empty one is none')
  const called = await read(calls(piece(0, 'a', 'f', '{}')), chunk({}, 'stop'))
  t.equal(called.finish, 'tool_calls', 'a reply that waits for the answers of tools has not just stopped')
})

t.test('a finish reason that says error is no end of a reply', async (t) => {
  for (const word of ['error', 'abort', 'insufficient_system_resource', 'network_error']) {
    const seen = await read(chunk({ content: 'x' }), chunk({}, word), doneMarker)
    t.equal(codeOf(seen), 'upstream_unavailable', word)
    t.equal(seen.text, 'x')
  }
})

const completion = (message: object, reason: string | null = 'stop') => ({
  id: 'chatcmpl-whole',
  object: 'chat.completion',
  model: 'own-1',
  choices: [{ index: 0, message: { role: 'assistant', ...message }, finish_reason: reason }],
  usage: { prompt_tokens: 3, completion_tokens: 4, total_tokens: 7 },
})

t.test('a whole completion in place of a stream is read as a reply', async (t) => {
  const message = {
    content: 'All at once.',
    reasoning_content: 'Why not.',
    tool_calls: [piece(undefined, 'a', 'f', '{"n":1}'), piece(undefined, 'b', 'f', '{"n":2}')],
    annotations: [{ type: 'url_citation', url_citation: { url: 'https://x.example/', title: 'X' } }],
  }
  const body = completion(message, 'tool_calls')
  for (const [how, pieces] of Object.entries({
    'on one line': [JSON.stringify(body)],
    'with a line end': [`${JSON.stringify(body)}\n`],
    'over many lines': [JSON.stringify(body, null, 2)],
    'in small pieces': [...JSON.stringify(body, null, 1)],
    'as an event': [sse(body)],
  })) {
    const seen = await read(...pieces)
    t.equal(seen.error, undefined, how)
    t.equal(seen.text, 'All at once.', how)
    t.equal(seen.reasoning, 'Why not.', how)
    t.strictSame(shown(seen), ['a f {"n":1}', 'b f {"n":2}'], how)
    t.strictSame(seen.sources, ['https://x.example/ X'], how)
    t.equal(seen.finish, 'tool_calls', how)
    t.equal(seen.id, 'chatcmpl-whole', how)
    t.match(seen.usage, { total_tokens: 7 }, how)
  }
  const without = await read(JSON.stringify(completion({ content: 'x' }, null)))
  t.equal(without.error, undefined, 'it is whole without a reason, because it is all there')
  t.equal(without.text, 'x')
  const refusal = await read(JSON.stringify(completion({ content: null, refusal: 'I would rather not.' })))
  t.equal(refusal.text, 'I would rather not.')
  const lines = await read(`${JSON.stringify(JSON.parse(chunk({ content: 'a' }).slice(6)))}\n`.repeat(150), finish)
  t.equal(lines.text, 'a'.repeat(150), 'and so are chunks without their framing')
})

t.test('a whole completion may be as long as a streamed one, and no longer', async (t) => {
  const long = 'ü'.repeat(replyUnitsMax)
  const most = await read(JSON.stringify(completion({ content: long }), null, 2))
  t.equal(most.error, undefined)
  t.equal(most.text.length, replyUnitsMax)
  t.equal(codeOf(await read(JSON.stringify(completion({ content: `${long}ü` })))), 'too_large')
})

t.test('a message beside deltas repeats them, and alone it takes their place', async (t) => {
  const beside = (content: string, whole: string) =>
    sse({ choices: [{ index: 0, delta: { content }, message: { content: whole }, finish_reason: null }] })
  t.equal((await read(beside('a', 'a'), beside('b', 'ab'), finish)).text, 'ab')
  const last = sse({ choices: [{ index: 0, message: { content: 'ab' }, finish_reason: 'stop' }] })
  t.equal((await read(beside('a', 'a'), beside('b', 'ab'), last)).text, 'ab', 'also in a chunk of its own')
  const alone = (content: string) => sse({ choices: [{ index: 0, delta: null, message: { content } }] })
  t.equal((await read(alone('a'), alone('b'), finish)).text, 'ab')
})

t.test('each source is named once, wherever and however often the provider says it', async (t) => {
  const cite = (url: unknown, title?: string) => ({ type: 'url_citation', url_citation: { url, title } })
  const references = {
    citations: ['https://a.example/', 'http://b.example/x'],
    search_results: [{ url: 'https://a.example/', title: 'A' }, { url: 'https://c.example/' }],
  }
  const seen = await read(
    chunk({ content: 'x' }, null, references),
    chunk({ content: 'y', annotations: [cite('https://a.example/', 'Again'), cite('https://d.example/', 'D')] }),
    chunk({ annotations: [cite('https://d.example/', 'D'), { type: 'url_citation', url: 'https://e.example/' }] }),
    chunk({
      context: {
        citations: [
          { url: null, filepath: 'notes.pdf' },
          { url: 'https://f.example/', title: 'F' },
        ],
      },
    }),
    chunk({
      executed_tools: [{ type: 'search', search_results: { results: [{ url: 'https://g.example/', title: 'G' }] } }],
    }),
    chunk({}, 'stop', references),
  )
  t.strictSame(seen.sources, [
    'https://a.example/ A',
    'https://c.example/ -',
    'http://b.example/x -',
    'https://d.example/ D',
    'https://e.example/ -',
    '- notes.pdf',
    'https://f.example/ F',
    'https://g.example/ G',
  ])
  t.equal(seen.text, 'xy')
  const bad = await read(
    chunk({ content: 'x' }, null, {
      citations: ['javascript:alert(1)', 'data:text/html,x', 'file:///etc/passwd', '//x', '', 5, null, {}, []],
      search_results: 'none',
    }),
    chunk({ annotations: [cite(5), cite(undefined), null, 'x', { type: 'url_citation' }] }),
    finish,
  )
  t.strictSame(bad.sources, [], 'what is no address on the web is left out')
  t.equal(bad.error, undefined)
  const many = Array.from({ length: 1200 }, (_, index) => `https://many.example/${index}`)
  const most = await read(chunk({ content: 'x' }, null, { citations: many }), finish)
  t.equal(most.sources.length, 1000, 'so many and no more')
})

t.test('sources do not stand within the words that came with them', async (t) => {
  const order = async (...texts: readonly string[]) => {
    const types: string[] = []
    const upstream = openaiFed(texts.map((text) => Buffer.from(text)))
    for await (const event of upstream.stream(request, new AbortController().signal)) types.push(event.type)
    return types.filter((type) => type !== 'response').join(' ')
  }
  const citations = ['https://a.example/']
  const first = await order(chunk({ content: 'x' }, null, { citations }), chunk({ content: 'y' }), finish)
  t.equal(first, 'source text text finish', 'named with the first words, they stand before them')
  const last = await order(chunk({ content: 'x' }), chunk({ content: 'y' }, null, { citations }), finish)
  t.equal(last, 'text text source finish', 'named later, behind those')
})

t.test('images leave as files when they are images, and count as the reply does', async (t) => {
  const image = (url: unknown) => ({ type: 'image_url', image_url: { url } })
  const seen = await read(
    chunk({ images: [image('data:image/jpeg;base64,AAAA'), image('https://i.example/a.jpg')] }),
    chunk({
      content: [
        { type: 'text', text: 'x' },
        image('https://i.example/plain'),
        { type: 'image_url', image_url: 'https://i.example/b.gif' },
      ],
    }),
    chunk({
      images: [image('javascript:1'), image('data:text/html,x'), image('http://i.example/'), image(5), null, {}],
    }),
    finish,
  )
  t.strictSame(seen.files, [
    'image/jpeg data:image/jpeg;base64,AAAA',
    'image/jpeg https://i.example/a.jpg',
    'image/png https://i.example/plain',
    'image/gif https://i.example/b.gif',
  ])
  t.equal(seen.error, undefined)
  const large = await read(chunk({ images: [image(`data:image/png;base64,${'A'.repeat(replyUnitsMax)}`)] }), finish)
  t.equal(codeOf(large), 'too_large')
  t.equal((await read(chunk({ images: [image('data:image/png;base64,AAAA')] }), doneMarker)).error, undefined)
})

t.test('sealed reasoning comes with one seal, where it ends', async (t) => {
  const text = (words: string, members: object = {}) => ({ type: 'reasoning.text', text: words, index: 0, ...members })
  const seals = async (...texts: readonly string[]) =>
    (await read(...texts)).signatures.map((seal) => {
      const [, redacted, json] = /^(redacted )?(.*)$/.exec(seal) ?? []
      return [redacted !== undefined, ...JSON.parse(json ?? '').details]
    })
  t.strictSame(
    await seals(
      chunk({ reasoning: 'ab', reasoning_details: [text('ab')] }),
      chunk({ reasoning: 'c', reasoning_details: [text('c', { signature: 's', format: 'own-v1' })] }),
      chunk({ content: 'x' }),
      chunk({ reasoning: 'd', reasoning_details: [text('d', { signature: 't', index: 1 })] }),
      finish,
    ),
    [
      [false, { type: 'reasoning.text', index: 0, units: 3, format: 'own-v1', signature: 's' }],
      [false, { type: 'reasoning.text', index: 1, units: 1, signature: 't' }],
    ],
    'one for each stretch of reasoning',
  )
  const closed = { type: 'reasoning.encrypted', data: 'c', index: 0 }
  t.strictSame(
    await seals(chunk({ reasoning_details: [closed] }), chunk({ content: 'x' }), finish),
    [[true, { type: 'reasoning.encrypted', index: 0, units: 0, data: 'c' }]],
    'reasoning that is shown to nobody is a part of its own',
  )
  t.strictSame(
    await seals(chunk({ content: 'x' }, 'stop'), chunk({ reasoning_details: [closed] })),
    [[true, { type: 'reasoning.encrypted', index: 0, units: 0, data: 'c' }]],
    'and one that comes behind the end is not lost',
  )
  t.strictSame(
    await seals(chunk({ reasoning: 'a', reasoning_details: [text('a')] }), finish),
    [],
    'no seal, no signature',
  )
  const alone = await read(
    chunk({ reasoning_details: [text('a'), { type: 'reasoning.summary', summary: 'b' }] }),
    finish,
  )
  t.equal(alone.reasoning, 'ab', 'words that are nowhere else are read there')
  const bad = await read(
    chunk({ reasoning_details: [null, 5, {}, { type: 5 }, { type: 'reasoning.encrypted', data: 5 }], content: 'x' }),
    finish,
  )
  t.equal(bad.error, undefined)
  t.strictSame(bad.signatures, [])
  const long = text('a', { signature: 's'.repeat(100_000) })
  const again = await read(...Array<string>(50).fill(chunk({ reasoning: 'a', reasoning_details: [long] })), finish)
  t.equal(again.error, undefined, 'what is said with every piece counts once')
  const much = { type: 'reasoning.encrypted', data: 'x'.repeat(replyUnitsMax / 2) }
  t.equal(codeOf(await read(...Array(3).fill(chunk({ reasoning_details: [much] })), finish)), 'too_large')
})

t.test("the seal on a tool call is the call's", async (t) => {
  const sealed = (signature: unknown) => ({ extra_content: { google: { thought_signature: signature } } })
  const seen = await read(
    calls({ ...piece(0, 'a', 'f', '{"n"'), ...sealed('s1') }),
    calls({ ...piece(0, undefined, undefined, ':1}'), ...sealed('s1') }),
    calls({ ...piece(1, 'b', 'g', '{}'), ...sealed(5) }),
    chunk({}, 'stop'),
  )
  t.strictSame(seen.calls, [
    { id: 'a', name: 'f', arguments: '{"n":1}', signature: 's1' },
    { id: 'b', name: 'g', arguments: '{}' },
  ])
  t.strictSame(seen.signatures, [])
})

t.test('reasoning that a provider sends under several names is read once', async (t) => {
  const details = [{ type: 'reasoning.text', text: 'why' }]
  const both = await read(chunk({ reasoning_content: 'why', reasoning: 'why', reasoning_details: details }), finish)
  t.equal(both.reasoning, 'why')
  const one = await read(chunk({ reasoning: 'why', reasoning_details: details }), finish)
  t.equal(one.reasoning, 'why')
  const empty = await read(chunk({ reasoning_content: '', reasoning: 'why' }), finish)
  t.equal(empty.reasoning, 'why')
})

t.test('a refusal is text', async (t) => {
  const seen = await read(chunk({ refusal: 'I would ' }), chunk({ refusal: 'rather not.' }), finish)
  t.equal(seen.text, 'I would rather not.')
})

t.test('only choice 0 is read', async (t) => {
  const other = sse({ id: 'x', choices: [{ index: 1, delta: { content: 'B' }, finish_reason: 'stop' }] })
  const two = sse({
    id: 'x',
    choices: [
      { index: 1, delta: { content: 'B' } },
      { index: 0, delta: { content: 'A' } },
    ],
  })
  t.equal(codeOf(await read(two, other)), 'upstream_unavailable', 'the end of another choice is not the end')
  t.equal((await read(two, other, finish)).text, 'A')
})

t.test('usage is the last one given, wherever it is', async (t) => {
  const counts = (prompt: number, completion: number) => ({
    prompt_tokens: prompt,
    completion_tokens: completion,
    total_tokens: prompt + completion,
  })
  const wanted = { input_tokens: 8, output_tokens: 3, total_tokens: 11 }
  const cumulative = await read(
    chunk({ content: 'a' }, null, { usage: counts(8, 1) }),
    chunk({ content: 'b' }, null, { usage: counts(8, 3) }),
    chunk({}, 'stop', { usage: counts(8, 3) }),
    doneMarker,
  )
  t.strictSame(cumulative.usage, wanted, 'cumulative')
  t.equal(cumulative.usageCount, 2, 'the same counts are not said twice')
  t.strictSame(
    (await read(chunk({ content: 'a' }, 'stop'), usageChunk(8, 3), doneMarker)).usage,
    wanted,
    'after the end',
  )
  t.strictSame((await read(chunk({ content: 'a' }, 'stop'), usageChunk(8, 3))).usage, wanted, 'without a marker')
  t.strictSame((await read(chunk({}, 'stop', { x_groq: { usage: counts(8, 3) } }))).usage, wanted, 'x_groq only')
  const within = sse({ choices: [{ index: 0, delta: {}, finish_reason: 'stop', usage: counts(8, 3) }] })
  t.strictSame((await read(within)).usage, wanted, 'within the choice')
  t.strictSame(
    (await read(chunk({}, 'stop', { usage: { input_tokens: 8, output_tokens: 3, cached_tokens: 2 } }))).usage,
    { ...wanted, cached_input_tokens: 2 },
    'other names',
  )
  const said = async (usage: object) => (await read(chunk({ content: 'a' }, 'stop', { usage }))).usage
  t.strictSame(
    await said({ ...counts(8, 3), prompt_tokens_details: { cached_tokens: 4, cache_write_tokens: 2 } }),
    { ...wanted, cached_input_tokens: 4, cache_write_tokens: 2 },
    'OpenRouter',
  )
  t.strictSame(
    await said({ ...counts(8, 3), cache_read_input_tokens: 4, cache_creation_input_tokens: 0 }),
    { ...wanted, cached_input_tokens: 4, cache_write_tokens: 0 },
    "the cache in Anthropic's words",
  )
  t.strictSame(
    await said({ ...counts(8, 3), cache_read_input_tokens: 40, cache_creation_input_tokens: 2 }),
    { input_tokens: 50, output_tokens: 3, total_tokens: 53, cached_input_tokens: 40, cache_write_tokens: 2 },
    'and in its way to count',
  )
  t.strictSame(
    await said({ ...counts(8, 3), total_tokens: 20, completion_tokens_details: { reasoning_tokens: 9 } }),
    { input_tokens: 8, output_tokens: 12, total_tokens: 20, reasoning_tokens: 9 },
    'reasoning that was counted in the total only was made too',
  )
  t.strictSame(await said({ completion_tokens: 3, total_tokens: 11 }), wanted, 'two of three')
  t.equal((await read(chunk({ content: 'a' }, 'stop', { usage: null }))).usage, undefined, 'null')
  t.equal((await read(chunk({}, 'stop', { usage: { prompt_tokens: -1, completion_tokens: 0.5 } }))).usage, undefined)
})

t.test('text that leaves is well-formed Unicode without U+0000', async (t) => {
  const rocket = '🚀'
  const [high, low] = [rocket[0]!, rocket[1]!]
  const cases: Readonly<Record<string, [pieces: string[], text: string]>> = {
    'a pair split between two chunks is kept': [['up ', high, low, '!'], 'up 🚀!'],
    'a pair split by an empty piece is kept': [[high, '', low], '🚀'],
    'a pair split by U+0000 is kept': [[`${high}\0`, `\0${low}`], '🚀'],
    'a half alone becomes U+FFFD': [['a', high, 'b', low, 'c'], 'a\ufffdb\ufffdc'],
    'a half at the end becomes U+FFFD': [['a', high], 'a\ufffd'],
    'U+0000 is removed': [['a\0b', '\0'], 'ab'],
  }
  for (const [name, [pieces, wanted]] of Object.entries(cases)) {
    const text = await read(...pieces.map((content) => chunk({ content })), doneMarker)
    t.equal(text.error, undefined, name)
    t.equal(text.text, wanted, `${name}: text`)
    const reasoning = await read(...pieces.map((reasoning) => chunk({ reasoning })), finish)
    t.equal(reasoning.reasoning, wanted, `${name}: reasoning`)
    const tool = await read(
      ...pieces.map((content, index) => calls(piece(0, undefined, index === 0 ? 'f' : undefined, content))),
      chunk({}, 'tool_calls'),
    )
    t.equal(tool.calls[0]?.arguments, wanted, `${name}: arguments`)
  }
  const between = await read(chunk({ content: high }), chunk({ reasoning: 'hm' }), chunk({ content: low }), finish)
  t.equal(between.text, rocket, 'a pair split by a piece of another part is kept')
})

t.test('no event holds half a pair', async (t) => {
  const upstream = openaiFed(
    [...'a🚀b🚀']
      .flatMap((point) => [...Array(point.length).keys()].map((at) => point[at]!))
      .map((unit) => Buffer.from(chunk({ content: unit })))
      .concat(Buffer.from(finish)),
  )
  const events: UpstreamEvent[] = []
  for await (const event of upstream.stream(request, new AbortController().signal)) events.push(event)
  const texts = events.flatMap((event) => (event.type === 'text' ? [event.text] : []))
  t.strictSame(texts, ['a', '🚀', 'b', '🚀'])
})

t.test('a marker alone is not a reply, and with words or a reason it is', async (t) => {
  t.equal(codeOf(await read(doneMarker)), 'upstream_unavailable')
  t.equal(codeOf(await read(chunk({ role: 'assistant', content: '' }), doneMarker)), 'upstream_unavailable')
  t.equal((await read(chunk({ content: 'x' }), doneMarker)).error, undefined)
  t.equal((await read(finish, doneMarker)).error, undefined, 'an empty reply that the provider calls finished')
})

t.test('events that are not chunks are passed over', async (t) => {
  const seen = await read(
    ': comment\n\n',
    'event: ping\ndata: pong\n\n',
    'data:\n\n',
    'data: \n\n',
    'unknown: field\n\n',
    'id: 1\nretry: 5\nfoo\n\n',
    sse({ object: 'something.else' }),
    sse({ choices: [], error: null }),
    sse({ choices: [{ index: 0, delta: null, finish_reason: null }] }),
    sse({ choices: [null, 5] }),
    chunk({ content: 'x' }, null, { error: null }),
    finish,
  )
  t.equal(seen.error, undefined)
  t.equal(seen.text, 'x')
})

t.test('JSON over several data lines is one chunk', async (t) => {
  const text = 'data: {"choices":[{"index":0,\ndata: "delta":{"content":"x"},\ndata: "finish_reason":"stop"}]}\n\n'
  t.equal((await read(text)).text, 'x')
})

t.test('a reply that ends without its last line end is read', async (t) => {
  for (const end of ['\n', '']) {
    const seen = await read(chunk({ content: 'x' }), chunk({}, 'stop').trimEnd() + end)
    t.equal(seen.finish, 'stop')
    t.equal(seen.error, undefined)
  }
})

t.test('what is garbled after the finish reason does not unmake the reply', async (t) => {
  const seen = await read(chunk({ content: 'x' }), finish, 'data: {"usage":{"prompt_to\n\n', doneMarker)
  t.equal(seen.error, undefined)
  t.equal(seen.text, 'x')
})

t.test('a reply stops growing at its limit', async (t) => {
  const half = 'y'.repeat(replyUnitsMax / 2)
  const full = await read(chunk({ content: half }), chunk({ reasoning: half }), finish)
  t.equal(full.error, undefined, 'up to the limit it is read')
  const over = await read(chunk({ content: half }), chunk({ reasoning: half }), chunk({ content: 'z' }), finish)
  t.equal(codeOf(over), 'too_large')
  t.match(over.error, { message: `The reply grew beyond ${replyUnitsMax} characters.` })
  t.equal(over.text, half, 'what came before it is kept')
  const argued = await read(calls(piece(0, 'a', 'f', half)), calls(piece(0, undefined, undefined, `${half}z`)), finish)
  t.equal(codeOf(argued), 'too_large', 'arguments count')
})

t.test('a reply makes so many tool calls and no more', async (t) => {
  const many = Array.from({ length: toolCallsMax }, (_, index) => calls(piece(index, `c${index}`, 'f', '{}')))
  t.equal((await read(...many, finish)).calls.length, toolCallsMax)
  t.equal(codeOf(await read(...many, calls(piece(toolCallsMax, 'x', 'f', '{}')), finish)), 'too_large')
})

t.test('a line and an event without an end are cut off', async (t) => {
  const mebibyte = Buffer.alloc(1024 * 1024, 'x')
  const line = await collect(openaiFed([Buffer.from('data: '), ...Array(5).fill(mebibyte)]))
  t.equal(codeOf(line), 'too_large', 'one line')
  const comment = await collect(openaiFed([Buffer.from(': '), ...Array(5).fill(mebibyte)]))
  t.equal(codeOf(comment), 'too_large', 'one comment')
  const pieces = Array(5).fill(Buffer.concat([Buffer.from('data: '), mebibyte, Buffer.from('\n')]))
  t.equal(codeOf(await collect(openaiFed(pieces))), 'too_large', 'many lines of one event')
})

t.test('a body that is no stream is looked at for so long and no longer', async (t) => {
  const body = (depth: number) => `${'{"error":{"code":400},"a":'.repeat(depth)}1\n${'}\n'.repeat(depth)}`
  const reader = (text: string) => {
    const chat = new ChatReader()
    createSseReader(chat).read(Buffer.from(text))
    return chat.failure?.code
  }
  t.equal(reader(body(90)), 'upstream_rejected', 'an error is found on a line that stays open')
  t.equal(reader(body(110)), undefined, 'unless it would have to be looked for too often')
  t.equal(codeOf(await read(body(110))), 'upstream_rejected', 'and at the end in any case')
  const notAStream = { message: 'The provider answered something that is not a stream.' }
  const pieces = (line: string) => Array<string>(200).fill(line.repeat(100))
  t.match((await read('{\n', ...pieces('"a": 1,\n'))).error, notAStream, 'many lines')
  t.match((await read(...pieces('a\n'), finish)).error, notAStream, 'many lines that are passed over')
  const long = Array<string>(50).fill(`"${'x'.repeat(100_000)}",\n`)
  t.match((await read('[{\n', ...long)).error, notAStream, 'long lines')
  t.match((await read(chunk({ content: 'x' }), '{\n', long[0]!, finish)).error, notAStream, 'less within a reply')
})
