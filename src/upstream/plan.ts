/**
 * How a reply is to be made: which models may be asked, in which order, and with which settings. A plan is decided when a
 * message is accepted, and stored with its run, so that whichever process makes the reply asks the same models; what a
 * profile means (settings, prompt) is looked up when the reply is made.
 */
import type { Mode } from '../log/event.ts'
import type { ModelSettings } from './upstream.ts'

/** Of a model's name. The longest in use, of fine-tuned models, have about a hundred. */
export const modelUnitsMax = 200

export type ProfileName = Exclude<Mode, 'adaptive'>

export interface ModelChoice {
  readonly provider: string
  readonly model: string
}

/** Stored with the run, as JSON. */
export interface RunPlan {
  /** At least one; the next one is asked when one before it fails and nothing was shown yet. */
  readonly candidates: readonly [ModelChoice, ...ModelChoice[]]
  readonly profile: ProfileName
  /** Why `adaptive` took that profile, as short words; absent for the other modes. */
  readonly reasons?: readonly string[]
}

/** The plan of a mode for one message; another one when the session is longer than its sender's message can tell. */
export interface ModePlan {
  readonly plan: RunPlan
  /** Instead, when the session holds `from` messages or more. */
  readonly later?: { readonly from: number; readonly plan: RunPlan }
}

export type PlansByMode = Readonly<Record<Mode, ModePlan>>

/** What a profile means beside its models. */
export interface Profile extends ModelSettings {
  readonly systemPrompt?: string
  /** Tokens that a request may have with its reply; older messages are left out beyond it. */
  readonly contextTokens: number
  /** Names of the server's tools that the model is given; absent: all of them. */
  readonly tools?: readonly string[]
}
