/**
 * `npm run fuzz -- [--requests=20000] [--seed=N] [--only=INDEX] [--url=http://localhost:3000]`: sends what clients should
 * not send, made from /openapi.json, and ends with 1 when the gateway fails at any of it (test/support/fuzz.ts says what
 * that means). Without a URL it starts a gateway as a process of its own, with a provider that answers at once, on an
 * embedded database that is not kept, or on the one that DATABASE_URL names: what it makes there stays.
 *
 * The gateway of a URL needs to have no limits (RATE_LIMIT_RUNS=0 and so on), else most of what it is asked is refused.
 * A failure is printed with the command that repeats it. An interrupt ends everything.
 */
import { randomInt } from 'node:crypto'
import { parseArgs } from 'node:util'
import { describeReport, fuzz, sayQuickly } from '../test/support/fuzz.ts'
import { spawnGateway, untilReady } from '../test/support/gateway.ts'
import { inSeconds, makeToken } from '../test/support/tokens.ts'
import { startFakeUpstream } from './fake-upstream.ts'

const help = 'Usage: npm run fuzz -- [--requests=20000] [--seed=N] [--only=INDEX] [--url=http://localhost:3000]\n'
const say = (line: string): void => void process.stdout.write(`${line}\n`)
const secret = 'a secret that only the fuzzer and its gateway know'

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      requests: { type: 'string', default: '20000' },
      seed: { type: 'string' },
      only: { type: 'string' },
      url: { type: 'string' },
      help: { type: 'boolean', short: 'h', default: false },
    },
  })
  const seed = Number(values.seed ?? randomInt(2 ** 31))
  const only = values.only === undefined ? undefined : Number(values.only)
  const requests = Math.max(Number(values.requests), (only ?? 0) + 1)
  if (values.help || !Number.isSafeInteger(seed) || !(requests > 0)) {
    process.stdout.write(help)
    return values.help ? 0 : 1
  }

  const endings: (() => unknown)[] = []
  const interrupt = new AbortController()
  process.once('SIGINT', () => interrupt.abort()).once('SIGTERM', () => interrupt.abort())
  try {
    const url = values.url ?? (await startOwn((end) => endings.push(end), interrupt))
    say(`fuzzing ${url} with ${requests} requests, seed ${seed}`)
    const startedAt = performance.now()
    const report = await fuzz({
      url,
      requests,
      seed,
      ...(only === undefined ? {} : { only }),
      ...(values.url === undefined ? { userToken: makeToken(secret, { sub: 'fuzzer', exp: inSeconds(7200) }) } : {}),
      signal: interrupt.signal,
      onFailure({ index, reason, request, answer }) {
        say(`FAIL ${reason}\n  sent ${request}\n  got  ${answer}`)
        say(`  again: npm run fuzz -- --seed=${seed} --only=${index}${values.url === undefined ? '' : ` --url=${url}`}`)
      },
    })
    say(`${describeReport(report)}; ${Math.round((performance.now() - startedAt) / 1000)} s`)
    const isWell = await isReady(url)
    if (!isWell) say('FAIL the gateway is not ready afterwards')
    return report.failures.length === 0 && isWell && !interrupt.signal.aborted ? 0 : 1
  } catch (error) {
    say(`FAIL the gateway cannot be asked any more: ${error instanceof Error ? error.message : String(error)}`)
    return 1
  } finally {
    for (const end of endings.reverse()) await end()
  }
}

async function isReady(url: string): Promise<boolean> {
  return (await fetch(`${url}/health/ready`)).ok
}

/** @param died is aborted when the gateway ends by itself */
async function startOwn(teardown: (end: () => unknown) => void, died: AbortController): Promise<string> {
  const upstream = await startFakeUpstream({ script: sayQuickly })
  teardown(() => upstream.close())
  const { DATABASE_URL } = process.env
  const gateway = await spawnGateway(
    { teardown },
    {
      ...(DATABASE_URL === undefined ? { DATA_DIR: 'memory:' } : { DATABASE_URL }),
      OPENAI_BASE_URL: upstream.url,
      JWT_SECRET: secret,
    },
  )
  void gateway.exited.then(() => died.abort())
  await untilReady(gateway.url)
  // Nothing that a client sends is worth a line at this level.
  teardown(() => {
    for (const line of gateway.lines.filter((line) => line.includes('"level":"error"')).slice(0, 20)) say(line)
  })
  return gateway.url
}

process.exitCode = await main()
