/**
 * The last messages of sessions as JSON in Redis, so that a history that has not changed costs Postgres a look at one row
 * by its primary key, and the gateway no reading and no writing of JSON.
 *
 * A copy is never taken for the truth. It carries the stamp of its session's row, read in the same statement as its
 * messages: the version, which every write to a session or its messages raises, and the transaction that wrote the row, so
 * that an id that was purged and given again is another session. A read asks Postgres for the stamp of now, and a copy with
 * another one is not used, whoever forgot to replace it. To delete a copy by hand (`UNLINK vb:hist:<session>`) is safe.
 *
 * Copies are made after Postgres was written: by whoever has changed a session (refresh.ts), and by a reader who found
 * none that was of use. A history with a reply under way is kept too, and is not served from here while Postgres answers:
 * what the reply has said so far is elsewhere.
 *
 * When Redis does not answer, the caller reads the database as if there were no cache. When Postgres does not answer, and
 * only then, the last copy is served to the owner it was made for, and says `degraded`. When this process dies at an await,
 * a copy was written or not, and both are right.
 */
import { hash } from 'node:crypto'
import { createBatch } from '../db/batch.ts'
import type { Db } from '../db/db.ts'
import { sql } from '../db/drizzle.ts'
import type { RedisStore } from '../db/redis.ts'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import { type CountCacheRead, copyBytesMax, createCopyKeys, hashOwner, throwFirst } from './copies.ts'
import { writeCursor } from './cursor.ts'
import { messageColumns } from './messages.ts'
import { type ListMessagesQuery, type Message, pageRowsDefault } from './model.ts'

export interface HistoryCacheOptions {
  readonly db: Db
  readonly store: RedisStore
  /** Of a copy, from the moment it was made. */
  readonly ttlMs: number
  /** In a copy: the last ones of the session. */
  readonly messagesMax: number
  readonly count: CountCacheRead
}

export type HistoryCache = ReturnType<typeof createHistoryCache>

interface Copy {
  /** Of the program that wrote it: another one may show other members of a message. */
  readonly shape: string
  readonly stamp: string
  readonly owner: string
  /** No reply is under way. */
  readonly settled: boolean
  /** Of its messages, rising. */
  readonly seqs: readonly number[]
  /**
   * The answer that holds all of them, oldest first: it can be sent as it is. The messages begin at `dataBegin`, with a comma
   * and a line feed between two: JSON text has no line feed of its own.
   */
  readonly page: Buffer
}

interface Question {
  readonly id: string
  readonly owner: string
}

interface Found {
  /** Null when there is no copy, undefined when Redis did not answer. */
  readonly value: Buffer | null | undefined
  /** Undefined when the owner has no such session, or Postgres did not answer. */
  readonly stamp: string | undefined
  /** Why Postgres did not answer. */
  readonly failure: unknown
}

/** Copies that one command reads. */
const looksMax = 50
/** Sessions that one statement copies. */
const loadsMax = 20

export function createHistoryCache({ db, store, ttlMs, messagesMax, count }: HistoryCacheOptions) {
  const keys = createCopyKeys(store.prefix)
  const selectStamps = db.prepare<Question & { stamp: string }>(stampsStatement)
  const selectRows = db.prepare<Row>(copiesStatement)
  const look = createBatch<Question, Found>({ keyOf: keyOfQuestion, ask: lookAt, questionsMax: looksMax })
  const load = createBatch<string, Copy>({ keyOf: (id) => id, ask: makeCopies, questionsMax: loadsMax })

  async function lookAt(questions: readonly Question[]): Promise<ReadonlyMap<string, Found>> {
    const [values, { stamps, failure }] = await Promise.all([
      store.ask((redis) => redis.mgetBuffer(questions.map(({ id }) => keys.history(id)))),
      readStamps(questions).then(
        (stamps) => ({ stamps, failure: undefined }),
        (failure: unknown) => ({ stamps: undefined, failure }),
      ),
    ])
    return new Map(
      questions.map((question, index) => {
        const key = keyOfQuestion(question)
        return [key, { value: values?.[index], stamp: stamps?.get(key), failure }]
      }),
    )
  }

  /** @returns by {@link keyOfQuestion}, of what is there and the asker's */
  async function readStamps(questions: readonly Question[]): Promise<ReadonlyMap<string, string>> {
    const rows = await selectStamps({ questions: JSON.stringify(questions) })
    return new Map(rows.map((row) => [keyOfQuestion(row), row.stamp]))
  }

  async function makeCopies(ids: readonly string[]): Promise<ReadonlyMap<string, Copy>> {
    const rows = await selectRows({ ids: JSON.stringify(ids), messagesMax, bytesMax: copyBytesMax })
    const copies = new Map<string, Copy>()
    for (const [id, ofSession] of Map.groupBy(rows, (row) => row.session)) {
      const copy = toCopy(ofSession)
      if (copy !== undefined) copies.set(id, copy)
    }
    const gone = ids.filter((id) => !copies.has(id))
    // Nobody waits for it: it settles by itself, and throws nothing.
    void store.ask(async (redis) => {
      const pipeline = redis.pipeline()
      if (gone.length > 0) pipeline.unlink(gone.map(keys.history))
      for (const [id, copy] of copies) pipeline.set(keys.history(id), encode(copy), 'PX', ttlMs)
      throwFirst(await pipeline.exec())
    })
    return copies
  }

  /** When the database does not answer: what is known, or the failure. */
  function serveOld(copy: Copy | undefined, owner: string, query: ListMessagesQuery, failure: unknown): Buffer {
    const isAway = failure instanceof Problem && failure.code === 'db_unavailable'
    const page = isAway && copy?.owner === owner ? cutPage(copy, query, true) : undefined
    if (page === undefined) throw failure
    return page
  }

  return {
    /**
     * @param sessionId in any case
     * @returns the answer of GET /sessions/:id/messages as JSON; undefined when the database has to be read for it
     * @throws Problem `not_found`; `db_unavailable` when there is no copy to show either
     */
    async readPage(caller: Owner, sessionId: string, query: ListMessagesQuery): Promise<Buffer | undefined> {
      // What comes after a page is seldom in a copy of the end, and a branch is not what it holds.
      if (query.branch === 'active' || query.cursor !== undefined) return undefined
      const id = sessionId.toLowerCase()
      const owner = hashOwner(caller.key)
      const found = await look({ id, owner: caller.key })
      const { value, stamp, failure } = found as Found
      const copy = value == null ? undefined : decode(value)
      if (failure !== undefined) return serveOld(copy, owner, query, failure)
      if (stamp === undefined) throw new Problem('not_found')
      if (value === undefined) {
        count('history', 'error')
        return undefined
      }
      if (copy?.stamp === stamp && copy.owner === owner) {
        const page = copy.settled ? cutPage(copy, query) : undefined
        count('history', page === undefined ? 'miss' : 'hit')
        return page
      }
      count('history', copy === undefined ? 'miss' : 'stale')
      let fresh: Copy | undefined
      try {
        fresh = await load(id)
      } catch (error) {
        return serveOld(copy, owner, query, error)
      }
      return fresh?.settled === true && fresh.owner === owner ? cutPage(fresh, query) : undefined
    },

    /** Makes new copies. @throws Problem `db_unavailable` */
    async refresh(ids: readonly string[]): Promise<void> {
      await Promise.all(ids.map(load))
    },
  }
}

const keyOfQuestion = ({ id, owner }: Question): string => `${id} ${owner}`

/** What is another whenever what GET /messages shows is. `s` is an alias of chat_sessions. */
const stampOf = sql`s.version || '.' || s.xmin`

const stampsStatement = sql`
  select s.id, s.owner, ${stampOf} as stamp
  from jsonb_to_recordset(${sql.placeholder('questions')}::jsonb) as asked(id uuid, owner text)
  join chat_sessions s on s.id = asked.id and s.owner = asked.owner
  where s.deleted_at is null`

interface Row {
  readonly session: string
  readonly owner: string
  readonly stamp: string
  readonly count: number
  /** Null in the one row of a session without messages, like all that follows. */
  readonly seq: number | null
  readonly status: Message['status']
  /** As JSON. */
  readonly message: string
}

const columns = sql.join(
  Object.entries(messageColumns).map(([name, column]) => sql`${column} as ${sql.identifier(name)}`),
  sql`, `,
)

/**
 * The last messages of each session, as many as are worth a copy, with the stamp that goes with them. For the gateway
 * itself; whoever shows a copy compares its owner. The lateral table has the name of the table whose columns it has, because
 * that is what `messageColumns` call it. JSON is made where the row is, so that it is not read here to be written again.
 */
const copiesStatement = sql`
  select
    s.id as session, s.owner, ${stampOf} as stamp, s.message_count as count, chat_messages.seq, chat_messages.status,
    (select row_to_json(shown) from (select ${columns}) shown)::text as message
  from chat_sessions s left join lateral (
    select * from (
      select m.*, sum(
        octet_length(m.content) + pg_column_size(m.parts) + coalesce(pg_column_size(m.retrieved_docs), 0)
      ) over (order by m.seq desc) as bytes
      from chat_messages m
      where m.session_id = s.id and m.seq > s.message_count - ${sql.placeholder('messagesMax')}::int
    ) measured where bytes <= ${sql.placeholder('bytesMax')}::int
  ) chat_messages on true
  where s.id in (select value::uuid from jsonb_array_elements_text(${sql.placeholder('ids')}::jsonb))
    and s.deleted_at is null
  order by s.id, chat_messages.seq`

/** @param rows of one session. @returns undefined when nothing of it can be kept */
function toCopy(rows: readonly Row[]): Copy | undefined {
  const [first] = rows
  if (first === undefined) return undefined
  const texts: string[] = []
  const seqs: number[] = []
  let settled = true
  for (const { seq, status, message } of rows) {
    if (seq === null) continue
    texts.push(message)
    seqs.push(seq)
    if (status === 'streaming') settled = false
  }
  const page = Buffer.from(`${pageBegin}${texts.join(between)}${pageEnd}`)
  // No messages, although it has some: they are too long.
  if ((seqs.length === 0 && first.count > 0) || page.length > copyBytesMax) return undefined
  return { shape, stamp: first.stamp, owner: hashOwner(first.owner), settled, seqs, page }
}

const shape = hash('sha256', Object.keys(messageColumns).join()).slice(0, 8)
const pageBegin = '{"data":['
const between = ',\n'
const pageEnd = '],"next_cursor":null}'
const lineFeed = 10

function encode({ page, ...head }: Copy): Buffer {
  return Buffer.concat([Buffer.from(`${JSON.stringify(head)}\n`), page])
}

/** @returns undefined for what this program has not written */
function decode(value: Buffer): Copy | undefined {
  const headEnd = value.indexOf(lineFeed)
  if (headEnd === -1) return undefined
  try {
    const head: Omit<Copy, 'page'> = JSON.parse(value.toString('latin1', 0, headEnd))
    return head.shape === shape ? { ...head, page: value.subarray(headEnd + 1) } : undefined
  } catch {
    return undefined // Somebody else's value under our key.
  }
}

/** @returns undefined when what is asked does not lie within the copy */
function cutPage({ seqs, page }: Copy, query: ListMessagesQuery, isDegraded = false): Buffer | undefined {
  const limit = query.limit ?? pageRowsDefault
  const isFalling = query.order === 'desc'
  const beginsAtFirst = seqs.length === 0 || seqs[0] === 1
  if (!beginsAtFirst && !(isFalling && limit <= seqs.length)) return undefined
  const count = Math.min(limit, seqs.length)
  const isLast = count === seqs.length && beginsAtFirst
  if (isLast && !isFalling && !isDegraded) return page
  const messages = page.subarray(pageBegin.length, page.length - pageEnd.length)
  const texts = isFalling ? lastLines(messages, count, seqs.length) : firstLines(messages, count, seqs.length)
  const nextCursor = isLast ? 'null' : `"${writeCursor([isFalling ? seqs.at(-count) : seqs[count - 1]])}"`
  const degraded = isDegraded ? ',"degraded":true' : ''
  return Buffer.concat([Buffer.from(pageBegin), ...texts, Buffer.from(`],"next_cursor":${nextCursor}${degraded}}`)])
}

/** As they stand, with what stands between them. */
function firstLines(messages: Buffer, count: number, total: number): Buffer[] {
  if (count === total) return [messages]
  let end = -1
  for (let line = 0; line < count; line += 1) end = messages.indexOf(lineFeed, end + 1)
  return [messages.subarray(0, end - 1)]
}

/** Newest first, with a comma between them. */
function lastLines(messages: Buffer, count: number, total: number): Buffer[] {
  const lines: Buffer[] = []
  let end = messages.length
  for (let index = total - 1; index >= total - count; index -= 1) {
    const before = index === 0 ? -1 : messages.lastIndexOf(lineFeed, end - 1)
    if (lines.length > 0) lines.push(comma)
    lines.push(messages.subarray(before + 1, end))
    end = before - 1
  }
  return lines
}

const comma = Buffer.from(',')
