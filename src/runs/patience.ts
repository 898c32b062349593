/**
 * Patience with the database, for what stands between an accepted message and its reply. It is asked again for `waitMs`, and
 * often: where connections die as fast as they are made, most tries fail, and each may be the one that gets through. Asking
 * twice a second is no burden to it, because what is accepted while it is away is little: to accept needs it too.
 *
 * The waits are the work's own, which the gate before the database bounds, and the pause, which ends when the signal is aborted.
 */
import { Problem } from '../errors.ts'
import { pause } from './run.ts'

export const waitMs = 30_000
const pauseFirstMs = 100
const pauseMaxMs = 500

/**
 * Tries until the database answers, for {@link waitMs}.
 * @throws what the work throws, when that is not `db_unavailable` or the time is up; the signal's reason
 */
export async function patiently<T>(work: () => Promise<T>, signal: AbortSignal): Promise<T> {
  const giveUpAt = performance.now() + waitMs
  for (let pauseMs = pauseFirstMs; ; pauseMs = Math.min(pauseMs * 2, pauseMaxMs)) {
    try {
      return await work()
    } catch (error) {
      const passes = error instanceof Problem && error.code === 'db_unavailable'
      if (!passes || performance.now() + pauseMs > giveUpAt) throw error
      await pause(pauseMs, signal)
      signal.throwIfAborted()
    }
  }
}
