/**
 * A session on the screen, until the reader leaves it: its messages of all branches, and which of them are shown. What is
 * here is either stored in the gateway or on its way there.
 */
import type { Done, Feedback, Message, Part, Reply } from '../client/index.ts'
import { newest, type Placed, pathTo } from './branches.ts'

/** A message as far as the page shows it. One that is being made changes in place. */
export interface Shown {
  id: string
  parent_id: string | null
  readonly seq: number
  readonly role: Message['role']
  status: Message['status']
  parts: readonly Part[]
  run_id: string | null
  cursor?: string | undefined
  error: Message['error']
  feedback: Feedback | null
  model: string | null
  total_tokens: number | null
  cost_usd: string | null
  latency_ms: number | null
  ttft_ms: number | null
}

/** The reader went to another session. */
export class Left extends Error {}

export type Conversation = ReturnType<typeof createConversation>

/** @param sessionId null until the first message of a new chat is accepted */
export function createConversation(sessionId: string | null) {
  const leaving = new AbortController()
  return {
    sessionId,
    messages: [] as Shown[],
    /** The last message of the branch on the screen; undefined is the newest. */
    leaf: undefined as string | undefined,
    /** What is being followed. */
    reply: undefined as Reply | undefined,
    /** Nothing is loading or running in it, so that a message can be sent. */
    idle: true,
    signal: leaving.signal,
    leave: () => leaving.abort(new Left()),
    /** @throws {Left} when the reader has left: nothing of it may reach the screen any more */
    stay: () => leaving.signal.throwIfAborted(),
    path(): readonly Placed<Shown>[] {
      return pathTo(this.messages, this.leaf)
    },
    nextSeq(): number {
      return (newest(this.messages)?.seq ?? 0) + 1
    },
  }
}

export function readMessage(message: Message): Shown {
  const text = { kind: 'text', text: message.content } as const
  // What a gateway of another version does not say is not known.
  return { ...blank, ...message, parts: message.parts.length > 0 || message.content === '' ? message.parts : [text] }
}

export function userMessage(id: string, parentId: string | null, seq: number, text: string): Shown {
  return { ...blank, id, parent_id: parentId, seq, role: 'user', status: 'completed', parts: [{ kind: 'text', text }] }
}

export function replyMessage(id: string, parentId: string | null, seq: number, runId: string): Shown {
  return { ...blank, id, parent_id: parentId, seq, role: 'assistant', status: 'streaming', parts: [], run_id: runId }
}

export function end(message: Shown, done: Done): void {
  message.status = done.status
  message.error = done.error ?? null
  message.total_tokens = done.usage?.total_tokens ?? null
  message.cost_usd = done.cost_usd ?? null
  message.latency_ms = done.latency_ms ?? null
  message.ttft_ms = done.ttft_ms ?? null
}

const blank = {
  run_id: null,
  error: null,
  feedback: null,
  model: null,
  total_tokens: null,
  cost_usd: null,
  latency_ms: null,
  ttft_ms: null,
} as const
