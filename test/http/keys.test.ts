/**
 * The key set against a server of keys over real HTTP, and a clock that the test turns: when it is fetched, how often at
 * most, what is done while it cannot be had, and which keys of it are taken.
 */
import { type Test, test } from 'tap'
import { keysMax, openKeySet, readKeys, retryPauseMs, setBytesMax, unknownKidPauseMs } from '../../src/http/keys.ts'
import { cutOff, type KeyAnswer, type KeyServer, startKeyServer, withKeys } from '../support/key-server.ts'
import { makeKey } from '../support/tokens.ts'

const first = makeKey('ES256', 'first')
const second = makeKey('EdDSA', 'second')
const both = withKeys([first.jwk, second.jwk])
const minutes = 60_000

interface Scene {
  readonly server: KeyServer
  readonly keys: ReturnType<typeof openKeySet>
  readonly clock: { ms: number }
  readonly warnings: string[]
}

async function openScene(t: Test, answer: KeyAnswer, options: { readonly fetchMs?: number } = {}): Promise<Scene> {
  const server = await startKeyServer(t, answer)
  const clock = { ms: 1000 }
  const warnings: string[] = []
  const logger = { warn: ({ err }: { err: Error }) => warnings.push(err.message) }
  const keys = openKeySet({ url: server.url, logger: logger as never, now: () => clock.ms, ...options })
  t.teardown(() => keys.close())
  return { server, keys, clock, warnings }
}

const unavailable = { code: 'auth_unavailable', status: 503, retryAfterSeconds: retryPauseMs / 1000 }

test('the set is fetched when it is opened, once for all who wait for it', async (t) => {
  const { server, keys } = await openScene(t, both)
  const found = await Promise.all([keys.find('first'), keys.find('second'), keys.find('first')])
  t.same(
    found.map((key) => key?.algorithm),
    ['ES256', 'EdDSA', 'ES256'],
  )
  t.equal(found[0]?.pem, first.pem)
  t.equal(server.count, 1)
})

test('keys are looked for again when they are older than ten minutes, and given out meanwhile', async (t) => {
  const { server, keys, clock } = await openScene(t, withKeys([first.jwk]))
  await keys.find('first')
  clock.ms += 10 * minutes
  await keys.find('first')
  t.equal(server.count, 1, 'ten minutes are not more than ten minutes')
  const held = Promise.withResolvers<void>()
  server.answer((response) => void held.promise.then(() => withKeys([second.jwk])(response)))
  clock.ms += 1
  t.equal((await keys.find('first'))?.pem, first.pem, 'the old key, at once')
  await server.asked(2)
  await Promise.all(Array.from({ length: 50 }, () => keys.find('first')))
  t.equal(server.count, 2, 'one fetch, however many ask')
  held.resolve()
  t.equal((await keys.find('second'))?.pem, second.pem, 'joins the fetch under way')
  t.equal(await keys.find('first'), undefined, 'a key that is withdrawn is good no more')
  t.equal(server.count, 2)
})

test('a storm of unknown kids causes one fetch in 30 s, which all of them wait for', async (t) => {
  const { server, keys, clock } = await openScene(t, withKeys([first.jwk]))
  await keys.find('first')
  const storm = () => Promise.all(Array.from({ length: 500 }, (_, n) => keys.find(`unknown-${n}`)))
  t.same(new Set(await storm()), new Set([undefined]))
  t.equal(server.count, 2)
  clock.ms += unknownKidPauseMs - 1
  await storm()
  t.equal(server.count, 2, 'within 30 s nobody is asked')
  clock.ms += 1
  await storm()
  t.equal(server.count, 3)
})

test('a new key is found at its first use, and by all who came with it', async (t) => {
  const { server, keys } = await openScene(t, withKeys([first.jwk]))
  await keys.find('first')
  server.answer(both)
  const found = await Promise.all(Array.from({ length: 20 }, () => keys.find('second')))
  t.ok(found.every((key) => key?.pem === second.pem))
  t.equal(server.count, 2)
})

test('while the server is down the old keys stay, however old, and it is asked each 5 s at most', async (t) => {
  const { server, keys, clock, warnings } = await openScene(t, both)
  await keys.find('first')
  server.answer(cutOff)
  clock.ms += 24 * 60 * minutes
  t.ok(await keys.find('first'))
  await server.asked(2)
  // The fetch under way ends when its failure has been seen here: an unknown kid waits for it.
  t.equal(await keys.find('unknown'), undefined, 'an unknown kid is unknown, and no fault')
  for (let n = 0; n < 20; n += 1) t.ok(await keys.find('first'))
  // Whatever these may have asked comes before this.
  await t.rejects(fetch(server.url))
  t.equal(server.count, 3)
  t.equal(warnings.length, 1, 'and the log says so once')
  clock.ms += retryPauseMs
  server.answer(withKeys([second.jwk]))
  t.ok(await keys.find('first'))
  await server.asked(4)
  clock.ms += unknownKidPauseMs
  t.equal(await keys.find('unknown'), undefined, 'waits for the fetch under way')
  t.equal(await keys.find('first'), undefined, 'then the new ones count')
})

test('without any set the answer is 503 with Retry-After, and the server is asked each 5 s at most', async (t) => {
  const { server, keys, clock } = await openScene(t, cutOff)
  const all = await Promise.allSettled(Array.from({ length: 20 }, () => keys.find('first')))
  for (const one of all) t.match(one, { status: 'rejected', reason: unavailable })
  t.equal(server.count, 1, 'one fetch for all who wait')
  clock.ms += retryPauseMs - 1
  server.answer(both)
  await t.rejects(keys.find('first'), unavailable)
  t.equal(server.count, 1)
  clock.ms += 1
  const found = await Promise.all(Array.from({ length: 20 }, () => keys.find('first')))
  t.ok(found.every((key) => key?.pem === first.pem))
  t.equal(server.count, 2)
})

test('a set that cannot be taken is none, and no redirect is followed', async (t) => {
  const canary = await startKeyServer(t, both)
  const text =
    (status: number, body: string): KeyAnswer =>
    (response) =>
      response.writeHead(status, { 'content-type': 'application/json' }).end(body)
  const good = JSON.stringify({ keys: [first.jwk] })
  const wrong: Readonly<Record<string, KeyAnswer>> = {
    'a page': text(200, '<!doctype html><title>Sign in</title>'),
    nothing: text(200, ''),
    'half a set': text(200, good.slice(0, -5)),
    null: text(200, 'null'),
    'a list': text(200, `[${good}]`),
    'a set whose keys are no list': text(200, '{"keys":{"0":{}}}'),
    'too many keys': withKeys(Array.from({ length: keysMax + 1 }, (_, n) => ({ ...first.jwk, kid: `k${n}` }))),
    'too many bytes': text(200, good + ' '.repeat(setBytesMax)),
    'bytes without end': (response) => {
      const more = () => {
        while (!response.destroyed && response.write(' '.repeat(65_536)));
      }
      response.on('drain', more)
      more()
    },
    'not found': text(404, good),
    'a fault': text(500, good),
    'another status of success': text(203, good),
    'moved, with a set': (response) => response.writeHead(302, { location: canary.url }).end(good),
    'moved for good': (response) => response.writeHead(308, { location: canary.url }).end(),
    'a cut in the middle': (response) => {
      response.writeHead(200, { 'content-length': '10000' })
      response.write(good, () => response.destroy())
    },
    'no HTTP': (response) => void response.socket?.end('keys\r\n\r\n'),
  }
  for (const [title, answer] of Object.entries(wrong)) {
    const { server, keys, warnings } = await openScene(t, answer)
    await t.rejects(keys.find('first'), unavailable, title)
    t.equal(warnings.length, 1, `${title}: ${warnings[0]}`)
    t.notMatch(warnings[0], /127\.0\.0\.1|<|kty/, 'the log names neither address nor content')
    t.equal(server.count, 1, title)
    await keys.close()
  }
  t.equal(canary.connections, 0)
})

test('a server that does not answer is given up after its time', async (t) => {
  const silent = await openScene(t, () => undefined, { fetchMs: 50 })
  await t.rejects(silent.keys.find('first'), unavailable)
  const stalled = await openScene(t, (response) => void response.write('{"keys":['), { fetchMs: 50 })
  await t.rejects(stalled.keys.find('first'), unavailable)
})

test('closing ends the fetch under way, says nothing, and leaves no connection', async (t) => {
  const { server, keys, warnings } = await openScene(t, () => undefined)
  const waiting = t.rejects(keys.find('first'), unavailable)
  await server.asked(1)
  await keys.close()
  await waiting
  await server.drained()
  t.same(warnings, [])
  const idle = await openScene(t, both)
  await idle.keys.find('first')
  await idle.server.drained()
  await idle.keys.close()
  await t.rejects(openKeySetThenClose(idle.server.url), unavailable, 'and a set that is closed at once is none')
})

async function openKeySetThenClose(url: string): Promise<void> {
  const keys = openKeySet({ url, logger: { warn: () => undefined } as never })
  await keys.close()
  await keys.find('first')
}

test('only keys that are plainly for verifying are taken', async (t) => {
  const rsa = makeKey('RS256', 'rsa')
  const weak = makeKey('RS1024', 'weak')
  const other = makeKey('ES256', 'other')
  const taken: Readonly<Record<string, object>> = {
    RSA: rsa.jwk,
    EC: first.jwk,
    OKP: second.jwk,
    'with alg': { ...first.jwk, alg: 'ES256' },
    'for signatures': { ...rsa.jwk, use: 'sig', key_ops: ['verify'], alg: 'RS256' },
    'with a certificate, which nobody reads': { ...rsa.jwk, x5c: ['AAAA'], x5u: 'http://127.0.0.1:1/' },
  }
  for (const [title, jwk] of Object.entries(taken)) t.equal(readKeys(JSON.stringify({ keys: [jwk] })).size, 1, title)

  const refused: Readonly<Record<string, unknown>> = {
    null: null,
    text: 'x',
    list: [],
    'without kid': { ...first.jwk, kid: undefined },
    'kid empty': { ...first.jwk, kid: '' },
    'kid a number': { ...first.jwk, kid: 1 },
    'for encryption': { ...rsa.jwk, use: 'enc' },
    'use unknown': { ...rsa.jwk, use: 'SIG' },
    'use null': { ...rsa.jwk, use: null },
    'for signing only': { ...rsa.jwk, key_ops: ['sign'] },
    'key_ops no list': { ...rsa.jwk, key_ops: 'verify' },
    'RSA with another alg': { ...rsa.jwk, alg: 'PS256' },
    'RSA as a secret': { ...rsa.jwk, alg: 'HS256' },
    'EC with another alg': { ...first.jwk, alg: 'ES384' },
    'OKP with another alg': { ...second.jwk, alg: 'ES256' },
    'RSA of 1024 bits': weak.jwk,
    'RSA with exponent 1': { ...rsa.jwk, e: 'AQ' },
    'RSA without exponent': { ...rsa.jwk, e: undefined },
    'RSA of 16384 bits': { ...rsa.jwk, n: `_${'_'.repeat(2730)}` },
    'P-384': makeKey('ES384', 'p384').jwk,
    secp256k1: makeKey('ES256K', 'k1').jwk,
    'a point off the curve': { ...first.jwk, y: other.jwk.y },
    'a curve that lies': { ...makeKey('ES384', 'p384').jwk, crv: 'P-256' },
    Ed448: makeKey('Ed448', 'ed448').jwk,
    X25519: { ...second.jwk, crv: 'X25519' },
    'too short': { ...second.jwk, x: 'AAAA' },
    symmetric: { kty: 'oct', k: 'c2VjcmV0', kid: 'oct', alg: 'HS256' },
    'private EC': first.privateJwk,
    'private RSA': rsa.privateJwk,
    'private OKP': second.privateJwk,
    'kty unknown': { ...first.jwk, kty: 'ec' },
    'kty a list': { ...first.jwk, kty: ['EC'] },
    'members of another type': { ...first.jwk, x: 5 },
  }
  for (const [title, jwk] of Object.entries(refused)) {
    t.equal(readKeys(JSON.stringify({ keys: [jwk] })).size, 0, title)
    t.same([...readKeys(JSON.stringify({ keys: [jwk, other.jwk] })).keys()], ['other'], `${title}: the others stay`)
  }
  const twice = readKeys(JSON.stringify({ keys: [first.jwk, { ...other.jwk, kid: 'first' }, other.jwk] }))
  t.same([...twice.keys()], ['other'], 'of two with one kid neither')
  const beside = readKeys(JSON.stringify({ keys: [{ ...rsa.jwk, kid: 'first', use: 'enc' }, first.jwk] }))
  t.same([...beside.keys()], ['first'], 'one that is for something else does not count')
  t.equal(readKeys(JSON.stringify({ keys: [] })).size, 0, 'none is a set too')
})
