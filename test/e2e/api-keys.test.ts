/** Keys of the gateway: made and revoked by the script, shown once, accepted wherever a JWT is, and in no log. */
import { execFile } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { promisify } from 'node:util'
import { test } from 'tap'
import { sql } from '../../src/db/drizzle.ts'
import { createApiKeys } from '../../src/sessions/api-keys.ts'
import { createClient } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { createFolder, databaseEnv, startGateway } from '../support/gateway.ts'
import { openStore } from '../support/runs.ts'
import { inSeconds, makeToken } from '../support/tokens.ts'

const secret = 'a secret that is long enough for HS256 here'
const bearer = (key: string) => ({ authorization: `Bearer ${key}` })

async function runKeys(env: Readonly<Record<string, string>>, ...args: readonly string[]) {
  const run = promisify(execFile)(process.execPath, ['scripts/keys.ts', ...args], {
    cwd: new URL('../..', import.meta.url).pathname,
    env: { PATH: process.env.PATH ?? '', NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE ?? '', ...env },
  })
  return run.then(
    ({ stdout }) => ({ code: 0, lines: stdout.trimEnd().split('\n') }),
    (error: { code: number; stderr: string }) => ({ code: error.code, lines: error.stderr.trimEnd().split('\n') }),
  )
}

for (const kind of databases()) {
  test(`on ${kind}, a key is its user until it is revoked or has expired`, async (t) => {
    const { db } = await openStore(t, kind)
    const keys = createApiKeys(db)
    const { key, stored } = await keys.createKey({ subject: 'ada', name: 'laptop' })
    t.match(key, /^vk_[A-Za-z0-9_-]{43}$/)
    t.equal(await keys.readSubject(key), 'ada')
    const [used] = await keys.listKeys('ada')
    t.ok(used?.last_used_at, 'when it was used is known')
    await keys.readSubject(key)
    t.equal((await keys.listKeys('ada'))[0]?.last_used_at, used?.last_used_at, 'and not written again at once')
    await db.rows(sql`update api_keys set last_used_at = last_used_at - interval '6 minutes'`)
    await keys.readSubject(key)
    t.ok(((await keys.listKeys('ada'))[0]?.last_used_at ?? '') >= (used?.last_used_at ?? 'z'), 'but later')

    for (const wrong of [`vk_${'A'.repeat(43)}`, `${key}x`, key.slice(0, -1), 'vk_', key.toUpperCase()]) {
      t.equal(await keys.readSubject(wrong), undefined)
    }
    const passing = await keys.createKey({ subject: 'ada', expiresAt: '2090-01-01T00:00:00Z' })
    t.equal(await keys.readSubject(passing.key), 'ada')
    await db.rows(sql`
      update api_keys set expires_at = now() - interval '1 second' where id = ${passing.stored.id}::uuid`)
    t.equal(await keys.readSubject(passing.key), undefined, 'it has expired')
    t.ok((await keys.revokeKey(stored.id))?.revoked_at)
    t.equal(await keys.readSubject(key), undefined, 'it is revoked')
    t.equal(await keys.revokeKey(stored.id), undefined)
    t.equal(await keys.revokeKey(randomUUID()), undefined)
    t.equal((await keys.listKeys(undefined)).length, 2, 'and both can still be listed')
    const [row] = await db.rows<{ text: string }>(sql`select json_agg(k)::text as text from api_keys k`)
    t.notOk(row?.text.includes(key.slice(3, 20)), 'the database has nothing of the key itself')
  })
}

test('a key is accepted wherever a JWT is, is the same user, and stands in no log', async (t) => {
  const lines: string[] = []
  const gateway = await startGateway(t, {
    env: { JWT_SECRET: secret, LOG_LEVEL: 'trace' },
    logStream: { write: (line) => void lines.push(line) },
  })
  const keys = createApiKeys(gateway.app.db)
  const { key, stored } = await keys.createKey({ subject: 'ada' })
  const ada = createClient(gateway.url, bearer(key))
  const { body: session } = await ada.post('/api/v1/sessions', {})
  t.equal(session.user_id, 'ada')
  const byToken = createClient(gateway.url, bearer(makeToken(secret, { sub: 'ada', exp: inSeconds(60) })))
  t.equal((await byToken.get(`/api/v1/sessions/${session.id}`)).status, 200)

  const visitor = createClient(gateway.url)
  await visitor.post('/api/v1/sessions', {})
  const claimed = await ada.post('/api/v1/sessions/claim', {}, visitor.identity)
  t.strictSame(claimed.body, { claimed: 1 }, 'and may claim what a visitor has')

  await keys.revokeKey(stored.id)
  for (const path of ['/api/v1/sessions', '/v1/models']) {
    const { status, headers } = await ada.get(path)
    t.equal(status, 401)
    t.match(headers.get('www-authenticate'), /invalid_token/)
    t.equal(headers.get('x-visitor-token'), null, 'nobody becomes a visitor with a key that is dead')
  }
  const last = await keys.createKey({ subject: 'ada' })
  const others = await keys.createKey({ subject: 'bea' })
  t.equal((await createClient(gateway.url, bearer(last.key)).delete('/api/v1/me')).status, 204)
  t.strictSame(
    (await keys.listKeys(undefined)).map(({ id }) => id),
    [others.stored.id],
    'who has all erased has no keys left',
  )
  t.ok(lines.length > 0)
  t.notOk(lines.join('').includes(key.slice(3, 20)))
})

test('the script makes, lists and revokes keys, and says why not', async (t) => {
  const dataDir = await createFolder(t)
  const env = databases().length === 1 ? { DATA_DIR: dataDir } : await databaseEnv(t, 'postgres')
  const made = await runKeys(env, 'create', '--user', 'ada', '--name', 'laptop', '--expires', '2090-01-01')
  t.equal(made.code, 0)
  const key = made.lines.at(-1) as string
  t.match(key, /^vk_[A-Za-z0-9_-]{43}$/)
  const listed = await runKeys(env, 'list', '--user', 'ada')
  t.match(listed.lines, [/\tada\tlaptop\t.*expires 2090-01-01T00:00:00.*last used never/])
  t.notOk(listed.lines.join().includes(key))
  const id = listed.lines[0]?.split('\t')[0] as string
  t.match((await runKeys(env, 'revoke', id)).lines, [/revoked /])

  // As a gateway does that has it open.
  const lock = new DatabaseSync(join(dataDir, 'lock'))
  t.teardown(() => lock.close())
  lock.exec('pragma locking_mode = exclusive; begin exclusive')
  const locked = await runKeys({ DATA_DIR: dataDir }, 'create', '--user', 'ada')
  t.match(locked, { code: 1, lines: [/Another process has the data folder .* open/] })
})
