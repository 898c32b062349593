/**
 * From a request of the port to the options of the AI SDK's `doStream`: pure, no I/O. The types are the common part of the
 * SDK's specifications v2, v3 and v4, so that one call is right for all of them; a type test holds them to it.
 *
 * Which model stands behind it is not known here, so a conversation is told as the strictest of them wants it (turns). Left
 * out, because providers differ in whether they take it: files and sources of earlier replies, and the reasoning of another
 * provider.
 */
import type { Part } from '../log/event.ts'
import { memberOf, parse } from './reader.ts'
import { isRecord } from './refusal.ts'
import { type Answer, inputOf, isBlank, toConversation } from './turns.ts'
import type { Effort, ReplyFormat, ToolChoice, UpstreamMessage, UpstreamRequest } from './upstream.ts'

export type Json = null | string | number | boolean | Json[] | { [key: string]: Json }
/** By the name of the provider that it is for; others do not read it. */
export type ProviderOptions = Record<string, { [key: string]: Json }>

interface TextPart {
  type: 'text' | 'reasoning'
  text: string
  providerOptions?: ProviderOptions
}

interface CallPart {
  type: 'tool-call'
  toolCallId: string
  toolName: string
  input: unknown
  providerOptions?: ProviderOptions
}

interface ResultPart {
  type: 'tool-result'
  toolCallId: string
  toolName: string
  output: { type: 'text' | 'error-text'; value: string } | { type: 'json' | 'error-json'; value: Json }
}

export type AiSdkMessage =
  | { role: 'system'; content: string }
  | { role: 'user'; content: { type: 'text'; text: string }[] }
  | { role: 'assistant'; content: (TextPart | CallPart)[] }
  | { role: 'tool'; content: ResultPart[] }

export interface AiSdkCall {
  prompt: AiSdkMessage[]
  maxOutputTokens?: number
  temperature?: number
  topP?: number
  frequencyPenalty?: number
  presencePenalty?: number
  stopSequences?: string[]
  responseFormat?: { type: 'text' } | { type: 'json'; schema?: object; name?: string; description?: string }
  tools?: { type: 'function'; name: string; description?: string; inputSchema: object }[]
  toolChoice?: { type: 'auto' | 'none' | 'required' } | { type: 'tool'; toolName: string }
  /** Since v4. */
  reasoning?: Effort
  providerOptions?: ProviderOptions
  abortSignal: AbortSignal
}

/** What is asked of a model before it is called. */
export interface AiSdkModelName {
  readonly specificationVersion: 'v2' | 'v3' | 'v4'
  /** As in `openai.responses`. */
  readonly provider: string
}

/** @param provider the upstream's name: what it said and sealed itself is given back to it */
export function toAiSdkCall(
  model: AiSdkModelName,
  provider: string,
  request: UpstreamRequest,
  signal: AbortSignal,
): AiSdkCall {
  const { messages, temperature, effort, maxOutputTokens, tools = [], toolChoice } = request
  const { topP, frequencyPenalty, presencePenalty, stop, format } = request
  return {
    prompt: toPrompt(messages, provider),
    ...(temperature === undefined ? {} : { temperature }),
    ...(topP === undefined ? {} : { topP }),
    ...(frequencyPenalty === undefined ? {} : { frequencyPenalty }),
    ...(presencePenalty === undefined ? {} : { presencePenalty }),
    ...(stop === undefined ? {} : { stopSequences: [...stop] }),
    ...(format === undefined ? {} : { responseFormat: toFormat(format) }),
    ...(maxOutputTokens === undefined ? {} : { maxOutputTokens }),
    ...(effort === undefined ? {} : askEffort(model, effort)),
    ...(tools.length === 0
      ? {}
      : {
          tools: tools.map(({ name, description, parameters }) => ({
            type: 'function' as const,
            name,
            ...(description === undefined ? {} : { description }),
            inputSchema: parameters,
          })),
          ...(toolChoice === undefined ? {} : { toolChoice: toChoice(toolChoice) }),
        }),
    abortSignal: signal,
  }
}

function toFormat(format: ReplyFormat): NonNullable<AiSdkCall['responseFormat']> {
  if (format.type === 'text') return { type: 'text' }
  if (format.type === 'json_object') return { type: 'json' }
  const { schema, name, description } = format
  return { type: 'json', schema, name, ...(description === undefined ? {} : { description }) }
}

function toPrompt(messages: readonly UpstreamMessage[], provider: string): AiSdkMessage[] {
  const { system, turns } = toConversation(messages, provider, isKept)
  const prompt: AiSdkMessage[] = system === '' ? [] : [{ role: 'system', content: system }]
  for (const turn of turns) {
    if (turn.kind === 'asked') prompt.push({ role: 'user', content: [{ type: 'text', text: turn.text }] })
    else if (turn.kind === 'said') {
      prompt.push({ role: 'assistant', content: turn.parts.map((part) => toPart(part, turn.isOwn)) })
    } else prompt.push({ role: 'tool', content: turn.answers.map(toResult) })
  }
  return prompt
}

/** Words, and one's own reasoning; without words only what is sealed. */
function isKept({ kind, text, signature }: Part, isOwn: boolean): boolean {
  if (kind !== 'text' && (kind !== 'reasoning' || !isOwn)) return false
  return !isBlank(text) || (isOwn && readSeal(signature) !== undefined)
}

function toPart(part: Part, isOwn: boolean): TextPart | CallPart {
  const providerOptions = isOwn ? readSeal(part.signature) : undefined
  const sealed = providerOptions === undefined ? {} : { providerOptions }
  return part.kind === 'tool_call'
    ? {
        type: 'tool-call',
        toolCallId: part.call_id ?? '',
        toolName: part.name ?? '',
        input: inputOf(part),
        ...sealed,
      }
    : { type: part.kind === 'reasoning' ? 'reasoning' : 'text', text: part.text, ...sealed }
}

function toResult({ callId, name, output, isError }: Answer): ResultPart {
  return {
    type: 'tool-result',
    toolCallId: callId,
    toolName: name,
    output:
      typeof output === 'string'
        ? { type: isError ? 'error-text' : 'text', value: output }
        : // It has been JSON in the log.
          { type: isError ? 'error-json' : 'json', value: output as Json },
  }
}

function toChoice(choice: ToolChoice): NonNullable<AiSdkCall['toolChoice']> {
  return typeof choice === 'string' ? { type: choice } : { type: 'tool', toolName: choice.name }
}

/**
 * Only where one word means the same as ours: v4 has a setting for it; before that, OpenAI's package and the one for its
 * relatives take the word as it is. Others want budgets of tokens that depend on the model.
 */
function askEffort(
  { specificationVersion, provider }: AiSdkModelName,
  effort: Effort,
): Pick<AiSdkCall, 'reasoning' | 'providerOptions'> {
  if (specificationVersion === 'v4') return { reasoning: effort }
  const compatible = specificationVersion === 'v2' ? 'openai-compatible' : 'openaiCompatible'
  const isOpenai = /^(openai|azure)\b/.test(provider)
  return { providerOptions: { [isOpenai ? 'openai' : compatible]: { reasoningEffort: effort } } }
}

/** Members of a part's metadata that a provider wants back as they are, whatever the package calls itself. */
const sealMembers = ['signature', 'redactedData', 'thoughtSignature', 'reasoningEncryptedContent'] as const

/**
 * The seal in the metadata of a stream's part, as the text that the port carries: JSON of the metadata's members that are
 * to come back, under the names of their packages. The port's signatures are opaque, and this one can be put back exactly.
 * @returns undefined when nothing is sealed
 */
export function writeSeal(metadata: unknown): { readonly text: string; readonly redacted: boolean } | undefined {
  if (!isRecord(metadata)) return undefined
  const seal: ProviderOptions = {}
  let redacted = false
  for (const [name, members] of Object.entries(metadata)) {
    const kept: { [key: string]: Json } = {}
    for (const member of sealMembers) {
      const value = memberOf(members, member)
      if (typeof value !== 'string' || value === '') continue
      kept[member] = value
      if (member === 'redactedData') redacted = true
      // OpenAI's encrypted reasoning is only good with its id.
      const itemId = memberOf(members, 'itemId')
      if (member === 'reasoningEncryptedContent' && typeof itemId === 'string') kept.itemId = itemId
    }
    if (Object.keys(kept).length > 0) seal[name] = kept
  }
  return Object.keys(seal).length === 0 ? undefined : { text: JSON.stringify(seal), redacted }
}

/** @returns undefined for what is no seal of this adapter's */
function readSeal(text: string | undefined): ProviderOptions | undefined {
  if (text === undefined) return undefined
  const seal = parse(text)
  if (!isRecord(seal) || !Object.values(seal).every(isRecord)) return undefined
  return seal as ProviderOptions
}
