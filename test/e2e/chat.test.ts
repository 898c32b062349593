/**
 * The main job, over real HTTP, on every database: a message goes in, the reply streams out, and both are stored. One
 * test for each promise of the protocol that a single process can keep.
 */
import { test } from 'tap'
import {
  begin,
  chunk,
  createGate,
  doneMarker,
  say,
  startFakeUpstream,
  usageChunk,
} from '../../scripts/fake-upstream.ts'
import { type Client, createClient, holdParts, isDelta, isDone, shownText } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const upstream = await startFakeUpstream()
    t.teardown(() => upstream.close())
    const gateway = await startGateway(t, {
      database,
      env: { OPENAI_BASE_URL: upstream.url, RUNS_PER_OWNER: '3', VIEWERS_PER_OWNER: '4', FRAME_MS: '5' },
    })
    const newClient = () => createClient(gateway.url)

    await t.test('the reply that was streamed is the reply that is stored', async (t) => {
      const client = newClient()
      const text = 'Grüße, 世界! 👩‍👩‍👧‍👦 and a line\u2028break.\n\n- one\n- two'
      upstream.answer(() => say({ text }))
      const stream = await client.send({ message: 'Hello there' })
      t.equal(stream.status, 200)
      t.equal(stream.headers.get('content-type'), 'text/event-stream')
      t.equal(stream.headers.get('cache-control'), 'no-cache, no-transform')
      t.equal(stream.headers.get('x-accel-buffering'), 'no')
      t.equal(await stream.ended, 'clean')
      t.ok(stream.text().startsWith('retry: 1000\nevent: run\n'), 'retry stands directly above the first event')
      t.equal(stream.received[0]?.event, 'run')
      t.same(
        stream.received.map(({ id }) => id),
        stream.received.map((_, index) => `1-${index + 1}`),
        'ids are dense from 1-1',
      )
      t.equal(shownText(stream.received), text)

      const run = stream.received[0]?.data
      t.equal(stream.headers.get('x-session-id'), run.session_id)
      t.equal(stream.headers.get('x-run-id'), run.run_id)
      t.equal(stream.headers.get('x-message-id'), run.message_id)
      t.equal(stream.headers.get('location'), `/api/v1/runs/${run.run_id}/events`)
      const [question, reply, ...others] = await client.messages(run.session_id)
      t.same(others, [])
      t.match(question, { id: run.user_message_id, seq: 1, role: 'user', content: 'Hello there', status: 'completed' })
      t.match(reply, {
        id: run.message_id,
        seq: 2,
        parent_id: run.user_message_id,
        role: 'assistant',
        content: text,
        parts: [{ kind: 'text', text }],
        status: 'completed',
        finish_reason: 'stop',
        model: 'fake',
      })
      const { usage, ttft_ms, latency_ms } = (await stream.until(isDone)).data
      t.equal(reply.total_tokens, usage.total_tokens)
      t.equal(reply.ttft_ms, ttft_ms)
      t.equal(reply.latency_ms, latency_ms)
      t.ok(ttft_ms <= latency_ms)
      const session = (await client.get(`/api/v1/sessions/${run.session_id}`)).body
      t.match(session, {
        title: 'Hello there',
        status: 'completed',
        message_count: 2,
        total_tokens: usage.total_tokens,
        active_run_id: null,
        is_anonymous: true,
        user_id: null,
      })
    })

    await t.test('P1 when the status arrives, the message and the run are stored', async (t) => {
      const client = newClient()
      const gate = createGate()
      upstream.answer(async function* () {
        await gate.opened
        yield* say()
      })
      const stream = await client.send({ message: 'Are you there?' })
      const sessionId = stream.headers.get('x-session-id') ?? ''
      const stored = await client.messages(sessionId)
      t.match(stored, [
        { role: 'user', content: 'Are you there?' },
        { role: 'assistant', status: 'streaming', content: '' },
      ])
      t.equal((await client.get(`/api/v1/runs/${stream.headers.get('x-run-id')}`)).body.status, 'running')
      t.equal((await client.get(`/api/v1/sessions/${sessionId}`)).body.status, 'running')
      gate.open()
      t.equal(await stream.ended, 'clean')
    })

    await t.test('P3 a viewer that resumes after event n receives n+1 first, exactly once, for every n', async (t) => {
      const client = newClient()
      const gate = createGate()
      upstream.answer(async function* () {
        yield* begin({ tokens: 12, paceMs: 8 })
        await gate.opened
        yield chunk({ content: ' end' }, 'stop')
        yield doneMarker
      })
      const first = await client.send({ message: 'Count' })
      const path = `/api/v1/runs/${first.headers.get('x-run-id')}/events`
      await first.until(({ data }) => data.text?.includes('word11') === true)
      const live = [...first.received]
      t.ok(live.filter(isDelta).length > 3, 'the words came in several events')
      const resumed = await Promise.all(
        live.slice(0, 3).map(({ id }) => client.watch(path, { 'last-event-id': id ?? '' })),
      )
      gate.open()
      await first.ended
      const whole = shownText(first.received)
      for (const [index, viewer] of resumed.entries()) {
        t.equal(await viewer.ended, 'clean')
        const held = holdParts(live.slice(0, index + 1))
        t.equal(shownText(viewer.received, held), whole, `after ${live[index]?.id}`)
        t.equal(viewer.received.filter(isDone).length, 1)
        t.ok(
          viewer.received.some(({ event }) => event === 'ready'),
          'it is told when it has caught up',
        )
      }
      for (const { id } of first.received.slice(0, -1)) {
        const after = await client.watch(`${path}?after=${id}`)
        t.equal(await after.ended, 'clean')
        const index = first.received.findIndex((event) => event.id === id)
        t.equal(shownText(after.received, holdParts(first.received.slice(0, index + 1))), whole, `ended, after ${id}`)
      }
      const atEnd = await client.get(path, { 'last-event-id': first.received.at(-1)?.id ?? '' })
      t.equal(atEnd.status, 204)
      t.equal((await client.messages(first.headers.get('x-session-id') ?? ''))[1].content, whole)
    })

    await t.test('P3 a twin: the check above notices a lost and a doubled event', async (t) => {
      const delta = (offset: number, text: string) => ({ event: 'delta', data: { part: 0, offset, text }, id: '1-2' })
      t.throws(() => shownText([delta(0, 'ab'), delta(3, 'd')]), /offset 3, but 2 held/)
      t.throws(() => shownText([delta(0, 'ab'), delta(0, 'ab')]), /offset 0, but 2 held/)
    })

    await t.test('a cursor that cannot be served is answered with reset, a malformed one with 400', async (t) => {
      const client = newClient()
      upstream.answer(() => say({ text: 'All of it' }))
      const stream = await client.send({ message: 'Hi' })
      await stream.ended
      const path = `/api/v1/runs/${stream.headers.get('x-run-id')}/events`
      for (const cursor of ['1-999999', '2-1', '7-3', '0-0']) {
        const viewer = await client.watch(path, { 'last-event-id': cursor })
        t.equal(await viewer.ended, 'clean')
        t.same(
          viewer.received.map(({ event }) => event),
          ['reset', 'done'],
          cursor,
        )
        t.equal(shownText(viewer.received), 'All of it')
        t.equal(viewer.received[0]?.data.cursor, viewer.received[0]?.id)
      }
      for (const cursor of ['x', '1', '1-', '-1', '1-2-3', '01-1', '1-1 ', '9999999999-1', '1'.repeat(10_000)]) {
        const answer = await client.get(path, { 'last-event-id': cursor })
        // Blanks around a header's value are not part of it.
        if (cursor.trim() !== '1-1')
          t.match(answer, { status: 400, body: { code: 'invalid_request' } }, cursor.slice(0, 20))
        const query = await client.get(`${path}?after=${encodeURIComponent(cursor)}`)
        t.equal(query.status, 400, `in the query: ${cursor.slice(0, 20)}`)
      }
    })

    await t.test('P4 when done arrives, everything is stored', async (t) => {
      const client = newClient()
      for (let round = 0; round < 10; round += 1) {
        upstream.answer(() => say({ text: `Reply ${round}` }))
        const stream = await client.send({ message: 'Hi' })
        const done = await stream.until(isDone)
        const run = (await client.get(`/api/v1/runs/${stream.headers.get('x-run-id')}`)).body
        t.match(run, { status: 'completed', usage: done.data.usage, finish_reason: 'stop' })
        t.equal((await client.messages(run.session_id))[1].content, `Reply ${round}`)
      }
    })

    await t.test('P5 the same key is the same run: one pair of messages, one upstream call', async (t) => {
      const client = newClient()
      await client.get('/api/v1/sessions')
      upstream.answer(() => say({ tokens: 30, paceMs: 2 }))
      const before = upstream.calls.length
      const body = { message: 'Once, please', client_message_id: 'key-1' }
      const streams = await Promise.all(Array.from({ length: 4 }, () => client.send(body)))
      for (const stream of streams) t.equal(await stream.ended, 'clean')
      t.equal(upstream.calls.length, before + 1)
      t.equal(new Set(streams.map((stream) => stream.headers.get('x-run-id'))).size, 1)
      t.equal(new Set(streams.map((stream) => shownText(stream.received))).size, 1)
      const sessionId = streams[0]?.headers.get('x-session-id') ?? ''
      t.equal((await client.messages(sessionId)).length, 2)
      const again = await client.send({ ...body, session_id: sessionId }, { 'idempotency-key': 'key-1' })
      t.equal(await again.ended, 'clean')
      t.equal(shownText(again.received), shownText(streams[0]?.received ?? []))
      t.equal(upstream.calls.length, before + 1)

      const other = await client.post('/api/v1/chat/stream', { ...body, message: 'Twice' })
      t.match(other, { status: 422, body: { code: 'idempotency_mismatch' } })
      const elsewhere = { ...body, session_id: '01890000-0000-7000-8000-000000000000' }
      t.match(await client.post('/api/v1/chat/stream', elsewhere), { status: 422 })
      const differing = await client.post('/api/v1/chat/stream', body, { 'idempotency-key': 'key-2' })
      t.match(differing, { status: 400, body: { code: 'invalid_request' } })
      const stranger = await newClient().send(body)
      await stranger.ended
      t.not(stranger.headers.get('x-run-id'), streams[0]?.headers.get('x-run-id'), 'keys are in the owner’s scope')
    })

    await t.test('P5 a busy session refuses a second message, or interrupts the first when asked to', async (t) => {
      const client = newClient()
      upstream.answer(() => say({ tokens: 2000, paceMs: 5 }))
      const first = await client.send({ message: 'Long' })
      await first.until(isDelta)
      const session_id = first.headers.get('x-session-id') ?? ''
      const runId = first.headers.get('x-run-id')
      const refused = await client.post('/api/v1/chat/stream', { message: 'Me too', session_id })
      t.match(refused, {
        status: 409,
        body: { code: 'session_busy', run_id: runId, stream_url: `/api/v1/runs/${runId}/events`, retryable: true },
      })
      t.equal((await client.messages(session_id)).length, 2, 'the refused message left nothing')
      upstream.answer(() => say({ text: 'Second' }))
      const second = await client.send({ message: 'Now', session_id, on_busy: 'interrupt' })
      t.equal(await second.ended, 'clean')
      t.equal((await first.until(isDone)).data.status, 'stopped')
      const statuses = (await client.messages(session_id)).map(({ seq, status }: { seq: number; status: string }) => [
        seq,
        status,
      ])
      t.same(statuses, [
        [1, 'completed'],
        [2, 'stopped'],
        [3, 'completed'],
        [4, 'completed'],
      ])
    })

    await t.test('P6 a closed tab changes nothing, unless the request said so', async (t) => {
      const client = newClient()
      const gate = createGate()
      upstream.answer(async function* () {
        yield* begin({ text: 'Half' })
        await gate.opened
        yield chunk({ content: ' and half' }, 'stop')
        yield doneMarker
      })
      const left = await client.send({ message: 'Go on without me' })
      await left.until(isDelta)
      left.close()
      await left.ended
      gate.open()
      const viewer = await client.watch(`/api/v1/runs/${left.headers.get('x-run-id')}/events`)
      t.equal(await viewer.ended, 'clean')
      t.equal(shownText(viewer.received), 'Half and half')

      upstream.answer(() => say({ tokens: 2000, paceMs: 5 }))
      const stopped = await client.send({ message: 'Stop with me', on_disconnect: 'stop' })
      await stopped.until(isDelta)
      const other = await client.watch(`/api/v1/runs/${stopped.headers.get('x-run-id')}/events`)
      stopped.close()
      await stopped.ended
      const seen = other.received.length
      await other.until((event) => event !== other.received[seen] && isDelta(event))
      t.notOk(other.received.some(isDone), 'it goes on while somebody watches')
      other.close()
      const end = await untilEnded(client, stopped.headers.get('x-run-id') ?? '')
      t.equal(end.status, 'stopped')
    })

    await t.test('stop keeps the partial text, from any tab, and says so again when asked again', async (t) => {
      const client = newClient()
      upstream.answer(() => say({ tokens: 2000, paceMs: 5 }))
      const stream = await client.send({ message: 'Long' })
      await stream.until(isDelta)
      const sessionId = stream.headers.get('x-session-id') ?? ''
      const call = upstream.calls.at(-1)
      const stopped = await client.post(`/api/v1/runs/${stream.headers.get('x-run-id')}/stop`)
      t.equal(await stream.ended, 'clean')
      t.equal((await stream.until(isDone)).data.status, 'stopped')
      t.match(stopped, { status: 200, body: { run: { status: 'stopped' }, message: { status: 'stopped' } } })
      for (const name of ['x-session-id', 'x-run-id', 'x-message-id']) {
        t.equal(stopped.headers.get(name), stream.headers.get(name), name)
      }
      t.equal(stopped.body.message.content, shownText(stream.received))
      t.not(stopped.body.message.content, '')
      await call?.aborted
      const again = await client.post(`/api/v1/runs/${stream.headers.get('x-run-id')}/stop`)
      t.same(again.body, stopped.body)
      t.equal((await client.post(`/api/v1/sessions/${sessionId}/stop`)).status, 204)
      t.match((await client.get(`/api/v1/sessions/${sessionId}`)).body, { status: 'completed', active_run_id: null })
    })

    await t.test('the stop of a session stops its run', async (t) => {
      const client = newClient()
      upstream.answer(() => say({ tokens: 2000, paceMs: 5 }))
      const stream = await client.send({ message: 'Long' })
      await stream.until(isDelta)
      const answer = await client.post(`/api/v1/sessions/${stream.headers.get('x-session-id')}/stop`)
      t.match(answer, { status: 200, body: { run: { status: 'stopped' } } })
      t.equal(await stream.ended, 'clean')
    })

    await t.test('a native EventSource starts with GET, resumes by its id, and is ended with 204', async (t) => {
      const client = newClient()
      await client.get('/api/v1/sessions')
      upstream.answer(() => say({ tokens: 20, paceMs: 3 }))
      const before = upstream.calls.length
      const path = '/api/v1/chat/stream?message=Hello&client_message_id=es-1&mode=fast'
      t.match(await client.get('/api/v1/chat/stream?message=Hello'), { status: 400, body: { code: 'invalid_request' } })
      const first = await client.watch(path)
      const cut = await first.until(isDelta)
      first.close()
      await first.ended
      const index = first.received.indexOf(cut)
      const second = await client.watch(path, { 'last-event-id': cut.id ?? '' })
      t.equal(await second.ended, 'clean')
      t.equal(
        shownText(second.received, holdParts(first.received.slice(0, index + 1))),
        (await client.messages(second.headers.get('x-session-id') ?? ''))[1].content,
      )
      const done = second.received.at(-1)
      t.equal((await client.get(path, { 'last-event-id': done?.id ?? '' })).status, 204)
      t.equal((await client.get(path, { 'last-event-id': '1-999999' })).status, 204, 'behind the end it is the end too')
      t.equal(upstream.calls.length, before + 1)
    })

    await t.test('a message is answered as one JSON document', async (t) => {
      const client = newClient()
      upstream.answer(() => say({ text: 'Whole' }))
      const answer = await client.post('/api/v1/chat/message', { message: 'In one piece' })
      t.equal(answer.status, 200)
      t.match(answer.body, {
        session: { title: 'In one piece', message_count: 2 },
        user_message: { content: 'In one piece' },
        message: { content: 'Whole', status: 'completed' },
        run: { status: 'completed' },
      })
      t.equal(answer.headers.get('x-run-id'), answer.body.run.id)
    })

    await t.test('earlier messages of the session go upstream, oldest first', async (t) => {
      const client = newClient()
      upstream.answer(() => say({ text: 'One.' }))
      const first = await client.post('/api/v1/chat/message', { message: 'First' })
      upstream.answer(() => say({ text: 'Two.' }))
      const session_id = first.body.session.id
      await client.post('/api/v1/chat/message', { message: 'Second', session_id })
      t.same(upstream.calls.at(-1)?.body?.messages, [
        { role: 'user', content: 'First' },
        { role: 'assistant', content: 'One.' },
        { role: 'user', content: 'Second' },
      ])
      const branch = { message: 'Other', session_id, parent_id: first.body.message.id }
      await client.post('/api/v1/chat/message', branch)
      t.same(
        upstream.calls.at(-1)?.body?.messages?.map(({ content }) => content),
        ['First', 'One.', 'Other'],
        'a message that names its parent continues from there',
      )
      const stray = { message: 'Other', session_id, parent_id: session_id }
      t.match(await client.post('/api/v1/chat/message', stray), { status: 404, body: { code: 'not_found' } })
      const session = (await client.get(`/api/v1/sessions/${session_id}`)).body
      t.equal(session.message_count, 6)
      t.equal(session.title, 'First')
    })

    await t.test('what a model calls, the client answers, and the model goes on with the answer', async (t) => {
      const client = newClient()
      upstream.answer(function* () {
        const call = { index: 0, id: 'c1', type: 'function', function: { name: 'look', arguments: '{"at":"it"}' } }
        yield chunk({ content: 'Let me see.' })
        yield chunk({ tool_calls: [call] })
        yield chunk({}, 'tool_calls')
        yield doneMarker
      })
      const tools = [{ name: 'look', parameters: { type: 'object', properties: { at: { type: 'string' } } } }]
      const stream = await client.send({ message: 'Look at it', tools, tool_choice: 'auto' })
      const { data: called } = await stream.until(({ event }) => event === 'tool')
      t.match(called, { call_id: 'c1', name: 'look', input: { at: 'it' } })
      t.match((await stream.until(isDone)).data, { status: 'completed', finish_reason: 'tool_calls' })

      upstream.answer(() => say({ text: 'It is blue.' }))
      const session_id = stream.headers.get('x-session-id')
      const answers = {
        session_id,
        tool_results: [{ call_id: 'c1', output: { color: 'blue' } }],
        client_message_id: 'k',
      }
      const next = await client.send(answers)
      await next.until(isDone)
      t.equal(shownText(next.received), 'It is blue.')
      t.same(
        upstream.calls.at(-1)?.body?.messages?.map(({ role }) => role),
        ['user', 'assistant', 'tool'],
      )
      t.equal(upstream.calls.at(-1)?.body?.messages?.at(-1)?.content, '{"color":"blue"}')
      const [, reply, answer, last] = await client.messages(`${session_id}`)
      t.match(answer, { role: 'tool', content: '', parent_id: reply.id, status: 'completed' })
      t.same(answer.parts, [{ kind: 'tool_call', text: '', call_id: 'c1', name: 'look', output: { color: 'blue' } }])
      t.match(last, { role: 'assistant', parent_id: answer.id, content: 'It is blue.' })

      const again = await client.send(answers)
      t.equal(again.headers.get('x-run-id'), next.headers.get('x-run-id'), 'a repeat is the same run')
      const twice = { ...answers, client_message_id: 'other' }
      t.match(await client.post('/api/v1/chat/message', twice), { status: 409, body: { code: 'conflict' } })

      const exported = (await client.get(`/api/v1/sessions/${session_id}/export?format=md`)).body
      t.match(exported, /Tool call: look\n\n```text\n\{"at":"it"\}\n```/)
      t.match(exported, /Answer of look:\n\n```text\n\{\n {2}"color": "blue"\n\}\n```/)
      const file = (await client.get(`/api/v1/sessions/${session_id}/export`)).body
      const { imported } = (await newClient().post('/api/v1/sessions/import', file)).body
      t.match(imported, [{ messages: 4, existing: false }])
      const words = (await client.get(`/api/v1/sessions/${session_id}/artifacts/transcript?generate=1`)).body.body
      t.notMatch(words, /Tool/)
    })

    await t.test('a running reply is read as partial text with its cursor, and continues from there', async (t) => {
      const client = newClient()
      const gate = createGate()
      upstream.answer(async function* () {
        yield* begin({ text: 'So far so good' })
        await gate.opened
        yield chunk({ content: ', and on' }, 'stop')
        yield usageChunk(3, 4)
        yield doneMarker
      })
      const stream = await client.send({ message: 'Tell me' })
      await stream.until(({ data }) => data.text?.includes('good') === true)
      const [, reply] = await client.messages(stream.headers.get('x-session-id') ?? '')
      t.match(reply, { status: 'streaming', content: 'So far so good', parts: [{ kind: 'text' }] })
      const viewer = await client.watch(`/api/v1/runs/${reply.run_id}/events?after=${reply.cursor}`)
      gate.open()
      t.equal(await viewer.ended, 'clean')
      t.equal(shownText(viewer.received, reply.parts), 'So far so good, and on')
    })

    await t.test('P9 what belongs to somebody else is not found', async (t) => {
      const [mine, theirs] = [newClient(), newClient()]
      upstream.answer(() => say())
      const stream = await mine.send({ message: 'Private', client_message_id: 'p9' })
      await stream.ended
      const session = stream.headers.get('x-session-id')
      const run = stream.headers.get('x-run-id')
      await theirs.get('/api/v1/sessions')
      const unknown = '01890000-0000-7000-8000-000000000000'
      for (const [sessionId, runId] of [
        [session, run],
        [unknown, unknown],
      ]) {
        const answers = [
          await theirs.get(`/api/v1/sessions/${sessionId}`),
          await theirs.get(`/api/v1/sessions/${sessionId}/messages`),
          await theirs.post(`/api/v1/sessions/${sessionId}/stop`),
          await theirs.get(`/api/v1/runs/${runId}`),
          await theirs.get(`/api/v1/runs/${runId}/events`),
          await theirs.post(`/api/v1/runs/${runId}/stop`),
        ]
        for (const { status, body } of answers) t.match({ status, body }, { status: 404, body: { code: 'not_found' } })
      }
      t.same((await theirs.get('/api/v1/sessions')).body.data, [])
      const into = await theirs.post('/api/v1/chat/stream', { message: 'Let me in', session_id: session })
      t.match(into, { status: 404, body: { code: 'not_found' } })
      t.match(await theirs.post('/api/v1/sessions', { id: session }), { status: 404 })
      t.equal((await mine.messages(session ?? '')).length, 2)
    })

    await t.test('P10 runs and streams of one owner are bounded', async (t) => {
      const client = newClient()
      await client.get('/api/v1/sessions')
      upstream.answer(() => say({ tokens: 5000, paceMs: 5 }))
      const streams = await Promise.all([1, 2, 3].map((n) => client.send({ message: `Run ${n}` })))
      const more = await client.post('/api/v1/chat/stream', { message: 'Run 4' })
      t.match(more, { status: 429, body: { code: 'rate_limited', retryable: true } })
      t.ok(Number(more.headers.get('retry-after')) > 0)
      const path = `/api/v1/runs/${streams[0]?.headers.get('x-run-id')}/events`
      const fourth = await client.watch(path)
      t.equal(fourth.status, 200)
      t.match(await client.get(path), { status: 429, body: { code: 'rate_limited' } })
      const reconnect = await client.watch(path, { 'last-event-id': '1-1' })
      t.equal(reconnect.status, 200, 'a reconnecting EventSource is not killed by a limit that passes')
      t.equal(await reconnect.ended, 'clean')
      t.same(
        reconnect.received.map(({ event }) => event),
        ['reconnect'],
      )
      t.equal((await newClient().send({ message: 'Another owner' })).status, 200)
      for (const stream of streams) await client.post(`/api/v1/runs/${stream.headers.get('x-run-id')}/stop`)
      fourth.close()
    })
  })
}

async function untilEnded(client: Client, runId: string) {
  for (;;) {
    const run = (await client.get(`/api/v1/runs/${runId}`)).body
    if (run.status !== 'running') return run
  }
}
