/**
 * Who may do what: every route of /openapi.json, asked by its owner, another user, another visitor, somebody new and
 * somebody with a bad token, with the exact status for each. What is somebody's answers 404 to everybody else, and is the
 * same afterwards.
 *
 * The table must name every route of the document and no other, so a new route fails here until it has a row:
 *
 *     'GET /api/v1/things/{id}': { make: session, owner: 200 },
 *
 * `make` makes something fresh for the owner, which the others must neither see nor change; `{id}` is the id of it that
 * `id` names, the session by default. Others get 404 and a bad token 401, unless the row says otherwise.
 */
import { type Test, test } from 'tap'
import { chunk, doneMarker, say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { type Answer, type Client, createClient, isDelta } from '../support/client.ts'
import { type DatabaseKind, databases } from '../support/database.ts'
import { type Gateway, startGateway } from '../support/gateway.ts'
import { inSeconds, makeToken } from '../support/tokens.ts'

/** What the owner has. */
interface Subject {
  readonly session: string
  readonly run: string
  /** The question, and the reply to it. */
  readonly question: string
  readonly message: string
  /** What others must not change. */
  read(): Promise<unknown>
}

type Make = (owner: Client, url: string) => Promise<Subject>
type Caller = 'owner' | 'otherUser' | 'otherVisitor' | 'nobody' | 'badToken'

interface Row {
  readonly make: Make
  /** Which id stands for `{id}`. */
  readonly id?: 'session' | 'run' | 'message' | 'question' | 'response'
  readonly query?: (subject: Subject) => string
  /** @param prepared what `before` has answered */
  readonly body?: (subject: Subject, prepared: unknown) => unknown
  /** Only the owner sends them. */
  readonly ownerHeaders?: Readonly<Record<string, string>>
  /** Before anybody asks, as the owner. */
  readonly before?: (owner: Client, subject: Subject) => Promise<Answer>
  readonly owner: number
  /** Of all others, unless one of them is named. */
  readonly others?: number
  readonly otherUser?: number
  readonly otherVisitor?: number
  readonly nobody?: number
  readonly badToken?: number
}

const secret = 'a secret of more than 32 bytes, for the matrix'
const canary = 'canary of the owner'
/** Of a visitor whose sessions the owner may claim. */
const visitorToken = `vst_${'c'.repeat(43)}`
const noIds = { session: '', run: '', question: '', message: '' }
const v1 = '/api/v1'

const nothing: Make = async () => ({ ...noIds, read: async () => undefined })

/** What is everybody's. */
const model: Make = async () => ({ ...noIds, session: 'balanced', read: async () => undefined })

const session: Make = async (owner) => {
  const { body } = await owner.post(`${v1}/sessions`, { title: canary, metadata: { canary } })
  const read = async () => (await owner.get(`${v1}/sessions/${body.id}`)).body
  return { ...noIds, session: body.id, read }
}

const reply: Make = async (owner) => {
  const { body } = await owner.post(`${v1}/chat/message`, { message: canary })
  const { session, run, message, user_message: question } = body
  async function read() {
    const [own, messages, made] = await Promise.all([
      owner.get(`${v1}/sessions/${session.id}`),
      owner.get(`${v1}/sessions/${session.id}/messages`),
      owner.get(`${v1}/runs/${run.id}`),
    ])
    return [own.body, messages.body, made.body]
  }
  return { session: session.id, run: run.id, question: question.id, message: message.id, read }
}

/** A reply that has called a tool of the owner's. */
const called: Make = async (owner) => {
  const { body } = await owner.post(`${v1}/chat/message`, { message: calling })
  const { session, run, message, user_message: question } = body
  const read = async () => (await owner.get(`${v1}/sessions/${session.id}/messages`)).body
  return { session: session.id, run: run.id, question: question.id, message: message.id, read }
}
const toolResults = ({ session, message }: Subject) => ({
  session_id: session,
  parent_id: message,
  tool_results: [{ call_id: 'call', output: canary }],
})

/** A reply that does not end by itself. */
const running: Make = async (owner) => {
  const stream = await owner.send({ message: endless })
  const { data } = await stream.until(isRun)
  await stream.until(isDelta)
  stream.close()
  async function read() {
    const { status, stop_requested_at } = (await owner.get(`${v1}/runs/${data.run_id}`)).body
    return { status, stop_requested_at }
  }
  return {
    session: data.session_id,
    run: data.run_id,
    question: data.user_message_id,
    message: data.message_id,
    read,
  }
}

async function withInput(owner: Client): Promise<Subject> {
  const { body } = await owner.post(`${v1}/sessions`, { title: canary, input: canary })
  const read = async () => (await owner.get(`${v1}/sessions/${body.id}`)).body
  return { ...noIds, session: body.id, read }
}

async function deleted(owner: Client, url: string): Promise<Subject> {
  const subject = await session(owner, url)
  await owner.delete(`${v1}/sessions/${subject.session}`)
  return { ...subject, read: async () => (await owner.get(`${v1}/sessions?status=deleted`)).body }
}

/** What a visitor has, whose token the owner knows. */
async function visited(_owner: Client, url: string): Promise<Subject> {
  return session(createClient(url, { 'x-visitor-token': visitorToken }), url)
}

function putArtifact(owner: Client, { session }: Subject): Promise<Answer> {
  return owner.put(`${v1}/sessions/${session}/artifacts/notes`, { body: { canary } })
}

const responseId = (run: string) => `resp_${run.replaceAll('-', '')}`
const uiMessage = (id: string) => ({
  id,
  messages: [{ id: 'ui', role: 'user', parts: [{ type: 'text', text: 'Hello' }] }],
})
const endless = `${canary}, without an end`
const calling = `${canary}, with a tool`
const isRun = ({ event }: { event: string }) => event === 'run'

function* callTool() {
  const call = { index: 0, id: 'call', type: 'function', function: { name: 'look', arguments: '{}' } }
  yield chunk({ role: 'assistant', tool_calls: [call] })
  yield chunk({}, 'tool_calls')
  yield doneMarker
}

/** The same for all: nobody is asked who they are. */
const open = (owner: number): Row => ({ make: nothing, owner, others: owner, badToken: owner })
/** Everybody has their own, and sees nobody else's. */
const own = (row: Omit<Row, 'others'>): Row => ({ ...row, others: row.owner })

const rows: Readonly<Record<string, Row | readonly Row[]>> = {
  'GET /health/live': open(200),
  'GET /health/ready': open(200),
  'GET /health/db': open(200),
  'GET /metrics': open(200),
  'POST /api/v1/sessions': [
    own({ make: session, body: () => ({ title: 'Own' }), owner: 201 }),
    { make: session, body: ({ session }) => ({ id: session, title: 'Taken' }), owner: 200 },
  ],
  'GET /api/v1/sessions': own({ make: session, owner: 200 }),
  'GET /api/v1/sessions/{id}': { make: session, owner: 200 },
  'GET /api/v1/sessions/{id}/messages': { make: reply, owner: 200 },
  'POST /api/v1/sessions/{id}/stop': [
    { make: running, owner: 200 },
    { make: reply, owner: 204 },
  ],
  'POST /api/v1/chat/stream': [
    own({ make: reply, body: () => ({ message: 'Hello' }), owner: 200 }),
    { make: reply, body: ({ session }) => ({ message: 'Hello', session_id: session }), owner: 200 },
    own({ make: reply, body: () => ({ message: 'Hello', client_message_id: 'same' }), owner: 200 }),
    { make: called, body: toolResults, owner: 200 },
  ],
  'GET /api/v1/chat/stream': [
    own({ make: reply, query: () => 'message=Hello&client_message_id=same', owner: 200 }),
    {
      make: reply,
      query: ({ session }) => `message=Hello&client_message_id=same&session_id=${session}`,
      owner: 200,
    },
  ],
  'POST /api/v1/chat/message': [
    own({ make: reply, body: () => ({ message: 'Hello' }), owner: 200 }),
    { make: reply, body: ({ session }) => ({ message: 'Hello', session_id: session }), owner: 200 },
    {
      make: reply,
      body: ({ session, message }) => ({ message: 'Hello', session_id: session, parent_id: message }),
      owner: 200,
    },
    { make: called, body: toolResults, owner: 200 },
    { make: reply, body: toolResults, owner: 400 },
  ],
  'GET /api/v1/runs/{id}': { make: reply, id: 'run', owner: 200 },
  'GET /api/v1/runs/{id}/events': [
    { make: reply, id: 'run', owner: 200 },
    { make: reply, id: 'run', query: () => 'ticket=1234567890123.x', owner: 401, others: 401 },
  ],
  'POST /api/v1/runs/{id}/stop': [
    { make: running, id: 'run', owner: 200 },
    { make: reply, id: 'run', owner: 200 },
  ],
  'POST /api/v1/stream-tickets': { make: reply, body: ({ run }) => ({ run_id: run }), owner: 200 },
  'PATCH /api/v1/sessions/{id}': { make: session, body: () => ({ title: 'Changed' }), owner: 200 },
  'DELETE /api/v1/sessions/{id}': [
    { make: session, owner: 204 },
    { make: reply, query: () => 'purge=true', owner: 204 },
    { make: running, owner: 204 },
  ],
  'POST /api/v1/sessions/{id}/restore': { make: deleted, owner: 200 },
  'POST /api/v1/sessions/{id}/start': { make: withInput, body: () => ({}), owner: 202 },
  'POST /api/v1/sessions/{id}/kill': { make: running, owner: 200 },
  'GET /api/v1/sessions/{id}/export': ['json', 'md', 'ndjson'].map(
    (format): Row => ({ make: reply, query: () => `format=${format}`, owner: 200 }),
  ),
  'POST /api/v1/sessions/import': own({
    make: session,
    before: (owner, { session }) => owner.get(`${v1}/sessions/${session}/export?format=json`),
    body: (_subject, exported) => exported,
    owner: 201,
  }),
  'POST /api/v1/sessions/claim': {
    make: visited,
    ownerHeaders: { 'x-visitor-token': visitorToken },
    owner: 200,
    // Who shows no visitor's token asks for nothing; who is no user cannot take anything.
    otherUser: 400,
    otherVisitor: 401,
    nobody: 401,
  },
  'GET /api/v1/me/export': own({ make: reply, owner: 200 }),
  'GET /api/v1/me/usage': own({ make: reply, owner: 200 }),
  'DELETE /api/v1/me': own({ make: reply, owner: 204 }),
  'POST /api/v1/messages/{id}/regenerate': { make: reply, id: 'message', body: () => ({}), owner: 202 },
  'POST /api/v1/messages/{id}/edit': { make: reply, id: 'question', body: () => ({ message: 'Edited' }), owner: 202 },
  'PUT /api/v1/messages/{id}/feedback': { make: reply, id: 'message', body: () => ({ rating: 1 }), owner: 200 },
  'PUT /api/v1/messages/{id}/retrieval': {
    make: reply,
    id: 'message',
    body: () => ({ retrieved_docs: [] }),
    owner: 200,
  },
  'GET /api/v1/sessions/{id}/artifacts': { make: session, before: putArtifact, owner: 200 },
  'PUT /api/v1/sessions/{id}/artifacts/{name}': [
    { make: session, body: () => ({ body: { a: 1 } }), owner: 201 },
    { make: session, before: putArtifact, body: () => ({ body: { a: 1 } }), owner: 200 },
  ],
  'GET /api/v1/sessions/{id}/artifacts/{name}': { make: session, before: putArtifact, owner: 200 },
  'DELETE /api/v1/sessions/{id}/artifacts/{name}': { make: session, before: putArtifact, owner: 204 },
  'POST /api/chat': { make: reply, body: ({ session }) => uiMessage(session), owner: 200 },
  // Of a chat that is not there, as of one that is somebody else's, there is nothing.
  'GET /api/chat/{id}': { make: reply, owner: 200, others: 200 },
  'GET /api/chat/{id}/stream': [
    { make: running, owner: 200, others: 204 },
    { make: session, owner: 204, others: 204 },
  ],
  'POST /api/chat/{id}/stop': { make: running, owner: 200, others: 204 },
  'GET /v1/models': { make: nothing, owner: 200, others: 200 },
  'GET /v1/models/{id}': { make: model, owner: 200, others: 200 },
  'POST /v1/chat/completions': {
    make: reply,
    body: ({ session }) => ({
      model: 'balanced',
      messages: [{ role: 'user', content: 'Hello' }],
      metadata: { session_id: session },
    }),
    owner: 200,
  },
  'POST /v1/responses': [
    { make: reply, body: ({ session }) => ({ input: 'Hello', metadata: { session_id: session } }), owner: 200 },
    { make: reply, body: ({ run }) => ({ input: 'Hello', previous_response_id: responseId(run) }), owner: 200 },
  ],
  'GET /v1/responses/{id}': [
    { make: reply, id: 'response', owner: 200 },
    { make: running, id: 'response', query: () => 'stream=true', owner: 200 },
  ],
  'POST /v1/responses/{id}/cancel': { make: running, id: 'response', owner: 200 },
}

for (const database of databases()) {
  test(`on ${database}`, (t) => checkMatrix(t, database))
}

async function checkMatrix(t: Test, database: DatabaseKind): Promise<void> {
  const upstream = await startFakeUpstream({
    script: ({ message }) =>
      message === calling ? callTool() : say(message === endless ? { tokens: 100_000, paceMs: 20 } : { text: 'Hello' }),
  })
  t.teardown(() => upstream.close())
  const gateway = await startGateway(t, {
    database,
    env: { OPENAI_BASE_URL: upstream.url, JWT_SECRET: secret, FRAME_MS: '5' },
  })
  const routes = await readRoutes(gateway)

  await t.test('every route has a row, and every row a route', async (t) => {
    t.same(missing(Object.keys(rows), routes), [])
    t.same(missing(['GET /a', 'GET /b'], ['GET /b', 'GET /c']), ['GET /a', 'GET /c'], 'a twin')
  })

  let subjects = 0
  for (const [route, described] of Object.entries(rows)) {
    await t.test(route, async (t) => {
      for (const row of [described].flat() as Row[]) {
        subjects += 1
        await checkRow(t, gateway, route, row, subjects)
      }
    })
  }
}

async function checkRow(t: Test, gateway: Gateway, route: string, row: Row, n: number): Promise<void> {
  const user = (name: string) => {
    const token = makeToken(secret, { sub: `${name}-${n}`, exp: inSeconds(600) })
    return createClient(gateway.url, { authorization: `Bearer ${token}` })
  }
  const owner = user('owner')
  const callers: Readonly<Record<Caller, Client>> = {
    badToken: createClient(gateway.url, { authorization: 'Bearer x.y.z' }),
    nobody: createClient(gateway.url),
    otherVisitor: createClient(gateway.url, { 'x-visitor-token': `vst_${String(n).padStart(43, 'v')}` }),
    otherUser: user('other'),
    owner,
  }
  const subject = await row.make(owner, gateway.url)
  const prepared = (await row.before?.(owner, subject))?.body
  const before = await subject.read()
  const sessionsBefore = await listSessions(owner)

  for (const [caller, client] of Object.entries(callers) as [Caller, Client][]) {
    if (caller === 'owner') {
      t.strictSame(await subject.read(), before, 'nobody has changed it')
      t.strictSame(await listSessions(owner), sessionsBefore, 'nor added anything')
    }
    const identity = { ...client.identity, ...(caller === 'owner' ? row.ownerHeaders : {}) }
    const answer = await ask(gateway, identity, route, row, subject, prepared)
    const fallback = caller === 'owner' ? row.owner : caller === 'badToken' ? 401 : (row.others ?? 404)
    const expected = row[caller] ?? fallback
    t.equal(answer.status, expected, `${caller}: ${expected}, not ${answer.text.slice(0, 200)}`)
    if (caller === 'owner') continue
    t.notOk(answer.text.includes(canary), `${caller} reads nothing of it`)
    if (expected === 404) t.equal(answer.code, 'not_found', caller)
    if (expected === 401) t.equal(answer.code, 'invalid_token', caller)
  }
}

async function ask(
  { url }: Gateway,
  identity: Readonly<Record<string, string>>,
  route: string,
  row: Row,
  subject: Subject,
  prepared: unknown,
) {
  const [method = '', pattern = ''] = route.split(' ')
  const { id = 'session' } = row
  const named = id === 'response' ? responseId(subject.run) : subject[id]
  const path = pattern.replace('{id}', named).replace('{name}', 'notes')
  const query = row.query === undefined ? '' : `?${row.query(subject)}`
  const body = row.body?.(subject, prepared)
  const response = await fetch(`${url}${path}${query}`, {
    method,
    headers: { ...identity, ...(body === undefined ? {} : { 'content-type': 'application/json' }) },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  })
  const text = await readText(response)
  const code = response.headers.get('x-error-code') ?? /"code":"(\w+)"/.exec(text)?.[1]
  return { status: response.status, text, code }
}

/** Of a stream that does not end by itself, its beginning. */
async function readText(response: Response): Promise<string> {
  if (response.headers.get('content-type') !== 'text/event-stream') return response.text()
  const reader = response.body?.getReader()
  const { value } = (await reader?.read()) ?? {}
  await reader?.cancel()
  return new TextDecoder().decode(value)
}

async function listSessions(owner: Client): Promise<unknown> {
  const { body } = await owner.get(`${v1}/sessions`)
  return body.data.map(({ id }: { id: string }) => id)
}

async function readRoutes({ url }: Gateway): Promise<readonly string[]> {
  const document = (await (await fetch(`${url}/openapi.json`)).json()) as {
    paths: Record<string, Record<string, unknown>>
  }
  return Object.entries(document.paths)
    .flatMap(([path, methods]) => Object.keys(methods).map((method) => `${method.toUpperCase()} ${path}`))
    .toSorted()
}

/** What one of them has and the other has not. */
function missing(a: readonly string[], b: readonly string[]): readonly string[] {
  return [...a.filter((one) => !b.includes(one)), ...b.filter((one) => !a.includes(one))]
}
