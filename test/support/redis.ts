/**
 * Redis logs for tests, on the run's Redis under a key prefix of the test's own, or on a private server that the test
 * may kill. Both end with the test and leave nothing behind.
 */
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { type AddressInfo, createServer } from 'node:net'
import { Redis } from 'ioredis'
import type { Test } from 'tap'
import { type Server, startRedis } from '../../scripts/servers.ts'
import { openRedisLog, type RedisLog, type RedisLogOptions } from '../../src/log/redis.ts'

type Teardown = Pick<Test, 'teardown'>

/** A reason when the run goes without Redis, for `skip`. */
export const withoutRedis =
  process.env.TEST_EMBEDDED_ONLY === '1' ? 'TEST_EMBEDDED_ONLY=1: there is no Redis' : (false as const)

/** The run's Redis. @throws when there is none */
export function sharedRedis(): string {
  const url = process.env.TEST_REDIS_URL
  if (url === undefined || url === '') throw new Error('run npm test, or set TEST_REDIS_URL')
  return url
}

/** A prefix that nobody else uses; what has it is deleted when the test ends. */
export function createPrefix(t: Teardown, url: string): string {
  const prefix = `${process.env.TEST_RUN ?? 'verbatim_test'}:${randomUUID()}`
  t.teardown(async () => {
    const redis = new Redis(url)
    const keys = await redis.keys(`${prefix}:*`)
    if (keys.length > 0) await redis.del(...keys)
    redis.disconnect()
  })
  return prefix
}

export interface OpenedRedisLog extends ReturnType<typeof openRedisLog> {
  readonly instanceId: string
  /** What was logged, oldest first. */
  readonly said: readonly string[]
  /** Resolves when `is` holds, which is looked at whenever something changes. */
  until(is: (log: RedisLog) => boolean): Promise<void>
}

type Options = Pick<RedisLogOptions, 'url'> & Partial<RedisLogOptions>

/** Opens a log, as a process does; it is closed when the test ends. Not connected yet. */
export function openLog(t: Teardown, options: Options): OpenedRedisLog {
  const said: string[] = []
  const waiting = new Set<() => void>()
  const say = (facts: unknown, text?: string) => void said.push(text ?? String(facts))
  const instanceId = options.instanceId ?? randomUUID()
  const opened = openRedisLog({
    ttlMs: 60_000,
    ...options,
    instanceId,
    logger: { info: say, warn: say },
    onChange() {
      for (const look of waiting) look()
    },
  })
  t.teardown(() => opened.log.close())
  return {
    ...opened,
    instanceId,
    said,
    async until(is) {
      const { promise, resolve } = Promise.withResolvers<void>()
      const look = () => is(opened.log) && resolve()
      waiting.add(look)
      look()
      await promise
      waiting.delete(look)
    },
  }
}

/** Both ways work. */
export const isWell = (log: RedisLog): boolean => log.degraded === undefined

/** The same, connected. */
export async function openSharedLog(t: Teardown, options: Options): Promise<OpenedRedisLog> {
  const opened = openLog(t, options)
  await opened.until(isWell)
  return opened
}

export type { RedisLog, Server }

/** A Redis that the test may kill. */
export async function startPrivateRedis(t: Teardown): Promise<Server> {
  const server = await startRedis('redis-server', AbortSignal.timeout(60_000))
  t.teardown(() => server.close())
  return server
}

/** A client of the test's own. */
export function connectRedis(t: Teardown, url: string): Redis {
  const redis = new Redis(url)
  redis.on('error', () => undefined) // The test has just killed the server; a command that fails says so itself.
  t.teardown(() => redis.disconnect())
  return redis
}

/** A Redis that says nothing until its client closes, and then that the password is wrong. */
export async function startRefusingRedis(
  t: Teardown,
): Promise<{ readonly url: string; readonly met: Promise<unknown> }> {
  const met = Promise.withResolvers<void>()
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('data', () => met.resolve())
    // To HELLO, and to the three commands that ioredis sends behind it.
    socket.on('end', () => socket.end(`-WRONGPASS invalid username-password pair\r\n${'+OK\r\n'.repeat(3)}`))
    socket.on('error', () => undefined) // the client may be gone already
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  return { url: `redis://gateway:hunter2@127.0.0.1:${(server.address() as AddressInfo).port}`, met: met.promise }
}
