/**
 * Which model answers: from a run's mode, or from the model that a request names, to a provider that is configured. The
 * catalog owns the providers it made and closes them. It waits for nothing and asks no provider whether a model exists:
 * the provider says so itself, with `upstream_rejected`.
 */
import { Problem } from '../errors.ts'
import type { Mode } from '../log/event.ts'
import { createDemo } from './demo.ts'
import { createOpenai } from './openai.ts'
import type { ModePlan, PlansByMode } from './plan.ts'
import type { Upstream } from './upstream.ts'

/** Of a model name in a request. The longest in use, of fine-tuned models, have about a hundred. */
const modelUnitsMax = 200

type Provider = 'openai' | 'demo'

export interface ModelChoice {
  readonly provider: Provider
  readonly model: string
}

export interface CatalogOptions {
  /** Absent: there is only the demo. */
  readonly openai: { readonly baseUrl: string; readonly apiKey: string | undefined } | undefined
  readonly models: { readonly fast: ModelChoice; readonly balanced: ModelChoice; readonly quality: ModelChoice }
  readonly firstByteMs: number
  readonly idleMs: number
  readonly totalMs: number
}

export interface ResolvedModel extends ModelChoice {
  readonly upstream: Upstream
}

export interface Catalog {
  /**
   * @param model `provider:model`, or a bare name: `demo` is the demo, every other one goes to openai. Only the first colon
   *   counts, so a model whose own name has one is written `openai:llama3:8b`. Absent: the mode's model
   * @throws Problem `invalid_request` when the name is no name, or its provider is unknown or not configured
   */
  resolve(mode: Mode, model?: string): ResolvedModel
  /** The plan of each mode. @throws as `resolve` */
  plansFor(model: string | undefined): PlansByMode
  /** Every configured `provider:model`, each once, the balanced one first. */
  names(): string[]
  /** For the start line: the providers and where they are, without keys. */
  readonly providers: readonly string[]
  /** Streams still open are cut. */
  close(): Promise<void>
}

export function createCatalog(options: CatalogOptions): Catalog {
  const { openai, models, firstByteMs, idleMs, totalMs } = options
  const upstreams: { readonly [P in Provider]: Upstream | undefined } = {
    openai: openai === undefined ? undefined : createOpenai({ ...openai, firstByteMs, idleMs, totalMs }),
    demo: createDemo(),
  }
  // `adaptive` has no router yet and means the balanced model.
  const modeModels: Readonly<Record<Mode, ModelChoice>> = { ...models, adaptive: models.balanced }

  function choose(mode: Mode, model: string | undefined): ModelChoice {
    if (model === undefined) return modeModels[mode]
    const name = model.trim()
    if (name === '' || name.length > modelUnitsMax) {
      throw new Problem('invalid_request', `model must have 1 to ${modelUnitsMax} characters.`)
    }
    const colon = name.indexOf(':')
    if (colon === -1) return name === 'demo' ? { provider: 'demo', model: name } : { provider: 'openai', model: name }
    const provider = name.slice(0, colon)
    const rest = name.slice(colon + 1)
    if (!isProvider(provider)) {
      throw new Problem(
        'invalid_request',
        'model names a provider that does not exist here: there are openai and demo.',
      )
    }
    if (rest === '') throw new Problem('invalid_request', 'model must name a model after its provider.')
    return { provider, model: rest }
  }

  return {
    resolve(mode, model) {
      const choice = choose(mode, model)
      const upstream = upstreams[choice.provider]
      if (upstream === undefined) {
        throw new Problem('invalid_request', `model names the provider ${choice.provider}, which is not configured.`)
      }
      return { ...choice, upstream }
    },
    plansFor(model) {
      const planOf = (mode: Mode): ModePlan => {
        const { provider, model: name } = this.resolve(mode, model)
        return { plan: { candidates: [{ provider, model: name }], profile: mode === 'adaptive' ? 'balanced' : mode } }
      }
      return {
        fast: planOf('fast'),
        balanced: planOf('balanced'),
        quality: planOf('quality'),
        adaptive: planOf('adaptive'),
      }
    },
    names() {
      const choices = [models.balanced, models.fast, models.quality]
      return [...new Set(choices.map(({ provider, model }) => `${provider}:${model}`))]
    },
    // The host only: a base URL may hold a password or a token in its path.
    providers: [...(openai === undefined ? [] : [`openai (${new URL(openai.baseUrl).host})`]), 'demo'],
    async close() {
      await Promise.all([upstreams.openai?.close(), upstreams.demo?.close()])
    },
  }
}

function isProvider(name: string): name is Provider {
  return name === 'openai' || name === 'demo'
}
