/**
 * The chaos command itself, in short: it plays its mishaps, judges, says so, and leaves nothing behind. What it finds in
 * minutes or hours is not this test's business; that it finds anything at all is shown in checker.test.ts.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { test } from 'tap'
import { createFolder } from '../support/gateway.ts'
import { skipFaults } from '../support/limits.ts'

const skip = skipFaults()
const minutes = '0.25'

test('a quarter of a minute of chaos breaks no promise, and leaves nothing behind', { skip }, async (t) => {
  const root = join(import.meta.dirname, '../..')
  const args = [join(root, 'scripts/chaos.ts'), '--minutes', minutes, '--seed', '6', '--gateways', '2']
  const folder = await createFolder(t)
  // Postgres does not run as root, and has to get to its folder in there.
  await chmod(folder, 0o755)
  const env = { ...process.env, TMPDIR: folder }
  const child = spawn(process.execPath, args, { cwd: root, env, stdio: ['ignore', 'pipe', 'inherit'] })
  t.teardown(() => void child.kill('SIGTERM'))
  const exit = once(child, 'exit')
  const said = await text(child.stdout)
  const [code] = await exit
  for (const line of said.split('\n')) t.comment(line)
  t.match(said, /^0 violations$/m)
  t.equal(code, 0)
  t.match(said, /^acknowledged +\d+$/m)
  t.same(await readdir(folder), [], 'nothing is left')
})
