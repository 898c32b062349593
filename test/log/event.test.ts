/**
 * Event ids: what is one, what is not, and their order.
 */
import t from 'tap'
import { compareEventIds, formatEventId, parseEventId } from '../../src/log/event.ts'
import { createRandom } from '../support/random.ts'

t.test('an id that was written is read back as it was', async (t) => {
  const random = createRandom(1)
  for (const bound of [2, 1000, 1_000_000_000]) {
    for (let round = 0; round < 200; round += 1) {
      const id = { generation: random.integer(bound), seq: random.integer(bound) }
      t.same(parseEventId(formatEventId(id)), id)
    }
  }
})

t.test('what the gateway would not have written is no id', async (t) => {
  const wrong = [
    '',
    '-',
    '1',
    '1-',
    '-1',
    '1-2-3',
    '01-1',
    '1-01',
    '1-1 ',
    ' 1-1',
    '1-1\n',
    '+1-1',
    '1.0-1',
    '1e3-1',
    '１-1',
  ]
  for (const text of [...wrong, '1234567890-1', '1-1234567890', '9'.repeat(100_000), '*', '$', '0x1-1', '-1-1']) {
    t.equal(parseEventId(text), undefined, JSON.stringify(text.slice(0, 20)))
  }
})

t.test('the generation counts before the seq, and both as numbers', async (t) => {
  const sorted = ['0-0', '1-0', '1-1', '1-2', '1-9', '1-10', '2-1', '2-2', '10-1', '999999999-999999999']
  const ids = sorted.map((text) => parseEventId(text) ?? { generation: -1, seq: -1 })
  for (const [i, a] of ids.entries()) {
    for (const [j, b] of ids.entries()) t.equal(Math.sign(compareEventIds(a, b)), Math.sign(i - j))
  }
  t.notSame(sorted.toSorted(), sorted, 'as text they would be in another order')
})
