/**
 * Which models may answer, and how: from a run's mode and its message, or from the model that a request names, to a plan;
 * from a plan's names to settings and providers; and what they cost. The catalog owns the providers: those it made, and
 * those that it was given ready-made, which nobody else could close. It waits for nothing and asks no provider whether a
 * model exists: the provider says so itself, with `upstream_rejected`.
 */
import { Problem } from '../errors.ts'
import { judge, longHistoryFrom } from './adaptive.ts'
import { createAnthropic } from './anthropic.ts'
import { createDemo } from './demo.ts'
import { createGemini } from './gemini.ts'
import type { HttpLimits } from './http.ts'
import { createOpenai } from './openai.ts'
import { fitsPattern } from './pattern.ts'
import {
  type ModelChoice,
  type ModePlan,
  modelUnitsMax,
  type PlansByMode,
  type Profile,
  type ProfileName,
  type RunPlan,
} from './plan.ts'
import type { Price } from './price-table.ts'
import { createPrices, type Prices } from './prices.ts'
import { demoProvider, type ProviderKind, type ProviderSettings } from './providers.ts'
import type { Upstream } from './upstream.ts'

export type Models = readonly [ModelChoice, ...ModelChoice[]]

export interface CatalogOptions extends Pick<HttpLimits, 'firstByteMs' | 'idleMs' | 'totalMs' | 'rest'> {
  /** The demo is always there, beside them. */
  readonly providers: readonly ProviderSettings[]
  /** Of each profile, in the order in which they are asked. */
  readonly models: Readonly<Record<ProfileName, Models>>
  readonly profiles: Readonly<Record<ProfileName, Profile>>
  /** What a request may name, as patterns of `provider:model`. Absent: every model of every provider that is here. */
  readonly modelsAllowed?: readonly string[] | undefined
  /** The site's own. */
  readonly prices: readonly Price[]
  /** Providers that are ready-made. They go before one of `providers` with the same name. */
  readonly upstreams?: readonly Upstream[] | undefined
}

export interface Asked {
  /**
   * `provider:model`, or a bare name: `demo` is the demo, any other one goes to openai, or without it to the provider of
   * the balanced model. Only the first colon counts, so a model whose own name has one is written `openai:llama3:8b`.
   * Absent: the models of the mode.
   */
  readonly model: string | undefined
  /** What is to be answered; `adaptive` judges it. */
  readonly text: string
}

export interface Catalog {
  /** The plan of each mode. @throws Problem `invalid_request` when the model is no name, not configured or not allowed */
  plansFor(asked: Asked): PlansByMode
  profile(name: ProfileName): Profile
  /** @throws Problem `upstream_rejected` when it is not configured any more: a plan is older than this process */
  upstreamOf(provider: string): Upstream
  readonly prices: Prices
  /** Every configured `provider:model`, each once, the balanced ones first. */
  names(): string[]
  /** Those that a request may name: of `names`, and of `modelsAllowed` what is a name and no pattern. */
  listed(): string[]
  /** For the start line: the providers and where they are, without keys. */
  readonly providers: readonly string[]
  /** Those of `names` whose price is not known: what they cost will be null. */
  readonly unpriced: readonly string[]
  /** Streams still open are cut. */
  close(): Promise<void>
}

type Create = (
  options: HttpLimits & Omit<ProviderSettings, 'name' | 'kind'> & { readonly provider: string },
) => Upstream

/** The adapter of each dialect. */
const adapters: Readonly<Record<ProviderKind, Create>> = {
  openai: createOpenai,
  anthropic: createAnthropic,
  gemini: createGemini,
}

export function createCatalog(options: CatalogOptions): Catalog {
  const { models, profiles, modelsAllowed, upstreams: readyMade = [], firstByteMs, idleMs, totalMs, rest } = options
  const limits = { firstByteMs, idleMs, totalMs, ...(rest && { rest }) }
  const madeHere = options.providers.filter(({ name }) => readyMade.every(({ provider }) => provider !== name))
  const upstreams = new Map<string, Upstream>([
    ...madeHere.map((settings) => [settings.name, open(settings, limits)] as const),
    [demoProvider, createDemo()],
    ...readyMade.map((upstream) => [upstream.provider, upstream] as const),
  ])
  const prices = createPrices(options.prices)

  function names(): string[] {
    const choices = [...models.balanced, ...models.fast, ...models.quality]
    return [...new Set(choices.map(nameOf))]
  }

  function choose(model: string): ModelChoice {
    const name = model.trim()
    if (name === '' || name.length > modelUnitsMax) {
      throw new Problem('invalid_request', `model must have 1 to ${modelUnitsMax} characters.`)
    }
    const choice = split(name)
    if (!upstreams.has(choice.provider)) {
      throw new Problem('invalid_request', 'model names a provider that is not configured here.')
    }
    if (choice.model === '') throw new Problem('invalid_request', 'model must name a model after its provider.')
    if (modelsAllowed !== undefined && !modelsAllowed.some((pattern) => fitsPattern(pattern, nameOf(choice)))) {
      throw new Problem('invalid_request', 'model is not one of the models that may be asked for here.')
    }
    return choice
  }

  function split(name: string): ModelChoice {
    const colon = name.indexOf(':')
    if (colon !== -1) return { provider: name.slice(0, colon), model: name.slice(colon + 1) }
    if (name === demoProvider) return { provider: demoProvider, model: name }
    if (upstreams.has('openai')) return { provider: 'openai', model: name }
    const { provider } = models.balanced[0]
    if (provider === demoProvider) {
      // The demo answers to every name. Whoever names a model means one.
      throw new Problem('invalid_request', 'model names no provider, and none is configured here.')
    }
    return { provider, model: name }
  }

  return {
    plansFor({ model, text }) {
      const named = model === undefined ? undefined : choose(model)
      const planOf = (profile: ProfileName, reasons?: readonly string[]): RunPlan => ({
        candidates: named === undefined ? models[profile] : [named],
        profile,
        ...(reasons === undefined ? {} : { reasons }),
      })
      return {
        fast: { plan: planOf('fast') },
        balanced: { plan: planOf('balanced') },
        quality: { plan: planOf('quality') },
        adaptive: planAdaptive(text, planOf),
      }
    },
    profile: (name) => profiles[name],
    upstreamOf(provider) {
      const upstream = upstreams.get(provider)
      if (upstream !== undefined) return upstream
      throw new Problem('upstream_rejected', 'The provider of this reply is not configured any more.')
    },
    prices,
    names,
    listed() {
      const isAllowed = (name: string) =>
        modelsAllowed === undefined || modelsAllowed.some((pattern) => fitsPattern(pattern, name))
      const named = (modelsAllowed ?? []).filter((name) => !name.includes('*') && upstreams.has(split(name).provider))
      return [...new Set([...names().filter(isAllowed), ...named])]
    },
    providers: [
      // The host only: a base URL may hold a password or a token in its path.
      ...madeHere.map(({ name, baseUrl }) => `${name} (${new URL(baseUrl).host})`),
      ...readyMade.map(({ provider }) => provider),
      ...(readyMade.some(({ provider }) => provider === demoProvider) ? [] : [demoProvider]),
    ],
    unpriced: names().filter((name) => prices.perToken(split(name), new Date()) === undefined),
    async close() {
      // A site's own may fail at it, which must not keep the others, and then the stores, open.
      await Promise.allSettled([...upstreams.values()].map((upstream) => upstream.close()))
    },
  }
}

/** What a message comes to by itself and, where that is something else, in a long session. Only the database knows which. */
function planAdaptive(text: string, planOf: (profile: ProfileName, reasons: readonly string[]) => RunPlan): ModePlan {
  const alone = judge(text, 0)
  const late = judge(text, longHistoryFrom)
  return {
    plan: planOf(alone.profile, alone.reasons),
    ...(late.profile === alone.profile
      ? {}
      : { later: { from: longHistoryFrom, plan: planOf(late.profile, late.reasons) } }),
  }
}

function open({ name, kind, ...settings }: ProviderSettings, limits: HttpLimits): Upstream {
  return adapters[kind]({ provider: name, ...settings, ...limits })
}

function nameOf({ provider, model }: ModelChoice): string {
  return `${provider}:${model}`
}
