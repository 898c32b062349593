/** A client of the AI SDK surface for tests: what `useChat` and its transport send, and what they read, without React. */
import { type Arrivals, readArrivals } from '../support/arrivals.ts'
import type { Client } from '../support/client.ts'

export interface UiChunk {
  readonly type: string
  // biome-ignore lint/suspicious/noExplicitAny: what a server sends is checked by the test that reads it
  readonly [member: string]: any
}

export interface UiStream extends Pick<Arrivals<UiChunk>, 'text' | 'until'> {
  readonly status: number
  readonly headers: Headers
  readonly chunks: readonly UiChunk[]
  /** Of the last event with one. */
  readonly lastId: () => string
  /** Resolves when the body has ended: `done` behind [DONE], `clean` without it, `cut` when the connection broke. */
  readonly ended: Promise<'done' | 'clean' | 'cut'>
  close(): void
}

export interface UiSent {
  readonly id: string
  readonly messages: readonly unknown[]
  readonly [member: string]: unknown
}

export const userMessage = (id: string, ...texts: readonly string[]) => ({
  id,
  role: 'user',
  parts: texts.map((text) => ({ type: 'text', text })),
})

/** The words of all text parts. */
export const wordsOf = (chunks: readonly UiChunk[]): string =>
  chunks.map(({ type, delta }) => (type === 'text-delta' ? delta : '')).join('')

export const isWords = ({ type }: UiChunk): boolean => type === 'text-delta'

/** @param client whose identity is used, and whose first answer makes it */
export function createUiClient(url: string, client: Client) {
  async function open(path: string, init: RequestInit, headers: Record<string, string> = {}): Promise<UiStream> {
    const abort = new AbortController()
    const response = await fetch(`${url}${path}`, {
      ...init,
      headers: { ...client.identity, 'content-type': 'application/json', ...headers },
      signal: abort.signal,
    })
    const token = response.headers.get('x-visitor-token')
    if (token !== null) client.identity['x-visitor-token'] ??= token
    return read(response, abort)
  }

  return {
    client,
    /** As the transport posts: a message of the user, unless `more` says otherwise. */
    send: (sent: UiSent, headers?: Record<string, string>) =>
      open('/api/chat', { method: 'POST', body: JSON.stringify({ trigger: 'submit-message', ...sent }) }, headers),
    resume: (chat: string, lastId?: string) =>
      open(`/api/chat/${encodeURIComponent(chat)}/stream`, {}, lastId === undefined ? {} : { 'last-event-id': lastId }),
    load: async (chat: string) => (await client.get(`/api/chat/${encodeURIComponent(chat)}`)).body,
  }
}

function read(response: Response, abort: AbortController): UiStream {
  let lastId = ''
  let isDone = false
  const { received, ended, text, until } = readArrivals(response, ({ data, id }): UiChunk | undefined => {
    lastId = id ?? lastId
    isDone = data === '[DONE]'
    return isDone ? undefined : JSON.parse(data)
  })
  return {
    status: response.status,
    headers: response.headers,
    chunks: received,
    lastId: () => lastId,
    text,
    ended: ended.then((how) => (how === 'clean' && isDone ? 'done' : how)),
    until,
    close: () => abort.abort(),
  }
}
