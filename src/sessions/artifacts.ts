/**
 * Artifacts in the database. A document is a series of rows, one a version, and the newest that is not `generating` says
 * what it is now: `ready`, or `deleted`. A deletion leaves that one row, without a body, so that no version number ever
 * means two things. A `generating` row is the claim of whoever makes a document that was not there; it is told apart from
 * other claims by the end of its lease, and only the claim that is still in place can become a version.
 *
 * Every write is one statement with its conditions in it: the owner (through the session), the versions that the client
 * asks for, and the room that is left. It takes the number after the last one, and the primary key lets one of those who
 * try it at the same time have it; the others see that and try again with the next, `triesMax` times in all. So writes
 * become versions one after the other without any lock. Names are counted as they were when the statement began: those
 * who make new ones at the same moment can together pass `namesMax` by as many as they are.
 *
 * The session's own row is not touched: its version is that of its conversation, and its place in lists too.
 *
 * At each await: when the process dies, the statement has happened or not; a client that repeats a PUT makes one more
 * version of the same content, or learns by `If-Match` that it had happened. When the database does not answer, the caller
 * gets `db_unavailable`. A claim whose maker died is taken over when its lease has passed.
 */
import { type Db, DbError, exactText } from '../db/db.ts'
import { type SQL, sql } from '../db/drizzle.ts'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import {
  type Artifact,
  type ArtifactSummary,
  type ArtifactText,
  type ArtifactType,
  type Conditions,
  decodeBody,
  type Versions,
} from './artifact-model.ts'
import type { SessionChanges } from './changes.ts'
import { isoTime } from './store.ts'

export type ArtifactStore = ReturnType<typeof createArtifactStore>

/** Documents of a session, those that are being made included. */
export const namesMax = 100
/** The same with the deleted ones, whose numbers are remembered. */
export const namesEverMax = 1000
/** Of one document; the oldest beyond are erased by the write that adds one. */
export const versionsMax = 50

// Of n writers at the same time one is through each time, so this many processes' worth of connections are served.
const triesMax = 40
const againMsMax = 25
const foreignKeyViolation = '23503'

/** The right to fill a version, as long as nobody else has taken it over. */
export interface Claim {
  readonly sessionId: string
  readonly name: string
  readonly version: number
  readonly contentType: ArtifactType
  /** When it passes, in microseconds: no two claims of a version have the same. */
  readonly leaseUntil: string
}

interface Written {
  readonly version: number
  readonly created_at: string
  /** There was no such document before. */
  readonly created: boolean
}

export function createArtifactStore(db: Db, changes: SessionChanges) {
  /** Adds a row, and erases all but the last `kept`. What is deleted must be there. */
  async function append(
    owner: Owner,
    sessionId: string,
    name: string,
    row: { readonly status: 'ready' | 'deleted'; readonly contentType: string; readonly text: string },
    { match, noneMatch }: Conditions,
    kept: number,
  ): Promise<Written> {
    const isDeletion = row.status === 'deleted'
    const allowed = sql`(
      ${match === undefined ? sql`true` : isOneOf(match)} and not ${noneMatch === undefined ? sql`false` : isOneOf(noneMatch)}
      and ${isDeletion ? sql`f.current is not null` : sql`true`}
    )`
    for (let tried = 1; tried <= triesMax; tried += 1) {
      const [answer] = await db
        .rows<Appended>(sql`
          with ${factsOf(owner, sessionId, name)}, written as (
            insert into artifacts (session_id, name, version, status, content_type, body, created_at)
            select f.id, ${name}::text, f.last + 1, ${row.status}::text, ${row.contentType}::text, ${row.text}::text,
              clock_timestamp()
            from facts f where f.room and ${allowed}
            on conflict do nothing
            returning session_id, name, version, created_at
          ), erased as (
            delete from artifacts a using written w
            where a.session_id = w.session_id and a.name = w.name and a.version <= w.version - ${kept}::int
          )
          select f.current, f.room, ${allowed} as allowed, w.version, ${isoTime(sql`w.created_at`)} as created_at
          from facts f left join written w on true`)
        .catch(whenPurged)
      if (answer === undefined) throw new Problem('not_found')
      const { current, room, allowed: isAllowed, version, created_at } = answer
      if (version !== null && created_at !== null) {
        changes.changed(sessionId)
        return { version, created_at, created: current === null }
      }
      if (isDeletion && current === null) throw new Problem('not_found')
      if (!isAllowed) throw stale(current)
      if (!room) throw noRoom()
      await new Promise((resolve) => setTimeout(resolve, Math.random() * againMsMax))
    }
    throw new Problem('rate_limited', 'Too many write to this artifact at once.', { retryAfterSeconds: 1 })
  }

  return {
    /**
     * What there is now, by name, without the bodies.
     * @throws Problem `not_found` when the session is not this owner's
     */
    async listArtifacts(owner: Owner, sessionId: string): Promise<ArtifactSummary[]> {
      const rows = await db.rows<ArtifactSummary | Absent>(sql`
        select a.name, a.version, a.content_type, octet_length(a.body) as bytes, ${isoTime(sql`a.created_at`)} as created_at
        from chat_sessions s
        left join (
          select distinct on (name) * from artifacts
          where session_id = ${sessionId}::uuid and status <> 'generating' order by name, version desc
        ) a on a.status = 'ready'
        where s.id = ${sessionId}::uuid and ${isMine(owner)}
        order by a.name collate "C"`)
      if (rows.length === 0) throw new Problem('not_found')
      return rows.filter((row) => row.name !== null)
    },

    /**
     * The document as it is now, or one of its versions.
     * @returns undefined when the session has none
     * @throws Problem `not_found` when the session is not this owner's
     */
    async findArtifact(
      owner: Owner,
      sessionId: string,
      name: string,
      version?: number | undefined,
    ): Promise<Artifact | undefined> {
      const [row] = await db.rows<StoredArtifact | Absent>(sql`
        select a.name, a.version, a.content_type, ${exactText(sql`a.body`)} as body, ${isoTime(sql`a.created_at`)} as created_at
        from chat_sessions s
        left join lateral (
          select * from artifacts
          where session_id = s.id and name = ${name}::text and status <> 'generating'
            and ${version === undefined ? sql`true` : sql`version = ${version}::int`}
          order by version desc limit 1
        ) a on a.status = 'ready'
        where s.id = ${sessionId}::uuid and ${isMine(owner)}`)
      if (row === undefined) throw new Problem('not_found')
      if (row.name === null) return undefined
      return { ...row, body: decodeBody({ contentType: row.content_type, text: row.body }) }
    },

    /**
     * Writes the next version.
     * @throws Problem `not_found`; `precondition_failed`; `too_large` when the session has no room for another name;
     *   `rate_limited` when others were faster each time
     */
    async putArtifact(
      owner: Owner,
      sessionId: string,
      name: string,
      { contentType, text }: ArtifactText,
      conditions: Conditions,
    ): Promise<Written> {
      const row = { status: 'ready', contentType, text } as const
      return append(owner, sessionId, name, row, conditions, versionsMax)
    },

    /**
     * Erases all versions, and the claim of whoever makes one.
     * @throws Problem `not_found`; `precondition_failed`; `rate_limited` as above
     */
    async deleteArtifact(owner: Owner, sessionId: string, name: string, match: Versions | undefined): Promise<void> {
      const row = { status: 'deleted', contentType: '', text: '' } as const
      await append(owner, sessionId, name, row, { match }, 1)
    },

    /**
     * Asks to be the one who makes a document that is not there.
     * @returns `present` when it is there; `taken` when somebody else makes it, or was just faster
     * @throws Problem `not_found` when the session is not this owner's; `too_large` when it has no room for another name
     */
    async claim(
      owner: Owner,
      sessionId: string,
      name: string,
      contentType: ArtifactType,
      leaseMs: number,
    ): Promise<Claim | 'present' | 'taken'> {
      const lease = sql`clock_timestamp() + ${leaseMs}::int * interval '1 millisecond'`
      // Who has the embedded database to itself finds the claims of processes that are dead, whatever their lease says.
      const lapsed = db.exclusive ? sql`true` : sql`a.lease_until < clock_timestamp()`
      const [answer] = await db
        .rows<Claimed>(sql`
          with ${factsOf(owner, sessionId, name)}, retaken as (
            update artifacts a set lease_until = ${lease}, content_type = ${contentType}::text
            from facts f
            where a.session_id = f.id and a.name = ${name}::text and a.status = 'generating' and f.current is null and ${lapsed}
            returning a.version, a.lease_until
          ), begun as (
            insert into artifacts (session_id, name, version, status, content_type, lease_until)
            select f.id, ${name}::text, f.last + 1, 'generating', ${contentType}::text, ${lease}
            from facts f where f.room and f.current is null and not f.generating
            on conflict do nothing
            returning version, lease_until
          )
          select f.current, f.room, claim.version, ${isoTime(sql`claim.lease_until`)} as lease_until
          from facts f left join (select * from retaken union all select * from begun) claim on true`)
        .catch(whenPurged)
      if (answer === undefined) throw new Problem('not_found')
      if (answer.current !== null) return 'present'
      if (!answer.room) throw noRoom()
      const { version, lease_until: leaseUntil } = answer
      return version === null || leaseUntil === null ? 'taken' : { sessionId, name, version, contentType, leaseUntil }
    },

    /**
     * Makes a version of a claim. Whose session it is does not matter here, as long as it is not deleted: whoever reads
     * the document is asked then.
     * @returns false when the claim is no longer in place, or the session is gone
     */
    async fill(claim: Claim, text: string): Promise<boolean> {
      const rows = await db.rows(sql`
        update artifacts a
        set status = 'ready', body = ${text}::text, lease_until = null, created_at = clock_timestamp()
        from chat_sessions s
        where s.id = a.session_id and s.deleted_at is null and ${isOf(claim)}
        returning a.version`)
      if (rows.length === 0) return false
      changes.changed(claim.sessionId)
      return true
    },

    /** Gives a claim back, if it is still in place. */
    async release(claim: Claim): Promise<void> {
      await db.rows(sql`delete from artifacts a where ${isOf(claim)}`)
    },
  }
}

interface StoredArtifact extends Artifact {
  readonly body: string
}

/** The session is there, and the artifact is not. */
interface Absent {
  readonly name: null
}

interface Appended {
  readonly current: number | null
  readonly room: boolean
  readonly allowed: boolean
  readonly version: number | null
  readonly created_at: string | null
}

interface Claimed {
  readonly current: number | null
  readonly room: boolean
  readonly version: number | null
  readonly lease_until: string | null
}

const isMine = (owner: Owner): SQL => sql`s.owner = ${owner.key} and s.deleted_at is null`

const isOf = ({ sessionId, name, version, leaseUntil }: Claim): SQL => sql`(
  a.session_id = ${sessionId}::uuid and a.name = ${name}::text and a.version = ${version}::int
  and a.status = 'generating' and a.lease_until = ${leaseUntil}::timestamptz
)`

/**
 * One row when the session is this owner's, else none: the document's current version, the last number that was used,
 * whether somebody makes it, and whether it, or one more, has room.
 */
function factsOf(owner: Owner, sessionId: string, name: string): SQL {
  return sql`versions as (
    select a.version, a.status from artifacts a where a.session_id = ${sessionId}::uuid and a.name = ${name}::text
  ), facts as (
    select s.id,
      (select v.version from versions v where v.status = 'ready'
        and v.version = (select max(version) from versions where status <> 'generating')) as current,
      coalesce((select max(version) from versions), 0) as last,
      exists (select from versions where status = 'generating') as generating,
      -- Names are counted only for one that is new.
      case when exists (select from versions where status <> 'deleted') then true else (
        select count(distinct a.name) filter (where a.status <> 'deleted') < ${namesMax}::int
          and (count(distinct a.name) < ${namesEverMax}::int or exists (select from versions))
        from artifacts a where a.session_id = s.id
      ) end as room
    from chat_sessions s where s.id = ${sessionId}::uuid and ${isMine(owner)}
  )`
}

/** Whether the current version, of `facts f`, is one of these. */
function isOneOf(versions: Versions): SQL {
  if (versions === '*') return sql`(f.current is not null)`
  return sql`coalesce(f.current = any(string_to_array(${versions.join(',')}::text, ',')::int[]), false)`
}

/** The session was erased between the look and the write. */
function whenPurged(error: unknown): never[] {
  if (error instanceof DbError && error.sqlstate === foreignKeyViolation) return []
  throw error
}

function stale(current: number | null): Problem {
  const detail = current === null ? 'There is no such artifact.' : `The current version is "${current}".`
  return new Problem('precondition_failed', detail)
}

const noRoom = () =>
  new Problem('too_large', `A session may hold ${namesMax} artifacts at most, and ${namesEverMax} names over time.`)
