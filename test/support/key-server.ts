/** A server of public keys that says what a test wants it to say, and counts who asks. As a canary it must never be asked. */
import { once } from 'node:events'
import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import type { Test } from 'tap'

export type KeyAnswer = (response: ServerResponse) => void

export interface KeyServer {
  /** Of the key set. */
  readonly url: string
  /** Requests so far. */
  readonly count: number
  /** Connections so far, also those on which nothing was asked. */
  readonly connections: number
  /** Answers the requests to come otherwise. */
  answer(answer: KeyAnswer): void
  /** Resolves when there were so many requests. */
  asked(count: number): Promise<void>
  /** Resolves when no connection is open. */
  drained(): Promise<void>
}

export const withKeys =
  (keys: readonly unknown[]): KeyAnswer =>
  (response) =>
    response.setHeader('content-type', 'application/json').end(JSON.stringify({ keys }))

/** Whatever is asked gets no answer, but an end. */
export const cutOff: KeyAnswer = (response) => void response.destroy()

/** It is gone when the test ends. */
export async function startKeyServer(t: Pick<Test, 'teardown'>, first: KeyAnswer = withKeys([])): Promise<KeyServer> {
  let answer = first
  let count = 0
  let connections = 0
  const sockets = new Set<Socket>()
  const waiters: { readonly count: number; readonly resolve: () => void }[] = []
  const server = createServer((request, response) => {
    request.resume()
    count += 1
    answer(response)
    for (const waiter of waiters) if (count >= waiter.count) waiter.resolve()
  })
  server.on('connection', (socket) => {
    connections += 1
    sockets.add(socket)
    socket.on('close', () => sockets.delete(socket))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(async () => {
    server.closeAllConnections()
    await new Promise((resolve) => server.close(resolve))
  })
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/keys.json`,
    get count() {
      return count
    },
    get connections() {
      return connections
    },
    answer(next) {
      answer = next
    },
    asked: (wanted) =>
      new Promise((resolve) => {
        if (count >= wanted) resolve()
        else waiters.push({ count: wanted, resolve })
      }),
    async drained() {
      await Promise.all([...sockets].map((socket) => once(socket, 'close')))
    },
  }
}
