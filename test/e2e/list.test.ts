/**
 * Lists of sessions and what a session is given out with, over real HTTP, on every database: paging is the sorted list,
 * whatever the times and whoever writes meanwhile, and what a session may be created over.
 */
import fc from 'fast-check'
import { test } from 'tap'
import { begin, createGate, doneMarker, say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { sql } from '../../src/db/drizzle.ts'
import { writeCursor } from '../../src/sessions/cursor.ts'
import { type Client, createClient, isDelta } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'

const sessions = '/api/v1/sessions'
const modes = ['fast', 'balanced', 'quality', 'adaptive']
const tags = ['red', 'blue']

interface Row {
  readonly id: string
  readonly microsecond: number
  readonly mode: string
  readonly kind: string
  readonly tag: string | null
}

const row: fc.Arbitrary<Row> = fc.record({
  id: fc.uuid({ version: 7 }),
  // So few that most rows share theirs with others.
  microsecond: fc.nat(5),
  mode: fc.constantFrom(...modes),
  kind: fc.constantFrom('chat', 'report'),
  tag: fc.constantFrom(null, ...tags),
})
const query = fc.record(
  {
    mode: fc.constantFrom(...modes),
    kind: fc.constantFrom('chat', 'report', 'none'),
    tag: fc.constantFrom(...tags),
    from: fc.nat(6),
    to: fc.nat(6),
  },
  { requiredKeys: [] },
)

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const upstream = await startFakeUpstream({ script: () => say({ text: 'Reply' }) })
    t.teardown(() => upstream.close())
    const gateway = await startGateway(t, { database, env: { OPENAI_BASE_URL: upstream.url, FRAME_MS: '5' } })
    const { db } = gateway.app
    const timeOf = (microsecond: number) => `2024-05-05T12:00:00.12345${microsecond}Z`

    /** An owner with these sessions and no other. */
    async function own(rows: readonly Row[]): Promise<Client> {
      const client = createClient(gateway.url)
      const { id } = (await client.post(sessions, {})).body
      await db.rows(sql`
        with first as (delete from chat_sessions where id = ${id}::uuid returning visitor_hash)
        insert into chat_sessions (id, visitor_hash, mode, kind, tags, last_activity_at)
        select r.id, first.visitor_hash, r.mode, r.kind, array_remove(array[r.tag], null),
          ${timeOf(0)}::timestamptz + r.microsecond * interval '1 microsecond'
        from first, jsonb_to_recordset(${JSON.stringify(rows)}::jsonb) as r (id uuid, microsecond int, mode text, kind text, tag text)`)
      return client
    }

    async function readAll(
      client: Client,
      filters: string,
      between: (page: number) => Promise<unknown> = async () => undefined,
    ): Promise<string[]> {
      const ids: string[] = []
      for (let cursor = '', page = 1; ; page += 1) {
        const { status, body } = await client.get(`${sessions}?${filters}${cursor}`)
        if (status !== 200) throw new Error(`${status}: ${body.detail}`)
        ids.push(...body.data.map(({ id }: Row) => id))
        if (body.next_cursor === null) return ids
        cursor = `&cursor=${body.next_cursor}`
        await between(page)
      }
    }

    await t.test('the pages of any list, with any filters, are the sorted list exactly', async () => {
      await fc.assert(
        fc.asyncProperty(
          fc.uniqueArray(row, { selector: ({ id }) => id, minLength: 20, maxLength: 60 }),
          fc.array(fc.tuple(query, fc.integer({ min: 1, max: 9 })), { minLength: 4, maxLength: 4 }),
          async (rows, questions) => {
            const client = await own(rows)
            for (const [{ mode, kind, tag, from, to }, limit] of [[{}, 7] as const, ...questions]) {
              const parameters = new URLSearchParams({ limit: `${limit}` })
              if (mode !== undefined) parameters.set('mode', mode)
              if (kind !== undefined) parameters.set('kind', kind)
              if (tag !== undefined) parameters.set('tag', tag)
              if (from !== undefined) parameters.set('from', timeOf(from))
              if (to !== undefined) parameters.set('to', timeOf(to))
              const expected = rows
                .filter((row) => mode === undefined || row.mode === mode)
                .filter((row) => kind === undefined || row.kind === kind)
                .filter((row) => tag === undefined || row.tag === tag)
                .filter((row) => from === undefined || row.microsecond >= from)
                .filter((row) => to === undefined || row.microsecond < to)
                .toSorted((a, b) => b.microsecond - a.microsecond || (a.id < b.id ? 1 : -1))
                .map(({ id }) => id)
              if (JSON.stringify(await readAll(client, `${parameters}`)) !== JSON.stringify(expected)) return false
            }
            return true
          },
        ),
        { numRuns: 4, endOnFailure: true },
      )
    })

    await t.test('what stays where it is comes exactly once, whatever is created and used meanwhile', async (t) => {
      const rows = fc.sample(row, { numRuns: 60, seed: 1 })
      const client = await own(rows)
      const moved = new Set<string>()
      const ids = await readAll(client, 'limit=7', async (page) => {
        const used = rows[page * 6]!.id
        moved.add(used)
        const [created] = await Promise.all([
          client.post(sessions, {}),
          db.rows(sql`update chat_sessions set last_activity_at = now() where id = ${used}::uuid`),
        ])
        // One comes in among those that are yet to be read.
        const place = sql`${timeOf(page % 6)}::timestamptz`
        await db.rows(sql`update chat_sessions set last_activity_at = ${place} where id = ${created.body.id}::uuid`)
      })
      t.ok(moved.size >= 8)
      t.equal(new Set(ids).size, ids.length, 'none twice')
      const stayed = rows.map(({ id }) => id).filter((id) => !moved.has(id))
      t.same(
        stayed.filter((id) => !ids.includes(id)),
        [],
        'none of them is missing',
      )
    })

    await t.test(
      'a cursor that is none, and one beside an offset, are refused; times are taken as they come',
      async (t) => {
        const client = await own(fc.sample(row, { numRuns: 3, seed: 2 }))
        const good = (await client.get(`${sessions}?limit=1`)).body.next_cursor
        for (const wrong of [
          `cursor=${good}&offset=0`,
          `cursor=${writeCursor([1])}`,
          `cursor=${writeCursor(['2024-02-30T00:00:00.000000Z', '01890000-0000-7000-8000-000000000000'])}`,
          `cursor=${writeCursor(['9999-99-99T99:99:99.000000Z', '01890000-0000-7000-8000-000000000000'])}`,
          `cursor=${good}=`,
          'cursor=',
          'from=2024-01-01',
          'from=2024-02-30T00:00:00Z',
          'to=yesterday',
          `q=${'x'.repeat(201)}`,
          'q=a+b+c+d+e+f+g+h+i',
          'q=a&q=b',
        ]) {
          t.match(await client.get(`${sessions}?${wrong}`), { status: 400, body: { code: 'invalid_request' } }, wrong)
        }
        for (const [filter, count] of [
          ['from=0000-01-01T00:00:00Z', 3],
          ['to=9999-12-31T23:59:59.999999999-23:59', 3],
          ['from=2024-05-06T11:00:00%2B23:59', 3],
          ['from=2024-05-05T12:00:00.1234599999Z', 0],
          ['to=2024-05-05T12:00:00.1234599999Z', 3],
          [`limit=1&cursor=${good}`, 1],
          ['q=', 3],
          ['q=+%E3%80%80', 3],
        ] as const) {
          const { status, body } = await client.get(`${sessions}?${filter}`)
          t.same([status, body.data?.length], [200, count], filter)
        }
        await fc.assert(
          fc.asyncProperty(
            fc.oneof(
              fc.string(),
              fc.json().map((text) => Buffer.from(text).toString('base64url')),
            ),
            async (cursor) => {
              const { status } = await client.get(`${sessions}?cursor=${encodeURIComponent(cursor)}`)
              return status === 400
            },
          ),
          { numRuns: 40 },
        )
      },
    )

    await t.test('a session is given out with its messages and artifacts when they are asked for', async (t) => {
      const client = createClient(gateway.url)
      const { id } = (await client.post('/api/v1/chat/message', { message: 'Hi' })).body.session
      const path = `${sessions}/${id}`
      const alone = (await client.get(path)).body
      t.notOk('messages' in alone || 'artifacts' in alone)
      const data = (await client.get(`${path}/messages`)).body.data
      t.same((await client.get(`${path}?include=messages`)).body, {
        ...alone,
        messages: data,
        messages_next_cursor: null,
      })
      t.same((await client.get(`${path}?include=artifacts`)).body, { ...alone, artifacts: [] })
      t.match((await client.get(`${path}?include=artifacts,messages`)).body, { messages: data, artifacts: [] })
      for (const wrong of ['', 'message', 'messages,', ',messages', 'messages, artifacts', 'Messages', 'runs']) {
        t.equal((await client.get(`${path}?include=${encodeURIComponent(wrong)}`)).status, 400, wrong)
      }
      t.equal((await createClient(gateway.url).get(`${path}?include=messages,artifacts`)).status, 404)

      const gate = createGate()
      upstream.answer(async function* () {
        yield* begin({ text: 'Half' })
        await gate.opened
        yield doneMarker
      })
      const stream = await client.send({ message: 'Slowly', session_id: id })
      await stream.until(isDelta)
      const running = (await client.get(`${path}?include=messages`)).body.messages.at(-1)
      t.match(running, { status: 'streaming', content: 'Half', cursor: String }, 'a running reply is as far as it is')
      gate.open()
      await stream.ended
      upstream.answer(() => say({ text: 'Reply' }))

      await db.rows(sql`
        insert into chat_messages (id, session_id, seq, role, content, status)
        select gen_random_uuid(), ${id}::uuid, n, 'user', n::text, 'completed' from generate_series(5, 105) n`)
      const long = (await client.get(`${path}?include=messages`)).body
      t.equal(long.messages.length, 100)
      const rest = await client.get(`${path}/messages?cursor=${long.messages_next_cursor}`)
      t.same(
        rest.body.data.map(({ seq }: { seq: number }) => seq),
        [101, 102, 103, 104, 105],
      )
    })

    await t.test('a deleted session keeps its id, and gives its external id back', async (t) => {
      const client = createClient(gateway.url)
      const id = '01890000-0000-7000-8000-00000000001a'
      await client.post(sessions, { id, external_id: 'name' })
      await db.rows(sql`update chat_sessions set deleted_at = now() where id = ${id}::uuid`)
      t.match(await client.post(sessions, { id }), { status: 409, body: { code: 'conflict' } })
      t.match(await client.post(sessions, { id, external_id: 'other' }), { status: 409 })
      t.equal((await createClient(gateway.url).post(sessions, { id })).status, 404, 'others learn nothing of it')
      const next = await client.post(sessions, { external_id: 'name' })
      t.equal(next.status, 201)
      t.not(next.body.id, id)
      t.equal((await client.post(sessions, { external_id: 'name' })).body.id, next.body.id)
    })

    await t.test('ten requests at once with one id of one’s own make one session', async (t) => {
      const client = createClient(gateway.url)
      await client.post(sessions, {})
      const id = '01890000-0000-7000-8000-00000000001b'
      for (const body of [{ id }, { external_id: 'both', id: id.replace(/b$/, 'c') }]) {
        const answers = await Promise.all(Array.from({ length: 10 }, () => client.post(sessions, body)))
        t.same(answers.map(({ status }) => status).toSorted(), [...Array<number>(9).fill(200), 201])
        t.same(new Set(answers.map((answer) => answer.body.id)), new Set([body.id]))
      }
    })
  })
}
