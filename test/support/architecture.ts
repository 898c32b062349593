/**
 * The rules of the house as functions over (path, source): who may import whom, no cycles, no module-level state, and
 * what a file must not contain. ARCHITECTURE.md tells them in prose; test/architecture.test.ts applies them to the
 * tree, and to made-up files that break each one.
 */
import { posix } from 'node:path'
import { lineAt, readSource, type SourceText } from './source-text.ts'

export interface SourceFile {
  /** Relative to the project, with slashes: `src/log/log.ts`. */
  readonly path: string
  readonly source: string
}

export interface Import {
  readonly specifier: string
  readonly typeOnly: boolean
  readonly line: number
}

/** One sentence for each broken rule, beginning with `path:line`. */
export type Violations = readonly string[]

// What a folder of src may import apart from itself. `errors.ts` and packages are open to all but client/.
const folders: Readonly<Record<string, readonly string[]>> = {
  log: ['config.ts (types)'],
  db: ['config.ts (types)'],
  http: ['config.ts (types)'],
  upstream: ['log/event.ts'],
  sessions: ['db/', 'http/', 'log/'],
  runs: ['sessions/', 'log/', 'upstream/', 'db/', 'http/'],
  surfaces: ['log/event.ts'],
  modules: ['log/', 'db/', 'http/', 'upstream/', 'sessions/', 'runs/', 'surfaces/', 'config.ts (types)'],
  client: [],
  page: ['client/'],
}

// The same for the files directly in src.
const topFiles: Readonly<Record<string, readonly string[]>> = {
  'main.ts': ['app.ts', 'backends.ts', 'config.ts', 'config-file.ts', 'config-values.ts', 'db/', 'http/log-output.ts'],
  'app.ts': [
    'backends.ts',
    'config.ts',
    'log/',
    'db/',
    'http/',
    'upstream/',
    'sessions/',
    'runs/',
    'surfaces/',
    'modules/index.ts',
  ],
  'backends.ts': ['config.ts', 'db/', 'log/'],
  'config.ts': ['config-models.ts', 'config-schema.ts', 'config-values.ts'],
  'config-models.ts': ['config-schema.ts', 'config-values.ts', 'upstream/'],
  'config-schema.ts': ['config-values.ts', 'upstream/'],
  'config-file.ts': ['config-schema.ts', 'config-values.ts', 'sessions/ (types)', 'runs/ (types)', 'upstream/ (types)'],
  'config-values.ts': [],
  'errors.ts': [],
}

const routesOfSurfaces = ['runs/', 'sessions/', 'http/']
/** What it imports is a peer of whoever uses it; no other file of the client may import this one. */
const hookFile = 'client/react.ts'
/** A port is what its adapters implement: it may know the events, and no adapter. */
const ports: readonly string[] = ['log/log.ts', 'upstream/upstream.ts']

/** The import, export-from and dynamic import lines of a file. */
export function readImports(source: string): readonly Import[] {
  const { withStrings, code } = readSource(source)
  const statement =
    /\b(?:import|export)\b(?<clause>[^;'"()=]*?)\bfrom\s*['"](?<from>[^'"]+)['"]|\bimport\s*\(?\s*['"](?<bare>[^'"]+)['"]/g
  return [...withStrings.matchAll(statement)]
    .filter((match) => /^(import|export)/.test(code.slice(match.index)))
    .map((match) => ({
      specifier: match.groups?.from ?? match.groups?.bare ?? '',
      typeOnly: /^\s*type\s+[\w{*$]/.test(match.groups?.clause ?? ''),
      line: lineAt(source, match.index),
    }))
}

/** The table "Who may import whom". */
export function checkImports(file: SourceFile): Violations {
  const from = insideSrc(file.path)
  if (from === undefined) return []
  return readImports(file.source).flatMap((line) => {
    const complaint = complainAbout(from, line)
    return complaint === undefined ? [] : [`${file.path}:${line.line} ${complaint}`]
  })
}

function complainAbout(from: string, line: Import): string | undefined {
  const [folder = ''] = from.split('/')
  const isTop = !from.includes('/')
  if (!line.specifier.startsWith('.')) {
    const allowed = folder !== 'client' || (from === hookFile && line.specifier === 'react')
    return allowed ? undefined : `imports ${line.specifier}: client/ depends on nothing, and its hook on react only`
  }
  const target = posix.join(posix.dirname(from), line.specifier)
  const refused = `may not import ${target}`
  if (target.startsWith('..')) return `${refused}: outside of src`
  if (!isTop && !(folder in folders)) return `is in ${folder}/, which the table of folders does not know`
  if (isTop && !(from in topFiles)) return 'is directly in src, and the table of files does not know it'
  const isOwnFolder = !isTop && target.startsWith(`${folder}/`)
  if (ports.includes(from) && isOwnFolder && posix.basename(target) !== 'event.ts') return `${refused}: it is a port`
  if (folder === 'modules' && isOwnFolder) {
    const ownModule = from.split('/').slice(0, 2).join('/')
    return from === 'modules/index.ts' || target.startsWith(`${ownModule}/`) ? undefined : `${refused}: another module`
  }
  if (target === hookFile) return `${refused}: it needs react`
  if (isOwnFolder) return undefined
  if (target === 'errors.ts' && folder !== 'client') return undefined
  const allowed = isTop ? (topFiles[from] ?? []) : (folders[folder] ?? [])
  const more = folder === 'surfaces' && isRoutesFile(from) ? routesOfSurfaces : []
  return [...allowed, ...more].some((entry) => covers(entry, target, line.typeOnly)) ? undefined : refused
}

function covers(entry: string, target: string, typeOnly: boolean): boolean {
  const [path = '', types] = entry.split(' ')
  if (types !== undefined && !typeOnly) return false
  return path.endsWith('/') ? target.startsWith(path) : target === path
}

const isRoutesFile = (path: string): boolean => /(^|[/-])routes?\.ts$/.test(path)

/** Embedded and real database meet in backends.ts only. */
export function checkBackends(file: SourceFile): Violations {
  const from = insideSrc(file.path)
  if (from === undefined || from === 'backends.ts') return []
  const targets = readImports(file.source).map((line) => posix.join(posix.dirname(from), line.specifier))
  const both = ['db/pglite.ts', 'db/postgres.ts'].every((target) => targets.includes(target))
  return both ? [`${file.path}:1 imports both databases; only backends.ts may`] : []
}

/** Import cycles, each once, type-only imports included. */
export function checkCycles(files: readonly SourceFile[]): Violations {
  const known = new Set(files.map((file) => file.path))
  const graph = new Map(
    files.map((file) => [
      file.path,
      readImports(file.source)
        .filter((line) => line.specifier.startsWith('.'))
        .map((line) => posix.join(posix.dirname(file.path), line.specifier))
        .filter((path) => known.has(path)),
    ]),
  )
  const cycles = new Set<string>()
  const done = new Set<string>()
  const visit = (path: string, trail: readonly string[]): void => {
    const start = trail.indexOf(path)
    if (start >= 0) {
      const cycle = trail.slice(start)
      const first = cycle.indexOf(cycle.toSorted()[0] ?? path)
      cycles.add([...cycle.slice(first), ...cycle.slice(0, first)].join(' -> '))
      return
    }
    if (done.has(path)) return
    for (const next of graph.get(path) ?? []) visit(next, [...trail, path])
    done.add(path)
  }
  for (const path of graph.keys()) visit(path, [])
  return [...cycles].map((cycle) => `${cycle.split(' ')[0]}:1 is in an import cycle: ${cycle}`)
}

/** What no file of src may contain. */
export function checkContents(file: SourceFile): Violations {
  const text = readSource(file.source)
  const found = [
    ...search(text, text.code, /(?:[:<|&,(=]\s*|\bas\s+|\bextends\s+)any\b(?!\s*[(.:?])/g, () => 'says `any`'),
    ...checkModuleState(text),
    ...checkCatches(text),
    ...search(text, text.comments, unfinished, (match) => `has a ${match[0]}`),
    ...(insideSrc(file.path) === 'main.ts'
      ? []
      : [
          ...search(text, text.code, /(?<![.\w$])process\s*(?:\?\.|\.|\[)|=\s*process\b/g, () => 'touches process'),
          ...readImports(file.source)
            .filter((line) => /^(node:)?process$/.test(line.specifier))
            .map((line) => ({ line: line.line, problem: 'imports process' })),
        ]),
  ]
  return describe(file, found)
}

/** What no test may contain: it must not narrow the run, and a skip has a reason. */
export function checkTest(file: SourceFile): Violations {
  const text = readSource(file.source)
  return describe(file, [
    ...search(text, text.code, /\.only\s*\(|\bonly\s*:\s*true/g, () => 'narrows the run with only'),
    ...search(
      text,
      text.withStrings,
      /\.(?:skip|todo)\s*\(\s*(?:\)|(['"`])\1)/g,
      () => 'skips without a reason',
    ).filter(({ offset }) => /^\.(skip|todo)/.test(text.code.slice(offset))),
    ...search(text, text.code, /\b(?:skip|todo)\s*:\s*true/g, () => 'skips without a reason'),
    ...search(text, text.comments, unfinished, (match) => `has a ${match[0]}`),
  ])
}

/** Download hosts in a lockfile: with one, an install depends on that host whatever registry the machine is set to. */
export function checkLockfile(lockfile: string): Violations {
  return [...lockfile.matchAll(/"resolved":\s*"([a-z+]+:\/\/[^/"]*)/g)].map(
    (match) => `package-lock.json:${lineAt(lockfile, match.index)} names the download host ${match[1]}`,
  )
}

interface Finding {
  readonly line: number
  readonly problem: string
}

const unfinished = /\b(?:TODO|FIXME|XXX)\b/g

// Lookups that never change may be collections: their type has to say so, and the compiler then refuses a write.
const collection =
  /\bconst\s+\w+\s*(?<type>:[^=]*?)?=\s*(?:new\s+(?:Map|Set|WeakMap|WeakSet|Array)\b|\[\s*\]|\{\s*\}\s*$|Object\.create\()/gm

function checkModuleState(text: SourceText): readonly Finding[] {
  const atTop = ({ offset }: { readonly offset: number }): boolean => text.depths[offset] === 0
  return [
    ...search(text, text.code, /(?<![.\w$])(?:let|var)\s+[\w${[]/g, () => 'has a module-level variable').filter(atTop),
    ...search(text, text.code, collection, (match) =>
      /^:\s*Readonly/.test(match.groups?.type ?? '') ? undefined : 'has a module-level collection that can change',
    ).filter(atTop),
  ]
}

/** An error may be swallowed only by a catch that says why: inside it, behind it, or on the line above. */
function checkCatches(text: SourceText): readonly Finding[] {
  const empty = /\bcatch\s*(?:\([^)]*\))?\s*\{\s*\}|\.catch\(\s*\(\w*\)\s*=>\s*(?:\{\s*\}|undefined|null)\s*,?\s*\)/g
  return search(text, text.code, empty, (match) => {
    const endOfLine = text.raw.indexOf('\n', match.index + match[0].length)
    const lineBefore = text.comments.lastIndexOf('\n', text.comments.lastIndexOf('\n', match.index) - 1)
    const comments = text.comments.slice(Math.max(lineBefore, 0), endOfLine < 0 ? undefined : endOfLine)
    return comments.trim() === '' ? 'swallows an error without a reason' : undefined
  })
}

function search(
  text: SourceText,
  where: string,
  pattern: RegExp,
  name: (match: RegExpExecArray) => string | undefined,
): readonly (Finding & { readonly offset: number })[] {
  return [...where.matchAll(pattern)].flatMap((match) => {
    const problem = name(match)
    return problem === undefined ? [] : [{ problem, offset: match.index, line: lineAt(text.raw, match.index) }]
  })
}

function describe(file: SourceFile, findings: readonly Finding[]): Violations {
  return findings.map(({ line, problem }) => `${file.path}:${line} ${problem}`)
}

function insideSrc(path: string): string | undefined {
  return path.startsWith('src/') ? path.slice('src/'.length) : undefined
}
