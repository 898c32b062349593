/**
 * How long the library waits, for what, and what ends a wait early: the network that comes back, and the reader who does.
 * Everything is bounded by a named limit. In Node there is no page and no network event, and only the times count.
 */
export interface ClientLimits {
  /** From a request to the first bytes of its answer. */
  readonly answerMs: number
  /** For `token`, where that is a function. Less than the whole request has, so that it is told which of them was late. */
  readonly tokenMs: number
  /** Silence after which a stream is as good as broken. The gateway says something each 15 s at least. */
  readonly stallMs: number
  /** The same when the reader comes back to the page: a suspended machine finds out late that its connections are gone. */
  readonly returnStallMs: number
  readonly backOffFirstMs: number
  readonly backOffMaxMs: number
  /** How often a message is sent until somebody has to decide: about ten seconds, with the back-off as it is. */
  readonly sendAttemptsMax: number
  /** How often a request that can be repeated is made. */
  readonly requestAttemptsMax: number
  /** Connections in a row that bring nothing, after which a reply is given up: about three hours. */
  readonly resumeAttemptsMax: number
  /** How often a reply is taken from its beginning because something of it was missed. */
  readonly restartsMax: number
  /** How long a reply's connection is kept for somebody to read from it: as long as the gateway waits for a reader. */
  readonly unreadMs: number
  /** A whole export. */
  readonly exportMs: number
  /** A whole reply can come in one `reset`. What is longer than this is not from the gateway. */
  readonly eventCharsMax: number
}

export const defaultLimits: ClientLimits = {
  answerMs: 20_000,
  tokenMs: 15_000,
  stallMs: 45_000,
  returnStallMs: 20_000,
  backOffFirstMs: 300,
  backOffMaxMs: 10_000,
  sendAttemptsMax: 6,
  requestAttemptsMax: 3,
  resumeAttemptsMax: 1000,
  restartsMax: 10,
  unreadMs: 30_000,
  exportMs: 300_000,
  eventCharsMax: 32 * 1024 * 1024,
}

/** Less than this would be no wait. */
const waitMsMin = 100
/** 2 to the power of this is more than any wait. */
const doublingsMax = 10

export type BackOff = ReturnType<typeof createBackOff>

export function createBackOff(limits: Pick<ClientLimits, 'backOffFirstMs' | 'backOffMaxMs'>) {
  let firstMs = limits.backOffFirstMs
  let failures = 0
  let growing = false
  const within = (ms: unknown) => Math.min(Math.max(Number(ms) || 0, Math.min(waitMsMin, firstMs)), limits.backOffMaxMs)

  return {
    /** Any wait that somebody asks for, within the limits. */
    within,
    /** @param askedMs a `Retry-After`, which is kept to within the limits */
    nextMs(askedMs = 0): number {
      const ms = within(firstMs * 2 ** Math.min(failures, doublingsMax))
      failures += 1
      // Half of it at random, so that the clients which one restart cut off do not all come back in the same instant.
      return Math.max(askedMs > 0 ? within(askedMs) : 0, ms / 2 + (Math.random() * ms) / 2)
    },
    /** The stream's own `retry:`. */
    setFirstMs(ms: number): void {
      firstMs = within(ms)
    },
    /** Something has come: the next failure is a first one. */
    reset(): void {
      if (!growing) failures = 0
    },
    /** For what would happen again each time, and so should happen less and less often. */
    keepGrowing(): void {
      growing = true
    },
  }
}

/** What a browser has, and Node has not. */
interface Surroundings {
  readonly document?: Target & { readonly hidden: boolean }
  readonly addEventListener?: Target['addEventListener']
  readonly removeEventListener?: Target['removeEventListener']
}

interface Target {
  addEventListener(name: string, listener: (event: { readonly persisted?: boolean }) => void): void
  removeEventListener(name: string, listener: (event: { readonly persisted?: boolean }) => void): void
}

/**
 * @param wake called with `network` when what was open before cannot be relied on any more (the network is another one, or
 * the page comes out of the browser's cache), with `return` when the reader looks at the page again
 * @returns what ends it
 */
export function onWake(wake: (why: 'network' | 'return') => void): () => void {
  const around = globalThis as unknown as Surroundings
  const { document } = around
  const online = () => wake('network')
  const show = (event: { readonly persisted?: boolean }) => event.persisted === true && wake('network')
  const look = () => document?.hidden === false && wake('return')
  around.addEventListener?.('online', online)
  around.addEventListener?.('pageshow', show)
  document?.addEventListener('visibilitychange', look)
  return () => {
    around.removeEventListener?.('online', online)
    around.removeEventListener?.('pageshow', show)
    document?.removeEventListener('visibilitychange', look)
  }
}

/** Waits, but no longer than until the network or the reader comes back. Rejects with the signal's reason. */
export function pause(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stopListening = onWake(end)
    const timer = setTimeout(end, ms)
    signal?.addEventListener('abort', end)
    if (signal?.aborted) end()

    function end(): void {
      clearTimeout(timer)
      stopListening()
      signal?.removeEventListener('abort', end)
      if (signal?.aborted) reject(signal.reason)
      else resolve()
    }
  })
}

/** What `promise` becomes, or the signal's reason when that comes first: nobody else can be made to give up. */
export function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    const end = () => reject(signal.reason)
    if (signal.aborted) end()
    signal.addEventListener('abort', end)
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', end))
  })
}

export type LinkedAbort = ReturnType<typeof linkAbort>

/** An end of its own that comes with `outer`'s at the latest. `AbortSignal.any` is younger than the browsers that come. */
export function linkAbort(outer: AbortSignal | undefined) {
  const controller = new AbortController()
  const follow = () => controller.abort(outer?.reason)
  if (outer?.aborted) follow()
  else outer?.addEventListener('abort', follow)
  return {
    signal: controller.signal,
    abort(reason: unknown): void {
      controller.abort(reason)
    },
    /** A signal that lives long must not hold on to all that ever followed it. */
    free(): void {
      outer?.removeEventListener('abort', follow)
    },
  }
}
