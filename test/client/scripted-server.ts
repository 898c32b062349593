/**
 * A gateway that a test plays itself, byte for byte: each request is answered by the next step of a script, and kept. A real
 * gateway never sends most of what is sent here; the networks and proxies between it and a client do.
 */
import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { Test } from 'tap'

export interface Asked {
  readonly method: string
  readonly path: string
  readonly headers: IncomingMessage['headers']
  readonly body: string
  /** Resolves when the exchange is over, whoever ended it. */
  readonly closed: Promise<unknown>
}

export type Step = (response: ServerResponse, asked: Asked) => void | Promise<void>

export interface ScriptedServer {
  readonly url: string
  /** In the order in which they came. */
  readonly asked: readonly Asked[]
  /** Resolves with request number `index`, now or when it comes. */
  request(index: number): Promise<Asked>
}

/** What comes when the script has ended is destroyed without an answer, and shows in `asked`. */
export async function startScript(t: Pick<Test, 'teardown'>, ...steps: readonly Step[]): Promise<ScriptedServer> {
  const asked: Asked[] = []
  const waiting = new Map<number, (asked: Asked) => void>()
  const left = [...steps]
  const server = createServer(async (request, response) => {
    const closed = once(response, 'close')
    let body = ''
    for await (const bytes of request) body += bytes
    const { method = '', url = '', headers } = request
    const one = { method, path: url, headers, body, closed }
    const step = left.shift()
    asked.push(one)
    waiting.get(asked.length - 1)?.(one)
    if (step === undefined) response.destroy()
    else await step(response, one)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(async () => {
    server.close()
    server.closeAllConnections()
  })
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    asked,
    request(index) {
      const known = asked[index]
      return known === undefined ? new Promise((resolve) => waiting.set(index, resolve)) : Promise.resolve(known)
    },
  }
}

export const ids = {
  run_id: '0193e0a0-0000-7000-8000-000000000002',
  session_id: '0193e0a0-0000-7000-8000-000000000001',
  message_id: '0193e0a0-0000-7000-8000-000000000003',
  user_message_id: '0193e0a0-0000-7000-8000-000000000004',
} as const

export function event(name: string, data: unknown, id?: string): string {
  return `event: ${name}\ndata: ${JSON.stringify(data)}\n${id === undefined ? '' : `id: ${id}\n`}\n`
}

export const run = event('run', ids, '1-1')
export const delta = (id: string, offset: number, text: string, part = 0) => event('delta', { part, offset, text }, id)
export const done = (id: string, status = 'completed') => event('done', { status, message_id: ids.message_id }, id)

/** A stream that says this and ends cleanly, is cut, or stays open. */
export function say(text: string, end: 'clean' | 'cut' | 'open' = 'clean'): Step {
  return (response) => {
    response.writeHead(200, {
      'content-type': 'text/event-stream',
      'x-run-id': ids.run_id,
      'x-session-id': ids.session_id,
      'x-message-id': ids.message_id,
    })
    // Ended in the middle of a chunked body: all that was said arrives, and then the connection breaks.
    response.write(text, () => {
      if (end === 'cut') response.socket?.end()
    })
    if (end === 'clean') response.end()
  }
}

/** An answer that is not a stream. */
export function answer(status: number, body?: unknown, headers: Readonly<Record<string, string>> = {}): Step {
  return (response) => {
    const json = body === undefined ? {} : { 'content-type': 'application/json' }
    response.writeHead(status, { ...json, ...headers }).end(body === undefined ? undefined : JSON.stringify(body))
  }
}

/** How the gateway says no. */
export function refuse(
  status: number,
  code: string,
  more: object = {},
  headers: Readonly<Record<string, string>> = {},
) {
  const problem = { type: 'about:blank', title: code, status, code, detail: `It is ${code}.`, request_id: 'r1' }
  return answer(status, { ...problem, retryable: status >= 429, ...more }, headers)
}

/** No answer. */
export const drop: Step = (response) => {
  response.destroy()
}
