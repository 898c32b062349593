/**
 * The adapter for models of the AI SDK (`@ai-sdk/*`, of ai 5, 6 and 7), for providers that have no adapter here. The SDK is
 * not imported: a site that wants it installs it and hands over the model that it made, and the types below are the parts
 * of it that are used. What is sent is written by ai-sdk-prompt, what comes back is read by ai-sdk-parts.
 *
 *     // verbatim.config.ts
 *     export default { upstreams: [fromAiSdk(createAmazonBedrock()('amazon.nova-pro-v1:0'), { provider: 'nova' })] }
 *
 * The socket is the SDK's: its fetch gives up by itself after 300 s of silence, it shows no comments of a stream as signs
 * of life, and `close` only aborts what is open. An upstream owns the set of its open streams; a stream owns two timers, a
 * signal that it gives to the model, and the reader of the model's parts, and frees them in its `finally`:
 *   - the caller's signal, a limit and `close` abort the model and cancel its stream, which ends a wait for a part even when
 *     the model does not follow; a `doStream` that never answers is left behind;
 *   - the model fails: what it had said before has been yielded by then;
 *   - the consumer leaves the iteration: as with the signal, without an error.
 * A reply is whole when it has a `finish` part with a reason that the provider gave. Packages say `finish` after a cut as
 * well, then with the reason `unknown` or with no reason of the provider's.
 */
import { Problem } from '../errors.ts'
import { AiSdkReader, failureOf } from './ai-sdk-parts.ts'
import { type AiSdkCall, type AiSdkModelName, toAiSdkCall } from './ai-sdk-prompt.ts'
import { usualLimits } from './http.ts'
import { brokenOff } from './refusal.ts'
import type { Upstream, UpstreamEvent, UpstreamRequest } from './upstream.ts'

/** A language model of a provider package: `LanguageModelV2`, `V3` and `V4` are such. */
export interface AiSdkModel extends AiSdkModelName {
  doStream(call: AiSdkCall): PromiseLike<{ readonly stream: AiSdkStream }>
}

export interface AiSdkStream {
  getReader(): AiSdkStreamReader
}

export interface AiSdkStreamReader {
  read(): Promise<{ readonly done: boolean; readonly value?: unknown }>
  cancel(): Promise<void>
}

export interface AiSdkOptions {
  /** As in `provider:model`; the model's own name for it when it is not named. */
  readonly provider?: string
  /** Longest wait for the first part that comes from the provider. */
  readonly firstByteMs?: number
  /** Longest silence between two parts. */
  readonly idleMs?: number
  /** Longest duration of a reply, whatever comes. */
  readonly totalMs?: number
}

const versions: readonly string[] = ['v2', 'v3', 'v4'] satisfies AiSdkModel['specificationVersion'][]

/**
 * One upstream answers one model: the name in a request is for the record only.
 * @throws TypeError when `model` is none, or of a specification that is not known here
 */
export function fromAiSdk(model: AiSdkModel, options: AiSdkOptions = {}): Upstream {
  if (!versions.includes(model?.specificationVersion) || typeof model.doStream !== 'function') {
    throw new TypeError(`fromAiSdk takes a language model of the specification ${versions.join(', ')}`)
  }
  const { provider = model.provider, firstByteMs, idleMs, totalMs } = { ...usualLimits, ...options }
  const open = new Set<Attempt>()
  let closed = false

  async function* stream(
    request: UpstreamRequest,
    signal: AbortSignal,
  ): AsyncGenerator<UpstreamEvent, void, undefined> {
    signal.throwIfAborted()
    if (closed) throw cutShort()
    const attempt = openAttempt(firstByteMs, idleMs, totalMs)
    const onAbort = () => attempt.end(signal.reason)
    signal.addEventListener('abort', onAbort, { once: true })
    open.add(attempt)
    try {
      const parts = new AiSdkReader()
      const { events } = parts
      await attempt.begin(() => model.doStream(toAiSdkCall(model, provider, request, attempt.signal)))
      while (!parts.done) {
        const next = await attempt.next()
        if (next.done) throw brokenOff(true)
        if (parts.readPart(next.value)) attempt.hear()
        for (const event of events) {
          yield event
          // The consumer may have aborted, or the clock may have passed, while it held the event.
          attempt.throwIfEnded()
        }
        events.length = 0
        if (parts.failure !== undefined) throw parts.failure
      }
    } finally {
      signal.removeEventListener('abort', onAbort)
      open.delete(attempt)
      attempt.close()
    }
  }

  return {
    provider,
    stream,
    close() {
      closed = true
      for (const attempt of open) attempt.end(cutShort())
      return Promise.resolve()
    },
  }
}

/** The waits of one reply. Whatever ends it, `begin` and `next` reject with the reason at once. */
interface Attempt {
  readonly signal: AbortSignal
  /** @throws Problem when the model refuses */
  begin(doStream: () => PromiseLike<{ readonly stream: AiSdkStream }>): Promise<void>
  /** The next part. @throws Problem when the stream fails */
  next(): Promise<{ readonly done: boolean; readonly value?: unknown }>
  /** The provider has been heard of: from now on the idle limit counts. */
  hear(): void
  end(reason: unknown): void
  throwIfEnded(): void
  close(): void
}

function openAttempt(firstByteMs: number, idleMs: number, totalMs: number): Attempt {
  const stop = new AbortController()
  const ending = Promise.withResolvers<undefined>()
  let reader: AiSdkStreamReader | undefined
  let ended: { readonly reason: unknown } | undefined
  let heard = false
  let waiting = true

  const total = setTimeout(
    () => end(new Problem('upstream_timeout', `The reply took longer than ${totalMs} ms.`)),
    totalMs,
  )
  let limit = setTimeout(onLimit, firstByteMs)

  function onLimit(): void {
    // The consumer is elsewhere: the next wait starts the limit anew.
    if (heard && !waiting) return
    const what = heard ? `fell silent for ${idleMs} ms` : `sent no first byte within ${firstByteMs} ms`
    end(new Problem('upstream_timeout', `The provider ${what}.`))
  }

  function end(reason: unknown): void {
    if (ended !== undefined) return
    ended = { reason }
    leave()
  }

  function leave(): void {
    clearTimeout(limit)
    clearTimeout(total)
    stop.abort()
    ending.resolve(undefined)
    // Ends a pending read whatever the model does. It rejects when the stream has failed, which `next` has told.
    reader?.cancel().catch(() => undefined)
  }

  function throwIfEnded(): void {
    if (ended !== undefined) throw ended.reason
  }

  return {
    signal: stop.signal,
    async begin(doStream) {
      try {
        // In a promise of its own: what it throws before its first await is a failure of the model too.
        const opening = (async () => (await doStream()).stream.getReader())()
        const opened = await Promise.race([opening, ending.promise])
        // Left behind: its stream, should it come, is cancelled, and its failure has nobody to tell.
        if (opened === undefined) opening.then((late) => late.cancel()).catch(() => undefined)
        reader = opened
      } catch (error) {
        throwIfEnded()
        throw failureOf(error, false)
      }
      throwIfEnded()
    },
    async next() {
      waiting = true
      // Not before: the first limit is on all that comes before the first part together.
      if (heard) limit.refresh()
      try {
        const part = await reader!.read()
        throwIfEnded()
        return part
      } catch (error) {
        throwIfEnded()
        throw failureOf(error, heard)
      } finally {
        waiting = false
      }
    },
    hear() {
      if (heard) return
      heard = true
      clearTimeout(limit)
      limit = setTimeout(onLimit, idleMs)
    },
    end,
    throwIfEnded,
    close() {
      ended ??= { reason: undefined }
      leave()
    },
  }
}

function cutShort(): Problem {
  return new Problem('upstream_unavailable', 'The reply broke off.')
}
