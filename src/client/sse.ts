/**
 * The event stream format of the HTML standard (9.2.6), for text that is cut anywhere: in a line, in a CRLF, in a block.
 * Comments are passed over, and a block without its blank line says nothing. Refuses an event that has no end.
 */
import { ConnectionError } from './errors.ts'

export interface SseEvent {
  readonly name: string
  readonly data: string
  /** The last id that the stream has given; '' before the first. */
  readonly id: string
}

export interface SseParser {
  /**
   * @returns the events that this piece completes
   * @throws ConnectionError
   */
  push(text: string): readonly SseEvent[]
}

export function createSseParser(eventCharsMax: number, onRetry: (ms: number) => void = () => undefined): SseParser {
  /** The beginning of a line whose end has not come. Only what is new is looked through for it. */
  let rest = ''
  let afterCr = false
  let name = ''
  let data: string[] = []
  let dataChars = 0
  let id = ''

  function takeLine(line: string): void {
    const colon = line.indexOf(':')
    const field = colon < 0 ? line : line.slice(0, colon)
    const value = colon < 0 ? '' : line.slice(line[colon + 1] === ' ' ? colon + 2 : colon + 1)
    if (field === 'event') name = value
    else if (field === 'data') {
      data.push(value)
      dataChars += value.length + 1 // its line end: lines without data are not endless either
    } else if (field === 'id' && !value.includes('\0')) id = value
    else if (field === 'retry' && /^\d+$/.test(value)) onRetry(Number(value))
  }

  function endBlock(events: SseEvent[]): void {
    if (data.length > 0) events.push({ name: name || 'message', data: data.join('\n'), id })
    name = ''
    data = []
    dataChars = 0
  }

  return {
    push(text) {
      const events: SseEvent[] = []
      if (text === '') return events
      let start = afterCr && text[0] === '\n' ? 1 : 0
      afterCr = text.endsWith('\r')
      const lineEnd = /\r\n?|\n/g
      lineEnd.lastIndex = start
      for (const match of text.matchAll(lineEnd)) {
        const line = rest + text.slice(start, match.index)
        if (line === '') endBlock(events)
        else takeLine(line)
        rest = ''
        start = match.index + match[0].length
      }
      rest += text.slice(start)
      if (rest.length + dataChars > eventCharsMax) throw new ConnectionError('An event without end.')
      return events
    },
  }
}
