/**
 * Following a run that no log holds: from its checkpoints while it runs, from the stored message for ever after. What a
 * viewer holds afterwards is the stored message, wherever it came from.
 */
import { test } from 'tap'
import type { Db } from '../../src/db/db.ts'
import { sql } from '../../src/db/drizzle.ts'
import { Problem } from '../../src/errors.ts'
import { type EventId, formatEventId, type LogEntry, type Part, parseEventId } from '../../src/log/event.ts'
import { foldEvents } from '../../src/log/fold.ts'
import type { EventLog } from '../../src/log/log.ts'
import { createMemoryLog } from '../../src/log/memory.ts'
import { type CheckpointPlaces, writeCheckpoints } from '../../src/runs/checkpoint.ts'
import { commitRun, type Ending } from '../../src/runs/commit.ts'
import { createDraft } from '../../src/runs/draft.ts'
import { type FollowDeps, followRun } from '../../src/runs/follow.ts'
import type { RunFacts } from '../../src/runs/model.ts'
import { createStoredReader } from '../../src/runs/stored.ts'
import { createTicks } from '../../src/runs/ticks.ts'
import type { UpstreamEvent } from '../../src/upstream/upstream.ts'
import { delta, deltas, done } from '../contracts/log.ts'
import { databases } from '../support/database.ts'
import { createRandom } from '../support/random.ts'
import { endingOf, openStore, textPart, typesOf } from '../support/runs.ts'

const at = (id: string): EventId => parseEventId(id) as EventId

for (const kind of databases()) {
  test(`on ${kind}`, async (t) => {
    const { db, accept } = await openStore(t, kind)
    const log = createMemoryLog()
    t.teardown(() => log.close())
    let away = false
    let asked = Promise.withResolvers<void>()
    const check = () => {
      if (!away) return
      asked.resolve()
      throw new Problem('db_unavailable')
    }
    const flaky: Db = {
      ...db,
      async rows(statement) {
        check()
        return db.rows(statement)
      },
      async run(query) {
        check()
        return db.run(query)
      },
    }
    const deps = {
      log: log as EventLog,
      stored: createStoredReader(flaky),
      isPersistPending: () => false,
      pollMs: 5,
      ticks: createTicks(1),
    }

    /** A run as its process, of which only the database knows. */
    async function begin() {
      const run = await accept()
      const places: CheckpointPlaces = new Map([[run.id, []]])
      return {
        run,
        checkpoint: (parts: readonly Part[], id: string) =>
          writeCheckpoints(db, [{ runId: run.id, parts, cursor: at(id) }], places),
        commit: (parts: readonly Part[], more: Partial<Ending> = {}) => commitRun(db, run.id, 1, endingOf(parts, more)),
      }
    }

    const viewers: { end(): Promise<unknown> }[] = []
    /** So that only what a test opens itself is counted in it. */
    const endViewers = () => Promise.all(viewers.splice(0).map((viewer) => viewer.end()))

    /** Reads on until something comes, or the end. */
    function watch(run: RunFacts, after?: string, on: FollowDeps = deps) {
      const abort = new AbortController()
      const batches = followRun(on, run, after === undefined ? undefined : at(after), abort.signal)
      const entries: LogEntry[] = []
      viewers.push({
        end() {
          abort.abort()
          return batches.return()
        },
      })
      return {
        entries,
        abort,
        async next(): Promise<readonly LogEntry[]> {
          for (;;) {
            const { value, done } = await batches.next()
            if (done === true) return []
            entries.push(...value.entries)
            if (value.entries.length > 0) return value.entries
          }
        },
        /** Resolves when the viewer has been told that there is nothing more for now. */
        async caughtUp(): Promise<void> {
          for (;;) {
            const { value, done } = await batches.next()
            if (done === true) throw new Error('the run has ended')
            entries.push(...value.entries)
            if (value.caughtUp && value.entries.length === 0) return
          }
        },
        async all(): Promise<readonly LogEntry[]> {
          for await (const batch of batches) entries.push(...batch.entries)
          return entries
        },
      }
    }

    const shape = (entries: readonly LogEntry[]) =>
      entries.map((entry) => `${entry.event.type} ${formatEventId(entry)}`)

    await t.test('a running reply is followed by its checkpoints, and then to its end', async (t) => {
      const { run, checkpoint, commit } = await begin()
      const viewer = watch(run)
      t.same(shape(await viewer.next()), ['run 1-1'])
      await viewer.caughtUp()
      await checkpoint([textPart('Hel')], '1-4')
      t.same(await viewer.next(), [
        { generation: 1, seq: 4, event: { type: 'delta', data: { part: 0, offset: 0, text: 'Hel' } } },
      ])
      await checkpoint([textPart('Hello 👩‍👩‍👧')], '1-9')
      t.match(await viewer.next(), [{ seq: 9, event: { data: { offset: 3, text: 'lo 👩‍👩‍👧' } } }])
      await commit([textPart('Hello 👩‍👩‍👧!')], { lastSeq: 12 })
      t.same(shape(await viewer.next()), ['delta 1-11', 'done 1-12'])
      t.same(await viewer.next(), [], 'done is said once, and is the end')
      t.same(foldEvents(viewer.entries), [textPart('Hello 👩‍👩‍👧!')])
    })

    await t.test('a stored reply of one text part is replayed as run, delta and done', async (t) => {
      const { run, commit } = await begin()
      await commit([textPart('All of it')], { lastSeq: 6 })
      const entries = await watch(run).all()
      t.same(shape(entries), ['run 1-1', 'delta 1-5', 'done 1-6'])
      t.match(entries.at(-1)?.event.data, {
        status: 'completed',
        message_id: run.message_id,
        finish_reason: 'stop',
        usage: { total_tokens: 7 },
        ttft_ms: 10,
        latency_ms: 20,
      })
      t.same(shape(await watch(run, '1-1').all()), ['reset 1-5', 'done 1-6'])
      t.same(shape(await watch(run, '1-3').all()), ['reset 1-5', 'done 1-6'])
      t.same(shape(await watch(run, '1-5').all()), ['done 1-6'], 'at the place before the end')
      t.same(shape(await watch(run, '1-77').all()), ['reset 1-5', 'done 1-6'], 'from the future')
      t.same(shape(await watch(run, '7-1').all()), ['reset 1-5', 'done 1-6'], 'of another generation')
    })

    await t.test('a stored reply of several parts is replayed whole', async (t) => {
      const { run, commit } = await begin()
      const parts: Part[] = [
        { kind: 'reasoning', text: 'Hm' },
        textPart('Look:'),
        { kind: 'tool_call', text: '{"a":1}', call_id: 'c', name: 'f', input: { a: 1 } },
        textPart('Done.'),
      ]
      await commit(parts, { lastSeq: 30 })
      for (const after of [undefined, '1-1', '1-7']) {
        const entries = await watch(run, after).all()
        t.same(typesOf(entries), [...(after === undefined ? ['run'] : []), 'reset', 'done'])
        t.same(foldEvents(entries), parts)
        t.match(entries.find(({ event }) => event.type === 'reset')?.event.data, { cursor: '1-29' })
      }
    })

    await t.test('a reply of which nothing came is run and done', async (t) => {
      const { run, commit } = await begin()
      const error = { code: 'upstream_rejected' as const, message: 'No.', retryable: false }
      await commit([], { status: 'failed', error, lastSeq: 2, usage: undefined, finishReason: undefined })
      const entries = await watch(run).all()
      t.same(shape(entries), ['run 1-1', 'done 1-2'])
      t.match(entries[1]?.event.data, { status: 'failed', error })
    })

    await t.test('a cursor at the checkpoint goes on without a reset', async (t) => {
      const { run, checkpoint, commit } = await begin()
      await checkpoint([textPart('Hello')], '1-4')
      const viewer = watch(run, '1-4')
      await viewer.caughtUp()
      t.same(viewer.entries, [])
      await commit([textPart('Hello you')], { lastSeq: 8 })
      t.same(shape(await viewer.next()), ['delta 1-7', 'done 1-8'])
      t.match(viewer.entries[0]?.event.data, { offset: 5, text: ' you' })
    })

    await t.test('a cursor behind the checkpoint gets a reset', async (t) => {
      const { run, checkpoint } = await begin()
      await checkpoint([textPart('Hello')], '1-4')
      const viewer = watch(run, '1-3')
      t.same(shape(await viewer.next()), ['reset 1-4'])
      t.match(viewer.entries[0]?.event.data, { parts: [textPart('Hello')], cursor: '1-4', message_id: run.message_id })
      viewer.abort.abort()
      t.same(await viewer.next(), [])
    })

    await t.test('a cursor ahead of the checkpoint waits until the checkpoints have come there', async (t) => {
      const { run, checkpoint, commit } = await begin()
      await checkpoint([textPart('Hel')], '1-3')
      const viewer = watch(run, '1-5')
      const first = viewer.next()
      await checkpoint([textPart('Hello')], '1-5')
      await checkpoint([textPart('Hello you')], '1-8')
      const [entry] = await first
      // It may have looked between the two checkpoints, or only after both.
      if (entry?.event.type === 'delta') t.match(entry.event.data, { offset: 5, text: ' you' })
      else t.same(foldEvents(viewer.entries), [textPart('Hello you')])
      t.equal(entry?.seq, 8)
      await commit([textPart('Hello you')], { lastSeq: 9 })
      t.same(shape(await viewer.next()), ['done 1-9'])
    })

    await t.test('a cursor ahead of a run that ends without reaching it gets a reset', async (t) => {
      const { run, checkpoint, commit } = await begin()
      await checkpoint([textPart('Hel')], '1-3')
      const viewer = watch(run, '1-50')
      const first = viewer.next()
      await commit([textPart('Hello')], { lastSeq: 6 })
      t.same(shape(await first), ['reset 1-5', 'done 1-6'])
    })

    await t.test('a run that was taken over ends in its new generation, with the text it had', async (t) => {
      const { run, checkpoint } = await begin()
      await checkpoint([textPart('Half')], '1-4')
      const [holds, ahead] = [watch(run), watch(run, '1-9')]
      await holds.next()
      await holds.next()
      const reset = ahead.next()
      await db.rows(sql`update chat_runs set generation = 2 where id = ${run.id}::uuid`)
      await commitRun(db, run.id, 2, endingOf([textPart('Half')], { status: 'interrupted', lastSeq: 2 }))
      t.same(shape(await holds.next()), ['done 2-2'], 'who holds the text needs nothing more')
      t.same(shape(await reset), ['reset 2-1', 'done 2-2'], 'who held more is told that it is gone')
      t.same(foldEvents(ahead.entries), [textPart('Half')])
    })

    await t.test(
      'while a takeover puts the text together, who was shown more than is stored is told nothing',
      async (t) => {
        for (const stored of [[textPart('Hel')], []]) {
          const { run, checkpoint } = await begin()
          await checkpoint(stored, '1-3')
          const viewer = watch(run, '1-9', { ...deps, aheadMs: 0 })
          await db.rows(sql`update chat_runs set generation = 2 where id = ${run.id}::uuid`)
          await viewer.caughtUp()
          await viewer.caughtUp()
          t.same(viewer.entries, [], 'a reset now would stand in the place of the real one, with fewer words')
          await commitRun(db, run.id, 2, endingOf([textPart('Hello')], { status: 'interrupted', lastSeq: 2 }))
          t.same(shape(await viewer.next()), ['reset 2-1', 'done 2-2'])
          t.same(foldEvents(viewer.entries), [textPart('Hello')])
        }
      },
    )

    await t.test('a stored reply that is less than what was shown is told with a reset', async (t) => {
      for (const less of [
        [textPart('Hello')],
        [textPart('Hel')],
        [],
        [{ kind: 'reasoning' as const, text: 'Hello' }],
      ]) {
        const { run, checkpoint, commit } = await begin()
        await checkpoint([textPart('Hello'), { kind: 'reasoning', text: 'Hm' }], '1-4')
        const viewer = watch(run)
        await viewer.next()
        await viewer.next()
        await commit(less, { lastSeq: 8 })
        t.same(shape(await viewer.next()), ['reset 1-7', 'done 1-8'])
        t.same(foldEvents(viewer.entries), less)
      }
    })

    await t.test('a tool call that did not change costs no reset', async (t) => {
      const { run, checkpoint, commit } = await begin()
      const call: Part = {
        kind: 'tool_call',
        text: '{"b":1,"a":[2]}',
        call_id: 'c',
        name: 'f',
        input: { b: 1, a: [2] },
      }
      await checkpoint([call, textPart('So')], '1-4')
      const viewer = watch(run)
      await viewer.next()
      t.same(typesOf(await viewer.next()), ['reset'])
      await commit([call, textPart('So it is')], { lastSeq: 8 })
      t.same(shape(await viewer.next()), ['delta 1-7', 'done 1-8'])
      t.same(foldEvents(viewer.entries), [call, textPart('So it is')])
    })

    await t.test('a database that goes away and comes back is waited for', async (t) => {
      const { run, checkpoint, commit } = await begin()
      await checkpoint([textPart('Hel')], '1-3')
      const viewer = watch(run)
      await viewer.next()
      await viewer.next()
      away = true
      asked = Promise.withResolvers()
      const next = viewer.next()
      await asked.promise
      await commit([textPart('Hello')], { lastSeq: 6 })
      asked = Promise.withResolvers()
      await asked.promise
      away = false
      t.same(shape(await next), ['delta 1-5', 'done 1-6'])
      t.same(foldEvents(viewer.entries), [textPart('Hello')])
    })

    await t.test('a run that was purged ends its viewers without a done', async (t) => {
      const { run } = await begin()
      const viewer = watch(run)
      await viewer.next()
      await db.rows(sql`delete from chat_sessions where id = ${run.session_id}::uuid`)
      t.same(await viewer.next(), [])
    })

    await t.test('a viewer of a log that is let go continues from the database, exactly', async (t) => {
      await endViewers()
      const { run, commit } = await begin()
      log.append([{ runId: run.id, entries: deltas(1, 3) }])
      const viewer = watch(run)
      await viewer.next()
      t.equal(log.watched, 1)
      const waiting = viewer.next()
      await commit([textPart('1-1;1-2;1-3;and on')], { lastSeq: 6 })
      log.forget(run.id)
      await waiting
      await viewer.all()
      t.equal(log.watched, 0, 'and watches no longer')
      t.equal(viewer.entries.filter(({ event }) => event.type === 'done').length, 1)
      t.same(foldEvents(viewer.entries), [textPart('1-1;1-2;1-3;and on')])
    })

    await t.test('a log that does not hold the beginning is no silence: the database tells', async (t) => {
      const { run, commit } = await begin()
      log.append([{ runId: run.id, entries: [delta(5), delta(6)] }])
      await commit([textPart('All')], { lastSeq: 8 })
      for (const after of [undefined, '1-2']) {
        const entries = await watch(run, after).all()
        t.same(typesOf(entries), after === undefined ? ['run', 'delta', 'done'] : ['reset', 'done'])
        t.same(foldEvents(entries), [textPart('All')])
      }
      log.forget(run.id)
    })

    await t.test('a cursor that the log cannot serve gets a reset from the log, and goes on from there', async (t) => {
      await endViewers()
      const { run } = await begin()
      log.append([{ runId: run.id, entries: deltas(1, 3) }])
      for (const after of ['1-9', '3-1', '0-1']) {
        const viewer = watch(run, after)
        t.same(shape(await viewer.next()), ['reset 1-3'], after)
        t.same(foldEvents(viewer.entries), [textPart('1-1;1-2;1-3;')])
        viewer.abort.abort()
        await viewer.all()
      }
      t.equal(log.watched, 0)
      log.forget(run.id)
    })

    await t.test('an aborted viewer ends, wherever it waits', async (t) => {
      await endViewers()
      const { run } = await begin()
      const stored = watch(run)
      await stored.caughtUp()
      const polling = stored.all()
      stored.abort.abort()
      await polling
      log.append([{ runId: run.id, entries: deltas(1, 3) }])
      const live = watch(run)
      await live.next()
      const waiting = live.all()
      live.abort.abort()
      await waiting
      t.equal(log.watched, 0)
      log.forget(run.id)
      const late = new AbortController()
      late.abort()
      for await (const batch of followRun(deps, run, undefined, late.signal)) t.fail(`got ${batch.entries.length}`)
    })

    await t.test(
      'at the end of a log events are taken within the append, and what is not taken is yielded',
      async (t) => {
        await endViewers()
        const { run } = await begin()
        log.append([{ runId: run.id, entries: deltas(1, 2) }])
        const taken: string[] = []
        const yielded: string[] = []
        let room = 0
        const take = (entries: readonly LogEntry[]): number => {
          const some = entries.slice(0, room)
          room -= some.length
          taken.push(...some.map(formatEventId))
          return some.length
        }
        const abort = new AbortController()
        const batches = followRun(deps, run, undefined, abort.signal, take)
        const read = async (): Promise<void> => {
          const { value } = await batches.next()
          yielded.push(...(value?.entries ?? []).map(formatEventId))
          if (value !== undefined && value.entries.length > 0) await read()
        }
        await read()
        t.same(yielded, ['1-1', '1-2'], 'what was there before, joined')
        // From here on the iteration waits for the next events.
        let waiting = read()
        await new Promise((resolve) => setImmediate(resolve))
        room = 2
        log.append([{ runId: run.id, entries: [delta(3)] }])
        t.same(taken, ['1-3'], 'when the append returns, it is shown')
        log.append([{ runId: run.id, entries: [delta(4)] }])
        t.same(taken, ['1-3', '1-4'])
        room = 0
        log.append([{ runId: run.id, entries: [delta(5)] }])
        room = 9
        log.append([{ runId: run.id, entries: [delta(6)] }])
        t.same(taken, ['1-3', '1-4'], 'once it could not take something, it gets the rest in its turn')
        await waiting
        t.same(yielded, ['1-1', '1-2', '1-6'], 'joined, and without what it has')
        waiting = read()
        await new Promise((resolve) => setImmediate(resolve))
        log.append([{ runId: run.id, entries: [done(7)] }])
        await waiting
        t.same(taken, ['1-3', '1-4'], 'the end is never passed by')
        t.same(yielded.at(-1), '1-7')
        log.forget(run.id)
      },
    )

    await t.test('a consumer that throws is told by its iteration, and the log hears nothing of it', async (t) => {
      const { run } = await begin()
      log.append([{ runId: run.id, entries: deltas(1, 2) }])
      const batches = followRun(deps, run, undefined, new AbortController().signal, () => {
        throw new Error('of the consumer')
      })
      for (let more = true; more; ) more = ((await batches.next()).value?.entries.length ?? 0) > 0
      const failing = t.rejects(batches.next(), { message: 'of the consumer' })
      await new Promise((resolve) => setImmediate(resolve))
      log.append([{ runId: run.id, entries: [delta(3)] }])
      await failing
      t.equal(log.watched, 0)
      log.forget(run.id)
    })

    await t.test(
      'whatever is said and whenever it is stored, a viewer from any cursor ends with the message',
      async (t) => {
        for (let seed = 1; seed <= 10; seed += 1) {
          const random = createRandom(seed)
          const { run, checkpoint, commit } = await begin()
          const draft = createDraft()
          const told: LogEntry[] = [{ generation: 1, seq: 1, event: { type: 'progress' } as never }]
          const viewers = [{ viewer: watch(run), before: [] as LogEntry[] }]
          const running: Promise<unknown>[] = [viewers[0]?.viewer.all() ?? Promise.resolve()]
          for (let step = 0; step < 12; step += 1) {
            const events: UpstreamEvent[] = [
              { type: 'text', text: random.pick(['a', 'word ', '👩‍👩‍👧']) },
              { type: 'reasoning', text: 'hm ' },
              { type: 'tool_call', key: random.pick(['0', '1']), arguments: random.pick(['{', '}', '']), name: 'f' },
            ]
            draft.apply(random.integer(3) > 0 ? (events[0] as UpstreamEvent) : random.pick(events))
            for (const event of draft.takeEvents()) told.push({ generation: 1, seq: told.length + 1, event })
            if (random.integer(2) === 0) await checkpoint(structuredClone(draft.parts) as Part[], `1-${told.length}`)
            if (random.integer(4) === 0) {
              const cursor = 1 + random.integer(told.length)
              const viewer = watch(run, `1-${cursor}`)
              viewers.push({ viewer, before: told.slice(0, cursor) })
              running.push(viewer.all())
            }
          }
          draft.endStep()
          for (const event of draft.takeEvents()) told.push({ generation: 1, seq: told.length + 1, event })
          await commit(draft.parts, { content: draft.content, lastSeq: told.length + 1 })
          await Promise.all(running)
          for (const { viewer, before } of viewers) {
            t.same(foldEvents([...before, ...viewer.entries]), draft.parts, `seed ${seed}, after ${before.length}`)
            const ids = viewer.entries.map(({ seq }) => seq)
            t.ok(
              ids.every((seq, index) => index === 0 || seq > (ids[index - 1] ?? 0)),
              'ids rise',
            )
            t.equal(viewer.entries.filter(({ event }) => event.type === 'done').length, 1)
          }
        }
      },
    )
  })
}
