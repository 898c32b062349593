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

/** How the chunks of one connection are taken. */
export interface Taking {
  /** @returns the chunk without what was passed on already, as it goes over the wire; undefined when nothing is new */
  take(data: string): string | undefined
  /** Whether something that was passed on has not come again yet: its ids are of places that were left behind long ago. */
  readonly isBehind: boolean
}

export interface PassedOn {
  /** Whether what was passed on is all of a reply. */
  readonly isOver: boolean
  /**
   * @param first chunk of a connection: it begins at the beginning, or goes on where the last one broke
   * @throws Error when it begins another message than the one that was begun
   */
  takeFrom(first: string): Taking
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

  function cutReplay(): Taking {
    const seenLengths = new Map<string, number>()
    const seenCounts = new Map<string, number>()
    const holds = (seen: typeof counts, all: typeof counts) =>
      [...all].every(([key, sum]) => (seen.get(key) ?? 0) >= sum)
    return {
      take(data) {
        const chunk = parse(data)
        const delta = readDelta(chunk)
        if (delta === undefined) {
          return add(seenCounts, data, 1) > (counts.get(data) ?? 0) ? pass(data) : undefined
        }
        const { key, field, text } = delta
        const fresh = add(seenLengths, key, text.length) - (lengths.get(key) ?? 0)
        if (fresh <= 0) return undefined
        return pass(fresh >= text.length ? data : JSON.stringify({ ...chunk, [field]: text.slice(-fresh) }))
      },
      get isBehind() {
        return !holds(seenLengths, lengths) || !holds(seenCounts, counts)
      },
    }
  }

  return {
    get isOver() {
      return isOver
    },
    takeFrom(first) {
      const chunk = parse(first)
      if (chunk?.type !== 'start' || start === undefined) return { take: pass, isBehind: false }
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
