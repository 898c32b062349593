/**
 * The public keys that verify users' tokens: one set (RFC 7517) from one configured address. It refuses every key that is
 * not plainly for verifying signatures, and pins one algorithm to each that is left. Nothing that a token contains is ever
 * an address: all that a token can cause is that the configured one is asked again, and that seldom.
 *
 * The set is owned here, and there is no timer: it is fetched when it is opened, and by whoever needs it afterwards.
 * - Older than `freshMs`: the old keys are given out at once, and new ones fetched meanwhile. While they cannot be had, the
 *   old ones stay, however old: an outage of the key server must not log everybody out.
 * - A `kid` that is not in the set may be that of a new key: the set is fetched again, once in `unknownKidPauseMs`, and all
 *   who ask meanwhile wait for that one fetch. Otherwise anybody could make this process hammer the key server.
 * - No set at all: whoever asks waits for the fetch, and gets `auth_unavailable` when it fails and until `retryPauseMs` later.
 *
 * There is one fetch at a time, it takes `fetchMs` at most, and it never rejects. When the process dies at an await nothing
 * is lost. No database is needed.
 */
import { createPublicKey, type JsonWebKey } from 'node:crypto'
import type { FastifyBaseLogger } from 'fastify'
import { Problem } from '../errors.ts'

export type KeyAlgorithm = 'RS256' | 'ES256' | 'EdDSA'

export interface VerifyingKey {
  /** The only one that this key verifies. */
  readonly algorithm: KeyAlgorithm
  /** SubjectPublicKeyInfo. */
  readonly pem: string
}

export interface KeySet {
  /**
   * @returns undefined when the set has no such key
   * @throws Problem `auth_unavailable` when no set could be fetched yet
   */
  find(kid: string): Promise<VerifyingKey | undefined>
  /** Ends the fetch under way, and closes its connection. */
  close(): Promise<void>
}

export interface KeySetOptions {
  readonly url: string
  readonly logger: Pick<FastifyBaseLogger, 'warn'>
  /** Milliseconds that only rise; injected by tests. */
  readonly now?: () => number
  /** For connection, status and body together. */
  readonly fetchMs?: number
}

/** Age from which on new keys are looked for. */
const freshMs = 600_000
/** Between two fetches that unknown kids have caused. */
export const unknownKidPauseMs = 30_000
/** Between a fetch that failed and the next one. */
export const retryPauseMs = 5000
const fetchMsDefault = 5000
export const setBytesMax = 256 * 1024
export const keysMax = 100
/** Less is within reach of a state. More than the maximum only keeps this process busy. */
const rsaBits = { min: 2048, max: 8192 } as const

/** Returns at once; the first fetch has begun then. */
export function openKeySet(options: KeySetOptions): KeySet {
  const { url, logger, now = () => performance.now(), fetchMs = fetchMsDefault } = options
  // Loaded here, because most gateways have no key server. undici follows no redirect unless it is told to.
  const client = import('undici').then(({ Agent, request }) => ({
    agent: new Agent({ connections: 1, maxResponseSize: setBytesMax }),
    request,
  }))
  const closing = new AbortController()
  let keys: ReadonlyMap<string, VerifyingKey> | undefined
  let keysFrom = 0
  let failedAt = Number.NEGATIVE_INFINITY
  let fetching: Promise<void> | undefined
  let unknownKidAt = Number.NEGATIVE_INFINITY
  let unknownKidFetch: Promise<void> | undefined

  const mayRetry = () => now() - failedAt >= retryPauseMs

  /** Starts a fetch, or joins the one under way. Never rejects. */
  function refresh(): Promise<void> {
    fetching ??= fetchKeys().finally(() => {
      fetching = undefined
    })
    return fetching
  }

  async function fetchKeys(): Promise<void> {
    const begunAt = now()
    try {
      const { agent, request } = await client
      const { statusCode, body } = await request(url, {
        dispatcher: agent,
        headers: { accept: 'application/json' },
        // The next fetch is minutes away: no connection is kept for it.
        reset: true,
        signal: AbortSignal.any([closing.signal, AbortSignal.timeout(fetchMs)]),
      })
      const text = await body.text()
      if (statusCode !== 200) throw new Error(`status ${statusCode}`)
      keys = readKeys(text)
      keysFrom = begunAt
    } catch (error) {
      failedAt = now()
      if (!closing.signal.aborted) logger.warn({ err: error }, 'the key set could not be fetched')
    }
  }

  async function firstKeys(): Promise<ReadonlyMap<string, VerifyingKey>> {
    if (keys === undefined && (fetching !== undefined || mayRetry())) await refresh()
    if (keys === undefined) {
      throw new Problem('auth_unavailable', undefined, { retryAfterSeconds: retryPauseMs / 1000 })
    }
    return keys
  }

  void refresh()

  return {
    async find(kid) {
      const key = (await firstKeys()).get(kid)
      if (key !== undefined) {
        if (now() - keysFrom > freshMs && mayRetry()) void refresh()
        return key
      }
      if (now() - unknownKidAt >= unknownKidPauseMs) {
        unknownKidAt = now()
        unknownKidFetch = refresh()
      }
      await unknownKidFetch
      return keys?.get(kid)
    },

    async close() {
      closing.abort()
      await fetching
      await (await client).agent.destroy()
    },
  }
}

/**
 * @param text a JWK set
 * @returns kid -> key, of the keys that can be used; others may be there, and are nobody's concern
 * @throws when it is no JWK set, or one beyond the limits
 */
export function readKeys(text: string): ReadonlyMap<string, VerifyingKey> {
  const { keys: listed } = toObject(parse(text))
  if (!Array.isArray(listed)) throw new Error('it is no key set')
  if (listed.length > keysMax) throw new Error(`it has more than ${keysMax} keys`)
  const keys = new Map<string, VerifyingKey>()
  const twice = new Set<string>()
  for (const one of listed) {
    const jwk = toObject(one)
    const key = readKey(jwk)
    if (key === undefined || typeof jwk.kid !== 'string' || jwk.kid === '') continue
    if (keys.has(jwk.kid)) twice.add(jwk.kid)
    keys.set(jwk.kid, key)
  }
  // Which of the two is meant is anybody's guess.
  for (const kid of twice) keys.delete(kid)
  return keys
}

/** RFC 7518, section 6, and RFC 8037, section 2: what only a private key has, or is the whole of a symmetric one. */
const privateMembers = ['d', 'p', 'q', 'dp', 'dq', 'qi', 'oth', 'k', 'priv'] as const

function readKey(jwk: Readonly<Record<string, unknown>>): VerifyingKey | undefined {
  const kind = kindOf(jwk)
  const usable =
    kind !== undefined &&
    (jwk.alg === undefined || jwk.alg === kind.algorithm) &&
    (jwk.use === undefined || jwk.use === 'sig') &&
    (jwk.key_ops === undefined || (Array.isArray(jwk.key_ops) && jwk.key_ops.includes('verify'))) &&
    // Published by mistake, and so anybody's.
    privateMembers.every((member) => jwk[member] === undefined)
  if (!usable) return undefined
  try {
    const key = createPublicKey({ key: kind.jwk, format: 'jwk' })
    if (kind.algorithm === 'RS256') {
      const { modulusLength = 0, publicExponent = 0n } = key.asymmetricKeyDetails ?? {}
      if (modulusLength < rsaBits.min || modulusLength > rsaBits.max) return undefined
      // With an exponent of 1 a signature is nothing but its own message.
      if (publicExponent < 3n) return undefined
    }
    return { algorithm: kind.algorithm, pem: key.export({ type: 'spki', format: 'pem' }).toString() }
  } catch {
    return undefined // whatever node:crypto says of it, it is no key
  }
}

interface KeyKind {
  readonly algorithm: KeyAlgorithm
  /** Its public members, which node:crypto checks. */
  readonly jwk: JsonWebKey
}

function kindOf({ kty, crv, n, e, x, y }: Readonly<Record<string, unknown>>): KeyKind | undefined {
  if (kty === 'RSA') return { algorithm: 'RS256', jwk: { kty, n, e } as JsonWebKey }
  if (kty === 'EC' && crv === 'P-256') return { algorithm: 'ES256', jwk: { kty, crv, x, y } as JsonWebKey }
  if (kty === 'OKP' && crv === 'Ed25519') return { algorithm: 'EdDSA', jwk: { kty, crv, x } as JsonWebKey }
  return undefined
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    throw new Error('it is not JSON') // the parser's own message quotes what came
  }
}

function toObject(value: unknown): Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null ? { ...value } : {}
}
