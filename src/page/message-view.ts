/**
 * One message on the screen: its parts, a note on how it ended, and what can be done with it. The buttons have pictures and
 * names and no text of their own, so that the text of an article is what somebody has said.
 */
import { textOf } from '../client/index.ts'
import type { Placed } from './branches.ts'
import type { Shown } from './conversation.ts'
import { arrange, copyText, create, iconButton, nameButton, setText, textButton } from './dom.ts'
import { createPartView, type PartView } from './part-view.ts'

/** How long a button says that it has copied. */
const copiedMs = 1500

export interface MessageActions {
  regenerate(message: Shown): void
  /** @returns whether the gateway has taken it */
  edit(message: Shown, text: string): Promise<boolean>
  /** @returns whether the gateway has taken it */
  rate(message: Shown, rating: 1 | -1, comment?: string): Promise<boolean>
  /** Shows the branch that goes through this message. */
  choose(id: string): void
}

export interface MessageView {
  readonly root: HTMLElement
  /** @returns whether all of it is on the screen; when not, call it again in the next frame */
  show(placed: Placed<Shown>, asWritten: boolean): boolean
  /** Opens the text of a message of the user for changes. */
  edit(): void
}

const names: Readonly<Record<Shown['role'], string>> = {
  user: 'You',
  assistant: 'Reply',
  tool: 'Answers of tools',
  system: 'Instructions',
}

export function createMessageView(role: Shown['role'], actions: MessageActions): MessageView {
  const root = create('article', { class: `message ${role}` })
  const body = create('div', { class: 'body' })
  const note = create('p', { class: 'note' })
  const footer = create('div', { class: 'footer' })
  const facts = create('span', { class: 'facts' })
  const branches = createBranchSwitch(actions)
  const copy = copyButton(role === 'user' ? 'Copy message' : 'Copy reply', () => textOf(current.message.parts))
  let parts: PartView[] = []
  // Never asked before `show` has set it.
  let current: Placed<Shown> = { message: undefined as never, siblings: [] }

  root.setAttribute('aria-label', names[role])
  root.append(body)
  footer.append(branches.root)
  if (role === 'user') footer.append(copy, iconButton('edit', 'Edit message', edit))
  const rating = role === 'assistant' ? createRating(root, () => current.message, actions) : undefined
  if (rating !== undefined) {
    footer.append(
      copy,
      iconButton('again', 'Regenerate', () => actions.regenerate(current.message)),
      rating.good,
      rating.bad,
      facts,
    )
  }

  function show(placed: Placed<Shown>, asWritten: boolean): boolean {
    current = placed
    const { message } = placed
    const running = message.status === 'streaming'
    root.dataset.status = message.status
    root.classList.toggle('running', running)
    root.classList.toggle('waiting', running && message.parts.length === 0)
    const whole = showParts(message, running, asWritten)
    // Read out when it is whole, not in syllables.
    root.setAttribute('aria-busy', `${running || !whole}`)
    setText(note, noteOn(message))
    showIf(note, note.textContent !== '')
    branches.show(placed)
    rating?.show(message.feedback)
    setText(facts, factsOf(message))
    showIf(footer, !running && (role === 'user' || role === 'assistant'))
    return whole
  }

  function showParts(message: Shown, running: boolean, asWritten: boolean): boolean {
    const last = message.parts.length - 1
    let whole = true
    if (parts.some((part, index) => part.kind !== message.parts[index]?.kind)) parts = []
    for (const [index, part] of message.parts.entries()) {
      const view = parts[index] ?? createPartView(part.kind, role === 'assistant')
      parts[index] = view
      // A call goes on while others are made; words end where the next part begins.
      const open = running && (index === last || part.kind === 'tool_call')
      if (!view.show(part, { open, asWritten })) whole = false
    }
    arrange(
      body,
      parts.map((part) => part.root),
    )
    return whole
  }

  function showIf(element: Element, wanted: boolean): void {
    if (!wanted) element.remove()
    // The note comes before the footer, and a form that is open behind both.
    else if (!element.isConnected) (element === note ? body : note.isConnected ? note : body).after(element)
  }

  function edit(): void {
    if (root.querySelector('form') !== null) return
    const form = createEditForm(textOf(current.message.parts), (text) => actions.edit(current.message, text))
    body.hidden = true
    footer.hidden = true
    form.addEventListener('close', () => {
      form.remove()
      body.hidden = false
      footer.hidden = false
    })
    root.append(form)
    form.querySelector('textarea')?.focus()
  }

  return { root, show, edit }
}

/** Copies what `read` gives, and says so. */
function copyButton(name: string, read: () => string): HTMLButtonElement {
  const button = iconButton('copy', name, () => void copyFrom(button, name, read()))
  return button
}

export async function copyFrom(button: HTMLButtonElement, name: string, text: string): Promise<void> {
  const copied = await copyText(text)
  nameButton(button, copied ? 'Copied' : 'The browser did not allow it')
  button.classList.toggle('done', copied)
  setTimeout(() => {
    nameButton(button, name)
    button.classList.remove('done')
  }, copiedMs)
}

function createBranchSwitch(actions: MessageActions) {
  const root = create('span', { class: 'branches' })
  const place = create('span', { class: 'place' })
  let siblings: readonly string[] = []
  let index = 0
  const go = (step: number) => {
    const id = siblings[index + step]
    if (id !== undefined) actions.choose(id)
  }
  const before = iconButton('before', 'Previous version', () => go(-1))
  const after = iconButton('after', 'Next version', () => go(1))
  root.setAttribute('role', 'group')
  root.setAttribute('aria-label', 'Versions')

  return {
    root,
    show(placed: Placed<Shown>) {
      ;({ siblings } = placed)
      index = siblings.indexOf(placed.message.id)
      root.hidden = siblings.length < 2
      if (root.hidden) return root.replaceChildren()
      setText(place, `${index + 1} / ${siblings.length}`)
      before.disabled = index <= 0
      after.disabled = index === siblings.length - 1
      if (!root.hasChildNodes()) root.append(before, place, after)
    },
  }
}

function createRating(root: HTMLElement, message: () => Shown, actions: MessageActions) {
  const good = iconButton('good', 'Good reply', () => void rate(1))
  const bad = iconButton('bad', 'Bad reply', () => void rate(-1))

  async function rate(rating: 1 | -1): Promise<void> {
    const rated = message()
    root.querySelector('form')?.remove()
    if (!(await actions.rate(rated, rating, rated.feedback?.comment ?? undefined))) return
    const form = createCommentForm(rating, rated.feedback?.comment ?? '', (comment) =>
      actions.rate(rated, rating, comment),
    )
    form.addEventListener('close', () => {
      form.remove()
      ;(rating === 1 ? good : bad).focus()
    })
    root.append(form)
    form.querySelector('textarea')?.focus({ preventScroll: true })
    form.scrollIntoView({ block: 'nearest' })
  }

  return {
    good,
    bad,
    show(feedback: Shown['feedback']) {
      good.setAttribute('aria-pressed', `${feedback?.rating === 1}`)
      bad.setAttribute('aria-pressed', `${feedback?.rating === -1}`)
    },
  }
}

function createCommentForm(rating: 1 | -1, comment: string, send: (text: string) => Promise<boolean>) {
  const question = rating === 1 ? 'What was good about it?' : 'What was wrong with it?'
  return createForm({ class: 'comment', name: question, text: comment, submit: 'Send comment', unitsMax: 2000 }, send)
}

function createEditForm(text: string, send: (text: string) => Promise<boolean>) {
  return createForm({ class: 'edit', name: 'Edited message', text, submit: 'Send again', unitsMax: 100_000 }, send)
}

/** One box and two buttons. Dispatches `close` when it is done with; what was typed is not lost when the gateway says no. */
function createForm(
  looks: { class: string; name: string; text: string; submit: string; unitsMax: number },
  send: (text: string) => Promise<boolean>,
): HTMLFormElement {
  const form = create('form', { class: `inline ${looks.class}` })
  const box = create('textarea')
  const submit = create('button', { class: 'main', text: looks.submit })
  const close = () => form.dispatchEvent(new Event('close'))
  box.value = looks.text
  box.rows = 1
  box.dir = 'auto'
  box.maxLength = looks.unitsMax
  box.placeholder = looks.class === 'comment' ? `${looks.name} (optional)` : ''
  box.setAttribute('aria-label', looks.name)
  form.append(box, create('div', { class: 'buttons' }, textButton('Cancel', 'quiet', close), submit))
  form.addEventListener('submit', async (event) => {
    event.preventDefault()
    if (box.value.trim() === '') return box.focus()
    submit.disabled = true
    const taken = await send(box.value)
    submit.disabled = false
    if (taken) close()
  })
  form.addEventListener('keydown', (event) => {
    if (event.key === 'Escape') {
      event.stopPropagation()
      close()
    }
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) form.requestSubmit()
  })
  return form
}

/** What its reader has to know about its end. */
function noteOn(message: Shown): string {
  if (message.role !== 'assistant') return ''
  const some = message.parts.length > 0
  if (message.status === 'stopped') return some ? 'Stopped. This is the reply up to there.' : 'Stopped.'
  if (message.status === 'interrupted') {
    return some ? 'Interrupted. The reply up to there is stored.' : 'Interrupted before the first word.'
  }
  if (message.status === 'failed') return some ? 'Failed. The reply up to there is stored.' : 'Failed.'
  return ''
}

function factsOf({ model, latency_ms, total_tokens, cost_usd }: Shown): string {
  const facts = [
    model,
    latency_ms === null ? null : latency_ms < 1000 ? `${latency_ms} ms` : `${(latency_ms / 1000).toFixed(1)} s`,
    total_tokens === null ? null : `${total_tokens.toLocaleString('en')} tokens`,
    cost_usd === null ? null : `$${cost_usd}`,
  ]
  return facts.filter((fact) => fact !== null).join(' · ')
}
