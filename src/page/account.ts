/**
 * Signing in and out. A token is tried before it is kept, and what is wrong with it is said in the dialog, where another
 * one can be pasted. What a visitor had is not taken along silently: who signs in on a shared machine would take what
 * somebody else has written.
 *
 * At each await the dialog is open and its button is off; when the gateway does not answer, that is said and nothing has
 * changed. Whoever closes the dialog meanwhile has not signed in.
 */
import { type Client, createClient, GatewayError } from '../client/index.ts'
import { element, setText } from './dom.ts'
import { findFault, type Identity } from './identity.ts'
import { explain, type Notices } from './notices.ts'
import { keyOf } from './storage.ts'

export interface AccountOptions {
  readonly client: Client
  readonly identity: Identity
  readonly notices: Notices
  /** How many chats the list shows now. */
  readonly chats: () => number
  /** Who this is has changed, or what is theirs. @param same the same person has another token */
  readonly onChange: (same: boolean) => void
}

export interface Account {
  /** Opens the dialog. @param problem why it has to be opened */
  ask(problem?: string): void
}

export function createAccount({ client, identity, notices, chats, onChange }: AccountOptions): Account {
  const who = element('who', HTMLElement)
  const signInButton = element('sign-in', HTMLButtonElement)
  const signOutButton = element('sign-out', HTMLButtonElement)
  const dialog = element('sign-in-dialog', HTMLDialogElement)
  const form = element('sign-in-form', HTMLFormElement)
  const box = element('token', HTMLInputElement)
  const keep = element('keep', HTMLInputElement)
  const problem = element('sign-in-problem', HTMLElement)
  const submit = element('sign-in-submit', HTMLButtonElement)
  const claimDialog = element('claim-dialog', HTMLDialogElement)
  const claimWords = element('claim-words', HTMLElement)
  const claimProblem = element('claim-problem', HTMLElement)
  const claimYes = element('claim-yes', HTMLButtonElement)
  /** Ends the trial of a token that is under way. */
  let trying = new AbortController()
  /** Who this was when it was last shown. */
  let known: { readonly token: string | undefined; readonly name: string | undefined }

  signInButton.addEventListener('click', () => ask())
  element('sign-in-cancel', HTMLButtonElement).addEventListener('click', () => dialog.close())
  element('claim-no', HTMLButtonElement).addEventListener('click', () => claimDialog.close())
  claimYes.addEventListener('click', () => void claim())
  // Who closes it wants no answer any more, and a token does not stay in a box that nobody sees.
  dialog.addEventListener('close', () => {
    trying.abort()
    box.value = ''
  })
  form.addEventListener('submit', (event) => {
    event.preventDefault()
    void signIn()
  })
  signOutButton.addEventListener('click', () => {
    identity.signOut()
    show()
    notices.say('Signed out. The token is gone from this browser.')
    onChange(false)
  })
  // In another tab, where the token is kept for the device. This tab may have one of its own.
  window.addEventListener('storage', ({ key }) => {
    if ((key !== null && key !== keyOf('token')) || identity.token() === known.token) return
    const before = known.name
    show()
    onChange(before === known.name)
  })
  show()

  function ask(text = ''): void {
    setText(problem, text)
    if (!dialog.open) dialog.showModal()
    box.focus()
  }

  async function signIn(): Promise<void> {
    const token = box.value.trim()
    const fault = findFault(token)
    if (fault !== undefined) return ask(fault)
    const visitorChats = identity.token() === undefined ? chats() : 0
    submit.disabled = true
    setText(problem, '')
    trying = new AbortController()
    const { signal } = trying
    // The dialog tells of its end a moment after it is closed.
    const left = () => signal.aborted || !dialog.open
    try {
      await createClient({ token }).sessions.list({ limit: 1 }, { signal })
    } catch (error) {
      return left() ? undefined : ask(explainToken(error))
    } finally {
      submit.disabled = false
    }
    if (left()) return
    const before = identity.name()
    identity.signIn(token, keep.checked)
    dialog.close()
    show()
    onChange(before === known.name)
    if (visitorChats > 0) offerClaim(visitorChats)
  }

  function offerClaim(count: number): void {
    const what = count === 1 ? 'a chat' : 'chats'
    setText(
      claimWords,
      `Before you signed in, ${what} began in this browser. They can move to you; otherwise they stay where they are.`,
    )
    setText(claimProblem, '')
    claimDialog.showModal()
  }

  async function claim(): Promise<void> {
    claimYes.disabled = true
    try {
      const { claimed } = await client.sessions.claim()
      claimDialog.close()
      notices.say(claimed === 1 ? 'One chat is yours now.' : `${claimed} chats are yours now.`)
      onChange(false)
    } catch (error) {
      setText(claimProblem, `Nothing was moved: ${explain(error)}`)
    } finally {
      claimYes.disabled = false
    }
  }

  function show(): void {
    const name = identity.name()
    known = { token: identity.token(), name }
    setText(who, name ?? 'Visitor')
    who.title = name ?? 'Known to the gateway by a cookie of this browser'
    signInButton.hidden = name !== undefined
    signOutButton.hidden = name === undefined
  }

  return { ask }
}

function explainToken(error: unknown): string {
  if (error instanceof GatewayError && error.status === 401) {
    return 'The gateway does not accept this token. It may be of another project, revoked, or signed with a key that the gateway does not know.'
  }
  return `The token could not be tried: ${explain(error)}`
}
