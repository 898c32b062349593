/** Keys that work anywhere in the page, and the dialog that lists them. None of them is a letter alone. */
import { create, element } from './dom.ts'

export interface Shortcut {
  /** As `KeyboardEvent.key`, in lower case; undefined for one that another part of the page listens to. */
  readonly key?: string
  readonly shift?: boolean
  /** As it is written in the list; ⌃ stands for Ctrl, or for ⌘ on a Mac. */
  readonly keys: string
  readonly what: string
  readonly run?: () => void
}

export function startShortcuts(shortcuts: readonly Shortcut[]): void {
  const button = element('keys', HTMLButtonElement)
  const dialog = element('keys-dialog', HTMLDialogElement)
  const list = element('key-list', HTMLElement)
  const isMac = /Mac|iPhone|iPad/.test(navigator.userAgent)
  const all: readonly Shortcut[] = [
    ...shortcuts,
    { key: '/', keys: '⌃ /', what: 'Show this list', run: () => dialog.showModal() },
  ]

  for (const { keys, what } of all) {
    const names = keys.split(' ').map((key) => create('kbd', { text: key === '⌃' ? (isMac ? '⌘' : 'Ctrl') : key }))
    list.append(create('div', {}, create('dt', {}, ...names), create('dd', { text: what })))
  }
  button.addEventListener('click', () => dialog.showModal())
  element('keys-close', HTMLButtonElement).addEventListener('click', () => dialog.close())

  document.addEventListener('keydown', (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.altKey || document.querySelector('dialog[open]') !== null) return
    const pressed = event.key.toLowerCase()
    const found = all.find(({ key, shift = false }) => key === pressed && (shift === event.shiftKey || key === '/'))
    if (found?.run === undefined) return
    event.preventDefault()
    found.run()
  })
}
