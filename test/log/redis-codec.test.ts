/** What a stream's entry means, and that nothing in Redis can be read as what it is not. */
import { Ajv } from 'ajv'
import t from 'tap'
import { eventSchemas, type LogEntry, type RunEvent } from '../../src/log/event.ts'
import { createKeys, decodeCommand, decodeEntry, encodeCommand, encodeEntry } from '../../src/log/redis-codec.ts'

const events: readonly RunEvent[] = [
  {
    type: 'run',
    data: {
      run_id: 'r',
      session_id: 's',
      user_message_id: 'u',
      message_id: 'm',
      model: 'demo',
      mode: 'fast',
      created_at: '2026-01-01T00:00:00Z',
    },
  },
  { type: 'part', data: { part: 1, kind: 'tool_call', call_id: 'c', name: 'f' } },
  { type: 'delta', data: { part: 0, offset: 3, text: 'schön\n\u{1f600}"\\' } },
  { type: 'tool', data: { part: 1, call_id: 'c', name: 'f', input: { a: [1, null] } } },
  { type: 'reset', data: { message_id: 'm', parts: [{ kind: 'text', text: 'x' }], cursor: '1-4' } },
  { type: 'done', data: { status: 'failed', message_id: 'm', error: { code: 'c', message: 'm', retryable: true } } },
]

t.test('the schemas of events are schemas', async (t) => {
  const ajv = new Ajv({ strict: false })
  for (const [type, schema] of Object.entries(eventSchemas)) t.ok(ajv.validateSchema(schema), type)
})

t.test('every event comes back as it was', async (t) => {
  for (const [index, event] of events.entries()) {
    const entry: LogEntry = { generation: 2, seq: index + 1, event }
    const [id, ...fields] = encodeEntry(entry)
    t.equal(id, `2-${index + 1}`)
    t.strictSame(decodeEntry(id, fields), entry)
  }
})

t.test('what is no event of ours is nothing, and no error', async (t) => {
  const strange: readonly (readonly [id: string, fields: readonly string[]])[] = [
    ['1-1', []],
    ['1-1', ['delta']],
    ['1-1', ['delta', '']],
    ['1-1', ['delta', 'no json']],
    ['1-1', ['delta', 'null']],
    ['1-1', ['delta', '[]']],
    ['1-1', ['delta', '{"part":0,"offset":0}']],
    ['1-1', ['delta', '{"part":"0","offset":0,"text":"x"}']],
    ['1-1', ['artifact', '{"part":0,"offset":0,"text":"x"}']],
    ['1-1', ['__proto__', '{}']],
    ['1-1', ['toString', '{}']],
    ['1-1', ['reset', '{"message_id":"m","parts":[{"kind":"text"}],"cursor":""}']],
    ['1-1', ['done', '{"status":"running","message_id":"m"}']],
    // Made by Redis from its clock, and not by a run.
    ['1763741000123-0', ['delta', '{"part":0,"offset":0,"text":"x"}']],
    ['', ['delta', '{"part":0,"offset":0,"text":"x"}']],
  ]
  for (const [id, fields] of strange) t.equal(decodeEntry(id, fields), undefined, `${id} ${fields.join(' ')}`)
  t.ok(decodeEntry('1-1', ['delta', '{"part":0,"offset":0,"text":"x","added":"by a newer version"}']))
})

t.test('commands come back as they were, and nothing else is one', async (t) => {
  t.strictSame(decodeCommand(encodeCommand({ kind: 'look' })), { kind: 'look' })
  t.strictSame(decodeCommand(encodeCommand({ kind: 'stop', runId: 'r' })), { kind: 'stop', runId: 'r' })
  for (const fields of [[], ['stop'], ['stop', ''], ['wake', ''], ['probe', ''], ['burn', 'x']]) {
    t.equal(decodeCommand(fields), undefined, fields.join(' '))
  }
})

t.test('a run and a process have keys of their own under the prefix', async (t) => {
  const keys = createKeys('vb')
  t.equal(keys.log('r'), 'vb:{r}:log')
  t.equal(keys.control('p'), 'vb:ctl:p')
})
