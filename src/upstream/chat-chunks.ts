/**
 * The dialects of `chat.completion.chunk`: one payload of the stream in, events of the port out. Pure state of one
 * reply, no I/O: OpenAI, Azure, DeepSeek, Groq, Mistral, OpenRouter, vLLM and their relatives, told apart by the shape
 * of what they send and never by name. It reads choice 0 only, also of a whole completion that comes instead of a
 * stream, and refuses a reply that grows beyond `replyUnitsMax`. Audio is not read.
 */
import type { Usage } from '../log/event.ts'
import { ChunkReader, countOf, type HeldCall, label, memberOf, parse, replyUnitsMax } from './reader.ts'
import { addDetail, detailsMax, detailWords, type ReasoningDetail, sealOf } from './reasoning-details.ts'
import { errorIn, isRecord, reportedError } from './refusal.ts'

interface ToolCall extends HeldCall {
  readonly index: number | undefined
  readonly id: string
  arguments: string
  /** The last payload that added to it. */
  payload: number
  sealed: boolean
}

/** Sources of one reply; a search gives ten or twenty. Those beyond are left out. */
const sourcesMax = 1000

/** Providers' words for why a model stopped, in lower case -> the port's. */
const finishReasons: ReadonlyMap<string, string> = new Map([
  ...['stop', 'end_turn', 'eos', 'eos_token', 'stop_sequence', 'complete', 'completed'].map(to('stop')),
  ...['length', 'max_tokens', 'max_length', 'max_output_tokens', 'model_length', 'token_limit'].map(to('length')),
  ...['tool_calls', 'tool_call', 'tool_use', 'function_call'].map(to('tool_calls')),
  ...['content_filter', 'content_filtered', 'safety', 'recitation', 'refusal', 'sensitive'].map(to('content_filter')),
])
/** Said by DeepSeek, vLLM, OpenRouter and Zhipu of a reply that they could not bring to its end. */
const brokenReasons: ReadonlySet<string> = new Set([
  'error',
  'abort',
  'cancelled',
  'insufficient_system_resource',
  'network_error',
])

export class ChatReader extends ChunkReader {
  readonly #model: string
  readonly #calls: ToolCall[] = []
  readonly #references = new Set<string>()
  #payloads = 0
  #hasDelta = false
  /** Blocks of reasoning that are not sealed yet. */
  #details: ReasoningDetail[] = []
  #reasonedLast = false

  /** @param model as it was asked for: what is sealed belongs to it */
  constructor(model = '') {
    super()
    this.#model = model
  }

  protected override readMark(): void {
    this.#endParts()
    super.readMark()
  }

  protected override readBody(body: unknown): boolean {
    if (!isRecord(body) || !Array.isArray(body.choices)) return false
    this.readPayload(body)
    // A message, where a chunk has a delta, is all of it; not every server says why it ends.
    if (!this.finished && isRecord(firstChoice(body.choices)?.message)) {
      this.#endParts()
      this.done = true
    }
    return true
  }

  protected override readPayload(chunk: Record<string, unknown>): void {
    this.#payloads++
    this.addLabels(chunk.id, chunk.model)
    // In front of the first words, or behind those that came with them: a source within a text would cut it in two.
    const isEarly = !this.hasPart
    if (isEarly) this.#readReferences(chunk)
    const choice = firstChoice(chunk.choices)
    if (choice !== undefined) this.#readChoice(choice)
    if (!isEarly) this.#readReferences(chunk)
    // Groq sends its usage twice in one chunk and Moonshot within the choice: counted once, the plain place first.
    const usage = chunk.usage ?? memberOf(chunk.x_groq, 'usage') ?? choice?.usage
    if (isRecord(usage)) this.addUsage(readUsage(usage))
    const error = errorIn(chunk)
    if (error !== undefined) this.failure = reportedError(error)
  }

  #readChoice(choice: Record<string, unknown>): void {
    const { delta, message } = choice
    if (isRecord(delta)) {
      this.#hasDelta = true
      this.#readDelta(delta)
    }
    if (isRecord(message)) {
      // Beside deltas it repeats all that was said (Perplexity), with what may have been in no delta.
      if (this.#hasDelta) this.#readAnnotations(message.annotations)
      else this.#readDelta(message)
    }
    // Some providers say '' where OpenAI says null.
    const reason = choice.finish_reason
    if (typeof reason === 'string' && reason !== '') this.#readReason(reason)
    // What is sealed behind the end has nothing to wait for.
    else if (this.finished) this.#seal()
  }

  #readDelta(delta: Record<string, unknown>): void {
    // DeepSeek's name, then Groq's and OpenRouter's. vLLM sends both with the same text, and OpenRouter repeats it in
    // `reasoning_details`: exactly one of them is read.
    const reasoning = delta.reasoning_content || delta.reasoning
    if (typeof reasoning === 'string') this.#addReasoning(reasoning)
    if (Array.isArray(delta.reasoning_details)) this.#readDetails(delta.reasoning_details, !reasoning)

    const content = delta.content
    if (typeof content === 'string') this.#addAnswer(content)
    else if (Array.isArray(content)) this.#readContentParts(content)

    // What the model says instead of an answer is still what the user is to read.
    if (typeof delta.refusal === 'string') this.#addAnswer(delta.refusal)

    if (Array.isArray(delta.images)) for (const image of delta.images) this.#readImage(image)
    if (delta.annotations !== undefined) this.#readAnnotations(delta.annotations)
    // Azure with data of its own, and Groq's models that search.
    if (isRecord(delta.context)) this.#readReferences(delta.context)
    if (Array.isArray(delta.executed_tools)) {
      for (const tool of delta.executed_tools) this.#readSources(memberOf(memberOf(tool, 'search_results'), 'results'))
    }

    if (Array.isArray(delta.tool_calls)) {
      for (const piece of delta.tool_calls) if (isRecord(piece)) this.#readToolCall(piece)
    }
    // The form before tool_calls: at most one, without id or index.
    if (isRecord(delta.function_call)) this.#readToolCall({ index: -1, function: delta.function_call })
  }

  #addReasoning(text: string): void {
    if (text === '') return
    this.addText('reasoning', text)
    this.#reasonedLast = true
  }

  #addAnswer(text: string): void {
    if (text === '') return
    this.#endReasoning()
    this.addText('text', text)
  }

  /** @param areNew their words are in no other place of the delta */
  #readDetails(pieces: readonly unknown[], areNew: boolean): void {
    for (const piece of pieces) {
      if (!isRecord(piece)) continue
      if (areNew) this.#addReasoning(detailWords(piece))
      // What is kept until it is sealed counts from now on.
      if (this.#details.length <= detailsMax) this.grow(addDetail(this.#details, piece))
    }
  }

  #endReasoning(): void {
    if (this.#details.length > 0) this.#seal()
    this.#reasonedLast = false
  }

  #seal(): void {
    if (this.#details.length === 0) return
    const seal = this.#details.length > detailsMax ? undefined : sealOf(this.#model, this.#details)
    this.#details = []
    if (seal !== undefined) this.addSignature(seal, undefined, !this.#reasonedLast)
  }

  #endParts(): void {
    this.flushHalves()
    this.#seal()
  }

  /** OpenAI's and OpenRouter's `[{type:'url_citation', url_citation:{url, title}}]`. */
  #readAnnotations(annotations: unknown): void {
    if (!Array.isArray(annotations)) return
    for (const annotation of annotations) {
      if (!isRecord(annotation) || annotation.type !== 'url_citation') continue
      const citation = isRecord(annotation.url_citation) ? annotation.url_citation : annotation
      this.#readSource(citation.url, citation.title)
    }
  }

  /** Perplexity's, in every chunk, and xAI's, in the last one: `citations` are URLs, `search_results` have titles too. */
  #readReferences(holder: Record<string, unknown>): void {
    if (holder.search_results !== undefined) this.#readSources(holder.search_results)
    if (holder.citations !== undefined) this.#readSources(holder.citations)
  }

  #readSources(sources: unknown): void {
    if (!Array.isArray(sources)) return
    for (const source of sources) {
      if (isRecord(source)) this.#readSource(source.url, source.title ?? source.filepath)
      else this.#readSource(source, undefined)
    }
  }

  /** Looks first whether it was named before: parsing the same ten URLs with every word would cost more than the words. */
  #readSource(url: unknown, title: unknown): void {
    const named = url ?? title
    if (typeof named !== 'string' || this.#references.has(named) || this.#references.size >= sourcesMax) return
    this.#references.add(named)
    this.#endReasoning()
    this.addSource(url, title)
  }

  /** `{type:'image_url', image_url:{url}}`, or the URL in the place of the object. */
  #readImage(image: unknown): void {
    const holder = memberOf(image, 'image_url')
    const url = memberOf(holder, 'url') ?? holder
    if (typeof url !== 'string') return
    this.#endReasoning()
    this.addFile(imageTypeOf(url), url)
  }

  /** Mistral: `[{type:'thinking', thinking:[{type:'text', text}]}, {type:'text', text}]`. */
  #readContentParts(parts: readonly unknown[]): void {
    for (const part of parts) {
      if (!isRecord(part)) continue
      if (part.type === 'thinking') {
        const thinking = part.thinking
        if (typeof thinking === 'string') this.#addReasoning(thinking)
        else if (Array.isArray(thinking)) {
          for (const piece of thinking) {
            const text = memberOf(piece, 'text')
            if (typeof text === 'string') this.#addReasoning(text)
          }
        }
      } else if (part.type === 'text' && typeof part.text === 'string') this.#addAnswer(part.text)
      else if (part.type === 'image_url') this.#readImage(part)
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
      call = { key: String(this.#calls.length), index, id, arguments: '', payload: 0, sealed: false, half: '' }
      this.#endReasoning()
      if (!this.addCall(call, id, name)) return
      this.#calls.push(call)
    }
    call.payload = this.#payloads
    call.arguments += this.addArguments(call, raw)
    // Gemini's compatible endpoint: on the call, or on the first of several at once.
    if (piece.extra_content !== undefined && !call.sealed) {
      const signature = memberOf(memberOf(piece.extra_content, 'google'), 'thought_signature')
      if (typeof signature !== 'string' || signature === '') return
      call.sealed = true
      this.addSignature(signature, call)
    }
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

  #readReason(said: string): void {
    this.#endParts()
    const word = said.toLowerCase()
    if (brokenReasons.has(word)) {
      this.failure = reportedError(undefined)
      return
    }
    const reason = finishReasons.get(word) ?? said
    // Gemini, and OpenAI where the tool was prescribed, say `stop` of a reply that waits for the answers of tools.
    this.addFinish(reason === 'stop' && this.#calls.length > 0 ? 'tool_calls' : reason)
  }
}

function to(reason: string): (word: string) => readonly [string, string] {
  return (word) => [word, reason]
}

/** An image elsewhere says by its name what it is, or nothing: then it is called what most of them are. */
function imageTypeOf(url: string): string {
  const named = /^data:(image\/[\w.+-]+)[;,]/.exec(url.slice(0, 200))?.[1]
  if (named !== undefined || url.startsWith('data:')) return named ?? ''
  const ending = /\.(jpe?g|webp|gif|avif|svg)(?:[?#]|$)/i.exec(url)?.[1]?.toLowerCase()
  if (ending === undefined) return 'image/png'
  return ending === 'svg' ? 'image/svg+xml' : ending.startsWith('jp') ? 'image/jpeg' : `image/${ending}`
}

function firstChoice(choices: unknown): Record<string, unknown> | undefined {
  if (!Array.isArray(choices)) return undefined
  for (const choice of choices) {
    if (isRecord(choice) && (choice.index === 0 || choice.index === undefined)) return choice
  }
  return undefined
}

function readUsage(raw: Record<string, unknown>): Usage | undefined {
  const givenInput = countOf(raw.prompt_tokens) ?? countOf(raw.input_tokens)
  const givenOutput = countOf(raw.completion_tokens) ?? countOf(raw.output_tokens)
  if (givenInput === undefined && givenOutput === undefined) return undefined
  const inputDetails = raw.prompt_tokens_details ?? raw.input_tokens_details
  const cached =
    countOf(memberOf(inputDetails, 'cached_tokens')) ??
    countOf(raw.prompt_cache_hit_tokens) ??
    countOf(raw.cached_tokens) ??
    countOf(raw.cache_read_input_tokens)
  const written =
    countOf(memberOf(inputDetails, 'cache_write_tokens')) ??
    countOf(memberOf(inputDetails, 'cache_creation_tokens')) ??
    countOf(memberOf(inputDetails, 'cache_creation_input_tokens')) ??
    countOf(raw.cache_creation_input_tokens)
  const outputDetails = raw.completion_tokens_details ?? raw.output_tokens_details
  let reasoning = countOf(memberOf(outputDetails, 'reasoning_tokens')) ?? countOf(raw.reasoning_tokens)
  let total = countOf(raw.total_tokens) ?? 0
  let output = givenOutput ?? Math.max(total - (givenInput ?? 0), 0)
  let input = givenInput ?? Math.max(total - output, 0)
  // xAI and Gemini leave reasoning out of what was made, though not out of the total, and it is paid for.
  if (total > input + output) {
    reasoning ||= total - input - output
    output = total - input
  }
  // More than all of the prompt: then what the cache had was not counted with it, as Anthropic counts.
  const ofCache = (cached ?? 0) + (written ?? 0)
  if (ofCache > input) input += ofCache
  total = Math.max(total, input + output)
  return {
    input_tokens: input,
    output_tokens: output,
    total_tokens: total,
    ...(reasoning === undefined ? {} : { reasoning_tokens: reasoning }),
    ...(cached === undefined ? {} : { cached_input_tokens: cached }),
    ...(written === undefined ? {} : { cache_write_tokens: written }),
  }
}
