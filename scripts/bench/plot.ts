/**
 * Comparisons -> one picture: what a token costs, and how many streams one process holds. Bars, because they are few and
 * their names are long. It follows the reader's light or dark, and leaves out what was not measured.
 */
import { contenderNames, isGateway } from './contenders.ts'
import { type Comparison, medianOf } from './rounds.ts'

interface Bar {
  readonly label: string
  readonly ours: boolean
  /** One behind the other, the first in full colour. */
  readonly values: readonly number[]
  readonly text: string
}

interface Panel {
  readonly title: string
  readonly subtitle: string
  readonly bars: readonly Bar[]
}

const width = 920
const gap = 40
const padding = 24
const labelWidth = 132
const textWidth = 96
const rowHeight = 34
const barHeight = 18
const headHeight = 70
const footHeight = 40

const labels: Readonly<Record<string, string>> = {
  gateway: 'Verbatim',
  'gateway-postgres': 'without Redis',
  'gateway-embedded': 'embedded',
  pipe: 'bare pipe',
  nginx: 'nginx',
  wired: 'wired by hand',
}

export function plot(kept: readonly Comparison[]): string {
  const panels = [costPanel(kept), capacityPanel(kept)].filter(({ bars }) => bars.length > 0)
  const panelWidth = (width - 2 * padding - gap * (panels.length - 1)) / Math.max(1, panels.length)
  const height = headHeight + Math.max(1, ...panels.map(({ bars }) => bars.length)) * rowHeight + footHeight
  const drawn = panels.map((panel, index) => draw(panel, padding + index * (panelWidth + gap), panelWidth))
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" aria-label="${panels.map(({ title }) => title).join('; ')}">
<style>
  .back { fill: #ffffff } .name { fill: #1f2328 } .soft { fill: #59636e } .axis { stroke: #d1d9e0 }
  .ours { fill: #2563eb } .other { fill: #8c959f } .s1 { opacity: 0.5 } .s2 { opacity: 0.25 }
  text { font: 13px ui-sans-serif, system-ui, -apple-system, 'Segoe UI', sans-serif }
  .title { font-size: 16px; font-weight: 600 } .strong { font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    .back { fill: #0d1117 } .name { fill: #f0f6fc } .soft { fill: #9198a1 } .axis { stroke: #3d444d }
    .ours { fill: #4f8cff } .other { fill: #7d8590 }
  }
</style>
<rect class="back" width="${width}" height="${height}" rx="8"/>
${drawn.join('\n')}
${legend(height - 16)}
</svg>
`
}

function costPanel(kept: readonly Comparison[]): Panel {
  const comparison = kept.find(({ measure, setting }) => measure === 'cost' && setting === '50 streams')
  const bars = contenderNames.flatMap((name): readonly Bar[] => {
    const own = medianOf(comparison, name, 'usPerToken')
    if (own === undefined) return []
    const stores = ['postgresUsPerToken', 'redisUsPerToken'].map((figure) => medianOf(comparison, name, figure) ?? 0)
    const values = name === 'pipe' || name === 'nginx' ? [own] : [own, ...stores]
    return [{ label: labels[name] ?? name, ours: isGateway(name), values, text: `${own.toFixed(0)} µs` }]
  })
  return { title: 'Processor time of a token', subtitle: '50 streams, 50 tokens a second each; less is better', bars }
}

function capacityPanel(kept: readonly Comparison[]): Panel {
  const bars = contenderNames.flatMap((name): readonly Bar[] => {
    const comparison = kept.find(({ measure, setting }) => measure === 'capacity' && setting === name)
    const streams = medianOf(comparison, name, 'streams')
    if (streams === undefined) return []
    return [{ label: labels[name] ?? name, ours: isGateway(name), values: [streams], text: String(streams) }]
  })
  return { title: 'Streams that one process holds', subtitle: '50 tokens a second each; more is better', bars }
}

function draw({ title, subtitle, bars }: Panel, left: number, panelWidth: number): string {
  const longest = Math.max(...bars.map(({ values }) => sum(values)))
  const scale = (panelWidth - labelWidth - textWidth) / longest
  const rows = bars.map(({ label, ours, values, text }, row) => {
    const top = headHeight + row * rowHeight
    const middle = top + barHeight / 2 + 4.5
    const pieces = values.map((value, index) => {
      const x = left + labelWidth + sum(values.slice(0, index)) * scale
      return `<rect class="${ours ? 'ours' : 'other'} s${index}" x="${round(x)}" y="${top}" width="${round(value * scale)}" height="${barHeight}"/>`
    })
    const textX = left + labelWidth + sum(values) * scale + 8
    const weight = ours ? ' strong' : ''
    return `<text class="name${weight}" x="${left + labelWidth - 10}" y="${middle}" text-anchor="end">${label}</text>
${pieces.join('')}
<text class="soft${weight}" x="${round(textX)}" y="${middle}">${text}</text>`
  })
  const axisX = left + labelWidth
  const bottom = headHeight + bars.length * rowHeight - (rowHeight - barHeight) + 6
  return `<text class="name title" x="${left}" y="30">${title}</text>
<text class="soft" x="${left}" y="49">${subtitle}</text>
${rows.join('\n')}
<line class="axis" x1="${axisX}" y1="${headHeight - 6}" x2="${axisX}" y2="${bottom}"/>`
}

function legend(y: number): string {
  const entries = ['the process, with its figure', 'Postgres', 'Redis']
  const places = [padding, padding + 205, padding + 295]
  return entries
    .map(
      (words, index) =>
        `<rect class="ours s${index}" x="${places[index]}" y="${y - 10}" width="12" height="12"/><text class="soft" x="${(places[index] ?? 0) + 18}" y="${y}">${words}</text>`,
    )
    .join('')
}

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0)

const round = (value: number): string => value.toFixed(1)
