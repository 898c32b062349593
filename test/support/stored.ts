/** What a gateway has stored, read by SQL from its own database. */
import { sql } from '../../src/db/drizzle.ts'
import type { Gateway } from './gateway.ts'

export interface Counts {
  readonly sessions: number
  readonly messages: number
  readonly runs: number
}

/** Rows of the tables that a request can add to. */
export async function countRows({ app }: Gateway): Promise<Counts> {
  const [counts] = await app.db.rows<Counts>(sql`
    select
      (select count(*)::int from chat_sessions) as sessions,
      (select count(*)::int from chat_messages) as messages,
      (select count(*)::int from chat_runs) as runs`)
  return counts as Counts
}
