/** The scripted provider is what other tests lean on: it keeps its own promises too. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { resolve } from 'node:path'
import t from 'tap'
import { Client } from 'undici'
import {
  byMessage,
  createGate,
  createRandom,
  errorShapes,
  forever,
  raw,
  reset,
  seededCuts,
  startFakeUpstream,
} from '../../scripts/fake-upstream.ts'
import { anthropicAt, geminiAt } from './native.ts'
import { collect, openaiAt } from './streams.ts'

const ask = (content: string) => ({ model: 'any', messages: [{ role: 'user' as const, content }] })

t.test('a gate holds the reply until the test opens it', async (t) => {
  const gate = createGate()
  const fake = await startFakeUpstream({
    script: async function* () {
      yield 'before'
      await gate.opened
      yield 'after'
    },
  })
  const client = new Client(new URL(fake.url).origin)
  const { body } = await client.request({ method: 'POST', path: '/v1/chat/completions', body: '{}' })
  const pieces = body[Symbol.asyncIterator]()
  t.equal(String((await pieces.next()).value), 'before')
  let came = false
  const next = pieces.next().then(({ value }) => {
    came = true
    return String(value)
  })
  for (let turn = 0; turn < 50; turn++) await new Promise((resolve) => setImmediate(resolve))
  t.notOk(came)
  gate.open()
  t.equal(await next, 'after')
  await client.destroy()
  await fake.close()
})

t.test('a call says whether its client left', async (t) => {
  const fake = await startFakeUpstream()
  const client = new Client(new URL(fake.url).origin)
  const post = { method: 'POST', path: '/v1/chat/completions', body: '{"messages":[]}' } as const
  await (await client.request(post)).body.dump()
  t.strictSame(await fake.calls[0]?.closed, { aborted: false })

  fake.answer(async function* () {
    yield 'data: 1\n\n'
    await forever()
  })
  const { body } = await client.request(post)
  body.on('error', () => undefined)
  body.destroy()
  const call = await fake.call(1)
  await call.aborted
  t.strictSame(await call.closed, { aborted: true })

  fake.answer(() => ['data: 1\n\n', reset()])
  const cut = await client.request(post)
  await t.rejects(cut.body.text(), { code: 'ECONNRESET' }, 'a reset is no clean end')
  t.strictSame(await (await fake.call(2)).closed, { aborted: false })
  await client.destroy()
  await fake.close()
})

t.test('raw bytes arrive as they were given', async (t) => {
  const bytes = Buffer.from('data: {"né":"🚀"}\r\n\r\n')
  const fake = await startFakeUpstream({ script: () => raw(bytes, seededCuts(bytes.length, 8, 3)) })
  const client = new Client(new URL(fake.url).origin)
  const { body } = await client.request({ method: 'POST', path: '/v1/chat/completions', body: 'no JSON' })
  t.strictSame(Buffer.from(await body.arrayBuffer()), bytes)
  t.equal(fake.calls[0]?.text, 'no JSON')
  t.equal(fake.calls[0]?.body, undefined)
  const models = await client.request({ method: 'GET', path: '/v1/models' })
  t.match(await models.body.json(), { data: [{ id: 'fake' }] })
  t.equal(fake.calls.length, 1, 'a listing is no call')
  await client.close()
  await fake.close()
})

t.test('what is random is the same for the same seed', (t) => {
  t.strictSame(seededCuts(1000, 20, 5), seededCuts(1000, 20, 5))
  t.notSame(seededCuts(1000, 20, 5), seededCuts(1000, 20, 6))
  t.equal(seededCuts(5, 100, 1).length, 4, 'no more cuts than places')
  const random = createRandom(1)
  t.ok(Array.from({ length: 100 }, random).every((number) => number >= 0 && number < 1))
  t.end()
})

t.test('the message says what the program does, in each dialect', async (t) => {
  const fake = await startFakeUpstream({ script: byMessage({ tokens: 4 }) })
  const limits = { idleMs: 200 }
  const upstreams = {
    openai: openaiAt(fake.url, limits),
    anthropic: anthropicAt(fake.url, limits),
    gemini: geminiAt(fake.geminiUrl, limits),
  }
  for (const [dialect, upstream] of Object.entries(upstreams)) {
    const outcome = async (message: string) => {
      const { text, error } = await collect(upstream, undefined, ask(message))
      return [text.split(' ').filter(Boolean).length, (error as { code?: string } | undefined)?.code]
    }
    t.strictSame(await outcome('anything'), [4, undefined], dialect)
    t.equal(fake.calls.at(-1)?.dialect, dialect)
    t.equal(fake.calls.at(-1)?.message, 'anything')
    t.strictSame(await outcome('/say 7'), [7, undefined])
    t.strictSame(await outcome('/say 3 1'), [3, undefined])
    t.strictSame(await outcome('/slow 1'), [4, undefined])
    t.strictSame(await outcome('/refuse 401'), [0, 'upstream_rejected'])
    t.strictSame(await outcome('/refuse 200'), [0, 'upstream_unavailable'])
    t.strictSame(await outcome('/stall 2'), [2, 'upstream_timeout'])
    t.strictSame(await outcome('/fin 2'), [2, 'upstream_unavailable'])
    t.strictSame(await outcome('/reset 2'), [2, 'upstream_unavailable'])
    for (const shape of Object.keys(errorShapes)) {
      t.strictSame(await outcome(`/error ${shape} 2`), [2, 'upstream_unavailable'], shape)
    }

    const question = ask('/tool look {"word": "né"}')
    const asked = await collect(upstream, undefined, question)
    t.equal(asked.finish, 'tool_calls', dialect)
    t.match(asked.calls, [{ name: 'look', arguments: '{"word":"né"}' }], dialect)
    const callId = asked.calls[0]?.id ?? ''
    t.not(callId, '')
    const parts = [{ kind: 'tool_call' as const, text: '{}', call_id: callId, name: 'look', input: {} }]
    const messages = [
      ...question.messages,
      { role: 'assistant' as const, content: '', parts },
      { role: 'tool' as const, callId, name: 'look', content: 'forty-two' },
    ]
    t.match(
      (await collect(upstream, undefined, { ...question, messages })).text,
      /^The tool answered: .*forty-two/,
      dialect,
    )
    await upstream.close()
  }
  await fake.close()
})

t.test('as a program it says where it listens, and ends on SIGTERM', async (t) => {
  const script = resolve(import.meta.dirname, '../../scripts/fake-upstream.ts')
  const run = (...options: string[]) =>
    spawn(process.execPath, [script, ...options], { stdio: ['ignore', 'pipe', 'inherit'] })

  const help = run('--help')
  t.match(String((await once(help.stdout, 'data'))[0]), /Usage: node scripts\/fake-upstream\.ts/)
  t.strictSame(await once(help, 'close'), [0, null])

  const program = run('--port', '0', '--tokens', '3', '--pace', '0')
  const line = String((await once(program.stdout, 'data'))[0])
  const url = /listening on (\S+)/.exec(line)?.[1] ?? ''
  t.equal((await collect(openaiAt(url), undefined, ask('Hello'))).text, 'word0 word1 word2')
  program.kill('SIGTERM')
  t.strictSame(await once(program, 'close'), [0, null])
})
