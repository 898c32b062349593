/**
 * The routes of OpenAI Responses, byte by byte: what a stream looks like on the wire, keys, queues, cursors, what is refused,
 * and that a response is the same when the process that made it is long gone.
 */
import { test } from 'tap'
import { begin, createGate, forever, refuse, say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { PgDialect, type SQL, sql } from '../../src/db/drizzle.ts'
import { Problem } from '../../src/errors.ts'
import { createClient, type Received } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { databaseEnv, startGateway } from '../support/gateway.ts'

const url = '/v1/responses'

/** What was said, each unit of a delta by itself. */
const atomsOf = (received: readonly Received[]): string[] =>
  received.flatMap(({ data: { sequence_number, delta, ...rest } }) =>
    delta === undefined
      ? [`${sequence_number} ${JSON.stringify(rest)}`]
      : (delta as string)
          .split('')
          .map((unit, at) => `${sequence_number - delta.length + at + 1} ${rest.type} ${unit}`),
  )

const idOf = (received: readonly Received[]): string => received[0]?.data.response.id

test('the routes', async (t) => {
  const upstream = await startFakeUpstream()
  t.teardown(() => upstream.close())
  const database = databases().at(-1) ?? 'pglite'
  const store = await databaseEnv(t, database)
  const start = () =>
    startGateway(t, { env: { OPENAI_BASE_URL: upstream.url, FRAME_MS: '5', ...store }, openai: { lingerMs: 20 } })
  const gateway = await start()
  const client = createClient(gateway.url)
  await client.post('/api/v1/sessions', {})
  const create = (body: object, headers?: Record<string, string>) => client.post(url, body, headers)
  const stream = (body: object, headers?: Record<string, string>) =>
    client.open('POST', url, { ...body, stream: true }, headers)
  const watch = (id: string, query: string) => client.open('GET', `${url}/${id}?stream=true${query}`)
  upstream.answer(() => say({ text: 'One two three.' }))

  await t.test(
    'a stream has the headers of every stream, an event line for each event, and no last marker',
    async (t) => {
      const { headers, ended, text, received } = await stream({ input: 'Hello' })
      t.equal(await ended, 'clean')
      t.match(headers.get('content-type'), /^text\/event-stream/)
      t.match(headers.get('x-run-id')?.replaceAll('-', ''), idOf(received).slice('resp_'.length))
      const blocks = text().split('\n\n')
      t.equal(blocks.pop(), '')
      for (const [index, block] of blocks.entries()) {
        const [, event, data = ''] = /^event: (\S+)\ndata: (.*)$/.exec(block) ?? []
        t.equal(JSON.parse(data).type, event, `block ${index}`)
      }
      t.match(received.at(-1)?.data, { type: 'response.completed', response: { status: 'completed', store: true } })
    },
  )

  await t.test('the same key is the same response, whole or as a stream, after one call of the model', async (t) => {
    const before = upstream.calls.length
    const key = { 'Idempotency-Key': 'same' }
    const first = await create({ input: 'Hello' }, key)
    const again = await create({ input: 'Hello' }, key)
    const streamed = await stream({ input: 'Hello' }, key)
    t.equal(await streamed.ended, 'clean')
    t.same(again.body, first.body)
    t.equal(first.body.background, true)
    t.equal(idOf(streamed.received), first.body.id)
    t.equal(upstream.calls.length - before, 1)
    t.match(await create({ input: 'Other' }, key), {
      status: 422,
      body: { error: { code: 'idempotency_mismatch', type: 'invalid_request_error' } },
    })
  })

  await t.test('who cannot come back does not keep a run going, and who can does', async (t) => {
    const wishOf = async (body: object, headers?: Record<string, string>) => {
      const answer = await create({ input: 'Hello', ...body }, headers)
      return (await client.get(`/api/v1/runs/${answer.headers.get('x-run-id')}`)).body.on_disconnect
    }
    t.equal(await wishOf({}), 'stop')
    t.equal(await wishOf({ background: true }), 'continue')
    t.equal(await wishOf({}, { 'X-On-Disconnect': 'continue' }), 'continue')
  })

  await t.test('it is stopped a while after the last one has left, and goes on for who comes back', async (t) => {
    const gates = [createGate(), createGate()]
    upstream.answer(async function* () {
      yield* begin({ text: 'Is anybody ' })
      await gates.shift()?.opened
      yield* say({ text: 'there?' })
    })
    const [gate] = gates
    const before = upstream.calls.length
    const first = await stream({ input: 'Hello' })
    await first.until(({ event }) => event === 'response.output_text.delta')
    const id = idOf(first.received)
    const second = await watch(id, `&starting_after=${first.received.at(-1)?.data.sequence_number}`)
    first.close()
    gate?.open()
    t.equal(await second.ended, 'clean')
    t.match((await client.get(`${url}/${id}`)).body, {
      status: 'completed',
      output: [{ content: [{ text: 'Is anybody there?' }] }],
    })

    const left = await stream({ input: 'Hello' })
    await left.until(({ event }) => event === 'response.output_text.delta')
    left.close()
    await (await upstream.call(before + 1)).aborted
    const whole = await client.post(`${url}/${idOf(left.received)}/cancel`)
    t.match(whole.body, { status: 'cancelled', incomplete_details: { reason: 'cancelled' } })
    upstream.answer(() => say({ text: 'One two three.' }))
  })

  await t.test('a response that waits for another one of its conversation is queued, and says so', async (t) => {
    const gate = createGate()
    upstream.answer(async function* () {
      yield* begin({ text: 'First.' })
      await gate.opened
      yield* say({ text: ' Done.' })
    })
    const conversation = { conversation: 'queue' }
    const first = await stream({ input: 'Go', ...conversation })
    await first.until(({ event }) => event === 'response.output_text.delta')
    t.match(await create({ input: 'Too early', ...conversation }), {
      status: 409,
      body: { error: { code: 'session_busy' } },
    })
    const inLine = { 'X-On-Busy': 'queue' }
    const waiting = await stream({ input: 'Then', ...conversation }, inLine)
    await waiting.until(({ event }) => event === 'response.queued')
    const behind = await create({ input: 'Last', ...conversation, background: true }, inLine)
    t.match(behind.body, { status: 'queued', output: [] })
    t.match((await client.post(`${url}/${behind.body.id}/cancel`)).body, {
      status: 'cancelled',
      output: [],
      usage: null,
    })
    gate.open()
    t.equal(await waiting.ended, 'clean')
    t.same(
      waiting.received.slice(0, 4).map(({ event, data }) => [event, data.sequence_number]),
      [
        ['response.created', 0],
        ['response.queued', 1],
        ['response.in_progress', 2],
        ['response.output_item.added', 3],
      ],
    )
    const late = await watch(idOf(waiting.received), '')
    t.equal(await late.ended, 'clean')
    t.same(atomsOf(late.received).slice(2), atomsOf(waiting.received).slice(3))
    upstream.answer(() => say({ text: 'One two three.' }))
  })

  await t.test('a cursor at the end or beyond it is told the end, and what is none is refused', async (t) => {
    const made = await stream({ input: 'Hello' })
    await made.ended
    const id = idOf(made.received)
    const end = made.received.at(-1)?.data.sequence_number
    // Beyond it is who has seen more of a reply that was lost in part.
    for (const after of [end - 1, end, end + 1, Number.MAX_SAFE_INTEGER]) {
      const last = await watch(id, `&starting_after=${after}`)
      t.equal(await last.ended, 'clean')
      t.same(last.received, [made.received.at(-1)])
    }
    for (const wrong of ['-1', '1.5', 'x', '', '99999999999999999999']) {
      t.match(await client.get(`${url}/${id}?stream=true&starting_after=${wrong}`), {
        status: 400,
        body: { error: {} },
      })
    }
  })

  await t.test('what cannot be taken is refused with the place where it stands', async (t) => {
    const user = { role: 'user', content: 'Hello' }
    const call = { type: 'function_call', call_id: 'c', name: 'f', arguments: '{}' }
    const answer = { type: 'function_call_output', call_id: 'c', output: 'x' }
    const image = { role: 'user', content: [{ type: 'input_image', image_url: 'https://example.org/a.png' }] }
    const { id } = (await create({ input: 'Hello' })).body
    const wrong: [object, string | null][] = [
      [{}, null],
      [{ input: 5 }, 'input'],
      [{ input: [] }, 'input'],
      [{ input: [5] }, 'input.0'],
      [{ input: [{}] }, 'input.0.type'],
      [{ input: [{ type: 'computer_call' }] }, 'input.0.type'],
      [{ input: [{ ...user, role: 'critic' }] }, 'input.0.role'],
      [{ input: [user, { ...user, content: 5 }] }, 'input.1.content'],
      [{ input: [image] }, 'input.0.content.0'],
      [{ input: [{ ...call, arguments: 5 }, answer] }, 'input.0.arguments'],
      [{ input: [call, { ...answer, output: null }] }, 'input.1.output'],
      [{ input: [user, { role: 'assistant', content: 'Hi' }] }, 'input.1'],
      [{ input: [{ type: 'item_reference', id: 'msg_1' }, user] }, 'input.0.id'],
      [{ input: [call], previous_response_id: id }, 'input.0'],
      [{ input: [user, answer], previous_response_id: id }, 'input'],
      [{ input: [answer], previous_response_id: id }, null],
      [{ input: [answer] }, null],
      [{ input: 'Hello', previous_response_id: id, conversation: 'a' }, 'conversation'],
      [{ input: 'Hello', model: 'nobody:knows' }, null],
      [{ input: 'Hello', tools: [{ type: 'function', name: 'a b' }] }, 'tools.0.name'],
      [{ input: 'Hello', tools: Array.from({ length: 129 }, () => ({ type: 'function', name: 'a' })) }, 'tools'],
      [{ input: 'Hello', tool_choice: { type: 'file_search' } }, 'tool_choice'],
      [{ input: 'Hello', text: { format: { type: 'grammar' } } }, 'text.format'],
      [{ input: 'Hello', reasoning: { effort: 'huge' } }, 'reasoning.effort'],
      [{ input: 'Hello', prompt: { id: 'pmpt_1' } }, null],
    ]
    for (const [body, param] of wrong) {
      const { status, body: said, headers } = await create(body)
      t.match(
        { status, ...said.error },
        { status: 400, type: 'invalid_request_error', code: 'invalid_request', ...(param && { param }) },
        JSON.stringify(body),
      )
      t.equal(headers.get('x-should-retry'), 'false')
    }
    const foreign = { type: 'item_reference', id: 'msg_00000000000000000000000000000000_0' }
    t.match(await create({ input: [foreign, user] }), { status: 404, body: { error: { param: 'input.0.id' } } })
  })

  await t.test('a route that is not there is refused without a question who asks', async (t) => {
    for (const [method, path, headers] of [
      ['GET', '/v1/nothing', {}],
      ['GET', url, {}],
      ['POST', '/v1', { authorization: 'Bearer x' }],
    ] as const) {
      const answer = await fetch(`${gateway.url}${path}`, { method, headers })
      t.match(await answer.json(), { error: { type: 'not_found_error', code: 'not_found', param: null } })
      t.same([answer.status, answer.headers.get('x-visitor-token')], [404, null], `${method} ${path}`)
    }
  })

  await t.test('a run that has failed in a way that only another version knows is an error all the same', async (t) => {
    upstream.answer(() => refuse(401))
    const input = 'Hello'
    const asked = [
      [url, { input }],
      ['/v1/chat/completions', { messages: [{ role: 'user', content: input }] }],
      ['/api/v1/chat/message', { message: input }],
    ] as const
    for (const [path, body] of asked) {
      const name = path.replaceAll('/', '.')
      const key = { 'Idempotency-Key': name }
      const first = await client.post(path, body, key)
      t.equal(first.status, 502)
      await gateway.app.db.rows(sql`
        update chat_runs set error = error || '{"code": "of_tomorrow", "message": "Not today."}'
        where idempotency_key = ${name}`)
      const again = await client.post(path, body, key)
      t.equal(again.status, 500)
      const { code, message = again.body.detail } = again.body.error ?? again.body
      t.same([code, message], ['internal', 'Not today.'])
    }
    upstream.answer(() => say({ text: 'One two three.' }))
  })

  await t.test('when the database goes before the first byte, the run does not go on for nobody', async (t) => {
    const { db } = gateway.app
    const { rows, run } = db
    const refused = () => Promise.reject(new Problem('db_unavailable', undefined, { retryAfterSeconds: 1 }))
    let isAway = false
    // As it is asked for requests: what the run itself needs is asked elsewhere.
    Object.assign(db, {
      rows: async (statement: SQL) => {
        if (isAway) return refused()
        const found = await rows(statement)
        isAway = new PgDialect().sqlToQuery(statement).sql.includes('into chat_runs')
        return found
      },
      run: (query: Parameters<typeof run>[0]) => (isAway ? refused() : run(query)),
    })
    t.teardown(() => Object.assign(db, { rows, run }))
    upstream.answer(async function* () {
      yield* begin({ text: 'Is anybody ' })
      await forever()
    })
    const before = upstream.calls.length
    const told = await client.post(url, { input: 'Hello', stream: true })
    Object.assign(db, { rows, run })
    t.match(told, { status: 503, body: { error: { code: 'db_unavailable' } } })
    await (await upstream.call(before)).aborted
    upstream.answer(() => say({ text: 'One two three.' }))
  })

  // Two processes cannot have the embedded database open; what it stores is shown alike (openai-responses.test.ts).
  if (database === 'pglite') return
  await t.test('another process, without the log, shows the same to the last number, and cancels', async (t) => {
    const other = createClient((await start()).url, client.identity)
    const made = await stream({ input: 'Hello', metadata: { topic: 'x' } })
    await made.ended
    const id = idOf(made.received)
    const whole = await client.get(`${url}/${id}`)
    t.match(whole.body, { metadata: { topic: 'x' }, status: 'completed' })
    t.same((await other.get(`${url}/${id}`)).body, whole.body)
    const again = await other.open('GET', `${url}/${id}?stream=true`)
    t.equal(await again.ended, 'clean')
    t.same(atomsOf(again.received), atomsOf(made.received))

    upstream.answer(async function* () {
      yield* begin({ text: 'Never ending' })
      await forever()
    })
    const endless = await stream({ input: 'Hello', background: true })
    await endless.until(({ event }) => event === 'response.output_text.delta')
    const there = await other.open('GET', `${url}/${idOf(endless.received)}?stream=true&starting_after=2`)
    await there.until(({ event }) => event === 'response.output_text.delta')
    t.match(await other.post(`${url}/${idOf(endless.received)}/cancel`), { status: 200, body: { status: 'cancelled' } })
    t.same(await Promise.all([endless.ended, there.ended]), ['clean', 'clean'])
    t.match(there.received.at(-1), { event: 'response.incomplete', data: { response: { status: 'cancelled' } } })
    t.same(atomsOf(there.received), atomsOf(endless.received).slice(2))

    const kept = await stream({ input: 'Hello' })
    await kept.until(({ event }) => event === 'response.output_text.delta')
    const keeper = await other.open('GET', `${url}/${idOf(kept.received)}?stream=true`)
    await keeper.until(({ event }) => event === 'response.output_text.delta')
    t.equal((await client.get(`/api/v1/runs/${kept.headers.get('x-run-id')}`)).body.on_disconnect, 'continue')
    t.match((await other.post(`${url}/${idOf(kept.received)}/cancel`)).body, { background: false })
    t.same(await Promise.all([kept.ended, keeper.ended]), ['clean', 'clean'])
    for (const { received } of [kept, keeper]) t.equal(received.at(-1)?.data.response.background, false)
  })
})
