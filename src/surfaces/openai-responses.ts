/**
 * The OpenAI Responses surface: how a run's events look to clients that read the events of a response, and come back with
 * the number of the last one (`starting_after`).
 *
 * Nothing is stored of those numbers. An event's number follows from the message alone, because events are told in one
 * order: item after item, and what a later part says is held back until the items before it are done. A delta takes as
 * many numbers as it has UTF-16 units, and has that of its last one; every other event takes one. So a client sees the
 * same numbers whatever pieces the words came in: live, joined for a replay, after a takeover, or from the stored message
 * when the log is long gone; and a cursor in the middle of what is one delta by now cuts it there.
 * Number 1 is that of `response.queued`, which only who has seen the queue is told.
 *
 * A delta never ends between the halves of a surrogate pair: no other language could read it.
 */
import { beforeAll, type Done, type EventId, type LogEntry, type Part, type RunEvent } from '../log/event.ts'
import { nothingTold, type Told, tellChanges } from './changes.ts'
import {
  isShown,
  isWholeReply,
  itemIdOf,
  type ShownRun,
  statusOf,
  toItem,
  toOutcome,
  toOutput,
  toOutputText,
  toResponse,
  toSummaryText,
  unended,
  wordsOf,
} from './openai-responses-object.ts'

export interface ResponseViewer extends ShownRun {
  /** It was when its viewer came. */
  readonly isQueued: boolean
  /** The number of the last event that the viewer has; undefined for all of them. */
  readonly after: number | undefined
}

/** An event as it is sent. */
export interface ResponseEvent {
  readonly type: string
  readonly sequence_number: number
  readonly delta?: string
  readonly [name: string]: unknown
}

export interface ResponsesEncoder {
  /** One viewer's way from the run's first event on, wherever its cursor is. */
  createViewer(viewer: ResponseViewer): { encode(entry: LogEntry): Buffer | 'lost' | undefined }
}

interface Encoded {
  /** The number of the last event before it. */
  readonly before: number
  readonly bytes: Buffer | undefined
}

/** What a client is told first: `response.created`, `response.queued` and `response.in_progress`. */
const createdNumber = 0
const queuedNumber = 1
const begunNumber = 2

export function createResponsesEncoder(): ResponsesEncoder {
  const encoded = new WeakMap<LogEntry, Encoded>()
  return {
    createViewer({ after = -1, ...viewer }) {
      const teller = createTeller(viewer)
      return {
        encode(entry) {
          const before = teller.number
          const events = teller.tell(entry.event)
          if (events === 'lost') return 'lost'
          // Who has been told as much is told the same now. The first event is not of the log.
          const isShared = before >= begunNumber && before >= after
          const known = isShared ? encoded.get(entry) : undefined
          if (known?.before === before) return known.bytes
          const bytes = toBytes(events.flatMap((event) => cut(event, after)))
          if (isShared) encoded.set(entry, { before, bytes })
          return bytes
        },
      }
    },
  }
}

/**
 * Where a viewer is led from. One who has words is led over all that was ever said: where some of them were taken back, it
 * is lost, and not told the tail of another text. One who has none begins where everybody does, behind what was taken back.
 */
export function leadFrom(after: number | undefined): EventId | undefined {
  return after === undefined || after <= begunNumber ? undefined : beforeAll
}

/** What is left of an event for a client that has all up to `after`. */
export function cut(event: ResponseEvent, after: number): ResponseEvent[] {
  const { sequence_number, delta } = event
  if (sequence_number <= after) return []
  const before = delta === undefined ? after : sequence_number - delta.length
  if (delta === undefined || before >= after) return [event]
  const from = after - before
  return [{ ...event, delta: delta.slice(isInPair(delta, from) ? from - 1 : from) }]
}

function toBytes(events: readonly ResponseEvent[]): Buffer | undefined {
  if (events.length === 0) return undefined
  return Buffer.from(events.map((event) => `event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`).join(''))
}

/** The item that is being told. */
interface Current {
  readonly part: number
  readonly item: number
  readonly isBegun: boolean
  /** What it has to say, and was not told yet. */
  readonly pending: string
}

interface Teller {
  /** Of the last event that was told. */
  readonly number: number
  tell(event: RunEvent): readonly ResponseEvent[] | 'lost'
}

/** Events of a run -> all events of its response. */
export function createTeller(run: Omit<ResponseViewer, 'after'>): Teller {
  let told: Told = nothingTold
  let number = -1
  let current: Current | undefined
  let next = { part: 0, item: 0 }
  let events: ResponseEvent[] = []

  function say(type: string, members: Readonly<Record<string, unknown>>): void {
    number += 1
    events.push({ type, sequence_number: number, ...members })
  }

  function sayDelta(type: string, members: Readonly<Record<string, unknown>>, delta: string): void {
    number += delta.length
    events.push({ type, sequence_number: number, ...members, delta })
  }

  function sayBeginning(isQueuedStill: boolean): void {
    if (number < createdNumber) {
      say('response.created', { response: toResponse(run, unended(run.isQueued ? 'queued' : 'in_progress'), []) })
      if (run.isQueued) say('response.queued', { response: toResponse(run, unended('queued'), []) })
    }
    if (isQueuedStill || number >= begunNumber) return
    number = queuedNumber
    say('response.in_progress', { response: toResponse(run, unended('in_progress'), []) })
  }

  function begin(part: Part, { part: index, item }: Current): void {
    const place = placeOf(part, index, item)
    say('response.output_item.added', { output_index: item, item: toItem(run, index, part, 'in_progress') })
    if (part.kind === 'reasoning') say('response.reasoning_summary_part.added', { ...place, part: toSummaryText('') })
    else if (part.kind === 'text') say('response.content_part.added', { ...place, part: toOutputText('') })
  }

  function grow(part: Part, { part: index, item }: Current, delta: string): void {
    const place = placeOf(part, index, item)
    if (part.kind === 'tool_call') sayDelta('response.function_call_arguments.delta', place, delta)
    else if (part.kind === 'reasoning') sayDelta('response.reasoning_summary_text.delta', place, delta)
    else sayDelta('response.output_text.delta', { ...place, logprobs: [] }, delta)
  }

  function end(part: Part, { part: index, item }: Current, isWhole: boolean): void {
    const place = placeOf(part, index, item)
    const words = wordsOf(part)
    if (part.kind === 'tool_call') {
      say('response.function_call_arguments.done', { ...place, name: part.name, arguments: words })
    } else if (part.kind === 'reasoning') {
      say('response.reasoning_summary_text.done', { ...place, text: words })
      say('response.reasoning_summary_part.done', { ...place, part: toSummaryText(words) })
    } else {
      say('response.output_text.done', { ...place, text: words, logprobs: [] })
      say('response.content_part.done', { ...place, part: toOutputText(words) })
    }
    const parts = told.parts.map((held) => held.part)
    const ended = toItem(run, index, part, statusOf(parts, index, isWhole), words)
    say('response.output_item.done', { output_index: item, item: ended })
  }

  /** The parts of an event that say where it belongs. */
  function placeOf(part: Part, index: number, item: number) {
    const place = { item_id: itemIdOf(run.runId, index, part), output_index: item }
    if (part.kind === 'tool_call') return place
    return { ...place, ...(part.kind === 'reasoning' ? { summary_index: 0 } : { content_index: 0 }) }
  }

  /** Tells all that can be told by now. */
  function advance(isWhole: boolean): void {
    while (next.part < told.parts.length) {
      const { part, phase } = told.parts[next.part] as Told['parts'][number]
      const isClosed = phase !== 'open'
      if (!isShown(run, part)) {
        next = { part: next.part + 1, item: next.item }
        continue
      }
      let at: Current = current ?? { ...next, isBegun: false, pending: part.text }
      if (isClosed && part.text === '') at = { ...at, pending: wordsOf(part) }
      if (!at.isBegun && (at.pending !== '' || part.kind === 'tool_call')) {
        begin(part, at)
        at = { ...at, isBegun: true }
      }
      const delta = isClosed ? at.pending : withoutHalf(at.pending)
      if (delta !== '') grow(part, at, delta)
      current = { ...at, pending: at.pending.slice(delta.length) }
      if (!isClosed) return
      if (at.isBegun) end(part, at, isWhole)
      current = undefined
      next = { part: next.part + 1, item: at.isBegun ? next.item + 1 : next.item }
    }
  }

  function sayEnd(done: Done): void {
    // One that was stopped in the queue has not begun.
    number = Math.max(number, begunNumber)
    const parts = told.parts.map((held) => held.part)
    const outcome = toOutcome(done)
    const response = toResponse(run, outcome, toOutput(run, parts, done))
    say(`response.${outcome.status === 'cancelled' ? 'incomplete' : outcome.status}`, { response })
  }

  /** Of a run that was stopped before it said anything. */
  function isEmptyEnd(done: Done | undefined): boolean {
    return done?.status === 'stopped' && told.parts.length === 0
  }

  return {
    get number() {
      return number
    },
    tell(event) {
      const step = tellChanges(told, event)
      if (step === 'lost') return 'lost'
      told = step.told
      events = []
      for (const change of step.changes) {
        if (change.kind !== 'grown' || change.index !== current?.part) continue
        current = { ...current, pending: current.pending + change.text }
      }
      const done = event.type === 'done' ? event.data : undefined
      sayBeginning(run.isQueued && (event.type === 'run' || isEmptyEnd(done)))
      advance(done === undefined || isWholeReply(done))
      if (done !== undefined) sayEnd(done)
      return events
    },
  }
}

/** Without a half of a surrogate pair at its end, which the other half is still to follow. */
function withoutHalf(text: string): string {
  return isHigh(text, text.length - 1) ? text.slice(0, -1) : text
}

const isInPair = (text: string, at: number): boolean => isHigh(text, at - 1) && isLow(text, at)

const isHigh = (text: string, at: number): boolean => (text.charCodeAt(at) & 0xfc00) === 0xd800
const isLow = (text: string, at: number): boolean => (text.charCodeAt(at) & 0xfc00) === 0xdc00
