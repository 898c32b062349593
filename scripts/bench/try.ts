import { openStage, pin, loadCpu } from './stage.ts'
import { measureCost } from './cost.ts'
pin(process.pid, loadCpu)
const names = (process.argv[2] ?? 'pipe,gateway').split(',') as any[]
const streams = Number(process.argv[3] ?? 200)
const rounds = Number(process.argv[4] ?? 1)
const stage = await openStage(new AbortController().signal)
try {
  const all = new Map()
  for (const n of names) all.set(n, await stage.start(n, process.env.PROF ? { NODE_OPTIONS: '--cpu-prof --cpu-prof-dir=/tmp/prof' } : {}))
  for (let r = 0; r < rounds; r++) for (const n of names) {
    const c = await measureCost(stage, all.get(n), { streams, tokensPerSecond: 50, warmMs: 2000, windowMs: Number(process.env.WIN ?? 5000) })
    console.log(n, streams, Object.entries(c).filter(([k]) => k !== 'faults').map(([k, v]) => `${k}=${typeof v === 'number' ? v.toFixed(2) : v}`).join(' '), c.faults.length, c.faults.slice(0, 3))
  }
} finally { await stage.close() }
