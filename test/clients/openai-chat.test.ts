/**
 * OpenAI's own clients of four majors against a gateway, unmodified: what they are told is what is stored, what goes wrong
 * they throw, and whatever they repeat by themselves is one run and one call of the model.
 */
import OpenAI4 from 'openai4'
import OpenAI5 from 'openai5'
import OpenAI6 from 'openai6'
import OpenAI from 'openai7'
import { test } from 'tap'
import { Type } from 'typebox'
import {
  begin,
  callTool,
  chunk,
  createGate,
  reset,
  type Script,
  say,
  startFakeUpstream,
} from '../../scripts/fake-upstream.ts'
import { defineTool } from '../../src/runs/tools.ts'
import { createApiKeys } from '../../src/sessions/api-keys.ts'
import { createClient, shownText } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { databaseEnv, startGateway } from '../support/gateway.ts'
import { trialsOf } from '../support/trials.ts'

type Params = OpenAI.ChatCompletionCreateParamsNonStreaming

const majors = { 4: OpenAI4, 5: OpenAI5, 6: OpenAI6, 7: OpenAI } as unknown as Readonly<Record<string, typeof OpenAI>>
const text = 'Grüße, 世界 👩‍🚀, and all that.'
const hello: Params = { model: 'balanced', messages: [{ role: 'user', content: 'Hello' }] }
const lookup = {
  type: 'function' as const,
  function: { name: 'lookup', description: 'Looks it up.', parameters: { type: 'object', properties: {} } },
}

/** Of the fourth major the helper is elsewhere. */
const streamOf = (client: OpenAI, params: Params) =>
  ((client as { beta: { chat?: OpenAI['chat'] } }).beta.chat?.completions ?? client.chat.completions).stream({
    ...params,
    stream: true,
  })

async function collect(stream: AsyncIterable<OpenAI.ChatCompletionChunk>): Promise<string> {
  let shown = ''
  for await (const { choices } of stream) shown += choices[0]?.delta.content ?? ''
  return shown
}

/** @returns what was thrown */
const thrown = (
  work: PromiseLike<unknown>,
): Promise<{ status?: number; code?: string; param?: string; message: string }> =>
  Promise.resolve(work).then(
    () => Promise.reject(new Error('it did not throw')),
    (error) => error,
  )

const cut: Script = async function* () {
  yield* begin({ text: 'Half of' })
  yield reset()
}

const kinds = trialsOf(1) > 1 ? databases() : databases().slice(-1)
for (const kind of kinds) {
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
      },
      tools: [
        defineTool({ name: 'own', description: 'Own.', parameters: Type.Object({}), execute: async () => 'found' }),
      ],
      // Longer than a reply takes to end whose gate is open: one that is stopped is made anew by a repeat, and rightly.
      openai: { lingerMs: 1000 },
    })
    const { key } = await createApiKeys(gateway.app.db).createKey({ subject: 'ada' })
    const native = createClient(gateway.url, { authorization: `Bearer ${key}` })
    const storedText = async (id: string | null | undefined) => (await native.messages(String(id))).at(-1)?.content

    for (const [major, Client] of Object.entries(majors)) {
      await t.test(`openai ${major}`, async (t) => {
        const client = new Client({ apiKey: key, baseURL: `${gateway.url}/v1`, maxRetries: 2 })
        const callsBefore = () => {
          const before = upstream.calls.length
          return () => upstream.calls.length - before
        }

        await t.test('a reply, as an iterator, by the helper and as a whole, is what is stored', async (t) => {
          upstream.answer(() => say({ text }))
          const { data: stream, response } = await client.chat.completions
            .create({ ...hello, stream: true, stream_options: { include_usage: true } })
            .withResponse()
          let shown = ''
          let usage: OpenAI.CompletionUsage | null | undefined
          for await (const one of stream) {
            shown += one.choices[0]?.delta.content ?? ''
            usage = one.usage
          }
          t.equal(shown, text)
          t.match(usage, { prompt_tokens: 8, total_tokens: Number })
          t.equal(await storedText(response.headers.get('x-session-id')), text)
          const run = await native.get(`/api/v1/runs/${response.headers.get('x-run-id')}`)
          t.equal(run.body.status, 'completed')

          const helper = streamOf(client, hello)
          t.equal(await helper.finalContent(), text)
          const whole = await client.chat.completions.create(hello)
          t.equal(whole.choices[0]?.message.content, text)
          t.equal(whole.choices[0]?.finish_reason, 'stop')
          t.match(whole, { object: 'chat.completion', model: 'balanced', usage: { prompt_tokens: 8 } })
        })

        await t.test(
          'tools of the client make the round, with the conversation of the client and with ours',
          async (t) => {
            for (const named of [{}, { metadata: { session_id: `tools ${major}` } }]) {
              upstream.answer(() =>
                callTool({ name: 'lookup', input: { q: 'é' }, text: 'I look.', id: `call_${major}` }),
              )
              const first = { ...hello, ...named, tools: [lookup] }
              const message = (await streamOf(client, first).finalChatCompletion()).choices[0]?.message
              const calls = message?.tool_calls as OpenAI.ChatCompletionMessageFunctionToolCall[]
              t.strictSame(
                calls.map(({ id, function: called }) => [id, called.name, JSON.parse(called.arguments)]),
                [[`call_${major}`, 'lookup', { q: 'é' }]],
              )
              upstream.answer(() => say({ text }))
              const answer = { role: 'tool' as const, tool_call_id: `call_${major}`, content: 'It is 42.' }
              const messages = [
                { role: 'developer' as const, content: 'Be kind.' },
                ...first.messages,
                message!,
                answer,
              ]
              const last = await client.chat.completions.create({ ...first, messages })
              t.equal(last.choices[0]?.message.content, text)
              const { body } = upstream.calls.at(-1) as { body?: unknown }
              t.match((body as { messages: unknown[] }).messages, [
                { role: 'system', content: 'Be kind.' },
                { role: 'user', content: 'Hello' },
                { role: 'assistant', content: 'I look.', tool_calls: [{ id: `call_${major}` }] },
                { role: 'tool', tool_call_id: `call_${major}`, content: 'It is 42.' },
              ])
            }
          },
        )

        await t.test('what is refused is thrown as it is meant, and is not asked again', async (t) => {
          const count = callsBefore()
          t.match(await thrown(client.chat.completions.create({ ...hello, n: 2 })), {
            status: 400,
            code: 'invalid_request',
            param: 'n',
          })
          const wrong = new Client({ apiKey: `vk_${'A'.repeat(43)}`, baseURL: `${gateway.url}/v1` })
          t.match(await thrown(wrong.models.list()), { status: 401, code: 'invalid_token' })
          t.match(await thrown(client.models.retrieve('no:such')), { status: 404, param: 'model' })
          t.equal(count(), 0)
        })

        await t.test('what breaks off is thrown in mid-stream and as a whole, and made once each', async (t) => {
          const count = callsBefore()
          upstream.answer(cut)
          let shown = ''
          const stream = await client.chat.completions.create({ ...hello, stream: true })
          const error = await thrown(
            (async () => {
              for await (const { choices } of stream) shown += choices[0]?.delta.content ?? ''
            })(),
          )
          t.match(error, { code: 'upstream_unavailable' })
          t.equal(shown, 'Half of', 'after all that there was')
          t.match(await thrown(streamOf(client, hello).finalContent()), { message: String })
          t.match(await thrown(client.chat.completions.create(hello)), { status: 502, code: 'upstream_unavailable' })
          t.equal(count(), 3)
        })

        await t.test('with a key it is the same run, as a stream and as a whole', async (t) => {
          const count = callsBefore()
          upstream.answer(() => say({ text }))
          const headers = { 'Idempotency-Key': `once-${major}` }
          const first = await collect(await client.chat.completions.create({ ...hello, stream: true }, { headers }))
          const again = await collect(await client.chat.completions.create({ ...hello, stream: true }, { headers }))
          const whole = await client.chat.completions.create(hello, { headers })
          t.strictSame([first, again, whole.choices[0]?.message.content], [text, text, text])
          t.equal(count(), 1)
          t.match(await thrown(client.chat.completions.create({ ...hello, temperature: 1 }, { headers })), {
            status: 422,
            code: 'idempotency_mismatch',
          })
        })

        await t.test('what it repeats by itself after a cut is the run that there is', async (t) => {
          // A twin of the first: a client that does not say that it repeats has a second run made.
          for (const headers of [{}, { 'x-stainless-retry-count': '0' }]) {
            const isSaid = Object.keys(headers).length === 0
            const count = callsBefore()
            const gate = createGate()
            upstream.answer(async function* () {
              yield* begin({ text: 'One ' })
              await gate.opened
              yield* say({ text: 'reply.' })
            })
            const messages = [{ role: 'user' as const, content: 'Cut' }]
            const asked = client.chat.completions.create({ ...hello, messages }, { headers })
            await upstream.call(upstream.calls.length)
            gateway.app.server.server.closeAllConnections()
            gate.open()
            t.equal((await asked).choices[0]?.message.content, 'One reply.')
            t.equal(count(), isSaid ? 1 : 2)
            if (major !== '7') break
          }
        })

        await t.test('a client that leaves ends its run a little later, unless it said otherwise', async (t) => {
          for (const goesOn of [false, true]) {
            const gate = createGate()
            upstream.answer(async function* () {
              yield* begin({ text: 'Much ' })
              await gate.opened
              yield* say({ text: 'more.' })
            })
            const controller = new AbortController()
            const headers = goesOn ? { 'X-On-Disconnect': 'continue' } : {}
            const { data: stream, response } = await client.chat.completions
              .create({ ...hello, stream: true }, { signal: controller.signal, headers })
              .withResponse()
            const runId = response.headers.get('x-run-id')
            for await (const { choices } of stream) if (choices[0]?.delta.content === 'Much ') break
            controller.abort()
            if (goesOn) gate.open()
            const viewer = await native.watch(`/api/v1/runs/${runId}/events`)
            // Who looks keeps it: the end of the upstream's connection is what tells.
            if (!goesOn) viewer.close()
            else t.equal((await viewer.until(({ event }) => event === 'done')).data.status, 'completed')
            if (!goesOn) t.ok((await upstream.calls.at(-1)?.closed)?.aborted)
          }
        })
      })
    }

    await t.test('tools of the gateway are its own affair, and reasoning is beside the words', async (t) => {
      let step = 0
      upstream.answer(async function* () {
        step += 1
        if (step === 1) yield* callTool({ name: 'own', id: 'own_1' })
        else {
          yield chunk({ reasoning_content: 'Hm.' })
          yield* say({ text })
        }
      })
      const client = new OpenAI({ apiKey: key, baseURL: `${gateway.url}/v1` })
      const { choices } = await client.chat.completions.create(hello)
      t.match(choices[0], { message: { content: text, reasoning_content: 'Hm.' }, finish_reason: 'stop' })
      t.notOk(choices[0]?.message.tool_calls)
    })

    await t.test('the models are those that may be asked for', async (t) => {
      const client = new OpenAI({ apiKey: key, baseURL: `${gateway.url}/v1` })
      const ids = (await client.models.list()).data.map(({ id }) => id)
      t.strictSame(ids.slice(0, 5), ['fast', 'balanced', 'quality', 'adaptive', 'openai:fake-1'])
      for (const id of ids) t.equal((await client.models.retrieve(id)).id, id)
      t.equal((await client.models.retrieve('openai:maker/model')).id, 'openai:maker/model')
    })
  })
}

const skip = databases().includes('postgres') ? false : 'TEST_EMBEDDED_ONLY=1: one process has the embedded database'

test('a repeat, or a native viewer, that comes to another process keeps the run of the first', { skip }, async (t) => {
  const upstream = await startFakeUpstream()
  t.teardown(() => upstream.close())
  const store = await databaseEnv(t, 'postgres')
  const env = { ...store, OPENAI_BASE_URL: upstream.url, OPENAI_API_KEY: 'x', MODEL_BALANCED: 'openai:fake-1' }
  const [first, second] = [
    await startGateway(t, { env, openai: { lingerMs: 300 } }),
    await startGateway(t, { env, openai: { lingerMs: 300 } }),
  ]
  const { key } = await createApiKeys(first.app.db).createKey({ subject: 'ada' })
  const clientOf = ({ url }: { url: string }) => new OpenAI({ apiKey: key, baseURL: `${url}/v1`, maxRetries: 0 })
  const gate = createGate()
  upstream.answer(async function* () {
    yield* begin({ text: 'One ' })
    await gate.opened
    yield* say({ text: 'reply.' })
  })
  /** On the first process, and left as soon as the model has been asked. */
  async function leave(content: string) {
    const count = upstream.calls.length
    const leaving = new AbortController()
    const asked = clientOf(first).chat.completions.create(
      { ...hello, messages: [{ role: 'user', content }] },
      { signal: leaving.signal },
    )
    const call = await upstream.call(count)
    leaving.abort()
    await thrown(asked)
    return call
  }
  await leave('Kept')
  const again = clientOf(second).chat.completions.create(
    { ...hello, messages: [{ role: 'user', content: 'Kept' }] },
    { headers: { 'x-stainless-retry-count': '1' } },
  )
  const leaving = new AbortController()
  const { response } = await clientOf(first)
    .chat.completions.create({ ...hello, stream: true }, { signal: leaving.signal })
    .withResponse()
  const native = createClient(second.url, { authorization: `Bearer ${key}` })
  const watched = await native.watch(`/api/v1/runs/${response.headers.get('x-run-id')}/events`)
  await upstream.call(1)
  leaving.abort()
  // Left later: when it has been ended, the time of the other one is over too.
  t.ok((await (await leave('Not kept')).closed).aborted)
  gate.open()
  t.equal((await again).choices[0]?.message.content, 'One reply.')
  t.equal(await watched.ended, 'clean')
  t.equal(shownText(watched.received), 'One reply.')
  t.equal(upstream.calls.length, 3)
})
