/**
 * What the AI SDK surface writes, read by the SDK itself: its strictest client takes every chunk, every version holds the
 * message that a page would load, and no viewer is encoded for that another one was encoded for.
 */
import { createRequire } from 'node:module'
import { isDeepStrictEqual } from 'node:util'
import * as ai5 from 'ai'
import * as ai5Oldest from 'ai5-oldest'
import * as ai6 from 'ai6'
import t from 'tap'
import type { LogEntry, Part, RunEvent } from '../../src/log/event.ts'
import { createUiEncoder, formatCursor, parseCursor, type UiReply, type UiViewer } from '../../src/surfaces/ai-sdk.ts'
import { type StoredMessage, toUiMessages, uiIdMember } from '../../src/surfaces/ai-sdk-messages.ts'
import { createRandom } from '../support/random.ts'
import { trialsOf } from '../support/trials.ts'
import { joinDeltas, type MadeReply, makeReply, messageId, retell, runId } from './replies.ts'

const { resolve } = createRequire(createRequire(import.meta.url).resolve('ai7-react'))
const ai7: typeof ai6 = await import(resolve('ai'))

/** What is asked of a version of the SDK. */
type Sdk = Pick<typeof ai6, 'DefaultChatTransport' | 'readUIMessageStream'>
const sdks = { 'ai 5.0.0': ai5Oldest, 'ai 5': ai5, 'ai 6': ai6, 'ai 7': ai7 } as unknown as Readonly<
  Record<string, Sdk>
>
const oldest = sdks['ai 5.0.0'] as Sdk
const isOldest = (sdk: Sdk) => sdk === oldest

const reply: UiReply = { runId, messageId, round: 0, ownTools: new Set() }

function encode(viewer: UiViewer, entries: readonly LogEntry[]): string {
  return entries
    .map((entry) => {
      const bytes = viewer.encode(entry)
      if (bytes === 'lost') throw new Error(`lost at ${formatCursor(runId, entry)}`)
      return bytes?.toString() ?? ''
    })
    .join('')
}

const bodyOf = (entries: readonly LogEntry[], of: UiReply = reply) =>
  encode(createUiEncoder().createViewer(of), entries)

type ChunkRead = { readonly type: string; readonly [member: string]: unknown }

/** As the SDK's transport reads a body. @throws what it throws: for a chunk that it does not know, above all */
async function openStream(sdk: Sdk, body: string) {
  const fetch = async () => new Response(body, { headers: { 'content-type': 'text/event-stream' } })
  const transport = new sdk.DefaultChatTransport({ api: 'http://x.test/api/chat', fetch })
  return transport.sendMessages({
    trigger: 'submit-message',
    chatId: 'c',
    messageId: undefined,
    messages: [],
    abortSignal: undefined,
  })
}

async function readChunks(sdk: Sdk, body: string): Promise<ChunkRead[]> {
  const chunks: ChunkRead[] = []
  for await (const chunk of await openStream(sdk, body)) chunks.push(chunk as unknown as ChunkRead)
  return chunks
}

/** The message that a page holds at the end. */
async function readMessage(sdk: Sdk, body: string) {
  let last: { id: string; parts: readonly unknown[] } | undefined
  const errors: string[] = []
  const stream = await openStream(sdk, body)
  const onError = (error: unknown) => errors.push(String(error instanceof Error ? error.message : error))
  for await (const message of sdk.readUIMessageStream({ stream, onError })) last = message
  return { id: last?.id, parts: last?.parts ?? [], errors }
}

/**
 * What can be compared: neither where steps begin, nor what only some versions note.
 * @param loaded of the same message: of arguments that are not JSON a page holds as much as it could make of them
 */
function comparable(parts: readonly unknown[], loaded: readonly unknown[] = parts) {
  const isPart = ({ type }: Record<string, unknown>) => type !== 'step-start'
  const plain = (of: readonly unknown[]) => (JSON.parse(JSON.stringify(of)) as Record<string, unknown>[]).filter(isPart)
  const whole = plain(loaded)
  return plain(parts).map(({ rawInput: _raw, id: _id, input, ...part }, index) => {
    // 5.0.0 forgets whose call failed.
    if (part.state === 'output-error') delete part.providerExecuted
    return whole[index]?.input === undefined ? part : { ...part, input }
  })
}

const stored = (made: MadeReply, more: Partial<StoredMessage> = {}): StoredMessage => ({
  id: messageId,
  role: 'assistant',
  status: 'completed',
  parts: made.parts,
  client_message_id: null,
  metadata: {},
  ...more,
})

t.test('whatever a run says, every version reads it, and holds what a page would load', async (t) => {
  const trials = trialsOf(20)
  for (let seed = 0; seed < trials; seed += 1) {
    const random = createRandom(seed)
    const made = makeReply(random)
    const [loaded] = toUiMessages([stored(made)])
    const held = loaded?.parts ?? []
    const expected = comparable(held)
    const status = made.entries.at(-1)?.event.data as { status: string }
    for (const [name, sdk] of Object.entries(sdks)) {
      // The schema of the oldest is all that there is; the others take a part of the time.
      if (!isOldest(sdk) && seed % 4 > 0) continue
      for (const entries of [made.entries, retell(random, made)]) {
        const body = bodyOf(entries)
        const { id, parts, errors } = await readMessage(sdk, body)
        const isRight = id === messageId && isDeepStrictEqual(comparable(parts, held), expected)
        if (!isRight)
          return t.same(
            { id, parts: comparable(parts, held) },
            { id: messageId, parts: expected },
            `${name}, seed ${seed}`,
          )
        const ends = status.status === 'failed' || status.status === 'interrupted' ? ['It broke off.'] : []
        if (!isDeepStrictEqual(errors, ends)) return t.same(errors, ends, `${name}, seed ${seed}: errors`)
      }
    }
  }
  t.pass(`${trials} replies`)
})

t.test('a chunk with one key more is noticed by the oldest client, and not by the others', async (t) => {
  const body =
    'data: {"type":"start","messageId":"m"}\n\ndata: {"type":"finish","finishReason":"stop"}\n\ndata: [DONE]\n\n'
  await t.rejects(readChunks(oldest, body))
  t.equal((await readChunks(ai6 as unknown as Sdk, body)).length, 2)
})

const started: RunEvent = makeReply(createRandom(1)).entries[0]?.event as RunEvent
const delta = (part: number, offset: number, text: string): RunEvent => ({
  type: 'delta',
  data: { part, offset, text },
})
const part = (index: number, kind: Part['kind'], more = {}): RunEvent => ({
  type: 'part',
  data: { part: index, kind, ...more },
})
const tool = (
  index: number,
  more: { input?: unknown; output?: unknown; error?: Part['error'] },
  id = 'c',
): RunEvent => ({
  type: 'tool',
  data: { part: index, call_id: id, name: 'look', ...more },
})
const done = (status: 'completed' | 'stopped' | 'failed' | 'interrupted', message?: string): RunEvent => ({
  type: 'done',
  data: {
    status,
    message_id: messageId,
    ...(message !== undefined && { error: { code: 'x', message, retryable: true } }),
  },
})
const log = (...events: RunEvent[]): LogEntry[] =>
  [started, ...events].map((event, index) => ({ generation: 1, seq: index + 1, event }))
const call = { call_id: 'c', name: 'look' }

t.test('a turn, byte for byte: the id is the last line of each event, and [DONE] is the last block', async (t) => {
  const id = (seq: number) => `id: ${runId}.1-${seq}`
  t.equal(
    bodyOf(
      log(delta(0, 0, 'Hi\n'), { type: 'progress', data: { round: 2 } }, delta(0, 3, '\u2028'), done('completed')),
    ),
    [
      `data: {"type":"start","messageId":"${messageId}"}`,
      '',
      `data: {"type":"start-step"}\n${id(1)}`,
      '',
      'data: {"type":"text-start","id":"0"}',
      '',
      `data: {"type":"text-delta","id":"0","delta":"Hi\\n"}\n${id(2)}`,
      '',
      `data: {"type":"text-delta","id":"0","delta":"\u2028"}\n${id(4)}`,
      '',
      'data: {"type":"text-end","id":"0"}',
      '',
      'data: {"type":"finish-step"}',
      '',
      'data: {"type":"finish"}',
      '',
      `data: [DONE]\n${id(5)}`,
      '',
      '',
    ].join('\n'),
  )
})

t.test('each end is one that the SDK knows, and says nothing but public words', async (t) => {
  const last = async (end: RunEvent) => (await readChunks(oldest, bodyOf(log(delta(0, 0, 'Hi'), end)))).slice(4)
  t.same(await last(done('completed')), [{ type: 'text-end', id: '0' }, { type: 'finish-step' }, { type: 'finish' }])
  t.same(await last(done('stopped')), [{ type: 'text-end', id: '0' }, { type: 'abort' }])
  t.same(await last(done('failed', 'No.')), [
    { type: 'text-end', id: '0' },
    { type: 'error', errorText: 'No.' },
  ])
  t.match((await last(done('interrupted'))).at(-1), { type: 'error', errorText: /^The reply broke off/ })
})

t.test('a call of the client is left to it, and one of the gateway is not', async (t) => {
  const events = [part(0, 'tool_call', call), delta(0, 0, '{}'), tool(0, { input: {} })]
  const chunks = await readChunks(oldest, bodyOf(log(...events, done('completed'))))
  t.same(chunks.slice(2), [
    { type: 'tool-input-start', toolCallId: 'c', toolName: 'look' },
    { type: 'tool-input-delta', toolCallId: 'c', inputTextDelta: '{}' },
    { type: 'tool-input-available', toolCallId: 'c', toolName: 'look', input: {} },
    { type: 'finish-step' },
    { type: 'finish' },
  ])
  const own = { ...reply, ownTools: new Set(['look']) }
  const answered = [...events, tool(0, { output: null }), part(1, 'text'), delta(1, 0, 'So'), done('completed')]
  t.same((await readChunks(oldest, bodyOf(log(...answered), own))).slice(4), [
    { type: 'tool-input-available', toolCallId: 'c', toolName: 'look', input: {}, providerExecuted: true },
    { type: 'tool-output-available', toolCallId: 'c', output: null, providerExecuted: true },
    { type: 'finish-step' },
    { type: 'start-step' },
    { type: 'text-start', id: '1' },
    { type: 'text-delta', id: '1', delta: 'So' },
    { type: 'text-end', id: '1' },
    { type: 'finish-step' },
    { type: 'finish' },
  ])
})

t.test('calls that wait for the client are of one step, whatever is said between them', async (t) => {
  const two = bodyOf(
    log(
      part(0, 'tool_call', call),
      delta(0, 0, '{}'),
      part(1, 'text'),
      delta(1, 0, 'and'),
      part(2, 'tool_call', { call_id: 'd', name: 'look' }),
      delta(2, 0, '{}'),
      tool(0, { input: {} }),
      tool(2, { input: {} }, 'd'),
      done('completed'),
    ),
  )
  t.equal((await readChunks(oldest, two)).filter(({ type }) => type === 'start-step').length, 1)
})

t.test('a call that broke off is an error that nobody is asked to answer', async (t) => {
  for (const events of [
    [part(0, 'tool_call', call), delta(0, 0, '{"a'), done('stopped')],
    [part(0, 'tool_call', call), delta(0, 0, '{"a'), tool(0, {}), done('completed')],
  ]) {
    const { parts } = await readMessage(ai6 as unknown as Sdk, bodyOf(log(...events)))
    t.match(parts.at(-1), { type: 'tool-look', state: 'output-error', errorText: /broke off/, providerExecuted: true })
  }
})

t.test('sources, files and empty reasoning', async (t) => {
  const body = bodyOf(
    log(
      part(0, 'reasoning'),
      { type: 'source', data: { part: 1, url: 'https://x.test', title: 'X' } },
      { type: 'source', data: { part: 2, title: 'A book' } },
      { type: 'source', data: { part: 3 } },
      part(4, 'file', { url: 'data:image/png;base64,AA', media_type: 'image/png' }),
      done('completed'),
    ),
  )
  t.same((await readChunks(oldest, body)).slice(2, -2), [
    { type: 'source-url', sourceId: '1', url: 'https://x.test', title: 'X' },
    { type: 'source-document', sourceId: '2', mediaType: 'application/octet-stream', title: 'A book' },
    { type: 'file', url: 'data:image/png;base64,AA', mediaType: 'image/png' },
  ])
})

t.test('what was shown to one viewer is encoded for no other, wherever that one began', async (t) => {
  const encoder = createUiEncoder()
  const entries = log(delta(0, 0, 'a'), delta(0, 1, 'b'), delta(0, 2, 'c'), done('completed'))
  const first = encoder.createViewer(reply)
  const bytes = entries.map((entry) => first.encode(entry))
  const second = encoder.createViewer({ ...reply })
  t.ok(
    entries.every((entry, index) => second.encode(entry) === bytes[index]),
    'the very same bytes',
  )
  const late = encoder.createViewer(reply)
  for (const entry of joinDeltas(entries.slice(0, 3))) late.encode(entry)
  t.ok(
    entries.slice(3).every((entry, index) => late.encode(entry) === bytes[3 + index]),
    'also behind joined deltas',
  )
  const other = encoder.createViewer(reply, [{ type: 'start-step' }])
  t.not(other.encode(entries[0] as LogEntry), bytes[0], 'who is shown more has bytes of their own')
  t.equal(other.encode(entries[1] as LogEntry), bytes[1], 'for as long as it is more')
})

t.test('wherever a viewer comes back, head and tail are the whole', async (t) => {
  for (let seed = 0; seed < trialsOf(30); seed += 1) {
    const { entries } = makeReply(createRandom(seed))
    const whole = bodyOf(entries)
    for (let cut = 1; cut < entries.length; cut += 1) {
      const head = bodyOf(entries.slice(0, cut))
      const viewer = createUiEncoder().createViewer(reply)
      // As the routes bring a viewer to its cursor: from a log that joins nothing, whatever the viewer was sent.
      encode(viewer, entries.slice(0, cut))
      if (head + encode(viewer, entries.slice(cut)) !== whole) return t.fail(`seed ${seed}, cut behind ${cut}`)
    }
  }
  t.pass()
})

t.test('what takes back what was said ends the viewer', async (t) => {
  const viewer = createUiEncoder().createViewer(reply)
  const entries = log(delta(0, 0, 'Hello'))
  t.equal(viewer.encode(entries[0] as LogEntry) instanceof Buffer, true)
  viewer.encode(entries[1] as LogEntry)
  const back: RunEvent = { type: 'reset', data: { message_id: messageId, parts: [], cursor: '2-1' } }
  t.equal(viewer.encode({ generation: 2, seq: 1, event: back }), 'lost')
})

t.test('cursors name their run, and nothing else is one', async (t) => {
  const entry = { generation: 2, seq: 17 }
  t.same(parseCursor(formatCursor(runId, entry)), { runId, id: entry })
  for (const text of [
    '',
    '1-1',
    runId,
    `${runId}.`,
    `${runId}.1`,
    `${runId}.1-1-1`,
    `x${runId}.1-1`,
    `${runId}.1-01`,
  ]) {
    t.equal(parseCursor(text), undefined, text)
  }
})

t.test('replies that went on after answers of the client are one message, and ids are those of the page', async (t) => {
  const calls: Part[] = [{ kind: 'tool_call', text: '{}', call_id: 'c', name: 'look', input: {} }]
  const answers: Part[] = [{ kind: 'tool_call', text: '', call_id: 'c', name: 'look', output: 7 }]
  const failed: Part[] = [
    { kind: 'tool_call', text: '', call_id: 'c', name: 'look', error: { code: 'tool_error', message: 'No.' } },
  ]
  const of = (id: string, role: StoredMessage['role'], parts: Part[], more: Partial<StoredMessage> = {}) =>
    stored({ parts, entries: [] }, { id, role, ...more })
  const text = (words: string): Part[] => [{ kind: 'text', text: words }]
  const shown = toUiMessages([
    of('q1', 'user', text('One'), { client_message_id: 'own', metadata: { at: 1 } }),
    of('a1', 'assistant', calls),
    of('t1', 'tool', answers),
    of('a2', 'assistant', calls),
    of('t2', 'tool', failed),
    of('a3', 'assistant', text('Done.')),
    of('q2', 'user', text('Two'), { client_message_id: 'edit:x', metadata: { [uiIdMember]: 'own 2' } }),
    of('a4', 'assistant', text('Part'), { status: 'streaming' }),
  ])
  t.match(shown, [
    { id: 'own', role: 'user', metadata: { at: 1 }, parts: [{ type: 'text', text: 'One' }] },
    {
      id: 'a1',
      parts: [
        { type: 'step-start' },
        { type: 'tool-look', toolCallId: 'c', state: 'output-available', output: 7 },
        { type: 'step-start' },
        { type: 'tool-look', toolCallId: 'c', state: 'output-error', errorText: 'No.' },
        { type: 'step-start' },
        { type: 'text', text: 'Done.', state: 'done' },
      ],
    },
    { id: 'own 2', role: 'user', parts: [{ text: 'Two' }] },
  ])
  t.equal(shown.length, 3, 'and the reply that is being made is left out')
  t.notOk('metadata' in (shown[2] ?? {}))
  for (const sdk of [ai5, ai6, ai7]) await t.resolves((sdk as typeof ai6).validateUIMessages({ messages: shown }))
})
