/**
 * Clients that go away in every way a client can: a closed tab, a machine that is gone without a word, a reader that does not
 * read, half a connection, a reset; and cursors that nobody ever issued. The run does not notice, the gateway keeps
 * nothing of them, and whoever comes back has every byte once.
 */
import { randomUUID } from 'node:crypto'
import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { createParser } from 'eventsource-parser'
import { type Test, test } from 'tap'
import { begin, chunk, createGate, doneMarker, say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { parseEventId } from '../../src/log/event.ts'
import {
  type Client,
  createClient,
  holdParts,
  isDelta,
  isDone,
  type Received,
  type Stream,
  shownText,
} from '../support/client.ts'
import { databases } from '../support/database.ts'
import { type GatewayOptions, startGateway } from '../support/gateway.ts'
import { startProxy } from '../support/proxy.ts'
import { createRandom } from '../support/random.ts'
import { openSocket, readAnswer } from '../support/raw.ts'

/** Thirty seconds of the product, at the scale of a test. */
const drainWaitMs = 400
/** Fifteen seconds of the product. */
const heartbeatMs = 200
/** What cutting may take on top, on a machine that runs other tests. */
const slackMs = 4000
const stalledViewers = 20
/** One slice of a write, and what Node holds beside it. */
const pendingBytesMax = 256 * 1024
const memoryOfViewerBytesMax = 1024 * 1024
const resumers = 50

const runOf = (stream: Stream) => stream.headers.get('x-run-id') ?? ''
const eventsOf = (stream: Stream) => `/api/v1/runs/${runOf(stream)}/events`

async function start(t: Test, options: GatewayOptions) {
  const upstream = await startFakeUpstream()
  t.teardown(() => upstream.close())
  const env = { OPENAI_BASE_URL: upstream.url, VIEWERS_PER_OWNER: '0', ...options.env }
  const gateway = await startGateway(t, { ...options, env })
  const sockets = new Set<Socket>()
  gateway.app.server.server.on('connection', (socket) => {
    sockets.add(socket)
    socket.on('close', () => sockets.delete(socket))
  })
  return { upstream, gateway, sockets }
}

async function untilEnded(client: Client, runId: string) {
  for (;;) {
    const { body } = await client.get(`/api/v1/runs/${runId}`)
    if (!['queued', 'running'].includes(body.status)) return body
    await sleep(20)
  }
}

/** A viewer on a bare socket. One that stalls reads nothing after its first bytes, until it is resumed. */
function openViewer(url: string, path: string, identity: Readonly<Record<string, string>>, stalls = false) {
  const { hostname, port } = new URL(url)
  const socket = connect({ host: hostname, port: Number(port), allowHalfOpen: true })
  const headers = Object.entries(identity).map(([name, value]) => `${name}: ${value}\r\n`)
  socket.write(`GET ${path} HTTP/1.1\r\nHost: x\r\n${headers.join('')}\r\n`)
  const pieces: Buffer[] = []
  const began = Promise.withResolvers<void>()
  const closed = Promise.withResolvers<void>()
  socket.on('data', (bytes) => {
    if (stalls && pieces.length === 0) socket.pause()
    pieces.push(bytes)
    began.resolve()
  })
  socket.on('error', () => socket.destroy()) // 'close' follows
  socket.on('end', () => socket.end())
  socket.on('close', () => closed.resolve())
  return {
    socket,
    /** Resolves with the first bytes. */
    began: began.promise,
    closed: closed.promise,
    /** What came, without the frames of the chunked encoding; whether its last chunk was there. */
    read: () => dechunk(Buffer.concat(pieces)),
  }
}

function dechunk(raw: Buffer): { text: string; complete: boolean } {
  const pieces: Buffer[] = []
  let at = raw.indexOf('\r\n\r\n') + 4
  for (;;) {
    const end = raw.indexOf('\r\n', at)
    if (end < 0) return { text: Buffer.concat(pieces).toString(), complete: false }
    const size = Number.parseInt(raw.toString('latin1', at, end), 16)
    if (size === 0) return { text: Buffer.concat(pieces).toString(), complete: true }
    pieces.push(raw.subarray(end + 2, end + 2 + size))
    at = end + 2 + size + 2
  }
}

function eventsIn(text: string): Received[] {
  const received: Received[] = []
  createParser({
    onEvent: ({ event = 'message', data, id }) => received.push({ event, data: JSON.parse(data), id }),
  }).feed(text)
  return received
}

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const { upstream, gateway } = await start(t, { database })
    const { url } = gateway

    function halves(): { open(): void } {
      const gate = createGate()
      upstream.answer(async function* () {
        yield* begin({ text: 'Before' })
        await gate.opened
        yield chunk({ content: ' and after' }, 'stop')
        yield doneMarker
      })
      return gate
    }

    /** The run went on and is stored whole, and can be read from wherever the client had been. */
    async function checkWhole(t: Test, client: Client, stream: Pick<Stream, 'headers' | 'received'>) {
      const runId = stream.headers.get('x-run-id') ?? ''
      t.match(await untilEnded(client, runId), { status: 'completed', attempts: 1 })
      const [, reply] = await client.messages(stream.headers.get('x-session-id') ?? '')
      t.match(reply, { content: 'Before and after', status: 'completed' })
      const lastId = stream.received.findLast(({ id }) => id !== undefined)?.id
      const back = await client.watch(
        `/api/v1/runs/${runId}/events`,
        lastId === undefined ? {} : { 'last-event-id': lastId },
      )
      t.equal(await back.ended, 'clean')
      t.equal(shownText(back.received, holdParts(stream.received)), reply.content, 'every byte once')
      t.equal(back.received.filter(isDone).length, 1)
    }

    await t.test('row 43: a closed tab changes nothing; with on_disconnect: stop it stops the run', async (t) => {
      const client = createClient(url)
      const gate = halves()
      const stream = await client.send({ message: 'Hello' })
      await stream.until(isDelta)
      const call = upstream.calls.at(-1)
      stream.close()
      await stream.ended
      gate.open()
      await checkWhole(t, client, stream)
      t.same(await call?.closed, { aborted: false }, 'the provider was heard to the end')

      halves()
      const watched = await client.send({ message: 'Hello', on_disconnect: 'stop' })
      await watched.until(isDelta)
      const aborted = upstream.calls.at(-1)?.aborted
      watched.close()
      await aborted
      t.match(await untilEnded(client, runOf(watched)), { status: 'stopped' })
      const [, reply] = await client.messages(watched.headers.get('x-session-id') ?? '')
      t.match(reply, { content: 'Before', status: 'stopped' })
    })

    for (const how of ['a reset', 'half a connection'] as const) {
      await t.test(`row 46: ${how} is like a closed tab, and no end that looks whole`, async (t) => {
        const client = createClient(url)
        const gate = halves()
        const stream = await client.send({ message: 'Hello' })
        await stream.until(isDelta)
        const viewer = openViewer(url, eventsOf(stream), client.identity)
        await viewer.began
        if (how === 'a reset') viewer.socket.resetAndDestroy()
        else viewer.socket.end()
        await viewer.closed
        const { text, complete } = viewer.read()
        t.equal(complete, false)
        t.notMatch(text, 'event: done')
        gate.open()
        t.equal(await stream.ended, 'clean')
        await checkWhole(t, client, { headers: stream.headers, received: eventsIn(text) })
      })
    }

    await t.test(
      `row 48: ${resumers} viewers resume one stream at different places, and each has every byte`,
      async (t) => {
        const client = createClient(url)
        await client.get('/api/v1/sessions')
        const calls = upstream.calls.length
        const gate = createGate()
        upstream.answer(async function* () {
          yield* begin({ text: 'Ñandú 漢字 🎈 '.repeat(100), paceMs: 3 })
          await gate.opened
          yield* say({ text: 'and the rest', paceMs: 3 })
        })
        const first = await client.send({ message: 'Hello' })
        await first.until(({ data }) => data.offset > 1000)
        const seen = first.received.filter(({ id }) => id !== undefined)
        t.ok(seen.length > 20, `${seen.length} places to resume at`)
        const random = createRandom(48)
        const viewers = await Promise.all(
          Array.from({ length: resumers }, async () => {
            const held = seen.slice(0, 1 + random.integer(seen.length))
            const stream = await client.watch(eventsOf(first), { 'last-event-id': held.at(-1)?.id ?? '' })
            return { held, stream }
          }),
        )
        await Promise.all(viewers.map(({ stream }) => stream.until(({ event }) => event === 'ready')))
        gate.open()
        t.equal(await first.ended, 'clean')
        const [, reply] = await client.messages(first.headers.get('x-session-id') ?? '')
        for (const { held, stream } of viewers) {
          const how = await stream.ended
          const text = shownText(stream.received, holdParts(held))
          const ends = stream.received.filter(isDone).length
          if (how !== 'clean' || text !== reply.content || ends !== 1)
            t.fail(`resumed at ${held.at(-1)?.id}`, { how, text, ends })
        }
        t.equal(shownText(first.received), reply.content)
        t.equal(upstream.calls.length, calls + 1, 'one upstream call')
        const places = new Set(viewers.map(({ held }) => held.length)).size
        t.comment(`${resumers} resumed at ${places} places, 0 lost, 0 doubled`)
      },
    )

    await t.test('row 47: a cursor that nobody issued', async (t) => {
      const client = createClient(url)
      const gate = halves()
      const running = await client.send({ message: 'Hello' })
      await running.until(isDelta)
      upstream.answer(() => say({ text: 'A reply that has ended' }))
      const other = createClient(url)
      const foreign = await other.send({ message: 'Somebody else’s' })
      await foreign.ended
      const ended = await client.send({ message: 'Hello' })
      await ended.ended
      const ids = ['x-run-id', 'x-session-id', 'x-message-id'].map((name) => foreign.headers.get(name) ?? '')
      const leaks = (text: string) => ids.some((id) => text.includes(id))

      const malformed = [
        ...[
          'x',
          '-',
          '1',
          '1-',
          '-1',
          '-1--1',
          '1--1',
          '--',
          '0x1-1',
          '1e0-1',
          '1-1-1',
          '1.5-1',
          '1_1',
          '1,1',
          '+1-+1',
        ],
        ...[
          'null',
          'undefined',
          'NaN',
          '[object Object]',
          '{"generation":1,"seq":1}',
          '*',
          '$',
          '0-*',
          '(1-1',
          '+',
          '1-1;',
        ],
        ...['01-1', '1-01', '1-1 2-2', '１-１', '٣-٣', '1-1%00', '1-1%0d%0aX-Evil: 1', "1-1' or 'a'='a", '../../1-1'],
        ...['1234567890-1', '1-1234567890', `${'9'.repeat(400)}-1`, '1'.repeat(10_000), 'x'.repeat(10_000)],
        ...[runOf(running), runOf(ended), runOf(foreign), `${runOf(foreign)}-1`, randomUUID()],
      ]
      for (const stream of [running, ended]) {
        const path = eventsOf(stream)
        for (const cursor of malformed) {
          // What no header can hold is tried in the query only.
          const inQuery = await client.get(`${path}?after=${encodeURIComponent(cursor)}`)
          const answers = /^[\x20-\x7e]*$/.test(cursor)
            ? [inQuery, await client.get(path, { 'last-event-id': cursor })]
            : [inQuery]
          for (const { status, body } of answers) {
            if (status !== 400 || body.code !== 'invalid_request') t.fail(cursor.slice(0, 60), { status, body })
            if (leaks(JSON.stringify(body).replaceAll(cursor, ''))) t.fail('a leak', { cursor, body })
          }
        }
      }
      t.comment(`${malformed.length} malformed cursors refused`)

      // Of the right form, and not of this run: the future, another generation, another run's end.
      const last = parseEventId(ended.received.at(-1)?.id ?? '')
      const unissued = ['0-0', '0-1', '0-999999999', '1-0', '1-999999999', '2-1', '999999999-1', '999999999-999999999']
      for (const cursor of [...unissued, `${last?.generation}-${(last?.seq ?? 0) + 1}`]) {
        const stream = await client.watch(eventsOf(ended), { 'last-event-id': cursor })
        t.equal(stream.status, 200, cursor)
        t.equal(await stream.ended, 'clean')
        // Directly before the first event is a place in the log.
        const first = stream.received.find(({ id }) => id !== undefined)?.event
        t.ok(first === 'reset' || (first === 'run' && /^[01]-0$/.test(cursor)), `${cursor}: ${first}`)
        t.equal(shownText(stream.received), 'A reply that has ended', 'whole again')
        t.equal(stream.received.filter(isDone).length, 1)
        t.notOk(leaks(stream.text()))
      }
      const resets = await Promise.all(
        ['0-7', '1-999999999', '7-1'].map((cursor) => client.watch(eventsOf(running), { 'last-event-id': cursor })),
      )

      await t.test('on the socket, with line breaks and other bytes that no client would send', async (t) => {
        const token = `x-visitor-token: ${client.identity['x-visitor-token']}\r\nHost: x\r\nConnection: close\r\n`
        for (const header of [
          'Last-Event-ID: 1-1\r\n 2-2',
          'Last-Event-ID: 1-\r\n\t1',
          'Last-Event-ID: 1-1\rX-Evil: 1',
          'Last-Event-ID: 1-1\nX-Evil: 1',
          'Last-Event-ID: 1-1\0',
          'Last-Event-ID: \xff\xfe',
          'Last-Event-ID: 1-1, 1-2',
          'Last-Event-ID: 1-1\r\nLast-Event-ID: 1-2',
          `Last-Event-ID: ${'7'.repeat(10_000)}`,
        ]) {
          const socket = openSocket(url)
          socket.write(Buffer.from(`GET ${eventsOf(ended)} HTTP/1.1\r\n${token}${header}\r\n\r\n`, 'latin1'))
          const { status, text, headers } = readAnswer(await socket.closed)
          const answered =
            status === 400 || (status === 200 && (text.includes('event: reset') || text.includes('event: done')))
          t.ok(answered, `${JSON.stringify(header).slice(0, 60)}: ${status}`)
          t.equal(headers['x-evil'], undefined)
          t.notOk(leaks(text))
        }
        const socket = openSocket(url)
        socket.write(`GET ${eventsOf(ended)}?after=1-1%0d%0aX-Evil:%201 HTTP/1.1\r\n${token}\r\n`)
        const { status, headers } = readAnswer(await socket.closed)
        t.equal(status, 400)
        t.equal(headers['x-evil'], undefined)
      })

      for (const cursor of ['1-1', '1-999999999', 'x', '0-0', '']) {
        const answer = await client.get(eventsOf(foreign), { 'last-event-id': cursor })
        t.ok(answer.status === 404 || (cursor === 'x' && answer.status === 400), `another owner's run, ${cursor}`)
        t.notOk(leaks(JSON.stringify(answer.body)))
        for (const name of ['x-run-id', 'x-session-id', 'x-message-id', 'location'])
          t.notOk(answer.headers.has(name), name)
      }
      gate.open()
      await running.ended
      for (const stream of resets) {
        t.equal(await stream.ended, 'clean')
        t.equal(shownText(stream.received), 'Before and after')
        t.ok(stream.received.some(({ event }) => event === 'reset'))
      }
    })
  })
}

test('row 44: a client that is gone without a word is let go', async (t) => {
  const { upstream, gateway, sockets } = await start(t, { sse: { drainWaitMs, heartbeatMs } })
  const client = createClient(gateway.url)
  await client.get('/api/v1/sessions')
  const proxy = await startProxy(t, new URL(gateway.url))

  await t.test('while much is said: as soon as its connection takes no more for the time of a drain', async (t) => {
    upstream.answer(() => longReply())
    const before = sockets.size
    const viewer = createClient(`http://127.0.0.1:${proxy.port}`, client.identity)
    const stream = await viewer.send({ message: 'Much', on_disconnect: 'continue' })
    await stream.until(isDelta)
    proxy.set('hang')
    const run = await untilEnded(client, runOf(stream))
    t.equal(run.status, 'completed', 'the reply does not wait for it')
    const endedAt = performance.now()
    await untilSize(sockets, before)
    const tookMs = performance.now() - endedAt
    t.ok(tookMs < drainWaitMs + heartbeatMs + slackMs)
    t.comment(`let go ${Math.round(tookMs)} ms after the last word, with a limit of ${drainWaitMs} ms`)
    proxy.set('pass')
    await stream.ended
    const [, reply] = await client.messages(stream.headers.get('x-session-id') ?? '')
    t.ok(reply.content === longText, 'all of it is stored')
  })

  await t.test('a run that asked for it is stopped by that', async (t) => {
    upstream.answer(async function* () {
      yield* longPieces(Number.POSITIVE_INFINITY, 40)
    })
    const viewer = createClient(`http://127.0.0.1:${proxy.port}`, client.identity)
    const stream = await viewer.send({ message: 'Much', on_disconnect: 'stop' })
    await stream.until(isDelta)
    proxy.set('hang')
    const run = await untilEnded(client, runOf(stream))
    t.equal(run.status, 'stopped')
    proxy.set('pass')
    await stream.ended
  })
})

test('row 45: clients that stop reading', async (t) => {
  const { upstream, gateway, sockets } = await start(t, { sse: { drainWaitMs } })
  const client = createClient(gateway.url)
  await client.get('/api/v1/sessions')
  const gate = createGate()
  upstream.answer(async function* () {
    yield chunk({ content: 'First ' })
    await gate.opened
    yield* longReply()
  })
  const first = await client.send({ message: 'Much' })
  await first.until(isDelta)
  const before = new Set(sockets)
  const viewers = Array.from({ length: stalledViewers }, () =>
    openViewer(gateway.url, eventsOf(first), client.identity, true),
  )
  await Promise.all(viewers.map(({ began }) => began))
  const stalled = [...sockets].filter((socket) => !before.has(socket))
  t.equal(stalled.length, stalledViewers)
  let pendingBytes = 0
  gate.open()
  const from = performance.now()
  let over = false
  const looking = (async () => {
    while (!over) {
      for (const socket of stalled) pendingBytes = Math.max(pendingBytes, socket.writableLength)
      await sleep(5)
    }
  })()
  t.equal(await first.ended, 'clean', 'who reads is not kept waiting')
  const readMs = performance.now() - from
  await Promise.all(stalled.map((socket) => untilClosed(socket)))
  const cutMs = performance.now() - from
  over = true
  await looking
  t.ok(cutMs < readMs + drainWaitMs + slackMs, 'cut in time')
  t.ok(pendingBytes < pendingBytesMax, `at most ${pendingBytes} bytes wait for one of them`)

  const text = `First ${longText}`
  let shortest = Number.POSITIVE_INFINITY
  for (const viewer of viewers) {
    viewer.socket.resume()
    await viewer.closed
    const seen = viewer.read()
    const events = eventsIn(seen.text)
    shortest = Math.min(shortest, shownText(events).length)
    if (seen.complete || events.some(isDone)) t.fail('a cut that looks like an end')
    const lastId = events.findLast(({ id }) => id !== undefined)?.id ?? ''
    const back = await client.watch(eventsOf(first), { 'last-event-id': lastId })
    const how = await back.ended
    const all = shownText(back.received, holdParts(events))
    if (how !== 'clean' || all !== text) t.fail('a resume that is not exact', { how, units: all.length, lastId })
  }
  t.ok(shortest < text.length, 'they were cut in mid-stream')
  const [, reply] = await client.messages(first.headers.get('x-session-id') ?? '')
  t.ok(reply.content === text)
  t.comment(
    `${stalledViewers} cut after ${Math.round(cutMs)} ms (limit ${drainWaitMs} ms), ${pendingBytes} pending bytes each at most, shortest ${shortest} of ${text.length} units`,
  )
})

test('row 45: clients that ask for a long reply and do not read it cost little memory', async (t) => {
  const { upstream, gateway, sockets } = await start(t, {})
  const client = createClient(gateway.url)
  await client.get('/api/v1/sessions')
  upstream.answer(() => longReply())
  const whole = await client.post('/api/v1/chat/message', { message: 'Much' })
  const path = `/api/v1/runs/${whole.body.run.id}/events`
  const before = new Set(sockets)
  const usedBefore = usedBytes()
  const viewers = Array.from({ length: stalledViewers }, () => openViewer(gateway.url, path, client.identity, true))
  await Promise.all(viewers.map(({ began }) => began))
  const stalled = [...sockets].filter((socket) => !before.has(socket))
  while (!stalled.every(({ writableNeedDrain }) => writableNeedDrain)) await sleep(5)
  const each = (usedBytes() - usedBefore) / stalledViewers
  t.ok(each < memoryOfViewerBytesMax, `${Math.round(each / 1024)} KiB for each of them`)
  t.comment(`${Math.round(each / 1024)} KiB for each of ${stalledViewers} viewers of ${longText.length} units`)
  for (const { socket } of viewers) socket.destroy()
  await untilSize(sockets, before.size)
})

/** Six bytes a unit in JSON: of all that a reply can hold, that is more than two kernels keep for a connection. */
const pieceUnits = 20_000
const pieceCount = 95
const piece = (index: number) => `${index} ${'\u0001'.repeat(pieceUnits - 10)}\n`
const longText = Array.from({ length: pieceCount }, (_, index) => piece(index)).join('')

async function* longPieces(count: number, paceMs = 0) {
  for (let index = 0; index < count; index += 1) {
    yield chunk({ content: piece(index) })
    if (paceMs > 0) await sleep(paceMs)
  }
}

async function* longReply() {
  yield* longPieces(pieceCount, 4)
  yield chunk({}, 'stop')
  yield doneMarker
}

/** Bytes of strings and buffers that somebody still holds. */
function usedBytes(): number {
  setFlagsFromString('--expose-gc')
  const collect: () => void = runInNewContext('gc')
  // Buffers that a collection has found are freed beside it, and may still be counted; the next one waits for that.
  collect()
  collect()
  const { heapUsed, arrayBuffers } = process.memoryUsage()
  return heapUsed + arrayBuffers
}

async function untilSize(sockets: ReadonlySet<Socket>, size: number): Promise<void> {
  while (sockets.size > size) await sleep(20)
}

function untilClosed(socket: Socket): Promise<void> {
  return new Promise((resolve) => {
    if (socket.closed) resolve()
    else socket.on('close', () => resolve())
  })
}
