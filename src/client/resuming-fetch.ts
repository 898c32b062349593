/**
 * A `fetch` for the AI SDK: `useChat` reads its stream through it and sees one unbroken stream, over as many connections as
 * that takes. It knows the two requests of the SDK's transport, `POST <api>` and `GET <api>/<chat id>/stream`, and hands on
 * every other one as it is.
 *
 * The POST carries an Idempotency-Key, and is repeated under it when no answer comes: that is one message. When a body
 * breaks off before `[DONE]`, or falls silent, the chat's stream is asked for again behind the last id. An id stands on the
 * last chunk of an event, so chunks are passed on once their id is there, and a connection that breaks between two chunks of
 * one event repeats neither. A server that answers with everything from the start gets its answer cut to what is new.
 *
 * At each await: a connection that breaks leads to the next one, the SDK's own signal and a reader that leaves end it for
 * good. When the reply cannot be had any more, the body fails with an error, and never ends as if it was whole.
 */
import type { ClientOptions } from './client.ts'
import { type Connection, connect } from './connection.ts'
import { ConnectionError, GatewayError, passes, refuse, retryAfterOf } from './errors.ts'
import { randomKey } from './random.ts'
import { createSseParser } from './sse.ts'
import { createTransport, type Init, type Transport } from './transport.ts'
import { createPassedOn, type Taking } from './ui-stream.ts'
import { type BackOff, type ClientLimits, createBackOff, defaultLimits, linkAbort, pause } from './waiting.ts'

export interface ResumingFetchOptions extends ClientOptions {
  /** Where the stream of a chat is. Default: `<api>/<id>/stream`, with the `id` of the request's body. */
  readonly streamUrl?: (api: string, body: Readonly<Record<string, unknown>>) => string | undefined
}

const doneMark = '[DONE]'

/** `new DefaultChatTransport({ fetch: createResumingFetch() })` */
export function createResumingFetch(options: ResumingFetchOptions = {}): typeof globalThis.fetch {
  const { streamUrl = defaultStreamUrl } = options
  const limits = { ...defaultLimits, ...options.limits }
  /** One for each gateway: who asks is known by what it has answered. */
  const transports = new Map<string, Transport>()

  function transportTo(baseUrl: string): Transport {
    const transport = transports.get(baseUrl) ?? createTransport({ ...options, baseUrl }, limits)
    transports.set(baseUrl, transport)
    return transport
  }

  return async (input, init = {}) => {
    const url = typeof input === 'string' || input instanceof URL ? String(input) : ''
    const resumeUrl = findStream(url, init, streamUrl)
    if (resumeUrl === undefined) return (options.fetch ?? fetch)(input, init)
    const transport = transportTo(options.baseUrl ?? /^(.*?)\/api\/chat\b/.exec(url)?.[1] ?? '')
    const { method = 'GET', body, credentials } = init
    const headers = new Headers(init.headers)
    if (method === 'POST' && !headers.has('idempotency-key')) headers.set('idempotency-key', randomKey())
    const signal = init.signal ?? undefined
    const backOff = createBackOff(limits)
    const first = await send(transport, url, { method, body, credentials, headers }, backOff, signal)
    if (!isStream(first.response)) return first.release()

    const ask = (lastId: string, signal: AbortSignal) => {
      const again = new Headers(headers)
      for (const name of ['idempotency-key', 'content-type']) again.delete(name)
      if (lastId !== '') again.set('last-event-id', lastId)
      return transport.open(resumeUrl, { method: 'GET', credentials, headers: again }, signal)
    }
    const { status, statusText, headers: answered } = first.response
    const lastId = method === 'POST' ? beginOf(answered.get('x-run-id')) : ''
    const whole = resume({ first, ask, lastId, backOff, limits, signal })
    return new Response(whole, { status, statusText, headers: answered })
  }
}

/** @returns where the stream that a request will be answered with can be had again; undefined when it is another request */
function findStream(
  url: string,
  { method = 'GET', body }: RequestInit,
  streamUrl: NonNullable<ResumingFetchOptions['streamUrl']>,
): string | undefined {
  if (method === 'GET') return /\/stream(\?.*)?$/.test(url) ? url : undefined
  const chat = typeof body === 'string' ? readJson(body) : undefined
  return url !== '' && Array.isArray(chat?.messages) ? streamUrl(url, chat) : undefined
}

function defaultStreamUrl(api: string, { id }: Readonly<Record<string, unknown>>): string | undefined {
  const [path = '', query] = api.split('?', 2)
  if (typeof id !== 'string') return undefined
  return `${path.replace(/\/$/, '')}/${encodeURIComponent(id)}/stream${query === undefined ? '' : `?${query}`}`
}

function readJson(text: string): Record<string, unknown> | undefined {
  try {
    return JSON.parse(text)
  } catch {
    return undefined // not of the SDK
  }
}

/** Asks until there is an answer that will not be another one a moment later. */
async function send(
  transport: Transport,
  url: string,
  init: Init,
  backOff: BackOff,
  signal: AbortSignal | undefined,
): Promise<Connection> {
  const { limits } = transport
  for (let attempt = 1; ; attempt += 1) {
    const isLast = attempt >= limits.sendAttemptsMax
    let askedMs = 0
    try {
      const connection = await connect((signal) => transport.open(url, init, signal), limits, signal)
      const { status, headers } = connection.response
      askedMs = retryAfterOf(headers)
      const passing = (status >= 500 || status === 429) && askedMs <= limits.backOffMaxMs
      if (isLast || !passing) return connection
      connection.close()
    } catch (error) {
      if (isLast || !(error instanceof ConnectionError)) throw error
    }
    await pause(backOff.nextMs(askedMs), signal)
  }
}

/**
 * Before the first event of a run. Who has sent a message holds all that came before the reply, also where the reply goes on
 * in a message that is there; a page that comes back without an id is told that too.
 */
const beginOf = (runId: string | null): string => (runId === null ? '' : `${runId}.0-0`)

interface ResumeOptions {
  readonly first: Connection
  readonly ask: (lastId: string, signal: AbortSignal) => Promise<Response>
  /** To go on from where a connection has brought no id. */
  readonly lastId: string
  readonly backOff: BackOff
  readonly limits: ClientLimits
  readonly signal: AbortSignal | undefined
}

function resume({ first, ask, backOff, limits, signal, ...from }: ResumeOptions): ReadableStream<Uint8Array> {
  const leaving = linkAbort(signal)
  const passed = createPassedOn()
  let connection: Connection | undefined = first
  let { lastId } = from
  let attempt = 1

  async function* follow(): AsyncGenerator<string, void, void> {
    for (;;) {
      let askedMs = 0
      try {
        connection ??= await connect(askAgain, limits, leaving.signal)
        if (yield* watch(connection)) return
      } catch (error) {
        if (leaving.signal.aborted) throw leaving.signal.reason
        if (!passes(error) || attempt >= limits.resumeAttemptsMax) throw error
        if (error instanceof GatewayError) askedMs = error.retryAfterMs
      } finally {
        connection?.close()
        connection = undefined
      }
      // All was said but the mark.
      if (passed.isOver) return yield doneMark
      if (attempt >= limits.resumeAttemptsMax) throw new ConnectionError('No connection has brought anything.')
      attempt += 1
      await pause(backOff.nextMs(askedMs), leaving.signal)
    }
  }

  async function askAgain(signal: AbortSignal): Promise<Response> {
    const response = await ask(lastId, signal)
    await refuse(response)
    return response
  }

  /** One connection. @returns whether the stream has come to its end */
  async function* watch(connection: Connection): AsyncGenerator<string, boolean, void> {
    const { response } = connection
    if (response.status === 204) throw new Error('The reply has ended meanwhile. Load the chat again.')
    if (!isStream(response)) throw new ConnectionError('The answer is not a stream.')
    const decoder = new TextDecoder()
    const parser = createSseParser(limits.eventCharsMax, backOff.setFirstMs)
    let taking: Taking | undefined
    /** Chunks of an event whose last one has not come. */
    let held: string[] = []
    let heldChars = 0
    let connectionId = ''
    for (let bytes = await connection.read(); bytes !== undefined; bytes = await connection.read()) {
      for (const { data, id } of parser.push(decoder.decode(bytes, { stream: true }))) {
        taking ??= passed.takeFrom(data)
        held.push(data)
        heldChars += data.length
        if (heldChars > limits.eventCharsMax) throw new ConnectionError('An event without end.')
        const isEnd = data === doneMark
        if (id === connectionId && !isEnd) continue
        connectionId = id
        yield* flush(taking)
        if (isEnd) return true
        if (!taking.isBehind) lastId = id
      }
      // Of a server that gives no ids: nothing can be asked for behind them.
      if (taking !== undefined && connectionId === '' && lastId === '') yield* flush(taking)
    }
    return false

    function* flush({ take }: Taking): Generator<string, void, void> {
      const fresh = held.map(take).filter((data) => data !== undefined)
      held = []
      heldChars = 0
      if (fresh.length === 0) return
      attempt = 0
      backOff.reset()
      for (const data of fresh) yield data
    }
  }

  async function* run(): AsyncGenerator<string, void, void> {
    try {
      yield* follow()
    } finally {
      leaving.free()
    }
  }

  const chunks = run()
  const encoder = new TextEncoder()
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const { done, value } = await chunks.next()
        if (done === true) controller.close()
        else controller.enqueue(encoder.encode(`data: ${value}\n\n`))
      },
      async cancel() {
        leaving.abort(new ConnectionError('The reader has left.'))
        // The first one was there before there was a reader.
        connection?.close()
        await chunks.return()
        leaving.free()
      },
    },
    { highWaterMark: 0 },
  )
}

function isStream({ status, headers }: Response): boolean {
  return status === 200 && headers.get('content-type')?.startsWith('text/event-stream') === true
}
