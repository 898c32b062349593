/**
 * Messages that come in at the very moment of a shutdown: each is refused, or it is accepted and then its run is made to
 * an end that its viewer is told and the database holds. None is accepted and then forgotten.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'
import postgres from 'postgres'
import { test } from 'tap'
import { say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { createClient, isDone } from '../support/client.ts'
import { createTestDatabase, databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'

const skip = databases().includes('postgres') ? false : 'TEST_EMBEDDED_ONLY=1: no Postgres to look into afterwards'
const rounds = 12
const messagesOfEach = 6

for (const drainMs of ['5000', '0']) {
  test(`with DRAIN_MS=${drainMs}, no accepted message is forgotten by a shutdown`, { skip }, async (t) => {
    const upstream = await startFakeUpstream({ script: () => say({ tokens: 5 }) })
    t.teardown(() => upstream.close())
    const { url } = await createTestDatabase(t)
    const env = { DATABASE_URL: url, OPENAI_BASE_URL: upstream.url, DRAIN_MS: drainMs }
    let accepted = 0
    for (let round = 0; round < rounds; round += 1) {
      const gateway = await startGateway(t, { env })
      // A connection that was refused at the socket is an answer, too.
      const sends = Promise.allSettled(
        Array.from({ length: messagesOfEach }, async (_, n) => {
          const stream = await createClient(gateway.url).send({ message: `${round} ${n}` })
          if (stream.status !== 200) return
          accepted += 1
          await stream.ended
          t.equal(stream.received.filter(isDone).length, 1, 'who was told 200 is told the end')
        }),
      )
      // Each round closes a little later, so that the shutdown meets the messages at every stage.
      for (let turn = 0; turn < round * 3; turn += 1) await nextTurn()
      await gateway.close()
      await sends
    }
    const sql = postgres(url, { max: 1, onnotice: () => undefined })
    const runs = await sql`select status, count(*)::int as n from chat_runs group by status order by status`
    await sql.end()
    t.comment(`${accepted} of ${rounds * messagesOfEach} accepted: ${JSON.stringify(runs)}`)
    t.notOk(
      runs.some(({ status }) => status === 'running'),
      'no run is left without a process',
    )
    t.ok(accepted > 0, 'some were accepted')
    if (drainMs !== '0')
      t.same(
        runs.map(({ status }) => status),
        ['completed'],
        'and those had the time to end',
      )
  })
}
