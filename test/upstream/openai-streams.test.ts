/**
 * Whole streams of every dialect, and what the network does to them: cut into pieces anywhere, with other line ends, or
 * broken off. The own fixtures always run; the recordings of real providers run where their folder is.
 */
import t from 'tap'
import { createRandom, raw, seededCuts, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { Problem } from '../../src/errors.ts'
import {
  type Collected,
  collect,
  cutAt,
  openaiAt,
  openaiFed,
  ownStreams,
  recordedStreams,
  type Stream,
} from './streams.ts'

const own = ownStreams()
const recorded = recordedStreams()
if (recorded === undefined) t.comment('no folder of recordings: only the own fixtures are read')
const all = [...own, ...(recorded ?? [])]

/** Streams longer than this are cut at random places instead of all. */
const everyByteMax = 2400

const base = { text: '', reasoning: '', calls: [], usageCount: 1, error: undefined }
const expected: Readonly<Record<string, Omit<Collected, 'error'> & { error: unknown }>> = {
  openai: {
    ...base,
    text: 'Grüße, 世界 👩‍🚀 and مرحبا.',
    usage: { input_tokens: 9, output_tokens: 7, total_tokens: 16, reasoning_tokens: 0, cached_input_tokens: 0 },
    finish: 'stop',
    id: 'chatcmpl-own1',
    model: 'own-1',
  },
  azure: {
    ...base,
    text: 'Two words',
    usage: { input_tokens: 11, output_tokens: 70, total_tokens: 81, reasoning_tokens: 64, cached_input_tokens: 0 },
    finish: 'stop',
    id: 'chatcmpl-az',
    model: 'router-pick',
  },
  deepseek: {
    ...base,
    text: 'I will look.',
    reasoning: 'Look it up.',
    calls: [{ id: 'call_00_a', name: 'lookup', arguments: '{"word": "né"}' }],
    usage: { input_tokens: 300, output_tokens: 40, total_tokens: 340, reasoning_tokens: 12, cached_input_tokens: 256 },
    finish: 'tool_calls',
    id: 'ds-1',
    model: 'deep-own',
  },
  groq: {
    ...base,
    reasoning: 'Hmm.',
    calls: [{ id: 'tk1', name: 'weather', arguments: '{}' }],
    usage: { input_tokens: 20, output_tokens: 5, total_tokens: 25 },
    finish: 'tool_calls',
    id: 'chatcmpl-gq',
    model: 'fast-own',
  },
  'groq-error': {
    ...base,
    text: 'maybe',
    usage: undefined,
    usageCount: 0,
    finish: undefined,
    id: 'chatcmpl-gq',
    model: 'fast-own',
    error: 'upstream_rejected',
  },
  mistral: {
    ...base,
    text: 'Then say.',
    reasoning: 'First think.',
    usage: { input_tokens: 4, output_tokens: 16, total_tokens: 20 },
    finish: 'stop',
    id: 'ms-1',
    model: 'think-own',
  },
  'openrouter-error': {
    ...base,
    reasoning: 'We may begin',
    usage: { input_tokens: 43, output_tokens: 10, total_tokens: 53, reasoning_tokens: 11, cached_input_tokens: 0 },
    finish: 'length',
    id: 'gen-1',
    model: 'router/own:free',
    error: 'upstream_rejected',
  },
  'parallel-tools': {
    ...base,
    calls: [
      { id: 'call_a', name: 'weather', arguments: '{"city":"Rom"} ' },
      { id: 'call_b', name: 'weather', arguments: '{"city":"Oslo"} ' },
    ],
    usage: { input_tokens: 30, output_tokens: 12, total_tokens: 42 },
    finish: 'tool_calls',
    id: 'chatcmpl-own1',
    model: 'own-1',
  },
  'crlf-bom': {
    ...base,
    text: 'Line one\nline two.',
    usage: { input_tokens: 1, output_tokens: 4, total_tokens: 5 },
    finish: 'stop',
    id: 'chatcmpl-own1',
    model: 'own-1',
  },
}

/** With the error's code in its place, so that two readings can be compared. */
function plain(seen: Collected): unknown {
  return { ...seen, error: seen.error instanceof Problem ? seen.error.code : seen.error }
}

t.test('a stream of every dialect is read over HTTP as what it says', async (t) => {
  const fake = await startFakeUpstream()
  const upstream = openaiAt(fake.url)
  for (const stream of own) {
    fake.answer(() => raw(stream.bytes))
    t.strictSame(plain(await collect(upstream)), expected[stream.name], stream.name)
  }
  await upstream.close()
  await fake.close()
})

t.test(
  'a stream of every dialect, and a recording of every provider, is read as a plain reading of its chunks',
  async (t) => {
    const fake = await startFakeUpstream()
    const upstream = openaiAt(fake.url)
    for (const stream of [...own, ...(recorded ?? [])]) {
      fake.answer(() => raw(stream.bytes))
      const seen = await collect(upstream)
      const wanted = readPlainly(stream.bytes)
      t.equal(seen.text, wanted.text, `${stream.name}: text`)
      t.equal(seen.reasoning, wanted.reasoning, `${stream.name}: reasoning`)
      t.strictSame(
        seen.calls.map((call) => call.arguments),
        wanted.arguments,
        `${stream.name}: tool calls`,
      )
      t.ok(
        seen.calls.every((call) => call.id && call.name && JSON.parse(call.arguments)),
        `${stream.name}: every call has an id, a name and whole arguments`,
      )
      t.equal((plain(seen) as Collected).error, wanted.verdict === 'complete' ? undefined : wanted.verdict, stream.name)
      if (wanted.total !== undefined) {
        t.match(seen.usage, { total_tokens: wanted.total }, `${stream.name}: usage`)
        t.equal(seen.usageCount, 1, `${stream.name}: usage is counted once`)
      }
    }
    await upstream.close()
    await fake.close()
  },
)

t.test('a stream that arrives byte by byte over HTTP is the same reply', async (t) => {
  const fake = await startFakeUpstream()
  const upstream = openaiAt(fake.url)
  for (const stream of own) {
    const everywhere = Array.from({ length: stream.bytes.length - 1 }, (_, index) => index + 1)
    fake.answer(() => raw(stream.bytes, everywhere))
    t.strictSame(plain(await collect(upstream)), expected[stream.name], stream.name)
  }
  await upstream.close()
  await fake.close()
})

t.test('a stream cut in two at any byte is the same reply', async (t) => {
  for (const stream of all) {
    const whole = plain(await collect(openaiFed([stream.bytes])))
    const cuts =
      stream.bytes.length <= everyByteMax
        ? Array.from({ length: stream.bytes.length - 1 }, (_, index) => index + 1)
        : seededCuts(stream.bytes.length, 100, 20_261_121)
    let wrong: number | undefined
    for (const cut of cuts) {
      const seen = plain(await collect(openaiFed(cutAt(stream.bytes, [cut]))))
      if (JSON.stringify(seen) !== JSON.stringify(whole)) wrong ??= cut
    }
    t.equal(wrong, undefined, `${stream.name}: ${cuts.length} places`)
  }
})

t.test('a stream cut at many random places is the same reply, whatever its line ends', async (t) => {
  const random = createRandom(7)
  for (const stream of all) {
    const text = stream.bytes.toString().replaceAll('\r\n', '\n')
    const whole = plain(await collect(openaiFed([stream.bytes])))
    for (const [ends, lineEnd] of [
      ['LF', '\n'],
      ['CRLF', '\r\n'],
      ['CR', '\r'],
    ] as const) {
      const bytes = Buffer.from(text.replaceAll('\n', lineEnd))
      t.strictSame(plain(await collect(openaiFed([bytes]))), whole, `${stream.name} with ${ends}, whole`)
      for (let round = 0; round < 10; round++) {
        const count = 1 + Math.floor(random() * Math.min(200, bytes.length))
        const pieces = cutAt(bytes, seededCuts(bytes.length, count, Math.floor(random() * 2 ** 31)))
        const seen = plain(await collect(openaiFed(pieces)))
        if (JSON.stringify(seen) !== JSON.stringify(whole)) t.strictSame(seen, whole, `${stream.name} with ${ends}`)
      }
    }
  }
})

for (const [how, end] of [
  ['clean end', 'fin'],
  ['reset', Object.assign(new Error('read ECONNRESET'), { code: 'ECONNRESET' })],
] as const) {
  t.test(`a stream broken off by a ${how} is whole only if the provider had said so`, async (t) => {
    for (const stream of all) {
      // Both ends take the same way through the adapter up to the verdict: one of them at every byte is enough.
      const ends =
        end === 'fin' && stream.bytes.length <= everyByteMax
          ? Array.from({ length: stream.bytes.length }, (_, index) => index)
          : eventEnds(stream)
      let wrong: string | undefined
      for (const to of ends) {
        const prefix = stream.bytes.subarray(0, to)
        const wanted = readPlainly(prefix)
        const seen = await collect(openaiFed([prefix], end))
        const verdict =
          seen.error === undefined ? 'complete' : seen.error instanceof Problem ? seen.error.code : seen.error
        if (verdict !== wanted.verdict) wrong ??= `${to}: ${String(verdict)} instead of ${wanted.verdict}`
        if (seen.text !== wanted.text) wrong ??= `${to}: text lost`
      }
      t.equal(wrong, undefined, `${stream.name}: ${ends.length} places`)
    }
  })
}

t.test('a stream broken off over HTTP at an event is whole only if the provider had said so', async (t) => {
  const fake = await startFakeUpstream()
  const upstream = openaiAt(fake.url)
  for (const stream of own) {
    for (const to of eventEnds(stream)) {
      const prefix = stream.bytes.subarray(0, to)
      fake.answer(() => raw(prefix))
      const { error } = await collect(upstream)
      const verdict = error === undefined ? 'complete' : error instanceof Problem ? error.code : error
      t.equal(verdict, readPlainly(prefix).verdict, `${stream.name} up to ${to}`)
    }
  }
  await upstream.close()
  await fake.close()
})

function eventEnds(stream: Stream): number[] {
  const ends: number[] = []
  for (const blank of ['\n\n', '\r\n\r\n']) {
    for (let at = stream.bytes.indexOf(blank); at !== -1; at = stream.bytes.indexOf(blank, at + 1)) {
      ends.push(at + blank.length)
    }
  }
  return ends
}

interface PlainReading {
  text: string
  reasoning: string
  arguments: string[]
  total: number | undefined
  verdict: 'complete' | 'upstream_unavailable' | 'upstream_rejected'
}

/** The same by other means: whole lines, one after the other, without a parser, bounds or events. */
function readPlainly(bytes: Uint8Array): PlainReading {
  const seen: PlainReading = {
    text: '',
    reasoning: '',
    arguments: [],
    total: undefined,
    verdict: 'upstream_unavailable',
  }
  for (const line of Buffer.from(bytes).toString().split(/\r?\n/)) {
    if (!line.startsWith('data:')) continue
    const data = line.slice(5).trim()
    if (data === '[DONE]') {
      if (seen.text + seen.reasoning + seen.arguments.join('') !== '') seen.verdict = 'complete'
      return seen
    }
    let chunk: PlainChunk
    try {
      chunk = JSON.parse(data)
    } catch {
      continue
    }
    const choice = chunk.choices?.[0]
    const content = choice?.delta?.content
    if (typeof content === 'string') seen.text += content
    for (const part of Array.isArray(content) ? content : []) {
      if (part.type === 'text') seen.text += part.text
      else seen.reasoning += part.thinking?.map((piece) => piece.text).join('') ?? ''
    }
    seen.reasoning += choice?.delta?.reasoning_content ?? choice?.delta?.reasoning ?? ''
    for (const call of choice?.delta?.tool_calls ?? []) {
      seen.arguments[call.index] = (seen.arguments[call.index] ?? '') + call.function.arguments
    }
    seen.total = chunk.usage?.total_tokens ?? seen.total
    if (choice?.finish_reason) seen.verdict = 'complete'
    if (chunk.error) {
      seen.verdict = 'upstream_rejected' // the errors in these streams all say 400
      return seen
    }
  }
  return seen
}

interface PlainChunk {
  choices?: {
    delta?: {
      content?: string | { type: string; text?: string; thinking?: { text: string }[] }[] | null
      reasoning_content?: string | null
      reasoning?: string | null
      tool_calls?: { index: number; function: { arguments: string } }[]
    }
    finish_reason?: string | null
  }[]
  usage?: { total_tokens: number } | null
  error?: unknown
}
