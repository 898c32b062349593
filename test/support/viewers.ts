/**
 * The viewers of a fault test, seen from the test: it says who watches what, hears when a message is accepted and when a
 * viewer has ended, and reads the history afterwards. The viewers themselves live in another process (recorder.ts), which
 * ends with the test.
 */
import { fork } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { type HistoryLine, readHistory } from './history.ts'

export interface ViewerOrder {
  /** Unique in the history. */
  readonly viewer: string
  readonly visitor: string
  /** To send a message: */
  readonly key?: string
  readonly message?: string
  readonly sessionId?: string
  /** Further members of the body. */
  readonly body?: Readonly<Record<string, unknown>>
  /** To attach to a run: */
  readonly runId?: string
  readonly after?: string
  /** Where it comes first; afterwards, and by default, any. */
  readonly gateway?: string
  /** Leaves and comes back, after up to so long each time. */
  readonly dropEveryMs?: number
  /** Does not read for a while, again and again. */
  readonly slow?: { readonly everyMs: number; readonly forMs: number }
  /** Comes back when nothing at all has come for so long. */
  readonly silenceMs?: number
  readonly giveUpMs?: number
  readonly seed?: number
  /** Tells the test of each event. */
  readonly tell?: boolean
}

export type Command =
  | { readonly do: 'gateways'; readonly urls: readonly string[] }
  | { readonly do: 'view'; readonly order: ViewerOrder }
  | { readonly do: 'move'; readonly viewer: string; readonly gateway: string; readonly awayMs: number }
  | { readonly do: 'leave'; readonly viewer: string }
  | { readonly do: 'finish' }

export type Told =
  | { readonly told: 'accepted'; readonly viewer: string; readonly runId: string; readonly sessionId: string }
  | {
      readonly told: 'event'
      readonly viewer: string
      readonly event: string
      readonly id: string | undefined
      readonly data: unknown
      readonly atMs: number
    }
  | { readonly told: 'end'; readonly viewer: string; readonly why: 'done' | 'left' | 'refused' | 'gave up' }

export type ToldEvent = Extract<Told, { told: 'event' }>

export interface Viewer {
  readonly name: string
  readonly visitor: string
  /** Resolves with the run when the message is accepted; rejects when the viewer ends without. */
  readonly accepted: Promise<{ readonly runId: string; readonly sessionId: string }>
  readonly ended: Promise<'done' | 'left' | 'refused' | 'gave up'>
  /** The first event for which `found` is true, now or when it comes; needs `tell`. */
  until(found: (event: ToldEvent) => boolean): Promise<ToldEvent>
  /** Closes its connection, and comes back to this gateway after so long, with the id of the last event it got. */
  move(gateway: string, awayMs: number): void
  leave(): void
}

export interface Viewers {
  /** Where the history is written. */
  readonly path: string
  /** Where viewers may go from now on. */
  visit(urls: readonly string[]): void
  view(order: Omit<ViewerOrder, 'viewer' | 'visitor'> & { readonly viewer?: string; readonly visitor?: string }): Viewer
  /** Ends all viewers, and gives what they have seen. */
  finish(): Promise<HistoryLine[]>
}

const finishMs = 20_000

/** A visitor token, made by the client as the protocol allows. */
export function createVisitor(): string {
  return `vst_${randomBytes(32).toString('base64url')}`
}

/** @param folder where the history is kept; by default one that is gone when the test ends */
export async function startViewers(t: Pick<Test, 'teardown'>, folder?: string): Promise<Viewers> {
  const place = folder ?? (await mkdtemp(join(tmpdir(), 'verbatim-test-history-')))
  if (folder === undefined) t.teardown(() => rm(place, { recursive: true, force: true }))
  const path = join(place, 'history.jsonl')
  const recorder = fork(join(import.meta.dirname, 'recorder.ts'), [path], {
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  })
  const exited = once(recorder, 'exit')
  t.teardown(async () => {
    if (recorder.exitCode === null && recorder.signalCode === null) recorder.kill('SIGKILL')
    await exited
  })
  const listeners = new Map<string, (told: Told) => void>()
  recorder.on('message', (told: Told) => listeners.get(told.viewer)?.(told))
  const command = (what: Command) => void recorder.send(what)
  let count = 0

  return {
    path,
    visit: (urls) => command({ do: 'gateways', urls }),
    view(given) {
      count += 1
      const order: ViewerOrder = { viewer: `v${count}`, visitor: createVisitor(), seed: count, ...given }
      const accepted = Promise.withResolvers<{ runId: string; sessionId: string }>()
      const ended = Promise.withResolvers<'done' | 'left' | 'refused' | 'gave up'>()
      // Not every test awaits every viewer.
      accepted.promise.catch(() => undefined)
      const seen: ToldEvent[] = []
      const waiters = new Set<{
        found: (event: ToldEvent) => boolean
        resolve: (event: ToldEvent) => void
        reject: (error: Error) => void
      }>()
      listeners.set(order.viewer, (told) => {
        if (told.told === 'accepted') accepted.resolve({ runId: told.runId, sessionId: told.sessionId })
        else if (told.told === 'event') {
          seen.push(told)
          for (const waiter of waiters) if (waiter.found(told)) waiter.resolve(told)
        } else {
          const error = new Error(`viewer ${order.viewer} ended first: ${told.why}`)
          accepted.reject(error)
          for (const waiter of waiters) waiter.reject(error)
          ended.resolve(told.why)
          listeners.delete(order.viewer)
        }
      })
      command({ do: 'view', order })
      return {
        name: order.viewer,
        visitor: order.visitor,
        accepted: accepted.promise,
        ended: ended.promise,
        until(found) {
          const known = seen.find(found)
          if (known !== undefined) return Promise.resolve(known)
          return new Promise((resolve, reject) => waiters.add({ found, resolve, reject }))
        },
        move: (gateway, awayMs) => command({ do: 'move', viewer: order.viewer, gateway, awayMs }),
        leave: () => command({ do: 'leave', viewer: order.viewer }),
      }
    },
    async finish() {
      if (recorder.connected) command({ do: 'finish' })
      const timer = setTimeout(() => recorder.kill('SIGKILL'), finishMs)
      await exited
      clearTimeout(timer)
      return readHistory(path)
    },
  }
}
