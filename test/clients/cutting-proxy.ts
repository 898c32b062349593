/**
 * A proxy between a client and gateways that cuts connections at places which a test names: between two events, or inside
 * one, down to the byte. TCP in, TCP out, nothing changed. It looks at what comes back only to find the first delta of an
 * event stream; up to the cut all bytes arrive, and then the connection ends, as when a process dies or a network goes.
 *
 * One place is used up by each connection that brings a delta, in order; when none is left, everything passes.
 */
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import type { Test } from 'tap'
import { createRandom, type Random } from '../support/random.ts'

/**
 * Where in the block of a delta: behind it, in the line of its id, in that of its data, in a character of more than one
 * byte, or between the line of its id and the blank line that ends it.
 */
export type CutPlace = 'between' | 'id' | 'data' | 'character' | 'blank'

export interface CuttingProxy {
  readonly url: string
  /** So many connections were cut. */
  readonly cuts: number
  /** Connections that were ever made. */
  readonly connections: number
  /** Resolves when so many were cut. */
  cut(count: number): Promise<void>
}

/** @param targets URLs of gateways, each for one connection, in turn */
export async function startCuttingProxy(
  t: Pick<Test, 'teardown'>,
  targets: readonly string[],
  places: readonly CutPlace[],
  seed = 1,
): Promise<CuttingProxy> {
  const random = createRandom(seed)
  const left = [...places]
  const open = new Set<Socket>()
  const waiting: { readonly count: number; readonly resolve: () => void }[] = []
  let connections = 0
  let cuts = 0

  const server = createServer((near) => {
    const { hostname, port } = new URL(targets[connections % targets.length] ?? '')
    connections += 1
    const far = connect(Number(port), hostname)
    let came = Buffer.alloc(0)
    let passed = 0
    for (const [socket, other] of [
      [near, far],
      [far, near],
    ] as const) {
      open.add(socket)
      socket.on('error', () => other.destroy()) // the other side hears of it as of a connection that broke
      socket.on('close', () => {
        open.delete(socket)
        other.destroy()
      })
    }
    near.pipe(far)
    far.on('data', (bytes: Buffer) => {
      came = Buffer.concat([came, bytes])
      const block = left.length === 0 ? undefined : findDelta(came)
      if (block === undefined) return pass(came.length)
      // All of it has to be there to be cut at any place.
      if (block.end === undefined) return pass(block.start)
      const at = placeIn(came, block.start, block.end, left.shift() ?? 'between', random)
      far.removeAllListeners('data')
      near.unpipe(far)
      pass(at)
      near.end()
      far.destroy()
      cuts += 1
      for (const { count, resolve } of waiting) if (count <= cuts) resolve()
    })
    far.on('end', () => near.end())

    function pass(end: number): void {
      if (end > passed) near.write(came.subarray(passed, end))
      passed = Math.max(passed, end)
    }
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.close()
    for (const socket of open) socket.destroy()
  })
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    get cuts() {
      return cuts
    },
    get connections() {
      return connections
    },
    cut(count) {
      if (count <= cuts) return Promise.resolve()
      return new Promise((resolve) => waiting.push({ count, resolve }))
    },
  }
}

/** How the block of a delta begins: natively, and for the AI SDK. */
const deltas: readonly string[] = ['event: delta\n', 'data: {"type":"text-delta"']

/** @returns where the first delta of an event stream begins, and where behind its blank line it ends, once that is there */
function findDelta(bytes: Buffer): { readonly start: number; readonly end: number | undefined } | undefined {
  const head = bytes.indexOf('content-type: text/event-stream')
  const found = deltas.map((text) => (head < 0 ? -1 : bytes.indexOf(text, head))).filter((start) => start >= 0)
  const [start] = found
  if (start === undefined) return undefined
  const end = bytes.indexOf('\n\n', start)
  return { start, end: end < 0 ? undefined : end + 2 }
}

function placeIn(bytes: Buffer, start: number, end: number, place: CutPlace, random: Random): number {
  const block = bytes.subarray(start, end)
  const inLine = (name: string) => {
    const line = block.indexOf(`\n${name}: `) + 1
    return start + line + 1 + random.integer(block.indexOf('\n', line) - line - 1)
  }
  if (place === 'between') return end
  if (place === 'blank') return end - 1
  if (place === 'id') return inLine('id')
  if (place === 'data') return inLine('data')
  const lead = block.findIndex((byte) => byte >= 0xc2)
  if (lead < 0) throw new Error('no character of more than one byte in this delta')
  return start + lead + 1
}
