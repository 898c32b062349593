/**
 * The client library as others get it: it is built, put where an install would put it, imported by plain Node under its
 * public names, and a program of somebody else is type-checked against its declarations. It is small, and its types are
 * those of the gateway.
 */
import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { cp, mkdir, readFile, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { gzipSync } from 'node:zlib'
import { build } from 'esbuild'
import t from 'tap'
import { writeTypes } from '../../scripts/client-types.ts'
import { createFolder } from '../support/gateway.ts'

const run = promisify(execFile)
const root = join(import.meta.dirname, '../..')
/** What a page loads: minified and compressed. */
const gzipBytesMax = 8 * 1024
/** Without the fetch for the AI SDK, which a bundler leaves out when nobody asks for it. */
const coreBytesMax = 6.5 * 1024

const program = `
import { createClient, createResumingFetch, GatewayError, type Message, type ReplyEvent } from 'verbatim/client'
import { useChat } from 'verbatim/client/react'

const client = createClient({ baseUrl: 'https://chat.example', token: async (refused) => refused ?? 'jwt' })

export async function ask(message: string): Promise<string> {
  const reply = client.chat.send({ message, mode: 'fast' })
  for await (const event of reply) show(event)
  const { status, error } = await reply.done
  return status === 'completed' ? reply.text : (error?.code ?? status)
}

function show(event: ReplyEvent): void {
  if (event.type === 'delta') console.log(event.data.text.length, event.id.length, event.at.toFixed())
  if (event.type === 'connection' && event.state === 'waiting') console.log(event.why satisfies string | undefined)
}

export async function last(id: string): Promise<Message | undefined> {
  try {
    return (await client.sessions.messages(id, { order: 'desc', limit: 1 })).data[0]
  } catch (error) {
    if (error instanceof GatewayError && error.code === 'not_found') return undefined
    throw error
  }
}

export function Chat({ sessionId }: { sessionId?: string }) {
  const { messages, status, send } = useChat(client, { sessionId })
  return messages.map(({ role, content }) => role + content + status + String(send))
}

export const plain: typeof fetch = createResumingFetch({ limits: { stallMs: 1000 } })

// @ts-expect-error nothing says what to send
client.chat.send({ mode: 'fast' })
// @ts-expect-error there is no such mode
client.chat.send({ message: 'Hello', mode: 'loud' })
`

t.test('the types are what the schemas say', async (t) => {
  const current = writeTypes()
  t.equal(await readFile(join(root, 'src/client/types.ts'), 'utf8'), current, 'npm run client:types')
  t.match(current, /readonly rating: 1 \| -1\n/)
  t.match(current, /readonly next_cursor: string \| null\n/)
})

t.test(`the library is small`, async (t) => {
  const measure = async (source: string) => {
    const { outputFiles } = await build({
      stdin: { contents: source, resolveDir: join(root, 'src/client'), loader: 'ts' },
      bundle: true,
      minify: true,
      format: 'esm',
      target: 'es2022',
      write: false,
    })
    return gzipSync(outputFiles[0]?.contents ?? '', { level: 9 }).length
  }
  const whole = await measure(`export * from './index.ts'`)
  const core = await measure(`export { createClient } from './index.ts'`)
  t.comment(`${whole} bytes, ${core} without createResumingFetch`)
  t.ok(whole <= gzipBytesMax, `${whole} bytes, of ${gzipBytesMax}`)
  t.ok(core <= coreBytesMax, `${core} bytes, of ${coreBytesMax}`)
})

t.test('a program of somebody else imports it, and is checked against its types', async (t) => {
  const folder = await createFolder(t)
  const installed = join(folder, 'node_modules/verbatim')
  await mkdir(join(folder, 'node_modules/@types'), { recursive: true })
  await run(process.execPath, ['scripts/build-client.ts', join(installed, 'dist/client')], { cwd: root })
  await cp(join(root, 'package.json'), join(installed, 'package.json'))
  await writeFile(join(folder, 'package.json'), '{"type":"module"}')
  await writeFile(join(folder, 'program.ts'), program)
  const options = { module: 'nodenext', strict: true, noEmit: true, lib: ['es2022', 'dom'], types: [] }
  await writeFile(join(folder, 'tsconfig.json'), JSON.stringify({ compilerOptions: options, files: ['program.ts'] }))

  await t.test('in plain Node, also the one of the system, without react', async (t) => {
    const source = `import { createClient, ConnectionError } from 'verbatim/client'
      const client = createClient({ baseUrl: 'http://127.0.0.1:9', limits: { sendAttemptsMax: 1 } })
      const reply = client.chat.send({ message: 'Hello' })
      const error = await reply.done.catch((error) => error)
      console.log(error instanceof ConnectionError, process.version)
      await import('verbatim/client/x.js').catch((error) => console.log(error.code))`
    await writeFile(join(folder, 'program.js'), source)
    for (const node of [process.execPath, '/usr/local/bin/node', '/usr/bin/node'].filter(existsSync)) {
      const { stdout } = await run(node, ['program.js'], { cwd: folder })
      t.match(stdout, /^true v\d+/)
      t.match(stdout, /ERR_PACKAGE_PATH_NOT_EXPORTED/, 'and only what is exported')
      t.comment(stdout.split('\n')[0])
    }
  })

  for (const name of ['react', '@types/react']) {
    await symlink(join(root, 'node_modules', name), join(folder, 'node_modules', name))
  }
  // Where it expects a mistake to be found, none would be one.
  const { stdout } = await run(join(root, 'node_modules/.bin/tsc'), ['-p', folder], { cwd: folder }).catch(
    (error) => error,
  )
  t.equal(stdout, '')
})

t.test('the package holds the built client and nothing of the gateway', async (t) => {
  const manifest = JSON.parse(await readFile(join(root, 'package.json'), 'utf8'))
  t.same(manifest.files, ['dist/client'])
  t.equal(manifest.scripts.prepack, 'node scripts/build-client.ts')
  t.equal(manifest.peerDependenciesMeta.react.optional, true)
  t.same(Object.keys(manifest.exports), ['./client', './client/react', './package.json'])
})
