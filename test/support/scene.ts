/**
 * A scene of faults: a deployment, viewers that record what they see, and the faults that were made, with their times. At
 * its end the faults are healed, everything has to settle, and the checker judges. Fault tests and the chaos command both
 * play on it.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Test } from 'tap'
import {
  check,
  type Evidence,
  type Fault,
  type Figures,
  type MessageRow,
  quote,
  type RunRow,
  type SessionRow,
  type Verdict,
  type Violation,
} from './checker.ts'
import { createClient } from './client.ts'
import { type Cluster, type ClusterGateway, type ClusterOptions, startCluster } from './cluster.ts'
import { nowMs } from './history.ts'
import { startViewers, type Viewer, type Viewers } from './viewers.ts'

export interface Scene {
  readonly cluster: Cluster
  readonly viewers: Viewers
  readonly faults: readonly Fault[]
  /** Notes a fault that goes on until the returned function is called. */
  begin(kind: Fault['kind'], gateway?: ClusterGateway): () => void
  kill(gateway: ClusterGateway): Promise<number>
  /** @returns what thaws it */
  freeze(gateway: ClusterGateway): () => void
  /** @param drainMs what the gateway was given to drain */
  terminate(gateway: ClusterGateway, drainMs: number): void
  /** One more gateway, known to the viewers. */
  spawn(env?: Readonly<Record<string, string>>): Promise<ClusterGateway>
  /** Heals, waits until nothing runs any more, ends the viewers, and judges. */
  judge(): Promise<Verdict & { readonly evidence: Evidence }>
}

export interface SceneOptions extends ClusterOptions {
  /** Where the history is kept; by default a folder that is gone at the end. */
  readonly folder?: string
  /** From the end of all faults until nothing may run any more. */
  readonly settleMs?: number
}

/** The lease, what may pass until it is looked at, and a re-asked reply. */
const settleDefaultMs = 30_000
const lookMs = 100
/** Of what is told of a violation. */
const storiesMax = 5
const linesMax = 40
const lineUnitsMax = 200

export async function startScene(t: Pick<Test, 'teardown'>, options: SceneOptions = {}): Promise<Scene> {
  const cluster = await startCluster(t, options)
  const recorder = await startViewers(t, options.folder)
  const sent: Sent[] = []
  const viewers: Viewers = {
    ...recorder,
    view(order) {
      const viewer = recorder.view(order)
      if (order.key !== undefined) sent.push({ key: order.key, viewer })
      return viewer
    },
  }
  const faults: Fault[] = []
  const open = new Set<() => void>()
  viewers.visit(cluster.urls)

  function begin(kind: Fault['kind'], gateway?: ClusterGateway): () => void {
    const fromMs = nowMs()
    const place = faults.push({ kind, gateway: gateway?.url, fromMs, toMs: Number.POSITIVE_INFINITY }) - 1
    const end = () => {
      if (!open.delete(end)) return
      faults[place] = { ...(faults[place] as Fault), toMs: nowMs() }
    }
    open.add(end)
    return end
  }

  return {
    cluster,
    viewers,
    faults,
    begin,
    async kill(gateway) {
      const killing = gateway.kill()
      viewers.visit(cluster.urls)
      const atMs = await killing
      faults.push({ kind: 'kill', gateway: gateway.url, fromMs: atMs, toMs: atMs })
      return atMs
    },
    freeze(gateway) {
      gateway.freeze()
      const end = begin('freeze', gateway)
      return () => {
        end()
        gateway.thaw()
      }
    },
    terminate(gateway, drainMs) {
      gateway.terminate()
      const fromMs = nowMs()
      viewers.visit(cluster.urls)
      faults.push({ kind: 'terminate', gateway: gateway.url, fromMs, toMs: fromMs + drainMs })
    },
    async spawn(env) {
      const gateway = await cluster.spawn(env)
      viewers.visit(cluster.urls)
      return gateway
    },
    async judge() {
      for (const gateway of cluster.gateways) {
        gateway.thaw()
        gateway.database?.set('pass')
        gateway.redis?.set('pass')
      }
      for (const end of open) end()
      const giveUpAt = nowMs() + (options.settleMs ?? settleDefaultMs)
      if (options.embedded !== true) await untilSettled(cluster, giveUpAt)
      const rows = await (options.embedded === true ? readRowsOverHttp(cluster, sent, giveUpAt) : readRows(cluster))
      const history = await viewers.finish()
      const said = cluster.speaker.said
      const evidence = { ...rows, history, said, faults, complaints: cluster.complaints() }
      return { ...check(evidence), evidence }
    },
  }
}

/** Replies in mid-stream on one gateway, each with a viewer there and one elsewhere. */
export async function streamReplies(scene: Scene, prefix: string, count: number, here: string, elsewhere: string) {
  return Promise.all(
    Array.from({ length: count }, async (_, index) => {
      const key = `${prefix}-${index}`
      scene.cluster.speaker.plan(key, { words: 3000, paceMs: 10 + index })
      const sender = scene.viewers.view({ key, message: `${key} please`, gateway: here, tell: true })
      const { runId } = await sender.accepted
      const watcher = scene.viewers.view({ runId, visitor: sender.visitor, gateway: elsewhere, tell: true })
      const seen = (event: { event: string }) => event.event === 'delta'
      await Promise.all([sender.until(seen), watcher.until(seen)])
      return { sender, watcher }
    }),
  )
}

/** Resolves when nothing runs any more, or when the time is up: what is left then is the checker's to name. */
async function untilSettled({ sql }: Cluster, giveUpAt: number): Promise<void> {
  while (nowMs() < giveUpAt) {
    const rows = await sql`select 1 from chat_runs where status in ('queued', 'running') limit 1`
    if (rows.length === 0) return
    await sleep(lookMs)
  }
}

type Rows = Pick<Evidence, 'runs' | 'messages' | 'sessions' | 'checkpointed'>

async function readRows({ sql, gateways }: Cluster): Promise<Rows> {
  const urls = new Map(gateways.map(({ instanceId, url }) => [instanceId, url]))
  const runs = await sql<(Omit<RunRow, 'gateway'> & { instance_id: string })[]>`
    select id, session_id, user_message_id, message_id, status, generation, attempts, last_seq, idempotency_key, instance_id
    from chat_runs order by created_at`
  const messages = await sql<MessageRow[]>`
    select id, session_id, role, status, content from chat_messages order by session_id, seq`
  const sessions = await sql<SessionRow[]>`select id, message_count, active_run_id from chat_sessions`
  const checkpoints = await sql<{ run_id: string }[]>`select distinct run_id from run_checkpoints`
  return {
    runs: runs.map(({ instance_id, ...run }) => ({ ...run, gateway: urls.get(instance_id) })),
    messages: [...messages],
    sessions: [...sessions],
    checkpointed: checkpoints.map(({ run_id }) => run_id),
  }
}

interface Sent {
  readonly key: string
  readonly viewer: Viewer
}

/** The same for a database that only its gateway can open, as far as the API tells. */
async function readRowsOverHttp({ urls }: Cluster, sent: readonly Sent[], giveUpAt: number): Promise<Rows> {
  const rows = { runs: [] as RunRow[], messages: [] as MessageRow[], sessions: [] as SessionRow[], checkpointed: [] }
  const [gateway = ''] = urls
  for (const { key, viewer } of sent) {
    const { runId, sessionId } = await viewer.accepted
    const client = createClient(gateway, { 'x-visitor-token': viewer.visitor })
    const readRun = async () => (await client.get(`/api/v1/runs/${runId}`)).body
    let run = await readRun()
    while (run.status === 'running' && nowMs() < giveUpAt) {
      await sleep(lookMs)
      run = await readRun()
    }
    const replay = await client.watch(`/api/v1/runs/${runId}/events`)
    await replay.ended
    const lastSeq = Number(replay.received.at(-1)?.id?.split('-')[1] ?? 0)
    rows.runs.push({ ...run, last_seq: lastSeq, idempotency_key: key, gateway })
    for (const message of await client.messages(sessionId)) rows.messages.push({ ...message, session_id: sessionId })
    rows.sessions.push((await client.get(`/api/v1/sessions/${sessionId}`)).body)
  }
  return rows
}

/** The figures in one line for a person. */
export function describeFigures(figures: Figures): string {
  const { messages, acknowledged, lostMessages, lostUnits, duplicatedUnits, wrongEnds } = figures
  return [
    `${messages} messages, ${acknowledged} acknowledged`,
    `lost ${lostMessages} messages and ${lostUnits} units, duplicated ${duplicatedUnits} units, wrong ends ${wrongEnds}`,
    `worst stall ${Math.round(figures.worstStallMs)} ms (elsewhere ${Math.round(figures.worstStallElsewhereMs)} ms)`,
    `takeover ${describeTimes(figures.takeoverMs)}`,
    `hand-over ${describeTimes(figures.handOverMs)}`,
    `taken back as promised ${describeExcused(figures)}`,
  ].join('; ')
}

export function describeTimes(times: readonly number[]): string {
  const sorted = times.toSorted((a, b) => a - b)
  const [median, longest] = [sorted[Math.floor(sorted.length / 2)], sorted.at(-1)]
  if (median === undefined || longest === undefined) return 'none'
  return `${sorted.length}, median ${Math.round(median)} ms, longest ${Math.round(longest)} ms`
}

export function describeExcused({ excused }: Figures): string {
  if (excused.length === 0) return 'nothing'
  const groups = Object.entries(Object.groupBy(excused, ({ why }) => why))
  return groups
    .map(([why, all]) => `${all?.reduce((sum, { units }) => sum + units, 0)} units of ${all?.length} viewers (${why})`)
    .join(', ')
}

/** What a viewer named in a violation went through, in few lines: the first thing to look at. */
export function tell({ history }: Evidence, { detail }: Violation): string[] {
  const viewer = /^v\d+\b/.exec(detail)?.[0]
  const lines = history.filter((line) => line.viewer === viewer)
  const shown = lines.map(({ atMs, viewer: _, ...rest }) => `${Math.round(atMs)} ${quote(rest).slice(0, lineUnitsMax)}`)
  return shown.length <= linesMax ? shown : [...shown.slice(0, linesMax / 2), '…', ...shown.slice(-linesMax / 2)]
}

/** Judges within a test: no promise is broken, and the figures are printed. */
export async function judgeIn(t: Test, scene: Scene): Promise<Verdict & { readonly evidence: Evidence }> {
  const verdict = await scene.judge()
  t.comment(describeFigures(verdict.figures))
  for (const violation of verdict.violations.slice(0, storiesMax))
    t.comment(violation, tell(verdict.evidence, violation))
  t.same(verdict.violations, [], 'no promise is broken')
  return verdict
}
