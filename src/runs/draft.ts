/**
 * The reply as it grows: a pure fold from what the upstream says to the message's parts, and to the events that tell
 * viewers of it. It keeps the events that nobody has taken yet, with adjacent text merged into one delta, so that a
 * frame costs one event however many tokens came in.
 *
 * Text and reasoning follow one another; when the kind changes, a new part begins. A tool call is a part of its own,
 * found again by its key while its arguments stream, and closed with a `tool` event when the reply ends.
 */
import { cleanJson } from '../http/text.ts'
import { contentOf, type Part, type RunEvent, type Usage } from '../log/event.ts'
import type { UpstreamEvent } from '../upstream/upstream.ts'

type GrowingDelta = { readonly type: 'delta'; readonly data: { part: number; offset: number; text: string } }

export interface Draft {
  apply(event: UpstreamEvent): void
  /** Ends the tool calls whose arguments were still streaming. Nothing may be applied afterwards. */
  close(): void
  /** The events since the last call, in order. */
  takeEvents(): RunEvent[]
  readonly parts: readonly Part[]
  readonly content: string
  readonly isEmpty: boolean
  readonly usage: Usage | undefined
  readonly finishReason: string | undefined
  /** The model's name as the provider gave it. */
  readonly model: string | undefined
}

export function createDraft(): Draft {
  const parts: Part[] = []
  const toolParts = new Map<string, number>()
  let pending: (RunEvent | GrowingDelta)[] = []
  let growing: GrowingDelta | undefined
  // The text or reasoning part that the next piece of its kind joins.
  let current: number | undefined
  let usage: Usage | undefined
  let finishReason: string | undefined
  let model: string | undefined

  function open(part: Part): number {
    const index = parts.push(part) - 1
    growing = undefined
    if (index > 0 || part.kind !== 'text') {
      const { kind, call_id, name } = part
      pending.push({
        type: 'part',
        data: {
          part: index,
          kind,
          ...(call_id === undefined ? {} : { call_id }),
          ...(name === undefined ? {} : { name }),
        },
      })
    }
    return index
  }

  function grow(index: number, text: string): void {
    const part = parts[index] as Part
    if (growing?.data.part === index) {
      growing.data.text += text
    } else {
      growing = { type: 'delta', data: { part: index, offset: part.text.length, text } }
      pending.push(growing)
    }
    part.text += text
  }

  function applyText(kind: 'text' | 'reasoning', text: string): void {
    if (text === '') return
    if (current === undefined || parts[current]?.kind !== kind) current = open({ kind, text: '' })
    grow(current, text)
  }

  function applyToolCall(event: Extract<UpstreamEvent, { type: 'tool_call' }>): void {
    let index = toolParts.get(event.key)
    if (index === undefined) {
      index = open({ kind: 'tool_call', text: '', call_id: event.callId ?? event.key, name: event.name ?? '' })
      toolParts.set(event.key, index)
      current = undefined
    }
    if (event.arguments !== '') grow(index, event.arguments)
  }

  return {
    parts,
    get content() {
      return contentOf(parts)
    },
    get isEmpty() {
      return parts.length === 0
    },
    get usage() {
      return usage
    },
    get finishReason() {
      return finishReason
    },
    get model() {
      return model
    },
    apply(event) {
      switch (event.type) {
        case 'text':
        case 'reasoning':
          applyText(event.type, event.text)
          break
        case 'tool_call':
          applyToolCall(event)
          break
        case 'usage':
          usage = event.usage
          break
        case 'finish':
          finishReason = event.reason
          break
        case 'response':
          model = event.model ?? model
          break
      }
    },
    close() {
      for (const index of toolParts.values()) {
        const part = parts[index] as Part
        // Some providers call a tool without parameters with no text at all; cut off, the same is not a call yet.
        const input = part.text === '' && finishReason !== undefined ? {} : parseInput(part.text)
        if (input !== undefined) part.input = input
        pending.push({
          type: 'tool',
          data: {
            part: index,
            call_id: part.call_id ?? '',
            name: part.name ?? '',
            ...(input === undefined ? {} : { input }),
          },
        })
      }
      toolParts.clear()
    },
    takeEvents() {
      const events = pending
      pending = []
      growing = undefined
      return events
    },
  }
}

/** @returns undefined for arguments that are cut off or not JSON: the raw text is kept, and nothing is made up */
export function parseInput(text: string): unknown {
  try {
    // Escapes such as \u0000 only become characters here.
    return cleanJson(JSON.parse(text))
  } catch {
    return undefined // see above
  }
}
