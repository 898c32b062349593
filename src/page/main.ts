/**
 * The chat page: shows sessions, sends messages and follows replies, with nothing but the client library. It keeps nothing
 * of its own but settings and a pasted token: what is on the screen is either stored in the gateway or still in the textbox.
 *
 * Here the parts are put together: who tells whom what. Each is in a file of its own.
 */
import { createClient } from '../client/index.ts'
import { createAccount } from './account.ts'
import { type Chat, createChat, titleFor } from './chat.ts'
import { createComposer } from './composer.ts'
import { element, textButton } from './dom.ts'
import { createIdentity } from './identity.ts'
import { createInspector } from './inspector.ts'
import { createNotices } from './notices.ts'
import { createSessionList } from './sessions.ts'
import { startShortcuts } from './shortcuts.ts'
import { createStore } from './storage.ts'
import { createTabs } from './tabs.ts'
import { startTheme } from './theme.ts'
import { createTranscript } from './transcript.ts'

const uuidPattern = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i
/** Whoever is asked to wait longer than this with a message is told, and decides. */
const backOffMaxMs = 5000
const ideas = [
  'Tell me a short story about a message that almost got lost.',
  'Show me a table, a list and some code.',
  'What happens to this reply when I close the tab?',
] as const

function startPage(): void {
  const nav = element('nav', HTMLElement)
  const toggle = element('toggle', HTMLButtonElement)
  const heading = element('title', HTMLElement)
  const welcome = element('welcome', HTMLElement)
  const asWritten = element('as-written', HTMLButtonElement)
  const device = createStore('device')

  const identity = createIdentity(device, createStore('tab'))
  const client = createClient({ token: identity.token, limits: { backOffMaxMs } })
  const notices = createNotices()
  // Those below and the chat know of each other; nothing of this is called before the chat is there.
  const chat = (): Chat => chatOnScreen
  const inspector = createInspector({ client, notices, store: device })
  const tabs = createTabs((sessionId) => chat().look(sessionId))
  const transcript = createTranscript({
    regenerate: (message) => chat().regenerate(message),
    edit: (message, text) => chat().edit(message, text),
    rate: (message, rating, comment) => chat().rate(message, rating, comment),
    choose: (id) => chat().choose(id),
  })
  const composer = createComposer({
    send: () => chat().send(),
    stop: () => chat().stop(),
    editLast: () => transcript.editLast(),
  })
  const sessions = createSessionList({
    client,
    notices,
    onDelete: (id) => {
      if (id === chat().sessionId()) goTo(null)
    },
    onRestore: (id) => goTo(id),
    onChange: () => {
      chat().refreshList()
      tabs.tell(null)
    },
  })
  const account = createAccount({
    client,
    identity,
    notices,
    chats: () => sessions.count(),
    onChange(same) {
      sessions.clear()
      goTo(same ? sessionInAddress() : null)
      chat().refreshList()
    },
  })
  const chatOnScreen = createChat({
    client,
    transcript,
    composer,
    sessions,
    inspector,
    notices,
    tabs,
    onShow(session, sessionId, empty) {
      const title = titleFor(session)
      heading.textContent = title
      document.title = session === undefined ? 'Verbatim' : `${title} · Verbatim`
      welcome.hidden = !empty
      heading.classList.toggle('unknown', sessionId !== null && session === undefined)
    },
    onMissing() {
      history.replaceState(null, '', '#/')
      chat().show(null)
    },
    onBegin: (sessionId) => history.replaceState(null, '', `#/s/${sessionId}`),
    onStranger: () =>
      account.ask(
        identity.token() === undefined
          ? 'The gateway wants to know who you are.'
          : 'The gateway no longer accepts the token of this browser. Paste a fresh one, or sign out.',
      ),
  })

  function goTo(sessionId: string | null): void {
    showDrawer(false)
    if (sessionInAddress() === sessionId) chat().show(sessionId)
    else location.hash = sessionId === null ? '#/' : `#/s/${sessionId}`
  }

  function newChat(): void {
    goTo(null)
    composer.focus()
  }

  function search(): void {
    showDrawer(true)
    sessions.focusSearch()
  }

  /** On a narrow screen the list of sessions is folded away. */
  function showDrawer(open: boolean): void {
    toggle.setAttribute('aria-expanded', `${open}`)
    nav.classList.toggle('open', open)
  }

  function showAsWritten(wanted: boolean): void {
    asWritten.setAttribute('aria-pressed', `${wanted}`)
    device.set('as-written', wanted ? 'yes' : undefined)
    transcript.showAsWritten(wanted)
  }

  element('new-chat', HTMLButtonElement).addEventListener('click', newChat)
  asWritten.addEventListener('click', () => showAsWritten(asWritten.getAttribute('aria-pressed') !== 'true'))
  toggle.addEventListener('click', () => showDrawer(toggle.getAttribute('aria-expanded') !== 'true'))
  nav.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape' || toggle.getAttribute('aria-expanded') !== 'true') return
    showDrawer(false)
    toggle.focus()
  })
  document.addEventListener('click', ({ target }) => {
    if (!(target instanceof Element) || target.closest('#session-menu, #toasts, dialog') !== null) return
    if (!nav.contains(target) || target.closest('a') !== null) showDrawer(false)
  })
  document.addEventListener('visibilitychange', () => {
    if (!document.hidden) chat().refreshList()
  })
  window.addEventListener('hashchange', () => chat().show(sessionInAddress()))

  startTheme(device)
  startShortcuts([
    { keys: 'Enter', what: 'Send the message' },
    { keys: 'Shift Enter', what: 'Begin a new line' },
    { keys: '↑', what: 'In an empty textbox: edit your last message' },
    { keys: 'Esc', what: 'Stop the reply; close what is open' },
    { key: 'k', keys: '⌃ K', what: 'Search the chats', run: search },
    { key: 'o', shift: true, keys: '⌃ Shift O', what: 'Begin a new chat', run: newChat },
    { key: 'i', keys: '⌃ I', what: 'Show or hide the inspector', run: () => inspector.toggle() },
  ])
  element('ideas', HTMLElement).append(
    ...ideas.map((idea) =>
      textButton(idea, 'quiet', () => {
        composer.setText(idea)
        composer.focus()
      }),
    ),
  )
  showAsWritten(device.get('as-written') !== undefined)
  // On a touch screen focus would open the keyboard over the page.
  if (matchMedia('(pointer: fine)').matches) composer.focus()
  chat().show(sessionInAddress())
  chat().refreshList()
}

/** The session that the address names, as in `#/s/<id>`. */
function sessionInAddress(): string | null {
  const id = location.hash.startsWith('#/s/') ? location.hash.slice(4) : ''
  return uuidPattern.test(id) ? id : null
}

startPage()
