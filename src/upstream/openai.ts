/**
 * The adapter for providers that speak OpenAI's chat completions: one POST, one SSE reply, no retry.
 *
 * `createOpenai` owns the agent (the sockets) and the set of open exchanges, so that `close` can cut them. A stream owns
 * its exchange, one decoder and one parser, and frees all of them in its `finally`, whoever ends it:
 *   - the caller's signal: the exchange is cut at once, wherever it stands, and the next step throws the signal's reason;
 *   - the consumer leaves the iteration: the same, without an error;
 *   - the provider ends, resets, stalls or sends garbage: what had been received before is read and yielded first, and
 *     only then is it decided whether the reply was whole. It was if a finish reason or `[DONE]` came; nothing else
 *     counts, least of all a clean end of the body.
 *
 * Nothing is opened before the first `next()`.
 */
import { createParser } from 'eventsource-parser'
import { Agent, type Dispatcher } from 'undici'
import { Problem } from '../errors.ts'
import { ChatReader } from './chat-chunks.ts'
import { type Exchange, openExchange } from './exchange.ts'
import { brokenOff, refusedWith } from './refusal.ts'
import type { Upstream, UpstreamEvent, UpstreamRequest } from './upstream.ts'

/** One line, and the data of one event. A chunk is a few hundred units; images in base64 are the longest seen. */
const eventUnitsMax = 4 * 1024 * 1024
/** Of a refusal's body, which is only looked at for a code. */
const errorBodyBytesMax = 64 * 1024
const errorBodyMs = 5000
/** How long the usage may stay behind the finish reason. */
const afterFinishMs = 5000
const connectMs = 10_000
/** Replies at once; beyond it requests wait for a socket, within their first-byte limit. */
const connectionsMax = 1024

export interface OpenaiOptions {
  /** Ends in `/v1` at most providers; `/chat/completions` is added. */
  readonly baseUrl: string
  readonly apiKey?: string | undefined
  /** Longest wait for the connection, the status and the first byte of the body together. */
  readonly firstByteMs: number
  /** Longest silence after the first byte. Comments are signs of life. */
  readonly idleMs: number
  /** Longest duration of a reply, whatever comes. */
  readonly totalMs: number
  /** Instead of an own agent; it stays open when the upstream is closed. Its own time-outs must be off. */
  readonly dispatcher?: Dispatcher
}

export function createOpenai(options: OpenaiOptions): Upstream {
  const url = new URL(options.baseUrl)
  // The path and not the text: Azure wants `?api-version=…` to stay behind it.
  url.pathname = `${url.pathname.replace(/\/+$/, '')}/chat/completions`
  const ownAgent = options.dispatcher === undefined ? createAgent() : undefined
  const dispatcher = options.dispatcher ?? ownAgent!
  const headers = {
    'content-type': 'application/json',
    accept: 'text/event-stream',
    // undici's dispatch does not decompress, and a compressor would hold tokens back.
    'accept-encoding': 'identity',
    'user-agent': 'verbatim',
    ...(options.apiKey === undefined ? {} : { authorization: `Bearer ${options.apiKey}` }),
  }
  const open = new Set<Exchange>()
  let closed = false

  async function* stream(
    request: UpstreamRequest,
    signal: AbortSignal,
  ): AsyncGenerator<UpstreamEvent, void, undefined> {
    signal.throwIfAborted()
    if (closed) throw new Problem('upstream_unavailable', 'The connection to the provider is closed.')
    const { firstByteMs, idleMs, totalMs } = options
    const body = JSON.stringify({
      model: request.model,
      messages: request.messages.map(({ role, content }) => ({ role, content })),
      stream: true,
      stream_options: { include_usage: true },
    })
    const exchange = openExchange({ dispatcher, url, headers, body, firstByteMs, idleMs, totalMs })
    const onAbort = () => exchange.cut(signal.reason)
    signal.addEventListener('abort', onAbort, { once: true })
    open.add(exchange)
    try {
      while (exchange.head === undefined && !exchange.ended) await exchange.wait()
      signal.throwIfAborted()
      const head = exchange.head
      if (head === undefined) throw failureOf(exchange)
      if (head.status > 299) {
        const refusal = head.status === 429 ? await readRefusal(exchange, Math.min(errorBodyMs, idleMs)) : undefined
        signal.throwIfAborted()
        throw refusedWith(head.status, refusal, head.retryAfter)
      }

      const reader = new ChatReader()
      const { events } = reader
      const sse = createSseReader(reader)
      let finishing = false
      for (;;) {
        const bytes = exchange.take()
        const last = bytes === undefined && exchange.ended
        if (bytes !== undefined) sse.read(bytes)
        else if (last) sse.end()
        else {
          await exchange.wait()
          signal.throwIfAborted()
          continue
        }
        for (const event of events) {
          yield event
          // The consumer may have aborted, or the clock may have passed, while it held the event.
          signal.throwIfAborted()
        }
        events.length = 0
        if (reader.failure !== undefined) throw reader.failure
        if (reader.done || last) break
        if (reader.finished && !finishing) {
          finishing = true
          exchange.limitWait(Math.min(afterFinishMs, idleMs))
        }
      }
      if (!reader.complete) throw failureOf(exchange)
    } finally {
      signal.removeEventListener('abort', onAbort)
      open.delete(exchange)
      exchange.close()
    }
  }

  return {
    provider: 'openai',
    stream,
    async close() {
      closed = true
      for (const exchange of open) exchange.cut(new Problem('upstream_unavailable', 'The reply broke off.'))
      await ownAgent?.destroy()
    },
  }
}

function createAgent(): Agent {
  return new Agent({
    connections: connectionsMax,
    connect: { timeout: connectMs },
    pipelining: 1,
    // One socket for one reply: a connection that dies takes one reply with it, not a hundred.
    allowH2: false,
    // undici's limits give up on a model that thinks for five minutes; ours are in the exchange.
    headersTimeout: 0,
    bodyTimeout: 0,
  })
}

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
    else await exchange.wait()
  }
  try {
    return JSON.parse(Buffer.concat(pieces).toString())
  } catch {
    return undefined // a refusal is one whatever its body says
  }
}

interface SseReader {
  read(bytes: Uint8Array): void
  /** Reads what is left: some servers leave out the blank line at the end, or the last line's end. */
  end(): void
}

/**
 * Bytes to lines to the parser to the reader. Lines are put together here and the parser is given whole ones: it drops a
 * line that is not SSE as soon as it sees the beginning, and a bare `{"error":…}` would be lost when it comes in two.
 */
function createSseReader(reader: ChatReader): SseReader {
  const decoder = new TextDecoder()
  let rest = ''
  let ending = false
  const parser = createParser({
    maxBufferSize: eventUnitsMax,
    onEvent: ({ data, event }) => {
      // What the end of the connection cut in two says nothing, and must not hide why the connection ended.
      if (!ending || isWhole(data)) reader.readData(data, event)
    },
    onError: (error) => {
      if (error.type === 'max-buffer-size-exceeded') reader.readOverlong(eventUnitsMax)
      else if (error.type === 'unknown-field') reader.readStray(error.field, error.value ?? '', error.line ?? '')
    },
  })
  return {
    read(bytes) {
      const text = decoder.decode(bytes, { stream: true })
      const cut = Math.max(text.lastIndexOf('\n'), text.lastIndexOf('\r')) + 1
      if (cut === 0) rest += text
      else {
        const lines = cut === text.length ? text : text.slice(0, cut)
        const whole = rest === '' ? lines : rest + lines
        rest = cut === text.length ? '' : text.slice(cut)
        if (reader.failure === undefined) parser.feed(whole)
      }
      if (rest.length > eventUnitsMax) reader.readOverlong(eventUnitsMax)
    },
    end() {
      ending = true
      if (reader.failure === undefined) parser.feed(`${rest}\n\n`)
    },
  }
}

function isWhole(data: string): boolean {
  if (data.trim() === '[DONE]') return true
  try {
    JSON.parse(data)
    return true
  } catch {
    return false // cut short
  }
}
