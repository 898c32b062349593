/**
 * What the tests of the adapter share: a reply collected from an upstream or from a reader alone, the own fixtures, the
 * recordings of real providers when they are there, and a dispatcher that hands over bytes exactly as they were cut. It
 * asserts nothing.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { basename, resolve } from 'node:path'
import { Dispatcher } from 'undici'
import { ChatReader } from '../../src/upstream/chat-chunks.ts'
import { createOpenai, type OpenaiOptions } from '../../src/upstream/openai.ts'
import { brokenOff } from '../../src/upstream/refusal.ts'
import { createSseReader } from '../../src/upstream/sse.ts'
import type { Upstream, UpstreamEvent, UpstreamRequest } from '../../src/upstream/upstream.ts'

export const request: UpstreamRequest = {
  model: 'own-1',
  messages: [
    { role: 'system', content: 'Be brief.' },
    { role: 'user', content: 'Hello' },
  ],
}

export interface Collected {
  text: string
  reasoning: string
  calls: { id: string | undefined; name: string | undefined; arguments: string; signature?: string }[]
  /** `url title`, in the order in which they came. */
  sources: string[]
  /** `type url`. */
  files: string[]
  /** Those that are on no call; before a redacted one stands `redacted`. */
  signatures: string[]
  usage: unknown
  usageCount: number
  finish: string | undefined
  id: string | undefined
  model: string | undefined
  error: unknown
}

/** Reads a reply to its end. What was thrown is in `error`. */
export async function collect(
  upstream: Upstream,
  signal: AbortSignal = new AbortController().signal,
  asked: UpstreamRequest = request,
): Promise<Collected> {
  const seen = nothing()
  const calls = new Map<string, Collected['calls'][number]>()
  try {
    for await (const event of upstream.stream(asked, signal)) add(seen, calls, event)
  } catch (error) {
    seen.error = error
  }
  return seen
}

/**
 * The same of bytes that are read at once, up to a clean end: framing and dialect, without sockets, timers and turns of
 * the event loop, and so cheap enough for a hundred thousand ways to cut a stream.
 */
export function readPieces(pieces: readonly Uint8Array[]): Collected {
  const seen = nothing()
  const calls = new Map<string, Collected['calls'][number]>()
  const reader = new ChatReader(request.model)
  const sse = createSseReader(reader)
  for (const piece of pieces) sse.read(piece)
  sse.end()
  for (const event of reader.events) add(seen, calls, event)
  seen.error = reader.failure ?? (reader.complete ? undefined : brokenOff(true))
  return seen
}

function nothing(): Collected {
  return {
    text: '',
    reasoning: '',
    calls: [],
    sources: [],
    files: [],
    signatures: [],
    usage: undefined,
    usageCount: 0,
    finish: undefined,
    id: undefined,
    model: undefined,
    error: undefined,
  }
}

function add(seen: Collected, calls: Map<string, Collected['calls'][number]>, event: UpstreamEvent): void {
  switch (event.type) {
    case 'text':
      seen.text += event.text
      break
    case 'reasoning':
      seen.reasoning += event.text
      break
    case 'tool_call': {
      let call = calls.get(event.key)
      if (call === undefined) {
        call = { id: event.callId, name: event.name, arguments: '' }
        calls.set(event.key, call)
        seen.calls.push(call)
      }
      call.arguments += event.arguments
      break
    }
    case 'signature': {
      const call = event.key === undefined ? undefined : calls.get(event.key)
      if (call !== undefined) call.signature = event.signature
      else seen.signatures.push(event.redacted ? `redacted ${event.signature}` : event.signature)
      break
    }
    case 'source':
      seen.sources.push(`${event.url ?? '-'} ${event.title ?? '-'}`)
      break
    case 'file':
      seen.files.push(`${event.mediaType} ${event.url}`)
      break
    case 'usage':
      seen.usage = event.usage
      seen.usageCount++
      break
    case 'finish':
      seen.finish = event.reason
      break
    case 'response':
      seen.id = event.id
      seen.model = event.model
      break
  }
}

const limits = { firstByteMs: 20_000, idleMs: 20_000, totalMs: 60_000 }

/** An adapter with limits that no passing test reaches. */
export function openaiAt(baseUrl: string, options: Partial<OpenaiOptions> = {}): Upstream {
  return createOpenai({ baseUrl, ...limits, ...options })
}

/** An adapter whose reply is these pieces, each of them one read, and then `end`. */
export function openaiFed(pieces: readonly Uint8Array[], end: 'fin' | Error = 'fin'): Upstream {
  return openaiAt('http://feed.invalid/v1', { dispatcher: new Feed(pieces, end) })
}

/** Hands over pieces as fast as they are wanted, and the end in the same turn as the last of them. */
export class Feed extends Dispatcher {
  readonly #pieces: readonly Uint8Array[]
  readonly #end: 'fin' | Error | 'silence'
  /** Bytes handed over while not paused. */
  fedBytes = 0
  pauses = 0
  aborted = false

  constructor(pieces: readonly Uint8Array[], end: 'fin' | Error | 'silence' = 'fin') {
    super()
    this.#pieces = pieces
    this.#end = end
  }

  override dispatch(_: unknown, handler: Dispatcher.DispatchHandler): boolean {
    let next = 0
    let over = false
    const feed = this
    const controller = {
      aborted: false,
      paused: false,
      reason: null,
      abort() {
        over = true
        feed.aborted = true
      },
      pause() {
        this.paused = true
        feed.pauses++
      },
      resume() {
        this.paused = false
        queueMicrotask(go)
      },
    }
    const end = this.#end
    const pieces = this.#pieces
    function go(): void {
      while (!over && !controller.paused && next < pieces.length) {
        const piece = pieces[next++]!
        feed.fedBytes += piece.length
        handler.onResponseData?.(controller, Buffer.from(piece))
      }
      if (over || controller.paused || end === 'silence') return
      over = true
      if (end === 'fin') handler.onResponseEnd?.(controller, {})
      else handler.onResponseError?.(controller, end)
    }
    queueMicrotask(() => {
      handler.onRequestStart?.(controller, {})
      handler.onResponseStart?.(controller, 200, { 'content-type': 'text/event-stream' })
      go()
    })
    return true
  }
}

/** @returns `bytes` in pieces, cut at these places */
export function cutAt(bytes: Uint8Array, cuts: readonly number[]): Uint8Array[] {
  const pieces: Uint8Array[] = []
  let from = 0
  for (const to of [...cuts, bytes.length]) {
    pieces.push(bytes.subarray(from, to))
    from = to
  }
  return pieces
}

export interface Stream {
  readonly name: string
  readonly bytes: Buffer
}

const projectRoot = resolve(import.meta.dirname, '../..')

export function ownStreams(): Stream[] {
  const folder = resolve(projectRoot, 'test/fixtures/upstream')
  return readdirSync(folder)
    .filter((file) => file.endsWith('.sse'))
    .sort()
    .map((file) => ({ name: basename(file, '.sse'), bytes: readFileSync(resolve(folder, file)) }))
}

/**
 * Recordings of real providers, which are not part of the project: those of the dialect, by number, framed as SSE.
 * @returns undefined when there is no folder of them
 */
export function recordedStreams(): Stream[] | undefined {
  const folder = process.env.VERBATIM_FIXTURES ?? resolve(projectRoot, '../shared/fixtures')
  if (!existsSync(folder)) return undefined
  const files = readdirSync(folder)
    .concat(readdirSync(resolve(folder, 'extracted')).map((file) => `extracted/${file}`))
    .sort()
  const streams: Stream[] = []
  for (const file of files) {
    const number = /^(?:extracted\/)?(0[1-5789])-/.exec(file)?.[1]
    if (number === undefined || file.endsWith('.yaml')) continue
    const name = `recording ${number}${/\.(\d)\.sse$/.exec(file)?.[1] ?? ''}`
    const bytes = readFileSync(resolve(folder, file))
    if (!file.endsWith('.chunks.txt')) {
      streams.push({ name, bytes })
      continue
    }
    // These came without framing: with and without the marker at the end, as servers differ.
    const lines = bytes.toString().split('\n')
    const events = lines.filter((line) => line.trim() !== '').map((line) => `${nameOf(line)}data: ${line}\n\n`)
    streams.push({ name, bytes: Buffer.from(`${events.join('')}data: [DONE]\n\n`) })
    streams.push({ name: `${name} without [DONE]`, bytes: Buffer.from(events.join('')) })
  }
  return streams
}

/** Events of the Responses API carry their type in the framing too. */
function nameOf(line: string): string {
  const { type } = JSON.parse(line) as { type?: string }
  return type === undefined ? '' : `event: ${type}\n`
}
