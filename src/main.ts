/**
 * The process edge: environment, start, signals, exit code. The only file that touches `process`.
 *
 * `node src/main.ts` serves; `node src/main.ts migrate` brings the schema up to date and ends. A first SIGTERM or SIGINT
 * drains and ends with 0; a second one ends the process at once.
 */
import closeWithGrace from 'close-with-grace'
import { type App, buildApp } from './app.ts'
import { openDatabase } from './backends.ts'
import { type Config, readConfig } from './config.ts'
import { type Extensions, extensionsOf, readConfigFile } from './config-file.ts'
import { ConfigError, readVariable } from './config-values.ts'
import { createLogOutput } from './http/log-output.ts'

// After the drain time, what closing sockets and stores may take before the process ends anyway.
const closeGraceMs = 15_000

// Connections that may wait to be accepted; the system may allow fewer. With Node's 511, a part of thousands of viewers
// that come back at once is left to the retries of their kernels, after 1, 3, 7 s and more.
const backlogMax = 4096

function fail(message: string): never {
  process.stderr.write(`${message}\n`)
  process.exit(1)
}

async function readConfigOrFail(): Promise<{ readonly config: Config; readonly extensions: Extensions }> {
  try {
    const contents = await readConfigFile(readVariable(process.env, 'CONFIG_FILE'), process.cwd())
    return { config: readConfig(process.env, contents), extensions: extensionsOf(contents) }
  } catch (error) {
    if (error instanceof ConfigError) fail(error.message)
    throw error
  }
}

async function migrate(config: Config): Promise<void> {
  const db = await openDatabase(config)
  await db.migrate()
  process.stdout.write(`The schema is up to date: ${db.description}\n`)
  await db.close()
}

async function serve(config: Config, extensions: Extensions): Promise<void> {
  // A collector that stops reading, or a closed pipe, must neither take the gateway with it nor keep it waiting.
  const app = await buildApp(config, { ...extensions, logStream: createLogOutput(process.stdout) })
  const { server } = app
  process.stderr.on('error', () => undefined)

  closeWithGrace({ delay: config.drainMs + closeGraceMs, logger: false }, async ({ err, signal }) => {
    if (err !== undefined) server.log.error({ err }, 'an error that nobody caught ends the process')
    else server.log.info({ signal }, 'ending')
    await app.close()
  })
  app.ready.catch((error: Error) => {
    server.log.fatal({ err: error }, error.message)
    process.exit(1)
  })

  await listen(app, config)
}

async function listen({ server, description }: App, { listen: { port, host } }: Config): Promise<void> {
  const listenTextResolver = (address: string) => {
    const reachable = address.replace(/\[::\]|0\.0\.0\.0/, 'localhost')
    return `Verbatim listens on ${reachable} · ${description}`
  }
  try {
    await server.listen({ port, host, backlog: backlogMax, listenTextResolver })
  } catch (error) {
    // A machine without IPv6 cannot take the default address; every IPv4 address means the same there.
    if ((error as NodeJS.ErrnoException).code !== 'EAFNOSUPPORT' || host !== '::') throw error
    await server.listen({ port, host: '0.0.0.0', backlog: backlogMax, listenTextResolver })
  }
}

const [command] = process.argv.slice(2)
const { config, extensions } = await readConfigOrFail()
try {
  if (command === undefined) await serve(config, extensions)
  else if (command === 'migrate') await migrate(config)
  else fail(`There is no command ${command}. Known: migrate`)
} catch (error) {
  fail(error instanceof Error ? error.message : String(error))
}
