/**
 * Checks a running gateway from outside, the way an operator would after a deployment: save a session, read it, update it
 * by a message, list it, complete a reply and compare it with what was streamed, filter by status. It prints each step
 * and ends with 1 at the first that is not as it should be.
 *
 *     node scripts/verify-persistence.ts [http://localhost:3000] [--save=FILE | --check=FILE] [--redis=redis://…]
 *
 * `--save=FILE` keeps what was seen, and who saw it, in a file. After a restart, `--check=FILE` makes nothing: it looks
 * whether list, sessions and histories are what they were. `--redis=URL` deletes all keys of the gateway there (`vb:*`; the
 * database of Redis may hold others, which stay), and looks once more.
 *
 * With `TOKEN` set it comes as that user, otherwise as a new visitor. What it makes stays, under its own owner.
 */
import { readFile, writeFile } from 'node:fs/promises'
import { isDeepStrictEqual, parseArgs } from 'node:util'
import { createParser } from 'eventsource-parser'
import { Redis } from 'ioredis'

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: { save: { type: 'string' }, check: { type: 'string' }, redis: { type: 'string' } },
})
const base = (positionals[0] ?? 'http://localhost:3000').replace(/\/+$/, '')
const api = `${base}/api/v1`
const replyMsMax = 120_000
const redisMsMax = 10_000
/** Redis answers about this many keys to one SCAN. */
const scanCount = 1000
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
  readonly input: string | null
  readonly context: unknown
}

interface Message {
  readonly role: string
  readonly content: string
  readonly status: string
  readonly total_tokens: number | null
}

/** What an owner sees: the first page of the list, and each session on it with its messages. */
interface Sight {
  readonly list: readonly Session[]
  readonly sessions: readonly Session[]
  readonly histories: readonly (readonly Message[])[]
}

interface Saved {
  readonly visitor: string | undefined
  readonly sight: Sight
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

async function look(): Promise<Sight> {
  const list = (await ask<{ data: Session[] }>('GET', '/sessions?limit=20')).body.data
  const sessions: Session[] = []
  const histories: Message[][] = []
  for (const { id } of list) {
    sessions.push(await readSession(id))
    histories.push((await ask<{ data: Message[] }>('GET', `/sessions/${id}/messages?limit=100`)).body.data)
  }
  return { list, sessions, histories }
}

async function isUnchanged(name: string, before: Sight): Promise<void> {
  // Twice: the first look may fill a cache that the second is served from.
  for (const [turn, now] of [
    ['', await look()],
    [', looked at again', await look()],
  ] as const) {
    step(`${name}: the list is unchanged${turn}`, isDeepStrictEqual(now.list, before.list), now.list.length)
    step(`${name}: so is each session`, isDeepStrictEqual(now.sessions, before.sessions), now.sessions.length)
    const messages = now.histories.reduce((sum, history) => sum + history.length, 0)
    step(`${name}: so is each history`, isDeepStrictEqual(now.histories, before.histories), { messages })
  }
}

/** As when Redis has forgotten everything: never FLUSHALL, because others may live there. */
async function deleteKeys(url: string): Promise<number> {
  const redis = new Redis(url, { lazyConnect: true, connectTimeout: redisMsMax, commandTimeout: redisMsMax })
  redis.on('error', () => undefined) // The same error rejects the commands below.
  const keys = new Set<string>()
  try {
    await redis.connect()
    for (let cursor = '0', isFirst = true; isFirst || cursor !== '0'; isFirst = false) {
      const [next, found] = await redis.scan(cursor, 'MATCH', 'vb:*', 'COUNT', scanCount)
      for (const key of found) keys.add(key)
      if (found.length > 0) await redis.unlink(found)
      cursor = next
    }
    return keys.size
  } finally {
    redis.disconnect()
  }
}

async function verify(): Promise<void> {
  process.stdout.write(`Verifying ${base}\n`)
  const ready = (await (await fetch(`${base}/health/ready`)).json()) as { ok: boolean }
  step('the gateway is ready', ready.ok, ready)

  if (options.check === undefined) {
    await verifySession()
  } else {
    const saved: Saved = JSON.parse(await readFile(options.check, 'utf8'))
    if (saved.visitor !== undefined) identity['x-visitor-token'] = saved.visitor
    await isUnchanged('restart', saved.sight)
  }
  if (options.save !== undefined) {
    // Who holds the visitor's token is the visitor.
    const saved: Saved = { visitor: identity['x-visitor-token'], sight: await look() }
    await writeFile(options.save, JSON.stringify(saved), { mode: 0o600 })
    process.stdout.write(`Saved ${saved.sight.list.length} sessions. After a restart: --check=${options.save}\n`)
  }
  if (options.redis !== undefined) {
    const before = await look()
    process.stdout.write(`Deleted ${await deleteKeys(options.redis)} keys in Redis.\n`)
    await isUnchanged('redis', before)
  }
  process.stdout.write(`All ${steps} steps hold.\n`)
}

/** One session from its beginning to a stored reply. */
async function verifySession(): Promise<void> {
  const input = 'What becomes of a session?'
  const context = { source: 'verify-persistence', depth: 2 }
  const saved = await ask<Session>('POST', '/sessions', { mode: 'fast', input, context, metadata: context })
  step('save: a session is made', saved.status === 201, { status: saved.status, id: saved.body.id })
  const { id } = saved.body
  const again = await ask<Session>('POST', '/sessions', { id })
  step('save: the same id again is the same session', again.status === 200 && again.body.id === id, again.status)

  const read = await readSession(id)
  step('read: it comes back as it was saved', read.status === 'created' && read.mode === 'fast', {
    status: read.status,
    mode: read.mode,
  })
  step('read: so do input and context', read.input === input && isDeepStrictEqual(read.context, context), {
    input: read.input,
    context: read.context,
  })
  const waiting = await listIds('status=created&limit=100')
  step('filter: it is among the created', waiting.includes(id), waiting.length)

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
  const created = await listIds('status=created&limit=100')
  step('filter: nor among the created any more', !created.includes(id), created.length)
}

try {
  await verify()
} catch (error) {
  process.stdout.write(`FAIL ${error instanceof Error ? error.message : String(error)}\n`)
  process.exit(1)
}
