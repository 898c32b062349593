/**
 * Comparisons -> tables in Markdown. Every figure is the median over the rounds of one comparison, and every ratio the median
 * of those of two who ran next to each other; what was not measured is said to be so. A pure function: main.ts reads and writes the files.
 */
import { contenderNames } from './contenders.ts'
import type { Machine } from './machine.ts'
import { lagP99MsMax, nearEnough } from './measures/capacity.ts'
import { lengths } from './measures/lengths.ts'
import { type Comparison, medianOf, ratioOf } from './rounds.ts'

const [beginMark, endMark] = ['<!-- bench:begin -->', '<!-- bench:end -->'] as const

/** @throws Error when the document has no place for it */
export function insertReport(document: string, text: string): string {
  const [begin, end] = [document.indexOf(beginMark), document.indexOf(endMark)]
  if (begin === -1 || end < begin) throw new Error(`The document has no ${beginMark} before ${endMark}`)
  return `${document.slice(0, begin + beginMark.length)}\n\n${text.trim()}\n\n${document.slice(end)}`
}

export function report(kept: readonly Comparison[]): string {
  const find = (measure: string, setting: string) =>
    kept.find((comparison) => comparison.measure === measure && comparison.setting === setting)
  return [
    ...describeMachines(kept),
    ...targets(kept),
    ...costByStreams(kept),
    ...[50, 200].flatMap((streams) => costAt(find('cost', `${streams} streams`), streams)),
    ...burst(kept.find(({ measure }) => measure === 'burst')),
    ...byLength(kept),
    ...firstToken(kept),
    ...capacity(kept),
    ...shed(
      kept.find(({ measure }) => measure === 'shed'),
      medianOf(find('capacity', 'gateway'), 'gateway', 'streams'),
    ),
    ...idle(kept.find(({ measure }) => measure === 'idle')),
    ...attach(kept.find(({ measure }) => measure === 'attach')),
    ...pair(kept.find(({ measure }) => measure === 'pair')),
    ...faultsOf(kept),
  ].join('\n')
}

interface Target {
  readonly what: string
  readonly measured: number | undefined
  readonly most?: number
  readonly least?: number
  readonly unit: string
  readonly digits: number
}

function targets(kept: readonly Comparison[]): readonly string[] {
  const find = (measure: string, setting: string) =>
    kept.find((one) => one.measure === measure && (setting === '' || one.setting === setting))
  const get = (measure: string, setting: string, entrant: string, figure: string) =>
    medianOf(find(measure, setting), entrant, figure)
  const ratio = (measure: string, setting: string, other: string) =>
    ratioOf(find(measure, setting), 'gateway', other, 'usPerToken')
  const attached = (figure: string) => get('attach', '', 'gateway', figure)
  const firstTokens = (figure: string) =>
    largest([0, 200].map((ms) => get('first-token', `upstream ${ms} ms`, 'gateway', figure)))
  const paced = kept
    .filter((one) => one.measure === 'cost' && medianOf(one, 'gateway', 'saturated') === 0)
    .map((one) => medianOf(one, 'gateway', 'usPerToken'))
  const further = furtherTokens(kept).map(({ us }) => us)
  const rows: readonly Target[] = [
    {
      what: 'a token, 200 streams, in bare pipes',
      measured: ratio('cost', '200 streams', 'pipe'),
      most: 1,
      unit: ' ×',
      digits: 2,
    },
    {
      what: 'a token, 50 streams, in hand-wired stacks',
      measured: ratio('cost', '50 streams', 'wired'),
      most: 0.25,
      unit: ' ×',
      digits: 2,
    },
    {
      what: 'a token in a burst, in bare pipes',
      measured: ratio('burst', '', 'pipe'),
      most: 2,
      unit: ' ×',
      digits: 2,
    },
    { what: 'added to the first token, p50', measured: firstTokens('addedP50Ms'), most: 3, unit: ' ms', digits: 1 },
    { what: 'added to the first token, p99', measured: firstTokens('addedP99Ms'), most: 20, unit: ' ms', digits: 1 },
    {
      what: 'streams held by one process',
      measured: get('capacity', 'gateway', 'gateway', 'streams'),
      least: 1000,
      unit: '',
      digits: 0,
    },
    {
      what: 'an idle viewer, in idle connections of node:http',
      measured: idleRatio(kept.find(({ measure }) => measure === 'idle')),
      most: 1.1,
      unit: ' ×',
      digits: 2,
    },
    {
      what: 'caught up in mid-run, same process, p99',
      measured: attached('sameCaughtUpP99Ms'),
      most: 50,
      unit: ' ms',
      digits: 1,
    },
    {
      what: 'caught up in mid-run, other process, p99',
      measured: attached('otherCaughtUpP99Ms'),
      most: 250,
      unit: ' ms',
      digits: 1,
    },
    {
      what: 'a token at the dearest number of streams, in the cheapest',
      measured: spread(paced),
      most: 1.2,
      unit: ' ×',
      digits: 2,
    },
    {
      what: 'a further token at the dearest length, in the cheapest',
      measured: spread(further),
      most: 1.2,
      unit: ' ×',
      digits: 2,
    },
    {
      what: 'two processes, in one',
      measured: pairRatio(kept.find(({ measure }) => measure === 'pair')),
      least: 1.8,
      unit: ' ×',
      digits: 2,
    },
  ]
  return section(
    'Targets',
    '',
    table(
      ['gateway with Postgres and Redis', 'target', 'measured', ''],
      rows.map(({ what, measured, most, least, unit, digits }) => {
        const target = most === undefined ? `≥ ${least}${unit}` : `≤ ${most}${unit}`
        if (measured === undefined) return [what, target, 'not measured', '']
        const kept = most === undefined ? measured >= (least ?? 0) : measured <= most
        return [what, target, `${show(measured, digits)}${unit}`, kept ? 'kept' : '**not kept**']
      }),
    ),
  )
}

function costByStreams(kept: readonly Comparison[]): readonly string[] {
  const comparisons = kept
    .filter(({ measure }) => measure === 'cost')
    .toSorted((a, b) => Number.parseInt(a.setting, 10) - Number.parseInt(b.setting, 10))
  if (comparisons.length === 0) return []
  return section(
    'A token, by number of streams',
    `Microseconds of processor time of the process for each token at 50 tokens a second. ° at its limit: the processor was
used up, and several tokens were read at once. ${dates(comparisons)}`,
    table(
      ['', ...comparisons.map(({ setting }) => setting)],
      entrantsOf(comparisons).map((name) => [
        name,
        ...comparisons.map((comparison) => {
          const mark = (medianOf(comparison, name, 'saturated') ?? 0) > 0 ? '°' : ''
          return `${show(medianOf(comparison, name, 'usPerToken'), 1)}${mark}`
        }),
      ]),
    ),
  )
}

function costAt(comparison: Comparison | undefined, streams: number): readonly string[] {
  if (comparison === undefined) return []
  const get = (name: string, figure: string) => medianOf(comparison, name, figure)
  return section(
    `A token at ${streams} streams`,
    `Microseconds of processor time for each token, and how late tokens came. ${dates([comparison])}`,
    table(
      ['', 'process', 'Postgres', 'Redis', 'process, in bare pipes', 'lag p50', 'lag p99'],
      entrantsOf([comparison]).map((name) => [
        name,
        show(get(name, 'usPerToken'), 1),
        ...['postgresUsPerToken', 'redisUsPerToken'].map((figure) => show(get(name, figure), 1)),
        show(ratioOf(comparison, name, 'pipe', 'usPerToken'), 2),
        `${show(get(name, 'lagP50Ms'), 1)} ms`,
        `${show(get(name, 'lagP99Ms'), 1)} ms`,
      ]),
    ),
  )
}

function burst(comparison: Comparison | undefined): readonly string[] {
  if (comparison === undefined) return []
  const get = (name: string, figure: string) => medianOf(comparison, name, figure)
  return section(
    'Burst',
    `Replies of ${comparison.setting}, ten at once, as fast as the sockets take them; whole replies, with all that begins and
ends them. ${dates([comparison])}`,
    table(
      ['', 'µs a token', 'in bare pipes', 'tokens a second'],
      entrantsOf([comparison]).map((name) => [
        name,
        show(get(name, 'usPerToken'), 2),
        show(ratioOf(comparison, name, 'pipe', 'usPerToken'), 2),
        show(get(name, 'tokensPerSecond'), 0),
      ]),
    ),
  )
}

/** What each token costs that a longer reply has more than a shorter one. */
function furtherTokens(kept: readonly Comparison[]): readonly { readonly tokens: number; readonly us: number }[] {
  const replies = lengths.map((tokens) => ({
    tokens,
    us: medianOf(
      kept.find(({ measure, setting }) => measure === 'length' && setting === `${tokens} tokens`),
      'gateway',
      'usPerReply',
    ),
  }))
  return replies.slice(1).flatMap(({ tokens, us }, index) => {
    const shorter = replies[index]
    if (us === undefined || shorter?.us === undefined) return []
    return [{ tokens, us: (us - shorter.us) / (tokens - shorter.tokens) }]
  })
}

function byLength(kept: readonly Comparison[]): readonly string[] {
  const comparisons = lengths.flatMap((tokens) =>
    kept.filter(({ measure, setting }) => measure === 'length' && setting === `${tokens} tokens`),
  )
  if (comparisons.length === 0) return []
  const further = furtherTokens(kept)
  return section(
    'Length of a reply',
    `Ten replies at once with a token each millisecond; whole replies, so a short one has fewer tokens to share what a reply
costs by itself. A further token is what one more costs, against the length above. ${dates(comparisons)}`,
    table(
      ['tokens', 'µs a token', 'ms a reply', 'µs a further token'],
      comparisons.map((comparison) => {
        const tokens = Number.parseInt(comparison.setting, 10)
        const usPerReply = medianOf(comparison, 'gateway', 'usPerReply')
        return [
          show(tokens, 0),
          show(medianOf(comparison, 'gateway', 'usPerToken'), 1),
          show(divide(usPerReply, 1000), 1),
          show(further.find((one) => one.tokens === tokens)?.us, 1),
        ]
      }),
    ),
  )
}

function firstToken(kept: readonly Comparison[]): readonly string[] {
  const comparisons = kept
    .filter(({ measure }) => measure === 'first-token')
    .toSorted((a, b) => a.setting.localeCompare(b.setting))
  if (comparisons.length === 0) return []
  return section(
    'First token',
    `Milliseconds added to what the provider took, in new conversations. ${dates(comparisons)}`,
    table(
      ['', ...comparisons.flatMap(({ setting }) => [`${setting}: p50`, 'p99'])],
      entrantsOf(comparisons).map((name) => [
        name,
        ...comparisons.flatMap((comparison) =>
          ['addedP50Ms', 'addedP99Ms'].map((figure) => show(medianOf(comparison, name, figure), 1)),
        ),
      ]),
    ),
  )
}

function capacity(kept: readonly Comparison[]): readonly string[] {
  const comparisons = kept.filter(({ measure }) => measure === 'capacity')
  if (comparisons.length === 0) return []
  return section(
    'Streams that one process holds',
    `At 50 tokens a second each, with 99 of 100 tokens at most ${lagP99MsMax} ms late and nothing lost; ${Math.round(
      (nearEnough - 1) * 100,
    )} % more, or less than that, were not held twice in a row.
${dates(comparisons)}`,
    table(
      ['', 'streams', 'lag p99', ''],
      entrantsOf(comparisons).flatMap((name) => {
        const comparison = comparisons.find(({ setting }) => setting === name)
        const get = (figure: string) => medianOf(comparison, name, figure)
        const bound = (get('loadWasLate') ?? 0) > 0 ? 'the load was late with more: it may hold them' : ''
        return [[name, show(get('streams'), 0), `${show(get('lagP99Ms'), 1)} ms`, bound]]
      }),
    ),
  )
}

/** @param held what one process holds; undefined when it was not measured */
function shed(comparison: Comparison | undefined, held: number | undefined): readonly string[] {
  if (comparison === undefined) return []
  return section(
    'At twice what one process holds',
    `Replies of 12 to 20 s at a steady rate, of which so many would be under way at once; who is refused does not come back. The
gateway shares its processor with three processes that never pause, and is taken to hold a quarter of what it holds alone. Counted
are those that came while it was measured, and the tokens of the held ones. ${dates([comparison])}`,
    table(
      [
        '',
        'in what it holds',
        'offered',
        'held',
        'refused as overloaded',
        'refused by the database gate',
        'under way at once',
        'lag p50',
        'lag p99',
        'first token p50',
        'p99',
        'the provider was late, p99',
      ],
      Object.keys(comparison.rounds).map((name) => {
        const get = (figure: string) => medianOf(comparison, name, figure)
        return [
          name,
          show(divide(divide(get('streams'), held), get('processorShare')), 1),
          ...['offered', 'held', 'overloaded', 'gated', 'atOnce'].map((figure) => show(get(figure), 0)),
          ...['lagP50Ms', 'lagP99Ms', 'firstP50Ms', 'firstP99Ms', 'latenessP99Ms'].map(
            (figure) => `${show(get(figure), 0)} ms`,
          ),
        ]
      }),
    ),
  )
}

function idleRatio(comparison: Comparison | undefined): number | undefined {
  return ratioOf(comparison, 'gateway', 'node:http', 'bytesPerViewer')
}

function idle(comparison: Comparison | undefined): readonly string[] {
  if (comparison === undefined) return []
  const get = (name: string, figure: string) => medianOf(comparison, name, figure)
  return section(
    'Viewers that wait',
    `${comparison.setting} on one reply, and as many idle connections of bare node:http; and how late one token was at all of them.
${dates([comparison])}`,
    table(
      ['', 'memory each', 'in connections of node:http', 'lag p50', 'lag p99', 'the last'],
      ['gateway', 'node:http'].map((name) => [
        name,
        `${show(divide(get(name, 'bytesPerViewer'), 1000), 1)} kB`,
        show(ratioOf(comparison, name, 'node:http', 'bytesPerViewer'), 2),
        ...['lagP50Ms', 'lagP99Ms', 'lastMs'].map((figure) =>
          name === 'gateway' ? `${show(get(name, figure), 0)} ms` : '',
        ),
      ]),
    ),
  )
}

function attach(comparison: Comparison | undefined): readonly string[] {
  if (comparison === undefined) return []
  return section(
    'Attaching in mid-run',
    `To a reply of ${comparison.setting}, in its second half; milliseconds. ${dates([comparison])}`,
    table(
      ['', 'first byte p50', 'p99', 'caught up p50', 'p99'],
      [
        ['the process that makes it', 'same'],
        ['another process', 'other'],
      ].map(([words = '', prefix]) => [
        words,
        ...['FirstByteP50Ms', 'FirstByteP99Ms', 'CaughtUpP50Ms', 'CaughtUpP99Ms'].map((figure) =>
          show(medianOf(comparison, 'gateway', `${prefix}${figure}`), 1),
        ),
      ]),
    ),
  )
}

function pairRatio(comparison: Comparison | undefined): number | undefined {
  const one = ratioOf(comparison, 'one process', 'two processes', 'usPerToken')
  return one === undefined ? undefined : 2 * one
}

function pair(comparison: Comparison | undefined): readonly string[] {
  if (comparison === undefined) return []
  return section(
    'Two processes',
    `One process, and two on the same stores, with ${comparison.setting}: processor time for each token, of all processes together. What two serve with a processor each follows from that, and was not measured as throughput. ${dates([comparison])}`,
    table(
      ['', 'processes', 'Postgres', 'Redis'],
      ['one process', 'two processes'].map((name) => [
        name,
        ...['usPerToken', 'postgresUsPerToken', 'redisUsPerToken'].map((figure) =>
          show(medianOf(comparison, name, figure), 1),
        ),
      ]),
    ),
  )
}

function faultsOf(kept: readonly Comparison[]): readonly string[] {
  const repeated = kept.flatMap((comparison) => comparison.repeated)
  const faults = kept.flatMap((comparison) => comparison.faults)
  const trials = kept.reduce((sum, { rounds }) => sum + countedOf(rounds).reduce((all, count) => all + count, 0), 0)
  const words = `${trials} trials counted, ${repeated.length} did not because something else was busy, and ${faults.length} had a fault.`
  return ['### What did not count', '', words, '', ...faults.map((fault) => `- ${fault}`), '']
}

function describeMachines(kept: readonly Comparison[]): readonly string[] {
  const machines = new Map<string, Machine>()
  for (const { machine } of kept) {
    const { commit, ...rest } = machine
    machines.set(JSON.stringify(rest), machine)
  }
  return [...machines.values()].flatMap((machine) => [
    `${machine.processor}, ${machine.processors} processors, ${machine.memoryGb} GB, ${machine.system}; the contender ${
      machine.pinned ? 'had a processor for itself' : 'shared its processor'
    }. ${Object.entries(machine.versions)
      .map(([name, version]) => `${name} ${version}`)
      .join(', ')}.`,
    '',
  ])
}

function section(title: string, words: string, lines: readonly string[]): readonly string[] {
  return [`### ${title}`, '', ...(words === '' ? [] : [words, '']), ...lines, '']
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): readonly string[] {
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`
  return [line(head), `|---|${'---:|'.repeat(head.length - 1)}`, ...rows.map(line)]
}

/** In the order of contenders, without those that were not measured. */
function entrantsOf(comparisons: readonly Comparison[]): readonly string[] {
  return contenderNames.filter((name) =>
    comparisons.some(({ rounds }) => rounds[name]?.some((figures) => figures !== null)),
  )
}

function dates(comparisons: readonly Comparison[]): string {
  const places = comparisons.map(({ measuredAt, machine }) => `${measuredAt.slice(0, 10)} at ${machine.commit}`)
  const counts = comparisons.flatMap(({ rounds }) => countedOf(rounds))
  const [least, most] = [Math.min(...counts), Math.max(...counts)]
  const rounds = least === most ? `${most} rounds` : `${least} to ${most} rounds`
  return `Medians of ${rounds}, ${[...new Set(places)].join(', ')}.`
}

function divide(one: number | undefined, other: number | undefined): number | undefined {
  return one === undefined || other === undefined ? undefined : one / other
}

function largest(values: readonly (number | undefined)[]): number | undefined {
  const known = values.filter((value) => value !== undefined)
  return known.length === values.length ? Math.max(...known) : undefined
}

/** The largest in the smallest; of fewer than two nothing can be said. */
function spread(values: readonly (number | undefined)[]): number | undefined {
  const known = values.filter((value) => value !== undefined)
  return known.length < 2 ? undefined : Math.max(...known) / Math.min(...known)
}

function show(value: number | undefined, digits: number): string {
  return value === undefined || Number.isNaN(value) ? '–' : value.toFixed(digits).replace(/\B(?=(\d{3})+$)/, ' ')
}

/** How many rounds of each entrant counted. */
const countedOf = (rounds: Comparison['rounds']): number[] =>
  Object.values(rounds).map((all) => all.filter((figures) => figures !== null).length)
