/** Light, dark, or as the system has it: one button that goes round. first-paint.ts reads the choice before this does. */
import { element, nameButton } from './dom.ts'
import type { Store } from './storage.ts'

type Theme = 'system' | 'light' | 'dark'

const next: Readonly<Record<Theme, Theme>> = { system: 'light', light: 'dark', dark: 'system' }

export function startTheme(store: Store): void {
  const button = element('theme', HTMLButtonElement)
  const stored = store.get('theme')
  let theme: Theme = stored === 'light' || stored === 'dark' ? stored : 'system'

  button.addEventListener('click', () => {
    theme = next[theme]
    store.set('theme', theme === 'system' ? undefined : theme)
    show()
  })
  show()

  function show(): void {
    if (theme === 'system') delete document.documentElement.dataset.theme
    else document.documentElement.dataset.theme = theme
    button.dataset.theme = theme
    nameButton(button, `Theme: ${theme}`)
  }
}
