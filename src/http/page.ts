/**
 * The chat page at `/`: the files that are named here and nothing else. The page is a client of the protocol like any
 * other, so this plugin knows nothing of sessions or runs, and it lists no folder.
 *
 * The page and the client library are written in TypeScript and a browser runs JavaScript, so their types are taken out,
 * by Node itself, when somebody first opens the page; a start of the gateway does not pay for it. It is done on a thread
 * of its own (type-stripper.ts), for two reasons. It takes a few hundred milliseconds of a processor, and replies must
 * go on streaming meanwhile. And Node warns that the function is experimental, once and on standard error, among log
 * lines that a machine reads; a thread can be told not to, without hiding the warnings of anything else.
 *
 * What is made is kept with the hash of its text as ETag. When the thread dies, or has not answered in `stripMs`,
 * everybody who waits for it gets the error and the next request starts another one. When the gateway closes, it is ended.
 */
import { createHash } from 'node:crypto'
import { dirname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import { fastifyStatic } from '@fastify/static'
// For the type of a route's `hide`.
import type {} from '@fastify/swagger'
import type { FastifyInstance } from 'fastify'

const src = fileURLToPath(new URL('../', import.meta.url))
const markedFolder = dirname(fileURLToPath(import.meta.resolve('marked')))

/** Path -> file and its folder. A file that is added to the folder is not public until it is named here. */
const files = {
  '/': ['page/index.html', src],
  '/page.css': ['page/page.css', src],
  '/favicon.svg': ['page/favicon.svg', src],
  '/page/marked.js': ['marked.esm.js', markedFolder],
} as const

/** Served without their types, at the path that they have in `src`: so their imports of each other hold as they are. */
const modules = [
  'client/client.ts',
  'client/connection.ts',
  'client/errors.ts',
  'client/fold.ts',
  'client/index.ts',
  'client/random.ts',
  'client/reply.ts',
  'client/resuming-fetch.ts',
  'client/sse.ts',
  'client/transport.ts',
  'client/ui-stream.ts',
  'client/waiting.ts',
  'page/account.ts',
  'page/branches.ts',
  'page/chat.ts',
  'page/composer.ts',
  'page/conversation.ts',
  'page/dom.ts',
  'page/first-paint.ts',
  'page/identity.ts',
  'page/inspector.ts',
  'page/main.ts',
  'page/markdown-tree.ts',
  'page/markdown.ts',
  'page/message-view.ts',
  'page/notices.ts',
  'page/part-view.ts',
  'page/session-menu.ts',
  'page/sessions.ts',
  'page/shortcuts.ts',
  'page/storage.ts',
  'page/tabs.ts',
  'page/theme.ts',
  'page/transcript.ts',
  'page/tree.ts',
] as const

const headers = {
  // The page renders what a model wrote. It makes elements of it and never parses it as HTML, and should that ever fail,
  // nothing that gets into the document can run, load, send or be framed.
  'content-security-policy': [
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src 'self' data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ].join('; '),
  // Kept but asked about each time: a page must not outlive the gateway it was written for.
  'cache-control': 'no-cache',
} as const

/** A few hundred milliseconds of a processor, on a machine that has others to do. */
const stripMs = 30_000

interface Script {
  readonly text: string
  readonly tag: string
}

export async function page(app: FastifyInstance): Promise<void> {
  let worker: Worker | undefined
  let scripts: Promise<ReadonlyMap<string, Script>> | undefined

  await app.register(fastifyStatic, { root: src, serve: false, cacheControl: false, etag: true, index: false })
  app.addHook('onRequest', async (_request, reply) => {
    reply.headers(headers)
  })
  app.addHook('onClose', async () => {
    await worker?.terminate()
  })

  for (const [path, [file, folder]] of Object.entries(files)) {
    app.get(path, { schema: { hide: true } }, (_request, reply) => reply.sendFile(file, folder))
  }
  for (const module of modules) {
    app.get(`/${module}`, { schema: { hide: true } }, async (request, reply) => {
      const script = await readScript(module)
      reply.header('etag', script.tag)
      if (request.headers['if-none-match'] === script.tag) return reply.code(304).send()
      return reply.type('text/javascript; charset=utf-8').send(script.text)
    })
  }

  async function readScript(module: string): Promise<Script> {
    scripts ??= stripAll().catch((error) => {
      scripts = undefined
      throw error
    })
    const script = (await scripts).get(module)
    if (script === undefined) throw new Error(`${module} was not among the modules`)
    return script
  }

  async function stripAll(): Promise<ReadonlyMap<string, Script>> {
    const texts = await new Promise<readonly string[]>((resolve, reject) => {
      const thread = new Worker(new URL('type-stripper.ts', import.meta.url), {
        execArgv: ['--disable-warning=ExperimentalWarning'],
        workerData: modules.map((module) => `${src}${module}`),
      })
      worker = thread
      const late = setTimeout(() => void thread.terminate(), stripMs)
      thread.once('message', resolve)
      thread.once('error', reject)
      thread.once('exit', () => {
        clearTimeout(late)
        // Of a thread that has answered, this comes too late to say anything.
        reject(new Error('The thread that takes types out has ended without an answer.'))
      })
    })
    return new Map(
      texts.map((text, index) => [
        `${modules[index]}`,
        { text, tag: `"${createHash('sha256').update(text).digest('base64url')}"` },
      ]),
    )
  }
}
