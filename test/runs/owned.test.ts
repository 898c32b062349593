/** The runs of a process at its end: whatever fails while they are handed over, the process ends. */
import { randomUUID } from 'node:crypto'
import { test } from 'tap'
import { Problem } from '../../src/errors.ts'
import { createFrames } from '../../src/log/frames.ts'
import { createMemoryLog } from '../../src/log/memory.ts'
import { createOwnedRuns } from '../../src/runs/owned.ts'
import type { ActiveRun } from '../../src/runs/run.ts'
import type { UpstreamEvent } from '../../src/upstream/upstream.ts'
import { databases } from '../support/database.ts'
import { openLedger, openStore, silent } from '../support/runs.ts'

for (const kind of databases()) {
  test(`on ${kind}, a drain ends whether or not its runs can be released`, async (t) => {
    const { db, accept, runs } = await openStore(t, kind)
    for (const fails of [false, true]) {
      const log = createMemoryLog()
      const spoken = Promise.withResolvers<void>()
      const instanceId = randomUUID()
      async function* makeReply({ signal }: ActiveRun): AsyncGenerator<UpstreamEvent> {
        yield { type: 'text', text: 'So far' }
        spoken.resolve()
        await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason)))
      }
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
