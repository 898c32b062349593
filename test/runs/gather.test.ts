/**
 * Questions of the same moment go to the database as one: who asks alone and who asks with others is answered alike, and
 * nobody gets another one's answer.
 */
import { randomUUID } from 'node:crypto'
import { test } from 'tap'
import { Problem } from '../../src/errors.ts'
import { createGather } from '../../src/runs/gather.ts'
import { databases } from '../support/database.ts'
import { createOwner, openStore } from '../support/runs.ts'

function createCounter() {
  const asked: (readonly string[])[] = []
  const gather = createGather<string, string>({
    keyOf: (question) => question,
    async ask(questions) {
      asked.push(questions)
      if (questions.includes('fail')) throw new Problem('db_unavailable')
      return new Map(questions.filter((one) => one !== 'nothing').map((one) => [one, `to ${one}`]))
    },
    gatherMs: 1,
  })
  return { asked, gather }
}

test('questions of the same moment are one statement, and equal ones are one question', async (t) => {
  const { asked, gather } = createCounter()
  t.same(await Promise.all(['a', 'b', 'a', 'nothing'].map(gather)), ['to a', 'to b', 'to a', undefined])
  t.same(asked, [['a', 'b', 'nothing']])
  t.equal(await gather('a'), 'to a')
  t.same(asked.length, 2, 'what comes later is asked again: an answer is never older than its question')
})

test('a statement holds 100 questions, and when it fails, those in it are told so and no others', async (t) => {
  const { asked, gather } = createCounter()
  const questions = [...Array.from({ length: 250 }, (_, index) => `${index}`), 'fail']
  const answers = await Promise.allSettled(questions.map(gather))
  t.same(
    asked.map(({ length }) => length),
    [100, 100, 51],
  )
  t.equal(answers.filter(({ status }) => status === 'fulfilled').length, 200)
  t.equal(await gather('a'), 'to a', 'and the next one is asked as ever')
})

for (const kind of databases()) {
  test(`on ${kind}, runs that are asked for together are found by their owners and by nobody else`, async (t) => {
    const { runs, accept } = await openStore(t, kind)
    const [mine, yours] = [createOwner(), createOwner()]
    const [myRun, yourRun] = [(await accept({ owner: mine })).id, (await accept({ owner: yours })).id]
    const answers = await Promise.allSettled([
      runs.getRun(mine, myRun),
      runs.getRun(yours, yourRun),
      runs.getRun(mine, myRun.toUpperCase()),
      runs.getRun(mine, yourRun),
      runs.getRun(yours, myRun),
      runs.getRun(mine, randomUUID()),
    ])
    t.same(
      answers.map((answer) => (answer.status === 'fulfilled' ? answer.value.id : (answer.reason as Problem).code)),
      [myRun, yourRun, myRun, 'not_found', 'not_found', 'not_found'],
    )
    await t.rejects(runs.getRun(mine, yourRun), { code: 'not_found' }, 'also alone')
  })
}
