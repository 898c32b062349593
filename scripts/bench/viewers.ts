/**
 * The viewers of the benchmark: requests on bare sockets, each keeping the bytes of its response and when each read of them
 * came. Nothing is parsed while a round runs. Afterwards the body is read as its format says, and what a person would have
 * seen is compared, word for word, with what the provider sent.
 *
 * All sockets read into one buffer that is used again and again; what came is copied into an arena of the response's own,
 * whose size is bound by its reply. So the load has no garbage to collect in the middle of a round.
 */
import { connect } from 'node:net'
import { createParser } from 'eventsource-parser'
import { tokenText, tokenUnits } from './provider.ts'

/** How a contender's body says its words. */
export type Format = 'native' | 'openai' | 'ui'

export interface Viewer {
  readonly number: number
  readonly tokens: number
  readonly startedAt: number
  /** Resolves when the body has ended, or the connection has. */
  readonly ended: Promise<void>
  /** Status and whether the body ended as the format says. */
  readonly status: number
  /** Of the first byte of the head. */
  readonly firstByteAt: number
  readonly bytes: Buffer
  /** Per read: time and the end of what had come. */
  readonly reads: { readonly count: number; readonly at: Float64Array; readonly ends: Uint32Array }
  close(): void
}

const shared = new Uint8Array(256 * 1024)

export interface ViewerRequest {
  readonly url: URL
  readonly method: 'GET' | 'POST'
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
  readonly number: number
  readonly tokens: number
  /** For head and body. */
  readonly bytesMax: number
  /** Reads that are told apart; later ones count as the last. */
  readonly readsMax: number
}

export function openViewer(request: ViewerRequest): Viewer {
  const { url, method, headers, body, number, tokens, bytesMax, readsMax } = request
  let bytes = Buffer.allocUnsafeSlow(Math.min(bytesMax, 64 * 1024))
  const at = new Float64Array(readsMax)
  const ends = new Uint32Array(readsMax)
  let used = 0
  let count = 0
  let firstByteAt = 0
  const ended = Promise.withResolvers<void>()
  const startedAt = performance.now()

  function take(length: number, from: Uint8Array): boolean {
    if (used + length > bytes.length) {
      const larger = Buffer.allocUnsafeSlow(Math.max(bytes.length * 2, used + length))
      bytes.copy(larger, 0, 0, used)
      bytes = larger
    }
    bytes.set(from.subarray(0, length), used)
    used += length
    const now = performance.now()
    if (count === 0) firstByteAt = now
    const slot = Math.min(count, readsMax - 1)
    at[slot] = now
    ends[slot] = used
    count += 1
    // The last chunk of a chunked body.
    if (used >= 5 && bytes.latin1Slice(used - 5, used) === '0\r\n\r\n') {
      socket.destroy()
      ended.resolve()
    }
    return true
  }

  const socket = connect({
    host: url.hostname,
    port: Number(url.port),
    noDelay: true,
    onread: { buffer: shared, callback: take },
  })
  const lines = [
    `${method} ${url.pathname}${url.search} HTTP/1.1`,
    `host: ${url.host}`,
    ...Object.entries(headers).map(([name, value]) => `${name}: ${value}`),
    ...(method === 'POST' ? ['content-type: application/json', `content-length: ${Buffer.byteLength(body)}`] : []),
  ]
  socket.write(`${lines.join('\r\n')}\r\n\r\n${body}`)
  socket.on('error', () => socket.destroy())
  socket.on('close', () => ended.resolve())

  return {
    number,
    tokens,
    startedAt,
    ended: ended.promise,
    get status() {
      return Number(bytes.latin1Slice(9, 12))
    },
    get firstByteAt() {
      return firstByteAt
    },
    get bytes() {
      return bytes.subarray(0, used)
    },
    get reads() {
      return { count: Math.min(count, readsMax), at, ends }
    },
    close: () => socket.destroy(),
  }
}

/** What a viewer saw. */
export interface Seen {
  readonly text: string
  /** The body said that the reply is whole. */
  readonly whole: boolean
  /** When each token was there, in order. */
  readonly seenAt: Float64Array
}

/** Reads what has come, as a client of the format does. */
export function readSeen(viewer: Viewer, format: Format): Seen {
  const { bytes, reads } = viewer
  const seenAt = new Float64Array(viewer.tokens).fill(Number.NaN)
  let text = ''
  let whole = false
  let tokens = 0
  let now = 0
  const take = (piece: string, offset?: number): void => {
    if (offset !== undefined && offset !== text.length) text = text.slice(0, offset)
    text += piece
    for (; (tokens + 1) * tokenUnits <= text.length; tokens += 1) seenAt[tokens] = now
  }
  const parser = createParser({
    onEvent: ({ event, data }) => {
      if (format === 'native') {
        if (event === 'delta') {
          const delta = JSON.parse(data) as { text: string; offset: number }
          take(delta.text, delta.offset)
        } else if (event === 'done') whole = (JSON.parse(data) as { status: string }).status === 'completed'
      } else if (data === '[DONE]') whole = true
      else if (format === 'openai') {
        const chunk = JSON.parse(data) as { choices: { delta?: { content?: string } }[] }
        take(chunk.choices[0]?.delta?.content ?? '')
      } else {
        const chunk = JSON.parse(data) as { type: string; delta?: string }
        if (chunk.type === 'text-delta') take(chunk.delta ?? '')
      }
    },
  })
  const headEnd = bytes.indexOf('\r\n\r\n') + 4
  let place = headEnd
  let left = 0
  for (let read = 0; read < reads.count; read += 1) {
    const end = reads.ends[read] as number
    now = reads.at[read] as number
    while (place < end) {
      if (left === 0) {
        const lineEnd = bytes.indexOf('\r\n', place)
        if (lineEnd === -1 || lineEnd + 2 > end) break
        left = Number.parseInt(bytes.latin1Slice(place, lineEnd), 16) + 2
        place = lineEnd + 2
        if (left === 2) break
        continue
      }
      const length = Math.min(left, end - place)
      // The end of line behind a chunk is none of its text.
      const textLength = Math.min(length, Math.max(0, left - 2))
      if (textLength > 0) parser.feed(bytes.utf8Slice(place, place + textLength))
      place += length
      left -= length
    }
  }
  return { text, whole, seenAt }
}

/** Where a text differs from what was sent; undefined when it does not. */
export function findFault({ text, whole }: Seen, tokens: number): string | undefined {
  for (let n = 0; n < tokens; n += 1) {
    if (text.slice(n * tokenUnits, (n + 1) * tokenUnits) !== tokenText(n)) return `token ${n} of ${tokens} is wrong`
  }
  if (text.length !== tokens * tokenUnits) return `${text.length - tokens * tokenUnits} characters too many`
  return whole ? undefined : 'no word of the end'
}
