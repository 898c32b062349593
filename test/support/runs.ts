/**
 * What runs are made of, without HTTP: a database with the schema, the stores on it, and runs that were accepted for a
 * process that a test plays.
 */
import { randomUUID } from 'node:crypto'
import type { FastifyBaseLogger } from 'fastify'
import type { Test } from 'tap'
import type { Db } from '../../src/db/db.ts'
import { sql } from '../../src/db/drizzle.ts'
import { openPglite } from '../../src/db/pglite.ts'
import { openPostgres } from '../../src/db/postgres.ts'
import type { Owner } from '../../src/http/identity.ts'
import { createSilentControl } from '../../src/log/control.ts'
import type { LogEntry, Part } from '../../src/log/event.ts'
import type { EventLog } from '../../src/log/log.ts'
import { createMemoryLog } from '../../src/log/memory.ts'
import { createAccept, type PlansFor } from '../../src/runs/accept.ts'
import type { ChatAsked } from '../../src/runs/asked.ts'
import type { TokenPricing } from '../../src/runs/budgets.ts'
import type { Ending } from '../../src/runs/commit.ts'
import { createEstimator } from '../../src/runs/estimate.ts'
import { createLedger, type Pricing } from '../../src/runs/ledger.ts'
import type { RunFacts } from '../../src/runs/model.ts'
import type { OwnedRuns } from '../../src/runs/owned.ts'
import { createReaper } from '../../src/runs/reaper.ts'
import { createRunStore } from '../../src/runs/store.ts'
import { createTakeover } from '../../src/runs/takeover.ts'
import { createMessageStore, type MessageStore } from '../../src/sessions/messages.ts'
import { createSessionStore, type SessionStore } from '../../src/sessions/store.ts'
import type { ModePlan } from '../../src/upstream/plan.ts'
import { createTestDatabase, type DatabaseKind, inMemory } from './database.ts'

const plan: ModePlan = { plan: { candidates: [{ provider: 'demo', model: 'demo' }], profile: 'balanced' } }
export const plansFor: PlansFor = () => ({ fast: plan, balanced: plan, quality: plan, adaptive: plan })

/** Swallows every line. */
export const silent = {
  info: () => undefined,
  warn: () => undefined,
  error: () => undefined,
} as unknown as FastifyBaseLogger

export interface IdleRuns extends OwnedRuns {
  readonly stopped: string[]
  readonly fenced: string[]
  readonly started: RunFacts[]
  readonly untilStopped: Promise<void>
  readonly untilFenced: Promise<void>
}

/** A process that makes none of its runs, and remembers what it is told. */
export function createIdleRuns(ids: readonly string[] = []): IdleRuns {
  const [stopped, fenced, started]: [string[], string[], RunFacts[]] = [[], [], []]
  const [hasStopped, hasFenced] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
  const idle = {
    isDraining: false,
    untilStopped: hasStopped.promise,
    untilFenced: hasFenced.promise,
    generations: () => ids.map((id) => ({ id, generation: 1 })),
    stop(id: string) {
      stopped.push(id)
      hasStopped.resolve()
    },
    fence(id: string) {
      fenced.push(id)
      hasFenced.resolve()
    },
    start: (facts: RunFacts) => started.push(facts),
    startNext: async () => undefined,
    stopped,
    fenced,
    started,
  }
  return idle as unknown as IdleRuns
}

/** A price for every model: 3 and 15 USD a million tokens. */
export const pricing: Pricing & TokenPricing = {
  perToken: () => ({ input: '0.000003', output: '0.000015' }),
  costOf: (_choice, { input_tokens, output_tokens }) => {
    const micros = (input_tokens * 3 + output_tokens * 15).toString().padStart(7, '0')
    return `${micros.slice(0, -6)}.${micros.slice(-6)}`
  },
}

/** What each run of a process gets; all prompts have the same length. */
export const openLedger = () => createLedger({ pricing, estimator: createEstimator() })
export const promptTokens = 100

export interface ReaperOf {
  readonly db: Db
  readonly instanceId?: string
  readonly owned?: OwnedRuns
  readonly log?: EventLog
  readonly now?: () => number
}

/** The reaper and the takeover of one process, as the gateway puts them together. */
export function createReaperOf(options: ReaperOf) {
  const { db, instanceId = randomUUID(), owned = createIdleRuns(), log, ...more } = options
  const parts = { db, instanceId, owned, logger: silent, ...more }
  const takeover = createTakeover({
    ...parts,
    log: log ?? createMemoryLog(),
    closing: new AbortController().signal,
    createLedger: openLedger,
    promptTokens: async () => promptTokens,
  })
  return createReaper({ ...parts, control: createSilentControl(), takeover })
}

export function createOwner(): Owner {
  const visitorHash = randomUUID()
  return { kind: 'visitor', key: `visitor:${visitorHash}`, userId: null, visitorHash }
}

export interface Store {
  readonly db: Db
  readonly url: string | undefined
  readonly sessions: SessionStore
  readonly messages: MessageStore
  readonly runs: ReturnType<typeof createRunStore>
  /** Accepts a message for a process, by default one that nobody has heard of. */
  accept(options?: AcceptOptions): Promise<RunFacts>
}

export interface AcceptOptions {
  readonly owner?: Owner
  readonly instanceId?: string
  readonly body?: Partial<ChatAsked>
}

/** The schema in a database of the test's own. */
export async function openStore(t: Pick<Test, 'teardown'>, kind: DatabaseKind): Promise<Store> {
  const url = kind === 'postgres' ? (await createTestDatabase(t)).url : undefined
  const db = url === undefined ? await openPglite(inMemory) : openPostgres({ url, unpooledUrl: url, poolSize: 5 })
  t.teardown(() => db.close())
  await db.migrate()
  const runs = createRunStore(db)
  return {
    db,
    url,
    runs,
    sessions: createSessionStore(db),
    messages: createMessageStore(db),
    async accept({ owner = createOwner(), instanceId = randomUUID(), body = {} } = {}) {
      const { accept } = createAccept({ db, runs, instanceId, runsPerOwnerMax: 0 })
      return (await accept(owner, { message: 'Hello', ...body }, plansFor)).run
    },
  }
}

/** Writes or renews a process's lease. */
export async function lease(db: Db, instanceId: string, milliseconds: number): Promise<void> {
  await db.rows(sql`
    insert into instances (id, lease_until)
    values (${instanceId}::uuid, now() + ${milliseconds}::int * interval '1 millisecond')
    on conflict (id) do update set lease_until = excluded.lease_until`)
}

export function endingOf(parts: readonly Part[], more: Partial<Ending> = {}): Ending {
  return {
    status: 'completed',
    parts,
    content: parts.map(({ kind, text }) => (kind === 'text' ? text : '')).join(''),
    usage: { input_tokens: 3, output_tokens: 4, total_tokens: 7 },
    usageSource: 'provider',
    costUsd: undefined,
    calls: [],
    answeredBy: undefined,
    finishReason: 'stop',
    model: undefined,
    error: undefined,
    ttftMs: 10,
    latencyMs: 20,
    lastSeq: 9,
    ...more,
  }
}

export const textPart = (text: string): Part => ({ kind: 'text', text })

export async function countRows(db: Db, table: 'run_checkpoints' | 'chat_runs' | 'chat_messages', runId: string) {
  const name =
    table === 'chat_runs'
      ? sql`chat_runs where id`
      : table === 'chat_messages'
        ? sql`chat_messages where run_id`
        : sql`run_checkpoints where run_id`
  const [row] = await db.rows<{ count: number }>(sql`select count(*)::int as count from ${name} = ${runId}::uuid`)
  return row?.count
}

export const typesOf = (entries: readonly LogEntry[]) => entries.map(({ event }) => event.type)

/** Resolves when so many statements of this database wait for a row that another holds. */
export async function untilWaiting(db: Db, count: number): Promise<void> {
  for (const giveUpAt = Date.now() + 4000; Date.now() < giveUpAt; ) {
    const [row] = await db.rows<{ count: number }>(sql`
      select count(*)::int as count from pg_stat_activity
      where datname = current_database() and wait_event_type = 'Lock'`)
    if (row?.count === count) return
  }
  throw new Error(`there are not ${count} statements that wait for the row`)
}
