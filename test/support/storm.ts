/**
 * What the tests of the reconnect storm share: replies that go on, a thousand viewers of them, half of these on the
 * gateway that makes the reply, and what must be true in the end. The crowd itself lives in a process of its own (crowd.ts).
 */
import { createHash } from 'node:crypto'
import type { Test } from 'tap'
import type { Cluster } from './cluster.ts'
import type { Crowd, Place, Return } from './crowd.ts'
import { untilTrue } from './limits.ts'
import { createVisitor } from './viewers.ts'

export const runs = Number(process.env.STORM_RUNS ?? 50)
export const viewers = Number(process.env.STORM_VIEWERS ?? 1_000)
export const resumedMsMax = 5_000
/** Of each reply: as fast as a person reads. */
const paceMs = 100
const wordsMax = 1_200

/** Replies that are being made, half of them on each gateway, and who is to watch them: half of these where it is made. */
export async function begin({ speaker, gateways }: Cluster): Promise<Place[]> {
  const places: Place[] = []
  for (let n = 0; n < runs; n += 1) {
    const key = `storm-${n}`
    speaker.plan(key, { words: wordsMax, paceMs, untilReleased: true })
    const visitor = createVisitor()
    const home = gateways[n % gateways.length]?.url ?? ''
    const abort = new AbortController()
    const response = await fetch(`${home}/api/v1/chat/stream`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', 'x-visitor-token': visitor },
      body: JSON.stringify({ message: `${key} please`, client_message_id: key }),
      signal: abort.signal,
    })
    const runId = response.headers.get('x-run-id') ?? ''
    abort.abort()
    for (let viewer = n; viewer < viewers; viewer += runs) {
      places.push({ runId, visitor, gateway: gateways[Math.floor(viewer / runs) % gateways.length]?.url ?? home })
    }
  }
  await untilTrue(() => speaker.said.length === runs)
  return places
}

/** What every viewer holds is what is stored, and nobody was shown a gap on the way. */
export async function judge(t: Test, cluster: Cluster, crowd: Crowd, status: string): Promise<void> {
  const held = await crowd.finish()
  const stored = await cluster.sql<{ run_id: string; content: string; status: string }[]>`
    select run_id, content, status from chat_messages where role = 'assistant'`
  const digests = new Map(
    stored.map(({ run_id, content }) => [run_id, createHash('sha256').update(content).digest('hex')]),
  )
  t.same([...new Set(stored.map((message) => message.status))], [status])
  t.equal(held.filter(({ runId, digest }) => digests.get(runId) === digest).length, viewers, 'all hold what is stored')
  t.equal(
    held.filter(({ gaps, duplicates }) => gaps + duplicates > 0).length,
    0,
    'nobody was shown a gap, or a word twice',
  )
  t.comment(`resets ${held.reduce((sum, { resets }) => sum + resets, 0)}, ${held[0]?.units} units each`)
  t.same(cluster.complaints(), [])
}

export function describe({ tookMs, failures, ended, cpuMs }: Return): string {
  const { p50, p99, max } = spread(tookMs)
  return (
    `${tookMs.length} viewers back in ${p50} ms (p50), ${p99} ms (p99), ${max} ms (max); ` +
    `tried again ${JSON.stringify(failures)}; ${ended} had seen the end before; the crowd itself used ${Math.round(cpuMs)} ms of a CPU`
  )
}

export function spread(tookMs: readonly number[]) {
  const sorted = tookMs.toSorted((a, b) => a - b)
  const at = (part: number) => Math.round(sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))] ?? 0)
  return { p50: at(0.5), p99: at(0.99), max: at(1) }
}
