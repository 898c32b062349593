/**
 * Stream tickets, over real HTTP: an EventSource that can send neither header nor cookie opens one run's events with one,
 * on any process, before and after a restart; it comes back for as long as there is something to miss; and whatever is
 * not exactly a ticket of this run is 401, never another identity.
 */
import { randomUUID } from 'node:crypto'
import { type Test, test } from 'tap'
import { begin, chunk, createGate, doneMarker, say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { buildApp } from '../../src/app.ts'
import { readConfig } from '../../src/config.ts'
import { type Client, createClient, holdParts, isDelta, isDone, type Stream, shownText } from '../support/client.ts'
import { createTestDatabase, databases } from '../support/database.ts'
import { createDataFolder, type Gateway, startGateway } from '../support/gateway.ts'
import { startProxy } from '../support/proxy.ts'
import { inSeconds, makeToken } from '../support/tokens.ts'

const secret = 'a-secret-of-the-tests-with-32-bytes!'
const origin = 'https://app.example'
const skip = databases().includes('postgres') ? false : 'TEST_EMBEDDED_ONLY=1: no Postgres'
const env = { JWT_SECRET: secret, CORS_ORIGINS: origin, LOG_LEVEL: 'trace', FRAME_MS: '5' }
/** What an EventSource sends of itself. */
const bare = { accept: 'text/event-stream' }

interface Ticketed {
  readonly runId: string
  readonly ticket: string
  readonly path: string
  /** Of the client that sent the message. */
  readonly stream: Stream
}

async function takeTicket(client: Client, stream: Stream): Promise<Ticketed> {
  const runId = stream.headers.get('x-run-id') ?? ''
  const { status, body } = await client.post('/api/v1/stream-tickets', { run_id: runId })
  if (status !== 200) throw new Error(`no ticket: ${status} ${JSON.stringify(body)}`)
  return { runId, ticket: body.ticket, path: pathOf(runId, body.ticket), stream }
}

const pathOf = (runId: string, ticket: string) => `/api/v1/runs/${runId}/events?ticket=${encodeURIComponent(ticket)}`

/** Half a reply, and its rest when the gate is opened. */
function halves(gate: { readonly opened: Promise<void> }) {
  return async function* () {
    yield* begin({ text: 'Before' })
    await gate.opened
    yield chunk({ content: ' and after' }, 'stop')
    yield doneMarker
  }
}

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const upstream = await startFakeUpstream()
    t.teardown(() => upstream.close())
    const lines: string[] = []
    const tickets: string[] = []
    const start = (t: Test, life: { firstConnectionMs?: number; afterEndMs?: number }): Promise<Gateway> =>
      startGateway(t, {
        database,
        tickets: life,
        logStream: { write: (line) => lines.push(line) },
        env: { ...env, OPENAI_BASE_URL: upstream.url },
      })
    const gateway = await start(t, {})
    const { url } = gateway
    const eventSource = createClient(url, bare)

    async function ticketOf(client: Client, at = url): Promise<Ticketed> {
      upstream.answer(() => say({ text: 'A reply' }))
      const stream = await client.send({ message: 'Hi' })
      await stream.ended
      const ticketed = await takeTicket(createClient(at, client.identity), stream)
      tickets.push(ticketed.ticket)
      return ticketed
    }

    await t.test(
      'a client with nothing but a ticket reads the whole run, live, and is given no identity',
      async (t) => {
        const gate = createGate()
        upstream.answer(halves(gate))
        const client = createClient(url)
        const { path, ticket, stream } = await takeTicket(client, await client.send({ message: 'Hi' }))
        tickets.push(ticket)
        const viewer = await eventSource.watch(path)
        t.equal(viewer.status, 200)
        await viewer.until(isDelta)
        gate.open()
        t.equal(await viewer.ended, 'clean')
        t.equal(shownText(viewer.received), 'Before and after')
        t.equal(viewer.received.filter(isDone).length, 1)
        for (const name of ['set-cookie', 'x-visitor-token']) t.equal(viewer.headers.get(name), null, name)
        t.notMatch(viewer.headers.get('location'), /ticket/)
        await stream.ended
      },
    )

    await t.test('it is issued for sixty seconds, to the owner of the run only, and never cached', async (t) => {
      const client = createClient(url)
      const { runId } = await ticketOf(client)
      const ask = (who: Client, body: unknown) => who.post('/api/v1/stream-tickets', body)
      const issued = await ask(client, { run_id: runId })
      t.match(issued, { status: 200, body: { ticket: String, expires_in: 60 } })
      t.equal(issued.headers.get('cache-control'), 'no-store')
      t.match(await ask(createClient(url), { run_id: runId }), { status: 404, body: { code: 'not_found' } })
      t.match(await ask(client, { run_id: randomUUID() }), { status: 404, body: { code: 'not_found' } })
      for (const body of [undefined, {}, { run_id: 'x' }, { run_id: null }, { run_id: runId, seconds: 9999 }]) {
        t.match(await ask(client, body), { status: 400, body: { code: 'invalid_request' } }, JSON.stringify(body))
      }
      const run = await client.get(`/api/v1/runs/${runId}`)
      t.notMatch(JSON.stringify(run.body), 'ticket', 'the key is nothing that a client sees')
    })

    await t.test(
      'what is not exactly a ticket of this run is 401, and no other identity takes its place',
      async (t) => {
        const client = createClient(url)
        const { runId, ticket } = await ticketOf(client)
        const other = await ticketOf(client)
        const foreign = await ticketOf(createClient(url))
        upstream.answer(() => say({ text: 'Never ticketed' }))
        const plain = await client.send({ message: 'Hi' })
        await plain.ended
        const [expiry = '', signature = ''] = ticket.split('.')
        const later = String(Number(expiry) + 60_000)
        const swap = (text: string, at: number) =>
          `${text.slice(0, at)}${text[at] === 'A' ? 'B' : 'A'}${text.slice(at + 1)}`
        // 43 characters of base64url hold two bits too many: three more texts are the same 32 bytes.
        const twins = [...'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'].map(
          (last) => `${expiry}.${signature.slice(0, -1)}${last}`,
        )
        const unusable: readonly (readonly [string, string])[] = [
          ...['', ' ', '.', 'x', 'null', 'undefined', '0', '-1', '[object Object]', 'vst_', 'x'.repeat(10_000)].map(
            (garbage): [string, string] => [runId, garbage],
          ),
          ...[
            ticket.slice(0, -1),
            `${ticket}A`,
            ` ${ticket}`,
            `${ticket} `,
            `${ticket}\u0000`,
            ticket.toUpperCase(),
          ].map((almost): [string, string] => [runId, almost]),
          [runId, `${later}.${signature}`],
          [runId, `0${expiry.slice(1)}.${signature}`],
          [runId, `${expiry}.${'A'.repeat(43)}`],
          [runId, `${expiry}.`],
          ...twins.filter((twin) => twin !== ticket).map((twin): [string, string] => [runId, twin]),
          ...[...ticket].flatMap((_, at): [string, string][] =>
            ticket[at] === '.' ? [] : [[runId, swap(ticket, at)]],
          ),
          [runId, other.ticket],
          [runId, foreign.ticket],
          [foreign.runId, ticket],
          [plain.headers.get('x-run-id') ?? '', ticket],
          [randomUUID(), ticket],
          ['not-a-uuid', ticket],
        ]
        // The cookie is the owner's: an EventSource would send it, and it must not mend the ticket.
        const withCookie = createClient(url, { ...bare, cookie: `visitor_token=${client.identity['x-visitor-token']}` })
        for (const [run, tried] of unusable) {
          const answer = await withCookie.get(pathOf(run, tried), { 'last-event-id': '1-1' })
          const said = `${run === runId ? '' : `${run} `}${tried.slice(0, 60)}`
          if (answer.status !== 401 || answer.body.code !== 'invalid_token') t.fail(said, { status: answer.status })
          if (!answer.headers.has('www-authenticate')) t.fail(`${said} without WWW-Authenticate`)
          if (answer.headers.has('set-cookie')) t.fail(`${said} with a cookie`)
        }
        t.comment(`${unusable.length} refused`)
        const twice = await eventSource.get(`${pathOf(runId, ticket)}&ticket=${ticket}`)
        t.match(twice, { status: 401, body: { code: 'invalid_token' } }, 'two of them are none')
        const whole = await eventSource.watch(pathOf(runId, ticket))
        t.equal(await whole.ended, 'clean', 'and the ticket itself is still good')
      },
    )

    await t.test('it opens the events of its run and nothing else', async (t) => {
      const client = createClient(url)
      const { runId, ticket } = await ticketOf(client)
      const query = `ticket=${ticket}`
      for (const path of ['sessions', `runs/${runId}`, `chat/stream`, 'health', 'stream-tickets']) {
        const answer = await client.get(`/api/v1/${path}?${query}`)
        t.ok([401, 404].includes(answer.status), `${path}: ${answer.status}`)
        t.notOk(answer.body.data)
      }
      for (const path of [`runs/${runId}/stop`, 'chat/stream', 'chat/message', 'stream-tickets']) {
        const answer = await client.post(`/api/v1/${path}?${query}`, { message: 'Hi', run_id: runId })
        t.match(answer, { status: 401, body: { code: 'invalid_token' } }, path)
      }
    })

    await t.test('a ticket is the whole credential: what else the request carries is not looked at', async (t) => {
      const stranger = createClient(url)
      await stranger.get('/api/v1/sessions')
      const { path } = await ticketOf(createClient(url))
      const others: readonly Record<string, string>[] = [
        { authorization: `Bearer ${makeToken(secret, { sub: 'eve', exp: inSeconds(600) })}` },
        { authorization: `Bearer ${makeToken(secret, { sub: 'ada', exp: inSeconds(-600) })}` },
        { authorization: 'Basic x' },
        { 'x-visitor-token': stranger.identity['x-visitor-token'] ?? '' },
        { 'x-visitor-token': 'broken' },
        { cookie: 'visitor_token=broken' },
      ]
      for (const headers of others) {
        const viewer = await createClient(url, { ...bare, ...headers }).watch(path)
        t.equal(viewer.status, 200, Object.keys(headers).join())
        t.equal(await viewer.ended, 'clean')
        t.equal(shownText(viewer.received), 'A reply')
        t.equal(viewer.headers.get('set-cookie'), null)
      }
    })

    await t.test('a user’s ticket serves as long as a visitor’s, whatever the user is called', async (t) => {
      for (const sub of ['ada', 'visitor:0', 'Ада 🦊', 'x y z']) {
        const authorization = `Bearer ${makeToken(secret, { sub, exp: inSeconds(600) })}`
        const { path } = await ticketOf(createClient(url, { authorization }))
        const viewer = await eventSource.watch(path)
        t.equal(viewer.status, 200, sub)
        await viewer.ended
        t.equal(shownText(viewer.received), 'A reply')
      }
    })

    await t.test('it can be used from the sites that may call, and from no other', async (t) => {
      const { path } = await ticketOf(createClient(url))
      const cross = { ...bare, 'sec-fetch-site': 'cross-site' }
      const viewer = await createClient(url, { ...cross, origin }).watch(path)
      t.equal(viewer.status, 200)
      t.equal(viewer.headers.get('access-control-allow-origin'), origin)
      await viewer.ended
      for (const headers of [cross, { ...cross, origin: 'https://evil.example' }]) {
        t.match(await createClient(url, headers).get(path), { status: 403, body: { code: 'forbidden_origin' } })
      }
    })

    await t.test('after its first time it opens nothing new, and is good for coming back until the end', async (t) => {
      // Over as soon as it is issued: no test has to wait for a minute.
      const short = await start(t, { firstConnectionMs: 0 })
      const gate = createGate()
      upstream.answer(halves(gate))
      const client = createClient(short.url)
      const ticketed = await takeTicket(client, await client.send({ message: 'Hi' }))
      tickets.push(ticketed.ticket)
      const { path, stream } = ticketed
      const viewer = createClient(short.url, bare)
      const first = await stream.until(isDelta)
      const refused = { status: 401, body: { code: 'invalid_token' } }
      t.match(await viewer.get(path), refused, 'a first connection is too late')
      t.match(await viewer.get(path, { 'last-event-id': '' }), refused, 'an empty cursor is none')
      t.match(await viewer.get(`${path}&after=${first.id}`), refused, 'a cursor in the URL is no reconnect')
      const back = await viewer.watch(path, { 'last-event-id': first.id ?? '' })
      t.equal(back.status, 200, 'while the run goes on')
      gate.open()
      t.equal(await back.ended, 'clean')
      const held = holdParts(stream.received.slice(0, stream.received.indexOf(first) + 1))
      t.equal(shownText(back.received, held), 'Before and after')
      await stream.ended

      const cutBeforeDone = await viewer.watch(path, { 'last-event-id': stream.received.at(-2)?.id ?? '' })
      t.equal(cutBeforeDone.status, 200, 'one that was cut just before the end still gets it')
      t.equal(await cutBeforeDone.ended, 'clean')
      t.same(
        cutBeforeDone.received.filter(({ id }) => id !== undefined).map(({ event }) => event),
        ['done'],
      )
      const atEnd = await viewer.get(path, { 'last-event-id': stream.received.at(-1)?.id ?? '' })
      t.equal(atEnd.status, 204, 'and at the end an EventSource is ended, not refused')
      t.match(await viewer.get(path), refused)
    })

    await t.test('some time after the end it is over', async (t) => {
      const short = await start(t, { firstConnectionMs: 0, afterEndMs: 0 })
      const gate = createGate()
      upstream.answer(halves(gate))
      const client = createClient(short.url)
      const { path, stream, ticket } = await takeTicket(client, await client.send({ message: 'Hi' }))
      tickets.push(ticket)
      const viewer = createClient(short.url, bare)
      const back = await viewer.watch(path, { 'last-event-id': '1-1' })
      t.equal(back.status, 200)
      gate.open()
      await Promise.all([back.ended, stream.ended])
      t.match(await viewer.get(path, { 'last-event-id': '1-1' }), { status: 401, body: { code: 'invalid_token' } })
      t.equal((await client.get(`/api/v1/runs/${stream.headers.get('x-run-id')}`)).status, 200, 'its owner still reads')
    })

    await t.test('no ticket is in a log line, whatever became of its request', (t) => {
      t.ok(tickets.length > 10)
      t.ok(lines.some((line) => line.includes('/api/v1/runs/:id/events') && line.includes('"status":401')))
      const signatures = tickets.map((ticket) => ticket.split('.')[1] ?? '')
      const leaks = (line: string) => line.includes('ticket=') || signatures.some((one) => line.includes(one))
      t.same(lines.filter(leaks), [])
      t.ok(leaks(JSON.stringify({ url: pathOf(randomUUID(), tickets[0] ?? '') })), 'a twin: a logged URL would be seen')
      t.same(
        lines.filter((line) => /"level":"(error|fatal)"/.test(line)),
        [],
      )
      t.end()
    })
  })
}

test('a ticket outlives the restart of an embedded gateway', async (t) => {
  const upstream = await startFakeUpstream({ script: () => say({ text: 'Kept' }) })
  t.teardown(() => upstream.close())
  const folder = await createDataFolder(t)
  const options = { env: { DATA_DIR: folder, OPENAI_BASE_URL: upstream.url } }
  const before = await startGateway(t, options)
  const client = createClient(before.url)
  const stream = await client.send({ message: 'Hi' })
  await stream.ended
  const { path } = await takeTicket(client, stream)
  await before.close()
  const after = await startGateway(t, options)
  const viewer = await createClient(after.url, bare).watch(path)
  t.equal(viewer.status, 200)
  t.equal(await viewer.ended, 'clean')
  t.equal(shownText(viewer.received), 'Kept')
})

test('with Postgres', { skip }, async (t) => {
  const upstream = await startFakeUpstream({ script: () => say({ text: 'Kept' }) })
  t.teardown(() => upstream.close())
  const { url } = await createTestDatabase(t)
  const proxy = await startProxy(t, new URL(url))
  const proxied = new URL(url)
  proxied.port = String(proxy.port)
  const common = { OPENAI_BASE_URL: upstream.url, DATABASE_POOL: '4' }
  const one = await startGateway(t, { env: { ...common, DATABASE_URL: url } })
  const two = await startGateway(t, { env: { ...common, DATABASE_URL: proxied.href } })
  const client = createClient(one.url)
  const stream = await client.send({ message: 'Hi' })
  await stream.ended

  await t.test('a ticket of one process opens the run on every other, though they share no secret', async (t) => {
    const { path } = await takeTicket(client, stream)
    const viewer = await createClient(two.url, bare).watch(path)
    t.equal(viewer.status, 200)
    t.equal(await viewer.ended, 'clean')
    t.equal(shownText(viewer.received), 'Kept')
  })

  await t.test('tickets that two processes make at the same time are both good', async (t) => {
    const again = await client.send({ message: 'Hi' })
    await again.ended
    const made = await Promise.all(
      [one, two, one, two].map(({ url }) => takeTicket(createClient(url, client.identity), again)),
    )
    for (const { path } of made) t.equal((await createClient(one.url, bare).watch(path)).status, 200)
  })

  await t.test(
    'while the database is away, a first connection gets 503 and one that comes back is told to come again',
    async (t) => {
      const { path } = await takeTicket(client, stream)
      const viewer = createClient(two.url, bare)
      proxy.set('refuse')
      t.match(await viewer.get(path), { status: 503, body: { code: 'db_unavailable' } })
      const back = await viewer.watch(path, { 'last-event-id': '1-1' })
      t.equal(back.status, 200, 'any other answer would be the end of an EventSource')
      t.equal(await back.ended, 'clean')
      t.same(
        back.received.map(({ event }) => event),
        ['reconnect'],
      )
      proxy.set('pass')
    },
  )

  await t.test('a process that is still starting tells the same to one that comes back', async (t) => {
    const { path, runId } = await takeTicket(client, stream)
    proxy.set('refuse')
    const config = readConfig({ ...common, DATABASE_URL: proxied.href, LOG_LEVEL: 'silent', DRAIN_MS: '0' })
    const app = await buildApp(config)
    t.teardown(() => app.close())
    const starting = await app.server.listen({ port: 0, host: '127.0.0.1' })
    const viewer = createClient(starting, bare)
    t.match(await viewer.get(path), { status: 503, body: { code: 'db_unavailable' } })
    for (const url of [path, `/api/v1/runs/${runId}/events`]) {
      const back = await viewer.watch(url, { 'last-event-id': '1-1' })
      t.equal(back.status, 200)
      t.equal(await back.ended, 'clean')
      t.match(back.received, [{ event: 'reconnect' }])
    }
    proxy.set('pass')
    await app.ready
  })
})
