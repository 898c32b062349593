/**
 * Who a request comes from, over real HTTP: every kind of credential and what each is taken for, the life of a visitor's
 * token, and which other origins may call. A credential that cannot be used is 401, never a visitor and never a fault.
 */
import { createHash, createHmac, createSign, generateKeyPairSync } from 'node:crypto'
import type { AddressInfo } from 'node:net'
import { type Test, test } from 'tap'
import { say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import type { Config } from '../../src/config.ts'
import { readConfig } from '../../src/config.ts'
import { sql } from '../../src/db/drizzle.ts'
import { registerCors } from '../../src/http/cors.ts'
import { identity } from '../../src/http/identity.ts'
import { createServer } from '../../src/http/server.ts'
import { createClient } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'
import { sendRaw } from '../support/raw.ts'
import { countRows } from '../support/stored.ts'
import { base64url, inSeconds, makeToken, type TokenOptions } from '../support/tokens.ts'

const secret = 'canary-of-our-own-secret-with-32-bytes'
const supabaseSecret = 'canary-of-the-supabase-secret-32-bytes'
const sessions = '/api/v1/sessions'
const tokenPattern = /^vst_[A-Za-z0-9_-]{43}$/
const claims = { sub: 'ada', exp: inSeconds(3600) }
const sign = (payload: unknown, options?: TokenOptions) => makeToken(secret, payload, options)
const good = sign(claims)
const [goodHeader = '', goodPayload = '', goodSignature = ''] = good.split('.')
const { publicKey, privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 })
const publicPem = publicKey.export({ type: 'spki', format: 'pem' }).toString()

function signRs256(): string {
  const signed = `${base64url('{"alg":"RS256","typ":"JWT"}')}.${base64url(JSON.stringify(claims))}`
  return `${signed}.${createSign('sha256').update(signed).sign(privateKey).toString('base64url')}`
}

/** Another first character changes the first six bits of what is signed or of the signature. */
const tamper = (part: string) => `${part.startsWith('A') ? 'B' : 'A'}${part.slice(1)}`

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

// Made when they are needed: on a busy machine half a minute passes before the second database is there.
const makeAccepted = (): readonly Credential[] => [
  user('our own secret', claims),
  { title: 'the Supabase secret', authorization: `Bearer ${makeToken(supabaseSecret, claims)}`, user: 'ada' },
  { title: 'scheme in lower case', authorization: `bearer ${good}`, user: 'ada' },
  { title: 'scheme in upper case', authorization: `BEARER ${good}`, user: 'ada' },
  { title: 'several blanks', authorization: `Bearer    ${good}`, user: 'ada' },
  { title: 'blanks behind', authorization: `Bearer ${good}   `, user: 'ada' },
  user('a header without typ', claims, { header: { alg: 'HS256' } }),
  user('a header with kid', claims, { header: { alg: 'HS256', kid: '../../dev/null' } }),
  user('expired within the leeway', { ...claims, exp: inSeconds(-20) }),
  user('not before, within the leeway', { ...claims, nbf: inSeconds(20) }),
  user('issued just now, on a clock that is ahead', { ...claims, iat: inSeconds(30) }),
  user('issued long ago', { ...claims, iat: 1 }),
  user('exp with a fraction', { ...claims, exp: inSeconds(3600) + 0.5 }),
  user('a subject of 255 characters', { ...claims, sub: 'x'.repeat(255) }),
  user('a subject in another script', { ...claims, sub: 'Ада 🦊' }),
  user('a subject that looks like SQL', { ...claims, sub: "x' or true --" }),
  user('a subject that looks like a visitor', { ...claims, sub: 'visitor:0' }),
  user('a Supabase user', { ...claims, role: 'authenticated', aud: 'authenticated', app_metadata: {} }),
]

const header = (value: unknown): TokenOptions => ({ header: value })
const without = (name: keyof typeof claims) => ({ ...claims, [name]: undefined })

const makeRefused = (): readonly Credential[] => [
  ...[
    '',
    'Bearer',
    'Bearer ',
    'Basic YWRhOnB3',
    'Basic',
    `Basic ${good}`,
    `Token ${good}`,
    good,
    `Bearer${good}`,
    `Bearer,${good}`,
    `Bearer ${good} x`,
    `Bearer ${good}, Bearer ${good}`,
    `Bearer "${good}"`,
    `Bearer\t${good}`,
    'Bearer x',
    'Bearer ..',
    'Bearer .',
    'Bearer ...',
    'Bearer a.b.c',
    'Bearer null',
    'Bearer undefined',
    'Bearer [object Object]',
    'Bearer {}',
    `Bearer ${'x'.repeat(8193)}`,
    `Bearer ${'x.'.repeat(4000)}`,
    `Bearer vst_${'x'.repeat(43)}`,
    'Bearer \u00e4\u00f6\u00fc',
    'Negotiate YII=',
    'null',
  ].map((authorization) => ({ title: `header ${JSON.stringify(authorization.slice(0, 40))}`, authorization })),
  { title: 'two parts', authorization: `Bearer ${goodHeader}.${goodPayload}` },
  { title: 'no signature', authorization: `Bearer ${goodHeader}.${goodPayload}.` },
  { title: 'four parts', authorization: `Bearer ${good}.${goodSignature}` },
  { title: 'five parts, as of an encrypted token', authorization: `Bearer ${good}.${goodSignature}.x` },
  { title: 'no payload', authorization: `Bearer ${goodHeader}..${goodSignature}` },
  { title: 'another signature', authorization: `Bearer ${goodHeader}.${goodPayload}.${tamper(goodSignature)}` },
  { title: 'half a signature', authorization: `Bearer ${goodHeader}.${goodPayload}.${goodSignature.slice(0, 20)}` },
  {
    title: 'the signature of another token',
    authorization: `Bearer ${goodHeader}.${goodPayload}.${sign({ ...claims, sub: 'eve' }).split('.')[2]}`,
  },
  {
    title: 'another payload',
    authorization: `Bearer ${goodHeader}.${base64url(JSON.stringify({ ...claims, sub: 'eve' }))}.${goodSignature}`,
  },
  { title: 'another header', authorization: `Bearer ${base64url('{"alg":"HS256"}')}.${goodPayload}.${goodSignature}` },
  { title: 'a secret that nobody has', authorization: `Bearer ${makeToken('another secret', claims)}` },
  { title: 'the empty secret', authorization: `Bearer ${makeToken('', claims)}` },
  { title: 'alg none, unsigned', authorization: `Bearer ${base64url('{"alg":"none"}')}.${goodPayload}.` },
  { title: 'alg None, unsigned', authorization: `Bearer ${base64url('{"alg":"None"}')}.${goodPayload}.` },
  token('alg none, signed', claims, header({ alg: 'none' })),
  token('alg NONE, signed', claims, header({ alg: 'NONE' })),
  token('alg hs256', claims, header({ alg: 'hs256' })),
  token('alg HS384 over an HS256 signature', claims, header({ alg: 'HS384' })),
  token('alg HS512 over an HS256 signature', claims, header({ alg: 'HS512' })),
  token('alg HS512, truly signed so', claims, { header: { alg: 'HS512' }, hash: 'sha512' }),
  token('alg RS256 over an HS256 signature', claims, header({ alg: 'RS256' })),
  { title: 'alg RS256 of another key', authorization: `Bearer ${signRs256()}` },
  { title: 'HS256 with a public key as the secret', authorization: `Bearer ${makeToken(publicPem, claims)}` },
  token('alg EdDSA', claims, header({ alg: 'EdDSA' })),
  token('no alg', claims, header({ typ: 'JWT' })),
  token('alg as a number', claims, header({ alg: 256 })),
  token('alg as a list', claims, header({ alg: ['HS256'] })),
  token('a header that is null', claims, header(null)),
  token('a header that is a list', claims, header([])),
  token('a header that is no JSON', claims, header('{')),
  token('an extension that must be understood', claims, header({ alg: 'HS256', crit: ['b64'], b64: false })),
  token('an unknown extension that must be understood', claims, header({ alg: 'HS256', crit: ['x'], x: 1 })),
  {
    title: 'signed with the key in its header',
    authorization: `Bearer ${makeToken('mine', claims, header({ alg: 'HS256', jwk: { kty: 'oct', k: base64url('mine') } }))}`,
  },
  token('a payload that is no JSON', 'x'),
  token('a payload that is a string', '"ada"'),
  token('a payload that is null', 'null'),
  token('a payload that is a list', '[]'),
  token('a payload that is a number', '5'),
  token('an empty payload', ''),
  token('no claims', {}),
  token('expired', { ...claims, exp: inSeconds(-60) }),
  token('expired in 1970', { ...claims, exp: 0 }),
  token('exp below zero', { ...claims, exp: -1 }),
  token('no exp', without('exp')),
  token('exp as text', { ...claims, exp: String(claims.exp) }),
  token('exp null', { ...claims, exp: null }),
  token('exp as a list', { ...claims, exp: [claims.exp] }),
  token('exp true', { ...claims, exp: true }),
  token('not yet valid', { ...claims, nbf: inSeconds(60) }),
  token('nbf as text', { ...claims, nbf: '0' }),
  token('issued in the future', { ...claims, iat: inSeconds(120) }),
  token('iat as text', { ...claims, iat: 'now' }),
  token('no sub', without('sub')),
  token('an empty sub', { ...claims, sub: '' }),
  token('sub as a number', { ...claims, sub: 5 }),
  token('sub null', { ...claims, sub: null }),
  token('sub as an object', { ...claims, sub: { toString: 'ada' } }),
  token('sub as a list', { ...claims, sub: ['ada'] }),
  token('a sub of 256 characters', { ...claims, sub: 'x'.repeat(256) }),
  token('a sub with NUL', { ...claims, sub: 'ada\u0000' }),
  token('a sub with half a character', `{"sub":"ada\\ud800","exp":${claims.exp}}`),
  token('__proto__ instead of sub', `{"__proto__":{"sub":"ada"},"exp":${claims.exp}}`),
  token('the service role', { ...claims, role: 'service_role' }),
  {
    title: 'the service role of Supabase',
    authorization: `Bearer ${makeToken(supabaseSecret, { ...claims, role: 'service_role' })}`,
  },
  {
    title: 'the public key of Supabase',
    authorization: `Bearer ${makeToken(supabaseSecret, { role: 'anon', iss: 'supabase', exp: claims.exp })}`,
  },
]

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const upstream = await startFakeUpstream({ script: () => say({ text: 'Hello' }) })
    t.teardown(() => upstream.close())
    const lines: string[] = []
    const gateway = await startGateway(t, {
      database,
      logStream: { write: (line) => lines.push(line) },
      env: {
        OPENAI_BASE_URL: upstream.url,
        JWT_SECRET: secret,
        SUPABASE_JWT_SECRET: supabaseSecret,
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
      t.ok(refused.length >= 60)
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
      for (const site of ['same-origin', 'same-site', 'none']) {
        t.equal((await createClient(url, { 'sec-fetch-site': site }).get(sessions)).status, 200, site)
      }
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

test('issuer and audience count when they are configured', async (t) => {
  const url = await startEdge(t, { JWT_SECRET: secret, JWT_ISSUER: 'https://id.example', JWT_AUDIENCE: 'verbatim' })
  const right = { ...claims, iss: 'https://id.example', aud: 'verbatim' }
  const usable = [right, { ...right, aud: ['other', 'verbatim'] }]
  const unusable = [
    claims,
    { ...right, iss: undefined },
    { ...right, aud: undefined },
    { ...right, iss: 'https://id.example/' },
    { ...right, iss: 'https://ID.example' },
    { ...right, iss: 'https://evil.example' },
    { ...right, iss: ['https://id.example'] },
    { ...right, iss: null },
    { ...right, aud: 'Verbatim' },
    { ...right, aud: 'verbatim2' },
    { ...right, aud: [] },
    { ...right, aud: ['other'] },
    { ...right, aud: [['verbatim']] },
    { ...right, aud: { verbatim: true } },
    { ...right, aud: null },
    { ...right, aud: 5 },
  ]
  for (const payload of usable) {
    const answer = await createClient(url, { authorization: `Bearer ${sign(payload)}` }).get('/who')
    t.match(answer, { status: 200, body: { key: 'user:ada' } })
  }
  for (const payload of unusable) {
    const answer = await createClient(url, { authorization: `Bearer ${sign(payload)}` }).get('/who')
    t.match(answer, { status: 401, body: { code: 'invalid_token' } }, JSON.stringify(payload))
  }
})

test('without a secret no token is good, not even one signed with nothing', async (t) => {
  const url = await startEdge(t, {})
  const unsigned = `${base64url('{"alg":"none"}')}.${goodPayload}.`
  for (const bearer of [good, unsigned, makeToken('', claims), makeToken('undefined', claims)]) {
    const answer = await createClient(url, { authorization: `Bearer ${bearer}` }).get('/who')
    t.match(answer, { status: 401, body: { code: 'invalid_token' } })
  }
  t.match((await createClient(url).get('/who')).body, { kind: 'visitor' })
})

test('the Supabase secret alone is enough', async (t) => {
  const url = await startEdge(t, { SUPABASE_JWT_SECRET: supabaseSecret })
  const bearer = (key: string) => createClient(url, { authorization: `Bearer ${makeToken(key, claims)}` }).get('/who')
  t.match(await bearer(supabaseSecret), { status: 200, body: { userId: 'ada' } })
  t.match(await bearer(secret), { status: 401 })
})

test('COOKIE_SAMESITE=none makes cookies for frontends on other sites, when they come and when they go', async (t) => {
  const url = await startEdge(t, { COOKIE_SAMESITE: 'none', CORS_ORIGINS: 'https://app.example' })
  const issued = await fetch(`${url}/who`)
  t.match(readCookie(issued.headers.get('set-cookie')), { samesite: 'None', secure: '', httponly: '' })
  const cleared = await fetch(`${url}/who`, { headers: { cookie: 'visitor_token=broken' } })
  t.equal(cleared.status, 401)
  // A browser ignores a Set-Cookie from another site that is not marked so, even one that only takes away.
  t.match(readCookie(cleared.headers.get('set-cookie')), { visitor_token: '', samesite: 'None', secure: '' })
})

test('CORS_ORIGINS may be written with and without blanks, and * goes without cookies', async (t) => {
  for (const list of ['https://a.example,https://b.example', ' https://a.example , https://b.example ,']) {
    const url = await startEdge(t, { CORS_ORIGINS: list })
    for (const origin of ['https://a.example', 'https://b.example']) {
      const answer = await createClient(url, { origin }).get('/who')
      t.equal(answer.headers.get('access-control-allow-origin'), origin)
    }
  }
  const any = await startEdge(t, { CORS_ORIGINS: '*' })
  const answer = await createClient(any, { origin: 'https://x.example', 'sec-fetch-site': 'cross-site' }).get('/who')
  t.equal(answer.status, 200)
  t.equal(answer.headers.get('access-control-allow-origin'), '*')
  t.equal(answer.headers.get('access-control-allow-credentials'), null)

  const none = await startEdge(t, {})
  const closed = await createClient(none, { origin: 'https://x.example' }).get('/who')
  t.equal(closed.headers.get('access-control-allow-origin'), null)
  const asked = await preflight(none, 'https://x.example', 'authorization')
  t.equal(asked.status, 404)
  t.equal(asked.headers.get('access-control-allow-origin'), null)
})

test('a twin: the tokens of this file are made as the specification says', async (t) => {
  // RFC 7515, appendix A.1.
  const key = Buffer.from(
    'AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow',
    'base64url',
  )
  const signed =
    'eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ'
  const signature = createHmac('sha256', key).update(signed).digest('base64url')
  t.equal(signature, 'dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk')
})

/** The edge of the gateway without the rest: a route that says who asks. */
async function startEdge(t: Test, env: Record<string, string>): Promise<string> {
  const config: Config = readConfig(env)
  const server = createServer({ logLevel: 'silent' })
  t.teardown(() => server.close())
  await registerCors(server, config.corsOrigins)
  await server.register(async (api) => {
    const readTicket = async () => undefined
    await api.register(identity, { auth: config.auth, corsOrigins: config.corsOrigins, readTicket })
    api.get('/who', async (request) => request.owner)
  })
  await server.listen({ port: 0, host: '127.0.0.1' })
  return `http://127.0.0.1:${(server.server.address() as AddressInfo).port}`
}

function preflight(url: string, origin: string, names: string): Promise<Response> {
  return fetch(`${url}/api/v1/chat/stream`, {
    method: 'OPTIONS',
    headers: { origin, 'access-control-request-method': 'POST', 'access-control-request-headers': names },
  })
}

/** The cookie by its name, and its attributes in lower case. */
function readCookie(header: string | null): Record<string, string> {
  const pairs = (header ?? '').split(';').map((pair, index): [string, string] => {
    const [name = '', ...value] = pair.trim().split('=')
    return [index === 0 ? name : name.toLowerCase(), value.join('=')]
  })
  return Object.fromEntries(pairs)
}
