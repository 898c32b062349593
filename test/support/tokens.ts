/** JSON Web Tokens and keys, made by hand: a library would refuse to make most of those that a test needs. */
import { createHmac, generateKeyPairSync, type JsonWebKey, type KeyObject, sign as signWith } from 'node:crypto'

export const base64url = (text: string | Uint8Array): string => Buffer.from(text).toString('base64url')

export const inSeconds = (seconds: number): number => Math.floor(Date.now() / 1000) + seconds

export interface TokenOptions {
  readonly header?: unknown
  /** The hash of the signature, whatever the header says. */
  readonly hash?: 'sha256' | 'sha384' | 'sha512'
}

/** @param payload an object, or the text or bytes that stand in its place */
export function makeToken(secret: string | Uint8Array, payload: unknown, options: TokenOptions = {}): string {
  const { header = { alg: 'HS256', typ: 'JWT' }, hash = 'sha256' } = options
  return encodeToken(header, payload, (signed) => createHmac(hash, secret).update(signed).digest())
}

/** @param header an object, or the text or bytes that stand in its place; `payload` too */
export function encodeToken(header: unknown, payload: unknown, sign: (signed: Buffer) => Uint8Array): string {
  const encode = (part: unknown) =>
    base64url(typeof part === 'string' || part instanceof Uint8Array ? part : JSON.stringify(part))
  const signed = `${encode(header)}.${encode(payload)}`
  return `${signed}.${base64url(sign(Buffer.from(signed)))}`
}

export type KeyName = 'ES256' | 'ES384' | 'ES256K' | 'RS256' | 'RS1024' | 'EdDSA' | 'Ed448'

export interface TestKey {
  readonly kid: string
  /** The algorithm that a token of this key names. */
  readonly alg: string
  /** What its owner publishes. */
  readonly jwk: JsonWebKey & { readonly kid: string }
  readonly privateKey: KeyObject
  readonly privateJwk: JsonWebKey & { readonly kid: string }
  /** SubjectPublicKeyInfo. */
  readonly pem: string
  readonly der: Buffer
  sign(signed: Buffer): Buffer
  /** @param header members beside, or in the place of, `alg`, `typ` and `kid` */
  token(payload: unknown, header?: Readonly<Record<string, unknown>>): string
}

/** A new key of its own. */
export function makeKey(name: KeyName, kid: string): TestKey {
  const alg = {
    ES256: 'ES256',
    ES384: 'ES384',
    ES256K: 'ES256K',
    RS256: 'RS256',
    RS1024: 'RS256',
    EdDSA: 'EdDSA',
    Ed448: 'EdDSA',
  }[name]
  const { publicKey, privateKey } = makePair(name)
  const hash = alg === 'EdDSA' ? null : name === 'ES384' ? 'sha384' : 'sha256'
  const sign = (signed: Buffer) => signWith(hash, signed, { key: privateKey, dsaEncoding: 'ieee-p1363' })
  return {
    kid,
    alg,
    jwk: { ...publicKey.export({ format: 'jwk' }), kid },
    privateKey,
    privateJwk: { ...privateKey.export({ format: 'jwk' }), kid },
    pem: publicKey.export({ type: 'spki', format: 'pem' }).toString(),
    der: publicKey.export({ type: 'spki', format: 'der' }),
    sign,
    token: (payload, header = {}) => encodeToken({ alg, typ: 'JWT', kid, ...header }, payload, sign),
  }
}

function makePair(name: KeyName) {
  switch (name) {
    case 'ES256':
      return generateKeyPairSync('ec', { namedCurve: 'P-256' })
    case 'ES384':
      return generateKeyPairSync('ec', { namedCurve: 'P-384' })
    case 'ES256K':
      return generateKeyPairSync('ec', { namedCurve: 'secp256k1' })
    case 'RS256':
      return generateKeyPairSync('rsa', { modulusLength: 2048 })
    case 'RS1024':
      return generateKeyPairSync('rsa', { modulusLength: 1024 })
    case 'EdDSA':
      return generateKeyPairSync('ed25519')
    case 'Ed448':
      return generateKeyPairSync('ed448')
  }
}
