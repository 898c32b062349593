/**
 * `npm run bench [-- <measures> --quick --rounds=5 --contenders=gateway,pipe --streams=50,200]`: what a token costs, how late
 * it is and how much one process holds, beside a bare pipe, nginx and a stack wired by hand. docs/benchmark.md says how it
 * is measured and what the figures mean.
 *
 *   cost · burst · length · first-token · capacity · shed · idle · attach · pair   the measures; all when none is named
 *   report            writes docs/benchmark.md and docs/benchmark.svg from what was measured
 *   --quick           a short look at gateway, pipe and wired, which is not kept
 *   --rounds=n        of each trial, 3; with --quick 1
 *   --contenders=…    of gateway, gateway-postgres, gateway-embedded, pipe, nginx, wired
 *   --streams=…       for cost, instead of 10, 50, 200, 400 and 800; for shed, instead of twice the capacity
 *   --profile=folder  a CPU profile of each contender; it makes them slower
 *
 * Each comparison is kept in `.bench/` and takes the place of the one before, so the measures can be made one at a time.
 * The exit code is 1 when anything was lost, doubled or not stored, when nothing was quiet enough to count, or when it broke.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { type ContenderName, contenderNames } from './contenders.ts'
import { describeMachine } from './machine.ts'
import { measureAttach } from './measures/attach.ts'
import { measureCapacity } from './measures/capacity.ts'
import { measureCost } from './measures/cost.ts'
import { measureFirstToken } from './measures/first-token.ts'
import { measureIdle } from './measures/idle.ts'
import { measureBurst, measureLengths } from './measures/lengths.ts'
import { measurePair } from './measures/pair.ts'
import { measureShed } from './measures/shed.ts'
import { plot } from './plot.ts'
import { insertReport, report } from './report.ts'
import type { Bench, Comparison } from './rounds.ts'
import { choosePinning, openStage } from './stage.ts'

const measures: Readonly<Record<string, (bench: Bench) => Promise<void>>> = {
  cost: measureCost,
  burst: measureBurst,
  length: measureLengths,
  'first-token': measureFirstToken,
  capacity: measureCapacity,
  shed: measureShed,
  idle: measureIdle,
  attach: measureAttach,
  pair: measurePair,
}
const contendersQuick: readonly ContenderName[] = ['gateway', 'pipe', 'wired']
const root = join(import.meta.dirname, '../..')
const keptFolder = join(root, '.bench')
const [documentFile, plotFile] = [join(root, 'docs/benchmark.md'), join(root, 'docs/benchmark.svg')]

const say = (line: string): void => {
  process.stdout.write(`${line}\n`)
}

interface Options {
  readonly names: readonly string[]
  readonly report: boolean
  readonly quick: boolean
  readonly rounds: number
  readonly contenders: readonly ContenderName[]
  readonly streams: readonly number[] | undefined
  readonly profile: string | undefined
}

/** @throws Error for what is not known, before anything is started */
function readOptions(args: readonly string[]): Options {
  const { values, positionals } = parseArgs({
    args: [...args],
    allowPositionals: true,
    options: {
      quick: { type: 'boolean', default: false },
      rounds: { type: 'string' },
      contenders: { type: 'string' },
      streams: { type: 'string' },
      profile: { type: 'string' },
    },
  })
  const names = positionals.filter((name) => name !== 'report')
  const known = Object.keys(measures)
  const unknown = names.find((name) => !known.includes(name))
  if (unknown !== undefined) throw new Error(`No measure ${unknown}; there are ${known.join(', ')}, and report`)
  const contenders = values.contenders?.split(',') ?? (values.quick ? contendersQuick : contenderNames)
  return {
    names: positionals.length === 0 ? known : names,
    report: positionals.includes('report') || (positionals.length === 0 && !values.quick),
    quick: values.quick,
    rounds: readCount(values.rounds ?? (values.quick ? '1' : '3')),
    contenders: contenders.map((name) => {
      const contender = contenderNames.find((known) => known === name)
      if (contender === undefined) throw new Error(`No contender ${name}; there are ${contenderNames.join(', ')}`)
      return contender
    }),
    streams: values.streams?.split(',').map(readCount),
    profile: values.profile,
  }
}

function readCount(text: string): number {
  if (!/^[1-9]\d{0,4}$/.test(text)) throw new Error(`${text} is no number`)
  return Number(text)
}

/** @returns what went wrong */
async function measure(options: Options): Promise<readonly string[]> {
  const stopped = new AbortController()
  // Ctrl-C goes to the contenders as well: the trial that is running fails, and is the last.
  for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => stopped.abort())
  const stage = await openStage(stopped.signal, choosePinning())
  const faults: string[] = []
  try {
    const machine = await describeMachine(stage)
    if (stage.pinning === undefined)
      say('Not pinned: it takes taskset and two processors. What is measured shares its processor.')
    if (!stage.hasNginx) say('There is no nginx: it is left out.')
    const bench: Bench = {
      stage,
      machine,
      rounds: options.rounds,
      quick: options.quick,
      choose: (names) =>
        names.filter((name) => options.contenders.includes(name) && (name !== 'nginx' || stage.hasNginx)),
      streams: options.streams,
      environment:
        options.profile === undefined ? {} : { NODE_OPTIONS: `--cpu-prof --cpu-prof-dir=${options.profile}` },
      signal: stopped.signal,
      say,
      keep: (comparison) => {
        faults.push(...comparison.faults)
        if (!options.quick && options.profile === undefined) writeKept(comparison)
      },
      readKept: () => (existsSync(keptFolder) ? readKept() : []),
    }
    for (const name of options.names) await measures[name]?.(bench)
    return faults
  } catch (error) {
    if (!stopped.signal.aborted) throw error
    return [...faults, 'stopped']
  } finally {
    await stage.close()
  }
}

function writeKept(comparison: Comparison): void {
  mkdirSync(keptFolder, { recursive: true })
  const name = `${comparison.measure} ${comparison.setting}`.replaceAll(/[^a-z0-9]+/gi, '-')
  writeFileSync(join(keptFolder, `${name}.json`), `${JSON.stringify(comparison, undefined, 2)}\n`)
}

function readKept(): readonly Comparison[] {
  return readdirSync(keptFolder)
    .filter((name) => name.endsWith('.json'))
    .map((name) => JSON.parse(readFileSync(join(keptFolder, name), 'utf8')) as Comparison)
}

function writeReport(): void {
  const kept = readKept()
  writeFileSync(documentFile, insertReport(readFileSync(documentFile, 'utf8'), report(kept)))
  writeFileSync(plotFile, plot(kept))
  say('docs/benchmark.md and docs/benchmark.svg are written')
}

const options = readOptions(process.argv.slice(2))
const faults = options.names.length === 0 ? [] : await measure(options)
if (options.report) writeReport()
for (const fault of faults) say(`FAULT ${fault}`)
process.exitCode = faults.length === 0 ? 0 : 1
