/**
 * Asking for one reply: who is asked, how often, after which pause, and that nobody is asked again once something was
 * shown. Upstreams and clocks are played; over real HTTP it is in test/e2e.
 */
import { test } from 'tap'
import { type ErrorCode, Problem, type ProblemOptions } from '../../src/errors.ts'
import { type AskOptions, ask, retryAfterMaxMs } from '../../src/runs/ask.ts'
import type { ModelChoice } from '../../src/upstream/plan.ts'
import type { Upstream, UpstreamEvent } from '../../src/upstream/upstream.ts'

const text = (words: string): UpstreamEvent => ({ type: 'text', text: words })
const usage: UpstreamEvent = { type: 'usage', usage: { input_tokens: 1, output_tokens: 0, total_tokens: 1 } }
const finish: UpstreamEvent = { type: 'finish', reason: 'stop' }
const fails = (code: ErrorCode, options?: ProblemOptions) => new Problem(code, undefined, options)
const passing = (retryAfterSeconds?: number) =>
  fails('upstream_unavailable', retryAfterSeconds === undefined ? {} : { retryAfterSeconds })

/** What one call of a provider does: events, and an error at the end. */
type Take = readonly (UpstreamEvent | Error)[]

/** Providers that do as they are told, call by call; the last line is repeated. */
function play(takes: Readonly<Record<string, readonly Take[]>>, options: Partial<AskOptions> = {}) {
  const asked: string[] = []
  const pauses: number[] = []
  const outcomes: string[] = []
  const controller = new AbortController()
  const candidates = Object.keys(takes).map((name): ModelChoice => ({ provider: name, model: `${name}-1` }))
  const upstreamOf = (provider: string): Upstream => ({
    provider,
    async *stream({ model }, signal) {
      const count = asked.filter((name) => name === provider).length
      asked.push(provider)
      if (model !== `${provider}-1`) throw new Error(`asked ${provider} for ${model}`)
      for (const step of takes[provider]?.[count] ?? takes[provider]?.at(-1) ?? []) {
        if (step instanceof Error) throw step
        yield step
        signal.throwIfAborted()
      }
    },
    close: async () => undefined,
  })
  const events: UpstreamEvent[] = []
  const reply = () =>
    ask(
      {
        candidates,
        upstreamOf,
        requestFor: ({ model }) => ({ model, messages: [] }),
        ledger: {
          begin: () => ({ see: () => undefined, end: (outcome) => void outcomes.push(outcome) }),
          add: () => undefined,
          addLost: () => undefined,
          calls: [],
          totals: () => ({ usage: undefined, source: undefined, costUsd: undefined }),
        },
        promptTokens: () => 0,
        retries: 2,
        retryMs: 100,
        random: () => 0,
        pause: async (ms) => void pauses.push(ms),
        onFailed: () => undefined,
        ...options,
      },
      (event) => events.push(event),
      controller.signal,
    )
  async function collect() {
    try {
      const answeredBy = await reply()
      return { events, answeredBy: answeredBy.provider, error: undefined }
    } catch (error) {
      return { events, answeredBy: undefined, error }
    }
  }
  return { collect, asked, pauses, outcomes, controller }
}

test('a provider that fails in passing is asked again, after pauses that grow, and then the next one', async (t) => {
  const scene = play({ a: [[passing()]], b: [[text('Yes'), finish]] })
  const { events, answeredBy } = await scene.collect()
  t.same(events, [text('Yes'), finish])
  t.equal(answeredBy, 'b')
  t.same(scene.asked, ['a', 'a', 'a', 'b'])
  t.same(scene.pauses, [50, 100], 'half of the pause at least')
  t.same(scene.outcomes, ['upstream_unavailable', 'upstream_unavailable', 'upstream_unavailable', 'completed'])
})

test('chance makes a pause longer, and never longer than the pause', async (t) => {
  const scene = play({ a: [[passing()]] }, { random: () => 0.999, retries: 10, retryMs: 1000 })
  await scene.collect()
  t.same(scene.pauses.slice(0, 4), [1000, 1999, 3998, 7996])
  t.ok(scene.pauses.every((ms) => ms <= 10_000))
  t.equal(scene.pauses.length, 10)
})

test('a provider is waited for as long as it asks, within reason', async (t) => {
  const patient = play({ a: [[passing(7)], [text('Yes')]] })
  t.equal((await patient.collect()).error, undefined)
  t.same(patient.pauses, [7000])
  const hour = play({ a: [[passing(retryAfterMaxMs / 1000 + 1)]], b: [[text('Yes')]] })
  t.equal((await hour.collect()).answeredBy, 'b')
  t.same(hour.pauses, [])
  t.same(hour.asked, ['a', 'b'])
})

test('a refusal is not repeated, and a model that fell silent has had its time', async (t) => {
  for (const code of ['upstream_rejected', 'upstream_timeout'] as const) {
    const scene = play({ a: [[fails(code)]], b: [[text('Yes')]] })
    t.equal((await scene.collect()).answeredBy, 'b', code)
    t.same(scene.asked, ['a', 'b'])
    t.same(scene.pauses, [])
  }
})

test('once anything was shown, nobody else is asked', async (t) => {
  const visible: readonly UpstreamEvent[] = [
    text('Ye'),
    { type: 'reasoning', text: 'Hm' },
    { type: 'tool_call', key: '0', arguments: '' },
    { type: 'source', url: 'https://a.example/' },
    { type: 'file', mediaType: 'image/png', url: 'data:,' },
    { type: 'signature', signature: 's', redacted: true },
  ]
  for (const event of visible) {
    const scene = play({ a: [[event, passing()]], b: [[text('Yes')]] })
    const { events, error } = await scene.collect()
    t.match(error, { code: 'upstream_unavailable' }, event.type)
    t.same(events, [event])
    t.same(scene.asked, ['a'])
  }
  const silent = play({ a: [[{ type: 'response', id: 'r' }, usage, passing()], [text('Yes')]] })
  t.equal((await silent.collect()).error, undefined, 'labels and counts are seen by nobody')
  t.same(silent.asked, ['a', 'a'])
})

test('when none is left, the error is the one that gives hope', async (t) => {
  const scene = play({ a: [[passing()]], b: [[fails('upstream_rejected')]] }, { retries: 0 })
  t.match((await scene.collect()).error, { code: 'upstream_unavailable', retryable: true })
  const hopeless = play({ a: [[fails('upstream_rejected')]], b: [[fails('too_large')]] }, { retries: 0 })
  t.match((await hopeless.collect()).error, { code: 'too_large' })
  const none = play({})
  t.match((await none.collect()).error, { code: 'upstream_rejected' })
})

test('what is no Problem is a fault of the gateway, and is not tried again', async (t) => {
  const scene = play({ a: [[new TypeError('oops')]], b: [[text('Yes')]] })
  t.match((await scene.collect()).error, { name: 'TypeError' })
  t.same(scene.asked, ['a'])
  t.same(scene.outcomes, ['internal'])
})

test('a stop ends the pause and the tries', async (t) => {
  const scene: ReturnType<typeof play> = play(
    { a: [[passing()]] },
    { pause: async () => scene.controller.abort('stop') },
  )
  t.equal((await scene.collect()).error, 'stop')
  t.same(scene.asked, ['a'])
  const saying: ReturnType<typeof play> = play({ a: [[text('Ye'), text('s')]] })
  const { controller } = saying
  controller.abort('stop')
  t.equal((await saying.collect()).error, 'stop')
  t.same(saying.outcomes, ['stopped'])
})
