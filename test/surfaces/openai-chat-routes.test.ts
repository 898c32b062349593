/**
 * Chat completions over HTTP: what is asked of the model, where the conversation is kept, who may wait for whom, and what
 * becomes of a run that nobody watches.
 */
import { randomUUID } from 'node:crypto'
import { test } from 'tap'
import { begin, createGate, forever, say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { createClient } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'

const path = '/v1/chat/completions'
const user = (content: string) => ({ role: 'user', content })
const hello = { model: 'balanced', messages: [user('Hello')] }
const retried = { 'x-stainless-retry-count': '1' }

const [kind = 'pglite'] = databases().slice(-1)

/** A stream as its bytes. */
async function openStream(url: string, body: object, headers: Readonly<Record<string, string>>) {
  const leaving = new AbortController()
  const response = await fetch(url, {
    method: 'POST',
    headers: { ...headers, 'content-type': 'application/json' },
    body: JSON.stringify(body),
    signal: leaving.signal,
  })
  let text = ''
  async function read(): Promise<'clean' | 'cut'> {
    const decoder = new TextDecoder()
    try {
      for await (const bytes of response.body ?? []) text += decoder.decode(bytes, { stream: true })
      return 'clean'
    } catch {
      return 'cut' // left, or broken
    }
  }
  const ended = read()
  return { headers: response.headers, text: () => text, ended, close: () => leaving.abort() }
}

test(`on ${kind}`, async (t) => {
  const upstream = await startFakeUpstream()
  t.teardown(() => upstream.close())
  const gateway = await startGateway(t, {
    database: kind,
    env: {
      OPENAI_BASE_URL: upstream.url,
      OPENAI_API_KEY: 'x',
      MODEL_BALANCED: 'openai:fake-1',
      UPSTREAM_RETRIES: '0',
      SESSION_MAX_MESSAGES: '2',
    },
    file: { budgets: { visitor_day_tokens: 10_000_000 } },
    openai: { lingerMs: 50 },
  })
  const client = createClient(gateway.url)
  await client.get('/v1/models')
  const ask = (body: object, headers: Record<string, string> = {}) => client.post(path, body, headers)
  const open = (body: object, headers: Record<string, string> = {}) =>
    openStream(`${gateway.url}${path}`, { ...body, stream: true }, { ...client.identity, ...headers })
  const lastBody = () => upstream.calls.at(-1)?.body as Readonly<Record<string, unknown>> | undefined
  const statusOf = async (runId: string | null) => (await client.get(`/api/v1/runs/${runId}`)).body.status

  /** Asked for, and not watched: whoever watches a run keeps it. */
  async function endOf(runId: string | null): Promise<string> {
    for (;;) {
      const status = await statusOf(runId)
      if (status !== 'queued' && status !== 'running') return status
    }
  }

  const viewers = async () => /^verbatim_viewers (\d+)$/m.exec((await client.get('/metrics')).body)?.[1]

  /** Until the gateway has noticed: an official client waits a third of a second at least before it repeats. */
  async function leave(stream: { close(): void }): Promise<void> {
    const before = Number(await viewers())
    stream.close()
    while (Number(await viewers()) >= before);
  }

  /** A run that says something and waits, and nobody else's. */
  async function beginOne(body: object, headers: Record<string, string> = {}) {
    const gate = createGate()
    upstream.answer(async function* () {
      yield* begin({ text: 'Some ' })
      await gate.opened
      yield* say({ text: 'more.' })
    })
    const count = upstream.calls.length
    const stream = await open(body, headers)
    const call = await upstream.call(count)
    return { stream, call, finish: gate.open, runId: stream.headers.get('x-run-id') }
  }

  await t.test(
    'what the request says of the reply is said to the model, within the limits that there are',
    async (t) => {
      upstream.answer(() => say())
      const format = { type: 'json_schema', json_schema: { name: 'a', schema: { type: 'object' }, strict: true } }
      const tool = { type: 'function', function: { name: 'look', parameters: { type: 'object' } } }
      const settings = {
        temperature: 0.5,
        top_p: 0.9,
        frequency_penalty: 0.1,
        presence_penalty: -0.1,
        stop: ['END'],
        response_format: format,
        parallel_tool_calls: false,
        tool_choice: 'auto',
      }
      const messages = [
        { role: 'system', content: 'Be kind.' },
        { role: 'developer', content: 'Be short.' },
        user('Hello'),
      ]
      const free = { user: 'x', seed: 7, store: true, service_tier: 'auto', logprobs: false, n: 1, chat_id: 'other' }
      const asked = {
        ...hello,
        ...settings,
        ...free,
        messages,
        tools: [tool],
        max_tokens: 50,
        reasoning_effort: 'xhigh',
      }
      const { status } = await ask(asked)
      t.equal(status, 200)
      t.match(lastBody(), { ...settings, max_tokens: 50, reasoning_effort: 'high' })
      t.strictSame(lastBody()?.messages, [{ role: 'system', content: 'Be kind.\n\nBe short.' }, user('Hello')])
      await ask({ ...hello, max_completion_tokens: 1_000_000 })
      t.equal(lastBody()?.max_tokens, 4096, 'no more than the budget has been asked for')
    },
  )

  await t.test('what cannot be said to any model is refused with its field, and not worth a repeat', async (t) => {
    const count = upstream.calls.length
    const content = [
      { type: 'text', text: 'a' },
      { type: 'image_url', image_url: { url: 'https://x.test/a.png' } },
    ]
    const refused: readonly (readonly [param: string | null, body: object])[] = [
      ['n', { n: 2 }],
      ['logprobs', { logprobs: true }],
      ['logit_bias', { logit_bias: { 1: 1 } }],
      ['modalities', { modalities: ['text', 'audio'] }],
      ['stop', { stop: ['a', 'b', 'c', 'd', 'e'] }],
      ['temperature', { temperature: 3 }],
      ['reasoning_effort', { reasoning_effort: 'heroic' }],
      ['model', { model: 'nobody:x' }],
      ['response_format', { response_format: { type: 'xml' } }],
      ['tools.0', { tools: [{ type: 'custom', custom: { name: 'a' } }] }],
      ['tools.0.function.name', { tools: [{ type: 'function', function: { name: 'a b' } }] }],
      ['messages.0.content.1', { messages: [{ role: 'user', content }] }],
      ['messages.0.role', { messages: [{ role: 'function', name: 'a', content: 'b' }] }],
      ['messages.1', { messages: [user('a'), { role: 'assistant', content: 'b' }] }],
      ['messages.1', { messages: [user('a'), { role: 'tool', tool_call_id: 'x', content: 'b' }] }],
      ['messages', { messages: [{ role: 'system', content: 'a' }] }],
      ['metadata.session_id', { metadata: { session_id: '' } }],
      ['messages', { messages: 'Hello' }],
    ]
    for (const [param, body] of refused) {
      const { status, body: answer, headers } = await ask({ ...hello, ...body })
      t.match(
        { status, error: answer.error },
        { status: 400, error: { type: 'invalid_request_error', param } },
        String(param),
      )
      t.equal(headers.get('x-should-retry'), 'false')
      t.match(headers.get('content-type'), /^application\/json/)
    }
    t.match((await client.get('/v1/nothing')).body, { error: { code: 'not_found' } })
    t.equal(upstream.calls.length, count)
  })

  await t.test('a conversation without a session makes one, all of which the model is told', async (t) => {
    upstream.answer(() => say())
    const messages = Array.from({ length: 9 }, (_, index) =>
      index % 2 === 0 ? user(`Question ${index}`) : { role: 'assistant', content: `Answer ${index}` },
    )
    const { headers } = await ask({ ...hello, messages })
    t.strictSame(lastBody()?.messages, messages, 'more than SESSION_MAX_MESSAGES')
    const id = headers.get('x-session-id') as string
    const stored = await client.messages(id)
    t.strictSame(
      stored.slice(0, 9).map(({ role, content }: { role: string; content: string }) => ({ role, content })),
      messages,
    )
    const { body } = await client.get(`/api/v1/sessions/${id}/export`)
    t.match(JSON.stringify(body), /Answer 7/)
    await client.post('/api/v1/chat/message', { session_id: id, message: 'And?' })
    t.strictSame(lastBody()?.messages, [user('And?')], 'whoever did not bring it gets what others get')
  })

  await t.test('a session that is named is gone on with, whatever else the client remembers', async (t) => {
    upstream.answer(() => say({ text: 'Yes.' }))
    const id = randomUUID()
    for (const [header, metadata] of [
      [{ 'x-session-id': id }, {}],
      [{}, { session_id: id, place: 'here' }],
    ]) {
      const messages = [user('Forged'), { role: 'assistant', content: 'Forged' }, user('Hello')]
      const { headers } = await ask({ ...hello, ...(metadata?.place && { messages }), metadata }, header as never)
      t.equal(headers.get('x-session-id'), id)
    }
    t.strictSame(lastBody()?.messages, [user('Hello'), { role: 'assistant', content: 'Yes.' }, user('Hello')])
    const stored = await client.messages(id)
    t.strictSame(stored.map(({ metadata }: { metadata: unknown }) => metadata)[2], { place: 'here' })
    const first = await ask({ ...hello, metadata: { session_id: 'a chat of mine' } })
    const second = await ask({ ...hello, metadata: { session_id: 'a chat of mine' } })
    t.equal(first.headers.get('x-session-id'), second.headers.get('x-session-id'), 'by any name')
    t.equal((await ask({ ...hello, metadata: { session_id: 'a' } }, { 'x-session-id': 'b' })).status, 400)
  })

  await t.test('a session that is busy says so, or lets the message wait', async (t) => {
    const session = { 'x-session-id': randomUUID() }
    const { stream, finish } = await beginOne(hello, session)
    const busy = await ask(hello, session)
    t.match(busy, { status: 409, body: { error: { type: 'conflict_error', code: 'session_busy' } } })
    t.equal(busy.headers.get('x-should-retry'), null, 'it passes')
    const waiting = ask({ ...hello, messages: [user('Next')] }, { ...session, 'x-on-busy': 'queue' })
    finish()
    t.equal(await stream.ended, 'clean')
    t.match((await waiting).body.choices[0].message.content, 'Some more.')
    t.equal((await ask(hello, { 'x-on-busy': 'perhaps' })).status, 400)
  })

  await t.test('who leaves without a key ends the run, as a stream, as a whole and in the queue', async (t) => {
    const session = { 'x-session-id': randomUUID() }
    const streamed = await beginOne(hello, session)
    const queued = await open(hello, { ...session, 'x-on-busy': 'queue' })
    queued.close()
    t.equal(await endOf(queued.headers.get('x-run-id')), 'stopped')
    streamed.stream.close()
    t.ok((await streamed.call.closed).aborted)
    t.equal(await endOf(streamed.runId), 'stopped')

    upstream.answer(async function* () {
      yield* begin({ text: 'Some ' })
      await forever()
    })
    const count = upstream.calls.length
    const leaving = new AbortController()
    const whole = fetch(`${gateway.url}${path}`, {
      method: 'POST',
      headers: { ...client.identity, 'content-type': 'application/json' },
      body: JSON.stringify(hello),
      signal: leaving.signal,
    })
    const call = await upstream.call(count)
    leaving.abort()
    await t.rejects(whole)
    t.ok((await call.closed).aborted)
  })

  await t.test('who comes back in time keeps the run; with a key or the header nobody has to', async (t) => {
    const body = { ...hello, messages: [user('Come back')] }
    const kept = await beginOne(body)
    const sample = await beginOne(body, retried)
    t.not(sample.runId, kept.runId, 'a repeat is not shown what somebody else is reading')
    await leave(kept.stream)
    const again = await open(body, retried)
    t.equal(again.headers.get('x-run-id'), kept.runId, 'the repeat of an official client is the same run')
    const [keyed, asked] = [
      await beginOne(hello, { 'idempotency-key': randomUUID() }),
      await beginOne(hello, { 'x-on-disconnect': 'continue' }),
    ]
    for (const { stream } of [keyed, asked]) stream.close()
    // One that is left later than these: when it has ended, their time is over too.
    const control = await beginOne(hello)
    control.stream.close()
    await control.call.closed
    for (const { runId } of [kept, keyed, asked]) t.equal(await statusOf(runId), 'running')
    for (const { finish } of [kept, keyed, asked, sample]) finish()
    t.equal(await again.ended, 'clean')
    t.match(again.text(), /\[DONE\]\n\n$/)
  })

  await t.test('what a run has come to is not worth a repeat', async (t) => {
    upstream.answer(() => [])
    const failed = await ask(hello)
    t.match(failed, { status: 502, body: { error: { code: 'upstream_unavailable', type: 'server_error' } } })
    t.equal(failed.headers.get('x-should-retry'), 'false')
    t.equal(await statusOf(failed.headers.get('x-run-id')), 'failed', 'and which one it was can be looked up')
  })

  await t.test('a reply that somebody stops ends like one that is whole', async (t) => {
    const { stream, runId } = await beginOne(hello)
    await client.post(`/api/v1/runs/${runId}/stop`)
    t.equal(await stream.ended, 'clean')
    t.match(stream.text(), /"finish_reason":"stop"\}\]\}\n\ndata: \[DONE\]\n\n$/)
  })
})
