/**
 * A table of tokens: what each is taken for, in which configuration, over real HTTP. Each is answered exactly as the table
 * says, none with a fault, and none causes a request to anywhere but the one address that is configured, and there one.
 */
import { createHmac, sign as signWith } from 'node:crypto'
import { type Test, test } from 'tap'
import { readClaims, readToken } from '../../src/http/claims.ts'
import { startEdge } from '../support/edge.ts'
import { startGateway } from '../support/gateway.ts'
import { cutOff, type KeyServer, startKeyServer, withKeys } from '../support/key-server.ts'
import { sendRaw } from '../support/raw.ts'
import { base64url, encodeToken, inSeconds, makeKey, makeToken, type TokenOptions } from '../support/tokens.ts'

type Expected = 401 | 503 | 'visitor' | { readonly user: string }

interface Row {
  readonly title: string
  /** The whole header. */
  readonly authorization: string
  /** Further header lines. */
  readonly lines?: readonly string[]
  readonly expected: Expected
}

const secret = 'canary-of-our-own-secret-with-32-bytes'
const supabaseSecret = 'canary-of-the-supabase-secret-32-bytes'
const issuer = 'https://id.example'
const audience = 'verbatim'

const keys = {
  ec: makeKey('ES256', 'ec'),
  ec2: makeKey('ES256', 'ec2'),
  rsa: makeKey('RS256', 'rsa'),
  ed: makeKey('EdDSA', 'ed'),
  weak: makeKey('RS1024', 'weak'),
  p384: makeKey('ES384', 'p384'),
  k1: makeKey('ES256K', 'k1'),
  ed448: makeKey('Ed448', 'ed448'),
  leaked: makeKey('ES256', 'leaked'),
  encryption: makeKey('RS256', 'encryption'),
  signOnly: makeKey('ES256', 'sign-only'),
  otherAlg: makeKey('ES256', 'other-alg'),
  twice: makeKey('ES256', 'twice'),
  stranger: makeKey('ES256', 'ec'),
}
const symmetric = 'a-symmetric-key-in-a-public-set-32-bytes'
const exponentOne = { ...keys.rsa.jwk, kid: 'exponent-one', e: 'AQ' }
const published = [
  keys.ec.jwk,
  { ...keys.ec2.jwk, alg: 'ES256', use: 'sig', key_ops: ['verify'] },
  keys.rsa.jwk,
  keys.ed.jwk,
  keys.weak.jwk,
  keys.p384.jwk,
  keys.k1.jwk,
  keys.ed448.jwk,
  keys.leaked.privateJwk,
  { ...keys.encryption.jwk, use: 'enc' },
  { ...keys.signOnly.jwk, key_ops: ['sign'] },
  { ...keys.otherAlg.jwk, alg: 'ES384' },
  keys.twice.jwk,
  { ...keys.ec2.jwk, kid: 'twice' },
  exponentOne,
  { kty: 'oct', kid: 'oct', alg: 'HS256', k: base64url(symmetric) },
  { ...keys.ec.jwk, kid: undefined },
]

const claims = { sub: 'ada', exp: inSeconds(3600) }
const ada = { user: 'ada' }
const hmac = (payload: unknown, options?: TokenOptions) => makeToken(secret, payload, options)
const good = hmac(claims)
const [goodHeader = '', goodPayload = '', goodSignature = ''] = good.split('.')
const goodEc = keys.ec.token(claims)
const [ecHeader = '', ecPayload = '', ecSignature = ''] = goodEc.split('.')

const row = (title: string, token: string, expected: Expected, ...lines: readonly string[]): Row => ({
  title,
  authorization: `Bearer ${token}`,
  expected,
  lines,
})
const without = (name: keyof typeof claims) => ({ ...claims, [name]: undefined })
const header = (value: unknown): TokenOptions => ({ header: value })
/** Another first character changes the first six bits of what is signed or of the signature. */
const tamper = (part: string) => `${part.startsWith('A') ? 'B' : 'A'}${part.slice(1)}`
/** Another last character that stands for the same bytes: the bits of it that do not count are set. */
function respell(part: string): string {
  const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'
  return `${part.slice(0, -1)}${alphabet[alphabet.indexOf(part.at(-1) as string) + 1]}`
}

/** The value of the header, whatever is configured. */
const makeHeaders = (): readonly Row[] => [
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
  ].map((authorization) => ({
    title: `header ${JSON.stringify(authorization.slice(0, 40))}`,
    authorization,
    expected: 401 as const,
  })),
  { title: 'scheme in lower case', authorization: `bearer ${good}`, expected: ada },
  { title: 'scheme in upper case', authorization: `BEARER ${goodEc}`, expected: ada },
  { title: 'several blanks', authorization: `Bearer    ${good}`, expected: ada },
  { title: 'blanks behind', authorization: `Bearer ${goodEc}   `, expected: ada },
  row('beside a visitor token it is the user', good, ada, `X-Visitor-Token: vst_${'x'.repeat(43)}`),
  row('beside a broken visitor token too', good, ada, 'X-Visitor-Token: x', 'Cookie: visitor_token=x'),
  row('a token of 8192 characters', padTo(8192), ada),
  row('a token of 8193 characters', padTo(8193), 401),
]

/** A good token of that length. */
function padTo(units: number): string {
  for (let pad = 5900; ; pad += 1) {
    const token = hmac({ ...claims, pad: 'x'.repeat(pad) })
    if (token.length >= units) return token
  }
}

/** Secrets: ours, and Supabase's. */
const makeHmacRows = (): readonly Row[] => [
  row('our own secret', good, ada),
  row('the Supabase secret', makeToken(supabaseSecret, claims), ada),
  row('a header without typ', hmac(claims, header({ alg: 'HS256' })), ada),
  row('a header with kid', hmac(claims, header({ alg: 'HS256', kid: '../../dev/null' })), ada),
  row('a header with the kid of a public key', hmac(claims, header({ alg: 'HS256', kid: 'ec' })), ada),
  row('another typ', hmac(claims, header({ alg: 'HS256', typ: 'at+jwt' })), ada),
  row('two parts', `${goodHeader}.${goodPayload}`, 401),
  row('no signature', `${goodHeader}.${goodPayload}.`, 401),
  row('four parts', `${good}.${goodSignature}`, 401),
  row('five parts, as of an encrypted token', `${good}.${goodSignature}.x`, 401),
  row('no payload', `${goodHeader}..${goodSignature}`, 401),
  row('no header', `.${goodPayload}.${goodSignature}`, 401),
  row('another signature', `${goodHeader}.${goodPayload}.${tamper(goodSignature)}`, 401),
  row('half a signature', `${goodHeader}.${goodPayload}.${goodSignature.slice(0, 20)}`, 401),
  row('a signature and more', `${good}AAAA`, 401),
  row(
    'the signature of another token',
    `${goodHeader}.${goodPayload}.${hmac({ ...claims, sub: 'eve' }).split('.')[2]}`,
    401,
  ),
  row('another payload', `${goodHeader}.${base64url(JSON.stringify({ ...claims, sub: 'eve' }))}.${goodSignature}`, 401),
  row('another header', `${base64url('{"alg":"HS256"}')}.${goodPayload}.${goodSignature}`, 401),
  row('a secret that nobody has', makeToken('another secret', claims), 401),
  row('the empty secret', makeToken('', claims), 401),
  row('a secret of zeros', makeToken(Buffer.alloc(32), claims), 401),
  row('the secret as base64', makeToken(base64url(secret), claims), 401),
  row('alg HS384 over an HS256 signature', hmac(claims, header({ alg: 'HS384' })), 401),
  row('alg HS384, truly signed so', hmac(claims, { header: { alg: 'HS384' }, hash: 'sha384' }), 401),
  row('alg HS512 over an HS256 signature', hmac(claims, header({ alg: 'HS512' })), 401),
  row('alg HS512, truly signed so', hmac(claims, { header: { alg: 'HS512' }, hash: 'sha512' }), 401),
  row('alg HS256 over an HS512 signature', hmac(claims, { hash: 'sha512' }), 401),
  ...['hs256', 'Hs256', 'HS256 ', 'HS256\u0000', 'HS-256', '', 'HMAC', 'RS256', 'EdDSA'].map((alg) =>
    row(`alg ${JSON.stringify(alg)} over an HS256 signature`, hmac(claims, header({ alg, kid: 'ec' })), 401),
  ),
  row(
    'signed with the key in its header',
    makeToken('mine', claims, header({ alg: 'HS256', jwk: { kty: 'oct', k: base64url('mine') } })),
    401,
  ),
]

/** The form of a token: each of these is signed with our own secret. */
const makeFormRows = (): readonly Row[] => {
  const resigned = (head: string, payload: string) =>
    `${head}.${payload}.${createHmac('sha256', secret).update(`${head}.${payload}`).digest('base64url')}`
  // Of three bytes more than a multiple of three, so that the last character has bits that do not count.
  const oddPayload = [0, 1, 2]
    .map((n) => base64url(JSON.stringify({ ...claims, pad: 'x'.repeat(n) })))
    .find((p) => p.length % 4 === 2) as string
  const plus = ['?>?', 'x?>?', 'xx?>?']
    .map((pad) =>
      Buffer.from(JSON.stringify({ ...claims, pad }))
        .toString('base64')
        .replaceAll('=', ''),
    )
    .find((payload) => /[+/]/.test(payload)) as string
  return [
    row('the payload in its one spelling', resigned(goodHeader, oddPayload), ada),
    row('the payload in another spelling', resigned(goodHeader, respell(oddPayload)), 401),
    row('the signature in another spelling', `${goodHeader}.${goodPayload}.${respell(goodSignature)}`, 401),
    row('the payload with padding', resigned(goodHeader, `${oddPayload}==`), 401),
    row('the signature with padding', `${good}=`, 401),
    row('plain base64 with + or /', resigned(goodHeader, plus), 401),
    row('a line break in the payload', resigned(goodHeader, `${goodPayload}%0A`), 401),
    row(
      'a payload that is no UTF-8',
      hmac(Buffer.concat([Buffer.from(`{"exp":${claims.exp},"sub":"ada`), Buffer.from([0xff]), Buffer.from('"}')])),
      401,
    ),
    row('a payload in UTF-16', hmac(Buffer.from(JSON.stringify(claims), 'utf16le')), 401),
    row('a payload with a byte order mark', hmac(`\ufeff${JSON.stringify(claims)}`), 401),
    row('a payload that is no JSON', hmac('x'), 401),
    row('a payload that is a string', hmac('"ada"'), 401),
    row('a payload that is null', hmac('null'), 401),
    row('a payload that is a list', hmac('[]'), 401),
    row('a payload that is a list of claims', hmac([claims]), 401),
    row('a payload that is a number', hmac('5'), 401),
    row('a payload that is true', hmac('true'), 401),
    row('an empty payload', hmac(''), 401),
    row('two payloads', hmac(`${JSON.stringify(claims)}${JSON.stringify(claims)}`), 401),
    row('a payload with a comma too many', hmac(`{"sub":"ada","exp":${claims.exp},}`), 401),
    row('a payload with a comment', hmac(`{"sub":"ada",/**/"exp":${claims.exp}}`), 401),
    row('a payload with blanks', hmac(` {"sub": "ada", "exp": ${claims.exp}} `), ada),
    row('no claims', hmac({}), 401),
    row(
      'deep JSON beside the claims',
      hmac(`{"sub":"ada","exp":${claims.exp},"x":${'['.repeat(2500)}${']'.repeat(2500)}}`),
      ada,
    ),
    row('nothing but deep JSON', hmac('['.repeat(5500)), 401),
    row('sub twice: the last one counts', hmac(`{"sub":"eve","sub":"ada","exp":${claims.exp}}`), ada),
    row('exp twice: the last one counts', hmac(`{"exp":${claims.exp},"sub":"ada","exp":1}`), 401),
    row(
      'role twice: the last one counts',
      hmac(`{"role":"anon","sub":"ada","exp":${claims.exp},"role":"service_role"}`),
      401,
    ),
    row('alg twice: the last one counts', hmac(claims, header('{"alg":"none","alg":"HS256"}')), ada),
    row('alg twice, none at last', hmac(claims, header('{"alg":"HS256","alg":"none"}')), 401),
    row('__proto__ instead of sub', hmac(`{"__proto__":{"sub":"ada"},"exp":${claims.exp}}`), 401),
    row('__proto__ instead of exp', hmac(`{"sub":"ada","__proto__":{"exp":${claims.exp}}}`), 401),
    row('__proto__ instead of alg', hmac(claims, header('{"__proto__":{"alg":"HS256"}}')), 401),
    row('constructor beside sub', hmac(`{"sub":"ada","constructor":null,"toString":1,"exp":${claims.exp}}`), ada),
    row('no alg', hmac(claims, header({ typ: 'JWT' })), 401),
    row('alg null', hmac(claims, header({ alg: null })), 401),
    row('alg as a number', hmac(claims, header({ alg: 256 })), 401),
    row('alg as a list', hmac(claims, header({ alg: ['HS256'] })), 401),
    row('alg as an object', hmac(claims, header({ alg: { toString: 'HS256' } })), 401),
    row('Alg', hmac(claims, header({ Alg: 'HS256' })), 401),
    row('a header that is null', hmac(claims, header(null)), 401),
    row('a header that is a list', hmac(claims, header([])), 401),
    row('a header that is a string', hmac(claims, header('"HS256"')), 401),
    row('a header that is no JSON', hmac(claims, header('{')), 401),
    row('a header that is empty JSON', hmac(claims, header({})), 401),
    row('an extension that must be understood', hmac(claims, header({ alg: 'HS256', crit: ['b64'], b64: false })), 401),
    row('an unknown extension that must be understood', hmac(claims, header({ alg: 'HS256', crit: ['x'], x: 1 })), 401),
    row('no extension that must be understood', hmac(claims, header({ alg: 'HS256', crit: [] })), 401),
    row('crit null', hmac(claims, header({ alg: 'HS256', crit: null })), 401),
    row('crit as text', hmac(claims, header({ alg: 'HS256', crit: '' })), 401),
    row('crit in a token of the set', keys.ec.token(claims, { crit: ['exp'] }), 401),
    ...['none', 'None', 'NONE', 'nOnE', 'none ', 'nоne'].flatMap((alg) => [
      row(`alg ${alg}, unsigned`, `${base64url(JSON.stringify({ alg }))}.${goodPayload}.`, 401),
      row(`alg ${alg}, signed`, hmac(claims, header({ alg })), 401),
      row(
        `alg ${alg}, with kid and the signature of another`,
        `${base64url(JSON.stringify({ alg, kid: 'ec' }))}.${ecPayload}.${ecSignature}`,
        401,
      ),
    ]),
    row('alg none in two parts', `${base64url('{"alg":"none"}')}.${goodPayload}`, 401),
  ]
}

/** The claims: `make` signs them. */
const makeClaimRows = (make: (payload: unknown) => string): readonly Row[] => [
  ...[
    ['expired within the leeway', { ...claims, exp: inSeconds(-15) }],
    ['not before, within the leeway', { ...claims, nbf: inSeconds(15) }],
    ['issued just now, on a clock that is ahead', { ...claims, iat: inSeconds(45) }],
    ['issued long ago', { ...claims, iat: 1 }],
    ['all times', { ...claims, iat: inSeconds(-5), nbf: inSeconds(-5) }],
    ['exp with a fraction', { ...claims, exp: inSeconds(3600) + 0.5 }],
    ['exp in the year 9999', { ...claims, exp: 253_402_300_799 }],
    ['an audience that nobody asked for', { ...claims, aud: 'authenticated', role: 'authenticated', app_metadata: {} }],
    ['several of them', { ...claims, aud: ['a', 'b'] }],
    ['no audience of a list', { ...claims, aud: [] }],
    ['an issuer that nobody asked for', { ...claims, iss: 'http://127.0.0.1:9/' }],
    ['roles of another kind', { ...claims, role: ['editor'], app_metadata: { role: 5 } }],
    ['app_metadata null', { ...claims, app_metadata: null }],
    ['anon with a sub is a user', { ...claims, role: 'anon' }],
  ].map(([title, payload]) => row(title as string, make(payload), ada)),
  ...['x'.repeat(255), 'Ада 🦊', "x' or true --", 'visitor:0', ' ', '\u0001', 'constructor', '__proto__'].map((sub) =>
    row(`sub ${JSON.stringify(sub.slice(0, 20))}`, make({ ...claims, sub }), { user: sub }),
  ),
  ...[
    ['expired', { ...claims, exp: inSeconds(-45) }],
    ['expired in 1970', { ...claims, exp: 0 }],
    ['exp below zero', { ...claims, exp: -1 }],
    ['exp far below zero', `{"sub":"ada","exp":-1e308}`],
    ['exp beyond all numbers', `{"sub":"ada","exp":1e999}`],
    ['exp of 308 digits', `{"sub":"ada","exp":1e308}`],
    ['exp in milliseconds', { ...claims, exp: Date.now() + 3_600_000 }],
    ['exp in the year 10000', { ...claims, exp: 253_402_300_800 }],
    ['exp NaN', `{"sub":"ada","exp":NaN}`],
    ['no exp', without('exp')],
    ['exp as text', { ...claims, exp: String(claims.exp) }],
    ['exp as a date', { ...claims, exp: new Date(Date.now() + 3_600_000).toISOString() }],
    ['exp null', { ...claims, exp: null }],
    ['exp as a list', { ...claims, exp: [claims.exp] }],
    ['exp as an object', { ...claims, exp: {} }],
    ['exp true', { ...claims, exp: true }],
    ['not yet valid', { ...claims, nbf: inSeconds(60) }],
    ['nbf as text', { ...claims, nbf: '0' }],
    ['nbf null', { ...claims, nbf: null }],
    ['nbf below zero', { ...claims, nbf: -1 }],
    ['nbf beyond all numbers', `{"sub":"ada","exp":${claims.exp},"nbf":1e999}`],
    ['nbf false', { ...claims, nbf: false }],
    ['issued in the future', { ...claims, iat: inSeconds(120) }],
    ['iat as text', { ...claims, iat: 'now' }],
    ['iat null', { ...claims, iat: null }],
    ['iat below zero', { ...claims, iat: -5 }],
    ['iat beyond all numbers', `{"sub":"ada","exp":${claims.exp},"iat":1e999}`],
    ['no sub', without('sub')],
    ['an empty sub', { ...claims, sub: '' }],
    ['sub as a number', { ...claims, sub: 5 }],
    ['sub null', { ...claims, sub: null }],
    ['sub true', { ...claims, sub: true }],
    ['sub as an object', { ...claims, sub: { toString: 'ada' } }],
    ['sub as a list', { ...claims, sub: ['ada'] }],
    ['a sub of 256 characters', { ...claims, sub: 'x'.repeat(256) }],
    ['a sub of 128 foxes', { ...claims, sub: '🦊'.repeat(128) }],
    ['a sub with NUL', { ...claims, sub: 'ada\u0000' }],
    ['a sub that is NUL', { ...claims, sub: '\u0000' }],
    ['a sub with half a character', `{"sub":"ada\\ud800","exp":${claims.exp}}`],
    ['Sub', { Sub: 'ada', exp: claims.exp }],
    ['iss as a list', { ...claims, iss: [issuer] }],
    ['iss as a number', { ...claims, iss: 5 }],
    ['iss null', { ...claims, iss: null }],
    ['an iss with NUL', { ...claims, iss: 'x\u0000' }],
    ['an iss of 513 characters', { ...claims, iss: 'x'.repeat(513) }],
    ['aud as a number', { ...claims, aud: 5 }],
    ['aud null', { ...claims, aud: null }],
    ['aud as a list of lists', { ...claims, aud: [['x']] }],
    ['the service role', { ...claims, role: 'service_role' }],
    ['the service role without sub', { role: 'service_role', iss: 'supabase', exp: claims.exp }],
    ['the service role among others', { ...claims, role: ['anon', 'service_role'] }],
    ['the service role inside', { ...claims, role: 'authenticated', app_metadata: { role: 'service_role' } }],
    ['the service role inside a public key', { role: 'anon', app_metadata: { role: 'service_role' }, exp: claims.exp }],
  ].map(([title, payload]) => row(title as string, make(payload), 401)),
]

/** The public key of a Supabase project. */
const anon = { role: 'anon', iss: 'supabase', ref: 'abcdefgh', iat: 1_600_000_000, exp: 2_000_000_000 + claims.exp }
const makeAnonRows = (make: (payload: unknown) => string): readonly Row[] => [
  row('the public key of Supabase is a new visitor', make(anon), 'visitor'),
  row('without an issuer too', make({ role: 'anon', exp: claims.exp }), 'visitor'),
  row('with any audience', make({ ...anon, aud: 'other' }), 'visitor'),
  row('beside a visitor token it is that visitor', make(anon), 'visitor', `X-Visitor-Token: vst_${'a'.repeat(43)}`),
  row('beside a cookie too', make(anon), 'visitor', `Cookie: visitor_token=vst_${'a'.repeat(43)}`),
  row('beside a broken visitor token', make(anon), 401, 'X-Visitor-Token: vst_'),
  row('beside a broken cookie', make(anon), 401, 'Cookie: visitor_token=vst_'),
  row('the public key, expired', make({ ...anon, exp: inSeconds(-60) }), 401),
  row('the public key without exp', make({ ...anon, exp: undefined }), 401),
  row('the public key of the future', make({ ...anon, nbf: inSeconds(60) }), 401),
  row('the public key with sub null', make({ ...anon, sub: null }), 401),
  row('the public key with an empty sub', make({ ...anon, sub: '' }), 401),
  row('a role in another case', make({ ...anon, role: 'Anon' }), 401),
  row('a list of roles', make({ ...anon, role: ['anon'] }), 401),
  row('the public key with another signature', `${make(anon).slice(0, -12)}AAAAAAAAAAAA`, 401),
  row('the public key unsigned', `${make(anon).split('.').slice(0, 2).join('.')}.`, 401),
]

/** Public keys. `canary` is an address that must never be asked. */
const makeKeyRows = (canary: string): readonly Row[] => {
  const { ec, ec2, rsa, ed } = keys
  const jwkText = JSON.stringify(ec.jwk)
  const confused: Readonly<Record<string, string | Buffer>> = {
    'its PEM': ec.pem,
    'its PEM without the last line break': ec.pem.trimEnd(),
    'its PEM with CRLF': ec.pem.replaceAll('\n', '\r\n'),
    'its DER': ec.der,
    'its DER as base64': ec.der.toString('base64'),
    'its JWK': jwkText,
    'its whole set': JSON.stringify({ keys: published }),
    'its x': ec.jwk.x as string,
    'the bytes of its x': Buffer.from(ec.jwk.x as string, 'base64url'),
    'the PEM of RSA': rsa.pem,
    'the modulus of RSA': Buffer.from(rsa.jwk.n as string, 'base64url'),
    'the PEM of Ed25519': ed.pem,
    'the bytes of Ed25519': Buffer.from(ed.jwk.x as string, 'base64url'),
    'the symmetric key that the set has': symmetric,
  }
  const der = (signed: Buffer) => signWith('sha256', signed, { key: ec.privateKey, dsaEncoding: 'der' })
  const ecWith = (signature: Uint8Array) => `${ecHeader}.${ecPayload}.${base64url(signature)}`
  const order = Buffer.from('ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551', 'hex')
  const one = Buffer.concat([Buffer.alloc(31), Buffer.from([1])])
  const foreign = { jku: canary, x5u: canary, iss: canary }
  return [
    row('ES256', goodEc, ada),
    row('ES256 of another key of the set', ec2.token(claims), ada),
    row('RS256', rsa.token(claims), ada),
    row('EdDSA', ed.token(claims), ada),
    row('ES256 without typ', ec.token(claims, { typ: undefined }), ada),
    row('ES256 with addresses of keys, which nobody reads', ec.token({ ...claims, iss: canary }, foreign), ada),
    row('no kid', ec.token(claims, { kid: undefined }), 401),
    ...['', 0, 1, null, true, ['ec'], { ec: 1 }].map((kid) =>
      row(`kid ${JSON.stringify(kid)}`, ec.token(claims, { kid }), 401),
    ),
    ...[
      'unknown',
      'EC',
      ' ec',
      'ec ',
      'ec\u0000',
      'ec\n',
      'ec,ec2',
      '*',
      '__proto__',
      'constructor',
      'toString',
      'undefined',
      '0',
      '../../../dev/null',
      '/etc/passwd',
      'file:///etc/passwd',
      "' or 1=1 --",
      "ec'||'",
      '{{7*7}}',
      '$(id)',
      '%65%63',
      '{"$ne":null}',
      '\ud800',
      'x'.repeat(3000),
      canary,
    ].map((kid) => row(`kid ${JSON.stringify(kid.slice(0, 30))}`, ec.token(claims, { kid }), 401)),
    row('the kid of another key of the same type', ec.token(claims, { kid: 'ec2' }), 401),
    row('the kid of a key of another type', ec.token(claims, { kid: 'rsa' }), 401),
    row('the kid and alg of a key of another type', ec.token(claims, { kid: 'rsa', alg: 'RS256' }), 401),
    row('RSA under the kid of EC', rsa.token(claims, { kid: 'ec' }), 401),
    row('EdDSA under the kid of EC', ed.token(claims, { kid: 'ec' }), 401),
    row('a stranger’s key under a known kid', keys.stranger.token(claims), 401),
    row('a stranger’s key in the header', keys.stranger.token(claims, { jwk: keys.stranger.jwk }), 401),
    row(
      'a stranger’s key at an address',
      keys.stranger.token({ ...claims, iss: canary }, { ...foreign, kid: 'strange' }),
      401,
    ),
    row(
      'a stranger’s key at an address, under a known kid',
      keys.stranger.token({ ...claims, iss: canary }, foreign),
      401,
    ),
    row(
      'a stranger’s certificate',
      keys.stranger.token(claims, { x5c: [keys.stranger.der.toString('base64')], x5t: 'x' }),
      401,
    ),
    ...['PS256', 'RS384', 'RS512', 'RS1'].map((alg) =>
      row(`alg ${alg} under the kid of RSA`, rsa.token(claims, { alg }), 401),
    ),
    row(
      'PS256, truly signed so',
      encodeToken({ alg: 'PS256', kid: 'rsa' }, claims, (signed) =>
        signWith('sha256', signed, { key: rsa.privateKey, padding: 6, saltLength: 32 }),
      ),
      401,
    ),
    row(
      'RS512, truly signed so',
      encodeToken({ alg: 'RS512', kid: 'rsa' }, claims, (signed) => signWith('sha512', signed, rsa.privateKey)),
      401,
    ),
    ...['ES384', 'ES512', 'ES256K', 'es256', 'Ed25519'].map((alg) =>
      row(`alg ${alg} under the kid of EC`, ec.token(claims, { alg }), 401),
    ),
    row('alg Ed25519, truly signed so', ed.token(claims, { alg: 'Ed25519' }), 401),
    row('a signature in DER', encodeToken({ alg: 'ES256', kid: 'ec' }, claims, der), 401),
    row('a signature of zeros', ecWith(Buffer.alloc(64)), 401),
    row('r zero, s one', ecWith(Buffer.concat([Buffer.alloc(32), one])), 401),
    row('r one, s zero', ecWith(Buffer.concat([one, Buffer.alloc(32)])), 401),
    row('r and s of the order of the curve', ecWith(Buffer.concat([order, order])), 401),
    row('a signature of 63 bytes', ecWith(Buffer.from(ecSignature, 'base64url').subarray(1)), 401),
    row(
      'a signature of 65 bytes',
      ecWith(Buffer.concat([Buffer.alloc(1), Buffer.from(ecSignature, 'base64url')])),
      401,
    ),
    row('no ES256 signature', `${ecHeader}.${ecPayload}.`, 401),
    row('another ES256 signature', `${ecHeader}.${ecPayload}.${tamper(ecSignature)}`, 401),
    row('another payload under ES256', `${ecHeader}.${tamper(ecPayload)}.${ecSignature}`, 401),
    row('an ES256 signature in another spelling', `${ecHeader}.${ecPayload}.${respell(ecSignature)}`, 401),
    row(
      'an EdDSA signature of zeros',
      `${ed.token(claims).split('.').slice(0, 2).join('.')}.${base64url(Buffer.alloc(64))}`,
      401,
    ),
    row(
      'an RSA signature of zeros',
      `${rsa.token(claims).split('.').slice(0, 2).join('.')}.${base64url(Buffer.alloc(256))}`,
      401,
    ),
    row('an RSA key of 1024 bits', keys.weak.token(claims), 401),
    row('an RSA key whose signatures are their own messages', forgeExponentOne(), 401),
    row('P-384 as it is', keys.p384.token(claims), 401),
    row('P-384 as ES256', keys.p384.token(claims, { alg: 'ES256' }), 401),
    row('secp256k1 as it is', keys.k1.token(claims), 401),
    row('secp256k1 as ES256', keys.k1.token(claims, { alg: 'ES256' }), 401),
    row('Ed448', keys.ed448.token(claims), 401),
    row('a key whose private half is public', keys.leaked.token(claims), 401),
    row('a key for encryption', keys.encryption.token(claims), 401),
    row('a key for making signatures only', keys.signOnly.token(claims), 401),
    row('a key for another algorithm', keys.otherAlg.token(claims), 401),
    row('a kid that two keys have', keys.twice.token(claims), 401),
    row('a symmetric key of the set', makeToken(symmetric, claims, header({ alg: 'HS256', kid: 'oct' })), 401),
    ...Object.entries(confused).flatMap(([title, key]) => [
      row(`HS256 with ${title} as the secret`, makeToken(key, claims, header({ alg: 'HS256', kid: 'ec' })), 401),
    ]),
    row(
      'ES256 in the header over HS256 with the PEM',
      makeToken(ec.pem, claims, header({ alg: 'ES256', kid: 'ec' })),
      401,
    ),
    row('RS256 in the header over HS256 with our own secret', hmac(claims, header({ alg: 'RS256', kid: 'rsa' })), 401),
  ]
}

/** RFC 8017, section 9.2: with an exponent of 1 the signature is the padded hash. */
function forgeExponentOne(): string {
  return encodeToken({ alg: 'RS256', kid: 'exponent-one' }, claims, (signed) => {
    const signature = signWith('sha256', signed, { key: keys.rsa.privateKey })
    // What the public exponent would make of a true signature is the padded message itself.
    const n = toBigInt(Buffer.from(keys.rsa.jwk.n as string, 'base64url'))
    const message = power(toBigInt(signature), 65_537n, n)
    return Buffer.from(message.toString(16).padStart(512, '0'), 'hex')
  })
}

const toBigInt = (bytes: Uint8Array) => BigInt(`0x${Buffer.from(bytes).toString('hex')}`)
function power(base: bigint, exponent: bigint, modulus: bigint): bigint {
  let result = 1n
  for (let rest = exponent, square = base; rest > 0n; rest >>= 1n, square = (square * square) % modulus) {
    if (rest & 1n) result = (result * square) % modulus
  }
  return result
}

const strictClaims = { ...claims, iss: issuer, aud: audience }
const makeStrictRows = (make: (payload: unknown) => string): readonly Row[] => [
  ...[strictClaims, { ...strictClaims, aud: ['other', audience] }].map((payload) =>
    row(`with ${JSON.stringify(payload)}`, make(payload), ada),
  ),
  ...[
    claims,
    { ...strictClaims, iss: undefined },
    { ...strictClaims, aud: undefined },
    { ...strictClaims, iss: `${issuer}/` },
    { ...strictClaims, iss: 'https://ID.example' },
    { ...strictClaims, iss: 'https://id.example.evil.example' },
    { ...strictClaims, iss: '' },
    { ...strictClaims, iss: [issuer] },
    { ...strictClaims, iss: null },
    { ...strictClaims, aud: 'Verbatim' },
    { ...strictClaims, aud: 'verbatim2' },
    { ...strictClaims, aud: `other ${audience}` },
    { ...strictClaims, aud: '' },
    { ...strictClaims, aud: [] },
    { ...strictClaims, aud: ['other'] },
    { ...strictClaims, aud: [[audience]] },
    { ...strictClaims, aud: [audience, 5] },
    { ...strictClaims, aud: { verbatim: true } },
    { ...strictClaims, aud: null },
    { ...strictClaims, aud: 5 },
  ].map((payload) => row(`with ${JSON.stringify(payload)}`, make(payload), 401)),
]

// Frozen: what a token may cause in 30 s is then all that it may cause.
const frozen = { now: () => 0 }

async function check(t: Test, url: string, rows: readonly Row[], path = '/who'): Promise<void> {
  for (const { title, authorization, expected, lines = [] } of rows) {
    const answer = await sendRaw(
      url,
      Buffer.from(
        [
          `GET ${path} HTTP/1.1`,
          'Host: x',
          'Connection: close',
          `Authorization: ${authorization}`,
          ...lines,
          '',
          '',
        ].join('\r\n'),
        'latin1',
      ),
    )
    const { status, headers } = answer
    const body = JSON.parse(Buffer.from(answer.body, 'latin1').toString())
    const got = {
      status,
      type: headers['content-type'],
      code: body.code,
      challenge: headers['www-authenticate'],
      retryAfter: headers['retry-after'],
      // The whole gateway answers a list of sessions, that says nothing of who asked.
      kind: status === 200 && path === '/who' ? body.kind : undefined,
      user: status === 200 && path === '/who' ? body.userId : undefined,
      newVisitor: headers['x-visitor-token'] !== undefined,
    }
    // One comparison for all: an assertion costs more than a request.
    t.strictSame(got, { ...nothing, ...describe(expected, path === '/who', lines.length === 0) }, title)
  }
}

const nothing = {
  code: undefined,
  challenge: undefined,
  retryAfter: undefined,
  kind: undefined,
  user: undefined,
  newVisitor: false,
}

function describe(expected: Expected, named: boolean, alone: boolean) {
  const type = 'application/problem+json; charset=utf-8'
  if (expected === 401) return { status: 401, type, code: 'invalid_token', challenge: 'Bearer error="invalid_token"' }
  if (expected === 503) return { status: 503, type, code: 'auth_unavailable', retryAfter: '5' }
  const ok = { status: 200, type: 'application/json; charset=utf-8' }
  if (expected === 'visitor') return { ...ok, newVisitor: alone, ...(named ? { kind: 'visitor', user: null } : {}) }
  return { ...ok, ...(named ? { kind: 'user', user: expected.user } : {}) }
}

const jwks = (server: KeyServer) => ({ JWKS_URL: server.url })
const secrets = { JWT_SECRET: secret, SUPABASE_JWT_SECRET: supabaseSecret }
const countOf = (...tables: (readonly Row[])[]) => new Set(tables.flat().map(({ authorization }) => authorization)).size

test('with a key set and both secrets', async (t) => {
  const server = await startKeyServer(t, withKeys(published))
  const canary = await startKeyServer(t, withKeys([keys.stranger.jwk, { ...keys.stranger.jwk, kid: 'strange' }]))
  const env = { ...secrets, ...jwks(server) }
  const edge = await startEdge(t, env, frozen)
  const tables = {
    'the header': makeHeaders(),
    'the secrets': makeHmacRows(),
    'the form': makeFormRows(),
    'the claims, under a secret': makeClaimRows(hmac),
    'the claims, under a public key': makeClaimRows((payload) => keys.ed.token(payload)),
    'the public key of Supabase': [
      ...makeAnonRows((payload) => makeToken(supabaseSecret, payload)),
      ...makeAnonRows((payload) => keys.ec.token(payload)),
    ],
    'public keys': makeKeyRows(canary.url),
  }
  t.ok(countOf(...Object.values(tables)) >= 150, `${countOf(...Object.values(tables))} different tokens`)
  for (const [title, rows] of Object.entries(tables)) await t.test(title, (t) => check(t, edge.url, rows))
  t.equal(server.count, 2, 'the set was fetched, and once more for all unknown kids')

  await t.test('the whole gateway says the same', async (t) => {
    const lines: string[] = []
    const clock = { ms: 0 }
    const held = Promise.withResolvers<void>()
    server.answer((response) => void held.promise.then(() => withKeys(published)(response)))
    const gateway = await startGateway(t, {
      env,
      keys: { now: () => clock.ms },
      logStream: { write: (line) => lines.push(line) },
    })
    await server.asked(3)
    t.equal(server.count, 3, 'it is ready, and its keys are not there')
    held.resolve()
    const rows = [
      ...tables['public keys'],
      ...tables['the public key of Supabase'],
      ...tables['the header'],
      ...tables['the secrets'],
    ]
    await check(t, gateway.url, rows, '/api/v1/sessions')
    t.equal(server.count, 4)
    t.same(
      lines.filter((line) => /canary|eyJ/.test(line)),
      [],
      'no token and no secret in the log',
    )
    // A fetch that is under way when the gateway ends: it ends with it, or the server would keep its connection.
    server.answer(() => undefined)
    clock.ms += 3_600_000
    await check(t, gateway.url, [row('old keys', goodEc, ada)], '/api/v1/sessions')
    await server.asked(5)
    await gateway.close()
    await server.drained()
    t.same(
      lines.filter((line) => /"level":"(error|fatal)"/.test(line)),
      [],
      'no fault in the log',
    )
  })
  t.equal(canary.connections, 0, 'no address of a token was asked')
})

test('with secrets and no key set, tokens of public keys are 401', async (t) => {
  const canary = await startKeyServer(t, withKeys(published))
  const edge = await startEdge(t, secrets)
  await check(t, edge.url, [
    ...makeHmacRows(),
    ...makeKeyRows(canary.url).map((one) => ({ ...one, expected: 401 as const })),
  ])
  t.equal(canary.connections, 0)
})

test('with a key set and no secret, HS256 is 401', async (t) => {
  const server = await startKeyServer(t, withKeys(published))
  const canary = await startKeyServer(t)
  const edge = await startEdge(t, jwks(server), frozen)
  await check(t, edge.url, [
    ...makeKeyRows(canary.url),
    ...makeHmacRows().map((one) => ({ ...one, expected: 401 as const })),
    row('the empty secret', makeToken('', claims), 401),
    row('the secret undefined', makeToken('undefined', claims), 401),
    row('the public key of Supabase under a secret', makeToken(supabaseSecret, anon), 401),
    row('the public key of Supabase under a public key', keys.rsa.token(anon), 'visitor'),
  ])
  t.equal(server.count, 2)
  t.equal(canary.connections, 0)
})

test('with the Supabase secret alone', async (t) => {
  const edge = await startEdge(t, { SUPABASE_JWT_SECRET: supabaseSecret })
  await check(t, edge.url, [
    row('the Supabase secret', makeToken(supabaseSecret, claims), ada),
    row('our own secret', good, 401),
    row('the public key', makeToken(supabaseSecret, anon), 'visitor'),
  ])
})

test('with nothing configured no token is good', async (t) => {
  const edge = await startEdge(t, {})
  const all = [...makeHmacRows(), ...makeFormRows(), ...makeAnonRows(hmac), ...makeKeyRows('http://127.0.0.1:9/')]
  await check(t, edge.url, [
    ...all.map((one) => ({ ...one, expected: 401 as const })),
    row('the empty secret', makeToken('', claims), 401),
    row('the secret undefined', makeToken('undefined', claims), 401),
  ])
})

test('with an issuer and an audience', async (t) => {
  const server = await startKeyServer(t, withKeys(published))
  const edge = await startEdge(t, { ...secrets, ...jwks(server), JWT_ISSUER: issuer, JWT_AUDIENCE: audience }, frozen)
  for (const make of [hmac, (payload: unknown) => keys.rsa.token(payload)]) {
    await check(t, edge.url, makeStrictRows(make))
    await check(t, edge.url, makeAnonRows(make))
  }
  t.equal(server.count, 1)
  t.same(
    new Set(edge.noted.map((one) => one.join(' '))),
    new Set([`${issuer} ada`]),
    'the user is noted with the issuer',
  )
})

test('while the key set cannot be had, its tokens are 503 and all others as ever', async (t) => {
  const server = await startKeyServer(t, cutOff)
  const edge = await startEdge(t, { ...secrets, ...jwks(server) }, frozen)
  await check(t, edge.url, [
    row('ES256', goodEc, 503),
    row('RS256', keys.rsa.token(claims), 503),
    row('EdDSA', keys.ed.token(claims), 503),
    row('a kid that nobody knows', keys.ec.token(claims, { kid: 'unknown' }), 503),
    row('the public key of Supabase', keys.ec.token(anon), 503),
    row('without kid', keys.ec.token(claims, { kid: undefined }), 401),
    row('expired', keys.ec.token({ ...claims, exp: inSeconds(-60) }), 401),
    row('no sub', keys.ec.token(without('sub')), 401),
    row('the service role', keys.ec.token({ ...claims, role: 'service_role' }), 401),
    row('alg PS256', keys.rsa.token(claims, { alg: 'PS256' }), 401),
    row('alg none', `${base64url('{"alg":"none"}')}.${goodPayload}.`, 401),
    row('our own secret', good, ada),
    row('the public key under a secret', makeToken(supabaseSecret, anon), 'visitor'),
  ])
  t.equal(server.count, 1, 'asked once')
})

test('the set may come late, change, and go away', async (t) => {
  const server = await startKeyServer(t, cutOff)
  const clock = { ms: 0 }
  const edge = await startEdge(t, jwks(server), { now: () => clock.ms })
  const next = makeKey('ES256', 'next')
  await check(t, edge.url, [row('down at the start', goodEc, 503)])
  const held = Promise.withResolvers<void>()
  server.answer((response) => void held.promise.then(() => withKeys([keys.ec.jwk])(response)))
  clock.ms += 5000
  const slow = check(t, edge.url, [row('slow: the token waits', goodEc, ada)])
  await server.asked(2)
  held.resolve()
  await slow
  server.answer(withKeys([next.jwk]))
  await check(t, edge.url, [
    row('a new key, at its first use', next.token(claims), ada),
    row('the one before', goodEc, 401),
  ])
  t.equal(server.count, 3)
  server.answer(cutOff)
  clock.ms += 24 * 3_600_000
  await check(t, edge.url, [
    row('down later: what is known stays', next.token(claims), ada),
    row('the unknown is unknown', goodEc, 401),
  ])
})

test('a storm of tokens with unknown kids causes one request', async (t) => {
  const server = await startKeyServer(t, withKeys(published))
  const edge = await startEdge(t, jwks(server), frozen)
  await check(t, edge.url, [row('before', goodEc, ada)])
  const storm = Array.from({ length: 200 }, (_, n) =>
    row(`unknown ${n}`, keys.ec.token(claims, { kid: `unknown-${n}` }), 401),
  )
  await Promise.all(storm.map((one) => check(t, edge.url, [one])))
  t.equal(server.count, 2)
})

test('the leeways are exact', async (t) => {
  const now = 1_800_000_000
  const any = { issuer: undefined, audience: undefined }
  const at = (times: object) => readClaims({ sub: 'ada', exp: now + 1, ...times }, any, now)?.kind
  for (const times of [{ exp: now - 30 }, { nbf: now + 30 }, { iat: now + 60 }, { exp: now, nbf: now, iat: now }]) {
    t.equal(at(times), 'user', JSON.stringify(times))
  }
  for (const times of [{ exp: now - 30.001 }, { nbf: now + 30.001 }, { iat: now + 60.001 }]) {
    t.equal(at(times), undefined, JSON.stringify(times))
  }
})

test('a twin: the tokens of these tests are made as the specifications say', async (t) => {
  // RFC 7515, appendix A.1.
  const key = Buffer.from(
    'AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow',
    'base64url',
  )
  const signed =
    'eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ'
  const [head = '', payload = ''] = signed.split('.')
  const made = makeToken(key, Buffer.from(payload, 'base64url'), { header: Buffer.from(head, 'base64url') })
  t.equal(made, `${signed}.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk`)
  t.match(readToken(made), { header: { alg: 'HS256' }, claims: { iss: 'joe' } })
  // The forged signature is good for whoever takes the key: so the gateway must not.
  const [, , forged = ''] = forgeExponentOne().split('.')
  t.match(Buffer.from(forged, 'base64url').toString('hex'), /^0001f+003031300d0609608648016503040201050004/)
})
