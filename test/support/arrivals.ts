/**
 * A body that streams, read as it arrives: what a test's client makes of its events, all its text, and how it ended. Whoever
 * waits for something that has not come when the body ends is told so, with the last of what came.
 */
import { createParser, type EventSourceMessage } from 'eventsource-parser'

export interface Arrivals<One> {
  /** Everything so far. */
  readonly received: readonly One[]
  /** The raw bytes so far, as text. */
  readonly text: () => string
  /** Resolves with the first one for which `found` is true, now or when it comes. */
  until(found: (one: One) => boolean): Promise<One>
  /** Resolves when the body has ended: `clean`, or `cut` when the connection broke. */
  readonly ended: Promise<'clean' | 'cut'>
}

/** @param read makes something of an event; undefined when it is nothing that a test waits for */
export function readArrivals<One>(
  response: Response,
  read: (event: EventSourceMessage) => One | undefined,
): Arrivals<One> {
  const received: One[] = []
  const waiters: { found: (one: One) => boolean; resolve: (one: One) => void; reject: (e: Error) => void }[] = []
  let raw = ''
  const parser = createParser({
    onEvent(event) {
      const one = read(event)
      if (one === undefined) return
      received.push(one)
      for (const waiter of waiters) if (waiter.found(one)) waiter.resolve(one)
    },
  })
  const isStream = response.headers.get('content-type')?.startsWith('text/event-stream') === true

  async function readBody(): Promise<'clean' | 'cut'> {
    const decoder = new TextDecoder()
    try {
      for await (const bytes of response.body ?? []) {
        const text = decoder.decode(bytes, { stream: true })
        raw += text
        if (isStream) parser.feed(text)
      }
      return 'clean'
    } catch {
      return 'cut' // whatever undici calls it: the body did not end as it should
    } finally {
      for (const waiter of waiters) waiter.reject(new Error(`the stream ended first; it said: ${raw.slice(-500)}`))
    }
  }

  return {
    received,
    text: () => raw,
    ended: readBody(),
    until(found) {
      const known = received.find(found)
      if (known !== undefined) return Promise.resolve(known)
      return new Promise((resolve, reject) => waiters.push({ found, resolve, reject }))
    },
  }
}
