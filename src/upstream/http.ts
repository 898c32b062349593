/**
 * What all providers that stream over HTTP have in common, remote agents too: one POST, one SSE reply, no retry. An adapter
 * says what to send and how the data of an event is read (a `ReplyReader`); how long it may take, when a reply has ended,
 * and what a failure is called is decided here.
 *
 * An upstream owns its agent (the sockets) and the set of open exchanges, so that `close` can cut them. A stream owns
 * its exchange, one decoder, one parser and one reader, and frees all of them in its `finally`, whoever ends it:
 *   - the caller's signal: the exchange is cut at once, wherever it stands, and the next step throws the signal's reason;
 *   - the consumer leaves the iteration: the same, without an error;
 *   - the provider ends, resets, stalls or sends garbage: what had been received before is read and yielded first, and
 *     only then is it decided whether the reply was whole. It was if the provider had said so (`complete` of the reader);
 *     nothing else counts, least of all a clean end of the body.
 *
 * Nothing is opened before the first `next()`.
 */
import type { Dispatcher } from 'undici'
import { Problem } from '../errors.ts'
import { type Exchange, openExchange } from './exchange.ts'
import { iterate } from './iterate.ts'
import type { ReplyReader } from './reader.ts'
import { brokenOff, refusedWith } from './refusal.ts'
import { createAgent, type Rest } from './sockets.ts'
import { createSseReader } from './sse.ts'
import type { Upstream, UpstreamEvent, UpstreamRequest } from './upstream.ts'

/** Of a refusal's body, which is only looked at for a code. */
const errorBodyBytesMax = 64 * 1024
const errorBodyMs = 5000
/** How long the usage may stay behind the finish reason. */
const afterFinishMs = 5000

/** How long a provider may take. */
export interface HttpLimits {
  /** Longest wait for the connection, the status and the first byte of the body together. */
  readonly firstByteMs: number
  /** Longest silence after the first byte. Comments are signs of life. */
  readonly idleMs: number
  /** Longest duration of a reply, whatever comes. */
  readonly totalMs: number
  /** Instead of an own agent; it stays open when the upstream is closed. Its own time-outs must be off. */
  readonly dispatcher?: Dispatcher
  /** When its own agent reads on; absent: as soon as something comes. */
  readonly rest?: Rest
}

/** For what is made in a config file, where nobody has said otherwise: the same as the gateway's own. */
export const usualLimits = { firstByteMs: 120_000, idleMs: 60_000, totalMs: 1_800_000 } as const

export interface HttpCall {
  readonly url: URL
  /** In lower case; what all calls have is added. */
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
}

export interface HttpStreamOptions<Request, Extra> extends HttpLimits {
  readonly toCall: (request: Request) => HttpCall
  readonly createReader: (request: Request) => ReplyReader<Extra>
}

export interface HttpUpstreamOptions extends HttpStreamOptions<UpstreamRequest, never> {
  readonly provider: string
}

/** What an upstream does, for whatever is asked and said. */
export interface HttpStream<Request, Extra> {
  stream(request: Request, signal: AbortSignal): AsyncIterable<UpstreamEvent | Extra>
  read(request: Request, tell: (event: UpstreamEvent | Extra) => void, signal: AbortSignal): Promise<void>
  close(): Promise<void>
}

export function createHttpUpstream({ provider, ...options }: HttpUpstreamOptions): Upstream {
  return { provider, ...createHttpStream(options) }
}

export function createHttpStream<Request, Extra = never>(
  options: HttpStreamOptions<Request, Extra>,
): HttpStream<Request, Extra> {
  const { toCall, createReader, firstByteMs, idleMs, totalMs } = options
  const ownAgent = options.dispatcher === undefined ? createAgent(options.rest) : undefined
  const dispatcher = options.dispatcher ?? ownAgent!
  const open = new Set<Exchange>()
  let closed = false

  /** @param tell is given the events of a piece of the reply; the next piece is read when it has them */
  async function readReply(
    request: Request,
    tell: (events: readonly (UpstreamEvent | Extra)[]) => Promise<void> | undefined,
    signal: AbortSignal,
  ): Promise<void> {
    signal.throwIfAborted()
    if (closed) throw new Problem('upstream_unavailable', 'The connection to the provider is closed.')
    const { url, headers, body } = toCall(request)
    const exchange = openExchange({
      dispatcher,
      url,
      headers: { ...commonHeaders, ...headers },
      body,
      firstByteMs,
      idleMs,
      totalMs,
    })
    const onAbort = () => exchange.cut(signal.reason)
    signal.addEventListener('abort', onAbort, { once: true })
    open.add(exchange)
    try {
      while (exchange.head === undefined && !exchange.ended) await waited(exchange)
      signal.throwIfAborted()
      const head = exchange.head
      if (head === undefined) throw failureOf(exchange)
      if (head.status > 299) {
        const refusal = head.status === 429 ? await readRefusal(exchange, Math.min(errorBodyMs, idleMs)) : undefined
        signal.throwIfAborted()
        throw refusedWith(head.status, refusal, head)
      }
      const reader = createReader(request)
      await readBody(exchange, reader, tell, signal)
      if (!reader.complete) throw failureOf(exchange)
    } finally {
      signal.removeEventListener('abort', onAbort)
      open.delete(exchange)
      exchange.close()
    }
  }

  /**
   * Reads what is received, as it is received: within the callback that brings the bytes, because a promise between any
   * two tokens, and the turn of whoever awaits it, would be paid for with each of them.
   */
  function readBody(
    exchange: Exchange,
    reader: ReplyReader<Extra>,
    tell: (events: readonly (UpstreamEvent | Extra)[]) => Promise<void> | undefined,
    signal: AbortSignal,
  ): Promise<void> {
    const { events } = reader
    const sse = createSseReader(reader)
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    let last = false

    function readOn(): void {
      try {
        while (!isOver()) {
          const bytes = exchange.take()
          last = bytes === undefined && exchange.ended
          if (bytes !== undefined) sse.read(bytes)
          else if (last) sse.end()
          else {
            exchange.wait(readOn)
            return
          }
          const taken = events.length > 0 ? tell(events) : undefined
          if (taken !== undefined) {
            taken.then(readOn, reject)
            return
          }
        }
        resolve()
      } catch (error) {
        reject(error)
      }
    }

    /** Settles what was read last. @throws what the reader, or the signal, says against going on */
    function isOver(): boolean {
      // The consumer may have aborted, or the clock may have passed, while it held the events.
      signal.throwIfAborted()
      const heard = events.length > 0
      events.length = 0
      if (reader.failure !== undefined) throw reader.failure
      if (reader.done || last) return true
      // Anew while it says something: some models give a finish reason with every chunk.
      if (reader.finished && heard) exchange.limitWait(Math.min(afterFinishMs, idleMs))
      return false
    }

    readOn()
    return promise
  }

  return {
    stream: (request, signal) => iterate((tell, either) => readReply(request, tell, either), signal),
    read: (request, tell, signal) =>
      readReply(
        request,
        (events) => {
          for (const event of events) {
            tell(event)
            signal.throwIfAborted()
          }
          return undefined
        },
        signal,
      ),
    async close() {
      closed = true
      for (const exchange of open) exchange.cut(new Problem('upstream_unavailable', 'The reply broke off.'))
      await ownAgent?.destroy()
    },
  }
}

/** Of a base URL, with `path` behind its own path; a query stays where it is (Azure's `?api-version=…`). */
export function urlBehind(baseUrl: string, path: string): URL {
  const url = new URL(baseUrl)
  url.pathname = `${url.pathname.replace(/\/+$/, '')}${path}`
  return url
}

const commonHeaders = {
  'content-type': 'application/json',
  accept: 'text/event-stream',
  // undici's dispatch does not decompress, and a compressor would hold tokens back.
  'accept-encoding': 'identity',
  'user-agent': 'verbatim',
} as const

const waited = (exchange: Exchange): Promise<void> => new Promise((resolve) => exchange.wait(resolve))

function failureOf(exchange: Exchange): Problem {
  return exchange.error instanceof Problem ? exchange.error : brokenOff(exchange.head !== undefined, exchange.error)
}

/** @returns the body of a refusal as parsed JSON; undefined when it is none, too long, or does not come */
async function readRefusal(exchange: Exchange, ms: number): Promise<unknown> {
  exchange.limitWait(ms)
  const pieces: Uint8Array[] = []
  let bytesRead = 0
  for (;;) {
    const bytes = exchange.take()
    if (bytes !== undefined) {
      bytesRead += bytes.length
      if (bytesRead > errorBodyBytesMax) return undefined
      pieces.push(bytes)
    } else if (exchange.ended) break
    else await waited(exchange)
  }
  try {
    return JSON.parse(Buffer.concat(pieces).toString())
  } catch {
    return undefined // a refusal is one whatever its body says
  }
}
