/**
 * Who a request comes from, over real HTTP: every kind of credential and what each is taken for, the life of a visitor's
 * token, and which other origins may call. A credential that cannot be used is 401, never a visitor and never a fault.
 */
import { createHash } from 'node:crypto'
import { test } from 'tap'
import { say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { sql } from '../../src/db/drizzle.ts'
import { createClient } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { startEdge } from '../support/edge.ts'
import { type Gateway, startGateway } from '../support/gateway.ts'
import { startKeyServer, withKeys } from '../support/key-server.ts'
import { sendRaw } from '../support/raw.ts'
import { countRows } from '../support/stored.ts'
import { inSeconds, makeKey, makeToken, type TokenOptions } from '../support/tokens.ts'

const secret = 'canary-of-our-own-secret-with-32-bytes'
const supabaseSecret = 'canary-of-the-supabase-secret-32-bytes'
const sessions = '/api/v1/sessions'
const tokenPattern = /^vst_[A-Za-z0-9_-]{43}$/
const claims = { sub: 'ada', exp: inSeconds(3600) }
const sign = (payload: unknown, options?: TokenOptions) => makeToken(secret, payload, options)
const good = sign(claims)
const [goodHeader = '', goodPayload = '', goodSignature = ''] = good.split('.')
const key = makeKey('ES256', 'published')

interface Credential {
  readonly title: string
  /** The whole header. */
  readonly authorization: string
  /** The user that it stands for; absent for one that is refused. */
  readonly user?: string
}

const token = (title: string, payload: unknown, options?: TokenOptions): Credential => ({
  title,
  authorization: `Bearer ${sign(payload, options)}`,
})
const user = (
  title: string,
  payload: { readonly sub: string; readonly [claim: string]: unknown },
  options?: TokenOptions,
): Credential => ({
  ...token(title, payload, options),
  user: payload.sub,
})

// Made when they are needed: on a busy machine half a minute passes before the second database is there. The whole table
// is in tokens.test.ts.
const makeAccepted = (): readonly Credential[] => [
  user('our own secret', claims),
  { title: 'the Supabase secret', authorization: `Bearer ${makeToken(supabaseSecret, claims)}`, user: 'ada' },
  { title: 'a key of the set', authorization: `Bearer ${key.token(claims)}`, user: 'ada' },
  user('a subject of 255 characters', { ...claims, sub: 'x'.repeat(255) }),
  user('a subject in another script', { ...claims, sub: 'Ада 🦊' }),
  user('a subject that looks like SQL', { ...claims, sub: "x' or true --" }),
  user('a subject that looks like a visitor', { ...claims, sub: 'visitor:0' }),
]

const makeRefused = (): readonly Credential[] => [
  ...['', 'Bearer', 'Basic YWRhOnB3', 'Bearer x', `Bearer ${good} x`].map((authorization) => ({
    title: `header ${JSON.stringify(authorization.slice(0, 40))}`,
    authorization,
  })),
  { title: 'no signature', authorization: `Bearer ${goodHeader}.${goodPayload}.` },
  { title: 'a secret that nobody has', authorization: `Bearer ${makeToken('another secret', claims)}` },
  { title: 'a key that nobody has', authorization: `Bearer ${makeKey('ES256', key.kid).token(claims)}` },
  token('expired', { ...claims, exp: inSeconds(-60) }),
  token('a sub of 256 characters', { ...claims, sub: 'x'.repeat(256) }),
  token('the service role', { ...claims, role: 'service_role' }),
]

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const upstream = await startFakeUpstream({ script: () => say({ text: 'Hello' }) })
    t.teardown(() => upstream.close())
    const keyServer = await startKeyServer(t, withKeys([key.jwk]))
    const lines: string[] = []
    const gateway = await startGateway(t, {
      database,
      logStream: { write: (line) => lines.push(line) },
      env: {
        OPENAI_BASE_URL: upstream.url,
        JWT_SECRET: secret,
        SUPABASE_JWT_SECRET: supabaseSecret,
        JWKS_URL: keyServer.url,
        CORS_ORIGINS: 'https://app.example, https://other.example:8443',
        LOG_LEVEL: 'trace',
      },
    })
    const { url } = gateway
    const create = (headers: Record<string, string>) => createClient(url, headers).post(sessions, {})
    const raw = (lines: readonly string[]) =>
      sendRaw(
        url,
        Buffer.from(
          `GET ${sessions} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n${lines.map((line) => `${line}\r\n`).join('')}\r\n`,
          'latin1',
        ),
      )

    await t.test('a token that verifies is the user of its sub', async (t) => {
      for (const { title, authorization, user } of makeAccepted()) {
        const answer = await create({ authorization })
        t.match({ title, ...answer }, { title, status: 201, body: { user_id: user, is_anonymous: false } })
        t.equal(answer.headers.get('x-visitor-token'), null, `${title}: no visitor`)
        t.equal(answer.headers.get('set-cookie'), null, `${title}: no cookie`)
      }
    })

    await t.test('any other Authorization is 401, and never a visitor', async (t) => {
      const refused = makeRefused()
      const before = await countRows(gateway)
      for (const { title, authorization } of refused) {
        const answer = await raw([`Authorization: ${authorization}`, `X-Visitor-Token: vst_${'x'.repeat(43)}`])
        t.equal(answer.status, 401, title)
        t.equal(answer.headers['www-authenticate'], 'Bearer error="invalid_token"', title)
        t.match(answer.headers['content-type'], /^application\/problem\+json/, title)
        t.match(JSON.parse(answer.body), { status: 401, code: 'invalid_token', retryable: false }, title)
        t.equal(answer.headers['x-visitor-token'], undefined, title)
        t.equal(answer.headers['set-cookie'], undefined, title)
      }
      const chat = await createClient(url, { authorization: 'Bearer x' }).post('/api/v1/chat/stream', { message: 'x' })
      t.match(chat, { status: 401, body: { code: 'invalid_token' } })
      t.strictSame(await countRows(gateway), before, 'nothing stored')
    })

    await t.test('a header cannot be smuggled into another', async (t) => {
      const twice = await raw([`Authorization: Bearer x`, `Authorization: Bearer ${good}`])
      t.equal(twice.status, 401, 'the first of two counts')
      const folded = await raw([`Authorization: Bearer x`, ` ${good}`])
      t.ok(folded.status === 400 || folded.status === 401, `a folded line: ${folded.status}`)
      const injected = await raw([`Authorization: Bearer x\rX-Visitor-Token: vst_${'x'.repeat(43)}`])
      t.equal(injected.status, 400, 'a lone CR')
    })

    await t.test(
      'a first visit gets a token, as a header and as a cookie, that comes back to the same visitor',
      async (t) => {
        const first = await fetch(`${url}${sessions}`, {
          method: 'POST',
          headers: { 'content-type': 'application/json' },
          body: '{}',
        })
        const issued = first.headers.get('x-visitor-token') ?? ''
        t.match(issued, tokenPattern)
        const attributes = readCookie(first.headers.get('set-cookie'))
        t.equal(attributes.visitor_token, issued)
        t.match(attributes, { path: '/', httponly: '', samesite: 'Lax' })
        t.notOk('secure' in attributes, 'not Secure over http')
        t.ok(Number(attributes['max-age']) > 30 * 24 * 3600, 'it outlives the browser')
        const session = (await first.json()) as { id: string; user_id: null; is_anonymous: boolean }
        t.match(session, { user_id: null, is_anonymous: true })

        const ways: Record<string, string>[] = [
          { cookie: `visitor_token=${issued}` },
          { cookie: `a=b; visitor_token=${issued}; c=d` },
          { 'x-visitor-token': issued },
          { 'x-visitor-token': issued, cookie: `visitor_token=vst_${'y'.repeat(43)}` },
        ]
        for (const headers of ways) {
          const answer = await createClient(url, headers).get(`${sessions}/${session.id}`)
          t.equal(answer.status, 200)
          t.equal(answer.headers.get('x-visitor-token'), null, 'a token is issued once')
          t.equal(answer.headers.get('set-cookie'), null)
        }
        const other = await fetch(`${url}${sessions}`)
        t.not(other.headers.get('x-visitor-token'), issued, 'everybody gets their own')

        const hash = createHash('sha256').update(issued).digest('hex')
        const [row] = await gateway.app.db.rows<{ visitor_hash: string; owner: string; everything: string }>(
          sql`select visitor_hash, owner, s::text as everything from chat_sessions s where id = ${session.id}::uuid`,
        )
        t.match(row, { visitor_hash: hash, owner: `visitor:${hash}` })
        t.notOk(row?.everything.includes(issued), 'only its hash is stored')
      },
    )

    await t.test('a token that a frontend made itself is a visitor', async (t) => {
      const made = `vst_${'Az0_-'.repeat(8)}abc`
      const answer = await create({ 'x-visitor-token': made })
      t.match(answer, { status: 201, body: { is_anonymous: true } })
      t.equal(
        (await createClient(url, { cookie: `visitor_token=${made}` }).get(`${sessions}/${answer.body.id}`)).status,
        200,
      )
    })

    await t.test('a visitor token of another form is 401, and a cookie of another form is taken away', async (t) => {
      const whole = `vst_${'x'.repeat(43)}`
      const before = await countRows(gateway)
      const wrong = [
        '',
        'x',
        'vst_',
        whole.slice(1),
        `${whole}x`,
        whole.slice(0, -1),
        whole.toUpperCase(),
        `${whole},${whole}`,
        `${whole.slice(0, -1)}=`,
        'vst_%00',
        '%',
        '%zz',
        '"',
        'a'.repeat(4000),
      ]
      for (const value of wrong) {
        const byHeader = await raw([`X-Visitor-Token: ${value}`])
        t.equal(byHeader.status, 401, `header ${value.slice(0, 50)}`)
        t.match(JSON.parse(byHeader.body), { code: 'invalid_token' })
        t.equal(byHeader.headers['set-cookie'], undefined, 'the cookie is not the cause, and stays')
        const byCookie = await raw([`Cookie: visitor_token=${value}`])
        t.equal(byCookie.status, 401, `cookie ${value.slice(0, 50)}`)
        t.equal(byCookie.headers['x-visitor-token'], undefined)
        const attributes = readCookie(byCookie.headers['set-cookie'] ?? null)
        t.match(
          attributes,
          { visitor_token: '', path: '/', httponly: '', samesite: 'Lax' },
          `cookie ${value.slice(0, 50)}`,
        )
        t.ok(Date.parse(attributes.expires ?? '') <= 0, 'cleared')
      }
      const twice = await raw([`X-Visitor-Token: ${whole}`, `X-Visitor-Token: vst_${'y'.repeat(43)}`])
      t.equal(twice.status, 401, 'two headers')
      t.strictSame(await countRows(gateway), before, 'nothing stored')
    })

    await t.test('behind https the cookie is Secure', async (t) => {
      for (const proto of ['https', 'https,http', 'https, http']) {
        const answer = await fetch(`${url}${sessions}`, { headers: { 'x-forwarded-proto': proto } })
        t.ok('secure' in readCookie(answer.headers.get('set-cookie')), proto)
      }
      const plain = await fetch(`${url}${sessions}`, { headers: { 'x-forwarded-proto': 'http' } })
      t.notOk('secure' in readCookie(plain.headers.get('set-cookie')))
    })

    await t.test('a first visit that streams gets its token and cookie with the stream', async (t) => {
      for (const start of [
        () => createClient(url).send({ message: 'Hi' }),
        () => createClient(url).watch('/api/v1/chat/stream?message=Hi&client_message_id=first'),
      ]) {
        const stream = await start()
        t.equal(stream.headers.get('content-type'), 'text/event-stream')
        const issued = stream.headers.get('x-visitor-token') ?? ''
        t.match(issued, tokenPattern)
        t.match(readCookie(stream.headers.get('set-cookie')), { visitor_token: issued, httponly: '', samesite: 'Lax' })
        t.match(stream.headers.get('x-request-id'), /^[0-9a-f-]{36}$/)
        t.equal(await stream.ended, 'clean')
        const owned = await createClient(url, { cookie: `visitor_token=${issued}` }).get(
          `${sessions}/${stream.headers.get('x-session-id')}`,
        )
        t.equal(owned.status, 200)
      }
    })

    await t.test('a user sees their own with any token of the same sub, and nobody else does', async (t) => {
      const first = createClient(url, { authorization: `Bearer ${sign({ ...claims, sub: 'grace' })}` })
      const second = createClient(url, {
        authorization: `Bearer ${makeToken(supabaseSecret, { sub: 'grace', exp: inSeconds(60), iat: inSeconds(0) })}`,
      })
      const stream = await first.send({ message: 'Mine', client_message_id: 'same-user' })
      t.equal(await stream.ended, 'clean')
      const id = stream.headers.get('x-session-id') ?? ''
      t.equal((await second.get(`${sessions}/${id}`)).body.user_id, 'grace')
      t.equal((await second.messages(id)).length, 2)
      t.same(
        (await second.get(sessions)).body.data.map((session: { id: string }) => session.id),
        [id],
      )
      const again = await second.send({ message: 'Mine', client_message_id: 'same-user' })
      t.equal(again.headers.get('x-run-id'), stream.headers.get('x-run-id'), 'keys are the user’s, whatever the token')
      const strangers: Record<string, string>[] = [
        { authorization: `Bearer ${good}` },
        { authorization: `Bearer ${sign({ ...claims, sub: 'Grace' })}` },
        { authorization: `Bearer ${sign({ ...claims, sub: 'grace ' })}` },
        { 'x-visitor-token': `vst_${'z'.repeat(43)}` },
      ]
      for (const headers of strangers) {
        t.match(await createClient(url, headers).get(`${sessions}/${id}`), { status: 404, body: { code: 'not_found' } })
      }
    })

    await t.test('a token beside a visitor token is the user, not the visitor', async (t) => {
      const both = { authorization: `Bearer ${good}`, 'x-visitor-token': `vst_${'b'.repeat(43)}` }
      const session = (await create(both)).body
      t.match(session, { user_id: 'ada', is_anonymous: false })
      const visitor = createClient(url, { 'x-visitor-token': `vst_${'b'.repeat(43)}` })
      t.equal((await visitor.get(`${sessions}/${session.id}`)).status, 404)
    })

    await t.test('a request from another site is refused unless its origin is on the list', async (t) => {
      const before = await countRows(gateway)
      const cross = { 'sec-fetch-site': 'cross-site', 'x-visitor-token': `vst_${'s'.repeat(43)}` }
      const path = '/api/v1/chat/stream?message=x&client_message_id=csrf'
      for (const origin of [
        undefined,
        'https://evil.example',
        'null',
        'https://app.example.evil.example',
        'http://app.example',
        'https://other.example',
        '*',
      ]) {
        const headers = origin === undefined ? cross : { ...cross, origin }
        const answer = await createClient(url, headers).get(path)
        t.match(answer, { status: 403, body: { code: 'forbidden_origin', retryable: false } }, origin ?? 'no origin')
        t.equal(answer.headers.get('set-cookie'), null)
        t.equal((await createClient(url, headers).post(sessions, {})).status, 403)
      }
      t.strictSame(await countRows(gateway), before, 'nothing stored')
      for (const origin of ['https://app.example', 'https://other.example:8443']) {
        t.equal((await createClient(url, { ...cross, origin }).get(sessions)).status, 200, origin)
      }
      for (const site of ['same-origin', 'none']) {
        t.equal((await createClient(url, { 'sec-fetch-site': site }).get(sessions)).status, 200, site)
      }
      const own = { 'sec-fetch-site': 'same-site', 'x-visitor-token': `vst_${'s'.repeat(43)}` }
      t.equal((await createClient(url, own).get(sessions)).status, 200, 'same-site, with a credential of its own')
    })

    await t.test('a preflight is answered however the browser spells the list of headers', async (t) => {
      for (const names of [
        'authorization,content-type,last-event-id',
        'authorization, content-type, last-event-id',
        'Authorization , Content-Type',
      ]) {
        const answer = await preflight(url, 'https://app.example', names)
        t.equal(answer.status, 204)
        const allowed = (answer.headers.get('access-control-allow-headers') ?? '').toLowerCase().split(/ *, */)
        for (const name of ['authorization', 'content-type', 'last-event-id', 'idempotency-key', 'x-visitor-token']) {
          t.ok(allowed.includes(name), `${name} is allowed`)
        }
        t.equal(answer.headers.get('access-control-allow-origin'), 'https://app.example')
        t.equal(answer.headers.get('access-control-allow-credentials'), 'true')
        for (const method of ['GET', 'POST', 'PUT', 'PATCH', 'DELETE']) {
          t.ok(answer.headers.get('access-control-allow-methods')?.includes(method), method)
        }
        t.match(answer.headers.get('vary'), /origin/i)
        t.equal(answer.headers.get('x-visitor-token'), null, 'a preflight is no visit')
      }
      const refused = await preflight(url, 'https://evil.example', 'authorization')
      t.equal(refused.headers.get('access-control-allow-origin'), null)
      const noPreflight = await fetch(`${url}${sessions}`, { method: 'OPTIONS' })
      t.equal(noPreflight.status, 204)
    })

    await t.test('an answer to an origin on the list says what may be read, on streams and refusals too', async (t) => {
      const client = createClient(url, { origin: 'https://app.example', 'x-visitor-token': `vst_${'o'.repeat(43)}` })
      const stream = await client.send({ message: 'Hi' })
      const refusal = await client.post('/api/v1/chat/stream', { message: '' })
      const unauthorized = await createClient(url, { origin: 'https://app.example', authorization: 'Bearer x' }).get(
        sessions,
      )
      const missing = await client.get('/api/v1/nothing')
      t.same([stream.status, refusal.status, unauthorized.status, missing.status], [200, 400, 401, 404])
      for (const { headers } of [stream, refusal, unauthorized, missing]) {
        t.equal(headers.get('access-control-allow-origin'), 'https://app.example')
        t.equal(headers.get('access-control-allow-credentials'), 'true')
        t.match(headers.get('vary'), /origin/i)
        const exposed = (headers.get('access-control-expose-headers') ?? '').split(/ *, */)
        for (const name of ['X-Session-Id', 'X-Run-Id', 'X-Message-Id', 'X-Visitor-Token', 'Location', 'Retry-After']) {
          t.ok(exposed.includes(name), `${name} is exposed`)
        }
      }
      await stream.ended
      const other = await createClient(url, { origin: 'https://evil.example' }).send({ message: 'Hi' })
      t.equal(other.headers.get('access-control-allow-origin'), null)
      await other.ended
    })

    await t.test('a user who comes for the first time is noted, once for each issuer', async (t) => {
      const ask = (payload: object) => createClient(url, { authorization: `Bearer ${sign(payload)}` }).get(sessions)
      const lin = { ...claims, sub: 'lin' }
      const payloads = [lin, { ...lin, iss: 'https://a.example' }, { ...lin, iss: 'https://b.example' }]
      const answers = await Promise.all([...payloads, ...payloads, ...payloads].map(ask))
      t.ok(answers.every(({ status }) => status === 200))
      await Promise.all(payloads.map(ask))
      const before = await readUsers(gateway)
      const rows = before.filter(({ subject }) => subject === 'lin')
      t.same(
        rows.map(({ issuer }) => issuer),
        ['', 'https://a.example', 'https://b.example'],
      )
      for (const { id } of rows) t.match(id, /^[0-9a-f]{8}-[0-9a-f]{4}-7/)
      const anon = { role: 'anon', iss: 'supabase', exp: claims.exp }
      const visitor = createClient(url, { authorization: `Bearer ${makeToken(supabaseSecret, anon)}` })
      t.match(await visitor.post(sessions, {}), { status: 201, body: { is_anonymous: true } })
      t.same(await readUsers(gateway), before, 'a visitor is nobody')
    })

    await t.test(
      'a user whom the database does not take is served all the same, and noted the next time',
      async (t) => {
        const { db } = gateway.app
        const late = createClient(url, { authorization: `Bearer ${sign({ ...claims, sub: 'late' })}` })
        await db.rows(sql`alter table users rename to users_away`)
        try {
          t.equal((await late.get(sessions)).status, 200)
        } finally {
          await db.rows(sql`alter table users_away rename to users`)
        }
        t.notOk((await readUsers(gateway)).some(({ subject }) => subject === 'late'))
        t.equal((await late.get(sessions)).status, 200)
        t.ok((await readUsers(gateway)).some(({ subject }) => subject === 'late'))
      },
    )

    await t.test('no token, secret or subject is in a log line', async (t) => {
      t.ok(lines.length > 100)
      for (const word of [
        'vst_',
        'canary',
        goodPayload,
        goodSignature,
        'eyJ',
        'grace',
        'visitor_token',
        'evil.example',
      ]) {
        t.same(
          lines.filter((line) => line.includes(word)),
          [],
          word,
        )
      }
      t.same(
        lines.filter((line) => /"level":"(error|fatal|warn)"/.test(line)),
        [],
      )
    })
  })
}

test('what carries only a cookie must come from here, from an origin on the list, or from no browser', async (t) => {
  const { url } = await startEdge(t, { JWT_SECRET: secret, CORS_ORIGINS: 'https://app.example' })
  type From = Readonly<Record<string, string>>
  const { host } = new URL(url)
  const none = {}
  const cookie = { cookie: `visitor_token=vst_${'c'.repeat(43)}` }
  const own: From[] = [
    { 'x-visitor-token': `vst_${'c'.repeat(43)}` },
    { authorization: `Bearer ${good}` },
    { ...cookie, authorization: `Bearer ${good}` },
  ]
  const ambient = [none, cookie]
  const rows: readonly (readonly [from: From, ambient: 200 | 403, own: 200 | 403])[] = [
    [{}, 200, 200],
    [{ 'sec-fetch-site': 'same-origin' }, 200, 200],
    [{ 'sec-fetch-site': 'none' }, 200, 200],
    [{ 'sec-fetch-site': 'same-origin', origin: `http://${host}` }, 200, 200],
    // A frontend on the list.
    [{ 'sec-fetch-site': 'cross-site', origin: 'https://app.example' }, 200, 200],
    [{ 'sec-fetch-site': 'same-site', origin: 'https://app.example' }, 200, 200],
    [{ origin: 'https://app.example' }, 200, 200],
    // An older browser, on the gateway's own page; behind a proxy that ends https, the scheme is another.
    [{ origin: `http://${host}` }, 200, 200],
    [{ origin: `https://${host}` }, 200, 200],
    [{ 'sec-fetch-site': 'same-site', origin: `http://${host}` }, 200, 200],
    // An older browser, on a foreign page.
    [{ origin: 'https://evil.example' }, 403, 200],
    [{ origin: `http://${host}.evil.example` }, 403, 200],
    [{ origin: `http://127.0.0.1` }, 403, 200],
    [{ origin: 'null' }, 403, 200],
    [{ origin: '' }, 403, 200],
    [{ origin: 'https://app.example.evil.example' }, 403, 200],
    [{ origin: 'http://app.example' }, 403, 200],
    // A newer one: a neighbour's page, and a foreign one.
    [{ 'sec-fetch-site': 'same-site' }, 403, 200],
    [{ 'sec-fetch-site': 'same-site', origin: 'https://neighbour.example' }, 403, 200],
    [{ 'sec-fetch-site': 'same-site', origin: 'null' }, 403, 200],
    [{ 'sec-fetch-site': 'something-new' }, 403, 200],
    [{ 'sec-fetch-site': 'cross-site' }, 403, 403],
    [{ 'sec-fetch-site': 'cross-site', origin: 'https://evil.example' }, 403, 403],
    [{ 'sec-fetch-site': 'cross-site', origin: 'null' }, 403, 403],
  ]
  for (const [from, forAmbient, forOwn] of rows) {
    for (const method of ['GET', 'POST']) {
      for (const headers of ambient) await check(method, { ...from, ...headers }, forAmbient)
      for (const headers of own) await check(method, { ...from, ...headers }, forOwn)
    }
  }

  async function check(method: string, headers: From, expected: number): Promise<void> {
    const answer = await fetch(`${url}/who`, { method, headers })
    const body = (await answer.json()) as { code?: string }
    const title = `${method} ${JSON.stringify(headers).replace(/vst_c+|eyJ[^"]+/g, '…')}`
    t.strictSame([answer.status, body.code], [expected, expected === 403 ? 'forbidden_origin' : undefined], title)
    if (expected === 403) t.equal(answer.headers.get('set-cookie'), null, title)
  }

  await t.test('the host is compared as browsers write it', async (t) => {
    const ask = async (host: string, origin: string) => {
      const head = [
        'POST /who HTTP/1.1',
        `Host: ${host}`,
        'Connection: close',
        'Content-Length: 0',
        `Origin: ${origin}`,
      ]
      return (await sendRaw(url, `${head.join('\r\n')}\r\n\r\n`)).status
    }
    t.equal(await ask('chat.example', 'https://chat.example'), 200)
    t.equal(await ask('Chat.Example', 'https://chat.example'), 200)
    t.equal(await ask('chat.example:443', 'https://chat.example'), 200, 'the port that goes without saying')
    t.equal(await ask('chat.example', 'https://chat.example:8443'), 403)
    t.equal(await ask('chat.example:8443', 'https://chat.example'), 403)
    t.equal(await ask('evil.example', 'https://chat.example'), 403)
    t.equal(await ask('a b', 'https://chat.example'), 403)
  })
})

test('a new visitor is not made for a page from elsewhere, and with * every page may come', async (t) => {
  const { url } = await startEdge(t, { CORS_ORIGINS: '*' })
  for (const origin of ['https://any.example', 'null']) {
    t.equal((await fetch(`${url}/who`, { headers: { origin, 'sec-fetch-site': 'cross-site' } })).status, 200, origin)
  }
  const image = await fetch(`${url}/who`, { headers: { 'sec-fetch-site': 'cross-site' } })
  t.equal(image.status, 403, 'a request without an origin is no call of a page, but an image or a link')
  t.equal(image.headers.get('x-visitor-token'), null)
})

test('COOKIE_SAMESITE=none makes cookies for frontends on other sites, when they come and when they go', async (t) => {
  const { url } = await startEdge(t, { COOKIE_SAMESITE: 'none', CORS_ORIGINS: 'https://app.example' })
  const issued = await fetch(`${url}/who`)
  t.match(readCookie(issued.headers.get('set-cookie')), { samesite: 'None', secure: '', httponly: '' })
  const cleared = await fetch(`${url}/who`, { headers: { cookie: 'visitor_token=broken' } })
  t.equal(cleared.status, 401)
  // A browser ignores a Set-Cookie from another site that is not marked so, even one that only takes away.
  t.match(readCookie(cleared.headers.get('set-cookie')), { visitor_token: '', samesite: 'None', secure: '' })
})

test('CORS_ORIGINS may be written with and without blanks, and * goes without cookies', async (t) => {
  for (const list of ['https://a.example,https://b.example', ' https://a.example , https://b.example ,']) {
    const { url } = await startEdge(t, { CORS_ORIGINS: list })
    for (const origin of ['https://a.example', 'https://b.example']) {
      const answer = await createClient(url, { origin }).get('/who')
      t.equal(answer.headers.get('access-control-allow-origin'), origin)
    }
  }
  const { url: open } = await startEdge(t, { CORS_ORIGINS: '*' })
  const answer = await createClient(open, { origin: 'https://x.example', 'sec-fetch-site': 'cross-site' }).get('/who')
  t.equal(answer.status, 200)
  t.equal(answer.headers.get('access-control-allow-origin'), '*')
  t.equal(answer.headers.get('access-control-allow-credentials'), null)

  const { url: none } = await startEdge(t, {})
  const closed = await createClient(none, { origin: 'https://x.example' }).get('/who')
  t.equal(closed.headers.get('access-control-allow-origin'), null)
  const asked = await preflight(none, 'https://x.example', 'authorization')
  t.equal(asked.status, 404)
  t.equal(asked.headers.get('access-control-allow-origin'), null)
})

function preflight(url: string, origin: string, names: string): Promise<Response> {
  return fetch(`${url}/api/v1/chat/stream`, {
    method: 'OPTIONS',
    headers: { origin, 'access-control-request-method': 'POST', 'access-control-request-headers': names },
  })
}

async function readUsers({ app }: Gateway): Promise<{ id: string; issuer: string; subject: string }[]> {
  return app.db.rows(sql`select id, issuer, subject from users order by subject, issuer`)
}

/** The cookie by its name, and its attributes in lower case. */
function readCookie(header: string | null): Record<string, string> {
  const pairs = (header ?? '').split(';').map((pair, index): [string, string] => {
    const [name = '', ...value] = pair.trim().split('=')
    return [index === 0 ? name : name.toLowerCase(), value.join('=')]
  })
  return Object.fromEntries(pairs)
}
