/**
 * How many tokens a text has, where nobody has said so yet: before a model is asked, and of a reply that broke off before
 * its provider counted. No tokenizer is asked: each provider has its own, some have none to download, and the answer is
 * wanted for each event of a stream. A character counts by where it stands in Unicode, which one pass over the text tells:
 *
 * | characters | a token is about |
 * |---|---|
 * | ASCII | 4 of them |
 * | other Latin letters | 2 |
 * | everything else | 3 bytes of UTF-8: 1 Chinese, Japanese or Korean character, 1.5 letters of Greek or Cyrillic |
 *
 * How far a model is from that is learned from what its provider counts, as one factor a model, which moves slowly and
 * within bounds. It belongs to this object and ends with the process; nothing here waits.
 */
import type { Part } from '../log/event.ts'
import type { ModelChoice } from '../upstream/plan.ts'
import type { UpstreamMessage } from '../upstream/upstream.ts'

export interface Estimator {
  /** @returns tokens, a whole number; 0 for no text */
  estimateText(choice: ModelChoice, text: string): number
  /** What a request with these messages has, without tools: those are texts of their own. */
  estimateMessages(choice: ModelChoice, messages: readonly UpstreamMessage[]): number
  /** Tokens of a text that was measured piece by piece: the sum of {@link unitsOf} of its pieces. */
  tokensOf(choice: ModelChoice, units: number): number
  /** The factor of a model at this moment, which every estimate for it holds. */
  scaleOf(choice: ModelChoice): number
  /**
   * Learns from what a provider has counted.
   * @param estimated what was expected of the same prompt
   * @param scale the factor in that estimate: with many calls at once it may have moved since
   */
  learn(choice: ModelChoice, estimated: number, actual: number, scale?: number): void
}

/** Of a token, so that all weights are whole numbers and a sum of pieces is that of the whole. */
const unitsPerToken = 12
const asciiUnits = 3
const latinUnits = 6
/** Of a byte of UTF-8, of everything else. */
const byteUnits = 4

/** Around each message: its role and what parts it from the next. */
const messageTokens = 4

/** Below it, what a provider adds to every prompt weighs more than the prompt. */
const learnTokensMin = 64
/** Of the newest count in the moving factor; the first ones weigh more, because they stand against a guess. */
const weightMin = 1 / 8
const scaleMin = 0.25
const scaleMax = 4
/** Models whose factor is kept; the one that was not heard of for the longest time goes. */
const modelsMax = 256

export function createEstimator(): Estimator {
  const scales = new Map<string, { readonly scale: number; readonly count: number }>()

  const scaleOf = (choice: ModelChoice): number => scales.get(keyOf(choice))?.scale ?? 1
  const tokensOf = (choice: ModelChoice, units: number): number => Math.ceil((units / unitsPerToken) * scaleOf(choice))

  return {
    scaleOf,
    tokensOf,
    estimateText: (choice, text) => tokensOf(choice, unitsOf(text)),
    estimateMessages(choice, messages) {
      let units = 0
      for (const message of messages) units += messageTokens * unitsPerToken + unitsOfMessage(message)
      return tokensOf(choice, units)
    },
    learn(choice, estimated, actual, scale = scaleOf(choice)) {
      const expected = estimated / scale
      if (!(expected >= learnTokensMin) || !(actual > 0)) return
      const key = keyOf(choice)
      const known = scales.get(key) ?? { scale: 1, count: 0 }
      const count = known.count + 1
      const weight = Math.max(weightMin, 1 / (count + 1))
      const seen = Math.min(scaleMax, Math.max(scaleMin, actual / expected))
      scales.delete(key)
      scales.set(key, { scale: known.scale + weight * (seen - known.scale), count })
      if (scales.size > modelsMax) scales.delete(scales.keys().next().value as string)
    },
  }
}

const keyOf = ({ provider, model }: ModelChoice): string => `${provider}:${model}`

/** Of the words that a model itself made, and of what it gave to tools. */
export function unitsOfParts(parts: readonly Part[]): number {
  return parts.reduce((units, { text, name = '' }) => units + unitsOf(text) + unitsOf(name), 0)
}

function unitsOfMessage(message: UpstreamMessage): number {
  if (message.role === 'tool') return unitsOf(message.name) + unitsOf(message.content)
  if (message.role !== 'assistant' || message.parts === undefined) return unitsOf(message.content)
  return message.parts.reduce((units, part) => units + unitsGivenBack(part), 0)
}

/** What a provider is told of a part of an earlier reply: reasoning only with its seal, sources and files not at all. */
function unitsGivenBack({ kind, text, name = '', output, error, signature }: Part): number {
  if (kind === 'reasoning') return signature === undefined ? 0 : unitsOf(text)
  if (kind !== 'tool_call') return kind === 'text' ? unitsOf(text) : 0
  const answer = error ?? output
  return unitsOf(text) + unitsOf(name) + (answer === undefined ? 0 : unitsOf(JSON.stringify(answer) ?? ''))
}

/** The weight of a text. That of two pieces is the sum of theirs, wherever it is cut. */
export function unitsOf(text: string): number {
  let units = 0
  for (let index = 0; index < text.length; index += 1) {
    const code = text.charCodeAt(index)
    if (code < 0x80) units += asciiUnits
    else if (code < 0x250) units += latinUnits
    else if (code < 0x800) units += 2 * byteUnits
    // Half of a pair of surrogates, which are four bytes together.
    else if (code >= 0xd800 && code < 0xe000) units += 2 * byteUnits
    else units += 3 * byteUnits
  }
  return units
}
