/**
 * The AI SDK surface: how a run's events look to `useChat` (UI message chunks). Only the chunk types of ai 5.0.0 are used,
 * and only their keys: the clients of that time refuse any other.
 *
 * The fold is pure: what a viewer has been told is a value, and viewers who have been told the same share it, so an event
 * is encoded once however many it goes to. Each event's last block has the id `<run>.<generation>-<seq>`; with it a client
 * is told what comes behind it, of that very run, and of no later one of the same chat.
 *
 * What the SDK calls one message can be several replies: one that ends with calls of the client's tools goes on, when they
 * are answered, as another run. All of them carry the id of the first, and their parts have ids of their own.
 *
 * A step is what the SDK calls one call of the model. The log does not know where one begins; here it does when something
 * new is said, or called, behind calls that have all been answered. So calls that wait for the client are always of one step.
 */
import { type Done, formatEventId, type LogEntry, type Part, parseEventId, type RunEvent } from '../log/event.ts'
import { type Change, isToldAlike, nothingTold, type Told, tellChanges } from './changes.ts'

/** Of ai 5.0.0, as far as they are said here. */
export type Chunk =
  | { readonly type: 'start'; readonly messageId: string }
  | { readonly type: 'start-step' | 'finish-step' | 'finish' | 'abort' }
  | { readonly type: 'error'; readonly errorText: string }
  | { readonly type: 'text-start' | 'text-end' | 'reasoning-start' | 'reasoning-end'; readonly id: string }
  | { readonly type: 'text-delta' | 'reasoning-delta'; readonly id: string; readonly delta: string }
  | { readonly type: 'tool-input-start'; readonly toolCallId: string; readonly toolName: string }
  | { readonly type: 'tool-input-delta'; readonly toolCallId: string; readonly inputTextDelta: string }
  | {
      readonly type: 'tool-input-available'
      readonly toolCallId: string
      readonly toolName: string
      readonly input: unknown
      readonly providerExecuted?: true
    }
  | {
      readonly type: 'tool-output-available'
      readonly toolCallId: string
      readonly output: unknown
      readonly providerExecuted?: true
    }
  | {
      readonly type: 'tool-output-error'
      readonly toolCallId: string
      readonly errorText: string
      readonly providerExecuted?: true
    }
  | { readonly type: 'source-url'; readonly sourceId: string; readonly url: string; readonly title?: string }
  | { readonly type: 'source-document'; readonly sourceId: string; readonly mediaType: string; readonly title: string }
  | { readonly type: 'file'; readonly url: string; readonly mediaType: string }

/** A reply, and its place in what the client holds as one message. */
export interface UiReply {
  readonly runId: string
  /** Of that message: of its first reply. */
  readonly messageId: string
  /** How many replies of the message came before. */
  readonly round: number
  /** Tools that the gateway runs itself, and a client must not. */
  readonly ownTools: ReadonlySet<string>
}

export interface UiEncoder {
  /** @param before what is said of the replies before, where the client may not hold them */
  createViewer(reply: UiReply, before?: readonly Chunk[]): UiViewer
}

export interface UiViewer {
  /** @returns undefined when the event says nothing here; `lost` when it takes back what was said */
  encode(entry: LogEntry): Buffer | 'lost' | undefined
}

/** What a viewer has been told. */
interface Said {
  readonly told: Told
  /** Calls of the step, and how many of them wait for an answer. */
  readonly calls: number
  readonly waiting: number
}

interface Encoded {
  readonly before: Said
  readonly after: Said
  readonly bytes: Buffer | undefined
}

const nothingSaid: Said = { told: nothingTold, calls: 0, waiting: 0 }

/** Of a file or a source that does not say. */
const unknownMedia = 'application/octet-stream'
const brokenCall = 'The call broke off: its arguments are not whole.'
const brokenReply = 'The reply broke off.'

export function createUiEncoder(): UiEncoder {
  const encoded = new WeakMap<LogEntry, Encoded>()
  return {
    createViewer(reply, before = []) {
      let said = nothingSaid
      return {
        encode(entry) {
          const known = encoded.get(entry)
          const isKnown = known !== undefined && isSaidAlike(known.before, said, entry.event)
          if (isKnown && (before.length === 0 || entry.event.type !== 'run')) {
            said = known.after
            return known.bytes
          }
          const next = sayEvent(reply, said, entry, before)
          if (next === 'lost') return 'lost'
          const bytes = toBytes(next.chunks, formatCursor(reply.runId, entry), entry.event.type === 'done')
          // Of who is shown what came before, the first event is its own.
          if (before.length === 0 || entry.event.type !== 'run') {
            encoded.set(entry, { before: said, after: next.said, bytes })
          }
          said = next.said
          return bytes
        },
      }
    },
  }
}

/**
 * What is said of a stored reply, without the message's beginning and end. A call in it that nobody has answered is the
 * client's exactly when the reply is whole: only then is an answer taken, and the gateway answers its own before that.
 */
export function sayReply(
  { round, status }: { readonly round: number; readonly status: string },
  parts: readonly Part[],
): readonly Chunk[] {
  const ownTools = new Set(status === 'completed' ? [] : parts.map(({ name = '' }) => name))
  const whole: UiReply = { round, ownTools, runId: '', messageId: '' }
  const place = { generation: 1, seq: 1 }
  const entries: readonly LogEntry[] = [
    { ...place, event: { type: 'reset', data: { message_id: '', parts: [...parts], cursor: '' } } },
    { ...place, event: { type: 'done', data: { status: 'completed', message_id: '' } } },
  ]
  const chunks: Chunk[] = [{ type: 'start-step' }]
  let said = nothingSaid
  for (const entry of entries) {
    const next = sayEvent(whole, said, entry, [])
    // Nothing was told before, so nothing can be taken back.
    if (next === 'lost') break
    chunks.push(...next.chunks)
    said = next.said
  }
  return chunks.filter(({ type }) => type !== 'finish')
}

/** What is said of the answers that a client has brought: parts of a message of role `tool`. */
export function sayAnswers(answers: readonly Part[]): readonly Chunk[] {
  return answers.map(({ call_id: toolCallId = '', output = null, error }) =>
    error === undefined
      ? { type: 'tool-output-available', toolCallId, output }
      : { type: 'tool-output-error', toolCallId, errorText: error.message },
  )
}

/** The place of an event, as clients of this surface say it. */
export function formatCursor(runId: string, entry: Pick<LogEntry, 'generation' | 'seq'>): string {
  return `${runId}.${formatEventId(entry)}`
}

/** @returns undefined for what was not made by {@link formatCursor} */
export function parseCursor(text: string) {
  const match = /^([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.([-0-9]+)$/i.exec(text)
  const id = parseEventId(match?.[2] ?? '')
  return id === undefined ? undefined : { runId: (match?.[1] ?? '').toLowerCase(), id }
}

function toBytes(chunks: readonly Chunk[], id: string, isEnd: boolean): Buffer | undefined {
  const data = chunks.map((chunk) => `data: ${JSON.stringify(chunk)}\n`)
  if (isEnd) data.push('data: [DONE]\n')
  return data.length === 0 ? undefined : Buffer.from(`${data.join('\n')}id: ${id}\n\n`)
}

const isSaidAlike = (a: Said, b: Said, event: RunEvent): boolean =>
  a === b || (a.calls === b.calls && a.waiting === b.waiting && isToldAlike(a.told, b.told, event))

function sayEvent(
  reply: UiReply,
  said: Said,
  { event }: LogEntry,
  before: readonly Chunk[],
): { readonly said: Said; readonly chunks: readonly Chunk[] } | 'lost' {
  const step = tellChanges(said.told, event)
  if (step === 'lost') return 'lost'
  let { calls, waiting } = said
  const { round, messageId, ownTools } = reply
  const idOf = (index: number) => (round === 0 ? String(index) : `${round}.${index}`)
  const callIdOf = ({ call_id }: Part, index: number) => call_id ?? idOf(index)

  /** Before something that is said or called. */
  function beginStep(): Chunk[] {
    if (calls === 0 || waiting > 0) return []
    calls = 0
    return [{ type: 'finish-step' }, { type: 'start-step' }]
  }

  function sayOpened(part: Part, index: number): Chunk[] {
    const { kind, url, title, media_type: mediaType = unknownMedia } = part
    if (kind === 'file') return [{ type: 'file', url: url ?? '', mediaType }]
    if (kind === 'source') {
      if (url !== undefined) return [{ type: 'source-url', sourceId: idOf(index), url, ...(title && { title }) }]
      return title === undefined ? [] : [{ type: 'source-document', sourceId: idOf(index), mediaType, title }]
    }
    const boundary = beginStep()
    // Words begin with the first of them: some parts never get any.
    if (kind !== 'tool_call') return boundary
    calls += 1
    waiting += 1
    return [...boundary, { type: 'tool-input-start', toolCallId: callIdOf(part, index), toolName: part.name ?? '' }]
  }

  function sayGrown(part: Part, index: number, offset: number, delta: string): Chunk[] {
    if (part.kind === 'tool_call') {
      return [{ type: 'tool-input-delta', toolCallId: callIdOf(part, index), inputTextDelta: delta }]
    }
    const kind = part.kind === 'reasoning' ? 'reasoning' : 'text'
    const id = idOf(index)
    const grown: Chunk = { type: `${kind}-delta`, id, delta }
    return offset === 0 ? [{ type: `${kind}-start`, id }, grown] : [grown]
  }

  function sayClosed(part: Part, index: number): Chunk[] {
    if (part.kind === 'tool_call') {
      waiting -= 1
      return [sayBroken(part, index)]
    }
    const kind = part.kind === 'reasoning' ? 'reasoning' : 'text'
    return part.text === '' ? [] : [{ type: `${kind}-end`, id: idOf(index) }]
  }

  /** As the gateway's, because no client can answer it. */
  const sayBroken = (part: Part, index: number): Chunk => ({
    type: 'tool-output-error',
    toolCallId: callIdOf(part, index),
    errorText: brokenCall,
    providerExecuted: true,
  })

  function sayCalled(part: Part, index: number, changes: readonly Change[]): Chunk[] {
    const { name: toolName = '', input } = part
    const isAnswered = changes.some((change) => change.kind === 'answered' && change.index === index)
    if (input === undefined) return isAnswered ? [] : [sayBroken(part, index)]
    const isOwn = isAnswered || ownTools.has(toolName)
    const toolCallId = callIdOf(part, index)
    return [{ type: 'tool-input-available', toolCallId, toolName, input, ...(isOwn && { providerExecuted: true }) }]
  }

  function sayAnswered(part: Part, index: number): Chunk[] {
    waiting -= 1
    const toolCallId = callIdOf(part, index)
    const { output = null, error } = part
    return error === undefined
      ? [{ type: 'tool-output-available', toolCallId, output, providerExecuted: true }]
      : [{ type: 'tool-output-error', toolCallId, errorText: error.message, providerExecuted: true }]
  }

  const chunks = step.changes.flatMap((change): readonly Chunk[] => {
    switch (change.kind) {
      case 'started':
        return [{ type: 'start', messageId }, ...before, { type: 'start-step' }]
      case 'opened':
        return sayOpened(change.part, change.index)
      case 'grown':
        return sayGrown(change.part, change.index, change.offset, change.text)
      case 'closed':
        return sayClosed(change.part, change.index)
      case 'called':
        return sayCalled(change.part, change.index, step.changes)
      case 'answered':
        return sayAnswered(change.part, change.index)
      case 'ended':
        return sayEnd(change.done)
      default:
        return []
    }
  })
  return { said: { told: step.told, calls, waiting }, chunks }
}

function sayEnd({ status, error }: Done): Chunk[] {
  if (status === 'completed') return [{ type: 'finish-step' }, { type: 'finish' }]
  if (status === 'stopped') return [{ type: 'abort' }]
  return [{ type: 'error', errorText: error?.message ?? brokenReply }]
}
