/**
 * The document at /openapi.json is the truth: it names every route that there is, its schemas are schemas, and what the
 * gateway really answers, good and bad, is what they say, without a field more.
 */
import { Ajv2020 } from 'ajv/dist/2020.js'
import ajvFormats from 'ajv-formats'
import { type Test, test } from 'tap'
import { begin, chunk, createGate, doneMarker, refuse, say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { passOn } from '../support/agents.ts'
import { type Answer, createClient, isDelta } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { type Gateway, startGateway } from '../support/gateway.ts'

interface Operation {
  readonly tags?: readonly string[]
  readonly summary?: string
  readonly parameters?: readonly { name: string; in: string; required?: boolean; schema: unknown }[]
  readonly requestBody?: { content: Record<string, { schema: unknown }> }
  readonly responses: Record<string, { description?: string; content?: Record<string, { schema: unknown }> }>
  readonly security?: readonly Record<string, unknown>[]
}

interface Document {
  readonly openapi: string
  readonly info: { title?: string; version?: string }
  readonly tags: readonly { name: string }[]
  readonly security: readonly Record<string, unknown>[]
  readonly components: { securitySchemes: Record<string, { type: string }> }
  readonly paths: Record<string, Record<string, Operation>>
}

/** Route -> the statuses that it documents. */
const expected: Readonly<Record<string, readonly string[]>> = {
  'GET /health/live': ['200'],
  'GET /health/ready': ['200', '503'],
  'GET /health/db': ['200', '503'],
  'GET /metrics': ['200'],
  'POST /api/v1/sessions': ['200', '201', '4XX', '5XX'],
  'GET /api/v1/sessions': ['200', '4XX', '5XX'],
  'POST /api/v1/sessions/claim': ['200', '4XX', '5XX'],
  'GET /api/v1/sessions/{id}': ['200', '4XX', '5XX'],
  'DELETE /api/v1/sessions/{id}': ['204', '4XX', '5XX'],
  'POST /api/v1/sessions/{id}/restore': ['200', '4XX', '5XX'],
  'GET /api/v1/sessions/{id}/export': ['200', '4XX', '5XX'],
  'POST /api/v1/sessions/import': ['201', '4XX', '5XX'],
  'GET /api/v1/me/export': ['200', '4XX', '5XX'],
  'DELETE /api/v1/me': ['204', '4XX', '5XX'],
  'GET /api/v1/me/usage': ['200', '4XX', '5XX'],
  'PATCH /api/v1/sessions/{id}': ['200', '4XX', '5XX'],
  'GET /api/v1/sessions/{id}/messages': ['200', '4XX', '5XX'],
  'GET /api/v1/sessions/{id}/artifacts': ['200', '4XX', '5XX'],
  'GET /api/v1/sessions/{id}/artifacts/{name}': ['200', '304', '4XX', '5XX'],
  'PUT /api/v1/sessions/{id}/artifacts/{name}': ['200', '201', '4XX', '5XX'],
  'DELETE /api/v1/sessions/{id}/artifacts/{name}': ['204', '4XX', '5XX'],
  'POST /api/v1/sessions/{id}/stop': ['200', '204', '4XX', '5XX'],
  'POST /api/v1/sessions/{id}/start': ['202', '4XX', '5XX'],
  'POST /api/v1/sessions/{id}/kill': ['200', '4XX', '5XX'],
  'POST /api/v1/messages/{id}/regenerate': ['200', '202', '4XX', '5XX'],
  'POST /api/v1/messages/{id}/edit': ['200', '202', '4XX', '5XX'],
  'PUT /api/v1/messages/{id}/feedback': ['200', '4XX', '5XX'],
  'PUT /api/v1/messages/{id}/retrieval': ['200', '4XX', '5XX'],
  'POST /api/v1/chat/stream': ['200', '4XX', '5XX'],
  'GET /api/v1/chat/stream': ['200', '204', '4XX', '5XX'],
  'POST /api/v1/chat/message': ['200', '4XX', '5XX'],
  'GET /api/v1/runs/{id}': ['200', '4XX', '5XX'],
  'GET /api/v1/runs/{id}/events': ['200', '204', '4XX', '5XX'],
  'POST /api/v1/runs/{id}/stop': ['200', '4XX', '5XX'],
  'POST /api/v1/stream-tickets': ['200', '4XX', '5XX'],
  'POST /v1/responses': ['200', '4XX', '5XX'],
  'GET /v1/responses/{id}': ['200', '4XX', '5XX'],
  'POST /v1/responses/{id}/cancel': ['200', '4XX', '5XX'],
  'POST /v1/chat/completions': ['200', '4XX', '5XX'],
  'GET /v1/models': ['200', '4XX', '5XX'],
  'GET /v1/models/{id}': ['200', '4XX', '5XX'],
  'POST /api/chat': ['200', '4XX', '5XX'],
  'GET /api/chat/{id}': ['200', '4XX', '5XX'],
  'GET /api/chat/{id}/stream': ['200', '204', '4XX', '5XX'],
  'POST /api/chat/{id}/stop': ['200', '204', '4XX', '5XX'],
}

/** The page, the documents themselves and preflights are no part of the API. */
const notApi =
  /^(GET|HEAD) \/(docs(\/.*)?|openapi\.json|page\.css|page\/marked\.js|(page|client)\/[a-z-]+\.ts|favicon\.svg)?$|^HEAD \/health\/|^OPTIONS \*$/

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const upstream = await startFakeUpstream()
    t.teardown(() => upstream.close())
    const gateway = await startGateway(t, {
      database,
      agents: [passOn('a')],
      env: { OPENAI_BASE_URL: upstream.url, FRAME_MS: '5' },
    })
    const served = await fetch(`${gateway.url}/openapi.json`)
    const document = (await served.json()) as Document
    const operations = Object.entries(document.paths).flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, operation]) => ({ path, method, operation })),
    )

    await t.test('it is a document of OpenAPI 3.1', async (t) => {
      t.match(served.headers.get('content-type'), /^application\/json/)
      t.match(document.openapi, /^3\.1\.\d+$/)
      t.match(document.info, { title: String, version: /^\d+\.\d+\.\d+$/ })
      t.notMatch(JSON.stringify(document), /"\$ref":"(?!#\/)/, 'nothing refers to another document')
      for (const reference of JSON.stringify(document).matchAll(/"\$ref":"#\/([^"]+)"/g)) {
        const found = reference[1]!
          .split('/')
          .reduce<unknown>((at, key) => (at as Record<string, unknown>)?.[key], document)
        t.ok(found, `#/${reference[1]} is there`)
      }
      const tags = document.tags.map(({ name }) => name)
      const schemes = Object.keys(document.components.securitySchemes)
      const ajv = createAjv()
      for (const { path, method, operation } of operations) {
        const name = `${method} ${path}`
        t.match(path, /^\/[^?]*$/, name)
        t.ok(
          operation.tags?.every((tag) => tags.includes(tag)),
          `${name}: its tags are described`,
        )
        for (const scheme of (operation.security ?? document.security).flatMap(Object.keys)) {
          t.ok(schemes.includes(scheme), `${name}: ${scheme} is described`)
        }
        const inPath = [...path.matchAll(/\{(\w+)\}/g)].map((match) => match[1])
        const declared = (operation.parameters ?? []).filter((parameter) => parameter.in === 'path')
        t.same(
          declared.map((parameter) => [parameter.name, parameter.required]),
          inPath.map((parameter) => [parameter, true]),
          `${name}: the parameters of its path`,
        )
        const contents = [
          operation.requestBody?.content,
          ...Object.values(operation.responses).map(({ content }) => content),
        ]
        const schemas = [
          ...contents.flatMap((content) => Object.values(content ?? {}).map(({ schema }) => schema)),
          ...(operation.parameters ?? []).map(({ schema }) => schema),
        ]
        for (const schema of schemas) t.ok(ajv.validateSchema(schema as object), `${name}: ${ajv.errorsText()}`)
        for (const [status, { description }] of Object.entries(operation.responses)) {
          t.match(status, /^([1-5]\d\d|[45]XX)$/, name)
          t.type(description, 'string', `${name}: ${status} has a description`)
        }
      }
    })

    await t.test('it holds every route that there is, and none that is not, with all its answers', async (t) => {
      const documented = Object.fromEntries(
        operations.map(({ path, method, operation }) => [
          `${method.toUpperCase()} ${path}`,
          Object.keys(operation.responses).sort(),
        ]),
      )
      t.same(documented, expected)
      const routes = readRoutes(gateway)
      t.ok(routes.includes('GET /health/live'))
      const api = routes.filter((route) => !notApi.test(route)).map((route) => route.replaceAll(/:(\w+)/g, '{$1}'))
      t.same(api.toSorted(), Object.keys(documented).toSorted())
    })

    await t.test('a route that is missing from it would be noticed', async (t) => {
      t.same(
        routesOf('├── a (GET, HEAD)\n│   ├── /b (POST)\n│   │   └── /:id (GET)\n│   └── c (GET)\n└── * (OPTIONS)\n'),
        ['GET a', 'HEAD a', 'POST a/b', 'GET a/b/:id', 'GET ac', 'OPTIONS *'],
      )
      t.notMatch('GET /api/v1/secret', notApi)
      t.notMatch('POST /docs', notApi)
    })

    await t.test('every answer is as its schema says, without a field more', async (t) => {
      const client = createClient(gateway.url)
      const check = createCheck(document)
      const full = {
        kind: 'chat',
        mode: 'fast',
        title: 'T',
        input: 'I',
        external_id: 'e',
        context: { a: [1, null] },
        metadata: { b: {} },
      }
      const created = await client.post('/api/v1/sessions', full)
      check(t, 'post', '/api/v1/sessions', created, 201)
      check(t, 'post', '/api/v1/sessions', await client.post('/api/v1/sessions', { external_id: 'e' }), 200)
      check(t, 'post', '/api/v1/sessions', await client.post('/api/v1/sessions', { color: 'red' }), 400)

      const artifacts = `/api/v1/sessions/${created.body.id}/artifacts`
      const artifactPath = '/api/v1/sessions/{id}/artifacts/{name}'
      for (const status of [201, 200]) {
        check(t, 'put', artifactPath, await client.put(`${artifacts}/a`, { body: { a: [1] } }), status)
      }
      check(t, 'put', artifactPath, await client.put(`${artifacts}/a`, { body: 1 }, { 'if-match': '"1"' }), 412)
      check(t, 'get', artifactPath, await client.get(`${artifacts}/a`), 200)
      check(t, 'get', artifactPath, await client.get(`${artifacts}/transcript?generate=1`), 200)
      check(t, 'get', '/api/v1/sessions/{id}/artifacts', await client.get(artifacts), 200)
      check(t, 'delete', artifactPath, await client.delete(`${artifacts}/a`), 204)

      upstream.answer(() => say({ text: 'Hello there' }))
      const session_id = created.body.id
      const body = { message: 'Hi', session_id, metadata: { a: 1 }, agent_id: 'a', client_message_id: 'k' }
      const whole = await client.post('/api/v1/chat/message', body)
      check(t, 'post', '/api/v1/chat/message', whole, 200)
      check(
        t,
        'post',
        '/api/v1/chat/message',
        await client.post('/api/v1/chat/message', { ...body, message: 'x' }),
        422,
      )
      upstream.answer(toolCall)
      check(
        t,
        'post',
        '/api/v1/chat/message',
        await client.post('/api/v1/chat/message', { message: 'Use it', session_id }),
        200,
      )
      upstream.answer(() => refuse(500))
      check(
        t,
        'post',
        '/api/v1/chat/message',
        await client.post('/api/v1/chat/message', { message: 'Fail', session_id }),
        502,
      )

      const gate = createGate()
      upstream.answer(async function* () {
        yield* begin({ text: 'Half' })
        await gate.opened
        yield doneMarker
      })
      const stream = await client.send({ message: 'Slowly', session_id })
      await stream.until(isDelta)
      const runPath = `/api/v1/runs/${stream.headers.get('x-run-id')}`
      const messages = `/api/v1/sessions/${session_id}/messages`
      check(
        t,
        'post',
        '/api/v1/chat/stream',
        await client.post('/api/v1/chat/stream', { message: 'x', session_id }),
        409,
      )
      check(t, 'get', '/api/v1/sessions/{id}', await client.get(`/api/v1/sessions/${session_id}`), 200)
      check(t, 'get', '/api/v1/runs/{id}', await client.get(runPath), 200)
      const running = await client.get(messages)
      t.type(running.body.data.at(-1).cursor, 'string')
      check(t, 'get', '/api/v1/sessions/{id}/messages', running, 200)
      check(t, 'post', '/api/v1/runs/{id}/stop', await client.post(`${runPath}/stop`), 200)
      gate.open()
      await stream.ended

      const one = `/api/v1/sessions/${session_id}`
      const change = { title: 'T2', mode: 'fast', metadata: { c: null }, tags: ['a'], state: [1], ended: true }
      check(t, 'get', '/api/v1/sessions/{id}', await client.get(`${one}?include=messages,artifacts`), 200)
      check(t, 'get', '/api/v1/sessions/{id}', await client.get(`${one}?include=x`), 400)
      check(t, 'patch', '/api/v1/sessions/{id}', await client.patch(one, change), 200)
      check(t, 'patch', '/api/v1/sessions/{id}', await client.patch(one, {}), 400)
      check(t, 'patch', '/api/v1/sessions/{id}', await client.patch(one, change, { 'if-match': '"1"' }), 412)

      check(t, 'get', '/api/v1/sessions', await client.get('/api/v1/sessions'), 200)
      check(t, 'get', '/api/v1/sessions', await client.get('/api/v1/sessions?q=t2'), 200)
      check(t, 'get', '/api/v1/sessions', await client.get('/api/v1/sessions?limit=0'), 400)
      check(t, 'get', '/api/v1/sessions/{id}/messages', await client.get(messages), 200)
      check(t, 'get', '/api/v1/sessions/{id}/messages', await client.get(`${messages}?limit=2`), 200)
      check(t, 'get', '/api/v1/runs/{id}', await client.get(runPath), 200)
      check(t, 'get', '/api/v1/runs/{id}', await client.get(`/api/v1/runs/${whole.body.run.id}`), 200)
      check(t, 'get', '/api/v1/runs/{id}', await client.get(`/api/v1/runs/${session_id}`), 404)
      check(t, 'get', '/api/v1/runs/{id}/events', await client.get(`${runPath}/events`, { 'last-event-id': 'x' }), 400)
      check(t, 'get', '/api/v1/runs/{id}/events', await client.get(`${runPath}/events?ticket=x`), 401)
      const ticketOf = (run_id: unknown) => client.post('/api/v1/stream-tickets', { run_id })
      check(t, 'post', '/api/v1/stream-tickets', await ticketOf(whole.body.run.id), 200)
      check(t, 'post', '/api/v1/stream-tickets', await ticketOf(session_id), 404)
      check(t, 'post', '/api/v1/sessions/{id}/stop', await client.post(`/api/v1/sessions/${session_id}/stop`), 204)
      upstream.answer(() => say({ tokens: 5000, paceMs: 5 }))
      const long = await client.send({ message: 'Long', session_id })
      await long.until(isDelta)
      check(t, 'post', '/api/v1/sessions/{id}/stop', await client.post(`/api/v1/sessions/${session_id}/stop`), 200)
      await long.ended

      upstream.answer(() => say({ text: 'Again' }))
      const idle = (await client.post('/api/v1/sessions', { input: 'Go' })).body.id
      const messagePath = `/api/v1/messages/${whole.body.message.id}`
      const of = (what: string) => `/api/v1/messages/{id}/${what}`
      check(t, 'put', of('feedback'), await client.put(`${messagePath}/feedback`, { rating: 1 }), 200)
      check(t, 'put', of('feedback'), await client.put(`${messagePath}/feedback`, { rating: 2 }), 400)
      check(t, 'put', of('retrieval'), await client.put(`${messagePath}/retrieval`, { retrieved_docs: [{}] }), 200)
      check(t, 'post', of('edit'), await client.post(`${messagePath}/edit`, { message: 'x' }), 400)
      check(t, 'post', of('regenerate'), await client.post(`${messagePath}/regenerate`), 202)
      const queued = { message: 'x', on_busy: 'queue' }
      const edited = await client.post(`/api/v1/messages/${whole.body.user_message.id}/edit`, queued)
      check(t, 'post', of('edit'), edited, 202)
      check(t, 'post', '/api/v1/sessions/{id}/start', await client.post(`/api/v1/sessions/${idle}/start`), 202)
      check(t, 'post', '/api/v1/sessions/{id}/start', await client.post(`/api/v1/sessions/${idle}/start`, queued), 400)
      check(t, 'post', '/api/v1/sessions/{id}/kill', await client.post(`/api/v1/sessions/${session_id}/kill`), 200)
      const exported = await client.get(`${one}/export`)
      check(t, 'get', '/api/v1/sessions/{id}/export', exported, 200)
      const imports = '/api/v1/sessions/import'
      check(t, 'post', imports, await client.post(imports, exported.body), 201)
      check(t, 'post', imports, await client.post(imports, {}), 400)
      check(t, 'delete', '/api/v1/sessions/{id}', await client.delete(one), 204)
      check(t, 'delete', '/api/v1/sessions/{id}', await client.delete(one), 404)
      check(t, 'post', '/api/v1/sessions/{id}/restore', await client.post(`${one}/restore`), 200)
      check(t, 'get', '/api/v1/me/usage', await client.get('/api/v1/me/usage'), 200)
      check(t, 'delete', '/api/v1/me', await client.delete('/api/v1/me'), 204)
      check(t, 'get', '/api/v1/sessions/{id}/export', await client.get(`${one}/export`), 404)

      const ui = (text: string) => ({
        id: 'ui',
        messages: [{ id: text, role: 'user', parts: [{ type: 'text', text }] }],
      })
      check(t, 'post', '/api/chat', await client.post('/api/chat', {}), 400)
      t.equal((await client.post('/api/chat', ui('a'))).status, 200)
      check(t, 'get', '/api/chat/{id}', await client.get('/api/chat/ui'), 200)
      upstream.answer(() => say({ tokens: 5000, paceMs: 5 }))
      const chat = await client.watch('/api/v1/chat/stream?message=b&client_message_id=b')
      await chat.until(isDelta)
      const stopPath = `/api/chat/${chat.headers.get('x-session-id')}/stop`
      check(t, 'post', '/api/chat/{id}/stop', await client.post(stopPath), 200)
      check(t, 'post', '/api/chat/{id}/stop', await client.post(stopPath), 204)
      check(t, 'get', '/api/chat/{id}/stream', await client.get('/api/chat/none/stream'), 204)
      check(t, 'get', '/api/chat/{id}/stream', await client.get('/api/chat/ui/stream', { 'last-event-id': 'x' }), 400)

      const stranger = createClient(gateway.url, { authorization: 'Bearer x' })
      check(t, 'get', '/api/v1/sessions', await stranger.get('/api/v1/sessions'), 401)
      const foreign = createClient(gateway.url, { 'sec-fetch-site': 'cross-site' })
      check(t, 'get', '/api/v1/sessions', await foreign.get('/api/v1/sessions'), 403)
      for (const path of ['/health/live', '/health/ready', '/health/db'])
        check(t, 'get', path, await client.get(path), 200)
    })

    await t.test('a twin: an answer with a field more, or one of another type, would be noticed', async (t) => {
      const client = createClient(gateway.url)
      const session = (await client.post('/api/v1/sessions', {})).body
      const validate = compile(document, 'get', '/api/v1/sessions/{id}', 200, 'application/json')
      t.equal(validate(session), true)
      t.equal(validate({ ...session, secret: 1 }), false)
      t.equal(validate({ ...session, version: '1' }), false)
      t.equal(validate({ ...session, id: 'x' }), false)
    })

    await t.test('/docs loads nothing from anywhere else', async (t) => {
      const page = await fetch(`${gateway.url}/docs/`)
      t.equal(page.status, 200)
      const html = await page.text()
      const files = [...html.matchAll(/(?:src|href)="([^"]+)"/g)].map((match) => match[1]!)
      t.ok(files.length >= 3)
      for (const file of files) {
        t.notMatch(file, /^([a-z]+:)?\/\//, file)
        const found = await fetch(new URL(file, page.url))
        t.equal(found.status, 200, file)
        await found.arrayBuffer()
      }
      const start = await (await fetch(`${gateway.url}/docs/static/swagger-initializer.js`)).text()
      t.match(start, /validatorUrl["']?: *null/, 'the address is not sent to a validator')
      const policy = page.headers.get('content-security-policy') ?? ''
      t.match(policy, /default-src 'self'/)
      t.notMatch(policy, /https?:|swagger\.io|upgrade-insecure-requests/, 'and the policy allows no other host')
    })
  })
}

function* toolCall() {
  const call = { index: 0, id: 'call_1', type: 'function', function: { name: 'look', arguments: '{"at":"it"}' } }
  yield chunk({ role: 'assistant', tool_calls: [call] })
  yield chunk({}, 'tool_calls')
  yield doneMarker
}

function createAjv(): Ajv2020 {
  const ajv = new Ajv2020({ strict: false, allErrors: true })
  ajvFormats.default(ajv as never)
  return ajv
}

/** The schema of an answer, with every object closed that does not say that it is open. */
function compile(document: Document, method: string, path: string, status: number, type: string) {
  const { responses } = document.paths[path]![method]!
  const response = responses[status] ?? responses[`${Math.floor(status / 100)}XX`]
  const schema = response?.content?.[type]?.schema
  if (schema === undefined) throw new Error(`${method} ${path} documents no ${type} for ${status}`)
  return createAjv().compile(closeObjects(schema) as object)
}

function closeObjects(schema: unknown): unknown {
  if (Array.isArray(schema)) return schema.map(closeObjects)
  if (typeof schema !== 'object' || schema === null) return schema
  const closed = Object.fromEntries(Object.entries(schema).map(([key, value]) => [key, closeObjects(value)]))
  return 'properties' in closed && !('additionalProperties' in closed)
    ? { ...closed, additionalProperties: false }
    : closed
}

function createCheck(document: Document) {
  return (t: Test, method: string, path: string, answer: Answer, status: number): void => {
    const name = `${method} ${path} ${status}`
    t.equal(answer.status, status, name)
    if (status === 204) {
      t.ok(document.paths[path]?.[method]?.responses[204], name)
      t.equal(answer.body, '', name)
      return
    }
    const type = (answer.headers.get('content-type') ?? '').split(';')[0]!
    const refusal = path.startsWith('/api/chat') ? 'text/plain' : 'application/problem+json'
    t.equal(type, status < 400 ? 'application/json' : refusal, name)
    const validate = compile(document, method, path, status, type)
    t.ok(validate(answer.body), `${name} ${JSON.stringify(validate.errors)?.slice(0, 500)}`)
  }
}

/** `METHOD /path` for every route that the server really has. */
function readRoutes({ app }: Gateway): string[] {
  return routesOf(app.server.printRoutes({ commonPrefix: false }))
}

/** Reads the tree that Fastify prints: four characters a level, a piece of the path, its methods in brackets. */
function routesOf(tree: string): string[] {
  const pieces: string[] = []
  return tree.split('\n').flatMap((line) => {
    const match = /^((?:│ {3}| {4})*)[├└]── (.*?)(?: \(([A-Z, ]+)\))?$/.exec(line)
    if (match === null) return []
    const [, indent = '', piece = '', methods] = match
    pieces.length = indent.length / 4
    pieces.push(piece)
    return methods === undefined ? [] : methods.split(', ').map((method) => `${method} ${pieces.join('')}`)
  })
}
