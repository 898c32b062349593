/**
 * What this process makes replies with, put together: models with their prices and estimates, tools, agents, summaries, and
 * what all of that may spend. Runs are told how a reply is made and counted, and know nothing of the rest.
 *
 * Owned here are the estimator, whose factors are learned from all calls of the process, the summaries under way, which a
 * shutdown ends before it drains, and the agents, which are closed when the last reply has ended: until then they make it.
 * Everything else is made for one reply and ends with it.
 */
import type { FastifyBaseLogger } from 'fastify'
import type { Db } from '../db/db.ts'
import type { ArtifactStore } from '../sessions/artifacts.ts'
import type { SessionChanges } from '../sessions/changes.ts'
import { readHistory } from '../sessions/context.ts'
import type { Agent } from '../upstream/agent.ts'
import type { Catalog } from '../upstream/catalog.ts'
import { createAgentDesk, createAgents } from './agents.ts'
import { type AskLimits, createAskModel, iterateAsked } from './ask.ts'
import { type BudgetLimits, createBudgets } from './budgets.ts'
import { createEstimator } from './estimate.ts'
import { createLedger } from './ledger.ts'
import type { RunFacts } from './model.ts'
import { createReplies, type ReplyOptions } from './reply.ts'
import { createSummaries } from './summary.ts'
import { createTools, type ServerTool } from './tools.ts'

export interface ModelsOptions extends Pick<ReplyOptions, 'totalMs' | 'checkpoint' | 'touch'> {
  /** For budgets, which may be refused a place. */
  readonly db: Db
  /** For what was accepted. */
  readonly runDb: Db
  readonly catalog: Catalog
  readonly limits: AskLimits
  readonly budgets: BudgetLimits
  /** Of a conversation, for a model. */
  readonly messagesMax: number
  /** Whether what no longer fits into a window is summed up. */
  readonly summarizes: boolean
  readonly tools: readonly ServerTool[]
  readonly agents: readonly Agent[]
  readonly artifacts: ArtifactStore
  readonly changes: SessionChanges
  readonly logger: FastifyBaseLogger
}

/** @throws Error when a tool or an agent cannot be registered */
export function createModels(options: ModelsOptions) {
  const { db, runDb, catalog, limits, messagesMax, artifacts, changes, logger, totalMs, checkpoint, touch } = options
  const estimator = createEstimator()
  const pricing = catalog.prices
  const agents = createAgents(options.agents)
  const tools = createTools(options.tools, (tool, { runId }, error) => {
    logger.warn({ run_id: runId, tool, err: error }, 'a tool failed')
  })
  const openLedger = () => createLedger({ pricing, estimator })
  const readRunHistory = ({ user_message_id, request }: RunFacts) =>
    readHistory(runDb, user_message_id, Math.max(messagesMax, request?.messages_max ?? 0))
  const askModel = createAskModel({
    limits,
    upstreamOf: catalog.upstreamOf,
    estimator,
    onFailed: (run_id, { provider, model }, { code }, pause_ms) => {
      logger.warn({ run_id, provider, model, code, pause_ms }, 'a provider failed before it had said anything')
    },
  })
  const summaries = options.summarizes ? openSummaries() : undefined

  function openSummaries() {
    const { plan } = catalog.plansFor({ model: undefined, text: '' }).fast
    return createSummaries({
      db: runDb,
      plan,
      contextTokens: catalog.profile('fast').contextTokens,
      ask: ({ messages, maxOutputTokens }, signal) => {
        const ledger = openLedger()
        return {
          ledger,
          reply: iterateAsked(askModel, { ledger, plan, settings: { maxOutputTokens }, messages }, signal),
        }
      },
      estimateText: (text) => estimator.estimateText(plan.candidates[0], text),
      logger,
      changes,
    })
  }

  return {
    budgets: createBudgets({
      db,
      limits: options.budgets,
      pricing,
      estimator,
      profileOf: catalog.profile,
      logger,
    }),
    createLedger: openLedger,
    makeReply: createReplies({
      askModel,
      totalMs,
      readHistory: readRunHistory,
      profileOf: catalog.profile,
      planFor: (model, profile) => catalog.plansFor({ model, text: '' })[profile].plan,
      estimator,
      tools,
      agents,
      desk: createAgentDesk(runDb, artifacts, changes),
      checkpoint,
      touch,
    }),
    /** Tokens of the prompt of a run whose process is gone. @throws Problem `db_unavailable` */
    async promptTokens(run: RunFacts): Promise<number> {
      const instructions = estimator.estimateText(run, run.request?.instructions ?? '')
      return instructions + estimator.estimateMessages(run, (await readRunHistory(run)).messages)
    },
    afterRun: summaries?.afterRun,
    /** @throws Problem `invalid_request` when there is no such agent */
    checkAgent(id: string): void {
      agents.get(id)
    },
    /** Ends the summaries under way, and begins none: nobody waits for one. */
    async endSummaries(): Promise<void> {
      await summaries?.close()
    },
    /** When no reply is under way any more. */
    close: () => agents.close(),
  }
}
