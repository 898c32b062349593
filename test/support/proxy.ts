/**
 * A TCP proxy that stands between a gateway and its store, and misbehaves when told to. Connections are destroyed when
 * the test ends.
 *
 * What a client has sent before it died still reaches the store, as it does without a proxy: the kernel delivers it.
 * What hangs is held back, not lost: a network that comes back delivers what was sent into it.
 */
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import type { Test } from 'tap'

/**
 * `pass` hands on; `refuse` drops every connection; `hang` keeps connections open and lets nothing through; `mute` hands on
 * what a client says and keeps the answers back.
 */
export type ProxyMode = 'pass' | 'refuse' | 'hang' | 'mute'

export interface StoreProxy {
  readonly port: number
  /** Open now. */
  readonly connectionCount: number
  set(mode: ProxyMode): void
  /** Hands on what comes from now on so much later, in each direction. */
  delay(latencyMs: number): void
  /**
   * The next time a client sends `text`, it is handed on, and its answer is not: the connection is dropped when the store
   * has answered, or (`keep`) left open in silence.
   */
  loseAnswerTo(text: string, then?: 'drop' | 'keep'): { readonly lost: Promise<void> }
  /** The next time a client sends `text`, that and what follows on its connection is held back, until `set('pass')`. */
  holdBack(text: string): { readonly held: Promise<void> }
}

interface Pair {
  readonly client: Socket
  readonly store: Socket
}

/** @param target the store's URL */
export async function startProxy(t: Pick<Test, 'teardown'>, target: URL): Promise<StoreProxy> {
  let mode: ProxyMode = 'pass'
  let latencyMs = 0
  let trap: { text: string; then: 'drop' | 'keep'; sprung: () => void } | undefined
  let barrier: { text: string; reached: () => void } | undefined
  const pairs = new Set<Pair>()

  function later(to: Socket, act: () => void): void {
    if (latencyMs === 0) act()
    else setTimeout(() => !to.destroyed && act(), latencyMs).unref()
  }

  const server = createServer({ allowHalfOpen: true }, (client) => {
    if (mode === 'refuse') {
      client.destroy()
      return
    }
    const store = connect({ port: Number(target.port || 5432), host: target.hostname, allowHalfOpen: true })
    const pair = { client, store }
    pairs.add(pair)
    let deaf = false
    const destroy = () => {
      client.destroy()
      store.destroy()
      pairs.delete(pair)
    }
    for (const [from, to] of [
      [client, store],
      [store, client],
    ] as const) {
      from.on('data', (bytes) => {
        if (from === store && deaf) return
        if (from === client && barrier !== undefined && bytes.includes(barrier.text)) {
          client.pause()
          client.unshift(bytes)
          barrier.reached()
          barrier = undefined
          return
        }
        later(to, () => to.write(bytes))
        if (from === store || trap === undefined || !bytes.includes(trap.text)) return
        const { then, sprung } = trap
        trap = undefined
        deaf = true
        // The store answers when it has done what it was asked: then, and only then, the connection goes.
        store.once('data', () => {
          if (then === 'drop') destroy()
          sprung()
        })
      })
      from.on('end', () => later(to, () => to.end()))
      // 'close' follows.
      from.on('error', () => later(to, () => to.end()))
      from.on('close', () => {
        if (to.destroyed) pairs.delete(pair)
        else later(to, () => to.destroySoon())
      })
      if (mode === 'hang' || (mode === 'mute' && from === store)) from.pause()
    }
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(async () => {
    const closed = once(server, 'close')
    server.close()
    for (const { client, store } of pairs) {
      client.destroy()
      store.destroy()
    }
    await closed
  })

  return {
    port: (server.address() as AddressInfo).port,
    get connectionCount() {
      return pairs.size
    },
    set(next) {
      mode = next
      for (const { client, store } of pairs) {
        for (const socket of [client, store]) {
          if (next === 'hang' || (next === 'mute' && socket === store)) socket.pause()
          else socket.resume()
          if (next === 'refuse') socket.destroy()
        }
      }
    },
    delay(ms) {
      latencyMs = ms
    },
    loseAnswerTo(text, then = 'drop') {
      const { promise, resolve } = Promise.withResolvers<void>()
      trap = { text, then, sprung: resolve }
      return { lost: promise }
    },
    holdBack(text) {
      const { promise, resolve } = Promise.withResolvers<void>()
      barrier = { text, reached: resolve }
      return { held: promise }
    },
  }
}
