/**
 * The database inside this process: PGlite, which is Postgres compiled to WebAssembly, on a folder of its own.
 *
 * PGlite takes no lock on its folder, and two processes on one folder lose data, so an operating-system lock is taken
 * first: an exclusive SQLite transaction on an empty file, which is Node's only built-in way to an fcntl lock. The
 * kernel gives it back when the process ends in whatever way, and it holds between containers that share a volume.
 *
 * What has been committed survives the death of the process, because it is in the operating system's cache; it may not
 * survive a power cut, because this file system layer cannot fsync. With `memory:` nothing survives. `memory:` and the path of
 * a dump begins with what that holds: making a database takes three seconds of a processor, reading one takes 0.4.
 */
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { PGlite } from '@electric-sql/pglite'
import { btree_gin } from '@electric-sql/pglite/contrib/btree_gin'
import { pg_trgm } from '@electric-sql/pglite/contrib/pg_trgm'
import { compile, createGate, type Db, type Lane, type Orm, toRows } from './db.ts'
import { loadPglite } from './drizzle.ts'
import { migrationsFolder, refuseNewerSchema } from './migrate.ts'

const inMemory = 'memory:'
const deadlineMs = 5000
// One connection: more than a few statements in line only move the wait around.
const waitersMax = 1000
const sqliteBusy = 5
const clientOptions = {
  // 345 -> 218 MB of memory, and nothing here needs a larger buffer.
  startParams: [...PGlite.defaultStartParams, '-c', 'shared_buffers=16MB'],
  extensions: { btree_gin, pg_trgm },
}

/**
 * @param dataDir a folder, made when missing, or `memory:`, or that and the path of a dump
 * @throws Error with a sentence for the operator when another process has the folder open
 */
export async function openPglite(dataDir: string): Promise<Db> {
  const { drizzle, migrate } = loadPglite()
  const folder = dataDir.startsWith(inMemory) ? undefined : resolve(dataDir)
  const lock = folder === undefined ? undefined : await lockFolder(folder)
  const client = await openClient(dataDir, folder).catch((error: unknown) => {
    lock?.close()
    throw error
  })
  const database = drizzle(client)
  const orm = database as unknown as Orm
  // A statement that misses its deadline still runs to its end, because there is no second connection to cancel it from.
  const gate = createGate({ size: 1, waitersMax, deadlineMs, onDeadline: () => undefined })

  const inLane = (lane: Lane): Db => ({
    kind: 'pglite',
    exclusive: true,
    description: folder === undefined ? 'PGlite in memory (nothing is kept)' : `PGlite in ${dataDir}`,
    rows: (statement) => gate.pass(async () => toRows(await orm.execute(statement)), lane),
    prepare(statement) {
      const { text, bind } = compile(statement)
      return (values) => gate.pass(async () => toRows(await client.query(text, bind(values))), lane)
    },
    run: (query) => gate.pass(() => query(orm), lane),
    inLane,
    async migrate() {
      await refuseNewerSchema((statement) => orm.execute(statement))
      await migrate(database, { migrationsFolder })
    },
    async close() {
      try {
        await client.close()
      } finally {
        lock?.close()
      }
    },
  })
  return inLane('requests')
}

async function openClient(dataDir: string, folder: string | undefined): Promise<PGlite> {
  const dump = folder === undefined ? dataDir.slice(inMemory.length) : ''
  return PGlite.create({
    ...clientOptions,
    dataDir: folder === undefined ? 'memory://' : join(folder, 'pglite'),
    ...(dump === '' ? {} : { loadDataDir: await openDump(dump) }),
  })
}

/** A blob of a file's bytes that gives them out as they are: one that holds them copies them twice. */
async function openDump(file: string): Promise<Blob> {
  const bytes = new Uint8Array(await readFile(file)).buffer
  return Object.assign(new Blob([]), { arrayBuffer: async () => bytes })
}

/**
 * Writes the dump of a new database, with all tables and nothing in them. What it weighs is what each start on it
 * costs, so it lacks what nobody asks it for: databases to make others from, and most of the 16 MB of a first file of
 * the write-ahead log.
 */
export async function writeDump(file: string): Promise<void> {
  const { drizzle, migrate } = loadPglite()
  const client = await PGlite.create({
    ...clientOptions,
    dataDir: 'memory://',
    initDbStartParams: ['--wal-segsize=1'],
  })
  try {
    await migrate(drizzle(client), { migrationsFolder })
    await client.exec('update pg_database set datistemplate = false')
    for (const template of ['template0', 'template1']) await client.exec(`drop database ${template}`)
    await client.exec('checkpoint')
    const dump = await client.dumpDataDir('none')
    await writeFile(file, new Uint8Array(await dump.arrayBuffer()))
  } finally {
    await client.close()
  }
}

async function lockFolder(folder: string): Promise<{ close(): void }> {
  await mkdir(folder, { recursive: true })
  const lock = new DatabaseSync(join(folder, 'lock'))
  try {
    lock.exec('pragma journal_mode = off; pragma locking_mode = exclusive; begin exclusive')
    return lock
  } catch (error) {
    lock.close()
    if ((error as { errcode?: number }).errcode !== sqliteBusy) throw error
    throw new Error(`Another process has the data folder ${folder} open. End it, or set DATA_DIR to another folder.`, {
      cause: error,
    })
  }
}
