/**
 * From a request of the port to the options of the AI SDK's `doStream`: pure, no I/O. The types are the common part of the
 * SDK's specifications v2, v3 and v4, so that one call is right for all of them; a type test holds them to it.
 *
 * Left out, because providers differ in whether they take it: files and sources of earlier replies, and the reasoning of
 * another provider. System messages go first, as some providers refuse them anywhere else.
 */
import type { Part } from '../log/event.ts'
import { memberOf, parse } from './reader.ts'
import { isRecord } from './refusal.ts'
import type { Effort, ToolChoice, UpstreamMessage, UpstreamRequest } from './upstream.ts'

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
  return {
    prompt: toPrompt(messages, provider),
    ...(temperature === undefined ? {} : { temperature }),
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

function toPrompt(messages: readonly UpstreamMessage[], provider: string): AiSdkMessage[] {
  const system: AiSdkMessage[] = []
  const prompt: AiSdkMessage[] = []
  for (const message of messages) {
    const { content } = message
    switch (message.role) {
      case 'system':
        system.push({ role: 'system', content })
        break
      case 'user':
        prompt.push({ role: 'user', content: [{ type: 'text', text: content }] })
        break
      case 'assistant':
        if (message.parts !== undefined) addParts(prompt, message.parts, message.provider === provider)
        else if (content !== '') prompt.push({ role: 'assistant', content: [{ type: 'text', text: content }] })
        break
      case 'tool':
        addResult(prompt, {
          type: 'tool-result',
          toolCallId: message.callId,
          toolName: message.name,
          output: { type: message.isError ? 'error-text' : 'text', value: content },
        })
        break
    }
  }
  return [...system, ...prompt]
}

/** An assistant's parts: a message of the assistant for each step, and one of its tools' answers after each. */
function addParts(prompt: AiSdkMessage[], parts: readonly Part[], isOwn: boolean): void {
  let said: (TextPart | CallPart)[] = []
  let answers: ResultPart[] = []
  const endStep = () => {
    if (said.length > 0) prompt.push({ role: 'assistant', content: said })
    for (const answer of answers) addResult(prompt, answer)
    said = []
    answers = []
  }
  for (const part of parts) {
    const providerOptions = isOwn ? readSeal(part.signature) : undefined
    const sealed = providerOptions === undefined ? {} : { providerOptions }
    if (part.kind === 'tool_call') {
      const toolCallId = part.call_id ?? ''
      const toolName = part.name ?? ''
      said.push({ type: 'tool-call', toolCallId, toolName, input: inputOf(part), ...sealed })
      const output = outputOf(part)
      if (output !== undefined) answers.push({ type: 'tool-result', toolCallId, toolName, output })
      continue
    }
    if (part.kind !== 'text' && (part.kind !== 'reasoning' || !isOwn)) continue
    if (part.text === '' && providerOptions === undefined) continue
    // What is said after an answer is the next step.
    if (answers.length > 0) endStep()
    said.push({ type: part.kind, text: part.text, ...sealed })
  }
  endStep()
}

/** Answers that follow each other are one message: they belong to calls that were made at once. */
function addResult(prompt: AiSdkMessage[], result: ResultPart): void {
  const last = prompt.at(-1)
  if (last?.role === 'tool') last.content.push(result)
  else prompt.push({ role: 'tool', content: [result] })
}

/** An object, as all providers demand: arguments that were cut off, or are something else, become an empty one. */
function inputOf(part: Part): Record<string, unknown> {
  const input = part.input ?? parse(part.text)
  return isRecord(input) ? input : {}
}

function outputOf(part: Part): ResultPart['output'] | undefined {
  if (part.error !== undefined) return { type: 'error-json', value: { ...part.error } }
  if (part.output === undefined) return undefined
  // It has been JSON in the log.
  return typeof part.output === 'string'
    ? { type: 'text', value: part.output }
    : { type: 'json', value: part.output as Json }
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
