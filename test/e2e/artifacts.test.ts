/**
 * Artifacts over real HTTP, on every database: versions that are never lost, doubled or numbered twice, conditions that
 * exactly one of many writers meets, texts that come back as they were, limits, and nobody else's.
 */
import { Buffer } from 'node:buffer'
import fc from 'fast-check'
import { type Test, test } from 'tap'
import { sql } from '../../src/db/drizzle.ts'
import { artifactBytesMax } from '../../src/sessions/artifact-model.ts'
import { namesEverMax, namesMax, versionsMax } from '../../src/sessions/artifacts.ts'
import { type Answer, type Client, createClient } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { type Gateway, startGateway } from '../support/gateway.ts'
import { sendRaw } from '../support/raw.ts'
import { inSeconds, makeToken } from '../support/tokens.ts'

const secret = 'canary-of-our-own-secret-with-32-bytes'
const timePattern = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/
const unknownId = '01890000-0000-7000-8000-0000000000ff'

interface Scene {
  readonly client: Client
  readonly sessionId: string
  /** `/api/v1/sessions/<id>/artifacts` */
  readonly path: string
}

async function enter(gateway: Gateway, client = createClient(gateway.url)): Promise<Scene> {
  const sessionId: string = (await client.post('/api/v1/sessions', {})).body.id
  return { client, sessionId, path: `/api/v1/sessions/${sessionId}/artifacts` }
}

async function putRaw(
  gateway: Gateway,
  { client, path }: Scene,
  name: string,
  body: string | Uint8Array<ArrayBuffer>,
  headers: Record<string, string>,
): Promise<Answer> {
  const response = await fetch(`${gateway.url}${path}/${name}`, {
    method: 'PUT',
    headers: { ...client.identity, ...headers },
    body,
  })
  return { status: response.status, headers: response.headers, body: await response.json() }
}

const statuses = (answers: readonly Answer[]) => answers.map(({ status }) => status).toSorted()

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const gateway = await startGateway(t, { database, env: { JWT_SECRET: secret } })
    const { db } = gateway.app

    await t.test(
      'a first write makes version 1, the next ones further versions, and old ones can be read',
      async (t) => {
        const { client, path } = await enter(gateway)
        t.same((await client.get(path)).body, { data: [] })
        const first = await client.put(`${path}/report`, { body: { n: 1 } })
        t.equal(first.status, 201)
        t.match(first.body, { name: 'report', version: 1, content_type: 'application/json', created_at: timePattern })
        t.strictSame(first.body.body, { n: 1 })
        t.equal(first.headers.get('etag'), '"1"')
        t.equal(first.headers.get('location'), `${path}/report`)
        const second = await client.put(`${path}/report`, { content_type: 'text/markdown', body: '# Two' })
        t.match(second, { status: 200, body: { version: 2, content_type: 'text/markdown', body: '# Two' } })
        t.equal(second.headers.get('etag'), '"2"')
        await client.put(`${path}/a:b.c-d_e`, { body: null })

        for (const [query, written] of [
          ['', second],
          ['?version=2', second],
          ['?version=1', first],
        ] as const) {
          const read = await client.get(`${path}/report${query}`)
          t.equal(read.status, 200)
          t.strictSame(read.body, written.body, query)
          t.equal(read.headers.get('etag'), written.headers.get('etag'))
        }
        t.match(await client.get(`${path}/report?version=3`), { status: 404, body: { code: 'not_found' } })
        t.match(await client.get(`${path}/other`), { status: 404, body: { code: 'not_found' } })
        const { data } = (await client.get(path)).body
        t.match(data, [
          { name: 'a:b.c-d_e', version: 1, content_type: 'application/json', bytes: 4, created_at: timePattern },
          { name: 'report', version: 2, content_type: 'text/markdown', bytes: 5, created_at: timePattern },
        ])
        t.same(Object.keys(data[0]).toSorted(), ['bytes', 'content_type', 'created_at', 'name', 'version'])
      },
    )

    await t.test('a reader that has the version is spared the body', async (t) => {
      const { client, path } = await enter(gateway)
      await client.put(`${path}/a`, { body: 1 })
      await client.put(`${path}/a`, { body: 2 })
      for (const [tag, status] of [
        ['"2"', 304],
        ['W/"2"', 304],
        ['"9", "2"', 304],
        ['*', 304],
        ['"1"', 200],
        ['"x"', 200],
        ['2', 400],
      ] as const) {
        const answer = await client.get(`${path}/a`, { 'if-none-match': tag })
        t.equal(answer.status, status, tag)
        if (status !== 304) continue
        t.equal(answer.body, '')
        t.equal(answer.headers.get('etag'), '"2"')
      }
      t.equal((await client.get(`${path}/a?version=1`, { 'if-none-match': '"1"' })).status, 304)
    })

    await t.test('a write whose condition is not met changes nothing', async (t) => {
      const { client, path } = await enter(gateway)
      const put = (name: string, headers: Record<string, string>) => client.put(`${path}/${name}`, { body: 0 }, headers)
      const refused = { status: 412, body: { code: 'precondition_failed' } }
      t.match(await put('a', { 'if-match': '"1"' }), refused, 'nothing there')
      t.match(await put('a', { 'if-match': '*' }), refused, 'nothing there')
      t.same((await client.get(path)).body.data, [])
      t.equal((await put('a', { 'if-none-match': '*' })).status, 201)
      t.match(await put('a', { 'if-none-match': '*' }), refused)
      t.match(await put('a', { 'if-match': '"1"' }), { status: 200, body: { version: 2 } })
      for (const tag of ['"1"', '"3"', 'W/"2"', '""', '"02"', '"2.0"', '"99999999999"']) {
        t.match(await put('a', { 'if-match': tag }), refused, tag)
        t.match(await client.delete(`${path}/a`, { 'if-match': tag }), refused, tag)
      }
      t.match(await put('a', { 'if-none-match': '"2"' }), refused)
      for (const tag of ['2', '', '"1" "2"', '"2",', '*, "2"']) {
        t.match(await put('a', { 'if-match': tag }), { status: 400, body: { code: 'invalid_request' } }, tag)
      }
      t.match((await client.get(`${path}/a`)).body, { version: 2 })
      t.match(await put('a', { 'if-match': '"1", "2"' }), { status: 200, body: { version: 3 } })
      t.match(await put('a', { 'if-match': '*' }), { status: 200, body: { version: 4 } })
      t.equal((await client.delete(`${path}/a`, { 'if-match': '"4"' })).status, 204)
      t.match(await put('a', { 'if-match': '"4"' }), refused, 'nor when it is deleted')
      t.match(await put('a', { 'if-none-match': '*' }), { status: 201, body: { version: 6 } })
    })

    await t.test('of twenty writers with the same version exactly one wins', async (t) => {
      const { client, path } = await enter(gateway)
      await client.put(`${path}/a`, { body: 'first' })
      const write = (headers: Record<string, string>, name = 'a') =>
        Promise.all(Array.from({ length: 20 }, (_, body) => client.put(`${path}/${name}`, { body }, headers)))
      const answers = await write({ 'if-match': '"1"' })
      t.same(statuses(answers), [200, ...Array<number>(19).fill(412)])
      const winner = answers.find(({ status }) => status === 200)
      t.strictSame((await client.get(`${path}/a`)).body, winner?.body)
      t.same(statuses(await write({ 'if-none-match': '*' }, 'b')), [201, ...Array<number>(19).fill(412)])

      // The twin: without a condition all of them win, one after the other, so the above was no accident.
      const all = await write({})
      t.same(statuses(all), Array<number>(20).fill(200))
      t.same(
        all.map(({ body }) => body.version).toSorted((a, b) => a - b),
        Array.from({ length: 20 }, (_, index) => index + 3),
      )
      for (const { body } of all) t.strictSame((await client.get(`${path}/a?version=${body.version}`)).body, body)
    })

    await t.test('a text comes back as it was sent, odd ones too', async (t) => {
      const scene = await enter(gateway)
      const { client, path } = scene
      const kept = [
        '',
        ' ',
        '\ufeff',
        '\ufeffwith a mark at its beginning, and \ufeff inside',
        'no end of line\r\n\n\t\u001b',
        '日本語と中文和한국어',
        '👩‍👩‍👧‍👦 🇩🇪 e\u0301',
        '"quoted" \\ {json} <b>&amp;</b>',
        'null',
        'é'.repeat(artifactBytesMax / 2),
      ]
      for (const text of kept) {
        const title = JSON.stringify(text.slice(0, 20))
        const raw = await putRaw(gateway, scene, 'raw', text, { 'content-type': 'text/plain; charset=UTF-8' })
        t.ok(raw.body.body === text, `${title} raw`)
        t.ok((await client.get(`${path}/raw`)).body.body === text, `${title} read`)
        await client.put(`${path}/envelope`, { content_type: 'text/csv', body: text })
        t.ok((await client.get(`${path}/envelope`)).body.body === text, `${title} in an envelope`)
        if (Buffer.byteLength(text) > 1000) continue
        await client.put(`${path}/json`, { body: { [text]: [text] } })
        t.strictSame((await client.get(`${path}/json`)).body.body, { [text]: [text] }, `${title} in JSON`)
      }
      const { data } = (await client.get(path)).body
      t.match(data, [{ name: 'envelope', bytes: artifactBytesMax }, { name: 'json' }, { name: 'raw' }])
      for (const type of ['text/plain', 'text/markdown', 'text/html', 'text/csv', 'application/xml']) {
        const answer = await putRaw(gateway, scene, 'typed', 'x', { 'content-type': type })
        t.match(answer.body, { content_type: type, body: 'x' })
      }
      const mended = await putRaw(gateway, scene, 'mended', 'a\u0000b', { 'content-type': 'text/plain' })
      t.equal(mended.body.body, 'ab', 'what no text of Postgres can hold is gone')
      await client.put(`${path}/mended`, { body: ['a\u0000b\ud800'] })
      t.strictSame((await client.get(`${path}/mended`)).body.body, ['ab\ufffd'])
    })

    await t.test('JSON comes back with its numbers and the order of its members', async (t) => {
      const scene = await enter(gateway)
      const json = '{"z":10.5,"a":"10.5","m":[1e3,-0.1,null,true,{}],"b":{"y":1,"x":[]}}'
      await putRaw(gateway, scene, 'a', `{"body": ${json} }`, { 'content-type': 'application/json; charset=utf-8' })
      const expected = json.replace('1e3', '1000')
      t.equal(JSON.stringify((await scene.client.get(`${scene.path}/a`)).body.body), expected)
      const [row] = await db.rows<{ body: string }>(
        sql`select body from artifacts where session_id = ${scene.sessionId}::uuid`,
      )
      t.equal(row?.body, expected)
      for (const value of [0, '', false, null, [], 'text']) {
        await scene.client.put(`${scene.path}/a`, { body: value })
        t.strictSame((await scene.client.get(`${scene.path}/a`)).body.body, value)
      }
    })

    await t.test('what is no artifact is refused, and nothing is stored', async (t) => {
      const scene = await enter(gateway)
      const { client, path } = scene
      const bad = { status: 400, body: { code: 'invalid_request' } }
      const large = { status: 413, body: { code: 'too_large' } }
      for (const name of ['a%20b', 'a%2Fb', 'x'.repeat(129), '%2e', '%2E%2e', '%C3%BC', 'a%00']) {
        // As bytes: a client would resolve the dots.
        const head = Object.entries({ ...client.identity, host: 'x', connection: 'close', 'content-length': '10' })
        const lines = [
          `PUT ${path}/${name} HTTP/1.1`,
          'content-type: application/json',
          ...head.map((pair) => pair.join(': ')),
        ]
        t.match(await sendRaw(gateway.url, `${lines.join('\r\n')}\r\n\r\n{"body":1}`), { status: 400 }, name)
      }
      let nested: unknown = 1
      for (let depth = 0; depth < 33; depth += 1) nested = [nested]
      for (const body of [
        {},
        { content_type: 'text/plain' },
        { body: 1, color: 'red' },
        { body: 1, content_type: 'image/png' },
        { body: 1, content_type: 'text/plain' },
        { body: null, content_type: 'text/html' },
        { body: nested },
        [],
        'text',
        null,
      ]) {
        t.match(await client.put(`${path}/a`, body), bad, JSON.stringify(body))
      }
      t.match(await client.put(`${path}/a`, { body: 'x'.repeat(artifactBytesMax - 1) }), large, 'with its quotes')
      const text = { 'content-type': 'text/plain' }
      t.match(await putRaw(gateway, scene, 'a', 'x'.repeat(artifactBytesMax + 1), text), large)
      t.match(await putRaw(gateway, scene, 'a', 'x'.repeat(3 * artifactBytesMax), text), large)
      t.match(await putRaw(gateway, scene, 'a', Uint8Array.of(0x61, 0xc3), text), bad, 'cut inside a character')
      t.match(await putRaw(gateway, scene, 'a', Uint8Array.of(0xed, 0xa0, 0x80), text), bad, 'half of a pair')
      for (const type of [
        'text/plain; charset=latin1',
        'text/plain;charset="utf-16"',
        'image/png',
        'text/json',
        'x',
        '',
      ]) {
        t.match(await putRaw(gateway, scene, 'a', 'x', { 'content-type': type }), bad, type)
      }
      t.match(await putRaw(gateway, scene, 'a', 'x', { ...text, 'content-encoding': 'gzip' }), bad)
      t.match(await client.put(`${path}/a`), bad, 'no body at all')
      for (const query of [
        'version=0',
        'version=x',
        'version=2147483648',
        'generate=yes',
        'generate=1&version=1',
        'a=b',
      ]) {
        t.match(await client.get(`${path}/a?${query}`), bad, query)
      }
      t.same((await client.get(path)).body.data, [])
      t.equal((await client.put(`${path}/${'x'.repeat(128)}`, { body: 1 })).status, 201, 'a name of 128 characters')
      t.equal((await client.put(`${path}/${'%3A'.repeat(128)}`, { body: 1 })).status, 201, 'escaped, too')
      t.equal((await client.post(`${path}/a`, {})).status, 404)
      const elsewhere = await fetch(`${gateway.url}/api/v1/sessions`, { method: 'POST', headers: text, body: 'x' })
      t.equal(elsewhere.status, 400, 'no other route takes a text')
    })

    await t.test('the last fifty versions are kept, and a hundred names', async (t) => {
      const { client, path, sessionId } = await enter(gateway)
      for (let body = 1; body <= versionsMax + 2; body += 1) await client.put(`${path}/a`, { body })
      t.equal((await client.get(`${path}/a?version=2`)).status, 404)
      t.strictSame((await client.get(`${path}/a?version=3`)).body.body, 3)
      t.match((await client.get(`${path}/a`)).body, { version: versionsMax + 2, body: versionsMax + 2 })

      const fill = (status: string, first: number, last: number) =>
        db.rows(sql`
        insert into artifacts (session_id, name, version, status, content_type, body)
        select ${sessionId}::uuid, ${status}::text || n, 1, ${status}, 'application/json', '1'
        from generate_series(${first}::int, ${last}::int) n`)
      await fill('ready', 2, namesMax)
      t.equal((await client.get(path)).body.data.length, namesMax)
      t.match(await client.put(`${path}/more`, { body: 1 }), { status: 413, body: { code: 'too_large' } })
      t.equal((await client.put(`${path}/ready2`, { body: 1 })).status, 200, 'one that is there is no new one')
      t.equal((await client.delete(`${path}/ready2`)).status, 204)
      t.equal((await client.put(`${path}/more`, { body: 1 })).status, 201, 'a deleted one makes room')
      t.equal((await client.put(`${path}/ready2`, { body: 1 })).status, 413)
      await client.delete(`${path}/more`)
      await fill('deleted', 1, namesEverMax - namesMax - 1)
      t.equal(
        (await client.put(`${path}/yet-another`, { body: 1 })).status,
        413,
        'names are not remembered without end',
      )
      t.match(await client.put(`${path}/more`, { body: 1 }), { status: 201, body: { version: 3 } })
    })

    await t.test('a deletion erases every body, and no number is used again', async (t) => {
      const { client, path, sessionId } = await enter(gateway)
      for (const body of ['canary one', 'canary two']) await client.put(`${path}/a`, { body })
      await client.put(`${path}/b`, { body: 'stays' })
      t.equal((await client.delete(`${path}/none`)).status, 404)
      t.equal((await client.delete(`${path}/none`, { 'if-match': '"1"' })).status, 404)
      const gone = await client.delete(`${path}/a`)
      t.equal(gone.status, 204)
      t.equal(gone.body, '')
      t.equal((await client.delete(`${path}/a`)).status, 404)
      for (const query of ['', '?version=1', '?version=2', '?version=3']) {
        t.equal((await client.get(`${path}/a${query}`)).status, 404, query)
      }
      t.match((await client.get(path)).body.data, [{ name: 'b' }])
      const rows = () =>
        db.rows(sql`
        select version, status, body from artifacts where session_id = ${sessionId}::uuid and name = 'a' order by version`)
      t.same(await rows(), [{ version: 3, status: 'deleted', body: '' }])
      t.match(await client.put(`${path}/a`, { body: 'new' }), { status: 201, body: { version: 4 } })
      t.equal((await client.get(`${path}/a?version=3`)).status, 404)
      await db.rows(sql`delete from chat_sessions where id = ${sessionId}::uuid`)
      t.same(await rows(), [], 'a session takes its artifacts with it')
    })

    await t.test('a write leaves the session as it is, also its place in the list', async (t) => {
      const { client, path, sessionId } = await enter(gateway)
      const before = (await client.get(`/api/v1/sessions/${sessionId}`)).body
      await client.put(`${path}/a`, { body: 1 })
      t.strictSame((await client.get(`/api/v1/sessions/${sessionId}`)).body, before)
    })

    await t.test('nobody else can read, write, delete, list or make', async (t) => {
      const userNamed = (sub: string) => {
        const token = makeToken(secret, { sub, exp: inSeconds(3600) })
        return createClient(gateway.url, { authorization: `Bearer ${token}` })
      }
      const visitor = createClient(gateway.url)
      const other = createClient(gateway.url)
      await other.get('/api/v1/sessions')
      const strangers = [
        { who: 'another user', stranger: userNamed('grace'), status: 404 },
        { who: 'another visitor', stranger: other, status: 404 },
        { who: 'nobody', stranger: createClient(gateway.url), status: 404 },
        { who: 'a bad token', stranger: createClient(gateway.url, { authorization: 'Bearer x' }), status: 401 },
      ]
      const requests = (path: string): ((client: Client) => Promise<Answer>)[] => [
        (client) => client.get(path),
        (client) => client.get(`${path}/a`),
        (client) => client.get(`${path}/a?version=1`),
        (client) => client.get(`${path}/a`, { 'if-none-match': '"1"' }),
        (client) => client.get(`${path}/a?generate=1`),
        (client) => client.get(`${path}/transcript?generate=1`),
        (client) => client.put(`${path}/a`, { body: 'theirs' }),
        (client) => client.put(`${path}/a`, { body: 'theirs' }, { 'if-match': '"1"' }),
        (client) => client.put(`${path}/a`, { body: 'theirs' }, { 'if-match': '"7"' }),
        (client) => client.put(`${path}/new`, { body: 'theirs' }, { 'if-none-match': '*' }),
        (client) => client.delete(`${path}/a`),
        (client) => client.delete(`${path}/a`, { 'if-match': '"7"' }),
      ]
      for (const owner of [userNamed('ada'), visitor]) {
        const { path, sessionId } = await enter(gateway, owner)
        const written = (await owner.put(`${path}/a`, { body: 'mine' })).body
        for (const { who, stranger, status } of strangers) {
          for (const [index, request] of requests(path).entries()) {
            const answer = await request(stranger)
            t.equal(answer.status, status, `${who}, request ${index}`)
            t.notMatch(JSON.stringify(answer.body), /mine/)
          }
        }
        t.strictSame((await owner.get(`${path}/a`)).body, written)
        t.equal((await owner.get(path)).body.data.length, 1)
        await db.rows(sql`update chat_sessions set deleted_at = now() where id = ${sessionId}::uuid`)
        for (const request of requests(path)) t.equal((await request(owner)).status, 404, 'of a deleted session')
        for (const request of requests(`/api/v1/sessions/${unknownId}/artifacts`)) {
          t.equal((await request(owner)).status, 404, 'of none')
        }
      }
    })

    await t.test('any series of writes, deletions and reads answers as a list of versions would', (t) =>
      checkModel(t, gateway),
    )
  })
}

interface Version {
  readonly number: number
  /** undefined: a deletion. */
  readonly body: unknown
}

type Step =
  | { readonly act: 'put'; readonly body: unknown; readonly match: number | undefined; readonly create: boolean }
  | { readonly act: 'delete'; readonly match: number | undefined }
  | { readonly act: 'get'; readonly version: number | undefined }

const match = fc.option(fc.integer({ min: 1, max: 6 }), { nil: undefined })
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 3,
    arbitrary: fc.record({ act: fc.constant('put'), body: fc.jsonValue({ maxDepth: 2 }), match, create: fc.boolean() }),
  },
  { weight: 1, arbitrary: fc.record({ act: fc.constant('delete'), match }) },
  { weight: 2, arbitrary: fc.record({ act: fc.constant('get'), version: match }) },
) as fc.Arbitrary<Step>

async function checkModel(t: Test, gateway: Gateway): Promise<void> {
  const { client, path } = await enter(gateway)
  let runs = 0
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 4, maxLength: 12 }), async (steps) => {
      runs += 1
      const url = `${path}/model${runs}`
      let versions: Version[] = []
      let last = 0
      for (const one of steps) {
        const current = versions.at(-1)
        const there = current?.body !== undefined
        const expect = (answer: Answer, status: number, body?: unknown) => {
          const same =
            answer.status === status &&
            (body === undefined || JSON.stringify(answer.body.body) === JSON.stringify(body))
          if (!same) throw new Error(`${JSON.stringify(one)}: ${answer.status} ${JSON.stringify(answer.body)}`)
        }
        const ifMatch: Record<string, string> =
          'match' in one && one.match !== undefined ? { 'if-match': `"${one.match}"` } : {}
        const stale = 'match' in one && one.match !== undefined && !(there && current.number === one.match)
        if (one.act === 'get') {
          const wanted = one.version === undefined ? current : versions.find(({ number }) => number === one.version)
          const answer = await client.get(one.version === undefined ? url : `${url}?version=${one.version}`)
          expect(answer, wanted?.body === undefined ? 404 : 200, wanted?.body)
        } else if (one.act === 'delete') {
          expect(await client.delete(url, ifMatch), !there ? 404 : stale ? 412 : 204)
          if (!there || stale) continue
          last += 1
          versions = [{ number: last, body: undefined }]
        } else {
          const create: Record<string, string> = one.create ? { 'if-none-match': '*' } : {}
          const refused = stale || (one.create && there)
          const answer = await client.put(url, { body: one.body }, { ...ifMatch, ...create })
          expect(answer, refused ? 412 : there ? 200 : 201, refused ? undefined : one.body)
          if (refused) continue
          last += 1
          if (answer.body.version !== last) throw new Error(`version ${answer.body.version} instead of ${last}`)
          versions.push({ number: last, body: one.body })
        }
      }
      await client.delete(url)
    }),
    { numRuns: 25 },
  )
  t.ok(runs >= 25)
}
