/**
 * The recorder: a process of its own in which viewers live, so that nothing that happens to a gateway, or to the process
 * that makes it happen, touches what a viewer has seen. It is told what to do over IPC (viewers.ts), and writes the history (history.ts).
 *
 * A viewer keeps the protocol's rules for clients, and nothing more: it repeats a POST whose outcome it does not know with the same
 * key, comes back with the id of the last event it got, to any gateway, after a small pause, and stops at `done`. It judges
 * nothing: whether what it was sent is right is the checker's to say.
 *
 * Every wait has a limit: for an answer, for bytes, and for the whole (`giveUpMs`). When the process that commands it goes
 * away, it ends.
 */
import { createWriteStream } from 'node:fs'
import { type ClientRequest, type IncomingMessage, request } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { createParser } from 'eventsource-parser'
import { type HistoryEntry, nowMs } from './history.ts'
import { createRandom } from './random.ts'
import type { Command, Told, ViewerOrder } from './viewers.ts'

/** Longest wait for a status; a gateway whose database is away answers within 6 s. */
const answerMs = 8_000
const pauseMinMs = 50
const pauseMaxMs = 500
const giveUpDefaultMs = 90_000
/** Two heartbeats and a little more. */
const silenceDefaultMs = 32_000

interface Gateways {
  urls: readonly string[]
}

interface Recorder {
  readonly gateways: Gateways
  note(viewer: string, entry: HistoryEntry): void
  tell(told: Told): void
}

/** Where a viewer is told to go next, and what ends its present visit. */
interface Moves {
  next: { readonly gateway: string; readonly awayMs: number } | undefined
  cut(): void
}

/** What a connection came to. */
interface Visit {
  readonly how: 'clean' | 'cut' | 'left' | 'silent'
  readonly done: boolean
  readonly retryMs: number | undefined
}

async function live(order: ViewerOrder, signal: AbortSignal, moves: Moves, recorder: Recorder): Promise<void> {
  const { viewer, silenceMs = silenceDefaultMs, giveUpMs = giveUpDefaultMs, slow } = order
  const random = createRandom(order.seed ?? 1)
  const note = (entry: HistoryEntry) => recorder.note(viewer, entry)
  note({
    what: 'wants',
    key: order.key,
    message: order.message,
    runId: order.runId,
    slow: slow !== undefined,
    queues: order.body?.on_busy === 'queue',
  })
  let runId = order.runId
  let lastId = order.after
  let gateway = order.gateway ?? ''
  let end: 'done' | 'left' | 'refused' | 'gave up' | undefined
  const giveUpAt = nowMs() + giveUpMs

  while (end === undefined) {
    if (signal.aborted) end = 'left'
    else if (nowMs() > giveUpAt) end = 'gave up'
    if (end !== undefined) break
    const { urls } = recorder.gateways
    if (gateway === '' && urls.length > 0) gateway = random.pick(urls)
    if (gateway === '') {
      // All are gone for now.
      await wait(pauseMaxMs, signal)
      continue
    }
    const moved = new AbortController()
    moves.cut = () => moved.abort()
    const present = AbortSignal.any([signal, moved.signal])
    const answer = await ask(gateway, order, runId, lastId, present)
    if (answer.kind === 'stream') {
      const { response } = answer
      // A reconnect that is only told to come back later names no run.
      const seen = String(response.headers['x-run-id'] ?? runId ?? '')
      if (runId === undefined)
        recorder.tell({
          told: 'accepted',
          viewer,
          runId: seen,
          sessionId: String(response.headers['x-session-id'] ?? ''),
        })
      note({
        what: 'open',
        gateway,
        method: runId === undefined ? 'POST' : 'GET',
        after: lastId,
        runId: seen,
        sessionId: String(response.headers['x-session-id'] ?? ''),
        messageId: String(response.headers['x-message-id'] ?? ''),
      })
      runId = seen
      const stayMs = order.dropEveryMs === undefined ? undefined : 20 + random.integer(order.dropEveryMs)
      const visit = await view(
        response,
        answer.request,
        { signal: present, silenceMs, stayMs, slow },
        (event, id, data) => {
          if (id !== undefined) lastId = id
          note({ what: 'event', event, id, data })
          if (order.tell === true) recorder.tell({ told: 'event', viewer, event, id, data, atMs: nowMs() })
        },
      )
      note({ what: 'closed', gateway, how: visit.how })
      if (visit.done) end = 'done'
      else if (visit.how === 'left' && signal.aborted) end = 'left'
      else if (visit.retryMs !== undefined) await wait(Math.min(visit.retryMs, pauseMaxMs), signal)
    } else {
      note({ what: 'answer', gateway, status: answer.status, code: answer.code })
      // At the terminal event already: only to be had by a viewer that was given its id.
      if (answer.status === 204) end = 'done'
      else if (answer.status >= 400 && answer.status < 500 && answer.status !== 429) end = 'refused'
    }
    const { next } = moves
    moves.next = undefined
    gateway = next?.gateway ?? ''
    if (next !== undefined) await wait(next.awayMs, signal)
    else if (end === undefined) await wait(pauseMinMs + random.integer(pauseMaxMs - pauseMinMs), signal)
  }
  note({ what: 'end', why: end })
  recorder.tell({ told: 'end', viewer, why: end })
}

type Asked =
  | { readonly kind: 'stream'; readonly response: IncomingMessage; readonly request: ClientRequest }
  | { readonly kind: 'refusal'; readonly status: number; readonly code: string | undefined }

function ask(
  gateway: string,
  order: ViewerOrder,
  runId: string | undefined,
  lastId: string | undefined,
  signal: AbortSignal,
): Promise<Asked> {
  const attach = runId !== undefined
  const body = attach
    ? undefined
    : JSON.stringify({
        message: order.message,
        client_message_id: order.key,
        ...(order.sessionId === undefined ? {} : { session_id: order.sessionId }),
        ...order.body,
      })
  const url = `${gateway}/api/v1/${attach ? `runs/${runId}/events` : 'chat/stream'}`
  return new Promise((resolve) => {
    const client = request(url, {
      method: attach ? 'GET' : 'POST',
      agent: false,
      headers: {
        'x-visitor-token': order.visitor,
        ...(body === undefined
          ? {}
          : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) }),
        ...(lastId === undefined ? {} : { 'last-event-id': lastId }),
      },
    })
    const timer = setTimeout(() => client.destroy(), answerMs)
    const leave = () => client.destroy()
    signal.addEventListener('abort', leave)
    const settle = (asked: Asked) => {
      clearTimeout(timer)
      signal.removeEventListener('abort', leave)
      resolve(asked)
    }
    client.on('error', () => settle({ kind: 'refusal', status: 0, code: undefined }))
    client.on('close', () => settle({ kind: 'refusal', status: 0, code: undefined }))
    client.on('response', (response) => {
      const status = response.statusCode ?? 0
      if (status === 200) {
        settle({ kind: 'stream', response, request: client })
        return
      }
      let text = ''
      response.setEncoding('utf8')
      response.on('data', (piece: string) => {
        text += piece
      })
      response.on('error', () => settle({ kind: 'refusal', status, code: undefined }))
      response.on('end', () => settle({ kind: 'refusal', status, code: /"code":"(\w+)"/.exec(text)?.[1] }))
    })
    client.end(body)
  })
}

interface Manner {
  readonly signal: AbortSignal
  readonly silenceMs: number
  readonly stayMs: number | undefined
  readonly slow: { readonly everyMs: number; readonly forMs: number } | undefined
}

/** Reads a stream until it ends, the viewer leaves, or nothing has come for too long. */
function view(
  response: IncomingMessage,
  client: ClientRequest,
  { signal, silenceMs, stayMs, slow }: Manner,
  onEvent: (event: string, id: string | undefined, data: unknown) => void,
): Promise<Visit> {
  return new Promise((resolve) => {
    let done = false
    let how: Visit['how'] = 'cut'
    let retryMs: number | undefined
    const leave = (why: 'left' | 'silent') => {
      how = why
      client.destroy()
    }
    const parser = createParser({
      onEvent({ event = 'message', data, id }) {
        // What was still in the pipe when this viewer left is not seen by it.
        if (how !== 'cut') return
        const parsed: unknown = JSON.parse(data)
        onEvent(event, id, parsed)
        if (event === 'done') done = true
        if (event === 'reconnect') retryMs = Number((parsed as { retry_ms?: number }).retry_ms)
      },
    })
    const decoder = new TextDecoder()
    let silence = setTimeout(() => leave('silent'), silenceMs)
    const stay = stayMs === undefined ? undefined : setTimeout(() => leave('left'), stayMs)
    const dawdle =
      slow === undefined
        ? undefined
        : setInterval(() => {
            response.pause()
            setTimeout(() => response.resume(), slow.forMs)
          }, slow.everyMs)
    const onAbort = () => leave('left')
    signal.addEventListener('abort', onAbort)
    response.on('data', (bytes: Buffer) => {
      clearTimeout(silence)
      silence = setTimeout(() => leave('silent'), silenceMs)
      parser.feed(decoder.decode(bytes, { stream: true }))
    })
    response.on('error', () => undefined) // 'close' follows and says how it ended.
    response.on('close', () => {
      clearTimeout(silence)
      clearTimeout(stay)
      clearInterval(dawdle)
      signal.removeEventListener('abort', onAbort)
      if (how === 'cut' && response.complete) how = 'clean'
      client.destroy()
      resolve({ how, done, retryMs })
    })
    if (signal.aborted) leave('left')
  })
}

async function wait(ms: number, signal: AbortSignal): Promise<void> {
  await sleep(ms, undefined, { signal }).catch(() => undefined) // Told to leave: the caller looks at the signal.
}

function main(path: string): void {
  const out = createWriteStream(path, { flags: 'a' })
  const living = new Map<
    string,
    { readonly leave: AbortController; readonly moves: Moves; readonly end: Promise<void> }
  >()
  const gateways: Gateways = { urls: [] }
  const recorder: Recorder = {
    gateways,
    note: (viewer, entry) => void out.write(`${JSON.stringify({ atMs: nowMs(), viewer, ...entry })}\n`),
    tell: (told) => void process.send?.(told),
  }
  const obey = async (command: Command): Promise<void> => {
    if (command.do === 'gateways') gateways.urls = command.urls
    else if (command.do === 'view') {
      const leave = new AbortController()
      const { viewer } = command.order
      const moves: Moves = { next: undefined, cut: () => undefined }
      living.set(viewer, {
        leave,
        moves,
        end: live(command.order, leave.signal, moves, recorder).finally(() => living.delete(viewer)),
      })
    } else if (command.do === 'move') {
      const moves = living.get(command.viewer)?.moves
      if (moves === undefined) return
      moves.next = { gateway: command.gateway, awayMs: command.awayMs }
      moves.cut()
    } else if (command.do === 'leave') living.get(command.viewer)?.leave.abort()
    else {
      for (const { leave } of living.values()) leave.abort()
      await Promise.all([...living.values()].map(({ end }) => end))
      await new Promise<void>((resolve) => out.end(resolve))
      process.disconnect?.()
    }
  }
  process.on('message', (command: Command) => {
    obey(command).catch((error: unknown) => {
      process.stderr.write(`recorder: ${error instanceof Error ? error.stack : String(error)}\n`)
      process.exit(1)
    })
  })
  process.on('disconnect', () => {
    // Asked to finish, nothing keeps it; left alone, nobody would read on.
    for (const { leave } of living.values()) leave.abort()
    if (!out.writableEnded) process.exit(1)
  })
}

if (import.meta.main) main(process.argv[2] ?? '')
