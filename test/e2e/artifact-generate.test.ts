/**
 * Artifacts that are made when they are asked for, over real HTTP, on every database: once, however many ask and whom they
 * ask, and whatever ends meanwhile: the client, the generator, its time, the session, the process.
 */
import { type Test, test } from 'tap'
import { sql } from '../../src/db/drizzle.ts'
import { Problem } from '../../src/errors.ts'
import { artifactBytesMax } from '../../src/sessions/artifact-model.ts'
import type { ArtifactGenerator, GeneratorInput } from '../../src/sessions/generators.ts'
import { type Client, createClient } from '../support/client.ts'
import { createTestDatabase, type DatabaseKind, databases } from '../support/database.ts'
import { type Gateway, type GatewayOptions, startGateway } from '../support/gateway.ts'

const canary = 'canary of a conversation'

interface Call extends GeneratorInput {
  /** Ends it with what the document is to be, or with an error. */
  readonly end: (made: unknown) => void
}

/** A generator whose calls end when, and as, the test says. */
function createScripted(name: string, contentType: ArtifactGenerator['contentType'] = 'application/json') {
  const calls: Call[] = []
  let called = Promise.withResolvers<void>()
  const generator: ArtifactGenerator = {
    name,
    contentType,
    generate(input) {
      const { promise, resolve, reject } = Promise.withResolvers<unknown>()
      calls.push({ ...input, end: (made) => (made instanceof Error ? reject(made) : resolve(made)) })
      called.resolve()
      called = Promise.withResolvers()
      return promise
    },
  }
  return {
    generator,
    calls,
    /** Resolves with the call of this number, from 1, now or when it comes. */
    async call(number: number): Promise<Call> {
      while (calls.length < number) await called.promise
      return calls[number - 1] as Call
    },
  }
}

/** Gateways that have one database: two on Postgres, and the one that an embedded database can have. */
async function startGateways(t: Test, database: DatabaseKind, options: GatewayOptions): Promise<readonly Gateway[]> {
  if (database === 'pglite') return [await startGateway(t, options)]
  const env = { ...options.env, DATABASE_URL: (await createTestDatabase(t)).url, DATABASE_POOL: '5' }
  return [await startGateway(t, { ...options, env }), await startGateway(t, { ...options, env })]
}

const identity = { 'x-visitor-token': `vst_${'g'.repeat(43)}` }

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const lines: string[] = []
    const report = createScripted('report')
    const summary = createScripted('summary', 'text/markdown')
    const gateways = await startGateways(t, database, {
      generators: [report.generator, summary.generator],
      making: { lookMs: 20, atOnceMax: 4 },
      logStream: { write: (line) => lines.push(line) },
      env: { LOG_LEVEL: 'info' },
    })
    const clients = gateways.map(({ url }) => createClient(url, identity))
    const [first, last] = [clients[0] as Client, clients.at(-1) as Client]
    const { db } = (gateways[0] as Gateway).app

    async function enter() {
      const sessionId: string = (await first.post('/api/v1/sessions', { title: 'T' })).body.id
      const path = `/api/v1/sessions/${sessionId}/artifacts`
      const rows = () =>
        db.rows<{ version: number; status: string }>(sql`
          select version, status from artifacts where session_id = ${sessionId}::uuid order by name, version`)
      const claim = (name: string, leaseMs: number) =>
        db.rows(sql`
          insert into artifacts (session_id, name, version, status, content_type, lease_until)
          values (${sessionId}::uuid, ${name}::text, 1, 'generating', 'application/json',
            clock_timestamp() + ${leaseMs}::int * interval '1 millisecond')`)
      return { sessionId, path, rows, claim, url: `${path}/report?generate=1` }
    }

    await t.test('twenty who ask at once, of every process, get one document, made once', async (t) => {
      const { path, url, rows } = await enter()
      const before = report.calls.length
      const asked = Array.from({ length: 20 }, (_, index) => (clients[index % clients.length] as Client).get(url))
      const call = await report.call(before + 1)
      t.match(await first.get(`${path}/report`), { status: 404 }, 'it is not there before it is made')
      t.same((await last.get(path)).body.data, [])
      t.same(await rows(), [{ version: 1, status: 'generating' }])
      call.end({ n: 10.5 })
      const answers = await Promise.all(asked)
      for (const { status, headers, body } of answers) {
        t.equal(status, 200)
        t.equal(headers.get('etag'), '"1"')
        t.strictSame(body, answers[0]?.body)
      }
      t.match(answers[0]?.body, { name: 'report', version: 1, content_type: 'application/json', body: { n: 10.5 } })
      t.equal(report.calls.length, before + 1)
      t.strictSame((await last.get(url)).body, answers[0]?.body, 'and who comes later gets it, too')
      t.equal((await last.get(url, { 'if-none-match': '"1"' })).status, 304)
      t.equal(report.calls.length, before + 1)

      // The twin: when it is deleted there is something to make again, so the counter does count.
      await first.delete(`${path}/report`)
      const again = last.get(url)
      ;(await report.call(before + 2)).end('again')
      t.match(await again, { status: 200, body: { version: 3, body: 'again' } })
    })

    await t.test('it is told the session and all of its messages', async (t) => {
      const { sessionId, url } = await enter()
      await storeMessages(db, sessionId, 45)
      const asked = first.get(url)
      const { session, readMessages, end } = await report.call(report.calls.length + 1)
      t.match(session, { id: sessionId, title: 'T' })
      const contents: string[] = []
      for await (const { content } of readMessages()) contents.push(content)
      t.same(
        contents,
        Array.from({ length: 45 }, (_, index) => `message ${index + 1}`),
      )
      end(contents.length)
      t.match(await asked, { status: 200, body: { body: 45 } })
    })

    await t.test('the built-in transcript is the conversation as Markdown', async (t) => {
      const { sessionId, path } = await enter()
      await storeMessages(db, sessionId, 3)
      const { status, body } = await last.get(`${path}/transcript?generate=1`)
      t.equal(status, 200)
      t.match(body, { content_type: 'text/markdown', version: 1 })
      t.equal(body.body, '# T\n\n## User\n\nmessage 1\n\n## Assistant\n\nmessage 2\n\n## User\n\nmessage 3\n')
    })

    await t.test('without a generator of that name nothing is made', async (t) => {
      const { path, rows } = await enter()
      t.match(await first.get(`${path}/other?generate=1`), { status: 404, body: { code: 'not_found' } })
      t.same(await rows(), [])
    })

    await t.test('somebody else’s session is not found, and nobody is asked to make anything', async (t) => {
      const { url, rows } = await enter()
      const before = report.calls.length
      t.match(await createClient((gateways[0] as Gateway).url).get(url), { status: 404, body: { code: 'not_found' } })
      t.equal(report.calls.length, before)
      t.same(await rows(), [])
    })

    await t.test('what is made for a client that has left is stored', async (t) => {
      const { path, url } = await enter()
      const before = report.calls.length
      const leaver = new AbortController()
      const left = fetch(`${(gateways[0] as Gateway).url}${url}`, { headers: identity, signal: leaver.signal })
      const call = await report.call(before + 1)
      leaver.abort()
      await t.rejects(left)
      t.equal(call.signal.aborted, false)
      const asked = last.get(url)
      call.end('made')
      t.match(await asked, { status: 200, body: { version: 1, body: 'made' } })
      t.match(await first.get(`${path}/report`), { status: 200, body: { body: 'made' } })
      t.equal(report.calls.length, before + 1)
    })

    await t.test(
      'an error reaches whoever waits, leaves nothing behind, and the next request tries again',
      async (t) => {
        const { url, rows } = await enter()
        for (const [error, expected] of [
          [
            new Problem('upstream_rejected', 'No.'),
            { status: 502, body: { code: 'upstream_rejected', detail: 'No.' } },
          ],
          [new Error(canary), { status: 500, body: { code: 'internal' } }],
          [new TypeError(canary, { cause: new Error(canary) }), { status: 500, body: { code: 'internal' } }],
        ] as const) {
          const next = report.calls.length + 1
          const asked = first.get(url)
          const call = await report.call(next)
          call.end(error)
          const answer = await asked
          t.match(answer, expected)
          t.notMatch(JSON.stringify(answer.body), canary)
          t.equal(report.calls.length, next)
          t.same(await rows(), [])
        }
        for (const odd of [undefined, 'x'.repeat(artifactBytesMax), 1n]) {
          const asked = first.get(url)
          ;(await report.call(report.calls.length + 1)).end(odd)
          t.match(await asked, { status: 500, body: { code: 'internal' } }, 'it made something that is no artifact')
        }
        const asked = first.get(`${url.replace('report', 'summary')}`)
        ;(await summary.call(summary.calls.length + 1)).end({ not: 'a text' })
        t.match(await asked, { status: 500, body: { code: 'internal' } })
        const log = lines.join('')
        t.match(log, /"artifact":"report".*artifact-generate\.test\.ts/, 'the log says where')
        t.notMatch(log, canary, 'and not what')
        const again = last.get(url)
        ;(await report.call(report.calls.length + 1)).end('at last')
        t.match(await again, { status: 200, body: { version: 1, body: 'at last' } })
      },
    )

    await t.test('the claim of a process that died is taken over, once', async (t) => {
      const { url, claim, rows } = await enter()
      // Who has the embedded database to itself need not wait for the lease of a dead process.
      await claim('report', database === 'pglite' ? 3_600_000 : -1)
      const before = report.calls.length
      const asked = clients.flatMap((client) => [client.get(url), client.get(url)])
      ;(await report.call(before + 1)).end('after all')
      for (const answer of await Promise.all(asked)) {
        t.match(answer, { status: 200, body: { version: 1, body: 'after all' } })
      }
      t.equal(report.calls.length, before + 1)
      t.same(await rows(), [{ version: 1, status: 'ready' }])
    })

    if (database === 'postgres') {
      await t.test('a claim whose lease has not passed is waited for', async (t) => {
        const { url, claim } = await enter()
        const claimedAt = performance.now()
        await claim('report', 300)
        const next = report.calls.length + 1
        const asked = last.get(url)
        ;(await report.call(next)).end('taken over')
        t.ok(performance.now() - claimedAt >= 300)
        t.match(await asked, { status: 200, body: { body: 'taken over' } })
      })
    }

    await t.test('a maker whose claim was taken over can no longer fill it', async (t) => {
      const { sessionId, url } = await enter()
      const asked = first.get(url)
      const call = await report.call(report.calls.length + 1)
      await db.rows(sql`
        update artifacts set lease_until = lease_until + interval '1 microsecond', status = 'generating'
        where session_id = ${sessionId}::uuid`)
      call.end('late')
      t.match(await asked, { status: 404 })
      const [row] = await db.rows(sql`select status, body from artifacts where session_id = ${sessionId}::uuid`)
      t.strictSame(row, { status: 'generating', body: '' }, 'nor give it back')
    })

    await t.test('what somebody writes meanwhile stays the latest, and a deletion stays one', async (t) => {
      const { path, url } = await enter()
      const put = first.get(url)
      const beside = await report.call(report.calls.length + 1)
      t.match(await last.put(`${path}/report`, { body: 'by hand' }), { status: 201, body: { version: 2 } })
      t.match(await last.get(url), { status: 200, body: { body: 'by hand' } }, 'nobody waits for another any more')
      beside.end('made')
      t.match(await put, { status: 200, body: { version: 2, body: 'by hand' } })
      t.match(await first.get(`${path}/report?version=1`), { status: 200, body: { body: 'made' } })
      t.match((await first.get(path)).body.data, [{ name: 'report', version: 2 }])

      const { path: otherPath, url: otherUrl, rows } = await enter()
      const deleted = first.get(otherUrl)
      const call = await report.call(report.calls.length + 1)
      t.equal((await last.delete(`${otherPath}/report`)).status, 404, 'it is not there yet')
      await last.put(`${otherPath}/report`, { body: 'by hand' })
      t.equal((await last.delete(`${otherPath}/report`)).status, 204)
      call.end('made')
      t.equal((await deleted).status, 404)
      t.same(await rows(), [{ version: 3, status: 'deleted' }])
    })

    await t.test('for a session that is deleted or erased meanwhile nothing is kept', async (t) => {
      for (const end of [sql`update chat_sessions set deleted_at = now()`, sql`delete from chat_sessions`]) {
        const { sessionId, url, rows } = await enter()
        const asked = first.get(url)
        const call = await report.call(report.calls.length + 1)
        await db.rows(sql`${end} where id = ${sessionId}::uuid`)
        call.end('made')
        t.match(await asked, { status: 404, body: { code: 'not_found' } })
        t.same(await rows(), [])
      }
    })

    await t.test('more at once than a process makes are told to come back', async (t) => {
      const urls = [(await enter()).url, (await enter()).url, (await enter()).url, (await enter()).url]
      const before = report.calls.length
      const asked = urls.map((url) => first.get(url))
      await report.call(before + 4)
      const refused = await first.get((await enter()).url)
      t.match(refused, { status: 429, body: { code: 'rate_limited', retryable: true } })
      t.match(refused.headers.get('retry-after'), /^[1-9]\d*$/)
      const joined = first.get(urls[0] as string)
      for (const call of report.calls.slice(before)) call.end(1)
      for (const answer of await Promise.all([...asked, joined])) t.equal(answer.status, 200)
    })

    await t.test('what a process makes when it closes is let go, and another one makes it at once', async (t) => {
      const { url } = await enter()
      const next = report.calls.length + 1
      const interrupted = first.get(url)
      const call = await report.call(next)
      const elsewhere = database === 'postgres' ? last.get(url) : undefined
      const closed = (gateways[0] as Gateway).close()
      t.match(await interrupted, { status: 503, body: { code: 'draining' } })
      t.equal(call.signal.aborted, true)
      if (elsewhere !== undefined) {
        ;(await report.call(next + 1)).end('elsewhere')
        t.match(await elsewhere, { status: 200, body: { version: 1, body: 'elsewhere' } })
      }
      await closed
    })
  })
}

/** Messages as a conversation leaves them: a question, an answer, and so on. */
async function storeMessages(db: Gateway['app']['db'], sessionId: string, count: number): Promise<void> {
  await db.rows(sql`
    insert into chat_messages (id, session_id, seq, role, content, status)
    select gen_random_uuid(), ${sessionId}::uuid, n, case when n % 2 = 1 then 'user' else 'assistant' end, 'message ' || n,
      'completed'
    from generate_series(1, ${count}::int) n`)
}
