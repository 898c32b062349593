/**
 * The fold: events of a run -> the parts that a viewer holds. Nothing is changed in place: what was read before stays what
 * it was, and a part that changes is another object.
 *
 * `offset` counts the UTF-16 units before a delta. One that begins within what is held is cut to what is new, and one that
 * brings nothing new is dropped; one that begins beyond it tells of a gap, and so does a part that does not follow on the
 * last one. So texts of deltas that come out of here can simply be joined.
 */
import type { EventData, Part } from './types.ts'

export type RunData = {
  readonly [Name in keyof EventData]: { readonly type: Name; readonly data: EventData[Name] }
}[keyof EventData]

export interface Folded {
  readonly parts: readonly Part[]
  /** What of the event is new. */
  readonly event: RunData | undefined
}

/** @returns undefined when something before the event was missed */
export function fold(parts: readonly Part[], event: RunData): Folded | undefined {
  switch (event.type) {
    case 'part':
    case 'source': {
      const { part, ...opened } = event.data
      if (part > parts.length) return undefined
      if (part < parts.length) return { parts, event: undefined }
      return { parts: [...parts, { kind: 'source', text: '', ...opened }], event }
    }
    case 'delta': {
      const { part, offset, text } = event.data
      // Part 0 needs nobody to open it when it is text.
      const held = parts[part] ?? (part === 0 ? { kind: 'text' as const, text: '' } : undefined)
      if (held === undefined || offset > held.text.length) return undefined
      const known = held.text.length - offset
      if (known >= text.length && parts[part] !== undefined) return { parts, event: undefined }
      const fresh = text.slice(known)
      const data = known === 0 ? event.data : { part, offset: held.text.length, text: fresh }
      return { parts: put(parts, part, { ...held, text: held.text + fresh }), event: { type: 'delta', data } }
    }
    case 'tool': {
      const { part, ...call } = event.data
      if (part > parts.length) return undefined
      return { parts: put(parts, part, { ...(parts[part] ?? { kind: 'tool_call', text: '' }), ...call }), event }
    }
    case 'reset':
      return { parts: event.data.parts, event }
    default:
      return { parts, event }
  }
}

/** The text parts, joined: what a message's `content` holds. */
export function textOf(parts: readonly Part[]): string {
  return parts.reduce((text, part) => (part.kind === 'text' ? text + part.text : text), '')
}

function put(parts: readonly Part[], index: number, part: Part): readonly Part[] {
  const copy = [...parts]
  copy[index] = part
  return copy
}
