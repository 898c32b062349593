/**
 * A provider that needs no key and no network: it answers every conversation with a reply made of its own sentences and
 * a quote of the message, the same for the same conversation. For a first look, and for tests of everything behind it.
 * It is not a model, and says so.
 *
 * A stream waits in one place only, for the next token's due time, which is counted from the start: what comes late does
 * not make the next one later. Abort ends that wait at once and throws the signal's reason; `close` ends it with
 * `upstream_unavailable`. Nothing but the timer of that wait is open, and it goes with the stream.
 *
 * Models: `fast` comes without pauses; any other name, `demo` by custom, comes at `tokensPerSecond`.
 */
import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { Problem } from '../errors.ts'
import type { Upstream, UpstreamEvent, UpstreamMessage, UpstreamRequest } from './upstream.ts'

const defaultTokensPerSecond = 40
/** Of the message, in code points: enough to recognise it, too little to fill the reply. */
const quoteCodePointsMax = 160
/** Letters of one token, roughly as tokenizers cut English. */
const tokenLetters = 4

export interface DemoClock {
  /** Milliseconds on a clock that never goes back. */
  now(): number
  /** Rejects with the signal's reason as soon as it is aborted. */
  sleep(ms: number, signal: AbortSignal): Promise<void>
}

export interface DemoOptions {
  readonly tokensPerSecond?: number
  readonly clock?: DemoClock
}

export function createDemo(options: DemoOptions = {}): Upstream {
  const { tokensPerSecond = defaultTokensPerSecond, clock = systemClock } = options
  const open = new Set<AbortController>()
  let closed = false

  async function* stream(
    request: UpstreamRequest,
    signal: AbortSignal,
  ): AsyncGenerator<UpstreamEvent, void, undefined> {
    signal.throwIfAborted()
    if (closed) throw cutShort()
    const stop = new AbortController()
    const onAbort = () => stop.abort(signal.reason)
    signal.addEventListener('abort', onAbort, { once: true })
    open.add(stop)
    try {
      const seed = hashOf(request.messages)
      const tokens = tokensOf(composeReply(request.messages, seed))
      const tokenMs = request.model === 'fast' ? 0 : 1000 / tokensPerSecond
      const startMs = clock.now()
      yield { type: 'response', id: `demo-${seed.toString('hex', 0, 8)}`, model: request.model }
      let count = 0
      for (const text of tokens) {
        count++
        const waitMs = startMs + count * tokenMs - clock.now()
        if (tokenMs > 0 && waitMs > 0) await clock.sleep(waitMs, stop.signal)
        stop.signal.throwIfAborted()
        yield { type: 'text', text }
        stop.signal.throwIfAborted()
      }
      yield { type: 'finish', reason: 'stop' }
      const input = request.messages.reduce((sum, message) => sum + 4 + Math.ceil(message.content.length / 4), 0)
      yield {
        type: 'usage',
        usage: { input_tokens: input, output_tokens: count, total_tokens: input + count },
      }
    } finally {
      signal.removeEventListener('abort', onAbort)
      open.delete(stop)
    }
  }

  return {
    provider: 'demo',
    stream,
    close() {
      closed = true
      for (const stop of open) stop.abort(cutShort())
      return Promise.resolve()
    },
  }
}

const systemClock: DemoClock = {
  now: () => performance.now(),
  async sleep(ms, signal) {
    try {
      await sleep(ms, undefined, { signal })
    } catch (error) {
      // The timer's own AbortError hides the reason one level down.
      signal.throwIfAborted()
      throw error
    }
  },
}

function cutShort(): Problem {
  return new Problem('upstream_unavailable', 'The reply broke off.')
}

function hashOf(messages: readonly UpstreamMessage[]): Buffer {
  const hash = createHash('sha256')
  for (const { role, content } of messages) hash.update(`${role}\0${content}\0`)
  return hash.digest()
}

/** The words of the reply with the white space before them. Never cuts a code point in two; cuts graphemes, as models do. */
function tokensOf(text: string): string[] {
  const pattern = new RegExp(`\\s*(?:[!-~]{1,${tokenLetters}}|[^\\s!-~]{1,2})`, 'gu')
  return text.match(pattern) ?? []
}

function composeReply(messages: readonly UpstreamMessage[], seed: Buffer): string {
  const message = messages.findLast(({ role }) => role === 'user')?.content ?? ''
  const quote = quoteOf(message)
  const turn = messages.filter(({ role }) => role === 'user').length
  const pick = createPicker(seed)

  const items = pick.some(listItems, 4).map((item) => `- ${item}`)
  const scripts = pick.some(otherScripts, otherScripts.length).map((line) => `> ${line}`)
  return [
    `${pick.one(greetings)} ${quote === '' ? 'Your message was empty.' : `You wrote “${quote}”.`}`,
    `That was message number ${turn} of this conversation, with ${message.length} UTF-16 units. I am the built-in demo, not a model: I cannot answer it, but I can show how a reply arrives. ${pick.one(offers)}`,
    pick.one(paragraphs),
    'A few things worth trying while this text is still coming:',
    items.join('\n'),
    `And this is how a program would send what you just sent:`,
    [
      '```ts',
      `const message = ${JSON.stringify(quote)}`,
      "const response = await fetch('/api/v1/chat/stream', {",
      "  method: 'POST',",
      "  headers: { 'content-type': 'application/json' },",
      '  body: JSON.stringify({ message, client_message_id: crypto.randomUUID() }),',
      '})',
      'for await (const bytes of response.body) render(bytes) // one event after the other',
      '```',
    ].join('\n'),
    'Text is more than ASCII, and every one of these characters has to survive being cut into pieces on the way:',
    scripts.join('\n>\n'),
    `${pick.one(closings)} ${pick.one(emoji)}`,
  ].join('\n\n')
}

function quoteOf(message: string): string {
  // Two units a code point at most: a message of a megabyte is not spread into an array to take its beginning.
  const beginning = message
    .slice(0, quoteCodePointsMax * 4)
    .replaceAll('\0', '')
    .toWellFormed()
  const line = beginning.replaceAll(/\s+/g, ' ').trim()
  const points = [...line]
  if (points.length <= quoteCodePointsMax && beginning.length === message.replaceAll('\0', '').length) return line
  return `${points.slice(0, quoteCodePointsMax).join('').trimEnd()}…`
}

function createPicker(seed: Buffer): {
  one(from: readonly string[]): string
  some(from: readonly string[], count: number): string[]
} {
  let offset = 0
  const next = (limit: number) => {
    // Four bytes a choice, around the digest: it has eight of them, and two choices that agree do no harm.
    const value = seed.readUInt32BE(offset % seed.length)
    offset += 4
    return value % limit
  }
  return {
    one: (from) => from[next(from.length)]!,
    some(from, count) {
      const rest = [...from]
      return Array.from({ length: Math.min(count, rest.length) }, () => rest.splice(next(rest.length), 1)[0]!)
    },
  }
}

const greetings = [
  'Hello! 👋',
  'Good to hear from you.',
  'Message received, every byte of it. 📬',
  'Thanks for writing. ✨',
]

const offers = [
  'Watch the words come one by one, then do something unkind to the connection.',
  'Look away for a moment if you like; the reply goes on without you.',
  'Everything below will be in the database before you are told that it has ended.',
]

const paragraphs = [
  'Each piece of this reply is numbered and written to a log before anybody sees it. Your browser is a reader with a place in that log, so it can lose its connection, come back, name the last number it has seen, and go on from there without a gap and without a word twice. A second tab is just another reader with a place of its own.',
  'A reply that takes twenty seconds will meet a train tunnel, a sleeping laptop or a deployment sooner or later. None of that is a reason to lose it: the run belongs to the server and not to the request that started it, and the text so far is kept even when the process that was writing it is killed in the middle of a sentence.',
  'There is exactly one end to every reply, and it is sent only after the message is in the database. If a connection closes before that end, it was cut, and the client knows that it has to come back. If it has seen the end, then what it shows and what is stored are the same text, byte for byte.',
]

const listItems = [
  'Reload the page: the text so far comes back, and the rest follows.',
  'Open the same conversation in a **second tab** and watch both.',
  'Press *stop*: what you have seen is what is kept.',
  'Switch the network off for a few seconds, then on again.',
  'Send the same request twice with one key: there is still only one reply.',
  'Restart the server in mid-sentence, if it is yours to restart.',
  'Ask again with exactly the same words: the demo always repeats itself.',
]

const otherScripts = [
  '日本語：一文字も失わずに、最後まで届きます。',
  'العربية: تصل كل كلمة كما كُتبت، من البداية إلى النهاية.',
  'हिन्दी: हर शब्द वैसा ही पहुँचता है जैसा लिखा गया था।',
]

const closings = [
  'That is all I have to say; the next event is the end.',
  'This was the last sentence; you will see the end when it is in the database.',
  'Nothing was lost on the way, as far as I can tell.',
]

const emoji = ['👩‍🚀🚀', '🏳️‍🌈🎉', '👨‍👩‍👧‍👦💬', '🧑🏽‍💻✅']
