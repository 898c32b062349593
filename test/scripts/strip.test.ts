/** What strip.ts leaves behind: files in node's cache, and nothing that they do. */
import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t from 'tap'
import { stripFiles } from '../../scripts/strip.ts'
import { createFolder } from '../support/gateway.ts'

const run = promisify(execFile)

t.test(
  'a file is in the cache afterwards and has not run, whatever it imports, and one that is broken is left out',
  async (t) => {
    const folder = await createFolder(t)
    const cache = join(folder, 'cache')
    const mark = join(folder, 'mark')
    const path = (name: string) => join(folder, `${name}.ts`)
    const write = `const mark: string = ${JSON.stringify(mark)}\nwriteFileSync(mark, 'ran')\n`
    await writeFile(path('broken'), `import { writeFileSync } from 'node:fs'\nconst x: = 1\n`)
    await writeFile(path('named'), `import { writeFileSync } from 'node:fs'\n${write}`)
    await writeFile(path('whole'), `import * as fs from 'node:fs'\nconst { writeFileSync } = fs\n${write}`)
    const { signal } = new AbortController()
    await stripFiles(['broken.ts', 'named.ts', 'whole.ts'], { cwd: folder, cache, flags: [], signal })
    t.notOk(existsSync(mark), 'nothing has run')

    for (const name of ['named', 'whole']) {
      const env = { ...process.env, NODE_COMPILE_CACHE: cache, NODE_DEBUG_NATIVE: 'COMPILE_CACHE' }
      const { stderr } = await run(process.execPath, [path(name)], { env })
      t.match(
        stderr,
        new RegExp(`StrippedTypeScript file://${path(name)}\\.\\.\\.success`),
        `${name} is taken from the cache`,
      )
    }
    t.ok(existsSync(mark), 'and does what it did')
  },
)
