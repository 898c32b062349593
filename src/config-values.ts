/**
 * What the readers of the configuration share: the kinds of variables, checks of single values, and the error that stops
 * the start. A message names the variable, or the place in the config file, and never a value: it may be a secret.
 */
import { Type } from 'typebox'

/** One sentence, for whoever starts the process. */
export class ConfigError extends Error {
  override readonly name = 'ConfigError'
}

export type Variables = Readonly<Record<string, string | undefined>>

export const integer = (minimum: number, maximum: number, fallback: number, description: string) =>
  Type.Integer({ minimum, maximum, default: fallback, description })
export const flag = (fallback: 'true' | 'false', description: string) =>
  Type.Union([Type.Literal('true'), Type.Literal('false')], { default: fallback, description })
export const optional = (description: string) => Type.Optional(Type.String({ description }))
export const optionalInteger = (minimum: number, maximum: number, description: string) =>
  Type.Optional(Type.Integer({ minimum, maximum, description }))

/** Of a day. */
export const budgetTokensMax = 1_000_000_000_000
/** USD. A billion is more than anybody has, and nine digits behind the point more than a token costs. */
export const usdPattern = '^\\d{1,9}(\\.\\d{1,9})?$'
export const optionalUsd = (description: string) => Type.Optional(Type.String({ pattern: usdPattern, description }))

/** Hosts pass unset variables as empty strings (docker compose's ${X:-} does): both mean that it is not set. */
export function readVariable(env: Variables, variable: string | undefined): string | undefined {
  const value = variable === undefined ? undefined : env[variable]?.trim()
  return value === '' ? undefined : value
}

/** What stands between commas. */
export function itemsOf(list: string): readonly string[] {
  return list
    .split(',')
    .map((item) => item.trim())
    .filter((item) => item !== '')
}

/** @param where the variable, or the place in the config file */
export function checkUrl(where: string, value: string, schemes: readonly string[]): string {
  const url = URL.canParse(value) ? new URL(value) : undefined
  if (url === undefined || !schemes.includes(url.protocol)) {
    throw new ConfigError(`${where} must be a URL that begins with ${schemes.map((s) => `${s}//`).join(' or ')}`)
  }
  return value
}

// RFC 9110, section 5.5: visible characters, spaces and tabs. A line break would begin another header.
const headerValue = /^[\t\x20-\x7e\x80-\xff]*$/

export function checkHeaderValue(where: string, value: string): string {
  if (!headerValue.test(value)) throw new ConfigError(`${where} has characters that no header can have`)
  return value
}
