/**
 * Sessions and messages as resources, over real HTTP, on every database: making them, finding them, and going through
 * all of them page by page while others come in.
 */
import { test } from 'tap'
import { begin, createGate, doneMarker, say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { sql } from '../../src/db/drizzle.ts'
import { type Client, createClient, isDelta } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'
import { countRows } from '../support/stored.ts'

const sessions = '/api/v1/sessions'
const whole = '/api/v1/chat/message'
const uuidPattern = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/
const timePattern = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/

interface Listed {
  readonly id: string
  readonly last_activity_at: string
}

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const upstream = await startFakeUpstream({ script: () => say({ text: 'Reply' }) })
    t.teardown(() => upstream.close())
    const gateway = await startGateway(t, { database, env: { OPENAI_BASE_URL: upstream.url, FRAME_MS: '5' } })
    const newClient = async () => {
      const client = createClient(gateway.url)
      await client.get(sessions)
      return client
    }
    const setActivity = (id: string, time: string) =>
      gateway.app.db.rows(sql`update chat_sessions set last_activity_at = ${time}::timestamptz where id = ${id}::uuid`)

    await t.test('a session is created with what it was given, and is found under its Location', async (t) => {
      const client = await newClient()
      const empty = await client.post(sessions, {})
      t.equal(empty.status, 201)
      t.match(empty.body, {
        id: uuidPattern,
        external_id: null,
        kind: 'chat',
        status: 'created',
        title: null,
        mode: 'balanced',
        input: null,
        message_count: 0,
        total_tokens: 0,
        total_cost_usd: '0',
        active_run_id: null,
        tags: [],
        metadata: {},
        version: 1,
        archived: false,
        created_at: timePattern,
        updated_at: timePattern,
        last_activity_at: timePattern,
        ended_at: null,
      })
      const given = {
        id: '01890000-0000-7000-8000-00000000000a',
        external_id: 'chat/1 ü',
        kind: 'deliberation',
        mode: 'quality',
        title: ' As it is ',
        input: 'What to do?',
        context: { budget: 1.5, list: [1, null, 'x'], number: '10.5' },
        metadata: { source: 'web', nested: { a: true } },
      }
      const created = await client.post(sessions, given)
      t.equal(created.status, 201)
      t.match(created.body, given)
      t.strictSame(created.body.context, given.context)
      t.strictSame(created.body.metadata, given.metadata)
      const location = created.headers.get('location') ?? ''
      t.equal(location, `${sessions}/${given.id}`)
      t.same((await client.get(location)).body, created.body)
    })

    await t.test('an id of one’s own again is the same session, unchanged; somebody else’s is not found', async (t) => {
      const client = await newClient()
      const id = '01890000-0000-7000-8000-00000000000b'
      const first = await client.post(sessions, { id, title: 'First' })
      const again = await client.post(sessions, { id, title: 'Second', mode: 'fast' })
      t.equal(again.status, 200)
      t.same(again.body, first.body)
      t.equal(again.headers.get('location'), `${sessions}/${id}`)
      const before = await countRows(gateway)
      const theirs = await (await newClient()).post(sessions, { id })
      t.match(theirs, { status: 404, body: { code: 'not_found' } })
      t.equal(theirs.headers.get('location'), null)
      t.strictSame(await countRows(gateway), before)
    })

    await t.test('an external id names one session of its owner', async (t) => {
      const client = await newClient()
      const first = await client.post(sessions, { external_id: 'mine' })
      t.equal(first.status, 201)
      t.match(await client.post(sessions, { external_id: 'mine' }), { status: 200, body: { id: first.body.id } })
      t.match(await client.post(sessions, { external_id: 'mine', id: first.body.id }), { status: 200 })
      t.match(await client.post(sessions, { external_id: 'other', id: first.body.id }), {
        status: 400,
        body: { code: 'invalid_request' },
      })
      const otherId = '01890000-0000-7000-8000-00000000000c'
      t.match(await client.post(sessions, { external_id: 'mine', id: otherId }), {
        status: 400,
        body: { code: 'invalid_request' },
      })
      t.equal((await client.get(`${sessions}/${otherId}`)).status, 404, 'nothing was made of it')
      const stranger = await newClient()
      const theirs = await stranger.post(sessions, { external_id: 'mine' })
      t.equal(theirs.status, 201, 'every owner has names of their own')
      t.not(theirs.body.id, first.body.id)
    })

    await t.test('ten requests at once with one external id make one session', async (t) => {
      const client = await newClient()
      const answers = await Promise.all(
        Array.from({ length: 10 }, () => client.post(sessions, { external_id: 'race' })),
      )
      t.same(answers.map(({ status }) => status).toSorted(), [...Array<number>(9).fill(200), 201])
      t.equal(new Set(answers.map(({ body }) => body.id)).size, 1)
    })

    await t.test('the list is newest activity first, and a new message brings a session to its top', async (t) => {
      const client = await newClient()
      const ids: string[] = []
      for (let index = 0; index < 4; index += 1) ids.unshift((await client.post(sessions, {})).body.id)
      const listed = async () => (await client.get(sessions)).body.data.map(({ id }: Listed) => id)
      t.same(await listed(), ids)
      const last = ids.at(-1)!
      t.equal((await client.post(whole, { message: 'Hi', session_id: last })).status, 200)
      t.same(await listed(), [last, ...ids.slice(0, -1)])
    })

    await t.test('every filter leaves exactly what it names', async (t) => {
      const client = await newClient()
      const create = async (body: object) => (await client.post(sessions, body)).body.id as string
      const [a, b, c, d] = [
        await create({ kind: 'chat', mode: 'fast' }),
        await create({ kind: 'report', mode: 'quality' }),
        await create({ kind: 'report', mode: 'balanced' }),
        await create({ mode: 'balanced' }),
      ]
      await client.post(whole, { message: 'Hi', session_id: d })
      await gateway.app.db.rows(sql`
        update chat_sessions set tags = array['red', 'it''s "odd", {x}'], archived = true where id = ${b}::uuid`)
      await setActivity(a, '2024-01-01T00:00:00.000001Z')
      await setActivity(b, '2024-01-02T00:00:00.000000Z')
      await setActivity(c, '2024-01-03T00:00:00.999999Z')
      await setActivity(d, '2024-01-04T00:00:00.000000Z')
      const odd = encodeURIComponent('it\'s "odd", {x}')
      const cases: readonly (readonly [query: string, ids: readonly string[]])[] = [
        ['', [d, c, b, a]],
        ['status=created', [c, b, a]],
        ['status=completed', [d]],
        ['status=running', []],
        ['kind=report', [c, b]],
        ['kind=Report', []],
        ['kind=%25', []],
        ['mode=fast', [a]],
        ['mode=balanced', [d, c]],
        ['tag=red', [b]],
        [`tag=${odd}`, [b]],
        ['tag=re', []],
        ['tag=', []],
        ['archived=true', [b]],
        ['archived=false', [d, c, a]],
        ['from=2024-01-02T00:00:00Z', [d, c, b]],
        ['from=2024-01-01T00:00:00.000001Z', [d, c, b, a]],
        ['from=2024-01-01T00:00:00.000002Z', [d, c, b]],
        ['from=2024-01-02T01:00:00%2B01:00', [d, c, b]],
        ['to=2024-01-02T00:00:00Z', [a]],
        ['to=2024-01-03T00:00:00.999999Z', [b, a]],
        ['from=2024-01-02T00:00:00Z&to=2024-01-04T00:00:00Z', [c, b]],
        ['from=2024-01-04T00:00:00Z&to=2024-01-01T00:00:00Z', []],
        ['from=2024-12-31T23:59:60Z', []],
        ['kind=report&mode=quality&status=created&archived=true&tag=red', [b]],
        ['limit=2', [d, c]],
        ['limit=2&offset=1', [c, b]],
        ['offset=3', [a]],
        ['offset=4', []],
        ['offset=10000', []],
        ['limit=100', [d, c, b, a]],
      ]
      for (const [query, ids] of cases) {
        const answer = await client.get(`${sessions}?${query}`)
        t.same([answer.status, answer.body.data?.map(({ id }: Listed) => id)], [200, ids], query)
      }
    })

    await t.test('paging through sessions skips none and repeats none, whatever comes in meanwhile', async (t) => {
      const client = await newClient()
      const { body } = await client.post(sessions, {})
      // Groups of seven at the same microsecond, and the groups one microsecond apart: a cursor of milliseconds, or one
      // without the id, would skip some.
      await gateway.app.db.rows(sql`
        insert into chat_sessions (id, visitor_hash, last_activity_at)
        select gen_random_uuid(), s.visitor_hash,
          timestamptz '2024-05-05 12:00:00.123450Z' + (n / 7) * interval '1 microsecond'
        from chat_sessions s, generate_series(1, 100) n where s.id = ${body.id}::uuid`)
      const all = (await pages(client, `${sessions}?limit=100`)).flat()
      t.equal(all.length, 101)
      t.same(all, sortListed(all), 'newest first; of the same microsecond, in the order of the ids')
      t.ok(new Set(all.map((session) => session.last_activity_at)).size > 10)
      for (const limit of [1, 7, 10, 50, 100]) {
        let page = 0
        const seen = await pages(client, `${sessions}?limit=${limit}`, async () => {
          page += 1
          if (page > 5) return
          const id = (await client.post(sessions, {})).body.id
          // Some come in at the top, some in the middle of what has been read, some at its end.
          if (page === 2) await setActivity(id, '2024-05-05T12:00:00.123464Z')
          if (page === 3) await setActivity(id, '2025-01-01T00:00:00Z')
        })
        for (const rows of seen.slice(0, -1)) t.equal(rows.length, limit)
        const ids = seen.flat().map(({ id }) => id)
        t.equal(new Set(ids).size, ids.length, `limit ${limit}: none twice`)
        const missing = all.filter(({ id }) => !ids.includes(id))
        t.same(missing, [], `limit ${limit}: none of those that were there is missing`)
      }
    })

    await t.test(
      'a cursor is the place of the last row to the microsecond, and works after that row is gone',
      async (t) => {
        const client = await newClient()
        const ids: string[] = []
        for (let index = 0; index < 3; index += 1) ids.unshift((await client.post(sessions, {})).body.id)
        await setActivity(ids[0]!, '2024-01-01T00:00:00.000003Z')
        await setActivity(ids[1]!, '2024-01-01T00:00:00.000002Z')
        await setActivity(ids[2]!, '2024-01-01T00:00:00.000001Z')
        const first = (await client.get(`${sessions}?limit=1`)).body
        t.equal(first.data[0].last_activity_at, '2024-01-01T00:00:00.000003Z')
        await gateway.app.db.rows(sql`update chat_sessions set deleted_at = now() where id = ${ids[0]}::uuid`)
        const second = (await client.get(`${sessions}?limit=1&cursor=${first.next_cursor}`)).body
        t.same([second.data.map(({ id }: Listed) => id)], [[ids[1]]])
        const third = (await client.get(`${sessions}?limit=1&cursor=${second.next_cursor}`)).body
        t.same([third.data.map(({ id }: Listed) => id), third.next_cursor], [[ids[2]], null])
        const foreign = await (await newClient()).get(`${sessions}?cursor=${first.next_cursor}`)
        t.same(foreign.body, { data: [], next_cursor: null }, 'somebody else’s cursor shows only one’s own')
        t.equal((await client.get(`${sessions}/${ids[0]}`)).status, 404)
        t.equal((await client.get(`${sessions}/${ids[0]}/messages`)).status, 404)
      },
    )

    await t.test('messages come oldest first, and their pages skip none while a reply is being made', async (t) => {
      const client = await newClient()
      const session_id = (await client.post(sessions, {})).body.id
      const path = `${sessions}/${session_id}/messages`
      t.same((await client.get(path)).body, { data: [], next_cursor: null })
      for (let round = 0; round < 6; round += 1) await client.post(whole, { message: `Message ${round}`, session_id })
      const gate = createGate()
      upstream.answer(async function* () {
        yield* begin({ text: 'Half' })
        await gate.opened
        yield doneMarker
      })
      const stream = await client.send({ message: 'Message 6', session_id })
      await stream.until(isDelta)
      for (const limit of [1, 3, 5, 14, 100]) {
        const read = (await pages<{ seq: number; content: string }>(client, `${path}?limit=${limit}`)).flat()
        t.same(
          read.map(({ seq }) => seq),
          Array.from({ length: 14 }, (_, index) => index + 1),
          `limit ${limit}`,
        )
        t.same(
          read.filter(({ seq }) => seq % 2 === 1).map(({ content }) => content),
          Array.from({ length: 7 }, (_, index) => `Message ${index}`),
        )
        t.match(read.at(-1), { status: 'streaming', content: 'Half' }, 'the running reply is on the last page')
      }
      const last = (await client.get(`${path}?limit=2`)).body.next_cursor
      t.same((await (await newClient()).get(`${path}?cursor=${last}`)).status, 404, 'a cursor opens nothing to others')
      gate.open()
      await stream.ended
      const end = Buffer.from('[14]').toString('base64url')
      t.same((await client.get(`${path}?cursor=${end}`)).body, { data: [], next_cursor: null }, 'behind the end')
      upstream.answer(() => say({ text: 'Reply' }))
    })

    await t.test('a title is the beginning of the first message, on one line, whole characters only', async (t) => {
      const client = await newClient()
      const family = '👩‍👩‍👧‍👦' // seven code points that are read as one character
      const cases: readonly (readonly [message: string, title: string])[] = [
        ['Short', 'Short'],
        ['  blanks\n\n and \t lines \r\n', 'blanks and lines'],
        ['x'.repeat(50), 'x'.repeat(50)],
        ['x'.repeat(51), 'x'.repeat(50)],
        [`${'x'.repeat(49)} y`, `${'x'.repeat(49)} `],
        ['é'.repeat(60), 'é'.repeat(50)],
        ['e\u0301'.repeat(60), 'e\u0301'.repeat(25)],
        [`${'x'.repeat(49)}e\u0301e`, 'x'.repeat(49)],
        ['😀'.repeat(60), '😀'.repeat(50)],
        [`${'x'.repeat(43)}${family}yy`, `${'x'.repeat(43)}${family}`],
        [`${'x'.repeat(44)}${family}yy`, 'x'.repeat(44)],
        [family.repeat(10), family.repeat(7)],
        ['🇩🇪'.repeat(40), '🇩🇪'.repeat(25)],
        ['한국어 제목', '한국어 제목'],
        ['\u00a0\u3000wide blanks\u2028', 'wide blanks'],
        [`a${'\u0301'.repeat(200)}`, `a${'\u0301'.repeat(49)}`],
        [`${' '.repeat(5000)}late`, 'late'],
        [`${'word '.repeat(20_000)}`, 'word '.repeat(10)],
        ['<b>&amp;</b> "quoted"', '<b>&amp;</b> "quoted"'],
      ]
      for (const [message, title] of cases) {
        const { status, body } = await client.post(whole, { message })
        // A line separator in the name of an assertion would break the report.
        t.same([status, body.session?.title], [200, title], encodeURIComponent(message.slice(0, 60)))
      }
    })

    await t.test('a title that was given, or made once, stays', async (t) => {
      const client = await newClient()
      const given = (await client.post(sessions, { title: 'Mine' })).body
      const reply = await client.post(whole, { message: 'Not the title', session_id: given.id })
      t.equal(reply.body.session.title, 'Mine')
      const untitled = (await client.post(sessions, {})).body
      await client.post(whole, { message: 'The title', session_id: untitled.id })
      const second = await client.post(whole, { message: 'Not any more', session_id: untitled.id })
      t.equal(second.body.session.title, 'The title')
    })

    await t.test('counters, version and times are right after every run', async (t) => {
      const client = await newClient()
      const created = (await client.post(sessions, { mode: 'fast' })).body
      let tokens = 0
      let earlier = created
      for (let round = 1; round <= 5; round += 1) {
        upstream.answer(() => say({ tokens: round }))
        const { body } = await client.post(whole, { message: `Round ${round}`, session_id: created.id })
        tokens += body.run.usage.total_tokens
        t.match(body.session, {
          status: 'completed',
          mode: 'fast',
          model: 'fake',
          message_count: round * 2,
          total_tokens: tokens,
          version: 1 + round * 2,
          active_run_id: null,
          created_at: created.created_at,
        })
        t.equal(body.run.mode, 'fast', 'a message without a mode takes the session’s')
        t.ok(body.session.last_activity_at > earlier.last_activity_at)
        t.ok(body.session.updated_at > earlier.updated_at)
        t.ok(body.session.last_activity_at >= body.run.created_at)
        t.ok(body.message.completed_at >= body.user_message.created_at)
        earlier = body.session
      }
      const again = await client.post(whole, { message: 'Once', session_id: created.id, client_message_id: 'once' })
      const repeated = await client.post(whole, { message: 'Once', session_id: created.id, client_message_id: 'once' })
      t.same(repeated.body.session, again.body.session, 'a repeat counts nothing')

      upstream.answer(() => say({ tokens: 5000, paceMs: 5 }))
      const stream = await client.send({ message: 'Stopped', session_id: created.id })
      await stream.until(isDelta)
      const running = (await client.get(`${sessions}/${created.id}`)).body
      t.match(running, { status: 'running', active_run_id: stream.headers.get('x-run-id'), message_count: 14 })
      const counted = await countRows(gateway)
      t.equal((await client.post('/api/v1/chat/stream', { message: 'Busy', session_id: created.id })).status, 409)
      t.strictSame(await countRows(gateway), counted)
      const { last_activity_at, ...refused } = (await client.get(`${sessions}/${created.id}`)).body
      t.match(running, refused, 'a refused message changes nothing')
      t.ok(last_activity_at >= running.last_activity_at, 'and the reply goes on')
      await client.post(`${sessions}/${created.id}/stop`)
      await stream.ended
      const stopped = (await client.get(`${sessions}/${created.id}`)).body
      t.match(stopped, { status: 'completed', active_run_id: null, message_count: 14, version: running.version + 1 })
      upstream.answer(() => say({ text: 'Reply' }))
    })

    await t.test('what belongs to one visitor is in no list of another', async (t) => {
      const [one, two] = [await newClient(), await newClient()]
      const mine = (await one.post(sessions, { external_id: 'same' })).body.id
      const theirs = (await two.post(sessions, { external_id: 'same' })).body.id
      t.same(
        (await one.get(sessions)).body.data.map(({ id }: Listed) => id),
        [mine],
      )
      t.same(
        (await two.get(sessions)).body.data.map(({ id }: Listed) => id),
        [theirs],
      )
    })
  })
}

test('a twin: a list that is out of order is noticed', async (t) => {
  const rows = [
    { id: 'b', last_activity_at: '2024-01-01T00:00:00.000001Z' },
    { id: 'a', last_activity_at: '2024-01-01T00:00:00.000002Z' },
  ]
  t.not(sortListed(rows)[0], rows[0])
})

/** Newest first; of the same time, by id. */
function sortListed(rows: readonly Listed[]): readonly Listed[] {
  const key = ({ last_activity_at, id }: Listed) => `${last_activity_at} ${id}`
  return rows.toSorted((a, b) => (key(a) < key(b) ? 1 : -1))
}

/** Every page until there is none. @param between done after each page but the last */
async function pages<Row = Listed>(
  client: Client,
  path: string,
  between: () => Promise<void> = async () => undefined,
): Promise<Row[][]> {
  const read: Row[][] = []
  for (let cursor = ''; ; ) {
    const { status, body } = await client.get(`${path}${cursor}`)
    if (status !== 200) throw new Error(`${status} for ${path}${cursor}`)
    read.push(body.data)
    if (body.next_cursor === null) return read
    cursor = `&cursor=${body.next_cursor}`
    await between()
  }
}
