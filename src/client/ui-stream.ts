/**
 * What has been passed on of a stream of the AI SDK (UI message chunks), so that a stream which says everything again can
 * be cut to what is new. A delta is cut by the length of its part's text, because the text may come in other pieces; of
 * every other chunk it counts how often it was there, word for word.
 *
 * Nothing is known here of connections. What is no chunk is passed on as it is: the SDK has its own opinion of it.
 */

/** What is looked at of a chunk. */
interface Chunk {
  readonly type?: unknown
  readonly id?: unknown
  readonly toolCallId?: unknown
  readonly messageId?: unknown
  readonly delta?: unknown
  readonly inputTextDelta?: unknown
}

/** @returns the chunk without what was passed on already, as it goes over the wire; undefined when nothing of it is new */
export type Cut = (data: string) => string | undefined

export interface PassedOn {
  /** Whether what was passed on is all of a reply. */
  readonly isOver: boolean
  /** For a connection that goes on where the last one broke. */
  pass(data: string): string
  /**
   * How to take the chunks of another connection, by its first one.
   * @throws Error when it begins another message than the one that was begun
   */
  takeFrom(first: string): Cut
}

/** What can be the last chunk before `[DONE]`. */
const lastTypes: ReadonlySet<unknown> = new Set(['finish', 'abort', 'error'])

export function createPassedOn(): PassedOn {
  const lengths = new Map<string, number>()
  const counts = new Map<string, number>()
  let start: Chunk | undefined
  let isOver = false

  function pass(data: string): string {
    const chunk = parse(data)
    const delta = readDelta(chunk)
    if (delta === undefined) add(counts, data, 1)
    else add(lengths, delta.key, delta.text.length)
    if (chunk?.type === 'start') start ??= chunk
    isOver ||= lastTypes.has(chunk?.type)
    return data
  }

  function cutReplay(): Cut {
    const seenLengths = new Map<string, number>()
    const seenCounts = new Map<string, number>()
    return (data) => {
      const chunk = parse(data)
      const delta = readDelta(chunk)
      if (delta === undefined) {
        return add(seenCounts, data, 1) > (counts.get(data) ?? 0) ? pass(data) : undefined
      }
      const { key, field, text } = delta
      const fresh = add(seenLengths, key, text.length) - (lengths.get(key) ?? 0)
      if (fresh <= 0) return undefined
      return pass(fresh >= text.length ? data : JSON.stringify({ ...chunk, [field]: text.slice(-fresh) }))
    }
  }

  return {
    pass,
    get isOver() {
      return isOver
    },
    takeFrom(first) {
      const chunk = parse(first)
      if (chunk?.type !== 'start' || start === undefined) return pass
      if (chunk.messageId !== start.messageId) throw new Error('Another reply has begun. Load the chat again.')
      return cutReplay()
    },
  }
}

function add(sums: Map<string, number>, key: string, more: number): number {
  const sum = (sums.get(key) ?? 0) + more
  sums.set(key, sum)
  return sum
}

function readDelta(chunk: Chunk | undefined) {
  const field = typeof chunk?.delta === 'string' ? 'delta' : 'inputTextDelta'
  const text = chunk?.[field]
  return typeof text === 'string' ? { field, text, key: `${chunk?.type} ${chunk?.id ?? chunk?.toolCallId}` } : undefined
}

function parse(data: string): Chunk | undefined {
  try {
    const value: unknown = JSON.parse(data)
    return typeof value === 'object' && value !== null ? value : undefined
  } catch {
    return undefined // `[DONE]`, or what the SDK will refuse
  }
}
