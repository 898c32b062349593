/**
 * The chunks of Gemini's streamGenerateContent: one payload of the stream in, events of the port out. Pure state of one
 * reply, no I/O. It reads the first candidate only.
 *
 * There is no end marker: a reply is whole when a finish reason came. A call comes with all of its arguments at once, and
 * often without an id. A prompt that is refused has no candidate at all, with a status of 200.
 */
import { Problem } from '../errors.ts'
import type { Usage } from '../log/event.ts'
import { ChunkReader, countOf, label, memberOf, replyUnitsMax } from './reader.ts'
import { errorIn, isRecord, reportedError } from './refusal.ts'

/** Of the provider's id of the reply, in the ids of calls: OpenAI, who may have to read them, takes 40 characters. */
const replyIdUnitsMax = 28

const filtered: ReadonlySet<string> = new Set([
  'SAFETY',
  'RECITATION',
  'BLOCKLIST',
  'PROHIBITED_CONTENT',
  'SPII',
  'IMAGE_SAFETY',
  'IMAGE_PROHIBITED_CONTENT',
  'IMAGE_RECITATION',
  'MODEL_ARMOR',
])
/** It wanted to call a function and did not manage to: nothing that was said before is a reply. */
const garbled: ReadonlySet<string> = new Set(['MALFORMED_FUNCTION_CALL', 'UNEXPECTED_TOOL_CALL', 'MALFORMED_RESPONSE'])

export class GeminiReader extends ChunkReader {
  #callCount = 0
  readonly #callIds = new Set<string>()
  #replyId = ''
  /** What a seal without words belongs to. */
  #saidLast: 'text' | 'reasoning' | undefined

  override get complete(): boolean {
    return this.finished
  }

  protected override readPayload(chunk: Record<string, unknown>): void {
    this.addLabels(chunk.responseId, chunk.modelVersion)
    if (typeof chunk.responseId === 'string') this.#replyId = chunk.responseId
    const candidate = firstCandidate(chunk.candidates)
    if (candidate !== undefined) this.#readCandidate(candidate)
    if (isRecord(chunk.usageMetadata)) this.addUsage(readUsage(chunk.usageMetadata))
    const error = errorIn(chunk)
    if (error !== undefined) this.failure = reportedError(error)
    else if (candidate === undefined) this.#readFeedback(memberOf(chunk.promptFeedback, 'blockReason'))
  }

  #readFeedback(reason: unknown): void {
    if (typeof reason !== 'string' || reason === '' || reason === 'BLOCK_REASON_UNSPECIFIED') return
    this.failure ??= new Problem('upstream_rejected', 'The provider refused the prompt for its content.')
  }

  #readCandidate(candidate: Record<string, unknown>): void {
    const parts = memberOf(candidate.content, 'parts')
    if (Array.isArray(parts)) for (const part of parts) if (isRecord(part)) this.#readPart(part)
    this.#readSources(candidate)
    const reason = candidate.finishReason
    if (typeof reason === 'string' && reason !== '' && reason !== 'FINISH_REASON_UNSPECIFIED') this.#readReason(reason)
  }

  #readPart(part: Record<string, unknown>): void {
    const signature = typeof part.thoughtSignature === 'string' ? part.thoughtSignature : ''
    if (isRecord(part.functionCall)) {
      this.#readCall(part.functionCall, signature)
      return
    }
    const kind = part.thought === true ? 'reasoning' : 'text'
    if (isRecord(part.inlineData)) {
      // A sketch within its thoughts is not what was asked for.
      if (kind === 'text') this.#readFile(part.inlineData)
    } else if (isRecord(part.executableCode)) {
      this.#say('text', fenced(part.executableCode.code, part.executableCode.language))
    } else if (isRecord(part.codeExecutionResult)) {
      this.#say('text', fenced(part.codeExecutionResult.output, ''))
    } else {
      const text = typeof part.text === 'string' ? part.text : ''
      this.#say(kind, text)
      if (signature === '') return
      // It often comes behind the words that it seals, in an empty part of the same kind.
      this.addSignature(signature, undefined, text === '' && this.#saidLast !== kind)
      this.#saidLast = undefined
    }
  }

  #say(kind: 'text' | 'reasoning', text: string): void {
    if (text === '') return
    this.#saidLast = kind
    this.addText(kind, text)
  }

  #readCall(call: Record<string, unknown>, signature: string): void {
    // Without a name it is a piece of arguments that are streamed, which nobody asked for.
    if (typeof call.name !== 'string' || call.name === '') return
    this.#saidLast = undefined
    const held = { key: String(this.#callCount), half: '' }
    if (!this.addCall(held, this.#callIdOf(call.id), label(call.name, replyUnitsMax))) return
    this.#callCount++
    this.addArguments(held, JSON.stringify(isRecord(call.args) ? call.args : {}))
    this.addSignature(signature, held)
  }

  /** Its own id, unless there is none or another call has it; else one that no other reply has either. */
  #callIdOf(given: unknown): string {
    let id = typeof given === 'string' ? label(given) : ''
    if (id === '' || this.#callIds.has(id)) {
      const reply = this.#replyId.replace(/[^A-Za-z0-9_-]/g, '').slice(0, replyIdUnitsMax)
      id = reply === '' ? `call_${this.#callCount}` : `call_${reply}_${this.#callCount}`
    }
    this.#callIds.add(id)
    return id
  }

  #readFile({ mimeType, data }: Record<string, unknown>): void {
    if (typeof mimeType !== 'string' || typeof data !== 'string' || data === '') return
    if (!base64.test(data)) return
    this.#saidLast = undefined
    this.addFile(mimeType, `data:${mimeType};base64,${data}`)
  }

  #readSources(candidate: Record<string, unknown>): void {
    const grounding = memberOf(candidate.groundingMetadata, 'groundingChunks')
    if (Array.isArray(grounding)) {
      for (const chunk of grounding) {
        const source = memberOf(chunk, 'web') ?? memberOf(chunk, 'retrievedContext') ?? memberOf(chunk, 'maps')
        this.addSource(memberOf(source, 'uri'), memberOf(source, 'title'))
      }
    }
    const citations =
      memberOf(candidate.citationMetadata, 'citationSources') ?? memberOf(candidate.citationMetadata, 'citations')
    if (!Array.isArray(citations)) return
    for (const citation of citations) this.addSource(memberOf(citation, 'uri'), memberOf(citation, 'title'))
  }

  #readReason(reason: string): void {
    if (garbled.has(reason)) {
      this.flushHalves()
      this.failure ??= new Problem('upstream_unavailable', 'The model made a tool call that cannot be read.')
    } else if (reason === 'MISSING_THOUGHT_SIGNATURE') {
      this.failure ??= new Problem('upstream_rejected', 'The provider misses its seal on an earlier tool call.')
    } else if (reason === 'STOP') this.addFinish(this.#callCount > 0 ? 'tool_calls' : 'stop')
    else if (reason === 'MAX_TOKENS') this.addFinish('length')
    else this.addFinish(filtered.has(reason) ? 'content_filter' : reason)
  }
}

const base64 = /^[A-Za-z0-9+/_-]+={0,2}$/

function firstCandidate(candidates: unknown): Record<string, unknown> | undefined {
  if (!Array.isArray(candidates)) return undefined
  return candidates.filter(isRecord).find(({ index }) => index === 0 || index === undefined)
}

/** Code that the model ran, and what came of it: its words refer to them. */
function fenced(text: unknown, language: unknown): string {
  if (typeof text !== 'string' || text === '') return ''
  const word = typeof language === 'string' && /^[A-Za-z]{1,16}$/.test(language) ? language.toLowerCase() : ''
  return `\n\n\`\`\`${word}\n${text.replace(/\n$/, '')}\n\`\`\`\n\n`
}

/** Counts so far. Theirs of the prompt is without what tools of Google put into it; theirs of the answer without thoughts. */
function readUsage(raw: Record<string, unknown>): Usage | undefined {
  const prompt = countOf(raw.promptTokenCount)
  const answer = countOf(raw.candidatesTokenCount)
  const thoughts = countOf(raw.thoughtsTokenCount)
  const cached = countOf(raw.cachedContentTokenCount)
  if (prompt === undefined && answer === undefined && thoughts === undefined) return undefined
  const input = (prompt ?? 0) + (countOf(raw.toolUsePromptTokenCount) ?? 0)
  const output = (answer ?? 0) + (thoughts ?? 0)
  return {
    input_tokens: input,
    output_tokens: output,
    total_tokens: countOf(raw.totalTokenCount) ?? input + output,
    ...(thoughts === undefined ? {} : { reasoning_tokens: thoughts }),
    ...(cached === undefined ? {} : { cached_input_tokens: cached }),
  }
}
