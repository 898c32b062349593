/**
 * Numbers for Prometheus at /metrics, about this process. It is open to whoever reaches the port, so a label is a route, a
 * method, a class of status or a fixed word, and never an owner, an id or an address.
 *
 * The registry belongs to the app, so that two apps in one process count apart. Nothing runs in the background: what can
 * be looked at is looked at when it is asked for. The counts are lost with the process, which Prometheus expects.
 */
// For the type of a route's `hide` and `tags`.

import { createRequire } from 'node:module'
import type {} from '@fastify/swagger'
import { Type } from 'typebox'
import { type Answer, answerOf } from './answer.ts'
import type { Server } from './server.ts'

// The three files by their names: the package as a whole brings along collectors, a gateway to push to and OpenTelemetry,
// eighty modules that each start would load.
const require = createRequire(import.meta.url)
const Counter: typeof import('prom-client').Counter = require('prom-client/lib/counter.js')
const Gauge: typeof import('prom-client').Gauge = require('prom-client/lib/gauge.js')
const Registry: typeof import('prom-client').Registry = require('prom-client/lib/registry.js')

export type Cache = 'history' | 'sessions'
export type CacheResult = 'hit' | 'miss' | 'stale' | 'error'

export interface Metrics {
  readonly registry: InstanceType<typeof Registry>
  countCacheRead(cache: Cache, result: CacheResult): void
  countRateLimited(budget: string): void
  countRunRefused(): void
  countRequest(answer: Answer): void
  /** @param read called whenever the number is asked for */
  watch(name: string, help: string, read: () => number): void
}

export function createMetrics(): Metrics {
  const registry = new Registry()
  const registers = [registry]
  const requests = new Counter({
    name: 'verbatim_requests_total',
    help: 'Requests answered. A stream counts when it ends.',
    labelNames: ['method', 'route', 'status'],
    registers,
  })
  const rateLimited = new Counter({
    name: 'verbatim_rate_limited_total',
    help: 'Requests refused because a budget was spent.',
    labelNames: ['budget'],
    registers,
  })
  const runsRefused = new Counter({
    name: 'verbatim_runs_refused_total',
    help: 'New runs refused because this process was late.',
    registers,
  })
  const cacheReads = {
    history: new Counter({
      name: 'verbatim_history_cache_reads_total',
      help: 'Histories asked for in Redis.',
      labelNames: ['result'],
      registers,
    }),
    sessions: new Counter({
      name: 'verbatim_sessions_cache_reads_total',
      help: 'Live states of sessions asked for in Redis.',
      labelNames: ['result'],
      registers,
    }),
  }
  return {
    registry,
    countCacheRead: (cache, result) => cacheReads[cache].inc({ result }),
    countRateLimited: (budget) => rateLimited.inc({ budget }),
    countRunRefused: () => runsRefused.inc(),
    countRequest: ({ method, route, status }) =>
      requests.inc({ method, route, status: `${Math.floor(status / 100)}xx` }),
    watch(name, help, read) {
      new Gauge({
        name,
        help,
        registers,
        collect() {
          this.set(read())
        },
      })
    },
  }
}

/** Counts what the app answers, and serves the numbers. */
export function registerMetrics(app: Server, metrics: Metrics): void {
  app.addHook('onResponse', async (request, reply) => {
    metrics.countRequest(answerOf(request, reply))
  })
  app.get(
    '/metrics',
    {
      schema: {
        tags: ['health'],
        security: [],
        response: {
          200: {
            description: 'Numbers of this process, in the text format of Prometheus',
            content: { 'text/plain': { schema: Type.String() } },
          },
        },
      },
    },
    async (_request, reply) => {
      const text = await metrics.registry.metrics()
      return reply.type(metrics.registry.contentType).header('Cache-Control', 'no-store').serializer(String).send(text)
    },
  )
}
