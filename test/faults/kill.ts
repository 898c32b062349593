/**
 * kill -9 of the gateway in mid-stream, and a new one on the same database: the question is there, the partial reply up
 * to the last checkpoint is there as `interrupted`, nobody waits for ever, and the session goes on. Embedded and Postgres.
 */
import { test } from 'tap'
import { begin, chunk, createGate, forever, say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { createClient, holdParts, isDone, type Received, shownText } from '../support/client.ts'
import { createTestDatabase, type DatabaseKind } from '../support/database.ts'
import { createDataFolder, spawnGateway, untilReady } from '../support/gateway.ts'

/** Promise P7: at most this long after the kill, viewers see the end. */
const takeoverMsMax = 12_000
/** The second process is started after the kill, on a machine that runs other tests. */
const startMsMax = 5000

// On Postgres each trial waits for a lease to run out.
const trials = { pglite: 4, postgres: 2 } as const

/** The tests on one database; each is a file of its own, because both wait for much. */
export function testKills(database: DatabaseKind, skip: string | false = false): void {
  test(`on ${database}, a reply survives the kill -9 of its process up to the last checkpoint`, { skip }, async (t) => {
    const upstream = await startFakeUpstream()
    t.teardown(() => upstream.close())
    const store: Record<string, string> =
      database === 'pglite'
        ? { DATA_DIR: await createDataFolder(t) }
        : { DATABASE_URL: (await createTestDatabase(t)).url }
    const env = { ...store, OPENAI_BASE_URL: upstream.url, LOG_LEVEL: 'warn', CHECKPOINT_MS: '20' }

    for (let trial = 1; trial <= trials[database]; trial += 1) {
      await t.test(`trial ${trial}`, async (t) => {
        const gate = createGate()
        upstream.answer(async function* () {
          yield* begin({ tokens: 20 * trial, paceMs: 2 })
          await gate.opened
        })
        const first = await spawnAndWait(t, env)
        const client = createClient(first.url)
        const stream = await client.send({ message: `Trial ${trial}`, client_message_id: `kill-${trial}` })
        const lastWord = `word${20 * trial - 1}`
        await stream.until(({ data }) => data.text?.includes(lastWord) === true)
        const sessionId = stream.headers.get('x-session-id') ?? ''
        const runPath = `/api/v1/runs/${stream.headers.get('x-run-id')}`
        // Wait until a checkpoint holds all that was shown: the kill is then at a known place.
        const shown = shownText(stream.received)
        await untilCheckpointed(first.url, client.identity, sessionId, shown)

        first.process.kill('SIGKILL')
        const killedAt = performance.now()
        t.equal(await stream.ended, 'cut', 'a cut is a cut: the body does not end as if it were whole')
        await first.exited
        t.notOk(stream.received.some(isDone))

        const second = await spawnAndWait(t, env)
        const again = createClient(second.url, client.identity)
        const lastId = stream.received.at(-1)?.id ?? ''
        const resumed = await again.watch(`${runPath}/events`, { 'last-event-id': lastId })
        t.equal(await resumed.ended, 'clean')
        const tookMs = performance.now() - killedAt
        const end = resumed.received.at(-1) as Received
        t.match(end.data, { status: 'interrupted', error: { code: 'interrupted', retryable: true } })
        t.equal(resumed.received.filter(isDone).length, 1)
        t.equal(shownText(resumed.received, holdParts(stream.received)), shown, 'nothing is lost or doubled')

        const [question, reply] = await again.messages(sessionId)
        t.match(question, { role: 'user', content: `Trial ${trial}` })
        t.match(reply, { status: 'interrupted', content: shown })
        t.match((await again.get(runPath)).body, { status: 'interrupted', generation: 2 })
        t.match((await again.get(`/api/v1/sessions/${sessionId}`)).body, { status: 'failed', active_run_id: null })
        t.ok(tookMs < takeoverMsMax + startMsMax, 'P7: within 12 s of the kill, and the start of a process')
        t.comment(`${database}, trial ${trial}: interrupted after ${Math.round(tookMs)} ms, ${shown.length} units kept`)

        upstream.answer(() => say({ text: 'And on.' }))
        const repeat = await again.send({ message: `Trial ${trial}`, client_message_id: `kill-${trial}` })
        t.equal(await repeat.ended, 'clean')
        t.match(repeat.received.at(-1)?.data, { status: 'interrupted' }, 'the same key is still the same run')
        const next = await again.post('/api/v1/chat/message', { message: 'Go on', session_id: sessionId })
        t.match(next.body, { message: { content: 'And on.', status: 'completed' } })
        second.process.kill('SIGKILL')
        await second.exited
        gate.open()
      })
    }
  })

  test(`on ${database}, a reply whose process is killed before its first word is asked for again`, {
    skip,
  }, async (t) => {
    const upstream = await startFakeUpstream()
    t.teardown(() => upstream.close())
    const asked = Promise.withResolvers<void>()
    upstream.answer(async function* () {
      asked.resolve()
      await forever()
      yield chunk({ content: 'never' })
    })
    const store: Record<string, string> =
      database === 'pglite'
        ? { DATA_DIR: await createDataFolder(t) }
        : { DATABASE_URL: (await createTestDatabase(t)).url }
    const env = { ...store, OPENAI_BASE_URL: upstream.url, LOG_LEVEL: 'warn' }
    const first = await spawnAndWait(t, env)
    const client = createClient(first.url)
    const stream = await client.send({ message: 'Hello?', client_message_id: 'k' })
    t.equal(stream.status, 200)
    await asked.promise
    first.process.kill('SIGKILL')
    await first.exited
    upstream.answer(() => say({ text: 'Here, after all' }))
    const second = await spawnAndWait(t, env)
    const again = createClient(second.url, client.identity)
    const repeat = await again.send({ message: 'Hello?', client_message_id: 'k' })
    t.equal(await repeat.ended, 'clean')
    t.equal(repeat.headers.get('x-run-id'), stream.headers.get('x-run-id'))
    t.match(repeat.received.at(-1)?.data, { status: 'completed' })
    t.equal(shownText(repeat.received), 'Here, after all')
    const stored = await again.messages(stream.headers.get('x-session-id') ?? '')
    t.match(stored, [
      { role: 'user', content: 'Hello?' },
      { role: 'assistant', status: 'completed', content: 'Here, after all' },
    ])
    t.equal(stored.length, 2)
    const run = await again.get(`/api/v1/runs/${stream.headers.get('x-run-id')}`)
    t.match(run.body, { generation: 2, attempts: 2 })
    t.equal(upstream.calls.length, 2)
  })
}

async function spawnAndWait(t: Parameters<typeof spawnGateway>[0], env: Record<string, string>) {
  // The start line is at level info.
  const gateway = await spawnGateway(t, { ...env, LOG_LEVEL: 'info' })
  await untilReady(gateway.url)
  return gateway
}

/** The owner reads its own memory; what is in the checkpoint is only seen by asking the database, as the reaper does. */
async function untilCheckpointed(url: string, identity: Record<string, string>, sessionId: string, text: string) {
  const client = createClient(url, identity)
  const reply = (await client.messages(sessionId))[1]
  if (reply.content !== text) throw new Error('the partial text is not what was shown')
  // Two checkpoint intervals after the last word, with a margin for a busy machine.
  await new Promise((resolve) => setTimeout(resolve, 500))
}
