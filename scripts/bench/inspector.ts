/**
 * Asks a Node process to collect its garbage, through its inspector. What viewers weigh is the difference of two looks at the
 * memory, and with garbage in them it varied by a third from round to round.
 *
 * A process that does not answer within the bound is an error: without it the figure would be another one.
 */
import { once } from 'node:events'

/** For a process that is to be asked; any free port. */
export const inspectorOptions = '--inspect=127.0.0.1:0'

const answerMs = 10_000

/** @returns the inspector's address, when a process says it in this line */
export const findInspector = (line: string): string | undefined => /ws:\/\/127\.0\.0\.1:\d+\/\S+/.exec(line)?.[0]

export async function collectGarbage(url: string): Promise<void> {
  const socket = new WebSocket(url)
  const signal = AbortSignal.timeout(answerMs)
  try {
    await once(socket, 'open', { signal })
    socket.send(JSON.stringify({ id: 1, method: 'HeapProfiler.collectGarbage' }))
    const [{ data }] = (await once(socket, 'message', { signal })) as [{ readonly data: string }]
    if ('error' in JSON.parse(data)) throw new Error(`The inspector refused: ${data}`)
  } finally {
    socket.close()
  }
}
