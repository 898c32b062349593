/**
 * One reply, followed to its end over as many connections as it takes.
 *
 * Events come over one connection after the other, and each carries a cursor. `done` is the only end. However else a
 * connection ends, broken or clean, the next one goes on behind the cursor; the gateway then sends what is missing, or a
 * `reset` that replaces everything. Where the fold finds a gap, the cursor is dropped and the run taken from its beginning.
 * So the parts that are held are those of the stored message, or a beginning of them.
 *
 * A message is sent at once, also when nobody iterates, and again under the same key until the gateway has answered; from
 * then on the run is followed by its id. Everything behind the acceptance waits for somebody to ask for it: a reply that
 * nobody reads is held back by its connection, and not in memory. That connection is closed when nobody has come for a
 * while, and who comes later gets another one.
 *
 * At each await: a broken connection leads to the next one, a refusal that passes to a wait, any other to the end of the
 * iteration with that error; `close`, leaving the loop and the caller's signal end everything here, and nothing there.
 */
import { type Connection, connect } from './connection.ts'
import { ConnectionError, GatewayError, passes } from './errors.ts'
import { fold, type RunData, textOf } from './fold.ts'
import { createSseParser } from './sse.ts'
import { pathOf, type Transport } from './transport.ts'
import type { Done, EventData, Part } from './types.ts'
import { createBackOff, linkAbort, pause } from './waiting.ts'

export interface Accepted {
  readonly runId: string
  readonly sessionId: string
  /** Of the reply. */
  readonly messageId: string
}

/**
 * An event of the run. `at` is when it arrived, as `performance.now()` has it; `chars` are the UTF-16 units of its data as
 * they came, 0 when it did not come over the wire.
 */
export type RunEvent = RunData & { readonly id: string; readonly at: number; readonly chars: number }

/** Replay has caught up with live. */
export interface ReadyEvent {
  readonly type: 'ready'
}

/** Of the connection, not of the log. `attempt` counts from 1 since something of the reply has come. */
export interface ConnectionEvent {
  readonly type: 'connection'
  readonly state: 'connecting' | 'open' | 'waiting'
  readonly attempt: number
  /** Of `waiting`. The network or the reader coming back ends it early. */
  readonly waitMs?: number
  readonly why?: 'cut' | 'stalled' | 'reconnect' | 'refused' | 'gap'
}

export type ReplyEvent = RunEvent | ReadyEvent | ConnectionEvent

/** Iterating follows it to its end; leaving the loop closes the connection and not the run. Iterate once. */
export interface Reply extends AsyncIterable<ReplyEvent> {
  /** Resolves when the gateway has accepted it. Rejects with GatewayError when it refuses. */
  readonly accepted: Promise<Accepted>
  /** What is there of it now. Each change makes a new array. */
  readonly parts: readonly Part[]
  /** The text parts, joined. */
  readonly text: string
  readonly cursor: string | undefined
  /** Resolves with the last event's data. Follows the reply when nobody iterates. */
  readonly done: Promise<Done>
  /** Asks the gateway to end it; what is there is kept, and the end still comes as an event. */
  stop(): Promise<void>
  /** Leaves. The run goes on. */
  close(): void
}

export interface ReplySource {
  /** Sends what starts the run. Absent when there is one. */
  readonly start?: (signal: AbortSignal) => Promise<Response>
  readonly runId?: string
  readonly sessionId?: string
  readonly messageId?: string
  readonly after?: string
  readonly parts?: readonly Part[]
}

interface Wait {
  readonly ms: number
  readonly why: NonNullable<ConnectionEvent['why']>
}

export function createReply(transport: Transport, source: ReplySource, signal?: AbortSignal): Reply {
  const { limits } = transport
  const leaving = linkAbort(signal)
  const accepted = createPromise<Accepted>()
  const done = createPromise<Done>()
  const backOff = createBackOff(limits)
  const left = new ConnectionError('The reply was left before its end.')

  let { runId } = source
  let cursor = source.after
  // Parts without the cursor that they go up to cannot be joined to.
  let parts = cursor === undefined ? [] : (source.parts ?? [])
  let attempt = 0
  let restarts = 0
  let iterated = false
  let connection: Connection | undefined
  let unread: ReturnType<typeof setTimeout> | undefined

  if (runId !== undefined && source.sessionId !== undefined && source.messageId !== undefined) {
    accept({ runId, sessionId: source.sessionId, messageId: source.messageId })
  }

  function accept(ids: Accepted): void {
    runId = ids.runId
    accepted.resolve(ids)
  }

  function fail(error: unknown): void {
    accepted.reject(error)
    done.reject(error)
  }

  async function* follow(): AsyncGenerator<ReplyEvent, void, void> {
    for (;;) {
      attempt += 1
      yield tell('connecting')
      let wait: Wait
      try {
        connection = await open()
        yield tell('open')
        const how = yield* watch(connection)
        if (how === 'done') return
        wait = how
      } catch (error) {
        if (leaving.signal.aborted) throw leaving.signal.reason
        wait = judge(error)
      } finally {
        connection?.close()
        connection = undefined
      }
      if (attempt >= attemptsMax()) throw new ConnectionError('No connection has brought anything.')
      if (restarts > limits.restartsMax) {
        throw new ConnectionError('The reply has a gap each time it is read.', { why: 'gap' })
      }
      yield { ...tell('waiting'), waitMs: wait.ms, why: wait.why }
      await pause(wait.ms, leaving.signal)
    }
  }

  async function open(): Promise<Connection> {
    const starts = runId === undefined ? source.start : undefined
    const connection = await connect(
      starts ??
        ((signal) =>
          transport.ask(
            'GET',
            pathOf`/runs/${runId ?? ''}/events`,
            { headers: { accept: 'text/event-stream', ...(cursor === undefined ? {} : { 'last-event-id': cursor }) } },
            signal,
          )),
      limits,
      leaving.signal,
    )
    const { status, headers } = connection.response
    const isStream = headers.get('content-type')?.startsWith('text/event-stream') === true
    if (!isStream && (status !== 204 || starts !== undefined)) {
      connection.close()
      throw new ConnectionError('The answer is not a stream.')
    }
    const [run, session, message] = ['x-run-id', 'x-session-id', 'x-message-id'].map((name) => headers.get(name))
    if (run && session && message) {
      if (runId === undefined) attempt = 1
      accept({ runId: run, sessionId: session, messageId: message })
    }
    return connection
  }

  /** One connection. */
  async function* watch(connection: Connection): AsyncGenerator<ReplyEvent, Wait | 'done', void> {
    // The cursor is at the end, and the end was never told: from the beginning, it comes again.
    if (connection.response.status === 204) return restart()
    const decoder = new TextDecoder()
    const parser = createSseParser(limits.eventCharsMax, backOff.setFirstMs)
    for (let bytes = await connection.read(); bytes !== undefined; bytes = await connection.read()) {
      const at = performance.now()
      for (const { name, data, id } of parser.push(decoder.decode(bytes, { stream: true }))) {
        const value = parse(data)
        // A process that shuts down says the same to all of its viewers, who should not all come at once.
        if (name === 'reconnect') {
          return { ms: backOff.within(Number(value.retry_ms) * (1 + Math.random() / 2)), why: 'reconnect' }
        }
        if (name === 'ready') {
          yield { type: 'ready' }
          continue
        }
        if (name === 'run') {
          const { run_id, session_id, message_id } = value as unknown as EventData['run']
          accept({ runId: run_id, sessionId: session_id, messageId: message_id })
          // The whole run again: what was there before counts for nothing.
          if (cursor === undefined && parts.length > 0) {
            parts = []
            yield { type: 'reset', data: { message_id, parts: [], cursor: id }, id, at, chars: 0 }
          }
        }
        const folded = fold(parts, { type: name, data: value } as unknown as RunData)
        if (folded === undefined) return restart()
        parts = folded.parts
        // What is said once more on each connection, past the cursor, would be followed for ever.
        const isNew = folded.event !== undefined && (name !== 'run' || cursor === undefined)
        cursor = name === 'reset' ? ((value.cursor as string | undefined) ?? id) : id
        if (isNew && (name === 'delta' || name === 'reset')) backOff.reset()
        if (isNew) attempt = 0
        if (name === 'done') done.resolve(value as unknown as Done)
        if (folded.event !== undefined && isKnown(name)) yield { ...folded.event, id, at, chars: data.length }
        if (name === 'done') return 'done'
      }
    }
    // What is left in the parser is a block without its blank line, and does not count.
    return { ms: backOff.nextMs(), why: 'cut' }
  }

  function restart(): Wait {
    cursor = undefined
    restarts += 1
    // A log that has a hole would have one again each time.
    backOff.keepGrowing()
    return { ms: backOff.nextMs(), why: 'gap' }
  }

  /** @throws what cannot pass, or has been tried often enough */
  function judge(error: unknown): Wait {
    const refused = error instanceof GatewayError ? error : undefined
    if (runId !== undefined && cursor !== undefined && refused?.status === 400) return restart()
    if (!passes(error) || attempt >= attemptsMax()) throw error
    const askedMs = refused?.retryAfterMs ?? 0
    // Who has sent a message is asked whether to wait that long.
    if (runId === undefined && askedMs > limits.backOffMaxMs) throw error
    return {
      ms: backOff.nextMs(askedMs),
      why: refused !== undefined ? 'refused' : (error as ConnectionError).why,
    }
  }

  const attemptsMax = () => (runId === undefined ? limits.sendAttemptsMax : limits.resumeAttemptsMax)

  const tell = (state: ConnectionEvent['state']): ConnectionEvent => ({ type: 'connection', state, attempt })

  async function* run(): AsyncGenerator<ReplyEvent, void, void> {
    try {
      yield* follow()
    } catch (error) {
      fail(error)
      if (error !== left) throw error
    } finally {
      fail(left)
      leaving.free()
    }
  }

  const events = run()
  /** Asked for already, for whoever iterates later. */
  const early: Promise<IteratorResult<ReplyEvent, void>>[] = []

  async function start(): Promise<void> {
    while (!accepted.settled) {
      const next = events.next()
      early.push(next)
      if ((await next).done === true) return
    }
    if (iterated || connection === undefined || leaving.signal.aborted) return
    unread = setTimeout(() => connection?.close(), limits.unreadMs)
    leaving.signal.addEventListener('abort', () => clearTimeout(unread))
  }

  /** Somebody reads it from here on. */
  function take(): void {
    iterated = true
    clearTimeout(unread)
  }

  async function drain(): Promise<void> {
    while ((await next()).done !== true);
  }

  const next = () => early.shift() ?? events.next()

  function close(): void {
    // Whatever it waits for, it waits no longer; where it does not wait, it is told to return.
    leaving.abort(left)
    leaving.free()
    fail(left)
    void events.return()
  }

  // Whoever asks is told by the promises and by the iteration.
  start().catch(() => undefined)

  return {
    accepted: accepted.promise,
    get parts() {
      return parts
    },
    get text() {
      return textOf(parts)
    },
    get cursor() {
      return cursor
    },
    get done() {
      // Not yet: who asks for the end may be about to iterate.
      setTimeout(() => {
        if (iterated) return
        take()
        drain().catch(() => undefined) // it is told by the promise
      })
      return done.promise
    },
    async stop() {
      const id = source.runId ?? (await accepted.promise).runId
      await transport.request('POST', pathOf`/runs/${id}/stop`, { idempotent: true })
    },
    close,
    [Symbol.asyncIterator]() {
      if (iterated) throw new Error('A reply is iterated once.')
      take()
      return {
        next,
        async return() {
          close()
          return { done: true, value: undefined }
        },
      }
    },
  }
}

/** @throws ConnectionError: an event that cannot be read is an event that was lost */
function parse(text: string): Record<string, unknown> {
  try {
    return JSON.parse(text) as Record<string, unknown>
  } catch (cause) {
    throw new ConnectionError('An event is not JSON.', { cause })
  }
}

const known: ReadonlySet<string> = new Set<keyof EventData>([
  'run',
  'part',
  'delta',
  'tool',
  'source',
  'progress',
  'artifact',
  'title',
  'usage',
  'reset',
  'done',
])
/** A later gateway may say more than this library knows of. */
const isKnown = (name: string) => known.has(name)

/** A promise that is settled from outside, and whose rejection is nobody's fault when nobody asks. */
function createPromise<T>() {
  let settle: { resolve: (value: T) => void; reject: (error: unknown) => void } | undefined
  let settled = false
  const promise = new Promise<T>((resolve, reject) => {
    settle = { resolve, reject }
  })
  promise.catch(() => undefined) // whoever waits for it is told
  return {
    promise,
    get settled() {
      return settled
    },
    resolve(value: T) {
      settled = true
      settle?.resolve(value)
    },
    reject(error: unknown) {
      settled = true
      settle?.reject(error)
    },
  }
}
