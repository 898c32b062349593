/**
 * What fits into a window, on thousands of made-up conversations: never more than the budget, unless what stays in any
 * case is more; in order; and no call of a tool without its answer.
 */
import fc from 'fast-check'
import { test } from 'tap'
import { type FitOptions, type Fitted, fitMessages, summaryLine, windowTokens } from '../../src/runs/window.ts'
import type { HistoryMessage } from '../../src/sessions/context.ts'

const estimate = ({ content }: HistoryMessage) => content.length + 1
const sizeOf = (messages: readonly HistoryMessage[]) => messages.reduce((sum, message) => sum + estimate(message), 0)
const words = (length: number) => 'x'.repeat(length)

interface Step {
  readonly length: number
  /** Lengths of what each tool has answered. */
  readonly answers: readonly number[]
}

interface Conversation {
  readonly head: readonly number[]
  readonly turns: readonly { readonly user: number; readonly steps: readonly Step[] }[]
}

/** Messages with ids that tell their place: turn 2, step 1 is `2.1`, its answers `2.1t`. */
function toMessages({ head, turns }: Conversation): HistoryMessage[] {
  return [
    ...head.map((length): HistoryMessage => ({ role: 'system', content: words(length) })),
    ...turns.flatMap(({ user, steps }, turn): HistoryMessage[] => [
      { role: 'user', content: words(user), id: `${turn}` },
      ...steps.flatMap(({ length, answers }, step): HistoryMessage[] => [
        {
          role: 'assistant',
          content: words(length),
          id: `${turn}.${step}`,
          ...(answers.length === 0
            ? {}
            : {
                parts: answers.map((_, n) => ({
                  kind: 'tool_call',
                  text: '{}',
                  call_id: `${turn}.${step}.${n}`,
                  name: 'look',
                })),
              }),
        },
        ...answers.map(
          (answer, n): HistoryMessage => ({
            role: 'tool',
            callId: `${turn}.${step}.${n}`,
            name: 'look',
            content: words(answer),
            id: `${turn}.${step}t`,
          }),
        ),
      ]),
    ]),
  ]
}

const length = fc.nat(30)
const conversations: fc.Arbitrary<Conversation> = fc.record({
  head: fc.array(length, { maxLength: 2 }),
  turns: fc.array(
    fc.record({
      user: length,
      steps: fc.array(fc.record({ length, answers: fc.array(length, { maxLength: 2 }) }), { maxLength: 4 }),
    }),
    { minLength: 1, maxLength: 6 },
  ),
})

const turnOf = ({ id }: HistoryMessage) => Number.parseInt(id ?? '-1', 10)

/** What is wrong with a window. */
function faultsOf(all: readonly HistoryMessage[], fitted: Fitted, { budgetTokens, summary }: FitOptions): string[] {
  const { messages, dropped, fold } = fitted
  const newest = Math.max(...all.map(turnOf))
  const told = messages.filter(({ content }) => content.startsWith(summaryLine))
  const own = messages.filter((message) => !told.includes(message))
  const last = all.filter((message) => turnOf(message) === newest)
  const lastStep = last.findLastIndex(({ role }) => role === 'assistant')
  const least = [
    ...all.filter(({ role }) => role === 'system'),
    ...last.slice(0, 1),
    ...(lastStep === -1 ? [] : last.slice(lastStep)),
  ]
  const calls = own.flatMap((message, index) =>
    message.role === 'assistant'
      ? (message.parts ?? []).map(({ call_id }) => ({ call_id, answers: own.slice(index + 1) }))
      : [],
  )
  const answers = own.flatMap((message) => (message.role === 'tool' ? [message.callId] : []))
  const places = own.map((message) => all.indexOf(message))
  const olderDropped = dropped.map(turnOf).filter((turn) => turn < newest)
  const faults = {
    'above the budget': sizeOf(messages) > budgetTokens && sizeOf(messages) > sizeOf(least),
    'without what always stays': least.some((message) => !own.includes(message)),
    'out of order': places.some((place, index) => index > 0 && place <= (places[index - 1] ?? -1)),
    'a call without its answer': calls.some(
      ({ call_id, answers }) => !answers.some((message) => message.role === 'tool' && message.callId === call_id),
    ),
    'an answer without its call': answers.some((id) => !calls.some(({ call_id }) => call_id === id)),
    'neither told nor dropped': all.some(
      (message) =>
        !own.includes(message) && !dropped.includes(message) && (summary === undefined || message.id === undefined),
    ),
    'an older turn was kept, and a newer one dropped': own.some(
      (message) => message.role !== 'system' && turnOf(message) < Math.max(-1, ...olderDropped),
    ),
    'half a turn': olderDropped.some((turn) => own.some((message) => turnOf(message) === turn)),
    'a fold that leaves out what was dropped':
      olderDropped.length > 0 && Number.parseInt(fold?.upTo ?? '-1', 10) < Math.max(...olderDropped),
    'a fold of the newest turn': Number.parseInt(fold?.upTo ?? '-1', 10) === newest,
  }
  return Object.entries(faults).flatMap(([name, is]) => (is ? [name] : []))
}

test('what fits keeps its order, its pairs and its budget', (t) => {
  let [tight, told] = [0, 0]
  fc.assert(
    fc.property(
      conversations,
      fc.nat(400),
      fc.nat(5),
      fc.nat(40),
      fc.boolean(),
      (made, budgetTokens, covered, units, isCut) => {
        const all = toMessages(made)
        const plain: FitOptions = { budgetTokens, estimate, ...(isCut ? { leftOut: 'older' } : {}) }
        const fitted = fitMessages(all, plain)
        if (fitted.dropped.length > 0) tight += 1
        const faults = faultsOf(all, fitted, plain)
        if (
          !isCut &&
          sizeOf(all) <= budgetTokens &&
          (fitted.messages.length !== all.length || fitted.fold !== undefined)
        ) {
          faults.push('something is missing, and all would fit')
        }
        if (isCut && fitted.fold === undefined) faults.push('what was cut is not to be summarized')

        // With a summary of the first turns, but for the newest one.
        const turns = made.turns.length
        const last = all.findLast((message) => turnOf(message) === Math.min(covered, turns - 2))
        if (last?.id !== undefined && turnOf(last) >= 0) {
          const messageId = last.id
          const withSummary = { ...plain, summary: { text: words(units), messageId }, summarizedTo: messageId }
          const summarized = fitMessages(all, withSummary)
          faults.push(...faultsOf(all, summarized, withSummary))
          const isTold = summarized.messages.some(({ content }) => content.startsWith(summaryLine))
          const stillThere = summarized.messages.some(
            (message) => message.role !== 'system' && turnOf(message) <= turnOf(last),
          )
          if (isTold) told += 1
          if (isTold && stillThere) faults.push('it is told twice')
          if (!isTold && !isCut && stillThere && sizeOf(all) > budgetTokens) faults.push('the summary is not used')
        }
        return faults.length === 0
      },
    ),
    { numRuns: 1500, seed: 7 },
  )
  t.ok(tight > 300, 'not all did')
  t.ok(told > 100, 'and some had a summary')
  t.end()
})

test('a twin: a window that counts messages, and not pairs and turns, is noticed', (t) => {
  const found = new Set<string>()
  fc.assert(
    fc.property(conversations, fc.nat(400), (made, budgetTokens) => {
      const all = toMessages(made)
      const messages = [...all]
      while (sizeOf(messages) > budgetTokens && messages.length > 1) messages.shift()
      const dropped = all.slice(0, all.length - messages.length)
      for (const fault of faultsOf(all, { messages, dropped, fold: undefined }, { budgetTokens, estimate }))
        found.add(fault)
    }),
    { numRuns: 300, seed: 7 },
  )
  t.ok(found.has('an answer without its call'))
  t.ok(found.has('without what always stays'))
  t.ok(found.has('half a turn'))
  t.ok(found.has('a fold that leaves out what was dropped'))
  t.end()
})

test('a long turn loses its oldest calls, and keeps its question and what was said last', (t) => {
  const all = toMessages({
    head: [3],
    turns: [{ user: 10, steps: [0, 1, 2].map(() => ({ length: 10, answers: [20, 20] })) }],
  })
  const { messages, dropped, fold } = fitMessages(all, { budgetTokens: 150, estimate })
  t.same(
    messages.map(({ id }) => id),
    [undefined, '0', '0.1', '0.1t', '0.1t', '0.2', '0.2t', '0.2t'],
  )
  t.same(
    dropped.map(({ id }) => id),
    ['0.0', '0.0t', '0.0t'],
  )
  t.equal(fold, undefined, 'a turn that goes on is not summarized')
  t.end()
})

test('a summary stands for what it covers when not all fits, and the next one is asked for in time', (t) => {
  const turn = { user: 99, steps: [{ length: 99, answers: [] }] }
  const all = toMessages({ head: [99], turns: Array.from({ length: 8 }, () => turn) })
  const idsOf = ({ messages }: Fitted) => messages.map(({ id }) => id ?? 'system')
  const covered = { estimate, summary: { text: 'S', messageId: '3.0' }, summarizedTo: '3.0' }

  const whole = fitMessages(all, { ...covered, budgetTokens: 1700 })
  t.match(whole, { messages: all, dropped: [], fold: undefined }, 'all fits: no summary')
  const first = fitMessages(all, { estimate, budgetTokens: 1500, summarizedTo: null })
  t.same(idsOf(first).slice(0, 2), ['system', '1'], 'without a summary, what does not fit is gone')
  t.same(first.fold, { upTo: '4.0', summarizedTo: null }, 'and the next one is to leave half of the window free')

  const told = fitMessages(all, { ...covered, budgetTokens: 1500 })
  t.same(idsOf(told), ['system', 'system', '4', '4.0', '5', '5.0', '6', '6.0', '7', '7.0'])
  t.match(told, { messages: [{}, { content: `${summaryLine}\nS` }], dropped: [], fold: undefined })
  const full = fitMessages(all, { ...covered, budgetTokens: 1100 })
  t.match(
    full,
    { messages: told.messages, dropped: [], fold: { upTo: '6.0', summarizedTo: '3.0' } },
    'it is nearly full',
  )
  const tooFull = fitMessages(all, { ...covered, budgetTokens: 300 })
  t.same(idsOf(tooFull), ['system', '7', '7.0'], 'where even the summary has no place, it goes last')
  t.end()
})

test('what the window of messages has cut is asked for, before and when the summary leaves it', (t) => {
  const turn = { user: 1, steps: [{ length: 1, answers: [] }] }
  const all = toMessages({ head: [], turns: Array.from({ length: 4 }, () => turn) })
  const fit = (messageId: string | undefined, leftOut = 'before') =>
    fitMessages(all, {
      budgetTokens: 10_000,
      estimate,
      leftOut,
      ...(messageId === undefined ? {} : { summary: { text: 'S', messageId }, summarizedTo: messageId }),
    })
  t.match(fit(undefined), { messages: all, dropped: [], fold: { upTo: '1.0', summarizedTo: null } })
  t.match(
    fit('older'),
    { fold: { upTo: '1.0', summarizedTo: 'older' } },
    'something lies between the summary and the window',
  )
  t.match(fit('before'), { fold: { upTo: '1.0' } }, 'the next message would')
  t.equal(fit('1.0').fold, undefined)
  t.equal(fit('1.0').messages.length, 5)
  t.equal(fit('1').messages.length, all.length, 'a summary that ends inside a turn is of another branch')
  t.end()
})

test('what messages may take is what the reply and the tools leave', (t) => {
  t.equal(windowTokens({ contextTokens: 100_000 }, 0), 95_904)
  t.equal(windowTokens({ contextTokens: 8000 }, 500), 5500, 'a small window is not all for the reply')
  t.equal(windowTokens({ contextTokens: 8000, maxOutputTokens: 1000 }, 500), 6500)
  t.equal(windowTokens({ contextTokens: 1000, maxOutputTokens: 900 }, 500), 0)
  t.end()
})
