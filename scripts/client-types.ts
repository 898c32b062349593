/**
 * `npm run client:types [-- --check]`: writes src/client/types.ts from the schemas of the server, so that what the client
 * library says of the wire is what the gateway validates and answers. With `--check` nothing is written, and the exit
 * code says whether the file is current.
 *
 * A schema that has a name in {@link named} is written once and referred to; every other one is written where it stands. A
 * kind of schema that this does not know is refused: a type that says less than the schema would be worse than none.
 */
import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Type } from 'typebox'
import { catalogue } from '../src/errors.ts'
import { ProblemDocument } from '../src/http/problem.ts'
import * as events from '../src/log/event.ts'
import { DayUsage } from '../src/runs/budgets.ts'
import * as runs from '../src/runs/model.ts'
import { StreamTicket } from '../src/runs/tickets.ts'
import * as artifacts from '../src/sessions/artifact-model.ts'
import { Claimed } from '../src/sessions/claim.ts'
import * as sessions from '../src/sessions/model.ts'
import { SessionWithMembers } from '../src/sessions/routes.ts'

const root = join(import.meta.dirname, '..')
const path = 'src/client/types.ts'

/** What of a JSON Schema is looked at. */
interface Schema {
  readonly type?: string
  readonly const?: string | number | boolean
  readonly anyOf?: readonly Schema[]
  readonly oneOf?: unknown
  readonly properties?: Readonly<Record<string, Schema>>
  readonly patternProperties?: Readonly<Record<string, Schema>>
  readonly additionalProperties?: boolean
  readonly required?: readonly string[]
  readonly items?: Schema
  readonly description?: string
}

/** Stands for the rows of any list. */
const Row = Type.Object({}, { $id: 'Row' })

/** Name -> schema and what it is, in the order of the file. Of two schemas that say the same, the first gives the name. */
const named: readonly (readonly [name: string, schema: object, about: string])[] = [
  ['PartKind', events.PartKind, ''],
  ['ToolError', events.ToolError, 'What went wrong with a tool.'],
  [
    'Part',
    events.Part,
    'A piece of a message. `text` is the words of a text or reasoning part, and the raw arguments of a tool call.',
  ],
  ['RunStatus', events.RunStatus, ''],
  ['TerminalStatus', events.TerminalStatus, ''],
  ['Mode', events.Mode, ''],
  ['Usage', events.Usage, 'Token counts. `input_tokens` are all of the prompt, `output_tokens` all that was made.'],
  ['RunError', events.RunErrorSchema, 'Why a reply is not whole. `code` is one of {@link ErrorCode}.'],
  ['RunStarted', events.RunStarted, 'Data of `run`, the first event.'],
  ['PartOpened', events.PartOpened, 'Data of `part`: opens a part of another kind than text, or a second text part.'],
  ['Delta', events.Delta, 'Data of `delta`. `offset` counts the UTF-16 units of that part before it.'],
  ['ToolCalled', events.ToolCalled, 'Data of `tool`: a call whose arguments are complete, or that has been answered.'],
  ['SourceNamed', events.SourceNamed, 'Data of `source`: opens a part that says where something comes from.'],
  ['Progress', events.Progress, 'Data of `progress`: how far a reply of several steps has come.'],
  ['ArtifactMade', events.ArtifactMade, 'Data of `artifact`: a document of the session has a new version.'],
  ['Titled', events.Titled, 'Data of `title`: the session has a new title.'],
  ['UsageSoFar', events.UsageSoFar, 'Data of `usage`: what a reply of several steps has used so far.'],
  ['Reset', events.Reset, 'Data of `reset`: replaces all that came before.'],
  ['Done', events.Done, 'Data of `done`, the only end.'],
  ['SessionStatus', sessions.SessionStatus, ''],
  ['Session', sessions.Session, ''],
  ['MessageStatus', sessions.MessageStatus, ''],
  ['Feedback', sessions.Feedback, ''],
  ['Message', sessions.Message, ''],
  ['ArtifactType', artifacts.ArtifactType, ''],
  ['Artifact', artifacts.Artifact, 'A document of a session.'],
  ['ArtifactSummary', artifacts.ArtifactSummary, ''],
  ['ArtifactList', artifacts.ArtifactList, ''],
  ['SessionWithMembers', SessionWithMembers, ''],
  ['UpstreamCall', runs.UpstreamCall, 'One time that a provider was asked for a run.'],
  ['Run', runs.Run, ''],
  ['StoppedRun', runs.StoppedRun, ''],
  ['StartedSession', runs.StartedSession, ''],
  ['StreamTicket', StreamTicket, ''],
  ['MessageFeedback', sessions.MessageFeedback, ''],
  ['Claimed', Claimed, ''],
  ['DayUsage', DayUsage, 'What the caller has spent today, and may.'],
  ['Tool', runs.Tool, 'What the model may call.'],
  ['ToolResult', runs.ToolResult, 'What became of one call: `output` or `error`.'],
  ['ChatBody', runs.ChatBody, 'A message, or answers to the tool calls with which a reply has ended: one of the two.'],
  ['BranchBody', runs.BranchBody, 'Of a new reply to a message that is there.'],
  ['EditBody', runs.EditBody, "Of a message in another's place."],
  ['StartBody', runs.StartBody, "Of a session's background run."],
  ['CreateSessionBody', sessions.CreateSessionBody, ''],
  ['PatchSessionBody', sessions.PatchSessionBody, ''],
  ['FeedbackBody', sessions.FeedbackBody, ''],
  ['ListSessionsQuery', sessions.ListSessionsQuery, ''],
  ['ListMessagesQuery', sessions.ListMessagesQuery, ''],
  ['ProblemDocument', ProblemDocument, 'How the gateway says no. `code` is one of {@link ErrorCode}.'],
]

/** Without what a reader is told: the same shape is the same type. */
const keyOf = (schema: object): string =>
  JSON.stringify(schema, (key, value: unknown) => (key === 'description' ? undefined : value))

const names: ReadonlyMap<string, string> = new Map(
  [['Row', Row] as const, ...named].toReversed().map(([name, schema]) => [keyOf(schema), name]),
)

/** @returns the file as it should be */
export function writeTypes(): string {
  const lines = [
    '/**',
    ' * What goes over the wire, as TypeScript: made of the schemas of the gateway by `npm run client:types`, and not to be',
    ' * changed by hand.',
    ' */',
    '',
    ...named.flatMap(([name, schema, about]) => declare(name, schema, about)),
    ...declare('Page<Row>', sessions.page(Row), 'A page of a list. `next_cursor` asks for the next one.'),
    '/** Name of an event on the wire -> its data. */',
    'export interface EventData {',
    ...Object.entries(events.eventSchemas).map(([name, schema]) => `readonly ${name}: ${print(schema)}`),
    '}',
    '',
    '/** What `code` of an error can be; a later gateway may have more. */',
    `export type ErrorCode = ${Object.keys(catalogue)
      .map((code) => `'${code}'`)
      .join(' | ')}`,
  ]
  return format(lines.join('\n'))
}

function declare(name: string, schema: object, about: string): readonly string[] {
  const comment = about === '' ? [] : [`/** ${about} */`]
  const body = printHere(schema)
  return [
    ...comment,
    !('properties' in schema) ? `export type ${name} = ${body}` : `export interface ${name} ${body}`,
    '',
  ]
}

function print(schema: object): string {
  return names.get(keyOf(schema)) ?? printHere(schema)
}

/** @param object a schema */
function printHere(object: object): string {
  const schema = object as Schema
  if (schema.anyOf !== undefined) return schema.anyOf.map(print).join(' | ')
  if (schema.const !== undefined) return typeof schema.const === 'string' ? `'${schema.const}'` : String(schema.const)
  if (schema.properties !== undefined) return printObject(schema)
  if (schema.patternProperties !== undefined) {
    const [values = {}] = Object.values(schema.patternProperties)
    return `Readonly<Record<string, ${print(values)}>>`
  }
  if (schema.items !== undefined) return `readonly (${print(schema.items)})[]`
  if (schema.type === 'integer' || schema.type === 'number') return 'number'
  if (schema.type === 'string' || schema.type === 'boolean' || schema.type === 'null') return schema.type
  if (Object.keys(schema).every((key) => key === 'description')) return 'unknown'
  throw new Error(`A schema of a kind that has no type here: ${JSON.stringify(schema)}`)
}

function printObject({ properties = {}, required = [], additionalProperties }: Schema): string {
  const members = Object.entries(properties).map(([name, schema]) => {
    const comment = schema.description === undefined ? '' : `/** ${schema.description} */\n`
    const key = /^\w+$/.test(name) ? name : `'${name}'`
    return `${comment}readonly ${key}${required.includes(name) ? '' : '?'}: ${print(schema)}`
  })
  const more = additionalProperties === true ? ['readonly [member: string]: unknown'] : []
  return `{\n${[...members, ...more].join('\n')}\n}`
}

function format(source: string): string {
  const biome = join(root, 'node_modules/.bin/biome')
  return execFileSync(biome, ['format', `--stdin-file-path=${path}`], { cwd: root, input: source, encoding: 'utf8' })
}

if (import.meta.main) {
  const current = writeTypes()
  const there = readFileSync(join(root, path), { encoding: 'utf8', flag: 'a+' })
  if (!process.argv.includes('--check')) writeFileSync(join(root, path), current)
  else if (there !== current) {
    process.stderr.write(`${path} is not what the schemas say. Run: npm run client:types\n`)
    process.exitCode = 1
  }
}
