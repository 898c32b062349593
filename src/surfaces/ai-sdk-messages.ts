/**
 * Stored messages as `useChat` holds them (UIMessage). A reply's parts are made of the very chunks that its viewers were
 * sent (ai-sdk.ts), by the rules of the SDK, so what a page loads is what it would hold if it had watched. Only of a call
 * that was left open when its reply broke off it learns more: that no answer to it would be taken.
 *
 * A reply that went on after the client had answered its calls is one message, with the answers in it. A reply that is
 * being made is left out: whoever loads the page is shown it from its beginning by the stream.
 */
import { type Static, Type } from 'typebox'
import type { Part } from '../log/event.ts'
import { type Chunk, sayAnswers, sayReply } from './ai-sdk.ts'

export const UiMessage = Type.Object({
  id: Type.String(),
  role: Type.Union([Type.Literal('system'), Type.Literal('user'), Type.Literal('assistant')]),
  metadata: Type.Optional(Type.Record(Type.String(), Type.Unknown())),
  parts: Type.Array(Type.Record(Type.String(), Type.Unknown()), { description: 'UIMessagePart of the AI SDK' }),
})
export type UiMessage = Static<typeof UiMessage>

/** What is looked at of a message. */
export interface StoredMessage {
  readonly id: string
  readonly role: 'system' | 'user' | 'assistant' | 'tool'
  readonly status: string
  readonly parts: readonly Part[]
  readonly client_message_id: string | null
  readonly metadata: Readonly<Record<string, unknown>>
}

/** Member of a message's metadata: the id that its sender gave it, where that is not its idempotency key. */
export const uiIdMember = 'ui_message_id'

/** @param messages one way through a session, oldest first */
export function toUiMessages(messages: readonly StoredMessage[]): UiMessage[] {
  const shown: UiMessage[] = []
  let reply: { readonly id: string; readonly chunks: Chunk[]; round: number } | undefined
  let before: StoredMessage | undefined

  function showReply(): void {
    if (reply !== undefined) shown.push({ id: reply.id, role: 'assistant', parts: toUiParts(reply.chunks) })
    reply = undefined
  }

  for (const message of messages) {
    const { id, role, parts } = message
    if (role === 'tool') reply?.chunks.push(...sayAnswers(parts))
    else if (role !== 'assistant') {
      showReply()
      shown.push(toSaying(message, role))
    } else if (message.status !== 'streaming') {
      if (before?.role !== 'tool') showReply()
      if (reply === undefined) reply = { id, chunks: [], round: 0 }
      else reply.round += 1
      reply.chunks.push(...sayReply({ round: reply.round, status: message.status }, parts))
    }
    before = message
  }
  showReply()
  return shown
}

function toSaying({ id, parts, client_message_id, metadata }: StoredMessage, role: 'system' | 'user'): UiMessage {
  const { [uiIdMember]: uiId, ...own } = metadata
  return {
    id: typeof uiId === 'string' ? uiId : (client_message_id ?? id),
    role,
    ...(Object.keys(own).length > 0 && { metadata: own }),
    parts: parts.flatMap(({ kind, text }) => (kind === 'text' ? [{ type: 'text', text }] : [])),
  }
}

/** The parts of a message to which this was said. */
export function toUiParts(chunks: readonly Chunk[]): UiMessage['parts'] {
  const parts: UiMessage['parts'] = []
  const words = new Map<string, { text: string; state: string }>()
  const calls = new Map<string, Record<string, unknown>>()

  function open(id: string, type: 'text' | 'reasoning'): void {
    const part = { type, text: '', state: 'streaming' }
    words.set(`${type} ${id}`, part)
    parts.push(part)
  }

  function close(id: string, type: 'text' | 'reasoning'): void {
    Object.assign(words.get(`${type} ${id}`) ?? {}, { state: 'done' })
  }

  function grow(id: string, type: 'text' | 'reasoning', delta: string): void {
    const part = words.get(`${type} ${id}`)
    if (part !== undefined) part.text += delta
  }

  /** Of several calls with one id the newest is meant. Who executed a call stays as it was said. */
  function change(toolCallId: string, { providerExecuted, ...state }: UiMessage['parts'][number]): void {
    const part = calls.get(toolCallId)
    if (part === undefined) return
    delete part.output
    delete part.errorText
    Object.assign(part, state, providerExecuted === true && { providerExecuted })
  }

  for (const chunk of chunks) {
    switch (chunk.type) {
      case 'start-step':
        parts.push({ type: 'step-start' })
        break
      case 'text-start':
        open(chunk.id, 'text')
        break
      case 'reasoning-start':
        open(chunk.id, 'reasoning')
        break
      case 'text-delta':
        grow(chunk.id, 'text', chunk.delta)
        break
      case 'reasoning-delta':
        grow(chunk.id, 'reasoning', chunk.delta)
        break
      case 'text-end':
        close(chunk.id, 'text')
        break
      case 'reasoning-end':
        close(chunk.id, 'reasoning')
        break
      case 'tool-input-start': {
        const { toolCallId, toolName } = chunk
        const part = { type: `tool-${toolName}`, toolCallId, state: 'input-streaming' }
        calls.set(toolCallId, part)
        parts.push(part)
        break
      }
      case 'tool-input-available': {
        const { toolCallId, input, providerExecuted } = chunk
        change(toolCallId, { state: 'input-available', input, providerExecuted })
        break
      }
      case 'tool-output-available': {
        const { toolCallId, output, providerExecuted } = chunk
        change(toolCallId, { state: 'output-available', output, providerExecuted })
        break
      }
      case 'tool-output-error': {
        const { toolCallId, errorText, providerExecuted } = chunk
        change(toolCallId, { state: 'output-error', errorText, providerExecuted })
        break
      }
      case 'source-url':
      case 'source-document':
      case 'file':
        parts.push({ ...chunk })
        break
    }
  }
  return parts
}
