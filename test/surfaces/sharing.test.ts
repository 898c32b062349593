/**
 * What is encoded once for all viewers of a run: each is told what it would be told alone, whatever the others were told
 * before; and what is kept for an event is as much at the end of a long message as at its beginning.
 */
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import t from 'tap'
import type { LogEntry, Part, RunEvent } from '../../src/log/event.ts'
import { resetEntry } from '../../src/log/fold.ts'
import type { ViewerEncoder } from '../../src/runs/show.ts'
import { createUiEncoder } from '../../src/surfaces/ai-sdk.ts'
import { isToldAlike, nothingTold, type Told, tellChanges } from '../../src/surfaces/changes.ts'
import { createChatEncoder } from '../../src/surfaces/openai-chat.ts'
import { createResponsesEncoder } from '../../src/surfaces/openai-responses.ts'
import { createRandom, type Random } from '../support/random.ts'
import { trialsOf } from '../support/trials.ts'
import { joinDeltas, makeReply, messageId, retell, runId, withReset } from './replies.ts'

type Encode = ViewerEncoder['encode']

const tools: ReadonlySet<string> = new Set(['look'])
const view = { runId, createdAt: '2026-01-01T00:00:00.000000Z', model: 'fast', clientTools: tools, includeUsage: false }
const head = { id: 'resp', object: 'response', created_at: 1 } as const

/** Surface -> an encoder -> a viewer of it. */
const surfaces: Readonly<Record<string, () => () => Encode>> = {
  'ai-sdk': () => {
    const encoder = createUiEncoder()
    return () => encoder.createViewer({ runId, messageId, round: 0, ownTools: new Set() }).encode
  },
  'openai-chat': () => {
    const encoder = createChatEncoder()
    return () => encoder.createViewer(view).encode
  },
  'openai-responses': () => {
    const encoder = createResponsesEncoder()
    return () => encoder.createViewer({ runId, head, tools, isQueued: false, after: undefined }).encode
  },
}

const delta = (part: number, offset: number, text: string): RunEvent => ({
  type: 'delta',
  data: { part, offset, text },
})
const started = makeReply(createRandom(1)).entries[0]?.event as RunEvent
const done: RunEvent = { type: 'done', data: { status: 'completed', message_id: messageId } }
const log = (events: readonly RunEvent[], generation = 1): LogEntry[] =>
  events.map((event, index) => ({ generation, seq: index + 1, event }))

/** As somebody was told it who was shown other words, as many: by a process that had lost the run, from a log of its own. */
const otherwise = (entries: readonly LogEntry[]): LogEntry[] =>
  structuredClone(entries).map((entry) => {
    const { event } = entry
    if (event.type !== 'delta') return entry
    return { ...entry, event: { ...event, data: { ...event.data, text: 'x'.repeat(event.data.text.length) } } }
  })

/** What some viewers are told of one log whose entries they share, from some place on. */
function waysOf(random: Random): (readonly LogEntry[])[] {
  const reply = makeReply(random)
  const end = reply.entries.length - 1
  const from = 1 + random.integer(end)
  const whole = random.next() < 0.5 ? retell(random, reply) : withReset(reply.entries, from, from + random.integer(3))
  const resetAt = whole.findIndex(({ event }) => event.type === 'reset')
  const late = random.integer(whole.length)
  const ways = [whole, [...joinDeltas(whole.slice(0, late)), ...whole.slice(late)]]
  if (resetAt > 0) {
    ways.push([...otherwise(whole.slice(0, resetAt)), ...whole.slice(resetAt)])
    // Who comes behind it, as the log begins for them; and who had a snapshot of their own.
    ways.push([whole[0] as LogEntry, ...whole.slice(resetAt)])
    ways.push([whole[0] as LogEntry, structuredClone(whole[resetAt]) as LogEntry, ...whole.slice(resetAt + 1)])
  }
  return ways
}

/** All that each is told, in the order in which they come to be told. */
function tellAll(random: Random, ways: readonly (readonly LogEntry[])[], encodes: readonly Encode[]): string[] {
  const told = ways.map(() => '')
  const at = ways.map(() => 0)
  for (;;) {
    const open = ways.flatMap((entries, viewer) => ((at[viewer] ?? 0) < entries.length ? [viewer] : []))
    if (open.length === 0) return told
    const viewer = random.pick(open)
    const bytes = encodes[viewer]?.(ways[viewer]?.[at[viewer] ?? 0] as LogEntry)
    told[viewer] += `${bytes ?? ''}`
    at[viewer] = bytes === 'lost' ? Number.POSITIVE_INFINITY : (at[viewer] ?? 0) + 1
  }
}

for (const [name, create] of Object.entries(surfaces)) {
  t.test(
    `${name}: who shares with others is told what it would be told alone, or is lost as it would be`,
    async (t) => {
      let lost = 0
      let noticed = 0
      for (let seed = 0; seed < trialsOf(100); seed += 1) {
        const ways = waysOf(createRandom(seed))
        const alone = tellAll(
          createRandom(seed),
          ways,
          ways.map(() => create()()),
        )
        const encoder = create()
        const together = tellAll(
          createRandom(seed),
          ways,
          ways.map(() => encoder()),
        )
        if (JSON.stringify(together) !== JSON.stringify(alone)) return t.same(together, alone, `seed ${seed}`)
        lost += alone.filter((body) => body.endsWith('lost')).length
        const careless = new Map<LogEntry, ReturnType<Encode>>()
        const carelessly = ways.map((): Encode => {
          const encode = create()()
          return (entry) => {
            const bytes = encode(entry)
            if (!careless.has(entry)) careless.set(entry, bytes)
            return careless.get(entry)
          }
        })
        if (JSON.stringify(tellAll(createRandom(seed), ways, carelessly)) !== JSON.stringify(alone)) noticed += 1
      }
      t.ok(lost > 0, 'some were lost')
      t.ok(noticed > 0, 'and one who asks nothing but which event it is, is noticed')
    },
  )

  t.test(`${name}: a reset that one can be told and another cannot, of as many words`, async (t) => {
    const parts: Part[] = [{ kind: 'text', text: 'Hello there' }]
    const shared = [resetEntry(messageId, parts, { generation: 2, seq: 1 }), ...log([started, done], 2).slice(1)]
    for (const order of [
      [0, 1],
      [1, 0],
    ]) {
      const encoder = create()
      const told = order.map((viewer) => {
        const encode = encoder()
        for (const entry of log([started, delta(0, 0, viewer === 0 ? 'Hello' : 'Hullo')])) encode(entry)
        return [viewer, encode(shared[0] as LogEntry) === 'lost']
      })
      t.same(
        new Map(told as [number, boolean][]),
        new Map([
          [0, false],
          [1, true],
        ] as const),
      )
    }
  })

  t.test(`${name}: what is encoded for one is looked up for the others, and not told anew`, async (t) => {
    let reads = 0
    const data = {
      part: 0,
      offset: 0,
      get text() {
        reads += 1
        return 'Hello'
      },
    }
    const entries = log([started, { type: 'delta', data }, done])
    const encoder = create()
    const [first, second] = [encoder(), encoder()]
    for (const entry of entries) first(entry)
    t.ok(reads > 0)
    reads = 0
    for (const entry of entries) second(entry)
    t.equal(reads, 0)
  })

  t.test(`${name}: who comes with a snapshot of its own shares what follows`, async (t) => {
    const entries = log([started, delta(0, 0, 'Hel'), delta(0, 3, 'lo'), delta(0, 5, '.'), done])
    const encoder = create()
    const [first, second] = [encoder(), encoder()]
    const told = entries.map((entry) => first(entry))
    second(entries[0] as LogEntry)
    second(resetEntry(messageId, [{ kind: 'text', text: 'Hello' }], entries[2] as LogEntry))
    for (const index of [3, 4]) t.equal(second(entries[index] as LogEntry), told[index], 'the very same bytes')
  })
}

/** Values that are reachable from these, each once. */
function sizeOf(values: readonly unknown[]): number {
  const seen = new Set<unknown>()
  const open: unknown[] = [...values]
  let size = 0
  for (let value = open.pop(); value !== undefined || open.length > 0; value = open.pop()) {
    if (typeof value !== 'object' || value === null || seen.has(value)) continue
    seen.add(value)
    const members = Object.values(value)
    size += members.length
    open.push(...members)
  }
  return size
}

function statesOf(events: readonly RunEvent[]): Told[] {
  const states = [nothingTold]
  for (const event of events) {
    const step = tellChanges(states.at(-1) as Told, event)
    if (step === 'lost') throw new Error('lost')
    states.push(step.told)
  }
  return states
}

const sources = (count: number) =>
  Array.from(
    { length: count },
    (_, part): RunEvent => ({ type: 'source', data: { part, url: `https://x.test/${part}` } }),
  )

t.test('to keep every state of a message costs as much for an event of a long one as of a short one', async (t) => {
  const [short, long] = [200, 2000].map((count) => sizeOf(statesOf(sources(count))) / count) as [number, number]
  t.ok(long < short * 2, `${long.toFixed(0)} values for a source of 2000, ${short.toFixed(0)} of 200`)
  t.ok(long < 100)
})

t.test('to find that two have been told the same does not write out what they have been told', async (t) => {
  setFlagsFromString('--expose_gc')
  const collect = runInNewContext('gc') as () => void
  const word = 'a word or two '
  const events = Array.from({ length: 2000 }, (_, index) => delta(0, index * word.length, word))
  const states = statesOf(events)
  collect()
  const before = process.memoryUsage().heapUsed
  let text = ''
  for (const [index, event] of events.entries()) {
    const joined = tellChanges(nothingTold, delta(0, 0, text))
    if (index > 0 && (joined === 'lost' || !isToldAlike(states[index] as Told, joined.told, event))) t.fail(`${index}`)
    text += word
  }
  collect()
  const heldMb = (process.memoryUsage().heapUsed - before) / 1e6
  t.ok(heldMb < 5, `${heldMb.toFixed(1)} MB`)
  t.equal(states.length, events.length + 1)
})
