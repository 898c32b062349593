/**
 * The inspector: what comes over the wire for the reply on the screen, as it comes. For a developer who tries the gateway.
 *
 * It must not slow what it looks at: an event is noted as it is, and rows are made in frames, for the newest events only
 * and only while the panel is open.
 */
import type { Client, ReplyEvent } from '../client/index.ts'
import { create, element, iconButton, setText, textButton } from './dom.ts'
import { copyFrom } from './message-view.ts'
import { explain, type Notices } from './notices.ts'
import type { Store } from './storage.ts'

/** Rows of the table. Older ones make room. */
const rowsMax = 300
/** Of an event's data, when somebody looks at it. */
const dataUnitsMax = 20_000
/** Still counts as the end of the table. */
const endSlackPx = 40
const copyCurlName = 'Copy the command, with a ticket that is good for a minute'

export interface InspectorOptions {
  readonly client: Client
  readonly notices: Notices
  readonly store: Store
}

export interface Exchange {
  /** The request that began it, such as `POST /chat/stream`. */
  readonly what: string
  /** When it was sent, as `performance.now()` has it. */
  readonly sentAt: number
}

/** A reply that has ended: what is stored of it. */
export interface Ended {
  readonly sessionId: string
  readonly runId: string
  readonly messageId: string
  readonly ttftMs: number | null
  readonly latencyMs: number | null
  readonly tokens: number | null
  readonly costUsd: string | null
}

export interface Inspector {
  /** A reply begins, or is attached to: what was there before makes room. */
  begin(exchange: Exchange): void
  /** A reply that ended before the page was there. Its events can be had again. */
  rest(ended: Ended | undefined): void
  see(event: ReplyEvent): void
  toggle(): void
}

interface Noted {
  readonly name: string
  readonly id: string
  readonly at: number
  readonly gapMs: number
  /** Of a connection: what became of it. */
  readonly note: string
  readonly event: ReplyEvent
}

type Fact = 'session' | 'run' | 'message' | 'connection' | 'first word' | 'latency' | 'tokens' | 'cost' | 'events'

const copied: ReadonlySet<Fact> = new Set<Fact>(['session', 'run', 'message'])

export function createInspector({ client, notices, store }: InspectorOptions): Inspector {
  const panel = element('inspector', HTMLElement)
  const button = element('inspect', HTMLButtonElement)
  const facts = createFacts()
  const curl = create('pre', { class: 'curl' })
  const copyCurl = iconButton('copy', copyCurlName, () => void copyCommand())
  const rows = create('tbody')
  const box = create('div', { class: 'events' })
  const dropped = create('p', { class: 'dropped' })
  const data = create('pre', { class: 'data' })
  let noted: Noted[] = []
  /** Of `noted`, how many have a row. */
  let drawn = 0
  let count = 0
  let units = 0
  let lastAt = 0
  let sentAt = 0
  let frame = 0
  let runId = ''
  /** Ends a replay that is under way. */
  let replaying = new AbortController()
  const again = textButton('Replay its events', 'quiet', () => void replay())

  build()
  button.addEventListener('click', toggle)
  if (store.get('inspector') === 'open' && matchMedia('(min-width: 70rem)').matches) setOpen(true)

  function build(): void {
    const head = create('div', { class: 'head' }, create('h2', { text: 'Inspector' }))
    head.append(iconButton('close', 'Close the inspector', () => setOpen(false)))
    box.append(create('table', {}, headRow(), rows))
    box.tabIndex = 0
    box.setAttribute('role', 'region')
    box.setAttribute('aria-label', 'Events')
    data.hidden = true
    data.tabIndex = 0
    data.setAttribute('role', 'region')
    data.setAttribute('aria-label', 'Data of the event')
    curl.tabIndex = 0
    curl.setAttribute('role', 'group')
    curl.setAttribute('aria-label', 'Command that attaches to this run')
    panel.append(head, facts.root, create('div', { class: 'attach' }, curl, copyCurl), again, dropped, box, data)
    panel.addEventListener('keydown', (event) => {
      if (event.key !== 'Escape') return
      setOpen(false)
      button.focus()
    })
    clear()
  }

  function headRow(): HTMLElement {
    const cells = [
      ['ms', 'Milliseconds since it was sent'],
      ['gap', 'Milliseconds since the event before'],
      ['event', 'Its name'],
      ['size', 'UTF-16 units of its data, as they came'],
      ['id', 'Its place in the log of the run'],
    ].map(([text = '', title = '']) => {
      const cell = create('th', { text })
      cell.title = title
      cell.scope = 'col'
      return cell
    })
    return create('thead', {}, create('tr', {}, ...cells))
  }

  function toggle(): void {
    setOpen(panel.hidden === true)
  }

  function setOpen(open: boolean): void {
    panel.hidden = !open
    document.body.classList.toggle('inspecting', open)
    button.setAttribute('aria-expanded', `${open}`)
    store.set('inspector', open ? 'open' : undefined)
    if (open) draw()
  }

  function clear(): void {
    noted = []
    drawn = 0
    count = 0
    units = 0
    lastAt = sentAt
    rows.replaceChildren()
    data.hidden = true
    facts.clear()
    setText(curl, 'Send a message, and its events appear here.')
    copyCurl.hidden = true
    again.hidden = true
    setText(dropped, '')
  }

  function begin(exchange: Exchange): void {
    replaying.abort()
    ;({ sentAt } = exchange)
    clear()
    facts.set('connection', exchange.what)
    schedule()
  }

  function rest(ended: Ended | undefined): void {
    // What has just come over the wire says more.
    if (ended !== undefined && ended.runId === runId) return
    replaying.abort()
    runId = ''
    clear()
    if (ended === undefined) return
    const { sessionId, messageId, ttftMs, latencyMs, tokens, costUsd } = ended
    showIds(sessionId, ended.runId, messageId)
    facts.set('connection', 'none: the reply has ended')
    if (ttftMs !== null) facts.set('first word', `${ttftMs} ms in the gateway`)
    if (latencyMs !== null) facts.set('latency', `${latencyMs} ms in the gateway`)
    if (tokens !== null) facts.set('tokens', `${tokens}`)
    if (costUsd !== null) facts.set('cost', `$${costUsd}`)
    again.hidden = false
    schedule()
  }

  /** The log of a run can be read as often as one likes. The transcript has nothing to do with it. */
  async function replay(): Promise<void> {
    const id = runId
    begin({ what: 'GET /runs/…/events', sentAt: performance.now() })
    replaying = new AbortController()
    const { signal } = replaying
    try {
      for await (const event of client.chat.attach({ runId: id }, { signal })) see(event)
    } catch (error) {
      if (!signal.aborted) notices.say(`The events could not be read: ${explain(error)}`)
    }
  }

  function showIds(session: string, run: string, message: string): void {
    runId = run
    facts.set('session', session)
    facts.set('run', run)
    facts.set('message', message)
    setText(curl, curlOf(`/api/v1/runs/${run}/events?ticket=…`))
    copyCurl.hidden = false
  }

  function see(event: ReplyEvent): void {
    const at = 'at' in event ? event.at : performance.now()
    const id = 'id' in event ? event.id : ''
    noted.push({ name: event.type, id, at, gapMs: at - lastAt, note: noteOn(event), event })
    if (noted.length > rowsMax) noted.splice(0, noted.length - rowsMax)
    lastAt = at
    count += 1
    if ('chars' in event) units += event.chars
    read(event)
    schedule()
  }

  function read(event: ReplyEvent): void {
    if (event.type === 'connection') facts.set('connection', noteOn(event))
    if (event.type === 'run') {
      const { session_id, run_id, message_id } = event.data
      showIds(session_id, run_id, message_id)
    }
    const isFirstWord = event.type === 'delta' && !facts.has('first word')
    if (isFirstWord) facts.set('first word', `${Math.round(event.at - sentAt)} ms here`)
    if (event.type === 'usage') {
      facts.set('tokens', tokensOf(event.data.usage))
      if (event.data.cost_usd !== undefined) facts.set('cost', `$${event.data.cost_usd}`)
    }
    if (event.type !== 'done') return
    const { ttft_ms, latency_ms, usage, cost_usd, status, finish_reason } = event.data
    const here = facts.get('first word')
    if (ttft_ms !== undefined) facts.set('first word', `${here === '' ? '' : `${here}, `}${ttft_ms} ms in the gateway`)
    if (latency_ms !== undefined) facts.set('latency', `${latency_ms} ms in the gateway`)
    if (usage !== undefined) facts.set('tokens', tokensOf(usage))
    if (cost_usd !== undefined) facts.set('cost', `$${cost_usd}`)
    facts.set('connection', `${status}${finish_reason === undefined ? '' : ` (${finish_reason})`}`)
  }

  /** No script can read a visitor's cookie, and nobody should paste a token of theirs: a ticket opens this run alone. */
  async function copyCommand(): Promise<void> {
    try {
      await copyFrom(copyCurl, copyCurlName, curlOf(await client.runs.ticketUrl(runId)))
    } catch (error) {
      notices.say(`There is no ticket for this run: ${explain(error)}`)
    }
  }

  function schedule(): void {
    if (panel.hidden || frame !== 0) return
    frame = requestAnimationFrame(() => {
      frame = 0
      draw()
    })
  }

  function draw(): void {
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < endSlackPx
    facts.set('events', count === 0 ? '' : `${count}, ${units.toLocaleString('en')} units of data`)
    facts.draw()
    const fresh = Math.min(count - drawn, noted.length)
    rows.append(...(fresh > 0 ? noted.slice(-fresh).map(rowOf) : []))
    while (rows.childElementCount > rowsMax) rows.firstElementChild?.remove()
    drawn = count
    setText(dropped, count > rowsMax ? `The last ${rowsMax} of ${count} events` : '')
    if (atEnd) box.scrollTop = box.scrollHeight
  }

  function rowOf({ name, id, at, gapMs, note, event }: Noted): HTMLElement {
    const look = create('button', { class: 'look', text: note === '' ? name : `${name}: ${note}` })
    look.type = 'button'
    look.addEventListener('click', () => showData(event))
    const size = 'chars' in event ? `${event.chars}` : ''
    return create(
      'tr',
      { class: name },
      create('td', { text: Math.round(at - sentAt).toString() }),
      create('td', { text: gapMs < 10 ? gapMs.toFixed(1) : Math.round(gapMs).toString() }),
      create('td', {}, look),
      create('td', { text: size }),
      create('td', { text: id }),
    )
  }

  function showData(event: ReplyEvent): void {
    const text = JSON.stringify('data' in event ? event.data : event, null, 2)
    data.hidden = false
    setText(data, text.length > dataUnitsMax ? `${text.slice(0, dataUnitsMax)}…` : text)
    data.scrollTop = 0
  }

  return { begin, rest, see, toggle }
}

function createFacts() {
  const root = create('dl', { class: 'facts' })
  const values = new Map<Fact, string>()
  const rows = new Map<Fact, HTMLElement>()
  const order: readonly Fact[] = [
    'connection',
    'session',
    'run',
    'message',
    'first word',
    'latency',
    'tokens',
    'cost',
    'events',
  ]

  function createRow(fact: Fact): HTMLElement {
    const value = create('dd')
    const text = create('span', { class: 'value' })
    value.append(text)
    if (copied.has(fact)) {
      const name = `Copy the id of the ${fact}`
      const copy = iconButton('copy', name, () => void copyFrom(copy, name, text.textContent ?? ''))
      value.append(copy)
    }
    return create('div', {}, create('dt', { text: fact }), value)
  }

  return {
    root,
    get: (fact: Fact) => values.get(fact) ?? '',
    has: (fact: Fact) => values.has(fact),
    set(fact: Fact, value: string) {
      values.set(fact, value)
    },
    clear() {
      values.clear()
      rows.clear()
      root.replaceChildren()
    },
    draw() {
      for (const fact of order) {
        const value = values.get(fact) ?? ''
        if (value === '') continue
        const row = rows.get(fact) ?? createRow(fact)
        if (!rows.has(fact)) {
          rows.set(fact, row)
          root.replaceChildren(...order.flatMap((name) => rows.get(name) ?? []))
        }
        const text = row.querySelector('.value')
        if (text !== null) setText(text, value)
      }
    },
  }
}

function noteOn(event: ReplyEvent): string {
  if (event.type !== 'connection') return ''
  const { state, attempt, waitMs, why } = event
  if (state === 'waiting') return `${why ?? 'cut'}, again in ${Math.round(waitMs ?? 0)} ms`
  return attempt > 1 ? `${state} (${attempt})` : state
}

function tokensOf({ input_tokens, output_tokens }: { input_tokens: number; output_tokens: number }): string {
  return `${input_tokens} in, ${output_tokens} out`
}

function curlOf(url: string): string {
  return `curl -N '${location.origin}${url}'`
}
