/**
 * The history that a recorder writes while faults happen: one JSON line for each thing that a viewer did or was sent. It is
 * a file, so it is there whatever dies; the checker reads it afterwards. Times are of the machine's monotonic clock, the same for every
 * process on it.
 */
import { readFile } from 'node:fs/promises'

export type HistoryLine = { readonly atMs: number; readonly viewer: string } & (
  | {
      readonly what: 'wants'
      readonly key: string | undefined
      readonly message: string | undefined
      readonly runId: string | undefined
      /** It does not read for a while, again and again: its silences are its own. */
      readonly slow: boolean
      /** Its message may wait for its turn. */
      readonly queues: boolean
    }
  /** A connection was accepted: the response status is 200 and names the run. */
  | {
      readonly what: 'open'
      readonly gateway: string
      readonly method: 'GET' | 'POST'
      readonly after: string | undefined
      readonly runId: string
      readonly sessionId: string
      readonly messageId: string
    }
  | { readonly what: 'event'; readonly event: string; readonly id: string | undefined; readonly data: unknown }
  /** The body ended: `clean`, `cut` when the connection broke, `left` when the viewer closed it. */
  | { readonly what: 'closed'; readonly gateway: string; readonly how: 'clean' | 'cut' | 'left' | 'silent' }
  /** No stream: a status other than 200, or 0 when there was no answer. */
  | { readonly what: 'answer'; readonly gateway: string; readonly status: number; readonly code: string | undefined }
  /** `done`: the run's end was seen. `left`: told to leave. `refused`: by an answer that does not pass. `gave up`: by time. */
  | { readonly what: 'end'; readonly why: 'done' | 'left' | 'refused' | 'gave up' }
)

type WithoutPlace<T> = T extends unknown ? Omit<T, 'atMs' | 'viewer'> : never
/** A line before the recorder adds who and when. */
export type HistoryEntry = WithoutPlace<HistoryLine>

/** CLOCK_MONOTONIC in ms, with fractions. */
export function nowMs(): number {
  return Number(process.hrtime.bigint() / 1000n) / 1000
}

export async function readHistory(path: string): Promise<HistoryLine[]> {
  // Not node:readline: it takes U+2028 for the end of a line, and JSON.stringify leaves that as it is.
  const lines = (await readFile(path, 'utf8')).split('\n')
  return lines.filter((line) => line !== '').map((line) => JSON.parse(line) as HistoryLine)
}
