/** What fault tests have in common: how often, how long, and where they cannot run. */
import { setTimeout as sleep } from 'node:timers/promises'
import { databases } from './database.ts'

/** How often a fault is made; more for a longer look (`FAULT_TRIALS=50 npm test -- test/faults/x.test.ts`). */
export const faultTrials = Number(process.env.FAULT_TRIALS ?? 3)
/** P7: from the death of a process until its viewers see the end elsewhere. */
export const takeoverMsMax = 12_000
/** From the release of a run in a planned shutdown until its viewers hear of its successor. */
export const handOverMsMax = 1_000
/** A stop is answered with the final message. */
export const stopMsMax = 2_500

const untilMs = 30_000
const lookMs = 10

/** @returns a reason to skip, where there are no servers to start */
export function skipFaults(): string | false {
  return databases().includes('postgres') ? false : 'TEST_EMBEDDED_ONLY=1: no Postgres and no Redis to break'
}

/** Resolves when it is so. For what has no event to await: rows, and the records of the provider. */
export async function untilTrue(isSo: () => boolean | Promise<boolean>): Promise<void> {
  for (const giveUpAt = Date.now() + untilMs; Date.now() < giveUpAt; ) {
    if (await isSo()) return
    await sleep(lookMs)
  }
  throw new Error(`not so after ${untilMs} ms`)
}
