/**
 * What an owner has, read for an export: page by page, by keys, so that a session of any length takes a page's worth of
 * memory; and written down as a document or as lines, as somebody reads them. A page ends after `pageRowsMax` rows, or
 * where about `pageBytesMax` of text are reached, but holds one row at least.
 *
 * The owner is a condition of every page. An export holds the messages that were there when it reached the session; a
 * reply that is being made is told as far as it is known, as `streaming`.
 *
 * At each await: when the database does not answer, or the session goes away meanwhile, the generator throws,
 * and whoever writes must break the connection: an end that looks whole would be taken for the whole. Nothing is kept
 * between pages but the place, so a process that dies leaves nothing behind.
 */
import { type Db, exactText } from '../db/db.ts'
import { sql } from '../db/drizzle.ts'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import type { Part } from '../log/event.ts'
import { isoTime } from './store.ts'
import {
  documentFormat,
  type ExportedArtifact,
  type ExportedMessage,
  type ExportedSession,
  type ExportLine,
  formatVersion,
  linesFormat,
} from './transfer.ts'

export interface ExportReaderOptions {
  readonly db: Db
  /** What a running reply has said so far; undefined when it has ended meanwhile, or nothing is known. */
  readonly readPartial: (runId: string) => Promise<{ readonly parts: Part[]; readonly content: string } | undefined>
}

export type ExportReader = ReturnType<typeof createExportReader>

/** A session to be exported, and how much of it there is. */
export interface ExportHead {
  readonly session: ExportedSession
  /** The last message's, when the export came to this session; 0 when it has none. */
  readonly lastSeq: number
  readonly hasArtifacts: boolean
  /** Everything is exported, so a session may also be deleted, or become so. */
  readonly alsoDeleted: boolean
}

export const pageRowsMax = 500
export const pageBytesMax = 4 * 1024 * 1024
const branchRowsMax = 5000
/** Sessions can hold a hundred thousand characters of input, and as much in state and context. */
const sessionRowsMax = 20

// Without reading what is stored apart: the length of a text is at hand, and the parts hold it once more; that of packed
// JSON has to be guessed at.
const unpacked = 4
const messageBytes = sql`(2 * octet_length(content) + ${sql.raw(String(unpacked))} * (
  pg_column_size(parts) + pg_column_size(metadata) + coalesce(pg_column_size(retrieved_docs), 0)
))`

const messageFields = sql`
  m.id, m.seq, m.parent_id, m.run_id, m.role, m.status, ${exactText(sql`m.content`)} as content, m.parts,
  ${exactText(sql`m.agent_id`)} as agent_id, ${exactText(sql`m.model`)} as model,
  ${exactText(sql`m.client_message_id`)} as client_message_id, m.retrieved_docs, m.reranker_used,
  m.input_tokens, m.output_tokens, m.total_tokens, r.cost::text as cost_usd, m.latency_ms, m.ttft_ms,
  ${exactText(sql`m.finish_reason`)} as finish_reason, m.error, m.metadata,
  case when f.message_id is not null then json_build_object(
    'rating', f.rating, 'comment', f.comment,
    'created_at', ${isoTime(sql`f.created_at`)}, 'updated_at', ${isoTime(sql`f.updated_at`)}
  ) end as feedback,
  ${isoTime(sql`m.created_at`)} as created_at, ${isoTime(sql`m.completed_at`)} as completed_at`

const headFields = sql`
  s.id, ${exactText(sql`s.external_id`)} as external_id, s.kind, s.status, ${exactText(sql`s.title`)} as title, s.mode,
  ${exactText(sql`s.model`)} as model, ${exactText(sql`s.phase`)} as phase, s.round_number,
  ${exactText(sql`s.input`)} as input, s.context, s.state, s.message_count, s.total_tokens::float8 as total_tokens,
  s.total_cost::text as total_cost_usd, to_json(s.tags) as tags, s.metadata,
  ${isoTime(sql`s.created_at`)} as created_at, ${isoTime(sql`s.updated_at`)} as updated_at,
  ${isoTime(sql`s.last_activity_at`)} as last_activity_at, ${isoTime(sql`s.ended_at`)} as ended_at,
  ${isoTime(sql`s.deleted_at`)} as deleted_at,
  coalesce((select max(m.seq) from chat_messages m where m.session_id = s.id), 0) as last_seq,
  exists (select 1 from artifacts a where a.session_id = s.id and a.status = 'ready') as has_artifacts`

type HeadRow = ExportedSession & { readonly last_seq: number; readonly has_artifacts: boolean }

export function createExportReader({ db, readPartial }: ExportReaderOptions) {
  /** One page of messages, behind the first seq and up to the other. */
  async function readMessages(owner: Owner, head: ExportHead, after: number, upTo: number): Promise<ExportedMessage[]> {
    return db.rows<ExportedMessage>(sql`
      with page as (
        select id from (
          select id, seq, bytes, sum(bytes) over (order by seq) as up_to from (
            select id, seq, ${messageBytes} as bytes from chat_messages
            where session_id = ${head.session.id}::uuid and seq > ${after}::int and seq <= ${upTo}::int
            order by seq limit ${pageRowsMax}::int
          ) row
        ) measured where up_to - bytes < ${pageBytesMax}::int
      )
      select ${messageFields}
      from page
      join chat_messages m on m.id = page.id
      join chat_sessions s on s.id = m.session_id and s.owner = ${owner.key}
        and (s.deleted_at is null or ${head.alsoDeleted}::boolean)
      left join feedback f on f.message_id = m.id
      left join chat_runs r on r.id = m.run_id and r.message_id = m.id
      order by m.seq`)
  }

  async function withPartial(owner: Owner, head: ExportHead, message: ExportedMessage): Promise<ExportedMessage> {
    if (message.status !== 'streaming' || message.run_id === null) return message
    const partial = await readPartial(message.run_id)
    if (partial !== undefined) return { ...message, content: partial.content, parts: partial.parts }
    // It has ended between the two looks, and its text is in the row; or nothing is known of it.
    const [again] = await readMessages(owner, head, message.seq - 1, message.seq)
    if (again === undefined) throw goneMeanwhile()
    return again
  }

  function toHead({ last_seq, has_artifacts, ...session }: HeadRow, alsoDeleted: boolean): ExportHead {
    return { session, lastSeq: last_seq, hasArtifacts: has_artifacts, alsoDeleted }
  }

  async function* readArtifactPages(
    owner: Owner,
    { session, alsoDeleted }: ExportHead,
  ): AsyncGenerator<ExportedArtifact[]> {
    for (let after = { name: '', version: 0 }; ; ) {
      const page = await db.rows<ExportedArtifact>(sql`
        select a.name, a.version, a.content_type, ${exactText(sql`a.body`)} as body,
          ${isoTime(sql`a.created_at`)} as created_at
        from (
          select name, version, bytes, sum(bytes) over (order by name, version) as up_to from (
            select name, version, octet_length(body) as bytes from artifacts
            where session_id = ${session.id}::uuid and status = 'ready'
              and (name, version) > (${after.name}::text, ${after.version}::int)
            order by name, version limit ${pageRowsMax}::int
          ) row
        ) measured
        join artifacts a on a.session_id = ${session.id}::uuid and a.name = measured.name and a.version = measured.version
        join chat_sessions s on s.id = a.session_id and s.owner = ${owner.key}
          and (s.deleted_at is null or ${alsoDeleted}::boolean)
        where measured.up_to - measured.bytes < ${pageBytesMax}::int
        order by a.name, a.version`)
      const last = page.at(-1)
      if (last === undefined) break
      yield page
      after = last
    }
    // Documents come and go, so only the session itself can tell that these were all.
    const [still] = await db.rows(sql`
      select 1 from chat_sessions
      where id = ${session.id}::uuid and owner = ${owner.key} and (deleted_at is null or ${alsoDeleted}::boolean)`)
    if (still === undefined) throw goneMeanwhile()
  }

  return {
    /** @throws Problem `not_found`, also for a deleted session */
    async readHead(owner: Owner, id: string): Promise<ExportHead> {
      const [row] = await db.rows<HeadRow>(sql`
        select ${headFields} from chat_sessions s
        where s.id = ${id}::uuid and s.owner = ${owner.key} and s.deleted_at is null`)
      if (row === undefined) throw new Problem('not_found')
      return toHead(row, false)
    },

    /** All of an owner's sessions in the order of their ids, the deleted ones too. */
    async *readHeads(owner: Owner): AsyncGenerator<ExportHead> {
      for (let after = '00000000-0000-0000-0000-000000000000'; ; ) {
        const rows = await db.rows<HeadRow>(sql`
          select ${headFields} from chat_sessions s
          where s.owner = ${owner.key} and s.id > ${after}::uuid order by s.id limit ${sessionRowsMax}::int`)
        yield* rows.map((row) => toHead(row, true))
        const last = rows.at(-1)
        if (last === undefined) return
        after = last.id
      }
    },

    /**
     * The messages of a session, oldest first.
     * @param range of their seqs, without the first and with the last, which is that of a message
     * @throws Problem `not_found` when the session goes away meanwhile
     */
    async *readMessagePages(
      owner: Owner,
      head: ExportHead,
      range: SeqRange = { after: 0, upTo: head.lastSeq },
    ): AsyncGenerator<ExportedMessage[]> {
      for (let { after } = range; after < range.upTo; ) {
        const page = await readMessages(owner, head, after, range.upTo)
        const last = page.at(-1)
        if (last === undefined) throw goneMeanwhile()
        for (const [index, message] of page.entries()) page[index] = await withPartial(owner, head, message)
        yield page
        after = last.seq
      }
    },

    /** Documents by name and version. @throws Problem `not_found` when the session goes away meanwhile */
    async *readArtifactPages(owner: Owner, head: ExportHead): AsyncGenerator<ExportedArtifact[]> {
      if (head.hasArtifacts) yield* readArtifactPages(owner, head)
    },

    /**
     * The messages that are not on the way from the last one back to the first, each with the `seq` of the one it
     * follows; the last of them comes first. Of a conversation that was never edited there are none, however long it is.
     */
    async readAside(owner: Owner, { session, lastSeq }: ExportHead): Promise<ReadonlyMap<number, number | null>> {
      const aside = new Map<number, number | null>()
      // A message comes after the one that it follows, so one way back through all of them is enough. (A recursive query
      // took seconds for ten thousand messages where the planner knew too little.)
      let wanted: string | 'any' | null = 'any'
      for (let before = lastSeq + 1; before > 1; ) {
        const rows: BranchRow[] = await db.rows<BranchRow>(sql`
          select m.id, m.seq, m.parent_id, p.seq as parent_seq, r.id is not null as parent_pending
          from chat_messages m
          join chat_sessions s on s.id = m.session_id and s.owner = ${owner.key}
          left join chat_messages p on p.id = m.parent_id
          left join chat_runs r on r.id = m.run_id and r.user_message_id = m.id
            and r.status = 'queued' and r.parent_pending
          where m.session_id = ${session.id}::uuid and m.seq < ${before}::int
          order by m.seq desc limit ${branchRowsMax}::int`)
        for (const { id, seq, parent_id, parent_seq, parent_pending } of rows) {
          // What a message in the queue follows is written down when it leaves the queue.
          if (wanted === 'any' || wanted === id) wanted = parent_id ?? (parent_pending ? 'any' : null)
          else aside.set(seq, parent_seq)
        }
        before = rows.at(-1)?.seq ?? 1
      }
      return aside
    },
  }
}

interface BranchRow {
  readonly id: string
  readonly seq: number
  readonly parent_id: string | null
  readonly parent_seq: number | null
  readonly parent_pending: boolean
}

/** Messages behind one seq and up to another. */
export interface SeqRange {
  readonly after: number
  readonly upTo: number
}

/** A session as one document, piece by piece. @param exportedAt as ISO text */
export async function* writeDocument(
  reader: ExportReader,
  owner: Owner,
  head: ExportHead,
  exportedAt: string,
): AsyncGenerator<string> {
  const opening = JSON.stringify({
    format: documentFormat,
    version: formatVersion,
    exported_at: exportedAt,
    session: head.session,
  })
  yield `${opening.slice(0, -1)},"messages":[`
  let separator = ''
  for await (const page of reader.readMessagePages(owner, head)) {
    for (const message of page) {
      yield `${separator}\n${JSON.stringify(message)}`
      separator = ','
    }
  }
  yield '],"artifacts":['
  separator = ''
  for await (const page of reader.readArtifactPages(owner, head)) {
    for (const artifact of page) {
      yield `${separator}\n${JSON.stringify(artifact)}`
      separator = ','
    }
  }
  yield ']}\n'
}

/** Sessions as lines of JSON. @param exportedAt as ISO text */
export async function* writeLines(
  reader: ExportReader,
  owner: Owner,
  heads: AsyncIterable<ExportHead> | Iterable<ExportHead>,
  exportedAt: string,
): AsyncGenerator<string> {
  const counts = { sessions: 0, messages: 0, artifacts: 0 }
  const { kind, userId } = owner
  yield toLine({
    type: 'export',
    format: linesFormat,
    version: formatVersion,
    exported_at: exportedAt,
    owner: { kind, user_id: userId },
  })
  for await (const head of heads) {
    counts.sessions += 1
    yield toLine({ type: 'session', ...head.session })
    for await (const page of reader.readMessagePages(owner, head)) {
      counts.messages += page.length
      for (const message of page) yield toLine({ type: 'message', ...message })
    }
    for await (const page of reader.readArtifactPages(owner, head)) {
      counts.artifacts += page.length
      for (const artifact of page) yield toLine({ type: 'artifact', ...artifact })
    }
  }
  yield toLine({ type: 'end', ...counts })
}

const toLine = (line: ExportLine) => `${JSON.stringify(line)}\n`

const goneMeanwhile = () => new Problem('not_found', 'The session was deleted while it was exported.')
