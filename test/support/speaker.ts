/**
 * What a scripted provider says, call by call, and a record of it. The first word of a user message is its key: it finds
 * the plan of the reply, and ties every call to the message it was made for. No two calls say the same, so a reply
 * that was put together from two of them would be noticed.
 *
 * The speaker owns its records. A client that leaves ends its call where it stands; the record says so.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { chunk, createGate, doneMarker, type Script, usageChunk } from '../../scripts/fake-upstream.ts'
import { nowMs } from './history.ts'
import { createRandom } from './random.ts'

export interface Plan {
  readonly words: number
  /** Between two words. */
  readonly paceMs: number
  /** Before the first word. */
  readonly silentMs?: number
  /** Says so many words and then nothing, until `release`. */
  readonly holdAfterWords?: number
  /** Ends at `release`, if that comes before its words are all said. */
  readonly untilReleased?: boolean
}

/** One call, as the provider knows it. */
export interface SaidCall {
  readonly key: string
  /** From 1, among the calls of the key. */
  readonly call: number
  readonly atMs: number
  firstWordAtMs: number | undefined
  lastWordAtMs: number | undefined
  /** When it said nothing because its plan holds. */
  held?: { readonly fromMs: number; readonly toMs: number }
  text: string
  /** All was said, and the client was there to the end. */
  whole: boolean
}

export interface Speaker {
  readonly script: Script
  readonly said: readonly SaidCall[]
  plan(key: string, plan: Plan): void
  /** Lets the replies of a key go on that hold, now and in calls to come. */
  release(key: string): void
}

// Surrogate pairs, a combining accent and a joined emoji: an offset counted in anything but UTF-16 units goes wrong here.
const vocabulary = [
  'plain',
  'ñandú',
  'e\u0301tude',
  '漢字',
  '🎈',
  '👩‍👩‍👧',
  'line\nbreak',
  '"quoted"',
  'back\\slash',
  '\u2028',
]

export function createSpeaker(defaults: Plan = { words: 20, paceMs: 2 }): Speaker {
  const plans = new Map<string, Plan>()
  const gates = new Map<string, ReturnType<typeof createGate>>()
  const released = new Set<string>()
  const said: SaidCall[] = []

  function gateOf(key: string) {
    const gate = gates.get(key) ?? createGate()
    gates.set(key, gate)
    return gate
  }

  const script: Script = async function* (request) {
    const key = keyOf(request.message)
    const { words, paceMs, silentMs = 0, holdAfterWords, untilReleased = false } = plans.get(key) ?? defaults
    const call: SaidCall = {
      key,
      call: said.filter((one) => one.key === key).length + 1,
      atMs: nowMs(),
      firstWordAtMs: undefined,
      lastWordAtMs: undefined,
      text: '',
      whole: false,
    }
    said.push(call)
    if (silentMs > 0) await sleep(silentMs)
    yield chunk({ role: 'assistant', content: '' })
    let count = 0
    for (const [index, word] of wordsOf(key, call.call, words).entries()) {
      if (index === holdAfterWords) {
        const fromMs = nowMs()
        await gateOf(key).opened
        call.held = { fromMs, toMs: nowMs() }
      }
      if (paceMs > 0 && index > 0) await sleep(paceMs)
      if (untilReleased && released.has(key)) break
      call.firstWordAtMs ??= nowMs()
      call.lastWordAtMs = nowMs()
      call.text += word
      count += 1
      yield chunk({ content: word })
    }
    yield chunk({}, 'stop')
    yield usageChunk(8, count)
    call.whole = true
    yield doneMarker
  }

  return {
    script,
    said,
    plan: (key, plan) => void plans.set(key, plan),
    release(key) {
      released.add(key)
      gateOf(key).open()
    },
  }
}

/** The first word of a message. */
export function keyOf(message: string): string {
  return message.split(' ', 1)[0] ?? ''
}

/** The words of a call, the same each time it is asked. */
export function wordsOf(key: string, call: number, count: number): string[] {
  const seed = [...`${key}/${call}`].reduce((sum, letter) => (Math.imul(sum, 31) + letter.charCodeAt(0)) | 0, 7)
  const random = createRandom(seed)
  return Array.from({ length: count }, (_, index) =>
    index === 0 ? `${key}/${call}` : ` ${random.pick(vocabulary)}${index}`,
  )
}
