/**
 * The record of a conversation that a summary is made of: the messages on one way through a session, read from the database
 * in one statement, and written down as lines of JSON for a model, as many whole turns as fit. It keeps nothing, and waits
 * only for that statement.
 */
import { type Db, exactText } from '../db/db.ts'
import { sql } from '../db/drizzle.ts'
import type { Fold } from './window.ts'

/** Messages that one job reads, and characters of each; a longer conversation is summarized in several jobs. */
const rowsMax = 500
const contentUnitsMax = 6000
const toolUnitsMax = 1500
/** Messages of which a job looks at the ids only, to find where it has to begin. */
const wayMax = 5000

export interface RecordRow {
  readonly id: string
  readonly role: string
  readonly content: string
  readonly tools: readonly { readonly [field: string]: string | null }[] | null
}

/**
 * The messages on the way to `upTo`, oldest first, from the one on up to which there is a summary, if it is on that way:
 * that one is then the first row. Of very many the oldest.
 */
export function readRecord(db: Db, sessionId: string, { upTo, summarizedTo }: Fold): Promise<RecordRow[]> {
  return db.rows<RecordRow>(sql`
    with recursive way as (
      select m.id, m.parent_id, m.seq, 1 as depth from chat_messages m
      where m.id = ${upTo}::uuid and m.session_id = ${sessionId}::uuid
      union all
      select m.id, m.parent_id, m.seq, way.depth + 1 from way join chat_messages m on m.id = way.parent_id
      where way.id is distinct from ${summarizedTo}::uuid and way.depth < ${wayMax}::int
    ), oldest as (
      select id, seq from way order by seq limit ${rowsMax}::int
    )
    select
      m.id, m.role, ${exactText(sql`left(m.content, ${contentUnitsMax}::int)`)} as content, (
        select jsonb_agg(jsonb_build_object(
          'name', part ->> 'name', 'input', nullif(left(part ->> 'text', ${toolUnitsMax}::int), ''),
          'output', left(part ->> 'output', ${toolUnitsMax}::int),
          'error', left(part #>> '{error,message}', ${toolUnitsMax}::int)
        ) order by place)
        from jsonb_array_elements(m.parts) with ordinality as own (part, place) where part ->> 'kind' = 'tool_call'
      ) as tools
    from oldest join lateral (
      select * from chat_messages where id = oldest.id
    ) m on true
    order by oldest.seq`)
}

interface CutOptions {
  readonly record: readonly RecordRow[]
  /** Lines that go first. */
  readonly before: readonly string[]
  /** It ends where it has to end, and so does its last turn. */
  readonly isWhole: boolean
  readonly tokensMax: number
  readonly estimateText: (text: string) => number
}

/** As many whole turns as fit, and at least the first one, of which the end is left out where it is too long. */
export function cutRecord({ record, before, isWhole, tokensMax, estimateText }: CutOptions): {
  readonly lines: readonly string[]
  readonly upTo: string
} {
  const lines = [...before]
  let tokens = before.reduce((sum, line) => sum + estimateText(line), 0)
  let upTo = ''
  for (let begin = 0; begin < record.length; ) {
    const next = record.findIndex(({ role }, index) => index > begin && (role === 'user' || role === 'system'))
    const turn = record.slice(begin, next === -1 ? record.length : next)
    const own = turn.flatMap(toLine)
    const size = own.reduce((sum, line) => sum + estimateText(line), 0)
    const fits = tokens + size <= tokensMax && (isWhole || next !== -1)
    if (begin > 0 && !fits) break
    for (const line of own) {
      tokens += estimateText(line)
      if (tokens > tokensMax) break
      lines.push(line)
    }
    upTo = turn.at(-1)?.id ?? upTo
    begin += turn.length
  }
  return { lines, upTo }
}

function toLine({ role, content, tools }: RecordRow): string[] {
  if (content === '' && tools === null) return []
  const called = tools?.map((tool) => Object.fromEntries(Object.entries(tool).filter(([, value]) => value !== null)))
  return [JSON.stringify({ role, ...(content === '' ? {} : { text: content }), ...(called && { tools: called }) })]
}
