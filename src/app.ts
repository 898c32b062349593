/**
 * The table of contents: which parts there are, what each is given, and in which order they start and stop. `buildApp`
 * owns everything; no module keeps state of its own.
 *
 * Starting: the embedded database must open, or there is no process. Postgres may be away: the process is then live and
 * not ready, and keeps trying. Stopping (`preClose`): no new runs, running replies end or are stored as they are,
 * viewers are told to come back, the lease is given back, and only then do sockets and stores close.
 */
import { readFileSync } from 'node:fs'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { v7 as uuidv7 } from 'uuid'
import { openDatabase, openLog, openStore } from './backends.ts'
import type { Config } from './config.ts'
import { createCounters } from './db/counters.ts'
import { type Db, SchemaTooNew } from './db/db.ts'
import { sql } from './db/drizzle.ts'
import { Problem } from './errors.ts'
import { logAnswer } from './http/answer.ts'
import { registerCors } from './http/cors.ts'
import type { SharedCounters } from './http/counts.ts'
import { registerHeaders } from './http/headers.ts'
import { registerHealth } from './http/health.ts'
import { identity } from './http/identity.ts'
import { type KeySetOptions, openKeySet } from './http/keys.ts'
import { createLimits } from './http/limits.ts'
import { createMetrics, registerMetrics } from './http/metrics.ts'
import { registerOpenapi } from './http/openapi.ts'
import { page } from './http/page.ts'
import { createPressure, type PressureOptions } from './http/pressure.ts'
import { createServer, type Server } from './http/server.ts'
import { createSseEdge, type SseOptions } from './http/sse.ts'
import { contentOf, formatEventId } from './log/event.ts'
import { createFrames } from './log/frames.ts'
import { createAccept } from './runs/accept.ts'
import { registerBranches } from './runs/branches.ts'
import { registerBudgets } from './runs/budget-routes.ts'
import { createChat } from './runs/chat.ts'
import { readCheckpoint } from './runs/checkpoint.ts'
import { tickMs } from './runs/follow.ts'
import { createModels } from './runs/models.ts'
import { createOwnedRuns } from './runs/owned.ts'
import { createReaper } from './runs/reaper.ts'
import { createResume } from './runs/resume.ts'
import { registerRuns } from './runs/routes.ts'
import { pause } from './runs/run.ts'
import { createKeep, createShow } from './runs/show.ts'
import { createStop, createStopSession } from './runs/stop.ts'
import { createRunStore } from './runs/store.ts'
import { createStoredReader } from './runs/stored.ts'
import { createTakeover } from './runs/takeover.ts'
import { createTickets, type TicketOptions } from './runs/tickets.ts'
import { createTicks } from './runs/ticks.ts'
import type { ServerTool } from './runs/tools.ts'
import { createApiKeys } from './sessions/api-keys.ts'
import { registerArtifacts } from './sessions/artifact-routes.ts'
import { createArtifactStore } from './sessions/artifacts.ts'
import { createSessionChanges } from './sessions/changes.ts'
import { registerClaim } from './sessions/claim.ts'
import type { CountCacheRead } from './sessions/copies.ts'
import { createFeedback } from './sessions/feedback.ts'
import {
  type ArtifactGenerator,
  createArtifactMaker,
  createGenerators,
  type MakingLimits,
} from './sessions/generators.ts'
import { createHistoryCache } from './sessions/history.ts'
import { createSessionList } from './sessions/list.ts'
import { createLiveState } from './sessions/live.ts'
import { registerMessages } from './sessions/message-routes.ts'
import { createMessageStore } from './sessions/messages.ts'
import { createRefresh } from './sessions/refresh.ts'
import { createRemoval } from './sessions/removal.ts'
import { registerRemoval } from './sessions/removal-routes.ts'
import { registerSessions } from './sessions/routes.ts'
import { createSnapshots } from './sessions/snapshots.ts'
import { createSessionStore } from './sessions/store.ts'
import { transcript } from './sessions/transcript.ts'
import { createExportReader } from './sessions/transfer-export.ts'
import { createImporter } from './sessions/transfer-import.ts'
import { registerTransfer } from './sessions/transfer-routes.ts'
import { createUsers } from './sessions/users.ts'
import { registerAiSdk, registerAiSdkMissing } from './surfaces/ai-sdk-routes.ts'
import { registerNative } from './surfaces/native-routes.ts'
import { registerOpenaiChat } from './surfaces/openai-chat-routes.ts'
import { registerResponses } from './surfaces/openai-responses-routes.ts'
import {
  type DeliveryLimits,
  registerOpenaiErrors,
  registerOpenaiMissing,
  usualDelivery,
} from './surfaces/openai-shared-routes.ts'
import type { Agent } from './upstream/agent.ts'
import { type Catalog, createCatalog } from './upstream/catalog.ts'
import { demoProvider } from './upstream/providers.ts'
import type { Upstream } from './upstream/upstream.ts'

/** What the edge of the process, or a test, puts in the place of the default. */
export interface Overrides {
  readonly logStream?: { write(line: string): void }
  readonly sse?: Partial<Omit<SseOptions, 'viewersPerOwnerMax'>>
  readonly tickets?: Omit<TicketOptions, 'db'>
  readonly persistWaitMs?: number
  /** Makers of artifacts, beside the built-in ones. */
  readonly generators?: readonly ArtifactGenerator[]
  readonly making?: Partial<MakingLimits>
  /** Functions that a model may call. */
  readonly tools?: readonly ServerTool[]
  /** What makes a reply in place of a model, by `agent_id`. */
  readonly agents?: readonly Agent[]
  /** Providers, beside the configured ones. Closed with the app. */
  readonly upstreams?: readonly Upstream[]
  readonly keys?: Pick<KeySetOptions, 'now'>
  readonly pressure?: Pick<PressureOptions, 'now' | 'every'>
  readonly counters?: SharedCounters
  readonly openai?: Partial<DeliveryLimits>
  readonly countCacheRead?: CountCacheRead
}

export interface App {
  readonly server: Server
  /** Closed with the app. */
  readonly db: Db
  /** One sentence: what was chosen. */
  readonly description: string
  /** Resolves when the schema is up to date and the lease is taken. @throws SchemaTooNew */
  readonly ready: Promise<void>
  /** Drains, and closes everything. */
  close(): Promise<void>
}

const startPauseFirstMs = 250
const startPauseMaxMs = 2000
const aiSdkPrefix = '/api/chat'
const openaiPrefix = '/v1'
/** Beside the drain: the last commits, the hand-over, and what is stopped before and after them. */
const closeGraceMs = 15_000
/** At the end of a shutdown, what an answer under way may still take. */
const lastAnswersMs = 2000

export async function buildApp(config: Config, overrides: Overrides = {}): Promise<App> {
  const instanceId = uuidv7()
  const db = await openDatabase(config)
  const server = createServer({
    logLevel: config.logLevel,
    trustedProxies: config.trustedProxies,
    closeMs: config.drainMs + closeGraceMs,
    ...overrides,
  })
  const { log, control, description: logDescription } = await openLog(config, instanceId, server.log)
  const { jwksUrl } = config.auth
  const keys = jwksUrl === undefined ? undefined : openKeySet({ url: jwksUrl, logger: server.log, ...overrides.keys })
  const store = await openStore(config, server.log)
  const frames = createFrames(log, config.frameMs)
  const catalog = createCatalog({ ...config.upstream, upstreams: overrides.upstreams, rest: frames.rest })
  if (catalog.unpriced.length > 0) {
    server.log.warn({ models: catalog.unpriced }, 'the price of these models is not known: their cost will be null')
  }
  const edge = createSseEdge({
    viewersPerOwnerMax: config.viewersPerOwnerMax,
    onAnswered(answer) {
      logAnswer(server.log, answer)
      metrics.countRequest(answer)
    },
    ...overrides.sse,
  })

  const closing = new AbortController()

  const changes = createSessionChanges()
  const sessions = createSessionStore(db, changes)
  const messages = createMessageStore(db)
  const artifacts = createArtifactStore(db, changes)
  const maker = createArtifactMaker({
    artifacts,
    generators: createGenerators([transcript, ...(overrides.generators ?? [])]),
    sessions,
    messages,
    logger: server.log,
    limits: overrides.making,
  })
  const runs = createRunStore(db)
  // What has been accepted, and what keeps this process alive to the others, goes before what can be refused.
  const runDb = db.inLane('runs')
  const models = createModels({
    db,
    runDb,
    catalog,
    limits: config.upstream,
    totalMs: config.upstream.totalMs,
    budgets: config.budgets,
    messagesMax: config.sessionMessagesMax,
    summarizes: config.summaries,
    tools: overrides.tools ?? [],
    agents: overrides.agents ?? [],
    artifacts,
    changes,
    logger: server.log,
    checkpoint: (run) => owned.checkpoint(run),
    touch: frames.touch,
  })
  const owned = createOwnedRuns({
    db: runDb,
    log,
    frames,
    instanceId,
    checkpointMs: config.checkpointMs,
    persistWaitMs: overrides.persistWaitMs,
    changes,
    logger: server.log,
    ...models,
  })
  log.onFenced((runId) => owned.fence(runId))
  const takeover = createTakeover({
    db: runDb,
    log,
    owned,
    instanceId,
    logger: server.log,
    closing: closing.signal,
    ...models,
    changes,
  })
  const reaper = createReaper({ db: runDb, control, instanceId, owned, takeover, logger: server.log })
  const follow = {
    log,
    stored: createStoredReader(db),
    isPersistPending: owned.isPersistPending,
    ticks: createTicks(tickMs),
  }
  const stop = createStop({ db, runs, owned, control, takeover, changes })
  const stopSession = createStopSession({ db, runs, owned, stop, changes })
  const accept = createAccept({
    db,
    runs,
    instanceId,
    runsPerOwnerMax: config.runsPerOwnerMax,
    changes,
    isWatched: owned.isWatched,
    ...models,
  })
  const tickets = createTickets({ db, ...overrides.tickets })
  const metrics = createMetrics()
  const pressure = createPressure({
    lateMsMax: config.overloadMs,
    logger: server.log,
    onRefused: metrics.countRunRefused,
    ...overrides.pressure,
  })
  const chat = createChat({
    accept,
    runs,
    owned,
    pressure,
    log,
    stop,
    instanceId,
    holdLease: reaper.hold,
    checkAgent: models.checkAgent,
    plansFor: catalog.plansFor,
  })

  const show = createShow({ follow, owned, logger: server.log })
  const keep = createKeep({ runs, owned })

  metrics.watch('verbatim_active_runs', 'Runs that this process makes.', () => owned.size)
  metrics.watch('verbatim_viewers', 'Open streams of this process.', () => edge.size)
  metrics.watch(
    'verbatim_event_loop_lateness_seconds',
    'How late this process is, as a mean over about two seconds.',
    () => pressure.lateMs / 1000,
  )

  const count = overrides.countCacheRead ?? metrics.countCacheRead
  const history =
    store !== undefined && config.redis?.cache === true
      ? createHistoryCache({ db, store, ttlMs: config.redis.ttlMs, messagesMax: config.sessionMessagesMax, count })
      : undefined
  const sharesSessions = store !== undefined && config.redis?.sessions === true
  const live = createLiveState({ store: sharesSessions ? store : undefined, readLive: owned.live, count })
  const snapshots = sharesSessions ? createSnapshots(db, store) : undefined
  const refreshers = [history, snapshots].flatMap((copies) => (copies === undefined ? [] : [copies.refresh]))
  const refresh = store === undefined || refreshers.length === 0 ? undefined : createRefresh({ store, refreshers })
  if (refresh !== undefined) changes.observe(refresh)

  async function readPartial(runId: string) {
    const own = owned.partial(runId)
    if (own !== undefined) return { ...own, cursor: formatEventId(own.cursor) }
    const { parts, cursor } = await readCheckpoint(db, runId)
    if (cursor === undefined) return undefined
    return { parts, content: contentOf(parts), cursor: formatEventId(cursor) }
  }

  const removal = createRemoval({
    db,
    sessions,
    changes,
    stopRuns: stopSession,
    eraseLogs: log.erase,
    logger: server.log,
  })

  let state: 'starting' | 'ready' = 'starting'

  async function start(): Promise<void> {
    for (let pauseMs = startPauseFirstMs; ; pauseMs = Math.min(2 * pauseMs, startPauseMaxMs)) {
      try {
        await db.migrate()
        await reaper.start()
        state = 'ready'
        return
      } catch (error) {
        if (error instanceof SchemaTooNew || db.kind === 'pglite') throw error
        server.log.warn({ err: error }, 'the database does not answer yet; trying again')
        await pause(pauseMs, closing.signal)
        if (closing.signal.aborted) return
      }
    }
  }

  server.addHook('onRequest', async (_request, reply) => {
    // The next request of this client should find another process.
    if (owned.isDraining) reply.header('Connection', 'close')
  })
  registerHeaders(server, { crossOrigin: config.corsOrigins.length > 0 })
  await registerCors(server, config.corsOrigins)
  registerOpenapi(server, readVersion())
  registerMetrics(server, metrics)
  await server.register(page)
  registerHealth(server, {
    readiness: () => ({
      state: owned.isDraining ? 'draining' : state,
      degraded: log.degraded ?? store?.degraded ?? pressure.degraded,
    }),
    pingDatabase: () => db.rows(sql`select 1`),
  })
  await server.register(
    // Every surface asks who it is and how much of it there may be in the same way; each says its refusals in its own.
    async (api) => {
      // Before a credential is looked at: a ticket cannot be read in a database without the schema.
      api.addHook('onRequest', async (_request, reply) => {
        reply.header('Cache-Control', 'no-store')
        if (state === 'starting') throw new Problem('db_unavailable', undefined, { retryAfterSeconds: 2 })
      })
      const limits = await createLimits(api, {
        rateLimits: config.rateLimits,
        trustedProxies: config.trustedProxies,
        shared: overrides.counters ?? (store === undefined ? undefined : createCounters(store)),
        isKnown: sessions.hasAny,
        onRefused: metrics.countRateLimited,
      })
      const apiKeys = createApiKeys(db)
      await api.register(identity, {
        auth: config.auth,
        corsOrigins: config.corsOrigins,
        readTicket: tickets.read,
        readApiKey: (request, key) => limits.askForKey(request, key, apiKeys.readSubject),
        keys,
        noteUser: createUsers(db).note,
        admitVisitor: limits.admitVisitor,
      })
      api.addHook('onRequest', limits.spend)
      await api.register(
        async (native) => {
          registerClaim(native as Server, { db, changes })
          registerSessions(native as Server, {
            sessions,
            list: createSessionList(db),
            messages,
            history,
            live,
            snapshots,
            readPartial,
            listArtifacts: artifacts.listArtifacts,
          })
          registerArtifacts(native as Server, { artifacts, maker })
          registerRuns(native as Server, { chat, runs, sessions, messages, owned, follow, stop, stopSession })
          registerBudgets(native as Server, models.budgets)
          const answerWithStream = registerNative(native as Server, { chat, runs, follow, show, keep, edge, tickets })
          registerBranches(native as Server, { chat, runs, messages, answerWithStream })
          registerMessages(native as Server, { messages, feedback: createFeedback(db, changes) })
          registerRemoval(native as Server, removal)
          registerTransfer(native as Server, {
            reader: createExportReader({ db, readPartial }),
            importer: createImporter(db, changes),
          })
        },
        { prefix: '/api/v1' },
      )
      await api.register(
        async (openai) => {
          registerOpenaiErrors(openai as Server)
          const delivery = { ...usualDelivery, ...overrides.openai }
          const parts = { chat, runs, messages, owned, follow, show, keep, edge, catalog, delivery }
          registerOpenaiChat(openai as Server, parts)
          registerResponses(openai as Server, { ...parts, stop })
        },
        { prefix: openaiPrefix },
      )
      await api.register(
        async (ui) =>
          registerAiSdk(ui as Server, {
            chat,
            runs,
            resume: createResume(db),
            messages,
            owned,
            follow,
            show,
            keep,
            edge,
            stopSession,
            ownTools: new Set((overrides.tools ?? []).map(({ name }) => name)),
          }),
        { prefix: aiSdkPrefix },
      )
    },
  )
  await server.register(async (openai) => registerOpenaiMissing(openai), { prefix: openaiPrefix })
  await server.register(async (ui) => registerAiSdkMissing(ui as Server), { prefix: aiSdkPrefix })

  server.addHook('preClose', async () => {
    closing.abort()
    await maker.close()
    await models.endSummaries()
    await owned.drain(config.drainMs, async () => {
      // A database that does not answer knows of nobody either.
      const peers = await reaper.readPeers().catch(() => [])
      return peers.length === 0 ? undefined : (runIds) => reaper.release(runIds, peers)
    })
    // One turn, in which viewers are told of the ends that the drain has waited for, before they are told to come back.
    await nextTurn()
    edge.close()
    await reaper.close()
    // Browsers hold connections in reserve on which they have never asked anything. Node does not count them as idle, and
    // would wait a minute for each.
    setTimeout(() => server.server.closeAllConnections(), lastAnswersMs).unref()
  })
  server.addHook('onClose', async () => {
    pressure.close()
    await keys?.close()
    await models.close()
    await catalog.close()
    refresh?.close()
    live.close()
    await log.close()
    await store?.close()
    await db.close()
  })

  return {
    server,
    db,
    description: describe(db.description, logDescription, catalog),
    ready: start(),
    close: () => server.close(),
  }
}

function describe(database: string, log: string, { providers, names }: Catalog): string {
  const models = names()
  const isDemo = models.every((name) => name.startsWith(`${demoProvider}:`))
  const why =
    providers.length === 1 ? 'no provider key: the built-in demo answers' : 'set MODEL_BALANCED to use a provider'
  return [
    `database: ${database}`,
    `event log: ${log}`,
    `providers: ${providers.join(', ')}`,
    `models: ${models.join(', ')}${isDemo ? ` (${why})` : ''}`,
  ].join(' · ')
}

function readVersion(): string {
  const manifest: { version: string } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'))
  return manifest.version
}
