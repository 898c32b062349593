/**
 * What all surfaces share when a message comes in, or whatever else asks for a reply (asked.ts): refuse what cannot be
 * taken, accept, and start the run here, or leave it in its session's queue. How the reply is then shown is the surface's
 * business. A process that shuts down, or is late (http/pressure.ts), takes nothing new, and still answers with what it has
 * taken before.
 *
 * If the process dies at an await after the acceptance, the message is stored, and with it the wish that others stop for
 * it: another process makes the reply.
 */
import type { Owner } from '../http/identity.ts'
import type { Pressure } from '../http/pressure.ts'
import { cleanText } from '../http/text.ts'
import type { EventLog } from '../log/log.ts'
import type { PlansByMode } from '../upstream/plan.ts'
import type { Acceptance, createAccept } from './accept.ts'
import type { Asked, Wishes } from './asked.ts'
import type { OwnedRuns } from './owned.ts'
import type { createStop } from './stop.ts'
import type { RunStore } from './store.ts'

export interface ChatOptions {
  readonly accept: ReturnType<typeof createAccept>
  readonly runs: RunStore
  readonly owned: OwnedRuns
  /** Absent: this process is never too late for another run. */
  readonly pressure?: Pick<Pressure, 'isHigh' | 'refuseWhenHigh'>
  readonly log: EventLog
  readonly stop: ReturnType<typeof createStop>
  readonly instanceId: string
  /** Resolves when this process has a lease for a while yet. */
  readonly holdLease: () => Promise<void>
  /** @throws Problem `invalid_request` when no provider is configured for the name */
  readonly plansFor: (asked: { readonly model: string | undefined; readonly text: string }) => PlansByMode
  /** @throws Problem `invalid_request` when there is no such agent */
  readonly checkAgent?: (id: string) => void
}

export type Chat = ReturnType<typeof createChat>

export function createChat({
  accept,
  runs,
  owned,
  pressure,
  log,
  stop,
  instanceId,
  holdLease,
  plansFor,
  checkAgent,
}: ChatOptions) {
  async function place(owner: Owner, asked: Asked): Promise<Acceptance> {
    const isLate = pressure?.isHigh === true && !continuesTurn(asked)
    if (owned.isDraining || isLate) {
      // An earlier request with this key may still be watched; nothing new begins.
      const prior = await accept.findPrior(owner, asked)
      if (prior !== undefined) return { run: prior, isNew: false }
      owned.refuseWhenDraining()
      if (isLate) pressure.refuseWhenHigh()
    }
    await holdLease()
    const { model, agent_id }: Wishes = asked
    if (agent_id !== undefined) checkAgent?.(cleanText(agent_id))
    return accept.accept(owner, asked, (text) => plansFor({ model, text }))
  }

  /** @returns the run that is asked for; it is queued, under way, or has ended */
  async function send(owner: Owner, asked: Asked): Promise<Acceptance> {
    const wishes: Wishes = asked
    const acceptance = await place(owner, asked)
    const { run } = acceptance
    if (run.status === 'queued') {
      // The wish is stored already: this brings it to the other processes now, and ends those that wait.
      if (wishes.on_busy === 'interrupt') await Promise.all((await runs.findActiveBefore(run)).map(stop))
      // The run before it may have ended just before this one was stored.
      await owned.startNext(run.session_id)
    }
    // Also a run whose acceptance this process never heard of, because the answer was lost: it is still ours to make. One
    // of a later generation is not: the reaper is about to end it.
    const notMade =
      run.status === 'running' && run.instance_id === instanceId && run.generation === 1 && !owned.has(run.id)
    if (notMade && log.terminalId(run.id) === undefined) owned.start(run, acceptance.history)
    return acceptance
  }

  return (owner: Owner, asked: Asked): Promise<Acceptance> => owned.arrive(() => send(owner, asked))
}

/**
 * Answers to the calls of a reply go on with a turn that was accepted: somebody waits in the middle of it, the tools have run,
 * and there are never more of them at once than turns. So a process that is late takes them.
 */
const continuesTurn = (asked: Asked): boolean => 'tool_results' in asked && asked.tool_results !== undefined
