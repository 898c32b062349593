/**
 * A TCP proxy that stands between a gateway and its store, and misbehaves when told to. Connections are destroyed when
 * the test ends.
 */
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import type { Test } from 'tap'

export interface Proxy {
  readonly port: number
  /** `pass` hands on; `refuse` drops every connection; `hang` keeps connections open and lets nothing through. */
  set(mode: 'pass' | 'refuse' | 'hang'): void
  /** The next time a client sends `text`, it is handed on, and the connection dropped before the answer. */
  loseAnswerTo(text: string): { readonly lost: Promise<void> }
}

/** @param target the store's URL */
export async function startProxy(t: Pick<Test, 'teardown'>, target: URL): Promise<Proxy> {
  let mode: 'pass' | 'refuse' | 'hang' = 'pass'
  let trap: { text: string; sprung: () => void } | undefined
  const pairs = new Set<{ client: Socket; store: Socket }>()

  const server = createServer((client) => {
    if (mode === 'refuse') {
      client.destroy()
      return
    }
    const store = connect(Number(target.port || 5432), target.hostname)
    const pair = { client, store }
    pairs.add(pair)
    let deaf = false
    const end = () => {
      client.destroy()
      store.destroy()
      pairs.delete(pair)
    }
    for (const socket of [client, store]) socket.on('close', end).on('error', end)
    client.on('data', (bytes) => {
      if (mode === 'hang') return
      store.write(bytes)
      if (trap === undefined || !bytes.includes(trap.text)) return
      const { sprung } = trap
      trap = undefined
      deaf = true
      // The store answers when it has done what it was asked: then, and only then, the connection goes.
      store.once('data', () => {
        end()
        sprung()
      })
    })
    store.on('data', (bytes) => {
      if (mode !== 'hang' && !deaf) client.write(bytes)
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(async () => {
    const closed = once(server, 'close')
    server.close()
    for (const { client } of pairs) client.destroy()
    await closed
  })

  return {
    port: (server.address() as AddressInfo).port,
    set(next) {
      mode = next
      if (next === 'refuse') for (const { client } of pairs) client.destroy()
    },
    loseAnswerTo(text) {
      const { promise, resolve } = Promise.withResolvers<void>()
      trap = { text, sprung: resolve }
      return { lost: promise }
    },
  }
}
