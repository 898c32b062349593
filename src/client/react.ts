/**
 * `verbatim/client/react`: one conversation as a hook. It is the store of chat.ts and nothing else, so what a component
 * shows survives strict mode, which mounts it twice: the store is left and opened again, and a run does not notice.
 *
 * The session may change from one render to the next; the store of before is then left. A new session whose id the caller
 * learns from the hook, and hands in again, is the same conversation.
 */
import { useEffect, useState, useSyncExternalStore } from 'react'
import { type ChatSnapshot, type ChatStore, createChat } from './chat.ts'
import type { Client } from './client.ts'

export type { ChatMessage, ChatSnapshot, ChatStatus, MessageOptions } from './chat.ts'

export interface UseChatOptions {
  /** Absent: a new session, made with the first message. */
  readonly sessionId?: string | undefined
}

export type UseChat = ChatSnapshot & Pick<ChatStore, 'send' | 'regenerate' | 'edit' | 'stop'>

export function useChat(client: Client, { sessionId }: UseChatOptions = {}): UseChat {
  const [held, setHeld] = useState(() => hold(client, sessionId))
  const isSame = held.client === client && (held.sessionId === sessionId || held.chat.snapshot.sessionId === sessionId)
  const current = !isSame ? hold(client, sessionId) : held.sessionId === sessionId ? held : { ...held, sessionId }
  if (current !== held) setHeld(current)
  const { chat } = current
  const snapshot = useSyncExternalStore(
    chat.subscribe,
    () => chat.snapshot,
    () => chat.snapshot,
  )
  useEffect(() => {
    chat.open()
    return chat.close
  }, [chat])
  const { send, regenerate, edit, stop } = chat
  return { ...snapshot, send, regenerate, edit, stop }
}

/** @param sessionId as the caller has named it last */
function hold(client: Client, sessionId: string | undefined) {
  return { client, sessionId, chat: createChat(client, sessionId) }
}
