/**
 * Whole streams of every dialect, and what the network does to them: cut into pieces anywhere, with other line ends, or
 * broken off. The own fixtures always run; the recordings of real providers run where their folder is.
 */
import { createHash } from 'node:crypto'
import fc from 'fast-check'
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
  readPieces,
  recordedStreams,
  type Stream,
} from './streams.ts'

const own = ownStreams()
const recorded = recordedStreams()
if (recorded === undefined) t.comment('no folder of recordings: only the own fixtures are read')
const all = [...own, ...(recorded ?? [])]

const base = {
  text: '',
  reasoning: '',
  calls: [],
  sources: [],
  files: [],
  signatures: [],
  usageCount: 1,
  error: undefined,
}
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
  perplexity: {
    ...base,
    text: 'Tea is a leaf [1].',
    sources: ['https://one.example/tea Tea, briefly', 'https://two.example/leaf On leaves'],
    usage: { input_tokens: 5, output_tokens: 3, total_tokens: 8 },
    usageCount: 3,
    finish: 'stop',
    id: 'pp-1',
    model: 'search-own',
  },
  annotations: {
    ...base,
    text: 'Oats grow.',
    sources: ['https://farm.example/oats Oats', 'https://farm.example/rye?a=1&b=2 Rye, née Roggen'],
    usage: { input_tokens: 7, output_tokens: 3, total_tokens: 10 },
    finish: 'stop',
    id: 'chatcmpl-own1',
    model: 'own-1',
  },
  xai: {
    ...base,
    text: 'Rain.',
    reasoning: 'Search. ',
    sources: ['https://sky.example/rain -', 'http://old.example/ -'],
    usage: { input_tokens: 32, output_tokens: 103, total_tokens: 135, reasoning_tokens: 94, cached_input_tokens: 8 },
    finish: 'stop',
    id: 'xa-1',
    model: 'grok-own',
  },
  images: {
    ...base,
    text: 'A dot: done.',
    files: [
      'image/png data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==',
      'image/webp https://img.example/dot.webp?x=1',
    ],
    usage: { input_tokens: 6, output_tokens: 1290, total_tokens: 1296 },
    finish: 'stop',
    id: 'gen-2',
    model: 'router/paint',
  },
  signatures: {
    ...base,
    text: 'Seen.',
    reasoning: 'Let me see: 深い.',
    signatures: [
      '{"model":"own-1","details":[{"type":"reasoning.text","index":0,"units":15,"format":"anthropic-claude-v1","signature":"c2VhbA=="}]}',
    ],
    usage: {
      input_tokens: 2000,
      output_tokens: 30,
      total_tokens: 2030,
      reasoning_tokens: 12,
      cached_input_tokens: 1500,
      cache_write_tokens: 400,
    },
    finish: 'stop',
    id: 'gen-3',
    model: 'router/think',
  },
  encrypted: {
    ...base,
    reasoning: 'Weigh it.',
    calls: [{ id: 'call_w', name: 'weigh', arguments: '{"kg":2}' }],
    signatures: [
      '{"model":"own-1","details":[{"type":"reasoning.summary","index":0,"units":9,"format":"openai-responses-v1"},{"type":"reasoning.encrypted","index":1,"units":0,"id":"rs_1","format":"openai-responses-v1","data":"Z0FBQUFB"}]}',
      'redacted {"model":"own-1","details":[{"type":"reasoning.encrypted","index":2,"units":0,"id":"rs_2","format":"openai-responses-v1","data":"bGF0ZQ=="}]}',
    ],
    usage: { input_tokens: 50, output_tokens: 20, total_tokens: 70, cached_input_tokens: 0 },
    finish: 'tool_calls',
    id: 'gen-4',
    model: 'router/closed',
  },
  'gemini-compat': {
    ...base,
    calls: [
      { id: 'fn-1', name: 'weather', arguments: '{"city":"Köln"}', signature: 'R2VtU2ln' },
      { id: 'fn-2', name: 'weather', arguments: '{"city":"Bonn"}' },
    ],
    usage: { input_tokens: 40, output_tokens: 50, total_tokens: 90, reasoning_tokens: 32 },
    finish: 'tool_calls',
    id: 'gm-1',
    model: 'gem-own',
  },
  'no-index-tools': {
    ...base,
    calls: [
      { id: 'a1', name: 'add', arguments: '{"x":1}' },
      { id: 'b2', name: 'add', arguments: '{"x":2}' },
      { id: 'c3', name: 'sub', arguments: '{}' },
    ],
    usage: { input_tokens: 9, output_tokens: 9, total_tokens: 18 },
    finish: 'tool_calls',
    id: 'chatcmpl-own1',
    model: 'own-1',
  },
  'constant-ids': {
    ...base,
    calls: [
      { id: 'call_0', name: 'add', arguments: '{"x":1}' },
      { id: 'call_0', name: 'add', arguments: '{"x":2}' },
      { id: 'call_0', name: 'sub', arguments: '{"x":3}' },
    ],
    usage: { input_tokens: 3, output_tokens: 4, total_tokens: 7 },
    finish: 'tool_calls',
    id: 'chatcmpl-own1',
    model: 'own-1',
  },
  messages: {
    ...base,
    text: 'Whole pieces.',
    usage: { input_tokens: 2, output_tokens: 2, total_tokens: 4 },
    finish: 'length',
    id: 'msg-1',
    model: 'plain-own',
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

/** What the recordings hold, taken from their chunks once by another program: `units hash` of what was said. */
const facts: Readonly<Record<string, Fact>> = {
  '01': { text: '19 53f836c9fbda', finish: 'stop', total: 93 },
  '02': { end: 'upstream_rejected' },
  '03': { reasoning: '191 e9e5190a993c', calls: ['weather 29 14baa4dbac5c'], finish: 'tool_calls', total: 422 },
  '04': { calls: ['weather 2 44136fa355b3'], finish: 'tool_calls', total: 225 },
  '05': { text: '9 e93dff0d1076', reasoning: '60 3ee98375cfe6', finish: 'stop', total: 56 },
  '07': { calls: ['get_weather 24 fbde83735265'], finish: 'tool_calls', total: 60 },
  '080': { reasoning: '42 2366fab4e65d', finish: 'length', total: 53, end: 'upstream_rejected' },
  '090': { text: '5 dcfff5eb4042', reasoning: '361 5912a8b8200a', end: 'upstream_rejected' },
  '091': {
    reasoning: '727 187e7e601ec2',
    calls: ['final_result 17 3ccb846d81bf'],
    finish: 'tool_calls',
    total: 523,
  },
}

interface Fact {
  readonly text?: string
  readonly reasoning?: string
  readonly calls?: readonly string[]
  readonly finish?: string
  readonly total?: number
  /** Absent: the reply is whole. */
  readonly end?: string
}

function factsOf(seen: Collected): Fact {
  const hash = (text: string) => createHash('sha256').update(text).digest('hex').slice(0, 12)
  const short = (text: string) => `${text.length} ${hash(text)}`
  const end = codeOf(seen)
  const total = (seen.usage as { total_tokens: number } | undefined)?.total_tokens
  return {
    ...(seen.text === '' ? {} : { text: short(seen.text) }),
    ...(seen.reasoning === '' ? {} : { reasoning: short(seen.reasoning) }),
    ...(seen.calls.length === 0 ? {} : { calls: seen.calls.map((call) => `${call.name} ${short(call.arguments)}`) }),
    ...(seen.finish === undefined ? {} : { finish: seen.finish }),
    ...(total === undefined ? {} : { total }),
    ...(end === undefined ? {} : { end }),
  }
}

function codeOf({ error }: Collected): string | undefined {
  return error instanceof Problem ? error.code : (error as string | undefined)
}

/** With the error's code in its place, so that two readings can be compared. */
function plain(seen: Collected): unknown {
  return { ...seen, error: codeOf(seen) }
}

// They are other people's, and lie beside a checkout where somebody has put them. What is read always is the own fixtures.
if (recorded !== undefined) {
  t.test('what the recordings are read as is what they hold', async (t) => {
    for (const { name, bytes } of recorded) {
      const number = /^recording (\d+)/.exec(name)?.[1] ?? ''
      t.strictSame(factsOf(readPieces([bytes])), facts[number], name)
    }
    t.equal(new Set(recorded.map(({ name }) => /\d+/.exec(name)?.[0])).size, Object.keys(facts).length)
  })
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
      t.equal(misread(seen, stream.bytes), undefined, stream.name)
      t.ok(
        seen.calls.every((call) => call.id && call.name && JSON.parse(call.arguments)),
        `${stream.name}: every call has an id, a name and whole arguments`,
      )
      if (seen.usage !== undefined && stream.name !== 'perplexity') t.equal(seen.usageCount, 1, stream.name)
    }
    await upstream.close()
    await fake.close()
  },
)

t.test('a stream that arrives byte by byte over HTTP is the same reply', async (t) => {
  const fake = await startFakeUpstream()
  const upstream = openaiAt(fake.url)
  for (const stream of own.filter(({ name }) => name === 'openai' || name === 'crlf-bom')) {
    const everywhere = Array.from({ length: stream.bytes.length - 1 }, (_, index) => index + 1)
    fake.answer(() => raw(stream.bytes, everywhere))
    t.strictSame(plain(await collect(upstream)), expected[stream.name], stream.name)
  }
  await upstream.close()
  await fake.close()
})

t.test('a reader alone reads what the adapter reads', async (t) => {
  for (const { name, bytes } of all) {
    t.strictSame(plain(readPieces([bytes])), plain(await collect(openaiFed([bytes]))), name)
  }
})

t.test('a stream that arrives byte by byte is the same reply', (t) => {
  for (const { name, bytes } of all) {
    const everywhere = Array.from({ length: bytes.length - 1 }, (_, index) => index + 1)
    t.strictSame(plain(readPieces(cutAt(bytes, everywhere))), plain(readPieces([bytes])), name)
  }
  t.end()
})

t.test('a stream cut in two at any byte is the same reply', (t) => {
  for (const stream of all) {
    // Nothing of the framing is left over where an event ends. So a cut is felt by the event that it is in and by the one
    // behind it, and to read those two for each of the cuts is to read the whole for each of them.
    const ends = [0, ...eventEnds(stream), stream.bytes.length]
    let wrong: number | undefined
    let cuts = 0
    for (let at = 0; at + 2 < ends.length; at++) {
      const [from, end, to] = ends.slice(at, at + 3) as [number, number, number]
      const events = stream.bytes.subarray(from, to)
      const whole = JSON.stringify(plain(readPieces([events])))
      for (let cut = from + 1; cut <= end && cut < to; cut++, cuts++) {
        const seen = readPieces(cutAt(events, [cut - from]))
        if (JSON.stringify(plain(seen)) !== whole) wrong ??= cut
      }
    }
    t.equal(wrong, undefined, `${stream.name}: ${cuts} places`)
    t.equal(cuts, stream.bytes.length - 1)
  }
  t.end()
})

t.test('a stream cut at many random places is the same reply, whatever its line ends', (t) => {
  const random = createRandom(7)
  for (const stream of all) {
    const text = stream.bytes.toString().replaceAll('\r\n', '\n')
    const whole = plain(readPieces([stream.bytes]))
    for (const [ends, lineEnd] of [
      ['LF', '\n'],
      ['CRLF', '\r\n'],
      ['CR', '\r'],
    ] as const) {
      const bytes = Buffer.from(text.replaceAll('\n', lineEnd))
      t.strictSame(plain(readPieces([bytes])), whole, `${stream.name} with ${ends}, whole`)
      for (let round = 0; round < 10; round++) {
        const count = 1 + Math.floor(random() * Math.min(200, bytes.length))
        const pieces = cutAt(bytes, seededCuts(bytes.length, count, Math.floor(random() * 2 ** 31)))
        const seen = plain(readPieces(pieces))
        if (JSON.stringify(seen) !== JSON.stringify(whole)) t.strictSame(seen, whole, `${stream.name} with ${ends}`)
      }
    }
  }
  t.end()
})

t.test('however an own stream is cut into pieces, the parts are the same', (t) => {
  const wholes = new Map(own.map(({ name, bytes }) => [name, plain(readPieces([bytes]))]))
  fc.assert(
    fc.property(fc.constantFrom(...own), fc.array(fc.nat(3000), { maxLength: 60 }), ({ name, bytes }, places) => {
      // Two cuts at one place give an empty piece, which is allowed to come too.
      const cuts = places.map((place) => place % (bytes.length + 1)).sort((a, b) => a - b)
      return JSON.stringify(plain(readPieces(cutAt(bytes, cuts)))) === JSON.stringify(wholes.get(name))
    }),
    { numRuns: 1000 },
  )
  // The twin: a byte that is lost between two pieces is seen.
  for (const { name, bytes } of own) {
    const lost = bytes.lastIndexOf('"model":"') + 9
    t.notSame(plain(readPieces([bytes.subarray(0, lost), bytes.subarray(lost + 1)])), wholes.get(name), name)
  }
  t.end()
})

t.test('a stream broken off by a clean end is whole only if the provider had said so', (t) => {
  for (const stream of all) {
    const everywhere = Array.from({ length: stream.bytes.length }, (_, index) => index)
    const places = own.includes(stream) ? everywhere : eventEnds(stream)
    const wrong = places.map((to) => {
      const prefix = stream.bytes.subarray(0, to)
      return misread(readPieces([prefix]), prefix)
    })
    t.strictSame(wrong.filter(Boolean), [], `${stream.name}: ${places.length} places`)
  }
  t.end()
})

t.test('a stream broken off by a reset is whole only if the provider had said so', async (t) => {
  const reset = Object.assign(new Error('read ECONNRESET'), { code: 'ECONNRESET' })
  for (const stream of all) {
    const wrong: unknown[] = []
    for (const to of eventEnds(stream)) {
      const prefix = stream.bytes.subarray(0, to)
      wrong.push(misread(await collect(openaiFed([prefix], reset)), prefix))
    }
    t.strictSame(wrong.filter(Boolean), [], stream.name)
  }
})

t.test('a stream broken off over HTTP at an event is whole only if the provider had said so', async (t) => {
  const fake = await startFakeUpstream()
  const upstream = openaiAt(fake.url)
  for (const stream of own) {
    for (const to of eventEnds(stream)) {
      const prefix = stream.bytes.subarray(0, to)
      fake.answer(() => raw(prefix))
      t.equal(misread(await collect(upstream), prefix), undefined, `${stream.name} up to ${to}`)
    }
  }
  await upstream.close()
  await fake.close()
})

/** @returns where every event ends, in ascending order */
function eventEnds(stream: Stream): number[] {
  const ends: number[] = []
  for (const blank of ['\n\n', '\r\n\r\n']) {
    for (let at = stream.bytes.indexOf(blank); at !== -1; at = stream.bytes.indexOf(blank, at + 1)) {
      ends.push(at + blank.length)
    }
  }
  return ends
}

/** @returns how a reading differs from a plain one of the same bytes; undefined when it does not */
function misread(seen: Collected, bytes: Uint8Array): string | undefined {
  const wanted = readPlainly(bytes)
  const verdict = codeOf(seen) ?? 'complete'
  if (verdict !== wanted.verdict) return `${bytes.length}: ${verdict} instead of ${wanted.verdict}`
  if (seen.text !== wanted.text) return `${bytes.length}: text`
  if (seen.reasoning !== wanted.reasoning) return `${bytes.length}: reasoning`
  // Calls that begin anew under an old label are not for a plain reading; their pieces are.
  if (seen.calls.map((call) => call.arguments).join('') !== wanted.arguments.join('')) return `${bytes.length}: calls`
  const total = (seen.usage as { total_tokens: number } | undefined)?.total_tokens
  return total === wanted.total ? undefined : `${bytes.length}: usage`
}

interface PlainReading {
  text: string
  reasoning: string
  /** Of each index, and all of those that have none. */
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
    const delta = choice?.delta ?? choice?.message
    const content = delta?.content
    if (typeof content === 'string') seen.text += content
    for (const part of Array.isArray(content) ? content : []) {
      if (part.type === 'text') seen.text += part.text
      else seen.reasoning += part.thinking?.map((piece) => piece.text).join('') ?? ''
    }
    seen.reasoning += delta?.reasoning_content ?? delta?.reasoning ?? ''
    for (const { index = 0, function: called } of delta?.tool_calls ?? []) {
      seen.arguments[index] = (seen.arguments[index] ?? '') + called.arguments
    }
    seen.total = (chunk.usage ?? chunk.x_groq?.usage)?.total_tokens ?? seen.total
    if (choice?.finish_reason) seen.verdict = 'complete'
    if (chunk.error) {
      seen.verdict = 'upstream_rejected' // the errors in these streams all say 400, or that there is no quota
      return seen
    }
  }
  return seen
}

interface PlainDelta {
  content?: string | { type: string; text?: string; thinking?: { text: string }[] }[] | null
  reasoning_content?: string | null
  reasoning?: string | null
  tool_calls?: { index?: number; function: { arguments: string } }[]
}

interface PlainChunk {
  choices?: { delta?: PlainDelta; message?: PlainDelta; finish_reason?: string | null }[]
  usage?: { total_tokens: number } | null
  x_groq?: { usage?: { total_tokens: number } }
  error?: unknown
}
