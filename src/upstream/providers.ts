/**
 * The providers that are known by name: which dialect each speaks, where it is, and which variables hold its key and its
 * address. Plain facts and no state; what is configured is read in config-models, and opened by the catalog.
 *
 * A provider that is not here (llama.cpp, vLLM, LM Studio, a gateway of one's own) is one of the config file, or speaks
 * OpenAI's dialect at OPENAI_BASE_URL.
 */
import type { ProfileName } from './plan.ts'

export const providerKinds = ['openai', 'anthropic', 'gemini'] as const
/** A dialect: which adapter talks to the provider. */
export type ProviderKind = (typeof providerKinds)[number]

export const maxTokensFields = ['max_tokens', 'max_completion_tokens'] as const
/** What the limit of a reply is called in the dialect of OpenAI, where its relatives do not agree. */
export type MaxTokensField = (typeof maxTokensFields)[number]

/** A configured provider. */
export interface ProviderSettings {
  /** As in `provider:model`. */
  readonly name: string
  readonly kind: ProviderKind
  /** Without a slash at its end. May hold a password, or a token in its path or query. */
  readonly baseUrl: string
  readonly apiKey?: string
  /** Further headers of each request, their names in lower case. May hold a key. */
  readonly headers?: Readonly<Record<string, string>>
  /** Absent: as the host is known to want it. */
  readonly maxTokensField?: MaxTokensField
}

export interface ProviderPreset {
  readonly kind: ProviderKind
  /** Absent: it has to be set. */
  readonly baseUrl?: string
  /** The variable of the address. Absent: the address is fixed, unless the config file has another. */
  readonly urlVariable?: string
  /** The variable of the key. The provider is there when it is set. */
  readonly keyVariable?: string
  /** The address alone is enough: servers of one's own often want no key. */
  readonly keyless?: true
  /** The header of the key, where the dialect's own is not it. */
  readonly keyHeader?: string
  /** What the modes mean when nobody has said so, where that can be told. */
  readonly models?: Readonly<Record<ProfileName, string>>
}

/** In the order in which they are looked at for the models of modes that nobody has set. */
export const providerPresets: Readonly<Record<string, ProviderPreset>> = {
  openai: {
    kind: 'openai',
    baseUrl: 'https://api.openai.com/v1',
    urlVariable: 'OPENAI_BASE_URL',
    keyVariable: 'OPENAI_API_KEY',
    keyless: true,
    models: { fast: 'gpt-5-nano', balanced: 'gpt-5-mini', quality: 'gpt-5' },
  },
  anthropic: {
    kind: 'anthropic',
    baseUrl: 'https://api.anthropic.com/v1',
    urlVariable: 'ANTHROPIC_BASE_URL',
    keyVariable: 'ANTHROPIC_API_KEY',
    models: { fast: 'claude-haiku-4-5', balanced: 'claude-sonnet-5', quality: 'claude-opus-5' },
  },
  gemini: {
    kind: 'gemini',
    baseUrl: 'https://generativelanguage.googleapis.com/v1beta',
    urlVariable: 'GEMINI_BASE_URL',
    keyVariable: 'GEMINI_API_KEY',
    models: { fast: 'gemini-3.5-flash-lite', balanced: 'gemini-3.5-flash', quality: 'gemini-3.1-pro-preview' },
  },
  azure: {
    kind: 'openai',
    urlVariable: 'AZURE_OPENAI_BASE_URL',
    keyVariable: 'AZURE_OPENAI_API_KEY',
    keyHeader: 'api-key',
  },
  openrouter: { kind: 'openai', baseUrl: 'https://openrouter.ai/api/v1', keyVariable: 'OPENROUTER_API_KEY' },
  groq: { kind: 'openai', baseUrl: 'https://api.groq.com/openai/v1', keyVariable: 'GROQ_API_KEY' },
  deepseek: { kind: 'openai', baseUrl: 'https://api.deepseek.com/v1', keyVariable: 'DEEPSEEK_API_KEY' },
  mistral: { kind: 'openai', baseUrl: 'https://api.mistral.ai/v1', keyVariable: 'MISTRAL_API_KEY' },
  together: { kind: 'openai', baseUrl: 'https://api.together.xyz/v1', keyVariable: 'TOGETHER_API_KEY' },
  xai: { kind: 'openai', baseUrl: 'https://api.x.ai/v1', keyVariable: 'XAI_API_KEY' },
  perplexity: { kind: 'openai', baseUrl: 'https://api.perplexity.ai', keyVariable: 'PERPLEXITY_API_KEY' },
  ollama: { kind: 'openai', urlVariable: 'OLLAMA_BASE_URL', keyless: true },
}

/** The provider that needs nothing, and is always there. */
export const demoProvider = 'demo'

/** A provider's name: `provider:model` is cut at its first colon, and lists at their commas. */
export const providerNamePattern = /^[a-z][a-z0-9_.-]{0,31}$/
