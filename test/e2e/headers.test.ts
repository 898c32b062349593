/**
 * What answers tell a browser: the headers of the API, the page and the documents, on JSON, errors and streams alike; who
 * may call from elsewhere; and the numbers at /metrics.
 */
import { type Test, test } from 'tap'
import { say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { createClient, isDelta } from '../support/client.ts'
import { startGateway } from '../support/gateway.ts'
import { openSocket, readAnswer, sendRaw } from '../support/raw.ts'

const sessions = '/api/v1/sessions'
const origin = 'https://app.example'
const stranger = 'https://evil.example'

const everywhere = {
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  'strict-transport-security': 'max-age=31536000',
  'x-frame-options': 'DENY',
  'cross-origin-opener-policy': 'same-origin',
} as const
const apiPolicy = "default-src 'none';base-uri 'none';frame-ancestors 'none'"

function checkHeaders(t: Test, headers: Headers, name: string): void {
  for (const [header, value] of Object.entries(everywhere)) t.equal(headers.get(header), value, `${name}: ${header}`)
  t.match(headers.get('content-security-policy'), /frame-ancestors 'none'/, `${name}: nobody frames it`)
  t.equal(headers.get('x-powered-by'), null)
  t.equal(headers.get('server'), null)
}

test('headers of a gateway', async (t) => {
  const upstream = await startFakeUpstream()
  t.teardown(() => upstream.close())
  const { url } = await startGateway(t, { env: { OPENAI_BASE_URL: upstream.url, CORS_ORIGINS: origin } })
  const client = createClient(url, { 'x-visitor-token': `vst_${'h'.repeat(43)}` })

  await t.test('JSON and errors of the API', async (t) => {
    const { body } = await client.post(sessions, {})
    for (const [name, answer, status] of [
      ['a list', await client.get(sessions), 200],
      ['a session', await client.get(`${sessions}/${body.id}`), 200],
      ['400', await client.get(`${sessions}?limit=0`), 400],
      ['401', await createClient(url, { authorization: 'Bearer x' }).get(sessions), 401],
      ['404', await client.get(`${sessions}/${body.id.replace(/./, 'f')}`), 404],
      ['no such route', await client.get('/api/v1/nothing'), 404],
    ] as const) {
      t.equal(answer.status, status, name)
      checkHeaders(t, answer.headers, name)
      t.equal(answer.headers.get('content-security-policy'), apiPolicy, name)
      t.equal(answer.headers.get('cross-origin-resource-policy'), 'cross-origin', name)
      t.equal(answer.headers.get('cache-control'), 'no-store', name)
    }
  })

  await t.test('a stream carries them all, and those of its run, to an allowed frontend', async (t) => {
    upstream.answer(() => say({ text: 'Hello' }))
    const stream = await client.send({ message: 'Hi' }, { origin })
    checkHeaders(t, stream.headers, 'stream')
    t.equal(stream.headers.get('content-security-policy'), apiPolicy)
    t.equal(stream.headers.get('cross-origin-resource-policy'), 'cross-origin')
    t.equal(stream.headers.get('access-control-allow-origin'), origin)
    t.equal(stream.headers.get('access-control-allow-credentials'), 'true')
    t.match(stream.headers.get('vary'), /\borigin\b/i)
    t.equal(stream.headers.get('cache-control'), 'no-cache, no-transform')
    await stream.until(isDelta)
    await stream.ended
    const attached = await client.watch(`/api/v1/runs/${stream.headers.get('x-run-id')}/events`, { origin })
    checkHeaders(t, attached.headers, 'attached')
    t.equal(attached.headers.get('access-control-allow-origin'), origin)
    await attached.ended
  })

  await t.test('no header is sent twice', async (t) => {
    for (const path of ['/', '/docs/', sessions, '/nothing', '/api/v1/chat/stream?message=x&client_message_id=once']) {
      const socket = openSocket(url)
      socket.write(
        `GET ${path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Visitor-Token: vst_${'h'.repeat(43)}\r\n\r\n`,
      )
      const { text } = readAnswer(await socket.closed)
      const names = text
        .slice(0, text.indexOf('\r\n\r\n'))
        .split('\r\n')
        .slice(1)
        .map((line) => line.slice(0, line.indexOf(':')).toLowerCase())
      t.same(names.toSorted(), [...new Set(names)].toSorted(), path)
    }
  })

  await t.test('the page and the documents may load what is theirs, and nothing else', async (t) => {
    for (const path of ['/', '/page/main.ts', '/page.css', '/docs/', '/docs/static/swagger-ui-bundle.js']) {
      const answer = await fetch(`${url}${path}`)
      await answer.arrayBuffer()
      t.equal(answer.status, 200, path)
      checkHeaders(t, answer.headers, path)
      t.equal(answer.headers.get('cross-origin-resource-policy'), 'same-origin', path)
      const policy = answer.headers.get('content-security-policy') ?? ''
      t.match(policy, /script-src 'self'/, path)
      t.notMatch(policy, /https?:|unsafe-eval|\*/, path)
    }
  })

  await t.test('a preflight for every method and header of the API, however it is spelled', async (t) => {
    for (const asked of [
      'authorization,if-match,if-none-match',
      'Content-Type, Last-Event-ID,\tIdempotency-Key',
      'x-visitor-token ,accept',
      'authorization,content-type,openai-beta,x-session-id,x-stainless-arch,x-stainless-lang,x-stainless-retry-count,user-agent',
    ]) {
      for (const method of ['GET', 'POST', 'PUT', 'PATCH', 'DELETE']) {
        const answer = await fetch(`${url}${sessions}/x`, {
          method: 'OPTIONS',
          headers: { origin, 'access-control-request-method': method, 'access-control-request-headers': asked },
        })
        t.equal(answer.status, 204)
        const allowed = list(answer.headers.get('access-control-allow-headers'))
        for (const header of list(asked)) t.ok(allowed.includes(header), header)
        t.ok(list(answer.headers.get('access-control-allow-methods')).includes(method.toLowerCase()), method)
        t.equal(answer.headers.get('access-control-allow-origin'), origin)
        t.match(answer.headers.get('vary'), /\borigin\b/i)
      }
    }
  })

  await t.test('what a client needs to read it may read', async (t) => {
    const answer = await client.get(sessions, { origin })
    const exposed = list(answer.headers.get('access-control-expose-headers'))
    for (const header of [
      'etag',
      'retry-after',
      'x-request-id',
      'location',
      'x-visitor-token',
      'x-run-id',
      'content-disposition',
      'x-should-retry',
      'x-resumable-stream-id',
    ]) {
      t.ok(exposed.includes(header), header)
    }
  })

  await t.test('a cache cannot give one origin the answer of another', async (t) => {
    for (const path of [sessions, '/', '/health/live', '/nothing']) {
      for (const headers of [{ origin }, { origin: stranger }, { origin: 'null' }, {}] as Record<string, string>[]) {
        const answer = await fetch(`${url}${path}`, { headers })
        await answer.arrayBuffer()
        t.match(answer.headers.get('vary'), /\borigin\b/i, `${path} ${headers.origin}`)
        const allowed = headers.origin === origin ? origin : null
        t.equal(answer.headers.get('access-control-allow-origin'), allowed, `${path} ${headers.origin}`)
      }
    }
  })

  await t.test('a request that is none, or says what cannot be, is refused with a problem document', async (t) => {
    const post = (headers: string) =>
      `POST ${sessions} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n${headers}\r\n\r\n{}`
    const json = 'Content-Type: application/json'
    for (const [name, bytes, status] of [
      ['nonsense', 'nonsense\r\n\r\n', 400],
      ['no Host', `GET ${sessions} HTTP/1.1\r\nConnection: close\r\n\r\n`, 400],
      ['a body that says it is compressed', post(`${json}\r\nContent-Encoding: gzip`), 400],
      ['another charset', post(`${json}; charset=latin1`), 400],
      ['another charset in quotes', post(`${json}; charset="utf-16"`), 400],
    ] as const) {
      const answer = await sendRaw(url, bytes)
      t.equal(answer.status, status, name)
      t.match(answer.headers['content-type'], /^application\/problem\+json/, name)
      t.match(JSON.parse(answer.body), { code: 'invalid_request' }, name)
      t.equal(answer.headers.server, undefined)
    }
    for (const headers of [
      `${json}; charset="UTF-8"`,
      `${json};charset=utf8\r\nContent-Encoding: identity`,
      `${json}\r\nExpect: x`,
    ]) {
      t.equal((await sendRaw(url, post(headers))).status, 201, headers)
    }
    t.equal((await sendRaw(url, 'GET /health/live HTTP/1.0\r\n\r\n')).status, 200, 'HTTP/1.0 knows no Host')
  })

  await t.test('numbers, for whoever reaches the port, say nothing of anybody', async (t) => {
    const answer = await fetch(`${url}/metrics`, { headers: { authorization: 'Bearer of nothing' } })
    t.equal(answer.status, 200)
    t.equal(answer.headers.get('content-type'), 'text/plain; version=0.0.4; charset=utf-8')
    t.equal(answer.headers.get('x-visitor-token'), null, 'who scrapes is no visitor')
    const text = await answer.text()
    t.match(text, /verbatim_requests_total\{method="GET",route="\/api\/v1\/sessions\/:id",status="2xx"\} 1\n/)
    t.match(text, /verbatim_requests_total\{method="GET",route="none",status="4xx"\} \d+\n/)
    t.match(text, /\nverbatim_active_runs 0\n/)
    t.match(text, /\nverbatim_viewers 0\n/)
    t.notMatch(text, /[0-9a-f]{8}-[0-9a-f]{4}|vst_|127\.0\.0\.1|visitor:|user:|process_|nodejs_/)
    for (const line of text.split('\n').filter((line) => line !== '' && !line.startsWith('#'))) {
      t.match(line, /^[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [0-9.e+]+$/, line)
    }
  })
})

test('without allowed origins nothing under /api is for other sites', async (t) => {
  const { url } = await startGateway(t)
  const answer = await fetch(`${url}${sessions}`, { headers: { origin } })
  t.equal(answer.headers.get('cross-origin-resource-policy'), 'same-origin')
  t.equal(answer.headers.get('access-control-allow-origin'), null)
})

function list(text: string | null): readonly string[] {
  return (text ?? '').split(',').map((one) => one.trim().toLowerCase())
}
