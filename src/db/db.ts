/**
 * The port to the database, and what its two adapters share: a gate with bounds, one error class, and one row shape.
 *
 * Every state change of the gateway is one SQL statement. That is a rule, not a habit: postgres.js's interactive
 * transactions are not safe against a dying backend (measured on 3.4.9: a statement of the callback committed alone),
 * and a single statement is also a single round trip. So the port offers statements and no transaction.
 *
 * At each await: when the process dies, a statement has either committed or not, and ids are made before the write,
 * so a retry by id finds out. When the database dies or hangs, the caller gets a DbError within the deadline, or
 * `db_unavailable` when it cannot even be asked; the outcome of a write is then unknown until it is read back.
 */
import { Problem } from '../errors.ts'
import {
  fillPlaceholders,
  type PgDatabase,
  PgDialect,
  type PgQueryResultHKT,
  type SQL,
  type SQLWrapper,
  sql,
} from './drizzle.ts'

export type Orm = PgDatabase<PgQueryResultHKT>

/**
 * Whose statement it is. `runs`: of what has been accepted and shown, or keeps the process alive to the others: commits,
 * checkpoints, the lease. These go before `requests`, which can be refused and asked again.
 */
export type Lane = 'requests' | 'runs'

export interface Db {
  readonly kind: 'postgres' | 'pglite'
  /** True when no other process can have this database open, so whatever ran under another instance is dead. */
  readonly exclusive: boolean
  /** For the start line: where the data is, without credentials. */
  readonly description: string
  /**
   * Runs one statement written as SQL. Column names are the statement's own; numerics and bigints must be cast to
   * text or float8 by the statement, because the drivers differ in what they make of them.
   * @param often for the few long statements that each reply needs: their text is parsed once by each connection to a server,
   * which takes longer than to run them, and kept there as long as the connection. So it must be one of a few
   * @throws Problem `db_unavailable`; DbError for whatever the database says about the statement itself
   */
  rows<Row>(statement: SQL, often?: 'often'): Promise<Row[]>
  /**
   * The same for a statement that is asked thousands of times a second: its text is made once, and each connection to a
   * server has it parsed once, and not at each call as with the two others.
   * @param statement with `sql.placeholder(name)` where a value goes
   */
  prepare<Row>(statement: SQL): (values: Readonly<Record<string, string | number>>) => Promise<Row[]>
  /** Runs one drizzle query, under the same gate and with the same errors. */
  run<T>(query: (orm: Orm) => PromiseLike<T>): Promise<T>
  /** The same database, for statements of another lane than `requests`. */
  inLane(lane: Lane): Db
  /**
   * Brings the schema up to date. Processes that start at the same time take turns.
   * @throws SchemaTooNew when a newer program has been here
   */
  migrate(): Promise<void>
  close(): Promise<void>
}

/** What the database said about a statement. Holds no SQL and no parameters: those can be people's words. */
export class DbError extends Error {
  override readonly name = 'DbError'
  /** SQLSTATE, https://www.postgresql.org/docs/current/errcodes-appendix.html */
  readonly sqlstate: string
  readonly constraint: string | undefined

  constructor(sqlstate: string, constraint: string | undefined, cause: unknown) {
    super(`SQLSTATE ${sqlstate}${constraint === undefined ? '' : ` (${constraint})`}`)
    this.sqlstate = sqlstate
    this.constraint = constraint
    // Kept out of every serializer by not being enumerable: drizzle's message quotes the parameters.
    Object.defineProperty(this, 'cause', { value: cause, enumerable: false })
  }
}

export class SchemaTooNew extends Error {
  override readonly name = 'SchemaTooNew'
  constructor() {
    super(
      'The database was migrated by a newer version of this program, and this one does not know its schema: start the newer version, or restore a backup from before the upgrade.',
    )
  }
}

export const uniqueViolation = '23505'
export const checkViolation = '23514'

export interface GateOptions {
  /** Statements at once. */
  readonly size: number
  /** Of these, how many are kept for runs: a statement that hangs must not keep the lease from being renewed. */
  readonly keptForRuns?: number
  /** Statements of requests that may wait for a place before the next is refused. */
  readonly waitersMax: number
  /** Longest run of a statement, and longest wait of a run's statement for a place. */
  readonly deadlineMs: number
  /** Longest wait of a request's statement for a place; `deadlineMs` when absent. */
  readonly requestWaitMs?: number
  /** Called when a statement did not answer in time; the adapter renews its connections. */
  readonly onDeadline: () => void
}

export interface Gate {
  pass<T>(statement: () => PromiseLike<T>, lane?: Lane): Promise<T>
}

const attemptsMax = 3
// A run has one statement in line at most, so this is reached only when nearly as many replies end at the same moment; a
// commit that is refused is tried again.
const runWaitersMax = 5000

/**
 * Puts bounds around a driver that has none: how many statements at once, how many in line, and how long one takes.
 * Statements of runs go first, and have a line of their own, so that a flood of requests neither delays nor refuses them.
 * Statements that the database undid for a reason that passes (deadlock, serialization) are run again, three times in all.
 */
export function createGate(options: GateOptions): Gate {
  const placesOf: Readonly<Record<Lane, number>> = {
    runs: options.size,
    requests: options.size - (options.keptForRuns ?? 0),
  }
  const waitersMaxOf: Readonly<Record<Lane, number>> = { runs: runWaitersMax, requests: options.waitersMax }
  const waitMsOf: Readonly<Record<Lane, number>> = {
    runs: options.deadlineMs,
    requests: options.requestWaitMs ?? options.deadlineMs,
  }
  const lines: Readonly<Record<Lane, (() => void)[]>> = { runs: [], requests: [] }
  let busy = 0

  function leave(): void {
    busy -= 1
    for (const lane of ['runs', 'requests'] as const) {
      const next = busy < placesOf[lane] ? lines[lane].shift() : undefined
      if (next === undefined) continue
      busy += 1
      next()
      return
    }
  }

  function enter(lane: Lane): Promise<void> {
    if (busy < placesOf[lane]) {
      busy += 1
      return Promise.resolve()
    }
    const waiters = lines[lane]
    if (waiters.length >= waitersMaxOf[lane]) {
      return Promise.reject(unavailable('Too many statements wait for the database'))
    }
    return new Promise((resolve, reject) => {
      const admit = () => {
        clearTimeout(timer)
        resolve()
      }
      const timer = setTimeout(() => {
        waiters.splice(waiters.indexOf(admit), 1)
        reject(unavailable('The database was busy for too long'))
      }, waitMsOf[lane])
      waiters.push(admit)
    })
  }

  async function once<T>(statement: () => PromiseLike<T>, lane: Lane): Promise<T> {
    await enter(lane)
    let timer: NodeJS.Timeout | undefined
    const deadline = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        options.onDeadline()
        reject(unavailable('The database did not answer in time'))
      }, options.deadlineMs)
    })
    try {
      return await Promise.race([statement(), deadline])
    } catch (error) {
      throw toDbError(error)
    } finally {
      clearTimeout(timer)
      leave()
    }
  }

  return {
    async pass(statement, lane = 'requests') {
      for (let attempt = 1; ; attempt += 1) {
        try {
          return await once(statement, lane)
        } catch (error) {
          const passing = error instanceof DbError && retryableStates.has(error.sqlstate)
          if (!passing || attempt === attemptsMax) throw error
        }
      }
    },
  }
}

/** For {@link Db.prepare}: the text, and the values in the order of its parameters. */
export function compile(statement: SQL): {
  readonly text: string
  readonly bind: (values?: Readonly<Record<string, unknown>>) => never[]
} {
  const { sql: text, params } = new PgDialect().sqlToQuery(statement)
  return { text, bind: (values = {}) => fillPlaceholders(params, { ...values }) as never[] }
}

/** One shape for what `execute` answers: an array on postgres.js, `{ rows }` on PGlite. */
export function toRows<Row>(result: unknown): Row[] {
  return Array.isArray(result) ? (result as Row[]) : (result as { rows: Row[] }).rows
}

/**
 * A text exactly as it is stored. PGlite's driver takes a U+FEFF at the beginning of a text for a byte order mark, and drops
 * it; as JSON the text begins with a quotation mark.
 */
export function exactText(text: SQL | SQLWrapper): SQL<string> {
  return sql<string>`to_json(${text})`
}

const retryableStates: ReadonlySet<string> = new Set(['40001', '40P01'])

// Class 08 connection, 53 resources, 57P0x shutdown and crash, 57014 statement_timeout, 25006 read-only after a failover.
const unavailableStates = /^(08...|53...|57P0.|57014|25006|XX000)$/
// Classes begin with a digit, or are F0, HV, P0 and XX; so EBADF and other errors of the system are none.
const sqlstatePattern = /^[0-9FHPX][0-9A-Z]{4}$/
const unavailableCodes: ReadonlySet<string> = new Set([
  'CONNECTION_CLOSED',
  'CONNECTION_ENDED',
  'CONNECTION_DESTROYED',
  'CONNECT_TIMEOUT',
  'ECONNREFUSED',
  'ECONNRESET',
  'ENOTFOUND',
  'EAI_AGAIN',
  'EPIPE',
  'ETIMEDOUT',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ENOTCONN',
  'ECONNABORTED',
  // The socket went between the choice of the connection and the write.
  'ERR_STREAM_DESTROYED',
  'ERR_STREAM_WRITE_AFTER_END',
  'ERR_SOCKET_CLOSED',
  'ENOENT',
])

function unavailable(detail: string, cause?: unknown): Problem {
  return new Problem('db_unavailable', `${detail}.`, { retryAfterSeconds: 2, cause })
}

function toDbError(error: unknown): unknown {
  if (error instanceof Problem || error instanceof DbError) return error
  for (let inner = error; inner instanceof Error; inner = inner.cause) {
    const { code, constraint_name, constraint } = inner as Error & {
      code?: unknown
      constraint_name?: string
      constraint?: string
    }
    if (typeof code !== 'string') continue
    if (unavailableCodes.has(code) || unavailableStates.test(code)) {
      return unavailable('The database cannot be reached', inner)
    }
    if (sqlstatePattern.test(code)) return new DbError(code, constraint_name ?? constraint, inner)
  }
  // drizzle's own message quotes the parameters, which can be people's words; what it wraps does not.
  return error instanceof Error && 'params' in error ? error.cause : error
}
