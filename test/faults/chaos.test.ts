/**
 * The chaos command itself, in short: it plays its mishaps, judges, says so, and leaves nothing behind. What it finds in
 * minutes or hours is not this test's business; that it finds anything at all is shown in checker.test.ts.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdir } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { test } from 'tap'
import { skipFaults } from '../support/limits.ts'

const skip = skipFaults()
const minutes = '0.25'

test('a quarter of a minute of chaos breaks no promise, and leaves nothing behind', { skip }, async (t) => {
  const root = join(import.meta.dirname, '../..')
  const args = [join(root, 'scripts/chaos.ts'), '--minutes', minutes, '--seed', '5', '--gateways', '2']
  const child = spawn(process.execPath, args, { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] })
  t.teardown(() => void child.kill('SIGTERM'))
  const exit = once(child, 'exit')
  const said = await text(child.stdout)
  const [code] = await exit
  for (const line of said.split('\n')) t.comment(line)
  t.match(said, /^0 violations$/m)
  t.equal(code, 0)
  const folders = await readdir(tmpdir())
  t.notOk(said.includes('the history is in'))
  t.match(said, /^acknowledged +\d+$/m)
  t.ok(
    folders.every((name) => !said.includes(name) || name === ''),
    'no folder that it named is left',
  )
})
