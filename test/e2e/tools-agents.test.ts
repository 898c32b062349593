/**
 * Replies that are more than one call of a model: asked again when a provider fails, with tools of the server in several
 * steps, or made by an agent. What a viewer sees is what is stored, and a stop ends all of it.
 */
import { test } from 'tap'
import { Type } from 'typebox'
import {
  begin,
  chunk,
  doneMarker,
  forever,
  refuse,
  type Script,
  say,
  startFakeUpstream,
} from '../../scripts/fake-upstream.ts'
import { sql } from '../../src/db/drizzle.ts'
import { Problem } from '../../src/errors.ts'
import { stepsMax } from '../../src/runs/reply.ts'
import { defineTool } from '../../src/runs/tools.ts'
import type { Agent } from '../../src/upstream/agent.ts'
import { createClient, holdParts, isDone, type Received, shownText } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { startGateway } from '../support/gateway.ts'

type Call = readonly [id: string, name: string, args: string]

/** Calls tools, and says so. */
function* call(...calls: readonly Call[]) {
  yield chunk({
    tool_calls: calls.map(([id, name, args], index) => ({
      index,
      id,
      type: 'function',
      function: { name, arguments: args },
    })),
  })
  yield chunk({}, 'tool_calls')
  yield doneMarker
}

/** One script after the other; the last one is repeated. */
function inTurn(...scripts: readonly Script[]): Script {
  let next = 0
  return (call) => {
    const script = scripts[Math.min(next, scripts.length - 1)] as Script
    next += 1
    return script(call)
  }
}

type Gate = PromiseWithResolvers<void>

const typesOf = (events: readonly Received[]) => events.map(({ event }) => event).filter((event) => event !== 'ready')

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const upstream = await startFakeUpstream()
    t.teardown(() => upstream.close())
    /** What the tool and the agent of a test do. */
    let run: (input: unknown, signal: AbortSignal, runId: string) => unknown = () => null
    let speak: Agent['reply'] = ({ messages }, { ask }) => ask({ messages })
    const lines: string[] = []
    const gateway = await startGateway(t, {
      database,
      env: { OPENAI_BASE_URL: upstream.url, FRAME_MS: '5', LOG_LEVEL: 'info' },
      logStream: { write: (line) => void lines.push(line) },
      tools: [
        defineTool({
          name: 'look_up',
          description: 'Looks a word up.',
          parameters: Type.Object({ word: Type.String() }),
          execute: (input, { runId }, signal) => run(input, signal, runId),
        }),
      ],
      agents: [{ id: 'pipeline', reply: (request, context, signal) => speak(request, context, signal) }],
    })
    const client = createClient(gateway.url)
    const storedOf = async (sessionId: string | null) => (await client.messages(sessionId ?? '')).at(-1)

    await t.test('a provider that fails first is asked again, and viewers see one reply', async (t) => {
      upstream.answer(
        inTurn(
          () => refuse(503),
          () => refuse(429, {}, { 'retry-after': '0' }),
          () => say({ text: 'There' }),
        ),
      )
      const before = upstream.calls.length
      const stream = await client.send({ message: 'Hello' })
      t.equal(await stream.ended, 'clean')
      t.equal(shownText(stream.received), 'There')
      t.match(stream.received.at(-1)?.data, { status: 'completed' })
      t.equal(upstream.calls.length - before, 3)
      t.match((await client.get(`/api/v1/runs/${stream.headers.get('x-run-id')}`)).body.upstream_calls, [
        { outcome: 'upstream_unavailable', usage: null },
        { outcome: 'upstream_unavailable', usage: null },
        { outcome: 'completed', usage: { output_tokens: 1 }, usage_source: 'provider', cost_usd: String },
      ])
      t.ok(lines.some((line) => line.includes('a provider failed') && line.includes('upstream_unavailable')))
    })

    await t.test('tools are run, and their answers go back, until the model has said what it has to say', async (t) => {
      const checkpoints: unknown[] = []
      run = async (input, _signal, runId) => {
        checkpoints.push(
          await gateway.app.db.rows(
            sql`select part, kind, text, detail ->> 'name' as name from run_checkpoints where run_id = ${runId}::uuid order by seq, part`,
          ),
        )
        return { found: (input as { word: string }).word.toUpperCase() }
      }
      upstream.answer(
        inTurn(
          function* () {
            yield chunk({ content: 'Let me look.' })
            yield* call(['c1', 'look_up', '{"word":"a"}'], ['c2', 'look_up', '{"word":5}'])
          },
          () => say({ text: ' Found it.' }),
        ),
      )
      const first = upstream.calls.length
      const stream = await client.send({ message: 'What is a?' })
      t.equal(await stream.ended, 'clean')
      t.match(stream.received.at(-1)?.data, { status: 'completed', finish_reason: 'stop' })
      const stored = await storedOf(stream.headers.get('x-session-id'))
      t.equal(stored.content, 'Let me look. Found it.')
      t.match(stored.parts, [
        { kind: 'text', text: 'Let me look.' },
        { kind: 'tool_call', call_id: 'c1', name: 'look_up', input: { word: 'a' }, output: { found: 'A' } },
        { kind: 'tool_call', call_id: 'c2', input: { word: 5 }, error: { code: 'invalid_input' } },
        { kind: 'text', text: ' Found it.' },
      ])
      t.same(
        holdParts(stream.received),
        stored.parts.map(({ kind, text }: { kind: string; text: string }) => ({ kind, text })),
      )
      t.match(
        checkpoints[0],
        [
          { part: 0, text: 'Let me look.' },
          { kind: 'tool_call', name: 'look_up', text: '{"word":"a"}' },
        ],
        'the call was stored before the tool was run',
      )
      const [asked, again] = upstream.calls.slice(first)
      t.match(asked?.body, { tools: [{ type: 'function', function: { name: 'look_up' } }] })
      t.match(again?.body?.messages, [
        { role: 'user' },
        { role: 'assistant', content: 'Let me look.', tool_calls: [{ id: 'c1' }, { id: 'c2' }] },
        { role: 'tool', tool_call_id: 'c1', content: '{"found":"A"}' },
        { role: 'tool', tool_call_id: 'c2' },
      ])
      const late = await client.watch(`/api/v1/runs/${stream.headers.get('x-run-id')}/events`)
      await late.ended
      t.same(holdParts(late.received), holdParts(stream.received))
    })

    await t.test('a tool that throws is told to the model, and a model that never ends is ended', async (t) => {
      run = () => {
        throw new Error('MARKER')
      }
      upstream.answer(() => call(['c', 'look_up', '{"word":"a"}']))
      const before = upstream.calls.length
      const stream = await client.send({ message: 'For ever' })
      await stream.ended
      t.match(stream.received.at(-1)?.data, { status: 'completed' })
      t.equal(upstream.calls.length - before, stepsMax)
      t.match(upstream.calls.at(-1)?.body, { tool_choice: 'none' })
      const { parts } = await storedOf(stream.headers.get('x-session-id'))
      t.equal(parts.length, stepsMax)
      t.match(parts[0], { error: { code: 'failed', message: 'The tool failed.' } })
      t.match(parts.at(-1), { error: { code: 'steps_exhausted' } })
      t.notMatch(stream.text(), /MARKER/)
    })

    await t.test('a stop ends a tool that runs, and keeps what was said', async (t) => {
      const running = Promise.withResolvers<AbortSignal>()
      run = (_input, signal) => {
        running.resolve(signal)
        return forever()
      }
      upstream.answer(() => call(['c', 'look_up', '{"word":"a"}']))
      const stream = await client.send({ message: 'Long' })
      const signal = await running.promise
      const stopped = await client.post(`/api/v1/runs/${stream.headers.get('x-run-id')}/stop`)
      t.match(stopped.body, {
        run: { status: 'stopped' },
        message: { parts: [{ kind: 'tool_call', name: 'look_up' }] },
      })
      t.ok(signal.aborted)
      t.equal(await stream.ended, 'clean')
    })

    await t.test('an agent makes the reply: words, tools, sources, progress, documents, a title', async (t) => {
      upstream.answer(() => say({ text: 'the model says' }))
      speak = async function* ({ messages, metadata, sessionId }, { askText }) {
        yield { type: 'title', title: '  A good\n title ' }
        yield { type: 'progress', phase: 'searching', round: 1 }
        yield { type: 'tool_call', key: 'k', callId: 'call', name: 'search', arguments: '{"q":1}' }
        yield { type: 'tool_result', key: 'k', output: ['hit'] }
        yield { type: 'source', url: 'https://a.example/', title: 'A' }
        yield { type: 'artifact', name: 'notes', contentType: 'text/markdown', body: `# ${sessionId.length}` }
        const said = await askText({ messages })
        yield { type: 'progress', phase: 'writing', round: 2 }
        yield { type: 'text', text: `${JSON.stringify(metadata)}: ${said}\0 \ud800!` }
        yield { type: 'finish', reason: 'stop' }
      }
      const stream = await client.send({ message: 'Go', agent_id: 'pipeline', metadata: { a: 1 } })
      t.equal(await stream.ended, 'clean')
      t.same(typesOf(stream.received), [
        'run',
        'title',
        'progress',
        'part',
        'delta',
        'tool',
        'source',
        'artifact',
        'progress',
        'part',
        'delta',
        'done',
      ])
      const session = stream.headers.get('x-session-id')
      const stored = await storedOf(session)
      t.match(stored, { agent_id: 'pipeline', content: '{"a":1}: the model says \ufffd!', finish_reason: 'stop' })
      t.match(stored.parts, [
        { kind: 'tool_call', call_id: 'call', input: { q: 1 }, output: ['hit'] },
        { kind: 'source', url: 'https://a.example/' },
        { kind: 'text' },
      ])
      const shown = { phase: 'writing', round_number: 2 }
      t.match((await client.get(`/api/v1/sessions/${session}`)).body, { title: 'A good title', ...shown })
      t.match((await client.get(`/api/v1/runs/${stream.headers.get('x-run-id')}`)).body, {
        ...shown,
        usage: { output_tokens: 3 },
        upstream_calls: [{ provider: 'openai', outcome: 'completed' }],
      })
      t.match((await client.get(`/api/v1/sessions/${session}/artifacts/notes`)).body, { body: '# 36', version: 1 })
    })

    await t.test('an agent that throws, fails or hangs is an end like any other', async (t) => {
      const endOf = async () => {
        const stream = await client.send({ message: 'Go', agent_id: 'pipeline' })
        t.equal(await stream.ended, 'clean')
        t.notMatch(stream.text(), /MARKER/)
        return stream.received.find(isDone)?.data
      }
      speak = async function* () {
        yield { type: 'text', text: 'So' }
        throw new Error('MARKER')
      }
      t.match(await endOf(), { status: 'failed', error: { code: 'internal' } })
      speak = async function* () {
        yield { type: 'text', text: 'So' }
        throw new Problem('upstream_unavailable')
      }
      t.match(await endOf(), { status: 'interrupted', error: { code: 'upstream_unavailable' } })
      speak = async function* () {
        yield { type: 'artifact', name: '..', contentType: 'text/plain', body: '' }
      }
      t.match(await endOf(), { status: 'failed', error: { code: 'invalid_request' } })
      const spoken = Promise.withResolvers<void>()
      speak = async function* () {
        yield { type: 'text', text: 'So' }
        spoken.resolve()
        await forever()
      }
      const hanging = await client.send({ message: 'Go', agent_id: 'pipeline' })
      await spoken.promise
      const stopped = await client.post(`/api/v1/runs/${hanging.headers.get('x-run-id')}/stop`)
      t.match(stopped.body, { run: { status: 'stopped' }, message: { content: 'So' } })
      t.match(await client.post('/api/v1/chat/message', { message: 'Go', agent_id: 'nobody' }), {
        status: 400,
        body: { code: 'invalid_request', detail: /agent_id/ },
      })
    })

    await t.test('what an agent asks a model ends with the run', async (t) => {
      upstream.answer(async function* () {
        yield* begin({ text: 'So far' })
        await forever()
      })
      const calls = upstream.calls.length
      speak = ({ messages }, { ask }) => ask({ messages })
      const stream = await client.send({ message: 'Go', agent_id: 'pipeline' })
      await stream.until(({ data }) => data.text?.includes('far') === true)
      await client.post(`/api/v1/runs/${stream.headers.get('x-run-id')}/stop`)
      await (await upstream.call(calls)).aborted
      t.equal((await storedOf(stream.headers.get('x-session-id'))).content, 'So far')
    })
  })
}

test('an agent is closed at the end, and not while it makes a reply that a shutdown waits for', async (t) => {
  const [begun, draining, gate] = Array.from({ length: 3 }, () => Promise.withResolvers<void>()) as [Gate, Gate, Gate]
  const order: string[] = []
  const agent: Agent = {
    id: 'slow',
    async *reply() {
      yield { type: 'text', text: 'So' }
      begun.resolve()
      await gate.promise
      yield { type: 'text', text: ' it ends' }
      order.push('said')
    },
    close: async () => void order.push('closed'),
  }
  const gateway = await startGateway(t, {
    env: { DRAIN_MS: '10000', LOG_LEVEL: 'info' },
    logStream: { write: (line) => void (line.includes('"draining"') && draining.resolve()) },
    agents: [agent],
  })
  const stream = await createClient(gateway.url).send({ message: 'Go', agent_id: 'slow' })
  await begun.promise
  const closing = gateway.close()
  await draining.promise
  t.same(order, [], 'what was to end before the drain has ended')
  gate.resolve()
  await closing
  t.equal(await stream.ended, 'clean')
  t.equal(shownText(stream.received), 'So it ends')
  t.match(stream.received.at(-1)?.data, { status: 'completed' })
  t.same(order, ['said', 'closed'])
})
