/**
 * The dialects of `chat.completion.chunk`: one payload of the stream in, events of the port out. Pure state of one
 * reply, no I/O: OpenAI, Azure, DeepSeek, Groq, Mistral, OpenRouter, vLLM and their relatives, told apart by the shape
 * of what they send and never by name. It reads choice 0 only and refuses a reply that grows beyond `replyUnitsMax`.
 *
 * Nothing is narrowed by a schema here: this runs for every token, and an unknown member must never break a reply.
 */
import { Problem } from '../errors.ts'
import type { Usage } from '../log/event.ts'
import { errorIn, isRecord, reportedError } from './refusal.ts'
import type { UpstreamEvent } from './upstream.ts'

/** Text, reasoning and tool arguments of a reply, in UTF-16 units. The longest known model output is a quarter of it. */
export const replyUnitsMax = 2_000_000
/** Tool calls of one reply. */
export const toolCallsMax = 256
/** Provider's words that we only label things with: response id, model, finish reason. */
const labelUnitsMax = 256
/** Text outside the framing of SSE that is kept to find out whether it is an error in JSON. */
const strayUnitsMax = 16 * 1024
/** Times that it is parsed, at every line that could be its last: without this, 64 KiB of brackets took 9 s. */
const strayParsesMax = 100

/** Half of a surrogate pair that waits for the other half in the next piece of the same part. */
interface Held {
  half: string
}

interface ToolCall extends Held {
  readonly key: string
  readonly index: number | undefined
  readonly id: string
  readonly name: string
  arguments: string
  /** The last payload that added to it. */
  payload: number
}

export class ChatReader {
  /** Read and not yet taken; whoever takes them empties it. */
  readonly events: UpstreamEvent[] = []
  /** The reply cannot go on. What is in `events` came before. */
  failure: Problem | undefined
  /** The provider gave a finish reason. Its usage may still come. */
  finished = false
  /** `[DONE]` came: nothing more will. */
  done = false

  readonly #text: Held = { half: '' }
  readonly #reasoning: Held = { half: '' }
  readonly #calls: ToolCall[] = []
  #units = 0
  #payloads = 0
  #hasPart = false
  #id = ''
  #model = ''
  #usage: Usage | undefined
  #reason = ''
  #stray = ''
  #strayParses = 0

  /** Whether the provider said that the reply is whole. A bare `[DONE]` after nothing at all is no reply. */
  get complete(): boolean {
    return this.finished || (this.done && this.#hasPart)
  }

  /** Reads the data of one SSE event. @param name its `event:` field */
  readData(data: string, name: string | undefined): void {
    if (this.done || this.failure !== undefined) return
    if (data === '[DONE]') {
      this.done = true
      this.#flushHalves()
      return
    }
    let payload: unknown
    try {
      payload = JSON.parse(data)
    } catch {
      // The parser's error quotes the text: it must not become a cause.
      this.#readUnparsed(data.trim(), name)
      return
    }
    if (name === 'error') {
      this.failure = reportedError(errorIn(payload) ?? payload)
    } else if (isRecord(payload)) {
      this.#readChunk(payload)
    } else {
      this.#fail('The provider sent a chunk that is not an object.')
    }
  }

  /** Reads a line that is not SSE: an `error:` field, a bare JSON body, or the first line of a page. */
  readStray(field: string | undefined, value: string, line: string): void {
    if (this.done || this.failure !== undefined) return
    if (field === 'error') {
      this.failure = reportedError(errorIn(parse(value)) ?? parse(value))
      return
    }
    const start = line.trimStart()
    if (this.#stray === '' && !start.startsWith('{')) {
      // Unknown fields are to be ignored (WHATWG HTML, 9.2.6), but a page is not a stream with unknown fields.
      if (start.startsWith('<')) this.#fail('The provider answered something that is not a stream.')
      return
    }
    if (this.#stray.length + line.length > strayUnitsMax) {
      this.#fail('The provider answered something that is not a stream.')
      return
    }
    this.#stray += `${line}\n`
    if (!line.trimEnd().endsWith('}')) return
    if (++this.#strayParses > strayParsesMax) {
      this.#fail('The provider answered something that is not a stream.')
      return
    }
    const body = parse(this.#stray)
    if (body === undefined) return
    const error = errorIn(body)
    if (error === undefined) this.#fail('The provider answered something that is not a stream.')
    else this.failure = reportedError(error)
  }

  /** One line or event of the stream was longer than is read. */
  readOverlong(unitsMax: number): void {
    this.failure ??= new Problem('too_large', `An event of the reply grew beyond ${unitsMax} characters.`)
  }

  #readUnparsed(data: string, name: string | undefined): void {
    if (data === '') return
    if (data === '[DONE]') this.readData(data, name)
    else if (name === 'error') this.failure = reportedError(data)
    // Events of other names are the provider's own affair.
    else if (name === undefined || name === 'message') this.#fail('The provider sent a chunk that is not JSON.')
  }

  #readChunk(chunk: Record<string, unknown>): void {
    this.#payloads++
    this.#readLabels(chunk)
    const choice = firstChoice(chunk.choices)
    if (choice !== undefined) {
      const delta = choice.delta
      if (isRecord(delta)) this.#readDelta(delta)
      // Some providers say '' where OpenAI says null.
      const reason = choice.finish_reason
      if (typeof reason === 'string' && reason !== '') this.#readReason(reason)
    }
    // Groq sends its usage twice in one chunk and Moonshot within the choice: counted once, the plain place first.
    const usage = chunk.usage ?? memberOf(chunk.x_groq, 'usage') ?? choice?.usage
    if (isRecord(usage)) this.#readUsage(usage)
    const error = errorIn(chunk)
    if (error !== undefined) this.failure = reportedError(error)
  }

  #readLabels(chunk: Record<string, unknown>): void {
    const { id, model } = chunk
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

  #readDelta(delta: Record<string, unknown>): void {
    // DeepSeek's name, then Groq's and OpenRouter's. vLLM sends both with the same text, and OpenRouter repeats it in
    // `reasoning_details`: exactly one of them is read.
    const reasoning = delta.reasoning_content || delta.reasoning
    if (typeof reasoning === 'string') this.#addText('reasoning', reasoning)

    const content = delta.content
    if (typeof content === 'string') this.#addText('text', content)
    else if (Array.isArray(content)) this.#readContentParts(content)

    // What the model says instead of an answer is still what the user is to read.
    if (typeof delta.refusal === 'string') this.#addText('text', delta.refusal)

    if (Array.isArray(delta.tool_calls)) {
      for (const piece of delta.tool_calls) if (isRecord(piece)) this.#readToolCall(piece)
    }
    // The form before tool_calls: at most one, without id or index.
    if (isRecord(delta.function_call)) this.#readToolCall({ index: -1, function: delta.function_call })
  }

  /** Mistral: `[{type:'thinking', thinking:[{type:'text', text}]}, {type:'text', text}]`. */
  #readContentParts(parts: readonly unknown[]): void {
    for (const part of parts) {
      if (!isRecord(part)) continue
      if (part.type === 'thinking') {
        const thinking = part.thinking
        if (typeof thinking === 'string') this.#addText('reasoning', thinking)
        else if (Array.isArray(thinking)) {
          for (const piece of thinking) {
            const text = memberOf(piece, 'text')
            if (typeof text === 'string') this.#addText('reasoning', text)
          }
        }
      } else if (part.type === 'text' && typeof part.text === 'string') this.#addText('text', part.text)
    }
  }

  #addText(type: 'text' | 'reasoning', piece: string): void {
    if (piece === '') return
    const text = cleanText(type === 'text' ? this.#text : this.#reasoning, piece)
    if (text === '' || !this.#grow(text.length)) return
    this.#hasPart = true
    this.events.push({ type, text })
  }

  #readToolCall(piece: Record<string, unknown>): void {
    const fn = isRecord(piece.function) ? piece.function : {}
    const index = typeof piece.index === 'number' ? piece.index : undefined
    const id = typeof piece.id === 'string' ? label(piece.id, replyUnitsMax) : ''
    const name = typeof fn.name === 'string' ? label(fn.name, replyUnitsMax) : ''
    // Ollama once sent the arguments parsed.
    const raw =
      typeof fn.arguments === 'string' ? fn.arguments : isRecord(fn.arguments) ? JSON.stringify(fn.arguments) : ''

    let call = this.#findCall(index, id, name)
    if (call !== undefined && name !== '' && this.#beginsAnother(call, index, id, raw)) call = undefined
    const isNew = call === undefined
    if (call === undefined) {
      if (id === '' && name === '' && raw === '') return
      if (this.#calls.length >= toolCallsMax) {
        this.failure ??= new Problem('too_large', `The reply made more than ${toolCallsMax} tool calls.`)
        return
      }
      call = { key: String(this.#calls.length), index, id, name, arguments: '', payload: this.#payloads, half: '' }
      this.#calls.push(call)
    }
    call.payload = this.#payloads
    const text = raw === '' ? '' : cleanText(call, raw)
    if (!isNew && text === '') return
    if (!this.#grow(text.length + (isNew ? id.length + name.length : 0))) return
    call.arguments += text
    this.#hasPart = true
    this.events.push({
      type: 'tool_call',
      key: call.key,
      ...(isNew && id !== '' ? { callId: id } : {}),
      ...(isNew && name !== '' ? { name } : {}),
      arguments: text,
    })
  }

  /** The newest call that a piece with these labels can belong to. */
  #findCall(index: number | undefined, id: string, name: string): ToolCall | undefined {
    if (index !== undefined) return this.#calls.findLast((call) => call.index === index)
    if (id !== '') return this.#calls.findLast((call) => call.id === id)
    return name === '' ? this.#calls.at(-1) : undefined
  }

  /**
   * A piece with a name, where a call is already known under its index or id. Gemini gives every parallel call index 0,
   * some servers give every call the same id, and others repeat id and name with every piece of one call.
   */
  #beginsAnother(call: ToolCall, index: number | undefined, id: string, raw: string): boolean {
    if (call.payload === this.#payloads) return true
    if (index !== undefined && id !== '' && call.id !== '') return id !== call.id
    // Arguments that are whole cannot go on. The brace first: parsing a long text for every piece would be quadratic.
    return raw !== '' && call.arguments.endsWith('}') && parse(call.arguments) !== undefined
  }

  #readReason(reason: string): void {
    // The held half of a character will not be completed: the provider has said all.
    this.#flushHalves()
    if (reason === 'error') {
      this.failure = reportedError(undefined)
      return
    }
    this.finished = true
    const word = reason === 'function_call' ? 'tool_calls' : label(reason)
    if (word === this.#reason) return
    this.#reason = word
    this.events.push({ type: 'finish', reason: word })
  }

  #readUsage(raw: Record<string, unknown>): void {
    const usage = readUsage(raw)
    if (usage === undefined || sameUsage(usage, this.#usage)) return
    this.#usage = usage
    this.events.push({ type: 'usage', usage })
  }

  #flushHalves(): void {
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
    this.#hasPart = true
    this.events.push({ type, text: '\ufffd' })
  }

  #grow(units: number): boolean {
    this.#units += units
    if (this.#units <= replyUnitsMax) return true
    this.failure ??= new Problem('too_large', `The reply grew beyond ${replyUnitsMax} characters.`)
    return false
  }

  #fail(detail: string): void {
    // After the finish reason only the usage can be missing: what is garbled there does not unmake the reply.
    if (this.finished) this.done = true
    else this.failure ??= new Problem('upstream_unavailable', detail)
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

function label(text: string, unitsMax = labelUnitsMax): string {
  return text.replaceAll('\0', '').slice(0, unitsMax).toWellFormed()
}

function firstChoice(choices: unknown): Record<string, unknown> | undefined {
  if (!Array.isArray(choices)) return undefined
  for (const choice of choices) {
    if (isRecord(choice) && (choice.index === 0 || choice.index === undefined)) return choice
  }
  return undefined
}

function memberOf(value: unknown, name: string): unknown {
  return isRecord(value) ? value[name] : undefined
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined // not JSON (yet): that is what the caller asks
  }
}

function countOf(value: unknown): number | undefined {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0 ? value : undefined
}

function readUsage(raw: Record<string, unknown>): Usage | undefined {
  const input = countOf(raw.prompt_tokens) ?? countOf(raw.input_tokens)
  const output = countOf(raw.completion_tokens) ?? countOf(raw.output_tokens)
  if (input === undefined && output === undefined) return undefined
  const outputDetails = raw.completion_tokens_details ?? raw.output_tokens_details
  const inputDetails = raw.prompt_tokens_details ?? raw.input_tokens_details
  const reasoning = countOf(memberOf(outputDetails, 'reasoning_tokens')) ?? countOf(raw.reasoning_tokens)
  const cached =
    countOf(memberOf(inputDetails, 'cached_tokens')) ??
    countOf(raw.prompt_cache_hit_tokens) ??
    countOf(raw.cached_tokens)
  return {
    input_tokens: input ?? 0,
    output_tokens: output ?? 0,
    total_tokens: countOf(raw.total_tokens) ?? (input ?? 0) + (output ?? 0),
    ...(reasoning === undefined ? {} : { reasoning_tokens: reasoning }),
    ...(cached === undefined ? {} : { cached_input_tokens: cached }),
  }
}

function sameUsage(a: Usage, b: Usage | undefined): boolean {
  return (
    b !== undefined &&
    a.input_tokens === b.input_tokens &&
    a.output_tokens === b.output_tokens &&
    a.total_tokens === b.total_tokens &&
    a.reasoning_tokens === b.reasoning_tokens &&
    a.cached_input_tokens === b.cached_input_tokens
  )
}
