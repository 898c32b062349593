/**
 * Requests with an identity. Who asks is a user or the holder of a gateway key (`token`), or else a visitor: known by the
 * browser's cookie where that goes along, and by a token in memory where it does not.
 *
 * The first answer makes a visitor, so until one has come, one request goes alone: two would make two visitors. What starts
 * a run must not be it, since an answer that is lost takes the visitor with it, and the repeat would come from somebody
 * else; a small question goes before it, and where that is refused, so is what it went before. Without a cookie the client
 * makes the visitor's token itself, and nobody waits.
 *
 * At each await: what breaks, and a token that does not come, reject with ConnectionError, a refusal with GatewayError, the
 * caller's signal with its reason. A token that is refused is asked for once more where it comes from a function.
 */
import { ConnectionError, GatewayError, passes, refuse } from './errors.ts'
import { base64url } from './random.ts'
import { type ClientLimits, createBackOff, linkAbort, pause, unlessAborted } from './waiting.ts'

export interface TransportOptions {
  /** Default '': the same origin. */
  readonly baseUrl?: string
  /**
   * A JWT or gateway key, asked for each request; undefined is a visitor. After a 401 a function is asked once more, with
   * the token that was refused.
   */
  readonly token?: string | ((refused?: string) => string | undefined | Promise<string | undefined>)
  /** Of a visitor outside a browser, or across origins. */
  readonly visitorToken?: string
  /** Told of the visitor's token when there is a new one that a script can know. */
  readonly onVisitorToken?: (token: string) => void
  readonly credentials?: 'omit' | 'same-origin' | 'include'
  readonly fetch?: typeof globalThis.fetch
}

export interface Ask {
  /** JSON. */
  readonly body?: unknown
  readonly headers?: Readonly<Record<string, string>>
}

/** As fetch has it, of what a request of the AI SDK or of this library consists. */
export type Init = Pick<RequestInit, 'method' | 'headers' | 'body' | 'credentials'>

export interface RequestOptions extends Ask {
  readonly signal?: AbortSignal
  /** Whether it may be repeated when the answer does not come. So are GET, PUT and DELETE. */
  readonly idempotent?: boolean
  /** Of the whole answer. */
  readonly timeoutMs?: number
}

export interface Transport {
  readonly baseUrl: string
  readonly limits: ClientLimits
  /** One exchange with an identity, up to the head of the answer, whatever that is. What `init` says of who asks, counts. */
  open(url: string, init: Init, signal: AbortSignal): Promise<Response>
  /** The same, of what is wanted. @param path below `/api/v1` */
  ask(method: string, path: string, ask: Ask, signal: AbortSignal): Promise<Response>
  /** JSON in, JSON out. @returns undefined for an answer without a body */
  request<T>(method: string, path: string, options?: RequestOptions): Promise<T>
  requestBlob(path: string, options?: RequestOptions): Promise<Blob>
  /** The next request comes from somebody else. */
  forgetVisitor(): void
}

const visitorTokenBytes = 32
const visitorHeader = 'x-visitor-token'
const smallQuestion = '/api/v1/sessions?limit=1'

export function createTransport(options: TransportOptions, limits: ClientLimits): Transport {
  const baseUrl = (options.baseUrl ?? '').replace(/\/+$/, '')
  // Called as a plain function: a browser's fetch refuses to be anybody's method.
  const send = options.fetch ?? ((input: string, init: RequestInit) => fetch(input, init))
  const { credentials = 'same-origin' } = options
  let { visitorToken } = options
  /** A request that will be answered with who this is. */
  let identifying: Promise<unknown> | undefined
  let identified = false

  async function readToken(signal: AbortSignal, refused?: string): Promise<string | undefined> {
    if (typeof options.token !== 'function') return options.token
    const link = linkAbort(signal)
    const late = () => link.abort(new ConnectionError(`No token for ${limits.tokenMs} ms.`))
    const timer = setTimeout(late, limits.tokenMs)
    try {
      return await unlessAborted(Promise.resolve(options.token(refused)), link.signal)
    } finally {
      clearTimeout(timer)
      link.free()
    }
  }

  function takeVisitor(token: string): void {
    visitorToken = token
    options.onVisitorToken?.(token)
  }

  async function exchange(url: string, init: Init, token: string | undefined, signal: AbortSignal): Promise<Response> {
    const headers = new Headers(init.headers)
    if (token !== undefined) headers.set('authorization', `Bearer ${token}`)
    if (visitorToken !== undefined && !headers.has(visitorHeader)) headers.set(visitorHeader, visitorToken)
    let response: Response
    try {
      response = await send(url, {
        cache: 'no-store',
        ...init,
        headers,
        signal,
        credentials: init.credentials ?? credentials,
      })
    } catch (cause) {
      if (signal.aborted) throw signal.reason
      throw new ConnectionError('The gateway cannot be reached.', { cause })
    }
    const issued = response.headers.get(visitorHeader)
    if (issued !== null) takeVisitor(issued)
    return response
  }

  /** As {@link exchange}, when it has to be known first who this is. */
  async function exchangeAsVisitor(url: string, init: Init, signal: AbortSignal): Promise<Response> {
    const mode = init.credentials ?? credentials
    if (visitorToken === undefined && !identified && !sendsCookie(baseUrl, mode)) {
      takeVisitor(`vst_${base64url(visitorTokenBytes)}`)
    }
    while (visitorToken === undefined && !identified) {
      if (identifying !== undefined) {
        await unlessAborted(
          identifying.catch(() => undefined), // who asked is told; the next one asks anew
          signal,
        )
        continue
      }
      const isSafe = init.method === 'GET'
      const first = isSafe
        ? exchange(url, init, undefined, signal)
        : exchange(`${baseUrl}${smallQuestion}`, { method: 'GET', credentials: mode }, undefined, signal)
      identifying = first.then(learn).finally(() => {
        identifying = undefined
      })
      identifying.catch(() => undefined) // the same error is thrown by `first`
      const answer = await first
      // Who asks again, and when, is for whoever reads the answer to decide.
      if (isSafe || !tellsWho(answer)) return answer
      await discard(answer)
    }
    return exchange(url, init, undefined, signal)
  }

  function learn(answer: Response): void {
    if (tellsWho(answer)) identified = true
  }

  async function open(url: string, init: Init, signal: AbortSignal): Promise<Response> {
    const named = new Headers(init.headers)
    const token = named.has('authorization') ? undefined : await readToken(signal)
    if (token === undefined) {
      const isNamed = named.has('authorization') || named.has(visitorHeader)
      return isNamed ? exchange(url, init, undefined, signal) : exchangeAsVisitor(url, init, signal)
    }
    const response = await exchange(url, init, token, signal)
    if (response.status !== 401 || typeof options.token !== 'function') return response
    const fresh = await readToken(signal, token)
    if (fresh === undefined || fresh === token) return response
    await discard(response)
    return exchange(url, init, fresh, signal)
  }

  async function ask(method: string, path: string, { body, headers }: Ask, signal: AbortSignal): Promise<Response> {
    const response = await open(
      `${baseUrl}/api/v1${path}`,
      body === undefined
        ? { method, headers }
        : { method, headers: { 'content-type': 'application/json', ...headers }, body: JSON.stringify(body) },
      signal,
    )
    await refuse(response)
    return response
  }

  async function request<T>(
    method: string,
    path: string,
    read: (response: Response) => Promise<T>,
    options: RequestOptions,
  ): Promise<T> {
    const { signal, idempotent = method !== 'POST' && method !== 'PATCH', timeoutMs = limits.answerMs } = options
    const backOff = createBackOff(limits)
    for (let attempt = 1; ; attempt += 1) {
      const link = linkAbort(signal)
      const timer = setTimeout(() => link.abort(new ConnectionError(`No answer for ${timeoutMs} ms.`)), timeoutMs)
      try {
        const response = await ask(method, path, options, link.signal)
        try {
          return response.status === 204 ? (undefined as T) : await read(response)
        } catch (cause) {
          if (link.signal.aborted) throw link.signal.reason
          throw new ConnectionError('The answer broke off, or is not from the gateway.', { cause })
        }
      } catch (error) {
        const refused = error instanceof GatewayError ? error : undefined
        // The answer to an earlier attempt was lost: it is gone, as was asked.
        if (method === 'DELETE' && attempt > 1 && refused?.status === 404) return undefined as T
        const tooLong = (refused?.retryAfterMs ?? 0) > limits.backOffMaxMs
        if (!idempotent || attempt >= limits.requestAttemptsMax || !passes(error) || tooLong) throw error
        await pause(backOff.nextMs(refused?.retryAfterMs), signal)
      } finally {
        clearTimeout(timer)
        link.free()
      }
    }
  }

  return {
    baseUrl,
    limits,
    open,
    ask,
    request: <T>(method: string, path: string, options: RequestOptions = {}) =>
      request(method, path, (response) => response.json() as Promise<T>, options),
    requestBlob: (path, options = {}) =>
      request('GET', path, (response) => response.blob(), { timeoutMs: limits.exportMs, ...options }),
    forgetVisitor() {
      visitorToken = undefined
      identified = false
    },
  }
}

/**
 * A path, as a tag of its text, with the ids in it encoded: an id from an address or a form must not lead to somewhere else.
 * Dots alone are steps in a path also when they are encoded (URL standard, double-dot path segment); encoded twice they are an
 * id that nobody has.
 */
export function pathOf(texts: TemplateStringsArray, ...ids: readonly string[]): string {
  const encode = (id: string) => encodeURIComponent(id).replace(/^\.{1,2}$/, (dots) => dots.replaceAll('.', '%252E'))
  return String.raw({ raw: texts }, ...ids.map(encode))
}

/**
 * Whether the gateway knew who asked, or made somebody of them: then the browser has the cookie. A refusal that comes before
 * that (401, 403, 429) brings none, nor does what a proxy says in the gateway's place.
 */
function tellsWho({ status, headers }: Response): boolean {
  return headers.has(visitorHeader) || (status < 500 && status !== 401 && status !== 403 && status !== 429)
}

async function discard({ body }: Response): Promise<void> {
  await body?.cancel().catch(() => undefined) // it broke: it was not wanted
}

/** Whether the browser keeps the visitor's cookie and sends it along. */
function sendsCookie(baseUrl: string, credentials: string): boolean {
  const { location } = globalThis as { readonly location?: { readonly href: string; readonly origin: string } }
  if (location === undefined || credentials === 'omit') return false
  return credentials === 'include' || new URL(baseUrl || '/', location.href).origin === location.origin
}
