/**
 * The draft: what the upstream says becomes parts and events, and the two never differ.
 */
import t from 'tap'
import type { LogEntry, RunEvent } from '../../src/log/event.ts'
import { foldEvents } from '../../src/log/fold.ts'
import { createDraft, type DraftEvent } from '../../src/runs/draft.ts'
import type { UpstreamEvent } from '../../src/upstream/upstream.ts'
import { createRandom, type Random } from '../support/random.ts'

const text = (words: string): UpstreamEvent => ({ type: 'text', text: words })
const reasoning = (words: string): UpstreamEvent => ({ type: 'reasoning', text: words })
const call = (key: string, args: string, more: { callId?: string; name?: string } = {}): UpstreamEvent => ({
  type: 'tool_call',
  key,
  arguments: args,
  ...more,
})

function draftOf(...events: DraftEvent[]) {
  const draft = createDraft()
  for (const event of events) draft.apply(event)
  return draft
}

const number = (events: readonly RunEvent[]): LogEntry[] =>
  events.map((event, index) => ({ generation: 1, seq: index + 1, event }))

t.test('words of one kind become one part and one delta, and part 0 text needs no opening', async (t) => {
  const draft = draftOf(text('Hel'), text(''), text('lo'))
  t.same(draft.takeEvents(), [{ type: 'delta', data: { part: 0, offset: 0, text: 'Hello' } }])
  t.same(draft.takeEvents(), [])
  draft.apply(text(' you'))
  t.same(draft.takeEvents(), [{ type: 'delta', data: { part: 0, offset: 5, text: ' you' } }])
  t.same(draft.parts, [{ kind: 'text', text: 'Hello you' }])
})

t.test('offsets count UTF-16 units', async (t) => {
  const draft = draftOf(text('👩‍👩‍👧'))
  draft.takeEvents()
  draft.apply(text('!'))
  t.match(draft.takeEvents(), [{ data: { offset: 8, text: '!' } }])
})

t.test('events that were taken do not change afterwards', async (t) => {
  const draft = draftOf(text('a'))
  const taken = draft.takeEvents()
  draft.apply(text('b'))
  t.match(taken, [{ data: { text: 'a' } }])
})

t.test('another kind opens another part, and the first one again a third', async (t) => {
  const draft = draftOf(reasoning('Hm'), text('Yes'), reasoning('but'), text('no'))
  t.same(draft.takeEvents(), [
    { type: 'part', data: { part: 0, kind: 'reasoning' } },
    { type: 'delta', data: { part: 0, offset: 0, text: 'Hm' } },
    { type: 'part', data: { part: 1, kind: 'text' } },
    { type: 'delta', data: { part: 1, offset: 0, text: 'Yes' } },
    { type: 'part', data: { part: 2, kind: 'reasoning' } },
    { type: 'delta', data: { part: 2, offset: 0, text: 'but' } },
    { type: 'part', data: { part: 3, kind: 'text' } },
    { type: 'delta', data: { part: 3, offset: 0, text: 'no' } },
  ])
  t.equal(draft.content, 'Yesno', 'the content is the text parts')
})

t.test('parallel tool calls grow each in its own part, and are told when the reply ends', async (t) => {
  const draft = draftOf(
    text('Let me look.'),
    call('0', '{"ci', { callId: 'call_a', name: 'weather' }),
    call('1', '{"q', { callId: 'call_b', name: 'search' }),
    call('0', 'ty":"Ulm"}'),
    call('1', '":[1'),
    text('Then'),
    call('1', ']}'),
  )
  const first = draft.takeEvents()
  draft.endStep()
  t.same(draft.parts, [
    { kind: 'text', text: 'Let me look.' },
    { kind: 'tool_call', text: '{"city":"Ulm"}', call_id: 'call_a', name: 'weather', input: { city: 'Ulm' } },
    { kind: 'tool_call', text: '{"q":[1]}', call_id: 'call_b', name: 'search', input: { q: [1] } },
    { kind: 'text', text: 'Then' },
  ])
  const last = draft.takeEvents()
  t.same(last, [
    { type: 'tool', data: { part: 1, call_id: 'call_a', name: 'weather', input: { city: 'Ulm' } } },
    { type: 'tool', data: { part: 2, call_id: 'call_b', name: 'search', input: { q: [1] } } },
  ])
  t.same(foldEvents(number([...first, ...last])), draft.parts)
  t.equal(draft.content, 'Let me look.Then')
})

t.test('arguments that are cut off or no JSON keep their text and get no input', async (t) => {
  for (const args of ['{"city":"U', 'null}', '{city: 1}', '['.repeat(100) + ']'.repeat(100)]) {
    const draft = draftOf(call('0', args, { callId: 'c', name: 'f' }))
    draft.endStep()
    t.same(draft.parts, [{ kind: 'tool_call', text: args, call_id: 'c', name: 'f' }])
    t.same(draft.takeEvents().at(-1), { type: 'tool', data: { part: 0, call_id: 'c', name: 'f' } })
  }
  const none = draftOf(call('0', '', { callId: 'c', name: 'f' }), { type: 'finish', reason: 'tool_calls' })
  none.endStep()
  t.match(none.parts, [{ text: '', input: {} }], 'a call without any is a call without parameters')
  const begun = draftOf(call('0', '', { callId: 'c', name: 'f' }))
  begun.endStep()
  t.notOk('input' in (begun.parts[0] ?? {}), 'unless the reply broke off there')
})

t.test('what the database cannot hold is mended in the input, and only there', async (t) => {
  const args = JSON.stringify({ 'a\u0000b': 'x\u0000y', lone: '\ud800' })
  const draft = draftOf(call('0', args, { callId: 'c', name: 'f' }))
  draft.endStep()
  t.equal(draft.parts[0]?.text, args, 'the raw text has no NUL, it has six characters')
  t.same(draft.parts[0]?.input, { ab: 'xy', lone: '\ufffd' })
  t.notOk(JSON.stringify(draft.parts[0]?.input).includes('\\u0000'))
})

t.test('a call without a name or an id is kept all the same', async (t) => {
  const draft = draftOf(call('7', '{}'))
  t.match(draft.parts, [{ call_id: '7', name: '' }])
})

t.test('counts, names and reasons are remembered, and are no events', async (t) => {
  const usage = { input_tokens: 1, output_tokens: 2, total_tokens: 3 }
  const draft = draftOf(
    { type: 'response', model: 'm-1' },
    { type: 'response', id: 'r' },
    { type: 'usage', usage: { ...usage, total_tokens: 2 } },
    { type: 'usage', usage },
    { type: 'finish', reason: 'stop' },
  )
  t.match({ ...draft }, { isEmpty: true, usage, finishReason: 'stop', model: 'm-1', content: '' })
  t.same(draft.takeEvents(), [])
})

t.test('a seal ends what it is on, and hidden reasoning is a part without words', async (t) => {
  const draft = draftOf(
    reasoning('Think'),
    { type: 'signature', signature: 'seal-1' },
    reasoning('again'),
    { type: 'signature', signature: 'dark', redacted: true },
    text('Yes'),
    call('0', '{}', { name: 'f' }),
    { type: 'signature', signature: 'seal-2', key: '0' },
    text(' and'),
  )
  t.match(draft.parts, [
    { kind: 'reasoning', text: 'Think', signature: 'seal-1' },
    { kind: 'reasoning', text: 'again' },
    { kind: 'reasoning', text: '', redacted: true, signature: 'dark' },
    { kind: 'text', text: 'Yes' },
    { kind: 'tool_call', signature: 'seal-2' },
    { kind: 'text', text: ' and' },
  ])
  t.notMatch(JSON.stringify(draft.takeEvents()), /seal|dark/, 'viewers are not told')
})

t.test('sources and files are parts without words, each source once, and text goes on around them', async (t) => {
  const source: DraftEvent = { type: 'source', url: 'https://a.example/', title: 'A' }
  const draft = draftOf(text('So'), source, text(' says A.'), source, {
    type: 'file',
    mediaType: 'image/png',
    url: 'data:image/png;base64,AA==',
  })
  t.same(draft.parts, [
    { kind: 'text', text: 'So says A.' },
    { kind: 'source', text: '', url: 'https://a.example/', title: 'A' },
    { kind: 'file', text: '', media_type: 'image/png', url: 'data:image/png;base64,AA==' },
  ])
  t.same(draft.takeEvents(), [
    { type: 'delta', data: { part: 0, offset: 0, text: 'So' } },
    { type: 'source', data: { part: 1, url: 'https://a.example/', title: 'A' } },
    { type: 'delta', data: { part: 0, offset: 2, text: ' says A.' } },
    { type: 'part', data: { part: 2, kind: 'file', url: 'data:image/png;base64,AA==', media_type: 'image/png' } },
  ])
})

t.test('the answer of a tool is a second event, and a key means another call in the next step', async (t) => {
  const draft = draftOf(
    call('0', '{"a":1}', { callId: 'c0', name: 'f' }),
    call('1', '{}', { callId: 'c1', name: 'g' }),
    {
      type: 'finish',
      reason: 'tool_calls',
    },
  )
  draft.takeEvents()
  t.match(
    draft.endStep().map(({ key, part }) => [key, part.name, part.input]),
    [
      ['0', 'f', { a: 1 }],
      ['1', 'g', {}],
    ],
  )
  draft.apply({ type: 'tool_result', key: '0', output: undefined })
  draft.apply({ type: 'tool_result', key: '0', output: 'too late' })
  t.match(
    draft.endStep().map(({ key }) => key),
    ['1'],
    'one is left to be answered',
  )
  draft.beginStep()
  draft.apply(call('0', '{"b":2}', { callId: 'c2', name: 'f' }))
  draft.apply({ type: 'tool_result', key: '0', error: { code: 'failed', message: 'No.' } })
  t.same(draft.takeEvents(), [
    { type: 'tool', data: { part: 0, call_id: 'c0', name: 'f', input: { a: 1 } } },
    { type: 'tool', data: { part: 1, call_id: 'c1', name: 'g', input: {} } },
    { type: 'tool', data: { part: 0, call_id: 'c0', name: 'f', input: { a: 1 }, output: null } },
    { type: 'part', data: { part: 2, kind: 'tool_call', call_id: 'c2', name: 'f' } },
    { type: 'delta', data: { part: 2, offset: 0, text: '{"b":2}' } },
    {
      type: 'tool',
      data: { part: 2, call_id: 'c2', name: 'f', input: { b: 2 }, error: { code: 'failed', message: 'No.' } },
    },
  ])
})

t.test('what the steps have used is added up, and the reason is the last one', async (t) => {
  const draft = draftOf(
    { type: 'usage', usage: { input_tokens: 1, output_tokens: 2, total_tokens: 3, reasoning_tokens: 1 } },
    { type: 'finish', reason: 'tool_calls' },
  )
  draft.beginStep()
  t.match({ ...draft }, { finishReason: undefined, usage: { total_tokens: 3 } })
  draft.apply({
    type: 'usage',
    usage: { input_tokens: 10, output_tokens: 1, total_tokens: 11, cached_input_tokens: 4 },
  })
  draft.apply({
    type: 'usage',
    usage: { input_tokens: 10, output_tokens: 20, total_tokens: 30, cached_input_tokens: 4 },
  })
  draft.apply({ type: 'finish', reason: 'stop' })
  t.same(draft.usage, {
    input_tokens: 11,
    output_tokens: 22,
    total_tokens: 33,
    reasoning_tokens: 1,
    cached_input_tokens: 4,
  })
  t.equal(draft.finishReason, 'stop')
})

const pieces = ['a', 'bc', ' ', '世界', '👩‍👩‍👧', '\n\n', 'e\u0301', '{"a":', '1}', '"', '']

function randomEvent(random: Random): DraftEvent {
  const words = random.pick(pieces)
  switch (random.integer(11)) {
    case 0:
    case 1:
    case 2:
      return text(words)
    case 3:
      return reasoning(words)
    case 4:
      return { type: 'finish', reason: 'stop' }
    case 5:
      return { type: 'source', url: `https://${random.integer(3)}.example/` }
    case 6:
      return { type: 'file', mediaType: 'image/png', url: 'data:image/png;base64,AA==' }
    case 7:
      return { type: 'signature', signature: words, ...(random.integer(3) === 0 ? { redacted: true } : {}) }
    case 8: {
      const key = random.pick(['0', '1', '2'])
      return random.integer(2) === 0
        ? { type: 'tool_result', key, output: { words } }
        : { type: 'tool_result', key, error: { code: 'failed', message: words } }
    }
    default: {
      const key = random.pick(['0', '1', '2'])
      return call(key, words, random.integer(2) === 0 ? { callId: `call_${key}`, name: 'f' } : {})
    }
  }
}

t.test('the events, folded, are the parts: whatever comes, and whenever they are taken', async (t) => {
  for (let seed = 1; seed <= 300; seed += 1) {
    const random = createRandom(seed)
    const draft = createDraft()
    const taken: RunEvent[] = []
    for (let step = random.integer(60); step > 0; step -= 1) {
      draft.apply(randomEvent(random))
      if (random.integer(12) === 0) {
        draft.endStep()
        draft.beginStep()
      }
      if (random.integer(4) > 0) continue
      taken.push(...draft.takeEvents())
      if (!sameParts(foldEvents(number(taken)), draft.parts)) t.fail(`seed ${seed}, ${step} steps before the end`)
    }
    draft.endStep()
    taken.push(...draft.takeEvents())
    if (!sameParts(foldEvents(number(taken)), draft.parts)) t.fail(`seed ${seed}, at the end`)
    checkOffsets(taken)
  }
  const draft = draftOf(text('a'), reasoning('b'))
  t.notOk(sameParts(foldEvents(number(draft.takeEvents().slice(0, -1))), draft.parts), 'a lost event would be seen')
})

const sameParts = (a: readonly unknown[], b: readonly unknown[]) =>
  JSON.stringify(sorted(a)) === JSON.stringify(sorted(b))

// Seals are stored and not told, and neither is that there is something to hide.
const sorted = (parts: readonly unknown[]) =>
  parts.map((part) =>
    Object.entries(part as object)
      .filter(([name]) => name !== 'signature' && name !== 'redacted')
      .toSorted(([a], [b]) => (a < b ? -1 : 1)),
  )

/** @throws when a delta does not join what came before it */
function checkOffsets(events: readonly RunEvent[]): void {
  const lengths = new Map<number, number>()
  for (const { type, data } of events) {
    if (type !== 'delta') continue
    const length = lengths.get(data.part) ?? 0
    if (data.offset !== length) throw new Error(`offset ${data.offset} after ${length} units`)
    lengths.set(data.part, length + data.text.length)
  }
}
