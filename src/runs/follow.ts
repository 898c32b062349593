/**
 * Following a run: one cursor, whatever the events come from, on whatever process. A viewer asks, in this order:
 * the log (this process's memory for its own runs, else the copy that the shared reader keeps), and when the log cannot
 * tell (it was never shared, is lost, has a hole, or its store is away), the database: checkpoints while the run is
 * active, the stored message for ever after. It goes back to the log as soon as that can tell again. The viewer cannot see
 * the difference, except that the database is coarser.
 *
 * A log of another process can also go silent without saying why: its writer cannot reach the store, or the notice of
 * the end was lost. So a viewer of another process's run that has heard nothing for `quietMs` asks the database too.
 *
 * Most of a viewer's life is at the end of a log, waiting for the next frame. There, it is given what the log has gained
 * within the append itself, without a promise or a look of its own (`take`), for as long as nothing else is due: the end of the
 * run, a look at the database, a viewer that is full. Then it looks on from where that has led.
 *
 * What a viewer is told, from whichever of the two, is decided in tell.ts. When neither answers, a follower waits and asks
 * again; its connection's own limits end it.
 */
import type { EventId, LogEntry, Part } from '../log/event.ts'
import type { EventLog } from '../log/log.ts'
import { isTerminal, type RunFacts } from './model.ts'
import type { StoredReader } from './stored.ts'
import { firstEntry, isAtEnd, mergeDeltas, pageEntriesMax, shorten, tellFromDatabase, tellFromLog } from './tell.ts'
import type { Ticked, Ticks } from './ticks.ts'

export interface FollowDeps {
  readonly log: EventLog
  readonly stored: StoredReader
  /** True when the run's reply is whole and has waited too long for the database: its viewers are to come back later. */
  readonly isPersistPending: (runId: string) => boolean
  /** When a viewer looks whether anything is due; several times within `pollMs`. */
  readonly ticks: Ticks
  /** How often the database is asked what is new, where there is no log. */
  readonly pollMs?: number
  /** Silence of another process's log after which the database is asked. */
  readonly quietMs?: number
  /** How long a cursor ahead of all that is known may turn out to be right. */
  readonly aheadMs?: number
}

/** What a viewer gets in one go. */
export interface Batch {
  readonly entries: readonly LogEntry[]
  /** There is nothing more for now. */
  readonly caughtUp: boolean
  /** The reply is made, and cannot be stored for now: nothing more will come soon. */
  readonly persistPending?: boolean
}

/** Events that are passed on within one append; more are a page of their own. */
const passedEntriesMax = 20
const pollDefaultMs = 1000
const quietDefaultMs = 1000
// Checkpoints are about a second behind what viewers have seen.
const aheadDefaultMs = 3000
/** Of `FollowDeps.ticks`: a viewer notices that a poll is due within a part of its interval. */
export const tickMs = pollDefaultMs / 4

/** The place of the terminal event, when the run has one. */
export function terminalIdOf({ log }: Pick<FollowDeps, 'log'>, run: RunFacts): EventId | undefined {
  if (isTerminal(run.status)) return { generation: run.generation, seq: run.last_seq }
  return log.terminalId(run.id)
}

/** Whoever is shown a run. */
export interface Follows {
  /**
   * What comes next, in order.
   * @returns what to wait for before there is more; undefined when there may be more at once. What it throws, or rejects
   * with, ends the following
   */
  give(batch: Batch): Promise<void> | undefined
  /**
   * The same within an append to the log, while nothing else is due.
   * @returns how many of the events it has taken; it is given the others
   */
  take(entries: readonly LogEntry[]): number
  /** Nothing more comes: the run has been told to its end, it is gone, or there was a fault. Must not throw. */
  told(fault: Fault | undefined): void
}

/** What somebody has thrown. */
export interface Fault {
  readonly error: unknown
}

/**
 * Follows a run from a cursor until it has been told to its end, or until it is stopped. Between two looks nothing waits: no
 * promise, no frame of a function. What is left then is this object, in the lists of who is woken and who looks at the
 * clock. There are thousands of them, so their methods are shared.
 */
export class Follower implements Ticked {
  readonly #deps: FollowDeps
  readonly #run: RunFacts
  readonly #follows: Follows
  readonly #unwatch: () => void
  /** The last event that was given; undefined before the first. */
  #cursor: EventId | undefined
  /** What the viewer holds, when that is known: only from the database, or at the very beginning. */
  #held: readonly Part[] | undefined
  // Whole, and small to begin with: any other number would be one on the heap for each viewer.
  #askAt = 0
  #newsAt = wholeNow()
  /** At the end of a log, with nothing else to do: written here, or copied from another process. */
  #waitsFor: 'own' | 'copy' | undefined
  #fault: Fault | undefined
  /** Something may have come since it began to look. */
  #isRung = false
  #isLooking = false
  #isOver = false

  /** @param after undefined follows from the beginning */
  constructor(deps: FollowDeps, run: RunFacts, after: EventId | undefined, follows: Follows) {
    this.#deps = deps
    this.#run = run
    this.#follows = follows
    this.#cursor = after
    this.#held = after === undefined ? [] : undefined
    this.#unwatch = deps.log.watch(run.id, () => this.#wake())
    deps.ticks.add(this)
    this.#ring()
  }

  /** Nothing is given any more, and `told` is not called. More than one call does no harm. */
  stop(): void {
    if (this.#isOver) return
    this.#isOver = true
    this.#deps.ticks.remove(this)
    this.#unwatch()
  }

  tick(): void {
    const { isPersistPending, quietMs = quietDefaultMs } = this.#deps
    const isWaiting =
      this.#waitsFor === 'own' ? !isPersistPending(this.#run.id) : performance.now() - this.#newsAt < quietMs
    if (this.#waitsFor === undefined || !isWaiting) this.#ring()
  }

  #wake(): void {
    if (this.#passOn()) return
    this.#waitsFor = undefined
    this.#ring()
  }

  #ring(): void {
    this.#isRung = true
    if (this.#isLooking) return
    this.#isLooking = true
    void this.#lookOn()
  }

  /** Gives what the log has gained. @returns false when it has to look */
  #passOn(): boolean {
    const peeked =
      this.#waitsFor === undefined ? undefined : this.#deps.log.peek(this.#run.id, this.#cursor, passedEntriesMax)
    if (peeked?.kind !== 'entries' || peeked.entries.length === passedEntriesMax) return false
    const { page, isLast } = shorten(peeked)
    if (page.kind !== 'entries' || !isLast || page.entries.at(-1)?.event.type === 'done') return false
    const entries = mergeDeltas(page.entries)
    try {
      const taken = entries.length === 0 ? 0 : this.#follows.take(entries)
      const last = entries[taken - 1]
      if (last !== undefined) this.#moveTo(last)
      return taken === entries.length
    } catch (error) {
      // Of whoever is shown the run, and told of it in its turn: whoever appends to the log has nothing to do with it.
      this.#fault = { error }
      return false
    }
  }

  #moveTo({ generation, seq }: EventId): void {
    // Not the event itself: what was joined for a viewer would stay with it.
    this.#cursor = { generation, seq }
    this.#held = undefined
    this.#newsAt = wholeNow()
  }

  async #lookOn(): Promise<void> {
    try {
      // Whoever has rung goes on first: it may be in the middle of an append.
      await undefined
      while (this.#isRung && !this.#isOver) {
        // Before looking, so that an event between the look and the wait is not missed.
        this.#isRung = false
        this.#waitsFor = undefined
        if (this.#fault !== undefined) throw this.#fault.error
        if (await this.#look()) this.#end(undefined)
      }
    } catch (error) {
      this.#end({ error })
    }
    this.#isLooking = false
  }

  #end(fault: Fault | undefined): void {
    if (this.#isOver) return
    this.stop()
    this.#follows.told(fault)
  }

  /** @returns whether that was all */
  async #look(): Promise<boolean> {
    const { log, stored, pollMs = pollDefaultMs, quietMs = quietDefaultMs, aheadMs = aheadDefaultMs } = this.#deps
    const run = this.#run
    const { page, isLast } = shorten(await log.read(run.id, this.#cursor, pageEntriesMax))
    const told = await tellFromLog(log, run, this.#cursor, page)
    if (this.#isOver) return false
    if (told !== undefined && told.length > 0) {
      const last = told.at(-1) as LogEntry
      this.#moveTo(last)
      await this.#follows.give({ entries: told, caughtUp: isLast })
      this.#isRung = true
      return last.event.type === 'done'
    }
    const isLocal = page.kind !== 'unknown' && page.local
    if (told !== undefined && isAtEnd(log, run, this.#cursor)) return true
    if (told !== undefined) {
      const persistPending = isLocal && this.#deps.isPersistPending(run.id)
      await this.#follows.give({ entries: [], caughtUp: true, persistPending })
    }
    if (this.#cursor === undefined && !this.#isOver) {
      this.#cursor = { generation: 1, seq: 1 }
      await this.#follows.give({ entries: [firstEntry(run)], caughtUp: false })
    }
    if (this.#cursor === undefined || this.#isOver) return false
    const now = wholeNow()
    const isQuiet = told === undefined || (!isLocal && now - this.#newsAt >= quietMs)
    if (isQuiet && now >= this.#askAt) {
      this.#askAt = now + pollMs
      const state = await stored.read(run.id)
      if (this.#isOver) return false
      if (state === 'gone') return true
      if (state !== 'unanswered') {
        const isPatient = told !== undefined || now - this.#newsAt < aheadMs
        const step = tellFromDatabase(run, state, { cursor: this.#cursor, held: this.#held }, isPatient)
        this.#cursor = step.viewer.cursor
        this.#held = step.viewer.held
        if (step.entries.length > 0) this.#newsAt = now
        await this.#follows.give({ entries: step.entries, caughtUp: true })
        if (state.done !== undefined) return true
      }
    }
    if (!isQuiet && !isTerminal(run.status)) this.#waitsFor = isLocal ? 'own' : 'copy'
    return false
  }
}

const takeNone = () => 0

/**
 * The same, for who wants to iterate: the run's events after the cursor, until its terminal event or until the signal is
 * aborted. It goes on from a batch when the next is asked for.
 * @param take is given events too, while the iteration waits for the next; returns how many of them it has taken. The others
 * are yielded
 */
export async function* followRun(
  deps: FollowDeps,
  run: RunFacts,
  after: EventId | undefined,
  signal: AbortSignal,
  take: (entries: readonly LogEntry[]) => number = takeNone,
): AsyncGenerator<Batch, void, void> {
  if (signal.aborted) return
  let next = Promise.withResolvers<Batch | undefined>()
  let asked = Promise.withResolvers<void>()
  const follower = new Follower(deps, run, after, {
    give(batch) {
      next.resolve(batch)
      return asked.promise
    },
    take,
    told(fault) {
      if (fault === undefined) next.resolve(undefined)
      else next.reject(fault.error)
    },
  })
  const stop = () => {
    follower.stop()
    next.resolve(undefined)
  }
  signal.addEventListener('abort', stop)
  try {
    for (let batch = await next.promise; batch !== undefined; batch = await next.promise) {
      next = Promise.withResolvers()
      if (signal.aborted) next.resolve(undefined)
      yield batch
      const { resolve } = asked
      asked = Promise.withResolvers()
      resolve()
    }
  } finally {
    signal.removeEventListener('abort', stop)
    follower.stop()
  }
}

/** Whole: see `Follower`. */
const wholeNow = (): number => Math.floor(performance.now())
