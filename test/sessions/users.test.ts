/** Who is remembered as noted, how long a request waits for it, and that a database that is away delays nobody for long. */
import { test } from 'tap'
import type { Db } from '../../src/db/db.ts'
import { createUsers } from '../../src/sessions/users.ts'

/** Counts the statements; each ends as `answer` says. */
function countingDb(answer: () => Promise<void>) {
  const counted = { statements: 0 }
  const run = () => {
    counted.statements += 1
    return answer()
  }
  return { counted, db: { run } as unknown as Db }
}

test('somebody is written once, however often and however many at once', async (t) => {
  const { counted, db } = countingDb(async () => undefined)
  const { note } = createUsers(db)
  await Promise.all(Array.from({ length: 20 }, () => note('', 'ada')))
  await note('', 'ada')
  t.equal(counted.statements, 1)
  await note('issuer', 'ada')
  await note('', 'adaissuer')
  t.equal(counted.statements, 3, 'the same subject of another issuer is somebody else')
})

test('the ten thousand who came last are remembered', async (t) => {
  const { counted, db } = countingDb(async () => undefined)
  const { note } = createUsers(db)
  await note('', 'regular')
  for (let n = 0; n < 9999; n += 1) await note('', `user-${n}`)
  await note('', 'regular')
  await note('', 'one too many')
  t.equal(counted.statements, 10_001)
  await note('', 'regular')
  t.equal(counted.statements, 10_001)
  await note('', 'user-0')
  t.equal(counted.statements, 10_002, 'who was away longest is written again')
})

test('a refusal is no error, and the next request tries again', async (t) => {
  let refuses = true
  const { counted, db } = countingDb(async () => {
    if (refuses) throw new Error('away')
  })
  const { note } = createUsers(db)
  await note('', 'ada')
  refuses = false
  await note('', 'ada')
  await note('', 'ada')
  t.equal(counted.statements, 2)
})

test('a database that hangs holds a request up for a quarter of a second, and gets one statement of a user', async (t) => {
  const held = Promise.withResolvers<void>()
  const { counted, db } = countingDb(() => held.promise)
  const { note } = createUsers(db)
  const startedAt = performance.now()
  await Promise.all([note('', 'ada'), note('', 'ada')])
  t.ok(performance.now() - startedAt >= 240)
  const third = note('', 'ada')
  t.equal(counted.statements, 1)
  held.resolve()
  await third
  await note('', 'ada')
  t.equal(counted.statements, 1, 'it was written after all')
})
