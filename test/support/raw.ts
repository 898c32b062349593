/** Bytes on a socket, for requests that `fetch` would tidy up or refuse to send. */
import { connect } from 'node:net'

export interface RawAnswer {
  /** Of the first answer; 0 when nothing that is HTTP came. */
  readonly status: number
  /** Names in lower case. */
  readonly headers: Readonly<Record<string, string>>
  /** What came after the headers, as it came. */
  readonly body: string
  /** Everything that came. */
  readonly text: string
}

export interface RawSocket {
  write(bytes: string | Uint8Array): void
  /** Resolves when what has come so far satisfies `found`. Rejects when the connection ends first. */
  until(found: (text: string) => boolean): Promise<string>
  /** Resolves with everything that came, when the server has closed the connection. */
  readonly closed: Promise<string>
  destroy(): void
}

export function openSocket(url: string): RawSocket {
  const { hostname, port } = new URL(url)
  const socket = connect(Number(port), hostname)
  const closed = Promise.withResolvers<string>()
  let text = ''
  let wake = Promise.withResolvers<void>()
  let ended = false
  socket.on('data', (bytes) => {
    text += bytes.toString('latin1')
    wake.resolve()
    wake = Promise.withResolvers()
  })
  socket.on('error', () => socket.destroy())
  socket.on('close', () => {
    ended = true
    wake.resolve()
    closed.resolve(text)
  })
  return {
    write: (bytes) => socket.write(bytes),
    async until(found) {
      while (!found(text)) {
        if (ended) throw new Error(`the connection ended first; it said: ${text.slice(-500)}`)
        await wake.promise
      }
      return text
    },
    closed: closed.promise,
    destroy: () => socket.destroy(),
  }
}

/** Sends bytes and reads until the server closes the connection: a request has to ask for that, or be broken. */
export async function sendRaw(url: string, bytes: string | Uint8Array): Promise<RawAnswer> {
  const socket = openSocket(url)
  socket.write(bytes)
  return readAnswer(await socket.closed)
}

export function readAnswer(text: string): RawAnswer {
  const end = text.indexOf('\r\n\r\n')
  const [first = '', ...lines] = text.slice(0, Math.max(0, end)).split('\r\n')
  const headers = lines.map((line): [string, string] => {
    const colon = line.indexOf(':')
    return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()]
  })
  const status = Number(/^HTTP\/1\.1 (\d{3})/.exec(first)?.[1] ?? 0)
  return { status, headers: Object.fromEntries(headers), body: end < 0 ? '' : text.slice(end + 4), text }
}
