/**
 * Every list and look-up of the REST side is answered from an index. The statements are those that the stores really send,
 * recorded on their way; the plans are Postgres's own, with the values at hand and without them (what a prepared statement
 * gets after its fifth time), on tables of a few thousand rows, where reading all of them is tempting.
 */
import postgres from 'postgres'
import { test } from 'tap'
import type { Db } from '../../src/db/db.ts'
import { type SQL, sql } from '../../src/db/drizzle.ts'
import { openPostgres } from '../../src/db/postgres.ts'
import type { Owner } from '../../src/http/identity.ts'
import { planOf } from '../../src/runs/asked.ts'
import { createBudgets } from '../../src/runs/budgets.ts'
import { createEstimator } from '../../src/runs/estimate.ts'
import { createRunStore } from '../../src/runs/store.ts'
import { createApiKeys } from '../../src/sessions/api-keys.ts'
import { createArtifactStore } from '../../src/sessions/artifacts.ts'
import { createSessionChanges } from '../../src/sessions/changes.ts'
import { readHistory } from '../../src/sessions/context.ts'
import { writeCursor } from '../../src/sessions/cursor.ts'
import { createSessionList } from '../../src/sessions/list.ts'
import { createMessageStore } from '../../src/sessions/messages.ts'
import { createSessionStore } from '../../src/sessions/store.ts'
import { createTestDatabase, databases } from '../support/database.ts'
import { pricing, silent } from '../support/runs.ts'

const skip = databases().includes('postgres') ? false : 'TEST_EMBEDDED_ONLY=1: plans are those of a server'

/** Tables that grow with use. */
const largeTables = ['chat_sessions', 'chat_messages', 'chat_runs', 'artifacts']
const planModes = ['force_custom_plan', 'force_generic_plan'] as const

interface Statement {
  readonly sql: string
  readonly params: readonly unknown[]
}

interface PlanNode {
  readonly 'Node Type': string
  readonly 'Relation Name'?: string
  readonly Plans?: readonly PlanNode[]
}

/** The same database, and every statement that goes through it. */
function record(db: Db): { readonly recorded: Db; readonly statements: Statement[] } {
  const statements: Statement[] = []
  const run: Db['run'] = (query) =>
    db.run((orm) => {
      const built = query(orm)
      statements.push((built as unknown as { toSQL(): Statement }).toSQL())
      return built
    })
  async function rows<Row>(statement: SQL): Promise<Row[]> {
    const result = await db.run((orm) => {
      const built = orm.execute(statement)
      statements.push((built as unknown as { getQuery(): Statement }).getQuery())
      return built
    })
    return result as unknown as Row[]
  }
  return { recorded: { ...db, run, rows }, statements }
}

const literal = (value: unknown): string => (value === null ? 'null' : `'${String(value).replaceAll("'", "''")}'`)

/** The large tables that are read from beginning to end. */
function tablesReadWhole(node: PlanNode): string[] {
  const own = node['Relation Name'] ?? ''
  const whole = node['Node Type'].endsWith('Seq Scan') && largeTables.includes(own) ? [own] : []
  return [...whole, ...(node.Plans ?? []).flatMap(tablesReadWhole)]
}

async function explain(client: postgres.Sql, { sql: text, params }: Statement): Promise<string[]> {
  await client.unsafe(`prepare question as ${text}`)
  const whole: string[] = []
  for (const mode of planModes) {
    await client.unsafe(`set plan_cache_mode = ${mode}`)
    const given = params.length === 0 ? '' : `(${params.map(literal).join(', ')})`
    const [row] = await client.unsafe(`explain (format json) execute question${given}`)
    const [{ Plan }] = row!['QUERY PLAN'] as [{ Plan: PlanNode }]
    whole.push(...tablesReadWhole(Plan).map((table) => `${mode}: ${table}`))
  }
  await client.unsafe('deallocate question')
  return whole
}

const owner: Owner = { kind: 'user', key: 'user:owner-0', userId: 'owner-0', visitorHash: null }
const word = 'zeppelin'

/**
 * An owner with 1000 sessions and forty with 100; four messages, an artifact and six runs each. Questions for several runs
 * in one are planned for a hundred, and with fewer rows reading all of them would be right.
 * @param client without the time limits of a request
 */
async function fill(client: postgres.Sql): Promise<void> {
  await client`
    insert into chat_sessions (id, user_id, external_id, kind, status, mode, title, tags, archived, message_count, last_activity_at)
    select gen_random_uuid(), 'owner-' || case when n <= 1000 then 0 else n % 40 end, 'name-' || n,
      case n % 10 when 0 then 'report' else 'chat' end, case n % 4 when 0 then 'failed' else 'completed' end,
      case n % 3 when 0 then 'fast' else 'balanced' end, 'Session number ' || n,
      case n % 20 when 0 then array['starred'] else '{}' end, n % 50 = 0, 4, timestamptz '2024-01-01Z' + n * interval '1 minute'
    from generate_series(1, 5000) n`
  await client`
    insert into chat_messages (id, session_id, owner, seq, role, content, status)
    select gen_random_uuid(), s.id, s.owner, n, case n % 2 when 1 then 'user' else 'assistant' end,
      repeat('words that many have ', 10) || case when s.external_id = 'name-1' then ${word} else '' end, 'completed'
    from chat_sessions s, generate_series(1, 4) n`
  await client`
    insert into chat_runs (id, session_id, user_message_id, message_id, status, mode, provider, model, owner, idempotency_key, request_hash)
    select gen_random_uuid(), s.id, u.id, a.id, case when s.external_id = 'name-1' and n = 1 then 'running' else 'completed' end,
      'fast', 'demo', 'demo', s.owner, s.external_id || ' ' || n, 'hash'
    from generate_series(1, 6) n, chat_sessions s
    join chat_messages u on u.session_id = s.id and u.seq = 3 join chat_messages a on a.session_id = s.id and a.seq = 4`
  await client`
    insert into artifacts (session_id, name, version, content_type, body)
    select id, 'report', 1, 'text/plain', repeat('body ', 100) from chat_sessions`
  for (const table of largeTables) await client.unsafe(`vacuum analyze ${table}`)
}

test('no list and no look-up reads a large table from beginning to end', { skip }, async (t) => {
  const { url } = await createTestDatabase(t)
  const db = openPostgres({ url, unpooledUrl: url, poolSize: 2 })
  const client = postgres(url, { max: 1, onnotice: () => undefined })
  t.teardown(() => Promise.all([db.close(), client.end({ timeout: 1 })]))
  await db.migrate()
  await fill(client)

  const { recorded, statements } = record(db)
  const list = createSessionList(recorded)
  const sessions = createSessionStore(recorded)
  const messages = createMessageStore(recorded)
  const artifacts = createArtifactStore(recorded, createSessionChanges())
  const runs = createRunStore(recorded)
  const budgets = createBudgets({
    db: recorded,
    limits: {},
    pricing,
    estimator: createEstimator(),
    profileOf: () => ({ contextTokens: 1000 }),
    logger: silent,
  })
  const [newest] = (await list.listSessions(owner, {})).data
  const session = (await list.listSessions(owner, { q: word })).data[0]!.id
  const run = (await runs.findActive(owner, session))!
  const cursor = writeCursor([newest!.last_activity_at, newest!.id])
  const from = '2024-01-01T08:00:00Z'

  const questions: Readonly<Record<string, () => Promise<unknown>>> = {
    'a list': () => list.listSessions(owner, {}),
    'a later page': () => list.listSessions(owner, { cursor }),
    'a list with an offset': () => list.listSessions(owner, { offset: 100 }),
    'a list by status': () => list.listSessions(owner, { status: 'failed' }),
    'a list by kind': () => list.listSessions(owner, { kind: 'report' }),
    'a list by mode': () => list.listSessions(owner, { mode: 'fast' }),
    'a list by tag': () => list.listSessions(owner, { tag: 'starred' }),
    'a list by a tag that nobody has': () => list.listSessions(owner, { tag: 'none' }),
    'a list by time': () => list.listSessions(owner, { from, to: '2024-01-01T09:00:00Z' }),
    'a list of what is archived': () => list.listSessions(owner, { archived: true }),
    'a list by everything': () =>
      list.listSessions(owner, {
        status: 'failed',
        kind: 'report',
        mode: 'fast',
        tag: 'x',
        from,
        archived: false,
        cursor,
      }),
    'a list of what is deleted': () => list.listSessions(owner, { status: 'deleted' }),
    'a search for a rare word': () => list.listSessions(owner, { q: word }),
    'a search for a common word': () => list.listSessions(owner, { q: 'many' }),
    'a search for words, one of them nowhere': () =>
      list.listSessions(owner, { q: 'many nowhere', kind: 'chat', cursor }),
    'a session': () => sessions.getSession(owner, session),
    'a session that is there already': () => sessions.createSession(owner, { id: session }),
    'a session by its external id': () => sessions.createSession(owner, { external_id: 'name-1' }),
    'a change': () => sessions.patchSession(owner, session, { title: 'Other', metadata: { a: 1 } }, [1]),
    messages: () => messages.listMessages(owner, session, { limit: 10 }),
    'later messages': () => messages.listMessages(owner, session, { limit: 10, cursor: writeCursor([2]) }),
    'messages, newest first': () => messages.listMessages(owner, session, { limit: 10, order: 'desc' }),
    'the active branch': () => messages.listMessages(owner, session, { limit: 10, branch: 'active' }),
    artifacts: () => artifacts.listArtifacts(owner, session),
    'an artifact': () => artifacts.findArtifact(owner, session, 'notes'),
    'a message': () => messages.getMessage(owner, run.message_id),
    'what goes upstream': () => readHistory(recorded, run.message_id, 20),
    'the calls of tools that are answered': async () => {
      const tool_results = [{ call_id: 'none', output: 1 }]
      for (const parent_id of [undefined, run.message_id]) {
        const asked = { session_id: session, ...(parent_id === undefined ? {} : { parent_id }), tool_results }
        await t.rejects(planOf(recorded, owner, asked, session), { code: 'invalid_request' })
      }
    },
    'a run': () => runs.getRun(owner, run.id),
    'a run by its key': () => runs.findByKey(owner, 'name-1 1'),
    'a run by its request': async () => {
      const repeat = { withinMs: 60_000, endedWithinMs: 1000, isLeftOut: () => false }
      for (const sessionId of [undefined, session]) await runs.findRepeated(owner, 'hash', { ...repeat, sessionId })
    },
    'a key of the gateway': () => createApiKeys(recorded).readSubject(`vk_${'A'.repeat(43)}`),
    'the keys of a user': () => createApiKeys(recorded).listKeys('owner-0'),
    'the active run of a session': () => runs.findActive(owner, session),
    'active runs before another': () => runs.findActiveBefore(run),
    'a run again': () => runs.reread(run.id),
    'what was spent today': () => budgets.readUsage(owner),
  }
  for (const [name, question] of Object.entries(questions)) {
    statements.length = 0
    await question()
    t.ok(statements.length > 0, `${name}: it asks the database`)
    for (const statement of statements) t.same(await explain(client, statement), [], name)
  }

  await t.test('a twin: statements without an index are noticed, however deep the table is in them', async (t) => {
    const whole = ['force_custom_plan: chat_sessions', 'force_generic_plan: chat_sessions']
    statements.length = 0
    await recorded.rows(sql`select id from chat_sessions where title = ${'Session number 1'}`)
    await recorded.rows(sql`
      with titled as materialized (select id from chat_sessions where title = ${'x'})
      select id from chat_messages where session_id in (select id from titled)`)
    t.equal(statements.length, 2)
    for (const statement of statements) t.same(await explain(client, statement), whole)
  })
})
