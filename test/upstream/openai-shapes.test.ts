/**
 * The small shapes in which providers differ, one promise each. The bytes come through a dispatcher that hands them over
 * as they are; real HTTP is the business of the other files.
 */
import t from 'tap'
import { chunk, doneMarker, sse, usageChunk } from '../../scripts/fake-upstream.ts'
import { Problem } from '../../src/errors.ts'
import { replyUnitsMax, toolCallsMax } from '../../src/upstream/reader.ts'
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

t.test("a provider's own finish reason is passed on, and an empty one is none", async (t) => {
  t.equal((await read(chunk({ content: 'x' }), chunk({}, 'model_length'))).finish, 'model_length')
  t.equal(codeOf(await read(chunk({ content: 'x' }, ''))), 'upstream_unavailable')
})

t.test('a finish reason that says error is no end of a reply', async (t) => {
  const seen = await read(chunk({ content: 'x' }), chunk({}, 'error'), doneMarker)
  t.equal(codeOf(seen), 'upstream_unavailable')
  t.equal(seen.text, 'x')
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
  const deep = `${'{"a":'.repeat(101)}1\n${'}\n'.repeat(100)}`
  t.match((await read(deep)).error, { code: 'upstream_unavailable', message: 'The reply broke off.' })
  const deeper = `${'{"a":'.repeat(102)}1\n${'}\n'.repeat(101)}`
  t.match((await read(deeper)).error, { message: 'The provider answered something that is not a stream.' })
  const long = `{\n${'"a": 1,\n'.repeat(3000)}`
  t.match((await read(long)).error, { message: 'The provider answered something that is not a stream.' })
})
