/**
 * The log that processes share through Redis keeps the contract: for the viewers of the process that writes, and for
 * those of another.
 */
import t from 'tap'
import { createPrefix, openSharedLog, sharedRedis, withoutRedis } from '../support/redis.ts'
import { logContract } from './log.ts'

t.test('the contract, in the process that writes', { skip: withoutRedis }, async (t) => {
  const url = sharedRedis()
  const { log } = await openSharedLog(t, { url, prefix: createPrefix(t, url) })
  await logContract(t, async () => ({ writer: log, reader: log, shared: true, close: () => log.close() }))
  t.equal(log.size, 0, 'nothing is held after close')
  t.equal(log.followed, 0, 'and nothing followed')
})

t.test('the contract, between two processes', { skip: withoutRedis }, async (t) => {
  const url = sharedRedis()
  const prefix = createPrefix(t, url)
  const [{ log: writer }, { log: reader }] = await Promise.all([
    openSharedLog(t, { url, prefix }),
    openSharedLog(t, { url, prefix }),
  ])
  const close = async () => void (await Promise.all([writer.close(), reader.close()]))
  await logContract(t, async () => ({ writer, reader, shared: true, close }))
  t.equal(reader.size, 0)
  t.equal(reader.followed, 0)
})
