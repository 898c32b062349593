/**
 * One conversation as a screen shows it, without a framework: the stored messages, the reply that grows, and what a person
 * can do. A store has a snapshot that never changes and listeners that hear of the next one, which is what React, Svelte
 * and the like ask for.
 *
 * `open` loads the session and follows its reply; `close` leaves, and the run goes on; both may be called again, in turn.
 * A message is shown at once and taken back when the gateway refuses it. After `close` nothing that was under way is shown.
 * What fails is in `error`, in words that can be decided by (errors.ts); nothing here throws.
 */
import type { Client, EditInput, SendInput } from './client.ts'
import { textOf } from './fold.ts'
import { randomKey } from './random.ts'
import type { Reply } from './reply.ts'
import type { Message } from './types.ts'

/** Of a stored message, what a screen needs. A message that is just being sent has its key for an id. */
export type ChatMessage = Pick<Message, 'id' | 'role' | 'status' | 'content' | 'parts' | 'run_id' | 'error'>

/** `sending`: until the gateway has accepted it. `waiting`: the reply goes on, and the connection to it is broken. */
export type ChatStatus = 'loading' | 'ready' | 'sending' | 'streaming' | 'waiting'

export interface ChatSnapshot {
  readonly sessionId: string | undefined
  readonly messages: readonly ChatMessage[]
  readonly status: ChatStatus
  /** Of what was asked last. A reply that failed says so itself, in its `status` and `error`. */
  readonly error: Error | undefined
}

/** What goes with a message beside its words. */
export type MessageOptions = Omit<SendInput, 'message' | 'tool_results' | 'session_id'>

export interface ChatStore {
  readonly snapshot: ChatSnapshot
  /** @returns what ends it */
  subscribe(listener: () => void): () => void
  open(): void
  close(): void
  /** Resolves when the gateway has accepted it, with false when it has not: then the words are still the author's. */
  send(message: string, options?: MessageOptions): Promise<boolean>
  /** Another reply in the place of one. */
  regenerate(messageId: string, options?: Parameters<Client['chat']['regenerate']>[1]): Promise<boolean>
  /** Other words in a message's place, and a reply to them. */
  edit(messageId: string, message: string, options?: Omit<EditInput, 'message'>): Promise<boolean>
  stop(): Promise<void>
}

const unfinished: ReadonlySet<string> = new Set(['streaming', 'queued', 'running'])

export function createChat(client: Client, sessionId?: string): ChatStore {
  const listeners = new Set<() => void>()
  let snapshot: ChatSnapshot = {
    sessionId,
    messages: [],
    status: sessionId === undefined ? 'ready' : 'loading',
    error: undefined,
  }
  let visit: AbortController | undefined
  let reply: Reply | undefined

  function show(change: Partial<ChatSnapshot>): void {
    snapshot = { ...snapshot, ...change }
    for (const listener of listeners) listener()
  }

  /** Puts the last message anew. */
  function showReply(change: Partial<ChatMessage>, more: Partial<ChatSnapshot> = {}): void {
    const last = snapshot.messages.at(-1)
    if (last === undefined) return
    show({ messages: [...snapshot.messages.slice(0, -1), { ...last, ...change }], ...more })
  }

  async function load(signal: AbortSignal): Promise<void> {
    const id = snapshot.sessionId
    if (id === undefined) {
      // It was left before its first message was accepted.
      if (snapshot.status !== 'ready') show({ messages: [], status: 'ready' })
      return
    }
    show({ status: 'loading', error: undefined })
    const messages: ChatMessage[] = []
    for await (const message of client.sessions.allMessages(id, { branch: 'active' }, { signal }))
      messages.push(message)
    if (signal.aborted) return
    const last = messages.at(-1)
    if (last?.role !== 'assistant' || !unfinished.has(last.status) || last.run_id === null) {
      return show({ messages, status: 'ready' })
    }
    show({ messages, status: 'streaming' })
    const { cursor } = last as Message
    await follow(
      client.chat.attach(
        {
          runId: last.run_id,
          sessionId: id,
          messageId: last.id,
          ...(cursor === undefined ? {} : { after: cursor, parts: last.parts }),
        },
        { signal },
      ),
      signal,
    )
  }

  /** Shows a reply, which is the last message, to its end. */
  async function follow(followed: Reply, signal: AbortSignal): Promise<void> {
    reply = followed
    try {
      for await (const event of followed) {
        if (signal.aborted) return
        if (event.type === 'connection' && event.state === 'waiting') show({ status: 'waiting' })
        else if (event.type === 'connection' && event.state === 'open') show({ status: 'streaming' })
        else if (event.type === 'run') nameQuestion(event.data.user_message_id)
        else if (event.type === 'done') showReply({ status: event.data.status, error: event.data.error ?? null })
        else if (followed.parts !== snapshot.messages.at(-1)?.parts) {
          showReply({ parts: followed.parts, content: followed.text })
        }
      }
    } finally {
      if (reply === followed) reply = undefined
    }
    if (!signal.aborted) show({ status: 'ready' })
  }

  /** The id of the message that was sent is in the run's first event. */
  function nameQuestion(id: string): void {
    const index = snapshot.messages.length - 2
    const messages = snapshot.messages.map((message, at) =>
      at === index && message.role === 'user' ? { ...message, id } : message,
    )
    show({ messages })
  }

  /** @param shown the messages while the gateway is asked, without the reply that is asked for */
  async function ask(shown: readonly ChatMessage[], start: (signal: AbortSignal) => Reply): Promise<boolean> {
    if (snapshot.status !== 'ready') return false
    visit ??= new AbortController()
    const { signal } = visit
    const before = snapshot.messages
    show({ messages: [...shown, emptyReply], status: 'sending', error: undefined })
    const started = start(signal)
    try {
      const { runId, sessionId, messageId } = await started.accepted
      if (signal.aborted) return true
      const last = { id: messageId, run_id: runId }
      showReply(last, { sessionId, status: 'streaming' })
    } catch (error) {
      if (!signal.aborted) show({ messages: before, status: 'ready', error: error as Error })
      return false
    }
    follow(started, signal).catch((error) => fail(error, signal))
    return true
  }

  function fail(error: unknown, signal: AbortSignal): void {
    if (!signal.aborted) show({ status: 'ready', error: error as Error })
  }

  /** The messages before one, or all when it is not there. */
  function before(messageId: string): readonly ChatMessage[] {
    const index = snapshot.messages.findIndex(({ id }) => id === messageId)
    return index < 0 ? snapshot.messages : snapshot.messages.slice(0, index)
  }

  return {
    get snapshot() {
      return snapshot
    },
    subscribe(listener) {
      listeners.add(listener)
      return () => listeners.delete(listener)
    },
    open() {
      if (visit !== undefined) return
      visit = new AbortController()
      const { signal } = visit
      load(signal).catch((error) => fail(error, signal))
    },
    close() {
      visit?.abort()
      visit = undefined
    },
    send(message, options = {}) {
      const key = randomKey()
      const session = snapshot.sessionId === undefined ? {} : { session_id: snapshot.sessionId }
      return ask([...snapshot.messages, question(key, message)], (signal) =>
        client.chat.send({ client_message_id: key, ...options, ...session, message }, { signal }),
      )
    },
    regenerate(messageId, options) {
      return ask(before(messageId), (signal) => client.chat.regenerate(messageId, options, { signal }))
    },
    edit(messageId, message, options = {}) {
      return ask([...before(messageId), question(randomKey(), message)], (signal) =>
        client.chat.edit(messageId, { ...options, message }, { signal }),
      )
    },
    async stop() {
      try {
        await reply?.stop()
      } catch (error) {
        show({ error: error as Error })
      }
    },
  }
}

const emptyReply: ChatMessage = {
  id: '',
  role: 'assistant',
  status: 'streaming',
  content: '',
  parts: [],
  run_id: null,
  error: null,
}

function question(id: string, text: string): ChatMessage {
  const parts = [{ kind: 'text', text }] as const
  return { id, role: 'user', status: 'completed', content: textOf(parts), parts, run_id: null, error: null }
}
