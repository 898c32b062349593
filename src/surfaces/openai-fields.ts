/**
 * Fields that the requests of both surfaces for clients of OpenAI have, each in a place of its own: functions, calls, effort,
 * and the form of a reply. Pure.
 */
import { type Part, toolNamePattern } from '../log/event.ts'
import { type Fields, isFields } from './fields.ts'
import { invalid } from './openai-conversation.ts'

const efforts = ['none', 'minimal', 'low', 'medium', 'high'] as const

/** @throws Problem `invalid_request` */
export function readFunction({ name, description, parameters }: Fields, place: string) {
  if (typeof name !== 'string' || !toolNamePattern.test(name)) {
    throw invalid(`${place}.name`, 'A name has 1 to 64 of A-Z a-z 0-9 _ -')
  }
  return {
    name,
    ...(typeof description === 'string' ? { description } : {}),
    parameters: isFields(parameters) ? parameters : { type: 'object', properties: {} },
  }
}

/** A model is told of a call with its arguments as they are, or as none where they are no JSON. */
export function toCall(callId: string, name: string, text: string): Part {
  return { kind: 'tool_call', text, call_id: callId, name, input: parse(text) ?? {} }
}

/** @throws Problem `invalid_request` */
export function readEffort(effort: string | null | undefined, field: string) {
  if (effort === undefined || effort === null) return undefined
  const known = efforts.find((one) => one === effort)
  if (known !== undefined) return known
  // More than there is a word for.
  if (effort === 'xhigh' || effort === 'max') return 'high'
  throw invalid(field, `${field} must be one of: ${efforts.join(', ')}.`)
}

/** @param described what has the name and the schema of `json_schema`. @throws Problem `invalid_request` */
export function readFormat(format: Fields, described: unknown, field: string) {
  if (format.type === 'text' || format.type === 'json_object') return { type: format.type } as const
  if (format.type !== 'json_schema' || !isFields(described) || typeof described.name !== 'string') {
    throw invalid(field, `${field} must be text, json_object, or json_schema with a name.`)
  }
  const { name, description, schema, strict } = described
  return {
    type: 'json_schema',
    name,
    ...(typeof description === 'string' ? { description } : {}),
    schema: isFields(schema) ? schema : { type: 'object' },
    ...(typeof strict === 'boolean' ? { strict } : {}),
  } as const
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined // the caller's text stays as it is
  }
}
