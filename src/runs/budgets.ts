/**
 * Budgets: what a user, a visitor and all together may spend in a day. A budget is held back before a model is asked and
 * settled when the run ends, so that many messages at once cannot spend together what each of them alone could have.
 *
 * The day is that of UTC, by the database's clock. Of each day and scope (an owner's key, or `all`) there is one row in
 * `budget_days`: what was spent, and what runs that have not ended may still spend. The statement that accepts a message
 * adds to it what the reply may cost at most, and refuses itself by a check when that is more than the limit: message,
 * run and reservation are written together or not at all, however many ask. So a repeat with the same key holds nothing
 * back twice, and a lost answer holds what the stored run holds.
 *
 * How much is held back: the prompt (the new message, the profile's own words and the last messages of the session, never
 * more than the profile's context) at the price of input, and the longest reply at the price of output, both at the prices
 * of the dearest model that the plan names. The longest reply is the profile's `maxOutputTokens`, or {@link
 * outputTokensDefault}; the number is stored with the run, whose model is given it as its limit. What a reply of several
 * steps, or an agent, uses beyond that is booked when it ends.
 *
 * What a run holds is settled on its own day by whatever ends it (sessions/reservations.ts), also when the process that
 * ends it has other limits or none. Nothing here is kept in this process but the names of models it has warned about.
 * At each await: the statement has happened or not; a process that dies leaves the reservation with its run, and whoever
 * takes that over settles it.
 */
import type { FastifyBaseLogger } from 'fastify'
import { Type } from 'typebox'
import type { Db } from '../db/db.ts'
import { type SQL, sql } from '../db/drizzle.ts'
import { Problem } from '../errors.ts'
import type { Owner } from '../http/identity.ts'
import type { Mode } from '../log/event.ts'
import { largerDecimal } from '../sessions/decimal.ts'
import { nullable } from '../sessions/model.ts'
import { lockOrder } from '../sessions/reservations.ts'
import { isoTime } from '../sessions/store.ts'
import type { ModelChoice, PlansByMode, Profile, ProfileName, RunPlan } from '../upstream/plan.ts'
import { type Estimator, unitsOf } from './estimate.ts'
import type { RunRequest } from './model.ts'
import { outputTokensDefault } from './window.ts'

/** A day's limits. USD as decimal text; what is absent is not limited. */
export interface BudgetLimits {
  readonly userDayUsd?: string | undefined
  readonly visitorDayUsd?: string | undefined
  /** Of everybody together. */
  readonly dayUsd?: string | undefined
  readonly userDayTokens?: number | undefined
  readonly visitorDayTokens?: number | undefined
}

/** What models will cost. */
export interface TokenPricing {
  /**
   * @param inputTokens how long the prompt may be, where long ones cost more
   * @returns USD of one token, decimal; undefined when the price is not known
   */
  perToken(
    choice: ModelChoice,
    at: Date,
    inputTokens: number,
  ): { readonly input: string; readonly output: string } | undefined
}

export interface BudgetsOptions {
  readonly db: Db
  readonly limits: BudgetLimits
  readonly pricing: TokenPricing
  readonly estimator: Estimator
  readonly profileOf: (name: ProfileName) => Pick<Profile, 'contextTokens' | 'maxOutputTokens' | 'systemPrompt'>
  readonly logger: Pick<FastifyBaseLogger, 'warn'>
}

/** What is to be paid for. */
export interface Asking {
  /** All that is new in the prompt. */
  readonly text: string
  /** What was said before and is not stored yet. */
  readonly brought?: string | undefined
  /** Whether the request names its model itself. */
  readonly isNamed: boolean
  /** The longest reply that the request wants. */
  readonly outputTokensMax?: number | undefined
}

/** Of one message, for the statement that accepts it. */
export interface Hold {
  /** The plans as they are stored, each with what it holds back. */
  readonly plans: Readonly<Record<Mode, HeldPlan & { readonly later?: HeldPlan & { readonly from: number } }>>
  /**
   * What the run holds, as jsonb.
   * @param hold the `hold` of the plan that the session's mode has come to
   * @param sessionId of the session, which may not exist yet
   */
  reservation(hold: SQL, sessionId: string): SQL
  /** A part of a `with` that takes it from the budgets, once the part `run` has stored it in its `reservation`. */
  readonly taken: SQL
}

interface HeldPlan {
  readonly plan: RunPlan & Pick<RunRequest, 'max_output_tokens'>
  readonly hold: {
    /** A token each. */
    readonly input_usd: string
    readonly output_usd: string
    readonly prompt_tokens: number
    readonly context_tokens: number
    readonly output_tokens: number
  }
}

export const DayUsage = Type.Object({
  day: Type.String({ format: 'date', description: 'in UTC' }),
  spent_usd: Type.String({ description: 'decimal; without what has no price' }),
  spent_tokens: Type.Integer(),
  reserved_usd: Type.String({ description: 'held back for replies under way; decimal' }),
  limit_usd: nullable(Type.String({ description: 'decimal' })),
  limit_tokens: nullable(Type.Integer()),
  resets_at: Type.String({ description: 'ISO 8601 in UTC' }),
})

/** The name of the check that refuses. */
export const budgetConstraint = 'budget_days_within'

/** For the message, its role and the profile's words around it. */
const frameTokens = 8
/** Messages of the session that may go upstream with a new one; a window of a model holds more only when they are short. */
const historyMessages = 200
const octetsPerToken = 4
/** Of one part of text beside its words. */
const partOctets = 64
const warningsMax = 256
const everybody = 'all'

export type Budgets = ReturnType<typeof createBudgets>

export function createBudgets({ db, limits, pricing, estimator, profileOf, logger }: BudgetsOptions) {
  const warned = new Set<string>()

  /** Undefined when no budget applies. */
  function limitsOf({ kind }: Owner) {
    const usd = kind === 'user' ? limits.userDayUsd : limits.visitorDayUsd
    const tokens = kind === 'user' ? limits.userDayTokens : limits.visitorDayTokens
    if (usd === undefined && tokens === undefined && limits.dayUsd === undefined) return undefined
    return { usd, tokens, isPriced: usd !== undefined || limits.dayUsd !== undefined }
  }

  function warnOnce({ provider, model }: ModelChoice): void {
    const name = `${provider}:${model}`
    if (warned.has(name) || warned.size >= warningsMax) return
    warned.add(name)
    logger.warn({ provider, model }, 'a model has no price, and a budget in USD holds nothing back for it')
  }

  function priceOfPlan({ candidates }: RunPlan, inputTokens: number, isNamed: boolean) {
    let [input, output] = ['0', '0']
    for (const choice of candidates) {
      const price = pricing.perToken(choice, new Date(), inputTokens)
      if (price === undefined && isNamed) {
        throw new Problem('invalid_request', 'model names a model without a price, and there is a budget in USD.')
      }
      if (price === undefined) warnOnce(choice)
      input = largerDecimal(input, price?.input ?? '0')
      output = largerDecimal(output, price?.output ?? '0')
    }
    return { input, output }
  }

  function hold(plan: RunPlan, { text, brought = '', isNamed, outputTokensMax }: Asking, isPriced: boolean): HeldPlan {
    const settings = profileOf(plan.profile)
    const { contextTokens, systemPrompt = '' } = settings
    const maxOutputTokens = Math.min(settings.maxOutputTokens ?? outputTokensDefault, outputTokensMax ?? Infinity)
    const tokensOf = (units: number) => Math.max(...plan.candidates.map((choice) => estimator.tokensOf(choice, units)))
    const newTokens = frameTokens + tokensOf(unitsOf(text) + unitsOf(systemPrompt))
    // Of what was said before, no more goes upstream than the context holds.
    const promptTokens = Math.max(newTokens, Math.min(contextTokens, newTokens + tokensOf(unitsOf(brought))))
    const inputTokens = Math.max(contextTokens, promptTokens)
    const price = isPriced ? priceOfPlan(plan, inputTokens, isNamed) : { input: '0', output: '0' }
    return {
      plan: { ...plan, max_output_tokens: maxOutputTokens },
      hold: {
        input_usd: price.input,
        output_usd: price.output,
        prompt_tokens: promptTokens,
        context_tokens: contextTokens,
        output_tokens: maxOutputTokens,
      },
    }
  }

  return {
    /**
     * @returns undefined when no budget applies to this owner: nothing is held back, and nothing written
     * @throws Problem `invalid_request` for a model that is asked for by name, has no price, and would be paid by nobody
     */
    holdFor(owner: Owner, plans: PlansByMode, asking: Asking): Hold | undefined {
      const own = limitsOf(owner)
      if (own === undefined) return undefined
      const held = (plan: RunPlan) => hold(plan, asking, own.isPriced)
      const heldByMode = (mode: Mode) => {
        const { plan, later } = plans[mode]
        return { ...held(plan), ...(later === undefined ? {} : { later: { from: later.from, ...held(later.plan) } }) }
      }
      const scopes = [owner.key, ...(limits.dayUsd === undefined ? [] : [everybody])]
      return {
        plans: {
          fast: heldByMode('fast'),
          balanced: heldByMode('balanced'),
          quality: heldByMode('quality'),
          adaptive: heldByMode('adaptive'),
        },
        reservation: (chosen, sessionId) => reservationOf(chosen, sessionId, scopes),
        taken: takeFrom(scopes, own, limits.dayUsd),
      }
    },

    /** What to answer when the check has refused. @throws Problem `db_unavailable` */
    async refusalFor(owner: Owner): Promise<Problem> {
      const own = limitsOf(owner)
      const budgets = [
        { name: 'your budget', scope: owner.key, usd: own?.usd, tokens: undefined },
        { name: 'your tokens', scope: owner.key, usd: undefined, tokens: own?.tokens },
        { name: 'the budget of all users together', scope: everybody, usd: limits.dayUsd, tokens: undefined },
      ].filter(({ usd, tokens }) => usd !== undefined || tokens !== undefined)
      // The one that is used up furthest. Which one has refused is not told by the database.
      const [row] = await db.rows<{ name: string | null; seconds: number; ends_at: string }>(sql`
        select limits.name, ceil(extract(epoch from ${dayEnd} - now()))::int as seconds, ${isoTime(dayEnd)} as ends_at
        from (select 1) one
        left join jsonb_to_recordset(${JSON.stringify(budgets)}::jsonb)
          as limits (name text, scope text, usd numeric, tokens numeric) on true
        left join budget_days b on b.scope = limits.scope and b.day = ${today}
        order by coalesce(
          (b.spent_cost + b.reserved_cost) / nullif(limits.usd, 0),
          (b.spent_tokens + b.reserved_tokens) / nullif(limits.tokens, 0),
          0
        ) desc
        limit 1`)
      const name = row?.name ?? 'the budget'
      return new Problem(
        'budget_exceeded',
        `What this reply may use does not fit into what is left of ${name} for the day, which ends at ${row?.ends_at}.`,
        { retryAfterSeconds: Math.max(1, row?.seconds ?? 1) },
      )
    },

    /** What an owner has spent today, and may. @throws Problem `db_unavailable` */
    async readUsage(owner: Owner) {
      const own = limitsOf(owner)
      // Without a budget nothing is booked; then it is what the runs say of the sessions that are there. One in which a run
      // has ended today was active today, for which there is an index.
      const figures =
        own === undefined
          ? sql`
            select sum(r.cost) as spent_cost, sum((r.usage ->> 'total_tokens')::numeric) as spent_tokens, 0 as reserved_cost
            from chat_sessions s join chat_runs r on r.session_id = s.id
            where s.owner = ${owner.key} and s.deleted_at is null and s.last_activity_at >= ${dayBegin}
              and r.ended_at >= ${dayBegin}`
          : sql`select spent_cost, spent_tokens, reserved_cost from budget_days where scope = ${owner.key} and day = ${today}`
      const [row] = await db.rows<{
        day: string
        spent_usd: string
        spent_tokens: number
        reserved_usd: string
        resets_at: string
      }>(sql`
        select
          ${today}::text as day, trim_scale(coalesce(spent_cost, 0))::text as spent_usd,
          coalesce(spent_tokens, 0)::float8 as spent_tokens, trim_scale(coalesce(reserved_cost, 0))::text as reserved_usd, ${isoTime(dayEnd)} as resets_at
        from (select 1) one left join (${figures}) figures on true`)
      return { ...(row as NonNullable<typeof row>), limit_usd: own?.usd ?? null, limit_tokens: own?.tokens ?? null }
    },
  }
}

const today = sql`(now() at time zone 'UTC')::date`
const dayBegin = sql`(${today}::timestamp at time zone 'UTC')`
const dayEnd = sql`((${today} + 1)::timestamp at time zone 'UTC')`

function reservationOf(hold: SQL, sessionId: string, scopes: readonly string[]): SQL {
  return sql`(
    select jsonb_build_object(
      'day', ${today}, 'scopes', ${JSON.stringify(scopes)}::jsonb,
      'cost', trim_scale(input.tokens * price.input_usd + price.output_tokens * price.output_usd)::text,
      'tokens', input.tokens + price.output_tokens
    )
    from jsonb_to_record(${hold}) as price (
      input_usd numeric, output_usd numeric, prompt_tokens bigint, context_tokens bigint, output_tokens bigint
    ), lateral (
      -- Without reading them: the length of a text is at hand. What tools were given and said is in the parts, packed.
      select coalesce(sum(greatest(octet_length(content), pg_column_size(parts) - ${partOctets}::int)), 0) as octets from (
        select content, parts from chat_messages
        where session_id = ${sessionId}::uuid order by seq desc limit ${historyMessages}::int
      ) last
    ) history, lateral (
      select greatest(
        price.prompt_tokens, least(price.context_tokens, price.prompt_tokens + history.octets / ${octetsPerToken}::int)
      ) as tokens
    ) input
  )`
}

function takeFrom(
  scopes: readonly string[],
  own: { readonly usd: string | undefined; readonly tokens: number | undefined },
  allUsd: string | undefined,
): SQL {
  const usdOf = (scope: SQL) =>
    sql`case when ${scope} = ${everybody} then ${allUsd ?? null}::numeric else ${own.usd ?? null}::numeric end`
  const tokensOf = (scope: SQL) =>
    sql`case when ${scope} = ${everybody} then null else ${own.tokens ?? null}::bigint end`
  const within = (scope: SQL, cost: SQL, tokens: SQL) =>
    sql`coalesce(${cost} <= ${usdOf(scope)}, true) and coalesce(${tokens} <= ${tokensOf(scope)}, true)`
  return sql`
    asked as (
      select
        scope, (run.reservation ->> 'day')::date as day, (run.reservation ->> 'cost')::numeric as cost,
        (run.reservation ->> 'tokens')::bigint as tokens
      from run, jsonb_array_elements_text(${JSON.stringify(scopes)}::jsonb) scope
    ), taken as (
      insert into budget_days as b (scope, day, reserved_cost, reserved_tokens, within)
      select scope, day, cost, tokens, ${within(sql`scope`, sql`cost`, sql`tokens`)}
      from asked order by ${lockOrder(sql`scope`, sql`day`)}
      on conflict (scope, day) do update set
        reserved_cost = b.reserved_cost + excluded.reserved_cost,
        reserved_tokens = b.reserved_tokens + excluded.reserved_tokens,
        within = ${within(
          sql`b.scope`,
          sql`b.spent_cost + b.reserved_cost + excluded.reserved_cost`,
          sql`b.spent_tokens + b.reserved_tokens + excluded.reserved_tokens`,
        )}
    )`
}
