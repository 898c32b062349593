/**
 * What the browser keeps for the page: settings, and the token of who has signed in. A browser may refuse to keep anything
 * (blocked cookies, private windows, no room): then a setting lasts as long as the page.
 */

export interface Store {
  get(name: string): string | undefined
  set(name: string, value: string | undefined): void
}

/** As the browser has it, for whoever listens to its changes. */
export const keyOf = (name: string): string => `verbatim.${name}`

/** @param where `device` lasts, `tab` ends with the tab */
export function createStore(where: 'device' | 'tab'): Store {
  /** What the browser did not take. It counts for more than an older value that is still kept. */
  const held = new Map<string, string | undefined>()
  const kept = () => (where === 'device' ? localStorage : sessionStorage)

  return {
    get(name) {
      if (held.has(name)) return held.get(name)
      try {
        return kept().getItem(keyOf(name)) ?? undefined
      } catch {
        return undefined // refused: then nothing was ever kept
      }
    },
    set(name, value) {
      try {
        if (value === undefined) kept().removeItem(keyOf(name))
        else kept().setItem(keyOf(name), value)
        held.delete(name)
      } catch {
        held.set(name, value) // refused, or full
      }
    },
  }
}
