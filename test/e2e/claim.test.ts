/**
 * A visitor logs in: what was the visitor's is the user's afterwards, all of it and once, while replies run, while others
 * claim, and while the visitor goes on writing; and what the user had before is not touched.
 */
import postgres from 'postgres'
import { type Test, test } from 'tap'
import { byMessage, chunk, createGate, doneMarker, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { sql } from '../../src/db/drizzle.ts'
import type { Owner } from '../../src/http/identity.ts'
import { createServer } from '../../src/http/server.ts'
import { registerClaim } from '../../src/sessions/claim.ts'
import { type Answer, type Client, createClient, isDelta, isDone, shownText } from '../support/client.ts'
import { createTestDatabase, databases } from '../support/database.ts'
import { type Gateway, startGateway } from '../support/gateway.ts'
import { inSeconds, makeToken } from '../support/tokens.ts'

const secret = 'the-secret-of-the-claims-with-32-bytes'
const path = '/api/v1/sessions/claim'
const sessions = '/api/v1/sessions'

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const upstream = await startFakeUpstream({ script: byMessage() })
    t.teardown(() => upstream.close())
    const databaseUrl = database === 'postgres' ? (await createTestDatabase(t)).url : undefined
    const gateway = await startGateway(t, {
      env: {
        OPENAI_BASE_URL: upstream.url,
        JWT_SECRET: secret,
        FRAME_MS: '5',
        ...(databaseUrl === undefined ? {} : { DATABASE_URL: databaseUrl, DATABASE_POOL: '5' }),
      },
    })
    const { url } = gateway
    const { db } = gateway.app
    const bearer = (sub: string) => `Bearer ${makeToken(secret, { sub, exp: inSeconds(3600) })}`
    const logIn = (sub: string) => createClient(url, { authorization: bearer(sub) })

    /** A visitor, who has a token. */
    async function visit(): Promise<Client> {
      const visitor = createClient(url)
      await visitor.get(sessions)
      return visitor
    }
    const tokenOf = (visitor: Client) => visitor.identity['x-visitor-token'] as string
    const claim = (user: Client, visitor: Client) => user.post(path, undefined, { 'x-visitor-token': tokenOf(visitor) })
    const create = async (client: Client, body: object = {}) => (await client.post(sessions, body)).body
    const idsOf = async (client: Client) =>
      (await client.get(sessions)).body.data.map(({ id }: { id: string }) => id).toSorted()

    async function chat(client: Client, message: string, more: object = {}) {
      const stream = await client.send({ message, ...more })
      t.equal(await stream.ended, 'clean')
      return {
        session: stream.headers.get('x-session-id') as string,
        run: stream.headers.get('x-run-id') as string,
        message: stream.headers.get('x-message-id') as string,
        text: shownText(stream.received),
      }
    }

    /** Sessions whose messages or runs are somebody else's. */
    const countTorn = async () => {
      const [row] = await db.rows<{ torn: number }>(sql`
        select count(*)::int as torn from chat_sessions s
        where exists (select 1 from chat_messages m where m.session_id = s.id and m.owner is distinct from s.owner)
          or exists (select 1 from chat_runs r where r.session_id = s.id and r.owner <> s.owner)`)
      return row?.torn
    }

    await t.test('all of the visitor is the user’s afterwards, and nothing is the visitor’s any more', async (t) => {
      const visitor = await visit()
      const user = logIn('ada')
      const before = await create(user, { title: 'From before' })
      const stranger = await visit()
      const strange = await create(stranger)
      const plain = await create(visitor, { external_id: 'doc-1', title: 'Mine', metadata: { tab: 3 } })
      const talk = await chat(visitor, 'Hello', { client_message_id: 'key-1' })
      const gone = await create(visitor, { title: 'Deleted' })
      await db.rows(sql`update chat_sessions set deleted_at = now() where id = ${gone.id}::uuid`)

      const answer = await claim(user, visitor)
      t.match(answer, { status: 200, headers: {} })
      t.strictSame(answer.body, { claimed: 2 }, 'deleted ones are moved, and not counted')
      t.equal(answer.headers.get('set-cookie'), null)

      t.same(await idsOf(user), [before.id, plain.id, talk.session].toSorted())
      const moved = (await user.get(`${sessions}/${plain.id}`)).body
      const { converted_at: convertedAt, ...metadata } = moved.metadata
      t.match(moved, {
        user_id: 'ada',
        is_anonymous: false,
        external_id: 'doc-1',
        title: 'Mine',
        version: plain.version + 1,
        last_activity_at: plain.last_activity_at,
      })
      t.strictSame(metadata, { tab: 3 }, 'other metadata stays')
      t.match(convertedAt, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/)
      t.equal(moved.updated_at, convertedAt)
      t.same(
        (await user.messages(talk.session)).map(({ content }: { content: string }) => content),
        ['Hello', talk.text],
      )
      t.match(await user.get(`/api/v1/runs/${talk.run}`), { status: 200, body: { status: 'completed' } })
      t.match(await user.post(`/api/v1/runs/${talk.run}/stop`), { status: 200, body: { run: { status: 'completed' } } })
      t.equal((await user.post(`${sessions}/${talk.session}/stop`)).status, 204)
      t.equal((await user.post('/api/v1/stream-tickets', { run_id: talk.run })).status, 200)
      const replay = await user.watch(`/api/v1/runs/${talk.run}/events`)
      t.equal(await replay.ended, 'clean')
      t.equal(shownText(replay.received), talk.text)
      const again = await user.send({ message: 'Hello', client_message_id: 'key-1' })
      t.equal(again.headers.get('x-run-id'), talk.run, 'the idempotency key came along')
      await again.ended
      const next = await chat(user, 'And then?', { session_id: talk.session })
      t.equal(next.session, talk.session)

      t.same(await idsOf(visitor), [])
      for (const [method, at, body] of [
        ['get', `${sessions}/${plain.id}`],
        ['get', `${sessions}/${talk.session}`],
        ['get', `${sessions}/${talk.session}/messages`],
        ['post', `${sessions}/${talk.session}/stop`],
        ['get', `/api/v1/runs/${talk.run}`],
        ['get', `/api/v1/runs/${talk.run}/events`],
        ['post', `/api/v1/runs/${talk.run}/stop`],
        ['post', '/api/v1/stream-tickets', { run_id: talk.run }],
        ['post', '/api/v1/chat/stream', { message: 'Mine?', session_id: talk.session }],
        ['post', sessions, { id: plain.id }],
      ] as const) {
        const refused = method === 'get' ? await visitor.get(at) : await visitor.post(at, body)
        t.match(refused, { status: 404, body: { code: 'not_found' } }, `${method} ${at}`)
      }
      t.match(await create(visitor, { external_id: 'doc-1' }), { is_anonymous: true }, 'its names are free again')

      const [deleted] = await db.rows(sql`
        select user_id, visitor_hash, deleted_at is not null as deleted from chat_sessions where id = ${gone.id}::uuid`)
      t.strictSame({ ...(deleted as object) }, { user_id: 'ada', visitor_hash: null, deleted: true })
      t.match(await stranger.get(`${sessions}/${strange.id}`), { status: 200, body: { is_anonymous: true } })
      t.notOk((await user.get(`${sessions}/${before.id}`)).body.metadata.converted_at, 'what the user had is as it was')
      t.equal(await countTorn(), 0)
    })

    await t.test('asked again it moves nothing, and what the visitor has made since', async (t) => {
      const [visitor, user] = [await visit(), logIn('again')]
      await create(visitor)
      t.same((await claim(user, visitor)).body, { claimed: 1 })
      t.same((await claim(user, visitor)).body, { claimed: 0 })
      t.same((await claim(logIn('eve'), visitor)).body, { claimed: 0 }, 'nor does another user')
      const { id } = await create(visitor)
      t.same((await claim(user, visitor)).body, { claimed: 1 })
      t.ok((await idsOf(user)).includes(id))
      t.same((await claim(user, await visit())).body, { claimed: 0 }, 'a visitor who has nothing')
      t.same((await claim(user, createClient(url, { 'x-visitor-token': `vst_${'n'.repeat(43)}` }))).body, {
        claimed: 0,
      })
    })

    await t.test('the visitor’s token may come as the cookie; the header goes before it', async (t) => {
      const [first, second] = [await visit(), await visit()]
      await create(first)
      const user = logIn('cookie')
      const cookie = `visitor_token=${tokenOf(first)}`
      t.same((await user.post(path, undefined, { cookie, 'x-visitor-token': tokenOf(second) })).body, { claimed: 0 })
      t.same((await user.post(path, undefined, { cookie })).body, { claimed: 1 })
    })

    await t.test('without one of the two tokens nothing is moved', async (t) => {
      const [visitor, user] = [await visit(), logIn('alone')]
      const { id } = await create(visitor)
      const refusals = [
        [await user.post(path), 400, 'invalid_request'],
        [await visitor.post(path), 401, 'invalid_token'],
        [await createClient(url, { cookie: `visitor_token=${tokenOf(visitor)}` }).post(path), 401, 'invalid_token'],
        [await createClient(url).post(path), 401, 'invalid_token'],
        [await user.post(path, undefined, { 'x-visitor-token': 'vst_' }), 401, 'invalid_token'],
        [await user.post(path, undefined, { cookie: 'visitor_token=x' }), 401, 'invalid_token'],
        [await user.post(path, undefined, { 'x-visitor-token': `${tokenOf(visitor)}x` }), 401, 'invalid_token'],
        [await visitor.post(path, undefined, { authorization: 'Bearer x' }), 401, 'invalid_token'],
        [
          await visitor.post(path, undefined, {
            authorization: `Bearer ${makeToken(secret, { role: 'anon', exp: inSeconds(60) })}`,
          }),
          401,
          'invalid_token',
        ],
      ] as const
      for (const [answer, status, code] of refusals) t.match(answer, { status, body: { code } })
      t.match(refusals[0][0].body.detail, /X-Visitor-Token/)
      t.match(refusals[1][0].body.detail, /Authorization/)
      t.same(await idsOf(visitor), [id])
    })

    await t.test('what the user can have only once stays where it was, and nothing is lost', async (t) => {
      const [visitor, user] = [await visit(), logIn('twice')]
      const mine = await create(user, { external_id: 'same' })
      await create(user, { external_id: 'deleted' })
      await db.rows(sql`update chat_sessions set deleted_at = now() where external_id = 'deleted'`)
      const taken = await create(visitor, { external_id: 'same', metadata: { a: 1 } })
      const free = await create(visitor, { external_id: 'deleted' })
      const own = await chat(user, 'Mine', { client_message_id: 'same-key' })
      const moved = await chat(visitor, 'Theirs', { client_message_id: 'same-key' })
      t.same((await claim(user, visitor)).body, { claimed: 3 })

      t.match(await user.get(`${sessions}/${mine.id}`), { body: { external_id: 'same', version: 1 } })
      t.match(await user.get(`${sessions}/${taken.id}`), {
        body: { external_id: null, metadata: { a: 1, external_id: 'same' } },
      })
      const kept = (await user.get(`${sessions}/${free.id}`)).body
      t.equal(kept.external_id, 'deleted', 'a name that only a deleted session has is free')
      t.notOk('external_id' in kept.metadata)
      const again = await user.send({ message: 'Mine', client_message_id: 'same-key' })
      t.equal(again.headers.get('x-run-id'), own.run, 'the key means what it meant to the user')
      await again.ended
      t.match(await user.get(`/api/v1/runs/${moved.run}`), { status: 200, body: { status: 'completed' } })
      const [message] = await user.messages(moved.session)
      t.equal(message.client_message_id, 'same-key', 'the message remembers its key')
      t.equal(await countTorn(), 0)
    })

    await t.test('replies that run and wait go on, their open streams too, and are the user’s to stop', async (t) => {
      const [visitor, user] = [await visit(), logIn('running')]
      const gate = createGate()
      upstream.answer(async function* ({ message }) {
        yield chunk({ content: `To ${message}: ` })
        if (message !== 'second') await gate.opened
        yield chunk({ content: 'all of it' })
        yield chunk({}, 'stop')
        yield doneMarker
      })
      const stream = await visitor.send({ message: 'first' })
      await stream.until(isDelta)
      const session = stream.headers.get('x-session-id') as string
      const queued = await visitor.send({ message: 'second', session_id: session, on_busy: 'queue' })
      const endless = await visitor.send({ message: 'endless' })
      await endless.until(isDelta)

      t.same((await claim(user, visitor)).body, { claimed: 2 })
      const attached = await user.watch(`/api/v1/runs/${stream.headers.get('x-run-id')}/events`)
      await attached.until(isDelta)
      const endlessRun = endless.headers.get('x-run-id')
      t.equal((await visitor.post(`/api/v1/runs/${endlessRun}/stop`)).status, 404)
      t.match(await user.post(`/api/v1/runs/${endlessRun}/stop`), { status: 200, body: { run: { status: 'stopped' } } })
      t.match(await endless.until(isDone), { data: { status: 'stopped' } })
      gate.open()
      for (const one of [stream, attached]) {
        t.match(await one.until(isDone), { data: { status: 'completed' } })
        t.equal(shownText(one.received), 'To first: all of it')
      }
      await queued.until(isDone)
      t.equal(shownText(queued.received), 'To second: all of it')
      await Promise.all([stream.ended, attached.ended, queued.ended, endless.ended])
      t.same(
        (await user.messages(session)).map(({ content }: { content: string }) => content),
        ['first', 'To first: all of it', 'second', 'To second: all of it'],
      )
      t.equal((await user.get(`${sessions}/${session}`)).body.status, 'completed')
      t.equal(await countTorn(), 0)
      upstream.answer(byMessage())
    })

    await t.test('of claims at the same instant each session is counted once', async (t) => {
      const visitor = await visit()
      await Promise.all(Array.from({ length: 12 }, () => create(visitor)))
      const users = [logIn('racer-1'), logIn('racer-2')]
      const answers = await Promise.all(Array.from({ length: 12 }, (_, n) => claim(users[n % 2] as Client, visitor)))
      t.same(new Set(answers.map(({ status }) => status)), new Set([200]))
      t.equal(
        answers.reduce((sum, { body }) => sum + body.claimed, 0),
        12,
      )
      const [first, second] = await Promise.all(users.map(idsOf))
      t.same([first?.length, second?.length].toSorted(), [0, 12], 'and all of them have one owner')
    })

    await t.test('a visitor who goes on writing meanwhile is moved with every word', async (t) => {
      const visitor = await visit()
      const ids = (await Promise.all(Array.from({ length: 4 }, () => create(visitor)))).map(({ id }) => id)
      const user = logIn('writing')
      const send = async (n: number) => {
        const stream = await visitor.send({ message: `Word ${n}`, session_id: ids[n % 4], on_busy: 'queue' })
        return stream.ended
      }
      const sent = Array.from({ length: 12 }, (_, n) => send(n))
      const answers = await Promise.all([claim(user, visitor), claim(user, visitor), claim(user, visitor)])
      await Promise.all(sent)
      const last = await claim(user, visitor)
      t.equal(
        [...answers, last].reduce((sum, { body }) => sum + body.claimed, 0),
        ids.length,
      )
      t.equal(await countTorn(), 0)
      t.same(await idsOf(visitor), [])
    })

    await t.test('whoever keeps copies hears that the sessions have left, and that they have changed', async (t) => {
      const visitor = await visit()
      const { id } = await create(visitor)
      const heard: unknown[] = []
      const changes = {
        changed: (sessionId: string) => void heard.push(['changed', sessionId]),
        removed: (ownerKey: string, sessionIds: readonly string[]) =>
          void heard.push(['removed', ownerKey, sessionIds]),
      }
      const server = createServer({ logLevel: 'silent' })
      t.teardown(() => server.close())
      const owner: Owner = { kind: 'user', key: 'user:hearer', userId: 'hearer', visitorHash: null }
      server.decorateRequest('owner', { getter: () => owner })
      registerClaim(server, { db, changes })
      const ask = () =>
        server.inject({ method: 'POST', url: '/sessions/claim', headers: { 'x-visitor-token': tokenOf(visitor) } })
      const [row] = await db.rows<{ owner: string }>(sql`select owner from chat_sessions where id = ${id}::uuid`)
      t.same((await ask()).json(), { claimed: 1 })
      t.same(heard, [
        ['removed', row?.owner, [id]],
        ['changed', id],
      ])
      t.same((await ask()).json(), { claimed: 0 })
      t.equal(heard.length, 2, 'where nothing is moved there is nothing to hear')
    })

    if (databaseUrl !== undefined) await testRaces(t, gateway, databaseUrl, { visit, create, claim, logIn })
  })
}

interface Actors {
  readonly visit: () => Promise<Client>
  readonly create: (client: Client, body?: object) => Promise<Answer['body']>
  readonly claim: (user: Client, visitor: Client) => ReturnType<Client['post']>
  readonly logIn: (sub: string) => Client
}

/** What another connection is just about to commit while the claim is made: only where there can be another one. */
async function testRaces(t: Test, gateway: Gateway, databaseUrl: string, actors: Actors): Promise<void> {
  const { visit, create, claim, logIn } = actors
  const other = postgres(databaseUrl, { max: 2, onnotice: () => undefined })
  t.teardown(() => other.end({ timeout: 1 }))

  /** Runs `write` in a transaction that is committed when the claim waits for it. */
  async function claimDuring(user: Client, visitor: Client, write: (tx: postgres.TransactionSql) => Promise<unknown>) {
    let claiming: ReturnType<typeof claim> | undefined
    await other.begin(async (tx) => {
      await write(tx)
      claiming = claim(user, visitor)
      for (let waits = false; !waits; ) {
        const [row] = await other`
          select count(*)::int as waiting from pg_stat_activity
          where datname = current_database() and wait_event_type = 'Lock'`
        waits = row?.waiting > 0
      }
    })
    return (await claiming) as Awaited<ReturnType<typeof claim>>
  }

  const readOwners = (sessionId: string) =>
    gateway.app.db.rows<{ owner: string }>(sql`select owner from chat_messages where session_id = ${sessionId}::uuid`)

  /** A message as accept stores it: with the session's row locked. */
  const storeMessage = (sessionId: string, step: 0 | 1) => async (tx: postgres.TransactionSql) => {
    await tx`update chat_sessions set version = version + ${step}, message_count = 1 where id = ${sessionId}`
    await tx`
      insert into chat_messages (id, session_id, owner, seq, role, status)
      select gen_random_uuid(), id, owner, 1, 'user', 'completed' from chat_sessions where id = ${sessionId}`
  }

  await t.test('a message that is being stored when the claim comes is moved with its session', async (t) => {
    const [visitor, user] = [await visit(), logIn('late')]
    const { id } = await create(visitor)
    t.same((await claimDuring(user, visitor, storeMessage(id, 1))).body, { claimed: 1 })
    t.same(await readOwners(id), [{ owner: 'user:late' }])
  })

  await t.test('a twin: without a new version of the session the message would have been left behind', async (t) => {
    const [visitor, user] = [await visit(), logIn('twin')]
    const { id } = await create(visitor)
    t.same((await claimDuring(user, visitor, storeMessage(id, 0))).body, { claimed: 1 })
    t.match(await readOwners(id), [{ owner: /^visitor:/ }])
  })

  await t.test('a name that the user takes at the same instant stays the user’s', async (t) => {
    const [visitor, user] = [await visit(), logIn('namer')]
    const { id } = await create(visitor, { external_id: 'name' })
    const answer = await claimDuring(
      user,
      visitor,
      (tx) => tx`insert into chat_sessions (id, user_id, external_id) values (gen_random_uuid(), 'namer', 'name')`,
    )
    t.same(answer.body, { claimed: 1 })
    t.match(await user.get(`${sessions}/${id}`), { body: { external_id: null, metadata: { external_id: 'name' } } })
  })

  await t.test('a session that is deleted for good at the same instant is not counted', async (t) => {
    const [visitor, user] = [await visit(), logIn('purger')]
    const { id } = await create(visitor)
    await create(visitor)
    const answer = await claimDuring(user, visitor, (tx) => tx`delete from chat_sessions where id = ${id}`)
    t.same(answer.body, { claimed: 1 })
  })
}
