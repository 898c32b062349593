/**
 * Starts that meet something else than they expect: a schema of a newer version, which an older program must not touch
 * (row 31 of the table of faults), and a Redis that is not there yet (row 32).
 */
import { execFile } from 'node:child_process'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Test, test } from 'tap'
import type { Db } from '../../src/db/db.ts'
import { sql } from '../../src/db/drizzle.ts'
import { openPglite } from '../../src/db/pglite.ts'
import { openPostgres } from '../../src/db/postgres.ts'
import { createTestDatabase, type DatabaseKind, databases } from '../support/database.ts'
import { createFolder } from '../support/gateway.ts'
import { nowMs } from '../support/history.ts'
import { skipFaults } from '../support/limits.ts'
import { readHealth, startRedisScene } from '../support/redis-scene.ts'

const startMs = 60_000
/** A migration that this program does not bring. */
const later = 4_000_000_000_000

for (const kind of databases()) {
  test(`row 31: on ${kind}, an older program refuses a newer schema: it says so, ends with 1 and changes nothing`, async (t) => {
    const { env, open } = await place(t, kind)
    const newer = await open()
    await newer.migrate()
    await newer.rows(
      sql`insert into drizzle.__drizzle_migrations (hash, created_at) values ('later', ${later}::bigint)`,
    )
    const before = await newer.rows(sql`select * from drizzle.__drizzle_migrations order by created_at`)
    await newer.close()

    for (const args of [[], ['migrate']]) {
      const { code, output } = await runGateway(args, env)
      t.equal(code, 1, `${['start', ...args].join(' ')} ends with 1`)
      t.match(output, /newer version of this program/)
    }

    const after = await open()
    t.teardown(() => after.close())
    t.same(await after.rows(sql`select * from drizzle.__drizzle_migrations order by created_at`), before)
    t.same(await after.rows(sql`select count(*)::int as count from instances`), [{ count: 0 }], 'no lease was taken')
  })
}

test('row 32: gateways start without Redis: ready, degraded and streaming; when it comes, they share what is being said', {
  skip: skipFaults(),
}, async (t) => {
  const scene = await startRedisScene(t, { redisDown: true })
  const { here, elsewhere, cluster } = scene
  const over = scene.begin('redis away')
  for (const gateway of [here, elsewhere]) {
    t.match(await readHealth(gateway), { status: 200, ok: true, degraded: true, reason: /^Redis cannot be written/ })
  }
  const talks = await scene.talk('r32')
  scene.comeBack(talks, 500)
  await sleep(3_000)
  await cluster.redis.restart(AbortSignal.timeout(startMs))
  over()
  await scene.untilWell(talks, nowMs())
  await scene.end(talks)
  await scene.finish(t)
})

interface Place {
  readonly env: Readonly<Record<string, string>>
  open(): Promise<Db>
}

/** An empty database, for processes and for this one, one after the other. */
async function place(t: Test, kind: DatabaseKind): Promise<Place> {
  if (kind === 'pglite') {
    const folder = await createFolder(t)
    return { env: { DATA_DIR: folder }, open: () => openPglite(folder) }
  }
  const { url } = await createTestDatabase(t)
  return { env: { DATABASE_URL: url }, open: async () => openPostgres({ url, unpooledUrl: url, poolSize: 2 }) }
}

/** Runs the program to its end. */
function runGateway(args: readonly string[], env: Readonly<Record<string, string>>) {
  return new Promise<{ code: number | string | undefined; output: string }>((resolve) => {
    execFile(
      process.execPath,
      ['src/main.ts', ...args],
      {
        cwd: new URL('../..', import.meta.url).pathname,
        env: { PATH: process.env.PATH ?? '', PORT: '0', HOST: '127.0.0.1', ...env },
        timeout: startMs,
        killSignal: 'SIGKILL',
      },
      (error, stdout, stderr) =>
        resolve({ code: error === null ? 0 : (error.code ?? undefined), output: stdout + stderr }),
    )
  })
}
