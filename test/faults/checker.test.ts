/**
 * The checker notices what it is there for: to a history in which everything went right, one thing is done that breaks a
 * promise, and the checker has to name that promise. A checker that cannot fail would make every fault test worthless.
 */
import { test } from 'tap'
import { check, type Evidence, type Fault, type MessageRow, type RunRow, type SessionRow } from '../support/checker.ts'
import type { HistoryEntry, HistoryLine } from '../support/history.ts'
import type { SaidCall } from '../support/speaker.ts'

const [owner, other] = ['http://a', 'http://b']
const text = 'Hello 🎈 again'

interface Case {
  history: HistoryLine[]
  runs: RunRow[]
  messages: MessageRow[]
  sessions: SessionRow[]
  checkpointed: string[]
  said: SaidCall[]
  faults: Fault[]
  complaints: string[]
}

const line = (atMs: number, viewer: string, entry: HistoryEntry): HistoryLine => ({ atMs, viewer, ...entry })
const wants = (atMs: number, viewer: string, key?: string): HistoryLine =>
  line(atMs, viewer, {
    what: 'wants',
    key,
    message: key === undefined ? undefined : `${key} please`,
    runId: undefined,
    slow: false,
    queues: false,
  })
const open = (atMs: number, viewer: string, gateway: string, after?: string, method: 'GET' | 'POST' = 'GET') =>
  line(atMs, viewer, { what: 'open', gateway, method, after, runId: 'r1', sessionId: 's1', messageId: 'reply' })
const event = (atMs: number, viewer: string, event: string, id: string, data: unknown) =>
  line(atMs, viewer, { what: 'event', event, id, data })
const delta = (atMs: number, viewer: string, id: string, offset: number, words: string) =>
  event(atMs, viewer, 'delta', id, { part: 0, offset, text: words })
const reset = (atMs: number, viewer: string, id: string, words: string) =>
  event(atMs, viewer, 'reset', id, { message_id: 'reply', parts: [{ kind: 'text', text: words }], cursor: id })
const done = (atMs: number, viewer: string, id: string, status = 'completed') =>
  event(atMs, viewer, 'done', id, { status, message_id: 'reply' })
const closed = (atMs: number, viewer: string, gateway: string, how: 'clean' | 'cut' | 'left' = 'clean') =>
  line(atMs, viewer, { what: 'closed', gateway, how })
const ended = (atMs: number, viewer: string, why: 'done' | 'left' | 'gave up' = 'done') =>
  line(atMs, viewer, { what: 'end', why })

/** One reply, sent by v1 and watched by v2 on another gateway, which lost its connection on the way. */
function goodCase(): Case {
  return {
    history: [
      wants(0, 'v1', 'k1'),
      open(10, 'v1', owner, undefined, 'POST'),
      event(11, 'v1', 'run', '1-1', {}),
      delta(100, 'v1', '1-2', 0, 'Hello '),
      delta(200, 'v1', '1-3', 6, '🎈'),
      delta(300, 'v1', '1-4', 8, ' again'),
      done(320, 'v1', '1-5'),
      closed(321, 'v1', owner),
      ended(321, 'v1'),
      wants(20, 'v2'),
      open(30, 'v2', other),
      event(31, 'v2', 'run', '1-1', {}),
      delta(110, 'v2', '1-2', 0, 'Hello '),
      closed(150, 'v2', other, 'cut'),
      open(250, 'v2', other, '1-2'),
      delta(260, 'v2', '1-3', 6, '🎈'),
      delta(310, 'v2', '1-4', 8, ' again'),
      done(330, 'v2', '1-5'),
      closed(331, 'v2', other),
      ended(331, 'v2'),
    ],
    runs: [
      {
        id: 'r1',
        session_id: 's1',
        user_message_id: 'question',
        message_id: 'reply',
        status: 'completed',
        generation: 1,
        attempts: 1,
        last_seq: 5,
        idempotency_key: 'k1',
        gateway: owner,
      },
    ],
    messages: [
      { id: 'question', session_id: 's1', role: 'user', status: 'completed', content: 'k1 please' },
      { id: 'reply', session_id: 's1', role: 'assistant', status: 'completed', content: text },
    ],
    sessions: [{ id: 's1', message_count: 2, active_run_id: null }],
    checkpointed: [],
    said: [{ key: 'k1', call: 1, atMs: 20, firstWordAtMs: 90, lastWordAtMs: 300, text, whole: true }],
    faults: [],
    complaints: [],
  }
}

/** The owner was killed after `Hello `, and the other process ended the reply as interrupted. */
function takenOver(): Case {
  const made = goodCase()
  return {
    ...made,
    history: [
      wants(0, 'v1', 'k1'),
      open(10, 'v1', owner, undefined, 'POST'),
      event(11, 'v1', 'run', '1-1', {}),
      delta(100, 'v1', '1-2', 0, 'Hello '),
      closed(5_000, 'v1', owner, 'cut'),
      open(5_100, 'v1', other, '1-2'),
      reset(15_000, 'v1', '2-1', 'Hello '),
      done(15_001, 'v1', '2-2', 'interrupted'),
      closed(15_002, 'v1', other),
      ended(15_003, 'v1'),
    ],
    runs: [{ ...(made.runs[0] as RunRow), status: 'interrupted', generation: 2, last_seq: 2, gateway: other }],
    messages: [
      made.messages[0] as MessageRow,
      { id: 'reply', session_id: 's1', role: 'assistant', status: 'interrupted', content: 'Hello ' },
    ],
    said: [{ key: 'k1', call: 1, atMs: 20, firstWordAtMs: 90, lastWordAtMs: 300, text, whole: false }],
    faults: [{ kind: 'kill', gateway: owner, fromMs: 5_000, toMs: 5_000 }],
  }
}

const rulesOf = (evidence: Evidence): string[] => [...new Set(check(evidence).violations.map(({ rule }) => rule))]

/** Puts lines in the place of the first one that `found` finds; without any it goes. */
function replace(made: Case, found: (one: HistoryLine) => boolean, ...lines: HistoryLine[]): void {
  const at = made.history.findIndex(found)
  if (at < 0) throw new Error('there is no such line')
  made.history.splice(at, 1, ...lines)
}
const isEvent = (viewer: string, id: string) => (one: HistoryLine) =>
  one.viewer === viewer && one.what === 'event' && one.id === id

test('a history in which nothing went wrong is accepted, and measured', async (t) => {
  const { violations, figures } = check(goodCase())
  t.same(violations, [])
  t.match(figures, { messages: 1, acknowledged: 1, lostMessages: 0, lostUnits: 0, duplicatedUnits: 0, wrongEnds: 0 })
  t.equal(figures.worstStallMs, 100)
  const after = check(takenOver())
  t.same(after.violations, [])
  t.same(after.figures.takeoverMs, [10_000])
})

const breaches: readonly (readonly [title: string, rule: string, breakIt: (made: Case) => void])[] = [
  ['an acknowledged message that is not stored', 'P1 accepted is stored', (made) => void made.messages.shift()],
  ['an acknowledged run that is not stored', 'P1 accepted is stored', (made) => void made.runs.pop()],
  [
    'a reply that is not stored',
    'P1 accepted is stored',
    (made) => {
      made.messages = made.messages.slice(0, 1)
    },
  ],
  [
    'a question that is stored twice',
    'P1 stored once',
    (made) => void made.messages.push({ ...(made.messages[0] as MessageRow), id: 'again' }),
  ],
  [
    'a key that became two runs',
    'P5 one run',
    (made) => {
      made.history.push(wants(0, 'v3', 'k1'), {
        ...open(12, 'v3', other, undefined, 'POST'),
        runId: 'r2',
      } as HistoryLine)
    },
  ],
  ['a gap in what a viewer was sent', 'P3 gap', (made) => replace(made, isEvent('v2', '1-3'))],
  [
    'words that a viewer was sent twice',
    'P3 duplicate',
    (made) => replace(made, isEvent('v2', '1-3'), delta(260, 'v2', '1-3', 0, 'Hello 🎈')),
  ],
  [
    'an event that comes a second time',
    'P3 order',
    (made) =>
      replace(made, isEvent('v2', '1-3'), delta(260, 'v2', '1-3', 6, '🎈'), event(261, 'v2', 'tool', '1-3', {})),
  ],
  ['a tail that a viewer was never sent', 'P3 byte for byte', (made) => replace(made, isEvent('v2', '1-4'))],
  [
    'one letter that is another',
    'P3 byte for byte',
    (made) => replace(made, isEvent('v2', '1-4'), delta(310, 'v2', '1-4', 8, ' agaiN')),
  ],
  [
    'words in the database that the provider never said',
    'P3 what the provider said',
    (made) => {
      made.said = [{ ...(made.said[0] as SaidCall), text: 'Hello 🎈' }]
    },
  ],
  [
    'completed without all that the provider said',
    'P3 what the provider said',
    (made) => {
      made.said = [{ ...(made.said[0] as SaidCall), text: `${text} and more` }]
    },
  ],
  [
    'a lost tail: words shown before the kill that the takeover did not keep',
    'P3 shown is kept',
    (made) => {
      Object.assign(made, takenOver())
      replace(made, isEvent('v1', '2-1'), reset(15_000, 'v1', '2-1', 'Hel'))
      made.messages[1] = { ...(made.messages[1] as MessageRow), content: 'Hel' }
    },
  ],
  [
    'the words of a zombie in the database',
    'P3 byte for byte',
    (made) => {
      Object.assign(made, takenOver())
      made.messages[1] = { ...(made.messages[1] as MessageRow), content: 'Hello 🎈' }
    },
  ],
  [
    'the words of a zombie behind those of its successor',
    'P3 duplicate',
    (made) => {
      Object.assign(made, takenOver())
      replace(
        made,
        isEvent('v1', '2-2'),
        delta(15_001, 'v1', '2-2', 0, 'Hello '),
        done(15_002, 'v1', '2-3', 'interrupted'),
      )
      made.runs[0] = { ...(made.runs[0] as RunRow), last_seq: 3 }
    },
  ],
  [
    'a zombie that overwrote the end',
    'P4 done is stored',
    (made) => {
      Object.assign(made, takenOver())
      made.runs[0] = { ...(made.runs[0] as RunRow), status: 'completed' }
    },
  ],
  [
    'two ends that two viewers were told',
    'P4 one end',
    (made) => replace(made, isEvent('v2', '1-5'), done(330, 'v2', '2-2')),
  ],
  [
    'two ends that one viewer was told',
    'P4 one end',
    (made) => replace(made, isEvent('v2', '1-5'), done(330, 'v2', '1-5'), done(331, 'v2', '1-6')),
  ],
  [
    'words after the end',
    'P4 one end',
    (made) => replace(made, isEvent('v2', '1-5'), done(330, 'v2', '1-5'), delta(331, 'v2', '1-6', 14, '!')),
  ],
  [
    'done while the run is still running',
    'P4 done is stored',
    (made) => {
      made.runs[0] = { ...(made.runs[0] as RunRow), status: 'running' }
    },
  ],
  [
    'completed told, interrupted stored',
    'P4 done is stored',
    (made) => {
      made.messages[1] = { ...(made.messages[1] as MessageRow), status: 'interrupted' }
    },
  ],
  [
    'a call too many, without a death',
    'P5 one call',
    (made) => void made.said.push({ ...(made.said[0] as SaidCall), call: 2, atMs: 50 }),
  ],
  [
    'a call too many, after words were shown',
    'P5 one call',
    (made) => {
      made.said.push({ ...(made.said[0] as SaidCall), call: 2, atMs: 5_000 })
      made.faults.push({ kind: 'kill', gateway: owner, fromMs: 4_000, toMs: 4_000 })
    },
  ],
  [
    'three calls',
    'P5 one call',
    (made) => {
      made.said = [10, 20, 30].map((atMs) => ({ ...(made.said[0] as SaidCall), atMs }))
    },
  ],
  [
    'a run that is left running',
    'P7 no orphan',
    (made) => {
      made.runs[0] = { ...(made.runs[0] as RunRow), status: 'running' }
    },
  ],
  [
    'a message that is left streaming',
    'P7 no orphan',
    (made) => {
      made.messages[1] = { ...(made.messages[1] as MessageRow), status: 'streaming' }
    },
  ],
  ['checkpoints that are left', 'leftovers', (made) => void made.checkpointed.push('r1', 'r2')],
  [
    'a session that still names its run',
    'P7 no orphan',
    (made) => {
      made.sessions[0] = { ...(made.sessions[0] as SessionRow), active_run_id: 'r1' }
    },
  ],
  [
    'a counter that is wrong',
    'counters',
    (made) => {
      made.sessions[0] = { ...(made.sessions[0] as SessionRow), message_count: 3 }
    },
  ],
  [
    'a viewer that never saw the end',
    'P7 the end is seen',
    (made) => {
      replace(made, isEvent('v2', '1-5'))
      replace(made, (one) => one.viewer === 'v2' && one.what === 'end', ended(90_000, 'v2', 'gave up'))
    },
  ],
  [
    'a clean end of a body before the end of the run',
    'P8 a cut is a cut',
    (made) => replace(made, (one) => one.viewer === 'v2' && one.what === 'closed', closed(150, 'v2', other, 'clean')),
  ],
  ['an error that nobody caught', 'logs', (made) => void made.complaints.push('g1: unhandledRejection')],
]

for (const [title, rule, breakIt] of breaches) {
  test(`noticed: ${title}`, async (t) => {
    const made = goodCase()
    breakIt(made)
    t.ok(rulesOf(made).includes(rule), `${rule}, among ${rulesOf(made).join(', ') || 'none'}`)
  })
}

/** The takeover kept only `Hel`; `Hello ` had been shown 100 ms before the kill, and a reset took it back. */
function lostWords(faults: readonly Fault[]): Case {
  const made = takenOver()
  replace(made, isEvent('v1', '1-2'), delta(4_900, 'v1', '1-2', 0, 'Hello '))
  replace(made, isEvent('v1', '2-1'), reset(15_000, 'v1', '2-1', 'Hel'))
  made.messages[1] = { ...(made.messages[1] as MessageRow), content: 'Hel' }
  made.said = [{ ...(made.said[0] as SaidCall), lastWordAtMs: 4_900 }]
  made.faults.push(...faults)
  return made
}

test('words may be lost when Redis was away and the process died within the same second, and only those of its last moments', async (t) => {
  const away = (fromMs: number, toMs: number, gateway?: string): Fault => ({
    kind: 'redis away',
    gateway,
    fromMs,
    toMs,
  })
  const verdict = check(lostWords([away(4_000, 4_500)]))
  t.same(verdict.violations, [])
  t.same(verdict.figures.excused, [{ why: 'double fault', units: 3 }])
  t.same(rulesOf(lostWords([away(4_000, 4_500, owner)])), [], 'of that process alone')
  t.same(rulesOf(lostWords([away(1_000, 3_000)])), ['P3 shown is kept'], 'Redis was back two seconds before')
  t.same(rulesOf(lostWords([away(9_000, 9_001)])), [], 'Redis forgot before the takeover')
  t.same(rulesOf(lostWords([away(25_000, 25_001)])), ['P3 shown is kept'], 'Redis forgot long after the takeover')
  t.same(rulesOf(lostWords([away(14_000, 15_500, other)])), [], 'whoever took over had no Redis')
  t.same(rulesOf(lostWords([away(4_000, 4_500, other)])), ['P3 shown is kept'], 'it had no Redis before the kill')
  t.same(rulesOf(lostWords([away(4_000, 15_500, 'http://c')])), ['P3 shown is kept'], 'a third process had no Redis')
  t.same(rulesOf(lostWords([])), ['P3 shown is kept'], 'Redis was there')

  const unstored = lostWords([away(4_000, 4_500)])
  replace(unstored, isEvent('v1', '2-1'), reset(15_000, 'v1', '2-1', ''))
  unstored.messages[1] = { ...(unstored.messages[1] as MessageRow), content: '' }
  unstored.said.push({ ...(unstored.said[0] as SaidCall), key: 'k2', lastWordAtMs: 1_000 })
  t.same(rulesOf(unstored), [], 'nothing is stored, and another reply that began the same had been said long before')

  const old = lostWords([away(1_000, 6_000)])
  replace(old, isEvent('v1', '1-2'), delta(2_000, 'v1', '1-2', 0, 'Hello '))
  t.same(rulesOf(old), ['P3 shown is kept'], 'three seconds before the kill there had been a checkpoint since')
  old.faults.push({ kind: 'database away', gateway: undefined, fromMs: 1_500, toMs: 6_000 })
  t.same(rulesOf(old), [], 'there was none, with the database away as well')
})

test('words of a process that was frozen are taken back by a reset, and only those that it showed after the thaw', async (t) => {
  const zombie = (fault: Fault, last?: HistoryLine): Case => {
    const made = takenOver()
    made.faults = [fault]
    replace(
      made,
      (one) => one.what === 'closed' && one.how === 'cut',
      delta(20_050, 'v1', '1-3', 6, '🎈'),
      ...(last === undefined ? [] : [last]),
      closed(20_060, 'v1', owner, 'cut'),
    )
    return made
  }
  const freeze: Fault = { kind: 'freeze', gateway: owner, fromMs: 200, toMs: 20_000 }
  const { violations, figures } = check(zombie(freeze))
  t.same(violations, [])
  t.same(figures.excused, [{ why: 'zombie', units: 2 }])
  t.same(rulesOf(zombie({ ...freeze, gateway: other })), ['P3 shown is kept'], 'it was not that process')
  t.same(rulesOf(zombie({ ...freeze, toMs: 10_000 })), ['P3 shown is kept'], 'it had ten seconds to notice')
  const deaf = zombie(freeze)
  replace(deaf, isEvent('v1', '2-1'))
  t.ok(rulesOf(deaf).includes('P3 byte for byte'), 'without a reset its viewer keeps words that are not stored')
})

test('words that were shown and then forgotten by all that could tell of them do not forbid a second call', async (t) => {
  const made = goodCase()
  const first = made.said[0] as SaidCall
  made.history.splice(3, 0, delta(50, 'v1', '1-2', 0, 'Hel'), reset(5_000, 'v1', '2-1', ''))
  made.history = made.history.map((one) =>
    one.atMs < 60 || one.atMs >= 5_000
      ? one
      : { ...one, atMs: one.atMs + 6_000, ...('id' in one ? { id: one.id?.replace('1-', '2-') } : {}) },
  ) as HistoryLine[]
  made.runs[0] = { ...(made.runs[0] as RunRow), generation: 2 }
  made.said = [
    { ...first, text: 'Hel', whole: false },
    { ...first, call: 2, atMs: 5_000 },
  ]
  made.faults = [{ kind: 'kill', gateway: owner, fromMs: 60, toMs: 60 }]
  t.ok(rulesOf(made).includes('P5 one call'))
  made.faults.push({ kind: 'redis away', gateway: undefined, fromMs: 3_000, toMs: 3_001 })
  t.notOk(rulesOf(made).includes('P5 one call'), 'Redis forgot them before the takeover')
})

test('a second call is right when the process died before anything was shown', async (t) => {
  const made = goodCase()
  made.said = [
    {
      ...(made.said[0] as SaidCall),
      atMs: 15,
      text: '',
      firstWordAtMs: undefined,
      lastWordAtMs: undefined,
      whole: false,
    },
    { ...(made.said[0] as SaidCall), call: 2, atMs: 60 },
  ]
  made.faults.push({ kind: 'kill', gateway: owner, fromMs: 40, toMs: 40 })
  t.same(rulesOf(made), [])
  made.faults = [{ kind: 'kill', gateway: other, fromMs: 40, toMs: 40 }]
  t.same(rulesOf(made), ['P5 one call'], 'it was another process that died')
})
