/**
 * The client: what the gateway offers, as functions. It keeps nothing but who it is; sessions, messages and runs are the
 * gateway's, and asked for each time. What starts a run or can be asked for twice carries a key, and is repeated when the
 * answer does not come; what cannot be is left to the caller (`sessions.create` without an id, `update`).
 */

import { ConnectionError } from './errors.ts'
import { randomKey } from './random.ts'
import { createReply, type Reply } from './reply.ts'
import { createTransport, pathOf, type RequestOptions, type TransportOptions } from './transport.ts'
import type {
  Artifact,
  ArtifactList,
  BranchBody,
  ChatBody,
  Claimed,
  CreateSessionBody,
  DayUsage,
  EditBody,
  FeedbackBody,
  ListMessagesQuery,
  ListSessionsQuery,
  Message,
  MessageFeedback,
  Page,
  Part,
  PatchSessionBody,
  Run,
  Session,
  SessionWithMembers,
  StartBody,
  StartedSession,
  StoppedRun,
  StreamTicket,
  ToolResult,
} from './types.ts'
import { type ClientLimits, defaultLimits } from './waiting.ts'

export interface ClientOptions extends TransportOptions {
  readonly limits?: Partial<ClientLimits>
}

/** A message, or answers to the tool calls with which a reply has ended. */
export type SendInput = ChatBody &
  ({ readonly message: string } | { readonly tool_results: readonly ToolResult[]; readonly session_id: string })

export interface AttachInput {
  readonly runId: string
  readonly sessionId?: string
  /** Of the reply. */
  readonly messageId?: string
  /** A cursor: the id of the last event that is there. */
  readonly after?: string
  /** What is held up to that cursor. */
  readonly parts?: readonly Part[]
}

export interface WithSignal {
  readonly signal?: AbortSignal
}

export type ExportFormat = 'json' | 'md' | 'ndjson'

export interface Client {
  readonly chat: {
    /** Sends a message, at once, also when nobody iterates. `client_message_id` is made when it is absent. */
    send(input: SendInput, options?: WithSignal): Reply
    /** Another reply to the same message. */
    regenerate(messageId: string, input?: BranchInput, options?: WithSignal): Reply
    /** Another message in a message's place, and a reply to it. */
    edit(messageId: string, input: EditInput, options?: WithSignal): Reply
    /** Follows a run that is there. */
    attach(run: AttachInput, options?: WithSignal): Reply
  }
  readonly runs: {
    get(id: string): Promise<Run>
    stop(id: string): Promise<StoppedRun>
    /** For an EventSource that can send neither cookie nor header. */
    ticket(id: string): Promise<StreamTicket>
    /** The address for such an EventSource, with a fresh ticket. It is a credential: keep it out of logs. */
    ticketUrl(id: string, after?: string): Promise<string>
  }
  readonly sessions: {
    list(query?: ListSessionsQuery, options?: WithSignal): Promise<Page<Session>>
    get(id: string, include?: readonly ('messages' | 'artifacts')[], options?: WithSignal): Promise<SessionWithMembers>
    create(body?: CreateSessionBody): Promise<Session>
    /** `ifMatch`: the version as it was read, or the ETag. */
    update(id: string, patch: PatchSessionBody, options?: { readonly ifMatch?: number | string }): Promise<Session>
    /** `purge` erases for good. */
    delete(id: string, options?: { readonly purge?: boolean }): Promise<void>
    restore(id: string): Promise<Session>
    /** Undefined when nothing ran. */
    stop(id: string): Promise<StoppedRun | undefined>
    start(id: string, body?: StartBody): Promise<StartedSession>
    kill(id: string): Promise<Session>
    messages(id: string, query?: ListMessagesQuery, options?: WithSignal): Promise<Page<Message>>
    /** All pages, one after the other. */
    allMessages(id: string, query?: Omit<ListMessagesQuery, 'cursor'>, options?: WithSignal): AsyncIterable<Message>
    export(id: string, format?: ExportFormat, options?: WithSignal): Promise<Blob>
    /** A visitor has logged in: what was the visitor's becomes the user's. */
    claim(visitorToken?: string): Promise<Claimed>
    artifacts(id: string): Promise<ArtifactList>
    artifact(id: string, name: string, query?: { readonly version?: number }): Promise<Artifact>
  }
  readonly messages: {
    feedback(id: string, feedback: FeedbackBody): Promise<MessageFeedback>
  }
  readonly me: {
    usage(): Promise<DayUsage>
    /** All that the caller owns, as NDJSON. */
    export(options?: WithSignal): Promise<Blob>
    /** Erases all of it. */
    delete(): Promise<void>
  }
  /** For what is not above. @param path below `/api/v1`, such as `/models` */
  request<T>(method: string, path: string, options?: RequestOptions): Promise<T>
}

export type BranchInput = BranchBody
export type EditInput = EditBody

export function createClient(options: ClientOptions = {}): Client {
  const transport = createTransport(options, { ...defaultLimits, ...options.limits })
  const { request, requestBlob } = transport
  const get = <T>(path: string, options?: WithSignal) => request<T>('GET', path, options)
  const post = <T>(path: string, options?: RequestOptions) => request<T>('POST', path, options)
  const again = { idempotent: true } as const

  function start(path: string, input: { readonly client_message_id?: string }, options: WithSignal = {}): Reply {
    const body = { client_message_id: randomKey(), ...withoutAbsent(input) }
    const headers = { accept: 'text/event-stream' }
    return createReply(
      transport,
      { start: (signal) => transport.ask('POST', path, { body, headers }, signal) },
      options.signal,
    )
  }

  async function ticket(id: string): Promise<StreamTicket> {
    return post('/stream-tickets', { body: { run_id: id }, ...again })
  }

  async function* allMessages(id: string, query: Omit<ListMessagesQuery, 'cursor'> = {}, options?: WithSignal) {
    let cursor: string | null | undefined
    do {
      const page: Page<Message> = await get(
        pathOf`/sessions/${id}/messages` + queryOf({ limit: messagePageMax, ...query, cursor }),
        options,
      )
      yield* page.data
      if (page.next_cursor && page.next_cursor === cursor) throw new ConnectionError('The pages have no end.')
      cursor = page.next_cursor
    } while (cursor)
  }

  return {
    chat: {
      send: (input, options) => start('/chat/stream', input, options),
      regenerate: (id, input = {}, options) => start(pathOf`/messages/${id}/regenerate`, input, options),
      edit: (id, input, options) => start(pathOf`/messages/${id}/edit`, input, options),
      attach: (run, options) => createReply(transport, run, options?.signal),
    },
    runs: {
      get: (id) => get(pathOf`/runs/${id}`),
      stop: (id) => post(pathOf`/runs/${id}/stop`, again),
      ticket,
      async ticketUrl(id, after) {
        const issued = await ticket(id)
        return `${transport.baseUrl}/api/v1${pathOf`/runs/${id}/events`}${queryOf({ ticket: issued.ticket, after })}`
      },
    },
    sessions: {
      list: (query, options) => get(`/sessions${queryOf(query)}`, options),
      get: (id, include = [], options) =>
        get(pathOf`/sessions/${id}` + queryOf({ include: include.length === 0 ? undefined : include.join() }), options),
      create: (body = {}) =>
        post('/sessions', { body, idempotent: body.id !== undefined || body.external_id !== undefined }),
      update: (id, body, { ifMatch } = {}) =>
        request('PATCH', pathOf`/sessions/${id}`, {
          body,
          ...(ifMatch === undefined
            ? {}
            : { headers: { 'if-match': typeof ifMatch === 'number' ? `"${ifMatch}"` : ifMatch } }),
        }),
      delete: (id, { purge } = {}) => request('DELETE', pathOf`/sessions/${id}` + queryOf({ purge })),
      restore: (id) => post(pathOf`/sessions/${id}/restore`),
      stop: (id) => post(pathOf`/sessions/${id}/stop`, again),
      start: (id, body = {}) =>
        post(pathOf`/sessions/${id}/start`, {
          body: { client_message_id: randomKey(), ...withoutAbsent(body) },
          ...again,
        }),
      kill: (id) => post(pathOf`/sessions/${id}/kill`, again),
      messages: (id, query, options) => get(pathOf`/sessions/${id}/messages` + queryOf(query), options),
      allMessages,
      export: (id, format, options) => requestBlob(pathOf`/sessions/${id}/export` + queryOf({ format }), options),
      claim: (visitorToken) =>
        post('/sessions/claim', {
          ...again,
          ...(visitorToken === undefined ? {} : { headers: { 'x-visitor-token': visitorToken } }),
        }),
      artifacts: (id) => get(pathOf`/sessions/${id}/artifacts`),
      artifact: (id, name, query) => get(pathOf`/sessions/${id}/artifacts/${name}` + queryOf(query)),
    },
    messages: {
      feedback: (id, body) => request('PUT', pathOf`/messages/${id}/feedback`, { body }),
    },
    me: {
      usage: () => get('/me/usage'),
      export: (options) => requestBlob('/me/export', options),
      async delete() {
        await request('DELETE', '/me')
        transport.forgetVisitor()
      },
    },
    request,
  }
}

const messagePageMax = 100

/** With its question mark; '' when nothing is asked. */
function queryOf(values: object = {}): string {
  const query = new URLSearchParams()
  for (const [name, value] of Object.entries(values)) if (value != null) query.set(name, String(value))
  return `${query}` && `?${query}`
}

/** A member that is there and undefined would take the place of a default. */
function withoutAbsent<T extends object>(input: T): T {
  return Object.fromEntries(Object.entries(input).filter(([, value]) => value !== undefined)) as T
}
