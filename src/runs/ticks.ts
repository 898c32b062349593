/**
 * One timer for all who look at the clock now and then. Thousands of viewers wait for next to nothing: a timer for each
 * would be most of what they cost. It runs while somebody is there, and keeps no process alive.
 */
export type Ticks = ReturnType<typeof createTicks>

export function createTicks(everyMs: number) {
  const all = new Set<() => void>()
  let timer: NodeJS.Timeout | undefined

  return {
    /** Calls `tick`, which must not throw, until the returned function is called. */
    add(tick: () => void): () => void {
      // A function of its own for each call, so that the same one may be there twice.
      const own = () => tick()
      all.add(own)
      timer ??= setInterval(() => {
        for (const each of all) each()
      }, everyMs).unref()
      return () => {
        if (!all.delete(own) || all.size > 0) return
        clearInterval(timer)
        timer = undefined
      }
    },
  }
}
