/**
 * From the conversation that a client of OpenAI keeps and sends, all of it with every request, to what is asked here: what is
 * new in it, what was said before, and what the model is to be told beside. Pure.
 *
 * - What is new is at the end: the words of the user behind the last reply, or the answers of the client's tools to it.
 * - System and developer messages at the beginning, and those among what is new, are instructions: they hold for the reply
 *   and are no messages. Others are messages like what stands around them.
 * - Everything else was said before. A call that nobody answered stays in it, and is left out where a model is told of it.
 *
 * It refuses a conversation that ends with a reply, or in which a tool answers what nobody called.
 */
import { Problem } from '../errors.ts'
import type { Part } from '../log/event.ts'

/** One thing that was said, whatever it is called on the wire. `place` names it in an error: `messages.3`. */
export type Said = { readonly place: string } & (
  | { readonly role: 'system' | 'user'; readonly text: string }
  /** Adjacent ones are one reply: on some wires its words and each of its calls come apart. */
  | { readonly role: 'assistant'; readonly parts: readonly Part[] }
  | { readonly role: 'tool'; readonly callId: string; readonly output: string }
)

/** What is asked, in the words of runs/asked: exactly one of `message` and `tool_results`. */
export interface Conversation {
  readonly message?: string
  readonly tool_results?: { readonly call_id: string; readonly output: unknown }[]
  readonly instructions?: string
  readonly before: readonly SaidMessage[]
}

export interface SaidMessage {
  readonly role: Said['role']
  readonly parts: readonly Part[]
}

/** @param said oldest first. @param field the member of the request that holds it, for errors */
export function toConversation(said: readonly Said[], field: string): Conversation {
  const first = said.findIndex(({ role }) => role !== 'system')
  const head = first === -1 ? said : said.slice(0, first)
  const rest = first === -1 ? [] : said.slice(first)
  const last = rest.at(-1)
  const newFrom = rest.findLastIndex(({ role }) => role === 'assistant' || role === 'tool') + 1
  const words = rest.slice(newFrom).flatMap((one) => (one.role === 'user' ? [one.text] : []))
  if (words.length === 0 && rest.at(newFrom - 1)?.role !== 'tool') {
    const where = last?.place ?? field
    throw invalid(where, 'The last message must be of the user, or the answer of a tool.')
  }
  const added = rest.slice(newFrom).filter(({ role }) => role === 'system')
  const instructions = [...head, ...added].flatMap((one) => (one.role === 'system' ? [one.text] : [])).join('\n\n')
  const known = toMessages(rest.slice(0, newFrom))
  const beside = instructions === '' ? {} : { instructions }
  if (words.length > 0) return { ...beside, message: words.join('\n\n'), before: known }
  const answers = known.at(-1)?.parts ?? []
  return {
    ...beside,
    tool_results: answers.map(({ call_id = '', output }) => ({ call_id, output })),
    before: known.slice(0, -1),
  }
}

/** @throws Problem `invalid_request` with the name of the field */
export function invalid(param: string, detail: string): Problem {
  return new Problem('invalid_request', detail, { members: { param } })
}

/** Replies that came apart joined, and answers to one reply in one message. */
function toMessages(said: readonly Said[]): SaidMessage[] {
  const messages: { role: Said['role']; parts: Part[] }[] = []
  let calls: readonly Part[] = []
  for (const one of said) {
    const last = messages.at(-1)
    if (one.role === 'assistant') {
      if (last?.role === 'assistant') last.parts.push(...one.parts)
      else messages.push({ role: 'assistant', parts: [...one.parts] })
      calls = messages.at(-1)?.parts.filter(({ kind }) => kind === 'tool_call') ?? []
    } else if (one.role === 'tool') {
      const call = calls.find(({ call_id }) => call_id === one.callId)
      const isBehind = last?.role === 'assistant' || last?.role === 'tool'
      if (call === undefined || !isBehind) throw invalid(one.place, 'It answers no call of the message before it.')
      const part: Part = { kind: 'tool_call', text: '', call_id: one.callId, name: call.name ?? '', output: one.output }
      if (last.role === 'tool') last.parts.push(part)
      else messages.push({ role: 'tool', parts: [part] })
    } else messages.push({ role: one.role, parts: [{ kind: 'text', text: one.text }] })
  }
  return messages
}
