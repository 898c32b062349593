/**
 * The dialects of `chat.completion.chunk`: one payload of the stream in, events of the port out. Pure state of one
 * reply, no I/O: OpenAI, Azure, DeepSeek, Groq, Mistral, OpenRouter, vLLM and their relatives, told apart by the shape
 * of what they send and never by name. It reads choice 0 only and refuses a reply that grows beyond `replyUnitsMax`.
 */
import type { Usage } from '../log/event.ts'
import { countOf, type HeldCall, label, memberOf, parse, ReplyReader, replyUnitsMax } from './reader.ts'
import { errorIn, isRecord, reportedError } from './refusal.ts'

interface ToolCall extends HeldCall {
  readonly index: number | undefined
  readonly id: string
  arguments: string
  /** The last payload that added to it. */
  payload: number
}

export class ChatReader extends ReplyReader {
  readonly #calls: ToolCall[] = []
  #payloads = 0

  /** Reads the data of one SSE event. @param name its `event:` field */
  override readData(data: string, name: string | undefined): void {
    if (this.done || this.failure !== undefined) return
    if (data === '[DONE]') {
      this.done = true
      this.flushHalves()
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
      this.fail('The provider sent a chunk that is not an object.')
    }
  }

  #readUnparsed(data: string, name: string | undefined): void {
    if (data === '') return
    if (data === '[DONE]') this.readData(data, name)
    else if (name === 'error') this.failure = reportedError(data)
    // Events of other names are the provider's own affair.
    else if (name === undefined || name === 'message') this.fail('The provider sent a chunk that is not JSON.')
  }

  #readChunk(chunk: Record<string, unknown>): void {
    this.#payloads++
    this.addLabels(chunk.id, chunk.model)
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
    if (isRecord(usage)) this.addUsage(readUsage(usage))
    const error = errorIn(chunk)
    if (error !== undefined) this.failure = reportedError(error)
  }

  #readDelta(delta: Record<string, unknown>): void {
    // DeepSeek's name, then Groq's and OpenRouter's. vLLM sends both with the same text, and OpenRouter repeats it in
    // `reasoning_details`: exactly one of them is read.
    const reasoning = delta.reasoning_content || delta.reasoning
    if (typeof reasoning === 'string') this.addText('reasoning', reasoning)

    const content = delta.content
    if (typeof content === 'string') this.addText('text', content)
    else if (Array.isArray(content)) this.#readContentParts(content)

    // What the model says instead of an answer is still what the user is to read.
    if (typeof delta.refusal === 'string') this.addText('text', delta.refusal)

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
        if (typeof thinking === 'string') this.addText('reasoning', thinking)
        else if (Array.isArray(thinking)) {
          for (const piece of thinking) {
            const text = memberOf(piece, 'text')
            if (typeof text === 'string') this.addText('reasoning', text)
          }
        }
      } else if (part.type === 'text' && typeof part.text === 'string') this.addText('text', part.text)
    }
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
    if (call === undefined) {
      if (id === '' && name === '' && raw === '') return
      call = { key: String(this.#calls.length), index, id, arguments: '', payload: this.#payloads, half: '' }
      if (!this.addCall(call, id, name)) return
      this.#calls.push(call)
    }
    call.payload = this.#payloads
    call.arguments += this.addArguments(call, raw)
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
    if (reason === 'error') {
      this.flushHalves()
      this.failure = reportedError(undefined)
    } else this.addFinish(reason === 'function_call' ? 'tool_calls' : reason)
  }
}

function firstChoice(choices: unknown): Record<string, unknown> | undefined {
  if (!Array.isArray(choices)) return undefined
  for (const choice of choices) {
    if (isRecord(choice) && (choice.index === 0 || choice.index === undefined)) return choice
  }
  return undefined
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
