/** What a condition says, which names there can be, and that a body comes back from its text. */
import fc from 'fast-check'
import { test } from 'tap'
import {
  ArtifactType,
  artifactBytesMax,
  artifactNamePattern,
  decodeBody,
  encodeBody,
  jsonType,
  meets,
  readVersions,
  textTypes,
} from '../../src/sessions/artifact-model.ts'

test('a header names versions, all of them, or is refused', async (t) => {
  for (const [text, strict, lenient = strict] of [
    [undefined, undefined],
    ['*', '*'],
    [' * ', '*'],
    ['"1"', [1]],
    ['"1","2" , "30"', [1, 2, 30]],
    ['W/"1", "2"', [2], [1, 2]],
    ['"0", "01", "-1", "1.0", "x", "", "9999999999"', []],
  ] as const) {
    t.strictSame(readVersions('If-Match', text), strict, text ?? 'none')
    t.strictSame(readVersions('If-None-Match', text), lenient, text ?? 'none')
  }
  for (const text of ['', '1', '"1', '"1" "2"', '"1",', ',', '*, "1"', 'w/"1"', "'1'", '"a b"', '"é"']) {
    t.throws(() => readVersions('If-Match', text), { code: 'invalid_request', message: /^If-Match / }, text)
  }
  t.same(
    [undefined, '*' as const, [], [2], [1, 3]].map((versions) => meets(3, versions)),
    [false, true, false, false, true],
  )
})

test('a name is one part of a path, whoever reads the path', async (t) => {
  const isName = (text: string) => new RegExp(artifactNamePattern).test(text)
  for (const name of ['a', 'A-Z_0.9:x', '...', '.a', 'x'.repeat(128), '-']) t.ok(isName(name), name)
  for (const name of ['', '.', '..', 'a/b', 'a b', 'ä', 'a\n', 'x'.repeat(129)]) t.notOk(isName(name), name)
})

test('a JSON value comes back from its text, to the last member', async (t) => {
  let compared = 0
  fc.assert(
    fc.property(fc.jsonValue({ maxDepth: 5 }), (value) => {
      const json = JSON.stringify(value)
      if (json.includes('\\u0000') || !json.isWellFormed() || /\\ud[89a-f]/i.test(json)) return
      const kept = encodeBody(jsonType, value)
      if (kept.text !== json || JSON.stringify(decodeBody(kept)) !== json) throw new Error(kept.text)
      compared += 1
    }),
    { numRuns: 300 },
  )
  t.ok(compared > 200)
})

test('a text comes back as it is, without what no database takes', async (t) => {
  t.same(ArtifactType.anyOf.length, 1 + textTypes.length)
  for (const type of textTypes) {
    t.strictSame(decodeBody(encodeBody(type, '\ufeff "1" ')), '\ufeff "1" ', type)
    t.strictSame(encodeBody(type, 'a\u0000\ud800').text, 'a\ufffd')
    for (const odd of [undefined, null, 1, {}, ['a']]) {
      t.throws(() => encodeBody(type, odd), { code: 'invalid_request' }, `${type} ${odd}`)
    }
  }
  t.throws(() => encodeBody(jsonType, undefined), { code: 'invalid_request' })
})

test('the limit is in bytes, and exact', async (t) => {
  t.equal(encodeBody('text/plain', 'é'.repeat(artifactBytesMax / 2)).text.length, artifactBytesMax / 2)
  t.throws(() => encodeBody('text/plain', `x${'é'.repeat(artifactBytesMax / 2)}`), { code: 'too_large' })
  t.ok(encodeBody(jsonType, 'x'.repeat(artifactBytesMax - 2)), 'two quotation marks')
  t.throws(() => encodeBody(jsonType, 'x'.repeat(artifactBytesMax - 1)), { code: 'too_large' })
})
