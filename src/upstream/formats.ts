/**
 * What a reply has to look like, in words, for providers that cannot be held to it. Pure. It asks for what the format asks
 * for and no more; nothing of the reply is checked here.
 */
import type { ReplyFormat } from './upstream.ts'

/** @returns a system message; undefined when any words will do */
export function describeFormat(format: ReplyFormat | undefined): string | undefined {
  if (format === undefined || format.type === 'text') return undefined
  const only = 'Answer with nothing but one JSON object: no words around it, and no code fence.'
  if (format.type === 'json_object') return only
  return `${only} It has to be valid for this JSON Schema:\n${JSON.stringify(format.schema)}`
}
