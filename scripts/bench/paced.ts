/**
 * Many replies at once, each a token at a time, and what happens between two moments in the middle: what a token costs, and
 * how late it is. Beginning and end of the replies lie outside, so this is the price of a token and of nothing else.
 *
 * Replies begin one after the other, so that their tokens do not come in step. They are asked for a little longer than the
 * window, end by themselves, and are then checked whole.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { checkReplies, openReply, quantile, readLags, untilEnded } from './replies.ts'
import type { Figures, Trial } from './rounds.ts'
import type { Contender, Stage } from './stage.ts'
import type { Viewer } from './viewers.ts'
import { findDisturbance, saturatedShare, type Watched, watch } from './watch.ts'

export interface PacedLoad {
  readonly streams: number
  readonly warmMs: number
  readonly windowMs: number
}

export interface Paced extends Trial {
  readonly watched: Watched
  readonly lagP99Ms: number
}

/** 50 tokens a second: what a fast model sends. */
export const intervalMs = 20
/** From one beginning to the next; all together take a second at least. */
const beginMs = 5
const rampMsMin = 1000
/** How much longer replies are than they need to be. */
const tailMs = 500
/** Longest wait for replies that should have ended. */
const endMsMax = 20_000

/** @param contenders processes on the same stores, who get the replies in turn */
export async function runPaced(stage: Stage, contenders: readonly Contender[], load: PacedLoad): Promise<Paced> {
  const { streams, warmMs, windowMs } = load
  const rampMs = Math.max(rampMsMin, streams * beginMs)
  const tokens = Math.ceil((rampMs + warmMs + windowMs + tailMs) / intervalMs)
  stage.provider.setPace({ intervalMs, firstMs: 0 })
  const opened = new Map<Contender, Viewer[]>(contenders.map((contender) => [contender, []]))
  const startedAt = performance.now()
  for (let stream = 0; stream < streams; stream += 1) {
    await sleepUntil(startedAt + (stream * rampMs) / streams)
    const contender = contenders[stream % contenders.length] as Contender
    opened.get(contender)?.push(openReply(stage, contender, tokens))
  }
  await sleepUntil(startedAt + rampMs + warmMs)
  const stop = watch(stage, contenders)
  await sleep(windowMs)
  const watched = stop()
  await untilEnded([...opened.values()].flat(), tailMs + endMsMax)
  const outcomes = []
  for (const [contender, viewers] of opened) outcomes.push(await checkReplies(stage, contender, viewers))
  const lags = readLags(
    outcomes.flatMap(({ told }) => told),
    watched.from,
    watched.until,
  )
  const lagP99Ms = quantile(lags, 0.99)
  return {
    watched,
    lagP99Ms,
    figures: { ...costOf(watched), lagP50Ms: quantile(lags, 0.5), lagP99Ms },
    faults: outcomes.flatMap(({ faults }) => faults),
    disturbance: findDisturbance(watched),
  }
}

/** What tokens cost, and under which conditions. */
export function costOf(watched: Watched): Figures {
  const { tokens, contenderMs, postgresMs, redisMs, contenderShare, loadShare, foreignShare, latenessP99Ms } = watched
  return {
    usPerToken: (contenderMs * 1000) / tokens,
    postgresUsPerToken: (postgresMs * 1000) / tokens,
    redisUsPerToken: (redisMs * 1000) / tokens,
    tokens,
    saturated: contenderShare > saturatedShare ? 1 : 0,
    contenderShare,
    loadShare,
    foreignShare,
    latenessP99Ms,
  }
}

export async function sleepUntil(at: number): Promise<void> {
  const leftMs = at - performance.now()
  if (leftMs > 0) await sleep(leftMs)
}
