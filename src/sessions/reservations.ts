/**
 * Giving back what a run has held back of the budgets of its day (runs/budgets.ts), for the statements by which runs end:
 * the commit, and the erasing of sessions. What a run holds stands in its own row, with the day and the budgets it was
 * taken from; so it is settled there, whatever day it is by then, whatever is configured, and whoever owns the session.
 *
 * Locks are taken in one order everywhere: a session's row, its runs' rows, then budgets, and of these an owner's before that
 * of all, which everybody wants.
 */
import { type SQL, sql } from '../db/drizzle.ts'

/** What a run holds, as JSON in its row. */
export interface Reservation {
  /** ISO date in UTC. */
  readonly day: string
  readonly scopes: readonly string[]
  /** USD, decimal. */
  readonly cost: string
  readonly tokens: number
}

/** The order in which rows of `budget_days` are locked. */
export const lockOrder = (scope: SQL, day: SQL): SQL => sql`${scope} = 'all', ${scope}, ${day}`

/**
 * Parts of a `with`: gives back what runs have held, and books what they have spent.
 * @param ended the name of a part with a row for each run: `reservation`, which may be null, `spent_cost`, `spent_tokens`
 */
export const settle = (ended: SQL): SQL => sql`
  held as (
    -- A row for each budget, because an update changes a row once.
    select
      scope, (reservation ->> 'day')::date as day,
      sum((reservation ->> 'cost')::numeric) as held_cost, sum((reservation ->> 'tokens')::bigint)::bigint as held_tokens,
      sum(spent_cost) as spent_cost, sum(spent_tokens)::bigint as spent_tokens
    from ${ended}, jsonb_array_elements_text(reservation -> 'scopes') scope
    group by scope, day
  ), budget as materialized (
    select b.scope, b.day from budget_days b join held on b.scope = held.scope and b.day = held.day
    order by ${lockOrder(sql`b.scope`, sql`b.day`)}
    for update of b
  ), settled as (
    update budget_days b set
      reserved_cost = b.reserved_cost - held.held_cost,
      reserved_tokens = b.reserved_tokens - held.held_tokens,
      spent_cost = b.spent_cost + held.spent_cost,
      spent_tokens = b.spent_tokens + held.spent_tokens,
      -- More than was held may have been spent; that is no reason to lose what was said.
      within = true
    from budget, held
    where b.scope = budget.scope and b.day = budget.day and held.scope = budget.scope and held.day = budget.day
  )`
