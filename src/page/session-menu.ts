/** What can be done with a session of the list, in a menu beside its name: one menu for all of them. */
import { create, element } from './dom.ts'

export interface MenuItem {
  readonly name: string
  readonly icon: string
  readonly run: () => void
}

const gapPx = 4

export interface SessionMenu {
  /** @param button beside which it opens, and which gets the focus back */
  open(button: HTMLButtonElement, items: readonly MenuItem[]): void
}

export function createSessionMenu(): SessionMenu {
  const menu = element('session-menu', HTMLElement)
  let opener: HTMLButtonElement | undefined

  menu.addEventListener('keydown', (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key]
    if (step === undefined) return
    event.preventDefault()
    const items = [...menu.querySelectorAll('button')]
    const at = items.indexOf(document.activeElement as HTMLButtonElement)
    items.at((at + step) % items.length)?.focus()
  })
  menu.addEventListener('toggle', (event) => {
    const isOpen = (event as ToggleEvent).newState === 'open'
    opener?.setAttribute('aria-expanded', `${isOpen}`)
    if (isOpen) menu.querySelector('button')?.focus()
  })

  return {
    open(button, items) {
      opener = button
      menu.replaceChildren(
        ...items.map(({ name, icon, run }) => {
          const item = create('button', { class: `item ${icon}`, text: name })
          item.type = 'button'
          item.setAttribute('role', 'menuitem')
          item.addEventListener('click', () => {
            menu.hidePopover()
            run()
          })
          return item
        }),
      )
      menu.showPopover()
      const { bottom, top, right } = button.getBoundingClientRect()
      const below = bottom + gapPx + menu.offsetHeight <= innerHeight
      menu.style.top = `${below ? bottom + gapPx : Math.max(gapPx, top - gapPx - menu.offsetHeight)}px`
      menu.style.left = `${Math.max(gapPx, right - menu.offsetWidth)}px`
    },
  }
}
