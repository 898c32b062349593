/**
 * Who the client library is, what it asks again and what not, and what wakes it. The gateway is played by the test, and so
 * is the browser: what a page has and Node has not stands in `globalThis` while such a test runs.
 */
import t, { type Test } from 'tap'
import { type Client, type ClientOptions, createClient, type Reply } from '../../src/client/index.ts'
import { type Asked, answer, delta, done, drop, refuse, run, say, startScript } from './scripted-server.ts'

const limits = { backOffFirstMs: 1, backOffMaxMs: 5 }
const slow = { backOffFirstMs: 60_000, backOffMaxMs: 60_000 }
const token = `vst_${'a'.repeat(43)}`

const clientOf = (baseUrl: string, options: ClientOptions = {}): Client =>
  createClient({ baseUrl, ...options, limits: { ...limits, ...options.limits } })

const list = answer(200, { data: [], next_cursor: null })
const visitors = (asked: readonly Asked[]) => asked.map(({ headers }) => headers['x-visitor-token'])
const bearers = (asked: readonly Asked[]) => asked.map(({ headers }) => headers.authorization)

/** Gives `globalThis` what a page has, until the test ends. */
function standIn(t: Test, url: string) {
  const page = new EventTarget()
  const document = Object.assign(new EventTarget(), { hidden: false })
  const names = {
    location: new URL(url),
    document,
    addEventListener: page.addEventListener.bind(page),
    removeEventListener: page.removeEventListener.bind(page),
  }
  for (const [name, value] of Object.entries(names)) {
    Object.defineProperty(globalThis, name, { value, configurable: true, writable: true })
  }
  t.teardown(() => {
    for (const name of Object.keys(names)) Reflect.deleteProperty(globalThis, name)
  })
  return { page, document }
}

t.test('outside of a browser a visitor has a token of its own from the first request on', async (t) => {
  const server = await startScript(t, list, say(`${run}${done('1-2')}`), list)
  const told: string[] = []
  const client = clientOf(server.url, { onVisitorToken: (made) => told.push(made) })
  await client.sessions.list()
  await client.chat.send({ message: 'Hello' }).done
  await client.sessions.list({ limit: 5, q: 'a b' })
  t.equal(told.length, 1)
  t.match(told[0], /^vst_[A-Za-z0-9_-]{43}$/)
  t.same(visitors(server.asked), [told[0], told[0], told[0]])
  t.equal(server.asked[2]?.path, '/api/v1/sessions?limit=5&q=a+b')
})

t.test('in a browser with its cookie one request goes first, and it is none that starts a run', async (t) => {
  const open: (() => void)[] = []
  const held: Parameters<typeof startScript>[1] = (response, asked) => void open.push(() => list(response, asked))
  // These two come in any order.
  const either: typeof list = (response, asked) =>
    (asked.method === 'GET' ? list : say(`${run}${done('1-2')}`))(response, asked)
  const server = await startScript(t, held, either, either)
  standIn(t, server.url)
  const client = clientOf(server.url)
  const reply = client.chat.send({ message: 'Hello' })
  const first = await server.request(0)
  const sessions = client.sessions.list()
  t.same([first.method, first.path], ['GET', '/api/v1/sessions?limit=1'])
  t.equal(server.asked.length, 1, 'the others wait for it')
  open[0]?.()
  await Promise.all([reply.done, sessions])
  t.same(visitors(server.asked), [undefined, undefined, undefined])
  t.same(server.asked.map(({ method }) => method).toSorted(), ['GET', 'GET', 'POST'])
})

t.test(
  'a message whose small question is refused is refused with it, and both are asked again after a wait',
  async (t) => {
    const held: Parameters<typeof startScript>[1] = (response, asked) =>
      (asked.method === 'GET' ? list : say(`${run}${done('1-2')}`))(response, asked)
    for (const [status, code] of [
      [503, 'db_unavailable'],
      [429, 'rate_limited'],
    ] as const) {
      const server = await startScript(t, refuse(status, code), refuse(status, code), held, held)
      standIn(t, server.url)
      const waits: unknown[] = []
      for await (const event of clientOf(server.url).chat.send({ message: 'Hello' })) {
        if (event.type === 'connection' && event.state === 'waiting') waits.push(event.why)
      }
      t.same(waits, ['refused', 'refused'])
      t.same(
        server.asked.map(({ method }) => method),
        ['GET', 'GET', 'GET', 'POST'],
        'and no message goes before it is known whose it is',
      )
    }

    const down = await startScript(t, ...Array(20).fill(answer(502, 'a page of a proxy')))
    standIn(t, down.url)
    const lost = clientOf(down.url, { limits: { sendAttemptsMax: 3 } }).chat.send({ message: 'Hello' })
    await t.rejects(lost.accepted, { name: 'ConnectionError' })
    t.equal(down.asked.length, 3)

    const strange = await startScript(t, refuse(401, 'invalid_token'), held, held)
    standIn(t, strange.url)
    const client = clientOf(strange.url)
    await t.rejects(client.chat.send({ message: 'Hello' }).accepted, { code: 'invalid_token' })
    t.equal((await client.chat.send({ message: 'Hello' }).done).status, 'completed')
    t.same(
      strange.asked.map(({ method }) => method),
      ['GET', 'GET', 'POST'],
    )
  },
)

t.test('whoever is first and gets no answer makes room for the next one', async (t) => {
  const server = await startScript(t, drop, drop, list, list)
  standIn(t, server.url)
  const client = clientOf(server.url)
  await Promise.all([client.sessions.list(), client.me.usage()])
  t.equal(server.asked.length, 4)
})

t.test('a token that an answer brings is kept, for browsers that keep no cookie of another site', async (t) => {
  const server = await startScript(t, answer(200, {}, { 'x-visitor-token': token }), list, answer(204), list)
  standIn(t, 'https://elsewhere.example/')
  const told: string[] = []
  const client = clientOf(server.url, { credentials: 'include', onVisitorToken: (made) => told.push(made) })
  await client.me.usage()
  await client.sessions.list()
  t.same(told, [token])
  await client.me.delete()
  await client.sessions.list()
  t.same(visitors(server.asked), [undefined, token, token, undefined], 'who has erased everything is nobody')
})

t.test('a token is asked for each request, and once more when it is refused', async (t) => {
  const server = await startScript(t, list, refuse(401, 'invalid_token'), list, refuse(401, 'invalid_token'), list)
  const refused: unknown[] = []
  let current = 'old'
  const client = clientOf(server.url, {
    token: async (bad) => {
      refused.push(bad)
      if (bad !== undefined) current = current === 'old' ? 'new' : current
      return current
    },
  })
  await client.sessions.list()
  await client.sessions.list()
  t.same(bearers(server.asked), ['Bearer old', 'Bearer old', 'Bearer new'])
  await t.rejects(client.sessions.list(), { code: 'invalid_token' }, 'the same one again is not tried again')
  t.same(refused, [undefined, undefined, 'old', undefined, 'new'])
  t.equal(server.asked.length, 4)
  t.same(visitors(server.asked), [undefined, undefined, undefined, undefined])
})

t.test(
  'a token that does not come is no answer, and nobody waits longer than for that or for the signal',
  async (t) => {
    const server = await startScript(t, list)
    let asked = 0
    const token = () => {
      asked += 1
      return new Promise<string>(() => undefined)
    }
    const late = clientOf(server.url, { token, limits: { tokenMs: 20, answerMs: 2000 } })
    await t.rejects(late.sessions.list(), { name: 'ConnectionError', message: 'No token for 20 ms.' })
    await t.rejects(late.chat.send({ message: 'Hello' }).accepted, { message: 'No token for 20 ms.' })
    t.equal(asked, 3 + 6, 'as often as a request and a message are tried')
    const reason = new Error('enough')
    await t.rejects(clientOf(server.url, { token }).sessions.list({}, { signal: AbortSignal.timeout(20) }), {
      name: 'TimeoutError',
    })
    const reply = clientOf(server.url, { token }).chat.send({ message: 'Hello' }, { signal: AbortSignal.abort(reason) })
    await t.rejects(reply.accepted, reason)
    t.equal(server.asked.length, 0)
  },
)

t.test('who waits for somebody else to be known gives up with its own signal', async (t) => {
  const server = await startScript(t, () => undefined)
  standIn(t, server.url)
  const client = clientOf(server.url)
  const abort = new AbortController()
  const first = client.sessions.list({}, { signal: abort.signal })
  await server.request(0)
  await t.rejects(client.sessions.list({}, { signal: AbortSignal.timeout(20) }), { name: 'TimeoutError' })
  abort.abort()
  await t.rejects(first, { name: 'AbortError' })
})

t.test('a token that runs out in the middle of a reply is renewed', async (t) => {
  const server = await startScript(
    t,
    say(`${run}${delta('1-2', 0, 'a')}`, 'cut'),
    refuse(401, 'invalid_token'),
    say(done('1-3')),
  )
  const reply = clientOf(server.url, { token: (bad) => (bad === undefined ? 'old' : 'new') }).chat.send({
    message: 'Hi',
  })
  t.equal((await reply.done).status, 'completed')
  t.same(bearers(server.asked), ['Bearer old', 'Bearer old', 'Bearer new'])
})

t.test('what can be repeated is, when the answer does not come, and so often', async (t) => {
  const page: Parameters<typeof startScript>[1] = (response) => void response.end('<h1>A page of a proxy')
  const server = await startScript(t, drop, page, refuse(503, 'draining'), list)
  await t.rejects(clientOf(server.url).sessions.kill('s1'), { name: 'GatewayError', code: 'draining' })
  t.equal(server.asked.length, 3)
  const again = await startScript(t, drop, refuse(503, 'draining'), answer(200, { id: 's1' }))
  t.same(await clientOf(again.url).sessions.kill('s1'), { id: 's1' })
})

t.test('what cannot be repeated is asked once', async (t) => {
  for (const call of [
    (client: Client) => client.sessions.create({ title: 'New' }),
    (client: Client) => client.sessions.update('s1', { title: 'New' }, { ifMatch: 3 }),
    (client: Client) => client.request('POST', '/sessions/import', { body: {} }),
  ]) {
    const server = await startScript(t, drop, list)
    await t.rejects(call(clientOf(server.url)), { name: 'ConnectionError' })
    t.equal(server.asked.length, 1)
    if (server.asked[0]?.method === 'PATCH') t.equal(server.asked[0].headers['if-match'], '"3"')
  }
})

t.test('a session with an id of the caller, and a background run, are asked for again, the same', async (t) => {
  for (const call of [
    (client: Client) => client.sessions.create({ id: 's1' }),
    (client: Client) => client.sessions.start('s1', { mode: 'fast' }),
  ]) {
    const server = await startScript(t, drop, answer(200, { id: 's1' }))
    t.match(await call(clientOf(server.url)), { id: 's1' })
    t.equal(server.asked[0]?.body, server.asked[1]?.body)
  }
})

t.test('what is gone when it is deleted again was deleted', async (t) => {
  const gone = await startScript(t, drop, refuse(404, 'not_found'))
  t.equal(await clientOf(gone.url).sessions.delete('s1', { purge: true }), undefined)
  t.equal(gone.asked[0]?.path, '/api/v1/sessions/s1?purge=true')
  const never = await startScript(t, refuse(404, 'not_found'))
  await t.rejects(clientOf(never.url).sessions.delete('s1'), { code: 'not_found' })
})

t.test('a wait that is longer than the limit is left to the caller', async (t) => {
  const server = await startScript(t, refuse(429, 'rate_limited', {}, { 'retry-after': '60' }), list)
  await t.rejects(clientOf(server.url).sessions.list(), { code: 'rate_limited', retryAfterMs: 60_000 })
  t.equal(server.asked.length, 1)
})

t.test('an answer that does not come in time is no answer', async (t) => {
  const half: Parameters<typeof startScript>[1] = (response) => {
    response.writeHead(200, { 'content-type': 'application/json' }).write('{"data":')
  }
  const server = await startScript(t, () => undefined, half, list)
  const client = clientOf(server.url, { limits: { answerMs: 100 } })
  t.same(await client.sessions.list(), { data: [], next_cursor: null })
  await Promise.all(server.asked.map(({ closed }) => closed))
})

t.test('a refusal without a problem document is one all the same, with what is known', async (t) => {
  const server = await startScript(t, (response) => void response.writeHead(413).end('<h1>Too large'))
  await t.rejects(clientOf(server.url).sessions.list(), { name: 'GatewayError', status: 413, code: 'unknown' })
})

t.test('an id leads nowhere but to what has it, whatever is in it', async (t) => {
  const calls: readonly ((client: Client, id: string) => Promise<unknown>)[] = [
    ({ chat }, id) => chat.regenerate(id).accepted,
    ({ chat }, id) => chat.edit(id, { message: 'Hello' }).accepted,
    ({ chat }, id) => chat.attach({ runId: id }).done,
    ({ chat }, id) => chat.attach({ runId: id, sessionId: id, messageId: id }).stop(),
    ({ runs }, id) => runs.get(id),
    ({ runs }, id) => runs.stop(id),
    ({ sessions }, id) => sessions.get(id, ['messages']),
    ({ sessions }, id) => sessions.update(id, { title: 'New' }),
    ({ sessions }, id) => sessions.delete(id, { purge: true }),
    ({ sessions }, id) => sessions.restore(id),
    ({ sessions }, id) => sessions.stop(id),
    ({ sessions }, id) => sessions.start(id),
    ({ sessions }, id) => sessions.kill(id),
    ({ sessions }, id) => sessions.messages(id),
    async ({ sessions }, id) => {
      for await (const message of sessions.allMessages(id)) t.fail(message.id)
    },
    ({ sessions }, id) => sessions.export(id),
    ({ sessions }, id) => sessions.artifacts(id),
    ({ sessions }, id) => sessions.artifact(id, 'a'),
    ({ sessions }, id) => sessions.artifact('a', id),
    ({ messages }, id) => messages.feedback(id, { rating: 1 }),
  ]
  const ids = ['x/../../me', '..', '?a#b']
  const server = await startScript(t, ...Array(calls.length * (ids.length + 1)).fill(refuse(404, 'not_found')))
  const client = clientOf(server.url, { token: 'jwt' })
  const segments = (path: string) => path.split('?')[0]?.split('/').length
  for (const call of calls) {
    await t.rejects(call(client, 'plain'), { code: 'not_found' })
    const expected = segments(server.asked.at(-1)?.path ?? '')
    for (const id of ids) {
      await call(client, id).catch(() => undefined)
      const { path = '' } = server.asked.at(-1) ?? {}
      if (segments(path) !== expected) t.fail('it leads elsewhere', { id, path, call: `${call}` })
    }
  }
  await clientOf(server.url)
    .sessions.delete('x/../../me')
    .catch(() => undefined)
  t.equal(server.asked.at(-1)?.path, '/api/v1/sessions/x%2F..%2F..%2Fme')
  const ticket = await startScript(t, answer(200, { ticket: 'a', expires_in: 60 }))
  t.match(await clientOf(ticket.url).runs.ticketUrl('../x'), '/api/v1/runs/..%2Fx/events?ticket=a')
})

t.test('all messages come page by page', async (t) => {
  const server = await startScript(
    t,
    answer(200, { data: [{ id: 'a' }, { id: 'b' }], next_cursor: 'x y' }),
    answer(200, { data: [{ id: 'c' }], next_cursor: null }),
  )
  const found: string[] = []
  for await (const { id } of clientOf(server.url).sessions.allMessages('s1', { order: 'desc' })) found.push(id)
  t.same(found, ['a', 'b', 'c'])
  t.same(
    server.asked.map(({ path }) => path),
    [
      '/api/v1/sessions/s1/messages?limit=100&order=desc',
      '/api/v1/sessions/s1/messages?limit=100&order=desc&cursor=x+y',
    ],
  )
  const circle = answer(200, { data: [], next_cursor: 'x' })
  const endless = await startScript(t, circle, circle, circle, answer(200, { data: [], next_cursor: null }))
  const read = async () => {
    for await (const { id } of clientOf(endless.url).sessions.allMessages('s1')) t.fail(id)
  }
  await t.rejects(read(), { name: 'ConnectionError' }, 'and one that leads to itself is not asked for for ever')
  t.equal(endless.asked.length, 2)
})

t.test('an address with a ticket, an export and a claim ask for what they say', async (t) => {
  const server = await startScript(
    t,
    answer(200, { ticket: '1.a+b', expires_in: 60 }),
    (response) => void response.writeHead(200, { 'content-type': 'text/markdown' }).end('# Hello'),
    answer(200, { claimed: 2 }),
  )
  const client = clientOf(server.url, { token: 'jwt' })
  t.equal(await client.runs.ticketUrl('r1'), `${server.url}/api/v1/runs/r1/events?ticket=1.a%2Bb`)
  t.equal(await (await client.sessions.export('s1', 'md')).text(), '# Hello')
  t.same(await client.sessions.claim(token), { claimed: 2 })
  t.same([visitors(server.asked)[2], bearers(server.asked)[2]], [token, 'Bearer jwt'])
})

for (const [name, wake] of [
  ['the network comes back', ({ page }: ReturnType<typeof standIn>) => page.dispatchEvent(new Event('online'))],
  [
    'the reader looks at the page again',
    ({ document }: ReturnType<typeof standIn>) => document.dispatchEvent(new Event('visibilitychange')),
  ],
  [
    'the page comes out of the cache',
    ({ page }: ReturnType<typeof standIn>) =>
      page.dispatchEvent(Object.assign(new Event('pageshow'), { persisted: true })),
  ],
] as const) {
  t.test(`a wait ends when ${name}`, async (t) => {
    const server = await startScript(t, list, say(`${run}${delta('1-2', 0, 'a')}`, 'cut'), say(done('1-3')))
    const around = standIn(t, server.url)
    const reply = clientOf(server.url, { limits: slow }).chat.send({ message: 'Hello' })
    for await (const event of reply) {
      if (event.type === 'connection' && event.state === 'waiting') setTimeout(() => wake(around))
    }
    t.equal((await reply.done).status, 'completed')
  })
}

t.test('a connection from before the network came back is given up', async (t) => {
  const server = await startScript(t, list, say(`${run}${delta('1-2', 0, 'a')}`, 'open'), say(done('1-3')))
  const { page } = standIn(t, server.url)
  const reply = clientOf(server.url).chat.send({ message: 'Hello' })
  const waits: unknown[] = []
  for await (const event of reply) {
    if (event.type === 'delta') setTimeout(() => page.dispatchEvent(new Event('online')))
    if (event.type === 'connection' && event.state === 'waiting') waits.push(event.why)
  }
  t.same(waits, ['stalled'])
})

t.test('a reader who comes back finds a connection that was silent given up, and a lively one kept', async (t) => {
  for (const returnStallMs of [0, 60_000]) {
    const server = await startScript(
      t,
      list,
      (response, asked) => {
        say(`${run}${delta('1-2', 0, 'a')}`, 'open')(response, asked)
        if (returnStallMs > 0) setTimeout(() => response.end(done('1-3')), 50)
      },
      say(done('1-3')),
    )
    const { document } = standIn(t, server.url)
    const reply = clientOf(server.url, { limits: { returnStallMs } }).chat.send({ message: 'Hello' })
    let look: NodeJS.Timeout | undefined
    for await (const event of reply) {
      if (event.type === 'delta') look = setTimeout(() => document.dispatchEvent(new Event('visibilitychange')), 20)
    }
    clearTimeout(look)
    t.equal(server.asked.length, returnStallMs > 0 ? 2 : 3)
  }
})

t.test('nothing listens to the page any more when all has ended', async (t) => {
  const endless = say(run, 'open')
  const server = await startScript(t, list, say(`${run}${done('1-2')}`), list, endless, endless, endless)
  const { page } = standIn(t, server.url)
  let listening = 0
  const { addEventListener, removeEventListener } = globalThis as unknown as EventTarget
  Object.assign(globalThis, {
    addEventListener: (...given: Parameters<EventTarget['addEventListener']>) => {
      listening += 1
      addEventListener.apply(page, given)
    },
    removeEventListener: (...given: Parameters<EventTarget['removeEventListener']>) => {
      listening -= 1
      removeEventListener.apply(page, given)
    },
  })
  const client = clientOf(server.url)
  await client.chat.send({ message: 'Hello' }).done
  await client.sessions.list()
  t.equal(listening, 0)

  for (const [limits, leave] of [
    [{}, (_: Reply, abort: AbortController) => abort.abort()],
    [{}, (reply: Reply) => reply.close()],
    [{ unreadMs: 1 }, () => undefined],
  ] as const) {
    const abort = new AbortController()
    const reply = clientOf(server.url, { visitorToken: token, limits }).chat.send(
      { message: 'Hello' },
      { signal: abort.signal },
    )
    await reply.accepted
    t.not(listening, 0)
    leave(reply, abort)
    await server.asked.at(-1)?.closed
    t.equal(listening, 0, 'also when nobody has read the reply')
  }
})
