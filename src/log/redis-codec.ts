/**
 * What the log looks like in Redis: one stream a run, whose entries have the event's own id and one field, named by the
 * event's type, with its data as JSON; and one stream of commands a process. Pure functions, no state.
 *
 * What is read may have been written by a newer gateway, or by somebody's hand. What does not decode is `undefined`,
 * which a reader treats as a hole: never as an event, and never as an error.
 */
import { Ajv } from 'ajv'
import type { Command } from './control.ts'
import { eventSchemas, formatEventId, type LogEntry, parseEventId, type RunEvent } from './event.ts'

export type Keys = ReturnType<typeof createKeys>

export function createKeys(prefix: string) {
  return {
    // Braces: whatever is kept of a run one day falls into the same slot of a cluster.
    log: (runId: string) => `${prefix}:{${runId}}:log`,
    control: (instanceId: string) => `${prefix}:ctl:${instanceId}`,
  }
}

/** What XADD takes after the key and its options. */
export type EncodedEntry = readonly [id: string, field: string, value: string]

export function encodeEntry(entry: LogEntry): EncodedEntry {
  return [formatEventId(entry), entry.event.type, JSON.stringify(entry.event.data)]
}

// It compiles a schema when it meets it first, which is not at the start of a process: all of them take 0.1 s. Whether ours
// are schemas is a matter of the tests.
const ajv = new Ajv({ coerceTypes: false, strict: false, meta: false, validateSchema: false })

const isEventType = (name: string): name is RunEvent['type'] => Object.hasOwn(eventSchemas, name)

/** @returns undefined when this is no event that this version knows */
export function decodeEntry(id: string, fields: readonly string[]): LogEntry | undefined {
  const [type, json] = fields
  const place = parseEventId(id)
  if (place === undefined || type === undefined || json === undefined || !isEventType(type)) return undefined
  const data = parseJson(json)
  if (!ajv.validate(eventSchemas[type], data)) return undefined
  return { ...place, event: { type, data } as RunEvent }
}

export function encodeCommand(command: Command): readonly [field: string, value: string] {
  return [command.kind, command.kind === 'stop' ? command.runId : '']
}

/** @returns undefined for what is no command: a wake-up, a probe, or a word of a newer version */
export function decodeCommand([kind, value]: readonly string[]): Command | undefined {
  if (kind === 'look') return { kind }
  if (kind === 'stop' && value !== undefined && value !== '') return { kind, runId: value }
  return undefined
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined // Not ours; the caller treats it as a hole.
  }
}
