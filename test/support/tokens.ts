/** JSON Web Tokens, made by hand: a library would refuse to make most of those that a test needs. */
import { createHmac } from 'node:crypto'

export const base64url = (text: string): string => Buffer.from(text).toString('base64url')

export const inSeconds = (seconds: number): number => Math.floor(Date.now() / 1000) + seconds

export interface TokenOptions {
  readonly header?: unknown
  /** The hash of the signature, whatever the header says. */
  readonly hash?: 'sha256' | 'sha512'
}

/** @param payload an object, or the text that stands in its place */
export function makeToken(secret: string, payload: unknown, options: TokenOptions = {}): string {
  const { header = { alg: 'HS256', typ: 'JWT' }, hash = 'sha256' } = options
  const encode = (part: unknown) => base64url(typeof part === 'string' ? part : JSON.stringify(part))
  const signed = `${encode(header)}.${encode(payload)}`
  return `${signed}.${createHmac(hash, secret).update(signed).digest('base64url')}`
}
