/**
 * What running replies are doing right now, laid over the rows of the database, which are told of it only at the end. The
 * process that makes a run knows it; others read what that process writes to Redis each second. Without Redis only the
 * runs of this process are laid over, and nothing else is different.
 *
 * It decides nothing: whether a session runs, and where it stands in a list, is as Postgres says. Live state counts only
 * when it is of the row's own active run, and not older than the row. So what a dead process left behind means nothing, and
 * goes by itself a day after it was written last.
 */
import type { RedisStore } from '../db/redis.ts'
import { type CountCacheRead, createCopyKeys, liveSeconds, throwFirst } from './copies.ts'
import { addDecimals } from './decimal.ts'
import type { Session } from './model.ts'

/** One run of this process. */
export interface LiveRun {
  readonly runId: string
  readonly sessionId: string
  readonly phase: string
  readonly roundNumber?: number | undefined
  /** Of this run so far. */
  readonly outputTokens?: number | undefined
  /** Of this run so far, decimal. */
  readonly costUsd?: string | undefined
  /** Milliseconds since 1970. */
  readonly lastActivityAt: number
}

export interface LiveStateOptions {
  readonly store: RedisStore | undefined
  readonly readLive: () => readonly LiveRun[]
  readonly count: CountCacheRead
}

export type LiveState = ReturnType<typeof createLiveState>

type Live = Omit<LiveRun, 'sessionId'> & { readonly writtenAt: number }

const writeMs = 1000

export function createLiveState({ store, readLive, count }: LiveStateOptions) {
  const keys = createCopyKeys(store?.prefix ?? '')
  const clock = store === undefined ? undefined : setInterval(() => write(store), writeMs).unref()

  function write(store: RedisStore): void {
    const runs = readLive()
    if (runs.length === 0) return
    const writtenAt = Date.now()
    // Nobody waits for it: it settles by itself, and throws nothing.
    void store.ask(async (redis) => {
      const pipeline = redis.pipeline()
      for (const { sessionId, ...run } of runs) {
        pipeline.set(keys.live(sessionId), JSON.stringify({ ...run, writtenAt } satisfies Live), 'EX', liveSeconds)
      }
      throwFirst(await pipeline.exec())
    })
  }

  async function readElsewhere(sessions: readonly Session[], store: RedisStore): Promise<ReadonlyMap<string, Live>> {
    const values = await store.ask((redis) => redis.mget(sessions.map(({ id }) => keys.live(id))))
    const found = new Map<string, Live>()
    for (const [index, session] of sessions.entries()) {
      const live = values === undefined ? undefined : parse(values[index])
      const isNew = live !== undefined && isOf(live, session)
      count('sessions', values === undefined ? 'error' : live === undefined ? 'miss' : isNew ? 'hit' : 'stale')
      if (isNew) found.set(session.id, live)
    }
    return found
  }

  return {
    /** The same sessions in the same order, the running ones as they are now. Never throws. */
    async overlay(sessions: readonly Session[]): Promise<Session[]> {
      const running = sessions.filter((session) => session.active_run_id !== null)
      if (running.length === 0) return [...sessions]
      const writtenAt = Date.now()
      const own = new Map(readLive().map((run) => [run.runId, { ...run, writtenAt }]))
      const others = running.filter(({ active_run_id }) => !own.has(active_run_id ?? ''))
      const elsewhere = store === undefined || others.length === 0 ? undefined : await readElsewhere(others, store)
      return sessions.map((session) => {
        const live = own.get(session.active_run_id ?? '') ?? elsewhere?.get(session.id)
        return live === undefined ? session : lay(live, session)
      })
    },

    close: () => clearInterval(clock),
  }
}

function parse(value: string | null | undefined): Live | undefined {
  if (value == null) return undefined
  try {
    return JSON.parse(value)
  } catch {
    return undefined // Somebody else's value under our key.
  }
}

const isOf = ({ runId, writtenAt }: Live, session: Session): boolean =>
  runId === session.active_run_id && toIso(writtenAt) > session.updated_at

function lay(live: Live, session: Session): Session {
  const lastActivityAt = toIso(live.lastActivityAt)
  return {
    ...session,
    phase: live.phase,
    round_number: live.roundNumber ?? session.round_number,
    total_tokens: session.total_tokens + (live.outputTokens ?? 0),
    total_cost_usd:
      live.costUsd === undefined ? session.total_cost_usd : addDecimals(session.total_cost_usd, live.costUsd),
    last_activity_at: lastActivityAt > session.last_activity_at ? lastActivityAt : session.last_activity_at,
  }
}

/** With the microseconds that all times of the API have. */
const toIso = (ms: number): string => new Date(ms).toISOString().replace('Z', '000Z')
