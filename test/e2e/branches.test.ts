/**
 * Branches as a client sees them: another reply, another message in the place of one, what the model is told on each, and
 * which messages are the conversation now.
 */
import { randomUUID } from 'node:crypto'
import { test } from 'tap'
import { begin, createGate, type FakeCall, say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { sql } from '../../src/db/drizzle.ts'
import { passOn } from '../support/agents.ts'
import { type Client, createClient, isDelta, isDone, shownText } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'

interface Listed {
  readonly id: string
  readonly seq: number
  readonly parent_id: string | null
  readonly run_id: string
  readonly role: string
  readonly content: string
  readonly status: string
}

const asStream = { accept: 'text/event-stream' }
const whole = '/api/v1/chat/message'
const historyOf = (call: FakeCall | undefined) => call?.body?.messages?.map(({ content }) => content)

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const upstream = await startFakeUpstream()
    t.teardown(() => upstream.close())
    const gateway = await startGateway(t, {
      database,
      agents: [passOn('critic')],
      env: { OPENAI_BASE_URL: upstream.url, FRAME_MS: '5' },
    })
    const { db } = gateway.app
    const lastHistory = () => historyOf(upstream.calls.at(-1))

    /** Replies name what they reply to, and how often the upstream was asked before. */
    function answerByNumber() {
      let count = 0
      upstream.answer(({ message }) => {
        count += 1
        return say({ text: `${message}: ${count}` })
      })
    }

    function answerAtGate() {
      const gate = createGate()
      upstream.answer(async function* ({ message }) {
        yield* begin({ text: `${message}: ` })
        await gate.opened
        yield* say({ text: 'late' })
      })
      return gate
    }

    async function ask(client: Client, body: object) {
      const answer = await client.post(whole, body)
      if (answer.status !== 200) throw new Error(JSON.stringify(answer.body))
      return answer.body as { session: { id: string }; user_message: Listed; message: Listed }
    }

    const regenerate = (client: Client, id: string, body?: object, extra?: Record<string, string>) =>
      client.post(`/api/v1/messages/${id}/regenerate`, body, extra)
    const edit = (client: Client, id: string, body: object, extra?: Record<string, string>) =>
      client.post(`/api/v1/messages/${id}/edit`, body, extra)

    async function list(client: Client, sessionId: string, query = ''): Promise<Listed[]> {
      const answer = await client.get(`/api/v1/sessions/${sessionId}/messages?limit=100${query}`)
      return answer.body.data
    }
    const words = (messages: readonly Listed[]) => messages.map(({ content }) => content)
    const active = async (client: Client, sessionId: string) => words(await list(client, sessionId, '&branch=active'))

    /** Resolves when the run has ended, as its stream does. */
    async function ended(client: Client, runId: string): Promise<string> {
      const stream = await client.watch(`/api/v1/runs/${runId}/events`)
      await stream.ended
      return shownText(stream.received)
    }

    await t.test('a regenerate is a sibling of the reply, and what comes next follows the new one', async (t) => {
      const client = createClient(gateway.url)
      answerByNumber()
      const first = await ask(client, { message: 'One' })
      const session_id = first.session.id
      const answer = await regenerate(client, first.message.id)
      t.match(answer, {
        status: 202,
        body: {
          run: { kind: 'chat', user_message_id: first.user_message.id, session_id },
          user_message: first.user_message,
          message: { role: 'assistant', seq: 3, parent_id: first.user_message.id },
        },
      })
      const { run, message } = answer.body
      t.equal(answer.headers.get('location'), `/api/v1/runs/${run.id}/events`)
      t.equal(answer.headers.get('x-message-id'), message.id)
      t.equal(await ended(client, run.id), 'One: 2')
      t.same(lastHistory(), ['One'], 'the other reply is on no way to this one')
      t.match((await client.get(`/api/v1/sessions/${session_id}`)).body, {
        message_count: 3,
        title: 'One',
        status: 'completed',
      })
      t.same(await active(client, session_id), ['One', 'One: 2'])

      const next = await ask(client, { message: 'Two', session_id })
      t.equal(next.user_message.parent_id, message.id)
      t.same(lastHistory(), ['One', 'One: 2', 'Two'])
      t.same(await active(client, session_id), ['One', 'One: 2', 'Two', 'Two: 3'])
      t.same(words(await list(client, session_id)), ['One', 'One: 1', 'One: 2', 'Two', 'Two: 3'], 'all is kept')

      const aside = await ask(client, { message: 'Two again', session_id, parent_id: first.message.id })
      t.same(lastHistory(), ['One', 'One: 1', 'Two again'])
      t.equal(aside.user_message.parent_id, first.message.id)
      t.same(await active(client, session_id), ['One', 'One: 1', 'Two again', 'Two again: 4'], 'that is the branch now')
    })

    await t.test('a regenerate of a message of the user is a reply to it, with what was asked for', async (t) => {
      const client = createClient(gateway.url)
      answerByNumber()
      const first = await ask(client, { message: 'One' })
      const body = { mode: 'quality', agent_id: 'critic', metadata: { why: 'again' } }
      const stream = await regenerate(client, first.user_message.id, body, asStream)
      t.equal(stream.status, 200)
      t.match(stream.headers.get('content-type'), /^text\/event-stream/)
      t.match(stream.body, /event: run\n.*\nid: 1-1\n/)
      t.match(stream.body, /event: done/)
      const reply = (await list(client, first.session.id)).at(-1)
      t.match(reply, { seq: 3, agent_id: 'critic', metadata: { why: 'again' }, parent_id: first.user_message.id })
      t.match((await client.get(`/api/v1/runs/${reply?.run_id}`)).body, { mode: 'quality' })
    })

    await t.test('an edit is a sibling of the message, also of the first one, which follows nothing', async (t) => {
      const client = createClient(gateway.url)
      answerByNumber()
      const first = await ask(client, { message: 'One' })
      const session_id = first.session.id
      const second = await ask(client, { message: 'Two', session_id })
      const root = await edit(client, first.user_message.id, { message: 'Uno', metadata: { lang: 'es' } })
      t.match(root, {
        status: 202,
        body: {
          user_message: { content: 'Uno', parent_id: null, seq: 5, metadata: { lang: 'es' } },
          message: { seq: 6 },
        },
      })
      t.equal(await ended(client, root.body.run.id), 'Uno: 3')
      t.same(lastHistory(), ['Uno'])
      t.same(await active(client, session_id), ['Uno', 'Uno: 3'])
      t.match((await client.get(`/api/v1/sessions/${session_id}`)).body, { message_count: 6, title: 'One' })

      const inner = await edit(client, second.user_message.id, { message: 'Dos' })
      t.equal(inner.body.user_message.parent_id, second.user_message.parent_id)
      t.equal(await ended(client, inner.body.run.id), 'Dos: 4')
      t.same(lastHistory(), ['One', 'One: 1', 'Dos'])
      await ask(client, { message: 'Three', session_id })
      t.same(lastHistory(), ['One', 'One: 1', 'Dos', 'Dos: 4', 'Three'])
    })

    await t.test('in the queue a first message stays first, and a new reply stays where it is', async (t) => {
      const client = createClient(gateway.url)
      const gate = answerAtGate()
      const running = await client.send({ message: 'One' })
      await running.until(isDelta)
      const session_id = running.headers.get('x-session-id') ?? ''
      const [one] = await list(client, session_id)
      const on_busy = 'queue'
      const plain = await client.send({ message: 'Two', session_id, on_busy })
      const again = await regenerate(client, one!.id, { on_busy })
      const root = await edit(client, one!.id, { message: 'Uno', on_busy })
      const two = (await list(client, session_id)).find(({ content }) => content === 'Two')
      const sibling = await edit(client, two!.id, { message: 'Dos', on_busy })
      const last = await client.send({ message: 'Three', session_id, on_busy })
      t.same(
        [again, root, sibling].map(({ status, body }) => [status, body.run.status]),
        [
          [202, 'queued'],
          [202, 'queued'],
          [202, 'queued'],
        ],
      )
      t.same(
        await active(client, session_id),
        ['One', 'One: ', 'Dos', '', 'Three', ''],
        'what waits is shown where it will be',
      )
      const before = upstream.calls.length
      answerByNumber()
      gate.open()
      await last.until(isDone)
      t.same(upstream.calls.slice(before).map(historyOf), [
        ['One', 'One: late', 'Two'],
        ['One'],
        ['Uno'],
        ['One', 'One: late', 'Dos'],
        ['One', 'One: late', 'Dos', 'Dos: 4', 'Three'],
      ])
      t.equal((await list(client, session_id)).find(({ content }) => content === 'Uno')?.parent_id, null)
      t.equal(await plain.ended, 'clean')
    })

    await t.test('a session that answers refuses, waits or interrupts, as for a message', async (t) => {
      const client = createClient(gateway.url)
      answerAtGate()
      const running = await client.send({ message: 'One' })
      await running.until(isDelta)
      const id = running.headers.get('x-message-id') ?? ''
      const runId = running.headers.get('x-run-id')
      t.match(await regenerate(client, id), { status: 409, body: { code: 'session_busy', run_id: runId } })
      answerByNumber()
      const instead = await regenerate(client, id, { on_busy: 'interrupt' })
      t.equal(instead.status, 202)
      t.equal(await running.ended, 'clean')
      t.match(running.received.at(-1), { event: 'done', data: { status: 'stopped' } })
      t.equal(await ended(client, instead.body.run.id), 'One: 1')
    })

    await t.test('P5 the same key is the same run; for something else it is refused', async (t) => {
      const client = createClient(gateway.url)
      answerByNumber()
      const first = await ask(client, { message: 'One', client_message_id: 'first' })
      const calls = upstream.calls.length
      const key = { 'idempotency-key': 'again' }
      const answers = [
        await regenerate(client, first.message.id, undefined, key),
        await regenerate(client, first.message.id, { client_message_id: 'again' }),
        await regenerate(client, first.message.id.toUpperCase(), {}, { ...key, ...asStream }),
      ]
      t.same(
        answers.map(({ status }) => status),
        [202, 202, 200],
      )
      t.equal(new Set(answers.map(({ headers }) => headers.get('x-run-id'))).size, 1)
      t.match(answers[2]?.body, /event: run\n/)
      t.match(answers[2]?.body, /event: done\n/)
      const mismatch = { status: 422, body: { code: 'idempotency_mismatch' } }
      t.match(await regenerate(client, first.user_message.id, {}, key), mismatch)
      t.match(await regenerate(client, first.message.id, { mode: 'fast' }, key), mismatch)
      t.match(await edit(client, first.user_message.id, { message: 'One' }, key), mismatch)
      t.match(await client.post(whole, { message: 'One' }, key), mismatch)
      t.match(await regenerate(client, first.message.id, { client_message_id: 'first' }), mismatch)
      const edited = [
        await edit(client, first.user_message.id, { message: 'Uno', client_message_id: 'edit' }),
        await edit(client, first.user_message.id, { message: 'Uno', client_message_id: 'edit' }),
      ]
      t.equal(edited[0]?.body.run.id, edited[1]?.body.run.id)
      t.match(await edit(client, first.user_message.id, { message: 'Un', client_message_id: 'edit' }), mismatch)
      await ended(client, edited[0]?.body.run.id)
      t.equal(upstream.calls.length, calls + 2)
      t.equal((await list(client, first.session.id)).length, 5)
    })

    await t.test('P9 what is not there, not yours or not for this is refused, and nothing is stored', async (t) => {
      const client = createClient(gateway.url)
      answerByNumber()
      const first = await ask(client, { message: 'One' })
      const { id } = first.message
      const stranger = createClient(gateway.url)
      await stranger.post('/api/v1/sessions', {})
      const missing = { status: 404, body: { code: 'not_found' } }
      for (const [who, target] of [
        [stranger, first.user_message.id],
        [client, randomUUID()],
        [client, first.session.id],
      ] as const) {
        t.match(await regenerate(who, target), missing)
        t.match(await edit(who, target, { message: 'Mine' }), missing)
      }
      const invalid = { status: 400, body: { code: 'invalid_request' } }
      t.match(await edit(client, id, { message: 'No' }), invalid, 'a reply is not edited')
      for (const body of [{}, { message: ' ' }, { message: 'x', parent_id: id }, { message: 'x', session_id: id }])
        t.match(await edit(client, first.user_message.id, body), invalid, JSON.stringify(body))
      for (const body of [{ message: 'x' }, { on_busy: 'wait' }, { metadata: [] }, { mode: 'slow' }])
        t.match(await regenerate(client, id, body), invalid, JSON.stringify(body))
      t.match(await regenerate(client, 'x'), invalid)
      t.equal((await list(client, first.session.id)).length, 2)
      await db.rows(sql`update chat_sessions set deleted_at = now() where id = ${first.session.id}::uuid`)
      t.match(await regenerate(client, id), missing)
      t.match(await edit(client, first.user_message.id, { message: 'x' }), missing)
    })

    await t.test(
      'pages of messages leave out nothing and repeat nothing, in both orders, of all and of a branch',
      async (t) => {
        const client = createClient(gateway.url)
        answerByNumber()
        const first = await ask(client, { message: 'One' })
        const session_id = first.session.id
        await ask(client, { message: 'Two', session_id })
        await ended(client, (await regenerate(client, first.message.id)).body.run.id)
        await ask(client, { message: 'Three', session_id })
        const all = (await list(client, session_id)).map(({ seq }) => seq)
        t.same(all, [1, 2, 3, 4, 5, 6, 7])
        const branch = [1, 5, 6, 7]
        const cases: readonly (readonly [query: string, seqs: readonly number[]])[] = [
          ['', all],
          ['&order=asc&branch=all', all],
          ['&order=desc', all.toReversed()],
          ['&branch=active', branch],
          ['&branch=active&order=desc', branch.toReversed()],
        ]
        for (const [query, seqs] of cases) {
          for (const limit of [1, 2, 3, 7]) {
            t.same(
              await readPages(client, `/api/v1/sessions/${session_id}/messages?limit=${limit}${query}`),
              seqs,
              `${limit}${query}`,
            )
          }
        }
        for (const query of ['order=up', 'branch=new', 'order='])
          t.equal((await client.get(`/api/v1/sessions/${session_id}/messages?${query}`)).status, 400)
        const stranger = createClient(gateway.url)
        await stranger.post('/api/v1/sessions', {})
        for (const [query] of cases)
          t.equal((await stranger.get(`/api/v1/sessions/${session_id}/messages?limit=5${query}`)).status, 404)
      },
    )

    await t.test('newest first, the running reply has its words, and not one that waits', async (t) => {
      const client = createClient(gateway.url)
      const gate = answerAtGate()
      const running = await client.send({ message: 'One' })
      await running.until(isDelta)
      const session_id = running.headers.get('x-session-id') ?? ''
      const waiting = await client.send({ message: 'Two', session_id, on_busy: 'queue' })
      const newest = await list(client, session_id, '&order=desc')
      t.match(newest, [
        { status: 'streaming', content: '' },
        {},
        { status: 'streaming', content: 'One: ', cursor: String },
        {},
      ])
      gate.open()
      for (const stream of [running, waiting]) t.equal(await stream.ended, 'clean')
    })
  })
}

async function readPages(client: Client, path: string): Promise<number[]> {
  const seqs: number[] = []
  for (let cursor: string | null = ''; cursor !== null; ) {
    const page: Awaited<ReturnType<Client['get']>> = await client.get(cursor === '' ? path : `${path}&cursor=${cursor}`)
    seqs.push(...page.body.data.map(({ seq }: Listed) => seq))
    cursor = page.body.next_cursor
  }
  return seqs
}
