/** The operator's check, `npm run verify`, as a program against a gateway: it passes, and it can fail. */
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import postgres from 'postgres'
import { test } from 'tap'
import { say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { openServer } from '../support/cluster.ts'
import { createTestDatabase } from '../support/database.ts'
import { createFolder, spawnGateway, startGateway, untilReady } from '../support/gateway.ts'
import { skipFaults } from '../support/limits.ts'
import { connectRedis } from '../support/redis.ts'

const script = new URL('../../scripts/verify-persistence.ts', import.meta.url).pathname

async function verify(url: string, ...options: readonly string[]): Promise<{ code: number; output: string }> {
  try {
    const { stdout } = await promisify(execFile)(process.execPath, [script, url, ...options], {
      env: { PATH: process.env.PATH },
    })
    return { code: 0, output: stdout }
  } catch (error) {
    const { code, stdout } = error as { code: number; stdout: string }
    return { code, output: stdout }
  }
}

test('save, read, update, list, complete and filter are verified from outside', async (t) => {
  const upstream = await startFakeUpstream({ script: () => say({ tokens: 30 }) })
  t.teardown(() => upstream.close())
  const gateway = await startGateway(t, { env: { OPENAI_BASE_URL: upstream.url } })
  const { code, output } = await verify(gateway.url)
  t.equal(code, 0, output)
  for (const word of ['save', 'read', 'update', 'list', 'complete', 'filter']) {
    t.match(output, new RegExp(`^ok +\\d+\\. ${word}: `, 'm'))
  }

  upstream.answer(() => say({ tokens: 0 }))
  const empty = await verify(gateway.url)
  t.equal(empty.code, 1, 'a reply without a word does not pass')
  t.match(empty.output, /^FAIL \d+\. complete: /m)
})

test('list and histories outlive a restart of the gateway, and the loss of all that Redis held', {
  skip: skipFaults(),
}, async (t) => {
  const upstream = await startFakeUpstream({ script: () => say({ tokens: 30 }) })
  t.teardown(() => upstream.close())
  const server = await openServer(t, 'redis')
  const redis = connectRedis(t, server.url)
  const { url: DATABASE_URL } = await createTestDatabase(t)
  const env = { DATABASE_URL, DATABASE_POOL: '3', REDIS_URL: server.url, OPENAI_BASE_URL: upstream.url }
  const file = join(await createFolder(t), 'saved.json')

  const first = await spawnGateway(t, env)
  await untilReady(first.url)
  const saved = await verify(first.url, `--save=${file}`)
  t.equal(saved.code, 0, saved.output)
  t.match(saved.output, /^Saved 1 sessions/m)
  first.process.kill('SIGTERM')
  t.equal(await first.exited, 0)

  const second = await spawnGateway(t, env)
  await untilReady(second.url)
  await redis.set('another', 'stays')
  const checked = await verify(second.url, `--check=${file}`, `--redis=${server.url}`)
  t.equal(checked.code, 0, checked.output)
  t.match(checked.output, /^Deleted [1-9]\d* keys/m)
  for (const word of ['restart', 'redis'])
    t.match(checked.output, new RegExp(`^ok +\\d+\\. ${word}: so is each history`, 'm'))
  t.equal(await redis.get('another'), 'stays')

  const sql = postgres(DATABASE_URL, { max: 1, onnotice: () => undefined })
  await sql`update chat_messages set content = content || '!' where role = 'assistant'`
  await sql.end()
  await redis.flushall()
  const spoilt = await verify(second.url, `--check=${file}`)
  t.equal(spoilt.code, 1, 'a word more does not pass')
  t.match(spoilt.output, /^FAIL \d+\. restart: so is each history/m)
})

test('a gateway that is not there fails the check', async (t) => {
  const { code, output } = await verify('http://127.0.0.1:9')
  t.equal(code, 1)
  t.match(output, /^FAIL /m)
})
