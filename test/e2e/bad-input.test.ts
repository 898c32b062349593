/**
 * What a client can get wrong, over real HTTP, on every database. Each row of the tables is one request and its exact
 * answer: a problem document, no fault of the gateway, nothing stored and nobody asked upstream.
 */
import { type Test, test } from 'tap'
import { say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import type { ErrorCode } from '../../src/errors.ts'
import { toolsMax } from '../../src/runs/model.ts'
import { passOn } from '../support/agents.ts'
import { type Client, createClient, isDone } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { type Gateway, startGateway } from '../support/gateway.ts'
import { openSocket, type RawAnswer, readAnswer, sendRaw } from '../support/raw.ts'
import { countRows } from '../support/stored.ts'

interface Row {
  readonly title: string
  readonly method?: string
  readonly path: string
  readonly headers?: Readonly<Record<string, string>>
  /** Sent as JSON. */
  readonly json?: unknown
  /** Sent as it is. */
  readonly text?: string | Uint8Array<ArrayBuffer>
  readonly status?: number
  readonly code?: ErrorCode
}

const stream = '/api/v1/chat/stream'
const whole = '/api/v1/chat/message'
const sessions = '/api/v1/sessions'
const unknownId = '01890000-0000-7000-8000-000000000000'
const wrongTypes = [null, 5, true, [], {}]
const malformedIds = [
  '',
  'x',
  '1',
  unknownId.replaceAll('-', ''),
  `{${unknownId}}`,
  `urn:uuid:${unknownId}`,
  `${unknownId}\n`,
  ` ${unknownId}`,
  unknownId.replace('0', 'g'),
  `${unknownId}0`,
]
const apiKey = 'sk-canary-of-the-api-key'
const visitor = `vst_${'canary-'.repeat(6)}1`
const nested = (levels: number) => `${'{"a":'.repeat(levels)}1${'}'.repeat(levels)}`
const cursorOf = (place: unknown) => Buffer.from(JSON.stringify(place)).toString('base64url')
const tool = { name: 'look', parameters: { type: 'object' } }
const show = (value: unknown) => JSON.stringify(value)?.slice(0, 60) ?? 'undefined'

const malformedJson: readonly Row[] = [
  ...['{', '{"message":}', '{"message":"x"', 'message=x', "{'message':'x'}", '{"message":"x",}', '\u0000', 'NaN'].map(
    (text) => ({ title: `no JSON: ${show(text)}`, path: stream, text }),
  ),
  ...['', ' ', 'null', '"message"', '[]', '5', 'true'].map((text) => ({
    title: `no object: ${show(text)}`,
    path: stream,
    text,
  })),
  { title: 'a body of nothing for a session', path: sessions, text: '' },
  { title: 'bytes that are no UTF-8', path: stream, text: Uint8Array.of(0x7b, 0xff, 0xfe, 0x7d) },
  { title: '__proto__ as a field', path: stream, text: '{"message":"x","__proto__":{"mode":"fast"}}' },
  { title: '__proto__ in metadata', path: stream, text: '{"message":"x","metadata":{"__proto__":{"a":1}}}' },
  { title: '__proto__ in metadata, escaped', path: stream, text: '{"message":"x","metadata":{"\\u005f_proto__":1}}' },
  {
    title: 'constructor.prototype in metadata',
    path: stream,
    text: '{"message":"x","metadata":{"constructor":{"prototype":{"a":1}}}}',
  },
  { title: '__proto__ in the context of a session', path: sessions, text: '{"context":{"__proto__":{"a":1}}}' },
  { title: '33 levels', path: stream, text: `{"message":"x","metadata":${nested(32)}}` },
  {
    title: '33 levels of arrays',
    path: stream,
    text: `{"message":"x","metadata":{"a":${'['.repeat(31)}${']'.repeat(31)}}}`,
  },
  { title: '33 levels in a session', path: sessions, text: `{"context":${nested(32)}}` },
  { title: '100 000 levels', path: stream, text: `{"message":"x","metadata":${nested(100_000)}}` },
  {
    title: '100 000 levels with __proto__',
    path: stream,
    text: `{"message":"__proto__","metadata":${nested(100_000)}}`,
  },
  { title: '1 000 000 open brackets', path: stream, text: '['.repeat(1_000_000) },
]

/** Field of the chat body -> values that it must not have. */
const badChatFields: Readonly<Record<string, readonly unknown[]>> = {
  message: [undefined, ...wrongTypes, '', ' ', '\n\t \u00a0\u3000\ufeff', '\u0000', '\u0000 \u0000'],
  session_id: [...wrongTypes, ...malformedIds],
  parent_id: [...wrongTypes, ...malformedIds],
  client_message_id: [...wrongTypes, '', ' ', 'a b', 'ä', 'a\n', 'a/b', 'a\u0000', 'x'.repeat(129)],
  mode: [...wrongTypes, '', 'Fast', 'fast ', 'turbo'],
  model: [...wrongTypes, '', ' ', 'x'.repeat(201), 'nobody:gpt', 'openai:', ':gpt', 'gpt\u0000', 'gpt\ud800'],
  agent_id: [...wrongTypes, '', 'x'.repeat(256)],
  metadata: [null, 5, true, [], 'x', [{}]],
  on_busy: [...wrongTypes, '', 'wait'],
  on_disconnect: [...wrongTypes, '', 'Stop'],
  tools: [
    null,
    'x',
    {},
    [{}],
    [tool, tool],
    [{ ...tool, name: 'a b' }],
    [{ ...tool, name: 'x'.repeat(65) }],
    [{ ...tool, parameters: [] }],
    [{ ...tool, strict: true }],
    Array.from({ length: toolsMax + 1 }, (_, n) => ({ ...tool, name: `n${n}` })),
  ],
  tool_choice: [null, 5, '', 'any', {}, { name: 'a b' }, { name: 'look', type: 'function' }],
  tool_results: [...wrongTypes, [{ call_id: 'a', output: 1 }]],
}

/** In place of the message. */
const badToolResults: readonly unknown[] = [
  [],
  [{}],
  [{ call_id: '', output: 1 }],
  [{ call_id: 'a' }],
  [{ call_id: 'a', output: 1, error: { code: 'x', message: 'x' } }],
  [{ call_id: 'a', error: 'x' }],
  [{ call_id: 'a', error: { code: '', message: 'x' } }],
  [{ call_id: 'a', error: { code: 'x', message: 'x', stack: 'x' } }],
  [{ call_id: 'a', output: 1, name: 'look' }],
  Array.from({ length: 65 }, (_, n) => ({ call_id: `${n}`, output: n })),
]

const chatFields: readonly Row[] = [stream, whole].flatMap((path) => [
  ...Object.entries(badChatFields).flatMap(([field, values]) =>
    values.map((value) => ({
      title: `${path.slice(13)} ${field}: ${show(value)}`,
      path,
      json: { message: 'Hello', [field]: value },
    })),
  ),
  ...['Message', 'messages', 'text', 'owner', 'user_id', 'toString', 'constructor', 'x'.repeat(10_000)].map(
    (field) => ({
      title: `${path.slice(13)} unknown field ${field.slice(0, 20)}`,
      path,
      json: { message: 'Hello', [field]: 'x' },
    }),
  ),
  {
    title: `${path.slice(13)} 100 001 characters`,
    path,
    json: { message: 'x'.repeat(100_001) },
    status: 413,
    code: 'too_large' as const,
  },
  {
    title: `${path.slice(13)} metadata over 16 KiB`,
    path,
    json: { message: 'x', metadata: { a: 'é'.repeat(8190) } },
    status: 413,
    code: 'too_large' as const,
  },
  ...['', ' ', 'a b', 'x'.repeat(129), 'a/b', 'a, b', '"quoted"'].map((key) => ({
    title: `${path.slice(13)} Idempotency-Key ${show(key)}`,
    path,
    headers: { 'idempotency-key': key },
    json: { message: 'x' },
  })),
  {
    title: `${path.slice(13)} two different keys`,
    path,
    headers: { 'idempotency-key': 'one' },
    json: { message: 'x', client_message_id: 'two' },
  },
])

const toolFields: readonly Row[] = [
  ...badToolResults.map((tool_results) => ({
    title: `tool_results: ${show(tool_results)}`,
    path: stream,
    json: { session_id: unknownId, tool_results },
  })),
  {
    title: 'tool_results without a session',
    path: stream,
    json: { tool_results: [{ call_id: 'a', output: 1 }] },
  },
  {
    title: 'tools over 64 KiB',
    path: stream,
    json: { message: 'x', tools: [{ ...tool, description: 'x'.repeat(64 * 1024) }] },
    status: 413,
    code: 'too_large',
  },
  {
    title: 'tool_results over 256 KiB',
    path: stream,
    json: { session_id: unknownId, tool_results: [{ call_id: 'a', output: 'x'.repeat(256 * 1024) }] },
    status: 413,
    code: 'too_large',
  },
]

const bodies: readonly Row[] = [
  ...['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x', 'text/json', 'x', ''].map(
    (type) => ({
      title: `content type ${show(type)}`,
      path: stream,
      headers: { 'content-type': type },
      text: '{"message":"x"}',
    }),
  ),
  { title: 'a compressed body', path: stream, headers: { 'content-encoding': 'gzip' }, text: '\u001f\u008b\b' },
  {
    title: 'a form for a stop',
    path: `/api/v1/runs/${unknownId}/stop`,
    headers: { 'content-type': 'text/plain' },
    text: 'x',
  },
  {
    title: 'a body of more than 2 MiB',
    path: stream,
    text: `{"message":"${'x'.repeat(2 * 1024 * 1024)}"}`,
    status: 413,
    code: 'too_large',
  },
]

const badSessionFields: Readonly<Record<string, readonly unknown[]>> = {
  id: [...wrongTypes, ...malformedIds],
  external_id: [...wrongTypes, '', 'x'.repeat(256), '\u0000'],
  kind: [...wrongTypes, '', 'a b', 'x'.repeat(65)],
  input: [null, 5, [], {}],
  context: [null, 5, 'x', []],
  mode: [...wrongTypes, 'turbo'],
  title: [...wrongTypes, '', 'x'.repeat(501), '\u0000', ' \n '],
  metadata: [null, 5, 'x', []],
  status: ['completed'],
  user_id: ['somebody'],
}

const sessionFields: readonly Row[] = [
  ...Object.entries(badSessionFields).flatMap(([field, values]) =>
    values.map((value) => ({ title: `session ${field}: ${show(value)}`, path: sessions, json: { [field]: value } })),
  ),
  ...['metadata', 'context'].map((field) => ({
    title: `session ${field} over 16 KiB`,
    path: sessions,
    json: { [field]: { a: 'x'.repeat(16_384) } },
    status: 413,
    code: 'too_large' as const,
  })),
  {
    title: 'session input of 100 001 characters',
    path: sessions,
    json: { input: 'x'.repeat(100_001) },
    status: 413,
    code: 'too_large',
  },
]

const get = (path: string, expected: Partial<Row> = {}): Row => ({
  title: path.slice(0, 90),
  method: 'GET',
  path,
  ...expected,
})

const badTimes = [
  '',
  'x',
  'today',
  'infinity',
  '-infinity',
  '2025',
  '2025-01-01',
  '2025-13-01T00:00:00Z',
  '2025-02-30T00:00:00Z',
]

const queries: readonly Row[] = [
  ...badTimes.flatMap((time) => [get(`${sessions}?from=${time}`), get(`${sessions}?to=${time}`)]),
  ...['0', '101', 'abc', '-1', '1.5', '', '1e9', 'null', 'Infinity', '99999999999999999999'].flatMap((limit) => [
    get(`${sessions}?limit=${limit}`),
    get(`${sessions}/{own}/messages?limit=${limit}`),
  ]),
  ...['-1', '10001', 'x', '1.5'].map((offset) => get(`${sessions}?offset=${offset}`)),
  ...['status=deleted2', 'status=', 'mode=turbo', 'archived=maybe', 'archived=', `kind=${'x'.repeat(65)}`].map(
    (query) => get(`${sessions}?${query}`),
  ),
  ...['color=red', '__proto__=x', 'limit[]=5', 'constructor=x'].flatMap((query) => [
    get(`${sessions}?${query}`),
    get(`${sessions}/{own}/messages?${query}`),
    get(`/api/v1/runs/${unknownId}/events?${query}`),
    get(`${stream}?message=x&client_message_id=k&${query}`),
  ]),
  ...['limit=5&limit=6', 'cursor=a&cursor=b', 'kind=a&kind=b', 'from=x&from=y', 'status=created&status=running'].map(
    (query) => get(`${sessions}?${query}`),
  ),
  get(`/api/v1/runs/${unknownId}/events?after=1-1&after=1-2`),
]

const badSessionCursors = [
  '',
  '%00',
  '!!!!',
  'bm90IGpzb24',
  'x'.repeat(513),
  ...[
    null,
    {},
    5,
    'x',
    [],
    [1, 2],
    ['2025-01-01T00:00:00.000000Z'],
    ['2025-01-01T00:00:00.000000Z', 'x'],
    ['2025-01-01T00:00:00.000000Z', null],
    ['2025-01-01T00:00:00Z', unknownId],
    ['infinity', unknownId],
    ['-infinity', unknownId],
    ['2025-99-99T99:99:99.000000Z', unknownId],
    ['0000-01-01T00:00:00.000000Z', unknownId],
    ['999999-01-01T00:00:00.000000Z', unknownId],
    ["2025-01-01T00:00:00.000000Z' or true --", unknownId],
  ].map(cursorOf),
]

const badMessageCursors = [
  '',
  '!!!!',
  ...[
    null,
    {},
    5,
    [],
    ['1'],
    [-1],
    [1.5],
    [1e300],
    [2_147_483_648],
    [null],
    [[1]],
    ['2025-01-01T00:00:00.000000Z', unknownId],
  ].map(cursorOf),
]

const cursors: readonly Row[] = [
  ...badSessionCursors.map((cursor) => get(`${sessions}?cursor=${cursor}`)),
  ...badMessageCursors.map((cursor) => get(`${sessions}/{own}/messages?cursor=${cursor}`)),
]

const chatQueries: readonly Row[] = [
  'message=x',
  'client_message_id=k',
  'message=&client_message_id=k',
  'message=%00&client_message_id=k',
  'message=%20&client_message_id=k',
  'message=x&client_message_id=',
  'message=x&client_message_id=a%20b',
  'message=x&message=y&client_message_id=k',
  'message=x&client_message_id=k&client_message_id=l',
  'message=x&client_message_id=k&session_id=x',
  'message=x&client_message_id=k&parent_id=x',
  'message=x&client_message_id=k&mode=turbo',
  'message=x&client_message_id=k&metadata=%7B%7D',
  'message=x&client_message_id=k&model=nobody:gpt',
  'message=x&client_message_id=k&on_disconnect=never',
].map((query) => get(`${stream}?${query}`))

const paths: readonly Row[] = [
  ...['x', '1', unknownId.replaceAll('-', ''), `${unknownId}0`, 'x'.repeat(200), '%00', '..%2f', 'null'].flatMap(
    (id) => [
      get(`${sessions}/${id}`),
      get(`${sessions}/${id}/messages`),
      get(`/api/v1/runs/${id}`),
      get(`/api/v1/runs/${id}/events`),
      { title: `stop of session ${id}`, path: `${sessions}/${id}/stop` },
      { title: `stop of run ${id}`, path: `/api/v1/runs/${id}/stop` },
    ],
  ),
  ...['/%zz', '/%', `${sessions}/`, `${sessions}/%E0%A4%A`, `${sessions}/%ff`].map((path) => get(path)),
  ...[
    ['GET', '/nothing'],
    ['GET', '/api/v1'],
    ['GET', '/api/v2/sessions'],
    ['GET', '//api/v1/sessions'],
    ['GET', '/API/V1/sessions'],
    ['GET', '/health'],
    ['POST', '/'],
    ['PUT', sessions],
    ['DELETE', sessions],
    ['GET', whole],
    ['PUT', stream],
    ['DELETE', stream],
    ['HEAD', sessions],
    ['OPTIONS', sessions],
    ['POST', `/api/v1/runs/${unknownId}`],
    ['PATCH', `/api/v1/runs/${unknownId}/events`],
  ].map(
    ([method, path]): Row => ({
      title: `${method} ${path}`,
      method: method!,
      path: path!,
      status: 404,
      code: 'not_found',
    }),
  ),
  {
    title: 'HEAD of the route that starts a run',
    method: 'HEAD',
    path: `${stream}?message=x&client_message_id=head`,
    status: 404,
    code: 'not_found',
  },
]

const tables: Readonly<Record<string, readonly Row[]>> = {
  'a body that is no JSON object is refused': malformedJson,
  'a chat message with a wrong field is refused, and so is one with a field that does not exist': chatFields,
  'answers to tools, and tools, that are wrong or too large are refused': toolFields,
  'a body of another type, or too large, is refused': bodies,
  'a session with a wrong field is refused': sessionFields,
  'a query with a wrong, unknown or repeated field is refused': queries,
  'a cursor that is not of an earlier page is refused': cursors,
  'a start by GET with a wrong query is refused': chatQueries,
  'a URL that names nothing is refused': paths,
}

for (const database of databases()) {
  test(`on ${database}`, async (t) => {
    const upstream = await startFakeUpstream()
    t.teardown(() => upstream.close())
    const lines: string[] = []
    const gateway = await startGateway(t, {
      agents: [passOn('xy')],
      database,
      logStream: { write: (line) => lines.push(line) },
      env: {
        OPENAI_BASE_URL: upstream.url,
        OPENAI_API_KEY: apiKey,
        LOG_LEVEL: 'trace',
        FRAME_MS: '5',
        CORS_ORIGINS: '',
      },
    })
    const own: Client = createClient(gateway.url, { 'x-visitor-token': visitor })
    const ownSession: string = (await own.post(sessions, { title: 'canary-of-a-title' })).body.id

    for (const [title, rows] of Object.entries(tables)) {
      await t.test(title, async (t) => {
        const calls = upstream.calls.length
        for (const row of rows) {
          const before = await countRows(gateway)
          await checkRow(t, gateway, { ...row, path: row.path.replace('{own}', ownSession) })
          t.strictSame(await countRows(gateway), before, `${row.title}: nothing stored`)
        }
        t.equal(upstream.calls.length, calls, 'nobody asked upstream')
      })
    }

    await t.test('what is not HTTP, or more of it than fits, is refused with a problem document', async (t) => {
      const before = await countRows(gateway)
      const calls = upstream.calls.length
      const host = 'Host: x\r\nConnection: close\r\n'
      const json = `${host}Content-Type: application/json\r\n`
      const broken: readonly (readonly [title: string, bytes: string, status: number, code: ErrorCode])[] = [
        ['not HTTP', 'hello\r\n\r\n', 400, 'invalid_request'],
        ['the beginning of TLS', '\u0016\u0003\u0001\u0002\u0000', 400, 'invalid_request'],
        ['HTTP/2 without being asked', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 400, 'invalid_request'],
        ['a method that does not exist', `BREW / HTTP/1.1\r\n${host}\r\n`, 400, 'invalid_request'],
        ['a blank in the path', `GET /a b HTTP/1.1\r\n${host}\r\n`, 400, 'invalid_request'],
        ['a header without a name', `GET / HTTP/1.1\r\n${host}: x\r\n\r\n`, 400, 'invalid_request'],
        ['NUL in a header', `GET / HTTP/1.1\r\n${host}X: a\u0000b\r\n\r\n`, 400, 'invalid_request'],
        ['a header of 17 KiB', `GET / HTTP/1.1\r\n${host}X: ${'x'.repeat(17_000)}\r\n\r\n`, 431, 'too_large'],
        ['a URL of 17 KiB', `GET /${'x'.repeat(17_000)} HTTP/1.1\r\n${host}\r\n`, 431, 'too_large'],
        [
          'a token of 17 KiB',
          `GET ${sessions} HTTP/1.1\r\n${host}Authorization: Bearer ${'x'.repeat(17_000)}\r\n\r\n`,
          431,
          'too_large',
        ],
        ['a negative length', `POST ${stream} HTTP/1.1\r\n${json}Content-Length: -1\r\n\r\n`, 400, 'invalid_request'],
        [
          'two lengths',
          `POST ${stream} HTTP/1.1\r\n${json}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}`,
          400,
          'invalid_request',
        ],
        [
          'a length and chunks: two readings of one request',
          `POST ${stream} HTTP/1.1\r\n${json}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`,
          400,
          'invalid_request',
        ],
        [
          'a chunk without a size',
          `POST ${stream} HTTP/1.1\r\n${json}Transfer-Encoding: chunked\r\n\r\nzz\r\n`,
          400,
          'invalid_request',
        ],
        [
          'an announced body of 3 MB',
          `POST ${stream} HTTP/1.1\r\n${json}Content-Length: 3000000\r\n\r\n`,
          413,
          'too_large',
        ],
        [
          'chunks of more than 2 MiB',
          `POST ${stream} HTTP/1.1\r\n${json}Transfer-Encoding: chunked\r\n\r\n200001\r\n${' '.repeat(0x200001)}\r\n`,
          413,
          'too_large',
        ],
      ]
      for (const [title, bytes, status, code] of broken) {
        checkProblem(t, await sendRaw(gateway.url, Buffer.from(bytes, 'latin1')), title, status, code)
      }
      t.strictSame(await countRows(gateway), before, 'nothing stored')
      t.equal(upstream.calls.length, calls, 'nobody asked upstream')
    })

    await t.test(
      'garbage behind a request whose answer streams cuts the stream, and is not answered in it',
      async (t) => {
        const answering = upstream.calls.length
        upstream.answer(() => say({ tokens: 2000, paceMs: 5 }))
        const socket = openSocket(gateway.url)
        const body = JSON.stringify({ message: 'Go on', on_disconnect: 'stop' })
        socket.write(
          `POST ${stream} HTTP/1.1\r\nHost: x\r\nX-Visitor-Token: ${visitor}\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
        )
        await socket.until((text) => text.includes('event: delta'))
        socket.write('\u0000\u0001 garbage\r\n\r\n')
        const text = await socket.closed
        t.equal(readAnswer(text).status, 200)
        t.notMatch(text.slice(20), /HTTP\/1\.1/, 'no second status line within the body')
        t.notMatch(text, /\r\n0\r\n\r\n$/, 'the body does not end cleanly')
        await (await upstream.call(answering)).aborted
      },
    )

    await t.test('a message of exactly 100 000 characters is accepted, even as escaped emoji', async (t) => {
      upstream.answer(() => say({ text: 'Long' }))
      const emoji = '😀'.repeat(100_000)
      const texts = [
        ['x'.repeat(100_000), JSON.stringify({ message: 'x'.repeat(100_000) })],
        [emoji, `{"message":"${'\\ud83d\\ude00'.repeat(100_000)}"}`],
        [emoji, JSON.stringify({ message: emoji })],
      ]
      for (const [message, text] of texts) {
        const answer = await post(gateway, whole, text!)
        t.equal(answer.status, 200)
        t.ok(answer.body.user_message.content === message, 'stored as it was')
        t.ok(upstream.calls.at(-1)?.message === message, 'asked as it was')
      }
    })

    await t.test('NUL and lone surrogates are mended once, and the model gets what is stored', async (t) => {
      upstream.answer(() => say({ text: 'Mended' }))
      const answer = await post(
        gateway,
        whole,
        '{"message":"a\\u0000b\\ud800c\\udc00 \\ud83d\\ude00","metadata":{"k\\u0000\\ud800":["v\\u0000\\udfff",{"n":"\\u0000"}]},"agent_id":"x\\u0000y"}',
      )
      t.equal(answer.status, 200)
      const mended = 'ab\ufffdc\ufffd 😀'
      t.equal(answer.body.user_message.content, mended)
      t.strictSame(answer.body.user_message.parts, [{ kind: 'text', text: mended }])
      t.strictSame(answer.body.user_message.metadata, { 'k\ufffd': ['v\ufffd', { n: '' }] })
      t.equal(answer.body.message.agent_id, 'xy')
      t.equal(answer.body.session.title, mended)
      t.equal(upstream.calls.at(-1)?.message, mended)
      const [question] = await own.messages(answer.body.session.id)
      t.equal(question.content, mended, 'and it is read back so')

      const session = await post(
        gateway,
        sessions,
        '{"title":"t\\u0000\\ud800","input":"i\\u0000\\udc00","context":{"c\\u0000":"\\ud800"},"metadata":{"m":"\\u0000"},"external_id":"e\\u0000\\ud800"}',
      )
      t.equal(session.status, 201)
      t.match(session.body, { title: 't\ufffd', input: 'i\ufffd', external_id: 'e\ufffd' })
      t.strictSame(session.body.context, { c: '\ufffd' })
      t.strictSame(session.body.metadata, { m: '' })

      const byGet = await own.watch(`${stream}?message=a%00b%F0%9F%98%80&client_message_id=mended`)
      await byGet.until(isDone)
      t.equal(upstream.calls.at(-1)?.message, 'ab😀')
    })

    await t.test('JSON of 32 levels is accepted and kept', async (t) => {
      upstream.answer(() => say({ text: 'Deep' }))
      const answer = await post(gateway, whole, `{"message":"x","metadata":${nested(31)}}`)
      t.equal(answer.status, 200)
      t.equal(JSON.stringify(answer.body.user_message.metadata), nested(31))
    })

    await t.test('metadata of exactly 16 KiB is accepted', async (t) => {
      upstream.answer(() => say({ text: 'Full' }))
      const metadata = { a: 'é'.repeat((16 * 1024 - '{"a":""}'.length) / 2) }
      t.equal((await own.post(whole, { message: 'x', metadata })).status, 200)
      t.equal((await own.post(sessions, { metadata, context: metadata })).status, 201)
    })

    await t.test('an id in capitals is the same id', async (t) => {
      upstream.answer(() => say({ text: 'Same' }))
      const id = 'abcdef01-2345-7abc-8def-abcdefabcdef'
      const first = await own.post(whole, { message: 'One', session_id: id.toUpperCase() })
      t.equal(first.status, 200)
      t.equal(first.body.session.id, id)
      const second = await own.post(whole, {
        message: 'Two',
        session_id: id,
        parent_id: first.body.message.id.toUpperCase(),
        client_message_id: 'capitals',
      })
      t.equal(second.body.session.message_count, 4)
      const again = await own.post(whole, {
        message: 'Two',
        session_id: id.toUpperCase(),
        parent_id: first.body.message.id.toUpperCase(),
        client_message_id: 'capitals',
      })
      t.equal(again.body.run.id, second.body.run.id, 'the same key with the same id is the same run')
      t.equal((await own.get(`${sessions}/${id.toUpperCase()}`)).body.id, id)
      t.equal((await own.get(`/api/v1/runs/${first.body.run.id.toUpperCase()}`)).body.id, first.body.run.id)
      const created = await own.post(sessions, { id: id.toUpperCase() })
      t.match(created, { status: 200, body: { id } })
    })

    await t.test('a POST without a body may say that it is JSON', async (t) => {
      const stop = { method: 'POST', headers: { 'x-visitor-token': visitor, 'content-type': 'application/json' } }
      t.equal((await fetch(`${gateway.url}${sessions}/${ownSession}/stop`, stop)).status, 204)
    })

    await t.test('none of it made the gateway fail, and no log line holds words or secrets', async (t) => {
      t.ok(lines.length > 500, 'there are lines')
      t.same(
        lines.filter((line) => /"level":"(error|fatal)"/.test(line)),
        [],
      )
      const canaries = [visitor, apiKey, 'canary', 'Hello', 'Go on', '😀', 'nobody:gpt', 'message=x']
      t.equal(lines.filter((line) => line.includes('127.0.0.1')).length, 1, 'the only address is our own, at the start')
      for (const canary of canaries) {
        t.same(
          lines.filter((line) => line.includes(canary)),
          [],
          canary,
        )
      }
    })
  })
}

async function post(gateway: Gateway, path: string, text: string) {
  const response = await fetch(`${gateway.url}${path}`, {
    method: 'POST',
    headers: { 'x-visitor-token': visitor, 'content-type': 'application/json' },
    body: text,
  })
  return { status: response.status, body: JSON.parse(await response.text()) }
}

async function checkRow(t: Test, gateway: Gateway, row: Row): Promise<void> {
  const { title, method = 'POST', path, json, status = 400, code = 'invalid_request' } = row
  const bytes = Buffer.from(row.text ?? (json === undefined ? '' : JSON.stringify(json)))
  const hasBody = row.text !== undefined || json !== undefined
  const headers = Object.entries({
    host: 'x',
    connection: 'close',
    'x-visitor-token': visitor,
    ...(hasBody ? { 'content-type': 'application/json', 'content-length': String(bytes.length) } : {}),
    ...row.headers,
  }).map(([name, value]) => `${name}: ${value}\r\n`)
  const head = Buffer.from(`${method} ${path} HTTP/1.1\r\n${headers.join('')}\r\n`)
  const answer = await sendRaw(gateway.url, Buffer.concat([head, bytes]))
  checkProblem(t, answer, title, status, code, method === 'HEAD')
}

function checkProblem(
  t: Test,
  answer: RawAnswer,
  title: string,
  status: number,
  code: ErrorCode,
  isHead = false,
): void {
  t.equal(answer.status, status, `${title}: ${status}, not ${answer.text.slice(0, 400)}`)
  t.match(answer.headers['content-type'], /^application\/problem\+json/, `${title}: a problem document`)
  if (isHead) return
  const document = JSON.parse(Buffer.from(answer.body, 'latin1').toString())
  t.match(document, { type: 'about:blank', title: String, detail: String, retryable: Boolean }, title)
  t.strictSame({ status: document.status, code: document.code }, { status, code }, title)
  t.match(document.request_id, /^[0-9a-f-]{36}$/, `${title}: a request id`)
  t.equal(answer.headers['x-request-id'], document.request_id, `${title}: the same id in the header`)
  t.ok(document.detail.length < 300, `${title}: a detail that fits on a screen`)
}
