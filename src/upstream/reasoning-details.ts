/**
 * The seal on reasoning as OpenRouter has it: `reasoning_details`, blocks that a model wants back as it gave them, or it
 * refuses the next step of a turn with tools. A seal is one text that holds the blocks without their words, which are in
 * the reasoning part that it stands on, and the model they are of: no other model can read them. Pure functions.
 */
import { parse } from './reader.ts'
import { isRecord } from './refusal.ts'

/** Blocks of one reply. More were never seen of a model that was well. */
export const detailsMax = 256

/** Of `id` and `format`. */
const nameUnitsMax = 256

/** One block; `units` counts the words that are not in it, in UTF-16 units. */
export interface ReasoningDetail {
  readonly type: string
  readonly index: number | undefined
  units: number
  id?: string
  format?: string
  signature?: string
  data?: string
}

/** Where a block has its words; undefined for one that has none. */
function wordsOf(type: unknown): 'text' | 'summary' | undefined {
  return type === 'reasoning.text' ? 'text' : type === 'reasoning.summary' ? 'summary' : undefined
}

/** @returns the words of a piece; '' when it has none */
export function detailWords(piece: Readonly<Record<string, unknown>>): string {
  const member = wordsOf(piece.type)
  const words = member === undefined ? '' : piece[member]
  return typeof words === 'string' ? words : ''
}

/**
 * Adds the next piece, which goes on with the last block when it is of the same kind and place.
 * @returns by how many units what is kept has grown
 */
export function addDetail(details: ReasoningDetail[], piece: Readonly<Record<string, unknown>>): number {
  const { type, id, format, signature, data } = piece
  if (typeof type !== 'string' || type.length > nameUnitsMax) return 0
  const index = typeof piece.index === 'number' ? piece.index : undefined
  const last = details.at(-1)
  const goesOn = last?.type === type && last.index === index && wordsOf(type) !== undefined
  const detail: ReasoningDetail = goesOn ? last : { type, index, units: 0 }
  if (!goesOn) details.push(detail)
  const before = keptUnits(detail)
  detail.units += detailWords(piece).length
  // Many pieces say null for what another piece of the block has.
  if (typeof id === 'string' && id.length <= nameUnitsMax) detail.id = id
  if (typeof format === 'string' && format.length <= nameUnitsMax) detail.format = format
  if (typeof signature === 'string') detail.signature = signature
  if (typeof data === 'string') detail.data = data
  return keptUnits(detail) - before
}

function keptUnits({ signature = '', data = '' }: ReasoningDetail): number {
  return signature.length + data.length
}

/** @returns undefined when no block is sealed: reasoning in plain words is not given back */
export function sealOf(model: string, details: readonly ReasoningDetail[]): string | undefined {
  if (!details.some(({ signature, data }) => typeof signature === 'string' || typeof data === 'string'))
    return undefined
  return JSON.stringify({ model, details })
}

/**
 * @param words of the reasoning that the seal stands on
 * @returns the blocks as they came; undefined when the seal is another model's, is none, or is not of these words
 */
export function openSeal(seal: string, model: string, words: string): unknown[] | undefined {
  const sealed = parse(seal)
  if (!isRecord(sealed) || sealed.model !== model || !Array.isArray(sealed.details)) return undefined
  let from = 0
  const details: unknown[] = []
  for (const detail of sealed.details) {
    if (!isRecord(detail)) return undefined
    const { units, ...members } = detail
    if (typeof units !== 'number') return undefined
    const member = wordsOf(members.type)
    details.push(member === undefined ? members : { ...members, [member]: words.slice(from, from + units) })
    from += units
  }
  return from === words.length ? details : undefined
}
