/** The edge of the gateway without the rest: one route, that says who asks. No database, and so as many as a test likes. */
import type { AddressInfo } from 'node:net'
import type { Test } from 'tap'
import { readConfig } from '../../src/config.ts'
import { registerCors } from '../../src/http/cors.ts'
import { identity } from '../../src/http/identity.ts'
import { type KeySetOptions, openKeySet } from '../../src/http/keys.ts'
import { createServer } from '../../src/http/server.ts'

export interface Edge {
  /** Without a slash at its end; `/who` answers the owner. */
  readonly url: string
  /** Issuers and subjects of the users that came. */
  readonly noted: readonly (readonly [issuer: string, subject: string])[]
}

/** @param env environment variables, all of them */
export async function startEdge(
  t: Pick<Test, 'teardown'>,
  env: Readonly<Record<string, string>>,
  keyOptions: Omit<Partial<KeySetOptions>, 'url'> = {},
): Promise<Edge> {
  const { auth, corsOrigins } = readConfig(env)
  const server = createServer({ logLevel: 'silent' })
  const keys =
    auth.jwksUrl === undefined ? undefined : openKeySet({ url: auth.jwksUrl, logger: server.log, ...keyOptions })
  t.teardown(async () => {
    await server.close()
    await keys?.close()
  })
  const noted: [issuer: string, subject: string][] = []
  await registerCors(server, corsOrigins)
  await server.register(async (api) => {
    await api.register(identity, {
      auth,
      corsOrigins,
      readTicket: async () => undefined,
      readApiKey: async () => undefined,
      keys,
      noteUser: async (issuer, subject) => void noted.push([issuer, subject]),
      admitVisitor: async () => undefined,
    })
    api.get('/who', async (request) => request.owner)
    api.post('/who', async (request) => request.owner)
  })
  await server.listen({ port: 0, host: '127.0.0.1' })
  return { url: `http://127.0.0.1:${(server.server.address() as AddressInfo).port}`, noted }
}
