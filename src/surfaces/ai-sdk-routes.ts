/**
 * The routes of the AI SDK surface: what `useChat` and its default transport ask of `/api/chat`, as they come, and two more
 * for the page around them (the chat as it is stored, and a stop that is more than a closed connection).
 *
 * A chat is a session: named by its id when the chat's is a uuid, else by its `external_id`, and made on first use. A chat
 * that is not there has no messages and nothing to resume, whoever's it is: a page that begins a new one asks for both.
 *
 * The id that the page gave the message of the user is the idempotency key. Whoever sends it once more with other words has
 * edited it: that makes a sibling. While a chat is busy, a new message interrupts: the SDK's own stop only closes the
 * connection, and who writes again does not wait for what they have stopped.
 *
 * What is refused before the status is plain text, because that is what the SDK shows; the code is in `X-Error-Code`.
 *
 * At each await nothing is half done: what is accepted is one statement (accept.ts), and all else is read. A message that
 * is edited by two requests at once is edited twice.
 */
import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify'
import { type Static, Type } from 'typebox'
import { catalogue, Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import { eventStream } from '../http/openapi.ts'
import { beginProblem, readProblem } from '../http/problem.ts'
import { pathPartBytesMax, type Server } from '../http/server.ts'
import type { SseEdge, SseFraming } from '../http/sse.ts'
import { cleanText, uuidPattern } from '../http/text.ts'
import { type EventId, toolNamePattern } from '../log/event.ts'
import type { Acceptance } from '../runs/accept.ts'
import type { Chat } from '../runs/chat.ts'
import type { FollowDeps } from '../runs/follow.ts'
import { BranchBody, isTerminal, keyPattern, messageCharactersMax, type RunFacts, toolsMax } from '../runs/model.ts'
import type { OwnedRuns } from '../runs/owned.ts'
import type { NamedMessage, Resume, Round } from '../runs/resume.ts'
import { IdempotencyHeader, runHeaders, withIdempotencyKey } from '../runs/routes.ts'
import { type KeepRun, pastEnd, readForViewer, readUpTo, type ShowRun } from '../runs/show.ts'
import type { StopSession } from '../runs/stop.ts'
import type { RunStore } from '../runs/store.ts'
import type { MessageStore } from '../sessions/messages.ts'
import { externalIdUnitsMax } from '../sessions/model.ts'
import type { SessionName } from '../sessions/store.ts'
import { type Chunk, createUiEncoder, parseCursor, sayAnswers, sayReply, type UiReply } from './ai-sdk.ts'
import { type StoredMessage, toUiMessages, toUiParts, UiMessage, uiIdMember } from './ai-sdk-messages.ts'
import { digest, readAsked, type UiAsked, type UiQuestion } from './ai-sdk-request.ts'
import { CursorHeader, isFields, readCursor } from './fields.ts'

export interface AiSdkRoutesOptions {
  readonly chat: Chat
  readonly runs: RunStore
  readonly resume: Resume
  readonly messages: MessageStore
  readonly owned: OwnedRuns
  readonly follow: FollowDeps
  readonly show: ShowRun
  readonly keep: KeepRun
  readonly edge: SseEdge
  readonly stopSession: StopSession
  /** Names of the tools that the gateway runs itself. */
  readonly ownTools: ReadonlySet<string>
}

/** The page sends all that it holds with each message. */
export const chatBodyBytesMax = 16 * 1024 * 1024
/** Messages of a chat that are given to a page; the newest. */
export const chatMessagesMax = 1000
/** Of a name that is repeated in a refusal. */
const shownUnitsMax = 64
const errorHeader = 'X-Error-Code'
const tags = ['chat']

const framing: SseFraming = { opening: '', heartbeat: ': keep-alive\n\n' }

const { tools, client_message_id: _key, ...wishes } = BranchBody.properties

const UiTool = Type.Object({ description: Type.Optional(Type.String()), parameters: Type.Optional(Type.Unknown()) })

/** More may be in it: what a page adds for itself is passed over. */
const ChatBody = Type.Object(
  {
    id: Type.String({ minLength: 1, maxLength: externalIdUnitsMax, description: 'a uuid is the id of the session' }),
    messages: Type.Array(Type.Unknown(), { description: 'UIMessage of the AI SDK; only the last ones are looked at' }),
    trigger: Type.Optional(Type.String({ description: 'submit-message or regenerate-message' })),
    messageId: Type.Optional(Type.Union([Type.String(), Type.Null()])),
    ...wishes,
    tools: Type.Optional(Type.Union([tools, Type.Record(Type.String(), UiTool)])),
  },
  { additionalProperties: true },
)
type ChatBody = Static<typeof ChatBody>

const ChatParams = Type.Object({ id: Type.String({ minLength: 1, maxLength: externalIdUnitsMax }) })

const StoredChat = Type.Object({ id: Type.String(), messages: Type.Array(UiMessage) })
const StoppedChat = Type.Object({ id: Type.String(), message: UiMessage })

const plainText = { content: { 'text/plain': { schema: Type.String() } } }
const refusals = {
  '4xx': { description: `An error of the catalogue; its code is in ${errorHeader}`, ...plainText },
  '5xx': { description: `An error of the catalogue; its code is in ${errorHeader}`, ...plainText },
}
const stream = {
  ...eventStream,
  description: 'UI message chunks of the AI SDK as server-sent events, as in docs/ai-sdk.md',
}

export function registerAiSdk(app: Server, options: AiSdkRoutesOptions): void {
  const { chat, runs, resume, messages, owned, follow, show, keep, edge, stopSession, ownTools } = options
  const encoder = createUiEncoder()

  app.setErrorHandler((error: FastifyError, request, reply) => sendText(readProblem(error, request), request, reply))

  async function accept(owner: Owner, body: ChatBody, asked: UiAsked, key: string | undefined): Promise<Acceptance> {
    const name = nameOf(body.id)
    const wishes = wishesOf(body)
    const keyed = (own: string | undefined) => {
      const used = key ?? own
      return used === undefined ? {} : { client_message_id: used }
    }

    /** @param own the key, where the request brings none */
    function send({ id, words, metadata }: UiQuestion, own = keyOf(id)): Promise<Acceptance> {
      const named = id === undefined || id === (key ?? own) ? {} : { [uiIdMember]: id }
      return chat(owner, {
        ...wishes,
        ...name,
        ...keyed(own),
        message: checkWords(words),
        metadata: { ...wishes.metadata, ...metadata, ...named },
      })
    }

    async function find(id: string | undefined): Promise<(NamedMessage & { sessionId: string }) | undefined> {
      if (id === undefined) return undefined
      const sessionId = await resume.findSession(owner, name)
      const message = sessionId && (await resume.findMessage(owner, sessionId, id, uiIdMember))
      return message ? { ...message, sessionId } : undefined
    }

    function edit({ id, words, metadata }: UiQuestion, target: NamedMessage): Promise<Acceptance> {
      return chat(owner, {
        ...wishes,
        ...keyed(`edit:${target.id}:${digest(words)}`),
        edit: target.id,
        message: checkWords(words),
        metadata: { ...wishes.metadata, ...metadata, ...(id !== undefined && { [uiIdMember]: id }) },
      })
    }

    /** Under an id that the page has used before, or says that it has. */
    async function sendAgain(question: UiQuestion): Promise<Acceptance> {
      const target = await find(question.id)
      // It has never come here; or its id is that of a message in another chat.
      if (target?.role !== 'user') return send(question)
      if (target.text !== cleanText(question.words)) return edit(question, target)
      const run = await resume.findAnswering(owner, target.sessionId, target.id)
      const isAskedAgain = key !== undefined && (await runs.findByKey(owner, key))?.id === run?.id
      if (run !== undefined && (isAskedAgain || !isTerminal(run.status))) return { run, isNew: false }
      return chat(owner, { ...wishes, ...keyed(undefined), regenerate: target.id })
    }

    async function sendOnce(question: UiQuestion): Promise<Acceptance> {
      try {
        return await send(question)
      } catch (error) {
        if (!(error instanceof Problem) || error.code !== 'idempotency_mismatch' || key !== undefined) throw error
        const target = await find(question.id)
        if (target?.role === 'user' && target.text !== cleanText(question.words)) return edit(question, target)
        // The same words, and something else is different.
        if (target?.key === question.id) throw error
        // The key is that of a message in another chat, whose page numbers its messages as this one does.
        return send(question, `chat:${digest(body.id, question.id ?? '')}`)
      }
    }

    switch (asked.kind) {
      case 'message':
        return asked.replaces ? sendAgain(asked.question) : sendOnce(asked.question)
      case 'regenerate': {
        const target = (await find(asked.messageId)) ?? (await find(asked.question?.id))
        if (target !== undefined) return chat(owner, { ...wishes, ...keyed(undefined), regenerate: target.id })
        // The message that was to be answered has never come here.
        if (asked.question !== undefined) return send(asked.question)
        throw new Problem('not_found', 'There is no such message in this chat.')
      }
      case 'results':
        return chat(owner, { ...wishes, ...name, ...keyed(asked.key), tool_results: [...asked.results] })
    }
  }

  function replyOf(run: RunFacts, rounds: readonly Round[]): UiReply {
    const { tools: clientTools = [] } = run.request ?? {}
    const theirs = new Set(clientTools.map(({ name }) => name))
    return {
      runId: run.id,
      messageId: rounds[0]?.id ?? run.message_id,
      round: rounds.length,
      ownTools: theirs.size === 0 ? ownTools : new Set([...ownTools].filter((name) => !theirs.has(name))),
    }
  }

  const sayRounds = (rounds: readonly Round[]): readonly Chunk[] =>
    rounds.flatMap(({ parts, answers }, round) => [
      ...sayReply({ round, status: 'completed' }, parts),
      ...sayAnswers(answers),
    ])

  const open = (request: FastifyRequest, reply: FastifyReply, run: RunFacts) =>
    edge.open(request, reply, { ...runHeaders(run), ...streamHeaders, 'x-resumable-stream-id': run.id }, framing)

  /** All of a run's reply, or what is behind the cursor. */
  async function showRun(
    request: FastifyRequest,
    reply: FastifyReply,
    run: RunFacts,
    rounds: readonly Round[],
    from: { readonly cursor?: EventId | undefined; readonly before?: readonly Chunk[] } = {},
  ): Promise<void> {
    const { cursor, before } = from
    const held = cursor === undefined ? undefined : await readUpTo(follow.log, run, cursor)
    const viewer = encoder.createViewer(replyOf(run, rounds), before)
    const isKnown = held?.every((entry) => viewer.encode(entry) !== 'lost') === true
    const connection = open(request, reply, run)
    if (isKnown) show(connection, run, cursor, viewer)
    else show(connection, run, undefined, encoder.createViewer(replyOf(run, rounds), before))
  }

  app.post(
    '',
    {
      schema: { tags, headers: IdempotencyHeader, body: ChatBody, response: { 200: stream, ...refusals } },
      bodyLimit: chatBodyBytesMax,
      config: { budget: 'runs' },
    },
    async (request, reply) => {
      const { owner, body } = request
      const header = request.headers['idempotency-key']
      const { client_message_id: key } = withIdempotencyKey<{ readonly client_message_id?: string }>({}, header)
      const asked = readAsked(body)
      edge.refuseAtLimit(owner.key)
      const { run, isNew } = await accept(owner, body, asked, key)
      const rounds =
        asked.kind === 'message' && isNew
          ? []
          : await readForViewer({ owned }, run, () => resume.readRounds(owner, run))
      await showRun(request, reply, run, rounds)
    },
  )

  app.get(
    '/:id/stream',
    {
      schema: {
        tags,
        headers: CursorHeader,
        params: ChatParams,
        response: { 200: stream, 204: Type.Null({ description: 'nothing to resume' }), ...refusals },
      },
    },
    async (request, reply) => {
      const { owner } = request
      const cursor = readCursor(request.headers['last-event-id'], parseCursor)
      edge.refuseAtLimit(owner.key)
      const sessionId = await resume.findSession(owner, nameOf(request.params.id))
      const run = sessionId && (await findRun(owner, sessionId, cursor?.runId))
      if (!run) return reply.code(204).send(null)
      if (pastEnd(follow, run, cursor?.id) === 0) return reply.headers(runHeaders(run)).code(204).send(null)
      await keep(owner, run)
      const rounds = await resume.readRounds(owner, run)
      // Who has a cursor has been shown, or has itself, what came before this reply.
      if (cursor !== undefined) await showRun(request, reply, run, rounds, { cursor: cursor.id })
      else await showRun(request, reply, run, rounds, { before: sayRounds(rounds) })
    },
  )

  /** @param runId of a cursor: whoever has one is to see the end of that run, whatever has begun since */
  async function findRun(owner: Owner, sessionId: string, runId: string | undefined): Promise<RunFacts | undefined> {
    if (runId === undefined) return resume.findShown(owner, sessionId)
    try {
      const run = await runs.getRun(owner, runId)
      return run.session_id === sessionId ? run : undefined
    } catch (error) {
      if (error instanceof Problem && error.code === 'not_found') return undefined
      throw error
    }
  }

  app.get(
    '/:id',
    { schema: { tags, params: ChatParams, response: { 200: StoredChat, ...refusals } } },
    async ({ owner, params: { id } }) => {
      const sessionId = await resume.findSession(owner, nameOf(id))
      if (sessionId === undefined) return { id, messages: [] }
      const page = await messages.listMessages(owner, sessionId, {
        branch: 'active',
        order: 'desc',
        limit: chatMessagesMax,
      })
      const stored: StoredMessage[] = page.data.reverse()
      // Not from the middle of a message of several replies.
      const first = page.next_cursor === null ? 0 : stored.findIndex(({ role }) => role === 'user')
      return { id, messages: toUiMessages(stored.slice(Math.max(0, first))) }
    },
  )

  app.post(
    '/:id/stop',
    {
      schema: {
        tags,
        params: ChatParams,
        response: { 200: StoppedChat, 204: Type.Null({ description: 'nothing to stop' }), ...refusals },
      },
    },
    async ({ owner, params: { id } }, reply) => {
      const sessionId = await resume.findSession(owner, nameOf(id))
      const run = sessionId && (await resume.findShown(owner, sessionId))
      if (!run || isTerminal(run.status)) return reply.code(204).send(null)
      await stopSession(owner, run.session_id)
      const [rounds, stopped] = await Promise.all([
        resume.readRounds(owner, run),
        messages.getMessage(owner, run.message_id),
      ])
      const said = [...sayRounds(rounds), ...sayReply({ round: rounds.length, status: stopped.status }, stopped.parts)]
      const message: UiMessage = { id: rounds[0]?.id ?? stopped.id, role: 'assistant', parts: toUiParts(said) }
      reply.headers(runHeaders(run))
      return { id, message }
    },
  )
}

/** For what is under the prefix and no route: without a question who asks. */
export function registerAiSdkMissing(app: Server): void {
  app.setNotFoundHandler((request, reply) =>
    sendText(new Problem('not_found', 'There is no such route.'), request, reply),
  )
}

const streamHeaders = { 'x-vercel-ai-ui-message-stream': 'v1' } as const

function sendText(problem: Problem, request: FastifyRequest, reply: FastifyReply): FastifyReply {
  return beginProblem(problem, request, reply)
    .type('text/plain; charset=utf-8')
    .header(errorHeader, problem.code)
    .send(`${catalogue[problem.code].title}. ${problem.message}`)
}

/** @throws Problem `invalid_request` for a name that the other routes could not be asked for */
function nameOf(id: string): SessionName {
  if (uuidPattern.test(id)) return { session_id: id.toLowerCase() }
  const name = cleanText(id)
  if (name === '' || encodeURIComponent(name).length > pathPartBytesMax) {
    throw new Problem('invalid_request', `id has 1 to ${pathPartBytesMax} characters as a part of a URL.`)
  }
  return { external_id: name }
}

function wishesOf({
  mode,
  model,
  agent_id,
  tool_choice,
  on_busy = 'interrupt',
  on_disconnect,
  metadata,
  tools,
}: ChatBody) {
  return {
    on_busy,
    ...(mode && { mode }),
    ...(model && { model }),
    ...(agent_id && { agent_id }),
    ...(tool_choice && { tool_choice }),
    ...(on_disconnect && { on_disconnect }),
    ...(metadata && { metadata }),
    ...toolsOf(tools),
  }
}

/** As a list, or by name, as assistant-ui sends them: of those, none says nothing. */
function toolsOf(tools: ChatBody['tools']): Pick<BranchBody, 'tools'> {
  if (tools === undefined || Array.isArray(tools)) return tools === undefined ? {} : { tools }
  const named = Object.entries(tools).map(([name, { description, parameters }]) => {
    if (!isFields(parameters)) {
      throw new Problem('invalid_request', `tools: ${name.slice(0, shownUnitsMax)} has no parameters.`)
    }
    return { name, ...(description !== undefined && { description }), parameters: { ...parameters } }
  })
  if (named.length > toolsMax || named.some(({ name }) => !toolNamePattern.test(name))) {
    throw new Problem('invalid_request', `tools: up to ${toolsMax}, with names of A-Z a-z 0-9 _ -`)
  }
  return named.length === 0 ? {} : { tools: named }
}

function checkWords(words: string): string {
  if (words.length <= messageCharactersMax || [...words].length <= messageCharactersMax) return words
  throw new Problem('too_large', `A message has ${messageCharactersMax} characters at most.`)
}

const keyOf = (id: string | undefined) => (id !== undefined && keyPattern.test(id) ? id : undefined)
