/** `node scripts/bench/try.ts pipe,gateway 200 2`: the measure `cost`, in short. */
import { spawnSync } from 'node:child_process'

const [contenders = 'pipe,gateway', streams = '200', rounds = '1'] = process.argv.slice(2)
const args = ['cost', `--contenders=${contenders}`, `--streams=${streams}`, `--rounds=${rounds}`]
if (process.env.PROF) args.push('--profile=/tmp/prof')
process.exitCode =
  spawnSync(process.execPath, [new URL('main.ts', import.meta.url).pathname, ...args], { stdio: 'inherit' }).status ?? 1
