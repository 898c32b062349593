/**
 * Who wants to know that a session has changed: whatever keeps a copy of it outside the database. Whoever writes to a
 * session, its messages or its runs says so here, after the database has committed. It is a hint and no promise: a
 * process that dies between the two says nothing, so a copy has to be able to tell by itself that it is old.
 */
export interface SessionChanges {
  /** The session, or something that belongs to it, was written. Never throws, never waits. */
  changed(sessionId: string): void
  /** These sessions are this owner's no more: deleted, purged or claimed. Never throws, never waits. */
  removed(ownerKey: string, sessionIds: readonly string[]): void
}

export interface ObservableSessionChanges extends SessionChanges {
  /** @param observer must not throw */
  observe(observer: SessionChanges): void
}

export function createSessionChanges(): ObservableSessionChanges {
  const observers: SessionChanges[] = []
  return {
    changed(sessionId) {
      for (const observer of observers) observer.changed(sessionId)
    },
    removed(ownerKey, sessionIds) {
      for (const observer of observers) observer.removed(ownerKey, sessionIds)
    },
    observe: (observer) => void observers.push(observer),
  }
}
