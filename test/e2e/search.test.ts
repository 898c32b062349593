/**
 * Search, over real HTTP, on every database: which sessions a word finds and which it does not, for owners with few
 * sessions and with many, and that its pages are the sorted list exactly, whichever way they were found.
 */
import fc from 'fast-check'
import { test } from 'tap'
import { sql } from '../../src/db/drizzle.ts'
import { createSessionList } from '../../src/sessions/list.ts'
import { type Client, createClient } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'

const sessions = '/api/v1/sessions'

interface Talk {
  readonly title: string | null
  readonly messages: readonly string[]
}

/** What search promises, said in the plainest way. */
function holds({ title, messages }: Talk, terms: readonly string[]): boolean {
  const texts = [title ?? '', ...messages].map((text) => text.toLowerCase())
  return terms.every((term) => texts.some((text) => text.includes(term.toLowerCase())))
}

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const gateway = await startGateway(t, { database })
    const { db } = gateway.app

    /** An owner with these sessions and no other, the last of them the newest. Two share each time. */
    async function own(talks: readonly Talk[]): Promise<{ client: Client; ids: string[]; visitor: string }> {
      const client = createClient(gateway.url)
      const { id } = (await client.post(sessions, {})).body
      const rows = await db.rows<{ id: string; owner: string }>(sql`
        with first as (delete from chat_sessions where id = ${id}::uuid returning visitor_hash), given as (
          select gen_random_uuid() as id, talk.ordinality as place, talk.value
          from jsonb_array_elements(${JSON.stringify(talks)}::jsonb) with ordinality talk
        ), stored as (
          insert into chat_sessions (id, visitor_hash, title, kind, message_count, last_activity_at)
          select given.id, visitor_hash, value ->> 'title', case place % 2 when 0 then 'even' else 'odd' end,
            jsonb_array_length(value -> 'messages'), timestamptz '2024-01-01Z' + place / 2 * interval '1 microsecond'
          from given, first returning owner
        ), said as (
          insert into chat_messages (id, session_id, owner, seq, role, content, status)
          select gen_random_uuid(), given.id, (select owner from stored limit 1), message.ordinality, 'user', message.value, 'completed'
          from given, jsonb_array_elements_text(value -> 'messages') with ordinality message
        )
        select id, (select owner from stored limit 1) as owner from given order by place`)
      return { client, ids: rows.map((row) => row.id), visitor: rows[0]!.owner.slice('visitor:'.length) }
    }

    async function find(client: Client, q: string, more = ''): Promise<string[]> {
      const ids: string[] = []
      for (let cursor = ''; ; ) {
        const { status, body } = await client.get(`${sessions}?q=${encodeURIComponent(q)}${more}${cursor}`)
        if (status !== 200) throw new Error(`${status}: ${body.detail}`)
        ids.push(...body.data.map(({ id }: { id: string }) => id))
        if (body.next_cursor === null) return ids
        cursor = `&cursor=${body.next_cursor}`
      }
    }

    const talks: readonly Talk[] = [
      { title: 'Budget plan', messages: ['How much for the zeppelin?', 'About 100% of it, or 5_000.'] },
      { title: null, messages: ['今年的預算報告', '明白了'] },
      { title: '東京タワー', messages: ['カメラを買う。', 'どうぞ'] },
      { title: '회의록', messages: ['예산 보고서를 검색해 주세요'] },
      { title: 'Äpfel und Öl', messages: ['ÉCOLE', 'ЖУК', 'caf\u00e9', 'nai\u0308ve'] },
      { title: 'Paths', messages: ['C:\\temp\\%x% a_b aXb', '<b>"quoted"</b> it\'s; drop table --'] },
      { title: 'plan', messages: ['nothing of the other word'] },
      { title: null, messages: [] },
      { title: 'Emoji', messages: ['a😀b 👩‍👩‍👧'] },
      { title: '𠀀𠮷 rare', messages: ['x'] },
    ]
    const cases: readonly (readonly [q: string, found: readonly number[]])[] = [
      ['zeppelin', [0]],
      ['ZEPPELIN', [0]],
      ['eppel', [0]],
      ['zeppelins', []],
      ['budget', [0]],
      ['plan', [6, 0]],
      ['plan zeppelin', [0]],
      ['zeppelin\u3000\tplan', [0]],
      ['plan plan', [6, 0]],
      ['other zeppelin', []],
      ['預算', [1]],
      ['預', [1]],
      ['算報', [1]],
      ['算 年', [1]],
      ['預報', []],
      ['預預', []],
      ['東京', [2]],
      ['京タ', [2]],
      ['カメラ', [2]],
      ['ー', [2]],
      ['예산', [3]],
      ['산', [3]],
      ['회의 검색', [3]],
      ['äpfel', [4]],
      ['ÖL', [4]],
      ['école', [4]],
      ['жук', [4]],
      ['caf\u00e9', [4]],
      ['cafe\u0301', [4]],
      ['na\u00efve', [4]],
      ['nai\u0308ve', [4]],
      ['100%', [0]],
      ['%', [5, 0]],
      ['1%0', []],
      ['5_000', [0]],
      ['5_0_0', []],
      ['a_b', [5]],
      ['_', [5, 0]],
      ['\\', [5]],
      ['\\temp\\', [5]],
      ['\\%', [5]],
      ['"quoted"', [5]],
      ["it's;", [5]],
      ['<b>', [5]],
      ['--', [5]],
      ['😀', [8]],
      ['👩‍👩‍👧', [8]],
      ['𠮷', [9]],
      ['𠀀𠮷', [9]],
      ['\u0000plan', [6, 0]],
      ['x', [9, 5]],
    ]

    await t.test('a word finds the sessions that have it in their title or a message, and no others', async (t) => {
      const { client, ids } = await own(talks)
      await own(talks)
      for (const [q, found] of cases) {
        const positions = (await find(client, q)).map((id) => ids.indexOf(id))
        t.same(positions, found, encodeURIComponent(q))
      }
    })

    await t.test(
      'it does so too when there are many newer sessions, and other owners with the same words',
      async (t) => {
        const others = Array.from({ length: 280 }, (_, n) => ({
          title: `Newer ${n}`,
          messages: ['of this and that', '這個和那個'],
        }))
        const { client, ids } = await own([...talks, ...others])
        for (const [q, found] of cases) {
          const positions = (await find(client, q)).map((id) => ids.indexOf(id)).filter((index) => index < talks.length)
          t.same(positions, found, encodeURIComponent(q))
        }
        t.equal((await find(client, 'newer')).length, 280)
        t.equal((await find(client, 'that')).length, 280)
        t.equal((await find(client, '那個 newer', '&limit=100')).length, 280)
        t.same(await find(client, 'that nowhere'), [])
      },
    )

    await t.test('it does so too behind more sessions without a word than are passed in one step', async (t) => {
      const silent = Array.from({ length: 1300 }, () => ({ title: null, messages: [] }))
      const common = Array.from({ length: 300 }, () => ({ title: null, messages: ['common 那個', 'words'] }))
      const { client, ids } = await own([...talks, ...common, ...silent])
      for (const [q, found] of cases.filter((_, index) => index % 4 === 0)) {
        const positions = (await find(client, q)).map((id) => ids.indexOf(id)).filter((index) => index < talks.length)
        t.same(positions, found, encodeURIComponent(q))
      }
      t.equal((await find(client, 'common', '&limit=100')).length, 300)
      t.equal((await find(client, '那個 words', '&limit=100')).length, 300)
      t.same(await find(client, 'common nowhere'), [])
      t.same(await find(client, 'longest common'), [])
    })

    await t.test('a search goes with every filter, a page size and an offset', async (t) => {
      const { client, ids } = await own(
        Array.from({ length: 30 }, (_, n) => ({ title: n % 3 === 0 ? 'third' : 'x', messages: [] })),
      )
      const thirds = ids.filter((_, n) => n % 3 === 0).toReversed()
      t.same(await find(client, 'third'), inListOrder(thirds))
      for (const limit of [1, 3, 100]) t.same(await find(client, 'third', `&limit=${limit}`), inListOrder(thirds))
      const odd = thirds.filter((id) => ids.indexOf(id) % 2 === 0)
      t.same(await find(client, 'third', '&kind=odd&status=created&archived=false&mode=balanced&limit=2'), odd)
      t.same(await find(client, 'third', '&tag=none'), [])
      const offset = await client.get(`${sessions}?q=third&offset=4&limit=3`)
      t.same(
        offset.body.data.map(({ id }: { id: string }) => id),
        inListOrder(thirds).slice(4, 7),
      )

      function inListOrder(found: readonly string[]): string[] {
        const time = (id: string) => Math.floor((ids.indexOf(id) + 1) / 2)
        return found.toSorted((a, b) => time(b) - time(a) || (a < b ? 1 : -1))
      }
    })

    await t.test(
      'whatever is said and asked, the pages are the sessions that hold all terms, newest first',
      async (t) => {
        const word = fc.stringMatching(/^[abB%_\\預算é]{1,4}$/)
        const text = fc.array(word, { maxLength: 4 }).map((words) => words.join(' '))
        const talk = fc.record({ title: fc.option(text), messages: fc.array(text, { maxLength: 3 }) })
        await fc.assert(
          fc.asyncProperty(
            fc.array(talk, { minLength: 230, maxLength: 280 }),
            fc.array(fc.array(word, { minLength: 1, maxLength: 3 }), { minLength: 6, maxLength: 6 }),
            async (talks, questions) => {
              const { client, ids, visitor } = await own(talks)
              const place = (id: string) => Math.floor((ids.indexOf(id) + 1) / 2)
              const hurried = createSessionList(db, 0)
              const owner = { kind: 'visitor', key: `visitor:${visitor}`, userId: null, visitorHash: visitor } as const
              for (const terms of questions) {
                const expected = ids
                  .filter((_, index) => holds(talks[index] as Talk, terms))
                  .toSorted((a, b) => place(b) - place(a) || (a < b ? 1 : -1))
                const found = await find(client, terms.join(' '), '&limit=40')
                if (JSON.stringify(found) !== JSON.stringify(expected)) return false
                // A search that may take no time gives out short pages, and together they are the same.
                const short: string[] = []
                for (let cursor: string | null | undefined; cursor !== null; ) {
                  const page = await hurried.listSessions(owner, {
                    q: terms.join(' '),
                    limit: 100,
                    ...(cursor === undefined ? {} : { cursor }),
                  })
                  short.push(...page.data.map(({ id }) => id))
                  cursor = page.next_cursor
                }
                if (JSON.stringify(short) !== JSON.stringify(expected)) return false
              }
              return true
            },
          ),
          { numRuns: 3, endOnFailure: true },
        )
        t.pass('no counterexample')
      },
    )

    await t.test('a session that was deleted is not found, nor by anybody else', async (t) => {
      const { client, ids } = await own([{ title: 'secret zebra', messages: ['zebra'] }])
      t.same(await find(client, 'zebra'), ids)
      t.same(await find(createClient(gateway.url), 'zebra'), [])
      await db.rows(sql`update chat_sessions set deleted_at = now() where id = ${ids[0]}::uuid`)
      t.same(await find(client, 'zebra'), [])
    })

    await t.test('among the deleted a word is found too, also in the title of an old one', async (t) => {
      const newer = Array.from({ length: 250 }, (_, index) => ({ title: `Number ${index}`, messages: [] }))
      const { client, ids } = await own([{ title: 'A walrus', messages: [] }, ...newer])
      await db.rows(sql`
        update chat_sessions set deleted_at = now(), status = 'deleted'
        where id in (select value::uuid from jsonb_array_elements_text(${JSON.stringify(ids)}::jsonb))`)
      t.same(await find(client, 'walrus', '&status=deleted'), [ids[0]])
      t.same(await find(client, 'walrus'), [])
    })

    await t.test('a message of 10 MB is stored and found by its beginning', async (t) => {
      const { client, ids } = await own([{ title: null, messages: ['short'] }])
      // Different everywhere, so that neither the text nor its trigrams are few.
      await db.rows(sql`
        update chat_messages set content = 'Beginning ' || (
          select string_agg(md5(n::text) || chr(19968 + n % 20000), ' ') from generate_series(1, 280000) n
        ) where session_id = ${ids[0]}::uuid`)
      const [size] = await db.rows<{ bytes: number }>(
        sql`select octet_length(content)::int as bytes from chat_messages where session_id = ${ids[0]}::uuid`,
      )
      t.ok(size!.bytes > 10_000_000)
      t.same(await find(client, 'beginning'), ids)
    })
  })
}

test('a twin: a search that was satisfied with one of the words would be noticed', async (t) => {
  t.equal(holds({ title: 'one', messages: ['two'] }, ['one', 'two']), true)
  t.equal(holds({ title: 'one', messages: ['two'] }, ['one', 'three']), false)
})
