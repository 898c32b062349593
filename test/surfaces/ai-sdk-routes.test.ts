/**
 * The AI SDK surface over HTTP, on both databases and, with Postgres, on two processes: what the SDK's transport sends is
 * taken as it means it, and whoever comes back is shown the whole, or what is behind their cursor.
 */
import { randomUUID } from 'node:crypto'
import { type Test, test } from 'tap'
import { Type } from 'typebox'
import {
  begin,
  callTool,
  chunk,
  createGate,
  doneMarker,
  forever,
  refuse,
  say,
  startFakeUpstream,
} from '../../scripts/fake-upstream.ts'
import { sql } from '../../src/db/drizzle.ts'
import { toolsMax } from '../../src/runs/model.ts'
import { defineTool } from '../../src/runs/tools.ts'
import { chatBodyBytesMax } from '../../src/surfaces/ai-sdk-routes.ts'
import { createClient } from '../support/client.ts'
import { openServer } from '../support/cluster.ts'
import { createTestDatabase, databases } from '../support/database.ts'
import { createDataFolder, databaseEnv, startGateway } from '../support/gateway.ts'
import { withoutRedis } from '../support/redis.ts'
import { createUiClient, isWords, type UiChunk, type UiStream, userMessage, wordsOf } from './ui-client.ts'

const look = { name: 'look', description: 'Looks.', parameters: { type: 'object' } }
const typesOf = (chunks: readonly UiChunk[]) => chunks.map(({ type }) => type)
const startOf = ({ chunks }: UiStream) => chunks.find(({ type }) => type === 'start')?.messageId
const runOf = ({ headers }: UiStream) => headers.get('x-run-id')

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const upstream = await startFakeUpstream()
    t.teardown(() => upstream.close())
    const store: Record<string, string> =
      database === 'pglite'
        ? { DATA_DIR: await createDataFolder(t) }
        : { DATABASE_URL: (await createTestDatabase(t)).url, DATABASE_POOL: '5' }
    const clock = defineTool({
      name: 'clock',
      description: 'Tells the time.',
      parameters: Type.Object({}),
      execute: () => ({ hour: 9 }),
    })
    const sundial = defineTool({
      name: 'sundial',
      description: 'Waits for the sun.',
      parameters: Type.Object({}),
      execute: () => forever(),
    })
    const env = {
      ...store,
      OPENAI_BASE_URL: upstream.url,
      FRAME_MS: '5',
      JWT_SECRET: 'a secret of more than 32 bytes, for all',
    }
    const options = { env, tools: [clock, sundial], sse: { heartbeatMs: 300 } }
    const gateway = await startGateway(t, options)
    const second = database === 'postgres' ? await startGateway(t, options) : gateway
    const visit = () => {
      const client = createClient(gateway.url, {
        'x-visitor-token': `vst_${randomUUID().replaceAll('-', '')}${'x'.repeat(11)}`,
      })
      return { ui: createUiClient(gateway.url, client), elsewhere: createUiClient(second.url, client), client }
    }
    const callsSince = (before: number) => upstream.calls.length - before

    /** What has nothing to do with the kind of database is told on one. */
    const once = (title: string, tell: (t: Test) => Promise<void>) =>
      database === databases().at(-1) ? t.test(title, tell) : undefined

    /** A reply that begins, and goes on when the gate is opened. */
    function answerAtGate(text = 'Hel', rest = 'lo') {
      const gate = createGate()
      upstream.answer(async function* () {
        yield* begin({ text })
        await gate.opened
        yield* say({ text: rest })
      })
      return gate
    }

    await t.test(
      'a turn: the reply exists before its first byte, and is stored under the ids of the page',
      async (t) => {
        const { ui, client } = visit()
        upstream.answer(() => say({ text: 'Hello you' }))
        const before = upstream.calls.length
        const sent = {
          id: 'chat one/ä',
          messages: [userMessage('u1', 'Hi', ' there')],
          messageId: undefined,
          theme: 'dark',
        }
        const stream = await ui.send(sent)
        t.equal(stream.status, 200)
        t.equal(await stream.ended, 'done')
        const { headers } = stream
        t.match(Object.fromEntries(headers), {
          'content-type': 'text/event-stream',
          'cache-control': 'no-cache, no-transform',
          'x-accel-buffering': 'no',
          'x-vercel-ai-ui-message-stream': 'v1',
          'x-resumable-stream-id': headers.get('x-run-id'),
          'x-message-id': startOf(stream),
        })
        t.equal(wordsOf(stream.chunks), 'Hello you')
        t.same(typesOf(stream.chunks).slice(0, 3), ['start', 'start-step', 'text-start'])
        t.same(typesOf(stream.chunks).slice(-3), ['text-end', 'finish-step', 'finish'])
        const session = (await client.get(`/api/v1/sessions/${headers.get('x-session-id')}`)).body
        t.equal(session.external_id, 'chat one/ä')
        const [question] = await client.messages(session.id)
        t.match(question, { client_message_id: 'u1', content: 'Hi there', metadata: {} })
        t.same(await ui.load(sent.id), {
          id: sent.id,
          messages: [
            { id: 'u1', role: 'user', parts: [{ type: 'text', text: 'Hi there' }] },
            {
              id: startOf(stream),
              role: 'assistant',
              parts: [{ type: 'step-start' }, { type: 'text', text: 'Hello you', state: 'done' }],
            },
          ],
        })
        const again = await ui.send(sent)
        await again.ended
        t.equal(runOf(again), runOf(stream), 'the same message is the same run')
        t.equal(wordsOf(again.chunks), 'Hello you')
        t.equal(callsSince(before), 1)
      },
    )

    await t.test(
      'a uuid is the id of the session, and a key of the request goes before the id of the message',
      async (t) => {
        const { ui, client } = visit()
        const id = randomUUID()
        const sent = {
          id: id.toUpperCase(),
          messages: [{ ...userMessage('u1', 'Hi'), metadata: { at: 5 } }],
          mode: 'fast',
        }
        const stream = await ui.send(sent, { 'idempotency-key': 'own-key' })
        await stream.ended
        t.equal(stream.headers.get('x-session-id'), id)
        t.match(await client.messages(id), [
          { client_message_id: 'own-key', metadata: { at: 5, ui_message_id: 'u1' } },
          { role: 'assistant' },
        ])
        t.match((await client.get(`/api/v1/runs/${runOf(stream)}`)).body, { mode: 'fast' })
        t.match((await ui.load(id)).messages, [{ id: 'u1', metadata: { at: 5 } }, { role: 'assistant' }])
      },
    )

    await once('ids of messages need only be different within their chat', async (t) => {
      const { ui } = visit()
      const streams = []
      for (const id of ['a', 'b', 'b']) {
        const stream = await ui.send({ id, messages: [userMessage('msg-1', 'Hi')] })
        t.equal(await stream.ended, 'done')
        streams.push(stream)
      }
      t.not(runOf(streams[1] as UiStream), runOf(streams[0] as UiStream))
      t.equal(runOf(streams[2] as UiStream), runOf(streams[1] as UiStream), 'a repeat is a repeat there too')
      t.match((await ui.load('b')).messages, [{ id: 'msg-1' }, {}])
    })

    await t.test(
      'whoever comes back gets the whole, also several at once and elsewhere, or what is behind a cursor',
      async (t) => {
        const { ui, elsewhere } = visit()
        const gate = answerAtGate()
        const first = await ui.send({ id: 'c', messages: [userMessage('u1', 'Hi')] })
        await first.until(isWords)
        t.match(await elsewhere.load('c'), { messages: [{ id: 'u1' }] })
        t.equal((await elsewhere.load('c')).messages.length, 1, 'no part of the reply that is being made')
        const whole = await Promise.all([ui.resume('c'), elsewhere.resume('c'), elsewhere.resume('c')])
        await Promise.all(whole.map((stream) => stream.until(isWords)))
        const tail = await ui.resume('c', first.lastId())
        // Its process shares no log with the other one, and cannot know what the viewer holds.
        const untold = second === gateway ? undefined : await elsewhere.resume('c', first.lastId())
        first.close()
        gate.open()
        for (const stream of whole) {
          t.equal(await stream.ended, 'done')
          t.equal(startOf(stream), first.chunks[0]?.messageId)
          t.equal(wordsOf(stream.chunks), 'Hello')
          t.equal(runOf(stream), runOf(first))
        }
        t.equal(await tail.ended, 'done')
        t.equal(wordsOf([...first.chunks, ...tail.chunks]), 'Hello')
        t.same(
          typesOf(tail.chunks).filter((type) => type === 'start' || type === 'text-start'),
          [],
          'nothing twice',
        )

        if (untold !== undefined) {
          t.equal(await untold.ended, 'done')
          t.equal(wordsOf(untold.chunks), 'Hello')
          t.equal(untold.chunks[0]?.type, 'start', 'where nobody can tell, the whole is told')
        }

        const [after] = whole
        const replay = await elsewhere.resume('c')
        t.equal(await replay.ended, 'done', 'a run that has just ended is shown')
        t.equal(wordsOf(replay.chunks), 'Hello')
        t.equal((await ui.resume('c', after?.lastId())).status, 204, 'unless all of it is there')
        const future = await ui.resume('c', `${runOf(first)}.1-999`)
        await future.ended
        t.equal(wordsOf(future.chunks), 'Hello', 'what the log cannot tell is told from the start')
        t.equal(future.chunks[0]?.type, 'start')

        await gateway.app.db.rows(
          sql`update chat_runs set ended_at = now() - interval '31 seconds' where id = ${runOf(first)}::uuid`,
        )
        t.equal((await ui.resume('c')).status, 204, 'and not for long')
        const late = await ui.resume('c', first.lastId())
        await late.ended
        t.equal(wordsOf([...first.chunks, ...late.chunks]), 'Hello', 'a cursor is good for ever')
      },
    )

    await once('a cursor is of its run, whatever has begun since', async (t) => {
      const { ui } = visit()
      upstream.answer(() => say({ text: 'One two three' }))
      const first = await ui.send({ id: 'c', messages: [userMessage('u1', 'Hi')] })
      await first.ended
      const cursor = `${runOf(first)}.1-1`
      await (await ui.send({ id: 'c', messages: [userMessage('u2', 'And?')] })).ended
      const tail = await ui.resume('c', cursor)
      await tail.ended
      t.equal(runOf(tail), runOf(first))
      t.equal(wordsOf(tail.chunks), 'One two three')
      t.equal((await ui.resume('other', cursor)).status, 204, 'and of its chat')
    })

    await t.test('what is not there, and what is not mine, has nothing to resume, to load or to stop', async (t) => {
      const { ui } = visit()
      const id = randomUUID()
      await (await ui.send({ id, messages: [userMessage('u1', 'Secret')] })).ended
      for (const other of [visit(), visit()]) {
        for (const chat of [id, randomUUID(), 'new']) {
          t.equal((await other.ui.resume(chat)).status, 204)
          t.same(await other.ui.load(chat), { id: chat, messages: [] })
          t.equal((await other.client.post(`/api/chat/${chat}/stop`)).status, 204)
        }
        t.equal((await other.ui.send({ id, messages: [userMessage('u1', 'Mine')] })).status, 404)
      }
    })

    await t.test('a message behind a reply that goes on interrupts it, and waits for its end', async (t) => {
      const { ui } = visit()
      answerAtGate('Never', ' mind')
      const first = await ui.send({ id: 'c', messages: [userMessage('u1', 'Hi')] })
      await first.until(isWords)
      t.equal((await ui.send({ id: 'c', messages: [userMessage('u2', 'No')], on_busy: 'reject' })).status, 409)
      upstream.answer(() => say({ text: 'Well' }))
      const second = await ui.send({ id: 'c', messages: [userMessage('u2', 'Wait')] })
      t.equal(await first.ended, 'done')
      t.same(first.chunks.at(-1), { type: 'abort' })
      t.equal(await second.ended, 'done')
      t.equal(wordsOf(second.chunks), 'Well')
      t.match((await ui.load('c')).messages, [
        { id: 'u1' },
        { id: startOf(first), parts: [{}, { text: 'Never' }] },
        { id: 'u2' },
        { id: startOf(second) },
      ])
    })

    await t.test('a queued reply is resumed too, and waits', async (t) => {
      const { ui, elsewhere } = visit()
      const gate = answerAtGate()
      const first = await ui.send({ id: 'c', messages: [userMessage('u1', 'Hi')] })
      await first.until(isWords)
      const queued = await ui.send({ id: 'c', messages: [userMessage('u2', 'Then')], on_busy: 'queue' })
      await queued.until(({ type }) => type === 'start')
      const resumed = await elsewhere.resume('c')
      await resumed.until(({ type }) => type === 'start')
      t.equal(runOf(resumed), runOf(queued))
      t.equal(wordsOf(resumed.chunks), '')
      gate.open()
      t.same(await Promise.all([first.ended, queued.ended, resumed.ended]), ['done', 'done', 'done'])
      t.equal(wordsOf(resumed.chunks), 'Hello')
    })

    await t.test('stop ends the reply from wherever it comes, and keeps its words', async (t) => {
      const { ui, elsewhere, client } = visit()
      answerAtGate()
      const stream = await ui.send({ id: 'c', messages: [userMessage('u1', 'Hi')] })
      await stream.until(isWords)
      const stopped = await createClient(second.url, client.identity).post('/api/chat/c/stop')
      t.equal(stopped.status, 200)
      t.same(stopped.body, {
        id: 'c',
        message: {
          id: startOf(stream),
          role: 'assistant',
          parts: [{ type: 'step-start' }, { type: 'text', text: 'Hel', state: 'done' }],
        },
      })
      t.equal(await stream.ended, 'done')
      t.same(typesOf(stream.chunks).slice(-2), ['text-end', 'abort'])
      t.equal((await client.post('/api/chat/c/stop')).status, 204)
      t.match(await elsewhere.load('c'), { messages: [{}, stopped.body.message] })
      const replay = await elsewhere.resume('c')
      await replay.ended
      t.same(replay.chunks.at(-1), { type: 'abort' })
    })

    await t.test('regenerate makes a sibling of the reply that is named, or of the last one', async (t) => {
      const { ui, client } = visit()
      let made = 0
      upstream.answer(() => say({ text: `Reply ${++made}` }))
      const question = userMessage('u1', 'Hi')
      const first = await ui.send({ id: 'c', messages: [question] })
      await first.ended
      const again = await ui.send({ id: 'c', messages: [question], trigger: 'regenerate-message' })
      await again.ended
      await (await ui.send({ id: 'c', messages: [question, userMessage('u2', 'More')] })).ended
      const named = await ui.send({
        id: 'c',
        messages: [question],
        trigger: 'regenerate-message',
        messageId: startOf(again),
      })
      await named.ended
      t.same(
        [first, again, named].map(({ chunks }) => wordsOf(chunks)),
        ['Reply 1', 'Reply 2', 'Reply 4'],
      )
      t.match((await ui.load('c')).messages, [{ id: 'u1' }, { id: startOf(named) }])
      const session = first.headers.get('x-session-id') ?? ''
      const replies = (await client.messages(session)).filter(({ role }: { role: string }) => role === 'assistant')
      const [root] = await client.messages(session)
      t.equal(replies.filter(({ parent_id }: { parent_id: string }) => parent_id === root.id).length, 3)

      const lost = await ui.send({ id: 'c', messages: [userMessage('u9', 'New')], trigger: 'regenerate-message' })
      await lost.ended
      t.match((await ui.load('c')).messages.at(-2), { id: 'u9' }, 'a message that never came is sent')
      t.equal((await ui.send({ id: 'c', messages: [], trigger: 'regenerate-message' })).status, 404)
    })

    await t.test('an edited message is a sibling with the id that the page goes on with', async (t) => {
      const { ui, client } = visit()
      upstream.answer(({ message }) => say({ text: `Re: ${message}` }))
      const send = async (text: string, more = {}) => {
        const stream = await ui.send({ id: 'c', messages: [userMessage('u1', text)], ...more })
        t.equal(await stream.ended, 'done')
        return stream
      }
      const edit = { messageId: 'u1' }
      const first = await send('One')
      const session = first.headers.get('x-session-id') ?? ''
      for (const words of ['Two', 'One', 'Two']) {
        const stream = await send(words, edit)
        t.equal(wordsOf(stream.chunks), `Re: ${words}`)
        t.match((await ui.load('c')).messages, [
          { id: 'u1', parts: [{ text: words }] },
          { id: startOf(stream), parts: [{}, { text: `Re: ${words}` }] },
        ])
      }
      const unsaid = await send('Three')
      t.match((await ui.load('c')).messages, [{ id: 'u1', parts: [{ text: 'Three' }] }, { id: startOf(unsaid) }])
      const same = await send('Three', edit)
      t.not(runOf(same), runOf(unsaid), 'the same words once more are answered once more')
      const stored = await client.messages(session)
      t.same(
        stored
          .filter(({ role }: { role: string }) => role === 'user')
          .map(({ content, parent_id }: Record<string, unknown>) => [content, parent_id]),
        ['One', 'Two', 'One', 'Two', 'Three'].map((words) => [words, null]),
      )
      const keyed = { id: 'c', messages: [userMessage('u1', 'Four')], ...edit }
      const [one, two] = [
        await ui.send(keyed, { 'idempotency-key': 'k' }),
        await ui.send(keyed, { 'idempotency-key': 'k' }),
      ]
      t.same(await Promise.all([one.ended, two.ended]), ['done', 'done'])
      const three = await ui.send(keyed, { 'idempotency-key': 'k' })
      await three.ended
      t.same([runOf(two), runOf(three)], [runOf(one), runOf(one)], 'an edit under a key is one edit')
      const fresh = await ui.send({ id: 'new', messages: [userMessage('x', 'Hi')], messageId: 'x' })
      t.equal(await fresh.ended, 'done', 'what never came cannot be edited, and is sent')
    })

    for (const [shape, tools] of Object.entries({
      list: [look],
      names: { look: { description: 'Looks.', parameters: look.parameters } },
    })) {
      await t.test(
        `calls of the client's tools (as ${shape}) are answered within the message, and it goes on`,
        async (t) => {
          const { ui, elsewhere } = visit()
          const question = userMessage('u1', 'Look')
          upstream.answer(() => callTool({ name: 'look', input: { at: 1 }, text: 'Hm.' }))
          const first = await ui.send({ id: 'c', messages: [question], tools })
          await first.ended
          t.match(first.chunks.at(-3), { type: 'tool-input-available', toolCallId: 'call_fake', input: { at: 1 } })
          t.notOk('providerExecuted' in (first.chunks.at(-3) ?? {}))
          const [, held] = (await ui.load('c')).messages
          const answered = (message: { id: string; parts: UiChunk[] }, output: unknown) => ({
            ...message,
            parts: message.parts.map((part) =>
              part.state === 'input-available' ? { ...part, state: 'output-available', output } : part,
            ),
          })
          const isOpen = await ui.send({ id: 'c', messages: [question, held], messageId: held.id })
          t.equal(isOpen.status, 400, 'not without the answers')

          // Once more with a call of the same id, which some providers use again and again.
          const sent = { id: 'c', messages: [question, answered(held, 'found')], messageId: held.id }
          const second = await ui.send(sent)
          await second.ended
          t.equal(startOf(second), held.id, 'the message has its id from its first reply')
          t.not(second.headers.get('x-message-id'), held.id)
          const repeat = await ui.send(sent)
          await repeat.ended
          t.equal(runOf(repeat), runOf(second), 'the same answers are the same run')
          const [, more] = (await ui.load('c')).messages
          t.match(more, {
            id: held.id,
            parts: [{}, { text: 'Hm.' }, { output: 'found' }, {}, { text: 'Hm.' }, { state: 'input-available' }],
          })

          const gate = answerAtGate('Found', ' it')
          const third = await ui.send({ id: 'c', messages: [question, answered(more, 'found')], messageId: held.id })
          await third.until(isWords)
          const whole = await elsewhere.resume('c')
          await whole.until(({ delta }) => delta === 'Found')
          t.match((await elsewhere.load('c')).messages, [{}, { id: held.id }], 'what came before is there')
          gate.open()
          t.equal(await third.ended, 'done')
          t.equal(await whole.ended, 'done')
          t.same(
            typesOf(whole.chunks).filter((type) => type === 'start'),
            ['start'],
          )
          t.equal(wordsOf(whole.chunks), 'Hm.Hm.Found it', 'a replay is the whole message')
          const outputs = whole.chunks.filter(({ type }) => type === 'tool-output-available')
          t.match(outputs, [{ output: 'found' }, { output: 'found' }])
          t.equal(new Set(whole.chunks.filter(({ type }) => type === 'text-start').map(({ id }) => id)).size, 3)
          const tail = await ui.resume('c', third.lastId().replace(/-\d+$/, '-1'))
          await tail.ended
          t.equal(wordsOf(tail.chunks), 'Found it', 'and what is behind a cursor is of the last reply')
          t.equal((await ui.load('c')).messages.length, 2)
        },
      )
    }

    await once('a tool of the gateway is told with its answer, as one that no client has to run', async (t) => {
      const { ui } = visit()
      const scripts = [() => callTool({ name: 'clock' }), () => say({ text: 'Nine' })]
      upstream.answer(() => (scripts.shift() as (typeof scripts)[0])())
      const stream = await ui.send({ id: 'c', messages: [userMessage('u1', 'Time?')] })
      await stream.ended
      const told = stream.chunks.filter(({ type }) => type !== 'tool-input-delta')
      t.match(told.slice(2, 8), [
        { type: 'tool-input-start', toolName: 'clock' },
        { type: 'tool-input-available', input: {}, providerExecuted: true },
        { type: 'tool-output-available', output: { hour: 9 }, providerExecuted: true },
        { type: 'finish-step' },
        { type: 'start-step' },
        { type: 'text-start' },
      ])
    })

    await once("an open call that is loaded is the client's exactly when it can be answered", async (t) => {
      const { ui, client } = visit()
      const callsOf = (message: { parts: UiChunk[] }) => message.parts.filter(({ type }) => type.startsWith('tool-'))
      upstream.answer(() => callTool({ name: 'clock' }))
      const theirs = { id: 'theirs', messages: [userMessage('u1', 'Time?')] }
      await (await ui.send({ ...theirs, tools: [{ ...look, name: 'clock' }] })).ended
      const [question, held] = (await ui.load('theirs')).messages
      const [call = { type: '' }] = callsOf(held)
      t.same([call.state, 'providerExecuted' in call], ['input-available', false], 'named as one of the gateway')
      const parts = held.parts.map((part: UiChunk) =>
        part.type === 'tool-clock' ? { ...part, state: 'output-available', output: { hour: 10 } } : part,
      )
      upstream.answer(() => say({ text: 'Ten' }))
      const answered = await ui.send({ id: 'theirs', messages: [question, { ...held, parts }] })
      t.same([await answered.ended, wordsOf(answered.chunks)], ['done', 'Ten'])

      upstream.answer(async function* () {
        yield chunk({
          tool_calls: ['look', 'sundial'].map((name, index) => ({
            index,
            id: `call_${name}`,
            function: { name, arguments: '{}' },
          })),
        })
        yield chunk({}, 'tool_calls')
        yield doneMarker
      })
      const waiting = await ui.send({ id: 'open', messages: [userMessage('u2', 'Look')], tools: [look] })
      await waiting.until(({ type, toolName }) => type === 'tool-input-available' && toolName === 'look')
      const { message } = (await client.post('/api/chat/open/stop')).body
      t.match(callsOf(message)[0], { type: 'tool-look', state: 'input-available', providerExecuted: true })
      t.same((await ui.load('open')).messages[1], message)
    })

    await once('what is refused is plain text with a code beside it', async (t) => {
      const { ui, client } = visit()
      const refused = async (sent: unknown, status: number, code: string, words: RegExp, headers = {}) => {
        const answer = await client.post('/api/chat', sent, headers)
        t.equal(answer.status, status, `${words}`)
        t.match(answer.headers.get('content-type'), /^text\/plain/)
        t.equal(answer.headers.get('x-error-code'), code)
        t.match(answer.body, words)
        return answer
      }
      const message = userMessage('u1', 'Hi')
      const bad = (sent: unknown, words: RegExp) => refused(sent, 400, 'invalid_request', words)
      await bad({ id: 'c' }, /messages/)
      await bad({ id: 'c', messages: [] }, /last of messages/)
      await bad({ id: 'c', messages: [{ id: 'x', role: 'user' }] }, /no parts/)
      await bad({ id: 'c', messages: [userMessage('u1', ' ')] }, /empty/)
      await bad({ id: 'c', messages: [message], trigger: 'other' }, /trigger/)
      await bad({ id: 'c', messages: [message], mode: 'odd' }, /mode/)
      await bad({ id: 'c', messages: [message], tools: { look: {} } }, /parameters/)
      await bad({ id: 'ü'.repeat(200), messages: [message] }, /URL/)
      await bad(
        { id: 'c', messages: [{ ...message, parts: [{ type: 'file', url: 'data:,', mediaType: 'image/png' }] }] },
        /files/,
      )
      await bad(
        { id: 'c', messages: [message, { id: 'a', role: 'assistant', parts: [{ type: 'text', text: 'x' }] }] },
        /no answers/,
      )
      await refused({ id: 'c', messages: [userMessage('u1', 'x'.repeat(100_001))] }, 413, 'too_large', /100000/)
      const token = await refused({ id: 'c', messages: [message] }, 401, 'invalid_token', /credential/, {
        authorization: 'Bearer x',
      })
      t.match(token.headers.get('www-authenticate'), /Bearer/)
      t.match((await client.get('/api/chat/c/other/thing')).body, /There is no such route/)
      t.equal((await client.get('/api/chat')).status, 404)
      const cursor = await ui.resume('c', 'what')
      t.same([cursor.status, cursor.headers.get('x-error-code')], [400, 'invalid_request'])
      const old = userMessage('u0', 'x'.repeat(chatBodyBytesMax))
      const large = await client.post('/api/chat', { id: 'c', messages: [old, message] })
      t.same([large.status, large.body], [413, 'Too large. The body may hold 16 MiB at most.'])
      upstream.answer(() => say({ text: 'Fine' }))
      const toolsOf = (count: number) => Array.from({ length: count }, (_, n) => ({ ...look, name: `n${n}` }))
      const long = { id: 'c', messages: [userMessage('u0', 'x'.repeat(3 * 1024 * 1024)), message] }
      await bad({ id: 'c', messages: [message], tools: toolsOf(toolsMax + 1) }, /tools/)
      const fits = await ui.send({ ...long, tools: toolsOf(toolsMax) })
      t.equal(await fits.ended, 'done', 'a long history is no reason')
    })

    await once('what goes wrong afterwards is an error with public words, behind what was said', async (t) => {
      const { ui } = visit()
      upstream.answer(() => refuse(401, { error: { message: 'key sk-secret is wrong' } }))
      const refused = await ui.send({ id: 'c', messages: [userMessage('u1', 'Hi')] })
      t.equal(await refused.ended, 'done')
      t.match(refused.chunks.at(-1), { type: 'error', errorText: String })
      t.notMatch(refused.text(), /secret/)
      upstream.answer(async function* () {
        yield chunk({ content: 'Half' })
      })
      const broken = await ui.send({ id: 'c', messages: [userMessage('u2', 'Hi')] })
      t.equal(await broken.ended, 'done')
      t.same(typesOf(broken.chunks).slice(-2), ['text-end', 'error'])
      t.equal(wordsOf(broken.chunks), 'Half')
      const { messages } = await ui.load('c')
      t.match(messages.at(-1), { parts: [{ type: 'step-start' }, { text: 'Half' }] })
    })

    await t.test('silence is kept alive by comments, and a process that goes cuts what it cannot end', async (t) => {
      const { ui, elsewhere } = visit()
      upstream.answer(async function* () {
        yield* begin({ text: 'Hel' })
        await forever()
      })
      const own = await ui.send({ id: 'c', messages: [userMessage('u1', 'Hi')] })
      await own.until(isWords)
      const stream = await elsewhere.resume('c')
      await stream.until(isWords)
      while (!stream.text().endsWith(': keep-alive\n\n')) await new Promise((resolve) => setImmediate(resolve))
      if (second !== gateway) {
        await second.close()
        t.equal(await stream.ended, 'cut')
        t.notMatch(stream.text(), /DONE/)
      }
      own.close()
      stream.close()
      t.equal((await ui.client.post('/api/chat/c/stop')).status, 200)
    })
  })
}

test('on two processes with one Redis', { skip: withoutRedis }, async (t) => {
  const upstream = await startFakeUpstream()
  t.teardown(() => upstream.close())
  const redis = await openServer(t, 'redis')
  const store = { ...(await databaseEnv(t, 'postgres')), REDIS_URL: redis.url }
  const env = { ...store, OPENAI_BASE_URL: upstream.url, FRAME_MS: '5' }
  const [gateway, second] = await Promise.all([startGateway(t, { env }), startGateway(t, { env })])
  const client = createClient(gateway.url)
  const [ui, elsewhere] = [createUiClient(gateway.url, client), createUiClient(second.url, client)]

  await t.test('a cursor is taken up on the other one, while the reply is made and behind its end', async (t) => {
    const gate = createGate()
    upstream.answer(async function* () {
      yield chunk({ reasoning_content: 'Hm' })
      yield* begin({ text: 'Hel' })
      await gate.opened
      yield* say({ text: 'lo' })
    })
    const own = await ui.send({ id: 'c', messages: [userMessage('u1', 'Hi')] })
    await own.until(isWords)
    const held = own.chunks.length
    const cursor = own.lastId()
    const tail = await elsewhere.resume('c', cursor)
    gate.open()
    t.same(await Promise.all([own.ended, tail.ended]), ['done', 'done'])
    t.equal(wordsOf(own.chunks), 'Hello')
    t.equal(wordsOf(tail.chunks), 'lo', 'what is behind the cursor, and nothing before it')
    t.same(tail.chunks, own.chunks.slice(held))
    t.equal(tail.lastId(), own.lastId())
    const late = await elsewhere.resume('c', cursor)
    t.equal(await late.ended, 'done')
    t.same([wordsOf(late.chunks), late.chunks.at(-1)], ['lo', { type: 'finish' }])
    t.notOk(late.chunks.some(({ type }) => type === 'start' || type.startsWith('reasoning')))
    t.equal((await elsewhere.resume('c', own.lastId())).status, 204, 'nothing is behind the end')
    t.equal(upstream.calls.length, 1)
  })
})
