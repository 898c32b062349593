/** Questions that share a statement: each gets its own answer, none an older one than it asked for. */
import { test } from 'tap'
import { createBatch } from '../../src/db/batch.ts'

/** A database that answers when the test says so. */
function createOracle(questionsMax = 3) {
  const asked: { questions: readonly string[]; answer(): void; fail(error: Error): void }[] = []
  let next = Promise.withResolvers<void>()
  const batch = createBatch<string, string>({
    keyOf: (question) => question,
    questionsMax,
    ask(questions) {
      const { promise, resolve, reject } = Promise.withResolvers<ReadonlyMap<string, string>>()
      const index = asked.length
      asked.push({
        questions,
        answer: () =>
          resolve(new Map(questions.filter((one) => one !== 'nothing').map((one) => [one, `${one}${index}`]))),
        fail: reject,
      })
      next.resolve()
      return promise
    },
  })
  return {
    batch,
    /** The statement with this number, when it has been sent. */
    async sent(index: number) {
      while (asked.length <= index) {
        next = Promise.withResolvers()
        await next.promise
      }
      return asked[index] as (typeof asked)[number]
    },
    get count() {
      return asked.length
    },
  }
}

test('what comes while one is asked goes together in the next, and is not answered by the one before', async (t) => {
  const { batch, sent } = createOracle()
  const first = batch('a')
  const one = await sent(0)
  const later = [batch('a'), batch('b'), batch('a'), batch('nothing'), batch('c')]
  one.answer()
  t.equal(await first, 'a0')
  const two = await sent(1)
  t.strictSame(two.questions, ['a', 'b', 'nothing'], 'equal ones share an answer, and no more than fit')
  two.answer()
  const three = await sent(2)
  t.strictSame(three.questions, ['c'])
  three.answer()
  t.strictSame(await Promise.all(later), ['a1', 'b1', 'a1', undefined, 'c2'])
})

test('questions of the same turn go together at once', async (t) => {
  const { batch, sent } = createOracle()
  const both = [batch('a'), batch('b')]
  const one = await sent(0)
  t.strictSame(one.questions, ['a', 'b'])
  one.answer()
  await Promise.all(both)
})

test('a failure is told to all who are in it, and to nobody else', async (t) => {
  const { batch, sent } = createOracle()
  const [a, b] = [batch('a'), batch('b')]
  const one = await sent(0)
  const c = batch('c')
  one.fail(new Error('away'))
  await t.rejects(a, { message: 'away' })
  await t.rejects(b, { message: 'away' })
  ;(await sent(1)).answer()
  t.equal(await c, 'c1')
})

test('a statement that hangs does not hold up the next ones', async (t) => {
  const { batch, sent } = createOracle()
  const hanging = batch('a')
  const one = await sent(0)
  const next = batch('a')
  ;(await sent(1)).answer()
  t.equal(await next, 'a1')
  const after = batch('a')
  ;(await sent(2)).answer()
  t.equal(await after, 'a2')
  one.answer()
  t.equal(await hanging, 'a0')
})

test('those who wait are bounded', async (t) => {
  const oracle = createOracle(5000)
  const first = oracle.batch('first')
  const one = await oracle.sent(0)
  const waiting = Array.from({ length: 5000 }, (_, index) => oracle.batch(`${index}`))
  await t.rejects(oracle.batch('one more'), { code: 'db_unavailable' })
  one.answer()
  ;(await oracle.sent(1)).answer()
  await Promise.all([first, ...waiting])
  t.equal(oracle.count, 2)
})
