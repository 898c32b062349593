/**
 * What the page has to say beside the transcript: one alert above the composer, one line of status in it, and notices that
 * go by themselves, some with a button. A notice stays while the pointer or the focus is on it.
 */
import { ConnectionError, GatewayError } from '../client/index.ts'
import { create, element, iconButton, setText, textButton } from './dom.ts'

/** Time to read two lines and reach for the button. */
const noticeMs = 8000
const noticesMax = 3

export interface Notices {
  /** '' takes it away. */
  alert(text: string): void
  status(text: string): void
  /** A notice, perhaps with something to do about it. */
  say(text: string, action?: { readonly name: string; readonly run: () => void }): void
}

export function createNotices(): Notices {
  const alertLine = element('alert', HTMLElement)
  const statusLine = element('status', HTMLElement)
  const toasts = element('toasts', HTMLElement)

  return {
    alert: (text) => setText(alertLine, text),
    status: (text) => setText(statusLine, text),
    say(text, action) {
      const toast = create('div', { class: 'toast' }, create('span', { text }))
      let timer = 0
      const remove = () => toast.remove()
      const wait = () => {
        clearTimeout(timer)
        timer = setTimeout(remove, noticeMs)
      }
      if (action !== undefined) {
        const button = textButton(action.name, 'quiet', () => {
          remove()
          action.run()
        })
        toast.append(button)
      }
      toast.append(iconButton('close', 'Dismiss', remove))
      for (const event of ['pointerenter', 'focusin']) toast.addEventListener(event, () => clearTimeout(timer))
      for (const event of ['pointerleave', 'focusout']) toast.addEventListener(event, wait)
      toasts.append(toast)
      while (toasts.childElementCount > noticesMax) toasts.firstElementChild?.remove()
      wait()
    },
  }
}

/** @returns what went wrong, in words that can stand behind a colon */
export function explain(error: unknown): string {
  if (error instanceof ConnectionError) return 'the gateway cannot be reached.'
  if (!(error instanceof GatewayError)) return error instanceof Error ? error.message : String(error)
  if (error.code === 'session_busy') return 'a reply is running in this chat.'
  const advice = error.retryAfterMs > 0 ? `Try again in ${Math.ceil(error.retryAfterMs / 1000)} s.` : error.message
  return error.title === '' ? advice : `${error.title}. ${advice}`
}
