/**
 * Who answers, how, and for how much: providers, the models and settings of the modes, prices and budgets, out of the
 * variables and the config file. A variable goes before the same thing in the file. Pure; every name that can be wrong is
 * found wrong here, before anything is open.
 */
import { type Static, Type } from 'typebox'
import { type ConfigFile, contextTokensMax, contextTokensMin, inFile, modelsMax } from './config-schema.ts'
import {
  budgetTokensMax,
  ConfigError,
  checkHeaderValue,
  checkUrl,
  flag,
  integer,
  itemsOf,
  optional,
  optionalInteger,
  optionalUsd,
  readVariable,
  type Variables,
} from './config-values.ts'
import type { CatalogOptions, Models } from './upstream/catalog.ts'
import { type ModelChoice, modelUnitsMax, type Profile, type ProfileName } from './upstream/plan.ts'
import { findPriceFault } from './upstream/prices.ts'
import {
  demoProvider,
  type ProviderPreset,
  type ProviderSettings,
  providerKinds,
  providerNamePattern,
  providerPresets,
} from './upstream/providers.ts'

/** Those of providers are in the order of their presets. */
export const providerVariables = {
  OPENAI_API_KEY: optional('key of OpenAI, or of what speaks its dialect at OPENAI_BASE_URL'),
  OPENAI_BASE_URL: optional('its address, ending in /v1; default https://api.openai.com/v1'),
  ANTHROPIC_API_KEY: optional('key of Anthropic'),
  ANTHROPIC_BASE_URL: optional('its address, ending in /v1; default https://api.anthropic.com/v1'),
  GEMINI_API_KEY: optional('key of Gemini'),
  GEMINI_BASE_URL: optional('its address, ending in /v1beta; default https://generativelanguage.googleapis.com/v1beta'),
  AZURE_OPENAI_API_KEY: optional('key of Azure OpenAI, whose models are the names of deployments'),
  AZURE_OPENAI_BASE_URL: optional('its address, needed with the key: https://<resource>.openai.azure.com/openai/v1'),
  OPENROUTER_API_KEY: optional('key of OpenRouter'),
  GROQ_API_KEY: optional('key of Groq'),
  DEEPSEEK_API_KEY: optional('key of DeepSeek'),
  MISTRAL_API_KEY: optional('key of Mistral'),
  TOGETHER_API_KEY: optional('key of Together'),
  XAI_API_KEY: optional('key of xAI'),
  PERPLEXITY_API_KEY: optional('key of Perplexity'),
  OLLAMA_BASE_URL: optional('address of Ollama, which needs no key: http://localhost:11434/v1'),
}

export const modelVariables = {
  CONFIG_FILE: optional(
    'config file; default verbatim.config.ts or verbatim.config.json in the working folder, if there',
  ),
  MODEL_FAST: optional(
    'models of mode `fast`, as provider:model,provider:model: each is asked when those before it fail',
  ),
  MODEL_BALANCED: optional('models of mode `balanced`, and of modes that have none'),
  MODEL_QUALITY: optional('models of mode `quality`'),
  MODELS_ALLOWED: optional('models that a request may name, as patterns with * such as openai:gpt-5*; default: all'),
  MODEL_CONTEXT_TOKENS: integer(
    contextTokensMin,
    contextTokensMax,
    128_000,
    'tokens of a request with its reply; older messages are left out beyond it',
  ),
  SYSTEM_PROMPT: optional('what models are told before each conversation, in all modes'),
  UPSTREAM_RETRIES: integer(0, 10, 2, 'further tries of a model that fails before it has said anything'),
  UPSTREAM_RETRY_MS: integer(1, 60_000, 500, 'pause before the first of them'),
}

export const budgetVariables = {
  ENABLE_SUMMARIES: flag('false', 'sum up the messages of a long session that no longer fit into a request'),
  BUDGET_USER_DAY_USD: optionalUsd('USD that a user may spend in a day (UTC), as a decimal; unset for no limit'),
  BUDGET_VISITOR_DAY_USD: optionalUsd('the same of a visitor'),
  BUDGET_DAY_USD: optionalUsd('USD that all together may spend in a day'),
  QUOTA_USER_DAY_TOKENS: optionalInteger(0, budgetTokensMax, 'tokens that a user may use in a day; unset for no limit'),
  QUOTA_VISITOR_DAY_TOKENS: optionalInteger(0, budgetTokensMax, 'the same of a visitor'),
}

const known = Type.Object({ ...providerVariables, ...modelVariables, ...budgetVariables })
type Known = Static<typeof known>

export interface UpstreamConfig extends Omit<CatalogOptions, 'upstreams'> {
  /** Further tries of one model. */
  readonly retries: number
  /** Before the first of them. */
  readonly retryMs: number
}

/** Of a day in UTC. Absent: no limit. */
export interface Budgets {
  /** USD, decimal. */
  readonly userDayUsd?: string
  readonly visitorDayUsd?: string
  /** Of all together. */
  readonly dayUsd?: string
  readonly userDayTokens?: number
  readonly visitorDayTokens?: number
}

type Limits = Pick<CatalogOptions, 'firstByteMs' | 'idleMs' | 'totalMs'>

/**
 * @param env all variables, also those that only the file knows by name
 * @param checked those of the schema
 * @throws ConfigError
 */
export function readUpstream(env: Variables, checked: Known, file: ConfigFile, limits: Limits): UpstreamConfig {
  const readyMade = readReadyMade(file)
  const providers = readProviders(env, file, readyMade)
  const names: ReadonlySet<string> = new Set([demoProvider, ...readyMade, ...providers.map(({ name }) => name)])
  return {
    providers,
    models: readModels(checked, file, providers, names),
    profiles: {
      fast: readProfile('fast', env, checked, file),
      balanced: readProfile('balanced', env, checked, file),
      quality: readProfile('quality', env, checked, file),
    },
    modelsAllowed: readAllowed(checked, file),
    prices: readPrices(file, names),
    ...limits,
    retries: checked.UPSTREAM_RETRIES,
    retryMs: checked.UPSTREAM_RETRY_MS,
  }
}

export function readBudgets(checked: Known, { budgets = {} }: ConfigFile): Budgets {
  const all = {
    userDayUsd: checked.BUDGET_USER_DAY_USD ?? budgets.user_day_usd,
    visitorDayUsd: checked.BUDGET_VISITOR_DAY_USD ?? budgets.visitor_day_usd,
    dayUsd: checked.BUDGET_DAY_USD ?? budgets.day_usd,
    userDayTokens: checked.QUOTA_USER_DAY_TOKENS ?? budgets.user_day_tokens,
    visitorDayTokens: checked.QUOTA_VISITOR_DAY_TOKENS ?? budgets.visitor_day_tokens,
  }
  return Object.fromEntries(Object.entries(all).filter(([, limit]) => limit !== undefined))
}

export function readSummaries(env: Variables, checked: Known, file: ConfigFile): boolean {
  if (readVariable(env, 'ENABLE_SUMMARIES') !== undefined) return checked.ENABLE_SUMMARIES === 'true'
  return file.summaries ?? false
}

function presetOf(name: string): ProviderPreset | undefined {
  return Object.hasOwn(providerPresets, name) ? providerPresets[name] : undefined
}

/** The names of the providers that a file brings as functions. */
function readReadyMade({ upstreams = [], providers = {} }: ConfigFile): readonly string[] {
  const names = upstreams.map((upstream, index) => {
    const { provider, stream, close } = Object(upstream) as Readonly<Record<string, unknown>>
    const where = inFile(`upstreams[${index}]`)
    if (typeof stream !== 'function' || typeof close !== 'function') {
      throw new ConfigError(`${where} must be an upstream: provider, stream and close`)
    }
    if (typeof provider !== 'string' || !providerNamePattern.test(provider)) {
      throw new ConfigError(`${where} must have a provider's name`)
    }
    return provider
  })
  names.forEach((name, index) => {
    if (names.indexOf(name) !== index || Object.hasOwn(providers, name)) {
      throw new ConfigError(`${inFile(`upstreams[${index}]`)} has the name of another provider of the file`)
    }
  })
  return names
}

/** Those known by name that have what they need, and those of the file. */
function readProviders(
  env: Variables,
  { providers = {} }: ConfigFile,
  readyMade: readonly string[],
): readonly ProviderSettings[] {
  const own = Object.keys(providers)
  const faulty = own.find((name) => !providerNamePattern.test(name) || name === demoProvider)
  if (faulty !== undefined) {
    throw new ConfigError(
      `${inFile('providers')} has a name that cannot be used: 32 of a-z 0-9 _ . - at most, a letter first, not ${demoProvider}`,
    )
  }
  return [...new Set([...Object.keys(providerPresets), ...own])]
    .filter((name) => !readyMade.includes(name))
    .flatMap((name) => readProvider(env, name, own.includes(name) ? providers[name] : undefined) ?? [])
}

/** @param entry of the file. @returns undefined when there is neither an entry nor what a preset needs */
function readProvider(
  env: Variables,
  name: string,
  entry: NonNullable<ConfigFile['providers']>[string] | undefined,
): ProviderSettings | undefined {
  const preset = presetOf(name)
  const place = (member: string) => inFile(`providers.${name}.${member}`)
  const url = readVariable(env, preset?.urlVariable)
  const keyVariable = entry?.api_key_env ?? preset?.keyVariable
  const key = readVariable(env, keyVariable)
  const hasEnough = key !== undefined || (preset?.keyless === true && url !== undefined)
  if (entry === undefined && !hasEnough) return undefined

  const kind = entry?.kind ?? preset?.kind
  if (kind === undefined) throw new ConfigError(`${place('kind')} must be one of ${providerKinds.join(', ')}`)
  const baseUrl = url ?? entry?.base_url ?? preset?.baseUrl
  if (baseUrl === undefined) {
    const missing = entry === undefined ? preset?.urlVariable : place('base_url')
    throw new ConfigError(`${missing} must be set${entry === undefined ? `, because ${keyVariable} is` : ''}`)
  }
  if (key === undefined && entry?.api_key_env !== undefined) {
    // Not which one: somebody may have put the key there.
    throw new ConfigError(`${place('api_key_env')} names a variable that is not set`)
  }
  if (key === undefined && preset?.keyVariable !== undefined && preset.keyless === undefined) {
    throw new ConfigError(`${preset.keyVariable} is not set, and ${inFile(`providers.${name}`)} needs it`)
  }
  const keyPlace = entry?.api_key_env === undefined ? `${keyVariable}` : `The variable of ${place('api_key_env')}`
  if (key !== undefined) checkHeaderValue(keyPlace, key)
  const urlPlace = url === undefined ? place('base_url') : `${preset?.urlVariable}`
  const ownHeader = key === undefined || preset?.keyHeader === undefined ? {} : { [preset.keyHeader]: key }
  const headers = { ...ownHeader, ...readHeaders(place('headers'), entry?.headers ?? {}) }
  return {
    name,
    kind,
    baseUrl: checkUrl(urlPlace, baseUrl, ['http:', 'https:']).replace(/\/+$/, ''),
    ...(key === undefined || preset?.keyHeader !== undefined ? {} : { apiKey: key }),
    ...(Object.keys(headers).length === 0 ? {} : { headers }),
    ...(entry?.max_tokens_field === undefined ? {} : { maxTokensField: entry.max_tokens_field }),
  }
}

/** What the connection itself says, and nobody else may. */
const ownHeaders: ReadonlySet<string> = new Set([
  'connection',
  'content-length',
  'expect',
  'host',
  'keep-alive',
  'transfer-encoding',
  'upgrade',
])

function readHeaders(where: string, headers: Readonly<Record<string, string>>): Readonly<Record<string, string>> {
  return Object.fromEntries(
    Object.entries(headers).map(([name, value]) => {
      // RFC 9110, section 5.1: a name is a token.
      if (!/^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/.test(name) || ownHeaders.has(name.toLowerCase())) {
        throw new ConfigError(`${where} has a name that cannot be used`)
      }
      return [name.toLowerCase(), checkHeaderValue(where, value)]
    }),
  )
}

const modelVariableOf = { fast: 'MODEL_FAST', balanced: 'MODEL_BALANCED', quality: 'MODEL_QUALITY' } as const

function readModels(
  checked: Known,
  { modes = {} }: ConfigFile,
  providers: readonly ProviderSettings[],
  names: ReadonlySet<string>,
): Readonly<Record<ProfileName, Models>> {
  const read = (profile: ProfileName): Models | undefined => {
    const variable = modelVariableOf[profile]
    const list = checked[variable]
    if (list !== undefined) return readChoices(variable, itemsOf(list), names)
    const models = modes[profile]?.models
    return models === undefined ? undefined : readChoices(inFile(`modes.${profile}.models`), models, names)
  }
  const balanced = read('balanced')
  // A file may give a preset another address, where its models need not be.
  const usual = providers.find(
    ({ name, kind }) => presetOf(name)?.models !== undefined && presetOf(name)?.kind === kind,
  )
  const choose = (profile: ProfileName): Models => {
    const named = profile === 'balanced' ? balanced : (read(profile) ?? balanced)
    if (named !== undefined) return named
    const model = usual === undefined ? undefined : presetOf(usual.name)?.models?.[profile]
    return usual === undefined || model === undefined
      ? [{ provider: demoProvider, model: demoProvider }]
      : [{ provider: usual.name, model }]
  }
  return { fast: choose('fast'), balanced: choose('balanced'), quality: choose('quality') }
}

function readChoices(where: string, list: readonly string[], names: ReadonlySet<string>): Models {
  const [first, ...rest] = list.map((item) => readChoice(where, item.trim(), names))
  if (first === undefined) throw new ConfigError(`${where} must name a model, as provider:model`)
  if (rest.length >= modelsMax) throw new ConfigError(`${where} must not name more than ${modelsMax} models`)
  const all: Models = [first, ...rest]
  if (new Set(all.map(({ provider, model }) => `${provider}:${model}`)).size < all.length) {
    throw new ConfigError(`${where} names a model twice`)
  }
  return all
}

function readChoice(where: string, text: string, names: ReadonlySet<string>): ModelChoice {
  if (text === demoProvider) return { provider: demoProvider, model: demoProvider }
  const [provider = '', ...rest] = text.split(':')
  const model = rest.join(':')
  if (model === '' || model.length > modelUnitsMax) {
    throw new ConfigError(`${where} must name models as provider:model, separated by commas`)
  }
  if (names.has(provider)) return { provider, model }
  const preset = presetOf(provider)
  if (preset === undefined) throw new ConfigError(`${where} names a provider that does not exist`)
  const needed = [preset.keyVariable, preset.keyless === undefined ? undefined : preset.urlVariable]
  throw new ConfigError(`${where} names ${provider}, but ${needed.filter(Boolean).join(' or ')} is not set`)
}

function readProfile(name: ProfileName, env: Variables, checked: Known, { modes = {} }: ConfigFile): Profile {
  const { temperature, effort, max_output_tokens, context_tokens, system_prompt, tools } = modes[name] ?? {}
  const isSet = readVariable(env, 'MODEL_CONTEXT_TOKENS') !== undefined
  const contextTokens = isSet ? checked.MODEL_CONTEXT_TOKENS : (context_tokens ?? checked.MODEL_CONTEXT_TOKENS)
  const systemPrompt = checked.SYSTEM_PROMPT ?? system_prompt
  if (max_output_tokens !== undefined && max_output_tokens >= contextTokens) {
    throw new ConfigError(
      `${inFile(`modes.${name}.max_output_tokens`)} must be less than the context, ${contextTokens}`,
    )
  }
  return {
    ...(temperature === undefined ? {} : { temperature }),
    ...(effort === undefined ? {} : { effort }),
    ...(max_output_tokens === undefined ? {} : { maxOutputTokens: max_output_tokens }),
    ...(systemPrompt === undefined ? {} : { systemPrompt }),
    contextTokens,
    ...(tools === undefined ? {} : { tools }),
  }
}

function readAllowed(checked: Known, file: ConfigFile): readonly string[] | undefined {
  const isVariable = checked.MODELS_ALLOWED !== undefined
  const patterns = isVariable ? itemsOf(checked.MODELS_ALLOWED ?? '') : file.models_allowed
  const where = isVariable ? 'MODELS_ALLOWED' : inFile('models_allowed')
  if (patterns?.some((pattern) => pattern !== '*' && !/^[^:\s]+:\S+$/.test(pattern))) {
    throw new ConfigError(`${where} must list patterns of provider:model, such as openai:*`)
  }
  return patterns
}

function readPrices({ prices = [] }: ConfigFile, names: ReadonlySet<string>): CatalogOptions['prices'] {
  const unknown = prices.findIndex(({ provider }) => !names.has(provider) && presetOf(provider) === undefined)
  if (unknown !== -1)
    throw new ConfigError(`${inFile(`prices[${unknown}].provider`)} names a provider that does not exist`)
  const fault = findPriceFault(prices)
  if (fault !== undefined) throw new ConfigError(`${inFile(`prices[${fault.index}]`)} ${fault.problem}`)
  return prices
}
