/**
 * From the port's request to the body of Anthropic's Messages. Pure. Anthropic refuses a request for what other providers
 * let pass: two messages of one role in a row, empty text, a call without its answer right behind it, thinking at the end
 * of a message, a temperature beside thinking. All of that is mended or left out here, and nothing is ever refused.
 */
import { type ClaudeTraits, traitsOf } from './claude-models.ts'
import { describeFormat } from './formats.ts'
import { type Answer, type Conversation, inputOf, isBlank, type Turn, toConversation } from './turns.ts'
import type { Effort, ToolChoice, UpstreamRequest } from './upstream.ts'

/** `max_tokens` has to be given: this many for the words, where the request does not say. */
const outputTokensDefault = 8192
/** Tokens to think with, where a model takes a budget. */
const budgetTokens: Readonly<Record<Exclude<Effort, 'none'>, number>> = {
  minimal: 1024,
  low: 4096,
  medium: 8192,
  high: 16_384,
}
/** Anthropic takes no smaller budget. */
const budgetTokensMin = 1024
/** Where the model decides how much it thinks: what it may need beside its words. */
const adaptiveTokens = 16_384
const efforts: Readonly<Record<Effort, string>> = {
  none: 'low',
  minimal: 'low',
  low: 'low',
  medium: 'medium',
  high: 'high',
}
/** Anthropic's range ends at 1, where others end at 2. */
const temperatureMax = 1
/** Allows `block_binding`. */
const bindingBeta = 'thinking-binding-controls-2026-08-01'
/** Marks the seal of thinking without words among those of redacted thinking. No seal has a colon: they are base64. */
export const wordlessMark = 'thinking:'

type Block = { readonly type: string } & Readonly<Record<string, unknown>>

interface Message {
  readonly role: 'user' | 'assistant'
  readonly content: Block[]
}

export interface AnthropicRequest {
  readonly body: Readonly<Record<string, unknown>>
  /** What the body needs of `anthropic-beta`. */
  readonly betas: readonly string[]
}

/** @param provider signatures of other providers are left out */
export function toAnthropicRequest(request: UpstreamRequest, provider: string): AnthropicRequest {
  const traits = traitsOf(request.model)
  const conversation = toConversation(request.messages, provider, (part, isOwn) =>
    part.kind === 'reasoning' ? isOwn && part.signature !== undefined : part.kind === 'text' && !isBlank(part.text),
  )
  const tools = toolsOf(request, conversation, traits)
  let messages = toMessages(conversation.turns)
  const thinking = toThinking(request, traits, messages, isForced(tools.tool_choice))
  if (thinking.thinking === undefined && traits.guardsThinking && !traits.alwaysThinks) {
    messages = toMessages(withoutOpenThinking(conversation.turns))
  }
  const isBound = traits.bindsThinking && messages.some(({ content }) => content.some(isThinking))
  const system = [conversation.system, describeFormat(request.format) ?? ''].filter((text) => text !== '').join('\n\n')
  return {
    body: {
      model: request.model,
      max_tokens: thinking.maxTokens,
      stream: true,
      ...(system === '' ? {} : { system }),
      messages,
      ...(thinking.thinking !== undefined || !traits.takesTemperature ? {} : samplingOf(request)),
      ...stopSequencesOf(request),
      ...(thinking.thinking === undefined
        ? {}
        : {
            // What came before may have been left out for its length since: then thinking is dropped, not the request.
            thinking: isBound
              ? { ...thinking.thinking, block_binding: { prefix_mismatch_behavior: 'drop_block' } }
              : thinking.thinking,
          }),
      ...(thinking.effort === undefined ? {} : { output_config: { effort: thinking.effort } }),
      ...tools,
    },
    betas: isBound ? [bindingBeta] : [],
  }
}

/** One of the two: the newer models refuse both together. */
function samplingOf({ temperature, topP }: UpstreamRequest) {
  if (temperature !== undefined) return { temperature: Math.min(temperature, temperatureMax) }
  return topP === undefined ? {} : { top_p: topP }
}

/** Those of nothing but white space are refused. */
function stopSequencesOf({ stop = [] }: UpstreamRequest) {
  const sequences = stop.filter((text) => !isBlank(text))
  return sequences.length === 0 ? {} : { stop_sequences: sequences }
}

interface Thinking {
  readonly maxTokens: number
  readonly thinking?: Readonly<Record<string, unknown>>
  readonly effort?: string
}

/**
 * | effort  | budget | adaptive                                       |
 * | ------- | ------ | ---------------------------------------------- |
 * | absent  | none   | none before Claude 5, else as the model sees fit |
 * | none    | none   | none before Claude 5, else low                 |
 * | minimal | 1024   | low                                            |
 * | low     | 4096   | low                                            |
 * | medium  | 8192   | medium                                         |
 * | high    | 16 384 | high                                           |
 *
 * A budget takes half of a given `maxOutputTokens` at most, and is left out where that is too little.
 */
function toThinking(
  { effort, maxOutputTokens }: UpstreamRequest,
  traits: ClaudeTraits,
  messages: readonly Message[],
  isForced: boolean,
): Thinking {
  const isWanted = effort !== undefined && effort !== 'none'
  if (traits.thinking === 'adaptive') {
    if (!isWanted && !traits.alwaysThinks) return { maxTokens: maxOutputTokens ?? outputTokensDefault }
    return {
      maxTokens: maxOutputTokens ?? outputTokensDefault + adaptiveTokens,
      // The newer models keep their thinking to themselves unless they are asked for it.
      thinking: { type: 'adaptive', display: 'summarized' },
      ...(effort === undefined ? {} : { effort: efforts[effort] }),
    }
  }
  const budget = !isWanted
    ? 0
    : Math.min(budgetTokens[effort], maxOutputTokens === undefined ? Infinity : Math.floor(maxOutputTokens / 2))
  if (budget < budgetTokensMin || isForced || !beginsWithThinking(messages)) {
    return { maxTokens: maxOutputTokens ?? outputTokensDefault }
  }
  return {
    maxTokens: maxOutputTokens ?? outputTokensDefault + budget,
    thinking: { type: 'enabled', budget_tokens: budget },
  }
}

/** A turn that goes on after a tool's answer goes on thinking only if it began with it. */
function beginsWithThinking(messages: readonly Message[]): boolean {
  const asked = messages.findLastIndex(({ role, content }) => role === 'user' && content.some(isText))
  const reply = messages[asked + 1]
  return reply === undefined || isThinking(reply.content[0])
}

/** Without the thinking of the turn that goes on: it is refused where the model is not to think. */
function withoutOpenThinking(turns: readonly Turn[]): readonly Turn[] {
  const asked = turns.findLastIndex(({ kind }) => kind === 'asked')
  return turns.map((turn, index) =>
    index < asked || turn.kind !== 'said'
      ? turn
      : { ...turn, parts: turn.parts.filter(({ kind }) => kind !== 'reasoning') },
  )
}

function toMessages(turns: readonly Turn[]): Message[] {
  const messages: Message[] = []
  for (const turn of turns) {
    const role = turn.kind === 'said' ? 'assistant' : 'user'
    const content = toBlocks(turn)
    if (content.length === 0) continue
    const last = messages.at(-1)
    if (last?.role === role) last.content.push(...content)
    else messages.push({ role, content })
  }
  return messages
}

function toBlocks(turn: Turn): Block[] {
  if (turn.kind === 'asked') return [{ type: 'text', text: turn.text }]
  if (turn.kind === 'answered') return turn.answers.map(toResult)
  const blocks = turn.parts.map((part): Block => {
    const { kind, text, signature = '' } = part
    if (kind === 'tool_call') return { type: 'tool_use', id: part.call_id, name: part.name, input: inputOf(part) }
    if (kind === 'text') return { type: 'text', text }
    if (part.redacted !== true) return { type: 'thinking', thinking: text, signature }
    return signature.startsWith(wordlessMark)
      ? { type: 'thinking', thinking: '', signature: signature.slice(wordlessMark.length) }
      : { type: 'redacted_thinking', data: signature }
  })
  // Of a reply that broke off while it thought: thinking may not be the last.
  return blocks.slice(0, blocks.findLastIndex((block) => !isThinking(block)) + 1)
}

function toResult({ callId, output, isError }: Answer): Block {
  const content = typeof output === 'string' ? output : JSON.stringify(output)
  return {
    type: 'tool_result',
    tool_use_id: callId,
    ...(isBlank(content) ? {} : { content }),
    ...(isError ? { is_error: true } : {}),
  }
}

function isThinking(block: Block | undefined): boolean {
  return block?.type === 'thinking' || block?.type === 'redacted_thinking'
}

function isText(block: Block): boolean {
  return block.type === 'text'
}

type Choice = { readonly type: string; readonly name?: string; readonly disable_parallel_tool_use?: true }

function isForced(choice: Choice | undefined): boolean {
  return choice?.type === 'any' || choice?.type === 'tool'
}

function toolsOf(
  { tools = [], toolChoice, parallelToolCalls }: UpstreamRequest,
  { turns }: Conversation,
  traits: ClaudeTraits,
): { readonly tools?: readonly object[]; readonly tool_choice?: Choice } {
  if (tools.length > 0) {
    const wanted = toChoice(toolChoice)
    const taken = wanted !== undefined && isForced(wanted) && !traits.takesForcedTools ? undefined : wanted
    const choice = parallelToolCalls === false ? oneAtATime(taken ?? { type: 'auto' }) : taken
    return {
      tools: tools.map(({ name, description, parameters }) => ({
        name,
        ...(description === undefined ? {} : { description }),
        input_schema: { type: 'object', ...parameters },
      })),
      ...(choice === undefined ? {} : { tool_choice: choice }),
    }
  }
  // Calls in the history want their tools defined, even where none may be called any more.
  const names = new Set(turns.flatMap((turn) => (turn.kind === 'answered' ? turn.answers.map(({ name }) => name) : [])))
  if (names.size === 0) return {}
  return {
    tools: Array.from(names, (name) => ({ name, input_schema: { type: 'object' } })),
    tool_choice: { type: 'none' },
  }
}

const oneAtATime = (choice: Choice): Choice =>
  choice.type === 'none' ? choice : { ...choice, disable_parallel_tool_use: true }

function toChoice(choice: ToolChoice | undefined): Choice | undefined {
  if (choice === undefined) return undefined
  if (typeof choice === 'object') return { type: 'tool', name: choice.name }
  return { type: choice === 'required' ? 'any' : choice }
}
