/**
 * What is sent to everything that speaks OpenAI's chat completions: a pure function from what the port asks to the body,
 * by what a host takes. It knows no sockets and no keys, and parses nothing of a reply.
 *
 * A conversation is sent so that no provider refuses it: a tool call goes out only with its answer, the answer directly
 * behind it, under an id that is there once. What was cut off before it was answered is left out.
 */
import type { Part } from '../log/event.ts'
import { parse } from './reader.ts'
import { openSeal } from './reasoning-details.ts'
import { isRecord } from './refusal.ts'
import type { Effort, ReplyFormat, ToolChoice, ToolDefinition, UpstreamMessage, UpstreamRequest } from './upstream.ts'

/** Where the speakers of one dialect do not agree. */
export interface ChatDialect {
  readonly maxTokensField: 'max_tokens' | 'max_completion_tokens'
  /** Whether it takes `stream_options`; who does not sends its usage unasked. */
  readonly streamOptions: boolean
  /**
   * Whether reasoning is given back as `reasoning_content`, with the tool calls of the turn under way. Most refuse it or
   * pay no heed; DeepSeek's models that reason refuse a turn with tools without it.
   */
  readonly reasoningContent: boolean
  /** The efforts that it knows. `none` is left out where it is not among them; for the others the next one up is sent. */
  readonly efforts: readonly Effort[]
  /** OpenAI's own models, which refuse settings that are not theirs. */
  readonly openaiModels: boolean
  /** What the id of a tool call may be. */
  readonly callId: RegExp
  /** Whether the answer of a tool is to say the tool's name. */
  readonly namesTools: boolean
  /** Whether two messages of a user, or two replies, may not stand behind one another. */
  readonly alternates: boolean
}

const efforts: readonly Effort[] = ['none', 'minimal', 'low', 'medium', 'high']

const common: ChatDialect = {
  maxTokensField: 'max_tokens',
  streamOptions: true,
  reasoningContent: false,
  efforts: ['low', 'medium', 'high'],
  openaiModels: false,
  // OpenAI's limit. The ids of Kimi are `functions.name:0`, and mean something to it.
  callId: /^[!-~]{1,40}$/,
  namesTools: false,
  alternates: false,
}

const openai: Partial<ChatDialect> = { maxTokensField: 'max_completion_tokens', openaiModels: true }

const hosts: readonly (readonly [host: RegExp, dialect: Partial<ChatDialect>])[] = [
  [/(^|\.)api\.openai\.com$/, openai],
  [/\.(openai|cognitiveservices|services\.ai)\.azure\.com$/, openai],
  [/(^|\.)openrouter\.ai$/, { efforts }],
  // Its models that reason answer 400 to a turn with tools whose reasoning is missing.
  [/(^|\.)deepseek\.com$/, { reasoningContent: true }],
  // It answers 422 to members that it does not know, stream_options among them, and its ids have nine characters.
  [/(^|\.)mistral\.ai$/, { streamOptions: false, callId: /^[a-zA-Z0-9]{9}$/ }],
  [/(^|\.)googleapis\.com$/, { efforts: ['minimal', 'low', 'medium', 'high'], namesTools: true }],
  [/(^|\.)perplexity\.ai$/, { alternates: true }],
]

/** @returns what is known of the host, and what nearly all take where nothing is */
export function dialectOf(url: URL): ChatDialect {
  return { ...common, ...hosts.find(([host]) => host.test(url.hostname))?.[1] }
}

/** What OpenAI's models take, the first that fits. What is in no line gets all that is asked. */
const openaiModels: readonly (readonly [model: RegExp, temperature: boolean, efforts: readonly Effort[]])[] = [
  [/^(gpt-[34]|chatgpt-|gpt-5.*-chat)/, true, []],
  [/^o\d/, false, ['low', 'medium', 'high']],
  [/^gpt-5\.\d/, false, ['none', 'low', 'medium', 'high']],
  [/^gpt-5/, false, ['minimal', 'low', 'medium', 'high']],
]

/** @param provider whose signatures are given back */
export function toChatBody(
  request: UpstreamRequest,
  provider: string,
  dialect: ChatDialect,
): Readonly<Record<string, unknown>> {
  const { model, tools = [], toolChoice, maxOutputTokens, format, parallelToolCalls } = request
  const { temperature, effort, sampling } = settingsFor(request, dialect)
  return {
    model,
    messages: toChatMessages(request, provider, dialect),
    stream: true,
    ...(dialect.streamOptions ? { stream_options: { include_usage: true } } : {}),
    // An empty list is refused, and so is a choice without a list.
    ...(tools.length === 0 ? {} : { tools: tools.map(toChatTool) }),
    ...(tools.length === 0 || toolChoice === undefined ? {} : { tool_choice: toChatToolChoice(toolChoice) }),
    ...(tools.length === 0 || parallelToolCalls === undefined ? {} : { parallel_tool_calls: parallelToolCalls }),
    ...(temperature === undefined ? {} : { temperature }),
    ...sampling,
    ...(format === undefined ? {} : { response_format: toChatFormat(format) }),
    ...(effort === undefined ? {} : { reasoning_effort: effort }),
    ...(maxOutputTokens === undefined ? {} : { [dialect.maxTokensField]: maxOutputTokens }),
  }
}

function settingsFor(request: UpstreamRequest, dialect: ChatDialect) {
  const { model, temperature, effort } = request
  // Fine-tuned models are `ft:gpt-4o:…`.
  const name = dialect.openaiModels ? model.replace(/^ft:/, '') : ''
  const known = openaiModels.find(([pattern]) => pattern.test(name))
  if (known !== undefined) {
    const [, isFree, taken] = known
    // What reasons decides for itself how its words are chosen, and refuses to be told.
    return {
      temperature: isFree ? temperature : undefined,
      sampling: isFree ? samplingOf(request) : {},
      effort: leastFrom(effort, taken),
    }
  }
  // A model that cannot reason may refuse every effort, and this one is asked for such models.
  const leaveOut = effort === 'none' && !dialect.efforts.includes(effort)
  return {
    temperature,
    sampling: samplingOf(request),
    effort: leaveOut ? undefined : leastFrom(effort, dialect.efforts),
  }
}

function samplingOf({ topP, frequencyPenalty, presencePenalty, stop }: UpstreamRequest) {
  return {
    ...(topP === undefined ? {} : { top_p: topP }),
    ...(frequencyPenalty === undefined ? {} : { frequency_penalty: frequencyPenalty }),
    ...(presencePenalty === undefined ? {} : { presence_penalty: presencePenalty }),
    ...(stop === undefined ? {} : { stop }),
  }
}

function toChatFormat(format: ReplyFormat): unknown {
  if (format.type !== 'json_schema') return { type: format.type }
  const { type, ...json_schema } = format
  return { type, json_schema }
}

/** @returns the effort, or the least above it that is taken */
function leastFrom(effort: Effort | undefined, taken: readonly Effort[]): Effort | undefined {
  if (effort === undefined) return undefined
  return efforts.slice(efforts.indexOf(effort)).find((other) => taken.includes(other))
}

function toChatTool({ name, description, parameters }: ToolDefinition): unknown {
  return {
    type: 'function',
    function: { name, ...(description === undefined ? {} : { description }), parameters },
  }
}

function toChatToolChoice(choice: ToolChoice): unknown {
  return typeof choice === 'string' ? choice : { type: 'function', function: { name: choice.name } }
}

type ChatMessage =
  | { readonly role: 'system' | 'user'; readonly content: string }
  | {
      readonly role: 'assistant'
      readonly content: string | null
      readonly reasoning_content?: string
      readonly reasoning_details?: readonly unknown[]
      readonly tool_calls?: readonly unknown[]
    }
  | { readonly role: 'tool'; readonly tool_call_id: string; readonly name?: string; readonly content: string }

function toChatMessages(
  { model, messages }: UpstreamRequest,
  provider: string,
  dialect: ChatDialect,
): readonly ChatMessage[] {
  const answers = findAnswers(messages)
  const nextId = createCallIds(dialect.callId)
  const turnFrom = messages.findLastIndex(({ role }) => role === 'user')
  const sent: ChatMessage[] = []

  function sendStep(step: Step, isOwn: boolean, isOfTurn: boolean): void {
    const ids = step.calls.map(({ call_id }) => nextId(call_id ?? ''))
    // An empty reply is refused by some, and says nothing to any.
    if (step.text === '' && ids.length === 0) return
    const details = isOwn ? unseal(step.reasoning, model) : []
    const words = isOwn && isOfTurn && dialect.reasoningContent && ids.length > 0 ? wordsOf(step.reasoning) : undefined
    sent.push({
      role: 'assistant',
      content: step.text === '' ? null : step.text,
      ...(words === undefined ? {} : { reasoning_content: words }),
      ...(details.length === 0 ? {} : { reasoning_details: details }),
      ...(ids.length === 0 ? {} : { tool_calls: step.calls.map((call, at) => toChatToolCall(call, ids[at]!, isOwn)) }),
    })
    step.calls.forEach((call, at) => {
      const name = dialect.namesTools ? { name: call.name ?? '' } : {}
      sent.push({ role: 'tool', tool_call_id: ids[at]!, ...name, content: answers.get(call) ?? '' })
    })
  }

  messages.forEach((message, at) => {
    if (message.role === 'tool') return // It stands behind its call.
    if (message.role === 'assistant') {
      const isOwn = message.provider === provider
      for (const step of stepsOf(message, answers)) sendStep(step, isOwn, at > turnFrom)
    } else sent.push({ role: message.role, content: message.content })
  })
  return dialect.alternates ? join(sent) : sent
}

/** What was said between two answers of tools. */
interface Step {
  text: string
  readonly reasoning: Part[]
  readonly calls: Part[]
}

function stepsOf(
  { content, parts }: Extract<UpstreamMessage, { role: 'assistant' }>,
  answers: ReadonlyMap<Part, string>,
): readonly Step[] {
  if (parts === undefined || parts.length === 0) return [{ text: content, reasoning: [], calls: [] }]
  let step: Step = { text: '', reasoning: [], calls: [] }
  const steps = [step]
  for (const part of parts) {
    if (part.kind === 'tool_call') {
      if (answers.has(part) && part.name) step.calls.push(part)
    } else if (part.kind === 'text' || part.kind === 'reasoning') {
      // What comes behind an answer of the gateway was said with it in mind. Behind a call that the client answers,
      // nothing can have been: there it is the same step, whose answers must follow it.
      if (step.calls.length > 0 && step.calls.every(isAnswered)) {
        step = { text: '', reasoning: [], calls: [] }
        steps.push(step)
      }
      if (part.kind === 'text') step.text += part.text
      else step.reasoning.push(part)
    }
  }
  return steps
}

function isAnswered(call: Part): boolean {
  return call.output !== undefined || call.error !== undefined
}

/** @returns what each call was answered, by the gateway or by a message further on; a call without an answer is not in it */
function findAnswers(messages: readonly UpstreamMessage[]): ReadonlyMap<Part, string> {
  const answers = new Map<Part, string>()
  // Calls that wait, newest message first: some providers give the same ids again with every reply, or to every call.
  const waiting: Part[][] = []
  for (const message of messages) {
    if (message.role === 'assistant') {
      const calls = (message.parts ?? []).filter(({ kind }) => kind === 'tool_call')
      for (const call of calls) if (isAnswered(call)) answers.set(call, answerOf(call))
      waiting.unshift(calls.filter((call) => !isAnswered(call)))
    } else if (message.role === 'tool') {
      const { callId, name, content } = message
      const calls = waiting.find((open) => open.some(({ call_id }) => call_id === callId)) ?? []
      const named = calls.findIndex((call) => call.call_id === callId && call.name === name)
      const at = named === -1 ? calls.findIndex(({ call_id }) => call_id === callId) : named
      const call = calls[at]
      if (call === undefined) continue
      answers.set(call, content)
      calls.splice(at, 1)
    }
  }
  return answers
}

function answerOf({ output, error }: Part): string {
  if (error !== undefined) return JSON.stringify({ error })
  return typeof output === 'string' ? output : (JSON.stringify(output) ?? '')
}

function toChatToolCall({ name, text, signature }: Part, id: string, isOwn: boolean): unknown {
  return {
    id,
    type: 'function',
    // Some parse them, and refuse the whole conversation for what is no object. Where they are, they stay as they were said.
    function: { name, arguments: isRecord(parse(text)) ? text : '{}' },
    ...(isOwn && signature !== undefined ? { extra_content: { google: { thought_signature: signature } } } : {}),
  }
}

/** @returns the blocks of a step's reasoning; none when not all of it is sealed for this model */
function unseal(reasoning: readonly Part[], model: string): readonly unknown[] {
  const blocks = reasoning.map(({ text, signature }) =>
    signature === undefined ? undefined : openSeal(signature, model, text),
  )
  return blocks.every((details) => details !== undefined) ? blocks.flat() : []
}

function wordsOf(reasoning: readonly Part[]): string {
  return reasoning.map(({ text }) => text).join('')
}

/** @returns a function that gives each call an id of the pattern that no other has: its own, where that is one */
function createCallIds(pattern: RegExp): (id: string) => string {
  const given = new Set<string>()
  let count = 0
  return (id) => {
    let free = id
    while (!pattern.test(free) || given.has(free)) free = `call${String(++count).padStart(5, '0')}`
    given.add(free)
    return free
  }
}

/** Two messages of a user behind one another, because the reply between them failed, become one; so do two replies. */
function join(messages: readonly ChatMessage[]): readonly ChatMessage[] {
  const joined: ChatMessage[] = []
  for (const message of messages) {
    const last = joined.at(-1)
    if (last?.role === 'user' && message.role === 'user') {
      joined[joined.length - 1] = { role: 'user', content: `${last.content}\n\n${message.content}` }
    } else if (isPlainReply(last) && isPlainReply(message)) {
      joined[joined.length - 1] = { role: 'assistant', content: `${last.content}\n\n${message.content}` }
    } else joined.push(message)
  }
  return joined
}

function isPlainReply(message: ChatMessage | undefined): message is { role: 'assistant'; content: string } {
  return message?.role === 'assistant' && message.tool_calls === undefined && message.content !== null
}
