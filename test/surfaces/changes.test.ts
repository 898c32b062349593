/**
 * Events told as changes of a message that only grows: whatever pieces they come in, whoever holds on to the changes holds
 * the stored message, part for part.
 */
import { isDeepStrictEqual } from 'node:util'
import t from 'tap'
import type { LogEntry, Part, RunEvent } from '../../src/log/event.ts'
import { type Change, nothingTold, type Told, tellChanges } from '../../src/surfaces/changes.ts'
import { createRandom } from '../support/random.ts'
import { trialsOf } from '../support/trials.ts'
import { makeReply, messageId, retell } from './replies.ts'

const trials = trialsOf(300)

/** All changes of these events. */
function changesOf(entries: readonly Pick<LogEntry, 'event'>[], told: Told = nothingTold): Change[] | 'lost' {
  const changes: Change[] = []
  let state = told
  for (const { event } of entries) {
    const step = tellChanges(state, event)
    if (step === 'lost') return 'lost'
    state = step.told
    changes.push(...step.changes)
  }
  return changes
}

/**
 * What a client holds that knows nothing but the changes.
 * @throws when one does not fit to those before it
 */
function hold(changes: readonly Change[]): Part[] {
  const parts: Part[] = []
  const phases: ('open' | 'called' | 'closed')[] = []
  for (const change of changes) {
    if (change.kind === 'started' || change.kind === 'said') continue
    if (change.kind === 'ended') {
      if (phases.includes('open')) throw new Error('a part was left open')
      continue
    }
    const { index, kind } = change
    const held = parts[index]
    const isWords = (phase: string | undefined, at: number) => phase === 'open' && parts[at]?.kind !== 'tool_call'
    if (kind === 'opened') {
      if (index !== parts.length || change.part.text !== '') throw new Error(`part ${index} was opened out of place`)
      const { input: _input, output: _output, error: _error, ...opened } = change.part
      const isReference = opened.kind === 'source' || opened.kind === 'file'
      if (!isReference && phases.some(isWords)) throw new Error('something began before the words were closed')
      parts.push({ ...opened })
      phases.push(isReference ? 'closed' : 'open')
      continue
    }
    if (held === undefined) throw new Error(`${kind} of a part that is not there`)
    if (kind === 'grown') {
      if (phases[index] !== 'open' || change.offset !== held.text.length)
        throw new Error(`part ${index} cannot grow so`)
      held.text += change.text
    } else if (kind === 'called') {
      if (phases[index] !== 'open') throw new Error(`part ${index} was called twice`)
      if (change.part.input !== undefined) held.input = change.part.input
      phases[index] = 'called'
    } else if (kind === 'answered') {
      if (phases[index] !== 'called') throw new Error(`part ${index} was answered before it was called`)
      if (change.part.error === undefined) held.output = change.part.output
      else held.error = change.part.error
      phases[index] = 'closed'
    } else {
      if (phases[index] !== 'open') throw new Error(`part ${index} was closed twice`)
      phases[index] = 'closed'
    }
    // What comes behind the end of a call's arguments is not told.
    const isWhole = kind === 'answered' ? change.part.text.startsWith(held.text) : change.part.text === held.text
    if (!isWhole) throw new Error(`part ${index} is not what was told of it`)
    held.text = change.part.text
  }
  return parts
}

/** Seals are shown to nobody, nor arguments once there is an answer. */
const shown = (parts: readonly Part[]) =>
  parts.map(({ signature: _seal, redacted: _hidden, text, ...part }) => {
    const isAnswered = part.kind === 'tool_call' && (part.output !== undefined || part.error !== undefined)
    return { ...part, text: isAnswered ? '' : text }
  })

const delta = (part: number, offset: number, text: string): RunEvent => ({
  type: 'delta',
  data: { part, offset, text },
})
const reset = (...parts: Part[]): RunEvent => ({ type: 'reset', data: { message_id: messageId, parts, cursor: '1-9' } })
const done: RunEvent = { type: 'done', data: { status: 'completed', message_id: messageId } }
const log = (...events: RunEvent[]) => events.map((event) => ({ event }))
const kindsOf = (changes: Change[] | 'lost') => (changes === 'lost' ? changes : changes.map(({ kind }) => kind))

t.test('whatever way a log is told, its changes make the stored message', async (t) => {
  for (let seed = 0; seed < trials; seed += 1) {
    const random = createRandom(seed)
    const reply = makeReply(random)
    for (const entries of [reply.entries, retell(random, reply), retell(random, reply)]) {
      const changes = changesOf(entries)
      if (changes === 'lost') return t.fail(`seed ${seed}: a viewer was lost`)
      const held = hold(changes)
      if (isDeepStrictEqual(shown(held), shown(reply.parts))) continue
      return t.same(shown(held), shown(reply.parts), `seed ${seed}`)
    }
  }
  t.pass(`${trials} replies, each in three ways`)
})

t.test('a log with a piece missing is noticed', async (t) => {
  let lost = 0
  for (let seed = 0; seed < trials; seed += 1) {
    const { entries } = makeReply(createRandom(seed))
    const at = entries.findIndex(({ event }) => event.type === 'delta' && event.data.text !== '')
    const { part } = (entries[at]?.event.data ?? {}) as { part?: number }
    const isMissed = entries.slice(at + 1).some(({ event }) => event.type === 'delta' && event.data.part === part)
    if (!isMissed) continue
    lost += 1
    if (changesOf(entries.toSpliced(at, 1)) !== 'lost') return t.fail(`seed ${seed}: a gap was papered over`)
  }
  t.ok(lost > trials / 10, 'and there were such logs')
})

t.test('words are closed where something else is said, and not by a source', async (t) => {
  const changes = changesOf(
    log(
      delta(0, 0, 'a'),
      { type: 'source', data: { part: 1, url: 'https://x.test' } },
      delta(0, 1, 'b'),
      { type: 'part', data: { part: 2, kind: 'reasoning' } },
      done,
    ),
  )
  t.same(kindsOf(changes), ['opened', 'grown', 'opened', 'grown', 'closed', 'opened', 'closed', 'ended'])
})

t.test('what a viewer holds already is not told again', async (t) => {
  t.same(kindsOf(changesOf(log(delta(0, 0, 'Hel'), delta(0, 1, 'ello'), delta(0, 2, 'll')))), [
    'opened',
    'grown',
    'grown',
  ])
  t.same(kindsOf(changesOf(log(delta(0, 0, 'Hello'), reset({ kind: 'text', text: 'Hello' }), done))), [
    'opened',
    'grown',
    'closed',
    'ended',
  ])
})

t.test('a reset brings what is missing: words, a call and its answer', async (t) => {
  const call: Part = { kind: 'tool_call', text: '{}', call_id: 'c', name: 'look', input: {}, output: null }
  const changes = changesOf(
    log(delta(0, 0, 'He'), reset({ kind: 'text', text: 'Hello' }, call, { kind: 'text', text: '.' }), done),
  )
  t.same(kindsOf(changes), [
    ...['opened', 'grown', 'grown', 'closed'],
    ...['opened', 'grown', 'called', 'answered'],
    ...['opened', 'grown', 'closed', 'ended'],
  ])
})

t.test('what takes back, or does not join, loses the viewer', async (t) => {
  const told = delta(0, 0, 'Hello')
  for (const [name, event] of [
    ['a shorter text', reset({ kind: 'text', text: 'Hell' })],
    ['another text', reset({ kind: 'text', text: 'Hullo there' })],
    ['another kind', reset({ kind: 'reasoning', text: 'Hello' })],
    ['nothing', reset()],
    ['a gap in the text', delta(0, 6, '!')],
    ['a gap in the parts', { type: 'part', data: { part: 2, kind: 'text' } }],
    ['an answer to no call', { type: 'tool', data: { part: 0, call_id: 'c', name: 'look', output: 1 } }],
  ] as const) {
    t.equal(changesOf(log(told, event)), 'lost', name)
  }
})

t.test('what is told is a value: another viewer can go on from it', async (t) => {
  const nothing = JSON.stringify(nothingTold)
  const first = tellChanges(nothingTold, delta(0, 0, 'a'))
  if (first === 'lost') throw new Error('lost')
  const before = JSON.stringify(first.told)
  t.not(before, nothing)
  t.same(kindsOf(changesOf(log(delta(0, 1, 'b'), done), first.told)), ['grown', 'closed', 'ended'])
  t.equal(JSON.stringify(first.told), before)
  t.equal(JSON.stringify(nothingTold), nothing)
})
