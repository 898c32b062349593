/**
 * 2 000 requests from /openapi.json that clients should not send, on every database, with a fixed seed: the gateway answers
 * each of them, and fails at none (test/support/fuzz.ts). `npm run fuzz` sends more, with seeds of its own.
 */
import Fastify from 'fastify'
import { type Test, test } from 'tap'
import { startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { databases } from '../support/database.ts'
import { complain, fuzz, type RawReply, readReply, sayQuickly } from '../support/fuzz.ts'
import type { Operation } from '../support/fuzz-requests.ts'
import { startGateway } from '../support/gateway.ts'
import { inSeconds, makeToken } from '../support/tokens.ts'

const requestsInAll = 2000
const seed = 20_260
/** Of the routes, in a thousand requests; those that are only refused are hardly tested. */
const acceptedPartMin = 0.75
const secret = 'a secret that only the fuzzer and its gateway know'

for (const database of databases()) {
  test(`nothing that a client sends makes the gateway fail, on ${database}`, async (t) => {
    const upstream = await startFakeUpstream({ script: sayQuickly })
    t.teardown(() => upstream.close())
    const lines: string[] = []
    const gateway = await startGateway(t, {
      database,
      logStream: { write: (line) => lines.push(line) },
      env: { OPENAI_BASE_URL: upstream.url, JWT_SECRET: secret, LOG_LEVEL: 'warn', FRAME_MS: '5' },
    })
    const report = await fuzz({
      url: gateway.url,
      requests: requestsInAll / databases().length,
      // Not the same ones twice.
      seed: database === 'pglite' ? seed : seed + requestsInAll,
      userToken: makeToken(secret, { sub: 'fuzzer', exp: inSeconds(600) }),
    })
    t.equal(report.sent, requestsInAll / databases().length)
    t.same(report.failures, [])
    const accepted = Object.values(report.accepted)
    const some = accepted.filter((count) => count > 0)
    t.ok(
      some.length >= accepted.length * acceptedPartMin,
      `${some.length} of ${accepted.length} routes accepted something`,
    )
    const refused = Object.keys(report.statuses).filter((status) => status.startsWith('4'))
    t.ok(refused.length >= 4, `and refused something: ${JSON.stringify(report.statuses)}`)
    t.equal((await fetch(`${gateway.url}/health/ready`)).status, 200)
    t.same(
      lines.filter((line) => /"level":"(error|fatal)"/.test(line)),
      [],
    )
  })
}

test('a twin: a server that fails is noticed, with the smallest request at which it does', async (t) => {
  const server = Fastify()
  t.teardown(() => server.close())
  server.post('/things', async (request, reply) => {
    if (Object.hasOwn(request.body ?? {}, 'size')) return reply.code(500).send({})
    return {}
  })
  const body = { type: 'object', properties: { name: { type: 'string' }, size: { type: 'integer' } } }
  server.get('/openapi.json', async () => ({
    paths: {
      '/things': {
        post: { requestBody: { content: { 'application/json': { schema: body } } }, responses: { 200: {} } },
      },
    },
  }))
  const url = await server.listen({ port: 0, host: '127.0.0.1' })
  const { failures } = await fuzz({ url, requests: 50, seed: 1 })
  const failure = failures.find(({ reason }) => reason === 'status 500')
  t.ok(failure, 'found')
  t.match(failure?.request, /"size\\+":/)
  t.notMatch(failure?.request, /name|X-Visitor-Token/, 'and made smaller')
})

test('a twin: each way to fail is one', async (t) => {
  const operation: Operation = {
    method: 'GET',
    path: '/a/{id}',
    parameters: [],
    body: undefined,
    types: [],
    statuses: ['200', '4XX', '5XX'],
  }
  const judge = (reply: Partial<RawReply> & { type?: string; text?: string }, path = '/a/1', method = 'GET') =>
    complain(
      { operation, method, path },
      {
        status: reply.status ?? 200,
        headers: { 'content-type': reply.type ?? 'application/json' },
        body: Buffer.from(reply.text ?? '{}'),
      },
    )
  const asked = { operation, method: 'GET', path: '/a/1' }
  const headers = { 'content-type': 'application/json' }
  const type = 'application/problem+json'
  const problem = (status: number, code: string) => ({ status, type, text: JSON.stringify({ status, code }) })
  t.equal(judge({}), undefined)
  t.equal(judge(problem(404, 'not_found')), undefined)
  t.equal(judge(problem(503, 'db_unavailable')), undefined)
  t.equal(judge({ type: 'text/event-stream', text: 'retry: 1\nevent: a\ndata: {}\nid: 1-1\n\n' }), undefined)
  for (const [name, wrong] of Object.entries({
    'a 500': judge({ status: 500 }),
    'a 500 in other clothes': judge(problem(502, 'internal')),
    'a 5xx without a document': judge({ status: 502, text: '<html>' }),
    'a code that nobody knows': judge(problem(400, 'oops')),
    'another status inside': judge({ ...problem(400, 'invalid_request'), status: 401 }),
    'a status that is not documented': judge({ status: 201 }),
    'broken JSON': judge({ text: '{' }),
    'no UTF-8': complain(asked, { status: 200, headers, body: Buffer.of(0x22, 0xff, 0x22) }),
    'half a block': judge({ type: 'text/event-stream', text: 'retry: 1\nevent: a\ndata: {}\n' }),
    'a body to HEAD': judge({}, '/a/1', 'HEAD'),
  })) {
    t.type(wrong, 'string', name)
  }
  t.equal(judge({ status: 201 }, '/b'), undefined, 'of another route nothing is known')
  checkReading(t)
})

function checkReading(t: Test): void {
  const read = (text: string) => readReply(Buffer.from(text))
  t.equal(read('HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n').status, 204)
  t.equal(read('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n').body.toString(), 'ab')
  t.throws(() => read('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n'), /broke off/)
  t.throws(() => read('HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab'), /2 bytes instead of 5/)
  t.throws(() => read(''), /no answer/)
}
