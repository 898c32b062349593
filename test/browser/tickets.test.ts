/**
 * A stream ticket in the hands it is made for: the EventSource of a real browser, on a page of another site, without a
 * cookie, cut in mid-stream when the time of a first connection is long over.
 */
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import t from 'tap'
import { begin, chunk, createGate, doneMarker, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { createClient, isDelta, type Received, shownText } from '../support/client.ts'
import { startGateway } from '../support/gateway.ts'
import { openChromium } from './chromium.ts'
import { openWire } from './wire.ts'

/** Time for the browser to connect, on a machine that runs other tests. */
const firstConnectionMs = 5000
const lookMs = 100

interface Watched {
  readonly received: Received[]
  /** 0 connecting, 1 open, 2 closed for good. */
  readonly state: number
  readonly opened: number
}

t.setTimeout(60_000)

const browser = await openChromium(t)
if (browser !== undefined) {
  t.test('an EventSource on another site reads a run to its end through a cut, and is then ended', async (t) => {
    const gate = createGate()
    const upstream = await startFakeUpstream({
      script: async function* () {
        yield* begin({ text: 'Before the cut' })
        await gate.opened
        yield chunk({ content: ' and after' }, 'stop')
        yield doneMarker
      },
    })
    t.teardown(() => upstream.close())
    const site = createServer((_request, response) => response.setHeader('content-type', 'text/html').end('<p>Hello'))
    await new Promise<void>((resolve) => site.listen(0, resolve))
    t.teardown(() => site.close())
    // Two names of one machine are two sites.
    const origin = `http://localhost:${(site.address() as AddressInfo).port}`
    const gateway = await startGateway(t, {
      tickets: { firstConnectionMs },
      env: { OPENAI_BASE_URL: upstream.url, CORS_ORIGINS: origin },
    })
    const wire = await openWire(t, gateway.url)
    const context = await browser.newContext()
    t.teardown(() => context.close())
    const page = await context.newPage()
    await page.goto(origin)

    const client = createClient(gateway.url)
    const stream = await client.send({ message: 'Hello' })
    await stream.until(isDelta)
    const runId = stream.headers.get('x-run-id') ?? ''
    const { ticket } = (await client.post('/api/v1/stream-tickets', { run_id: runId })).body
    const path = `/api/v1/runs/${runId}/events?ticket=${ticket}`

    await page.evaluate((url) => {
      const watched = { received: [] as unknown[], state: 0, opened: 0 }
      const source = new EventSource(url)
      Object.assign(globalThis, { watched })
      Object.defineProperty(watched, 'state', { get: () => source.readyState, enumerable: true })
      source.addEventListener('open', () => {
        watched.opened += 1
      })
      for (const event of ['run', 'delta', 'reset', 'ready', 'done']) {
        source.addEventListener(event, (message) => {
          const { data, lastEventId } = message as MessageEvent
          watched.received.push({ event, data: JSON.parse(data), id: lastEventId })
        })
      }
    }, `${wire.url}${path}`)
    const look = (): Promise<Watched> =>
      page.evaluate(() => structuredClone({ ...(globalThis as unknown as { watched: Watched }).watched }))
    const until = async (found: (watched: Watched) => boolean): Promise<Watched> => {
      for (;;) {
        const watched = await look()
        if (found(watched)) return watched
        await new Promise((resolve) => setTimeout(resolve, lookMs))
      }
    }

    await until(({ received }) => received.some(isDelta))
    // Anybody who comes with it for the first time is too late by now; the one that is there is not.
    while ((await fetch(`${gateway.url}${path}`).then(leave)) !== 401) await new Promise((r) => setTimeout(r, lookMs))
    wire.cut()
    await until(({ opened }) => opened === 2)
    gate.open()
    const { received } = await until(({ state }) => state === 2)
    t.equal(shownText(received), 'Before the cut and after')
    t.same(
      received.filter(({ event }) => event === 'done').map(({ data }) => data.status),
      ['completed'],
    )
    await stream.ended
    t.equal((await client.messages(stream.headers.get('x-session-id') ?? ''))[1].content, shownText(received))
  })
}

/** @returns the status, without reading what comes behind it */
async function leave(response: Response): Promise<number> {
  await response.body?.cancel()
  return response.status
}
