/**
 * Every way a provider can fail, through the whole gateway and over real HTTP: what the stream says, what the whole-reply
 * answer says, what is stored, and that nothing the provider wrote in its refusal gets out.
 */
import { type Test, test } from 'tap'
import {
  begin,
  chunk,
  errorShapes,
  forever,
  head,
  refuse,
  reset,
  type Script,
  sse,
  startFakeUpstream,
} from '../../scripts/fake-upstream.ts'
import { catalogue, type ErrorCode } from '../../src/errors.ts'
import { createClient, isDone, shownText } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'

const apiKey = 'sk-canary-of-the-api-key'
/** In every text that a provider sends beside a reply. */
const canary = 'canary-of-the-provider'
const question = 'canary-of-the-question'
const words = 'So far so good'
const waitMs = 400
const error = (type: string, code?: string | number) => ({ error: { message: `${canary} ${apiKey}`, type, code } })

interface Fault {
  readonly title: string
  readonly script: Script
  readonly code: ErrorCode
  readonly status: 'failed' | 'interrupted'
  /** Where it is not the catalogue's. */
  readonly retryable?: boolean
  /** What was said before the fault and is kept; '' when nothing was. */
  readonly kept?: string
}

const refusals = [400, 401, 402, 403, 404, 422].map(
  (status): Fault => ({
    title: `refused with ${status}`,
    script: () => refuse(status, error('refused')),
    code: 'upstream_rejected',
    status: 'failed',
  }),
)

const passing = [408, 429, 500, 502, 503, 529].map(
  (status): Fault => ({
    title: `refused with ${status}`,
    // Longer than a chat waits, so that it is asked once.
    script: () => refuse(status, error('overloaded'), { 'retry-after': '60' }),
    code: 'upstream_unavailable',
    status: 'failed',
  }),
)

const faults: readonly Fault[] = [
  ...refusals,
  ...passing,
  {
    title: 'refused with 429 because the account is empty',
    script: () => refuse(429, error('insufficient_quota', 'insufficient_quota')),
    code: 'upstream_rejected',
    status: 'failed',
  },
  {
    title: 'refused with a page',
    script: () => refuse(502, `<html>${canary} ${apiKey}</html>`),
    code: 'upstream_unavailable',
    status: 'failed',
  },
  {
    title: 'a redirect',
    script: () => refuse(307, '', { location: `http://127.0.0.1:1/${canary}` }),
    code: 'upstream_rejected',
    status: 'failed',
  },
  { title: 'no first byte', script: () => stall(), code: 'upstream_timeout', status: 'failed' },
  { title: 'a status and then nothing', script: () => stall(head(200)), code: 'upstream_timeout', status: 'failed' },
  { title: 'an empty reply', script: () => [head(200)], code: 'upstream_unavailable', status: 'failed' },
  { title: 'reset before the status', script: () => [reset()], code: 'upstream_unavailable', status: 'failed' },
  {
    title: 'a page with status 200',
    script: () => [`<!DOCTYPE html>\n<html><body>${canary}</body></html>\n`],
    code: 'upstream_unavailable',
    status: 'failed',
  },
  {
    title: 'bytes that are no text',
    script: () => [Uint8Array.from({ length: 5000 }, (_, index) => (index * 7919) % 256)],
    code: 'upstream_unavailable',
    status: 'failed',
  },
  {
    title: 'silence in mid-stream',
    script: saying(forever),
    code: 'upstream_timeout',
    status: 'interrupted',
    kept: words,
  },
  {
    title: 'a clean end without an end mark',
    script: saying(),
    code: 'upstream_unavailable',
    status: 'interrupted',
    kept: words,
  },
  {
    title: 'reset in mid-stream',
    script: saying(reset()),
    code: 'upstream_unavailable',
    status: 'interrupted',
    kept: words,
  },
  {
    title: 'a rejection in mid-stream',
    script: saying(sse(error('invalid_request_error'), 'error')),
    code: 'upstream_rejected',
    status: 'failed',
    kept: words,
  },
  {
    title: 'an overload in mid-stream',
    script: saying(sse(error('server_error', 503), 'error')),
    code: 'upstream_unavailable',
    status: 'interrupted',
    kept: words,
  },
  {
    title: 'an error line that is no event',
    script: saying(errorShapes.bare.replace('broken', canary)),
    code: 'upstream_unavailable',
    status: 'interrupted',
    kept: words,
  },
  {
    title: 'an endless reply',
    script: async function* () {
      for (;;) yield chunk({ content: 'x'.repeat(100_000) })
    },
    code: 'too_large',
    status: 'interrupted',
    kept: 'x'.repeat(2_000_000),
  },
]

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const upstream = await startFakeUpstream()
    t.teardown(() => upstream.close())
    const lines: string[] = []
    const gateway = await startGateway(t, {
      database,
      logStream: { write: (line) => lines.push(line) },
      env: {
        OPENAI_BASE_URL: upstream.url,
        OPENAI_API_KEY: apiKey,
        UPSTREAM_FIRST_BYTE_MS: String(waitMs),
        UPSTREAM_IDLE_MS: String(waitMs),
        LOG_LEVEL: 'trace',
        FRAME_MS: '5',
      },
    })
    const client = createClient(gateway.url)
    await client.get('/api/v1/sessions')
    const texts: string[] = []

    async function check(t: Test, fault: Fault) {
      const { code, status, kept = '', retryable = catalogue[code].retryable } = fault
      upstream.answer(fault.script)
      const stream = await client.send({ message: question })
      t.equal(stream.status, 200, 'the message was accepted before the provider was asked')
      t.equal(await stream.ended, 'clean')
      const done = stream.received.at(-1)
      t.match(done, { event: 'done', data: { status, error: { code, retryable, message: String } } })
      t.equal(stream.received.filter(isDone).length, 1)
      t.ok(shownText(stream.received) === kept, `shown: ${shownText(stream.received).slice(0, 50)}`)

      const run = (await client.get(`/api/v1/runs/${stream.headers.get('x-run-id')}`)).body
      t.match(run, { status, error: { code, retryable } })
      t.strictSame(run.error, done?.data.error, 'the stored error is the one that was sent')
      t.match((await client.get(`/api/v1/sessions/${run.session_id}`)).body, { status: 'failed', active_run_id: null })
      const [asked, reply] = await client.messages(run.session_id)
      t.match(asked, { content: question, status: 'completed' })
      t.match(reply, { status, error: { code } })
      t.ok(reply.content === kept, 'what was said is kept')
      t.equal(reply.parts.length, kept === '' ? 0 : 1)

      const whole = await client.post('/api/v1/chat/message', { message: question })
      if (kept === '') {
        t.match(whole, { status: catalogue[code].status, body: { code, retryable, run_id: String } })
        t.match(whole.headers.get('content-type'), /^application\/problem\+json/)
        t.equal((await client.get(`/api/v1/runs/${whole.body.run_id}`)).body.status, status)
      } else {
        t.match(whole, { status: 200, body: { run: { status, error: { code } }, message: { status } } })
        t.ok(whole.body.message.content === kept)
      }
      texts.push(stream.text(), JSON.stringify([run, reply.error, whole.body]).replaceAll(question, ''))
    }

    for (const fault of faults) await t.test(fault.title, (t) => check(t, fault))

    await t.test('nobody listens where the provider should be', async (t) => {
      await upstream.close()
      await check(t, { title: '', script: () => [], code: 'upstream_unavailable', status: 'failed' })
    })

    await t.test(
      'nothing that the provider wrote, no key and no word of the user is in an answer or a log line',
      (t) => {
        t.ok(texts.length > 40)
        t.ok(lines.length > 100)
        for (const secret of [canary, apiKey, '<html', 'Bearer']) {
          t.same(
            [...texts, ...lines].filter((text) => text.includes(secret)).map((text) => text.slice(0, 300)),
            [],
            secret,
          )
        }
        const tokens = [question, words, client.identity['x-visitor-token'] ?? 'no token', 'xxxxx']
        for (const word of tokens) {
          t.same(
            lines.filter((line) => line.includes(word)),
            [],
            word,
          )
        }
        t.same(
          lines.filter((line) => /"level":"(error|fatal)"/.test(line)),
          [],
          'a provider that fails is no fault of the gateway',
        )
        t.end()
      },
    )
  })
}

async function* stall(first?: ReturnType<typeof head>) {
  if (first !== undefined) yield first
  await forever()
}

/** Some words, and then what goes wrong. */
function saying(then?: (() => Promise<never>) | ReturnType<typeof reset>): Script {
  return async function* () {
    yield* begin({ text: words })
    if (typeof then === 'function') await then()
    else if (then !== undefined) yield then
  }
}
