/**
 * Randomness that can be had again: a test that fails for a seed fails for it every time.
 */

export interface Random {
  /** 0 or more, less than 1. */
  next(): number
  /** An integer from 0 up to, and without, `below`. */
  integer(below: number): number
  pick<T>(from: readonly T[]): T
}

/** mulberry32, https://github.com/cprosche/mulberry32 */
export function createRandom(seed: number): Random {
  let state = seed
  function next(): number {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296
  }
  const integer = (below: number) => Math.floor(next() * below)
  return { next, integer, pick: (from) => from[integer(from.length)] as (typeof from)[number] }
}
