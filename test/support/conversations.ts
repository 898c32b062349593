/** Conversations as an exported file holds them, made up by fast-check: every field, every kind of text. */
import fc from 'fast-check'
import { contentOf } from '../../src/log/event.ts'
import type { ExportedArtifact, ExportedMessage, ExportedSession } from '../../src/sessions/transfer.ts'
import type { Conversation } from '../../src/sessions/transfer-import.ts'

const awkward = [
  '\ufeff',
  '\ufeffbeginning',
  '👩‍👩‍👧‍👦',
  '日本語',
  '한국어',
  'مرحبا',
  'e\u0301',
  '\u2028\u2029',
  '\r\n\r',
  '```\n~~~~\n# x\n</div><!--',
  '"\\u0000"',
  '\u0001\u001f\u007f',
  '{x},"y"\\',
  'x'.repeat(20_000),
  '\u{10ffff}',
]

/** Text that may be stored as it is: well-formed, and without U+0000. */
export const words = (maxLength: number) =>
  fc
    .array(fc.oneof(fc.constantFrom(...awkward), fc.string({ unit: 'grapheme' }), fc.string({ unit: 'binary' })), {
      maxLength: 4,
    })
    .map((pieces) => pieces.join('').replaceAll('\0', '').toWellFormed().slice(0, maxLength).toWellFormed())

const maybe = <T>(arbitrary: fc.Arbitrary<T>) => fc.option(arbitrary, { nil: null })
const value = fc
  .jsonValue({ maxDepth: 3 })
  .map((json) =>
    JSON.parse(JSON.stringify(json).replaceAll('\\u0000', '').toWellFormed().replaceAll('"__proto__"', '"p"')),
  )
const object = fc.dictionary(fc.stringMatching(/^[a-zé ]{1,8}$/), value, { maxKeys: 3 })
const count = maybe(fc.integer({ min: 0, max: 1_000_000 }))
const time = fc
  .tuple(fc.date({ min: new Date('2001-01-01'), max: new Date('2026-01-01'), noInvalidDate: true }), fc.nat(999))
  .map(([date, micros]) => date.toISOString().replace('Z', `${String(micros).padStart(3, '0')}Z`))
const decimal = fc.tuple(fc.nat(1000), fc.nat(999_999)).map(([whole, part]) => `${whole}.${part}`)

const part = fc.oneof(
  fc.record({ kind: fc.constant('text' as const), text: words(30_000) }),
  fc.record({ kind: fc.constant('reasoning' as const), text: words(1000) }),
  fc.record({
    kind: fc.constant('tool_call' as const),
    text: words(100),
    call_id: fc.string(),
    name: fc.string(),
    input: object,
  }),
)

const message = (seq: number, parents: readonly string[]): fc.Arbitrary<ExportedMessage> =>
  fc
    .record({
      id: fc.uuid(),
      seq: fc.constant(seq),
      parent_id: fc.constantFrom(null, ...parents),
      run_id: fc.constant(null),
      role: fc.constantFrom('user', 'assistant', 'system', 'tool'),
      status: fc.constantFrom('completed', 'stopped', 'failed', 'interrupted'),
      parts: fc.array(part, { maxLength: 3 }),
      agent_id: maybe(words(255)),
      model: maybe(words(255)),
      client_message_id: maybe(fc.stringMatching(/^[A-Za-z0-9._:-]{1,128}$/)),
      retrieved_docs: maybe(value),
      reranker_used: maybe(fc.boolean()),
      input_tokens: count,
      output_tokens: count,
      total_tokens: count,
      cost_usd: fc.constant(null),
      latency_ms: count,
      ttft_ms: count,
      finish_reason: maybe(words(255)),
      error: maybe(fc.record({ code: fc.constant('interrupted'), message: words(255), retryable: fc.boolean() })),
      metadata: object,
      feedback: maybe(
        fc.record({
          rating: fc.constantFrom<1 | -1>(1, -1),
          comment: maybe(words(1000)),
          created_at: time,
          updated_at: time,
        }),
      ),
      created_at: time,
      completed_at: maybe(time),
    } satisfies { [Name in keyof Omit<ExportedMessage, 'content'>]: fc.Arbitrary<ExportedMessage[Name]> })
    .map((fields) => ({ ...fields, content: contentOf(fields.parts) }))

function chain(count: number): fc.Arbitrary<ExportedMessage[]> {
  let list: fc.Arbitrary<ExportedMessage[]> = fc.constant([])
  for (let seq = 1; seq <= count; seq += 1) {
    list = list.chain((before) =>
      message(
        seq,
        before.map(({ id }) => id),
      ).map((next) => [...before, next]),
    )
  }
  return list
}

const artifact: fc.Arbitrary<ExportedArtifact> = fc.oneof(
  fc.record({
    name: fc.stringMatching(/^[A-Za-z0-9][A-Za-z0-9._:-]{0,20}$/),
    version: fc.integer({ min: 1, max: 50 }),
    content_type: fc.constant('text/markdown' as const),
    body: words(30_000),
    created_at: time,
  }),
  fc.record({
    name: fc.stringMatching(/^[A-Za-z0-9]{1,8}\.json$/),
    version: fc.integer({ min: 1, max: 50 }),
    content_type: fc.constant('application/json' as const),
    body: value.map((json) => JSON.stringify(json)),
    created_at: time,
  }),
)

const session: fc.Arbitrary<Omit<ExportedSession, 'message_count' | 'total_tokens'>> = fc
  .record({
    id: fc.uuid(),
    external_id: maybe(fc.uuid().map((id) => `é ${id}`)),
    kind: fc.constantFrom('chat', 'report'),
    status: fc.constantFrom<ExportedSession['status']>('created', 'completed', 'failed', 'killed'),
    title: maybe(words(500)),
    mode: fc.constantFrom('fast', 'balanced', 'quality', 'adaptive'),
    model: maybe(words(255)),
    phase: maybe(words(255)),
    round_number: count,
    input: maybe(words(30_000)),
    context: maybe(object),
    state: maybe(value),
    total_cost_usd: decimal,
    tags: fc.array(words(255), { maxLength: 3 }),
    metadata: object,
    created_at: time,
    updated_at: time,
    last_activity_at: time,
    ended_at: maybe(time),
    deleted_at: maybe(time),
  })
  .map((fields) => ({ ...fields, status: fields.deleted_at === null ? fields.status : 'deleted' }))

/** As an export would write it: in order, counted, nothing under way. */
export const conversation: fc.Arbitrary<Conversation> = fc
  .record({
    session,
    messages: fc.nat(5).chain(chain),
    artifacts: fc.uniqueArray(artifact, { maxLength: 4, selector: ({ name, version }) => `${name} ${version}` }),
  })
  .map(({ session: fields, messages, artifacts }) => ({
    session: {
      ...fields,
      message_count: messages.length,
      total_tokens: messages.reduce((sum, { total_tokens }) => sum + (total_tokens ?? 0), 0),
    },
    messages,
    artifacts,
  }))
