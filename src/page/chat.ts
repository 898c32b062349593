/**
 * The conversation on the screen: brings it there, sends, makes again, edits, follows replies and stops them.
 *
 * A reply is followed by the client library, over as many connections as it takes, for as long as its session is on the
 * screen; `done` is its only end. The words of a message leave the textbox when the gateway has accepted them. A reader who
 * goes to another session leaves what is awaited here with `Left`; the run goes on, and the session shows it later.
 *
 * At each await: a gateway that cannot be reached is asked again, a refusal is shown above the composer, and 401 leads to
 * the dialog where another token can be pasted.
 */
import {
  type Accepted,
  type Client,
  ConnectionError,
  GatewayError,
  passes,
  pause,
  type Reply,
  type ReplyEvent,
  randomKey,
  type Session,
} from '../client/index.ts'
import { leafBelow } from './branches.ts'
import type { Composer } from './composer.ts'
import {
  type Conversation,
  createConversation,
  end,
  Left,
  readMessage,
  replyMessage,
  type Shown,
  userMessage,
} from './conversation.ts'
import type { Ended, Inspector } from './inspector.ts'
import { explain, type Notices } from './notices.ts'
import type { SessionList } from './sessions.ts'
import { titleOf } from './sessions.ts'
import type { Tabs } from './tabs.ts'
import type { Transcript } from './transcript.ts'

/** 20 000 messages are 200 pages of the gateway, and more than any screen is for. */
const messagesMax = 20_000
/** Until a session that could not be read is asked for again, when neither the network nor the reader comes back before. */
const againMs = 3000

export interface ChatOptions {
  readonly client: Client
  readonly transcript: Transcript
  readonly composer: Composer
  readonly sessions: SessionList
  readonly inspector: Inspector
  readonly notices: Notices
  readonly tabs: Tabs
  /** The session on the screen is another one, or has another title. */
  readonly onShow: (session: Session | undefined, sessionId: string | null, empty: boolean) => void
  /** The session that the address names is not there, or not ours. */
  readonly onMissing: () => void
  /** A new chat has got its id. */
  readonly onBegin: (sessionId: string) => void
  /** The gateway does not know who this is any more. */
  readonly onStranger: () => void
}

export type Chat = ReturnType<typeof createChat>

/** What is put into the conversation when the gateway has accepted it. @returns the reply to come */
type Begin = (accepted: Accepted) => Shown

export function createChat(options: ChatOptions) {
  const { client, transcript, composer, sessions, inspector, notices, tabs } = options
  let conversation = createConversation(null)
  let sending = false
  let stopping = false
  const unsent = createUnsent()
  const unsentEdit = createUnsent()

  /** Leaves the session on the screen, whose run goes on, for another one; null is a new chat. */
  function show(sessionId: string | null): void {
    conversation.leave()
    conversation = createConversation(sessionId)
    stopping = false
    notices.alert('')
    notices.status('')
    composer.forgetMode()
    transcript.show([])
    transcript.toEnd()
    showControls()
    showSession()
    inspector.rest(undefined)
    if (sessionId !== null) task(load(conversation))
  }

  /** Nothing floats: what no one foresaw is shown, and what was left by the reader is over. */
  function task(work: Promise<void>): void {
    work.catch((error) => {
      if (error instanceof Left) return
      if (isStranger(error)) options.onStranger()
      else notices.alert(`Something went wrong: ${explain(error)}`)
    })
  }

  /** Brings a stored session to the screen and follows its reply, if one is running, to the end. */
  async function load(here: Conversation): Promise<void> {
    here.idle = false
    showControls()
    try {
      for (;;) {
        try {
          here.messages = await readMessages(here)
        } catch (error) {
          here.stay()
          if (error instanceof GatewayError && (error.status === 404 || error.status === 400))
            return options.onMissing()
          if (!passes(error)) throw error
          notices.status('No connection. Trying again…')
          await pause(againMs, here.signal)
          continue
        }
        notices.status('')
        showMessages(here)
        const last = here.messages.findLast((message) => message.role === 'assistant')
        const runId = last?.status === 'streaming' ? last.run_id : null
        if (last === undefined || runId === null) {
          showFailure(last)
          return inspector.rest(endedOf(here, last))
        }
        const reply = client.chat.attach(
          {
            runId,
            ...(here.sessionId === null ? {} : { sessionId: here.sessionId }),
            messageId: last.id,
            ...(last.cursor === undefined ? {} : { after: last.cursor, parts: last.parts }),
          },
          { signal: here.signal },
        )
        inspector.begin({ what: 'GET /runs/…/events', sentAt: performance.now() })
        if ((await follow(here, reply, () => last)) === 'done') return
        await pause(againMs, here.signal)
      }
    } finally {
      here.idle = true
      if (here === conversation) showControls()
    }
  }

  async function readMessages(here: Conversation): Promise<Shown[]> {
    const messages: Shown[] = []
    for await (const message of client.sessions.allMessages(`${here.sessionId}`, {}, { signal: here.signal })) {
      if (messages.length === messagesMax) {
        throw new Error(`This chat has more than ${messagesMax} messages. This page shows no such chat.`)
      }
      messages.push(readMessage(message))
    }
    here.stay()
    return messages
  }

  async function send(): Promise<void> {
    const here = conversation
    const text = composer.text()
    if (text.trim() === '') return composer.focus()
    if (!ready(here)) return
    const key = unsent.keyOf(text, here.sessionId)
    const mode = composer.mode()
    const parent = here.path().at(-1)?.message
    const onBranch = parent !== undefined && here.leaf !== undefined
    await exchange(
      here,
      'POST /chat/stream',
      () =>
        client.chat.send({
          message: text,
          client_message_id: key,
          ...(here.sessionId === null ? {} : { session_id: here.sessionId }),
          ...(onBranch ? { parent_id: parent.id } : {}),
          ...(mode === undefined ? {} : { mode }),
        }),
      ({ messageId, runId }) => {
        unsent.forget()
        composer.setText('')
        const seq = here.nextSeq()
        here.messages.push(userMessage(key, parent?.id ?? null, seq, text))
        return replyMessage(messageId, key, seq + 1, runId)
      },
      unsent,
    )
  }

  async function regenerate(message: Shown): Promise<void> {
    const here = conversation
    if (!ready(here)) return
    const mode = composer.mode()
    await exchange(
      here,
      'POST /messages/…/regenerate',
      () => client.chat.regenerate(message.id, mode === undefined ? {} : { mode }),
      ({ messageId, runId }) => replyMessage(messageId, message.parent_id, here.nextSeq(), runId),
    )
  }

  /** @returns whether the gateway has taken it */
  async function edit(message: Shown, text: string): Promise<boolean> {
    const here = conversation
    if (!ready(here)) return false
    const mode = composer.mode()
    const key = unsentEdit.keyOf(text, message.id)
    const taken = Promise.withResolvers<boolean>()
    task(
      exchange(
        here,
        'POST /messages/…/edit',
        () =>
          client.chat.edit(message.id, {
            message: text,
            client_message_id: key,
            ...(mode === undefined ? {} : { mode }),
          }),
        ({ messageId, runId }) => {
          unsentEdit.forget()
          taken.resolve(true)
          const seq = here.nextSeq()
          here.messages.push(userMessage(key, message.parent_id, seq, text))
          return replyMessage(messageId, key, seq + 1, runId)
        },
        unsentEdit,
      ).finally(() => taken.resolve(false)),
    )
    return taken.promise
  }

  function ready(here: Conversation): boolean {
    if (sending) return false
    if (!here.idle) notices.status('Send this when the reply has ended.')
    return here.idle
  }

  /** One reply, from what asks for it to its end. What is refused is said, and nothing has changed. */
  async function exchange(
    here: Conversation,
    what: string,
    ask: () => Reply,
    begin: Begin,
    words?: Unsent,
  ): Promise<void> {
    let accepted = false
    sending = true
    notices.alert('')
    notices.status('Sending…')
    showControls()
    inspector.begin({ what, sentAt: performance.now() })
    try {
      const how = await follow(here, ask(), (ids) => {
        accepted = true
        sending = false
        const reply = accept(here, ids, begin)
        showControls()
        return reply
      })
      if (how === 'reload') await load(here)
    } catch (error) {
      if (accepted || error instanceof Left) throw error
      notices.status('')
      if (isStranger(error)) return options.onStranger()
      notices.alert(`The message was not sent: ${explain(error)}`)
      if (!(error instanceof GatewayError)) return
      if (error.code === 'idempotency_mismatch') words?.forget()
      // Somebody is faster, in another tab or on another device: show that reply.
      if (error.code === 'session_busy' && here === conversation) task(load(here))
    } finally {
      if (!accepted) sending = false
      // Also for a reader who has gone elsewhere meanwhile: the textbox is the same.
      showControls()
    }
  }

  function accept(here: Conversation, accepted: Accepted, begin: Begin): Shown {
    tabs.tell(accepted.sessionId)
    const reply = begin(accepted)
    here.messages.push(reply)
    here.leaf = reply.id
    here.idle = false
    if (here.sessionId === null) {
      here.sessionId = accepted.sessionId
      if (here === conversation) options.onBegin(accepted.sessionId)
    }
    task(refreshList())
    if (here !== conversation) return reply
    notices.status('')
    showMessages(here)
    transcript.toEnd()
    return reply
  }

  /**
   * Shows a reply to its end.
   * @param begin called when the gateway has accepted it
   * @returns `reload` when there is nothing to follow and the stored message has the end
   */
  async function follow(here: Conversation, reply: Reply, begin: Begin): Promise<'done' | 'reload'> {
    let message: Shown | undefined
    try {
      for await (const event of reply) {
        if (message === undefined && isAccepted(event)) {
          message = begin(await reply.accepted)
          here.reply = reply
          here.idle = false
          if (here === conversation) showControls()
        }
        // What was sent is not left before the gateway has it.
        if (message !== undefined) here.stay()
        if (here !== conversation) continue
        inspector.see(event)
        showConnection(event, message !== undefined)
        if (message === undefined) continue
        message.parts = reply.parts
        take(here, message, event)
        transcript.update(message)
      }
    } catch (error) {
      if (message === undefined) throw error
      here.stay()
      if (error instanceof GatewayError && error.status === 404) return 'reload'
      throw error
    } finally {
      if (message !== undefined) endReply(here, message)
    }
    if (message === undefined || message.status === 'streaming') return 'reload'
    showFailure(message)
    tabs.tell(here.sessionId)
    task(refreshList())
    // Another reply of the session, in a queue or before this one, is looked for where it is stored.
    return here.messages.some(({ status }) => status === 'streaming') ? 'reload' : 'done'
  }

  function endReply(here: Conversation, message: Shown): void {
    here.reply = undefined
    here.idle = true
    if (here !== conversation) return
    stopping = false
    transcript.update(message)
    notices.status('')
    showControls()
  }

  function take(here: Conversation, message: Shown, event: ReplyEvent): void {
    if (event.type === 'title') {
      sessions.rename(here.sessionId, event.data.title)
      showSession()
    }
    if (event.type === 'run') {
      message.model = event.data.model
      nameUserMessage(here, message, event.data.user_message_id)
    }
    if (event.type === 'done') end(message, event.data)
  }

  /** The id of the message that was sent is in the run's first event. */
  function nameUserMessage(here: Conversation, reply: Shown, id: string): void {
    const sent = here.messages.find((message) => message.id === reply.parent_id)
    if (sent === undefined || sent.role !== 'user' || sent.id === id) return
    transcript.rename(sent.id, id)
    sent.id = id
    reply.parent_id = id
    transcript.show(here.path())
  }

  function showConnection(event: ReplyEvent, accepted: boolean): void {
    if (event.type !== 'connection' || stopping) return
    if (event.state === 'waiting' && event.why !== 'reconnect') {
      const what = event.why === 'refused' ? 'The gateway is busy' : accepted ? 'Connection lost' : 'No connection'
      notices.status(`${what}. Trying again…`)
    }
    if (event.state === 'open') notices.status('')
  }

  async function stop(): Promise<void> {
    const here = conversation
    const { reply } = here
    if (reply === undefined || stopping) return
    stopping = true
    notices.status('Stopping…')
    showControls()
    try {
      await reply.stop()
    } catch (error) {
      if (here.reply !== reply || here !== conversation) return
      stopping = false
      notices.alert(`The reply was not stopped: ${explain(error)}`)
      notices.status('')
      showControls()
    }
  }

  /** @returns whether the gateway has taken it */
  async function rate(message: Shown, rating: 1 | -1, comment: string | undefined): Promise<boolean> {
    try {
      const given = comment === undefined || comment === '' ? {} : { comment }
      const stored = await client.messages.feedback(message.id, { rating, ...given })
      message.feedback = { rating: stored.rating, comment: stored.comment }
      transcript.update(message)
      return true
    } catch (error) {
      notices.say(`Your rating was not stored: ${explain(error)}`)
      return false
    }
  }

  function choose(id: string): void {
    const here = conversation
    if (here.idle) here.leaf = leafBelow(here.messages, id)
    else notices.status('Look at other versions when the reply has ended.')
    showMessages(here)
  }

  async function refreshList(): Promise<void> {
    try {
      await sessions.refresh()
    } catch (error) {
      if (isStranger(error)) throw error
      // The list only helps to find the way, and the next message or the next look at the page brings a fresh one.
      if (!(error instanceof GatewayError || error instanceof ConnectionError)) throw error
    }
    showSession()
  }

  function showMessages(here: Conversation): void {
    if (here !== conversation) return
    transcript.show(here.path())
    showSession()
  }

  function showSession(): void {
    const session = sessions.select(conversation.sessionId)
    composer.showMode(session?.mode)
    const empty = conversation.sessionId === null && conversation.messages.length === 0
    options.onShow(session, conversation.sessionId, empty)
  }

  function showControls(): void {
    composer.show({
      sending,
      idle: conversation.idle,
      stoppable: conversation.reply !== undefined && !stopping,
    })
  }

  function showFailure(message: Shown | undefined): void {
    if (message?.status !== 'failed' && message?.status !== 'interrupted') return
    const how = message.status === 'failed' ? 'failed' : 'broke off'
    const why = message.error?.message ?? 'the gateway did not say why.'
    // "The reply broke off." says it all, and nobody wants to read it twice.
    notices.alert(why.startsWith('The reply ') ? why : `The reply ${how}: ${why}`)
  }

  return {
    show,
    refreshList: () => task(refreshList()),
    send: () => task(send()),
    stop: () => task(stop()),
    regenerate: (message: Shown) => task(regenerate(message)),
    edit,
    rate,
    choose,
    /** Another tab says that a session has changed. */
    look(sessionId: string | null) {
      task(refreshList())
      const here = conversation
      if (sessionId !== null && sessionId === here.sessionId && here.idle && !sending) {
        here.leaf = undefined
        task(load(here))
      }
    },
    sessionId: () => conversation.sessionId,
  }
}

type Unsent = ReturnType<typeof createUnsent>

/** The words that were sent last and not accepted. Sent again unchanged, they keep their key and cannot count twice. */
function createUnsent() {
  let last: { readonly key: string; readonly text: string; readonly place: string | null } | undefined
  return {
    /** @param place the session, or the message in whose place they stand */
    keyOf(text: string, place: string | null): string {
      if (last?.text !== text || last.place !== place) last = { key: randomKey(), text, place }
      return last.key
    },
    forget(): void {
      last = undefined
    },
  }
}

function endedOf({ sessionId }: Conversation, reply: Shown | undefined): Ended | undefined {
  if (reply === undefined || reply.run_id === null || sessionId === null) return undefined
  return {
    sessionId,
    runId: reply.run_id,
    messageId: reply.id,
    ttftMs: reply.ttft_ms,
    latencyMs: reply.latency_ms,
    tokens: reply.total_tokens,
    costUsd: reply.cost_usd,
  }
}

/** A connection that is being opened, or waited for, may still carry a message that nobody has accepted. */
function isAccepted(event: ReplyEvent): boolean {
  return event.type !== 'connection' || event.state === 'open'
}

function isStranger(error: unknown): boolean {
  return error instanceof GatewayError && error.status === 401
}

export function titleFor(session: Session | undefined): string {
  return session === undefined ? 'New chat' : titleOf(session)
}
