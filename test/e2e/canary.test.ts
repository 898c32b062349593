/**
 * No log line says what somebody wrote, who they are or where they come from. Everything that a client, a provider or a
 * database can put in holds a canary here, and each way to answer is taken, at the level that logs most.
 */
import { test } from 'tap'
import { type FakeCall, refuse, say, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { DbError } from '../../src/db/db.ts'
import { Problem } from '../../src/errors.ts'
import { passOn } from '../support/agents.ts'
import { createClient, isDelta } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { type Gateway, startGateway } from '../support/gateway.ts'
import { sendRaw } from '../support/raw.ts'
import { inSeconds, makeToken } from '../support/tokens.ts'

const secret = 'a secret with a canary in it, longer than 32 bytes'
const address = '203.0.113.77'
const sessions = '/api/v1/sessions'
const stream = '/api/v1/chat/stream'
const whole = '/api/v1/chat/message'
const visitorToken = `vst_${'canary'.padEnd(43, 'x')}`

/** What no line may hold; the stack of an injected fault names this file. */
const canaries: readonly RegExp[] = [
  /canary(?!\.test\.ts)/i,
  /203\.0\.113/,
  /2001:db8/,
  /127\.0\.0\.1|::1/,
  /vst_/,
  /eyJ/,
  /Mozilla|undici|node-fetch/,
]

/** On every request. */
const canaryHeaders = {
  'user-agent': 'Mozilla/5.0 (canary)',
  'x-forwarded-for': `${address}, 2001:db8::77`,
  'x-real-ip': address,
  forwarded: `for=${address}`,
  referer: 'https://canary.example/page',
  origin: 'https://canary.example',
  'accept-language': 'canary',
  'x-request-id': 'canary-of-a-request-id',
  'x-canary': 'canary',
}

/** What the database, or a fault of ours, throws at the next statement. */
function failNext({ app: { db } }: Gateway, error: Error): void {
  const { rows, run } = db
  const broken = async () => {
    Object.assign(db, { rows, run })
    throw error
  }
  Object.assign(db, { rows: broken, run: broken })
}

function find(lines: readonly string[]): readonly string[] {
  return lines.filter((line) => canaries.some((canary) => canary.test(line)))
}

for (const database of databases()) {
  test(`no line holds a canary, on ${database}`, async (t) => {
    const upstream = await startFakeUpstream()
    t.teardown(() => upstream.close())
    const lines: string[] = []
    const gateway = await startGateway(t, {
      agents: [passOn('canary')],
      database,
      logStream: { write: (line) => lines.push(line) },
      env: {
        OPENAI_BASE_URL: upstream.url,
        OPENAI_API_KEY: 'sk-canary-of-the-key',
        JWT_SECRET: secret,
        CORS_ORIGINS: canaryHeaders.origin,
        LOG_LEVEL: 'trace',
        RATE_LIMIT_VISITORS: '2',
        CHECKPOINT_MS: '10',
      },
    })
    const { url } = gateway
    // What comes before is ours: where the process listens, and where it calls.
    const started = lines.length
    const visitor = createClient(url, { ...canaryHeaders, 'x-visitor-token': visitorToken })
    const byCookie = createClient(url, { ...canaryHeaders, cookie: `a=canary; visitor_token=${visitorToken}` })
    const token = makeToken(secret, { sub: 'canary-of-a-user', email: 'canary@example.com', exp: inSeconds(600) })
    const user = createClient(url, { ...canaryHeaders, authorization: `Bearer ${token}` })
    const fields = {
      title: 'canary title',
      external_id: 'canary-external',
      input: 'canary input',
      kind: 'canary-kind',
      context: { canary: 'canary' },
      metadata: { canary: ['canary'], file: 'canary.pdf' },
    }
    upstream.answer(({ message }: FakeCall) => {
      if (message.includes('refuse'))
        return refuse(400, { error: { message: 'canary of the provider', code: 'canary' } })
      if (message.includes('garbage')) return ['data: {"canary": "canary of the provi\n\n']
      return say(message.includes('endless') ? { tokens: 100_000, paceMs: 20 } : { text: 'canary of the reply' })
    })

    const statuses: Record<string, number> = {}
    const expect = (name: string, answer: { readonly status: number }, status: number) => {
      statuses[name] = answer.status
      t.equal(answer.status, status, name)
    }

    const created = await visitor.post(`${sessions}`, fields)
    expect('created', created, 201)
    const session = `${sessions}/${created.body.id}`
    for (const client of [visitor, byCookie]) expect('read', await client.get(session), 200)
    expect('listed', await user.get(`${sessions}?tag=canary&kind=canary`), 200)
    expect(
      'answered',
      await user.post(whole, { message: 'canary', metadata: fields.metadata, agent_id: 'canary' }),
      200,
    )
    const keyed = { 'idempotency-key': 'canary-key' }
    const streamed = await visitor.send({ message: 'canary' }, keyed)
    await streamed.ended
    expect('streamed', streamed, 200)
    const byGet = await visitor.watch(`${stream}?message=canary&client_message_id=canary-get`)
    await byGet.ended
    expect('streamed by GET', byGet, 200)

    expect('400', await visitor.get(`${sessions}?canary=canary`), 400)
    expect('400 of a field', await visitor.post(sessions, { canary: 'canary' }), 400)
    const brokenJson = {
      method: 'POST',
      headers: { ...visitor.identity, 'content-type': 'application/json' },
      body: '{"canary": canary',
    }
    expect('400 of JSON', await fetch(`${url}${sessions}`, brokenJson), 400)
    expect(
      '400 of a URL',
      await sendRaw(url, 'GET /canary%zz HTTP/1.1\r\nHost: canary\r\nConnection: close\r\n\r\n'),
      400,
    )
    expect('400 of HTTP', await sendRaw(url, 'canary canary canary\r\n\r\n'), 400)
    expect('431', await sendRaw(url, `GET /?${'canary'.repeat(4000)} HTTP/1.1\r\nHost: x\r\n\r\n`), 431)
    expect(
      '401',
      await createClient(url, { ...canaryHeaders, authorization: 'Bearer eyJcanary.eyJcanary.canary' }).get(sessions),
      401,
    )
    expect('401 of a ticket', await visitor.get(`/api/v1/runs/${created.body.id}/events?ticket=canary`), 401)
    const foreign = { origin: 'https://another-canary.example', 'sec-fetch-site': 'cross-site' }
    expect('403', await byCookie.get(sessions, foreign), 403)
    expect('404', await user.get(session), 404)
    expect('404 of a route', await visitor.get('/canary/canary?canary=canary'), 404)
    expect('404 of a name', await visitor.put(`${session}/nothing/canary.pdf`, { body: 'canary' }), 404)
    const endless = await visitor.send({ message: 'canary, endless', session_id: created.body.id })
    await endless.until(isDelta)
    expect('409', await visitor.post(whole, { message: 'canary', session_id: created.body.id }), 409)
    expect('stopped', await visitor.post(`/api/v1/runs/${endless.headers.get('x-run-id')}/stop`), 200)
    await endless.ended
    expect('413', await visitor.post(whole, { message: 'canary'.repeat(20_000) }), 413)
    expect('422', await visitor.post(whole, { message: 'canary, another' }, keyed), 422)
    for (const status of [200, 429])
      expect(`new visitor ${status}`, await createClient(url, canaryHeaders).get(sessions), status)
    expect('502', await visitor.post(whole, { message: 'canary, refuse' }), 502)
    expect('502 of garbage', await visitor.post(whole, { message: 'canary, garbage' }), 502)
    failNext(gateway, new DbError('XX000', 'some_constraint', new Error('canary of the database')))
    expect('500 of the database', await visitor.get(session), 500)
    failNext(gateway, new SyntaxError(`Unexpected token 'c', "canary" is not valid JSON`))
    expect('500', await visitor.get(session), 500)
    failNext(gateway, new Problem('db_unavailable', 'canary', { cause: new Error(`canary at ${address}`) }))
    expect('503', await visitor.get(session), 503)
    expect('read again', await visitor.get(session), 200)

    const said = lines.slice(started)
    t.ok(said.length > 30, 'there are lines')
    for (const status of new Set(Object.values(statuses)))
      t.ok(
        said.some((line) => line.includes(`"status":${status},`)),
        `a line tells of ${status}`,
      )
    t.same(find(said), [])
    for (const level of ['error', 'warn', 'info']) {
      t.ok(
        said.some((line) => line.includes(`"level":"${level}"`)),
        level,
      )
    }

    gateway.app.server.log.trace({ something: 'A Canary' }, 'a twin')
    gateway.app.server.log.error({ err: new Error(`from ${address}`) }, 'a twin')
    t.equal(find(lines.slice(started)).length, 2, 'a twin: the search would find them')
  })
}
