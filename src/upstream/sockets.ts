/**
 * The connections to providers, and the pace at which they are read. A provider sends a token at a time, each in a packet
 * of its own, and a process that reads hundreds of replies that way does little else. So a socket that has brought
 * something reads on when there is a use for more (`rest`). Until then its bytes stay in the kernel, and nothing is held here.
 *
 * Node stops reading from a socket whose buffer is full, and reads on when the stream asks for more (`_read`). Both are used
 * as they are: the buffer is full with the first byte, and the stream's question is passed on later. Whatever happens to
 * the connection meanwhile, its end and its death too, is seen when it is read; what the kernel has received is read before.
 *
 * What nobody should wait for does not rest: the beginning of a reply, and one that comes faster than any model speaks.
 */
import { createRequire } from 'node:module'
import type { Socket } from 'node:net'
import type { Agent, buildConnector } from 'undici'

/** Calls `readOn` when it is time to, now or later. */
export type Rest = (readOn: () => void) => void

const load = createRequire(import.meta.url)
const connectMs = 10_000
/** Replies at once; beyond it requests wait for a socket, within their first-byte limit. */
const connectionsMax = 1024
/** Of a connection that was silent for as long, the next reads belong to the beginning of a reply. */
const silenceMs = 200
/** Reads at the beginning of a reply that do not wait: the head, and first words. */
const readsAtOnce = 3
/** What is more in one read is no token. */
const readBytesMax = 16 * 1024

/** @param rest absent: all is read as it comes */
export function createAgent(rest?: Rest): Agent {
  // Without what undici has besides, four modules of five: a start that loads all of it takes 0.1 s longer.
  const OwnAgent: typeof Agent = load('undici/lib/dispatcher/agent.js')
  return new OwnAgent({
    connections: connectionsMax,
    connect: rest === undefined ? { timeout: connectMs } : createPacedConnect(rest),
    pipelining: 1,
    // One socket for one reply: a connection that dies takes one reply with it, not a hundred.
    allowH2: false,
    // undici's limits give up on a model that thinks for five minutes; ours are in the exchange.
    headersTimeout: 0,
    bodyTimeout: 0,
  })
}

function createPacedConnect(rest: Rest): buildConnector.connector {
  const build: typeof buildConnector = load('undici/lib/core/connect.js')
  // Handed on to `net.connect` and `tls.connect`, which undici's types do not say. What is written does not wait for it.
  const fullWithOneByte = { highWaterMark: 1 } as object
  const connect = build({ timeout: connectMs, allowH2: false, ...fullWithOneByte })
  return (options, callback) =>
    connect(options, (...result) => {
      if (result[0] === null) pace(result[1], rest)
      callback(...result)
    })
}

function pace(socket: Socket, rest: Rest): void {
  const read = socket._read.bind(socket)
  let readAt = Number.NEGATIVE_INFINITY
  let bytesRead = 0
  let reads = 0
  let isResting = false
  socket._read = (size) => {
    // What a read has brought may come in pieces, as the records of TLS do.
    if (isResting) return
    const now = performance.now()
    const broughtBytes = socket.bytesRead - bytesRead
    if (broughtBytes > 0) {
      reads = now - readAt > silenceMs ? 1 : reads + 1
      readAt = now
      bytesRead = socket.bytesRead
    }
    if (reads <= readsAtOnce || broughtBytes > readBytesMax) {
      read(size)
      return
    }
    isResting = true
    rest(() => {
      isResting = false
      read(size)
    })
  }
}
