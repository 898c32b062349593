/**
 * `npm run chaos -- --minutes N --seed S [--gateways 3]`: mixed random mishaps on a deployment under steady load, and a verdict.
 * Gateways are killed, restarted and frozen, Redis and Postgres are killed, flushed, frozen and cut off, connections are
 * terminated, while messages are sent, sent twice, queued and stopped by viewers that drop out and come back anywhere. At
 * the end everything is healed and has to settle; then the checker compares what each viewer saw with the database and
 * with what the provider said.
 *
 * The schedule follows from the seed and is printed. The history (what each viewer saw, the rows, the faults, the logs) is kept
 * when a promise was broken, and its folder printed; else it is removed. Exit code 1 when a promise was broken.
 *
 * Everything is private to this command: servers, gateways, ports, folders. An interrupt ends and removes all of it.
 */
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { Redis } from 'ioredis'
import { check, type Evidence, type Verdict, type Violation } from '../test/support/checker.ts'
import type { ClusterGateway } from '../test/support/cluster.ts'
import { nowMs, readHistory } from '../test/support/history.ts'
import { type LoadCounts, runLoad } from '../test/support/load.ts'
import { createMishapMaker, describeMishap, type Mishap, planMishaps } from '../test/support/mishaps.ts'
import { createRandom } from '../test/support/random.ts'
import { describeExcused, describeFigures, describeTimes, type Scene, startScene, tell } from '../test/support/scene.ts'

const drainMs = 3_000
const sendEveryMs = 300
/** Before the first mishap, so that it meets replies at every stage. */
const warmUpMs = 3_000
/** After all is healed, the last viewers have seen their end within this: patience, the lease, a reply, a queue. */
const viewersMs = 120_000
const settleMs = 40_000
/** From the end of the load until resources are compared. */
const restMs = 5_000
const storiesMax = 10
/** P7, and what a viewer needs to come back. */
const takeoverMsMax = 12_000 + 1_000
/** What a gateway may hold at the end beyond what it held when it was new: its pool, and connections that it keeps. */
const fdsMoreMax = 40
const rssMoreMbMax = 200
/** Three of the event log, one for copies and counters. */
const redisClientsPerGateway = 4

const help = 'Usage: npm run chaos -- [--minutes 2] [--seed 1] [--gateways 3] [--keep], or -- --judge <kept folder>\n'
const say = (line: string): void => void process.stdout.write(`${line}\n`)

interface Resources {
  readonly fds: number
  readonly rssMb: number
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      minutes: { type: 'string', default: '2' },
      seed: { type: 'string', default: '1' },
      gateways: { type: 'string', default: '3' },
      keep: { type: 'boolean', default: false },
      judge: { type: 'string' },
      help: { type: 'boolean', short: 'h', default: false },
    },
  })
  const [minutes, seed, gateways] = [Number(values.minutes), Number(values.seed), Number(values.gateways)]
  if (values.help || !(minutes > 0) || !Number.isSafeInteger(seed) || !(gateways >= 2)) {
    process.stdout.write(help)
    return values.help ? 0 : 1
  }
  if (values.judge !== undefined) return judgeAgain(values.judge)
  const folder = await mkdtemp(join(tmpdir(), 'verbatim-chaos-'))
  const endings: (() => unknown)[] = []
  const endAll = async () => {
    for (const end of endings.splice(0).reverse()) await end()
  }
  const interrupt = new AbortController()
  const stop = () => interrupt.abort(new Error('interrupted'))
  process.once('SIGINT', stop).once('SIGTERM', stop)
  let isKept = values.keep
  try {
    const interrupted = new Promise<never>((_, reject) => {
      interrupt.signal.addEventListener('abort', () => reject(interrupt.signal.reason))
    })
    interrupted.catch(() => undefined) // Listened to below.
    const collector = {
      teardown(end: () => unknown) {
        // What was being started when the interrupt came is ended as soon as it is there.
        if (interrupt.signal.aborted) void end()
        else endings.push(end)
      },
    }
    const plan = play(collector, { durationMs: minutes * 60_000, seed, gateways, folder })
    const broken = await Promise.race([plan, interrupted])
    isKept ||= broken
    return broken ? 1 : 0
  } catch (error) {
    if (interrupt.signal.aborted) say('interrupted')
    else isKept = true
    if (!interrupt.signal.aborted) throw error
    return 1
  } finally {
    process.off('SIGINT', stop).off('SIGTERM', stop)
    await endAll()
    if (isKept) say(`the history is in ${folder}`)
    else await rm(folder, { recursive: true, force: true })
    // What the play still waits for would keep the process; there is nothing left to play on.
    if (interrupt.signal.aborted) process.exit(1)
  }
}

interface Play {
  readonly durationMs: number
  readonly seed: number
  readonly gateways: number
  readonly folder: string
}

/** @returns whether a promise was broken */
async function play(
  collector: Parameters<typeof startScene>[0],
  { durationMs, seed, gateways, folder }: Play,
): Promise<boolean> {
  const mishaps = planMishaps(createRandom(seed), warmUpMs, durationMs)
  say(`seed ${seed}, ${Math.round(durationMs / 1000)} s, ${gateways} gateways, ${mishaps.length} mishaps:`)
  for (const mishap of mishaps) say(describeMishap(mishap))

  const scene = await startScene(collector, {
    gateways,
    folder,
    settleMs,
    env: { DRAIN_MS: `${drainMs}` },
  })
  const { cluster } = scene
  const before = new Map<ClusterGateway, Resources>()
  const noteNew = async () => {
    for (const gateway of cluster.gateways) {
      if (gateway.isUp && !before.has(gateway)) before.set(gateway, await readResources(gateway))
    }
  }
  await noteNew()

  const startedAt = nowMs()
  const loading = new AbortController()
  const load = runLoad(scene, createRandom(seed + 1), sendEveryMs, loading.signal)
  const maker = createMishapMaker(scene, drainMs)
  const made = new Map<string, number>()
  const making: Promise<void>[] = []
  for (const mishap of mishaps) {
    await sleep(Math.max(0, startedAt + mishap.atMs - nowMs()))
    await noteNew()
    making.push(make(mishap, maker.make, made))
  }
  await sleep(Math.max(0, startedAt + durationMs - nowMs()))
  loading.abort()
  await Promise.all(making)
  const { counts, viewers, stops } = await load
  const late = new AbortController()
  const settled = Promise.all([...viewers.map(({ ended }) => ended), ...stops])
  await Promise.race([
    settled,
    sleep(viewersMs, undefined, { signal: late.signal }).catch(() => undefined), // All have ended.
  ])
  late.abort()
  await noteNew()

  const verdict = await scene.judge()
  await sleep(restMs)
  const resources = await compareResources(scene, before)
  const violations = [...verdict.violations, ...judgeLimits(verdict, maker.badExits, resources.violations)]
  report(verdict, counts, made, resources.lines, violations)
  if (violations.length === 0) return false
  await keep(folder, scene, verdict, violations)
  return true
}

async function make(
  mishap: Mishap,
  makeIt: (mishap: Mishap) => Promise<boolean>,
  made: Map<string, number>,
): Promise<void> {
  if (await makeIt(mishap)) made.set(mishap.kind, (made.get(mishap.kind) ?? 0) + 1)
}

/** Judges a kept history again: for a change of the checker. */
async function judgeAgain(folder: string): Promise<number> {
  const rows = JSON.parse(await readFile(join(folder, 'evidence.json'), 'utf8')) as Evidence
  const evidence = { ...rows, history: await readHistory(join(folder, 'history.jsonl')) }
  const { violations, figures } = check(evidence)
  say(describeFigures(figures))
  tellAll(evidence, violations)
  return violations.length === 0 ? 0 : 1
}

function judgeLimits(
  { figures }: Verdict,
  badExits: readonly string[],
  resources: readonly string[],
): readonly Violation[] {
  const slow = figures.takeoverMs.filter((ms) => ms > takeoverMsMax)
  return [
    ...slow.map((ms) => ({ rule: 'P7 within 12 s', detail: `a takeover took ${Math.round(ms)} ms` })),
    ...badExits.map((detail) => ({ rule: 'exit', detail })),
    ...resources.map((detail) => ({ rule: 'resources', detail })),
  ]
}

function report(
  { figures, evidence }: Verdict & { readonly evidence: Evidence },
  counts: LoadCounts,
  made: ReadonlyMap<string, number>,
  resources: readonly string[],
  violations: readonly Violation[],
): void {
  const faults = [...made].map(([kind, n]) => `${n} ${kind}`).join(', ')
  const ends = Object.entries(Object.groupBy(evidence.runs, ({ status }) => status))
  const lines: readonly (readonly [string, string])[] = [
    [
      'messages',
      `${figures.messages}, ${counts.viewers} viewers, ${counts.duplicates} sent twice, ${counts.queued} queued, ${counts.stops} stops`,
    ],
    ['acknowledged', `${figures.acknowledged}`],
    ['runs ended', ends.map(([status, runs]) => `${runs?.length} ${status}`).join(', ')],
    ['lost', `${figures.lostMessages} messages, ${figures.lostUnits} units`],
    ['duplicated', `${figures.duplicatedUnits} units`],
    ['wrong ends', `${figures.wrongEnds}`],
    ['taken back', describeExcused(figures)],
    [
      'worst stall',
      `${Math.round(figures.worstStallMs)} ms with the process that made the reply (during ${figures.worstStallDuring}), ${Math.round(figures.worstStallElsewhereMs)} ms elsewhere`,
    ],
    ['takeover', describeTimes(figures.takeoverMs)],
    ['  while a store was away', describeTimes(figures.takeoverDuringFaultMs)],
    ['hand-over', describeTimes(figures.handOverMs)],
    ['mishaps', faults],
    ['uncaught errors', `${evidence.complaints.length}`],
    ...resources.map((line) => ['resources', line] as const),
  ]
  say('')
  for (const [name, value] of lines) say(`${name.padEnd(26)}${value}`)
  tellAll(evidence, violations)
}

function tellAll(evidence: Evidence, violations: readonly Violation[]): void {
  for (const violation of violations.slice(0, storiesMax)) {
    say(`VIOLATION ${violation.rule}: ${violation.detail}`)
    for (const line of tell(evidence, violation)) say(`    ${line}`)
  }
  if (violations.length > storiesMax) say(`and ${violations.length - storiesMax} more`)
  say(`${violations.length} violations`)
}

async function readResources({ pid }: ClusterGateway): Promise<Resources> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8')
  const rss = Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1] ?? 0)
  return { fds: (await readdir(`/proc/${pid}/fd`)).length, rssMb: Math.round(rss / 1024) }
}

/** What the gateways that are left hold, against what each held when it was new. */
async function compareResources(
  { cluster }: Scene,
  before: ReadonlyMap<ClusterGateway, Resources>,
): Promise<{ readonly lines: readonly string[]; readonly violations: readonly string[] }> {
  const up = cluster.gateways.filter(({ isUp }) => isUp)
  const lines: string[] = []
  const violations: string[] = []
  for (const gateway of up) {
    const [was, is] = [before.get(gateway), await readResources(gateway)]
    if (was === undefined) continue
    const line = `${gateway.name}: ${was.fds} -> ${is.fds} descriptors, ${was.rssMb} -> ${is.rssMb} MB`
    lines.push(line)
    if (is.fds > was.fds + fdsMoreMax || is.rssMb > was.rssMb + rssMoreMbMax) violations.push(line)
  }
  const redis = new Redis(cluster.redis.url)
  const clients =
    String(await redis.client('LIST'))
      .trim()
      .split('\n').length - 1
  redis.disconnect()
  const rows = await cluster.sql<{ n: number }[]>`
    select count(*)::int as n from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()`
  const line = `${clients} Redis clients and ${rows[0]?.n} Postgres sessions of ${up.length} gateways`
  lines.push(line)
  if (clients > up.length * redisClientsPerGateway) violations.push(line)
  return { lines, violations }
}

async function keep(
  folder: string,
  { cluster }: Scene,
  { evidence, figures }: Verdict & { readonly evidence: Evidence },
  violations: readonly Violation[],
): Promise<void> {
  const { history: _, ...rest } = evidence
  await writeFile(join(folder, 'evidence.json'), JSON.stringify({ ...rest, figures, violations }, undefined, 1))
  for (const { name, url, instanceId, lines } of cluster.gateways) {
    await writeFile(join(folder, `${name}.log`), [`${url} ${instanceId}`, ...lines, ''].join('\n'))
  }
}

process.exitCode = await main()
