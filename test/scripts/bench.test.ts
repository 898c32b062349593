/**
 * The benchmark counts what it says it counts: a round with the bare pipe is whole, and the same pipe with a token lost or
 * doubled on the way is caught. A round with a fault, or one in which something else was busy, is in no figure.
 */
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import t, { type Test } from 'tap'
import { type Asked, findUnstored } from '../../scripts/bench/contenders.ts'
import { checkRefusals, sortAnswers } from '../../scripts/bench/measures/shed.ts'
import { runPaced } from '../../scripts/bench/paced.ts'
import { type Reply, replyText, tokenText } from '../../scripts/bench/provider.ts'
import { insertReport, report } from '../../scripts/bench/report.ts'
import { type Bench, type Comparison, compare, ratioOf, type Trial } from '../../scripts/bench/rounds.ts'
import { type Contender, openStage, type Stage } from '../../scripts/bench/stage.ts'
import type { Viewer } from '../../scripts/bench/viewers.ts'
import { findDisturbance, type Watched } from '../../scripts/bench/watch.ts'

const load = { streams: 4, warmMs: 0, windowMs: 200 } as const

t.test('a round with the pipe is whole, and one with a token lost or doubled on the way is not', async (t) => {
  const stage = await openStage(new AbortController().signal, undefined, { stores: false })
  t.teardown(() => stage.close())
  const pipe = await stage.start('pipe')
  const eventOf = (n: number) => new RegExp(`data: [^\\n]*"${tokenText(n).replaceAll('.', '\\.')}"[^\\n]*\\n\\n`)
  const lossy = await spoil(t, stage, pipe, (body) => body.replace(eventOf(7), ''))
  const doubling = await spoil(t, stage, pipe, (body) => body.replace(eventOf(7), '$&$&'))
  const cutting = await spoil(t, stage, pipe, (body) => body.replace('data: [DONE]', ': nothing'))
  const [whole, lost, doubled, cut] = await Promise.all(
    [pipe, lossy, doubling, cutting].map((contender) => runPaced(stage, [contender], load)),
  )
  t.strictSame(whole?.faults, [])
  t.ok((whole?.figures.usPerToken ?? 0) > 0, 'a token costs something')
  t.ok((whole?.watched.tokens ?? 0) > 0, 'tokens were sent in the window')
  t.ok((whole?.figures.lagP50Ms ?? -1) >= 0, 'and took some time')
  for (const [faults, words] of [
    [lost?.faults, /token 7 of \d+ is wrong/],
    [doubled?.faults, /token 8 of \d+ is wrong/],
    [cut?.faults, /no word of the end/],
  ] as const) {
    t.equal(faults?.length, load.streams, `every reply is faulty: ${words}`)
    for (const fault of faults ?? []) t.match(fault, words)
  }
})

t.test('a reply that is not stored, stored twice or stored otherwise is found', async (t) => {
  const tokens = 3
  const row = (content: string, status = 'completed') => ({ id: 'm', role: 'assistant', status, content })
  const stored: readonly (readonly object[])[] = [
    [row(replyText(tokens))],
    [],
    [row(replyText(tokens)), row(replyText(tokens))],
    [row(replyText(tokens - 1))],
    [row(replyText(tokens), 'streaming')],
  ]
  const server = createServer((request, response) => {
    const number = Number(/sessions\/(\d+)\//.exec(request.url ?? '')?.[1])
    response.end(JSON.stringify({ data: stored[number] }))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const replies = stored.map(
    (_, number): Asked => ({ number, tokens, header: (name) => (name === 'x-message-id' ? 'm' : String(number)) }),
  )
  const found = async (number: number) =>
    await findUnstored('gateway-embedded', url, undefined, replies.slice(number, number + 1))
  t.strictSame(await found(0), [])
  for (const number of [1, 2, 3, 4]) t.equal((await found(number)).length, 1, `case ${number}`)
})

t.test('what was disturbed is repeated within a bound, what has a fault is not, and neither is counted', async (t) => {
  const quiet: Trial = { figures: { us: 1 }, faults: [], disturbance: undefined }
  const disturbed: Trial = { figures: { us: 100 }, faults: [], disturbance: 'somebody else' }
  const faulty: Trial = { figures: { us: 100 }, faults: ['a token was lost'], disturbance: undefined }
  const kept: Comparison[] = []
  const run = async (...trials: readonly Trial[]) => {
    const left = [...trials]
    const entrant = { name: 'gateway', run: async () => left.shift() ?? disturbed }
    const comparison = await compare(benchWith(kept), 'cost', '1 stream', [entrant], 2)
    return { us: comparison.rounds.gateway?.map((figures) => figures?.us), faults: comparison.faults.length }
  }
  t.strictSame(await run(quiet, quiet), { us: [1, 1], faults: 0 })
  t.strictSame(await run(disturbed, quiet, disturbed, disturbed, quiet), { us: [1, 1], faults: 0 })
  t.strictSame(await run(faulty, quiet), { us: [undefined, 1], faults: 1 }, 'the other round keeps its place')
  t.strictSame(await run(quiet), { us: [1, undefined], faults: 1 }, 'it ends, and says so')
  t.equal(kept.length, 4)
  const [figures] = kept
  const rounds = { gateway: [{ us: 100 }, { us: 2 }, { us: 9 }], pipe: [null, { us: 1 }, { us: 3 }] }
  t.equal(ratioOf({ ...(figures as Comparison), rounds }, 'gateway', 'pipe', 'us'), 2.5, 'only of neighbours')
})

t.test('a load that is late, busy or not alone does not count', async (t) => {
  const calm = {
    latenessP99Ms: 1,
    loadShare: 0.3,
    foreignShare: 0.02,
    stealShare: 0,
  } as Watched
  t.equal(findDisturbance(calm), undefined)
  for (const change of [{ latenessP99Ms: 19 }, { loadShare: 0.99 }, { foreignShare: 0.5 }, { stealShare: 0.1 }]) {
    t.type(findDisturbance({ ...calm, ...change }), 'string', JSON.stringify(change))
  }
})

t.test(
  'the report has the median of the ratios of neighbours, says what is not kept, and leaves out what was not measured',
  async (t) => {
    const [slow, fast] = [
      [{ usPerToken: 30 }, { usPerToken: 900 }, { usPerToken: 20 }],
      [{ usPerToken: 20 }, { usPerToken: 10 }, { usPerToken: 40 }],
    ]
    const { machine } = benchWith([])
    const cost: Comparison = {
      measure: 'cost',
      setting: '200 streams',
      measuredAt: '2026-01-02T03:04:05.000Z',
      machine,
      rounds: { gateway: slow ?? [], pipe: fast ?? [] },
      faults: [],
      repeated: [],
    }
    const text = report([cost])
    t.match(text, '| a token, 200 streams, in bare pipes | ≤ 1 × | 1.50 × | **not kept** |')
    t.match(text, '| streams held by one process | ≥ 1000 | not measured |  |')
    t.match(text, 'Medians of 3 rounds, 2026-01-02 at abc')
    t.notMatch(text, '### Burst')
    const [offered, held] = [
      {
        '300 streams, with load shedding': [
          { streams: 300, processorShare: 0.25, offered: 3000, held: 1600, overloaded: 1390, gated: 10 },
        ],
      },
      { gateway: [{ streams: 600 }] },
    ]
    const shed: Comparison = { ...cost, measure: 'shed', setting: 'steady arrivals', rounds: offered }
    const capacity: Comparison = { ...cost, measure: 'capacity', setting: 'gateway', rounds: held }
    t.match(report([shed, capacity]), '| 300 streams, with load shedding | 2.0 | 3 000 | 1 600 | 1 390 | 10 |')
    const document = 'before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n'
    const inserted = insertReport(document, text)
    t.ok(inserted.startsWith('before\n<!-- bench:begin -->\n') && inserted.endsWith('<!-- bench:end -->\nafter\n'))
    t.notMatch(inserted, 'old')
    t.equal(insertReport(inserted, text), inserted)
    t.throws(() => insertReport('no place', text))
  },
)

t.test(
  'under overload only what says that too much is asked is a refusal, and one that is not kept is a fault',
  async (t) => {
    const answer = (number: number, status: number, code = '', retryAfter?: string) =>
      ({
        number,
        status,
        bytes: Buffer.from(`{"code":"${code}"}`),
        header: () => retryAfter,
      }) as Partial<Viewer> as Viewer
    const sorted = sortAnswers([
      answer(1, 200, 'overloaded'),
      answer(2, 503, 'overloaded', '3'),
      answer(3, 503, 'db_unavailable', '2'),
      answer(4, 503, 'draining', '2'),
      answer(5, 429, 'overloaded'),
      answer(6, 0),
    ])
    const numbers = Object.entries(sorted).map(([name, viewers]) => [name, viewers.map(({ number }) => number)])
    t.strictSame(Object.fromEntries(numbers), { overloaded: [2], gated: [3], others: [1, 4, 5, 6] })
    const asked = { replies: new Map([[8, {} as Reply]]) }
    const check = (number: number, retryAfter?: string) =>
      checkRefusals(asked, [answer(number, 503, 'overloaded', retryAfter)])
    t.strictSame(check(7, '3'), [])
    t.match(check(8, '3'), [/asked for upstream/])
    t.match(check(7), [/when to come back/])
  },
)

/** The same contender behind somebody who changes what the provider has said. */
async function spoil(t: Test, stage: Stage, pipe: Contender, change: (body: string) => string): Promise<Contender> {
  const server = createServer(async (request, response) => {
    const reply = await fetch(`${stage.provider.url}/chat/completions`, { method: 'POST', body: await text(request) })
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    response.write(change(await reply.text()))
    response.end()
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  const url = new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}/v1/chat/completions`)
  return { ...pipe, ask: (number, tokens) => ({ ...pipe.ask(number, tokens), url }) }
}

/** As far as rounds need it. */
function benchWith(kept: Comparison[]): Bench {
  return {
    machine: {
      processor: 'one',
      processors: 2,
      memoryGb: 1,
      system: 'linux',
      pinned: true,
      versions: { node: '24' },
      commit: 'abc',
    },
    signal: new AbortController().signal,
    say: () => undefined,
    keep: (comparison) => kept.push(comparison),
  } as Partial<Bench> as Bench
}
