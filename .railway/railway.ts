/**
 * The gateway, its Postgres and its Redis on Railway: `railway config plan` shows what would change, `railway config apply` does
 * it. Evaluated by Railway's CLI, which brings the package `railway`; it is no dependency of this project, and this
 * file is not part of its type check. A service is managed by this file or by railway.json, never by both:
 * docs/deployment.md says which.
 */
import { defineRailway, postgres, preserve, project, redis, service } from 'railway/iac'

export default defineRailway(() => {
  const database = postgres('postgres')
  const log = redis('redis')

  const gateway = service('gateway', {
    build: { builder: 'DOCKERFILE', dockerfilePath: 'Dockerfile' },
    healthcheck: '/health/ready',
    healthcheckTimeout: 120,
    // Two: one takes over what the other one was making.
    replicas: 2,
    env: {
      DATABASE_URL: database.env.DATABASE_URL,
      REDIS_URL: log.env.REDIS_URL,
      // Where Railway's edge has been seen to come from; it documents no range. Without it all visitors share one budget.
      TRUST_PROXY: '100.64.0.0/10',
      // Longer than DRAIN_MS (25 s). Railway's default is 0: SIGKILL at once, in the middle of the replies.
      RAILWAY_DEPLOYMENT_DRAINING_SECONDS: '30',
      RAILWAY_DEPLOYMENT_OVERLAP_SECONDS: '10',
      // Keeps what was set in the dashboard or with `railway variable set`: this file never holds a secret.
      JWT_SECRET: preserve(),
      OPENAI_API_KEY: preserve(),
      ANTHROPIC_API_KEY: preserve(),
      GEMINI_API_KEY: preserve(),
    },
  })

  return project('verbatim', { resources: [database, log, gateway] })
})
