/**
 * The queue as a client sees it: a message for a busy session is taken, its stream stays open, and it is answered in its
 * turn, whether its viewers are on the process that makes the reply or on another one.
 */
import { randomUUID } from 'node:crypto'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { test } from 'tap'
import { begin, createGate, type FakeCall, say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { createAccept } from '../../src/runs/accept.ts'
import { commitRun } from '../../src/runs/commit.ts'
import { promote } from '../../src/runs/queue.ts'
import { createRunStore } from '../../src/runs/store.ts'
import { createMessageStore } from '../../src/sessions/messages.ts'
import type { ModePlan } from '../../src/upstream/plan.ts'
import { createClient, isDelta, isDone, type Received, type Stream, shownText } from '../support/client.ts'
import { createTestDatabase, databases } from '../support/database.ts'
import { createDataFolder, startGateway } from '../support/gateway.ts'
import { createOwner, endingOf, lease, textPart } from '../support/runs.ts'

const endOf = ({ received }: Stream) => received.at(-1)?.data
const historyOf = (call: FakeCall | undefined) => call?.body?.messages?.map(({ content }) => content)

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const upstream = await startFakeUpstream()
    t.teardown(() => upstream.close())
    const store: Record<string, string> =
      database === 'pglite'
        ? { DATA_DIR: await createDataFolder(t) }
        : { DATABASE_URL: (await createTestDatabase(t)).url }
    const env = { ...store, OPENAI_BASE_URL: upstream.url, DATABASE_POOL: '5' }
    const first = await startGateway(t, { env })
    const second = database === 'postgres' ? await startGateway(t, { env }) : first
    const clients = () => {
      const client = createClient(first.url)
      return { client, elsewhere: createClient(second.url, client.identity) }
    }

    /** A reply that begins, and goes on when the gate is opened. */
    function answerAtGate() {
      const gate = createGate()
      upstream.answer(async function* () {
        yield* begin({ text: 'First ' })
        await gate.opened
        yield* say({ text: 'reply' })
      })
      return gate
    }

    await t.test('P1 a queued message gets its stream at once, and its reply in its turn', async (t) => {
      const { client, elsewhere } = clients()
      const gate = answerAtGate()
      const running = await client.send({ message: 'One' })
      await running.until(isDelta)
      const session_id = running.headers.get('x-session-id') ?? ''
      elsewhere.identity['x-visitor-token'] = client.identity['x-visitor-token'] ?? ''
      const before = upstream.calls.length
      const [two, three] = [
        await elsewhere.send({ session_id, message: 'Two', on_busy: 'queue', client_message_id: 'two' }),
        await client.send({ session_id, message: 'Three', on_busy: 'queue' }),
      ]
      for (const stream of [two, three]) {
        t.equal(stream.status, 200)
        t.match(await stream.until(({ event }) => event === 'run'), { id: '1-1', data: { session_id } })
        const run = await client.get(`/api/v1/runs/${stream.headers.get('x-run-id')}`)
        t.match(run.body, { status: 'queued', started_at: null, first_token_at: null })
      }
      const attached = await client.watch(`/api/v1/runs/${two.headers.get('x-run-id')}/events`)
      await attached.until(({ event }) => event === 'run')
      const resumed = await client.watch(`/api/v1/runs/${two.headers.get('x-run-id')}/events`, {
        'last-event-id': '1-1',
      })
      const again = await client.send({ session_id, message: 'Two', on_busy: 'queue', client_message_id: 'two' })
      t.equal(again.headers.get('x-run-id'), two.headers.get('x-run-id'), 'the same key is the same run')
      const stored = await elsewhere.messages(session_id)
      t.same(
        stored.map(({ content, status }: { content: string; status: string }) => [content, status]).toSpliced(1, 1),
        [
          ['One', 'completed'],
          ['Two', 'completed'],
          ['', 'streaming'],
          ['Three', 'completed'],
          ['', 'streaming'],
        ],
      )
      t.equal(upstream.calls.length, before, 'nobody has been asked yet')

      upstream.answer(({ message }) => say({ text: `Reply to ${message}` }))
      gate.open()
      const streams = [running, two, three, attached, again, resumed]
      for (const stream of streams) t.equal(await stream.ended, 'clean')
      t.same(
        streams.map(({ received }) => shownText(received)),
        ['First reply', 'Reply to Two', 'Reply to Three', 'Reply to Two', 'Reply to Two', 'Reply to Two'],
      )
      for (const stream of streams) {
        t.equal(stream.received.filter(isDone).length, 1)
        t.equal(stream.received.filter(({ event }) => event === 'run').length, stream === resumed ? 0 : 1)
        t.match(endOf(stream), { status: 'completed' })
      }
      t.same(historyOf(upstream.calls[before]), ['One', 'First reply', 'Two'])
      t.same(historyOf(upstream.calls[before + 1]), ['One', 'First reply', 'Two', 'Reply to Two', 'Three'])
      t.equal(upstream.calls.length, before + 2)
      const run = (await client.get(`/api/v1/runs/${two.headers.get('x-run-id')}`)).body
      t.ok(run.created_at < run.started_at && run.started_at <= run.first_token_at && run.started_at < run.ended_at)
    })

    await t.test('a session that is free takes a message for the queue at once', async (t) => {
      const { client } = clients()
      upstream.answer(() => say({ text: 'At once' }))
      const whole = await client.post('/api/v1/chat/message', { message: 'Hi', on_busy: 'queue' })
      t.match(whole.body, { message: { content: 'At once' }, run: { status: 'completed' } })
    })

    await t.test('the whole reply to a queued message comes when it is made', async (t) => {
      const { client } = clients()
      const gate = answerAtGate()
      const running = await client.send({ message: 'One' })
      await running.until(isDelta)
      const session_id = running.headers.get('x-session-id') ?? ''
      const whole = client.post('/api/v1/chat/message', { session_id, message: 'Two', on_busy: 'queue' })
      await untilTrue(async () => (await client.messages(session_id)).length === 4)
      upstream.answer(() => say({ text: 'In its turn' }))
      gate.open()
      t.match((await whole).body, { message: { content: 'In its turn', seq: 4 }, run: { status: 'completed' } })
    })

    await t.test('a stop of the running reply lets the next begin; a stop of a queued one takes it out', async (t) => {
      const { client, elsewhere } = clients()
      answerAtGate()
      const running = await client.send({ message: 'One' })
      await running.until(isDelta)
      const session_id = running.headers.get('x-session-id') ?? ''
      elsewhere.identity['x-visitor-token'] = client.identity['x-visitor-token'] ?? ''
      const [out, next] = [
        await client.send({ session_id, message: 'Never mind', on_busy: 'queue' }),
        await client.send({ session_id, message: 'Next', on_busy: 'queue' }),
      ]
      const before = upstream.calls.length
      upstream.answer(({ message }) => say({ text: `Reply to ${message}` }))
      const taken = await elsewhere.post(`/api/v1/runs/${out.headers.get('x-run-id')}/stop`)
      t.match(taken, {
        status: 200,
        body: { run: { status: 'stopped', started_at: null }, message: { status: 'stopped', content: '' } },
      })
      t.equal(await out.ended, 'clean')
      t.same(
        out.received.map(({ event, id }) => [event, id]),
        [
          ['run', '1-1'],
          ['done', '1-2'],
        ],
      )
      t.match(endOf(out), { status: 'stopped' })
      t.match((await client.get(`/api/v1/sessions/${session_id}`)).body, {
        status: 'running',
        active_run_id: running.headers.get('x-run-id'),
      })
      t.notOk(running.received.some(isDone))
      const stopped = await client.post(`/api/v1/sessions/${session_id}/stop`)
      t.match(stopped.body, { run: { id: running.headers.get('x-run-id'), status: 'stopped' } })
      t.equal(await next.ended, 'clean')
      t.equal(shownText(next.received), 'Reply to Next')
      t.same(historyOf(upstream.calls[before]), ['One', 'First ', 'Never mind', 'Next'])
      t.equal(upstream.calls.length, before + 1, 'the one that was taken out was never asked')
    })

    await t.test(
      'P6 a queued message whose sender has left is answered, unless it said that nobody waits',
      async (t) => {
        const { client } = clients()
        const gate = answerAtGate()
        const running = await client.send({ message: 'One' })
        await running.until(isDelta)
        const session_id = running.headers.get('x-session-id') ?? ''
        const [kept, dropped] = [
          await client.send({ session_id, message: 'Kept', on_busy: 'queue' }),
          await client.send({ session_id, message: 'Dropped', on_busy: 'queue', on_disconnect: 'stop' }),
        ]
        const before = upstream.calls.length
        const read = async (stream: Stream) => (await client.get(`/api/v1/runs/${stream.headers.get('x-run-id')}`)).body
        for (const stream of [kept, dropped]) {
          stream.close()
          await stream.ended
        }
        await untilTrue(async () => (await read(dropped)).status === 'stopped')
        t.match(await read(kept), { status: 'queued' })
        upstream.answer(() => say({ text: 'For later' }))
        gate.open()
        t.equal(await running.ended, 'clean')
        await untilTrue(async () => (await read(kept)).status === 'completed')
        t.equal(upstream.calls.length, before + 1)
      },
    )

    await t.test('interrupt stops the running reply and those that wait, and is answered itself', async (t) => {
      const { client } = clients()
      answerAtGate()
      const running = await client.send({ message: 'One' })
      await running.until(isDelta)
      const session_id = running.headers.get('x-session-id') ?? ''
      const waiting = await client.send({ session_id, message: 'Two', on_busy: 'queue' })
      const before = upstream.calls.length
      upstream.answer(() => say({ text: 'At last' }))
      const urgent = await client.send({ session_id, message: 'Listen', on_busy: 'interrupt' })
      for (const stream of [running, waiting, urgent]) t.equal(await stream.ended, 'clean')
      t.match([running, waiting, urgent].map(endOf), [
        { status: 'stopped' },
        { status: 'stopped' },
        { status: 'completed' },
      ])
      t.equal(shownText(running.received), 'First ', 'what was said is kept')
      t.equal(shownText(urgent.received), 'At last')
      t.equal(upstream.calls.length, before + 1)
    })

    await t.test(
      'a process that died just after it had taken a message from the queue: another one answers it',
      async (t) => {
        const { db } = first.app
        const owner = createOwner()
        const dead = { db, runs: createRunStore(db), instanceId: randomUUID(), runsPerOwnerMax: 0 }
        // With a lease at first, so that it is not taken over before it is dead.
        await lease(db, dead.instanceId, 60_000)
        const { accept } = createAccept(dead)
        const plan: ModePlan = { plan: { candidates: [{ provider: 'openai', model: 'fake' }], profile: 'balanced' } }
        const plansFor = () => ({ fast: plan, balanced: plan, quality: plan, adaptive: plan })
        const { run: before } = await accept(owner, { message: 'One' }, plansFor)
        const body = { message: 'Taken', session_id: before.session_id, on_busy: 'queue' as const }
        const { run: taken } = await accept(owner, body, plansFor)
        await commitRun(db, before.id, 1, endingOf([textPart('Reply to one')]))
        const promoted = (await promote(db, dead.instanceId, before.session_id)).map(({ id }) => id)
        t.same(promoted, [taken.id])
        await lease(db, dead.instanceId, -1)
        const messages = createMessageStore(db)
        await untilTrue(async () => (await messages.readReply(taken.message_id))?.status !== 'streaming')
        t.match(await messages.readReply(taken.message_id), { status: 'completed' })
        t.match(await createRunStore(db).reread(taken.id), { status: 'completed', generation: 2, attempts: 2 })
      },
    )

    await t.test('what is queued when a process shuts down is answered by the next', async (t) => {
      const { client } = clients()
      answerAtGate()
      const running = await client.send({ message: 'One' })
      await running.until(isDelta)
      const session_id = running.headers.get('x-session-id') ?? ''
      const waiting = await client.send({ session_id, message: 'Two', on_busy: 'queue' })
      await waiting.until(({ event }: Received) => event === 'run')
      const before = upstream.calls.length
      upstream.answer(() => say({ text: 'Still here' }))
      if (second !== first) await second.close()
      await first.close()
      t.equal(upstream.calls.length, before, 'a process that shuts down takes nothing from the queue')
      const next = await startGateway(t, { env })
      const again = createClient(next.url, client.identity)
      const resumed = await again.watch(`/api/v1/runs/${waiting.headers.get('x-run-id')}/events`, {
        'last-event-id': '1-1',
      })
      t.equal(await resumed.ended, 'clean')
      t.equal(shownText(resumed.received), 'Still here')
      t.match(endOf(resumed), { status: 'completed' })
      t.equal(upstream.calls.length, before + 1)
    })
  })
}

async function untilTrue(look: () => Promise<boolean>): Promise<void> {
  for (const giveUpAt = Date.now() + 5000; Date.now() < giveUpAt; ) {
    if (await look()) return
    // The embedded database answers without a turn of the event loop, and the gateway's timers need one.
    await nextTurn()
  }
  throw new Error('it did not come to that')
}
