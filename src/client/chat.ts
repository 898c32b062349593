/**
 * One conversation as a screen shows it, without a framework: the stored messages, the reply that grows, and what a person
 * can do. A store has a snapshot that never changes and listeners that hear of the next one, which is what React, Svelte
 * and the like ask for.
 *
 * `open` loads the session and follows its reply; `close` leaves, and the run goes on; both may be called again, in turn.
 * A message is shown at once and taken back when the gateway refuses it. Leaving does not take back what is being sent: it is
 * accepted or refused all the same, and from then on the store knows. Nothing else that was under way is shown after `close`.
 * What was asked for and not accepted keeps its key, so that asking once more cannot count twice.
 *
 * What fails is in `error`, in words that can be decided by (errors.ts); nothing here throws.
 */
import type { Client, EditInput, SendInput } from './client.ts'
import { GatewayError } from './errors.ts'
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
  /** Of what is being sent, as soon as it is accepted. */
  stop(): Promise<void>
}

/** 200 pages of the gateway, and more than any screen is for. */
const messagesMax = 20_000
const unfinished: ReadonlySet<string> = new Set(['streaming', 'queued', 'running'])

interface Question {
  /** Two that are the same in this are the same question. */
  readonly what: readonly (string | undefined)[]
  /** The caller's own. */
  readonly key: string | undefined
  /** The messages while the gateway is asked, without the reply that is asked for. */
  readonly shown: (key: string) => readonly ChatMessage[]
  readonly start: (key: string) => Reply
}

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
  /** What was asked for last and not accepted. Its answer may be all that was lost. */
  let unaccepted: { readonly what: string; readonly key: string } | undefined

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
    if (id === undefined) return
    show({ status: 'loading', error: undefined })
    const messages: ChatMessage[] = []
    for await (const message of client.sessions.allMessages(id, { branch: 'active' }, { signal })) {
      if (messages.length === messagesMax) throw new Error(`This chat has more than ${messagesMax} messages.`)
      messages.push(message)
    }
    if (signal.aborted) return
    // What was accepted and not known to be is on the screen now, and the same words once more are another message.
    unaccepted = undefined
    const last = messages.at(-1)
    if (last?.role !== 'assistant' || !unfinished.has(last.status) || last.run_id === null) {
      return show({ messages, status: 'ready' })
    }
    show({ messages, status: 'streaming' })
    const { cursor } = last as Message
    await follow(
      client.chat.attach({
        runId: last.run_id,
        sessionId: id,
        messageId: last.id,
        ...(cursor === undefined ? {} : { after: cursor, parts: last.parts }),
      }),
      signal,
    )
  }

  /** Shows a reply, which is the last message, to its end. */
  async function follow(followed: Reply, signal: AbortSignal): Promise<void> {
    reply = followed
    const leave = () => followed.close()
    signal.addEventListener('abort', leave)
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
      signal.removeEventListener('abort', leave)
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

  async function ask({ what, key: given, shown, start }: Question): Promise<boolean> {
    if (snapshot.status !== 'ready') return false
    visit ??= new AbortController()
    const before = snapshot.messages
    const key = given ?? keyOf(what)
    show({ messages: [...shown(key), emptyReply], status: 'sending', error: undefined })
    // Without the visit's signal: who leaves now has sent it.
    const started = start(key)
    reply = started
    try {
      const { runId, sessionId, messageId } = await started.accepted
      unaccepted = undefined
      showReply({ id: messageId, run_id: runId }, { sessionId, status: 'streaming' })
    } catch (error) {
      reply = undefined
      // Under this key the gateway has something else, and it will never be this.
      if (error instanceof GatewayError && error.code === 'idempotency_mismatch') unaccepted = undefined
      show({ messages: before, status: 'ready', error: error as Error })
      return false
    }
    if (visit === undefined) {
      reply = undefined
      started.close()
    } else {
      const { signal } = visit
      follow(started, signal).catch((error) => fail(error, signal))
    }
    return true
  }

  function keyOf(what: readonly (string | undefined)[]): string {
    const name = JSON.stringify(what)
    if (unaccepted?.what !== name) unaccepted = { what: name, key: randomKey() }
    return unaccepted.key
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
      // What is being sent is on the screen still, and is followed from its acceptance on.
      if (snapshot.status === 'sending') return
      const { signal } = visit
      load(signal).catch((error) => fail(error, signal))
    },
    close() {
      visit?.abort()
      visit = undefined
    },
    send(message, options = {}) {
      const { sessionId } = snapshot
      const session = sessionId === undefined ? {} : { session_id: sessionId }
      return ask({
        what: ['send', sessionId, message],
        key: options.client_message_id,
        shown: (key) => [...snapshot.messages, question(key, message)],
        start: (key) => client.chat.send({ ...options, ...session, message, client_message_id: key }),
      })
    },
    regenerate(messageId, options = {}) {
      return ask({
        what: ['regenerate', messageId],
        key: options.client_message_id,
        shown: () => before(messageId),
        start: (key) => client.chat.regenerate(messageId, { ...options, client_message_id: key }),
      })
    },
    edit(messageId, message, options = {}) {
      return ask({
        what: ['edit', messageId, message],
        key: options.client_message_id,
        shown: (key) => [...before(messageId), question(key, message)],
        start: (key) => client.chat.edit(messageId, { ...options, message, client_message_id: key }),
      })
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
