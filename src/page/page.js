// @ts-check
/**
 * The chat page: shows sessions, sends messages and follows replies, with nothing but the public protocol. It keeps
 * nothing of its own: what is on the screen is either stored in the gateway or still in the textbox. It renders text
 * as text and interprets none of it.
 *
 * A reply is followed like this. Events of its run come over one connection and each carries a cursor. `done` is the
 * only end. However else a connection ends, broken or clean, the page attaches again after its cursor, for as long
 * as the session is on the screen; the gateway then sends what is missing, or a `reset` that replaces everything. A
 * delta that begins beyond what the page holds means that something was missed: the page drops its cursor and takes
 * the run from the beginning. So the text on the screen is the stored text, or a beginning of it.
 *
 * @typedef {{kind: string, text: string, call_id?: string, name?: string, input?: unknown, output?: unknown, error?: unknown, url?: string, title?: string, media_type?: string}} Part
 * @typedef {{code?: string, message: string, retryable?: boolean}} RunError
 * @typedef {{id: string, role: string, status: string, parts: Part[], run_id?: string | null, cursor?: string | null, error?: RunError | null}} Message
 * @typedef {Message & {run_id: string}} Reply an assistant message that is not finished yet
 * @typedef {{id: string, title?: string | null, status?: string}} Session
 * @typedef {{name: string, data: string, id: string | undefined}} StreamEvent
 */

const api = '/api/v1'
/** The gateway says something at least each 15 s; after three times that, nobody is there. */
const silenceMsMax = 45_000
/** A page that comes back to the foreground has no reason to wait that long. */
const silenceOnReturnMsMax = 20_000
const answerMsMax = 20_000
/** With the back-off below, a message is tried for about ten seconds before its author is asked to send it again. */
const sendAttemptsMax = 6
const stopAttemptsMax = 4
const backOffFirstMs = 300
const backOffMsMax = 10_000
/** A whole reply can come in one `reset`. What is larger than this is not one of ours. */
const eventCharsMax = 32 * 1024 * 1024
const sessionPageSize = 50
const messagePageSize = 100
/** 20 000 messages. */
const messagePagesMax = 200
/** A hidden page gets no animation frames. Its text goes on at this pace. */
const hiddenFrameMs = 200
/** Screen readers look at the page some time after it has changed. */
const quietMs = 500
/** Still counts as the end of the transcript: a line and a half. */
const endSlackPx = 40

const uuidPattern = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i
const unfinished = new Set(['streaming', 'queued', 'running'])

// ---- the page: what is on the screen, and what the reader does to it

function startPage() {
  const nav = element('nav', HTMLElement)
  const toggle = element('toggle', HTMLButtonElement)
  const newChatButton = element('new-chat', HTMLButtonElement)
  const heading = element('title', HTMLElement)
  const welcome = element('welcome', HTMLElement)
  const alertLine = element('alert', HTMLElement)
  const statusLine = element('status', HTMLElement)
  const composer = element('composer', HTMLFormElement)
  const box = element('message', HTMLTextAreaElement)
  const sendButton = element('send', HTMLButtonElement)
  const stopButton = element('stop', HTMLButtonElement)

  const transcript = createTranscript(element('log', HTMLElement), element('to-end', HTMLButtonElement))
  const sessions = createSessionList()
  const otherTabs = new BroadcastChannel('verbatim')

  let conversation = createConversation(null)
  let sending = false
  let stopping = false
  let refreshes = 0
  /** The first answer makes this browser a visitor. Two requests before it would make two. @type {Promise<void> | undefined} */
  let identified
  /** The message that was sent last and not accepted. Sent again unchanged, it keeps its key and cannot count twice. */
  let unsent = { key: '', text: '', sessionId: /** @type {string | null} */ (null) }

  composer.addEventListener('submit', (event) => {
    event.preventDefault()
    task(send())
  })
  box.addEventListener('keydown', (event) => {
    // 229 is the key code of a key that an input method took. Safari ends the composition before this event, so that
    // the Enter which only accepts a word says isComposing false.
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing || event.keyCode === 229) return
    event.preventDefault()
    task(send())
  })
  stopButton.addEventListener('click', () => task(stop()))
  newChatButton.addEventListener('click', () => {
    if (sessionInAddress() === null) show(null)
    else location.hash = '#/'
    box.focus()
  })
  window.addEventListener('hashchange', () => show(sessionInAddress()))
  toggle.addEventListener('click', () => showSessions(toggle.getAttribute('aria-expanded') !== 'true'))
  nav.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape' || toggle.getAttribute('aria-expanded') !== 'true') return
    showSessions(false)
    toggle.focus()
  })
  document.addEventListener('click', ({ target }) => {
    if (target instanceof Element && (!nav.contains(target) || target.closest('a') !== null)) showSessions(false)
  })
  document.addEventListener('visibilitychange', () => {
    if (!document.hidden && identified !== undefined) task(refreshSessions())
  })
  otherTabs.addEventListener('message', (event) => {
    task(refreshSessions())
    if (event.data === conversation.sessionId && conversation.idle && !sending) task(load(conversation))
  })

  // On a touch screen focus would open the keyboard over the page.
  if (matchMedia('(pointer: fine)').matches) box.focus()
  show(sessionInAddress())
  task(ready())

  /** Nothing floats: what no one foresaw is shown, and what was left by the reader is over. @param {Promise<void>} work */
  function task(work) {
    work.catch((error) => {
      if (!(error instanceof Left)) showAlert(explain(error))
    })
  }

  /** Resolves when the gateway knows who this is. @returns {Promise<void>} */
  function ready() {
    identified ??= identify().catch((error) => {
      identified = undefined
      throw error
    })
    return identified
  }

  async function identify() {
    const backOff = createBackOff()
    for (let attempt = 1; ; attempt++) {
      try {
        sessions.take(await getJson(`/sessions?limit=${sessionPageSize}`))
        showTitle()
        if (attempt > 1) showStatus('')
        return
      } catch (error) {
        if (!passes(error)) throw error
        showStatus('No connection. Trying again…')
        await pause(backOff.nextMs(error))
      }
    }
  }

  async function refreshSessions() {
    const turn = ++refreshes
    await ready()
    try {
      const page = await getJson(`/sessions?limit=${sessionPageSize}`)
      // A younger answer is on its way, or here: this one could say that a finished run is running.
      if (turn !== refreshes) return
      sessions.take(page)
      const id = conversation.sessionId
      if (id !== null && !sessions.has(id)) sessions.add(await getJson(`/sessions/${id}`))
    } catch (error) {
      // The list only helps to find the way, and the next message or the next look at the page brings a fresh one.
      if (!(error instanceof Refused || error instanceof Cut)) throw error
    }
    showTitle()
  }

  /** Leaves the session on the screen, whose run goes on, for another one; null is a new chat. @param {string | null} sessionId */
  function show(sessionId) {
    conversation.leave()
    conversation = createConversation(sessionId)
    showAlert('')
    showStatus('')
    showSessions(false)
    transcript.show([])
    transcript.toEnd()
    showTitle()
    showControls()
    if (sessionId !== null) task(load(conversation))
  }

  /** Brings a stored session to the screen and follows its reply, if one is running, to the end. @param {Conversation} here */
  async function load(here) {
    const backOff = createBackOff()
    here.idle = false
    showControls()
    try {
      for (;;) {
        try {
          await ready()
          here.stay()
          here.messages = await readMessages(`${here.sessionId}`, here.signal)
        } catch (error) {
          here.stay()
          if (error instanceof Refused && (error.status === 404 || error.status === 400)) return forget()
          if (!passes(error)) throw error
          showStatus('No connection. Trying again…')
          await pause(backOff.nextMs(error), here.signal)
          continue
        }
        showStatus('')
        transcript.show(here.messages)
        const last = here.messages.findLast((message) => message.role === 'assistant')
        if (last === undefined || !isReply(last)) return showFailure(last)
        if ((await follow(here, last)) === 'done') return
        await pause(backOff.nextMs(), here.signal)
      }
    } finally {
      here.idle = true
      if (here === conversation) showControls()
    }
  }

  /** The address names a session that is not there, or not ours. */
  function forget() {
    history.replaceState(null, '', '#/')
    show(null)
  }

  async function send() {
    const text = box.value
    if (text.trim() === '') return box.focus()
    if (sending) return
    if (!conversation.idle) return showStatus('Send this when the reply has ended.')
    const here = conversation
    sending = true
    // Read-only, not cleared: the words leave the textbox when the gateway has them.
    box.readOnly = true
    showAlert('')
    showStatus('Sending…')
    showControls()
    let stream
    try {
      await ready()
      stream = await post(text, here.sessionId)
    } catch (error) {
      showAlert(`The message was not sent: ${explain(error)}`)
      if (error instanceof Refused && error.code === 'idempotency_mismatch') unsent.key = ''
      // Somebody is faster, in another tab or on another device: show that reply.
      if (error instanceof Refused && error.code === 'session_busy' && here === conversation) task(load(here))
      return
    } finally {
      sending = false
      box.readOnly = false
      if (stream !== undefined) box.value = ''
      showStatus('')
      showControls()
    }
    const sessionId = stream.header('x-session-id')
    const key = unsent.key
    unsent.key = ''
    otherTabs.postMessage(sessionId)
    if (here !== conversation) {
      stream.close()
      return refreshSessions()
    }
    if (here.sessionId === null) {
      here.sessionId = sessionId
      history.replaceState(null, '', `#/s/${sessionId}`)
    }
    /** @type {Reply} */
    const reply = {
      id: stream.header('x-message-id'),
      run_id: stream.header('x-run-id'),
      role: 'assistant',
      status: 'streaming',
      parts: [],
    }
    here.sentKey = key
    here.messages.push({ id: key, role: 'user', status: 'completed', parts: [{ kind: 'text', text }] }, reply)
    transcript.show(here.messages)
    transcript.toEnd()
    task(refreshSessions())
    here.idle = false
    try {
      if ((await follow(here, reply, stream)) === 'reload') await load(here)
    } finally {
      here.idle = true
      if (here === conversation) showControls()
    }
  }

  /**
   * Asks until the gateway answers. The key makes it one message, whichever of the requests arrived.
   * @param {string} message @param {string | null} sessionId
   */
  async function post(message, sessionId) {
    const backOff = createBackOff()
    if (unsent.key === '' || unsent.text !== message || unsent.sessionId !== sessionId) {
      unsent = { key: randomKey(), text: message, sessionId }
    }
    const body = { message, client_message_id: unsent.key, session_id: sessionId ?? undefined }
    for (let attempt = 1; ; attempt++) {
      try {
        const stream = await openStream('/chat/stream', {
          method: 'POST',
          headers: { 'content-type': 'application/json' },
          body: JSON.stringify(body),
        })
        if (stream.status === 200) return stream
        stream.close()
        throw new Cut(`status ${stream.status}`)
      } catch (error) {
        if (!(error instanceof Cut) || attempt === sendAttemptsMax) throw error
        showStatus('No connection. Trying again…')
        await pause(backOff.nextMs())
      }
    }
  }

  /**
   * Shows a reply to its end, over as many connections as it takes.
   * @param {Conversation} here @param {Reply} reply @param {Stream} [opened] its first connection, when there is one
   * @returns {Promise<'done' | 'reload'>} `reload` when there is nothing to follow and the stored message has the end
   */
  async function follow(here, reply, opened) {
    const backOff = createBackOff()
    let stream = opened
    here.reply = reply
    showControls()
    try {
      for (;;) {
        const outcome = await watch(here, reply, stream, backOff)
        here.stay()
        if (outcome === 'reload') return outcome
        if (outcome === 'done') break
        stream = undefined
        if (outcome === 'cut') showStatus('Connection lost. Trying again…')
        await pause(outcome === 'cut' ? backOff.nextMs() : outcome.pauseMs, here.signal)
      }
    } finally {
      here.reply = null
      stopping = false
      if (here === conversation) {
        transcript.update(reply)
        showStatus('')
        showControls()
      }
    }
    showFailure(reply)
    otherTabs.postMessage(here.sessionId)
    task(refreshSessions())
    return 'done'
  }

  /**
   * One connection of a reply.
   * @param {Conversation} here @param {Reply} reply @param {Stream | undefined} opened @param {BackOff} backOff
   * @returns {Promise<'done' | 'reload' | 'cut' | {pauseMs: number}>}
   */
  async function watch(here, reply, opened, backOff) {
    let stream = opened
    const close = () => stream?.close()
    here.signal.addEventListener('abort', close)
    try {
      stream ??= await openStream(
        `/runs/${reply.run_id}/events`,
        reply.cursor ? { headers: { 'last-event-id': reply.cursor } } : {},
        here.signal,
      )
      if (stream.status === 204) return 'reload'
      if (here.reply === reply && !stopping) showStatus('')
      for await (const { name, data, id } of stream.events(backOff.setFirstMs)) {
        here.stay()
        const value = parseJson(data)
        if (name === 'reconnect') return { pauseMs: backOff.within(value.retry_ms) }
        if (name === 'title') sessions.rename(here.sessionId, value.title)
        if (name === 'run') nameUserMessage(here, value.user_message_id)
        if (!applyEvent(reply, name, value)) {
          reply.cursor = null
          // A log that has a hole would have one again each time: ask for it less and less often.
          backOff.keepGrowing()
          return 'cut'
        }
        if (id !== undefined) reply.cursor = name === 'reset' ? (value.cursor ?? id) : id
        if (name === 'done') return 'done'
        if (name === 'delta' || name === 'reset') backOff.reset()
        transcript.update(reply)
      }
      return 'cut'
    } catch (error) {
      here.stay()
      if (error instanceof Refused && error.status === 404) return 'reload'
      if (error instanceof Refused && error.status === 400 && reply.cursor) reply.cursor = null
      else if (!passes(error)) throw error
      return error instanceof Refused && error.retryAfterMs > 0 ? { pauseMs: backOff.nextMs(error) } : 'cut'
    } finally {
      here.signal.removeEventListener('abort', close)
      stream?.close()
    }
  }

  /** The id of the message that was sent is in the run's first event. @param {Conversation} here @param {string} id */
  function nameUserMessage(here, id) {
    const sent = here.messages.find((message) => message.id === here.sentKey)
    if (sent === undefined) return
    transcript.rename(sent.id, id)
    sent.id = id
  }

  async function stop() {
    const reply = conversation.reply
    if (reply === null || stopping) return
    const backOff = createBackOff()
    stopping = true
    showStatus('Stopping…')
    showControls()
    try {
      for (let attempt = 1; ; attempt++) {
        try {
          return await requestJson(`/runs/${reply.run_id}/stop`, { method: 'POST' })
        } catch (error) {
          if (!passes(error) || attempt === stopAttemptsMax || conversation.reply !== reply) throw error
          await pause(backOff.nextMs(error))
        }
      }
    } catch (error) {
      if (conversation.reply !== reply) return
      stopping = false
      showAlert(`The reply was not stopped: ${explain(error)}`)
      showStatus('')
      showControls()
    }
  }

  function showControls() {
    const active = document.activeElement
    stopButton.disabled = conversation.reply === null || stopping
    sendButton.disabled = sending || !conversation.idle
    welcome.hidden = conversation.sessionId !== null || conversation.messages.length > 0
    // A button that gets disabled takes the keyboard's place in the page with it.
    if (active instanceof HTMLButtonElement && active.disabled) box.focus({ preventScroll: true })
  }

  function showTitle() {
    const title = sessions.select(conversation.sessionId)
    heading.textContent = title ?? 'New chat'
    document.title = title === undefined ? 'Verbatim' : `${title} · Verbatim`
  }

  /** @param {Message | undefined} message */
  function showFailure(message) {
    const how = { failed: 'failed', interrupted: 'broke off' }[message?.status ?? '']
    if (how !== undefined) showAlert(`The reply ${how}: ${message?.error?.message ?? 'the gateway did not say why.'}`)
  }

  /** @param {string} text */
  function showAlert(text) {
    alertLine.textContent = text
  }

  /** @param {string} text */
  function showStatus(text) {
    if (statusLine.textContent !== text) statusLine.textContent = text
  }

  /** On a narrow screen the list of sessions is folded away. @param {boolean} open */
  function showSessions(open) {
    toggle.setAttribute('aria-expanded', `${open}`)
    nav.classList.toggle('open', open)
  }
}

/** @returns {string | null} the session that the address names, as in `#/s/<id>` */
function sessionInAddress() {
  const id = location.hash.startsWith('#/s/') ? location.hash.slice(4) : ''
  return uuidPattern.test(id) ? id : null
}

/**
 * A session on the screen, until the reader leaves it. `idle` means that nothing is loading or running in it, so that
 * a message can be sent.
 * @typedef {ReturnType<typeof createConversation>} Conversation
 * @param {string | null} sessionId null until the first message of a new chat is accepted
 */
function createConversation(sessionId) {
  const leaving = new AbortController()
  return {
    sessionId,
    messages: /** @type {Message[]} */ ([]),
    reply: /** @type {Reply | null} */ (null),
    /** Stands for the id of the message that was sent, until the gateway has said it. */
    sentKey: '',
    idle: true,
    signal: leaving.signal,
    leave: () => leaving.abort(new Left()),
    /** @throws {Left} when the reader has left: nothing of it may reach the screen any more */
    stay: () => leaving.signal.throwIfAborted(),
  }
}

/** @param {Message} message @returns {message is Reply} */
function isReply(message) {
  return unfinished.has(message.status) && typeof message.run_id === 'string'
}

// ---- the fold: events of a run -> the reply

/**
 * @param {Reply} reply changed in place
 * @param {string} name @param {any} data
 * @returns {boolean} false when something before this event was missed
 */
function applyEvent(reply, name, data) {
  const { parts } = reply
  switch (name) {
    case 'run':
      // Without a cursor this is the whole run again.
      if (!reply.cursor) reply.parts = []
      return true
    case 'part':
    case 'source': {
      if (data.part > parts.length) return false
      const { part, ...opened } = data
      if (part === parts.length) parts.push({ kind: 'source', text: '', ...opened })
      return true
    }
    case 'delta': {
      if (data.part === 0 && parts.length === 0) parts.push({ kind: 'text', text: '' })
      const part = parts[data.part]
      if (part === undefined || data.offset > part.text.length) return false
      part.text += data.text.slice(part.text.length - data.offset)
      return true
    }
    case 'tool': {
      if (data.part > parts.length) return false
      const { part, ...call } = data
      parts[part] = { ...(parts[part] ?? { kind: 'tool_call', text: '' }), ...call }
      return true
    }
    case 'reset':
      reply.parts = data.parts
      return true
    case 'done':
      reply.status = data.status
      reply.error = data.error
      return true
    default:
      return true
  }
}

// ---- the transcript: messages -> elements

/** @param {HTMLElement} log the box that scrolls @param {HTMLButtonElement} toEndButton */
function createTranscript(log, toEndButton) {
  /** @type {Map<string, ReturnType<typeof createMessageView>>} */
  const views = new Map()
  /** @type {Set<Message>} */
  const changed = new Set()
  let frame = 0
  let timer = 0
  let quiet = 0
  let following = true
  let lastTop = 0

  // Only a move upwards lets go of the end: text that grows, or a keyboard that opens, also puts the end out of sight.
  log.addEventListener('scroll', () => {
    if (log.scrollHeight - log.scrollTop - log.clientHeight <= endSlackPx) following = true
    else if (log.scrollTop < lastTop) following = false
    lastTop = log.scrollTop
    toEndButton.hidden = following
  })
  new ResizeObserver(scroll).observe(log)
  toEndButton.addEventListener('click', () => {
    toEnd()
    log.focus({ preventScroll: true })
  })

  /** Makes the screen equal to the messages, and keeps the elements of those that were there. @param {Message[]} messages */
  function show(messages) {
    const kept = new Set(messages.map((message) => message.id))
    for (const id of views.keys()) if (!kept.has(id)) views.delete(id)
    // A screen reader reads out what is added to a log, but a whole history is not news.
    log.setAttribute('aria-busy', 'true')
    clearTimeout(quiet)
    quiet = setTimeout(() => log.setAttribute('aria-busy', 'false'), quietMs)
    arrange(
      log,
      messages.map((message) => viewOf(message).root),
    )
    scroll()
  }

  /** @param {Message} message */
  function viewOf(message) {
    const view = views.get(message.id) ?? createMessageView(message.role)
    views.set(message.id, view)
    view.show(message)
    return view
  }

  /** Shows a change of one message in the next frame. @param {Message} message */
  function update(message) {
    changed.add(message)
    if (frame !== 0) return
    frame = requestAnimationFrame(draw)
    timer = setTimeout(draw, hiddenFrameMs)
  }

  function draw() {
    cancelAnimationFrame(frame)
    clearTimeout(timer)
    frame = 0
    for (const message of changed) views.get(message.id)?.show(message)
    changed.clear()
    scroll()
  }

  /** @param {string} id @param {string} newId */
  function rename(id, newId) {
    const view = views.get(id)
    if (view === undefined) return
    views.delete(id)
    views.set(newId, view)
  }

  function toEnd() {
    following = true
    toEndButton.hidden = true
    scroll()
  }

  function scroll() {
    if (following) log.scrollTop = log.scrollHeight
  }

  return { show, update, rename, toEnd }
}

/** @param {string} role */
function createMessageView(role) {
  const root = document.createElement('article')
  const body = document.createElement('div')
  const note = document.createElement('p')
  /** @type {ReturnType<typeof createPartView>[]} */
  let parts = []
  root.className = `message ${role === 'user' ? 'user' : 'assistant'}`
  root.setAttribute('aria-label', { user: 'You', assistant: 'Reply', tool: 'Answers of tools' }[role] ?? role)
  note.className = 'note'
  root.append(body)

  /** @param {Message} message */
  function show(message) {
    const running = unfinished.has(message.status)
    root.dataset.status = message.status
    root.classList.toggle('running', running)
    root.classList.toggle('waiting', running && message.parts.length === 0)
    // Read out when it is whole, not in syllables.
    root.setAttribute('aria-busy', `${running}`)
    if (parts.some((part, index) => part.kind !== message.parts[index]?.kind)) parts = []
    for (const [index, part] of message.parts.entries()) {
      parts[index] ??= createPartView(part.kind)
      parts[index].show(part)
    }
    arrange(
      body,
      parts.map((part) => part.root),
    )
    note.textContent = noteOn(message)
    if (note.textContent === '') note.remove()
    else if (!note.isConnected) root.append(note)
  }

  return { root, show }
}

/** @param {Message} message @returns {string} what its reader has to know about its end */
function noteOn(message) {
  if (message.role !== 'assistant') return ''
  const some = message.parts.length > 0
  if (message.status === 'stopped') return some ? 'Stopped. This is the reply up to there.' : 'Stopped.'
  if (message.status === 'interrupted')
    return some ? 'Interrupted. The reply up to there is stored.' : 'Interrupted before the first word.'
  if (message.status === 'failed') return some ? 'Failed. The reply up to there is stored.' : 'Failed.'
  return ''
}

/** Text in the open, reasoning and tools folded. @param {string} kind */
function createPartView(kind) {
  const words = document.createElement('div')
  const text = document.createTextNode('')
  words.className = 'words'
  words.dir = 'auto'
  words.append(text)
  if (kind === 'text') return { kind, root: words, show: (/** @type {Part} */ part) => showText(text, part.text) }

  if (kind === 'source' || kind === 'file') return createReferenceView(kind)

  const root = document.createElement('details')
  const summary = document.createElement('summary')
  root.className = kind
  root.append(summary, words)
  return {
    kind,
    root,
    show(/** @type {Part} */ part) {
      const isTool = kind === 'tool_call'
      showText(
        summary.firstChild ?? summary.appendChild(new Text()),
        isTool ? `Tool: ${part.name ?? ''}` : labelOf(kind),
      )
      showText(text, isTool ? describeCall(part) : part.text)
    },
  }
}

/** Where something comes from, or what the model has made: a link, which is fetched only when somebody follows it. @param {string} kind */
function createReferenceView(kind) {
  const root = document.createElement('a')
  root.className = kind
  root.rel = 'noopener noreferrer'
  root.target = '_blank'
  root.dir = 'auto'
  return {
    kind,
    root,
    show(/** @type {Part} */ { url = '', title, media_type }) {
      if (/^https?:/i.test(url) || url.startsWith('data:')) root.href = url
      if (kind === 'file') root.download = `file.${(media_type ?? '').split('/').at(-1)}`
      root.textContent = `${labelOf(kind)}: ${title ?? media_type ?? url}`
    },
  }
}

/** @param {string} kind */
function labelOf(kind) {
  return kind.charAt(0).toUpperCase() + kind.slice(1).replaceAll('_', ' ')
}

/** @param {Part} part */
function describeCall(part) {
  const lines = []
  if (part.input !== undefined) lines.push(JSON.stringify(part.input, null, 2))
  else if (part.text !== '') lines.push(part.text)
  if (part.output !== undefined) lines.push(JSON.stringify(part.output, null, 2))
  if (part.error !== undefined) lines.push(JSON.stringify(part.error, null, 2))
  return lines.join('\n\n')
}

/** Appends what is new, so that a selection in the text survives and nothing is laid out twice. @param {Node} node @param {string} text */
function showText(node, text) {
  if (!(node instanceof Text) || node.data === text) return
  if (text.startsWith(node.data)) node.appendData(text.slice(node.length))
  else node.data = text
}

/** Makes `elements` the children of `parent`, moving none that is in place: a move would take the focus. @param {Element} parent @param {Element[]} elements */
function arrange(parent, elements) {
  let next = parent.firstElementChild
  for (const child of elements) {
    if (child === next) next = next.nextElementSibling
    else parent.insertBefore(child, next)
  }
  while (next !== null) {
    const rest = next.nextElementSibling
    next.remove()
    next = rest
  }
}

// ---- the list of sessions

function createSessionList() {
  const list = element('session-list', HTMLElement)
  const olderButton = element('older', HTMLButtonElement)
  const empty = element('no-sessions', HTMLElement)
  /** Newest first, as the gateway gave them. @type {Map<string, Session>} */
  let rows = new Map()
  /** @type {Map<string, {item: HTMLElement, link: HTMLAnchorElement}>} */
  const views = new Map()
  /** @type {string | null} */
  let olderCursor = null
  let olderLoaded = false
  /** @type {string | null} */
  let selected = null

  olderButton.addEventListener('click', async () => {
    olderButton.disabled = true
    try {
      const page = await getJson(`/sessions?limit=${sessionPageSize}&cursor=${encodeURIComponent(olderCursor ?? '')}`)
      for (const session of page.data) if (!rows.has(session.id)) rows.set(session.id, session)
      olderCursor = page.next_cursor
      olderLoaded = true
      draw()
    } catch (error) {
      // The button is still there to try again.
      if (!(error instanceof Refused || error instanceof Cut)) throw error
    } finally {
      olderButton.disabled = false
    }
  })

  /** Takes the first page of the list. @param {{data: Session[], next_cursor?: string | null}} page */
  function take(page) {
    const fresh = new Map(page.data.map((session) => [session.id, session]))
    if (olderLoaded) for (const [id, session] of rows) if (!fresh.has(id)) fresh.set(id, session)
    if (!olderLoaded) olderCursor = page.next_cursor ?? null
    rows = fresh
    draw()
  }

  function draw() {
    for (const id of views.keys()) if (!rows.has(id)) views.delete(id)
    arrange(list, [...rows.values()].map(itemOf))
    empty.hidden = rows.size > 0
    olderButton.hidden = !olderCursor
  }

  /** @param {Session} session */
  function itemOf(session) {
    const view = views.get(session.id) ?? createItem(session.id)
    const title = titleOf(session)
    views.set(session.id, view)
    if (view.link.textContent !== title) view.link.textContent = title
    if (session.id === selected) view.link.setAttribute('aria-current', 'page')
    else view.link.removeAttribute('aria-current')
    view.item.classList.toggle('running', session.status === 'running')
    return view.item
  }

  /** @param {string} id */
  function createItem(id) {
    const item = document.createElement('li')
    const link = document.createElement('a')
    link.href = `#/s/${id}`
    link.dir = 'auto'
    item.append(link)
    return { item, link }
  }

  return {
    take,
    /** @param {string} id */
    has: (id) => rows.has(id),
    /** For the session on the screen when it is older than the list. @param {Session} session */
    add(session) {
      rows.set(session.id, session)
      draw()
    },
    /** @param {string | null} id @param {unknown} title */
    rename(id, title) {
      const session = rows.get(id ?? '')
      if (session === undefined || typeof title !== 'string') return
      session.title = title
      draw()
    },
    /** Marks a session as the one on the screen. @param {string | null} id @returns {string | undefined} its title */
    select(id) {
      selected = id
      draw()
      const session = rows.get(id ?? '')
      return session && titleOf(session)
    },
  }
}

/** @param {Session} session */
function titleOf(session) {
  return session.title?.trim() || 'Untitled'
}

// ---- requests

/** The gateway answered, and the answer is no. */
class Refused extends Error {
  /** @param {Response} response @param {any} problem its problem document, when it has one */
  constructor(response, problem) {
    super(problem?.detail ?? `the gateway answered with status ${response.status}.`)
    this.status = response.status
    this.code = typeof problem?.code === 'string' ? problem.code : ''
    this.title = typeof problem?.title === 'string' ? problem.title : ''
    this.retryAfterMs = Number(response.headers.get('retry-after') ?? 0) * 1000 || 0
  }
}

/** The connection broke, or what came over it was no answer of the gateway. What was asked may have happened. */
class Cut extends Error {}

/** The reader went to another session. */
class Left extends Error {}

/** @param {unknown} error @returns {boolean} whether the same request can succeed a moment later */
function passes(error) {
  return error instanceof Cut || (error instanceof Refused && (error.status === 429 || error.status >= 500))
}

/** @param {unknown} error @returns {string} a sentence for the reader */
function explain(error) {
  if (error instanceof Cut) return 'the gateway cannot be reached.'
  if (!(error instanceof Refused)) return error instanceof Error ? error.message : String(error)
  if (error.code === 'session_busy') return 'a reply is running in this chat.'
  const advice = error.retryAfterMs > 0 ? `Try again in ${Math.ceil(error.retryAfterMs / 1000)} s.` : error.message
  return error.title === '' ? advice : `${error.title}. ${advice}`
}

/** @param {string} path @param {AbortSignal} [signal] @returns {Promise<any>} */
async function getJson(path, signal) {
  return requestJson(path, {}, signal)
}

/**
 * @param {string} path @param {RequestInit} init @param {AbortSignal} [signal]
 * @throws {Refused | Cut} or the signal's reason
 */
async function requestJson(path, init, signal) {
  const deadline = AbortSignal.timeout(answerMsMax)
  try {
    const response = await fetch(api + path, {
      credentials: 'same-origin',
      cache: 'no-store',
      signal: signal === undefined ? deadline : AbortSignal.any([signal, deadline]),
      ...init,
    })
    if (!response.ok) throw new Refused(response, await readProblem(response))
    return response.status === 204 ? undefined : await response.json()
  } catch (cause) {
    signal?.throwIfAborted()
    throw cause instanceof Refused ? cause : new Cut('request', { cause })
  }
}

/** @param {Response} response @returns {Promise<unknown>} undefined when a proxy answered and not the gateway */
async function readProblem(response) {
  try {
    return await response.json()
  } catch {
    return undefined // not JSON: the status has to say it all
  }
}

/** @param {string} sessionId @param {AbortSignal} signal @returns {Promise<Message[]>} oldest first */
async function readMessages(sessionId, signal) {
  const messages = []
  let cursor = ''
  for (let page = 0; page < messagePagesMax; page++) {
    const { data, next_cursor } = await getJson(
      `/sessions/${sessionId}/messages?limit=${messagePageSize}${cursor && `&cursor=${encodeURIComponent(cursor)}`}`,
      signal,
    )
    for (const message of data) messages.push(readMessage(message))
    if (!next_cursor) return messages
    cursor = next_cursor
  }
  throw new Error(
    `This chat has more than ${messagePagesMax * messagePageSize} messages. This page shows no such chat.`,
  )
}

/** @param {Message & {content?: string, parts?: Part[] | null}} message */
function readMessage(message) {
  const parts = message.parts?.length ? message.parts : message.content ? [{ kind: 'text', text: message.content }] : []
  return { ...message, parts }
}

/**
 * Opens an event stream. A connection that says nothing for too long is as good as broken, and so is one from before
 * the network came back: the system may not find out for minutes.
 * @typedef {Awaited<ReturnType<typeof openStream>>} Stream
 * @param {string} path @param {RequestInit} init @param {AbortSignal} [signal] for the time until the answer; then `close`
 * @throws {Refused | Cut} or the signal's reason
 */
async function openStream(path, init, signal) {
  const closing = new AbortController()
  const close = () => closing.abort()
  let heardAt = performance.now()
  let silence = setTimeout(close, answerMsMax)
  let response
  try {
    response = await fetch(api + path, {
      credentials: 'same-origin',
      cache: 'no-store',
      signal: signal === undefined ? closing.signal : AbortSignal.any([signal, closing.signal]),
      ...init,
    })
    if (!response.ok) throw new Refused(response, await readProblem(response))
    const type = response.headers.get('content-type') ?? ''
    if (response.status === 200 && !type.startsWith('text/event-stream')) throw new Error(`not a stream: ${type}`)
  } catch (cause) {
    close()
    signal?.throwIfAborted()
    throw cause instanceof Refused ? cause : new Cut('open', { cause })
  } finally {
    clearTimeout(silence)
  }
  const { status, headers, body } = response
  window.addEventListener('online', close, { signal: closing.signal })
  document.addEventListener('visibilitychange', lookAtClock, { signal: closing.signal })
  hear()

  function hear() {
    heardAt = performance.now()
    clearTimeout(silence)
    silence = setTimeout(close, silenceMsMax)
  }

  function lookAtClock() {
    if (!document.hidden && performance.now() - heardAt > silenceOnReturnMsMax) close()
  }

  /** @param {(ms: number) => void} onRetry @returns {AsyncGenerator<StreamEvent, void, void>} */
  async function* events(onRetry) {
    if (body === null) return
    const reader = body.getReader()
    const decoder = new TextDecoder()
    const parser = createSseParser(onRetry)
    for (;;) {
      let chunk
      try {
        chunk = await reader.read()
      } catch (cause) {
        throw new Cut('read', { cause })
      }
      // What is left in the parser at the end is a block without its blank line, and does not count.
      if (chunk.done) return
      hear()
      yield* parser.push(decoder.decode(chunk.value, { stream: true }))
    }
  }

  return {
    status,
    events,
    /** @param {string} name */
    header: (name) => headers.get(name) ?? '',
    close() {
      clearTimeout(silence)
      close()
    },
  }
}

/**
 * The event stream format of the HTML standard (9.2.6), for pieces that are cut anywhere: in a line, in a CRLF, in a
 * block. Comments are skipped; an id counts when its whole block has arrived.
 * @param {(ms: number) => void} onRetry
 */
function createSseParser(onRetry) {
  /** The beginning of a line whose end has not come. */
  let rest = ''
  let scanned = 0
  let afterCr = false
  let name = ''
  /** @type {string[]} */
  let data = []
  let dataChars = 0
  /** @type {string | undefined} */
  let id

  /** @param {string} text @returns {StreamEvent[]} the events that this piece completes */
  function push(text) {
    /** @type {StreamEvent[]} */
    const events = []
    if (text === '') return events
    rest += afterCr && text.startsWith('\n') ? text.slice(1) : text
    afterCr = text.endsWith('\r')
    const lineEnd = /\r\n?|\n/g
    lineEnd.lastIndex = scanned
    let start = 0
    for (const match of rest.matchAll(lineEnd)) {
      const line = rest.slice(start, match.index)
      start = match.index + match[0].length
      if (line === '') endBlock(events)
      else takeField(line)
    }
    rest = rest.slice(start)
    scanned = rest.length
    if (rest.length + dataChars > eventCharsMax) throw new Cut('an event without end')
    return events
  }

  /** @param {StreamEvent[]} events */
  function endBlock(events) {
    if (data.length > 0) events.push({ name: name || 'message', data: data.join('\n'), id })
    name = ''
    data = []
    dataChars = 0
    id = undefined
  }

  /** @param {string} line */
  function takeField(line) {
    const colon = line.indexOf(':')
    const field = colon === -1 ? line : line.slice(0, colon)
    const from = line.charAt(colon + 1) === ' ' ? colon + 2 : colon + 1
    const value = colon === -1 ? '' : line.slice(from)
    if (field === 'event') name = value
    else if (field === 'data') {
      data.push(value)
      dataChars += value.length
    } else if (field === 'id' && !value.includes('\0')) id = value
    else if (field === 'retry' && /^\d+$/.test(value)) onRetry(Number(value))
  }

  return { push }
}

/** @param {string} text @throws {Cut} an event that cannot be read is an event that was lost */
function parseJson(text) {
  try {
    return JSON.parse(text)
  } catch (cause) {
    throw new Cut('not JSON', { cause })
  }
}

// ---- waiting

/** @typedef {ReturnType<typeof createBackOff>} BackOff */
function createBackOff() {
  let firstMs = backOffFirstMs
  let failures = 0
  let growing = false
  const within = (/** @type {unknown} */ ms) => Math.min(Math.max(Number(ms) || 0, 100), backOffMsMax)
  return {
    within,
    /** @param {unknown} [error] whose `Retry-After` is kept to, within the cap */
    nextMs(error) {
      const ms = within(firstMs * 2 ** Math.min(failures++, 10))
      const asked = error instanceof Refused ? within(error.retryAfterMs) : 0
      // Half of it at random, so that the pages which one restart cut off do not all come back in the same instant.
      return Math.max(asked, ms / 2 + (Math.random() * ms) / 2)
    },
    /** The stream's own `retry:`. @param {number} ms */
    setFirstMs(ms) {
      firstMs = within(ms)
    },
    reset() {
      if (!growing) failures = 0
    },
    keepGrowing() {
      growing = true
    },
  }
}

/**
 * Waits, but no longer than until the network or the reader comes back.
 * @param {number} ms @param {AbortSignal} [signal] @returns {Promise<void>}
 */
function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const over = new AbortController()
    const timer = setTimeout(end, ms)
    function end() {
      clearTimeout(timer)
      over.abort()
      if (signal?.aborted) reject(signal.reason)
      else resolve()
    }
    if (signal?.aborted) return end()
    window.addEventListener('online', end, { signal: over.signal })
    document.addEventListener('visibilitychange', () => document.hidden || end(), { signal: over.signal })
    signal?.addEventListener('abort', end, { signal: over.signal })
  })
}

// ---- small things

/** `crypto.randomUUID` is missing where the page comes over plain http from another machine. */
function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('')
}

/**
 * @template {HTMLElement} T
 * @param {string} id @param {new () => T} type @returns {T}
 */
function element(id, type) {
  const found = document.getElementById(id)
  if (!(found instanceof type)) throw new Error(`The page has no ${type.name} #${id}`)
  return found
}

startPage()
