/**
 * Text from outside becomes what Postgres takes, and nothing else about it changes.
 */
import t from 'tap'
import { cleanJson, cleanText, jsonDepthMax } from '../../src/http/text.ts'

t.test('what Postgres refuses is mended, and nothing else', async (t) => {
  for (const [raw, clean] of [
    ['a\u0000b\u0000', 'ab'],
    ['\ud83d', '\ufffd'],
    ['\udc69\ud83d', '\ufffd\ufffd'],
    ['a\ud83d\u0000\udc69', 'a👩'],
    ['👩‍👩‍👧 Grüße\t\r\n\u2028\u007f\ufeff\uffff', '👩‍👩‍👧 Grüße\t\r\n\u2028\u007f\ufeff\uffff'],
    ['', ''],
  ] as const) {
    t.equal(cleanText(raw), clean)
    t.ok(cleanText(raw).isWellFormed())
    t.equal(cleanText(cleanText(raw)), cleanText(raw), 'once is enough')
  }
})

t.test('JSON is mended throughout, keys too, and keeps its shape', async (t) => {
  const raw = { 'k\u0000': ['\ud800', 1, true, null, { deep: 'x\u0000' }], empty: {}, list: [] }
  t.same(cleanJson(raw), { k: ['\ufffd', 1, true, null, { deep: 'x' }], empty: {}, list: [] })
  for (const value of [0, -0.5, false, null, undefined, '', 'text']) t.equal(cleanJson(value), value)
})

t.test('a key that reaches for the prototype stays a key', async (t) => {
  const clean = cleanJson(JSON.parse('{"__proto__": {"admin": true}, "constructor": 1}')) as Record<string, unknown>
  t.equal((clean as { admin?: boolean }).admin, undefined)
  t.equal(Object.getPrototypeOf(clean), Object.prototype)
  t.same(Object.keys(clean), ['__proto__', 'constructor'])
})

t.test('JSON may be nested so deep and no deeper', async (t) => {
  const nested = (depth: number): unknown => JSON.parse('['.repeat(depth) + ']'.repeat(depth))
  t.same(cleanJson(nested(jsonDepthMax)), nested(jsonDepthMax))
  t.throws(() => cleanJson(nested(jsonDepthMax + 1)), { code: 'invalid_request' })
  t.throws(() => cleanJson(nested(5000)), { code: 'invalid_request' }, 'without walking all of it')
})
