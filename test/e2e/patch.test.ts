/**
 * Changing a session, over real HTTP, on every database: only what is given changes, and a change that was made for an
 * older version is refused, also when another one is on its way at the same moment.
 */
import { test } from 'tap'
import { say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { sql } from '../../src/db/drizzle.ts'
import { type Answer, createClient } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'

const sessions = '/api/v1/sessions'
const full = {
  kind: 'report',
  mode: 'fast',
  title: 'Before',
  input: 'Input',
  context: { c: 1 },
  metadata: { a: 1, b: { x: 1, y: 2 }, text: 'keep  "these" : blanks, \\" and these' },
}

/** What every change changes by itself. */
const ofChange = ({ version: _, updated_at: __, ...rest }: Record<string, unknown>) => rest

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const upstream = await startFakeUpstream({ script: () => say({ text: 'Reply' }) })
    t.teardown(() => upstream.close())
    const gateway = await startGateway(t, { database, env: { OPENAI_BASE_URL: upstream.url, FRAME_MS: '5' } })
    const client = createClient(gateway.url)
    const create = async (body: object = full) => (await client.post(sessions, body)).body
    await create()

    await t.test(
      'each field changes what it names, raises the version by one, and moves no session in the list',
      async (t) => {
        const cases: readonly (readonly [body: object, after: object])[] = [
          [{ title: 'After' }, { title: 'After' }],
          [{ title: null }, { title: null }],
          [{ title: ' As it is\n' }, { title: ' As it is\n' }],
          [{ title: '題'.repeat(500) }, { title: '題'.repeat(500) }],
          [{ mode: 'quality' }, { mode: 'quality' }],
          [{ metadata: { a: 2 } }, { metadata: { ...full.metadata, a: 2 } }],
          [{ metadata: { c: [1, null, '10.5'] } }, { metadata: { ...full.metadata, c: [1, null, '10.5'] } }],
          [{ metadata: { a: null, never: null } }, { metadata: { b: full.metadata.b, text: full.metadata.text } }],
          [{ metadata: { b: { z: null } } }, { metadata: { ...full.metadata, b: { z: null } } }],
          [{ metadata: {} }, {}],
          [
            { tags: ['b', 'a', 'b', 'it\'s "odd", {x}\\', 'NULL', '日本'] },
            { tags: ['b', 'a', 'it\'s "odd", {x}\\', 'NULL', '日本'] },
          ],
          [{ tags: [] }, { tags: [] }],
          [
            { tags: Array.from({ length: 50 }, (_, n) => `${n}`.padEnd(100, 'x')) },
            { tags: Array.from({ length: 50 }, (_, n) => `${n}`.padEnd(100, 'x')) },
          ],
          [
            { state: { phase: 'draft', list: [1, 'two', null] } },
            { state: { phase: 'draft', list: [1, 'two', null] } },
          ],
          [{ state: '10.5' }, { state: '10.5' }],
          [{ state: 0 }, { state: 0 }],
          [{ state: false }, { state: false }],
          [{ state: [] }, { state: [] }],
          [{ state: null }, { state: null }],
          [{ ended: false }, { ended_at: null }],
          [
            { title: 'All', mode: 'adaptive', metadata: { a: 3 }, tags: ['t'], state: 's' },
            { title: 'All', mode: 'adaptive', metadata: { ...full.metadata, a: 3 }, tags: ['t'], state: 's' },
          ],
        ]
        for (const [body, after] of cases) {
          const before = await create()
          const name = JSON.stringify(body).slice(0, 60)
          const answer = await client.patch(`${sessions}/${before.id}`, body)
          t.equal(answer.status, 200, name)
          t.strictSame(ofChange(answer.body), { ...ofChange(before), ...after }, name)
          t.equal(answer.body.version, before.version + 1, name)
          t.ok(answer.body.updated_at > before.updated_at, name)
          t.equal(answer.headers.get('etag'), `"${before.version + 1}"`)
          t.strictSame((await client.get(`${sessions}/${before.id}`)).body, answer.body, 'and it is stored so')
        }
      },
    )

    await t.test('what was ended is ended once, until it is not', async (t) => {
      const { id } = await create()
      const ended = (await client.patch(`${sessions}/${id}`, { ended: true })).body.ended_at
      t.match(ended, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/)
      t.equal((await client.patch(`${sessions}/${id}`, { ended: true })).body.ended_at, ended)
      t.equal((await client.patch(`${sessions}/${id}`, { ended: false })).body.ended_at, null)
      await client.patch(`${sessions}/${id}`, { ended: true })
      const next = await client.post('/api/v1/chat/message', { message: 'Go on', session_id: id })
      t.equal(next.body.session.ended_at, null, 'a message opens it again')
    })

    await t.test('a title that was taken away is made again from the next message', async (t) => {
      const { id } = await create()
      await client.patch(`${sessions}/${id}`, { title: null })
      const { body } = await client.post('/api/v1/chat/message', { message: 'The new title', session_id: id })
      t.equal(body.session.title, 'The new title')
      const [row] = await gateway.app.db.rows<{ source: string }>(
        sql`select title_source as source from chat_sessions where id = ${id}::uuid`,
      )
      t.equal(row?.source, 'message')
    })

    await t.test('a wrong body changes nothing', async (t) => {
      const before = await create()
      const tooDeep = JSON.parse(`${'['.repeat(33)}${']'.repeat(33)}`)
      const cases: readonly (readonly [body: unknown, status?: number])[] = [
        [{}],
        [[]],
        ['x'],
        [{ title: '' }],
        [{ title: ' \n' }],
        [{ title: '\u0000' }],
        [{ title: 'x'.repeat(501) }],
        [{ title: 5 }],
        [{ mode: null }],
        [{ mode: 'turbo' }],
        [{ metadata: null }],
        [{ metadata: [] }],
        [{ metadata: { a: 'x'.repeat(16_384) } }, 413],
        [{ tags: null }],
        [{ tags: 'a' }],
        [{ tags: [1] }],
        [{ tags: [''] }],
        [{ tags: [' '] }],
        [{ tags: ['\u0000'] }],
        [{ tags: ['x'.repeat(101)] }],
        [{ tags: Array.from({ length: 51 }, (_, n) => `${n}`) }],
        [{ state: 'x'.repeat(64 * 1024) }, 413],
        [{ state: tooDeep }],
        [{ ended: null }],
        [{ ended: 'true' }],
        [{ status: 'completed' }],
        [{ title: 'x', version: 9 }],
        [{ kind: 'chat' }],
        [{ archived: true }],
        [{ user_id: 'somebody' }],
      ]
      for (const [body, status = 400] of cases) {
        const answer = await client.patch(`${sessions}/${before.id}`, body)
        t.equal(answer.status, status, JSON.stringify(body).slice(0, 80))
        t.equal(answer.body.code, status === 413 ? 'too_large' : 'invalid_request')
      }
      t.strictSame((await client.get(`${sessions}/${before.id}`)).body, before)
    })

    await t.test('metadata is bounded with what is there, to the byte, and shrinks again', async (t) => {
      const bytesMax = 16 * 1024
      const filler = (count: number) => ({ b: 'é: , "x"\\'.repeat(10), a: 'x'.repeat(count) })
      const room = bytesMax - Buffer.byteLength(JSON.stringify(filler(0)))
      const { id } = await create({ metadata: { a: '' } })
      const path = `${sessions}/${id}`
      t.equal((await client.patch(path, { metadata: filler(room) })).status, 200, 'exactly as much as fits')
      t.match(await client.patch(path, { metadata: { c: '' } }), { status: 413, body: { code: 'too_large' } })
      t.match(await client.patch(path, { metadata: { a: 'x'.repeat(room + 1) } }), { status: 413 })
      const smaller = await client.patch(path, { metadata: { a: null, c: 1 } })
      t.same(smaller.body.metadata, { b: filler(0).b, c: 1 })
      t.match(await client.patch(path, { metadata: { d: 'x'.repeat(bytesMax) } }, { 'if-match': '"99"' }), {
        status: 413,
      })
    })

    await t.test('the version is in every answer, and If-Match holds a change to it', async (t) => {
      const created = await client.post(sessions, full)
      const { id } = created.body
      t.equal(created.headers.get('etag'), '"1"')
      t.equal((await client.post(sessions, { id })).headers.get('etag'), '"1"')
      t.equal((await client.get(`${sessions}/${id}`)).headers.get('etag'), '"1"')
      const change = (header: string, title = 'x') =>
        client.patch(`${sessions}/${id}`, { title }, { 'if-match': header })
      t.equal((await change('"1"')).body.version, 2)
      for (const stale of ['"1"', '"3"', 'W/"2"', '"x"', '""', '"02"', '"99999999999999999999"', '"1", "3"']) {
        t.match(await change(stale, 'never'), { status: 412, body: { code: 'precondition_failed' } }, stale)
      }
      for (const malformed of ['2', "'2'", '"2', '2"', '"2" "3"', '*, "2"', '"2",', '"a b"']) {
        t.match(await change(malformed, 'never'), { status: 400, body: { code: 'invalid_request' } }, malformed)
      }
      t.match((await client.get(`${sessions}/${id}`)).body, { version: 2, title: 'x' })
      t.equal((await change('*')).body.version, 3)
      t.equal((await change(' "1" , "3" ')).body.version, 4)
      await client.post('/api/v1/chat/message', { message: 'Hi', session_id: id })
      t.equal((await change('"4"')).status, 412, 'a reply is a change')
    })

    await t.test('of ten changes for one version exactly one is made, and of ten without all are', async (t) => {
      const { id } = await create()
      const titles = Array.from({ length: 10 }, (_, n) => `Title ${n}`)
      const answers = await Promise.all(
        titles.map((title) => client.patch(`${sessions}/${id}`, { title }, { 'if-match': '"1"' })),
      )
      t.same(answers.map(({ status }) => status).toSorted(), [200, ...Array<number>(9).fill(412)])
      const winner = answers.find(({ status }) => status === 200) as Answer
      t.match((await client.get(`${sessions}/${id}`)).body, { title: winner.body.title, version: 2 })

      const members = await Promise.all(
        titles.map((title) => client.patch(`${sessions}/${id}`, { metadata: { [title]: true } })),
      )
      t.same(new Set(members.map(({ status }) => status)), new Set([200]))
      const after = (await client.get(`${sessions}/${id}`)).body
      t.equal(after.version, 12)
      t.same(after.metadata, { ...full.metadata, ...Object.fromEntries(titles.map((title) => [title, true])) })
    })

    await t.test('what is not there, deleted, or somebody else’s is not found, whatever the version', async (t) => {
      const { id } = await create()
      const stranger = createClient(gateway.url)
      const unknown = '01890000-0000-7000-8000-000000000000'
      for (const headers of [undefined, { 'if-match': '*' }, { 'if-match': '"1"' }, { 'if-match': '"7"' }]) {
        t.match(await stranger.patch(`${sessions}/${id}`, { title: 'Mine' }, headers), { status: 404 })
        t.match(await client.patch(`${sessions}/${unknown}`, { title: 'x' }, headers), { status: 404 })
      }
      t.match((await client.get(`${sessions}/${id}`)).body, { title: 'Before', version: 1 })
      await gateway.app.db.rows(sql`update chat_sessions set deleted_at = now() where id = ${id}::uuid`)
      t.match(await client.patch(`${sessions}/${id}`, { title: 'x' }), { status: 404, body: { code: 'not_found' } })
    })
  })
}
