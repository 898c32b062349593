/**
 * Showing a run to one viewer: a cursor (follow.ts), a surface's encoder and a connection, until the run's terminal event or
 * the end of the connection, whichever comes first. Every surface shows runs this way and no other; what makes them
 * different is the encoder.
 *
 * The body ends cleanly only behind the terminal event. A viewer whose surface cannot express what comes next (it has no
 * word for "forget what I said") is cut, so that it comes back and gets the whole.
 *
 * The only await is for the connection to take more: when it goes meanwhile, the viewer ends and the run does not. When the log
 * or the database goes, the follower waits and asks again. When this process is to end, viewers of other processes' runs are
 * told to go there.
 *
 * Whoever opened the connection is done with it when the showing has begun. So the request, its handler and all that those
 * hold can go, and a viewer that waits is what is said here and in follow.ts: two objects, and nothing that is awaited.
 */
import type { ServerResponse } from 'node:http'
import type { FastifyBaseLogger } from 'fastify'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import type { SseConnection, SseSource } from '../http/sse.ts'
import { beforeAll, compareEventIds, type EventId, type LogEntry } from '../log/event.ts'
import type { EventLog } from '../log/log.ts'
import { type Batch, type Fault, type FollowDeps, Follower, type Follows, followRun, terminalIdOf } from './follow.ts'
import { isTerminal, type RunFacts } from './model.ts'
import type { OwnedRuns } from './owned.ts'
import type { RunStore } from './store.ts'

/** One viewer's way from events to bytes; it is given every event once, in order. */
export interface ViewerEncoder {
  /** @returns `lost` when the surface cannot say it: what the viewer holds cannot be taken back. Undefined: nothing to say. */
  encode(entry: LogEntry): Buffer | 'lost' | undefined
  /** Said once when the replay has caught up with the run as it is made. */
  readonly ready?: Buffer
}

export interface ShowOptions {
  readonly follow: FollowDeps
  readonly owned: OwnedRuns
  readonly logger: FastifyBaseLogger
}

export type ShowRun = ReturnType<typeof createShow>

export function createShow(options: ShowOptions) {
  const shown = new Set<Shown>()
  const own: Own = { ...options, shown }
  // Other processes' runs go on elsewhere, and so should their viewers; this process's own are seen to their end.
  options.owned.draining.addEventListener('abort', () => {
    for (const viewer of [...shown]) viewer.moveOn()
  })

  /**
   * Returns at once: from here on, the connection and the run have what keeps the viewer.
   * @param after undefined shows the run from its beginning
   */
  return function show(
    connection: SseConnection,
    run: RunFacts,
    after: EventId | undefined,
    encoder: ViewerEncoder,
  ): void {
    const viewer = new Shown(own, connection, run, encoder)
    if (options.owned.isDraining) viewer.moveOn()
    connection.feedFrom(viewer)
    if (!connection.isOver) viewer.start(after)
  }
}

/** What all that are shown have in common. */
interface Own extends ShowOptions {
  readonly shown: Set<Shown>
}

/**
 * What a viewer keeps of a run that was read for it. The row has twice as much, and what the reply is made from, which may be
 * long: that counts only when a run is to end because it was left.
 */
const toShown = (run: RunFacts): RunFacts => ({
  id: run.id,
  session_id: run.session_id,
  user_message_id: run.user_message_id,
  message_id: run.message_id,
  status: run.status,
  mode: run.mode,
  provider: run.provider,
  model: run.model,
  generation: run.generation,
  last_seq: run.last_seq,
  instance_id: run.instance_id,
  on_disconnect: run.on_disconnect,
  request: run.on_disconnect === 'stop' ? run.request : null,
  created_at: run.created_at,
})

/** A viewer that is shown a run. There are thousands of them, so their methods are shared. */
class Shown implements Follows, SseSource {
  readonly #own: Own
  readonly #connection: SseConnection
  readonly #run: RunFacts
  readonly #encoder: ViewerEncoder
  #follower: Follower | undefined
  /** Until it resolves, the connection takes nothing more. */
  #full: Promise<void> | undefined
  /** It has been told that it has caught up. */
  #isReady = false
  /** The surface has no word for what comes next. */
  #isLost = false
  #hasEnd = false

  constructor(own: Own, connection: SseConnection, run: RunFacts, encoder: ViewerEncoder) {
    this.#own = own
    this.#connection = connection
    this.#run = own.owned.factsOf(run) ?? toShown(run)
    this.#encoder = encoder
    own.owned.viewerComes(this.#run)
    own.shown.add(this)
  }

  start(after: EventId | undefined): void {
    this.#follower = new Follower(this.#own.follow, this.#run, after, this)
  }

  moveOn(): void {
    if (!this.#own.owned.has(this.#run.id)) this.#connection.sayFarewell()
  }

  async give({ entries, caughtUp, persistPending }: Batch): Promise<void> {
    for (const entry of entries) {
      if (this.#full !== undefined) await this.#untilDrained()
      if (!this.#isLost) this.#put(entry)
      if (this.#isLost) return this.#connection.destroy()
      this.#hasEnd ||= entry.event.type === 'done'
    }
    if (this.#full !== undefined) await this.#untilDrained()
    const { ready } = this.#encoder
    if (caughtUp && ready !== undefined && !this.#isReady && !this.#hasEnd) {
      this.#isReady = true
      this.#full = this.#connection.write(ready)
    }
    if (persistPending === true) this.#connection.sayFarewell('persist_pending')
  }

  take(entries: readonly LogEntry[]): number {
    let taken = 0
    for (const entry of entries) {
      if (this.#full !== undefined || this.#isLost) break
      this.#put(entry)
      if (!this.#isLost) taken += 1
    }
    return taken
  }

  told(fault: Fault | undefined): void {
    if (fault !== undefined) {
      this.#own.logger.error(
        { err: fault.error, run_id: this.#run.id },
        'a viewer was cut after a fault of the gateway',
      )
    }
    if (this.#hasEnd) this.#connection.end()
    else this.#connection.destroy()
  }

  stop(): void {
    this.#follower?.stop()
    this.#own.shown.delete(this)
    this.#own.owned.viewerLeaves(this.#run, this.#connection.clientLeft)
  }

  #put(entry: LogEntry): void {
    const bytes = this.#encoder.encode(entry)
    if (bytes === 'lost') this.#isLost = true
    else if (bytes !== undefined) this.#full = this.#connection.write(bytes)
  }

  async #untilDrained(): Promise<void> {
    await this.#full
    this.#full = undefined
  }
}

/**
 * For who comes to a run that is there, before anything else is looked up for it: one that is to be stopped a while after its
 * last viewer has left is not stopped any more because of who left before. The process that makes it does not see who comes
 * elsewhere: that is said in the run's row, where it looks before it stops.
 * @throws Problem `db_unavailable`
 */
export function createKeep({ runs, owned }: { readonly runs: RunStore; readonly owned: OwnedRuns }) {
  return async function keep(owner: Owner, run: RunFacts): Promise<void> {
    const mayEnd = run.on_disconnect === 'stop' && run.request?.linger_ms !== undefined && !isTerminal(run.status)
    if (!mayEnd) return
    owned.keep(run.id)
    if (!owned.has(run.id)) await runs.keep(owner, run.id)
  }
}

export type KeepRun = ReturnType<typeof createKeep>

const takeAll = (entries: readonly LogEntry[]): number => entries.length

/**
 * For whoever wants nothing but the whole reply: waits until the run has ended, or the client has left.
 * @returns whether the client is still there
 * @throws Problem `persist_pending` when the reply is made and cannot be stored for now
 */
export async function untilEnded(
  { follow, owned }: Pick<ShowOptions, 'follow' | 'owned'>,
  run: RunFacts,
  response: ServerResponse,
): Promise<boolean> {
  const gone = new AbortController()
  const leave = owned.countViewer(run)
  const onClose = () => gone.abort()
  response.on('close', onClose)
  if (response.destroyed) onClose()
  try {
    for await (const { persistPending } of followRun(follow, run, undefined, gone.signal, takeAll)) {
      if (persistPending === true) throw new Problem('persist_pending', undefined, { retryAfterSeconds: 2 })
    }
  } finally {
    response.off('close', onClose)
    leave(gone.signal.aborted)
  }
  return !gone.signal.aborted
}

/**
 * What has to be read before a viewer can be shown its run. It is counted meanwhile, so one that is told an error instead
 * has been there, and left: a run that goes on for its viewers only must not go on for nobody.
 */
export async function readForViewer<T>(
  { owned }: Pick<ShowOptions, 'owned'>,
  run: RunFacts,
  read: () => Promise<T>,
): Promise<T> {
  const leave = owned.countViewer(run)
  let isRead = false
  try {
    const said = await read()
    isRead = true
    return said
  } finally {
    leave(!isRead)
  }
}

/** Where a cursor stands to the terminal event: 0 at it, 1 behind it; undefined before it, or while there is none. */
export function pastEnd(deps: Pick<FollowDeps, 'log'>, run: RunFacts, after: EventId | undefined): 0 | 1 | undefined {
  const terminal = terminalIdOf(deps, run)
  if (after === undefined || terminal?.generation !== after.generation) return undefined
  const order = compareEventIds(after, terminal)
  return order < 0 ? undefined : order === 0 ? 0 : 1
}

/**
 * The events of a run up to a cursor, for an encoder that has to know what its viewer holds before it goes on from there.
 * @returns undefined when the log does not hold them all, or does not have that event
 */
export async function readUpTo(
  log: EventLog,
  run: RunFacts,
  cursor: EventId,
): Promise<readonly LogEntry[] | undefined> {
  const page = await log.read(run.id, beforeAll, Number.MAX_SAFE_INTEGER)
  const known = page.kind === 'entries' ? page.entries : await log.load(run.id)
  if (known === 'unanswered') return undefined
  const end = known.findIndex((entry) => compareEventIds(entry, cursor) === 0)
  const first = known[0]?.event.type
  return end === -1 || (first !== 'run' && first !== 'reset') ? undefined : known.slice(0, end + 1)
}
