/**
 * Asking for one reply of a model, as often as it takes: the models that a plan names, in their order, each with a few
 * tries. Until the first visible part of a reply nobody knows which model it comes from, so another try costs a viewer
 * nothing but time; after it there is none, because two halves of two replies are no reply.
 *
 * - What passes (too many requests, overloaded, a cut) is tried again on the same model, `retries` times at most, after a
 *   pause that doubles, with jitter, or after what the provider asked for in Retry-After. A provider that wants more than
 *   `retryAfterMaxMs` is not waited for.
 * - What does not pass (refused, an empty account), and a model that fell silent, is not tried again: the next model is.
 * - When none is left, the error is that which gives most hope: the first one that may pass, else the last.
 *
 * The only state is that of this call, and of the ledger, which is told of every time that a provider is asked. The only
 * wait besides the provider's is the pause, which ends at once when the signal is aborted.
 */
import { Problem } from '../errors.ts'
import { iterate } from '../upstream/iterate.ts'
import type { ModelChoice, RunPlan } from '../upstream/plan.ts'
import {
  isVisible,
  type ModelSettings,
  type ToolChoice,
  type ToolDefinition,
  type Upstream,
  type UpstreamEvent,
  type UpstreamMessage,
  type UpstreamRequest,
} from '../upstream/upstream.ts'
import type { Estimator } from './estimate.ts'
import type { Ledger } from './ledger.ts'
import { pause } from './run.ts'

export interface AskLimits {
  /** Further tries of one model. */
  readonly retries: number
  /** The first pause before another try; it doubles with each. */
  readonly retryMs: number
}

/** How this process asks models. */
export interface AskModelOptions {
  readonly limits: AskLimits
  /** @throws Problem `upstream_rejected` when the provider is not configured (any more) */
  readonly upstreamOf: (provider: string) => Upstream
  readonly estimator: Pick<Estimator, 'estimateMessages' | 'estimateText'>
  /** Told of a call of a provider that failed before anything was shown; see `AskOptions`. */
  readonly onFailed: (runId: string | undefined, ...failure: Parameters<AskOptions['onFailed']>) => void
  readonly random?: () => number
}

export interface Question {
  /** For the log; absent: of no run. */
  readonly runId?: string
  readonly ledger: Ledger
  readonly plan: RunPlan
  readonly settings: ModelSettings
  readonly messages: readonly UpstreamMessage[]
  readonly tools?: readonly ToolDefinition[]
  readonly toolChoice?: ToolChoice | undefined
}

/** @returns the model that made the reply, whose events were told to `tell` */
export type AskModel = (question: Question, tell: TellEvent, signal: AbortSignal) => ReturnType<typeof ask>

type TellEvent = (event: UpstreamEvent) => void

/** @returns what asks the models of a plan, with the same tries for whoever asks */
export function createAskModel({
  limits,
  upstreamOf,
  estimator,
  onFailed,
  random = Math.random,
}: AskModelOptions): AskModel {
  return ({ runId, ledger, plan, settings, messages, tools = [], toolChoice }, tell, signal) => {
    const { temperature, topP, frequencyPenalty, presencePenalty, stop, effort, maxOutputTokens } = settings
    const { format, parallelToolCalls } = settings
    return ask(
      {
        ...limits,
        random,
        pause,
        candidates: plan.candidates,
        upstreamOf,
        ledger,
        promptTokens: (choice) =>
          estimator.estimateMessages(choice, messages) + estimateTools(estimator, choice, tools),
        requestFor: ({ model }) => ({
          model,
          messages,
          ...(temperature === undefined ? {} : { temperature }),
          ...(topP === undefined ? {} : { topP }),
          ...(frequencyPenalty === undefined ? {} : { frequencyPenalty }),
          ...(presencePenalty === undefined ? {} : { presencePenalty }),
          ...(stop === undefined || stop.length === 0 ? {} : { stop }),
          ...(format === undefined ? {} : { format }),
          ...(parallelToolCalls === undefined ? {} : { parallelToolCalls }),
          ...(effort === undefined ? {} : { effort }),
          ...(maxOutputTokens === undefined ? {} : { maxOutputTokens }),
          ...(tools.length === 0 ? {} : { tools }),
          ...(tools.length === 0 || toolChoice === undefined ? {} : { toolChoice }),
        }),
        onFailed: (...failure) => onFailed(runId, ...failure),
      },
      tell,
      signal,
    )
  }
}

/** The same for whoever wants to iterate, at the price of some promises for each event. Leaving it ends the call. */
export function iterateAsked(
  askModel: AskModel,
  question: Question,
  signal: AbortSignal,
): AsyncGenerator<UpstreamEvent, void, undefined> {
  return iterate(async (tell, either) => {
    await askModel(question, (event) => void tell([event]), either)
  }, signal)
}

/** Tokens of what a model is told of tools. */
export function estimateTools(
  estimator: Pick<Estimator, 'estimateText'>,
  choice: ModelChoice,
  tools: readonly ToolDefinition[],
): number {
  return tools.length === 0 ? 0 : estimator.estimateText(choice, JSON.stringify(tools))
}

export interface AskOptions extends AskLimits {
  readonly candidates: readonly ModelChoice[]
  readonly requestFor: (choice: ModelChoice) => UpstreamRequest
  /** @throws Problem `upstream_rejected` when the provider is not configured (any more) */
  readonly upstreamOf: (provider: string) => Upstream
  readonly ledger: Ledger
  /** Estimated tokens of the request. */
  readonly promptTokens: (choice: ModelChoice) => number
  /** Told of every try that failed, and of the pause before the next one; undefined when there is none on this model. */
  readonly onFailed: (choice: ModelChoice, problem: Problem, pauseMs: number | undefined) => void
  /** In [0, 1). */
  readonly random: () => number
  /** Resolves after `ms`, or at once when the signal is aborted. */
  readonly pause: (ms: number, signal: AbortSignal) => Promise<void>
}

/** A chat does not wait longer for a provider that asks for patience. */
export const retryAfterMaxMs = 30_000
const pauseMaxMs = 10_000

/**
 * @returns the model that made the reply
 * @throws Problem as `Upstream.stream`, of the try that counts; the signal's reason when aborted
 */
export async function ask(options: AskOptions, tell: TellEvent, signal: AbortSignal): Promise<ModelChoice> {
  let hope: Problem | undefined
  for (const choice of options.candidates) {
    for (let tries = 0; ; tries += 1) {
      let problem: Problem
      const attempt = { shown: false }
      try {
        await askOnce(options, choice, attempt, tell, signal)
        return choice
      } catch (error) {
        if (!(error instanceof Problem) || attempt.shown || signal.aborted) throw error
        problem = error
      }
      if (hope?.retryable !== true) hope = problem
      const pauseMs = pauseBefore(problem, tries, options)
      options.onFailed(choice, problem, pauseMs)
      if (pauseMs === undefined) break
      await options.pause(pauseMs, signal)
      signal.throwIfAborted()
    }
  }
  throw hope ?? new Problem('upstream_rejected', 'No model is configured for this.')
}

async function askOnce(
  { upstreamOf, requestFor, ledger, promptTokens }: AskOptions,
  choice: ModelChoice,
  attempt: { shown: boolean },
  tell: TellEvent,
  signal: AbortSignal,
): Promise<void> {
  const upstream = upstreamOf(choice.provider)
  const call = ledger.begin(choice, promptTokens(choice))
  // Until it is known better.
  let outcome = 'interrupted'
  const see = (event: UpstreamEvent): void => {
    call.see(event)
    attempt.shown ||= isVisible(event)
    tell(event)
  }
  try {
    const request = requestFor(choice)
    if (upstream.read !== undefined) await upstream.read(request, see, signal)
    else for await (const event of upstream.stream(request, signal)) see(event)
    outcome = 'completed'
  } catch (error) {
    outcome = signal.aborted
      ? signal.reason === 'stop'
        ? 'stopped'
        : 'interrupted'
      : error instanceof Problem
        ? error.code
        : 'internal'
    throw error
  } finally {
    call.end(outcome)
  }
}

/** @returns milliseconds until the next try of the same model; undefined when there is to be none */
function pauseBefore(
  { code, retryable, retryAfterSeconds }: Problem,
  tries: number,
  { retries, retryMs, random }: AskOptions,
): number | undefined {
  // A model that fell silent has taken its time already.
  if (!retryable || code === 'upstream_timeout' || tries >= retries) return undefined
  const asked = retryAfterSeconds === undefined ? 0 : retryAfterSeconds * 1000
  if (asked > retryAfterMaxMs) return undefined
  const grown = Math.min(retryMs * 2 ** tries, pauseMaxMs)
  // Half of it at least, so that two tries are never one; the rest by chance, so that many runs do not come back together.
  return Math.max(asked, Math.round(grown * (0.5 + 0.5 * random())))
}
