/**
 * Sessions that go away and come back, over real HTTP, on every database: what is deleted is found nowhere and can be
 * restored, what is erased leaves no word, and what was being said when it happened is stopped.
 */
import { test } from 'tap'
import { createGate, doneMarker, forever, refuse, say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { sql } from '../../src/db/drizzle.ts'
import type { Owner } from '../../src/http/identity.ts'
import { createSessionChanges } from '../../src/sessions/changes.ts'
import { createRemoval, type RemovalOptions } from '../../src/sessions/removal.ts'
import { createSessionStore } from '../../src/sessions/store.ts'
import { createClient, isDelta, isDone } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { type Gateway, startGateway } from '../support/gateway.ts'
import { inSeconds, makeToken } from '../support/tokens.ts'

const sessions = '/api/v1/sessions'
const whole = '/api/v1/chat/message'
const canary = 'canary-of-removal'
const secret = 'a secret of at least thirty-two bytes'

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const upstream = await startFakeUpstream({ script: () => say({ text: 'Reply' }) })
    t.teardown(() => upstream.close())
    const gateway = await startGateway(t, {
      database,
      env: { OPENAI_BASE_URL: upstream.url, FRAME_MS: '5', JWT_SECRET: secret },
    })
    const { db } = gateway.app
    const newClient = async () => {
      const client = createClient(gateway.url)
      await client.get(sessions)
      return client
    }
    const newUser = (sub: string) =>
      createClient(gateway.url, { authorization: `Bearer ${makeToken(secret, { sub, exp: inSeconds(60) })}` })

    await t.test('a deleted session is found nowhere but among the deleted, and takes no message', async (t) => {
      const client = await newClient()
      const { body } = await client.post(whole, { message: 'Delete me' })
      const id = body.session.id
      const other = (await client.post(sessions, {})).body.id
      t.same((await client.delete(`${sessions}/${id}`)).status, 204)
      for (const path of ['', '/messages', '/export'])
        t.equal((await client.get(`${sessions}/${id}${path}`)).status, 404)
      t.same(await idsOf(client), [other])
      t.same(await idsOf(client, '?status=deleted'), [id])
      t.match(await client.post(whole, { message: 'More', session_id: id }), { status: 404 })
      t.match(await client.delete(`${sessions}/${id}`), { status: 404, body: { code: 'not_found' } })
      t.match(await rowOf(gateway, id), { status: 'deleted', version: body.session.version + 1 })
    })

    await t.test('somebody else’s session is not found, whatever is to be done with it', async (t) => {
      const client = await newClient()
      const { id } = (await client.post(sessions, {})).body
      const before = await rowOf(gateway, id)
      for (const stranger of [await newClient(), newUser('stranger')]) {
        t.match(await stranger.delete(`${sessions}/${id}`), { status: 404, body: { code: 'not_found' } })
        t.match(await stranger.delete(`${sessions}/${id}?purge=true`), { status: 404, body: { code: 'not_found' } })
        t.match(await stranger.post(`${sessions}/${id}/restore`), { status: 404, body: { code: 'not_found' } })
        t.equal((await stranger.delete('/api/v1/me')).status, 204)
      }
      t.same(await rowOf(gateway, id), before)
      t.match(await client.delete(`${sessions}/${id}?purge=yes`), { status: 400 })
      t.match(await client.delete(`${sessions}/${id}?force=true`), { status: 400 })
      t.same(await rowOf(gateway, id), before)
    })

    await t.test(
      'what is being said, and what waits behind it, is stopped; the words and the deletion stay',
      async (t) => {
        const client = await newClient()
        upstream.answer(() => say({ tokens: 5000, paceMs: 5 }))
        const stream = await client.send({ message: 'Long' })
        await stream.until(isDelta)
        const id = stream.headers.get('x-session-id')!
        const queued = await client.send({ message: 'Behind', session_id: id, on_busy: 'queue' })
        const call = upstream.calls.at(-1)!
        t.equal((await client.delete(`${sessions}/${id}`)).status, 204)
        await call.aborted
        t.match((await stream.until(isDone)).data, { status: 'stopped' })
        t.match((await queued.until(isDone)).data, { status: 'stopped' })
        t.same(await runStates(gateway, id), ['stopped', 'stopped'])
        t.match(await rowOf(gateway, id), { status: 'deleted' }, 'the late commit has not brought it back')
        t.match(await client.post(`${sessions}/${id}/restore`), { status: 200, body: { status: 'completed' } })
        const [, reply] = await client.messages(id)
        t.ok(reply.content.length > 0 && reply.status === 'stopped')
        upstream.answer(() => say({ text: 'Reply' }))
      },
    )

    await t.test('the wish to stop is stored with the deletion, and a stop that fails changes no answer', async (t) => {
      const client = await newClient()
      const gate = createGate()
      upstream.answer(async function* () {
        await gate.opened
        yield doneMarker
      })
      const stream = await client.send({ message: 'Go on' })
      const id = stream.headers.get('x-session-id')!
      const owner = ownerOf(await rowOf(gateway, id))
      const removal = remover(gateway, { stopRuns: async () => Promise.reject(new Error('no')) })
      await removal.deleteSession(owner, id)
      const [run] = await db.rows<{ asked: boolean }>(
        sql`select stop_requested_at is not null as asked from chat_runs where session_id = ${id}::uuid`,
      )
      t.same(run, { asked: true })
      await stream.until(isDone)
      t.same(await runStates(gateway, id), ['stopped'], 'whoever makes it finds the wish')
      gate.open()
      upstream.answer(() => say({ text: 'Reply' }))
    })

    await t.test('a restored session is what its last run made of it', async (t) => {
      const client = await newClient()
      const restored = async (id: string) => {
        t.equal((await client.delete(`${sessions}/${id}`)).status, 204)
        const answer = await client.post(`${sessions}/${id}/restore`)
        t.equal(answer.status, 200)
        t.same((await client.get(`${sessions}/${id}`)).body, answer.body)
        t.ok((await idsOf(client)).includes(id))
        return answer.body.status
      }
      const created = (await client.post(sessions, {})).body.id
      t.equal(await restored(created), 'created')
      const completed = (await client.post(whole, { message: 'Hi' })).body.session.id
      t.equal(await restored(completed), 'completed')
      upstream.answer(() => refuse(500))
      await client.post(whole, { message: 'Fail', session_id: completed })
      t.equal(await restored(completed), 'failed')
      await db.rows(sql`
        update chat_runs set status = 'stopped', kill_requested_at = now()
        where session_id = ${completed}::uuid and status = 'failed'`)
      t.equal(await restored(completed), 'killed')
      upstream.answer(() => say({ text: 'Reply' }))
      t.match(await client.post(whole, { message: 'Again', session_id: completed }), { status: 200 })

      const live = (await client.get(`${sessions}/${completed}`)).body
      t.match(await client.post(`${sessions}/${completed}/restore`), { status: 200, body: live })
    })

    await t.test('a session whose external id another one has by now cannot be restored', async (t) => {
      const client = await newClient()
      const { id } = (await client.post(sessions, { external_id: 'x' })).body
      await client.delete(`${sessions}/${id}`)
      const second = (await client.post(sessions, { external_id: 'x' })).body
      t.not(second.id, id)
      t.match(await client.post(`${sessions}/${id}/restore`), { status: 409, body: { code: 'conflict' } })
      await client.delete(`${sessions}/${second.id}?purge=true`)
      t.match(await client.post(`${sessions}/${id}/restore`), { status: 200, body: { external_id: 'x' } })
    })

    await t.test('a run that ends while its session is restored does not leave it running', async (t) => {
      const client = await newClient()
      const { id } = (await client.post(whole, { message: 'Hi' })).body.session
      await client.delete(`${sessions}/${id}`)
      await db.rows(sql`update chat_runs set status = 'running' where session_id = ${id}::uuid`)
      await Promise.all([
        client.post(`${sessions}/${id}/restore`),
        db.rows(sql`
          with place as materialized (select id from chat_sessions where id = ${id}::uuid for update),
            run as (update chat_runs set status = 'failed' from place where session_id = place.id returning session_id)
          update chat_sessions s set
            version = version + 1, status = case when deleted_at is null then 'failed' else status end
          from run where s.id = run.session_id`),
      ])
      t.equal((await client.get(`${sessions}/${id}`)).body.status, 'failed')
    })

    await t.test('what is purged leaves no word in any table, and the id is free', async (t) => {
      const client = await newClient()
      const id = await fill(gateway, client)
      t.ok((await tablesWith(gateway, canary)).length >= 5, 'a twin: the words are found while they are there')
      t.equal((await client.delete(`${sessions}/${id}?purge=true`)).status, 204)
      t.same(await tablesWith(gateway, canary), [])
      t.same(await tablesWith(gateway, id), [], 'nor does anything know its id')
      for (const path of ['', '/messages', '/export'])
        t.equal((await client.get(`${sessions}/${id}${path}`)).status, 404)
      t.equal((await client.post(`${sessions}/${id}/restore`)).status, 404)
      t.equal((await client.delete(`${sessions}/${id}?purge=true`)).status, 404)
      t.same(await idsOf(client, '?status=deleted'), [])
      t.equal((await (await newClient()).post(sessions, { id })).status, 201)
    })

    await t.test('an EventSource that comes back to what was purged is ended, and brings nothing back', async (t) => {
      const client = await newClient()
      const path = '/api/v1/chat/stream?message=Purge+me&client_message_id=purged'
      const stream = await client.watch(path)
      await stream.ended
      const id = stream.headers.get('x-session-id')
      t.equal((await client.delete(`${sessions}/${id}?purge=true`)).status, 204)
      const again = await client.get(path, { 'last-event-id': stream.received.at(-2)?.id ?? '' })
      t.equal(again.status, 204)
      t.same(await idsOf(client), [])
      t.equal((await client.get(path)).status, 200, 'a twin: without Last-Event-ID it is a new message')
      t.equal((await idsOf(client)).length, 1)
    })

    await t.test('a deleted session can be purged, and so can one that is being answered', async (t) => {
      const client = await newClient()
      const id = await fill(gateway, client)
      await client.delete(`${sessions}/${id}`)
      t.ok((await tablesWith(gateway, canary)).length >= 5)
      t.equal((await client.delete(`${sessions}/${id}?purge=true`)).status, 204)
      t.same(await tablesWith(gateway, canary), [])
      upstream.answer(() => say({ tokens: 5000, paceMs: 5 }))
      const stream = await client.send({ message: canary })
      await stream.until(isDelta)
      const call = upstream.calls.at(-1)!
      t.equal((await client.delete(`${sessions}/${stream.headers.get('x-session-id')}?purge=true`)).status, 204)
      await call.aborted
      await stream.ended
      t.same(await tablesWith(gateway, canary), [])
      t.equal((await client.get(`/api/v1/runs/${stream.headers.get('x-run-id')}`)).status, 404)
      upstream.answer(() => say({ text: 'Reply' }))
    })

    await t.test('a run that does not stop keeps nobody waiting, and its logs are erased after the rows', async (t) => {
      const client = await newClient()
      const { session, run } = (await client.post(whole, { message: 'Hi' })).body
      const owner = ownerOf(await rowOf(gateway, session.id))
      const erased: (readonly [readonly string[], boolean])[] = []
      const told: unknown[] = []
      const changes = createSessionChanges()
      changes.observe({ changed: () => undefined, removed: (...of) => void told.push(of) })
      const removal = remover(gateway, {
        changes,
        stopWaitMs: 20,
        stopRuns: forever,
        eraseLogs: async (ids) => void erased.push([ids, (await rowOf(gateway, session.id)) === undefined]),
      })
      await removal.purgeSession(owner, session.id)
      t.same(erased, [[[run.id], true]])
      t.same(told, [[owner.key, [session.id]]])
    })

    await t.test('DELETE /me erases all that one has, deleted or being answered, and nobody else’s', async (t) => {
      const [user, other] = [newUser('gone'), newUser('stays')]
      for (const sub of ['gone', 'stays']) {
        await db.rows(sql`
          insert into users (id, issuer, subject) values
            (gen_random_uuid(), '', ${sub}), (gen_random_uuid(), 'https://id.example', ${sub})
          on conflict do nothing`)
      }
      const kept = (await other.post(whole, { message: 'Mine' })).body.session.id
      const id = await fill(gateway, user)
      await user.delete(`${sessions}/${id}`)
      await db.rows(sql`
        insert into chat_sessions (id, user_id, title) select gen_random_uuid(), 'gone', ${canary} from generate_series(1, 130)`)
      upstream.answer(() => say({ tokens: 5000, paceMs: 5 }))
      const stream = await user.send({ message: canary })
      await stream.until(isDelta)
      const call = upstream.calls.at(-1)!
      const answer = await user.delete('/api/v1/me')
      t.equal(answer.status, 204)
      t.equal(answer.headers.get('set-cookie'), null)
      await call.aborted
      await stream.ended
      t.same(await tablesWith(gateway, canary), [])
      t.same(await tablesWith(gateway, 'user:gone'), [])
      t.same(await db.rows(sql`select distinct subject from users`), [{ subject: 'stays' }])
      t.same(await idsOf(other), [kept])
      t.equal((await user.delete('/api/v1/me')).status, 204, 'again is the same')
      upstream.answer(() => say({ text: 'Reply' }))
    })

    await t.test('what is begun while all is erased is erased too', async (t) => {
      const client = await newClient()
      const owner = ownerOf(await rowOf(gateway, await fill(gateway, client)))
      let begun = 0
      const removal = remover(gateway, {
        eraseLogs: async () => {
          begun += 1
          if (begun <= 3) await fill(gateway, client)
        },
      })
      await removal.eraseOwner(owner)
      t.equal(begun, 4)
      t.same(await tablesWith(gateway, owner.key), [])
    })

    await t.test('a visitor who erases everything is rid of the cookie', async (t) => {
      const client = await newClient()
      const token = client.identity['x-visitor-token']!
      const browser = createClient(gateway.url, { cookie: `visitor_token=${token}` })
      await browser.post(sessions, { title: canary })
      const answer = await browser.delete('/api/v1/me')
      t.equal(answer.status, 204)
      const cookie = answer.headers.get('set-cookie') ?? ''
      t.match(cookie, /^visitor_token=;/)
      t.match(cookie, /Path=\/;.*Expires=Thu, 01 Jan 1970.*HttpOnly.*SameSite=Lax/)
      t.same(await idsOf(browser), [])
      t.same(await tablesWith(gateway, canary), [])
    })
  })
}

function remover({ app }: Gateway, options: Partial<RemovalOptions>) {
  return createRemoval({
    db: app.db,
    sessions: createSessionStore(app.db),
    changes: createSessionChanges(),
    stopRuns: async () => undefined,
    eraseLogs: async () => undefined,
    logger: app.server.log,
    ...options,
  })
}

type Client = ReturnType<typeof createClient>

/** A session with a word in every column that takes words. */
async function fill({ app }: Gateway, client: Client): Promise<string> {
  const { session, message, run } = (await client.post(whole, { message: canary, metadata: { a: canary } })).body
  await app.db.rows(sql`
    update chat_sessions set
      external_id = ${canary}, input = ${canary}, title = ${canary}, tags = array[${canary}::text],
      state = jsonb_build_object('a', ${canary}::text), context = jsonb_build_object(${canary}::text, 1)
    where id = ${session.id}::uuid`)
  await app.db.rows(sql`
    update chat_messages set retrieved_docs = jsonb_build_array(${canary}::text), agent_id = ${canary}
    where session_id = ${session.id}::uuid`)
  await app.db.rows(sql`
    insert into feedback (message_id, rating, comment) values (${message.id}::uuid, 1, ${canary})`)
  await app.db.rows(sql`
    insert into artifacts (session_id, name, version, content_type, body) values
      (${session.id}::uuid, ${canary}, 1, 'text/plain', ${canary}), (${session.id}::uuid, ${canary}, 2, 'text/plain', ${canary})`)
  await app.db.rows(sql`
    insert into run_checkpoints (run_id, generation, seq, part, kind, part_offset, text) values
      (${run.id}::uuid, 1, 1, 0, 'text', 0, ${canary})`)
  await app.db.rows(sql`update chat_runs set idempotency_key = ${canary} where id = ${run.id}::uuid`)
  return session.id
}

/** Every table of the database in which some row holds this text, in whatever column. */
async function tablesWith({ app }: Gateway, text: string): Promise<string[]> {
  const tables = await app.db.rows<{ name: string }>(sql`
    select format('%I.%I', schemaname, tablename) as name from pg_tables
    where schemaname not in ('pg_catalog', 'information_schema')`)
  const found: string[] = []
  for (const { name } of tables) {
    const rows = await app.db.rows(sql`
      select 1 from ${sql.raw(name)} t where position(${text} in t::text) > 0 limit 1`)
    if (rows.length > 0) found.push(name)
  }
  return found
}

async function idsOf(client: Client, query = ''): Promise<string[]> {
  return (await client.get(`${sessions}${query}`)).body.data.map(({ id }: { id: string }) => id)
}

interface Row {
  readonly status: string
  readonly version: number
  readonly owner: string
}

async function rowOf({ app }: Gateway, id: string): Promise<Row | undefined> {
  const [row] = await app.db.rows<Row>(
    sql`select status, version, owner, updated_at::text from chat_sessions where id = ${id}::uuid`,
  )
  return row
}

async function runStates({ app }: Gateway, sessionId: string): Promise<string[]> {
  const rows = await app.db.rows<{ status: string }>(
    sql`select status from chat_runs where session_id = ${sessionId}::uuid order by created_at`,
  )
  return rows.map(({ status }) => status)
}

/** The visitor whose session this is. */
function ownerOf(row: Row | undefined): Owner {
  const key = row?.owner ?? ''
  return { kind: 'visitor', key, userId: null, visitorHash: key.slice('visitor:'.length) }
}
