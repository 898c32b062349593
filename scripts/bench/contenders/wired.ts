/**
 * What a team wires together by hand today: Fastify, the AI SDK's streamText, resumable-stream over Redis, postgres.js. As its
 * documents say: the user's message is inserted, the reply's stream is given to a resumable stream that the response reads,
 * and when the SDK says that it is finished, the reply is inserted.
 *
 * `node wired.ts <provider url> <postgres url> <redis url, or - for none>` prints its address.
 */
import { Readable } from 'node:stream'
import { convertToModelMessages, JsonToSseTransformStream, streamText, type UIMessage } from 'ai'
import { createOpenAICompatible } from 'ai5-openai-compatible'
import fastify from 'fastify'
import { Redis } from 'ioredis'
import postgres from 'postgres'
import { createResumableStreamContext } from 'resumable-stream/ioredis'

const [providerUrl = '', databaseUrl = '', redisUrl = '-'] = process.argv.slice(2)
const provider = createOpenAICompatible({ name: 'bench', baseURL: providerUrl })
const sql = postgres(databaseUrl, { max: 10, onnotice: () => undefined })
await sql`create table if not exists chats (id text primary key, created_at timestamptz not null default now())`
await sql`create table if not exists messages (
  id bigint generated always as identity primary key, chat_id text not null references chats, role text not null,
  content text not null, parts jsonb not null, created_at timestamptz not null default now())`
const streams =
  redisUrl === '-'
    ? undefined
    : createResumableStreamContext({
        waitUntil: () => undefined,
        publisher: new Redis(redisUrl),
        subscriber: new Redis(redisUrl),
      })

const textOf = ({ parts }: UIMessage): string => parts.map((part) => (part.type === 'text' ? part.text : '')).join('')

const app = fastify({ logger: true })
app.post<{ Body: { id: string; messages: UIMessage[] } }>('/api/chat', async (request, reply) => {
  const { id, messages } = request.body
  const last = messages.at(-1) as UIMessage
  await sql`insert into chats (id) values (${id}) on conflict do nothing`
  await sql`insert into messages (chat_id, role, content, parts)
    values (${id}, 'user', ${textOf(last)}, ${sql.json(last.parts as never)})`
  const result = streamText({ model: provider('bench'), messages: convertToModelMessages(messages) })
  const events = result
    .toUIMessageStream({
      originalMessages: messages,
      onFinish: async ({ responseMessage }) => {
        await sql`insert into messages (chat_id, role, content, parts)
          values (${id}, 'assistant', ${textOf(responseMessage)}, ${sql.json(responseMessage.parts as never)})`
      },
    })
    .pipeThrough(new JsonToSseTransformStream())
  const body = streams === undefined ? events : await streams.resumableStream(id, () => events)
  reply.header('content-type', 'text/event-stream').header('cache-control', 'no-cache')
  reply.header('x-vercel-ai-ui-message-stream', 'v1')
  return reply.send(Readable.fromWeb((body as ReadableStream<string>).pipeThrough(new TextEncoderStream()) as never))
})
process.stdout.write(`${await app.listen({ port: 0, host: '127.0.0.1' })}\n`)
