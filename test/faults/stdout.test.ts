/**
 * A log that nobody reads: its reader has gone, or has stopped reading. Neither ends the gateway, and neither keeps a reply
 * or an answer waiting; what could not be written is counted, and the log says so when somebody reads again.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, constants, openSync, readSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Test, test } from 'tap'
import { begin, chunk, createGate, doneMarker, startFakeUpstream } from '../../scripts/fake-upstream.ts'
import { createClient, isDelta, shownText } from '../support/client.ts'
import { inMemory } from '../support/database.ts'
import { createFolder, untilReady } from '../support/gateway.ts'
import { openSocket } from '../support/raw.ts'

const startMs = 30_000
const lookMs = 20
/** More lines than a pipe of 64 KiB and the gateway's own buffer hold. */
const requests = 8000
/** What a request may take on a machine that runs other tests. */
const answerMsMax = 5000
const exitMsMax = 10_000

/** A pipe as a shell makes them; `read` takes what is in it without waiting. */
async function openPipe(t: Test) {
  const path = join(await createFolder(t), 'pipe')
  execFileSync('mkfifo', [path])
  const reader = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK)
  const writer = openSync(path, constants.O_WRONLY)
  const buffer = Buffer.alloc(64 * 1024)
  let text = ''
  let open = true
  const close = () => {
    if (open) closeSync(reader)
    open = false
  }
  t.teardown(close)
  return {
    writer,
    close,
    read(): string {
      for (;;) {
        try {
          const count = readSync(reader, buffer)
          if (count === 0) return text
          text += buffer.toString('utf8', 0, count)
        } catch {
          return text // EAGAIN: it is empty.
        }
      }
    },
  }
}

async function start(t: Test, env: Record<string, string>) {
  const output = await openPipe(t)
  const errors = await openPipe(t)
  const child: ChildProcess = spawn(process.execPath, ['src/main.ts'], {
    cwd: new URL('../..', import.meta.url).pathname,
    env: { PATH: process.env.PATH ?? '', PORT: '0', HOST: '127.0.0.1', DRAIN_MS: '0', DATA_DIR: inMemory, ...env },
    stdio: ['ignore', output.writer, errors.writer],
  })
  closeSync(output.writer)
  closeSync(errors.writer)
  const exited = once(child, 'exit').then(([code, signal]) => code ?? signal)
  t.teardown(async () => {
    child.kill('SIGKILL')
    await exited
  })
  for (const giveUpAt = Date.now() + startMs; Date.now() < giveUpAt; await sleep(lookMs)) {
    const url = /Verbatim listens on (http:\/\/[^\s"]+)/.exec(output.read())?.[1]
    if (url === undefined) continue
    await untilReady(url)
    return { url, child, exited, output, errors }
  }
  throw new Error(`no start line; it said ${output.read()} ${errors.read()}`)
}

/** Fills the log, and goes on asking something else meanwhile. @returns the slowest answer to that */
async function floodLog(url: string): Promise<number> {
  const client = createClient(url)
  const socket = openSocket(url)
  let over = false
  const flooded = socket.closed.then((text) => {
    over = true
    return text.split('HTTP/1.1 200 OK').length - 1
  })
  // One behind the other on one connection: answers cost little then, and lines as much as ever.
  socket.write('GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n'.repeat(requests - 1))
  socket.write('GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n')
  let slowest = 0
  while (!over) {
    const from = performance.now()
    const { status } = await client.get('/api/v1/sessions')
    if (status !== 200) throw new Error(`status ${status}`)
    slowest = Math.max(slowest, performance.now() - from)
  }
  const answered = await flooded
  if (answered !== requests) throw new Error(`${answered} of ${requests} answered`)
  return slowest
}

for (const fate of ['gone', 'asleep'] as const) {
  test(`row 74: the reader of the log is ${fate}, and the gateway goes on`, async (t) => {
    const gate = createGate()
    const upstream = await startFakeUpstream({
      script: async function* () {
        yield* begin({ text: 'Before' })
        await gate.opened
        yield chunk({ content: ' and after' }, 'stop')
        yield doneMarker
      },
    })
    t.teardown(() => upstream.close())
    const gateway = await start(t, { OPENAI_BASE_URL: upstream.url, LOG_LEVEL: 'debug' })
    const client = createClient(gateway.url)
    const stream = await client.send({ message: 'Hello' })
    await stream.until(isDelta)
    if (fate === 'gone') {
      gateway.output.close()
      gateway.errors.close()
    }
    const slowestMs = await floodLog(gateway.url)
    t.ok(slowestMs < answerMsMax, `the slowest answer took ${Math.round(slowestMs)} ms`)
    gate.open()
    t.equal(await stream.ended, 'clean')
    t.equal(shownText(stream.received), 'Before and after')

    if (fate === 'asleep') {
      const lines = async () => {
        for (;;) {
          const text = gateway.output.read()
          if (text.includes('"dropped":'))
            return text
              .trimEnd()
              .split('\n')
              .map((line) => JSON.parse(line))
          await sleep(lookMs)
        }
      }
      const told = await lines()
      const written = told.filter(({ message }) => message === 'request').length
      const dropped = told.reduce((sum, line) => sum + (line.dropped ?? 0), 0)
      t.ok(written > 0 && dropped > 0)
      t.ok(written + dropped >= requests, 'every line was written or counted')
      t.comment(
        `${requests} requests, slowest ${Math.round(slowestMs)} ms; ${written} lines written, ${dropped} dropped`,
      )
    } else t.comment(`${requests} requests, slowest ${Math.round(slowestMs)} ms`)

    const termAt = performance.now()
    gateway.child.kill('SIGTERM')
    t.equal(await gateway.exited, 0)
    t.ok(performance.now() - termAt < exitMsMax, 'and it ends when it is told to')
  })
}

test('row 74: npm start | head -1', async (t) => {
  const child = spawn('sh', ['-c', `"${process.execPath}" src/main.ts | head -1`], {
    cwd: new URL('../..', import.meta.url).pathname,
    env: {
      PATH: process.env.PATH ?? '',
      // A group of its own: by this the test command finds it when the test could not end it.
      TEST_RUN: process.env.TEST_RUN ?? '',
      PORT: '0',
      HOST: '127.0.0.1',
      DRAIN_MS: '0',
      DATA_DIR: inMemory,
    },
    stdio: ['ignore', 'pipe', 'inherit'],
    detached: true,
  })
  const exited = once(child, 'exit')
  const kill = () => {
    try {
      process.kill(-(child.pid ?? 0), 'SIGKILL')
    } catch {
      // ESRCH: all of it has ended.
    }
  }
  t.teardown(async () => {
    kill()
    await exited
  })
  let text = ''
  child.stdout.on('data', (bytes) => {
    text += bytes
  })
  while (!text.includes('\n')) await sleep(lookMs)
  const url = /Verbatim listens on (http:\/\/[^\s"]+)/.exec(text)?.[1] ?? ''
  const client = createClient(url)
  for (let n = 0; n < 20; n += 1) t.equal((await client.get('/api/v1/sessions')).status, 200)
  t.equal(text.trim().split('\n').length, 1)
})
