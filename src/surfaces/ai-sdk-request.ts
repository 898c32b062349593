/**
 * What a request of `useChat` asks for. Its body brings the whole conversation as the page holds it, each time; the gateway
 * keeps its own, so only the end of it is looked at: the last message of the user, or the answers that the page has given to
 * the calls of the last reply. What a page can hold and the gateway cannot take, it refuses in words for its reader.
 *
 * Nothing is known here of sessions: whether a message is new, or stands in another's place, is for the routes to find out.
 */
import { createHash } from 'node:crypto'
import { Problem } from '../errors.ts'
import { isFields } from './fields.ts'

/** What the SDK's transport sends, beside what a page adds. */
export interface UiBody {
  readonly messages: readonly unknown[]
  readonly trigger?: string
  readonly messageId?: string | null
}

/** A message of the user. */
export interface UiQuestion {
  /** As the page names it. */
  readonly id: string | undefined
  readonly words: string
  readonly metadata: Readonly<Record<string, unknown>>
}

export interface UiToolResult {
  readonly call_id: string
  readonly output?: unknown
  readonly error?: { readonly code: string; readonly message: string }
}

export type UiAsked =
  /** `replaces`: the page has put it into the place of the message with this id. */
  | { readonly kind: 'message'; readonly question: UiQuestion; readonly replaces: boolean }
  /** `messageId` names what is to be made again: a reply, or what it answers. */
  | { readonly kind: 'regenerate'; readonly messageId: string | undefined; readonly question: UiQuestion | undefined }
  /** `key` is the same for the same answers. */
  | { readonly kind: 'results'; readonly results: readonly UiToolResult[]; readonly key: string }

const resultsMax = 64
const callIdUnitsMax = 256
const errorTextUnitsMax = 10_000
const messageIdUnitsMax = 255
const digestUnits = 32

/** @throws Problem `invalid_request` */
export function readAsked({ messages, trigger = 'submit-message', messageId }: UiBody): UiAsked {
  const last = messages.at(-1)
  if (trigger === 'regenerate-message') {
    const question = messages.findLast((message) => read(message, 'role') === 'user')
    return {
      kind: 'regenerate',
      messageId: messageId ?? undefined,
      question: question === undefined ? undefined : readQuestion(question),
    }
  }
  if (trigger !== 'submit-message') {
    throw new Problem('invalid_request', 'trigger is submit-message or regenerate-message.')
  }
  const role = read(last, 'role')
  if (role === 'user') {
    const question = readQuestion(last)
    return { kind: 'message', question, replaces: messageId != null && messageId === question.id }
  }
  if (role === 'assistant') return readAnswers(last)
  throw new Problem('invalid_request', 'The last of messages has to be one of the user or of the assistant.')
}

/** A short name for a text, the same for the same text. */
export function digest(...texts: readonly string[]): string {
  return createHash('sha256').update(JSON.stringify(texts)).digest('hex').slice(0, digestUnits)
}

function readQuestion(message: unknown): UiQuestion {
  const parts = partsOf(message)
  const id = read(message, 'id')
  const metadata = read(message, 'metadata')
  if (parts.some((part) => read(part, 'type') === 'file')) {
    throw new Problem('invalid_request', 'Messages with files are not taken: send words.')
  }
  const words = parts.map((part) => (read(part, 'type') === 'text' ? (read(part, 'text') ?? '') : '')).join('')
  if (typeof id === 'string' && id.length > messageIdUnitsMax) {
    throw new Problem('invalid_request', `The id of a message has ${messageIdUnitsMax} characters at most.`)
  }
  return {
    id: typeof id === 'string' && id !== '' ? id : undefined,
    words,
    metadata: isFields(metadata) ? metadata : {},
  }
}

/** Those of the last step, which is the end of the reply that waits for them. */
function readAnswers(message: unknown): UiAsked {
  const parts = partsOf(message)
  const step = parts.findLastIndex((part) => read(part, 'type') === 'step-start')
  const results = parts.slice(step + 1).flatMap((part) => {
    const result = readAnswer(part)
    return result === undefined ? [] : [result]
  })
  if (results.length === 0) {
    throw new Problem(
      'invalid_request',
      'The last message is a reply, and brings no answers to its tool calls: send a message of the user.',
    )
  }
  if (results.length > resultsMax) {
    throw new Problem('invalid_request', `${resultsMax} tool calls can be answered at once.`)
  }
  const key = `results:${digest(String(read(message, 'id')), String(step), JSON.stringify(results))}`
  return { kind: 'results', results, key }
}

function readAnswer(part: unknown): UiToolResult | undefined {
  const type = read(part, 'type')
  const isCall = typeof type === 'string' && (type === 'dynamic-tool' || type.startsWith('tool-'))
  const callId = read(part, 'toolCallId')
  if (!isCall || read(part, 'providerExecuted') === true || typeof callId !== 'string') return undefined
  const state = read(part, 'state')
  if (state !== 'output-available' && state !== 'output-error') return undefined
  if (callId === '' || callId.length > callIdUnitsMax) {
    throw new Problem('invalid_request', `A toolCallId has 1 to ${callIdUnitsMax} characters.`)
  }
  if (state === 'output-available') return { call_id: callId, output: read(part, 'output') ?? null }
  const message = String(read(part, 'errorText') ?? '').slice(0, errorTextUnitsMax)
  return { call_id: callId, error: { code: 'tool_error', message } }
}

function partsOf(message: unknown): readonly unknown[] {
  const parts = read(message, 'parts')
  if (!Array.isArray(parts)) throw new Problem('invalid_request', 'The last of messages has no parts.')
  return parts
}

function read(value: unknown, member: string): unknown {
  return isFields(value) ? value[member] : undefined
}
