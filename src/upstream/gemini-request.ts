/**
 * From the port's request to the body of Gemini's streamGenerateContent. Pure. Gemini has no roles for tools and no ids that
 * must fit: what a function answered stands right behind its call, as many answers as calls, in the same order. What carried a
 * seal (`thoughtSignature`) is given back with it. Nothing is ever refused.
 */
import type { Part } from '../log/event.ts'
import { describeFormat } from './formats.ts'
import { parse } from './reader.ts'
import { type Answer, inputOf, isBlank, type Turn, toConversation } from './turns.ts'
import type { Effort, ReplyFormat, ToolChoice, ToolDefinition, UpstreamRequest } from './upstream.ts'

/** Tokens to think with, for 2.5: within the range of each of its models, but Pro cannot do without. */
const budgetTokens: Readonly<Record<Effort, number>> = {
  none: 0,
  minimal: 512,
  low: 2048,
  medium: 8192,
  high: 24_576,
}
const budgetTokensMinOfPro = 128
/** For 3 and later. `MINIMAL` is refused by most of them, and none can be told not to think. */
const levels: Readonly<Record<Effort, string>> = {
  none: 'LOW',
  minimal: 'LOW',
  low: 'LOW',
  medium: 'MEDIUM',
  high: 'HIGH',
}
/** More are refused. */
const stopSequencesMax = 5
/** Google's word for a call that it did not make itself, and so never sealed. Without it 3 and later refuse the request. */
const foreignSeal = 'skip_thought_signature_validator'

type Piece = Readonly<Record<string, unknown>>

interface Content {
  readonly role: 'user' | 'model'
  readonly parts: readonly Piece[]
}

/** @param provider signatures of other providers are left out */
export function toGeminiRequest(request: UpstreamRequest, provider: string): Readonly<Record<string, unknown>> {
  const { model, messages, tools = [], toolChoice, maxOutputTokens, format } = request
  const version = versionOf(model)
  // Beside tools only the newest take a format.
  const takesFormat = version >= (tools.length === 0 ? 2.5 : 3)
  const conversation = toConversation(messages, provider, isKept)
  const { turns } = conversation
  const words = takesFormat ? '' : (describeFormat(format) ?? '')
  const system = [conversation.system, words].filter((text) => text !== '').join('\n\n')
  const thinkingConfig = toThinkingConfig(request, version)
  const config = {
    ...samplingOf(request),
    ...(takesFormat ? toMimeType(format) : {}),
    ...(maxOutputTokens === undefined ? {} : { maxOutputTokens }),
    ...(thinkingConfig === undefined ? {} : { thinkingConfig }),
  }
  return {
    ...(system === '' ? {} : { systemInstruction: { parts: [{ text: system }] } }),
    contents: turns.map((turn) => toContent(turn, version >= 3)),
    ...(tools.length === 0 ? {} : { tools: [{ functionDeclarations: tools.map(toDeclaration) }] }),
    ...(tools.length === 0 || toolChoice === undefined
      ? {}
      : { toolConfig: { functionCallingConfig: toCallingConfig(toolChoice) } }),
    ...(Object.keys(config).length === 0 ? {} : { generationConfig: config }),
  }
}

function samplingOf({ temperature, topP, frequencyPenalty, presencePenalty, stop }: UpstreamRequest): Piece {
  return {
    ...(temperature === undefined ? {} : { temperature }),
    ...(topP === undefined ? {} : { topP }),
    ...(frequencyPenalty === undefined ? {} : { frequencyPenalty }),
    ...(presencePenalty === undefined ? {} : { presencePenalty }),
    ...(stop === undefined ? {} : { stopSequences: stop.slice(0, stopSequencesMax) }),
  }
}

function toMimeType(format: ReplyFormat | undefined): Piece {
  if (format === undefined || format.type === 'text') return {}
  const responseMimeType = 'application/json'
  return format.type === 'json_object' ? { responseMimeType } : { responseMimeType, responseJsonSchema: format.schema }
}

function isKept(part: Part, isOwn: boolean): boolean {
  if (part.kind === 'text') return !isBlank(part.text) || (isOwn && part.signature !== undefined)
  if (part.kind === 'reasoning') return isOwn && part.signature !== undefined
  // A picture of its own: without it the model does not know what it is to change.
  return part.kind === 'file' && inlineDataOf(part) !== undefined
}

function toContent(turn: Turn, wantsSeals: boolean): Content {
  if (turn.kind === 'asked') return { role: 'user', parts: [{ text: turn.text }] }
  if (turn.kind === 'answered') return { role: 'user', parts: turn.answers.map(toResponse) }
  // Of calls that were made together the first one is sealed, for all of them.
  let isSealed = !wantsSeals
  const parts = turn.parts.map((part): Piece => {
    const piece = toPiece(part)
    const signature = turn.isOwn ? part.signature : undefined
    if (part.kind !== 'tool_call') return signature === undefined ? piece : { ...piece, thoughtSignature: signature }
    const seal = signature ?? (isSealed ? undefined : foreignSeal)
    isSealed = true
    return seal === undefined ? piece : { ...piece, thoughtSignature: seal }
  })
  return { role: 'model', parts }
}

function toPiece(part: Part): Piece {
  if (part.kind === 'tool_call') return { functionCall: { id: part.call_id, name: part.name, args: inputOf(part) } }
  if (part.kind === 'file') return { inlineData: inlineDataOf(part) }
  // A seal that came without words, and goes back so.
  if (part.redacted === true) return { text: '' }
  return part.kind === 'reasoning' ? { text: part.text, thought: true } : { text: part.text }
}

function inlineDataOf({ url = '' }: Part): { readonly mimeType: string; readonly data: string } | undefined {
  const head = /^data:([^;,]+);base64,/.exec(url)
  return head === null ? undefined : { mimeType: head[1]!, data: url.slice(head[0].length) }
}

function toResponse({ callId, name, output, isError }: Answer): Piece {
  // What a client's tool answered may be JSON as text. `output` and `error` are Google's own words.
  const value = typeof output === 'string' ? (parse(output) ?? output) : output
  return { functionResponse: { id: callId, name, response: isError ? { error: value } : { output: value } } }
}

/**
 * JSON Schema as it is: `parametersJsonSchema` takes all of it, where the older `parameters` refuses whole requests for
 * `additionalProperties` or `$ref`.
 */
function toDeclaration({ name, description = '', parameters }: ToolDefinition): Piece {
  const { $schema: _, ...schema } = parameters
  return { name, description, parametersJsonSchema: { type: 'object', ...schema } }
}

function toCallingConfig(choice: ToolChoice): Piece {
  if (typeof choice === 'object') return { mode: 'ANY', allowedFunctionNames: [choice.name] }
  return { mode: choice === 'required' ? 'ANY' : choice.toUpperCase() }
}

/**
 * | effort  | 2.5: budget     | 3 and later: level             |
 * | ------- | --------------- | ------------------------------ |
 * | absent  | as it sees fit  | as it sees fit                 |
 * | none    | 0 (Pro: 128)    | LOW (Flash-Lite: MINIMAL)      |
 * | minimal | 512             | LOW (Flash-Lite: MINIMAL)      |
 * | low     | 2048            | LOW                            |
 * | medium  | 8192            | MEDIUM                         |
 * | high    | 24 576          | HIGH                           |
 *
 * Models before 2.5, and those of other names, do not think and refuse to be told how much.
 */
function toThinkingConfig({ model, effort }: UpstreamRequest, version: number): Piece | undefined {
  if (effort === undefined || version < 2.5) return undefined
  const includeThoughts = effort !== 'none'
  if (version >= 3) {
    const isLite = model.includes('flash-lite') && (effort === 'none' || effort === 'minimal')
    return { thinkingLevel: isLite ? 'MINIMAL' : levels[effort], includeThoughts }
  }
  const min = model.includes('pro') ? budgetTokensMinOfPro : 0
  return { thinkingBudget: Math.max(budgetTokens[effort], min), includeThoughts }
}

/** Of a Gemini without a number (`gemini-flash-latest`) the newest; 0 of what is none. */
function versionOf(model: string): number {
  const match = /(?:^|\/)gemini-(\d{1,2}(?:\.\d)?)?/.exec(model)
  if (match === null) return 0
  return match[1] === undefined ? Infinity : Number(match[1])
}
