/**
 * A client for tests: one visitor or user, JSON requests, and streams read the way the protocol says. It remembers
 * everything it was sent, and folds events into the text that a person would see.
 */
import { type Arrivals, readArrivals } from './arrivals.ts'

export interface Received {
  readonly event: string
  // biome-ignore lint/suspicious/noExplicitAny: what a server sends is checked by the test that reads it
  readonly data: any
  readonly id: string | undefined
}

export interface Stream extends Arrivals<Received> {
  readonly status: number
  readonly headers: Headers
  /** Closes the connection as a closed tab does. */
  close(): void
}

export interface Answer {
  readonly status: number
  readonly headers: Headers
  // biome-ignore lint/suspicious/noExplicitAny: as above
  readonly body: any
}

export type Client = ReturnType<typeof createClient>

/** @param headers identify the client; without any it is a visitor, and keeps the token of its first answer */
export function createClient(url: string, headers: Record<string, string> = {}) {
  const identity: Record<string, string> = { ...headers }

  function remember(response: Response): void {
    const token = response.headers.get('x-visitor-token')
    if (token !== null && Object.keys(headers).length === 0) identity['x-visitor-token'] = token
  }

  async function request(method: string, path: string, body?: unknown, extra: Record<string, string> = {}) {
    const response = await fetch(`${url}${path}`, {
      method,
      headers: { ...identity, ...(body === undefined ? {} : { 'content-type': 'application/json' }), ...extra },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    })
    remember(response)
    const text = await response.text()
    const json = response.headers.get('content-type')?.includes('json') === true
    const answer: Answer = { status: response.status, headers: response.headers, body: json ? JSON.parse(text) : text }
    return answer
  }

  async function open(method: string, path: string, body?: unknown, extra: Record<string, string> = {}) {
    const abort = new AbortController()
    const response = await fetch(`${url}${path}`, {
      method,
      headers: { ...identity, ...(body === undefined ? {} : { 'content-type': 'application/json' }), ...extra },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      signal: abort.signal,
    })
    remember(response)
    return readStream(response, abort)
  }

  return {
    identity,
    get: (path: string, extra?: Record<string, string>) => request('GET', path, undefined, extra),
    post: (path: string, body?: unknown, extra?: Record<string, string>) => request('POST', path, body, extra),
    put: (path: string, body?: unknown, extra?: Record<string, string>) => request('PUT', path, body, extra),
    patch: (path: string, body?: unknown, extra?: Record<string, string>) => request('PATCH', path, body, extra),
    delete: (path: string, extra?: Record<string, string>) => request('DELETE', path, undefined, extra),
    /** Opens a stream of any kind. */
    open,
    /** Sends a message and reads the reply's stream. */
    send: (body: unknown, extra?: Record<string, string>) => open('POST', '/api/v1/chat/stream', body, extra),
    /** Opens a stream with GET. */
    watch: (path: string, extra?: Record<string, string>) => open('GET', path, undefined, extra),
    async messages(sessionId: string) {
      const answer = await request('GET', `/api/v1/sessions/${sessionId}/messages?limit=100`)
      return answer.body.data
    },
  }
}

function readStream(response: Response, abort: AbortController): Stream {
  return {
    status: response.status,
    headers: response.headers,
    ...readArrivals(response, ({ event = 'message', data, id }): Received => ({ event, data: JSON.parse(data), id })),
    close: () => abort.abort(),
  }
}

export const isDone = (event: Received) => event.event === 'done'
export const isDelta = (event: Received) => event.event === 'delta'

export interface HeldPart {
  kind: string
  text: string
}

/**
 * What a client holds after these events, by the protocol's rules.
 * @throws when a delta does not join exactly to what is held: that would be a gap or a duplicate
 */
export function holdParts(events: readonly Received[], held: HeldPart[] = []): HeldPart[] {
  let parts = structuredClone(held)
  for (const { event, data } of events) {
    if (event === 'reset') parts = data.parts.map(({ kind, text }: HeldPart) => ({ kind, text }))
    if (event === 'part') parts[data.part] = { kind: data.kind, text: '' }
    if (event === 'source') parts[data.part] = { kind: 'source', text: '' }
    if (event !== 'delta') continue
    const part = parts[data.part] ?? { kind: 'text', text: '' }
    if (part.text.length !== data.offset) throw new Error(`offset ${data.offset}, but ${part.text.length} held`)
    part.text += data.text
    parts[data.part] = part
  }
  return parts
}

/** The words that a person sees: the text parts, joined. */
export function shownText(events: readonly Received[], held?: HeldPart[]): string {
  return holdParts(events, held)
    .filter((part) => part.kind === 'text')
    .map((part) => part.text)
    .join('')
}
