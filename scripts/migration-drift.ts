/**
 * `npm run migration:drift`: fails when src/db/schema.ts and the migrations in drizzle/ tell two stories, which means
 * a migration was forgotten. drizzle-kit generates into a copy, so the tree stays untouched.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { join, relative } from 'node:path'
import { text } from 'node:stream/consumers'

/** Longest time for one generation; it takes about a second. */
const generateMs = 60_000
const root = join(import.meta.dirname, '..')

/**
 * @param folder of the project
 * @returns the SQL files that drizzle-kit would add, by name
 * @throws with drizzle-kit's words when it fails; it also asks questions (was a column renamed?), and then fails here
 */
export async function findDrift(folder: string): Promise<ReadonlyMap<string, string>> {
  const committed = join(folder, 'drizzle')
  // Inside the project, because drizzle-kit reads `out` relative to its working folder.
  const copy = mkdtempSync(join(folder, '.migration-drift-'))
  try {
    if (existsSync(committed)) cpSync(committed, copy, { recursive: true })
    const before = listSql(copy)
    await generate(folder, relative(folder, copy))
    const added = listSql(copy).filter((name) => !before.includes(name))
    return new Map(added.map((name) => [name, readFileSync(join(copy, name), 'utf8')]))
  } finally {
    rmSync(copy, { recursive: true, force: true })
  }
}

async function generate(folder: string, out: string): Promise<void> {
  const program = join(root, 'node_modules', 'drizzle-kit', 'bin.cjs')
  const args = ['generate', '--dialect=postgresql', '--schema=./src/db/schema.ts', `--out=./${out}`]
  const child = spawn(process.execPath, [program, ...args], {
    cwd: folder,
    stdio: ['ignore', 'pipe', 'pipe'],
    signal: AbortSignal.timeout(generateMs),
  })
  const [output, errors, [code]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'close')])
  // drizzle-kit 0.31 ends with 0 when the schema throws, and when it would have to ask whether a column was renamed.
  const isDone = /No schema changes|Your SQL migration file/.test(output)
  if (code !== 0 || !isDone) throw new Error(`drizzle-kit generate ended with ${code}:\n${output}${errors}`)
}

const listSql = (folder: string): readonly string[] => readdirSync(folder).filter((name) => name.endsWith('.sql'))

if (import.meta.main) {
  const drift = await findDrift(root)
  for (const [name, sql] of drift) process.stdout.write(`drizzle/ lacks a migration, something like ${name}:\n${sql}\n`)
  if (drift.size > 0) {
    process.stdout.write('Run `npm run migration`, read the SQL it writes, and commit it with src/db/schema.ts.\n')
    process.exitCode = 1
  } else {
    process.stdout.write('drizzle/ and src/db/schema.ts agree\n')
  }
}
