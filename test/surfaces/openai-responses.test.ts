/**
 * Events of a run as events of an OpenAI response: which are told, in which order, and that their numbers are a function of
 * the message alone. Random replies are made by the draft that makes real ones.
 */
import OpenAI from 'openai7'
import t from 'tap'
import {
  beforeAll,
  contentOf,
  type Done,
  type EventId,
  type LogEntry,
  type Part,
  type RunEvent,
} from '../../src/log/event.ts'
import { resetEntry } from '../../src/log/fold.ts'
import { createMemoryLog } from '../../src/log/memory.ts'
import { followRun } from '../../src/runs/follow.ts'
import type { RunFacts } from '../../src/runs/model.ts'
import { createTicks } from '../../src/runs/ticks.ts'
import {
  createResponsesEncoder,
  createTeller,
  cut,
  leadFrom,
  type ResponseEvent,
} from '../../src/surfaces/openai-responses.ts'
import {
  type ShownRun,
  toOutcome,
  toOutput,
  toResponse,
  toResponseId,
  toRunId,
} from '../../src/surfaces/openai-responses-object.ts'
import { createRandom, type Random } from '../support/random.ts'
import { trialsOf } from '../support/trials.ts'
import { answerWith, makeReply, retell, runId } from './replies.ts'

const hex = runId.replaceAll('-', '')
const run: ShownRun = {
  runId,
  head: { id: toResponseId(runId), object: 'response', created_at: 1 },
  tools: new Set(['weather', 'none']),
}
const started: RunEvent = {
  type: 'run',
  data: {
    run_id: runId,
    session_id: 's',
    user_message_id: 'u',
    message_id: 'm',
    model: 'demo',
    mode: 'balanced',
    created_at: '2026-01-01T00:00:00.000000Z',
  },
}
const done = (more: Partial<Done> = {}): RunEvent => ({
  type: 'done',
  data: { status: 'completed', message_id: 'm', finish_reason: 'stop', ...more },
})
const delta = (part: number, offset: number, text: string): RunEvent => ({
  type: 'delta',
  data: { part, offset, text },
})
const reset = (parts: readonly Part[]): RunEvent => resetEntry('m', parts, { generation: 2, seq: 1 }).event

const number = (events: readonly RunEvent[]): LogEntry[] =>
  events.map((event, index) => ({ generation: 1, seq: index + 1, event }))

/** All that a viewer is told; undefined when it is lost on the way. */
function tryToTell(events: readonly RunEvent[], shown = run, isQueued = false): ResponseEvent[] | undefined {
  const teller = createTeller({ ...shown, isQueued })
  const said = events.map((event) => teller.tell(event))
  return said.includes('lost') ? undefined : (said.flat() as ResponseEvent[])
}

const tell = (events: readonly RunEvent[], isQueued = false) => tryToTell(events, run, isQueued) ?? []

const eventsOf = (entries: readonly LogEntry[]): RunEvent[] => entries.map(({ event }) => event)

/** What was said, with every unit of a delta by itself, whatever pieces it came in. */
function atomsOf(events: readonly ResponseEvent[]): string[] {
  return events.flatMap(({ sequence_number, delta: words, ...rest }) => {
    if (words === undefined) return [`${sequence_number} ${JSON.stringify(rest)}`]
    const before = sequence_number - words.length
    return words.split('').map((unit, index) => `${before + index + 1} ${JSON.stringify(rest)} ${unit.charCodeAt(0)}`)
  })
}

const typesOf = (events: readonly ResponseEvent[]) => events.map(({ type }) => type.replace('response.', ''))

t.test('a text reply is one message item, and its deltas are counted by their units', async (t) => {
  const events = tell([started, delta(0, 0, 'Hel'), delta(0, 3, 'lo'), done()])
  t.same(
    events.map(({ sequence_number, type }) => [sequence_number, type.replace('response.', '')]),
    [
      [0, 'created'],
      [2, 'in_progress'],
      [3, 'output_item.added'],
      [4, 'content_part.added'],
      [7, 'output_text.delta'],
      [9, 'output_text.delta'],
      [10, 'output_text.done'],
      [11, 'content_part.done'],
      [12, 'output_item.done'],
      [13, 'completed'],
    ],
  )
  const item = {
    id: `msg_${hex}_0`,
    type: 'message',
    status: 'completed',
    role: 'assistant',
    content: [{ type: 'output_text', text: 'Hello', annotations: [], logprobs: [] }],
  }
  t.same(events.at(-2)?.item, item)
  t.match(events.at(-1)?.response, { ...run.head, status: 'completed', error: null, output: [item] })
})

t.test(
  'reasoning is a summary, a call of the client’s tool a function call, and those of the gateway are not shown',
  async (t) => {
    const events = tell([
      started,
      { type: 'part', data: { part: 0, kind: 'reasoning' } },
      delta(0, 0, 'Hm'),
      { type: 'part', data: { part: 1, kind: 'tool_call', call_id: 'own', name: 'look_up' } },
      { type: 'tool', data: { part: 1, call_id: 'own', name: 'look_up', input: {}, output: 1 } },
      { type: 'source', data: { part: 2, url: 'https://example.org' } },
      { type: 'part', data: { part: 3, kind: 'tool_call', call_id: 'c1', name: 'weather' } },
      delta(3, 0, '{"city":'),
      { type: 'part', data: { part: 4, kind: 'tool_call', call_id: 'c2', name: 'none' } },
      delta(3, 8, '"Rom"}'),
      { type: 'tool', data: { part: 3, call_id: 'c1', name: 'weather', input: { city: 'Rom' } } },
      { type: 'tool', data: { part: 4, call_id: 'c2', name: 'none', input: {} } },
      done({ finish_reason: 'tool_calls' }),
    ])
    t.same(typesOf(events), [
      'created',
      'in_progress',
      'output_item.added',
      'reasoning_summary_part.added',
      'reasoning_summary_text.delta',
      'reasoning_summary_text.done',
      'reasoning_summary_part.done',
      'output_item.done',
      'output_item.added',
      'function_call_arguments.delta',
      'function_call_arguments.delta',
      'function_call_arguments.done',
      'output_item.done',
      'output_item.added',
      'function_call_arguments.delta',
      'function_call_arguments.done',
      'output_item.done',
      'completed',
    ])
    const { output } = (events.at(-1) as ResponseEvent & { response: { output: unknown[] } }).response
    t.match(output, [
      { id: `rs_${hex}_0`, summary: [{ type: 'summary_text', text: 'Hm' }] },
      { id: `fc_${hex}_3`, call_id: 'c1', name: 'weather', arguments: '{"city":"Rom"}', status: 'completed' },
      { id: `fc_${hex}_4`, call_id: 'c2', name: 'none', arguments: '{}', status: 'completed' },
    ])
    t.equal(output.length, 3)
  },
)

t.test('each end has its event, its status and its reason, and what broke off is incomplete', async (t) => {
  const broken = { code: 'interrupted', message: 'It ended.', retryable: true }
  const usage = { input_tokens: 3, output_tokens: 2, total_tokens: 5, cached_input_tokens: 1, reasoning_tokens: 2 }
  const ends = [
    [
      { finish_reason: 'length' },
      'incomplete',
      { status: 'incomplete', incomplete_details: { reason: 'max_output_tokens' } },
    ],
    [{ finish_reason: 'content_filter' }, 'incomplete', { incomplete_details: { reason: 'content_filter' } }],
    [{ status: 'stopped' }, 'incomplete', { status: 'cancelled', error: null }],
    [
      { status: 'interrupted', error: broken },
      'failed',
      { status: 'failed', error: { code: 'interrupted', message: 'It ended.' } },
    ],
    [{ status: 'failed', error: broken }, 'failed', { status: 'failed', incomplete_details: null }],
  ] as const
  for (const [end, type, response] of ends) {
    const events = tell([started, delta(0, 0, 'Hel'), done({ ...end, usage })])
    t.equal(events.at(-1)?.type, `response.${type}`)
    t.match(events.at(-1)?.response, {
      ...response,
      output: [{ status: 'incomplete', content: [{ text: 'Hel' }] }],
      usage: {
        input_tokens_details: { cached_tokens: 1, cache_write_tokens: 0 },
        output_tokens_details: { reasoning_tokens: 2 },
      },
    })
    t.match(events.at(-2), { type: 'response.output_item.done', item: { status: 'incomplete' } })
  }
})

t.test('who waits in the queue is told so, and is told the same numbers as who comes later', async (t) => {
  const events = [started, delta(0, 0, 'Hi'), done()]
  const waited = tell(events, true)
  t.same(typesOf(waited).slice(0, 3), ['created', 'queued', 'in_progress'])
  t.match(waited[0]?.response, { status: 'queued' })
  t.same(atomsOf(waited).slice(3), atomsOf(tell(events)).slice(2))
  const stopped = tell([started, done({ status: 'stopped' })], true)
  t.same(typesOf(stopped), ['created', 'queued', 'incomplete'])
  t.same(atomsOf(stopped).at(-1), atomsOf(tell([started, done({ status: 'stopped' })])).at(-1))
})

t.test('a surrogate pair is told whole, and is not cut by a cursor', async (t) => {
  const events = tell([started, delta(0, 0, 'a\ud83d'), delta(0, 2, '\ude00b'), done()])
  t.same(
    events.flatMap(({ delta: words }) => words ?? []),
    ['a', '😀b'],
  )
  const [, whole] = events.filter(({ type }) => type.endsWith('.delta')) as [ResponseEvent, ResponseEvent]
  t.same(cut(whole, whole.sequence_number - 2), [whole])
  t.match(cut(whole, whole.sequence_number - 1), [{ delta: 'b' }])
  t.same(cut(whole, whole.sequence_number), [])
})

t.test('what a reset takes back cannot be told, and its viewer is lost', async (t) => {
  const teller = createTeller({ ...run, isQueued: false })
  teller.tell(started)
  teller.tell(delta(0, 0, 'Hello'))
  t.equal(teller.tell(reset([{ kind: 'text', text: 'Hel' }])), 'lost')
})

t.test(
  'who was lost comes back without a cursor and reads to the end; with one, it is never told another tail',
  async (t) => {
    const log = createMemoryLog()
    t.teardown(() => log.close())
    const said = [started, delta(0, 0, 'Hello'), delta(0, 5, ' all')]
    const taken = [reset([{ kind: 'text', text: 'Hel' }]), delta(0, 3, 'p is here'), done()]
    log.append([{ runId, entries: [...number(said), ...number(taken).map((entry) => ({ ...entry, generation: 2 }))] }])
    const facts = { ...started.data, id: runId, status: 'running', generation: 2 } as unknown as RunFacts
    const deps = {
      log,
      stored: { read: async () => 'unanswered' as const },
      isPersistPending: () => false,
      ticks: createTicks(250),
    }
    async function come(after: number | undefined, from: EventId | undefined): Promise<string> {
      const viewer = createResponsesEncoder().createViewer({ ...run, isQueued: false, after })
      let body = ''
      for await (const { entries } of followRun(deps, facts, from, new AbortController().signal)) {
        for (const entry of entries) {
          const bytes = viewer.encode(entry)
          if (bytes === 'lost') return `${body}LOST`
          body += bytes ?? ''
        }
      }
      return body
    }
    const whole = tell([started, delta(0, 0, 'Help is here'), done()])
    const cuts = (body: string) => [...body.matchAll(/"delta":"(.*?)"/g)].map(([, words]) => words)
    t.match(await come(undefined, beforeAll), /LOST$/, 'as one was that was there all the time')
    for (const after of [undefined, 0, 2]) {
      const body = await come(after, leadFrom(after))
      t.same(cuts(body).join(''), 'Help is here')
      t.ok(body.endsWith(`data: ${JSON.stringify(whole.at(-1))}\n\n`))
    }
    t.match(await come(8, leadFrom(8)), /LOST$/, 'of a text that went on in another way')
    t.notMatch(await come(8, undefined), /LOST/, 'which nothing but the events from before the reset can tell')
  },
)

t.test('ids of responses are those of their runs, and nothing else is one', async (t) => {
  t.equal(toRunId(toResponseId(runId)), runId)
  for (const wrong of [
    '',
    runId,
    `resp_${runId}`,
    `resp_${hex}0`,
    `resp_${hex.toUpperCase()}`,
    `resp_${'g'.repeat(32)}`,
  ]) {
    t.equal(toRunId(wrong), undefined, wrong)
  }
})

t.test('viewers who have been told as much share what is encoded', async (t) => {
  const entries = number([started, delta(0, 0, 'Hel'), delta(0, 3, 'lo'), done()])
  const encoder = createResponsesEncoder()
  const [a, b] = [undefined, 2].map((after) => encoder.createViewer({ ...run, isQueued: false, after }))
  const told = entries.map((entry) => [a?.encode(entry), b?.encode(entry)])
  t.equal(told[2]?.[0], told[2]?.[1])
  t.equal(told[0]?.[1], undefined)
  const queued = encoder.createViewer({ ...run, isQueued: true, after: undefined })
  const late = entries.map((entry) => String(queued.encode(entry) ?? ''))
  t.match(late[0], /response.queued/)
  t.match(late[1], /response.in_progress.*"delta":"Hel"/s)
  t.equal(late[2], String(told[2]?.[0]))
})

/** The same events, with deltas cut anywhere. */
const cutAnywhere = (random: Random, events: readonly RunEvent[]): RunEvent[] =>
  events.flatMap((event) => {
    if (event.type !== 'delta' || random.integer(3) === 0) return [event]
    const { part, offset, text } = event.data
    const at = random.integer(text.length + 1)
    return [delta(part, offset, text.slice(0, at)), delta(part, offset + at, text.slice(at))]
  })

/** An agent's own call can get more arguments behind its answer; nobody answers a call of the client in the same reply. */
function isAnsweredEarly(entries: readonly LogEntry[]): boolean {
  const answered = new Set<number>()
  return eventsOf(entries).some(({ type, data }) => {
    if (type === 'tool' && (data.output !== undefined || data.error !== undefined)) answered.add(data.part)
    return type === 'delta' && answered.has(data.part)
  })
}

t.test('numbers are those of the message, whatever pieces it came in, and a tail joins the head', async (t) => {
  const random = createRandom(20_261_128)
  let otherPieces = 0
  for (let trial = 0; trial < trialsOf(60); trial += 1) {
    const reply = makeReply(random)
    // Calls of its one tool are the client's, or the gateway's own.
    const names = isAnsweredEarly(reply.entries) ? [] : random.pick([['look'], []])
    const shown = { ...run, tools: new Set(names) }
    const tellAs = (events: readonly RunEvent[]) => tryToTell(events, shown)
    const live = tellAs(eventsOf(reply.entries)) ?? []
    const whole = atomsOf(live)
    const isSame = (events: readonly ResponseEvent[]) => JSON.stringify(atomsOf(events)) === JSON.stringify(whole)
    const done = reply.entries.at(-1)?.event.data as Done
    t.same(live.at(-1)?.response, toResponse(shown, toOutcome(done), toOutput(shown, reply.parts, done)))
    for (let viewer = 0; viewer < 4; viewer += 1) {
      const others = tellAs(cutAnywhere(random, eventsOf(retell(random, reply))))
      if (others === undefined || !isSame(others)) return t.same(atomsOf(others ?? []), whole, `trial ${trial}`)
      const head = others.slice(0, random.integer(others.length + 1))
      const tail = live.flatMap((event) => cut(event, head.at(-1)?.sequence_number ?? -1))
      if (!isSame([...head, ...tail])) return t.same(atomsOf([...head, ...tail]), whole, `trial ${trial}`)
      const deltas = [...others, ...tail].map((event) => event.delta ?? '')
      if (deltas.some((words) => !words.isWellFormed())) return t.fail('a torn pair')
      otherPieces += others.length === live.length ? 0 : 1
    }
  }
  t.ok(otherPieces > trialsOf(60), 'by the count of its events, a viewer would have other numbers')
})

t.test('the official client makes of the bytes what a whole response holds, whatever they come in', async (t) => {
  const random = createRandom(7)
  const shown = { ...run, tools: new Set(['look']) }
  let deltas = 0
  for (let trial = 0; trial < trialsOf(12); trial += 1) {
    const reply = makeReply(random)
    if (isAnsweredEarly(reply.entries)) continue
    const viewer = createResponsesEncoder().createViewer({
      ...shown,
      isQueued: random.integer(2) === 0,
      after: undefined,
    })
    const body = retell(random, reply)
      .map((entry) => String(viewer.encode(entry) ?? ''))
      .join('')
    const client = new OpenAI({ apiKey: 'x', baseURL: 'http://x.test', fetch: async () => answerWith(body, random) })
    const stream = client.responses.stream({ model: 'fast', input: '' })
    let text = ''
    stream.on('response.output_text.delta', ({ delta: words }) => {
      text += words
      deltas += 1
    })
    const final = await stream.finalResponse()
    const done = reply.entries.at(-1)?.event.data as Done
    const output = toOutput(shown, reply.parts, done)
    t.match(final, { id: run.head.id, status: toOutcome(done).status, output_text: text })
    t.match(final.output, output)
    t.equal(final.output.length, output.length)
    t.equal(text, contentOf(reply.parts))
  }
  t.ok(deltas > 0)
})
