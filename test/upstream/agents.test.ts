/**
 * Agents by themselves: the one of the examples, and one in another process, whose part is played by a scripted server. What
 * becomes of their events is tested where runs are.
 */
import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { inspect } from 'node:util'
import t from 'tap'
import example from '../../examples/agent/verbatim.config.ts'
import {
  createGate,
  forever,
  head,
  refuse,
  reset,
  type Script,
  type Step,
  type Steps,
  sse,
  startFakeUpstream,
} from '../../scripts/fake-upstream.ts'
import { Problem } from '../../src/errors.ts'
import type { AgentContext, AgentEvent, AgentQuestion, AgentRequest } from '../../src/upstream/agent.ts'
import { createRemoteAgent, type RemoteAgentOptions } from '../../src/upstream/remote-agent.ts'

const request: AgentRequest = {
  runId: 'run-1',
  sessionId: 'session-1',
  messageId: 'message-1',
  messages: [{ role: 'user', content: 'Is a returned voucher refunded?' }],
  metadata: { shop: 'north' },
}
const never = new AbortController().signal
/** In the headers, the prompt and every error of the agent. */
const secret = 'verysecretword'

t.test('the example finds pages in two rounds, and says from where it answers', async (t) => {
  const questions: AgentQuestion[] = []
  const context: AgentContext = {
    async *ask(question) {
      questions.push(question)
      yield { type: 'response', model: 'm' }
      yield { type: 'text', text: 'As a ' }
      yield { type: 'text', text: 'voucher.' }
      yield { type: 'usage', usage: { input_tokens: 1, output_tokens: 1, total_tokens: 2 } }
      yield { type: 'finish', reason: 'stop' }
    },
    async askText(question) {
      questions.push(question)
      return 'Something about delivery abroad'
    },
  }
  const [agent] = example.agents
  t.equal(agent?.id, 'handbook')
  const events: AgentEvent[] = []
  for await (const event of agent!.reply(request, context, never)) events.push(event)
  t.strictSame(events.slice(0, -1), [
    { type: 'progress', phase: 'searching', round: 1 },
    { type: 'source', url: 'https://shop.example/help/refunds', title: 'Refunds' },
    { type: 'source', url: 'https://shop.example/help/returns', title: 'Returns' },
    { type: 'progress', phase: 'searching', round: 2 },
    { type: 'source', url: 'https://shop.example/help/shipping', title: 'Shipping' },
    { type: 'source', url: 'https://shop.example/help/vouchers', title: 'Vouchers' },
    { type: 'progress', phase: 'answering' },
    { type: 'text', text: 'As a ' },
    { type: 'text', text: 'voucher.' },
    { type: 'finish', reason: 'stop' },
  ])
  t.match(events.at(-1), { type: 'artifact', name: 'pages', contentType: 'text/markdown', body: /^(- \[.*\n){4}$/ })
  t.match(questions, [{ maxOutputTokens: 50 }, { messages: [{ role: 'system' }, request.messages[0]] }])
})

t.test('an agent in another process', async (t) => {
  const server = await startFakeUpstream()
  t.teardown(() => server.close())
  const url = server.url.replace('/v1', `/agent?token=${secret}`)

  function agentAt(options: Partial<RemoteAgentOptions> = {}) {
    const agent = createRemoteAgent({ id: 'planner', url, headers: { Authorization: `Bearer ${secret}` }, ...options })
    t.teardown(() => agent.close())
    return agent
  }

  async function read(script: Script, options: Partial<RemoteAgentOptions> = {}, asked = request) {
    server.answer(script)
    const events: AgentEvent[] = []
    let error: unknown
    try {
      for await (const event of agentAt(options).reply(asked, noContext, never)) events.push(event)
    } catch (thrown) {
      error = thrown
    }
    return { events, error }
  }

  t.test('is asked as the documents say, and everything that they show is read', async (t) => {
    const documents = readFileSync(resolve(import.meta.dirname, '../../docs/agents.md'), 'utf8')
    const [stream] = /(?<=^```\n)event: [^`]*/m.exec(documents) ?? []
    const [body] = /(?<=^```json\n)[^`]*/m.exec(documents) ?? []
    const shown = JSON.parse(body ?? '') as Shown
    const { run_id: runId, session_id: sessionId, message_id: messageId, messages, metadata } = shown
    const asked = { runId, sessionId, messageId, messages, metadata }
    const { events, error } = await read(() => [stream ?? ''], {}, asked)
    const call = server.calls.at(-1)
    t.strictSame(call?.body, shown)
    t.equal(call?.path, `/agent?token=${secret}`)
    t.match(call?.headers, { authorization: `Bearer ${secret}`, accept: 'text/event-stream' })
    t.equal(error, undefined)
    t.strictSame(events, [
      { type: 'progress', phase: 'searching', round: 1 },
      { type: 'reasoning', text: 'Two pages may say it.' },
      { type: 'tool_call', key: '0', callId: 'c1', name: 'search', arguments: '' },
      { type: 'tool_call', key: '0', arguments: '{"words":["voucher"]}' },
      { type: 'tool_result', key: '0', output: { hits: 2 } },
      { type: 'tool_call', key: '1', callId: 'c2', name: 'search', arguments: '' },
      { type: 'tool_call', key: '1', arguments: '{}' },
      { type: 'tool_result', key: '1', error: { code: 'out_of_reach', message: 'The tool failed.' } },
      { type: 'source', url: 'https://shop.example/help/refunds', title: 'Refunds' },
      { type: 'text', text: 'Vouchers are refunded ' },
      { type: 'text', text: 'as vouchers.' },
      { type: 'file', mediaType: 'image/png', url: 'https://shop.example/voucher.png' },
      { type: 'artifact', name: 'pages', contentType: 'text/markdown', body: '- Refunds\n' },
      { type: 'title', title: 'Refunding a voucher' },
      { type: 'response', model: 'house-1' },
      { type: 'usage', usage: { input_tokens: 120, output_tokens: 30, total_tokens: 150 } },
      { type: 'finish', reason: 'stop' },
    ])
  })

  t.test('is told what was said before, without seals', async (t) => {
    await read(
      () => [sse({}, 'done')],
      {},
      {
        ...request,
        messages: [
          {
            role: 'assistant',
            content: 'x',
            provider: 'p',
            parts: [
              { kind: 'reasoning', text: '', signature: secret, redacted: true },
              { kind: 'text', text: 'x', signature: secret },
            ],
          },
          { role: 'tool', callId: 'c', name: 'n', content: 'y', isError: true },
        ],
      },
    )
    t.strictSame(server.calls.at(-1)?.body?.messages, [
      { role: 'assistant', content: 'x', parts: [{ kind: 'text', text: 'x' }] },
      { role: 'tool', call_id: 'c', name: 'n', content: 'y', is_error: true },
    ])
  })

  t.test('says text that is fit for the log, and events that are not known are no matter', async (t) => {
    const { events, error } = await read(() => [
      'event: text\ndata: {"text":"a\\u0000\\ud83d"}\n\n: still here\n\n',
      'event: text\ndata: {"text":"\\udc69"}\n\ndata: no name\n\nevent: new\ndata: {"a\n\n',
      'event: tool_call\ndata: {"call_id":"c","name":"n","input":{"a\\u0000":"\\ud800"}}\n\n',
      'event: tool_result\ndata: {"call_id":"c","output":["\\u0000",null,1]}\n\n',
      sse({ url: 'javascript:alert(1)' }, 'source') + sse({ media_type: 'image/png', url: 'http://x/' }, 'file'),
      sse({ name: 'a', content_type: 'application/json', body: { b: 1 } }, 'artifact'),
      sse({ title: ' ' }, 'title') + sse({}, 'progress') + sse({ finish_reason: 'length' }, 'done'),
      sse({ text: 'after the end' }, 'text'),
    ])
    t.equal(error, undefined)
    t.strictSame(events, [
      { type: 'text', text: 'a' },
      { type: 'text', text: '👩' },
      { type: 'tool_call', key: '0', callId: 'c', name: 'n', arguments: '' },
      { type: 'tool_call', key: '0', arguments: '{"a":"\ufffd"}' },
      { type: 'tool_result', key: '0', output: ['', null, 1] },
      { type: 'artifact', name: 'a', contentType: 'application/json', body: '{"b":1}' },
      { type: 'progress' },
      { type: 'finish', reason: 'length' },
    ])
  })

  t.test('fails with one code, after what it said, and with none of its words', async (t) => {
    const words = sse({ text: 'so far' }, 'text')
    const call = sse({ call_id: 'c', name: 'n' }, 'tool_call')
    const result = sse({ call_id: 'c', output: 1 }, 'tool_result')
    const deep = `${'['.repeat(5000)}${']'.repeat(5000)}`
    const first = { firstByteMs: 60 }
    const idle = { idleMs: 60 }
    const cases: readonly [title: string, steps: Steps, code: string, options?: Partial<RemoteAgentOptions>][] = [
      ['401', refuse(401, secret), 'upstream_rejected'],
      ['503', refuse(503, secret, { 'retry-after': '7' }), 'upstream_unavailable'],
      ['a redirect', [head(302, { location: `${server.url}/other` })], 'upstream_rejected'],
      ['no status', stall(), 'upstream_timeout', first],
      ['a status and no more', stall(head(200)), 'upstream_timeout', first],
      ['no words and no end', [head(200)], 'upstream_unavailable'],
      ['a page', [`<html>${secret}</html>\n`], 'upstream_unavailable'],
      ['a clean end without done', [words], 'upstream_unavailable'],
      ['a reset', [words, reset()], 'upstream_unavailable'],
      ['silence', stall(words), 'upstream_timeout', idle],
      ['no end', stall(words), 'upstream_timeout', { totalMs: 60 }],
      ['an error', [words, sse({ message: secret }, 'error')], 'upstream_unavailable'],
      ['an error with a code', [words, sse({ code: 'unauthorized', x: secret }, 'error')], 'upstream_rejected'],
      ['one that may pass', [words, sse({ code: 'invalid', retryable: true }, 'error')], 'upstream_unavailable'],
      ['one that may not', [words, sse({ code: secret, retryable: false }, 'error')], 'upstream_rejected'],
      ['an error that is no JSON', [words, `event: error\ndata: ${secret}\n\n`], 'upstream_unavailable'],
      ['no JSON', [words, `event: text\ndata: ${secret}\n\n`], 'upstream_unavailable'],
      ['JSON that is no object', [words, sse([secret], 'text')], 'upstream_unavailable'],
      ['text that is none', [words, sse({ text: 1 }, 'text')], 'upstream_unavailable'],
      ['a call without a name', [words, sse({ call_id: 'c' }, 'tool_call')], 'upstream_unavailable'],
      ['a call twice', [words, call, call], 'upstream_unavailable'],
      ['arguments too deep', [words, call.replace('}', `,"input":${deep}}`)], 'upstream_unavailable'],
      ['a result of no call', [words, result], 'upstream_unavailable'],
      ['a result twice', [words, call, result, result], 'upstream_unavailable'],
      ['a result that is none', [words, call, sse({ call_id: 'c' }, 'tool_result')], 'upstream_unavailable'],
      ['a round that is no count', [words, sse({ round: -1 }, 'progress')], 'upstream_unavailable'],
      ['a phase that is no text', [words, sse({ phase: {} }, 'progress')], 'upstream_unavailable'],
      ['a nameless artifact', [words, sse({ body: 'x' }, 'artifact')], 'upstream_unavailable'],
      ['a title that is none', [words, sse({}, 'title')], 'upstream_unavailable'],
      ['a usage that is none', [words, sse({ input_tokens: 1.5, output_tokens: 1 }, 'usage')], 'upstream_unavailable'],
      ['a reason that is none', [words, sse({ finish_reason: 1 }, 'done')], 'upstream_unavailable'],
      ['an endless reply', [words, ...endless('text', { text: 'x'.repeat(500_000) }, 5)], 'too_large'],
      ['endless steps', [words, ...endless('progress', { phase: 'x'.repeat(500_000) }, 5)], 'too_large'],
      ['an endless event', [words, `event: text\ndata: ${'x'.repeat(5_000_000)}\n\n`], 'too_large'],
      ['a key that cannot be sent', [], 'upstream_rejected', { headers: { authorization: `${secret}\n` } }],
    ]
    for (const [title, steps, code, options] of cases) {
      const { events, error } = await read(() => steps, options)
      t.ok(error instanceof Problem, title)
      t.equal((error as Problem).code, code, `${title}: the code`)
      t.notMatch(inspect(error, { depth: 9, showHidden: true }), secret, `${title}: no words`)
      t.equal((error as Problem).retryAfterSeconds, title === '503' ? 7 : undefined)
      const said = Array.isArray(steps) && steps[0] === words
      if (said) t.strictSame(events[0], { type: 'text', text: 'so far' }, `${title}: what was said`)
    }
  })

  t.test('is cut off when it is stopped, left or closed', async (t) => {
    const agent = agentAt()
    const script = () => stall(sse({ text: 'one' }, 'text'))
    server.answer(script)
    const stopper = new AbortController()
    const reason = new Error('stopped by the test')
    const events = agent.reply(request, noContext, stopper.signal)[Symbol.asyncIterator]()
    t.strictSame((await events.next()).value, { type: 'text', text: 'one' })
    const waiting = t.rejects(events.next(), reason)
    stopper.abort(reason)
    await waiting
    await server.calls.at(-1)?.aborted

    for await (const event of agent.reply(request, noContext, never)) if (event.type === 'text') break
    await server.calls.at(-1)?.aborted

    const gate = createGate()
    server.answer(() => {
      gate.open()
      return script()
    })
    const cutOff = t.rejects(readAll(agent.reply(request, noContext, never)), { code: 'upstream_unavailable' })
    await gate.opened
    await agent.close()
    await cutOff
  })

  t.test('is refused when it is made, without its address', async (t) => {
    t.throws(() => createRemoteAgent({ id: 'a b', url }), TypeError)
    for (const bad of [`no url ${secret}`, `file:///${secret}`]) {
      let error: unknown
      try {
        createRemoteAgent({ id: 'a', url: bad })
      } catch (thrown) {
        error = thrown
      }
      t.type(error, TypeError)
      t.notMatch(inspect(error, { showHidden: true }), secret)
    }
  })
})

/** The body of a request, as the documents show it. */
interface Shown extends Pick<AgentRequest, 'messages' | 'metadata'> {
  readonly run_id: string
  readonly session_id: string
  readonly message_id: string
}

/** A remote agent asks its own models. */
const noContext: AgentContext = {
  ask: () => {
    throw new Error('not to be asked')
  },
  askText: () => Promise.reject(new Error('not to be asked')),
}

async function readAll(events: AsyncIterable<AgentEvent>): Promise<void> {
  for await (const _ of events);
}

async function* stall(...steps: Step[]) {
  yield* steps
  await forever()
}

function endless(event: string, data: object, count: number): string[] {
  return Array.from({ length: count }, () => sse(data, event))
}
