/** What a sequence of events amounts to: the parts that a viewer holds after them. */
import { type EventId, formatEventId, type LogEntry, type Part } from './event.ts'

export function foldEvents(entries: readonly LogEntry[]): Part[] {
  let parts: Part[] = []
  for (const { event } of entries) {
    if (event.type === 'reset') parts = structuredClone(event.data.parts)
    else if (event.type === 'part') {
      const { part, ...rest } = event.data
      parts[part] = { ...rest, text: '' }
    } else if (event.type === 'delta') {
      const { part: index, text } = event.data
      const part = parts[index] ?? { kind: 'text', text: '' }
      part.text += text
      parts[index] = part
    } else if (event.type === 'tool' && event.data.input !== undefined) {
      const part = parts[event.data.part]
      if (part !== undefined) part.input = event.data.input
    }
  }
  return parts
}

/** One event that replaces all that came up to `cursor`, and stands in that event's place. */
export function resetEntry(messageId: string, parts: readonly Part[], { generation, seq }: EventId): LogEntry {
  const cursor = formatEventId({ generation, seq })
  return { generation, seq, event: { type: 'reset', data: { message_id: messageId, parts: [...parts], cursor } } }
}
