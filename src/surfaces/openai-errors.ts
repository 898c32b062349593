/**
 * How an error is said to clients of OpenAI: the codes of the catalogue, in OpenAI's shape, before the status and in
 * mid-stream alike. Pure.
 */
import { catalogue, isErrorCode } from '../errors.ts'

export interface OpenaiErrorBody {
  readonly error: {
    readonly message: string
    readonly type: string
    readonly code: string
    /** The field of the request that is wrong. */
    readonly param: string | null
  }
}

/** OpenAI's words for what is wrong, by status. */
const types: Readonly<Record<number, string>> = {
  400: 'invalid_request_error',
  401: 'authentication_error',
  402: 'insufficient_quota',
  403: 'permission_error',
  404: 'not_found_error',
  409: 'conflict_error',
  413: 'invalid_request_error',
  422: 'invalid_request_error',
  429: 'rate_limit_error',
}

/** @param code of the catalogue; of a run that another version has stored it may be one that is not known here */
export function toOpenaiError(
  { code, message }: { readonly code: string; readonly message: string },
  param: string | null = null,
): OpenaiErrorBody {
  const status = isErrorCode(code) ? catalogue[code].status : 500
  return { error: { message, type: types[status] ?? 'server_error', code, param } }
}
