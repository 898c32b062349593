/**
 * The services the test command promises are really there: they answer through the drivers that the gateway uses.
 */
import { Redis } from 'ioredis'
import postgres from 'postgres'
import t from 'tap'

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
