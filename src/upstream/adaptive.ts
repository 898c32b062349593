/**
 * The rule of mode `adaptive`: from the text of a message, and how many messages came before it, to a profile. It asks no
 * model and looks at nothing else, so it costs nothing, anybody can redo it by hand, and the same message is always judged
 * alike. docs/models.md has it for people; the points below are the same ones.
 *
 * A message collects points, each with a word that is stored as the reason:
 *
 *   code       2   a code fence, or a line of a program
 *   maths      1   a formula
 *   reasoning  1   a word that asks for a reason, a comparison, a proof or a plan; 2 for two of them
 *   questions  1   three question marks or more
 *   long       1   400 bytes or more; 2 for 2000 bytes or more
 *   history    1   eight messages or more before it
 *
 * 0 is `fast`, 1 and 2 are `balanced`, 3 and more are `quality`. Length counts in bytes of UTF-8, because a character of a
 * script like Chinese says about as much as three letters.
 */
import type { ProfileName } from './plan.ts'

/** Messages from which a session counts as a long one. */
export const longHistoryFrom = 8

const longBytes = 400
const veryLongBytes = 2000
const manyQuestions = 3
const balancedPoints = 1
const qualityPoints = 3
/** A message is judged by its beginning: what is pasted behind it makes it long, and no more. */
const readUnitsMax = 20_000

export interface Judgement {
  readonly profile: ProfileName
  /** Short words, most telling first; `plain` when nothing was found. */
  readonly reasons: readonly string[]
}

/** @param earlierMessages of the session, before this one */
export function judge(text: string, earlierMessages: number): Judgement {
  const beginning = text.slice(0, readUnitsMax)
  const points: readonly (readonly [reason: string, points: number])[] = [
    ['code', code.test(beginning) ? 2 : 0],
    ['maths', maths.test(beginning) ? 1 : 0],
    ['reasoning', countReasoning(beginning)],
    ['questions', beginning.split(/[?？؟]/u).length > manyQuestions ? 1 : 0],
    ['long', lengthPoints(Buffer.byteLength(text))],
    ['history', earlierMessages >= longHistoryFrom ? 1 : 0],
  ]
  const found = points.filter(([, count]) => count > 0)
  const sum = found.reduce((total, [, count]) => total + count, 0)
  return {
    profile: sum >= qualityPoints ? 'quality' : sum >= balancedPoints ? 'balanced' : 'fast',
    reasons: found.length === 0 ? ['plain'] : found.map(([reason]) => reason),
  }
}

function lengthPoints(bytes: number): number {
  if (bytes >= veryLongBytes) return 2
  return bytes >= longBytes ? 1 : 0
}

// A fence, or a line that no prose has: a declaration, an import, a query, a tag, or one that ends like a statement.
const code = new RegExp(
  [
    '```',
    String.raw`^[ \t]*(?:import [\w{*][^\n]* from |from [\w.]+ import |import [\w.]+;?$|#include|export (?:default|const|class|function) )`,
    String.raw`^[ \t]*(?:const|let|var) [\w{[][^\n=]*=`,
    String.raw`^[ \t]*(?:async )?(?:function|def|fn|func) \w+ ?[(<]`,
    String.raw`^[ \t]*(?:class \w+ ?[:({]|(?:public|private) (?:static|class|void) |SELECT [^\n]+ FROM |<\/?[a-z]+>)`,
    String.raw`^[ \t]*\}[),;]*[ \t]*$|(?:\)|else|=>) ?\{[ \t]*$|\) ?;[ \t]*$`,
  ].join('|'),
  'm',
)

const maths = /\$\$|\\(?:frac|sum|int|sqrt|begin)\b|[∑∫√∂∞≤≥≠∈∀∃]|[\dx-z]\s?\^\s?[\da-z]/u

/** English, whole words; others by the beginning of the word, which is what their grammar leaves alone. */
const words = [
  'why|explain|compare|prove|proof|derive|analyse|analyze|design|plan|evaluate|debug|optimi[sz]e|refactor|strategy',
  'trade-?offs?|pros and cons|step by step',
].join('|')
const stems = [
  'warum|wieso|erklär|vergleich|beweis|begründ|schritt für schritt',
  'pourquoi|expliqu|compar|démontr|analys|étape par étape',
  'por qué|por que|explica|demuestr|demonstr|anali[sz]|paso a paso|passo a passo',
  'почему|объясн|сравн|докаж|анализ',
].join('|')
/** Their scripts put no spaces between words. */
const signs = '为什么|解释|比较|证明|分析|设计|なぜ|どうして|説明|比較|証明|設計|왜|설명|비교|증명|분석'
const reasoning = new RegExp(String.raw`(?<![\p{L}\p{N}])(?:(?:${words})(?![\p{L}\p{N}])|(?:${stems}))|${signs}`, 'giu')

/** Up to two. */
function countReasoning(text: string): number {
  const found = new Set<string>()
  for (const [word] of text.matchAll(reasoning)) {
    found.add(word.toLowerCase())
    if (found.size === 2) break
  }
  return found.size
}
