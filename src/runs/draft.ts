/**
 * The reply as it grows: a pure fold from what the upstream says to the message's parts, and to the events that tell
 * viewers of it. It keeps the events that nobody has taken yet, with adjacent text merged into one delta, so that a
 * frame costs one event however many tokens came in.
 *
 * Text and reasoning follow one another; when the kind changes, or the provider seals what it has said, a new part begins.
 * A tool call is a part of its own, found again by its key while its arguments stream, and closed with a `tool` event when
 * the step ends; what the tool answers is a second one. Sources and files are parts without words.
 *
 * A reply that uses tools has several steps, each a call of the model; keys and the finish reason are those of one step.
 */
import { cleanJson } from '../http/text.ts'
import { contentOf, type Part, type RunEvent, type Usage } from '../log/event.ts'
import type { AgentEvent } from '../upstream/agent.ts'
import { addUsage } from './ledger.ts'

type GrowingDelta = { readonly type: 'delta'; readonly data: { part: number; offset: number; text: string } }

/** What a draft makes parts of; the other events of an agent are not the draft's business, and change nothing. */
export type DraftEvent = AgentEvent

/** A tool call of the step that has just ended. */
export interface EndedCall {
  readonly key: string
  readonly part: Part
}

export interface Draft {
  apply(event: DraftEvent): void
  /** Tells viewers something that is no part. */
  say(event: RunEvent): void
  /** Ends the tool calls whose arguments were still streaming. @returns those of the step that nobody has answered */
  endStep(): readonly EndedCall[]
  /** Another call of the model begins. */
  beginStep(): void
  /** The events since the last call, in order. */
  takeEvents(): RunEvent[]
  readonly parts: readonly Part[]
  readonly content: string
  readonly isEmpty: boolean
  /** Of all steps, as far as the provider has said. */
  readonly usage: Usage | undefined
  /** Of the last step. */
  readonly finishReason: string | undefined
  /** The model's name as the provider gave it. */
  readonly model: string | undefined
}

/** Sources of one reply; more are left out. */
const sourcesMax = 1000

export function createDraft(): Draft {
  const parts: Part[] = []
  let calls = new Map<string, number>()
  const openCalls = new Set<number>()
  const sources = new Set<string>()
  let pending: (RunEvent | GrowingDelta)[] = []
  let growing: GrowingDelta | undefined
  // The text or reasoning part that the next piece of its kind joins.
  let current: number | undefined
  let usageBefore: Usage | undefined
  let usage: Usage | undefined
  let finishReason: string | undefined
  let model: string | undefined

  function open(part: Part): number {
    const index = parts.push(part) - 1
    growing = undefined
    if (part.kind === 'source') {
      const { url, title } = part
      pending.push({ type: 'source', data: { part: index, ...withoutUndefined({ url, title }) } })
    } else if (index > 0 || part.kind !== 'text') {
      const { kind, call_id, name, url, media_type } = part
      pending.push({
        type: 'part',
        data: { part: index, kind, ...withoutUndefined({ call_id, name, url, media_type }) },
      })
    }
    return index
  }

  function grow(index: number, text: string): void {
    const part = parts[index] as Part
    if (growing?.data.part === index) {
      growing.data.text += text
    } else {
      growing = { type: 'delta', data: { part: index, offset: part.text.length, text } }
      pending.push(growing)
    }
    part.text += text
  }

  function applyText(kind: 'text' | 'reasoning', text: string): void {
    if (text === '') return
    if (current === undefined || parts[current]?.kind !== kind) current = open({ kind, text: '' })
    grow(current, text)
  }

  function applyToolCall(event: Extract<DraftEvent, { type: 'tool_call' }>): void {
    let index = calls.get(event.key)
    if (index === undefined) {
      index = open({ kind: 'tool_call', text: '', call_id: event.callId ?? event.key, name: event.name ?? '' })
      calls.set(event.key, index)
      openCalls.add(index)
      current = undefined
    }
    if (event.arguments !== '') grow(index, event.arguments)
  }

  function applySignature({ signature, key, redacted }: Extract<DraftEvent, { type: 'signature' }>): void {
    if (redacted === true) open({ kind: 'reasoning', text: '', redacted, signature })
    else {
      const index = key === undefined ? current : calls.get(key)
      const part = index === undefined ? undefined : parts[index]
      if (part !== undefined) part.signature = signature
    }
    if (key === undefined) current = undefined
  }

  function applySource({ url, title }: Extract<DraftEvent, { type: 'source' }>): void {
    const name = url ?? title ?? ''
    if (sources.has(name) || sources.size >= sourcesMax) return
    sources.add(name)
    open({ kind: 'source', text: '', ...withoutUndefined({ url, title }) })
  }

  function readInput(part: Part): void {
    // Some providers call a tool without parameters with no text at all; cut off, the same is not a call yet.
    const input = part.text === '' && finishReason !== undefined ? {} : parseInput(part.text)
    if (input !== undefined) part.input = input
  }

  function tellCall(index: number): void {
    const { call_id = '', name = '', input, output, error } = parts[index] as Part
    pending.push({
      type: 'tool',
      data: { part: index, call_id, name, ...withoutUndefined({ input, output, error }) },
    })
    growing = undefined
  }

  function applyToolResult(event: Extract<DraftEvent, { type: 'tool_result' }>): void {
    const index = calls.get(event.key)
    const part = index === undefined ? undefined : parts[index]
    if (index === undefined || part === undefined || isAnswered(part)) return
    if (openCalls.delete(index)) readInput(part)
    if (event.error === undefined) part.output = event.output ?? null
    else part.error = event.error
    tellCall(index)
  }

  return {
    parts,
    get content() {
      return contentOf(parts)
    },
    get isEmpty() {
      return parts.length === 0
    },
    get usage() {
      return usageBefore === undefined || usage === undefined ? (usage ?? usageBefore) : addUsage(usageBefore, usage)
    },
    get finishReason() {
      return finishReason
    },
    get model() {
      return model
    },
    apply(event) {
      switch (event.type) {
        case 'text':
        case 'reasoning':
          applyText(event.type, event.text)
          break
        case 'tool_call':
          applyToolCall(event)
          break
        case 'tool_result':
          applyToolResult(event)
          break
        case 'signature':
          applySignature(event)
          break
        case 'source':
          applySource(event)
          break
        case 'file':
          open({ kind: 'file', text: '', media_type: event.mediaType, url: event.url })
          break
        case 'usage':
          usage = event.usage
          break
        case 'finish':
          finishReason = event.reason
          break
        case 'response':
          model = event.model ?? model
          break
      }
    },
    say(event) {
      pending.push(event)
      growing = undefined
    },
    endStep() {
      for (const index of openCalls) {
        readInput(parts[index] as Part)
        tellCall(index)
      }
      openCalls.clear()
      const ended = [...calls].map(([key, index]) => ({ key, part: parts[index] as Part }))
      return ended.filter(({ part }) => !isAnswered(part))
    },
    beginStep() {
      calls = new Map()
      current = undefined
      finishReason = undefined
      usageBefore = this.usage
      usage = undefined
    },
    takeEvents() {
      const events = pending
      pending = []
      growing = undefined
      return events
    },
  }
}

const isAnswered = (part: Part): boolean => part.output !== undefined || part.error !== undefined

/** @returns undefined for arguments that are cut off or not JSON: the raw text is kept, and nothing is made up */
export function parseInput(text: string): unknown {
  try {
    // Escapes such as \u0000 only become characters here.
    return cleanJson(JSON.parse(text))
  } catch {
    return undefined // see above
  }
}

type Defined<T> = { [K in keyof T]?: Exclude<T[K], undefined> }

function withoutUndefined<T extends Readonly<Record<string, unknown>>>(members: T): Defined<T> {
  return Object.fromEntries(Object.entries(members).filter(([, value]) => value !== undefined)) as Defined<T>
}
