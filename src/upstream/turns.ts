/**
 * A conversation in the order in which providers with blocks want it: somebody asks, the model says and calls, the calls are
 * answered, the model goes on. It puts each answer right behind its call, leaves out what providers refuse (a call without an
 * answer, an answer without a call, text of nothing but white space, a beginning that is not the user's), and gives every
 * call an id of its own. Pure; what a block looks like is the business of the dialects.
 */
import type { Part } from '../log/event.ts'
import { parse } from './reader.ts'
import { isRecord } from './refusal.ts'
import type { UpstreamMessage } from './upstream.ts'

export interface Answer {
  readonly callId: string
  readonly name: string
  /** Text, or a value as JSON knows it; of an error its message. */
  readonly output: unknown
  readonly isError: boolean
}

export type Turn =
  | { readonly kind: 'asked'; readonly text: string }
  /** `isOwn`: said by the provider that is asked now, which is the only one that can read its seals. */
  | { readonly kind: 'said'; readonly parts: readonly Part[]; readonly isOwn: boolean }
  /** To every call of what was said before it, in the same order. */
  | { readonly kind: 'answered'; readonly answers: readonly Answer[] }

export interface Conversation {
  /** All system messages, joined; '' when there are none. */
  readonly system: string
  readonly turns: readonly Turn[]
}

/** @param isKept whether the dialect has a block for a part that is not a tool call, and wants it */
export function toConversation(
  messages: readonly UpstreamMessage[],
  provider: string,
  isKept: (part: Part, isOwn: boolean) => boolean,
): Conversation {
  const system = messages
    .flatMap(({ role, content }) => (role === 'system' && !isBlank(content) ? [content] : []))
    .join('\n\n')
  const turns: Turn[] = []
  const ids = new Set<string>()

  function addReply(parts: readonly Part[], isOwn: boolean, later: ToolMessage[]): void {
    let said: Part[] = []
    let answers: Answer[] = []
    function close(): void {
      if (said.length > 0) turns.push({ kind: 'said', parts: said, isOwn })
      if (answers.length > 0) turns.push({ kind: 'answered', answers })
      said = []
      answers = []
    }
    for (const part of parts) {
      if (part.kind === 'tool_call') {
        const answer = answerWithin(part) ?? takeAnswer(later, part)
        if (answer === undefined || !part.name) continue
        const callId = ownId(part.call_id ?? '', ids)
        said.push({ ...part, call_id: callId })
        answers.push({ ...answer, callId, name: part.name })
      } else if (isKept(part, isOwn)) {
        // Nothing may stand between a call and its answer.
        if (answers.length > 0) close()
        said.push(part)
      }
    }
    close()
  }

  for (const [index, message] of messages.entries()) {
    if (message.role === 'user' && !isBlank(message.content)) turns.push({ kind: 'asked', text: message.content })
    if (message.role !== 'assistant') continue
    const parts = message.parts ?? [{ kind: 'text', text: message.content }]
    addReply(parts, message.provider === provider, toolMessagesAfter(messages, index))
  }

  const first = turns.findIndex(({ kind }) => kind === 'asked')
  if (first !== -1) return { system, turns: turns.slice(first) }
  // Nobody asked anything: what the system says is the question, because no provider answers to nothing.
  return { system: '', turns: system === '' ? [] : [{ kind: 'asked', text: system }] }
}

export function isBlank(text: string): boolean {
  return text.trim() === ''
}

/** The arguments of a call as an object, which is all that providers take; {} for what is none. */
export function inputOf(part: Part): Record<string, unknown> {
  const input = part.input ?? parse(part.text)
  return isRecord(input) ? input : {}
}

type ToolMessage = Extract<UpstreamMessage, { role: 'tool' }>

/** The answers of the client to what the message at `index` called: those before the next reply. */
function toolMessagesAfter(messages: readonly UpstreamMessage[], index: number): ToolMessage[] {
  const answers: ToolMessage[] = []
  for (let next = index + 1; next < messages.length; next++) {
    const message = messages[next]!
    if (message.role === 'assistant') break
    if (message.role === 'tool') answers.push(message)
  }
  return answers
}

type Result = Pick<Answer, 'output' | 'isError'>

function answerWithin({ output, error }: Part): Result | undefined {
  if (error !== undefined) return { output: error.message, isError: true }
  return output === undefined ? undefined : { output, isError: false }
}

/** Takes it out of `later`: a call that has the same id gets the next one. */
function takeAnswer(later: ToolMessage[], { call_id }: Part): Result | undefined {
  const index = later.findIndex(({ callId }) => callId === call_id)
  const [answer] = index === -1 ? [] : later.splice(index, 1)
  return answer === undefined ? undefined : { output: answer.content, isError: answer.isError === true }
}

/**
 * Ids of other providers may repeat from reply to reply, and may have characters that are not allowed here
 * (Anthropic: `^[a-zA-Z0-9_-]+$`, each once a request).
 */
function ownId(callId: string, taken: Set<string>): string {
  const base = callId.replace(/[^A-Za-z0-9_-]/g, '_').slice(0, 64) || 'call'
  let id = base
  for (let count = 2; taken.has(id); count++) id = `${base.slice(0, 56)}_${count}`
  taken.add(id)
  return id
}
