/**
 * What a team wires together by hand today: Fastify, the AI SDK's streamText, resumable-stream over Redis, postgres.js. As the
 * AI SDK's guides to persistence and to resuming say: the user's message is stored, the reply is piped to the response and
 * a copy of it to a resumable stream, the chat remembers which one that is, and the reply is stored when it is whole. A
 * lost connection does not stop the reply; a process that dies does, and what it had is gone.
 *
 * `node wired.ts <provider url> <postgres url> <redis url>` prints its address.
 */
import { Readable } from 'node:stream'
import {
  convertToModelMessages,
  generateId,
  UI_MESSAGE_STREAM_HEADERS as streamHeaders,
  streamText,
  type UIMessage,
} from 'ai'
import { createOpenAICompatible } from 'ai5-openai-compatible'
import fastify from 'fastify'
import { Redis } from 'ioredis'
import postgres from 'postgres'
import { createResumableStreamContext } from 'resumable-stream/ioredis'

interface ChatRequest {
  readonly id: string
  readonly messages: UIMessage[]
}

const [providerUrl = '', databaseUrl = '', redisUrl = ''] = process.argv.slice(2)
const provider = createOpenAICompatible({ name: 'bench', baseURL: providerUrl })
const sql = postgres(databaseUrl, { max: 10, onnotice: () => undefined })
await sql`create table if not exists chats (
  id text primary key, active_stream_id text, created_at timestamptz not null default now())`
await sql`create table if not exists messages (
  id text primary key, chat_id text not null references chats, role text not null,
  content text not null, parts jsonb not null, created_at timestamptz not null default now())`
await sql`create index if not exists messages_chat on messages (chat_id, created_at)`
const streams = createResumableStreamContext({
  // For platforms that stop a function after its response; a server goes on.
  waitUntil: () => undefined,
  publisher: new Redis(redisUrl),
  subscriber: new Redis(redisUrl),
})

const textOf = ({ parts }: UIMessage): string => parts.map((part) => (part.type === 'text' ? part.text : '')).join('')

async function saveMessage(chatId: string, message: UIMessage): Promise<void> {
  await sql`insert into messages (id, chat_id, role, content, parts)
    values (${message.id}, ${chatId}, ${message.role}, ${textOf(message)}, ${sql.json(message.parts as never)})`
}

const app = fastify({ logger: true })

app.post<{ Body: ChatRequest }>('/api/chat', async (request, reply) => {
  const { id, messages } = request.body
  await sql`insert into chats (id) values (${id}) on conflict (id) do update set active_stream_id = null`
  await saveMessage(id, messages.at(-1) as UIMessage)
  const result = streamText({ model: provider('bench'), messages: convertToModelMessages(messages) })
  reply.hijack()
  result.pipeUIMessageStreamToResponse(reply.raw, {
    originalMessages: messages,
    generateMessageId: generateId,
    onFinish: async ({ responseMessage }) => {
      await saveMessage(id, responseMessage)
      await sql`update chats set active_stream_id = null where id = ${id}`
    },
    async consumeSseStream({ stream }) {
      const streamId = generateId()
      await streams.createNewResumableStream(streamId, () => stream)
      await sql`update chats set active_stream_id = ${streamId} where id = ${id}`
    },
  })
})

app.get<{ Params: { id: string } }>('/api/chat/:id/stream', async (request, reply) => {
  const [chat] = await sql<{ active_stream_id: string | null }[]>`
    select active_stream_id from chats where id = ${request.params.id}`
  const stream =
    chat?.active_stream_id === null || chat === undefined
      ? undefined
      : await streams.resumeExistingStream(chat.active_stream_id)
  if (stream === undefined || stream === null) return reply.code(204).send()
  return reply.headers(streamHeaders).send(Readable.from(stream))
})

// A profile is written by a process that ends by itself.
process.once('SIGTERM', () => process.exit())
process.stdout.write(`${await app.listen({ port: 0, host: '127.0.0.1' })}\n`)
