/**
 * A scene in which something happens to Redis: two gateways, replies that are spoken steadily on the first one, and for
 * each reply a viewer there, one on the other gateway, and one that goes away and comes back to the other gateway in the
 * middle of the fault. At its end the checker judges, the figures are printed, and what Redis may never cost is
 * asserted: a pause for those who watch where the reply is made, a connection more than at the beginning, an error that
 * nobody caught, a gateway that still says it is degraded.
 *
 * The scene owns what it starts, as scene.ts does. Its commands to Redis go past every proxy, on a connection that is
 * closed again at once, so that none of them is in the way of what is tried.
 */
import { once } from 'node:events'
import { Redis } from 'ioredis'
import type { Test } from 'tap'
import { createClient, shownText } from './client.ts'
import type { ClusterGateway } from './cluster.ts'
import { type HistoryLine, nowMs } from './history.ts'
import { untilTrue } from './limits.ts'
import { describeFigures, type Scene, startScene } from './scene.ts'
import type { Plan } from './speaker.ts'
import type { ToldEvent, Viewer } from './viewers.ts'

export interface Talk {
  readonly key: string
  readonly runId: string
  /** On the gateway that makes the reply. */
  readonly near: Viewer
  /** On another. */
  readonly far: Viewer
  /** On another, and away when told so. */
  readonly comer: Viewer
}

export interface RedisScene extends Scene {
  /** Makes the replies. */
  readonly here: ClusterGateway
  readonly elsewhere: ClusterGateway
  /** Replies in mid-stream, seen by all their viewers. */
  talk(prefix: string, count?: number): Promise<readonly Talk[]>
  /** One reply that has said some words and then nothing, until it is released. */
  hold(key: string): Promise<Talk>
  /** Each talk's third viewer leaves, and comes back after so long, with the last id it got, to this or the other gateway. */
  comeBack(talks: readonly Talk[], awayMs: number, gateway?: ClusterGateway): void
  /**
   * Resolves when everything is as before: no gateway is degraded, and the viewers elsewhere are shown words as they are
   * spoken again. Notes how long that took since `sinceMs`.
   */
  untilWell(talks: readonly Talk[], sinceMs: number): Promise<void>
  /** Lets the replies end, and waits until all viewers have seen it. */
  end(talks: readonly Talk[]): Promise<void>
  /** The text of a run, read from its beginning by somebody who comes now. */
  readWhole(runId: string, gateway: ClusterGateway): Promise<string>
  /** Ends a gateway that nobody needs any more. @returns its exit code */
  retire(gateway: ClusterGateway): Promise<number | string>
  /** Says a command to Redis itself. */
  order(...command: readonly [string, ...(string | number)[]]): Promise<unknown>
  /** Judges, prints the figures, asserts what holds for every row. */
  finish(t: Test, limits?: Limits): ReturnType<Scene['judge']>
}

export interface Limits {
  /** Longest silence for viewers of other gateways; by default as long as it takes to notice, and a poll of checkpoints. */
  readonly elsewhereMsMax?: number
}

/** Redis never makes a viewer wait longer, where the reply is made. */
export const stallMsMax = 1_000
/** Elsewhere: what may pass until Redis is given up, until the next checkpoint, and until the database is asked. */
export const coarseMsMax = 4_000
/** From the end of a fault until viewers elsewhere are served from Redis again. */
export const fineMsMax = 5_000
/** One that writes, one that blocks, one that asks; and one for copies and counters. */
export const connectionsPerGateway = 4

const paceMs = 20
/** The longest that a reply can be spoken: two minutes. */
const wordsMax = 6_000
const heldWords = 20
/** Fine is: so many deltas, none of which came so much later than the one before. From checkpoints, one comes each second. */
const fineDeltas = 10
const fineGapMs = 400
const wellWaitMs = 30_000
const orderMs = 5_000

export async function startRedisScene(
  t: Test,
  options: { readonly env?: Record<string, string>; readonly redisDown?: boolean } = {},
): Promise<RedisScene> {
  const { env = {}, redisDown = false } = options
  const scene = await startScene(t, { gateways: redisDown ? 0 : 2, env })
  const { cluster, viewers } = scene
  if (redisDown) {
    await cluster.redis.crash()
    await scene.spawn()
    await scene.spawn()
  }
  const [first, second] = cluster.gateways
  if (first === undefined || second === undefined) throw new Error('two were asked for')
  const [here, elsewhere] = [first, second]
  const fineAgainMs: number[] = []
  const visitors = new Map<string, string>()
  const up = () => cluster.gateways.filter(({ isUp }) => isUp)

  const expected = () => ({
    ...Object.fromEntries(up().map(({ name }) => [name, connectionsPerGateway])),
    redis: up().length * connectionsPerGateway,
  })

  async function order(...[command, ...rest]: readonly [string, ...(string | number)[]]): Promise<unknown> {
    const redis = new Redis(cluster.redis.url, {
      lazyConnect: true,
      commandTimeout: orderMs,
      retryStrategy: () => null,
    })
    redis.on('error', () => undefined) // The same error rejects below.
    try {
      await redis.connect()
      return await redis.call(command, ...rest)
    } finally {
      const closed = once(redis, 'end')
      redis.disconnect()
      await closed
    }
  }

  async function countConnections(): Promise<Record<string, number>> {
    const list = String(await order('CLIENT', 'LIST'))
    const others = list.split('\n').filter((line) => line !== '' && !line.includes('cmd=client|list'))
    return {
      ...Object.fromEntries(up().map(({ name, redis }) => [name, redis?.connectionCount ?? 0])),
      redis: others.length,
    }
  }

  async function begin(key: string, plan: Plan): Promise<Talk> {
    cluster.speaker.plan(key, plan)
    const near = viewers.view({ key, message: `${key} please`, gateway: here.url, tell: true })
    const { runId } = await near.accepted
    visitors.set(runId, near.visitor)
    const attach = { runId, visitor: near.visitor, gateway: elsewhere.url, tell: true }
    const [far, comer] = [viewers.view(attach), viewers.view(attach)]
    await Promise.all([near, far, comer].map((viewer) => viewer.until(isDelta)))
    return { key, runId, near, far, comer }
  }

  if (!redisDown) t.same(await countConnections(), expected(), 'connections at the beginning')

  return {
    ...scene,
    here,
    elsewhere,
    order,
    talk: (prefix, count = 3) =>
      Promise.all(
        Array.from({ length: count }, (_, index) =>
          begin(`${prefix}-${index}`, { words: wordsMax, paceMs, untilReleased: true }),
        ),
      ),
    hold: (key) => begin(key, { words: 2 * heldWords, paceMs, holdAfterWords: heldWords }),
    comeBack(talks, awayMs, gateway = elsewhere) {
      for (const { comer } of talks) comer.move(gateway.url, awayMs)
    },
    async untilWell(talks, sinceMs) {
      const limit = AbortSignal.timeout(wellWaitMs)
      const late = once(limit, 'abort').then(() => {
        throw new Error(`not well ${wellWaitMs} ms after the fault`)
      })
      const fine = Promise.all(talks.map(({ far }) => untilFine(far, sinceMs)))
      fineAgainMs.push(...(await Promise.race([fine, late])).map((atMs) => atMs - sinceMs))
      await untilDegraded(up(), false)
    },
    async end(talks) {
      for (const { key } of talks) cluster.speaker.release(key)
      const watching = talks.flatMap(({ near, far, comer }) => [near, far, comer])
      const ends = await Promise.all(watching.map(({ ended }) => ended))
      t.same([...new Set(ends)], ['done'], 'every viewer saw the end')
    },
    async readWhole(runId, gateway) {
      const client = createClient(gateway.url, { 'x-visitor-token': visitors.get(runId) ?? '' })
      const stream = await client.watch(`/api/v1/runs/${runId}/events`)
      await stream.ended
      return shownText(stream.received)
    },
    async retire(gateway) {
      gateway.terminate()
      viewers.visit(cluster.urls)
      return gateway.exited
    },
    async finish(t, { elsewhereMsMax = coarseMsMax } = {}) {
      await untilDegraded(up(), false)
      await untilTrue(async () => (await countConnections()).redis === expected().redis).catch(() => undefined) // Told below.
      t.same(await countConnections(), expected(), 'connections are as many as at the beginning')
      const verdict = await scene.judge()
      const { figures, evidence } = verdict
      t.same(verdict.violations, [], 'no promise is broken')
      for (const run of evidence.runs) t.match(run, { status: 'completed', generation: 1 })
      t.same(errorLines(cluster.gateways), [], 'no gateway met an error that it did not expect')
      t.ok(
        figures.worstStallMs <= stallMsMax,
        `where the reply is made nobody waits for Redis (${Math.round(figures.worstStallMs)} ms)`,
      )
      t.ok(
        figures.worstStallElsewhereMs <= elsewhereMsMax,
        `elsewhere it is coarser, and goes on (${Math.round(figures.worstStallElsewhereMs)} ms)`,
      )
      const fineMs = Math.max(0, ...fineAgainMs)
      t.ok(fineMs <= fineMsMax, `elsewhere it is fine again (${Math.round(fineMs)} ms)`)
      const resumedMs = resumptions(evidence.history, scene.faults, here.url)
      t.comment(
        [
          `trials ${scene.faults.length}`,
          describeFigures(figures),
          `resumed elsewhere during the fault ${resumedMs.length}, the slowest in ${most(resumedMs)}`,
          `fine again elsewhere in ${most(fineAgainMs)}`,
        ].join('; '),
      )
      return verdict
    },
  }
}

export const isDelta = ({ event }: { readonly event: string }): boolean => event === 'delta'

/** What a gateway says of itself. */
export async function readHealth({ url }: Pick<ClusterGateway, 'url'>): Promise<{
  readonly status: number
  readonly ok: boolean
  readonly degraded: boolean
  readonly reason?: string
}> {
  const { status, body } = await createClient(url).get('/health/ready')
  return { status, ...body }
}

/** Resolves when all of them say so. */
export async function untilDegraded(gateways: readonly ClusterGateway[], degraded: boolean): Promise<void> {
  for (const gateway of gateways) await untilTrue(async () => (await readHealth(gateway)).degraded === degraded)
}

/** Resolves when all of them were told some more after this moment. */
export async function untilShownAfter(viewers: readonly Viewer[], sinceMs = nowMs()): Promise<void> {
  await Promise.all(viewers.map((viewer) => viewer.until((event) => isDelta(event) && event.atMs > sinceMs)))
}

/** @returns the time from which on words were shown as they were spoken */
async function untilFine(viewer: Viewer, sinceMs: number): Promise<number> {
  const times: number[] = []
  await viewer.until((event: ToldEvent) => {
    if (!isDelta(event) || event.atMs < sinceMs) return false
    const last = times.at(-1)
    if (last !== undefined && event.atMs - last > fineGapMs) times.length = 0
    times.push(event.atMs)
    return times.length === fineDeltas
  })
  return times[0] as number
}

/** How long those who came back during a fault, and not where the reply is made, waited for their first words. */
function resumptions(history: readonly HistoryLine[], faults: Scene['faults'], home: string): number[] {
  const took: number[] = []
  for (const lines of Map.groupBy(history, ({ viewer }) => viewer).values()) {
    for (const [index, line] of lines.entries()) {
      if (line.what !== 'open' || line.gateway === home || line.after === undefined) continue
      if (!faults.some(({ fromMs, toMs }) => fromMs <= line.atMs && line.atMs <= toMs)) continue
      const next = lines.slice(index).find((later) => later.what === 'event' && /^(delta|reset)$/.test(later.event))
      if (next !== undefined) took.push(next.atMs - line.atMs)
    }
  }
  return took
}

/** Whatever a fault of Redis alone does, it is nothing that a gateway calls an error. */
function errorLines(gateways: readonly ClusterGateway[]): string[] {
  return gateways.flatMap(({ name, lines }) =>
    lines.filter((line) => /"level":"(error|fatal)"/.test(line)).map((line) => `${name}: ${line}`),
  )
}

const most = (values: readonly number[]) => (values.length === 0 ? 'none' : `${Math.round(Math.max(...values))} ms`)
