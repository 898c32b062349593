/** The composer: the textbox, the mode of the next reply, and the two buttons that begin and end one. */
import type { Mode } from '../client/index.ts'
import { element } from './dom.ts'

export interface ComposerActions {
  send(): void
  stop(): void
  /** The reader wants to change the last message. */
  editLast(): void
}

export interface ComposerState {
  /** Something is on its way, and the words stay in the box until it has arrived. */
  readonly sending: boolean
  /** A message can be sent. */
  readonly idle: boolean
  /** There is a reply to stop. */
  readonly stoppable: boolean
}

export interface Composer {
  text(): string
  setText(text: string): void
  focus(): void
  /** Undefined when the reader has chosen none: then it is the session's. */
  mode(): Mode | undefined
  /** What the session on the screen has; another session, another choice. */
  showMode(mode: Mode | undefined): void
  forgetMode(): void
  show(state: ComposerState): void
}

const modes: Readonly<Record<string, Mode>> = {
  fast: 'fast',
  balanced: 'balanced',
  quality: 'quality',
  adaptive: 'adaptive',
}

export function createComposer(actions: ComposerActions): Composer {
  const form = element('composer', HTMLFormElement)
  const box = element('message', HTMLTextAreaElement)
  const select = element('mode', HTMLSelectElement)
  const sendButton = element('send', HTMLButtonElement)
  const stopButton = element('stop', HTMLButtonElement)
  let chosen: Mode | undefined

  form.addEventListener('submit', (event) => {
    event.preventDefault()
    actions.send()
  })
  stopButton.addEventListener('click', actions.stop)
  select.addEventListener('change', () => {
    chosen = modes[select.value]
  })
  box.addEventListener('keydown', (event) => {
    // 229 is the key code of a key that an input method took. Safari ends the composition before this event, so that
    // the Enter which only accepts a word says isComposing false.
    if (event.isComposing || event.keyCode === 229) return
    if (event.key === 'Enter' && !event.shiftKey) {
      event.preventDefault()
      actions.send()
    } else if (event.key === 'Escape' && !stopButton.disabled) actions.stop()
    else if (event.key === 'ArrowUp' && box.value === '') {
      event.preventDefault()
      actions.editLast()
    }
  })

  return {
    text: () => box.value,
    setText(text) {
      box.value = text
    },
    focus: () => box.focus({ preventScroll: true }),
    mode: () => chosen,
    showMode(mode) {
      if (chosen === undefined) select.value = mode ?? 'balanced'
    },
    forgetMode() {
      chosen = undefined
    },
    show({ sending, idle, stoppable }) {
      const active = document.activeElement
      // Read-only, not cleared: the words leave the textbox when the gateway has them.
      box.readOnly = sending
      stopButton.disabled = !stoppable
      sendButton.disabled = sending || !idle
      form.classList.toggle('streaming', !idle && !sending)
      // A button that gets disabled takes the keyboard's place in the page with it.
      if (active instanceof HTMLButtonElement && active.disabled) box.focus({ preventScroll: true })
    },
  }
}
