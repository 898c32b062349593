/** Live state over rows, and the rows that are shown while the database is away. */
import { randomUUID } from 'node:crypto'
import { test } from 'tap'
import { sql } from '../../src/db/drizzle.ts'
import { hashOwner } from '../../src/sessions/copies.ts'
import { addDecimals, largerDecimal } from '../../src/sessions/decimal.ts'
import { createSessionList } from '../../src/sessions/list.ts'
import { createLiveState, type LiveRun } from '../../src/sessions/live.ts'
import type { ListSessionsQuery, Session } from '../../src/sessions/model.ts'
import { createRefresh } from '../../src/sessions/refresh.ts'
import { createSnapshots } from '../../src/sessions/snapshots.ts'
import { countReads, openStoreOnRedis, seedSession, untilSo } from '../support/copies.ts'
import { databases } from '../support/database.ts'
import { withoutRedis } from '../support/redis.ts'
import { createOwner, openStore } from '../support/runs.ts'

const skip = withoutRedis
const none = { store: undefined, count: () => undefined }
const isoOf = (ms: number) => new Date(ms).toISOString().replace('Z', '000Z')

function sessionOf(more: Partial<Session> = {}): Session {
  const time = isoOf(Date.now() - 60_000)
  return {
    id: randomUUID(),
    external_id: null,
    user_id: null,
    is_anonymous: true,
    kind: 'chat',
    status: 'running',
    title: 'Title',
    mode: 'fast',
    model: null,
    phase: null,
    round_number: 2,
    input: null,
    context: null,
    state: null,
    message_count: 2,
    total_tokens: 100,
    total_cost_usd: '0.000012',
    active_run_id: randomUUID(),
    tags: [],
    metadata: {},
    version: 1,
    archived: false,
    created_at: time,
    updated_at: time,
    last_activity_at: time,
    ended_at: null,
    ...more,
  }
}

const runOf = (session: Session, more: Partial<LiveRun> = {}): LiveRun => ({
  runId: session.active_run_id ?? '',
  sessionId: session.id,
  phase: 'writing',
  lastActivityAt: Date.now(),
  ...more,
})

test('without Redis the runs of this process are laid over their rows, and nothing else is', async (t) => {
  const [own, ended, other] = [sessionOf(), sessionOf({ active_run_id: null }), sessionOf()]
  const run = runOf(own, { outputTokens: 7, costUsd: '0.1', roundNumber: 3 })
  const live = createLiveState({ ...none, readLive: () => [run, { ...runOf(other), runId: randomUUID() }] })
  t.teardown(live.close)
  t.strictSame(await live.overlay([ended, own, other]), [
    ended,
    {
      ...own,
      phase: 'writing',
      round_number: 3,
      total_tokens: 107,
      total_cost_usd: '0.100012',
      last_activity_at: isoOf(run.lastActivityAt),
    },
    other,
  ])
})

test('time never goes back', async (t) => {
  const own = sessionOf({ last_activity_at: isoOf(Date.now() + 5000) })
  const live = createLiveState({ ...none, readLive: () => [runOf(own)] })
  t.teardown(live.close)
  t.equal((await live.overlay([own]))[0]?.last_activity_at, own.last_activity_at)
})

test('decimals are added as the database adds them', async (t) => {
  for (const [a, b, sum] of [
    ['0', '0', '0'],
    ['0', '0.1', '0.1'],
    ['0.1', '0.2', '0.3'],
    ['0.000012', '12', '12.000012'],
    ['9.99', '0.01', '10.00'],
    ['123456789012345678.5', '0.000000001', '123456789012345678.500000001'],
  ] as const) {
    t.equal(addDecimals(a, b), sum)
    t.equal(addDecimals(b, a), sum)
  }
  t.equal(largerDecimal('0.9', '0.10'), '0.9')
  t.equal(largerDecimal('0.000003', '12'), '12')
})

test('what one process writes, another lays over the rows of that run, and of no other', { skip }, async (t) => {
  const { store, redis, prefix } = await openStoreOnRedis(t)
  const [running, other, unknown] = [sessionOf(), sessionOf(), sessionOf()]
  const writer = createLiveState({ store, count: () => undefined, readLive: () => [runOf(running), runOf(other)] })
  t.teardown(writer.close)
  const reads = countReads()
  const reader = createLiveState({ store, count: reads.count, readLive: () => [] })
  t.teardown(reader.close)
  await untilSo(async () => (await redis.exists(`${prefix}:live:${other.id}`)) === 1, 'live state')
  t.ok((await redis.ttl(`${prefix}:live:${other.id}`)) > 86_000)

  const next = { ...other, active_run_id: randomUUID() }
  const newer = { ...running, updated_at: isoOf(Date.now() + 60_000) }
  for (const [row, result] of [
    [running, 'hit'],
    [next, 'stale'],
    [newer, 'stale'],
    [unknown, 'miss'],
  ] as const) {
    const [shown] = await reader.overlay([row])
    t.equal(shown?.phase, result === 'hit' ? 'writing' : null)
    t.strictSame(reads.take(), [`sessions ${result}`])
  }
  await redis.set(`${prefix}:live:${running.id}`, 'x')
  t.strictSame(await reader.overlay([running]), [running])
})

for (const kind of databases()) {
  test(`snapshots on ${kind}`, { skip }, async (t) => {
    const { db, sessions } = await openStore(t, kind)
    const { store, redis, prefix } = await openStoreOnRedis(t)
    const snapshots = createSnapshots(db, store)
    const list = createSessionList(db)
    const keysOf = (id: string) => ['hist', 'live', 'snap'].map((name) => `${prefix}:${name}:${id}`)

    await t.test('list and read the same as the database, with every filter, page by page', async (t) => {
      const owner = createOwner()
      const ids = await Promise.all(Array.from({ length: 30 }, () => seedSession(db, owner, 0)))
      await seedSession(db, createOwner(), 0)
      // Equal times, times a microsecond apart, and something of each kind.
      await db.rows(sql`
        update chat_sessions s set
          last_activity_at = '2026-01-01T00:00:00Z'::timestamptz + (n.value::int / 3) * interval '1 microsecond',
          status = case n.value::int % 3 when 0 then 'created' when 1 then 'completed' else 'failed' end,
          kind = case n.value::int % 2 when 0 then 'chat' else 'report' end,
          mode = case n.value::int % 5 when 0 then 'fast' else 'balanced' end,
          tags = case n.value::int % 4 when 0 then array['a', 'b'] else '{}' end,
          archived = n.value::int % 7 = 0
        from jsonb_each_text(${JSON.stringify(Object.fromEntries(ids.map((id, index) => [id, index])))}::jsonb) n
        where s.id = n.key::uuid`)
      await snapshots.refresh(ids)
      const filters: ListSessionsQuery[] = [
        {},
        { status: 'completed' },
        { kind: 'report', archived: false },
        { mode: 'fast' },
        { tag: 'b' },
        { tag: 'none' },
        { from: '2026-01-01T00:00:00.000003Z' },
        { to: '2026-01-01T02:00:00.000007+02:00', status: 'created' },
        { offset: 4 },
      ]
      for (const filter of filters) {
        for (let cursor: string | undefined, pages = 0; pages < 10; pages += 1) {
          const query = { limit: 4, ...filter, ...(cursor === undefined ? {} : { cursor }) }
          const [known, stored] = [await snapshots.listSessions(owner, query), await list.listSessions(owner, query)]
          t.strictSame(known, stored, JSON.stringify(query))
          if (stored.next_cursor === null || filter.offset !== undefined) break
          cursor = stored.next_cursor
        }
      }
      const [id = ''] = ids
      t.strictSame(await snapshots.getSession(owner, id.toUpperCase()), await sessions.getSession(owner, id))
    })

    await t.test('are of the newest of an owner, and of nobody else\u2019s', async (t) => {
      const [owner, other] = [createOwner(), createOwner()]
      t.equal(await snapshots.listSessions(owner, {}), undefined, 'nothing is known')
      const id = await seedSession(db, owner, 0)
      await snapshots.refresh([id])
      t.equal(await snapshots.getSession(other, id), undefined)
      // An index that somebody has spoilt.
      await redis.zadd(`${prefix}:sess:${hashOwner(other.key)}`, 1, id)
      t.strictSame((await snapshots.listSessions(other, {}))?.data, [])
      t.equal(
        await snapshots.listSessions(owner, { q: 'words' } as ListSessionsQuery),
        undefined,
        'search is not known',
      )
      await t.rejects(snapshots.listSessions(owner, { cursor: 'x' }), { code: 'invalid_request' })

      const index = `${prefix}:sess:${hashOwner(owner.key)}`
      await redis.zadd(index, ...Array.from({ length: 1500 }, (_, score) => [score, `x${score}`]).flat())
      await snapshots.refresh([id])
      t.equal(await redis.zcard(index), 1000)
      t.ok((await redis.ttl(index)) > 86_000)
      t.ok((await redis.ttl(`${prefix}:snap:${id}`)) > 86_000)
    })

    await t.test('follow what is written, and go with what is deleted', async (t) => {
      const owner = createOwner()
      const [kept, deleted] = [await seedSession(db, owner, 0), await seedSession(db, owner, 0)]
      const refresh = createRefresh({ store, refreshers: [snapshots.refresh], againMs: 0 })
      t.teardown(refresh.close)
      const known = async () => (await snapshots.listSessions(owner, {}))?.data.map(({ id }) => id).toSorted()
      refresh.changed(kept)
      refresh.changed(deleted)
      await untilSo(async () => (await known())?.length === 2, 'both')

      await redis.set(`${prefix}:hist:${deleted}`, 'x')
      await redis.set(`${prefix}:live:${deleted}`, 'x')
      await db.rows(sql`update chat_sessions set deleted_at = now() where id = ${deleted}::uuid`)
      refresh.removed(owner.key, [deleted])
      await untilSo(async () => (await redis.exists(...keysOf(deleted))) === 0, 'the deletion')
      t.strictSame(await known(), [kept])

      // As by a process that had read the row before.
      await redis.set(`${prefix}:snap:${deleted}`, 'x')
      await untilSo(async () => (await redis.exists(...keysOf(deleted))) === 0, 'the second deletion')

      refresh.removed(owner.key, [kept])
      refresh.changed(kept)
      await untilSo(async () => (await redis.exists(`${prefix}:snap:${kept}`)) === 1, 'it is there again')
      t.strictSame(await known(), [kept])
    })
  })
}
