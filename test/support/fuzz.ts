/**
 * Sends what fuzz-requests.ts makes to a running gateway, as bytes on sockets, and judges each answer. A gateway may
 * refuse anything; it must not fail at it:
 *
 * - every request is answered, within `answerMsMax`;
 * - no 500, and no other 5xx without a problem document with a code of the catalogue;
 * - the status is one that the document names for the route;
 * - the body is what its Content-Type says.
 *
 * Requests come in blocks. Before each block real sessions, runs and messages are made, whose ids take the places of
 * `@session0@` and the like; so one request can be sent again alone, by seed and index.
 */
import { connect } from 'node:net'
import { type FakeCall, type Steps, say } from '../../scripts/fake-upstream.ts'
import { catalogue } from '../../src/errors.ts'
import { createClient } from './client.ts'
import { type FuzzRequest, knownName, makeRequests, type Operation, refPattern, type Schema } from './fuzz-requests.ts'

export interface FuzzOptions {
  readonly url: string
  readonly requests: number
  readonly seed: number
  /** Only this one, after the preparation of its block. */
  readonly only?: number
  /** A token for a user, when the gateway knows its secret. */
  readonly userToken?: string
  readonly onFailure?: (failure: FuzzFailure) => void
  readonly signal?: AbortSignal
}

export interface FuzzFailure {
  readonly index: number
  readonly reason: string
  /** What was sent, made as small as it could be. */
  readonly request: string
  readonly answer: string
}

export interface FuzzReport {
  readonly sent: number
  readonly failures: readonly FuzzFailure[]
  readonly statuses: Readonly<Record<string, number>>
  /** `METHOD /path` -> answers with 2xx: a route that is only ever refused is not tested. */
  readonly accepted: Readonly<Record<string, number>>
  readonly slowestMs: number
}

export interface RawReply {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: Buffer
}

const blockRequests = 250
const concurrency = 16
/** Requests before what they have deleted is made again. */
const freshRequests = 60
const answerMsMax = 10_000
const failuresMax = 20
const shrinkTriesMax = 60
const shownCharactersMax = 600

type Ids = Readonly<Record<string, readonly string[]>>

export async function fuzz(options: FuzzOptions): Promise<FuzzReport> {
  const { url, requests, seed, only, onFailure = () => undefined, signal } = options
  const operations = await readOperations(url)
  const failures: FuzzFailure[] = []
  const statuses: Record<string, number> = {}
  const accepted = Object.fromEntries(operations.map(({ method, path }) => [`${method} ${path}`, 0]))
  let sent = 0
  let slowestMs = 0

  /** @returns whether something may be gone now */
  async function run(request: FuzzRequest, index: number, ids: Ids): Promise<boolean> {
    const startedAt = performance.now()
    const { reason, reply } = await judge(url, request, ids)
    slowestMs = Math.max(slowestMs, performance.now() - startedAt)
    sent += 1
    const status = String(reply?.status ?? 'none')
    statuses[status] = (statuses[status] ?? 0) + 1
    const route = `${request.operation.method} ${request.operation.path}`
    if (request.method === request.operation.method && status.startsWith('2')) accepted[route] = accepted[route]! + 1
    if (reason === undefined) return request.method === 'DELETE' && status.startsWith('2')
    const small = await shrink(url, request, ids, reason)
    const bytes = encodeRequest(small, ids).toString('latin1')
    const answer = reply === undefined ? 'nothing' : `${reply.status} ${reply.body.toString()}`
    const failure = { index, reason, request: show(bytes), answer: show(answer) }
    failures.push(failure)
    onFailure(failure)
    return false
  }

  for (let start = 0; start < requests; start += blockRequests) {
    if (signal?.aborted === true || failures.length >= failuresMax) break
    if (only !== undefined && Math.floor(only / blockRequests) * blockRequests !== start) continue
    const block = makeRequests(operations, seed + start, Math.min(blockRequests, requests - start))
    let ids = prepare(url, options.userToken)
    let isStale = false
    let freshAt = start
    const queue = block.map((request, i) => ({ request, index: start + i }))
    const left = only === undefined ? queue : queue.filter(({ index }) => index === only)
    const workers = Array.from({ length: concurrency }, async () => {
      for (let next = left.shift(); next !== undefined; next = left.shift()) {
        const hasDeleted = await run(next.request, next.index, await ids)
        isStale ||= hasDeleted
        if (!isStale || next.index < freshAt + freshRequests) continue
        isStale = false
        freshAt = next.index
        ids = prepare(url, options.userToken)
      }
    })
    await Promise.all(workers)
    // The last ones may have been made for nobody.
    await ids
  }
  return { sent, failures, statuses, accepted, slowestMs }
}

/** The provider: most replies come at once, and some take so long that other requests find their session busy. */
export function sayQuickly({ index }: FakeCall): Steps {
  return index % 4 === 3 ? say({ tokens: 10, paceMs: 10 }) : say({ text: 'Fuzzed, and none the worse.' })
}

/** Something real of each kind, made the way a client does. */
async function prepare(url: string, userToken: string | undefined): Promise<Ids> {
  const visitors = ['f', 'g'].map((letter) => `vst_${letter.repeat(43)}`)
  const client = createClient(url, { 'x-visitor-token': visitors[0]! })
  const v1 = '/api/v1'
  const first = await client.post(`${v1}/sessions`, { title: 'Fuzzed', input: 'Fuzz', metadata: { a: 1 } })
  const replies = await Promise.all(
    ['a', 'b', 'c'].map((name) =>
      client.post(`${v1}/chat/message`, { message: `Hello ${name}`, client_message_id: `fuzz-${name}` }),
    ),
  )
  const made = [first.body.id, ...replies.map(({ body }) => body.session?.id)]
  const [page, ticket] = await Promise.all([
    client.get(`${v1}/sessions?limit=1`),
    client.post(`${v1}/stream-tickets`, { run_id: replies[0]?.body.run?.id }),
    ...made.map((id) => client.put(`${v1}/sessions/${id}/artifacts/${knownName}`, { body: 'Fuzz' })),
  ])
  const given = (values: readonly unknown[]) => values.filter((value) => typeof value === 'string').map(String)
  const bodies = replies.map(({ body }) => body)
  return {
    session: given(made),
    run: given(bodies.map((body) => body.run?.id)),
    message: given(bodies.flatMap((body) => [body.message?.id, body.user_message?.id])),
    cursor: given([page.body.next_cursor]),
    ticket: given([ticket.body.ticket]),
    event: ['1-1', '1-2', '1-3'],
    key: ['fuzz-a', 'fuzz-b', 'fuzz-c'],
    visitor: visitors,
    user: given([userToken]),
  }
}

async function readOperations(url: string): Promise<readonly Operation[]> {
  const document = (await (await fetch(`${url}/openapi.json`)).json()) as {
    paths: Record<string, Record<string, DocumentedOperation>>
  }
  return Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, { parameters = [], requestBody, responses }]) => ({
      method: method.toUpperCase(),
      path,
      parameters,
      body: requestBody?.content['application/json']?.schema,
      types: Object.keys(requestBody?.content ?? {}),
      statuses: Object.keys(responses),
    })),
  )
}

interface DocumentedOperation {
  readonly parameters?: Operation['parameters']
  readonly requestBody?: { readonly content: Readonly<Record<string, { readonly schema: Schema }>> }
  readonly responses: Readonly<Record<string, unknown>>
}

function encodeRequest(request: FuzzRequest, ids: Ids): Buffer {
  const fill = (text: string) =>
    text.replaceAll(refPattern, (_all, kind: string, n: string) => {
      const known = ids[kind] ?? []
      return known[Number(n) % Math.max(1, known.length)] ?? '01890000-0000-7000-8000-000000000000'
    })
  const { method, path, query, headers, body } = request
  const text = fill(body?.text ?? '')
  const bytes = Buffer.from(text, body?.binary === true ? 'latin1' : 'utf8')
  const target = `${path}${query.length === 0 ? '' : `?${query.join('&')}`}`
  const lines = [
    `${method} ${fill(target)} HTTP/1.1`,
    ...(headers.some(([name]) => name === 'Host') ? [] : ['Host: gateway.example']),
    ...headers.map(([name, value]) => `${name}: ${fill(value)}`),
    ...(body === undefined ? [] : [`Content-Length: ${bytes.length}`]),
    'Connection: close',
  ]
  // The target as UTF-8, as careless clients send it; headers are bytes.
  const head = lines.map((line, i) => Buffer.from(`${line}\r\n`, i === 0 ? 'utf8' : 'latin1'))
  return Buffer.concat([...head, Buffer.from('\r\n'), bytes])
}

async function judge(url: string, request: FuzzRequest, ids: Ids): Promise<{ reason?: string; reply?: RawReply }> {
  let reply: RawReply
  try {
    reply = await send(url, encodeRequest(request, ids))
  } catch (error) {
    if (error instanceof CutOff && (await isErased(url, request, ids, error.reply))) return { reply: error.reply }
    return { reason: (error as Error).message }
  }
  const reason = complain(request, reply)
  return reason === undefined ? { reply } : { reason, reply }
}

/** An answer that ended before its end. */
class CutOff extends Error {
  readonly reply: RawReply

  constructor(reply: RawReply) {
    super('the body broke off')
    this.reply = reply
  }
}

/** Whether the stream was that of a run which another request has purged meanwhile: then it ends in no other way. */
async function isErased(url: string, request: FuzzRequest, ids: Ids, { headers }: RawReply): Promise<boolean> {
  const run = headers['x-run-id']
  const hasOwner = request.headers.some(([name]) => /^(x-visitor-token|authorization|cookie)$/i.test(name))
  if (!hasOwner || run === undefined || headers['content-type']?.startsWith('text/event-stream') !== true) return false
  const question = { ...request, method: 'GET', path: `/api/v1/runs/${run}`, query: [], body: undefined }
  return (await send(url, encodeRequest(question, ids))).status === 404
}

/** @returns what is wrong with the answer; undefined when nothing is */
export function complain(
  request: Pick<FuzzRequest, 'operation' | 'method' | 'path'>,
  reply: RawReply,
): string | undefined {
  const { status, headers, body } = reply
  const type = (headers['content-type'] ?? '').split(';')[0]
  if (status === 500) return 'status 500'
  if (status < 200 || status > 599) return `status ${status}`
  // What could not be read is answered without knowing its method, and with the end of the connection.
  const isUnread = headers['content-security-policy'] === undefined && [400, 431].includes(status)
  if (request.method === 'HEAD' && isUnread && type === 'application/problem+json') return undefined
  if (request.method === 'HEAD' || status === 204 || status === 304) {
    return body.length === 0 ? undefined : `status ${status} to ${request.method} with a body`
  }
  const text = decodeUtf8(body)
  if (text === undefined) return 'the body is no UTF-8'
  if (status >= 400) {
    const problem = parseJson(text) as { status?: unknown; code?: unknown } | undefined
    if (isHealth(request) && status === 503) return undefined
    if (isUi(request) && type === 'text/plain') return complainOfCode(headers['x-error-code'])
    if (isOpenai(request) && type === 'application/json') {
      return complainOfCode((parseJson(text) as { error?: { code?: unknown } } | undefined)?.error?.code)
    }
    if (type !== 'application/problem+json') return `status ${status} as ${type}`
    if (problem?.status !== status) return `status ${status} with a problem document of another status`
    return complainOfCode(problem.code)
  }
  const { statuses, method, path } = request.operation
  const asDocumented = request.method === method && matches(path, request.path)
  if (asDocumented && !statuses.some((known) => known === String(status) || known === `${String(status)[0]}XX`)) {
    return `status ${status}, which the document does not name`
  }
  if (type === 'application/json' && parseJson(text) === undefined) return 'the body is no JSON'
  const blocks = isUi(request) ? uiStream : isOpenai(request) ? openaiStream : nativeStream
  if (type === 'text/event-stream' && !blocks.test(text)) return 'the body is no event stream'
  return undefined
}

function complainOfCode(code: unknown): string | undefined {
  if (!Object.hasOwn(catalogue, String(code))) return 'a code that is not in the catalogue'
  return code === 'internal' ? 'code internal' : undefined
}

const nativeStream = /^retry: \d+\n(([a-z]+: [^\n]*|: hb|)\n)*\n$/
const uiStream = /^((data|id): [^\n]*\n|: keep-alive\n|\n)*data: \[DONE\]\nid: \S+\n\n$/

// Of completions, which end with a mark or an error, and of responses, whose last event says by its name that it is.
const openaiStream =
  /^(data: [^\n]*\n\n|: keep-alive\n\n)*data: (\[DONE\]|\{"error":[^\n]*)\n\n$|^(event: [a-z_.]+\ndata: [^\n]*\n\n|: keep-alive\n\n)*event: response\.(completed|incomplete|failed)\ndata: [^\n]*\n\n$/

/** The surfaces for clients of OpenAI refuse in its words. */
const isOpenai = ({ path }: Pick<FuzzRequest, 'path'>) => path.startsWith('/v1/')

/** The surface for the AI SDK refuses in plain text. */
const isUi = ({ path }: Pick<FuzzRequest, 'path'>) => path.startsWith('/api/chat')

const isHealth = ({ path }: Pick<FuzzRequest, 'path'>) => path.startsWith('/health/')

function matches(pattern: string, path: string): boolean {
  return new RegExp(`^${pattern.replaceAll(/\{\w+\}/g, '[^/]+')}$`).test(path)
}

function decodeUtf8(bytes: Buffer): string | undefined {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch {
    return undefined // that is the question
  }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text) as unknown
  } catch {
    return undefined // that is the question
  }
}

/** @throws Error when nothing that is HTTP comes, or not in time, or not whole */
export function send(url: string, bytes: Buffer): Promise<RawReply> {
  const { hostname, port } = new URL(url)
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = []
    const socket = connect(Number(port), hostname)
    let failure: string | undefined
    const timer = setTimeout(() => {
      failure = `no whole answer in ${answerMsMax} ms`
      socket.destroy()
    }, answerMsMax)
    socket.on('connect', () => socket.write(bytes))
    socket.on('data', (chunk) => chunks.push(chunk))
    socket.on('error', (error: NodeJS.ErrnoException) => {
      // A refusal that comes before the whole body was read ends with a reset; what came before it counts.
      if (error.code === 'ECONNREFUSED') failure = 'nobody listens any more'
    })
    socket.on('close', () => {
      clearTimeout(timer)
      if (failure !== undefined) reject(new Error(failure))
      else {
        try {
          resolve(readReply(Buffer.concat(chunks)))
        } catch (error) {
          reject(error)
        }
      }
    })
  })
}

/** @throws Error for what is no whole HTTP answer */
export function readReply(bytes: Buffer): RawReply {
  const end = bytes.indexOf('\r\n\r\n')
  if (end < 0) throw new Error(`no answer, but ${JSON.stringify(bytes.toString('latin1', 0, 100))}`)
  const [first = '', ...lines] = bytes.toString('latin1', 0, end).split('\r\n')
  const status = Number(/^HTTP\/1\.1 (\d{3}) /.exec(first)?.[1])
  const rest = bytes.subarray(end + 4)
  if (status === 100) return readReply(rest)
  const headers = Object.fromEntries(
    lines.map((line) => [line.slice(0, line.indexOf(':')).toLowerCase(), line.slice(line.indexOf(':') + 1).trim()]),
  )
  if (headers['transfer-encoding'] === 'chunked') {
    const body = joinChunks(rest)
    if (body === undefined) throw new CutOff({ status, headers, body: Buffer.alloc(0) })
    return { status, headers, body }
  }
  const length = headers['content-length']
  // An answer to HEAD has a length and no body.
  if (length !== undefined && rest.length !== 0 && rest.length !== Number(length)) {
    throw new Error(`a body of ${rest.length} bytes instead of ${length}`)
  }
  return { status, headers, body: rest }
}

/** @returns undefined when the last chunk is missing */
function joinChunks(bytes: Buffer): Buffer | undefined {
  const parts: Buffer[] = []
  for (let at = 0; ; ) {
    const lineEnd = bytes.indexOf('\r\n', at)
    const size = lineEnd < 0 ? Number.NaN : Number.parseInt(bytes.toString('latin1', at, lineEnd), 16)
    if (Number.isNaN(size)) return undefined
    if (size === 0) return Buffer.concat(parts)
    parts.push(bytes.subarray(lineEnd + 2, lineEnd + 2 + size))
    at = lineEnd + 2 + size + 2
  }
}

/** Leaves out whatever the failure does not need, as long as it stays the same. */
async function shrink(url: string, request: FuzzRequest, ids: Ids, reason: string): Promise<FuzzRequest> {
  let small = request
  let tries = 0
  for (let found = true; found; ) {
    found = false
    for (const candidate of smaller(small)) {
      tries += 1
      if (tries > shrinkTriesMax) return small
      if ((await judge(url, candidate, ids)).reason !== reason) continue
      small = candidate
      found = true
      break
    }
  }
  return small
}

function* smaller(request: FuzzRequest): Iterable<FuzzRequest> {
  const without = <T>(list: readonly T[], index: number) => list.filter((_, i) => i !== index)
  for (const index of request.headers.keys()) yield { ...request, headers: without(request.headers, index) }
  for (const index of request.query.keys()) yield { ...request, query: without(request.query, index) }
  if (request.body === undefined) return
  yield { ...request, body: undefined }
  const value = request.body.binary ? undefined : parseJson(request.body.text)
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return
  for (const key of Object.keys(value)) {
    const rest = Object.fromEntries(Object.entries(value).filter(([name]) => name !== key))
    yield { ...request, body: { text: JSON.stringify(rest), binary: false } }
  }
}

function show(text: string): string {
  return JSON.stringify(
    text.length <= shownCharactersMax ? text : `${text.slice(0, shownCharactersMax)}… (${text.length})`,
  )
}

export function describeReport({ sent, failures, statuses, accepted, slowestMs }: FuzzReport): string {
  const counts = Object.entries(statuses).map(([status, count]) => `${status}: ${count}`)
  const never = Object.entries(accepted).filter(([, count]) => count === 0)
  return [
    `${sent} requests, ${failures.length} failures; statuses ${counts.join(', ')}; slowest ${Math.round(slowestMs)} ms`,
    ...(never.length === 0 ? [] : [`never accepted: ${never.map(([route]) => route).join(', ')}`]),
  ].join('\n')
}
