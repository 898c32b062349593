/**
 * A crowd: many viewers in a process of their own, that come all at once. They keep no history: each folds what it is sent
 * by the protocol's rules, counts what does not join, and in the end gives a digest of what it holds. `startCrowd` is the
 * test's side; run as a program, this file is the crowd.
 *
 * A viewer whose connection ends before `done` comes back with the id of its last event: after the time that it was told
 * by `reconnect`, else after the pause of a native EventSource, or at once when it is the crowd itself that cuts it. Every wait
 * has a limit. When the process that commands it goes away, it ends.
 */
import { fork } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { type ClientRequest, request } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { createParser } from 'eventsource-parser'
import type { Test } from 'tap'
import { nowMs } from './history.ts'

export interface Place {
  readonly runId: string
  readonly visitor: string
  readonly gateway: string
}

/** How coming back went, for the whole crowd. */
export interface Return {
  /** From each viewer's cut until it has caught up again. */
  readonly tookMs: readonly number[]
  /** Attempts that were answered by something else than a stream that caught up, by what. */
  readonly failures: Readonly<Record<string, number>>
  /** Viewers that saw the end before they were cut: they have nowhere to come back to. */
  readonly ended: number
  /** What this process used of one CPU meanwhile, in ms. */
  readonly cpuMs: number
}

/** What a viewer held at its end. */
export interface Held {
  readonly runId: string
  /** sha256 of the text, in hex. */
  readonly digest: string
  readonly units: number
  readonly gaps: number
  readonly duplicates: number
  readonly resets: number
  readonly ended: boolean
}

type Command =
  | { readonly do: 'watch'; readonly places: readonly Place[] }
  /** Everybody is cut at this moment, and goes to these gateways. */
  | { readonly do: 'storm'; readonly gateways: readonly string[] }
  /** Everybody is about to be cut by others, and goes to these gateways then. */
  | { readonly do: 'expect'; readonly gateways: readonly string[] }
  | { readonly do: 'finish' }

type Told =
  | { readonly told: 'ready' }
  | { readonly told: 'watching' }
  | { readonly told: 'expecting' }
  | { readonly told: 'returned'; readonly result: Return }
  | { readonly told: 'held'; readonly held: readonly Held[] }

export interface Crowd {
  /** Resolves when all of them have caught up. */
  watch(places: readonly Place[]): Promise<void>
  /** Cuts all connections at once. Resolves when all are back and have caught up. */
  storm(gateways: readonly string[]): Promise<Return>
  /**
   * The same, when the cut comes from elsewhere. Resolves when everybody knows where to go then; a cut that came before
   * would send them back to where they were.
   */
  expect(gateways: readonly string[]): Promise<{ readonly returned: Promise<Return> }>
  /** Resolves when all have seen the end. */
  finish(): Promise<readonly Held[]>
}

const answerMs = 10_000
const silenceMs = 32_000
const eventSourcePauseMs = 1_000
/** For an error that comes at once: a gateway that is not there. */
const retryMs = 100

export async function startCrowd(t: Pick<Test, 'teardown'>): Promise<Crowd> {
  const crowd = fork(import.meta.filename, [], {
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    serialization: 'advanced',
  })
  const exited = once(crowd, 'exit')
  t.teardown(async () => {
    if (crowd.exitCode === null && crowd.signalCode === null) crowd.kill('SIGKILL')
    await exited
  })
  const waiters = new Map<Told['told'], (told: Told) => void>()
  crowd.on('message', (told: Told) => waiters.get(told.told)?.(told))
  function hear<K extends Told['told']>(kind: K): Promise<Extract<Told, { told: K }>> {
    return new Promise((resolve) => waiters.set(kind, (told) => resolve(told as Extract<Told, { told: K }>)))
  }
  const say = (command: Command) => void crowd.send(command)
  await hear('ready')

  return {
    async watch(places) {
      const watching = hear('watching')
      say({ do: 'watch', places })
      await watching
    },
    async storm(gateways) {
      const returned = hear('returned')
      say({ do: 'storm', gateways })
      return (await returned).result
    },
    async expect(gateways) {
      const expecting = hear('expecting')
      const returned = hear('returned')
      say({ do: 'expect', gateways })
      await expecting
      return { returned: returned.then(({ result }) => result) }
    },
    async finish() {
      const told = hear('held')
      say({ do: 'finish' })
      return (await told).held
    },
  }
}

interface Member extends Place {
  gateway: string
  lastId: string | undefined
  text: string
  gaps: number
  duplicates: number
  resets: number
  ended: boolean
  /** The present connection. */
  client: ClientRequest | undefined
  /** Set while it is on its way back. */
  cutAt: number | undefined
  /** True when the crowd has cut it, and nobody told it to wait. */
  hasten: boolean
}

function main(): void {
  const members: Member[] = []
  const ends: Promise<void>[] = []
  /** `tookMs` is undefined for one that was not cut. */
  let caughtUp: (member: Member, tookMs: number | undefined) => void = () => undefined
  let failed: (what: string) => void = () => undefined
  let expected: readonly string[] = []

  const tell = (told: Told) => void process.send?.(told)

  async function live(member: Member): Promise<void> {
    while (!member.ended) {
      const { how, waitMs } = await visit(member)
      if (member.ended) return
      if (member.cutAt === undefined) {
        member.cutAt = nowMs()
        member.gateway = expected[members.indexOf(member) % Math.max(1, expected.length)] ?? member.gateway
      } else if (!member.hasten) failed(how)
      if (member.hasten) member.hasten = false
      else await sleep(waitMs)
    }
  }

  /** One connection, from its request to its end. */
  function visit(member: Member): Promise<{ how: string; waitMs: number }> {
    return new Promise((resolve) => {
      let how = 'cut'
      let waitMs = retryMs
      const client = request(`${member.gateway}/api/v1/runs/${member.runId}/events`, {
        agent: false,
        headers: {
          'x-visitor-token': member.visitor,
          ...(member.lastId === undefined ? {} : { 'last-event-id': member.lastId }),
        },
      })
      member.client = client
      let timer = setTimeout(() => client.destroy(), answerMs)
      const parser = createParser({
        onEvent({ event, data, id }) {
          if (client.destroyed) return
          if (id !== undefined) member.lastId = id
          if (event === 'reconnect') {
            how = 'reconnect'
            waitMs = Number((JSON.parse(data) as { retry_ms: number }).retry_ms)
          } else take(member, event ?? '', data)
          if (event !== 'ready' && event !== 'done') return
          const { cutAt } = member
          member.cutAt = undefined
          caughtUp(member, cutAt === undefined ? undefined : nowMs() - cutAt)
        },
      })
      client.on('error', (error: NodeJS.ErrnoException) => {
        how = error.code ?? error.message
      })
      client.on('response', (response) => {
        if (response.statusCode !== 200) how = `status ${response.statusCode}`
        else waitMs = eventSourcePauseMs
        if (response.statusCode === 204) member.ended = true
        const decoder = new TextDecoder()
        response.on('data', (bytes: Buffer) => {
          clearTimeout(timer)
          timer = setTimeout(() => client.destroy(), silenceMs)
          if (response.statusCode === 200) parser.feed(decoder.decode(bytes, { stream: true }))
        })
        response.on('error', () => undefined) // 'close' follows.
      })
      client.on('close', () => {
        clearTimeout(timer)
        resolve({ how, waitMs })
      })
      client.end()
    })
  }

  function take(member: Member, event: string, data: string): void {
    if (event === 'delta') {
      const { offset, text } = JSON.parse(data) as { offset: number; text: string }
      if (offset > member.text.length) member.gaps += 1
      if (offset < member.text.length) member.duplicates += 1
      member.text = member.text.slice(0, offset) + text
    } else if (event === 'reset') {
      const { parts } = JSON.parse(data) as { parts: { text: string }[] }
      member.resets += 1
      member.text = parts.map(({ text }) => text).join('')
    } else if (event === 'done') {
      member.ended = true
    }
  }

  /** Counts those who are back; resolves with how it went when all are. */
  function allBack(act: () => void): Promise<Return> {
    return new Promise((resolve) => {
      const before = process.cpuUsage()
      const back = new Set<Member>()
      const tookMs: number[] = []
      const failures: Record<string, number> = {}
      failed = (what) => {
        failures[what] = (failures[what] ?? 0) + 1
      }
      caughtUp = (member, ms) => {
        if (back.has(member) || (ms === undefined && !member.ended)) return
        back.add(member)
        if (ms !== undefined) tookMs.push(ms)
        if (back.size < members.length) return
        const { user, system } = process.cpuUsage(before)
        resolve({ tookMs, failures, ended: back.size - tookMs.length, cpuMs: (user + system) / 1000 })
      }
      act()
    })
  }

  async function obey(command: Command): Promise<void> {
    if (command.do === 'watch') {
      let missing = command.places.length
      const watching = new Promise<void>((resolve) => {
        caughtUp = () => {
          missing -= 1
          if (missing === 0) resolve()
        }
      })
      for (const place of command.places) {
        const member: Member = {
          ...place,
          lastId: undefined,
          text: '',
          gaps: 0,
          duplicates: 0,
          resets: 0,
          ended: false,
          client: undefined,
          cutAt: undefined,
          hasten: false,
        }
        members.push(member)
        ends.push(live(member))
      }
      await watching
      tell({ told: 'watching' })
    } else if (command.do === 'storm') {
      const result = await allBack(() => {
        for (const [index, member] of members.entries()) {
          member.gateway = command.gateways[index % command.gateways.length] ?? member.gateway
          member.cutAt = nowMs()
          member.hasten = true
          member.client?.destroy()
        }
      })
      tell({ told: 'returned', result })
    } else if (command.do === 'expect') {
      const result = await allBack(() => {
        expected = command.gateways
        tell({ told: 'expecting' })
      })
      tell({ told: 'returned', result })
    } else {
      await Promise.all(ends)
      const held = members.map(({ runId, text, gaps, duplicates, resets, ended }): Held => {
        const digest = createHash('sha256').update(text).digest('hex')
        return { runId, digest, units: text.length, gaps, duplicates, resets, ended }
      })
      tell({ told: 'held', held })
    }
  }

  process.on('message', (command: Command) => {
    obey(command).catch((error: unknown) => {
      process.stderr.write(`crowd: ${error instanceof Error ? error.stack : String(error)}\n`)
      process.exit(1)
    })
  })
  process.on('disconnect', () => process.exit(0))
  tell({ told: 'ready' })
}

if (import.meta.main) main()
