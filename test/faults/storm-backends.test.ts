/**
 * A storm that kills all backends of a gateway ten times a second (row 18 of the table of faults), while four writers send
 * message after message: each is stored once, with its reply, whole. It has the machine to itself (scripts/test.ts): where a
 * connection takes longer to make than it lives, there is no storm but an outage, which other tests are about.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import postgres from 'postgres'
import { test } from 'tap'
import { say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { type Client, createClient, isDone, type Received, type Stream, shownText } from '../support/client.ts'
import { createTestDatabase, databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'
import { trialsOf } from '../support/trials.ts'

const stormEveryMs = 100
const writers = 4
const roundsOfEach = trialsOf(20)

// Nothing here is about the embedded database, which has no backends.
const skip = databases().includes('postgres') ? false : 'TEST_EMBEDDED_ONLY=1: no Postgres'

test('row 18: with its backends killed ten times a second, nothing is lost and nothing is stored twice', {
  skip,
  // It takes 10 to 40 s. Where a connection takes nearly as long to make as it lives, few statements get through.
  timeout: 240_000,
}, async (t) => {
  const upstream = await startFakeUpstream({ script: ({ message }) => say({ text: `You said ${message}`, paceMs: 5 }) })
  t.teardown(() => upstream.close())
  const { url } = await createTestDatabase(t)
  const lines: string[] = []
  const gateway = await startGateway(t, {
    env: { DATABASE_URL: url, OPENAI_BASE_URL: upstream.url, DATABASE_POOL: '8', LOG_LEVEL: 'info' },
    logStream: { write: (line) => lines.push(line) },
  })
  const sql = postgres(url, { max: 1, onnotice: () => undefined, connection: { application_name: 'storm' } })
  t.teardown(() => sql.end({ timeout: 1 }))
  let killed = 0
  let refusals = 0
  let over = false
  const storm = (async () => {
    while (!over) {
      const { count } = await sql`
        select pg_terminate_backend(pid) from pg_stat_activity
        where application_name = 'verbatim' and datname = current_database()`
      killed += count
      await sleep(stormEveryMs)
    }
  })()

  async function write(writer: number): Promise<void> {
    const client = createClient(gateway.url, { 'x-visitor-token': `vst_${String(writer).repeat(43)}` })
    let sessionId: string | undefined
    for (let round = 0; round < roundsOfEach; round += 1) {
      const message = `${writer}/${round}`
      const body = { message, client_message_id: message.replace('/', '-'), session_id: sessionId }
      const stream = await untilAccepted(
        () => client.send(body),
        () => (refusals += 1),
        lines,
      )
      sessionId = stream.headers.get('x-session-id') ?? undefined
      const { how, received } = await untilDone(client, stream)
      const said = shownText(received)
      if (how !== 'clean' || said !== `You said ${message}`) t.fail(`round ${message}`, { how, said })
    }
    const stored = await untilRead(() => client.messages(sessionId ?? ''))
    t.same(
      stored.map(({ content, status }: { content: string; status: string }) => [content, status]),
      Array.from({ length: roundsOfEach }, (_, round) => `${writer}/${round}`).flatMap((message) => [
        [message, 'completed'],
        [`You said ${message}`, 'completed'],
      ]),
      `writer ${writer}: each message and its reply once, in order, whole`,
    )
  }

  await Promise.all(Array.from({ length: writers }, (_, writer) => write(writer)))
  over = true
  await storm
  t.equal(upstream.calls.length, writers * roundsOfEach, 'one upstream call for each message')
  const [row] =
    await sql`select count(*)::int as runs, count(distinct idempotency_key || owner)::int as keys from chat_runs`
  t.same(row, { runs: writers * roundsOfEach, keys: writers * roundsOfEach })
  t.ok(killed > writers, 'there was a storm')
  t.same(
    lines.filter((line) => /fault of the gateway|nobody/.test(line)),
    [],
  )
  t.comment(
    `${killed} backends killed, ${writers * roundsOfEach} messages, ${refusals} transient 503, 0 lost, 0 doubled`,
  )
})

/**
 * Sends until it is taken; a 503 says when to come again, and a storm does not wait for so long.
 * @param lines of the gateway's log: what is wrong with any other refusal stands nowhere else
 */
async function untilAccepted(
  send: () => Promise<Stream>,
  onRefusal: () => void,
  lines: readonly string[],
): Promise<Stream> {
  for (;;) {
    const stream = await send()
    if (stream.status === 200) return stream
    if (stream.status !== 503) {
      await stream.ended
      const errors = lines.filter((line) => line.includes('"level":"error"'))
      throw new Error(`${stream.status} ${stream.text()}\n${errors.join('')}`)
    }
    onRefusal()
    await sleep(20)
  }
}

/**
 * Follows a reply to its end. On a slow machine a storm can keep it from the database for so long that its viewers are told to
 * come back (`reconnect`, persist_pending): that is not the end, and the session is busy until it is.
 */
async function untilDone(client: Client, first: Stream): Promise<{ how: 'clean' | 'cut'; received: Received[] }> {
  const received: Received[] = []
  for (let stream = first; ; ) {
    const how = await stream.ended
    received.push(...stream.received)
    if (how === 'cut' || received.some(isDone)) return { how, received }
    await sleep(20)
    const cursor = received.findLast(({ id }) => id !== undefined)?.id ?? ''
    stream = await client.watch(`/api/v1/runs/${first.headers.get('x-run-id')}/events`, { 'last-event-id': cursor })
  }
}

async function untilRead<T>(read: () => Promise<T | undefined>): Promise<T> {
  for (;;) {
    const found = await read()
    if (found !== undefined) return found
    await sleep(20)
  }
}
