/**
 * The pace at which a provider is read: over real sockets, from a server that the test plays, what rests is left to the
 * kernel, and all that was sent is there in the end.
 */
import { once } from 'node:events'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { createServer as createTlsServer, getCACertificates, setDefaultCACertificates } from 'node:tls'
import t, { type Test } from 'tap'
import { type Exchange, openExchange } from '../../src/upstream/exchange.ts'
import { createAgent } from '../../src/upstream/sockets.ts'

const head = 'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n'
const chunk = (text: string) => `${text.length.toString(16)}\r\n${text}\r\n`
/** Time in which what was sent is received, if anybody reads. */
const settleMs = 50

/** Of 127.0.0.1, for this test: whoever has the key can do nothing with it. */
const key = `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgk9MR2+xW0bksN3UB
rCkp5rUXGstbq9B9zYFUnweVR1ihRANCAARs+8AA5tFQDa4DW5z7kEzqRS7uDNpb
E8YaYXaotvzs52B6hWY2xzcOwy0S4xfnKmgnGnm8NGNVjol/1q67S8tF
-----END PRIVATE KEY-----`
const cert = `-----BEGIN CERTIFICATE-----
MIIBjzCCATagAwIBAgIUfMHNX90fIgZxvtwJk8JMJSS+9ykwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyOTEyMDU1OFoYDzIxMjYxMTA1
MTIwNTU4WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAARs+8AA5tFQDa4DW5z7kEzqRS7uDNpbE8YaYXaotvzs52B6hWY2xzcO
wy0S4xfnKmgnGnm8NGNVjol/1q67S8tFo2QwYjAdBgNVHQ4EFgQU/Mkxuzh+J93+
fkBXXg6Qhwy8LD4wHwYDVR0jBBgwFoAU/Mkxuzh+J93+fkBXXg6Qhwy8LD4wDwYD
VR0TAQH/BAUwAwEB/zAPBgNVHREECDAGhwR/AAABMAoGCCqGSM49BAMCA0cAMEQC
IEvZPY81kwSRI0Ek8bSbJrXrTnRFaOQ4JiHcbIdly1RFAiAEYOqUkhLCbr/Fw1Gp
nPgEPL8L1rPe51Zt1ymFLWlFPQ==
-----END CERTIFICATE-----`

async function start(t: Test, protocol: 'http' | 'https' = 'http') {
  const connections: Socket[] = []
  const onConnection = (socket: Socket) => {
    connections.push(socket)
    socket.setNoDelay(true)
    socket.on('error', () => undefined) // The test destroys the other end.
  }
  const server = protocol === 'http' ? createServer(onConnection) : createTlsServer({ key, cert }, onConnection)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const resting: (() => void)[] = []
  const dispatcher = createAgent((readOn) => void resting.push(readOn))
  t.teardown(async () => {
    await dispatcher.destroy()
    for (const socket of connections) socket.destroy()
    server.close()
  })
  const url = new URL(`${protocol}://127.0.0.1:${(server.address() as AddressInfo).port}/`)
  const limits = { firstByteMs: 10_000, idleMs: 10_000, totalMs: 20_000 }
  const ask = () => openExchange({ dispatcher, url, headers: {}, body: '{}', ...limits })

  async function open() {
    const exchange = ask()
    while (connections.length === 0) await sleep(1)
    const [socket] = connections as [Socket]
    await once(socket, 'data')
    return { exchange, socket }
  }

  /** Three reads, which do not wait: the head, and two tokens. */
  async function begin() {
    const opened = await open()
    opened.socket.write(head)
    for (const token of ['a', 'b']) {
      await sleep(settleMs / 5)
      opened.socket.write(chunk(token))
    }
    await sleep(settleMs)
    t.equal(read(opened.exchange), 'ab')
    t.equal(resting.length, 0)
    return opened
  }

  const readOn = () => {
    for (const each of resting.splice(0)) each()
  }
  return { ask, open, begin, resting, readOn }
}

function read(exchange: Exchange): string {
  let text = ''
  for (let bytes = exchange.take(); bytes !== undefined; bytes = exchange.take()) text += Buffer.from(bytes).toString()
  return text
}

async function readToEnd(exchange: Exchange): Promise<string> {
  let text = read(exchange)
  while (!exchange.ended) {
    await new Promise<void>((resolve) => exchange.wait(resolve))
    text += read(exchange)
  }
  return text
}

t.test('a socket that rests reads nothing, and then all that has come, in one piece', async (t) => {
  const { begin, resting, readOn } = await start(t)
  const { exchange, socket } = await begin()
  socket.write(chunk('c'))
  await sleep(settleMs)
  t.equal(read(exchange), 'c', 'the read that was under way')
  t.equal(resting.length, 1)
  for (const token of ['d', 'e', 'f']) {
    socket.write(chunk(token))
    await sleep(settleMs / 5)
  }
  await sleep(settleMs)
  t.equal(read(exchange), '')
  readOn()
  await sleep(settleMs)
  t.equal(read(exchange), 'def')
  t.equal(resting.length, 1, 'one read for three packets')
  socket.end('0\r\n\r\n')
  readOn()
  t.equal(await readToEnd(exchange), '')
  t.equal(exchange.error, undefined)
})

t.test('over TLS, too, where each token is a record of its own', async (t) => {
  const before = getCACertificates()
  setDefaultCACertificates([...before, cert])
  t.teardown(() => setDefaultCACertificates(before))
  const { begin, resting, readOn } = await start(t, 'https')
  const { exchange, socket } = await begin()
  for (const token of ['c', 'd', 'e', 'f']) {
    socket.write(chunk(token))
    await sleep(settleMs / 2)
  }
  t.equal(read(exchange), 'c')
  t.equal(resting.length, 1)
  readOn()
  await sleep(settleMs)
  t.equal(read(exchange), 'def')
  t.equal(resting.length, 1)
})

t.test('the beginning of a reply waits for nobody, on a connection that was used before, too', async (t) => {
  const { begin, ask, resting, readOn } = await start(t)
  const { exchange, socket } = await begin()
  socket.write(chunk('c'))
  await sleep(settleMs)
  socket.write('0\r\n\r\n')
  readOn()
  t.equal(await readToEnd(exchange), 'c')
  await sleep(250)
  readOn()
  const next = ask()
  await once(socket, 'data')
  for (const text of [head, chunk('d'), chunk('e')]) {
    socket.write(text)
    await sleep(settleMs)
    t.equal(resting.length, 0)
  }
  t.equal(read(next), 'de')
})

t.test('what comes faster than tokens is read as fast as it comes', async (t) => {
  const { begin, resting, readOn } = await start(t)
  const { exchange, socket } = await begin()
  const long = 'x'.repeat(200_000)
  for (let n = 0; n < 20; n += 1) socket.write(chunk(long))
  socket.write('0\r\n\r\n')
  const whole = readToEnd(exchange)
  let rests = 0
  const timer = setInterval(() => {
    rests += resting.length
    readOn()
  }, 10)
  t.equal((await whole).length, 4_000_000)
  clearInterval(timer)
  t.ok(rests <= 2, `${rests} rests for 4 MB`)
})

t.test('a connection that dies while it rests has lost no word', async (t) => {
  const { begin, readOn } = await start(t)
  const { exchange, socket } = await begin()
  socket.write(chunk('c'))
  await sleep(settleMs)
  socket.write(chunk('last words'))
  await sleep(settleMs)
  socket.resetAndDestroy()
  await sleep(settleMs)
  t.notOk(exchange.ended)
  readOn()
  await sleep(settleMs)
  t.equal(read(exchange), 'clast words')
  readOn()
  await readToEnd(exchange)
  t.match(exchange.error, { code: 'ECONNRESET' })
})

t.test('a reply that is cut while it rests is over at once, and reading on is nothing', async (t) => {
  const { begin, resting, readOn } = await start(t)
  const { exchange, socket } = await begin()
  socket.write(chunk('c'))
  await sleep(settleMs)
  t.equal(resting.length, 1)
  const reason = new Error('enough')
  exchange.cut(reason)
  await once(socket, 'close')
  t.equal(exchange.error, reason)
  t.doesNotThrow(readOn)
  await sleep(settleMs)
})

t.test('where nobody listens, that is what it says', async (t) => {
  const server = createServer()
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  const dispatcher = createAgent((readOn) => readOn())
  t.teardown(() => dispatcher.destroy())
  const limits = { firstByteMs: 10_000, idleMs: 10_000, totalMs: 20_000 }
  const url = new URL(`http://127.0.0.1:${port}/`)
  const exchange = openExchange({ dispatcher, url, headers: {}, body: '{}', ...limits })
  t.equal(await readToEnd(exchange), '')
  t.match(exchange.error, { code: 'ECONNREFUSED' })
})
