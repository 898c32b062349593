/**
 * What the name of a Claude model tells about the requests that it takes: how it is told to think changed with 4.6, what it
 * refuses with 4.7, 5 and 5.5. From Anthropic's pages on thinking, effort and migration, read in November 2026. A name that
 * is not Claude's is taken for a model that somebody else serves in this dialect, which knows budgets only; a Claude that is
 * not in the table for a new one.
 */

export interface ClaudeTraits {
  /** `budget`: so many tokens of thinking. `adaptive`: an effort, and the model decides. */
  readonly thinking: 'budget' | 'adaptive'
  /** Thinks when it is not told to; the newest cannot be told not to. */
  readonly alwaysThinks: boolean
  /** Refuses thinking of its own, sent back in an unfinished turn, when it is not to think now. */
  readonly guardsThinking: boolean
  /** Refuses thinking that was sent back behind words that have changed since. */
  readonly bindsThinking: boolean
  readonly takesTemperature: boolean
  /** A tool can be demanded. */
  readonly takesForcedTools: boolean
}

/** Version since which: as major times 100 plus minor. */
interface Since {
  readonly adaptive: number
  readonly alwaysThinks: number
  readonly bindsThinking: number
  readonly noTemperature: number
  readonly noForcedTools: number
}

const sinceByFamily: Readonly<Record<string, Since>> = {
  opus: { adaptive: 406, alwaysThinks: 500, bindsThinking: 505, noTemperature: 407, noForcedTools: 505 },
  sonnet: { adaptive: 406, alwaysThinks: 500, bindsThinking: 505, noTemperature: 500, noForcedTools: 505 },
  haiku: { adaptive: 505, alwaysThinks: 505, bindsThinking: 505, noTemperature: 505, noForcedTools: Infinity },
}
const sinceOfOthers: Since = { adaptive: 0, alwaysThinks: 0, bindsThinking: 501, noTemperature: 0, noForcedTools: 501 }

/** Of a name without a version. */
const newest = 9999

const foreign: ClaudeTraits = {
  thinking: 'budget',
  alwaysThinks: false,
  guardsThinking: false,
  bindsThinking: false,
  takesTemperature: true,
  takesForcedTools: true,
}

export function traitsOf(model: string): ClaudeTraits {
  // As `claude-opus-4-5-20251101`, and behind a prefix as `anthropic/claude-…` or `us.anthropic.claude-…`.
  const match = /(?:^|[./])claude-(?:([a-z]+)|\d)(?:-(\d{1,2})(?:[-.](\d{1,2}))?(?!\d))?/i.exec(model)
  if (match === null) return foreign
  const [, family, major, minor = '0'] = match
  // `claude-3-7-sonnet`: the number came first until 4.
  if (family === undefined) return { ...foreign, guardsThinking: true }
  const version = major === undefined ? newest : Number(major) * 100 + Number(minor)
  const since = sinceByFamily[family.toLowerCase()] ?? sinceOfOthers
  return {
    thinking: version >= since.adaptive ? 'adaptive' : 'budget',
    alwaysThinks: version >= since.alwaysThinks,
    guardsThinking: true,
    bindsThinking: version >= since.bindsThinking,
    takesTemperature: version < since.noTemperature,
    takesForcedTools: version < since.noForcedTools,
  }
}
