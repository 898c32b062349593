/** What fault tests have in common: how often, how long, and where they cannot run. */
import { setTimeout as sleep } from 'node:timers/promises'
import { databases } from './database.ts'
import { trialsOf } from './trials.ts'

/** How often a fault is made. */
export const faultTrials = trialsOf(3)
/** P7: from the death of a process until its viewers see the end elsewhere. */
export const takeoverMsMax = 12_000
/** From the end of the drain time of a planned shutdown until its viewers hear of the successor. */
export const handOverMsMax = 1_000
/** What a machine that runs other tests at the same time may add to a second. */
export const busyMs = 2_000
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
