/**
 * How a reply is to be made, in the words of each provider: what it has a word for is said, what it would refuse is left out,
 * and a format that it cannot be held to is asked for in words.
 */
import { test } from 'tap'
import { toAiSdkCall } from '../../src/upstream/ai-sdk-prompt.ts'
import { toAnthropicRequest } from '../../src/upstream/anthropic-request.ts'
import { dialectOf, toChatBody } from '../../src/upstream/chat-request.ts'
import { toGeminiRequest } from '../../src/upstream/gemini-request.ts'
import type { ReplyFormat, UpstreamRequest } from '../../src/upstream/upstream.ts'

const format: ReplyFormat = { type: 'json_schema', name: 'answer', schema: { type: 'object' }, strict: true }
const tools = [{ name: 'look', parameters: { type: 'object' } }]
const settings = { topP: 0.9, frequencyPenalty: 0.1, presencePenalty: -0.1, stop: ['END', ' '], format }
const ask = (model: string, more: Partial<UpstreamRequest> = settings): UpstreamRequest => ({
  model,
  messages: [{ role: 'user', content: 'Hi' }],
  ...more,
})

const chat = (request: UpstreamRequest, host = 'x.test') =>
  toChatBody(request, 'p', dialectOf(new URL(`https://${host}/v1`)))
const claude = (request: UpstreamRequest) => toAnthropicRequest(request, 'p').body
const gemini = (request: UpstreamRequest) => toGeminiRequest(request, 'p')
const words = /nothing but one JSON object.*\n\{"type":"object"\}$/s

test('nothing is said of what nobody asked for', async (t) => {
  const silent = ask('m', {})
  t.strictSame(Object.keys(chat(silent)).toSorted(), ['messages', 'model', 'stream', 'stream_options'])
  t.notOk('system' in claude(silent) || 'stop_sequences' in claude(silent))
  t.notOk('generationConfig' in gemini(silent))
})

test('OpenAI’s dialect has a word for all of it; its own models that reason take hardly any', async (t) => {
  const { type: _type, ...json_schema } = format as ReplyFormat & { type: 'json_schema' }
  const response_format = { type: 'json_schema', json_schema }
  const said = { top_p: 0.9, frequency_penalty: 0.1, presence_penalty: -0.1, stop: ['END', ' '], response_format }
  t.match(chat(ask('any')), said)
  t.match(chat(ask('gpt-4o'), 'api.openai.com'), said)
  const reasons = chat(ask('gpt-5-mini'), 'api.openai.com')
  t.match(reasons, { response_format })
  for (const name of ['top_p', 'frequency_penalty', 'presence_penalty', 'stop']) t.notOk(name in reasons, name)
  t.strictSame(chat(ask('any', { format: { type: 'json_object' } })).response_format, { type: 'json_object' })
  t.equal(chat(ask('any', { tools, parallelToolCalls: false })).parallel_tool_calls, false)
  t.notOk('parallel_tool_calls' in chat(ask('any', { parallelToolCalls: false })), 'without tools it is refused')
})

test('Anthropic is told of the format in words, and takes one of temperature and top_p', async (t) => {
  const model = 'claude-sonnet-4-0'
  t.match(claude(ask(model)), { top_p: 0.9, stop_sequences: ['END'], system: words })
  const both = claude(ask(model, { topP: 0.9, temperature: 2 }))
  t.equal(both.temperature, 1)
  t.notOk('top_p' in both)
  t.notOk('stop_sequences' in claude(ask(model, { stop: ['\n'] })))
  t.strictSame(claude(ask(model, { tools, parallelToolCalls: false })).tool_choice, {
    type: 'auto',
    disable_parallel_tool_use: true,
  })
  t.strictSame(claude(ask(model, { tools, parallelToolCalls: false, toolChoice: 'none' })).tool_choice, {
    type: 'none',
  })
})

test('Gemini is held to a format where it can be', async (t) => {
  const held = { responseMimeType: 'application/json', responseJsonSchema: { type: 'object' } }
  const sampled = { topP: 0.9, frequencyPenalty: 0.1, presencePenalty: -0.1, stopSequences: ['END', ' '] }
  t.match(gemini(ask('gemini-2.5-flash')).generationConfig, { ...sampled, ...held })
  t.match(gemini(ask('gemini-3-pro', { ...settings, tools })).generationConfig, held)
  const beside = gemini(ask('gemini-2.5-flash', { format, tools }))
  t.notOk('generationConfig' in beside)
  t.match(beside.systemInstruction, { parts: [{ text: words }] }, 'beside tools the older ones refuse it')
  const many = gemini(ask('gemini-3-pro', { stop: ['1', '2', '3', '4', '5', '6'] }))
  t.match(many.generationConfig, { stopSequences: { length: 5 } })
})

test('the AI SDK has its own words', async (t) => {
  const call = toAiSdkCall({ specificationVersion: 'v3', provider: 'p' }, 'p', ask('m'), new AbortController().signal)
  t.match(call, {
    topP: 0.9,
    frequencyPenalty: 0.1,
    presencePenalty: -0.1,
    stopSequences: ['END', ' '],
    responseFormat: { type: 'json', name: 'answer', schema: { type: 'object' } },
  })
})
