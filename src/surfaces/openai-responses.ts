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
import { isToldAlike, nothingTold, type Told, type ToldPart, tellChanges } from './changes.ts'
import { itemAt, toArray } from './list.ts'
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

/** What a viewer has been told, as a value; viewers who have been told the same share it. */
interface Said {
  readonly told: Told
  /** Of the last event that was told. */
  readonly number: number
  readonly current: Current | undefined
  readonly next: Place
}

interface Encoded {
  readonly before: Said
  readonly after: Said
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
          const before = teller.said
          const known = encoded.get(entry)
          // Who has been told as much is told the same now; who has a cursor behind it, is told nothing but the end.
          if (known !== undefined && isSaidAlike(known.before, before, entry.event)) {
            const isWhole = before.number >= after
            if (isWhole || (known.after.number <= after && entry.event.type !== 'done')) {
              teller.goOn(known.after)
              return isWhole ? known.bytes : undefined
            }
          }
          const events = teller.tell(entry.event)
          if (events === 'lost') return 'lost'
          // The end is told to everybody: a reply that was lost in part is shorter than what some have seen of it, and its
          // end may have a number that they have passed.
          const end = entry.event.type === 'done' ? events.at(-1) : undefined
          const bytes = toBytes(events.flatMap((event) => (event === end ? [event] : cut(event, after))))
          // The first event is not of the log, and not the same for who has seen the queue.
          const isShared = before.number >= begunNumber && before.number >= after
          if (isShared) encoded.set(entry, { before, after: teller.said, bytes })
          return bytes
        },
      }
    },
  }
}

function isSaidAlike(a: Said, b: Said, event: RunEvent): boolean {
  if (a === b) return true
  if (a.number !== b.number || !isSamePlace(a.next, b.next) || !isToldAlike(a.told, b.told, event)) return false
  if (a.current === undefined || b.current === undefined) return a.current === b.current
  const { isBegun, pending } = a.current
  return isSamePlace(a.current, b.current) && isBegun === b.current.isBegun && pending === b.current.pending
}

const isSamePlace = (a: Place, b: Place): boolean => a.part === b.part && a.item === b.item

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

/** Of a part, and of its item among those that are shown. */
interface Place {
  readonly part: number
  readonly item: number
}

/** The item that is being told. */
interface Current extends Place {
  readonly isBegun: boolean
  /** What it has to say, and was not told yet. */
  readonly pending: string
}

const nothingSaid: Said = { told: nothingTold, number: -1, current: undefined, next: { part: 0, item: 0 } }

interface Teller {
  readonly said: Said
  tell(event: RunEvent): readonly ResponseEvent[] | 'lost'
  /** Goes on from what another viewer of the run has been told, who has been told the same. */
  goOn(said: Said): void
}

/** Events of a run -> all events of its response. */
export function createTeller(run: Omit<ResponseViewer, 'after'>): Teller {
  let said = nothingSaid
  let { told, number, current, next } = said
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
    const status = statusOf([part], 0, isWhole || index < told.lastSaid)
    const ended = toItem(run, index, part, status, words)
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
    while (next.part < told.parts.size) {
      const { part, phase } = itemAt(told.parts, next.part) as ToldPart
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
    const parts = toArray(told.parts).map((held) => held.part)
    const outcome = toOutcome(done)
    const response = toResponse(run, outcome, toOutput(run, parts, done))
    say(`response.${outcome.status === 'cancelled' ? 'incomplete' : outcome.status}`, { response })
  }

  /** Of a run that was stopped before it said anything. */
  function isEmptyEnd(done: Done | undefined): boolean {
    return done?.status === 'stopped' && told.parts.size === 0
  }

  return {
    get said() {
      return said
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
      said = { told, number, current, next }
      return events
    },
    goOn(other) {
      said = other
      ;({ told, number, current, next } = other)
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
