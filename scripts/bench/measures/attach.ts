/**
 * How soon a viewer that comes in the middle has it all: a reply of 2000 tokens, and viewers that attach while its second
 * thousand comes, in turn to the process that makes it and to another one on the same stores. Caught up is who holds
 * every token that the provider had sent when the viewer began. A token takes a frame of its own time to get there, which
 * is in the figure.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { checkReplies, openReply, quantile, untilEnded } from '../replies.ts'
import { type Bench, compare } from '../rounds.ts'
import type { Contender } from '../stage.ts'
import { findWrongToken, openViewer, readSeen, type Viewer } from '../viewers.ts'
import { warmUp } from '../warm.ts'
import { findDisturbance, watch } from '../watch.ts'

const tokens = 2000
const [intervalMsUsual, intervalMsQuick] = [10, 4] as const
const [attachFrom, attachUntil] = [1000, 1900] as const
/** From one viewer to the next. */
const everyMs = 25
/** How long each stays: who has not caught up by then has not. */
const stayMs = 2000
const endMsMax = 30_000

interface Attached {
  readonly viewer: Viewer
  /** When it began. */
  readonly sent: number
}

export async function measureAttach(bench: Bench): Promise<void> {
  const { stage } = bench
  const [first, second] = await stage.startTwo()
  for (const contender of [first, second]) await warmUp(bench, contender)
  const intervalMs = bench.quick ? intervalMsQuick : intervalMsUsual
  await compare(bench, 'attach', `${tokens} tokens`, [{ name: 'gateway', run: () => attachAll() }])
  await second.end()
  await first.end()

  async function attachAll() {
    stage.provider.setPace({ intervalMs, firstMs: 0 })
    const asker = openReply(stage, first, tokens)
    const sent = () => stage.provider.replies.get(asker.number)?.sent ?? 0
    const giveUpAt = performance.now() + tokens * intervalMs + endMsMax
    while (sent() < attachFrom && performance.now() < giveUpAt) await sleep(intervalMs)
    const stop = watch(stage, [first, second])
    const attached: Record<'same' | 'other', Attached[]> = { same: [], other: [] }
    const open = (contender: Contender): Attached => {
      const begun = sent()
      const viewer = openViewer(contender.attach(asker), { number: asker.number, tokens })
      setTimeout(() => viewer.close(), stayMs)
      return { viewer, sent: begun }
    }
    while (sent() < attachUntil && performance.now() < giveUpAt) {
      attached.same.push(open(first))
      await sleep(everyMs)
      attached.other.push(open(second))
      await sleep(everyMs)
    }
    const watched = stop()
    await untilEnded([asker, ...Object.values(attached).flatMap((some) => some.map(({ viewer }) => viewer))], endMsMax)
    const same = readAttached(attached.same, first)
    const other = readAttached(attached.other, second)
    const { faults } = await checkReplies(stage, first, [asker])
    return {
      figures: {
        sameFirstByteP50Ms: quantile(same.firstByteMs, 0.5),
        sameFirstByteP99Ms: quantile(same.firstByteMs, 0.99),
        sameCaughtUpP50Ms: quantile(same.caughtUpMs, 0.5),
        sameCaughtUpP99Ms: quantile(same.caughtUpMs, 0.99),
        otherFirstByteP50Ms: quantile(other.firstByteMs, 0.5),
        otherFirstByteP99Ms: quantile(other.firstByteMs, 0.99),
        otherCaughtUpP50Ms: quantile(other.caughtUpMs, 0.5),
        otherCaughtUpP99Ms: quantile(other.caughtUpMs, 0.99),
        viewers: attached.same.length + attached.other.length,
      },
      faults: [...faults, ...same.faults, ...other.faults],
      disturbance: findDisturbance(watched),
    }
  }
}

function readAttached(attached: readonly Attached[], contender: Contender) {
  const faults: string[] = []
  const firstByteMs: number[] = []
  const caughtUpMs: number[] = []
  attached.forEach(({ viewer, sent }, number) => {
    const { text, seenAt } = readSeen(viewer, contender.format)
    const wrong = findWrongToken(text, sent)
    if (wrong !== undefined) faults.push(`viewer ${number}: token ${wrong} of ${sent} is wrong`)
    firstByteMs.push(viewer.firstByteAt - viewer.startedAt)
    caughtUpMs.push((seenAt[sent - 1] as number) - viewer.startedAt)
  })
  return {
    faults,
    firstByteMs: Float64Array.from(firstByteMs).sort(),
    caughtUpMs: Float64Array.from(caughtUpMs).sort(),
  }
}
