/**
 * The database as a Postgres server, by postgres.js. The driver has no time limit for a statement or for a place in its
 * pool, so both are ours (see createGate); when a statement misses its deadline its connection may be dead without
 * knowing it, and the whole pool is replaced. A server that is not there at start is no error here: the first
 * statement fails, and whoever asked tries again.
 */
import postgres from 'postgres'
import { compile, createGate, type Db, type Lane, type Orm, toRows } from './db.ts'
import { loadPostgresJs, type SQL, sql } from './drizzle.ts'
import { migrationsFolder, refuseNewerSchema } from './migrate.ts'

export interface PostgresOptions {
  readonly url: string
  /** For migrations and advisory locks, which a pooler in transaction mode cannot carry. */
  readonly unpooledUrl: string
  readonly poolSize: number
  readonly deadlineMs?: number
}

const connectSeconds = 5
const waitersPerConnectionMax = 50
// With the deadline of the statement itself, a request is refused within 6 s, also on a busy machine. When the database is
// well, a full line takes less than this.
const requestWaitMs = 800
/** Timers may be a little early. */
const timerSlackMs = 20
const reconnectSecondsMax = 0.5
/**
 * A planner that takes the functions of search for costly would compile statements, which takes a second, or start workers
 * for them, which takes processors from other requests. Statements here are many, and next to all run for milliseconds.
 */
const manyShortStatements = { jit: 'off', max_parallel_workers_per_gather: '0' } as const
const migrationWaitMs = 60_000
const migrationPollMs = 250
/** All pending migrations together: one that builds an index on a large table may take its time. */
const migrationMsMax = 30 * 60_000
// Any constant of our own: processes that migrate the same database meet on it.
const migrationLock = 7_362_684_517

export function openPostgres(options: PostgresOptions): Db {
  const { drizzle, migrate } = loadPostgresJs()
  const deadlineMs = options.deadlineMs ?? 5000
  const pooled = isPooler(options.url)

  function connect(url: string, max: number, statementTimeoutMs: number | undefined) {
    const client = postgres(withoutForeignParameters(url), {
      max,
      connect_timeout: connectSeconds,
      prepare: !isPooler(url),
      onnotice: () => undefined,
      // The driver would ask each new connection for the array types, and await the answer nowhere: a connection that
      // dies just then was an unhandled rejection, that is, the end of the process. drizzle reads arrays by itself.
      fetch_types: false,
      // The driver's own pause grows to 20 s, which a server that is back would be waited for.
      backoff: (failures: number) => Math.min(0.01 * 2 ** failures, reconnectSecondsMax),
      connection: {
        application_name: 'verbatim',
        // A pooler refuses start-up parameters that it does not know.
        ...(statementTimeoutMs === undefined ? {} : { statement_timeout: statementTimeoutMs, ...manyShortStatements }),
      },
    })
    return { client, orm: drizzle(client) as unknown as Orm }
  }

  const openPool = () => connect(options.url, options.poolSize, pooled ? undefined : deadlineMs - 500)
  let pool = openPool()
  let poolOpenedAt = performance.now()
  const gate = createGate({
    size: options.poolSize,
    keptForRuns: options.poolSize > 1 ? 1 : 0,
    waitersMax: options.poolSize * waitersPerConnectionMax,
    requestWaitMs,
    deadlineMs,
    onDeadline: renew,
  })

  function renew(): void {
    // Of the statements that hang together each misses its deadline; those that come after the first hung on a pool that
    // is gone already, because no statement of a younger pool can be this late.
    if (performance.now() - poolOpenedAt < deadlineMs - timerSlackMs) return
    const old = pool
    pool = openPool()
    poolOpenedAt = performance.now()
    // Its statements have failed already; that its connections do not close politely is what brought us here.
    old.client.end({ timeout: 0 }).catch(() => undefined)
  }

  const pass = <T>(statement: () => PromiseLike<T>, lane: Lane): Promise<T> =>
    gate.pass(async () => withoutHoles(await statement()), lane)

  const askPrepared = (text: string, values: never[]) => pool.client.unsafe(text, values, { prepare: !pooled })

  const inLane = (lane: Lane): Db => ({
    kind: 'postgres',
    exclusive: false,
    description: `Postgres at ${new URL(options.url).host}`,
    rows(statement, often) {
      if (often === undefined) return pass(async () => toRows(await pool.orm.execute(statement)), lane)
      const { text, bind } = compile(statement)
      return pass(async () => toRows(await askPrepared(text, bind())), lane)
    },
    prepare(statement) {
      const { text, bind } = compile(statement)
      return (values) => pass(async () => toRows(await askPrepared(text, bind(values))), lane)
    },
    run: (query) => pass(() => query(pool.orm), lane),
    inLane,
    async migrate() {
      const { client, orm } = connect(options.unpooledUrl, 1, undefined)
      // The questions before are short, and a server that does not answer them must not keep the start waiting for ever.
      const asking = createGate({ size: 1, waitersMax: 1, deadlineMs, onDeadline: () => undefined })
      const ask = (statement: SQL) => asking.pass(() => orm.execute(statement))
      // Ending the connection gives the advisory lock back, also when the statement that held it failed. A connection
      // that does not answer would not end politely either, and the next try should not wait for it.
      let endSeconds = 0
      try {
        await takeMigrationLock(ask)
        await refuseNewerSchema(ask)
        await within(migrationMsMax, migrate(orm as never, { migrationsFolder }))
        endSeconds = connectSeconds
      } finally {
        await client.end({ timeout: endSeconds })
      }
    },
    close: () => pool.client.end({ timeout: connectSeconds }),
  })
  return inLane('requests')
}

// drizzle's migrator takes no lock: of three processes that started at once, two died on "relation already exists".
async function takeMigrationLock(ask: (statement: SQL) => Promise<unknown>): Promise<void> {
  const giveUpAt = Date.now() + migrationWaitMs
  for (;;) {
    const [row] = toRows<{ taken: boolean }>(await ask(sql`select pg_try_advisory_lock(${migrationLock}) as taken`))
    if (row?.taken === true) return
    if (Date.now() > giveUpAt) throw new Error('Another process has been migrating the database for a minute')
    await new Promise((resolve) => setTimeout(resolve, migrationPollMs))
  }
}

async function within<T>(ms: number, work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`The migrations did not end within ${ms / 1000} s`)), ms)
  })
  try {
    return await Promise.race([work, late])
  } finally {
    clearTimeout(timer)
  }
}

/** PgBouncer and Supavisor in transaction mode cannot keep prepared statements. */
function isPooler(url: string): boolean {
  const { hostname, port, searchParams } = new URL(url)
  return hostname.includes('pooler') || port === '6543' || searchParams.get('pgbouncer') === 'true'
}

// Hosts put parameters of other clients into their URLs; postgres.js would send them to the server, which refuses them.
function withoutForeignParameters(url: string): string {
  const clean = new URL(url)
  for (const name of ['pgbouncer', 'connection_limit', 'pool_timeout', 'connect_timeout', 'schema']) {
    clean.searchParams.delete(name)
  }
  return clean.toString()
}

/**
 * postgres.js 3.4.9 counts the rows of a result in its connection, and goes on counting after one that broke in the middle of
 * a result: the next result has as many holes in front of its rows. Whoever took the first of them found none.
 */
function withoutHoles<T>(result: T): T {
  return Array.isArray(result) && result.length > 0 && !(0 in result) ? (result.filter(() => true) as T) : result
}
