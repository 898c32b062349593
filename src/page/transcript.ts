/**
 * The transcript: messages -> elements, in frames. What has changed is drawn at most once a frame and within a part of its
 * time, the newest first; what does not fit goes on in the next one. Of a long conversation the end is shown, and what
 * came before when the reader asks for it.
 *
 * It follows the end until the reader scrolls up, and again when the reader is back there.
 */
import type { Placed } from './branches.ts'
import type { Shown } from './conversation.ts'
import { arrange, element, textButton } from './dom.ts'
import { copyFrom, createMessageView, type MessageActions, type MessageView } from './message-view.ts'

/** A hidden page gets no animation frames. Its text goes on at this pace. */
const hiddenFrameMs = 200
/** Of the 16 ms of a frame; layout and paint need the rest. */
const drawMsMax = 10
/** Screen readers look at the page some time after it has changed. */
const quietMs = 500
/** Still counts as the end of the transcript: a line and a half. */
const endSlackPx = 40
/** Messages that are shown at first, and how many more each time. */
const messagesAtOnce = 60

export interface Transcript {
  /** Makes the screen equal to the messages, and keeps the elements of those that were there. */
  show(path: readonly Placed<Shown>[]): void
  /** Shows a change of one message in the next frame. */
  update(message: Shown): void
  rename(id: string, newId: string): void
  toEnd(): void
  /** Text as it is stored, with the marks of Markdown as they are. */
  showAsWritten(asWritten: boolean): void
  /** Opens the last message of the user for changes. */
  editLast(): void
}

export function createTranscript(actions: MessageActions): Transcript {
  const log = element('log', HTMLElement)
  const toEndButton = element('to-end', HTMLButtonElement)
  const earlier = textButton('Show earlier messages', 'quiet', showEarlier)
  const views = new Map<string, MessageView>()
  /** Ids of the messages that are not on the screen as they are. */
  const changed = new Set<string>()
  let path: readonly Placed<Shown>[] = []
  let shownMax = messagesAtOnce
  let asWritten = false
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
  log.addEventListener('click', ({ target }) => {
    if (!(target instanceof Element)) return
    // Whoever opens a fold wants to see it, and not the end.
    if (target.closest('summary') !== null) following = false
    const button = target.closest('.copy-code')
    if (!(button instanceof HTMLButtonElement)) return
    void copyFrom(button, 'Copy code', button.parentElement?.querySelector('code')?.textContent ?? '')
  })
  // Text grows also when nobody draws: a picture arrives, or what was off the screen is laid out.
  const sizes = new ResizeObserver(scroll)
  sizes.observe(log)
  toEndButton.addEventListener('click', () => {
    toEnd()
    log.focus({ preventScroll: true })
  })

  function show(fresh: readonly Placed<Shown>[]): void {
    if (fresh[0]?.message.id !== path[0]?.message.id) shownMax = messagesAtOnce
    path = fresh
    const kept = new Set(path.map(({ message }) => message.id))
    for (const [id, view] of views) {
      if (kept.has(id)) continue
      sizes.unobserve(view.root)
      views.delete(id)
    }
    // A screen reader reads out what is added to a log, but a whole history is not news.
    log.setAttribute('aria-busy', 'true')
    clearTimeout(quiet)
    quiet = setTimeout(() => log.setAttribute('aria-busy', 'false'), quietMs)
    place()
  }

  function place(): void {
    const shown = path.slice(-shownMax)
    const roots = shown.map(({ message }) => viewOf(message).root)
    arrange(log, path.length > shown.length ? [earlier, ...roots] : roots)
    changed.clear()
    for (const { message } of shown.toReversed()) changed.add(message.id)
    draw()
  }

  function showEarlier(): void {
    const fromEnd = log.scrollHeight - log.scrollTop
    following = false
    shownMax += messagesAtOnce
    place()
    log.scrollTop = log.scrollHeight - fromEnd
  }

  function viewOf(message: Shown): MessageView {
    const there = views.get(message.id)
    if (there !== undefined) return there
    const view = createMessageView(message.role, actions)
    views.set(message.id, view)
    sizes.observe(view.root)
    return view
  }

  function update(message: Shown): void {
    changed.add(message.id)
    schedule()
  }

  function schedule(): void {
    if (frame !== 0) return
    frame = requestAnimationFrame(draw)
    timer = setTimeout(draw, hiddenFrameMs)
  }

  function draw(): void {
    cancelAnimationFrame(frame)
    clearTimeout(timer)
    frame = 0
    const beganAt = performance.now()
    for (const id of changed) {
      const placed = path.find(({ message }) => message.id === id)
      if (placed === undefined || (views.get(id)?.show(placed, asWritten) ?? true)) changed.delete(id)
      if (performance.now() - beganAt > drawMsMax) break
    }
    scroll()
    if (changed.size > 0) schedule()
  }

  function rename(id: string, newId: string): void {
    const view = views.get(id)
    if (view === undefined) return
    views.delete(id)
    views.set(newId, view)
  }

  function toEnd(): void {
    following = true
    toEndButton.hidden = true
    scroll()
  }

  function scroll(): void {
    if (following) log.scrollTop = log.scrollHeight
  }

  return {
    show,
    update,
    rename,
    toEnd,
    showAsWritten(wanted) {
      asWritten = wanted
      place()
    },
    editLast() {
      const last = path.findLast(({ message }) => message.role === 'user')
      if (last !== undefined) views.get(last.message.id)?.edit()
    },
  }
}
