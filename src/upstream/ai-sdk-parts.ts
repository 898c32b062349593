/**
 * The stream parts of the AI SDK, of its specifications v2, v3 and v4: one part in, events of the port out. Pure state of
 * one reply, no I/O. The versions are told apart by the shape of what they send. What the provider ran itself (its own
 * search, its own code) is its own affair and left out; so are parts of a type that is not known here.
 */
import { Problem } from '../errors.ts'
import type { Usage } from '../log/event.ts'
import { writeSeal } from './ai-sdk-prompt.ts'
import { countOf, type HeldCall, label, memberOf, parse, ReplyReader, replyUnitsMax } from './reader.ts'
import { brokenOff, isRecord, refusedWith, reportedError } from './refusal.ts'

interface ToolCall extends HeldCall {
  /** Its arguments came as they were made; the whole of them comes once more. */
  streamed: boolean
  /** All of it has been said. */
  whole: boolean
}

/** The text or reasoning that is being said. */
interface Block {
  readonly kind: 'text' | 'reasoning'
  readonly id: unknown
  hasWords: boolean
  seal: { readonly text: string; readonly redacted: boolean } | undefined
}

export class AiSdkReader extends ReplyReader {
  readonly #calls = new Map<unknown, ToolCall>()
  /** Ids of calls that the provider answers itself. */
  readonly #executed = new Set<unknown>()
  #block: Block | undefined

  /** A part as JSON. */
  override readData(data: string): void {
    this.readPart(parse(data))
  }

  /** @returns whether it came from the provider: the first part of a stream is made before anything is heard of it */
  readPart(part: unknown): boolean {
    if (!isRecord(part)) return false
    switch (part.type) {
      case 'stream-start':
        return false
      case 'response-metadata':
        this.addLabels(part.id, part.modelId)
        break
      case 'text-start':
      case 'text-delta':
        this.#readBlock('text', part)
        break
      case 'reasoning-start':
      case 'reasoning-delta':
        this.#readBlock('reasoning', part)
        break
      case 'text-end':
      case 'reasoning-end':
        this.#readBlock(part.type === 'text-end' ? 'text' : 'reasoning', part)
        this.#endBlock()
        break
      case 'tool-input-start':
        if (part.providerExecuted === true) this.#leaveOut(part.id)
        else this.#openCall(part.id, part.toolName)
        break
      case 'tool-input-delta':
        this.#readInput(part)
        break
      case 'tool-call':
        this.#readCall(part)
        break
      case 'source':
        this.#endBlock()
        this.addSource(part.url, part.title ?? part.filename)
        break
      case 'file':
        this.#endBlock()
        this.#readFile(part)
        break
      case 'finish':
        this.#readFinish(part)
        break
      case 'error':
        this.#endBlock()
        this.failure = failureOf(part.error, true)
        break
    }
    return true
  }

  #readBlock(kind: Block['kind'], { id, delta, providerMetadata }: Record<string, unknown>): void {
    let block = this.#block
    if (block === undefined || block.kind !== kind || block.id !== id) {
      this.#endBlock()
      block = { kind, id, hasWords: false, seal: undefined }
      this.#block = block
    }
    if (typeof delta === 'string' && delta !== '') {
      block.hasWords = true
      this.addText(kind, delta)
    }
    // Undefined with nearly every token.
    if (providerMetadata !== undefined) block.seal = writeSeal(providerMetadata) ?? block.seal
  }

  /** The seal is on the whole of a block, and some packages give it with the first words. */
  #endBlock(): void {
    const block = this.#block
    this.#block = undefined
    if (block?.seal === undefined) return
    const isHidden = block.kind === 'reasoning' && (block.seal.redacted || !block.hasWords)
    if (block.hasWords || isHidden) this.addSignature(block.seal.text, undefined, isHidden)
  }

  #openCall(id: unknown, name: unknown): ToolCall | undefined {
    const known = this.#calls.get(id)
    if (known !== undefined) return known
    this.#endBlock()
    const call: ToolCall = { key: String(this.#calls.size), half: '', streamed: false, whole: false }
    const callId = typeof id === 'string' ? label(id, replyUnitsMax) : ''
    if (!this.addCall(call, callId, typeof name === 'string' ? label(name, replyUnitsMax) : '')) return undefined
    this.#calls.set(id, call)
    return call
  }

  #leaveOut(id: unknown): void {
    if (typeof id === 'string' && this.grow(id.length)) this.#executed.add(id)
  }

  #readInput({ id, delta }: Record<string, unknown>): void {
    const call = this.#calls.get(id)
    if (call === undefined || typeof delta !== 'string' || delta === '') return
    call.streamed = true
    this.addArguments(call, delta)
  }

  /** The whole call, which comes after its pieces, or in their place. */
  #readCall(part: Record<string, unknown>): void {
    if (part.providerExecuted === true || this.#executed.has(part.toolCallId)) return
    const call = this.#openCall(part.toolCallId, part.toolName)
    if (call === undefined || call.whole) return
    call.whole = true
    if (!call.streamed) {
      this.addArguments(call, typeof part.input === 'string' ? part.input : jsonOf(part.input))
    }
    const seal = writeSeal(part.providerMetadata)
    if (seal !== undefined) this.addSignature(seal.text, call)
  }

  /** v2 and v3 have base64 or bytes in `data`; v4 has an object around them, or around a URL. */
  #readFile({ mediaType, data }: Record<string, unknown>): void {
    const url = memberOf(data, 'url')
    if (url !== undefined) {
      this.addFile(mediaType, url instanceof URL ? url.href : url)
      return
    }
    const content = isRecord(data) && !(data instanceof Uint8Array) ? data.data : data
    if (typeof content === 'string') this.addFile(mediaType, `data:${mediaType};base64,${content}`)
    else if (content instanceof Uint8Array && this.grow(content.length)) {
      this.addFile(mediaType, `data:${mediaType};base64,${Buffer.from(content).toString('base64')}`)
    }
  }

  #readFinish({ finishReason, usage, providerMetadata }: Record<string, unknown>): void {
    this.#endBlock()
    this.addUsage(readUsage(usage, providerMetadata))
    const unified = isRecord(finishReason) ? finishReason.unified : finishReason
    const raw = memberOf(finishReason, 'raw')
    if (unified === 'error') {
      this.flushHalves()
      this.failure = reportedError(undefined)
    } else if (typeof unified !== 'string' || isCut(unified, finishReason, raw)) {
      this.flushHalves()
      this.failure = brokenOff(true)
    } else {
      this.addFinish(unified === 'other' && typeof raw === 'string' ? raw : unified.replace('-', '_'))
      this.done = true
    }
  }
}

/** What a model of the site's own made of it: the packages give text. */
function jsonOf(input: unknown): string {
  try {
    return JSON.stringify(input) ?? ''
  } catch {
    return '' // it is not JSON, so there are no arguments
  }
}

/** The package says that it has ended, and the provider had not: v2 has `unknown` for it, v3 a reason without the raw one. */
function isCut(unified: string, finishReason: unknown, raw: unknown): boolean {
  return unified === 'unknown' || unified === 'interrupted' || (unified === 'other' && isRecord(finishReason) && !raw)
}

/** v2 has plain numbers; v3 and v4 have an object for each direction. */
function readUsage(usage: unknown, metadata: unknown): Usage | undefined {
  if (!isRecord(usage)) return undefined
  const { inputTokens, outputTokens } = usage
  const isFlat = !isRecord(inputTokens) && !isRecord(outputTokens)
  let input = countOf(isFlat ? inputTokens : memberOf(inputTokens, 'total'))
  const output = countOf(isFlat ? outputTokens : memberOf(outputTokens, 'total'))
  if (input === undefined && output === undefined) return undefined
  const cached = countOf(isFlat ? usage.cachedInputTokens : memberOf(inputTokens, 'cacheRead'))
  const reasoning = countOf(isFlat ? usage.reasoningTokens : memberOf(outputTokens, 'reasoning'))
  let written = countOf(memberOf(inputTokens, 'cacheWrite'))
  let total = countOf(usage.totalTokens)
  const anthropic = isFlat ? memberOf(metadata, 'anthropic') : undefined
  if (isRecord(anthropic)) {
    // In v2 this package passes on Anthropic's counts, where the input is without what the cache had or took.
    written = countOf(anthropic.cacheCreationInputTokens)
    input = (input ?? 0) + (cached ?? 0) + (written ?? 0)
    total = undefined
  }
  return {
    input_tokens: input ?? 0,
    output_tokens: output ?? 0,
    total_tokens: total ?? (input ?? 0) + (output ?? 0),
    ...(reasoning === undefined ? {} : { reasoning_tokens: reasoning }),
    ...(cached === undefined ? {} : { cached_input_tokens: cached }),
    ...(written === undefined ? {} : { cache_write_tokens: written }),
  }
}

/** The request is at fault, and would be again. */
const refusingNames =
  /^AI_(InvalidArgument|InvalidPrompt|LoadAPIKey|LoadSetting|NoSuchModel|UnsupportedFunctionality)Error$/
/** An error within an error within …: the SDK wraps the one of fetch, which wraps the one of the socket. */
const causesMax = 5

/**
 * From what `doStream`, its stream or an `error` part gave. Of an APICallError only the status, the headers that say
 * when to come again and the codes in its parsed body are read: its message, URL, body and `requestBodyValues` hold the prompt.
 * @param hadAnswer the provider had been heard of
 */
export function failureOf(error: unknown, hadAnswer: boolean): Problem {
  const status = memberOf(error, 'statusCode')
  if (typeof status === 'number' && Number.isInteger(status) && status > 299 && status < 600) {
    const headers = memberOf(error, 'responseHeaders')
    const headerOf = (name: string): string | undefined => {
      const value = memberOf(headers, name)
      return typeof value === 'string' ? value : undefined
    }
    return refusedWith(status, memberOf(error, 'data'), {
      retryAfter: headerOf('retry-after'),
      retryAfterMs: headerOf('retry-after-ms'),
      date: headerOf('date'),
    })
  }
  if (!(error instanceof Error)) return hadAnswer ? reportedError(error) : brokenOff(false)
  if (refusingNames.test(error.name)) {
    return new Problem('upstream_rejected', 'The request to the provider cannot be made.')
  }
  let cause: unknown = error
  for (let depth = 0; depth < causesMax && cause instanceof Error; depth++) {
    if (typeof memberOf(cause, 'code') === 'string') break
    cause = cause.cause
  }
  return brokenOff(hadAnswer, cause)
}
