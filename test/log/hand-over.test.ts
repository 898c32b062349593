/**
 * From replay to live there is no seam: a viewer that comes in the middle of a reply, on another process, sees every event
 * once, whenever it comes. The twin joins the two the way it is usually done, and is noticed.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'tap'
import type { LogEntry } from '../../src/log/event.ts'
import type { EventLog } from '../../src/log/log.ts'
import { createSpeech, type Seen, view } from '../support/log-viewer.ts'
import { createRandom } from '../support/random.ts'
import { createPrefix, openSharedLog, sharedRedis, withoutRedis } from '../support/redis.ts'

const seed = 20_261_121
const runs = 4
const viewersPerRun = 25
const eventsPerRun = 400
/** Long enough for all that is said, on a busy machine. */
const patienceMs = 60_000
/** Between two looks at what Redis holds. */
const lookMs = 5

test('a viewer that comes at any moment of a reply sees every event once', { skip: withoutRedis }, async (t) => {
  const url = sharedRedis()
  const prefix = createPrefix(t, url)
  const { log: owner } = await openSharedLog(t, { url, prefix })
  const { log: other } = await openSharedLog(t, { url, prefix })
  const seen = await attachAll(owner, other)
  t.same(
    seen.flatMap(({ wrong }) => wrong),
    [],
    'nothing is missing, nothing comes twice',
  )
  t.ok(
    seen.every(({ ended }) => ended),
    'and everybody sees the end',
  )
  t.ok(
    seen.some(({ events }) => events > eventsPerRun / 2),
    'some replayed',
  )
  t.comment(`${seen.length} viewers attached within ${eventsPerRun} events of ${runs} runs, seed ${seed}: 0 wrong`)

  t.ok(await missesNothing(owner, other, 'from the replay'), 'what comes behind the replay is the next event')
  t.notOk(await missesNothing(owner, other, 'from now'), 'a twin that replays and then listens from now on is noticed')
})

/** Replays a run while it speaks, begins to listen, and looks whether the two join. */
async function missesNothing(owner: EventLog, other: EventLog, listens: 'from the replay' | 'from now') {
  const speech = createSpeech(owner)
  speech.say(20)
  const replayed = await loadUntil(other, speech.runId, 20)
  speech.say(20)
  const now = await loadUntil(other, speech.runId, 40)
  const from = listens === 'from now' ? now : replayed
  speech.end()
  await loadUntil(other, speech.runId, 41)
  const page = await other.read(speech.runId, from.at(-1), eventsPerRun)
  const live = page.kind === 'entries' ? page.entries : []
  const seqs = [...replayed, ...live].map(({ seq }) => seq)
  return seqs.length > 20 && seqs.every((seq, index) => seq === index + 1)
}

/** What Redis holds of a run as soon as it holds so many events. */
async function loadUntil(log: EventLog, runId: string, events: number): Promise<readonly LogEntry[]> {
  for (const giveUpAt = Date.now() + patienceMs; Date.now() < giveUpAt; await sleep(lookMs)) {
    const entries = await log.load(runId)
    if (entries !== 'unanswered' && entries.length >= events) return entries
  }
  throw new Error(`the log never held ${events} events`)
}

/** Speaks several runs on one log, and lets viewers come to another at random moments of them. */
async function attachAll(owner: EventLog, other: EventLog): Promise<Seen[]> {
  const random = createRandom(seed)
  const over = AbortSignal.timeout(patienceMs)
  return (
    await Promise.all(
      Array.from({ length: runs }, async () => {
        const speech = createSpeech(owner)
        speech.say()
        const comings = new Set(Array.from({ length: viewersPerRun }, () => 1 + random.integer(eventsPerRun)))
        const viewers: Promise<Seen>[] = []
        for (let event = 1; event <= eventsPerRun; event += 1) {
          speech.say()
          if (comings.has(event)) viewers.push(view(other, speech, over).over)
          if (random.integer(3) === 0) await sleep(random.integer(6))
        }
        speech.end()
        return Promise.all(viewers)
      }),
    )
  ).flat()
}
