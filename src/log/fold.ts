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
    } else if (event.type === 'source') {
      const { part, ...rest } = event.data
      parts[part] = { kind: 'source', text: '', ...rest }
    } else if (event.type === 'tool') {
      const { part: index, input, output, error } = event.data
      const part = parts[index]
      if (part !== undefined && input !== undefined) part.input = input
      if (part !== undefined && output !== undefined) part.output = output
      if (part !== undefined && error !== undefined) part.error = error
    }
  }
  return parts
}

/** One event that replaces all that came up to `cursor`, and stands in that event's place. */
export function resetEntry(messageId: string, parts: readonly Part[], { generation, seq }: EventId): LogEntry {
  const cursor = formatEventId({ generation, seq })
  return { generation, seq, event: { type: 'reset', data: { message_id: messageId, parts: [...parts], cursor } } }
}
