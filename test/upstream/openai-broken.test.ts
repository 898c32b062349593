/**
 * Everything a provider and its network can do wrong, over real HTTP: which code it becomes, that nothing the provider
 * said gets out with it, and that no socket, timer or listener stays behind.
 */
import { getEventListeners } from 'node:events'
import { createServer } from 'node:net'
import { inspect } from 'node:util'
import { gzipSync } from 'node:zlib'
import t from 'tap'
import { Agent } from 'undici'
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
  sse,
  startFakeUpstream,
  usageChunk,
} from '../../scripts/fake-upstream.ts'
import { type ErrorCode, Problem } from '../../src/errors.ts'
import { collect, openaiAt, request } from './streams.ts'

const apiKey = 'sk-MARKER-KEY'
const quoted = 'MARKER-PROMPT'
const page = `<!DOCTYPE html>\n<html><body>${quoted}</body></html>`
const notAStream = 'The provider answered something that is not a stream.'
const brokeOff = 'The reply broke off.'
const noFirstByte = 'The provider sent no first byte within 30 ms.'
const fellSilent = 'The provider fell silent for 30 ms.'
const error = (members: object) => ({ error: { message: `${quoted} ${apiKey}`, ...members } })

interface Case {
  readonly script: Script
  readonly code: ErrorCode
  readonly retryable: boolean
  /** What has to come before the error. */
  readonly text?: string
  readonly detail?: string
  readonly retryAfterSeconds?: number
  /** Where the provider takes too long for them: then it is seen to be cut off. */
  readonly limits?: { readonly firstByteMs?: number; readonly idleMs?: number; readonly totalMs?: number }
}

const rejected = { code: 'upstream_rejected', retryable: false } as const
const unavailable = { code: 'upstream_unavailable', retryable: true } as const
const timeout = { code: 'upstream_timeout', retryable: true } as const
const tooLarge = { code: 'too_large', retryable: false } as const

/** A reply of two words, and then `next`. */
function afterWords(...next: readonly (string | Uint8Array | ReturnType<typeof reset>)[]): Script {
  return async function* () {
    yield* begin({ text: 'two words' })
    yield* next
  }
}

/** These steps, and then nothing more. */
function stall(...steps: readonly Step[]): Script {
  return async function* () {
    yield* steps
    await forever()
  }
}

const answered =
  (status: number, members: object = {}, headers: Readonly<Record<string, string>> = {}): Script =>
  () =>
    refuse(status, error(members), headers)

const asked = (headers: Readonly<Record<string, string>>, status = 429): Script => answered(status, {}, headers)
const noon = 'Tue, 02 Mar 2027 12:00:00 GMT'
const retryInfo = [{ '@type': 'type.googleapis.com/google.rpc.RetryInfo', retryDelay: '37.2s' }]
const call = (text: string) => ({ tool_calls: [{ index: 0, id: 'c', function: { name: 'f', arguments: text } }] })
const comment = ': PROCESSING\n\n'

const cases: Readonly<Record<string, Case>> = {
  // Before the reply.
  '400': { script: answered(400), ...rejected, detail: 'The provider answered 400.' },
  '400 for a context that is too long': { script: answered(400, { code: 'context_length_exceeded' }), ...rejected },
  '400 for content': { script: answered(400, { code: 'content_filter' }), ...rejected },
  '401': { script: answered(401), ...rejected, detail: 'The provider answered 401.' },
  '401 with a Retry-After': { script: asked({ 'retry-after': '5' }, 401), ...rejected },
  '402': { script: answered(402), ...rejected },
  '403': { script: answered(403), ...rejected },
  '404': { script: answered(404), ...rejected },
  '404 with a page': { script: () => refuse(404, page), ...rejected },
  '405 with nothing': { script: () => [head(405, {})], ...rejected },
  '408': { script: answered(408), ...unavailable },
  '409': { script: answered(409), ...unavailable },
  '413': { script: answered(413), ...rejected },
  '422': { script: answered(422), ...rejected },
  '425': { script: answered(425), ...unavailable },
  '429': { script: answered(429, { code: 'rate_limit_exceeded' }), ...unavailable },
  '429 with seconds': { script: asked({ 'retry-after': '7' }), ...unavailable, retryAfterSeconds: 7 },
  '429 with a fraction of a second': { script: asked({ 'retry-after': '1.2' }), ...unavailable, retryAfterSeconds: 2 },
  '429 with no time at all': { script: asked({ 'retry-after': '0' }), ...unavailable, retryAfterSeconds: 0 },
  '429 with a day': { script: asked({ 'retry-after': '86400' }), ...unavailable, retryAfterSeconds: 3600 },
  '429 with a date': {
    script: asked({ 'retry-after': 'Tue, 02 Mar 2027 12:01:30 GMT', date: noon }),
    ...unavailable,
    retryAfterSeconds: 90,
  },
  '429 with a date that has passed': {
    script: asked({ 'retry-after': 'Tue, 02 Mar 2027 11:59:00 GMT', date: noon }),
    ...unavailable,
    retryAfterSeconds: 0,
  },
  '429 with a date far away, and a clock that cannot be read': {
    script: asked({ 'retry-after': 'Fri, 31 Dec 9999 23:59:59 GMT', date: 'now' }),
    ...unavailable,
    retryAfterSeconds: 3600,
  },
  '429 with milliseconds': {
    script: asked({ 'retry-after-ms': '1250', 'retry-after': '9' }),
    ...unavailable,
    retryAfterSeconds: 2,
  },
  '429 with words for milliseconds': {
    script: asked({ 'retry-after-ms': 'soon', 'retry-after': '9' }),
    ...unavailable,
    retryAfterSeconds: 9,
  },
  '429 with a time that is none': { script: asked({ 'retry-after': '-5' }), ...unavailable },
  '429 with a word for a time': { script: asked({ 'retry-after': 'soon' }), ...unavailable },
  '429 with when its counter begins anew': { script: asked({ 'x-ratelimit-reset-requests': '6s' }), ...unavailable },
  '429 with the time in its body': {
    script: answered(429, { status: 'RESOURCE_EXHAUSTED', details: retryInfo }),
    ...unavailable,
    retryAfterSeconds: 38,
  },
  '429 with the time in a list': {
    script: () => refuse(429, [error({ code: 429, details: retryInfo })]),
    ...unavailable,
    retryAfterSeconds: 38,
  },
  '429 with a page': { script: () => refuse(429, page), ...unavailable },
  '429 with a longer body than is read': { script: () => refuse(429, `${quoted} `.repeat(10_000)), ...unavailable },
  '429 whose body does not come': {
    script: stall(head(429, { 'content-type': 'application/json' })),
    ...unavailable,
    detail: 'The provider answered 429.',
    limits: { idleMs: 30 },
  },
  '429 whose body breaks off': { script: () => [head(429), '{"error":{"code":"insuff', reset()], ...unavailable },
  '429 for an empty account': { script: answered(429, { code: 'insufficient_quota' }), ...rejected },
  '429 for an empty account, by type': { script: answered(429, { type: 'insufficient_quota' }), ...rejected },
  '429 for an empty account, with a time': {
    script: answered(429, { type: 'exceeded_current_quota_error' }, { 'retry-after': '5' }),
    ...rejected,
  },
  '429 for billing': { script: answered(429, { code: 'billing_hard_limit_reached' }), ...rejected },
  '429 for want of machines': { script: answered(429, { code: 'insufficient_system_resource' }), ...unavailable },
  '498': { script: answered(498, { code: 'capacity_exceeded' }), ...unavailable },
  '500': { script: answered(500), ...unavailable },
  '501': { script: answered(501), ...rejected },
  '502 with a page': { script: () => refuse(502, page), ...unavailable },
  '503': { script: asked({ 'retry-after': '2' }, 503), ...unavailable, retryAfterSeconds: 2 },
  '503 with a date': {
    script: asked({ 'retry-after': 'Tue, 02 Mar 2027 12:00:10 GMT', date: noon }, 503),
    ...unavailable,
    retryAfterSeconds: 10,
  },
  '504 with nothing': { script: () => [head(504, {})], ...unavailable },
  '520 with a page': { script: () => refuse(520, page), ...unavailable },
  '529': { script: answered(529, { type: 'overloaded_error' }), ...unavailable },
  '529 with seconds': { script: asked({ 'retry-after': '4' }, 529), ...unavailable, retryAfterSeconds: 4 },
  'a redirect': { script: () => refuse(307, '', { location: 'http://127.0.0.1:1/v1' }), ...rejected },
  'a reset before the status': { script: () => [reset()], ...unavailable, detail: 'The provider cannot be reached.' },
  'no status': { script: stall(), ...timeout, limits: { firstByteMs: 30 }, detail: noFirstByte },
  'no first byte after the status': {
    script: stall(head(200)),
    ...timeout,
    limits: { firstByteMs: 30 },
    detail: noFirstByte,
  },

  // 200, and no stream.
  '200 with an error in JSON': { script: () => refuse(200, error({ type: 'invalid_request_error' })), ...rejected },
  '200 with an error in JSON over many lines': {
    script: () => refuse(200, JSON.stringify(error({ code: 503 }), null, 2)),
    ...unavailable,
  },
  '200 with an error in a list over many lines': {
    script: () => refuse(200, JSON.stringify([error({ code: 400 })], null, 2)),
    ...rejected,
  },
  '200 with an error that is a text': { script: () => refuse(200, { error: quoted }), ...unavailable },
  '200 with an error behind empty lines': {
    script: () => refuse(200, `\n\n ${JSON.stringify(error({ code: 402 }))}\n\n`),
    ...rejected,
  },
  '200 with a page': { script: () => refuse(200, page), ...unavailable, detail: notAStream },
  '200 with other JSON': { script: () => refuse(200, { detail: quoted }), ...unavailable, detail: notAStream },
  '200 with a list of other JSON': {
    script: () => refuse(200, [{ detail: quoted }]),
    ...unavailable,
    detail: notAStream,
  },
  '200 with a reply in JSON that is cut': {
    script: () => refuse(200, '{"choices":[{"message":{"content":"two words'),
    ...unavailable,
    detail: brokeOff,
  },
  '200 with a reply in JSON that says nothing': {
    script: () => refuse(200, { choices: [{ message: { content: '' } }] }),
    ...unavailable,
  },
  '200 with a reply in JSON without an answer': { script: () => refuse(200, { choices: [] }), ...unavailable },
  '200 with a text': { script: () => refuse(200, quoted), ...unavailable, detail: brokeOff },
  '200 and nothing': { script: () => [head(200)], ...unavailable, detail: brokeOff },
  '200 and a reset': { script: () => [head(200), reset()], ...unavailable, detail: brokeOff },
  '200 and comments': { script: () => [comment, comment], ...unavailable, detail: brokeOff },
  '204': { script: () => [head(204)], ...unavailable },
  'bytes that are no text': { script: () => [Buffer.from([0xff, 0xfe, 0x00, 0x01, 0x80])], ...unavailable },
  'bytes that are compressed': { script: () => [gzipSync(chunk({ content: quoted }, 'stop'))], ...unavailable },
  'a marker and nothing before it': { script: () => [doneMarker], ...unavailable },
  'a role and a marker': { script: () => [chunk({ role: 'assistant', content: '' }), doneMarker], ...unavailable },

  // An error within the reply.
  'an error object beside choices': {
    script: afterWords(sse({ choices: [{ index: 0, delta: { content: '!' } }], ...error({ code: 502 }) })),
    ...unavailable,
    text: 'two words!',
  },
  'an error object beside a reason': {
    script: afterWords(sse({ choices: [{ index: 0, delta: {}, finish_reason: 'error' }], ...error({ code: 403 }) })),
    ...rejected,
    text: 'two words',
  },
  'an error object behind a reason': {
    script: afterWords(chunk({}, 'stop'), sse(error({ code: 400 })), doneMarker),
    ...rejected,
    text: 'two words',
  },
  'an error object with a status of 400': {
    script: afterWords(sse({ choices: [], ...error({ code: 400 }) }), doneMarker),
    ...rejected,
    text: 'two words',
  },
  'an error object with a status in a string': { script: afterWords(sse(error({ code: '401' }))), ...rejected },
  'an error object with a status_code': { script: afterWords(sse(error({ status_code: 529 }))), ...unavailable },
  'an error object for a rate': { script: afterWords(sse(error({ code: 'rate_limit_exceeded' }))), ...unavailable },
  'an error object with a time': {
    script: afterWords(sse(error({ code: 429, details: retryInfo }))),
    ...unavailable,
    retryAfterSeconds: 38,
  },
  'an error object for an empty account': {
    script: afterWords(sse(error({ code: 429, type: 'insufficient_quota' }))),
    ...rejected,
  },
  'an error object of a length': { script: afterWords(sse(error({ code: 'context_length_exceeded' }))), ...rejected },
  'an error object of a length, as llama.cpp has it': {
    script: afterWords(sse(error({ type: 'exceed_context_size_error' }))),
    ...rejected,
  },
  'an error object of a policy': { script: afterWords(sse(error({ code: 'content_policy_violation' }))), ...rejected },
  'an error object of an overload': { script: afterWords(sse(error({ type: 'overloaded_error' }))), ...unavailable },
  'an error object with nothing in it': { script: afterWords(sse({ error: {} })), ...unavailable },
  'an error object in a list': { script: afterWords(sse([error({ code: 400 })])), ...rejected },
  'an error that is a text': { script: afterWords(sse({ error: quoted })), ...unavailable },
  'an error that is a number': { script: afterWords(sse({ error: 500 })), ...unavailable },
  'an error in the shape of vLLM': {
    script: afterWords(sse({ object: 'error', message: quoted, type: 'BadRequestError', code: 400 })),
    ...rejected,
  },
  'an error in the shape of the Responses API': {
    script: afterWords(sse({ type: 'error', code: 'invalid_prompt', message: quoted, param: null })),
    ...rejected,
  },
  'a response of the Responses API that failed': {
    script: afterWords(
      sse({ type: 'response.failed', response: error({ code: 'insufficient_quota' }) }, 'response.failed'),
    ),
    ...rejected,
  },
  'event: error': { script: afterWords(sse(error({ type: 'server_error' }), 'error')), ...unavailable },
  'event: error for the request': {
    script: afterWords(sse(error({ type: 'invalid_request_error' }), 'error')),
    ...rejected,
    text: 'two words',
  },
  'event: error without an error member': {
    script: afterWords(sse({ message: quoted, code: 'invalid_api_key' }, 'error')),
    ...rejected,
  },
  'event: error that is no JSON': { script: afterWords(`event: error\ndata: ${quoted}\n\n`), ...unavailable },
  'event: error without data': { script: afterWords('event: error\n\n'), ...unavailable },
  'an error field': { script: afterWords(`error: ${JSON.stringify(error({ code: 400 }))}\n\n`), ...rejected },
  'an error field that is no JSON': { script: afterWords(`error: ${quoted}\n\n`), ...unavailable },
  'a bare JSON line': {
    script: afterWords(`${JSON.stringify(error({ code: 400 }))}\n`),
    ...rejected,
    text: 'two words',
  },
  'a bare JSON line in two writes': { script: afterWords('{"error":{"co', 'de":400}}\n'), ...rejected },
  'a bare JSON line without an end': { script: afterWords(JSON.stringify(error({ code: 402 }))), ...rejected },
  'a bare JSON line on a line that stays open': {
    script: stall(chunk({ content: 'two words' }), `${JSON.stringify(error({ code: 403 }))}\n`),
    ...rejected,
    text: 'two words',
  },
  'a bare JSON line that is no error': { script: afterWords('{"detail":"gone"}\n'), ...unavailable },
  'a page in mid-stream': { script: afterWords(page), ...unavailable, text: 'two words', detail: notAStream },
  'a reason that says error': { script: afterWords(chunk({}, 'error'), doneMarker), ...unavailable, text: 'two words' },
  'a reason that says there was no machine': {
    script: afterWords(chunk({}, 'insufficient_system_resource')),
    ...unavailable,
    text: 'two words',
  },
  'a reason that says abort': { script: afterWords(chunk({}, 'abort'), doneMarker), ...unavailable },

  // What is no error and no end.
  'a corrupt chunk': {
    script: afterWords(`data: {"choices":[{"delta":{"content":"${quoted}\n\n`, chunk({}, 'stop'), doneMarker),
    ...unavailable,
    text: 'two words',
  },
  'a chunk that is a number': { script: afterWords('data: 5\n\n'), ...unavailable },
  'a chunk that is a list': { script: afterWords('data: []\n\n'), ...unavailable },
  'a chunk that is null': { script: afterWords('data: null\n\n', doneMarker), ...unavailable },
  'a page as a chunk': { script: afterWords(`data: <html>${quoted}</html>\n\n`), ...unavailable },
  'two chunks in one event': {
    script: afterWords(`data: {"choices":[]}\ndata: {"choices":[]}\n\n`),
    ...unavailable,
    text: 'two words',
  },
  'an end without a marker': { script: afterWords(), ...unavailable, text: 'two words', detail: brokeOff },
  'an end within a chunk': {
    script: afterWords(chunk({ content: ' more' }, 'stop').slice(0, -40)),
    ...unavailable,
    text: 'two words',
    detail: brokeOff,
  },
  'an end within a character': {
    script: afterWords(Buffer.from(chunk({ content: '世' })).subarray(0, -60)),
    ...unavailable,
    text: 'two words',
  },
  'an end within the arguments of a tool': {
    script: () => [chunk(call('{"city":"Ro'))],
    ...unavailable,
    detail: brokeOff,
  },
  'an end of another choice': {
    script: afterWords(sse({ choices: [{ index: 1, delta: {}, finish_reason: 'stop' }] })),
    ...unavailable,
    text: 'two words',
  },
  'a usage and no end': { script: afterWords(usageChunk(8, 2)), ...unavailable, text: 'two words' },
  'a reset': { script: afterWords(reset()), ...unavailable, text: 'two words', detail: brokeOff },
  'a reset within a chunk': {
    script: afterWords('data: {"choices":[{"delta":{"content":"', reset()),
    ...unavailable,
    text: 'two words',
    detail: brokeOff,
  },
  'silence after a comment': { script: stall(comment), ...timeout, limits: { idleMs: 30 }, detail: fellSilent },
  'silence in the middle': {
    script: stall(chunk({ content: 'two words' })),
    ...timeout,
    limits: { idleMs: 30 },
    text: 'two words',
    detail: fellSilent,
  },
  'silence within a chunk': {
    script: stall(chunk({ content: 'two words' }), 'data: {"choices":[{"del'),
    ...timeout,
    limits: { idleMs: 30 },
    text: 'two words',
  },
  'comments for ever': {
    script: async function* () {
      for (;;) yield comment
    },
    ...timeout,
    limits: { totalMs: 60 },
    detail: 'The reply took longer than 60 ms.',
  },
  'a line that does not end': {
    script: async function* () {
      for (;;) yield 'x'.repeat(1024 * 1024)
    },
    ...tooLarge,
  },
  'a reply that does not end': {
    script: async function* () {
      for (;;) yield chunk({ reasoning: 'x'.repeat(500_000) })
    },
    ...tooLarge,
  },
  'tools without end': {
    script: async function* () {
      for (let index = 0; ; index++) yield chunk({ tool_calls: [{ index, id: `c${index}`, function: { name: 'f' } }] })
    },
    ...tooLarge,
  },
}

t.test('what a provider does wrong becomes one code, and none of its words get out', async (t) => {
  const fake = await startFakeUpstream()
  const served = new Set<string>()
  for (const [name, wanted] of Object.entries(cases)) {
    const { limits = {} } = wanted
    const upstream = openaiAt(fake.url, { apiKey, ...limits })
    const { signal } = new AbortController()
    let steps = ''
    const index = fake.calls.length
    fake.answer(async function* (call) {
      for await (const step of wanted.script(call)) {
        if (steps.length < 10_000)
          steps += step instanceof Uint8Array ? Buffer.from(step).toString('hex') : JSON.stringify(step)
        yield step
      }
      steps += ' FIN'
    })
    const seen = await collect(upstream, signal)
    const problem = seen.error
    if (!(problem instanceof Problem)) {
      t.fail(`${name}: ${inspect(problem)}`)
      continue
    }
    t.equal(problem.code, wanted.code, `${name}: code`)
    t.equal(problem.retryable, wanted.retryable, `${name}: retryable`)
    if (wanted.detail !== undefined) t.equal(problem.message, wanted.detail, `${name}: detail`)
    if (wanted.text !== undefined) t.equal(seen.text, wanted.text, `${name}: the text before it is kept`)
    t.equal(problem.retryAfterSeconds, wanted.retryAfterSeconds, `${name}: Retry-After`)
    t.notMatch(inspect(problem, { depth: 10, showHidden: true }), /MARKER/, `${name}: none of the provider's words`)
    t.equal(getEventListeners(signal, 'abort').length, 0, `${name}: no listener stays`)
    if (wanted.limits !== undefined) await (await fake.call(index)).aborted
    await upstream.close()
    await fake.drained()
    const way = `${steps} ${JSON.stringify(limits)}`
    t.notOk(served.has(way), `${name} is another way to fail than those before it`)
    served.add(way)
  }
  t.ok(served.size >= 120, `${served.size} ways to fail`)
  await fake.close()
})

t.test('the error shapes of the scripted provider are all errors', async (t) => {
  const fake = await startFakeUpstream()
  const upstream = openaiAt(fake.url)
  for (const [shape, text] of Object.entries(errorShapes)) {
    fake.answer(afterWords(text))
    t.match((await collect(upstream)).error, { code: 'upstream_unavailable' }, shape)
  }
  await upstream.close()
  await fake.close()
})

t.test('the request is what the dialect asks for, with the key only where there is one', async (t) => {
  const fake = await startFakeUpstream()
  const anonymous = openaiAt(`${fake.url}/`)
  const keyed = openaiAt(fake.url, { apiKey })
  await collect(anonymous)
  await collect(keyed)
  const [first, second] = [await fake.call(0), await fake.call(1)]
  t.equal(first.method, 'POST')
  t.equal(first.path, '/v1/chat/completions')
  t.equal(first.headers.authorization, undefined)
  t.equal(first.headers['content-type'], 'application/json')
  t.strictSame(first.body, { ...request, stream: true, stream_options: { include_usage: true } })
  t.equal(second.headers.authorization, `Bearer ${apiKey}`)
  const versioned = openaiAt(`${fake.url}/deployments/x?api-version=2026-01-01`)
  await collect(versioned)
  t.equal((await fake.call(2)).path, '/v1/deployments/x/chat/completions?api-version=2026-01-01')
  await versioned.close()
  await anonymous.close()
  await keyed.close()
  await fake.close()
})

t.test('a provider that cannot be reached is unavailable, whatever the reason', async (t) => {
  const closedServer = createServer()
  const port = await new Promise<number>((resolve) => {
    closedServer.listen(0, '127.0.0.1', () => {
      const address = closedServer.address()
      closedServer.close(() => resolve(typeof address === 'object' && address !== null ? address.port : 0))
    })
  })
  const fake = await startFakeUpstream()
  for (const [why, url] of [
    ['refused', `http://127.0.0.1:${port}/v1`],
    ['no such host', 'http://does-not-exist.invalid/v1'],
    ['no TLS', fake.url.replace('http:', 'https:')],
  ] as const) {
    const upstream = openaiAt(url, { apiKey })
    const { error: problem } = await collect(upstream)
    t.match(problem, { code: 'upstream_unavailable', retryable: true, message: 'The provider cannot be reached.' }, why)
    await upstream.close()
  }
  const badKey = openaiAt(fake.url, { apiKey: 'sk-MARKER\nKEY' })
  const { error: refused } = await collect(badKey)
  t.match(refused, { code: 'upstream_rejected', retryable: false }, 'a key that cannot be a header')
  t.notMatch(inspect(refused, { depth: 10, showHidden: true }), /MARKER/)
  await badKey.close()
  await fake.close()
})

t.test('a connection that is never made counts as no first byte', async (t) => {
  const never = new Agent({ connect: () => undefined })
  const upstream = openaiAt('http://127.0.0.1:9/v1', { dispatcher: never, firstByteMs: 20 })
  t.match((await collect(upstream)).error, { code: 'upstream_timeout' })
  const controller = new AbortController()
  const patient = openaiAt('http://127.0.0.1:9/v1', { dispatcher: never })
  const reading = collect(patient, controller.signal)
  controller.abort(new Error('enough'))
  t.match((await reading).error, { message: 'enough' }, 'and can be aborted')
  await never.destroy()
})

t.test('a reply with a finish reason is whole when only silence or a reset follows', async (t) => {
  const fake = await startFakeUpstream()
  // The grace for the usage is never longer than the idle limit.
  const upstream = openaiAt(fake.url, { idleMs: 200 })
  for (const [name, after] of Object.entries({
    silence: async function* () {
      yield await forever()
    },
    'comments for ever': async function* () {
      for (;;) yield ': PROCESSING\n\n'
    },
    'a reset': () => [reset()],
    'an end': () => [],
  } satisfies Record<string, Script>)) {
    fake.answer(async function* (call) {
      yield chunk({ content: 'all of it' })
      yield chunk({}, 'stop')
      yield* (after as Script)(call)
    })
    const seen = await collect(upstream)
    t.equal(seen.error, undefined, name)
    t.equal(seen.text, 'all of it', name)
    t.equal(seen.finish, 'stop', name)
  }
  await upstream.close()
  await fake.drained()
  await fake.close()
})

t.test('the usage that comes late after the finish reason is still read', async (t) => {
  const gate = createGate()
  const fake = await startFakeUpstream({
    script: async function* () {
      yield chunk({ content: 'x' }, 'stop')
      await gate.opened
      yield usageChunk(8, 1)
      yield doneMarker
    },
  })
  const upstream = openaiAt(fake.url)
  const types: string[] = []
  for await (const event of upstream.stream(request, new AbortController().signal)) {
    types.push(event.type)
    if (event.type === 'finish') gate.open()
  }
  t.strictSame(types, ['response', 'text', 'finish', 'usage'])
  await upstream.close()
  await fake.close()
})

t.test('after [DONE] nothing is waited for', async (t) => {
  const fake = await startFakeUpstream({
    script: async function* () {
      yield* say({ text: 'short' })
      await forever()
    },
  })
  const upstream = openaiAt(fake.url)
  const seen = await collect(upstream)
  t.equal(seen.text, 'short')
  t.equal(seen.error, undefined)
  await (await fake.call(0)).aborted
  await fake.drained()
  await upstream.close()
  await fake.close()
})

t.test('an abort closes the socket at once and throws its reason, wherever the reply stands', async (t) => {
  const fake = await startFakeUpstream()
  const stages: Readonly<Record<string, Script>> = {
    'before the status': async function* () {
      yield await forever()
    },
    'before the first byte': async function* () {
      yield head(200)
      await forever()
    },
    'in the body of a refusal': async function* () {
      yield head(429, { 'content-type': 'application/json' })
      yield '{"error":'
      await forever()
    },
  }
  for (const [name, script] of Object.entries(stages)) {
    const upstream = openaiAt(fake.url)
    const index = fake.calls.length
    fake.answer(script)
    const controller = new AbortController()
    const reading = collect(upstream, controller.signal)
    const call = await fake.call(index)
    const reason = { stop: name }
    controller.abort(reason)
    t.equal((await reading).error, reason, name)
    await call.aborted
    await fake.drained()
    t.equal(getEventListeners(controller.signal, 'abort').length, 0, name)
    await upstream.close()
  }

  fake.answer(async function* () {
    yield* begin({ text: 'two words' })
    await forever()
  })
  for (const waits of [true, false]) {
    const upstream = openaiAt(fake.url)
    const index = fake.calls.length
    const controller = new AbortController()
    const seen: string[] = []
    await t.rejects(
      async () => {
        for await (const event of upstream.stream(request, controller.signal)) {
          if (event.type === 'text') seen.push(event.text)
          if (seen.length === (waits ? 2 : 1)) controller.abort(new Error('stopped'))
        }
      },
      { message: 'stopped' },
    )
    t.strictSame(seen.join(''), waits ? 'two words' : 'two', 'nothing comes after the abort')
    await (await fake.call(index)).aborted
    await fake.drained()
    await upstream.close()
  }

  const upstream = openaiAt(fake.url)
  const before = fake.calls.length
  const { error } = await collect(upstream, AbortSignal.abort('never'))
  t.equal(error, 'never')
  t.equal(fake.calls.length, before, 'a request that was aborted before it began is not sent')
  await upstream.close()
  await fake.close()
})

t.test('a consumer that leaves the iteration closes the socket', async (t) => {
  const fake = await startFakeUpstream({
    script: async function* () {
      yield* begin({ text: 'two words' })
      await forever()
    },
  })
  const upstream = openaiAt(fake.url)
  const { signal } = new AbortController()
  for await (const event of upstream.stream(request, signal)) {
    if (event.type === 'text') break
  }
  await (await fake.call(0)).aborted
  await fake.drained()
  t.equal(getEventListeners(signal, 'abort').length, 0)
  await upstream.close()
  await fake.close()
})

t.test('closing the upstream cuts the streams that are open, and takes no more', async (t) => {
  const fake = await startFakeUpstream({
    script: async function* () {
      yield* begin({ text: 'two words' })
      await forever()
    },
  })
  const upstream = openaiAt(fake.url)
  await t.rejects(
    async () => {
      for await (const event of upstream.stream(request, new AbortController().signal)) {
        if (event.type === 'text' && event.text === ' words') void upstream.close()
      }
    },
    { code: 'upstream_unavailable', message: 'The reply broke off.' },
  )
  await fake.drained()
  t.match((await collect(upstream)).error, { code: 'upstream_unavailable' })
  t.equal(fake.calls.length, 1)
  await fake.close()
})

t.test('a socket whose reply came to its own end serves the next one', async (t) => {
  const fake = await startFakeUpstream({ script: afterWords(chunk({}, 'stop')) })
  const upstream = openaiAt(fake.url)
  for (let round = 0; round < 6; round++) t.equal((await collect(upstream)).error, undefined)
  // Two and not one: the next request is there before undici has put the first socket back.
  t.ok(fake.connectionCount <= 2, `${fake.connectionCount} connections`)
  await upstream.close()
  await fake.drained()
  await fake.close()
})

t.test('no ending leaves a timer behind', async (t) => {
  const fake = await startFakeUpstream()
  const timers = () => process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length
  const before = timers()
  const scripts: Script[] = [
    () => say(),
    afterWords(),
    afterWords(reset()),
    answered(429),
    answered(500),
    async function* () {
      yield chunk({ content: 'x' }, 'stop')
      await forever()
    },
  ]
  for (const script of scripts) {
    fake.answer(script)
    const upstream = openaiAt(fake.url, { idleMs: 50 })
    await collect(upstream)
    await upstream.close()
    await fake.drained()
  }
  t.equal(timers(), before)
  // The twin: a stream that is open does hold timers, so that the count above means something.
  fake.answer(async function* () {
    yield* begin({ text: 'x' })
    await forever()
  })
  const upstream = openaiAt(fake.url)
  for await (const event of upstream.stream(request, new AbortController().signal)) {
    if (event.type !== 'text') continue
    t.equal(timers(), before + 2)
    break
  }
  t.equal(timers(), before)
  await upstream.close()
  await fake.close()
})
