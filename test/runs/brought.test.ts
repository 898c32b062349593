/**
 * A conversation that comes with its first message here, as clients of OpenAI send it: it becomes the session's first
 * messages when the request makes the session, and then only; and it reads back as it was said.
 */
import { randomUUID } from 'node:crypto'
import { test } from 'tap'
import { sql } from '../../src/db/drizzle.ts'
import { Problem } from '../../src/errors.ts'
import type { Part } from '../../src/log/event.ts'
import { createAccept } from '../../src/runs/accept.ts'
import { type ChatAsked, hashAsked, planOf } from '../../src/runs/asked.ts'
import { type BroughtMessage, broughtBytesMax, broughtMessagesMax } from '../../src/runs/brought.ts'
import { instructionsBytesMax } from '../../src/runs/model.ts'
import { createResume } from '../../src/runs/resume.ts'
import { readHistory } from '../../src/sessions/context.ts'
import { createSessionList } from '../../src/sessions/list.ts'
import { databases } from '../support/database.ts'
import { createOwner, openStore, plansFor } from '../support/runs.ts'

const text = (role: BroughtMessage['role'], words: string): BroughtMessage => ({
  role,
  parts: [{ kind: 'text', text: words }],
})
const call = (call_id: string): Part => ({ kind: 'tool_call', text: '{"q":1}', call_id, name: 'find', input: { q: 1 } })

const before: readonly BroughtMessage[] = [
  text('user', 'What is new?'),
  { role: 'assistant', parts: [{ kind: 'text', text: 'I look.' }, call('a'), call('b')] },
  {
    role: 'tool',
    parts: [
      { kind: 'tool_call', text: '', call_id: 'b', name: 'find', output: 'two' },
      { kind: 'tool_call', text: '', call_id: 'a', name: 'find', output: 'one' },
    ],
  },
  text('system', 'Be short.'),
  text('assistant', 'Nothing.'),
]

const said = [
  ['user', 'What is new?'],
  ['assistant', 'I look.'],
  ['tool', 'one'],
  ['tool', 'two'],
  ['system', 'Be short.'],
  ['assistant', 'Nothing.'],
]

const codeOf = (work: Promise<unknown>) =>
  work.then(
    () => 'accepted',
    (error: unknown) => (error instanceof Problem ? error.code : String(error)),
  )

for (const kind of databases()) {
  test(`on ${kind}`, async (t) => {
    const { db, runs, sessions, messages } = await openStore(t, kind)
    const watched = new Set<string>()
    const isWatched = (id: string) => watched.has(id)
    const { accept } = createAccept({ db, runs, instanceId: randomUUID(), runsPerOwnerMax: 0, isWatched })
    const owner = createOwner()
    const ask = (asked: ChatAsked) => accept(owner, asked, plansFor)
    const end = (session_id: string) =>
      db.rows(sql`
        with ended as (update chat_runs set status = 'completed' where session_id = ${session_id}::uuid),
          session as (update chat_sessions set active_run_id = null where id = ${session_id}::uuid)
        update chat_messages set status = 'completed' where session_id = ${session_id}::uuid`)
    const historyOf = async (messageId: string, max = 100) =>
      (await readHistory(db, messageId, max)).messages.map(({ role, content }) => [role, content])

    await t.test('it is written in front of the message that makes the session, and read as it was said', async (t) => {
      const { run } = await ask({ message: 'Really?', before, instructions: 'Rhyme.' })
      const session = await sessions.getSession(owner, run.session_id)
      t.equal(session.message_count, before.length + 2)
      t.equal(session.title, 'What is new?')
      const page = await messages.listMessages(owner, run.session_id, {})
      t.strictSame(
        page.data.map(({ seq, role }) => [seq, role]),
        [...before.map(({ role }) => role), 'user', 'assistant'].map((role, index) => [index + 1, role]),
      )
      t.ok(
        page.data.every(({ parent_id }, index) => parent_id === (page.data[index - 1]?.id ?? null)),
        'each follows the one before it',
      )
      t.strictSame(await historyOf(run.user_message_id), [...said, ['user', 'Really?']])
      t.equal(run.request?.instructions, 'Rhyme.')
      t.equal(run.request?.messages_max, before.length + 1, 'and all of it may be looked at')
      t.equal((await historyOf(run.user_message_id, 3)).length, 3, 'which fewer would not have shown')
    })

    await t.test('search finds what was said here, and not what was brought', async (t) => {
      const own = createOwner()
      const list = createSessionList(db)
      await accept(own, { message: 'Zebras here', before: [text('user', 'Lions elsewhere')] }, plansFor)
      const found = async (q: string) => (await list.listSessions(own, { q })).data.length
      t.equal(await found('zebras'), 1)
      t.equal(await found('elsewhere lions'), 1, 'its title is of here')
      await db.rows(sql`update chat_sessions set title = null where owner = ${own.key}`)
      t.equal(await found('lions'), 0)
    })

    await t.test('with a session that is there it counts for nothing, by id and by name', async (t) => {
      for (const name of [{ session_id: randomUUID() }, { external_id: randomUUID() }]) {
        const first = (await ask({ ...name, message: 'One', before: [] })).run
        await end(first.session_id)
        const second = (await ask({ ...name, message: 'Two', before })).run
        t.equal(second.session_id, first.session_id)
        t.strictSame(await historyOf(second.user_message_id), [
          ['user', 'One'],
          ['user', 'Two'],
        ])
        t.equal((await sessions.getSession(owner, first.session_id)).message_count, 4)
      }
    })

    await t.test('with a session that is there it is not even sent, and brings none back that is purged', async (t) => {
      const own = createOwner()
      for (const name of [{ session_id: randomUUID() }, { external_id: randomUUID() }]) {
        const asked = { ...name, message: 'Two', before }
        t.equal((await planOf(db, own, asked, randomUUID())).brought?.length, before.length, 'needed to make it')
        const first = (await accept(own, { ...name, message: 'One', before: [] }, plansFor)).run
        t.equal((await planOf(db, own, asked, randomUUID())).brought, undefined)
        await end(first.session_id)
        const purging = createAccept({
          db: {
            ...db,
            // Between the look for the session and the statement that accepts.
            async rows<Row>(statement: Parameters<typeof db.rows>[0]) {
              await db.rows(sql`delete from chat_sessions where owner = ${own.key}`)
              return db.rows<Row>(statement)
            },
          },
          runs,
          instanceId: randomUUID(),
          runsPerOwnerMax: 0,
        })
        t.equal(await codeOf(purging.accept(own, asked, plansFor)), 'not_found')
        t.equal(await sessions.hasAny(own.key), false)
      }
    })

    await t.test('answers of tools begin a session with the calls that they answer, or go on in one', async (t) => {
      const calls = before.slice(0, 2)
      const tool_results = [
        { call_id: 'a', output: 'one' },
        { call_id: 'b', output: 'two' },
      ]
      const session_id = randomUUID()
      const { run } = await ask({ session_id, tool_results, before: calls, instructions: 'Rhyme.' })
      t.strictSame(await historyOf(run.user_message_id), said.slice(0, 4))
      const { readRounds } = createResume(db)
      t.match(await readRounds(owner, run), [
        { parts: before[1]?.parts, answers: [{ call_id: 'a' }, { call_id: 'b' }] },
      ])
      t.strictSame(await readRounds(createOwner(), run), [], 'they are nobody else’s')
      t.equal(await codeOf(ask({ tool_results, before: [text('user', 'Hi')] })), 'invalid_request', 'nobody has called')
      t.equal(await codeOf(ask({ tool_results: tool_results.slice(1), before: calls })), 'invalid_request', 'not all')
      await end(session_id)
      t.equal(await codeOf(ask({ session_id, tool_results, before: calls })), 'conflict', 'they have been answered')
      const open = (await ask({ message: 'Hi', before: calls.slice(0, 1) })).run
      await end(open.session_id)
      await db.rows(sql`
        update chat_messages set parts = ${JSON.stringify([call('a'), call('b')])}::jsonb where id = ${open.message_id}::uuid`)
      const next = (await ask({ session_id: open.session_id, tool_results, before: [...calls] })).run
      t.strictSame((await historyOf(next.user_message_id)).slice(-3), [
        ['assistant', ''],
        ['tool', 'one'],
        ['tool', 'two'],
      ])
    })

    await t.test(
      'what was said beside goes on with tool results and another reply, until it is said anew',
      async (t) => {
        const settings = { temperature: 0.5, max_output_tokens: 7 }
        const { run } = await ask({ message: 'Hi', instructions: 'Rhyme.', settings })
        await end(run.session_id)
        const again = (await accept(owner, { regenerate: run.message_id }, plansFor)).run
        t.match(again.request, { instructions: 'Rhyme.', settings })
        await end(run.session_id)
        const own = { session_id: run.session_id, message: 'Hi', settings: { temperature: 1 } }
        t.strictSame((await ask(own)).run.request?.settings, { temperature: 1 }, 'a message says its own')
        t.equal((await runs.getRun(owner, run.id)).request?.instructions, 'Rhyme.', 'and all is stored')
      },
    )

    await t.test('a repeat without a key is the same run for a while, unless that was stopped', async (t) => {
      const asked: ChatAsked = { message: `Once ${randomUUID()}`, before }
      const first = (await ask(asked)).run
      t.not((await ask(asked)).run.id, first.id, 'nobody has said that it is a repeat')
      const repeat = { ...asked, repeats_within_ms: 60_000 }
      const newest = await ask(repeat)
      t.equal(newest.isNew, false)
      t.not(newest.run.id, first.id, 'the newest one is meant')
      t.equal((await accept(createOwner(), repeat, plansFor)).isNew, true, 'of this owner')
      t.equal((await ask({ ...repeat, session_id: randomUUID() })).isNew, true, 'in this session')
      await db.rows(sql`update chat_runs set created_at = created_at - interval '2 minutes' where owner = ${owner.key}`)
      t.equal((await ask(repeat)).isNew, true, 'in time')
      await db.rows(sql`update chat_runs set stop_requested_at = now() where owner = ${owner.key}`)
      t.equal((await ask(repeat)).isNew, true)
    })

    await t.test('a repeat without a key is not shown what was said to somebody else who asked the same', async (t) => {
      const asked: ChatAsked = { message: `Twice ${randomUUID()}`, before: [] }
      const repeat: ChatAsked = { ...asked, linger_ms: 5000, repeats_within_ms: 60_000 }
      const own = createOwner()
      const by = async (what: ChatAsked) => accept(own, what, plansFor)
      const endedAgo = (ms: number) =>
        db.rows(sql`
          update chat_runs set status = 'completed', ended_at = now() - ${ms}::float8 * interval '1 millisecond'
          where owner = ${own.key}`)
      const first = (await by(asked)).run
      t.equal((await by(repeat)).run.id, first.id)
      watched.add(first.id)
      const second = await by(repeat)
      t.equal(second.isNew, true, 'somebody is there: it is theirs')
      t.equal((await by(repeat)).run.id, second.run.id)
      watched.add(second.run.id)
      watched.delete(first.id)
      t.equal((await by(repeat)).run.id, first.id, 'an older one that nobody watches')
      watched.clear()
      await endedAgo(12_500)
      t.equal((await by(repeat)).run.id, second.run.id, 'as long after its end as its client may take')
      await endedAgo(13_500)
      t.equal((await by(repeat)).isNew, true, 'and no longer')

      await endedAgo(60_000)
      const session_id = randomUUID()
      const named = await by({ ...asked, external_id: randomUUID() })
      t.equal((await by({ ...repeat, session_id: named.run.session_id })).run.id, named.run.id)
      t.equal((await by({ ...repeat, session_id })).isNew, true, 'in another session')
      await db.rows(
        sql`update chat_sessions set created_at = created_at - interval '1 second' where id = ${session_id}::uuid`,
      )
      const kept = await by({ ...asked, client_message_id: randomUUID() })
      const bare = await by(repeat)
      t.equal(bare.isNew, true, 'that of a named session, of one that was there and of a key have their names')
      t.not(bare.run.id, kept.run.id)
      t.equal((await by(repeat)).run.id, bare.run.id)
    })

    await t.test('what is too much is refused by name, and leaves nothing', async (t) => {
      const long = 'x'.repeat(1000)
      const many = Array.from({ length: broughtMessagesMax + 1 }, () => text('user', 'a'))
      const large = Array.from({ length: broughtBytesMax / 1000 }, () => text('user', long))
      const other = createOwner()
      for (const asked of [{ before: many }, { before: large }, { instructions: 'x'.repeat(instructionsBytesMax) }]) {
        t.equal(await codeOf(accept(other, { message: 'Hi', ...asked }, plansFor)), 'too_large')
      }
      t.equal(await sessions.hasAny(other.key), false)
    })
  })
}

test('what is said beside a message makes another request of it; without it the hash is as it always was', async (t) => {
  const hashes = [
    hashAsked({ message: 'Hi' }),
    hashAsked({ message: 'Hi', before: [] }),
    hashAsked({ message: 'Hi', before }),
    hashAsked({ message: 'Hi', instructions: 'a' }),
    hashAsked({ message: 'Hi', settings: { top_p: 1 } }),
  ]
  t.equal(new Set(hashes).size, hashes.length)
  t.equal(
    hashAsked({ message: 'Hi', linger_ms: 5000, repeats_within_ms: 1 }),
    hashes[0],
    'how it is delivered is not it',
  )
})
