/**
 * From what a provider reports to a Problem. It reads statuses and error codes, never message texts, and lets nothing of
 * the provider's own words through: they can quote the prompt or the key. Even a cause is cut down to its code, because
 * an HTTP parser's error carries the bytes it choked on.
 */
import { Problem } from '../errors.ts'

/** Longest Retry-After that is passed on. A provider may ask for a day; a chat has ended by then. */
const retryAfterSecondsMax = 3600

// The provider will say the same to the same request: trying again costs money and helps nobody.
const refusingWords =
  /^(invalid|authentication|permission|forbidden|unauthorized|unauthenticated|failed_precondition|not_found|model_not_found|insufficient_|exceeded_current_quota|billing|context_length|content_(filter|policy)|unsupported|request_too_large|tool_use_failed|bad_?request)/i
// A 429 with one of these is an empty account, not a queue.
const quotaWords = /^(insufficient_|exceeded_current_quota|billing|credit)/i
// Google names each quota, as in `GenerateRequestsPerDayPerProjectPerModel-FreeTier`: one of a day is spent for today.
const dailyQuota = /per_?day/i
/** Google's details of an error that are looked at. */
const detailsMax = 16

/**
 * @param status a status outside 200 to 299
 * @param body what came with it, parsed, where it is worth reading: it tells an empty account from a full queue
 * @param retryAfter the header of that name
 */
export function refusedWith(status: number, body?: unknown, retryAfter?: string): Problem {
  const error = errorIn(body)
  if (status === 429 && isSpent(error)) {
    return new Problem('upstream_rejected', 'The provider answered 429: the account has no quota left.')
  }
  const detail = `The provider answered ${status}.`
  if (!isPassing(status)) return new Problem('upstream_rejected', detail)
  const retryAfterSeconds = readRetryAfter(retryAfter) ?? retryDelayOf(error)
  return new Problem('upstream_unavailable', detail, retryAfterSeconds === undefined ? {} : { retryAfterSeconds })
}

/** An error that came within a stream whose status was 200. @param error an `error` member, or the text in its place */
export function reportedError(error: unknown): Problem {
  const status = statusOf(error)
  const words = wordsOf(error)
  const refused =
    status === undefined ? words.some((word) => refusingWords.test(word)) : !isPassing(status) || isSpent(error)
  const detail = `The provider reported an error${status === undefined ? '' : ` (${status})`} within its reply.`
  return new Problem(refused ? 'upstream_rejected' : 'upstream_unavailable', detail)
}

/** The connection failed. @param hadAnswer the provider's status had been received */
export function brokenOff(hadAnswer: boolean, error?: unknown): Problem {
  const code = (error as { code?: unknown } | undefined)?.code
  const cause = typeof code === 'string' && /^[A-Z0-9_]{1,64}$/.test(code) ? new Error(code) : undefined
  // What undici refuses to send, such as a key with a line break in it, will never be sent.
  if (code === 'UND_ERR_INVALID_ARG') {
    return new Problem('upstream_rejected', 'The request to the provider cannot be made.', { cause })
  }
  return new Problem('upstream_unavailable', hadAnswer ? 'The reply broke off.' : 'The provider cannot be reached.', {
    cause,
  })
}

/** @returns the `error` member of a body or a chunk; undefined when there is none worth the name */
export function errorIn(body: unknown): unknown {
  if (Array.isArray(body)) return isRecord(body[0]) ? errorIn(body[0]) : undefined
  if (!isRecord(body)) return undefined
  // Some providers send `"error": null` with every chunk.
  if (body.error) return body.error
  // vLLM before 0.6 reports `{"object":"error","code":400,…}` without an `error` member.
  return body.object === 'error' ? body : undefined
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function isPassing(status: number): boolean {
  return status >= 500 || status === 408 || status === 409 || status === 425 || status === 429
}

/** An account that has nothing left, now or for today. */
function isSpent(error: unknown): boolean {
  if (wordsOf(error).some((word) => quotaWords.test(word))) return true
  return detailsOf(error).some(({ violations }) => {
    if (!Array.isArray(violations)) return false
    return violations.slice(0, detailsMax).some((violation) => {
      const quota = isRecord(violation) ? violation.quotaId : undefined
      return typeof quota === 'string' && dailyQuota.test(quota)
    })
  })
}

/** Google's RetryInfo: `"retryDelay": "34.4s"`. */
function retryDelayOf(error: unknown): number | undefined {
  for (const { retryDelay } of detailsOf(error)) {
    const seconds = typeof retryDelay === 'string' ? /^(\d{1,9}(?:\.\d{1,9})?)s$/.exec(retryDelay)?.[1] : undefined
    if (seconds !== undefined) return Math.min(Math.ceil(Number(seconds)), retryAfterSecondsMax)
  }
  return undefined
}

function detailsOf(error: unknown): Record<string, unknown>[] {
  const details = isRecord(error) ? error.details : undefined
  return Array.isArray(details) ? details.slice(0, detailsMax).filter(isRecord) : []
}

function wordsOf(error: unknown): string[] {
  if (!isRecord(error)) return []
  return [error.code, error.type, error.status].filter((word) => typeof word === 'string')
}

function statusOf(error: unknown): number | undefined {
  if (!isRecord(error)) return undefined
  for (const value of [error.code, error.status_code, error.status]) {
    const status = typeof value === 'string' && /^\d{3}$/.test(value) ? Number(value) : value
    if (typeof status === 'number' && Number.isInteger(status) && status >= 400 && status <= 599) return status
  }
  return undefined
}

function readRetryAfter(header: string | undefined): number | undefined {
  if (header === undefined || !/^\d{1,9}$/.test(header)) return undefined
  return Math.min(Number(header), retryAfterSecondsMax)
}
