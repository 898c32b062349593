/**
 * `npm run bench:upstream [-- --rounds=7 --replies=40 --only=openai]`: what reading one chunk of a reply costs in each
 * adapter, beside the least that anybody would write: fetch, eventsource-parser and JSON.parse over the same bytes. The
 * provider is another process, on another processor where `taskset` is there; only the processor time of this one counts.
 *
 * Two shapes. Burst: replies of 2000 chunks as fast as they come, one after the other. Paced: many replies at once, where
 * each chunk is a read of its own; it is mostly the kernel's and Node's work, and there to be looked at. Each round asks
 * every adapter and, right after it, its contender; the table has medians over the rounds. Every text is compared with what
 * was sent: a reader that loses words is fast.
 *
 * It prints a table in Markdown and judges nothing; the exit code is 1 only when something failed. For a profile:
 * `node --cpu-prof scripts/bench-upstream.ts --only=openai`.
 */
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { cpus } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { createParser } from 'eventsource-parser'
import { fromAiSdk } from '../src/upstream/ai-sdk.ts'
import { createAnthropic } from '../src/upstream/anthropic.ts'
import { createGemini } from '../src/upstream/gemini.ts'
import { createOpenai } from '../src/upstream/openai.ts'
import type { Upstream } from '../src/upstream/upstream.ts'
import {
  blockStart,
  blockStop,
  geminiChunk,
  messageDelta,
  messageStart,
  messageStop,
  sse,
  textDelta,
} from './fake-dialects.ts'

/** Of one reply, as a long answer has them. */
const chunkCount = 2000
const paced = { replies: 50, chunks: 100, paceMs: 20 } as const
/** The processors of the two sides. */
const readerCpu = 0
const senderCpu = 1
const startMs = 20_000
const root = join(import.meta.dirname, '..')
const words = ['The ', 'reply ', 'goes ', 'on, ', 'naïve ', 'and ', 'whole', '. '] as const

const say = (line: string): void => {
  process.stdout.write(`${line}\n`)
}

interface Row {
  readonly name: string
  /** Where the provider says this dialect, whatever stands before it. */
  readonly path: string
  /** The stream of a reply: one piece for each chunk, and what stands around them. */
  readonly bytes: (texts: readonly string[]) => { before: string; chunks: readonly string[]; after: string }
  readonly create: (baseUrl: string) => Upstream | Promise<Upstream>
  /** What the contender reads of a payload. */
  readonly textOf: (payload: never) => string | undefined
  /** Not one of our parsers: only to compare with. */
  readonly informative?: true
}

const limits = { firstByteMs: 60_000, idleMs: 60_000, totalMs: 600_000 }

const openaiChunk = (delta: object, finishReason: string | null = null): string =>
  sse({
    id: 'chatcmpl-C9b1example0000000000000000',
    object: 'chat.completion.chunk',
    created: 1_760_000_000,
    model: 'own-1-2026-01-01',
    service_tier: 'default',
    system_fingerprint: 'fp_0123456789',
    choices: [{ index: 0, delta, logprobs: null, finish_reason: finishReason }],
    usage: null,
  })

const openai: Row = {
  name: 'openai',
  path: '/chat/completions',
  bytes: (texts) => ({
    before: openaiChunk({ role: 'assistant', content: '' }),
    chunks: texts.map((content) => openaiChunk({ content })),
    after: `${openaiChunk({}, 'stop')}data: [DONE]\n\n`,
  }),
  create: (baseUrl) => createOpenai({ baseUrl, ...limits }),
  textOf: (payload: { choices?: { delta?: { content?: string } }[] }) => payload.choices?.[0]?.delta?.content,
}

interface AnthropicPayload {
  readonly type?: string
  readonly delta?: { readonly type?: string; readonly text?: string }
}

interface GeminiPayload {
  readonly candidates?: readonly { readonly content?: { readonly parts?: readonly { readonly text?: string }[] } }[]
}

const geminiUsage = {
  usageMetadata: { promptTokenCount: 8, candidatesTokenCount: 7, totalTokenCount: 15 },
  modelVersion: 'own-1-001',
  responseId: 'aBcDeFgHiJkLmNoPqRsT',
}

const rows: readonly Row[] = [
  openai,
  {
    name: 'anthropic',
    path: '/messages',
    bytes: (texts) => ({
      before: messageStart() + blockStart(0),
      chunks: texts.map((text) => textDelta(text)),
      after: blockStop(0) + messageDelta('end_turn') + messageStop,
    }),
    create: (baseUrl) => createAnthropic({ baseUrl, ...limits }),
    textOf: ({ delta }: AnthropicPayload) => delta?.text,
  },
  {
    name: 'gemini',
    path: '/models/own-1:streamGenerateContent',
    bytes: (texts) => ({
      before: '',
      chunks: texts.map((text) => geminiChunk([{ text }], {}, geminiUsage)),
      after: geminiChunk([{ text: '' }], { finishReason: 'STOP' }, geminiUsage),
    }),
    create: (baseUrl) => createGemini({ baseUrl, ...limits }),
    textOf: ({ candidates }: GeminiPayload) => candidates?.[0]?.content?.parts?.[0]?.text,
  },
  {
    ...openai,
    name: 'ai-sdk (ai 7, openai-compatible)',
    create: async (baseURL) => {
      const { createOpenAICompatible } = await import('ai7-openai-compatible')
      return fromAiSdk(createOpenAICompatible({ name: 'own', baseURL })('own-1'), limits)
    },
    informative: true,
  },
]

/** Texts of a reply of so many chunks. */
const textsOf = (count: number): string[] => Array.from({ length: count }, (_, index) => words[index % words.length]!)

type Shape = 'burst' | 'paced'

interface Reader {
  readonly name: string
  /** Reads one reply and gives its text. */
  readonly read: () => Promise<string>
}

/** The provider: `POST /<shape>/<row><path>` answers that row's reply. It ends when its standard input does. */
async function serve(): Promise<void> {
  const replies = new Map<
    string,
    { readonly whole: Buffer; readonly pieces: readonly Buffer[]; readonly shape: Shape }
  >()
  for (const [index, row] of rows.entries()) {
    for (const shape of ['burst', 'paced'] as const) {
      const { before, chunks, after } = row.bytes(textsOf(shape === 'burst' ? chunkCount : paced.chunks))
      const pieces = [before, ...chunks, after].map((piece) => Buffer.from(piece))
      replies.set(`/${shape}/${index}${row.path}`, { whole: Buffer.concat(pieces), pieces, shape })
    }
  }
  async function pace(response: ServerResponse, pieces: readonly Buffer[]): Promise<void> {
    for (const piece of pieces) {
      if (response.destroyed) return
      response.write(piece)
      await sleep(paced.paceMs)
    }
    response.end()
  }
  const server = createServer((request, response) => {
    request.resume()
    const reply = replies.get(new URL(request.url ?? '', 'http://x').pathname)
    if (reply === undefined) {
      response.writeHead(404).end()
      return
    }
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    if (reply.shape === 'burst') response.end(reply.whole)
    else void pace(response, reply.pieces)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  say(String((server.address() as AddressInfo).port))
  process.stdin.resume().on('end', () => process.exit())
}

async function startProvider(): Promise<{ url: string; stop: () => Promise<void> }> {
  const script = [import.meta.filename, '--serve']
  const [command, args] = canPin ? ['taskset', ['-c', String(senderCpu), process.execPath]] : [process.execPath, []]
  const child = spawn(command, [...args, ...script], { stdio: ['pipe', 'pipe', 'inherit'] })
  const ended = once(child, 'exit')
  const lines = createInterface({ input: child.stdout })
  const [port] = await once(lines, 'line', { signal: AbortSignal.timeout(startMs) })
  return {
    url: `http://127.0.0.1:${port}`,
    async stop() {
      child.stdin.end()
      await ended
    },
  }
}

const canPin = cpus().length > 1 && spawnSync('taskset', ['-V']).status === 0

async function readUpstream(upstream: Upstream): Promise<string> {
  let text = ''
  const request = { model: 'own-1', messages: [{ role: 'user', content: 'Go on.' }] } as const
  for await (const event of upstream.stream(request, new AbortController().signal)) {
    if (event.type === 'text') text += event.text
  }
  return text
}

/** What a reader of this dialect comes to when nothing can go wrong. */
async function readPlainly(url: string, textOf: (payload: unknown) => string | undefined): Promise<string> {
  let text = ''
  const parser = createParser({
    onEvent: ({ data }) => {
      if (data !== '[DONE]') text += textOf(JSON.parse(data)) ?? ''
    },
  })
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ model: 'own-1', messages: [{ role: 'user', content: 'Go on.' }], stream: true }),
  })
  const decoder = new TextDecoder()
  for await (const bytes of response.body!) parser.feed(decoder.decode(bytes, { stream: true }))
  return text
}

/** @returns microseconds of this process for each chunk @throws when a text is not whole */
async function measure({ name, read }: Reader, shape: Shape, replies: number): Promise<number> {
  const texts = textsOf(shape === 'burst' ? chunkCount : paced.chunks)
  const expected = texts.join('')
  const before = process.cpuUsage()
  const seen: string[] = []
  if (shape === 'burst') for (let n = 0; n < replies; n++) seen.push(await read())
  else seen.push(...(await Promise.all(Array.from({ length: paced.replies }, read))))
  const { user, system } = process.cpuUsage(before)
  if (seen.some((text) => text !== expected)) throw new Error(`${name} did not read the whole text (${shape})`)
  return (user + system) / (seen.length * texts.length)
}

function readOptions(args: readonly string[]): { rounds: number; replies: number; only: string } {
  const options = { rounds: 7, replies: 40, only: '' }
  for (const arg of args) {
    const [, name, value = ''] = /^--(rounds|replies|only)=(.+)$/.exec(arg) ?? []
    if (name === 'only') options.only = value
    else if ((name === 'rounds' || name === 'replies') && /^[1-9]\d{0,3}$/.test(value)) options[name] = Number(value)
    else throw new TypeError(`unknown option ${arg}`)
  }
  return options
}

async function main(): Promise<void> {
  const { rounds, replies, only } = readOptions(process.argv.slice(2))
  const chosen = rows.flatMap((row, index) => (row.name.startsWith(only) ? [{ row, index }] : []))
  // The threads that compile and collect too: they are part of the cost.
  if (canPin) spawnSync('taskset', ['-acp', String(readerCpu), String(process.pid)])
  const { url, stop } = await startProvider()
  const upstreams: Upstream[] = []
  const results: { shape: Shape; row: Row; own: number; plain: number; ratio: number; spread: string }[] = []
  try {
    for (const shape of ['burst', 'paced'] as const) {
      const pairs = await Promise.all(
        chosen.map(async ({ row, index }) => {
          const base = `${url}/${shape}/${index}`
          const upstream = await row.create(base)
          upstreams.push(upstream)
          const textOf = row.textOf as (payload: unknown) => string | undefined
          const own: Reader = { name: row.name, read: () => readUpstream(upstream) }
          const plain: Reader = { name: 'the contender', read: () => readPlainly(base + row.path, textOf) }
          return { row, own, plain, times: [] as { own: number; plain: number }[] }
        }),
      )
      // Round 0 is for the compilers and the connections.
      for (let round = 0; round <= rounds; round++) {
        for (const { own, plain, times } of pairs) {
          const time = { own: await measure(own, shape, replies), plain: await measure(plain, shape, replies) }
          if (round > 0) times.push(time)
        }
      }
      for (const { row, times } of pairs) {
        const ratios = times.map(({ own, plain }) => own / plain)
        results.push({
          shape,
          row,
          own: median(times.map(({ own }) => own)),
          plain: median(times.map(({ plain }) => plain)),
          ratio: median(ratios),
          spread: `${Math.min(...ratios).toFixed(2)} to ${Math.max(...ratios).toFixed(2)}`,
        })
      }
    }
  } finally {
    await Promise.all(upstreams.map((upstream) => upstream.close()))
    await stop()
  }
  print(results, rounds, replies)
}

function print(
  results: readonly { shape: Shape; row: Row; own: number; plain: number; ratio: number; spread: string }[],
  rounds: number,
  replies: number,
): void {
  const { dependencies, devDependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as {
    dependencies: Record<string, string>
    devDependencies: Record<string, string>
  }
  const [cpu] = cpus()
  const pinned = canPin
    ? `reader on processor ${readerCpu}, provider on ${senderCpu}`
    : 'not pinned: there is no taskset'
  say(`Microseconds of processor time for each chunk, median of ${rounds} rounds; ratio: adapter to contender, and its range.

| shape | adapter | µs | fetch + eventsource-parser + JSON.parse, µs | ratio | range |
|---|---|---|---|---|---|`)
  for (const { shape, row, own, plain, ratio, spread } of results) {
    const name = row.informative ? `${row.name}, for information` : row.name
    say(`| ${shape} | ${name} | ${own.toFixed(2)} | ${plain.toFixed(2)} | ${ratio.toFixed(2)} | ${spread} |`)
  }
  say(`
- burst: ${replies} replies of ${chunkCount} chunks a round, one after the other; paced: ${paced.replies} replies at once, a chunk each ${paced.paceMs} ms
- Node ${process.versions.node}, undici ${dependencies.undici}, eventsource-parser ${dependencies['eventsource-parser']}; fetch is Node's own (undici ${process.versions.undici}), ${devDependencies['ai7-openai-compatible']?.slice('npm:'.length)}
- ${cpus().length} × ${cpu?.model.trim()}, ${process.platform} ${process.arch}; ${pinned}
- ${new Date().toISOString().slice(0, 10)}`)
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN
}

if (process.argv[2] === '--serve') await serve()
else await main()
