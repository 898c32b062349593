/** On what something was measured: the machine, and the versions of what ran. */
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { cpus, release, totalmem } from 'node:os'
import { join } from 'node:path'
import type { Stage } from './stage.ts'

export interface Machine {
  readonly processor: string
  readonly processors: number
  readonly memoryGb: number
  readonly system: string
  /** Whether the contender has a processor for itself. */
  readonly pinned: boolean
  readonly versions: Readonly<Record<string, string>>
  /** Of this project. */
  readonly commit: string
}

const root = join(import.meta.dirname, '../..')
/** Packages that the contenders are made of. */
const packages = [
  'fastify',
  'undici',
  'postgres',
  'ioredis',
  'ai',
  'ai5-openai-compatible',
  'resumable-stream',
] as const

export async function describeMachine(stage: Stage): Promise<Machine> {
  const [processor] = cpus()
  return {
    processor: processor?.model.trim() ?? '?',
    processors: cpus().length,
    memoryGb: Math.round(totalmem() / 1024 ** 3),
    system: `${process.platform} ${release()}`,
    pinned: stage.pinning !== undefined,
    versions: {
      Node: process.version.slice(1),
      ...(await stage.readVersions()),
      ...Object.fromEntries(packages.map((name) => [nameOf(name), versionOf(name)])),
    },
    commit: readCommit(),
  }
}

/** Installed under a name of ours or its own. */
function nameOf(folder: string): string {
  return readPackage(folder).name
}

function versionOf(folder: string): string {
  return readPackage(folder).version
}

function readPackage(folder: string): { readonly name: string; readonly version: string } {
  return JSON.parse(readFileSync(join(root, 'node_modules', folder, 'package.json'), 'utf8'))
}

function readCommit(): string {
  try {
    const git = (...args: string[]) =>
      execFileSync('git', args, { cwd: root, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim()
    return (
      git('rev-parse', '--short', 'HEAD') + (git('status', '--porcelain', '--', 'src') === '' ? '' : ' with changes')
    )
  } catch {
    return '?' // not a checkout
  }
}
