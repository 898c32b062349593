/**
 * Text from outside, made fit to be stored. Postgres refuses U+0000 in text and lone surrogates in jsonb, and it would
 * do so after the model has been paid; so both are mended where they come in: U+0000 goes, a lone surrogate becomes
 * U+FFFD. JSON values are mended throughout, keys too.
 */
import { Problem } from '../errors.ts'

/** A uuid as Postgres takes it, in either case and in nothing but its usual form. */
export const uuidPattern = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i

/** Deeper JSON is refused: walking and storing it is recursion, and no honest client sends it. */
export const jsonDepthMax = 32

export function cleanText(text: string): string {
  return text.replaceAll('\u0000', '').toWellFormed()
}

/** @throws Problem `invalid_request` when the value is nested deeper than {@link jsonDepthMax} */
export function cleanJson<T>(value: T): T {
  return clean(value, 0) as T
}

/** @throws Problem `too_large` when `value` takes more than `bytesMax` as JSON */
export function limitJson(name: string, value: unknown, bytesMax: number): void {
  if (value === undefined || Buffer.byteLength(JSON.stringify(value)) <= bytesMax) return
  throw new Problem('too_large', `${name} may hold ${bytesMax} bytes of JSON at most.`)
}

function clean(value: unknown, depth: number): unknown {
  if (typeof value === 'string') return cleanText(value)
  if (typeof value !== 'object' || value === null) return value
  if (depth >= jsonDepthMax) throw new Problem('invalid_request', `JSON may be nested ${jsonDepthMax} deep at most.`)
  if (Array.isArray(value)) return value.map((item) => clean(item, depth + 1))
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [cleanText(key), clean(item, depth + 1)]))
}
