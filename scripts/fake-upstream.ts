/**
 * A scripted provider over real HTTP: for tests (as a module) and for a look at the gateway without a key (as a program:
 * `node scripts/fake-upstream.ts --help`). It speaks OpenAI's chat completions, Anthropic's Messages (POST /v1/messages)
 * and Gemini's streamGenerateContent (POST /v1beta/models/<model>:streamGenerateContent); the path says which, and
 * `call.dialect` tells the script. The chunks of each are in fake-dialects.ts.
 *
 * A script is a function from the recorded call to an async iterable of steps. A step is bytes to write (each step is
 * one write, followed by one turn of the event loop), `head(…)` for the status, or `reset()`. Awaiting within a script is
 * how it waits: for a gate that the test opens, for a timer, for ever. Where the steps end, the response ends cleanly
 * (FIN), with or without a `[DONE]`, as the script wrote it. The status is sent with the first step, so a script that
 * awaits before it has slow headers.
 *
 *     const gate = createGate()
 *     const upstream = await startFakeUpstream({
 *       script: async function* () {
 *         yield chunk({ content: 'Hel' })
 *         await gate.opened
 *         yield* say({ text: 'lo' })
 *       },
 *     })
 *     // … point a client at upstream.url, look at upstream.calls, await call.closed …
 *     await upstream.close()
 *
 * The server owns its sockets and destroys them in `close`. When a client leaves, the script is left where it stands:
 * a gate that is never opened keeps nothing alive but itself.
 */
import { once } from 'node:events'
import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'
import { type DialectName, dialectOf, dialects, errorShapes } from './fake-dialects.ts'

export { chunk, doneMarker, errorShapes, sse, usageChunk } from './fake-dialects.ts'

const requestBytesMax = 64 * 1024 * 1024
/** What every reply says that it read. */
const inputTokens = 8

export interface FakeCall {
  /** From 0, in order of arrival. */
  readonly index: number
  readonly method: string
  readonly path: string
  readonly headers: IncomingHttpHeaders
  readonly dialect: DialectName
  /** The body as it came. */
  readonly text: string
  /** The body parsed, typed as OpenAI's; undefined when it is not JSON. */
  readonly body: ChatBody | undefined
  /** The last thing that the user said; '' when there is none. */
  readonly message: string
  /** Resolves when the exchange is over; `aborted` when the client left before the script had ended. */
  readonly closed: Promise<{ readonly aborted: boolean }>
  /** Resolves when the client left before the script had ended; stays pending when it did not. */
  readonly aborted: Promise<void>
}

export interface ChatBody {
  readonly model?: string
  readonly messages?: readonly { readonly role: string; readonly content: string }[]
  readonly stream?: boolean
  readonly stream_options?: { readonly include_usage?: boolean }
}

export type Step =
  | string
  | Uint8Array
  | { readonly head: { readonly status: number; readonly headers: Readonly<Record<string, string>> } }
  | { readonly reset: true }
export type Steps = AsyncIterable<Step> | Iterable<Step>
export type Script = (call: FakeCall) => Steps

export interface FakeUpstream {
  /** The base URL, ending in /v1, for OpenAI's and Anthropic's dialect. */
  readonly url: string
  /** The base URL, ending in /v1beta. */
  readonly geminiUrl: string
  readonly calls: readonly FakeCall[]
  /** Connections that are open now. */
  readonly socketCount: number
  /** Connections that were ever made. */
  readonly connectionCount: number
  /** Resolves with call number `index`, now or when it comes. */
  call(index: number): Promise<FakeCall>
  /** Resolves when no connection is open. */
  drained(): Promise<void>
  /** Answers the calls to come with another script. */
  answer(script: Script): void
  close(): Promise<void>
}

/** Starts listening. @param options `script` defaults to `byMessage`, `port` to a free one on 127.0.0.1 */
export async function startFakeUpstream(
  options: { readonly script?: Script; readonly port?: number; readonly host?: string } = {},
): Promise<FakeUpstream> {
  let script = options.script ?? byMessage()
  const calls: FakeCall[] = []
  const waiters: { readonly index: number; readonly resolve: (call: FakeCall) => void }[] = []
  let socketCount = 0
  let connectionCount = 0
  let drainWaiters: (() => void)[] = []

  const server = createServer((request, response) => {
    answerRequest(request, response).catch((error: unknown) => {
      // The client left while it was sending its request.
      if (request.destroyed && !request.complete) return
      // A script that throws is a bug of the test: the client sees a cut, the reader of the output sees why.
      process.stderr.write(`fake-upstream: ${error instanceof Error ? error.stack : String(error)}\n`)
      response.destroy()
    })
  })
  server.on('connection', (socket) => {
    socketCount++
    connectionCount++
    socket.setNoDelay(true)
    socket.on('close', () => {
      socketCount--
      if (socketCount > 0) return
      const waiting = drainWaiters
      drainWaiters = []
      for (const resolve of waiting) resolve()
    })
  })

  async function answerRequest(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const left = Promise.withResolvers<{ aborted: boolean }>()
    const aborted = Promise.withResolvers<void>()
    let scriptEnded = false
    response.on('close', () => {
      const wasAborted = !scriptEnded && !response.writableFinished
      left.resolve({ aborted: wasAborted })
      if (wasAborted) aborted.resolve()
    })
    response.on('error', () => {
      // A write to a client that left: 'close' follows and says so.
    })

    const text = await readText(request)
    const body = parseJson(text) as ChatBody | undefined
    const path = request.url ?? ''
    const dialect = dialectOf(path)
    const call: FakeCall = {
      index: calls.length,
      method: request.method ?? '',
      path,
      headers: request.headers,
      dialect,
      text,
      body,
      message: dialects[dialect].readMessage(body),
      closed: left.promise,
      aborted: aborted.promise,
    }
    if (call.path === '/v1/models') {
      scriptEnded = true
      response
        .setHeader('content-type', 'application/json')
        .end('{"object":"list","data":[{"id":"fake","object":"model"}]}')
      return
    }
    calls.push(call)
    for (const waiter of waiters) if (waiter.index === call.index) waiter.resolve(call)

    const steps = script(call)
    const iterator = Symbol.asyncIterator in steps ? steps[Symbol.asyncIterator]() : steps[Symbol.iterator]()
    // Looked at besides the race: a script that never waits would win every one of them.
    while (!response.closed) {
      const step = await Promise.race([iterator.next(), left.promise])
      if ('aborted' in step) return
      if (step.done === true) break
      const { value } = step
      if (typeof value === 'string' || value instanceof Uint8Array) {
        if (!response.headersSent) response.writeHead(200, streamHeaders)
        if (!response.write(value)) await Promise.race([once(response, 'drain'), left.promise])
        // One turn, so that a client in this process sees two writes as two reads.
        await nextTurn()
      } else if ('head' in value) {
        response.writeHead(value.head.status, value.head.headers).flushHeaders()
      } else {
        scriptEnded = true
        request.socket.resetAndDestroy()
        return
      }
    }
    if (response.closed) return
    scriptEnded = true
    if (!response.headersSent) response.writeHead(200, streamHeaders)
    response.end()
  }

  server.listen(options.port ?? 0, options.host ?? '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const origin = `http://${options.host ?? '127.0.0.1'}:${port}`

  return {
    url: `${origin}/v1`,
    geminiUrl: `${origin}/v1beta`,
    calls,
    get socketCount() {
      return socketCount
    },
    get connectionCount() {
      return connectionCount
    },
    call(index) {
      const known = calls[index]
      if (known !== undefined) return Promise.resolve(known)
      return new Promise((resolve) => waiters.push({ index, resolve }))
    },
    drained() {
      if (socketCount === 0) return Promise.resolve()
      return new Promise((resolve) => drainWaiters.push(resolve))
    },
    answer(next) {
      script = next
    },
    async close() {
      const closed = once(server, 'close')
      server.close()
      server.closeAllConnections()
      await closed
    },
  }
}

const streamHeaders = { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' } as const

/** A gate that a script awaits (`await gate.opened`) and a test opens. */
export function createGate(): { readonly opened: Promise<void>; open(): void } {
  const { promise, resolve } = Promise.withResolvers<void>()
  return { opened: promise, open: resolve }
}

/** Never resolves: a script that awaits it has stalled. */
export function forever(): Promise<never> {
  return new Promise(() => {
    // Nothing settles it. It holds no resource, and is collected with the script that waits for it.
  })
}

export function head(status: number, headers: Readonly<Record<string, string>> = streamHeaders): Step {
  return { head: { status, headers } }
}

/** Ends the connection with RST. */
export function reset(): Step {
  return { reset: true }
}

export interface SayOptions {
  /** The reply, one chunk a word. */
  readonly text?: string
  /** Instead of `text`: so many numbered words. */
  readonly tokens?: number
  /** Between two chunks; 0 for as fast as the client reads. */
  readonly paceMs?: number
  /** In OpenAI's words, or one of the dialect's own. */
  readonly finishReason?: string
  /** `call.dialect`; OpenAI's when it is not named. */
  readonly dialect?: DialectName
}

/** A whole reply: chunks, finish reason, usage, and the end marker where there is one. */
export async function* say(options: SayOptions = {}): AsyncGenerator<Step> {
  const words = wordsOf(options)
  const dialect = options.dialect ?? 'openai'
  yield* speak(words, options.paceMs ?? 0, dialect)
  yield* dialects[dialect].end(options.finishReason ?? 'stop', inputTokens, words.length)
}

/** The chunks of a reply and then nothing: follow it with what is to go wrong. */
export async function* begin(options: SayOptions = {}): AsyncGenerator<Step> {
  yield* speak(wordsOf(options), options.paceMs ?? 0, options.dialect ?? 'openai')
}

export interface ToolCallOptions {
  readonly name: string
  readonly input?: Readonly<Record<string, unknown>>
  /** Said before it; nothing when it is not given. */
  readonly text?: string
  /** Unlike that of other calls of the conversation; Gemini's dialect sends none. */
  readonly id?: string
  readonly dialect?: DialectName
}

/** A whole reply that calls a tool. */
export async function* callTool(options: ToolCallOptions): AsyncGenerator<Step> {
  const { name, input = {}, text = '', id = 'call_fake', dialect = 'openai' } = options
  const words = wordsOf({ text })
  yield* speak(words, 0, dialect)
  yield* dialects[dialect].call({ id, name, input })
  yield* dialects[dialect].end('tool_calls', inputTokens, words.length + 1)
}

/** Answers with a status that is an error. */
export function refuse(
  status: number,
  body: unknown = { error: { message: `refused with ${status}` } },
  headers: Readonly<Record<string, string>> = {},
): Steps {
  const isText = typeof body === 'string'
  return [
    head(status, { 'content-type': isText ? 'text/html' : 'application/json', ...headers }),
    isText ? body : JSON.stringify(body),
  ]
}

/** Bytes given verbatim, in one write for each stretch between two cuts. */
export function* raw(bytes: string | Uint8Array, cuts: readonly number[] = []): Generator<Step> {
  const whole = Buffer.from(bytes)
  let from = 0
  for (const to of [...cuts, whole.length]) {
    if (to > from) yield whole.subarray(from, to)
    from = Math.max(from, to)
  }
}

/** @returns `count` ascending places to cut `length` bytes at, the same for the same seed */
export function seededCuts(length: number, count: number, seed: number): number[] {
  const random = createRandom(seed)
  const cuts = new Set<number>()
  while (cuts.size < Math.min(count, length - 1)) cuts.add(1 + Math.floor(random() * (length - 1)))
  return [...cuts].sort((a, b) => a - b)
}

/** Numbers in [0, 1), the same for the same seed (mulberry32). */
export function createRandom(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

const usage = `Usage: node scripts/fake-upstream.ts [--port 9000] [--host 127.0.0.1] [--tokens 200] [--pace 25]

A scripted provider that speaks as OpenAI, Anthropic and Gemini do. Point the gateway at it with
OPENAI_BASE_URL=http://127.0.0.1:9000/v1; Anthropic's URL is the same, Gemini's ends in /v1beta.
The last user message says what it does:

  (anything)            a reply of --tokens words, one each --pace ms
  /say 500 10           500 words, one each 10 ms
  /refuse 429           that status and an error body
  /slow 3000            the status after 3 s, then a reply
  /stall                the status, and then nothing
  /stall 10             10 words, and then nothing
  /fin 10               10 words, and then a clean end without [DONE]
  /reset 10             10 words, and then RST
  /error event 10       10 words, and then an error: ${Object.keys(errorShapes).join(', ')}
  /tool name {"a":1}    calls that tool

When the last message is what a tool answered, the reply quotes it.
`

/** The script of the program: behaviour chosen by the user's message, as its help tells. */
export function byMessage(defaults: { readonly tokens?: number; readonly paceMs?: number } = {}): Script {
  const { tokens = 20, paceMs = 0 } = defaults
  return async function* (call) {
    const { dialect } = call
    const { errors, readAnswer, refusal } = dialects[dialect]
    const answer = readAnswer(call.body)
    if (answer !== undefined) {
      yield* say({ text: `The tool answered: ${answer}`, paceMs, dialect })
      return
    }
    const [command = '', ...words] = call.message.split(/\s+/)
    const numberAt = (index: number, fallback: number) => {
      const value = Number(words[index])
      return words[index] !== undefined && Number.isSafeInteger(value) && value >= 0 ? value : fallback
    }
    switch (command) {
      case '/say':
        yield* say({ tokens: numberAt(0, tokens), paceMs: numberAt(1, paceMs), dialect })
        return
      case '/refuse': {
        const status = numberAt(0, 429)
        yield* refuse(status >= 400 && status <= 599 ? status : 500, refusal(status))
        return
      }
      case '/slow':
        await sleep(numberAt(0, 3000))
        yield* say({ tokens, paceMs, dialect })
        return
      case '/stall':
        yield head(200)
        yield* begin({ tokens: numberAt(0, 0), paceMs, dialect })
        await forever()
        return
      case '/fin':
        yield* begin({ tokens: numberAt(0, 10), paceMs, dialect })
        return
      case '/reset':
        yield head(200)
        yield* begin({ tokens: numberAt(0, 10), paceMs, dialect })
        yield reset()
        return
      case '/error': {
        yield* begin({ tokens: numberAt(1, 10), paceMs, dialect })
        const shapes: Readonly<Record<string, string>> = errors
        yield shapes[words[0] ?? ''] ?? errors.chunk
        return
      }
      case '/tool': {
        const input = parseJson(call.message.slice(call.message.indexOf('{')))
        yield* callTool({
          name: words[0] ?? 'tool',
          input: typeof input === 'object' && input !== null ? { ...input } : {},
          id: `call_${call.index}`,
          dialect,
        })
        return
      }
      default:
        yield* say({ tokens, paceMs, dialect })
    }
  }
}

function wordsOf(options: SayOptions): string[] {
  if (options.text !== undefined) return options.text.match(/\s*\S+\s*$|\s*\S+/g) ?? []
  return Array.from({ length: options.tokens ?? 3 }, (_, index) => (index === 0 ? 'word0' : ` word${index}`))
}

async function* speak(words: readonly string[], paceMs: number, dialect: DialectName): AsyncGenerator<Step> {
  const { begin, text } = dialects[dialect]
  yield begin()
  for (const word of words) {
    if (paceMs > 0) await sleep(paceMs)
    yield text(word)
  }
}

async function readText(request: IncomingMessage): Promise<string> {
  const pieces: Buffer[] = []
  let bytes = 0
  for await (const piece of request as AsyncIterable<Buffer>) {
    bytes += piece.length
    if (bytes > requestBytesMax) throw new Error(`A request grew beyond ${requestBytesMax} bytes`)
    pieces.push(piece)
  }
  return Buffer.concat(pieces).toString()
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined // a body is recorded as text too
  }
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      port: { type: 'string', default: '9000' },
      host: { type: 'string', default: '127.0.0.1' },
      tokens: { type: 'string', default: '200' },
      pace: { type: 'string', default: '25' },
      help: { type: 'boolean', short: 'h', default: false },
    },
  })
  if (values.help) {
    process.stdout.write(usage)
    return
  }
  const upstream = await startFakeUpstream({
    script: byMessage({ tokens: Number(values.tokens), paceMs: Number(values.pace) }),
    port: Number(values.port),
    host: values.host,
  })
  process.stdout.write(`listening on ${upstream.url}\n`)
  const stop = () => {
    upstream.close().catch((error: unknown) => {
      process.stderr.write(`${String(error)}\n`)
      process.exitCode = 1
    })
  }
  process.once('SIGINT', stop)
  process.once('SIGTERM', stop)
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) await main()
