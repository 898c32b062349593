/**
 * Sessions that work on their own: started from their input with nobody watching, and killed. And what a session's context
 * is for: the model is told of it before every reply.
 */
import { randomUUID } from 'node:crypto'
import { test } from 'tap'
import { begin, createGate, forever, say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { sql } from '../../src/db/drizzle.ts'
import { passOn } from '../support/agents.ts'
import { type Client, createClient, isDelta, type Stream } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { databaseEnv, startGateway } from '../support/gateway.ts'

/** How long whatever shows a purged run may need to end. */
const goneMsMax = 3000
const sessions = '/api/v1/sessions'

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const upstream = await startFakeUpstream()
    t.teardown(() => upstream.close())
    const lines: string[] = []
    const store = await databaseEnv(t, database)
    const options = {
      agents: [passOn('board')],
      env: { ...store, OPENAI_BASE_URL: upstream.url, FRAME_MS: '5', LOG_LEVEL: 'info' },
      logStream: { write: (line: string) => void lines.push(line) },
    }
    const gateway = await startGateway(t, options)
    // Another process, which shows the first one's replies from the database.
    const elsewhere = database === 'postgres' ? await startGateway(t, options) : gateway
    const { db } = gateway.app

    /** Speaks a little, and then never again. */
    function answerForEver() {
      upstream.answer(async function* () {
        yield* begin({ text: 'So far' })
        await forever()
      })
    }

    async function create(client: Client, body: object): Promise<string> {
      const answer = await client.post(sessions, body)
      if (answer.status !== 201) throw new Error(JSON.stringify(answer.body))
      return answer.body.id
    }
    const start = (client: Client, id: string, body?: object) => client.post(`${sessions}/${id}/start`, body)
    const kill = (client: Client, id: string) => client.post(`${sessions}/${id}/kill`)
    const read = async (client: Client, id: string) => (await client.get(`${sessions}/${id}`)).body
    /** The end of a run; undefined when its stream was cut. */
    const endOf = async (client: Client, runId: string) => {
      const stream = await client.watch(`/api/v1/runs/${runId}/events`)
      return (await stream.ended) === 'clean' ? stream.received.at(-1)?.data : undefined
    }

    await t.test('a session starts from its input, and nobody needs to watch', async (t) => {
      const client = createClient(gateway.url)
      const gate = createGate()
      upstream.answer(async function* () {
        yield* begin({ text: 'Thought ' })
        await gate.opened
        yield* say({ text: 'through' })
      })
      const id = await create(client, { input: 'Should we\nbuy it?', context: { budget: [1, null], note: 'ä' } })
      t.match(await read(client, id), { status: 'created', title: null })
      const answer = await start(client, id, { agent_id: 'board', mode: 'quality' })
      t.match(answer, {
        status: 202,
        body: {
          session: { id, status: 'running', title: 'Should we buy it?', message_count: 2 },
          run: { session_id: id, kind: 'background', status: 'running', mode: 'quality' },
        },
      })
      const { run } = answer.body
      t.equal(answer.body.session.active_run_id, run.id)
      t.equal(answer.headers.get('location'), `/api/v1/runs/${run.id}/events`)
      t.match(await start(client, id), { status: 409, body: { code: 'session_busy', run_id: run.id } })
      gate.open()
      t.match(await endOf(client, run.id), { status: 'completed' })
      t.match(await read(client, id), { status: 'completed', active_run_id: null })
      t.match(await client.messages(id), [
        { role: 'user', content: 'Should we\nbuy it?', parent_id: null },
        { role: 'assistant', content: 'Thought through', agent_id: 'board' },
      ])
      upstream.answer(() => say({ text: 'Yes' }))
      await client.post('/api/v1/chat/message', { message: 'Sure?', session_id: id })
      const context = {
        role: 'system',
        content: 'Context of this conversation, as JSON:\n{"note":"ä","budget":[1,null]}',
      }
      t.same(upstream.calls.at(-2)?.body?.messages, [context, { role: 'user', content: 'Should we\nbuy it?' }])
      t.same(upstream.calls.at(-1)?.body?.messages, [
        context,
        { role: 'user', content: 'Should we\nbuy it?' },
        { role: 'assistant', content: 'Thought through' },
        { role: 'user', content: 'Sure?' },
      ])
    })

    await t.test('the same key starts it once, and nothing starts without an input', async (t) => {
      const client = createClient(gateway.url)
      upstream.answer(() => say({ text: 'Once' }))
      const id = await create(client, { input: 'Go' })
      const key = { client_message_id: 'start' }
      const [one, two] = await Promise.all([start(client, id, key), start(client, id, key)])
      t.same([one.status, two.status], [202, 202])
      t.equal(one.body.run.id, two.body.run.id)
      await endOf(client, one.body.run.id)
      t.equal((await start(client, id, key)).body.run.id, one.body.run.id, 'also when it has ended')
      t.match(await start(client, id, { ...key, mode: 'fast' }), { status: 422 })
      t.match(await start(client, await create(client, { input: 'Go' }), key), { status: 422 }, 'another session')
      const again = await start(client, id)
      t.equal(again.status, 202, 'without a key it is started once more')
      await endOf(client, again.body.run.id)
      for (const body of [{}, { input: '' }, { input: ' \n' }]) {
        t.match(await start(client, await create(client, body)), { status: 400, body: { code: 'invalid_request' } })
      }
      for (const body of [{ on_busy: 'queue' }, { message: 'x' }, { mode: 'slow' }])
        t.match(await start(client, id, body), { status: 400 })
      const stranger = createClient(gateway.url)
      await stranger.post(sessions, {})
      for (const [who, target] of [
        [stranger, id],
        [client, randomUUID()],
      ] as const) {
        t.match(await start(who, target), { status: 404 })
        t.match(await kill(who, target), { status: 404 })
      }
    })

    await t.test('a kill ends what runs and all that waits, and a message begins anew', async (t) => {
      const client = createClient(gateway.url)
      answerForEver()
      const id = await create(client, { input: 'Go' })
      const { run } = (await start(client, id)).body
      const viewer = await client.watch(`/api/v1/runs/${run.id}/events`)
      await viewer.until(isDelta)
      const waiting: Stream[] = []
      for (let n = 0; n < 3; n += 1)
        waiting.push(await client.send({ message: 'Next', session_id: id, on_busy: 'queue' }))
      const calls = upstream.calls.length
      t.match(await kill(client, id), {
        status: 200,
        body: { id, status: 'killed', active_run_id: null, message_count: 8 },
      })
      for (const stream of [viewer, ...waiting]) {
        t.equal(await stream.ended, 'clean')
        t.match(stream.received.at(-1), { event: 'done', data: { status: 'stopped' } })
      }
      t.equal(upstream.calls.length, calls, 'nothing that waited has begun')
      t.match((await client.messages(id))[1], { status: 'stopped', content: 'So far' })
      const before = await read(client, id)
      t.same((await kill(client, id)).body, before, 'again, it changes nothing')
      upstream.answer(() => say({ text: 'Here' }))
      t.match((await client.post('/api/v1/chat/message', { message: 'Hi', session_id: id })).body, {
        session: { status: 'completed' },
      })
      const idle = await create(client, {})
      t.match(
        (await kill(client, idle)).body,
        { status: 'created', version: 1 },
        'a session that runs nothing is as it was',
      )
    })

    await t.test('a stop is no kill', async (t) => {
      const client = createClient(gateway.url)
      answerForEver()
      const stream = await client.send({ message: 'Talk' })
      await stream.until(isDelta)
      const id = stream.headers.get('x-session-id') ?? ''
      await client.post(`${sessions}/${id}/stop`)
      t.match(await read(client, id), { status: 'completed' })
    })

    await t.test(
      'a run whose session is purged lets go: its upstream is aborted, its viewers end, nothing is a fault',
      async (t) => {
        const client = createClient(gateway.url)
        answerForEver()
        const stream = await client.send({ message: 'Talk' })
        await stream.until(isDelta)
        const call = upstream.calls.at(-1)
        const session_id = stream.headers.get('x-session-id') ?? ''
        const runId = stream.headers.get('x-run-id') ?? ''
        const attached = await client.watch(`/api/v1/runs/${runId}/events`)
        await attached.until(isDelta)
        const far = await createClient(elsewhere.url, client.identity).watch(`/api/v1/runs/${runId}/events`)
        await far.until(isDelta)
        const waiting = await client.send({ message: 'Next', session_id, on_busy: 'queue' })
        const whole = client.post('/api/v1/chat/message', { message: 'Whole', session_id, on_busy: 'queue' })
        for (let stored = 0; stored < 6; ) stored = (await client.messages(session_id)).length
        lines.length = 0
        const purgedAt = performance.now()
        await db.rows(sql`delete from chat_sessions where id = ${session_id}::uuid`)
        for (const viewer of [stream, attached, far, waiting]) {
          t.equal(await viewer.ended, 'cut', 'an end without an end')
          t.notMatch(viewer.text(), /event: done/)
        }
        t.match(await whole, { status: 404, body: { code: 'not_found' } })
        await call?.aborted
        const tookMs = performance.now() - purgedAt
        t.ok(tookMs < goneMsMax, `within ${Math.round(tookMs)} ms`)
        t.equal((await client.get(`/api/v1/runs/${runId}/events`)).status, 404)
        const levels = lines
          .map((line) => JSON.parse(line))
          .filter(({ level }) => level === 'warn' || level === 'error')
        t.same(levels, [])
      },
    )
  })
}
