/**
 * Exports and imports over real HTTP, on every database: a conversation leaves as a file in three forms and comes back
 * from two of them, whoever brings it; a file that is not whole is never taken for one, in neither direction.
 */
import { once } from 'node:events'
import { get, type IncomingMessage } from 'node:http'
import type { AddressInfo } from 'node:net'
import { type Test, test } from 'tap'
import { begin, createGate, doneMarker, say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { sql } from '../../src/db/drizzle.ts'
import { Problem } from '../../src/errors.ts'
import { createServer } from '../../src/http/server.ts'
import type { ExportedMessage } from '../../src/sessions/transfer.ts'
import type { ExportHead, ExportReader } from '../../src/sessions/transfer-export.ts'
import { registerTransfer, type TransferRoutesOptions } from '../../src/sessions/transfer-routes.ts'
import { type Answer, type Client, createClient, isDelta } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'
import { openSocket } from '../support/raw.ts'
import { countRows } from '../support/stored.ts'

const sessions = '/api/v1/sessions'
const whole = '/api/v1/chat/message'
const importPath = `${sessions}/import`
const linesType = 'application/x-ndjson'

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const upstream = await startFakeUpstream({ script: () => say({ text: '\ufeffReply 😀 ```' }) })
    t.teardown(() => upstream.close())
    const gateway = await startGateway(t, { database, env: { OPENAI_BASE_URL: upstream.url, FRAME_MS: '5' } })
    const { db } = gateway.app
    const newClient = async () => {
      const client = createClient(gateway.url)
      await client.get(sessions)
      return client
    }
    const fetchText = async (client: Client, path: string) => {
      const response = await fetch(`${gateway.url}${path}`, { headers: client.identity })
      return { status: response.status, headers: response.headers, text: await response.text() }
    }
    async function bring(
      client: Client,
      text: string | Uint8Array<ArrayBuffer>,
      type = linesType,
    ): Promise<Pick<Answer, 'status' | 'body'>> {
      const headers = { ...client.identity, ...(type === '' ? {} : { 'content-type': type }) }
      const response = await fetch(`${gateway.url}${importPath}`, { method: 'POST', headers, body: text })
      return { status: response.status, body: await response.json() }
    }
    const readRows = (text: string) =>
      text
        .trimEnd()
        .split('\n')
        .map((line) => JSON.parse(line))

    await t.test('a session leaves as a file with all that belongs to it', async (t) => {
      const client = await newClient()
      const first = (await client.post(whole, { message: '日本語 "Titel" / ñ\u202e', metadata: { a: 1 } })).body
      const { id } = first.session
      await client.post(whole, { message: 'A second time', session_id: id, parent_id: first.message.id })
      await client.post(whole, { message: 'Another branch', session_id: id, parent_id: first.message.id })
      await db.rows(
        sql`insert into feedback (message_id, rating, comment) values (${first.message.id}::uuid, -1, 'no')`,
      )
      await db.rows(sql`update chat_runs set cost = 0.000012 where id = ${first.run.id}::uuid`)
      await db.rows(sql`
        insert into artifacts (session_id, name, version, content_type, body, status) values
          (${id}::uuid, 'a', 1, 'text/plain', 'one', 'ready'), (${id}::uuid, 'a', 2, 'text/plain', 'two', 'ready'),
          (${id}::uuid, 'b', 1, 'text/plain', '', 'generating')`)
      const path = `${sessions}/${id}/export`
      const json = await fetchText(client, path)
      t.equal(json.headers.get('content-type'), 'application/json; charset=utf-8')
      t.equal(
        json.headers.get('content-disposition'),
        `attachment; filename="_ Titel _ ${id.slice(0, 8)}.json"; ` +
          `filename*=UTF-8''%E6%97%A5%E6%9C%AC%E8%AA%9E%20Titel%20%C3%B1%20${id.slice(0, 8)}.json`,
      )
      const document = JSON.parse(json.text)
      const listed = await client.messages(id)
      t.match(document, {
        format: 'verbatim.session',
        version: 1,
        session: { id, status: 'completed', deleted_at: null },
      })
      t.same(
        document.messages.map(({ id, seq, parent_id, run_id, content, parts }: ExportedMessage) => ({
          id,
          seq,
          parent_id,
          run_id,
          content,
          parts,
        })),
        listed.map(({ id, seq, parent_id, run_id, content, parts }: ExportedMessage) => ({
          id,
          seq,
          parent_id,
          run_id,
          content,
          parts,
        })),
      )
      t.match(document.messages[1], {
        content: '\ufeffReply 😀 ```',
        run_id: first.run.id,
        cost_usd: '0.000012',
        total_tokens: Number,
        feedback: { rating: -1, comment: 'no' },
      })
      t.match(document.artifacts, [
        { name: 'a', version: 1, body: 'one' },
        { name: 'a', version: 2, body: 'two' },
      ])

      const rows = readRows((await fetchText(client, `${path}?format=ndjson`)).text)
      t.same(
        rows.map(({ type }) => type),
        ['export', 'session', ...Array(6).fill('message'), 'artifact', 'artifact', 'end'],
      )
      t.match(rows[0], { format: 'verbatim', version: 1, owner: { kind: 'visitor', user_id: null } })
      t.same(rows.at(-1), { type: 'end', sessions: 1, messages: 6, artifacts: 2 })
      t.same(
        rows.slice(2, 8).map(({ type: _type, ...message }) => message),
        document.messages,
      )
      const markdown = await fetchText(client, `${path}?format=md`)
      t.equal(markdown.headers.get('content-type'), 'text/markdown; charset=utf-8')
      t.match(markdown.text, /## 6\\\. Assistant[^#]*# Other branches\n\n## 3\\\. User \(follows 2\)/)

      t.equal((await client.get(`${path}?format=html`)).status, 400)
      t.match(await (await newClient()).get(path), { status: 404, body: { code: 'not_found' } })
      await client.delete(`${sessions}/${id}`)
      t.match(await client.get(path), { status: 404 })
    })

    await t.test('a reply that is being made is told as far as it goes', async (t) => {
      const client = await newClient()
      const gate = createGate()
      upstream.answer(async function* () {
        yield* begin({ text: 'Half' })
        await gate.opened
        yield doneMarker
      })
      const stream = await client.send({ message: 'Slowly' })
      await stream.until(isDelta)
      const id = stream.headers.get('x-session-id')
      const rows = readRows((await fetchText(client, `${sessions}/${id}/export?format=ndjson`)).text)
      t.match(rows[3], { status: 'streaming', content: 'Half', parts: [{ kind: 'text', text: 'Half' }] })
      gate.open()
      await stream.ended
      upstream.answer(() => say({ text: 'Reply' }))
    })

    await t.test(
      'everything one has leaves as lines, deleted sessions too, and comes back to whoever brings it',
      async (t) => {
        const [client, other, stranger] = [await newClient(), await newClient(), await newClient()]
        for (let index = 0; index < 25; index += 1) await client.post(sessions, { title: `Session ${index}` })
        const talk = (await client.post(whole, { message: 'Hello' })).body.session.id
        const deleted = (await client.post(whole, { message: 'Deleted' })).body.session.id
        await client.delete(`${sessions}/${deleted}`)
        await stranger.post(sessions, { title: 'Not mine' })
        const file = await fetchText(client, '/api/v1/me/export')
        t.equal(file.headers.get('content-type'), `${linesType}; charset=utf-8`)
        t.match(file.headers.get('content-disposition'), /^attachment; filename="verbatim \d{4}-\d\d-\d\d\.ndjson"/)
        const rows = readRows(file.text)
        t.same(rows.at(-1), { type: 'end', sessions: 27, messages: 4, artifacts: 0 })
        t.notMatch(file.text, /Not mine/)

        const brought = await bring(other, file.text)
        t.equal(brought.status, 201)
        t.equal(brought.body.imported.length, 27)
        const made = brought.body.imported.find(({ source_id }: { source_id: string }) => source_id === talk)
        t.match(made, { messages: 2, existing: false })
        t.not(made.id, talk)
        t.equal(
          (await bring(other, file.text)).body.imported.every(({ existing }: { existing: boolean }) => existing),
          true,
        )
        t.same((await other.get(`${sessions}?status=deleted`)).body.data.length, 1)
        t.equal((await other.get(`${sessions}?limit=100`)).body.data.length, 26)
        t.equal((await client.get(`${sessions}/${made.id}`)).status, 404, 'the copy is not the first owner’s')

        const [question, reply] = await other.messages(made.id)
        t.match(
          [question, reply],
          [
            { content: 'Hello', run_id: null },
            { content: 'Reply', run_id: null },
          ],
        )
        t.equal(reply.parent_id, question.id)
        t.equal((await other.post(whole, { message: 'And now?', session_id: made.id })).status, 200)
        t.same(
          upstream.calls.at(-1)?.body?.messages?.map(({ content }) => content),
          ['Hello', 'Reply', 'And now?'],
          'the conversation goes on',
        )
        const empty = await fetchText(await newClient(), '/api/v1/me/export')
        t.same(
          readRows(empty.text).map(({ type }) => type),
          ['export', 'end'],
        )
        t.match(await bring(other, empty.text), { status: 201, body: { imported: [] } })
      },
    )

    await t.test('an imported session that was deleted is restored as its messages say', async (t) => {
      const client = await newClient()
      const { id } = (await client.post(whole, { message: 'Hi' })).body.session
      const document = (await client.get(`${sessions}/${id}/export`)).body
      const [made] = (await client.post(importPath, document)).body.imported
      await client.delete(`${sessions}/${made.id}`)
      t.match((await client.post(importPath, document)).body.imported, [{ id: made.id, existing: true }])
      t.match(await client.post(`${sessions}/${made.id}/restore`), { status: 200, body: { status: 'completed' } })
    })

    await t.test('what cannot be taken is refused by its place, and then nothing was stored', async (t) => {
      const client = await newClient()
      const { id } = (await client.post(whole, { message: 'Hi' })).body.session
      const { text } = await fetchText(client, `${sessions}/${id}/export?format=ndjson`)
      const document = (await client.get(`${sessions}/${id}/export`)).body
      const rows = text.trimEnd().split('\n')
      const twoSessions = [
        ...rows.slice(0, -1),
        rows[1]!.replace('"chat"', '"a b"'),
        '{"type":"end","sessions":2,"messages":2,"artifacts":0}',
      ]
      const before = await countRows(gateway)
      const cases: readonly (readonly [given: string, type: string, status: number, detail: RegExp])[] = [
        [twoSessions.join('\n'), linesType, 400, /^line 5\/kind /],
        [rows.slice(0, -1).join('\n'), linesType, 400, /^The file is cut/],
        [rows.with(2, '{"a":').join('\n'), linesType, 400, /^line 3 is not JSON/],
        [rows.with(2, '{"__proto__":{"type":"end"}}').join('\n'), linesType, 400, /^line 3 is not JSON/],
        ['', linesType, 400, /./],
        ['\ud800', linesType, 400, /./],
        [text, 'application/json', 400, /./],
        [JSON.stringify(document), linesType, 400, /^line 1 must have required property 'type'/],
        ['', 'application/json', 400, /^body /],
        ['null', 'application/json', 400, /^body /],
        ['{"format":"verbatim.session"}', 'application/json', 400, /^body /],
        [JSON.stringify({ ...document, owner: 'me' }), 'application/json', 400, /^body has an unknown field: owner/],
        [text, 'text/plain', 400, /./],
        [text, '', 400, /./],
        ['x'.repeat(16 * 1024 * 1024 + 1), linesType, 413, /16 MiB/],
      ]
      for (const [given, type, status, detail] of cases) {
        const answer = await bring(client, given, type)
        t.match(answer, { status, body: { detail } }, `${type} ${given.slice(0, 40)}`)
      }
      t.strictSame(await countRows(gateway), before)
      const large = {
        ...document,
        messages: document.messages.map((message: ExportedMessage) => ({
          ...message,
          content: '€'.repeat(500_000),
          parts: [{ kind: 'text', text: '€'.repeat(500_000) }],
        })),
      }
      t.equal((await bring(client, JSON.stringify(large), 'application/json')).status, 201, '6 MB are taken here')
      const elsewhere = await fetch(`${gateway.url}${sessions}`, {
        method: 'POST',
        headers: { ...client.identity, 'content-type': linesType },
        body: '{}',
      })
      t.equal(elsewhere.status, 400, 'lines are taken nowhere else')
    })
  })
}

test('the database goes away in the middle: the connection breaks, and nobody takes the file for whole', async (t) => {
  for (const format of ['json', 'md', 'ndjson']) {
    t.equal(await endOf(await openExport(t, { pages: 3, failAt: 2 }, format)), 'cut', format)
    t.equal(await endOf(await openExport(t, { pages: 3 }, format)), 'clean', `${format}: a twin that goes well`)
  }
})

test('pages are read as fast as the client reads, and one that does not read is cut', async (t) => {
  const source: Source = { pages: 2000 }
  const response = await openExport(t, source, 'ndjson', 300)
  response.pause()
  const closed = once(response.socket, 'close')
  t.equal(response.headers['content-disposition']?.startsWith('attachment'), true)
  // What has come by then is in the buffers of the two sockets.
  await source.finished
  t.ok((source.read ?? 0) < 500, `${source.read} pages of 64 KiB were read`)
  response.resume()
  await closed
  t.equal(response.complete, false)
})

test('only so many imports are taken at once, and a client that leaves makes room', async (t) => {
  const gate = createGate()
  const url = await startRoutes(t, {
    importer: {
      importAll: async () => {
        await gate.opened
        return []
      },
    },
  })
  const body =
    '{"type":"export","format":"verbatim","version":1,"exported_at":"2026-01-01T00:00:00Z","owner":{"kind":"user","user_id":"x"}}\n{"type":"end","sessions":0,"messages":0,"artifacts":0}'
  const bring = () => fetch(`${url}/sessions/import`, { method: 'POST', headers: { 'content-type': linesType }, body })
  const head = (length: number) =>
    `POST /sessions/import HTTP/1.1\r\nHost: x\r\nContent-Type: ${linesType}\r\nContent-Length: ${length}\r\nExpect: 100-continue\r\n\r\n`
  const sockets = Array.from({ length: 4 }, () => openSocket(url))
  for (const socket of sockets) {
    socket.write(head(1000))
    await socket.until((text) => text.includes('100 Continue'))
  }
  const refused = await bring()
  t.equal(refused.status, 429)
  t.equal(refused.headers.get('retry-after'), '5')
  for (const socket of sockets) socket.destroy()
  await Promise.all(sockets.map(({ closed }) => closed))
  gate.open()
  // The server hears of it a moment later.
  for (let status = 429; status !== 201; ) ({ status } = await bring())
  t.pass('there is room again')
})

interface Source {
  readonly pages: number
  readonly failAt?: number
  read?: number
  finished?: Promise<void>
}

/** A session of so many pages, each a little more than 64 KiB. */
function pagesOf(source: Source): ExportReader {
  const done = Promise.withResolvers<void>()
  source.finished = done.promise
  const head = {
    session: { id: 'x'.repeat(36), title: null, tags: [], input: null },
    lastSeq: 1,
    hasArtifacts: false,
    alsoDeleted: false,
  }
  const message = {
    seq: 1,
    role: 'user',
    parts: [],
    content: 'x'.repeat(64 * 1024),
    feedback: null,
    error: null,
    total_tokens: null,
    cost_usd: null,
    status: 'completed',
  }
  return {
    readHead: async () => head as unknown as ExportHead,
    readHeads: async function* () {
      yield* []
    },
    readAside: async () => new Map(),
    async *readMessagePages() {
      try {
        for (let page = 0; page < source.pages; page += 1) {
          if (page === source.failAt) throw new Problem('db_unavailable')
          source.read = page
          yield [message as unknown as ExportedMessage]
        }
      } finally {
        done.resolve()
      }
    },
    async *readArtifactPages() {
      yield* []
    },
  }
}

/** The routes on a server of their own. */
async function startRoutes(t: Test, options: Partial<TransferRoutesOptions>): Promise<string> {
  const server = createServer({ logLevel: 'silent' })
  server.decorateRequest('owner', null as never)
  server.addHook('onRequest', async (request) => {
    request.owner = { kind: 'visitor', key: 'visitor:x', userId: null, visitorHash: 'x' }
  })
  registerTransfer(server, { reader: pagesOf({ pages: 0 }), importer: { importAll: async () => [] }, ...options })
  t.teardown(() => {
    server.server.closeAllConnections()
    return server.close()
  })
  await server.listen({ port: 0, host: '127.0.0.1' })
  return `http://127.0.0.1:${(server.server.address() as AddressInfo).port}`
}

async function openExport(t: Test, source: Source, format: string, stalledMs = 30_000): Promise<IncomingMessage> {
  const url = await startRoutes(t, { reader: pagesOf(source), stalledMs })
  const [response] = await once(
    get(`${url}/sessions/01890000-0000-7000-8000-000000000000/export?format=${format}`),
    'response',
  )
  t.equal((response as IncomingMessage).statusCode, 200)
  return response as IncomingMessage
}

async function endOf(response: IncomingMessage): Promise<'clean' | 'cut'> {
  try {
    for await (const _bytes of response);
    return response.complete ? 'clean' : 'cut'
  } catch {
    return 'cut' // whatever Node calls it
  }
}
