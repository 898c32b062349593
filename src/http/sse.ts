/**
 * One viewer's connection: headers, bytes, heartbeat, backpressure, and the ways it can end. It knows bytes, not events;
 * what a surface writes between its events is given with the connection (`SseFraming`).
 *
 * A body ends cleanly only when whoever feeds it says so (`end`), which it does after a terminal event; or with the
 * farewell, which tells the client to come back: when the connection is older than edges allow, and when the process
 * shuts down. In every other case the socket is destroyed, because fetch clients take a clean end for success (P8).
 * That includes a farewell that would come in the middle of a block: it would garble the block's data; and the farewell of
 * a surface whose clients know none. Theirs are not ended for their age either: nobody would come back.
 *
 * Backpressure: large writes are cut into slices, and a slice waits until the socket has taken the one before. So a
 * viewer never has more than about a slice in this process, whatever it does not read; after `drainWaitMs` without
 * reading (once more, when this process could not look in that time) it is cut, and can resume. `write()` returning
 * false bounds nothing by itself: 16.7 MB were seen in one response.
 *
 * Bytes go to the socket as one chunk of a chunked body, made here: Node's own writing makes a vector of four pieces of it,
 * a tick later, which costs more for every frame of every viewer. What a body is given besides (headers, heartbeats, its end) stays with
 * Node, in order, because both write to the same socket.
 *
 * One timer serves all connections, for heartbeats and ages.
 *
 * Fastify's request and reply, the headers and the handler's frames do not stay while a stream is open (`forget`). So what is
 * noted of an answer is noted here for a stream (`onAnswered`), and hooks of `onResponse` do not run for one.
 *
 * Thousands of connections wait for next to nothing. So one is an object that shares its methods with the others and has no
 * signal: a closure for each thing that it can do, and an AbortSignal with one listener, were 2 kB of it.
 */
import type { IncomingHttpHeaders, ServerResponse } from 'node:http'
import type { Writable } from 'node:stream'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { Problem } from '../errors.ts'
import { type Answer, routeOf } from './answer.ts'

export interface SseOptions {
  /** Streams of one owner at once; 0 for no limit. */
  readonly viewersPerOwnerMax: number
  readonly heartbeatMs?: number
  /** Edges cut a response after 15 minutes; ours ends a little earlier, in a way the client understands. */
  readonly connectionMs?: number
  readonly drainWaitMs?: number
  /** Told of a stream whose body has ended, or failed, in the place of the hooks of an answer. */
  readonly onAnswered?: (answer: Answer) => void
}

/** What goes over the wire of one surface beside its events. */
export interface SseFraming {
  /** The first bytes of a body, at once. */
  readonly opening: string
  /** Written after each silence of `heartbeatMs`. It has to be harmless between any two blocks. */
  readonly heartbeat: string
  /** The last words to a client that is to come back; absent where clients of the surface would not understand any. */
  readonly farewell?: (retryMs: number, code?: string) => string
}

/** Whoever feeds a connection. */
export interface SseSource {
  /** Nothing that is written from now on is sent. */
  stop(): void
}

export interface SseConnection {
  /** The client has gone, the connection is too old, the process shuts down, or the body has been ended. */
  readonly isOver: boolean
  /** True when the client left or was cut, false while the connection lives or after the server ended it. */
  readonly clientLeft: boolean
  /** @param source is told to stop when the connection is over: once, and at once when it is already */
  feedFrom(source: SseSource): void
  /** Resolves when the socket can take more; at once, as undefined, when it can already. */
  write(bytes: Buffer): Promise<void> | undefined
  /** Ends the body cleanly. Only after a terminal event. */
  end(): void
  /** Tells the client to come back, and ends the body. @param code why, from the catalogue of errors */
  sayFarewell(code?: string): void
  /** Ends the body the way a broken connection ends, unless it is ending cleanly already. */
  destroy(): void
}

export interface SseEdge {
  /** @throws Problem `rate_limited` when the owner has as many streams as are allowed */
  refuseAtLimit(ownerKey: string): void
  /**
   * Takes the response over and sends its headers at once. A connection that is one too many, because several passed
   * the limit at the same time, or that comes after `close`, gets the farewell and is over on return.
   */
  open(
    request: FastifyRequest,
    reply: FastifyReply,
    headers: Readonly<Record<string, string>>,
    framing?: SseFraming,
  ): SseConnection
  /**
   * Tells a client that only has to come back later: for a native EventSource any other answer would be its end.
   * @param code why, from the catalogue of errors
   */
  turnAway(reply: FastifyReply, retryMs: number, code?: string): void
  readonly size: number
  /** Ends every connection with the farewell. */
  close(): void
}

export const retryMs = 1000
export const sliceBytes = 64 * 1024
const tickMs = 1000
/** A timer that is later than this says that the process was held up, and not its client: that gets its time anew. */
const lateMsMax = 100
/** How long a client may take to read what was sent before the end. */
const farewellWaitMs = 5000

const farewell = (ms: number, code?: string) =>
  `event: reconnect\ndata: ${JSON.stringify({ retry_ms: ms, ...(code === undefined ? {} : { code }) })}\n\n`

/** Of docs/protocol.md: what every client that can come back understands. */
export const nativeFraming: SseFraming = { opening: `retry: ${retryMs}\n`, heartbeat: ': hb\n', farewell }

// Lower case, so that they take the place of what hooks have set under the same name.
const streamHeaders = {
  'content-type': 'text/event-stream',
  'cache-control': 'no-cache, no-transform',
  'x-accel-buffering': 'no',
} as const

export function createSseEdge(options: SseOptions): SseEdge {
  const {
    viewersPerOwnerMax,
    heartbeatMs = 15_000,
    connectionMs = 14 * 60_000,
    drainWaitMs = 30_000,
    onAnswered,
  } = options
  const connections = new Set<Connection>()
  const perOwner = new Map<string, number>()
  let closed = false

  const isAtLimit = (ownerKey: string) =>
    viewersPerOwnerMax !== 0 && (perOwner.get(ownerKey) ?? 0) >= viewersPerOwnerMax

  const timer = setInterval(
    () => {
      const now = wholeNow()
      for (const connection of connections) {
        const { framing, response } = connection
        if (framing.farewell !== undefined && now - connection.openedAt >= connectionMs) connection.sayFarewell()
        else if (now - connection.lastWriteAt >= heartbeatMs && !needsDrain(response)) {
          connection.lastWriteAt = now
          response.write(framing.heartbeat)
        }
      }
    },
    Math.min(tickMs, heartbeatMs),
  )
  timer.unref()

  function count(ownerKey: string, step: 1 | -1): void {
    const next = (perOwner.get(ownerKey) ?? 0) + step
    if (next === 0) perOwner.delete(ownerKey)
    else perOwner.set(ownerKey, next)
  }

  const own: Own = { connections, count, drainWaitMs, onAnswered }

  function open(
    request: FastifyRequest,
    reply: FastifyReply,
    headers: Readonly<Record<string, string>>,
    framing: SseFraming,
  ): SseConnection {
    const { key: ownerKey } = request.owner
    const response = reply.raw
    const unwelcome = closed || isAtLimit(ownerKey)

    // Headers that plugins have set (CORS, cookies) are lost with hijack unless they are handed on.
    reply.hijack()
    forget(request, response)
    response.writeHead(200, { ...(reply.getHeaders() as Record<string, string>), ...streamHeaders, ...headers })
    const { socket } = request.raw
    // One write for both. Written by itself, the head is made one string, which Node keeps; joined with the first words, it is
    // kept as the seventy pieces that it was put together from.
    socket.cork()
    response.flushHeaders()
    if (framing.opening !== '') response.write(framing.opening)
    socket.uncork()
    // Tokens are small and late: Nagle's algorithm would hold them back.
    socket.setNoDelay(true)

    const connection = new Connection(own, request, reply, framing)
    if (response.destroyed || socket.destroyed) connection.leave()
    if (unwelcome) connection.sayFarewell()
    return connection
  }

  return {
    get size() {
      return connections.size
    },
    refuseAtLimit(ownerKey) {
      if (!isAtLimit(ownerKey)) return
      throw new Problem('rate_limited', `At most ${viewersPerOwnerMax} streams at once.`, { retryAfterSeconds: 5 })
    },
    open: (request, reply, headers, framing = nativeFraming) => open(request, reply, headers, framing),
    turnAway(reply, ms, code) {
      reply.hijack()
      reply.raw.writeHead(200, { ...(reply.getHeaders() as Record<string, string>), ...streamHeaders })
      reply.raw.end(`retry: ${ms}\n${farewell(ms, code)}`)
    },
    close() {
      closed = true
      clearInterval(timer)
      for (const connection of [...connections]) connection.sayFarewell()
    },
  }
}

const noHeaders: IncomingHttpHeaders = Object.freeze({})

/**
 * Lets go of what a request has brought, and of what Fastify would keep of it until the stream has ended: to run the hooks of
 * an answer it listens on the response, with functions that hold the request and the reply and all that plugins have put
 * there. Nobody else listens for errors of a response that nothing was written to yet. What was asked is read by now, or never.
 */
function forget({ raw }: FastifyRequest, response: ServerResponse): void {
  for (const listener of response.listeners('error') as (() => void)[]) {
    response.off('error', listener).off('finish', listener)
  }
  raw.headers = noHeaders
  raw.rawHeaders = []
}

/** What the connections of an edge have in common. */
interface Own {
  readonly connections: Set<Connection>
  readonly drainWaitMs: number
  readonly onAnswered: SseOptions['onAnswered']
  /** Of the streams of an owner. */
  count(ownerKey: string, step: 1 | -1): void
}

class Connection implements SseConnection {
  readonly response: ServerResponse
  readonly framing: SseFraming
  readonly openedAt = wholeNow()
  lastWriteAt = this.openedAt
  isOver = false
  clientLeft = false
  readonly #own: Own
  readonly #ownerKey: string
  readonly #requestId: string
  readonly #route: string
  readonly #requestedAt: number
  #isAnswered = false
  /** A block was begun, and its end was not written yet. */
  #inBlock = false
  #source: SseSource | undefined
  /** Those whose write waits for the socket. */
  #waiting: Set<() => void> | undefined

  constructor(own: Own, request: FastifyRequest, reply: FastifyReply, framing: SseFraming) {
    const response = reply.raw
    this.#own = own
    this.#ownerKey = request.owner.key
    this.#requestId = request.id
    this.#route = routeOf(request)
    this.#requestedAt = Math.floor(this.openedAt - reply.elapsedTime)
    this.response = response
    this.framing = framing
    own.connections.add(this)
    own.count(this.#ownerKey, 1)
    const leave = (error?: Error) => {
      if (error !== undefined || response.writableFinished) this.#noteAnswer()
      this.leave()
    }
    response.on('close', leave)
    // The socket's errors come here; 'close' follows, and is what counts.
    response.on('error', leave)
  }

  feedFrom(source: SseSource): void {
    if (this.isOver) source.stop()
    else this.#source = source
  }

  write(bytes: Buffer): Promise<void> | undefined {
    if (this.isOver) return undefined
    this.lastWriteAt = wholeNow()
    if (bytes.length > sliceBytes) return this.#writeSlices(bytes)
    return this.#writeChunk(bytes)
  }

  end(): void {
    this.#finish('')
  }

  sayFarewell(code?: string): void {
    const { farewell: say } = this.framing
    if (this.#inBlock || say === undefined) this.destroy()
    else this.#finish(say(retryMs, code))
  }

  destroy(): void {
    // Last words are on their way, and have a time limit of their own.
    if (this.response.writableEnded) return
    this.#close()
    this.response.destroy()
  }

  /** The client has gone, or has all of a body that has ended. */
  leave(): void {
    if (this.isOver) return
    this.clientLeft = !this.response.writableFinished
    this.#close()
  }

  #noteAnswer(): void {
    if (this.#isAnswered) return
    this.#isAnswered = true
    const { statusCode, req } = this.response
    this.#own.onAnswered?.({
      requestId: this.#requestId,
      method: req.method as string,
      route: this.#route,
      status: statusCode,
      ms: wholeNow() - this.#requestedAt,
    })
  }

  #close(): void {
    if (this.isOver) return
    this.isOver = true
    this.#own.connections.delete(this)
    this.#own.count(this.#ownerKey, -1)
    for (const proceed of this.#waiting ?? []) proceed()
    this.#source?.stop()
    this.#source = undefined
  }

  #finish(lastWords: string): void {
    if (this.isOver) return
    const { response } = this
    this.#close()
    response.end(lastWords)
    // A client that does not read its last bytes must not keep them, or the shutdown, waiting for ever.
    const slow = setTimeout(() => response.destroy(), farewellWaitMs)
    slow.unref()
    response.on('close', () => clearTimeout(slow))
  }

  /** @param source what was written to, and is full */
  #drained(source: Writable): Promise<void> {
    const { drainWaitMs } = this.#own
    this.#waiting ??= new Set()
    const waiting = this.#waiting
    return new Promise((resolve) => {
      const proceed = () => {
        clearTimeout(slow)
        source.off('drain', proceed)
        waiting.delete(proceed)
        resolve()
      }
      const limit = (mayExtend: boolean): NodeJS.Timeout => {
        const dueAt = performance.now() + drainWaitMs
        return setTimeout(() => {
          // Held up itself, this process has not seen what the client has read meanwhile.
          if (mayExtend && performance.now() - dueAt > lateMsMax) {
            slow = limit(false)
            return
          }
          this.clientLeft = true
          this.destroy()
        }, drainWaitMs)
      }
      let slow = limit(true)
      source.on('drain', proceed)
      waiting.add(proceed)
      if (this.isOver) proceed()
    })
  }

  #writeChunk(bytes: Buffer): Promise<void> | undefined {
    const { response } = this
    const { socket } = response
    // Without one, behind another response of the connection, Node keeps it; a client of HTTP/1.0 knows no chunks.
    if (socket === null || !response.chunkedEncoding) {
      return response.write(bytes) ? undefined : this.#drained(response)
    }
    return socket.write(chunkOf(bytes)) ? undefined : this.#drained(socket)
  }

  async #writeSlices(bytes: Buffer): Promise<void> {
    this.#inBlock = true
    for (let start = 0; start < bytes.length && !this.isOver; start += sliceBytes) {
      const full = this.#writeChunk(bytes.subarray(start, start + sliceBytes))
      this.#inBlock = start + sliceBytes < bytes.length
      if (full !== undefined) await full
    }
  }
}

/** Whole: a fraction would be a number on the heap, one for each connection. */
const wholeNow = (): number => Math.floor(performance.now())

const needsDrain = ({ socket, writableNeedDrain }: ServerResponse): boolean =>
  writableNeedDrain || socket?.writableNeedDrain === true

/** Bytes as a chunk (RFC 9112, 7.1). */
function chunkOf(bytes: Buffer): Buffer {
  const size = bytes.length.toString(16)
  const chunk = Buffer.allocUnsafe(size.length + bytes.length + 4)
  chunk.write(`${size}\r\n`, 'latin1')
  chunk.set(bytes, size.length + 2)
  chunk.write('\r\n', size.length + 2 + bytes.length, 'latin1')
  return chunk
}
