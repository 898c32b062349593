/**
 * `npm run test:clients [-- <options of npm test>]`: the tests of real clients and of the client library with many more
 * trials than `npm test` takes time for: FAULT_TRIALS, or as many as stand here.
 */
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'

const trials = 40
const root = join(import.meta.dirname, '..')
const patterns = ['test/clients/**/*.test.ts', 'test/client/**/*.test.ts']

const { status } = spawnSync(process.execPath, ['scripts/test.ts', ...patterns, ...process.argv.slice(2)], {
  cwd: root,
  env: { FAULT_TRIALS: String(trials), ...process.env },
  stdio: 'inherit',
})
process.exitCode = status ?? 1
