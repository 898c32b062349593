/**
 * The list of sessions: newest first, found by words, older ones on demand; renamed, exported, deleted and brought back.
 * It holds what the gateway has said last, and asks again when something has happened.
 *
 * Two answers may be on their way at once, and the older one could say that a finished run is running: each request ends
 * the one before it. When the gateway does not answer, the list stays as it is, and the next look brings a fresh one.
 */
import { type Client, GatewayError, type Session } from '../client/index.ts'
import { arrange, create, element, iconButton, saveFile, setText } from './dom.ts'
import { explain, type Notices } from './notices.ts'
import { createSessionMenu } from './session-menu.ts'

const pageSize = 50
/** After the last letter; a word typed in a row is one question. */
const searchMs = 200
const titleUnitsMax = 500
const fileNameUnitsMax = 60

export interface SessionListOptions {
  readonly client: Client
  readonly notices: Notices
  /** A session is gone, or back again. */
  readonly onDelete: (id: string) => void
  readonly onRestore: (id: string) => void
  /** Something was changed here that other tabs show too. */
  readonly onChange: () => void
}

export interface SessionList {
  /** Asks the gateway. @throws what it answers */
  refresh(): Promise<void>
  /** Forgets everything: somebody else is here. */
  clear(): void
  rename(id: string | null, title: string): void
  /** Marks a session as the one on the screen. @returns what is known of it */
  select(id: string | null): Session | undefined
  /** How many there are, as far as it is known: a search that finds nothing does not mean that there are none. */
  count(): number
  focusSearch(): void
}

interface Row {
  readonly item: HTMLElement
  readonly link: HTMLAnchorElement
  readonly more: HTMLButtonElement
}

export function createSessionList(options: SessionListOptions): SessionList {
  const { client, notices, onChange } = options
  const list = element('session-list', HTMLElement)
  const olderButton = element('older', HTMLButtonElement)
  const empty = element('no-sessions', HTMLElement)
  const search = element('search', HTMLInputElement)
  const menu = createSessionMenu()
  /** Newest first, as the gateway gave them. */
  let sessions = new Map<string, Session>()
  /** The one on the screen, when it is older than the list. */
  let visiting: Session | undefined
  const rows = new Map<string, Row>()
  let olderCursor: string | null = null
  let olderLoaded = false
  let selected: string | null = null
  let query = ''
  let asking = new AbortController()
  let timer = 0

  search.addEventListener('input', () => {
    clearTimeout(timer)
    timer = setTimeout(() => {
      query = search.value.trim()
      olderLoaded = false
      report(refresh())
    }, searchMs)
  })
  search.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape' || search.value === '') return
    event.stopPropagation()
    search.value = ''
    search.dispatchEvent(new Event('input'))
  })
  olderButton.addEventListener('click', () => report(loadOlder()))

  function report(work: Promise<void>): void {
    work.catch((error) => {
      if (!(error instanceof DOMException)) notices.say(`The list of chats could not be read: ${explain(error)}`)
    })
  }

  async function refresh(): Promise<void> {
    asking.abort()
    asking = new AbortController()
    const { signal } = asking
    const asked = query
    list.setAttribute('aria-busy', 'true')
    try {
      const page = await client.sessions.list({ limit: pageSize, ...(asked === '' ? {} : { q: asked }) }, { signal })
      signal.throwIfAborted()
      const fresh = new Map(page.data.map((session) => [session.id, session]))
      if (olderLoaded) for (const [id, session] of sessions) if (!fresh.has(id)) fresh.set(id, session)
      if (!olderLoaded) olderCursor = page.next_cursor
      sessions = fresh
      await visit(signal)
      draw()
    } catch (error) {
      // A younger question is on its way.
      if (!signal.aborted) throw error
    } finally {
      if (!signal.aborted) list.setAttribute('aria-busy', 'false')
    }
  }

  /** The session on the screen has a place in the list, however old it is. */
  async function visit(signal: AbortSignal): Promise<void> {
    visiting = undefined
    if (selected === null || sessions.has(selected) || query !== '') return
    try {
      visiting = await client.sessions.get(selected, [], { signal })
    } catch (error) {
      if (!(error instanceof GatewayError)) throw error
      // It is not there, or not ours; whoever loads its messages says so.
    }
  }

  async function loadOlder(): Promise<void> {
    if (olderCursor === null) return
    olderButton.disabled = true
    try {
      const page = await client.sessions.list(
        { limit: pageSize, cursor: olderCursor, ...(query === '' ? {} : { q: query }) },
        { signal: asking.signal },
      )
      for (const session of page.data) if (!sessions.has(session.id)) sessions.set(session.id, session)
      olderCursor = page.next_cursor
      olderLoaded = true
      draw()
    } finally {
      olderButton.disabled = false
    }
  }

  function shown(): readonly Session[] {
    return visiting === undefined || sessions.has(visiting.id)
      ? [...sessions.values()]
      : [...sessions.values(), visiting]
  }

  function draw(): void {
    const all = shown()
    const known = new Set(all.map(({ id }) => id))
    for (const id of rows.keys()) if (!known.has(id)) rows.delete(id)
    let age = ''
    const items = all.flatMap((session) => {
      const item = itemOf(session)
      const next = query === '' ? ageOf(session.last_activity_at) : ''
      if (next === age) return [item]
      age = next
      return [headingOf(age), item]
    })
    arrange(list, items)
    setText(empty, query === '' ? 'No chats yet.' : `No chat with “${query}”.`)
    empty.hidden = all.length > 0
    olderButton.hidden = olderCursor === null
  }

  function headingOf(text: string): HTMLElement {
    const there = [...list.children].find((child) => child.classList.contains('age') && child.textContent === text)
    if (there instanceof HTMLElement) return there
    const heading = create('li', { class: 'age', text })
    heading.setAttribute('role', 'presentation')
    return heading
  }

  function itemOf(session: Session): HTMLElement {
    const row = rows.get(session.id) ?? createRow(session.id)
    const title = titleOf(session)
    rows.set(session.id, row)
    setText(row.link, title)
    if (session.id === selected) row.link.setAttribute('aria-current', 'page')
    else row.link.removeAttribute('aria-current')
    const running = session.status === 'running'
    row.item.classList.toggle('running', running)
    // For those who do not see the mark.
    if (running) row.link.setAttribute('aria-description', 'A reply is running')
    else row.link.removeAttribute('aria-description')
    row.more.setAttribute('aria-label', `Actions for ${title}`)
    return row.item
  }

  function createRow(id: string): Row {
    const item = create('li')
    const link = create('a')
    const more: HTMLButtonElement = iconButton('more', 'Actions', () =>
      menu.open(more, [
        { name: 'Rename', icon: 'edit', run: () => beginRename(id) },
        { name: 'Export as Markdown', icon: 'save', run: () => void exportAs(id, 'md') },
        { name: 'Export as JSON', icon: 'save', run: () => void exportAs(id, 'json') },
        { name: 'Delete', icon: 'delete', run: () => void remove(id) },
      ]),
    )
    link.href = `#/s/${id}`
    link.dir = 'auto'
    more.setAttribute('aria-haspopup', 'menu')
    item.append(link, more)
    return { item, link, more }
  }

  function find(id: string | null): Session | undefined {
    return id === null ? undefined : (sessions.get(id) ?? (visiting?.id === id ? visiting : undefined))
  }

  function put(session: Session): void {
    if (visiting?.id === session.id) visiting = session
    else if (sessions.has(session.id)) sessions.set(session.id, session)
    draw()
  }

  function beginRename(id: string): void {
    const row = rows.get(id)
    const session = find(id)
    if (row === undefined || session === undefined) return
    const box = create('input', { class: 'rename' })
    const before = session.title ?? ''
    let over = false
    box.value = before
    box.maxLength = titleUnitsMax
    box.setAttribute('aria-label', 'New title')
    const finish = (keep: boolean, refocus: boolean) => {
      if (over) return
      over = true
      const title = box.value.trim()
      box.replaceWith(row.link)
      if (refocus) row.link.focus()
      if (keep && title !== '' && title !== before) void saveTitle(session, title)
    }
    box.addEventListener('keydown', (event) => {
      if (event.isComposing) return
      if (event.key !== 'Enter' && event.key !== 'Escape') return
      event.preventDefault()
      event.stopPropagation()
      finish(event.key === 'Enter', true)
    })
    box.addEventListener('blur', () => finish(true, false))
    row.link.replaceWith(box)
    box.select()
    box.focus()
  }

  async function saveTitle(session: Session, title: string): Promise<void> {
    put({ ...session, title })
    try {
      put(await client.sessions.update(session.id, { title }))
      onChange()
    } catch (error) {
      put(session)
      notices.say(`The chat was not renamed: ${explain(error)}`)
    }
  }

  async function remove(id: string): Promise<void> {
    const session = find(id)
    if (session === undefined) return
    try {
      await client.sessions.delete(id)
    } catch (error) {
      return notices.say(`The chat was not deleted: ${explain(error)}`)
    }
    sessions.delete(id)
    if (visiting?.id === id) visiting = undefined
    draw()
    options.onDelete(id)
    onChange()
    notices.say(`Deleted “${titleOf(session)}”.`, { name: 'Undo', run: () => void restore(id) })
  }

  async function restore(id: string): Promise<void> {
    try {
      await client.sessions.restore(id)
      await refresh()
      options.onRestore(id)
      onChange()
    } catch (error) {
      notices.say(`The chat was not brought back: ${explain(error)}`)
    }
  }

  async function exportAs(id: string, format: 'md' | 'json'): Promise<void> {
    try {
      const session = find(id)
      saveFile(await client.sessions.export(id, format), `${fileNameOf(session)}.${format}`)
    } catch (error) {
      notices.say(`The chat was not exported: ${explain(error)}`)
    }
  }

  return {
    refresh,
    clear() {
      asking.abort()
      sessions = new Map()
      visiting = undefined
      olderCursor = null
      olderLoaded = false
      search.value = ''
      query = ''
      draw()
      empty.hidden = true
    },
    rename(id, title) {
      const session = find(id)
      if (session !== undefined) put({ ...session, title })
    },
    select(id) {
      selected = id
      if (visiting !== undefined && visiting.id !== id) visiting = undefined
      draw()
      if (olderCursor === null && sessions.size === 0) empty.hidden = list.getAttribute('aria-busy') !== 'false'
      return find(id)
    },
    count: () => (query === '' ? sessions.size : sessions.size + 1),
    focusSearch() {
      search.focus()
      search.select()
    },
  }
}

export function titleOf(session: Session): string {
  return session.title?.trim() || 'Untitled'
}

/** A name that every file system takes. */
function fileNameOf(session: Session | undefined): string {
  const title = session === undefined ? '' : titleOf(session)
  const name = title
    .replaceAll(/[^\p{L}\p{N} _-]+/gu, ' ')
    .replaceAll(/\s+/g, ' ')
    .trim()
  return name.slice(0, fileNameUnitsMax).toWellFormed().trim() || 'chat'
}

const dayMs = 24 * 3600 * 1000

function ageOf(time: string): string {
  const midnight = new Date().setHours(0, 0, 0, 0)
  const days = Math.ceil((midnight - Date.parse(time)) / dayMs)
  if (days <= 0) return 'Today'
  if (days <= 1) return 'Yesterday'
  if (days <= 7) return 'Last 7 days'
  return days <= 30 ? 'Last 30 days' : 'Older'
}
