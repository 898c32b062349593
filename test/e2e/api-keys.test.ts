/** Keys of the gateway: made and revoked by the script, shown once, accepted wherever a JWT is, and in no log. */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { test } from 'tap'
import { sql } from '../../src/db/drizzle.ts'
import { createApiKeys } from '../../src/sessions/api-keys.ts'
import { createClient } from '../support/client.ts'
import { databases } from '../support/database.ts'
import { createDataFolder, databaseEnv, startGateway } from '../support/gateway.ts'
import { inSeconds, makeToken } from '../support/tokens.ts'

const secret = 'a secret that is long enough for HS256 here'
const bearer = (key: string) => ({ authorization: `Bearer ${key}` })

async function runKeys(env: Readonly<Record<string, string>>, ...args: readonly string[]) {
  const run = promisify(execFile)(process.execPath, ['scripts/keys.ts', ...args], {
    cwd: new URL('../..', import.meta.url).pathname,
    env: { PATH: process.env.PATH ?? '', ...env },
  })
  return run.then(
    ({ stdout }) => ({ code: 0, lines: stdout.trimEnd().split('\n') }),
    (error: { code: number; stderr: string }) => ({ code: error.code, lines: error.stderr.trimEnd().split('\n') }),
  )
}

for (const database of databases()) {
  test(`on ${database}, a key is its user until it is revoked or has expired`, async (t) => {
    const lines: string[] = []
    const gateway = await startGateway(t, {
      database,
      env: { JWT_SECRET: secret, LOG_LEVEL: 'trace' },
      logStream: { write: (line) => void lines.push(line) },
    })
    const keys = createApiKeys(gateway.app.db)
    const { key, stored } = await keys.createKey({ subject: 'ada', name: 'laptop' })
    t.match(key, /^vk_[A-Za-z0-9_-]{43}$/)
    const ada = createClient(gateway.url, bearer(key))

    const { body: session } = await ada.post('/api/v1/sessions', {})
    const byToken = createClient(gateway.url, bearer(makeToken(secret, { sub: 'ada', exp: inSeconds(60) })))
    t.equal((await byToken.get(`/api/v1/sessions/${session.id}`)).status, 200, 'who comes with a JWT is the same user')
    t.equal(session.user_id, 'ada')

    const [used] = await keys.listKeys('ada')
    t.ok(used?.last_used_at, 'when it was used is known')
    await ada.get('/api/v1/sessions')
    t.equal((await keys.listKeys('ada'))[0]?.last_used_at, used?.last_used_at, 'and not written again at once')

    const other = `vk_${'A'.repeat(43)}`
    for (const wrong of [other, `${key}x`, key.slice(0, -1), 'vk_', key.toUpperCase()]) {
      const { status, headers } = await createClient(gateway.url, bearer(wrong)).get('/api/v1/sessions')
      t.equal(status, 401)
      t.match(headers.get('www-authenticate'), /invalid_token/)
    }
    const expired = await keys.createKey({ subject: 'ada', expiresAt: '2030-01-01T00:00:00Z' })
    t.equal((await createClient(gateway.url, bearer(expired.key)).get('/api/v1/sessions')).status, 200)
    await gateway.app.db.rows(sql`
      update api_keys set expires_at = now() - interval '1 second' where id = ${expired.stored.id}::uuid`)
    t.equal((await createClient(gateway.url, bearer(expired.key)).get('/api/v1/sessions')).status, 401)
    t.ok(await keys.revokeKey(stored.id))
    t.equal((await ada.get('/api/v1/sessions')).status, 401, 'dead at once')
    t.equal(await keys.revokeKey(stored.id), undefined)

    const [row] = await gateway.app.db.rows<{ text: string }>(sql`select json_agg(k)::text as text from api_keys k`)
    for (const text of [row?.text ?? '', lines.join('')]) {
      t.ok(text.length > 0)
      t.notOk(text.includes(key) || text.includes(key.slice(3, 20)), 'neither the database nor a log has the key')
    }
  })
}

test('the script makes, lists and revokes keys, and says why not', async (t) => {
  const env =
    databases().length > 1
      ? await databaseEnv(t, 'postgres')
      : { DATA_DIR: await createDataFolder(t), LOG_LEVEL: 'silent' }
  const made = await runKeys(env, 'create', '--user', 'ada', '--name', 'laptop', '--expires', '2090-01-01')
  t.equal(made.code, 0)
  const key = made.lines.at(-1) as string
  t.match(key, /^vk_/)
  const listed = await runKeys(env, 'list', '--user', 'ada')
  t.equal(listed.lines.length, 1)
  t.match(listed.lines[0], /\tada\tlaptop\t.*expires 2090-01-01T00:00:00.*last used never/)
  t.notOk(listed.lines.join().includes(key))
  const id = listed.lines[0]?.split('\t')[0] as string
  t.match((await runKeys(env, 'revoke', id)).lines[0], /revoked /)
  t.match(await runKeys(env, 'revoke', id), { code: 1, lines: [/revoked before/] })
})

test('on the embedded database the script does not run beside the gateway, and says so', async (t) => {
  const DATA_DIR = await createDataFolder(t)
  await startGateway(t, { env: { DATA_DIR } })
  const { code, lines } = await runKeys({ DATA_DIR }, 'create', '--user', 'ada')
  t.equal(code, 1)
  t.match(lines[0], /Another process has the data folder .* open/)
})
