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
  /^(invalid|authentication|permission|forbidden|unauthorized|unauthenticated|failed_precondition|not_found|model_not_found|insufficient_(?!system|resource|capacity)|exceeded_current_quota|billing|credit|context_|exceed_context|content_(filter|policy)|moderation|responsible_?ai|data_inspection|unsupported|request_too_large|tool_use_failed|bad_?request)/i
// A 429 with one of these is an empty account, not a queue.
const quotaWords = /^(insufficient_(?!system|resource|capacity)|exceeded_current_quota|billing|credit)/i
// Google names each quota, as in `GenerateRequestsPerDayPerProjectPerModel-FreeTier`: one of a day is spent for today.
const dailyQuota = /per_?day/i

const decimal = /^\d{1,12}(\.\d{1,9})?$/

/** How long a provider asks to be left alone: headers of those names, as they came. */
export interface RetryHeaders {
  /** Seconds, or a date. */
  readonly retryAfter: string | undefined
  /** Milliseconds; OpenAI and Azure say both, and this one is more exact. */
  readonly retryAfterMs?: string | undefined
  /** The provider's clock, by which a date in `retryAfter` is to be understood. */
  readonly date?: string | undefined
}

/**
 * @param status a status outside 200 to 299
 * @param body what came with it, parsed, where it is worth reading: it tells an empty account from a full queue
 * @param headers those that say when to come again, or `Retry-After` alone
 */
export function refusedWith(status: number, body?: unknown, headers?: RetryHeaders | string): Problem {
  const error = errorIn(body)
  if (status === 429 && isSpent(error)) {
    return new Problem('upstream_rejected', 'The provider answered 429: the account has no quota left.')
  }
  const detail = `The provider answered ${status}.`
  if (!isPassing(status)) return new Problem('upstream_rejected', detail)
  const asked = typeof headers === 'string' ? readRetry({ retryAfter: headers }) : readRetry(headers)
  return new Problem('upstream_unavailable', detail, waitOf(asked ?? retryDelayIn(error)))
}

/** An error that came within a stream whose status was 200. @param error an `error` member, or the text in its place */
export function reportedError(error: unknown): Problem {
  const status = statusOf(error)
  const words = wordsOf(error)
  const refused =
    status === undefined ? words.some((word) => refusingWords.test(word)) : !isPassing(status) || isSpent(error)
  const detail = `The provider reported an error${status === undefined ? '' : ` (${status})`} within its reply.`
  return refused
    ? new Problem('upstream_rejected', detail)
    : new Problem('upstream_unavailable', detail, waitOf(retryDelayIn(error)))
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

/** @returns the error that a body or a chunk reports; undefined when there is none worth the name */
export function errorIn(body: unknown): unknown {
  // Gemini's compatible endpoint puts what it reports in a list.
  if (!isRecord(body)) return Array.isArray(body) && isRecord(body[0]) ? errorIn(body[0]) : undefined
  // Some providers send `"error": null` with every chunk.
  if (body.error) return body.error
  // vLLM before 0.6 reports `{"object":"error","code":400,…}` without an `error` member, the Responses API
  // `{"type":"error",…}`.
  if (body.object === 'error' || body.type === 'error') return body
  if (body.type === 'response.failed') return isRecord(body.response) ? (body.response.error ?? body) : body
  return undefined
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function isPassing(status: number): boolean {
  // 501 is what a server says to a request that it will never understand, and 498 is Groq's word for a full queue.
  if (status >= 500) return status !== 501
  return status === 408 || status === 409 || status === 425 || status === 429 || status === 498
}

/** The account has nothing left, now or for today. */
function isSpent(error: unknown): boolean {
  if (wordsOf(error).some((word) => quotaWords.test(word))) return true
  return detailsOf(error).some(({ violations }) =>
    listOf(violations).some(({ quotaId }) => typeof quotaId === 'string' && dailyQuota.test(quotaId)),
  )
}

/** Google's: `{"error":{"details":[{"@type":"…QuotaFailure","violations":[{"quotaId":"…"}]}]}}`. */
function detailsOf(error: unknown): Record<string, unknown>[] {
  return isRecord(error) ? listOf(error.details) : []
}

function listOf(value: unknown): Record<string, unknown>[] {
  return Array.isArray(value) ? value.filter(isRecord) : []
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

function waitOf(seconds: number | undefined): { retryAfterSeconds?: number } {
  if (seconds === undefined) return {}
  return { retryAfterSeconds: Math.min(Math.max(Math.ceil(seconds), 0), retryAfterSecondsMax) }
}

/** @returns seconds; undefined when the provider asks for nothing that can be read */
function readRetry(headers: RetryHeaders | undefined): number | undefined {
  if (headers === undefined) return undefined
  const { retryAfter, retryAfterMs, date } = headers
  if (retryAfterMs !== undefined && decimal.test(retryAfterMs)) return Number(retryAfterMs) / 1000
  if (retryAfter === undefined) return undefined
  if (decimal.test(retryAfter)) return Number(retryAfter)
  const until = Date.parse(retryAfter)
  // Only a date has letters: `-5` is one of the year 2001 to Date.parse.
  if (Number.isNaN(until) || !/[a-z]/i.test(retryAfter)) return undefined
  // By the provider's own clock, where it says what time it has: ours may be another.
  const now = date === undefined ? Number.NaN : Date.parse(date)
  return (until - (Number.isNaN(now) ? Date.now() : now)) / 1000
}

/** Google says it in the body: `{"error":{"details":[{"@type":"…RetryInfo","retryDelay":"38s"}]}}`. */
function retryDelayIn(error: unknown): number | undefined {
  for (const { retryDelay } of detailsOf(error)) {
    const delay = typeof retryDelay === 'string' ? /^(.*)s$/.exec(retryDelay)?.[1] : undefined
    if (delay !== undefined && decimal.test(delay)) return Number(delay)
  }
  return undefined
}
