/**
 * Everything a provider and its network can do wrong, over real HTTP: which code it becomes, that nothing the provider
 * said gets out with it, and that no socket, timer or listener stays behind.
 */
import { getEventListeners } from 'node:events'
import { createServer } from 'node:net'
import { inspect } from 'node:util'
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
const error = (members: object) => ({ error: { message: `${quoted} ${apiKey}`, ...members } })

interface Case {
  readonly script: Script
  readonly code: ErrorCode
  readonly retryable: boolean
  /** What has to come before the error. */
  readonly text?: string
  readonly detail?: string
  readonly retryAfterSeconds?: number
}

const rejected = { code: 'upstream_rejected', retryable: false } as const
const unavailable = { code: 'upstream_unavailable', retryable: true } as const

/** A reply of two words, and then `next`. */
function afterWords(...next: readonly (string | ReturnType<typeof reset>)[]): Script {
  return async function* () {
    yield* begin({ text: 'two words' })
    yield* next
  }
}

const answered =
  (status: number, members: object = {}): Script =>
  () =>
    refuse(status, error(members))

const cases: Readonly<Record<string, Case>> = {
  '400': { script: answered(400), ...rejected, detail: 'The provider answered 400.' },
  '401': { script: answered(401), ...rejected, detail: 'The provider answered 401.' },
  '402': { script: answered(402), ...rejected },
  '403': { script: answered(403), ...rejected },
  '404': { script: answered(404), ...rejected },
  '413': { script: answered(413), ...rejected },
  '422': { script: answered(422), ...rejected },
  '404 with a page': { script: () => refuse(404, page), ...rejected },
  '408': { script: answered(408), ...unavailable },
  '409': { script: answered(409), ...unavailable },
  '429': { script: answered(429, { code: 'rate_limit_exceeded' }), ...unavailable },
  '429 with Retry-After': {
    script: () => refuse(429, error({}), { 'retry-after': '7' }),
    ...unavailable,
    retryAfterSeconds: 7,
  },
  '429 with a Retry-After of a day': {
    script: () => refuse(429, error({}), { 'retry-after': '86400' }),
    ...unavailable,
    retryAfterSeconds: 3600,
  },
  '429 with a page': { script: () => refuse(429, page), ...unavailable },
  '429 with a longer body than is read': {
    script: () => refuse(429, `${quoted} `.repeat(10_000)),
    ...unavailable,
  },
  '429 for an empty account': { script: answered(429, { code: 'insufficient_quota' }), ...rejected },
  '429 for an empty account, by type': { script: answered(429, { type: 'insufficient_quota' }), ...rejected },
  '429 for billing': { script: answered(429, { code: 'billing_hard_limit_reached' }), ...rejected },
  '500': { script: answered(500), ...unavailable },
  '502 with a page': { script: () => refuse(502, page), ...unavailable },
  '503': { script: () => refuse(503, error({}), { 'retry-after': '2' }), ...unavailable, retryAfterSeconds: 2 },
  '529': { script: answered(529), ...unavailable },
  'a redirect': { script: () => refuse(307, '', { location: 'http://127.0.0.1:1/v1' }), ...rejected },
  '200 with an error in JSON': { script: () => refuse(200, error({ type: 'invalid_request_error' })), ...rejected },
  '200 with an error in JSON over many lines': {
    script: () => refuse(200, JSON.stringify(error({ code: 503 }), null, 2)),
    ...unavailable,
  },
  '200 with a page': { script: () => refuse(200, page), ...unavailable },
  '200 with other JSON': { script: () => refuse(200, { choices: [{ message: { content: quoted } }] }), ...unavailable },
  '200 and nothing': { script: () => [head(200)], ...unavailable, detail: 'The reply broke off.' },
  '204': { script: () => [head(204)], ...unavailable },
  'an error object beside choices': {
    script: afterWords(sse({ choices: [{ index: 0, delta: { content: '!' } }], ...error({ code: 502 }) })),
    ...unavailable,
    text: 'two words!',
  },
  'an error object with a status of 400': {
    script: afterWords(sse({ choices: [], ...error({ code: 400 }) }), doneMarker),
    ...rejected,
    text: 'two words',
  },
  'an error object with a status in a string': { script: afterWords(sse(error({ code: '401' }))), ...rejected },
  'an error object for a rate': { script: afterWords(sse(error({ code: 'rate_limit_exceeded' }))), ...unavailable },
  'an error object for an empty account': {
    script: afterWords(sse(error({ code: 429, type: 'insufficient_quota' }))),
    ...rejected,
  },
  'an error object of a length': { script: afterWords(sse(error({ code: 'context_length_exceeded' }))), ...rejected },
  'an error that is a text': { script: afterWords(sse({ error: quoted })), ...unavailable },
  'an error in the shape of vLLM': {
    script: afterWords(sse({ object: 'error', message: quoted, type: 'BadRequestError', code: 400 })),
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
  'an error field': { script: afterWords(`error: ${JSON.stringify(error({ code: 400 }))}\n\n`), ...rejected },
  'an error field that is no JSON': { script: afterWords(`error: ${quoted}\n\n`), ...unavailable },
  'a bare JSON line': {
    script: afterWords(`${JSON.stringify(error({ code: 400 }))}\n`),
    ...rejected,
    text: 'two words',
  },
  'a bare JSON line in two writes': { script: afterWords('{"error":{"co', 'de":400}}\n'), ...rejected },
  'a bare JSON line without an end': { script: afterWords(JSON.stringify(error({ code: 400 }))), ...rejected },
  'a page in mid-stream': { script: afterWords(page), ...unavailable, text: 'two words' },
  'a corrupt chunk': {
    script: afterWords(`data: {"choices":[{"delta":{"content":"${quoted}\n\n`, chunk({}, 'stop'), doneMarker),
    ...unavailable,
    text: 'two words',
  },
  'a chunk that is a number': { script: afterWords('data: 5\n\n'), ...unavailable },
  'bytes that are no text': { script: () => [Buffer.from([0xff, 0xfe, 0x00, 0x01, 0x80])], ...unavailable },
  'an end without a marker': {
    script: afterWords(),
    ...unavailable,
    text: 'two words',
    detail: 'The reply broke off.',
  },
  'a reset': { script: afterWords(reset()), ...unavailable, text: 'two words', detail: 'The reply broke off.' },
  'a reset before the status': {
    script: () => [reset()],
    ...unavailable,
    detail: 'The provider cannot be reached.',
  },
  'a marker and nothing before it': { script: () => [doneMarker], ...unavailable },
}

t.test('what a provider does wrong becomes one code, and none of its words get out', async (t) => {
  const fake = await startFakeUpstream()
  for (const [name, wanted] of Object.entries(cases)) {
    const upstream = openaiAt(fake.url, { apiKey })
    const { signal } = new AbortController()
    fake.answer(wanted.script)
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
    await upstream.close()
    await fake.drained()
  }
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

t.test('a provider that takes too long is cut off, and its socket with it', async (t) => {
  const comment = ': PROCESSING\n\n'
  const timeouts: Readonly<Record<string, [script: Script, limits: object, text: string, detail: RegExp]>> = {
    'slow headers': [
      async function* () {
        yield await forever()
      },
      { firstByteMs: 30 },
      '',
      /no first byte within 30 ms/,
    ],
    'no first byte after the status': [
      async function* () {
        yield head(200)
        await forever()
      },
      { firstByteMs: 30 },
      '',
      /no first byte within 30 ms/,
    ],
    'silence after a comment': [
      async function* () {
        yield comment
        await forever()
      },
      { idleMs: 30 },
      '',
      /silent for 30 ms/,
    ],
    'silence in the middle': [
      async function* () {
        yield* begin({ text: 'two words' })
        await forever()
      },
      { idleMs: 200 },
      'two words',
      /silent for 200 ms/,
    ],
    'comments for ever': [
      async function* () {
        for (;;) yield comment
      },
      { totalMs: 60 },
      '',
      /longer than 60 ms/,
    ],
  }
  const fake = await startFakeUpstream()
  for (const [name, [script, limits, text, detail]] of Object.entries(timeouts)) {
    const upstream = openaiAt(fake.url, limits)
    fake.answer(script)
    const index = fake.calls.length
    const { signal } = new AbortController()
    const seen = await collect(upstream, signal)
    t.match(seen.error, { code: 'upstream_timeout', retryable: true }, name)
    t.match(seen.error, { message: detail }, name)
    t.equal(seen.text, text, `${name}: the text before it is kept`)
    t.equal(getEventListeners(signal, 'abort').length, 0, `${name}: no listener stays`)
    await (await fake.call(index)).aborted
    await upstream.close()
    await fake.drained()
  }
  await fake.close()
})

t.test('a refusal whose body does not come is a refusal all the same', async (t) => {
  const fake = await startFakeUpstream({
    script: async function* () {
      yield head(429, { 'content-type': 'application/json' })
      await forever()
    },
  })
  const upstream = openaiAt(fake.url, { idleMs: 30 })
  t.match((await collect(upstream)).error, { code: 'upstream_unavailable', message: 'The provider answered 429.' })
  await fake.drained()
  await upstream.close()
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
