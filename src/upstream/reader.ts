/**
 * Reading one reply, whatever its provider's dialect: the base of the readers. It keeps what they share: text that is made
 * fit for the log, the bounds of a reply, what stands where an event should be (a bare error, a page), and the two facts
 * by which a reply is whole. Pure state of one reply, no I/O.
 *
 * Nothing is narrowed by a schema in a reader: it runs for every token, and an unknown member must never break a reply.
 */
import { Problem } from '../errors.ts'
import type { Usage } from '../log/event.ts'
import { errorIn, isRecord, reportedError } from './refusal.ts'
import type { UpstreamEvent } from './upstream.ts'

/** Text, reasoning, tool arguments, sources and files of a reply, in UTF-16 units. The longest known output is a quarter. */
export const replyUnitsMax = 2_000_000
/** Tool calls of one reply. */
export const toolCallsMax = 256
/** Provider's words that we only label things with: response id, model, finish reason. */
const labelUnitsMax = 256
/** A body in JSON that is there instead of a stream. */
const bodyUnitsMax = 4 * 1024 * 1024
/** Text outside the framing of SSE behind the first words, kept to find out whether it is an error in JSON. */
const strayUnitsMax = 16 * 1024
/**
 * Times that it is parsed before the stream ends, up to that length, at every line that could be its last: without this,
 * 64 KiB of brackets took 9 s.
 */
const strayParsesMax = 100
/** Lines of it before the first words, with those that are passed over: for each the parser makes an error with its stack. */
const strayLinesMax = 10_000
const notAStream = 'The provider answered something that is not a stream.'
/** Of a source: it is what a person reads under the reply. */
const sourceTitleUnitsMax = 500
const urlUnitsMax = 8192

/** Half of a surrogate pair that waits for the other half in the next piece of the same part. */
export interface Held {
  half: string
}

/** A tool call that is under way, as all dialects know it. */
export interface HeldCall extends Held {
  readonly key: string
}

/** @typeParam Extra events beside those of the port: an agent has more to say than a model */
export abstract class ReplyReader<Extra = never> {
  /** Read and not yet taken; whoever takes them empties it. */
  readonly events: (UpstreamEvent | Extra)[] = []
  /** The reply cannot go on. What is in `events` came before. */
  failure: Problem | undefined
  /** The provider gave a finish reason. Its usage may still come. */
  finished = false
  /** The end marker came: nothing more will. */
  done = false

  protected hasPart = false
  readonly #text: Held = { half: '' }
  readonly #reasoning: Held = { half: '' }
  readonly #calls: HeldCall[] = []
  readonly #sources = new Set<string>()
  #units = 0
  #id = ''
  #model = ''
  #usage: Usage | undefined
  #reason = ''
  #stray = ''
  #strayParses = 0
  #strayLines = 0

  /** Whether the provider said that the reply is whole. An end marker after nothing at all is no reply. */
  get complete(): boolean {
    return this.finished || (this.done && this.hasPart)
  }

  /** Reads the data of one SSE event. @param name its `event:` field */
  abstract readData(data: string, name: string | undefined): void

  /** Reads a line that is not SSE: an `error:` field, JSON without framing, or the first line of a page. */
  readStray(field: string | undefined, value: string, line: string): void {
    if (this.done || this.failure !== undefined) return
    if (field === 'error') {
      this.failure = reportedError(errorIn(parse(value)) ?? parse(value))
      return
    }
    if (!this.hasPart && ++this.#strayLines > strayLinesMax) {
      this.fail(notAStream)
      return
    }
    const start = line.trimStart()
    if (this.#stray === '' && !/^(?:\{|\[\s*(?:\{|$))/.test(start)) {
      // Unknown fields are to be ignored (WHATWG HTML, 9.2.6), but a page is not a stream with unknown fields.
      if (start.startsWith('<')) this.fail(notAStream)
      return
    }
    const isFirstLine = this.#stray === ''
    this.#stray += `${line}\n`
    if (this.#stray.length > (this.hasPart ? strayUnitsMax : bodyUnitsMax)) this.fail(notAStream)
    else if (
      /[}\]]\s*$/.test(line.slice(-16)) &&
      (isFirstLine || this.#stray.length <= strayUnitsMax) &&
      ++this.#strayParses <= strayParsesMax
    ) {
      this.#readStrays()
    }
  }

  /** The stream has ended: what stands outside its framing is whole now. */
  readEnd(): void {
    if (this.#stray !== '' && !this.done && this.failure === undefined) this.#readStrays()
  }

  #readStrays(): void {
    const body = parse(this.#stray)
    if (body === undefined) return
    this.#stray = ''
    this.#strayParses = 0
    const error = errorIn(body)
    if (error !== undefined) this.failure = reportedError(error)
    else if (!this.readBody(body)) this.fail(notAStream)
  }

  /** Reads JSON that came without the framing of SSE and is no error. @returns false when it is nothing of this dialect */
  protected readBody(_body: unknown): boolean {
    return false
  }

  /** One line or event of the stream was longer than is read. */
  readOverlong(unitsMax: number): void {
    this.failure ??= new Problem('too_large', `An event of the reply grew beyond ${unitsMax} characters.`)
  }

  protected addLabels(id: unknown, model: unknown): void {
    // Azure begins with a chunk whose id and model are ''.
    const hasId = typeof id === 'string' && id !== '' && id !== this.#id
    const hasModel = typeof model === 'string' && model !== '' && model !== this.#model
    if (!hasId && !hasModel) return
    if (hasId) this.#id = id
    if (hasModel) this.#model = model
    this.events.push({
      type: 'response',
      ...(this.#id === '' ? {} : { id: label(this.#id) }),
      ...(this.#model === '' ? {} : { model: label(this.#model) }),
    })
  }

  protected addText(type: 'text' | 'reasoning', piece: string): void {
    if (piece === '') return
    const text = cleanText(type === 'text' ? this.#text : this.#reasoning, piece)
    if (text === '' || !this.grow(text.length)) return
    this.hasPart = true
    this.events.push({ type, text })
  }

  /**
   * Begins a tool call.
   * @returns false when there are too many, and the reply has failed
   */
  protected addCall(call: HeldCall, id: string, name: string): boolean {
    if (this.#calls.length >= toolCallsMax) {
      this.failure ??= new Problem('too_large', `The reply made more than ${toolCallsMax} tool calls.`)
      return false
    }
    this.#calls.push(call)
    if (!this.grow(id.length + name.length)) return false
    this.hasPart = true
    this.events.push({
      type: 'tool_call',
      key: call.key,
      ...(id === '' ? {} : { callId: id }),
      ...(name === '' ? {} : { name }),
      arguments: '',
    })
    return true
  }

  /** @returns what was added: without U+0000 and halves of characters */
  protected addArguments(call: HeldCall, piece: string): string {
    const text = piece === '' ? '' : cleanText(call, piece)
    if (text === '' || !this.grow(text.length)) return ''
    this.events.push({ type: 'tool_call', key: call.key, arguments: text })
    return text
  }

  /** Seals what was said last, or the call. @param redacted it seals reasoning that is not shown */
  protected addSignature(signature: string, call?: HeldCall, redacted = false): void {
    if (signature === '' || !this.grow(signature.length)) return
    // What it seals ends with it: no other half can follow.
    if (call === undefined) this.flushHalves()
    this.hasPart = true
    this.events.push({
      type: 'signature',
      signature: label(signature, replyUnitsMax),
      ...(call === undefined ? {} : { key: call.key }),
      ...(redacted ? { redacted } : {}),
    })
  }

  /** Named again, and with neither a title nor an address on the web, a source is left out: a viewer is to open it. */
  protected addSource(url: unknown, title: unknown): void {
    const address = webAddress(url, 'http')
    const name = typeof title === 'string' ? label(title, sourceTitleUnitsMax) : ''
    const source = address ?? name
    if (source === '' || this.#sources.has(source) || !this.grow(source.length + name.length)) return
    this.#sources.add(source)
    this.hasPart = true
    this.events.push({
      type: 'source',
      ...(address === undefined ? {} : { url: address }),
      ...(name === '' ? {} : { title: name }),
    })
  }

  /** @param url what is neither https: nor data: is left out */
  protected addFile(mediaType: unknown, url: unknown): void {
    if (typeof mediaType !== 'string' || !/^[\w.+-]{1,64}\/[\w.+-]{1,128}$/.test(mediaType)) return
    const address =
      typeof url === 'string' && url.startsWith('data:') ? label(url, replyUnitsMax + 1) : webAddress(url, 'https')
    if (address === undefined || !this.grow(address.length)) return
    this.hasPart = true
    this.events.push({ type: 'file', mediaType, url: address })
  }

  /** @param usage undefined, and what was said before, are not said again */
  protected addUsage(usage: Usage | undefined): void {
    if (usage === undefined || sameUsage(usage, this.#usage)) return
    this.#usage = usage
    this.events.push({ type: 'usage', usage })
  }

  /** The provider gave its reason to stop: the reply is whole. @param reason in the words of the port */
  protected addFinish(reason: string): void {
    this.flushHalves()
    this.finished = true
    const word = label(reason)
    if (word === this.#reason) return
    this.#reason = word
    this.events.push({ type: 'finish', reason: word })
  }

  /** The held half of a character will not be completed: the provider has said all. */
  protected flushHalves(): void {
    if (this.#reasoning.half !== '') this.#flushHalf(this.#reasoning, 'reasoning')
    if (this.#text.half !== '') this.#flushHalf(this.#text, 'text')
    for (const call of this.#calls) {
      if (call.half === '') continue
      call.half = ''
      this.events.push({ type: 'tool_call', key: call.key, arguments: '\ufffd' })
    }
  }

  #flushHalf(held: Held, type: 'text' | 'reasoning'): void {
    held.half = ''
    this.hasPart = true
    this.events.push({ type, text: '\ufffd' })
  }

  /** @returns false when the reply has grown too large, and has failed */
  protected grow(units: number): boolean {
    this.#units += units
    if (this.#units <= replyUnitsMax) return true
    this.failure ??= new Problem('too_large', `The reply grew beyond ${replyUnitsMax} characters.`)
    return false
  }

  protected fail(detail: string): void {
    // After the finish reason only the usage can be missing: what is garbled there does not unmake the reply.
    if (this.finished) this.done = true
    else this.failure ??= new Problem('upstream_unavailable', detail)
  }
}

/** The base of the readers whose events are objects of JSON, with or without a `[DONE]` at the end. */
export abstract class ChunkReader extends ReplyReader {
  override readData(data: string, name: string | undefined): void {
    if (this.done || this.failure !== undefined) return
    let payload: unknown
    try {
      payload = JSON.parse(data)
    } catch {
      // The parser's error quotes the text: it must not become a cause.
      this.readUnparsed(data.trim(), name)
      return
    }
    const error = name === 'error' ? (errorIn(payload) ?? payload) : isRecord(payload) ? undefined : errorIn(payload)
    if (error !== undefined) this.failure = reportedError(error)
    else if (isRecord(payload)) this.readPayload(payload, name)
    else this.fail('The provider sent a chunk that is not an object.')
  }

  /** Reads one event; whether it reports an error is for the dialect to say. @param name its `event:` field */
  protected abstract readPayload(payload: Record<string, unknown>, name: string | undefined): void

  /** The end marker came. */
  protected readMark(): void {
    this.done = true
  }

  protected readUnparsed(data: string, name: string | undefined): void {
    if (data === '') return
    if (data === '[DONE]') this.readMark()
    else if (name === 'error') this.failure = reportedError(data)
    // Events of other names are the provider's own affair.
    else if (name === undefined || name === 'message') this.fail('The provider sent a chunk that is not JSON.')
  }
}

/**
 * Makes one piece of a part fit for the log: no U+0000, no half of a surrogate pair. A half at the end is kept for the
 * next piece, because a provider that cuts its text by UTF-16 units sends the two halves in two chunks.
 */
function cleanText(held: Held, piece: string): string {
  let text = piece.includes('\0') ? piece.replaceAll('\0', '') : piece
  if (held.half !== '' && text !== '') {
    text = held.half + text
    held.half = ''
  }
  const last = text.charCodeAt(text.length - 1)
  if (last >= 0xd800 && last <= 0xdbff) {
    held.half = text.slice(-1)
    text = text.slice(0, -1)
  }
  return text.toWellFormed()
}

/** A provider's word for something, cut to what a label may have. */
export function label(text: string, unitsMax = labelUnitsMax): string {
  return text.replaceAll('\0', '').slice(0, unitsMax).toWellFormed()
}

/** @returns undefined for what is no URL of the scheme, or none that fits */
function webAddress(url: unknown, scheme: 'http' | 'https'): string | undefined {
  if (typeof url !== 'string' || url.length > urlUnitsMax || !URL.canParse(url)) return undefined
  const { protocol, href } = new URL(url)
  return protocol === 'https:' || protocol === `${scheme}:` ? href : undefined
}

export function memberOf(value: unknown, name: string): unknown {
  return isRecord(value) ? value[name] : undefined
}

/** @returns undefined for what is not JSON (yet) */
export function parse(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined // not JSON (yet): that is what the caller asks
  }
}

/** @returns undefined for what is no count of tokens */
export function countOf(value: unknown): number | undefined {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0 ? value : undefined
}

function sameUsage(a: Usage, b: Usage | undefined): boolean {
  return (
    b !== undefined &&
    a.input_tokens === b.input_tokens &&
    a.output_tokens === b.output_tokens &&
    a.total_tokens === b.total_tokens &&
    a.reasoning_tokens === b.reasoning_tokens &&
    a.cached_input_tokens === b.cached_input_tokens &&
    a.cache_write_tokens === b.cache_write_tokens
  )
}
