/**
 * The event stream clients that people have, unmodified, and our own, through a proxy that cuts connections between events
 * and inside them: each shows the stored text and no other, the provider is asked once, and each is still at the end.
 */
import { fetchEventSource } from '@microsoft/fetch-event-source'
import { DefaultChatTransport } from 'ai6'
import { EventSource } from 'eventsource'
import { createEventSource } from 'eventsource-client'
import t from 'tap'
import { createClient, createResumingFetch } from '../../src/client/index.ts'
import { type Received, shownText } from '../support/client.ts'
import { startGateway } from '../support/gateway.ts'
import { createRandom } from '../support/random.ts'
import { trialsOf } from '../support/trials.ts'
import { type CutPlace, type CuttingProxy, startCuttingProxy } from './cutting-proxy.ts'
import { callsFor, startWaitingUpstream, storedReply, wholeText } from './runs.ts'

/** Reads the reply to a message to its end. @returns the text that it has shown */
type Show = (proxy: CuttingProxy, message: string, visitorToken: string) => Promise<string>

const names = ['run', 'delta', 'reset', 'ready', 'done'] as const

const showWithEventSource: Show = (proxy, message, visitorToken) => {
  const received: Received[] = []
  const source = new EventSource(`${proxy.url}/api/v1/chat/stream?${queryOf(message)}`, {
    fetch: (url, init) => fetch(url, { ...init, headers: { ...init.headers, 'x-visitor-token': visitorToken } }),
  })
  for (const event of names) {
    source.addEventListener(event, ({ data, lastEventId }) => {
      received.push({ event, data: JSON.parse(data), id: lastEventId })
    })
  }
  return new Promise((resolve, reject) => {
    source.addEventListener('error', ({ code }) => {
      if (source.readyState !== source.CLOSED) return
      if (code === 204) resolve(shownText(received))
      else reject(new Error(`closed by ${code}`))
    })
  })
}

const showWithEventsourceClient: Show = (proxy, message, visitorToken) => {
  const received: Received[] = []
  return new Promise((resolve) => {
    const source = createEventSource({
      url: `${proxy.url}/api/v1/chat/stream?${queryOf(message)}`,
      headers: { 'x-visitor-token': visitorToken },
      onMessage: ({ event = 'message', data, id }) => void received.push({ event, data: JSON.parse(data), id }),
      // It calls this before it closes itself after a 204, and before every reconnect.
      onDisconnect: () => queueMicrotask(() => source.readyState === 'closed' && resolve(shownText(received))),
    })
  })
}

const showWithFetchEventSource: Show = async (proxy, message, visitorToken) => {
  const received: Received[] = []
  await fetchEventSource(`${proxy.url}/api/v1/chat/stream`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', 'x-visitor-token': visitorToken },
    body: JSON.stringify({ message, client_message_id: keyOf(message) }),
    openWhenHidden: true,
    onmessage: ({ event, data, id }) => void received.push({ event, data: JSON.parse(data), id }),
    onclose: () => {
      // As its documentation has it: an end that is not the end is an error, and is retried.
      if (!received.some(({ event }) => event === 'done')) throw new Error('not the end')
    },
  })
  return shownText(received)
}

const showWithOurs: Show = async (proxy, message, visitorToken) => {
  // No connection here brings a whole event, so its waits would grow.
  const limits = { backOffMaxMs: 500 }
  const reply = createClient({ baseUrl: proxy.url, visitorToken, limits }).chat.send({ message })
  let joined = ''
  for await (const event of reply) {
    if (event.type === 'reset') joined = event.data.parts.map(({ text }) => text).join('')
    if (event.type === 'delta') joined += event.data.text
  }
  if (joined !== reply.text) throw new Error('its events say something else than its parts')
  return joined
}

/** The transport of useChat. */
const showWithResumingFetch: Show = async (proxy, message, visitorToken) => {
  const limits = { backOffMaxMs: 500 }
  const transport = new DefaultChatTransport({
    api: `${proxy.url}/api/chat`,
    fetch: createResumingFetch({ visitorToken, limits }),
  })
  const stream = await transport.sendMessages({
    trigger: 'submit-message',
    chatId: message,
    messageId: undefined,
    messages: [{ id: keyOf(message), role: 'user', parts: [{ type: 'text', text: message }] }],
    abortSignal: undefined,
  })
  const types = new Map<string, number>()
  let text = ''
  for (const reader = stream.getReader(); ; ) {
    const { done, value } = await reader.read()
    if (done) break
    types.set(value.type, (types.get(value.type) ?? 0) + 1)
    if (value.type === 'text-delta') text += value.delta
  }
  for (const once of ['start', 'text-start', 'text-end', 'finish']) {
    if (types.get(once) !== 1) throw new Error(`${once} came ${types.get(once)} times`)
  }
  return text
}

const keyOf = (message: string) => message.replaceAll(/[^\w.]/g, '-')
const queryOf = (message: string) => new URLSearchParams({ message, client_message_id: keyOf(message) })

const inside: readonly CutPlace[] = ['between', 'id', 'data', 'character']
const clients: readonly (readonly [name: string, show: Show, places: readonly CutPlace[]])[] = [
  ['eventsource', showWithEventSource, [...inside, 'blank']],
  ['eventsource-client', showWithEventsourceClient, [...inside, 'blank']],
  ['fetch-event-source', showWithFetchEventSource, inside],
  ['verbatim/client', showWithOurs, [...inside, 'blank']],
  ['createResumingFetch', showWithResumingFetch, [...inside, 'blank']],
]

const trials = trialsOf(1)
t.jobs = clients.length + 1
t.setTimeout(60_000 + trials * 10_000)

const upstream = await startWaitingUpstream(t)
const gateway = await startGateway(t, { env: { OPENAI_BASE_URL: upstream.url } })

// fetch-event-source looks for these two; it asks nothing else of a browser. The embedded database is there by now:
// it would take itself to be in one.
Object.assign(globalThis, {
  window: { setTimeout, clearTimeout, fetch },
  document: { hidden: false, addEventListener: () => undefined, removeEventListener: () => undefined },
})
t.teardown(() => {
  for (const name of ['window', 'document']) Reflect.deleteProperty(globalThis, name)
})

async function watch(
  t: Parameters<typeof startCuttingProxy>[0],
  name: string,
  show: Show,
  places: readonly CutPlace[],
  seed: number,
) {
  const message = `${name} ${seed}`
  const visitorToken = `vst_${Buffer.from(message.padEnd(32, '.')).toString('base64url').slice(0, 43)}`
  const proxy = await startCuttingProxy(t, [gateway.url], places, seed)
  upstream.follow(message, proxy, places.length)
  const shown = await show(proxy, message, visitorToken)
  const stored = await storedReply(gateway.url, visitorToken, message)
  return { shown, stored, proxy, calls: callsFor(upstream, message) }
}

for (const [name, show, places] of clients) {
  t.test(`${name}, cut between and inside events, shows the stored text and comes to an end`, async (t) => {
    for (let seed = 1; seed <= trials; seed += 1) {
      const random = createRandom(seed)
      const order = places.toSorted(() => random.next() - 0.5)
      const { shown, stored, proxy, calls } = await watch(t, name, show, order, seed)
      t.equal(shown, stored, `text of seed ${seed}`)
      t.equal(stored, wholeText(places.length))
      t.equal(proxy.cuts, places.length)
      t.equal(calls, 1, 'one upstream call')
      // One for each cut; the last one comes to the end, and asks at most once more, to be told 204.
      const most = places.length + 2
      t.ok(proxy.connections <= most, `${proxy.connections} connections of ${most}`)
    }
  })
}

t.test(
  'fetch-event-source takes an id over with its line, so a cut behind it loses the event, and this notices',
  async (t) => {
    const lossy: Show = (...given) => showWithFetchEventSource(...given).catch((error: Error) => error.message)
    const { shown, stored } = await watch(t, 'lossy', lossy, ['blank'], 1)
    t.equal(stored, wholeText(1))
    t.match(shown, /^offset \d+, but 0 held$/, 'what comes next does not join to what it holds')
  },
)
