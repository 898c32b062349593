/**
 * One HTTP POST to a provider and the waits it is allowed: it knows bytes and time, not what the bytes mean.
 *
 * The exchange owns the socket's half of the reply: a queue of received bytes and one timer for the wait at hand (first
 * byte, then idle, then whatever `limitWait` sets) beside one for the whole. It is a handler of undici's `dispatch` and
 * not a stream, because a Readable that is destroyed by a reset throws away what it had received before: here the queue
 * outlives the connection, so that every byte the kernel gave us is read, and a `[DONE]` before a reset counts.
 *
 * The only wait is `wait`: it ends when bytes came, when the exchange has ended (by the provider, by a limit or by
 * `cut`), and never otherwise. It is a callback and not a promise, because it stands between any two tokens; for the same
 * reason no timer is set for it, but the moment is noted when it began, and the timer that runs anyway looks at that.
 * A reader that is elsewhere holds nothing up: past `queueBytesMax` the socket is paused, and the idle limit does not
 * count against a provider that we are not listening to. Redirects are not followed.
 */
import type { Dispatcher } from 'undici'
import { Problem } from '../errors.ts'

/** Received and not yet read: above it the socket is paused, below half of it resumed. */
const queueBytesMax = 256 * 1024

export interface ExchangeOptions {
  readonly dispatcher: Dispatcher
  readonly url: URL
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
  /** Covers the connection, the status and the first byte of the body. */
  readonly firstByteMs: number
  readonly idleMs: number
  readonly totalMs: number
}

export interface Head {
  readonly status: number
  /** Three headers that say together how long the provider asks to be left alone. */
  readonly retryAfter: string | undefined
  readonly retryAfterMs: string | undefined
  readonly date: string | undefined
}

export interface Exchange {
  /** Undefined until the provider has answered. */
  readonly head: Head | undefined
  /** Nothing more will be received. What is queued can still be taken. */
  readonly ended: boolean
  /** Why it ended: undefined for a clean end, the Problem of a limit, what `cut` was given, or the connection's error. */
  readonly error: unknown
  /** @returns the next received bytes; undefined when there are none at present */
  take(): Uint8Array | undefined
  /**
   * Calls `wake` once, when there is something to take, a head to look at, or an end: at once when there is. It must not
   * throw. One waiter at a time.
   */
  wait(wake: () => void): void
  /** From now on one wait may last `ms` in all, whatever comes; then the exchange ends without an error. */
  limitWait(ms: number): void
  /** Destroys the socket, drops what is queued, and ends the exchange with `reason`. Harmless when it has ended. */
  cut(reason: unknown): void
  /** Stops the timers and destroys what is still open. */
  close(): void
}

/** Sends the request at once. Failures are found in `error`; it does not throw. */
export function openExchange(options: ExchangeOptions): Exchange {
  const { firstByteMs, idleMs, totalMs } = options
  let head: Head | undefined
  let ended = false
  let error: unknown
  let controller: Dispatcher.DispatchController | undefined
  let paused = false
  let queue: Uint8Array[] = []
  let queueBytes = 0
  let wake: (() => void) | undefined
  let phase: 'first byte' | 'idle' | 'last' = 'first byte'
  let limitMs = firstByteMs
  // Of the limit at hand; for the idle one, of the wait at hand.
  let limitFrom = performance.now()

  const total = setTimeout(
    () => end(new Problem('upstream_timeout', `The reply took longer than ${totalMs} ms.`)),
    totalMs,
  )
  let limit = setTimeout(onLimit, firstByteMs)

  function onLimit(): void {
    const isElsewhere = wake === undefined && phase !== 'first byte'
    const leftMs = limitFrom + limitMs - performance.now()
    // Whoever is elsewhere has the whole time again when it comes to wait.
    if (isElsewhere || leftMs > 0) limit = setTimeout(onLimit, isElsewhere ? limitMs : leftMs)
    else if (phase === 'last') end(undefined)
    else if (phase === 'idle') end(new Problem('upstream_timeout', `The provider fell silent for ${idleMs} ms.`))
    else end(new Problem('upstream_timeout', `The provider sent no first byte within ${firstByteMs} ms.`))
  }

  function setLimit(next: typeof phase, ms: number): void {
    clearTimeout(limit)
    phase = next
    limitMs = ms
    limitFrom = performance.now()
    limit = setTimeout(onLimit, ms)
  }

  function end(reason: unknown): void {
    if (ended) return
    ended = true
    error = reason
    clearTimeout(limit)
    clearTimeout(total)
    // undici reports this abort to onResponseError, which finds the exchange ended.
    controller?.abort(reason instanceof Error ? reason : new Error('The exchange has ended'))
    wakeUp()
  }

  function wakeUp(): void {
    const waiter = wake
    wake = undefined
    waiter?.()
  }

  const handler: Dispatcher.DispatchHandler = {
    onRequestStart(started) {
      controller = started
      // Cut while it was connecting or queued: undici knows no earlier moment to abort.
      if (ended) started.abort(new Error('The exchange has ended'))
    },
    onResponseStart(_, status, headers) {
      if (ended || status < 200) return
      head = {
        status,
        retryAfter: firstOf(headers['retry-after']),
        retryAfterMs: firstOf(headers['retry-after-ms']),
        date: firstOf(headers.date),
      }
      wakeUp()
    },
    onResponseData(_, bytes) {
      if (ended) return
      if (phase === 'first byte') setLimit('idle', idleMs)
      queue.push(bytes)
      queueBytes += bytes.length
      if (queueBytes > queueBytesMax) {
        paused = true
        controller?.pause()
      }
      wakeUp()
    },
    onResponseEnd() {
      if (ended) return
      // Before `end` would abort it: an exchange that came to its own end leaves its socket to the next one.
      controller = undefined
      end(undefined)
    },
    onResponseError(_, reason) {
      controller = undefined
      end(reason)
    },
  }

  options.dispatcher.dispatch(
    {
      origin: options.url.origin,
      path: options.url.pathname + options.url.search,
      method: 'POST',
      headers: options.headers,
      body: options.body,
      headersTimeout: 0,
      bodyTimeout: 0,
    },
    handler,
  )

  return {
    get head() {
      return head
    },
    get ended() {
      return ended
    },
    get error() {
      return error
    },
    take() {
      const bytes = queue.shift()
      if (bytes === undefined) return undefined
      queueBytes -= bytes.length
      if (paused && queueBytes <= queueBytesMax / 2) {
        paused = false
        controller?.resume()
      }
      return bytes
    },
    wait(next) {
      if (ended || queue.length > 0) return next()
      if (phase === 'idle') limitFrom = performance.now()
      wake = next
    },
    limitWait(ms) {
      if (!ended) setLimit('last', ms)
    },
    cut(reason) {
      queue = []
      queueBytes = 0
      end(reason)
    },
    close() {
      end(undefined)
    },
  }
}

function firstOf(header: string | string[] | undefined): string | undefined {
  return Array.isArray(header) ? header[0] : header
}
