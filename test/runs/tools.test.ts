/** Tools of the server: what goes wrong in one is an answer of ours, and never the end of a reply. */
import { test } from 'tap'
import { Type } from 'typebox'
import { createTools, defineTool, type ServerTool } from '../../src/runs/tools.ts'

const context = { runId: 'r', sessionId: 's', callId: 'c' }
const never = () => new Promise(() => undefined)

const add = defineTool({
  name: 'add',
  description: 'Adds two numbers.',
  parameters: Type.Object({ a: Type.Number(), b: Type.Number() }, { additionalProperties: false }),
  execute: ({ a, b }) => a + b,
})

function toolOf(execute: ServerTool['execute'], timeoutMs?: number): ServerTool {
  return {
    name: 'it',
    description: '',
    parameters: Type.Object({}),
    execute,
    ...(timeoutMs === undefined ? {} : { timeoutMs }),
  }
}

async function answerOf(tool: ServerTool, input: unknown = {}, signal = new AbortController().signal) {
  const thrown: unknown[] = []
  const tools = createTools([tool], (_name, _context, error) => void thrown.push(error))
  return { answer: await tools.execute({ name: tool.name, input, context }, signal), thrown }
}

test('a tool answers what it returns, as JSON', async (t) => {
  t.same((await answerOf(add, { a: 1, b: 2 })).answer, { output: 3 })
  t.same((await answerOf(toolOf(async () => ({ at: new Date(0), gone: undefined })))).answer, {
    output: { at: '1970-01-01T00:00:00.000Z' },
  })
  t.same((await answerOf(toolOf(() => undefined))).answer, { output: null })
  t.same((await answerOf(toolOf(() => ({ 'a\0': '\ud800' })))).answer, { output: { a: '\ufffd' } }, 'fit to be stored')
})

test('what does not fit the schema is told to the model, and the tool is not run', async (t) => {
  let runs = 0
  const counted = { ...add, execute: () => (runs += 1) }
  for (const input of [undefined, null, 'x', {}, { a: 1 }, { a: 1, b: '2' }, { a: 1, b: 2, c: 3 }]) {
    const { answer } = await answerOf(counted, input)
    t.match(answer, { error: { code: 'invalid_input', message: /^The input/ } }, JSON.stringify(input))
  }
  t.equal(runs, 0)
  const dated = { ...toolOf(() => 'taken'), parameters: Type.Object({ day: Type.String({ format: 'date' }) }) }
  t.match((await answerOf(dated, { day: 'tomorrow' })).answer, { error: { code: 'invalid_input' } }, 'formats count')
  t.same((await answerOf(dated, { day: '2026-11-22' })).answer, { output: 'taken' })
})

test('what a tool throws is for the log, and none of it for anybody else', async (t) => {
  const secret = new Error('password=MARKER')
  for (const execute of [
    () => {
      throw secret
    },
    async () => {
      throw secret
    },
  ]) {
    const { answer, thrown } = await answerOf(toolOf(execute))
    t.same(answer, { error: { code: 'failed', message: 'The tool failed.' } })
    t.same(thrown, [secret])
  }
  const cycle: Record<string, unknown> = {}
  cycle.self = cycle
  t.match((await answerOf(toolOf(() => cycle))).answer, { error: { code: 'failed' } })
  t.match((await answerOf(toolOf(() => 1n))).answer, { error: { code: 'failed' } })
})

test('a tool that takes too long, or answers too much, is a tool error; one that is stopped, too', async (t) => {
  let told: AbortSignal | undefined
  const slow = toolOf((_input, _context, signal) => {
    told = signal
    return never()
  }, 20)
  t.match((await answerOf(slow)).answer, { error: { code: 'timeout', message: /20 ms/ } })
  t.ok(told?.aborted, 'its signal says so')
  t.match((await answerOf(toolOf(() => 'x'.repeat(300_000)))).answer, { error: { code: 'too_large' } })
  const stop = new AbortController()
  const stopped = answerOf(toolOf(never), {}, stop.signal)
  stop.abort('stop')
  t.match((await stopped).answer, { error: { code: 'stopped' } })
  t.match(
    (
      await answerOf(
        toolOf(() => 1),
        {},
        AbortSignal.abort(),
      )
    ).answer,
    { error: { code: 'stopped' } },
  )
})

test('a tool that cannot be registered stops the start', async (t) => {
  const create = (...tools: ServerTool[]) => createTools(tools, () => undefined)
  t.throws(() => create(add, add), { message: /two tools named add/ })
  for (const name of ['', 'a b', 'x'.repeat(65), 'ä'])
    t.throws(() => create({ ...add, name }), { message: /name must/ })
  for (const timeoutMs of [0, -1, Number.NaN, 600_001]) t.throws(() => create({ ...add, timeoutMs }))
  t.throws(() => create({ ...add, parameters: Type.String() }), { message: /schema of an object/ })
  const broken = Type.Object({ a: Type.Unsafe({ minLength: 'long' }) })
  t.throws(() => create({ ...add, parameters: broken }), { message: /schema is invalid/ })
  const tools = create(add)
  t.match(tools.definitions(), [{ name: 'add' }])
  t.match(tools.definitions(['add', 'other']), [{ name: 'add', parameters: { type: 'object', required: ['a', 'b'] } }])
  t.match(await tools.execute({ name: 'other', input: {}, context }, AbortSignal.abort()), {
    error: { code: 'unknown_tool' },
  })
})
