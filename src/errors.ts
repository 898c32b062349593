/**
 * The catalogue of errors: every code a client can meet, with its HTTP status, whether trying again can help, and
 * what the client should do. The same codes arrive in `done.error` once a stream's status has been sent.
 * A test pins this table to docs/errors.md. Upstream texts never appear in a detail: they can hold prompts and keys.
 */

interface ErrorEntry {
  readonly status: number
  readonly title: string
  readonly retryable: boolean
  readonly advice: string
}

export const catalogue = {
  invalid_request: {
    status: 400,
    title: 'The request is not valid',
    retryable: false,
    advice: 'Correct the field that the detail names.',
  },
  invalid_token: {
    status: 401,
    title: 'The credential cannot be used',
    retryable: false,
    advice: 'Get a new token, or leave the header out to come as a visitor.',
  },
  budget_exceeded: {
    status: 402,
    title: 'The budget of the day does not hold it',
    retryable: false,
    advice: 'Come back when the day has ended, as Retry-After says, or ask for less.',
  },
  forbidden_origin: {
    status: 403,
    title: 'Requests from this origin are not allowed',
    retryable: false,
    advice: 'Add the origin to CORS_ORIGINS.',
  },
  not_found: {
    status: 404,
    title: 'There is no such thing here',
    retryable: false,
    advice: 'Check the id. What belongs to somebody else answers the same.',
  },
  session_busy: {
    status: 409,
    title: 'The session has an active run',
    retryable: true,
    advice: 'Attach to stream_url, stop the run, or send again when it has ended.',
  },
  conflict: {
    status: 409,
    title: 'It collides with something else of yours',
    retryable: false,
    advice: 'Read what is there. The detail says what stands in the way.',
  },
  precondition_failed: {
    status: 412,
    title: 'It has changed since you read it',
    retryable: false,
    advice: 'Read it again, and send the change with its new version in If-Match.',
  },
  too_large: {
    status: 413,
    title: 'Too large',
    retryable: false,
    advice: 'Send less. The detail names the limit.',
  },
  idempotency_mismatch: {
    status: 422,
    title: 'The idempotency key was used for another request',
    retryable: false,
    advice: 'Use a new key for a new message.',
  },
  rate_limited: {
    status: 429,
    title: 'Too many at once',
    retryable: true,
    advice: 'Wait as long as Retry-After says.',
  },
  internal: {
    status: 500,
    title: 'The gateway failed',
    retryable: true,
    advice: 'Try again with the same idempotency key; report the request_id if it stays.',
  },
  upstream_rejected: {
    status: 502,
    title: 'The model provider refused the request',
    retryable: false,
    advice: 'Check the model name, the provider key and the account.',
  },
  upstream_unavailable: {
    status: 502,
    title: 'The model provider could not be reached, or its reply broke off',
    retryable: true,
    advice: 'Send the message again.',
  },
  db_unavailable: {
    status: 503,
    title: 'The database does not answer',
    retryable: true,
    advice: 'Try again with the same idempotency key as Retry-After says.',
  },
  persist_pending: {
    status: 503,
    title: 'The reply is made, and the database does not take it yet',
    retryable: true,
    advice:
      'Attach to the run again, or repeat with the same idempotency key: the reply is kept, and stored when the database is back.',
  },
  draining: {
    status: 503,
    title: 'This process is shutting down',
    retryable: true,
    advice: 'Try again: another process will answer.',
  },
  overloaded: {
    status: 503,
    title: 'This process is too busy to begin another reply',
    retryable: true,
    advice: 'Try again as Retry-After says. Nothing was stored; replies that are under way go on.',
  },
  auth_unavailable: {
    status: 503,
    title: 'The keys that verify tokens cannot be had',
    retryable: true,
    advice: 'Try again as Retry-After says. The token may be good.',
  },
  interrupted: {
    status: 503,
    title: 'The process that made the reply ended before the reply did',
    retryable: true,
    advice: 'The partial reply is stored. Send the message again for a whole one.',
  },
  upstream_timeout: {
    status: 504,
    title: 'The model provider took too long',
    retryable: true,
    advice: 'Send the message again.',
  },
} as const satisfies Record<string, ErrorEntry>

export type ErrorCode = keyof typeof catalogue

/** Of a run that another version has stored, it may be one that is not known here. */
export const isErrorCode = (code: string): code is ErrorCode => Object.hasOwn(catalogue, code)

/** The form an error takes in `done.error` and in a run's `error`. */
export interface RunError {
  readonly code: ErrorCode
  readonly message: string
  readonly retryable: boolean
}

export interface ProblemOptions {
  readonly cause?: unknown
  /** Whole seconds for the `Retry-After` header. */
  readonly retryAfterSeconds?: number
  /** Overrides the catalogue where a case is known better: a provider's 429 for an empty account is not worth a retry. */
  readonly retryable?: boolean
  /** Further members of the problem document, such as `run_id`. */
  readonly members?: Readonly<Record<string, string>>
}

/** The one error class that crosses folders: a catalogue code and a detail fit for the client's eyes. */
export class Problem extends Error {
  override readonly name = 'Problem'
  readonly code: ErrorCode
  readonly status: number
  readonly retryable: boolean
  readonly retryAfterSeconds: number | undefined
  readonly members: Readonly<Record<string, string>>

  constructor(code: ErrorCode, detail?: string, options: ProblemOptions = {}) {
    const entry: ErrorEntry = catalogue[code]
    super(detail ?? entry.advice, options.cause === undefined ? undefined : { cause: options.cause })
    this.code = code
    this.status = entry.status
    this.retryable = options.retryable ?? entry.retryable
    this.retryAfterSeconds = options.retryAfterSeconds
    this.members = options.members ?? {}
  }

  toRunError(): RunError {
    return { code: this.code, message: this.message, retryable: this.retryable }
  }
}
