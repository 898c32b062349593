/**
 * Search: a session is found when each term of `q` occurs, also as a part of a word, in its title or in one of its messages;
 * different terms may be in different places. Capitals do not matter, and `%`, `_` and `\` are characters like others.
 * Messages that a client has brought from elsewhere (runs/brought.ts) have no owner, and are not looked at.
 * Terms are compared as they were sent and in both forms of Unicode (NFC, NFD) in which one can be written; the texts are
 * compared as they are stored.
 *
 * Whether a word is rare or common decides how it is found quickly, and no planner knows that of a part of a word. So:
 * 1. The newest sessions are read, title and messages. Common words fill a page here, or show here that they are common;
 *    and an owner with few sessions is done here, whoever else's messages hold the word.
 * 2. If next to none of them has all terms, the terms that were met least are looked up in the index of trigrams, one after
 *    the other. When one is in `hitsMax` messages at most, their sessions are looked through, and that is all there is.
 * 3. Otherwise they are common enough to be met by reading on, in larger steps, until the page is full or `searchMsDefault`
 *    has passed. What was found until then is the page, and its cursor is the place that was reached, so a search goes on
 *    where it was and never takes the database for itself.
 *
 * The statements hold no state between them: a session that moves to the top meanwhile is met at its old place, its new
 * one, or is left to the next search, as in any list. When the process or the database dies at an await, the request
 * fails, and nothing was written.
 */
import type { Db } from '../db/db.ts'
import { and, type SQL, sql } from '../db/drizzle.ts'
import { chatSessions } from '../db/schema.ts'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import { type Page, type SessionPlace, writeCursor } from './cursor.ts'
import { behind, filtered, newestFirst } from './filter.ts'
import { type ListSessionsQuery, pageRowsDefault, type Session } from './model.ts'
import { isoTime, jsonTexts, sessionColumns } from './store.ts'

/** Terms of one search. */
export const searchTermsMax = 8

/** A word that so many of the first sessions have fills a page sooner by reading on than by the index. */
const commonMin = 5
/** The time after which no other step is begun. */
const searchMsDefault = 2000
/** Messages (and titles) of a rare term. Looking at one takes up to 1 ms, when it is long and Chinese. */
const hitsMax = 500
/** Terms of one search that are looked up; to learn that one is common takes up to 100 ms. */
const lookUpsMax = 3
/** 3 ms when the texts have 200 characters, 30 ms when they have 3000. */
const firstStep: Step = { sessions: 200, texts: 800 }
/** Follows when there were next to no messages: sessions without any are passed in microseconds, and say nothing of a word. */
const emptyStep: Step = { sessions: 1000, texts: 1500 }
const messagesMin = 100
/** A step that took longer than this is not followed by a larger one. */
const quickMs = 100
const growth = 4
const stepTextsMin = 200
const stepTextsMax = 200_000

interface Step {
  readonly sessions: number
  /** Titles and messages, by the sessions' counters. No other session is begun behind them; one that was is read whole. */
  readonly texts: number
}

interface Seen extends SessionPlace {
  /** A digit for each term: 1 when the session has it. */
  readonly has: string
  /** Texts of this session and of those before it in this step, by their counters. */
  readonly texts: number
  /** How many sessions there were to read in this step. */
  readonly offered: number
}

/** @throws Problem `invalid_request` when there are more than {@link searchTermsMax} */
export function readTerms(q: string): readonly string[] {
  const terms = [...new Set(q.split(/\s+/u))].filter((term) => term !== '')
  if (terms.length > searchTermsMax) {
    throw new Problem('invalid_request', `q may hold ${searchTermsMax} words at most.`)
  }
  return terms
}

export function createSearch(db: Db, searchMs = searchMsDefault) {
  /** Reads sessions, newest first, and says of each which terms it has. */
  async function look(condition: SQL | undefined, terms: readonly string[], step: Step): Promise<Seen[]> {
    const fold = terms.every((term) => uncased.test(term)) ? cut : folded
    const has = (text: SQL) =>
      sql.join(
        terms.map((term) => sql`coalesce(bool_or(${contains(text, 'search_fold', term)}), false)::int::text`),
        sql` || `,
      )
    return db.rows<Seen>(sql`
      select offered.id, ${isoTime(sql`offered.last_activity_at`)} as time, offered.texts::float8, offered.offered, found.has
      from (
        select newest.*, count(*) over ()::int as offered,
          sum(1 + message_count) over (order by last_activity_at desc, id desc) as texts
        from (
          select id, title, last_activity_at, message_count from chat_sessions
          where ${condition}
          order by ${newestFirst[0]}, ${newestFirst[1]}
          limit ${step.sessions}::int
        ) newest
      ) offered
      cross join lateral (
        select ${has(sql`said.words`)} as has
        from (
          select ${fold(sql`offered.title`)} as words
          union all
          select ${fold(sql`content`)} from chat_messages where session_id = offered.id and owner is not null
        ) said
      ) found
      where offered.texts - 1 - offered.message_count < ${step.texts}::int
      order by offered.last_activity_at desc, offered.id desc`)
  }

  /**
   * Asks the index.
   * @returns the ids of the sessions, a few times over; undefined when there are too many, or when the index cannot tell:
   * a single Chinese character has no trigram, and in a database with the locale C no Chinese word has one
   */
  async function lookUp(owner: Owner, term: string): Promise<string[] | undefined> {
    // Materialized, so that the limits are no reason for the planner to read the tables from their beginning instead.
    const rows = await db.rows<{ session_id: string | null }>(sql`
      with said as materialized (
        select session_id from chat_messages
        where owner = ${owner.key} and (${contains(sql`content`, 'search_text', term)})
      ), titled as materialized (
        select id from chat_sessions
        where owner = ${owner.key} and deleted_at is null and (${contains(sql`title`, 'search_text', term)})
      ), indexed as materialized (
        -- A word of three letters has four trigrams, those of its ends among them.
        select cardinality(show_trgm(search_text(${term}))) > 3 as known
      )
      select null as session_id from indexed where not known
      union all
      (select session_id from said where (select known from indexed) limit ${hitsMax + 1}::int)
      union all
      (select id from titled where (select known from indexed) limit ${hitsMax + 1}::int)`)
    const ids = rows.map((row) => row.session_id).filter((id) => id !== null)
    return ids.length < rows.length || ids.length > hitsMax ? undefined : ids
  }

  /** Asks the index for the terms that are likely to be rare. @param met how many sessions had each @returns as `lookUp` */
  async function lookUpRarest(owner: Owner, terms: readonly string[], met: readonly number[]) {
    const rare = terms
      .map((term, index) => ({ term, met: met[index] as number }))
      .filter(({ met }) => met < commonMin)
      // Of two that were not met, the longer one: the sessions that were read may be of another language, or empty.
      .toSorted((a, b) => a.met - b.met || b.term.length - a.term.length)
    for (const { term } of rare.slice(0, lookUpsMax)) {
      const ids = await lookUp(owner, term)
      if (ids !== undefined) return ids
    }
    return undefined
  }

  /** @returns those of them that still fit, in the order of the places */
  async function read(condition: SQL | undefined, places: readonly SessionPlace[]): Promise<Session[]> {
    if (places.length === 0) return []
    const ids = places.map((place) => place.id)
    const rows = await db.run((orm) =>
      orm
        .select(sessionColumns)
        .from(chatSessions)
        .where(and(condition, among(ids))),
    )
    const byId = new Map(rows.map((row) => [row.id, row]))
    return ids.map((id) => byId.get(id)).filter((row) => row !== undefined)
  }

  return async function search(
    owner: Owner,
    query: ListSessionsQuery,
    terms: readonly string[],
    after: SessionPlace | undefined,
  ): Promise<Page<Session>> {
    const { limit = pageRowsDefault, offset = 0 } = query
    const wanted = offset + limit + 1
    const conditions = filtered(owner, query)
    const startedAt = performance.now()
    const found: SessionPlace[] = []
    const met = terms.map(() => 0)
    let reached = after
    let stepTexts = firstStep.texts
    let textsRead = 0
    let sessionsRead = 0

    /** @returns whether there is more to read */
    async function readOn(condition: SQL | undefined, step: Step): Promise<boolean> {
      const seen = await look(and(condition, reached && behind(reached)), terms, step)
      for (const { id, time, has } of seen) {
        for (const [index, digit] of [...has].entries()) met[index] = (met[index] as number) + Number(digit)
        if (!has.includes('0')) found.push({ time, id })
      }
      textsRead += seen.at(-1)?.texts ?? 0
      sessionsRead += seen.length
      reached = seen.at(-1) ?? reached
      const offered = seen.at(0)?.offered ?? 0
      return seen.length < offered || offered === step.sessions
    }

    let more = await readOn(conditions, firstStep)
    if (more && textsRead - sessionsRead < messagesMin) more = await readOn(conditions, emptyStep)
    // Titles of deleted sessions are in no index.
    if (more && found.length < commonMin && query.status !== 'deleted') {
      const ids = await lookUpRarest(owner, terms, met)
      if (ids !== undefined) {
        const places = [...new Set(ids)]
        if (places.length > 0) {
          await readOn(and(conditions, among(places)), { sessions: places.length, texts: int4Max })
        }
        more = false
      }
    }
    for (let stepAt = startedAt; more && found.length < wanted; ) {
      const now = performance.now()
      if (now - startedAt > searchMs) break
      if (now - stepAt < quickMs) stepTexts = Math.min(stepTexts * growth, stepTextsMax)
      stepAt = now
      // To where what is missing is likely to be found, and somewhat further.
      const likely = Math.ceil((1.25 * (wanted - found.length) * textsRead) / Math.max(1, found.length))
      const texts = Math.min(stepTexts, Math.max(likely, stepTextsMin))
      // Sessions are about as long as before. To find those that are to be read takes time of its own.
      const sessions = Math.ceil(texts * Math.min(1, (1.5 * sessionsRead) / textsRead))
      more = await readOn(conditions, { sessions, texts })
    }
    const data = await read(conditions, found.slice(offset, offset + limit))
    const last = found.length >= wanted ? found[offset + limit - 1] : more ? reached : undefined
    return { data, next_cursor: last === undefined ? null : writeCursor([last.time, last.id]) }
  }
}

/** Of terms in scripts without capitals the texts need not be folded, which is half the time. */
const uncased = /^[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}]+$/u
const folded = (text: SQL): SQL => sql`search_fold(${text})`
/** What is left of a text in `search_fold`. */
const cut = (text: SQL): SQL => sql`left(${text}, 200000)`
const int4Max = 2_147_483_647

/** Whether a text holds a term. `fold` is what both are put through: one of the functions of the index's migration. */
function contains(text: SQL, fold: 'search_fold' | 'search_text', term: string): SQL {
  const forms = [...new Set([term, term.normalize('NFC'), term.normalize('NFD')])]
  const name = sql.raw(fold)
  const subject = fold === 'search_fold' ? text : sql`${name}(${text})`
  return sql.join(
    forms.map((form) => sql`${subject} like '%' || ${name}(${form.replaceAll(/[\\%_]/g, '\\$&')}) || '%'`),
    sql` or `,
  )
}

const among = (ids: readonly string[]): SQL => sql`${chatSessions.id} in (select value::uuid from ${jsonTexts(ids)})`
