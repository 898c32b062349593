/**
 * What the copies of sessions in Redis have in common: their keys, who they are for, and how their reads are counted.
 * All keys begin with the prefix of the store; `vb` is the default.
 */
import { hash } from 'node:crypto'

/** The copies of one session, whose id is in lower case, and the list of an owner's. */
export function createCopyKeys(prefix: string) {
  return {
    /** The last messages. */
    history: (sessionId: string) => `${prefix}:hist:${sessionId}`,
    /** What the run of the session is doing. */
    live: (sessionId: string) => `${prefix}:live:${sessionId}`,
    /** The row. */
    snapshot: (sessionId: string) => `${prefix}:snap:${sessionId}`,
    /** Ids of an owner's sessions, by last activity. */
    sessions: (ownerHash: string) => `${prefix}:sess:${ownerHash}`,
  }
}

/** Who a copy is for. No name of a user is in a key. */
export const hashOwner = (ownerKey: string): string => hash('sha256', ownerKey)

/**
 * One read that could have been served from a copy. `miss`: there was none that holds what was asked; `stale`: there was
 * one, of before the last change; `error`: Redis did not answer.
 */
export type CountCacheRead = (cache: 'history' | 'sessions', result: 'hit' | 'miss' | 'stale' | 'error') => void

/** A copy that is larger is not made. */
export const copyBytesMax = 256 * 1024

/** Of a pipeline's answers. @throws the server's error to one of its commands */
export function throwFirst(answers: readonly [Error | null, unknown][] | null): void {
  for (const [error] of answers ?? []) if (error !== null) throw error
}

/** How long live state and snapshots stay after they were written last: a day. */
export const liveSeconds = 24 * 60 * 60
