/**
 * A list as a value: one with a change is another list, which shares with the first all but the way to the changed place. So
 * keeping every state that a message was in costs as much for each change however long the message is. Pure.
 *
 * A tree of arrays of up to 16, all leaves equally deep: a change copies one array on each level, of which 4096 places have 3.
 */
export interface List<T> {
  readonly size: number
  /** Levels above the leaves. */
  readonly depth: number
  readonly root: Node<T>
}

type Node<T> = readonly (T | Node<T>)[]

const slotBits = 4
const slots = 1 << slotBits

export const emptyList: List<never> = { size: 0, depth: 0, root: [] }

export function itemAt<T>({ size, depth, root }: List<T>, index: number): T | undefined {
  if (index < 0 || index >= size) return undefined
  let node = root
  for (let level = depth; level > 0; level -= 1) node = node[slotOf(index, level)] as Node<T>
  return node[slotOf(index, 0)] as T
}

/** @param index that of an item, which is replaced, or the list's size, behind the last one */
export function put<T>({ size, depth, root }: List<T>, index: number, item: T): List<T> {
  if (index < size) return { size, depth, root: putBelow(root, depth, index, item) }
  const isFull = size === slots ** (depth + 1)
  const deeper = isFull ? depth + 1 : depth
  return { size: size + 1, depth: deeper, root: putBelow(isFull ? [root] : root, deeper, index, item) }
}

export function toArray<T>({ depth, root }: List<T>): T[] {
  // Levels of arrays are taken away, and never an item that is one.
  let nodes: Node<T> = root
  for (let level = depth; level > 0; level -= 1) nodes = (nodes as readonly Node<T>[]).flat(1) as Node<T>
  return [...nodes] as T[]
}

function putBelow<T>(node: Node<T>, level: number, index: number, item: T): Node<T> {
  const slot = slotOf(index, level)
  const below = level === 0 ? item : putBelow((node[slot] ?? []) as Node<T>, level - 1, index, item)
  return slot < node.length ? node.with(slot, below) : [...node, below]
}

const slotOf = (index: number, level: number): number => (index >>> (level * slotBits)) % slots
