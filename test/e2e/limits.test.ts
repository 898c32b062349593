/** The budgets on the real routes: which route spends which, and that a stream is put off and never killed. */
import { test } from 'tap'
import { say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { createApiKeys } from '../../src/sessions/api-keys.ts'
import { createClient, isDelta, isDone } from '../support/client.ts'
import { startGateway } from '../support/gateway.ts'

const stream = '/api/v1/chat/stream'
const whole = '/api/v1/chat/message'
const sessions = '/api/v1/sessions'
const visitor = (n: number) => ({ 'x-visitor-token': `vst_${String(n).padStart(43, '0')}` })

test('budgets of a gateway', async (t) => {
  const upstream = await startFakeUpstream()
  t.teardown(() => upstream.close())
  upstream.answer(() => say({ text: 'Hello' }))
  const origin = 'https://app.example'
  const gateway = await startGateway(t, {
    env: {
      OPENAI_BASE_URL: upstream.url,
      CORS_ORIGINS: origin,
      RATE_LIMIT_RUNS: '3',
      RATE_LIMIT_READS: '8',
      RATE_LIMIT_VISITORS: '5',
    },
  })
  const { url } = gateway

  await t.test('every way to start a run spends the same budget, and a refusal asks nobody upstream', async (t) => {
    const client = createClient(url, visitor(1))
    t.equal((await client.post(whole, { message: 'One' })).status, 200)
    const posted = await client.send({ message: 'Two' })
    await posted.ended
    t.equal(posted.status, 200)
    const got = await client.watch(`${stream}?message=Three&client_message_id=three`)
    await got.ended
    t.equal(got.status, 200)
    const calls = upstream.calls.length
    for (const refused of [
      await client.post(whole, { message: 'Four' }),
      await client.post(stream, { message: 'Four' }),
      await client.get(`${stream}?message=Four&client_message_id=four`),
    ]) {
      t.match(refused, { status: 429, body: { code: 'rate_limited', status: 429, retryable: true } })
      const seconds = Number(refused.headers.get('retry-after'))
      t.ok(seconds >= 1 && seconds <= 60, `${seconds} s`)
      t.match(refused.headers.get('content-type'), /^application\/problem\+json/)
    }
    t.equal(upstream.calls.length, calls)
    t.equal((await client.get(sessions)).body.data.length, 3, 'reads go on')
  })

  await t.test('a stream that comes back is served after the budget of runs is spent', async (t) => {
    const client = createClient(url, visitor(2))
    const path = `${stream}?message=Stay&client_message_id=stay`
    const first = await client.watch(path)
    const { id } = await first.until(isDelta)
    await first.ended
    for (const message of ['b', 'c', 'd']) await client.post(whole, { message })
    t.equal((await client.post(whole, { message: 'e' })).status, 429, 'it is spent')
    const again = await client.watch(path, { 'last-event-id': id! })
    t.equal(again.status, 200)
    await again.until(isDone)
    t.equal(await again.ended, 'clean')
  })

  await t.test('a stream that comes back over the budget is put off, and not killed', async (t) => {
    const client = createClient(url, visitor(3))
    const { body } = await client.post(whole, { message: 'One' })
    for (let i = 0; i < 8; i++) await client.get(sessions)
    t.equal((await client.get(sessions)).status, 429)
    const events = `/api/v1/runs/${body.run.id}/events`
    t.equal((await client.get(events)).status, 429, 'who comes for the first time is refused')
    for (const path of [events, `${stream}?message=New&client_message_id=new`]) {
      if (path !== events) for (let i = 0; i < 3; i++) await client.post(whole, { message: 'x' })
      const back = await client.watch(path, { 'last-event-id': '1-1' })
      t.equal(back.status, 200, path)
      t.equal(back.headers.get('content-type'), 'text/event-stream')
      await back.ended
      t.match(back.text(), /^retry: \d+\nevent: reconnect\ndata: \{"retry_ms":\d+\}\n\n$/)
    }
  })

  await t.test('new visitors are counted before they get a token', async (t) => {
    const come = () => fetch(`${url}${sessions}`, { headers: { origin } })
    for (let i = 0; i < 2; i++) {
      const answer = await come()
      t.equal(answer.status, 200)
      t.type(answer.headers.get('x-visitor-token'), 'string')
    }
    const refused = await come()
    t.equal(refused.status, 429)
    t.equal(refused.headers.get('x-visitor-token'), null)
    t.equal(refused.headers.get('set-cookie'), null)
    t.equal(refused.headers.get('access-control-allow-origin'), origin, 'a browser may read why')
    t.match(refused.headers.get('access-control-expose-headers'), /Retry-After/)
    const forwarded = await fetch(`${url}${sessions}`, { headers: { 'x-forwarded-for': '203.0.113.1' } })
    t.equal(forwarded.status, 429, 'an invented address is no new one')
    t.equal((await createClient(url, visitor(1)).get(sessions)).status, 200)
  })

  await t.test('tokens that are made up give no way around it, and whoever has a session stays', async (t) => {
    for (const n of [50, 51]) {
      const answer = await createClient(url, visitor(n)).post(whole, { message: 'Hello' })
      t.match(answer, { status: 429, body: { code: 'rate_limited' } })
    }
    t.equal((await createClient(url, visitor(1)).get(sessions)).status, 200)
  })

  await t.test('keys that are made up are counted like visitors, and shut out nobody who has one', async (t) => {
    const gateway = await startGateway(t, { env: { RATE_LIMIT_VISITORS: '3' } })
    const keys = createApiKeys(gateway.app.db)
    const { key, stored } = await keys.createKey({ subject: 'ada' })
    const { key: late } = await keys.createKey({ subject: 'ada' })
    const ask = async (key: string) => {
      const { status, headers } = await fetch(`${gateway.url}${sessions}`, {
        headers: { authorization: `Bearer ${key}` },
      })
      return [status, headers.get('retry-after') !== null]
    }
    const madeUp = (n: number) => `vk_${String(n).padStart(43, '0')}`
    for (let i = 0; i < 5; i++) t.same(await ask(key), [200, false], 'a good one spends nothing')
    for (let i = 0; i < 3; i++) t.same(await ask(madeUp(i)), [401, false])
    t.same(await ask(madeUp(4)), [429, true])
    t.same(await ask(late), [429, true], 'nobody asks whose a key is that was not seen here before')
    t.same(await ask(key), [200, false], 'one that was good is asked for')
    await keys.revokeKey(stored.id)
    t.same(
      [await ask(key), await ask(key)],
      [
        [429, true],
        [429, true],
      ],
      'until it is not',
    )
    t.equal((await fetch(`${gateway.url}${sessions}`)).status, 429, 'and it is the budget of new visitors')
  })

  await t.test('a refused credential spends nothing, and health and numbers are always there', async (t) => {
    for (let i = 0; i < 12; i++) {
      const headers = { authorization: 'Bearer x' }
      t.equal((await fetch(`${url}${sessions}`, { headers })).status, 401)
      t.equal((await fetch(`${url}/health/ready`)).status, 200)
    }
    const numbers = await (await fetch(`${url}/metrics`)).text()
    t.match(numbers, /verbatim_rate_limited_total\{budget="runs"\} \d+/)
    t.match(numbers, /verbatim_rate_limited_total\{budget="reads"\} \d+/)
    t.match(numbers, /verbatim_rate_limited_total\{budget="visitors"\} \d+\n/)
  })
})
