/**
 * What the README says works as pasted: its curl line is run by a shell, and its paths lead somewhere. The snippet for
 * the browser is run in one, in test/browser/readme.test.ts.
 */
import { execFile } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { promisify } from 'node:util'
import { test } from 'tap'
import { startGateway } from '../support/gateway.ts'

const root = new URL('../../', import.meta.url)
const readme = readFileSync(new URL('README.md', root), 'utf8')

test('the curl line of the README streams a reply to its end', async (t) => {
  const gateway = await startGateway(t, { env: { MODEL_BALANCED: 'demo:fast' } })
  const line = /^curl -N[^`]*/m.exec(readme)?.[0] ?? ''
  t.match(line, 'http://localhost:3000/api/v1/chat/stream')
  const { stdout } = await promisify(execFile)('bash', ['-c', line.replace('http://localhost:3000', gateway.url)])
  t.match(stdout, /^retry: 1000\nevent: run\ndata: \{.*\}\nid: 1-1\n\nevent: delta\n/)
  t.match(stdout, /event: done\ndata: \{"status":"completed".*\}\nid: 1-\d+\n\n$/)
})

test('every file that a document links to is there', (t) => {
  for (const name of [
    'README.md',
    'ARCHITECTURE.md',
    'CHANGELOG.md',
    'docs/protocol.md',
    'docs/promises.md',
    'docs/money.md',
    'docs/deployment.md',
    'docs/errors.md',
    'docs/models.md',
    'docs/responses.md',
  ]) {
    const base = new URL(name, root)
    const text = readFileSync(base, 'utf8')
    for (const [, target] of text.matchAll(/\]\((?!https?:|#)([^)#]+)[^)]*\)/g)) {
      t.ok(existsSync(new URL(target ?? '', base)), `${name} -> ${target}`)
    }
  }
  t.end()
})

test('the layout in ARCHITECTURE.md names only files and folders that are there', (t) => {
  const tree = /```\nsrc\/\n([\s\S]*?)```/.exec(readFileSync(new URL('ARCHITECTURE.md', root), 'utf8'))?.[1] ?? ''
  const names = [...tree.matchAll(/^ {2}(\S+)/gm)].map((match) => match[1] ?? '')
  t.ok(names.length > 10)
  for (const name of names) t.ok(existsSync(new URL(`src/${name}`, root)), name)
  t.end()
})
