/**
 * The two ways in which a request fails. `GatewayError`: the gateway has answered, and the answer is no; `code` says why and
 * is what to decide by, never the words. `ConnectionError`: there was no answer, or it was no answer of the gateway (a
 * proxy's page, a body that is not what it says). What was asked may then have happened, so only what can be repeated is.
 */
import type { ErrorCode } from './types.ts'

export interface GatewayErrorOptions {
  readonly status: number
  readonly code: ErrorCode | (string & {})
  readonly title: string
  /** Fit for the reader's eyes. */
  readonly message: string
  readonly requestId?: string
  readonly retryable: boolean
  readonly retryAfterMs: number
  readonly members: Readonly<Record<string, unknown>>
}

export class GatewayError extends Error {
  override readonly name = 'GatewayError'
  readonly status: number
  readonly code: ErrorCode | (string & {})
  readonly title: string
  /** What to name to whoever runs the gateway. */
  readonly requestId: string | undefined
  /** Whether the same request can succeed later. */
  readonly retryable: boolean
  /** 0 when the gateway has not said. */
  readonly retryAfterMs: number
  /** All that the answer said, such as `run_id` of the run that makes a session busy. */
  readonly members: Readonly<Record<string, unknown>>

  constructor({ message, status, code, title, requestId, retryable, retryAfterMs, members }: GatewayErrorOptions) {
    super(message)
    this.status = status
    this.code = code
    this.title = title
    this.requestId = requestId
    this.retryable = retryable
    this.retryAfterMs = retryAfterMs
    this.members = members
  }
}

export class ConnectionError extends Error {
  override readonly name = 'ConnectionError'
  /** `stalled`: it was open, and nothing came for too long. `gap`: what came has a hole, each time it is read. */
  readonly why: 'cut' | 'stalled' | 'gap'

  constructor(message: string, options: { readonly why?: ConnectionError['why']; readonly cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.why = options.why ?? 'cut'
  }
}

/** @throws GatewayError or ConnectionError when the answer is not what was asked for; the body is read then */
export async function refuse(response: Response): Promise<void> {
  if (response.ok) return
  const { status, headers } = response
  const problem = await readProblem(response)
  const passing = status >= 500 || status === 429 || status === 408
  if (problem === undefined && passing) throw new ConnectionError(`Status ${status}, and not from the gateway.`)
  const { code, title, detail, request_id, retryable } = problem ?? {}
  throw new GatewayError({
    status,
    code: typeof code === 'string' ? code : 'unknown',
    title: typeof title === 'string' ? title : '',
    message: typeof detail === 'string' ? detail : `The gateway answered with status ${status}.`,
    ...(typeof request_id === 'string' ? { requestId: request_id } : {}),
    retryable: typeof retryable === 'boolean' ? retryable : passing,
    retryAfterMs: retryAfterOf(headers),
    members: problem ?? {},
  })
}

/** Whether the same request can succeed a moment later, without anybody doing anything. */
export function passes(error: unknown): boolean {
  if (error instanceof ConnectionError) return true
  return error instanceof GatewayError && error.retryable && (error.status >= 500 || error.status === 429)
}

async function readProblem(response: Response): Promise<Record<string, unknown> | undefined> {
  try {
    const problem: unknown = await response.json()
    return typeof problem === 'object' && problem !== null && 'code' in problem
      ? (problem as Record<string, unknown>)
      : undefined
  } catch {
    return undefined // not JSON: it was no answer of the gateway, and the status has to say it all
  }
}

/** Seconds, or a date of HTTP as proxies send it. 0 when it is not said. */
export function retryAfterOf(headers: Headers): number {
  const text = headers.get('retry-after')
  if (text === null) return 0
  const ms = /^\d+$/.test(text) ? Number(text) * 1000 : Date.parse(text) - Date.now()
  return Math.max(0, ms || 0)
}
