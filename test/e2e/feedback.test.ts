/** What the owner of a session adds to a reply: an opinion, and what was retrieved for it. */
import { randomUUID } from 'node:crypto'
import { type Test, test } from 'tap'
import { say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { type Client, createClient } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const upstream = await startFakeUpstream({ script: () => say({ text: 'Hello to you' }) })
    t.teardown(() => upstream.close())
    const gateway = await startGateway(t, { database, env: { OPENAI_BASE_URL: upstream.url } })
    const client = createClient(gateway.url)
    const { body: first } = await client.post('/api/v1/chat/message', { message: 'Hello' })
    const [userMessage, reply, sessionId] = [first.user_message.id, first.message.id, first.session.id]
    const versionOf = async () => (await client.get(`/api/v1/sessions/${sessionId}`)).body.version
    const stranger = createClient(gateway.url)
    await stranger.post('/api/v1/sessions', {})

    /** The same refusals for both routes, and nothing is written. */
    async function refusals(
      t: Test,
      put: (who: Client, id: string, body?: object) => ReturnType<Client['put']>,
      good: object,
      bad: object[],
    ) {
      const version = await versionOf()
      const before = await client.messages(sessionId)
      for (const [who, id] of [
        [stranger, reply],
        [client, randomUUID()],
        [client, sessionId],
      ] as const)
        t.match(await put(who, id, good), { status: 404, body: { code: 'not_found' } })
      t.match(
        await put(client, userMessage, good),
        { status: 400, body: { code: 'invalid_request' } },
        'not on a question',
      )
      t.match(await put(client, 'x', good), { status: 400 })
      for (const body of bad)
        t.match(await put(client, reply, body), { status: 400 }, JSON.stringify(body).slice(0, 60))
      t.equal(await versionOf(), version)
      t.same(await client.messages(sessionId), before)
    }

    await t.test('an opinion is kept with the message, and replaced by the next', async (t) => {
      const put = (who: Client, id: string, body?: object) => who.put(`/api/v1/messages/${id}/feedback`, body)
      t.same(first.message.feedback, null)
      const version = await versionOf()
      const one = await put(client, reply, { rating: 1, comment: '\ufeffGood \u0000👩‍👩‍👧' })
      t.match(one, { status: 200, body: { message_id: reply, rating: 1, comment: '\ufeffGood 👩‍👩‍👧' } })
      t.equal(one.body.created_at, one.body.updated_at)
      t.equal(await versionOf(), version + 1, 'copies of the history are old now')
      const listed = async () =>
        (await client.messages(sessionId)).map(({ feedback }: { feedback: unknown }) => feedback)
      t.same(await listed(), [null, { rating: 1, comment: '\ufeffGood 👩‍👩‍👧' }])
      const two = await put(client, reply, { rating: -1 })
      t.match(two.body, { rating: -1, comment: null, created_at: one.body.created_at })
      t.ok(two.body.updated_at > one.body.updated_at)
      t.same(await listed(), [null, { rating: -1, comment: null }])
      t.equal(await versionOf(), version + 2)
      t.equal((await put(client, reply, { rating: 1, comment: 'x'.repeat(2000) })).status, 200)
      const bad = [
        {},
        { rating: 0 },
        { rating: '1' },
        { rating: 1, comment: 'x'.repeat(2001) },
        { rating: 1, by: 'me' },
        { comment: 'x' },
      ]
      await refusals(t, put, { rating: 1 }, bad)
    })

    await t.test('what was retrieved for a reply is kept with it', async (t) => {
      const put = (who: Client, id: string, body?: object) => who.put(`/api/v1/messages/${id}/retrieval`, body)
      const version = await versionOf()
      const docs = [
        { id: 1, text: 'ä\u0000' },
        { score: 0.5, nested: { a: [null] } },
      ]
      const answer = await put(client, reply, { retrieved_docs: docs, reranker_used: true })
      const kept = [{ id: 1, text: 'ä' }, docs[1]]
      t.match(answer, { status: 200, body: { id: reply, reranker_used: true, content: first.message.content } })
      t.same(answer.body.retrieved_docs, kept)
      t.equal(await versionOf(), version + 1)
      const [, listed] = await client.messages(sessionId)
      t.same([listed.retrieved_docs, listed.reranker_used], [kept, true])
      t.match((await put(client, reply, { retrieved_docs: [] })).body, { retrieved_docs: [], reranker_used: null })
      t.match(await put(client, reply, { retrieved_docs: [{ text: 'x'.repeat(64 * 1024) }] }), {
        status: 413,
        body: { code: 'too_large' },
      })
      const bad = [
        {},
        { retrieved_docs: {} },
        { retrieved_docs: ['x'] },
        { retrieved_docs: Array(101).fill({}) },
        { retrieved_docs: [], reranker_used: 1 },
      ]
      await refusals(t, put, { retrieved_docs: [] }, bad)
    })
  })
}
