/**
 * Keys of the gateway, for clients that cannot get a JWT: made, listed and revoked. It works on the database that the
 * gateway's own variables name (and CONFIG_FILE); the embedded one only while no gateway has it open.
 *
 *     node scripts/keys.ts create --user <sub> [--name <what for>] [--expires <ISO 8601 time>]
 *     node scripts/keys.ts list [--user <sub>]
 *     node scripts/keys.ts revoke <id>
 *
 * A key is printed once, by itself on the last line of `create`; nobody can read it again. It ends with 1 when nothing was
 * done, with a sentence that says why.
 */
import { parseArgs } from 'node:util'
import { openDatabase } from '../src/backends.ts'
import { readConfig } from '../src/config.ts'
import { readConfigFile } from '../src/config-file.ts'
import { readVariable } from '../src/config-values.ts'
import { isSubject, subjectUnitsMax } from '../src/http/claims.ts'
import { uuidPattern } from '../src/http/text.ts'
import { type ApiKey, createApiKeys, type NewApiKey } from '../src/sessions/api-keys.ts'

const nameUnitsMax = 200
const usage = 'usage: keys create --user <sub> [--name <text>] [--expires <time>] | list [--user <sub>] | revoke <id>'

class Refusal extends Error {}

function readArguments() {
  const options = { user: { type: 'string' }, name: { type: 'string' }, expires: { type: 'string' } } as const
  try {
    return parseArgs({ allowPositionals: true, options })
  } catch (error) {
    throw new Refusal(`${(error as Error).message}\n${usage}`)
  }
}

function readNewKey({ user, name = '', expires }: { user?: string; name?: string; expires?: string }): NewApiKey {
  if (user === undefined) throw new Refusal(usage)
  if (!isSubject(user)) {
    throw new Refusal(`--user must be the sub of a user: 1 to ${subjectUnitsMax} characters.`)
  }
  if (name.length > nameUnitsMax) throw new Refusal(`--name may have ${nameUnitsMax} characters.`)
  const at = expires === undefined ? undefined : new Date(expires)
  if (at !== undefined && !(at.getTime() > Date.now())) {
    throw new Refusal('--expires must be a time to come, such as 2030-01-31 or 2030-01-31T12:00:00Z.')
  }
  return { subject: user, name, expiresAt: at?.toISOString() }
}

const line = ({ id, subject, name, created_at, expires_at, revoked_at, last_used_at }: ApiKey): string =>
  [
    id,
    subject,
    name === '' ? '-' : name,
    `created ${created_at}`,
    `expires ${expires_at ?? 'never'}`,
    `last used ${last_used_at ?? 'never'}`,
    ...(revoked_at === null ? [] : [`revoked ${revoked_at}`]),
  ].join('\t')

async function run(): Promise<readonly string[]> {
  const { values, positionals } = readArguments()
  const [command, id] = positionals
  if (command === 'revoke' && !uuidPattern.test(id ?? ''))
    throw new Refusal(`revoke takes the id of a key, as list shows it.\n${usage}`)
  if (command !== 'create' && command !== 'list' && command !== 'revoke') throw new Refusal(usage)
  const wanted = command === 'create' ? readNewKey(values) : undefined
  const config = readConfig(process.env, await readConfigFile(readVariable(process.env, 'CONFIG_FILE'), process.cwd()))
  const db = await openDatabase(config)
  try {
    await db.migrate()
    const keys = createApiKeys(db)
    if (wanted !== undefined) {
      const { key, stored } = await keys.createKey(wanted)
      return [line(stored), 'This is the key. It is shown this once:', key]
    }
    if (command === 'list') {
      const listed = await keys.listKeys(values.user)
      return listed.length === 0 ? ['There are no keys.'] : listed.map(line)
    }
    const revoked = await keys.revokeKey(id as string)
    if (revoked === undefined) throw new Refusal('There is no such key, or it was revoked before.')
    return [line(revoked)]
  } finally {
    await db.close()
  }
}

try {
  process.stdout.write(`${(await run()).join('\n')}\n`)
} catch (error) {
  // A sentence for whoever has typed it: a refusal, a variable that cannot be right, a folder that is locked, no database.
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`)
  process.exitCode = 1
}
