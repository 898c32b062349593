/**
 * A steady load of messages with random replies, sent and watched by viewers of every manner: patient and impatient, slow,
 * dropping out and coming back anywhere, two tabs that send the same at once, people who press stop. Everything follows
 * from the seed, except what the machine's speed changes.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Random } from './random.ts'
import type { Scene } from './scene.ts'
import { createVisitor, type Viewer } from './viewers.ts'

export interface LoadCounts {
  readonly duplicates: number
  readonly stops: number
  readonly queued: number
  readonly viewers: number
}

const wordsMax = 400
const paceMsMax = 30
const silentMsMax = 2_000
const stopWithinMs = 6_000
const stopAnswerMs = 15_000
/** How many of a hundred messages are sent twice at once, stopped, followed by one that waits, slow to begin. */
const percent = { duplicate: 12, stop: 12, queue: 8, silent: 15 } as const
/** How many of a hundred viewers drop out again and again, do not read for a while, lose patience. */
const manners = { drops: 35, slow: 10, impatient: 25 } as const

/**
 * Sends a message each `everyMs` until the signal is aborted.
 * @returns when all have been sent; the viewers go on
 */
export async function runLoad(
  scene: Scene,
  random: Random,
  everyMs: number,
  signal: AbortSignal,
): Promise<{
  readonly counts: LoadCounts
  readonly viewers: readonly Viewer[]
  readonly stops: readonly Promise<void>[]
}> {
  const { cluster } = scene
  const all: Viewer[] = []
  const stops: Promise<void>[] = []
  const counts = { duplicates: 0, stops: 0, queued: 0, viewers: 0 }
  const chance = (of: number) => random.integer(100) < of
  const manner = () => ({
    seed: random.integer(2 ** 31),
    ...(chance(manners.drops) ? { dropEveryMs: 200 + random.integer(3_000) } : {}),
    ...(chance(manners.slow) ? { slow: { everyMs: 700, forMs: 500 } } : {}),
    ...(chance(manners.impatient) ? { silenceMs: 3_000 + random.integer(3_000) } : {}),
  })
  const watch = (order: Parameters<Scene['viewers']['view']>[0]) => {
    const viewer = scene.viewers.view({ ...manner(), ...order })
    all.push(viewer)
    return viewer
  }

  async function send(key: string, visitor: string, sessionId?: string): Promise<void> {
    cluster.speaker.plan(key, {
      words: 1 + random.integer(wordsMax),
      paceMs: 1 + random.integer(paceMsMax),
      silentMs: chance(percent.silent) ? random.integer(silentMsMax) : 0,
    })
    const order = {
      key,
      visitor,
      message: `${key} please`,
      ...(sessionId === undefined ? {} : { sessionId, body: { on_busy: 'queue' } }),
    }
    const [duplicate, stop, follow, watchers] = [
      chance(percent.duplicate),
      chance(percent.stop),
      sessionId === undefined && chance(percent.queue),
      random.integer(3),
    ]
    const stopAfterMs = random.integer(stopWithinMs)
    const sender = watch(order)
    if (duplicate) {
      counts.duplicates += 1
      watch(order)
    }
    if (sessionId !== undefined) counts.queued += 1
    const accepted = await sender.accepted.catch(() => undefined) // How it ended is judged with the others.
    if (accepted === undefined) return
    for (let n = 0; n < watchers; n += 1) watch({ runId: accepted.runId, visitor })
    if (stop) {
      counts.stops += 1
      stops.push(pressStop(accepted.runId, visitor, stopAfterMs))
    }
    if (follow) await send(`${key}q`, visitor, accepted.sessionId)
  }

  async function pressStop(runId: string, visitor: string, afterMs: number): Promise<void> {
    await sleep(afterMs)
    const [url] = cluster.urls.length === 0 ? [] : [random.pick(cluster.urls)]
    if (url === undefined) return
    // Whether it is heard is not certain: its gateway may be dying.
    await fetch(`${url}/api/v1/runs/${runId}/stop`, {
      method: 'POST',
      headers: { 'x-visitor-token': visitor },
      signal: AbortSignal.timeout(stopAnswerMs),
    }).catch(() => undefined)
  }

  const sending: Promise<void>[] = []
  for (let n = 1; !signal.aborted; n += 1) {
    sending.push(send(`m${n}`, createVisitor()))
    await sleep(everyMs, undefined, { signal }).catch(() => undefined) // Time is up.
  }
  await Promise.all(sending)
  counts.viewers = all.length
  return { counts, viewers: all, stops }
}
