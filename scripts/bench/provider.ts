/**
 * The provider of the benchmark: one HTTP server on bare sockets that answers every chat completion with tokens on a
 * schedule, each in a packet of its own, and remembers when it sent each. It has to be much cheaper than what it is to load,
 * so nothing is made while it sends: every token's bytes are ready, and a tick of one timer writes what is due.
 *
 * A reply is named by the last thing that the user says (`reply 17`), which also says how long it is to be (`reply 17 of
 * 600`). Token n of every reply is the same six characters, so a text can be compared without keeping any.
 *
 * How late its ticks were is kept: a provider that falls behind sends several tokens at once, and whoever reads them looks
 * cheap. A round in which that happened does not count; that is decided by the caller.
 */
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { createServer, type Socket } from 'node:net'

/** Of a token, in characters of ASCII. */
export const tokenUnits = 6
const tokensMax = 100_000
const requestBytesMax = 1024 * 1024

export const tokenText = (n: number): string => `${n.toString(36).padStart(tokenUnits - 1, '.')} `

/** The whole reply of so many tokens. */
export function replyText(tokens: number): string {
  let text = ''
  for (let n = 0; n < tokens; n += 1) text += tokenText(n)
  return text
}

export interface Pace {
  /** Between two tokens of one reply; 0: as fast as the socket takes them. */
  readonly intervalMs: number
  /** From the request to the first token. */
  readonly firstMs: number
}

export interface Reply {
  readonly tokens: number
  /** Of each token, on the clock of `performance.now()` of this process. */
  readonly sentAt: Float64Array
  sent: number
  /** When the request was there. */
  requestedAt: number
}

export interface Provider {
  readonly url: string
  /** By number. */
  readonly replies: ReadonlyMap<number, Reply>
  /** Tokens sent since the start. */
  readonly sentTotal: number
  /** How late the ticks were, in milliseconds, since the last call. */
  takeLateness(): readonly number[]
  /** For what is sent from now on. */
  setPace(pace: Pace): void
  forget(number: number): void
  close(): Promise<void>
}

interface Sending {
  readonly socket: Socket
  readonly reply: Reply
  dueAt: number
}

const headBytes = Buffer.from(
  'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n',
)

const toChunk = (payload: object): string =>
  `data: ${JSON.stringify({
    id: 'chatcmpl-C9b1bench00000000000000000',
    object: 'chat.completion.chunk',
    created: 1_760_000_000,
    model: 'bench-1-2026-01-01',
    system_fingerprint: 'fp_0123456789',
    ...payload,
  })}\n\n`

const frame = (text: string): Buffer => Buffer.from(`${Buffer.byteLength(text).toString(16)}\r\n${text}\r\n`)

const tokenBytes = (n: number): Buffer =>
  frame(toChunk({ choices: [{ index: 0, delta: { content: tokenText(n) }, logprobs: null, finish_reason: null }] }))

const beginBytes = frame(
  toChunk({ choices: [{ index: 0, delta: { role: 'assistant', content: '' }, logprobs: null, finish_reason: null }] }),
)

const endBytes = (tokens: number): Buffer =>
  Buffer.concat([
    frame(toChunk({ choices: [{ index: 0, delta: {}, logprobs: null, finish_reason: 'stop' }] })),
    frame(toChunk({ choices: [], usage: { prompt_tokens: 8, completion_tokens: tokens, total_tokens: tokens + 8 } })),
    frame('data: [DONE]\n\n'),
    Buffer.from('0\r\n\r\n'),
  ])

export async function startProvider(): Promise<Provider> {
  const replies = new Map<number, Reply>()
  const ready: Buffer[] = []
  let pace: Pace = { intervalMs: 20, firstMs: 0 }
  let lateness: number[] = []
  let sentTotal = 0
  const sockets = new Set<Socket>()
  // A wheel of a millisecond a slot: what is due is found without looking at the rest.
  let wheel = new Map<number, Sending[]>()
  let lastTick = 0

  const bytesOf = (n: number): Buffer => {
    while (ready.length <= n) ready.push(tokenBytes(ready.length))
    return ready[n] as Buffer
  }

  function schedule(sending: Sending): void {
    const slot = Math.max(Math.ceil(sending.dueAt), lastTick + 1)
    const there = wheel.get(slot)
    if (there === undefined) wheel.set(slot, [sending])
    else there.push(sending)
  }

  function sendNext(sending: Sending, now: number): void {
    const { socket, reply } = sending
    if (socket.destroyed) return
    if (reply.sent === 0) socket.write(Buffer.concat([headBytes, beginBytes]))
    const n = reply.sent
    reply.sentAt[n] = now
    reply.sent = n + 1
    sentTotal += 1
    socket.write(bytesOf(n))
    if (reply.sent === reply.tokens) {
      socket.write(endBytes(reply.tokens))
      return
    }
    sending.dueAt += pace.intervalMs
    schedule(sending)
  }

  /** As fast as the socket takes them, each a write of its own. */
  function sendAll({ socket, reply }: Sending): void {
    if (reply.sent === 0) socket.write(Buffer.concat([headBytes, beginBytes]))
    while (reply.sent < reply.tokens) {
      if (socket.destroyed) return
      const n = reply.sent
      reply.sentAt[n] = performance.now()
      reply.sent = n + 1
      sentTotal += 1
      if (!socket.write(bytesOf(n))) {
        socket.once('drain', () => sendAll({ socket, reply, dueAt: 0 }))
        return
      }
    }
    socket.write(endBytes(reply.tokens))
  }

  function tick(): void {
    const now = performance.now()
    const until = Math.floor(now)
    for (let slot = lastTick + 1; slot <= until; slot += 1) {
      const due = wheel.get(slot)
      if (due === undefined) continue
      wheel.delete(slot)
      lateness.push(now - slot)
      for (const sending of due) sendNext(sending, performance.now())
    }
    lastTick = until
  }
  lastTick = Math.floor(performance.now())
  const timer = setInterval(tick, 1)

  function answer(socket: Socket, body: string): void {
    const [, number, tokens] = /reply (\d+) of (\d+)(?![\s\S]*reply \d+ of)/.exec(body) ?? []
    if (number === undefined) {
      socket.end('HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n')
      return
    }
    const count = Math.min(Number(tokens), tokensMax)
    bytesOf(count - 1)
    const now = performance.now()
    const reply: Reply = { tokens: count, sentAt: new Float64Array(count), sent: 0, requestedAt: now }
    replies.set(Number(number), reply)
    if (pace.intervalMs === 0) setTimeout(() => sendAll({ socket, reply, dueAt: 0 }), pace.firstMs)
    else if (pace.firstMs === 0) sendNext({ socket, reply, dueAt: now }, now)
    else schedule({ socket, reply, dueAt: now + pace.firstMs })
  }

  const server = createServer({ noDelay: true }, (socket) => {
    sockets.add(socket)
    let text = ''
    socket.on('data', (bytes) => {
      text += bytes.toString('latin1')
      if (text.length > requestBytesMax) socket.destroy()
      const end = text.indexOf('\r\n\r\n')
      if (end === -1) return
      const length = Number(/\r\ncontent-length: *(\d+)/i.exec(text.slice(0, end))?.[1] ?? 0)
      const chunked = /\r\ntransfer-encoding: *chunked/i.test(text.slice(0, end))
      const whole = chunked ? text.endsWith('\r\n0\r\n\r\n') : text.length >= end + 4 + length
      if (!whole) return
      const body = text.slice(end + 4)
      text = ''
      answer(socket, body)
    })
    socket.on('error', () => socket.destroy())
    socket.on('close', () => sockets.delete(socket))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo

  return {
    url: `http://127.0.0.1:${port}/v1`,
    replies,
    get sentTotal() {
      return sentTotal
    },
    takeLateness() {
      const taken = lateness
      lateness = []
      return taken
    },
    setPace(next) {
      pace = next
    },
    forget(number) {
      replies.delete(number)
    },
    async close() {
      clearInterval(timer)
      for (const socket of sockets) socket.destroy()
      wheel = new Map()
      server.close()
      await once(server, 'close')
    },
  }
}
