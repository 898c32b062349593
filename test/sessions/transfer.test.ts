/**
 * The format of exports and imports: what goes out comes in again to the letter, on every database; what is not as it has
 * to be is refused by its line and field, before anything is stored; and no page holds more than a few megabytes.
 */
import { deepStrictEqual } from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import fc from 'fast-check'
import { test } from 'tap'
import { sql } from '../../src/db/drizzle.ts'
import { Problem } from '../../src/errors.ts'
import type { Owner } from '../../src/http/identity.ts'
import { createSessionChanges } from '../../src/sessions/changes.ts'
import { importedSessionsMax, type SessionDocument } from '../../src/sessions/transfer.ts'
import { readDocument, readLines } from '../../src/sessions/transfer-check.ts'
import { createExportReader, pageRowsMax, writeDocument, writeLines } from '../../src/sessions/transfer-export.ts'
import { type Conversation, createImporter } from '../../src/sessions/transfer-import.ts'
import { fence, writeMarkdown } from '../../src/sessions/transfer-markdown.ts'
import { conversation, words } from '../support/conversations.ts'
import { databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'

const now = '2026-01-01T00:00:00.000Z'

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const { db } = (await startGateway(t, { database })).app
    const importer = createImporter(db, createSessionChanges())
    const reader = createExportReader({ db, readPartial: async () => undefined })
    const exportAll = async (owner: Owner) => join(writeLines(reader, owner, reader.readHeads(owner), now))

    await t.test(
      'what is exported, imported by somebody else and exported again is the same to the letter',
      async (t) => {
        await fc.assert(
          fc.asyncProperty(fc.array(conversation, { minLength: 1, maxLength: 2 }), async (given) => {
            const [one, two] = [newOwner(), newOwner()]
            await importer.importAll(one, readLines(linesOf(given), JSON.parse))
            const first = await exportAll(one)
            deepStrictEqual(anonymous(readLines(first, JSON.parse)), anonymous(given))
            await importer.importAll(two, readLines(first, JSON.parse))
            deepStrictEqual(anonymous(readLines(await exportAll(two), JSON.parse)), anonymous(given))
          }),
          { numRuns: 15, seed: 4 },
        )
        const [one] = [sample()]
        t.notSame(anonymous([one]), anonymous([{ ...one, messages: one.messages.toReversed() }]), 'a twin')
      },
    )

    await t.test('a document is the same as the lines', async (t) => {
      const owner = newOwner()
      const [given] = fc
        .sample(conversation, { numRuns: 20, seed: 7 })
        .filter((one) => one.session.deleted_at === null && one.messages.length > 2 && one.artifacts.length > 1)
      const [made] = await importer.importAll(owner, [given!])
      const head = await reader.readHead(owner, made!.id)
      const text = await join(writeDocument(reader, owner, head, now))
      t.same([readDocument(JSON.parse(text))], readLines(await exportAll(owner), JSON.parse))
    })

    await t.test('the same file again makes nothing twice, also when it comes twice at once', async (t) => {
      const owner = newOwner()
      const given = fc.sample(conversation, { numRuns: 3, seed: 9 })
      const twice = await Promise.all([importer.importAll(owner, given), importer.importAll(owner, given)])
      t.equal(twice.flat().filter(({ existing }) => !existing).length, 3)
      const again = await importer.importAll(owner, given)
      t.same(
        again.map(({ existing }) => existing),
        [true, true, true],
      )
      t.same(
        again.map(({ id }) => id),
        twice[0]?.map(({ id }) => id),
      )
      const [count] = await db.rows(sql`select count(*)::int as sessions from chat_sessions where owner = ${owner.key}`)
      t.same(count, { sessions: 3 })
      const other = await importer.importAll(newOwner(), given)
      t.ok(
        other.every(({ id, existing }) => !existing && !again.some((one) => one.id === id)),
        'others get others',
      )
    })

    await t.test('an id that somebody else has taken first is neither touched nor told', async (t) => {
      const [owner, thief] = [newOwner(), newOwner()]
      const given = [sample()]
      const [probe] = await importer.importAll(owner, given)
      await db.rows(sql`delete from chat_sessions where id = ${probe!.id}::uuid`)
      await db.rows(sql`
        insert into chat_sessions (id, visitor_hash, title) values (${probe!.id}::uuid, ${thief.visitorHash}, 'theirs')`)
      const [made] = await importer.importAll(owner, given)
      t.not(made!.id, probe!.id)
      t.match(made, { existing: false, messages: 2 })
      t.match(await importer.importAll(owner, given), [{ id: made!.id, existing: true }])
      const [theirs] = await db.rows(sql`select title, message_count from chat_sessions where id = ${probe!.id}::uuid`)
      t.same(theirs, { title: 'theirs', message_count: 0 })
    })

    await t.test(
      'what was under way is interrupted, what is unknown is left out, and times are in the past',
      async (t) => {
        const owner = newOwner()
        const given = sample()
        Object.assign(given.session, { status: 'running', external_id: 'x', last_activity_at: '9998-01-01T00:00:00Z' })
        const [user, reply] = given.messages as [Conversation['messages'][0], Conversation['messages'][0]]
        Object.assign(user, { seq: 90, parent_id: randomUUID() })
        Object.assign(reply, { seq: 17, status: 'streaming', parent_id: user.id, run_id: randomUUID() })
        await importer.importAll(owner, [checked(given)])
        const [first] = readLines(await exportAll(owner), JSON.parse)
        t.match(first?.session, { status: 'failed', external_id: 'x', message_count: 2 })
        t.ok(first!.session.last_activity_at < new Date(Date.now() + 1000).toISOString())
        t.match(first?.messages, [
          { seq: 1, role: 'assistant', status: 'interrupted', parent_id: null, run_id: null },
          { seq: 2, role: 'user', parent_id: null },
        ])
        const copy = { ...given, session: { ...given.session, id: randomUUID(), metadata: { a: 1 } } }
        const [second] = await importer.importAll(owner, [checked(copy)])
        const { session } = await reader.readHead(owner, second!.id)
        t.match(session, { external_id: null, metadata: { a: 1, external_id: 'x' } })
      },
    )

    await t.test('text that no database takes is mended, and the rest is to the letter', async (t) => {
      const owner = newOwner()
      const given = sample()
      given.session.title = 'a\u0000b\ud800'
      given.messages[0]!.parts = [{ kind: 'text', text: '\ufeff\udc00x\u0000' }]
      given.messages[0]!.content = '\ufeff\udc00x\u0000'
      given.messages[0]!.metadata = { 'k\u0000': '\ud800' }
      await importer.importAll(owner, [checked(given)])
      const [stored] = readLines(await exportAll(owner), JSON.parse)
      t.equal(stored?.session.title, 'ab\ufffd')
      t.equal(stored?.messages[0]?.content, '\ufeff\ufffdx')
      t.same(stored?.messages[0]?.metadata, { k: '\ufffd' })
    })

    await t.test('ten thousand messages are read in small pages, each message once', async (t) => {
      const owner = newOwner()
      const id = randomUUID()
      await db.rows(sql`
        insert into chat_sessions (id, visitor_hash, message_count) values (${id}::uuid, ${owner.visitorHash}, 10000)`)
      // Fifty of them are long, so that pages end for their bytes too.
      await db.rows(sql`
        insert into chat_messages (id, session_id, seq, role, status, content, metadata)
        select gen_random_uuid(), ${id}::uuid, n, 'user', 'completed', n::text, case when n between 5001 and 5050 then
          (select jsonb_build_object('a', string_agg(md5((n * k)::text), '')) from generate_series(1, 3000) k)
        else '{}' end
        from generate_series(1, 10000) n`)
      const head = await reader.readHead(owner, id)
      let [largest, seq, pages] = [0, 0, 0]
      for await (const page of reader.readMessagePages(owner, head)) {
        pages += 1
        largest = Math.max(largest, JSON.stringify(page).length)
        if (page.length > pageRowsMax) t.fail(`${page.length} rows`)
        for (const message of page) {
          seq += 1
          if (message.seq !== seq) t.fail(`${message.seq} for ${seq}`)
        }
      }
      t.equal(seq, 10_000)
      t.ok(pages > 20, `${pages} pages`)
      t.ok(largest < 5 * 1024 * 1024, `the largest has ${largest} characters`)
      t.ok(50 * 3000 * 32 > 2 * largest, 'a twin: without the limit of bytes one would have five million')
    })

    await t.test(
      'Markdown holds every message once, the active branch first, and nothing opens or closes around it',
      async (t) => {
        const owner = newOwner()
        const base = sample()
        const message = (seq: number, parent: number | null, text: string): Conversation['messages'][0] => ({
          ...base.messages[0]!,
          id: `00000000-0000-7000-8000-${String(seq).padStart(12, '0')}`,
          parent_id: parent === null ? null : `00000000-0000-7000-8000-${String(parent).padStart(12, '0')}`,
          seq,
          role: seq % 2 === 0 ? 'assistant' : 'user',
          content: text,
          parts: [{ kind: 'text', text }],
        })
        const nasty = '```\n# Not a heading\n</div><!-- \n~~~~\n````js'
        const given = {
          ...base,
          session: { ...base.session, title: '# A [title](x) <b>\n## not two lines', input: null },
          messages: [
            message(1, null, 'One'),
            message(2, 1, nasty),
            message(3, 2, 'Three'),
            message(4, 1, 'Two again'),
            message(5, null, 'One again'),
            message(6, 4, 'Six\n'),
          ],
          artifacts: [
            {
              name: 'a.md',
              version: 1,
              content_type: 'text/markdown' as const,
              body: '# Report\n````',
              created_at: now,
            },
          ],
        }
        const [made] = await importer.importAll(owner, [checked(given)])
        const text = await join(writeMarkdown(reader, owner, await reader.readHead(owner, made!.id), now))
        const { headings, blocks } = readMarkdown(text)
        t.same(
          headings.map((heading) => heading.replace(/ · .*/, '')),
          [
            '# \\# A \\[title\\](x) \\<b\\> \\#\\# not two lines',
            '## 1\\. User',
            '## 4\\. Assistant',
            '## 6\\. Assistant',
            '# Other branches',
            '## 2\\. Assistant (follows 1)',
            '## 3\\. User (follows 2)',
            '## 5\\. User (a beginning)',
            '# Artifacts',
            '## a.md, version 1',
          ],
        )
        t.same(blocks, ['One', 'Two again', 'Six', nasty, 'Three', 'One again', '# Report\n````'])
      },
    )

    await t.test('what waits in the queue is on the branch of the message before it', async (t) => {
      const owner = newOwner()
      const [made] = await importer.importAll(owner, [sample()])
      const [id, run, question] = [made!.id, randomUUID(), randomUUID()]
      await db.rows(sql`
        insert into chat_messages (id, session_id, seq, role, status, run_id, parent_id) values
          (${question}::uuid, ${id}::uuid, 3, 'user', 'completed', ${run}::uuid, null),
          (gen_random_uuid(), ${id}::uuid, 4, 'assistant', 'streaming', ${run}::uuid, ${question}::uuid)`)
      t.equal((await reader.readAside(owner, await reader.readHead(owner, id))).size, 2, 'a twin: not by itself')
      await db.rows(sql`
        insert into chat_runs (id, session_id, user_message_id, message_id, status, mode, provider, model, owner, request_hash)
        values (${run}::uuid, ${id}::uuid, ${question}::uuid, ${question}::uuid, 'queued', 'fast', 'x', 'x', ${owner.key}, '')`)
      t.equal((await reader.readAside(owner, await reader.readHead(owner, id))).size, 0)
    })

    await t.test('a session that goes away while it is read breaks the export', async (t) => {
      const owner = newOwner()
      const id = randomUUID()
      await db.rows(sql`insert into chat_sessions (id, visitor_hash) values (${id}::uuid, ${owner.visitorHash})`)
      await db.rows(sql`
        insert into chat_messages (id, session_id, seq, role, status, content)
        select gen_random_uuid(), ${id}::uuid, n, 'user', 'completed', 'x' from generate_series(1, 600) n`)
      const pages = reader.readMessagePages(owner, await reader.readHead(owner, id))
      t.equal((await pages.next()).value?.length, pageRowsMax)
      await db.rows(sql`update chat_sessions set deleted_at = now() where id = ${id}::uuid`)
      await t.rejects(pages.next(), { code: 'not_found' })
      const texts = []
      for await (const head of reader.readHeads(owner)) {
        for await (const page of reader.readMessagePages(owner, head)) texts.push(...page)
      }
      t.equal(texts.length, 600, 'an export of everything holds what is deleted')
    })
  })
}

test('fences hold whatever is between them', async (t) => {
  fc.assert(
    fc.property(fc.array(fc.oneof(words(100), fc.stringMatching(/^[`~]{1,9}$/), fc.constant('\n'))), (pieces) => {
      const text = pieces.join('')
      const { headings, blocks } = readMarkdown(`${fence(text)}\n# After\n`)
      t.same(headings, ['# After'])
      t.same(blocks, [text.endsWith('\n') ? text.slice(0, -1) : text])
    }),
    { numRuns: 200 },
  )
  t.not(
    readMarkdown('```text\na\n```\n# b\n```\n').blocks[0],
    'a\n```\n# b',
    'a twin: a fence that is too short is noticed',
  )
})

test('what is not as it has to be is refused by its place', async (t) => {
  const refused = (given: unknown, pattern: RegExp, code = 'invalid_request') =>
    t.throws(() => readDocument(given), { code, message: pattern }, String(pattern))
  const base = documentOf(sample())
  const doc = () => structuredClone(base)
  const change = (edit: (given: SessionDocument) => void) => {
    const given = doc()
    edit(given)
    return given
  }
  t.ok(readDocument(doc()))
  refused(undefined, /^body /)
  refused([], /^body /)
  refused({ ...doc(), version: 2 }, /^body\/version /)
  refused({ ...doc(), format: 'other' }, /^body\/format /)
  refused({ ...doc(), owner: 'me' }, /^body has an unknown field: owner/)
  const message = (fields: object) => change((given) => void Object.assign(given.messages[1]!, fields))
  const session = (fields: object) => change((given) => void Object.assign(given.session, fields))
  refused(message({ id: 'x' }), /^body\/messages\/1\/id /)
  refused(message({ role: 'owner' }), /^body\/messages\/1\/role /)
  refused(message({ status: 'running' }), /^body\/messages\/1\/status /)
  refused(message({ owner: 'x' }), /^body\/messages\/1 has an unknown field: owner/)
  refused(message({ parts: [{ kind: 'html', text: '' }] }), /^body\/messages\/1\/parts\/0\/kind /)
  refused(
    message({ parts: [{ kind: 'text', text: 'x', html: '' }] }),
    /^body\/messages\/1\/parts\/0 has an unknown field/,
  )
  refused(message({ content: 'other' }), /^body\/messages\/1: content is not what/)
  refused(message({ content: 'x'.repeat(4_000_001) }), /^body\/messages\/1\/content /, 'too_large')
  refused(message({ created_at: '2024-02-30T00:00:00Z' }), /^body\/messages\/1\/created_at /)
  refused(message({ created_at: '0000-01-01T00:00:00Z' }), /^body\/messages\/1\/created_at /)
  refused(message({ created_at: 'infinity' }), /^body\/messages\/1\/created_at /)
  refused(message({ input_tokens: 2 ** 31 }), /^body\/messages\/1\/input_tokens /)
  refused(message({ metadata: { a: 'x'.repeat(17_000) } }), /^body\/messages\/1: metadata may hold/, 'too_large')
  refused(message({ retrieved_docs: nest(40) }), /^body\/messages\/1: JSON may be nested/)
  refused(
    message({ feedback: { rating: 5, comment: null, created_at: now, updated_at: now } }),
    /^body\/messages\/1\/feedback/,
  )
  refused(message({ id: base.messages[0]!.id.toUpperCase() }), /^body\/messages\/1: id is that/)
  refused(session({ total_cost_usd: '1e9' }), /^body\/session\/total_cost_usd /)
  refused(session({ kind: 'a b' }), /^body\/session\/kind /)
  refused(session({ external_id: '\u0000' }), /^body\/session: external_id is empty/)
  const artifact = { name: 'a', version: 1, content_type: 'application/json' as const, body: '{}', created_at: now }
  t.ok(readDocument({ ...doc(), artifacts: [artifact] }))
  refused({ ...doc(), artifacts: [artifact, artifact] }, /^body\/artifacts\/1: name and version/)
  refused({ ...doc(), artifacts: [{ ...artifact, body: '{' }] }, /^body\/artifacts\/0: body is not JSON/)
  refused({ ...doc(), artifacts: [{ ...artifact, name: '..' }] }, /^body\/artifacts\/0\/name /)
  refused({ ...doc(), artifacts: [{ ...artifact, content_type: 'text/evil' }] }, /^body\/artifacts\/0\/content_type /)
  refused({ ...doc(), messages: Array(10_001).fill(doc().messages[0]) }, /^body\/messages /, 'too_large')
})

test('lines are refused by their number, and a file that was cut is recognised wherever it was', async (t) => {
  const text = linesOf([sample(), sample()])
  const rows = text.trimEnd().split('\n')
  t.equal(readLines(text, JSON.parse).length, 2)
  t.equal(readLines(`\n${rows.join('\r\n\n')}`, JSON.parse).length, 2, 'empty lines and other line ends do not matter')
  const refused = (given: readonly string[], pattern: RegExp, code = 'invalid_request') =>
    t.throws(() => readLines(given.join('\n'), JSON.parse), { code, message: pattern }, String(pattern))
  for (let length = 0; length < rows.length; length += 1) refused(rows.slice(0, length), /^The file is cut/)
  for (let index = 1; index < rows.length - 1; index += 1) {
    const without = rows.toSpliced(index, 1)
    t.throws(() => readLines(without.join('\n'), JSON.parse), Problem, `without line ${index + 1}`)
  }
  refused(rows.with(2, '{'), /^line 3 is not JSON/)
  refused(rows.with(2, '[]'), /^line 3 /)
  refused(rows.with(2, '{"type":"owner"}'), /^line 3\/type /)
  refused(rows.with(2, rows[2]!.replace('"user"', '"owner"')), /^line 3\/role /)
  refused(rows.with(3, rows[2]!), /^line 2?4?.*: id is that/)
  refused(rows.slice(1), /^line 1: session has no place/)
  refused([...rows, rows[1]!], /^line 9: session has no place/)
  refused([rows[0]!, ...rows], /^line 2: export has no place/)
  refused([rows[0]!, rows[2]!, ...rows.slice(1)], /^line 2: message has no place/)
  const many = Array.from({ length: importedSessionsMax + 1 }, () => rows[1]!)
  refused([rows[0]!, ...many], /1000 sessions/, 'too_large')
})

function newOwner(): Owner & { readonly kind: 'visitor' } {
  const visitorHash = randomUUID()
  return { kind: 'visitor', key: `visitor:${visitorHash}`, userId: null, visitorHash }
}

async function join(pieces: AsyncIterable<string>): Promise<string> {
  let text = ''
  for await (const piece of pieces) text += piece
  return text
}

/** A small conversation of a question and its answer. */
function sample(): Conversation & {
  messages: Conversation['messages']
  session: Record<string, unknown> & Conversation['session']
} {
  const [from] = fc.sample(conversation, { numRuns: 1, seed: 3 })
  const [message] = fc
    .sample(conversation, { numRuns: 50, seed: 5 })
    .flatMap(({ messages }) => messages)
    .filter(({ feedback }) => feedback === null)
  const text = (words: string) => ({ content: words, parts: [{ kind: 'text' as const, text: words }] })
  const [question, answer] = [randomUUID(), randomUUID()]
  return {
    session: {
      ...from!.session,
      id: randomUUID(),
      status: 'completed',
      external_id: null,
      deleted_at: null,
      message_count: 2,
    },
    messages: [
      { ...message!, ...text('Question'), id: question, seq: 1, parent_id: null, role: 'user' },
      { ...message!, ...text('Answer'), id: answer, seq: 2, parent_id: question, role: 'assistant' },
    ],
    artifacts: [],
  }
}

function documentOf({ session, messages, artifacts }: Conversation): SessionDocument {
  return { format: 'verbatim.session', version: 1, exported_at: now, session, messages, artifacts }
}

const checked = (given: Conversation): Conversation => readDocument(documentOf(given))

function linesOf(given: readonly Conversation[]): string {
  const count = (of: (one: Conversation) => readonly unknown[]) => given.reduce((sum, one) => sum + of(one).length, 0)
  const rows = [
    { type: 'export', format: 'verbatim', version: 1, exported_at: now, owner: { kind: 'visitor', user_id: null } },
    ...given.flatMap(({ session, messages, artifacts }) => [
      { type: 'session', ...session },
      ...messages.map((message) => ({ type: 'message', ...message })),
      ...artifacts.map((artifact) => ({ type: 'artifact', ...artifact })),
    ]),
    {
      type: 'end',
      sessions: given.length,
      messages: count((one) => one.messages),
      artifacts: count((one) => one.artifacts),
    },
  ]
  return rows.map((row) => `${JSON.stringify(row)}\n`).join('')
}

/** Without what a place gives: ids are the places of what they name. */
function anonymous(given: readonly Conversation[]) {
  const plain = given.map(({ session, messages, artifacts }) => {
    const placeOf = (id: string | null) =>
      messages.findIndex((message) => message.id.toLowerCase() === id?.toLowerCase())
    return {
      session: { ...session, id: '' },
      messages: messages.map((message) => ({
        ...message,
        id: placeOf(message.id),
        parent_id: placeOf(message.parent_id),
      })),
      artifacts: artifacts.toSorted((a, b) =>
        a.name < b.name || (a.name === b.name && a.version < b.version) ? -1 : 1,
      ),
    }
  })
  // As JSON has it: what fast-check makes has no prototype.
  const values: typeof plain = JSON.parse(JSON.stringify(plain))
  return values.toSorted((a, b) => (JSON.stringify(a) < JSON.stringify(b) ? -1 : 1))
}

function nest(levels: number): unknown {
  return levels === 0 ? 1 : [nest(levels - 1)]
}

/** Headings outside of fences, and what stands between fences, by the rules of CommonMark. */
function readMarkdown(text: string): { headings: string[]; blocks: string[] } {
  const [headings, blocks]: [string[], string[]] = [[], []]
  let open: { marks: string; lines: string[] } | undefined
  // Also a lone CR ends a line; what ends it is kept, so that a block is what was put in.
  for (const line of text.match(/[^\r\n]*(\r\n|\r|\n)|[^\r\n]+$/g) ?? []) {
    const bare = line.replace(/[\r\n]+$/, '')
    if (open !== undefined) {
      const closing = /^ {0,3}(`{3,}|~{3,})[ \t]*$/.exec(bare)?.[1]
      if (closing?.startsWith(open.marks)) {
        blocks.push(open.lines.join('').replace(/\n$/, ''))
        open = undefined
      } else open.lines.push(line)
      continue
    }
    const opening = /^ {0,3}(`{3,}|~{3,})/.exec(bare)?.[1]
    if (opening !== undefined) open = { marks: opening, lines: [] }
    else if (/^#+ /.test(bare)) headings.push(bare)
  }
  return { headings, blocks }
}
