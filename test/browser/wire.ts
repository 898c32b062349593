/** A wire between a browser and the gateway that a test can cut: TCP in, TCP out, nothing read and nothing changed. */
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import type { Test } from 'tap'

export interface Wire {
  readonly url: string
  /** Destroys every connection that is open now. New ones get through. */
  cut(): void
}

export async function openWire(t: Test, gatewayUrl: string): Promise<Wire> {
  const { hostname, port } = new URL(gatewayUrl)
  const open = new Set<Socket>()
  const server = createServer((near) => {
    const far = connect(Number(port), hostname)
    for (const [socket, other] of [
      [near, far],
      [far, near],
    ] as const) {
      open.add(socket)
      socket.on('error', () => other.destroy()) // a reset is what this wire is for
      socket.on('close', () => {
        open.delete(socket)
        other.destroy()
      })
      socket.pipe(other)
    }
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const cut = () => {
    for (const socket of open) socket.resetAndDestroy()
  }
  t.teardown(() => {
    server.close()
    cut()
  })
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, cut }
}
