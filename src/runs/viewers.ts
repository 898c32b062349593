/**
 * How many watch each run that this process shows. A run whose request said so is stopped when nobody watches it any
 * more, at once or after a while. Who comes meanwhile, to any process, keeps it, from the moment when it is known which
 * run is meant; who leaves then has the whole while again.
 *
 * There are two awaits: for the while to pass, and for the database to say whether somebody has come elsewhere. Whoever
 * comes here meanwhile calls it all off, and so does a shutdown, which gives runs a time of its own. When the database
 * does not answer, the run goes on. If this process dies, nobody stops the run for having been left.
 */
import type { RunFacts } from './model.ts'
import { pause, type RunDeps } from './run.ts'

export interface ViewersOptions {
  /** Told of a run that is to end because nobody watches it. */
  readonly abandon: (facts: RunFacts) => void
  /** Whether somebody came to the run on another process. */
  readonly isKept: (facts: RunFacts) => Promise<boolean>
  readonly draining: AbortSignal
  readonly onFault: RunDeps['onFault']
}

export function createViewers({ abandon, isKept, draining, onFault }: ViewersOptions) {
  const counts = new Map<string, number>()
  /** Left by their last viewer, and to be stopped when the time is up; aborted when somebody comes. */
  const lingering = new Map<string, AbortController>()

  /** For who has come and is counted only later: what would stop the run, because it was left, is called off. */
  function keep(runId: string): void {
    lingering.get(runId)?.abort()
    lingering.delete(runId)
  }

  draining.addEventListener('abort', () => {
    for (const runId of lingering.keys()) keep(runId)
  })

  async function linger(facts: RunFacts, lingerMs: number): Promise<void> {
    if (draining.aborted) return
    const left = new AbortController()
    lingering.set(facts.id, left)
    await pause(lingerMs, left.signal)
    if (left.signal.aborted) return
    try {
      if (!(await isKept(facts)) && !left.signal.aborted) abandon(facts)
    } catch (error) {
      onFault(facts.id, 'whether somebody else watches a run could not be read; it goes on', error)
    }
    if (!left.signal.aborted) lingering.delete(facts.id)
  }

  function come({ id }: RunFacts): void {
    keep(id)
    counts.set(id, (counts.get(id) ?? 0) + 1)
  }

  function leave(facts: RunFacts, clientLeft: boolean): void {
    const left = (counts.get(facts.id) ?? 1) - 1
    if (left > 0) {
      counts.set(facts.id, left)
      return
    }
    counts.delete(facts.id)
    if (!clientLeft || facts.on_disconnect !== 'stop') return
    const lingerMs = facts.request?.linger_ms ?? 0
    if (lingerMs === 0) abandon(facts)
    else void linger(facts, lingerMs)
  }

  return {
    keep,

    /** A viewer of the run has come: it is counted until it leaves. */
    come,

    /** @param clientLeft whether the client itself has: the last one that does ends a run that asked for it */
    leave,

    /** Whether a viewer of the run is counted at this moment. */
    has: (runId: string) => counts.has(runId),

    /** Counts a viewer of the run until the returned function is called, with whether the client itself left. */
    count(facts: RunFacts): (clientLeft: boolean) => void {
      come(facts)
      return (clientLeft) => leave(facts, clientLeft)
    },
  }
}
