/**
 * Requests made from an OpenAPI document: valid ones, nearly valid ones, and hostile ones. Nothing here knows a route; what
 * the document names is asked, so a new route is fuzzed as soon as it is documented.
 *
 * A request holds `@session3@` and the like where an id of something real belongs; whoever sends it puts the ids in, so
 * that the same seed makes the same requests whatever ids the gateway has made.
 */
import fc from 'fast-check'

export interface Schema {
  readonly type?: string
  readonly format?: string
  readonly pattern?: string
  readonly const?: unknown
  readonly enum?: readonly unknown[]
  readonly minLength?: number
  readonly maxLength?: number
  readonly minimum?: number
  readonly maximum?: number
  readonly properties?: Readonly<Record<string, Schema>>
  readonly required?: readonly string[]
  readonly items?: Schema
  readonly maxItems?: number
  readonly anyOf?: readonly Schema[]
  readonly oneOf?: readonly Schema[]
}

export interface Operation {
  readonly method: string
  readonly path: string
  readonly parameters: readonly {
    readonly name: string
    readonly in: string
    readonly required?: boolean
    readonly schema: Schema
  }[]
  /** Of JSON. */
  readonly body: Schema | undefined
  /** Content types of a body. */
  readonly types: readonly string[]
  /** Documented statuses: `200`, `4XX`. */
  readonly statuses: readonly string[]
}

export interface FuzzRequest {
  /** The operation that it began as. */
  readonly operation: Operation
  readonly method: string
  /** Without the query. */
  readonly path: string
  readonly query: readonly string[]
  readonly headers: readonly (readonly [name: string, value: string])[]
  /** Each unit is a byte when `binary`, otherwise UTF-8 is made of it. */
  readonly body: { readonly text: string; readonly binary: boolean } | undefined
}

/** What `@…@` may stand for. */
export const refPattern = /@(session|run|message|cursor|event|key|ticket|visitor|user)(\d)@/g

/** What a named thing of every session is called. */
export const knownName = 'notes'

const refKinds = ['session', 'run', 'message'] as const
const ref = (kind: string) => fc.integer({ min: 0, max: 3 }).map((n) => `@${kind}${n}@`)
const anyId = fc.oneof({ weight: 6, arbitrary: fc.constantFrom(...refKinds).chain(ref) }, fc.uuid())

const nested = (levels: number, open: string, close: string) => `${open.repeat(levels)}1${close.repeat(levels)}`

const hostileText = fc.oneof(
  { weight: 3, arbitrary: fc.string({ unit: 'binary', maxLength: 40 }) },
  {
    weight: 4,
    arbitrary: fc.constantFrom(
      ...['', ' ', '\u0000', 'a\u0000b', '\ud800', '\udfff\ud800', '\ufeff', '\u202e', '\r\nX-Injected: 1'],
      ...['__proto__', 'constructor', 'prototype', 'toString', 'hasOwnProperty', 'null', 'undefined', 'NaN', '-0'],
      ...["' or 1=1 --", "'; drop table chat_sessions; --", '%', '%_%', '\\', '$1', '{{7*7}}', '#{7*7}', '<script>'],
      ...['../../etc/passwd', '..%2f..%2f', 'file:///etc/passwd', 'http://127.0.0.1:1/', '🦄'.repeat(60), 'İ', 'ﷺ'],
      ...['9'.repeat(400), '1e309', '-1', '0', '1.5', '2147483648', '9223372036854775808', 'infinity', 'x'.repeat(300)],
      ...['0000-01-01T00:00:00Z', '9999-12-31T23:59:60Z', '2025-02-30T00:00:00Z', '294277-01-01T00:00:00Z'],
      ...['1-1', '0-0', '99999999999-1', '-1-1', '1-', 'W/"1"', '"1"', '*', '你好', 'a & b | !', ':*', "'a' <-> 'b'"],
    ),
  },
  { weight: 1, arbitrary: fc.constantFrom(2000, 20_000, 150_000).map((units) => 'x'.repeat(units)) },
)

const hostileKey = fc.oneof(
  fc.constantFrom(
    '__proto__',
    'constructor',
    'prototype',
    'toString',
    '',
    ' ',
    '\u0000',
    '\ud800',
    'owner',
    'user_id',
    'id',
  ),
  fc.string({ unit: 'binary', maxLength: 10 }),
)

/** A member under that name, also when it is `__proto__`. */
const withMember = (object: object, key: string, value: unknown): object =>
  Object.defineProperty({ ...object }, key, { value, enumerable: true, configurable: true, writable: true })

const hostileValue: fc.Arbitrary<unknown> = fc.oneof(
  hostileText,
  anyId,
  fc.constantFrom<unknown>(null, true, false, 0, -1, 1.5, 1e308, 2 ** 53, -(2 ** 63), [], {}, [[]], [null], { a: {} }),
  fc.jsonValue({ maxDepth: 4 }),
  fc.tuple(hostileKey, fc.jsonValue({ maxDepth: 1 })).map(([key, value]) => withMember({}, key, value)),
  fc.integer({ min: 25, max: 70 }).map((levels) => JSON.parse(nested(levels, '{"a":', '}')) as unknown),
  fc.integer({ min: 10, max: 300 }).map((size) => Array.from({ length: size }, (_, i) => i)),
)

/** A value as the schema wants it. @param name of the field, which tells what its text may be */
function fitting(schema: Schema, name: string): fc.Arbitrary<unknown> {
  const options = schema.anyOf ?? schema.oneOf
  if (options !== undefined && schema.properties !== undefined)
    return fc.oneof(...options.map((_, n) => withOption(schema, options, n)))
  if (options !== undefined) return fc.oneof(...options.map((option) => fitting(option, name)))
  if (schema.const !== undefined) return fc.constant(schema.const)
  if (schema.enum !== undefined) return fc.constantFrom(...schema.enum)
  switch (schema.type) {
    case 'string':
      return textOf(schema, name)
    case 'integer':
      return fc.integer({ min: schema.minimum ?? -1000, max: schema.maximum ?? 1000 })
    case 'number':
      return fc.double({ min: schema.minimum ?? -1000, max: schema.maximum ?? 1000, noNaN: true })
    case 'boolean':
      return fc.boolean()
    case 'null':
      return fc.constant(null)
    case 'array':
      return fc.array(fitting(schema.items ?? {}, name), { maxLength: Math.min(5, schema.maxItems ?? 5) })
    case 'object':
      return objectOf(schema)
    default:
      return fc.jsonValue({ maxDepth: 2 })
  }
}

function objectOf({ properties, required = [] }: Schema): fc.Arbitrary<object> {
  if (properties === undefined) return fc.dictionary(fc.string({ maxLength: 8 }), fc.jsonValue({ maxDepth: 2 }))
  const members = Object.entries(properties).map(([name, schema]) => {
    const given = required.includes(name) ? fc.constant(0) : fc.nat(3)
    return fc.tuple(given, fitting(schema, name)).map(([n, value]) => (n === 0 ? [[name, value] as const] : []))
  })
  return fc.tuple(...members).map((given) => Object.fromEntries(given.flat()))
}

/** An object that has what one of the options requires, and nothing of the others. */
function withOption(schema: Schema, options: readonly Schema[], chosen: number): fc.Arbitrary<object> {
  const { required = [] } = options[chosen] ?? {}
  const others = options.flatMap((option) => option.required ?? []).filter((name) => !required.includes(name))
  const properties = Object.entries(schema.properties ?? {}).filter(([name]) => !others.includes(name))
  return objectOf({ properties: Object.fromEntries(properties), required: [...(schema.required ?? []), ...required] })
}

function textOf(schema: Schema, name: string): fc.Arbitrary<string> {
  const { minLength = 0, maxLength = 60 } = schema
  if (schema.format === 'uuid') {
    const [kind] = /session|run|message/.exec(name) ?? []
    return kind === undefined ? anyId : fc.oneof({ weight: 5, arbitrary: ref(kind) }, anyId)
  }
  if (schema.format === 'date-time') {
    const [min, max] = [new Date('2020-01-01'), new Date('2030-01-01')]
    return fc.date({ min, max, noInvalidDate: true }).map((date) => date.toISOString())
  }
  if (schema.pattern !== undefined) {
    const pattern = new RegExp(schema.pattern)
    // fast-check makes no text for a lookahead: what it makes without is sorted out.
    const fits = fc
      .stringMatching(new RegExp(schema.pattern.replaceAll(/\(\?[!=][^)]*\)/g, '')))
      .filter((text) => pattern.test(text))
    if (name === 'name') return fc.oneof(fc.constant(knownName), fits)
    return name === 'client_message_id' ? fc.oneof(fits, ref('key')) : fits
  }
  if (name === 'cursor') return fc.oneof(ref('cursor'), fc.base64String({ maxLength: 60 }))
  if (name === 'after' || name === 'last-event-id')
    return fc.oneof(ref('event'), fc.constantFrom('1-1', '1-3', '2-1', '9-9', ''))
  if (name === 'ticket') return ref('ticket')
  if (name === 'if-match' || name === 'if-none-match') return fc.constantFrom('"1"', '"2"', '"3"', '*', 'W/"1"', '1')
  return fc.string({ unit: 'grapheme', minLength, maxLength: Math.min(60, maxLength) })
}

/** The value with one thing wrong. */
function spoil(value: unknown): fc.Arbitrary<unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return hostileValue
  const keys = Object.keys(value)
  const replaced =
    keys.length === 0
      ? hostileValue
      : fc.tuple(fc.constantFrom(...keys), hostileValue).map(([key, hostile]) => withMember(value, key, hostile))
  const added = fc.tuple(hostileKey, hostileValue).map(([key, hostile]) => withMember(value, key, hostile))
  const removed = fc
    .constantFrom(...(keys.length === 0 ? [''] : keys))
    .map((key) => Object.fromEntries(Object.entries(value).filter(([name]) => name !== key)))
  return fc.oneof({ weight: 4, arbitrary: replaced }, added, removed)
}

const brokenText = fc.oneof(
  fc.constantFrom(
    ...[
      '',
      ' ',
      '{',
      '[',
      '{"a":}',
      '{"a":1,}',
      "{'a':1}",
      'null',
      '5',
      'true',
      '"x"',
      'NaN',
      '\ufeff{}',
      '{}{}',
      '{"a":1e999}',
    ],
    ...['{"a":1,"a":2}', '{"message":"x","message":"y"}', '{"message":"\\ud800"}', '{"message":"\\u0000"}', '\u0000'],
    ...['{"__proto__":{"a":1}}', '{"message":"x","\\u005f_proto__":1}', '{"constructor":{"prototype":{"a":1}}}'],
    nested(1000, '[', ']'),
    nested(100_000, '{"a":', '}'),
    `{"message":"x","metadata":${nested(50_000, '{"a":', '}')}}`,
    '['.repeat(100_000),
  ),
  fc.string({ unit: 'binary', maxLength: 60 }),
)

function bodyOf(schema: Schema | undefined): fc.Arbitrary<FuzzRequest['body']> {
  const text = (value: unknown) => ({ text: JSON.stringify(value) ?? '', binary: false })
  const broken = fc.oneof(
    brokenText.map((body) => ({ text: body, binary: false })),
    fc.uint8Array({ maxLength: 60 }).map((bytes) => ({ text: Buffer.from(bytes).toString('latin1'), binary: true })),
  )
  if (schema === undefined) {
    return fc.oneof({ weight: 12, arbitrary: fc.constant(undefined) }, hostileValue.map(text), broken)
  }
  const valid = fitting(schema, '')
  return fc.oneof(
    { weight: 10, arbitrary: valid.map(text) },
    { weight: 9, arbitrary: valid.chain(spoil).map(text) },
    { weight: 1, arbitrary: hostileValue.map(text) },
    { weight: 2, arbitrary: broken },
    { weight: 1, arbitrary: fc.constant(undefined) },
  )
}

const encode = (text: string): string => encodeURIComponent(text.toWellFormed()).replaceAll('%40', '@')

const brokenQuery = fc.oneof(
  fc.constantFrom(
    ...[
      '',
      '&',
      '&&&',
      '=',
      '==x',
      '%',
      '%zz=1',
      'a=%ff',
      '__proto__=1',
      '__proto__[a]=1',
      'a[]=1&a[]=2',
      'constructor=x',
    ],
    ...['limit=1&limit=2', 'cursor=%00', 'q=%ed%a0%80', '?x', 'x#y', 'ticket=x', `x=${'y'.repeat(9000)}`],
    Array.from({ length: 1500 }, (_, i) => `p${i}=1`).join('&'),
  ),
  fc.string({ unit: fc.constantFrom(...'abc=&%+[];:/?.'), maxLength: 30 }),
)

function queryOf({ parameters }: Operation): fc.Arbitrary<readonly string[]> {
  const fields = parameters.filter((parameter) => parameter.in === 'query')
  const pairs = fields.map(({ name, required = false, schema }) =>
    fc
      .tuple(
        required
          ? fc.constantFrom(true, true, true, true, true, true, true, false)
          : fc.constantFrom(true, false, false),
        fc.oneof({ weight: 5, arbitrary: fitting(schema, name).map(String) }, hostileText),
      )
      .map(([given, value]) => (given ? [`${name}=${encode(value)}`] : [])),
  )
  const wellMade = fc.tuple(...pairs).map((given) => given.flat())
  return fc.oneof(
    { weight: 12, arbitrary: wellMade },
    fc.tuple(wellMade, brokenQuery).map(([given, broken]) => [...given, broken]),
  )
}

const brokenPath = fc.constantFrom(
  ...[
    '/',
    '//',
    '/.',
    '/..',
    '/%2e%2e/%2e%2e/etc/passwd',
    '/%',
    '/%zz',
    '/%00',
    '/%ff',
    '/%E0%A4%A',
    '/api',
    '/api/v1',
    '/api/v1/',
  ],
  ...['/API/V1/SESSIONS', '//api/v1/sessions', '/api/v1/sessions/', '/api/v1/sessions//messages', '/api/v1//sessions'],
  ...[
    '/docs/../../package.json',
    '/docs/static/..%2f..%2f..%2fpackage.json',
    '/page/main.ts/..',
    '/index.html',
    '/.env',
    '/*',
  ],
  ...[
    `/api/v1/sessions/${'x'.repeat(500)}`,
    '/api/v1/sessions/;x=1',
    '/api/v1/sessions/%2F',
    'http://other.example/',
    '*',
  ],
  ...[
    '/docs',
    '/docs/',
    '/docs/json',
    '/docs/static/index.html',
    '/openapi.json',
    '/favicon.svg',
    '/__proto__',
    '/constructor',
  ],
)

function pathOf({ path, parameters }: Operation): fc.Arbitrary<string> {
  const pieces = path.split(/(\{\w+\})/).map((piece) => {
    const name = /^\{(\w+)\}$/.exec(piece)?.[1]
    if (name === undefined) return fc.constant(piece)
    const schema = parameters.find((parameter) => parameter.in === 'path' && parameter.name === name)?.schema ?? {}
    const [kind] = name === 'id' ? (/\/(session|run|message)s\/\{id\}/.exec(path)?.slice(1) ?? []) : []
    const fits = kind === undefined ? fitting(schema, name).map(String) : ref(kind)
    return fc.oneof(
      { weight: 14, arbitrary: fits.map(encode) },
      { weight: 2, arbitrary: hostileText.map((text) => encode(text.slice(0, 3000))) },
      fc.constantFrom('%', '%zz', '%00', '..', '%2e%2e', '%2F', '.', '*', '%ff', '@session0@%00', '@session0@/'),
    )
  })
  return fc.oneof({ weight: 30, arbitrary: fc.tuple(...pieces).map((parts) => parts.join('')) }, brokenPath)
}

/** What a header may hold without breaking the framing of the request. */
const headerText = fc.oneof(
  fc.constantFrom(
    '',
    ' ',
    ',',
    ';',
    '"',
    '*',
    'null',
    '\t',
    '\u00ff',
    '%00',
    'a'.repeat(300),
    'x, y',
    '=',
    '-1',
    '1e9',
  ),
  fc.string({ unit: 'grapheme-ascii', maxLength: 40 }),
)

const oddHeader = fc.oneof(
  fc.tuple(
    fc.constantFrom(
      ...[
        'Origin',
        'Referer',
        'Sec-Fetch-Site',
        'Accept',
        'Accept-Encoding',
        'Accept-Language',
        'Cookie',
        'User-Agent',
        'Range',
      ],
      ...[
        'X-Forwarded-For',
        'X-Forwarded-Proto',
        'X-Forwarded-Host',
        'Forwarded',
        'X-Real-IP',
        'X-HTTP-Method-Override',
        'Via',
      ],
      ...[
        'Idempotency-Key',
        'If-Match',
        'If-None-Match',
        'If-Modified-Since',
        'Last-Event-ID',
        'X-Request-Id',
        'Host',
        'TE',
      ],
      ...[
        'Access-Control-Request-Method',
        'Access-Control-Request-Headers',
        'X-Visitor-Token',
        'Authorization',
        'Cache-Control',
      ],
    ),
    headerText,
  ),
  fc.constantFrom<[string, string]>(
    ['Expect', '100-continue'],
    ['Upgrade', 'websocket'],
    ['Upgrade', 'h2c'],
    ['Content-Encoding', 'gzip'],
    ['Content-Encoding', 'identity'],
    ['Sec-Fetch-Site', 'cross-site'],
    ['Range', 'bytes=0-0,5-,-1'],
    ['X-HTTP-Method-Override', 'DELETE'],
    ['X-Forwarded-For', '203.0.113.5, unknown, ::1'],
    ['__proto__', 'x'],
    ['constructor', 'x'],
    ['X-Nul', 'a\u0000b'],
  ),
)

const identityHeader: fc.Arbitrary<readonly (readonly [string, string])[]> = fc.oneof(
  { weight: 20, arbitrary: fc.constant([['X-Visitor-Token', '@visitor0@']] as const) },
  { weight: 2, arbitrary: fc.constant([['Cookie', 'visitor_token=@visitor0@']] as const) },
  { weight: 2, arbitrary: fc.constant([['Authorization', 'Bearer @user0@']] as const) },
  { weight: 2, arbitrary: fc.constant([['X-Visitor-Token', '@visitor1@']] as const) },
  {
    weight: 1,
    arbitrary: fc.constant([
      ['Authorization', 'Bearer @user0@'],
      ['X-Visitor-Token', '@visitor1@'],
    ] as const),
  },
  { weight: 1, arbitrary: fc.constant([]) },
  {
    weight: 1,
    arbitrary: fc
      .constantFrom(
        'Bearer x',
        'Bearer a.b.c',
        'Basic eDp5',
        'Bearer',
        '',
        `Bearer ${'x'.repeat(9000)}`,
        'bearer e30.e30.',
      )
      .map((value) => [['Authorization', value]] as const),
  },
)

const contentType = fc.oneof(
  { weight: 20, arbitrary: fc.constantFrom('application/json', 'application/json; charset=utf-8') },
  fc.constantFrom(
    ...[
      '',
      'text/plain',
      'application/x-www-form-urlencoded',
      'multipart/form-data; boundary=x',
      'application/problem+json',
    ],
    ...[
      'application/json; charset=utf-16',
      'APPLICATION/JSON',
      'application/json;',
      'application/json; x=',
      '*/*',
      '\u00ff/x',
    ],
  ),
)

const methods = [
  'GET',
  'HEAD',
  'POST',
  'PUT',
  'PATCH',
  'DELETE',
  'OPTIONS',
  'TRACE',
  'PROPFIND',
  'QUERY',
  'get',
] as const

/** Any request to this operation. */
function requestTo(operation: Operation): fc.Arbitrary<FuzzRequest> {
  const own = operation.parameters
    .filter((parameter) => parameter.in === 'header')
    .map(({ name, schema }) =>
      fc
        .tuple(fc.constantFrom(true, false, false), fitting(schema, name).map(String), headerText)
        .map(([given, fits, odd]): [string, string][] =>
          given ? [[name, /[^\t\x20-\x7e]/.test(fits) ? odd : fits]] : [],
        ),
    )
  return fc
    .record({
      method: fc.oneof({ weight: 30, arbitrary: fc.constant(operation.method) }, fc.constantFrom(...methods)),
      path: pathOf(operation),
      query: queryOf(operation),
      identity: identityHeader,
      own: fc.tuple(...own),
      odd: fc.oneof({ weight: 4, arbitrary: fc.constant([]) }, fc.array(oddHeader, { maxLength: 4 })),
      type: operation.types.length < 2 ? contentType : fc.oneof(contentType, fc.constantFrom(...operation.types)),
      body: bodyOf(operation.body),
    })
    .map(({ method, path, query, identity, own, odd, type, body }) => ({
      operation,
      method,
      path,
      query,
      headers: [...identity, ...own.flat(), ...odd, ...(body === undefined ? [] : [['Content-Type', type] as const])],
      body,
    }))
}

/** `count` requests that follow from the seed. Routes that change something come as often as those that read. */
export function makeRequests(operations: readonly Operation[], seed: number, count: number): readonly FuzzRequest[] {
  return fc.sample(fc.oneof(...operations.map(requestTo)), { seed, numRuns: count })
}
