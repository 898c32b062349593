/**
 * Replies of chance, as logs: what an upstream or an agent may say, folded by the draft as a run does, with all that is
 * awkward in it; and the ways in which a viewer may be told the same log: joined, with a snapshot in the place of what was
 * missed, or after another process has taken the run over.
 */
import type { LogEntry, Part, RunEvent, TerminalStatus } from '../../src/log/event.ts'
import { foldEvents, resetEntry } from '../../src/log/fold.ts'
import { createDraft, type Draft } from '../../src/runs/draft.ts'
import type { Random } from '../support/random.ts'

export interface MadeReply {
  /** From `run` to `done`, as the log holds it. */
  readonly entries: readonly LogEntry[]
  /** What is stored. */
  readonly parts: readonly Part[]
}

export const runId = '019a0000-0000-7000-8000-00000000000a'
export const messageId = '019a0000-0000-7000-8000-00000000000b'

const words = [
  'Hel',
  'lo',
  ' ',
  '\n\n',
  '👩‍👩‍👧',
  '\u2028',
  '\r',
  '"',
  '\\',
  'data: x\n\nid: 9-9\n',
  '你好',
  'é',
  '</script>',
]
const statuses: readonly TerminalStatus[] = ['completed', 'completed', 'stopped', 'failed', 'interrupted']

/** A run's whole log, and what is stored of it. */
export function makeReply(random: Random, stepsMax = 3, saidMax = 14): MadeReply {
  const draft = createDraft()
  const events: RunEvent[] = [started]
  const take = () => events.push(...draft.takeEvents())
  const steps = 1 + random.integer(stepsMax)
  const status = random.pick(statuses)
  for (let step = 0; step < steps; step += 1) {
    const isCut = status !== 'completed' && step === steps - 1 && random.next() < 0.5
    saySomething(random, draft, `${step}`, random.integer(saidMax), take)
    if (isCut) break
    draft.apply({ type: 'finish', reason: 'stop' })
    const open = draft.endStep()
    take()
    // The last step may leave its calls to the client.
    if (step === steps - 1 && random.next() < 0.5) break
    for (const { key } of open) {
      draft.apply({ type: 'tool_result', key, ...answerOf(random) })
      if (random.next() < 0.5) take()
    }
    take()
    draft.beginStep()
  }
  take()
  const error = status === 'failed' || status === 'interrupted' ? brokenOff : undefined
  events.push({ type: 'done', data: { status, message_id: messageId, ...(error && { error }) } })
  return {
    entries: events.map((event, index) => ({ generation: 1, seq: index + 1, event: structuredClone(event) })),
    parts: structuredClone([...draft.parts]),
  }
}

export const brokenOff = { code: 'upstream_unavailable', message: 'It broke off.', retryable: true }

const started: RunEvent = {
  type: 'run',
  data: {
    run_id: runId,
    session_id: '019a0000-0000-7000-8000-00000000000c',
    user_message_id: '019a0000-0000-7000-8000-00000000000d',
    message_id: messageId,
    model: 'fake',
    mode: 'balanced',
    created_at: '2026-01-01T00:00:00.000000Z',
  },
}

function answerOf(random: Random) {
  if (random.next() < 0.3) return { error: { code: 'failed', message: 'The tool failed.' } }
  return { output: random.pick<unknown>([null, '', 0, false, { deep: [1, { a: 'b' }] }, 'found\n\n']) }
}

function saySomething(random: Random, draft: Draft, step: string, times: number, take: () => void): void {
  const keys = [`a${step}`, `b${step}`, `c${step}`]
  const begun = new Set<string>()
  for (let index = 0; index < times; index += 1) {
    const key = random.pick(keys)
    switch (random.integer(10)) {
      case 0:
      case 1:
      case 2:
        draft.apply({ type: 'text', text: random.pick(words) })
        break
      case 3:
        draft.apply({ type: 'reasoning', text: random.pick(words) })
        break
      case 4:
      case 5: {
        const isFirst = !begun.has(key)
        begun.add(key)
        // Most arguments are JSON, in pieces; some never are.
        const piece = isFirst ? random.pick(['{}', '[', '', '{"a":"\\u0000"}', 'no']) : random.pick(['', ']', ' '])
        draft.apply({
          type: 'tool_call',
          key,
          arguments: piece,
          ...(isFirst && { callId: `call_${key}`, name: 'look' }),
        })
        break
      }
      case 6:
        draft.apply({ type: 'source', url: `https://x.test/${random.integer(5)}`, title: random.pick(words) })
        if (random.next() < 0.3) draft.apply({ type: 'source', title: random.pick(words) })
        break
      case 7:
        draft.apply({ type: 'file', mediaType: 'image/png', url: 'data:image/png;base64,AAAA' })
        break
      case 8:
        if (random.next() < 0.5) draft.apply({ type: 'signature', signature: 'seal' })
        else draft.apply({ type: 'signature', signature: 'seal', redacted: true })
        break
      case 9:
        if (begun.has(key)) draft.apply({ type: 'tool_result', key, ...answerOf(random) })
        else draft.say({ type: 'progress', data: { round: index } })
        break
    }
    if (random.next() < 0.5) take()
  }
}

/** Adjacent deltas of a part as one, as viewers who catch up get them. */
export function joinDeltas(entries: readonly LogEntry[]): readonly LogEntry[] {
  const joined: LogEntry[] = []
  for (const entry of entries) {
    const last = joined.at(-1)?.event
    const { event } = entry
    if (event.type === 'delta' && last?.type === 'delta' && last.data.part === event.data.part) {
      const { part, offset, text } = last.data
      joined[joined.length - 1] = {
        ...entry,
        event: { type: 'delta', data: { part, offset, text: text + event.data.text } },
      }
    } else joined.push(entry)
  }
  return joined
}

/** A snapshot in the place of the events from `from` to `to`, as `parts` says what there is by then. */
export function withReset(entries: readonly LogEntry[], from: number, to: number): readonly LogEntry[] {
  const last = entries[to - 1]
  if (last === undefined || from >= to) return entries
  return [
    ...entries.slice(0, from),
    resetEntry(messageId, foldEvents(entries.slice(0, to)), last),
    ...entries.slice(to),
  ]
}

/** One of the ways in which a viewer may be told all of a log. */
export function retell(random: Random, { entries, parts }: MadeReply): readonly LogEntry[] {
  const end = entries.length - 1
  const from = 1 + random.integer(end)
  const to = from + random.integer(end - from + 1)
  switch (random.integer(5)) {
    case 0:
      return joinDeltas(entries)
    case 1:
      return withReset(entries, from, to)
    case 2:
      return joinDeltas(withReset(withReset(entries, from, to), 1, 1 + random.integer(from)))
    case 3: {
      // From the stored message, with its seals, as the database gives JSON back.
      const stored: Part[] = JSON.parse(JSON.stringify(parts))
      const last = entries[end - 1] as LogEntry
      return [...entries.slice(0, from), resetEntry(messageId, stored, last), entries[end] as LogEntry]
    }
    default:
      // Another process goes on with what was there.
      return [
        ...entries.slice(0, from),
        resetEntry(messageId, foldEvents(entries.slice(0, from)), { generation: 2, seq: 1 }),
        ...entries.slice(from).map((entry, index) => ({ ...entry, generation: 2, seq: 2 + index })),
      ]
  }
}

/** A body as a client gets it: in pieces that end anywhere, also within a character. */
export function answerWith(body: string, random: Random): Response {
  const bytes = Buffer.from(body)
  const stream = new ReadableStream({
    start(controller) {
      for (let from = 0; from < bytes.length; ) {
        const to = from + 1 + random.integer(200)
        controller.enqueue(bytes.subarray(from, to))
        from = to
      }
      controller.close()
    },
  })
  return new Response(stream, { headers: { 'content-type': 'text/event-stream' } })
}
