/**
 * Checks a running gateway from outside, the way an operator would after a deployment: save a session, read it, update it
 * by a message, list it, complete a reply and compare it with what was streamed, filter by status. It prints each step
 * and ends with 1 at the first that is not as it should be.
 *
 *     node scripts/verify-persistence.ts [http://localhost:3000]
 *
 * With `TOKEN` set it comes as that user, otherwise as a new visitor. What it makes stays, under its own owner.
 */
import { createParser } from 'eventsource-parser'

const base = (process.argv[2] ?? 'http://localhost:3000').replace(/\/+$/, '')
const api = `${base}/api/v1`
const replyMsMax = 120_000
const identity: Record<string, string> =
  process.env.TOKEN === undefined ? {} : { authorization: `Bearer ${process.env.TOKEN}` }

interface Session {
  readonly id: string
  readonly title: string | null
  readonly status: string
  readonly mode: string
  readonly message_count: number
  readonly total_tokens: number
  readonly version: number
  readonly last_activity_at: string
}

interface Message {
  readonly role: string
  readonly content: string
  readonly status: string
  readonly total_tokens: number | null
}

let steps = 0

function step(name: string, holds: boolean, found: unknown): void {
  steps += 1
  process.stdout.write(`${holds ? 'ok  ' : 'FAIL'} ${steps}. ${name}: ${JSON.stringify(found)}\n`)
  if (!holds) process.exit(1)
}

async function ask<T>(method: string, path: string, body?: unknown): Promise<{ status: number; body: T }> {
  const response = await fetch(`${api}${path}`, {
    method,
    headers: { ...identity, ...(body === undefined ? {} : { 'content-type': 'application/json' }) },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  })
  // The first answer makes a visitor of us; from then on we are the same one.
  const token = response.headers.get('x-visitor-token')
  if (token !== null) identity['x-visitor-token'] = token
  return { status: response.status, body: (await response.json()) as T }
}

/** Sends a message and reads the reply as it streams. */
async function send(sessionId: string, message: string): Promise<{ text: string; status: string; tokens: number }> {
  const response = await fetch(`${api}/chat/stream`, {
    method: 'POST',
    headers: { ...identity, 'content-type': 'application/json' },
    body: JSON.stringify({ message, session_id: sessionId }),
    signal: AbortSignal.timeout(replyMsMax),
  })
  if (!response.ok || response.body === null) throw new Error(`the gateway answered ${response.status}`)
  const reply = { text: '', status: 'none', tokens: 0 }
  const otherParts = new Set<number>()
  const parser = createParser({
    onEvent({ event, data: json }) {
      const data = JSON.parse(json)
      if (event === 'part' && data.kind !== 'text') otherParts.add(data.part)
      if (event === 'delta' && !otherParts.has(data.part)) reply.text += data.text
      if (event === 'done') {
        reply.status = data.status
        reply.tokens = data.usage?.total_tokens ?? 0
      }
    },
  })
  const decoder = new TextDecoder()
  for await (const bytes of response.body) parser.feed(decoder.decode(bytes, { stream: true }))
  return reply
}

async function readSession(id: string): Promise<Session> {
  return (await ask<Session>('GET', `/sessions/${id}`)).body
}

async function listIds(query: string): Promise<string[]> {
  const { body } = await ask<{ data: Session[] }>('GET', `/sessions?${query}`)
  return body.data.map(({ id }) => id)
}

async function verify(): Promise<void> {
  process.stdout.write(`Verifying ${base}\n`)
  const ready = (await (await fetch(`${base}/health/ready`)).json()) as { ok: boolean }
  step('the gateway is ready', ready.ok, ready)

  const saved = await ask<Session>('POST', '/sessions', { mode: 'fast', metadata: { source: 'verify-persistence' } })
  step('save: a session is made', saved.status === 201, { status: saved.status, id: saved.body.id })
  const { id } = saved.body
  const again = await ask<Session>('POST', '/sessions', { id })
  step('save: the same id again is the same session', again.status === 200 && again.body.id === id, again.status)

  const read = await readSession(id)
  step('read: it comes back as it was saved', read.status === 'created' && read.mode === 'fast', {
    status: read.status,
    mode: read.mode,
  })

  const question = 'Does every word of this reply reach the database?'
  const reply = await send(id, question)
  step('complete: a reply is streamed to its end', reply.status === 'completed' && reply.text !== '', {
    status: reply.status,
    units: reply.text.length,
    tokens: reply.tokens,
  })

  const messages = (await ask<{ data: Message[] }>('GET', `/sessions/${id}/messages`)).body.data
  step('complete: question and reply are stored', messages.length === 2 && messages[0]?.content === question, {
    roles: messages.map(({ role }) => role),
  })
  step('complete: the stored reply is the streamed one', messages[1]?.content === reply.text, {
    stored: messages[1]?.content.length,
    streamed: reply.text.length,
  })

  const updated = await readSession(id)
  const { title, status, message_count, total_tokens, version } = updated
  step(
    'update: title, status, counters and version moved',
    title === question.slice(0, 50) && status === 'completed' && message_count === 2 && version > read.version,
    { title, status, message_count, version },
  )
  step('update: the tokens are counted', total_tokens === reply.tokens, total_tokens)
  step('update: so did the last activity', updated.last_activity_at > read.last_activity_at, updated.last_activity_at)

  const listed = await listIds('limit=100')
  step('list: it is the newest of its owner', listed[0] === id, listed.length)
  const completed = await listIds('status=completed&limit=100')
  step('filter: it is among the completed', completed.includes(id), completed.length)
  const failed = await listIds('status=failed&limit=100')
  step('filter: it is not among the failed', !failed.includes(id), failed.length)
  process.stdout.write(`All ${steps} steps hold.\n`)
}

try {
  await verify()
} catch (error) {
  process.stdout.write(`FAIL ${error instanceof Error ? error.message : String(error)}\n`)
  process.exit(1)
}
