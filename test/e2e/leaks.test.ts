/**
 * A gateway that was used roughly leaves nothing behind in its process: no timer, no socket, no listener that warns. What
 * was open before it started is open after it has closed, and nothing else.
 */
import { once } from 'node:events'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { test } from 'tap'
import { say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { createClient, isDelta } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'

const rounds = 5
const streamsOfEach = 8

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
    t.same(openResources(), before)
    t.same(warnings, [])
  })
}

async function useAndClose(t: Parameters<typeof startGateway>[0], database: 'pglite' | 'postgres'): Promise<void> {
  const upstream = await startFakeUpstream({ script: () => say({ tokens: 200, paceMs: 2 }) })
  const gateway = await startGateway(t, { database, env: { OPENAI_BASE_URL: upstream.url } })
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
  const closed = once(gateway.app.server.server, 'close')
  await gateway.close()
  await closed
  await upstream.close()
  await nextTurn()
}

function openResources(): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const name of process.getActiveResourcesInfo()) {
    // One turn of the event loop is always under way.
    if (name === 'Immediate') continue
    counts[name] = (counts[name] ?? 0) + 1
  }
  return counts
}
