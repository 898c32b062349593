/**
 * Keeps the copies of sessions in Redis in step with what was written: makes new ones of what has changed, and deletes
 * those of what an owner has no more. It works behind the writes: whoever writes says so and waits for nothing.
 *
 * It owns what is still to be done. Changes of a few milliseconds go together, each session once, and wait while Redis is
 * away; above `changedMax` they are dropped, and so is a batch that fails: a history that is old is noticed by its stamp,
 * and the row of a session is only shown from here when the database is away.
 *
 * A deletion is tried until Redis has taken it, and then once more, later than any statement can last: a copy may have been
 * made of a row that was read just before it was deleted. Above `removedMax`, and when the process dies before, the copy
 * stays until its time is up. It is shown to nobody but its owner even then, and only while the database is away.
 */
import type { RedisStore } from '../db/redis.ts'
import type { SessionChanges } from './changes.ts'
import { createCopyKeys, hashOwner, throwFirst } from './copies.ts'

export interface RefreshOptions {
  readonly store: RedisStore
  /** Each makes new copies of these sessions. May reject: the next change makes it good. */
  readonly refreshers: readonly ((sessionIds: readonly string[]) => Promise<void>)[]
  /** From the first deletion to the second. */
  readonly againMs?: number
}

export interface Refresh extends SessionChanges {
  close(): void
}

interface Removal {
  readonly owner: string
  /** On the clock of `performance.now()`. */
  dueAt: number
  /** How often it is still to be done. */
  left: number
}

const gatherMs = 25
/** Sessions that are copied together. */
const batchMax = 50
const changedMax = 5000
const removedMax = 10_000
const removalsPerPipelineMax = 500
/** Longer than a statement and its wait for a place may take. */
const againDefaultMs = 10_000
/** Time between two looks at what could not be done at once. */
const lookMs = 500

export function createRefresh({ store, refreshers, againMs = againDefaultMs }: RefreshOptions): Refresh {
  const keys = createCopyKeys(store.prefix)
  const changed = new Set<string>()
  const removals = new Map<string, Removal>()
  let gatherTimer: NodeJS.Timeout | undefined
  let busy = false
  let closed = false

  const clock = setInterval(work, lookMs)
  clock.unref()

  function work(): void {
    gatherTimer = undefined
    if (!busy && !closed && store.isWell && changed.size + removals.size > 0) void workOnce() // throws nothing
  }

  async function workOnce(): Promise<void> {
    busy = true
    // First: a session that changed its owner is deleted for the one before it is copied for the next.
    await removeDue()
    const ids = [...changed].slice(0, batchMax)
    for (const id of ids) changed.delete(id)
    // Why one fails is told by whoever fails: the database by health, Redis by the store.
    await Promise.allSettled(ids.length === 0 ? [] : refreshers.map((refresh) => refresh(ids)))
    busy = false
    if (changed.size > 0) work()
  }

  async function removeDue(): Promise<void> {
    const now = performance.now()
    const due = [...removals].filter(([, { dueAt }]) => dueAt <= now).slice(0, removalsPerPipelineMax)
    if (due.length === 0) return
    const isDone = await store.ask(async (redis) => {
      const pipeline = redis.pipeline()
      for (const [id, { owner }] of due) {
        pipeline.unlink(keys.history(id), keys.live(id), keys.snapshot(id)).zrem(keys.sessions(owner), id)
      }
      throwFirst(await pipeline.exec())
      return true
    })
    if (isDone !== true) return
    for (const [id, removal] of due) {
      removal.left -= 1
      removal.dueAt = now + againMs
      if (removal.left <= 0 && removals.get(id) === removal) removals.delete(id)
    }
  }

  function soon(): void {
    gatherTimer ??= setTimeout(work, gatherMs)
  }

  return {
    changed(sessionId) {
      const removal = removals.get(sessionId)
      // It is there again, or somebody else's: what is copied from now on is to stay.
      if (removal !== undefined) removal.left = Math.min(removal.left, removal.dueAt <= performance.now() ? 1 : 0)
      if (removal?.left === 0) removals.delete(sessionId)
      if (changed.size < changedMax) changed.add(sessionId)
      soon()
    },
    removed(ownerKey, sessionIds) {
      const owner = hashOwner(ownerKey)
      for (const id of sessionIds) {
        changed.delete(id)
        removals.delete(id)
        removals.set(id, { owner, dueAt: 0, left: 2 })
      }
      for (const id of removals.keys()) {
        if (removals.size <= removedMax) break
        removals.delete(id)
      }
      soon()
    },
    close() {
      closed = true
      clearInterval(clock)
      clearTimeout(gatherTimer)
    },
  }
}
