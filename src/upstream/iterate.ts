/**
 * From told to asked for: what tells its events to a function, as an iteration. A reply's way to its run has no promise
 * for each event (`Upstream.read`); who writes an agent, or a test, wants `for await`.
 *
 * Events wait here while the consumer is elsewhere, and `tell` returns when they have been taken: who waits for that holds
 * one piece of the reply at most, and who does not holds the reply, which has a bound of its own (`replyUnitsMax`).
 * A consumer that leaves aborts the signal that `read` was given, and goes on when `read` has ended.
 */

/** @typeParam E tells events to `tell` until it resolves, or rejects with what the iteration is to throw */
export type Read<E> = (tell: (events: readonly E[]) => Promise<void>, signal: AbortSignal) => Promise<void>

/** Begins to read at the first `next()`. */
export async function* iterate<E>(read: Read<E>, signal: AbortSignal): AsyncGenerator<E, void, undefined> {
  signal.throwIfAborted()
  const left = new AbortController()
  let told: E[] = []
  let taken = Promise.withResolvers<void>()
  let news = Promise.withResolvers<void>()
  let ended = false
  let failure: { readonly error: unknown } | undefined

  const tell = (events: readonly E[]): Promise<void> => {
    told.push(...events)
    news.resolve()
    return taken.promise
  }
  const reading = read(tell, AbortSignal.any([signal, left.signal]))
    .catch((error: unknown) => {
      failure = { error }
    })
    .finally(() => {
      ended = true
      news.resolve()
    })
  try {
    for (;;) {
      const isLast = ended
      const events = told
      told = []
      for (const event of events) {
        yield event
        // The consumer may have aborted while it held the event.
        signal.throwIfAborted()
      }
      taken.resolve()
      taken = Promise.withResolvers()
      if (isLast) break
      await news.promise
      news = Promise.withResolvers()
    }
    if (failure !== undefined) throw failure.error
  } finally {
    left.abort(new Error('The consumer has left.'))
    taken.resolve()
    await reading
  }
}
