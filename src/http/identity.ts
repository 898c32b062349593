/**
 * Who a request comes from: a user, by a verified JWT, or a visitor, by a random token that only its holder knows.
 * A request with neither is a new visitor and gets a token. A credential that is present but unusable is 401: taking
 * it for anonymous would hide bugs and leave data that belongs to nobody.
 *
 * @fastify/jwt does the cryptography. Everything around it is here, because its own request method answers 500 to a
 * third of the malformed tokens that were tried and takes `Authorization: Basic …` for "no token".
 *
 * A stream ticket in the URL is a credential too, on the routes that say so. With one, no other is read: an EventSource
 * sends its cookie without being asked, and a ticket outlives the token that it was asked for with. Anywhere else a
 * ticket is a credential that cannot be used.
 */
import { createHash, randomBytes } from 'node:crypto'
import fastifyCookie from '@fastify/cookie'
import fastifyJwt from '@fastify/jwt'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import fastifyPlugin from 'fastify-plugin'
import type { Config } from '../config.ts'
import { Problem } from '../errors.ts'

/** Who a session belongs to. `key` is `user:<sub>` or `visitor:<sha256 of the token>` and is part of every SQL condition. */
export type Owner =
  | { readonly kind: 'user'; readonly key: string; readonly userId: string; readonly visitorHash: null }
  | { readonly kind: 'visitor'; readonly key: string; readonly userId: null; readonly visitorHash: string }

declare module 'fastify' {
  interface FastifyRequest {
    owner: Owner
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
  /** Called before a visitor token is issued. @throws Problem when there may be no more visitors now */
  readonly admitVisitor?: (request: FastifyRequest) => Promise<void>
}

const visitorTokenPattern = /^vst_[A-Za-z0-9_-]{43}$/
const visitorCookie = 'visitor_token'
const cookieSeconds = 400 * 24 * 3600 // the longest that browsers keep one
const subjectUnitsMax = 255
const tokenUnitsMax = 8192
const leewaySeconds = 30
const issuedAheadSecondsMax = 60

/** Decorates every request of the scope it is registered in with its owner, or refuses the request. */
export const identity = fastifyPlugin(async (app: FastifyInstance, options: IdentityOptions) => {
  const { auth, corsOrigins, readTicket, admitVisitor } = options
  // The algorithm is pinned to the key: a token cannot choose how it is verified.
  const secrets = [auth.jwtSecret, auth.supabaseJwtSecret].filter((secret) => secret !== undefined)
  const requiredClaims = ['exp', 'sub']
  if (auth.issuer !== undefined) requiredClaims.push('iss')
  if (auth.audience !== undefined) requiredClaims.push('aud')
  // The plugin wants a secret even when none is configured; one that nobody knows verifies nothing.
  await app.register(fastifyJwt, { secret: secrets[0] ?? randomBytes(32).toString('hex') })

  await app.register(fastifyCookie)

  app.decorateRequest('owner', null as never)
  app.addHook('onRequest', async (request, reply) => {
    refuseForeignSite(request, corsOrigins)
    const { ticket } = request.query as { ticket?: unknown }
    request.owner = ticket === undefined ? await authenticate(request, reply) : await readTicketHolder(request, ticket)
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
    if (authorization !== undefined) return readUser(authorization)
    const header = request.headers['x-visitor-token']
    if (header !== undefined) return readVisitor(String(header))
    const cookie = request.cookies[visitorCookie]
    if (cookie === undefined) {
      await admitVisitor?.(request)
      return issueVisitor(request, reply)
    }
    // A browser cannot mend a broken HttpOnly cookie by itself: refuse it, and take it away.
    if (!visitorTokenPattern.test(cookie)) reply.clearCookie(visitorCookie, cookieAttributes(request))
    return readVisitor(cookie)
  }

  function readUser(authorization: string): Owner {
    const token = /^bearer +(\S+)$/i.exec(authorization)?.[1]
    if (token === undefined || token.length > tokenUnitsMax) throw invalidToken()
    for (const secret of secrets) {
      const claims = verify(token, secret)
      if (claims !== undefined) return readClaims(claims)
    }
    throw invalidToken()
  }

  function verify(token: string, key: string): Record<string, unknown> | undefined {
    try {
      const claims: unknown = app.jwt.verify(token, {
        key,
        algorithms: ['HS256'],
        clockTolerance: leewaySeconds * 1000,
        requiredClaims,
        ...(auth.issuer === undefined ? {} : { allowedIss: auth.issuer }),
        ...(auth.audience === undefined ? {} : { allowedAud: auth.audience }),
      })
      return typeof claims === 'object' && claims !== null ? { ...claims } : undefined
    } catch {
      return undefined // whatever the library throws, and it throws many things: this key does not verify this token
    }
  }

  function readClaims(claims: Record<string, unknown>): Owner {
    const { sub, exp, iat, role } = claims
    const usable =
      typeof sub === 'string' &&
      sub.length >= 1 &&
      sub.length <= subjectUnitsMax &&
      sub.isWellFormed() &&
      !sub.includes('\u0000') &&
      typeof exp === 'number' &&
      (iat === undefined || (typeof iat === 'number' && iat <= Date.now() / 1000 + issuedAheadSecondsMax)) &&
      // Supabase's service key passes every check of the database; no browser has business with it.
      role !== 'service_role'
    if (!usable) throw invalidToken()
    return userNamed(sub)
  }

  function readVisitor(token: string): Owner {
    if (!visitorTokenPattern.test(token)) throw invalidToken()
    return visitorHashed(createHash('sha256').update(token).digest('hex'))
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
    return readVisitor(token)
  }
})

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
 * Browsers say where a request comes from. One from another site, whose origin is not on the list, is refused, so that
 * no foreign page can act with the visitor's cookie: a GET that starts a run needs no preflight.
 */
function refuseForeignSite(request: FastifyRequest, corsOrigins: readonly string[]): void {
  if (request.headers['sec-fetch-site'] !== 'cross-site') return
  const { origin } = request.headers
  if (origin !== undefined && (corsOrigins.includes(origin) || corsOrigins.includes('*'))) return
  throw new Problem('forbidden_origin')
}

// One text for every reason: which check failed helps only whoever is guessing.
function invalidToken(): Problem {
  return new Problem('invalid_token')
}
