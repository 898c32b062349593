/**
 * The frame clock. A model sends a token at a time, up to hundreds a second for each of hundreds of runs; writing and
 * waking for each would cost more than everything else together. So text is merged: every `frameMs`, what all touched
 * runs have gained since the last frame is appended to the log in one go. The first words of a run do not wait, and
 * neither does text that comes after a pause longer than a frame.
 *
 * The clock owns no text. It asks a run for its new events at the moment it writes them, so a frame is always whole,
 * and a process that dies between two frames loses only what no viewer has seen.
 */
import type { LogEntry } from './event.ts'
import type { EventLog, RunEntries } from './log.ts'

/** A run that has something new to say. */
export interface FrameSource {
  readonly runId: string
  /** True until the first words have been taken: they are what a person waits for. */
  readonly urgent: boolean
  /** Numbers and hands over the events since the last call; none when there is nothing new. */
  takeEntries(): readonly LogEntry[]
}

export interface Frames {
  /** Says that `source` has new events, to go out with the next frame. */
  touch(source: FrameSource): void
  /** Writes what `source` has at once. Afterwards the log holds all that the run has said. */
  flush(source: FrameSource): void
  /** Writes what all touched runs have at once. */
  flushAll(): void
  close(): void
}

export function createFrames(log: EventLog, frameMs: number): Frames {
  const touched = new Set<FrameSource>()
  let timer: NodeJS.Timeout | undefined
  let lastFrameAt = Number.NEGATIVE_INFINITY

  function writeFrame(sources: Iterable<FrameSource>): void {
    const frame: RunEntries[] = []
    for (const source of sources) {
      const entries = source.takeEntries()
      if (entries.length > 0) frame.push({ runId: source.runId, entries })
    }
    if (frame.length > 0) log.append(frame)
  }

  function flushAll(): void {
    clearTimeout(timer)
    timer = undefined
    if (touched.size === 0) return
    lastFrameAt = performance.now()
    const sources = [...touched]
    touched.clear()
    writeFrame(sources)
  }

  return {
    touch(source) {
      if (source.urgent) {
        writeFrame([source])
        return
      }
      touched.add(source)
      // A zero timer still lets the other tokens of the same packet join the frame.
      timer ??= setTimeout(flushAll, Math.max(0, lastFrameAt + frameMs - performance.now()))
    },
    flush(source) {
      touched.delete(source)
      writeFrame([source])
    },
    flushAll,
    close: flushAll,
  }
}
