/**
 * The services the test command promises are really there: they answer through the drivers that the gateway uses.
 */
import { readFileSync } from 'node:fs'
import { Redis } from 'ioredis'
import postgres from 'postgres'
import t from 'tap'
import { startRedis } from '../scripts/servers.ts'

const embeddedOnly = process.env.TEST_EMBEDDED_ONLY === '1' ? 'TEST_EMBEDDED_ONLY=1: no Postgres and no Redis' : false

t.test('TEST_DATABASE_URL answers select version()', { skip: embeddedOnly }, async (t) => {
  const sql = postgres(process.env.TEST_DATABASE_URL ?? '', { max: 1, connect_timeout: 5 })
  t.teardown(() => sql.end({ timeout: 1 }))
  const [row] = await sql<{ version: string }[]>`select version()`
  t.match(row?.version, /^PostgreSQL \d+/)
})

t.test('TEST_REDIS_URL answers PING', { skip: embeddedOnly }, async (t) => {
  const redis = new Redis(process.env.TEST_REDIS_URL ?? '', { maxRetriesPerRequest: 1 })
  t.teardown(() => redis.disconnect())
  t.equal(await redis.ping(), 'PONG')
})

t.test(
  'a Redis that a test starts is known by the name of the run, so that the end of the run finds it',
  {
    skip: process.platform === 'linux' ? embeddedOnly : 'only Linux tells the environment of a process',
  },
  async (t) => {
    const server = await startRedis('redis-server', AbortSignal.timeout(20_000))
    t.teardown(() => server.close())
    const environment = readFileSync(`/proc/${server.pid}/environ`, 'utf8').split('\0')
    t.ok(environment.includes(`TEST_RUN=${process.env.TEST_RUN}`))
  },
)
