/**
 * What used the processors while something was measured, and whether the load kept up. A process that is starved reads
 * several packets at once and looks cheap, and so does one that is sent several at once: a round in which the load, the host
 * or somebody else on the machine got in the way does not count.
 */
import { cpuMsOf, readMachineCpu } from './cpu.ts'
import { quantile } from './replies.ts'
import type { Contender, Stage } from './stage.ts'

export interface Watched {
  readonly from: number
  readonly until: number
  /** Tokens that the provider sent meanwhile. */
  readonly tokens: number
  readonly contenderMs: number
  readonly postgresMs: number
  readonly redisMs: number
  /** Shares of one processor. */
  readonly contenderShare: number
  readonly loadShare: number
  /** What runs on this machine and is none of ours. */
  readonly foreignShare: number
  readonly stealShare: number
  /** How late the provider sent. */
  readonly latenessP99Ms: number
}

/** A provider that is later than this may send two tokens of a reply at once: they are 20 ms apart. */
const latenessP99MsMax = 10
const loadShareMax = 0.9
const foreignShareMax = 0.25
const stealShareMax = 0.02
/** A contender that uses its whole processor is starved as well: its cost says what it is overloaded, no more. */
export const saturatedShare = 0.9

/** Begins to watch. @returns what ends it */
export function watch(stage: Stage, contenders: readonly Contender[]): () => Watched {
  const { provider } = stage
  const read = () => ({
    at: performance.now(),
    machine: readMachineCpu(),
    contenderMs: contenders.reduce((sum, contender) => sum + contender.cpuMs(), 0),
    stores: stage.storesCpuMs(),
    loadMs: cpuMsOf(process.pid),
    tokens: provider.sentTotal,
  })
  provider.takeLateness()
  const first = read()
  return () => {
    const last = read()
    const windowMs = last.at - first.at
    const contenderMs = last.contenderMs - first.contenderMs
    const postgresMs = last.stores.postgresMs - first.stores.postgresMs
    const redisMs = last.stores.redisMs - first.stores.redisMs
    const loadMs = last.loadMs - first.loadMs
    const busyMs = last.machine.busyMs - first.machine.busyMs
    return {
      from: first.at,
      until: last.at,
      tokens: last.tokens - first.tokens,
      contenderMs,
      postgresMs,
      redisMs,
      contenderShare: contenderMs / windowMs,
      loadShare: loadMs / windowMs,
      foreignShare: Math.max(0, busyMs - contenderMs - postgresMs - redisMs - loadMs) / windowMs,
      stealShare: (last.machine.stealMs - first.machine.stealMs) / windowMs,
      latenessP99Ms: quantile(Float64Array.from(provider.takeLateness()).sort(), 0.99),
    }
  }
}

/**
 * @param latenessMsMax of the provider's ticks, of which 1 % may be later
 * @returns why a round does not count; undefined when it does
 */
export function findDisturbance(watched: Watched, latenessMsMax = latenessP99MsMax): string | undefined {
  const percent = (share: number) => `${Math.round(share * 100)} %`
  if (watched.latenessP99Ms > latenessMsMax) return `the provider was ${watched.latenessP99Ms.toFixed(1)} ms late`
  if (watched.loadShare > loadShareMax) return `the load used ${percent(watched.loadShare)} of its processor`
  if (watched.foreignShare > foreignShareMax) return `others used ${percent(watched.foreignShare)} of a processor`
  if (watched.stealShare > stealShareMax) return `the host took ${percent(watched.stealShare)} of a processor`
  return undefined
}
