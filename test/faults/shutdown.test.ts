/**
 * SIGTERM: new messages are refused, running replies end in their time and their viewers see it; what does not end is
 * stored as it is. The exit code is 0. A second signal does not wait.
 */
import { test } from 'tap'
import { begin, createGate, forever, say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { createClient, isDelta, isDone, shownText } from '../support/client.ts'
import { createTestDatabase, databases } from '../support/database.ts'
import { createDataFolder, spawnGateway, untilReady } from '../support/gateway.ts'

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const upstream = await startFakeUpstream()
    t.teardown(() => upstream.close())
    const store: Record<string, string> =
      database === 'pglite'
        ? { DATA_DIR: await createDataFolder(t) }
        : { DATABASE_URL: (await createTestDatabase(t)).url }
    const env = { ...store, OPENAI_BASE_URL: upstream.url }

    await t.test('a reply that ends within the drain time is shown and stored whole; exit code 0', async (t) => {
      const gateway = await spawnGateway(t, { ...env, DRAIN_MS: '20000' })
      await untilReady(gateway.url)
      const client = createClient(gateway.url)
      const gate = createGate()
      upstream.answer(async function* () {
        yield* begin({ text: 'Nearly' })
        await gate.opened
        yield* say({ text: ' there' })
      })
      const stream = await client.send({ message: 'Hurry', client_message_id: 'drain' })
      await stream.until(isDelta)
      gateway.process.kill('SIGTERM')
      await untilDraining(gateway.url)
      const refused = await client.post('/api/v1/chat/stream', { message: 'One more' })
      t.match(refused, { status: 503, body: { code: 'draining', retryable: true } })
      t.ok(refused.headers.has('retry-after'))
      t.equal((await client.get('/health/live')).status, 200)
      const attached = await client.send({ message: 'Hurry', client_message_id: 'drain' })
      t.equal(attached.status, 200, 'the run that goes on can still be watched')
      gate.open()
      t.equal(await stream.ended, 'clean')
      t.equal((await stream.until(isDone)).data.status, 'completed')
      t.equal(shownText(stream.received), 'Nearly there')
      await attached.ended
      t.equal(shownText(attached.received), 'Nearly there')
      t.equal(await gateway.exited, 0)
    })

    // The framework's own limit for what a shutdown waits for is ten seconds: behind it, it would close the database.
    if (database === databases()[0]) {
      await t.test('a reply that takes eleven seconds of its drain time is whole; exit code 0', async (t) => {
        const gateway = await spawnGateway(t, { ...env, DRAIN_MS: '20000' })
        await untilReady(gateway.url)
        const client = createClient(gateway.url)
        upstream.answer(() => say({ tokens: 110, paceMs: 100 }))
        const stream = await client.send({ message: 'Slowly' })
        await stream.until(isDelta)
        gateway.process.kill('SIGTERM')
        t.equal(await stream.ended, 'clean')
        t.equal((await stream.until(isDone)).data.status, 'completed')
        t.equal(await gateway.exited, 0)
      })
    }

    await t.test('a reply that does not end is stored as it is, and its viewer is told; exit code 0', async (t) => {
      const gateway = await spawnGateway(t, { ...env, DRAIN_MS: '100' })
      await untilReady(gateway.url)
      const client = createClient(gateway.url)
      upstream.answer(async function* () {
        yield* begin({ text: 'For ever and' })
        await forever()
      })
      const stream = await client.send({ message: 'Take your time' })
      await stream.until(({ data }) => data.text?.includes('and') === true)
      gateway.process.kill('SIGTERM')
      t.equal(await stream.ended, 'clean')
      t.match((await stream.until(isDone)).data, { status: 'interrupted', error: { code: 'interrupted' } })
      t.equal(await gateway.exited, 0)

      const next = await spawnGateway(t, env)
      await untilReady(next.url)
      const again = createClient(next.url, client.identity)
      const [, reply] = await again.messages(stream.headers.get('x-session-id') ?? '')
      t.match(reply, { status: 'interrupted', content: 'For ever and' })
      next.process.kill('SIGTERM')
      t.equal(await next.exited, 0)
    })

    await t.test('a second signal ends the process at once', async (t) => {
      const gateway = await spawnGateway(t, { ...env, DRAIN_MS: '60000' })
      await untilReady(gateway.url)
      const client = createClient(gateway.url)
      upstream.answer(async function* () {
        yield* begin({ text: 'Still' })
        await forever()
      })
      const stream = await client.send({ message: 'Stay' })
      await stream.until(isDelta)
      gateway.process.kill('SIGTERM')
      await untilDraining(gateway.url)
      gateway.process.kill('SIGTERM')
      t.equal(await stream.ended, 'cut')
      t.not(await gateway.exited, 0)
    })
  })
}

async function untilDraining(url: string): Promise<void> {
  for (;;) {
    const answer = await fetch(`${url}/health/ready`)
    const { state } = (await answer.json()) as { state: string }
    if (state === 'draining') return
  }
}
