/**
 * What a token says: its header and its claims, read and checked apart from its signature. It is done first, because it is
 * cheap, needs no key and asks nobody: a token that could not be used anyway costs neither a key nor a request for keys.
 * What is found here is believed only when the signature of the same text has been verified.
 *
 * It refuses what has more than one spelling (base64url with padding or spare bits, bytes that are no UTF-8), so that one
 * token is one text. Of a JSON key that is there twice the last one counts, here and in the verifier alike, as in RFC 7519,
 * section 4. Nothing waits here and nothing is kept.
 */
import { isUtf8 } from 'node:buffer'
import { Ajv } from 'ajv'
import { type Static, Type } from 'typebox'

/** How far the clocks of whoever makes tokens and of this process may differ. */
export const leewaySeconds = 30
const issuedAheadSecondsMax = 60
export const subjectUnitsMax = 255
/** Together with the longest subject it fits into an entry of an index (2704 bytes), however many bytes a character has. */
const issuerUnitsMax = 512
// The year 9999. Also what is meant in milliseconds is beyond it: such a token would never expire.
const latestSeconds = 253_402_300_799

export interface Token {
  readonly header: Readonly<Record<string, unknown>>
  readonly claims: unknown
}

export interface ExpectedClaims {
  readonly issuer: string | undefined
  readonly audience: string | undefined
}

/**
 * Whom a token names. `anon` is the public key of a Supabase project, which every page of it sends with everything: it
 * says that nobody has logged in. `issuer` is empty when the token names none.
 */
export type Bearer =
  | { readonly kind: 'user'; readonly subject: string; readonly issuer: string }
  | { readonly kind: 'anon' }

/** @returns undefined for what is not three parts of canonical base64url, of which the first two are JSON objects */
export function readToken(token: string): Token | undefined {
  const parts = token.split('.')
  const [header, claims, signature] = parts.map(readBase64url)
  if (parts.length !== 3 || signature === undefined) return undefined
  const said = { header: readObject(header), claims: readObject(claims) }
  return said.header === undefined || said.claims === undefined ? undefined : (said as Token)
}

/**
 * @param claims as they were in the token
 * @param now in seconds since 1970
 * @returns undefined when the token cannot be used now, whoever signed it
 */
export function readClaims(claims: unknown, expected: ExpectedClaims, now: number): Bearer | undefined {
  if (!isClaims(claims)) return undefined
  const { sub, exp, nbf = 0, iat = 0, iss, aud, role, app_metadata } = claims
  if (exp + leewaySeconds < now || nbf - leewaySeconds > now || iat - issuedAheadSecondsMax > now) return undefined
  // Supabase's service key passes every check of the database; no browser has business with it.
  if (isServiceRole(role) || isServiceRole(app_metadata?.role)) return undefined
  // It is made with the project, long before anybody has configured an issuer or an audience here.
  if (role === 'anon' && sub === undefined) return { kind: 'anon' }
  if (sub === undefined) return undefined
  if (expected.issuer !== undefined && iss !== expected.issuer) return undefined
  if (expected.audience !== undefined && !(Array.isArray(aud) ? aud : [aud]).includes(expected.audience))
    return undefined
  return { kind: 'user', subject: sub, issuer: iss ?? '' }
}

const Seconds = Type.Number({ minimum: 0, maximum: latestSeconds })

// RFC 7519, section 4.1. Other claims may be there and say what they like.
const Claims = Type.Object({
  sub: Type.Optional(Type.String({ format: 'subject' })),
  exp: Seconds,
  nbf: Type.Optional(Seconds),
  iat: Type.Optional(Seconds),
  iss: Type.Optional(Type.String({ format: 'issuer' })),
  aud: Type.Optional(Type.Union([Type.String(), Type.Array(Type.String())])),
  role: Type.Optional(Type.Unknown()),
  app_metadata: Type.Optional(Type.Unknown()),
})
type Claims = Static<typeof Claims> & { readonly app_metadata?: { readonly role?: unknown } | null }

const ajv = new Ajv({ coerceTypes: false, strict: false, strictNumbers: true, meta: false, validateSchema: false })
ajv.addFormat('subject', isSubject)
ajv.addFormat('issuer', (text: string) => isStorable(text, issuerUnitsMax))
// Compiled with the first token.
const isClaims = (value: unknown): value is Claims => ajv.validate(Claims, value)

/** Whether a text can be the `sub` of a user here, whatever credential names it. */
export function isSubject(text: string): boolean {
  return text !== '' && isStorable(text, subjectUnitsMax)
}

// Postgres refuses U+0000, and would mend a lone surrogate into a name that others can have too.
function isStorable(text: string, unitsMax: number): boolean {
  return text.length <= unitsMax && text.isWellFormed() && !text.includes('\u0000')
}

function isServiceRole(role: unknown): boolean {
  return role === 'service_role' || (Array.isArray(role) && role.includes('service_role'))
}

function readBase64url(part: string): Buffer | undefined {
  const bytes = Buffer.from(part, 'base64url')
  return part !== '' && bytes.toString('base64url') === part ? bytes : undefined
}

function readObject(bytes: Buffer | undefined): Readonly<Record<string, unknown>> | undefined {
  if (bytes === undefined || !isUtf8(bytes)) return undefined
  try {
    const value: unknown = JSON.parse(bytes.toString())
    return typeof value === 'object' && value !== null && !Array.isArray(value) ? { ...value } : undefined
  } catch {
    return undefined // no JSON, and so no token
  }
}
