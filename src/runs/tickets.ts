/**
 * Stream tickets: what an EventSource carries in its URL, because it can send no header, and to another site no cookie.
 * A ticket opens the events of one run for one owner, and nothing else.
 *
 * It is `<expiry>.<HMAC-SHA-256 of run, owner and expiry>`, so nothing is stored for each ticket and any process can read
 * it. The key is the run's own: random, made with the run's first ticket, and kept in its row. A key for all runs would
 * have to come from the environment, where none is required, or be made once and held by every process; this one needs
 * neither, opens one run at most when it is lost, and is gone with the run. The run has to be read anyway: whether a
 * ticket still serves a reconnect depends on when the run ended. Times are the database's, so clocks that differ between
 * processes do not shorten or lengthen a ticket.
 *
 * At each await: when the process or the database dies while a ticket is made, the key may be there without a ticket,
 * and the next one takes it. While one is read, the caller gets `db_unavailable`, which says nothing about the ticket.
 */
import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto'
import { type Static, Type } from 'typebox'
import type { Db } from '../db/db.ts'
import { sql } from '../db/drizzle.ts'
import { Problem } from '../errors.ts'
import type { Owner, TicketReader } from '../http/identity.ts'
import { uuidPattern } from '../http/text.ts'

export const StreamTicket = Type.Object({
  ticket: Type.String(),
  expires_in: Type.Integer({ description: 'seconds in which a first connection has to be made' }),
})
export type StreamTicket = Static<typeof StreamTicket>

export interface TicketOptions {
  readonly db: Db
  /** How long a first connection may take to come. */
  readonly firstConnectionMs?: number
  /** How long after the run's end a reconnect is still served: the connection may have been cut just before `done`. */
  readonly afterEndMs?: number
}

export interface Tickets {
  /** @throws Problem `not_found` when the run is not this owner's */
  issue(owner: Owner, runId: string): Promise<StreamTicket>
  readonly read: TicketReader
}

const keyBytes = 32
// Milliseconds since 1970, thirteen digits until the year 2286; then 256 bits.
const ticketPattern = /^(\d{13})\.([A-Za-z0-9_-]{43})$/
const nowMs = sql`floor(extract(epoch from now()) * 1000)::float8`

export function createTickets(options: TicketOptions): Tickets {
  const { db, firstConnectionMs = 60_000, afterEndMs = 60_000 } = options
  return {
    async issue(owner, runId) {
      const fresh = randomBytes(keyBytes).toString('base64url')
      const [run] = await db.rows<{ id: string; ticket_key: string; now_ms: number }>(sql`
        update chat_runs set ticket_key = coalesce(ticket_key, ${fresh})
        where id = ${runId}::uuid and owner = ${owner.key}
        returning id, ticket_key, ${nowMs} as now_ms`)
      if (run === undefined) throw new Problem('not_found')
      const expiresAt = run.now_ms + firstConnectionMs
      return {
        ticket: `${expiresAt}.${sign(run.ticket_key, run.id, owner.key, expiresAt)}`,
        expires_in: Math.floor(firstConnectionMs / 1000),
      }
    },

    async read(ticket, runId, reconnects) {
      const [, expiry, signature] = ticketPattern.exec(ticket) ?? []
      // Before the database is asked, which would refuse what is no uuid.
      if (expiry === undefined || signature === undefined || !uuidPattern.test(runId)) return undefined
      const [run] = await db.rows<TicketRow>(sql`
        select id, owner, ticket_key, ${nowMs} as now_ms,
          status in ('queued', 'running') or ended_at > now() - ${afterEndMs}::int * interval '1 millisecond' as followed
        from chat_runs where id = ${runId}::uuid and ticket_key is not null`)
      if (run === undefined) return undefined
      const expiresAt = Number(expiry)
      if (!isSame(signature, sign(run.ticket_key, run.id, run.owner, expiresAt))) return undefined
      return run.now_ms < expiresAt || (reconnects && run.followed) ? run.owner : undefined
    },
  }
}

interface TicketRow {
  readonly id: string
  readonly owner: string
  readonly ticket_key: string
  readonly now_ms: number
  /** Whether a viewer that comes back may have missed the end. */
  readonly followed: boolean
}

function sign(key: string, runId: string, ownerKey: string, expiresAt: number): string {
  // The owner's key comes last: it is the only one that could hold the separator.
  return createHmac('sha256', key).update(`${runId} ${expiresAt} ${ownerKey}`).digest('base64url')
}

// As text, because several texts of base64url are the same bytes, and only one of them was issued.
const isSame = (a: string, b: string): boolean => timingSafeEqual(Buffer.from(a), Buffer.from(b))
