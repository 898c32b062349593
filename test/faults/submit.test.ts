/**
 * Two gateway processes on one Postgres that are sent the same message, or different ones for one session, or a stop and
 * the end of a reply, at the same time; and one that is killed between the acceptance and the upstream call. What each
 * client saw is compared with what is stored and with the list of calls that the upstream got.
 */
import { randomUUID } from 'node:crypto'
import postgres from 'postgres'
import { type Test, test } from 'tap'
import { begin, createGate, forever, say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { type Client, createClient, isDelta, isDone, type Stream, shownText } from '../support/client.ts'
import { createTestDatabase, databases } from '../support/database.ts'
import { spawnGateway, untilReady } from '../support/gateway.ts'
import { startProxy } from '../support/proxy.ts'
import { createRandom } from '../support/random.ts'
import { trialsOf } from '../support/trials.ts'
import { createVisitor } from '../support/viewers.ts'

const skip = databases().includes('postgres') ? false : 'TEST_EMBEDDED_ONLY=1: two processes need a Postgres'

const duplicates = trialsOf(40)
const pairs = trialsOf(12)
const stops = trialsOf(60)
/** Races that are run side by side. */
const abreast = 8
/** Longest pause before a word of the reply's rest, and before the stop: so that both ends of the race win some. */
const wordMsMax = 20
const stopMsMax = 50
const seed = 55

interface StoredEnd {
  readonly run: string
  readonly message: string
  readonly content: string
}

/** What a viewer may not be told: no end, two ends, or one that is not what is stored. */
function findLies(told: readonly string[], { run, message }: StoredEnd): string[] {
  return [
    ...(told.length === 1 ? [] : [`told ${told.length} ends`]),
    ...(told.every((status) => status === run) ? [] : [`told ${told.join()}, stored ${run}`]),
    ...(run === message ? [] : [`run ${run}, message ${message}`]),
    ...(run === 'completed' || run === 'stopped' ? [] : [`ended as ${run}`]),
  ]
}

const told = ({ received }: Stream): string[] => received.filter(isDone).map(({ data }) => data.status)

test('two processes on one Postgres', { skip }, async (t) => {
  const upstream = await startFakeUpstream()
  t.teardown(() => upstream.close())
  const { url } = await createTestDatabase(t)
  const db = postgres(url, { max: 2, onnotice: () => undefined })
  t.teardown(() => db.end())
  const env = { DATABASE_URL: url, OPENAI_BASE_URL: upstream.url, RUNS_PER_OWNER: '100' }
  const gateways = [await startProcess(t, env), await startProcess(t, env)] as const
  t.teardown(() => {
    for (const { process } of gateways) process.kill('SIGKILL')
  })

  /** One visitor at both processes. */
  function visit(): readonly [Client, Client] {
    const token = createVisitor()
    return [gateways[0].url, gateways[1].url].map((at) => createClient(at, { 'x-visitor-token': token })) as [
      Client,
      Client,
    ]
  }

  /** Runs the races, some side by side. */
  async function race(count: number, one: (n: number) => Promise<void>): Promise<void> {
    for (let from = 0; from < count; from += abreast) {
      await Promise.all(Array.from({ length: Math.min(abreast, count - from) }, (_, n) => one(from + n)))
    }
  }

  async function readEnd(runId: string): Promise<StoredEnd> {
    const [row] = await db<StoredEnd[]>`select r.status as run, m.status as message, m.content
      from chat_runs r join chat_messages m on m.id = r.message_id where r.id = ${runId}`
    return row as StoredEnd
  }

  const callsFor = (message: string) => upstream.calls.filter((call) => call.message === message).length

  await t.test('row 50: the same message to both at the same time is one run, and both show it', async (t) => {
    upstream.answer(({ message }) => say({ text: `An answer to ${message}, in some words` }))
    await race(duplicates, async (n) => {
      const visitors = visit()
      const message = `Once ${n}`
      const body = { message, client_message_id: `same-${n}` }
      const streams = await Promise.all(visitors.map((client) => take(client, body)))
      for (const stream of streams) {
        t.equal(stream.status, 200, stream.text())
        t.equal(await stream.ended, 'clean')
        t.equal(stream.received.filter(isDone).length, 1)
      }
      const [runId, other] = streams.map(({ headers }) => headers.get('x-run-id'))
      t.equal(runId, other)
      const messages = await visitors[0].messages(streams[0]?.headers.get('x-session-id') ?? '')
      t.equal(messages.length, 2)
      t.same(
        streams.map(({ received }) => shownText(received)),
        [messages[1].content, messages[1].content],
      )
      t.equal(callsFor(message), 1, 'one upstream call')
      const rows = await db`select instance_id from chat_runs where id = ${runId ?? ''}`
      const [sessions] =
        await db`select count(*)::int as count from chat_sessions s join chat_runs r on r.owner = s.owner
        where r.id = ${runId ?? ''}`
      t.equal(rows.length, 1)
      t.equal(sessions?.count, 1, 'and one session')
    })
    t.comment(`row 50: ${duplicates} races, one run and one upstream call in each`)
  })

  await t.test('row 51: the same key with another body is 422 on the other process, and changes nothing', async (t) => {
    const [here, there] = visit()
    upstream.answer(() => say({ text: 'Taken' }))
    const stream = await here.send({ message: 'This', client_message_id: 'key' })
    await stream.ended
    const calls = upstream.calls.length
    const before = await here.messages(stream.headers.get('x-session-id') ?? '')
    for (const body of [{ message: 'That' }, { message: 'This', mode: 'fast' }]) {
      const refused = await there.post('/api/v1/chat/stream', { ...body, client_message_id: 'key', on_busy: 'queue' })
      t.match(refused, { status: 422, body: { code: 'idempotency_mismatch' } })
    }
    t.same(await there.messages(stream.headers.get('x-session-id') ?? ''), before)
    t.equal(upstream.calls.length, calls)
  })

  await t.test(
    'row 52: when the process died between acceptance and upstream call, the same key gets its run',
    async (t) => {
      const proxy = await startProxy(t, new URL(url))
      const proxied = new URL(url)
      proxied.hostname = '127.0.0.1'
      proxied.port = String(proxy.port)
      const doomed = await startProcess(t, { ...env, DATABASE_URL: proxied.href })
      upstream.answer(({ message }) => say({ text: `Answer to ${message}` }))
      const [here, there] = visit()
      const first = createClient(doomed.url, here.identity)
      const body = { message: 'Are you there?', client_message_id: 'died' }
      // The acceptance is committed, its answer never arrives: so no upstream call has been made when the process dies.
      const { lost } = proxy.loseAnswerTo(body.message)
      const cut = first.send(body).catch(() => undefined)
      await lost
      const killedAt = performance.now()
      doomed.process.kill('SIGKILL')
      await Promise.all([doomed.exited, cut])
      t.equal(callsFor(body.message), 0)
      const [accepted] = await db`select r.id from chat_runs r join chat_messages m on m.id = r.user_message_id
      where m.content = ${body.message}`
      const streams = await Promise.all([here.send(body), there.send(body)])
      for (const stream of streams) {
        t.equal(stream.status, 200)
        t.equal(stream.headers.get('x-run-id'), accepted?.id, 'the run that was accepted')
        t.equal(await stream.ended, 'clean')
        t.match(stream.received.at(-1), { event: 'done', data: { status: 'completed' } })
        t.equal(shownText(stream.received), 'Answer to Are you there?')
      }
      t.comment(`row 52: answered ${Math.round(performance.now() - killedAt)} ms after the kill`)
      t.equal(callsFor(body.message), 1)
      t.equal((await here.messages(streams[0].headers.get('x-session-id') ?? '')).length, 2)
    },
  )

  for (const on_busy of ['reject', 'queue'] as const) {
    const outcome = on_busy === 'reject' ? 'one of them is refused' : 'both are answered, in the order of their seq'
    await t.test(`row 53: of two messages at once in one session ${outcome}`, async (t) => {
      const seen: Record<string, number> = {}
      const gates = createGates(pairs)
      upstream.answer(async function* ({ message }) {
        await gates[raceOf(message)]?.opened
        yield* say({ text: `Answer to ${message}` })
      })
      await race(pairs, async (n) => {
        const visitors = visit()
        const session_id: string = (await visitors[0].post('/api/v1/sessions', {})).body.id
        const names = [`${on_busy} ${n} here`, `${on_busy} ${n} there`]
        const sent = names.map((message, at) => take(visitors[at] as Client, { message, session_id, on_busy }))
        const streams = await Promise.all(sent)
        const statuses = streams.map(({ status }) => status)
        seen[statuses.join()] = (seen[statuses.join()] ?? 0) + 1
        t.same(statuses.toSorted(), on_busy === 'reject' ? [200, 409] : [200, 200])
        gates[n]?.open()
        const taken = streams.filter(({ status }) => status === 200)
        for (const stream of taken) t.equal(await stream.ended, 'clean')
        const messages: { seq: number; parent_id: string | null; id: string; content: string; status: string }[] =
          await visitors[0].messages(session_id)
        t.same(
          messages.map(({ seq, parent_id, status }) => [seq, parent_id, status]),
          messages.map((_, index) => [index + 1, messages[index - 1]?.id ?? null, 'completed']),
          'seq is dense, and each message follows the one before it',
        )
        t.equal(messages.length, 2 * taken.length)
        const asked = upstream.calls.filter(({ message }) => names.includes(message))
        t.same(
          asked.map(({ message }) => message),
          messages.filter((_, index) => index % 2 === 0).map(({ content }) => content),
          'the model was asked in that order, once each',
        )
        t.same(
          asked.at(-1)?.body?.messages?.map(({ content }) => content),
          messages.slice(0, -1).map(({ content }) => content),
          'and the last question came with all before it',
        )
        for (const stream of taken) t.equal(shownText(stream.received), contentFor(messages, stream))
        const [overlaps] = await db`select count(*)::int as count from chat_runs a join chat_runs b
          on a.session_id = b.session_id and a.id < b.id and a.started_at < b.ended_at and b.started_at < a.ended_at
          where a.session_id = ${session_id}`
        t.equal(overlaps?.count, 0, 'never two at once')
      })
      t.comment(`row 53, ${on_busy}: ${pairs} races; statuses here,there: ${JSON.stringify(seen)}`)
    })
  }

  await t.test('row 53: a queue outlives the kill -9 of the process that was answering, in its order', async (t) => {
    const doomed = await startProcess(t, env)
    const [here] = visit()
    upstream.answer(async function* ({ message }) {
      if (message === 'Killed') {
        yield* begin({ text: 'Half' })
        await forever()
      }
      yield* say({ text: `Answer to ${message}` })
    })
    const first = createClient(doomed.url, here.identity)
    const cut = await first.send({ message: 'Killed' })
    await cut.until(isDelta)
    const session_id = cut.headers.get('x-session-id') ?? ''
    const names = ['Second', 'Third', 'Fourth']
    const streams: Stream[] = []
    // Sent to the process that dies and to one that lives, by turns.
    for (const [n, message] of names.entries()) {
      streams.push(await (n % 2 === 0 ? first : here).send({ message, session_id, on_busy: 'queue' }))
    }
    doomed.process.kill('SIGKILL')
    const killedAt = performance.now()
    await doomed.exited
    const viewers = await Promise.all(
      streams.map(({ headers }) => here.watch(`/api/v1/runs/${headers.get('x-run-id')}/events`)),
    )
    for (const viewer of viewers) t.equal(await viewer.ended, 'clean')
    t.comment(
      `row 53: a queue of ${names.length} answered ${Math.round(performance.now() - killedAt)} ms after the kill`,
    )
    t.same(
      viewers.map(({ received }) => shownText(received)),
      names.map((message) => `Answer to ${message}`),
    )
    const asked = upstream.calls.filter(({ message }) => names.includes(message))
    t.same(
      asked.map(({ message }) => message),
      names,
      'asked once each, in their order',
    )
    t.match(
      (await here.messages(session_id)).map(({ status }: { status: string }) => status),
      ['completed', 'interrupted', ...names.flatMap(() => ['completed', 'completed'])],
    )
    t.equal(asked.at(-1)?.body?.messages?.[1]?.content, 'Half', 'what was said before the kill is in the history')
  })

  await t.test(
    'row 55: a stop that races with the end of a reply leaves one end, and everybody is told that one',
    async (t) => {
      const random = createRandom(seed)
      const seen: Record<string, number> = {}
      const viewers: { readonly runId: string; readonly told: readonly string[] }[] = []
      const gates = createGates(stops)
      upstream.answer(async function* ({ message }) {
        yield* begin({ text: 'So far' })
        await gates[raceOf(message)]?.opened
        yield* say({ text: ' and to the end', paceMs: random.integer(wordMsMax) })
      })
      await race(stops, async (n) => {
        const visitors = visit()
        const stream = await take(visitors[0], { message: `Race ${n}` })
        await stream.until(isDelta)
        const runId = stream.headers.get('x-run-id') ?? ''
        const elsewhere = await visitors[1].watch(`/api/v1/runs/${runId}/events`)
        gates[n]?.open()
        await new Promise((resolve) => setTimeout(resolve, random.integer(stopMsMax)))
        // Through the process that makes the reply, or through the other one.
        const stopped = await (visitors[n % 3 === 0 ? 1 : 0] as Client).post(`/api/v1/runs/${runId}/stop`)
        t.equal(stopped.status, 200)
        for (const viewer of [stream, elsewhere]) {
          t.equal(await viewer.ended, 'clean')
          const stored = await readEnd(runId)
          t.same(findLies(told(viewer), stored), [])
          t.equal(shownText(viewer.received), stored.content, 'and the text that is stored with it')
          t.equal(stopped.body.run.status, stored.run, 'whoever stopped it is told the same')
          viewers.push({ runId, told: told(viewer) })
        }
        seen[stopped.body.run.status] = (seen[stopped.body.run.status] ?? 0) + 1
      })
      // Twin: a commit that does not ask for the status comes after the end that was told.
      const last = viewers.at(-1) as (typeof viewers)[0]
      await db`with run as (
          update chat_runs set status = case status when 'stopped' then 'completed' else 'stopped' end
          where id = ${last.runId} returning message_id, status
        )
        update chat_messages set status = run.status from run where id = run.message_id`
      t.equal(findLies(last.told, await readEnd(last.runId)).length, 1, 'a second end is noticed')
      t.comment(
        `row 55: ${stops} races, seed ${seed}: ${JSON.stringify(seen)}; ${viewers.length} viewers, none told otherwise`,
      )
      t.ok((seen.stopped ?? 0) > 0 && (seen.completed ?? 0) > 0, 'both have won some')
    },
  )
})

const createGates = (count: number) => Array.from({ length: count }, createGate)
/** The races share one upstream, so their messages carry their number. */
const raceOf = (message: string) => Number(/\d+/.exec(message)?.[0])

/** Sends a message as a client does that has been told to come again: with the same key, a few times. */
async function take(client: Client, body: Readonly<Record<string, unknown>>): Promise<Stream> {
  const attemptsMax = 5
  const keyed = { client_message_id: randomUUID(), ...body }
  for (let attempt = 1; ; attempt += 1) {
    const stream = await client.send(keyed)
    if (stream.status !== 503 || attempt === attemptsMax) return stream
  }
}

async function startProcess(t: Test, env: Record<string, string>) {
  const gateway = await spawnGateway(t, { LOG_LEVEL: 'info', ...env })
  await untilReady(gateway.url)
  return gateway
}

function contentFor(messages: readonly { id: string; content: string }[], stream: Stream): string | undefined {
  return messages.find(({ id }) => id === stream.headers.get('x-message-id'))?.content
}
