/**
 * `npm run client:build [-- <folder>]`: src/client as JavaScript and declarations, in dist/client or the folder named. It is
 * what `npm pack` takes (`prepack`), and what `verbatim/client` and `verbatim/client/react` mean outside of this project.
 *
 * The folder is emptied first: a file that has gone from the source must not stay in the package.
 */
import { execFileSync } from 'node:child_process'
import { globSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'

const root = join(import.meta.dirname, '..')
const outDir = resolve(root, process.argv[2] ?? 'dist/client')

rmSync(outDir, { recursive: true, force: true })
execFileSync(join(root, 'node_modules/.bin/tsc'), ['-p', 'tsconfig.client.json', '--outDir', outDir], {
  cwd: root,
  stdio: 'inherit',
})
// The compiler rewrites `./x.ts` to `./x.js` in the code and leaves the declarations as they are; compilers of other
// versions take them for a mistake.
for (const name of globSync('*.d.ts', { cwd: outDir })) {
  const path = join(outDir, name)
  writeFileSync(path, readFileSync(path, 'utf8').replace(/(from '\.\/[\w-]+)\.ts'/g, "$1.js'"))
}
