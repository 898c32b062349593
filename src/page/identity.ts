/**
 * Who the page asks as: a token that somebody pasted, or nobody's, and then the gateway knows a visitor by a cookie that
 * no script can read. A token is kept for the tab, or for the device when the reader says so, and nowhere else.
 */
import type { Store } from './storage.ts'

export interface Identity {
  token(): string | undefined
  signIn(token: string, keep: boolean): void
  signOut(): void
  /** As far as the token itself says; it is the gateway that decides. */
  name(): string | undefined
}

export function createIdentity(device: Store, tab: Store): Identity {
  const token = () => tab.get('token') ?? device.get('token')
  return {
    token,
    signIn(fresh, keep) {
      const [here, there] = keep ? [device, tab] : [tab, device]
      here.set('token', fresh)
      there.set('token', undefined)
    },
    signOut() {
      tab.set('token', undefined)
      device.set('token', undefined)
    },
    name() {
      const held = token()
      if (held === undefined) return undefined
      const { email, name, sub } = readClaims(held)
      return [name, email, sub].find((claim): claim is string => typeof claim === 'string') ?? 'Holder of a key'
    },
  }
}

/** @returns why a token cannot be good, as far as anybody can see who has no key to verify it */
export function findFault(token: string): string | undefined {
  if (token === '') return 'There is no token in the box.'
  if (/\s/.test(token)) return 'A token has no spaces or line breaks: it was probably cut or joined when it was copied.'
  if (token.split('.').length !== 3) return undefined
  const { exp, sub } = readClaims(token)
  if (typeof exp === 'number' && exp * 1000 < Date.now()) {
    return `This token expired on ${new Date(exp * 1000).toLocaleString()}.`
  }
  if (exp === undefined && sub === undefined) return 'This looks like a JWT and cannot be read as one.'
  return undefined
}

function readClaims(token: string): Readonly<Record<string, unknown>> {
  try {
    const base64 = (token.split('.')[1] ?? '').replaceAll('-', '+').replaceAll('_', '/')
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))
    const claims: unknown = JSON.parse(new TextDecoder().decode(bytes))
    return typeof claims === 'object' && claims !== null ? (claims as Record<string, unknown>) : {}
  } catch {
    return {} // a key of the gateway, or no token at all: it says nothing that can be read here
  }
}
