/**
 * One connection that brings a stream: it is opened, read piece by piece, and closed. A connection that says nothing for
 * too long is as good as broken, and so is one from before the network came back: the system may not find out for minutes.
 *
 * When the connection breaks or falls silent at an await, that await rejects with ConnectionError; when the outer signal
 * ends it, with that signal's reason. Whoever has opened it closes it, or ends the outer signal: then nothing is watched any
 * more, also where nobody reads.
 */
import { ConnectionError } from './errors.ts'
import { type ClientLimits, linkAbort, onWake } from './waiting.ts'

export interface Connection {
  readonly response: Response
  /** The next piece; undefined when the body has ended cleanly. Silence is only counted while somebody waits for it. */
  read(): Promise<Uint8Array | undefined>
  close(): void
  /** Gives the answer to somebody else who reads it: nothing is watched any more. */
  release(): Response
}

/** @param ask makes the request, and throws what it takes for a refusal */
export async function connect(
  ask: (signal: AbortSignal) => Promise<Response>,
  { answerMs, stallMs, returnStallMs }: Pick<ClientLimits, 'answerMs' | 'stallMs' | 'returnStallMs'>,
  outer?: AbortSignal,
): Promise<Connection> {
  const link = linkAbort(outer)
  let waitsSince: number | undefined
  const giveUp = (message: string) => link.abort(new ConnectionError(message, { why: 'stalled' }))
  const stopListening = onWake((why) => {
    const silent = waitsSince !== undefined && performance.now() - waitsSince > returnStallMs
    if (why === 'network' || silent) giveUp('It is from before the network came back.')
  })
  if (link.signal.aborted) stopListening()
  link.signal.addEventListener('abort', stopListening)

  function close(): void {
    link.free()
    // What is left of the body is not wanted; after its end this does nothing.
    link.abort(new ConnectionError('closed'))
  }

  async function waitFor<T>(promise: Promise<T>, ms: number): Promise<T> {
    const timer = setTimeout(giveUp, ms, `Nothing came for ${ms} ms.`)
    waitsSince = performance.now()
    try {
      return await promise
    } catch (cause) {
      if (link.signal.aborted) throw link.signal.reason
      throw cause
    } finally {
      clearTimeout(timer)
      waitsSince = undefined
    }
  }

  try {
    const response = await waitFor(ask(link.signal), answerMs)
    let reader: ReadableStreamDefaultReader<Uint8Array> | undefined
    return {
      response,
      close,
      release() {
        stopListening()
        return response
      },
      async read() {
        reader ??= response.body?.getReader()
        if (reader === undefined) return undefined
        try {
          return (await waitFor(reader.read(), stallMs)).value
        } catch (cause) {
          if (link.signal.aborted) throw cause
          throw new ConnectionError('The connection broke.', { cause })
        }
      },
    }
  } catch (error) {
    close()
    throw error
  }
}
