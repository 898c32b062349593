/**
 * The branches of a conversation. Messages form a tree by `parent_id`; a message that was edited and a reply that was made
 * again stand beside the old one. What is on the screen is one way through it: the newest message says which, as it does
 * for the gateway, until the reader chooses another one.
 */

export interface Node {
  readonly id: string
  readonly parent_id: string | null
  readonly seq: number
}

export interface Placed<T> {
  readonly message: T
  /** The ids of all that stand in this place, oldest first; one of them is the message's own. */
  readonly siblings: readonly string[]
}

/** @param leaf the last message of the way; one that is not there, or undefined, means the newest */
export function pathTo<T extends Node>(messages: readonly T[], leaf: string | undefined): readonly Placed<T>[] {
  const byId = new Map(messages.map((message) => [message.id, message]))
  const children = childrenOf(messages)
  const path: Placed<T>[] = []
  let message = byId.get(leaf ?? '') ?? newest(messages)
  // A circle cannot be stored; whoever made one by hand gets an end all the same.
  for (let left = messages.length; message !== undefined && left > 0; left--) {
    const siblings = (children.get(message.parent_id ?? '') ?? [message]).map(({ id }) => id)
    path.unshift({ message, siblings })
    message = byId.get(message.parent_id ?? '')
  }
  return path
}

/** @returns the newest message on the ways that go on from `id` */
export function leafBelow<T extends Node>(messages: readonly T[], id: string): string {
  const children = childrenOf(messages)
  let leaf = id
  let seq = messages.find((message) => message.id === id)?.seq ?? 0
  const open = [id]
  for (let left = messages.length; open.length > 0 && left >= 0; left--) {
    for (const child of children.get(open.pop() ?? '') ?? []) {
      open.push(child.id)
      if (child.seq > seq) {
        leaf = child.id
        seq = child.seq
      }
    }
  }
  return leaf
}

export function newest<T extends Node>(messages: readonly T[]): T | undefined {
  return messages.reduce<T | undefined>(
    (last, next) => (last === undefined || next.seq > last.seq ? next : last),
    undefined,
  )
}

function childrenOf<T extends Node>(messages: readonly T[]): ReadonlyMap<string, readonly T[]> {
  const children = new Map<string, T[]>()
  for (const message of messages.toSorted((a, b) => a.seq - b.seq)) {
    const parent = message.parent_id ?? ''
    const there = children.get(parent)
    if (there === undefined) children.set(parent, [message])
    else there.push(message)
  }
  return children
}
