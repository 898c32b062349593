/**
 * Providers that fall silent, break off, stammer, fail aloud or never stop, and errors in the code of one stream, seen through
 * the whole gateway: what was said is kept, every viewer is told the same end whenever it came, and what is stored is what
 * was shown. test/upstream has the adapter alone, e2e/upstream-faults what a client is answered.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { type Test, test } from 'tap'
import {
  begin,
  chunk,
  createGate,
  doneMarker,
  errorShapes,
  forever,
  raw,
  reset,
  type Script,
  say,
  seededCuts,
  sse,
  startFakeUpstream,
  usageChunk,
} from '../../scripts/fake-upstream.ts'
import { replyUnitsMax } from '../../src/upstream/reader.ts'
import {
  type Client,
  createClient,
  type HeldPart,
  holdParts,
  isDelta,
  isDone,
  type Received,
  type Stream,
  shownText,
} from '../support/client.ts'
import { databases } from '../support/database.ts'
import { type Gateway, type GatewayOptions, startGateway } from '../support/gateway.ts'
import { startProxy } from '../support/proxy.ts'
import { createRandom, type Random } from '../support/random.ts'
import { trialsOf } from '../support/trials.ts'

const words = 'Schön, 漢字 and 👩‍👩‍👧 so far'
const idleMs = 2000
/** Fourteen minutes of the product. */
const connectionMs = 300
const seeds = trialsOf(8)
/** From the cap on, the provider may go on for as long as a busy machine needs to hang up. */
const hangUpMsMax = 5000

async function start(t: Test, options: GatewayOptions = {}) {
  const upstream = await startFakeUpstream()
  t.teardown(() => upstream.close())
  const lines: string[] = []
  const gateway = await startGateway(t, {
    ...options,
    logStream: { write: (line) => lines.push(line) },
    env: {
      OPENAI_BASE_URL: upstream.url,
      UPSTREAM_IDLE_MS: String(idleMs),
      LOG_LEVEL: 'info',
      FRAME_MS: '5',
      ...options.env,
    },
  })
  const complaints = () => lines.filter((line) => /"level":"(error|fatal)"/.test(line))
  return { upstream, gateway, lines, complaints }
}

const runOf = (stream: Stream) => stream.headers.get('x-run-id') ?? ''
const eventsOf = (stream: Stream) => `/api/v1/runs/${runOf(stream)}/events`

interface End {
  readonly status: 'completed' | 'interrupted' | 'failed'
  readonly code?: string
  readonly text: string
}

/**
 * Compares what was stored with what was shown, to a viewer from the beginning, to one that came in the middle, to one that comes back
 * after the first event it had, and to one that comes when all is over.
 */
async function check(t: Test, client: Client, viewers: readonly Stream[], end: End): Promise<void> {
  const [first] = viewers
  if (first === undefined) throw new Error('somebody has to have seen it')
  for (const viewer of viewers) t.equal(await viewer.ended, 'clean')
  const late = await client.watch(eventsOf(first))
  await late.ended
  const all: { received: readonly Received[]; held?: HeldPart[] }[] = [...viewers, late]
  const places = first.received.filter(({ id }) => id !== undefined)
  const seen = places.slice(0, Math.max(1, places.length - 2))
  const back = await client.watch(eventsOf(first), { 'last-event-id': seen.at(-1)?.id ?? '' })
  await back.ended
  all.push({ received: back.received, held: holdParts(seen) })

  const run = (await client.get(`/api/v1/runs/${runOf(first)}`)).body
  const [question, reply] = await client.messages(run.session_id)
  t.match(run, {
    status: end.status,
    generation: 1,
    attempts: 1,
    error: end.code === undefined ? null : { code: end.code },
  })
  t.match(question, { role: 'user', status: 'completed' })
  t.equal(reply.status, end.status)
  t.ok(reply.content === end.text, 'stored as it was said', { begins: JSON.stringify(reply.content.slice(0, 80)) })
  const session = (await client.get(`/api/v1/sessions/${run.session_id}`)).body
  t.match(session, {
    active_run_id: null,
    status: end.status === 'completed' ? 'completed' : 'failed',
    message_count: 2,
  })
  for (const { received, held } of all) {
    t.ok(shownText(received, held) === reply.content, 'shown as it is stored')
    const ends = received.filter(isDone)
    t.equal(ends.length, 1, 'one end')
    t.strictSame(ends[0]?.data.error, run.error ?? undefined)
    t.equal(ends[0]?.data.status, end.status)
  }
}

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const { upstream, gateway, complaints } = await start(t, { database })

    /** Sends a message, and has a second viewer come in the middle of the reply. */
    async function watchBoth(client: Client, script: Script): Promise<Stream[]> {
      upstream.answer(script)
      const first = await client.send({ message: 'Hello' })
      await first.until((event) => isDelta(event) || isDone(event))
      return [first, await client.watch(eventsOf(first))]
    }

    const cases: readonly (readonly [string, Script, Omit<End, 'text'>])[] = [
      ['row 61: silence in mid-stream', saying(forever), { status: 'interrupted', code: 'upstream_timeout' }],
      ['row 62: a reset', saying(reset()), { status: 'interrupted', code: 'upstream_unavailable' }],
      ['row 62: an end without an end mark', saying(), { status: 'interrupted', code: 'upstream_unavailable' }],
      ...Object.entries(errorShapes).map(
        ([shape, bytes]) =>
          [
            `row 64: an error aloud, as ${shape}`,
            saying(bytes),
            { status: 'interrupted', code: 'upstream_unavailable' },
          ] as const,
      ),
      [
        'row 64: an error that the provider means',
        saying(sse({ error: { message: 'no', type: 'invalid_request_error' } }, 'error')),
        { status: 'failed', code: 'upstream_rejected' },
      ],
    ]
    for (const [title, script, end] of cases) {
      await t.test(`${title}: the text is kept, and the end is told`, async (t) => {
        const client = createClient(gateway.url)
        const viewers = await watchBoth(client, script)
        await check(t, client, viewers, { ...end, text: words })
      })
    }

    await t.test(`row 63: ${seeds} streams stammered at random are stored as they were meant`, async (t) => {
      const client = createClient(gateway.url)
      for (let seed = 1; seed <= seeds; seed += 1) {
        const { bytes, text } = stammer(createRandom(seed))
        // Some byte by byte, which is slow, and the others at random places.
        const cuts =
          seed % 4 === 0
            ? Array.from({ length: Math.min(bytes.length, 4000) }, (_, at) => at + 1)
            : seededCuts(bytes.length, 200, seed)
        const viewers = await watchBoth(client, () => raw(bytes, cuts))
        const [first] = viewers
        await first?.ended
        if (shownText(first?.received ?? []) !== text) t.fail(`seed ${seed}`, { expected: text.slice(0, 300) })
        await check(t, client, viewers, { status: 'completed', text })
      }
      t.same(complaints(), [], 'and the database refused nothing')
    })

    for (const [title, word] of [
      ['one letter without end', () => 'x'.repeat(50_000)],
      // A text index would refuse a megabyte of them.
      [
        'words of which none comes twice',
        (n: number) => Array.from({ length: 5000 }, (_, at) => ` w${n}x${at}`).join(''),
      ],
    ] as const) {
      await t.test(`row 65: ${title}: cut at the cap, and kept up to it`, async (t) => {
        const client = createClient(gateway.url)
        let said = ''
        let kept = ''
        const viewers = await watchBoth(client, async function* () {
          for (let n = 0; ; n += 1) {
            const piece = word(n)
            said += piece
            if (said.length <= replyUnitsMax) kept = said
            yield chunk({ content: piece })
          }
        })
        const [first] = viewers
        await first?.until(isDone)
        const doneAt = performance.now()
        await upstream.calls.at(-1)?.aborted
        t.ok(performance.now() - doneAt < hangUpMsMax, 'the provider is hung up on')
        await check(t, client, viewers, { status: 'interrupted', code: 'too_large', text: kept })
        t.equal((await client.get('/api/v1/sessions')).status, 200)
        t.comment(`${said.length} units said, ${kept.length} kept`)
      })
    }

    await t.test('afterwards a reply is whole', async (t) => {
      const client = createClient(gateway.url)
      const viewers = await watchBoth(client, () => say({ text: words }))
      await check(t, client, viewers, { status: 'completed', text: words })
      t.same(complaints(), [], 'a provider that fails is no fault of the gateway')
    })
  })

  test(`row 66, on ${database}: a stream longer than connections may live is seamless`, async (t) => {
    const { upstream, gateway } = await start(t, { database, sse: { connectionMs, heartbeatMs: 50 } })
    const proxy = await startProxy(t, new URL(gateway.url))
    const edge = `http://127.0.0.1:${proxy.port}`

    for (const end of ['by the gateway', 'by an edge'] as const) {
      await t.test(`ended ${end}`, async (t) => {
        const client = createClient(edge)
        await client.get('/api/v1/sessions')
        const stopTalking = createGate()
        let talking = true
        stopTalking.opened.then(() => {
          talking = false
        })
        upstream.answer(async function* () {
          for (let n = 0; talking; n += 1) {
            yield chunk({ content: ` ${n} 漢🎈` })
            await sleep(10)
          }
          yield chunk({}, 'stop')
          yield doneMarker
        })
        const received: Received[] = []
        let stream = await client.send({ message: 'On and on' })
        const [path, sessionId] = [eventsOf(stream), stream.headers.get('x-session-id') ?? '']
        let visits = 0
        for (;;) {
          visits += 1
          if (end === 'by an edge') {
            await stream.until(isDelta)
            proxy.set('refuse')
            proxy.set('pass')
          }
          const how = await stream.ended
          const isOver = stream.received.some(isDone)
          if (end === 'by the gateway' && !isOver) {
            t.equal(how, 'clean')
            t.match(stream.received.at(-1), { event: 'reconnect', data: { retry_ms: Number } })
          }
          received.push(...stream.received.filter(({ id }) => id !== undefined))
          if (isOver) break
          if (visits === 4) stopTalking.open()
          stream = await client.watch(path, { 'last-event-id': received.at(-1)?.id ?? '' })
          // The last visit of an edge that cuts every one would have no end.
          if (end === 'by an edge' && visits >= 4) {
            await stream.ended
            received.push(...stream.received.filter(({ id }) => id !== undefined))
            if (stream.received.some(isDone)) break
            stream = await client.watch(path, { 'last-event-id': received.at(-1)?.id ?? '' })
          }
        }
        const [, reply] = await client.messages(sessionId)
        t.match(reply, { status: 'completed' })
        t.equal(shownText(received), reply.content)
        t.equal(received.filter(isDone).length, 1)
        t.comment(`${visits} connections for one stream`)
      })
    }
  })

  test(`row 13, on ${database}: an error that nobody expected stays in the stream it happened in`, async (t) => {
    const { upstream, gateway, lines } = await start(t, { database })
    const client = createClient(gateway.url)
    await client.get('/api/v1/sessions')
    const gate = createGate()
    const poison = 'a-word-that-breaks-the-code'
    upstream.answer(async function* (call) {
      yield* begin({ text: 'Before' })
      await gate.opened
      yield chunk({ content: call.message === 'poison' ? poison : ' and after' })
      yield chunk({}, 'stop')
      yield doneMarker
    })

    await t.test('in the making of a reply', async (t) => {
      const [sick, well] = await Promise.all([client.send({ message: 'poison' }), client.send({ message: 'Hello' })])
      await Promise.all([sick.until(isDelta), well.until(isDelta)])
      breakOn(t, poison)
      gate.open()
      await check(t, client, [well], { status: 'completed', text: 'Before and after' })
      await check(t, client, [sick], { status: 'failed', code: 'internal', text: 'Before' })
      t.equal(lines.filter((line) => line.includes('nobody expected')).length, 1, 'and the log says so')
      t.notOk(
        lines.some((line) => line.includes(poison)),
        'without the words',
      )
    })

    await t.test('in the showing of it', async (t) => {
      const again = createGate()
      upstream.answer(async function* () {
        yield* begin({ text: 'Before' })
        await again.opened
        yield chunk({ content: ' and after' }, 'stop')
        yield doneMarker
      })
      const well = await client.send({ message: 'Hello' })
      await well.until(isDelta)
      const sick = await watchBroken(gateway, client, eventsOf(well))
      await sick.stream.until(isDelta)
      sick.breakWrites()
      again.open()
      t.equal(await sick.stream.ended, 'cut', 'an end that does not look whole')
      await check(t, client, [well], { status: 'completed', text: 'Before and after' })
      t.equal(lines.filter((line) => line.includes('a viewer was cut after a fault of the gateway')).length, 1)
    })

    await t.test('and the gateway goes on', async (t) => {
      upstream.answer(() => say({ text: words }))
      const stream = await client.send({ message: 'Hello' })
      await check(t, client, [stream], { status: 'completed', text: words })
      t.equal((await client.get('/health/ready')).status, 200)
    })
  })
}

/** Some words, and then what goes wrong. */
function saying(then?: (() => Promise<never>) | ReturnType<typeof reset> | string): Script {
  return async function* () {
    yield* begin({ text: words, paceMs: 5 })
    if (typeof then === 'function') await then()
    else if (then !== undefined) yield then
  }
}

const vocabulary = [
  'plain ',
  'naïve ',
  '漢字 ',
  '👩‍👩‍👧 ',
  '\u0000',
  'a\u0000b ',
  '\ud83d',
  '\ude00',
  'half \ud83d',
  '\ude00 half',
  '\ufeff',
  '\u2028',
  'line\nbreak\r\n',
  '"quoted" \\',
  'data: [DONE]\n\n',
  '  ',
  '😀'.repeat(30_000),
]

/** A reply in the crooked forms of server-sent events that the specification allows, and the text that it means. */
function stammer(random: Random): { bytes: Buffer; text: string } {
  let text = ''
  let stream = random.integer(2) === 0 ? '\ufeff' : ''
  const lineEnd = random.pick(['\n', '\r\n', '\r'])
  // A carriage return alone could be half of a pair until the next byte comes: the last line has to be a whole one.
  const events = 30 + random.integer(60)
  for (let n = 0; n < events; n += 1) {
    const content = random.pick(vocabulary)
    text += content
    const data = chunk({ content }).slice('data: '.length).trimEnd()
    stream += random.pick([
      '',
      ': a comment\n',
      ':\n',
      'id: 7\n',
      'retry: 10\n',
      'event: message\n',
      'unknown: field\n',
      '\n',
    ])
    stream += `data:${random.pick(['', ' '])}${random.integer(3) === 0 ? data.replaceAll('"choices"', '\ndata:"choices"') : data}\n\n`
  }
  stream += chunk({}, 'stop') + usageChunk(8, events) + doneMarker
  return { bytes: Buffer.from(stream.replaceAll('\n', lineEnd)), text: text.replaceAll('\u0000', '').toWellFormed() }
}

/** Breaks the code that makes text fit to be stored, for one word, until the test ends. */
function breakOn(t: Test, word: string): void {
  const original = String.prototype.toWellFormed
  t.teardown(() => {
    String.prototype.toWellFormed = original
  })
  String.prototype.toWellFormed = function (this: string) {
    if (this.includes(word)) throw new TypeError('a bug that was put there by the test')
    return original.call(this)
  }
}

/** A viewer whose response throws at every write from `breakWrites` on. */
async function watchBroken(gateway: Gateway, client: Client, path: string) {
  const { server } = gateway.app.server
  let broken = false
  server.prependOnceListener('request', (_request, response) => {
    const socket = response.socket!
    const write = socket.write.bind(socket) as (bytes: unknown) => boolean
    socket.write = (bytes: unknown) => {
      if (broken) throw new TypeError('a bug that was put there by the test')
      return write(bytes)
    }
  })
  const stream = await client.watch(path)
  return {
    stream,
    breakWrites() {
      broken = true
    },
  }
}
