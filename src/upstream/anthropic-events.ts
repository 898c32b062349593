/**
 * The events of Anthropic's Messages: one event of the stream in, events of the port out. Pure state of one reply, no I/O.
 *
 * A reply is a row of content blocks, each of them started, grown by deltas and stopped. Text and thinking are passed on as
 * they come, whatever block they say they belong to. Tools that Anthropic runs itself (`server_tool_use` and its results) are
 * no calls of ours: only what they found is told, as sources. What nobody here knows is ignored, as Anthropic asks for.
 */
import type { Usage } from '../log/event.ts'
import { wordlessMark } from './anthropic-request.ts'
import { ChunkReader, countOf, type HeldCall, label, memberOf, replyUnitsMax, toolCallsMax } from './reader.ts'
import { errorIn, isRecord, reportedError } from './refusal.ts'

/** A block that something is still to be said of when it stops. */
interface Block {
  readonly type: 'tool_use' | 'thinking' | 'redacted_thinking'
  /** Of a tool call. */
  readonly call?: HeldCall
  /** Arguments that came with the start, in place of deltas. */
  readonly input?: unknown
  /** Something of its words or arguments came. */
  hasWords: boolean
  signature: string
}

const reasons: Readonly<Record<string, string>> = {
  end_turn: 'stop',
  stop_sequence: 'stop',
  max_tokens: 'length',
  model_context_window_exceeded: 'length',
  tool_use: 'tool_calls',
  refusal: 'content_filter',
}

export class AnthropicReader extends ChunkReader {
  readonly #blocks = new Map<unknown, Block>()
  #callCount = 0
  #hasStarted = false
  // Each count is said at most where it changes: the last one of each counts.
  #input: number | undefined
  #cacheRead: number | undefined
  #cacheWrite: number | undefined
  #output: number | undefined
  #thinking: number | undefined

  protected override readPayload(payload: Record<string, unknown>, name: string | undefined): void {
    const error = errorIn(payload)
    if (error === undefined) this.#readEvent(typeof payload.type === 'string' ? payload.type : name, payload)
    else this.failure = reportedError(error)
  }

  protected override readUnparsed(data: string, name: string | undefined): void {
    if (data === '' || (name !== undefined && name !== 'error' && !knownEvents.has(name))) return
    if (name === 'error') this.failure = reportedError(data)
    else this.fail('The provider sent an event that is not JSON.')
  }

  #readEvent(type: string | undefined, event: Record<string, unknown>): void {
    switch (type) {
      case 'message_start':
        if (isRecord(event.message)) this.#readStart(event.message)
        break
      case 'content_block_start':
        if (isRecord(event.content_block)) this.#openBlock(event.index, event.content_block)
        break
      case 'content_block_delta':
        if (isRecord(event.delta)) this.#readDelta(event.index, event.delta)
        break
      case 'content_block_stop':
        this.#closeBlock(event.index)
        break
      case 'message_delta': {
        this.#readReason(memberOf(event.delta, 'stop_reason'))
        this.#readUsage(event.usage)
        break
      }
      case 'message_stop':
        this.#closeBlocks()
        this.flushHalves()
        this.done = true
        break
    }
  }

  #readStart(message: Record<string, unknown>): void {
    this.addLabels(message.id, message.model)
    this.#readUsage(message.usage)
    // Some gateways say it twice.
    if (this.#hasStarted) return
    this.#hasStarted = true
    // What was said before a pause, and whole replies of those who only pretend to stream.
    if (Array.isArray(message.content)) {
      for (const block of message.content) {
        if (!isRecord(block)) continue
        this.#openBlock(message, block)
        this.#closeBlock(message)
      }
    }
    this.#readReason(message.stop_reason)
  }

  #openBlock(index: unknown, block: Record<string, unknown>): void {
    switch (block.type) {
      case 'text':
        if (typeof block.text === 'string') this.addText('text', block.text)
        if (Array.isArray(block.citations)) for (const citation of block.citations) this.#readCitation(citation)
        break
      case 'thinking': {
        const hasWords = typeof block.thinking === 'string' && block.thinking !== ''
        if (hasWords) this.addText('reasoning', block.thinking as string)
        this.#track(index, { type: 'thinking', hasWords, signature: textOf(block.signature) })
        break
      }
      case 'redacted_thinking':
        this.#track(index, { type: 'redacted_thinking', hasWords: false, signature: textOf(block.data) })
        break
      case 'tool_use': {
        const call = { key: String(this.#callCount++), half: '' }
        const id = label(textOf(block.id), replyUnitsMax)
        const name = label(textOf(block.name), replyUnitsMax)
        if (!this.addCall(call, id, name)) return
        this.#track(index, { type: 'tool_use', call, input: block.input, hasWords: false, signature: '' })
        break
      }
      case 'web_search_tool_result':
        if (Array.isArray(block.content)) {
          for (const result of block.content) this.addSource(memberOf(result, 'url'), memberOf(result, 'title'))
        }
        break
      case 'web_fetch_tool_result': {
        const document = memberOf(block.content, 'content')
        this.addSource(memberOf(block.content, 'url'), memberOf(document, 'title'))
        break
      }
    }
  }

  #track(index: unknown, block: Block): void {
    // A block that never stops is forgotten when there are too many: blocks follow one another.
    if (this.#blocks.size >= toolCallsMax) this.#blocks.clear()
    this.#blocks.set(index, block)
  }

  #readDelta(index: unknown, delta: Record<string, unknown>): void {
    const block = this.#blocks.get(index)
    switch (delta.type) {
      case 'text_delta':
        if (typeof delta.text === 'string') this.addText('text', delta.text)
        break
      case 'thinking_delta':
        if (typeof delta.thinking !== 'string' || delta.thinking === '') break
        if (block !== undefined) block.hasWords = true
        this.addText('reasoning', delta.thinking)
        break
      case 'signature_delta':
        if (block !== undefined && typeof delta.signature === 'string') block.signature = delta.signature
        break
      case 'input_json_delta':
        if (block?.call === undefined || typeof delta.partial_json !== 'string' || delta.partial_json === '') break
        block.hasWords = true
        this.addArguments(block.call, delta.partial_json)
        break
      case 'citations_delta':
        this.#readCitation(delta.citation)
        break
    }
  }

  /** Of a page (`url`), of a search that the caller ran (`source`), or of a document of the request. */
  #readCitation(citation: unknown): void {
    this.addSource(
      memberOf(citation, 'url') ?? memberOf(citation, 'source'),
      memberOf(citation, 'title') ?? memberOf(citation, 'document_title'),
    )
  }

  #closeBlock(index: unknown): void {
    const block = this.#blocks.get(index)
    if (block === undefined) return
    this.#blocks.delete(index)
    const { type, call, input, hasWords, signature } = block
    if (call !== undefined) {
      if (!hasWords && isRecord(input) && Object.keys(input).length > 0) this.addArguments(call, JSON.stringify(input))
    } else if (signature === '') return
    else if (type === 'redacted_thinking') this.addSignature(signature, undefined, true)
    else if (hasWords) this.addSignature(signature)
    else this.addSignature(`${wordlessMark}${signature}`, undefined, true)
  }

  /** Those that did not say that they stopped. */
  #closeBlocks(): void {
    for (const index of [...this.#blocks.keys()]) this.#closeBlock(index)
  }

  /** @param reason null until it stops */
  #readReason(reason: unknown): void {
    if (typeof reason !== 'string' || reason === '') return
    this.#closeBlocks()
    this.addFinish(Object.hasOwn(reasons, reason) ? reasons[reason]! : reason)
  }

  #readUsage(usage: unknown): void {
    if (!isRecord(usage)) return
    this.#input = countOf(usage.input_tokens) ?? this.#input
    this.#cacheRead = countOf(usage.cache_read_input_tokens) ?? this.#cacheRead
    this.#cacheWrite = countOf(usage.cache_creation_input_tokens) ?? this.#cacheWrite
    this.#output = countOf(usage.output_tokens) ?? this.#output
    this.#thinking = countOf(memberOf(usage.output_tokens_details, 'thinking_tokens')) ?? this.#thinking
    this.addUsage(this.#usage())
  }

  #usage(): Usage | undefined {
    if (this.#input === undefined && this.#output === undefined) return undefined
    // Theirs is what no cache was concerned with.
    const input = (this.#input ?? 0) + (this.#cacheRead ?? 0) + (this.#cacheWrite ?? 0)
    const output = this.#output ?? 0
    return {
      input_tokens: input,
      output_tokens: output,
      total_tokens: input + output,
      ...(this.#thinking === undefined ? {} : { reasoning_tokens: this.#thinking }),
      ...(this.#cacheRead === undefined ? {} : { cached_input_tokens: this.#cacheRead }),
      ...(this.#cacheWrite === undefined ? {} : { cache_write_tokens: this.#cacheWrite }),
    }
  }
}

const knownEvents: ReadonlySet<string> = new Set([
  'message',
  'message_start',
  'content_block_start',
  'content_block_delta',
  'content_block_stop',
  'message_delta',
  'message_stop',
])

function textOf(value: unknown): string {
  return typeof value === 'string' ? value : ''
}
