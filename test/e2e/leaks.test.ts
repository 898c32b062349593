/**
 * A gateway that was used roughly leaves nothing behind in its process: no timer, no socket, no listener that warns. What
 * was open before it started is open after it has closed, and nothing else.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'
import { promisify } from 'node:util'
import postgres from 'postgres'
import { type Test, test } from 'tap'
import { say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { createClient, isDelta } from '../support/client.ts'
import { createTestDatabase, databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'

const rounds = 3
const streamsOfEach = 8
const looksMax = 40

for (const database of databases()) {
  test(`on ${database}, nothing is left open after streams that ended in every way`, async (t) => {
    const warnings: string[] = []
    const warn = (warning: Error) => warnings.push(`${warning.name}: ${warning.message}`)
    process.on('warning', warn)
    t.teardown(() => process.off('warning', warn))
    // The first gateway of a process opens what stays: workers of the file system, the client's own pool.
    await useAndClose(t, database)
    const before = openResources()
    await useAndClose(t, database)
    t.same(openResources(), before, 'timers, servers and pipes')
    t.same(warnings, [])
  })
}

async function useAndClose(t: Test, database: 'pglite' | 'postgres'): Promise<void> {
  const upstream = await startFakeUpstream({ script: () => say({ tokens: 200, paceMs: 2 }) })
  const { url } = database === 'postgres' ? await createTestDatabase(t) : { url: '' }
  const env = { OPENAI_BASE_URL: upstream.url, ...(url === '' ? {} : { DATABASE_URL: url }) }
  const gateway = await startGateway(t, { env })
  for (let round = 0; round < rounds; round += 1) {
    const client = createClient(gateway.url)
    await client.get('/api/v1/sessions')
    const streams = await Promise.all(
      Array.from({ length: streamsOfEach }, (_, n) => client.send({ message: `${round} ${n}` })),
    )
    await Promise.all(
      streams.map(async (stream, n) => {
        await stream.until(isDelta)
        if (n % 3 === 0) stream.close()
        if (n % 3 === 1) await client.post(`/api/v1/runs/${stream.headers.get('x-run-id')}/stop`)
        await stream.ended
      }),
    )
  }
  const { server } = gateway.app.server
  await gateway.close()
  t.equal(server.listening, false)
  t.equal(await promisify(server.getConnections.bind(server))(), 0, 'no viewer is left')
  await upstream.drained()
  t.equal(upstream.socketCount, 0, 'no provider is still connected')
  if (url !== '') t.equal(await countConnections(url), 0, 'no connection to Postgres is left')
  await upstream.close()
  await nextTurn()
}

/** @returns the gateway's connections; a backend ends a moment after its client, so it is asked a few times */
async function countConnections(url: string): Promise<number> {
  const sql = postgres(url, { max: 1, onnotice: () => undefined })
  let open = 0
  for (let look = 0; look < looksMax; look += 1) {
    const [row] = await sql`select count(*)::int as open, pg_sleep(0.05)::text from pg_stat_activity
      where application_name = 'verbatim' and datname = current_database()`
    open = row?.open
    if (open === 0) break
  }
  await sql.end()
  return open
}

function openResources(): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const name of process.getActiveResourcesInfo()) {
    // One turn of the event loop is always under way, and sockets are counted where they belong: the client of this test
    // keeps some of its own.
    if (name === 'Immediate' || name === 'TCPSocketWrap') continue
    counts[name] = (counts[name] ?? 0) + 1
  }
  return counts
}
