/**
 * Who takes part, and how each is spoken to: how a reply is asked for, how a viewer attaches to one, in which format it
 * comes, and how to find out afterwards whether every reply is stored. Starting and ending them is the stage's work.
 */
import { createHash } from 'node:crypto'
import type postgres from 'postgres'
import { replyText } from './provider.ts'

/** How a body says its words. */
export type Format = 'native' | 'openai' | 'ui'

/** Those that answer with replies, in the order of tables. */
export const contenderNames = ['gateway', 'gateway-postgres', 'gateway-embedded', 'pipe', 'nginx', 'wired'] as const
export type ContenderName = (typeof contenderNames)[number]

export interface Question {
  readonly url: URL
  readonly method: 'GET' | 'POST'
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
}

/** A reply that was asked for. */
export interface Asked {
  readonly number: number
  readonly tokens: number
  /** Of the response: what an asker learns there about where the reply is stored. */
  header(name: string): string | undefined
}

/** What the provider reads: it sends `tokens` tokens. */
const wordsOf = (number: number, tokens: number): string => `reply ${number} of ${tokens}`

export const isGateway = (name: ContenderName): boolean => name.startsWith('gateway')

export const formatOf = (name: ContenderName): Format =>
  isGateway(name) ? 'native' : name === 'wired' ? 'ui' : 'openai'

/** A new conversation with one message, of somebody who was not here before. */
export function ask(name: ContenderName, url: string, number: number, tokens: number): Question {
  const content = wordsOf(number, tokens)
  if (isGateway(name)) {
    return post(`${url}/api/v1/chat/stream`, { message: content }, { 'x-visitor-token': visitorOf(number) })
  }
  if (name === 'wired') {
    const message = { id: `m${number}`, role: 'user', parts: [{ type: 'text', text: content }] }
    return post(`${url}/api/chat`, { id: chatOf(number), messages: [message], trigger: 'submit-message' })
  }
  return post(`${url}/v1/chat/completions`, { model: 'bench', stream: true, messages: [{ role: 'user', content }] })
}

/** The same reply once more, from its beginning, by whoever asked for it. */
export function attach(url: string, asked: Asked): Question {
  return {
    url: new URL(`${url}/api/v1/runs/${asked.header('x-run-id')}/events`),
    method: 'GET',
    headers: { 'x-visitor-token': visitorOf(asked.number) },
    body: '',
  }
}

/**
 * Compares what is stored with what was sent, reply by reply.
 * @param sql undefined when its database cannot be asked from here: then the contender is
 * @returns a sentence for each reply that is not there, once and whole
 */
export async function findUnstored(
  name: ContenderName,
  url: string,
  sql: postgres.Sql | undefined,
  replies: readonly Asked[],
): Promise<readonly string[]> {
  if (name === 'pipe' || name === 'nginx') return []
  const stored = sql === undefined ? await readThrough(url, replies) : await readRows(name, sql, replies)
  const sums = new Map<number, string>()
  return replies.flatMap((reply) => {
    const sum = sums.get(reply.tokens) ?? md5(replyText(reply.tokens))
    sums.set(reply.tokens, sum)
    const rows = stored.get(keyOf(name, reply)) ?? []
    if (rows.length !== 1) return [`reply ${reply.number}: ${rows.length} rows`]
    return rows[0] === sum ? [] : [`reply ${reply.number}: another text is stored`]
  })
}

const keyOf = (name: ContenderName, reply: Asked): string =>
  name === 'wired' ? chatOf(reply.number) : (reply.header('x-message-id') ?? '')

/** @returns the sums of the texts that are stored whole, by key */
async function readRows(
  name: ContenderName,
  sql: postgres.Sql,
  replies: readonly Asked[],
): Promise<ReadonlyMap<string, readonly string[]>> {
  const keys = replies.map((reply) => keyOf(name, reply)).filter((key) => key !== '')
  const rows =
    name === 'wired'
      ? await sql<{ key: string; sum: string }[]>`
          select chat_id as key, md5(content) as sum from messages where role = 'assistant' and chat_id = any(${keys})`
      : await sql<{ key: string; sum: string }[]>`
          select id as key, md5(content) as sum from chat_messages
          where role = 'assistant' and status = 'completed' and id = any(${keys}::uuid[])`
  const stored = new Map<string, string[]>()
  for (const { key, sum } of rows) stored.set(key, [...(stored.get(key) ?? []), sum])
  return stored
}

async function readThrough(url: string, replies: readonly Asked[]): Promise<ReadonlyMap<string, readonly string[]>> {
  const stored = new Map<string, string[]>()
  for (const reply of replies) {
    const response = await fetch(`${url}/api/v1/sessions/${reply.header('x-session-id')}/messages`, {
      headers: { 'x-visitor-token': visitorOf(reply.number) },
    })
    const { data = [] } = (await response.json()) as {
      data?: readonly { id: string; role: string; status: string; content: string }[]
    }
    for (const { id, role, status, content } of data) {
      if (role === 'assistant' && status === 'completed') stored.set(id, [...(stored.get(id) ?? []), md5(content)])
    }
  }
  return stored
}

const md5 = (text: string): string => createHash('md5').update(text).digest('hex')

const visitorOf = (number: number): string => `vst_${String(number).padStart(43, '0')}`

const chatOf = (number: number): string => `chat-${number}`

function post(url: string, body: object, headers: Readonly<Record<string, string>> = {}): Question {
  return {
    url: new URL(url),
    method: 'POST',
    headers: { ...headers, 'content-type': 'application/json' },
    body: JSON.stringify(body),
  }
}
