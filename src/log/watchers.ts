/** Who wants to be woken for which run. Apart from the logs: a viewer may watch before the first event and after the last. */
export type Watchers = ReturnType<typeof createWatchers>

export function createWatchers() {
  const watchers = new Map<string, Set<() => void>>()

  return {
    /** Runs that somebody watches. */
    get size() {
      return watchers.size
    },
    has: (runId: string) => watchers.has(runId),
    ids: () => [...watchers.keys()],
    /** @returns the end of it; more than one call does no harm */
    watch(runId: string, wake: () => void): () => void {
      // A function of its own for each call, so that the same one may watch twice.
      const own = () => wake()
      const all = watchers.get(runId) ?? new Set()
      watchers.set(runId, all.add(own))
      return () => {
        if (all.delete(own) && all.size === 0 && watchers.get(runId) === all) watchers.delete(runId)
      }
    },
    wake(runId: string): void {
      for (const wake of watchers.get(runId) ?? []) wake()
    },
  }
}
