/**
 * A browser on another origin: its own EventSource with the visitor's cookie, fetch-event-source with the same, and where no
 * cookie goes, on another site, EventSource with a ticket and our client; all through a proxy that cuts connections between
 * and inside events. And the React hook in strict mode.
 */
import t from 'tap'
import { chunk, createGate, doneMarker, say } from '../../scripts/fake-upstream.ts'
import { openChromium } from '../browser/chromium.ts'
import { startGateway } from '../support/gateway.ts'
import { createRandom } from '../support/random.ts'
import { trialsOf } from '../support/trials.ts'
import { type CutPlace, startCuttingProxy } from './cutting-proxy.ts'
import { callsFor, startWaitingUpstream, wholeText } from './runs.ts'
import { startSite } from './site.ts'

const program = `
import { fetchEventSource } from '@microsoft/fetch-event-source'
import { createElement as h, StrictMode, useEffect, useState } from 'react'
import { createRoot } from 'react-dom/client'
import { createClient } from '../../src/client/index.ts'
import { useChat } from '../../src/client/react.ts'
import { shownText } from '../support/client.ts'

const names = ['run', 'delta', 'reset', 'ready', 'done']
const credentials = 'include'
const clientOf = (baseUrl) => createClient({ baseUrl, credentials, limits: { backOffMaxMs: 500 } })
const read = ({ data, lastEventId }, event) => ({ event, data: JSON.parse(data), id: lastEventId })

/** Resolves when the browser has closed it for good. */
async function watch(url, init, client) {
  const received = []
  const source = new EventSource(url, init)
  for (const event of names) source.addEventListener(event, (message) => received.push(read(message, event)))
  await new Promise((resolve) => {
    source.addEventListener('error', () => source.readyState === EventSource.CLOSED && resolve())
  })
  return compare(shownText(received), client)
}

/** What was shown, and what is stored for whom the client is known as. */
async function compare(shown, client) {
  const { data } = await client.sessions.list()
  const stored = await client.sessions.messages(data[0].id)
  return { shown, stored: stored.data[1].content, sessions: data.length }
}

const show = {
  async EventSource(url, message) {
    await clientOf(url).sessions.list()
    return watch(url + '/api/v1/chat/stream?' + new URLSearchParams({ message, client_message_id: message }), {
      withCredentials: true,
    }, clientOf(url))
  },
  async ticket(url, message, direct) {
    const client = clientOf(direct)
    const { runId } = await client.chat.send({ message }).accepted
    const path = (await client.runs.ticketUrl(runId)).slice(direct.length)
    return watch(url + path, {}, client)
  },
  async fetchEventSource(url, message) {
    const received = []
    await clientOf(url).sessions.list()
    await fetchEventSource(url + '/api/v1/chat/stream', {
      method: 'POST',
      credentials,
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ message, client_message_id: message }),
      openWhenHidden: true,
      onmessage: ({ event, data, id }) => received.push(read({ data, lastEventId: id }, event)),
      onclose() {
        if (!received.some(({ event }) => event === 'done')) throw new Error('not the end')
      },
    })
    return compare(shownText(received), clientOf(url))
  },
  async client(url, message) {
    const client = clientOf(url)
    const reply = client.chat.send({ message })
    await reply.done
    return compare(reply.text, client)
  },
}

function Chat({ client }) {
  const [sessionId, setSessionId] = useState(location.hash.slice(1) || undefined)
  const chat = useChat(client, { sessionId })
  useEffect(() => {
    if (chat.sessionId === undefined) return
    history.replaceState(null, '', '#' + chat.sessionId)
    setSessionId(chat.sessionId)
  }, [chat.sessionId])
  const last = chat.messages.at(-1)
  return h('main', null,
    h('ol', null, chat.messages.map(({ id, role, status, content }) => h('li', { key: id, className: role, title: status }, content))),
    h('output', null, chat.status),
    h('p', { role: 'alert' }, chat.error?.code),
    h('button', { onClick: () => chat.send('Hello') }, 'Send'),
    h('button', { onClick: () => chat.stop() }, 'Stop'),
    h('button', { onClick: () => chat.regenerate(last.id) }, 'Again'),
    h('button', { onClick: () => chat.edit(chat.messages[0].id, 'Other words') }, 'Edit'),
    h('button', { onClick: () => { history.replaceState(null, '', '#'); setSessionId(undefined) } }, 'New'),
  )
}

Object.assign(globalThis, {
  show,
  startChat(url) {
    createRoot(document.querySelector('main')).render(h(StrictMode, null, h(Chat, { client: clientOf(url) })))
  },
})
`

const places: readonly CutPlace[] = ['between', 'id', 'data', 'character']
const trials = trialsOf(1)
t.jobs = 5
t.setTimeout(90_000 + trials * 10_000)

const browser = await openChromium(t)
if (browser !== undefined) {
  const upstream = await startWaitingUpstream(t)
  const site = await startSite(t, program)
  const gateway = await startGateway(t, {
    env: { OPENAI_BASE_URL: upstream.url, CORS_ORIGINS: `${site.near},${site.far}`, COOKIE_SAMESITE: 'none' },
  })

  const open = async (t: Parameters<typeof openChromium>[0], origin: string) => {
    const context = await browser.newContext()
    t.teardown(() => context.close())
    const page = await context.newPage()
    await page.goto(origin)
    return page
  }

  // The others run in Node too (eventsource.test.ts), and an EventSource with a ticket in browser/tickets.test.ts.
  const matrix = [
    ['EventSource', site.near],
    ['client', site.far],
    ['fetchEventSource', site.near],
    ['ticket', site.far],
  ] as const
  for (const [name, origin] of trials === 1 ? matrix.slice(0, 1) : matrix) {
    t.test(`${name} on another origin, cut between and inside events, shows the stored text and ends`, async (t) => {
      const kept = await open(t, origin)
      for (let seed = 1; seed <= trials; seed += 1) {
        // Whether a browser keeps a cookie of another site is its own affair: there each trial is somebody new.
        const page = origin === site.near ? kept : await open(t, origin)
        const message = `${name}-${seed}`
        const random = createRandom(seed)
        const order = places.toSorted(() => random.next() - 0.5)
        const proxy = await startCuttingProxy(t, [gateway.url], order, seed)
        upstream.follow(message, proxy, places.length)
        const given = [proxy.url, message, gateway.url].map((text) => JSON.stringify(text)).join()
        const text = wholeText(places.length)
        const found = await page.evaluate(`show.${name}(${given})`)
        t.strictSame(found, { shown: text, stored: text, sessions: origin === site.near ? seed : 1 })
        t.equal(callsFor(upstream, message), 1, 'one upstream call')
        t.equal(proxy.cuts, places.length)
      }
    })
  }

  t.test(
    'a chat in React strict mode: a reply grows, through a reload, is stopped, made again, and edited',
    async (t) => {
      const page = await open(t, site.near)
      const complaints: string[] = []
      page.on('console', (line) => line.type() === 'error' && complaints.push(line.text()))
      page.on('pageerror', (error) => complaints.push(String(error)))
      const start = () => page.evaluate(`startChat(${JSON.stringify(gateway.url)})`)
      const press = (name: string) => page.getByRole('button', { name }).click()
      const until = (status: string) => page.locator('output', { hasText: status }).waitFor()
      const shown = () => page.locator('li').allTextContents()
      const last = page.locator('li.assistant').last()

      const gates = [createGate(), createGate()]
      let calls = 0
      upstream.answer(async function* ({ message }) {
        const gate = gates[calls]
        calls += 1
        yield chunk({ content: `${message}: before ` })
        await gate?.opened
        yield chunk({ content: 'and after' }, 'stop')
        yield doneMarker
      })
      await start()
      await press('Send')
      await last.getByText('Hello: before').waitFor()
      await page.reload()
      await start()
      await last.getByText('Hello: before').waitFor()
      await until('streaming')
      gates[0]?.open()
      await until('ready')
      t.same(await shown(), ['Hello', 'Hello: before and after'])
      t.equal(calls, 1, 'mounted twice, loaded twice, asked once')

      await press('Send')
      await last.getByText('before').waitFor()
      await press('Stop')
      await until('ready')
      t.equal(await last.getAttribute('title'), 'stopped')
      t.equal(await last.textContent(), 'Hello: before ')

      upstream.answer(() => say({ text: 'Another one' }))
      await press('Again')
      await last.getByText('Another one').waitFor()
      await until('ready')
      t.same(await shown(), ['Hello', 'Hello: before and after', 'Hello', 'Another one'])

      await press('Edit')
      await page.getByText('Other words').waitFor()
      await until('ready')
      t.same(await shown(), ['Other words', 'Another one'])

      await press('New')
      await page.locator('li').first().waitFor({ state: 'detached' })
      t.same(complaints, [])
    },
  )
}
