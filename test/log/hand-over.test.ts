/**
 * From replay to live there is no seam: a viewer that comes in the middle of a reply, on another process, sees every event
 * once, whenever it comes. The twin joins the two the way it is usually done, and is noticed.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { test } from 'tap'
import { type EventId, formatEventId } from '../../src/log/event.ts'
import type { EventLog } from '../../src/log/log.ts'
import { createSpeech, type Seen, view } from '../support/log-viewer.ts'
import { createRandom } from '../support/random.ts'
import { createPrefix, openSharedLog, sharedRedis, withoutRedis } from '../support/redis.ts'

const seed = 20_261_121
const runs = 4
const viewersPerRun = 25
const eventsPerRun = 400
/** What the twin needs to begin listening; meanwhile a few events are said. */
const listeningMs = 20
/** Long enough for all that is said, on a busy machine. */
const patienceMs = 60_000
/** The twin's viewers wait for what they have missed, and need not be waited for. */
const seamMs = 5000

test('a viewer that comes at any moment of a reply sees every event once', { skip: withoutRedis }, async (t) => {
  const url = sharedRedis()
  const prefix = createPrefix(t, url)
  const { log: owner } = await openSharedLog(t, { url, prefix })
  const { log: other } = await openSharedLog(t, { url, prefix })
  const seen = await attachAll(owner, other, patienceMs)
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

  const broken = await attachAll(owner, withSeam(other), seamMs)
  const noticed = broken.filter(({ wrong }) => wrong.length > 0).length
  t.ok(noticed > 0, 'a twin that replays first and then listens from now on is noticed')
  t.comment(`with a seam: ${noticed} of ${broken.length} viewers missed something`)
})

/** Speaks several runs on one log, and lets viewers come to another at random moments of them. */
async function attachAll(owner: EventLog, other: EventLog, patienceMs: number): Promise<Seen[]> {
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

/** A log that listens from where it is when it has begun to listen, and not from where the replay has ended. */
function withSeam(log: EventLog): EventLog {
  const listensFrom = new Map<string, EventId>()
  return {
    ...log,
    async read(runId, after, entriesMax) {
      if (after === undefined) return log.read(runId, after, entriesMax)
      const replayed = `${runId} ${formatEventId(after)}`
      if (!listensFrom.has(replayed)) {
        await sleep(listeningMs)
        const whole = await log.load(runId)
        listensFrom.set(replayed, (whole === 'unanswered' ? undefined : whole.at(-1)) ?? after)
      }
      return log.read(runId, listensFrom.get(replayed), entriesMax)
    },
    watch: log.watch,
    load: log.load,
  }
}
