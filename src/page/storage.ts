/**
 * What the browser keeps for the page: settings, and the token of who has signed in. A browser may refuse to keep anything
 * (blocked cookies, private windows): then a setting lasts as long as the page.
 */

export interface Store {
  get(name: string): string | undefined
  set(name: string, value: string | undefined): void
}

/** As the browser has it, for whoever listens to its changes. */
export const keyOf = (name: string): string => `verbatim.${name}`

/** @param where `device` lasts, `tab` ends with the tab */
export function createStore(where: 'device' | 'tab'): Store {
  const held = new Map<string, string>()
  const kept = () => (where === 'device' ? localStorage : sessionStorage)

  return {
    get(name) {
      try {
        return kept().getItem(keyOf(name)) ?? undefined
      } catch {
        return held.get(name) // storage is refused
      }
    },
    set(name, value) {
      if (value === undefined) held.delete(name)
      else held.set(name, value)
      try {
        if (value === undefined) kept().removeItem(keyOf(name))
        else kept().setItem(keyOf(name), value)
      } catch {
        // Refused, or full: it lasts as long as the page.
      }
    },
  }
}
