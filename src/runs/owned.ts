/**
 * The runs that this process makes. Nobody else holds on to them: the request that started one becomes a viewer like
 * any other, and its end is awaited here. This is also where the checkpoint clock ticks, and where a shutdown waits.
 *
 * When a reply has ended behind which messages are queued, the next one is started here; also when somebody has queued
 * one, and when it is found by the clock of the reaper. If the database does not answer then, that clock finds it later.
 *
 * Draining: no new message is taken, and none from a queue. Those that are being accepted at that moment may already be
 * stored, so they are waited for and their runs are made like the others, which get `drainMs` to end by themselves. What
 * is left then is handed over: the upstream is let go, the last words go to the log and into a checkpoint, and the runs
 * are released, so that another process takes them over at once. With no other process there, they are ended here as
 * `interrupted` with all their text, which is committed like any other end. What the database does not take by then is
 * left to the next process, with its text in checkpoints and in the log.
 *
 * A run whose request said so is stopped when nobody watches it any more (viewers.ts).
 *
 * Where nobody shares the log, the checkpoints are the only trace outside this process, so the first words of a run do
 * not wait for the checkpoint clock: a run without a checkpoint is then one of which nothing was shown. Nor do the last
 * words when the log stops being shared: they may have reached nobody.
 *
 * A commit does not wait for a checkpoint that is being written, and neither sees the other's rows. What such a checkpoint
 * leaves of a run that has ended is deleted as soon as both are through; if this process dies before, the sweep of the
 * reaper finds it.
 */
import type { FastifyBaseLogger } from 'fastify'
import { Problem } from '../errors.ts'
import type { EventId, Part } from '../log/event.ts'
import type { History } from '../sessions/context.ts'
import { type CheckpointPlaces, clearCheckpoints, isStored, writeCheckpoints } from './checkpoint.ts'
import type { RunFacts } from './model.ts'
import { promote, stopQueued } from './queue.ts'
import { type ActiveRun, announceRun, createActiveRun, generate, pause, type RunDeps, settledWithin } from './run.ts'
import { isKept } from './store.ts'
import { createViewers } from './viewers.ts'

export interface OwnedRunsOptions extends Omit<RunDeps, 'closing' | 'onFault' | 'onFirstWords'> {
  readonly instanceId: string
  readonly checkpointMs: number
  /** How long viewers wait for a commit before they are told to come back later. */
  readonly persistWaitMs?: number | undefined
  /** Told of a run whose reply is stored. */
  readonly afterRun?: ((run: ActiveRun) => void) | undefined
  readonly logger: FastifyBaseLogger
}

/** A run as it goes on, for whoever shows sessions at work. */
export interface LiveRun {
  readonly runId: string
  readonly sessionId: string
  readonly phase: string
  readonly roundNumber?: number | undefined
  /** So far, of calls that have ended. */
  readonly costUsd?: string | undefined
  /** So far, when the provider says so before the end. */
  readonly outputTokens?: number
  /** When it last said something, or began: milliseconds since 1970. */
  readonly lastActivityAt: number
}

function toLive({ runId, facts, phase, round, draft, ledger, lastActivityAt }: ActiveRun): LiveRun {
  const spent = ledger.totals()
  const outputTokens = draft.usage?.output_tokens
  const counted = outputTokens === undefined ? {} : { outputTokens }
  return {
    runId,
    sessionId: facts.session_id,
    phase,
    roundNumber: round,
    ...(spent.usage === undefined ? {} : { costUsd: spent.costUsd }),
    ...counted,
    lastActivityAt,
  }
}

export type OwnedRuns = ReturnType<typeof createOwnedRuns>

/** The ids are those of the run, and what else it has counts when it has ended. */
const isSameToViewer = (one: RunFacts, other: RunFacts): boolean =>
  one.status === other.status &&
  one.generation === other.generation &&
  one.on_disconnect === other.on_disconnect &&
  one.model === other.model

// After the drain time, what the last commits may take.
const commitGraceMs = 3000
const persistWaitDefaultMs = 30_000
/** Time between two checkpoints when the last one failed. */
const behindMs = 250

/** Makes runs of this process claimable by others, and tells those. */
export type HandOver = (runIds: readonly string[]) => Promise<void>

export function createOwnedRuns(options: OwnedRunsOptions) {
  const { db, log, frames, logger, instanceId, checkpointMs, changes, persistWaitMs = persistWaitDefaultMs } = options
  const active = new Map<string, { readonly run: ActiveRun; readonly ended: Promise<void> }>()
  // Let go by their upstream, and not yet by this process: their last words are still to be checkpointed.
  const released = new Map<string, ActiveRun>()
  const places: CheckpointPlaces = new Map()
  const arrivals = new Set<Promise<unknown>>()
  const closing = new AbortController()
  const draining = new AbortController()
  // The last checkpoints were not written: the next ones do not wait as long.
  let behind = false
  let outOfTime: 'drain' | 'release' | undefined
  let checkpoint: { readonly now: Promise<void>; next?: Promise<void> } | undefined
  let isWriting = false
  let writtenAt = Number.NEGATIVE_INFINITY
  // Ended while a checkpoint was being written, which may have left rows of theirs.
  const overtaken = new Set<string>()
  let clearing: Promise<void> | undefined

  const deps: RunDeps = {
    ...options,
    closing: closing.signal,
    onFirstWords: () => {
      if (!log.shared) void checkpointNow()
    },
    onFault: (runId, message, error) => logger.error({ run_id: runId, err: error }, message),
  }

  async function make(run: ActiveRun): Promise<void> {
    let nextMayWait = false
    try {
      const ended = await generate(run, deps)
      const ending = ended?.ending
      nextMayWait = ended?.nextMayWait === true
      if (ending === undefined && run.stopReason === 'release') released.set(run.runId, run)
      if (ending !== undefined) {
        clearBehind(run)
        options.afterRun?.(run)
      }
      logger.info(
        {
          run_id: run.runId,
          session_id: run.facts.session_id,
          status: ending?.status ?? 'let go',
          code: ending?.error?.code,
          provider: run.facts.provider,
          model: run.facts.model,
          ttft_ms: ending?.ttftMs,
          latency_ms: ending?.latencyMs,
          output_tokens: ending?.usage?.output_tokens,
          cost_usd: ending?.costUsd,
          usage_source: ending?.usageSource,
          events: run.cursor.seq,
        },
        'run ended',
      )
    } catch (error) {
      log.forget(run.runId)
      deps.onFault(run.runId, 'a run was let go after a fault of the gateway', error)
    } finally {
      active.delete(run.runId)
      if (!released.has(run.runId)) places.delete(run.runId)
    }
    if (nextMayWait) {
      await startNext(run.facts.session_id).catch((error: unknown) => {
        deps.onFault(run.runId, 'the message behind this one could not be started yet', error)
      })
    }
  }

  function start(facts: RunFacts, history?: History): void {
    const run = createActiveRun(facts, options.createLedger(), history)
    announceRun(run, log)
    places.set(facts.id, [])
    if (outOfTime !== undefined) run.stop(outOfTime)
    // Not made before it is here: its first words are looked for among the active runs.
    active.set(facts.id, { run, ended: Promise.resolve(run).then(make) })
  }

  async function arrive<T>(accept: () => Promise<T>): Promise<T> {
    const arrival = accept()
    arrivals.add(arrival)
    try {
      return await arrival
    } finally {
      arrivals.delete(arrival)
    }
  }

  async function startNext(sessionId?: string): Promise<void> {
    if (draining.signal.aborted) return
    await arrive(async () => {
      for (const facts of await promote(db, instanceId, sessionId)) {
        changes?.changed(facts.session_id)
        // A repeat of its message may have found it before the answer to the promotion was here.
        if (!active.has(facts.id) && log.terminalId(facts.id) === undefined) start(facts)
        if (facts.stop_requested) active.get(facts.id)?.run.stop('stop')
      }
    })
  }

  /** For a run that nobody waits for any more. If it has begun elsewhere, it goes on there. */
  async function leaveQueue(facts: RunFacts): Promise<void> {
    try {
      const { outcome, nextMayWait } = await stopQueued(db, facts)
      if (outcome === 'committed') changes?.changed(facts.session_id)
      if (nextMayWait) await startNext(facts.session_id)
    } catch (error) {
      deps.onFault(facts.id, 'a message could not be taken out of the queue; it will be answered', error)
    }
  }

  const viewers = createViewers({
    abandon(facts) {
      active.get(facts.id)?.run.stop('stop')
      if (facts.status === 'queued' && !active.has(facts.id)) void arrive(() => leaveQueue(facts))
    },
    isKept: (facts) => arrive(() => isKept(db, facts)),
    draining: draining.signal,
    onFault: deps.onFault,
  })

  async function writeCheckpointsNow(): Promise<void> {
    // A checkpoint may hold only what is in the log; so what has gathered since the last frame goes there first.
    frames.flushAll()
    const runs = [...[...active.values()].map(({ run }) => run), ...released.values()]
    const sources = runs.map((run) => ({
      runId: run.runId,
      parts: run.draft.parts,
      cursor: run.cursor,
    }))
    isWriting = true
    try {
      await writeCheckpoints(db, sources, places)
      behind = false
    } catch (error) {
      logger.warn(
        { err: error, runs: sources.length },
        'checkpoints could not be written; the next ones will hold their text',
      )
      behind = true
    }
    isWriting = false
    writtenAt = performance.now()
    clearOvertaken()
  }

  /** @param run committed a moment ago */
  function clearBehind({ runId, commitStartedAt = 0 }: ActiveRun): void {
    if (!isWriting && writtenAt < commitStartedAt) return
    overtaken.add(runId)
    if (!isWriting) clearOvertaken()
  }

  /** Beside the checkpoints, which must not wait for it: where many replies end, somebody always is overtaken. */
  function clearOvertaken(): void {
    if (overtaken.size > 0) clearing ??= clearAll()
  }

  async function clearAll(): Promise<void> {
    while (overtaken.size > 0) {
      const runIds = [...overtaken]
      overtaken.clear()
      await clearCheckpoints(db, runIds).catch((error: unknown) => {
        logger.warn({ err: error, runs: runIds.length }, 'checkpoints of ended runs are left to the next sweep')
      })
    }
    clearing = undefined
  }

  /** One at a time, because two would write the same text; whoever comes meanwhile shares the next one. */
  function checkpointNow(): Promise<void> {
    const current = checkpoint
    if (current === undefined) {
      const now = writeCheckpointsNow().finally(() => {
        checkpoint = undefined
      })
      checkpoint = { now }
      return now
    }
    current.next ??= current.now.then(checkpointNow)
    return current.next
  }

  log.onUnshared(() => {
    if (active.size > 0) void checkpointNow()
  })

  const checkpointClock = (async () => {
    while (!closing.signal.aborted) {
      await pause(behind ? Math.min(behindMs, checkpointMs) : checkpointMs, closing.signal)
      if (active.size > 0 && !closing.signal.aborted) await checkpointNow()
    }
  })()

  /** Waits for what arrives and for what runs; an arrival ends in a run, so it looks until there is neither. */
  async function waitForAll(ms: number): Promise<void> {
    const giveUpAt = performance.now() + ms
    for (;;) {
      const pending = [...arrivals, ...[...active.values()].map(({ ended }) => ended)]
      if (pending.length === 0) return
      if (!(await settledWithin(Promise.allSettled(pending), Math.max(0, giveUpAt - performance.now())))) return
    }
  }

  return {
    get size() {
      return active.size
    },
    get isDraining() {
      return draining.signal.aborted
    },
    /** Aborted when this process begins to drain. */
    draining: draining.signal,
    generations: () =>
      [...active.values()].map(({ run: { facts } }) => ({ id: facts.id, generation: facts.generation })),
    has: (runId: string) => active.has(runId),
    /** What this process itself holds of a run that it makes, when it says the same of it to a viewer. */
    factsOf(run: RunFacts): RunFacts | undefined {
      const facts = active.get(run.id)?.run.facts
      return facts !== undefined && isSameToViewer(facts, run) ? facts : undefined
    },
    /** Ids of this process's runs of a session. */
    ofSession: (sessionId: string) =>
      [...active.values()].filter(({ run }) => run.facts.session_id === sessionId).map(({ run }) => run.runId),

    /** What each run of this process is doing at this moment. */
    live: (): LiveRun[] => [...active.values()].map(({ run }) => toLive(run)),

    /**
     * Takes a run that was accepted for this process, and starts it in the background. Its log exists on return.
     * @param history when what goes upstream is known already
     */
    start,

    /**
     * Starts the next queued message of the session if it answers none, or of all sessions; see queue.ts.
     * @throws Problem `db_unavailable`
     */
    startNext,

    /** Runs what may end in `start`, and lets a shutdown wait for it. */
    arrive,

    /** Resolves when the run has ended and is stored, or is not this process's any more. */
    async ended(runId: string): Promise<void> {
      await active.get(runId)?.ended
    },

    /** Writes what all running replies have said. @returns whether all of this one is stored, whatever became of others */
    async checkpoint({ runId, draft }: ActiveRun): Promise<boolean> {
      await checkpointNow()
      return isStored(draft.parts, places.get(runId))
    },

    /** All that the log holds of a running reply, and the event up to which that is; read together. */
    partial(runId: string): { parts: Part[]; content: string; cursor: EventId } | undefined {
      const run = active.get(runId)?.run
      if (run === undefined) return undefined
      frames.flush(run)
      return { parts: structuredClone([...run.draft.parts]), content: run.draft.content, cursor: run.cursor }
    },

    stop(runId: string): void {
      active.get(runId)?.run.stop('stop')
    },

    /** Another process has taken the run over: nothing of it is made or written here any more. */
    fence(runId: string): void {
      active.get(runId)?.run.stop('fenced')
    },

    /** The reply is whole, and has waited longer for the database than viewers should. */
    isPersistPending(runId: string): boolean {
      const since = active.get(runId)?.run.commitStartedAt
      return since !== undefined && performance.now() - since >= persistWaitMs
    },

    viewerComes: viewers.come,
    viewerLeaves: viewers.leave,
    countViewer: viewers.count,
    isWatched: viewers.has,
    keep: viewers.keep,

    refuseWhenDraining(): void {
      if (draining.signal.aborted) throw new Problem('draining', undefined, { retryAfterSeconds: 1 })
    },

    /** @param findSuccessor asks, when the time is up, whether another process can take over what is left */
    async drain(drainMs: number, findSuccessor: () => Promise<HandOver | undefined>): Promise<void> {
      draining.abort()
      if (active.size > 0) logger.info({ runs: active.size, drain_ms: drainMs }, 'draining')
      await waitForAll(drainMs)
      const handOver = active.size + arrivals.size === 0 ? undefined : await findSuccessor()
      outOfTime = handOver === undefined ? 'drain' : 'release'
      for (const { run } of active.values()) run.stop(outOfTime)
      await waitForAll(commitGraceMs)
      if (active.size + released.size > 0) await checkpointNow()
      if (handOver !== undefined && released.size > 0) {
        await handOver([...released.keys()]).catch((error: unknown) => {
          logger.warn({ err: error, runs: released.size }, 'runs could not be released; they are found by their lease')
        })
      }
      closing.abort()
      await checkpointClock
      // One that was begun by first words, or by a log that is no longer shared, and what it leaves to be cleared.
      await checkpoint?.now
      await clearing
      frames.close()
    },
  }
}
