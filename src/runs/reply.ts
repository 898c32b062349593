/**
 * What makes a reply: a model, asked once; a model with tools of this server, asked again with what they answered, step
 * by step; or an agent. All three tell their events to the run (run.ts), which folds, shows and stores them and knows
 * nothing of where they come from.
 *
 * A step is one call of the model. When it ends with calls of tools that are registered here, the reply so far is
 * checkpointed, so that no process that comes after can mistake the run for one that has done nothing; then the tools
 * run, a few at once, and their answers go back to the model with the next step. Tools of the client are not run: a reply
 * that ends with a call of one is complete, and goes on when the client brings the answer. There are `stepsMax` steps; in
 * the last one the model may not call tools any more.
 *
 * What happens at each await when something dies there: reading the history while the database is away is tried again
 * for a while (patience.ts), and so is the checkpoint before tools, because both stand between an accepted message and its
 * reply; then the run fails. A stop aborts the signal, which ends provider, pause, tools and agent at once. The process
 * dies: the run is taken over with what log and checkpoint hold (takeover.ts).
 */
import { Problem } from '../errors.ts'
import type { History, HistoryMessage } from '../sessions/context.ts'
import type { Agent, AgentContext, AgentQuestion } from '../upstream/agent.ts'
import type { ModelChoice, Profile, ProfileName, RunPlan } from '../upstream/plan.ts'
import type { ToolDefinition, UpstreamEvent, UpstreamMessage } from '../upstream/upstream.ts'
import { type AgentDesk, type Agents, cleanTitle, createAgentFilter, untilAborted } from './agents.ts'
import { type AskModel, estimateTools, iterateAsked } from './ask.ts'
import type { EndedCall } from './draft.ts'
import type { Estimator } from './estimate.ts'
import type { RunFacts, RunRequest } from './model.ts'
import { patiently } from './patience.ts'
import type { ActiveRun, RunDeps } from './run.ts'
import { limitTime, type ToolAnswer, type Tools } from './tools.ts'
import { fitMessages, windowTokens } from './window.ts'

export interface ReplyOptions {
  readonly askModel: AskModel
  /** Longest duration of an agent's reply. */
  readonly totalMs: number
  readonly readHistory: (facts: RunFacts) => Promise<History>
  readonly profileOf: (name: ProfileName) => Profile
  /** The plan for a model that is asked for by name. @throws Problem `invalid_request` */
  readonly planFor: (model: string, profile: ProfileName) => RunPlan
  readonly tools: Tools
  readonly agents: Agents
  readonly desk: AgentDesk
  /** Stores all that the run has said. @returns whether it is stored */
  readonly checkpoint: (run: ActiveRun) => Promise<boolean>
  /** Viewers are to be told what the draft has gained. */
  readonly touch: (run: ActiveRun) => void
  readonly estimator: Pick<Estimator, 'estimateMessages' | 'estimateText'>
}

/** Tells the run all that the reply says; resolves at its end, and rejects with the Problem that ended it. */
export type MakeReply = RunDeps['makeReply']

type TellEvent = Parameters<MakeReply>[1]

/** Calls of the model in one reply. */
export const stepsMax = 8
const toolsAtOnceMax = 8
/** Of the window: what is kept free for a reply whose length the request alone says. */
const wantedShareMax = 0.5
/** Of the text that an agent asks a model for; the rest is left where it is. */
const askedUnitsMax = 2_000_000

export function createReplies(options: ReplyOptions): MakeReply {
  const { askModel, tools, agents, desk, touch, estimator } = options

  /** What the models of a plan are told: as much of the conversation as fits into the window, the newest of it. */
  function fit(
    run: ActiveRun,
    plan: RunPlan,
    settings: Profile,
    history: History,
    offered: readonly ToolDefinition[],
    said: readonly HistoryMessage[] = [],
  ): readonly UpstreamMessage[] {
    // By the one that is asked first; the others are asked the same.
    const [choice] = plan.candidates
    const { messages, ...more } = history
    const { instructions } = requestOf(run.facts)
    const told = [...systemMessage(settings.systemPrompt), ...systemMessage(instructions), ...messages, ...said]
    const fitted = fitMessages(told, {
      ...more,
      budgetTokens: windowTokens(roomOf(plan, settings), estimateTools(estimator, choice, offered)),
      estimate: (message) => estimator.estimateMessages(choice, [message]),
    })
    run.fold ??= fitted.fold
    return fitted.messages
  }

  /** Whoever asks for a very long reply does not ask that the conversation be forgotten for it. */
  function roomOf({ profile }: RunPlan, settings: Profile): Pick<Profile, 'contextTokens' | 'maxOutputTokens'> {
    const { contextTokens, maxOutputTokens } = settings
    if (maxOutputTokens === undefined || options.profileOf(profile).maxOutputTokens !== undefined) return settings
    return { contextTokens, maxOutputTokens: Math.min(maxOutputTokens, Math.floor(wantedShareMax * contextTokens)) }
  }

  /** The profile, with what the request says otherwise, within the longest reply that a budget has been asked for. */
  function settingsOf({ profile }: RunPlan, facts: RunFacts): Profile {
    const settings = options.profileOf(profile)
    const { max_output_tokens: held = settings.maxOutputTokens, settings: wanted = {} } = requestOf(facts)
    const { top_p, frequency_penalty, presence_penalty, max_output_tokens, parallel_tool_calls, ...same } = wanted
    const limits = [held, max_output_tokens].filter((limit) => limit !== undefined)
    return {
      ...settings,
      ...same,
      ...(top_p === undefined ? {} : { topP: top_p }),
      ...(frequency_penalty === undefined ? {} : { frequencyPenalty: frequency_penalty }),
      ...(presence_penalty === undefined ? {} : { presencePenalty: presence_penalty }),
      ...(parallel_tool_calls === undefined ? {} : { parallelToolCalls: parallel_tool_calls }),
      ...(limits.length === 0 ? {} : { maxOutputTokens: Math.min(...limits) }),
    }
  }

  async function replyOfModel(run: ActiveRun, plan: RunPlan, history: History, tell: TellEvent): Promise<void> {
    const { draft, signal } = run
    const profile = settingsOf(plan, run.facts)
    const { tools: clientTools = [], tool_choice } = requestOf(run.facts)
    const ownTools = tools
      .definitions(profile.tools)
      .filter(({ name }) => !clientTools.some((tool) => tool.name === name))
    const isOwn = ({ part }: EndedCall) => ownTools.some(({ name }) => name === part.name)
    for (let step = 1; ; step += 1) {
      const isLast = step === stepsMax
      const offered = [...ownTools, ...clientTools]
      await askModel(
        {
          ...askerOf(run),
          plan,
          settings: profile,
          messages: fit(run, plan, profile, history, offered, step === 1 ? [] : [saidSoFar(run)]),
          tools: offered,
          toolChoice: isLast && ownTools.length > 0 ? 'none' : step === 1 ? tool_choice : undefined,
        },
        tell,
        signal,
      )
      const calls = draft.endStep()
      touch(run)
      const own = calls.filter(isOwn)
      if (own.length === 0) return
      if (isLast) {
        for (const { key } of own) tell({ type: 'tool_result', key, error: stepsExhausted })
        return
      }
      await patiently(async () => {
        if (!(await options.checkpoint(run))) throw new Problem('db_unavailable')
      }, signal)
      signal.throwIfAborted()
      await answerCalls(run, own, tell)
      // The others are the client's to answer.
      if (own.length < calls.length) return
      tellUsage(run)
      draft.beginStep()
      tell({ type: 'progress', round: step + 1 })
    }
  }

  /** Runs tools, a few at once, and says what each came to as soon as it has. */
  async function answerCalls(run: ActiveRun, calls: readonly EndedCall[], tell: TellEvent): Promise<void> {
    const { id: runId, session_id: sessionId } = run.facts
    const waiting = [...calls]
    const running = new Map<string, Promise<{ readonly key: string; readonly answer: ToolAnswer }>>()
    const begin = ({ key, part }: EndedCall) => {
      const { name = '', call_id: callId = '', input } = part
      const answering = tools.execute({ name, input, context: { runId, sessionId, callId } }, run.signal)
      running.set(
        key,
        answering.then((answer) => ({ key, answer })),
      )
    }
    while (waiting.length + running.size > 0) {
      for (const call of waiting.splice(0, toolsAtOnceMax - running.size)) begin(call)
      const { key, answer } = await Promise.race(running.values())
      running.delete(key)
      run.signal.throwIfAborted()
      tell({ type: 'tool_result', key, ...answer })
    }
  }

  function tellUsage(run: ActiveRun): void {
    const { usage, costUsd } = run.ledger.totals()
    if (usage === undefined) return
    run.draft.say({ type: 'usage', data: { usage, ...(costUsd === undefined ? {} : { cost_usd: costUsd }) } })
    touch(run)
  }

  async function replyOfAgent(
    run: ActiveRun,
    agent: Agent,
    plan: RunPlan,
    history: History,
    tell: TellEvent,
  ): Promise<void> {
    const { id, session_id, message_id, user_message_id } = run.facts
    // What the whole reply is to look like is no rule for what the agent asks on its way.
    const { stop: _stop, format: _format, ...profile } = settingsOf(plan, run.facts)
    const metadata = await patiently(() => desk.readMetadata(user_message_id), run.signal)
    const limit = limitTime(run.signal, options.totalMs)
    const context = contextOf(run, plan, profile, limit.signal)
    // Without the profile's own words: those go before what the agent asks a model.
    const { systemPrompt: _words, ...window } = profile
    const messages = fit(run, plan, window, history, [])
    const request = { runId: id, sessionId: session_id, messageId: message_id, messages, metadata }
    const filter = createAgentFilter()
    let asked: ModelChoice | undefined
    try {
      for await (const raw of untilAborted(agent.reply(request, context, limit.signal), limit.signal)) {
        const event = filter(raw)
        if (event.type === 'artifact') {
          const version = await patiently(() => desk.putArtifact(session_id, event), limit.signal)
          run.draft.say({ type: 'artifact', data: { name: event.name, version, content_type: event.contentType } })
          touch(run)
        } else if (event.type === 'title') {
          const title = cleanTitle(event.title)
          if (title === undefined || !(await patiently(() => desk.setTitle(session_id, title), limit.signal))) continue
          run.draft.say({ type: 'title', data: { title } })
          touch(run)
        } else if (event.type === 'usage') run.ledger.add(asked, event.usage)
        else {
          if (event.type === 'response') asked = choiceOf(event.model)
          tell(event)
        }
      }
    } catch (error) {
      if (!run.signal.aborted && limit.isOver) {
        throw new Problem('upstream_timeout', `The reply took longer than ${options.totalMs} ms.`)
      }
      throw error
    } finally {
      limit.clear()
    }
  }

  function contextOf(run: ActiveRun, plan: RunPlan, profile: Profile, signal: AbortSignal): AgentContext {
    const askOf = (question: AgentQuestion): AsyncIterable<UpstreamEvent> =>
      iterateAsked(
        askModel,
        {
          ...askerOf(run),
          plan: question.model === undefined ? plan : options.planFor(question.model, plan.profile),
          settings: { ...profile, ...question },
          messages: [...systemMessage(profile.systemPrompt), ...question.messages],
          ...(question.tools === undefined ? {} : { tools: question.tools }),
        },
        signal,
      )
    return {
      ask: askOf,
      async askText(question) {
        let text = ''
        for await (const event of askOf(question)) {
          if (event.type === 'text' && text.length < askedUnitsMax) text += event.text
        }
        return text
      },
    }
  }

  return async function makeReply(run, tell) {
    const { facts, signal } = run
    const request = requestOf(facts)
    const history = run.history ?? (await patiently(() => options.readHistory(facts), signal))
    run.history = undefined
    signal.throwIfAborted()
    if (request.agent === undefined) await replyOfModel(run, request, history, tell)
    else await replyOfAgent(run, agents.get(request.agent), request, history, tell)
  }
}

const askerOf = ({ runId, ledger }: ActiveRun) => ({ runId, ledger })

const stepsExhausted = { code: 'steps_exhausted', message: `A reply may call tools ${stepsMax - 1} times.` }

/** What was asked for; of a run that an older version accepted, what its row says. */
export function requestOf({ request, mode, provider, model }: RunFacts): RunRequest {
  return request ?? { candidates: [{ provider, model }], profile: mode === 'adaptive' ? 'balanced' : mode }
}

/** Of `provider:model`. */
function choiceOf(name: string | undefined): ModelChoice | undefined {
  const [provider = '', ...rest] = (name ?? '').split(':')
  return rest.length === 0 ? undefined : { provider, model: rest.join(':') }
}

const systemMessage = (content: string | undefined): HistoryMessage[] =>
  content === undefined || content === '' ? [] : [{ role: 'system', content }]

/** The reply so far, as the model that goes on with it sees it. */
function saidSoFar({ draft, ledger }: ActiveRun): HistoryMessage {
  const provider = ledger.calls.at(-1)?.provider
  return {
    role: 'assistant',
    content: draft.content,
    // Not copied: nobody adds to a part whose step has ended, and the request is made before another one begins.
    parts: [...draft.parts],
    ...(provider === undefined ? {} : { provider }),
  }
}
