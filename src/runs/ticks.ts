/**
 * One timer for all who look at the clock now and then. Thousands of viewers wait for next to nothing: a timer for each
 * would be most of what they cost. It runs while somebody is there, and keeps no process alive.
 */
export type Ticks = ReturnType<typeof createTicks>

/** Whoever looks at the clock. */
export interface Ticked {
  /** Must not throw. */
  tick(): void
}

export function createTicks(everyMs: number) {
  const all = new Set<Ticked>()
  let timer: NodeJS.Timeout | undefined

  return {
    /** Calls `tick` until it is removed. */
    add(one: Ticked): void {
      all.add(one)
      timer ??= setInterval(() => {
        for (const each of all) each.tick()
      }, everyMs).unref()
    },
    /** More than one call does no harm. */
    remove(one: Ticked): void {
      if (!all.delete(one) || all.size > 0) return
      clearInterval(timer)
      timer = undefined
    },
  }
}
