/**
 * The runs of a process: nothing of them is left in checkpoints when they have ended, and at its end, whatever fails
 * while they are handed over, the process ends.
 */
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import postgres from 'postgres'
import { test } from 'tap'
import { compile, type Db } from '../../src/db/db.ts'
import { Problem } from '../../src/errors.ts'
import { createFrames } from '../../src/log/frames.ts'
import { createMemoryLog } from '../../src/log/memory.ts'
import { createOwnedRuns } from '../../src/runs/owned.ts'
import type { MakeReply } from '../../src/runs/reply.ts'
import { createKeep } from '../../src/runs/show.ts'
import { databases } from '../support/database.ts'
import { countRows, createOwner, openLedger, openStore, silent } from '../support/runs.ts'

/** The runs of one process, whose checkpoint clock never ticks: first words and a drain bring about a checkpoint. */
function openOwned(db: Db, makeReply: MakeReply) {
  const log = createMemoryLog()
  const instanceId = randomUUID()
  const owned = createOwnedRuns({
    db,
    log,
    frames: createFrames(log, 1),
    instanceId,
    checkpointMs: 60_000,
    logger: silent,
    createLedger: openLedger,
    makeReply,
  })
  return { owned, log, instanceId }
}

for (const kind of databases()) {
  test(`on ${kind}, a drain ends whether or not its runs can be released`, async (t) => {
    const { db, accept, runs } = await openStore(t, kind)
    for (const fails of [false, true]) {
      const spoken = Promise.withResolvers<void>()
      const makeReply: MakeReply = async ({ signal }, tell) => {
        tell({ type: 'text', text: 'So far' })
        spoken.resolve()
        await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)))
      }
      const { owned, log, instanceId } = openOwned(db, makeReply)
      const run = await accept({ instanceId })
      owned.start(run)
      await spoken.promise
      const handed: string[] = []
      await owned.drain(0, async () => async (ids) => {
        handed.push(...ids)
        if (fails) throw new Problem('db_unavailable')
      })
      t.same(handed, [run.id])
      t.match(await runs.reread(run.id), { status: 'running', generation: 1 }, 'it is left to whoever takes it over')
      await log.close()
    }
  })
}

test('who comes to a run that was left keeps it, and who leaves it again has the whole while again', async (t) => {
  const { db, accept, runs } = await openStore(t, 'pglite')
  const owner = createOwner()
  const lingerMs = 150
  const { owned, log, instanceId } = openOwned(db, async ({ signal }, tell) => {
    tell({ type: 'text', text: 'So far' })
    await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)))
  })
  const begin = async () => {
    const run = await accept({ owner, instanceId, body: { on_disconnect: 'stop', linger_ms: lingerMs } })
    owned.start(run)
    return run
  }
  const [kept, left] = [await begin(), await begin()]
  owned.countViewer(kept)(true)
  await createKeep({ runs, owned })(owner, kept)
  owned.countViewer(left)(true)
  await sleep(lingerMs / 2)
  const leave = owned.countViewer(left)
  const leftAt = performance.now()
  leave(true)
  await owned.ended(left.id)
  // A timer may be early by a part of a millisecond.
  t.ok(performance.now() - leftAt > lingerMs - 2, 'not when the one who left before would have had it stopped')
  t.match(await runs.reread(left.id), { status: 'stopped' })
  t.match(await runs.reread(kept.id), { status: 'running', on_disconnect: 'stop' }, 'left earlier, and kept')
  owned.countViewer(kept)(true)
  await owned.ended(kept.id)
  t.match(await runs.reread(kept.id), { status: 'stopped' }, 'until it is left once more')
  await owned.drain(0, async () => undefined)
  await log.close()
})

for (const kind of databases().filter((kind) => kind === 'postgres')) {
  test(`on ${kind}, a checkpoint and a commit that cross each other leave nothing behind`, async (t) => {
    const { db, url = '', accept, runs } = await openStore(t, kind)
    const finished = Promise.withResolvers<void>()
    const makeReply: MakeReply = async (_, tell) => {
      tell({ type: 'text', text: 'All of it' })
      await finished.promise
    }
    const { owned, log, instanceId } = openOwned(db, makeReply)
    const run = await accept({ instanceId })
    const other = postgres(url, { max: 2 })
    t.teardown(() => other.end())
    const untilWaiting = async (count: number): Promise<void> => {
      for (let tries = 0; tries < 500; tries += 1) {
        const [row] = await other`select count(*)::int as waiting from pg_stat_activity
          where datname = current_database() and wait_event_type = 'Lock'`
        if (row?.waiting === count) return
        await sleep(10)
      }
      t.fail(`${count} statements never waited`)
    }
    await other.begin(async (holder) => {
      // Both need the run's row: the checkpoint when its rows are there already, the commit when it has begun to look.
      await holder`select from chat_runs where id = ${run.id} for update`
      owned.start(run)
      await untilWaiting(1)
      finished.resolve()
      await untilWaiting(2)
    })
    await owned.ended(run.id)
    t.match(await runs.reread(run.id), { status: 'completed' })
    const left = () => countRows(db, 'run_checkpoints', run.id)
    for (let tries = 0; tries < 500 && (await left()) !== 0; tries += 1) await sleep(10)
    t.equal(await left(), 0)
    await owned.drain(0, async () => undefined)
    await log.close()
  })
}

for (const kind of databases()) {
  test(`on ${kind}, checkpoints do not wait for what is cleared behind others`, async (t) => {
    const { db, accept } = await openStore(t, kind)
    const [writes, clears] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
    const [isWriting, isClearing] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
    const slow: Db = {
      ...db,
      async rows(statement) {
        const { text } = compile(statement)
        if (text.includes('insert into run_checkpoints')) {
          isWriting.resolve()
          await writes.promise
        }
        if (/^\s*delete from run_checkpoints/.test(text)) {
          isClearing.resolve()
          await clears.promise
        }
        return db.rows(statement)
      },
    }
    const finished = Promise.withResolvers<void>()
    const { owned, log, instanceId } = openOwned(slow, async ({ runId, signal }, tell) => {
      tell({ type: 'text', text: 'Words' })
      if (runId === first.id) await finished.promise
      else await new Promise((resolve) => signal.addEventListener('abort', resolve))
    })
    const [first, second] = [await accept({ instanceId }), await accept({ instanceId })]
    owned.start(first)
    await isWriting.promise
    finished.resolve()
    await owned.ended(first.id)
    writes.resolve()
    await isClearing.promise
    owned.start(second)
    for (let tries = 0; tries < 500 && (await countRows(db, 'run_checkpoints', second.id)) === 0; tries += 1)
      await sleep(10)
    t.equal(await countRows(db, 'run_checkpoints', second.id), 1, 'the other one has its checkpoint')
    clears.resolve()
    await owned.drain(0, async () => undefined)
    await log.close()
  })
}
