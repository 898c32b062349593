/**
 * Who a request comes from: a user, by a verified JWT or a key of the gateway, or a visitor, by a random token that
 * only its holder knows. A request with neither is a new visitor and gets a token. A credential that is present but
 * unusable is 401: taking it for anonymous would hide bugs and leave data that belongs to nobody.
 *
 * @fastify/jwt does the cryptography. Everything around it is here, because its own request method answers 500 to a
 * third of the malformed tokens that were tried and takes `Authorization: Basic …` for "no token". Which key may verify a
 * token follows from its algorithm: ES256, RS256 and EdDSA are for the key of the set that `kid` names, HS256 is for the
 * secrets; no key is ever tried with another algorithm than its own. What a token says is checked in claims.ts, where its
 * keys come from is the matter of keys.ts. No verification is remembered: a token is verified each time.
 *
 * A stream ticket in the URL is a credential too, on the routes that say so. With one, no other is read: an EventSource
 * sends its cookie without being asked, and a ticket outlives the token that it was asked for with. Anywhere else a
 * ticket is a credential that cannot be used.
 *
 * A browser sends cookies whoever asks it to. So a request that carries nothing else is believed only when it comes from
 * the gateway's own pages, from an origin on the list, or from no browser.
 *
 * A key of the gateway is asked for in the database, so whoever makes some up is counted by address (limits.ts), and over the
 * limit nobody is asked: 429. A JWT that is made up costs no question, and is not counted.
 *
 * At each await nothing is half done: when the keys cannot be had the request is 503, when the database does not answer the
 * question for a ticket or a key of the gateway it is 503 too, and a user that could not be noted is noted the next time.
 */
import { createHash, randomBytes } from 'node:crypto'
import fastifyCookie from '@fastify/cookie'
// For the type of `app.jwt`.
import type {} from '@fastify/jwt'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import fastifyPlugin from 'fastify-plugin'
import type { Config } from '../config.ts'
import { Problem } from '../errors.ts'
import { type Bearer, leewaySeconds, readClaims, readToken, type Token } from './claims.ts'
import type { KeyAlgorithm, KeySet } from './keys.ts'

/** Who a session belongs to. `key` is `user:<sub>` or `visitor:<sha256 of the token>` and is part of every SQL condition. */
export type Owner =
  | { readonly kind: 'user'; readonly key: string; readonly userId: string; readonly visitorHash: null }
  | { readonly kind: 'visitor'; readonly key: string; readonly userId: null; readonly visitorHash: string }

declare module 'fastify' {
  interface FastifyRequest {
    owner: Owner
  }
  interface FastifyReply {
    /** Takes the visitor's cookie away. */
    clearVisitor(): void
  }
  interface FastifyContextConfig {
    /** Set on a route that a stream ticket opens, whose parameter `id` is the run's. */
    readonly takesTicket?: true
  }
}

/**
 * @param reconnects whether the client has received events before
 * @returns the owner's key, or undefined when the ticket does not open this run now
 */
export type TicketReader = (ticket: string, runId: string, reconnects: boolean) => Promise<string | undefined>

export interface IdentityOptions {
  readonly auth: Config['auth']
  readonly corsOrigins: readonly string[]
  readonly readTicket: TicketReader
  /**
   * @returns `sub` of the user whose key of the gateway this is; undefined when it cannot be used
   * @throws Problem `rate_limited` when too many that cannot were tried from where the request comes from
   */
  readonly readApiKey: (request: FastifyRequest, key: string) => Promise<string | undefined>
  /** Undefined when none is configured: then no token with a public key's algorithm is good. */
  readonly keys: KeySet | undefined
  /** Told of every request that a user makes, and waited for. Never rejects. */
  readonly noteUser: (issuer: string, subject: string) => Promise<void>
  /** Called before a visitor token is issued. @throws Problem when there may be no more visitors now */
  readonly admitVisitor: (request: FastifyRequest) => Promise<void>
}

const visitorTokenPattern = /^vst_[A-Za-z0-9_-]{43}$/
const visitorCookie = 'visitor_token'
const cookieSeconds = 400 * 24 * 3600 // the longest that browsers keep one
const tokenUnitsMax = 8192
const apiKeyPrefix = 'vk_'

/** Decorates every request of the scope it is registered in with its owner, or refuses the request. */
export const identity = fastifyPlugin(async (app: FastifyInstance, options: IdentityOptions) => {
  const { auth, corsOrigins, readTicket, readApiKey, keys, noteUser, admitVisitor } = options
  const secrets = [auth.jwtSecret, auth.supabaseJwtSecret].filter((secret) => secret !== undefined)
  if (secrets.length > 0 || keys !== undefined) {
    // Loaded here, because without a secret and without keys no token is ever verified.
    const { default: fastifyJwt } = await import('@fastify/jwt')
    // The plugin wants a secret even when none is configured; one that nobody knows verifies nothing.
    await app.register(fastifyJwt, { secret: secrets[0] ?? randomBytes(32).toString('hex') })
  }
  await app.register(fastifyCookie)

  app.decorateRequest('owner', null as never)
  app.decorateReply('clearVisitor', function clearVisitor() {
    this.clearCookie(visitorCookie, cookieAttributes(this.request))
  })
  app.addHook('onRequest', async (request, reply) => {
    refuseForeignSite(request, corsOrigins)
    const { ticket } = request.query as { ticket?: unknown }
    request.owner = await (ticket === undefined ? authenticate(request, reply) : readTicketHolder(request, ticket))
  })

  async function readTicketHolder(request: FastifyRequest, ticket: unknown): Promise<Owner> {
    const { id } = request.params as { id?: string }
    const taken = request.routeOptions.config.takesTicket === true
    if (!taken || id === undefined || typeof ticket !== 'string') throw invalidToken()
    const ownerKey = await readTicket(ticket, id, (request.headers['last-event-id'] ?? '') !== '')
    if (ownerKey === undefined) throw invalidToken()
    return ownerOf(ownerKey)
  }

  async function authenticate(request: FastifyRequest, reply: FastifyReply): Promise<Owner> {
    const { authorization } = request.headers
    if (authorization !== undefined) {
      const text = /^bearer +(\S+)$/i.exec(authorization)?.[1]
      if (text === undefined || text.length > tokenUnitsMax) throw invalidToken()
      // No JWT begins so: its first characters are those of a brace.
      if (text.startsWith(apiKeyPrefix)) return readKeyHolder(request, text)
      const bearer = await readBearer(text)
      if (bearer.kind === 'user') {
        await noteUser(bearer.issuer, bearer.subject)
        return userNamed(bearer.subject)
      }
    }
    const cookie = request.cookies[visitorCookie]
    if (request.headers['x-visitor-token'] === undefined && cookie !== undefined && !visitorTokenPattern.test(cookie)) {
      // A browser cannot mend a broken HttpOnly cookie by itself: it is refused below, and taken away.
      reply.clearCookie(visitorCookie, cookieAttributes(request))
    }
    const visitor = readVisitorToken(request)
    if (visitor !== undefined) return visitor
    await admitVisitor(request)
    return issueVisitor(request, reply)
  }

  async function readKeyHolder(request: FastifyRequest, key: string): Promise<Owner> {
    const subject = await readApiKey(request, key)
    if (subject === undefined) throw invalidToken()
    return userNamed(subject)
  }

  async function readBearer(text: string): Promise<Bearer> {
    const token = readToken(text)
    const bearer = token === undefined ? undefined : readClaims(token.claims, auth, Date.now() / 1000)
    if (token === undefined || bearer === undefined) throw invalidToken()
    if (!(await isSigned(text, token.header))) throw invalidToken()
    return bearer
  }

  async function isSigned(text: string, { alg, kid, crit }: Token['header']): Promise<boolean> {
    // An extension that has to be understood, and none is.
    if (crit !== undefined) return false
    if (alg === 'HS256') return secrets.some((secret) => verifies(text, secret, 'HS256'))
    if (!isKeyAlgorithm(alg) || typeof kid !== 'string' || keys === undefined) return false
    const key = await keys.find(kid)
    return key !== undefined && verifies(text, key.pem, key.algorithm)
  }

  /** @param algorithm the key's; a token that names another one is not verified */
  function verifies(text: string, key: string, algorithm: 'HS256' | KeyAlgorithm): boolean {
    try {
      app.jwt.verify(text, { key, algorithms: [algorithm], clockTolerance: leewaySeconds * 1000 })
      return true
    } catch {
      return false // whatever the library throws, and it throws many things: this key does not verify this token
    }
  }

  /** The same when a cookie is taken away: a browser ignores a Set-Cookie from another site that is not SameSite=None. */
  function cookieAttributes(request: FastifyRequest) {
    // Each proxy on the way may add its own; the first one met the browser.
    const forwarded = String(request.headers['x-forwarded-proto'] ?? '').split(',')[0]
    const https = request.protocol === 'https' || forwarded === 'https'
    return {
      path: '/',
      httpOnly: true,
      sameSite: auth.cookieSameSite,
      // Browsers drop a SameSite=None cookie that is not Secure. A forged header only changes the forger's own cookie.
      secure: https || auth.cookieSameSite === 'none',
    }
  }

  function issueVisitor(request: FastifyRequest, reply: FastifyReply): Owner {
    const token = `vst_${randomBytes(32).toString('base64url')}`
    reply.header('X-Visitor-Token', token)
    // As a header, because the plugin's own way runs in onSend, which a stream never comes to.
    const cookie = app.serializeCookie(visitorCookie, token, {
      ...cookieAttributes(request),
      maxAge: cookieSeconds,
    })
    reply.header('Set-Cookie', cookie)
    return visitorWith(token)
  }
})

/**
 * The visitor whose token a request carries, in the header or else in the cookie, whoever the request comes from.
 * @throws Problem `invalid_token` when it is not of the form of one
 */
export function readVisitorToken({ headers, cookies }: FastifyRequest): Owner | undefined {
  const token = headers['x-visitor-token'] ?? cookies[visitorCookie]
  return token === undefined ? undefined : visitorWith(String(token))
}

function visitorWith(token: string): Owner {
  if (!visitorTokenPattern.test(token)) throw invalidToken()
  return visitorHashed(createHash('sha256').update(token).digest('hex'))
}

function isKeyAlgorithm(alg: unknown): alg is KeyAlgorithm {
  return alg === 'ES256' || alg === 'RS256' || alg === 'EdDSA'
}

const userPrefix = 'user:'
const visitorPrefix = 'visitor:'

function userNamed(userId: string): Owner {
  return { kind: 'user', key: `${userPrefix}${userId}`, userId, visitorHash: null }
}

function visitorHashed(visitorHash: string): Owner {
  return { kind: 'visitor', key: `${visitorPrefix}${visitorHash}`, userId: null, visitorHash }
}

/** @param key as it is stored with what the owner has */
function ownerOf(key: string): Owner {
  return key.startsWith(userPrefix)
    ? userNamed(key.slice(userPrefix.length))
    : visitorHashed(key.slice(visitorPrefix.length))
}

/**
 * Browsers say where a request comes from: the newer ones always, in `Sec-Fetch-Site`, the older ones in the `Origin` of
 * what is not a GET. A foreign page must not act with a visitor's cookie, and a GET that starts a run needs no preflight.
 * A header with a credential is another matter: no foreign page gets a browser to send one without a preflight.
 */
function refuseForeignSite(request: FastifyRequest, corsOrigins: readonly string[]): void {
  const { origin, authorization, 'x-visitor-token': visitorToken, 'sec-fetch-site': site } = request.headers
  if (origin !== undefined && (corsOrigins.includes(origin) || corsOrigins.includes('*'))) return
  const { ticket } = request.query as { ticket?: unknown }
  const ambient = authorization === undefined && visitorToken === undefined && ticket === undefined
  const welcome = ambient
    ? site === 'same-origin' ||
      site === 'none' ||
      (origin === undefined ? site === undefined : isOwnOrigin(origin, request.host))
    : site !== 'cross-site'
  if (!welcome) throw new Problem('forbidden_origin')
}

/** @param host as the browser wrote it, or as the proxy says that it did */
function isOwnOrigin(origin: string, host: string): boolean {
  if (!URL.canParse(origin)) return false
  const { protocol, host: originHost } = new URL(origin)
  // Parsed as the origin was, so that neither letters' case nor a port that goes without saying makes a difference.
  const own = `${protocol}//${host}`
  return URL.canParse(own) && new URL(own).host === originHost
}

// One text for every reason: which check failed helps only whoever is guessing.
function invalidToken(): Problem {
  return new Problem('invalid_token')
}
