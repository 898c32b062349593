/**
 * Where log lines go when it is not certain that anybody reads them. A pipe takes 64 KiB; after that the process would
 * wait with every line, or keep all of them. Here they are kept up to `keptBytesMax`, and dropped beyond; as soon as the
 * reader has caught up, a line says how many. A reader that has gone for good is no reason to end: from then on there is
 * no log.
 *
 * Owns nothing: the output belongs to the process. Nothing is awaited.
 */
import type { Writable } from 'node:stream'

export interface LogOutput {
  write(line: string): void
}

const keptBytesMax = 1024 * 1024

/** @param output one that does not block when it is full, as standard output is for a pipe or a socket */
export function createLogOutput(output: Pick<Writable, 'on' | 'write' | 'writableLength'>): LogOutput {
  let dropped = 0
  let gone = false

  function tellDropped(): void {
    if (dropped === 0 || gone) return
    const message = 'log lines were dropped, because their reader did not keep up'
    output.write(`${JSON.stringify({ level: 'warn', time: new Date().toISOString(), dropped, message })}\n`)
    dropped = 0
  }

  output.on('drain', tellDropped)
  output.on('error', () => {
    gone = true
  })

  return {
    write(line) {
      if (gone) return
      if (output.writableLength >= keptBytesMax) {
        dropped += 1
        return
      }
      tellDropped()
      output.write(line)
    },
  }
}
