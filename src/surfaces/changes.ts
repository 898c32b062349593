/**
 * What surfaces say that can only add: every one but the native. Their clients hold words and calls, and no event of theirs
 * replaces what was said. So the events of a run are told to them as changes of a message that only grows: a part is opened,
 * grows, and is closed; a call is complete, and is answered. A `reset` becomes what is missing to it; where it takes back
 * something that was told, the viewer is `lost`, and has to come again for the whole.
 *
 * A pure fold: the state is a value, which viewers who have read the same share, and nothing here waits. It is the same
 * whatever pieces the words came in: joined deltas, a stored message, or a log with a takeover in it.
 *
 * When a part is closed is not an event of the log. Words belong to one part until a text, reasoning or call is opened behind
 * it (runs/draft.ts); sources and files may come in between.
 */
import type { Done, Part, RunEvent, RunStarted } from '../log/event.ts'

export type Change =
  | { readonly kind: 'started'; readonly run: RunStarted }
  /** `part.text` is empty: what it says comes as growth. Sources and files are complete with it. */
  | { readonly kind: 'opened'; readonly index: number; readonly part: Part }
  /** `offset`: UTF-16 units of the part before it. */
  | {
      readonly kind: 'grown'
      readonly index: number
      readonly part: Part
      readonly offset: number
      readonly text: string
    }
  /** Text or reasoning that is whole, or a call that broke off before its arguments were. */
  | { readonly kind: 'closed'; readonly index: number; readonly part: Part }
  /** A call whose arguments are complete; `part.input` is absent when they are not JSON. */
  | { readonly kind: 'called'; readonly index: number; readonly part: Part }
  /** By the gateway: `part.output` or `part.error`. */
  | { readonly kind: 'answered'; readonly index: number; readonly part: Part }
  /** What is no part of the message. */
  | { readonly kind: 'said'; readonly event: Extract<RunEvent, { type: 'progress' | 'artifact' | 'title' | 'usage' }> }
  /** All open parts are closed before it. */
  | { readonly kind: 'ended'; readonly done: Done }

interface ToldPart {
  readonly part: Part
  readonly phase: 'open' | 'called' | 'closed'
}

/** What a viewer has been told. */
export interface Told {
  readonly parts: readonly ToldPart[]
}

export const nothingTold: Told = { parts: [] }

/** Whether two viewers of one run have been told the same; whoever finds that goes on with one value for both. */
export function isToldAlike(a: Told, b: Told): boolean {
  if (a === b) return true
  if (a.parts.length !== b.parts.length) return false
  return a.parts.every(({ part, phase }, index) => {
    const other = b.parts[index]
    return other?.phase === phase && other.part.text === part.text
  })
}

/**
 * @param told before the event
 * @returns what the event changes, in order, and what is told then; `lost` when it cannot be said by adding
 */
export function tellChanges(told: Told, event: RunEvent): { readonly told: Told; readonly changes: Change[] } | 'lost' {
  const teller = createTeller(told)
  return teller.tell(event) ? { told: { parts: teller.parts }, changes: teller.changes } : 'lost'
}

function createTeller(told: Told) {
  const parts: ToldPart[] = [...told.parts]
  const changes: Change[] = []

  function set(index: number, part: Part, phase: ToldPart['phase']): void {
    parts[index] = { part, phase }
  }

  function close(index: number, { part }: ToldPart): void {
    set(index, part, 'closed')
    changes.push({ kind: 'closed', index, part })
  }

  /** What was being said ends where something else begins. Calls go on beside one another. */
  function closeWords(): void {
    for (const [index, held] of parts.entries()) {
      if (held.phase === 'open' && held.part.kind !== 'tool_call') close(index, held)
    }
  }

  function open(index: number, whole: Part): boolean {
    if (index !== parts.length) return index < parts.length
    const { text: _text, input: _input, output: _output, error: _error, ...rest } = whole
    const part: Part = { ...rest, text: '' }
    const isReference = part.kind === 'source' || part.kind === 'file'
    if (!isReference) closeWords()
    set(index, part, isReference ? 'closed' : 'open')
    changes.push({ kind: 'opened', index, part })
    return true
  }

  function grow(index: number, offset: number, text: string): boolean {
    if (index === 0 && parts.length === 0) open(0, { kind: 'text', text: '' })
    const held = parts[index]
    if (held === undefined || offset > held.part.text.length) return false
    const more = text.slice(held.part.text.length - offset)
    if (more === '') return true
    const isOpen = held.phase === 'open'
    // An agent can go on with the arguments of a call that it has answered: they are stored, and nobody needs them.
    if (!isOpen && held.part.kind !== 'tool_call') return false
    const part = { ...held.part, text: held.part.text + more }
    set(index, part, held.phase)
    if (!isOpen) return true
    changes.push({ kind: 'grown', index, part, offset: held.part.text.length, text: more })
    return true
  }

  function answer(index: number, { input, output, error }: Pick<Part, 'input' | 'output' | 'error'>): boolean {
    const held = parts[index]
    if (held === undefined || held.part.kind !== 'tool_call') return false
    if (held.phase === 'closed') return true
    if (held.phase === 'open') {
      const part = input === undefined ? held.part : { ...held.part, input }
      set(index, part, 'called')
      changes.push({ kind: 'called', index, part })
    }
    if (output === undefined && error === undefined) return true
    const part = { ...(parts[index] as ToldPart).part, ...(error === undefined ? { output } : { error }) }
    set(index, part, 'closed')
    changes.push({ kind: 'answered', index, part })
    return true
  }

  /** What is missing to a message as it is by now. */
  function reach(target: readonly Part[]): boolean {
    if (target.length < parts.length) return false
    return target.every((part, index) => {
      const before = parts[index]?.part
      if (before !== undefined && (before.kind !== part.kind || !part.text.startsWith(before.text))) return false
      if (before === undefined) open(index, part)
      if (!grow(index, 0, part.text)) return false
      const isCalled = part.input !== undefined || part.output !== undefined || part.error !== undefined
      return part.kind !== 'tool_call' || !isCalled || answer(index, part)
    })
  }

  function end(done: Done): void {
    for (const [index, held] of parts.entries()) if (held.phase === 'open') close(index, held)
    changes.push({ kind: 'ended', done })
  }

  return {
    parts,
    changes,
    /** @returns false when it cannot be said by adding */
    tell(event: RunEvent): boolean {
      switch (event.type) {
        case 'run':
          changes.push({ kind: 'started', run: event.data })
          return true
        case 'part': {
          const { part, ...opened } = event.data
          return open(part, { ...opened, text: '' })
        }
        case 'source': {
          const { part, ...named } = event.data
          return open(part, { kind: 'source', text: '', ...named })
        }
        case 'delta':
          return grow(event.data.part, event.data.offset, event.data.text)
        case 'tool':
          return answer(event.data.part, event.data)
        case 'reset':
          return reach(event.data.parts)
        case 'done':
          end(event.data)
          return true
        default:
          changes.push({ kind: 'said', event })
          return true
      }
    },
  }
}
