/**
 * The native SSE surface: how a run's events look on the wire (docs/protocol.md). An encoder is a pure function; its
 * result is kept with the event, so that a frame is encoded once however many viewers it goes to.
 */
import { formatEventId, type LogEntry } from '../log/event.ts'

export interface NativeEncoder {
  encode(entry: LogEntry): Buffer
}

export function createNativeEncoder(): NativeEncoder {
  const encoded = new WeakMap<LogEntry, Buffer>()
  return {
    encode(entry) {
      const known = encoded.get(entry)
      if (known !== undefined) return known
      const bytes = Buffer.from(encodeEntry(entry))
      encoded.set(entry, bytes)
      return bytes
    },
  }
}

/**
 * One block. The id is its last line, because some clients take an id over as soon as they have read its line, and a cut
 * behind it would lose the event. JSON never holds a line break, so the data is one line.
 */
export function encodeEntry(entry: LogEntry): string {
  const { type, data } = entry.event
  return `event: ${type}\ndata: ${JSON.stringify(data)}\nid: ${formatEventId(entry)}\n\n`
}

/** Replay has caught up with live. Not an event of the log, so it has no id. */
export const readyBlock: Buffer = Buffer.from('event: ready\ndata: {}\n\n')
