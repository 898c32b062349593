/**
 * Row 16: a reply that is whole while Postgres is away waits for it, and its viewers do not wait for ever. They are told to
 * come back, `done` is never said before the commit, and the reply is stored when Postgres is there.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'tap'
import { begin, chunk, createGate, doneMarker, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { createClient, holdParts, isDelta, isDone, shownText } from '../support/client.ts'
import { through } from '../support/cluster.ts'
import { createTestDatabase, databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'
import { startProxy } from '../support/proxy.ts'

/** Instead of the half minute that production waits. */
const persistWaitMs = 300
const rounds = 2

const skip = databases().includes('postgres') ? false : 'TEST_EMBEDDED_ONLY=1: the database cannot be away'

test('row 16: a viewer is told that the reply waits for the database, and finds it stored', { skip }, async (t) => {
  const upstream = await startFakeUpstream()
  t.teardown(() => upstream.close())
  const { url } = await createTestDatabase(t)
  const proxy = await startProxy(t, new URL(url))
  const env = { DATABASE_URL: through(url, proxy), OPENAI_BASE_URL: upstream.url }
  const gateway = await startGateway(t, { database: 'postgres', env, persistWaitMs })
  const client = createClient(gateway.url)
  for (let round = 1; round <= rounds; round += 1) {
    const gate = createGate()
    upstream.answer(async function* () {
      yield* begin({ text: 'Nearly' })
      await gate.opened
      yield chunk({ content: ' lost' }, 'stop')
      yield doneMarker
    })
    await client.get('/api/v1/sessions')
    const calls = upstream.calls.length
    const stream = await client.send({ message: 'Tell me' })
    await stream.until(isDelta)
    const whole = client.post('/api/v1/chat/message', { message: 'Tell me all at once' })
    // Its message is accepted when the provider has been asked.
    while (upstream.calls.length < calls + 2) await sleep(10)
    proxy.set('refuse')
    gate.open()
    t.equal(await stream.ended, 'clean')
    t.match(stream.received.at(-1), { event: 'reconnect', data: { retry_ms: Number, code: 'persist_pending' } })
    t.notOk(stream.received.some(isDone), 'done is not said before the commit')
    t.equal(shownText(stream.received), 'Nearly lost', 'all words were shown')
    const answer = await whole
    t.match(answer, { status: 503, body: { code: 'persist_pending', retryable: true } })
    t.ok(answer.headers.has('retry-after'))

    proxy.set('pass')
    const cursor = stream.received.findLast(({ id }) => id !== undefined)?.id ?? ''
    let resumed = await client.watch(`/api/v1/runs/${stream.headers.get('x-run-id')}/events`, {
      'last-event-id': cursor,
    })
    while ((await resumed.ended) === 'clean' && !resumed.received.some(isDone)) {
      resumed = await client.watch(`/api/v1/runs/${stream.headers.get('x-run-id')}/events`, {
        'last-event-id': cursor,
      })
    }
    t.equal(shownText(resumed.received, holdParts(stream.received)), 'Nearly lost')
    t.match(resumed.received.at(-1)?.data, { status: 'completed' })
    const [, reply] = await client.messages(stream.headers.get('x-session-id') ?? '')
    t.match(reply, { status: 'completed', content: 'Nearly lost' })
  }
})
