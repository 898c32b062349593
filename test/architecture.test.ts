/**
 * The rules of the house hold for the tree, and each check notices a made-up file that breaks its rule. A check that
 * cannot fail would say nothing.
 */
import { globSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import {
  checkBackends,
  checkContents,
  checkCycles,
  checkImports,
  checkLockfile,
  checkTest,
  readImports,
  type SourceFile,
  type Violations,
} from './support/architecture.ts'
import { readSource } from './support/source-text.ts'

const root = join(import.meta.dirname, '..')

function readTree(pattern: string): readonly SourceFile[] {
  return globSync(pattern, { cwd: root })
    .map((path) => path.replaceAll('\\', '/'))
    .toSorted()
    .map((path) => ({ path, source: readFileSync(join(root, path), 'utf8') }))
}

const src = readTree('src/**/*.ts')
const examples = readTree('examples/**/*.ts')
const tests = [...readTree('test/**/*.ts'), ...readTree('scripts/**/*.ts')]

t.test('the tree keeps the rules', async (t) => {
  t.ok(src.length > 0, 'there is a tree')
  t.strictSame(src.flatMap(checkImports), [], 'who may import whom')
  t.strictSame(src.flatMap(checkBackends), [], 'only backends.ts knows both databases')
  t.strictSame(checkCycles(src), [], 'no import cycles')
  t.strictSame(src.flatMap(checkContents), [], 'no any, no module-level state, no process, no swallowed error')
  t.ok(examples.length > 0, 'there are examples')
  t.strictSame(examples.flatMap(checkContents), [], 'the examples show no any, no module-level state, and so on')
  t.strictSame(tests.flatMap(checkTest), [], 'no test narrows the run or skips without a reason')
  t.strictSame(checkLockfile(readFileSync(join(root, 'package-lock.json'), 'utf8')), [], 'no download host')
})

t.test('an import that the table does not allow is noticed', async (t) => {
  const refused: readonly (readonly [path: string, line: string])[] = [
    ['src/log/memory.ts', `import { x } from '../db/schema.ts'`],
    ['src/log/memory.ts', `import { readConfig } from '../config.ts'`],
    ['src/db/postgres.ts', `import type { X } from '../log/event.ts'`],
    ['src/http/sse.ts', `import { X } from '../runs/run.ts'`],
    ['src/http/sse.ts', `export { X } from '../sessions/store.ts'`],
    ['src/http/sse.ts', `const x = await import('../sessions/store.ts')`],
    ['src/upstream/openai.ts', `import { Log } from '../log/log.ts'`],
    ['src/upstream/openai.ts', `import type { Config } from '../config.ts'`],
    ['src/sessions/store.ts', `import { X } from '../runs/model.ts'`],
    ['src/runs/run.ts', `import { X } from '../surfaces/native.ts'`],
    ['src/runs/run.ts', `import { X } from '../backends.ts'`],
    ['src/surfaces/native.ts', `import { X } from '../http/sse.ts'`],
    ['src/surfaces/native-routes.ts', `import { X } from '../db/schema.ts'`],
    ['src/modules/audit/index.ts', `import { X } from '../archive/index.ts'`],
    ['src/modules/audit/index.ts', `import { X } from '../../app.ts'`],
    ['src/modules/audit/index.ts', `import { X } from '../../backends.ts'`],
    ['src/client/client.ts', `import { X } from '../errors.ts'`],
    ['src/client/client.ts', `import { createParser } from 'eventsource-parser'`],
    ['src/client/client.ts', `import { useState } from 'react'`],
    ['src/client/react.ts', `import { createRoot } from 'react-dom/client'`],
    ['src/client/index.ts', `export { useChat } from './react.ts'`],
    ['src/page/chat.ts', `import { useChat } from '../client/react.ts'`],
    ['src/backends.ts', `import { X } from './http/health.ts'`],
    ['src/app.ts', `import { X } from './modules/audit/index.ts'`],
    ['src/app.ts', `import { X } from './main.ts'`],
    ['src/main.ts', `import { X } from './runs/run.ts'`],
    ['src/config.ts', `import { X } from './app.ts'`],
    ['src/errors.ts', `import { X } from './config.ts'`],
    ['src/log/log.ts', `import { openRedisLog } from './redis.ts'`],
    ['src/upstream/upstream.ts', `import type { X } from './openai.ts'`],
    ['src/shiny/new.ts', `import { X } from '../errors.ts'`],
    ['src/shiny.ts', `import { X } from './errors.ts'`],
    ['src/http/page.ts', `import { X } from '../../test/support/x.ts'`],
  ]
  for (const [path, source] of refused) t.equal(checkImports({ path, source }).length, 1, `${path}: ${source}`)
})

t.test('an import that the table allows is not', async (t) => {
  const allowed: readonly (readonly [path: string, line: string])[] = [
    ['src/log/memory.ts', `import type { Config } from '../config.ts'`],
    ['src/log/memory.ts', `import { type Log, x } from './log.ts'`],
    ['src/log/log.ts', `import type { RunEvent } from './event.ts'`],
    ['src/upstream/upstream.ts', `import type { Usage } from '../log/event.ts'`],
    ['src/upstream/openai.ts', `import { request } from 'undici'`],
    ['src/http/limits.ts', `import { problem } from '../errors.ts'`],
    ['src/runs/accept.ts', `import { X } from '../db/schema.ts'`],
    ['src/surfaces/native.ts', `import type { RunEvent } from '../log/event.ts'`],
    ['src/surfaces/native-routes.ts', `import { X } from '../runs/owned.ts'`],
    ['src/surfaces/openai/routes.ts', `import { X } from '../../http/sse.ts'`],
    ['src/client/react.ts', `import { useState } from 'react'`],
    ['src/client/react.ts', `import { createChat } from './chat.ts'`],
    ['src/modules/index.ts', `import { X } from './audit/index.ts'`],
    ['src/modules/audit/index.ts', `import { X } from './table.ts'`],
    ['src/modules/audit/index.ts', `import { X } from '../../runs/owned.ts'`],
    ['src/app.ts', `import { X } from './modules/index.ts'`],
    ['src/main.ts', `import { buildApp } from './app.ts'`],
    ['src/http/page.ts', `// import { X } from '../runs/run.ts'\nconst prose = "import x from '../runs/run.ts'"`],
  ]
  for (const [path, source] of allowed) t.strictSame(checkImports({ path, source }), [], `${path}: ${source}`)
})

t.test('imports are read whatever their form', async (t) => {
  const source = `import a from 'a'
import { type b } from 'b'
import type { c } from 'c'
import * as d from 'd'
import 'e'
export * from 'f'
export type { g } from 'g'
import {
  h,
} from 'h'
const i = await import('i')
export const from = 'x'
import type from 'j'`
  t.strictSame(
    readImports(source).map(({ specifier, typeOnly }) => (typeOnly ? `type ${specifier}` : specifier)),
    ['a', 'b', 'type c', 'd', 'e', 'f', 'type g', 'h', 'i', 'j'],
  )
})

t.test('a cycle is noticed, once, with its way, also through types', async (t) => {
  const a = { path: 'src/log/a.ts', source: `import { b } from './b.ts'` }
  const b = { path: 'src/log/b.ts', source: `import type { C } from '../db/c.ts'` }
  const c = { path: 'src/db/c.ts', source: `import { a } from '../log/a.ts'` }
  t.strictSame(checkCycles([a, b, c]), [
    'src/db/c.ts:1 is in an import cycle: src/db/c.ts -> src/log/a.ts -> src/log/b.ts',
  ])
  t.strictSame(checkCycles([a, b]), [])
})

t.test('both databases in one file are noticed, except in backends.ts', async (t) => {
  const source = `import { openPglite } from './db/pglite.ts'\nimport { openPostgres } from './db/postgres.ts'`
  t.equal(checkBackends({ path: 'src/app.ts', source }).length, 1)
  t.strictSame(checkBackends({ path: 'src/backends.ts', source }), [])
})

t.test('forbidden contents are noticed, with their line', async (t) => {
  const marker = ['TO', 'DO'].join('')
  const forbidden: readonly string[] = [
    'function f(x: any) {}',
    'const x = y as any',
    'const x = new Map<string, any>()',
    'const x = f<any>(1)',
    'type X = any',
    'let count = 0',
    'export let count = 0',
    'var count = 0',
    'const cache = new Map<string, number>()',
    'export const seen = new Set()',
    'const weak = new WeakMap()',
    'const list: string[] = []',
    'const table: Record<string, number> = {}',
    'const port = () => process.env.PORT',
    'const { env } = process',
    `import { env } from 'node:process'`,
    'try { f() } catch {}',
    'try { f() } catch (error) {\n}',
    'promise.catch(() => {})',
    'promise.catch(() => undefined)',
    `// ${marker}: later`,
  ]
  for (const source of forbidden) {
    const found: Violations = checkContents({ path: 'src/runs/x.ts', source: `// head\n\n${source}` })
    t.match(found, [/^src\/runs\/x\.ts:3 /], source)
  }
})

t.test('what only looks forbidden is not noticed', async (t) => {
  const fine: readonly string[] = [
    '// any let var process.env',
    `const text = 'let any: any = process.env'`,
    // biome-ignore lint/suspicious/noTemplateCurlyInString: a template is what the scanner has to read
    'const text = `let ${inner(`any: any`)} process.env`',
    'const pattern = /let x: any = [/]process.env/',
    'const half = a / b\nconst c = d / 2',
    'function f() {\n  let x = 0\n  const m = new Map()\n  const l = []\n  return { x, m, l }\n}',
    'class A {\n  readonly #m = new Map()\n}',
    'const known: ReadonlySet<string> = new Set(["a"])',
    'const names: readonly string[] = ["a", "b"]',
    'interface X { any: string; many: string }',
    'for (const x of y) { let z = x }',
    'try { f() } catch {\n  // Gone already: nothing to close.\n}',
    'promise.catch(() => undefined) // The same error is thrown below.',
    '// It is closed twice.\npromise.catch(() => undefined)',
    'const x = none ? false : any ? 1 : 2',
    'const x = { process: 1 }\nconst y = x.process.z',
  ]
  for (const source of fine) t.strictSame(checkContents({ path: 'src/runs/x.ts', source }), [], source)
  t.strictSame(
    checkContents({ path: 'src/main.ts', source: 'process.exitCode = 1' }),
    [],
    'main.ts is the process edge',
  )
})

t.test('a test that narrows the run or skips without a reason is noticed', async (t) => {
  const narrowing = [
    "t.only('x', f)",
    "t.test('x', { only: true }, f)",
    "t.test('x', { skip: true }, f)",
    't.skip()',
    "t.skip('')",
  ]
  for (const source of narrowing) t.equal(checkTest({ path: 'test/x.test.ts', source }).length, 1, source)
  const fine = ["t.skip('no Postgres')", "t.test('x', { skip: reason }, f)", `const text = "t.only('x')"`]
  for (const source of fine) t.strictSame(checkTest({ path: 'test/x.test.ts', source }), [], source)
})

t.test('a download host in the lockfile is noticed', async (t) => {
  t.equal(checkLockfile('{"resolved": "https://registry.example.com/a/-/a-1.0.0.tgz"}').length, 1)
  t.strictSame(checkLockfile('{"resolved": "packages/client", "link": true}'), [])
})

t.test('the scanner keeps every offset', async (t) => {
  const source = "const a = 'b' // c\nconst d = `e` /* h */\n"
  const { code, withStrings, comments } = readSource(source)
  t.equal(code, "const a = ' '     \nconst d = ` `        \n")
  t.equal(withStrings, "const a = 'b'     \nconst d = `e`        \n")
  t.equal(comments, '              // c\n              /* h */\n')
})
