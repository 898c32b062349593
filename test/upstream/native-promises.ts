/**
 * What both native adapters promise, whatever their dialect: the network may cut a stream anywhere without changing what is
 * read, a reply is whole only when the provider said so, and a failure becomes one code without the provider's words.
 */
import { getEventListeners } from 'node:events'
import { inspect } from 'node:util'
import fc from 'fast-check'
import type { Test } from 'tap'
import {
  createRandom,
  type FakeUpstream,
  type Script,
  seededCuts,
  startFakeUpstream,
} from '../../scripts/fake-upstream.ts'
import { type ErrorCode, Problem } from '../../src/errors.ts'
import type { Upstream } from '../../src/upstream/upstream.ts'
import { eventEnds, plain, type ReadFed, type Reading, read, textOf, withLineEnd } from './native.ts'
import { cutAt, request, type Stream } from './streams.ts'

/** So many chunkings are tried of each stream by chance. */
const chunkings = 20
const pieceSizes = [3, 7, 50]

export interface Dialect {
  readonly readFed: ReadFed
  /** Whether a stream up to here says that the reply is whole. */
  readonly isWhole: (text: string) => boolean
}

/**
 * That cuts, line ends and an early end do to the streams what they should.
 * @param recorded cut in two at every byte; the others are cut at every byte too, but at many in one reading
 */
export async function keepStreams(
  t: Test,
  own: readonly Stream[],
  recorded: Stream | undefined,
  { readFed, isWhole }: Dialect,
): Promise<void> {
  for (const stream of [...own, ...(recorded === undefined ? [] : [recorded])]) {
    const { name, bytes } = stream
    const whole = plain(await readFed([bytes]))
    const wanted = JSON.stringify(whole)

    let wrong: string | undefined
    for (const size of stream === recorded ? [bytes.length] : pieceSizes) {
      for (let first = 1; first < size; first++) {
        const cuts: number[] = []
        for (let at = first; at < bytes.length; at += size) cuts.push(at)
        if (JSON.stringify(plain(await readFed(cutAt(bytes, cuts)))) !== wanted) wrong ??= `${first}, each ${size}`
      }
    }
    t.equal(wrong, undefined, `${name}: the same wherever it is cut`)
    const everywhere = Array.from({ length: bytes.length - 1 }, (_, index) => index + 1)
    t.strictSame(plain(await readFed(cutAt(bytes, everywhere))), whole, `${name}: the same byte by byte`)

    for (const lineEnd of ['\n', '\r\n'] as const) {
      const other = withLineEnd(bytes, lineEnd)
      t.strictSame(plain(await readFed([other])), whole, `${name}: the same with ${JSON.stringify(lineEnd)}`)
      t.strictSame(
        plain(await readFed(cutAt(other, seededCuts(other.length, 40, 11)))),
        whole,
        `${name}: and in pieces`,
      )
    }

    await fc.assert(
      fc.asyncProperty(
        fc.uniqueArray(fc.integer({ min: 1, max: bytes.length - 1 }), { maxLength: 60 }),
        async (cuts) => {
          const pieces = cutAt(
            bytes,
            cuts.sort((a, b) => a - b),
          )
          return JSON.stringify(plain(await readFed(pieces))) === wanted
        },
      ),
      { numRuns: chunkings, seed: 20_261_122 },
    )

    const verdicts = new Set<string>()
    const broken = Object.assign(new Error('read ECONNRESET'), { code: 'ECONNRESET' })
    for (const to of [0, ...eventEnds(bytes)]) {
      const prefix = bytes.subarray(0, to)
      for (const end of ['fin', broken] as const) {
        const seen = await readFed([prefix], end)
        verdicts.add(seen.verdict)
        const isComplete = isWhole(prefix.toString())
        const verdict = isComplete ? 'complete' : to === bytes.length ? whole.verdict : 'upstream_unavailable'
        if (seen.verdict !== verdict) t.equal(seen.verdict, verdict, `${name} up to ${to}`)
        const text = textOf(seen)
        if (!textOf({ ...whole, error: undefined }).startsWith(text)) t.fail(`${name} up to ${to}: ${text}`)
      }
    }
    // Both were seen, so that the comparison above means something.
    t.strictSame(
      [...verdicts].sort(),
      [...new Set([whole.verdict, 'upstream_unavailable'])].sort(),
      `${name}: cut at events`,
    )
  }
}

export interface BrokenCase {
  readonly script: Script
  readonly code: ErrorCode
  readonly retryable: boolean
  /** What has to come before the error. */
  readonly text?: string
  readonly detail?: string
  readonly retryAfterSeconds?: number
}

export const rejected = { code: 'upstream_rejected', retryable: false } as const
export const unavailable = { code: 'upstream_unavailable', retryable: true } as const

export const apiKey = 'sk-MARKER-KEY'
export const quoted = 'MARKER-PROMPT'

/** That each failure becomes its code over real HTTP, and that nothing of it stays behind or gets out. */
export async function keepWordsIn(
  t: Test,
  cases: Readonly<Record<string, BrokenCase>>,
  at: (fake: FakeUpstream) => Upstream,
): Promise<void> {
  t.ok(Object.keys(cases).length >= 25)
  const fake = await startFakeUpstream()
  const upstream = at(fake)
  for (const [name, wanted] of Object.entries(cases)) {
    const { signal } = new AbortController()
    fake.answer(wanted.script)
    const seen: Reading = await read(upstream, request, signal)
    const problem = seen.error
    if (!(problem instanceof Problem)) {
      t.fail(`${name}: ${inspect(problem)}`)
      continue
    }
    t.strictSame(
      [problem.code, problem.retryable, problem.retryAfterSeconds],
      [wanted.code, wanted.retryable, wanted.retryAfterSeconds],
      name,
    )
    if (wanted.detail !== undefined) t.equal(problem.message, wanted.detail, `${name}: detail`)
    if (wanted.text !== undefined) t.equal(textOf(seen), wanted.text, `${name}: the text before it is kept`)
    t.notMatch(inspect(problem, { depth: 10, showHidden: true }), /MARKER/, `${name}: none of the provider's words`)
    t.equal(getEventListeners(signal, 'abort').length, 0, `${name}: no listener stays`)
  }
  await upstream.close()
  await fake.drained()
  await fake.close()
}

/** Any JSON at all in place of events: it may be refused, and must never break the reader. */
export async function survive(t: Test, readFed: ReadFed, types: readonly string[]): Promise<void> {
  const random = createRandom(3)
  const codes = new Set(['complete', 'upstream_unavailable', 'upstream_rejected', 'too_large'])
  const json = fc.jsonValue({ maxDepth: 4 })
  const event = fc.oneof(
    json,
    fc.record({ type: fc.constantFrom(...types), index: fc.integer(), delta: json, message: json }),
  )
  await fc.assert(
    fc.asyncProperty(fc.array(event, { maxLength: 6 }), async (events) => {
      const text = events.map((value) => `data: ${JSON.stringify(value)}\n\n`).join('')
      const seen = await readFed([text.slice(0, Math.floor(random() * text.length)), text])
      return codes.has(seen.verdict)
    }),
    { numRuns: 200, seed: 20_261_122 },
  )
  t.pass('every verdict is one of ours')
}
