/**
 * Checkpoints: whatever was written and whatever failed, the reply is put together again exactly.
 */
import { test } from 'tap'
import type { Db } from '../../src/db/db.ts'
import { sql } from '../../src/db/drizzle.ts'
import { Problem } from '../../src/errors.ts'
import type { Part } from '../../src/log/event.ts'
import { type CheckpointPlaces, isStored, readCheckpoint, writeCheckpoints } from '../../src/runs/checkpoint.ts'
import { commitRun } from '../../src/runs/commit.ts'
import { databases } from '../support/database.ts'
import { createRandom, type Random } from '../support/random.ts'
import { countRows, endingOf, openStore, textPart } from '../support/runs.ts'

const pieces = ['a', 'word ', '世界', '👩‍👩‍👧', '\u2028', '\ufeff', '\\u0000', '"', '{', '\n', ' '.repeat(500)]

/** Lets a reply grow: in the last text part, in any tool call, or by a new part. */
function grow(parts: Part[], random: Random): void {
  const tools = parts.filter(({ kind }) => kind === 'tool_call')
  const unanswered = tools.filter(({ output, error }) => output === undefined && error === undefined)
  const what = random.integer(10)
  if (what === 0 || parts.length === 0) parts.push({ kind: random.pick(['text', 'reasoning'] as const), text: '' })
  else if (what === 1) parts.push({ kind: 'tool_call', text: '', call_id: `c${parts.length}`, name: 'f' })
  else if (what === 2)
    parts.push({ kind: 'source', text: '', url: `https://${parts.length}.example/`, title: '\u2028' })
  else if (what === 3 && unanswered.length > 0) random.pick(unanswered).output = { words: random.pick(pieces) }
  else if (what === 4 && unanswered.length > 0) random.pick(unanswered).error = { code: 'failed', message: 'No.' }
  if (what > 1 && what < 5) return
  const part = what > 5 && tools.length > 0 ? random.pick(tools) : parts.at(-1)
  for (let count = random.integer(4); part !== undefined && count > 0; count -= 1) part.text += random.pick(pieces)
}

const told = (parts: readonly Part[]) => parts.map(({ input: _input, ...part }) => part)

/** A database on which writes fail when told to: before they happen, or after, with the answer lost. */
function breakable(db: Db) {
  const state: { fails: 'no' | 'before' | 'after' } = { fails: 'no' }
  const broken: Db = {
    ...db,
    async rows(statement) {
      if (state.fails === 'before') throw new Problem('db_unavailable')
      const rows = await db.rows<never>(statement)
      if (state.fails === 'after') throw new Problem('db_unavailable')
      return rows
    },
  }
  return { db: broken, state }
}

for (const kind of databases()) {
  test(`on ${kind}`, async (t) => {
    const { db, accept } = await openStore(t, kind)

    await t.test('a reply is rebuilt as it was, however it grew and whatever failed', async (t) => {
      for (let seed = 1; seed <= 12; seed += 1) {
        const random = createRandom(seed)
        const run = await accept()
        const places: CheckpointPlaces = new Map([[run.id, []]])
        const { db: flaky, state } = breakable(db)
        const parts: Part[] = []
        let seq = 1
        for (let step = 0; step < 15; step += 1) {
          // Without new words the cursor may stand still: the same rows are then written twice.
          const growth = random.integer(5)
          for (let count = growth; count > 0; count -= 1) grow(parts, random)
          seq += growth
          state.fails = random.pick(['no', 'no', 'before', 'after'] as const)
          const cursor = { generation: 1, seq }
          await writeCheckpoints(flaky, [{ runId: run.id, parts, cursor }], places).catch(() => undefined) // on purpose
        }
        state.fails = 'no'
        grow(parts, random)
        seq += 1
        await writeCheckpoints(flaky, [{ runId: run.id, parts, cursor: { generation: 1, seq } }], places)
        const read = await readCheckpoint(db, run.id)
        t.same(told(read.parts), told(parts), `seed ${seed}`)
      }
    })

    await t.test('words that come while a checkpoint is written are in the next one', async (t) => {
      const run = await accept()
      const places: CheckpointPlaces = new Map([[run.id, []]])
      const parts = [textPart('one')]
      const source = (seq: number) => [{ runId: run.id, parts, cursor: { generation: 1, seq } }]
      const written = writeCheckpoints(db, source(2), places)
      ;(parts[0] as Part).text += ' two'
      parts.push(textPart('three'))
      await written
      t.same((await readCheckpoint(db, run.id)).parts, [textPart('one')])
      await writeCheckpoints(db, source(3), places)
      t.same(await readCheckpoint(db, run.id), {
        parts: [textPart('one two'), textPart('three')],
        cursor: { generation: 1, seq: 3 },
      })
    })

    await t.test('only what is new is written', async (t) => {
      const run = await accept()
      const places: CheckpointPlaces = new Map([[run.id, []]])
      const parts = [textPart('one')]
      const write = (seq: number) =>
        writeCheckpoints(db, [{ runId: run.id, parts, cursor: { generation: 1, seq } }], places)
      await write(2)
      await write(3)
      t.equal(await countRows(db, 'run_checkpoints', run.id), 1, 'nothing new, no row')
      ;(parts[0] as Part).text = 'one two'
      await write(4)
      const rows = await db.rows(
        sql`select seq, part_offset, text from run_checkpoints where run_id = ${run.id}::uuid order by seq`,
      )
      t.same(rows, [
        { seq: 2, part_offset: 0, text: 'one' },
        { seq: 4, part_offset: 3, text: ' two' },
      ])
    })

    await t.test('tool calls come back with what they are called with', async (t) => {
      const run = await accept()
      const call = (text: string): Part => ({ kind: 'tool_call', text, call_id: 'c', name: 'f' })
      const parts = [textPart('Look'), call('{"a":"\\u0000b"}'), call('{"cut')]
      await writeCheckpoints(db, [{ runId: run.id, parts, cursor: { generation: 1, seq: 5 } }], new Map([[run.id, []]]))
      t.same((await readCheckpoint(db, run.id)).parts, [
        textPart('Look'),
        { ...call('{"a":"\\u0000b"}'), input: { a: 'b' } },
        call('{"cut'),
      ])
    })

    await t.test('many runs are one statement, and each keeps its own text', async (t) => {
      const all = await Promise.all(Array.from({ length: 20 }, () => accept()))
      let statements = 0
      const counting: Db = {
        ...db,
        rows(statement) {
          statements += 1
          return db.rows(statement)
        },
      }
      const sources = all.map(({ id }, index) => ({
        runId: id,
        parts: [textPart(`text ${index}`)],
        cursor: { generation: 1, seq: 2 },
      }))
      await writeCheckpoints(counting, sources, new Map(all.map(({ id }) => [id, []])))
      t.equal(statements, 1)
      for (const [index, { id }] of all.entries()) {
        t.same((await readCheckpoint(db, id)).parts, [textPart(`text ${index}`)])
      }
    })

    await t.test(
      'a run of another generation, or one that has ended, is left out, and the others are not',
      async (t) => {
        const [taken, ended, alive] = await Promise.all([accept(), accept(), accept()])
        await db.rows(sql`update chat_runs set generation = 2 where id = ${taken.id}::uuid`)
        await commitRun(db, ended.id, 1, endingOf([textPart('end')]))
        const sources = [taken, ended, alive].map(({ id }) => ({
          runId: id,
          parts: [textPart('late')],
          cursor: { generation: 1, seq: 2 },
        }))
        await writeCheckpoints(db, sources, new Map())
        t.same(await readCheckpoint(db, taken.id), { parts: [], cursor: undefined })
        t.same(await readCheckpoint(db, ended.id), { parts: [], cursor: undefined })
        t.same((await readCheckpoint(db, alive.id)).parts, [textPart('late')])
      },
    )

    await t.test('a run whose words the database refuses keeps no other from its checkpoint', async (t) => {
      const [good, bad, other] = [await accept(), await accept(), await accept()]
      const sources = [
        { runId: good.id, parts: [textPart('kept')], cursor: { generation: 1, seq: 2 } },
        { runId: bad.id, parts: [textPart('refused\u0000')], cursor: { generation: 1, seq: 2 } },
        { runId: other.id, parts: [textPart('kept, too')], cursor: { generation: 1, seq: 2 } },
      ]
      const places: CheckpointPlaces = new Map(sources.map(({ runId }) => [runId, []]))
      await t.rejects(writeCheckpoints(db, sources, places), { name: 'DbError' })
      t.match((await readCheckpoint(db, good.id)).parts, [{ text: 'kept' }])
      t.match((await readCheckpoint(db, other.id)).parts, [{ text: 'kept, too' }])
      t.same((await readCheckpoint(db, bad.id)).parts, [])
      t.match([places.get(good.id), places.get(bad.id)], [[{ units: 4 }], []], 'only what is stored counts as stored')
      const stored = sources.map(({ runId, parts }) => isStored(parts, places.get(runId)))
      t.same(stored, [true, false, true], 'a tool of another run need not wait for it')
    })

    await t.test('the commit takes the checkpoints with it, and only its own', async (t) => {
      const [run, other] = await Promise.all([accept(), accept()])
      for (const { id } of [run, other]) {
        const cursor = { generation: 1, seq: 2 }
        await writeCheckpoints(db, [{ runId: id, parts: [textPart('text')], cursor }], new Map())
      }
      t.match(await commitRun(db, run.id, 2, endingOf([])), { outcome: 'fenced' })
      t.equal(await countRows(db, 'run_checkpoints', run.id), 1, 'a refused commit takes nothing')
      t.match(await commitRun(db, run.id, 1, endingOf([textPart('text')])), { outcome: 'committed' })
      t.equal(await countRows(db, 'run_checkpoints', run.id), 0)
      t.equal(await countRows(db, 'run_checkpoints', other.id), 1)
    })
  })
}
