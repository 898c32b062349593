/**
 * One viewer's connection over a real socket: what the client sees in each of the ways it can end, and what is left in
 * the process afterwards, which is nothing.
 */
import { once } from 'node:events'
import { get, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import fastify, { type FastifyRequest } from 'fastify'
import { type Test, test } from 'tap'
import type { Answer } from '../../src/http/answer.ts'
import type { Owner } from '../../src/http/identity.ts'
import { createSseEdge, type SseConnection, type SseOptions, sliceBytes } from '../../src/http/sse.ts'

interface Viewer {
  readonly connection: SseConnection
  readonly response: ServerResponse
  readonly client: IncomingMessage
  /** Reads to the end of the body: all of it, and whether it ended as a whole body does. */
  read(): Promise<{ text: string; complete: boolean }>
}

const farewell = 'event: reconnect\ndata: {"retry_ms":1000}\n\n'
const owner = 'visitor:one'

async function startEdge(t: Test, options: Partial<SseOptions> = {}) {
  const answers: Answer[] = []
  const edge = createSseEdge({ viewersPerOwnerMax: 0, onAnswered: (answer) => answers.push(answer), ...options })
  /** Of what went through all of the framework's hooks. */
  const hooked: string[] = []
  const requests: WeakRef<FastifyRequest>[] = []
  const app = fastify()
  let opened = Promise.withResolvers<{ connection: SseConnection; response: ServerResponse }>()
  app.addHook('onRequest', async (request, reply) => {
    request.owner = { key: request.headers['x-owner'] } as Owner
    reply.header('X-From-Hook', 'kept').header('Cache-Control', 'no-store')
  })
  app.addHook('onResponse', async (request) => {
    hooked.push(request.url)
  })
  app.get('/stream', async (request, reply) => {
    requests.push(new WeakRef(request))
    opened.resolve({ connection: edge.open(request, reply, { 'X-Run-Id': 'r' }), response: reply.raw })
  })
  app.get('/away', async (_request, reply) => edge.turnAway(reply, 2000))
  await app.listen({ port: 0, host: '127.0.0.1' })
  t.teardown(async () => {
    edge.close()
    app.server.closeAllConnections()
    await app.close()
  })
  const { port } = app.server.address() as AddressInfo

  async function request(path: string, key: string): Promise<IncomingMessage> {
    const sent = get({ host: '127.0.0.1', port, path, agent: false, headers: { 'x-owner': key } })
    const [client] = (await once(sent, 'response')) as [IncomingMessage]
    // A broken body is what some of these tests are about; it is seen by `complete`.
    client.on('error', () => undefined)
    sent.on('error', () => undefined)
    return client
  }

  /** Opens a stream whose client does not read before it is told to. */
  async function open(key = owner): Promise<Viewer> {
    opened = Promise.withResolvers()
    const client = await request('/stream', key)
    const { connection, response } = await opened.promise
    return { connection, response, client, read: () => readAll(client) }
  }

  return { edge, open, request, answers, hooked, requests }
}

async function readAll(client: IncomingMessage): Promise<{ text: string; complete: boolean }> {
  // Not `once`, which rejects on the error of a broken body.
  const closed = new Promise((resolve) => (client.closed ? resolve(undefined) : client.on('close', resolve)))
  let text = ''
  client.setEncoding('utf8').on('data', (piece: string) => {
    text += piece
  })
  await closed
  return { text, complete: client.complete }
}

async function untilText(client: IncomingMessage, wanted: string): Promise<string> {
  let text = ''
  for await (const piece of client.setEncoding('utf8').iterator({ destroyOnReturn: false })) {
    text += piece
    if (text.includes(wanted)) return text
  }
  throw new Error(`the body ended without ${wanted}`)
}

const over = (connection: SseConnection) => new Promise<void>((stop) => connection.feedFrom({ stop }))

/** Fills the socket of a client that does not read. @returns what was written, and what the last write waits for */
function fill({ connection, response }: Viewer): { waiting: Promise<void> | undefined; text: string } {
  // More than the kernel takes for both ends.
  const block = `data: ${'x'.repeat(16 * 1024 * 1024)}\n\n`
  const last = 'data: last\n\n'
  response.write(block)
  return { waiting: connection.write(Buffer.from(last)), text: block + last }
}

test('the headers and the first line are there before any event', async (t) => {
  const { open } = await startEdge(t)
  const { client, connection, read } = await open()
  t.match(client.headers, {
    'content-type': 'text/event-stream',
    'cache-control': 'no-cache, no-transform',
    'x-accel-buffering': 'no',
    'x-run-id': 'r',
    'x-from-hook': 'kept',
  })
  t.equal(await untilText(client, '\n'), 'retry: 1000\n')
  t.equal(connection.write(Buffer.from('event: a\n\n')), undefined)
  connection.end()
  t.same(await read(), { text: 'event: a\n\n', complete: true })
  t.equal(connection.clientLeft, false)
  t.equal(connection.write(Buffer.from('late')), undefined, 'what comes later is ignored')
})

test('silence is filled with heartbeats, and words are not', async (t) => {
  const { open } = await startEdge(t, { heartbeatMs: 5 })
  const { client, connection } = await open()
  t.match(await untilText(client, ': hb\n: hb\n'), /^retry: 1000\n(: hb\n){2,}$/)
  const { open: openCalm } = await startEdge(t, { heartbeatMs: 200, connectionMs: 20 })
  const calm = await openCalm()
  t.equal((await calm.read()).text.includes(': hb'), false)
  connection.end()
})

test('a connection that is too old ends cleanly, and says that it is to come back', async (t) => {
  const { edge, open } = await startEdge(t, { heartbeatMs: 10, connectionMs: 15 })
  const { connection, read } = await open()
  const { text, complete } = await read()
  t.ok(text.endsWith(farewell))
  t.ok(complete)
  t.ok(connection.isOver)
  t.equal(connection.clientLeft, false)
  t.equal(edge.size, 0)
})

test('a client that does not read has about a slice in this process, whatever is offered', async (t) => {
  const { open } = await startEdge(t, { drainWaitMs: 50 })
  const { connection, response, client } = await open()
  // The chunk's own size and line ends are less than 16 bytes.
  const bound = sliceBytes + 16 + response.writableHighWaterMark
  let most = 0
  const socket = response.socket!
  const write = socket.write.bind(socket)
  socket.write = ((bytes: Buffer) => {
    const more = write(bytes)
    most = Math.max(most, response.writableLength)
    return more
  }) as typeof socket.write
  const offered = Buffer.alloc(32 * 1024 * 1024, 'x')
  await connection.write(offered)
  t.ok(connection.isOver, 'it never took all of it')
  t.ok(most > 0 && most <= bound, `${most} of at most ${bound} bytes`)
  client.destroy()

  const twin = await open()
  twin.response.write(offered)
  t.ok(twin.response.writableLength > bound, 'without slices the check would fail')
  twin.client.destroy()
})

test('large blocks arrive whole at a client that reads', async (t) => {
  const { open } = await startEdge(t)
  const { connection, read } = await open()
  const block = `data: ${'0123456789'.repeat(300_000)}\n\n`
  const all = read()
  await connection.write(Buffer.from(block))
  connection.end()
  t.same(await all, { text: `retry: 1000\n${block}`, complete: true })
})

test('a client that does not read for too long is cut, and counts as one that left', async (t) => {
  const { edge, open } = await startEdge(t, { drainWaitMs: 30 })
  const { connection, response, read } = await open()
  const closed = once(response, 'close')
  await connection.write(Buffer.alloc(32 * 1024 * 1024, 'x'))
  t.ok(connection.isOver)
  await closed
  t.equal(connection.clientLeft, true, 'also when the socket has closed')
  t.equal(edge.size, 0)
  t.equal((await read()).complete, false)
})

test('a process that was held up gives a client that reads its time', async (t) => {
  const { open } = await startEdge(t, { drainWaitMs: 500 })
  const { connection, response, read } = await open()
  const block = `data: ${'x'.repeat(32 * 1024 * 1024)}\n\n`
  const written = connection.write(Buffer.from(block))
  // Until the sockets on the way are full, and it waits for the client.
  for (let taken = -1; taken !== response.socket!.bytesWritten || !response.socket!.writableNeedDrain; ) {
    taken = response.socket!.bytesWritten
    await sleep(20)
  }
  const all = read()
  const until = performance.now() + 700
  while (performance.now() < until);
  await written
  connection.end()
  const { text, complete } = await all
  t.ok(complete)
  t.equal(text.length, 'retry: 1000\n'.length + block.length)
})

test('a client that goes away is noticed', async (t) => {
  const { edge, open } = await startEdge(t)
  const { connection, client } = await open()
  t.equal(connection.clientLeft, false)
  client.destroy()
  await over(connection)
  t.equal(connection.clientLeft, true)
  t.equal(edge.size, 0)
})

test('P8 a stream without an end is a broken body, not a clean one', async (t) => {
  const { open } = await startEdge(t)
  for (const [end, complete] of [
    ['destroy', false],
    ['end', true],
  ] as const) {
    const { connection, read } = await open()
    connection.write(Buffer.from('event: a\n\n'))
    connection[end]()
    t.match(await read(), { complete }, end)
    t.equal(connection.clientLeft, false)
  }
})

test('at shutdown every viewer is told to come back', async (t) => {
  const { edge, open } = await startEdge(t)
  const viewers = await Promise.all(['a', 'b', 'c'].map((key) => open(key)).map(async (viewer) => viewer))
  t.equal(edge.size, 3)
  edge.close()
  for (const { read, connection } of viewers) {
    const ended = read()
    t.ok(connection.isOver)
    // Whoever feeds a connection destroys it when it has no end to tell: that must not cut the farewell.
    connection.destroy()
    t.same(await ended, { text: `retry: 1000\n${farewell}`, complete: true })
  }
  t.equal(edge.size, 0)
  const late = await open()
  t.ok(late.connection.isOver, 'also who comes while the process goes')
  t.same(await late.read(), { text: `retry: 1000\n${farewell}`, complete: true })
})

test('the farewell reaches a client that is slow, behind what it has not read yet', async (t) => {
  const { edge, open } = await startEdge(t)
  const viewer = await open()
  const { waiting, text } = fill(viewer)
  edge.close()
  viewer.connection.destroy()
  await waiting
  t.same(await viewer.read(), { text: `retry: 1000\n${text}${farewell}`, complete: true })
})

test('a farewell never comes in the middle of a block: the connection is cut', async (t) => {
  const { edge, open } = await startEdge(t)
  const { connection, read } = await open()
  const written = connection.write(Buffer.alloc(32 * 1024 * 1024, 'x'))
  edge.close()
  await written
  const { text, complete } = await read()
  t.equal(complete, false)
  t.notOk(text.includes('reconnect'))
  t.equal(connection.clientLeft, false)
})

test('who is turned away gets a stream that says when to come back', async (t) => {
  const { edge, request } = await startEdge(t)
  const client = await request('/away', owner)
  t.match(client, { statusCode: 200, headers: { 'content-type': 'text/event-stream', 'x-from-hook': 'kept' } })
  t.same(await readAll(client), {
    text: 'retry: 2000\nevent: reconnect\ndata: {"retry_ms":2000}\n\n',
    complete: true,
  })
  t.equal(edge.size, 0)
})

test('P10 streams of one owner are bounded, also when they all come at once', async (t) => {
  const { edge, open } = await startEdge(t, { viewersPerOwnerMax: 2 })
  t.doesNotThrow(() => edge.refuseAtLimit(owner))
  const viewers = [await open(), await open()]
  t.throws(() => edge.refuseAtLimit(owner), { code: 'rate_limited', retryAfterSeconds: 5 })
  t.doesNotThrow(() => edge.refuseAtLimit('visitor:two'))
  const third = await open()
  t.same(await third.read(), { text: `retry: 1000\n${farewell}`, complete: true }, 'one that had passed already')
  t.equal(edge.size, 2)
  viewers[0]?.connection.end()
  t.doesNotThrow(() => edge.refuseAtLimit(owner))
})

test('whichever way a connection ends, nothing of it is left', async (t) => {
  const endings: Record<string, (viewer: Viewer) => unknown> = {
    end: ({ connection }) => connection.end(),
    destroy: ({ connection }) => connection.destroy(),
    'end, then destroy': ({ connection }) => {
      connection.end()
      connection.destroy()
    },
    'destroy twice': ({ connection }) => {
      connection.destroy()
      connection.destroy()
    },
    'the client leaves': ({ client }) => client.destroy(),
    'the client leaves while a block is written': async ({ connection, client }) => {
      const written = connection.write(Buffer.alloc(32 * 1024 * 1024, 'x'))
      client.destroy()
      await written
    },
    'destroyed while the socket is full': async (viewer) => {
      const { waiting } = fill(viewer)
      viewer.connection.destroy()
      await waiting
    },
    'ended while the socket is full': async (viewer) => {
      const { waiting } = fill(viewer)
      viewer.connection.end()
      await waiting
      viewer.client.resume()
    },
  }
  const { edge, open } = await startEdge(t, { viewersPerOwnerMax: 1 })
  const timers = () => process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length
  for (const [name, end] of Object.entries(endings)) {
    const before = timers()
    const viewer = await open()
    const { response, connection } = viewer
    const closed = once(response, 'close')
    const socket = response.socket!
    const drains = response.listenerCount('drain') + socket.listenerCount('drain')
    t.throws(() => edge.refuseAtLimit(owner), name)
    await end(viewer)
    await over(connection)
    viewer.client.resume()
    await closed
    t.equal(edge.size, 0, name)
    t.doesNotThrow(() => edge.refuseAtLimit(owner), `${name}: the owner is not counted any more`)
    t.equal(response.listenerCount('drain') + socket.listenerCount('drain'), drains, `${name}: nobody waits`)
    t.equal(timers(), before, `${name}: no timer`)
  }
})

test('a stream is noted when it has ended, once, and not when its client has left', async (t) => {
  const { open, request, answers, hooked } = await startEdge(t)
  const left = await open()
  const gone = once(left.response, 'close')
  left.client.destroy()
  await gone
  const { connection, read } = await open()
  t.same(answers, [], 'not while it is open')
  connection.end()
  await read()
  t.match(answers, [{ requestId: 'req-2', method: 'GET', route: '/stream', status: 200, ms: Number }])
  t.equal(answers.length, 1)
  await readAll(await request('/away', owner))
  t.same(hooked, ['/away'], 'what is no stream goes through the hooks, as ever')
})

test('while a stream is open, nothing holds the request that it was asked for with', async (t) => {
  const { open, requests } = await startEdge(t)
  const viewers = [await open(), await open()]
  setFlagsFromString('--expose-gc')
  const collect: () => void = runInNewContext('gc')
  const held = requests[1]?.deref()
  // A weak reference that was made or read stays for the rest of the turn.
  await sleep(0)
  collect()
  t.equal(requests[0]?.deref(), undefined)
  t.equal(requests[1]?.deref(), held, 'one that somebody holds is still there')
  t.ok(held)
  for (const { connection } of viewers) connection.end()
})
