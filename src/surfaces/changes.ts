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
import { emptyList, itemAt, type List, put, toArray } from './list.ts'

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

export interface ToldPart {
  readonly part: Part
  readonly phase: Phase
}

type Phase = 'open' | 'called' | 'closed'

/**
 * What a viewer has been told. One event makes of it another one that shares nearly all with it, so that every viewer, and
 * everything that is encoded, can keep the one it is about.
 */
export interface Told {
  readonly parts: List<ToldPart>
  /** The words that are being said; -1 when there are none. */
  readonly words: number
  /** The last part that is no source and no file; -1 when there is none. */
  readonly lastSaid: number
  /** Of all parts: UTF-16 units of text, and steps from open to closed. */
  readonly units: number
  readonly steps: number
  /** The last `reset` that was told. */
  readonly since: RunEvent | undefined
}

export const nothingTold: Told = {
  parts: emptyList,
  words: -1,
  lastSaid: -1,
  units: 0,
  steps: 0,
  since: undefined,
}

/** How far a part has come. A call that broke off is closed without having been called. */
const stepOf: Readonly<Record<Phase, number>> = { open: 0, called: 1, closed: 2 }

/**
 * Whether the event tells two viewers of one run the same; whoever finds that goes on with one value for both. Costs the
 * same however much they have been told, but at a `reset`.
 *
 * Since the same `reset`, or the beginning, an event of the log comes behind the same events for everybody: one who holds as
 * many parts and units, as far, holds the same ones. Part and text of which the event says more are looked at all the same,
 * because they decide whether it can be said at all. A `reset` is compared with every word; so is, once, what viewers hold
 * who were told different ones, and go on with one value then.
 */
export function isToldAlike(a: Told, b: Told, event: RunEvent): boolean {
  if (a === b) return true
  if (a.parts.size !== b.parts.size || a.words !== b.words || a.units !== b.units || a.steps !== b.steps) return false
  if (event.type === 'reset' || a.since !== b.since) {
    const others = toArray(b.parts)
    return toArray(a.parts).every(
      (held, index) => isHeldAlike(held, others[index]) && held.part.text === others[index]?.part.text,
    )
  }
  if (event.type !== 'delta' && event.type !== 'tool') return true
  const { part } = event.data
  return isHeldAlike(itemAt(a.parts, part), itemAt(b.parts, part))
}

const isHeldAlike = (a: ToldPart | undefined, b: ToldPart | undefined): boolean =>
  a === b || (a?.phase === b?.phase && a?.part.kind === b?.part.kind && a?.part.text.length === b?.part.text.length)

/**
 * @param told before the event
 * @returns what the event changes, in order, and what is told then; `lost` when it cannot be said by adding
 */
export function tellChanges(told: Told, event: RunEvent): { readonly told: Told; readonly changes: Change[] } | 'lost' {
  const teller = createTeller(told)
  return teller.tell(event) ? { told: teller.toTold(), changes: teller.changes } : 'lost'
}

function createTeller(told: Told) {
  let { parts, words, lastSaid, units, steps, since } = told
  const changes: Change[] = []

  function set(index: number, part: Part, phase: Phase): void {
    const before = itemAt(parts, index)
    units += part.text.length - (before?.part.text.length ?? 0)
    steps += stepOf[phase] - stepOf[before?.phase ?? 'open']
    parts = put(parts, index, { part, phase })
  }

  function close(index: number, { part }: ToldPart): void {
    set(index, part, 'closed')
    changes.push({ kind: 'closed', index, part })
  }

  /** What was being said ends where something else begins. Calls go on beside one another. */
  function closeWords(): void {
    const held = itemAt(parts, words)
    if (held !== undefined) close(words, held)
    words = -1
  }

  function open(index: number, whole: Part): boolean {
    if (index !== parts.size) return index < parts.size
    const { text: _text, input: _input, output: _output, error: _error, ...rest } = whole
    const part: Part = { ...rest, text: '' }
    const isReference = part.kind === 'source' || part.kind === 'file'
    if (!isReference) {
      closeWords()
      lastSaid = index
      if (part.kind !== 'tool_call') words = index
    }
    set(index, part, isReference ? 'closed' : 'open')
    changes.push({ kind: 'opened', index, part })
    return true
  }

  function grow(index: number, offset: number, text: string): boolean {
    if (index === 0 && parts.size === 0) open(0, { kind: 'text', text: '' })
    const held = itemAt(parts, index)
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
    const held = itemAt(parts, index)
    if (held === undefined || held.part.kind !== 'tool_call') return false
    if (held.phase === 'closed') return true
    let called = held.part
    if (held.phase === 'open') {
      if (input !== undefined) called = { ...called, input }
      set(index, called, 'called')
      changes.push({ kind: 'called', index, part: called })
    }
    if (output === undefined && error === undefined) return true
    const part = { ...called, ...(error === undefined ? { output } : { error }) }
    set(index, part, 'closed')
    changes.push({ kind: 'answered', index, part })
    return true
  }

  /** What is missing to a message as it is by now. */
  function reach(target: readonly Part[]): boolean {
    if (target.length < parts.size) return false
    return target.every((part, index) => {
      const before = itemAt(parts, index)?.part
      if (before !== undefined && (before.kind !== part.kind || !part.text.startsWith(before.text))) return false
      if (before === undefined) open(index, part)
      if (!grow(index, 0, part.text)) return false
      const isCalled = part.input !== undefined || part.output !== undefined || part.error !== undefined
      return part.kind !== 'tool_call' || !isCalled || answer(index, part)
    })
  }

  function end(done: Done): void {
    for (const [index, held] of toArray(parts).entries()) if (held.phase === 'open') close(index, held)
    words = -1
    changes.push({ kind: 'ended', done })
  }

  return {
    changes,
    toTold: (): Told => ({ parts, words, lastSaid, units, steps, since }),
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
          since = event
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
