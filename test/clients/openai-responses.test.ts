/**
 * OpenAI Responses with the official clients as they are: whole, streamed, in the background, with functions, cut and taken
 * up behind a number, cancelled, refused. What a client holds in the end is what is stored, after one call of the model.
 */
import OpenAI5 from 'openai5'
import OpenAI6 from 'openai6'
import OpenAI from 'openai7'
import type { ResponseStreamEvent } from 'openai7/resources/responses/responses'
import { test } from 'tap'
import {
  begin,
  chunk,
  createGate,
  doneMarker,
  errorShapes,
  forever,
  refuse,
  type Script,
  say,
  startFakeUpstream,
  usageChunk,
} from '../../scripts/fake-upstream.ts'
import { databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'
import { inSeconds, makeToken } from '../support/tokens.ts'

const secret = 'a secret of these tests, long enough'
const tokenOf = (sub: string) => makeToken(secret, { sub, exp: inSeconds(3600) })
const words = 'Größe 😀 matters.\r\nTwo lines,\u2028and a third. 👩‍👩‍👧'

/** Some reasoning, words, and a call of a function, in two parts each. */
const callsWeather: Script = function* () {
  yield chunk({ reasoning_content: 'They want ' })
  yield chunk({ reasoning_content: 'the weather.' })
  yield chunk({ content: 'Let me ' })
  yield chunk({ content: 'see. ' })
  const call = (part: object, id?: object) => chunk({ tool_calls: [{ index: 0, ...id, function: part }] })
  yield call({ name: 'weather', arguments: '{"city":' }, { id: 'call_1', type: 'function' })
  yield call({ arguments: '"Rom"}' })
  yield chunk({}, 'tool_calls')
  yield usageChunk(8, 5)
  yield doneMarker
}

const weather = {
  type: 'function',
  name: 'weather',
  description: 'The weather of a city.',
  parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  strict: false,
} as const

/** What a client's promise is rejected with. */
const refusalOf = (asked: Promise<unknown>): Promise<unknown> =>
  asked.then(
    () => 'not refused',
    (error) => error,
  )

const textOf = (events: readonly ResponseStreamEvent[]) =>
  events.map((event) => (event.type === 'response.output_text.delta' ? event.delta : '')).join('')

test('the official clients', async (t) => {
  const upstream = await startFakeUpstream()
  t.teardown(() => upstream.close())
  const gateway = await startGateway(t, {
    database: databases().at(-1),
    env: {
      OPENAI_BASE_URL: upstream.url,
      OPENAI_API_KEY: 'key',
      MODEL_FAST: 'openai:small',
      JWT_SECRET: secret,
      FRAME_MS: '5',
    },
  })
  const options = { apiKey: tokenOf('anna'), baseURL: `${gateway.url}/v1`, maxRetries: 0 }
  const client = new OpenAI(options)
  const all = [client, new OpenAI6(options), new OpenAI5(options)] as readonly OpenAI[]

  await t.test('a whole response, and the same when it is read again', async (t) => {
    upstream.answer(() => say({ text: words }))
    for (const client of all) {
      const made = await client.responses.create({
        model: 'openai:small',
        input: 'Hello',
        instructions: 'Be brief.',
        metadata: { topic: 'greetings' },
        temperature: 0.5,
        max_output_tokens: 99,
        text: { format: { type: 'json_object' } },
        reasoning: { effort: 'low' },
      })
      t.equal(made.output_text, words)
      t.match(made, {
        object: 'response',
        status: 'completed',
        model: 'openai:small',
        instructions: 'Be brief.',
        metadata: { topic: 'greetings' },
        temperature: 0.5,
        usage: { input_tokens: 8, input_tokens_details: { cached_tokens: 0 }, total_tokens: Number },
        previous_response_id: null,
        error: null,
      })
      t.same(await client.responses.retrieve(made.id), made)
    }
    t.match(upstream.calls[0]?.body, {
      messages: [
        { role: 'system', content: 'Be brief.' },
        { role: 'user', content: 'Hello' },
      ],
      response_format: { type: 'json_object' },
      temperature: 0.5,
    })
  })

  await t.test('a stream by its iterator and by its helper, with reasoning and a function call', async (t) => {
    upstream.answer(callsWeather)
    for (const client of all) {
      const ask = { model: 'fast', input: 'Rom?', tools: [weather] }
      const events: ResponseStreamEvent[] = []
      for await (const event of await client.responses.create({ ...ask, stream: true })) events.push(event)
      t.equal(textOf(events), 'Let me see. ')
      const numbers = events.map(({ sequence_number }) => sequence_number)
      t.same(
        numbers,
        numbers.toSorted((a, b) => a - b),
      )
      t.equal(new Set(numbers).size, numbers.length)

      const stream = client.responses.stream(ask)
      let called = ''
      stream.on('response.function_call_arguments.delta', ({ snapshot }) => {
        called = snapshot
      })
      const final = await stream.finalResponse()
      t.equal(called, '{"city":"Rom"}')
      t.match(final.output, [
        { type: 'reasoning', summary: [{ type: 'summary_text', text: 'They want the weather.' }] },
        { type: 'message', role: 'assistant', status: 'completed', content: [{ text: 'Let me see. ' }] },
        { type: 'function_call', name: 'weather', call_id: 'call_1', arguments: '{"city":"Rom"}', status: 'completed' },
      ])
      t.match(await client.responses.retrieve(final.id), { status: 'completed', usage: { output_tokens: 5 } })
    }
  })

  await t.test(
    'the outputs of functions go on from the response that called them, and so does the next message',
    async (t) => {
      upstream.answer(callsWeather)
      const asked = await client.responses.create({ model: 'fast', input: 'Rom?', tools: [weather] })
      upstream.answer(() => say({ text: 'It rains.' }))
      const call = asked.output.find(({ type }) => type === 'function_call')
      const first = upstream.calls.length
      const answered = await client.responses.create({
        model: 'fast',
        previous_response_id: asked.id,
        input: [
          {
            type: 'function_call_output',
            call_id: call?.type === 'function_call' ? call.call_id : '',
            output: '{"rain":1}',
          },
        ],
        tools: [weather],
      })
      t.equal(answered.output_text, 'It rains.')
      t.equal(answered.previous_response_id, asked.id)
      t.match(upstream.calls[first]?.body?.messages?.slice(-3), [
        { role: 'user', content: 'Rom?' },
        { role: 'assistant', tool_calls: [{ id: 'call_1', function: { name: 'weather' } }] },
        { role: 'tool', content: '{"rain":1}' },
      ])
      const next = await client.responses.create({ model: 'fast', previous_response_id: answered.id, input: 'Thanks!' })
      t.same(next.conversation, asked.conversation)
      t.match(upstream.calls[first + 1]?.body?.messages?.slice(-2), [
        { role: 'assistant', content: 'It rains.' },
        { role: 'user', content: 'Thanks!' },
      ])
      t.match(
        await refusalOf(
          client.responses.create({
            model: 'fast',
            previous_response_id: asked.id,
            input: [{ type: 'function_call_output', call_id: 'other', output: '' }],
          }),
        ),
        { status: 400, code: 'invalid_request' },
      )
    },
  )

  await t.test('a conversation that the client keeps itself may hold outputs as they came, or name them', async (t) => {
    upstream.answer(callsWeather)
    const asked = await client.responses.create({ model: 'fast', input: 'Rom?', tools: [weather] })
    upstream.answer(() => say({ text: 'It rains.' }))
    const output = { type: 'function_call_output', call_id: 'call_1', output: 'Rain' } as const
    const named = asked.output.map(({ id = '' }) => ({ type: 'item_reference', id }) as const)
    for (const given of [asked.output as OpenAI.Responses.ResponseInput, named]) {
      const first = upstream.calls.length
      await client.responses.create({
        model: 'fast',
        input: [{ role: 'developer', content: 'Be brief.' }, { role: 'user', content: 'Rom?' }, ...given, output],
        tools: [weather],
      })
      t.match(upstream.calls[first]?.body?.messages, [
        { role: 'system', content: 'Be brief.' },
        { role: 'user', content: 'Rom?' },
        { role: 'assistant', content: 'Let me see. ', tool_calls: [{ id: 'call_1' }] },
        { role: 'tool', content: 'Rain' },
      ])
    }
  })

  await t.test('a response in the background goes on by itself, and is whole when it is asked for', async (t) => {
    const gate = createGate()
    upstream.answer(async function* () {
      yield* begin({ text: 'In the ' })
      await gate.opened
      yield* say({ text: 'background.' })
    })
    let response = await client.responses.create({ model: 'fast', input: 'Go', background: true })
    t.match(response, { status: 'in_progress', background: true, output: [] })
    t.match(await client.responses.retrieve(response.id), { status: 'in_progress' })
    gate.open()
    while (response.status === 'in_progress') response = await client.responses.retrieve(response.id)
    t.equal(response.output_text, 'In the background.')
    t.ok(response.completed_at)
  })

  await t.test(
    'a stream that is cut is taken up behind its last number, exactly, during the reply and after it',
    async (t) => {
      const gate = createGate()
      upstream.answer(async function* () {
        yield* begin({ text: words })
        await gate.opened
        yield* say({ text: words })
      })
      const before = upstream.calls.length
      const stream = await client.responses.create({ model: 'fast', input: 'Go', background: true, stream: true })
      const events: ResponseStreamEvent[] = []
      for await (const event of stream) {
        events.push(event)
        if (textOf(events).length > 10) break
      }
      const created = events[0] as { response: { id: string } }
      const after = events.at(-1)?.sequence_number ?? 0
      const resumed = await client.responses.retrieve(created.response.id, { stream: true, starting_after: after })
      const tail: ResponseStreamEvent[] = []
      gate.open()
      for await (const event of resumed) tail.push(event)
      t.equal(textOf([...events, ...tail]), words + words)
      t.equal(tail.at(-1)?.type, 'response.completed')

      const late: ResponseStreamEvent[] = []
      const again = await client.responses.retrieve(created.response.id, { stream: true, starting_after: after })
      for await (const event of again) late.push(event)
      t.equal(textOf(late), textOf(tail))
      t.same(late.at(-1), tail.at(-1))
      const helper = client.responses.stream({ response_id: created.response.id, starting_after: after })
      t.equal((await helper.finalResponse()).output_text, words + words)
      t.equal(upstream.calls.length - before, 1)
    },
  )

  await t.test('a response that is cancelled says so, and its open stream ends as incomplete', async (t) => {
    upstream.answer(async function* () {
      yield* begin({ text: 'Never ' })
      await forever()
    })
    const stream = await client.responses.create({ model: 'fast', input: 'Go', stream: true })
    const events: ResponseStreamEvent[] = []
    let cancelled: Promise<OpenAI.Responses.Response> | undefined
    for await (const event of stream) {
      events.push(event)
      if (event.type !== 'response.output_text.delta') continue
      cancelled ??= client.responses.cancel((events[0] as { response: { id: string } }).response.id)
    }
    t.match(events.at(-1), { type: 'response.incomplete', response: { status: 'cancelled' } })
    const response = await cancelled
    t.match(response, { status: 'cancelled', output: [{ status: 'incomplete', content: [{ text: 'Never ' }] }] })
    t.same(await client.responses.cancel(response?.id ?? ''), response)
  })

  await t.test('what fails is an error of the client, and after the first words an event', async (t) => {
    upstream.answer(() => refuse(400))
    t.match(await refusalOf(client.responses.create({ model: 'fast', input: 'Go' })), {
      status: 502,
      code: 'upstream_rejected',
    })
    upstream.answer(async function* () {
      yield* begin({ text: 'Half ' })
      yield errorShapes.chunk
    })
    for (const client of all) {
      const events: ResponseStreamEvent[] = []
      for await (const event of await client.responses.create({ model: 'fast', input: 'Go', stream: true }))
        events.push(event)
      t.match(events.at(-1), {
        type: 'response.failed',
        response: {
          status: 'failed',
          output: [{ status: 'incomplete', content: [{ text: 'Half ' }] }],
          error: { code: /^upstream_/, message: String },
          incomplete_details: null,
        },
      })
    }
    t.match(await client.responses.create({ model: 'fast', input: 'Go' }), { status: 'failed', output_text: 'Half ' })
    const other = new OpenAI({ ...options, apiKey: tokenOf('bert') })
    const mine = await client.responses.create({ model: 'fast', input: 'Go', background: true })
    for (const id of [mine.id, 'resp_123', 'resp_00000000000000000000000000000000']) {
      t.match(await refusalOf(other.responses.retrieve(id)), { status: 404, code: 'not_found' })
      t.match(await refusalOf(other.responses.retrieve(id, { stream: true })), { status: 404 })
      t.match(await refusalOf(other.responses.cancel(id)), { status: 404 })
      t.match(await refusalOf(other.responses.create({ model: 'fast', input: 'Go', previous_response_id: id })), {
        status: 404,
        param: 'previous_response_id',
      })
    }
    t.match(await refusalOf(client.responses.create({ model: 'fast', input: 'Go', tools: [{ type: 'web_search' }] })), {
      status: 400,
      param: 'tools.0.type',
    })
    t.match(
      await refusalOf(new OpenAI({ ...options, apiKey: 'wrong' }).responses.create({ model: 'fast', input: 'Go' })),
      {
        status: 401,
      },
    )
  })
})
