/**
 * The frame clock. A model sends a token at a time, up to hundreds a second for each of hundreds of runs; writing and
 * waking for each would cost more than everything else together. So text is merged: every `frameMs`, what all touched
 * runs have gained since the last frame is appended to the log in one go. The first words of a run do not wait, and
 * neither does text that comes after a pause longer than a frame.
 *
 * A busy process makes longer frames: what they take decides when the next may come, so that frames have a tenth of
 * the process's time and no more, and tokens find a process that can read them. With hundreds of replies at once a frame is
 * two or three times `frameMs` long, and never longer: a viewer should not see it as a pause. In a process that has little to
 * do nothing of this is noticed.
 *
 * To read a token costs more than to write it, and to read five at once costs little more than one. So whoever reads from a
 * provider may rest (`rest`) until its next frame is due, in a process that has something to do: what comes meanwhile waits in
 * the kernel, where it would else have waited here. What is due is read first, in one turn of the event loop, and then
 * written. Frames of those who rest come every `frameMs`, each with those that are due, and not with all at once: nobody waits
 * for the whole crowd.
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
  /**
   * For whoever has read some of what a source says, and would read on: calls `readOn` when the next frame of its text is due,
   * or now, when the process has little to do. It must not throw.
   */
  rest(readOn: () => void): void
  /** Writes what there is, and lets nobody rest any more. */
  close(): void
}

/** Of the process's time, for writing frames and showing them. */
const shareMax = 0.1
/** Of the process's time, for frames: below it nobody rests. */
const restShareMin = 0.03
/** How many times `frameMs` a frame may become. */
const stretchMax = 3
/** What the last frame counts for in what frames take: one that was held up by something else is soon forgotten. */
const lastWeight = 0.25

/** @param now milliseconds of a clock that never goes back */
export function createFrames(log: EventLog, frameMs: number, now = () => performance.now()): Frames {
  const touched = new Set<FrameSource>()
  /** By the moment when they are due, a multiple of `frameMs`. */
  const resting = new Map<number, (() => void)[]>()
  let restingCount = 0
  // For all that is said in the time of a frame.
  let takesMs = 0
  let timer: NodeJS.Timeout | undefined
  let timerAt = Number.POSITIVE_INFINITY
  // Those who were due read in this turn of the event loop, and a frame ends it.
  let reading: NodeJS.Immediate | undefined
  let lastFrameAt = Number.NEGATIVE_INFINITY
  let closed = false

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
    if (touched.size > 0) {
      lastFrameAt = now()
      const sources = [...touched]
      touched.clear()
      writeFrame(sources)
      const tookMs = (now() - lastFrameAt) * Math.max(1, restingCount / sources.length)
      takesMs += lastWeight * (tookMs - takesMs)
    }
    schedule()
  }

  const everyMs = (): number => Math.min(Math.max(frameMs, takesMs / shareMax), stretchMax * frameMs)

  function schedule(): void {
    if (reading !== undefined) return
    const at = Math.min(touched.size > 0 ? lastFrameAt + everyMs() : Number.POSITIVE_INFINITY, ...resting.keys())
    if (at === Number.POSITIVE_INFINITY || (timer !== undefined && timerAt <= at)) return
    clearTimeout(timer)
    timerAt = at
    // A zero timer still lets the other tokens of the same packet join the frame.
    timer = setTimeout(tick, Math.max(0, at - now()))
  }

  function tick(): void {
    timer = undefined
    const due = takeDue(now())
    if (due.length === 0) {
      flushAll()
      return
    }
    reading = setImmediate(() => {
      reading = undefined
      flushAll()
    })
    for (const readOn of due) readOn()
  }

  function takeDue(until: number): (() => void)[] {
    const moments = [...resting.keys()].filter((at) => at <= until)
    const due = moments.flatMap((at) => resting.get(at) ?? [])
    for (const at of moments) resting.delete(at)
    restingCount -= due.length
    return due
  }

  return {
    touch(source) {
      if (source.urgent) {
        writeFrame([source])
        return
      }
      if (touched.has(source)) return
      touched.add(source)
      if (touched.size === 1) schedule()
    },
    flush(source) {
      touched.delete(source)
      writeFrame([source])
    },
    flushAll,
    rest(readOn) {
      if (closed || takesMs < restShareMin * frameMs) {
        readOn()
        return
      }
      const at = Math.ceil((now() + everyMs()) / frameMs - 0.5) * frameMs
      const due = resting.get(at)
      if (due === undefined) resting.set(at, [readOn])
      else due.push(readOn)
      restingCount += 1
      if (due === undefined) schedule()
    },
    close() {
      closed = true
      for (const readOn of takeDue(Number.POSITIVE_INFINITY)) readOn()
      flushAll()
    },
  }
}
