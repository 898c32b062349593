/**
 * The least that anybody would put between a browser and a provider: undici's request, its body piped into the response.
 * It stores nothing, and whoever loses the connection has lost the reply. `node pipe.ts <provider url>` prints its address.
 */
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { pipeline } from 'node:stream/promises'
import { Agent, request } from 'undici'

const provider = `${process.argv[2]}/chat/completions`
const dispatcher = new Agent({ connections: 4096, headersTimeout: 0, bodyTimeout: 0 })

const server = createServer(async (incoming, response) => {
  try {
    const pieces: Buffer[] = []
    for await (const piece of incoming) pieces.push(piece)
    const reply = await request(provider, {
      dispatcher,
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: Buffer.concat(pieces),
    })
    response.writeHead(reply.statusCode, { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' })
    response.flushHeaders()
    await pipeline(reply.body, response)
  } catch {
    response.destroy()
  }
})
server.listen(0, '127.0.0.1')
await once(server, 'listening')
// A profile is written by a process that ends by itself.
process.once('SIGTERM', () => process.exit())
process.stdout.write(`http://127.0.0.1:${(server.address() as AddressInfo).port}\n`)
