/**
 * How the page reads a stream that is cut, crooked or has a hole: the page comes from its own plugin, and everything
 * under /api is written by the test, byte for byte. A real gateway never sends most of this; the networks and proxies
 * between it and a browser do.
 */
import type { ServerResponse } from 'node:http'
import Fastify from 'fastify'
import type { Page } from 'playwright-core'
import t, { type Test } from 'tap'
import { page as pagePlugin } from '../../src/http/page.ts'
import { endOfReply, lastReply, openChromium, openPage, say, shownReply } from './chromium.ts'

const sessionId = '0193e0a0-0000-7000-8000-000000000001'
const runId = '0193e0a0-0000-7000-8000-000000000002'
const messageId = '0193e0a0-0000-7000-8000-000000000003'
const userMessageId = '0193e0a0-0000-7000-8000-000000000004'

/** One connection: what it says, and how it ends. */
interface Connection {
  readonly pieces: readonly string[]
  /** What the reader sees before a cut. Without it a browser may drop what it has received and not handed over yet. */
  readonly seen?: string
  readonly end: 'clean' | 'cut' | 'open'
}

const run = { run_id: runId, session_id: sessionId, user_message_id: userMessageId, message_id: messageId }
const done = { status: 'completed', message_id: messageId }

function event(name: string, data: unknown, id?: string): string {
  return `event: ${name}\ndata: ${JSON.stringify(data)}\n${id === undefined ? '' : `id: ${id}\n`}\n`
}

function delta(id: string, offset: number, text: string, part = 0): string {
  return event('delta', { part, offset, text }, id)
}

// What is written byte by byte is read in larger pieces by a busy browser. This hands the bytes out one at a time.
const byteByByte = `{
  const read = ReadableStreamDefaultReader.prototype.read
  const held = new WeakMap()
  ReadableStreamDefaultReader.prototype.read = async function () {
    let bytes = held.get(this)
    if (!bytes?.length) {
      const chunk = await read.call(this)
      if (chunk.done) return chunk
      bytes = chunk.value
    }
    held.set(this, bytes.subarray(1))
    return { done: false, value: bytes.subarray(0, 1) }
  }
}`

// Counts what is done with an answer of a tool, with a delta, and with a file that is an address of its own.
const countWork = `{
  window.made = { answers: 0, deltas: 0, files: 0 }
  const { stringify } = JSON
  JSON.stringify = (value, ...rest) => {
    if (value?.found !== undefined) made.answers += 1
    if (value?.offset !== undefined) made.deltas += 1
    return stringify(value, ...rest)
  }
  const href = Object.getOwnPropertyDescriptor(HTMLAnchorElement.prototype, 'href')
  Object.defineProperty(HTMLAnchorElement.prototype, 'href', {
    ...href,
    set(url) {
      if (url.startsWith('data:')) made.files += 1
      href.set.call(this, url)
    },
  })
}`

/** Plays one connection after the other. @returns the cursors that the page came with, '' for none */
async function startScript(t: Test, connections: readonly Connection[], opened: Promise<Page>, snapshot?: object) {
  const app = Fastify({ forceCloseConnections: true })
  const cursors: string[] = []
  const left = [...connections]

  async function play(response: ServerResponse): Promise<void> {
    const connection = left.shift()
    if (connection === undefined) {
      response.writeHead(204).end()
      return
    }
    response.writeHead(200, {
      'content-type': 'text/event-stream',
      'x-session-id': sessionId,
      'x-run-id': runId,
      'x-message-id': messageId,
    })
    response.write(connection.pieces.join(''))
    if (connection.seen !== undefined) await (await opened).getByText(connection.seen, { exact: true }).waitFor()
    if (connection.end === 'clean') response.end()
    if (connection.end === 'cut') response.destroy()
  }

  await app.register(pagePlugin)
  app.get('/api/v1/sessions', () => ({ data: [{ id: sessionId, title: 'A session', status: 'running' }] }))
  app.get('/api/v1/sessions/:id/messages', () => ({ data: snapshot === undefined ? [] : [snapshot] }))
  app.post('/api/v1/chat/stream', (_request, reply) => {
    reply.hijack()
    return play(reply.raw)
  })
  app.get('/api/v1/runs/:id/events', (request, reply) => {
    cursors.push(`${request.headers['last-event-id'] ?? ''}`)
    reply.hijack()
    return play(reply.raw)
  })
  const url = await app.listen({ port: 0, host: '127.0.0.1' })
  t.teardown(() => app.close())
  return { url, cursors }
}

t.jobs = 4
t.setTimeout(120_000)

const browser = await openChromium(t)
if (browser !== undefined) {
  async function readScript(t: Test, connections: readonly Connection[], script?: string) {
    const opened = Promise.withResolvers<Page>()
    const played = await startScript(t, connections, opened.promise)
    const reader = await openPage(t, browser!, played.url, { script })
    opened.resolve(reader.page)
    await say(reader.page, 'Hello')
    await lastReply(reader.page).waitFor()
    await endOfReply(reader.page)
    return { ...played, ...reader, text: await shownReply(reader.page) }
  }

  t.test('lines may end in LF, CRLF or CR, and bytes may be cut anywhere, also in a letter or a CRLF', async (t) => {
    const lf = [
      'retry: 100\n',
      event('run', run, '1-1'),
      ': hb\n',
      delta('1-2', 0, 'naïve 日本 '),
      ': hb\n\n',
      `event:delta\nid:1-3\ndata:{"part":0,\ndata:"offset":9,"text":"👩‍👩‍👧"}\n\n`,
      event('delta', { part: 0, offset: 17, text: '\ud83d' }, '1-4'),
      event('delta', { part: 0, offset: 18, text: '\ude00!' }, '1-5'),
      event('unheard-of', { any: 'thing' }, '1-6'),
      event('done', done, '1-7'),
    ].join('')
    for (const lineEnd of ['\n', '\r\n', '\r']) {
      const pieces = [lf.replaceAll('\n', lineEnd)]
      const { text, cursors } = await readScript(t, [{ pieces, end: 'open' }], byteByByte)
      t.equal(text, 'naïve 日本 👩‍👩‍👧😀!', JSON.stringify(lineEnd))
      t.same(cursors, [], 'one connection was enough')
    }
  })

  t.test('a stream that ends without done is taken up after the last whole event, cut or clean', async (t) => {
    const { text, cursors } = await readScript(t, [
      {
        pieces: [
          'retry: 100\n',
          event('run', run, '1-1'),
          delta('1-2', 0, 'one '),
          delta('1-3', 4, 'two ').slice(0, -1),
        ],
        seen: 'one ',
        end: 'cut',
      },
      {
        pieces: [delta('1-3', 4, 'two '), delta('1-4', 8, 'three'), delta('1-5', 13, ' no').slice(0, -1)],
        end: 'clean',
      },
      { pieces: [], end: 'cut' },
      { pieces: [event('done', done, '1-5')], end: 'clean' },
    ])
    t.equal(text, 'one two three')
    t.same(cursors, ['1-2', '1-4', '1-4'])
  })

  t.test('reconnect is not the end', async (t) => {
    const { text, cursors } = await readScript(t, [
      { pieces: [event('run', run, '1-1'), delta('1-2', 0, 'a'), event('reconnect', { retry_ms: 1 })], end: 'clean' },
      { pieces: [delta('1-3', 1, 'b'), event('ready', {}), event('done', done, '1-4')], end: 'clean' },
    ])
    t.equal(text, 'ab')
    t.same(cursors, ['1-2'])
  })

  t.test('of a delta that overlaps only what is new is taken', async (t) => {
    const { text } = await readScript(t, [
      {
        pieces: [
          event('run', run, '1-1'),
          delta('1-2', 0, 'abc'),
          delta('1-3', 1, 'bcd'),
          delta('1-4', 0, 'ab'),
          event('done', done, '1-5'),
        ],
        end: 'clean',
      },
    ])
    t.equal(text, 'abcd')
  })

  t.test('after a gap the run is taken from the beginning, and what was there before counts for nothing', async (t) => {
    const { text, cursors } = await readScript(t, [
      {
        pieces: ['retry: 100\n', event('run', run, '1-1'), delta('1-2', 0, 'wrong'), delta('1-4', 9, '!')],
        end: 'open',
      },
      {
        pieces: [
          event('run', run, '1-1'),
          delta('1-2', 0, 'right '),
          delta('1-4', 6, 'words'),
          event('done', done, '1-5'),
        ],
        end: 'clean',
      },
    ])
    t.equal(text, 'right words')
    t.same(cursors, [''])
  })

  t.test('a reset replaces all parts, and the stream goes on from its cursor', async (t) => {
    const parts = [
      { kind: 'reasoning', text: 'Hm.' },
      { kind: 'text', text: 'new' },
    ]
    const { page, cursors } = await readScript(t, [
      {
        pieces: [
          'retry: 100\n',
          event('run', run, '1-1'),
          delta('1-2', 0, 'old and long'),
          event('reset', { message_id: messageId, parts, cursor: '2-1' }, '2-1'),
        ],
        seen: 'new',
        end: 'cut',
      },
      { pieces: [delta('2-2', 3, ' words', 1), event('done', done, '2-3')], end: 'clean' },
    ])
    const reply = page.getByRole('article', { name: 'Reply' })
    t.same(await reply.locator('[dir=auto]').allTextContents(), ['Hm.', 'new words'])
    t.equal(await page.getByText('Hm.').isVisible(), false, 'reasoning is folded')
    await page.getByText('Reasoning').click()
    t.equal(await page.getByText('Hm.').isVisible(), true)
    t.same(cursors, ['2-1'])
  })

  t.test('a running reply is shown from its snapshot and followed from the cursor of that snapshot', async (t) => {
    const snapshot = {
      id: messageId,
      seq: 2,
      role: 'assistant',
      status: 'streaming',
      content: 'so far',
      parts: [{ kind: 'text', text: 'so far' }],
      run_id: runId,
      cursor: '1-9',
    }
    const opened = Promise.withResolvers<Page>()
    const { url, cursors } = await startScript(
      t,
      [{ pieces: [delta('1-10', 6, ', so good'), event('done', done, '1-11')], end: 'clean' }],
      opened.promise,
      snapshot,
    )
    const { page } = await openPage(t, browser, `${url}/#/s/${sessionId}`)
    await page.getByText('so far, so good').waitFor()
    await endOfReply(page)
    t.equal(await shownReply(page), 'so far, so good')
    t.same(cursors, ['1-9'])
  })

  t.test('a part that has not changed is not made again, and what only the inspector shows is not made', async (t) => {
    const call = { part: 0, call_id: 'a', name: 'search' }
    const overlap = { part: 2, offset: 0, text: 'one two' }
    const { page } = await readScript(
      t,
      [
        {
          pieces: [
            'retry: 100\n',
            event('run', run, '1-1'),
            event('tool', { ...call, input: { q: 'x' }, output: { found: 3 } }, '1-2'),
            event('part', { part: 1, kind: 'file', url: 'data:text/plain,x', media_type: 'text/plain' }, '1-3'),
            event('part', { part: 2, kind: 'text' }, '1-4'),
            delta('1-5', 0, 'one', 2),
          ],
          seen: 'one',
          end: 'cut',
        },
        { pieces: [event('delta', overlap, '1-6')], seen: 'one two', end: 'cut' },
        { pieces: [delta('1-7', 7, ' three', 2)], seen: 'one two three', end: 'cut' },
        { pieces: [delta('1-8', 13, ' four', 2), event('done', done, '1-9')], end: 'clean' },
      ],
      countWork,
    )
    const made = await page.evaluate<Record<'answers' | 'deltas' | 'files', number>>('made')
    t.ok(made.answers > 0 && made.answers <= 2, `while the reply goes on, and when it has ended: ${made.answers}`)
    t.ok(made.files > 0 && made.files <= 2, `also a file: ${made.files}`)
    t.equal(made.deltas, 0)
    await page.keyboard.press('Control+i')
    const row = page.getByRole('row').filter({ has: page.getByRole('cell', { name: '1-6', exact: true }) })
    t.equal(
      await row.getByRole('cell').nth(3).textContent(),
      `${JSON.stringify(overlap).length}`,
      'as large as it came, and not as what was new in it',
    )
    t.equal(await page.evaluate('made.deltas'), 0, 'which nobody has to measure')
  })

  t.test('markup in a reply is text like any other', async (t) => {
    const markup = '<img src=x onerror="document.title=1"><script>document.title=2</script>&amp; **bold**'
    const { page, text, complaints } = await readScript(t, [
      { pieces: [event('run', run, '1-1'), delta('1-2', 0, markup), event('done', done, '1-3')], end: 'clean' },
    ])
    t.equal(text, markup)
    t.equal(await page.getByRole('log').locator('img, script').count(), 0)
    t.same(complaints, [])
  })

  t.test(
    'tools are folded with what went in and came out, and links of a reply lead to the web or nowhere',
    async (t) => {
      const pixel =
        'data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=='
      const parts = [
        { kind: 'tool_call', text: '{"q":"x"}', call_id: 'a', name: 'search', input: { q: 'x' }, output: { found: 3 } },
        {
          kind: 'tool_call',
          text: '',
          call_id: 'b',
          name: 'send',
          input: {},
          error: { code: 'refused', message: 'Not today.' },
        },
        { kind: 'text', text: 'Found.' },
        { kind: 'source', text: '', url: 'https://example.com/a', title: 'A' },
        { kind: 'source', text: '', url: 'javascript:alert(1)', title: 'B' },
        { kind: 'file', text: '', url: pixel, media_type: 'image/png' },
        { kind: 'file', text: '', url: 'https://example.com/c.png', media_type: 'image/png' },
      ]
      const snapshot = {
        id: messageId,
        seq: 2,
        parent_id: null,
        role: 'assistant',
        status: 'completed',
        content: '',
        parts,
        run_id: runId,
      }
      const { url } = await startScript(t, [], Promise.resolve() as never, snapshot)
      const { page, complaints, strayRequests } = await openPage(t, browser, `${url}/#/s/${sessionId}`)
      const reply = lastReply(page)
      await reply.getByText('Found.').waitFor()
      t.equal(await reply.getByText('"found": 3').isVisible(), false, 'folded')
      await reply.getByText('Tool: search').click()
      t.equal(await reply.getByRole('group', { name: 'Input' }).first().textContent(), '{\n  "q": "x"\n}')
      t.equal(await reply.getByRole('group', { name: 'Output' }).textContent(), '{\n  "found": 3\n}')
      await reply.getByText('Tool: send').click()
      t.equal(await reply.getByRole('group', { name: 'Error' }).textContent(), 'refused: Not today.')
      const links = await reply
        .locator('a')
        .evaluateAll((all) => all.map((link) => `${(link as unknown as { href: string }).href}`))
      t.same(links, ['https://example.com/a', '', pixel, 'https://example.com/c.png'])
      t.equal(await reply.getByRole('img').count(), 1, 'a picture of the model itself is shown, none is loaded')
      t.same(strayRequests, [])
      t.same(complaints, [])
    },
  )

  for (const [status, label, message, alerts] of [
    ['interrupted', 'Interrupted', 'The process ended.', ['The reply broke off: The process ended.']],
    ['interrupted', 'Interrupted', 'The reply broke off.', ['The reply broke off.']],
    ['stopped', 'Stopped', 'The process ended.', []],
    ['failed', 'Failed', 'The process ended.', ['The reply failed: The process ended.']],
  ] as const) {
    t.test(`a reply that was ${status} keeps its words and is labelled: ${message}`, async (t) => {
      const error = { code: 'interrupted', message, retryable: true }
      const { page, text } = await readScript(t, [
        {
          pieces: [
            event('run', run, '1-1'),
            delta('1-2', 0, 'half a'),
            event('done', { ...done, status, error }, '1-3'),
          ],
          end: 'clean',
        },
      ])
      t.equal(text, 'half a')
      await page.getByRole('article', { name: 'Reply' }).getByText(label).waitFor()
      t.same(await page.getByRole('alert').allTextContents(), alerts)
    })
  }
}
