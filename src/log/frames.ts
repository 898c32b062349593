/**
 * The frame clock. A model sends a token at a time, up to hundreds a second for each of hundreds of runs; writing and
 * waking for each would cost more than everything else together. So text is merged: every `frameMs`, what all touched
 * runs have gained since the last frame is appended to the log in one go. The first words of a run do not wait, and
 * neither does text that comes after a pause longer than a frame.
 *
 * A busy process makes longer frames: what the last ones took decides when the next may come, so that frames have a tenth of
 * the process's time and no more, and tokens find a process that can read them. With hundreds of replies at once a frame is
 * two or three times `frameMs` long, and never longer: a viewer should not see it as a pause. In a process that has little to
 * do nothing of this is noticed.
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

/** Of the process's time, for writing frames and showing them. */
const shareMax = 0.1
/** How many times `frameMs` a frame may become. */
const stretchMax = 3
/** What the last frame counts for in what frames take: one that was held up by something else is soon forgotten. */
const lastWeight = 0.25

/** @param now milliseconds of a clock that never goes back */
export function createFrames(log: EventLog, frameMs: number, now = () => performance.now()): Frames {
  const touched = new Set<FrameSource>()
  let tookMs = 0
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
    lastFrameAt = now()
    const sources = [...touched]
    touched.clear()
    writeFrame(sources)
    tookMs += lastWeight * (now() - lastFrameAt - tookMs)
  }

  const everyMs = (): number => Math.min(Math.max(frameMs, tookMs / shareMax), stretchMax * frameMs)

  return {
    touch(source) {
      if (source.urgent) {
        writeFrame([source])
        return
      }
      touched.add(source)
      // A zero timer still lets the other tokens of the same packet join the frame.
      timer ??= setTimeout(flushAll, Math.max(0, lastFrameAt + everyMs() - now()))
    },
    flush(source) {
      touched.delete(source)
      writeFrame([source])
    },
    flushAll,
    close: flushAll,
  }
}
