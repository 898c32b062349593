/**
 * The viewers of the benchmark: requests on bare sockets, each keeping the bytes of its response and when each read of them
 * came. Nothing is parsed while a round runs. Afterwards the body is read as its format says, and what a person would have
 * seen is compared, token by token, with what the provider sent.
 *
 * All sockets read into one buffer that is used again and again; what came is copied into memory of the response's own. So
 * the load has next to no garbage to collect in the middle of a round. A viewer has ended when its body or its connection
 * has, or with the first bytes of a refusal; whoever waits for it sets the bound.
 */
import { connect } from 'node:net'
import { createParser } from 'eventsource-parser'
import type { Asked, Format, Question } from './contenders.ts'
import { tokenText, tokenUnits } from './provider.ts'

export interface Viewer extends Asked {
  /** On the clock of `performance.now()`, as all times here. */
  readonly startedAt: number
  /** Of the first byte of the head; 0 when none came. */
  readonly firstByteAt: number
  readonly ended: Promise<void>
  readonly status: number
  readonly bytes: Buffer
  /** For each read: when it was, and the end of what had come by then. */
  readonly reads: { readonly count: number; readonly at: Float64Array; readonly ends: Uint32Array }
  close(): void
}

export interface ViewerOptions {
  readonly number: number
  readonly tokens: number
  /** Its own address: one address has 28 000 ports. */
  readonly from?: string
}

/** Memory that a response begins with; it grows when that is not enough. */
const bytesFirst = 4096
const headBytesMax = 16 * 1024
/** Of a token, in the format that says the most around it. */
const tokenBytesMax = 400
/** Reads that are told apart, for a token and besides. Later ones count as the last. */
const [tokenReadsMax, otherReadsMax] = [2, 100] as const
/** The last chunk of a body. */
const lastChunk = Buffer.from('0\r\n\r\n')
const shared = new Uint8Array(256 * 1024)

export function openViewer({ url, method, headers, body }: Question, options: ViewerOptions): Viewer {
  const { number, tokens, from } = options
  const bytesMax = headBytesMax + tokens * tokenBytesMax
  const readsMax = otherReadsMax + tokens * tokenReadsMax
  const at = new Float64Array(readsMax)
  const ends = new Uint32Array(readsMax)
  let bytes = Buffer.allocUnsafeSlow(bytesFirst)
  let used = 0
  let count = 0
  let firstByteAt = 0
  const ended = Promise.withResolvers<void>()
  const startedAt = performance.now()

  function take(length: number, read: Uint8Array): boolean {
    const now = performance.now()
    if (used + length > bytes.length) grow(used + length)
    bytes.set(read.subarray(0, length), used)
    used += length
    if (count === 0) firstByteAt = now
    const slot = Math.min(count, readsMax - 1)
    at[slot] = now
    ends[slot] = used
    count += 1
    const refused = count === 1 && bytes.toString('latin1', 9, 12) !== '200'
    if (refused || used > bytesMax || isEnd(bytes, used)) {
      socket.destroy()
      ended.resolve()
    }
    return true
  }

  function grow(needed: number): void {
    const larger = Buffer.allocUnsafeSlow(Math.max(bytes.length * 2, needed))
    bytes.copy(larger, 0, 0, used)
    bytes = larger
  }

  const socket = connect({
    host: url.hostname,
    port: Number(url.port),
    noDelay: true,
    onread: { buffer: shared, callback: take },
    ...(from === undefined ? {} : { localAddress: from }),
  })
  const lines = [
    `${method} ${url.pathname}${url.search} HTTP/1.1`,
    `host: ${url.host}`,
    ...Object.entries(headers).map(([name, value]) => `${name}: ${value}`),
    ...(method === 'POST' ? [`content-length: ${Buffer.byteLength(body)}`] : []),
  ]
  socket.write(`${lines.join('\r\n')}\r\n\r\n${body}`)
  socket.on('error', () => socket.destroy())
  socket.on('close', () => ended.resolve())

  return {
    number,
    tokens,
    startedAt,
    ended: ended.promise,
    get firstByteAt() {
      return firstByteAt
    },
    get status() {
      return Number(bytes.toString('latin1', 9, 12))
    },
    get bytes() {
      return bytes.subarray(0, used)
    },
    get reads() {
      return { count: Math.min(count, readsMax), at, ends }
    },
    header(name) {
      const head = bytes.toString('latin1', 0, Math.max(0, bytes.subarray(0, used).indexOf('\r\n\r\n')))
      return new RegExp(`^${name}: *(.*)$`, 'im').exec(head)?.[1]?.trim()
    },
    close: () => socket.destroy(),
  }
}

/** What a viewer saw. */
export interface Seen {
  readonly text: string
  /** The body said that the reply is whole. */
  readonly whole: boolean
  /** When each token was there; not a number where it never was. */
  readonly seenAt: Float64Array
}

/** Reads what has come, as a client of the format does. */
export function readSeen(viewer: Viewer, format: Format): Seen {
  const seenAt = new Float64Array(viewer.tokens).fill(Number.NaN)
  let text = ''
  let whole = false
  let tokens = 0
  let now = 0
  const take = (piece: string, offset = text.length): void => {
    // What is said again takes the place of what was there, and a gap stays one.
    if (offset !== text.length) text = text.slice(0, offset)
    text += piece
    for (; (tokens + 1) * tokenUnits <= text.length && tokens < seenAt.length; tokens += 1) seenAt[tokens] = now
  }
  const readEvent = eventReader(format, take, () => {
    whole = true
  })
  const parser = createParser({ onEvent: ({ event, data }) => readEvent(event, data) })
  readBody(viewer, (piece, at) => {
    now = at
    parser.feed(piece)
  })
  return { text, whole, seenAt }
}

/** Where a text differs from what was sent; undefined when it does not. */
export function findFault({ text, whole }: Seen, tokens: number): string | undefined {
  const wrong = findWrongToken(text, tokens)
  if (wrong !== undefined) return `token ${wrong} of ${tokens} is wrong`
  if (text.length !== tokens * tokenUnits) return `${text.length - tokens * tokenUnits} characters too many`
  return whole ? undefined : 'no word of the end'
}

/** @returns the first of so many tokens that is not as it was sent */
export function findWrongToken(text: string, tokens: number): number | undefined {
  for (let n = 0; n < tokens; n += 1) {
    if (text.slice(n * tokenUnits, (n + 1) * tokenUnits) !== tokenText(n)) return n
  }
  return undefined
}

function eventReader(
  format: Format,
  take: (piece: string, offset?: number) => void,
  end: () => void,
): (event: string | undefined, data: string) => void {
  if (format === 'native') {
    return (event, data) => {
      if (event === 'delta') {
        const { text, offset } = JSON.parse(data) as { text: string; offset: number }
        take(text, offset)
      } else if (event === 'done' && (JSON.parse(data) as { status: string }).status === 'completed') end()
    }
  }
  if (format === 'openai') {
    return (_event, data) => {
      if (data === '[DONE]') end()
      else take((JSON.parse(data) as { choices: { delta?: { content?: string } }[] }).choices[0]?.delta?.content ?? '')
    }
  }
  return (_event, data) => {
    if (data === '[DONE]') return end()
    const chunk = JSON.parse(data) as { type: string; delta?: string }
    if (chunk.type === 'text-delta') take(chunk.delta ?? '')
  }
}

function isEnd(bytes: Buffer, used: number): boolean {
  return used >= lastChunk.length && bytes.compare(lastChunk, 0, lastChunk.length, used - lastChunk.length, used) === 0
}

/** Takes a chunked body apart, read by read. */
function readBody({ bytes, reads }: Viewer, feed: (piece: string, at: number) => void): void {
  let place = bytes.indexOf('\r\n\r\n') + 4
  let left = 0
  for (let read = 0; read < reads.count; read += 1) {
    const end = reads.ends[read] as number
    const at = reads.at[read] as number
    while (place < end) {
      if (left === 0) {
        const lineEnd = bytes.indexOf('\r\n', place)
        if (lineEnd === -1 || lineEnd + 2 > end) break
        // The end of line behind a chunk is none of its text.
        left = Number.parseInt(bytes.toString('latin1', place, lineEnd), 16) + 2
        place = lineEnd + 2
        if (!(left > 2)) return
        continue
      }
      const length = Math.min(left, end - place)
      const textLength = Math.min(length, Math.max(0, left - 2))
      if (textLength > 0) feed(bytes.toString('utf8', place, place + textLength), at)
      place += length
      left -= length
    }
  }
}
